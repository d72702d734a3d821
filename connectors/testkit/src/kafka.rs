//! Real Kafka brokers for tests, on free loopback ports and in directories of their own. They end when they are
//! dropped, and when the test's process ends, however it does.
//!
//! A start takes an idle machine 5 s, and a broker some 200 MB: tests that need none of their own share two,
//! [`shared`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::launched::{Launched, installed, java, or_ignored, scripts};
use crate::servers::free_port;

/// How long a start may take. It computes for 7 s, which a machine under load has to find, and after a kill it
/// waits until the killed one's session is over.
const START_MAX: Duration = Duration::from_secs(180);
/// How long an end in order may take; it takes half a second.
const STOP_MAX: Duration = Duration::from_secs(30);
/// The folder of Kafka's jars: `CAUSEWAY_KAFKA_HOME`, else where `scripts/servers install kafka` has them, which
/// fetches them the first time. Where that cannot be done, since Java, Maven or a network is missing, says so and
/// returns `None`: the test is ignored.
///
/// # Panics
///
/// Where it cannot be done and [`servers_required`](crate::servers::servers_required): a run of nothing must not look green. Where
/// `CAUSEWAY_KAFKA_HOME` is no folder: nor must a run of another Kafka.
pub fn kafka_home() -> Option<PathBuf> {
    static HOME: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(named) = std::env::var_os("CAUSEWAY_KAFKA_HOME").map(PathBuf::from) {
        assert!(named.is_dir(), "CAUSEWAY_KAFKA_HOME is {}, which is no folder", named.display());
    }
    or_ignored(&HOME, || {
        java()?;
        std::env::var_os("CAUSEWAY_KAFKA_HOME").map_or_else(|| installed("kafka"), |named| Ok(named.into()))
    })
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
    launched: Launched,
    port: u16,
    controller_port: u16,
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
        let launched = Launched::new("causeway-kafka-")?;
        let port = free_port()?;
        let mut command = vec![scripts().join("kafka/broker").display().to_string(), "run".to_owned()];
        command.extend([launched.dir().display().to_string(), port.to_string(), controller_port.to_string()]);
        command.extend(options.properties.iter().map(|(key, value)| format!("{key}={value}")));
        let file_kib_max = options.file_kib_max;
        let mut server =
            KafkaServer { command, file_kib_max, cluster, home, launched, port, controller_port };
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
        self.launched.dir()
    }

    /// From its next start on its files may be of any size.
    pub fn free_disk(&mut self) {
        self.file_kib_max = None;
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.launched.has_ended()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.launched.pid()
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub fn kill(&mut self) {
        self.launched.kill();
    }

    /// Ends it in order (SIGTERM), as for an upgrade. Killed if that takes over 30 s. Does nothing if it doesn't
    /// run.
    pub fn stop_in_order(&mut self) {
        self.launched.signal("TERM");
        let until = Instant::now() + STOP_MAX;
        while self.pid().is_some() && !self.has_ended() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
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
        let mut words = self.command.clone();
        if let Some(kib) = self.file_kib_max {
            let limited = format!("ulimit -f {kib} && exec \"$@\"");
            words.splice(0..0, ["bash".to_owned(), "-c".to_owned(), limited, "broker".to_owned()]);
        }
        let (program, args) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(args).env("CAUSEWAY_KAFKA_HOME", &self.home);
        command.envs(self.cluster.iter().map(|id| ("CAUSEWAY_KAFKA_CLUSTER", id)));
        if std::env::var_os("JDK_JAVA_OPTIONS").is_none() {
            // Few tests run long enough to get back what the second compiler costs: 3 s of 8.
            command.env("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1");
        }
        self.launched.start(command)?;
        let port = self.port;
        self.launched
            .wait_until(&format!("Kafka on port {port}"), START_MAX, || ask_for_versions(port).is_ok())
    }

    /// Freezes it (SIGSTOP): its connections stay open and nothing answers. Frozen for over 3 s, it
    /// may lose its session: its partitions then have no leader for a moment when it goes on.
    pub fn suspend(&self) {
        self.launched.signal("STOP");
    }

    /// Lets it go on after [`suspend`](KafkaServer::suspend).
    pub fn resume(&self) {
        self.launched.signal("CONT");
    }

    /// The last lines of its log, without stack traces.
    pub fn log_end(&self) -> String {
        self.launched.log_end()
    }
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
