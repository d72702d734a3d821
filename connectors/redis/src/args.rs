//! Walks the arguments of commands that stand whole in memory, without copying any.

use std::ops::Range;

/// The arguments of one RESP array, as ranges of the bytes that it stands in.
#[derive(Debug, Clone)]
pub(crate) struct Args<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Args<'a> {
    /// Begins with the array at `at`; `None` if none begins there.
    pub(crate) fn at(bytes: &'a [u8], at: usize) -> Option<Args<'a>> {
        let (left, at) = header(bytes, at, b'*')?;
        Some(Args { bytes, at, left })
    }

    /// How many arguments are to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Where the array ends, once all arguments were taken.
    pub(crate) fn end(&self) -> usize {
        self.at
    }
}

/// Ends early where the bytes are no array of strings: compare what came with [`Args::left`] before.
impl Iterator for Args<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let (n, start) = header(self.bytes, self.at, b'$')?;
        let end = start.checked_add(n)?;
        if self.bytes.get(end..end.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        self.at = end + 2;
        Some(start..end)
    }
}

/// The two databases of a `SWAPDB`, where the RESP array `command` is one.
pub(crate) fn swapped(command: &[u8]) -> Option<(u32, u32)> {
    let mut args =
        Args::at(command, 0).filter(|args| args.left() == 3)?.map_while(|range| command.get(range));
    let swaps = args.next()?.eq_ignore_ascii_case(b"SWAPDB");
    let mut db = || std::str::from_utf8(args.next()?).ok()?.parse().ok();
    let databases = (db()?, db()?);
    swaps.then_some(databases)
}

/// `<kind><number>\r\n` at `at`: the number, and where the line ends.
fn header(bytes: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    if *bytes.get(at)? != kind {
        return None;
    }
    let mut at = at + 1;
    let mut n = 0usize;
    loop {
        match *bytes.get(at)? {
            digit @ b'0'..=b'9' => n = n.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?,
            b'\r' if *bytes.get(at + 1)? == b'\n' => return Some((n, at + 2)),
            _ => return None,
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_one_after_the_other_are_walked() {
        let bytes = b"*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n";
        let mut first = Args::at(bytes, 0).unwrap();
        let words: Vec<&[u8]> = first.by_ref().map(|r| &bytes[r]).collect();
        assert_eq!(words, [&b"DEL"[..], b"k"]);
        let second = Args::at(bytes, first.end()).unwrap();
        assert_eq!(second.left(), 1);
        assert_eq!(second.map(|r| &bytes[r]).collect::<Vec<_>>(), [b"PING"]);
    }

    #[test]
    fn what_is_no_command_ends_early() {
        for bytes in [&b""[..], b"*", b"*x\r\n", b"+OK\r\n", b"*99999999999999999999999\r\n"] {
            assert!(Args::at(bytes, 0).is_none());
        }
        for bytes in [&b"*1\r\n"[..], b"*1\r\n$3\r\nab\r\n", b"*1\r\n$18446744073709551615\r\na\r\n"] {
            assert_eq!(Args::at(bytes, 0).unwrap().next(), None);
        }
    }
}
