//! What the peer's changes on their way into a site's store touch, and the keys that have to be evaluated again
//! because of a race. Shared by the site's applier, which sends and evaluates, and its capture, which sees both
//! pass in the store's stream.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::BytesMut;
use causeway_core::{Change, Key, Marker, Position, Seq};

use super::order::Side;
use super::recent::{Touch, key_digest, touched_of_key};
use super::rule::Element;

/// A unit of a change of the peer, as it went into the store.
#[derive(Debug, Clone)]
pub(crate) struct Theirs {
    /// Of the change, in its batch.
    pub(crate) index: usize,
    pub(crate) digest: u128,
    pub(crate) key: Key,
    pub(crate) touch: Touch,
    /// Something of ours was done again on top of it.
    pub(crate) on_top: bool,
}

/// What a transaction touches.
#[derive(Debug)]
pub(crate) enum Units {
    /// As it was decided.
    Decided(Vec<Theirs>),
    /// Of these changes, so many bytes of the log: nothing of ours was in question, so that nobody has looked.
    Of(Arc<Vec<Change>>, usize),
}

impl Units {
    pub(crate) fn of(changes: &Arc<Vec<Change>>) -> Units {
        Units::Of(Arc::clone(changes), changes.iter().map(Change::cost).sum())
    }

    fn len(&self) -> usize {
        match self {
            Units::Decided(units) => units.len(),
            Units::Of(changes, _) => changes.len(),
        }
    }

    /// What it holds of the log, in bytes.
    fn held(&self) -> usize {
        match self {
            Units::Decided(_) => 0,
            Units::Of(_, bytes) => *bytes,
        }
    }

    /// Looks.
    fn found(self, side: Side<'_>) -> Vec<Theirs> {
        match self {
            Units::Decided(units) => units,
            Units::Of(changes, _) => units_of(&changes, side, false),
        }
    }

    /// Those that may have met something of ours; `is_beyond` tells whether anything of ours was not seen.
    pub(crate) fn in_question(self, side: Side<'_>, is_beyond: impl Fn(Seq) -> bool) -> Vec<Theirs> {
        match &self {
            Units::Of(changes, _) if !changes.iter().any(|change| is_beyond(change.seen)) => Vec::new(),
            _ => self.found(side),
        }
    }
}

/// What changes of the peer touch, each of its key; those of the whole space touch nothing. The keys share one buffer,
/// and keep nothing else alive.
pub(crate) fn units_of(changes: &[Change], side: Side<'_>, on_top: bool) -> Vec<Theirs> {
    let mut names = BytesMut::with_capacity(changes.iter().map(|change| change.key.name.len()).sum());
    changes.iter().for_each(|change| names.extend_from_slice(&change.key.name));
    let mut names = names.freeze();
    let mut units = Vec::with_capacity(changes.len());
    for (index, change) in changes.iter().enumerate() {
        let name = names.split_to(change.key.name.len());
        let Some((digest, touched)) = touched_of_key(change, side).filter(|_| !name.is_empty()) else {
            continue;
        };
        let key = Key { name, space: change.key.space.detached() };
        units.extend(touched.into_iter().map(|touch| Theirs {
            index,
            digest,
            key: key.clone(),
            touch,
            on_top,
        }));
    }
    units
}

/// A transaction that was sent.
#[derive(Debug)]
pub(crate) struct SentUnits {
    pub(crate) marker: Marker,
    /// Of the last change of it: later ones of the peer have seen our changes below.
    pub(crate) low: Seq,
    pub(crate) units: Units,
    /// It may pass, but is not sent again.
    pub(crate) is_given_up: bool,
}

/// Transactions whose marker capture has not passed yet, in the order in which they were sent.
#[derive(Debug, Default)]
pub(crate) struct OnTheWay {
    sent: VecDeque<SentUnits>,
    units: usize,
    /// Of the log, in bytes.
    held: usize,
    /// Changes that a store refused for the time being while later ones went in, by the keys' digests.
    overtaken: BTreeMap<u128, BTreeSet<Seq>>,
}

/// Of about 200 bytes each. What is older is read from the log again, where capture needs it.
const UNITS_MAX: usize = 1 << 15;
/// Bytes of the log. Of more than that only what they touch is kept.
const HELD_MAX: usize = 4 << 20;

impl OnTheWay {
    pub(crate) fn send(&mut self, mut sent: SentUnits, side: Side<'_>) {
        if self.held + sent.units.held() > HELD_MAX {
            sent.units = Units::Decided(sent.units.found(side));
        }
        self.held += sent.units.held();
        self.units += sent.units.len();
        self.sent.push_back(sent);
        while self.units > UNITS_MAX && self.sent.len() > 1 {
            self.take(0);
        }
    }

    fn take(&mut self, at: usize) -> Option<SentUnits> {
        let sent = self.sent.remove(at)?;
        self.units -= sent.units.len();
        self.held -= sent.units.held();
        Some(sent)
    }

