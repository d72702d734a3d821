//! The rule for concurrent writes, without a store, a log or a clock: what becomes of the peer's change, which
//! races a decision did not know of, and what a key holds by the records of both sites. `docs/CONVERGENCE.md`
//! tells the whole of it, and why it is right.

use std::borrow::Cow;
use std::collections::BTreeSet;

use causeway_core::{Change, Class, Op, Seq};

use super::order::{Side, Version};
use super::recent::{Touch, touched_of_key};
use super::switch::{Part, is_off};

/// A hash field, a member; `None`: the whole key.
pub(crate) type Element = Option<u64>;

fn overlap(a: Element, b: Element) -> bool {
    a.is_none() || b.is_none() || a == b
}

fn covers(a: Element, b: Element) -> bool {
    a.is_none() || a == b
}

fn narrower(a: Element, b: Element) -> Element {
    a.or(b)
}

fn is_absolute(touch: &Touch) -> bool {
    touch.class == Class::Absolute
}

/// Whether it is an absolute change of the whole key.
pub(crate) fn replaces(touch: &Touch) -> bool {
    is_absolute(touch) && touch.element.is_none()
}

fn is_delete(touch: &Touch) -> bool {
    touch.class == Class::Observed
}

/// The peer's site has the key no more: it says so as it deletes it, or when it is asked.
fn ends_the_key(touch: &Touch) -> bool {
    is_delete(touch) || (touch.reread && touch.is_absent)
}

/// Neither overwrites the other, and their order matters.
fn is_ordered_pair(a: &Touch, b: &Touch) -> bool {
    let neither = |class| a.class != class && b.class != class;
    neither(Class::Absolute)
        && neither(Class::Observed)
        && (a.class == Class::Other || b.class == Class::Other)
}

/// An operation on any element of the key and a write of one of them: done again for that element alone it
/// would reach others, so that the authority's order is taken for these, too.
fn is_mixed_pair(a: &Touch, b: &Touch) -> bool {
    let any = |touch: &Touch| touch.class == Class::Other && touch.element.is_none();
    let one = |touch: &Touch| is_absolute(touch) && touch.element.is_some();
    (any(a) && one(b)) || (one(a) && any(b))
}

/// Whether a write of ours that the peer's change meets, and that is not done again, is a conflict: it is
/// overwritten, or the order of two operations is decided.
pub(crate) fn is_conflict(theirs: &Touch, own: &Touch) -> bool {
    is_ordered_pair(theirs, own) && overlap(theirs.element, own.element) || is_overwritten(theirs, own)
}

/// Whether the peer's change takes away what ours did.
pub(crate) fn is_overwritten(theirs: &Touch, own: &Touch) -> bool {
    is_absolute(theirs) && covers(theirs.element, own.element) && !is_delete(own)
}

/// A state that does not say of each write whether it holds it by its version, but by its place.
fn is_by_place(touch: &Touch) -> bool {
    touch.reread || touch.is_guess
}

/// What was read again says all that an earlier reading said.
fn without_older_states(ours: &[Touch]) -> Cow<'_, [Touch]> {
    match ours.iter().rfind(|own| is_by_place(own)) {
        Some(last) if ours.iter().any(|own| is_by_place(own) && own.seq != last.seq) => {
            ours.iter().filter(|own| !is_by_place(own) || own.seq == last.seq).copied().collect()
        }
        _ => Cow::Borrowed(ours),
    }
}

/// What is left of `ours` after our last delete of the key, and the delete.
fn after_delete(ours: &[Touch]) -> (&[Touch], Option<&Touch>) {
    match ours.iter().rposition(is_delete) {
        Some(at) => (ours.get(at + 1..).unwrap_or_default(), ours.get(at)),
        None => (ours, None),
    }
}

