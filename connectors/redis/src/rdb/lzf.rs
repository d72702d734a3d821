//! LZF, the compression of strings inside an RDB. Only unpacking: we never pack.

use super::read::{Parse, Stop};

/// What three packed bytes can at most become: a back reference of 7 + 255 + 2 bytes.
const RATIO_MAX: usize = 88;

/// Appends the `len` bytes that `packed` stands for to `out`. The allocation is bounded by the packed
/// size, whatever `len` claims.
pub(super) fn unpack(packed: &[u8], len: usize, out: &mut Vec<u8>) -> Parse<()> {
    const BAD: Stop = Stop::bad("a compressed string is damaged");
    if len > packed.len().saturating_mul(RATIO_MAX) {
        return Err(Stop::bad("a compressed string claims a length that its bytes can't hold"));
    }
    let start = out.len();
    out.reserve(len);
    let mut rest = packed;
    while let Some((&control, after)) = rest.split_first() {
        rest = after;
        if control < 32 {
            let (literal, after) = rest.split_at_checked(usize::from(control) + 1).ok_or(BAD)?;
            out.extend_from_slice(literal);
            rest = after;
        } else {
            let mut count = usize::from(control >> 5);
            if count == 7 {
                let (&more, after) = rest.split_first().ok_or(BAD)?;
                count += usize::from(more);
                rest = after;
            }
            let (&low, after) = rest.split_first().ok_or(BAD)?;
            rest = after;
            let back = (usize::from(control & 0x1f) << 8) + usize::from(low) + 1;
            let count = count + 2;
            let from = out.len().checked_sub(back).filter(|&from| from >= start).ok_or(BAD)?;
            if out.len() - start + count > len {
                return Err(BAD);
            }
            if back >= count {
                out.extend_from_within(from..from + count);
            } else {
                // The reference overlaps what it writes: bytes repeat with period `back`.
                for i in 0..count {
                    let byte = *out.get(from + i).ok_or(BAD)?;
                    out.push(byte);
                }
            }
        }
        if out.len() - start > len {
            return Err(BAD);
        }
    }
    if out.len() - start == len { Ok(()) } else { Err(BAD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_references_and_overlaps_unpack() {
        // "ab", then 3 + 2 bytes from 2 back (overlapping).
        let mut out = b"x".to_vec();
        unpack(&[1, b'a', b'b', 0x60, 1], 7, &mut out).unwrap();
        assert_eq!(out, b"xabababa");
        // The long form: 7 + 3 + 2 bytes of one.
        out.clear();
        unpack(&[0, b'z', 0xe0, 3, 0], 13, &mut out).unwrap();
        assert_eq!(out, b"zzzzzzzzzzzzz");
    }

    #[test]
    fn lies_about_the_length_are_refused_before_memory_is_taken() {
        for (packed, len) in
            [(&[0u8, b'z'][..], usize::MAX), (&[0, b'z'], 2), (&[1, b'z'], 2), (&[0x20, 9], 3)]
        {
            let mut out = Vec::new();
            assert!(unpack(packed, len, &mut out).is_err());
            assert!(out.capacity() < 1000);
        }
    }
}
