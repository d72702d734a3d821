//! What becomes of a batch of the peer's changes, by the rule for concurrent writes (`rule.rs`), with what the
//! site's own log holds of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use causeway_core::{Batch, Change, Key, Marker, Op, Seq, Site};
use tracing::trace;

use super::apply::{ApplyTask, Reign};
use super::conflicts::Conflict;
use super::lookback::Lookback;
use super::recent::{Touch, is_reread, key_digest};
use super::redos::{Theirs, units_of};
use super::rule::{self, Record, Verdict};
use super::shared::lock;
use super::{EngineError, shown};
use crate::status::Resolution;

/// A change of the peer and the seq of one of ours, neither of which had seen the other.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) theirs: Change,
    pub(crate) ours: Seq,
    pub(crate) resolution: Resolution,
}

/// What is to be sent for a batch.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Our own changes below were known.
    pub(crate) basis: Seq,
    /// In order, with ours that are done again; `None`: the batch as it is.
    pub(crate) decided: Option<Vec<Change>>,
    pub(crate) dropped: Vec<Seq>,
    /// For the conflict log.
    pub(crate) pairs: Vec<Pair>,
    /// What the batch touches, for the race check; `None`: nobody has looked.
    pub(crate) units: Option<Vec<Theirs>>,
}

impl Plan {
    /// What is sent for `changes`, of which this is the plan.
    pub(crate) fn batch(&self, marker: Marker, changes: &[Change], keep_existing: bool) -> Batch {
        Batch {
            marker,
            decided: self.decided.is_some(),
            changes: self.decided.clone().unwrap_or_else(|| changes.to_vec()),
            keep_existing,
            ..Batch::default()
        }
    }
}

/// A change that meets some of ours.
struct Met {
    index: usize,
    digest: u128,
    touched: Vec<Touch>,
    ours: Vec<Touch>,
    verdict: Verdict,
    /// What is done again on top of it.
    again: Vec<Again>,
}

/// A change that is done again.
enum Again {
    Ours(Seq),
    Theirs(Box<Change>),
}

impl Met {
    fn new(index: usize, digest: u128, touched: Vec<Touch>, ours: &[Touch], verdict: Verdict) -> Met {
        let again = match &verdict {
            Verdict::Under(again) => again.iter().copied().map(Again::Ours).collect(),
            _ => Vec::new(),
        };
        Met { index, digest, touched, ours: ours.to_vec(), verdict, again }
    }

    /// Whether it is a state that was read again and does not hold all of ours.
    fn is_over_state(&self) -> bool {
        let is_state =
            self.touched.first().is_some_and(|touch| touch.is_state && (touch.reread || touch.is_guess));
        is_state && matches!(self.verdict, Verdict::Under(_))
    }

    fn is_reread(&self) -> bool {
        self.touched.first().is_some_and(|touch| touch.reread && touch.is_state)
    }

    fn seq(&self) -> Seq {
        self.touched.first().map_or(Seq(0), |touch| touch.seq)
    }

    fn ours_again(&self) -> impl Iterator<Item = Seq> {
        self.again.iter().filter_map(|again| match again {
            Again::Ours(seq) => Some(*seq),
            Again::Theirs(_) => None,
        })
    }
}

impl Reign {
    /// Decides on `changes`, as much as is known now. With `fill` nothing is in question: what exists stays.
    pub(crate) async fn plan(
        &mut self,
        task: &ApplyTask,
        changes: &[Change],
        fill: bool,
    ) -> Result<Plan, EngineError> {
        if task.own.is_none() {
            return Ok(Plan { basis: lock(&task.shared.recent).end(), ..Plan::default() });
        }
        let (mut plan, met) = look(task, changes, fill)?;
        if !met.is_empty() {
            let met = without_deleted_states(task, &mut self.peer_log, met).await?;
            let met = over_states(task, &mut self.peer_log, met).await?;
            self.work_out(task, changes, met, &mut plan).await?;
        }
        Ok(plan)
    }

