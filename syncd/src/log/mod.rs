//! The change log: the durable, ordered record of a channel's changes, one for each origin site.
//!
//! [`Log`] is what capture appends to and the applier reads from; [`EmbeddedLog`] is the implementation
//! inside one process and one folder. [`headers`] and [`from_headers`] give the logical record, as it
//! stands in Kafka; the embedded log's own binary form is in `block`. Both are described in
//! `docs/RECORD_FORMAT.md` and fixed by `tests/vectors/record_v1.json`.

mod acked;
mod block;
mod embedded;
mod error;
mod headers;
mod kafka;
mod partition;
#[cfg(test)]
mod record_tests;
#[cfg(test)]
mod samples;
mod segment;
mod shared;
mod tail;
mod varint;
mod writer;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use causeway_core::{Change, Seq, Term};
use tokio::sync::oneshot;

pub(crate) use embedded::take_lock;
pub use embedded::{EmbeddedLog, EmbeddedOptions};
pub use error::{Error, Result};
pub use headers::{FORMAT, HeaderError, RecordContext, from_headers, headers};
pub(crate) use kafka::new_name;
pub use kafka::{
    Group, GroupMember, IntakeReader, IntakeTopic, KafkaCluster, KafkaLog, KafkaOptions, Membership,
    Produced, Turn,
};

/// One partition of one site's changes to one channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    /// The channel's name.
    pub channel: String,
    /// The name of the site whose changes these are.
    pub origin: String,
    /// From 0.
    pub number: u32,
}

/// `channel.origin.number`
impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.channel, self.origin, self.number)
    }
}

/// A record's place in a partition of the log: from 0, without holes except where records were damaged.
/// Not a [`Seq`]: the log's own fences have a place and no seq.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The term that a fence at this place begins.
impl From<Offset> for Term {
    fn from(place: Offset) -> Term {
        Term(place.0)
    }
}

/// The outcome of one [`Log::append`]: resolves to the offset of its first change once all of it is
/// durable. Appends of one partition resolve in order. May be dropped: the changes are written all the same.
#[derive(Debug)]
pub struct Appended {
    receiver: oneshot::Receiver<Result<Offset>>,
    closed: Error,
}

impl Appended {
    /// What resolves when `receiver` does, or to `closed` if its sender is gone.
    pub(crate) fn new(receiver: oneshot::Receiver<Result<Offset>>, closed: Error) -> Appended {
        Appended { receiver, closed }
    }
}

impl Future for Appended {
    type Output = Result<Offset>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = self.closed.clone();
        Pin::new(&mut self.receiver).poll(cx).map(|sent| sent.unwrap_or(Err(closed)))
    }
}

/// The durable log of changes. Cheap to share; all methods may be called at the same time.
#[async_trait]
pub trait Log: Send + Sync {
    /// Queues `changes` and returns a handle that resolves to the offset of the first one when all of them
    /// are durable (fsynced). One call is atomic: after a crash all of its changes are there or none.
    /// Calls for one partition keep their order. Waits only while the bound on bytes under way is reached,
    /// which includes the time in which the log is [full](Log::room). An empty `changes` resolves to the
    /// end that the partition has by then.
    ///
    /// A fence, alone in its call, begins a term: the place where it stands. In a log that others write, too, the
    /// call waits until it came to stand directly behind all that counts before it.
    ///
    /// Dropped while it waits, it has queued nothing.
    ///
    /// # Errors
    ///
    /// * [`Error::Closed`]; [`Error::Name`] for a partition that cannot be named in the log.
    /// * From the handle: [`Error::Fenced`] if another writer has begun a newer term. [`Error::Full`] if the log
    ///   was closed while full, [`Error::Io`] if the disk failed: then nothing can be appended until the log is
    ///   opened anew, and what this call brought may or may not be there.
    async fn append(&self, partition: &PartitionId, changes: Vec<Change>) -> Result<Appended>;

    /// Durable records from `from` on, in order, at most about `bytes_max` of [`Change::cost`]; at least
    /// one if there is one, none at the end or beyond it.
    ///
    /// # Errors
    ///
    /// [`Error::Trimmed`], [`Error::Corrupt`] (only if the record at `from` is damaged: what stands before
    /// a damaged one is returned first), [`Error::Io`].
    async fn read(
        &self,
        partition: &PartitionId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<(Offset, Change)>>;

    /// The offset of the durable record with this seq, or of the first one with a later seq; the end if
    /// there is none. Fences have no seq and are passed over. If `seq` lies before what is kept, this is
    /// the first record kept that has a seq: compare. If it may be among records that are damaged, this is
    /// the first of those.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    async fn locate(&self, partition: &PartitionId, seq: Seq) -> Result<Offset>;

    /// The stretches that were found damaged since the log was opened, as far as they are kept; in order. Each
    /// was told when it was found.
    fn damaged(&self, partition: &PartitionId) -> Vec<Range<Offset>> {
        let _ = partition;
        Vec::new()
    }

    /// What is kept and durable: from the oldest record to behind the newest. `0..0` for a partition to
    /// which nothing was ever appended.
    fn bounds(&self, partition: &PartitionId) -> Range<Offset>;

    /// Where the partition ends now, also by what others appended and nobody here has read yet; [`bounds`](Log::bounds)
    /// tells of it from then on.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Log::read).
    async fn end(&self, partition: &PartitionId) -> Result<Offset> {
        Ok(self.bounds(partition).end)
    }

    /// Returns when `bounds().end > end`, or when the log is closed. May be dropped.
    async fn wait_beyond(&self, partition: &PartitionId, end: Offset);

    /// Retention: forgets records before `below` that were appended longer ago than the configured age.
    /// Whole blocks go, so that some records before `below` may stay. Returns how many went.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    async fn trim(&self, partition: &PartitionId, below: Offset) -> Result<u64>;

    /// The topic to which applications produce what they hand over at the partition's origin, if there is one.
    fn intake_topic(&self, partition: &PartitionId) -> Option<IntakeTopic> {
        let _ = partition;
        None
    }

    /// What is queued to be written, in bytes of [`Change::cost`].
    fn queued_bytes(&self) -> usize {
        0
    }

    /// What the log takes on disk, in bytes; at most a few seconds old.
    fn size_bytes(&self) -> u64;

    /// The last records that the log holds, about `count` of them: also of what others appended and nobody here has
    /// read yet, of which [`bounds`](Log::bounds) does not tell.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Log::read).
    async fn newest(&self, partition: &PartitionId, count: u64) -> Result<Vec<(Offset, Change)>> {
        let Range { start, end } = self.bounds(partition);
        self.read(partition, Offset(end.0.saturating_sub(count)).max(start), usize::MAX).await
    }

    /// Whoever carries the partition on has taken all below `at`: what memory holds of it may go.
    fn passed(&self, partition: &PartitionId, at: Offset) {
        let _ = (partition, at);
    }

    /// Nobody here appends to it or reads on, until somebody begins again: what memory holds of it may go.
    fn release(&self, partition: &PartitionId) {
        let _ = partition;
    }

    /// Whether there is room. Ask before reading more from a store, so that capture pauses on purpose.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], as long as nothing can be written.
    fn room(&self) -> Result<()>;

    /// Nothing can be written before an applier makes room: whoever waits for a capture would wait for ever.
    fn is_full(&self) -> bool {
        matches!(self.room(), Err(Error::Full { .. }))
    }

    /// Returns when there is [room](Log::room), or when the log is closed. May be dropped.
    async fn room_returned(&self);

    /// Writes what is queued, releases the folder and returns. Everything afterwards is [`Error::Closed`].
    async fn close(&self);
}
