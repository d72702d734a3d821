//! Redis and Valkey, read by their types' own commands: another road than the snapshot's and the stream's,
//! so that what is wrong with those shows.

mod canonical;
mod connect;
mod link;
mod open;
mod parts;
mod read;
mod reply;
mod rest;
mod streams;
mod undo;

pub(crate) use open::open_pair;
