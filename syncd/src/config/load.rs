//! Text to [`Config`]: parse, fill in the environment, set the stores' own keys apart, check.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use causeway_core::Connector;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use super::channel::{self, Context};
use super::file::{ApiTable, CHANNEL_KEYS, ConflictsTable, File, LimitsTable, LinkTable};
use super::places::{Lines, Places};
use super::{ApiConfig, Channel, Config, ConfigError, ConflictsConfig, Limits, env, log};
use crate::registry::Registry;

/// Smaller budgets leave no room for two directions' buffers.
const MEMORY_MIN: u64 = 32 << 20;

/// A smaller conflict log would keep a few hundred entries.
const CONFLICTS_SIZE_MIN: u64 = 1 << 20;

/// And over a shorter time nobody would have looked at them.
const CONFLICTS_AGE_MIN: u64 = 3_600_000;

/// Where in the file an error is: keys from the root on, list indices as numbers.
macro_rules! at {
    ($($part:expr),+) => { &[$($part.to_string()),+] };
}
pub(super) use at;

pub(super) struct Loader<'a> {
    path: &'a Path,
    text: &'a str,
    places: Places,
    filled: env::Filled,
}

impl Loader<'_> {
    /// An error about the value at `place`.
    pub(super) fn value<T>(&self, place: &[String], message: impl AsRef<str>) -> Result<T, ConfigError> {
        let message = self.filled.hide_in(message.as_ref());
        Err(ConfigError::at(self.path, self.places.value_at(place), message))
    }

    /// An error about the key at `place`: it should not be there, or something under it is missing.
    pub(super) fn key<T>(&self, place: &[String], message: impl AsRef<str>) -> Result<T, ConfigError> {
        let message = self.filled.hide_in(message.as_ref());
        Err(ConfigError::at(self.path, self.places.key_at(place), message))
    }

    fn serde(&self, error: &toml::de::Error) -> ConfigError {
        let message = self.filled.hide_in(error.message().trim_end());
        match error.span() {
            Some(span) => ConfigError::at(self.path, Lines::new(self.text).place(span.start), message),
            None => ConfigError::whole_file(self.path, message),
        }
    }
}

pub(super) fn load(
    path: &Path,
    text: &str,
    registry: &Registry,
    lookup: &env::Lookup<'_>,
) -> Result<Config, ConfigError> {
    let bare = |place, message: &str| ConfigError::at(path, place, message);
    let mut root = DeTable::parse(text).map_err(|error| {
        let place = Lines::new(text).place(error.span().map_or(0, |span| span.start));
        bare(place, error.message().trim_end())
    })?;
    let places = Places::new(text, root.get_ref());
    let filled = env::fill(root.get_mut(), lookup)
        .map_err(|unset| bare(Lines::new(text).place(unset.offset), &unset.message))?;
    let loader = Loader { path, text, places, filled };

    let store_keys = take_store_keys(&loader, root.get_mut())?;
    let file = File::deserialize(toml::de::Deserializer::from(root)).map_err(|e| loader.serde(&e))?;
    let sites = link(&loader, &file.link)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let log = log::read(&loader, file.log, &file.link.name, &sites, directory)?;
    let conflicts = conflicts(&loader, &file.conflicts)?;
    let limits = limits(&loader, &file.limits)?;
    let api = api(&loader, file.api, &sites)?;
    if file.channel.is_empty() {
        return loader.key(at!["channel"], "there is no [[channel]], allowed is one or more");
    }

    let context = Context { loader: &loader, registry, link: &file.link.name, sites: &sites, directory };
    let mut channels: Vec<Channel> = Vec::with_capacity(file.channel.len());
    for (index, (table, store_keys)) in file.channel.into_iter().zip(store_keys).enumerate() {
        let channel = channel::read(&context, index, table, store_keys)?;
        channel::compare(&loader, &channels, index, &channel)?;
        channels.push(channel);
    }
    let Loader { places, filled, .. } = loader;
    let config = Config {
        path: path.to_owned(),
        link: file.link.name,
        sites,
        log,
        conflicts,
        limits,
        api,
        channels,
        places,
        filled,
    };
    // What a connector thinks of its keys is a part of the check; opening connects to nothing.
    open(&config, registry)?;
    Ok(config)
}

