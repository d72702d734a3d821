//! Cuts one large value into parts, as its bytes arrive.

use bytes::Bytes;

use super::lzf::Unpacker;
use super::read::{Cursor, LZF, Length, Parse, Stop};
use super::walk::{TYPE_STRING, Walk};
use super::write::Writer;

/// A string is cut before it is held.
enum Text {
    /// It is a string, but its length was not read yet.
    Unknown,
    /// Bytes still to come.
    Left(u64),
    /// It is compressed.
    Packed(Unpacker),
    /// It is of another type, or a number.
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
        let packed = if let Text::Packed(unpacker) = &self.text { unpacker.buffered() } else { 0 };
        self.writer.buffered() + packed
    }

    /// Takes one element, or one piece of a string, from the beginning of `bytes`; gives its length.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Parse<usize> {
        let piece_bytes = self.writer.piece_bytes;
        // All pieces of a string but the last are of the same length, whatever the chunks they come in.
        let (taken, done) = match &mut self.text {
            Text::Unknown => {
                let mut cursor = Cursor::new(bytes);
                self.text = match cursor.length()? {
                    Length::Plain(len) => Text::Left(len),
                    Length::Encoded(LZF) => Text::Packed(Unpacker::new(cursor.count()?, cursor.count()?)?),
                    Length::Encoded(_) => Text::No,
                };
                (if let Text::No = self.text { 0 } else { cursor.at() }, false)
            }
            Text::Left(left) => {
                let piece = usize::try_from(*left).unwrap_or(usize::MAX).min(piece_bytes);
                let piece = bytes.get(..piece).ok_or(Stop::Short)?;
                self.writer.text(piece)?;
                *left -= piece.len() as u64;
                (piece.len(), *left == 0)
            }
            Text::Packed(unpacker) => {
                let fed = unpacker.feed(bytes, piece_bytes)?;
                while let Some(piece) = unpacker.take(piece_bytes) {
                    self.writer.text(piece)?;
                }
                let done = unpacker.ended();
                if done && !self.writer.has_text() {
                    self.writer.text(b"")?;
                }
                (fed, done)
            }
            Text::No => {
                let (element, len) = self.walk.step(bytes)?;
                self.writer.put(&element)?;
                (len, self.walk.done())
            }
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