    /// The transaction of `marker` did not take effect. Each of its changes has to go in with another one, or be
    /// [`is_done`](OnTheWay::is_done).
    pub(crate) fn fail(&mut self, marker: &Marker, side: Side<'_>) {
        if let Some(at) = self.sent.iter().rposition(|sent| sent.marker == *marker) {
            let failed = self.take(at);
            self.overtake(failed, side);
        }
    }

    fn overtake(&mut self, sent: Option<SentUnits>, side: Side<'_>) {
        for theirs in
            sent.filter(|sent| !sent.is_given_up).into_iter().flat_map(|sent| sent.units.found(side))
        {
            self.overtaken.entry(theirs.digest).or_default().insert(theirs.touch.seq);
        }
    }

    /// Takes the transaction of `marker`, which has passed. Older ones did not take effect, or not yet.
    pub(crate) fn pass(&mut self, marker: &Marker, side: Side<'_>) -> Option<SentUnits> {
        // Of two that are equal the first one did not take effect.
        let at = self.sent.iter().rposition(|sent| sent.marker == *marker)?;
        for _ in 0..at {
            let older = self.take(0);
            self.overtake(older, side);
        }
        let mut passed = self.take(0)?;
        if !self.overtaken.is_empty() {
            let units = passed.units.found(side);
            units.iter().for_each(|theirs| self.is_done(theirs.digest, theirs.touch.seq));
            passed.units = Units::Decided(units);
        }
        Some(passed)
    }

    /// A change went in, or never will.
    pub(crate) fn is_done(&mut self, digest: u128, seq: Seq) {
        if let Some(seqs) = self.overtaken.get_mut(&digest) {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.overtaken.remove(&digest);
            }
        }
    }

    /// Whoever applies begins anew: what was overtaken is asked for.
    pub(crate) fn give_up(&mut self) {
        self.overtaken.clear();
        self.sent.iter_mut().for_each(|sent| sent.is_given_up = true);
    }

    #[cfg(any(test, feature = "simulate"))]
    pub(crate) fn overtaken(&self) -> usize {
        self.overtaken.values().map(BTreeSet::len).sum()
    }

    /// How much of the peer's log a key has seen, and all keys, where everything below `low` was sent.
    pub(crate) fn seen(&self, key: &Key, low: Seq) -> (Seq, Seq) {
        if self.overtaken.is_empty() {
            return (low, low);
        }
        let first = |seqs: &BTreeSet<Seq>| seqs.first().map_or(low, |seq| low.min(*seq));
        let seen = self.overtaken.get(&key_digest(key)).map_or(low, first);
        (seen, self.overtaken.values().map(first).min().unwrap_or(low))
    }
}

/// A key to be evaluated again.
#[derive(Debug, Clone)]
pub(crate) struct Redo {
    pub(crate) key: Key,
    pub(crate) elements: BTreeSet<Element>,
    /// Older changes of the peer don't matter.
    pub(crate) theirs_from: Seq,
    /// Pairs of a change of the peer and one of ours that it met, for the conflict log.
    pub(crate) pairs: Vec<(Seq, Seq)>,
    /// From where the stream has to be read again to find out about it.
    pub(crate) place: Position,
    /// The transaction is on its way.
    pub(crate) is_sent: bool,
}

/// Pairs of one redo that the conflict log hears of.
const PAIRS_MAX: usize = 16;

/// Redos that are open, by their numbers. Numbers are never used twice, whatever crashes.
#[derive(Debug, Default)]
pub(crate) struct Redos {
    open: BTreeMap<u64, Redo>,
    of_key: HashMap<u128, BTreeSet<u64>>,
    next: u64,
}

impl Redos {
    /// From now on numbers are `first` and above.
    pub(crate) fn begin(&mut self, first: u64) {
        self.next = self.next.max(first);
    }

