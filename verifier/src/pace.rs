use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// Holds the commands sent to one site under a rate; without one it does nothing.
pub(crate) struct Pace {
    per_second: Option<f64>,
    free_at: Mutex<Instant>,
}

impl Pace {
    /// `per_second`: commands, `None`: no limit.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        Pace { per_second: per_second.map(|n| f64::from(n.max(1))), free_at: Mutex::new(Instant::now()) }
    }

    /// The most commands that one pipeline should hold: what the rate allows in a tenth of a second.
    pub(crate) fn burst(&self) -> usize {
        self.per_second.map_or(usize::MAX, |rate| (rate / 10.0).max(1.0) as usize)
    }

    /// Waits until `commands` more may be sent.
    pub(crate) async fn take(&self, commands: usize) {
        let Some(rate) = self.per_second else { return };
        let until = {
            let mut free_at = self.free_at.lock().await;
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(commands as f64 / rate);
            start
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rate_is_kept() {
        let pace = Pace::new(Some(10_000));
        let start = Instant::now();
        for _ in 0..5 {
            pace.take(500).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(200), "four waits of 50 ms each");
    }
}
