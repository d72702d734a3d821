//! What the daemon tells about itself, and what it can be asked to do: the types of the HTTP interface
//! (DESIGN.md §10) and [`Control`], which the engine implements and the interface and its tests call.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use causeway_core::{Key, time};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

mod conflict;
mod dead_letter;
mod intake;
mod repair;
mod window;

pub use conflict::{ConflictEntry, ConflictPage, ConflictQuery, ConflictSide, Resolution};
pub use dead_letter::{Acknowledged, DeadLetter, DeadLetterPage, DeadLetterQuery};
pub use intake::{HandOver, HandedOver, IntakeStatus, LineError, NotHandedOver};
pub use repair::{KeyAt, RepairQuery, Repaired};
pub use window::{By, Whose, WhoseQuery, WrittenLine};

/// The answer of `GET /v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The link's name.
    pub link: String,
    /// The two sites, in the order of `[link] sites`.
    pub sites: Vec<String>,
    /// When this daemon began, RFC 3339: `applied`, `conflicts` and what a stream left out count from then.
    #[serde(default)]
    pub since: String,
    /// In the order of the configuration.
    pub channels: Vec<ChannelStatus>,
    /// The daemons that share the channels of this one's site; `None` where one serves both sites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_group: Option<GroupStatus>,
}

/// A group of daemons, as its Kafka tells of it, at most a few seconds ago.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The consumer group's.
    pub name: String,
    /// By which name this daemon is in it.
    pub member: String,
    /// Why this daemon is not in it as it should be.
    #[serde(default)]
    pub error: Option<String>,
    /// All of them, in the order of their names.
    pub members: Vec<MemberStatus>,
}

/// One daemon of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// As the group knows it.
    pub name: String,
    /// The address that it dials from.
    pub host: String,
    /// It is the one that answers.
    pub here: bool,
    /// What is assigned to it.
    pub channels: Vec<String>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Its name.
    pub name: String,
    /// Its kind of store.
    pub store: String,
    /// Of all its directions together.
    pub state: ChannelState,
    /// One or two, the first site's log first; none where another daemon of the group serves the channel.
    pub directions: Vec<DirectionStatus>,
    /// The [member](GroupStatus::members) of the group that serves it; `None` where there is no group, or nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// Whether a channel does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelState {
    /// It does.
    Running,
    /// An operator stopped it.
    Paused,
    /// A direction cannot go on; its `error` says why.
    Failed,
}

impl ChannelState {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelState::Running => "running",
            ChannelState::Paused => "paused",
            ChannelState::Failed => "failed",
        }
    }
}

/// What one site's log is doing to the other site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectionStatus {
    /// The origin.
    pub from: String,
    /// The target.
    pub to: String,
    /// Where it stands.
    pub phase: Phase,
    /// How far the snapshot is; `done` stays at the total afterwards.
    pub snapshot: Progress,
    /// The seq in the origin's log at which the rows of its last snapshot begin, so that one snapshot can be told from
    /// the next; `None` if there was none.
    #[serde(default)]
    pub snapshot_first: Option<u64>,
    /// What is captured, or known to be outstanding, and not yet applied.
    pub lag: Lag,
    /// Changes applied, or dropped by rule, [since](Status::since) the daemon began; snapshot rows included.
    pub applied: u64,
    /// Concurrent writes decided since the daemon began.
    pub conflicts: u64,
    /// Changes that the target refused and that are kept aside.
    pub dead_letters: u64,
    /// Open gaps.
    pub gaps: u64,
    /// Keys that cannot be carried (module types).
    #[serde(default)]
    pub left_out: u64,
    /// Over the last few seconds.
    #[serde(default)]
    pub captured_per_second: f64,
    /// Over the last few seconds.
    #[serde(default)]
    pub applied_per_second: f64,
    /// What it waits for an operator's answer to: a FLUSHALL, with its time and place. `resume --held`
    /// answers.
    #[serde(default)]
    pub held: Option<String>,
    /// What stands in the way just now, at which site, and what to do about it; without secrets and values.
    #[serde(default)]
    pub error: Option<String>,
    /// What goes on less well than it could, at which site, and what to do about it: SCAN mode.
    #[serde(default)]
    pub warning: Option<String>,
    /// What applications hand over at the origin; `None`: nothing is, or not to this daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intake: Option<IntakeStatus>,
}

