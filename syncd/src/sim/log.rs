//! A change log in memory: what is durable survives a crash of the process, the rest may be torn off.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use causeway_core::{Change, Op, Seq, Site};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::world::{Step, World, lock};
use crate::log::{Appended, Error, Log, Offset, PartitionId, Result};

/// Retention forgets whole blocks of so many records.
const BLOCK: u64 = 16;

/// What a log leaves on its disk.
#[derive(Default)]
pub(super) struct Disk {
    partitions: Mutex<BTreeMap<PartitionId, Partition>>,
    changed: Notify,
}

#[derive(Default)]
struct Partition {
    start: u64,
    records: VecDeque<Change>,
    queued: VecDeque<Queued>,
    /// Every record that ever was durable.
    all: Vec<Change>,
}

struct Queued {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<Offset>>,
}

impl Partition {
    fn end(&self) -> u64 {
        self.start + self.records.len() as u64
    }

    fn store(&mut self, changes: Vec<Change>) -> Offset {
        let first = Offset(self.end());
        self.all.extend(changes.iter().cloned());
        self.records.extend(changes);
        first
    }
}

impl Disk {
    /// Every record of a site's partition that ever was durable.
    pub(super) fn all(&self, origin: &str) -> Vec<Change> {
        let partitions = lock(&self.partitions);
        partitions.iter().filter(|(id, _)| id.origin == origin).flat_map(|(_, p)| p.all.clone()).collect()
    }
}

/// One process's hold on a [`Disk`].
pub(super) struct SimLog {
    world: Arc<World>,
    disk: Arc<Disk>,
    sites: [String; 2],
    /// The site whose log this process writes; `None`: both.
    served: Option<Site>,
    queued: Notify,
    closed: AtomicBool,
    writers: Mutex<BTreeMap<PartitionId, AbortHandle>>,
    me: std::sync::Weak<SimLog>,
}

impl SimLog {
    pub(super) fn open(
        world: &Arc<World>,
        disk: &Arc<Disk>,
        sites: &[String; 2],
        served: Option<Site>,
    ) -> Arc<SimLog> {
        Arc::new_cyclic(|me| SimLog {
            world: Arc::clone(world),
            disk: Arc::clone(disk),
            sites: sites.clone(),
            served,
            queued: Notify::new(),
            closed: AtomicBool::new(false),
            writers: Mutex::default(),
            me: me.clone(),
        })
    }

    /// The process dies: of what is queued, some of the first appends are durable all the same.
    pub(super) fn crash(&self) {
        self.end_writers();
        for (id, partition) in lock(&self.disk.partitions).iter_mut().filter(|(id, _)| self.writes(id)) {
            let mut queued = std::mem::take(&mut partition.queued);
            let kept = self.world.random(|random| random.below(queued.len() as u64 + 1)) as usize;
            let torn = queued.split_off(kept);
            for append in queued {
                partition.store(append.changes);
            }
            let lost = torn.into_iter().flat_map(|append| append.changes).collect::<Vec<_>>();
            self.world.note_changes(|| format!("{id} torn off the log"), &lost);
        }
    }

    fn end_writers(&self) {
        self.closed.store(true, Ordering::SeqCst);
        lock(&self.writers).values().for_each(AbortHandle::abort);
        self.disk.changed.notify_waiters();
    }

    fn writes(&self, partition: &PartitionId) -> bool {
        self.served.is_none_or(|served| served == self.site(partition))
    }

    fn site(&self, partition: &PartitionId) -> Site {
        if partition.origin == self.sites[0] { Site::First } else { Site::Second }
    }

    fn error() -> Error {
        Error::Closed { dir: PathBuf::from("simulated") }
    }

    fn start_writer(&self, partition: &PartitionId) {
        let mut writers = lock(&self.writers);
        if let Some(log) = self.me.upgrade().filter(|_| !writers.contains_key(partition)) {
            let id = partition.clone();
            let writer = tokio::spawn(async move { log.write(&id).await });
            writers.insert(partition.clone(), writer.abort_handle());
        }
    }

