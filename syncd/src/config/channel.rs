//! One `[[channel]]`: what its keys mean, and what it may not share with the others.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use causeway_core::{ChannelSpec, Pattern, Site};

use super::file::{ChannelTable, ConflictKey, IntakeTable};
use super::load::{Loader, at, is_name, one_of};
use super::{BatchLimits, Channel, ConfigError, Conflict, Deliver, Direction, Intake, SnapshotOf, endpoints};
use crate::owners::{Owners, TenantKey};
use crate::registry::Registry;

/// What a channel is read with.
pub(super) struct Context<'a> {
    pub(super) loader: &'a Loader<'a>,
    pub(super) registry: &'a Registry,
    pub(super) link: &'a str,
    pub(super) sites: &'a [String; 2],
    pub(super) directory: &'a Path,
}

/// Reads the channel at `index` from the daemon's keys (`table`) and its store's (`store_keys`, the sites'
/// tables among them).
pub(super) fn read(
    context: &Context<'_>,
    index: usize,
    table: ChannelTable,
    mut store_keys: toml::Table,
) -> Result<Channel, ConfigError> {
    let Context { loader, registry, sites, .. } = context;
    let name = &table.name;
    let wrong = |key: &str, message: String| {
        loader.value(at!["channel", index, key], format!("channel `{name}`: {message}"))
    };
    if !is_name(name) {
        let message = format!("channel.name is `{name}`, allowed is 1 to 64 of A-Z a-z 0-9 - _");
        return loader.value(at!["channel", index, "name"], message);
    }
    if registry.get(&table.store).is_none() {
        let allowed = one_of(registry.names());
        return wrong("store", format!("store is `{}`, allowed in this release is {allowed}", table.store));
    }
    let Some(direction) = direction(&table.direction, sites) else {
        let [first, second] = sites;
        let allowed = one_of(["both".to_owned(), format!("{first}->{second}"), format!("{second}->{first}")]);
        return wrong("direction", format!("direction is `{}`, allowed is {allowed}", table.direction));
    };
    let Some(snapshot) = snapshot(&table.snapshot, sites) else {
        let allowed = one_of(sites.iter().map(String::as_str).chain(["both", "none"]));
        return wrong("snapshot", format!("snapshot is `{}`, allowed is {allowed}", table.snapshot));
    };
    if let Some(origin) = Site::BOTH.into_iter().find(|s| snapshot.names(*s) && !direction.carries(*s)) {
        let origin = &sites[origin.index()];
        let message = format!(
            "snapshot is `{}`, but direction `{}` carries nothing from `{origin}`",
            table.snapshot, table.direction
        );
        return wrong("snapshot", message);
    }
    let Some(existing) = existing(table.existing.as_deref(), snapshot, sites) else {
        let named = Site::BOTH.into_iter().filter(|site| snapshot.names(*site));
        let allowed = one_of(named.map(|site| &sites[site.index()]));
        let given = table.existing.as_deref().unwrap_or_default();
        return wrong(
            "existing",
            format!("existing is `{given}`, allowed is what snapshot names: {allowed}"),
        );
    };
    let bound = |key: &str, value: i64| match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => loader.value(
            at!["channel", index, "batch", key],
            format!(
                "channel `{name}`: batch.{key} is {value}, allowed is 1 or more: an empty batch never leaves"
            ),
        ),
    };
    let batch = BatchLimits {
        items_max: table.batch.items_max.map(|items| bound("items_max", items)).transpose()?,
        bytes_max: table.batch.bytes_max.map(|bytes| bound("bytes_max", bytes)).transpose()?,
    };
    let intake =
        table.intake.as_ref().map(|table| intake(loader, (index, name), table, direction)).transpose()?;
    let tenant_key = match &table.tenant {
        None => None,
        Some(tenant) => match TenantKey::new(&tenant.key) {
            Some(key) => Some(key),
            None => {
                let message = format!(
                    "channel `{name}`: tenant.key is `{}`, allowed is a pattern with `{{tenant}}` in it once",
                    tenant.key
                );
                return loader.value(at!["channel", index, "tenant", "key"], message);
            }
        },
    };
    let conflict = match (table.conflict, &table.owners_file, tenant_key) {
        (ConflictKey::Newest, None, _) => Conflict::Newest,
        (ConflictKey::Newest, Some(_), _) => {
            let message = "owners_file is for conflict = \"owner\": set that, or leave this out";
            return wrong("owners_file", message.to_owned());
        }
        (ConflictKey::Owner, Some(file), Some(key)) => {
            let path = context.directory.join(file);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) => {
                    let message = format!("owners_file is `{file}`, which cannot be read: {error}");
                    return wrong("owners_file", message);
                }
            };
            let owners = Owners::read(&text, key, sites).map_err(|bad| {
                ConfigError::at(&path, (bad.line, 1), format!("channel `{name}`: {}", bad.message))
            });
            Conflict::Owner(Arc::new(owners?))
        }
        (ConflictKey::Owner, file, key) => {
            let lacks = match (file, key) {
                (None, _) => "owners_file = \"FILE\" with `tenant,site` lines",
                _ => "tenant = { key = \"…{tenant}…\" }, which tells the tenant of a key",
            };
            return wrong("conflict", format!("conflict is `owner`, which needs {lacks}"));
        }
    };
    let mut site_table = |site: &String| match store_keys.remove(site) {
        Some(toml::Value::Table(table)) => Ok(table),
        Some(_) => loader.value(
            at!["channel", index, site],
            format!("channel `{name}`: `{site}` is no table, allowed is {{ url = … }}"),
        ),
        None => loader.key(
            at!["channel", index],
            format!(
                "channel `{name}`: missing field `{site}`: each site of the link needs a table {{ url = … }}"
            ),
        ),
    };
    let site_tables = [site_table(&sites[0])?, site_table(&sites[1])?];
    let spec = ChannelSpec {
        link: context.link.to_owned(),
        channel: name.clone(),
        sites: (*sites).clone(),
        carries: Site::BOTH.map(|site| direction.carries(site)),
        table: store_keys,
        site_tables,
        directory: context.directory.to_owned(),
    };
    let tenant_key = table.tenant.map(|tenant| tenant.key);
    let ChannelTable { name, store, keep_alive, .. } = table;
    Ok(Channel {
        name,
        store,
        direction,
        snapshot,
        existing,
        conflict,
        keep_alive,
        batch,
        intake,
        tenant_key,
        spec,
    })
}

