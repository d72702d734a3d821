//! The restart point: what capture has to know again after a crash, as it stands in a `position` record.

use std::collections::BTreeMap;
use std::ops::Range;

use causeway_core::{Change, Connector, Hlc, Key, Op, Position, Seq, Term};
use serde::{Deserialize, Serialize};

use super::intake::TopicPlace;
use super::recent::key_digest;
use crate::log::{self, Log, Offset, PartitionId};

/// The value of a `position` record, as JSON. The position itself is the record's `pos`; the record's seq,
/// term, low and hlc are those of capture at that place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestartPoint {
    /// Own changes below are known to be applied by the peer; the others have to be remembered.
    pub(crate) remembered_from: u64,
    /// Up to where the log holds the stream, as text; the record's own `pos` may lie before it, where a
    /// re-read is open.
    pub(crate) last: String,
    /// The snapshot that is being read or was read last.
    pub(crate) snapshot: Option<SnapshotPoint>,
    /// Which log this is: a number of its own, made up with its first position and kept by each that follows; 0:
    /// whoever wrote this did not know.
    #[serde(default)]
    pub(crate) log: u64,
    /// Of the peer's log, what our store holds for good: every `refresh` below is answered in our log.
    #[serde(default)]
    pub(crate) settled: u64,
    /// One above the seq of the newest data change.
    #[serde(default)]
    pub(crate) data_end: u64,
    /// Milliseconds since 1970: what the store did before then stands above this record; 0: not known.
    #[serde(default)]
    pub(crate) current: u64,
    /// The histories of primaries that replicas took over from without losing anything: the stream goes on at their places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) line: Vec<String>,
    /// Of what applications handed over everything below is in the site's own store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) delivered: u64,
    /// Up to where the intake topic was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<TopicPlace>,
    /// An operator paused what is applied at this site, where several daemons may serve it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) paused: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Of so many failovers the places are known; before those, what was written counts as behind everything that comes.
const LINE_MAX: usize = 16;

impl RestartPoint {
    /// The stream has come from `last` to `next`, which may be of a replica that took over.
    pub(crate) fn passes(&mut self, last: &Position, next: &Position) {
        if last.history == next.history || last.history.is_empty() {
            return;
        }
        self.line.push(String::from_utf8_lossy(&last.history).into_owned());
        self.line.drain(..self.line.len().saturating_sub(LINE_MAX));
    }

    /// Whether places of `history` are in one order with those of `last`, to which the stream has come.
    pub(crate) fn is_in_line(&self, history: &[u8], last: &Position) -> bool {
        history == last.history || self.line.iter().any(|before| before.as_bytes() == history)
    }
}

/// A snapshot as capture knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotPoint {
    /// Its rows stand at and above this seq.
    pub(crate) first: u64,
    /// And below this one; `None`: it is not complete.
    pub(crate) end: Option<u64>,
    /// Keys to come, if the store said so.
    pub(crate) total: Option<u64>,
    /// It closes a gap, or repeats a snapshot that broke: keys that it does not name are swept.
    pub(crate) sweep: bool,
    /// It closes a gap of the stream.
    pub(crate) gap: bool,
    /// No snapshot was complete before: a key that no record names was never carried.
    #[serde(default)]
    pub(crate) initial: bool,
    /// Keys that cannot be carried.
    pub(crate) left_out: u64,
}

/// What a new term of capture finds in its own log.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) next_seq: Seq,
    pub(crate) hlc: Hlc,
    pub(crate) low: Seq,
    /// Where the source resumes; `None`: nothing was captured yet.
    pub(crate) resume_at: Option<Position>,
    /// The place of the last whole group in the log: what the source brings up to here is there already.
    pub(crate) last: Option<Position>,
    pub(crate) point: RestartPoint,
    pub(crate) last_data: Option<Seq>,
    /// Where the newest position stands.
    pub(crate) position_offset: Offset,
    /// Records behind it are damaged, or there may be a newer one among damaged records.
    pub(crate) damaged: bool,
}

const WINDOW: u64 = 2048;
const READ_BYTES: usize = 4 << 20;

