//! Real Kafka brokers for tests, on free loopback ports and in directories of their own. They end when they are
//! dropped, and when the test's process ends, however it does.
//!
//! A start takes an idle machine 5 s, and a broker some 200 MB: tests that need none of their own share two,
//! [`shared`].

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::servers::{free_port, servers_required};

/// How long a start may take. It computes for 7 s, which a machine under load has to find, and after a kill it
/// waits until the killed one's session is over.
const START_MAX: Duration = Duration::from_secs(180);
/// How long an end in order may take; it takes half a second.
const STOP_MAX: Duration = Duration::from_secs(30);
/// The file in a server's directory that holds its process id: `scripts/kafka/broker` writes that of a broker.
pub(crate) const PID_FILE: &str = "server.pid";

/// The folder of Kafka's jars: `CAUSEWAY_KAFKA_HOME`, else where `scripts/servers install kafka` has them, which
/// fetches them the first time. Where that cannot be done, since Java, Maven or a network is missing, says so and
/// returns `None`: the test is ignored.
///
/// # Panics
///
/// Where it cannot be done and [`servers_required`]: a run of nothing must not look green. Where
/// `CAUSEWAY_KAFKA_HOME` is no folder: nor must a run of another Kafka.
pub fn kafka_home() -> Option<PathBuf> {
    static HOME: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(named) = std::env::var_os("CAUSEWAY_KAFKA_HOME").map(PathBuf::from) {
        assert!(named.is_dir(), "CAUSEWAY_KAFKA_HOME is {}, which is no folder", named.display());
    }
    match HOME.get_or_init(|| find_home().map_err(|error| format!("{error:#}"))) {
        Ok(home) => Some(home.clone()),
        Err(error) => {
            assert!(!servers_required(), "{error}");
            eprintln!("ignored: {error}");
            None
        }
    }
}

fn find_home() -> Result<PathBuf> {
    let java = Command::new("java").arg("-version").output();
    ensure!(java.is_ok_and(|java| java.status.success()), "java is missing: scripts/setup kafka installs it");
    if let Some(named) = std::env::var_os("CAUSEWAY_KAFKA_HOME") {
        return Ok(named.into());
    }
    let done =
        Command::new(scripts().join("servers")).args(["install", "kafka"]).stdin(Stdio::null()).output();
    let done = done.context("run scripts/servers install kafka")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(String::from_utf8(done.stdout)?.trim_end().into())
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts")
}

/// How a broker is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Properties, which win over those of `scripts/kafka/server.properties`. `@PORT@`, `@CONTROLLER_PORT@` and
    /// `@DIR@` in them are replaced by the broker's own.
    pub properties: Vec<(String, String)>,
    /// No file of it can become larger: as of a disk that is full.
    pub file_kib_max: Option<u64>,
}

/// A running Kafka broker with a controller of its own, child of this process: a cluster of one, which
/// [others](KafkaServer::join) may join. Its ports and its
/// directory stay the same over [`restart`](KafkaServer::restart). Dropped, it is killed, and its directory
/// removed; the same happens when this process ends without dropping it.
#[derive(Debug)]
pub struct KafkaServer {
    command: Vec<String>,
    file_kib_max: Option<u64>,
    /// Of the one that it joined.
    cluster: Option<String>,
    home: PathBuf,
    child: Option<Child>,
    watcher: Child,
    port: u16,
    controller_port: u16,
    dir: TempDir,
}

impl KafkaServer {
    /// Starts one and waits until it answers. It makes no topic by itself.
    ///
    /// # Errors
    ///
    /// No Kafka here, or it didn't come up; the end of its log is in the error.
    pub fn start(options: Options) -> Result<KafkaServer> {
        KafkaServer::start_in(None, free_port()?, options)
    }

