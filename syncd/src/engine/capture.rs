//! Capture: carries one site's own changes from its store into its log, in the order of the store's stream.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use causeway_core::{
    Change, Connector, Error as StoreError, ErrorKind, Event, Group, Hlc, HlcClock, Key, Marker, Op, Opened,
    Position, Seq, Site, Source, Term, Token, Told,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, trace, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::intake::{Handed, Requests, TopicHeld};
use super::key_set::KeySet;
use super::known::{Known, News};
use super::order::Side;
use super::races::{Refresh, Ships};
use super::recent::{Written, key_digest, touches, unsure};
use super::restart::{
    Recovered, RestartPoint, SnapshotPoint, Terms, is_damaged, position_record, recover, touched_keys,
    walk_kept, walk_seqs,
};
use super::shared::{Ask, DirectionStats, LEFT_OUT_NAMED, SiteShared, Trouble, lock};
use super::switch::{Part, is_off};
use super::{BACKOFF_MIN, Backoff, EngineError, shown, store_unavailable};
use crate::config::Intake;
use crate::log::{Appended, Error as LogError, Log, Offset, PartitionId};
use crate::owners::Owners;

/// What capture of one site needs to know of its channel.
pub(crate) struct CaptureTask {
    pub(crate) channel: String,
    pub(crate) site: Site,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) partition: PartitionId,
    pub(crate) shared: Arc<SiteShared>,
    pub(crate) stats: Arc<DirectionStats>,
    /// The peer's log, where the channel goes both ways.
    pub(crate) peer: Option<PartitionId>,
    /// The channel's `snapshot` names this site.
    pub(crate) snapshot: bool,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Where applications hand over what they do.
    pub(crate) intake: Option<Arc<Intake>>,
    pub(crate) handed: mpsc::Receiver<Handed>,
    /// Told up to where the log holds the intake topic.
    pub(crate) topic_begun: Option<oneshot::Sender<TopicHeld>>,
    /// What stamps the changes.
    pub(crate) clock: Clock,
    /// The channel's `keep_alive`.
    pub(crate) keep_alive: bool,
    /// Where the channel's `conflict` is `owner`.
    pub(crate) owners: Option<Arc<Owners>>,
    /// Keys that are remembered in memory; those beyond in a file.
    pub(crate) keys_max: usize,
    /// Where that file is.
    pub(crate) spill_dir: PathBuf,
    /// Whether an operator paused the channel, where the log tells the next daemon that serves it.
    pub(crate) paused: Option<watch::Sender<bool>>,
}

/// A read of the source is about this long, in bytes.
const EVENTS_BYTES: usize = 256 << 10;
/// Appends that may be under way; the log bounds their bytes.
const APPENDS_MAX: usize = 64;
/// Keys asked for in one append.
const REFRESHES: usize = 10_000;
/// Records that are looked through at once for keys that may be forgotten.
const FORGOTTEN_AT_ONCE: u64 = 1 << 16;
/// A fence that brokers do not take is tried this often.
const FENCE_AGAIN: Duration = Duration::from_secs(1);
/// Keys that a source is told of, of the stretch that comes again; of others it reads again what they hold.
const TOLD_MAX: usize = 1 << 16;
/// How long that waits for the log.
const TOLD_WAIT: Duration = Duration::from_secs(10);
/// Places of that stretch whose seqs are known.
const STRETCH_MAX: usize = 1024;
/// How often the restart point, and with it `low`, is written.
const POSITION_EVERY: Duration = Duration::from_secs(1);

/// And at least once in so many bytes: retention never goes beyond the newest one, also in a full log.
const POSITION_EVERY_BYTES: usize = 8 << 20;

/// And once the site has applied so many changes more: the peer remembers its own until it is told.
const LOW_TOLD_EVERY: u64 = 1 << 14;

/// A term has numbers for so many redos: of a term all are smaller than of the next one.
const REDOS_BITS: u32 = 24;

/// Tells milliseconds since 1970.
pub(crate) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl CaptureTask {
    /// The site's changes.
    pub(super) fn ours(&self) -> Side<'_> {
        Side { connector: self.connector.as_ref(), owners: self.owners.as_deref(), site: self.site }
    }

    /// The peer's.
    pub(super) fn theirs(&self) -> Side<'_> {
        self.ours().peer()
    }

    /// Runs until `stop`. A store that fails is opened again; an error of the log ends it.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), EngineError> {
        let mut capture = tokio::select! {
            biased;
            begun = Capture::begin(&self) => begun?,
            () = stop.cancelled() => return Ok(()),
        };
        if let Some(begun) = self.topic_begun.take() {
            // What damaged records held of it is not known.
            let is_lost = capture.snapshot_asked == Some(true);
            let _nobody_reads = begun.send(match capture.point.topic {
                Some(place) => TopicHeld::To(place),
                None if is_lost => TopicHeld::Unknown,
                None => TopicHeld::Nothing,
            });
        }
        let mut source = self.connector.source(self.site);
        self.shared.backlog.told_by(source.as_ref());
        let mut backoff = Backoff::new(&format!("capture {}", self.partition), BACKOFF_MIN);
        while !stop.is_cancelled() {
            let ended = carry(&mut self, &mut capture, source.as_mut(), &stop, &mut backoff).await;
            let error = match ended {
                Ok(End::Stopped) => break,
                Ok(End::SnapshotAsked) => continue,
                Err(EngineError::Store(error)) => error,
                Err(other) => return Err(other),
            };
            self.stats.capture_connected.store(false, Ordering::SeqCst);
            let setup = error.kind() == ErrorKind::Setup;
            let (failures, wait) = backoff.failed(std::mem::take(&mut capture.progressed), setup);
            warn!(channel = %self.channel, partition = %self.partition, failures, error = %error, "capture failed");
            *lock(&self.stats.capture_error) = Some(Trouble::of(&error));
            let waited = tokio::time::sleep(wait);
            tokio::pin!(waited);
            loop {
                tokio::select! {
                    biased;
                    () = &mut waited => break,
                    () = stop.cancelled() => break,
                    // The log takes it, whatever the store does.
                    Some((appended, batch)) = capture.under_way.next() => {
                        capture.durable(&self, source.as_mut(), appended?, batch);
                    }
                    Some(handed) = self.handed.recv() => capture.take_handed(&mut self, handed).await?,
                }
            }
        }
        capture.finish(&self, source.as_mut()).await
    }
}

