//! A channel as this daemon runs it: what it does for it begins and ends together, once or, where daemons share the
//! channels of a site, as often as it is assigned here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use causeway_core::{Connector, Error as StoreError, ErrorKind, Finding, Key, Site};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::apply::ApplyTask;
use super::capture::CaptureTask;
use super::conflicts::Conflicts;
use super::daemon::Daemon;
use super::intake::Handed;
use super::metrics::{Labels, Metrics};
use super::peer_log::PeerLog;
use super::produced::TopicReader;
use super::recent::{Recent, TOUCH_COST};
use super::shared::{Ask, Asks, Counts, DirectionStats, Flag, SiteShared, Trouble, lock};
use super::{BACKOFF_MIN, Backoff, EngineError, sweep};
use crate::config::{Channel, Config};
use crate::log::{self, Offset, PartitionId};
use crate::status::HeldAnswer;

/// How long a stop may take before what is left is given up; a service manager waits ten seconds.
pub(super) const STOP_AT_MOST: Duration = Duration::from_secs(6);
/// Rates are told of so long.
pub(super) const RATES_EVERY: Duration = Duration::from_secs(1);

/// Requests that wait for capture; each is about as large as the interface takes them.
const HANDED_MAX: usize = 64;

/// One channel of the configuration.
pub(super) struct ChannelRun {
    pub(super) config: Channel,
    connector: Arc<dyn Connector>,
    pub(super) paused: watch::Sender<bool>,
    pub(super) directions: Vec<DirectionRun>,
    serving: tokio::sync::Mutex<Option<Serving>>,
}

/// The tasks of a channel while it is served here.
struct Serving {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// One direction of a channel, for the life of the daemon.
pub(super) struct DirectionRun {
    pub(super) from: Site,
    pub(super) partition: PartitionId,
    /// The channel goes the other way, too.
    pub(super) both: bool,
    /// A key that both sites had before: the origin's wins.
    pub(super) origin_wins: bool,
    pub(super) snapshot: bool,
    pub(super) conflicts: Arc<Conflicts>,
    pub(super) counts: Arc<Counts>,
    pub(super) labels: Labels,
    pub(super) rates: Mutex<Rates>,
    /// `None` while the channel is not served here.
    live: Mutex<Option<Live>>,
}

/// What tasks share with those who ask for it.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) stats: Arc<DirectionStats>,
    /// Of the origin.
    pub(super) shared: Arc<SiteShared>,
    /// The way to the origin's capture.
    pub(super) origin: Asks,
    pub(super) answers: mpsc::Sender<HeldAnswer>,
    /// What applications hand over at the origin; `None`: nothing is, or elsewhere.
    pub(super) handed: Option<mpsc::Sender<Handed>>,
}

/// Changes per second; each with the count that it was found with.
#[derive(Default)]
pub(super) struct Rates {
    pub(super) captured: (u64, f64),
    pub(super) applied: (u64, f64),
}

/// A new figure counts for a third: the rate of the last few seconds.
pub(super) fn smooth((last, rate): (u64, f64), now: u64) -> (u64, f64) {
    let fresh = now.saturating_sub(last) as f64 / RATES_EVERY.as_secs_f64();
    let mixed = rate + (fresh - rate) / 3.0;
    (now, if mixed < 0.05 { 0.0 } else { mixed })
}

/// The log of what `site` writes to `channel`.
pub(super) fn partition(channel: &str, site: &str) -> PartitionId {
    PartitionId { channel: channel.to_owned(), origin: site.to_owned(), number: 0 }
}

/// What one channel may hold.
pub(super) struct Shares {
    /// [`ApplyTask::lookback_bytes_max`].
    lookback_bytes_max: usize,
    /// [`ApplyTask::sweep_keys_max`].
    sweep_keys_max: usize,
    /// Own changes of a site that are remembered in memory.
    remembered_max: usize,
    /// Where the others go.
    spill_dir: PathBuf,
    /// Of all channels: [`Control::intake_bytes`](crate::status::Control::intake_bytes).
    pub(super) intake_bytes: usize,
}

impl Shares {
    pub(super) fn of(config: &Config) -> Shares {
        let share = super::daemon::share(config) / config.channels.len().max(1);
        // A log may have no folder.
        let dir = Some(&config.log.dir).filter(|dir| dir.is_dir());
        Shares {
            spill_dir: dir.cloned().unwrap_or_else(std::env::temp_dir),
            intake_bytes: super::daemon::share(config),
            lookback_bytes_max: share / 2,
            sweep_keys_max: share / sweep::KEY_BYTES,
            remembered_max: share / 2 / TOUCH_COST,
        }
    }
}

