//! Carries a plan out: the real daemon, the stores in memory, and what happens to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use causeway_core::{Connector, Pattern, Site};
use causeway_memory::{Fault, Memory};

use super::check::{self, Difference};
use super::intake::{Applications, KEYS};
use super::line::Line;
use super::log::{Disk, SimLog};
use super::plan::{Do, Plan, Snapshot};
use super::random::Random;
use super::world::{Of, Trace, World};
use crate::config::{Config, Conflict, Deliver, Intake};
use crate::engine::Daemon;
use crate::owners::{Owners, TenantKey};
use crate::registry::Registry;
use crate::status::{Control as _, DirectionStatus, Phase};

/// After the last fault everything has to be carried within this time.
const DRAIN_AT_MOST: u64 = 900_000;
/// Quiet for so long means that everything is carried.
const QUIET: u64 = 2_500;
/// Then the sites have to be equal within this time.
const EQUAL_AT_MOST: u64 = 150_000;
const CHANNEL: &str = "c";
/// Of a value that comes in pieces.
const PART_BYTES: usize = 4;

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    pub(super) failures: Vec<String>,
    pub(super) keys: Vec<String>,
    pub(super) digest: u64,
    /// The status said that all was carried, and it was not.
    pub(super) late: bool,
}

struct Process {
    daemon: Arc<Daemon>,
    log: Arc<SimLog>,
}

struct Driver {
    plan: Plan,
    world: Arc<World>,
    memory: Memory,
    reference: Memory,
    connector: Arc<dyn Connector>,
    disk: Arc<Disk>,
    config: Config,
    /// One that serves both sites, or one for each.
    processes: Vec<Option<Process>>,
    /// What has to end, by its time.
    agenda: BTreeMap<(u64, u64), Ending>,
    planned: u64,
    down: [bool; 2],
    failures: Vec<String>,
    applications: [Arc<Applications>; 2],
    requests: u64,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Start(Site, bool),
    Clear(Site),
    Process(usize),
}

/// Runs one plan in a runtime of its own, whose clock stands still while anything is to do.
pub(super) fn run(plan: &Plan, trace: Option<Trace>, digesting: bool) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Run { failures: vec![error.to_string()], ..Run::default() },
    };
    runtime.block_on(async {
        let world = World::new(plan, trace, digesting);
        let mut driver = Driver::new(plan.clone(), &world);
        let late = driver.drive().await;
        let (mut failures, mut keys) = (std::mem::take(&mut driver.failures), Vec::new());
        if failures.is_empty() {
            for Difference { key, text } in driver.compare() {
                keys.push(key);
                failures.push(text);
            }
        }
        Run { failures, keys, digest: world.digest(), late }
    })
}

/// Of the keys of each kind one site owns the first, the other one the second, and nobody the others.
fn owners(sites: &[String; 2]) -> Owners {
    let key = TenantKey::new("*{tenant}").expect("it is a pattern");
    let [first, second] = sites;
    Owners::read(&format!("0,{first}\n1,{second}\n"), key, sites).expect("it is a table")
}

impl Driver {
    fn new(plan: Plan, world: &Arc<World>) -> Driver {
        for of in [Of::Store, Of::Capture] {
            for site in Site::BOTH {
                world.set_skew(of, site, plan.skews[of as usize][site.index()]);
            }
        }
        let clocks = || Site::BOTH.map(|site| world.clock(Of::Store, site));
        let part_bytes = if plan.pieces { PART_BYTES } else { usize::MAX };
        let memory = Memory::new().with_clocks(clocks()).with_part_bytes(part_bytes);
        let memory = if plan.times { memory } else { memory.without_times() };
        let line = Line { world: Arc::clone(world), memory: memory.clone() };
        let mut config = config(plan.snapshot);
        config.limits.memory = plan.memory;
        let sites = config.sites.clone();
        for channel in &mut config.channels {
            channel.batch.items_max = Some(plan.items_max);
            channel.keep_alive = plan.keep_alive;
            channel.intake = plan.intake.then(|| {
                Arc::new(Intake {
                    deliver: Deliver::Both,
                    keys: KEYS.map(Pattern::new).to_vec(),
                    waiting_max: 64,
                    remembered: 100,
                })
            });
            if plan.owned {
                channel.conflict = Conflict::Owner(Arc::new(owners(&sites)));
            }
        }
        let applications =
            Site::BOTH.map(|site| Applications::new(world, CHANNEL, (site, &sites[site.index()])));
        Driver {
            processes: (0..if plan.apart { 2 } else { 1 }).map(|_| None).collect(),
            plan,
            world: Arc::clone(world),
            memory,
            reference: Memory::new().with_clocks(clocks()),
            connector: Arc::new(line),
            disk: Arc::default(),
            config,
            agenda: BTreeMap::new(),
            planned: 0,
            down: [false; 2],
            failures: Vec::new(),
            applications,
            requests: 0,
        }
    }

