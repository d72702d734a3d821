use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;

use causeway_core::{Change, Class, Hlc, Key, Op, Seq, Space, Unit};
use smallvec::SmallVec;
use tracing::warn;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::EngineError;
use super::order::{Side, Version};
use super::rule::replaces;
use super::spill::Spill;

/// What one change does to one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) seq: Seq,
    /// How much of the other site's log its own site had applied when it was made.
    pub(crate) seen: Seq,
    /// Its place in its site's stream.
    pub(crate) at: u64,
    pub(crate) version: Version,
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

/// What the site itself changed lately: from the seq up to which the peer is known to have applied our changes, to
/// the end of what capture has read. Keys are held as 128-bit digests, so that nothing of the stream's buffers is kept
/// alive. The oldest go to a file where they are many.
#[derive(Debug)]
pub(crate) struct Recent {
    /// In the order in which they were made.
    held: VecDeque<Held>,
    /// The place behind the last of them; each has the next one.
    places: u64,
    /// The newest of each bucket of keys. A power of two of them, or none before the first.
    heads: Vec<Link>,
    /// Those behind this place are in no bucket yet: nobody has looked for any of them.
    linked: u64,
    held_max: usize,
    /// More than these are given to the file.
    spill_above: usize,
    spill: Spill,
    kept: BTreeMap<u128, Kept>,
    floor: Seq,
    /// Behind the newest that was noted.
    noted: Seq,
    end: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    digest: u128,
    touch: Touch,
    /// To the one before it in its bucket.
    before: Link,
}

/// Where the next of a bucket's changes is held: the low bits of its place, and above them a bit for each key that comes
/// from there on, so that one look tells of most other keys that there is nothing; 0: there is none.
#[derive(Debug, Clone, Copy, Default)]
struct Link(u64);

impl Link {
    const PLACE: u64 = (1 << 40) - 1;

    fn new(place: u64, keys: u64) -> Link {
        Link(place & Self::PLACE | keys)
    }

    fn keys(self) -> u64 {
        self.0 & !Self::PLACE
    }

    fn key(digest: u128) -> u64 {
        1 << (40 + (digest >> 64) as u64 % 24)
    }
}

/// A key of which changes below the floor are remembered.
#[derive(Debug, Default)]
struct Kept {
    /// From here on.
    from: Seq,
    /// Those that are not held any more, nor in the file.
    touches: Vec<Touch>,
}

/// What one change in memory takes at the most, in a queue that has just grown, and its bucket.
pub(crate) const TOUCH_COST: usize = 2 * size_of::<Held>() + size_of::<Link>();

/// When the site itself wrote each of its keys last, for as many keys as fit; others count as never.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// A power of two of them; a key has its place in one.
    sets: Vec<[Wrote; Written::OF_SET]>,
    keys: usize,
    /// Noted and in no set yet: many at once cost less.
    new: Vec<Wrote>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Wrote {
    /// Half of the key's digest; 0 where there is none.
    digest: u64,
    last: Hlc,
    /// Of the whole key.
    whole: Hlc,
}

impl Written {
    /// Keys held at the most, 24 bytes each.
    pub(crate) const KEYS_MAX: usize = 1 << 20;
    const OF_SET: usize = 8;
    const SETS_MIN: usize = 1 << 8;
    const NEW_MAX: usize = 256;

    /// Notes a write. A `state` that was only read again has the version of the write before it, and so
    /// changes nothing here.
    pub(crate) fn note(&mut self, touched: &[(u128, Touch)]) {
        // A delete is no write: the key may only have expired here.
        let written = touched.iter().filter(|(_, own)| own.class != Class::Observed);
        self.new.extend(written.map(|(digest, own)| {
            let last = Hlc(own.version.place & !UNKNOWN);
            Wrote { digest: half(*digest), last, whole: if replaces(own) { last } else { Hlc(0) } }
        }));
        if self.new.len() >= Self::NEW_MAX {
            self.put_new();
        }
    }

    fn put_new(&mut self) {
        let mut new = std::mem::take(&mut self.new);
        // So that the sets are on their way from memory all at once.
        let ahead = new.iter().filter_map(|wrote| self.sets.get(set(wrote.digest, self.sets.len()))?.last());
        std::hint::black_box(ahead.fold(0, |all, wrote| all ^ wrote.digest));
        for wrote in new.drain(..) {
            // With three of eight taken, hardly any set is overfull: one key of some 600 takes another's place.
            if self.keys >= self.sets.len() * 3 && self.sets.len() < Self::KEYS_MAX / Self::OF_SET {
                self.grow();
            }
            self.put(wrote);
        }
        self.new = new;
    }

