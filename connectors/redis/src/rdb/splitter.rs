//! The splitter: bytes in, items out.

use bytes::{BufMut, Bytes, BytesMut};

use super::crc64::crc64;
use super::dump::{FOOTER_BYTES, put_footer};
use super::ops::{self, Op};
use super::parts::Cutter;
use super::read::{Cursor, Parse, Raw, Stop};
use super::walk::{Element, Walk, module_field, module_name};
use super::{Entry, Item, Options, RdbError, Value};

/// Names and payloads are written one behind the other into blocks of this size: an allocation for some
/// thousand keys instead of two for each.
const BLOCK_BYTES: usize = 256 << 10;

/// The first RDB version with a checksum at its end.
const CHECKSUM_VERSION_MIN: u16 = 5;

/// The entry whose value is being read.
struct Pending {
    kind: u8,
    name: Bytes,
    walk: Walk,
}

enum State {
    Header,
    /// Between entries.
    Op,
    /// In a value that is still hoped to pass whole; that much of it was walked through.
    Whole(Pending, usize),
    /// In a value that is cut.
    Parts(Bytes, Box<Cutter>),
    /// In a value that is skipped.
    Left(Pending, String),
    /// In data of a module that belongs to no key.
    ModuleAux(String),
    /// After the last operation code, before the checksum.
    Checksum,
    End,
    Failed(RdbError),
}

/// Splits an RDB into [`Item`]s.
///
/// Feed it bytes as they come, in chunks of any size, and take items until it says `None`:
///
/// ```
/// use causeway_redis::rdb::{Item, Options, Splitter};
///
/// let mut splitter = Splitter::new(Options::default());
/// for chunk in b"REDIS0010\xff\0\0\0\0\0\0\0\0".chunks(5) {
///     splitter.feed(chunk);
///     while let Some(item) = splitter.next().unwrap() {
///         assert!(matches!(item, Item::Version(10) | Item::End));
///     }
/// }
/// assert!(splitter.finish().is_ok());
/// ```
///
/// It holds what was fed and not yet consumed: as long as items are taken after each feed, at most
/// `whole_bytes_max` and a chunk, or, in a larger value, `part_bytes`, its largest element and a chunk;
/// besides, 32 bytes for each pending entry of a stream's group. No claim inside the bytes makes it take
/// more memory than 88 times what was fed, the most that a compressed string can become.
pub struct Splitter {
    options: Options,
    state: State,
    version: u16,
    db: u32,
    expire_at: Option<u64>,
    /// What was fed; consumed up to `at`, in the checksum up to `summed`.
    buf: Vec<u8>,
    at: usize,
    summed: usize,
    sum: u64,
    /// Bytes consumed before `buf`.
    before: u64,
    block: BytesMut,
    scratch: Vec<u8>,
}

impl Splitter {
    /// A splitter at the beginning of an RDB.
    pub fn new(options: Options) -> Self {
        Splitter {
            options,
            state: State::Header,
            version: 0,
            db: 0,
            expire_at: None,
            buf: Vec::new(),
            at: 0,
            summed: 0,
            sum: 0,
            before: 0,
            block: BytesMut::new(),
            scratch: Vec::new(),
        }
    }

    /// Hands over the next bytes. Take items until there are none before feeding more: that bounds memory.
    pub fn feed(&mut self, bytes: impl AsRef<[u8]>) {
        self.add_sum();
        // Moving the rest to the front is paid by at least as many bytes consumed.
        if self.at > self.buf.len() / 2 {
            self.buf.copy_within(self.at.., 0);
            self.buf.truncate(self.buf.len() - self.at);
            self.before += self.at as u64;
            self.at = 0;
            self.summed = 0;
        }
        self.buf.extend_from_slice(bytes.as_ref());
    }

    /// Bytes of the RDB that the items so far stand for. After [`Item::End`]: its whole length.
    pub fn consumed(&self) -> u64 {
        self.before + self.at as u64
    }

    /// Bytes in memory that no item has taken with it.
    pub fn buffered(&self) -> usize {
        let parts = if let State::Parts(_, cutter) = &self.state { cutter.buffered() } else { 0 };
        self.buf.len() - self.at + parts
    }

    /// What was fed and not consumed: after [`Item::End`], the bytes that follow the RDB.
    pub fn rest(&self) -> &[u8] {
        self.buf.get(self.at..).unwrap_or_default()
    }

