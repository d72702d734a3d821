//! Any bytes as the DUMP payload of a large value, with a right checksum: no panic, no endless loop, no memory
//! beyond what was fed, and the same end whatever the chunks; where it ends as a value, the parts are what the
//! whole payload is rewritten to.
#![no_main]

use causeway_redis::rdb::{Cut, DumpCutter, rewrite, seal};
use libfuzzer_sys::fuzz_target;

const PART_BYTES: usize = 32;

/// All commands, and what came last.
fn cut(payload: &[u8], version: u16, chunk: usize) -> (Vec<u8>, Option<Cut>) {
    let mut cutter = DumpCutter::new("k".into(), payload.len() as u64, version, PART_BYTES);
    let (mut all, mut last) = (Vec::new(), None);
    for chunk in payload.chunks(chunk) {
        cutter.feed(chunk);
        while let Some(cut) = cutter.next().expect("the checksum is right") {
            match cut {
                Cut::Part { commands, .. } => all.extend_from_slice(&commands),
                end => last = Some(end),
            }
        }
    }
    (all, last)
}

fuzz_target!(|bytes: &[u8]| {
    for version in [11, 12, 80] {
        let payload = seal(bytes, version);
        if payload.len() <= causeway_redis::rdb::FOOTER_BYTES {
            return;
        }
        let (at_once, end) = cut(&payload, version, usize::MAX);
        let (in_chunks, same) = cut(&payload, version, 3);
        assert_eq!(end, same);
        if let Some(Cut::End { .. }) = end {
            assert_eq!(at_once, in_chunks);
            let mut whole = Vec::new();
            // A cut stream lacks pending entries without their entry.
            if rewrite(b"k", &payload, PART_BYTES, &mut whole).is_ok() && ![15, 19, 21].contains(&bytes[0]) {
                assert_eq!(at_once, whole.concat());
            }
        }
    }
});
