//! The sweep after a repeated snapshot: what the target holds from earlier reads and the new one did not
//! name is gone at the origin.

use std::collections::HashMap;

use causeway_core::{Batch, Change, Key, Op, Outcome, Seq, Target};
use tracing::{debug, info, warn};

use super::apply::{ApplyTask, Reign};
use super::careful::{unavailable, watch};
use super::recent::key_digest;
use super::restart::{SnapshotPoint, is_damaged, restart_point, walk_kept};
use super::{EngineError, shown};
use crate::log::Offset;
use crate::status::HeldAnswer;

/// What a pass holds of each key that the logs name: its digest in a map that is half full at the worst.
pub(crate) const KEY_BYTES: usize = 72;
/// Keys that a pass finds to be deleted; if there are more, it is made again.
const UNNAMED_MAX: usize = 100_000;
/// A sweep that would delete more than this asks first, if it is also more than one key in ten.
const DELETES_UNASKED: u64 = 1_000;

impl Reign {
    /// Deletes at the target what the snapshot that `end` closes did not name.
    pub(crate) async fn sweep(
        &mut self,
        task: &mut ApplyTask,
        target: &mut dyn Target,
        end: &Change,
    ) -> Result<(), EngineError> {
        let Some(snapshot) = restart_point(end).and_then(|point| point.snapshot) else { return Ok(()) };
        let first = Seq(snapshot.first);
        let kept = task.log.bounds(&task.partition).start;
        if task.log.locate(&task.partition, first).await? == kept && kept != Offset(0) {
            warn!(partition = %task.partition, "not swept: a full log could not keep all that the snapshot named; \
                `verifier check` lists what the origin lacks");
            return Ok(());
        }
        let mut asked = false;
        loop {
            let Some(found) = unnamed(task, target, first, end).await? else {
                warn!(partition = %task.partition, "not swept: what the snapshot named is damaged in the log; \
                    `verifier check` lists what the origin lacks");
                return Ok(());
            };
            let Unnamed { keys, count, scanned } = found;
            let many = (count > DELETES_UNASKED && count > scanned / 10)
                || (count > 0 && !reaches(task, end.seen).await?);
            info!(partition = %task.partition, scanned, unnamed = count, many, "sweep");
            if many && !std::mem::replace(&mut asked, true) {
                let what = format!("the origin lacks {count} of {scanned} keys after a gap: deleting them");
                if self.question(task, what).await? == HeldAnswer::Drop {
                    return Ok(());
                }
            }
            for keys in keys.chunks(task.items_max.max(1)) {
                self.delete(task, target, keys, end).await?;
            }
            if count <= keys.len() as u64 {
                return Ok(());
            }
        }
    }

    async fn delete(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        keys: &[Key],
        end: &Change,
    ) -> Result<(), EngineError> {
        let mut keys = keys.to_vec();
        while !keys.is_empty() {
            let watched = task.own.is_some();
            if watched {
                watch(task, target, &keys).await?;
                for key in std::mem::take(&mut keys) {
                    if !task.is_live(&key, end.seen)? {
                        keys.push(key);
                    }
                }
            }
            let changes: Vec<Change> =
                keys.iter().map(|key| Change { seq: end.seq, ..gone(key, end) }).collect();
            let marker = self.marker_for_none(task);
            target.send(Batch { marker, changes, watched, decided: true, ..Batch::default() }).await?;
            match target.outcome().await? {
                Outcome::Committed { .. } => return Ok(()),
                Outcome::Touched => {}
                Outcome::Rejected { reason, .. } => {
                    let action = format!("delete {} keys that the origin lacks", keys.len());
                    return Err(unavailable(task, &action, reason));
                }
            }
        }
        Ok(())
    }
}

/// What the target holds and the snapshot did not name.
struct Unnamed {
    /// At the most [`UNNAMED_MAX`] of them.
    keys: Vec<Key>,
    count: u64,
    /// Of so many keys of the target.
    scanned: u64,
}