    /// To be called when no more bytes come.
    ///
    /// # Errors
    ///
    /// The RDB has not ended, or failed before.
    pub fn finish(&self) -> Result<(), RdbError> {
        match &self.state {
            State::End => Ok(()),
            State::Failed(error) => Err(error.clone()),
            _ => Err(RdbError::new(self.before + self.buf.len() as u64, "the bytes end before the RDB does")),
        }
    }

    /// The next item; `None`: feed more, or, after [`Item::End`], nothing will come.
    ///
    /// # Errors
    ///
    /// See [`RdbError`]. Every further call gives the same error.
    #[expect(clippy::should_implement_trait, reason = "it fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Item>, RdbError> {
        loop {
            let (at, next) = (self.consumed(), self.step());
            match next {
                Ok(Some(item)) => return Ok(Some(item)),
                Ok(None) if matches!(self.state, State::End) => return Ok(None),
                Ok(None) => {}
                Err(Stop::Short) => return Ok(None),
                Err(Stop::Bad(reason)) => {
                    if let State::Failed(error) = &self.state {
                        return Err(error.clone());
                    }
                    let walked = if let State::Whole(_, walked) = self.state { walked as u64 } else { 0 };
                    let error = RdbError::new(at.max(self.consumed()) + walked, reason);
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// Brings the checksum up to what was consumed.
    fn add_sum(&mut self) {
        self.sum = crc64(self.sum, self.buf.get(self.summed..self.at).unwrap_or_default());
        self.summed = self.at;
    }

    /// One step; `Ok(None)`: go on.
    fn step(&mut self) -> Parse<Option<Item>> {
        match &self.state {
            State::Header => {
                let mut cursor = Cursor::new(self.buf.get(self.at..).unwrap_or_default());
                self.version = ops::header(&mut cursor)?;
                self.at += cursor.at();
                self.state = State::Op;
                Ok(Some(Item::Version(self.version)))
            }
            State::Op => self.op(),
            State::Whole(..) => self.whole(),
            State::Parts(..) => self.part(),
            State::Left(..) => self.left(),
            State::ModuleAux(_) => self.module_aux(),
            State::Checksum => self.checksum(),
            State::End => Ok(None),
            State::Failed(_) => Err(Stop::bad("the reading failed before")),
        }
    }

    fn op(&mut self) -> Parse<Option<Item>> {
        let mut cursor = Cursor::new(self.buf.get(self.at..).unwrap_or_default());
        let op = ops::op(&mut cursor)?;
        let taken = cursor.at();
        let mut item = None;
        match op {
            Op::Skipped => {}
            Op::Aux(name, value) => {
                let name = keep(&mut self.block, &mut self.scratch, name)?;
                let value = keep(&mut self.block, &mut self.scratch, value)?;
                item = Some(Item::Aux { name, value });
            }
            Op::ModuleAux(name) => self.state = State::ModuleAux(name),
            Op::Select(db) => self.db = db,
            Op::Sizes(keys, expires) => item = Some(Item::Sizes { db: self.db, keys, expires }),
            Op::Function(code) => {
                item = Some(Item::Function(keep(&mut self.block, &mut self.scratch, code)?));
            }
            Op::FunctionParts(engine, name, code) => {
                let mut text = b"#!".to_vec();
                text.extend(engine.text(&mut self.scratch)?.to_ascii_lowercase());
                text.extend_from_slice(b" name=");
                text.extend_from_slice(name.text(&mut self.scratch)?);
                text.push(b'\n');
                text.extend_from_slice(code.text(&mut self.scratch)?);
                item = Some(Item::Function(Bytes::from(text)));
            }
            Op::ExpireAt(at) => self.expire_at = Some(at),
            Op::End => self.state = State::Checksum,
            Op::Entry { kind, name } => {
                let walk = Walk::new(kind, self.version).ok_or_else(|| {
                    let version = self.version;
                    Stop::Bad(
                        format!(
                            "type {kind} of version {version} is unknown here, so its end can't be found"
                        )
                        .into(),
                    )
                })?;
                let name = keep(&mut self.block, &mut self.scratch, name)?;
                let module = walk.of_module();
                let pending = Pending { kind, name, walk };
                self.state =
                    if module { State::Left(pending, String::new()) } else { State::Whole(pending, 0) };
            }
        }
        self.at += taken;
        Ok(item)
    }

    fn whole(&mut self) -> Parse<Option<Item>> {
        let State::Whole(pending, walked) = &mut self.state else { return Ok(None) };
        let value = self.buf.get(self.at..).unwrap_or_default();
        let mut short = false;
        let mut empty = false;
        while !pending.walk.done() && *walked <= self.options.whole_bytes_max {
            match pending.walk.step(value.get(*walked..).unwrap_or_default()) {
                Ok((element, len)) => {
                    empty = matches!(element, Element::Head(0)) && pending.walk.done();
                    *walked += len;
                }
                Err(Stop::Short) => {
                    short = true;
                    break;
                }
                Err(bad) => return Err(bad),
            }
        }
        if *walked > self.options.whole_bytes_max || short && value.len() > self.options.whole_bytes_max {
            let name = pending.name.clone();
            let walk = Walk::new(pending.kind, self.version).ok_or(Stop::bad("an unknown type"))?;
            let cutter = Cutter::new(pending.kind, walk, name.clone(), self.options.part_bytes);
            self.state = State::Parts(name, Box::new(cutter));
            return Ok(None);
        }
        if short {
            return Err(Stop::Short);
        }
        let raw = value.get(..*walked).unwrap_or_default();
        let value = if empty {
            Value::Left { reason: "an empty collection, which servers skip when they load it".to_owned() }
        } else {
            room(&mut self.block, raw.len() + 1 + FOOTER_BYTES);
            self.block.put_u8(pending.kind);
            self.block.put_slice(raw);
            put_footer(&mut self.block, self.version);
            Value::Dump(self.block.split().freeze())
        };
        self.at += *walked;
        let State::Whole(pending, _) = std::mem::replace(&mut self.state, State::Op) else { return Ok(None) };
        Ok(Some(self.entry(pending.name, value)))
    }

    fn part(&mut self) -> Parse<Option<Item>> {
        let State::Parts(name, cutter) = &mut self.state else { return Ok(None) };
        loop {
            if let Some((n, last, commands)) = cutter.part() {
                let (db, name, expire_at) = (self.db, name.clone(), self.expire_at);
                if last {
                    self.expire_at = None;
                    self.state = State::Op;
                }
                let value = Value::Part { n, last, commands };
                return Ok(Some(Item::Entry(Entry { db, name, expire_at, value })));
            }
            self.at += cutter.step(self.buf.get(self.at..).unwrap_or_default())?;
        }
    }

    fn left(&mut self) -> Parse<Option<Item>> {
        let State::Left(pending, reason) = &mut self.state else { return Ok(None) };
        while !pending.walk.done() {
            let (element, len) = pending.walk.step(self.buf.get(self.at..).unwrap_or_default())?;
            if let Element::Module(id) = element {
                *reason = format!("a value of the module type {}", module_name(id));
            }
            self.at += len;
        }
        let State::Left(pending, reason) = std::mem::replace(&mut self.state, State::Op) else {
            return Ok(None);
        };
        Ok(Some(self.entry(pending.name, Value::Left { reason })))
    }

    fn module_aux(&mut self) -> Parse<Option<Item>> {
        loop {
            let mut cursor = Cursor::new(self.buf.get(self.at..).unwrap_or_default());
            let end = module_field(&mut cursor)?;
            self.at += cursor.at();
            if end {
                break;
            }
        }
        let State::ModuleAux(name) = std::mem::replace(&mut self.state, State::Op) else { return Ok(None) };
        Ok(Some(Item::Aux { name: Bytes::from_static(b"module-aux"), value: Bytes::from(name) }))
    }

    fn checksum(&mut self) -> Parse<Option<Item>> {
        if self.version >= CHECKSUM_VERSION_MIN {
            self.add_sum();
            let written = Cursor::new(self.buf.get(self.at..).unwrap_or_default()).u64_le()?;
            if written != 0 && written != self.sum {
                return Err(Stop::bad("the checksum is wrong: some byte before it is not as it was written"));
            }
            self.at += 8;
        }
        self.state = State::End;
        Ok(Some(Item::End))
    }

    fn entry(&mut self, name: Bytes, value: Value) -> Item {
        Item::Entry(Entry { db: self.db, name, expire_at: self.expire_at.take(), value })
    }
}

/// Makes room in `block`, which must be empty, for `len` bytes.
fn room(block: &mut BytesMut, len: usize) {
    if block.capacity() < len {
        *block = BytesMut::with_capacity(len.max(BLOCK_BYTES));
    }
}

/// Copies a string's text into `block`.
fn keep(block: &mut BytesMut, scratch: &mut Vec<u8>, raw: Raw<'_>) -> Parse<Bytes> {
    let text = raw.text(scratch)?;
    room(block, text.len());
    block.put_slice(text);
    Ok(block.split().freeze())
}