    /// The version of our last write to `key`; 0 if none is known.
    pub(crate) fn last(&mut self, key: &Key) -> Hlc {
        self.find(key).last
    }

    /// And of the whole of it: that of a state which holds no more than is known.
    pub(crate) fn last_whole(&mut self, key: &Key) -> Hlc {
        self.find(key).whole
    }

    fn find(&mut self, key: &Key) -> Wrote {
        self.put_new();
        let digest = half(key_digest(key));
        let mut set = self.sets.get(set(digest, self.sets.len())).into_iter().flatten();
        set.find(|wrote| wrote.digest == digest).copied().unwrap_or_default()
    }

    /// In a full set it takes the place of the oldest.
    fn put(&mut self, wrote: Wrote) {
        let at = set(wrote.digest, self.sets.len());
        let Some(set) = self.sets.get_mut(at) else { return };
        if let Some(same) = set.iter_mut().find(|other| other.digest == wrote.digest) {
            same.last = same.last.max(wrote.last);
            same.whole = same.whole.max(wrote.whole);
        } else if let Some(oldest) = set.iter_mut().min_by_key(|other| other.last) {
            self.keys += usize::from(oldest.digest == 0);
            *oldest = wrote;
        }
    }

    fn grow(&mut self) {
        let more = (self.sets.len() * 2).max(Self::SETS_MIN);
        let before = std::mem::replace(&mut self.sets, vec![Default::default(); more]);
        self.keys = 0;
        before.into_iter().flatten().filter(|wrote| wrote.digest != 0).for_each(|wrote| self.put(wrote));
    }
}

fn half(digest: u128) -> u64 {
    ((digest >> 64) as u64).max(1)
}

fn set(digest: u64, sets: usize) -> usize {
    digest as usize & sets.saturating_sub(1)
}

/// In the low bits of the version of a `state` that may hold a write that no log names; a clock leaves them
/// zero.
pub(crate) const UNSURE: u64 = 1;

/// The version of a `state` that may hold such a write, to a key that we never wrote as far as is known: it goes
/// over what the other site had before, and over nothing else.
const UNKNOWN: u64 = 2;

/// The version of a `state` that may hold a write newer than `last`, our last one that is known, or that was
/// found to hold one made by `last`; 0: none is known.
pub(crate) fn unsure(last: Hlc) -> Hlc {
    if last == Hlc(0) { Hlc(UNKNOWN) } else { Hlc(last.0 | UNSURE) }
}

/// Whether `change` is a `state` that only says again what the logs know, and so no write. Both sites must
/// say the same of a record: such a state loses to a delete, any other one wins.
pub(crate) fn is_reread(change: &Change) -> bool {
    change.was_asked_for() && change.hlc.0 & UNSURE == 0
}

/// What `change` of our log touches, by the digests of the keys. A `read` is what was there before, and no
/// change of ours.
pub(crate) fn touches(change: &Change, side: Side<'_>) -> Vec<(u128, Touch)> {
    if change.op == Op::Read { Vec::new() } else { touched_units(change, side) }
}

/// The same of either site's change, `read`s included.
pub(crate) fn touched_units(change: &Change, side: Side<'_>) -> Vec<(u128, Touch)> {
    // A value in pieces is there with the last one.
    if !change.op.is_data() || change.part.is_some_and(|part| !part.last) {
        return Vec::new();
    }
    let touch = |unit: &Unit, class| Touch {
        seq: change.seq,
        seen: change.seen,
        // What is handed over stands in no stream before it is written there, and then nothing races with it.
        at: if change.intake.is_some() { u64::MAX } else { change.pos.at },
        version: side.version(change, &unit.key),
        class,
        element: unit.element.as_deref().map(xxh3_64),
        is_expire_at: unit.element.as_deref() == Some(Unit::EXPIRE_AT),
        is_state: change.op == Op::State,
        is_absent: change.value.is_none() && change.op != Op::Delete,
        is_guess: change.was_asked_for() && !is_reread(change),
        reread: is_reread(change) || change.op == Op::Read,
    };
    let units = side.connector.units(change);
    units.iter().map(|(unit, class)| (key_digest(&unit.key), touch(unit, *class))).collect()
}

