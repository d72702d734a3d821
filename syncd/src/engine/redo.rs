//! Evaluates keys again that a race left with something wrong: from the records of both logs, in one transaction
//! whose marker says so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use causeway_core::{Batch, Change, Marker, Op, Outcome, Position, Refused, Seq, Site, Target};
use tracing::{debug, warn};

use super::apply::{ApplyTask, Reign};
use super::careful::unavailable;
use super::decide::Pair;
use super::lookback::Lookback;
use super::recent::{Touch, key_digest};
use super::redos::Redo;
use super::restart::walk_kept;
use super::rule::{self, Content, Element, Record};
use super::shared::lock;
use super::{EngineError, shown};
use crate::log::{Offset, PartitionId};
use crate::status::Resolution;

/// Keys of one transaction.
pub(super) const KEYS_MAX: usize = 64;
/// How far the log is read back at first for the beginning of a value that came in pieces.
const PIECES_WINDOW: u64 = 1024;

pub(super) type Numbered = (u64, Redo);
/// Of each key, by its digest.
type Records = HashMap<u128, Vec<Record>>;

impl Reign {
    /// Evaluates the keys that wait for it. Nothing is under way, neither before nor after.
    pub(crate) async fn redo(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
    ) -> Result<(), EngineError> {
        task.shared.redo_waits.take();
        loop {
            let redos = lock(&task.shared.redos).take(KEYS_MAX);
            if redos.is_empty() {
                return Ok(());
            }
            self.redo_these(task, target, redos).await?;
        }
    }

    async fn redo_these(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        redos: Vec<Numbered>,
    ) -> Result<(), EngineError> {
        let (basis, changes, pairs) = self.evaluated(task, &redos).await?;
        let mut marker = self.marker_for_none(task);
        (marker.basis, marker.redone) = (basis, redos.iter().map(|(id, _)| *id).collect());
        let batch = Batch { marker, changes: changes.clone(), decided: true, ..Batch::default() };
        target.send(batch).await?;
        match target.outcome().await? {
            Outcome::Committed { refused, .. } => {
                self.refused(task, &changes, &changes, refused).await?;
                self.note(task, &pairs).await;
                Ok(())
            }
            Outcome::Rejected { transient: false, reason } => {
                self.give_up(task, target, redos, changes, reason).await
            }
            Outcome::Rejected { reason, .. } => {
                lock(&task.shared.redos).send_again();
                task.shared.redo_waits.raise();
                Err(unavailable(task, "evaluate keys again", reason))
            }
            Outcome::Touched => Err(EngineError::CaptureWaits),
        }
    }

    /// Something in the transaction is refused: each key goes alone, and one that is refused alone is kept as a
    /// dead letter.
    async fn give_up(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        redos: Vec<Numbered>,
        changes: Vec<Change>,
        reason: String,
    ) -> Result<(), EngineError> {
        if redos.len() > 1 {
            for redo in redos {
                Box::pin(self.redo_these(task, target, vec![redo])).await?;
            }
            return Ok(());
        }
        warn!(partition = %task.partition, reason, "a key cannot be evaluated again");
        let all = (0..changes.len()).map(|index| Refused { index, reason: reason.clone() }).collect();
        self.refused(task, &changes, &changes, all).await?;
        let mut marker = self.marker_for_none(task);
        marker.redone = redos.iter().map(|(id, _)| *id).collect();
        leave_marker(task, target, marker).await
    }

    /// What brings the keys of `redos` to what they are to hold, up to where our own changes are known for that, and how those
    /// that met came out.
    pub(super) async fn evaluated(
        &mut self,
        task: &ApplyTask,
        redos: &[Numbered],
    ) -> Result<(Seq, Vec<Change>, Vec<Pair>), EngineError> {
        let (basis, records, contents) = self.evaluate(task, redos).await?;
        let (mut changes, mut pairs) = (Vec::new(), Vec::new());
        for ((id, redo), content) in redos.iter().zip(contents) {
            let records = records.get(&key_digest(&redo.key)).map_or(&[][..], Vec::as_slice);
            debug!(partition = %task.partition, id, key = %shown(&redo.key), ?content, "evaluated again");
            let Some(content) = content else { continue };
            lock(&task.shared.redos).widen(*id, rule::extent(records, &content));
            pairs.extend(met(redo, records, &content));
            changes.extend(written(redo, records, &content));
        }
        Ok((basis, changes, pairs))
    }

    /// Up to where our own changes are known, the records of the keys, and what these say of each redo.
    async fn evaluate(
        &mut self,
        task: &ApplyTask,
        redos: &[Numbered],
    ) -> Result<(Seq, Records, Vec<Option<Content>>), EngineError> {
        let (basis, mut records) = self.own_records(task, redos).await?;
        // Of one key there may be two.
        let mut from: HashMap<u128, Seq> = HashMap::new();
        for (_, redo) in redos {
            let from = from.entry(key_digest(&redo.key)).or_insert(redo.theirs_from);
            *from = redo.theirs_from.min(*from);
        }
        let mut wanted = from.clone();
        loop {
            add_theirs(task, &mut self.peer_log, &wanted, self.marker.applied, &mut records).await?;
            wanted.clear();
            let mut contents = Vec::with_capacity(redos.len());
            for (_, redo) in redos {
                let digest = key_digest(&redo.key);
                let of_key = records.get(&digest).map_or(&[][..], Vec::as_slice);
                let evaluate =
                    |elements: &BTreeSet<Element>| rule::evaluate(of_key, elements, task.site == Site::First);
                // Nothing may tell of all of the key.
                let content = evaluate(&redo.elements).or_else(|| {
                    evaluate(&redo.elements.iter().filter(|element| element.is_some()).copied().collect())
                });
                let reaches = content.as_ref().and_then(|content| rule::reaches(of_key, content));
                // It begins with something older than what met.
                if let Some(known) = from.get_mut(&digest)
                    && let Some(older) = reaches.filter(|reaches| reaches < known)
                {
                    *known = older;
                    wanted.insert(digest, older);
                }
                contents.push(content);
            }
            if wanted.is_empty() {
                return Ok((basis, records, contents));
            }
            for digest in wanted.keys() {
                records.entry(*digest).or_default().retain(|record| record.own);
            }
        }
    }

