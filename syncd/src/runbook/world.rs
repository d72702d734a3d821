//! What a run needs from outside. Tests bring their own.

use std::path::Path;
use std::time::SystemTime;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::status::Status;

/// The daemon, programs, a clock and a person.
#[async_trait]
pub trait World: Send + Sync {
    /// By the clock of the wall; waiting goes by tokio's.
    fn now(&self) -> SystemTime;

    /// `GET /v1/status`.
    ///
    /// # Errors
    ///
    /// No daemon answers; says where, and what to do.
    async fn status(&self) -> Result<Status, String>;

    /// `POST /v1/channels/{channel}/snapshot`.
    ///
    /// # Errors
    ///
    /// Any of [`Refusal`].
    async fn snapshot(&self, channel: &str) -> Result<(), Refusal>;

    /// Runs `program` with `args` until it ends; its stdout goes to a new file `answer`, its stderr is shown. When `end`
    /// is cancelled, it is asked to end, and ended if it does not.
    ///
    /// # Errors
    ///
    /// It cannot be started, or `answer` not be written; says why.
    async fn program(
        &self,
        program: Program,
        args: &[String],
        answer: &Path,
        end: &CancellationToken,
    ) -> Result<Exit, String>;

    /// The answer of the person at the terminal; `None` if there is none.
    async fn ask(&self, question: &str) -> Option<bool>;

    /// Tells a person something that stays.
    fn say(&self, line: &str);

    /// Tells a person what is true just now, in place of what was so before.
    fn live(&self, text: &str);
}

/// Why the daemon did not begin a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It said no.
    No(String),
    /// It was not reached, or failed.
    Failed(String),
}

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `verifier`, beside the running `syncd`.
    Verifier,
    /// The running `syncd` itself.
    Syncd,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}
