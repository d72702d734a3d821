use std::collections::{HashMap, VecDeque};

use causeway_core::{Change, Class, Connector, Hlc, Key, Op, Seq, Space, Unit};
use xxhash_rust::xxh3::Xxh3;

/// One change of the site's own log that may still be concurrent with a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) seq: Seq,
    pub(crate) class: Class,
    /// It touches the whole key, not one element.
    pub(crate) whole: bool,
    /// It is a `state`: whether its version is certain, and the version.
    pub(crate) state: Option<(bool, Hlc)>,
    /// It is a `state` that says again what is known: no write.
    pub(crate) reread: bool,
}

/// What the site itself changed lately, by key: from the seq up to which the peer is known to have applied
/// our changes, to the end of what capture has read. Keys are held as 128-bit digests, so that nothing of
/// the stream's buffers is kept alive.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    by_key: HashMap<u128, Vec<Own>>,
    in_order: VecDeque<(Seq, u128)>,
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
    pub(crate) fn note(&mut self, hlc: Hlc, touched: &[(u128, Own)]) {
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
/// change of ours; nor is a piece of a value before its last one.
pub(crate) fn touches(change: &Change, connector: &dyn Connector) -> Vec<(u128, Own)> {
    let unfinished = change.part.is_some_and(|part| !part.last);
    if !change.op.is_data() || change.op == Op::Read || unfinished {
        return Vec::new();
    }
    let state = (change.op == Op::State).then_some((!change.uncertain, change.hlc));
    let reread = is_reread(change);
    let own =
        |unit: &Unit, class| Own { seq: change.seq, class, whole: unit.element.is_none(), state, reread };
    let units = connector.units(change);
    units.iter().map(|(unit, class)| (key_digest(&unit.key), own(unit, *class))).collect()
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
    pub(crate) fn note(&mut self, touched: &[(u128, Own)]) {
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

    /// What is remembered begins here.
    pub(crate) fn floor(&self) -> Seq {
        self.floor
    }

    /// How many changes are remembered.
    pub(crate) fn len(&self) -> usize {
        self.in_order.len()
    }

    /// Our changes to `key`, durable by now, that a peer's change which had seen ours up to `seen` did not
    /// know; oldest first.
    pub(crate) fn live(&self, key: &Key, seen: Seq) -> Vec<Own> {
        let mut live = self.by_key.get(&key_digest(key)).map_or_else(Vec::new, |own| {
            own.iter().copied().filter(|own| own.seq >= seen && own.seq < self.end).collect()
        });
        live.dedup_by_key(|own| own.seq);
        live
    }

    /// Takes back what was forgotten: `older` are what our changes from `floor` to the floor that was touched.
    pub(crate) fn recall(&mut self, floor: Seq, older: &[(u128, Own)]) {
        let mut again = Recent::default();
        again.note(older);
        for (digest, own) in std::mem::take(&mut self.by_key) {
            again.by_key.entry(digest).or_default().extend(own);
        }
        again.in_order.append(&mut self.in_order);
        *self = Recent { floor, end: self.end, ..again };
    }

    /// Forgets what the peer is known to have applied: every later change of the peer has seen it.
    pub(crate) fn forget_below(&mut self, low: Seq) {
        self.floor = self.floor.max(low);
        while let Some(&(seq, digest)) = self.in_order.front() {
            if seq >= low {
                break;
            }
            self.in_order.pop_front();
            if let Some(own) = self.by_key.get_mut(&digest) {
                own.retain(|own| own.seq >= low);
                if own.is_empty() {
                    self.by_key.remove(&digest);
                }
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
        let own = Own { seq: Seq(seq), class: Class::Absolute, whole: true, state: None, reread: false };
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
        let seqs = |live: Vec<Own>| live.iter().map(|own| own.seq.0).collect::<Vec<_>>();
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
        recent.forget_below(Seq(2));
        assert_eq!(recent.live(&key("a"), Seq(0)).len(), 1);
        recent.forget_below(Seq(9));
        assert_eq!((recent.len(), recent.by_key.len(), recent.floor()), (0, 0, Seq(9)));
    }

    #[test]
    fn keys_of_different_spaces_are_different() {
        let db = |db| Key { space: Space::Db(db), name: Bytes::from_static(b"k") };
        assert_ne!(key_digest(&db(0)), key_digest(&db(1)));
    }
}
