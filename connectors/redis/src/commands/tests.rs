use causeway_core::{Key, Position, Space};

use super::*;

fn cmd(text: &str) -> Command {
    let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    Command::of(&words)
}

/// What a command is carried as.
fn carried(text: &str) -> String {
    let shown = |bytes: &Bytes| {
        let mut buf = BytesMut::from(&bytes[..]);
        let command = resp::parse_command(&mut buf).unwrap().unwrap();
        let words: Vec<_> = command.iter().map(String::from_utf8_lossy).collect();
        words.join(" ")
    };
    let name = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    match effects(&cmd(text), 1) {
        Effects::One(key) => format!("one {}", name(&key)),
        Effects::Split(parts) => {
            let part = |(key, op): &(Bytes, SplitOp)| match op {
                SplitOp::Delete => format!("{}: -", name(key)),
                SplitOp::Command(bytes) => format!("{}: {}", name(key), shown(bytes)),
            };
            parts.iter().map(part).collect::<Vec<_>>().join(", ")
        }
        Effects::Reread(keys) => {
            keys.iter().map(|(db, key)| format!("again {db}/{}", name(key))).collect::<Vec<_>>().join(", ")
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn commands_become_what_the_table_says() {
    for (text, expected) in [
        ("SET k v", "one k"),
        ("set k v PXAT 99", "one k"),
        ("SET k v KEEPTTL", "one k"),
        ("SET k v NX", "k: SET k v"),
        ("SET k v PXAT 99 XX GET", "k: SET k v PXAT 99"),
        ("SET k v IFEQ w", "k: SET k v"),
        ("SET k v EX 5", "again 1/k"),
        ("SET k v SOMETHING", "Unknown"),
        ("SETNX k v", "k: SET k v"),
        ("HSETNX h f v", "h: HSET h f v"),
        ("MSET a 1 b 2", "a: SET a 1, b: SET b 2"),
        ("MSET a", "Unknown"),
        ("MSETEX 2 a 1 b 2 NX PXAT 99", "a: SET a 1 PXAT 99, b: SET b 2 PXAT 99"),
        ("MSETEX 1 a 1 KEEPTTL", "a: SET a 1 KEEPTTL"),
        ("MSETEX 2 a 1 b 2 EX 9", "again 1/a, again 1/b"),
        ("MSETEX 9 a 1", "Unknown"),
        ("MSETEX 18446744073709551615 a 1", "Unknown"),
        ("DEL a", "a: -"),
        ("UNLINK a b", "a: -, b: -"),
        ("DEL", "Unknown"),
        ("SMOVE a b m", "a: SREM a m, b: SADD b m"),
        ("PEXPIREAT k 99", "one k"),
        ("PEXPIREAT k 99 GT", "k: PEXPIREAT k 99"),
        ("PEXPIRE k 99", "again 1/k"),
        ("LMOVE a b LEFT RIGHT", "again 1/a, again 1/b"),
        ("RPOPLPUSH a a", "one a"),
        ("RENAME a b", "again 1/a, again 1/b"),
        ("MOVE a 3", "again 1/a, again 3/a"),
        ("COPY a b", "again 1/b"),
        ("COPY a b REPLACE DB 4", "again 4/b"),
        ("BITOP OR d a b", "again 1/d"),
        ("SORT l BY w* STORE d", "again 1/d"),
        ("SORT l", "Nothing"),
        ("GEORADIUS g 1 2 3 m STOREDIST d", "again 1/d"),
        ("GEORADIUS g 1 2 3 m STORE STORE", "again 1/STORE"),
        ("XGROUP CREATE s g 0", "one s"),
        ("HSETEX h EX 5 FIELDS 1 f v", "again 1/h"),
        ("HSETEX h PXAT 5 FIELDS 1 EX v", "one h"),
        ("FLUSHALL", "Whole"),
        ("FUNCTION FLUSH", "Function"),
        ("PING", "Nothing"),
        ("JSON.SET k $ 1", "Unknown"),
        ("AVERYLONGNAMETHATISLONGERTHANANYOTHERNAME k", "Unknown"),
    ] {
        assert_eq!(carried(text), expected, "{text}");
    }
    assert_eq!(effects(&Command::of(&[]), 0), Effects::Unknown);
}

fn touched(text: &str) -> Vec<(String, String, Class)> {
    let value = cmd(text).raw;
    let key = Key { space: Space::Db(1), name: Bytes::from_static(b"k") };
    let change = Change::captured(Op::Command, key, Some(value), Position::default(), 0);
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    units(&change)
        .into_iter()
        .map(|(unit, class)| (shown(&unit.key.name), unit.element.map_or("*".into(), |e| shown(&e)), class))
        .collect()
}

#[test]
fn what_a_command_touches_and_how() {
    use Class::{Absolute, Commuting, Other};
    type Touched<'a> = (&'a str, &'a str, Class);
    let cases: &[(&str, &[Touched])] = &[
        ("SET k v", &[("k", "*", Absolute)]),
        ("SET k v PXAT 99", &[("k", "*", Absolute)]),
        ("SET k v KEEPTTL", &[("k", "#value", Absolute)]),
        ("INCRBY k 5", &[("k", "#value", Commuting)]),
        ("PFADD k a", &[("k", "#value", Commuting)]),
        ("RPUSH k a b", &[("k", "#value", Other)]),
        ("SETBIT k 1 1", &[("k", "#value", Other)]),
        ("XGROUP CREATE k g 0", &[("k", "#value", Other)]),
        ("PEXPIREAT k 99", &[("k", "#ttl", Absolute)]),
        ("PERSIST k", &[("k", "#ttl", Absolute)]),
        ("HSET k f 1 g 2", &[("k", "\nf", Absolute), ("k", "\ng", Absolute)]),
        ("HSET k #ttl 1", &[("k", "\n#ttl", Absolute)]),
        ("HDEL k f g", &[("k", "\nf", Absolute), ("k", "\ng", Absolute)]),
        ("HINCRBY k f 3", &[("k", "\nf", Commuting)]),
        ("SADD k a b", &[("k", "\na", Absolute), ("k", "\nb", Absolute)]),
        ("ZADD k 1 a 2 b", &[("k", "\na", Absolute), ("k", "\nb", Absolute)]),
        ("zadd k CH 1 a", &[("k", "\na", Absolute)]),
        ("ZADD k GT CH 1 a", &[("k", "\na", Other)]),
        ("ZADD k INCR 1 a", &[("k", "\na", Commuting)]),
        ("ZADD k NX INCR 1 a", &[("k", "\na", Other)]),
        ("ZADD k inf GT", &[("k", "\nGT", Absolute)]),
        ("ZINCRBY k 1 a", &[("k", "\na", Commuting)]),
        ("ZPOPMIN k", &[("k", "*", Other)]),
        ("HPEXPIREAT k 99 FIELDS 2 f g", &[("k", "\nf", Other), ("k", "\ng", Other)]),
        ("HSETEX k PXAT 99 FIELDS 2 f 1 g 2", &[("k", "\nf", Absolute), ("k", "\ng", Absolute)]),
        ("HSETEX k FNX FIELDS 1 f 1", &[("k", "\nf", Other)]),
        ("LMOVE k l LEFT LEFT", &[("k", "#value", Other), ("l", "#value", Other)]),
        ("LMOVE k k LEFT RIGHT", &[("k", "#value", Other)]),
        ("SOMETHING k", &[("k", "*", Other)]),
        ("HSET k", &[("k", "*", Other)]),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> =
            expected.iter().map(|(key, element, class)| ((*key).into(), (*element).into(), *class)).collect();
        assert_eq!(touched(text), expected, "{text}");
    }
}

#[test]
fn an_expiry_meets_what_sets_the_key_and_not_what_adds_to_it() {
    let unit = |text: &str| {
        let key = Key { space: Space::Db(0), name: Bytes::from_static(b"k") };
        let change = Change::captured(Op::Command, key, Some(cmd(text).raw), Position::default(), 0);
        units(&change).remove(0).0
    };
    let expiry = unit("PEXPIREAT k 99");
    for text in ["SET k v", "ZPOPMIN k", "PERSIST k"] {
        assert!(expiry.overlaps(&unit(text)), "{text}");
    }
    for text in ["HSET k #ttl v", "INCR k", "RPUSH k a", "SET k v KEEPTTL", "SADD k a"] {
        assert!(!expiry.overlaps(&unit(text)), "{text}");
    }
}

#[test]
fn other_changes_are_of_the_whole_key() {
    let key = Key { space: Space::Db(0), name: Bytes::from_static(b"k") };
    let of = |op, value| units(&Change::captured(op, key.clone(), value, Position::default(), 0)).remove(0);
    assert_eq!(of(Op::Delete, None).1, Class::Observed);
    assert_eq!(of(Op::State, None).1, Class::Absolute);
    assert_eq!(of(Op::Read, Some(Bytes::new())).1, Class::Absolute);
    assert_eq!(of(Op::Ddl, None).1, Class::Other);
    for garbage in [&b""[..], b"*1\r\n", b"*x", b"*2\r\n$4\r\nHSET\r\n$1\r\nk\r\n"] {
        let (unit, class) = of(Op::Command, Some(Bytes::from_static(garbage)));
        assert_eq!((unit.element, class), (None, Class::Other));
    }
}

#[test]
fn the_time_of_expiry_is_found_where_a_command_has_one() {
    for (text, time) in [
        ("PEXPIREAT k 77", Some(77)),
        ("pexpireat k 77 GT", Some(77)),
        ("SET k v PXAT 77", Some(77)),
        ("SET k PXAT GET pxat 77", Some(77)),
        ("SET PXAT 5", None),
        ("SET k v KEEPTTL", None),
        ("RESTORE k 77 payload REPLACE ABSTTL", Some(77)),
        ("RESTORE k 77 payload REPLACE", None),
        ("RESTORE k 0 payload ABSTTL", None),
        ("HPEXPIREAT k 77 FIELDS 1 f", Some(77)),
        ("HSETEX k FNX PXAT 77 FIELDS 1 f v", Some(77)),
        ("HSETEX k FIELDS 1 PXAT 77", None),
        ("HSET k PXAT 77", None),
        ("PEXPIREAT k soon", None),
        ("PEXPIREAT k", None),
    ] {
        let raw = [b"*1\r\n$4\r\nPING\r\n", cmd(text).raw.as_ref()].concat();
        let found = expire_at(&raw, raw.len() - cmd(text).raw.len());
        assert_eq!(found.as_ref().map(|(_, time)| *time), time, "{text}");
        assert!(found.is_none_or(|(range, _)| raw[range] == *b"77"), "{text}");
    }
}

#[test]
fn only_an_entry_with_a_number_gets_the_next_one() {
    let renumbered = |text: &str| {
        let key = Key { space: Space::Db(0), name: Bytes::from_static(b"s") };
        let change = Change::captured(Op::Command, key, Some(cmd(text).raw), Position::default(), 0);
        with_next_id(&change).and_then(|change| change.value)
    };
    for (text, with) in [
        ("XADD s 1-1 f v", "XADD s * f v"),
        ("xadd s NOMKSTREAM 1-1 f v g w", "xadd s NOMKSTREAM * f v g w"),
        ("XADD s MAXLEN 9 1-1 f v", "XADD s MAXLEN 9 * f v"),
        ("XADD s maxlen = 9 1-1 f v", "XADD s maxlen = 9 * f v"),
        ("XADD s NOMKSTREAM MINID ~ 0-1 LIMIT 10 1-1 f v", "XADD s NOMKSTREAM MINID ~ 0-1 LIMIT 10 * f v"),
    ] {
        assert_eq!(renumbered(text), Some(cmd(with).raw), "{text}");
    }
    for text in ["XADD s * f v", "XADD s 1-1", "XADD s MAXLEN = 9", "XADD", "XDEL s 1-1", "SET s 1-1 f v"] {
        assert_eq!(renumbered(text), None, "{text}");
    }
}

/// Prints what a command costs here: `cargo test … -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn small_commands_looked_up() {
    for text in ["SET k v", "HSET h f v", "ZADD z 1 a", "XADD s 1-1 f v", "DEL k", "PEXPIREAT k 99"] {
        let command = cmd(text);
        let key = Key { space: Space::Db(0), name: Bytes::from_static(b"k") };
        let change = Change::captured(Op::Command, key, Some(command.raw.clone()), Position::default(), 0);
        let time = |each: &dyn Fn()| {
            let started = std::time::Instant::now();
            (0..1_000_000).for_each(|_| each());
            started.elapsed().as_nanos() / 1_000_000
        };
        let effects = time(&|| drop(std::hint::black_box(effects(&command, 0))));
        let units = time(&|| drop(std::hint::black_box(units(&change))));
        println!("{text:20} effects {effects} ns, units {units} ns");
    }
}
