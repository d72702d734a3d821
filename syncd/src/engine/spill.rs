//! Own changes that are too many for memory, in a file: while the line is cut for hours, that are all of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Buf;
use causeway_core::{Class, Seq};

use super::order::Version;
use super::recent::Touch;

/// A file of touches, each with the place of the one before it whose key falls into the same bucket. The file has no
/// name, so that nothing is left of it when the process ends: what it holds stands in the log, too.
#[derive(Debug)]
pub(crate) struct Spill {
    dir: PathBuf,
    file: Option<File>,
    /// Of each bucket, one above the place of the touch that was added last; 0: none. Empty without a file.
    heads: Vec<u64>,
    buckets: usize,
    /// Two bits for each digest in the file: most keys are not there.
    filter: Vec<u64>,
    /// Touches in the file.
    len: u64,
    /// Those before stand before everything that comes in the stream.
    before_stream: u64,
    /// Behind the newest of them.
    end: Seq,
}

/// `digest 16, before 8, seq 8, seen 8, at 8, version 16, element 8, class 1, flags 1`, little-endian.
const TOUCH_BYTES: usize = 74;

impl Spill {
    /// Of a file in `dir`; `buckets` take 10 bytes each once there is one.
    pub(crate) fn new(dir: PathBuf, buckets: usize) -> Spill {
        Spill {
            dir,
            file: None,
            heads: Vec::new(),
            filter: Vec::new(),
            buckets: buckets.max(1),
            len: 0,
            before_stream: 0,
            end: Seq(0),
        }
    }

    /// How many it holds.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Behind the newest that it holds.
    pub(crate) fn end(&self) -> Seq {
        self.end
    }

    /// Adds `touched`, in any order.
    ///
    /// # Errors
    ///
    /// The file's: nothing was added.
    pub(crate) fn add(&mut self, touched: &[(u128, Touch)]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.dir)?),
        };
        if self.filter.is_empty() {
            self.filter = vec![0; self.buckets.div_ceil(4)];
        }
        if self.heads.is_empty() {
            self.heads = vec![0; self.buckets];
        }
        let mut bytes = Vec::with_capacity(touched.len() * TOUCH_BYTES);
        for ((digest, touch), place) in touched.iter().zip(self.len..) {
            let (word, bits) = bits(*digest, self.filter.len());
            self.filter.get_mut(word).into_iter().for_each(|word| *word |= bits);
            let before = self.heads.get_mut(bucket(*digest, self.buckets));
            let before = before.map_or(0, |head| std::mem::replace(head, place + 1));
            encode(&mut bytes, *digest, before, touch);
        }
        if let Err(error) = file.write_all_at(&bytes, self.len * TOUCH_BYTES as u64) {
            for ((digest, _), touch) in touched.iter().zip(bytes.chunks(TOUCH_BYTES)).rev() {
                let (_, before, _) = decode(touch)?;
                self.heads.get_mut(bucket(*digest, self.buckets)).into_iter().for_each(|head| *head = before);
            }
            return Err(error);
        }
        self.len += touched.len() as u64;
        self.end = touched.iter().map(|(_, touch)| touch.seq.next()).fold(self.end, Seq::max);
        Ok(())
    }

    /// Those of a key with `from` or above, in no order.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn of(&self, digest: u128, from: Seq) -> io::Result<Vec<Touch>> {
        let mut found = Vec::new();
        let Some(file) = &self.file else { return Ok(found) };
        let (word, bits) = bits(digest, self.filter.len());
        if self.filter.get(word).is_none_or(|word| word & bits != bits) {
            return Ok(found);
        }
        let mut next = self.heads.get(bucket(digest, self.buckets)).copied().unwrap_or_default();
        let mut bytes = [0; TOUCH_BYTES];
        while let Some(place) = next.checked_sub(1) {
            file.read_exact_at(&mut bytes, place * TOUCH_BYTES as u64)?;
            let (of, before, mut touch) = decode(&bytes)?;
            if of == digest && touch.seq >= from {
                if place < self.before_stream {
                    touch.at = 0;
                }
                found.push(touch);
            }
            next = before;
        }
        Ok(found)
    }

    /// The stream begins anew: all that is here stands before everything that comes.
    pub(crate) fn stream_is_new(&mut self) {
        self.before_stream = self.len;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Spill::new(std::mem::take(&mut self.dir), self.buckets);
    }
}

fn bucket(digest: u128, buckets: usize) -> usize {
    (digest % buckets as u128) as usize
}

/// The word and the bits of a digest in a filter of so many words.
fn bits(digest: u128, words: usize) -> (usize, u64) {
    let part = (digest >> 64) as u64;
    let word = part / 4096 % words.max(1) as u64;
    (word as usize, 1 << (part % 64) | 1 << (part / 64 % 64))
}

fn encode(bytes: &mut Vec<u8>, digest: u128, before: u64, touch: &Touch) {
    let Touch { seq, seen, at, version, class, element, is_expire_at, is_state, is_absent, is_guess, reread } =
        *touch;
    bytes.extend(digest.to_le_bytes());
    for number in [before, seq.0, seen.0, at, version.place, version.seq, element.unwrap_or_default()] {
        bytes.extend(number.to_le_bytes());
    }
    let class = CLASSES.iter().position(|of| *of == class).unwrap_or_default();
    let flags = [element.is_some(), is_expire_at, is_state, is_guess, reread, is_absent];
    let flags = flags.iter().enumerate().fold(0, |byte, (bit, flag)| byte | (u8::from(*flag) << bit));
    bytes.extend([class as u8, flags]);
}

const CLASSES: [Class; 4] = [Class::Absolute, Class::Commuting, Class::Other, Class::Observed];

fn decode(mut bytes: &[u8]) -> io::Result<(u128, u64, Touch)> {
    let digest = bytes.try_get_u128_le()?;
    let mut number = || bytes.try_get_u64_le();
    let (before, seq, seen, at) = (number()?, number()?, number()?, number()?);
    let (version, element) = (Version { place: number()?, seq: number()? }, number()?);
    let (class, flags) = (bytes.try_get_u8()?, bytes.try_get_u8()?);
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let touch = Touch {
        seq: Seq(seq),
        seen: Seq(seen),
        at,
        version,
        class: CLASSES.get(usize::from(class)).copied().unwrap_or(Class::Other),
        element: flag(0).then_some(element),
        is_expire_at: flag(1),
        is_state: flag(2),
        is_absent: flag(5),
        is_guess: flag(3),
        reread: flag(4),
    };
    Ok((digest, before, touch))
}
