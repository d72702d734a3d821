//! Real servers for tests, on free loopback ports and in directories of their own, ended when dropped.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::resp::Connection;

/// How long a start may take: a server under load that reads a large append-only file needs some.
const START_MAX: Duration = Duration::from_secs(60);

/// Whether a missing server has to fail a test: `CAUSEWAY_REQUIRE_SERVERS=1`.
pub fn servers_required() -> bool {
    std::env::var_os("CAUSEWAY_REQUIRE_SERVERS").is_some_and(|v| v == "1")
}

/// The program of a Redis server: the file that `CAUSEWAY_REDIS_SERVER` names, else `redis-server` in `PATH`.
/// Where there is none, says so and returns `None`: the test is ignored.
///
/// # Panics
///
/// Where there is none and [`servers_required`]: a run of nothing must not look green. Where the file named
/// is not there: nor must a run of another server.
pub fn redis_server() -> Option<PathBuf> {
    let named = std::env::var_os("CAUSEWAY_REDIS_SERVER").map(PathBuf::from);
    if let Some(named) = &named {
        assert!(named.is_file(), "CAUSEWAY_REDIS_SERVER is {}, which is no file", named.display());
    }
    let found = named.or_else(|| in_path("redis-server"));
    if found.is_none() {
        assert!(!servers_required(), "redis-server is missing: scripts/setup installs it");
        eprintln!("ignored: redis-server is missing (scripts/setup installs it)");
    }
    found
}

/// The program of the second of two servers, to try pairs of versions: `CAUSEWAY_REDIS_SERVER_OTHER`. `None`
/// if it is not set: the same as the first. For [`Options::program`].
pub fn other_redis_server() -> Option<Vec<String>> {
    std::env::var("CAUSEWAY_REDIS_SERVER_OTHER").ok().map(|program| vec![program])
}

/// The library that gives a program another clock when it is preloaded; Debian's package `libfaketime`.
/// Where there is none, says so and returns `None`: the test is ignored.
///
/// # Panics
///
/// Where there is none and [`servers_required`].
pub fn faketime() -> Option<PathBuf> {
    let architectures = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let folders = architectures.map(|entry| entry.path()).chain(["/usr/lib".into(), "/usr/lib64".into()]);
    let found = folders.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file());
    if found.is_none() {
        assert!(!servers_required(), "libfaketime is missing: scripts/setup installs it");
        eprintln!("ignored: libfaketime is missing (scripts/setup installs it)");
    }
    found
}

pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// What of each write a server keeps on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AppendOnly {
    /// Nothing: it comes back empty.
    #[default]
    No,
    /// Fsynced each second: up to a second of acknowledged writes is lost if the machine dies.
    EverySec,
    /// Fsynced before it is acknowledged: nothing acknowledged is lost, whatever is killed.
    Always,
}

