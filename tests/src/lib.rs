//! Two real stores, the real `syncd` as a process of its own that can be killed, and the real `verifier`.

pub mod hot;
pub mod proxy;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_testkit::data::{Traffic, TrafficOptions, judge};
use causeway_testkit::elasticsearch::ElasticsearchServer;
use causeway_testkit::kafka::KafkaServer;
use causeway_testkit::servers::{AppendOnly, Options, RedisServer, free_port, other_redis_server};
use syncd::status::{Phase, Status};

use crate::proxy::Proxy;

/// How long a story waits for what has to come; it fails only if that does not.
pub const DRAIN: Duration = Duration::from_secs(240);

/// How a [`Link`] is configured.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `both`, `dc->cloud` or `cloud->dc`.
    pub direction: &'static str,
    /// `dc`, `cloud`, `both` or `none`.
    pub snapshot: &'static str,
    /// More lines of the channel's table.
    pub channel: String,
    /// More lines before it, such as a `[log]` table.
    pub tables: String,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { direction: "both", snapshot: "both", channel: String::new(), tables: String::new() }
    }
}

/// Two sites, `dc` and `cloud`, with one channel `push` between them.
#[derive(Debug)]
pub struct Link {
    /// The store at `dc`, then the one at `cloud`.
    pub stores: [RedisServer; 2],
    /// The daemon's environment from the next start on, beside the test's own.
    pub environment: Vec<(String, String)>,
    /// A program with its first words that becomes the daemon, from the next start on.
    pub launcher: Vec<String>,
    seat: Seat,
    /// Of the daemon for `cloud`, where the one before serves `dc` alone.
    other: Option<Seat>,
}

/// A folder and an address of their own for a daemon of the link, and the daemon, if it runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Seat {
    dir: tempfile::TempDir,
    api: u16,
    daemon: Option<Child>,
}

/// What `verifier check` found, of keys that are numbers.
#[derive(Debug)]
pub struct Checked {
    /// Keys that differ, ascending.
    pub different: Vec<u64>,
    /// How many it could not decide.
    pub undecided: u64,
}

impl Seat {
    fn new() -> Result<Seat> {
        let dir = tempfile::Builder::new().prefix("causeway-story-").tempdir()?;
        Ok(Seat { dir, api: free_port()?, daemon: None })
    }

    /// One whose daemon is configured by `tables`, to which the address of its interface is added.
    pub fn with(tables: &str) -> Result<Seat> {
        let seat = Seat::new()?;
        std::fs::write(seat.config(), format!("{tables}\n[api]\nlisten = \"{}\"\n", seat.address()))?;
        Ok(seat)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("syncd.toml")
    }

    /// One for another daemon with the configuration of this one.
    pub fn another(&self) -> Result<Seat> {
        let new = Seat::new()?;
        let text = std::fs::read_to_string(self.config())?;
        let text = text.replacen(&format!("127.0.0.1:{}", self.api), &format!("127.0.0.1:{}", new.api), 1);
        std::fs::write(new.config(), text)?;
        Ok(new)
    }

    /// Starts the daemon, of `site` alone or of both; its log goes to `syncd.log` beside the configuration.
    pub fn start(&mut self, site: Option<&str>) -> Result<()> {
        self.start_as(site, &[], &[])
    }

