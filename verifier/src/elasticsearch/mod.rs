//! Elasticsearch, read by a point in time and by ids: another road than the copy's, which reads by sequence numbers.

mod canonical;
mod connect;
mod open;
mod read;
mod undo;

pub(crate) use open::{Indices, open_pair};
