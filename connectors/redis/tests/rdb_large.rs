//! FF22. Values of any size pass through bounded memory, and old encodings that no server writes any more.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod rdb_support;

use causeway_redis::rdb::{Entry, Item, Options, Splitter, Value, crc64, rewrite, seal};
use rdb_support::*;

/// Feeds an RDB with one value, whose bytes `next` gives in chunks, and calls `part` for each part. Gives
/// the most that was buffered, and the length of the longest part.
fn stream_value(
    head: &[u8],
    mut next: impl FnMut(usize) -> Option<Vec<u8>>,
    mut part: impl FnMut(&[u8]),
) -> (usize, usize) {
    let mut splitter = Splitter::new(Options::default());
    let (mut most, mut longest, mut sum, mut parts) = (0, 0, 0, 0);
    let mut feed = |splitter: &mut Splitter, bytes: &[u8]| {
        splitter.feed(bytes);
        most = most.max(splitter.buffered());
        let mut ended = false;
        while let Some(item) = splitter.next().unwrap() {
            if let Item::Entry(Entry { value: Value::Part { n, commands, .. }, .. }) = &item {
                assert_eq!(*n, parts);
                parts += 1;
                longest = longest.max(commands.len());
                part(commands);
            }
            ended = item == Item::End;
        }
        most = most.max(splitter.buffered());
        ended
    };
    let head = [b"REDIS0010\xfe\x00", head].concat();
    sum = crc64(sum, &head);
    feed(&mut splitter, &head);
    for n in 0.. {
        let Some(chunk) = next(n) else { break };
        sum = crc64(sum, &chunk);
        feed(&mut splitter, &chunk);
    }
    sum = crc64(sum, &[255]);
    assert!(feed(&mut splitter, &[&[255u8][..], &sum.to_le_bytes()].concat()));
    (most, longest)
}

const CHUNK: usize = 64 << 10;

#[test]
fn a_hash_of_200_mb_needs_two_megabytes() {
    let fields = 2_000_000u32;
    let head = [&[4u8, 1, b'k', 0x80][..], &fields.to_be_bytes()].concat();
    let mut sent = 0;
    let mut commands = 0;
    let next = |_| {
        let mut chunk = Vec::with_capacity(CHUNK + 200);
        while chunk.len() < CHUNK && sent < fields {
            chunk.push(16);
            chunk.extend(format!("field:{sent:010}").bytes());
            chunk.extend([0x40, 82]);
            chunk.extend([b'v'; 82]);
            sent += 1;
        }
        (!chunk.is_empty()).then_some(chunk)
    };
    let (most, longest) = stream_value(&head, next, |part| commands += arrays(part).len());
    assert_eq!(commands, 2000);
    assert!(most < 2 << 20, "{most} bytes were buffered");
    assert!(longest < 1 << 20, "a part has {longest} bytes");
}

