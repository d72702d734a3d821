//! Cuts one large value into parts, as its bytes arrive.

use bytes::Bytes;

use super::read::{Cursor, Length, Parse, Stop};
use super::walk::{TYPE_STRING, Walk};
use super::write::Writer;

/// A plain string is cut before it is held.
#[derive(Clone, Copy)]
enum Text {
    /// It is a string, but its length was not read yet.
    Unknown,
    /// Bytes still to come.
    Left(u64),
    /// It is of another type, or packed.
    No,
}

/// The cutting of one value.
pub(super) struct Cutter {
    walk: Walk,
    writer: Writer,
    text: Text,
    /// Whether the walk has ended and the writer, too.
    finished: bool,
    n: u32,
}

impl Cutter {
    /// Begins before the value, of type `kind`, of the key `name`.
    pub(super) fn new(kind: u8, walk: Walk, name: Bytes, part_bytes: usize) -> Self {
        let writer = Writer::new(name, part_bytes, part_bytes.max(1));
        let text = if kind == TYPE_STRING { Text::Unknown } else { Text::No };
        Cutter { walk, writer, text, finished: false, n: 0 }
    }

    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.writer.buffered()
    }

    /// Takes one element, or one piece of a string, from the beginning of `bytes`; gives its length.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Parse<usize> {
        let mut taken = 0;
        if let Text::Unknown = self.text {
            let mut cursor = Cursor::new(bytes);
            self.text = match cursor.length()? {
                Length::Plain(len) => Text::Left(len),
                Length::Encoded(_) => Text::No,
            };
            if let Text::Left(_) = self.text {
                taken = cursor.at();
            }
        } else if let Text::Left(left) = self.text {
            // All pieces but the last are of the same length, whatever the chunks they come in.
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(self.writer.piece_bytes);
            let piece = bytes.get(..piece).ok_or(Stop::Short)?;
            self.writer.text(piece)?;
            self.text = Text::Left(left - piece.len() as u64);
            taken = piece.len();
        } else {
            let (element, len) = self.walk.step(bytes)?;
            self.writer.put(&element)?;
            taken = len;
        }
        let done = match self.text {
            Text::Unknown => false,
            Text::Left(left) => left == 0 && self.writer.has_text(),
            Text::No => self.walk.done(),
        };
        if done {
            self.writer.finish()?;
            self.finished = true;
        }
        Ok(taken)
    }

    /// The next part, if one is complete: number, whether it is the last, commands.
    pub(super) fn part(&mut self) -> Option<(u32, bool, Bytes)> {
        let last = self.finished && self.writer.ready() == 1;
        let part = self.writer.pop()?;
        let n = self.n;
        self.n = self.n.wrapping_add(1);
        Some((n, last, part))
    }
}
