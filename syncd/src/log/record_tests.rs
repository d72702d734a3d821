//! The record format, both forms, against the test vectors that are checked in.

use bytes::Bytes;
use causeway_core::{Change, Group, Hlc, Key, Op, Part, Position, Seq, Space, Term};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::block::{self, Sealed, Writer};
use super::{HeaderError, PartitionId, RecordContext, from_headers, headers, samples};

const VECTORS: &str = include_str!("../../tests/vectors/record_v1.json");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Text where it is printable ASCII, else `{"hex"}`.
fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => json!(text),
        _ => json!({ "hex": hex(bytes) }),
    }
}

fn from_json(value: &Value) -> Bytes {
    match value.as_str() {
        Some(text) => Bytes::copy_from_slice(text.as_bytes()),
        None => Bytes::from(unhex(value["hex"].as_str().unwrap())),
    }
}

fn partition(vector: &Value) -> PartitionId {
    PartitionId {
        channel: vector["channel"].as_str().unwrap().to_owned(),
        origin: vector["origin"].as_str().unwrap().to_owned(),
        number: vector["partition"].as_u64().unwrap() as u32,
    }
}

fn header_list(record: &Value) -> Vec<(&str, Bytes)> {
    let pairs = record["headers"].as_array().unwrap().iter();
    pairs.map(|pair| (pair[0].as_str().unwrap(), from_json(&pair[1]))).collect()
}

fn change(record: &Value) -> (RecordContext, Change) {
    let value = (!record["value"].is_null()).then(|| from_json(&record["value"]));
    let headers = header_list(record);
    let headers = headers.iter().map(|(name, value)| (*name, value.as_ref()));
    from_headers(from_json(&record["key"]), value, headers).unwrap()
}

fn encode(id: &PartitionId, first: u64, time: u64, changes: &[Change]) -> Sealed {
    let mut writer = Writer::new(first, 256);
    changes.iter().for_each(|change| writer.push(change));
    writer.finish(block::seed(id), time)
}

fn vectors() -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    assert_eq!(all["v"], 1);
    all["vectors"].as_array().unwrap().clone()
}

#[test]
fn every_vector_reads_and_writes_as_headers() {
    for vector in vectors() {
        let id = partition(&vector);
        for record in vector["records"].as_array().unwrap() {
            let (context, change) = change(record);
            assert_eq!((&context.channel, &context.origin), (&id.channel, &id.origin));
            assert_eq!(headers(&change, &context), header_list(record), "{}", vector["name"]);
        }
    }
}

#[test]
fn every_vector_reads_and_writes_as_a_block() {
    for vector in vectors() {
        let (id, first) = (partition(&vector), vector["first"].as_u64().unwrap());
        let changes: Vec<_> =
            vector["records"].as_array().unwrap().iter().map(|record| change(record).1).collect();
        let written = encode(&id, first, vector["time"].as_u64().unwrap(), &changes);
        assert_eq!(hex(written.bytes()), vector["block"].as_str().unwrap(), "{}", vector["name"]);
        let stored = Bytes::from(unhex(vector["block"].as_str().unwrap()));
        let mut reader = Sealed::check(stored, block::seed(&id), first).unwrap().reader();
        let read: Vec<_> = std::iter::from_fn(|| reader.record().unwrap()).collect();
        assert_eq!(read, changes, "{}", vector["name"]);
    }
}

