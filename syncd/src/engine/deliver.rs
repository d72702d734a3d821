//! Brings what applications handed over at a site into that site's own store. The applier does it, which also brings the
//! peer's changes there, so that of both it is known what came before what.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use causeway_core::{Batch, Change, Outcome, Position, Refused, Seq, Target};
use tracing::{trace, warn};

use super::apply::{ApplyTask, Reign};
use super::careful::unavailable;
use super::recent::{key_digest, touched_of_key};
use super::redo::{KEYS_MAX, leave_marker};
use super::redos::Redo;
use super::shared::lock;
use super::switch::{Part, is_off};
use super::{EngineError, shown};

/// When the peer changed the keys of the intake last, as far as what waits here may not have seen it.
#[derive(Debug, Default)]
pub(super) struct Lately {
    /// Of changes below nothing is known.
    from: Seq,
    last: HashMap<u128, Seq>,
    order: VecDeque<(Seq, u128)>,
}

/// Whether the peer changed a key that something waits for.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    No,
    /// By this change, or one before it.
    By(Seq),
    /// That is not known.
    Unknown,
}

/// Changes that are remembered, of some 60 bytes each.
const LATELY_MAX: usize = 1 << 16;

impl Lately {
    pub(super) fn from(from: Seq) -> Lately {
        Lately { from, ..Lately::default() }
    }

    /// The peer's change of the key goes into the store.
    pub(super) fn note(&mut self, seq: Seq, digest: u128) {
        self.last.insert(digest, seq);
        self.order.push_back((seq, digest));
        if self.order.len() > LATELY_MAX {
            let below = self.order.get(LATELY_MAX / 2).map_or(self.from, |(seq, _)| *seq);
            self.forget_below(below);
        }
    }

    fn forget_below(&mut self, low: Seq) {
        self.from = self.from.max(low);
        // What went in again stands behind newer ones, and is forgotten with them.
        while let Some((seq, digest)) = self.order.pop_front_if(|(seq, _)| *seq < low) {
            if self.last.get(&digest) == Some(&seq) {
                self.last.remove(&digest);
            }
        }
    }

    /// Whether the peer changed it in a way that was not known when it had been seen up to `seen`.
    fn met(&self, digest: u128, seen: Seq) -> Met {
        match self.last.get(&digest) {
            _ if is_off(Part::Delivered) => Met::No,
            _ if seen < self.from => Met::Unknown,
            Some(last) if *last >= seen => Met::By(*last),
            _ => Met::No,
        }
    }
}

impl ApplyTask {
    /// Something that was handed over may wait.
    pub(super) fn intake_waits(&self) -> bool {
        self.shared.intake_waits.is_up() && !*self.paused.borrow() && self.own.is_some()
    }
}

impl Reign {
    /// Notes which keys of the intake the peer's `changes` touch.
    pub(super) fn note_lately(&mut self, task: &ApplyTask, changes: &[Change]) {
        for change in changes.iter().filter(|change| change.op.is_data() && task.is_handed_over(&change.key))
        {
            self.lately.note(change.seq, key_digest(&change.key));
        }
    }

    /// Brings in a batch of what waits. Nothing is under way, neither before nor after.
    pub(super) async fn deliver(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
    ) -> Result<(), EngineError> {
        task.shared.intake_waits.take();
        let end = lock(&task.shared.recent).end();
        let wanted = {
            let undelivered = lock(&task.shared.undelivered);
            let low = Seq(task.shared.low.load(Ordering::SeqCst));
            self.lately.forget_below(undelivered.oldest().map_or(low, |(_, seen)| seen.min(low)));
            undelivered.next((self.marker.delivered, end), (task.items_max, task.bytes_max))
        };
        let Some(last) = wanted.last().copied() else { return Ok(()) };
        let mut found = match &mut self.own_log {
            Some(own_log) => own_log.fetch(&wanted).await?,
            None => return Ok(()),
        };
        let lost = wanted.iter().rfind(|seq| !found.contains_key(seq));
        lost.map_or(Ok(()), |lost| task.lost_own(lost.next()))?;
        let handed = wanted.iter().filter_map(|seq| found.remove(seq)).collect();
        self.deliver_these(task, target, handed, last.next()).await?;
        // There may be more.
        task.shared.intake_waits.raise();
        Ok(())
    }