    /// Builds what is to be sent where some changes meet some of ours.
    async fn work_out(
        &mut self,
        task: &ApplyTask,
        changes: &[Change],
        met: Vec<Met>,
        plan: &mut Plan,
    ) -> Result<(), EngineError> {
        let wanted: BTreeSet<Seq> = met.iter().flat_map(Met::ours_again).collect();
        let own = match &mut self.own_log {
            Some(own_log) => own_log.fetch(&wanted).await?,
            None => HashMap::new(),
        };
        let lost = wanted.iter().rfind(|seq| !own.contains_key(seq));
        lost.map_or(Ok(()), |lost| task.lost_own(lost.next()))?;
        let mut decided = Vec::with_capacity(changes.len() + wanted.len());
        let mut met = met.into_iter().peekable();
        for (index, change) in changes.iter().enumerate() {
            let Some(here) = met.next_if(|met| met.index == index) else {
                decided.push(change.clone());
                continue;
            };
            trace!(partition = %task.partition, key = %shown(&change.key), op = change.op.as_str(),
                seq = %change.seq, verdict = ?here.verdict, "decided");
            plan.pairs.extend(pairs(task, change, &here, &own));
            if let Verdict::Drop(_) = here.verdict {
                plan.dropped.push(change.seq);
                // What came of it in pieces is thrown away.
                decided.extend(change.part.map(|_| Change { value: None, ..change.clone() }));
                continue;
            }
            // Ours is done again on top of it, and must not be done on top of itself.
            let op = if change.op == Op::Read { Op::State } else { change.op };
            decided.push(Change { op, ..change.clone() });
            let in_pieces = |seq: &Seq| own.get(seq).is_some_and(|own| own.part.is_some());
            if let Some(pieces) = here.ours_again().find(in_pieces) {
                plan.basis = plan.basis.min(pieces);
                continue;
            }
            decided.extend(here.again.iter().filter_map(|again| match again {
                Again::Ours(seq) => own.get(seq).cloned(),
                Again::Theirs(change) => Some(Change::clone(change)),
            }));
            let theirs = plan.units.iter_mut().flatten().filter(|theirs| theirs.touch.seq == change.seq);
            theirs.for_each(|theirs| theirs.on_top = true);
        }
        plan.decided = Some(decided);
        Ok(())
    }

    /// Notes what was decided in the conflict log.
    pub(crate) async fn note(&mut self, task: &ApplyTask, pairs: &[Pair]) {
        let wanted: BTreeSet<Seq> = pairs.iter().map(|pair| pair.ours).collect();
        // A log that fails is told by who needs it.
        let own = match &mut self.own_log {
            Some(own_log) if !wanted.is_empty() => own_log.fetch(&wanted).await.unwrap_or_default(),
            _ => HashMap::new(),
        };
        for Pair { theirs, ours, resolution } in pairs {
            let Some(ours) = own.get(ours) else {
                task.conflicts.note_unread(*resolution);
                continue;
            };
            let element = element(task, ours, &theirs.key);
            let element = element.as_deref();
            task.conflicts.note(&Conflict { theirs, ours, element, resolution: *resolution });
        }
    }
}

