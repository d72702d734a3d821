//! The embedded log's binary form: a block of records, as `docs/RECORD_FORMAT.md` describes it.
//!
//! A record is a list of fields; most of its fields are left out because they say the same as the record
//! before it in the block. A block can be read without any other block.

use bytes::Bytes;
use causeway_core::{Change, Group, Hlc, Key, Op, Part, Position, Seq, Space, Term};
use xxhash_rust::xxh3::Xxh3;

use super::PartitionId;
use super::varint::{delta, put, take, undelta};

/// The bytes before a block's body.
pub(super) const HEADER: usize = 36;

const MAGIC: [u8; 4] = *b"CWB\x01";
const SUM_AT: usize = 28;

/// Fields with this number or a higher one may be passed over by a reader that doesn't know them; an
/// unknown one below it changes what the record means, and the reader has to refuse it.
const OPTIONAL: u8 = 32;

const VARINT: u8 = 0;
const BYTES: u8 = 1;
const FLAG: u8 = 2;

const fn tag(number: u8, kind: u8) -> u8 {
    number << 2 | kind
}

// Numbers are given once and never used again for something else.
const OP: u8 = tag(1, VARINT);
const SEQ: u8 = tag(2, VARINT);
const TERM: u8 = tag(3, VARINT);
const WHOLE: u8 = tag(4, FLAG);
const DB: u8 = tag(5, VARINT);
const TABLE: u8 = tag(6, BYTES);
const INDEX: u8 = tag(7, BYTES);
const BUCKET: u8 = tag(8, BYTES);
const KEY: u8 = tag(9, BYTES);
const VALUE: u8 = tag(10, BYTES);
const BEFORE: u8 = tag(11, BYTES);
const HLC: u8 = tag(12, VARINT);
const SEEN: u8 = tag(13, VARINT);
const LOW: u8 = tag(14, VARINT);
const HISTORY: u8 = tag(15, BYTES);
const AT: u8 = tag(16, VARINT);
const CONTEXT: u8 = tag(17, BYTES);
const GROUP: u8 = tag(18, VARINT);
const GROUP_N: u8 = tag(19, VARINT);
const GROUP_LAST: u8 = tag(20, FLAG);
const PART: u8 = tag(21, VARINT);
const PART_LAST: u8 = tag(22, FLAG);
const TIME: u8 = tag(23, VARINT);
const EXPIRE_AT: u8 = tag(24, VARINT);
const TENANT: u8 = tag(25, BYTES);
const EPOCH: u8 = tag(26, VARINT);
const UNCERTAIN: u8 = tag(27, FLAG);
const INTAKE: u8 = tag(28, BYTES);

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage(pub(super) String);

fn damage(reason: impl Into<String>) -> Damage {
    Damage(reason.into())
}

/// Sets a partition's blocks apart from another's, so that one in the wrong place is noticed.
pub(super) fn seed(partition: &PartitionId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(partition.to_string().as_bytes())
}

/// What a record leaves out: the same fields of the one before it.
#[derive(Debug, Clone)]
struct Before {
    seq: u64,
    term: u64,
    space: Space,
    hlc: u64,
    seen: u64,
    low: u64,
    pos: Position,
    time: u64,
}

impl Before {
    /// What stands before the first record of a block.
    fn start() -> Self {
        Before {
            seq: 0,
            term: 0,
            space: Space::Whole,
            hlc: 0,
            seen: 0,
            low: 0,
            pos: Position::default(),
            time: 0,
        }
    }

    fn follow(&mut self, change: &Change) {
        if change.op != Op::Fence {
            self.seq = change.seq.0.wrapping_add(1);
        }
        self.term = change.term.0;
        if self.space != change.key.space {
            self.space = change.key.space.clone();
        }
        self.hlc = change.hlc.0;
        self.seen = change.seen.0;
        self.low = change.low.0;
        if self.pos.history != change.pos.history {
            self.pos.history = change.pos.history.clone();
        }
        self.pos.at = change.pos.at;
        if self.pos.context != change.pos.context {
            self.pos.context = change.pos.context.clone();
        }
        self.time = change.time;
    }
}

