//! The daemon that keeps the stores of two sites equal, as a library that its program and its tests drive.
//!
//! What is here: the configuration ([`config`]), the list of stores ([`registry`]), the change log
//! ([`mod@log`]), whose a key is ([`owners`]), what the daemon tells about itself ([`status`], [`api`]), runbooks ([`runbook`]), and
//! the command line ([`cli`]).

pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod log;
pub mod owners;
pub mod registry;
pub mod runbook;
#[cfg(any(test, feature = "simulate"))]
pub mod sim;
pub mod status;