/// What a change of either site touches of its own key, and that key's digest; `None`: nothing.
pub(crate) fn touched_of_key(change: &Change, side: Side<'_>) -> Option<(u128, Vec<Touch>)> {
    let touched = touched_units(change, side);
    let &(digest, _) = touched.first()?;
    Some((digest, touched.into_iter().filter(|(of, _)| *of == digest).map(|(_, touch)| touch).collect()))
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

/// Of one key, oldest first.
pub(crate) type Touches = SmallVec<[Touch; 2]>;

/// Where among the last `len` of `places` places stands what `link` leads to; `None`: it is there no more.
fn at(link: Link, places: u64, len: usize) -> Option<usize> {
    let back = places.wrapping_sub(link.0) & Link::PLACE;
    usize::try_from(back)
        .ok()
        .filter(|back| link.keys() != 0 && (1..=len).contains(back))
        .map(|back| len - back)
}

impl Recent {
    /// Holds at most about `held_max` changes in memory, and the older ones in a file in `dir`.
    pub(crate) fn new(dir: PathBuf, held_max: usize) -> Recent {
        let held_max = held_max.max(1);
        Recent {
            held: VecDeque::new(),
            places: 0,
            heads: Vec::new(),
            linked: 0,
            held_max,
            spill_above: held_max,
            spill: Spill::new(dir, held_max.saturating_mul(4)),
            kept: BTreeMap::new(),
            floor: Seq(0),
            noted: Seq(0),
            end: Seq(0),
        }
    }

    /// Notes what a change of ours touches. Seqs ascend.
    pub(crate) fn note(&mut self, touched: &[(u128, Touch)]) {
        for (digest, touch) in touched {
            self.held.push_back(Held { digest: *digest, touch: *touch, before: Link::default() });
            self.places += 1;
            self.noted = self.noted.max(touch.seq.next());
        }
        if self.held.len() > self.spill_above {
            self.spill_above = self.held_max;
            if let Err(error) = self.spill_oldest() {
                // There is no other place for them. Tried again when there are some more.
                self.spill_above = self.held.len() + self.held_max;
                warn!(%error, held = self.held.len(), "own changes cannot be written to a file and stay in memory");
            }
        }
    }

    /// Puts what was noted since into the buckets.
    fn link(&mut self) {
        let count = self.places - self.linked;
        if count == 0 {
            return;
        }
        if self.heads.is_empty() {
            self.heads = vec![Link::default(); self.held_max.next_power_of_two()];
        }
        let (len, mask, places) = (self.held.len(), self.heads.len() - 1, self.places);
        let new = self.held.range_mut(len - len.min(count as usize)..);
        for (place, held) in (places - new.len() as u64..).zip(new) {
            let Some(head) = self.heads.get_mut(held.digest as usize & mask) else { continue };
            held.before = if at(*head, places, len).is_some() { *head } else { Link::default() };
            *head = Link::new(place, held.before.keys() | Link::key(held.digest));
        }
        self.linked = places;
    }

    /// Gives a quarter of what is held to the file.
    fn spill_oldest(&mut self) -> io::Result<()> {
        let count = self.held.len() / 4 + 1;
        let oldest: Vec<(u128, Touch)> =
            self.held.range(..count).map(|held| (held.digest, held.touch)).collect();
        self.spill.add(&oldest)?;
        self.held.drain(..count);
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
        self.kept.values().fold(self.floor, |oldest, kept| oldest.min(kept.from))
    }

    /// How many changes are remembered, and how many of them in the file.
    pub(crate) fn len(&self) -> (u64, u64) {
        let kept = self.kept.values().map(|kept| kept.touches.len()).sum::<usize>();
        ((self.held.len() + kept) as u64 + self.spill.len(), self.spill.len())
    }

    /// Nothing is remembered of any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Whether anything can be remembered that whoever had seen ours up to `seen` did not know.
    pub(crate) fn is_beyond(&self, seen: Seq) -> bool {
        self.noted > seen && !self.is_empty()
    }

    /// What is remembered of a key from `from` on, durable or not; oldest first.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn since(&mut self, digest: u128, from: Seq) -> Result<Touches, EngineError> {
        self.link();
        let kept = self.kept.get(&digest);
        let (key, len) = (Link::key(digest), self.held.len());
        let mut found = Touches::new();
        let mut next = self.heads.get(digest as usize & self.heads.len().saturating_sub(1)).copied();
        while let Some(link) = next.filter(|link| link.keys() & key != 0)
            && let Some(held) = at(link, self.places, len).and_then(|at| self.held.get(at))
            && held.touch.seq >= from
        {
            if held.digest == digest {
                found.push(held.touch);
            }
            next = Some(held.before);
        }
        found.reverse();
        let newer = found.len();
        found.extend(kept.iter().flat_map(|kept| &kept.touches).filter(|own| own.seq >= from).copied());
        if from < self.spill.end() {
            let from = from.max(kept.map_or(self.floor, |kept| kept.from));
            found.extend(self.spill.of(digest, from).map_err(EngineError::Spilled)?);
        }
        if found.len() > newer {
            // What was recalled may be held besides.
            let unit = |own: &Touch| (own.seq, own.element, own.class as u8);
            found.sort_by_key(unit);
            found.dedup_by_key(|own| unit(own));
        }
        Ok(found)
    }

    /// Our changes to a key, durable by now, that a peer's change which had seen ours up to `seen` did not
    /// know; oldest first, one for each unit.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn unseen(&mut self, digest: u128, seen: Seq) -> Result<Touches, EngineError> {
        if !self.is_beyond(seen) {
            return Ok(Touches::new());
        }
        let mut unseen = self.since(digest, seen)?;
        unseen.truncate(unseen.partition_point(|own| own.seq < self.end));
        Ok(unseen)
    }

    /// Whether there are any.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn has_unseen(&mut self, key: &Key, seen: Seq) -> Result<bool, EngineError> {
        Ok(self.is_beyond(seen) && !self.unseen(key_digest(key), seen)?.is_empty())
    }

    /// The stream begins anew: all that is remembered stands before everything that comes.
    pub(crate) fn stream_is_new(&mut self) {
        self.held.iter_mut().for_each(|held| held.touch.at = 0);
        self.kept.values_mut().flat_map(|kept| &mut kept.touches).for_each(|own| own.at = 0);
        self.spill.stream_is_new();
    }

    /// Takes back some of what was forgotten: of our changes from below the floor on.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(crate) fn recall(&mut self, older: &[(u128, Touch)]) -> Result<(), EngineError> {
        let newest = older.iter().map(|(_, touch)| touch.seq.next()).max();
        self.noted = newest.map_or(self.noted, |newest| newest.max(self.noted));
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
        while let Some(held) = self.held.pop_front_if(|held| held.touch.seq < low) {
            if let Some(kept) = self.kept.get_mut(&held.digest) {
                kept.touches.push(held.touch);
            }
        }
        if self.spill.len() > 0 && self.spill.end() <= self.oldest() {
            self.spill.clear();
        }
    }

    /// Of a key nothing is forgotten from now on, until it is released.
    pub(crate) fn keep(&mut self, digest: u128) {
        let from = self.floor;
        self.kept.entry(digest).or_insert_with(|| Kept { from, ..Kept::default() });
    }

    /// A key need not be kept any longer.
    pub(crate) fn release(&mut self, digest: u128) {
        self.kept.remove(&digest);
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
            version: Version { place: seq, seq: seq % 7 },
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

    fn unseen(recent: &mut Recent, name: &'static str, seen: u64) -> Vec<u64> {
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
            let all = recent.since(a, Seq(0)).unwrap();
            assert!(all.iter().all(|own| *own == Touch { at: 0, ..touch(own.seq.0) }));
        });
    }

    #[test]
    fn a_file_that_cannot_be_made_costs_memory_only() {
        let mut recent = Recent::new(PathBuf::from("/nowhere"), 2);
        (1..100).for_each(|seq| set(&mut recent, seq, "a"));
        recent.reach(Seq(100));
        assert_eq!(recent.len(), (99, 0));
        assert_eq!(unseen(&mut recent, "a", 50), (50..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_write_of_a_key_is_known_while_there_is_room() {
        let mut written = Written::default();
        let named = |n: usize| Key { space: Space::Db(0), name: Bytes::from(n.to_string()) };
        let at = |n: usize| Version::at(Hlc((n as u64 + 1) << 8));
        let all = 2 * Written::KEYS_MAX;
        for n in 0..all {
            let own = |class, version| [(key_digest(&named(n)), Touch { class, version, ..touch(1) })];
            written.note(&own(Class::Absolute, at(n)));
            written.note(&own(Class::Observed, at(2 * n)));
            written.note(&own(Class::Absolute, at(n / 2)));
            if n == Written::KEYS_MAX / 4 {
                let lost = (0..n).filter(|n| written.last(&named(*n)) == Hlc(0)).count();
                assert!(lost < n / 200, "{lost} of {n}");
            }
        }
        assert_eq!(written.sets.len() * Written::OF_SET, Written::KEYS_MAX);
        let recent = all - Written::KEYS_MAX / 2..all;
        let wrong = recent.clone().filter(|n| written.last(&named(*n)).0 != at(*n).place).count();
        assert!(wrong < recent.len() / 50, "{wrong}");
        assert!((0..all).all(|n| [0, at(n).place].contains(&written.last(&named(n)).0)));
    }

    #[test]
    fn keys_of_different_spaces_are_different() {
        let db = |db| Key { space: Space::Db(db), name: Bytes::from_static(b"k") };
        assert_ne!(key_digest(&db(0)), key_digest(&db(1)));
    }
}