/// Writes one block.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    record: Vec<u8>,
    before: Before,
    first: u64,
    count: u32,
}

impl Writer {
    /// A block whose first record has the offset `first`; room for about `size` bytes.
    pub(super) fn new(first: u64, size: usize) -> Self {
        let mut bytes = Vec::with_capacity(size);
        bytes.resize(HEADER, 0);
        Writer { bytes, record: Vec::with_capacity(128), before: Before::start(), first, count: 0 }
    }

    /// Bytes so far, header included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a record.
    pub(super) fn push(&mut self, change: &Change) {
        let Writer { bytes, record, before, count, .. } = self;
        record.clear();
        write_fields(record, before, change);
        // The value goes straight into the block: it is most of a record, and need not be copied twice.
        let value = change.value.as_ref();
        let mut tail = [0u8; 11];
        let tail = match value {
            Some(value) => value_head(&mut tail, value.len() as u64),
            None => &[],
        };
        put(bytes, (record.len() + tail.len() + value.map_or(0, Bytes::len)) as u64);
        bytes.extend_from_slice(record);
        bytes.extend_from_slice(tail);
        if let Some(value) = value {
            bytes.extend_from_slice(value);
        }
        before.follow(change);
        *count += 1;
    }

    /// The block, whole. `now` in milliseconds since 1970.
    pub(super) fn finish(mut self, seed: u64, now: u64) -> Sealed {
        let body = (self.bytes.len() - HEADER) as u32;
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&body.to_le_bytes());
        header.extend_from_slice(&self.first.to_le_bytes());
        header.extend_from_slice(&self.count.to_le_bytes());
        header.extend_from_slice(&now.to_le_bytes());
        let sum = checksum(seed, &header, self.bytes.get(HEADER..).unwrap_or_default());
        header.extend_from_slice(&sum.to_le_bytes());
        self.bytes.splice(..HEADER, header);
        Sealed { first: self.first, count: self.count, bytes: Bytes::from(self.bytes) }
    }
}

fn checksum(seed: u64, header: &[u8], body: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(seed);
    hash.update(header);
    hash.update(body);
    hash.digest()
}

fn value_head(out: &mut [u8; 11], length: u64) -> &[u8] {
    let mut text = Vec::with_capacity(11);
    text.push(VALUE);
    put(&mut text, length);
    let (head, _) = out.split_at_mut(text.len());
    head.copy_from_slice(&text);
    head
}

