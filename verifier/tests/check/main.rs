//! `verifier check` against two real Redis servers.

// A helper that cannot do its part fails the test.
#![allow(clippy::unwrap_used)]

mod live;
mod mutations;
mod sameness;
mod support;
mod usage;
