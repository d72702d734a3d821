//! Apply: carries the peer's log into one site's store.
//!
//! Batches are sent one behind the other without waiting; the marker in the store is the truth after any
//! break. `read`s only fill in what is missing. What replaces a key that the site may have written itself,
//! a `state` above all, goes the careful way (`careful.rs`).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use causeway_core::{
    Batch, Change, Connector, DdlPolicy, Hlc, Key, Marker, Op, Outcome, Refused, Seq, Site, Target, Term,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, trace, warn};

use super::careful::{unavailable, watch as watch_keys};
use super::conflicts::Conflicts;
use super::dead_letters::DeadLetters;
use super::decide::{Pair, Plan};
use super::deliver::Lately;
use super::lookback::Lookback;
use super::order::Side;
use super::pauses::{Answers, Begun};
use super::reader::Reader;
use super::recent::key_digest;
use super::redos::{SentUnits, Units};
use super::restart::{
    SnapshotPoint, first_data, is_damaged, recover, restart_point, touched_keys, walk_kept,
};
use super::shared::{ASKED_AGAIN, Asks, DirectionStats, KnownMarker, SiteShared, Trouble, lock};
use super::{BACKOFF_MIN, Backoff, EngineError, shown, store_unavailable};
use crate::config::Intake;
use crate::log::{Error as LogError, Log, Offset, PartitionId};
use crate::owners::Owners;
use crate::status::{HeldAnswer, rfc3339};

/// What the applier into one site needs to know of its channel.
pub(crate) struct ApplyTask {
    pub(crate) channel: String,
    /// The target.
    pub(crate) site: Site,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) log: Arc<dyn Log>,
    /// The peer's log.
    pub(crate) partition: PartitionId,
    /// The target site's own log, where the channel goes both ways.
    pub(crate) own: Option<PartitionId>,
    /// The target site's.
    pub(crate) shared: Arc<SiteShared>,
    /// The way to the origin's capture.
    pub(crate) origin: Asks,
    pub(crate) stats: Arc<DirectionStats>,
    /// Of the other direction, where another process applies: the peer's log tells how far it is.
    pub(crate) reverse: Option<Arc<DirectionStats>>,
    /// A key that both sites had before: the origin's wins.
    pub(crate) origin_wins: bool,
    /// The snapshot names both sites: what the origin lacks is gone there.
    pub(crate) sweep_all: bool,
    pub(crate) items_max: usize,
    pub(crate) bytes_max: usize,
    /// Of each site's log, kept for what is done or put together again.
    pub(crate) lookback_bytes_max: usize,
    /// The channel's `keep_alive`.
    pub(crate) keep_alive: bool,
    /// What applications hand over.
    pub(crate) intake: Option<Arc<Intake>>,
    /// Where the channel's `conflict` is `owner`.
    pub(crate) owners: Option<Arc<Owners>>,
    /// Keys that a pass of a sweep holds.
    pub(crate) sweep_keys_max: usize,
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) answers: mpsc::Receiver<HeldAnswer>,
    /// Those that were given before.
    pub(crate) answered: Arc<Mutex<Answers>>,
    pub(crate) begun: Arc<Mutex<Begun>>,
    pub(crate) stop: CancellationToken,
    pub(crate) dead_letters: Arc<DeadLetters>,
    pub(crate) conflicts: Arc<Conflicts>,
    pub(crate) apply_seconds: metrics::Histogram,
}

/// Batches under way at once: enough to fill a line of some milliseconds.
const UNDER_WAY_MAX: usize = 8;
/// A server that cannot take a batch just now is asked again this often.
const REJECTED_WAIT: Duration = Duration::from_secs(1);
/// One that has ended looks for the marker this often, where it does not find it.
const ENDED_WAIT: Duration = Duration::from_secs(1);
/// Of the log, at a time, while something in it is waited for.
const READ_BYTES: usize = 1 << 20;
/// By the log a snapshot is asked for again after this time: whoever had read it may have died.
const SNAPSHOT_ASKED_AGAIN: Duration = Duration::from_secs(60);
/// How often it is seen whether the target's own capture has caught up.
const CAUGHT_UP_WAIT: Duration = Duration::from_millis(100);
/// While so many keys are asked for and not in the log, no more is taken from it.
const ASKED_MAX: usize = 100_000;
/// If more of a batch of reads than one in this many exist already, the careful way is taken at once.
const EXISTING_RARE: usize = 16;

/// How a change goes into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As it is.
    Plain,
    /// Where the key does not exist.
    Fill,
    /// Watched and decided.
    Careful,
    /// Not before an operator says so.
    Held,
    /// The log's own; goes along with any other.
    Note,
}

impl Way {
    /// How a batch goes that holds both, if there is a way.
    fn with(self, other: Way) -> Option<Way> {
        match (self, other) {
            (Way::Note, way) | (way, Way::Note) => Some(way),
            (Way::Plain | Way::Careful, Way::Plain | Way::Careful) if self != other => Some(Way::Careful),
            _ => (self == other).then_some(self),
        }
    }
}

/// The right to apply into a site's store, given back while capture opens the stream anew.
struct Entry {
    shared: Arc<SiteShared>,
    guard: Option<OwnedMutexGuard<Option<KnownMarker>>>,
}

impl Entry {
    async fn enter(shared: &Arc<SiteShared>) -> Entry {
        Entry { shared: Arc::clone(shared), guard: Some(shared.gate.enter().await) }
    }

    /// Lets capture in, which waits; `found` was read from the store after it began to wait.
    async fn give_way(&mut self, found: &KnownMarker) {
        while self.shared.gate.wanted() {
            if let Some(mut guard) = self.guard.take() {
                *guard = Some(found.clone());
            }
            tokio::task::yield_now().await;
            self.guard = Some(self.shared.gate.enter().await);
        }
    }
}

/// A batch without an outcome.
#[derive(Debug)]
struct Sent {
    changes: Arc<Vec<Change>>,
    /// What was sent for them, where that is something else.
    decided: Option<Vec<Change>>,
    pairs: Vec<Pair>,
    marker: Marker,
    fill: bool,
    from: Seq,
    to: Seq,
    at: Instant,
    /// Where the log goes on behind it.
    end: Offset,
    /// How much of the target's own log the origin had applied by then.
    low: Seq,
}