fn put_number(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag);
    put(out, value);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    put_number(out, tag, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// All fields but the value, which is the last one.
fn write_fields(out: &mut Vec<u8>, before: &Before, change: &Change) {
    put_number(out, OP, op_number(change.op));
    let expected = if change.op == Op::Fence { 0 } else { before.seq };
    if change.seq.0 != expected {
        put_number(out, SEQ, change.seq.0);
    }
    if change.term.0 != before.term {
        put_number(out, TERM, change.term.0);
    }
    if change.key.space != before.space {
        match &change.key.space {
            Space::Whole => out.push(WHOLE),
            Space::Db(n) => put_number(out, DB, u64::from(*n)),
            Space::Table(name) => put_bytes(out, TABLE, name),
            Space::Index(name) => put_bytes(out, INDEX, name),
            Space::Bucket(name) => put_bytes(out, BUCKET, name),
        }
    }
    if !change.key.name.is_empty() {
        put_bytes(out, KEY, &change.key.name);
    }
    for (tag, was, is) in [
        (HLC, before.hlc, change.hlc.0),
        (SEEN, before.seen, change.seen.0),
        (LOW, before.low, change.low.0),
        (AT, before.pos.at, change.pos.at),
        (TIME, before.time, change.time),
    ] {
        if is != was {
            put_number(out, tag, delta(was, is));
        }
    }
    if change.pos.history != before.pos.history {
        put_bytes(out, HISTORY, &change.pos.history);
    }
    if change.pos.context != before.pos.context {
        put_bytes(out, CONTEXT, &change.pos.context);
    }
    if let Some(Group { id, n, last }) = change.group {
        put_number(out, GROUP, id);
        if n != 0 {
            put_number(out, GROUP_N, u64::from(n));
        }
        if last {
            out.push(GROUP_LAST);
        }
    }
    if let Some(Part { n, last }) = change.part {
        put_number(out, PART, u64::from(n));
        if last {
            out.push(PART_LAST);
        }
    }
    if let Some(at) = change.expire_at {
        put_number(out, EXPIRE_AT, at);
    }
    if let Some(tenant) = &change.tenant {
        put_bytes(out, TENANT, tenant);
    }
    if change.epoch != 0 {
        put_number(out, EPOCH, change.epoch);
    }
    if change.uncertain {
        out.push(UNCERTAIN);
    }
    if let Some(name) = &change.intake {
        put_bytes(out, INTAKE, name);
    }
    if let Some(row) = &change.before {
        put_bytes(out, BEFORE, row);
    }
}

fn op_number(op: Op) -> u64 {
    match op {
        Op::Read => 1,
        Op::Put => 2,
        Op::Delete => 3,
        Op::Command => 4,
        Op::State => 5,
        Op::Refresh => 6,
        Op::Ddl => 7,
        Op::Fence => 8,
        Op::Position => 9,
    }
}

fn op_of(number: u64) -> Option<Op> {
    Some(match number {
        1 => Op::Read,
        2 => Op::Put,
        3 => Op::Delete,
        4 => Op::Command,
        5 => Op::State,
        6 => Op::Refresh,
        7 => Op::Ddl,
        8 => Op::Fence,
        9 => Op::Position,
        _ => return None,
    })
}

/// A block that is whole: its checksum was right, or it was just written.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    first: u64,
    count: u32,
    bytes: Bytes,
}

impl Sealed {
    /// Checks `bytes` as a block of the partition with this `seed` that stands under the offset `first`.
    pub(super) fn check(bytes: Bytes, seed: u64, first: u64) -> Result<Sealed, Damage> {
        let Some((header, body)) = bytes.split_at_checked(HEADER) else {
            return Err(damage(format!("a block of {} bytes is shorter than its header", bytes.len())));
        };
        if header[..3] != MAGIC[..3] {
            return Err(damage("what is stored is no block"));
        }
        if header[3] != MAGIC[3] {
            return Err(damage(format!("a block of format {}, known is {}", header[3], MAGIC[3])));
        }
        let number = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        if checksum(seed, &header[..SUM_AT], body) != number(SUM_AT) {
            return Err(damage("its checksum is wrong"));
        }
        if number(4) as u32 as usize != body.len() || number(8) != first {
            return Err(damage(format!("a block of other records stands in its place, from {}", number(8))));
        }
        let count = number(16) as u32;
        Ok(Sealed { first, count, bytes })
    }

    /// The offset of its first record.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The offset behind its last record.
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// Its bytes, as they are stored.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Reads its records from the first one on.
    pub(super) fn reader(&self) -> Reader {
        Reader {
            bytes: self.bytes.clone(),
            at: HEADER,
            next: self.first,
            end: self.end(),
            before: Before::start(),
        }
    }
}

/// Reads a block's records in order. What it returns shares the block's memory.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    bytes: Bytes,
    at: usize,
    next: u64,
    end: u64,
    before: Before,
}

impl Reader {
    /// The offset of the record that [`record`](Reader::record) returns next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The offset behind the block's last record.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The next record; `None` behind the last one.
    pub(super) fn record(&mut self) -> Result<Option<Change>, Damage> {
        if self.next >= self.end {
            return Ok(None);
        }
        let change =
            self.fields().map_err(|Damage(reason)| damage(format!("record {}: {reason}", self.next)))?;
        self.before.follow(&change);
        self.next += 1;
        Ok(Some(change))
    }

