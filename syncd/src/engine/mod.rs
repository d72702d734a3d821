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
mod known;
mod metrics;
mod own_log;
mod pauses;
mod races;
mod reader;
mod recent;
mod redo;
mod redos;
mod restart;
mod rule;
mod shared;
mod sweep;
pub(crate) mod switch;

use std::time::Duration;

use causeway_core::{Key, Seq, Space};

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
    /// A newer capture has taken the partition over.
    #[error("{partition}: another daemon captures this partition now")]
    Fenced {
        /// Which.
        partition: PartitionId,
    },
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
    /// The site's own capture waits for the applier to read the marker again and let it in.
    #[error("capture of the target opens its stream anew")]
    CaptureWaits,
    /// The daemon stops.
    #[error("the daemon stops")]
    Stopped,
}

/// How long to wait after the `failures`th failure in a row; longer where a person has to mend something.
fn backoff(failures: u32, setup: bool) -> Duration {
    let quick = Duration::from_millis(50).saturating_mul(1 << failures.min(7));
    if setup { Duration::from_secs(5) } else { quick.min(Duration::from_secs(5)) }
}
