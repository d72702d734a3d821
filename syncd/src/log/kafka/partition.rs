//! One partition of the log: what is known of it, what was appended or read last, and who writes it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use causeway_core::{Change, Op, Seq};
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::trace;

use super::super::partition::lock;
use super::super::{Error, Offset, PartitionId, Result};
use super::cluster::Cluster;
use super::cursor::Cursor;
use super::messages::Fence;

/// What a writer that was fenced may still bring behind the fence, in messages: a new one looks so far back.
pub(super) const UNDER_WAY_MAX: usize = 32 << 10;
/// A broker that answers nothing for so long: the log has no room.
pub(super) const SILENT: Duration = Duration::from_secs(5);
/// Consumers that are kept for the next read behind the last one.
const CURSORS_MAX: usize = 3;
/// Stretches that were read elsewhere than at the end and are kept, of a partition, and about how large each is.
const PAGES_MAX: usize = 8;
const PAGE_BYTES: usize = 256 << 10;
/// Places of seqs that are remembered.
const MARKS_MAX: usize = 512;
/// Damaged stretches that are remembered.
const DAMAGED_MAX: usize = 1024;

/// What all partitions share.
pub(super) struct Shared {
    /// Bytes of cost that may still be queued.
    pub(super) permits: Semaphore,
    pub(super) partitions: usize,
    pub(super) closed: watch::Sender<bool>,
    /// Bytes for all tails.
    pub(super) cache_bytes: usize,
    /// Of the permits.
    pub(super) in_flight_bytes: usize,
    pub(super) name: String,
}

impl Shared {
    pub(super) fn is_closing(&self) -> bool {
        *self.closed.borrow()
    }

    pub(super) fn closed_error(&self) -> Error {
        Error::Closed { dir: self.name.clone().into() }
    }

    fn tail_bytes(&self) -> usize {
        self.cache_bytes / self.partitions.max(1)
    }
}

/// One partition of a topic.
pub(super) struct Partition {
    pub(super) id: PartitionId,
    pub(super) topic: String,
    pub(super) cluster: Arc<Cluster>,
    pub(super) shared: Arc<Shared>,
    /// One append is queued behind the other.
    pub(super) order: tokio::sync::Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Behind the newest record that counts.
    pub(super) end: watch::Sender<u64>,
    /// The oldest record that is kept.
    pub(super) start: AtomicU64,
    cursors: Mutex<Vec<Cursor>>,
    /// Notified when the tail has room again.
    pub(super) taken: Condvar,
}

/// What is known of a partition.
#[derive(Default)]
pub(super) struct State {
    pub(super) role: Role,
    /// Places of the fences that count, in order.
    pub(super) fences: Vec<u64>,
    /// All messages below were looked at, or written by us.
    pub(super) known_to: u64,
    /// What was appended or followed last, up to the end.
    pub(super) tail: Stretch,
    /// What was read elsewhere, the last one behind.
    pages: VecDeque<Stretch>,
    /// Where records stand that were read elsewhere, by their seqs: a search begins between two of them.
    marks: BTreeMap<Seq, u64>,
    pub(super) damaged: Vec<Range<Offset>>,
    /// When the appends that have no answer were queued.
    pub(super) under_way: VecDeque<Instant>,
    /// A thread follows the topic's end.
    pub(super) followed: bool,
    /// And has to end: nobody here wants it any more.
    pub(super) released: bool,
}

impl State {
    pub(super) fn writes(&self) -> bool {
        matches!(self.role, Role::Writes { .. })
    }

    pub(super) fn is_followed(&self) -> bool {
        !self.writes() && !self.released
    }
}

/// What this process does in a partition.
#[derive(Debug, Clone, Default)]
pub(super) enum Role {
    /// It reads; what others append comes from the broker.
    #[default]
    Reads,
    /// It writes, and the next message gets the place `next`. Its fence stands at `fence`; without one, this is where it
    /// began.
    Writes { next: u64, fence: u64 },
    /// It wrote, and can no longer.
    Failed(Error),
}

