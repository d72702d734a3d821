//! Entries of the conflict log, and how they are asked for.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{KeyText, rfc3339};

/// One pair of concurrent writes, as an applier decided it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictEntry {
    /// Ascends; stays the entry's own as long as it is kept.
    pub id: u64,
    /// When it was decided, RFC 3339.
    pub time: String,
    /// The channel.
    pub channel: String,
    /// The site whose change arrived.
    pub from: String,
    /// The site where it was decided.
    pub to: String,
    /// The key.
    pub key: KeyText,
    /// The database it is in, for stores that have numbered ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<u32>,
    /// The hash field or member, `#value` or `#ttl`, if only that was concurrent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<KeyText>,
    /// What became of the two.
    pub resolution: Resolution,
    /// The site whose write stands; `None` if both took effect.
    pub winner: Option<String>,
    /// One of the two was read after an outage: its hlc is a guess.
    pub uncertain: bool,
    /// The two writes, the link's first site first.
    pub sides: [ConflictSide; 2],
}

/// One of two concurrent writes. Of several of a site, the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictSide {
    /// Who wrote.
    pub site: String,
    /// Its place in that site's log.
    pub seq: u64,
    /// Its version, in decimal: as a number it would not survive a reader that knows only doubles.
    pub hlc: String,
    /// What it was: `read`, `command`, `delete`, `state`.
    pub op: String,
    /// When it was made, RFC 3339.
    pub time: String,
    /// XXH3, 128 bits, in hex, of what the log holds as its value; `None` if that is absent: a delete.
    pub digest: Option<String>,
    /// Size of that value.
    pub bytes: u64,
    /// That value in the store's own form, a command or a DUMP payload: only with `[conflicts] values`,
    /// and only up to 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<KeyText>,
}

/// What became of two concurrent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// The write of the site where it was decided stands, the peer's was dropped.
    Kept,
    /// The peer's stands, that of the site where it was decided was overwritten.
    Replaced,
    /// Both took effect: the site's own was done again on top of the peer's.
    Merged,
}

impl Resolution {
    /// All of them.
    pub const ALL: [Resolution; 3] = [Resolution::Kept, Resolution::Replaced, Resolution::Merged];

    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Resolution::Kept => "kept",
            Resolution::Replaced => "replaced",
            Resolution::Merged => "merged",
        }
    }
}

/// Which entries are wanted, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictQuery {
    /// Only of this channel.
    pub channel: Option<String>,
    /// Only of this key: as it is, or as [`KeyText`] is shown (`base64:…`).
    pub key: Option<String>,
    /// Only decided at this time or later.
    pub since: Option<SystemTime>,
    /// Only with smaller ids: the `next` of the page before.
    pub before: Option<u64>,
    /// Entries at the most, 1 or more; a page may also end earlier.
    pub limit: usize,
}

impl ConflictQuery {
    /// Of one answer, at the most.
    pub const LIMIT_MAX: usize = 1_000;

    /// Whether `entry` is wanted.
    pub(crate) fn matches(&self, entry: &ConflictEntry) -> bool {
        let key = |key: &String| match &entry.key {
            KeyText::Text(text) if text == key => true,
            shown => shown.to_string() == *key,
        };
        self.channel.as_ref().is_none_or(|channel| *channel == entry.channel)
            && self.key.as_ref().is_none_or(key)
            // Both are UTC and equally long.
            && self.since.is_none_or(|since| entry.time >= rfc3339(since))
            && self.before.is_none_or(|before| entry.id < before)
    }
}

/// Some entries of the conflict log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictPage {
    /// Newest first.
    pub conflicts: Vec<ConflictEntry>,
    /// There are more: ask again with this as `before`.
    pub next: Option<u64>,
    /// Conflicts that were decided and are not in the log, since the daemon started: it could not keep up,
    /// or could not write.
    pub left_out: u64,
    /// Lines of the log that could not be read and were skipped on the way to these.
    pub damaged: u64,
}