#[test]
#[ignore = "writes the vectors anew: only for a record format that nobody has stored yet"]
fn write_the_vectors() {
    let id = PartitionId { channel: "tags".to_owned(), origin: "dc".to_owned(), number: 0 };
    let context = RecordContext { channel: id.channel.clone(), origin: id.origin.clone() };
    let vectors: Vec<_> = samples_of_the_format()
        .into_iter()
        .map(|(name, first, changes)| {
            let time = 1_760_000_000_500u64;
            let records: Vec<_> = changes
                .iter()
                .map(|change| {
                    let headers: Vec<_> = headers(change, &context)
                        .iter()
                        .map(|(name, value)| json!([name, to_json(value)]))
                        .collect();
                    let value = change.value.as_ref().map(|value| to_json(value));
                    json!({ "key": to_json(&change.key.name), "value": value, "headers": headers })
                })
                .collect();
            json!({
                "name": name, "channel": id.channel, "origin": id.origin, "partition": id.number,
                "first": first, "time": time, "records": records,
                "block": hex(encode(&id, first, time, &changes).bytes()),
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&json!({ "v": 1, "vectors": vectors })).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/record_v1.json");
    std::fs::write(path, text + "\n").unwrap();
}

fn samples_of_the_format() -> Vec<(&'static str, u64, Vec<Change>)> {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    let key = |space: Space, name: &'static str| Key { space, name: text(name) };
    let at = |at: u64| Position { history: text("8371445e"), at, context: text("0") };
    let plain = |op, key, value: Option<&'static str>, seq: u64| {
        let mut change = Change::captured(op, key, value.map(text), at(900 + seq * 10), 1_760_000_000_000);
        change.seq = Seq(seq);
        change.term = Term(4);
        change.hlc = Hlc((1_760_000_000_000 << 21) + seq * 512);
        change
    };
    let fence = Change {
        key: key(Space::Whole, ""),
        hlc: Hlc(0),
        seq: Seq(0),
        pos: Position::default(),
        ..plain(Op::Fence, key(Space::Whole, ""), None, 0)
    };
    let extremes = Change {
        op: Op::State,
        seq: Seq(u64::MAX),
        term: Term(u64::MAX),
        key: Key { space: Space::Db(u32::MAX), name: Bytes::from_static(&[0, 255, 10]) },
        value: Some(Bytes::from_static(&[0x80, 0])),
        before: Some(text("")),
        hlc: Hlc(u64::MAX),
        seen: Seq(u64::MAX),
        low: Seq(u64::MAX),
        pos: Position { history: text("u"), at: u64::MAX, context: text("a/b") },
        group: Some(Group { id: u64::MAX, n: u32::MAX, last: true }),
        part: Some(Part { n: u32::MAX, last: true }),
        time: u64::MAX,
        expire_at: Some(u64::MAX),
        tenant: Some(text("app-1")),
        epoch: u64::MAX,
        uncertain: true,
        intake: Some(text("0:k")),
    };
    let least = Change {
        term: Term(0),
        hlc: Hlc(0),
        pos: Position::default(),
        time: 0,
        ..plain(Op::Put, key(Space::Whole, ""), None, 0)
    };
    let db = |name| key(Space::Db(0), name);
    vec![
        ("one put", 0, vec![plain(Op::Put, db("a"), Some("1"), 0)]),
        (
            "a fence, and the first changes of its term",
            4,
            vec![
                fence,
                plain(Op::Position, key(Space::Whole, ""), Some("restart point"), 0),
                plain(Op::Command, db("n"), Some("*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n"), 1),
                plain(Op::Delete, db("gone"), None, 2),
            ],
        ),
        (
            "a group of two",
            8,
            vec![
                Change {
                    group: Some(Group { id: 77, n: 0, last: false }),
                    seen: Seq(5),
                    low: Seq(3),
                    ..plain(Op::Command, db("a"), Some("x"), 3)
                },
                Change {
                    group: Some(Group { id: 77, n: 1, last: true }),
                    seen: Seq(4),
                    low: Seq(3),
                    ..plain(Op::Command, db("b"), Some("y"), 4)
                },
            ],
        ),
        (
            "a read in two parts, with an expire-at",
            10,
            vec![
                Change {
                    hlc: Hlc(0),
                    part: Some(Part { n: 0, last: false }),
                    expire_at: Some(1_770_000_000_000),
                    ..plain(Op::Read, db("large"), Some("p0"), 5)
                },
                Change {
                    hlc: Hlc(0),
                    part: Some(Part { n: 1, last: true }),
                    expire_at: Some(1_770_000_000_000),
                    ..plain(Op::Read, db("large"), Some("p1"), 6)
                },
            ],
        ),
        (
            "every space, and an empty value beside none",
            12,
            vec![
                Change {
                    tenant: Some(text("t")),
                    epoch: 2,
                    ..plain(Op::Put, key(Space::Table(text("shop.orders")), "7"), Some("{\"a\":2}"), 7)
                },
                Change {
                    before: Some(text("{\"a\":1}")),
                    ..plain(Op::Put, key(Space::Index(text("push-1")), "id"), Some("{}"), 8)
                },
                plain(Op::State, key(Space::Bucket(text("users")), "u"), Some(""), 9),
                plain(Op::State, key(Space::Whole, "k"), None, 10),
                plain(Op::Refresh, key(Space::Db(3), "k"), None, 11),
                Change {
                    uncertain: true,
                    ..plain(Op::Ddl, key(Space::Db(3), ""), Some("*1\r\n$7\r\nFLUSHDB\r\n"), 12)
                },
            ],
        ),
        ("the largest numbers, and after them the least", u64::MAX - 9, vec![extremes, least]),
    ]
}

proptest! {
    #[test]
    fn a_change_reads_back_from_its_headers(change in samples::change()) {
        let context = RecordContext { channel: "t".to_owned(), origin: "dc".to_owned() };
        let headers = headers(&change, &context);
        let headers = headers.iter().map(|(name, value)| (*name, value.as_ref()));
        let read = from_headers(change.key.name.clone(), change.value.clone(), headers);
        prop_assert_eq!(read, Ok((context, change)));
    }

    #[test]
    fn any_header_is_read_or_refused(name in "v|op|seq|pos|group|part|db|time", value: Vec<u8>) {
        let headers = [("v", "1"), ("op", "put"), ("origin", "dc"), ("channel", "t"), ("seq", "1")];
        let all = headers.into_iter().filter(|(known, _)| *known != name);
        let all = all.map(|(name, text)| (name, text.as_bytes()));
        let _ = from_headers(Bytes::new(), None, all.chain([(name.as_str(), value.as_slice())]));
    }
}

#[test]
fn a_record_that_is_none_is_named() {
    let read = |changed: &[(&'static str, Option<&'static str>)]| {
        let all = [("v", "1"), ("op", "put"), ("origin", "dc"), ("channel", "t"), ("seq", "1")];
        let kept = all.into_iter().filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
        let set = changed.iter().filter_map(|(name, text)| Some((*name, (*text)?)));
        let all = kept.chain(set).map(|(name, text)| (name, text.as_bytes()));
        from_headers(Bytes::new(), None, all).map(|_| ())
    };
    assert_eq!(read(&[]), Ok(()));
    assert_eq!(read(&[("x-unknown", Some("1"))]), Ok(()));
    assert_eq!(read(&[("v", Some("2"))]), Err(HeaderError::Newer(2)));
    for name in ["v", "op", "origin", "channel", "seq"] {
        assert_eq!(read(&[(name, None)]), Err(HeaderError::Missing(name)));
    }
    for (name, text) in [
        ("op", "steal"),
        ("seq", "-1"),
        ("hlc", ""),
        ("hlc", "+1"),
        ("low", "18446744073709551616"),
        ("pos", "x"),
        ("pos", "x@"),
        ("group", "1"),
        ("group", "1:2:first"),
        ("group", "1:4294967296"),
        ("part", "1:last:last"),
        ("db", "4294967296"),
    ] {
        let Err(HeaderError::Malformed { name: found, .. }) = read(&[(name, Some(text))]) else {
            panic!("{name} = {text} was read")
        };
        assert_eq!(found, name);
    }
    let two = read(&[("db", Some("1")), ("table", Some("t"))]);
    assert!(matches!(two, Err(HeaderError::Malformed { name: "db", .. })));
    let twice = [("v", "1"), ("v", "1")].map(|(name, text)| (name, text.as_bytes()));
    assert_eq!(from_headers(Bytes::new(), None, twice), Err(HeaderError::Twice("v".to_owned())));
}
