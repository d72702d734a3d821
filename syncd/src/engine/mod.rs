//! The engine: for each channel, capture at each origin and apply at each target, with the log between.
//!
//! The data path reads in one direction: `capture.rs` takes a store's events into the log, `apply.rs` takes
//! the log into the other store. `shared.rs` is what the two of one site know of each other, `careful.rs`
//! the decision about keys that both sites may have written, `conflicts.rs` the log of what was decided,
//! `restart.rs` what survives a crash.

mod apply;
mod capture;
mod careful;
mod conflicts;
mod daemon;
mod dead_letters;
mod decide;
mod deliver;
mod hand_over;
mod intake;
mod key_set;
mod known;
mod lookback;
mod members;
mod metrics;
mod order;
mod pauses;
mod peer_log;
mod produced;
mod races;
mod reader;
mod recent;
mod redo;
mod redos;
mod restart;
mod rule;
mod run;
mod shared;
mod spill;
mod sweep;
pub(crate) mod switch;
mod window;

use std::time::Duration;

use causeway_core::{Key, Seq, Space};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::log::{self, Offset, PartitionId};

#[cfg(any(test, feature = "simulate"))]
pub(crate) use capture::Clock;
pub use daemon::{Daemon, StartError};

/// A key as it stands in the engine's own log, such as `db1:tag:7`.
fn shown(key: &Key) -> String {
    let name = key.name.escape_ascii();
    match &key.space {
        Space::Whole => name.to_string(),
        Space::Db(db) => format!("db{db}:{name}"),
        Space::Table(space) | Space::Index(space) | Space::Bucket(space) => {
            format!("{}:{name}", space.escape_ascii())
        }
    }
}

/// What ends a task of the engine, or makes it try again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A store failed; its kind says whether trying again helps.
    #[error(transparent)]
    Store(#[from] causeway_core::Error),
    /// The change log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The log lacks a change: it was tampered with, or its topic made anew.
    #[error("{partition}: record {at} has seq {found}, expected {expected}; compare and repair this channel")]
    Hole {
        /// Where.
        partition: PartitionId,
        /// The seq that should stand here.
        expected: Seq,
        /// What stands here.
        found: Seq,
        /// Its place.
        at: Offset,
    },
    /// The log is not the one that the marker in the target speaks of.
    #[error(
        "{partition}: the marker in the target says that {applied} changes are applied, and they are not this log's: it \
         was made anew, or has lost its end; begin anew: `syncd cleanup` removes the markers; then remove the whole \
         log, of both sites, since each speaks of the other's numbers"
    )]
    OtherLog {
        /// Whose changes.
        partition: PartitionId,
        /// By the marker.
        applied: Seq,
    },
    /// What is to be applied into a store is of its own stream.
    #[error(
        "{partition}: these changes were made in the very server that they are for: both sites of the channel are the \
         same server; give one of them another URL, and begin anew: `syncd cleanup`, then an empty log"
    )]
    SameServer {
        /// Whose changes.
        partition: PartitionId,
    },
    /// Own changes that did not fit into memory cannot be read.
    #[error("cannot read own changes from their file in the log's folder: {0}; they stand in the log, too")]
    Spilled(std::io::Error),
    /// The site's own capture waits for the applier to read the marker again and let it in.
    #[error("capture of the target opens its stream anew")]
    CaptureWaits,
    /// The daemon stops.
    #[error("the daemon stops")]
    Stopped,
}

impl EngineError {
    /// Something that may go better the next time.
    fn unavailable(action: &str, endpoint: &str, reason: String) -> EngineError {
        EngineError::Store(store_unavailable(action, endpoint, reason))
    }
}

/// As a store's error: it is tried again.
fn store_unavailable(action: &str, endpoint: &str, reason: String) -> causeway_core::Error {
    causeway_core::Error::Unavailable {
        action: action.to_owned(),
        endpoint: endpoint.to_owned(),
        source: reason.into(),
    }
}

/// The first try again comes after about this, each later one after twice the time before. A site's applier waits
/// twice as long as its capture, which has to see a store that came back before it is applied into.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// And at the most this: as long as a person who mends something may wait to see it go on.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// When to try again what fails: more and more seldom, as long as it comes no further.
#[derive(Debug)]
struct Backoff {
    /// The first wait.
    min: Duration,
    /// Failures since it came further.
    failures: u32,
    /// What sets the waits apart from those of others, that failed together with it.
    spread: u64,
    /// When what is tried began to work.
    began: Option<Instant>,
}

impl Backoff {
    /// For what is named `who`.
    fn new(who: &str, min: Duration) -> Backoff {
        Backoff { min, failures: 0, spread: xxh3_64_with_seed(who.as_bytes(), 0), began: None }
    }

    /// It works, as far as can be told yet.
    fn began(&mut self) {
        self.began = Some(Instant::now());
    }

    /// It failed, having come further than ever before or not; says how often it did since it came further, and
    /// how long to wait. `setup`: a person has to mend something.
    fn failed(&mut self, further: bool, setup: bool) -> (u32, Duration) {
        // What works for longer than the longest wait is not tried too often.
        let lasted = self.began.take().is_some_and(|began| began.elapsed() >= BACKOFF_MAX);
        self.failures = if further || lasted { 1 } else { self.failures.saturating_add(1) };
        let longer = 1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX);
        let most = if setup { BACKOFF_MAX } else { self.min.saturating_mul(longer).min(BACKOFF_MAX) };
        // Up to half of it is taken away; always the same, so that a simulation can be run again.
        self.spread = xxh3_64_with_seed(&self.spread.to_le_bytes(), u64::from(self.failures));
        (self.failures, most.mul_f64(1.0 - (self.spread % 1000) as f64 / 2000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_no_further_is_tried_ever_more_seldom() {
        let mut backoff = Backoff::new("tags.dc.0", BACKOFF_MIN);
        let waits: Vec<Duration> = (0..40).map(|_| backoff.failed(false, false).1).collect();
        for (n, wait) in waits.iter().enumerate() {
            let most = BACKOFF_MAX.min(BACKOFF_MIN * (1 << n.min(10)));
            assert!((most / 2..=most).contains(wait), "{n}: {wait:?}");
        }
        assert_ne!(waits.last(), waits.get(38));
        assert_ne!(waits, (0..40).map(|_| backoff.failed(false, false).1).collect::<Vec<_>>());
        assert_eq!(backoff.failed(true, false).0, 1);
        assert!(backoff.failed(false, true).1 >= BACKOFF_MAX / 2);
    }
}