    /// Whether the sites were equal only some time after all seemed to be carried.
    async fn drive(&mut self) -> bool {
        for (site, command) in self.plan.before.clone() {
            self.write(site, &[command]);
        }
        for site in Site::BOTH {
            self.memory.limit_backlog(site, self.plan.backlog_max);
        }
        for seat in 0..self.processes.len() {
            self.start(seat).await;
        }
        // What is not copied counts from when capture has its first place in the stream.
        let mut waited = 0;
        while !self.processes.iter().all(|one| one.as_ref().is_some_and(|process| process.daemon.ready())) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            waited += 1;
            if waited > 10_000 {
                self.failures.push("the daemon does not get ready".to_owned());
                return false;
            }
        }
        if self.plan.intake {
            for applications in &self.applications {
                tokio::spawn(Arc::clone(applications).run());
            }
        }
        let begin = self.world.elapsed();
        for (at, step) in self.plan.steps.clone() {
            self.pass(begin + at).await;
            self.act(step).await;
        }
        self.world.note(|| "all faults end".to_owned());
        self.pass(u64::MAX).await;
        for site in Site::BOTH {
            self.memory.clear(site);
            self.memory.limit_backlog(site, None);
        }
        self.world.calm();
        // What expires soon has expired.
        tokio::time::sleep(Duration::from_secs(12)).await;
        self.drain().await
    }

    /// Lets time pass to `until`, and ends on the way what has to end.
    async fn pass(&mut self, until: u64) {
        while let Some(entry) = self.agenda.first_entry() {
            let at = entry.key().0;
            if at > until {
                break;
            }
            let ending = entry.remove();
            tokio::time::sleep_until(self.world.at(at)).await;
            self.world.note(|| format!("{ending:?}"));
            match ending {
                Ending::Start(site, keeps_history) => {
                    if !keeps_history {
                        self.memory.lose_position(site);
                        self.world.cut(site);
                    }
                    self.memory.start(site);
                    self.down[site.index()] = false;
                }
                Ending::Clear(site) => self.memory.clear(site),
                Ending::Process(seat) => self.start(seat).await,
            }
        }
        if until < u64::MAX {
            tokio::time::sleep_until(self.world.at(until)).await;
        }
    }

    fn end_later(&mut self, after: u64, ending: Ending) {
        self.planned += 1;
        self.agenda.insert((self.world.elapsed() + after, self.planned), ending);
    }

    async fn act(&mut self, step: Do) {
        if let Do::Write(site, commands) = &step {
            if !self.down[site.index()] {
                self.write(*site, commands);
            }
            return;
        }
        self.world.note(|| step.to_string());
        match step {
            Do::Write(..) => {}
            Do::Hand(site, commands) => self.hand_over(site, &commands),
            Do::Cut(site) => {
                self.memory.cut(site);
                self.world.cut(site);
            }
            Do::Promote(site) => {
                self.memory.promote(site);
                self.world.cut(site);
            }
            Do::CutAfter(site, batches) => self.memory.inject(site, Fault::CutAfter(batches + 1)),
            Do::Die(site, down) | Do::Stop(site, down) => {
                if !std::mem::replace(&mut self.down[site.index()], true) {
                    self.memory.stop(site);
                    self.world.cut(site);
                    self.end_later(down, Ending::Start(site, matches!(step, Do::Stop(..))));
                }
            }
            Do::Full(site, time) => {
                self.memory.inject(site, Fault::Full);
                self.end_later(time, Ending::Clear(site));
            }
            Do::Kill(down) => {
                for seat in self.victims() {
                    if let Some(process) = self.processes[seat].take() {
                        self.tell_applications();
                        process.log.crash();
                        process.daemon.kill().await;
                        self.end_later(down, Ending::Process(seat));
                    }
                }
            }
            Do::Restart => {
                for seat in self.victims() {
                    if let Some(process) = self.processes[seat].take() {
                        process.daemon.stop().await;
                        self.start(seat).await;
                    }
                }
            }
            Do::Snapshot => {
                for process in self.processes.iter().flatten() {
                    let _refused = process.daemon.snapshot(CHANNEL).await;
                }
            }
            Do::Paces(seed) => self.world.redraw_paces(&mut Random::new(seed)),
            Do::Clock(site, skew) => self.world.set_skew(Of::Capture, site, skew),
        }
    }

    fn write(&mut self, site: Site, commands: &[String]) {
        let words: Vec<&str> = commands.iter().map(String::as_str).collect();
        let written = self.memory.write(site, &words);
        let expected = match self.plan.collide {
            false => self.reference.write(site, &words),
            true => written.clone(),
        };
        for command in commands {
            let key = command.split(' ').nth(1).unwrap_or_default();
            self.world
                .note_key(key, || format!("{} writes {}: {written:?}", site.index(), commands.join("; ")));
        }
        if written != expected {
            let text = format!("{} refuses {commands:?}: {written:?}", site.index());
            self.world.note(|| text.clone());
            self.failures.push(text);
        }
    }

    /// What an application means to write is what counts, however long it takes to hand it over.
    fn hand_over(&mut self, site: Site, commands: &[String]) {
        self.requests += 1;
        self.applications[site.index()].ask(self.requests, commands);
        if !self.plan.collide {
            for command in commands {
                let _refused = self.reference.write(site, &[command]);
            }
        }
    }

    fn tell_applications(&self) {
        for (site, applications) in self.applications.iter().enumerate() {
            let seat = if self.plan.apart { site } else { 0 };
            let process = self.processes.get(seat).and_then(Option::as_ref);
            applications.served_by(process.map(|process| &process.daemon));
        }
    }

    /// Which processes a fault hits.
    fn victims(&self) -> Vec<usize> {
        match self.plan.apart.then(|| self.world.random(|random| random.below(3))) {
            None | Some(0) => vec![0],
            Some(1) => vec![1],
            Some(_) => vec![0, 1],
        }
    }

    async fn start(&mut self, seat: usize) {
        let served = self.plan.apart.then(|| Site::BOTH[seat]);
        let log = SimLog::open(&self.world, &self.disk, &self.config.sites, served);
        let clocks = Site::BOTH.map(|site| self.world.clock(Of::Capture, site));
        let connectors = vec![Arc::clone(&self.connector)];
        match Daemon::start_on(&self.config, connectors, served, (Arc::clone(&log) as _, None), None, clocks)
            .await
        {
            Ok(daemon) => {
                self.processes[seat] = Some(Process { daemon, log });
                self.tell_applications();
            }
            Err(error) => self.failures.push(format!("the daemon does not start: {error}")),
        }
    }

    /// Each as the process says that captures it: of the other end it knows no more than the log says.
    fn directions(&self) -> Vec<DirectionStatus> {
        let mut told = Vec::new();
        for (seat, process) in self.processes.iter().flatten().enumerate() {
            let mut channels = process.daemon.status().channels;
            let directions = channels.iter_mut().flat_map(|channel| channel.directions.drain(..));
            let site = &self.config.sites[seat];
            told.extend(directions.filter(|direction| !self.plan.apart || direction.from == *site));
        }
        told
    }

    async fn drain(&mut self) -> bool {
        if self.processes.iter().any(Option::is_none) {
            return false;
        }
        let (begin, mut since) = (self.world.elapsed(), self.world.elapsed());
        while self.world.elapsed() - since < QUIET {
            tokio::time::sleep(super::line::MOMENT).await;
            let directions = self.directions();
            let quiet = self.applications.iter().all(|applications| applications.is_done())
                && directions
                    .iter()
                    .all(|d| d.phase == Phase::Streaming && d.lag.changes == Some(0) && d.error.is_none());
            if !quiet {
                since = self.world.elapsed();
            }
            if self.world.elapsed() - begin > DRAIN_AT_MOST {
                let stuck: Vec<String> = directions
                    .iter()
                    .map(|d| {
                        let Some(error) = d.error.as_ref().or(d.held.as_ref()) else {
                            return format!("{} {:?} lag {:?}", d.from, d.phase, d.lag.changes);
                        };
                        format!("{} {:?} lag {:?} {error}", d.from, d.phase, d.lag.changes)
                    })
                    .collect();
                self.failures.push(format!("not carried after {DRAIN_AT_MOST} ms: {}", stuck.join("; ")));
                return false;
            }
        }
        for applications in &self.applications {
            self.failures.append(&mut super::world::lock(&applications.failures));
        }
        self.world.note(|| "all is carried, it says".to_owned());
        let overtaken: usize =
            self.processes.iter().flatten().map(|process| process.daemon.overtaken()).sum();
        if overtaken > 0 {
            self.failures.push(format!("{overtaken} changes that went in count as if they had not"));
        }
        self.world.be_silent();
        let carried = self.world.elapsed();
        while !self.compare().is_empty() && self.world.elapsed() - carried < EQUAL_AT_MOST {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.world.elapsed() > carried && self.compare().is_empty()
    }

    fn compare(&self) -> Vec<Difference> {
        let mut found = Site::BOTH.map(|site| self.memory.dump(site));
        if self.plan.collide {
            // A first snapshot that breaks is repeated with what its site holds by then.
            let gapless = self.plan.snapshot == Snapshot::None
                && !self.plan.steps.iter().any(|(_, step)| matches!(step, Do::Die(..) | Do::Snapshot))
                && self.plan.backlog_max.is_none();
            let logs = [0, 1].map(|site: usize| self.disk.all(&self.config.sites[site]));
            let owners = self.config.channels.iter().find_map(|channel| channel.conflict.owners());
            return check::collided(&found, gapless.then_some(&logs), owners.map(Arc::as_ref));
        }
        let mut expected = self.reference.dump(Site::First);
        for (key, value) in self.reference.dump(Site::Second) {
            // What both had before: the first site's wins. Where the first snapshot breaks, either may.
            let either = self.plan.row_max > 0 && found.iter().all(|f| f.get(&key) == Some(&value));
            if either || !expected.contains_key(&key) {
                expected.insert(key, value);
            }
        }
        // What was deleted where the stream was lost is told by the logs, and by these no more where retention took it.
        let in_gap = |(_, step): &(u64, Do)| matches!(step, Do::Die(..) | Do::Snapshot);
        if self.plan.trim && self.plan.steps.iter().any(in_gap) {
            found.iter_mut().for_each(|dump| dump.retain(|key, _| expected.contains_key(key)));
        }
        check::exact(&expected, &found)
    }
}

