use std::path::PathBuf;

use bytes::Bytes;
use causeway_core::{ChannelSpec, Key, Space};
use causeway_testkit::resp::Connection;
use causeway_testkit::servers::{Options, RedisServer, redis_server};

use super::*;

fn start(args: &[&str]) -> Option<(RedisServer, Connection)> {
    redis_server()?;
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let server = RedisServer::start(Options { args, ..Options::default() }).unwrap();
    let connection = server.connect().unwrap();
    Some((server, connection))
}

fn config(first: &str, second: &str, table: &str) -> RedisConfig {
    let one_way = directed(first, second, table, [true, false]);
    RedisConfig { carries: [true; 2], ..one_way }
}

fn directed(first: &str, second: &str, table: &str, carries: [bool; 2]) -> RedisConfig {
    let site = |url: &str| toml::from_str(&format!("url = \"{url}\"")).unwrap();
    let spec = ChannelSpec {
        link: "link".into(),
        channel: "tags*".into(),
        sites: ["dc".into(), "cloud".into()],
        carries,
        table: toml::from_str(table).unwrap(),
        site_tables: [site(first), site(second)],
        directory: PathBuf::from("."),
    };
    RedisConfig::parse(&spec).unwrap()
}

async fn check(config: &RedisConfig) -> Result<Vec<Finding>> {
    super::check(config, &Site::BOTH).await
}

fn fatal(findings: &[Finding]) -> Vec<&str> {
    findings.iter().filter(|f| f.fatal).map(|f| f.what.as_str()).collect()
}

