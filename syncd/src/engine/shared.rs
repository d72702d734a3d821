//! What capture and applier of one site know of each other, and what status shows of a direction.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Behind, Error as StoreError, ErrorKind, Key, Marker, Rereads, Seq, Source, Token};
use tokio::sync::{Notify, OwnedMutexGuard, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::EngineError;
use super::intake::Undelivered;
use super::produced::TopicState;
use super::recent::Recent;
use super::redos::{OnTheWay, Redos};
use super::restart::SnapshotPoint;
use crate::status::Lag;

/// Locks whatever happened to another holder: what is inside is always whole between two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between the capture and the applier of one site.
#[derive(Debug)]
pub(crate) struct SiteShared {
    /// Own changes that the peer may not have seen. Locked before the two below.
    pub(crate) recent: Mutex<Recent>,
    /// The peer's changes on their way into the store.
    pub(crate) on_the_way: Mutex<OnTheWay>,
    pub(crate) redos: Mutex<Redos>,
    /// There is a redo to be sent.
    pub(crate) redo_waits: Flag,
    /// What the applier no longer needs to know of our own changes lies below.
    pub(crate) forgettable: AtomicU64,
    /// What applications handed over and the store does not hold yet.
    pub(crate) undelivered: Mutex<Undelivered>,
    /// Some of it may be durable.
    pub(crate) intake_waits: Flag,
    /// Of the newest marker that passed: what was handed over below is in the store.
    pub(crate) delivered: AtomicU64,
    pub(crate) gate: Gate,
    pub(crate) tokens: Tokens,
    /// The site's own `FLUSHALL` took the marker with it: the applier writes it again.
    pub(crate) marker_lost: Flag,
    /// Capture has its first position; before that nothing is applied into the store.
    pub(crate) capture_ready: Flag,
    /// The site's store, as its connector names the one that was captured last.
    pub(crate) store: Mutex<Bytes>,
    /// Capture went on where it had stopped: what the log says of the marker holds.
    pub(crate) unbroken: AtomicBool,
    pub(crate) backlog: Backlog,
    /// The highest `applied` that capture saw pass in the site's own stream, or recovered from the log.
    pub(crate) low: AtomicU64,
    /// Of the marker that passed last: what the store holds for good.
    pub(crate) settled: AtomicU64,
    /// Of this site's log, what cannot be read below this seq is known to be lost, and a snapshot was asked for.
    pub(crate) lost_below: AtomicU64,
    /// What the peer asked for below this seq of its log, if that was a snapshot, was handed on to capture. It stays
    /// unanswered in the store's eyes until the marker passes it, and capture lets nobody apply while it opens anew.
    pub(crate) snapshots_asked: AtomicU64,
    /// Keys, by their digests, that a change of the whole store took away though it had not seen them, until the peer's
    /// state of them is there. What the store holds of them until then is no answer to the peer.
    pub(crate) put_back: Mutex<HashSet<u128>>,
    /// The way to this site's capture.
    pub(crate) ask: Asks,
}

/// Keys that could not be told, as they do not hold what they should: to be asked for again.
pub(crate) type Missed = Arc<Mutex<Vec<Key>>>;

/// What a site's capture can be asked for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// States of `keys`; answered once they are durable in the log, but for those of the `missed`.
    Refresh { keys: Vec<Key>, done: oneshot::Sender<()>, missed: Missed },
    /// A snapshot anew, with a sweep; `gap` if it closes one.
    Snapshot { gap: bool },
    /// A restart point, which says whether the channel is paused; answered once it is durable.
    Paused { done: oneshot::Sender<()> },
    /// A `refresh` of `keys` in the log, by which the peer is asked for their states; answered once it is durable.
    Peer { keys: Vec<Key>, done: oneshot::Sender<()> },
}

/// The way to a capture.
#[derive(Debug, Clone)]
pub(crate) enum Asks {
    /// It runs in this process.
    Here(mpsc::Sender<Ask>),
    /// It runs in another one: its peer, which this reaches, asks for it in the log.
    ByLog(mpsc::Sender<Ask>),
}

/// Before what was not answered is asked again.
pub(crate) const ASKED_AGAIN: Duration = Duration::from_millis(200);

impl Asks {
    /// As [`Ask::Refresh`]; which of them have to be asked for again: all of them where nobody answers. By the log it is
    /// answered once the question is durable, as whoever reads it answers it.
    pub(crate) async fn states(&self, keys: Vec<Key>) -> Vec<Key> {
        let (all, missed) = (keys.clone(), Missed::default());
        let (done, durable) = oneshot::channel();
        let sent = match self {
            Asks::Here(capture) => {
                capture.send(Ask::Refresh { keys, done, missed: Arc::clone(&missed) }).await
            }
            Asks::ByLog(capture) => capture.send(Ask::Peer { keys, done }).await,
        };
        if sent.is_ok() && durable.await.is_ok() { std::mem::take(&mut *lock(&missed)) } else { all }
    }

