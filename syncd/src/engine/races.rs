//! Capture's part of the rule for concurrent writes: where a transaction of the peer's changes passes in the
//! store's own stream, it is known which of the site's own writes stand before it that the decision did not know.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use causeway_core::{Change, Hlc, Key, Marker, Position, Seq, Site, Source};
use tokio::sync::oneshot;
use tracing::debug;

use super::capture::{Capture, CaptureTask};
use super::recent::{Recent, Touch, key_digest};
use super::redos::{Redo, Redos, Theirs, units_of};
use super::restart::walk_seqs;
use super::rule::{self, Applied, Race};
use super::shared::{Missed, lock};
use super::switch::{Part, is_off};
use super::{EngineError, shown};

/// Keys of which a state was asked for.
pub(super) struct Refresh {
    pub(super) keys: HashSet<Key>,
    /// Who waits; nobody for the keys that are shipped.
    pub(super) done: Option<oneshot::Sender<()>>,
    missed: Missed,
}

/// Keys whose state is to be told to the peer.
#[derive(Debug, Default)]
pub(super) struct Ships {
    open: BTreeMap<u128, Ship>,
}

#[derive(Debug)]
struct Ship {
    key: Key,
    /// From where the stream has to be read again to find out about it.
    place: Position,
    is_asked: bool,
}

impl Ships {
    pub(super) fn open(&mut self, key: &Key, place: &Position) {
        let ship = || Ship { key: key.clone(), place: place.clone(), is_asked: false };
        // What was read already may lack what came since.
        self.open.entry(key_digest(key)).or_insert_with(ship).is_asked = false;
    }

    fn is_open(&self, digest: u128) -> bool {
        self.open.contains_key(&digest)
    }

    /// What was asked for is not answered any more.
    pub(super) fn ask_again(&mut self) {
        self.open.values_mut().for_each(|ship| ship.is_asked = false);
    }
}

/// Keys asked for at once.
const SHIPS_MAX: usize = 256;

impl Capture {
    /// A transaction of ours has passed: opens what its races with own changes ask for, closes what it evaluated
    /// again, and forgets what nobody needs any more.
    pub(super) async fn check_races(
        &mut self,
        task: &CaptureTask,
        marker: &Marker,
        pos: &Position,
    ) -> Result<(), EngineError> {
        if task.peer.is_none() {
            return Ok(());
        }
        let sent = lock(&task.shared.on_the_way).pass(marker, task.theirs());
        if self.checked_to.as_ref().is_some_and(|to| to.history == pos.history && to.at >= pos.at) {
            return Ok(());
        }
        let is_sent_here = sent.is_some();
        let (units, low) = match sent {
            Some(sent) => {
                let recent = lock(&task.shared.recent);
                (sent.units.in_question(task.theirs(), |seen| recent.is_beyond(seen)), Some(sent.low))
            }
            None if lock(&task.shared.recent).is_empty() => (Vec::new(), None),
            // A log that cannot be read just now, as on a full disk, is tried again with the stream.
            None => units_in_log(task, marker).await.map_err(|error| later(task, error))?,
        };
        self.checked_to = Some(pos.clone());
        let recent = &mut *lock(&task.shared.recent);
        let redos = &mut *lock(&task.shared.redos);
        for theirs in &units {
            self.race(task, recent, redos, (marker, pos, is_sent_here), theirs)?;
        }
        for id in &marker.redone {
            self.close(recent, redos, *id, (marker.basis, pos.at))?;
        }
        let forgettable = Seq(task.shared.forgettable.load(Ordering::SeqCst));
        if let Some(low) = low {
            let undelivered = lock(&task.shared.undelivered).oldest().map_or(low, |(oldest, _)| oldest);
            recent.forget_below(low.min(forgettable).min(undelivered));
        }
        if redos.has_waiting() {
            task.shared.redo_waits.raise();
        }
        task.stats.contested.store((redos.len() + self.ships.open.len()) as u64, Ordering::SeqCst);
        Ok(())
    }

    /// The stream begins anew: what was written where it was lost stands in no log, so that nothing can be
    /// evaluated from them. The snapshot tells what the keys hold.
    pub(super) fn forget_races(&mut self, task: &CaptureTask) {
        let ships = std::mem::take(&mut self.ships);
        let recent = &mut *lock(&task.shared.recent);
        recent.stream_is_new();
        let redos = lock(&task.shared.redos).clear();
        redos.into_iter().chain(ships.open.into_keys()).for_each(|digest| recent.release(digest));
    }

