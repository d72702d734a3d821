use super::super::samples;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn block(changes: &[Change], first: u64) -> Sealed {
    let mut writer = Writer::new(first, 4096);
    for change in changes {
        writer.push(change);
    }
    writer.finish(1, 2)
}

fn read(block: &Sealed) -> Result<Vec<Change>, Damage> {
    let mut reader = block.reader();
    std::iter::from_fn(|| reader.record().transpose()).collect()
}

/// A block with this body, and a right checksum.
fn forged(body: &[u8], count: u32) -> Sealed {
    let mut writer = Writer::new(0, 64);
    writer.bytes.extend_from_slice(body);
    writer.count = count;
    writer.finish(1, 2)
}

proptest! {
    #[test]
    fn a_block_reads_back(changes in vec(samples::change(), 0..20), first in 0..u64::MAX / 2) {
        let written = block(&changes, first);
        let stored = Sealed::check(written.bytes().clone(), 1, first).unwrap();
        prop_assert_eq!((stored.first(), stored.end()), (first, first + changes.len() as u64));
        prop_assert_eq!(read(&stored).unwrap(), changes);
    }

    /// FF42.
    #[test]
    fn a_changed_bit_is_found(
        changes in vec(samples::change(), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut bytes = block(&changes, 5).bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(Sealed::check(Bytes::from(bytes), 1, 5).is_err());
    }

    /// A right checksum over a wrong body: a defect, or a newer version. Never a panic.
    #[test]
    fn any_body_is_read_or_refused(body: Vec<u8>, count in 0..9u32) {
        let _ = read(&forged(&body, count));
    }
}

#[test]
fn a_cut_off_block_is_found() {
    let whole = block(&[samples::typical(1)], 0).bytes().clone();
    for length in 0..whole.len() {
        assert!(Sealed::check(whole.slice(..length), 1, 0).is_err());
    }
}

#[test]
fn a_block_in_another_place_is_found() {
    let bytes = block(&[samples::typical(1)], 7).bytes().clone();
    assert!(Sealed::check(bytes.clone(), 1, 8).is_err(), "under another offset");
    assert!(Sealed::check(bytes, 2, 7).is_err(), "in another partition");
}

#[test]
fn what_is_read_shares_the_blocks_memory() {
    let block = block(&[samples::typical(1)], 0);
    let changes = read(&block).unwrap();
    let inside = block.bytes().as_ptr_range();
    assert!(inside.contains(&changes[0].value.as_ref().unwrap().as_ptr()));
    assert!(inside.contains(&changes[0].key.name.as_ptr()));
}

#[test]
fn an_unknown_optional_field_is_passed_over() {
    let optional = [tag(OPTIONAL, BYTES), 2, 9, 9, tag(63, FLAG), tag(40, VARINT), 0x80, 1];
    let mut body = vec![2 + optional.len() as u8, OP, 2];
    body.extend(optional);
    assert_eq!(read(&forged(&body, 1)).unwrap()[0].op, Op::Put);
}

#[test]
fn what_a_newer_version_means_otherwise_is_refused() {
    for (body, reason) in [
        (vec![4, OP, 2, tag(31, VARINT), 1], "holds the unknown field 31: written by a newer version"),
        (vec![3, OP, 2, 3], "holds a field of an unknown kind: written by a newer version"),
        (vec![2, OP, 10], "has the unknown op 10"),
        (vec![0], "has no op"),
        (vec![3, OP, 2], "is cut off"),
        (vec![4, OP, 2, KEY, 1], "is cut off"),
        (vec![4, OP, 2, GROUP_N, 1], "is of no group"),
    ] {
        assert_eq!(read(&forged(&body, 1)), Err(damage(format!("record 0: {reason}"))));
    }
}

#[test]
fn a_block_of_a_newer_format_is_refused() {
    let mut bytes = block(&[], 0).bytes().to_vec();
    bytes[3] = 2;
    let Err(Damage(reason)) = Sealed::check(Bytes::from(bytes), 1, 0) else { panic!("it was read") };
    assert_eq!(reason, "a block of format 2, known is 1");
}

#[test]
fn a_typical_record_costs_little_beside_its_content() {
    let changes: Vec<_> = (0..1000).map(samples::typical).collect();
    let content: usize = changes
        .iter()
        .map(|c| c.key.name.len() + c.value.as_ref().unwrap().len() + c.tenant.as_ref().unwrap().len())
        .sum();
    let overhead = (block(&changes, 0).bytes().len() - content) / changes.len();
    assert!(overhead <= 24, "{overhead} bytes a record");
}
