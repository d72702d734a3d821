//! Redis's dump format: an RDB split into entries as its bytes arrive, DUMP payloads made, opened and
//! rewritten as native commands. Nothing here does I/O.
//!
//! [`Splitter`] decodes as little as it can: a value passes as the DUMP payload that `RESTORE` takes.
//! Only one over a limit is cut into parts of native commands, so that neither side ever holds it whole;
//! [`DumpCutter`] does the same with a DUMP payload.
//!
//! Known: RDB versions 1 to 15 and Valkey's 80 and 81 as far as their types go: 0 to 25 (strings, lists,
//! sets, sorted sets, hashes also with field expiry, streams) and, to be skipped and named, 7 (modules).
//! An entry's length follows from its type alone, so an unknown type or opcode ends the reading.

mod crc64;
mod cut;
mod digest;
mod dump;
mod lzf;
mod ops;
mod packed;
mod parts;
mod read;
mod splitter;
mod stream;
mod walk;
mod write;

use bytes::Bytes;

pub use crc64::crc64;
pub use cut::{Cut, DumpCutter};
pub use digest::content_digest;
pub use dump::{FOOTER_BYTES, open, rewrite, seal};
pub use read::ELEMENT_BYTES_MAX;
pub use splitter::Splitter;

use read::Stop;

/// The sizes at which values are cut.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// About how many bytes of commands a part has. A single larger element makes a larger one.
    pub part_bytes: usize,
    /// A value whose serialized form is longer is cut into parts.
    pub whole_bytes_max: usize,
}

impl Default for Options {
    /// 512 KiB and 1 MiB.
    fn default() -> Self {
        Options { part_bytes: 512 << 10, whole_bytes_max: 1 << 20 }
    }
}

/// What an RDB says, in its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// First: the RDB version, 80 and above for Valkey's own.
    Version(u16),
    /// A note of the server, such as `redis-ver`. Data of modules that belongs to no key comes as a note
    /// `module-aux` with the module type's name: it is not carried.
    Aux {
        /// The note's name.
        name: Bytes,
        /// Its text.
        value: Bytes,
    },
    /// How many keys a database has, before they come.
    Sizes {
        /// The database.
        db: u32,
        /// Keys in it.
        keys: u64,
        /// Those that expire.
        expires: u64,
    },
    /// A function library's code, as `FUNCTION LOAD` takes it.
    Function(Bytes),
    /// A key, or a part of one.
    Entry(Entry),
    /// Last: the checksum over everything before is right, or the server wrote none.
    End,
}

/// A key with its value or a part of it. The parts of a value come one after the other, nothing in between.
///
/// `name` and the value's bytes share memory with other entries of the same 256 KiB: copy what is kept long.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The database.
    pub db: u32,
    /// The key, any bytes.
    pub name: Bytes,
    /// When the key expires, ms since 1970; never 0. It may have passed. The same on every part.
    pub expire_at: Option<u64>,
    /// The value.
    pub value: Value,
}

/// The value of an [`Entry`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A DUMP payload with the RDB's own version in its footer, as `RESTORE` takes it.
    Dump(Bytes),
    /// A piece of a large value.
    Part {
        /// Counts from 0.
        n: u32,
        /// Whether it is the value's last one.
        last: bool,
        /// Whole RESP arrays, to be done in order on a key that didn't exist. May be empty in the last part.
        commands: Bytes,
    },
    /// A value that can't be carried. It was skipped.
    Left {
        /// Why, without the key.
        reason: String,
    },
}

/// The bytes are not an RDB, or damaged, or newer than what is known here.
///
/// The reading can't go on: ask the server for a new one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RDB byte {at}: {reason}")]
pub struct RdbError {
    /// Where the element begins that is wrong, in bytes from the beginning.
    pub at: u64,
    /// What is wrong, without keys and values.
    pub reason: String,
}

impl RdbError {
    fn new(at: u64, reason: impl Into<String>) -> Self {
        RdbError { at, reason: reason.into() }
    }

    /// Of bytes that should have been complete.
    fn stopped(at: u64, stop: Stop) -> Self {
        match stop {
            Stop::Short => RdbError::new(at, "the bytes end too early"),
            Stop::Bad(reason) => RdbError::new(at, reason),
        }
    }
}
