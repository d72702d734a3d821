//! One partition of the embedded log: its segments, its newest blocks in memory, and reading both.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use causeway_core::{Change, Op, Seq};
use tokio::sync::watch;

use super::acked::Acked;
use super::block::{self, Damage, Reader, Sealed};
use super::segment::{self, Active, Closed, Fault, Lookup};
use super::shared::Shared;
use super::tail::Tail;
use super::writer::Queue;
use super::{Error, Offset, PartitionId, Result};

/// A lock whose holder panicked is taken all the same: what it guards is set in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stretch of a partition, in a file of its own, up to where the next one begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) first: u64,
    /// On disk, as last measured.
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) segments: Vec<Segment>,
    /// Behind the newest durable record; also where the next one will stand.
    pub(super) end: u64,
    pub(super) tail: Tail,
    /// The last segment cannot be opened again until there is room; it is not damaged.
    pub(super) suspended: bool,
    /// Why nothing can be written any more.
    pub(super) failed: Option<Error>,
}

impl State {
    fn start(&self) -> u64 {
        self.segments.first().map_or(self.end, |segment| segment.first)
    }
}

pub(super) struct Partition {
    pub(super) id: PartitionId,
    pub(super) seed: u64,
    pub(super) dir: PathBuf,
    pub(super) state: Mutex<State>,
    /// The segment that is written; `None` until the next append makes one. Locks of it are held across
    /// disk access, so it is never locked while `state` is.
    pub(super) active: RwLock<Option<Active>>,
    /// The closed segment that was read last.
    cold: Mutex<Option<(u64, Arc<Closed>)>>,
    /// What was found damaged: from, and up to.
    damaged: Mutex<BTreeMap<u64, u64>>,
    pub(super) acked: Mutex<Option<Acked>>,
    pub(super) queue: Mutex<Queue>,
    pub(super) work: Condvar,
    pub(super) end: watch::Sender<u64>,
    /// Holds the folder's lock, so it is the last to go.
    pub(super) shared: Arc<Shared>,
}

/// Opening a segment again after a failed write takes no longer than this.
const REOPENED_WITHIN: Duration = Duration::from_secs(5);
const REOPENED_LOOK: Duration = Duration::from_millis(5);

/// What cannot be read.
enum Loss {
    /// Records up to `to` are gone, or not what they were.
    Damage { to: u64, reason: String },
    /// The file system does not give them, now.
    Io(String),
    /// A write has just failed for want of room: whoever writes opens the segment again.
    Full(String),
}

/// What a pass over memory, or memory and disk, gave.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) records: Vec<(Offset, Change)>,
    pub(super) cost: usize,
    /// What comes next is on disk only.
    pub(super) disk: bool,
}

impl Partition {
    /// A partition without anything on disk.
    pub(super) fn new(shared: Arc<Shared>, id: PartitionId) -> Partition {
        Partition {
            seed: block::seed(&id),
            dir: shared.dir.join(super::embedded::folder(&id)),
            id,
            state: Mutex::default(),
            active: RwLock::new(None),
            cold: Mutex::new(None),
            damaged: Mutex::default(),
            acked: Mutex::new(None),
            queue: Mutex::default(),
            work: Condvar::new(),
            end: watch::Sender::new(0),
            shared,
        }
    }

