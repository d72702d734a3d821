//! The logical record: a change as a key, a value and headers, as any Kafka consumer can read it
//! (`docs/RECORD_FORMAT.md`).

use std::fmt::Write as _;

use bytes::Bytes;
use causeway_core::{Change, Group, Hlc, Key, Op, Part, Position, Seq, Space, Term};

/// The format that is written, and the newest that is read: the header `v`.
pub const FORMAT: u64 = 1;

/// What a record's headers say besides the change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordContext {
    /// The channel's name.
    pub channel: String,
    /// The name of the site whose change it is.
    pub origin: String,
}

/// A record that is none, or that this version cannot read. Names the header, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A header that every record has is not there.
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    /// A header stands there twice.
    #[error("header `{0}` stands there twice")]
    Twice(String),
    /// A header's text is not what it should be.
    #[error("header `{name}` is not {expected}")]
    Malformed {
        /// Of the header.
        name: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// Written by a newer version of this program.
    #[error("a record of format {0}, the newest that this version reads is {FORMAT}")]
    Newer(u64),
}

/// The headers of `change`, in the order of the format's description; those that say nothing are left out.
/// The record's key is `change.key.name`, its value `change.value` (`None`: null).
pub fn headers(change: &Change, context: &RecordContext) -> Vec<(&'static str, Bytes)> {
    let text = |text: String| Bytes::from(text.into_bytes());
    let mut out = Vec::with_capacity(16);
    out.push(("v", Bytes::from_static(b"1")));
    out.push(("op", Bytes::from_static(change.op.as_str().as_bytes())));
    out.push(("origin", text(context.origin.clone())));
    out.push(("channel", text(context.channel.clone())));
    if let Some(tenant) = &change.tenant {
        out.push(("tenant", tenant.clone()));
    }
    if change.op != Op::Fence {
        out.push(("seq", text(change.seq.to_string())));
    }
    for (name, number) in [
        ("epoch", change.epoch),
        ("term", change.term.0),
        ("hlc", change.hlc.0),
        ("seen", change.seen.0),
        ("low", change.low.0),
    ] {
        if number != 0 {
            out.push((name, text(number.to_string())));
        }
    }
    if change.pos != Position::default() {
        out.push(("pos", position(&change.pos)));
    }
    if let Some(Group { id, n, last }) = change.group {
        out.push(("group", text(format!("{id}:{n}{}", if last { ":last" } else { "" }))));
    }
    if let Some(Part { n, last }) = change.part {
        out.push(("part", text(format!("{n}{}", if last { ":last" } else { "" }))));
    }
    if change.time != 0 {
        out.push(("time", text(change.time.to_string())));
    }
    if let Some(at) = change.expire_at {
        out.push(("expire_at", text(at.to_string())));
    }
    if change.uncertain {
        out.push(("uncertain", Bytes::from_static(b"1")));
    }
    match &change.key.space {
        Space::Whole => {}
        Space::Db(n) => out.push(("db", text(n.to_string()))),
        Space::Table(name) => out.push(("table", name.clone())),
        Space::Index(name) => out.push(("index", name.clone())),
        Space::Bucket(name) => out.push(("bucket", name.clone())),
    }
    if let Some(row) = &change.before {
        out.push(("before", row.clone()));
    }
    out
}

/// `history@at/context`, byte for byte what [`Position`] prints, without going through text.
fn position(pos: &Position) -> Bytes {
    let mut at = String::new();
    let _ = write!(at, "@{}", pos.at);
    let mut out = Vec::with_capacity(pos.history.len() + at.len() + 1 + pos.context.len());
    out.extend_from_slice(&pos.history);
    out.extend_from_slice(at.as_bytes());
    if !pos.context.is_empty() {
        out.push(b'/');
        out.extend_from_slice(&pos.context);
    }
    Bytes::from(out)
}

/// The change that a record holds. Headers it doesn't know are passed over: a later version of format 1
/// may add some that change nothing for this one.
///
/// # Errors
///
/// A [`HeaderError`]: this is no record of the log, or one of a newer format.
pub fn from_headers<'a>(
    key: Bytes,
    value: Option<Bytes>,
    headers: impl IntoIterator<Item = (&'a str, Bytes)>,
) -> Result<(RecordContext, Change), HeaderError> {
    let mut found = Found::default();
    for (name, value) in headers {
        if let Some(place) = found.place(name)
            && place.replace(value).is_some()
        {
            return Err(HeaderError::Twice(name.to_owned()));
        }
    }
    let v = found.number("v", Field::V)?.ok_or(HeaderError::Missing("v"))?;
    if v != FORMAT {
        return Err(HeaderError::Newer(v));
    }
    let op = parse_op(&found.take(Field::Op).ok_or(HeaderError::Missing("op"))?)?;
    let name = |name: &'static str, bytes: Option<Bytes>| {
        let bytes = bytes.ok_or(HeaderError::Missing(name))?;
        let malformed = HeaderError::Malformed { name, expected: "a name in UTF-8" };
        String::from_utf8(bytes.into()).map_err(|_| malformed)
    };
    let origin = name("origin", found.take(Field::Origin))?;
    let channel = name("channel", found.take(Field::Channel))?;
    let seq = found.number("seq", Field::Seq)?;
    if seq.is_none() && op != Op::Fence {
        return Err(HeaderError::Missing("seq"));
    }
    let change = Change {
        op,
        seq: Seq(seq.unwrap_or(0)),
        term: Term(found.number("term", Field::Term)?.unwrap_or(0)),
        key: Key { space: found.space()?, name: key },
        value,
        before: found.take(Field::Before),
        hlc: Hlc(found.number("hlc", Field::Hlc)?.unwrap_or(0)),
        seen: Seq(found.number("seen", Field::Seen)?.unwrap_or(0)),
        low: Seq(found.number("low", Field::Low)?.unwrap_or(0)),
        pos: found.take(Field::Pos).map_or(Ok(Position::default()), |bytes| parse_position(&bytes))?,
        group: found.take(Field::Group).map(|bytes| parse_group(&bytes)).transpose()?,
        part: found.take(Field::Part).map(|bytes| parse_part(&bytes)).transpose()?,
        time: found.number("time", Field::Time)?.unwrap_or(0),
        expire_at: found.number("expire_at", Field::ExpireAt)?,
        tenant: found.take(Field::Tenant),
        epoch: found.number("epoch", Field::Epoch)?.unwrap_or(0),
        uncertain: found.number("uncertain", Field::Uncertain)?.unwrap_or(0) != 0,
    };
    Ok((RecordContext { channel, origin }, change))
}

