//! The splitter against real servers: what one server saves, another takes, with nothing changed.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod rdb_support;

use bytes::Bytes;
use causeway_redis::rdb::{Entry, Item, Options, Value, content_digest, open, rewrite, seal};
use rdb_support::*;

/// What decides how values are encoded.
const ENCODINGS: [&[&str]; 4] = [
    &[],
    &["--rdbcompression", "no", "--list-max-listpack-size", "3", "--stream-node-max-entries", "7"],
    &["--list-compress-depth", "1", "--list-max-listpack-size", "-1", "--hash-max-listpack-entries", "4000"],
    &[
        "--hash-max-listpack-entries",
        "0",
        "--zset-max-listpack-entries",
        "0",
        "--set-max-intset-entries",
        "0",
        "--stream-node-max-bytes",
        "300",
    ],
];

const CUT_ALL: Options = Options { part_bytes: 5000, whole_bytes_max: 0 };

/// As whole as it gets.
const CUT_NONE: Options = Options { part_bytes: 512 << 10, whole_bytes_max: 1 << 30 };

#[test]
fn every_value_passes_as_the_server_itself_would_dump_it() {
    for (n, encoding) in ENCODINGS.iter().enumerate() {
        let (Some(from), Some(to)) = (server(encoding), server(&["--proto-max-bulk-len", "512mb"])) else {
            return;
        };
        let (mut from_c, mut to_c) = (from.connect().unwrap(), to.connect().unwrap());
        fill(&mut from_c, &mut Random(7 + n as u64));
        let entries = entries(split(&save(&from), CUT_NONE, || 1 << 16).unwrap());
        let size = run(&mut from_c, "DBSIZE").int().unwrap();
        assert_eq!(entries.len() as i64, size + 2);
        for entry in &entries {
            let Value::Dump(payload) = &entry.value else { panic!("{:?} is not whole", entry.name) };
            run(&mut from_c, &format!("SELECT {}", entry.db));
            let dumped = from_c.must(&[b"DUMP", &entry.name[..]]).unwrap();
            let causeway_testkit::resp::Reply::Bulk(Some(dumped)) = dumped else { panic!("no dump") };
            let ((kind, value, _), (kind2, value2, version2)) =
                (open(payload).unwrap(), open(&dumped).unwrap());
            assert_eq!((kind, value), (kind2, value2), "{:?}", entry.name);
            assert_eq!(seal(&dumped[..dumped.len() - 10], version2), dumped);
            write(&mut to_c, entry);
            let (was, is) =
                (account(&mut from_c, entry.db, &entry.name), account(&mut to_c, entry.db, &entry.name));
            assert!(was == is, "{:?}", entry.name);
        }
    }
}

#[test]
fn every_rewrite_makes_the_same_content() {
    for (n, encoding) in ENCODINGS.iter().enumerate() {
        let (Some(from), Some(to)) = (server(encoding), other_server()) else { return };
        let (mut from_c, mut to_c) = (from.connect().unwrap(), to.connect().unwrap());
        fill(&mut from_c, &mut Random(70 + n as u64));
        for entry in entries(split(&save(&from), CUT_NONE, || 1 << 20).unwrap()) {
            let Value::Dump(payload) = &entry.value else { panic!("{:?} is not whole", entry.name) };
            let mut commands = Vec::new();
            rewrite(&entry.name, payload, [200, 1 << 14, 1 << 20][n % 3], &mut commands).unwrap();
            let value = Value::Part { n: 0, last: true, commands: Bytes::from(commands.concat()) };
            write(&mut to_c, &Entry { value, ..entry.clone() });
            let (was, is) =
                (account(&mut from_c, entry.db, &entry.name), account(&mut to_c, entry.db, &entry.name));
            assert!(was == is, "{:?}", entry.name);
            // Another server's packing must not pass for another content.
            let dumped = to_c.must(&[b"DUMP", &entry.name[..]]).unwrap();
            if let causeway_testkit::resp::Reply::Bulk(Some(dumped)) = dumped {
                let (was, is) = (content_digest(payload), content_digest(&dumped));
                assert!(was.is_some() && was == is, "{:?}", entry.name);
            }
        }
    }
}

