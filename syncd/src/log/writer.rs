//! The thread that writes a partition: while one group is being fsynced the next one gathers.
//!
//! One thread for each partition, so that no fsync blocks the runtime, one partition's trouble is not
//! another's, and their fsyncs overlap.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use causeway_core::Change;
use tokio::sync::oneshot;

use super::acked::Acked;
use super::block::{HEADER, Sealed, Writer};
use super::partition::{Partition, Segment, lock};
use super::segment::{self, Active, Fault, Lookup};
use super::{Error, Offset, Result};

/// How much cost goes into one commit: enough that the fsync's share is small, and little enough that the
/// store below keeps it in memory.
const GROUP_COST_MAX: usize = 4 << 20;
/// How soon after a commit the next one may begin, if it is small. A commit costs the store some 30 KiB of
/// pages and 170 µs of CPU however little it holds: without this a steady trickle would keep it at that.
const COMMIT_GAP: Duration = Duration::from_millis(1);
/// The cost from which on a commit is not small.
const SMALL_COST: usize = 64 << 10;
/// How often a full log is tried again without being told of room.
const FULL_RETRY: Duration = Duration::from_millis(250);
/// What the store adds to a block in a page.
const PAGE_OVERHEAD: usize = 64;
const PAGE: usize = 4 << 10;

/// One call of `append`.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) changes: Vec<Change>,
    pub(super) cost: usize,
    pub(super) reply: oneshot::Sender<Result<Offset>>,
}

/// What waits for the writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) items: VecDeque<Item>,
    /// Asks to remove the last segment, if nothing was appended meanwhile to make it end elsewhere.
    pub(super) drop_last: Option<(u64, oneshot::Sender<()>)>,
    pub(super) thread: Option<JoinHandle<()>>,
    /// The thread has ended; nothing more is taken.
    pub(super) ended: bool,
}

/// Queues an item, and starts the writer if it is the partition's first.
pub(super) fn enqueue(partition: &Arc<Partition>, item: Item) -> Result<()> {
    let mut queue = lock(&partition.queue);
    if queue.ended || partition.shared.is_closing() {
        partition.shared.permits.add_permits(item.cost);
        return Err(partition.shared.closed_error());
    }
    queue.items.push_back(item);
    start(partition, &mut queue)?;
    partition.work.notify_one();
    Ok(())
}

/// Starts the writer, if it doesn't run yet.
pub(super) fn start(partition: &Arc<Partition>, queue: &mut Queue) -> Result<()> {
    if queue.thread.is_none() {
        let own = partition.clone();
        let thread = std::thread::Builder::new()
            .name("log writer".to_owned())
            .spawn(move || run(&own))
            .map_err(|error| partition.shared.io("start a writer", error))?;
        queue.thread = Some(thread);
    }
    Ok(())
}

fn run(partition: &Partition) {
    let mut begun = None;
    while let Some(group) = next_group(partition, begun) {
        begun = Some(Instant::now());
        let cost = group.iter().map(|item| item.cost).sum();
        let end = lock(&partition.state).end;
        let (blocks, firsts) = encode(partition, &group, end);
        let result = match lock(&partition.state).failed.clone() {
            Some(error) => Err(error),
            None => Ok(()),
        };
        let result = result.and_then(|()| commit_when_room(partition, &blocks));
        if let Err(error) = &result {
            if !matches!(error, Error::Full { .. }) {
                tracing::error!(partition = %partition.id, %error, "the log cannot be written");
            }
            lock(&partition.state).failed.get_or_insert_with(|| error.clone());
        } else if let Some(last) = blocks.last() {
            publish(partition, &blocks, last.end());
        }
        for (item, first) in group.into_iter().zip(firsts) {
            let _ = item.reply.send(result.clone().map(|()| Offset(first)));
        }
        partition.shared.permits.add_permits(cost);
    }
    let mut active = partition.active.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(active) = active.take() {
        active.close();
    }
}