pub(super) fn open(config: &Config, registry: &Registry) -> Result<Vec<Arc<dyn Connector>>, ConfigError> {
    let open_one = |(index, channel): (usize, &Channel)| {
        let at = |key: bool, path: &[String], message: String| {
            let mut full = at!["channel", index].to_vec();
            full.extend_from_slice(path);
            let place = if key { config.places.key_at(&full) } else { config.places.value_at(&full) };
            let message = config.filled.hide_in(&message);
            ConfigError::at(&config.path, place, format!("channel `{}`: {message}", channel.name))
        };
        let Some(open) = registry.get(&channel.store) else {
            let message = format!("store is `{}`, which was not asked for", channel.store);
            return Err(at(false, &["store".to_owned()], message));
        };
        open(&channel.spec).map_err(|error| {
            let unknown = error.message.starts_with("unknown field");
            let mut message = error.to_string();
            if unknown && error.path.len() == 1 {
                // The connector knows its own keys only.
                message.push_str(&format!("; or the daemon's own: {}", quoted(CHANNEL_KEYS)));
            }
            at(unknown, &error.path, message)
        })
    };
    config.channels.iter().enumerate().map(open_one).collect()
}

/// Takes out of each channel's table what is not the daemon's: those keys are its store's.
fn take_store_keys(loader: &Loader<'_>, root: &mut DeTable<'_>) -> Result<Vec<toml::Table>, ConfigError> {
    let sites: Vec<String> = root
        .get("link")
        .and_then(|link| link.get_ref().get("sites"))
        .and_then(|sites| sites.get_ref().as_array())
        .map(|sites| sites.iter().filter_map(|site| site.get_ref().as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let Some(DeValue::Array(channels)) = root.get_mut("channel").map(|channels| channels.get_mut()) else {
        return Ok(Vec::new());
    };
    let mut taken = Vec::with_capacity(channels.len());
    for (index, channel) in channels.iter_mut().enumerate() {
        let mut store_keys = toml::Table::new();
        if let DeValue::Table(table) = channel.get_mut() {
            let others: Vec<_> =
                table.keys().filter(|key| !CHANNEL_KEYS.contains(&key.get_ref().as_ref())).cloned().collect();
            for key in others {
                let name = key.get_ref().to_string();
                let meant =
                    CHANNEL_KEYS.iter().any(|known| !table.contains_key(*known) && is_typo(&name, known));
                if meant && !sites.contains(&name) {
                    let message = format!("unknown field `{name}`, expected one of {}", quoted(CHANNEL_KEYS));
                    return loader.key(at!["channel", index, name], message);
                }
                if let Some(value) = table.remove(&key) {
                    let place = at!["channel", index, name];
                    store_keys.insert(name, plain(loader, place, value.into_inner())?);
                }
            }
        }
        taken.push(store_keys);
    }
    Ok(taken)
}

/// Whether `word` is probably `known`, written wrong: one letter missing, too many or wrong, or two swapped.
fn is_typo(word: &str, known: &str) -> bool {
    let (word, known) = (word.as_bytes(), known.as_bytes());
    let start = word.iter().zip(known).take_while(|(a, b)| a == b).count();
    let (word, known) = (&word[start..], &known[start..]);
    let end = word.iter().rev().zip(known.iter().rev()).take_while(|(a, b)| a == b).count();
    let (word, known) = (&word[..word.len() - end], &known[..known.len() - end]);
    match (word, known) {
        ([a, b], [c, d]) => a == d && b == c,
        (word, known) => word.len() + known.len() <= 2,
    }
}

/// A value without its places, for the connectors.
fn plain(loader: &Loader<'_>, place: &[String], value: DeValue<'_>) -> Result<toml::Value, ConfigError> {
    let within = |part: &str| [place, &[part.to_owned()]].concat();
    Ok(match value {
        DeValue::String(text) => toml::Value::String(text.into_owned()),
        DeValue::Boolean(value) => toml::Value::Boolean(value),
        DeValue::Datetime(time) => toml::Value::Datetime(time),
        DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(value) => toml::Value::Integer(value),
            Err(_) => return loader.value(place, "the number is too large, allowed are 64 bits"),
        },
        DeValue::Float(digits) => match digits.as_str().parse() {
            Ok(value) => toml::Value::Float(value),
            Err(_) => return loader.value(place, "not a number"),
        },
        DeValue::Array(items) => {
            let items = items.into_iter().enumerate();
            let items = items.map(|(i, item)| plain(loader, &within(&i.to_string()), item.into_inner()));
            toml::Value::Array(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                let key = key.into_inner().into_owned();
                Ok((key.clone(), plain(loader, &within(&key), value.into_inner())?))
            });
            toml::Value::Table(entries.collect::<Result<_, _>>()?)
        }
    })
}

