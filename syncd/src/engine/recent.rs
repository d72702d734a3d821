use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::path::PathBuf;

use causeway_core::{Change, Class, Connector, Hlc, Key, Op, Seq, Space, Unit};
use smallvec::SmallVec;
use tracing::warn;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::EngineError;
use super::spill::Spill;

/// What one change does to one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) seq: Seq,
    /// How much of the other site's log its own site had applied when it was made.
    pub(crate) seen: Seq,
    /// Its place in its site's stream.
    pub(crate) at: u64,
    pub(crate) hlc: Hlc,
    pub(crate) class: Class,
    /// Digest of the hash field or member; `None`: the whole key.
    pub(crate) element: Option<u64>,
    /// It sets or takes away the expire-at, and nothing else.
    pub(crate) is_expire_at: bool,
    pub(crate) is_state: bool,
    /// It says that the key does not exist.
    pub(crate) is_absent: bool,
    /// It is a `state` that holds what was written in a gap, nobody knows when.
    pub(crate) is_guess: bool,
    /// It says what the key held, as a `state` that was read again or a `read` does, and is no write.
    pub(crate) reread: bool,
}

/// What the site itself changed lately, by key: from the seq up to which the peer is known to have applied
/// our changes, to the end of what capture has read. Keys are held as 128-bit digests, so that nothing of
/// the stream's buffers is kept alive. The oldest go to a file where they are many.
#[derive(Debug)]
pub(crate) struct Recent {
    by_key: ByDigest<SmallVec<[Touch; 1]>>,
    in_order: VecDeque<(Seq, u128)>,
    /// Of `in_order`.
    held_max: usize,
    /// More than these are given to the file.
    spill_above: usize,
    spill: Spill,
    /// Keys of which changes below the floor are remembered, from here on.
    kept: BTreeMap<u128, Seq>,
    floor: Seq,
    end: Seq,
}

/// What one change in memory takes, about.
pub(crate) const TOUCH_COST: usize = 160;

/// By digests of keys, which need no hashing again.
type ByDigest<V> = HashMap<u128, V, BuildHasherDefault<DigestHasher>>;

#[derive(Debug, Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// When the site itself wrote each of its keys last, for as many keys as fit; others count as never.
#[derive(Debug, Default)]
pub(crate) struct Written {
    newer: ByDigest<Hlc>,
    older: ByDigest<Hlc>,
}

impl Written {
    /// Keys held at the most, about 48 bytes each.
    pub(crate) const KEYS_MAX: usize = 1 << 20;