/// Certificate, key and authority of a TLS server, as PEM files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority's certificate: `ca_file`.
    pub ca: PathBuf,
    /// The server's certificate, for `127.0.0.1` and `localhost`.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Tls {
    /// Makes an authority and a certificate signed by it in `dir`, valid for a day, with the `openssl`
    /// program; `None` where there is no such program.
    ///
    /// # Errors
    ///
    /// `openssl` failed.
    pub fn generate(dir: &Path) -> Result<Option<Tls>> {
        if in_path("openssl").is_none() {
            return Ok(None);
        }
        let file = |name: &str| dir.join(name);
        let text = |name: &str| file(name).display().to_string();
        std::fs::write(file("server.ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
        let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1";
        let calls = [
            format!("{new} -x509 -subj /CN=test-ca -keyout {} -out {}", text("ca.key"), text("ca.pem")),
            format!("{new} -subj /CN=localhost -keyout {} -out {}", text("server.key"), text("server.csr")),
            format!(
                "x509 -req -days 1 -in {} -CA {} -CAkey {} -CAcreateserial -extfile {} -out {}",
                text("server.csr"),
                text("ca.pem"),
                text("ca.key"),
                text("server.ext"),
                text("server.pem")
            ),
        ];
        for call in calls {
            let done = Command::new("openssl").args(call.split(' ')).output()?;
            ensure!(done.status.success(), "openssl: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(Some(Tls { ca: file("ca.pem"), cert: file("server.pem"), key: file("server.key") }))
    }
}

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What it keeps on disk.
    pub appendonly: AppendOnly,
    /// More options, after ours, so that theirs win: `["--maxmemory", "4mb"]`.
    pub args: Vec<String>,
    /// Listens on a TLS port as well: [`RedisServer::tls_url`].
    pub tls: Option<Tls>,
    /// Another program than [`redis_server`] finds, with leading arguments of its own.
    pub program: Option<Vec<String>>,
}

/// A running Redis server, child of this process. Its port and its directory stay the same over
/// [`restart`](RedisServer::restart). Dropped, it is killed, and its directory removed.
#[derive(Debug)]
pub struct RedisServer {
    command: Vec<String>,
    child: Option<Child>,
    port: u16,
    tls_port: Option<u16>,
    dir: TempDir,
}

impl RedisServer {
    /// Starts one and waits until it answers PING.
    ///
    /// It saves nothing by itself, has a backlog of 64 MiB, and allows `DEBUG`.
    ///
    /// # Errors
    ///
    /// No server program, or it didn't come up; the end of its log is in the error.
    pub fn start(options: Options) -> Result<RedisServer> {
        let program = match options.program {
            Some(program) => program,
            None => vec![redis_server().context("redis-server is missing")?.display().to_string()],
        };
        let dir = tempfile::Builder::new().prefix("causeway-redis-").tempdir()?;
        let (port, tls_port) = (free_port()?, options.tls.as_ref().map(|_| free_port()).transpose()?);
        let mut command = program;
        let mut add = |words: &[&str]| command.extend(words.iter().map(|w| (*w).to_owned()));
        let path = |name: &str| dir.path().join(name).display().to_string();
        add(&["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir", &path(""), "--save", ""]);
        add(&["--logfile", &path("server.log"), "--unixsocket", &path("s"), "--daemonize", "no"]);
        add(&["--repl-backlog-size", "64mb", "--repl-diskless-sync", "yes"]);
        add(&["--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"]);
        add(match options.appendonly {
            AppendOnly::No => &["--appendonly", "no"],
            AppendOnly::EverySec => &["--appendonly", "yes", "--appendfsync", "everysec"],
            AppendOnly::Always => &["--appendonly", "yes", "--appendfsync", "always"],
        });
        if let (Some(tls), Some(port)) = (&options.tls, tls_port) {
            let file = |path: &Path| path.display().to_string();
            add(&["--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
            add(&["--tls-ca-cert-file", &file(&tls.ca), "--tls-cert-file", &file(&tls.cert)]);
            add(&["--tls-key-file", &file(&tls.key)]);
        }
        if options.args.iter().any(|arg| arg == "--cluster-enabled") {
            // Its own choice is a port that a client's connection may have taken.
            add(&["--cluster-port", &free_port()?.to_string()]);
        }
        command.extend(options.args);
        let mut server = RedisServer { command, child: None, port, tls_port, dir };
        server.restart()?;
        Ok(server)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `rediss://127.0.0.1:PORT` of its TLS port, if it was started with one.
    pub fn tls_url(&self) -> Option<String> {
        self.tls_port.map(|port| format!("rediss://127.0.0.1:{port}"))
    }

    /// The path of its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A new connection to it.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn connect(&self) -> std::io::Result<Connection> {
        Connection::open(&self.url())
    }

    /// Ends it as a crash does. Does nothing if it doesn't run.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it in order: what it has to write to disk is written. Killed if that takes over 10 s.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => std::thread::sleep(Duration::from_millis(10)),
                _ => break,
            }
        }
        self.kill9();
    }

    /// Starts it again on the same port and the same files, and waits until it answers. Kills it first if
    /// it runs.
    ///
    /// # Errors
    ///
    /// It didn't come up; the end of its log is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let (program, args) = self.command.split_first().context("no server program")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::options().append(true).create(true).open(self.dir.path().join("stderr.log"))?);
        self.child = Some(command.spawn().with_context(|| format!("start {program}"))?);
        self.wait_until_it_answers()
    }

    /// Freezes it: its connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`pause`](RedisServer::pause).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("redis-server on port {} ended with {status}: {}", self.port, self.log_end());
            }
            if self.connect().and_then(|mut c| c.must(&["PING"])).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("redis-server on port {} doesn't answer: {}", self.port, self.log_end())
    }

    fn log_end(&self) -> String {
        let mut text = String::new();
        for name in ["server.log", "stderr.log"] {
            if let Ok(mut file) = File::open(self.dir.path().join(name)) {
                let _ = file.read_to_string(&mut text);
            }
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A port that nothing listens on. Taken from below the range that the kernel gives to outgoing
/// connections, so that none of those has it when the server comes back after a kill.
///
/// # Errors
///
/// None of a few hundred tried was free.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 14_000;
    const COUNT: u32 = 18_000;
    for _ in 0..500 {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // Processes that start at the same moment begin at different places.
        let port = FIRST + (std::process::id().wrapping_mul(7919).wrapping_add(n)) % COUNT;
        let port = u16::try_from(port)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_server_comes_back_with_what_it_acknowledged() {
        if redis_server().is_none() {
            return;
        }
        let options = Options { appendonly: AppendOnly::Always, ..Options::default() };
        let mut server = RedisServer::start(options).unwrap();
        server.connect().unwrap().must(&["SET", "k", "v"]).unwrap();
        server.kill9();
        assert!(server.connect().is_err());
        server.restart().unwrap();
        let reply = server.connect().unwrap().must(&["GET", "k"]).unwrap();
        assert_eq!(reply.text().as_deref(), Some("v"));
        server.stop();
        assert_eq!(server.pid(), None);
    }

    #[test]
    fn a_server_that_cannot_start_says_why() {
        if redis_server().is_none() {
            return;
        }
        let args = vec!["--no-such-option".to_owned(), "1".to_owned()];
        let error = RedisServer::start(Options { args, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("ended with"), "{error:#}");
    }
}
