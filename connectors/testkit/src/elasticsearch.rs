//! Real Elasticsearch nodes for tests, each a cluster of its own, on free loopback ports and in directories of their own.
//! They end when they are dropped, and when the test's process ends, however it does.
//!
//! A start takes some 15 s and a node some 450 MB: tests that need none of their own share two, [`shared`].

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::kafka::{PID_FILE, watch};
use crate::servers::{free_port, servers_required};

/// How long a start may take on a machine under load.
const START_MAX: Duration = Duration::from_secs(240);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// The folder of the distribution: `CAUSEWAY_ELASTICSEARCH_HOME`, else where `scripts/servers install elasticsearch` has
/// it, which fetches it the first time. Where that cannot be done, since Java, Maven or a network is missing, says so and
/// returns `None`: the test is ignored.
///
/// # Panics
///
/// Where it cannot be done and [`servers_required`]: a run of nothing must not look green.
pub fn elasticsearch_home() -> Option<PathBuf> {
    static HOME: OnceLock<Result<PathBuf, String>> = OnceLock::new();
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
    let mut install = Command::new(scripts().join("servers"));
    let done = install.args(["install", "elasticsearch"]).stdin(Stdio::null()).output();
    let done = done.context("run scripts/servers install elasticsearch")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(String::from_utf8(done.stdout)?.trim_end().into())
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts")
}

/// A running node, child of this process. Its port and its directory stay the same over
/// [`restart`](ElasticsearchServer::restart). Dropped, it is killed, and its directory removed; the same happens when
/// this process ends without dropping it.
#[derive(Debug)]
pub struct ElasticsearchServer {
    command: Vec<String>,
    home: PathBuf,
    child: Option<Child>,
    watcher: Child,
    port: u16,
    dir: TempDir,
}

impl ElasticsearchServer {
    /// Starts one and waits until it answers. `settings`: of `elasticsearch.yml`, such as `("indices.…", "…")`; they win
    /// over those of `scripts/elasticsearch/elasticsearch.yml`.
    ///
    /// # Errors
    ///
    /// No Elasticsearch here, or it didn't come up; the end of its log is in the error.
    pub fn start(settings: &[(&str, &str)]) -> Result<ElasticsearchServer> {
        let home = elasticsearch_home().context("Elasticsearch is missing")?;
        let dir = tempfile::Builder::new().prefix("causeway-elasticsearch-").tempdir()?;
        // The node runs as another user than root, who has to get in.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open)?;
        let (port, transport_port) = (free_port()?, free_port()?);
        let mut command = vec![scripts().join("elasticsearch/node").display().to_string(), "run".to_owned()];
        command.extend([dir.path().display().to_string(), port.to_string(), transport_port.to_string()]);
        command.extend(settings.iter().map(|(key, value)| format!("{key}={value}")));
        // Before the node: there is no moment at which nobody would end it.
        let watcher = watch(dir.path())?;
        let mut server = ElasticsearchServer { command, home, child: None, watcher, port, dir };
        server.restart()?;
        Ok(server)
    }

    /// Starts two at the same time.
    ///
    /// # Errors
    ///
    /// As [`start`](ElasticsearchServer::start).
    pub fn start_both(settings: &[(&str, &str)]) -> Result<[ElasticsearchServer; 2]> {
        let [dc, cloud] = std::thread::scope(|scope| {
            let start = || scope.spawn(|| ElasticsearchServer::start(settings));
            [start(), start()].map(|start| start.join().map_err(|_| anyhow!("the start panicked"))?)
        });
        Ok([dc?, cloud?])
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a request and returns the answer's status and body. `body`: JSON or NDJSON, empty for none.
    ///
    /// # Errors
    ///
    /// No answer.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        request(self.port, method, path, body)
    }

