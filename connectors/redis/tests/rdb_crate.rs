//! A second opinion: the `rdb` crate, an independent reader, finds the same in the same files (it has no
//! eye for streams and field expiry, which are left out here).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod rdb_support;

use std::collections::BTreeMap;

use causeway_redis::rdb::{Options, Value, rewrite};
use rdb::{RdbDecoder, RdbValue};
use rdb_support::*;

/// Database and key; then expiry, type, and the elements, sorted where they have no order.
type Content = BTreeMap<(u32, Vec<u8>), (Option<u64>, &'static str, Vec<Vec<u8>>)>;

fn score(score: f64) -> Vec<u8> {
    score.to_bits().to_be_bytes().to_vec()
}

/// Pairs as one element each.
fn pairs(flat: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut pairs: Vec<Vec<u8>> = flat.chunks(2).map(|pair| pair.join(&0)).collect();
    pairs.sort();
    pairs
}

fn by_the_crate(bytes: &[u8]) -> Content {
    let mut content = Content::new();
    let mut db = 0;
    for value in RdbDecoder::new(bytes, rdb::filter::Simple::new()).unwrap() {
        let (key, entry) = match value.unwrap() {
            RdbValue::SelectDb(selected) => {
                db = selected;
                continue;
            }
            RdbValue::String { key, value, expiry } => (key, (expiry, "SET", vec![value])),
            RdbValue::List { key, values, expiry } => (key, (expiry, "RPUSH", values)),
            RdbValue::Set { key, mut members, expiry } => {
                members.sort();
                (key, (expiry, "SADD", members))
            }
            RdbValue::Hash { key, values, expiry } => {
                (key, (expiry, "HSET", pairs(values.into_iter().flat_map(|(f, v)| [f, v]).collect())))
            }
            RdbValue::SortedSet { key, values, expiry } => {
                (key, (expiry, "ZADD", pairs(values.into_iter().flat_map(|(s, m)| [score(s), m]).collect())))
            }
            _ => continue,
        };
        content.insert((db, key), entry);
    }
    content
}

/// The arguments of one RESP array.
fn arguments(array: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments = Vec::new();
    let mut rest = array;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
        let (line, after) = rest.split_at(at + 1);
        rest = after;
        if line[0] == b'$' {
            let len: usize = std::str::from_utf8(&line[1..at - 1]).unwrap().parse().unwrap();
            arguments.push(rest[..len].to_vec());
            rest = &rest[len + 2..];
        }
    }
    arguments
}

fn by_the_splitter(bytes: &[u8]) -> Content {
    let mut content = Content::new();
    let whole = Options { whole_bytes_max: 1 << 30, ..Options::default() };
    for entry in entries(split(bytes, whole, || 1 << 16).unwrap()) {
        let Value::Dump(payload) = entry.value else { continue };
        if [15, 19, 21].contains(&payload[0]) {
            continue; // a stream
        }
        let mut commands = Vec::new();
        rewrite(&entry.name, &payload, 1 << 16, &mut commands).unwrap();
        let verbs = ["SET", "RPUSH", "SADD", "HSET", "ZADD"];
        let (mut kind, mut elements) = ("", Vec::new());
        for command in &commands {
            let mut arguments = arguments(command);
            let verb = String::from_utf8(arguments.remove(0)).unwrap();
            assert_eq!(arguments.remove(0), entry.name);
            if verb == "APPEND" {
                elements = vec![[elements, arguments].concat().concat()];
                continue;
            }
            kind = verbs.into_iter().find(|known| *known == verb).unwrap_or(kind);
            elements.extend(arguments);
        }
        match kind {
            "SADD" => elements.sort(),
            "HSET" => elements = pairs(elements),
            "ZADD" => {
                let text = |text: &[u8]| std::str::from_utf8(text).unwrap().parse().unwrap();
                elements.chunks_mut(2).for_each(|pair| pair[0] = score(text(&pair[0])));
                elements = pairs(elements);
            }
            _ => {}
        }
        content.insert((entry.db, entry.name.to_vec()), (entry.expire_at, kind, elements));
    }
    content
}

#[test]
fn an_independent_reader_finds_the_same() {
    let encodings: [&[&str]; 2] = [
        &["--list-compress-depth", "1"],
        &["--rdbcompression", "no", "--hash-max-listpack-entries", "0", "--zset-max-listpack-entries", "0"],
    ];
    for encoding in encodings {
        let Some(server) = server(encoding) else { return };
        fill(&mut server.connect().unwrap(), &mut Random(99));
        let rdb = save(&server);
        let (ours, theirs) = (by_the_splitter(&rdb), by_the_crate(&rdb));
        assert!(ours.len() > 50);
        assert!(ours.keys().eq(theirs.keys()));
        for (key, content) in &ours {
            assert!(Some(content) == theirs.get(key), "{key:?}");
        }
    }
}
