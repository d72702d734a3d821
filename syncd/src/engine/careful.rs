//! The careful way: what replaces a key that the site may have written itself.
//!
//! The keys are watched; a token finds the moment in the site's own stream; once capture has passed it,
//! every local change made before the watch is known, and one made after it makes the commit fail. What
//! the site changed and the peer had not seen is applied again on top, from the own log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{
    Batch, Change, Class, Error as StoreError, Key, Marker, Op, Outcome, Refused, Seq, Site, Target,
};
use tracing::{debug, trace};

use super::apply::{ApplyTask, Reign, group_boundary};
use super::conflicts::Conflict;
use super::own_log::OwnLog;
use super::recent::{Own, is_reread, touches};
use super::restart::{is_damaged, walk_kept};
use super::shared::lock;
use super::{EngineError, shown};
use crate::status::Resolution;

/// After so many tries the batch is halved.
const TOUCHED_MAX: u32 = 2;

/// How long the site's own capture may take to pass a token.
const TOKEN_WAIT: Duration = Duration::from_secs(60);

/// Watches `keys`, and waits until every local change made to them before that is known.
pub(crate) async fn watch(
    task: &ApplyTask,
    target: &mut dyn Target,
    keys: &[Key],
) -> Result<(), EngineError> {
    let token = target.watch(keys).await?;
    tokio::select! {
        biased;
        passed = task.shared.tokens.wait(token, TOKEN_WAIT) => {
            let reason = "capture of that site is behind or not connected";
            let late = || unavailable(task, "wait for a token in the target's own stream", reason.to_owned());
            passed.then_some(()).ok_or_else(late)
        }
        () = task.shared.gate.until_wanted() => Err(EngineError::CaptureWaits),
        () = task.stop.cancelled() => Err(EngineError::Stopped),
    }
}

impl Reign {
    /// Brings `changes` in, the marker going to `to`. Nothing is under way, neither before nor after.
    pub(crate) async fn careful(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        changes: Vec<Change>,
        to: Seq,
    ) -> Result<(), EngineError> {
        let count = changes.len() as u64;
        recall(task, &changes).await?;
        let changes = differing(task, target, changes).await?;
        let mut keys: Vec<Key> =
            changes.iter().map(|change| change.key.clone()).filter(|key| !key.name.is_empty()).collect();
        keys.sort_unstable();
        keys.dedup();
        let before = self.marker.clone();
        if changes.is_empty() {
            return self.mark(task, target, to, count).await;
        }
        let mut ours = OwnChanges::default();
        let mut touched = 0;
        loop {
            // Most of what we need is read before the watch begins, so that it lasts as short as it can.
            ours.read(task, &mut self.own_log, &changes).await?;
            watch(task, target, &keys).await?;
            ours.read(task, &mut self.own_log, &changes).await?;
            let Decision { decided, dropped, pairs } = decide(task, &changes, &ours);
            for change in &changes {
                trace!(partition = %task.partition, key = %shown(&change.key), op = change.op.as_str(),
                    seq = %change.seq, live = ?ours.live(change).iter().map(|(own, _)| own.seq.0).collect::<Vec<_>>(),
                    dropped = dropped.iter().any(|dropped| dropped.seq == change.seq), "decided");
            }
            let mut marker = self.marker_for(task, &changes, to);
            marker.from = before.applied;
            marker.dropped = dropped.iter().map(|change| change.seq).collect();
            let keep_existing = !task.origin_wins;
            let batch = Batch { marker, changes: decided.clone(), watched: true, keep_existing };
            target.send(batch).await?;
            match target.outcome().await? {
                Outcome::Touched => {
                    self.marker = before.clone();
                    touched += 1;
                    debug!(partition = %task.partition, touched, changes = changes.len(), "touched meanwhile");
                    // A key that is written all the time must not hold up the others.
                    if touched >= TOUCHED_MAX
                        && let Some(halves) = halves(&changes)
                    {
                        return self.one_by_one(task, target, halves, to).await;
                    }
                }
                Outcome::Committed { refused, .. } => {
                    self.refused(task, &decided, refused).await?;
                    let kept = dropped.iter().filter(|change| change.op == Op::Delete);
                    let kept: Vec<Key> = kept.map(|change| change.key.clone()).collect();
                    // The peer has them no more: our own capture sends it what they hold.
                    self.ask_own(task, before.applied, kept);
                    self.note(task, &pairs, &ours).await;
                    break;
                }
                Outcome::Rejected { transient: true, reason } => {
                    let action = format!("apply {} changes", decided.len());
                    return Err(unavailable(task, &action, reason));
                }
                Outcome::Rejected { transient: false, reason } => {
                    let Some(halves) = halves(&changes) else {
                        let refused =
                            (0..changes.len()).map(|index| Refused { index, reason: reason.clone() });
                        self.refused(task, &changes, refused.collect()).await?;
                        break;
                    };
                    self.marker = before.clone();
                    return self.one_by_one(task, target, halves, to).await;
                }
            }
        }
        task.stats.applied.fetch_add(count, Ordering::SeqCst);
        Ok(())
    }

