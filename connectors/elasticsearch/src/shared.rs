//! What the source and the target of one site know of each other, in one process.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use causeway_core::Key;
use tokio::sync::{Notify, watch};

/// Keys that the target deletes and the source has not met since.
const DELETED_MAX: usize = 1 << 20;
/// How long a write of the site's own may take to come out of its stream.
const TAKEN_MAX: Duration = Duration::from_secs(10);

/// Of one site.
#[derive(Debug)]
pub(crate) struct SiteState {
    inner: Mutex<Inner>,
    /// The number of the newest look that was taken from the source; 0: it is not open.
    taken: watch::Sender<u64>,
    /// Somebody waits for the next look.
    pub(crate) hurry: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Of each index, a number up to which every one of its shards was taken.
    places: HashMap<String, i64>,
    deleted: HashSet<Key>,
    /// Deletes were forgotten: there were too many.
    forgot: bool,
    /// The number of the newest look that was begun.
    begun: u64,
    /// There was a source in this process.
    had_source: bool,
    /// The log holds the stream up to this place.
    durable: u64,
}

impl Default for SiteState {
    fn default() -> SiteState {
        SiteState { inner: Mutex::default(), taken: watch::Sender::new(0), hurry: Notify::new() }
    }
}

impl SiteState {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A look at the store begins; its number.
    pub(crate) fn begin(&self) -> u64 {
        self.with(|inner| {
            inner.begun += 1;
            inner.had_source = true;
            inner.begun
        })
    }

    /// All that the look found was taken from the source.
    pub(crate) fn take(&self, look: u64, places: HashMap<String, i64>) {
        self.with(|inner| inner.places = places);
        self.taken.send_replace(look);
    }

    /// The log holds the stream up to `at`.
    pub(crate) fn is_durable_to(&self, at: u64) {
        self.with(|inner| inner.durable = inner.durable.max(at));
    }

    /// Whether it does.
    pub(crate) fn is_durable(&self, at: u64) -> bool {
        self.with(|inner| inner.durable >= at)
    }

    /// The source is not open any more.
    pub(crate) fn close(&self) {
        self.with(|inner| inner.places.clear());
        self.taken.send_replace(0);
    }

    /// Whether what stands at `seq_no` in one of the shards of `index` surely came out of the stream.
    pub(crate) fn has_taken(&self, index: &str, seq_no: i64) -> bool {
        self.with(|inner| inner.places.get(index).is_some_and(|place| seq_no <= *place))
    }

    /// Waits until all that was written before now came out of the stream; `false`: that takes too long, as while the
    /// source is away. Where this process never had one nothing comes out of it.
    pub(crate) async fn until_taken(&self) -> bool {
        // The one that runs may have looked already.
        let (look, had_source) = self.with(|inner| (inner.begun + 1, inner.had_source));
        if !had_source {
            return true;
        }
        let mut taken = self.taken.subscribe();
        self.hurry.notify_one();
        let waited = tokio::time::timeout(TAKEN_MAX, taken.wait_for(|taken| *taken >= look)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// The target is about to delete these: that they are gone is no news to the peer.
    pub(crate) fn deletes(&self, keys: impl Iterator<Item = Key>) {
        self.with(|inner| {
            for key in keys {
                if inner.deleted.len() < DELETED_MAX {
                    inner.deleted.insert(key);
                } else {
                    inner.forgot = true;
                }
            }
        });
    }

    /// Whether the target deleted the key, or may have.
    pub(crate) fn was_deleted(&self, key: &Key) -> bool {
        self.with(|inner| inner.forgot || inner.deleted.contains(key))
    }

    /// The document is there, or it was noted that it is not.
    pub(crate) fn met(&self, key: &Key) {
        self.with(|inner| {
            if !inner.deleted.is_empty() {
                inner.deleted.remove(key);
            }
        });
    }
}
