//! What a key holds, brought into one canonical form and digested: 128 bits that are equal where the
//! logical content is equal, whatever its encoding, page size, server version or order of arrival.
//!
//! What `a` and `b` of a digest are:
//!
//! | type | a, b |
//! | --- | --- |
//! | string | a = xxh3 of the bytes, b = 0 |
//! | HyperLogLog | a = xxh3 of the header's unused bytes and the 16,384 registers, one byte each; b = 0 |
//! | list | a = xxh3 of `len ‖ bytes` of each element in order; b = 0 |
//! | set, hash, sorted set | the two sums of [`Unordered`] over the elements' own forms |
//! | stream | a = xxh3 of the entries in order, then of last id and counters; b = sum over the groups |
//! | other | a = xxh3 of the DUMP payload without its version and checksum; b = 0 |

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::digest::{Ordered, SEEDS, Tag, Unordered, digest};

/// The digest of a whole string, and what it is: a HyperLogLog is told by its content, as Redis does.
pub(crate) fn text(bytes: &[u8]) -> (Tag, u128) {
    match registers(bytes) {
        Some(registers) => {
            let mut all = Ordered::new();
            all.add(bytes.get(5..8).unwrap_or_default());
            all.add(&registers);
            (Tag::HyperLogLog, all.digest(Tag::HyperLogLog, &Unordered::default()))
        }
        None => {
            let hash = xxh3_128_with_seed(bytes, SEEDS[0]);
            (Tag::String, digest(Tag::String, bytes.len() as u64, hash, 0))
        }
    }
}

/// Writes a hash's field in canonical form into `form`: `len(field) ‖ field ‖ value ‖ expire-at`.
/// `expire_at` is in milliseconds since 1970, `None`: never.
pub(crate) fn field(form: &mut Vec<u8>, field: &[u8], value: &[u8], expire_at: Option<u64>) {
    form.clear();
    form.extend_from_slice(&(field.len() as u64).to_le_bytes());
    form.extend_from_slice(field);
    form.extend_from_slice(value);
    form.extend_from_slice(&expire_at.map_or(u64::MAX, |at| at).to_le_bytes());
}

/// Writes a sorted set's member in canonical form into `form`: `score ‖ member`, the score as the bits of
/// its double. -0 is 0, and there is one NaN (which Redis does not store).
pub(crate) fn scored(form: &mut Vec<u8>, member: &[u8], score: f64) {
    let score = if score == 0.0 {
        0.0
    } else if score.is_nan() {
        f64::NAN
    } else {
        score
    };
    form.clear();
    form.extend_from_slice(&score.to_bits().to_le_bytes());
    form.extend_from_slice(member);
}

const REGISTERS: usize = 16_384;
const HEADER: usize = 16;

/// The registers of a HyperLogLog, the same for its sparse and its dense form; `None` if `bytes` are none.
/// The header's cached cardinality (bytes 8 to 15) is no content: any PFCOUNT may change it.
///
/// Source: the comment at the head of Redis's `hyperloglog.c`.
fn registers(bytes: &[u8]) -> Option<Vec<u8>> {
    if !bytes.starts_with(b"HYLL") {
        return None;
    }
    let body = bytes.get(HEADER..)?;
    match bytes.get(4)? {
        0 => dense(body),
        1 => sparse(body),
        _ => None,
    }
}

/// 6 bits a register, the first one in the lowest bits of the first byte.
fn dense(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() != REGISTERS * 6 / 8 {
        return None;
    }
    let mut registers = Vec::with_capacity(REGISTERS);
    for three in body.chunks_exact(3) {
        let bits = three.iter().rev().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        registers.extend((0..4).map(|i| (bits >> (6 * i) & 63) as u8));
    }
    Some(registers)
}

