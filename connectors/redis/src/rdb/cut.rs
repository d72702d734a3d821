//! Cuts the DUMP payload of a large value into parts, as its bytes arrive.

use bytes::{Buf, Bytes, BytesMut};

use super::RdbError;
use super::crc64::crc64;
use super::dump::FOOTER_BYTES;
use super::parts::Cutter;
use super::read::{Cursor, Stop};
use super::walk::{Walk, module_name};

/// Type and module id: with so many bytes it is known what a value is.
const HEAD_BYTES: usize = 10;

/// What comes out of a payload, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Cut {
    /// The next part.
    Part {
        /// Counts from 0.
        n: u32,
        /// Whole RESP arrays, to be done in order on a key that didn't exist. May be empty.
        commands: Bytes,
    },
    /// Last: the value is complete in its parts, and the checksum is right.
    End {
        /// How many there were.
        parts: u32,
    },
    /// Last: the checksum is right, but the value cannot be cut. Parts that came are of no use.
    Left {
        /// Why, without the key.
        reason: String,
    },
}

enum State {
    /// Its type is not known yet.
    Head,
    Parts(Box<Cutter>),
    /// All of it was read; the footer says whether that is true.
    Read(Cut),
    Ended,
    Failed(RdbError),
}

/// Cuts one DUMP payload of a known length into the parts that a [`Splitter`](super::Splitter) makes of a value
/// over its limit.
///
/// Feed it the payload's bytes as they come, and take what there is until it says `None`. It holds about a part,
/// the value's largest element and what was fed last. A part is out before the payload's end has come: only
/// [`Cut::End`] says that they are a value.
pub struct DumpCutter {
    name: Bytes,
    part_bytes: usize,
    version: u16,
    state: State,
    /// Of type and value, bytes that were not fed yet.
    left: u64,
    /// What was fed of them and not taken.
    body: BytesMut,
    /// Bytes of them that were taken.
    taken: u64,
    footer: Vec<u8>,
    /// Of all that was fed, the checksum itself aside.
    sum: u64,
}

impl DumpCutter {
    /// At the beginning of a payload of `len` bytes of the key `name`. `version`: of the RDB format that its
    /// server writes, which a payload tells at its end only.
    pub fn new(name: Bytes, len: u64, version: u16, part_bytes: usize) -> DumpCutter {
        let state = match len.checked_sub(FOOTER_BYTES as u64) {
            Some(1..) => State::Head,
            _ => State::Failed(RdbError::new(len, "a DUMP payload ends too early")),
        };
        DumpCutter {
            name,
            part_bytes,
            version,
            state,
            left: len.saturating_sub(FOOTER_BYTES as u64),
            body: BytesMut::new(),
            taken: 0,
            footer: Vec::with_capacity(FOOTER_BYTES),
            sum: 0,
        }
    }

    /// Hands over the next bytes; what lies beyond the payload's end is left alone. Take what comes of them before
    /// feeding more: that bounds memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        let body = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let (body, rest) = bytes.split_at(body);
        self.left -= body.len() as u64;
        self.body.extend_from_slice(body);
        self.sum = crc64(self.sum, body);
        let footer = rest.get(..FOOTER_BYTES - self.footer.len()).unwrap_or(rest);
        self.footer.extend_from_slice(footer);
    }

    /// Bytes in memory that nothing has taken with it.
    pub fn buffered(&self) -> usize {
        let parts = if let State::Parts(cutter) = &self.state { cutter.buffered() } else { 0 };
        self.body.len() + parts
    }

    /// What comes next; `None`: feed more, or, after the last one, nothing will come.
    ///
    /// # Errors
    ///
    /// The payload is damaged, or of another version. Every further call gives the same error.
    #[expect(clippy::should_implement_trait, reason = "it fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Cut>, RdbError> {
        let next = self.step();
        if let Err(error) = &next {
            self.state = State::Failed(error.clone());
        }
        next
    }

    fn step(&mut self) -> Result<Option<Cut>, RdbError> {
        loop {
            match &mut self.state {
                State::Head if self.body.len() < HEAD_BYTES && self.left > 0 => return Ok(None),
                State::Head => self.state = self.begin(),
                State::Parts(cutter) => {
                    if let Some((n, last, commands)) = cutter.part() {
                        if last {
                            self.state = State::Read(Cut::End { parts: n.wrapping_add(1) });
                        }
                        return Ok(Some(Cut::Part { n, commands }));
                    }
                    match cutter.step(&self.body) {
                        Ok(len) => self.take(len),
                        Err(Stop::Short) if self.left > 0 => return Ok(None),
                        Err(Stop::Short) => self.state = left("it ends before its last element does"),
                        Err(Stop::Bad(reason)) => self.state = left(&reason),
                    }
                }
                State::Read(cut) => {
                    if !self.body.is_empty() && matches!(cut, Cut::End { .. }) {
                        *cut = Cut::Left { reason: "it goes on after its last element".to_owned() };
                    }
                    self.take(self.body.len());
                    if self.footer.len() < FOOTER_BYTES {
                        return Ok(None);
                    }
                    self.check_footer()?;
                    let State::Read(cut) = std::mem::replace(&mut self.state, State::Ended) else {
                        return Ok(None);
                    };
                    return Ok(Some(cut));
                }
                State::Ended => return Ok(None),
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }

    fn take(&mut self, len: usize) {
        self.body.advance(len);
        self.taken += len as u64;
    }

    /// What becomes of the value by its type. One of a module, or unknown, has no parts: its length is all that
    /// has to be known of it.
    fn begin(&mut self) -> State {
        let Some((&kind, value)) = self.body.split_first() else { return State::Ended };
        let state = match Walk::new(kind, self.version) {
            None => left(&format!("type {kind} of RDB version {} is unknown here", self.version)),
            Some(walk) if walk.of_module() => {
                let module = Cursor::new(value).count().map(module_name).unwrap_or_default();
                left(&format!("a value of the module type {module} cannot be cut"))
            }
            Some(walk) => State::Parts(Box::new(Cutter::new(kind, walk, self.name.clone(), self.part_bytes))),
        };
        self.take(1);
        state
    }

    fn check_footer(&self) -> Result<(), RdbError> {
        let wrong = |reason: &str| Err(RdbError::new(self.taken, reason));
        let Some((version, sum)) = self.footer.split_first_chunk::<2>() else {
            return wrong("a DUMP payload ends too early");
        };
        let sum = sum.try_into().map_or(0, u64::from_le_bytes);
        if sum != 0 && sum != crc64(self.sum, version) {
            return wrong("a DUMP payload's checksum is wrong");
        }
        if u16::from_le_bytes(*version) != self.version {
            return wrong("a DUMP payload is of another version than its server");
        }
        Ok(())
    }
}

fn left(reason: &str) -> State {
    State::Read(Cut::Left { reason: reason.to_owned() })
}
