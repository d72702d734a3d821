//! The daemon's status, as tests and the demo read it: `GET /v1/status` over plain HTTP.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What `GET /v1/status` answers; keys that are of no use here are left out.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The link's channels.
    pub channels: Vec<Channel>,
}

/// One channel.
#[derive(Debug, Clone, Deserialize)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// `running`, `paused` or `failed`.
    pub state: String,
    /// One or two.
    pub directions: Vec<Direction>,
}

/// One direction of a channel.
#[derive(Debug, Clone, Deserialize)]
pub struct Direction {
    /// The site it comes from.
    pub from: String,
    /// The site it goes to.
    pub to: String,
    /// `starting`, `snapshot`, `streaming`, `paused`, `gap` or `failed`.
    pub phase: String,
    /// The copy; null where there is none.
    pub snapshot: Option<Snapshot>,
    /// How far behind it is.
    pub lag: Lag,
    /// Changes applied.
    #[serde(default)]
    pub applied: u64,
    /// Changes put aside.
    #[serde(default)]
    pub dead_letters: u64,
    /// Open ones.
    #[serde(default)]
    pub gaps: u64,
}

/// How far a copy is.
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// Keys.
    pub done: Option<u64>,
    /// Keys; null where the store doesn't say.
    pub total: Option<u64>,
}

/// How far behind a direction is; null where it isn't known.
#[derive(Debug, Clone, Deserialize)]
pub struct Lag {
    /// In changes.
    pub changes: Option<u64>,
    /// In seconds.
    pub seconds: Option<f64>,
}

impl Status {
    /// All directions of all channels.
    pub fn directions(&self) -> impl Iterator<Item = &Direction> {
        self.channels.iter().flat_map(|c| &c.directions)
    }

    /// Whether every direction's changes are captured: from here on a write at either site is carried.
    pub fn is_capturing(&self) -> bool {
        let captures = |d: &Direction| d.phase == "snapshot" || d.phase == "streaming";
        self.directions().count() > 0 && self.directions().all(captures)
    }

    /// Whether every direction has copied and is streaming.
    pub fn is_streaming(&self) -> bool {
        self.directions().count() > 0 && self.directions().all(|d| d.phase == "streaming")
    }

    /// Whether it is streaming and nothing is under way.
    pub fn is_caught_up(&self) -> bool {
        self.is_streaming() && self.directions().all(|d| d.lag.changes == Some(0))
    }
}

/// Asks the daemon at `address` (`127.0.0.1:7400`). Waits at most 5 s.
///
/// # Errors
///
/// It doesn't answer, or with something else than a status.
pub fn status(address: &str) -> Result<Status> {
    let body = get(address, "/v1/status")?;
    serde_json::from_str(&body).with_context(|| format!("{address} answers no status"))
}

/// The body of `GET path`.
///
/// # Errors
///
/// The server doesn't answer, or not with 200.
pub fn get(address: &str, path: &str) -> Result<String> {
    let to = address.to_socket_addrs()?.next().context("no address")?;
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // With HTTP/1.0 the body is what comes until the end: no chunks to put together.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(16 << 20).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let first = head.lines().next().unwrap_or_default();
    ensure!(first.split(' ').nth(1) == Some("200"), "GET {path}: {first}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(phase: &str, changes: &str) -> Status {
        let text = format!(
            r#"{{"link":"l","sites":["a","b"],"channels":[{{"name":"c","store":"redis","state":"running",
            "directions":[{{"from":"a","to":"b","phase":"{phase}","snapshot":{{"done":1,"total":null}},
            "lag":{{"changes":{changes},"seconds":null}},"applied":3,"conflicts":0,"dead_letters":0,"gaps":0}}]}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_unknown_lag_is_not_caught_up() {
        assert!(with("streaming", "0").is_caught_up());
        assert!(!with("streaming", "null").is_caught_up());
        assert!(!with("snapshot", "0").is_caught_up());
        assert!(with("snapshot", "0").is_capturing() && !with("starting", "0").is_capturing());
        assert!(!Status { channels: Vec::new() }.is_streaming());
    }
}