impl DirectionRun {
    /// What is known of it; `None` while the channel is not served here.
    pub(super) fn live(&self) -> Option<Live> {
        lock(&self.live).clone()
    }
}

impl ChannelRun {
    /// Of `daemon`; nothing is begun yet.
    pub(super) fn new(
        daemon: &Daemon,
        config: &Channel,
        connector: Arc<dyn Connector>,
        paused: bool,
    ) -> ChannelRun {
        let named = |site: Site| daemon.sites[site.index()].as_str();
        let origins = Site::BOTH.into_iter().filter(|site| config.direction.carries(*site));
        let directions = origins.map(|from| DirectionRun {
            from,
            partition: partition(&config.name, named(from)),
            both: config.direction.carries(from.peer()),
            origin_wins: config.existing.is_none_or(|site| site == from),
            snapshot: config.snapshot.names(from),
            conflicts: Arc::new(Conflicts::new(
                &config.name,
                daemon.sites.clone(),
                from,
                daemon.conflicts.clone(),
            )),
            counts: Arc::default(),
            labels: Metrics::labels(&config.name, named(from), named(from.peer())),
            rates: Mutex::default(),
            live: Mutex::default(),
        });
        ChannelRun {
            config: config.clone(),
            connector,
            paused: watch::Sender::new(paused),
            directions: directions.collect(),
            serving: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn carries(&self, key: &Key) -> bool {
        self.connector.carries(key)
    }

    pub(super) fn connector(&self) -> Arc<dyn Connector> {
        Arc::clone(&self.connector)
    }

    /// Whether it is served here.
    pub(super) fn is_here(&self) -> bool {
        self.directions.iter().any(|direction| lock(&direction.live).is_some())
    }

    /// Ends all of it in an orderly way: what is read is in the log, what is sent is answered, and the restart points
    /// are written. Takes at most about six seconds.
    pub(super) async fn end(&self) {
        let mut serving = self.serving.lock().await;
        let Some(Serving { stop, mut tasks }) = serving.take() else { return };
        stop.cancel();
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_AT_MOST, all).await.is_err() {
            warn!(channel = %self.name(), "a store does not answer: stopping without it, the restart repeats what was under way");
            tasks.shutdown().await;
        }
        self.directions.iter().for_each(|direction| *lock(&direction.live) = None);
    }

    /// Ends every task where it stands.
    #[cfg(any(test, feature = "simulate"))]
    pub(super) async fn kill(&self) {
        if let Some(Serving { mut tasks, .. }) = self.serving.lock().await.take() {
            tasks.shutdown().await;
        }
    }
}

impl Daemon {
    /// Begins to capture and to apply, unless that was begun.
    pub(super) async fn begin(&self, run: &ChannelRun) {
        let mut serving = run.serving.lock().await;
        if serving.is_none() {
            *serving = Some(self.serve(run));
        }
    }

