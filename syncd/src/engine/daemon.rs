use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use causeway_core::{Connector, Key, Op, Seq, Site, Space, time};
use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::capture::Clock;
use super::conflicts::ConflictLog;
use super::dead_letters::DeadLetters;
use super::members::Members;
use super::metrics::{Metrics, UPKEEP_EVERY};
use super::pauses::{Answers, Begun, Pauses, member_name};
use super::run::{ChannelRun, DirectionRun, Live, RATES_EVERY, STOP_AT_MOST, Shares, partition, smooth};
use super::shared::{DirectionStats, Trouble, lock};
use super::shown;
use super::window::{Named, Names, Unknown};
use crate::config::{Channel, Config, Direction, LogStore};
use crate::log::{
    self, EmbeddedLog, EmbeddedOptions, Group, KafkaLog, KafkaOptions, Log, Offset, PartitionId,
};
use crate::status::{
    By, ChannelState, ChannelStatus, ConflictEntry, ConflictPage, ConflictQuery, Control, ControlError,
    DeadLetter, DeadLetterPage, DeadLetterQuery, DirectionStatus, HandOver, HandedOver, HeldAnswer,
    IntakeStatus, KeyAt, NotHandedOver, Phase, Progress, Resolution, Status, Whose, WrittenLine, rfc3339,
};

/// How long an origin may take to say what keys hold.
const ANSWER_AT_MOST: Duration = Duration::from_secs(10);
/// How long the streams may take to come to the end of a window that was asked for.
const CURRENT_WAIT: Duration = Duration::from_secs(5);
/// So many read the logs at the same time to say what was written.
const LOG_READERS: usize = 4;
const RETENTION_EVERY: Duration = Duration::from_secs(5);
/// How long brokers may take to answer when the daemon starts.
const BROKERS_AT_MOST: Duration = Duration::from_secs(120);
/// Before a log that could not be opened is opened again.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// What a consumer of Kafka fetches ahead.
const FETCH_BYTES: Range<usize> = 64 << 10..4 << 20;

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
    pub(super) link: String,
    pub(super) sites: [String; 2],
    /// The one site that is served; `None`: both.
    site: Option<Site>,
    pub(super) channels: Vec<ChannelRun>,
    /// Where daemons share the channels of a site.
    pub(super) group: Option<Members>,
    pub(super) log: Arc<dyn Log>,
    pub(super) dead_letters: Arc<DeadLetters>,
    /// In the simulation there is none.
    pub(super) conflicts: Option<Arc<ConflictLog>>,
    pauses: Mutex<Pauses>,
    pub(super) answers: Arc<Mutex<Answers>>,
    pub(super) begun: Arc<Mutex<Begun>>,
    pub(super) shares: Shares,
    pub(super) metrics: Metrics,
    /// What stamps each site's changes.
    pub(super) clocks: [Clock; 2],
    /// When the daemon began.
    since: SystemTime,
    pub(super) stop: CancellationToken,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    /// Those who may read the logs to say what was written.
    log_readers: Arc<Semaphore>,
    /// Where the log itself doesn't hold the folder.
    folder_lock: Mutex<Option<std::fs::File>>,
}