/// Whether ours is newer. Of two states of one version that were read again the one is that knows the key: it was kept
/// alive where the other site let it expire. Of others, that of the authority; a row of a snapshot says less than any state.
///
/// What was written in a gap takes nothing away of what was done to the key meanwhile, but for a write of all of it.
fn stands(own: &Touch, change: &Touch, is_authority: bool) -> bool {
    if change.is_guess && !replaces(own) {
        return true;
    }
    if own.is_guess && !replaces(change) {
        return false;
    }
    let knows = own.reread && change.reread && own.is_absent != change.is_absent;
    let of_states = if knows { change.is_absent } else { is_authority };
    let wins_tie = own.is_state && (of_states || !change.is_state);
    own.version > change.version || (own.version == change.version && wins_tie)
}

/// What becomes of a change of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is applied.
    Apply,
    /// Ours with this seq stands.
    Drop(Seq),
    /// It is applied, and ours with these seqs are done again on top of it, in this order.
    Under(Vec<Seq>),
    /// It is applied as if ours from this seq on were not known: the race check finds out.
    Unknown(Seq),
}

/// Decides on a change of the peer that touches `theirs`, units of one key, with regard to `ours`: what it had
/// not seen of our changes to that key. `wins_ties`: our states stand against the peer's of the same version.
/// `keep_alive`: where we changed the expire-at, the key outlives a delete of the peer.
pub(crate) fn decide(theirs: &[Touch], ours: &[Touch], wins_ties: bool, keep_alive: bool) -> Verdict {
    let Some(change) = theirs.first() else { return Verdict::Apply };
    let ours = without_older_states(ours);
    let (ours, deleted) = after_delete(&ours);
    if let Some(delete) = deleted.filter(|_| change.reread && !ends_the_key(change)) {
        // What it holds and our delete had not seen comes as operations.
        return Verdict::Drop(delete.seq);
    }
    if let Some(alive) = ours.iter().rfind(|own| own.is_expire_at && keep_alive && ends_the_key(change)) {
        return Verdict::Drop(alive.seq);
    }
    if is_delete(change) {
        // Of what came before we told that the key was gone nothing is there that this could take away.
        let gone = ours.iter().rposition(ends_the_key).map_or(0, |at| at + 1);
        let again = seqs(ours.iter().skip(gone).filter(|own| !own.reread));
        return if again.is_empty() { Verdict::Apply } else { Verdict::Under(again) };
    }
    let newer = |own: &&Touch| stands(own, change, wins_ties);
    let standing = |touch: &Touch| {
        ours.iter().filter(newer).rfind(|own| is_absolute(own) && covers(own.element, touch.element))
    };
    let stand: Option<Vec<&Touch>> = theirs.iter().map(standing).collect();
    if let Some(last) = stand.and_then(|all| all.iter().map(|own| own.seq).max()) {
        return Verdict::Drop(last);
    }
    if !is_absolute(change) || is_off(Part::Reapply) {
        return Verdict::Apply;
    }
    let touched = |own: &&Touch| {
        theirs.iter().any(|touch| overlap(touch.element, own.element) && !is_mixed_pair(touch, own))
    };
    let again = seqs(ours.iter().filter(newer).filter(touched));
    // What is done again elsewhere in the key, too, could overwrite what the peer did there since.
    let reaches = |own: &&Touch| again.contains(&own.seq) && !touched(own);
    match ours.iter().find(reaches) {
        Some(_) => Verdict::Unknown(again.first().copied().unwrap_or_default()),
        None if again.is_empty() => Verdict::Apply,
        None => Verdict::Under(again),
    }
}

fn seqs<'a>(touches: impl Iterator<Item = &'a Touch>) -> Vec<Seq> {
    let mut seqs: Vec<Seq> = touches.map(|touch| touch.seq).collect();
    seqs.dedup();
    seqs
}

/// What has to be done about a key after the peer's change went in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Race {
    /// It may hold what it should not.
    Redo {
        element: Element,
        /// The change of ours that the decision did not know.
        ours: Touch,
    },
    /// The order of two operations is this site's: the authority's state is to be shipped.
    Ship,
}

/// How a change of the peer went in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    /// One unit of it.
    pub(crate) touch: Touch,
    pub(crate) dropped: bool,
    /// Something of ours was done again on top of it.
    pub(crate) on_top: bool,
    /// Our changes below were known to the decision.
    pub(crate) basis: Seq,
    /// Its place in our stream.
    pub(crate) at: u64,
    /// As in [`decide`].
    pub(crate) keep_alive: bool,
}

