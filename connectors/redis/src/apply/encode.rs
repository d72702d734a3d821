//! A batch as the bytes of one transaction, and what to expect as its replies.

use bytes::{Bytes, BytesMut};
use causeway_core::{Batch, Change, Op, Part, Refused};

use super::db_of;
use super::lasting::lasting;
use super::probe::{known, payload, payload_version};
use crate::args::Args;
use crate::commands;
use crate::filter::Filter;
use crate::names::Names;
use crate::rdb;
use crate::resp::{decimal, encode, encode_array, encode_bulk};

/// How large the commands may be into which a payload is taken apart: small beside what the server buffers
/// for a client, large beside what a command costs.
const PIECE_BYTES: usize = 64 << 10;
/// In the stream of the server, where a transaction of ours may hold deletes of its own: those are in upper case.
const DEL: &[u8] = b"del";
/// Why a piece of a value is refused that follows one that is not there.
pub(super) const PIECES_GONE: &str = "a piece before this one is not there; the key has to be read again";

/// What a command of the transaction should answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// One of ours, which cannot fail: the marker, a SELECT.
    Own,
    /// Anything but an error.
    NoError,
    /// An error that says that the key exists is an answer.
    IfAbsent,
    /// RENAMENX: 0 says that the key exists; no such key: it was expired already.
    RenamedIfAbsent,
    /// RENAME: no such key says that it was expired already.
    RenamedIfThere,
    /// LINSERT into a value's progress: no length says that the pieces before this one are not all there.
    Begun,
    /// FUNCTION LOAD without REPLACE: an error that says that the library exists is an answer.
    FunctionIfAbsent,
}

/// What the replies of a transaction's commands mean, in their order, and what was not sent at all.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// The index of the change in the batch, and what should come.
    pub(super) replies: Vec<(u32, Expect)>,
    /// What could not be made a command.
    pub(super) refused: Vec<Refused>,
    /// The changes that are pieces of a value, by their index, and which value.
    pub(super) pieces: Vec<(u32, Hidden)>,
    /// What is left of these values is deleted on the way.
    pub(super) deleted: Vec<Hidden>,
}

/// A value that comes in pieces: where it is built until the last one renames it.
///
/// Beside the hidden key stands its progress, a list whose head names the newest piece. Each piece goes in
/// behind the head that names the one before it, or not at all (LINSERT), so that the head names the last
/// piece only if all of them went in, in their order, whatever was refused, sent again, or under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) db: u32,
    pub(super) key: Vec<u8>,
    pub(super) progress: Vec<u8>,
}

impl Hidden {
    /// That of a change with a [`Part`].
    pub(super) fn of(names: &Names, change: &Change) -> Hidden {
        let db = db_of(&change.key);
        let key = hidden_key(names, db, &change.key.name);
        Hidden { db, progress: [key.as_slice(), b":progress"].concat(), key }
    }
}

/// How a value's progress names piece `n` of it. A value that was read again for another snapshot has other
/// names, so that no piece of it is taken for one that follows a piece of the first.
pub(super) fn piece_name(change: &Change, n: u32) -> Vec<u8> {
    format!("{}:{}:{n}", change.term.0, change.pos).into_bytes()
}

/// What the encoding of a batch depends on.
pub(super) struct Encoder<'a> {
    pub(super) names: &'a Names,
    pub(super) filter: &'a Filter,
    pub(super) marker: &'a [u8],
    pub(super) databases: &'a [(u32, bool)],
    pub(super) payloads: &'a [(u16, bool)],
    /// Values of which a piece was refused: what is there of them is deleted first.
    pub(super) broken: &'a [Hidden],
    /// Values of which not all pieces before those of this batch went in: they don't appear.
    pub(super) incomplete: &'a [Hidden],
    /// The server's time, in milliseconds since 1970.
    pub(super) now: u64,
}

/// Where the commands of one change go.
struct Out<'a> {
    bytes: &'a mut BytesMut,
    expected: Expected,
    index: u32,
    /// [`Encoder::now`].
    now: u64,
}

