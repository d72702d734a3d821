//! The change log in one folder, for one process.
//!
//! ```text
//! lock                        held by the process that has the log open; holds its pid
//! format                      `1`
//! tags.dc.0/                  a partition (bytes other than letters, digits, `-` and `_` as %41)
//!   00000000000000000000.redb a segment: a stretch of the partition, from the offset in its name on
//!   acked                     how far it was acknowledged
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use causeway_core::{Change, Seq};
use tokio::sync::oneshot;

use super::partition::{Collected, Partition, lock};
use super::shared::Shared;
use super::writer::{self, Item};
use super::{Appended, Error, Log, Offset, PartitionId, Result};

/// The format of the folder, and the newest that is read.
const FORMAT: u64 = 1;

/// Settings of the embedded log.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Records are kept at least this long, even when they are applied. Default 1 h.
    pub age_min: Duration,
    /// The largest size on disk, in bytes, of all partitions; beyond it the log is full. Default: none, the
    /// disk decides.
    pub size_max: u64,
    /// Memory for the blocks appended last, of all partitions, in bytes. Default 32 MiB.
    pub cache_bytes: usize,
    /// Bytes (of [`Change::cost`]) that may be queued for writing. Default 16 MiB. What a reader keeps of a
    /// block keeps the block: see `block_bytes`.
    pub in_flight_bytes: usize,
    /// About the largest block, in bytes; a power of two. A record that is larger has one of its own.
    /// Default 256 KiB.
    pub block_bytes: usize,
    /// About how large a segment gets on disk; retention removes whole segments, and a repair after a crash
    /// reads one of each partition. Default 64 MiB, at most an eighth of `size_max`.
    pub segment_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            age_min: Duration::from_secs(3600),
            size_max: u64::MAX,
            cache_bytes: 32 << 20,
            in_flight_bytes: 16 << 20,
            block_bytes: 256 << 10,
            segment_bytes: 64 << 20,
        }
    }
}

/// The change log in one folder, for one process.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
}

impl std::fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLog").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl EmbeddedLog {
    /// Opens the log in `dir`, which is made if it is missing. After a crash this reads at most one segment
    /// of each partition. Damage is no error here: what is lost is named when it is read, and new records
    /// go behind it.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`], [`Error::Newer`], [`Error::Full`] where a repair finds no room, [`Error::Io`].
    pub async fn open(dir: &Path, options: EmbeddedOptions) -> Result<Arc<EmbeddedLog>> {
        let dir = dir.to_owned();
        let failed = Error::Io { dir: dir.clone(), action: "open", reason: "the opener ended".to_owned() };
        tokio::task::spawn_blocking(move || open(dir, options)).await.unwrap_or(Err(failed))
    }

    /// Every partition that has, or had, a record.
    pub fn partitions(&self) -> Vec<PartitionId> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        let mut ids: Vec<_> =
            partitions.iter().filter(|(_, p)| p.bounds().end > 0).map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids
    }

    fn find(&self, id: &PartitionId) -> Option<Arc<Partition>> {
        self.partitions.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn find_or_new(&self, id: &PartitionId) -> Result<Arc<Partition>> {
        if let Some(partition) = self.find(id) {
            return Ok(partition);
        }
        let name = |reason| Error::Name { partition: id.clone(), reason };
        if id.channel.is_empty() || id.origin.is_empty() {
            return Err(name("a channel and its origin need names"));
        }
        if folder(id).len() > 255 {
            return Err(name("its names are too long for a folder of the log (255 bytes)"));
        }
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Partition::new(self.shared.clone(), id.clone()));
        let partition = partitions.entry(id.clone()).or_insert_with(new).clone();
        self.shared.partitions.store(partitions.len(), std::sync::atomic::Ordering::Relaxed);
        Ok(partition)
    }

    /// Does `work` where it may wait for the disk; not once the log is about to be closed.
    async fn on_disk<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        let work = move || {
            let _reading = shared.on_disk.read().unwrap_or_else(PoisonError::into_inner);
            shared.check_open()?;
            work()
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(self.shared.io(action, error)))
    }

    fn begin_close(&self) -> Vec<Arc<Partition>> {
        self.shared.closing.store(true, std::sync::atomic::Ordering::Release);
        self.shared.permits.close();
        self.shared.closed.send_replace(true);
        self.shared.room.notify_waiters();
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions.values() {
            // Under the lock, so that a writer which is about to wait doesn't miss it.
            let _queue = lock(&partition.queue);
            partition.work.notify_all();
        }
        partitions.values().cloned().collect()
    }
}

