use bytes::Bytes;

use crate::{Hlc, Position, Seq, Term};

/// What a change does; the header `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A key of the snapshot. Its version is 0: it never beats a change made since.
    Read,
    /// The key has this value now.
    Put,
    /// The key is gone.
    Delete,
    /// A store's own operation, such as INCRBY; the value holds it in the store's own form.
    Command,
    /// The whole present state of a key, or its absence (no value).
    State,
    /// Asks the peer for a [`Op::State`] of the key.
    Refresh,
    /// Changes what is not one key: a table's definition, FLUSHALL. Subject to a policy.
    Ddl,
    /// The log's own: a new term of capture begins here. Has no seq.
    Fence,
    /// The log's own: from where capture resumes, whole. Has a seq, so that an idle site moves on.
    Position,
}

impl Op {
    /// The text of the header `op`.
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Put => "put",
            Op::Delete => "delete",
            Op::Command => "command",
            Op::State => "state",
            Op::Refresh => "refresh",
            Op::Ddl => "ddl",
            Op::Fence => "fence",
            Op::Position => "position",
        }
    }

    /// Whether the applier takes it to the store; the others are the log's own.
    pub fn is_data(self) -> bool {
        match self {
            Op::Read | Op::Put | Op::Delete | Op::Command | Op::State | Op::Ddl => true,
            Op::Refresh | Op::Fence | Op::Position => false,
        }
    }
}

/// Where in an instance a key lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// The store has one space only.
    Whole,
    /// A numbered database (Redis); the header `db`.
    Db(u32),
    /// `schema.table`; the header `table`.
    Table(Bytes),
    /// An index; the header `index`.
    Index(Bytes),
    /// A bucket; the header `bucket`.
    Bucket(Bytes),
}

impl Space {
    /// A copy that keeps nothing else alive, as [`Key::detached`].
    pub fn detached(&self) -> Space {
        let own = Bytes::copy_from_slice;
        match self {
            Space::Whole => Space::Whole,
            Space::Db(db) => Space::Db(*db),
            Space::Table(name) => Space::Table(own(name)),
            Space::Index(name) => Space::Index(own(name)),
            Space::Bucket(name) => Space::Bucket(own(name)),
        }
    }
}

/// A key and where it lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Where it lives.
    pub space: Space,
    /// The store's key, byte for byte.
    pub name: Bytes,
}

impl Key {
    /// Of what concerns no key, or all of them.
    pub fn none() -> Key {
        Key { space: Space::Whole, name: Bytes::new() }
    }

    /// A copy that keeps nothing else alive: a key that was read is part of a larger buffer.
    pub fn detached(&self) -> Key {
        Key { space: self.space.detached(), name: Bytes::copy_from_slice(&self.name) }
    }
}

/// Changes that commit in one transaction at the target; the header `group = id:n` or `id:n:last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// Unique among the open groups of a term.
    pub id: u64,
    /// From 0.
    pub n: u32,
    /// The last one. A group without it before a fence is void.
    pub last: bool,
}

/// A piece of one key's value, for values that are too large to be carried whole; the header
/// `part = n` or `n:last`. The pieces of a key follow each other in the log, other keys' changes may
/// stand between them; the key appears at the target with the last one. In a transaction, a last one without a
/// value says that the key stays as it is: what was built of it is thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    /// From 0.
    pub n: u32,
    /// The last one.
    pub last: bool,
}

/// One mutation, as it stands in the change log. Channel, origin and partition are the log's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it does.
    pub op: Op,
    /// Its number in the partition; 0 in a fence.
    pub seq: Seq,
    /// The reign of capture that wrote it.
    pub term: Term,
    /// The key; of a command on several keys the first one written. Empty name: the whole space.
    pub key: Key,
    /// The store's own content; `None` means absent. Its form is the connector's.
    pub value: Option<Bytes>,
    /// A row before its update, where the store tells it.
    pub before: Option<Bytes>,
    /// Its version.
    pub hlc: Hlc,
    /// Every change of the peer's log to this key below it was applied at the origin when this was made.
    pub seen: Seq,
    /// The same for all keys: what of the peer's log may be forgotten.
    pub low: Seq,
    /// Where it stands in the store's stream: of a group, and of what one command was split into, the
    /// place after all of it.
    pub pos: Position,
    /// The transaction it belongs to.
    pub group: Option<Group>,
    /// Its piece of a large value.
    pub part: Option<Part>,
    /// When the store made it, or else when it was captured: milliseconds since 1970.
    pub time: u64,
    /// The key's expire-at, milliseconds since 1970, of a `read`, `state` or `put`; `None`: never.
    pub expire_at: Option<u64>,
    /// The tenant whose data it is.
    pub tenant: Option<Bytes>,
    /// The tenant's epoch at the origin.
    pub epoch: u64,
    /// Its hlc is a guess: it was read from a backlog after an outage. Of a `state` a source says it, where nobody wrote it
    /// just then: see [`was_asked_for`](Change::was_asked_for).
    pub uncertain: bool,
    /// An application handed it over (docs/INTAKE.md), by this name: its site's applier writes it into its own store, too.
    pub intake: Option<Bytes>,
}

impl Change {
    /// A change as a connector hands it over: what only capture knows (seq, term, hlc, seen, low, tenant,
    /// epoch, intake) is 0 or absent.
    pub fn captured(op: Op, key: Key, value: Option<Bytes>, pos: Position, time: u64) -> Change {
        Change {
            op,
            seq: Seq(0),
            term: Term(0),
            key,
            value,
            before: None,
            hlc: Hlc(0),
            seen: Seq(0),
            low: Seq(0),
            pos,
            group: None,
            part: None,
            time,
            expire_at: None,
            tenant: None,
            epoch: 0,
            uncertain: false,
            intake: None,
        }
    }

    /// Whether it says what a key holds because somebody asked, as by [`Source::refresh`](crate::Source::refresh): it is no
    /// write of its own.
    pub fn was_asked_for(&self) -> bool {
        self.op == Op::State && self.uncertain
    }

    /// What one without a key and a value costs.
    pub const COST_MIN: usize = size_of::<Change>();

    /// What it costs to hold, in bytes.
    pub fn cost(&self) -> usize {
        let len = |b: &Option<Bytes>| b.as_ref().map_or(0, Bytes::len);
        Self::COST_MIN + self.key.name.len() + len(&self.value) + len(&self.before) + len(&self.intake)
    }
}
