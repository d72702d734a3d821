//! Elasticsearch, read by a point in time and by ids: another road than the copy's, which reads by sequence numbers.
//!
//! `check` only: what is repaired, or was written in a window, is told by a daemon that does not name indices yet.

mod canonical;
mod connect;
mod open;
mod read;

pub(crate) use open::{Indices, open_pair};