/// The races of `theirs` with `ours`, all that is remembered of the key.
pub(crate) fn races(theirs: &Applied, ours: &[Touch], is_authority: bool) -> Vec<Race> {
    let Applied { touch: change, dropped, on_top, basis, at, keep_alive } = theirs;
    let unseen: Vec<Touch> =
        ours.iter().filter(|own| own.seq >= change.seen && own.at < *at).copied().collect();
    let (left, _) = after_delete(&unseen);
    let mut races = Vec::new();
    for own in unseen.iter().filter(|own| own.seq >= *basis) {
        let of_delete = is_delete(own) || is_delete(change);
        let is_wrong = if of_delete {
            let is_wrong = if is_delete(own) { !is_delete(change) || *on_top } else { !dropped };
            is_wrong && !is_off(Part::DeleteRace)
        } else {
            !dropped
                && overlap(own.element, change.element)
                && (is_absolute(own) || is_absolute(change))
                && !is_mixed_pair(own, change)
                && stands(own, change, is_authority)
        };
        if is_wrong {
            let element = if of_delete { None } else { narrower(own.element, change.element) };
            races.push(Race::Redo { element, ours: *own });
        }
    }
    // An expire-at is set only where there is a key: that depends on a delete by either site, and on what came after it.
    let may_depend = |own: &&Touch| match change.is_expire_at {
        true => is_delete(own),
        false => own.is_expire_at && !is_delete(change) && !replaces(change),
    };
    if let Some(own) = unseen.iter().find(may_depend).filter(|_| !keep_alive && !dropped) {
        races.push(Race::Redo { element: None, ours: *own });
    }
    if *dropped && ends_the_key(change) && left.iter().any(|own| own.is_expire_at) {
        races.push(Race::Ship);
    }
    let ordered = |own: &&Touch| {
        overlap(own.element, change.element) && (is_ordered_pair(own, change) || is_mixed_pair(own, change))
    };
    if is_authority && !dropped && left.iter().any(|own| ordered(&own)) {
        races.push(Race::Ship);
    }
    races
}

/// The version of what a key holds that we wrote `ours` to: of the newest write of the whole key that no delete
/// of ours came after; 0 if there is none.
pub(crate) fn whole_version(ours: &[Touch]) -> Version {
    let (left, _) = after_delete(ours);
    let whole = left.iter().filter(|own| replaces(own) && !own.reread);
    whole.map(|own| own.version).max().unwrap_or_default()
}

/// One change of either site to a key, with what it touches there.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) own: bool,
    pub(crate) touched: Vec<Touch>,
    /// One, or the pieces of a value.
    pub(crate) changes: Vec<Change>,
}

impl Record {
    /// A change of the peer, and the digest of its key.
    pub(crate) fn of_theirs(change: Change, side: Side<'_>) -> Option<(u128, Record)> {
        let (digest, touched) = touched_of_key(&change, side)?;
        Some((digest, Record { own: false, touched, changes: vec![change] }))
    }

    pub(crate) fn seq(&self) -> Seq {
        self.first().map_or(Seq(0), |touch| touch.seq)
    }

    fn first(&self) -> Option<&Touch> {
        self.touched.first()
    }

    fn is(&self, class: Class) -> bool {
        self.first().is_some_and(|touch| touch.class == class)
    }

    fn is_read(&self) -> bool {
        self.changes.iter().any(|change| change.op == Op::Read)
    }

    fn is_reread(&self) -> bool {
        self.first().is_some_and(|touch| touch.reread)
    }

    fn ends_the_key(&self) -> bool {
        self.first().is_some_and(ends_the_key)
    }

    fn is_by_place(&self) -> bool {
        self.first().is_some_and(is_by_place)
    }

    fn is_whole(&self) -> bool {
        self.touched.iter().any(|touch| touch.element.is_none())
    }

    /// An operation on any element.
    fn is_of_any(&self) -> bool {
        self.is(Class::Other) && self.is_whole()
    }