    /// Opens what is on disk. Damage is no error: what is lost is named when it is read.
    pub(super) fn recover(&self) -> Result<()> {
        let (acked, acked_end) = Acked::open(&self.dir, self.seed)
            .map_err(|error| self.shared.io("open how far was acknowledged", error))?;
        let firsts = segment::list(&self.dir).map_err(|error| self.shared.io("list the segments", error))?;
        let mut end = acked_end;
        if let Some(&last) = firsts.last() {
            end = end.max(last);
            match self.recover_last(last) {
                Ok((active, stored)) if stored >= acked_end => {
                    end = stored;
                    *self.active.write().unwrap_or_else(PoisonError::into_inner) = Some(active);
                }
                Ok((active, stored)) => {
                    // It is left as it is; the next record goes behind what was acknowledged.
                    active.close();
                    tracing::error!(
                        partition = %self.id, from = stored, to = acked_end,
                        "acknowledged records of the log are missing; what they held has to be repaired"
                    );
                }
                Err(Fault::Damaged(reason)) => {
                    // A record takes at least one byte, so none of those that were there has this offset.
                    let length =
                        std::fs::metadata(segment::path(&self.dir, last)).map_or(0, |meta| meta.len());
                    end = end.max(last.saturating_add(length));
                    tracing::error!(
                        partition = %self.id, from = last, to = end, reason,
                        "a segment of the log is damaged; what its records held has to be repaired"
                    );
                }
                Err(fault) => return Err(self.error("open a segment", fault)),
            }
        }
        let mut state = lock(&self.state);
        for first in firsts {
            let bytes = segment::disk_bytes(&segment::path(&self.dir, first));
            self.shared.grow(bytes);
            state.segments.push(Segment { first, bytes });
        }
        state.end = end;
        drop(state);
        *lock(&self.acked) = Some(acked);
        self.end.send_replace(end);
        Ok(())
    }

    fn recover_last(&self, first: u64) -> Result<(Active, u64), Fault> {
        let active = Active::open(&self.dir, first)?;
        let stored = match active.covering(u64::MAX)? {
            None => first,
            Some((at, bytes)) => {
                Sealed::check(bytes, self.seed, at).map_err(|Damage(reason)| Fault::Damaged(reason))?.end()
            }
        };
        Ok((active, stored))
    }

    pub(super) fn error(&self, action: &'static str, fault: Fault) -> Error {
        match fault {
            Fault::Full(reason) => Error::Full { dir: self.dir.clone(), reason },
            Fault::Damaged(reason) | Fault::Io(reason) => Error::Io { dir: self.dir.clone(), action, reason },
            Fault::Missing => {
                Error::Io { dir: self.dir.clone(), action, reason: "a file is missing".to_owned() }
            }
        }
    }

    pub(super) fn bounds(&self) -> Range<u64> {
        let state = lock(&self.state);
        state.start()..state.end
    }

    /// Appends records from `at` on to `collected` until about `bytes_max` of cost are there; from memory
    /// only, or from disk as well (then it blocks).
    pub(super) fn collect(
        &self,
        mut at: u64,
        bytes_max: usize,
        disk: bool,
        collected: &mut Collected,
    ) -> Result<()> {
        collected.disk = false;
        while collected.cost < bytes_max || collected.records.is_empty() {
            let mut state = lock(&self.state);
            let bounds = state.start()..state.end;
            if at >= bounds.end {
                break;
            }
            if at < bounds.start {
                if collected.records.is_empty() {
                    let (from, start) = (Offset(at), Offset(bounds.start));
                    return Err(Error::Trimmed { partition: self.id.clone(), from, start });
                }
                break;
            }
            let in_memory = state.tail.resume(at).or_else(|| state.tail.block(at).map(Sealed::reader));
            drop(state);
            let reader = match in_memory {
                Some(reader) => Ok(reader),
                None if !disk => {
                    collected.disk = true;
                    break;
                }
                None => self.load(at).map(|block| block.reader()),
            };
            let took = reader.and_then(|reader| self.drain(reader, &mut at, bytes_max, collected));
            if let Err(loss) = took {
                if !collected.records.is_empty() {
                    break;
                }
                if at < self.bounds().start {
                    continue; // trimmed meanwhile
                }
                return Err(match loss {
                    Loss::Damage { to, reason } => {
                        let segment = self.note_damage(at, to, &reason);
                        let (from, to) = (Offset(at), Offset(to));
                        Error::Corrupt { partition: self.id.clone(), segment, from, to, reason }
                    }
                    Loss::Io(reason) | Loss::Full(reason) => self.error("read", Fault::Io(reason)),
                });
            }
        }
        Ok(())
    }