#[tokio::test]
async fn two_sound_servers_have_nothing_in_their_way() {
    let args = ["--appendonly", "yes"];
    let (Some((first, _)), Some((second, _))) = (start(&args), start(&args)) else { return };
    let findings = check(&config(&first.url(), &second.url(), "")).await.unwrap();
    assert_eq!(findings, []);
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_with_what_to_do() {
    let Some((first, mut redis)) = start(&[]) else { return };
    let Some((second, _)) = start(&["--databases", "4"]) else { return };
    for (setting, value) in [
        ("maxmemory-policy", "allkeys-lru"),
        ("repl-backlog-size", "1mb"),
        ("client-output-buffer-limit", "replica 1mb 1mb 60"),
        ("min-replicas-to-write", "1"),
    ] {
        redis.must(&["CONFIG", "SET", setting, value]).unwrap();
    }
    let findings = check(&config(&first.url(), &second.url(), "")).await.unwrap();
    let found = |text: &str| findings.iter().any(|f| f.what.contains(text) && !f.advice.is_empty());
    assert!(matches!(fatal(&findings).as_slice(), [one] if one.contains("maxmemory-policy is allkeys-lru")));
    for text in
        ["repl-backlog-size", "output-buffer-limit", "min-replicas-to-write", "appendonly", "databases"]
    {
        assert!(found(text), "{text} in {findings:?}");
    }
    let carried = check(&config(&first.url(), &second.url(), "evictions = \"carry\"")).await.unwrap();
    assert_eq!(fatal(&carried), [""; 0]);
}

#[tokio::test]
async fn one_server_for_both_sites_is_refused() {
    let Some((server, _)) = start(&[]) else { return };
    let same = format!("redis://localhost:{}", server.port());
    let findings = check(&config(&server.url(), &same, "")).await.unwrap();
    assert!(matches!(fatal(&findings).as_slice(), [one] if one.contains("the same server")), "{findings:?}");
}

#[tokio::test]
async fn a_cluster_and_a_replica_are_refused() {
    let (Some((first, _)), Some((second, mut redis))) = (start(&["--cluster-enabled", "yes"]), start(&[]))
    else {
        return;
    };
    redis.must(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let findings = check(&config(&first.url(), &second.url(), "")).await.unwrap();
    assert_eq!(fatal(&findings), ["Redis Cluster isn't supported yet", "this server is a replica"]);
}

#[tokio::test]
async fn rights_that_a_user_lacks_are_named() {
    let (Some((first, mut redis)), Some((second, _))) = (start(&[]), start(&[])) else { return };
    redis.must(&["ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-client|kill", "-dump"]).unwrap();
    let url = format!("redis://u:p@127.0.0.1:{}", first.port());
    let findings = check(&config(&url, &second.url(), "")).await.unwrap();
    assert!(matches!(fatal(&findings).as_slice(), [one] if one.contains("no right to DUMP")), "{findings:?}");
    assert!(findings.iter().any(|f| !f.fatal && f.what.contains("no right to CLIENT")), "{findings:?}");
    // One that may not ask is told nothing, and isn't refused for it.
    redis.must(&["ACL", "SETUSER", "u", "-acl", "+acl|whoami", "-info"]).unwrap();
    assert_eq!(fatal(&check(&config(&url, &second.url(), "")).await.unwrap()), [""; 0]);
}

/// The stream tells our own changes from others': what goes both ways needs it at both sites.
#[tokio::test]
async fn without_the_right_to_replicate_only_one_way_is_possible() {
    let (Some((first, mut redis)), Some((second, _))) = (start(&[]), start(&[])) else { return };
    let url = format!("redis://u:p@127.0.0.1:{}", first.port());
    let rules: [(&[&str], &str); 4] = [
        (&["-psync"], "no right to PSYNC"),
        (&["-psync", "-replconf"], "no right to PSYNC and REPLCONF"),
        // Those who may not ask, either.
        (&["-@admin", "-@dangerous", "+info"], "no right to REPLCONF"),
        (&["-replconf", "-acl"], "no right to REPLCONF"),
    ];
    for (rules, what) in rules {
        let user = ["ACL", "SETUSER", "u", "reset", "on", ">p", "~*", "&*", "+@all"];
        redis.must(&[&user, rules].concat()).unwrap();
        let about = |findings: &[Finding]| -> Vec<Finding> {
            findings.iter().filter(|f| f.what.contains("no right to")).cloned().collect()
        };
        let both = about(&check(&config(&url, &second.url(), "")).await.unwrap());
        let [one] = both.as_slice() else { panic!("{rules:?}: {both:?}") };
        assert!(one.fatal && one.what.contains(what) && one.site.as_deref() == Some("dc"), "{one:?}");
        let port = format!(":{}", first.port());
        assert!(one.advice.contains("+psync +replconf") && one.advice.contains(&port), "{one:?}");
        let from = about(&check(&directed(&url, &second.url(), "", [true, false])).await.unwrap());
        let [one] = from.as_slice() else { panic!("{rules:?}: {from:?}") };
        assert!(!one.fatal && one.what.contains("keys are scanned"), "{one:?}");
        // What is only applied into need not stream.
        let into = about(&check(&directed(&url, &second.url(), "", [false, true])).await.unwrap());
        assert_eq!(into, [], "{rules:?}");
    }
    // A server without the command at all.
    let Some((bare, _)) = start(&["--rename-command", "REPLCONF", ""]) else { return };
    let findings = check(&config(&bare.url(), &second.url(), "")).await.unwrap();
    assert!(matches!(fatal(&findings).as_slice(), [one] if one.contains("no right to REPLCONF")));
}

#[tokio::test]
async fn keys_that_only_one_site_has_are_counted_and_listed() {
    let (Some((first, mut dc)), Some((second, mut cloud))) = (start(&["--databases", "4"]), start(&[]))
    else {
        return;
    };
    let table = "keys = [\"push:*\"]\nexcept = [\"push:tmp:*\"]\ndbs = [0, 3, 5]";
    let config = config(&first.url(), &second.url(), table);
    let none = only_at(&config, Site::Second, 10).await.unwrap();
    assert_eq!((none.count, none.exact, none.keys.len()), (0, true, 0));
    for (db, keys) in [
        ("0", &["push:both", "push:cloud", "push:\u{1}", "push:tmp:1", "other", "causeway:{x.y}:marker"][..]),
        ("3", &["push:both", "push:dc's in 0"]),
        ("4", &["push:not carried"]),
        // dc lacks the database itself.
        ("5", &["push:far"]),
    ] {
        cloud.must(&["SELECT", db]).unwrap();
        keys.iter().for_each(|key| drop(cloud.must(&["SET", key, "x"]).unwrap()));
    }
    for (db, key) in [("0", "push:both"), ("3", "push:both"), ("0", "push:dc's in 0"), ("0", "push:dc")] {
        dc.must(&["SELECT", db]).unwrap();
        dc.must(&["SET", key, "y"]).unwrap();
    }
    let mut found = only_at(&config, Site::Second, 10).await.unwrap();
    found.keys.sort();
    let key =
        |db, name: &'static str| Key { space: Space::Db(db), name: Bytes::from_static(name.as_bytes()) };
    assert_eq!((found.count, found.exact), (4, true));
    let mut expected =
        [key(0, "push:cloud"), key(0, "push:\u{1}"), key(3, "push:dc's in 0"), key(5, "push:far")];
    expected.sort();
    assert_eq!(found.keys, expected);
    let few = only_at(&config, Site::Second, 2).await.unwrap();
    assert_eq!((few.count, few.keys.len()), (4, 2));
    let other_way = only_at(&config, Site::First, 10).await.unwrap();
    assert_eq!((other_way.count, other_way.keys.len()), (2, 2));
}

/// A store of some size, of which a table that shrinks meanwhile names some keys twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_counted_once_each() {
    let (Some((first, mut dc)), Some((second, mut cloud))) = (start(&[]), start(&[])) else { return };
    cloud.must(&["DEBUG", "POPULATE", "200000", "key", "8"]).unwrap();
    dc.must(&["DEBUG", "POPULATE", "150000", "key", "8"]).unwrap();
    let gone: Vec<String> = (0..1_000_000).map(|n| format!("gone:{n}")).collect();
    for part in gone.chunks(10_000) {
        let words: Vec<&str> = ["MSET"].into_iter().chain(part.iter().flat_map(|key| [key, "x"])).collect();
        cloud.must(&words).unwrap();
    }
    let config = config(&first.url(), &second.url(), "except = [\"gone:*\"]");
    let looking = tokio::spawn(async move { only_at(&config, Site::Second, 1000).await });
    tokio::task::spawn_blocking(move || {
        for part in gone.chunks(50_000) {
            let words: Vec<&str> = ["UNLINK"].into_iter().chain(part.iter().map(String::as_str)).collect();
            cloud.must(&words).unwrap();
        }
    })
    .await
    .unwrap();
    let found = looking.await.unwrap().unwrap();
    assert_eq!((found.count, found.exact, found.keys.len()), (50_000, true, 1000));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error() {
    let Some((server, _)) = start(&[]) else { return };
    let error = check(&config(&server.url(), "redis://127.0.0.1:1", "")).await.unwrap_err();
    assert_eq!(error.kind(), causeway_core::ErrorKind::Retry);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    // Who serves one site needs no way to the other one's store.
    let alone = super::check(&config(&server.url(), "redis://127.0.0.1:1", ""), &[Site::First]).await;
    assert!(alone.is_ok(), "{alone:?}");
}

#[tokio::test]
async fn cleanup_takes_what_is_ours_and_nothing_else() {
    let Some((server, mut redis)) = start(&[]) else { return };
    let config = config("redis://127.0.0.1:1", &server.url(), "");
    for (db, key) in [
        ("0", "causeway:{link.tags*}:marker"),
        ("0", "causeway:{link.tags*}:token"),
        ("5", "causeway:{link.tags*}:part:1"),
        ("0", "causeway:{link.tagsx}:marker"),
        ("0", "causeway:{link.other}:marker"),
        ("5", "data"),
    ] {
        redis.must(&["SELECT", db]).unwrap();
        redis.must(&["SET", key, "x"]).unwrap();
    }
    assert_eq!(cleanup(&config, Site::Second).await.unwrap(), 3);
    assert_eq!(cleanup(&config, Site::Second).await.unwrap(), 0);
    assert_eq!(redis.must(&["DBSIZE"]).unwrap().int(), Some(1));
}

#[test]
fn the_limit_for_replicas_is_found() {
    let text = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
    assert_eq!(replica_limit(text), Some(268435456));
    assert_eq!(replica_limit("normal 0 0 0"), None);
}