    /// Notes what was decided in the conflict log.
    async fn note(&mut self, task: &ApplyTask, pairs: &[Pair<'_>], ours: &OwnChanges) {
        // What makes a delete be dropped is read for this only. A log that fails is told by who needs it.
        let unread: BTreeSet<Seq> =
            pairs.iter().filter(|pair| !replaces(pair.theirs)).map(|pair| pair.ours).collect();
        let read = match &mut self.own_log {
            Some(own_log) if !unread.is_empty() => own_log.fetch(&unread).await.unwrap_or_default(),
            _ => HashMap::new(),
        };
        for pair in pairs {
            let live = ours.live(pair.theirs).iter().find(|(own, _)| own.seq == pair.ours);
            let Some(own) = live.map(|(_, change)| change).or_else(|| read.get(&pair.ours)) else {
                task.conflicts.note_unread(pair.resolution);
                continue;
            };
            let element = element(task, own, &pair.theirs.key);
            task.conflicts.note(&Conflict {
                theirs: pair.theirs,
                ours: own,
                element: element.as_deref(),
                resolution: pair.resolution,
            });
        }
    }

    /// Brings in the two halves of a batch that did not go in as a whole.
    async fn one_by_one(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        (first, rest): (Vec<Change>, Vec<Change>),
        to: Seq,
    ) -> Result<(), EngineError> {
        let middle = between(&self.marker, &rest, to);
        Box::pin(self.careful(task, target, first, middle)).await?;
        Box::pin(self.careful(task, target, rest, to)).await
    }

    /// Moves the marker over `count` changes that were there already.
    async fn mark(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        to: Seq,
        count: u64,
    ) -> Result<(), EngineError> {
        let marker = self.marker_for(task, &[], to);
        target.send(Batch { marker, changes: Vec::new(), watched: false, keep_existing: false }).await?;
        match target.outcome().await? {
            Outcome::Committed { .. } => {
                task.stats.applied.fetch_add(count, Ordering::SeqCst);
                Ok(())
            }
            Outcome::Touched => Err(EngineError::CaptureWaits),
            Outcome::Rejected { reason, .. } => Err(unavailable(task, "write the marker", reason)),
        }
    }
}

pub(crate) fn unavailable(task: &ApplyTask, action: &str, reason: String) -> EngineError {
    EngineError::Store(StoreError::Unavailable {
        action: action.to_owned(),
        endpoint: task.channel.clone(),
        source: reason.into(),
    })
}

/// A batch of at least so many states and nothing else is a repeated snapshot, of which most is there.
const REPEATED_MIN: usize = 32;

/// Of a repeated snapshot, what the target does not hold already.
async fn differing(
    task: &ApplyTask,
    target: &mut dyn Target,
    changes: Vec<Change>,
) -> Result<Vec<Change>, EngineError> {
    let whole = |change: &Change| replaces(change) && change.part.is_none();
    if changes.len() < REPEATED_MIN || !changes.iter().all(whole) {
        return Ok(changes);
    }
    let held = target.holds(&changes).await?;
    // Of a key that is named twice the first one may undo what the last one says.
    let mut names: HashMap<Key, usize> = HashMap::new();
    changes.iter().for_each(|change| *names.entry(change.key.clone()).or_default() += 1);
    let twice = |change: &Change| names.get(&change.key).is_some_and(|count| *count > 1);
    let differs = |(change, held): &(Change, bool)| !held || twice(change) || task.has_live(change);
    Ok(changes.into_iter().zip(held).filter(differs).map(|(change, _)| change).collect())
}

/// What becomes of a batch.
#[derive(Default)]
struct Decision<'a> {
    /// What is to be written, in order.
    decided: Vec<Change>,
    dropped: Vec<&'a Change>,
    /// For the conflict log.
    pairs: Vec<Pair<'a>>,
}

