//! Redis's packed collections, which an RDB holds as one string each: listpack, ziplist, intset, zipmap.
//!
//! [`Packed::next`] gives their elements in order. Every reading is checked against the blob's end, so
//! damaged ones end in an error. Sources: `listpack.c`, `ziplist.c`, `intset.c`, `zipmap.c` of Redis 7.0.

use super::read::{Atom, Cursor, Parse, Stop};

/// How a blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Listpack,
    Ziplist,
    Intset,
    Zipmap,
}

/// Goes through a blob's elements.
pub(super) struct Packed<'a> {
    packing: Packing,
    cursor: Cursor<'a>,
    /// Intset: bytes of a number, and numbers left.
    width: usize,
    left: u64,
    /// Zipmap: whether a value comes next.
    value: bool,
    done: bool,
}

/// A packed blob is complete: where it ends too early, it is damaged.
fn whole<T>(parse: Parse<T>) -> Parse<T> {
    parse.map_err(|stop| match stop {
        Stop::Short => Stop::bad("a packed collection ends too early"),
        bad => bad,
    })
}

/// Sign-extends the low `bits` of `number`.
fn signed(number: u64, bits: u32) -> i64 {
    let shift = 64 - bits;
    (number << shift) as i64 >> shift
}

impl<'a> Packed<'a> {
    /// Reads the header. Its own length and count fields are not needed, hence not trusted.
    pub(super) fn new(packing: Packing, blob: &'a [u8]) -> Parse<Self> {
        let mut cursor = Cursor::new(blob);
        let (mut width, mut left) = (0, 0);
        match packing {
            Packing::Listpack => _ = whole(cursor.take(6))?,
            Packing::Ziplist => _ = whole(cursor.take(10))?,
            Packing::Zipmap => _ = whole(cursor.take(1))?,
            Packing::Intset => {
                width = u32::from_le_bytes(whole(cursor.array())?) as usize;
                left = u64::from(u32::from_le_bytes(whole(cursor.array())?));
                if ![2, 4, 8].contains(&width) {
                    return Err(Stop::bad("an intset of an unknown width"));
                }
            }
        }
        Ok(Packed { packing, cursor, width, left, value: false, done: false })
    }