/// What applications hand over on channel `name`, the one at `index`.
fn intake(
    loader: &Loader<'_>,
    (index, name): (usize, &str),
    table: &IntakeTable,
    direction: Direction,
) -> Result<Arc<Intake>, ConfigError> {
    let wrong = |key: &str, message: String| -> Result<(), ConfigError> {
        loader
            .value(at!["channel", index, "intake", key], format!("channel `{name}`: intake.{key} {message}"))
    };
    if direction != Direction::Both && table.deliver == Deliver::Both {
        wrong(
            "deliver",
            "is `both`, which needs direction = \"both\"; one way, allowed is `peer`".to_owned(),
        )?;
    }
    let keys = table.keys.as_deref().unwrap_or_default();
    if table.keys.is_some() && keys.is_empty() || keys.iter().any(String::is_empty) {
        wrong("keys", "names nothing, allowed are patterns; left out, it is all of the channel".to_owned())?;
    }
    let count = |key: &str, value: i64, min: usize| {
        let counted = usize::try_from(value).ok().filter(|value| *value >= min);
        counted.map_or_else(|| wrong(key, format!("is {value}, allowed is {min} or more")).map(|()| min), Ok)
    };
    Ok(Arc::new(Intake {
        deliver: table.deliver,
        keys: keys.iter().map(|glob| Pattern::new(glob)).collect(),
        waiting_max: count("waiting_max", table.waiting_max, 1)?,
        remembered: count("remembered", table.remembered, 0)?,
    }))
}

fn direction(text: &str, sites: &[String; 2]) -> Option<Direction> {
    if text == "both" {
        return Some(Direction::Both);
    }
    let (from, to) = text.split_once("->")?;
    let (from, to) = (Site::named(from.trim(), sites)?, Site::named(to.trim(), sites)?);
    (from != to).then_some(Direction::From(from))
}

fn snapshot(text: &str, sites: &[String; 2]) -> Option<SnapshotOf> {
    match text {
        "both" => Some(SnapshotOf::Both),
        "none" => Some(SnapshotOf::None),
        name => Site::named(name, sites).map(SnapshotOf::One),
    }
}

/// `Some(None)`: nobody's data is copied. `None`: not one that `snapshot` names.
fn existing(text: Option<&str>, snapshot: SnapshotOf, sites: &[String; 2]) -> Option<Option<Site>> {
    match (text, snapshot) {
        (None, SnapshotOf::None) => Some(None),
        (None, SnapshotOf::One(site)) => Some(Some(site)),
        (None, SnapshotOf::Both) => Some(Some(Site::First)),
        (Some(name), _) => Site::named(name, sites).filter(|site| snapshot.names(*site)).map(Some),
    }
}

/// Refuses `channel`, read at `index`, if its name is taken, if both its sites are one server, or if an
/// earlier one keeps the same two servers equal: each would take the other's writes for the application's.
pub(super) fn compare(
    loader: &Loader<'_>,
    earlier: &[Channel],
    index: usize,
    channel: &Channel,
) -> Result<(), ConfigError> {
    let name = &channel.name;
    if earlier.iter().any(|other| other.name == *name) {
        let message = format!("there are two channels `{name}`, allowed are names that differ");
        return loader.value(at!["channel", index, "name"], message);
    }
    let [first, second] = servers(channel);
    if let Some(server) = first.intersection(&second).next() {
        let site = &channel.spec.sites[1];
        let message =
            format!("channel `{name}`: both sites are the server {server}, allowed are two that differ");
        return loader.value(at!["channel", index, site], message);
    }
    let same_pair = |other: &&Channel| {
        let [a, b] = servers(other);
        let meet = |x: &BTreeSet<String>, y: &BTreeSet<String>| !x.is_disjoint(y);
        other.store == channel.store
            && (meet(&a, &first) && meet(&b, &second) || meet(&a, &second) && meet(&b, &first))
    };
    if let Some(other) = earlier.iter().find(same_pair) {
        let message = format!(
            "channel `{name}`: channel `{}` keeps the same two servers equal, allowed is one channel a pair: \
             put both channels' patterns into one",
            other.name
        );
        return loader.key(at!["channel", index], message);
    }
    Ok(())
}

fn servers(channel: &Channel) -> [BTreeSet<String>; 2] {
    [endpoints::of(&channel.spec.site_tables[0]), endpoints::of(&channel.spec.site_tables[1])]
}
