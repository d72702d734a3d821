//! Digests of 128 bits, whose parts come in any order or in one: what every store's canonical forms are put into.
//!
//! Every digest is `xxh3_128(tag ‖ count ‖ a ‖ b)`: one byte for the type, the number of elements (of bytes, for a
//! string), and two 128-bit numbers, all little-endian. Digests are compared within one run; they are no storage format.
//! An undo file holds some, and its version counts what changes here.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::{Xxh3, xxh3_128, xxh3_128_with_seed};

/// The first byte of every canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    String = 1,
    HyperLogLog = 2,
    List = 3,
    Set = 4,
    Zset = 5,
    Hash = 6,
    Stream = 7,
    Other = 8,
    Function = 9,
    Row = 10,
    Table = 11,
    Document = 12,
}

/// Two independent hash functions, so that one accidental weakness of a seed does not show in both sums.
pub(crate) const SEEDS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

/// A digest of elements whose order means nothing, in constant memory and in any order of arrival: their
/// number, and two sums modulo 2^128 of two 128-bit hashes of each.
///
/// Why sums: with XOR an element that comes twice cancels itself, and so do two equal changes in two
/// places, which is how other verifiers went blind (FF53). In a sum an element of multiplicity n counts n
/// times. Two different multisets agree only if the signed sum of the hashes of what they do not share is 0
/// in both sums at once; for hashes that behave randomly that is one chance in 2^256, cut to 2^128 by the
/// digest around it. It holds against accidents, not against somebody who chooses elements on purpose:
/// xxh3 is no cryptographic hash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unordered {
    count: u64,
    sums: [u128; 2],
}

impl Unordered {
    /// Adds one element in its own canonical form.
    pub(crate) fn add(&mut self, element: &[u8]) {
        self.count += 1;
        for (sum, seed) in self.sums.iter_mut().zip(SEEDS) {
            *sum = sum.wrapping_add(xxh3_128_with_seed(element, seed));
        }
    }

    /// How many elements were added.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest of all of them.
    pub(crate) fn digest(&self, tag: Tag) -> u128 {
        digest(tag, self.count, self.sums[0], self.sums[1])
    }
}

/// A digest of elements in their order, in constant memory.
#[derive(Clone)]
pub(crate) struct Ordered {
    count: u64,
    hash: Xxh3,
}

impl Ordered {
    /// Of nothing yet.
    pub(crate) fn new() -> Self {
        Ordered { count: 0, hash: Xxh3::with_seed(SEEDS[0]) }
    }

    /// Adds one element; its length goes before it, so that `ab, c` is not `a, bc`.
    pub(crate) fn add(&mut self, element: &[u8]) {
        self.count += 1;
        self.hash.update(&(element.len() as u64).to_le_bytes());
        self.hash.update(element);
    }

    /// Adds bytes as they are, counted one by one: for a string that comes in pages.
    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        self.count += bytes.len() as u64;
        self.hash.update(bytes);
    }

    /// How many elements (or bytes) were added.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest of all of them, with an unordered part beside it.
    pub(crate) fn digest(&self, tag: Tag, beside: &Unordered) -> u128 {
        let b = if beside.count == 0 { 0 } else { beside.digest(tag) };
        digest(tag, self.count, self.hash.digest128(), b)
    }
}

/// What every digest is of: see the forms of each store.
pub(crate) fn digest(tag: Tag, count: u64, a: u128, b: u128) -> u128 {
    let mut form = [0; 41];
    form[0] = tag as u8;
    form[1..9].copy_from_slice(&count.to_le_bytes());
    form[9..25].copy_from_slice(&a.to_le_bytes());
    form[25..].copy_from_slice(&b.to_le_bytes());
    xxh3_128(&form)
}

/// A digest that equals no other, not even the next one of the same key: for what changed under the reader.
pub(crate) fn never_equal() -> u128 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut all = Ordered::new();
    all.add(b"changed while it was read");
    all.add(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    all.digest(Tag::Other, &Unordered::default())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// That docs/DIGESTS.md tells this digest of this content.
    pub(crate) fn assert_told(content: &str, digest: u128) {
        let line = format!("| {content} | `{digest:032x}` |");
        assert!(include_str!("../../docs/DIGESTS.md").contains(&line), "docs/DIGESTS.md lacks {line}");
    }

    fn sum(elements: &[&[u8]]) -> u128 {
        let mut all = Unordered::default();
        elements.iter().for_each(|e| all.add(e));
        all.digest(Tag::Set)
    }

    /// FF53.
    #[test]
    fn what_comes_twice_does_not_cancel_itself() {
        assert_eq!(sum(&[b"a", b"b", b"c"]), sum(&[b"c", b"a", b"b"]));
        assert_ne!(sum(&[b"a", b"b", b"b"]), sum(&[b"a"]));
        assert_ne!(sum(&[b"a", b"b", b"b"]), sum(&[b"a", b"c", b"c"]));
    }
}