/// Where a direction stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It has not reached both stores yet, or has lost one; `error` says which.
    #[default]
    Starting,
    /// It copies what existed.
    Snapshot,
    /// It carries what changes.
    Streaming,
    /// An operator or a full log stopped it.
    Paused,
    /// Changes were lost to it; they have to be compared and repaired.
    Gap,
    /// It cannot go on.
    Failed,
}

impl Phase {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Snapshot => "snapshot",
            Phase::Streaming => "streaming",
            Phase::Paused => "paused",
            Phase::Gap => "gap",
            Phase::Failed => "failed",
        }
    }
}

/// Of a snapshot, in keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Applied.
    pub done: u64,
    /// Of how many; `None` if the store doesn't say.
    pub total: Option<u64>,
}

/// How far the target is behind; `None` is "unknown", never 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Changes in the log that are not applied.
    pub changes: Option<u64>,
    /// Age of the oldest of them, whatever it waits for.
    pub seconds: Option<f64>,
}

/// A key as JSON: text, or `{"base64": …}` where it is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyText {
    /// It is UTF-8.
    Text(String),
    /// It is not.
    Bytes {
        /// RFC 4648, with padding.
        base64: String,
    },
}

impl From<&[u8]> for KeyText {
    fn from(key: &[u8]) -> Self {
        match std::str::from_utf8(key) {
            Ok(text) => KeyText::Text(text.to_owned()),
            Err(_) => KeyText::Bytes { base64: base64(key) },
        }
    }
}

impl std::fmt::Display for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeyText::Text(text) => write!(f, "{}", text.escape_debug()),
            KeyText::Bytes { base64 } => write!(f, "base64:{base64}"),
        }
    }
}

impl KeyText {
    /// The key itself; `None` if the text is no base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let base64 = match self {
            KeyText::Text(text) => return Some(text.clone().into_bytes()),
            KeyText::Bytes { base64 } => base64.trim_end_matches('='),
        };
        let mut bytes = Vec::with_capacity(base64.len() / 4 * 3 + 2);
        for digits in base64.as_bytes().chunks(4) {
            let mut bits = 0;
            for digit in digits {
                bits = bits << 6 | ALPHABET.iter().position(|known| known == digit)?;
            }
            bits <<= 6 * (4 - digits.len());
            bytes.extend((0..digits.len() - 1).map(|i| (bits >> (16 - 8 * i)) as u8));
        }
        Some(bytes)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().chain(&[0, 0]).take(3).fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        for i in 0..4 {
            // One byte fills two digits, two fill three.
            let digit = ALPHABET[bits >> (18 - 6 * i) & 63];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// `time` as RFC 3339 in UTC with milliseconds; times before 1970 count as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    time::rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

/// The time that an RFC 3339 text with its offset names; `None` if it is none, or before 1970.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(time::parse_rfc3339(text)?))
}

/// What becomes of a held whole-store change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HeldAnswer {
    /// The target does it, too.
    Apply,
    /// The target doesn't, and the origin gets back what it lost.
    Drop,
}

/// Why the engine did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// No channel of that name.
    #[error("no channel `{channel}`, there is {}", known.join(", "))]
    NoSuchChannel {
        /// The name asked for.
        channel: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// No dead letter has that id.
    #[error("no dead letter {id}: it was never there, or was acknowledged")]
    NoSuchDeadLetter {
        /// The id asked for.
        id: u64,
    },
    /// Not in this state; says which, and what to do.
    #[error("{0}")]
    Refused(String),
    /// It was tried and failed; says at what.
    #[error("{0}")]
    Failed(String),
}

/// What the interface and the command line ask of the engine. `channel: None` is all of them.
#[async_trait]
pub trait Control: Send + Sync {
    /// As of now; cheap, never waits for a store.
    fn status(&self) -> Status;

    /// Stops the channel in an orderly way; a second call does nothing.
    ///
    /// # Errors
    ///
    /// Any of [`ControlError`].
    async fn pause(&self, channel: Option<&str>) -> Result<(), ControlError>;

    /// Lets a paused channel go on, and answers what a held change waits for.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] if something is held and `held` is `None`, or the other way round.
    async fn resume(&self, channel: Option<&str>, held: Option<HeldAnswer>) -> Result<(), ControlError>;

    /// Starts the channel's snapshot again.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] if it has none (`snapshot = "none"`) or one is running.
    async fn snapshot(&self, channel: &str) -> Result<(), ControlError>;