/// Reads the log back to its newest `position` record and from there to `end`, the place of the new fence.
/// What is damaged is passed over, and told.
pub(crate) async fn recover(
    log: &dyn Log,
    partition: &PartitionId,
    end: Offset,
) -> Result<Recovered, log::Error> {
    let start = log.bounds(partition).start;
    let mut window = WINDOW;
    let mut from;
    loop {
        from = Offset(end.0.saturating_sub(window).max(start.0));
        let mut found = None;
        let mut last = None;
        let mut topic = None;
        let mut terms = Terms::default();
        walk_kept(log, partition, from, end, |offset, change| {
            if !terms.admits(&change) || change.op == Op::Fence {
                return;
            }
            last = Some((offset, change.seq, change.hlc));
            topic = change.intake.as_deref().and_then(TopicPlace::of).or(topic);
            if change.op == Op::Position {
                found = Some((offset, change));
            }
        })
        .await?;
        if let Some((offset, position)) = found {
            return from_position(log, partition, offset, position, end).await;
        }
        if from == start {
            // Whatever stands there was written by a capture that never came to say where it began.
            let (at, next_seq, hlc) =
                last.map_or((start, Seq(0), Hlc(0)), |(at, seq, hlc)| (at, seq.next(), hlc));
            let mut recovered = Recovered { next_seq, hlc, position_offset: start, ..Recovered::default() };
            recovered.point.topic = topic;
            recovered.damage(log, partition, at, end);
            if start > Offset(0) {
                // Retention never takes the newest position: it is gone with the oldest records.
                recovered.damaged = true;
                recovered.next_seq = if next_seq == Seq(0) { Seq(end.0) } else { next_seq };
            }
            return Ok(recovered);
        }
        window = window.saturating_mul(8);
    }
}

async fn from_position(
    log: &dyn Log,
    partition: &PartitionId,
    offset: Offset,
    position: Change,
    end: Offset,
) -> Result<Recovered, log::Error> {
    let point = restart_point(&position).ok_or_else(|| log::Error::Corrupt {
        partition: partition.clone(),
        segment: "the log".to_owned(),
        from: offset,
        to: Offset(offset.0 + 1),
        reason: "a position record without a restart point".to_owned(),
    })?;
    let mut recovered = Recovered {
        next_seq: position.seq.next(),
        hlc: position.hlc,
        low: position.low,
        resume_at: Some(position.pos.clone()),
        last: point.last.parse().ok(),
        last_data: point.data_end.checked_sub(1).map(Seq),
        point,
        position_offset: offset,
        damaged: false,
    };
    let mut terms = Terms::default();
    let mut last = offset;
    walk_kept(log, partition, Offset(offset.0 + 1), end, |offset, change| {
        if !terms.admits(&change) || change.op == Op::Fence {
            return;
        }
        last = offset;
        recovered.next_seq = change.seq.next();
        recovered.hlc = recovered.hlc.max(change.hlc);
        recovered.low = recovered.low.max(change.low);
        if change.op.is_data() {
            recovered.last_data = Some(change.seq);
        }
        let produced = change.intake.as_deref().and_then(TopicPlace::of);
        recovered.point.topic = produced.or(recovered.point.topic);
        if change.group.is_none_or(|group| group.last) {
            let last = recovered.last.replace(change.pos.clone()).unwrap_or_default();
            recovered.point.passes(&last, &change.pos);
        }
    })
    .await?;
    recovered.damage(log, partition, last, end);
    Ok(recovered)
}

impl Recovered {
    /// Up to where the log holds the stream.
    pub(crate) fn reached(&self) -> Position {
        self.last.as_ref().or(self.resume_at.as_ref()).cloned().unwrap_or_default()
    }

    /// Takes note of what is damaged behind the position and before `end`; `last`: the newest record.
    fn damage(&mut self, log: &dyn Log, partition: &PartitionId, last: Offset, end: Offset) {
        self.damaged = is_damaged(log, partition, self.position_offset, end);
        if is_damaged(log, partition, last, end) {
            // No record has a seq above its place.
            self.next_seq = self.next_seq.max(Seq(end.0));
        }
    }
}

/// Whether some of `[from, end)`, which was read, turned out to be damaged.
pub(crate) fn is_damaged(log: &dyn Log, partition: &PartitionId, from: Offset, end: Offset) -> bool {
    log.damaged(partition).iter().any(|damaged| damaged.end > from && damaged.start < end)
}