/// Looks for what the snapshot that `end` closes did not name, and the target did not write since; `None` if not
/// all that it named can be read.
async fn unnamed(
    task: &ApplyTask,
    target: &mut dyn Target,
    first: Seq,
    end: &Change,
) -> Result<Option<Unnamed>, EngineError> {
    // About as many keys are named as there are records.
    let records = [Some(&task.partition), task.own.as_ref()].into_iter().flatten().map(|partition| {
        let bounds = task.log.bounds(partition);
        bounds.end.0 - bounds.start.0
    });
    let passes = u128::from(records.sum::<u64>() / task.sweep_keys_max.max(1) as u64 + 1);
    let mut found = Unnamed { keys: Vec::new(), count: 0, scanned: 0 };
    for pass in 0..passes {
        let mine = |digest: u128| digest % passes == pass;
        let Some((named, sweep_all)) = named(task, first, end, &mine).await? else { return Ok(None) };
        let (mut keys, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let (page, next) = target.keys(at).await?;
            cursor = next;
            for key in page {
                let digest = key_digest(&key);
                if !mine(digest) {
                    continue;
                }
                found.scanned += 1;
                let goes = match named.get(&digest) {
                    Some(Named::Now) => false,
                    Some(Named::Before) => true,
                    None => sweep_all,
                };
                if goes && !task.is_live(&key, end.seen)? {
                    debug!(partition = %task.partition, key = %shown(&key), "swept");
                    found.count += 1;
                    keys.extend((found.keys.len() + keys.len() < UNNAMED_MAX).then_some(key));
                }
            }
        }
        // A store may list a key twice.
        let listed = keys.len();
        keys.sort_unstable();
        keys.dedup();
        found.count -= (listed - keys.len()) as u64;
        found.keys.append(&mut keys);
    }
    Ok(Some(found))
}

fn gone(key: &Key, end: &Change) -> Change {
    Change::captured(Op::Delete, key.clone(), None, end.pos.clone(), end.time)
}

/// Whether our log, which was read, still holds what the origin had not seen of ours.
async fn reaches(task: &ApplyTask, seen: Seq) -> Result<bool, EngineError> {
    let Some(own) = &task.own else { return Ok(true) };
    let bounds = task.log.bounds(own);
    let unseen = task.log.locate(own, seen).await?;
    if is_damaged(task.log.as_ref(), own, unseen, bounds.end) {
        return Ok(false);
    }
    let oldest = task.log.read(own, bounds.start, 1).await;
    Ok(oldest.is_ok_and(|oldest| {
        oldest.first().is_none_or(|(_, change)| change.seq <= seen || bounds.start == Offset(0))
    }))
}

/// Whether the snapshot named a key, or only what came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Before,
    Now,
}

/// Whether who had applied a log below `seen` had all rows of a whole snapshot, by the last one in that log.
fn has_all_rows(snapshot: &SnapshotPoint, seen: Seq) -> bool {
    let whole_by = if snapshot.initial { snapshot.end } else { Some(snapshot.first) };
    whole_by.is_some_and(|end| seen >= Seq(end))
}

/// What the logs say of keys: by the origin's log below `end`, and by the target's own. And whether a key that
/// neither names is gone at the origin: not if it may be one of the target's that the origin never got. `None`
/// if not all that the snapshot named can be read.
async fn named(
    task: &ApplyTask,
    first: Seq,
    end: &Change,
    mine: &impl Fn(u128) -> bool,
) -> Result<Option<(HashMap<u128, Named>, bool)>, EngineError> {
    let mut named = HashMap::new();
    let mut sweep_all = task.sweep_all && task.own.is_none();
    let stop = task.log.locate(&task.partition, end.seq).await?;
    let mut note = |change: &Change, now: bool| {
        let is_word = change.op.is_data() || (change.op == Op::Refresh && !change.uncertain);
        if change.key.name.is_empty() || !is_word {
            return;
        }
        let mut name = |key: &Key| {
            // Whoever hands over does so with deletes, too.
            let now = now || task.is_handed_over(key);
            let digest = key_digest(key);
            if mine(digest) {
                let known = named.entry(digest).or_insert(Named::Before);
                if now {
                    *known = Named::Now;
                }
            }
        };
        name(&change.key);
        if change.op == Op::Command {
            task.connector.units(change).iter().for_each(|(unit, _)| name(&unit.key));
        }
    };
    let start = task.log.bounds(&task.partition).start;
    walk_kept(task.log.as_ref(), &task.partition, start, stop, |_, change| {
        note(&change, change.seq >= first)
    })
    .await?;
    let begin = task.log.locate(&task.partition, first).await?;
    if is_damaged(task.log.as_ref(), &task.partition, begin, stop) {
        return Ok(None);
    }
    if let Some(own) = &task.own {
        let bounds = task.log.bounds(own);
        // What the origin had not seen of ours it cannot have deleted: it may have come back older.
        let mut position = None;
        walk_kept(task.log.as_ref(), own, bounds.start, bounds.end, |_, change| {
            note(&change, change.seq >= end.seen);
            if change.op == Op::Position {
                position = Some(change);
            }
        })
        .await?;
        let snapshot = position.as_ref().and_then(restart_point).and_then(|point| point.snapshot);
        sweep_all = task.sweep_all && snapshot.is_some_and(|s| has_all_rows(&s, end.seen));
    }
    Ok(Some((named, sweep_all)))
}