/// A change of the peer and the seq of one of ours, neither of which had seen the other.
struct Pair<'a> {
    theirs: &'a Change,
    ours: Seq,
    resolution: Resolution,
}

/// The whole of a key that we set or deleted since stands; what we did to a part of it is done again on top.
///
/// A delete loses to what we did to the key since: the peer may only have let it expire.
fn decide<'a>(task: &ApplyTask, changes: &'a [Change], ours: &OwnChanges) -> Decision<'a> {
    let mut decision = Decision::default();
    let Decision { decided, dropped, pairs } = &mut decision;
    for change in changes {
        // What only says again what the logs know is no write.
        let mut pair = |ours: Seq, resolution| {
            pairs.extend((!is_reread(change)).then_some(Pair { theirs: change, ours, resolution }));
        };
        if change.op == Op::Delete
            && task.own.is_some()
            && let Some(own) = task.written_since(change)
        {
            pair(own.seq, Resolution::Kept);
            dropped.push(change);
            continue;
        }
        let live = if replaces(change) { ours.live(change) } else { &[] };
        let authority = task.site == Site::First;
        let standing = live.iter().rfind(|(own, _)| stands(own, change, authority));
        if let Some((own, _)) = standing {
            pair(own.seq, Resolution::Kept);
        }
        // A value in parts has to be finished in any case, and all of ours is done again over it.
        if standing.is_some() && change.part.is_none() {
            dropped.push(change);
            continue;
        }
        // Ours is done again on top of it, and must not be done on top of itself.
        let op = if change.op == Op::Read && !live.is_empty() { Op::State } else { change.op };
        decided.push(Change { op, ..change.clone() });
        // A state or a delete of ours has lost if it doesn't stand, and with a delete what it took.
        let lost = |own: &Own| own.whole && own.class == Class::Observed && !stands(own, change, authority);
        let lost = live.iter().rposition(|(own, _)| lost(own)).map_or(0, |at| at + 1);
        let again = live.iter().skip(lost).map(|(_, again)| again);
        decided.extend(again.filter(|again| again.op != Op::State).cloned());
        // Nothing is lost of a row of the snapshot that goes below what we did.
        if standing.is_none() && change.op == Op::State {
            overwritten_and_merged(task, live, lost).into_iter().for_each(|(own, as_)| pair(own, as_));
        }
    }
    decision
}

/// Of our changes `live`, where none stands and those before `lost` are overwritten: the newest one that is,
/// and the newest one of each element that was done again.
fn overwritten_and_merged(task: &ApplyTask, live: &[(Own, Change)], lost: usize) -> Vec<(Seq, Resolution)> {
    let (mut overwritten, mut merged) = (None, BTreeMap::new());
    for (i, (own, change)) in live.iter().enumerate().filter(|(_, (own, _))| !own.reread) {
        if i < lost || change.op == Op::State {
            overwritten = Some(own.seq);
        } else {
            merged.insert(element(task, change, &change.key), own.seq);
        }
    }
    let merged = merged.into_values().map(|own| (own, Resolution::Merged));
    overwritten.map(|own| (own, Resolution::Replaced)).into_iter().chain(merged).collect()
}

/// The one element of `key` that `change` touches; `None` if it is the whole key, or several.
fn element(task: &ApplyTask, change: &Change, key: &Key) -> Option<Bytes> {
    let units = task.connector.units(change);
    let mut elements = units.into_iter().filter(|(unit, _)| unit.key == *key).map(|(unit, _)| unit.element);
    match (elements.next(), elements.next()) {
        (Some(element), None) => element,
        _ => None,
    }
}