impl ApplyTask {
    /// Runs until `stop`, then waits for what is under way.
    pub(crate) async fn run(mut self) -> Result<(), EngineError> {
        let stop = self.stop.clone();
        // The same for as long as it runs: who slept while another one took over is not to raise it.
        let mut term = None;
        let mut entry = Entry::enter(&self.shared).await;
        let mut backoff = Backoff::new(&format!("apply {}", self.partition), 2 * BACKOFF_MIN);
        // The furthest place of the log that was answered for.
        let (mut reached, mut further) = (Seq(0), false);
        let mut ended = false;
        loop {
            let mut target = self.connector.target(self.site);
            let begins = async {
                let term = match term {
                    Some(term) => term,
                    None => *term.insert(Term(self.log.end(&self.partition).await?.0)),
                };
                Reign::begin(&self, target.as_mut(), term, &mut entry).await
            };
            let failed = tokio::select! {
                biased;
                begun = begins => match begun {
                    Ok(_) if ended => {
                        tokio::select! {
                            biased;
                            () = self.shared.gate.until_wanted() => continue,
                            () = stop.cancelled() => return Ok(()),
                        }
                    }
                    Ok(mut reign) => {
                        *lock(&self.stats.apply_error) = None;
                        self.stats.apply_connected.store(true, Ordering::SeqCst);
                        backoff.began();
                        let carried = reign.carry(&mut self, target.as_mut()).await;
                        further = reign.answered > reached;
                        reached = reached.max(reign.answered);
                        carried
                    }
                    Err(error) => Err(error),
                },
                () = stop.cancelled() => return Ok(()),
            };
            let error = match failed {
                Err(EngineError::Store(error)) => error,
                // It may have been asked for what only a broker knows, and that one did not answer.
                Err(EngineError::Log(error @ LogError::Kafka { .. })) => {
                    store_unavailable("read the log", &self.channel, error.to_string())
                }
                Err(EngineError::CaptureWaits) => continue,
                Err(EngineError::Stopped) => return Ok(()),
                Err(error) => {
                    // Nothing more is applied; but the site's own capture needs the marker when it opens.
                    error!(partition = %self.partition, %error, "apply ended");
                    *lock(&self.stats.apply_error) = Some(Trouble::ended(&error));
                    // It may not even find the marker.
                    if std::mem::replace(&mut ended, true) {
                        tokio::select! {
                            biased;
                            () = tokio::time::sleep(ENDED_WAIT) => {}
                            () = stop.cancelled() => return Ok(()),
                        }
                    }
                    continue;
                }
                Ok(()) => return Ok(()),
            };
            let setup = error.kind() == causeway_core::ErrorKind::Setup;
            let (failures, wait) = backoff.failed(std::mem::take(&mut further), setup);
            warn!(channel = %self.channel, partition = %self.partition, failures, error = %error, "apply failed");
            *lock(&self.stats.apply_error) = Some(Trouble::of(&error));
            self.stats.apply_connected.store(false, Ordering::SeqCst);
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// The key that the peer asks for, or none for a snapshot. That one is asked for once: each makes capture open anew,
    /// which ends what is being applied, so that the question is met again.
    fn wanted(&self, refresh: &Change) -> Option<Key> {
        let next = refresh.seq.next().0;
        let is_new = || self.shared.snapshots_asked.fetch_max(next, Ordering::SeqCst) < next;
        (!refresh.key.name.is_empty() || is_new()).then(|| refresh.key.detached())
    }

    /// Whether the target's own capture is so far behind that what is applied could make its store give it up.
    /// Never while there is no room in the log: then that capture waits for room, which only appliers make, and
    /// both sites would wait for each other.
    fn waits_for_capture(&self) -> bool {
        self.shared.backlog.is_half_full() && !self.log.is_full()
    }

    /// Whether the store, whose own stream is unbroken, has shown a later marker than `found`: `SWAPDB` brings an
    /// old one back.
    fn is_stale(&self, found: &Marker) -> bool {
        let low = Seq(self.shared.low.load(Ordering::SeqCst));
        self.own.is_some() && self.shared.unbroken.load(Ordering::SeqCst) && found.applied < low
    }

    /// Notes that something was applied, where no other log will tell.
    fn has_begun(&self) -> Result<(), EngineError> {
        if self.own.is_some() {
            return Ok(());
        }
        lock(&self.begun)
            .note(&self.partition)
            .map_err(|error| unavailable(self, "write beside the log", error.to_string()))
    }

    /// Sees to a snapshot of the origin that closes a gap: unless one was begun behind `lost`, where the gap
    /// ends in the log, it is asked for. Waits until the log says that it was begun: the marker must not pass
    /// the gap before.
    async fn ask_for_snapshot(&self, lost: Offset) -> Result<(), EngineError> {
        let (mut at, mut first, mut asked) = (lost, None, false);
        loop {
            let records = match self.log.read(&self.partition, at, READ_BYTES).await {
                Err(LogError::Corrupt { to: next, .. } | LogError::Trimmed { start: next, .. }) => {
                    (at, first) = (next, None);
                    continue;
                }
                records => records?,
            };
            let mut seqs = records.iter().filter(|(_, change)| change.op != Op::Fence).map(|(_, c)| c.seq);
            first = first.or_else(|| seqs.next());
            let begins = |change: &Change| {
                let snapshot = restart_point(change).and_then(|point| point.snapshot);
                let behind = |s: &SnapshotPoint| first.is_some_and(|first| Seq(s.first) >= first);
                change.op == Op::Position && snapshot.is_some_and(|s| s.gap && s.end.is_none() && behind(&s))
            };
            if records.iter().any(|(_, change)| begins(change)) {
                return Ok(());
            }
            at = records.last().map_or(at, |(offset, _)| Offset(offset.0 + 1));
            if at < self.log.bounds(&self.partition).end {
                continue;
            }
            if !std::mem::replace(&mut asked, true) {
                self.origin.snapshot(true).await?;
            }
            let by_log = matches!(self.origin, Asks::ByLog(_));
            tokio::select! {
                biased;
                () = tokio::time::sleep(SNAPSHOT_ASKED_AGAIN), if by_log => asked = false,
                () = self.log.wait_beyond(&self.partition, at) => {
                    if self.log.bounds(&self.partition).end <= at {
                        return Err(EngineError::Stopped);
                    }
                }
                () = self.shared.gate.until_wanted() => return Err(EngineError::CaptureWaits),
                () = self.stop.cancelled() => return Err(EngineError::Stopped),
            }
        }
    }

    /// Waits before a server that could not take a batch is asked again.
    async fn wait_to_ask_again(&self) -> Result<(), EngineError> {
        tokio::select! {
            biased;
            () = tokio::time::sleep(REJECTED_WAIT) => Ok(()),
            () = self.shared.gate.until_wanted() => Err(EngineError::CaptureWaits),
            () = self.stop.cancelled() => Err(EngineError::Stopped),
        }
    }

    /// Of what the target site wrote itself below `seq` some cannot be read any more: its own capture begins
    /// anew, and says what every key holds.
    pub(crate) fn lost_own(&self, seq: Seq) -> Result<(), EngineError> {
        let shared = &self.shared;
        if shared.lost_below.load(Ordering::SeqCst) >= seq.0 {
            return Ok(());
        }
        warn!(partition = %self.partition, below = %seq, "gap: of the target's own log is damaged what has to be \
            decided with: a snapshot of the target closes it");
        shared.ask.try_snapshot(true)?;
        shared.lost_below.fetch_max(seq.0, Ordering::SeqCst);
        Ok(())
    }

    /// The origin's changes.
    pub(crate) fn theirs(&self) -> Side<'_> {
        self.ours().peer()
    }

    /// The target site's own.
    pub(crate) fn ours(&self) -> Side<'_> {
        Side { connector: self.connector.as_ref(), owners: self.owners.as_deref(), site: self.site }
    }

    fn lookback(&self, partition: &PartitionId) -> Lookback {
        Lookback::new(Arc::clone(&self.log), partition.clone(), self.lookback_bytes_max)
    }

    fn way(&self, change: &Change, careful_reads: bool) -> Way {
        let both = self.own.is_some();
        match change.op {
            Op::Fence | Op::Position | Op::Refresh => Way::Note,
            Op::Ddl => Way::Held,
            // It must not take away what was written here meanwhile, not even for a moment. What is handed over is known.
            Op::Delete if both && !self.is_handed_over(&change.key) => Way::Careful,
            Op::Put | Op::Delete | Op::Command => Way::Plain,
            Op::State | Op::Read if change.key.name.is_empty() => Way::Plain,
            Op::State | Op::Read if change.part.is_some_and(|part| !part.last) => Way::Plain,
            Op::State if both => Way::Careful,
            Op::State => Way::Plain,
            Op::Read if !both && self.origin_wins => Way::Plain,
            Op::Read => {
                // What came in parts is lost if the key turns out to exist: that has to be known before.
                let replaces = self.origin_wins && (careful_reads || change.part.is_some());
                // What is counted is written by commands, of which one that came meanwhile would be lost.
                let counts = self.connector.is_counted(change);
                let careful = both && (replaces || counts || self.forgot(change) || self.has_live(change));
                if careful { Way::Careful } else { Way::Fill }
            }
        }
    }