    /// Starts two clusters at the same time.
    ///
    /// # Errors
    ///
    /// As [`start`](KafkaServer::start).
    pub fn start_both(options: [Options; 2]) -> Result<[KafkaServer; 2]> {
        let [dc, cloud] = std::thread::scope(|scope| {
            let starts = options.map(|options| scope.spawn(|| KafkaServer::start(options)));
            starts.map(|start| start.join().map_err(|_| anyhow!("the start panicked"))?)
        });
        Ok([dc?, cloud?])
    }

    /// Starts another broker, without a controller, in this one's cluster. `node`: 2 or more.
    ///
    /// # Errors
    ///
    /// As [`start`](KafkaServer::start).
    pub fn join(&self, node: u32, mut options: Options) -> Result<KafkaServer> {
        let meta = std::fs::read_to_string(self.dir().join("data/meta.properties"))?;
        let cluster = meta.lines().find_map(|line| line.strip_prefix("cluster.id="));
        let cluster = cluster.context("meta.properties names no cluster")?.to_owned();
        let own = [
            ("process.roles", "broker".to_owned()),
            ("node.id", node.to_string()),
            ("listeners", "PLAINTEXT://127.0.0.1:@PORT@".to_owned()),
        ];
        options.properties.extend(own.map(|(name, value)| (name.to_owned(), value)));
        KafkaServer::start_in(Some(cluster), self.controller_port, options)
    }

