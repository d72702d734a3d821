//! What both logs say that keys held last: it tells which keys were written or deleted in a gap from those
//! that only hold what one of the sites had before.

use std::collections::{BTreeMap, HashMap};

use causeway_core::{Change, Connector, Key, Marker, Op, Seq};
use tracing::warn;

use super::EngineError;
use super::capture::CaptureTask;
use super::recent::{is_reread, key_digest};
use super::restart::{is_damaged, recover, touched_keys, walk_kept};
use crate::log::{Offset, PartitionId};

/// Keys of which this is known; about 120 bytes each.
const KEYS_MAX: usize = 1 << 20;

/// What the last record of a log says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// It holds this, by half of its digest; until when, if it expires.
    Content(u64, Option<u64>),
    /// It is gone.
    Absent,
    /// Something happened to it that doesn't say what it holds.
    Changed,
}

/// Whether what a key was found to hold after a gap is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// A log knows of it.
    Known,
    /// It cannot be told.
    Unsure,
    /// No log knows of it: it was done in the gap.
    New,
}

#[derive(Debug, Default)]
struct Words {
    /// Of our own log, and how much of the peer's had been applied before.
    own: Option<(Last, Seq)>,
    /// One above our last change to it; a row of a snapshot is none.
    changed_below: Seq,
    /// That is a delete.
    is_deleted: bool,
    /// Of the peer's log, and its place there.
    peer: Option<(Last, Seq)>,
    /// The peer had not seen our last change then: which of the two stands, the rule decided.
    crossed: bool,
    /// Of what the peer said since, and that may not have come into our store: a `state`.
    open: Option<Last>,
    /// The snapshot that closes the gap has named it.
    named: bool,
}

impl Words {
    fn note_own(&mut self, last: Last, change: &Change) {
        self.own = Some((last, change.seen));
        if change.op != Op::Read {
            self.changed_below = change.seq.next();
        }
        self.is_deleted = change.op == Op::Delete;
    }

    fn note_peer(&mut self, last: Last, change: &Change, is_settled: bool) {
        let crossed = self.changed_below > change.seen;
        // What says no more than what there was before never stands against our delete; a write always does.
        if crossed && self.is_deleted && is_reread(change) {
            return;
        }
        if is_settled {
            (self.peer, self.crossed) = (Some((last, change.seq)), crossed && !self.is_deleted);
        } else {
            let same = self.open.is_none_or(|open| open == last);
            self.open = Some(if same { last } else { Last::Changed });
        }
    }

    /// What the store may have held last, as far as the logs say: one of these.
    fn may_be(&self) -> impl Iterator<Item = Last> + use<> {
        let words = match (self.own, self.peer) {
            (Some((own, seen)), Some((_, seq))) if seq < seen => [Some(own), None],
            (Some((own, _)), Some((peer, _))) if self.crossed => [Some(own), Some(peer)],
            (_, Some((peer, _))) => [None, Some(peer)],
            (Some((own, _)), None) => [Some(own), None],
            (None, None) => [None, None],
        };
        words.into_iter().flatten().chain(self.open)
    }

    /// Whether what was trimmed of one log, the peer's below `peer_from`, ours with the peer's below `own_seen` seen,
    /// came before the last word of the other.
    fn is_last(&self, peer_from: Seq, own_seen: Seq) -> bool {
        match (self.own, self.peer) {
            (Some((_, seen)), Some((_, seq))) if seq >= seen => seq >= own_seen,
            (Some((_, seen)), _) => seen >= peer_from,
            (None, Some((_, seq))) => seq >= own_seen,
            (None, None) => false,
        }
    }
}

/// For each key that the logs name: our own log's word, and the peer's as far as it was applied here.
#[derive(Debug, Default)]
pub(crate) struct Known {
    keys: HashMap<u128, Words>,
    /// Nothing was trimmed, and there were not more keys than fit: a key that is not here was never named.
    complete: bool,
    /// What was trimmed of the peer's log lies below this place of it.
    peer_from: Seq,
    /// And what was trimmed of our own had seen the peer's up to here at the most.
    own_seen: Seq,
    /// Keys that our log asked the peer for before the snapshot, by their digests, and whose answer may not have
    /// come here.
    pub(crate) awaited: BTreeMap<u128, Key>,
    /// The ends of what was read of the two logs; none: there was no gap.
    read: Option<[Offset; 2]>,
}

