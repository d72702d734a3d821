//! Damaged and lying RDBs: an error that says where, never a panic, an endless loop or a large allocation.
//!
//! The samples were saved by Redis 7.0.15, Redis 8.0.6 and Valkey 9.1.2, with all types and encodings.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod rdb_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use causeway_redis::rdb::{
    Cut, DumpCutter, Entry, Item, Options, RdbError, Splitter, Value, open, rewrite, seal,
};
use rdb_support::*;

const SAMPLES: [&[u8]; 3] = [
    include_bytes!("rdb_samples/redis-7.0.rdb"),
    include_bytes!("rdb_samples/redis-8.0.rdb"),
    include_bytes!("rdb_samples/valkey-9.1.rdb"),
];

const SMALL: Options = Options { part_bytes: 50, whole_bytes_max: 100 };

/// Remembers the largest allocation of the process.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// What the samples hold is small: nothing may ask for more than this, whatever their bytes claim.
const ALLOCATION_MAX: usize = 4 << 20;

/// Takes everything out of `bytes` in every way there is.
fn exercise(bytes: &[u8], options: Options, chunk: usize) -> Result<Vec<Item>, RdbError> {
    let items = split(bytes, options, || chunk)?;
    for item in &items {
        if let Item::Entry(entry) = item
            && let Value::Dump(payload) = &entry.value
        {
            let _ = rewrite(&entry.name, payload, 100, &mut Vec::new());
        }
    }
    Ok(items)
}

#[test]
fn the_samples_are_read_in_chunks_of_any_size() {
    for sample in SAMPLES {
        let at_once = exercise(sample, SMALL, usize::MAX).unwrap();
        assert_eq!(at_once.last(), Some(&Item::End));
        for chunk in [1, 2, 3, 7, 50, 333] {
            assert_eq!(exercise(sample, SMALL, chunk).unwrap(), at_once);
        }
        assert_eq!(entries(exercise(sample, Options::default(), 5).unwrap()).len(), 18);
    }
}

/// Found by fuzzing: a string was held whole where its length came in two chunks and any value was to be cut.
#[test]
fn a_string_is_cut_also_if_its_length_comes_in_pieces() {
    let cut_all = Options { part_bytes: 50, whole_bytes_max: 0 };
    for len in [0u32, 1, 49, 50, 51, 1000] {
        let head = [b"REDIS0010\x00\x01k\x80", &len.to_be_bytes()[..]].concat();
        let rdb = [head, vec![b'x'; len as usize], vec![255], vec![0; 8]].concat();
        let at_once = split(&rdb, cut_all, || usize::MAX).unwrap();
        assert_eq!(split(&rdb, cut_all, || 1).unwrap(), at_once);
        assert_eq!(entries(at_once).len(), (len as usize).div_ceil(50).max(1));
    }
}