    pub(crate) fn is_open(&self, digest: u128) -> bool {
        self.of_key.contains_key(&digest)
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The places behind which the restart point has to stay.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Position> {
        self.open.values().map(|redo| &redo.place)
    }

    /// Opens one, or widens one of the key that is not on its way yet.
    pub(crate) fn open(&mut self, redo: Redo) {
        let digest = key_digest(&redo.key);
        let of_key = self.of_key.entry(digest).or_default();
        let waiting = of_key.iter().find(|id| self.open.get(id).is_some_and(|redo| !redo.is_sent)).copied();
        if let Some(waiting) = waiting.and_then(|id| self.open.get_mut(&id)) {
            waiting.elements.extend(redo.elements);
            waiting.theirs_from = waiting.theirs_from.min(redo.theirs_from);
            waiting.pairs.extend(redo.pairs);
            waiting.pairs.truncate(PAIRS_MAX);
            return;
        }
        self.next += 1;
        of_key.insert(self.next);
        self.open.insert(self.next, redo);
    }

    /// What is sent for it writes these, too: sent again, it has to, as the first one may have overwritten something.
    pub(crate) fn widen(&mut self, id: u64, elements: BTreeSet<Element>) {
        if let Some(redo) = self.open.get_mut(&id) {
            redo.elements.extend(elements);
        }
    }

    /// Of which key one is, if it is open.
    pub(crate) fn digest(&self, id: u64) -> Option<u128> {
        self.open.get(&id).map(|redo| key_digest(&redo.key))
    }

    /// Closes one, and gives it back.
    pub(crate) fn close(&mut self, id: u64) -> Option<Redo> {
        let redo = self.open.remove(&id)?;
        let digest = key_digest(&redo.key);
        if let Some(of_key) = self.of_key.get_mut(&digest) {
            of_key.remove(&id);
            if of_key.is_empty() {
                self.of_key.remove(&digest);
            }
        }
        Some(redo)
    }

    /// Forgets all, and says which keys they were of.
    pub(crate) fn clear(&mut self) -> Vec<u128> {
        self.open.clear();
        std::mem::take(&mut self.of_key).into_keys().collect()
    }

    /// Takes what waits, at most `max`, as being on its way.
    pub(crate) fn take(&mut self, max: usize) -> Vec<(u64, Redo)> {
        let waiting = self.open.iter_mut().filter(|(_, redo)| !redo.is_sent).take(max);
        waiting
            .map(|(id, redo)| {
                redo.is_sent = true;
                (*id, redo.clone())
            })
            .collect()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.open.values().any(|redo| !redo.is_sent)
    }

    /// Whatever was on its way may be lost, and is sent again with another number: where it was not lost, it may
    /// have met other writes than what is sent now.
    pub(crate) fn send_again(&mut self) {
        let sent: Vec<u64> = self.open.iter().filter(|(_, redo)| redo.is_sent).map(|(id, _)| *id).collect();
        for id in sent {
            if let Some(redo) = self.close(id) {
                self.open(Redo { is_sent: false, ..redo });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use causeway_core::{Op, Site, Space};
    use causeway_memory::Memory;

    use super::*;

    /// What is sent twice, as it is cut in two, or refused for good at last, holds nobody up.
    #[test]
    fn what_did_not_take_effect_is_unseen_until_it_goes_in_or_is_given_up() {
        let memory = Memory::new();
        let side = Side { connector: &memory, owners: None, site: Site::Second };
        let key = |n: u64| Key { space: Space::Whole, name: Bytes::from(n.to_string()) };
        let marker = |applied| Marker { applied: Seq(applied), ..Marker::default() };
        let sent = |seqs: std::ops::Range<u64>| {
            let delete = |seq| Change {
                seq: Seq(seq),
                ..Change::captured(Op::Delete, key(seq), None, Position::default(), 0)
            };
            let marker = marker(seqs.end);
            let changes = Arc::new(seqs.map(delete).collect());
            SentUnits { marker, low: Seq(0), units: Units::of(&changes), is_given_up: false }
        };
        let mut way = OnTheWay::default();
        way.send(sent(3..7), side);
        way.fail(&marker(7), side);
        assert_eq!(way.seen(&key(5), Seq(9)), (Seq(5), Seq(3)));
        way.send(sent(3..5), side);
        assert!(way.pass(&marker(5), side).is_some());
        assert_eq!(way.seen(&key(3), Seq(9)), (Seq(9), Seq(5)), "those of the first half went in");
        way.is_done(key_digest(&key(5)), Seq(5));
        assert_eq!(way.seen(&key(5), Seq(9)), (Seq(9), Seq(6)));
        way.send(sent(6..7), side);
        way.fail(&marker(7), side);
        way.is_done(key_digest(&key(6)), Seq(6));
        way.send(sent(7..8), side);
        assert!(way.pass(&marker(8), side).is_some());
        assert_eq!(way.overtaken(), 0, "refused, and given up");
    }

    #[test]
    fn what_may_be_lost_is_sent_again_with_all_that_it_wrote() {
        let mut redos = Redos::default();
        redos.open(Redo {
            key: Key { space: Space::Whole, name: Bytes::from_static(b"k") },
            elements: BTreeSet::from([Some(1)]),
            theirs_from: Seq(3),
            pairs: Vec::new(),
            place: Position::default(),
            is_sent: false,
        });
        let sent = redos.take(9);
        let [(first, _)] = sent[..] else { panic!("{sent:?}") };
        redos.widen(first, BTreeSet::from([Some(2), None]));
        assert!(!redos.has_waiting());
        redos.send_again();
        let sent = redos.take(9);
        let [(again, redo)] = &sent[..] else { panic!("{sent:?}") };
        assert!(*again > first, "a number is used once");
        assert_eq!(redo.elements, BTreeSet::from([None, Some(1), Some(2)]));
        assert!(redos.close(first).is_none(), "the first one is nobody's");
    }
}
