//! MySQL and MariaDB, read by SELECT: another road than the binlog's.
//!
//! Stretches of a table are compared by sums that the two servers compute; what differs is read and digested here.

mod connect;
mod exact;
mod open;
mod read;
mod row;
mod sieve;
mod table;
mod undo;

pub(crate) use open::open_pair;
pub(crate) use table::Tables;