    fn serve(&self, run: &ChannelRun) -> Serving {
        let (channel, shares) = (&run.config, &self.shares);
        let (items_max, bytes_max) = run.connector.batch_max();
        let stop = self.stop.child_token();
        let mut tasks = JoinSet::new();
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
        let direction_of = |from: Site| run.directions.iter().find(|direction| direction.from == from);
        let all_stats = Site::BOTH.map(|from| {
            let counts = direction_of(from).map(|direction| Arc::clone(&direction.counts));
            Arc::new(DirectionStats { counts: counts.unwrap_or_default(), ..DirectionStats::default() })
        });
        for (from, asks) in Site::BOTH.into_iter().zip(receivers) {
            let Some(direction) = direction_of(from) else { continue };
            let (to, both) = (from.peer(), direction.both);
            let stats = Arc::clone(&all_stats[from.index()]);
            let origin = match self.serves(from) {
                true => Asks::Here(channel_asks[from.index()].clone()),
                false => Asks::ByLog(channel_asks[to.index()].clone()),
            };
            let (handing, handed) = mpsc::channel(HANDED_MAX);
            let taken_here = channel.intake.clone().filter(|_| self.serves(from));
            let (begun, topic_begun) = oneshot::channel();
            let capture = CaptureTask {
                channel: channel.name.clone(),
                site: from,
                connector: Arc::clone(&run.connector),
                log: Arc::clone(&self.log),
                partition: partition(from),
                shared: Arc::clone(&shared[from.index()]),
                stats: Arc::clone(&stats),
                peer: both.then(|| partition(to)),
                snapshot: channel.snapshot.names(from),
                asks,
                intake: channel.intake.clone(),
                handed,
                topic_begun: Some(begun),
                clock: Arc::clone(&self.clocks[from.index()]),
                keep_alive: channel.keep_alive,
                owners: channel.conflict.owners().cloned(),
                keys_max: shares.remembered_max,
                spill_dir: shares.spill_dir.clone(),
                paused: self.group.is_some().then(|| run.paused.clone()),
            };
            let (answers, answered) = mpsc::channel(1);
            let apply = ApplyTask {
                channel: channel.name.clone(),
                site: to,
                connector: Arc::clone(&run.connector),
                log: Arc::clone(&self.log),
                partition: partition(from),
                own: both.then(|| partition(to)),
                shared: Arc::clone(&shared[to.index()]),
                origin: origin.clone(),
                stats: Arc::clone(&stats),
                reverse: (!self.serves(from)).then(|| Arc::clone(&all_stats[to.index()])),
                origin_wins: direction.origin_wins,
                sweep_all: channel.snapshot.names(from) && channel.snapshot.names(to),
                items_max: channel.batch.items_max.unwrap_or(items_max),
                bytes_max: channel.batch.bytes_max.unwrap_or(bytes_max),
                lookback_bytes_max: shares.lookback_bytes_max,
                keep_alive: channel.keep_alive,
                intake: channel.intake.clone(),
                owners: channel.conflict.owners().cloned(),
                sweep_keys_max: shares.sweep_keys_max,
                paused: run.paused.subscribe(),
                answers: answered,
                answered: Arc::clone(&self.answers),
                begun: Arc::clone(&self.begun),
                stop: stop.clone(),
                dead_letters: Arc::clone(&self.dead_letters),
                conflicts: Arc::clone(&direction.conflicts),
                apply_seconds: self.metrics.histogram("causeway_apply_seconds", direction.labels.clone()),
            };
            if self.serves(from) {
                let (stop, about, clear) = (stop.clone(), Arc::clone(&stats), Arc::clone(&cleared));
                let (overtaken, name) =
                    (self.group.as_ref().map(|group| group.overtaken()), channel.name.clone());
                tasks.spawn(async move {
                    if !clear.wait_or(&stop).await {
                        return;
                    }
                    let result = capture.run(stop.clone()).await;
                    let fenced = matches!(&result, Err(EngineError::Log(log::Error::Fenced { .. })));
                    ended("capture", result, &about.capture_error);
                    if fenced {
                        // Who took the log over serves the channel: applying as well would disturb it for ever.
                        stop.cancel();
                        if let Some(overtaken) = overtaken {
                            let _told_already = overtaken.try_send(name);
                        }
                    }
                });
            }
            if self.serves(to) {
                let (stop, about, clear) = (stop.clone(), Arc::clone(&stats), Arc::clone(&cleared));
                tasks.spawn(async move {
                    if clear.wait_or(&stop).await {
                        ended("apply", apply.run().await, &about.apply_error);
                    }
                });
            }
            if !self.serves(from) {
                let peer_log = PeerLog {
                    log: Arc::clone(&self.log),
                    partition: partition(from),
                    peer: Arc::clone(&shared[from.index()]),
                    theirs: Arc::clone(&stats),
                    ours: Arc::clone(&all_stats[to.index()]),
                };
                let stop = stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = peer_log.watch() => {}
                    }
                });
            }
            if let Some((intake, topic)) = taken_here.as_ref().zip(self.log.intake_topic(&partition(from))) {
                let reader = TopicReader {
                    topic,
                    channel: channel.name.clone(),
                    partition: partition(from),
                    site: from,
                    connector: Arc::clone(&run.connector),
                    intake: Arc::clone(intake),
                    handing: handing.clone(),
                    begun: topic_begun,
                    stats: Arc::clone(&stats),
                    dead_letters: Arc::clone(&self.dead_letters),
                };
                tasks.spawn(reader.run(stop.clone()));
            }
            let shared = Arc::clone(&shared[from.index()]);
            let handed = taken_here.map(|_| handing);
            *lock(&direction.live) = Some(Live { stats, shared, origin, answers, handed });
        }
        let known = run.directions.iter().any(|d| self.log.bounds(&d.partition).end > Offset(0));
        let preflight = Preflight {
            channel: channel.name.clone(),
            connector: Arc::clone(&run.connector),
            sites: Site::BOTH.into_iter().filter(|site| self.serves(*site)).collect(),
            known,
            stats: run.directions.iter().map(|d| Arc::clone(&all_stats[d.from.index()])).collect(),
            cleared,
        };
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = preflight.run() => {}
                () = stopped.cancelled() => {}
            }
        });
        Serving { stop, tasks }
    }
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

fn ended(what: &str, result: Result<(), EngineError>, about: &Mutex<Option<Trouble>>) {
    match result {
        Ok(()) | Err(EngineError::Stopped) => {}
        Err(failed) => {
            error!(error = %failed, "{what} ended");
            *lock(about) = Some(Trouble::ended(&failed));
        }
    }
}
