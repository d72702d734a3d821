//! What is wrong with a file is answered with place, key and what is allowed, before anything connects.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use syncd::config::{Config, Direction, LogStore, SnapshotOf};
use syncd::registry::Registry;

use causeway_core::Site;

const LINK: &str = "[link]\nname = \"l\"\nsites = [\"dc\", \"cloud\"]\n";
const CHANNEL: &str = "[[channel]]\nname = \"tags\"\nstore = \"redis\"\ndirection = \"both\"\nsnapshot = \"dc\"\n\
                       dc = { url = \"redis://127.0.0.1:6401\" }\ncloud = { url = \"redis://127.0.0.1:6402\" }\n";

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path)
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    match load(text) {
        Ok(_) => panic!("taken:\n{text}\nbut expected: {expected}"),
        Err(error) => assert_eq!(error, expected, "of\n{text}"),
    }
}

/// The good file with one line of it replaced.
#[track_caller]
fn with(from: &str, to: &str, expected: &str) {
    let good = format!("{LINK}{CHANNEL}");
    assert!(good.contains(from), "{from}");
    refused(&good.replace(from, to), expected);
}

#[test]
fn defaults_are_filled_in() {
    let config = load(&format!("{LINK}{CHANNEL}")).unwrap();
    assert_eq!(config.link, "l");
    assert_eq!(config.sites, ["dc", "cloud"]);
    assert!(config.log.dir.ends_with("data/log") && config.log.dir.is_absolute());
    assert_eq!(config.log.store, LogStore::Embedded { size_max: 10 << 30 });
    assert_eq!((config.conflicts.size_max, config.conflicts.age_max.as_secs()), (64 << 20, 30 * 86_400));
    assert!(!config.conflicts.values);
    assert_eq!(config.limits.memory, 512 << 20);
    assert_eq!(config.api.listen.to_string(), "127.0.0.1:7400");
    let channel = &config.channels[0];
    assert_eq!(channel.direction, Direction::Both);
    assert_eq!(channel.snapshot, SnapshotOf::One(Site::First));
    assert_eq!(channel.existing, Some(Site::First));
    assert_eq!((channel.batch.items_max, channel.batch.bytes_max), (None, None));
    assert!(channel.keep_alive);
}

#[test]
fn an_unknown_key_is_named_where_it_stands() {
    with(
        "[link]\n",
        "[link]\nsides = 2\n",
        "syncd.toml:2:1: unknown field `sides`, expected `name` or `sites`",
    );
    with(
        "[[channel]]",
        "[logs]\nkind = \"embedded\"\n[[channel]]",
        "syncd.toml:4:2: unknown field `logs`, expected one of `link`, `log`, `conflicts`, `limits`, `api`, `channel`",
    );
    with(
        "direction = \"both\"",
        "directon = \"both\"",
        "syncd.toml:7:1: unknown field `directon`, expected one of `name`, `store`, `direction`, `snapshot`, \
         `existing`, `conflict`, `keep_alive`, `batch`, `intake`, `tenant`, `owners_file`",
    );
    with(
        "snapshot = \"dc\"",
        "snapshot = \"dc\"\nbatch = { items = 1 }",
        "syncd.toml:9:11: unknown field `items`, expected `items_max` or `bytes_max`",
    );
}

#[test]
fn a_stores_own_keys_are_checked_at_their_places() {
    with(
        "snapshot = \"dc\"",
        "snapshot = \"dc\"\npatterns = [\"a\"]",
        "syncd.toml:9:1: channel `tags`: patterns: unknown field, expected one of `keys`, `except`, `dbs`, \
         `evictions`, `batch`, `limits`; or the daemon's own: `name`, `store`, `direction`, `snapshot`, \
         `existing`, `conflict`, `keep_alive`, `batch`, `intake`, `tenant`, `owners_file`",
    );
    with(
        "snapshot = \"dc\"",
        "snapshot = \"dc\"\nlimits = { apply_ops_per_second = 0 }",
        "syncd.toml:9:35: channel `tags`: limits.apply_ops_per_second: allowed is a number from 1 to \
         9223372036854775807",
    );
}

#[test]
fn a_missing_key_is_named() {
    with("store = \"redis\"\n", "", "syncd.toml:4:1: missing field `store`");
    with(
        "cloud = { url",
        "clout = { url",
        "syncd.toml:4:1: channel `tags`: missing field `cloud`: each site of the link needs a table { url = … }",
    );
    refused(LINK, "syncd.toml:1:1: missing field `channel`");
    refused(
        &format!("channel = []\n{LINK}"),
        "syncd.toml:1:1: there is no [[channel]], allowed is one or more",
    );
}

#[test]
fn what_is_no_toml_is_named_where_it_breaks() {
    with("name = \"l\"", "name = l", "syncd.toml:2:8: string values must be quoted, expected literal string");
}