/// Why the source is carried no further, without a fault.
enum End {
    /// Somebody asked for a snapshot: the source has to be opened again.
    SnapshotAsked,
    Stopped,
}

/// Opens the source and carries events until something ends it. Never dropped half-way: what was taken from
/// the source is either in the log or known to be lost.
async fn carry(
    task: &mut CaptureTask,
    capture: &mut Capture,
    source: &mut dyn Source,
    stop: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<End, EngineError> {
    tokio::select! {
        biased;
        opened = capture.open(task, source) => opened?,
        () = stop.cancelled() => return Ok(End::Stopped),
    }
    backoff.began();
    let mut events = std::mem::take(&mut capture.early);
    capture.take(task, source, &mut events).await?;
    capture.ship(task, source).await?;
    let mut position_due = tokio::time::interval(POSITION_EVERY);
    position_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if capture.snapshot_waits.is_some_and(|gap| gap || capture.nothing_is_open(task)) {
            capture.snapshot_asked = capture.snapshot_waits.take();
            return Ok(End::SnapshotAsked);
        }
        tokio::select! {
            biased;
            Some((appended, batch)) = capture.under_way.next() => capture.durable(task, source, appended?, batch),
            Some(ask) = task.asks.recv() => match ask {
                Ask::Refresh { keys, done, missed } => {
                    capture.refresh_keys(source, keys, Some(done), missed).await?;
                }
                Ask::Peer { keys, done } => capture.hand_on(task, &keys, done).await?,
                Ask::Paused { done } => {
                    capture.position_answers.push(done);
                    capture.position(task, source).await?;
                }
                Ask::Snapshot { gap } => {
                    task.stats.counts.gaps_total.fetch_add(u64::from(gap), Ordering::SeqCst);
                    capture.snapshot_waits = Some(gap || capture.snapshot_waits == Some(true));
                }
            },
            _ = position_due.tick() => capture.position(task, source).await?,
            Some(handed) = task.handed.recv(), if capture.under_way.len() < APPENDS_MAX => {
                capture.take_handed(task, handed).await?;
            }
            read = source.next(&mut events, EVENTS_BYTES), if capture.under_way.len() < APPENDS_MAX => {
                read?;
                capture.take(task, source, &mut events).await?;
                capture.ship(task, source).await?;
            }
            () = stop.cancelled() => return Ok(End::Stopped),
        }
    }
}

/// A group without what has to be handed over.
fn without_handed_over(task: &CaptureTask, mut group: Vec<Change>) -> Vec<Change> {
    let whole = group.len();
    group.retain(|change| !task.is_for_the_intake(change));
    let last = group.len().saturating_sub(1);
    if group.len() < whole {
        for (n, change) in group.iter_mut().enumerate() {
            change.group = change.group.map(|group| Group { n: n as u32, last: n == last, ..group });
        }
    }
    group
}

/// What one append brought.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    data: u64,
    last: Position,
    /// Below this our log is durable once this is.
    end: Seq,
    tokens: Vec<Token>,
    pub(super) answers: Vec<oneshot::Sender<()>>,
    is_position: bool,
    /// Of that one.
    remembered_from: u64,
}

/// Of a place of the stream, what was so when it had come there.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    at: u64,
    /// Our first seq behind it.
    first: Seq,
    /// Our changes from here on were remembered.
    remembered: Seq,
}

type UnderWay = futures_util::future::BoxFuture<'static, (crate::log::Result<Offset>, Batch)>;

pub(super) struct Capture {
    term: Term,
    /// Whoever waits for the next restart point.
    position_answers: Vec<oneshot::Sender<()>>,
    pub(super) clock: HlcClock,
    pub(super) next_seq: Seq,
    pub(super) low: Seq,
    /// As it was when the stream began anew.
    low_at_open: Seq,
    pub(super) point: RestartPoint,
    pub(super) resume_at: Option<Position>,
    /// Places of the stream; the oldest is where a restart reads on, or before.
    stretch: VecDeque<Stretch>,
    /// Places of the stream, each with the time before which everything that was written stands before it.
    currents: VecDeque<(u64, u64)>,
    pub(super) last: Position,
    /// The event before this one stands here, whether or not the log holds it already.
    pub(super) passed: Position,
    /// Races of markers up to here are known.
    pub(super) checked_to: Option<Position>,
    /// What the source brings again up to here is in the log.
    held_below: Option<u64>,
    /// The stream went on at this time, and what comes may have been written before it.
    backlog_until: Option<u64>,
    /// What stands up to here was written before that, nobody knows when.
    backlog_end: Option<u64>,
    /// A group whose last change has not come yet: it is appended whole.
    open_group: Vec<Change>,
    under_way: FuturesOrdered<UnderWay>,
    /// When each of those was begun.
    begun: VecDeque<u64>,
    pub(super) refreshes: HashMap<Token, Refresh>,
    pub(super) ships: Ships,
    written: Written,
    /// Keys that the store may have forgotten our writes to: the peer is asked for them.
    forgotten: KeySet,
    /// Keys that may lack what the peer wrote last: it is asked for them, too.
    unsettled: HashSet<u128>,
    /// What the logs say of keys, while a snapshot closes a gap.
    known: Known,
    /// And whether it closes a gap.
    snapshot_asked: Option<bool>,
    /// The same, until nothing is open that would be forgotten with the stream.
    snapshot_waits: Option<bool>,
    /// It came to a place of the stream where it never was before, or to a snapshot's end.
    progressed: bool,
    bytes_since_position: usize,
    /// Of the newest `position`.
    low_told: Seq,
    /// What came before the carrying began.
    early: Vec<Event>,
    pub(super) requests: Requests,
}

