//! The connector for MySQL and MariaDB.
//!
//! ```text
//!            source                                              target
//! server ─ binlog ─ stream ─ events ─▶ (the daemon) ─▶ transactions with the marker ─ server
//!        └ snapshot: chunks by primary key, each between two tokens of the stream
//! ```
//!
//! [`open`] makes a [`Mysql`] of a channel's configuration. What a row looks like in the log stands in `row` alone, what
//! the binlog says in `stream` alone; neither does I/O.

use std::sync::Arc;

use causeway_core::{ChannelSpec, Connector, OpenError};

mod check;
pub mod config;
mod conn;
mod connector;
mod content;
mod ddl;
mod failover;
mod gtid;
pub mod names;
mod place;
mod read;
mod row;
mod schema;
mod snapshot;
pub mod source;
mod sql;
mod stream;
pub mod target;
mod tokens;

pub use connector::Mysql;

/// Opens a channel whose `store` is `mysql`; connects to nothing.
///
/// # Errors
///
/// A key of its configuration that is not known, or a value that is not allowed: names it, and what is.
pub fn open(spec: &ChannelSpec) -> Result<Arc<dyn Connector>, OpenError> {
    Ok(Arc::new(Mysql::new(spec)?))
}
