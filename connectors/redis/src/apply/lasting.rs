//! Keys whose time is over when they arrive.
//!
//! A server ends such a key at once, or never makes it. But the origin may have prolonged its life in time, which
//! stands further on in the log. So it lives on until the log tells its end, as on a replica, or for [`GRACE_MS`].

use std::time::Instant;

use causeway_core::Result;
use causeway_core::time::now_ms;

use crate::conn::Conn;

/// How long a key lives at the most whose time is over, unless its origin says what became of it.
const GRACE_MS: u64 = 60_000;

/// A server's clock. It goes on by our monotonic one, so that our time of day may jump.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Milliseconds since 1970.
    read: u64,
    at: Instant,
}

impl Clock {
    /// Asks the server; one that doesn't say is taken to have our time.
    ///
    /// # Errors
    ///
    /// `Retry`.
    pub(super) async fn read(conn: &mut Conn) -> Result<Clock> {
        let theirs = conn.call(&[b"TIME"]).await?.time_ms();
        let read = theirs.and_then(|time| u64::try_from(time).ok()).unwrap_or_else(now_ms);
        Ok(Clock { read, at: Instant::now() })
    }

    /// Milliseconds since 1970.
    pub(super) fn now(self) -> u64 {
        self.read.saturating_add(self.at.elapsed().as_millis() as u64)
    }
}

/// The expire-at to give a key that is to expire `at`, at the server's time `now`: at both sites mostly the same.
pub(super) fn lasting(at: u64, now: u64) -> u64 {
    match now.checked_sub(at) {
        None => at,
        Some(over) => at + GRACE_MS * (over / GRACE_MS + 1),
    }
}