    /// Tells of a stretch of damaged records, once; names the file that should hold them.
    fn note_damage(&self, from: u64, to: u64, reason: &str) -> String {
        let segments = lock(&self.state).segments.clone();
        let first = segments.iter().rev().map(|segment| segment.first).find(|first| *first <= from);
        let path = segment::path(&self.dir, first.unwrap_or(from));
        let segment = path.strip_prefix(&self.shared.dir).unwrap_or(&path).display().to_string();
        if lock(&self.damaged).insert(from, to).is_none() {
            let after = from.checked_sub(1).and_then(|before| self.load(before).ok()).and_then(last_seq);
            let after = after.map_or_else(|| "unknown".to_owned(), |seq| seq.to_string());
            tracing::error!(partition = %self.id, segment, from, to, after_seq = after, reason,
                "records of the log are damaged; what they held is lost");
        }
        segment
    }

    /// What was found damaged and is still kept.
    pub(super) fn damaged(&self) -> Vec<Range<Offset>> {
        let start = self.bounds().start;
        let mut damaged = lock(&self.damaged);
        damaged.retain(|_, to| *to > start);
        let mut ranges: Vec<Range<Offset>> = Vec::new();
        for (&from, &to) in &*damaged {
            match ranges.last_mut() {
                Some(last) if from <= last.end.0 => last.end = last.end.max(Offset(to)),
                _ => ranges.push(Offset(from)..Offset(to)),
            }
        }
        ranges
    }

    /// Takes records out of one block.
    fn drain(
        &self,
        mut reader: Reader,
        at: &mut u64,
        bytes_max: usize,
        collected: &mut Collected,
    ) -> Result<(), Loss> {
        while collected.cost < bytes_max || collected.records.is_empty() {
            let offset = reader.next();
            let to = reader.end();
            match reader.record().map_err(|Damage(reason)| Loss::Damage { to, reason })? {
                None => break,
                Some(_) if offset < *at => {}
                Some(change) => {
                    collected.cost += change.cost();
                    collected.records.push((Offset(offset), change));
                    *at = offset + 1;
                }
            }
        }
        lock(&self.state).tail.leave(reader);
        Ok(())
    }

    /// Reads the block that holds `at` from disk, or from memory if it is there. Blocks.
    fn load(&self, at: u64) -> Result<Sealed, Loss> {
        let begin = Instant::now();
        loop {
            match self.load_now(at) {
                Err(Loss::Full(_)) if begin.elapsed() < REOPENED_WITHIN => std::thread::sleep(REOPENED_LOOK),
                loaded => return loaded,
            }
        }
    }

    fn load_now(&self, at: u64) -> Result<Sealed, Loss> {
        let state = lock(&self.state);
        if let Some(block) = state.tail.block(at) {
            return Ok(block.clone());
        }
        let after = state.segments.partition_point(|segment| segment.first <= at);
        let next = state.segments.get(after).map_or(state.end, |segment| segment.first);
        let segment = after.checked_sub(1).and_then(|index| state.segments.get(index)).copied();
        let suspended = state.suspended && after == state.segments.len();
        drop(state);
        let missing = || "they were acknowledged, and are not there".to_owned();
        let Some(segment) = segment else { return Err(Loss::Damage { to: next, reason: missing() }) };
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        let found = match &*active {
            Some(active) if active.first() == segment.first => self.look(active, at, next),
            None if suspended => {
                return Err(Loss::Io("their segment is opened again once the disk has room".to_owned()));
            }
            _ => {
                drop(active);
                self.closed(segment.first).and_then(|closed| self.look(&*closed, at, next))
            }
        };
        found.unwrap_or_else(|fault| {
            let reason = match fault {
                Fault::Full(reason) => return Err(Loss::Full(reason)),
                Fault::Io(reason) => return Err(Loss::Io(reason)),
                Fault::Damaged(reason) => format!("their segment is damaged: {reason}"),
                Fault::Missing => "their segment is not there".to_owned(),
            };
            Err(Loss::Damage { to: next, reason })
        })
    }