    /// Makes durable what is queued, one or more appends at a time.
    async fn write(&self, id: &PartitionId) {
        loop {
            let queued = self.queued.notified();
            let waiting =
                lock(&self.disk.partitions).get(id).map_or(0, |partition| partition.queued.len() as u64);
            if waiting == 0 {
                queued.await;
                continue;
            }
            self.world.take_time(Step::Durable, self.site(id)).await;
            let count = self.world.random(|random| 1 + random.below(waiting));
            self.commit(id, count);
        }
    }

    fn commit(&self, id: &PartitionId, count: u64) {
        {
            let mut partitions = lock(&self.disk.partitions);
            let Some(partition) = partitions.get_mut(id) else { return };
            for _ in 0..count {
                let Some(append) = partition.queued.pop_front() else { break };
                self.world.note_changes(|| format!("{id} durable"), &append.changes);
                let first = partition.store(append.changes);
                let _gone = append.done.send(Ok(first));
            }
        }
        self.disk.changed.notify_waiters();
    }
}

#[async_trait]
impl Log for SimLog {
    async fn append(&self, id: &PartitionId, changes: Vec<Change>) -> Result<Appended> {
        self.world.take_time(Step::Append, self.site(id)).await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(SimLog::error());
        }
        let (done, receiver) = oneshot::channel();
        lock(&self.disk.partitions).entry(id.clone()).or_default().queued.push_back(Queued { changes, done });
        self.start_writer(id);
        self.queued.notify_waiters();
        Ok(Appended::new(receiver, SimLog::error()))
    }

    async fn read(&self, id: &PartitionId, from: Offset, bytes_max: usize) -> Result<Vec<(Offset, Change)>> {
        self.world.take_time(Step::Read, self.site(id)).await;
        let partitions = lock(&self.disk.partitions);
        let Some(partition) = partitions.get(id) else { return Ok(Vec::new()) };
        let Some(skip) = from.0.checked_sub(partition.start) else {
            let start = Offset(partition.start);
            return Err(Error::Trimmed { partition: id.clone(), from, start });
        };
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (n, change) in partition.records.iter().enumerate().skip(skip as usize) {
            records.push((Offset(partition.start + n as u64), change.clone()));
            bytes += change.cost();
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(records)
    }

    async fn locate(&self, id: &PartitionId, seq: Seq) -> Result<Offset> {
        self.world.take_time(Step::Read, self.site(id)).await;
        let partitions = lock(&self.disk.partitions);
        let Some(partition) = partitions.get(id) else { return Ok(Offset(0)) };
        let found = partition.records.iter().position(|change| change.op != Op::Fence && change.seq >= seq);
        Ok(Offset(found.map_or(partition.end(), |n| partition.start + n as u64)))
    }

    fn bounds(&self, id: &PartitionId) -> Range<Offset> {
        let partitions = lock(&self.disk.partitions);
        partitions.get(id).map_or(Offset(0)..Offset(0), |p| Offset(p.start)..Offset(p.end()))
    }

    async fn wait_beyond(&self, id: &PartitionId, end: Offset) {
        loop {
            let changed = self.disk.changed.notified();
            if self.closed.load(Ordering::SeqCst) || self.bounds(id).end > end {
                return;
            }
            changed.await;
        }
    }

    async fn trim(&self, id: &PartitionId, below: Offset) -> Result<u64> {
        if !self.world.trim {
            return Ok(0);
        }
        // Not everything that may go is old enough.
        let most = self.world.random(|random| if random.chance(500) { 0 } else { random.below(200) });
        let mut partitions = lock(&self.disk.partitions);
        let Some(partition) = partitions.get_mut(id) else { return Ok(0) };
        let start = below.0.min(partition.end()).min(partition.start + most) / BLOCK * BLOCK;
        let gone = start.saturating_sub(partition.start);
        partition.records.drain(..gone as usize);
        partition.start += gone;
        if gone > 0 {
            self.world.note(|| format!("{id} trimmed below {start}"));
        }
        Ok(gone)
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn room(&self) -> Result<()> {
        Ok(())
    }

    async fn room_returned(&self) {}

    async fn close(&self) {
        let ids: Vec<PartitionId> = lock(&self.disk.partitions).keys().cloned().collect();
        ids.iter().filter(|id| self.writes(id)).for_each(|id| self.commit(id, u64::MAX));
        self.end_writers();
    }
}