impl Out<'_> {
    fn command(&mut self, args: &[&[u8]], expect: Expect) {
        encode(self.bytes, args);
        self.expected.replies.push((self.index, expect));
    }

    fn own(&mut self, args: &[&[u8]]) {
        self.command(args, Expect::Own);
    }

    /// Takes back what was written since `mark`.
    fn refuse(&mut self, mark: (usize, usize), reason: impl Into<String>) {
        self.bytes.truncate(mark.0);
        self.expected.replies.truncate(mark.1);
        self.expected.refused.push(Refused { index: self.index as usize, reason: reason.into() });
    }

    fn mark(&self) -> (usize, usize) {
        (self.bytes.len(), self.expected.replies.len())
    }
}

impl Encoder<'_> {
    /// Appends the transaction to `out`. It begins and ends in database 0.
    pub(super) fn batch(&self, batch: &Batch, out: &mut BytesMut) -> Expected {
        encode(out, &[b"MULTI"]);
        let replies = Vec::with_capacity(batch.changes.len() + 2);
        let expected = Expected { replies, deleted: self.broken.to_vec(), ..Expected::default() };
        let mut out = Out { bytes: out, expected, index: 0, now: self.now };
        out.own(&[b"SET", &self.names.marker, self.marker]);
        let mut selected = 0;
        for hidden in self.broken {
            if std::mem::replace(&mut selected, hidden.db) != hidden.db {
                out.own(&[b"SELECT", &decimal(hidden.db)]);
            }
            out.own(&[DEL, &hidden.key, &hidden.progress]);
        }
        let mut emptied = false;
        for (i, change) in batch.changes.iter().enumerate() {
            // The others are the log's own.
            if !change.op.is_data() {
                continue;
            }
            out.index = u32::try_from(i).unwrap_or(u32::MAX);
            let db = db_of(&change.key);
            if known(self.databases, db) != Some(true) {
                let reason =
                    format!("this server has no database {db}: raise `databases` in its configuration");
                out.refuse(out.mark(), reason);
                continue;
            }
            let mark = out.mark();
            if db != selected {
                out.own(&[b"SELECT", &decimal(db)]);
            }
            match self.change(change, batch.keep_existing, &mut out) {
                Ok(()) => selected = db,
                Err(reason) => out.refuse(mark, reason),
            }
            emptied |= change.op == Op::Ddl;
        }
        if selected != 0 {
            out.own(&[b"SELECT", b"0"]);
        }
        if emptied {
            // FLUSHALL and SWAPDB took the marker away, too.
            out.own(&[b"SET", &self.names.marker, self.marker]);
        }
        encode(out.bytes, &[b"EXEC"]);
        out.expected
    }

    fn change(&self, change: &Change, keep_existing: bool, out: &mut Out<'_>) -> Result<(), String> {
        let keep = keep_existing && change.op == Op::Read;
        let key = &change.key.name;
        match (change.op, &change.value, change.part) {
            (Op::Delete, ..) => out.command(&[DEL, key], Expect::NoError),
            (Op::Read | Op::State | Op::Put, value, Some(part)) => {
                self.part(change, part, value.as_deref(), keep, out)?;
            }
            (Op::Read | Op::State | Op::Put, None, None) if keep => {}
            (Op::Read | Op::State | Op::Put, None, None) => {
                // Pieces of it that were read before it was gone, and never ended, go with it.
                let Hidden { key: hidden, progress, .. } = Hidden::of(self.names, change);
                out.command(&[DEL, key, &hidden, &progress], Expect::NoError);
            }
            (Op::Read, Some(value), None) if key.is_empty() => function(value, keep, out)?,
            (Op::Read | Op::State | Op::Put, Some(value), None) => self.payload(change, value, keep, out)?,
            (Op::Ddl, Some(value), _) if !self.filter.holds_to(db_of(&change.key), value) => {
                return Err("it would also reach what the channel does not carry".to_owned());
            }
            (_, Some(value), _) => {
                // One command: with two, a reply would be taken for that of another change.
                if append(out, value, None)? != 1 {
                    return Err("its value is not one command".to_owned());
                }
            }
            (op, None, _) => return Err(format!("a {} without a value", op.as_str())),
        }
        Ok(())
    }

    fn payload(&self, change: &Change, value: &Bytes, keep: bool, out: &mut Out<'_>) -> Result<(), String> {
        let key = &change.key.name;
        let version = payload(change).and_then(|p| payload_version(p));
        let version = version.ok_or("its value is too short for a DUMP payload")?;
        if known(self.payloads, version) == Some(true) {
            encode_array(out.bytes, if keep { 5 } else { 6 });
            encode_bulk(out.bytes, b"RESTORE");
            encode_bulk(out.bytes, key);
            encode_bulk(out.bytes, &decimal(change.expire_at.map_or(0, |at| lasting(at, self.now))));
            encode_bulk(out.bytes, value);
            encode_bulk(out.bytes, b"ABSTTL");
            if !keep {
                encode_bulk(out.bytes, b"REPLACE");
            }
            out.expected.replies.push((out.index, if keep { Expect::IfAbsent } else { Expect::NoError }));
            return Ok(());
        }
        let hidden = keep.then(|| hidden_key(self.names, db_of(&change.key), key));
        let name: &[u8] = hidden.as_deref().unwrap_or(key);
        let mut pieces = Vec::new();
        rdb::rewrite(name, value, PIECE_BYTES, &mut pieces).map_err(|e| e.to_string())?;
        out.command(&[DEL, name], Expect::NoError);
        for piece in &pieces {
            append(out, piece, None)?;
        }
        if let Some(at) = change.expire_at {
            out.command(&[b"PEXPIREAT", name, &decimal(lasting(at, self.now))], Expect::NoError);
        }
        if keep {
            out.command(&[b"RENAMENX", name, key], Expect::RenamedIfAbsent);
            out.command(&[DEL, name], Expect::NoError);
        }
        Ok(())
    }

    /// A piece of a large value: goes to a hidden key, which the last one renames. That one is sent with
    /// nothing under way, when it is known whether all before it went in. With no `commands`, what there is of the
    /// value is not wanted.
    fn part(
        &self,
        change: &Change,
        part: Part,
        commands: Option<&[u8]>,
        keep: bool,
        out: &mut Out<'_>,
    ) -> Result<(), String> {
        let key: &[u8] = &change.key.name;
        let whole = Hidden::of(self.names, change);
        let (hidden, progress): (&[u8], &[u8]) = (&whole.key, &whole.progress);
        let Some(commands) = commands else {
            out.command(&[DEL, hidden, progress], Expect::NoError);
            return Ok(());
        };
        out.expected.pieces.push((out.index, whole.clone()));
        if part.last && self.incomplete.contains(&whole) {
            let reason = PIECES_GONE.to_owned();
            out.expected.refused.push(Refused { index: out.index as usize, reason });
            out.command(&[DEL, hidden, progress], Expect::NoError);
            return Ok(());
        }
        let name = piece_name(change, part.n);
        match part.n.checked_sub(1) {
            None => {
                out.command(&[DEL, hidden, progress], Expect::NoError);
                out.command(&[b"RPUSH", progress, &name], Expect::NoError);
            }
            Some(before) => {
                let before = piece_name(change, before);
                out.command(&[b"LINSERT", progress, b"BEFORE", &before, &name], Expect::Begun);
                out.command(&[b"LTRIM", progress, b"0", b"0"], Expect::NoError);
            }
        }
        append(out, commands, Some(hidden))?;
        if !part.last {
            return Ok(());
        }
        out.command(&[DEL, progress], Expect::NoError);
        if let Some(at) = change.expire_at {
            // Before the renaming: afterwards it could meet a key that was there.
            out.command(&[b"PEXPIREAT", hidden, &decimal(lasting(at, self.now))], Expect::NoError);
        }
        if keep {
            out.command(&[b"RENAMENX", hidden, key], Expect::RenamedIfAbsent);
            out.command(&[DEL, hidden], Expect::NoError);
        } else {
            // A value of which everything is expired has no hidden key: what was there goes all the same.
            out.command(&[DEL, key], Expect::NoError);
            out.command(&[b"RENAME", hidden, key], Expect::RenamedIfThere);
        }
        Ok(())
    }
}