    /// As [`states`](Asks::states), asked again where they are not told, as while one of the keys is evaluated again or capture is
    /// opened anew; whether that came to an end in time.
    pub(crate) async fn states_within(&self, mut keys: Vec<Key>, at_most: Duration) -> bool {
        let told = async {
            loop {
                keys = self.states(std::mem::take(&mut keys)).await;
                if keys.is_empty() {
                    return;
                }
                tokio::time::sleep(ASKED_AGAIN).await;
            }
        };
        tokio::time::timeout(at_most, told).await.is_ok()
    }

    /// As [`Ask::Paused`]; whether it was answered.
    pub(crate) async fn paused(&self) -> bool {
        let (Asks::Here(capture) | Asks::ByLog(capture)) = self;
        let (done, durable) = oneshot::channel();
        capture.send(Ask::Paused { done }).await.is_ok() && durable.await.is_ok()
    }

    /// As [`Ask::Snapshot`], once there is room for the question. By the log it may be lost all the same.
    pub(crate) async fn snapshot(&self, gap: bool) -> Result<(), EngineError> {
        let (capture, ask) = self.snapshot_ask(gap);
        capture.send(ask).await.map_err(|_| EngineError::Stopped)
    }

    /// As [`snapshot`](Asks::snapshot), where that can be asked for at once.
    pub(crate) fn try_snapshot(&self, gap: bool) -> Result<(), EngineError> {
        let (capture, ask) = self.snapshot_ask(gap);
        let full =
            || EngineError::unavailable("ask for a snapshot", "capture", "it does not answer".to_owned());
        capture.try_send(ask).map_err(|_| full())
    }

    fn snapshot_ask(&self, gap: bool) -> (&mpsc::Sender<Ask>, Ask) {
        match self {
            Asks::Here(capture) => (capture, Ask::Snapshot { gap }),
            Asks::ByLog(capture) => {
                (capture, Ask::Peer { keys: vec![Key::none()], done: oneshot::channel().0 })
            }
        }
    }
}

impl SiteShared {
    pub(crate) fn new(ask: Asks, recent: Recent) -> Self {
        SiteShared {
            recent: Mutex::new(recent),
            on_the_way: Mutex::default(),
            redos: Mutex::default(),
            redo_waits: Flag::default(),
            forgettable: AtomicU64::new(0),
            undelivered: Mutex::default(),
            intake_waits: Flag::default(),
            delivered: AtomicU64::new(0),
            gate: Gate::default(),
            tokens: Tokens::default(),
            marker_lost: Flag::default(),
            capture_ready: Flag::default(),
            store: Mutex::default(),
            unbroken: AtomicBool::new(false),
            backlog: Backlog::default(),
            low: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            lost_below: AtomicU64::new(0),
            snapshots_asked: AtomicU64::new(0),
            put_back: Mutex::default(),
            ask,
        }
    }
}

/// How far the site's capture is behind its store. Nobody's task sets a flag here: a capture that is stuck
/// could not, just when it matters.
#[derive(Default)]
pub(crate) struct Backlog {
    behind: Mutex<Option<Behind>>,
    rereads: Mutex<Option<Rereads>>,
    half_full: AtomicBool,
}

impl std::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backlog({:?})", self.behind())
    }
}

/// Of what the store keeps for capture: applying waits while more is not read.
const BEHIND_MAX: f64 = 0.5;
/// And goes on below this, so that it doesn't stop and go with every batch.
const BEHIND_AGAIN: f64 = 0.4;

impl Backlog {
    /// Capture: what tells it from now on.
    pub(crate) fn told_by(&self, source: &dyn Source) {
        *lock(&self.behind) = source.behind();
        *lock(&self.rereads) = source.rereads();
    }

    /// Keys that were written, of which the log does not know yet: they are being read again.
    pub(crate) fn rereads(&self) -> u64 {
        let rereads = lock(&self.rereads).clone();
        rereads.map_or(0, |rereads| rereads())
    }

    /// How much of what the store keeps for capture it has not read; `None`: it cannot be told.
    pub(crate) fn behind(&self) -> Option<f64> {
        let behind = lock(&self.behind).clone();
        behind.and_then(|behind| behind())
    }