    async fn deliver_these(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        handed: Vec<Change>,
        to: Seq,
    ) -> Result<(), EngineError> {
        let (mut sent, mut redos) = (Vec::new(), Vec::new());
        for change in &handed {
            trace!(partition = ?task.own, key = %shown(&change.key), seq = %change.seq, "delivered");
            let met = self.lately.met(key_digest(&change.key), change.seen);
            if met == Met::No {
                sent.push(change.clone());
                continue;
            }
            let touched = touched_of_key(change, task.ours()).map(|(_, touched)| touched).unwrap_or_default();
            let by = if let Met::By(theirs) = met { vec![(theirs, change.seq)] } else { Vec::new() };
            let redo = Redo {
                key: change.key.clone(),
                elements: touched.iter().map(|touch| touch.element).collect(),
                theirs_from: change.seen,
                pairs: by,
                place: Position::default(),
                is_sent: true,
            };
            // It is nobody's: the marker says what is delivered.
            redos.push((0, redo));
        }
        let mut pairs = Vec::new();
        for redos in redos.chunks(KEYS_MAX) {
            let (_, changes, met) = self.evaluated(task, redos).await?;
            sent.extend(changes);
            pairs.extend(met);
        }
        let before = self.marker.delivered;
        self.marker.delivered = to;
        let marker = self.marker_for_none(task);
        let batch = Batch { marker, changes: sent.clone(), decided: true, ..Batch::default() };
        target.send(batch).await?;
        match target.outcome().await? {
            Outcome::Committed { refused, .. } => {
                self.not_delivered(task, &handed, &sent, refused).await?;
                self.note(task, &pairs).await;
                Ok(())
            }
            Outcome::Rejected { transient: false, reason } => {
                self.marker.delivered = before;
                if handed.len() > 1 {
                    for change in handed {
                        let next = change.seq.next();
                        Box::pin(self.deliver_these(task, target, vec![change], next)).await?;
                    }
                    return Ok(());
                }
                let all = (0..handed.len()).map(|index| Refused { index, reason: reason.clone() }).collect();
                self.not_delivered(task, &handed, &handed, all).await?;
                self.marker.delivered = to;
                let marker = self.marker_for_none(task);
                leave_marker(task, target, marker).await
            }
            Outcome::Rejected { reason, .. } => {
                self.marker.delivered = before;
                task.shared.intake_waits.raise();
                Err(unavailable(task, "write what was handed over", reason))
            }
            Outcome::Touched => {
                self.marker.delivered = before;
                Err(EngineError::CaptureWaits)
            }
        }
    }

    /// Keeps what the store refused of what was handed over as dead letters.
    async fn not_delivered(
        &mut self,
        task: &ApplyTask,
        handed: &[Change],
        sent: &[Change],
        refused: Vec<Refused>,
    ) -> Result<(), EngineError> {
        let Some(own) = &task.own else { return Ok(()) };
        for Refused { index, reason } in refused {
            let Some(change) = sent.get(index) else { continue };
            // What is done again of the peer's was refused before.
            if !handed.iter().any(|handed| handed.seq == change.seq && handed.key == change.key) {
                continue;
            }
            warn!(partition = %own, seq = %change.seq, reason, "refused by the site's own store, kept as a dead letter");
            task.dead_letters.keep(&task.channel, own, task.site, change, &reason).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_did_lately_is_known_from_some_place_on() {
        let mut lately = Lately::from(Seq(10));
        assert_eq!(lately.met(1, Seq(9)), Met::Unknown);
        assert_eq!(lately.met(1, Seq(10)), Met::No);
        lately.note(Seq(12), 1);
        lately.note(Seq(13), 2);
        lately.note(Seq(15), 1);
        assert_eq!(lately.met(1, Seq(15)), Met::By(Seq(15)));
        assert_eq!(lately.met(1, Seq(16)), Met::No);
        assert_eq!(lately.met(2, Seq(11)), Met::By(Seq(13)));
        lately.forget_below(Seq(14));
        assert_eq!(lately.met(2, Seq(13)), Met::Unknown);
        assert_eq!(lately.met(2, Seq(14)), Met::No);
        assert_eq!(lately.met(1, Seq(14)), Met::By(Seq(15)));
        (0..LATELY_MAX as u64).for_each(|n| lately.note(Seq(20 + n), u128::from(n) + 9));
        assert!(lately.order.len() <= LATELY_MAX && lately.last.len() <= LATELY_MAX);
        assert_eq!(lately.met(1, Seq(20)), Met::Unknown);
    }
}
