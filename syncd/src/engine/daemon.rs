use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::{Connector, Error as StoreError, ErrorKind, Finding, Key, Op, Seq, Site, Space};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::apply::ApplyTask;
use super::capture::{CaptureTask, Clock, unix_ms};
use super::conflicts::{ConflictLog, Conflicts};
use super::dead_letters::DeadLetters;
use super::metrics::{Labels, Metrics, UPKEEP_EVERY};
use super::pauses::{Answers, Begun, Pauses};
use super::peer_log::PeerLog;
use super::recent::{Recent, TOUCH_COST};
use super::shared::{Ask, Asks, DirectionStats, Flag, SiteShared, Trouble, lock};
use super::{BACKOFF_MIN, Backoff, EngineError, sweep};
use crate::config::{Channel, Config, Direction, LogStore};
use crate::log::{self, EmbeddedLog, EmbeddedOptions, KafkaLog, KafkaOptions, Log, Offset, PartitionId};
use crate::status::{
    ChannelState, ChannelStatus, ConflictEntry, ConflictPage, ConflictQuery, Control, ControlError,
    DeadLetter, DeadLetterPage, DeadLetterQuery, DirectionStatus, HeldAnswer, Phase, Progress, Resolution,
    Status, rfc3339,
};

/// How long a stop may take before what is left is given up; a service manager waits ten seconds.
const STOP_AT_MOST: Duration = Duration::from_secs(6);
/// How long an origin may take to say what keys hold.
const ANSWER_AT_MOST: Duration = Duration::from_secs(10);
const RETENTION_EVERY: Duration = Duration::from_secs(5);
/// What a consumer of Kafka fetches ahead.
const FETCH_BYTES: Range<usize> = 64 << 10..4 << 20;
const RATES_EVERY: Duration = Duration::from_secs(1);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// One site alone, and the log is of this process.
    #[error("--site needs log.kind = \"kafka\": with the embedded log one process serves both sites")]
    EmbeddedLog,
    /// One site alone, of a channel where only one of them writes a log.
    #[error(
        "--site: the channel {channel} goes one way, and the two daemons would not hear of each other: one process \
         serves both of its sites; put it into a link of its own that runs without --site"
    )]
    OneWay {
        /// Its name.
        channel: String,
    },
    /// The change log: its folder is in use, or cannot be read.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// What is kept beside the log cannot be read or written.
    #[error("{dir}: {source}")]
    Folder {
        /// The log's folder.
        dir: String,
        /// Why.
        source: std::io::Error,
    },
    /// The metrics could not be set up.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// The running engine: every channel of one link, of both sites or of one.
pub struct Daemon {
    link: String,
    sites: [String; 2],
    /// The one site that is served; `None`: both.
    site: Option<Site>,
    channels: Vec<ChannelRun>,
    log: Arc<dyn Log>,
    dead_letters: Arc<DeadLetters>,
    /// In the simulation there is none.
    conflicts: Option<Arc<ConflictLog>>,
    pauses: Mutex<Pauses>,
    answers: Arc<Mutex<Answers>>,
    begun: Arc<Mutex<Begun>>,
    metrics: Metrics,
    /// What stamps each site's changes.
    clocks: [Clock; 2],
    /// When the daemon began.
    since: SystemTime,
    stop: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    /// Where the log itself doesn't hold the folder.
    folder_lock: Mutex<Option<std::fs::File>>,
}

struct ChannelRun {
    name: String,
    store: String,
    paused: watch::Sender<bool>,
    directions: Vec<DirectionRun>,
}

struct DirectionRun {
    from: Site,
    partition: PartitionId,
    stats: Arc<DirectionStats>,
    conflicts: Arc<Conflicts>,
    /// Of the origin.
    shared: Arc<SiteShared>,
    /// The way to the origin's capture.
    origin: Asks,
    answers: mpsc::Sender<HeldAnswer>,
    /// The channel goes the other way, too.
    both: bool,
    /// A key that both sites had before: the origin's wins.
    origin_wins: bool,
    snapshot: bool,
    labels: Labels,
    rates: Mutex<Rates>,
}

#[derive(Default)]
struct Rates {
    captured: (u64, f64),
    applied: (u64, f64),
}