    fn touches(&self, element: Element) -> bool {
        self.touched.iter().any(|touch| overlap(touch.element, element))
    }

    fn covers(&self, element: Element) -> bool {
        self.touched.iter().any(|touch| is_absolute(touch) && covers(touch.element, element))
    }

    /// Whether `self`, a delete or a state, was made with `other` seen.
    fn has_seen(&self, other: &Record) -> bool {
        let (Some(mine), Some(its)) = (self.first(), other.first()) else { return false };
        if self.own == other.own { its.seq < mine.seq } else { its.seq < mine.seen }
    }

    /// In the order in which both sites take effect; a state before what has the same version.
    fn version(&self) -> (Version, bool) {
        let version = self.first().map_or(Version::default(), |touch| touch.version);
        (version, !self.first().is_some_and(|touch| touch.is_state))
    }
}

/// What brings a key to what its records say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// It begins with the key being gone.
    pub(crate) from_absent: bool,
    /// Then these records, by their place in what was given, in this order.
    pub(crate) then: Vec<usize>,
}

/// Evaluates `elements` of a key from `records`, at least all that are newer than the newest absolute one of
/// each element. `None`: nothing that was read says what it holds.
pub(crate) fn evaluate(
    records: &[Record],
    elements: &BTreeSet<Element>,
    own_wins_ties: bool,
) -> Option<Content> {
    let deletes: Vec<&Record> = records.iter().filter(|record| record.is(Class::Observed)).collect();
    let is_read_since = |record: &Record| {
        let later = |other: &Record| other.own == record.own && other.seq() > record.seq();
        record.is_by_place()
            && records.iter().any(|other| other.is_by_place() && !other.is_read() && later(other))
    };
    let stays = |record: &&Record| {
        let deleted = deletes.iter().any(|delete| {
            delete.has_seen(record)
                || (record.is_reread() && !record.ends_the_key() && !record.has_seen(delete))
        });
        !record.is(Class::Observed) && !record.is_read() && !deleted && !is_read_since(record)
    };
    let left: Vec<(usize, &Record)> =
        records.iter().enumerate().filter(|(_, record)| stays(record)).collect();
    let states: Vec<&Record> =
        left.iter().map(|(_, record)| *record).filter(|record| record.is_reread()).collect();
    let is_held = |record: &Record| states.iter().any(|state| state.has_seen(record));
    let newest = |element: Element| {
        let covering = left.iter().filter(|(_, record)| record.covers(element) && !is_held(record));
        covering.max_by_key(|(_, record)| {
            let (version, _) = record.version();
            (version, record.is_reread(), !record.ends_the_key(), record.own == own_wins_ties)
        })
    };
    let mut wanted = elements.clone();
    let (from, base) = loop {
        if wanted.contains(&None) {
            match newest(None) {
                Some((index, record)) => break (record.version(), Some(*index)),
                None if deletes.is_empty() => return None,
                None => break ((Version::default(), false), None),
            }
        }
        let mut from: Option<(Version, bool)> = None;
        let mut whole = false;
        // Of an element that no absolute write is known of nothing was overwritten.
        wanted.retain(|element| !deletes.is_empty() || newest(*element).is_some());
        for element in &wanted {
            match newest(*element) {
                Some((_, record)) => {
                    whole |= record.is_whole();
                    from = Some(from.map_or(record.version(), |from| from.min(record.version())));
                }
                None => whole = true,
            }
        }
        let Some(from) = from.filter(|_| !whole) else {
            if !whole {
                return None;
            }
            wanted.insert(None);
            continue;
        };
        let reached = left.iter().filter(|(_, record)| record.version() >= from && !record.is_of_any());
        let reached = reached.filter(|(_, record)| wanted.iter().any(|element| record.touches(*element)));
        let more = reached.flat_map(|(_, record)| &record.touched).map(|touch| touch.element);
        let more: BTreeSet<Element> = more.filter(|element| newest(*element).is_some()).collect();
        if more.is_subset(&wanted) {
            break (from, None);
        }
        wanted.extend(more);
    };
    let is_wanted = |record: &Record| match wanted.contains(&None) {
        true => true,
        false => !record.is_of_any() && wanted.iter().any(|element| record.touches(*element)),
    };
    let newer = |record: &Record| record.version() >= from && !record.is_reread();
    let base_state = base.and_then(|base| records.get(base)).filter(|base| base.is_by_place());
    let replayed = base_state.map_or_else(BTreeSet::new, |state| replayed(state, &left));
    let mut then: Vec<(usize, &Record)> = left
        .iter()
        .copied()
        .filter(|(index, record)| {
            let chosen = newer(record) && is_wanted(record);
            base == Some(*index) || replayed.contains(index) || (base_state.is_none() && chosen)
        })
        .collect();
    then.sort_by_key(|(index, record)| (base != Some(*index), record.version()));
    Some(Content {
        from_absent: wanted.contains(&None) && base.is_none(),
        then: then.into_iter().map(|(index, _)| index).collect(),
    })
}

