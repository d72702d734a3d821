use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Change, Key, Marker, Position, Result, Token};

/// What comes out of a store, in the order of the store's own stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A local write, or a key of the snapshot. Changes of one group follow each other without anything
    /// else between them.
    Change(Change),
    /// A transaction of our own applier has passed: what it changed is the peer's and is not captured.
    Marker {
        /// As it stood in the transaction.
        marker: Marker,
        /// After the transaction.
        pos: Position,
    },
    /// A token of [`Target::watch`](crate::Target::watch) or [`Source::refresh`] has passed.
    Token(Token),
    /// The store was emptied or its databases swapped: the marker is gone and has to be written again.
    MarkerLost {
        /// After the command that did it.
        pos: Position,
    },
    /// A snapshot begins; the reads up to [`Event::SnapshotEnded`] are one, whole.
    SnapshotStarted {
        /// How many keys, if the store says so.
        total: Option<u64>,
        /// From where the stream goes on after it.
        pos: Position,
    },
    /// The snapshot is complete: a key that none of its reads named did not exist.
    SnapshotEnded {
        /// From where the stream goes on.
        pos: Position,
        /// Keys that cannot be carried, with the reason, at most a thousand of them, and how many in all.
        left_out: (u64, Vec<(Key, String)>),
    },
    /// Something of the stream cannot be carried: the target lacks it, or keeps what it had. Counted and
    /// named as what [`Event::SnapshotEnded`] leaves out; never within a group.
    LeftOut {
        /// What it is; an empty name where nobody knows the keys.
        key: Key,
        /// Why, without values.
        reason: String,
        /// Behind it. A stream that was resumed tells again what stands behind the place of then.
        pos: Position,
    },
    /// The stream has come this far, and nothing of it is outstanding.
    Idle {
        /// This far.
        pos: Position,
    },
}

/// What [`Source::open`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The stream goes on where it was asked to.
    Resumed,
    /// The stream begins anew, with a snapshot of what exists now.
    Anew {
        /// Why it could not go on, where it was asked to.
        lost: Option<String>,
    },
}

/// Tells how much of what the store keeps of its stream for a slow reader has not been read yet: 0 is nothing,
/// at 1 the store may give the reader up or forget what it has not read. As known in the last second or two;
/// `None` where it cannot be told, as when the source is not open, or gone. Returns at once, and may be called
/// by anybody: a reader that is stuck cannot tell it itself.
pub type Behind = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

/// Tells how many keys wait to be read again: something was written to them of which the log does not know yet. Returns at
/// once, and may be called by anybody, as [`Behind`].
pub type Rereads = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Keys, each with the last place of a stream where the log says what it held. See [`Source::open`].
pub type Told = HashMap<Key, u64>;

/// The change stream of one partition of a store, joined to a snapshot.
#[async_trait]
pub trait Source: Send {
    /// Connects and positions the stream: behind `from`, or anew if that is `None` or gone. `snapshot`
    /// says whether a stream that begins anew has to bring what exists. Where the connector
    /// [`resumes_snapshot`](crate::Capability::resumes_snapshot), `from` may be of one that broke: it goes on there, too. `told` is what the log tells of the stretch
    /// that comes again: what a write there left in a key that is told of at a place behind it is not read again, as
    /// it would pass for newer than it is.
    ///
    /// The caller lets nothing be applied into this store while this runs, so that the snapshot holds
    /// exactly what was applied before. May be called again after any error.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`. A lost position is no error: see [`Opened::Anew`].
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, told: Told) -> Result<Opened>;

    /// Says up to where the log holds the stream, before each [`open`](Source::open) that goes on somewhere: at `from` or
    /// behind it. What `open` brings again up to there has places up to there, and everything else has places behind it,
    /// also where the store has become another one meanwhile.
    fn held(&mut self, last: &Position) {
        let _ = last;
    }

    /// Says where the snapshot that broke had come to, by the restart point of then. The next
    /// [`open`](Source::open) that begins anew may begin its snapshot there, so that what was never read comes
    /// first. That changes its order alone: it names every key all the same, as what had been read before the
    /// break may have changed in it. A source that gets its snapshot in one piece has no use for it.
    fn snapshot_broke_at(&mut self, restart_point: &Position) {
        let _ = restart_point;
    }

    /// Whether the store, as it was found by the last [`open`](Source::open), still holds everything that
    /// its stream ever showed, whatever crashed: it is synced to disk before it is streamed. If not, what
    /// its log knows and it may have forgotten is asked for at the peer after a lost position.
    fn keeps_what_it_streamed(&self) -> bool {
        false
    }

    /// What it does less well than it could, as the last [`open`](Source::open) found it, and what to do about
    /// it; for the operator, as long as the source is open.
    fn warning(&self) -> Option<String> {
        None
    }

    /// Whether `last`, up to which the log holds the stream, is not a place of the stream that was resumed: a
    /// server that took over from another one had not got so far, and went on in its own way from an earlier
    /// place. What the log holds beyond that place is lost to the store.
    fn diverged(&self, last: &Position) -> bool {
        let _ = last;
        false
    }

    /// Whether the last [`open`](Source::open) went on in the stream of another store, a replica that took over: what
    /// comes again from before the place of [`held`](Source::held) has other places than the log tells, in the same
    /// order and none behind that place.
    fn moved(&self) -> bool {
        false
    }

    /// What tells how far this source is behind, over all its [`open`](Source::open)s. While that is half or
    /// more, nothing is applied into the store. `None`: the store keeps its stream whoever is slow.
    fn behind(&self) -> Option<Behind> {
        None
    }

    /// What tells how many keys are being read again, over all its [`open`](Source::open)s. `None`: its stream tells what was
    /// written, and nothing is.
    fn rereads(&self) -> Option<Rereads> {
        None
    }

    /// Milliseconds since 1970: what the store did before then came out of the calls of [`next`](Source::next) before the
    /// last one, as far as that is known. `None`: it is not, or not in this source. What comes after an
    /// [`open`](Source::open) that went on, until this is past it, is as old as its [`time`](Change::time) says.
    fn current(&self) -> Option<u64> {
        None
    }

    /// After an [`open`](Source::open) that went on: what comes at places up to here was written before it was opened, nobody knows
    /// when. `None`: its [`time`](Change::time) says when, or there is no such place.
    fn backlog_end(&self) -> Option<u64> {
        None
    }

    /// Waits for at least one event and appends what is there to `events`, at most about `bytes_max` of
    /// cost. May be dropped while it waits, without loss.
    ///
    /// # Errors
    ///
    /// Any; the stream has to be opened again then.
    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()>;

    /// Tells the store that the log holds everything up to `durable`. Returns at once.
    fn acknowledge(&mut self, durable: &Position);

    /// From where a restart has to read again, given that everything before `durable` is in the log:
    /// `durable` itself, or the place before the oldest re-read that is still open.
    fn restart_point(&self, durable: &Position) -> Position;

    /// Asks for an [`Op::State`](crate::Op::State) of each key, read together with a token, so that it
    /// stands in the stream where it was read. The states come as events, followed by the token returned
    /// here as [`Event::Token`], and are [`uncertain`](Change::uncertain) where the peer's changes are applied into the
    /// store: those of a write that the stream does not tell are not. Keys that the channel does not carry are left out.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`; nothing was asked then.
    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token>;
}