    fn start_in(cluster: Option<String>, controller_port: u16, options: Options) -> Result<KafkaServer> {
        let home = kafka_home().context("Kafka is missing")?;
        let dir = tempfile::Builder::new().prefix("causeway-kafka-").tempdir()?;
        let port = free_port()?;
        let mut command = vec![scripts().join("kafka/broker").display().to_string(), "run".to_owned()];
        command.extend([dir.path().display().to_string(), port.to_string(), controller_port.to_string()]);
        command.extend(options.properties.iter().map(|(key, value)| format!("{key}={value}")));
        // Before the broker: there is no moment at which nobody would end it.
        let watcher = watch(dir.path())?;
        let file_kib_max = options.file_kib_max;
        let mut server = KafkaServer {
            command,
            file_kib_max,
            cluster,
            home,
            child: None,
            watcher,
            port,
            controller_port,
            dir,
        };
        server.restart()?;
        Ok(server)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`, as `bootstrap.servers` wants it.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// From its next start on its files may be of any size.
    pub fn free_disk(&mut self) {
        self.file_kib_max = None;
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub fn kill(&mut self) {
        self.signal("KILL");
        if let Some(mut child) = self.child.take() {
            // Until it is waited for, its process id is nobody else's.
            self.forget_pid();
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it in order (SIGTERM), as for an upgrade. Killed if that takes over 30 s. Does nothing if it doesn't
    /// run.
    pub fn stop_in_order(&mut self) {
        self.signal("TERM");
        let until = Instant::now() + STOP_MAX;
        while Instant::now() < until {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => std::thread::sleep(Duration::from_millis(10)),
                Some(Ok(Some(_))) => {
                    self.forget_pid();
                    self.child = None;
                    return;
                }
                _ => break,
            }
        }
        self.kill();
    }

    /// Starts it again on the same ports and the same files, and waits until it answers. Kills it first if it
    /// runs. After a kill it is up about 2 s later than after an end in order: the cluster waits for the killed
    /// one's session, 3 s.
    ///
    /// # Errors
    ///
    /// It didn't come up; the end of its log is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut words = self.command.clone();
        if let Some(kib) = self.file_kib_max {
            let limited = format!("ulimit -f {kib} && exec \"$@\"");
            words.splice(0..0, ["bash".to_owned(), "-c".to_owned(), limited, "broker".to_owned()]);
        }
        let (program, args) = words.split_first().context("no program")?;
        let log = File::options().append(true).create(true).open(self.log())?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("CAUSEWAY_KAFKA_HOME", &self.home);
        command.envs(self.cluster.iter().map(|id| ("CAUSEWAY_KAFKA_CLUSTER", id)));
        if std::env::var_os("JDK_JAVA_OPTIONS").is_none() {
            // Few tests run long enough to get back what the second compiler costs: 3 s of 8.
            command.env("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1");
        }
        // Of its own, so that what formats its storage is reached by a signal as well, and so that an interrupt
        // of the test leaves the end to the watcher.
        command.process_group(0);
        self.child = Some(command.spawn().with_context(|| format!("start {program}"))?);
        self.wait_until_it_answers()
    }

    /// Freezes it (SIGSTOP): its connections stay open and nothing answers. Frozen for over 3 s, it
    /// may lose its session: its partitions then have no leader for a moment when it goes on.
    pub fn suspend(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`suspend`](KafkaServer::suspend).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// The last lines of its log, without stack traces.
    pub fn log_end(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let _ = file.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("\tat ")).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// To all of its process group.
    fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            let mut kill = Command::new("kill");
            kill.args(["-s", name, "--", &format!("-{pid}")]).stderr(Stdio::null());
            let _ = kill.status();
        }
    }

    /// The watcher must not end a process that has got the id since.
    fn forget_pid(&self) {
        let _ = std::fs::remove_file(self.dir.path().join(PID_FILE));
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.forget_pid();
                self.child = None;
                bail!("Kafka on port {} ended with {status}: {}", self.port, self.log_end());
            }
            if ask_for_versions(self.port).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("Kafka on port {} doesn't answer: {}", self.port, self.log_end())
    }
}

impl Drop for KafkaServer {
    fn drop(&mut self) {
        self.kill();
        // It sees the end of its input and ends.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// A process that kills the process group that [`PID_FILE`] in `dir` names and removes `dir` when its input ends:
/// that is when this process does, even killed. Statics are never dropped, and a killed test drops nothing.
pub(crate) fn watch(dir: &Path) -> Result<Child> {
    let script = format!(
        r#"read -r _
        [ ! -s "$0/{PID_FILE}" ] || kill -s KILL -- "-$(cat "$0/{PID_FILE}")"
        rm -rf "$0" || {{ sleep 1; rm -rf "$0"; }}"#
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // An interrupt goes to the test's process group, and must not end this one.
    command.process_group(0).spawn().context("start sh")
}

/// Asks for the versions of the protocol that it speaks: the one request that needs no version to be agreed on.
fn ask_for_versions(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    // Length 10; ApiVersions is 18; version 0; correlation id; no client id.
    socket.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff])?;
    let mut answer = [0; 10];
    socket.read_exact(&mut answer)?;
    // After its length the correlation id, then the error.
    ensure!(answer[4..] == [0, 0, 0, 7, 0, 0], "not an answer of Kafka's: {answer:?}");
    Ok(())
}

/// The brokers of two sites, each a cluster of its own.
#[derive(Debug)]
pub struct SharedBrokers {
    /// That of dc.
    pub dc: KafkaServer,
    /// That of cloud.
    pub cloud: KafkaServer,
}

/// Two brokers for all tests of this process, started with the first call, at the same time, and ended with the
/// process. A test uses topics and groups of its own names. `None` where there is no Kafka: see [`kafka_home`].
///
/// # Panics
///
/// As [`kafka_home`] does, and in every call if one of the two didn't come up.
pub fn shared() -> Option<&'static SharedBrokers> {
    static SHARED: OnceLock<Result<SharedBrokers, String>> = OnceLock::new();
    kafka_home()?;
    let start = || -> Result<SharedBrokers> {
        let [dc, cloud] = KafkaServer::start_both(Default::default())?;
        Ok(SharedBrokers { dc, cloud })
    };
    match SHARED.get_or_init(|| start().map_err(|error| format!("{error:#}"))) {
        Ok(brokers) => Some(brokers),
        Err(error) => panic!("the brokers that the tests share: {error}"),
    }
}