/// Whether the change sets the whole key, so that what we did to it has to be done again.
fn replaces(change: &Change) -> bool {
    let whole = change.part.is_none_or(|part| part.last);
    matches!(change.op, Op::State | Op::Read) && !change.key.name.is_empty() && whole
}

/// What we did to the keys of a batch and the peer had not seen, read from the own log: each change once,
/// however often the batch is decided.
#[derive(Default)]
struct OwnChanges {
    live: HashMap<Seq, Vec<(Own, Change)>>,
}

impl OwnChanges {
    /// Reads what is live for `changes` and was not read yet.
    async fn read(
        &mut self,
        task: &ApplyTask,
        own_log: &mut Option<OwnLog>,
        changes: &[Change],
    ) -> Result<(), EngineError> {
        let Some(own_log) = own_log else { return Ok(()) };
        let mut live: Vec<(Seq, Own)> = Vec::new();
        for change in changes.iter().filter(|change| replaces(change)) {
            let known =
                self.live.get(&change.seq).and_then(|live| live.last()).map(|(own, _)| own.seq.next());
            let from = known.unwrap_or(change.seen);
            let ours = lock(&task.shared.recent).live(&change.key, from);
            live.extend(ours.into_iter().map(|own| (change.seq, own)));
        }
        let found = own_log.fetch(&live.iter().map(|(_, own)| own.seq).collect()).await?;
        let lost = live.iter().map(|(_, own)| own.seq).filter(|seq| !found.contains_key(seq)).max();
        lost.map_or(Ok(()), |lost| task.lost_own(lost.next()))?;
        for (of, own) in live {
            let again = found.get(&own.seq).map(|change| (own, change.clone()));
            self.live.entry(of).or_default().extend(again);
        }
        Ok(())
    }

    fn live(&self, change: &Change) -> &[(Own, Change)] {
        self.live.get(&change.seq).map_or(&[], Vec::as_slice)
    }
}

/// Whether our `own` stands against the peer's concurrent `change`, which replaces the key. Of two states, as
/// two gaps at once bring them, the one that was written for certain; else the one of the site that changed
/// the key last by what its log says.
fn stands(own: &Own, change: &Change, authority: bool) -> bool {
    match own.state {
        Some(version) if change.op == Op::State => {
            let theirs = (!change.uncertain, change.hlc);
            version > theirs || (version == theirs && authority)
        }
        _ => match own.class {
            Class::Absolute => own.whole,
            // The peer drops it, too: it may only be an expiry.
            Class::Observed => own.whole && (change.op != Op::State || is_reread(change)),
            _ => false,
        },
    }
}

/// A peer that came back older than it was has seen less of ours than it had: what we forgot since is read
/// again.
async fn recall(task: &ApplyTask, changes: &[Change]) -> Result<(), EngineError> {
    let Some(own) = &task.own else { return Ok(()) };
    let seen = changes.iter().map(|change| change.seen).min().unwrap_or_default();
    let floor = lock(&task.shared.recent).floor();
    if seen >= floor {
        return Ok(());
    }
    let (start, end) = (task.log.locate(own, seen).await?, task.log.locate(own, floor).await?);
    let mut older = Vec::new();
    walk_kept(task.log.as_ref(), own, start, end, |_, change| {
        older.extend(touches(&change, task.connector.as_ref()));
    })
    .await?;
    if is_damaged(task.log.as_ref(), own, start, end) {
        task.lost_own(floor)?;
    }
    lock(&task.shared.recent).recall(seen, &older);
    Ok(())
}

/// How far the marker goes with the first half of a batch: contested reads don't move it.
fn between(before: &Marker, rest: &[Change], to: Seq) -> Seq {
    let boundary = rest.first().map_or(to, |change| change.seq);
    if to > before.applied { boundary } else { before.applied }
}

/// Cuts `changes` between groups; `None` if they are one.
fn halves(changes: &[Change]) -> Option<(Vec<Change>, Vec<Change>)> {
    let cut = group_boundary(changes)?;
    let (first, rest) = changes.split_at(cut);
    Some((first.to_vec(), rest.to_vec()))
}