/// Records that follow each other, without holes between them.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    records: VecDeque<(Offset, Change)>,
    bytes: usize,
    /// The first record that counts at or behind this place is the first one here.
    begin: u64,
}

impl Stretch {
    /// Forgets all; what is appended next stands at or behind `begin`.
    pub(super) fn restart(&mut self, begin: u64) {
        *self = Stretch { records: VecDeque::new(), bytes: 0, begin };
    }

    pub(super) fn push(&mut self, offset: Offset, change: Change) {
        self.bytes += change.cost();
        self.records.push_back((offset, change));
    }

    /// Forgets the oldest ones so that at most `bytes_max` are kept.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.forget_oldest() {}
    }

    /// Forgets the oldest that stand before `at`, but for `bytes_max`: it is read again, where both sites wrote a key.
    fn forget_below(&mut self, at: u64, bytes_max: usize) {
        let is_below = |stretch: &Stretch| stretch.records.front().is_some_and(|(offset, _)| offset.0 < at);
        while self.bytes > bytes_max && is_below(self) && self.forget_oldest() {}
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((offset, change)) = self.records.pop_front() else { return false };
        self.bytes -= change.cost();
        self.begin = offset.0 + 1;
        true
    }

    /// The records from `at` on, at the most about `bytes_max`; `None` if the first of them is not here.
    fn read(&self, at: u64, bytes_max: usize) -> Option<Vec<(Offset, Change)>> {
        if at < self.begin {
            return None;
        }
        let from = self.records.partition_point(|(offset, _)| offset.0 < at);
        let mut bytes = 0;
        let fits = |(_, change): &&(Offset, Change)| {
            let more = bytes == 0 || bytes < bytes_max;
            bytes += change.cost();
            more
        };
        let found: Vec<_> = self.records.range(from..).take_while(fits).cloned().collect();
        (!found.is_empty()).then_some(found)
    }

    /// The place of the first record with `seq` or a later one, if it is here and one before it, too.
    fn locate(&self, seq: Seq) -> Option<Offset> {
        let first = self.records.iter().position(|(_, change)| change.op != Op::Fence)?;
        if self.records.get(first)?.1.seq > seq {
            return None;
        }
        // Fences have no seq: the record before tells.
        let before = |at: usize| {
            let mut numbered = self.records.range(..=at).rev().filter(|(_, change)| change.op != Op::Fence);
            numbered.next().map(|(_, change)| change.seq)
        };
        let (mut low, mut high) = (first, self.records.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if before(middle).is_some_and(|before| before < seq) { low = middle + 1 } else { high = middle }
        }
        self.records.get(low).map(|(offset, _)| *offset)
    }
}

