//! The smallest readings: lengths, strings, numbers. Sources: `rdb.h` and `rdb.c` of Redis 7.0.

use std::borrow::Cow;

use super::lzf;

/// The longest single string (member, field, item, list node) that is held in memory: twice Redis's
/// default `proto-max-bulk-len`. A string *value* may be longer: it is cut before it is held.
pub const ELEMENT_BYTES_MAX: u64 = 1 << 30;

/// Why a reading stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The bytes end before it does. Try again with more; nothing was taken.
    Short,
    /// It can't be right.
    Bad(Cow<'static, str>),
}

impl Stop {
    pub(super) const fn bad(reason: &'static str) -> Stop {
        Stop::Bad(Cow::Borrowed(reason))
    }
}

pub(super) type Parse<T> = Result<T, Stop>;

/// A stream's entry id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

/// A text or a number that stands for its decimal text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Atom<'a> {
    Text(&'a [u8]),
    Int(i64),
}

/// A string as it stands in the RDB.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    Plain(&'a [u8]),
    Int(i64),
    Lzf { packed: &'a [u8], len: usize },
}

impl<'a> Raw<'a> {
    /// The text or number. A compressed one is unpacked into `scratch`, whose content is replaced.
    pub(super) fn atom<'s>(&self, scratch: &'s mut Vec<u8>) -> Parse<Atom<'s>>
    where
        'a: 's,
    {
        match *self {
            Raw::Plain(text) => Ok(Atom::Text(text)),
            Raw::Int(number) => Ok(Atom::Int(number)),
            Raw::Lzf { packed, len } => {
                scratch.clear();
                lzf::unpack(packed, len, scratch)?;
                Ok(Atom::Text(scratch))
            }
        }
    }

    /// The bytes; a number as decimal text.
    pub(super) fn text<'s>(&self, scratch: &'s mut Vec<u8>) -> Parse<&'s [u8]>
    where
        'a: 's,
    {
        if let Raw::Int(number) = *self {
            scratch.clear();
            push_int(number, scratch);
            return Ok(scratch);
        }
        match self.atom(scratch)? {
            Atom::Text(text) => Ok(text),
            Atom::Int(_) => Err(Stop::bad("a number where a text is due")),
        }
    }
}

/// Appends the decimal text of `number`.
pub(super) fn push_int(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    push_uint(number.unsigned_abs(), out);
}

/// Appends the decimal text of `number`.
pub(super) fn push_uint(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut left = number;
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        start = at;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

/// The mark of a compressed string: its packed length, its own, and the packed bytes follow.
pub(super) const LZF: u8 = 3;

/// A length, or the mark of a specially encoded string.
pub(super) enum Length {
    Plain(u64),
    Encoded(u8),
}

/// Reads forward through bytes that may end too early.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// How many bytes were taken.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, len: usize) -> Parse<&'a [u8]> {
        let end = self.at.checked_add(len).ok_or(Stop::Short)?;
        let taken = self.bytes.get(self.at..end).ok_or(Stop::Short)?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Parse<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Stop::Short)
    }

    pub(super) fn byte(&mut self) -> Parse<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Stop::Short)?;
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn u64_le(&mut self) -> Parse<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn length(&mut self) -> Parse<Length> {
        let first = self.byte()?;
        Ok(Length::Plain(match first >> 6 {
            0 => u64::from(first),
            1 => u64::from(first & 0x3f) << 8 | u64::from(self.byte()?),
            2 => match first {
                0x80 => u64::from(u32::from_be_bytes(self.array()?)),
                0x81 => u64::from_be_bytes(self.array()?),
                _ => return Err(Stop::bad("an unknown form of length")),
            },
            _ => return Ok(Length::Encoded(first & 0x3f)),
        }))
    }

    /// A length that counts or is a number; the special encodings of strings are not allowed here.
    pub(super) fn count(&mut self) -> Parse<u64> {
        match self.length()? {
            Length::Plain(count) => Ok(count),
            Length::Encoded(_) => Err(Stop::bad("a string's encoding where a count is due")),
        }
    }

    /// The byte count of a string that is held whole.
    fn string_len(&mut self, len: u64) -> Parse<usize> {
        if len > ELEMENT_BYTES_MAX {
            return Err(Stop::bad("a string longer than 1 GiB, which no element may be"));
        }
        usize::try_from(len).map_err(|_| Stop::bad("a string too long for this machine"))
    }

    pub(super) fn string(&mut self) -> Parse<Raw<'a>> {
        match self.length()? {
            Length::Plain(len) => {
                let len = self.string_len(len)?;
                Ok(Raw::Plain(self.take(len)?))
            }
            Length::Encoded(0) => Ok(Raw::Int(i64::from(self.byte()? as i8))),
            Length::Encoded(1) => Ok(Raw::Int(i64::from(i16::from_le_bytes(self.array()?)))),
            Length::Encoded(2) => Ok(Raw::Int(i64::from(i32::from_le_bytes(self.array()?)))),
            Length::Encoded(LZF) => {
                let packed = self.count()?;
                let packed = self.string_len(packed)?;
                let len = self.count()?;
                let len = self.string_len(len)?;
                Ok(Raw::Lzf { packed: self.take(packed)?, len })
            }
            Length::Encoded(_) => Err(Stop::bad("an unknown encoding of a string")),
        }
    }

    /// A score as text with one length byte, of sorted sets before Redis 3.2's binary ones.
    pub(super) fn double_text(&mut self) -> Parse<f64> {
        match self.byte()? {
            253 => Ok(f64::NAN),
            254 => Ok(f64::INFINITY),
            255 => Ok(f64::NEG_INFINITY),
            len => std::str::from_utf8(self.take(usize::from(len))?)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or(Stop::bad("a score that is no number")),
        }
    }

    /// A raw 16-byte stream id.
    pub(super) fn stream_id(&mut self) -> Parse<StreamId> {
        Ok(StreamId { ms: u64::from_be_bytes(self.array()?), seq: u64::from_be_bytes(self.array()?) })
    }

    /// A stream id as two lengths.
    pub(super) fn stream_id_counts(&mut self) -> Parse<StreamId> {
        Ok(StreamId { ms: self.count()?, seq: self.count()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_the_standard_library_prints_them() {
        for number in [0, 9, 10, -1, i64::MAX, i64::MIN, 1_000_000] {
            let mut out = Vec::new();
            push_int(number, &mut out);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }

    #[test]
    fn every_prefix_of_a_string_is_short_and_not_bad() {
        let forms: [&[u8]; 5] = [
            &[3, 1, 2, 3],
            &[0x40, 2, 1, 2],
            &[0x80, 0, 0, 0, 1, 7],
            &[0xc2, 1, 2, 3, 4],
            &[0xc3, 2, 1, 0, 65],
        ];
        for form in forms {
            for cut in 0..form.len() {
                assert!(matches!(Cursor::new(&form[..cut]).string(), Err(Stop::Short)));
            }
            let mut cursor = Cursor::new(form);
            assert!(cursor.string().is_ok());
            assert_eq!(cursor.at(), form.len());
        }
    }
}
