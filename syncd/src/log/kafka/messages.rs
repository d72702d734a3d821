//! A record as Kafka messages, and back: `docs/RECORD_FORMAT.md`, section "In Kafka".
//!
//! A record is one message, but for one that is too large: then pieces of it go before it, in messages of
//! their own. All messages of an append but its last say `more`, so that a reader takes all of it or, where
//! its writer died on the way, nothing. What a writer of an older term brings after a newer fence is void.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use causeway_core::{Change, Op, Term};

use super::super::headers::{FORMAT, Field, Fields, HeaderError, RecordContext, headers};
use super::super::{Error, Offset};

/// What a piece takes besides its bytes and its key, at the most.
const PIECE_HEADERS: usize = 128;

/// What one message holds.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
    pub(super) headers: Vec<(&'static str, Bytes)>,
}

impl Message {
    /// About what it takes in a request.
    fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        len(&self.key) + len(&self.value) + headers + 32
    }
}

fn number(n: impl ToString) -> Bytes {
    Bytes::from(n.to_string())
}

/// Appends the messages of one record, each of about `bytes_max` at the most; `more`: it is not the last
/// one of its append.
pub(super) fn push_messages(
    change: &Change,
    context: &RecordContext,
    bytes_max: usize,
    more: bool,
    out: &mut Vec<Message>,
) {
    let mut message = Message {
        key: (!change.key.name.is_empty()).then(|| change.key.name.clone()),
        value: change.value.clone(),
        headers: headers(change, context),
    };
    if more {
        message.headers.push((Field::More.name(), Bytes::from_static(b"1")));
    }
    if message.size() > bytes_max {
        let before = out.len();
        cut(change, &mut message, bytes_max, out);
        message.headers.push((Field::Pieces.name(), number(out.len() - before)));
    }
    out.push(message);
}

/// Takes the large parts out of `message` and appends them as pieces.
fn cut(change: &Change, message: &mut Message, bytes_max: usize, out: &mut Vec<Message>) {
    // What is left has to fit with what cannot be cut: a tenant, a position, a table's name.
    let large = bytes_max / 8;
    let before = message.headers.iter().position(|(name, _)| *name == "before");
    let before = before.filter(|at| message.headers[*at].1.len() > large);
    let key = message.key.take_if(|key| key.len() > large);
    let value = message.value.take_if(|value| value.len() > large);
    let before = before.map(|at| message.headers.remove(at).1);
    // Each piece says which key it is of, and has a few headers.
    let room = bytes_max - message.key.as_ref().map_or(0, Bytes::len) - PIECE_HEADERS;
    for (part, bytes) in [("key", key), ("value", value), ("before", before)] {
        let Some(mut bytes) = bytes else { continue };
        let mut n = 0;
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(room));
            let headers = vec![
                ("v", Bytes::from_static(b"1")),
                (Field::Piece.name(), Bytes::from(format!("{part}:{n}"))),
                (Field::Term.name(), number(change.term.0)),
                (Field::More.name(), Bytes::from_static(b"1")),
            ];
            out.push(Message { key: message.key.clone(), value: Some(piece), headers });
            n += 1;
        }
    }
}

/// The message of a fence; its term is where it is meant to stand, which makes it one.
pub(super) fn fence(change: &Change, before: Option<u64>, context: &RecordContext) -> Message {
    let mut headers = headers(change, context);
    // The first record of a log has the term 0, which is left out elsewhere.
    if change.term == Term(0) {
        headers.push((Field::Term.name(), number(0)));
    }
    headers.extend(before.map(|before| (Field::Fence.name(), number(before))));
    Message { key: None, value: change.value.clone(), headers }
}

/// A message as it was received.
pub(super) struct Received<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    fields: Fields<'a>,
}

impl<'a> Received<'a> {
    pub(super) fn new(
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
        headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Received<'a> {
        let fields = Fields::read(headers.map(|(name, value)| (name, value.unwrap_or_default())));
        Received { key, value, fields }
    }
}

/// A message that is none of the log's, or whose record cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Somebody else's.
    Foreign,
    /// Why.
    Record(HeaderError),
    /// Of a record some pieces are missing.
    Pieces,
}

/// Puts records together from messages in the order of their partition.
#[derive(Debug)]
pub(super) struct Assembler {
    /// The newest fence above.
    newest: u64,
    /// Of an append whose last record has not come yet.
    held: Vec<(Offset, Change)>,
    pieces: Option<Pieces>,
    /// What came before the first whole record is not known.
    fresh: bool,
}

#[derive(Debug)]
struct Pieces {
    first: u64,
    count: usize,
    parts: [Option<BytesMut>; 3],
}

const PARTS: [&str; 3] = ["key", "value", "before"];

impl Assembler {
    /// Begins somewhere behind the fence at `newest`.
    pub(super) fn new(newest: u64) -> Assembler {
        Assembler { newest, held: Vec::new(), pieces: None, fresh: true }
    }

