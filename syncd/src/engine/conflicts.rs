//! The conflict log: which concurrent writes were decided, and how, for a person to read afterwards.
//!
//! The data path hands a [`Conflict`] to [`Conflicts::note`], which never waits: a thread of its own writes
//! them, in batches and without fsync. What does not fit the queue, or the disk, is counted and left out.
//! `files.rs` holds the files.

mod files;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use causeway_core::{Change, Site, Space};
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_128;

use super::shared::lock;
use crate::config::ConflictsConfig;
use crate::status::{ConflictEntry, ConflictPage, ConflictQuery, ConflictSide, KeyText, Resolution, rfc3339};
use files::Files;

/// Entries that wait to be written: a second's worth of a disk that is busy.
const QUEUE_MAX: usize = 4_096;
/// And their size.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Written at once.
const BATCH_MAX: usize = 512;
/// A longer key or element is no key that a person reads, and larger values would crowd out the rest.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// An entry without its key and values costs about this much.
const ENTRY_BYTES: usize = 600;
/// How often it is seen whether something is too old.
const UPKEEP_EVERY: Duration = Duration::from_secs(60);
/// A reader and a stop wait at most this long for what is queued.
const FLUSH_AT_MOST: Duration = Duration::from_secs(2);

/// A pair of concurrent writes that the applier into a site decided.
pub(crate) struct Conflict<'a> {
    /// The peer's change.
    pub(crate) theirs: &'a Change,
    /// The target site's own.
    pub(crate) ours: &'a Change,
    /// What both touch, if it is not the whole key.
    pub(crate) element: Option<&'a [u8]>,
    pub(crate) resolution: Resolution,
}

/// What one direction notes its conflicts with; counts them, whatever becomes of the entries.
pub(crate) struct Conflicts {
    channel: String,
    sites: [String; 2],
    /// The origin.
    from: Site,
    counts: [AtomicU64; Resolution::ALL.len()],
    log: Option<Arc<ConflictLog>>,
}

impl Conflicts {
    /// `sites` are the link's names; without a `log` conflicts are only counted.
    pub(crate) fn new(channel: &str, sites: [String; 2], from: Site, log: Option<Arc<ConflictLog>>) -> Self {
        Conflicts { channel: channel.to_owned(), sites, from, counts: Default::default(), log }
    }

    /// Notes one that took effect. Never waits, never fails.
    pub(crate) fn note(&self, conflict: &Conflict<'_>) {
        self.count(conflict.resolution);
        if let Some(log) = &self.log {
            log.put(|| self.entry(conflict, log.values));
        }
    }