    /// Whether nobody writes `key` here but us.
    pub(crate) fn is_handed_over(&self, key: &Key) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.takes(key))
    }

    /// Whether the key is watched while the change goes in.
    pub(crate) fn is_watched(&self, change: &Change) -> bool {
        !matches!(self.way(change, true), Way::Plain | Way::Note)
    }

    /// Whether more of ours is needed to decide `change` than is remembered: the origin came back older.
    fn forgot(&self, change: &Change) -> bool {
        change.seen < lock(&self.shared.recent).floor()
    }

    /// Whether the target changed the key and the origin had not seen it.
    pub(crate) fn has_live(&self, change: &Change) -> bool {
        // Whatever cannot be read now is in question, and looked at by who can tell of it.
        self.is_live(&change.key, change.seen).unwrap_or(true)
    }

    /// One site's numbers count for both.
    fn gives_numbers(&self) -> bool {
        self.own.is_some() && self.site == Site::First
    }

    /// Whether the target changed `key` and whoever had seen ours up to `seen` did not know.
    pub(crate) fn is_live(&self, key: &Key, seen: Seq) -> Result<bool, EngineError> {
        lock(&self.shared.recent).has_unseen(key, seen)
    }
}

/// Sends a batch that was announced, with nothing else under way, and waits for what came of it.
pub(crate) async fn transact(
    task: &ApplyTask,
    target: &mut dyn Target,
    batch: Batch,
) -> Result<Outcome, EngineError> {
    let marker = batch.marker.clone();
    target.send(batch).await?;
    let outcome = target.outcome().await?;
    if !matches!(outcome, Outcome::Committed { .. }) {
        lock(&task.shared.on_the_way).fail(&marker, task.theirs());
    }
    Ok(outcome)
}

/// FF47: fails where the log is not the one that `marker` speaks of, or ends before what it says is applied: what it
/// holds now has other numbers than the marker means.
async fn is_same_log(task: &ApplyTask, marker: &Marker) -> Result<(), EngineError> {
    let applied = marker.applied;
    let Some(last) = applied.0.checked_sub(1) else { return Ok(()) };
    let Range { start, end } = task.log.bounds(&task.partition);
    if marker.log != 0 {
        let log = recover(task.log.as_ref(), &task.partition, end).await?.point.log;
        if log != 0 && log != marker.log {
            return Err(EngineError::OtherLog { partition: task.partition.clone(), applied });
        }
    }
    // No record has a seq above its place, and capture goes on above the end of what is damaged or gone.
    let lost = start.0 >= applied.0
        || end.0 >= applied.0 && is_damaged(task.log.as_ref(), &task.partition, start, end);
    if lost || task.log.locate(&task.partition, Seq(last)).await? < end {
        return Ok(());
    }
    Err(EngineError::OtherLog { partition: task.partition.clone(), applied })
}

/// Who was asked, what waits for it, for how many keys, and which of them have to be asked for again.
type Answered = (Asks, Seq, usize, Vec<Key>);
type Refreshing = futures_util::future::BoxFuture<'static, Answered>;

/// What is known while one connection to the target lasts.
pub(crate) struct Reign {
    /// As sent last.
    pub(crate) marker: Marker,
    pub(crate) reader: Reader,
    under_way: VecDeque<Sent>,
    /// Answered, and so settled but for what is asked for again.
    answered: Seq,
    /// The `low` of the last record that was brought in.
    pub(crate) low: Seq,
    refreshing: FuturesUnordered<Refreshing>,
    /// Keys in those.
    asked: usize,
    /// Nothing at or above these counts as settled.
    pins: Vec<Seq>,
    /// Keys, by their digests, of which a value in pieces was refused and asked for once more, and did not go in
    /// since.
    asked_again: HashSet<u128>,
    /// Reads whose key exists at the target, to be decided before anything else is sent.
    contested: Vec<Change>,
    /// Keys of changes among them that get another number at this site: the peer is told what came of it.
    renumbered: BTreeSet<Key>,
    /// Batches that the store refused as a whole.
    rejected: VecDeque<Sent>,
    rejected_transient: bool,
    /// A later batch went in before them.
    overtaken: bool,
    careful_reads: bool,
    /// Of the target site, where the channel goes both ways.
    pub(crate) own_log: Option<Lookback>,
    pub(crate) peer_log: Lookback,
    pub(super) lately: Lately,
    /// What the site's applications handed over had its turn.
    peers_turn: bool,
    /// Something waits for the pipeline to run empty.
    draining: bool,
    /// It was noted that something was applied.
    begun: bool,
}

impl Reign {
    /// Takes the target over, finds the marker, and goes to its place in the log.
    async fn begin(
        task: &ApplyTask,
        target: &mut dyn Target,
        term: Term,
        entry: &mut Entry,
    ) -> Result<Reign, EngineError> {
        let found = target.take_over(term).await?;
        entry.give_way(&found).await;
        if task.own.is_some() {
            // Nothing is applied before the site's own capture has its first position.
            tokio::select! {
                biased;
                () = task.shared.capture_ready.wait() => {}
                () = task.shared.gate.until_wanted() => return Err(EngineError::CaptureWaits),
            }
        }
        let mut marker = match found {
            Some(marker) if !task.is_stale(&marker) => {
                task.has_begun()?;
                marker
            }
            _ => lost_marker(task, target).await?,
        };
        marker.term = term;
        let (settled, applied) = (marker.settled, marker.applied);
        is_same_log(task, &marker).await?;
        let reader = Reader::at(Arc::clone(&task.log), task.partition.clone(), applied).await?;
        let reader = reader.not_of(&task.connector, lock(&task.shared.store).clone());
        info!(partition = %task.partition, %applied, %settled, "apply begins");
        task.stats.applied_to(applied);
        if let Some((seq, time)) = first_data(task.log.as_ref(), &task.partition, reader.offset()).await {
            lock(&task.stats.waiting).begins(seq, time);
        }
        let kept_from = task.log.locate(&task.partition, settled).await?;
        task.stats.settled_offset.store(kept_from.0, Ordering::SeqCst);
        let mut reign = Reign {
            marker,
            reader,
            under_way: VecDeque::new(),
            answered: applied,
            low: Seq(0),
            refreshing: FuturesUnordered::new(),
            asked: 0,
            pins: Vec::new(),
            asked_again: HashSet::new(),
            contested: Vec::new(),
            renumbered: BTreeSet::new(),
            rejected: VecDeque::new(),
            rejected_transient: false,
            overtaken: false,
            careful_reads: false,
            own_log: task.own.as_ref().map(|own| task.lookback(own)),
            peer_log: task.lookback(&task.partition),
            lately: Lately::from(applied),
            peers_turn: false,
            draining: false,
            begun: false,
        };
        lock(&task.shared.on_the_way).give_up();
        lock(&task.shared.redos).send_again();
        if !lock(&task.shared.redos).is_empty() {
            task.shared.redo_waits.raise();
        }
        task.shared.intake_waits.raise();
        reign.doubtful(task, target, settled, applied).await?;
        Ok(reign)
    }

