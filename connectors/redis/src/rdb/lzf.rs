//! LZF, the compression of strings inside an RDB. Only unpacking: we never pack.

use super::read::{Parse, Stop};

/// What three packed bytes can at most become: a back reference of 7 + 255 + 2 bytes.
const RATIO_MAX: usize = 88;

/// How far a back reference reaches.
const BACK_MAX: usize = 1 << 13;
/// What was taken goes when so much of it is there besides what can be referred to.
const TAKEN_MAX: usize = 64 << 10;

const BAD: Stop = Stop::bad("a compressed string is damaged");
const TOO_LONG: Stop = Stop::bad("a compressed string claims a length that its bytes can't hold");

/// Appends the `len` bytes that `packed` stands for to `out`. The allocation is bounded by the packed
/// size, whatever `len` claims.
pub(super) fn unpack(packed: &[u8], len: usize, out: &mut Vec<u8>) -> Parse<()> {
    if len > packed.len().saturating_mul(RATIO_MAX) {
        return Err(TOO_LONG);
    }
    let start = out.len();
    out.reserve(len);
    let mut rest = packed;
    while !rest.is_empty() {
        let taken = instruction(rest, out, start).map_err(|_| BAD)?;
        if out.len() - start > len {
            return Err(BAD);
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    if out.len() - start == len { Ok(()) } else { Err(BAD) }
}

/// Does the first instruction of `packed`; `out` holds from `start` on what the ones before made. Gives its
/// length; [`Stop::Short`]: it isn't there whole, and nothing was done.
fn instruction(packed: &[u8], out: &mut Vec<u8>, start: usize) -> Parse<usize> {
    let byte = |at: usize| packed.get(at).copied().ok_or(Stop::Short);
    let control = byte(0)?;
    if control < 32 {
        let end = usize::from(control) + 2;
        out.extend_from_slice(packed.get(1..end).ok_or(Stop::Short)?);
        return Ok(end);
    }
    let (mut count, mut last) = (usize::from(control >> 5), 1);
    if count == 7 {
        count += usize::from(byte(1)?);
        last = 2;
    }
    let back = (usize::from(control & 0x1f) << 8) + usize::from(byte(last)?) + 1;
    let count = count + 2;
    let from = out.len().checked_sub(back).filter(|&from| from >= start).ok_or(BAD)?;
    if back >= count {
        out.extend_from_within(from..from + count);
    } else {
        // The reference overlaps what it writes: bytes repeat with period `back`.
        for i in 0..count {
            let byte = *out.get(from + i).ok_or(BAD)?;
            out.push(byte);
        }
    }
    Ok(last + 1)
}

/// Unpacks a string of any length while its packed bytes come.
pub(super) struct Unpacker {
    /// Packed bytes to come.
    packed: u64,
    /// Unpacked bytes to come.
    left: u64,
    /// What was unpacked last.
    out: Vec<u8>,
    /// So much of it was taken.
    taken: usize,
}

impl Unpacker {
    pub(super) fn new(packed: u64, len: u64) -> Parse<Unpacker> {
        if len > packed.saturating_mul(RATIO_MAX as u64) {
            return Err(TOO_LONG);
        }
        Ok(Unpacker { packed, left: len, out: Vec::new(), taken: 0 })
    }

    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.out.len()
    }

    /// Whether all packed bytes came.
    pub(super) fn ended(&self) -> bool {
        self.packed == 0
    }

    /// Takes instructions from the beginning of `bytes` until about `wanted` bytes can be taken; gives the length.
    pub(super) fn feed(&mut self, bytes: &[u8], wanted: usize) -> Parse<usize> {
        let whole = usize::try_from(self.packed).is_ok_and(|packed| packed <= bytes.len());
        let bytes = if whole { bytes.get(..self.packed as usize).unwrap_or(bytes) } else { bytes };
        let (mut fed, before) = (0, self.out.len());
        while fed < bytes.len() && self.out.len() - self.taken < wanted {
            match instruction(bytes.get(fed..).unwrap_or_default(), &mut self.out, 0) {
                Ok(len) => fed += len,
                Err(Stop::Short) if whole => return Err(BAD),
                Err(Stop::Short) => break,
                Err(bad) => return Err(bad),
            }
        }
        if fed == 0 && !self.ended() {
            return Err(Stop::Short);
        }
        self.packed -= fed as u64;
        self.left = self.left.checked_sub((self.out.len() - before) as u64).ok_or(BAD)?;
        if self.ended() && self.left > 0 { Err(BAD) } else { Ok(fed) }
    }

    /// Takes the next `len` bytes, or, of all that came, the rest if it is less.
    pub(super) fn take(&mut self, len: usize) -> Option<&[u8]> {
        if self.taken > BACK_MAX + TAKEN_MAX {
            self.out.drain(..self.taken - BACK_MAX);
            self.taken = BACK_MAX;
        }
        let ready = self.out.len() - self.taken;
        if ready < len && (ready == 0 || !self.ended()) {
            return None;
        }
        let from = self.taken;
        self.taken += ready.min(len);
        self.out.get(from..self.taken)
    }
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

    /// Random instructions, and what they stand for.
    fn random(seed: u64) -> (Vec<u8>, Vec<u8>) {
        let mut seed = seed;
        let mut next = |end: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 20) as usize % end
        };
        let (mut packed, mut out) = (vec![0, b'a'], vec![b'a']);
        while out.len() < 200_000 {
            if next(3) == 0 {
                let literal: Vec<u8> = (0..1 + next(32)).map(|_| next(256) as u8).collect();
                packed.push(literal.len() as u8 - 1);
                packed.extend_from_slice(&literal);
                out.extend_from_slice(&literal);
            } else {
                let (back, count) = (next(out.len().min(BACK_MAX)), 1 + next(262));
                let high = (back >> 8) as u8;
                if count < 7 {
                    packed.push((count as u8) << 5 | high);
                } else {
                    packed.extend([7 << 5 | high, (count - 7) as u8]);
                }
                packed.push(back as u8);
                (0..count + 2).for_each(|_| out.push(out[out.len() - back - 1]));
            }
        }
        (packed, out)
    }

    #[test]
    fn what_comes_in_chunks_unpacks_to_the_same() {
        for (seed, chunk, piece) in [(1, 1, 1000), (2, 7, 1), (3, 5000, 70_000), (4, usize::MAX, 3333)] {
            let (packed, expected) = random(seed);
            let mut whole = Vec::new();
            unpack(&packed, expected.len(), &mut whole).unwrap();
            assert!(whole == expected);
            let mut unpacker = Unpacker::new(packed.len() as u64, expected.len() as u64).unwrap();
            let (mut out, mut buf) = (Vec::new(), Vec::new());
            for bytes in packed.chunks(chunk) {
                buf.extend_from_slice(bytes);
                while !unpacker.ended() {
                    match unpacker.feed(&buf, piece) {
                        Ok(len) => _ = buf.drain(..len),
                        Err(Stop::Short) => break,
                        Err(Stop::Bad(reason)) => panic!("{reason}"),
                    }
                    while let Some(piece) = unpacker.take(piece) {
                        out.extend_from_slice(piece);
                    }
                    assert!(unpacker.buffered() < BACK_MAX + TAKEN_MAX + 2 * piece + 1000);
                }
            }
            assert!(out == expected && buf.is_empty());
        }
    }

    #[test]
    fn damage_in_what_comes_in_chunks_is_found() {
        let feed = |packed: &[u8], len| {
            let mut unpacker = Unpacker::new(packed.len() as u64, len)?;
            unpacker.feed(packed, usize::MAX)
        };
        assert!(feed(&[1, b'a', b'b', 0x60, 1], 7).is_ok());
        for (packed, len) in [
            (&[1, b'a', b'b', 0x60, 1][..], 6),
            (&[1, b'a', b'b', 0x60, 1], 8),
            (&[1, b'a', b'b', 0x60, 2], 7),
            (&[1, b'a', b'b', 0x60], 7),
            (&[3, b'a', b'b'], 4),
            (&[0, b'a'], 1 << 40),
        ] {
            assert!(matches!(feed(packed, len), Err(Stop::Bad(_))), "{packed:?} {len}");
        }
    }
}