    /// Capture is behind by half of what its store keeps for it, or was and has not caught up by enough.
    pub(crate) fn is_half_full(&self) -> bool {
        let max = if self.half_full.load(Ordering::SeqCst) { BEHIND_AGAIN } else { BEHIND_MAX };
        let half_full = self.behind().is_some_and(|behind| behind > max);
        self.half_full.store(half_full, Ordering::SeqCst);
        half_full
    }
}

/// Something that is so from a moment on, and can be waited for.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    set: AtomicBool,
    changed: Notify,
}

impl Flag {
    pub(crate) fn raise(&self) {
        self.set.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Takes it down; says whether it was up.
    pub(crate) fn take(&self) -> bool {
        self.set.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    /// Waits for it or for `stop`; whether it is up.
    pub(crate) async fn wait_or(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            () = self.wait() => true,
            () = stop.cancelled() => false,
        }
    }

    pub(crate) async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_up() {
                return;
            }
            changed.await;
        }
    }
}

/// Keeps the applier out while capture opens the stream anew, so that a snapshot holds exactly what the
/// marker says. Whoever applies holds the lock. Inside is the marker as it was read from the store after
/// capture had asked for it; nothing, as soon as something may be under way.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    known: Arc<tokio::sync::Mutex<Option<KnownMarker>>>,
    wanted: Flag,
}

/// What a store holds: a marker, or none.
pub(crate) type KnownMarker = Option<Marker>;

impl Gate {
    /// Capture: waits until nothing is under way into the store, and until somebody has read its marker if
    /// `applied_into` says that there is one who applies. The guard holds it.
    pub(crate) async fn hold(&self, applied_into: bool) -> tokio::sync::MutexGuard<'_, Option<KnownMarker>> {
        loop {
            self.wanted.raise();
            let guard = self.known.lock().await;
            if guard.is_some() || !applied_into {
                self.wanted.take();
                return guard;
            }
            drop(guard);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Applier: may apply while it holds this.
    pub(crate) async fn enter(&self) -> OwnedMutexGuard<Option<KnownMarker>> {
        let mut guard = Arc::clone(&self.known).lock_owned().await;
        *guard = None;
        guard
    }

    pub(crate) fn wanted(&self) -> bool {
        self.wanted.is_up()
    }

    /// Waits until capture wants it.
    pub(crate) async fn until_wanted(&self) {
        self.wanted.wait().await;
    }
}

/// Tokens that capture saw pass in the stream.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    passed: Mutex<HashSet<Token>>,
    changed: Notify,
}

/// Nobody waits for more tokens than this at once; older ones were given up.
const TOKENS_KEPT: usize = 4096;

impl Tokens {
    pub(crate) fn pass(&self, token: Token) {
        let mut passed = lock(&self.passed);
        if passed.len() >= TOKENS_KEPT {
            passed.clear();
        }
        passed.insert(token);
        drop(passed);
        self.changed.notify_waiters();
    }

    /// Whether `token` passes within `at_most`.
    pub(crate) async fn wait(&self, token: Token, at_most: Duration) -> bool {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if lock(&self.passed).remove(&token) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(at_most, wait).await.is_ok()
    }
}

/// Of one direction, what only grows in a process's life.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Changes that were written at the origin itself, though they are to be handed over.
    pub(crate) past_intake: AtomicU64,
    /// Data changes appended to the log.
    pub(crate) captured: AtomicU64,
    /// Data changes applied or dropped by rule.
    pub(crate) applied: AtomicU64,
    pub(crate) gaps_total: AtomicU64,
    /// Left out of the stream where no snapshot counts it.
    pub(crate) left_out_of_stream: AtomicU64,
}

