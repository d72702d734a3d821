use std::path::PathBuf;

use super::{Offset, PartitionId};

/// A result of the change log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with the change log. Texts name the folder, the partition and the place; never a
/// value.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another daemon has the folder open. Stop it, or give this one a folder of its own.
    #[error("{}: in use by process {pid}; stop that daemon, or give this one another [log] dir", dir.display())]
    InUse {
        /// The log's folder.
        dir: PathBuf,
        /// Who holds it, as it wrote it into the lock file; `unknown` if that cannot be read.
        pid: String,
    },
    /// What is stored is not what was written, or is gone though it was acknowledged. The records from
    /// `from` up to `to` cannot be had; those outside, and other partitions, can. What they held has to be
    /// compared and repaired.
    #[error(
        "{partition}: records {from}..{to} in {segment} are damaged: {reason}; compare and repair what they held"
    )]
    Corrupt {
        /// Whose records.
        partition: PartitionId,
        /// The file that holds them, or should.
        segment: String,
        /// The first that cannot be read.
        from: Offset,
        /// Where reading can go on.
        to: Offset,
        /// What was found.
        reason: String,
    },
    /// Nothing can be appended just now: the log has its largest size or the disk is full. What was
    /// queued is kept and written once there is room ([`Log::room_returned`](super::Log::room_returned)).
    #[error("{}: the log is full: {reason}; free that disk, or raise [log] size_max; it goes on by itself once there is room", dir.display())]
    Full {
        /// The log's folder.
        dir: PathBuf,
        /// What ran out, with figures.
        reason: String,
    },
    /// A reader asked for what retention removed: a gap.
    #[error("{partition}: record {from} is gone, the oldest kept is {start}; repair what lies between")]
    Trimmed {
        /// Whose records.
        partition: PartitionId,
        /// Asked for.
        from: Offset,
        /// The oldest that is kept.
        start: Offset,
    },
    /// The folder was written by a newer version of this program.
    #[error("{}: format {found} is newer than {known}, the newest that this version reads", dir.display())]
    Newer {
        /// The log's folder.
        dir: PathBuf,
        /// Format of the folder.
        found: u64,
        /// The newest known here.
        known: u64,
    },
    /// The name of a partition cannot stand in the log.
    #[error("{partition}: {reason}")]
    Name {
        /// As given.
        partition: PartitionId,
        /// What is allowed.
        reason: &'static str,
    },
    /// The log was closed; what had not become durable by then was not acknowledged.
    #[error("{}: the log is closed", dir.display())]
    Closed {
        /// The log's folder.
        dir: PathBuf,
    },
    /// The file system failed, or the store below the log did.
    #[error("{}: {action}: {reason}", dir.display())]
    Io {
        /// The log's folder.
        dir: PathBuf,
        /// What was being done, a verb phrase.
        action: &'static str,
        /// What came back.
        reason: String,
    },
    /// A newer writer has taken the partition over: what this one still brings is void.
    #[error("{partition}: another daemon writes this partition of the log now; stop one of the two")]
    Fenced {
        /// Which.
        partition: PartitionId,
    },
    /// A record of a newer version of this program.
    #[error(
        "{partition}: record {place} is of format {found}, newer than {known}; run that newer version here, too"
    )]
    NewerRecord {
        /// Whose record.
        partition: PartitionId,
        /// Its place.
        place: Offset,
        /// Its format.
        found: u64,
        /// The newest known here.
        known: u64,
    },
    /// Kafka could not do what was asked of it.
    #[error("Kafka at {brokers}: cannot {action}: {reason}")]
    Kafka {
        /// The cluster, by its bootstrap brokers.
        brokers: String,
        /// What was being done, a verb phrase.
        action: &'static str,
        /// What came back.
        reason: String,
    },
    /// A topic is not as a log has to be.
    #[error("Kafka at {brokers}: topic {topic}: {reason}")]
    Topic {
        /// The cluster, by its bootstrap brokers.
        brokers: String,
        /// The topic.
        topic: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Brokers take nothing: what was queued is kept and sent once they do.
    #[error(
        "Kafka at {brokers}: no answer to what was appended {seconds} s ago; it goes on by itself once there is one"
    )]
    Silent {
        /// The cluster, by its bootstrap brokers.
        brokers: String,
        /// How long the oldest append waits.
        seconds: u64,
    },
}

impl Error {
    /// The action that fails where settings of Kafka's client are wrong.
    pub(crate) const SET_UP: &str = "set up a client";

    /// Brokers did not do what was asked, and may do so later.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Error::Kafka { action, .. } if *action != Error::SET_UP)
    }
}
