//! `verifier check` against two real servers.

// A helper that cannot do its part fails the test.
#![allow(clippy::unwrap_used)]

mod daemon;
mod elasticsearch;
mod live;
mod mutations;
mod mysql;
mod repair;
mod sameness;
mod support;
mod undo;
mod undo_mysql;
mod usage;
