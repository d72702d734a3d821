//! What a repair overwrites is kept in a file before, and `verifier undo` puts it back.
//!
//! `keep` writes that file for a repair, and for an undo, which overwrites as well; `file` is its form; `run` is the command.
//! How a value is read whole and put back is each store's own: [`Undoable`].

mod arguments;
mod file;
mod keep;
mod run;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;

use bytes::Bytes;
use causeway_core::Space;

use crate::compare::{Reader, State};
use crate::error::Result;

pub(crate) use arguments::{Keep, Undo};
pub(crate) use keep::Keeper;
pub(crate) use run::{run, taken_back_by};

/// A value, whole, in its store's own form: the server that it was read from takes it back.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) bytes: Vec<u8>,
    /// Milliseconds since 1970; `None`: never.
    pub(crate) expire_at: Option<u64>,
}

/// Not what it holds.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("len", &self.bytes.len())
            .field("expire_at", &self.expire_at)
            .finish_non_exhaustive()
    }
}

/// What a key holds when it is to be kept.
#[derive(Debug)]
pub(crate) enum Held {
    /// There is no such key.
    Absent,
    Value(Value),
    /// More than may be kept, or than the server would take back.
    TooLarge,
}

/// What became of a key that was to be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PutBack {
    Done,
    /// It holds something else than it should by now.
    Changed,
    /// The server does not take it, and why.
    Refused(String),
    /// Another key stands in the way, which may go yet.
    Blocked(String),
}

/// A site whose values can be kept and put back.
pub(crate) trait Undoable: Reader {
    /// Whether a delete that nobody asks the daemon for goes on to the other site much later than a write.
    const DELETES_LATE: bool = false;

    /// Hands `take` what each of `names` (by its index) holds, in any order, one value after the other: no more than one
    /// large one is in memory. A value of more than `value_max` bytes is [`Held::TooLarge`].
    fn keep(
        &self,
        space: &Space,
        names: &[Bytes],
        value_max: u64,
        take: &mut (dyn FnMut(usize, Held) -> Result<()> + Send),
    ) -> impl Future<Output = Result<()>> + Send;

    /// Why nothing can be written in `space`, or not this value.
    fn obstacle(&self, space: &Space, back: Option<&Value>) -> Option<String> {
        let _ = (space, back);
        None
    }

    /// Lets `name` hold `back`, or nothing, as an application would write it, if `is_expected` says of what it holds at
    /// that moment that it may be overwritten.
    ///
    /// # Errors
    ///
    /// The site's. Whether it was put back is not known then; asking again tells.
    fn put_back(
        &self,
        space: &Space,
        name: &Bytes,
        back: Option<&Value>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> impl Future<Output = Result<PutBack>> + Send;
}