/// Writers go on until what is queued is written; the folder is free after that.
impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.begin_close();
    }
}

fn open(dir: PathBuf, options: EmbeddedOptions) -> Result<Arc<EmbeddedLog>> {
    let io =
        |action, error: std::io::Error| Error::Io { dir: dir.clone(), action, reason: error.to_string() };
    std::fs::create_dir_all(&dir).map_err(|error| io("make the folder", error))?;
    let lock_file = take_lock(&dir)?;
    check_format(&dir)?;
    let shared = Arc::new(Shared::new(dir.clone(), options, lock_file));
    let mut partitions = HashMap::new();
    for entry in std::fs::read_dir(&dir).map_err(|error| io("list the partitions", error))? {
        let entry = entry.map_err(|error| io("list the partitions", error))?;
        let Some(id) = entry.file_name().to_str().and_then(parse_folder) else { continue };
        let partition = Partition::new(shared.clone(), id.clone());
        partition.recover()?;
        partitions.insert(id, Arc::new(partition));
    }
    shared.partitions.store(partitions.len(), std::sync::atomic::Ordering::Relaxed);
    Ok(Arc::new(EmbeddedLog { shared, partitions: RwLock::new(partitions) }))
}

/// Holds the folder for this process, as long as the file is open.
pub(crate) fn take_lock(dir: &Path) -> Result<File> {
    let io = |error: std::io::Error| Error::Io {
        dir: dir.to_owned(),
        action: "lock the folder",
        reason: error.to_string(),
    };
    let path = dir.join("lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = pid.trim();
            let known = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
            return Err(Error::InUse {
                dir: dir.to_owned(),
                pid: if known { pid.to_owned() } else { "unknown".to_owned() },
            });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(io(error)),
    }
    // Only a hint for whoever finds it locked: a disk too full for it is no reason to refuse.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn check_format(dir: &Path) -> Result<()> {
    let path = dir.join("format");
    let io =
        |action, error: std::io::Error| Error::Io { dir: dir.to_owned(), action, reason: error.to_string() };
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u64>() {
            Ok(found) if found > FORMAT => Err(Error::Newer { dir: dir.to_owned(), found, known: FORMAT }),
            _ => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(&path, format!("{FORMAT}\n")).map_err(|error| io("write the format", error))
        }
        Err(error) => Err(io("read the format", error)),
    }
}

/// The name of a partition's folder: its name, with all that could mislead a file system as `%41`.
pub(super) fn folder(id: &PartitionId) -> String {
    let mut out = String::new();
    for (i, word) in [&id.channel, &id.origin].into_iter().enumerate() {
        if i > 0 {
            out.push('.');
        }
        for byte in word.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(byte as char),
                other => out.push_str(&format!("%{other:02X}")),
            }
        }
    }
    out.push_str(&format!(".{}", id.number));
    out
}