/// What status and metrics show of one direction.
#[derive(Debug, Default)]
pub(crate) struct DirectionStats {
    pub(crate) counts: Arc<Counts>,
    /// One above the seq of the newest data change in the log.
    pub(crate) data_end: AtomicU64,
    /// Every seq below is applied.
    pub(crate) applied_below: AtomicU64,
    /// Keys of the origin that have to be evaluated again or shipped because of concurrent writes.
    pub(crate) contested: AtomicU64,
    /// It was found out what is applied.
    pub(crate) applied_known: AtomicBool,
    pub(crate) waiting: Mutex<Waiting>,
    /// Keys that somebody was asked for and that are not in a log yet.
    pub(crate) asked: AtomicU64,
    /// Batches without an answer.
    pub(crate) under_way: AtomicU64,
    /// Where the newest restart point stands in the log: retention stops there.
    pub(crate) position_offset: AtomicU64,
    /// What that one says has to be remembered.
    pub(crate) remembered_from: AtomicU64,
    /// Everything before this place of the log is settled.
    pub(crate) settled_offset: AtomicU64,
    /// Every seq below is settled, as the target's own log tells: where another process applies.
    pub(crate) settled_below: AtomicU64,
    /// When the oldest append was begun that is not durable, in milliseconds since 1970; 0: there is none.
    pub(crate) appending_since: AtomicU64,
    pub(crate) capture_connected: AtomicBool,
    pub(crate) apply_connected: AtomicBool,
    /// What the source does less well than it could.
    pub(crate) warning: Mutex<Option<String>>,
    /// Of the origin's intake topic.
    pub(crate) topic: Mutex<TopicState>,
    pub(crate) snapshot: Mutex<Option<SnapshotPoint>>,
    pub(crate) held: Mutex<Option<String>>,
    /// Found before the channel starts; names its sites itself.
    pub(crate) check_error: Mutex<Option<Trouble>>,
    /// Of the origin.
    pub(crate) capture_error: Mutex<Option<Trouble>>,
    /// Of the target.
    pub(crate) apply_error: Mutex<Option<Trouble>>,
    /// Those that were named, at most [`LEFT_OUT_NAMED`] of them.
    pub(crate) left_out: Mutex<Vec<(Key, String)>>,
}

/// Keys left out that are named, each once.
pub(crate) const LEFT_OUT_NAMED: usize = 1000;

/// An append that takes this long waits for something: a broker, or the disk.
const APPEND_WAITS: Duration = Duration::from_secs(2);

/// What keeps a task from going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// The error's text.
    pub(crate) text: String,
    /// A person has to mend it.
    pub(crate) setup: bool,
}

impl Trouble {
    /// Of a task that tries again by itself: what happened, and what to do.
    pub(crate) fn of(error: &StoreError) -> Trouble {
        let advice = match error.kind() {
            ErrorKind::Retry => "; it is tried again: see that this server runs and lets us in",
            ErrorKind::Gap => "; a snapshot does that by itself",
            ErrorKind::Fenced => "; stop one of the two",
            // They say it themselves.
            ErrorKind::Setup | ErrorKind::Refused => "",
        };
        Trouble { text: format!("{error}{advice}"), setup: error.kind() == ErrorKind::Setup }
    }

    /// The server takes no changes just now, for a `reason` that lies in none of them.
    pub(crate) fn waits(reason: &str) -> Trouble {
        let text = format!("the server takes no changes: {reason}; they wait until that is mended there");
        Trouble { text, setup: false }
    }

    /// Of a task that ended.
    pub(crate) fn ended(error: &EngineError) -> Trouble {
        let text = format!("{error}; it does not go on by itself: mend that, then restart syncd");
        Trouble { text, setup: true }
    }
}

/// When the changes were made that stand in a log and are not applied: of each append the time of its first
/// one, so that an age is never told too small.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// From this seq on, they were made at this time or later, in milliseconds since 1970.
    since: VecDeque<(Seq, u64)>,
    /// Only one append in so many is told apart, and those since the last one that was.
    every: usize,
    passed: usize,
}

/// Appends that are told apart.
const WAITING_MAX: usize = 1024;

impl Waiting {
    /// An append begins with `seq`, made at `time`.
    pub(crate) fn note(&mut self, seq: Seq, time: u64) {
        self.passed += 1;
        if self.passed < self.every && !self.since.is_empty() {
            return;
        }
        self.passed = 0;
        if self.since.len() >= WAITING_MAX {
            // Each one that goes counts as old as the one before it.
            let mut n = 0;
            self.since.retain(|_| {
                n += 1;
                n % 2 == 1
            });
            self.every = self.every.max(1) * 2;
        }
        self.since.push_back((seq, time));
    }

    /// What waits begins with `seq`, made at `time`: older than all that was noted here.
    pub(crate) fn begins(&mut self, seq: Seq, time: u64) {
        if self.since.front().is_none_or(|(first, _)| *first > seq) {
            self.since.push_front((seq, time));
        }
    }

    /// When the oldest of those was made that are not below `applied`.
    fn oldest(&mut self, applied: Seq) -> Option<u64> {
        while self.since.get(1).is_some_and(|(seq, _)| *seq <= applied) {
            self.since.pop_front();
        }
        if self.since.len() < 2 {
            self.every = 1;
        }
        self.since.front().map(|(_, time)| *time)
    }
}