/// What numbers the stream that `events` begin.
fn history(events: &[Event]) -> Option<&bytes::Bytes> {
    events.iter().find_map(|event| match event {
        Event::SnapshotStarted { pos, .. } | Event::Idle { pos } => Some(&pos.history),
        _ => None,
    })
}

impl Capture {
    /// Begins a term: appends a fence, and reads what the log holds up to it.
    async fn begin(task: &CaptureTask) -> Result<Capture, EngineError> {
        let mut fence = Change::captured(Op::Fence, Key::none(), None, Position::default(), (task.clock)());
        // A log that others write to as well says itself where it comes to stand.
        fence.term = Term(task.log.bounds(&task.partition).end.0);
        let place = loop {
            match task.log.append(&task.partition, vec![fence.clone()]).await?.await {
                // Nothing was begun yet: it is tried until brokers that are away are back.
                Err(error @ LogError::Kafka { .. }) => {
                    warn!(partition = %task.partition, %error, "capture cannot begin: it is tried again");
                    let error =
                        store_unavailable("begin a term in the log", &task.channel, error.to_string());
                    *lock(&task.stats.capture_error) = Some(Trouble::of(&error));
                    tokio::time::sleep(FENCE_AGAIN).await;
                }
                placed => break placed?,
            }
        };
        let term = Term::from(place);
        let mut found = recover(task.log.as_ref(), &task.partition, place).await?;
        if found.resume_at.is_none() && !found.damaged {
            let its_own = format!("{} {} {}", task.partition, place.0, (task.clock)());
            found.point.log = xxh3_64(its_own.as_bytes()) | 1;
        }
        let remembered_from = Seq(found.point.remembered_from);
        let (mut written, mut requests) = (Written::default(), Requests::default());
        let mut damaged = found.damaged;
        if task.peer.is_some() || task.intake.is_some() {
            let begin = Offset(place.0.saturating_sub(Written::KEYS_MAX as u64))
                .max(task.log.bounds(&task.partition).start);
            let remembered = task.intake.as_ref().map_or(0, |intake| intake.remembered);
            walk_kept(task.log.as_ref(), &task.partition, begin, place, |_, change| {
                written.note(&touches(&change, task.ours()));
                requests.note(&change, remembered);
            })
            .await?;
        }
        if task.peer.is_some() {
            damaged |= remember(task, remembered_from, place, &found).await?;
            // What was damaged before the snapshot that closed the gap is closed with it.
            let covered = found.point.snapshot.as_ref().filter(|snapshot| snapshot.gap);
            if let Some(first) = covered.map(|snapshot| Seq(snapshot.first)).filter(|_| !found.damaged) {
                let from = task.log.locate(&task.partition, first.max(remembered_from)).await?;
                damaged = is_damaged(task.log.as_ref(), &task.partition, from, place);
            }
            lock(&task.shared.recent).reach(found.next_seq);
            lock(&task.shared.redos).begin(term.0 << REDOS_BITS);
        }
        if let Some(paused) = &task.paused {
            paused.send_replace(found.point.paused);
        }
        task.shared.low.store(found.low.0, Ordering::SeqCst);
        task.shared.settled.store(found.point.settled, Ordering::SeqCst);
        task.shared.delivered.store(found.point.delivered, Ordering::SeqCst);
        task.stats.snapshot_told(found.point.snapshot.as_ref());
        task.stats.data_end.store(found.last_data.map_or(0, |seq| seq.next().0), Ordering::SeqCst);
        task.stats.position_offset.store(found.position_offset.0, Ordering::SeqCst);
        task.stats.remembered_from.store(remembered_from.0, Ordering::SeqCst);
        if damaged {
            error!(partition = %task.partition, "gap: of this site's log is damaged what the peer may not have, or \
                where capture was: a snapshot closes it");
            task.stats.counts.gaps_total.fetch_add(1, Ordering::SeqCst);
            task.shared.lost_below.store(found.next_seq.0, Ordering::SeqCst);
        }
        info!(partition = %task.partition, term = term.0, next_seq = found.next_seq.0, "capture begins");
        Ok(Capture {
            position_answers: Vec::new(),
            term,
            clock: HlcClock::new(task.site, found.hlc),
            next_seq: found.next_seq,
            low: found.low,
            low_at_open: found.low,
            last: found.reached(),
            passed: Position::default(),
            checked_to: None,
            resume_at: found.resume_at,
            stretch: VecDeque::from([Stretch { at: 0, first: remembered_from, remembered: remembered_from }]),
            currents: VecDeque::new(),
            point: found.point,
            held_below: None,
            backlog_until: None,
            backlog_end: None,
            open_group: Vec::new(),
            under_way: FuturesOrdered::new(),
            begun: VecDeque::new(),
            refreshes: HashMap::new(),
            ships: Ships::default(),
            written,
            forgotten: KeySet::new(task.spill_dir.clone(), task.keys_max),
            unsettled: HashSet::new(),
            known: Known::default(),
            snapshot_asked: damaged.then_some(true),
            snapshot_waits: None,
            progressed: false,
            bytes_since_position: 0,
            low_told: found.low,
            early: Vec::new(),
            requests,
        })
    }

