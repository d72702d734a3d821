//! What tests, benches and the demo share: real servers on loopback ([`servers`], [`mysql`], [`kafka`],
//! [`elasticsearch`]), the seeded data of a push service and live writes with a history that can be judged ([`data`]), and the conformance suite
//! that every connector runs ([`run`]).
//!
//! Nothing here goes into a release of the daemon: it blocks, it panics where a test should fail, and it
//! trusts the servers it talks to.

pub mod api;
mod conformance;
pub mod data;
pub mod elasticsearch;
pub mod kafka;
mod launched;
pub mod mysql;
pub mod process;
pub mod resp;
pub mod servers;

pub use conformance::{Subject, TestValue, TestWrite, run};
