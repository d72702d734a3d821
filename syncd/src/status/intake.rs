use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ControlError;

/// A request of `POST /v1/channels/{name}/changes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// At which site the application is; `None`: at the one that is served.
    pub site: Option<String>,
    /// The header `Idempotency-Key`.
    pub key: Option<String>,
    /// A change a line, as JSON.
    pub body: Bytes,
}

impl HandOver {
    /// Bytes of a body, where `limits.memory` has room for them.
    pub const BODY_MAX: usize = 16 << 20;
    /// Lines of a body.
    pub const LINES_MAX: usize = 10_000;
    /// Bytes of an idempotency key.
    pub const KEY_MAX: usize = 128;
}

/// Its answer, once the log holds all of it durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// Lines of the body.
    pub accepted: u64,
    /// Those of them that the log held already, from a request with the same idempotency key.
    pub repeated: u64,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    /// From 1.
    pub line: u64,
    /// What, and what is allowed.
    pub error: String,
}

/// Why nothing of a request was taken, or that it is not known whether it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotHandedOver {
    /// As of any request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Nobody can make sense of it.
    #[error("{0}")]
    Wrong(String),
    /// These lines are wrong.
    #[error("{} of the lines cannot be taken, and so none was", .0.len())]
    Lines(Vec<LineError>),
    /// Its idempotency key was another request's.
    #[error("{0}")]
    OtherBody(String),
    /// Something is full; later there may be room.
    #[error("{0}: nothing was taken, try again")]
    Full(String),
    /// Not now. With an idempotency key it can be sent again, whatever became of it.
    #[error("{0}")]
    NotNow(String),
}

/// Of one direction, what applications hand over at its origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeStatus {
    /// Changes in the log that the origin's own store does not hold yet.
    pub waiting: u64,
    /// Changes that were written into the store itself though they are to be handed over, since the daemon began: the peer
    /// does not get them.
    pub past: u64,
    /// Messages in the origin's intake topic that were not taken yet, a few seconds old; none: there is no such topic, or it is
    /// not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_topic: Option<u64>,
}