    fn fields(&mut self) -> Result<Change, Damage> {
        let Reader { bytes, at, before, .. } = self;
        let cut = || damage("is cut off");
        let length = take(bytes, at).ok_or_else(cut)?;
        let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length)).ok_or_else(cut)?;
        let body = bytes.get(..end).ok_or_else(cut)?;
        let mut op = None;
        let mut seq = None;
        let mut change = Change {
            op: Op::Read,
            seq: Seq(0),
            term: Term(before.term),
            key: Key { space: before.space.clone(), name: Bytes::new() },
            value: None,
            before: None,
            hlc: Hlc(before.hlc),
            seen: Seq(before.seen),
            low: Seq(before.low),
            pos: before.pos.clone(),
            group: None,
            part: None,
            time: before.time,
            expire_at: None,
            tenant: None,
            epoch: 0,
            uncertain: false,
            intake: None,
        };
        while *at < end {
            let field = body[*at];
            *at += 1;
            let kind = field & 3;
            let number = match kind {
                VARINT | BYTES => take(body, at).ok_or_else(cut)?,
                FLAG => 1,
                _ => return Err(damage("holds a field of an unknown kind: written by a newer version")),
            };
            let slice = if kind == BYTES {
                let from = *at;
                let to = usize::try_from(number).ok().and_then(|n| from.checked_add(n)).ok_or_else(cut)?;
                if to > end {
                    return Err(cut());
                }
                *at = to;
                from..to
            } else {
                0..0
            };
            let small = || u32::try_from(number).map_err(|_| damage("holds a number that is too large"));
            let group = |change: &mut Change, set: fn(&mut Group, u32), n: u32| {
                change.group.as_mut().map(|group| set(group, n)).ok_or_else(|| damage("is of no group"))
            };
            match field {
                OP => op = Some(op_of(number).ok_or_else(|| damage(format!("has the unknown op {number}")))?),
                SEQ => seq = Some(number),
                TERM => change.term = Term(number),
                WHOLE => change.key.space = Space::Whole,
                DB => change.key.space = Space::Db(small()?),
                TABLE => change.key.space = Space::Table(bytes.slice(slice)),
                INDEX => change.key.space = Space::Index(bytes.slice(slice)),
                BUCKET => change.key.space = Space::Bucket(bytes.slice(slice)),
                KEY => change.key.name = bytes.slice(slice),
                VALUE => change.value = Some(bytes.slice(slice)),
                BEFORE => change.before = Some(bytes.slice(slice)),
                HLC => change.hlc = Hlc(undelta(before.hlc, number)),
                SEEN => change.seen = Seq(undelta(before.seen, number)),
                LOW => change.low = Seq(undelta(before.low, number)),
                HISTORY => change.pos.history = bytes.slice(slice),
                AT => change.pos.at = undelta(before.pos.at, number),
                CONTEXT => change.pos.context = bytes.slice(slice),
                GROUP => change.group = Some(Group { id: number, n: 0, last: false }),
                GROUP_N => group(&mut change, |group, n| group.n = n, small()?)?,
                GROUP_LAST => group(&mut change, |group, _| group.last = true, 0)?,
                PART => change.part = Some(Part { n: small()?, last: false }),
                PART_LAST => match &mut change.part {
                    Some(part) => part.last = true,
                    None => return Err(damage("is of no part")),
                },
                TIME => change.time = undelta(before.time, number),
                EXPIRE_AT => change.expire_at = Some(number),
                TENANT => change.tenant = Some(bytes.slice(slice)),
                EPOCH => change.epoch = number,
                UNCERTAIN => change.uncertain = true,
                INTAKE => change.intake = Some(bytes.slice(slice)),
                other if other >> 2 >= OPTIONAL => {}
                other => {
                    let number = other >> 2;
                    return Err(damage(format!(
                        "holds the unknown field {number}: written by a newer version"
                    )));
                }
            }
        }
        change.op = op.ok_or_else(|| damage("has no op"))?;
        let expected = if change.op == Op::Fence { 0 } else { before.seq };
        change.seq = Seq(seq.unwrap_or(expected));
        Ok(change)
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
