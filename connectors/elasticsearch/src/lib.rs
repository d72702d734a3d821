//! Elasticsearch for Causeway: its documents are polled by sequence number, and applied by bulk requests with external
//! versions.
//!
//! - `http`: requests to one of a site's nodes, and whose fault it is when one fails.
//! - `names`: what identifies a document, and our own index; `version`: whose write a document's
//!   version tells of.
//! - `place`: how far each shard was read, and so what a position is.
//! - `source` is the contract's side of `poll`, the task that reads; `known` finds what was
//!   deleted.
//! - `target` is the contract's side of `apply`, the task that writes; `bulk` builds requests
//!   and reads each item's answer.
//! - `definition`: settings, mappings and aliases of an index, carried ahead of its documents.
//! - `check` says what stands in the way.
//!
//! Scripts, ingest, `_reindex` and `GET /` are not used.

mod apply;
mod bulk;
mod check;
mod config;
mod connector;
mod current;
mod definition;
mod documents;
mod http;
mod intake;
mod known;
mod names;
mod place;
mod poll;
mod shared;
mod source;
mod target;
mod version;

use std::sync::Arc;

use causeway_core::{ChannelSpec, Connector, OpenError};

pub use connector::Elasticsearch;

/// Opens a channel of the store `elasticsearch`; connects to nothing.
///
/// # Errors
///
/// The configuration is wrong: names the key, and what is allowed.
pub fn open(spec: &ChannelSpec) -> Result<Arc<dyn Connector>, OpenError> {
    Ok(Arc::new(Elasticsearch::new(spec)?))
}