impl Partition {
    pub(super) fn new(id: PartitionId, topic: String, cluster: Arc<Cluster>, shared: Arc<Shared>) -> Self {
        Partition {
            id,
            topic,
            cluster,
            shared,
            order: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
            end: watch::Sender::new(0),
            start: AtomicU64::new(0),
            cursors: Mutex::default(),
            taken: Condvar::new(),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.id.number
    }

    pub(super) fn bounds(&self) -> Range<u64> {
        let end = *self.end.borrow();
        self.start.load(Ordering::SeqCst).min(end)..end
    }

    /// Moves the end to behind the record at `last`.
    pub(super) fn reached(&self, last: Offset) {
        self.end.send_if_modified(|end| {
            let moved = last.0 + 1 > *end;
            *end = (*end).max(last.0 + 1);
            moved
        });
    }

    /// The newest fence above `at`.
    pub(super) fn fence_above(&self, at: u64) -> u64 {
        let state = lock(&self.state);
        let after = state.fences.partition_point(|fence| *fence < at);
        after.checked_sub(1).and_then(|index| state.fences.get(index)).copied().unwrap_or(0)
    }

    /// Notes a fence that was found.
    pub(super) fn fenced(&self, fence: Fence) {
        let fences = &mut lock(&self.state).fences;
        if let Err(index) = fences.binary_search(&fence.at) {
            fences.insert(index, fence.at);
        }
    }

    /// Notes what cannot be read.
    pub(super) fn note_damaged(&self, at: u64) {
        let damaged = &mut lock(&self.state).damaged;
        let found = Offset(at)..Offset(at + 1);
        if damaged.len() < DAMAGED_MAX && !damaged.contains(&found) {
            damaged.push(found);
            damaged.sort_by_key(|range| range.start);
        }
    }

    /// Whoever carries the partition on has passed `at`: what it leaves behind makes room for what follows.
    pub(super) fn passed(&self, at: u64) {
        let mut state = lock(&self.state);
        if !state.writes() {
            state.tail.forget_below(at, self.shared.tail_bytes() / 2);
            self.taken.notify_all();
        }
    }

    /// From memory, if it is there.
    pub(super) fn read_kept(&self, from: u64, bytes_max: usize) -> Option<Vec<(Offset, Change)>> {
        let state = lock(&self.state);
        let mut pages = state.pages.iter().rev();
        state.tail.read(from, bytes_max).or_else(|| pages.find_map(|page| page.read(from, bytes_max)))
    }

    /// The last records, if memory holds what the topic holds.
    pub(super) fn newest_kept(&self, count: u64) -> Option<Vec<(Offset, Change)>> {
        let state = lock(&self.state);
        let keeps_up = state.writes() || (state.followed && self.has_room(&state));
        let from = self.bounds().end.saturating_sub(count).max(state.tail.begin);
        state.tail.read(from, usize::MAX).filter(|_| keeps_up)
    }

    /// The same, asking the broker; blocks.
    pub(super) fn newest_cold(&self, count: u64) -> Result<Vec<(Offset, Change)>> {
        let (low, high) = self.watermarks()?;
        let mut from = high.saturating_sub(count).max(low);
        let mut newest = Vec::new();
        while from < high {
            let records = self.read_cold(from, PAGE_BYTES)?;
            let Some((last, _)) = records.last() else { break };
            from = last.0 + 1;
            newest.extend(records);
        }
        Ok(newest)
    }

    pub(super) fn locate_kept(&self, seq: Seq) -> Option<Offset> {
        let state = lock(&self.state);
        state.tail.locate(seq).or_else(|| state.pages.iter().rev().find_map(|page| page.locate(seq)))
    }

    /// The nearest records that were read: up to `seq`, and behind it.
    pub(super) fn marks(&self, seq: Seq) -> [Option<(u64, Seq)>; 2] {
        let marks = &lock(&self.state).marks;
        let found = [marks.range(..=seq).next_back(), marks.range(seq.next()..).next()];
        found.map(|found| found.map(|(seq, at)| (*at, *seq)))
    }

    fn mark(&self, records: &[(Offset, Change)]) {
        let numbered = || records.iter().filter(|(_, change)| change.op != Op::Fence);
        let ends = [numbered().next(), numbered().next_back()];
        let marks = &mut lock(&self.state).marks;
        marks.extend(ends.into_iter().flatten().map(|(offset, change)| (change.seq, offset.0)));
        while marks.len() > MARKS_MAX {
            marks.pop_first();
        }
    }

    /// Takes over what was read behind the last of the tail.
    pub(super) fn follow(&self, records: Vec<(Offset, Change)>, known_to: u64) {
        let mut state = lock(&self.state);
        state.known_to = state.known_to.max(known_to);
        let Some(last) = records.last().map(|(offset, _)| *offset) else { return };
        // It may have become ours while they were read: then its writer fills the tail.
        if state.writes() {
            return;
        }
        records.into_iter().for_each(|(offset, change)| state.tail.push(offset, change));
        drop(state);
        self.reached(last);
    }

    /// What is followed goes on at `from`: not all between the tail and that can be read.
    pub(super) fn follow_from(&self, from: u64) {
        let mut state = lock(&self.state);
        if !state.writes() {
            state.tail.restart(from);
        }
    }

    /// Waits until there is room for what follows, at most a while.
    pub(super) fn wait_for_room(&self) -> bool {
        let state = lock(&self.state);
        if self.has_room(&state) {
            return true;
        }
        let waited = self.taken.wait_timeout(state, Duration::from_millis(100));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.has_room(&state)
    }

    fn has_room(&self, state: &State) -> bool {
        state.tail.bytes < self.shared.tail_bytes().max(1)
    }

    /// Reads with a consumer, from where one is or anew; blocks.
    pub(super) fn read_cold(&self, from: u64, bytes_max: usize) -> Result<Vec<(Offset, Change)>> {
        let kept = {
            let mut cursors = lock(&self.cursors);
            let index = cursors.iter().position(|cursor| cursor.continues(from));
            index.map(|index| cursors.remove(index))
        };
        let goes_on = kept.is_some();
        let mut cursor = match kept {
            Some(cursor) => cursor,
            None => {
                let oldest = {
                    let mut cursors = lock(&self.cursors);
                    (cursors.len() >= CURSORS_MAX).then(|| cursors.remove(0))
                };
                let newest = self.fence_above(from);
                match oldest {
                    Some(mut cursor) => {
                        cursor.seek(self, from, newest)?;
                        cursor
                    }
                    None => Cursor::open(self, from, newest)?,
                }
            }
        };
        let began = Instant::now();
        // Whoever reads a little, or somewhere else, reads on, or reads there again.
        let mut records = cursor.read(self, from, bytes_max.max(PAGE_BYTES))?;
        trace!(partition = %self.id, from, records = records.len(), took = ?began.elapsed(), "read from the broker");
        // It may go further than whoever follows the end has come: what was read is there, and is counted on.
        records.last().into_iter().for_each(|(last, _)| self.reached(*last));
        self.mark(&records);
        if bytes_max < PAGE_BYTES || !goes_on {
            let mut page = Stretch { begin: from, ..Stretch::default() };
            records.into_iter().for_each(|(offset, change)| page.push(offset, change));
            records = page.read(from, bytes_max).unwrap_or_default();
            let pages = &mut lock(&self.state).pages;
            pages.push_back(page);
            let bytes_max = self.shared.tail_bytes() / 4;
            while pages.iter().map(|page| page.bytes).sum::<usize>() > bytes_max || pages.len() > PAGES_MAX {
                pages.pop_front();
            }
        }
        if !cursor.spoiled {
            lock(&self.cursors).push(cursor);
        }
        Ok(records)
    }

    /// Neither written nor read on here any more, until somebody begins again.
    pub(super) fn release(&self) {
        {
            let mut state = lock(&self.state);
            state.role = Role::Reads;
            state.released = true;
            state.pages.clear();
            let known_to = state.known_to;
            state.tail.restart(known_to);
        }
        self.close();
    }

    /// Ends all consumers.
    pub(super) fn close(&self) {
        lock(&self.cursors).clear();
        self.taken.notify_all();
    }

    /// Since when the oldest append without an answer waits.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        lock(&self.state).under_way.front().copied()
    }
}