impl DirectionStats {
    /// Changes in the log that are not applied, and keys of the origin that are still contested.
    pub(crate) fn lag_changes(&self) -> u64 {
        let (end, applied) =
            (self.data_end.load(Ordering::SeqCst), self.applied_below.load(Ordering::SeqCst));
        end.saturating_sub(applied) + self.contested.load(Ordering::SeqCst)
    }

    /// Notes that everything below `applied` is applied.
    pub(crate) fn applied_to(&self, applied: Seq) {
        self.applied_below.store(applied.0, Ordering::SeqCst);
        self.applied_known.store(true, Ordering::SeqCst);
    }

    /// How far the target is behind, at `now` in milliseconds since 1970. `rereads`: keys that were written, and are in no log
    /// yet, and what was handed over and is not in the origin's own store.
    pub(crate) fn lag(&self, now: u64, rereads: u64) -> Lag {
        let known = self.applied_known.load(Ordering::SeqCst);
        // What the origin did while nobody listened is not known, nor what waits there for the log.
        let listens = self.capture_connected.load(Ordering::SeqCst) && self.append_waits(now).is_none();
        let changes = (known && listens).then(|| self.lag_changes() + rereads);
        let waits = known && self.lag_changes() > 0;
        let oldest = lock(&self.waiting).oldest(Seq(self.applied_below.load(Ordering::SeqCst)));
        let age = || oldest.map(|oldest| now.saturating_sub(oldest) as f64 / 1000.0);
        Lag { changes, seconds: if waits { age() } else { changes.map(|_| 0.0) } }
    }

    /// For how long the log has not taken what was captured, if it should have.
    pub(crate) fn append_waits(&self, now: u64) -> Option<Duration> {
        let since = self.appending_since.load(Ordering::SeqCst);
        let waited = Duration::from_millis(now.saturating_sub(since));
        (since > 0 && waited >= APPEND_WAITS).then_some(waited)
    }

    /// Notes what a restart point in the log says of the snapshot.
    pub(crate) fn snapshot_told(&self, told: Option<&SnapshotPoint>) {
        *lock(&self.snapshot) = told.cloned();
    }

    /// The snapshot, as long as its rows are not all applied, or the sweep after it is not done: the sweep
    /// comes before the `position` record that ends the snapshot is settled.
    pub(crate) fn in_snapshot(&self) -> Option<SnapshotPoint> {
        let snapshot = lock(&self.snapshot).clone()?;
        let applied = self.applied_below.load(Ordering::SeqCst);
        match snapshot.end {
            Some(end) if applied > end => None,
            _ => Some(snapshot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_what_waits_is_never_told_too_small() {
        let stats = DirectionStats::default();
        assert_eq!(stats.lag(0, 0), Lag { changes: None, seconds: None });
        stats.applied_to(Seq(0));
        stats.capture_connected.store(true, Ordering::SeqCst);
        assert_eq!(stats.lag(0, 0), Lag { changes: Some(0), seconds: Some(0.0) });
        // An append of ten changes each second.
        for n in 0..10_000 {
            lock(&stats.waiting).note(Seq(n * 10), n * 1000);
        }
        stats.data_end.store(100_000, Ordering::SeqCst);
        let now = 10_000_000;
        for applied in (0..100_000).step_by(7) {
            stats.applied_to(Seq(applied));
            let (told, exact) = (stats.lag(now, 0).seconds.unwrap(), (10_000 - applied / 10) as f64);
            assert!((exact..exact + 32.0).contains(&told), "{applied}: {told}, and it is {exact}");
        }
        assert!(lock(&stats.waiting).since.len() <= WAITING_MAX);
        // The target came back older than it was.
        lock(&stats.waiting).begins(Seq(5_000), 500_000);
        stats.applied_to(Seq(5_000));
        assert_eq!(stats.lag(now, 0).seconds, Some(9_500.0));
        // What waits here is older than what may wait in the store.
        stats.capture_connected.store(false, Ordering::SeqCst);
        assert_eq!(stats.lag(now, 0), Lag { changes: None, seconds: Some(9_500.0) });
    }

    #[test]
    fn while_the_log_takes_nothing_it_is_not_said_that_nothing_waits() {
        let stats = DirectionStats::default();
        stats.applied_to(Seq(0));
        stats.capture_connected.store(true, Ordering::SeqCst);
        stats.appending_since.store(10_000, Ordering::SeqCst);
        assert_eq!(stats.lag(11_000, 0), Lag { changes: Some(0), seconds: Some(0.0) });
        assert_eq!(stats.lag(15_000, 0), Lag { changes: None, seconds: None });
        assert_eq!(stats.append_waits(15_000), Some(Duration::from_secs(5)));
    }
}