    /// Notes one of which the site's own write cannot be read any more.
    pub(crate) fn note_unread(&self, resolution: Resolution) {
        self.count(resolution);
        if let Some(log) = &self.log {
            log.left_out.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn count(&self, resolution: Resolution) {
        self.counts[resolution as usize].fetch_add(1, Ordering::SeqCst);
    }

    /// Of one resolution, since the daemon started.
    pub(crate) fn counted(&self, resolution: Resolution) -> u64 {
        self.counts[resolution as usize].load(Ordering::SeqCst)
    }

    /// Of all.
    pub(crate) fn total(&self) -> u64 {
        Resolution::ALL.into_iter().map(|resolution| self.counted(resolution)).sum()
    }

    /// `None` if its key is too long to be kept. Copies all that it keeps: the changes are slices of large
    /// buffers, which must not live as long as the queue.
    fn entry(&self, conflict: &Conflict<'_>, values: bool) -> Option<ConflictEntry> {
        let Conflict { theirs, ours, element, resolution } = *conflict;
        let key = &theirs.key;
        if key.name.len() + element.map_or(0, <[u8]>::len) > TEXT_BYTES_MAX {
            return None;
        }
        let name = |site: Site| self.sites[site.index()].clone();
        let to = self.from.peer();
        let winner = match resolution {
            Resolution::Kept => Some(name(to)),
            Resolution::Replaced => Some(name(self.from)),
            Resolution::Merged => None,
        };
        let side = |site: Site| {
            let change = if site == self.from { theirs } else { ours };
            let fits = |value: &&bytes::Bytes| values && value.len() <= TEXT_BYTES_MAX;
            ConflictSide {
                site: name(site),
                seq: change.seq.0,
                hlc: change.hlc.0.to_string(),
                op: change.op.as_str().to_owned(),
                time: rfc3339(UNIX_EPOCH + Duration::from_millis(change.time)),
                digest: change.value.as_ref().map(|value| format!("{:032x}", xxh3_128(value))),
                bytes: change.value.as_ref().map_or(0, |value| value.len() as u64),
                value: change.value.as_ref().filter(fits).map(|value| KeyText::from(&value[..])),
            }
        };
        Some(ConflictEntry {
            // Given when it is written.
            id: 0,
            time: rfc3339(SystemTime::now()),
            channel: self.channel.clone(),
            from: name(self.from),
            to: name(to),
            key: KeyText::from(&key.name[..]),
            db: if let Space::Db(db) = key.space { Some(db) } else { None },
            element: element.map(KeyText::from),
            resolution,
            winner,
            uncertain: theirs.uncertain || ours.uncertain,
            sides: Site::BOTH.map(side),
        })
    }
}

enum Message {
    Entry(Box<ConflictEntry>),
    /// Answered when all that came before is written.
    Flush(SyncSender<()>),
}

/// The log itself, one for all channels.
pub(crate) struct ConflictLog {
    queue: SyncSender<Message>,
    queued_bytes: Arc<AtomicUsize>,
    left_out: Arc<AtomicU64>,
    files: Arc<Mutex<Files>>,
    /// One reader at a time: each holds a whole file in memory.
    reading: Mutex<()>,
    values: bool,
}

impl ConflictLog {
    /// Opens the log in the folder `dir` and starts the thread that writes it; the thread ends with the
    /// last handle.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or read.
    pub(crate) fn open(dir: &Path, config: ConflictsConfig) -> std::io::Result<Arc<ConflictLog>> {
        let files = Arc::new(Mutex::new(Files::open(dir, config.size_max, config.age_max)?));
        let (queue, queued) = sync_channel(QUEUE_MAX);
        let writer = Writer {
            queued,
            queued_bytes: Arc::default(),
            left_out: Arc::default(),
            files: Arc::clone(&files),
            failing: false,
        };
        let (queued_bytes, left_out) = (Arc::clone(&writer.queued_bytes), Arc::clone(&writer.left_out));
        std::thread::Builder::new().name("conflict-log".to_owned()).spawn(|| writer.run())?;
        let (reading, values) = (Mutex::default(), config.values);
        Ok(Arc::new(ConflictLog { queue, queued_bytes, left_out, files, reading, values }))
    }

    fn put(&self, entry: impl FnOnce() -> Option<ConflictEntry>) {
        let room = self.queued_bytes.load(Ordering::SeqCst) < QUEUE_BYTES_MAX;
        let kept = room && entry().is_some_and(|entry| self.queue_up(entry));
        if !kept {
            self.left_out.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn queue_up(&self, entry: ConflictEntry) -> bool {
        let bytes = cost(&entry);
        // Counted before the writer can take it out again.
        self.queued_bytes.fetch_add(bytes, Ordering::SeqCst);
        let sent = self.queue.try_send(Message::Entry(Box::new(entry))).is_ok();
        if !sent {
            self.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
        }
        sent
    }

    /// Conflicts that were noted and not kept, since the daemon started.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::SeqCst)
    }

    /// Waits until what was noted so far is written, two seconds at the most. Blocks.
    pub(crate) fn flush(&self) {
        let end = Instant::now() + FLUSH_AT_MOST;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(again)) = self.queue.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
            message = again;
        }
        let _late = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    /// What `query` asks for, newest first. Blocks.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub(crate) fn list(&self, query: &ConflictQuery) -> std::io::Result<ConflictPage> {
        self.flush();
        let _one = lock(&self.reading);
        let mut page = files::page(&self.files, query, SystemTime::now())?;
        page.conflicts.iter_mut().for_each(|entry| self.redact(entry));
        page.left_out = self.left_out();
        Ok(page)
    }

    /// The entry with that id. Blocks.
    ///
    /// # Errors
    ///
    /// As [`list`](ConflictLog::list).
    pub(crate) fn get(&self, id: u64) -> std::io::Result<Option<ConflictEntry>> {
        let before = id.checked_add(1);
        let query = ConflictQuery { channel: None, key: None, since: None, before, limit: 1 };
        let found = self.list(&query)?.conflicts.into_iter().next();
        Ok(found.filter(|entry| entry.id == id))
    }

    /// Values may have been kept under another configuration.
    fn redact(&self, entry: &mut ConflictEntry) {
        if !self.values {
            entry.sides.iter_mut().for_each(|side| side.value = None);
        }
    }
}

fn cost(entry: &ConflictEntry) -> usize {
    let len = |text: &KeyText| match text {
        KeyText::Text(text) => text.len(),
        KeyText::Bytes { base64 } => base64.len(),
    };
    let values = entry.sides.iter().filter_map(|side| side.value.as_ref());
    ENTRY_BYTES + len(&entry.key) + entry.element.iter().chain(values).map(len).sum::<usize>()
}

struct Writer {
    queued: Receiver<Message>,
    queued_bytes: Arc<AtomicUsize>,
    left_out: Arc<AtomicU64>,
    files: Arc<Mutex<Files>>,
    failing: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let first = match self.queued.recv_timeout(UPKEEP_EVERY) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => {
                    lock(&self.files).upkeep(SystemTime::now());
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // A batch is what came while the last one was written.
            let (mut batch, mut flushed) = (Vec::new(), Vec::new());
            for message in std::iter::once(first).chain(self.queued.try_iter().take(BATCH_MAX - 1)) {
                match message {
                    Message::Entry(entry) => batch.push(*entry),
                    Message::Flush(done) => flushed.push(done),
                }
            }
            self.write(batch);
            for done in flushed {
                let _gave_up = done.try_send(());
            }
        }
    }

    fn write(&mut self, batch: Vec<ConflictEntry>) {
        if batch.is_empty() {
            return;
        }
        let (entries, bytes) = (batch.len() as u64, batch.iter().map(cost).sum());
        let (written, result) = lock(&self.files).append(batch, SystemTime::now());
        self.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.left_out.fetch_add(entries.saturating_sub(written), Ordering::SeqCst);
        match result {
            // Once, not for every batch.
            Err(error) if !self.failing => {
                warn!(%error, "the conflict log cannot be written: entries are left out");
                self.failing = true;
            }
            Ok(()) if self.failing => {
                info!("the conflict log is written again");
                self.failing = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