    /// Opens the source where the log ends, with nothing being applied into the store meanwhile.
    async fn open(&mut self, task: &CaptureTask, source: &mut dyn Source) -> Result<(), EngineError> {
        task.stats.capture_connected.store(false, Ordering::SeqCst);
        // Some may have failed.
        let failed = self.begun.len().saturating_sub(self.under_way.len());
        self.begun.drain(..failed);
        // Those who wait will see that their answer is lost and ask again.
        self.refreshes.clear();
        self.ships.ask_again();
        self.open_group.clear();
        self.early.clear();
        self.unsettled.clear();
        // What a sweep or a gap has to know of a snapshot is not known any more.
        let goes_on = |s: &SnapshotPoint| {
            task.connector.capability().resumes_snapshot && !s.sweep && !s.gap && self.resume_at.is_some()
        };
        let broken = self.point.snapshot.as_ref().is_some_and(|s| s.end.is_none() && !goes_on(s));
        let anew = broken || self.snapshot_asked.is_some();
        let from = if anew { None } else { self.resume_at.clone() };
        let wanted = task.snapshot || anew || from.is_some();
        let comes_again = from.as_ref().filter(|from| task.peer.is_some() && from.at < self.last.at);
        let told = match (comes_again, self.stretch.front().copied()) {
            (Some(from), Some(Stretch { first, .. })) => {
                let all = async {
                    self.wait_for_appends(task, source).await?;
                    told(task, (first, from), (&self.point, &self.last)).await
                };
                // A log whose brokers are away must not keep the source from the store.
                tokio::time::timeout(TOLD_WAIT, all).await.unwrap_or_else(|_| Ok(Told::new()))?
            }
            _ => Told::new(),
        };
        let known = task.shared.gate.hold(task.peer.is_some()).await;
        if let (true, Some(place)) = (broken, &self.resume_at) {
            source.snapshot_broke_at(place);
        }
        source.held(&self.last);
        let opened = source.open(from.as_ref(), wanted, told).await?;
        let marker = known.as_ref().and_then(Option::as_ref).cloned().unwrap_or_default();
        let applied = marker.applied;
        if known.as_ref().is_some_and(Option::is_some) && marker.delivered.0 < self.point.delivered {
            self.deliver_again(task, marker.delivered).await?;
        }
        *lock(&task.stats.capture_error) = None;
        *lock(&task.stats.warning) = source.warning();
        task.shared.unbroken.store(opened == Opened::Resumed, Ordering::SeqCst);
        match opened {
            // The log may be ahead of where a restart reads on, and so of a server that took over.
            Opened::Resumed if source.diverged(&self.last) => {
                task.stats.counts.gaps_total.fetch_add(1, Ordering::SeqCst);
                self.snapshot_asked = Some(true);
                return Err(EngineError::Store(StoreError::PositionLost {
                    position: self.last.to_string(),
                    reason: "the server that took over never got so far".to_owned(),
                }));
            }
            Opened::Resumed => {
                if source.moved() {
                    // What comes again has other places: of our own changes it counts as behind all. A race too many is
                    // evaluated to what the store holds, and a missed one would not be.
                    lock(&task.shared.recent).stream_is_new();
                }
                self.held_below = Some(self.last.at);
                self.backlog_until = Some((task.clock)());
                self.backlog_end = source.backlog_end();
                self.passed = from.clone().unwrap_or_default();
            }
            Opened::Anew { lost } => {
                (self.held_below, self.backlog_until, self.backlog_end) = (None, None, None);
                let (first, remembered) = (self.next_seq, lock(&task.shared.recent).oldest());
                self.stretch = VecDeque::from([Stretch { at: 0, first, remembered }]);
                self.currents.clear();
                self.point.line.clear();
                let first = self.next_seq.0;
                // Its first event says whether it is still the stream that we had.
                while self.early.is_empty() {
                    source.next(&mut self.early, 1).await?;
                }
                let same = history(&self.early).is_none_or(|history| *history == self.last.history);
                if task.peer.is_some()
                    && (from.is_some() || anew)
                    && !same
                    && !source.keeps_what_it_streamed()
                {
                    self.ask_for_forgotten(task, source, applied).await?;
                }
                (self.low, self.low_at_open) = (applied, applied);
                self.checked_to = None;
                self.forget_races(task);
                self.point.settled = marker.settled.0;
                let gap = lost.is_some()
                    || self.snapshot_asked == Some(true)
                    || self.point.snapshot.as_ref().is_some_and(|s| s.gap && s.end.is_none());
                if let Some(reason) = lost {
                    warn!(partition = %task.partition, position = %self.last, reason, "gap: the stream was lost here");
                    task.stats.counts.gaps_total.fetch_add(1, Ordering::SeqCst);
                }
                let never_complete =
                    self.point.snapshot.as_ref().is_none_or(|s| s.initial && s.end.is_none());
                let initial = never_complete && !gap && self.snapshot_asked.is_none();
                self.point.snapshot = (wanted && (task.snapshot || gap || anew)).then(|| SnapshotPoint {
                    first,
                    sweep: gap || anew,
                    gap,
                    initial,
                    ..SnapshotPoint::default()
                });
                self.snapshot_asked = None;
            }
        }
        drop(known);
        // Whatever began it anew, the stream was not read to its end.
        let skips = self.point.snapshot.as_ref().is_some_and(|s| s.sweep && s.end.is_none());
        self.known = Known::default();
        if let Some(peer) = task.peer.as_ref().filter(|_| skips) {
            self.wait_for_appends(task, source).await?;
            self.known = Known::read(task, peer, &marker, self.snapshot_first()).await?;
            self.ask_again(task).await?;
            self.leave_unsettled(task, peer, &marker).await?;
        }
        task.stats.capture_connected.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// What the peer wrote last may have been refused here, while `applied` counts it: a state read now would
    /// pass for newer than it is. The peer is asked for these keys, and the snapshot has no word in it.
    async fn leave_unsettled(
        &mut self,
        task: &CaptureTask,
        peer: &PartitionId,
        marker: &Marker,
    ) -> Result<(), EngineError> {
        let start = task.log.locate(peer, marker.settled).await?;
        let end = task.log.locate(peer, marker.applied).await?;
        let written = |change: &Change, _, _: &Key| matches!(change.op, Op::Command | Op::Put | Op::Read);
        let (log, connector) = (task.log.as_ref(), task.connector.as_ref());
        let unsettled = touched_keys(log, peer, (start, end), connector, written).await?;
        self.ask_peer(task, &unsettled).await?;
        self.unsettled = unsettled.into_keys().collect();
        Ok(())
    }

    /// Names `keys` in our log as `refresh`, durably: the peer answers with their states.
    async fn ask_peer(&mut self, task: &CaptureTask, keys: &BTreeMap<u128, Key>) -> Result<(), EngineError> {
        let mut keys = keys.values();
        loop {
            let changes: Vec<Change> =
                keys.by_ref().take(REFRESHES).map(|key| self.refresh(task, key)).collect();
            if changes.is_empty() {
                return Ok(());
            }
            task.log.append(&task.partition, changes).await?.await?;
        }
    }

    /// As [`ask_peer`](Capture::ask_peer), for our applier, whose peer is of another process.
    async fn hand_on(
        &mut self,
        task: &CaptureTask,
        keys: &[Key],
        done: oneshot::Sender<()>,
    ) -> Result<(), EngineError> {
        let mut done = Some(done);
        let mut chunks = keys.chunks(REFRESHES).peekable();
        while let Some(keys) = chunks.next() {
            // Our store may well hold it: of a snapshot's row it takes nothing away.
            let ask = |key| Change { uncertain: true, ..self.refresh(task, key) };
            let changes = keys.iter().map(ask).collect();
            let answers =
                if chunks.peek().is_none() { done.take().into_iter().collect() } else { Vec::new() };
            self.append(task, Batch { changes, answers, ..Batch::default() }).await?;
        }
        Ok(())
    }

    /// The store came back, perhaps older than it was: every key that our log names with `seen` at or above
    /// the marker found may lack writes of ours, which the peer has. They are named in our log as `refresh`,
    /// durably before anything is applied again and moves the marker; the peer answers with their states.
    async fn ask_for_forgotten(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
        applied: Seq,
    ) -> Result<(), EngineError> {
        self.wait_for_appends(task, source).await?;
        self.forgotten.clear();
        let Range { start: mut from, end } = task.log.bounds(&task.partition);
        let unseen = |change: &Change, _, _: &Key| change.seen >= applied;
        while from < end {
            // They may be more than memory has room for.
            let to = end.min(Offset(from.0 + FORGOTTEN_AT_ONCE));
            let (log, connector) = (task.log.as_ref(), task.connector.as_ref());
            let mut new = BTreeMap::new();
            for (digest, key) in touched_keys(log, &task.partition, (from, to), connector, unseen).await? {
                if self.forgotten.insert(digest)? {
                    new.insert(digest, key);
                }
            }
            self.ask_peer(task, &new).await?;
            from = to;
        }
        let keys = self.forgotten.len();
        info!(partition = %task.partition, %applied, keys, "the peer was asked for these");
        Ok(())
    }

    /// The rows of the snapshot that is being read stand at and above this seq.
    fn snapshot_first(&self) -> Seq {
        self.point.snapshot.as_ref().map_or(self.next_seq, |snapshot| Seq(snapshot.first))
    }

    /// What the peer was asked for and has not come may still be missing here: it is asked for once more, by
    /// which the snapshot names it, and has no other word in it.
    async fn ask_again(&mut self, task: &CaptureTask) -> Result<(), EngineError> {
        let awaited = std::mem::take(&mut self.known.awaited);
        self.ask_peer(task, &awaited).await?;
        for digest in awaited.into_keys() {
            self.forgotten.insert(digest)?;
        }
        Ok(())
    }

    /// Names in our log what both sites had and the snapshot that closed the gap did not name: it was deleted
    /// in the gap.
    async fn deleted_in_gap(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
        pos: &Position,
        (left_out, named): &(u64, Vec<(Key, String)>),
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        let Some(peer) = &task.peer else { return Ok(()) };
        // Some that are there may not have been named.
        if *left_out <= named.len() as u64 {
            let mut missing = self.known.missing(task, peer).await?;
            named.iter().for_each(|(key, _)| _ = missing.remove(&key_digest(key)));
            if !missing.is_empty() && task.connector.capability().resumes_snapshot {
                self.append(task, std::mem::take(batch)).await?;
                self.wait_for_appends(task, source).await?;
                let (first, theirs) = (self.snapshot_first(), self.low_at_open..self.low);
                for digest in written_in_snapshot(task, peer, first, theirs).await? {
                    missing.remove(&digest);
                }
            }
            for key in missing.into_values() {
                // The store may only have forgotten it: the peer says. And whoever hands over does so with deletes.
                if self.may_be_forgotten(&key)? || task.is_handed_over(&key) {
                    continue;
                }
                let mut absent = Change::captured(Op::State, key, None, pos.clone(), (task.clock)());
                absent.uncertain = true;
                self.stamp(task, absent, batch)?;
                if batch.changes.len() >= REFRESHES {
                    self.append(task, std::mem::take(batch)).await?;
                }
            }
        }
        self.known = Known::default();
        Ok(())
    }

    /// What was handed over below is in the store.
    fn has_delivered(&mut self, task: &CaptureTask, below: Seq) {
        self.point.delivered = self.point.delivered.max(below.0);
        task.shared.delivered.store(self.point.delivered, Ordering::SeqCst);
        lock(&task.shared.undelivered).delivered(below);
    }

    /// The store holds less of what was handed over than it held.
    async fn deliver_again(&mut self, task: &CaptureTask, from: Seq) -> Result<(), EngineError> {
        let end = Seq(std::mem::replace(&mut self.point.delivered, from.0));
        task.shared.delivered.store(from.0, Ordering::SeqCst);
        walk_seqs(task.log.as_ref(), &task.partition, from..end, |change| task.note_handed_over(&change))
            .await?;
        Ok(())
    }

    async fn wait_for_appends(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
    ) -> Result<(), EngineError> {
        while let Some((appended, batch)) = self.under_way.next().await {
            self.durable(task, source, appended?, batch);
        }
        Ok(())
    }

    fn refresh(&mut self, task: &CaptureTask, key: &Key) -> Change {
        let mut refresh = Change::captured(Op::Refresh, key.clone(), None, self.last.clone(), (task.clock)());
        (refresh.term, refresh.seq) = (self.term, self.next_seq);
        (refresh.seen, refresh.low) = (self.low, self.low);
        self.next_seq = self.next_seq.next();
        refresh
    }

    /// Takes over what the source brought.
    async fn take(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
        events: &mut Vec<Event>,
    ) -> Result<(), EngineError> {
        self.backlog_until.take_if(|opened| source.current() >= Some(*opened));
        let mut batch = Batch::default();
        let taken = self.take_events(task, source, events, &mut batch).await;
        // What came before something that failed has its seqs, and does not come again.
        self.append(task, batch).await?;
        taken
    }

    async fn take_events(
        &mut self,
        task: &CaptureTask,
        source: &mut dyn Source,
        events: &mut Vec<Event>,
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        for event in events.drain(..) {
            match event {
                Event::Change(change) => self.change(task, change, batch)?,
                Event::Marker { marker, pos } => {
                    self.has_delivered(task, marker.delivered);
                    self.low = self.low.max(marker.applied);
                    self.point.settled = self.point.settled.max(marker.settled.0);
                    if !is_off(Part::Clock) {
                        self.clock.observe(marker.hlc);
                    }
                    task.shared.low.store(self.low.0, Ordering::SeqCst);
                    task.shared.settled.store(self.point.settled, Ordering::SeqCst);
                    self.check_races(task, &marker, &pos).await?;
                    self.reached(pos);
                }
                Event::Token(token) => match self.refreshes.remove(&token) {
                    Some(asked) => batch.answers.extend(asked.done),
                    None => batch.tokens.push(token),
                },
                Event::MarkerLost { pos } => {
                    self.reached(pos);
                    task.shared.marker_lost.raise();
                }
                Event::SnapshotStarted { total, pos } => {
                    self.passed = pos.clone();
                    self.last = pos;
                    if let Some(snapshot) = &mut self.point.snapshot {
                        snapshot.total = total;
                        self.push_position(task, source, batch);
                    }
                }
                Event::SnapshotEnded { pos, left_out } => {
                    self.deleted_in_gap(task, source, &pos, &left_out, batch).await?;
                    // One that goes on and had only its end left says so before the stream is back where it was.
                    self.reached(pos);
                    let end = self.next_seq.0;
                    self.progressed = true;
                    if let Some(snapshot) = &mut self.point.snapshot {
                        snapshot.end = Some(end);
                        snapshot.left_out = left_out.0;
                    }
                    self.forgotten.clear();
                    self.unsettled = HashSet::new();
                    for (key, reason) in &left_out.1 {
                        warn!(partition = %task.partition, key = %shown(key), reason, "left out");
                    }
                    *lock(&task.stats.left_out) = left_out.1;
                    self.push_position(task, source, batch);
                }
                Event::LeftOut { key, reason, pos } => {
                    // Counted before the break.
                    if self.held_below.is_none_or(|held| pos.at > held) {
                        self.left_out(task, key, reason);
                    }
                }
                Event::Idle { pos } => {
                    self.reached(pos);
                    // Before the first change stands in the log, it has to say where the stream began.
                    if self.resume_at.is_none() {
                        self.push_position(task, source, batch);
                    }
                }
            }
        }
        let is_due = self.bytes_since_position >= POSITION_EVERY_BYTES
            || self.low.0 >= self.low_told.0.saturating_add(LOW_TOLD_EVERY);
        if is_due && self.open_group.is_empty() {
            self.push_position(task, source, batch);
        }
        Ok(())
    }

    /// Something of the stream cannot be carried.
    fn left_out(&mut self, task: &CaptureTask, key: Key, reason: String) {
        match &mut self.point.snapshot {
            Some(snapshot) => {
                snapshot.left_out += 1;
                *lock(&task.stats.snapshot) = Some(snapshot.clone());
            }
            None => _ = task.stats.counts.left_out_of_stream.fetch_add(1, Ordering::SeqCst),
        }
        let mut named = lock(&task.stats.left_out);
        // Once each, as a command that nobody knows may come all the time.
        let news = named.len() < LEFT_OUT_NAMED && !named.iter().any(|(k, r)| *k == key && *r == reason);
        if news {
            error!(partition = %task.partition, key = %shown(&key), reason, "left out: it cannot be carried");
            named.push((key, reason));
        }
    }

    fn change(
        &mut self,
        task: &CaptureTask,
        mut change: Change,
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        if let Some(group) = change.group {
            let group_end = change.pos.clone();
            self.open_group.push(change);
            if group.last {
                for change in without_handed_over(task, std::mem::take(&mut self.open_group)) {
                    self.stamp(task, change, batch)?;
                }
                self.reached(group_end);
            }
            return Ok(());
        }
        if change.op == Op::Read {
            if self.point.snapshot.is_none() || self.may_be_forgotten(&change.key)? {
                return Ok(());
            }
            let sweep = self.point.snapshot.as_ref().filter(|snapshot| snapshot.sweep);
            let known = sweep.is_some() && self.known.note_row(&change.key);
            if (sweep.is_some() || task.intake.is_some()) && self.is_contested(task, &change.key) {
                // It may hold what it should not: it is told once it doesn't.
                self.ships.open(&change.key, &self.passed);
                return Ok(());
            }
            if let Some(snapshot) = sweep {
                // A repeated snapshot replaces what an earlier one brought.
                if !snapshot.initial || task.peer.is_none() || known {
                    (change.op, change.uncertain) = (Op::State, true);
                }
            }
            self.stamp(task, change, batch)?;
        } else {
            let pos = change.pos.clone();
            let is_told = !task.is_for_the_intake(&change);
            if is_told && (change.op != Op::State || self.may_tell(task, &change)) {
                let ship = self.answers(&change);
                self.stamp(task, change, batch)?;
                // Its version is told by what the ship has kept.
                ship.into_iter().for_each(|digest| self.shipped(task, digest));
            }
            self.reached(pos);
        }
        Ok(())
    }

    fn may_be_forgotten(&self, key: &Key) -> Result<bool, EngineError> {
        if self.forgotten.is_empty() && self.unsettled.is_empty() {
            return Ok(false);
        }
        let digest = key_digest(key);
        Ok(self.unsettled.contains(&digest) || self.forgotten.contains(digest)?)
    }

    /// The stream has come to `pos`; what it repeats after a break is behind us already.
    fn reached(&mut self, pos: Position) {
        self.passed = pos.clone();
        if self.held_below.is_none_or(|held| pos.at > held) {
            // What a snapshot that breaks has read is read again, and the stream goes on beside it.
            let further = pos.history == self.last.history && pos.at > self.last.at;
            self.progressed |= further && !self.in_snapshot();
            // One that begins anew is another stream.
            if self.held_below.is_some() {
                self.point.passes(&self.last, &pos);
            }
            self.last = pos;
        }
    }

    pub(super) fn is_beyond_what_is_held(&self) -> bool {
        self.held_below.is_none_or(|held| self.passed.at >= held)
    }

    pub(super) fn in_snapshot(&self) -> bool {
        self.point.snapshot.as_ref().is_some_and(|snapshot| snapshot.end.is_none())
    }

    /// Gives the change its place and version, unless the log holds it from before a break.
    fn stamp(&mut self, task: &CaptureTask, change: Change, batch: &mut Batch) -> Result<(), EngineError> {
        match self.held_below {
            Some(held) if change.pos.at <= held => Ok(()),
            _ => self.place(task, change, batch),
        }
    }

    /// The same of what the log does not hold.
    pub(super) fn place(
        &mut self,
        task: &CaptureTask,
        mut change: Change,
        batch: &mut Batch,
    ) -> Result<(), EngineError> {
        change.term = self.term;
        change.seq = self.next_seq;
        self.next_seq = self.next_seq.next();
        self.point.data_end = self.next_seq.0;
        (change.seen, change.low) = self.seen(task, &change.key);
        // Of what is read again and not written just now nobody knows when it was written last.
        let news = match change.uncertain {
            true => self.known.judge(&change, task.connector.as_ref()),
            false => News::New,
        };
        // At least as new as our last write to it that is known; what was done in a gap, as the gap's end.
        change.hlc = match (change.op, news) {
            (Op::Read, _) => Hlc(0),
            _ if change.uncertain && !self.in_snapshot() && task.peer.is_some() => {
                self.whole_version(task, &change.key)?
            }
            (_, News::Known) => self.written.last_whole(&change.key),
            (_, News::Unsure) => unsure(self.written.last(&change.key)),
            (_, News::New) => {
                let (time, is_guess) = self.date(task, &change);
                let now = self.clock.stamp(time);
                let here = || task.ours().place(&change.key, change.seq, change.seen);
                let read_again = change.uncertain;
                change.uncertain |= is_guess;
                if read_again { unsure(here().unwrap_or(now)) } else { now }
            }
        };
        if task.peer.is_some() {
            let touched = touches(&change, task.ours());
            lock(&task.shared.recent).note(&touched);
            self.written.note(&touched);
        }
        task.note_handed_over(&change);
        trace!(partition = %task.partition, key = %shown(&change.key), op = change.op.as_str(), seq = %change.seq,
            seen = %change.seen, hlc = change.hlc.0, pos = %change.pos, "captured");
        batch.data += 1;
        self.bytes_since_position += change.cost();
        batch.changes.push(change);
        Ok(())
    }

    /// When `change` was made, and whether that is a guess: what is read of a backlog after an outage when the store says so,
    /// else at the last time that is known before it.
    fn date(&self, task: &CaptureTask, change: &Change) -> (u64, bool) {
        let is_write = matches!(change.op, Op::Command | Op::Put | Op::Delete);
        match self.backlog_until {
            // What was produced tells when.
            _ if change.intake.is_some() => (change.time, false),
            _ if is_write && self.point.current > 0 && self.backlog_end >= Some(change.pos.at) => {
                (self.point.current, true)
            }
            Some(opened) if change.time < opened => (change.time, false),
            _ => ((task.clock)(), false),
        }
    }

    fn push_position(&mut self, task: &CaptureTask, source: &mut dyn Source, batch: &mut Batch) {
        let remembered = lock(&task.shared.recent).oldest();
        self.point.last = self.last.to_string();
        self.point.paused = task.paused.as_ref().is_some_and(|paused| *paused.borrow());
        batch.answers.append(&mut self.position_answers);
        let resume_at = source.restart_point(&self.nothing_open_before(task));
        if self.stretch.len() < STRETCH_MAX {
            self.stretch.push_back(Stretch { at: self.last.at, first: self.next_seq, remembered });
        }
        while self.stretch.get(1).is_some_and(|next| next.at <= resume_at.at) {
            self.stretch.pop_front();
        }
        // Races of what is read again are found again, and looked into with what was remembered then.
        let then = self.stretch.front().map_or(remembered, |stretch| stretch.remembered);
        self.point.remembered_from = remembered.min(then).0;
        batch.remembered_from = self.point.remembered_from;
        // Until a snapshot has ended, and what has to be read again is read, something written before is not in the log.
        if let Some(current) = source.current().filter(|_| !self.in_snapshot())
            && self.currents.len() < STRETCH_MAX
        {
            self.currents.push_back((self.last.at, current));
        }
        while let Some((_, current)) = self.currents.pop_front_if(|(at, _)| *at <= resume_at.at) {
            self.point.current = self.point.current.max(current);
        }
        self.resume_at = Some(resume_at.clone());
        let mut record = position_record(&self.point, resume_at, (task.clock)());
        record.term = self.term;
        record.seq = self.next_seq;
        self.next_seq = self.next_seq.next();
        record.seen = self.low;
        record.low = self.low;
        record.hlc = self.clock.last();
        batch.changes.push(record);
        batch.is_position = true;
        self.bytes_since_position = 0;
        self.low_told = self.low;
        task.stats.snapshot_told(self.point.snapshot.as_ref());
    }

    /// Writes the restart point, which is also how the peer learns our `low`.
    async fn position(&mut self, task: &CaptureTask, source: &mut dyn Source) -> Result<(), EngineError> {
        if self.last == Position::default() || !self.open_group.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.push_position(task, source, &mut batch);
        self.append(task, batch).await
    }

    pub(super) async fn append(&mut self, task: &CaptureTask, mut batch: Batch) -> Result<(), EngineError> {
        batch.last = self.last.clone();
        batch.end = self.next_seq;
        if batch.data > 0 {
            // What waits for room in the log is outstanding, too.
            task.stats.data_end.fetch_max(batch.end.0, Ordering::SeqCst);
            let first = batch.changes.iter().find(|change| change.op.is_data());
            first.into_iter().for_each(|change| lock(&task.stats.waiting).note(change.seq, change.time));
        }
        let changes = std::mem::take(&mut batch.changes);
        self.begun.push_back((task.clock)());
        self.appends(task);
        let appended: Appended = task.log.append(&task.partition, changes).await?;
        self.under_way.push_back(Box::pin(async move { (appended.await, batch) }));
        Ok(())
    }

    /// Shows since when the log owes an answer.
    fn appends(&self, task: &CaptureTask) {
        task.stats.appending_since.store(self.begun.front().copied().unwrap_or(0), Ordering::SeqCst);
    }

    /// An append is durable: the store may forget what it holds, and whoever waited for it goes on.
    fn durable(&mut self, task: &CaptureTask, source: &mut dyn Source, first: Offset, batch: Batch) {
        self.begun.pop_front();
        self.appends(task);
        if batch.is_position {
            task.stats.position_offset.store(first.0, Ordering::SeqCst);
            task.stats.remembered_from.store(batch.remembered_from, Ordering::SeqCst);
            if batch.last != Position::default() {
                *lock(&task.shared.store) = task.connector.store_of(&batch.last);
                task.shared.capture_ready.raise();
            }
        }
        source.acknowledge(&batch.last);
        task.stats.counts.captured.fetch_add(batch.data, Ordering::SeqCst);
        lock(&task.shared.recent).reach(batch.end);
        if lock(&task.shared.undelivered).len() > 0 {
            task.shared.intake_waits.raise();
        }
        for token in batch.tokens {
            task.shared.tokens.pass(token);
        }
        for answer in batch.answers {
            let _gone = answer.send(());
        }
    }

    /// Waits until what is under way is durable, and leaves a last restart point.
    async fn finish(mut self, task: &CaptureTask, source: &mut dyn Source) -> Result<(), EngineError> {
        // A source that is not open cannot tell where its open re-reads began.
        if task.stats.capture_connected.load(Ordering::SeqCst) {
            self.open_group.clear();
            self.position(task, source).await?;
        }
        while let Some((appended, _)) = self.under_way.next().await {
            appended?;
        }
        Ok(())
    }
}

/// Keys that either site wrote while a snapshot was read that is no picture of one moment: we from `first` on, the peer
/// `theirs`. What it did not name of them came behind the place where it would have stood.
async fn written_in_snapshot(
    task: &CaptureTask,
    peer: &PartitionId,
    first: Seq,
    theirs: Range<Seq>,
) -> Result<Vec<u128>, EngineError> {
    let (log, connector) = (task.log.as_ref(), task.connector.as_ref());
    let ours = (log.locate(&task.partition, first).await?, log.bounds(&task.partition).end);
    let theirs = (log.locate(peer, theirs.start).await?, log.locate(peer, theirs.end).await?);
    let mut written = Vec::new();
    for (partition, range) in [(&task.partition, ours), (peer, theirs)] {
        let is_write = |change: &Change, _, _: &Key| change.op != Op::Read && !change.was_asked_for();
        written.extend(touched_keys(log, partition, range, connector, is_write).await?.into_keys());
    }
    Ok(written)
}

/// What our log, from `first` on, says of keys behind `from`, from where the stream comes again: see [`Source::open`].
async fn told(
    task: &CaptureTask,
    (first, from): (Seq, &Position),
    (point, last): (&RestartPoint, &Position),
) -> Result<Told, EngineError> {
    let mut told = Told::new();
    let start = task.log.locate(&task.partition, first).await?;
    let end = task.log.bounds(&task.partition).end;
    let mut terms = Terms::default();
    walk_kept(task.log.as_ref(), &task.partition, start, end, |_, change| {
        // A read, and what was asked for, may come while a write still waits for its outcome.
        let is_told = terms.admits(&change)
            && change.op.is_data()
            && change.op != Op::Read
            && !change.was_asked_for()
            && change.intake.is_none()
            && change.part.is_none_or(|part| part.last);
        let comes_again = point.is_in_line(&change.pos.history, last) && change.pos.at > from.at;
        if is_told && comes_again && (told.len() < TOLD_MAX || told.contains_key(&change.key)) {
            told.insert(change.key.detached(), change.pos.at);
        }
    })
    .await?;
    Ok(told)
}

/// Reads again what the peer may not have seen of our own changes; whether some of it is damaged.
async fn remember(
    task: &CaptureTask,
    from: Seq,
    end: Offset,
    found: &Recovered,
) -> Result<bool, EngineError> {
    let last = found.reached();
    let start = task.log.locate(&task.partition, from).await?;
    let mut terms = Terms::default();
    walk_kept(task.log.as_ref(), &task.partition, start, end, |_, change| {
        if terms.admits(&change) {
            let mut touched = touches(&change, task.ours());
            if change.intake.is_some() && change.seq.0 >= found.point.delivered {
                task.note_handed_over(&change);
            }
            if change.intake.is_none() && !found.point.is_in_line(&change.pos.history, &last) {
                touched.iter_mut().for_each(|(_, own)| own.at = 0);
            }
            lock(&task.shared.recent).note(&touched);
        }
    })
    .await?;
    lock(&task.shared.recent).forget_below(from);
    Ok(is_damaged(task.log.as_ref(), &task.partition, start, end))
}
