//! A limit on changes a second.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What may be taken at once after a rest: long enough that a timer's grain doesn't cost rate, short
/// enough that the server sees no peak.
const BURST: Duration = Duration::from_millis(50);

/// Lets through so many a second.
#[derive(Debug)]
pub(super) struct Limit {
    per_second: u64,
    /// When what was let through so far has used up its time.
    busy_until: Option<Instant>,
}

impl Limit {
    /// `per_second`: 1 or more; 0 counts as 1.
    pub(super) fn new(per_second: u64) -> Limit {
        Limit { per_second: per_second.max(1), busy_until: None }
    }

    /// Waits until `n` more may pass. More than a second's worth passes at once and is paid for by the
    /// next one.
    pub(super) async fn take(&mut self, n: u64) {
        let now = Instant::now();
        if let Some(busy_until) = self.busy_until
            && busy_until > now
        {
            sleep_until(busy_until).await;
        }
        let now = Instant::now();
        let from = match (self.busy_until, now.checked_sub(BURST)) {
            (Some(busy_until), Some(rested)) => busy_until.max(rested),
            (Some(busy_until), None) => busy_until,
            (None, rested) => rested.unwrap_or(now),
        };
        let cost = Duration::from_secs_f64(n as f64 / self.per_second as f64);
        self.busy_until = from.checked_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_passes_than_the_rate_and_one_burst() {
        let mut limit = Limit::new(10_000);
        let started = Instant::now();
        for _ in 0..30 {
            limit.take(100).await;
        }
        // 3000 are 300 ms, less one burst; what the last one costs is paid by the next.
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(230), "{took:?}");
    }
}
