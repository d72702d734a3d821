//! The processes that are measured, and what the kernel says of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_testkit::api::{Status, get, status};
use causeway_testkit::process::cpu_seconds;
use causeway_testkit::resp::Connection;
use causeway_testkit::servers::free_port;

/// The most memory that process `pid` ever had, in MiB.
pub(crate) fn peak_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmHWM:")
}

/// The memory that process `pid` has now, in MiB.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: u32, name: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The machine in one line: CPUs, their model, memory, kernel, and how busy it is.
pub(crate) fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("?", |m| m.1);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cpus} CPUs ({model}), {} GiB, Linux {}, load {:.1} before the run",
        kib.div_ceil(1 << 20),
        kernel.trim(),
        load_average()
    )
}

/// Of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts `program`; what it says goes to `log`.
    pub(crate) fn start(program: &[String], log: &Path) -> Result<Process> {
        let (name, args) = program.split_first().context("no program")?;
        let log = File::options().append(true).create(true).open(log)?;
        let mut command = Command::new(name);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn().with_context(|| format!("start {name}"))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Redis server without persistence.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Process,
    /// `redis://host:port`
    pub(crate) url: String,
    /// Its host.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

impl Redis {
    /// Starts one on 127.0.0.1, with `args` after ours.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Result<Redis> {
        let server = Redis::spawn(dir, &[], "127.0.0.1", args)?;
        server.wait()?;
        Ok(server)
    }

    /// Starts one behind `wrapper` (`unshare --net`) on every address, to be reached at `host` once the
    /// caller has laid the line to it; then [`wait`](Redis::wait).
    pub(crate) fn spawn(dir: &Path, wrapper: &[&str], host: &str, args: &[&str]) -> Result<Redis> {
        let port = free_port()?;
        let (port_text, dir_text) = (port.to_string(), dir.display().to_string());
        let bind = if wrapper.is_empty() { "127.0.0.1" } else { "*" };
        let server = std::env::var("CAUSEWAY_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let mut program: Vec<&str> = wrapper.to_vec();
        program.push(&server);
        program.extend(["--port", &port_text, "--bind", bind, "--dir", &dir_text, "--save", ""]);
        program.extend(["--protected-mode", "no", "--appendonly", "no"]);
        let file = format!("{port}.rdb");
        program.extend(["--dbfilename", &file, "--repl-backlog-size", "64mb"]);
        program.extend(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        program.extend(args);
        let program: Vec<String> = program.into_iter().map(str::to_owned).collect();
        let process = Process::start(&program, &dir.join(format!("redis-{port}.log")))?;
        Ok(Redis { process, url: format!("redis://{host}:{port}"), host: host.to_owned(), port })
    }

    /// Waits until it answers.
    pub(crate) fn wait(&self) -> Result<()> {
        until(Duration::from_secs(20), Duration::from_millis(10), || {
            Ok(self.connect().and_then(|mut c| c.must(&["PING"])).is_ok())
        })
        .with_context(|| format!("redis-server at {} doesn't answer", self.url))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn connect(&self) -> std::io::Result<Connection> {
        Connection::open(&self.url)
    }

    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }

    /// Makes it a replica of `source`.
    pub(crate) fn follow(&self, source: &Redis) -> Result<()> {
        self.connect()?.must(&["REPLICAOF", &source.host, &source.port.to_string()])?;
        Ok(())
    }
}

/// How many keys database 0 holds.
pub(crate) fn dbsize(connection: &mut Connection) -> Result<u64> {
    let n = connection.must(&["DBSIZE"])?.int().context("DBSIZE is no number")?;
    Ok(u64::try_from(n)?)
}

/// A channel of a configuration, between the servers at two URLs; `more` are further lines.
pub(crate) fn channel(name: &str, direction: &str, dc: &str, cloud: &str, more: &str) -> String {
    format!(
        "[[channel]]\nname = \"{name}\"\nstore = \"redis\"\ndirection = \"{direction}\"\n{more}\n\
         dc = {{ url = \"{dc}\" }}\ncloud = {{ url = \"{cloud}\" }}\n\n"
    )
}

/// A running `syncd`.
#[derive(Debug)]
pub(crate) struct Syncd {
    process: Process,
    api: String,
    log: PathBuf,
}

impl Syncd {
    /// Starts `program` with `channels` and the new folder `dir` for itself. Its log is in the Kafka at `brokers`, if
    /// there are any; with a site, it shares the channels of that one with others of the same `link`. Doesn't wait.
    pub(crate) fn start(
        program: &Path,
        dir: &Path,
        channels: &str,
        brokers: Option<&str>,
        (link, site): (&str, Option<&str>),
    ) -> Result<Syncd> {
        std::fs::create_dir(dir)?;
        let api = format!("127.0.0.1:{}", free_port()?);
        let config = dir.join("syncd.toml");
        let kafka = brokers.map(|at| {
            format!("kind = \"kafka\"\nreplication = 1\nbrokers = {{ dc = \"{at}\", cloud = \"{at}\" }}\n")
        });
        let kafka = kafka.unwrap_or_default();
        let text = format!(
            "[link]\nname = \"{link}\"\nsites = [\"dc\", \"cloud\"]\n\n[log]\ndir = \"log\"\n{kafka}\n\
             [api]\nlisten = \"{api}\"\n\n{channels}"
        );
        std::fs::write(&config, text)?;
        let words = [program.display().to_string(), "run".into(), "--config".into()];
        let log = dir.join("syncd.log");
        let site = site.map(|site| ["--site".to_owned(), site.to_owned()]);
        let more: Vec<_> =
            [config.display().to_string()].into_iter().chain(site.into_iter().flatten()).collect();
        let process = Process::start(&[&words[..], &more].concat(), &log)?;
        Ok(Syncd { process, api, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }

    /// The sum of a metric over all its labels; 0 if it never was set.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = get(&self.api, "/metrics")?;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = text.lines().filter(of_name).filter_map(|line| line.rsplit_once(' '));
        Ok(values.map(|(_, value)| value.parse::<f64>()).sum::<Result<f64, _>>()?)
    }

    /// How many channels it serves; `None` if not all of them stream with nothing under way.
    pub(crate) fn caught_up(&self) -> Option<usize> {
        let mut status = status(&self.api).ok()?;
        status.channels.retain(|channel| !channel.directions.is_empty());
        (status.channels.is_empty() || status.is_caught_up()).then_some(status.channels.len())
    }

    /// Waits until it streams and nothing is under way.
    pub(crate) fn wait_until_caught_up(&mut self, at_most: Duration) -> Result<()> {
        let start = Instant::now();
        let mut last = "it never answered".to_owned();
        while start.elapsed() < at_most {
            // Before the API listens there is no answer.
            if let Ok(status) = status(&self.api) {
                if status.is_caught_up() {
                    return Ok(());
                }
                last = brief(&status);
                ensure!(!status.directions().any(|d| d.phase == "failed"), "syncd failed: {}", self.end());
            }
            ensure!(!self.process.ended(), "syncd ended: {}", self.end());
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("syncd isn't there after {} s: {last}; {}", at_most.as_secs(), self.end())
    }

    /// The last lines of its log.
    pub(crate) fn end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

fn brief(status: &Status) -> String {
    let of = |d: &causeway_testkit::api::Direction| {
        format!("{} snapshot {:?} lag {:?} gaps {}", d.phase, d.snapshot, d.lag.changes, d.gaps)
    };
    status.directions().map(of).collect::<Vec<_>>().join("; ")
}

/// Calls `there` each `pause` until it says so.
pub(crate) fn until(
    at_most: Duration,
    pause: Duration,
    mut there: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < at_most {
        if there()? {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
    bail!("not there after {} s", at_most.as_secs())
}