#[test]
fn values_outside_their_bounds_say_what_is_allowed() {
    for (line, expected) in [
        (
            "batch = { bytes_max = 0 }",
            "9:23: channel `tags`: batch.bytes_max is 0, allowed is 1 or more: an empty batch never leaves",
        ),
        ("intake = { deliver = \"here\" }", "9:22: unknown variant `here`, expected `peer` or `both`"),
        (
            "intake = { deliver = \"both\", keys = [] }",
            "9:37: channel `tags`: intake.keys names nothing, allowed are patterns; left out, it is all of the channel",
        ),
        (
            "intake = { deliver = \"both\", waiting_max = 0 }",
            "9:44: channel `tags`: intake.waiting_max is 0, allowed is 1 or more",
        ),
        (
            "existing = \"cloud\"",
            "9:12: channel `tags`: existing is `cloud`, allowed is what snapshot names: `dc`",
        ),
        (
            "conflict = \"owner\"",
            "9:12: channel `tags`: conflict is `owner`, which needs owners_file = \"FILE\" with `tenant,site` lines",
        ),
        (
            "conflict = \"owner\"\nowners_file = \"owners.csv\"",
            "9:12: channel `tags`: conflict is `owner`, which needs tenant = { key = \"…{tenant}…\" }, which tells \
             the tenant of a key",
        ),
        (
            "owners_file = \"owners.csv\"",
            "9:15: channel `tags`: owners_file is for conflict = \"owner\": set that, or leave this out",
        ),
        (
            "owners_file = \"no/owners.csv\"\nconflict = \"owner\"\ntenant = { key = \"push:{tenant}:*\" }",
            "9:15: channel `tags`: owners_file is `no/owners.csv`, which cannot be read: No such file or directory \
             (os error 2)",
        ),
        (
            "tenant = { key = \"push:*\" }",
            "9:18: channel `tags`: tenant.key is `push:*`, allowed is a pattern with `{tenant}` in it once",
        ),
    ] {
        with("snapshot = \"dc\"", &format!("snapshot = \"dc\"\n{line}"), &format!("syncd.toml:{expected}"));
    }
    for (from, to, expected) in [
        (
            "\"redis\"",
            "\"pika\"",
            "6:9: channel `tags`: store is `pika`, allowed in this release is `redis`, `mysql` or \
             `elasticsearch`",
        ),
        (
            "\"both\"",
            "\"dc->dc\"",
            "7:13: channel `tags`: direction is `dc->dc`, allowed is `both`, `dc->cloud` or `cloud->dc`",
        ),
        (
            "\"both\"",
            "\"dc->aws\"",
            "7:13: channel `tags`: direction is `dc->aws`, allowed is `both`, `dc->cloud` or `cloud->dc`",
        ),
        (
            "\"both\"",
            "\"cloud->dc\"",
            "8:12: channel `tags`: snapshot is `dc`, but direction `cloud->dc` carries nothing from `dc`",
        ),
        (
            "snapshot = \"dc\"",
            "snapshot = \"x\"",
            "8:12: channel `tags`: snapshot is `x`, allowed is `dc`, `cloud`, `both` or `none`",
        ),
        ("\"tags\"", "\"tags.v2\"", "5:8: channel.name is `tags.v2`, allowed is 1 to 64 of A-Z a-z 0-9 - _"),
        (
            "\"dc\", \"cloud\"",
            "\"dc\"",
            "3:9: link.sites names 1, allowed is exactly two: a link has two ends",
        ),
        (
            "\"dc\", \"cloud\"",
            "\"dc\", \"dc\"",
            "3:9: link.sites names `dc` twice, allowed are two that differ",
        ),
    ] {
        with(from, to, &format!("syncd.toml:{expected}"));
    }
    for (table, expected) in [
        ("[limits]\nmemory = \"1MiB\"\n", "5:10: limits.memory is too small, allowed is 32MiB or more"),
        (
            "[conflicts]\nsize_max = \"64KiB\"\n",
            "5:12: conflicts.size_max is too small, allowed is 1MiB or more",
        ),
        ("[conflicts]\nage_max = \"30s\"\n", "5:11: conflicts.age_max is too short, allowed is 1h or more"),
        ("[conflicts]\nvalues = \"yes\"\n", "5:10: invalid type: string \"yes\", expected a boolean"),
        (
            "[conflicts]\nvalue = true\n",
            "5:1: unknown field `value`, expected one of `size_max`, `age_max`, `values`",
        ),
        (
            "[limits]\nmemory = \"512\"\n",
            "5:10: invalid value: string \"512\", expected a whole number with its unit, one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB: \"512MiB\"",
        ),
        (
            "[log]\nage_min = 10\n",
            "5:11: invalid type: integer `10`, expected a whole number with its unit, one of ms, s, m, h, d: \"10s\"",
        ),
        (
            "[log]\nkind = \"kafka\"\n",
            "4:2: log.brokers has no brokers of `dc`, allowed is host:port, by site",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \" \" }\n",
            "6:1: log.brokers has no brokers of `cloud`, allowed is host:port, by site",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { aws = \"a:1\" }\n",
            "6:13: log.brokers names `aws`, allowed is `dc` or `cloud`",
        ),
        (
            "[log]\nbrokers = { dc = \"a:1\" }\n",
            "5:1: log.brokers is for log.kind = \"kafka\", this one is \"embedded\"",
        ),
        (
            "[log]\nreplication = 3\n",
            "5:1: log.replication is for log.kind = \"kafka\", this one is \"embedded\"",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nsize_max = \"1GiB\"\n",
            "7:1: log.size_max is for log.kind = \"embedded\": Kafka's own disks decide how much it holds",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nreplication = 0\n",
            "7:15: log.replication is 0, allowed is 1 to 32767",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nmin_insync = 4\n",
            "7:14: log.min_insync is 4, allowed is at most log.replication (3)",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nrecord_bytes_max = \"1KB\"\n",
            "7:20: log.record_bytes_max: allowed is 64KB to 100MB",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\ncompression = \"lzma\"\n",
            "7:15: unknown variant `lzma`, expected one of `none`, `gzip`, `snappy`, `lz4`, `zstd`",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nclient = { acks = \"1\" }\n",
            "7:19: log.client.acks: it is the log's own and cannot be set",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nclient = { \"ssl.key\" = 1 }\n",
            "7:24: log.client.ssl.key: no setting of librdkafka's, see its CONFIGURATION.md",
        ),
        (
            "[log]\nkind = \"kafka\"\nbrokers = { dc = \"a:1\", cloud = \"b:1\" }\nclients = { dc = { \"security.protocol\" = \"hunter2\" } }\n",
            "7:42: log.clients.dc.security.protocol: not a value that this setting takes, see librdkafka's CONFIGURATION.md",
        ),
        ("[log]\nkind = \"files\"\n", "5:8: unknown variant `files`, expected `embedded` or `kafka`"),
        (
            "[api]\nlisten = \"7400\"\n",
            "5:10: api.listen is `7400`, allowed is IP:port, such as `127.0.0.1:7400`",
        ),
        ("[api]\nurls = { aws = \"http://x\" }\n", "5:10: api.urls names `aws`, allowed is `dc` or `cloud`"),
    ] {
        with("[[channel]]", &format!("{table}[[channel]]"), &format!("syncd.toml:{expected}"));
    }
}

#[test]
fn the_same_server_at_both_sites_is_refused() {
    with(
        "redis://127.0.0.1:6402",
        "redis://:secret@localhost:6401/",
        "syncd.toml:10:9: channel `tags`: both sites are the server 127.0.0.1:6401, allowed are two that differ",
    );
}

#[test]
fn two_channels_onto_the_same_pair_are_refused() {
    let second = CHANNEL.replace("\"tags\"", "\"aliases\"");
    let message = "channel `aliases`: channel `tags` keeps the same two servers equal, allowed is one channel a \
                   pair: put both channels' patterns into one";
    refused(&format!("{LINK}{CHANNEL}{second}"), &format!("syncd.toml:11:1: {message}"));
    let swapped = second.replace("6401", "x").replace("6402", "6401").replace('x', "6402");
    refused(&format!("{LINK}{CHANNEL}{swapped}"), &format!("syncd.toml:11:1: {message}"));
    let twice = CHANNEL.replace("640", "650");
    let message = "there are two channels `tags`, allowed are names that differ";
    refused(&format!("{LINK}{CHANNEL}{twice}"), &format!("syncd.toml:12:8: {message}"));
}

/// Promise 9.
#[test]
fn what_came_from_the_environment_is_in_no_message_and_no_debug() {
    // PATH is set wherever a test runs.
    let value = std::env::var("PATH").unwrap();
    let secret = CHANNEL.replace("redis://127.0.0.1:6401", "redis://:${PATH}@127.0.0.1:6401");
    for text in [
        secret.replace("\"both\"", "\"${PATH}\""),
        secret.replace("\"tags\"", "\"${PATH}\""),
        secret.replace("\"redis\"", "\"${PATH}\""),
        secret.replace("snapshot", "conflict = \"${PATH}\"\nsnapshot"),
        secret.replace("snapshot", "evictions = \"${PATH}\"\nsnapshot"),
    ] {
        let error = load(&format!("{LINK}{text}")).unwrap_err();
        assert!(!error.contains(&value), "{error}");
    }
    let text = CHANNEL.replace("redis://127.0.0.1:6401", "redis://:hunter2@127.0.0.1:6401");
    let config = load(&format!("{LINK}{text}")).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn an_unset_variable_is_named() {
    let unset = "environment variable `CAUSEWAY_NO_SUCH_VARIABLE` is not set, nothing to put for \
                 `${CAUSEWAY_NO_SUCH_VARIABLE}`";
    with(
        "redis://127.0.0.1:6401",
        "redis://:${CAUSEWAY_NO_SUCH_VARIABLE}@h",
        &format!("syncd.toml:9:14: {unset}"),
    );
    with("\"l\"", "\"${l\"", "syncd.toml:2:8: `${` without its `}`");
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let error = Config::load("no/such/file.toml").unwrap_err().to_string();
    assert!(error.starts_with("no/such/file.toml: cannot be read: "), "{error}");
}

#[test]
fn every_store_of_the_registry_is_named_once() {
    let names: Vec<_> = Registry::built_in().names().collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names.len(), sorted.len());
}
