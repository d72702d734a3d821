//! Two stores in memory, one for each site: for simulation, and as the reference that shows what the
//! conformance suite asks of a connector.
//!
//! [`Memory`] is the pair. Tests write with [`Memory::write`], look with [`Memory::read`], and break things
//! with its faults: a cut link, a lost position, a store that comes back older, changes that are refused,
//! no memory left, slowness.
//!
//! Commands are words: `SET k v`, `INCRBY k 1`, `RPUSH k e`, `HSET k f v`, `HINCRBY k f 1`, `HDEL k f`,
//! `SADD k m`, `SREM k m`, `PEXPIREAT k ms`, `PERSIST k`, `DEL k`, `FLUSHALL`; no word holds a space. A value's form is its type and
//! its words: `string v`, `list a b`, `hash f v g w`, `set a b`.

mod command;
mod memory;
mod source;
mod store;
mod target;
mod value;

pub use memory::{Memory, open};
pub use store::{Clock, Fault};
pub use value::Value;