impl Known {
    /// Reads both logs: the site's own whole, the `peer`'s as far as `marker`, found in the store, says that
    /// it was applied. `first`: where the snapshot that closes the gap begins in our log.
    pub(crate) async fn read(
        task: &CaptureTask,
        peer: &PartitionId,
        marker: &Marker,
        first: Seq,
    ) -> Result<Known, EngineError> {
        let ends = [task.log.bounds(&task.partition).end, task.log.locate(peer, marker.applied).await?];
        let mut known = Known { complete: true, read: Some(ends), ..Known::default() };
        let connector = task.connector.as_ref();
        let settled = task.log.locate(peer, marker.settled).await?;
        let answered = Seq(recover(task.log.as_ref(), peer, settled).await?.point.settled);
        for (log, partition) in [&task.partition, peer].into_iter().enumerate() {
            let start = task.log.bounds(partition).start;
            let whole = start == Offset(0);
            known.complete &= whole;
            let mut is_oldest = !whole;
            walk_kept(task.log.as_ref(), partition, Offset(0), ends[log], |_, change| {
                if change.op != Op::Fence && std::mem::take(&mut is_oldest) {
                    match log {
                        0 => known.own_seen = change.seen,
                        _ => known.peer_from = change.seq,
                    }
                }
                if log == 0 && change.op == Op::Refresh && !change.uncertain && change.seq >= answered {
                    let digest = key_digest(&change.key);
                    if change.seq < first {
                        known.awaited.insert(digest, change.key);
                    } else {
                        known.awaited.remove(&digest);
                    }
                    return;
                }
                // Of what is not settled some may have been refused.
                let applied = log == 0 || change.seq < marker.settled;
                known.note(log == 0, &change, applied, connector);
            })
            .await?;
            let trimmed_meanwhile = task.log.bounds(partition).start != start;
            if trimmed_meanwhile || is_damaged(task.log.as_ref(), partition, Offset(0), ends[log]) {
                // Anything may have come after any word.
                (known.complete, known.own_seen, known.peer_from) = (false, Seq(u64::MAX), Seq(u64::MAX));
            }
        }
        if known.keys.len() >= KEYS_MAX {
            warn!(partition = %task.partition, keys = KEYS_MAX, "the logs name more keys than fit: what was \
                deleted of the others in the gap is found by the sweep only");
        }
        Ok(known)
    }