/// Calls `each` for every record of `[from, end)` that is kept, whatever retention takes meanwhile. What is
/// damaged is passed over: ask [`is_damaged`] afterwards, where that matters.
pub(crate) async fn walk_kept(
    log: &dyn Log,
    partition: &PartitionId,
    from: Offset,
    end: Offset,
    mut each: impl FnMut(Offset, Change),
) -> Result<(), log::Error> {
    let mut at = from;
    while at < end {
        // Not far beyond the end: of small records one read holds many thousands.
        let left = (end.0 - at.0).saturating_mul(Change::COST_MIN as u64);
        let bytes = left.clamp(READ_BYTES as u64 / 16, READ_BYTES as u64) as usize;
        let records = match log.read(partition, at, bytes).await {
            Err(log::Error::Trimmed { start: next, .. } | log::Error::Corrupt { to: next, .. })
                if next > at =>
            {
                at = next;
                continue;
            }
            records => records?,
        };
        let Some((last, _)) = records.last() else { return Ok(()) };
        let next = Offset(last.0 + 1);
        for (offset, change) in records {
            if offset >= end {
                return Ok(());
            }
            each(offset, change);
        }
        at = next;
    }
    Ok(())
}

/// Hands the records with `seqs` that count and are kept to `each`, in order.
pub(crate) async fn walk_seqs(
    log: &dyn Log,
    partition: &PartitionId,
    seqs: Range<Seq>,
    mut each: impl FnMut(Change),
) -> Result<(), log::Error> {
    let (start, end) = (log.locate(partition, seqs.start).await?, log.locate(partition, seqs.end).await?);
    let mut terms = Terms::default();
    walk_kept(log, partition, start, end, |_, change| {
        if terms.admits(&change) && change.op != Op::Fence && seqs.contains(&change.seq) {
            each(change);
        }
    })
    .await
}

/// The keys, by their digests, that data changes of `[from, end)` touch, as far as they are kept and `wanted`.
pub(crate) async fn touched_keys(
    log: &dyn Log,
    partition: &PartitionId,
    (from, end): (Offset, Offset),
    connector: &dyn Connector,
    wanted: impl Fn(&Change, u128, &Key) -> bool,
) -> Result<BTreeMap<u128, Key>, log::Error> {
    let mut touched = BTreeMap::new();
    walk_kept(log, partition, from, end, |_, change| {
        if !change.op.is_data() || change.key.name.is_empty() {
            return;
        }
        for (unit, _) in connector.units(&change) {
            let digest = key_digest(&unit.key);
            if wanted(&change, digest, &unit.key) {
                touched.entry(digest).or_insert(unit.key);
            }
        }
    })
    .await?;
    Ok(touched)
}

/// The seq and the time of the first data change from `from` on, as far as that can be read.
pub(crate) async fn first_data(
    log: &dyn Log,
    partition: &PartitionId,
    mut from: Offset,
) -> Option<(Seq, u64)> {
    loop {
        let records = log.read(partition, from, READ_BYTES / 4).await.ok()?;
        from = Offset(records.last()?.0.0 + 1);
        if let Some((_, change)) = records.iter().find(|(_, change)| change.op.is_data()) {
            return Some((change.seq, change.time));
        }
    }
}

/// Builds the record; the source resumes at `resume_at`.
pub(crate) fn position_record(point: &RestartPoint, resume_at: Position, time: u64) -> Change {
    // A struct of numbers and options always has a JSON form.
    let value = serde_json::to_vec(point).unwrap_or_default();
    Change::captured(Op::Position, Key::none(), Some(value.into()), resume_at, time)
}

/// Reads the restart point of a `position` record.
pub(crate) fn restart_point(change: &Change) -> Option<RestartPoint> {
    change.value.as_ref().and_then(|value| serde_json::from_slice(value).ok())
}

/// Which records of a log count: those of a term older than the newest fence above them don't.
#[derive(Debug, Default)]
pub(crate) struct Terms(Term);

impl Terms {
    /// Whether `change`, the next of the log, counts.
    pub(crate) fn admits(&mut self, change: &Change) -> bool {
        // No term has a record before its own fence, so that any record tells of the fence above it.
        let admitted = change.term >= self.0;
        self.0 = self.0.max(change.term);
        admitted
    }
}