    /// The same, for what has to succeed: the answer's JSON.
    ///
    /// # Errors
    ///
    /// No answer, or one that is no success; says which.
    pub fn must(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let (status, answer) = self.request(method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        serde_json::from_str(&answer).with_context(|| format!("{method} {path}: {answer}"))
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.signal_group(&child, "KILL");
            // Until it is waited for, its process id is nobody else's; the watcher must not end who gets it then.
            let _ = std::fs::remove_file(self.dir.path().join(PID_FILE));
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port and the same files, and waits until it answers. Kills it first if it runs.
    ///
    /// # Errors
    ///
    /// It didn't come up; the end of its log is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.begin_restart()?;
        self.wait_until_it_answers()
    }

    /// The same, but doesn't wait.
    ///
    /// # Errors
    ///
    /// The program is not there.
    pub fn begin_restart(&mut self) -> Result<()> {
        self.kill();
        let (program, args) = self.command.split_first().context("no program")?;
        let log = File::options().append(true).create(true).open(self.log())?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("CAUSEWAY_ELASTICSEARCH_HOME", &self.home);
        // Of its own, as the launcher has the server as its child.
        command.process_group(0);
        self.child = Some(command.spawn().with_context(|| format!("start {program}"))?);
        Ok(())
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

    fn signal_group(&self, child: &Child, name: &str) {
        let mut kill = Command::new("kill");
        let _ = kill.args(["-s", name, "--", &format!("-{}", child.id())]).stderr(Stdio::null()).status();
    }

    /// Waits until it answers, after [`begin_restart`](ElasticsearchServer::begin_restart).
    ///
    /// # Errors
    ///
    /// It ended, or did not answer in time.
    pub fn wait_until_it_answers(&mut self) -> Result<()> {
        let until = Instant::now() + START_MAX;
        let path = "/_cluster/health?wait_for_status=yellow&timeout=1s";
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.kill();
                bail!("Elasticsearch on port {} ended with {status}: {}", self.port, self.log_end());
            }
            // With security on it knows nobody yet, and says so.
            if self.request("GET", path, "").is_ok_and(|(status, _)| matches!(status, 200 | 401)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("Elasticsearch on port {} doesn't answer: {}", self.port, self.log_end())
    }
}

impl Drop for ElasticsearchServer {
    fn drop(&mut self) {
        self.kill();
        // It sees the end of its input and ends.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Sends a request to `port` of this machine, as [`ElasticsearchServer::request`].
///
/// # Errors
///
/// No answer.
pub fn request(port: u16, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|at| at == b"\r\n\r\n").context("no HTTP answer")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let body = &answer[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { joined(body)? } else { body.to_vec() };
    Ok((status, String::from_utf8(body)?))
}

/// The chunks of a body: a length in hexadecimal, a line's end, so many bytes, a line's end; the last one is empty.
fn joined(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|at| at == b"\r\n").context("a chunk without a length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end])?.trim(), 16)?;
        let chunk = chunks.get(end + 2..end + 2 + length).context("a chunk is cut short")?;
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        chunks = chunks.get(end + 4 + length..).context("a chunk is cut short")?;
    }
}

/// Two nodes for all tests of this process, `dc`'s and `cloud`'s, started with the first call, at the same time, and ended
/// with the process. A test uses indices of its own names. `None` where there is no Elasticsearch: see
/// [`elasticsearch_home`].
///
/// # Panics
///
/// As [`elasticsearch_home`] does, and in every call if one of the two didn't come up.
pub fn shared() -> Option<&'static [ElasticsearchServer; 2]> {
    static SHARED: OnceLock<Result<[ElasticsearchServer; 2], String>> = OnceLock::new();
    elasticsearch_home()?;
    match SHARED.get_or_init(|| ElasticsearchServer::start_both(&[]).map_err(|error| format!("{error:#}"))) {
        Ok(nodes) => Some(nodes),
        Err(error) => panic!("the nodes that the tests share: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_node_comes_back_with_what_it_acknowledged() -> Result<()> {
        if elasticsearch_home().is_none() {
            return Ok(());
        }
        let mut node = ElasticsearchServer::start(&[])?;
        node.must("PUT", "/kept", "{\"settings\":{\"number_of_replicas\":0}}")?;
        node.must("PUT", "/kept/_doc/1", "{\"a\":1.0}")?;
        node.kill();
        ensure!(node.request("GET", "/kept/_doc/1", "").is_err(), "a killed node answers");
        node.restart()?;
        let (status, body) = node.request("GET", "/kept/_source/1", "")?;
        ensure!((status, body.as_str()) == (200, "{\"a\":1.0}"), "{status} {body}");
        Ok(())
    }
}