/// Runs: `00len`, `01len len` of zeros, `1value len` of a value; each length and value is one more than
/// what is written.
fn sparse(body: &[u8]) -> Option<Vec<u8>> {
    let mut registers = Vec::with_capacity(REGISTERS);
    let mut bytes = body.iter().copied();
    while let Some(byte) = bytes.next() {
        let (value, len) = match byte {
            0x00..=0x3f => (0, usize::from(byte) + 1),
            0x40..=0x7f => (0, (usize::from(byte & 0x3f) << 8 | usize::from(bytes.next()?)) + 1),
            0x80..=0xff => ((byte >> 2 & 0x1f) + 1, usize::from(byte & 3) + 1),
        };
        if registers.len() + len > REGISTERS {
            return None;
        }
        registers.resize(registers.len() + len, value);
    }
    (registers.len() == REGISTERS).then_some(registers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn where_one_element_ends_is_content() {
        let list = |elements: &[&[u8]]| {
            let mut all = Ordered::new();
            elements.iter().for_each(|e| all.add(e));
            all.digest(Tag::List, &Unordered::default())
        };
        assert_ne!(list(&[b"ab", b"c"]), list(&[b"a", b"bc"]));
        let of = |f: &[u8], v: &[u8]| {
            let mut form = Vec::new();
            field(&mut form, f, v, None);
            form
        };
        assert_ne!(of(b"ab", b"c"), of(b"a", b"bc"));
    }

    #[test]
    fn zero_has_one_sign_and_the_next_double_is_another() {
        let of = |score: f64| {
            let mut form = Vec::new();
            scored(&mut form, b"m", score);
            form
        };
        assert_eq!(of(0.0), of(-0.0));
        assert_ne!(of(1.0), of(f64::from_bits(1.0f64.to_bits() + 1)));
    }

    /// docs/DIGESTS.md names them.
    #[test]
    fn vectors() {
        let set = |elements: &[&[u8]]| {
            let mut all = Unordered::default();
            elements.iter().for_each(|e| all.add(e));
            all.digest(Tag::Set)
        };
        let mut list = Ordered::new();
        [&b"a"[..], b"b"].iter().for_each(|e| list.add(e));
        for (content, digest) in [
            ("string `abc`", text(b"abc").1),
            ("string, empty", text(b"").1),
            ("list `a`, `b`", list.digest(Tag::List, &Unordered::default())),
            ("set `a`, `b`", set(&[b"b", b"a"])),
        ] {
            crate::digest::tests::assert_told(content, digest);
        }
    }

    fn dense_of(registers: &[u8]) -> Vec<u8> {
        let mut bytes = b"HYLL\0\0\0\0".to_vec();
        bytes.extend_from_slice(&[7; 8]);
        for four in registers.chunks_exact(4) {
            let bits = four.iter().rev().fold(0u32, |bits, &r| bits << 6 | u32::from(r));
            bytes.extend_from_slice(&bits.to_le_bytes()[..3]);
        }
        bytes
    }

    fn sparse_of(registers: &[u8]) -> Vec<u8> {
        let mut bytes = b"HYLL\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&[0; 8]);
        for &r in registers {
            bytes.push(if r == 0 { 0 } else { 0x80 | (r - 1) << 2 });
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_hyperloglog_is_its_registers(ones in prop::collection::vec((0..REGISTERS, 1u8..=32), 0..50)) {
            let mut all = vec![0; REGISTERS];
            for (at, value) in ones {
                all[at] = value;
            }
            prop_assert_eq!(registers(&dense_of(&all)), Some(all.clone()));
            prop_assert_eq!(text(&dense_of(&all)), text(&sparse_of(&all)));
            let before = text(&dense_of(&all));
            all[77] ^= 1;
            prop_assert_ne!(before, text(&dense_of(&all)));
        }

        #[test]
        fn any_bytes_have_a_digest(mut bytes in prop::collection::vec(any::<u8>(), 0..64), sparse in any::<bool>()) {
            if sparse {
                bytes.splice(0..0, *b"HYLL\x01\0\0\0........");
            }
            let before = text(&bytes);
            bytes.push(0);
            prop_assert_ne!(before, text(&bytes));
        }

        #[test]
        fn pages_do_not_show(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..600) {
            let mut paged = Ordered::new();
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            paged.add_bytes(head);
            paged.add_bytes(tail);
            prop_assert_eq!(text(&bytes), (Tag::String, paged.digest(Tag::String, &Unordered::default())));
        }
    }
}
