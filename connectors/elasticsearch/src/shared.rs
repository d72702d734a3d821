//! What the source and the target of one site know of each other, in one process.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use causeway_core::Key;
use tokio::sync::{Notify, watch};

/// Keys that the target deletes and the source has not met since.
const DELETED_MAX: usize = 1 << 20;
/// Keys that the target wrote and no look was begun since.
const WRITTEN_MAX: usize = 1 << 16;
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
    /// With the moment at which that was done; `None`: it may be done any moment.
    deleted: HashMap<Key, Option<u64>>,
    /// What the target writes, and no marker counts yet.
    unmarked: HashSet<Key>,
    /// What markers count, and no look was begun since.
    marked: HashSet<Key>,
    /// Counts moments.
    moment: u64,
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
            inner.marked.clear();
            inner.begun
        })
    }

    /// The target is about to write these.
    pub(crate) fn writes(&self, keys: impl Iterator<Item = Key>) {
        self.with(|inner| {
            // Nobody looks for long: then all that is there comes before what is asked for.
            if inner.unmarked.len() + inner.marked.len() >= WRITTEN_MAX {
                inner.marked.clear();
            }
            inner.unmarked.extend(keys);
        });
    }

    /// A marker counts all that was written: the next look tells it.
    pub(crate) fn has_marked(&self) {
        self.with(|inner| inner.marked.extend(inner.unmarked.drain()));
    }

    /// Whether something was written there of which the newest look may not have told the marker.
    pub(crate) fn is_unmarked(&self, key: &Key) -> bool {
        self.with(|inner| inner.unmarked.contains(key) || inner.marked.contains(key))
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
    pub(crate) fn deletes(&self, keys: &[Key]) {
        self.with(|inner| {
            for key in keys {
                if inner.deleted.len() < DELETED_MAX || inner.deleted.contains_key(key) {
                    inner.deleted.insert(key.clone(), None);
                } else {
                    inner.forgot = true;
                }
            }
        });
    }

    /// It did, or did not: nothing of it is under way.
    pub(crate) fn has_deleted(&self, keys: &[Key]) {
        let now = self.moment();
        self.with(|inner| {
            for key in keys {
                inner.deleted.entry(key.clone()).and_modify(|done| *done = Some(now));
            }
        });
    }

    /// Nothing of an applier before this one is under way.
    pub(crate) fn has_ended(&self) {
        let now = self.moment();
        self.with(|inner| {
            inner.deleted.values_mut().for_each(|done| _ = done.get_or_insert(now));
            // What it did not mark is written once more, unless something of the site's own counts more.
            inner.unmarked.clear();
            inner.marked.clear();
        });
    }

    /// Whether the target deleted the key, or may have.
    pub(crate) fn was_deleted(&self, key: &Key) -> bool {
        self.with(|inner| inner.forgot || inner.deleted.contains_key(key))
    }

    /// A moment that is later than all before.
    pub(crate) fn moment(&self) -> u64 {
        self.with(|inner| {
            inner.moment += 1;
            inner.moment
        })
    }

    /// The document was there in a read that began at `moment`: a delete that was done before did not last.
    pub(crate) fn met(&self, key: &Key, moment: u64) {
        self.with(|inner| {
            let before = inner.deleted.get(key).is_some_and(|done| done.is_some_and(|done| done < moment));
            if before {
                inner.deleted.remove(key);
            }
        });
    }

    /// It was noted that the document is gone.
    pub(crate) fn noted(&self, key: &Key) {
        self.with(|inner| _ = inner.deleted.remove(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::key;

    /// FF14.
    #[test]
    fn a_read_that_began_before_our_delete_does_not_make_it_an_application_s() {
        let (state, k) = (SiteState::default(), key("i", "k", None));
        let before = state.moment();
        state.deletes(std::slice::from_ref(&k));
        let meanwhile = state.moment();
        state.met(&k, meanwhile);
        state.has_deleted(std::slice::from_ref(&k));
        for moment in [before, meanwhile] {
            state.met(&k, moment);
            assert!(state.was_deleted(&k));
        }
        state.met(&k, state.moment());
        assert!(!state.was_deleted(&k));
        state.deletes(std::slice::from_ref(&k));
        state.has_ended();
        state.noted(&k);
        assert!(!state.was_deleted(&k));
    }

    #[test]
    fn what_is_written_is_unmarked_until_a_look_begins_behind_its_marker() {
        let (state, k) = (SiteState::default(), key("i", "k", None));
        state.writes(std::iter::once(k.clone()));
        state.begin();
        assert!(state.is_unmarked(&k), "no marker counts it");
        state.has_marked();
        assert!(state.is_unmarked(&k), "the look may have begun before the marker");
        state.begin();
        assert!(!state.is_unmarked(&k));
        state.writes(std::iter::once(k.clone()));
        state.has_ended();
        assert!(!state.is_unmarked(&k));
    }
}