/// The key, in the database of `name` itself, where a value that comes in pieces is built.
pub(crate) fn hidden_key(names: &Names, db: u32, name: &[u8]) -> Vec<u8> {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&db.to_le_bytes());
    hash.update(name);
    [names.part.as_slice(), format!("{:032x}", hash.digest128()).as_bytes()].concat()
}

/// `FUNCTION LOAD [REPLACE] code`, without REPLACE if what is there wins.
fn function(value: &[u8], keep: bool, out: &mut Out<'_>) -> Result<(), String> {
    let mut args = Args::at(value, 0).ok_or("its value is not one command")?;
    let words: Vec<&[u8]> = args.by_ref().filter_map(|range| value.get(range)).collect();
    if args.end() != value.len() {
        return Err("its value is not one command".to_owned());
    }
    if !keep {
        append(out, value, None)?;
        return Ok(());
    }
    let kept: Vec<&[u8]> = words
        .iter()
        .enumerate()
        .filter(|(i, word)| !(*i == 2 && word.eq_ignore_ascii_case(b"REPLACE")))
        .map(|(_, word)| *word)
        .collect();
    out.command(&kept, Expect::FunctionIfAbsent);
    Ok(())
}

/// Appends the commands that `commands` consists of, `key` in the place of theirs if one is given; returns
/// how many. The key is the first argument after the name, of XGROUP the second.
///
/// What isn't whole commands is refused before any of it is sent: it would be read as others.
fn append(out: &mut Out<'_>, commands: &[u8], key: Option<&[u8]>) -> Result<usize, String> {
    const NO_COMMAND: &str = "its value is no sequence of commands";
    let mut n = 0;
    let mut start = 0;
    while start < commands.len() {
        let mut args = Args::at(commands, start).ok_or(NO_COMMAND)?;
        let left = args.left();
        let name = args.next().ok_or(NO_COMMAND)?;
        let mut taken = 1;
        let mut rest = start;
        if let Some(key) = key {
            let mut before = name.end + 2;
            let mut at = args.next().ok_or(NO_COMMAND)?;
            taken += 1;
            if commands.get(name).is_some_and(|name| name.eq_ignore_ascii_case(b"XGROUP")) {
                before = at.end + 2;
                at = args.next().ok_or(NO_COMMAND)?;
                taken += 1;
            }
            out.bytes.extend_from_slice(commands.get(start..before).ok_or(NO_COMMAND)?);
            encode_bulk(out.bytes, key);
            rest = at.end + 2;
        }
        taken += args.by_ref().count();
        if taken != left {
            return Err(NO_COMMAND.to_owned());
        }
        if let Some((range, at)) = commands::expire_at(commands, start)
            && lasting(at, out.now) != at
        {
            // The line `$<length>` stands before it.
            let line = commands.get(..range.start).and_then(|before| before.iter().rposition(|b| *b == b'$'));
            out.bytes.extend_from_slice(line.and_then(|line| commands.get(rest..line)).ok_or(NO_COMMAND)?);
            encode_bulk(out.bytes, &decimal(lasting(at, out.now)));
            rest = range.end + 2;
        }
        start = args.end();
        out.bytes.extend_from_slice(commands.get(rest..start).ok_or(NO_COMMAND)?);
        out.expected.replies.push((out.index, Expect::NoError));
        n += 1;
    }
    Ok(n)
}

#[cfg(test)]
mod tests;
