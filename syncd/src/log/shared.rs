//! What all partitions of one embedded log share: the folder, the bounds, and whether there is room.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

use tokio::sync::{Notify, Semaphore, watch};

use super::partition::lock;
use super::{EmbeddedOptions, Error, PartitionId, Result};

/// Left free on the disk, so that retention and a repair after a crash can still write.
const DISK_RESERVE: u64 = 64 << 20;

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) options: EmbeddedOptions,
    /// Bytes of cost that may still be queued.
    pub(super) permits: Semaphore,
    pub(super) partitions: AtomicUsize,
    pub(super) closed: watch::Sender<bool>,
    pub(super) closing: AtomicBool,
    /// Held for reading while files are read: whoever asked may have given up meanwhile.
    pub(super) on_disk: RwLock<()>,
    /// Held as long as the log is open.
    pub(super) lock_file: Mutex<Option<File>>,
    size: AtomicU64,
    /// The partitions whose writers wait for room, and why.
    full: Mutex<BTreeMap<PartitionId, String>>,
    /// Notified when something was removed, or a writer got its room.
    pub(super) room: Notify,
}

/// A commit of at most so many bytes may use [`SMALL_RESERVE`].
const SMALL_COMMIT: u64 = 64 << 10;
/// Bytes above the largest size, for small commits only; an eighth of that size, if that is less.
const SMALL_RESERVE: u64 = 64 << 20;

impl Shared {
    pub(super) fn new(dir: PathBuf, options: EmbeddedOptions, lock_file: File) -> Shared {
        Shared {
            permits: Semaphore::new(options.in_flight_bytes.clamp(1, Semaphore::MAX_PERMITS)),
            dir,
            options,
            partitions: AtomicUsize::new(0),
            closed: watch::Sender::new(false),
            closing: AtomicBool::new(false),
            on_disk: RwLock::default(),
            lock_file: Mutex::new(Some(lock_file)),
            size: AtomicU64::new(0),
            full: Mutex::default(),
            room: Notify::new(),
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closing() { Err(self.closed_error()) } else { Ok(()) }
    }

    pub(super) fn closed_error(&self) -> Error {
        Error::Closed { dir: self.dir.clone() }
    }

    pub(super) fn io(&self, action: &'static str, error: impl ToString) -> Error {
        Error::Io { dir: self.dir.clone(), action, reason: error.to_string() }
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn grow(&self, bytes: u64) {
        self.size.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn shrink(&self, bytes: u64) {
        self.size.fetch_sub(bytes, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    /// Memory for one partition's tail.
    pub(super) fn tail_bytes(&self) -> usize {
        self.options.cache_bytes / self.partitions.load(Ordering::Relaxed).max(1)
    }

    /// How large a segment gets: a small log has small ones, so that retention can free some.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes.min(self.options.size_max / 8)
    }

    /// `Err` says why `bytes` more can't be written.
    pub(super) fn fits(&self, bytes: u64) -> Result<(), String> {
        let (size, mut max) = (self.size(), self.options.size_max);
        // A restart point always finds room: it tells the peer what it may forget, which makes room.
        if bytes > 0 && bytes <= SMALL_COMMIT {
            max = max.saturating_add(SMALL_RESERVE.min(max / 8));
        }
        if size.saturating_add(bytes) > max {
            return Err(format!("it takes {size} bytes on disk, allowed are {max}"));
        }
        match rustix::fs::statvfs(&self.dir) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                if free < DISK_RESERVE.saturating_add(bytes) {
                    return Err(format!(
                        "the disk has {free} bytes free, {DISK_RESERVE} are left in reserve"
                    ));
                }
                Ok(())
            }
            // Where that cannot be told, writing will.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn set_full(&self, partition: &PartitionId, reason: Option<String>) {
        let mut full = lock(&self.full);
        match reason {
            Some(reason) => {
                if full.insert(partition.clone(), reason.clone()).is_none() {
                    tracing::warn!(%partition, reason, "the log is full, appends wait");
                }
            }
            None => {
                if full.remove(partition).is_some() {
                    tracing::info!(%partition, "the log has room again");
                    self.room.notify_waiters();
                }
            }
        }
    }

    /// Whether anything can be written.
    pub(super) fn check_room(&self) -> Result<()> {
        let stuck = lock(&self.full).values().next().cloned();
        let reason = match stuck {
            Some(reason) => reason,
            None => match self.fits(0) {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            },
        };
        Err(Error::Full { dir: self.dir.clone(), reason })
    }
}