/// The channel's configuration; read once for each kind.
fn config(snapshot: Snapshot) -> Config {
    static CONFIGS: OnceLock<[Config; 3]> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        ["\"both\"\nexisting = \"a\"", "\"a\"\nexisting = \"a\"", "\"none\""].map(|snapshot| {
            let text = format!(
                "[link]\nname = \"s\"\nsites = [\"a\", \"b\"]\n[[channel]]\nname = \"{CHANNEL}\"\n\
                 store = \"memory\"\ndirection = \"both\"\nsnapshot = {snapshot}\n\
                 a = {{ url = \"memory://a\" }}\nb = {{ url = \"memory://b\" }}\n"
            );
            let path = std::env::temp_dir().join(format!("causeway-simulate-{}.toml", std::process::id()));
            std::fs::write(&path, text).expect("the folder for temporary files can be written");
            let registry = Registry::built_in().with("memory", causeway_memory::open);
            let mut config = Config::load_with(&path, &registry).expect("the configuration is right");
            let _gone = std::fs::remove_file(&path);
            // Nothing is kept there: a dead letter is a failure.
            config.log.dir = PathBuf::from("/nonexistent/simulated");
            config
        })
    });
    let [both, first, none] = configs;
    match snapshot {
        Snapshot::Both => both.clone(),
        Snapshot::First => first.clone(),
        Snapshot::None => none.clone(),
    }
}
