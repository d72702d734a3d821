//! Two real Redis servers on loopback, and the program run against them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, Value};
use serde_json::Value as Json;
use tempfile::TempDir;

/// A server that ends with this value.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one with `arguments`; `None` if there is no redis-server on this machine, which is a failure
    /// where `CAUSEWAY_REQUIRE_SERVERS` is set.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Option<Server> {
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let child = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "local"])
                .args(["--port", &port.to_string(), "--dir"])
                .arg(folder)
                .args(arguments)
                .stdout(Stdio::null())
                .spawn();
            let Ok(child) = child else {
                let required = std::env::var_os("CAUSEWAY_REQUIRE_SERVERS").is_some();
                assert!(!required, "redis-server is not installed, and CAUSEWAY_REQUIRE_SERVERS is set");
                eprintln!("ignored: redis-server is not installed");
                return None;
            };
            let mut server = Server { child, port };
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(10) {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(server);
                }
                if server.child.try_wait().unwrap().is_some() {
                    break; // somebody else took the port
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("redis-server does not come up");
    }

    pub(crate) fn connect(&self) -> Connection {
        redis::Client::open(("127.0.0.1", self.port)).unwrap().get_connection().unwrap()
    }
}

/// Two sites and a configuration.
pub(crate) struct Pair {
    pub(crate) folder: TempDir,
    pub(crate) servers: [Server; 2],
    pub(crate) sites: [Connection; 2],
}

/// What `verifier` answered.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Json {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", self.stdout, self.stderr))
    }

    /// `(key, kind)` of each difference, sorted.
    pub(crate) fn differences(&self) -> Vec<(String, String)> {
        let json = self.json();
        let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let list = json["differences"].as_array().unwrap();
        let mut all: Vec<_> = list.iter().map(|d| (text(&d["key"]), text(&d["kind"]))).collect();
        all.sort();
        all
    }
}

/// Runs the program.
pub(crate) fn verifier(arguments: &[&str]) -> Answer {
    let output = Command::new(env!("CARGO_BIN_EXE_verifier")).args(arguments).output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Pair {
    pub(crate) fn start() -> Option<Pair> {
        Pair::start_with(&[], &[])
    }

    pub(crate) fn start_with(first: &[&str], second: &[&str]) -> Option<Pair> {
        let folder = tempfile::tempdir().unwrap();
        let servers = [Server::start(folder.path(), first)?, Server::start(folder.path(), second)?];
        let sites = [servers[0].connect(), servers[1].connect()];
        Some(Pair { folder, servers, sites })
    }

    /// Writes the configuration: `top` before the channel, `channel` in it.
    pub(crate) fn config(&self, top: &str, channel: &str) -> PathBuf {
        let [a, b] = [&self.servers[0], &self.servers[1]].map(|s| format!("redis://127.0.0.1:{}", s.port));
        self.config_at(top, channel, &format!("{{ url = \"{a}\" }}"), &format!("{{ url = \"{b}\" }}"))
    }

    pub(crate) fn config_at(&self, top: &str, channel: &str, dc: &str, cloud: &str) -> PathBuf {
        let path = self.folder.path().join("syncd.toml");
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n{top}\n[[channel]]\nname = \"tags\"\n\
             store = \"redis\"\ndirection = \"both\"\nsnapshot = \"dc\"\n{channel}\ndc = {dc}\ncloud = {cloud}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `verifier check --json` with more `arguments`.
    pub(crate) fn check(&self, arguments: &[&str]) -> Answer {
        let path = self.config("", "");
        self.check_at(&path, arguments)
    }

    pub(crate) fn check_at(&self, config: &Path, arguments: &[&str]) -> Answer {
        let fixed = ["check", "--json", "--config", config.to_str().unwrap()];
        verifier(&[&fixed, arguments].concat())
    }

    /// Runs a command line (words parted by spaces) at both sites.
    pub(crate) fn both(&mut self, line: &str) {
        run(&mut self.sites[0], line);
        run(&mut self.sites[1], line);
    }
}

/// Runs a command line at one site. `{20M}` stands for 20 MB of text, `{N..M}` for the numbers between, each
/// a word; `{N..M:x}` for each number followed by the word `x`.
pub(crate) fn run(site: &mut Connection, line: &str) -> Value {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    for word in words {
        if word == "{20M}" {
            command.arg(vec![b'v'; 20_000_000]);
        } else if let Some((from, rest)) = word.strip_prefix('{').and_then(|w| w.split_once("..")) {
            let rest = rest.strip_suffix('}').unwrap();
            let (to, after) = rest.split_once(':').map_or((rest, None), |(to, after)| (to, Some(after)));
            for number in from.parse::<i64>().unwrap()..to.parse().unwrap() {
                command.arg(number);
                after.iter().for_each(|after| {
                    command.arg(after);
                });
            }
        } else {
            command.arg(word);
        }
    }
    let reply = command.query::<Value>(site);
    reply.unwrap_or_else(|e| panic!("{}: {e}", &line[..line.len().min(80)]))
}