/// Waits for appends; `None` once the log is closed and all are written. `begun`: the last commit.
fn next_group(partition: &Partition, begun: Option<Instant>) -> Option<Vec<Item>> {
    let mut queue = lock(&partition.queue);
    loop {
        if let Some((below, done)) = queue.drop_last.take() {
            drop(queue);
            drop_last(partition, below);
            let _ = done.send(());
            queue = lock(&partition.queue);
            continue;
        }
        let rest = begun.and_then(|begun| COMMIT_GAP.checked_sub(begun.elapsed()));
        if let Some(rest) = rest
            && !queue.items.is_empty()
            && !partition.shared.is_closing()
            && queue.items.iter().map(|item| item.cost).sum::<usize>() < SMALL_COST
        {
            queue = partition.work.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let mut group = Vec::new();
        let mut cost = 0;
        while let Some(item) = queue.items.pop_front() {
            if !group.is_empty() && cost + item.cost > GROUP_COST_MAX {
                queue.items.push_front(item);
                break;
            }
            cost += item.cost;
            group.push(item);
        }
        if !group.is_empty() {
            return Some(group);
        }
        if partition.shared.is_closing() {
            queue.ended = true;
            return None;
        }
        queue = partition.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The group as blocks, the first record at `end`, and the offset of each item's first record.
fn encode(partition: &Partition, group: &[Item], end: u64) -> (Vec<Sealed>, Vec<u64>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let changes = || group.iter().flat_map(|item| &item.changes);
    let mut left: usize = changes().map(estimate).sum();
    let mut at = end;
    let mut blocks = Vec::new();
    let mut firsts = Vec::with_capacity(group.len());
    let mut limit = block_size(left, partition.shared.options.block_bytes);
    let mut writer = Writer::new(at, limit.min(left + HEADER));
    for item in group {
        firsts.push(at);
        for change in &item.changes {
            let size = estimate(change);
            if writer.len() > HEADER && writer.len() + size > limit {
                limit = block_size(left, partition.shared.options.block_bytes);
                let next = Writer::new(at, limit.min(left + HEADER));
                blocks.push(std::mem::replace(&mut writer, next).finish(partition.seed, now));
            }
            writer.push(change);
            left -= size;
            at += 1;
        }
    }
    if writer.len() > HEADER {
        blocks.push(writer.finish(partition.seed, now));
    }
    (blocks, firsts)
}

/// About how many bytes `change` takes in a block, rather too many.
fn estimate(change: &Change) -> usize {
    let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len() + 4);
    let [value, before, tenant, intake] =
        [&change.value, &change.before, &change.tenant, &change.intake].map(len);
    40 + change.key.name.len() + value + before + tenant + intake
}

/// How large the next block should be when `left` bytes are to come: the store gives a block a page whose
/// size is a power of two, so a block fills one of those at least by three quarters, or is the rest.
fn block_size(left: usize, max: usize) -> usize {
    let mut page = PAGE;
    while page * 2 <= max.next_power_of_two() && page < left {
        page *= 2;
    }
    if page > PAGE && left < page / 4 * 3 {
        page /= 2;
    }
    page - PAGE_OVERHEAD
}

/// Writes `blocks`; where there is no room, waits for it.
fn commit_when_room(partition: &Partition, blocks: &[Sealed]) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let bytes = blocks.iter().map(|block| block.bytes().len() as u64).sum();
    loop {
        let fault = match partition.shared.fits(bytes) {
            Ok(()) => match commit(partition, blocks) {
                Ok(()) => {
                    partition.shared.set_full(&partition.id, None);
                    return Ok(());
                }
                Err(fault) => fault,
            },
            Err(reason) => Fault::Full(reason),
        };
        match fault {
            Fault::Full(reason) if !partition.shared.is_closing() => {
                partition.shared.set_full(&partition.id, Some(reason));
            }
            fault => return Err(partition.error("append", fault)),
        }
        let queue = lock(&partition.queue);
        let (mut queue, _) =
            partition.work.wait_timeout(queue, FULL_RETRY).unwrap_or_else(PoisonError::into_inner);
        if let Some((below, done)) = queue.drop_last.take() {
            drop(queue);
            drop_last(partition, below);
            let _ = done.send(());
        }
    }
}

fn commit(partition: &Partition, blocks: &[Sealed]) -> Result<(), Fault> {
    prepare(partition)?;
    match write(partition, blocks) {
        // It is only read from now on, as far as that goes.
        Err(Fault::Damaged(reason)) => {
            tracing::error!(partition = %partition.id, reason, "a segment cannot be written any more, a new one is begun");
            let mut active = partition.active.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(damaged) = active.take() {
                damaged.close();
            }
            partition.forget_closed();
            let end = lock(&partition.state).end;
            begin(partition, &mut active, end)?;
            drop(active);
            write(partition, blocks)
        }
        written => written,
    }
}

fn write(partition: &Partition, blocks: &[Sealed]) -> Result<(), Fault> {
    let active = partition.active.read().unwrap_or_else(PoisonError::into_inner);
    let Some(segment) = &*active else { return Err(Fault::Io("no segment is open".to_owned())) };
    let written = segment.write(blocks);
    let first = segment.first();
    drop(active);
    match written {
        Ok(()) => {
            let mut state = lock(&partition.state);
            let measured = segment::disk_bytes(&segment::path(&partition.dir, first));
            if let Some(last) = state.segments.last_mut() {
                partition.shared.grow(measured.saturating_sub(last.bytes));
                last.bytes = last.bytes.max(measured);
            }
            Ok(())
        }
        // After a failed write the store serves nothing until it is opened again.
        Err(Fault::Full(reason)) => {
            let mut active = partition.active.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(active) = active.take() {
                active.close();
            }
            let end = lock(&partition.state).end;
            *active = Active::open(&partition.dir, first).ok().filter(|again| holds(partition, again, end));
            lock(&partition.state).suspended = active.is_none();
            Err(Fault::Full(reason))
        }
        Err(fault) => Err(fault),
    }
}

/// Sees to it that there is a segment to write to, with some space left in it.
fn prepare(partition: &Partition) -> Result<(), Fault> {
    let (end, last) = {
        let state = lock(&partition.state);
        (state.end, state.segments.last().copied())
    };
    let filled = last.is_some_and(|last| last.bytes >= partition.shared.segment_bytes() && end > last.first);
    if !filled && partition.active.read().unwrap_or_else(PoisonError::into_inner).is_some() {
        return Ok(());
    }
    let mut active = partition.active.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(full) = active.take() {
        full.close();
    }
    partition.forget_closed();
    // One that failed for want of room is taken up again, if it is whole.
    if let Some(last) = last
        && !filled
        && let Ok(again) = Active::open(&partition.dir, last.first)
    {
        let stored = again.covering(u64::MAX).ok().map(|found| found.map_or(last.first, |(first, _)| first));
        if stored.is_some_and(|stored| stored <= end) && holds(partition, &again, end) {
            *active = Some(again);
            lock(&partition.state).suspended = false;
            return Ok(());
        }
        again.close();
    }
    begin(partition, &mut active, end)
}

/// Makes a segment for the records from `end` on, to be written.
fn begin(partition: &Partition, active: &mut Option<Active>, end: u64) -> Result<(), Fault> {
    make_dir(partition)?;
    *active = Some(Active::create(&partition.dir, end)?);
    let bytes = segment::disk_bytes(&segment::path(&partition.dir, end));
    partition.shared.grow(bytes);
    let mut state = lock(&partition.state);
    state.suspended = false;
    state.segments.retain(|segment| segment.first != end);
    state.segments.push(Segment { first: end, bytes });
    Ok(())
}

/// Whether a segment's newest durable block ends where the partition does.
fn holds(partition: &Partition, segment: &Active, end: u64) -> bool {
    let Some(before) = end.checked_sub(1) else { return true };
    if segment.first() == end {
        return true;
    }
    match segment.covering(before) {
        Ok(Some((first, bytes))) => {
            Sealed::check(bytes, partition.seed, first).is_ok_and(|block| block.end() >= end)
        }
        _ => false,
    }
}

/// Makes the partition's folder, durably.
fn make_dir(partition: &Partition) -> Result<(), Fault> {
    let mut acked = lock(&partition.acked);
    if acked.is_none() {
        std::fs::create_dir_all(&partition.dir)?;
        segment::sync_dir(&partition.shared.dir)?;
        *acked = Some(Acked::open(&partition.dir, partition.seed)?.0);
    }
    Ok(())
}

/// Makes what was written known to readers.
fn publish(partition: &Partition, blocks: &[Sealed], end: u64) {
    if let Some(acked) = lock(&partition.acked).as_mut()
        && let Err(error) = acked.write(end)
    {
        tracing::warn!(partition = %partition.id, %error, "how far the log was acknowledged is not noted");
    }
    let tail_bytes = partition.shared.tail_bytes();
    let mut state = lock(&partition.state);
    for block in blocks {
        state.tail.push(block.clone(), tail_bytes);
    }
    state.end = end;
    drop(state);
    partition.end.send_replace(end);
}

/// Removes the last segment if the partition still ends at `below`: all of it may be forgotten.
fn drop_last(partition: &Partition, below: u64) {
    let removed = {
        let state = lock(&partition.state);
        match state.segments.last() {
            Some(last) if state.end == below && state.segments.len() == 1 => *last,
            _ => return,
        }
    };
    // From here on only this file says where the partition goes on.
    let noted = lock(&partition.acked)
        .as_mut()
        .is_some_and(|acked| acked.write(below).and_then(|()| acked.sync()).is_ok());
    if !noted {
        return;
    }
    let mut active = partition.active.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(active) = active.take() {
        active.close();
    }
    partition.forget_closed();
    if std::fs::remove_file(segment::path(&partition.dir, removed.first)).is_ok() {
        lock(&partition.state).segments.clear();
        partition.shared.shrink(removed.bytes);
    }
}

/// Removes the segments that `below` and their age allow; returns how many records went. Blocks.
pub(super) fn trim(partition: &Arc<Partition>, below: u64) -> Result<u64> {
    let Range { start: oldest, end } = partition.bounds();
    let below = below.min(end);
    loop {
        let (segment, next) = {
            let state = lock(&partition.state);
            match state.segments.as_slice() {
                [first, second, ..] => (*first, second.first),
                [only] => (*only, state.end),
                [] => break,
            }
        };
        let path = segment::path(&partition.dir, segment.first);
        if next > below || segment.first == next || !old_enough(partition, &path) {
            break;
        }
        if lock(&partition.state).segments.len() == 1 {
            let worth = segment.bytes >= partition.shared.segment_bytes() / 4
                || partition.shared.check_room().is_err();
            if !worth || partition.shared.is_closing() {
                break;
            }
            let (done, wait) = oneshot::channel();
            {
                let mut queue = lock(&partition.queue);
                if queue.ended {
                    break;
                }
                queue.drop_last = Some((next, done));
                start(partition, &mut queue)?;
                partition.work.notify_one();
            }
            let _ = wait.blocking_recv();
            break;
        }
        partition.forget_closed();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(partition.shared.io("remove a segment", error));
            }
            _ => {}
        }
        let mut state = lock(&partition.state);
        state.segments.retain(|kept| kept.first != segment.first);
        drop(state);
        partition.shared.shrink(segment.bytes);
        partition.work.notify_one();
    }
    Ok(partition.bounds().start.saturating_sub(oldest))
}

/// Whether the segment was written to for the last time longer ago than records are kept at least.
fn old_enough(partition: &Partition, path: &std::path::Path) -> bool {
    // A full log keeps nothing for its age alone.
    if partition.shared.check_room().is_err() {
        return true;
    }
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
    match modified.map(|at| SystemTime::now().duration_since(at)) {
        Ok(Ok(age)) => age >= partition.shared.options.age_min,
        // A clock that went back: not old.
        Ok(Err(_)) => partition.shared.options.age_min.is_zero(),
        // Not there: nothing to keep.
        Err(_) => true,
    }
}