    /// Notes a write. A `state` that was only read again has the version of the write before it, and so
    /// changes nothing here.
    pub(crate) fn note(&mut self, hlc: Hlc, touched: &[(u128, Touch)]) {
        // A delete is no write: the key may only have expired here.
        for (digest, _) in touched.iter().filter(|(_, own)| own.class != Class::Observed) {
            let last = self.newer.entry(*digest).or_default();
            *last = Hlc(hlc.0 & !UNSURE).max(*last);
        }
        if self.newer.len() >= Self::KEYS_MAX / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    /// The version of our last write to `key`; 0 if none is known.
    pub(crate) fn last(&self, key: &Key) -> Hlc {
        let digest = key_digest(key);
        self.newer.get(&digest).or_else(|| self.older.get(&digest)).copied().unwrap_or_default()
    }
}

/// In the low bits of the version of a `state` that may hold a write that no log names; a clock leaves them
/// zero.
const UNSURE: u64 = 1;

/// The version of a `state` that may hold a write newer than `last`, our last one that is known, or that was
/// found to hold one made by `last`. A key that we never wrote only holds the peer's.
pub(crate) fn unsure(last: Hlc) -> Hlc {
    if last == Hlc(0) { last } else { Hlc(last.0 | UNSURE) }
}

/// Whether `change` is a `state` that only says again what the logs know, and so no write. Both sites must
/// say the same of a record: such a state loses to a delete, any other one wins.
pub(crate) fn is_reread(change: &Change) -> bool {
    change.op == Op::State && change.uncertain && change.hlc.0 & UNSURE == 0
}

/// What `change` of our log touches, by the digests of the keys. A `read` is what was there before, and no
/// change of ours.
pub(crate) fn touches(change: &Change, connector: &dyn Connector) -> Vec<(u128, Touch)> {
    if change.op == Op::Read { Vec::new() } else { touched_units(change, connector) }
}

/// The same of either site's change, `read`s included.
pub(crate) fn touched_units(change: &Change, connector: &dyn Connector) -> Vec<(u128, Touch)> {
    // A value in pieces is there with the last one.
    if !change.op.is_data() || change.part.is_some_and(|part| !part.last) {
        return Vec::new();
    }
    let touch = |unit: &Unit, class| Touch {
        seq: change.seq,
        seen: change.seen,
        at: change.pos.at,
        hlc: change.hlc,
        class,
        element: unit.element.as_deref().map(xxh3_64),
        is_expire_at: unit.element.as_deref() == Some(Unit::EXPIRE_AT),
        is_state: change.op == Op::State,
        is_absent: change.value.is_none() && change.op != Op::Delete,
        is_guess: change.op == Op::State && change.uncertain && !is_reread(change),
        reread: is_reread(change) || change.op == Op::Read,
    };
    let units = connector.units(change);
    units.iter().map(|(unit, class)| (key_digest(&unit.key), touch(unit, *class))).collect()
}

/// Digest of a key and its space, for maps that must not hold the key itself.
pub(crate) fn key_digest(key: &Key) -> u128 {
    let mut hasher = Xxh3::new();
    match &key.space {
        Space::Whole => hasher.update(b"w"),
        Space::Db(db) => {
            hasher.update(b"d");
            hasher.update(&db.to_le_bytes());
        }
        Space::Table(name) => named(&mut hasher, b"t", name),
        Space::Index(name) => named(&mut hasher, b"i", name),
        Space::Bucket(name) => named(&mut hasher, b"b", name),
    }
    hasher.update(&key.name);
    hasher.digest128()
}

fn named(hasher: &mut Xxh3, kind: &[u8], name: &[u8]) {
    hasher.update(kind);
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name);
}

impl Recent {
    /// Holds at most about `held_max` changes in memory, and the older ones in a file in `dir`.
    pub(crate) fn new(dir: PathBuf, held_max: usize) -> Recent {
        let held_max = held_max.max(1);
        Recent {
            by_key: ByDigest::default(),
            in_order: VecDeque::new(),
            held_max,
            spill_above: held_max,
            spill: Spill::new(dir, held_max.saturating_mul(4)),
            kept: BTreeMap::new(),
            floor: Seq(0),
            end: Seq(0),
        }
    }

    /// Notes what a change of ours touches. Seqs ascend.
    pub(crate) fn note(&mut self, touched: &[(u128, Touch)]) {
        for (digest, own) in touched {
            self.by_key.entry(*digest).or_default().push(*own);
            self.in_order.push_back((own.seq, *digest));
        }
        if self.in_order.len() > self.spill_above {
            self.spill_above = self.held_max;
            if let Err(error) = self.spill_oldest() {
                // There is no other place for them. Tried again when there are some more.
                self.spill_above = self.in_order.len() + self.held_max;
                warn!(%error, held = self.in_order.len(), "own changes cannot be written to a file and stay in memory");
            }
        }
    }

    /// Gives a quarter of what is held to the file.
    fn spill_oldest(&mut self) -> io::Result<()> {
        let Some((newest, _)) = self.in_order.get(self.in_order.len() / 4) else { return Ok(()) };
        let end = newest.next();
        let count = self.in_order.partition_point(|(seq, _)| *seq < end);
        let digests: BTreeSet<u128> = self.in_order.range(..count).map(|(_, digest)| *digest).collect();
        let older = |own: &SmallVec<[Touch; 1]>| own.partition_point(|own| own.seq < end);
        let mut oldest = Vec::with_capacity(count);
        for digest in &digests {
            let own = self.by_key.get(digest).into_iter().flat_map(|own| own.iter().take(older(own)));
            oldest.extend(own.map(|own| (*digest, *own)));
        }
        self.spill.add(&oldest)?;
        self.in_order.drain(..count);
        for digest in digests {
            self.drop_below(digest, end);
        }
        Ok(())
    }

    /// Notes that our log holds everything below `end` durably.
    pub(crate) fn reach(&mut self, end: Seq) {
        self.end = self.end.max(end);
    }

    /// Every own change below is known: the `basis` of a decision made now.
    pub(crate) fn end(&self) -> Seq {
        self.end
    }