    /// The next element; `None` after the last one.
    pub(super) fn next(&mut self) -> Parse<Option<Atom<'a>>> {
        if self.done {
            return Ok(None);
        }
        let next = whole(match self.packing {
            Packing::Listpack => self.listpack(),
            Packing::Ziplist => self.ziplist(),
            Packing::Intset => self.intset(),
            Packing::Zipmap => self.zipmap(),
        })?;
        self.done = next.is_none();
        Ok(next)
    }

    /// The next element where one must be.
    pub(super) fn required(&mut self) -> Parse<Atom<'a>> {
        self.next()?.ok_or(Stop::bad("a packed collection lacks an element"))
    }

    /// The next element where a small whole number must be.
    pub(super) fn number(&mut self) -> Parse<i64> {
        match self.required()? {
            Atom::Int(number) => Ok(number),
            Atom::Text(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(Stop::bad("a packed collection holds a text where a number is due")),
        }
    }

    fn listpack(&mut self) -> Parse<Option<Atom<'a>>> {
        let cursor = &mut self.cursor;
        let start = cursor.at();
        let first = cursor.byte()?;
        let atom = match first {
            0..0x80 => Atom::Int(i64::from(first)),
            0x80..0xc0 => Atom::Text(cursor.take(usize::from(first & 0x3f))?),
            0xc0..0xe0 => {
                let number = u64::from(first & 0x1f) << 8 | u64::from(cursor.byte()?);
                Atom::Int(signed(number, 13))
            }
            0xe0..0xf0 => {
                let len = usize::from(first & 0x0f) << 8 | usize::from(cursor.byte()?);
                Atom::Text(cursor.take(len)?)
            }
            0xf0 => {
                let len = u32::from_le_bytes(cursor.array()?);
                Atom::Text(cursor.take(len as usize)?)
            }
            0xf1 => Atom::Int(i64::from(i16::from_le_bytes(cursor.array()?))),
            0xf2 => Atom::Int(int24(cursor)?),
            0xf3 => Atom::Int(i64::from(i32::from_le_bytes(cursor.array()?))),
            0xf4 => Atom::Int(i64::from_le_bytes(cursor.array()?)),
            0xff => return Ok(None),
            _ => return Err(Stop::bad("a listpack holds an unknown encoding")),
        };
        // The entry's length again, for reading backwards, 7 bits a byte.
        cursor.take(match cursor.at() - start {
            0..=127 => 1,
            128..16383 => 2,
            16383..2097151 => 3,
            2097151..268435455 => 4,
            _ => 5,
        })?;
        Ok(Some(atom))
    }

    fn ziplist(&mut self) -> Parse<Option<Atom<'a>>> {
        let cursor = &mut self.cursor;
        match cursor.byte()? {
            0xff => return Ok(None),
            0xfe => _ = cursor.take(4)?,
            _ => {}
        }
        let first = cursor.byte()?;
        Ok(Some(match first {
            0..0x40 => Atom::Text(cursor.take(usize::from(first))?),
            0x40..0x80 => {
                let len = usize::from(first & 0x3f) << 8 | usize::from(cursor.byte()?);
                Atom::Text(cursor.take(len)?)
            }
            0x80 => {
                let len = u32::from_be_bytes(cursor.array()?);
                Atom::Text(cursor.take(len as usize)?)
            }
            0xc0 => Atom::Int(i64::from(i16::from_le_bytes(cursor.array()?))),
            0xd0 => Atom::Int(i64::from(i32::from_le_bytes(cursor.array()?))),
            0xe0 => Atom::Int(i64::from_le_bytes(cursor.array()?)),
            0xf0 => Atom::Int(int24(cursor)?),
            0xfe => Atom::Int(i64::from(cursor.byte()? as i8)),
            0xf1..=0xfd => Atom::Int(i64::from(first & 0x0f) - 1),
            _ => return Err(Stop::bad("a ziplist holds an unknown encoding")),
        }))
    }

    fn intset(&mut self) -> Parse<Option<Atom<'a>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Ok(Some(Atom::Int(match self.width {
            2 => i64::from(i16::from_le_bytes(self.cursor.array()?)),
            4 => i64::from(i32::from_le_bytes(self.cursor.array()?)),
            _ => i64::from_le_bytes(self.cursor.array()?),
        })))
    }

    fn zipmap(&mut self) -> Parse<Option<Atom<'a>>> {
        let cursor = &mut self.cursor;
        let len = match cursor.byte()? {
            0xff if self.value => return Err(Stop::bad("a zipmap lacks a value")),
            0xff => return Ok(None),
            0xfe => u32::from_le_bytes(cursor.array()?) as usize,
            len => usize::from(len),
        };
        let free = if self.value { usize::from(cursor.byte()?) } else { 0 };
        let text = cursor.take(len)?;
        cursor.take(free)?;
        self.value = !self.value;
        Ok(Some(Atom::Text(text)))
    }
}

fn int24(cursor: &mut Cursor<'_>) -> Parse<i64> {
    let [a, b, c] = cursor.array()?;
    Ok(signed(u64::from(u32::from_le_bytes([a, b, c, 0])), 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<'a>(packing: Packing, blob: &'a [u8]) -> Parse<Vec<Atom<'a>>> {
        let mut packed = Packed::new(packing, blob)?;
        let mut atoms = Vec::new();
        while let Some(atom) = packed.next()? {
            atoms.push(atom);
        }
        Ok(atoms)
    }

    #[test]
    fn each_packing_gives_its_elements_and_no_prefix_of_it_does() {
        use Atom::{Int, Text};
        let blobs: [(Packing, &[u8], Vec<Atom<'_>>); 4] = [
            (
                Packing::Listpack,
                &[
                    0, 0, 0, 0, 5, 0, 7, 1, 0x82, b'h', b'i', 3, 0xdf, 0xff, 2, 0xf1, 0, 0x80, 3, 0xf2, 1, 0,
                    0x80, 4, 0xff,
                ],
                vec![Int(7), Text(b"hi"), Int(-1), Int(-32768), Int(-8388607)],
            ),
            (
                Packing::Ziplist,
                &[
                    0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 2, b'h', b'i', 4, 0xf1, 2, 0xfe, 0xff, 3, 0xc0, 0, 1,
                    0xff,
                ],
                vec![Text(b"hi"), Int(0), Int(-1), Int(256)],
            ),
            (Packing::Intset, &[2, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 5, 0], vec![Int(-1), Int(5)]),
            (Packing::Zipmap, &[1, 1, b'f', 2, 1, b'v', b'w', 0, 0xff], vec![Text(b"f"), Text(b"vw")]),
        ];
        for (packing, blob, atoms) in blobs {
            assert_eq!(all(packing, blob).unwrap(), atoms, "{packing:?}");
            for cut in 0..blob.len() {
                assert!(all(packing, &blob[..cut]).is_err(), "{packing:?} cut at {cut}");
            }
        }
    }
}
