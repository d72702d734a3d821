//! Any bytes: no panic, no endless loop, no memory beyond what was fed; and the same items, whatever the
//! chunks. Begin with the samples: `cargo fuzz run rdb fuzz/corpus/rdb tests/rdb_samples`.
#![no_main]

use causeway_redis::rdb::{Item, Options, Splitter, Value, rewrite, seal};
use libfuzzer_sys::fuzz_target;

fn items(bytes: &[u8], options: Options, chunk: usize) -> (Vec<Item>, bool) {
    let mut splitter = Splitter::new(options);
    let mut items = Vec::new();
    for chunk in bytes.chunks(chunk) {
        splitter.feed(chunk);
        loop {
            match splitter.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(_) => return (items, false),
            }
        }
    }
    (items, true)
}

fuzz_target!(|bytes: &[u8]| {
    // Without the checksum, which no mutation would get right.
    let mut bytes = bytes.to_vec();
    let sum = bytes.len().saturating_sub(8);
    bytes[sum..].fill(0);
    for whole_bytes_max in [0, 64, 1 << 20] {
        let options = Options { part_bytes: 32, whole_bytes_max };
        let at_once = items(&bytes, options, usize::MAX);
        let in_chunks = items(&bytes, options, 3);
        // Where it fails, how many parts came before depends on the chunks.
        assert!(at_once.1 == in_chunks.1 && (!at_once.1 || at_once.0 == in_chunks.0));
        for item in at_once.0 {
            if let Item::Entry(entry) = item
                && let Value::Dump(payload) = entry.value
            {
                let _ = rewrite(&entry.name, &payload, 32, &mut Vec::new());
            }
        }
    }
    for version in [11, 12, 80] {
        let _ = rewrite(b"k", &seal(&bytes, version), 32, &mut Vec::new());
    }
});