    /// Of `settled..applied` nobody read the answers: reads among them are decided again, the other keys
    /// are asked for.
    async fn doubtful(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        settled: Seq,
        applied: Seq,
    ) -> Result<(), EngineError> {
        if settled >= applied {
            return Ok(());
        }
        let start = task.log.locate(&task.partition, settled).await?;
        let mut keys: Vec<Key> = Vec::new();
        let mut reads: Vec<Change> = Vec::new();
        let mut wanted: Vec<Key> = Vec::new();
        let mut whole: Vec<Change> = Vec::new();
        let mut numbered: Vec<(Change, Change)> = Vec::new();
        let end = self.reader.offset();
        walk_kept(task.log.as_ref(), &task.partition, start, end, |_, change| {
            let named = !change.key.name.is_empty() && change.part.is_none_or(|part| part.last);
            if change.seq >= settled && change.op == Op::Ddl {
                if task.connector.empties(&change) {
                    whole.push(change);
                }
            } else if change.seq < settled || !named {
            } else if change.op == Op::Refresh {
                wanted.push(change.key.detached());
            } else if !change.op.is_data() {
            } else if change.op == Op::Read && change.part.is_none() {
                reads.push(change);
            } else if let Some(again) =
                task.gives_numbers().then(|| task.connector.renumbered(&change)).flatten()
            {
                numbered.push((change, again));
            } else {
                keys.extend(task.connector.units(&change).into_iter().map(|(unit, _)| unit.key));
            }
        })
        .await?;
        if is_damaged(task.log.as_ref(), &task.partition, start, end) {
            warn!(partition = %task.partition, "gap: what is not settled is damaged: a snapshot of the origin closes it");
            task.ask_for_snapshot(end).await?;
        }
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| !key.name.is_empty());
        reads.retain(|read| keys.binary_search(&read.key).is_err());
        info!(partition = %task.partition, reads = reads.len(), keys = keys.len(), "not settled before the break");
        self.ask_own(task, settled, wanted);
        let (changes, again): (Vec<_>, Vec<_>) = numbered.into_iter().unzip();
        for (held, again) in target.holds(&changes).await?.into_iter().zip(again) {
            if !held {
                // Until it is there, a crash must find it again.
                self.answered = settled;
                self.renumber(again);
            }
        }
        if !reads.is_empty() {
            if task.own.is_some() {
                // Until they are decided, a crash must find them again.
                self.answered = settled;
                self.contested.extend(reads);
                self.draining = true;
            } else if task.origin_wins {
                keys.extend(reads.into_iter().map(|read| read.key));
            } else {
                let (at, end) = (Instant::now(), self.reader.offset());
                let (decided, pairs, low) = (None, Vec::new(), self.low);
                let sent = Sent {
                    changes: Arc::new(reads),
                    decided,
                    pairs,
                    marker: Marker::default(),
                    fill: true,
                    from: settled,
                    to: applied,
                    at,
                    end,
                    low,
                };
                self.answered = settled;
                self.rejected.push_back(sent);
                self.draining = true;
            }
        }
        if !keys.is_empty() {
            self.ask(&task.origin, settled, keys);
        }
        for change in whole {
            // The origin of a dropped one may not have its keys back yet.
            let given = lock(&task.answered).get(&task.partition, change.seq);
            let applied = given == Some(HeldAnswer::Apply)
                || given.is_none() && task.connector.ddl_policy(&change) == DdlPolicy::Apply;
            if applied {
                self.restore(task, target, &change).await?;
            }
        }
        Ok(())
    }

    /// Asks `capture`, the origin's mostly, for states of `keys`. Until they are in its log, `pin` is not
    /// settled.
    pub(crate) fn ask(&mut self, capture: &Asks, pin: Seq, keys: Vec<Key>) {
        debug!(%pin, keys = keys.len(), "asked for states");
        self.pins.push(pin);
        self.asked += keys.len();
        let capture = capture.clone();
        self.refreshing.push(Box::pin(async move {
            let count = keys.len();
            let again = capture.states(keys).await;
            if !again.is_empty() {
                // Capture was opened anew meanwhile, or is about to end; or these are evaluated again.
                tokio::time::sleep(ASKED_AGAIN).await;
            }
            (capture, pin, count, again)
        }));
    }

    /// Asks the target's own capture for what the origin wants.
    pub(crate) fn ask_own(&mut self, task: &ApplyTask, pin: Seq, mut keys: Vec<Key>) {
        let named = keys.len();
        keys.retain(|key| !key.name.is_empty());
        if keys.len() < named && task.shared.ask.try_snapshot(true).is_err() {
            warn!(partition = %task.partition, "capture takes no question now: the origin asks again");
        }
        if !keys.is_empty() && task.own.is_some() {
            self.ask(&task.shared.ask, pin, keys);
        }
    }

    fn asked(&mut self, (capture, pin, count, again): Answered) {
        self.unpin(pin);
        self.asked -= count;
        if !again.is_empty() {
            self.ask(&capture, pin, again);
        }
    }

    fn unpin(&mut self, pin: Seq) {
        if let Some(at) = self.pins.iter().position(|p| *p == pin) {
            self.pins.swap_remove(at);
        }
    }

    fn settled(&self) -> Seq {
        let pinned = self.pins.iter().copied().min().unwrap_or(self.answered);
        self.answered.min(pinned)
    }

    /// Carries the log into the store.
    async fn carry(&mut self, task: &mut ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        let stop = task.stop.clone();
        let mut waited = false;
        loop {
            let paused = *task.paused.borrow();
            let stopping = stop.is_cancelled();
            if self.under_way.is_empty() {
                if stopping {
                    return Ok(());
                }
                if task.shared.gate.wanted() {
                    return Err(EngineError::CaptureWaits);
                }
                self.mend(task, target).await?;
                if task.redo_waits() {
                    self.redo(task, target).await?;
                }
                if task.intake_waits() && !std::mem::replace(&mut self.peers_turn, true) {
                    self.deliver(task, target).await?;
                }
                self.draining = !self.contested.is_empty();
                if task.shared.marker_lost.take() {
                    self.send(task, target, Vec::new(), false, self.marker.applied).await?;
                }
            }
            let waits = task.waits_for_capture();
            if waits != std::mem::replace(&mut waited, waits) {
                debug!(partition = %task.partition, waits, "the target's own capture is behind");
            }
            self.draining |= task.redo_waits() || task.intake_waits() && !self.peers_turn;
            task.stats.asked.store(self.asked as u64, Ordering::SeqCst);
            task.stats.under_way.store(self.under_way.len() as u64, Ordering::SeqCst);
            // As with a capture that is behind: it may wait for room, which only appliers make.
            let asks = self.asked >= ASKED_MAX && !task.log.is_full();
            let open =
                !self.draining && !asks && !paused && !stopping && !waits && !task.shared.gate.wanted();
            tokio::select! {
                biased;
                outcome = target.outcome(), if !self.under_way.is_empty() => self.outcome(task, outcome?).await?,
                Some(done) = self.refreshing.next() => self.asked(done),
                ready = self.reader.ready(), if open && !self.is_full(task) => {
                    match ready {
                        // Capture may have fallen behind while there was nothing to apply.
                        Ok(()) if task.waits_for_capture() => {}
                        Ok(()) => self.next_batch(task, target).await?,
                        Err(EngineError::Log(error)) => self.log_failed(task, error).await?,
                        Err(error) => return Err(error),
                    }
                }
                () = task.shared.gate.until_wanted(), if self.under_way.is_empty() => {}
                () = task.shared.marker_lost.wait(), if self.under_way.is_empty() => {}
                () = task.shared.intake_waits.wait(), if !paused && self.peers_turn => self.peers_turn = false,
                () = task.shared.redo_waits.wait(), if !paused && (self.under_way.is_empty() || !self.draining) => {}
                () = tokio::time::sleep(CAUGHT_UP_WAIT), if waits => {}
                _ = task.paused.changed() => {}
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    /// Whether so much is under way that no more is sent. A batch of one large group counts as several.
    fn is_full(&self, task: &ApplyTask) -> bool {
        let changes: usize = self.under_way.iter().map(|sent| sent.changes.len()).sum();
        self.under_way.len() >= UNDER_WAY_MAX || changes >= UNDER_WAY_MAX * task.items_max
    }

    /// Takes from the log what goes into the store in one way, and sends it.
    async fn next_batch(&mut self, task: &mut ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        self.peers_turn = false;
        if let Err(EngineError::Log(error)) = self.reader.fill().await {
            return self.log_failed(task, error).await;
        }
        let mut changes: Vec<Change> = Vec::new();
        // Asked for by the origin: our own capture answers.
        let mut wanted: Vec<Key> = Vec::new();
        let (mut bytes, mut to, mut low, mut in_group) = (0, self.marker.applied, self.low, false);
        let mut way = Way::Note;
        loop {
            if in_group && self.reader.peek().is_none() {
                // A group stands in one append: the rest of it is there.
                if let Err(EngineError::Log(error)) = self.reader.refill().await {
                    // The snapshot has the keys of the group, and of what came before it.
                    self.ask_own(task, self.marker.applied, wanted);
                    return self.log_failed(task, error).await;
                }
            }
            let Some((_, change)) = self.reader.peek() else { break };
            let full = changes.len().max(wanted.len()).max(self.contested.len()) >= task.items_max;
            // A value appears only once it is known that the pieces before its last one went in. Of any value, as a
            // group, which begins with the last ones, cannot be cut before each.
            let ends = change.part.is_some_and(|part| part.last)
                && changes.iter().any(|piece| piece.part.is_some_and(|part| !part.last));
            if !in_group && (full || ends || bytes >= task.bytes_max) {
                break;
            }
            let this = task.way(change, self.careful_reads);
            let decided_later = this == Way::Careful && change.op == Op::Read && change.part.is_none();
            // What is decided later comes before the rest: what was counted counts with what came before it.
            if decided_later && !in_group && !changes.is_empty() && task.connector.is_counted(change) {
                break;
            }
            if !decided_later {
                way = match way.with(this) {
                    Some(way) => way,
                    None if in_group => Way::Careful,
                    None => break,
                };
            }
            if this == Way::Held {
                break;
            }
            let Some((_, change)) = self.reader.pop() else { break };
            if change.op == Op::Fence {
                continue;
            }
            (to, low) = (change.seq.next(), change.low);
            in_group = change.group.is_some_and(|group| !group.last);
            bytes += change.cost();
            if change.op == Op::Position {
                let point = restart_point(&change);
                if let Some(log) = point.as_ref().map(|point| point.log).filter(|log| *log != 0) {
                    self.marker.log = log;
                }
                if let (Some(reverse), Some(point)) = (&task.reverse, &point) {
                    reverse.settled_below.store(point.settled, Ordering::SeqCst);
                    task.stats.snapshot_told(point.snapshot.as_ref());
                }
                if point.is_some_and(|point| ends_sweep(&point, change.seq)) {
                    self.ask_own(task, self.marker.applied, wanted);
                    return self.swept(task, target, (changes, low), way, change).await;
                }
            } else if change.op == Op::Refresh {
                wanted.extend(task.wanted(&change));
            } else if decided_later {
                self.contested.push(change);
            } else {
                changes.push(change);
            }
        }
        self.ask_own(task, self.marker.applied, wanted);
        task.log.passed(&task.partition, self.reader.offset());
        if way == Way::Held {
            return self.hold(task, target).await;
        }
        self.bring(task, target, (changes, low), way, to).await
    }

    /// Takes the store to `to` by `changes`; `low` is that of the last one.
    async fn bring(
        &mut self,
        task: &mut ApplyTask,
        target: &mut dyn Target,
        (changes, low): (Vec<Change>, Seq),
        way: Way,
        to: Seq,
    ) -> Result<(), EngineError> {
        // What is contested comes before everything that isn't a read.
        let contested = !self.contested.is_empty() && matches!(way, Way::Plain | Way::Careful);
        if way == Way::Careful || contested {
            self.drain(task, target).await?;
        }
        // What came before may be decided by changes of ours that the last one of these has seen.
        if self.contested.is_empty() {
            self.low = low;
        }
        if way == Way::Careful {
            let told: Vec<u128> = match lock(&task.shared.put_back).is_empty() {
                true => Vec::new(),
                false => {
                    changes.iter().filter(|change| tells_all(change)).map(|c| key_digest(&c.key)).collect()
                }
            };
            self.careful(task, target, changes, to).await?;
            lock(&task.shared.put_back).retain(|digest| !told.contains(digest));
            self.settle_all(task);
            return Ok(());
        }
        if to > self.marker.applied {
            self.send(task, target, changes, way == Way::Fill, to).await?;
        }
        self.draining |= self.contested.len() >= task.items_max;
        Ok(())
    }

    /// Waits for all that is under way, and decides and sends again what that left over.
    async fn drain(&mut self, task: &mut ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        while !self.under_way.is_empty() {
            let outcome = target.outcome().await?;
            self.outcome(task, outcome).await?;
        }
        self.mend(task, target).await
    }

    /// The marker of a transaction of no change of the log.
    pub(crate) fn marker_for_none(&mut self, task: &ApplyTask) -> Marker {
        self.marker_for(task, &[], self.marker.applied..self.marker.applied)
    }

    /// The marker of a transaction of the changes `from..to`.
    fn marker_for(
        &mut self,
        task: &ApplyTask,
        changes: &[Change],
        Range { start: from, end: to }: Range<Seq>,
    ) -> Marker {
        let newest = changes.iter().map(|change| change.hlc).max().unwrap_or(Hlc(0));
        self.marker.from = from.min(to);
        self.marker.applied = self.marker.applied.max(to);
        self.marker.settled = self.settled();
        self.marker.hlc = self.marker.hlc.max(newest);
        self.marker.basis = lock(&task.shared.recent).end();
        self.marker.dropped.clear();
        self.marker.clone()
    }

    async fn send(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        changes: Vec<Change>,
        fill: bool,
        to: Seq,
    ) -> Result<(), EngineError> {
        let from = self.marker.applied.min(to);
        let changes = Arc::new(changes);
        let mut plan = self.plan(task, &changes, fill).await?;
        let marker = self.announce(task, &changes, (from..to, self.low), &mut plan);
        for change in changes.iter() {
            trace!(partition = %task.partition, key = %shown(&change.key), op = change.op.as_str(),
                seq = %change.seq, fill, "sent");
        }
        target.send(plan.batch(marker.clone(), &changes, fill)).await?;
        let (decided, pairs) = (plan.decided, plan.pairs);
        let (at, end, low) = (Instant::now(), self.reader.offset(), self.low);
        self.under_way.push_back(Sent { changes, decided, pairs, marker, fill, from, to, at, end, low });
        Ok(())
    }

    /// The marker of a transaction of the changes of `span` by what was planned. Tells the target's own capture
    /// what it touches, before it can see it pass; `low` is that of its last change.
    pub(crate) fn announce(
        &mut self,
        task: &ApplyTask,
        changes: &Arc<Vec<Change>>,
        (span, low): (Range<Seq>, Seq),
        plan: &mut Plan,
    ) -> Marker {
        self.note_lately(task, changes);
        let mut marker = self.marker_for(task, changes, span);
        (marker.basis, marker.dropped) = (plan.basis, std::mem::take(&mut plan.dropped));
        if task.own.is_some() {
            let units = plan.units.take();
            let units = units.map_or_else(|| Units::of(changes), Units::Decided);
            let sent = SentUnits { marker: marker.clone(), low, units, is_given_up: false };
            lock(&task.shared.on_the_way).send(sent, task.theirs());
        }
        marker
    }

    async fn outcome(&mut self, task: &ApplyTask, outcome: Outcome) -> Result<(), EngineError> {
        let Some(sent) = self.under_way.pop_front() else { return Ok(()) };
        task.apply_seconds.record(sent.at.elapsed());
        match outcome {
            Outcome::Committed { refused, existing } => {
                if !std::mem::replace(&mut self.begun, true) {
                    task.has_begun()?;
                }
                self.overtaken |= !self.rejected.is_empty();
                let changes = sent.decided.as_deref().unwrap_or(&sent.changes);
                self.refused(task, changes, &sent.changes, refused).await?;
                self.note(task, &sent.pairs).await;
                let held: Vec<Change> =
                    existing.iter().filter_map(|i| sent.changes.get(*i).cloned()).collect();
                if task.origin_wins {
                    self.careful_reads = held.len() * EXISTING_RARE > sent.changes.len();
                    self.draining |= !held.is_empty();
                    self.contested.extend(held);
                }
                if self.rejected.is_empty() && self.contested.is_empty() {
                    self.settle(task, sent.to, sent.end, sent.low);
                }
                task.stats.counts.applied.fetch_add(sent.changes.len() as u64, Ordering::SeqCst);
            }
            Outcome::Rejected { transient, reason } => {
                warn!(partition = %task.partition, from = %sent.from, to = %sent.to, transient, reason, "batch refused");
                lock(&task.shared.on_the_way).fail(&sent.marker, task.theirs());
                self.rejected_transient = transient;
                self.draining = true;
                if transient {
                    *lock(&task.stats.apply_error) = Some(Trouble::waits(&reason));
                }
                self.rejected.push_back(sent);
            }
            // Only what was watched can be touched.
            Outcome::Touched => self.rejected.push_back(sent),
        }
        Ok(())
    }

    /// Everything below `to` is answered; later changes of the origin have seen ours below `low`.
    fn settle(&mut self, task: &ApplyTask, to: Seq, end: Offset, low: Seq) {
        self.answered = self.answered.max(to);
        if self.pins.is_empty() {
            task.shared.forgettable.fetch_max(low.0, Ordering::SeqCst);
            // What is evaluated again is read from the log.
            if lock(&task.shared.redos).is_empty() {
                task.stats.settled_offset.store(end.0, Ordering::SeqCst);
            }
        }
        task.stats.applied_to(self.answered);
    }

    /// Keeps what the store refused of the peer's as dead letters, and asks the origin for what the keys hold now.
    /// What is not of `theirs` was done again here, where the peer's change had left something else; the peer
    /// answers for its place there.
    pub(crate) async fn refused(
        &mut self,
        task: &ApplyTask,
        changes: &[Change],
        theirs: &[Change],
        refused: Vec<Refused>,
    ) -> Result<(), EngineError> {
        let mut keys = Vec::new();
        if !self.asked_again.is_empty() {
            let ended = changes.iter().enumerate().filter(|(_, change)| change.part.is_some_and(|p| p.last));
            for (_, change) in ended.filter(|(i, _)| refused.iter().all(|refusal| refusal.index != *i)) {
                self.asked_again.remove(&key_digest(&change.key));
            }
        }
        for refusal in refused {
            let Some(change) = changes.get(refusal.index) else { continue };
            lock(&task.shared.on_the_way).is_done(key_digest(&change.key), change.seq);
            if task.own.is_some()
                && task.connector.is_misnumbered(&refusal.reason)
                && let Some(renumbered) = task.connector.renumbered(change)
            {
                match task.gives_numbers() {
                    true => self.renumber(renumbered),
                    false => keys.push(change.key.clone()),
                }
                continue;
            }
            if !theirs.iter().any(|theirs| theirs.seq == change.seq && theirs.key == change.key) {
                debug!(partition = %task.partition, seq = %change.seq, reason = refusal.reason, "not done again");
                continue;
            }
            warn!(partition = %task.partition, seq = %change.seq, op = change.op.as_str(),
                reason = refusal.reason, "change refused, kept as a dead letter");
            task.dead_letters
                .keep(&task.channel, &task.partition, task.site, change, &refusal.reason)
                .await?;
            // A state that is refused would only come back; one that came in pieces may go in the next time, as it
            // may only have lost one on the way. Where what exists stays, a read must not come back as a state,
            // which replaces.
            let ends = change.part.is_some_and(|part| part.last);
            let comes_back = match change.op {
                Op::Read if !task.origin_wins => false,
                Op::State | Op::Read => ends && self.asked_again.insert(key_digest(&change.key)),
                _ => true,
            };
            if comes_back && !change.key.name.is_empty() {
                keys.push(change.key.clone());
            }
        }
        if !keys.is_empty() {
            let pin = changes.first().map_or(self.answered, |change| change.seq);
            self.ask(&task.origin, pin, keys);
        }
        Ok(())
    }

    /// Applies it once nothing is under way, and then tells the peer what came of it.
    fn renumber(&mut self, change: Change) {
        self.renumbered.insert(change.key.detached());
        self.contested.push(change);
        self.draining = true;
    }

    /// With nothing under way: decides contested reads, and sends again what was refused as a whole.
    async fn mend(&mut self, task: &mut ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        if !self.rejected.is_empty() {
            self.send_again(task, target).await?;
        }
        if !self.contested.is_empty() {
            let contested = std::mem::take(&mut self.contested);
            for chunk in contested.chunks(task.items_max.max(1)) {
                let to = self.marker.applied;
                self.careful(task, target, chunk.to_vec(), to).await?;
            }
            let renumbered = std::mem::take(&mut self.renumbered);
            self.ask_own(task, self.answered, renumbered.into_iter().collect());
            self.settle_all(task);
        }
        Ok(())
    }

    /// Sends refused batches again in their order, each alone; one that is refused for what is in it is
    /// halved until the change to blame stands alone.
    async fn send_again(&mut self, task: &ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        // Later batches may have gone in before these: what they touched is asked for again.
        let pin = self.rejected.front().map_or(self.answered, |sent| sent.from);
        let mut keys: Vec<Key> = Vec::new();
        let overtaken = std::mem::take(&mut self.overtaken);
        // What exists stays, and a state would replace it.
        let asked = |sent: &&Sent| overtaken || task.origin_wins || !sent.fill;
        for sent in self.rejected.iter().filter(asked) {
            keys.extend(sent.changes.iter().map(|c| c.key.clone()).filter(|key| !key.name.is_empty()));
        }
        keys.sort_unstable();
        keys.dedup();
        let mut transient = self.rejected_transient;
        if !overtaken {
            // No marker may count what is not in the store yet: changes of its own would seem to have seen it.
            self.marker.applied = pin.min(self.marker.applied);
        }
        while let Some(sent) = self.rejected.pop_front() {
            if transient {
                task.wait_to_ask_again().await?;
            }
            let mut plan = self.plan(task, &sent.changes, sent.fill).await?;
            let marker = self.announce(task, &sent.changes, (sent.from..sent.to, sent.low), &mut plan);
            let batch = plan.batch(marker, &sent.changes, sent.fill);
            let sent = Sent { decided: plan.decided, pairs: plan.pairs, ..sent };
            match transact(task, target, batch).await? {
                Outcome::Rejected { transient: true, reason } => {
                    *lock(&task.stats.apply_error) = Some(Trouble::waits(&reason));
                    transient = true;
                    self.rejected.push_front(sent);
                }
                Outcome::Rejected { transient: false, reason } => {
                    transient = false;
                    match halves(sent) {
                        Ok((first, second)) => {
                            self.rejected.push_front(second);
                            self.rejected.push_front(first);
                        }
                        Err(sent) => {
                            let all = (0..sent.changes.len())
                                .map(|index| Refused { index, reason: reason.clone() })
                                .collect();
                            self.refused(task, &sent.changes, &sent.changes, all).await?;
                        }
                    }
                }
                outcome => {
                    transient = false;
                    *lock(&task.stats.apply_error) = None;
                    self.under_way.push_back(sent);
                    self.outcome(task, outcome).await?;
                }
            }
        }
        if !keys.is_empty() {
            self.ask(&task.origin, pin, keys);
        }
        self.settle_all(task);
        Ok(())
    }

    /// Nothing is under way: all that was sent is answered, unless something is left over.
    fn settle_all(&mut self, task: &ApplyTask) {
        if !self.contested.is_empty() || !self.rejected.is_empty() {
            return;
        }
        let (applied, end, low) = (self.marker.applied, self.reader.offset(), self.low);
        self.settle(task, applied, end, low);
    }

    /// The answer that was given for `change`, or the one that is given now.
    async fn answer(&mut self, task: &mut ApplyTask, change: &Change) -> Result<HeldAnswer, EngineError> {
        let given = lock(&task.answered).get(&task.partition, change.seq);
        if let Some(answer) = given {
            info!(partition = %task.partition, seq = %change.seq, ?answer, "held and answered before");
            return Ok(answer);
        }
        self.ask_operator(task, change, None).await
    }

    async fn ask_operator(
        &mut self,
        task: &mut ApplyTask,
        change: &Change,
        refused: Option<&str>,
    ) -> Result<HeldAnswer, EngineError> {
        let answer = self.whole_store_answer(task, change, refused).await?;
        lock(&task.answered)
            .keep(&task.partition, change.seq, answer)
            .map_err(|error| unavailable(task, "keep an answer beside the log", error.to_string()))?;
        Ok(answer)
    }

    /// The log says that it empties a store, or changes what a table is: waits for an operator, where it has to.
    async fn hold(&mut self, task: &mut ApplyTask, target: &mut dyn Target) -> Result<(), EngineError> {
        self.drain(task, target).await?;
        let Some((_, change)) = self.reader.peek().cloned() else { return Ok(()) };
        let (empties, what) = (task.connector.empties(&change), task.connector.shown(&change));
        let policy = match task.connector.ddl_policy(&change) {
            DdlPolicy::Apply if task.connector.reaches_beyond(&change) => DdlPolicy::Hold,
            policy => policy,
        };
        let mut answer = match policy {
            DdlPolicy::Apply => HeldAnswer::Apply,
            DdlPolicy::Ignore => HeldAnswer::Drop,
            DdlPolicy::Hold => self.answer(task, &change).await?,
        };
        // Until the origin is asked for what it took away, a crash must find the change again.
        let pin = (answer == HeldAnswer::Apply && empties).then_some(change.seq);
        self.pins.extend(pin);
        let to = change.seq.next();
        while answer == HeldAnswer::Apply {
            match self.apply_alone(task, target, &change).await? {
                None => {
                    info!(partition = %task.partition, seq = %change.seq, what, "applied");
                    self.reader.pop();
                    if empties {
                        // It took the marker with it.
                        task.shared.marker_lost.raise();
                        self.drain(task, target).await?;
                        self.restore(task, target, &change).await?;
                    }
                    pin.into_iter().for_each(|pin| self.unpin(pin));
                    self.settle_all(task);
                    return Ok(());
                }
                Some(refused) => answer = self.ask_operator(task, &change, Some(&refused)).await?,
            }
        }
        pin.into_iter().for_each(|pin| self.unpin(pin));
        self.reader.pop();
        self.send(task, target, Vec::new(), false, to).await?;
        match (empties, &task.own) {
            // The origin gets back what it lacks now.
            (true, Some(_)) => task.shared.ask.snapshot(false).await?,
            (true, None) => warn!(partition = %task.partition, "dropped: the sites differ until a repair"),
            (false, _) => {
                warn!(partition = %task.partition, seq = %change.seq, what, "not applied: rows that need it \
                wait until the same is done at the target")
            }
        }
        Ok(())
    }

    /// Applies a change that is no transaction's. Nothing is under way. `Some`: the target refuses it, and why.
    async fn apply_alone(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        change: &Change,
    ) -> Result<Option<String>, EngineError> {
        let (changes, to) = (Arc::new(vec![change.clone()]), change.seq.next());
        let before = self.marker.clone();
        loop {
            let mut plan = self.plan(task, &changes, false).await?;
            let span = self.marker.applied.min(to)..to;
            let marker = self.announce(task, &changes, (span, self.low), &mut plan);
            let batch = plan.batch(marker, &changes, false);
            let outcome = tokio::select! {
                biased;
                // It may take hours.
                outcome = transact(task, target, batch) => outcome?,
                () = task.shared.gate.until_wanted() => return Err(EngineError::CaptureWaits),
                () = task.stop.cancelled() => return Err(EngineError::Stopped),
            };
            let refused = match outcome {
                Outcome::Committed { mut refused, .. } => refused.pop().map(|refused| refused.reason),
                Outcome::Rejected { transient: true, reason } => {
                    self.marker = before.clone();
                    *lock(&task.stats.apply_error) = Some(Trouble::waits(&reason));
                    task.wait_to_ask_again().await?;
                    continue;
                }
                Outcome::Rejected { transient: false, reason } => Some(reason),
                Outcome::Touched => continue,
            };
            *lock(&task.stats.apply_error) = None;
            if refused.is_some() {
                self.marker = before;
                return Ok(refused);
            }
            if !std::mem::replace(&mut self.begun, true) {
                task.has_begun()?;
            }
            self.note(task, &plan.pairs).await;
            task.stats.counts.applied.fetch_add(1, Ordering::SeqCst);
            return Ok(None);
        }
    }

    /// What an operator says of `change`, which concerns the whole store.
    async fn whole_store_answer(
        &mut self,
        task: &mut ApplyTask,
        change: &Change,
        refused: Option<&str>,
    ) -> Result<HeldAnswer, EngineError> {
        let beyond = task.connector.reaches_beyond(change);
        loop {
            let mut what = what_is_held(task, change);
            if let Some(refused) = refused {
                what.push_str(&format!("; the target refused it: {refused}"));
            }
            if beyond {
                what.push_str(
                    ", which would also reach what the channel does not carry: it can only be dropped",
                );
            }
            match self.question(task, what).await? {
                HeldAnswer::Apply if beyond => {
                    warn!(partition = %task.partition, seq = %change.seq, "not applied: it can only be dropped");
                }
                answer => return Ok(answer),
            }
        }
    }

    /// What the target wrote and the origin had not seen is gone with `whole`, a change of the whole store, or is
    /// in another place; the origin has it, or will have, and is asked. Nothing is under way.
    async fn restore(
        &mut self,
        task: &ApplyTask,
        target: &mut dyn Target,
        whole: &Change,
    ) -> Result<(), EngineError> {
        let Some(own) = &task.own else { return Ok(()) };
        watch_keys(task, target, &[]).await?;
        let end = lock(&task.shared.recent).end();
        let range = (task.log.locate(own, whole.seen).await?, task.log.locate(own, end).await?);
        let (log, connector) = (task.log.as_ref(), task.connector.as_ref());
        let written = touched_keys(log, own, range, connector, |_, _, _| true).await?;
        if is_damaged(log, own, range.0, range.1) {
            task.ask_for_snapshot(task.log.bounds(&task.partition).end).await?;
        }
        let moved: Vec<Key> = written.values().filter_map(|key| connector.moved(whole, key)).collect();
        let taken = written.into_values().filter(|key| connector.takes(whole, key));
        let keys: Vec<Key> = taken.chain(moved).collect();
        if !keys.is_empty() {
            lock(&task.shared.put_back).extend(keys.iter().map(key_digest));
            self.ask(&task.origin, whole.seq, keys);
        }
        Ok(())
    }

    /// Shows `held` in the status until an operator answers. Nothing is under way.
    pub(crate) async fn question(
        &mut self,
        task: &mut ApplyTask,
        held: String,
    ) -> Result<HeldAnswer, EngineError> {
        warn!(partition = %task.partition, held, "held: answer with `syncd resume --held apply|drop`");
        while task.answers.try_recv().is_ok() {}
        *lock(&task.stats.held) = Some(held);
        let answer = tokio::select! {
            biased;
            answer = task.answers.recv() => answer.ok_or(EngineError::Stopped),
            () = task.shared.gate.until_wanted() => Err(EngineError::CaptureWaits),
            () = task.stop.cancelled() => Err(EngineError::Stopped),
        };
        *lock(&task.stats.held) = None;
        answer
    }

    /// The log lacks what comes next: a gap, closed by a snapshot of the origin.
    async fn log_failed(&mut self, task: &ApplyTask, error: LogError) -> Result<(), EngineError> {
        let next = match &error {
            LogError::Trimmed { start, .. } => *start,
            LogError::Corrupt { to, .. } => *to,
            _ => return Err(EngineError::Log(error)),
        };
        warn!(partition = %task.partition, error = %error, "gap: a snapshot of the origin closes it");
        task.ask_for_snapshot(next).await?;
        self.reader.skip_to(next);
        Ok(())
    }

    /// The end of a snapshot that repeats an earlier one: what it did not name is gone at the origin.
    async fn swept(
        &mut self,
        task: &mut ApplyTask,
        target: &mut dyn Target,
        changes: (Vec<Change>, Seq),
        way: Way,
        end: Change,
    ) -> Result<(), EngineError> {
        self.bring(task, target, changes, way, end.seq).await?;
        self.drain(task, target).await?;
        self.sweep(task, target, &end).await?;
        self.send(task, target, Vec::new(), false, end.seq.next()).await
    }
}

/// Whether `change` says what its key holds, and nothing of it is to come.
fn tells_all(change: &Change) -> bool {
    change.op == Op::State && change.part.is_none_or(|part| part.last)
}

fn ends_sweep(point: &super::restart::RestartPoint, seq: Seq) -> bool {
    point.snapshot.as_ref().is_some_and(|snapshot| snapshot.sweep && snapshot.end == Some(seq.0))
}

fn what_is_held(task: &ApplyTask, change: &Change) -> String {
    let made = rfc3339(UNIX_EPOCH + Duration::from_millis(change.time));
    format!("{} at seq {}, made {made}", task.connector.shown(change), change.seq)
}

/// Where to cut `changes` in two without cutting a group; `None` if they are one change or one group.
pub(crate) fn group_boundary(changes: &[Change]) -> Option<usize> {
    let middle = changes.len() / 2;
    let ends = |i: &usize| changes.get(i - 1).is_some_and(|change| change.group.is_none_or(|g| g.last));
    (1..=middle).rev().find(ends).or((middle + 1..changes.len()).find(ends))
}

/// Cuts a batch between groups; `Err` gives back one that is one change or one group.
fn halves(sent: Sent) -> Result<(Sent, Sent), Box<Sent>> {
    let Some(cut) = group_boundary(&sent.changes) else { return Err(Box::new(sent)) };
    let Sent { changes, fill, from, to, at, end, low, .. } = sent;
    let mut changes = Arc::unwrap_or_clone(changes);
    let rest = changes.split_off(cut);
    let boundary = rest.first().map_or(to, |change| change.seq);
    let half = |changes, from, to| {
        let changes = Arc::new(changes);
        let (decided, pairs, marker) = (None, Vec::new(), Marker::default());
        Sent { changes, decided, pairs, marker, fill, from, to, at, end, low }
    };
    Ok((half(changes, from, boundary), half(rest, boundary, to)))
}

/// The store has no marker, or one from before. Where the site's own stream is unbroken, the log knows what was
/// applied (the store was emptied by somebody, or is new). Else a store that is empty has lost everything, and
/// the log begins anew; one that is not may hold anything, and a snapshot has to say.
async fn lost_marker(task: &ApplyTask, target: &mut dyn Target) -> Result<Marker, EngineError> {
    let low = || Seq(task.shared.low.load(Ordering::SeqCst));
    let delivered = || Seq(task.shared.delivered.load(Ordering::SeqCst));
    if task.own.is_some() && task.shared.unbroken.load(Ordering::SeqCst) {
        watch_keys(task, target, &[]).await?;
        let applied = low();
        if applied > Seq(0) {
            warn!(partition = %task.partition, %applied, "the marker is gone from an unbroken store: written again");
            task.shared.marker_lost.raise();
        }
        let settled = Seq(task.shared.settled.load(Ordering::SeqCst)).min(applied);
        return Ok(Marker { applied, settled, delivered: delivered(), ..Marker::default() });
    }
    let begun = low() > Seq(0) || lock(&task.begun).contains(&task.partition);
    if begun && task.own.is_some() {
        // The site's own capture has to be at the store as it is now: that there is no marker tells it what was
        // forgotten, and a new one would hide it.
        watch_keys(task, target, &[]).await?;
    }
    if !begun || !has_keys(target).await? {
        return Ok(Marker::default());
    }
    let end = task.log.bounds(&task.partition).end;
    let applied = recover(task.log.as_ref(), &task.partition, end).await?.next_seq;
    warn!(partition = %task.partition, "gap: the target has keys and no marker: a snapshot of the origin closes it");
    task.ask_for_snapshot(end).await?;
    Ok(Marker { applied, settled: applied, delivered: delivered(), ..Marker::default() })
}

async fn has_keys(target: &mut dyn Target) -> Result<bool, EngineError> {
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let (keys, next) = target.keys(at).await?;
        if !keys.is_empty() {
            return Ok(true);
        }
        cursor = next;
    }
    Ok(false)
}