/// A new figure counts for a third: the rate of the last few seconds.
fn smooth((last, rate): (u64, f64), now: u64) -> (u64, f64) {
    let fresh = now.saturating_sub(last) as f64 / RATES_EVERY.as_secs_f64();
    let mixed = rate + (fresh - rate) / 3.0;
    (now, if mixed < 0.05 { 0.0 } else { mixed })
}

/// Bytes of memory for one kind of buffer.
fn share(config: &Config) -> usize {
    usize::try_from(config.limits.memory / 16).unwrap_or(usize::MAX)
}

/// The log of what `site` writes to `channel`.
fn partition(channel: &str, site: &str) -> PartitionId {
    PartitionId { channel: channel.to_owned(), origin: site.to_owned(), number: 0 }
}

/// What one channel may hold.
struct Shares {
    /// [`ApplyTask::lookback_bytes_max`].
    lookback_bytes_max: usize,
    /// [`ApplyTask::sweep_keys_max`].
    sweep_keys_max: usize,
    /// Own changes of a site that are remembered in memory.
    remembered_max: usize,
    /// Where the others go.
    spill_dir: PathBuf,
}

impl Shares {
    fn of(config: &Config) -> Shares {
        let share = share(config) / config.channels.len().max(1);
        // A log may have no folder.
        let dir = Some(&config.log.dir).filter(|dir| dir.is_dir());
        Shares {
            spill_dir: dir.cloned().unwrap_or_else(std::env::temp_dir),
            lookback_bytes_max: share / 2,
            sweep_keys_max: share / sweep::KEY_BYTES,
            remembered_max: share / 2 / TOUCH_COST,
        }
    }
}

impl Daemon {
    /// Opens the log and starts every channel. `connectors` are those of `config.channels`, in their order.
    ///
    /// # Errors
    ///
    /// The log's folder is in use or damaged, or what is kept beside it.
    pub async fn start(
        config: &Config,
        connectors: Vec<Arc<dyn Connector>>,
    ) -> Result<Arc<Daemon>, StartError> {
        Daemon::start_at(config, connectors, None).await
    }

    /// As [`start`](Daemon::start), but captures from the stores of `site` alone, and applies into them alone: a
    /// daemon elsewhere serves the other site. The two meet in the log, which is in Kafka, and every channel goes
    /// both ways.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Daemon::start), and where one of the two is otherwise.
    pub async fn start_at(
        config: &Config,
        connectors: Vec<Arc<dyn Connector>>,
        site: Option<Site>,
    ) -> Result<Arc<Daemon>, StartError> {
        if site.is_some() {
            if matches!(config.log.store, LogStore::Embedded { .. }) {
                return Err(StartError::EmbeddedLog);
            }
            let one_way = config.channels.iter().find(|channel| channel.direction != Direction::Both);
            if let Some(channel) = one_way {
                return Err(StartError::OneWay { channel: channel.name.clone() });
            }
        }
        let dir = &config.log.dir;
        let folder = |source| StartError::Folder { dir: dir.display().to_string(), source };
        std::fs::create_dir_all(dir).map_err(folder)?;
        let share = share(config);
        let mut folder_lock = None;
        let log: Arc<dyn Log> = match &config.log.store {
            LogStore::Embedded { size_max } => {
                let options = EmbeddedOptions {
                    age_min: config.log.age_min,
                    size_max: *size_max,
                    cache_bytes: share,
                    in_flight_bytes: share / 2,
                    ..EmbeddedOptions::default()
                };
                EmbeddedLog::open(dir, options).await?
            }
            LogStore::Kafka { clusters, options } => {
                folder_lock = Some(log::take_lock(dir)?);
                let of = |channel: &Channel| {
                    let named = |site| partition(&channel.name, config.site_name(site));
                    channel.direction.origins().map(named).collect::<Vec<_>>()
                };
                let partitions: Vec<PartitionId> = config.channels.iter().flat_map(of).collect();
                // Each has a few consumers.
                let fetch_bytes =
                    (share / 4 / partitions.len().max(1)).clamp(FETCH_BYTES.start, FETCH_BYTES.end);
                let options = KafkaOptions {
                    cache_bytes: share,
                    in_flight_bytes: share / 2,
                    fetch_bytes,
                    ..options.clone()
                };
                KafkaLog::open(clusters, &partitions, options).await?
            }
        };
        let clocks: [Clock; 2] = [Arc::new(unix_ms), Arc::new(unix_ms)];
        let conflicts = ConflictLog::open(&dir.join("conflicts"), config.conflicts).map_err(folder)?;
        let daemon = Daemon::start_on(config, connectors, site, log, Some(conflicts), clocks).await?;
        *lock(&daemon.folder_lock) = folder_lock;
        Ok(daemon)
    }