/// One append on its way.
pub(super) struct Pending {
    partition: Arc<Partition>,
    inner: Mutex<PendingState>,
    cost: usize,
}

struct PendingState {
    left: u64,
    /// Of each message that was answered for.
    places: Vec<u64>,
    failure: Option<Error>,
    /// The records, each with the number of messages before it in this append.
    records: Vec<(u64, Change)>,
    reply: Option<oneshot::Sender<Result<Offset>>>,
}

impl Pending {
    /// `messages` of them carry `records`; `cost` permits are given back when all are answered for.
    pub(super) fn new(
        partition: Arc<Partition>,
        records: Vec<(u64, Change)>,
        messages: u64,
        cost: usize,
        reply: oneshot::Sender<Result<Offset>>,
    ) -> Arc<Pending> {
        let places = Vec::with_capacity(messages as usize);
        let inner = PendingState { left: messages, places, failure: None, records, reply: Some(reply) };
        Arc::new(Pending { partition, inner: Mutex::new(inner), cost })
    }

    /// What became of one of its messages: its place, or why it has none. In the order of the partition.
    pub(super) fn delivered(&self, result: Result<i64, String>) {
        let mut inner = lock(&self.inner);
        match result.map(u64::try_from) {
            Ok(Ok(place)) => inner.places.push(place),
            // It is there, and the broker does not remember where.
            Ok(Err(_)) => self.fail(&mut inner, "its place is not known"),
            Err(reason) => self.fail(&mut inner, &reason),
        }
        self.answered(&mut inner, 1);
    }

