//! Real Elasticsearch nodes for tests, each a cluster of its own, on free loopback ports and in directories of their own.
//! They end when they are dropped, and when the test's process ends, however it does.
//!
//! A start takes some 15 s and a node some 450 MB: tests that need none of their own share two, [`shared`],
//! and those that need two for themselves hand them on, [`LentNodes`].

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::launched::{Launched, installed, java, or_ignored, scripts};
use crate::servers::free_port;

/// How long a start may take on a machine under load.
const START_MAX: Duration = Duration::from_secs(240);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Of a request that is worked on after who sent it was killed nothing comes after this time.
const QUIET: Duration = Duration::from_millis(1_000);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// The folder of the distribution: `CAUSEWAY_ELASTICSEARCH_HOME`, else where `scripts/servers install elasticsearch` has
/// it, which fetches it the first time. Where that cannot be done, since Java, Maven or a network is missing, says so and
/// returns `None`: the test is ignored.
///
/// # Panics
///
/// Where it cannot be done and [`servers_required`](crate::servers::servers_required): a run of nothing must not look green.
pub fn elasticsearch_home() -> Option<PathBuf> {
    static HOME: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    or_ignored(&HOME, || java().and_then(|()| installed("elasticsearch")))
}

/// A running node, child of this process. Its port and its directory stay the same over
/// [`restart`](ElasticsearchServer::restart). Dropped, it is killed, and its directory removed; the same happens when
/// this process ends without dropping it.
#[derive(Debug)]
pub struct ElasticsearchServer {
    command: Vec<String>,
    home: PathBuf,
    launched: Launched,
    port: u16,
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
        let launched = Launched::new("causeway-elasticsearch-")?;
        // The node runs as another user than root, who has to get in.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(launched.dir(), open)?;
        let (port, transport_port) = (free_port()?, free_port()?);
        let mut command = vec![scripts().join("elasticsearch/node").display().to_string(), "run".to_owned()];
        command.extend([launched.dir().display().to_string(), port.to_string(), transport_port.to_string()]);
        command.extend(settings.iter().map(|(key, value)| format!("{key}={value}")));
        let mut server = ElasticsearchServer { command, home, launched, port };
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
        self.launched.dir()
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

    /// What `index` holds, at most 10,000 documents: by their ids, as text.
    ///
    /// # Errors
    ///
    /// As [`must`](ElasticsearchServer::must).
    pub fn documents(&self, index: &str) -> Result<BTreeMap<String, String>> {
        self.must("POST", &format!("/{index}/_refresh"), "")?;
        let found = self.must("POST", &format!("/{index}/_search"), r#"{"size":10000}"#)?;
        let hits = found.pointer("/hits/hits").and_then(|hits| hits.as_array()).context("no hits")?;
        let document = |hit: &serde_json::Value| {
            Some((hit.get("_id")?.as_str()?.to_owned(), hit.get("_source")?.to_string()))
        };
        Ok(hits.iter().filter_map(document).collect())
    }

    /// Writes the documents `old-0` and on into `index`, which each hold their number.
    ///
    /// # Errors
    ///
    /// As [`must`](ElasticsearchServer::must).
    pub fn fill(&self, index: &str, count: u64) -> Result<()> {
        let line = |n| format!("{{\"index\":{{\"_id\":\"old-{n}\"}}}}\n{{\"v\":\"old {n}\"}}\n");
        let body: String = (0..count).map(line).collect();
        self.must("POST", &format!("/{index}/_bulk?refresh=true"), &body).map(drop)
    }

    /// Deletes all indices, until none comes any more: a request of who was killed may still be worked on, and makes one.
    fn delete_all(&self) -> Result<()> {
        let mut none_since = Instant::now();
        while none_since.elapsed() < QUIET {
            let all = self.must("GET", "/_cat/indices?format=json&h=index&expand_wildcards=all", "")?;
            for name in all.as_array().into_iter().flatten().filter_map(|one| one["index"].as_str()) {
                self.must("DELETE", &format!("/{name}"), "")?;
                none_since = Instant::now();
            }
            std::thread::sleep(QUIET / 5);
        }
        Ok(())
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub fn kill(&mut self) {
        self.launched.kill();
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
        let (program, args) = self.command.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(args).env("CAUSEWAY_ELASTICSEARCH_HOME", &self.home);
        self.launched.start(command)
    }

    /// The last lines of its log, without stack traces.
    pub fn log_end(&self) -> String {
        self.launched.log_end()
    }

    /// Waits until it answers, after [`begin_restart`](ElasticsearchServer::begin_restart).
    ///
    /// # Errors
    ///
    /// It ended, or did not answer in time.
    pub fn wait_until_it_answers(&mut self) -> Result<()> {
        let port = self.port;
        let path = "/_cluster/health?wait_for_status=yellow&timeout=1s";
        // With security on it knows nobody yet, and says so.
        let answers = || request(port, "GET", path, "").is_ok_and(|(status, _)| matches!(status, 200 | 401));
        self.launched.wait_until(&format!("Elasticsearch on port {port}"), START_MAX, answers)
    }
}

/// Two nodes, `dc`'s first, that one test has to itself. When it is dropped all indices there are deleted, and another test of
/// this process gets them, which spares it the start.
#[derive(Debug)]
pub struct LentNodes(Vec<ElasticsearchServer>);

static FREE_NODES: Mutex<Vec<Vec<ElasticsearchServer>>> = Mutex::new(Vec::new());

impl LentNodes {
    /// Takes two that are free, or starts them.
    ///
    /// # Errors
    ///
    /// As [`ElasticsearchServer::start`].
    pub fn take() -> Result<LentNodes> {
        let free = FREE_NODES.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(nodes) => Ok(LentNodes(nodes)),
            None => Ok(LentNodes(ElasticsearchServer::start_both(&[])?.into())),
        }
    }
}

impl Deref for LentNodes {
    type Target = [ElasticsearchServer];

    fn deref(&self) -> &[ElasticsearchServer] {
        &self.0
    }
}

impl DerefMut for LentNodes {
    fn deref_mut(&mut self) -> &mut [ElasticsearchServer] {
        &mut self.0
    }
}

impl Drop for LentNodes {
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut self.0);
        // Those that do not answer any more are ended.
        if nodes.iter().all(|node| node.delete_all().is_ok()) {
            FREE_NODES.lock().unwrap_or_else(PoisonError::into_inner).push(nodes);
        }
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