    /// What the targets refused and nobody acknowledged, newest first.
    fn dead_letters(&self, query: &DeadLetterQuery) -> DeadLetterPage;

    /// Takes dead letters off the list, all or that one, once their origins were asked what the keys hold now;
    /// none is done again itself. Says how many.
    ///
    /// # Errors
    ///
    /// Any of [`ControlError`]; they stay on the list then.
    async fn acknowledge(&self, channel: Option<&str>, id: Option<u64>) -> Result<u64, ControlError>;

    /// Takes what an application hands over, once the log holds it durably.
    ///
    /// # Errors
    ///
    /// Any of [`NotHandedOver`].
    async fn hand_over(&self, channel: &str, request: HandOver) -> Result<HandedOver, NotHandedOver>;

    /// Carries to the other site what `keys` hold at `from` now, as states: what the other site has written there that
    /// `from` does not know yet stays. Says how many, once they are in the log.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] if nothing is carried from that site.
    async fn repair(&self, channel: &str, from: &str, keys: Vec<Key>) -> Result<u64, ControlError>;

    /// What the logs of `channel` name that was written in `window`, milliseconds since 1970: all of it, and perhaps some
    /// that was written seconds before or after.
    ///
    /// # Errors
    ///
    /// Any of [`ControlError`]. What is found out later is the last line.
    async fn written(
        &self,
        channel: &str,
        window: Range<u64>,
    ) -> Result<mpsc::Receiver<Vec<WrittenLine>>, ControlError>;

    /// Of each of `keys` the site that is right. By [`By::Newest`] the logs are read through.
    ///
    /// # Errors
    ///
    /// Any of [`ControlError`]; [`ControlError::Refused`] if nothing says which tenants there are.
    async fn whose(&self, channel: &str, by: By, keys: Vec<Key>) -> Result<Whose, ControlError>;

    /// Concurrent writes that were decided, newest first. Reads from disk.
    ///
    /// # Errors
    ///
    /// [`ControlError::Failed`] if the conflict log cannot be read.
    fn conflicts(&self, query: &ConflictQuery) -> Result<ConflictPage, ControlError>;

    /// The one with that id, as long as it is kept. Reads from disk.
    ///
    /// # Errors
    ///
    /// As [`conflicts`](Control::conflicts).
    fn conflict(&self, id: u64) -> Result<Option<ConflictEntry>, ControlError>;

    /// Bytes of what is being handed over that may be held at once.
    fn intake_bytes(&self) -> usize;

    /// Whether every channel has reached its stores.
    fn ready(&self) -> bool;

    /// In Prometheus's text format 0.0.4.
    fn metrics(&self) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_no_text_is_told_as_base64() {
        for (key, json) in [
            (&b"push:1"[..], r#""push:1""#),
            (b"\xff", r#"{"base64":"/w=="}"#),
            (b"\xff\xfe", r#"{"base64":"//4="}"#),
            (b"\xff\xfe\xfd", r#"{"base64":"//79"}"#),
            (b"\xff\0\0\x01", r#"{"base64":"/wAAAQ=="}"#),
        ] {
            assert_eq!(serde_json::to_string(&KeyText::from(key)).unwrap(), json);
            assert_eq!(serde_json::from_str::<KeyText>(json).unwrap(), KeyText::from(key));
            assert_eq!(KeyText::from(key).bytes().as_deref(), Some(key));
        }
    }

    #[test]
    fn status_has_the_names_that_were_promised() {
        let direction = DirectionStatus {
            from: "dc".into(),
            to: "cloud".into(),
            phase: Phase::Snapshot,
            snapshot: Progress { done: 3, total: None },
            snapshot_first: Some(7),
            lag: Lag::default(),
            applied: 3,
            conflicts: 0,
            dead_letters: 0,
            gaps: 0,
            left_out: 0,
            captured_per_second: 0.0,
            applied_per_second: 0.0,
            held: None,
            error: None,
            warning: None,
            intake: None,
        };
        let json = serde_json::to_value(direction).unwrap();
        for (pointer, expected) in [
            ("/phase", serde_json::json!("snapshot")),
            ("/snapshot/done", 3.into()),
            ("/snapshot/total", serde_json::Value::Null),
            ("/snapshot_first", 7.into()),
            ("/lag/changes", serde_json::Value::Null),
            ("/dead_letters", 0.into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
        }
    }
}
