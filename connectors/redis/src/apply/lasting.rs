//! Keys whose time is over when they arrive.
//!
//! A server ends such a key at once, or never makes it. But the origin may have prolonged its life in time, which
//! stands further on in the log. So it lives on until the log tells its end, as on a replica, or for [`GRACE_MS`].

use std::time::SystemTime;

use causeway_core::Result;

use crate::conn::Conn;
use crate::resp::Reply;

/// How long a key lives at the most whose time is over, unless its origin says what became of it.
const GRACE_MS: u64 = 60_000;

/// A server's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Clock {
    /// How far it is ahead of ours, in milliseconds.
    ahead: i64,
}

impl Clock {
    /// Asks the server; one that doesn't say is taken to have our time.
    ///
    /// # Errors
    ///
    /// `Retry`.
    pub(super) async fn read(conn: &mut Conn) -> Result<Clock> {
        let number = |reply: &Reply| match reply {
            Reply::Bulk(Some(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
            _ => None,
        };
        let theirs = match conn.call(&[b"TIME"]).await? {
            Reply::Array(Some(parts)) => match parts.as_slice() {
                [seconds, micros] => number(seconds).zip(number(micros)),
                _ => None,
            },
            _ => None,
        };
        let ahead =
            theirs.map_or(0, |(seconds, micros)| (seconds * 1000 + micros / 1000) as i64 - our_ms() as i64);
        Ok(Clock { ahead })
    }

    /// Milliseconds since 1970.
    pub(super) fn now(self) -> u64 {
        our_ms().saturating_add_signed(self.ahead)
    }
}

fn our_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The expire-at to give a key that is to expire `at`, at the server's time `now`: at both sites mostly the same.
pub(super) fn lasting(at: u64, now: u64) -> u64 {
    match now.checked_sub(at) {
        None => at,
        Some(over) => at + GRACE_MS * (over / GRACE_MS + 1),
    }
}