#[derive(Clone, Copy)]
enum Field {
    V,
    Op,
    Origin,
    Channel,
    Tenant,
    Seq,
    Epoch,
    Term,
    Hlc,
    Seen,
    Low,
    Pos,
    Group,
    Part,
    Time,
    ExpireAt,
    Uncertain,
    Db,
    Table,
    Index,
    Bucket,
    Before,
}

const NAMES: [&str; 22] = [
    "v",
    "op",
    "origin",
    "channel",
    "tenant",
    "seq",
    "epoch",
    "term",
    "hlc",
    "seen",
    "low",
    "pos",
    "group",
    "part",
    "time",
    "expire_at",
    "uncertain",
    "db",
    "table",
    "index",
    "bucket",
    "before",
];

/// The headers by name, in the order of [`Field`].
#[derive(Default)]
struct Found([Option<Bytes>; NAMES.len()]);

impl Found {
    fn place(&mut self, name: &str) -> Option<&mut Option<Bytes>> {
        let index = NAMES.iter().position(|known| *known == name)?;
        self.0.get_mut(index)
    }

    fn take(&mut self, field: Field) -> Option<Bytes> {
        self.0.get_mut(field as usize)?.take()
    }

    fn number(&mut self, name: &'static str, field: Field) -> Result<Option<u64>, HeaderError> {
        let malformed = HeaderError::Malformed { name, expected: "a decimal number" };
        self.take(field).map(|bytes| decimal(&bytes).ok_or(malformed)).transpose()
    }

    fn space(&mut self) -> Result<Space, HeaderError> {
        let db = self.number("db", Field::Db)?;
        let table = self.take(Field::Table).map(Space::Table);
        let index = self.take(Field::Index).map(Space::Index);
        let bucket = self.take(Field::Bucket).map(Space::Bucket);
        let too_large = HeaderError::Malformed { name: "db", expected: "the number of a database" };
        let db = db.map(|n| u32::try_from(n).map(Space::Db).map_err(|_| too_large)).transpose()?;
        let mut spaces = [db, table, index, bucket].into_iter().flatten();
        match (spaces.next(), spaces.next()) {
            (space, None) => Ok(space.unwrap_or(Space::Whole)),
            (_, Some(_)) => {
                Err(HeaderError::Malformed { name: "db", expected: "alone: a key has one space" })
            }
        }
    }
}

/// Digits only: no sign, no spaces.
fn decimal(bytes: &[u8]) -> Option<u64> {
    if !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn parse_op(bytes: &[u8]) -> Result<Op, HeaderError> {
    const ALL: [Op; 9] = [
        Op::Read,
        Op::Put,
        Op::Delete,
        Op::Command,
        Op::State,
        Op::Refresh,
        Op::Ddl,
        Op::Fence,
        Op::Position,
    ];
    let malformed = HeaderError::Malformed { name: "op", expected: "one that this version knows" };
    ALL.into_iter().find(|op| op.as_str().as_bytes() == bytes).ok_or(malformed)
}

fn parse_position(bytes: &Bytes) -> Result<Position, HeaderError> {
    let parse = || {
        let at = bytes.iter().position(|byte| *byte == b'@')?;
        let rest = bytes.get(at + 1..)?;
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        Some(Position {
            history: bytes.slice(..at),
            at: decimal(rest.get(..slash)?)?,
            context: bytes.slice((at + 1 + slash + 1).min(bytes.len())..),
        })
    };
    parse().ok_or(HeaderError::Malformed { name: "pos", expected: "history@at or history@at/context" })
}

fn parse_group(bytes: &[u8]) -> Result<Group, HeaderError> {
    let parse = || {
        let mut words = bytes.split(|byte| *byte == b':');
        let (id, n) = (decimal(words.next()?)?, decimal(words.next()?)?);
        Some(Group { id, n: n.try_into().ok()?, last: last(words)? })
    };
    parse().ok_or(HeaderError::Malformed { name: "group", expected: "id:n or id:n:last" })
}

fn parse_part(bytes: &[u8]) -> Result<Part, HeaderError> {
    let parse = || {
        let mut words = bytes.split(|byte| *byte == b':');
        let n = decimal(words.next()?)?;
        Some(Part { n: n.try_into().ok()?, last: last(words)? })
    };
    parse().ok_or(HeaderError::Malformed { name: "part", expected: "n or n:last" })
}

/// Whether what is left of a header's words is `last`; `None` if it is something else.
fn last<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Option<bool> {
    match (words.next(), words.next()) {
        (None, _) => Some(false),
        (Some(b"last"), None) => Some(true),
        _ => None,
    }
}
