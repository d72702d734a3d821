use std::collections::{BTreeSet, HashMap, VecDeque};

use causeway_core::{Change, Class, Connector, Hlc, Key, Op, Seq, Space, Unit};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

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
    /// It is a `state` that holds what was written in a gap, nobody knows when.
    pub(crate) is_guess: bool,
    /// It says what the key held, as a `state` that was read again or a `read` does, and is no write.
    pub(crate) reread: bool,
}

/// What the site itself changed lately, by key: from the seq up to which the peer is known to have applied
/// our changes, to the end of what capture has read. Keys are held as 128-bit digests, so that nothing of
/// the stream's buffers is kept alive.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    by_key: HashMap<u128, Vec<Touch>>,
    in_order: VecDeque<(Seq, u128)>,
    /// Keys of which changes below the floor are remembered.
    kept: BTreeSet<u128>,
    floor: Seq,
    end: Seq,
}

/// When the site itself wrote each of its keys last, for as many keys as fit; others count as never.
#[derive(Debug, Default)]
pub(crate) struct Written {
    newer: HashMap<u128, Hlc>,
    older: HashMap<u128, Hlc>,
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
    /// Notes what a change of ours touches. Seqs ascend.
    pub(crate) fn note(&mut self, touched: &[(u128, Touch)]) {
        for (digest, own) in touched {
            self.by_key.entry(*digest).or_default().push(*own);
            self.in_order.push_back((own.seq, *digest));
        }
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
        let kept = self.kept.iter().filter_map(|digest| self.by_key.get(digest)?.first());
        kept.map(|own| own.seq).min().map_or(self.floor, |seq| seq.min(self.floor))
    }

    /// How many changes are remembered.
    pub(crate) fn len(&self) -> usize {
        self.in_order.len()
    }

    /// Nothing is remembered of any key.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// All that is remembered of a key, durable or not; oldest first.
    pub(crate) fn all(&self, digest: u128) -> &[Touch] {
        self.by_key.get(&digest).map_or(&[], Vec::as_slice)
    }

    /// Our changes to a key, durable by now, that a peer's change which had seen ours up to `seen` did not
    /// know; oldest first, one for each unit.
    pub(crate) fn unseen(&self, digest: u128, seen: Seq) -> &[Touch] {
        let all = self.all(digest);
        let begin = all.partition_point(|own| own.seq < seen);
        let end = all.partition_point(|own| own.seq < self.end);
        all.get(begin..end).unwrap_or_default()
    }

    /// The same, one for each change.
    pub(crate) fn live(&self, key: &Key, seen: Seq) -> Vec<Touch> {
        let mut live = self.unseen(key_digest(key), seen).to_vec();
        live.dedup_by_key(|own| own.seq);
        live
    }

    /// The stream begins anew: all that is remembered stands before everything that comes.
    pub(crate) fn stream_is_new(&mut self) {
        self.by_key.values_mut().flatten().for_each(|own| own.at = 0);
    }

    /// Takes back what was forgotten: `older` are what our changes from `floor` to the floor that was touched.
    pub(crate) fn recall(&mut self, floor: Seq, older: &[(u128, Touch)]) {
        let mut again = Recent::default();
        again.note(older);
        for (digest, own) in std::mem::take(&mut self.by_key) {
            let all = again.by_key.entry(digest).or_default();
            all.extend(own);
            all.sort_by_key(|own| own.seq);
            all.dedup();
        }
        again.in_order.append(&mut self.in_order);
        *self = Recent { floor, end: self.end, kept: std::mem::take(&mut self.kept), ..again };
    }

    /// Forgets what the peer is known to have applied, as every later change of the peer has seen it; of keys
    /// that are `kept` nothing.
    pub(crate) fn forget_below(&mut self, low: Seq, kept: impl Fn(u128) -> bool) {
        self.floor = self.floor.max(low);
        while let Some(&(seq, digest)) = self.in_order.front() {
            if seq >= low {
                break;
            }
            self.in_order.pop_front();
            if kept(digest) {
                self.kept.insert(digest);
            } else {
                self.forget(digest, low);
            }
        }
    }

    /// A key need not be kept any longer.
    pub(crate) fn release(&mut self, digest: u128) {
        if self.kept.remove(&digest) {
            self.forget(digest, self.floor);
        }
    }

    fn forget(&mut self, digest: u128, low: Seq) {
        if let Some(own) = self.by_key.get_mut(&digest) {
            own.retain(|own| own.seq >= low);
            if own.is_empty() {
                self.by_key.remove(&digest);
            }
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
        let own = Touch {
            seq: Seq(seq),
            seen: Seq(0),
            at: seq,
            hlc: Hlc(seq),
            class: Class::Absolute,
            element: None,
            is_expire_at: false,
            is_state: false,
            is_guess: false,
            reread: false,
        };
        recent.note(&[(key_digest(&key(name)), own)]);
    }

    #[test]
    fn only_what_the_peer_had_not_seen_is_live() {
        let mut recent = Recent::default();
        set(&mut recent, 1, "a");
        set(&mut recent, 2, "b");
        set(&mut recent, 5, "a");
        set(&mut recent, 6, "a");
        recent.reach(Seq(6));
        let seqs = |live: Vec<Touch>| live.iter().map(|own| own.seq.0).collect::<Vec<_>>();
        assert_eq!(seqs(recent.live(&key("a"), Seq(0))), [1, 5]);
        assert_eq!(seqs(recent.live(&key("a"), Seq(2))), [5]);
        assert_eq!(seqs(recent.live(&key("a"), Seq(6))), [0; 0]);
        assert_eq!(recent.end(), Seq(6));
    }

    #[test]
    fn forgetting_leaves_nothing_behind() {
        let mut recent = Recent::default();
        set(&mut recent, 1, "a");
        set(&mut recent, 2, "a");
        recent.reach(Seq(3));
        recent.forget_below(Seq(2), |_| false);
        assert_eq!(recent.live(&key("a"), Seq(0)).len(), 1);
        recent.forget_below(Seq(9), |_| false);
        assert_eq!((recent.len(), recent.by_key.len(), recent.floor()), (0, 0, Seq(9)));
    }

    #[test]
    fn of_a_key_that_is_kept_nothing_is_forgotten_until_it_is_released() {
        let mut recent = Recent::default();
        set(&mut recent, 1, "a");
        set(&mut recent, 2, "b");
        set(&mut recent, 3, "a");
        recent.reach(Seq(4));
        let a = key_digest(&key("a"));
        recent.forget_below(Seq(3), |digest| digest == a);
        assert_eq!((recent.floor(), recent.oldest()), (Seq(3), Seq(1)));
        assert_eq!((recent.all(a).len(), recent.live(&key("b"), Seq(0)).len()), (2, 0));
        recent.release(a);
        assert_eq!((recent.oldest(), recent.all(a).len()), (Seq(3), 1));
    }

    #[test]
    fn keys_of_different_spaces_are_different() {
        let db = |db| Key { space: Space::Db(db), name: Bytes::from_static(b"k") };
        assert_ne!(key_digest(&db(0)), key_digest(&db(1)));
    }
}
