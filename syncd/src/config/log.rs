//! `[log]`: which log, and its settings.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{LogKind, LogTable, Setting};
use super::load::{Loader, at, one_of};
use super::{ConfigError, LogConfig, LogStore};
use crate::log::{KafkaCluster, KafkaOptions};

/// Smaller logs are full before the first applied change can be deleted.
const SIZE_MIN: u64 = 64 << 20;
const SIZE_MAX_DEFAULT: u64 = 10 << 30;
/// Smaller records leave no room for headers, and larger ones none for a broker.
const RECORD_BYTES: std::ops::RangeInclusive<u64> = 64_000..=100_000_000;

pub(super) fn read(
    loader: &Loader<'_>,
    table: LogTable,
    link: &str,
    sites: &[String; 2],
    directory: &Path,
) -> Result<LogConfig, ConfigError> {
    for (key, named) in
        [("brokers", table.brokers.keys().collect::<Vec<_>>()), ("clients", table.clients.keys().collect())]
    {
        if let Some(unknown) = named.into_iter().find(|site| !sites.contains(site)) {
            let message = format!("log.{key} names `{unknown}`, allowed is {}", one_of(sites));
            return loader.key(at!["log", key, unknown], message);
        }
    }
    if table.dir.is_empty() {
        return loader.value(at!["log", "dir"], "log.dir is empty, allowed is a folder");
    }
    let (dir, age_min) = (directory.join(&table.dir), table.age_min.duration());
    let store = match table.kind {
        LogKind::Embedded => embedded(loader, &table)?,
        LogKind::Kafka => kafka(loader, &table, link, sites)?,
    };
    Ok(LogConfig { dir, age_min, store })
}

fn embedded(loader: &Loader<'_>, table: &LogTable) -> Result<LogStore, ConfigError> {
    let kafkas = [
        ("brokers", !table.brokers.is_empty()),
        ("replication", table.replication.is_some()),
        ("min_insync", table.min_insync.is_some()),
        ("compression", table.compression.is_some()),
        ("linger", table.linger.is_some()),
        ("batch_bytes", table.batch_bytes.is_some()),
        ("record_bytes_max", table.record_bytes_max.is_some()),
        ("client", !table.client.is_empty()),
        ("clients", !table.clients.is_empty()),
    ];
    if let Some((key, _)) = kafkas.iter().find(|(_, given)| *given) {
        let message = format!("log.{key} is for log.kind = \"kafka\", this one is \"embedded\"");
        return loader.key(at!["log", key], message);
    }
    let size_max = table.size_max.map_or(SIZE_MAX_DEFAULT, |size| size.0);
    if size_max < SIZE_MIN {
        return loader.value(at!["log", "size_max"], "log.size_max is too small, allowed is 64MiB or more");
    }
    Ok(LogStore::Embedded { size_max })
}

fn kafka(
    loader: &Loader<'_>,
    table: &LogTable,
    link: &str,
    sites: &[String; 2],
) -> Result<LogStore, ConfigError> {
    if table.size_max.is_some() {
        let message =
            "log.size_max is for log.kind = \"embedded\": Kafka's own disks decide how much it holds";
        return loader.key(at!["log", "size_max"], message);
    }
    let defaults = KafkaOptions::default();
    let count = |key: &str, value: Option<i64>, default: usize| match value {
        None => Ok(default),
        Some(value) => match usize::try_from(value) {
            Ok(value) if (1..=32_767).contains(&value) => Ok(value),
            _ => loader.value(at!["log", key], format!("log.{key} is {value}, allowed is 1 to 32767")),
        },
    };
    let replication = count("replication", table.replication, defaults.replication)?;
    let min_insync = count("min_insync", table.min_insync, defaults.min_insync.min(replication))?;
    if min_insync > replication {
        let message =
            format!("log.min_insync is {min_insync}, allowed is at most log.replication ({replication})");
        return loader.value(at!["log", "min_insync"], message);
    }
    let bytes = |key: &str, value: Option<super::units::Size>, default: usize| match value {
        None => Ok(default),
        Some(size) if RECORD_BYTES.contains(&size.0) => Ok(size.0 as usize),
        Some(_) => loader.value(at!["log", key], format!("log.{key}: allowed is 64KB to 100MB")),
    };
    let batch_bytes = bytes("batch_bytes", table.batch_bytes, defaults.batch_bytes)?;
    let record_bytes_max = bytes("record_bytes_max", table.record_bytes_max, defaults.record_bytes_max)?;
    let options = KafkaOptions {
        link: link.to_owned(),
        replication,
        min_insync,
        age_min: table.age_min.duration(),
        compression: table.compression.map_or(defaults.compression.clone(), |c| c.as_str().to_owned()),
        linger: table.linger.map_or(defaults.linger, |linger| linger.duration()),
        batch_bytes,
        record_bytes_max,
        ..defaults
    };
    let mut clusters = BTreeMap::new();
    for site in sites {
        let Some(brokers) = table.brokers.get(site).filter(|brokers| !brokers.trim().is_empty()) else {
            let message = format!("log.brokers has no brokers of `{site}`, allowed is host:port, by site");
            return loader.key(at!["log", "brokers"], message);
        };
        let cluster = KafkaCluster { brokers: brokers.clone(), client: BTreeMap::new() };
        let cluster = add(loader, cluster, at!["log", "client"], &table.client)?;
        let own = table.clients.get(site);
        let cluster = match own {
            Some(own) => add(loader, cluster, at!["log", "clients", site], own)?,
            None => cluster,
        };
        clusters.insert(site.clone(), cluster);
    }
    Ok(LogStore::Kafka { clusters, options })
}

/// Adds settings of a client, seeing to each that it can be one.
fn add(
    loader: &Loader<'_>,
    mut cluster: KafkaCluster,
    place: &[String],
    settings: &BTreeMap<String, Setting>,
) -> Result<KafkaCluster, ConfigError> {
    for (name, value) in settings {
        let one = KafkaCluster {
            brokers: cluster.brokers.clone(),
            client: BTreeMap::from([(name.clone(), value.text())]),
        };
        if let Err((name, reason)) = one.check() {
            let place = [place, std::slice::from_ref(&name)].concat();
            return loader.value(&place, format!("{}: {reason}", place.join(".")));
        }
        cluster.client.extend(one.client);
    }
    Ok(cluster)
}