#[test]
fn an_rdb_that_ends_early_says_where() {
    for sample in SAMPLES {
        for end in 0..sample.len() {
            let error = exercise(&sample[..end], SMALL, 100).unwrap_err();
            assert_eq!(error.at, end as u64);
            assert!(error.to_string().starts_with(&format!("RDB byte {end}: ")));
        }
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for sample in SAMPLES {
        for bit in 0..sample.len() * 8 {
            let mut damaged = sample.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = split(&damaged, SMALL, || 100).unwrap_err();
            assert!(error.at <= sample.len() as u64);
        }
    }
    assert!(LARGEST.load(Ordering::Relaxed) < ALLOCATION_MAX);
}

#[test]
fn thousands_of_mutants_end_without_panic_or_large_allocation() {
    let mut random = Random(0x5eed);
    for round in 0..6000 {
        let mut mutant = SAMPLES[round % SAMPLES.len()].to_vec();
        for _ in 0..1 + random.below(6) {
            let (at, other) = (random.below(mutant.len()), random.below(mutant.len()));
            match random.below(7) {
                0 => mutant[at] = random.next() as u8,
                1 => mutant[at] = [0, 0x7f, 0x80, 0x81, 0xc3, 0xfe, 0xff][random.below(7)],
                2 => _ = mutant.drain(at..(at + random.below(20)).min(mutant.len())),
                3 => {
                    let huge = [&[0x81u8][..], &[0xff; 8]].concat();
                    mutant.splice(at..at, huge);
                }
                4 => {
                    let copy = mutant[at..(at + random.below(300)).min(mutant.len())].to_vec();
                    mutant.splice(other..other, copy);
                }
                5 => mutant[at] = mutant[at].wrapping_add(1),
                _ => mutant.truncate(at.max(20)),
            }
        }
        // No checksum, so that what gets through is looked at to the end.
        let end = mutant.len().saturating_sub(8);
        mutant[end..].fill(0);
        let whole = Options { part_bytes: 50, whole_bytes_max: 1 << 20 };
        let cut = Options { part_bytes: 50, whole_bytes_max: 0 };
        for options in [whole, cut, SMALL] {
            let _ = exercise(&mutant, options, 1 + random.below(400));
        }
    }
    assert!(LARGEST.load(Ordering::Relaxed) < ALLOCATION_MAX, "{}", LARGEST.load(Ordering::Relaxed));
}

#[test]
fn damaged_values_in_sound_payloads_are_refused() {
    let mut random = Random(0xbad);
    for sample in SAMPLES {
        for entry in entries(split(sample, Options::default(), || 1000).unwrap()) {
            let Value::Dump(payload) = entry.value else { panic!("not whole") };
            let (body, version) = payload.split_at(payload.len() - 10);
            let version = u16::from_le_bytes([version[0], version[1]]);
            for _ in 0..300 {
                let mut body = body.to_vec();
                let at = random.below(body.len());
                body[at] = random.next() as u8;
                let mut commands = Vec::new();
                if rewrite(b"k", &seal(&body, version), 100, &mut commands).is_ok() {
                    arrays(&commands.concat());
                }
            }
        }
    }
}

/// A header and one entry that claims `claim`, the rest to be filled up by whatever follows.
fn lie(kind: u8, claim: &[u8]) -> Vec<u8> {
    [&b"REDIS0010\xfe\x00"[..], &[kind, 1, b'k'], claim].concat()
}

#[test]
fn a_length_that_lies_takes_no_more_than_was_fed() {
    let huge = [0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let gigabyte = [0x80, 0x3f, 0xff, 0xff, 0xff];
    let packed = [&[0xc3, 5][..], &gigabyte, b"abcde"].concat();
    for kind in (0..=21).filter(|kind| ![6, 8].contains(kind)) {
        for claim in [&huge[..], &gigabyte, &packed] {
            let mut splitter = Splitter::new(Options::default());
            splitter.feed(lie(kind, claim));
            let mut failed = false;
            for _ in 0..40 {
                while !failed {
                    match splitter.next() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => failed = true,
                    }
                }
                splitter.feed([0u8; 1000]);
            }
            assert!(splitter.buffered() < 100_000);
        }
    }
    assert!(LARGEST.load(Ordering::Relaxed) < ALLOCATION_MAX, "{}", LARGEST.load(Ordering::Relaxed));
}

#[test]
fn what_is_unknown_ends_the_reading_with_its_number() {
    for (bytes, at, says) in [
        (&b"RUBBISH01"[..], 0, "does not begin like an RDB"),
        (b"REDIS0099", 0, "version 99 is newer"),
        (b"VALKEY090", 0, "version 90 is newer"),
        (b"REDIS00x1", 0, "version is no number"),
        (b"REDIS0010\x63\x01k", 9, "type 99 of version 10 is unknown"),
        (b"REDIS0011\x16\x01k", 9, "type 22 of version 11 is unknown"),
        (b"REDIS0012\x06\x01k", 9, "type 6 of version 12 is unknown"),
        (b"REDIS0010\xf2", 9, "operation 242 is unknown"),
    ] {
        let error = split(bytes, Options::default(), || 1).unwrap_err();
        assert!(error.at == at && error.reason.contains(says), "{error}");
    }
}

#[test]
fn an_error_stays_and_tells_no_value() {
    let mut damaged = SAMPLES[0].to_vec();
    let at = damaged.windows(5).position(|window| window == b"hello").unwrap();
    damaged[at] = b'j';
    let mut splitter = Splitter::new(Options::default());
    splitter.feed(&damaged);
    let error = std::iter::from_fn(|| splitter.next().transpose()).find_map(Result::err).unwrap();
    assert!(error.reason.contains("checksum") && !error.to_string().contains("jello"));
    assert_eq!(splitter.next(), Err(error.clone()));
    assert_eq!(splitter.finish(), Err(error));
}

#[test]
fn a_module_value_is_skipped_and_named() {
    // "ReJSON-RL" version 3, as nine letters of six bits and ten bits of version.
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let index = |letter: u8| letters.iter().position(|&l| l == letter).unwrap() as u64;
    let id = b"ReJSON-RL".iter().fold(0u64, |id, &letter| id << 6 | index(letter)) << 10 | 3;
    let id = [&[0x81u8][..], &id.to_be_bytes()].concat();
    let data = [&b"\x02\x05\x01\x07\x04"[..], &[9; 8], b"\x03", &[9; 4], b"\x05\x03abc\x00"].concat();
    let rdb = [
        &b"REDIS0010\xf7"[..],
        &id,
        b"\x02\x01",
        &data,
        b"\xfc\x01\x00\x00\x00\x00\x00\x00\x00\x07\x01m",
        &id,
        &data,
        b"\x00\x01a\x01b\xff",
        &[0; 8],
    ]
    .concat();
    for chunk in [1, 1000] {
        let items = split(&rdb, SMALL, || chunk).unwrap();
        assert!(items.iter().any(|item| {
            matches!(item, Item::Aux { name, value } if name == "module-aux" && value == "ReJSON-RL version 3")
        }));
        let entries = entries(items);
        assert_eq!((entries.len(), entries[0].expire_at, entries[1].expire_at), (2, Some(1), None));
        let reason = "a value of the module type ReJSON-RL version 3".to_owned();
        assert_eq!(entries[0].value, Value::Left { reason });
    }
}

/// The values of a sample: name, DUMP payload, and the parts that the splitter makes of it.
fn values(sample: &[u8]) -> Vec<(Bytes, Bytes, Vec<Bytes>)> {
    let parts = entries(split(sample, CUT_ALL, || 1000).unwrap());
    let parts_of = |entry: &Entry| {
        let same = parts.iter().filter(|part| (part.db, &part.name) == (entry.db, &entry.name));
        let commands = same.map(|part| match &part.value {
            Value::Part { commands, .. } => commands.clone(),
            other => panic!("{other:?}"),
        });
        commands.collect()
    };
    let whole = entries(split(sample, Options::default(), || 1000).unwrap());
    let value = |entry: Entry| {
        let parts = parts_of(&entry);
        let Value::Dump(payload) = entry.value else { panic!("not whole") };
        (entry.name, payload, parts)
    };
    whole.into_iter().map(value).collect()
}

const CUT_ALL: Options = Options { part_bytes: 50, whole_bytes_max: 0 };

/// What comes out of `payload`, of which so many bytes were announced, in chunks of `chunk`.
fn cut(name: &Bytes, payload: &[u8], len: u64, version: u16, chunk: usize) -> Result<Vec<Cut>, RdbError> {
    let mut cutter = DumpCutter::new(name.clone(), len, version, CUT_ALL.part_bytes);
    let mut all = Vec::new();
    for bytes in payload.chunks(chunk) {
        cutter.feed(bytes);
        while let Some(cut) = cutter.next()? {
            all.push(cut);
        }
        assert!(cutter.buffered() < 100_000);
    }
    Ok(all)
}

fn version(payload: &[u8]) -> u16 {
    open(payload).unwrap().2
}

fn ends(cuts: &[Cut]) -> bool {
    matches!(cuts.last(), Some(Cut::End { .. }))
}

/// Every type and encoding that servers write: a re-read brings the same pieces as a snapshot.
#[test]
fn a_payload_is_cut_into_the_parts_that_a_splitter_makes_of_the_value() {
    for sample in SAMPLES {
        for (name, payload, parts) in values(sample) {
            let n = |n: usize| u32::try_from(n).unwrap();
            let part = |(i, commands): (usize, &Bytes)| Cut::Part { n: n(i), commands: commands.clone() };
            let end = Cut::End { parts: n(parts.len()) };
            let expected: Vec<Cut> = parts.iter().enumerate().map(part).chain([end]).collect();
            for chunk in [1, 2, 3, 7, 50, 333, usize::MAX] {
                // What follows the payload is left alone.
                let bytes = [&payload[..], b"\r\n$3\r\nabc"].concat();
                let cuts = cut(&name, &bytes, payload.len() as u64, version(&payload), chunk);
                assert_eq!(cuts.unwrap(), expected, "{name:?} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_payload_that_is_not_all_there_never_ends() {
    for sample in SAMPLES {
        for (name, payload, _) in values(sample) {
            let version = version(&payload);
            for end in (0..payload.len()).rev().take(400) {
                let cuts = cut(&name, &payload[..end], payload.len() as u64, version, 100).unwrap();
                assert!(!ends(&cuts), "{name:?} after {end} bytes");
                // Announced shorter than it is, it fails by its checksum.
                let error = cut(&name, &payload, end as u64, version, 100).unwrap_err();
                assert!(error.reason.contains("checksum") || error.reason.contains("too early"), "{error}");
            }
        }
    }
}

#[test]
fn a_payload_with_any_bit_flipped_fails() {
    for sample in SAMPLES {
        for (name, payload, _) in values(sample) {
            for bit in (0..payload.len() * 8).rev().take(4000) {
                let mut damaged = payload.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let len = payload.len() as u64;
                assert!(cut(&name, &damaged, len, version(&payload), 100).is_err(), "{name:?} bit {bit}");
            }
        }
    }
    assert!(LARGEST.load(Ordering::Relaxed) < ALLOCATION_MAX);
}

/// Sound by its checksum, but nothing that can be cut: it is named, and what follows it is found.
#[test]
fn a_payload_that_cannot_be_cut_is_left_with_its_reason() {
    let name = Bytes::from_static(b"k");
    // As in the test of a module's value: "ReJSON-RL" version 3.
    let module = [&b"\x07\x81\x45\xe2\x52\x38\xdb\x51\x2c\x03"[..], &[b'x'; 500]].concat();
    let module = seal(&module, 10);
    let trailing = seal(&[&b"\x00\x01b"[..], &[0; 50]].concat(), 10);
    for (payload, says) in [
        (module, "module type"),
        (seal(&[[99u8; 1].as_slice(), &[b'x'; 500]].concat(), 10), "type 99 of RDB version 10 is unknown"),
        (trailing, "goes on after its last element"),
        (seal(b"\x00\x05abcd", 10), "ends before its last element"),
        (seal(b"\x00\xfc12345678901", 10), "unknown encoding"),
    ] {
        for chunk in [1, 5, 10_000] {
            let cuts = cut(&name, &payload, payload.len() as u64, 10, chunk).unwrap();
            let Some(Cut::Left { reason }) = cuts.last() else { panic!("{says}: {cuts:?}") };
            assert!(reason.contains(says), "{reason}");
        }
    }
    let sound = seal(b"\x00\x05hello", 10);
    let error = cut(&name, &sound, sound.len() as u64, 11, 3).unwrap_err();
    assert!(error.reason.contains("another version"), "{error}");
}

#[test]
fn mutants_with_a_right_checksum_end_without_panic_or_large_allocation() {
    let mut random = Random(0xd0_0d);
    for sample in SAMPLES {
        for (name, payload, _) in values(sample) {
            let version = version(&payload);
            for _ in 0..200 {
                let mut body = payload[..payload.len() - 10].to_vec();
                for _ in 0..1 + random.below(3) {
                    let at = random.below(body.len());
                    body[at] = [random.next() as u8, 0x7f, 0x81, 0xc3, 0xff][random.below(5)];
                }
                let mutant = seal(&body, version);
                let _ = cut(&name, &mutant, mutant.len() as u64, version, 1 + random.below(200));
            }
        }
    }
    assert!(LARGEST.load(Ordering::Relaxed) < ALLOCATION_MAX, "{}", LARGEST.load(Ordering::Relaxed));
}
