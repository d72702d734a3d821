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
    if let Some(name) = &change.intake {
        out.push(("intake", name.clone()));
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
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<(RecordContext, Change), HeaderError> {
    let fields = Fields::read(headers);
    let change = fields.change(key, value)?;
    let [origin, channel] = [fields.name(Field::Origin)?, fields.name(Field::Channel)?].map(str::to_owned);
    Ok((RecordContext { channel, origin }, change))
}

/// A header that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
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
    Intake,
    Db,
    Table,
    Index,
    Bucket,
    Before,
    /// Of a message in Kafka: more of the same append follows.
    More,
    /// `key:n`, `value:n` or `before:n`: the nth piece of that part of the record that follows.
    Piece,
    /// How many pieces stand before this record.
    Pieces,
    /// Of a fence: the place of the fence before it.
    Fence,
}

/// In the order of [`Field`].
const NAMES: [&str; 27] = [
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
    "intake",
    "db",
    "table",
    "index",
    "bucket",
    "before",
    "more",
    "piece",
    "pieces",
    "fence",
];

impl Field {
    /// The header's name.
    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// The headers of a record that are known, as they are.
pub(super) struct Fields<'a> {
    known: [Option<&'a [u8]>; NAMES.len()],
    twice: Option<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn read(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Fields<'a> {
        let mut fields = Fields { known: [None; NAMES.len()], twice: None };
        // They mostly stand in our order.
        let mut next = 0;
        for (name, value) in headers {
            let ahead = NAMES[next..].iter().position(|known| *known == name).map(|at| next + at);
            let Some(at) = ahead.or_else(|| NAMES.iter().position(|known| *known == name)) else { continue };
            next = (at + 1) % NAMES.len();
            if fields.known[at].replace(value).is_some() {
                fields.twice = Some(NAMES[at]);
            }
        }
        fields
    }

    pub(super) fn get(&self, field: Field) -> Option<&'a [u8]> {
        self.known[field as usize]
    }

    pub(super) fn has(&self, field: Field) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn number(&self, field: Field) -> Result<Option<u64>, HeaderError> {
        let malformed = HeaderError::Malformed { name: field.name(), expected: "a decimal number" };
        self.get(field).map(|bytes| decimal(bytes).ok_or(malformed)).transpose()
    }

    /// The record's change.
    pub(super) fn change(&self, key: Bytes, value: Option<Bytes>) -> Result<Change, HeaderError> {
        if let Some(name) = self.twice {
            return Err(HeaderError::Twice(name.to_owned()));
        }
        let v = self.number(Field::V)?.ok_or(HeaderError::Missing("v"))?;
        if v != FORMAT {
            return Err(HeaderError::Newer(v));
        }
        let op = parse_op(self.get(Field::Op).ok_or(HeaderError::Missing("op"))?)?;
        self.name(Field::Origin)?;
        self.name(Field::Channel)?;
        let seq = self.number(Field::Seq)?;
        if seq.is_none() && op != Op::Fence {
            return Err(HeaderError::Missing("seq"));
        }
        Ok(Change {
            op,
            seq: Seq(seq.unwrap_or(0)),
            term: Term(self.number(Field::Term)?.unwrap_or(0)),
            key: Key { space: self.space()?, name: key },
            value,
            before: self.copied(Field::Before),
            hlc: Hlc(self.number(Field::Hlc)?.unwrap_or(0)),
            seen: Seq(self.number(Field::Seen)?.unwrap_or(0)),
            low: Seq(self.number(Field::Low)?.unwrap_or(0)),
            pos: self.get(Field::Pos).map_or(Ok(Position::default()), parse_position)?,
            group: self.get(Field::Group).map(parse_group).transpose()?,
            part: self.get(Field::Part).map(parse_part).transpose()?,
            time: self.number(Field::Time)?.unwrap_or(0),
            expire_at: self.number(Field::ExpireAt)?,
            tenant: self.copied(Field::Tenant),
            epoch: self.number(Field::Epoch)?.unwrap_or(0),
            uncertain: self.number(Field::Uncertain)?.unwrap_or(0) != 0,
            intake: self.copied(Field::Intake),
        })
    }

    fn copied(&self, field: Field) -> Option<Bytes> {
        self.get(field).map(Bytes::copy_from_slice)
    }

    fn name(&self, field: Field) -> Result<&'a str, HeaderError> {
        let bytes = self.get(field).ok_or(HeaderError::Missing(field.name()))?;
        let malformed = HeaderError::Malformed { name: field.name(), expected: "a name in UTF-8" };
        std::str::from_utf8(bytes).map_err(|_| malformed)
    }

    fn space(&self) -> Result<Space, HeaderError> {
        let db = self.number(Field::Db)?;
        let table = self.copied(Field::Table).map(Space::Table);
        let index = self.copied(Field::Index).map(Space::Index);
        let bucket = self.copied(Field::Bucket).map(Space::Bucket);
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

fn parse_position(bytes: &[u8]) -> Result<Position, HeaderError> {
    let parse = || {
        let at = bytes.iter().position(|byte| *byte == b'@')?;
        let rest = bytes.get(at + 1..)?;
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        Some(Position {
            history: Bytes::copy_from_slice(bytes.get(..at)?),
            at: decimal(rest.get(..slash)?)?,
            context: Bytes::copy_from_slice(rest.get(slash + 1..).unwrap_or_default()),
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