    /// As [`start`](Daemon::start), on a log that is open, and with or without a conflict log.
    pub(crate) async fn start_on(
        config: &Config,
        connectors: Vec<Arc<dyn Connector>>,
        site: Option<Site>,
        log: Arc<dyn Log>,
        conflicts: Option<Arc<ConflictLog>>,
        clocks: [Clock; 2],
    ) -> Result<Arc<Daemon>, StartError> {
        let dir = &config.log.dir;
        let folder = |source| StartError::Folder { dir: dir.display().to_string(), source };
        let dead_letters = DeadLetters::open(dir, config.sites.clone()).map_err(folder)?;
        let mut daemon = Daemon {
            link: config.link.clone(),
            sites: config.sites.clone(),
            site,
            channels: Vec::new(),
            log,
            dead_letters: Arc::new(dead_letters),
            conflicts,
            pauses: Mutex::new(Pauses::open(dir).map_err(folder)?),
            answers: Arc::new(Mutex::new(Answers::open(dir).map_err(folder)?)),
            begun: Arc::new(Mutex::new(Begun::open(dir).map_err(folder)?)),
            metrics: Metrics::new().map_err(|e| StartError::Metrics(e.to_string()))?,
            clocks,
            since: SystemTime::now(),
            stop: CancellationToken::new(),
            tasks: tokio::sync::Mutex::default(),
            folder_lock: Mutex::default(),
        };
        let mut tasks = JoinSet::new();
        let shares = Shares::of(config);
        for (channel, connector) in config.channels.iter().zip(connectors) {
            let run = daemon.start_channel(channel, connector, &shares, &mut tasks);
            daemon.channels.push(run);
        }
        let daemon = Arc::new(daemon);
        tasks.spawn(Arc::clone(&daemon).keep_house());
        *daemon.tasks.lock().await = tasks;
        Ok(daemon)
    }