/// Letters, digits, `-` and `_`: what fits a Redis key's hash tag, a Kafka topic and a metric's label.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// `` `dc` or `cloud` ``.
pub(super) fn one_of<T: std::fmt::Display>(allowed: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = allowed.into_iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn quoted(words: impl IntoIterator<Item = &'static str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn link(loader: &Loader<'_>, table: &LinkTable) -> Result<[String; 2], ConfigError> {
    if !is_name(&table.name) {
        let message = format!("link.name is `{}`, allowed is 1 to 64 of A-Z a-z 0-9 - _", table.name);
        return loader.value(at!["link", "name"], message);
    }
    let sites = at!["link", "sites"];
    let Ok(pair) = <[String; 2]>::try_from(table.sites.clone()) else {
        let message =
            format!("link.sites names {}, allowed is exactly two: a link has two ends", table.sites.len());
        return loader.value(sites, message);
    };
    for site in &pair {
        if !is_name(site)
            || ["both", "none"].contains(&site.as_str())
            || CHANNEL_KEYS.contains(&site.as_str())
        {
            let message = format!(
                "link.sites names `{site}`, allowed is 1 to 64 of A-Z a-z 0-9 - _, but not `both`, `none` \
                 or a key of [[channel]]"
            );
            return loader.value(sites, message);
        }
    }
    if pair[0] == pair[1] {
        return loader
            .value(sites, format!("link.sites names `{}` twice, allowed are two that differ", pair[0]));
    }
    Ok(pair)
}

fn conflicts(loader: &Loader<'_>, table: &ConflictsTable) -> Result<ConflictsConfig, ConfigError> {
    if table.size_max.0 < CONFLICTS_SIZE_MIN {
        let message = "conflicts.size_max is too small, allowed is 1MiB or more";
        return loader.value(at!["conflicts", "size_max"], message);
    }
    if table.age_max.0 < CONFLICTS_AGE_MIN {
        let message = "conflicts.age_max is too short, allowed is 1h or more";
        return loader.value(at!["conflicts", "age_max"], message);
    }
    let (size_max, age_max) = (table.size_max.0, table.age_max.duration());
    Ok(ConflictsConfig { size_max, age_max, values: table.values })
}

fn limits(loader: &Loader<'_>, table: &LimitsTable) -> Result<Limits, ConfigError> {
    if table.memory.0 < MEMORY_MIN {
        return loader.value(at!["limits", "memory"], "limits.memory is too small, allowed is 32MiB or more");
    }
    Ok(Limits { memory: table.memory.0 })
}

fn api(loader: &Loader<'_>, table: ApiTable, sites: &[String; 2]) -> Result<ApiConfig, ConfigError> {
    let Ok(listen) = table.listen.parse::<SocketAddr>() else {
        let message =
            format!("api.listen is `{}`, allowed is IP:port, such as `127.0.0.1:7400`", table.listen);
        return loader.value(at!["api", "listen"], message);
    };
    if let Some(unknown) = table.urls.keys().find(|site| !sites.contains(site)) {
        let message = format!("api.urls names `{unknown}`, allowed is {}", one_of(sites));
        return loader.key(at!["api", "urls", unknown], message);
    }
    Ok(ApiConfig { listen, urls: table.urls })
}