    /// `count` messages never came to be sent.
    pub(super) fn give_up(&self, count: u64, reason: &str) {
        let mut inner = lock(&self.inner);
        self.fail(&mut inner, reason);
        self.answered(&mut inner, count);
    }

    fn fail(&self, inner: &mut PendingState, reason: &str) {
        inner.failure.get_or_insert_with(|| self.partition.cluster.failed("append", &reason));
    }

    fn answered(&self, inner: &mut PendingState, count: u64) {
        inner.left = inner.left.saturating_sub(count);
        if inner.left > 0 {
            return;
        }
        self.partition.shared.permits.add_permits(self.cost);
        lock(&self.partition.state).under_way.pop_front();
        let outcome = self.settle(inner);
        if let Err(error) = &outcome {
            // Nothing may follow what is missing.
            let mut state = lock(&self.partition.state);
            if state.writes() {
                state.role = Role::Failed(error.clone());
            }
        }
        if let Some(reply) = inner.reply.take() {
            let _nobody_waits = reply.send(outcome);
        }
    }

    /// Sees whether all of it stands where it counts.
    fn settle(&self, inner: &mut PendingState) -> Result<Offset> {
        let partition = &self.partition;
        let (next, fence) = match &lock(&partition.state).role {
            Role::Writes { next, fence } => (*next, *fence),
            Role::Failed(error) => return Err(error.clone()),
            Role::Reads => return Err(Error::Fenced { partition: partition.id.clone() }),
        };
        if let Some(failure) = inner.failure.take() {
            return Err(failure);
        }
        let (Some(&first), Some(&last)) = (inner.places.first(), inner.places.last()) else {
            return Err(partition.shared.closed_error());
        };
        if first < next {
            return Err(partition.anew(next, 0, last + 1));
        }
        if last + 1 > next + inner.places.len() as u64 {
            partition.is_still_ours(fence, next, last + 1)?;
        }
        let mut state = lock(&partition.state);
        state.role = Role::Writes { next: last + 1, fence };
        state.known_to = last + 1;
        let mut newest = None;
        for (at, change) in inner.records.drain(..) {
            let place = inner.places.get(at as usize).copied().map(Offset).unwrap_or_default();
            newest = Some(place);
            state.tail.push(place, change);
        }
        state.tail.shrink(partition.shared.tail_bytes());
        drop(state);
        newest.into_iter().for_each(|newest| partition.reached(newest));
        Ok(Offset(first))
    }
}

impl Partition {
    /// Others' messages stand between ours in `from..end`: [`Error::Fenced`] if a newer fence than ours is among them.
    /// Those of a writer that was fenced and has just woken up are void.
    fn is_still_ours(&self, fence: u64, from: u64, end: u64) -> Result<()> {
        self.explore_to(from, self.start.load(Ordering::SeqCst), end)?;
        match lock(&self.state).fences.last() {
            Some(newest) if *newest > fence => Err(Error::Fenced { partition: self.id.clone() }),
            _ => Ok(()),
        }
    }
}