fn parse_folder(name: &str) -> Option<PartitionId> {
    let mut words = name.split('.');
    let mut word = || {
        let mut bytes = Vec::new();
        let mut rest = words.next()?.as_bytes();
        while let [byte, after @ ..] = rest {
            if *byte == b'%' {
                let (digits, after) = after.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = after;
            } else {
                bytes.push(*byte);
                rest = after;
            }
        }
        String::from_utf8(bytes).ok()
    };
    let id = PartitionId { channel: word()?, origin: word()?, number: word()?.parse().ok()? };
    // Nothing else, and no other spelling of the same name.
    (folder(&id) == name).then_some(id)
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn append(&self, id: &PartitionId, changes: Vec<Change>) -> Result<Appended> {
        self.shared.check_open()?;
        let partition = self.find_or_new(id)?;
        // What is larger than the whole bound goes alone.
        let most = self.shared.options.in_flight_bytes.clamp(1, u32::MAX as usize);
        let cost = changes.iter().map(Change::cost).sum::<usize>().clamp(1, most);
        let permit = self.shared.permits.acquire_many(cost as u32).await;
        // Given back by the writer.
        permit.map_err(|_| self.shared.closed_error())?.forget();
        let (reply, receiver) = oneshot::channel();
        writer::enqueue(&partition, Item { changes, cost, reply })?;
        Ok(Appended { receiver, closed: self.shared.closed_error() })
    }

    async fn read(&self, id: &PartitionId, from: Offset, bytes_max: usize) -> Result<Vec<(Offset, Change)>> {
        self.shared.check_open()?;
        let Some(partition) = self.find(id) else { return Ok(Vec::new()) };
        let mut collected = Collected::default();
        partition.collect(from.0, bytes_max, false, &mut collected)?;
        if !collected.disk {
            return Ok(collected.records);
        }
        let at = collected.records.last().map_or(from.0, |(offset, _)| offset.0 + 1);
        let cold = move || partition.collect(at, bytes_max, true, &mut collected).map(|()| collected.records);
        self.on_disk("read", cold).await
    }

    async fn locate(&self, id: &PartitionId, seq: Seq) -> Result<Offset> {
        self.shared.check_open()?;
        let Some(partition) = self.find(id) else { return Ok(Offset(0)) };
        self.on_disk("locate", move || partition.locate(seq).map(Offset)).await
    }

    fn damaged(&self, id: &PartitionId) -> Vec<Range<Offset>> {
        self.find(id).map_or_else(Vec::new, |partition| partition.damaged())
    }

    fn bounds(&self, id: &PartitionId) -> Range<Offset> {
        let Range { start, end } = self.find(id).map_or(0..0, |partition| partition.bounds());
        Offset(start)..Offset(end)
    }

    async fn wait_beyond(&self, id: &PartitionId, end: Offset) {
        let Ok(partition) = self.find_or_new(id) else { return };
        let mut ends = partition.end.subscribe();
        let mut closed = self.shared.closed.subscribe();
        tokio::select! {
            _ = ends.wait_for(|now| *now > end.0) => {}
            _ = closed.wait_for(|closed| *closed) => {}
        }
    }

    async fn trim(&self, id: &PartitionId, below: Offset) -> Result<u64> {
        self.shared.check_open()?;
        let Some(partition) = self.find(id) else { return Ok(0) };
        self.on_disk("trim", move || writer::trim(&partition, below.0)).await
    }

    fn queued_bytes(&self) -> usize {
        self.shared.options.in_flight_bytes.saturating_sub(self.shared.permits.available_permits())
    }

    fn size_bytes(&self) -> u64 {
        self.shared.size()
    }

    fn room(&self) -> Result<()> {
        self.shared.check_open()?;
        self.shared.check_room()
    }

    async fn room_returned(&self) {
        loop {
            let notified = self.shared.room.notified();
            if !matches!(self.room(), Err(Error::Full { .. })) {
                return;
            }
            // A disk is freed by others, too, who tell nobody.
            let _ = tokio::time::timeout(Duration::from_millis(250), notified).await;
        }
    }

    async fn close(&self) {
        let partitions = self.begin_close();
        let shared = self.shared.clone();
        let close = move || {
            // A file that somebody still reads cannot be opened again.
            drop(shared.on_disk.write().unwrap_or_else(PoisonError::into_inner));
            for partition in partitions {
                let mut queue = lock(&partition.queue);
                queue.ended |= queue.thread.is_none();
                let thread = queue.thread.take();
                drop(queue);
                if let Some(thread) = thread {
                    let _ = thread.join();
                }
                let active = partition.active.write().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(active) = active {
                    active.close();
                }
                partition.forget_closed();
            }
            drop(lock(&shared.lock_file).take());
        };
        let _ = tokio::task::spawn_blocking(close).await;
    }
}