/// Bytes of memory for one kind of buffer.
pub(super) fn share(config: &Config) -> usize {
    usize::try_from(config.limits.memory / 16).unwrap_or(usize::MAX)
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
        let (mut folder_lock, mut group) = (None, None);
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
                    (share / 2 / partitions.len().max(1)).clamp(FETCH_BYTES.start, FETCH_BYTES.end);
                let options = KafkaOptions {
                    cache_bytes: share,
                    in_flight_bytes: share / 2,
                    fetch_bytes,
                    ..options.clone()
                };
                let with_intake = config.channels.iter().filter(|channel| channel.intake.is_some());
                let intakes: Vec<PartitionId> = with_intake.flat_map(of).collect();
                let since = Instant::now();
                let log = loop {
                    match KafkaLog::open(clusters, &partitions, &intakes, options.clone()).await {
                        // Brokers that are being started, too, are not there yet.
                        Err(error) if error.may_pass() && since.elapsed() < BROKERS_AT_MOST => {
                            warn!(%error, "the log cannot be opened yet: it is tried again");
                            tokio::time::sleep(OPEN_AGAIN).await;
                        }
                        opened => break opened?,
                    }
                };
                if let Some(site) = site {
                    group = Some(log.join(config.site_name(site), member_name(dir).map_err(folder)?)?);
                }
                log
            }
        };
        let clocks: [Clock; 2] = [Arc::new(time::now_ms), Arc::new(time::now_ms)];
        let conflicts = ConflictLog::open(&dir.join("conflicts"), config.conflicts).map_err(folder)?;
        let daemon =
            Daemon::start_on(config, connectors, site, (log, group), Some(conflicts), clocks).await?;
        *lock(&daemon.folder_lock) = folder_lock;
        Ok(daemon)
    }

    /// As [`start`](Daemon::start), on a log that is open, and with or without a conflict log. With a group, what is
    /// assigned here is served, else every channel.
    pub(crate) async fn start_on(
        config: &Config,
        connectors: Vec<Arc<dyn Connector>>,
        site: Option<Site>,
        (log, group): (Arc<dyn Log>, Option<Group>),
        conflicts: Option<Arc<ConflictLog>>,
        clocks: [Clock; 2],
    ) -> Result<Arc<Daemon>, StartError> {
        let dir = &config.log.dir;
        let folder = |source| StartError::Folder { dir: dir.display().to_string(), source };
        let dead_letters = DeadLetters::open(dir, config.sites.clone()).map_err(folder)?;
        let (members, turns) = group.map(Members::new).unzip();
        let mut daemon = Daemon {
            link: config.link.clone(),
            sites: config.sites.clone(),
            site,
            channels: Vec::new(),
            group: members,
            log,
            dead_letters: Arc::new(dead_letters),
            conflicts,
            pauses: Mutex::new(Pauses::open(dir).map_err(folder)?),
            answers: Arc::new(Mutex::new(Answers::open(dir).map_err(folder)?)),
            begun: Arc::new(Mutex::new(Begun::open(dir).map_err(folder)?)),
            shares: Shares::of(config),
            metrics: Metrics::new().map_err(|e| StartError::Metrics(e.to_string()))?,
            clocks,
            since: SystemTime::now(),
            stop: CancellationToken::new(),
            tasks: tokio::sync::Mutex::default(),
            log_readers: Arc::new(Semaphore::new(LOG_READERS)),
            folder_lock: Mutex::default(),
        };
        for (channel, connector) in config.channels.iter().zip(connectors) {
            let paused = lock(&daemon.pauses).contains(&channel.name);
            daemon.channels.push(ChannelRun::new(&daemon, channel, connector, paused));
        }
        let daemon = Arc::new(daemon);
        let mut tasks = JoinSet::new();
        match turns {
            Some(turns) => {
                tasks.spawn(Arc::clone(&daemon).look());
                tasks.spawn(Arc::clone(&daemon).follow(turns));
            }
            None => join_all(daemon.channels.iter().map(|run| daemon.begin(run))).await.clear(),
        }
        tasks.spawn(Arc::clone(&daemon).keep_house());
        *daemon.tasks.lock().await = tasks;
        Ok(daemon)
    }

    /// Ends every channel in an orderly way: what is read is in the log, what is sent is answered, and the
    /// restart points are written. Takes at most about eight seconds.
    pub async fn stop(&self) {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        let house = async { while tasks.join_next().await.is_some() {} };
        let channels = join_all(self.channels.iter().map(ChannelRun::end));
        let (housed, _) = tokio::join!(tokio::time::timeout(STOP_AT_MOST, house), channels);
        if housed.is_err() {
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
        join_all(self.channels.iter().map(ChannelRun::kill)).await;
    }

    /// Changes of the peers that a store refused and that are still to go in.
    #[cfg(any(test, feature = "simulate"))]
    pub(crate) fn overtaken(&self) -> usize {
        let live =
            self.channels.iter().flat_map(|channel| &channel.directions).filter_map(DirectionRun::live);
        live.map(|live| lock(&live.shared.on_the_way).overtaken()).sum()
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
                    rates.captured = smooth(rates.captured, direction.counts.captured.load(Ordering::SeqCst));
                    rates.applied = smooth(rates.applied, direction.counts.applied.load(Ordering::SeqCst));
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
            let Some(Live { stats, shared, .. }) = direction.live() else { continue };
            let told = Seq(stats.remembered_from.load(Ordering::SeqCst));
            let remembered = lock(&shared.recent).oldest().min(told);
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
    pub(super) fn serves(&self, site: Site) -> bool {
        self.site.is_none_or(|served| served == site)
    }

    fn channel(&self, name: &str) -> Result<&ChannelRun, ControlError> {
        self.channels.iter().find(|channel| channel.name() == name).ok_or_else(|| {
            ControlError::NoSuchChannel {
                channel: name.to_owned(),
                known: self.channels.iter().map(|channel| channel.name().to_owned()).collect(),
            }
        })
    }

    /// The same, if it is served here.
    fn channel_here(&self, name: &str) -> Result<&ChannelRun, ControlError> {
        let run = self.channel(name)?;
        if run.is_here() { Ok(run) } else { Err(self.elsewhere(run)) }
    }

    fn chosen(&self, name: Option<&str>) -> Result<Vec<&ChannelRun>, ControlError> {
        match name {
            Some(name) => Ok(vec![self.channel(name)?]),
            None => Ok(self.channels.iter().collect()),
        }
    }

    /// The same, as far as they are served here.
    fn chosen_here(&self, name: Option<&str>) -> Result<Vec<&ChannelRun>, ControlError> {
        let mut chosen = self.chosen(name)?;
        let all = chosen.clone();
        chosen.retain(|channel| channel.is_here());
        match all.first() {
            Some(channel) if chosen.is_empty() => Err(self.elsewhere(channel)),
            _ => Ok(chosen),
        }
    }

    pub(super) fn elsewhere(&self, channel: &ChannelRun) -> ControlError {
        let name = channel.name();
        let server = self.group.as_ref().and_then(|group| group.server_of(name));
        ControlError::Refused(match server {
            Some(server) => format!("{name}: {server} serves it just now: ask that daemon"),
            None => format!("{name}: no daemon of this site serves it just now: ask again when one does"),
        })
    }

    async fn pause_all(&self, name: Option<&str>, paused: bool) -> Result<(), ControlError> {
        for channel in self.chosen_here(name)? {
            if self.group.is_some() {
                channel.paused.send_replace(paused);
                self.tell_paused(channel).await?;
                continue;
            }
            lock(&self.pauses)
                .set(channel.name(), paused)
                .map_err(|error| ControlError::Failed(format!("{}: {error}", channel.name())))?;
            channel.paused.send_replace(paused);
        }
        Ok(())
    }

    /// Waits until the log says whether `channel` is paused: the next daemon to serve it reads it there.
    async fn tell_paused(&self, channel: &ChannelRun) -> Result<(), ControlError> {
        let own = channel.directions.iter().find(|direction| self.serves(direction.from));
        let Some(live) = own.and_then(DirectionRun::live) else { return Err(self.elsewhere(channel)) };
        if tokio::time::timeout(ANSWER_AT_MOST, live.origin.paused()).await.unwrap_or(false) {
            return Ok(());
        }
        Err(ControlError::Failed(format!(
            "{}: this daemon does it, but its log could not say so: another one that takes the channel over would not \
             know; say it again once `syncd status` shows no error",
            channel.name()
        )))
    }

    fn direction_status(&self, channel: &ChannelRun, direction: &DirectionRun) -> Option<DirectionStatus> {
        let Live { stats, shared, .. } = direction.live()?;
        let trouble = self.trouble(direction, &stats);
        let now = self.clocks[direction.from.index()]();
        let waits = |waited: Duration| {
            format!(
                "{}: the log has not taken what was captured for {} s: see that its brokers run, or that its disk \
                 answers",
                self.sites[direction.from.index()],
                waited.as_secs()
            )
        };
        let full = self.log.room().err().map(|full| full.to_string());
        let full = full.or_else(|| stats.append_waits(now).map(waits));
        let held = lock(&stats.held).clone();
        let reached = shared.capture_ready.is_up()
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
        let told = lock(&stats.snapshot).clone();
        let snapshot_first = told.as_ref().map(|snapshot| snapshot.first);
        let snapshot = told.unwrap_or_default();
        let undelivered = lock(&shared.undelivered).len() as u64;
        let topic = lock(&stats.topic).clone();
        Some(DirectionStatus {
            from: self.sites[direction.from.index()].clone(),
            to: self.sites[direction.from.peer().index()].clone(),
            phase,
            snapshot: progress(&snapshot, stats.applied_below.load(Ordering::SeqCst), in_snapshot.is_some()),
            snapshot_first,
            lag: stats.lag(now, shared.backlog.rereads() + undelivered),
            applied: direction.counts.applied.load(Ordering::SeqCst),
            conflicts: direction.conflicts.total(),
            dead_letters: self.dead_letters.count(channel.name(), &self.sites[direction.from.index()]),
            gaps: u64::from(in_snapshot.is_some_and(|snapshot| snapshot.gap)),
            left_out: snapshot.left_out + direction.counts.left_out_of_stream.load(Ordering::SeqCst),
            captured_per_second: rates.captured.1,
            applied_per_second: rates.applied.1,
            held,
            error: trouble.map(|trouble| trouble.text).or(full),
            warning: warning
                .or(topic.trouble)
                .map(|warning| format!("{}: {warning}", self.sites[direction.from.index()])),
            intake: (channel.config.intake.is_some() && self.serves(direction.from)).then(|| IntakeStatus {
                waiting: undelivered,
                past: direction.counts.past_intake.load(Ordering::SeqCst),
                in_topic: topic.behind,
            }),
        })
    }

    /// Asks the origins of `letters` what the keys hold now, and waits until their logs say it.
    async fn refresh(&self, letters: &[DeadLetter]) -> Result<(), ControlError> {
        for channel in &self.channels {
            for direction in &channel.directions {
                let from = &self.sites[direction.from.index()];
                let of_it = letters.iter().filter(|l| l.channel == channel.name() && l.from == *from);
                // Where what exists stays, a row must not come back as a state, which replaces.
                let comes_back = of_it.filter(|l| l.op != Op::Read.as_str() || direction.origin_wins);
                let keys: Vec<Key> = comes_back.filter_map(|letter| letter.at.key()).collect();
                if keys.is_empty() {
                    continue;
                }
                let Some(live) = direction.live() else { return Err(self.elsewhere(channel)) };
                if !live.origin.states_within(keys, ANSWER_AT_MOST).await {
                    return Err(ControlError::Failed(format!(
                        "{}: {from} was not reached, and has to be asked for the keys; nothing is acknowledged: try \
                         again once `syncd status` shows no error",
                        channel.name()
                    )));
                }
            }
        }
        Ok(())
    }

    /// What is in a direction's way, the worst first, with the site where it is.
    fn trouble(&self, direction: &DirectionRun, stats: &DirectionStats) -> Option<Trouble> {
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

/// Tells `lines` what the logs of `sites` name, one site after the other; gives the last line.
async fn written(
    log: &dyn Log,
    connector: &dyn Connector,
    sites: &[(String, PartitionId)],
    window: Range<u64>,
    lines: &mpsc::Sender<Vec<WrittenLine>>,
) -> WrittenLine {
    let mut end = BTreeMap::new();
    for (site, partition) in sites {
        let (named, mut told) = mpsc::channel(1);
        let names = Names { log, partition, connector };
        let walk = async {
            let walked = names.of_window(window.clone(), CURRENT_WAIT, &named).await;
            drop(named);
            walked
        };
        let tell = async move {
            while let Some(some) = told.recv().await {
                let some = some.into_iter().map(|named| line(site, named)).collect();
                if lines.send(some).await.is_err() {
                    return;
                }
            }
        };
        let (walked, ()) = tokio::join!(walk, tell);
        match walked {
            Ok(current) => {
                end.insert(site.clone(), (current > 0).then(|| time::rfc3339(current)));
            }
            Err(error) => {
                let gone = matches!(error, Unknown::Gone { .. } | Unknown::Damaged { .. });
                return WrittenLine::Error { error: error.to_string(), gone };
            }
        }
    }
    WrittenLine::End { end }
}

fn line(site: &str, named: Named) -> WrittenLine {
    let site = site.to_owned();
    match named {
        Named::Key(key) => WrittenLine::Key { site, at: KeyAt::of(&key) },
        Named::Space(space) => {
            let table = match space {
                Space::Table(name) => Some(String::from_utf8_lossy(&name).into_owned()),
                _ => None,
            };
            WrittenLine::Whole { site, whole: true, table }
        }
    }
}

fn progress(snapshot: &super::restart::SnapshotPoint, applied: u64, under_way: bool) -> Progress {
    let total = snapshot.end.map(|end| end.saturating_sub(snapshot.first)).or(snapshot.total);
    let rows = applied.saturating_sub(snapshot.first);
    let done = if under_way { total.map_or(rows, |total| rows.min(total)) } else { total.unwrap_or(0) };
    Progress { done, total }
}

#[async_trait]
impl Control for Daemon {
    fn status(&self) -> Status {
        let channels = self.channels.iter().map(|channel| {
            let directions: Vec<_> = channel
                .directions
                .iter()
                .filter_map(|direction| self.direction_status(channel, direction))
                .collect();
            let failed = directions.iter().any(|direction| direction.phase == Phase::Failed);
            let state = match *channel.paused.borrow() {
                _ if failed => ChannelState::Failed,
                true => ChannelState::Paused,
                false => ChannelState::Running,
            };
            ChannelStatus {
                name: channel.name().to_owned(),
                store: channel.config.store.clone(),
                state,
                directions,
                member: self.group.as_ref().and_then(|group| group.server_of(channel.name())),
            }
        });
        Status {
            link: self.link.clone(),
            sites: self.sites.to_vec(),
            since: rfc3339(self.since),
            channels: channels.collect(),
            consumer_group: self.group.as_ref().map(Members::status),
        }
    }

    async fn pause(&self, channel: Option<&str>) -> Result<(), ControlError> {
        self.pause_all(channel, true).await
    }

    async fn resume(&self, channel: Option<&str>, held: Option<HeldAnswer>) -> Result<(), ControlError> {
        let Some(answer) = held else { return self.pause_all(channel, false).await };
        let mut answered = 0;
        let chosen = self.chosen_here(channel)?.into_iter().flat_map(|channel| &channel.directions);
        for live in chosen.filter_map(DirectionRun::live) {
            if lock(&live.stats.held).is_some() && live.answers.try_send(answer).is_ok() {
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
        let run = self.channel(channel)?;
        let directions: Vec<_> = run.directions.iter().filter(served).collect();
        if directions.is_empty() {
            let here = if self.site.is_some() { ", or another daemon serves it" } else { "" };
            return Err(ControlError::Refused(format!(
                "{channel}: `snapshot` names no site whose changes are carried{here}"
            )));
        }
        let lives: Option<Vec<_>> = directions.into_iter().map(DirectionRun::live).collect();
        let lives = lives.ok_or_else(|| self.elsewhere(run))?;
        if lives.iter().any(|live| live.stats.in_snapshot().is_some()) {
            return Err(ControlError::Refused(format!("{channel}: a snapshot is running")));
        }
        for live in lives {
            live.origin
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

    async fn hand_over(&self, channel: &str, request: HandOver) -> Result<HandedOver, NotHandedOver> {
        self.take_handed(self.channel(channel)?, request).await
    }

    async fn repair(&self, channel: &str, from: &str, keys: Vec<Key>) -> Result<u64, ControlError> {
        let run = self.channel(channel)?;
        let is_from = |direction: &&DirectionRun| self.sites[direction.from.index()] == from;
        let Some(direction) = run.directions.iter().find(is_from) else {
            return Err(ControlError::Refused(format!("{channel}: nothing is carried from `{from}`")));
        };
        if let Some(key) = keys.iter().find(|key| !run.carries(key)) {
            return Err(ControlError::Refused(format!(
                "{channel}: it does not carry the key {}",
                shown(key)
            )));
        }
        let Some(live) = direction.live() else { return Err(self.elsewhere(run)) };
        let count = keys.len() as u64;
        if live.origin.states_within(keys, ANSWER_AT_MOST).await {
            return Ok(count);
        }
        Err(ControlError::Failed(format!(
            "{channel}: {from} did not say in time what these keys hold; some of them may be repaired: try again once \
             `syncd status` shows no error"
        )))
    }

    async fn written(
        &self,
        channel: &str,
        window: Range<u64>,
    ) -> Result<mpsc::Receiver<Vec<WrittenLine>>, ControlError> {
        let run = self.channel_here(channel)?;
        let permit = Arc::clone(&self.log_readers).try_acquire_owned();
        let permit = permit.map_err(|_| {
            ControlError::Refused(format!(
                "{channel}: {LOG_READERS} others read the logs just now: ask again later"
            ))
        })?;
        let sites = run.directions.iter().map(|direction| {
            let site = self.sites[direction.from.index()].clone();
            (site, direction.partition.clone())
        });
        let (sites, log, connector) = (sites.collect::<Vec<_>>(), Arc::clone(&self.log), run.connector());
        let (lines, told) = mpsc::channel(1);
        tokio::spawn(async move {
            let last = written(&*log, &*connector, &sites, window, &lines).await;
            // Who asked may be gone.
            let _ = lines.send(vec![last]).await;
            drop(permit);
        });
        Ok(told)
    }

    async fn whose(&self, channel: &str, by: By, keys: Vec<Key>) -> Result<Whose, ControlError> {
        let run = self.channel_here(channel)?;
        let named = |site: Option<Site>| site.map(|site| self.sites[site.index()].clone());
        if by == By::Owner {
            let Some(owners) = run.config.conflict.owners() else {
                return Err(ControlError::Refused(format!(
                    "{channel}: nothing says which site serves a tenant: that needs conflict = \"owner\""
                )));
            };
            let whose = keys.iter().map(|key| named(owners.of(&key.name))).collect();
            return Ok(Whose { whose });
        }
        let connector = run.connector();
        let mut newest = vec![None; keys.len()];
        for direction in &run.directions {
            let names = Names { log: &*self.log, partition: &direction.partition, connector: &*connector };
            let last = names.last(&keys).await;
            let last = last.map_err(|error| ControlError::Failed(format!("{channel}: {error}")))?;
            for (newest, last) in newest.iter_mut().zip(last) {
                let last = last.map(|hlc| (hlc, direction.from));
                *newest = (*newest).max(last);
            }
        }
        Ok(Whose { whose: newest.into_iter().map(|at| named(at.map(|(_, site)| site))).collect() })
    }

    fn conflicts(&self, query: &ConflictQuery) -> Result<ConflictPage, ControlError> {
        let Some(log) = &self.conflicts else { return Ok(ConflictPage::default()) };
        log.list(query).map_err(|error| ControlError::Failed(format!("the conflict log: {error}")))
    }

    fn conflict(&self, id: u64) -> Result<Option<ConflictEntry>, ControlError> {
        let Some(log) = &self.conflicts else { return Ok(None) };
        log.get(id).map_err(|error| ControlError::Failed(format!("the conflict log: {error}")))
    }

    fn intake_bytes(&self) -> usize {
        self.shares.intake_bytes
    }

    fn ready(&self) -> bool {
        let here =
            self.channels.iter().flat_map(|channel| &channel.directions).filter_map(DirectionRun::live);
        let mut reached = here.map(|Live { stats, shared, .. }| {
            shared.capture_ready.is_up() && stats.capture_connected.load(Ordering::SeqCst)
        });
        // Before its group knows it, a daemon serves nothing.
        self.group.as_ref().is_none_or(Members::is_in) && reached.all(|reached| reached)
    }

    fn metrics(&self) -> String {
        let status = self.status();
        for run in self.channels.iter().flat_map(|channel| &channel.directions) {
            let counter = |name, value| self.metrics.counter(name, run.labels.clone()).absolute(value);
            counter("causeway_changes_captured_total", run.counts.captured.load(Ordering::SeqCst));
            counter("causeway_changes_applied_total", run.counts.applied.load(Ordering::SeqCst));
            counter("causeway_gaps_total", run.counts.gaps_total.load(Ordering::SeqCst));
            counter("causeway_intake_past_total", run.counts.past_intake.load(Ordering::SeqCst));
            for resolution in Resolution::ALL {
                let mut labels = run.labels.clone();
                labels.push(metrics::Label::new("resolution", resolution.as_str()));
                let counted = run.conflicts.counted(resolution);
                self.metrics.counter("causeway_conflicts_total", labels).absolute(counted);
            }
        }
        for (run, channel) in self.channels.iter().zip(&status.channels) {
            let here = run.directions.iter().filter_map(|run| Some((run, run.live()?)));
            for ((run, Live { stats, shared, .. }), direction) in here.zip(&channel.directions) {
                let gauge = |name, value: f64| self.metrics.gauge(name, run.labels.clone()).set(value);
                let rows = self.metrics.counter("causeway_snapshot_rows_total", run.labels.clone());
                rows.absolute(direction.snapshot.done);
                gauge("causeway_lag_changes", direction.lag.changes.map_or(f64::NAN, |n| n as f64));
                gauge("causeway_lag_seconds", direction.lag.seconds.unwrap_or(f64::NAN));
                gauge("causeway_dead_letters", direction.dead_letters as f64);
                gauge("causeway_log_damaged", self.log.damaged(&run.partition).len() as f64);
                let read = |number: &AtomicU64| number.load(Ordering::SeqCst) as f64;
                let intake = direction.intake.unwrap_or_default();
                gauge("causeway_intake_waiting", intake.waiting as f64);
                gauge("causeway_intake_in_topic", intake.in_topic.map_or(f64::NAN, |n| n as f64));
                gauge("causeway_asked_keys", read(&stats.asked));
                gauge("causeway_under_way_batches", read(&stats.under_way));
                gauge("causeway_capture_behind", shared.backlog.behind().unwrap_or(f64::NAN));
                gauge("causeway_left_out", direction.left_out as f64);
                let (remembered, spilled) = lock(&shared.recent).len();
                gauge("causeway_remembered_changes", remembered as f64);
                gauge("causeway_spilled_changes", spilled as f64);
            }
        }
        let directions = self.channels.iter().flat_map(|channel| &channel.directions);
        for elsewhere in directions.filter(|direction| direction.live().is_none()) {
            for name in ["causeway_lag_changes", "causeway_lag_seconds"] {
                self.metrics.gauge(name, elsewhere.labels.clone()).set(f64::NAN);
            }
        }
        if let Some(group) = &self.group {
            self.metrics.gauge("causeway_group_members", Vec::new()).set(group.count() as f64);
            let here = self.channels.iter().filter(|channel| channel.is_here()).count();
            self.metrics.gauge("causeway_channels_here", Vec::new()).set(here as f64);
        }
        let left_out = self.conflicts.as_ref().map_or(0, |log| log.left_out());
        self.metrics.counter("causeway_conflicts_left_out_total", Vec::new()).absolute(left_out);
        self.metrics.gauge("causeway_log_queued_bytes", Vec::new()).set(self.log.queued_bytes() as f64);
        self.metrics.gauge("causeway_log_bytes", Vec::new()).set(self.log.size_bytes() as f64);
        self.metrics.render()
    }
}
