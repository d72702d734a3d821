//! The careful way: what replaces a key that the site may have written itself.
//!
//! The keys are watched; a token finds the moment in the site's own stream; once capture has passed it,
//! every local change made before the watch is known, and one made after it makes the commit fail. What
//! the site changed and the peer had not seen is applied again on top, from the own log.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use causeway_core::{Batch, Change, Key, Marker, Op, Outcome, Refused, Seq, Target};
use tracing::debug;

use super::EngineError;
use super::apply::{ApplyTask, Reign, group_boundary, transact};
use super::recent::{Touch, key_digest, touches};
use super::restart::{is_damaged, walk_kept};
use super::shared::lock;

/// After so many tries the halves go one by one.
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
        let replaced = changes.iter().filter(|change| task.is_watched(change));
        let mut keys: Vec<Key> =
            replaced.map(|change| change.key.clone()).filter(|key| !key.name.is_empty()).collect();
        keys.sort_unstable();
        keys.dedup();
        let watched = !keys.is_empty();
        let before = self.marker.clone();
        if changes.is_empty() {
            return self.mark(task, target, to, count).await;
        }
        let changes = Arc::new(changes);
        let mut touched = 0;
        loop {
            // Most of what we need of our own log is read before the watch begins, so that it lasts as short as
            // it can.
            if watched {
                self.plan(task, &changes, false).await?;
                watch(task, target, &keys).await?;
                // Markers that have passed since may have let some of it be forgotten.
                recall(task, &changes).await?;
            }
            let mut plan = self.plan(task, &changes, false).await?;
            let marker = self.announce(task, &changes, (self.marker.applied..to, self.low), &mut plan);
            let decided = plan.decided.unwrap_or_else(|| changes.to_vec());
            let keep_existing = !task.origin_wins;
            let batch = Batch { marker, changes: decided.clone(), watched, decided: true, keep_existing };
            match transact(task, target, batch).await? {
                Outcome::Touched => {
                    self.marker = before.clone();
                    touched += 1;
                    debug!(partition = %task.partition, touched, changes = changes.len(), "touched meanwhile");
                    // A key that is written all the time must not hold up the others: it ends up alone.
                    let parts = if touched >= TOUCHED_MAX { halves(&changes) } else { None };
                    if let Some(parts) = parts {
                        return self.one_by_one(task, target, parts, to).await;
                    }
                }
                Outcome::Committed { refused, .. } => {
                    self.refused(task, &decided, &changes, refused).await?;
                    self.note(task, &plan.pairs).await;
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
                        self.refused(task, &changes, &changes, refused.collect()).await?;
                        break;
                    };
                    self.marker = before.clone();
                    return self.one_by_one(task, target, halves, to).await;
                }
            }
        }
        task.stats.counts.applied.fetch_add(count, Ordering::SeqCst);
        Ok(())
    }

    /// Brings in the parts of a batch that did not go in as a whole.
    async fn one_by_one(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        parts: Vec<Vec<Change>>,
        to: Seq,
    ) -> Result<(), EngineError> {
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            let to = parts.peek().map_or(to, |rest| between(&self.marker, rest, to));
            Box::pin(self.careful(task, target, part, to)).await?;
        }
        Ok(())
    }

    /// Moves the marker over `count` changes that were there already.
    async fn mark(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        to: Seq,
        count: u64,
    ) -> Result<(), EngineError> {
        let mut plan = self.plan(task, &[], false).await?;
        let marker = self.announce(task, &Arc::default(), (self.marker.applied..to, self.low), &mut plan);
        let batch = Batch { marker, ..Batch::default() };
        match transact(task, target, batch).await? {
            Outcome::Committed { .. } => {
                task.stats.counts.applied.fetch_add(count, Ordering::SeqCst);
                Ok(())
            }
            Outcome::Touched => Err(EngineError::CaptureWaits),
            Outcome::Rejected { reason, .. } => Err(unavailable(task, "write the marker", reason)),
        }
    }
}

pub(crate) fn unavailable(task: &ApplyTask, action: &str, reason: String) -> EngineError {
    EngineError::unavailable(action, &task.channel, reason)
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
    let (differing, there): (Vec<_>, Vec<_>) = changes.into_iter().zip(held).partition(differs);
    let mut on_the_way = lock(&task.shared.on_the_way);
    there.iter().for_each(|(change, _)| on_the_way.is_done(key_digest(&change.key), change.seq));
    Ok(differing.into_iter().map(|(change, _)| change).collect())
}

/// Whether the change sets the whole key, so that what we did to it has to be done again.
fn replaces(change: &Change) -> bool {
    let whole = change.part.is_none_or(|part| part.last);
    matches!(change.op, Op::State | Op::Read) && !change.key.name.is_empty() && whole
}

/// Changes taken back in one go.
const RECALLED_AT_ONCE: usize = 1 << 16;

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
    let mut recalled = Ok(());
    walk_kept(task.log.as_ref(), own, start, end, |_, change| {
        // Whatever the stream numbers now, they stand before all that comes in it.
        let touched = touches(&change, task.ours()).into_iter();
        older.extend(touched.map(|(digest, own)| (digest, Touch { at: 0, ..own })));
        if older.len() >= RECALLED_AT_ONCE && recalled.is_ok() {
            recalled = lock(&task.shared.recent).recall(&older);
            older.clear();
        }
    })
    .await?;
    recalled.and_then(|()| lock(&task.shared.recent).recall(&older))?;
    if is_damaged(task.log.as_ref(), own, start, end) {
        task.lost_own(floor)?;
    }
    lock(&task.shared.recent).recalled_to(seen);
    Ok(())
}

/// How far the marker goes with the first half of a batch: contested reads don't move it.
fn between(before: &Marker, rest: &[Change], to: Seq) -> Seq {
    let boundary = rest.first().map_or(to, |change| change.seq);
    if to > before.applied { boundary } else { before.applied }
}

/// Cuts `changes` between groups; `None` if they are one.
fn halves(changes: &[Change]) -> Option<Vec<Vec<Change>>> {
    let (first, rest) = changes.split_at(group_boundary(changes)?);
    Some(vec![first.to_vec(), rest.to_vec()])
}