/// From where on the peer's changes have to be among `records` for `content` to be right: older ones had been seen by
/// the delete or the writes of ours that it begins with. `None`: it begins with nothing of ours.
pub(crate) fn reaches(records: &[Record], content: &Content) -> Option<Seq> {
    let seen = |record: &Record| record.first().filter(|_| record.own).map(|touch| touch.seen);
    let deletes = records.iter().filter(|record| content.from_absent && record.is(Class::Observed));
    let then = || content.then.iter().filter_map(|index| records.get(*index));
    // Whether an operation is to be done on top of a state is told by the writes that the state holds, too.
    let over_state = then().next().is_some_and(Record::is_by_place);
    let written = then().filter(|record| over_state || record.touched.iter().any(is_absolute));
    deletes.filter_map(seen).max().into_iter().chain(written.filter_map(seen)).min()
}

/// What is written to bring a key to `content`; it may be more than was asked for.
pub(crate) fn extent(records: &[Record], content: &Content) -> BTreeSet<Element> {
    let then = content.then.iter().filter_map(|index| records.get(*index));
    let touched = then.flat_map(|record| &record.touched).map(|touch| touch.element);
    touched.chain(content.from_absent.then_some(None)).collect()
}

/// Of a key that holds `state`, the records to be done again on top: those newer than it that it does not hold, but
/// for what newer writes that it does hold have superseded; and of elements that are touched by that, all from the
/// newest write on.
fn replayed(state: &Record, left: &[(usize, &Record)]) -> BTreeSet<usize> {
    let supersedes = |record: &Record, touch: &Touch| {
        let is_write = !record.is_reread() && (!record.is_by_place() || replaces(touch));
        is_write && record.version() > (touch.version, true) && record.covers(touch.element)
    };
    let is_held = |record: &Record| state.has_seen(record);
    let held: Vec<&(usize, &Record)> = left.iter().filter(|(_, record)| is_held(record)).collect();
    let is_superseded = |record: &Record| {
        record.touched.iter().all(|touch| held.iter().any(|(_, held)| supersedes(held, touch)))
    };
    let mut chosen: BTreeSet<usize> = left
        .iter()
        .filter(|(_, record)| {
            let is_newer = match (state.first(), record.first()) {
                (Some(state), Some(touch)) => stands(touch, state, false),
                _ => false,
            };
            !record.is_reread() && !is_held(record) && is_newer && !is_superseded(record)
        })
        .map(|(index, _)| *index)
        .collect();
    loop {
        // An element whose content in the state does not count any more is done again from its newest write on.
        let from = |touch: &Touch| {
            let covering = held.iter().filter(|(_, held)| supersedes(held, touch));
            let superseding = covering.map(|(_, held)| held.version()).max();
            superseding.or(is_absolute(touch).then_some((touch.version, true)))
        };
        let chosen_touches =
            left.iter().filter(|(index, _)| chosen.contains(index)).flat_map(|(_, r)| &r.touched);
        let again: Vec<(Element, (Version, bool))> =
            chosen_touches.filter_map(|touch| Some((touch.element, from(touch)?))).collect();
        let is_again = |held: &Record| {
            again.iter().any(|(element, from)| held.touches(*element) && held.version() >= *from)
        };
        let more: BTreeSet<usize> = held
            .iter()
            .filter(|(_, held)| !held.is_by_place() && !held.is_of_any() && is_again(held))
            .map(|(index, _)| *index)
            .collect();
        if more.is_subset(&chosen) {
            return chosen;
        }
        chosen.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use causeway_core::Hlc;

    use super::*;

    const F: Element = Some(1);
    const G: Element = Some(2);

    fn touch(seq: u64, hlc: u64, class: Class, element: Element) -> Touch {
        Touch {
            seq: Seq(seq),
            seen: Seq(0),
            at: seq,
            version: Version::at(Hlc(hlc)),
            class,
            element,
            is_expire_at: false,
            is_state: false,
            is_absent: false,
            is_guess: false,
            reread: false,
        }
    }

    fn reread(seq: u64, hlc: u64, seen: u64) -> Touch {
        let touch = touch(seq, hlc, Class::Absolute, None);
        Touch { is_state: true, reread: true, seen: Seq(seen), ..touch }
    }

    fn one(own: bool, touch: Touch) -> Record {
        Record { own, touched: vec![touch], changes: Vec::new() }
    }

    fn applied(touch: Touch, basis: u64) -> Applied {
        Applied { touch, dropped: false, on_top: false, basis: Seq(basis), at: u64::MAX, keep_alive: true }
    }

    #[test]
    fn what_is_older_than_a_write_of_ours_is_dropped_and_goes_below_narrower_ones() {
        let set = touch(5, 50, Class::Absolute, None);
        let newer_set = touch(9, 60, Class::Absolute, None);
        assert_eq!(decide(&[set], &[newer_set], false, true), Verdict::Drop(Seq(9)));
        let newer_field = touch(9, 60, Class::Absolute, F);
        assert_eq!(decide(&[set], &[newer_field], false, true), Verdict::Under(vec![Seq(9)]));
        let older_field = touch(9, 40, Class::Absolute, F);
        assert_eq!(decide(&[set], &[older_field], false, true), Verdict::Apply);
        let counted = touch(5, 50, Class::Commuting, F);
        assert_eq!(decide(&[counted], &[touch(9, 60, Class::Commuting, F)], false, true), Verdict::Apply);
        assert_eq!(decide(&[counted], &[newer_field], false, true), Verdict::Drop(Seq(9)));
        let elsewhere = touch(9, 60, Class::Absolute, G);
        assert_eq!(decide(&[touch(5, 50, Class::Absolute, F)], &[elsewhere], false, true), Verdict::Apply);
    }

    #[test]
    fn what_would_be_done_again_elsewhere_too_is_left_to_the_race_check() {
        let theirs = [touch(5, 50, Class::Absolute, F), touch(5, 50, Class::Absolute, Some(3))];
        let ours = [touch(9, 60, Class::Absolute, F), touch(9, 60, Class::Absolute, G)];
        assert_eq!(decide(&theirs, &ours, false, true), Verdict::Unknown(Seq(9)));
    }

    #[test]
    fn a_delete_takes_what_its_site_had_seen_whatever_the_clocks_say() {
        let delete = touch(5, 99, Class::Observed, None);
        let ours = [touch(8, 10, Class::Commuting, F), touch(9, 11, Class::Absolute, G)];
        assert_eq!(decide(&[delete], &ours, false, true), Verdict::Under(vec![Seq(8), Seq(9)]));
        // What our own delete had seen is gone already, and our delete blocks nothing.
        let deleted = [ours[0], touch(9, 11, Class::Observed, None)];
        assert_eq!(decide(&[delete], &deleted, false, true), Verdict::Apply);
        assert_eq!(decide(&[touch(5, 1, Class::Absolute, None)], &deleted, false, true), Verdict::Apply);
        assert_eq!(decide(&[reread(5, 1, 0)], &deleted, false, true), Verdict::Drop(Seq(9)));
        let kept_alive = [Touch { is_expire_at: true, ..touch(8, 10, Class::Absolute, G) }];
        assert_eq!(decide(&[delete], &kept_alive, false, true), Verdict::Drop(Seq(8)));
        assert_eq!(decide(&[delete], &kept_alive, false, false), Verdict::Under(vec![Seq(8)]));
        // Whoever is asked for the key after it ended there says no more than that.
        let ended = Touch { is_absent: true, ..reread(6, 0, 5) };
        assert_eq!(decide(&[ended], &kept_alive, false, true), Verdict::Drop(Seq(8)));
        let dropped = Applied { dropped: true, ..applied(ended, 9) };
        assert_eq!(races(&dropped, &kept_alive, false), [Race::Ship]);
    }

    #[test]
    fn only_what_the_decision_did_not_know_is_a_race() {
        let set = touch(5, 50, Class::Absolute, None);
        let newer = touch(9, 60, Class::Absolute, F);
        let redo = [Race::Redo { element: F, ours: newer }];
        assert_eq!(races(&applied(set, 9), &[newer], false), redo);
        assert_eq!(races(&applied(set, 10), &[newer], false), []);
        assert_eq!(races(&Applied { at: 9, ..applied(set, 9) }, &[newer], false), [], "it stands behind");
        assert_eq!(races(&applied(set, 9), &[touch(9, 40, Class::Absolute, F)], false), [], "it is older");
    }

    #[test]
    fn the_authority_ships_where_the_order_of_operations_matters() {
        let pushed = touch(5, 50, Class::Other, F);
        let ours = [touch(9, 60, Class::Other, F)];
        assert_eq!(races(&applied(pushed, 10), &ours, true), [Race::Ship]);
        assert_eq!(races(&applied(pushed, 10), &ours, false), []);
        let counted = touch(5, 50, Class::Commuting, F);
        assert_eq!(races(&applied(counted, 9), &[touch(9, 60, Class::Commuting, F)], true), []);
    }

    #[test]
    fn whether_a_key_has_an_expire_at_depends_on_the_deletes_of_both_sites() {
        let expire_at = |seq| Touch { is_expire_at: true, ..touch(seq, 50, Class::Absolute, G) };
        let ends = |change| Applied { keep_alive: false, ..applied(change, 99) };
        let delete = touch(8, 40, Class::Observed, None);
        let redo = |ours| [Race::Redo { element: None, ours }];
        assert_eq!(races(&ends(expire_at(5)), &[delete], true), redo(delete), "ours had not seen it");
        let counted = touch(5, 60, Class::Commuting, F);
        assert_eq!(
            races(&ends(counted), &[expire_at(9)], true),
            redo(expire_at(9)),
            "a delete may stand between"
        );
        assert_eq!(races(&applied(counted, 99), &[expire_at(9)], true), [], "then the delete was dropped");
    }

    #[test]
    fn of_two_states_that_cross_the_one_stands_that_knows_the_key() {
        let there = reread(5, 7, 0);
        let absent = Touch { is_absent: true, ..there };
        for is_authority in [true, false] {
            assert_eq!(decide(&[absent], &[there], is_authority, true), Verdict::Drop(Seq(5)));
            assert_eq!(decide(&[there], &[absent], is_authority, true), Verdict::Apply);
            let records = [one(true, absent), one(false, there)];
            let content = evaluate(&records, &BTreeSet::from([None]), is_authority);
            assert_eq!(content.map(|content| content.then), Some(vec![1]));
        }
        let absent_since = Touch { is_absent: true, ..reread(6, 7, 0) };
        let records = [one(true, there), one(true, absent_since)];
        let content = evaluate(&records, &BTreeSet::from([None]), true);
        assert_eq!(content.map(|content| content.then), Some(vec![1]), "a later reading says more");
        assert_eq!(decide(&[there], &[there, absent_since], true, true), Verdict::Apply);
        assert_eq!(decide(&[there], &[there], true, true), Verdict::Drop(Seq(5)));
        assert_eq!(decide(&[there], &[there], false, true), Verdict::Apply);
    }

    #[test]
    fn one_element_of_a_state_is_told_by_all_of_it() {
        let records = [one(true, touch(5, 7, Class::Absolute, F)), one(false, reread(9, 8, 1))];
        let content = evaluate(&records, &BTreeSet::from([F]), true).unwrap();
        assert_eq!(extent(&records, &content), BTreeSet::from([None]));
        let content = evaluate(&records[..1], &BTreeSet::from([F]), true).unwrap();
        assert_eq!(extent(&records, &content), BTreeSet::from([F]));
        let absent = Content { from_absent: true, then: vec![0] };
        assert_eq!(extent(&records, &absent), BTreeSet::from([None, F]));
    }

    fn evaluated(records: &[Record], element: Element) -> Option<(bool, Vec<usize>)> {
        let content = evaluate(records, &BTreeSet::from([element]), false)?;
        Some((content.from_absent, content.then))
    }

    #[test]
    fn a_key_is_its_newest_write_and_what_is_newer() {
        let records = [
            one(true, touch(1, 10, Class::Commuting, F)),
            one(false, touch(1, 30, Class::Commuting, F)),
            one(true, touch(2, 20, Class::Absolute, None)),
            one(false, touch(2, 15, Class::Absolute, F)),
        ];
        assert_eq!(evaluated(&records, None), Some((false, vec![2, 1])));
        assert_eq!(
            evaluated(&records, F),
            Some((false, vec![2, 1])),
            "a write of the whole key counts for all"
        );
        assert_eq!(evaluated(&records[..2], F), None, "nothing says from what to count");
    }

    #[test]
    fn what_a_key_begins_with_had_not_seen_all_that_counts() {
        let reach = |records: &[Record], element| {
            let content = evaluate(records, &BTreeSet::from([element]), false).unwrap();
            reaches(records, &content).map(|seq| seq.0)
        };
        let seen = |seen, touch| Touch { seen: Seq(seen), ..touch };
        let theirs = one(false, touch(20, 50, Class::Commuting, F));
        let written = one(true, seen(7, touch(5, 40, Class::Absolute, F)));
        assert_eq!(reach(&[written, theirs.clone()], F), Some(7));
        let deletes = [4, 9].map(|at| one(true, seen(at, touch(at, 1, Class::Observed, None))));
        let [older, newer] = deletes;
        assert_eq!(reach(&[older, newer, theirs], F), Some(9), "the newest delete had seen the most");
        assert_eq!(reach(&[one(false, touch(20, 50, Class::Absolute, F))], F), None);
        // Of what a state holds the newest write tells whether a count of ours still counts.
        let counted = one(true, seen(7, touch(5, 40, Class::Commuting, F)));
        assert_eq!(reach(&[one(false, reread(20, 0, 1)), counted], None), Some(7));
    }

    #[test]
    fn what_a_delete_had_seen_is_left_out() {
        let delete = Touch { seen: Seq(2), ..touch(3, 1, Class::Observed, None) };
        let records = [
            one(true, touch(1, 10, Class::Absolute, F)),
            one(true, touch(2, 20, Class::Absolute, G)),
            one(false, touch(2, 30, Class::Absolute, F)),
            one(false, delete),
            one(false, touch(4, 40, Class::Commuting, F)),
        ];
        assert_eq!(evaluated(&records, None), Some((true, vec![1, 4])));
    }

    #[test]
    fn over_a_state_goes_what_it_does_not_hold_unless_it_holds_something_newer() {
        let state = one(false, reread(9, 0, 1));
        let records = [
            state,
            one(true, touch(0, 10, Class::Absolute, F)),
            one(true, touch(1, 20, Class::Absolute, F)),
            one(true, touch(2, 25, Class::Commuting, G)),
            one(false, touch(3, 30, Class::Absolute, F)),
        ];
        assert_eq!(evaluated(&records, None), Some((false, vec![0, 3])), "the state's own F is newer");
        // Ours is newer than what the state holds of F, but for an operation on it, which is done again.
        let records = [
            one(false, reread(9, 0, 1)),
            one(true, touch(2, 25, Class::Absolute, F)),
            one(false, touch(3, 30, Class::Commuting, F)),
        ];
        assert_eq!(evaluated(&records, None), Some((false, vec![0, 1, 2])));
    }
}