    fn start_as(
        &mut self,
        site: Option<&str>,
        launcher: &[String],
        environment: &[(String, String)],
    ) -> Result<()> {
        let path = self.dir.path().join("syncd.log");
        let log = std::fs::File::options().create(true).append(true).open(path)?;
        let mut words: Vec<OsString> = launcher.iter().map(OsString::from).collect();
        words.push(program("syncd")?.into());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["run", "--config"])
            .arg(self.config())
            .args(site.map(|site| ["--site", site]).into_iter().flatten())
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.daemon = Some(child);
        Ok(())
    }

    /// Sends the daemon a signal, by its name.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.daemon.as_ref().context("no daemon runs")?.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status()?;
        ensure!(sent.success(), "kill -{name} failed");
        Ok(())
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&causeway_testkit::api::get(&self.address(), "/v1/status")?)?)
    }

    /// Of the daemon's interface.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.api)
    }

    /// Runs `syncd` with these words and the configuration.
    pub fn syncd(&self, words: &[&str]) -> Result<Output> {
        Ok(Command::new(program("syncd")?).args(words).arg("--config").arg(self.config()).output()?)
    }

    /// Waits until the status is as `wanted` says.
    pub fn wait_until(
        &self,
        what: &str,
        at_most: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        wait_for(what, at_most, || self.status(), wanted, || self.log_end())
    }

    /// Waits until every direction streams and nothing is outstanding, three times in a row.
    pub fn wait_until_drained(&self, at_most: Duration) -> Result<Status> {
        wait_until_drained(at_most, || self.status(), || self.log_end())
    }

    /// Fails unless `verifier check` says that both sites are equal.
    pub fn verify(&self) -> Result<()> {
        let checked =
            Command::new(program("verifier")?).args(["check", "--config"]).arg(self.config()).output()?;
        ensure!(
            checked.status.success(),
            "verifier: {}\n{}\n{}\n{}",
            checked.status,
            String::from_utf8_lossy(&checked.stdout),
            String::from_utf8_lossy(&checked.stderr),
            self.log_end()
        );
        Ok(())
    }

    /// Runs `verifier repair` with these words: its exit code, and what it said.
    pub fn repair(&self, words: &[&str]) -> Result<(i32, String)> {
        self.verifier("repair", words)
    }

    /// Puts back what a repair has overwritten, by the undo file that it named in what it `said`: as [`Seat::repair`].
    pub fn undo(&self, said: &str) -> Result<(i32, String)> {
        let named = said.split_once("is kept in ").and_then(|(_, named)| named.lines().next());
        self.verifier("undo", &[named.context("no undo file")?, "--yes"])
    }

    /// What `verifier COMMAND` with these words ends with and says.
    pub fn verifier(&self, command: &str, words: &[&str]) -> Result<(i32, String)> {
        let done = Command::new(program("verifier")?)
            .args([command, "--config"])
            .arg(self.config())
            .args(words)
            .output()?;
        let said = [done.stdout, done.stderr].concat();
        Ok((done.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// What `verifier check` with these words reports, as JSON.
    pub fn report(&self, words: &[&str]) -> Result<serde_json::Value> {
        let (_, said) = self.verifier("check", &[&["--json"], words].concat())?;
        let json = said.lines().next().unwrap_or_default();
        serde_json::from_str(json).with_context(|| said.clone())
    }

    /// What `verifier check` finds.
    pub fn check(&self) -> Result<Checked> {
        let report = self.report(&[])?;
        let listed = report["differences"].as_array().context("no list")?;
        let number = |one: &serde_json::Value| one["key"].as_str()?.parse().ok();
        let mut different: Vec<u64> = listed.iter().filter_map(number).collect();
        different.sort_unstable();
        Ok(Checked { different, undecided: report["undecided"].as_u64().context("no count")? })
    }

    /// All that the daemon has logged.
    pub fn log(&self) -> String {
        self.read("syncd.log")
    }

    /// The end of what the daemon has logged, for messages.
    pub fn log_end(&self) -> String {
        let text = self.read("syncd.log");
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// SIGTERM; the exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        self.signal("TERM")?;
        Ok(self.daemon.take().context("no daemon runs")?.wait()?.code())
    }

    fn read(&self, file: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// kill -9, if it runs.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }
}

impl Drop for Seat {
    /// Copies its folder into the one of `CAUSEWAY_STORY_KEEP`, if that is set, under the name of the test.
    fn drop(&mut self) {
        let _gone = self.kill();
        if let (Some(kept), Some(folder)) =
            (std::env::var_os("CAUSEWAY_STORY_KEEP"), self.dir.path().file_name())
        {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            let kept = Path::new(&kept).join(format!("{test}-{}", folder.display()));
            let _best_effort = Command::new("cp").arg("-r").arg(self.dir.path()).arg(kept).status();
        }
    }
}

fn wait_for(
    what: &str,
    at_most: Duration,
    status: impl Fn() -> Result<Status>,
    wanted: impl Fn(&Status) -> bool,
    log_end: impl Fn() -> String,
) -> Result<Status> {
    let end = Instant::now() + at_most;
    loop {
        let status = status();
        match &status {
            Ok(status) if wanted(status) => return Ok(status.clone()),
            _ if Instant::now() > end => bail!("{what}: not within {at_most:?}: {status:?}\n{}", log_end()),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn wait_until_drained(
    at_most: Duration,
    status: impl Fn() -> Result<Status>,
    log_end: impl Fn() -> String,
) -> Result<Status> {
    let drained = |status: &Status| {
        !status.channels.is_empty()
            && status
                .channels
                .iter()
                .flat_map(|channel| &channel.directions)
                .all(|direction| direction.phase == Phase::Streaming && direction.lag.changes == Some(0))
    };
    let end = Instant::now() + at_most;
    let mut now = wait_for("drained", at_most, &status, drained, &log_end)?;
    let mut in_a_row = 1;
    while in_a_row < 3 {
        std::thread::sleep(Duration::from_millis(700));
        let left = end.saturating_duration_since(Instant::now());
        now = wait_for("drained", left, &status, |_| true, &log_end)?;
        in_a_row = if drained(&now) { in_a_row + 1 } else { 0 };
        ensure!(Instant::now() < end, "not drained: {now:?}\n{}", log_end());
    }
    Ok(now)
}

/// What two sites hold of the first five ids of which they hold something else: the id, what dc holds, what cloud holds.
pub fn differing<'a>(
    dc: &'a BTreeMap<String, String>,
    cloud: &'a BTreeMap<String, String>,
) -> Vec<(&'a String, Option<&'a String>, Option<&'a String>)> {
    let ids: BTreeSet<_> = dc.keys().chain(cloud.keys()).collect();
    let both = ids.into_iter().map(|id| (id, dc.get(id), cloud.get(id)));
    both.filter(|(_, dc, cloud)| dc != cloud).take(5).collect()
}

/// Kills syncd or one of the two nodes, each in its turn, and starts it again; `kills`: how many there were before.
pub fn kill_in_turn(kills: usize, seat: &mut Seat, nodes: &mut [ElasticsearchServer]) -> Result<()> {
    match kills % 4 {
        0 | 2 => {
            seat.kill()?;
            seat.start(None)
        }
        n => {
            let node = &mut nodes[n / 2];
            node.kill();
            node.restart()
        }
    }
}

impl Link {
    /// Starts both stores and writes the configuration; the daemon does not run yet.
    pub fn new(stores: [Options; 2], setup: &Setup) -> Result<Link> {
        let [dc, mut cloud] = stores;
        cloud.program = cloud.program.or_else(other_redis_server);
        let stores = [RedisServer::start(dc)?, RedisServer::start(cloud)?];
        let seat = Seat::new()?;
        let mut text = String::new();
        let (name, log) = log_of(setup)?;
        writeln!(text, "[link]\nname = \"{name}\"\nsites = [\"dc\", \"cloud\"]\n{log}")?;
        writeln!(text, "[api]\nlisten = \"127.0.0.1:{}\"\n{}", seat.api, setup.tables)?;
        writeln!(text, "[[channel]]\nname = \"push\"\nstore = \"redis\"")?;
        writeln!(text, "direction = \"{}\"\nsnapshot = \"{}\"", setup.direction, setup.snapshot)?;
        if setup.snapshot == "both" {
            writeln!(text, "existing = \"dc\"")?;
        }
        writeln!(text, "{}", setup.channel)?;
        writeln!(
            text,
            "dc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}",
            stores[0].url(),
            stores[1].url()
        )?;
        std::fs::write(seat.config(), text)?;
        let mut link = Link { stores, environment: Vec::new(), launcher: Vec::new(), seat, other: None };
        if setup.direction == "both" && !log.is_empty() && is_asked("CAUSEWAY_SITES", "apart") {
            link.part()?;
        }
        Ok(link)
    }

    /// From the next start on a daemon for each site.
    pub fn part(&mut self) -> Result<()> {
        self.other = Some(self.seat.another()?);
        Ok(())
    }

    /// Whether each site has its own daemon.
    pub fn is_apart(&self) -> bool {
        self.other.is_some()
    }

    fn seat_at(&mut self, site: usize) -> Result<&mut Seat> {
        if site == 0 { Ok(&mut self.seat) } else { self.other.as_mut().context("one serves both") }
    }

    fn seats(&self) -> impl Iterator<Item = &Seat> {
        std::iter::once(&self.seat).chain(&self.other)
    }

    /// As [`Seat::url`].
    pub fn api(&self) -> String {
        self.seat.url()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.seat.config()
    }

    /// The folder of the configuration file; the change log is in `data/log` there.
    pub fn dir(&self) -> &Path {
        self.seat.dir.path()
    }

    /// URLs of both stores.
    pub fn urls(&self) -> Vec<String> {
        self.stores.iter().map(RedisServer::url).collect()
    }

    /// Replaces `from` in the configuration, which has to have it.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        (0..self.seats().count()).try_for_each(|site| self.edit_at(site, from, to))
    }

    /// The same for the daemon of one site.
    pub fn edit_at(&self, site: usize, from: &str, to: &str) -> Result<()> {
        let seat = self.seats().nth(site).context("one serves both")?;
        let text = std::fs::read_to_string(seat.config())?;
        ensure!(text.contains(from), "`{from}` is not in the configuration");
        Ok(std::fs::write(seat.config(), text.replacen(from, to, 1))?)
    }

    /// Gives `site` another URL in the configuration.
    pub fn move_to(&self, site: usize, url: &str) -> Result<()> {
        self.edit(&format!("url = \"{}\"", self.urls()[site]), &format!("url = \"{url}\""))
    }

    /// Puts a line between the daemon and each store, from the next start on.
    pub fn lines(&self) -> Result<[Proxy; 2]> {
        let lines = [Proxy::plain(self.stores[0].port())?, Proxy::plain(self.stores[1].port())?];
        for (site, line) in lines.iter().enumerate() {
            self.move_to(site, &line.url())?;
        }
        Ok(lines)
    }

    /// Starts the daemon, or both; the log goes to `syncd.log` beside the configuration.
    pub fn start(&mut self) -> Result<()> {
        self.start_at(0)?;
        if self.other.is_some() { self.start_at(1) } else { Ok(()) }
    }

    /// Starts the daemon of one site, where each has its own; 0 is `dc`, or both.
    pub fn start_at(&mut self, site: usize) -> Result<()> {
        let apart = self.other.is_some();
        let (launcher, environment) = (self.launcher.clone(), self.environment.clone());
        let served = apart.then_some(["dc", "cloud"][site]);
        self.seat_at(site)?.start_as(served, &launcher, &environment)
    }

    /// kill -9 for the daemon of one site, where each has its own.
    pub fn kill_at(&mut self, site: usize) -> Result<()> {
        self.seat_at(site)?.kill()
    }

    /// A seat for another daemon of this link, which begins with an empty folder; the one that had been there, with
    /// its daemon.
    pub fn take_another_seat(&mut self) -> Result<Seat> {
        let new = self.seat.another()?;
        Ok(self.sit(new))
    }

    /// Turns to another daemon; the one before.
    pub fn sit(&mut self, seat: Seat) -> Seat {
        std::mem::replace(&mut self.seat, seat)
    }

    /// Sends the daemon, or both, a signal, by its name.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.seats().try_for_each(|seat| seat.signal(name))
    }

    /// kill -9, if it runs.
    pub fn kill(&mut self) -> Result<()> {
        self.seat.kill()?;
        self.other.as_mut().map_or(Ok(()), Seat::kill)
    }

    /// SIGTERM; returns the exit code and how long it took.
    pub fn terminate(&mut self) -> Result<(Option<i32>, Duration)> {
        let began = Instant::now();
        self.signal("TERM")?;
        let mut code = Some(0);
        for seat in std::iter::once(&mut self.seat).chain(&mut self.other) {
            let ended = seat.daemon.take().context("no daemon runs")?.wait()?.code();
            code = if code == Some(0) { ended } else { code };
        }
        Ok((code, began.elapsed()))
    }

    /// Stops the daemon by SIGTERM; it has to end with 0 within 10 s.
    pub fn stop_in_order(&mut self) -> Result<()> {
        let (code, took) = self.terminate()?;
        println!("stopped after {took:?}");
        ensure!(
            code == Some(0) && took < Duration::from_secs(10),
            "exit {code:?} after {took:?}\n{}",
            self.log_end()
        );
        Ok(())
    }

    /// Waits until more than `count` changes were applied in each direction.
    pub fn wait_until_applied(&self, count: u64, at_most: Duration) -> Result<Status> {
        let applied = |s: &Status| s.channels[0].directions.iter().all(|d| d.applied > count);
        self.wait_until("streaming", at_most, applied)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.seat.daemon.as_ref().context("no daemon runs")?.id())
    }

    /// The daemon's peak resident memory in bytes.
    pub fn peak_memory(&self) -> Result<u64> {
        let pid = self.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
    }

    /// Runs `syncd` with these words and the configuration, of each daemon; what the first one answers that refuses,
    /// else the last one.
    pub fn syncd(&self, words: &[&str]) -> Result<Output> {
        let first = self.seat.syncd(words)?;
        match &self.other {
            Some(other) if first.status.success() => other.syncd(words),
            _ => Ok(first),
        }
    }

    /// `GET /v1/status`; of two daemons each direction as both know it together, once both serve the channel.
    pub fn status(&self) -> Result<Status> {
        let mut status = self.seat.status()?;
        let Some(other) = &self.other else { return Ok(status) };
        let mut others = other.status()?;
        let served = |status: &Status| status.channels.iter().all(|channel| !channel.directions.is_empty());
        ensure!(served(&status) && served(&others), "not served yet: {status:?} {others:?}");
        for (ours, theirs) in status.channels.iter_mut().zip(&mut others.channels) {
            for (at_dc, at_cloud) in ours.directions.iter_mut().zip(&mut theirs.directions) {
                if at_dc.from != "dc" {
                    std::mem::swap(at_dc, at_cloud);
                }
                let (captured, applied) = (at_dc, at_cloud);
                captured.applied = applied.applied;
                captured.snapshot.done = captured.snapshot.done.max(applied.snapshot.done);
                captured.applied_per_second = applied.applied_per_second;
                (captured.conflicts, captured.dead_letters) = (applied.conflicts, applied.dead_letters);
                captured.held = applied.held.take();
                captured.error = captured.error.take().or(applied.error.take());
                if captured.phase == Phase::Streaming {
                    captured.phase = applied.phase;
                }
            }
        }
        Ok(status)
    }

    /// A metric of the direction that begins at `from`, as `GET /metrics` says; of two daemons that of its origin.
    pub fn metric(&self, name: &str, from: &str) -> Result<f64> {
        let seat = self.other.as_ref().filter(|_| from == "cloud").unwrap_or(&self.seat);
        let all = causeway_testkit::api::get(&seat.address(), "/metrics")?;
        let (begin, from) = (format!("{name}{{"), format!("from=\"{from}\""));
        let line = all.lines().find(|line| line.starts_with(&begin) && line.contains(&from));
        let value = line.and_then(|line| line.rsplit(' ').next());
        Ok(value.with_context(|| format!("no {name} of {from} in {all}"))?.parse()?)
    }

    /// Waits until the status is as `wanted` says.
    pub fn wait_until(
        &self,
        what: &str,
        at_most: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        wait_for(what, at_most, || self.status(), wanted, || self.log_end())
    }

    /// Waits until the daemon of one site, where each has its own, says what is `wanted`.
    pub fn wait_until_told(
        &self,
        site: usize,
        what: &str,
        at_most: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let seat = self.seats().nth(site).context("one serves both")?;
        wait_for(what, at_most, || seat.status(), wanted, || self.log_end())
    }

    /// Answers what is held: `apply` or `drop`.
    pub fn answer_held(&self, answer: &str) -> Result<()> {
        let words = ["resume", "--channel", "push", "--held", answer];
        let answers = self.seats().map(|seat| seat.syncd(&words)).collect::<Result<Vec<_>>>()?;
        let refused =
            || answers.iter().map(|answer| String::from_utf8_lossy(&answer.stderr)).collect::<String>();
        ensure!(answers.iter().any(|answer| answer.status.success()), "{}", refused());
        Ok(())
    }

    /// Waits until every direction streams and nothing is outstanding, three times in a row.
    pub fn wait_until_drained(&self, at_most: Duration) -> Result<Status> {
        wait_until_drained(at_most, || self.status(), || self.log_end())
    }

    /// Fails unless `verifier check` says that both sites are equal.
    pub fn verify(&self) -> Result<()> {
        self.seat.verify()
    }

    /// As [`Seat::repair`].
    pub fn repair(&self, words: &[&str]) -> Result<(i32, String)> {
        self.seat.repair(words)
    }

    /// What `verifier check` with these words reports, as JSON.
    pub fn report(&self, words: &[&str]) -> Result<serde_json::Value> {
        self.seat.report(words)
    }

    /// As [`Seat::undo`].
    pub fn undo(&self, said: &str) -> Result<(i32, String)> {
        self.seat.undo(said)
    }

    /// Starts a writer at each site: operations a second, on keys that only it writes.
    pub fn traffic(&self, seed: u64, rate: u64) -> [Traffic; 2] {
        [0, 1].map(|site| {
            Traffic::start(TrafficOptions {
                url: self.stores[site].url(),
                site: ["dc", "cloud"][site].to_owned(),
                seed: seed + site as u64,
                rate,
                filled: None,
            })
        })
    }

    /// Ends the writers and fails unless both sites hold the same, and every write that was acknowledged,
    /// once. `at_most`: how long all of it may take to arrive.
    pub fn prove(&self, writers: [Traffic; 2], at_most: Duration) -> Result<()> {
        let histories = writers.map(Traffic::stop);
        self.wait_until_drained(at_most)?;
        let verdict = judge(&histories, &self.urls())?;
        println!("{} keys, {} increments, {} elements", verdict.keys, verdict.increments, verdict.elements);
        ensure!(verdict.increments > 0 && verdict.elements > 0, "nothing was written");
        ensure!(verdict.wrong.is_empty(), "{}\n{}", verdict.wrong.join("\n"), self.log_end());
        self.verify()
    }

    /// What was refused and is kept aside, a line each.
    pub fn dead_letters(&self) -> String {
        self.seats().map(|seat| seat.read("data/log/dead-letters.jsonl")).collect()
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        self.seats().map(|seat| seat.read("syncd.log")).collect()
    }

    /// The end of what the daemon, or each of them, has logged, for messages.
    pub fn log_end(&self) -> String {
        self.seats().map(Seat::log_end).collect::<Vec<_>>().join("\n\n")
    }
}

/// The link's name and its `[log]` table: with `CAUSEWAY_LOG=kafka`, of a story that needs no other one, the log is in
/// Kafka, with a broker for each site.
fn log_of(setup: &Setup) -> Result<(String, String)> {
    static LINKS: AtomicU32 = AtomicU32::new(0);
    if !is_asked("CAUSEWAY_LOG", "kafka") || setup.tables.contains("[log]") {
        return Ok(("story".to_owned(), String::new()));
    }
    let brokers = causeway_testkit::kafka::shared().context("there is no Kafka")?;
    // The stories of one process share the brokers.
    let name = format!("story-{}", LINKS.fetch_add(1, Ordering::SeqCst));
    Ok((name, log_in_kafka(&brokers.dc, &brokers.cloud)))
}

fn is_asked(name: &str, for_what: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == for_what)
}

/// The `[log]` table for a broker at each site.
pub fn log_in_kafka(dc: &KafkaServer, cloud: &KafkaServer) -> String {
    let (dc, cloud) = (dc.brokers(), cloud.brokers());
    let of_sites = format!("brokers = {{ dc = \"{dc}\", cloud = \"{cloud}\" }}");
    format!("[log]\nkind = \"kafka\"\nreplication = 1\n{of_sites}")
}

/// One of Kafka's own tools, for a broker: `consumer.ConsoleConsumer`, `ConsoleProducer`.
pub fn kafkas_own(tool: &str, broker: &str) -> Result<Command> {
    let mut command = Command::new("java");
    command.arg("-cp").arg(causeway_testkit::kafka::kafka_home().context("no Kafka")?.join("*"));
    command.arg(format!("org.apache.kafka.tools.{tool}")).args(["--bootstrap-server", broker]);
    Ok(command)
}

/// A program of this workspace, beside the test's own: `cargo test --workspace` builds it.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir = test.parent().and_then(Path::parent).context("the test has no target folder")?;
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build --workspace` first", path.display());
    Ok(path)
}

/// The seed of this run: of `CAUSEWAY_SEED`, or a fresh one. Printed, so that a failure can be run again.
pub fn seed() -> u64 {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
    // Tests run side by side; a test's thread has its name.
    println!("CAUSEWAY_SEED={seed} {}", std::thread::current().name().unwrap_or_default());
    seed
}

/// How long a story takes that may take long, in seconds: of `CAUSEWAY_STORY_SECONDS`, or as many as these.
pub fn story_seconds(otherwise: u64) -> Duration {
    let asked = std::env::var("CAUSEWAY_STORY_SECONDS").ok().and_then(|text| text.parse().ok());
    let asked = asked.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    asked.unwrap_or(Duration::from_secs(otherwise))
}

/// A server that loses nothing that it acknowledged.
pub fn durable() -> Options {
    Options { appendonly: AppendOnly::Always, ..Options::default() }
}

/// Whether the servers of a story are there; says so if not, and fails where they are required.
pub fn servers() -> bool {
    let found = causeway_testkit::servers::redis_server().is_some();
    assert!(found || !causeway_testkit::servers::servers_required(), "redis-server is missing");
    if !found {
        println!("ignored: redis-server is missing");
    }
    found
}