/// FF22.
#[test]
fn parts_make_the_same_content_and_are_what_rewrite_says() {
    for (n, encoding) in ENCODINGS.iter().enumerate() {
        let (Some(from), Some(to)) = (server(encoding), other_server()) else { return };
        let (mut from_c, mut to_c) = (from.connect().unwrap(), to.connect().unwrap());
        fill(&mut from_c, &mut Random(700 + n as u64));
        let rdb = save(&from);
        let whole = entries(split(&rdb, CUT_NONE, || 1 << 16).unwrap());
        let mut parts = entries(split(&rdb, CUT_ALL, || 1 << 16).unwrap()).into_iter().peekable();
        for Entry { db, name, expire_at, value } in whole {
            let Value::Dump(payload) = value else { panic!("{name:?} is not whole") };
            let mut joined = Vec::new();
            for expected in 0.. {
                let part = parts.next().unwrap();
                let Value::Part { n, last, commands } = &part.value else { panic!("{name:?} is not cut") };
                assert_eq!((part.db, &part.name, part.expire_at, *n), (db, &name, expire_at, expected));
                joined.extend_from_slice(commands);
                write(&mut to_c, &part);
                if *last {
                    break;
                }
            }
            if name.starts_with(b"stream:missing") {
                continue; // of a cut stream, pending entries without their entry can't be made
            }
            assert!(account(&mut from_c, db, &name) == account(&mut to_c, db, &name), "{name:?}");
            let mut commands = Vec::new();
            rewrite(&name, &payload, CUT_ALL.part_bytes, &mut commands).unwrap();
            assert!(commands.concat() == joined, "{name:?}");
        }
        assert!(parts.next().is_none());
    }
}

#[test]
fn the_chunks_in_which_bytes_come_change_nothing() {
    let Some(from) = server(&[]) else { return };
    fill(&mut from.connect().unwrap(), &mut Random(3));
    run(&mut from.connect().unwrap(), "DEL string:repeats:30MB");
    let rdb = save(&from);
    let options = Options { part_bytes: 2000, whole_bytes_max: 10_000 };
    let at_once = split(&rdb, options, || usize::MAX).unwrap();
    assert!(at_once.iter().any(|item| matches!(item, Item::Entry(Entry { value: Value::Dump(_), .. }))));
    assert!(at_once.iter().any(|item| matches!(item, Item::Entry(Entry { value: Value::Part { .. }, .. }))));
    assert!(split(&rdb, options, || 1).unwrap() == at_once);
    let mut random = Random(11);
    for most in [3, 100, 5000, 300_000] {
        assert!(split(&rdb, options, || random.below(most)).unwrap() == at_once, "{most}");
    }
}

#[test]
fn what_redis_cli_fetches_is_read_with_its_notes_and_functions() {
    let Some(from) = server(&[]) else { return };
    let mut c = from.connect().unwrap();
    let code = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
    c.must(&["FUNCTION", "LOAD", code]).unwrap();
    run(&mut c, "SET a b");
    run(&mut c, "SET c d PXAT 4102444800000");
    let file = from.dir().join("fetched.rdb");
    let port = from.port().to_string();
    let cli = std::process::Command::new("redis-cli").args(["-p", &port, "--rdb"]).arg(&file).output();
    assert!(cli.unwrap().status.success());
    let items = split(&std::fs::read(&file).unwrap(), Options::default(), || 10).unwrap();
    assert!(matches!(items.first(), Some(Item::Version(10..=80))));
    assert!(items.iter().any(|item| matches!(item, Item::Aux { name, .. } if name.ends_with(b"-ver"))));
    assert!(items.contains(&Item::Function(Bytes::from(code))));
    assert!(items.contains(&Item::Sizes { db: 0, keys: 2, expires: 1 }));
    assert_eq!(items.last(), Some(&Item::End));
    assert_eq!(entries(items).len(), 2);
}

/// FF26b.
#[test]
fn fields_that_expire_keep_their_time() {
    let (Some(from), Some(to)) = (server(&[]), other_server()) else { return };
    let (mut from_c, mut to_c) = (from.connect().unwrap(), to.connect().unwrap());
    if !knows(&mut from_c, "HPEXPIREAT") || !knows(&mut to_c, "HPEXPIREAT") {
        return eprintln!("ignored: a server without field expiry");
    }
    let restores = std::env::var_os("CAUSEWAY_REDIS_SERVER_OTHER").is_none();
    for size in [5, 2000] {
        for n in 0..size {
            run(&mut from_c, &format!("HSET hash:{size} field{n} value{n}"));
            if n % 3 != 0 {
                let at = 4_102_444_800_000u64 + (n as u64 / 7) * 1001;
                run(&mut from_c, &format!("HPEXPIREAT hash:{size} {at} FIELDS 1 field{n}"));
            }
        }
    }
    let rdb = save(&from);
    for options in [CUT_NONE, CUT_ALL] {
        for rewritten in [!restores, true] {
            run(&mut to_c, "FLUSHALL");
            let entries = entries(split(&rdb, options, || 100).unwrap());
            for mut entry in entries.iter().cloned() {
                if let (true, Value::Dump(payload)) = (rewritten, &entry.value) {
                    let mut commands = Vec::new();
                    rewrite(&entry.name, payload, 1000, &mut commands).unwrap();
                    entry.value = Value::Part { n: 0, last: true, commands: commands.concat().into() };
                }
                write(&mut to_c, &entry);
            }
            for key in [&b"hash:5"[..], b"hash:2000"] {
                assert_eq!(account(&mut from_c, 0, key), account(&mut to_c, 0, key));
            }
        }
    }
}