    /// Takes the message at `offset`; appends the records that are whole by that to `out`. Says whether it
    /// is a fence that counts, and which stood before that.
    pub(super) fn feed(
        &mut self,
        offset: u64,
        message: Received<'_>,
        out: &mut Vec<(Offset, Change)>,
    ) -> Result<Option<Fence>, Unreadable> {
        let Received { key, value, fields } = message;
        let number = |field| fields.number(field).ok().flatten();
        if !fields.has(Field::V) || !(fields.has(Field::Op) || fields.has(Field::Piece)) {
            return Err(Unreadable::Foreign);
        }
        if fields.number(Field::V) != Ok(Some(FORMAT)) {
            // Says what is wrong with it.
            record(&fields, copied(key), copied(value))?;
            return Err(Unreadable::Foreign);
        }
        let term = number(Field::Term);
        if fields.get(Field::Op).is_some_and(|op| *op == *Op::Fence.as_str().as_bytes()) {
            if term != Some(offset) || offset < self.newest {
                // Another one came in between: its writer has tried again.
                return Ok(None);
            }
            let change = record(&fields, copied(key), copied(value))?;
            self.reigns(offset);
            self.fresh = false;
            out.push((Offset(offset), change));
            return Ok(Some(Fence { at: offset, before: number(Field::Fence) }));
        }
        let term = term.unwrap_or(0);
        if term < self.newest {
            return Ok(None);
        }
        if term > self.newest {
            self.reigns(term);
        }
        if let Some(piece) = fields.get(Field::Piece) {
            self.piece(offset, piece, value);
            return Ok(None);
        }
        let pieces = self.pieces.take();
        let fresh = std::mem::replace(&mut self.fresh, false);
        let announced = number(Field::Pieces).unwrap_or(0) as usize;
        let (first, key, value, before) = match pieces {
            Some(Pieces { first, count, parts: [k, v, b] }) if count == announced => {
                let or = |part: Option<BytesMut>, other| part.map(BytesMut::freeze).or_else(|| copied(other));
                (first, or(k, key), or(v, value), b.map(BytesMut::freeze))
            }
            None if announced == 0 => (offset, copied(key), copied(value), None),
            // It begins before the place where we began.
            _ if fresh => return Ok(None),
            _ => return Err(Unreadable::Pieces),
        };
        let mut change = record(&fields, key, value)?;
        change.before = before.or(change.before);
        self.held.push((Offset(first), change));
        if !fields.has(Field::More) {
            out.append(&mut self.held);
        }
        Ok(None)
    }

    /// A new reign: what the one before did not finish is void.
    fn reigns(&mut self, term: u64) {
        self.newest = term;
        self.held.clear();
        self.pieces = None;
    }

    fn piece(&mut self, offset: u64, name: &[u8], value: Option<&[u8]>) {
        let pieces = self.pieces.get_or_insert(Pieces { first: offset, count: 0, parts: [None, None, None] });
        pieces.count += 1;
        let part = name.split(|byte| *byte == b':').next().unwrap_or_default();
        if let Some(at) = PARTS.iter().position(|known| known.as_bytes() == part) {
            let bytes = pieces.parts[at].get_or_insert_default();
            bytes.extend_from_slice(value.unwrap_or_default());
        }
    }

    /// The newest fence above what comes next.
    pub(super) fn newest_fence(&self) -> u64 {
        self.newest
    }

    /// Nothing is held back.
    pub(super) fn is_between_appends(&self) -> bool {
        self.held.is_empty() && self.pieces.is_none()
    }
}

/// A fence that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) at: u64,
    pub(super) before: Option<u64>,
}

fn copied(part: Option<&[u8]>) -> Option<Bytes> {
    part.map(Bytes::copy_from_slice)
}

fn record(fields: &Fields<'_>, key: Option<Bytes>, value: Option<Bytes>) -> Result<Change, Unreadable> {
    fields.change(key.unwrap_or_default(), value).map_err(Unreadable::Record)
}

impl Unreadable {
    /// What readers of the log are told of the message at `at`.
    pub(super) fn told(&self, partition: &super::PartitionId, topic: &str, at: u64) -> Error {
        let reason = match self {
            Unreadable::Foreign => "no record of this log".to_owned(),
            Unreadable::Pieces => "pieces of it are missing".to_owned(),
            Unreadable::Record(error) => error.to_string(),
        };
        if let Unreadable::Record(HeaderError::Newer(found)) = self {
            let (partition, place, found, known) = (partition.clone(), Offset(at), *found, FORMAT);
            return Error::NewerRecord { partition, place, found, known };
        }
        let Range { start: from, end: to } = Offset(at)..Offset(at + 1);
        Error::Corrupt { partition: partition.clone(), segment: format!("topic {topic}"), from, to, reason }
    }
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
