//! Every file in `configs/` is what this build takes.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::{Path, PathBuf};

use causeway_core::Site;
use syncd::config::{self, Config, LogStore};
use syncd::log::KafkaOptions;
use syncd::registry::Registry;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

#[test]
fn every_example_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
            loaded += 1;
        }
    }
    assert!(loaded >= 3, "the examples are gone");
}

/// The full example shows the defaults, so it and the least one differ only in what is said to be extra.
#[test]
fn the_annotated_example_shows_the_defaults() {
    let full = Config::load(configs().join("redis.toml")).unwrap();
    let least = Config::load(configs().join("minimal.toml")).unwrap();
    assert_eq!(full.log, least.log);
    assert_eq!(full.conflicts, least.conflicts);
    assert_eq!(full.limits, least.limits);
    assert_eq!(full.api, least.api);
    let (full, least) = (&full.channels[0], &least.channels[0]);
    // As `Connector::batch_max` of Redis.
    assert_eq!((full.batch.items_max, full.batch.bytes_max), (Some(512), Some(524_288)));
    assert_eq!((least.batch.items_max, least.batch.bytes_max), (None, None));
    assert_eq!(full.existing, least.existing);
    assert_eq!(full.keep_alive, least.keep_alive);
}

/// The example of Kafka shows the defaults, too, and secrets stay out of what is printed.
#[test]
fn the_example_of_kafka_shows_the_defaults_and_keeps_its_secrets() {
    let path = configs().join("kafka.toml");
    let config = Config::load(&path).unwrap();
    let LogStore::Kafka { clusters, options } = &config.log.store else { panic!("another log") };
    let link = "dc-cloud".to_owned();
    assert_eq!(*options, KafkaOptions { link, ..KafkaOptions::default() });
    assert_eq!(clusters["dc"].brokers, "10.0.0.1:9092,10.0.0.2:9092");
    assert_eq!(clusters["dc"].client["sasl.mechanism"], "SCRAM-SHA-512");
    assert_eq!(clusters["cloud"].client["sasl.username"], "causeway");
    let least = Config::load(configs().join("minimal.toml")).unwrap();
    assert_eq!((&config.log.dir, config.log.age_min), (&least.log.dir, least.log.age_min));
    let printed = format!("{config:?}");
    assert!(printed.contains("sasl.mechanism") && !printed.contains("SCRAM"), "{printed}");
}

/// The table stands beside the file that names it, and an error in it names its own line.
#[test]
fn an_owner_table_is_read_and_its_errors_name_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let least = std::fs::read_to_string(configs().join("minimal.toml")).unwrap();
    let owner = "conflict = \"owner\"\nowners_file = \"owners.csv\"\ntenant = { key = \"push:{tenant}:*\" }";
    let path = dir.path().join("syncd.toml");
    std::fs::write(&path, format!("{least}\n{owner}\n")).unwrap();
    let load = |table: &str| {
        std::fs::write(dir.path().join("owners.csv"), table).unwrap();
        Config::load(&path)
    };
    let config = load("# tenant, site\napp-1, cloud\n").unwrap();
    let owners = config.channels[0].conflict.owners().unwrap();
    assert_eq!(owners.of(b"push:app-1:device:7"), Some(Site::Second));
    assert_eq!((owners.len(), owners.of(b"push:app-2:device:7")), (1, None));
    let error = load("app-1,cloud\napp-2,moon\n").unwrap_err().to_string();
    assert!(error.contains("owners.csv:2:1: channel `"), "{error}");
    assert!(error.contains("the site is `moon`, allowed is `dc` or `cloud`"), "{error}");
}

/// Write it anew with `UPDATE_SCHEMA=1 cargo test -p syncd --test config_files`.
#[test]
fn the_schema_file_is_the_one_of_this_build() {
    let path = configs().join("syncd.schema.json");
    let schema = config::json_schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == schema, "{} is old: UPDATE_SCHEMA=1 writes it anew", path.display());
}

/// The connectors check their keys, the schema only describes them: here they meet.
#[test]
fn the_schema_knows_every_key_of_every_store() {
    let schema: serde_json::Value = serde_json::from_str(&config::json_schema()).unwrap();
    let channel = &schema["$defs"]["ChannelTable"];
    for store in Registry::built_in().names() {
        for (place, known) in [
            ("no_such_key = 1\nAT = { url = 'redis://127.0.0.1:1' }", &channel["properties"]),
            ("AT = { no_such_key = 1 }", &channel["additionalProperties"]["properties"]),
            ("limits = { no_such_key = 1 }", &channel["properties"]["limits"]["properties"]),
        ] {
            let place = place.replace("AT", "dc");
            let other = if place.contains("dc =") { "" } else { "dc = { url = 'redis://127.0.0.1:1' }\n" };
            let text = format!(
                "[link]\nname = 'l'\nsites = ['dc', 'cloud']\n[[channel]]\nname = 'c'\nstore = '{store}'\n\
                 direction = 'both'\nsnapshot = 'dc'\ncloud = {{ url = 'redis://127.0.0.1:2' }}\n{other}{place}\n"
            );
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("c.toml");
            std::fs::write(&path, text).unwrap();
            let error = Config::load(&path).unwrap_err().to_string();
            let (_, listed) = error.split_once("expected one of ").unwrap_or_else(|| panic!("{error}"));
            for key in listed.split('`').skip(1).step_by(2) {
                assert!(known.get(key).is_some(), "{store}: the schema lacks `{key}`: {error}");
            }
        }
    }
}
