//! What the targets refused, and how it is asked for.

use serde::{Deserialize, Serialize};

use super::KeyAt;

/// A change that the target refused for what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Ascends; stays its own.
    #[serde(default)]
    pub id: u64,
    /// Its channel.
    pub channel: String,
    /// Its origin.
    pub from: String,
    /// The site that refused it.
    pub to: String,
    /// Its place in the origin's log; of a message of the intake topic its offset there.
    pub seq: u64,
    /// What it was: `put`, `command`, `state`; `produced`: a message of the intake topic, of which no line was taken.
    pub op: String,
    /// The key.
    #[serde(flatten)]
    pub at: KeyAt,
    /// What the store said, without values.
    pub reason: String,
    /// When, RFC 3339.
    pub time: String,
}

impl DeadLetter {
    /// The `op` of a message of the intake topic.
    pub const PRODUCED: &str = "produced";
}

/// Which dead letters are wanted, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterQuery {
    /// Only of this channel.
    pub channel: Option<String>,
    /// Only with smaller ids: the `next` of the page before.
    pub before: Option<u64>,
    /// Entries at the most, 1 or more.
    pub limit: usize,
}

impl DeadLetterQuery {
    /// Of one answer, at the most.
    pub const LIMIT_MAX: usize = 1_000;
}

/// Some dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterPage {
    /// Newest first.
    pub dead_letters: Vec<DeadLetter>,
    /// There are more: ask again with this as `before`.
    pub next: Option<u64>,
}

/// How many dead letters were acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// So many; they are listed and counted no more.
    pub acknowledged: u64,
}