    /// What is remembered of every key begins here.
    pub(crate) fn floor(&self) -> Seq {
        self.floor
    }

    /// The oldest change that is remembered stands here or above.
    pub(crate) fn oldest(&self) -> Seq {
        self.kept.values().fold(self.floor, |oldest, from| oldest.min(*from))
    }

    /// How many changes are remembered, and how many of them in the file.
    pub(crate) fn len(&self) -> (u64, u64) {
        (self.in_order.len() as u64 + self.spill.len(), self.spill.len())
    }

    /// Nothing is remembered of any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.spill.len() == 0
    }

    /// All that is remembered of a key, durable or not; oldest first.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn all(&self, digest: u128) -> Result<Cow<'_, [Touch]>, EngineError> {
        let held = self.by_key.get(&digest).map_or(&[][..], SmallVec::as_slice);
        let from = self.kept.get(&digest).copied().unwrap_or(self.floor);
        let mut all = self.spill.of(digest, from).map_err(EngineError::Spilled)?;
        if all.is_empty() {
            return Ok(Cow::Borrowed(held));
        }
        // What was recalled may be held besides.
        all.extend_from_slice(held);
        let unit = |own: &Touch| (own.seq, own.element, own.class as u8);
        all.sort_by_key(unit);
        all.dedup_by_key(|own| unit(own));
        Ok(Cow::Owned(all))
    }

    /// Our changes to a key, durable by now, that a peer's change which had seen ours up to `seen` did not
    /// know; oldest first, one for each unit.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn unseen(&self, digest: u128, seen: Seq) -> Result<Cow<'_, [Touch]>, EngineError> {
        let part = |all: &[Touch]| {
            let begin = all.partition_point(|own| own.seq < seen);
            begin..all.partition_point(|own| own.seq < self.end).max(begin)
        };
        Ok(match self.all(digest)? {
            Cow::Borrowed(all) => Cow::Borrowed(all.get(part(all)).unwrap_or_default()),
            Cow::Owned(all) => Cow::Owned(all.get(part(&all)).unwrap_or_default().to_vec()),
        })
    }

    /// Whether there are any.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn has_unseen(&self, key: &Key, seen: Seq) -> Result<bool, EngineError> {
        Ok(!self.unseen(key_digest(key), seen)?.is_empty())
    }

    /// The stream begins anew: all that is remembered stands before everything that comes.
    pub(crate) fn stream_is_new(&mut self) {
        self.by_key.values_mut().flatten().for_each(|own| own.at = 0);
        self.spill.stream_is_new();
    }

    /// Takes back some of what was forgotten: of our changes from below the floor on.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn recall(&mut self, older: &[(u128, Touch)]) -> Result<(), EngineError> {
        self.spill.add(older).map_err(EngineError::Spilled)
    }

    /// All that was forgotten from `floor` on was taken back.
    pub(crate) fn recalled_to(&mut self, floor: Seq) {
        self.floor = self.floor.min(floor);
    }

    /// Forgets what the peer is known to have applied, as every later change of the peer has seen it; of keys
    /// that are kept nothing.
    pub(crate) fn forget_below(&mut self, low: Seq) {
        if low <= self.floor {
            return;
        }
        self.floor = low;
        while let Some(&(seq, digest)) = self.in_order.front()
            && seq < low
        {
            self.in_order.pop_front();
            if !self.kept.contains_key(&digest) {
                self.drop_below(digest, low);
            }
        }
        if self.spill.len() > 0 && self.spill.end() <= self.oldest() {
            self.spill.clear();
        }
    }

    /// Of a key nothing is forgotten from now on, until it is released.
    pub(crate) fn keep(&mut self, digest: u128) {
        self.kept.entry(digest).or_insert(self.floor);
    }

    /// A key need not be kept any longer.
    pub(crate) fn release(&mut self, digest: u128) {
        if self.kept.remove(&digest).is_some() {
            self.drop_below(digest, self.floor);
        }
    }

    fn drop_below(&mut self, digest: u128, low: Seq) {
        let Entry::Occupied(mut own) = self.by_key.entry(digest) else { return };
        let count = own.get().partition_point(|own| own.seq < low);
        own.get_mut().drain(..count);
        if own.get().is_empty() {
            own.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn key(name: &'static str) -> Key {
        Key { space: Space::Db(0), name: Bytes::from_static(name.as_bytes()) }
    }

    fn set(recent: &mut Recent, seq: u64, name: &'static str) {
        recent.note(&[(key_digest(&key(name)), touch(seq))]);
    }

    fn touch(seq: u64) -> Touch {
        Touch {
            seq: Seq(seq),
            seen: Seq(0),
            at: seq,
            hlc: Hlc(seq),
            class: Class::Absolute,
            element: seq.is_multiple_of(2).then_some(seq),
            is_expire_at: false,
            is_state: false,
            is_absent: seq.is_multiple_of(5),
            is_guess: seq.is_multiple_of(3),
            reread: false,
        }
    }

    /// Everything in memory, and nearly everything in the file.
    fn both(test: impl Fn(&mut Recent)) {
        let dir = tempfile::tempdir().unwrap();
        for held_max in [1 << 12, 1] {
            test(&mut Recent::new(dir.path().to_owned(), held_max));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file is left");
    }

    fn unseen(recent: &Recent, name: &'static str, seen: u64) -> Vec<u64> {
        recent.unseen(key_digest(&key(name)), Seq(seen)).unwrap().iter().map(|own| own.seq.0).collect()
    }

    #[test]
    fn only_what_the_peer_had_not_seen_is_live() {
        both(|recent| {
            set(recent, 1, "a");
            set(recent, 2, "b");
            set(recent, 5, "a");
            set(recent, 6, "a");
            recent.reach(Seq(6));
            assert_eq!(unseen(recent, "a", 0), [1, 5]);
            assert_eq!(unseen(recent, "a", 2), [5]);
            assert_eq!(unseen(recent, "a", 6), [0; 0]);
            assert_eq!(recent.end(), Seq(6));
        });
    }

    #[test]
    fn forgetting_leaves_nothing_behind() {
        both(|recent| {
            set(recent, 1, "a");
            set(recent, 2, "a");
            recent.reach(Seq(3));
            recent.forget_below(Seq(2));
            assert_eq!(unseen(recent, "a", 0), [2]);
            recent.forget_below(Seq(9));
            assert_eq!((recent.len(), recent.is_empty(), recent.floor()), ((0, 0), true, Seq(9)));
        });
    }

    #[test]
    fn of_a_key_that_is_kept_nothing_is_forgotten_until_it_is_released() {
        both(|recent| {
            set(recent, 1, "a");
            set(recent, 2, "b");
            set(recent, 3, "a");
            recent.reach(Seq(4));
            recent.keep(key_digest(&key("a")));
            recent.forget_below(Seq(3));
            assert!(recent.oldest() <= Seq(1));
            assert_eq!((unseen(recent, "a", 0), unseen(recent, "b", 0)), (vec![1, 3], vec![]));
            recent.release(key_digest(&key("a")));
            assert_eq!((recent.oldest(), unseen(recent, "a", 0)), (Seq(3), vec![3]));
        });
    }

    #[test]
    fn what_is_recalled_is_there_once_and_before_the_stream() {
        both(|recent| {
            let a = key_digest(&key("a"));
            (1..9).for_each(|seq| set(recent, seq, "a"));
            recent.reach(Seq(9));
            recent.keep(a);
            recent.forget_below(Seq(6));
            recent.recall(&(3..6).map(|seq| (a, Touch { at: 0, ..touch(seq) })).collect::<Vec<_>>()).unwrap();
            recent.recalled_to(Seq(3));
            recent.release(a);
            assert_eq!(unseen(recent, "a", 0), [3, 4, 5, 6, 7, 8]);
            recent.stream_is_new();
            assert!(recent.all(a).unwrap().iter().all(|own| *own == Touch { at: 0, ..touch(own.seq.0) }));
        });
    }

    #[test]
    fn a_file_that_cannot_be_made_costs_memory_only() {
        let mut recent = Recent::new(PathBuf::from("/nowhere"), 2);
        (1..100).for_each(|seq| set(&mut recent, seq, "a"));
        recent.reach(Seq(100));
        assert_eq!(recent.len(), (99, 0));
        assert_eq!(unseen(&recent, "a", 50), (50..100).collect::<Vec<_>>());
    }

    #[test]
    fn keys_of_different_spaces_are_different() {
        let db = |db| Key { space: Space::Db(db), name: Bytes::from_static(b"k") };
        assert_ne!(key_digest(&db(0)), key_digest(&db(1)));
    }
}