#[test]
fn a_string_of_500_mb_needs_two_megabytes() {
    let len = 500u32 << 20;
    let head = [&[0u8, 1, b'k', 0x80][..], &len.to_be_bytes()].concat();
    let block = vec![7u8; CHUNK];
    let mut bytes = 0;
    let next = |n: usize| (n < len as usize / CHUNK).then(|| block.clone());
    let (most, longest) = stream_value(&head, next, |part| {
        let verb: &[u8] = if bytes == 0 { b"*3\r\n$3\r\nSET\r\n" } else { b"*3\r\n$6\r\nAPPEND\r\n" };
        assert!(part.starts_with(verb));
        bytes += part.len() / CHUNK * CHUNK;
    });
    assert_eq!(bytes, len as usize);
    assert!(most < 2 << 20, "{most} bytes were buffered");
    assert!(longest < 1 << 20, "a part has {longest} bytes");
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

/// A ziplist of short texts and a number below 13.
fn ziplist(texts: &[&str]) -> Vec<u8> {
    let mut list = vec![0; 10];
    let mut before = 0;
    for text in texts {
        let start = list.len();
        list.push(before);
        match text.parse::<u8>() {
            Ok(number) if number < 13 => list.push(0xf1 + number),
            _ => list.extend(string(text.as_bytes())),
        }
        before = (list.len() - start) as u8;
    }
    let tail = list.len() as u32 - u32::from(before);
    list.push(0xff);
    let len = list.len() as u32;
    list[..4].copy_from_slice(&len.to_le_bytes());
    list[4..8].copy_from_slice(&tail.to_le_bytes());
    list[8..10].copy_from_slice(&(texts.len() as u16).to_le_bytes());
    string(&list)
}

/// Values as servers before 7.0 wrote them: type and raw value.
fn old_values() -> Vec<(u8, Vec<u8>)> {
    let text = |text: &str| string(text.as_bytes());
    vec![
        (1, [&[3u8][..], &text("a"), &text("b"), &[0xc0, 7]].concat()),
        (2, [&[2u8][..], &text("a"), &text("b")].concat()),
        (
            3,
            [
                &[4u8][..],
                &text("a"),
                &text("1.5"),
                &text("b"),
                &[254],
                &text("c"),
                &[255],
                &text("d"),
                &text("-3e20"),
            ]
            .concat(),
        ),
        (9, string(b"\x02\x01f\x01\x00v\x02gg\x03\x02abcxx\xff")),
        (10, ziplist(&["a", "7", "ccc"])),
        (12, ziplist(&["a", "1", "b", "2.25", "c", "12"])),
        (13, ziplist(&["f", "v", "g", "5"])),
        (14, [&[2u8][..], &ziplist(&["a", "b"]), &ziplist(&["3"])].concat()),
        // An empty stream with a group, its last id 5-1, before the counters of 7.0.
        (15, [&[0u8, 0, 5, 1, 1][..], &text("g"), &[5, 1, 0, 1], &text("alice"), &[0; 8], &[0]].concat()),
    ]
}

/// FF22: what the target refuses to restore is rewritten.
#[test]
fn values_of_servers_before_7_0_are_rewritten_as_a_server_restores_them() {
    let (Some(one), Some(other)) = (server(&[]), server(&[])) else { return };
    let (mut one_c, mut other_c) = (one.connect().unwrap(), other.connect().unwrap());
    for (kind, value) in old_values() {
        let key = format!("old:{kind}");
        let payload = seal(&[&[kind][..], &value].concat(), 9);
        one_c
            .must(&[&b"RESTORE"[..], key.as_bytes(), b"0", &payload])
            .unwrap_or_else(|e| panic!("{kind}: {e}"));
        let mut commands = Vec::new();
        rewrite(key.as_bytes(), &payload, 1000, &mut commands).unwrap();
        apply(&mut other_c, &commands.concat(), key.as_bytes());
        let [restored, rewritten] = [&mut one_c, &mut other_c].map(|c| {
            // What a server estimates when it loads a stream without counters differs from what it counts.
            let estimates = ["entries-read", "recorded-first-entry-id"];
            let account = account(c, 0, key.as_bytes());
            let words: Vec<&str> = account.split(' ').collect();
            let kept =
                words.iter().enumerate().filter(|(n, _)| *n == 0 || !estimates.contains(&words[n - 1]));
            kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(restored, rewritten, "{kind}");
    }
}

#[test]
fn an_rdb_of_old_values_splits_into_them() {
    let mut rdb = b"REDIS0009".to_vec();
    for (kind, value) in old_values() {
        rdb.extend([kind, 1, b'k']);
        rdb.extend(value);
    }
    rdb.push(255);
    rdb.extend(crc64(0, &rdb).to_le_bytes());
    for chunk in [1, 1 << 20] {
        let entries = entries(split(&rdb, Options::default(), || chunk).unwrap());
        for (entry, (kind, value)) in entries.iter().zip(old_values()) {
            let payload = seal(&[&[kind][..], &value].concat(), 9);
            assert_eq!(entry.value, Value::Dump(payload));
        }
    }
}
