//! The connector for Redis and Valkey.
//!
//! ```text
//!            source                                            apply
//! server ─ link ─ rdb, stream ─ events ─▶ (the daemon) ─▶ transactions ─ server
//!            └ reread: keys read again, each with its place in the stream
//! ```
//!
//! [`open`] makes a [`Redis`] of a channel's configuration. What a command writes stands in [`commands`]
//! alone, what an RDB holds in [`rdb`] alone; both do no I/O, nor do [`resp`], [`stream`] and [`filter`].

use std::sync::Arc;

use causeway_core::{ChannelSpec, Connector, OpenError};

pub mod apply;
pub(crate) mod args;
mod check;
pub mod commands;
pub mod config;
pub mod conn;
mod connector;
pub mod endpoint;
pub mod filter;
pub mod info;
mod intake;
pub mod link;
pub mod names;
mod progress;
pub mod rdb;
pub mod reread;
pub mod resp;
mod scan;
pub mod source;
pub mod stream;

pub use connector::Redis;

/// Opens a channel whose `store` is `redis`; connects to nothing.
///
/// # Errors
///
/// A key of its configuration that is not known, or a value that is not allowed: names it, and what is.
pub fn open(spec: &ChannelSpec) -> Result<Arc<dyn Connector>, OpenError> {
    Ok(Arc::new(Redis::new(spec)?))
}