    fn race(
        &mut self,
        task: &CaptureTask,
        recent: &mut Recent,
        redos: &mut Redos,
        (marker, pos, is_sent_here): (&Marker, &Position, bool),
        theirs: &Theirs,
    ) -> Result<(), EngineError> {
        let touch = theirs.touch;
        let ours = recent.since(theirs.digest, touch.seen)?;
        if ours.is_empty() {
            return Ok(());
        }
        let applied = Applied {
            touch,
            dropped: marker.dropped.contains(&touch.seq),
            on_top: theirs.on_top,
            at: pos.at,
            keep_alive: task.keep_alive,
            basis: if is_off(Part::Basis) { Seq(u64::MAX) } else { marker.basis },
        };
        for race in rule::races(&applied, &ours, task.site == Site::First) {
            debug!(partition = %task.partition, key = %shown(&theirs.key), theirs = %touch.seq, ?race, "race");
            match race {
                Race::Redo { .. } if is_off(Part::Redo) => {}
                Race::Redo { element, ours } => redos.open(Redo {
                    key: theirs.key.clone(),
                    // The process that sent it may have evaluated the key, too, and more of it than is known here.
                    elements: [element].into_iter().chain((!is_sent_here).then_some(None)).collect(),
                    theirs_from: touch.seq.min(ours.seen),
                    pairs: vec![(touch.seq, ours.seq)],
                    place: self.passed.clone(),
                    is_sent: false,
                }),
                Race::Ship if is_off(Part::Ship) => {}
                Race::Ship => self.ships.open(&theirs.key, &self.passed),
            }
        }
        // After a restart the same races have to be found again, also those of a ship.
        if redos.is_open(theirs.digest) || self.ships.is_open(theirs.digest) {
            recent.keep(theirs.digest);
        }
        Ok(())
    }

    /// A redo has passed: what we wrote before it and it did not know was overwritten.
    fn close(
        &mut self,
        recent: &mut Recent,
        redos: &mut Redos,
        id: u64,
        (basis, at): (Seq, u64),
    ) -> Result<(), EngineError> {
        let Some(digest) = redos.digest(id) else { return Ok(()) };
        let is_unknown = |own: &&Touch| own.at < at;
        let since = recent.since(digest, basis)?;
        let unknown: Vec<Touch> = since.iter().filter(is_unknown).copied().collect();
        let Some(mut redo) = redos.close(id) else { return Ok(()) };
        if let Some(oldest) = unknown.iter().map(|own| own.seen).min()
            && !is_off(Part::RedoRace)
        {
            redo.elements.extend(unknown.iter().map(|own| own.element));
            redo.theirs_from = redo.theirs_from.min(oldest);
            redo.is_sent = false;
            redos.open(redo);
        } else if !redos.is_open(digest) && !self.ships.is_open(digest) {
            recent.release(digest);
        }
        Ok(())
    }

    /// Asks the source for states; `done` is told once they are durable, but for those that are `missed`.
    pub(super) async fn refresh_keys(
        &mut self,
        source: &mut dyn Source,
        keys: Vec<Key>,
        done: Option<oneshot::Sender<()>>,
        missed: Missed,
    ) -> Result<(), EngineError> {
        let asked = Refresh { keys: keys.iter().cloned().collect(), done, missed };
        let token = source.refresh(keys).await?;
        self.refreshes.insert(token, asked);
        Ok(())
    }

    /// Asks for the states of what is to be shipped and nothing is wrong with.
    pub(super) async fn ship(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
    ) -> Result<(), EngineError> {
        if self.ships.open.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = {
            let redos = lock(&task.shared.redos);
            let contested = |digest: &u128| redos.is_open(*digest) && !is_off(Part::ShipWaits);
            let waits = |digest: &u128| contested(digest) || task.is_undelivered(*digest);
            let ready = self.ships.open.iter().filter(|(digest, ship)| !ship.is_asked && !waits(digest));
            ready.map(|(_, ship)| ship.key.clone()).take(SHIPS_MAX).collect()
        };
        if keys.is_empty() {
            return Ok(());
        }
        let digests: Vec<u128> = keys.iter().map(key_digest).collect();
        self.refresh_keys(source, keys, None, Missed::default()).await?;
        for digest in digests {
            self.ships.open.entry(digest).and_modify(|ship| ship.is_asked = true);
        }
        Ok(())
    }