    fn note(&mut self, own: bool, change: &Change, applied: bool, connector: &dyn Connector) {
        // Pieces of a value say nothing before the last one is there: the key may not be.
        let unfinished = change.part.is_some_and(|part| !part.last);
        if !change.op.is_data() || change.key.name.is_empty() || unfinished {
            return;
        }
        let last = match (change.op, &change.value) {
            // Of what is not settled some may have been refused: it is asked for again, and has no row.
            (op, _) if op != Op::State && !applied => Last::Changed,
            (Op::Delete, _) | (Op::State, None) => Last::Absent,
            (Op::Read | Op::State | Op::Put, _) => connector
                .content(change)
                .map_or(Last::Changed, |content| Last::Content(content as u64, change.expire_at)),
            _ => Last::Changed,
        };
        for (unit, _) in connector.units(change) {
            let digest = key_digest(&unit.key);
            if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&digest) {
                self.complete = false;
                continue;
            }
            let words = self.keys.entry(digest).or_default();
            match own {
                true => words.note_own(last, change),
                false => words.note_peer(last, change, applied),
            }
        }
    }

    /// Takes note that the snapshot that closes the gap has a row of `key`, and says whether a log names it, too:
    /// then it is more than what one site had before.
    pub(crate) fn note_row(&mut self, key: &Key) -> bool {
        let words = self.keys.get_mut(&key_digest(key));
        words.map(|words| words.named = true).is_some()
    }

    /// Says whether a row of the snapshot that closes the gap, or the absence of a key that it did not name, is
    /// news.
    pub(crate) fn judge(&self, row: &Change, connector: &dyn Connector) -> News {
        if self.read.is_none() {
            return News::Known;
        }
        let Some(words) = self.keys.get(&key_digest(&row.key)) else {
            return if self.complete { News::New } else { News::Unsure };
        };
        let content = row.value.as_ref().map(|_| connector.content(row));
        // Until when it is there is a part of what it holds: a session is written anew with what it held before.
        let is_it = |last: Last| match (last, content) {
            // Nobody did anything: it expired, by the store's own clock.
            (Last::Absent | Last::Content(_, Some(_)), None) => true,
            (Last::Content(said, until), Some(Some(now))) => (said, until) == (now as u64, row.expire_at),
            _ => false,
        };
        let all = [words.own, words.peer].into_iter().flatten().map(|(last, _)| last).chain(words.open);
        let is_told = match content {
            Some(_) => all.into_iter().any(is_it),
            None => words.may_be().any(is_it),
        };
        let is_sure = words.is_last(self.peer_from, self.own_seen)
            && content != Some(None)
            && words.may_be().all(|last| last != Last::Changed);
        match (is_told, is_sure) {
            (true, _) => News::Known,
            (false, true) => News::New,
            (false, false) => News::Unsure,
        }
    }

    /// Keys that were there by the logs and that the snapshot, which has ended, did not name, by their digests.
    pub(crate) async fn missing(
        &self,
        task: &CaptureTask,
        peer: &PartitionId,
    ) -> Result<BTreeMap<u128, Key>, EngineError> {
        let mut missing = BTreeMap::new();
        let Some(ends) = self.read else { return Ok(missing) };
        let was_there = |words: &Words| !words.named && words.may_be().any(|last| last != Last::Absent);
        let connector = task.connector.as_ref();
        let wanted = |_: &Change, digest, key: &Key| {
            self.keys.get(&digest).is_some_and(was_there) && connector.carries(key)
        };
        for (partition, end) in [&task.partition, peer].into_iter().zip(ends) {
            let range = (Offset(0), end);
            missing.extend(touched_keys(task.log.as_ref(), partition, range, connector, wanted).await?);
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use causeway_core::{Position, Space};

    use super::*;

    fn change(op: Op, seq: u64, seen: u64) -> Change {
        let key = Key { space: Space::Db(0), name: "k".into() };
        let change = Change::captured(op, key, Some("v".into()), Position::default(), 0);
        // A state that says again what the logs know, as a site tells of a key that it never wrote.
        Change { seq: Seq(seq), seen: Seq(seen), uncertain: op == Op::State, ..change }
    }

    const A: Last = Last::Content(1, None);
    const B: Last = Last::Content(2, None);

    fn may_be(note: impl Fn(&mut Words)) -> Vec<Last> {
        let mut words = Words::default();
        note(&mut words);
        words.may_be().collect()
    }

    #[test]
    fn what_the_store_may_hold_is_the_later_word_or_either_of_two_that_crossed() {
        let own_read = |words: &mut Words| words.note_own(A, &change(Op::Read, 3, 0));
        let own_put = |words: &mut Words| words.note_own(A, &change(Op::Put, 3, 5));
        let own_delete = |words: &mut Words| words.note_own(Last::Absent, &change(Op::Delete, 3, 5));
        let theirs =
            |op, seq, seen| move |words: &mut Words| words.note_peer(B, &change(op, seq, seen), true);
        let both = |one: &dyn Fn(&mut Words), other: &dyn Fn(&mut Words)| {
            may_be(|words| {
                one(words);
                other(words);
            })
        };
        assert_eq!(both(&own_put, &theirs(Op::Put, 4, 0)), [A], "ours had seen it");
        assert_eq!(both(&own_put, &theirs(Op::Put, 8, 9)), [B], "theirs had seen ours");
        assert_eq!(both(&own_put, &theirs(Op::Put, 8, 2)), [A, B], "neither");
        assert_eq!(both(&own_read, &theirs(Op::State, 8, 2)), [B], "a row is no change of ours");
        assert_eq!(both(&own_delete, &theirs(Op::State, 8, 2)), [Last::Absent], "our delete stands");
        assert_eq!(both(&own_delete, &theirs(Op::State, 8, 4)), [B], "it came after our delete");
        assert_eq!(both(&own_delete, &theirs(Op::Put, 8, 2)), [B], "a write stands against it");
    }

    #[test]
    fn of_what_is_not_settled_each_word_may_hold() {
        let open = |words: &mut Words, last, seq| words.note_peer(last, &change(Op::State, seq, 9), false);
        assert_eq!(
            may_be(|words| {
                words.note_own(A, &change(Op::Read, 3, 0));
                open(words, B, 8);
                open(words, B, 9);
            }),
            [A, B]
        );
        assert_eq!(
            may_be(|words| {
                open(words, A, 8);
                open(words, B, 9);
            }),
            [Last::Changed],
            "nobody knows which of two"
        );
    }
}