    fn start_channel(
        &self,
        channel: &Channel,
        connector: Arc<dyn Connector>,
        shares: &Shares,
        tasks: &mut JoinSet<()>,
    ) -> ChannelRun {
        let paused = watch::Sender::new(lock(&self.pauses).contains(&channel.name));
        let (channel_asks, receivers): (Vec<_>, Vec<_>) =
            Site::BOTH.map(|_| mpsc::channel::<Ask>(16)).into_iter().unzip();
        let shared: Vec<_> = channel_asks
            .iter()
            .map(|ask| {
                let recent = Recent::new(shares.spill_dir.clone(), shares.remembered_max);
                Arc::new(SiteShared::new(Asks::Here(ask.clone()), recent))
            })
            .collect();
        let partition = |site: Site| partition(&channel.name, &self.sites[site.index()]);
        let cleared = Arc::new(Flag::default());
        let channel_stop = self.stop.child_token();
        let all_stats = Site::BOTH.map(|_| Arc::new(DirectionStats::default()));
        let mut directions = Vec::new();
        for (from, asks) in Site::BOTH.into_iter().zip(receivers) {
            if !channel.direction.carries(from) {
                continue;
            }
            let to = from.peer();
            let both = channel.direction.carries(to);
            let stats = Arc::clone(&all_stats[from.index()]);
            let origin = match self.serves(from) {
                true => Asks::Here(channel_asks[from.index()].clone()),
                false => Asks::ByLog(channel_asks[to.index()].clone()),
            };
            let labels = Metrics::labels(&channel.name, &self.sites[from.index()], &self.sites[to.index()]);
            let capture = CaptureTask {
                channel: channel.name.clone(),
                site: from,
                connector: Arc::clone(&connector),
                log: Arc::clone(&self.log),
                partition: partition(from),
                shared: Arc::clone(&shared[from.index()]),
                stats: Arc::clone(&stats),
                peer: both.then(|| partition(to)),
                snapshot: channel.snapshot.names(from),
                asks,
                clock: Arc::clone(&self.clocks[from.index()]),
                owners: channel.conflict.owners().cloned(),
                keys_max: shares.remembered_max,
                spill_dir: shares.spill_dir.clone(),
            };
            let (log, sites) = (self.conflicts.clone(), self.sites.clone());
            let conflicts = Arc::new(Conflicts::new(&channel.name, sites, from, log));
            let (answers, answered) = mpsc::channel(1);
            let apply = ApplyTask {
                channel: channel.name.clone(),
                site: to,
                connector: Arc::clone(&connector),
                log: Arc::clone(&self.log),
                partition: partition(from),
                own: both.then(|| partition(to)),
                shared: Arc::clone(&shared[to.index()]),
                origin: origin.clone(),
                stats: Arc::clone(&stats),
                reverse: (!self.serves(from)).then(|| Arc::clone(&all_stats[to.index()])),
                origin_wins: channel.existing.is_none_or(|site| site == from),
                sweep_all: channel.snapshot.names(from) && channel.snapshot.names(to),
                items_max: channel.batch.items_max,
                bytes_max: channel.batch.bytes_max,
                lookback_bytes_max: shares.lookback_bytes_max,
                keep_alive: channel.keep_alive,
                owners: channel.conflict.owners().cloned(),
                sweep_keys_max: shares.sweep_keys_max,
                paused: paused.subscribe(),
                answers: answered,
                answered: Arc::clone(&self.answers),
                begun: Arc::clone(&self.begun),
                stop: channel_stop.clone(),
                dead_letters: Arc::clone(&self.dead_letters),
                conflicts: Arc::clone(&conflicts),
                apply_seconds: self.metrics.histogram("causeway_apply_seconds", labels.clone()),
            };
            let (stop, about) = (channel_stop.clone(), Arc::clone(&stats));
            let clear = Arc::clone(&cleared);
            let captures = async move {
                if clear.wait_or(&stop).await {
                    let result = capture.run(stop.clone()).await;
                    if let Err(EngineError::Log(log::Error::Fenced { .. })) = &result {
                        // Who took the log over serves the channel: applying as well would disturb it for ever.
                        stop.cancel();
                    }
                    ended("capture", result, &about.capture_error);
                }
            };
            if self.serves(from) {
                tasks.spawn(captures);
            }
            let (stop, about) = (channel_stop.clone(), Arc::clone(&stats));
            let clear = Arc::clone(&cleared);
            let applies = async move {
                if clear.wait_or(&stop).await {
                    ended("apply", apply.run().await, &about.apply_error);
                }
            };
            if self.serves(to) {
                tasks.spawn(applies);
            }
            if !self.serves(from) {
                let peer_log = PeerLog {
                    log: Arc::clone(&self.log),
                    partition: partition(from),
                    peer: Arc::clone(&shared[from.index()]),
                    theirs: Arc::clone(&stats),
                    ours: Arc::clone(&all_stats[to.index()]),
                };
                let stop = channel_stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = peer_log.watch() => {}
                    }
                });
            }
            directions.push(DirectionRun {
                from,
                partition: partition(from),
                stats,
                conflicts,
                shared: Arc::clone(&shared[from.index()]),
                origin,
                answers,
                both,
                origin_wins: channel.existing.is_none_or(|site| site == from),
                snapshot: channel.snapshot.names(from),
                labels,
                rates: Mutex::default(),
            });
        }
        let known = directions.iter().any(|d: &DirectionRun| self.log.bounds(&d.partition).end > Offset(0));
        let preflight = Preflight {
            channel: channel.name.clone(),
            connector,
            sites: Site::BOTH.into_iter().filter(|site| self.serves(*site)).collect(),
            known,
            stats: directions.iter().map(|direction| Arc::clone(&direction.stats)).collect(),
            cleared,
        };
        let stop = self.stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = preflight.run() => {}
                () = stop.cancelled() => {}
            }
        });
        ChannelRun { name: channel.name.clone(), store: channel.store.clone(), paused, directions }
    }

    /// Ends every channel in an orderly way: what is read is in the log, what is sent is answered, and the
    /// restart points are written. Takes at most about eight seconds.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_AT_MOST, all).await.is_err() {
            warn!("a store does not answer: stopping without it, the restart repeats what was under way");
            tasks.shutdown().await;
        }
        self.log.close().await;
        if let Some(conflicts) = self.conflicts.clone() {
            let _written = tokio::task::spawn_blocking(move || conflicts.flush()).await;
        }
        info!("stopped");
    }

    /// Ends every task where it stands, as a killed process does. What is under way goes its way.
    #[cfg(any(test, feature = "simulate"))]
    pub(crate) async fn kill(&self) {
        self.tasks.lock().await.shutdown().await;
    }

    /// Changes of the peers that a store refused and that are still to go in.
    #[cfg(any(test, feature = "simulate"))]
    pub(crate) fn overtaken(&self) -> usize {
        let directions = self.channels.iter().flat_map(|channel| &channel.directions);
        directions.map(|direction| lock(&direction.shared.on_the_way).overtaken()).sum()
    }

    /// Retention, rates and metrics.
    async fn keep_house(self: Arc<Self>) {
        let mut retention = tokio::time::interval(RETENTION_EVERY);
        let mut rates = tokio::time::interval(RATES_EVERY);
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = retention.tick() => self.forget().await,
                _ = upkeep.tick() => self.metrics.upkeep(),
                _ = rates.tick() => for direction in self.channels.iter().flat_map(|c| &c.directions) {
                    let mut rates = lock(&direction.rates);
                    rates.captured = smooth(rates.captured, direction.stats.captured.load(Ordering::SeqCst));
                    rates.applied = smooth(rates.applied, direction.stats.applied.load(Ordering::SeqCst));
                },
            }
        }
    }

    /// Forgets what is settled at the target, is no longer remembered at the origin, and lies before the
    /// newest restart point.
    async fn forget(&self) {
        // What the other site wrote its own daemon forgets.
        let served =
            self.channels.iter().flat_map(|channel| &channel.directions).filter(|d| self.serves(d.from));
        for direction in served {
            let stats = &direction.stats;
            let remembered = lock(&direction.shared.recent).oldest();
            let mut below = stats.position_offset.load(Ordering::SeqCst);
            let trimmed = async {
                let settled = match self.serves(direction.from.peer()) {
                    true => stats.settled_offset.load(Ordering::SeqCst),
                    false => {
                        let settled = Seq(stats.settled_below.load(Ordering::SeqCst));
                        self.log.locate(&direction.partition, settled).await?.0
                    }
                };
                below = below.min(settled);
                if let Some(snapshot) = stats.in_snapshot().filter(|s| s.sweep && !self.log.is_full()) {
                    // The sweep at its end looks at all that it named.
                    below = below.min(self.log.locate(&direction.partition, Seq(snapshot.first)).await?.0);
                }
                if direction.both {
                    below = below.min(self.log.locate(&direction.partition, remembered).await?.0);
                }
                self.log.trim(&direction.partition, Offset(below)).await
            };
            if let Err(error) = trimmed.await {
                warn!(partition = %direction.partition, %error, "retention");
            }
        }
    }

    /// Whether the stores of `site` are this daemon's.
    fn serves(&self, site: Site) -> bool {
        self.site.is_none_or(|served| served == site)
    }

    fn channel(&self, name: &str) -> Result<&ChannelRun, ControlError> {
        self.channels.iter().find(|channel| channel.name == name).ok_or_else(|| ControlError::NoSuchChannel {
            channel: name.to_owned(),
            known: self.channels.iter().map(|channel| channel.name.clone()).collect(),
        })
    }

    fn chosen(&self, name: Option<&str>) -> Result<Vec<&ChannelRun>, ControlError> {
        match name {
            Some(name) => Ok(vec![self.channel(name)?]),
            None => Ok(self.channels.iter().collect()),
        }
    }

    fn pause_all(&self, name: Option<&str>, paused: bool) -> Result<(), ControlError> {
        for channel in self.chosen(name)? {
            lock(&self.pauses)
                .set(&channel.name, paused)
                .map_err(|error| ControlError::Failed(format!("{}: {error}", channel.name)))?;
            channel.paused.send_replace(paused);
        }
        Ok(())
    }

    fn direction_status(&self, channel: &ChannelRun, direction: &DirectionRun) -> DirectionStatus {
        let stats = &direction.stats;
        let trouble = self.trouble(direction);
        let full = self.log.room().err().map(|full| full.to_string());
        let held = lock(&stats.held).clone();
        let reached = direction.shared.capture_ready.is_up()
            && stats.capture_connected.load(Ordering::SeqCst)
            && stats.apply_connected.load(Ordering::SeqCst);
        let in_snapshot = stats.in_snapshot();
        let phase = match (&trouble, &in_snapshot) {
            (Some(trouble), _) if trouble.setup => Phase::Failed,
            _ if *channel.paused.borrow() || held.is_some() || full.is_some() => Phase::Paused,
            (_, Some(snapshot)) if snapshot.gap => Phase::Gap,
            _ if !reached => Phase::Starting,
            (_, Some(_)) => Phase::Snapshot,
            _ => Phase::Streaming,
        };
        let warning = lock(&stats.warning).clone();
        let rates = lock(&direction.rates);
        let snapshot = lock(&stats.snapshot).clone().unwrap_or_default();
        DirectionStatus {
            from: self.sites[direction.from.index()].clone(),
            to: self.sites[direction.from.peer().index()].clone(),
            phase,
            snapshot: progress(&snapshot, stats.applied_below.load(Ordering::SeqCst), in_snapshot.is_some()),
            lag: stats.lag(self.clocks[direction.from.index()]()),
            applied: stats.applied.load(Ordering::SeqCst),
            conflicts: direction.conflicts.total(),
            dead_letters: self.dead_letters.count(&channel.name, &self.sites[direction.from.index()]),
            gaps: u64::from(in_snapshot.is_some_and(|snapshot| snapshot.gap)),
            left_out: snapshot.left_out + stats.left_out_of_stream.load(Ordering::SeqCst),
            captured_per_second: rates.captured.1,
            applied_per_second: rates.applied.1,
            held,
            error: trouble.map(|trouble| trouble.text).or(full),
            warning: warning.map(|warning| format!("{}: {warning}", self.sites[direction.from.index()])),
        }
    }

    /// Asks the origins of `letters` what the keys hold now, and waits until their logs say it.
    async fn refresh(&self, letters: &[DeadLetter]) -> Result<(), ControlError> {
        for channel in &self.channels {
            for direction in &channel.directions {
                let from = &self.sites[direction.from.index()];
                let of_it = letters.iter().filter(|l| l.channel == channel.name && l.from == *from);
                // Where what exists stays, a row must not come back as a state, which replaces.
                let comes_back = of_it.filter(|l| l.op != Op::Read.as_str() || direction.origin_wins);
                let keys: Vec<Key> = comes_back.filter_map(key_of).collect();
                if keys.is_empty() {
                    continue;
                }
                let asked = direction.origin.states(keys);
                if !tokio::time::timeout(ANSWER_AT_MOST, asked).await.unwrap_or(false) {
                    return Err(ControlError::Failed(format!(
                        "{}: {from} was not reached, and has to be asked for the keys; nothing is acknowledged: try \
                         again once `syncd status` shows no error",
                        channel.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// What is in a direction's way, the worst first, with the site where it is.
    fn trouble(&self, direction: &DirectionRun) -> Option<Trouble> {
        let stats = &direction.stats;
        let at = |site: Site, error: &Mutex<Option<Trouble>>| {
            let trouble = lock(error).clone();
            let named = |text| format!("{}: {text}", self.sites[site.index()]);
            trouble.map(|trouble| Trouble { text: named(trouble.text), ..trouble })
        };
        let checked = lock(&stats.check_error).clone();
        let [origin, target] =
            [at(direction.from, &stats.capture_error), at(direction.from.peer(), &stats.apply_error)];
        let found = [checked, origin, target];
        found
            .clone()
            .into_iter()
            .flatten()
            .find(|trouble| trouble.setup)
            .or(found.into_iter().flatten().next())
    }
}

/// The key of a dead letter; `None` if it was a change of none.
fn key_of(letter: &DeadLetter) -> Option<Key> {
    let name = Bytes::from(letter.key.bytes().filter(|name| !name.is_empty())?);
    Some(Key { space: letter.db.map_or(Space::Whole, Space::Db), name })
}

/// Keeps a channel from starting while its connector finds something fatal.
struct Preflight {
    channel: String,
    connector: Arc<dyn Connector>,
    /// Those that are served.
    sites: Vec<Site>,
    /// The log knows the channel: a store that is away now is no reason to let the other one's stream pass.
    known: bool,
    stats: Vec<Arc<DirectionStats>>,
    cleared: Arc<Flag>,
}

impl Preflight {
    async fn run(self) {
        let mut backoff = Backoff::new(&format!("check {}", self.channel), BACKOFF_MIN);
        loop {
            let told = |error: &StoreError| {
                let trouble = Trouble::of(error);
                Trouble { text: format!("before the start: {}", trouble.text), ..trouble }
            };
            let trouble = match self.connector.check(&self.sites).await {
                Ok(findings) => {
                    let fatal = findings.into_iter().find(|finding| finding.fatal);
                    fatal.map(|finding| Trouble { text: text(&finding), setup: true })
                }
                Err(error) if self.known && error.kind() == ErrorKind::Retry => None,
                Err(error) => Some(told(&error)),
            };
            let Some(trouble) = trouble else { break };
            let (failures, wait) = backoff.failed(false, trouble.setup);
            if failures == 1 {
                warn!(channel = %self.channel, reason = trouble.text, "the channel does not start like this");
            }
            for stats in &self.stats {
                *lock(&stats.check_error) = Some(trouble.clone());
            }
            tokio::time::sleep(wait).await;
        }
        for stats in &self.stats {
            *lock(&stats.check_error) = None;
        }
        self.cleared.raise();
    }
}

fn text(finding: &Finding) -> String {
    let site = finding.site.as_ref().map(|site| format!("{site}: ")).unwrap_or_default();
    format!("{site}{}; {}", finding.what, finding.advice)
}

fn progress(snapshot: &super::restart::SnapshotPoint, applied: u64, under_way: bool) -> Progress {
    let total = snapshot.end.map(|end| end.saturating_sub(snapshot.first)).or(snapshot.total);
    let rows = applied.saturating_sub(snapshot.first);
    let done = if under_way { total.map_or(rows, |total| rows.min(total)) } else { total.unwrap_or(0) };
    Progress { done, total }
}

fn ended(what: &str, result: Result<(), EngineError>, about: &Mutex<Option<Trouble>>) {
    match result {
        Ok(()) | Err(EngineError::Stopped) => {}
        Err(failed) => {
            error!(error = %failed, "{what} ended");
            *lock(about) = Some(Trouble::ended(&failed));
        }
    }
}

#[async_trait]
impl Control for Daemon {
    fn status(&self) -> Status {
        let channels = self.channels.iter().map(|channel| {
            let directions: Vec<_> = channel
                .directions
                .iter()
                .map(|direction| self.direction_status(channel, direction))
                .collect();
            let failed = directions.iter().any(|direction| direction.phase == Phase::Failed);
            let state = match *channel.paused.borrow() {
                _ if failed => ChannelState::Failed,
                true => ChannelState::Paused,
                false => ChannelState::Running,
            };
            ChannelStatus { name: channel.name.clone(), store: channel.store.clone(), state, directions }
        });
        Status {
            link: self.link.clone(),
            sites: self.sites.to_vec(),
            since: rfc3339(self.since),
            channels: channels.collect(),
        }
    }

    async fn pause(&self, channel: Option<&str>) -> Result<(), ControlError> {
        self.pause_all(channel, true)
    }

    async fn resume(&self, channel: Option<&str>, held: Option<HeldAnswer>) -> Result<(), ControlError> {
        let Some(answer) = held else { return self.pause_all(channel, false) };
        let mut answered = 0;
        for direction in self.chosen(channel)?.into_iter().flat_map(|channel| &channel.directions) {
            if lock(&direction.stats.held).is_some() && direction.answers.try_send(answer).is_ok() {
                answered += 1;
            }
        }
        match answered {
            0 => Err(ControlError::Refused("nothing is held".to_owned())),
            _ => Ok(()),
        }
    }

    async fn snapshot(&self, channel: &str) -> Result<(), ControlError> {
        let served = |direction: &&DirectionRun| direction.snapshot && self.serves(direction.from);
        let directions: Vec<_> = self.channel(channel)?.directions.iter().filter(served).collect();
        if directions.is_empty() {
            let here = if self.site.is_some() { ", or another daemon serves it" } else { "" };
            return Err(ControlError::Refused(format!(
                "{channel}: `snapshot` names no site whose changes are carried{here}"
            )));
        }
        if directions.iter().any(|direction| direction.stats.in_snapshot().is_some()) {
            return Err(ControlError::Refused(format!("{channel}: a snapshot is running")));
        }
        for direction in directions {
            direction
                .origin
                .try_snapshot(false)
                .map_err(|_| ControlError::Failed(format!("{channel}: capture does not answer")))?;
        }
        Ok(())
    }

    fn dead_letters(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        self.dead_letters.list(query)
    }

    async fn acknowledge(&self, channel: Option<&str>, id: Option<u64>) -> Result<u64, ControlError> {
        self.chosen(channel)?;
        let mut letters = self.dead_letters.of(channel);
        letters.retain(|letter| id.is_none_or(|id| letter.id == id));
        if let (Some(id), true) = (id, letters.is_empty()) {
            return Err(ControlError::NoSuchDeadLetter { id });
        }
        self.refresh(&letters).await?;
        let (kept, count) = (Arc::clone(&self.dead_letters), letters.len() as u64);
        let ids = letters.into_iter().map(|letter| letter.id).collect();
        let removed = tokio::task::spawn_blocking(move || kept.remove(&ids)).await;
        let failed =
            |error: &dyn std::fmt::Display| ControlError::Failed(format!("the dead letters: {error}"));
        removed.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        Ok(count)
    }

    fn conflicts(&self, query: &ConflictQuery) -> Result<ConflictPage, ControlError> {
        let Some(log) = &self.conflicts else { return Ok(ConflictPage::default()) };
        log.list(query).map_err(|error| ControlError::Failed(format!("the conflict log: {error}")))
    }

    fn conflict(&self, id: u64) -> Result<Option<ConflictEntry>, ControlError> {
        let Some(log) = &self.conflicts else { return Ok(None) };
        log.get(id).map_err(|error| ControlError::Failed(format!("the conflict log: {error}")))
    }

    fn ready(&self) -> bool {
        self.channels.iter().flat_map(|channel| &channel.directions).all(|direction| {
            direction.shared.capture_ready.is_up() && direction.stats.capture_connected.load(Ordering::SeqCst)
        })
    }

    fn metrics(&self) -> String {
        let status = self.status();
        for (run, channel) in self.channels.iter().zip(&status.channels) {
            for (run, direction) in run.directions.iter().zip(&channel.directions) {
                let counter = |name, value| self.metrics.counter(name, run.labels.clone()).absolute(value);
                let gauge = |name, value: f64| self.metrics.gauge(name, run.labels.clone()).set(value);
                counter("causeway_changes_captured_total", run.stats.captured.load(Ordering::SeqCst));
                counter("causeway_changes_applied_total", direction.applied);
                counter("causeway_snapshot_rows_total", direction.snapshot.done);
                counter("causeway_gaps_total", run.stats.gaps_total.load(Ordering::SeqCst));
                gauge("causeway_lag_changes", direction.lag.changes.map_or(f64::NAN, |n| n as f64));
                gauge("causeway_lag_seconds", direction.lag.seconds.unwrap_or(f64::NAN));
                gauge("causeway_dead_letters", direction.dead_letters as f64);
                gauge("causeway_log_damaged", self.log.damaged(&run.partition).len() as f64);
                let read = |number: &AtomicU64| number.load(Ordering::SeqCst) as f64;
                gauge("causeway_asked_keys", read(&run.stats.asked));
                gauge("causeway_under_way_batches", read(&run.stats.under_way));
                gauge("causeway_capture_behind", run.shared.backlog.behind().unwrap_or(f64::NAN));
                gauge("causeway_left_out", direction.left_out as f64);
                let (remembered, spilled) = lock(&run.shared.recent).len();
                gauge("causeway_remembered_changes", remembered as f64);
                gauge("causeway_spilled_changes", spilled as f64);
                for resolution in Resolution::ALL {
                    let mut labels = run.labels.clone();
                    labels.push(metrics::Label::new("resolution", resolution.as_str()));
                    let counted = run.conflicts.counted(resolution);
                    self.metrics.counter("causeway_conflicts_total", labels).absolute(counted);
                }
            }
        }
        let left_out = self.conflicts.as_ref().map_or(0, |log| log.left_out());
        self.metrics.counter("causeway_conflicts_left_out_total", Vec::new()).absolute(left_out);
        self.metrics.gauge("causeway_log_queued_bytes", Vec::new()).set(self.log.queued_bytes() as f64);
        self.metrics.gauge("causeway_log_bytes", Vec::new()).set(self.log.size_bytes() as f64);
        self.metrics.render()
    }
}