    /// How much of the peer's log a key has seen at this place, and all keys.
    pub(super) fn seen(&self, task: &CaptureTask, key: &Key) -> (Seq, Seq) {
        if is_off(Part::Seen) {
            return (self.low.min(Seq(self.point.settled)), self.low);
        }
        match task.peer {
            Some(_) => lock(&task.shared.on_the_way).seen(key, self.low),
            None => (self.low, self.low),
        }
    }

    /// Whether a key does not hold what it should: it has to be evaluated again, or something waits to be written there.
    pub(super) fn is_contested(&self, task: &CaptureTask, key: &Key) -> bool {
        let digest = key_digest(key);
        task.is_undelivered(digest)
            || task.peer.is_some() && lock(&task.shared.redos).is_open(digest) && !is_off(Part::ShipWaits)
    }

    /// Whether `state` says what the key holds: not where it has to be evaluated again. Then it is asked for
    /// later. Nor where our own store is to get it back from the peer, whose state of it then says all.
    pub(super) fn may_tell(&mut self, task: &CaptureTask, state: &Change) -> bool {
        if state.uncertain && lock(&task.shared.put_back).contains(&key_digest(&state.key)) {
            return false;
        }
        if state.uncertain && self.is_contested(task, &state.key) {
            let asked = self.refreshes.values_mut().filter(|asked| asked.keys.contains(&state.key));
            asked.for_each(|asked| lock(&asked.missed).push(state.key.detached()));
            self.ships.open.entry(key_digest(&state.key)).and_modify(|ship| ship.is_asked = false);
            return false;
        }
        true
    }

    /// The key whose ship `change` is what was asked for, by its digest.
    pub(super) fn answers(&self, change: &Change) -> Option<u128> {
        let is_whole = change.part.is_none_or(|part| part.last);
        if !change.was_asked_for() || !is_whole {
            return None;
        }
        let digest = key_digest(&change.key);
        self.ships.open.get(&digest).filter(|ship| ship.is_asked).map(|_| digest)
    }

    /// The state of a key that was to be shipped has its place in the log.
    pub(super) fn shipped(&mut self, task: &CaptureTask, digest: u128) {
        self.ships.open.remove(&digest);
        if !lock(&task.shared.redos).is_open(digest) {
            lock(&task.shared.recent).release(digest);
        }
    }

    /// The version of a state that is read again: of our newest write of the whole key that still stands.
    pub(super) fn whole_version(&self, task: &CaptureTask, key: &Key) -> Result<Hlc, EngineError> {
        if is_off(Part::StateVersion) {
            return Ok(self.clock.last());
        }
        let ours = lock(&task.shared.recent).since(key_digest(key), Seq(0))?;
        Ok(Hlc(rule::whole_version(&ours).place))
    }

    /// All that a restart reads again has passed, and nothing is to be evaluated or told again.
    pub(super) fn nothing_is_open(&self, task: &CaptureTask) -> bool {
        self.is_beyond_what_is_held() && self.ships.open.is_empty() && lock(&task.shared.redos).is_empty()
    }

    /// How far a restart may read on.
    pub(super) fn nothing_open_before(&self, task: &CaptureTask) -> Position {
        if is_off(Part::RestartPoint) {
            return self.last.clone();
        }
        let redos = lock(&task.shared.redos);
        // What is read again may still open something.
        let places =
            redos.places().chain(self.ships.open.values().map(|ship| &ship.place)).chain([&self.passed]);
        let places = places.filter(|place| !place.history.is_empty() && place.at < self.last.at);
        let oldest = places.min_by_key(|place| place.at).unwrap_or(&self.last);
        // One may be of the primary that was: the replica that took over counts on, and has that stretch as its own.
        Position { history: self.last.history.clone(), ..oldest.clone() }
    }
}

fn later(task: &CaptureTask, error: EngineError) -> EngineError {
    let EngineError::Log(error) = error else { return error };
    EngineError::unavailable("read in the log what was applied", &task.channel, error.to_string())
}

/// What a transaction touched that this process did not send, from the peer's log.
async fn units_in_log(
    task: &CaptureTask,
    marker: &Marker,
) -> Result<(Vec<Theirs>, Option<Seq>), EngineError> {
    let (mut units, mut low) = (Vec::new(), None);
    let Some(peer) = task.peer.as_ref().filter(|_| marker.from < marker.applied) else {
        return Ok((units, low));
    };
    walk_seqs(task.log.as_ref(), peer, marker.from..marker.applied, |change| {
        low = Some(change.low);
        units.extend(units_of(&[change], task.theirs(), true));
    })
    .await?;
    Ok((units, low))
}
