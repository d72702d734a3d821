/// A result of this program.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why no answer can be given. Texts name what happened, where, and what to do; never a secret or a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Bad use or bad configuration; the text names file, line, key, and what is allowed.
    #[error("{0}")]
    Usage(String),
    /// A server could not be reached, hung up, or refused. `action` is a verb phrase, `endpoint` a host:port
    /// or a socket's path, without credentials.
    #[error("{channel}: {action} at {site} ({endpoint}): {reason}")]
    Store { channel: String, site: String, endpoint: String, action: String, reason: String },
    /// The logs no longer say what was written.
    #[error("{0}")]
    Gone(String),
    /// Something on this machine failed, such as writing a report.
    #[error("{0}")]
    Local(String),
}

impl Error {
    /// The exit code of DESIGN.md §10: 2 bad use or configuration, 3 could not reach or failed.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Store { .. } | Error::Gone(_) | Error::Local(_) => 3,
        }
    }
}