/// The peer's changes to the keys of `met`, each from the oldest on that one of ours had not seen, of those that `counts`.
async fn theirs_since(
    log: &mut Lookback,
    met: impl Iterator<Item = &Met>,
    counts: fn(&Touch) -> bool,
) -> Result<Vec<Change>, EngineError> {
    let mut wanted: HashMap<u128, Seq> = HashMap::new();
    let mut end = Seq(0);
    for here in met {
        let Some(oldest) = here.ours.iter().filter(|own| counts(own)).map(|own| own.seen).min() else {
            continue;
        };
        let from = wanted.entry(here.digest).or_insert(oldest);
        *from = oldest.min(*from);
        end = end.max(here.seq());
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    log.of_keys(&wanted, end).await
}

/// Decides once more where a state that was read again meets one of ours: of ours those do not count of which the
/// peer has deleted the key since, without having seen them. The peer, whose delete it is, says the same of them.
async fn without_deleted_states(
    task: &ApplyTask,
    log: &mut Lookback,
    mut met: Vec<Met>,
) -> Result<Vec<Met>, EngineError> {
    let states = met.iter().filter(|met| met.is_reread());
    let mut deleted: HashMap<u128, Vec<Seq>> = HashMap::new();
    for change in theirs_since(log, states, |own| own.reread).await? {
        if change.op == Op::Delete {
            deleted.entry(key_digest(&change.key)).or_default().push(change.seq);
        }
    }
    for here in met.iter_mut().filter(|met| met.is_reread()) {
        let seq = here.seq();
        let deletes = deleted.get(&here.digest).into_iter().flatten().filter(|delete| **delete < seq);
        let Some(newest) = deletes.max() else { continue };
        here.ours.retain(|own| !own.reread || own.seen > *newest);
        let verdict = rule::decide(&here.touched, &here.ours, task.site == Site::First, task.keep_alive);
        *here = Met::new(here.index, here.digest, std::mem::take(&mut here.touched), &here.ours, verdict);
    }
    Ok(met)
}

/// What is done again on top of a state that was read again: by the records of both sites, as it holds newer writes
/// of single elements than some of ours that it does not hold.
async fn over_states(
    task: &ApplyTask,
    log: &mut Lookback,
    mut met: Vec<Met>,
) -> Result<Vec<Met>, EngineError> {
    let states = met.iter().filter(|met| met.is_over_state());
    let mut theirs: HashMap<u128, Vec<Record>> = HashMap::new();
    for change in theirs_since(log, states, |_| true).await? {
        if let Some((digest, record)) = Record::of_theirs(change, task.theirs()) {
            theirs.entry(digest).or_default().push(record);
        }
    }
    for here in met.iter_mut().filter(|met| met.is_over_state()) {
        let below = here.seq();
        let theirs = theirs.get(&here.digest).into_iter().flatten();
        let mut records = vec![Record { own: false, touched: here.touched.clone(), changes: Vec::new() }];
        records.extend(theirs.filter(|record| record.seq() < below).cloned());
        for own in &here.ours {
            match records.last_mut().filter(|last| last.own && last.seq() == own.seq) {
                Some(last) => last.touched.push(*own),
                None => records.push(Record { own: true, touched: vec![*own], changes: Vec::new() }),
            }
        }
        let whole = BTreeSet::from([None]);
        let content = rule::evaluate(&records, &whole, task.site == Site::First);
        let Some(content) = content.filter(|content| content.then.first() == Some(&0)) else { continue };
        let again = content.then.iter().skip(1).filter_map(|index| records.get(*index));
        here.again = again
            .map(|record| match record.changes.last() {
                Some(change) => Again::Theirs(Box::new(change.clone())),
                None => Again::Ours(record.seq()),
            })
            .collect();
    }
    Ok(met)
}

/// Looks at what was changed here and the peer had not seen. One look for the whole batch: its basis holds for
/// each change.
fn look(task: &ApplyTask, changes: &[Change], fill: bool) -> Result<(Plan, Vec<Met>), EngineError> {
    let (mut plan, mut met) = (Plan::default(), Vec::new());
    {
        let recent = lock(&task.shared.recent);
        plan.basis = recent.end();
        if !changes.iter().any(|change| recent.is_beyond(change.seen)) {
            return Ok((plan, met));
        }
    }
    let units = units_of(changes, task.theirs(), false);
    let mut recent = lock(&task.shared.recent);
    plan.basis = recent.end();
    for theirs in units.chunk_by(|a, b| a.index == b.index).filter(|_| !fill) {
        let Some(first) = theirs.first() else { continue };
        let ours = recent.unseen(first.digest, first.touch.seen)?;
        if ours.is_empty() {
            continue;
        }
        let touched: Vec<Touch> = theirs.iter().map(|theirs| theirs.touch).collect();
        let verdict = rule::decide(&touched, &ours, task.site == Site::First, task.keep_alive);
        if let Verdict::Unknown(from) = verdict {
            plan.basis = plan.basis.min(from);
        }
        met.push(Met::new(first.index, first.digest, touched, &ours, verdict));
    }
    drop(recent);
    plan.units = Some(units);
    Ok((plan, met))
}

/// What the conflict log hears of one change: the newest of ours that was overwritten, and the newest of each
/// element that was done again. What only says again what the logs know is no write.
fn pairs(task: &ApplyTask, change: &Change, met: &Met, own: &HashMap<Seq, Change>) -> Vec<Pair> {
    if is_reread(change) || change.op == Op::Read {
        return Vec::new();
    }
    let pair = |ours, resolution| Pair { theirs: change.clone(), ours, resolution };
    let again = match &met.verdict {
        Verdict::Drop(ours) => return vec![pair(*ours, Resolution::Kept)],
        Verdict::Under(again) if change.op == Op::Delete => {
            return again.last().map(|ours| pair(*ours, Resolution::Kept)).into_iter().collect();
        }
        Verdict::Under(again) => again.as_slice(),
        // The redo notes what becomes of these.
        Verdict::Unknown(_) => return Vec::new(),
        Verdict::Apply => &[],
    };
    let meets = |own: &&Touch| !own.reread && met.touched.iter().any(|touch| rule::is_conflict(touch, own));
    let overwritten = met.ours.iter().filter(|own| !again.contains(&own.seq)).rfind(meets);
    let mut pairs = Vec::new();
    if let Some(own) = overwritten {
        let is_lost = met.touched.iter().any(|touch| rule::is_overwritten(touch, own));
        pairs.push(pair(own.seq, if is_lost { Resolution::Replaced } else { Resolution::Merged }));
    }
    let mut merged = BTreeMap::new();
    for change in again.iter().filter_map(|seq| own.get(seq)) {
        merged.insert(element(task, change, &change.key), change.seq);
    }
    pairs.extend(merged.into_values().map(|ours| pair(ours, Resolution::Merged)));
    pairs
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