    /// Up to where our own changes are known, and those of the keys.
    async fn own_records(
        &mut self,
        task: &ApplyTask,
        redos: &[Numbered],
    ) -> Result<(Seq, Records), EngineError> {
        let mut records = Records::new();
        let mut ours: BTreeMap<Seq, (u128, Vec<Touch>)> = BTreeMap::new();
        let basis = {
            let mut recent = lock(&task.shared.recent);
            for digest in redos.iter().map(|(_, redo)| key_digest(&redo.key)).collect::<BTreeSet<_>>() {
                for own in recent.unseen(digest, Seq(0))? {
                    ours.entry(own.seq).or_insert((digest, Vec::new())).1.push(own);
                }
            }
            recent.end()
        };
        let wanted: BTreeSet<Seq> = ours.keys().copied().collect();
        let mut own = match &mut self.own_log {
            Some(own_log) => own_log.fetch(&wanted).await?,
            None => HashMap::new(),
        };
        for (seq, (digest, touched)) in ours {
            let Some(change) = own.remove(&seq) else {
                task.lost_own(seq.next())?;
                continue;
            };
            let changes = match &task.own {
                Some(partition) => whole(task, partition, change).await?,
                None => vec![change],
            };
            records.entry(digest).or_default().push(Record { own: true, touched, changes });
        }
        Ok((basis, records))
    }
}

/// Leaves `marker` in the store, with nothing else.
pub(super) async fn leave_marker(
    task: &ApplyTask,
    target: &mut dyn Target,
    marker: Marker,
) -> Result<(), EngineError> {
    target.send(Batch { marker, ..Batch::default() }).await?;
    match target.outcome().await? {
        Outcome::Rejected { reason, .. } => Err(unavailable(task, "write the marker", reason)),
        _ => Ok(()),
    }
}

/// Adds the peer's changes below `end` to the keys `wanted`, each from its seq on.
async fn add_theirs(
    task: &ApplyTask,
    log: &mut Lookback,
    wanted: &HashMap<u128, Seq>,
    end: Seq,
    records: &mut Records,
) -> Result<(), EngineError> {
    for change in log.of_keys(wanted, end).await? {
        let whole = whole(task, &task.partition, change.clone()).await?;
        if let Some((digest, record)) = Record::of_theirs(change, task.theirs()) {
            records.entry(digest).or_default().push(Record { changes: whole, ..record });
        }
    }
    Ok(())
}

/// All pieces of a value of which `last` may be the last one.
async fn whole(task: &ApplyTask, partition: &PartitionId, last: Change) -> Result<Vec<Change>, EngineError> {
    let Some(part) = last.part.filter(|part| part.n > 0) else { return Ok(vec![last]) };
    let end = task.log.locate(partition, last.seq).await?;
    let first = task.log.bounds(partition).start;
    let mut window = PIECES_WINDOW.max(u64::from(part.n));
    loop {
        let start = Offset(end.0.saturating_sub(window).max(first.0));
        let mut pieces = Vec::new();
        walk_kept(task.log.as_ref(), partition, start, end, |_, change| {
            if change.key == last.key
                && let Some(piece) = change.part
            {
                if piece.n == 0 {
                    pieces.clear();
                }
                pieces.push(change);
            }
        })
        .await?;
        let begins = pieces.first().and_then(|piece: &Change| piece.part).is_some_and(|piece| piece.n == 0);
        if begins || start == first {
            pieces.push(last);
            return Ok(pieces);
        }
        window = window.saturating_mul(8);
    }
}

/// What brings the key to `content`.
fn written(redo: &Redo, records: &[Record], content: &Content) -> Vec<Change> {
    let mut written = Vec::new();
    if content.from_absent {
        let gone = Change::captured(Op::Delete, redo.key.clone(), None, Position::default(), 0);
        written.push(gone);
    }
    for record in content.then.iter().filter_map(|index| records.get(*index)) {
        written.extend(record.changes.iter().cloned());
    }
    written
}

/// For the conflict log: how those that met came out.
fn met(redo: &Redo, records: &[Record], content: &Content) -> Vec<Pair> {
    let place = |own: bool, seq: Seq| {
        records
            .iter()
            .position(|record| record.own == own && record.touched.first().is_some_and(|t| t.seq == seq))
    };
    let pair = |(theirs, ours): &(Seq, Seq)| {
        let at = place(false, *theirs)?;
        let stands = place(true, *ours).is_some_and(|ours| content.then.contains(&ours));
        let resolution = match (content.then.contains(&at), stands) {
            (true, true) => Resolution::Merged,
            (true, false) => Resolution::Replaced,
            (false, _) => Resolution::Kept,
        };
        Some(Pair { theirs: records.get(at)?.changes.last()?.clone(), ours: *ours, resolution })
    };
    redo.pairs.iter().filter_map(pair).collect()
}

impl ApplyTask {
    /// Keys of the target that are contested.
    pub(crate) fn redo_waits(&self) -> bool {
        self.shared.redo_waits.is_up() && !*self.paused.borrow() && self.own.is_some()
    }
}