    fn look(&self, segment: &impl Lookup, at: u64, next: u64) -> Result<Result<Sealed, Loss>, Fault> {
        let reason = match segment.covering(at)? {
            None => "they were acknowledged, and are not there".to_owned(),
            Some((first, bytes)) => match Sealed::check(bytes, self.seed, first) {
                Ok(block) if block.end() > at => return Ok(Ok(block)),
                Ok(_) => "they were acknowledged, and are not there".to_owned(),
                Err(Damage(reason)) => reason,
            },
        };
        let to = segment.after(at)?.unwrap_or(next);
        Ok(Err(Loss::Damage { to, reason }))
    }

    fn closed(&self, first: u64) -> Result<Arc<Closed>, Fault> {
        let mut cold = lock(&self.cold);
        if let Some((open, closed)) = &*cold
            && *open == first
        {
            return Ok(closed.clone());
        }
        let closed = Arc::new(Closed::open(&self.dir, first)?);
        *cold = Some((first, closed.clone()));
        Ok(closed)
    }

    /// Forgets the handle of a segment that is removed or opened for writing.
    pub(super) fn forget_closed(&self) {
        *lock(&self.cold) = None;
    }

    /// The offset of the record with `seq`, or the first after it. Blocks.
    pub(super) fn locate(&self, seq: Seq) -> Result<u64> {
        let Range { start, end } = self.bounds();
        // The start of the last block known to begin at or before `seq`.
        let mut low = start;
        let (mut from, mut to) = (start, end);
        while from < to {
            let middle = from + (to - from) / 2;
            match self.first_seq(middle, to) {
                Some((block, first)) if first <= seq => {
                    low = low.max(block.first());
                    from = block.end();
                }
                Some((block, _)) => to = middle.min(block.first()),
                None => to = middle,
            }
        }
        let mut at = low;
        // Where damaged records begin that may hold it.
        let mut damaged = None;
        while at < end {
            let mut collected = Collected::default();
            match self.collect(at, 1 << 20, true, &mut collected) {
                Err(Error::Corrupt { to, .. }) => {
                    damaged.get_or_insert(at);
                    at = to.0;
                    continue;
                }
                done => done?,
            }
            let Some((last, _)) = collected.records.last() else { break };
            at = last.0 + 1;
            let mut with_seq =
                collected.records.iter().filter(|(_, change)| change.op != Op::Fence).peekable();
            match with_seq.peek() {
                Some((_, change)) if change.seq <= seq => damaged = None,
                _ => {}
            }
            if let Some((offset, _)) = with_seq.find(|(_, change)| change.seq >= seq) {
                return Ok(damaged.unwrap_or(offset.0));
            }
        }
        Ok(damaged.unwrap_or(end))
    }

    /// From the block that holds `at` on, and before `end`, the first block with a seq, and that seq.
    /// What is damaged is passed over.
    fn first_seq(&self, mut at: u64, end: u64) -> Option<(Sealed, Seq)> {
        while at < end {
            match self.load(at) {
                Ok(block) => {
                    let mut reader = block.reader();
                    while let Ok(Some(change)) = reader.record() {
                        if change.op != Op::Fence {
                            return Some((block, change.seq));
                        }
                    }
                    at = block.end();
                }
                Err(Loss::Damage { to, .. }) => at = to.max(at + 1),
                Err(Loss::Io(_) | Loss::Full(_)) => return None,
            }
        }
        None
    }
}

/// The seq of the last record in `block` that has one.
fn last_seq(block: Sealed) -> Option<Seq> {
    let mut reader = block.reader();
    let records = std::iter::from_fn(|| reader.record().ok().flatten());
    records.filter(|change| change.op != Op::Fence).last().map(|change| change.seq)
}
