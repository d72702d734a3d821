/// Any error's cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A result of this contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault it is, and so what the caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The line's or the server's: try again, with backoff.
    Retry,
    /// The change's: to the dead letters.
    Refused,
    /// The past's: what lies between can no longer be read.
    Gap,
    /// A person has to mend it (a password, a right, a setting); trying again is harmless but slow.
    Setup,
    /// Another daemon has taken over; stop.
    Fenced,
}

/// What can go wrong with a store. Texts name what happened, where, and what to do; never a secret or a
/// value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server could not be reached, hung up, or cannot serve just now (out of memory, loading).
    /// `action` is a verb phrase (`apply 500 changes`), `endpoint` a host:port without credentials.
    #[error("{action} at {endpoint}: {source}")]
    Unavailable {
        /// What was being done.
        action: String,
        /// Where, without credentials.
        endpoint: String,
        /// Why.
        source: BoxError,
    },
    /// The server answered, and somebody has to change something before it can go on.
    #[error("{action} at {endpoint}: {reason}; {advice}")]
    Setup {
        /// What was being done.
        action: String,
        /// Where, without credentials.
        endpoint: String,
        /// What the server said or what was found.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// What the server sent is not what its protocol says.
    #[error("{endpoint}: {what} at byte {at}: {reason}")]
    Garbled {
        /// Where it came from.
        endpoint: String,
        /// What was being read (`RDB`, `replication stream`).
        what: &'static str,
        /// Offset of the byte.
        at: u64,
        /// What was wrong with it.
        reason: String,
    },
    /// The change itself cannot be applied.
    #[error("seq {seq} refused: {reason}")]
    Refused {
        /// Of the change.
        seq: u64,
        /// What the store said.
        reason: String,
    },
    /// The store's stream no longer reaches back to where we were.
    #[error("position {position} is gone: {reason}; what lies between has to be compared and repaired")]
    PositionLost {
        /// Where we were.
        position: String,
        /// What the server said.
        reason: String,
    },
    /// A newer applier or capture holds the partition.
    #[error("{endpoint}: another daemon has taken over ({reason})")]
    Fenced {
        /// Where.
        endpoint: String,
        /// How it showed.
        reason: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Unavailable { .. } | Error::Garbled { .. } => ErrorKind::Retry,
            Error::Setup { .. } => ErrorKind::Setup,
            Error::Refused { .. } => ErrorKind::Refused,
            Error::PositionLost { .. } => ErrorKind::Gap,
            Error::Fenced { .. } => ErrorKind::Fenced,
        }
    }
}
