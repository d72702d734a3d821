use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

/// How long one command waits while reading is held: it makes way, and goes on all the same.
const HELD: Duration = Duration::from_millis(500);

/// Holds the commands sent to one site under a rate, and makes them wait while it is held; without either it does nothing.
pub(crate) struct Pace {
    is_held: watch::Sender<bool>,
    per_second: Option<f64>,
    free_at: Mutex<Instant>,
}

impl Pace {
    /// `per_second`: commands, `None`: no limit.
    pub(crate) fn new(per_second: Option<u32>) -> Self {
        let is_held = watch::Sender::new(false);
        Pace {
            is_held,
            per_second: per_second.map(|n| f64::from(n.max(1))),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// The most commands that one pipeline should hold: what the rate allows in a tenth of a second.
    pub(crate) fn burst(&self) -> usize {
        self.per_second.map_or(usize::MAX, |rate| (rate / 10.0).max(1.0) as usize)
    }

    /// Whether what is sent from now on waits.
    pub(crate) fn hold(&self, is_held: bool) {
        self.is_held.send_if_modified(|held| std::mem::replace(held, is_held) != is_held);
    }

    /// Waits until `commands` more may be sent.
    pub(crate) async fn take(&self, commands: usize) {
        if *self.is_held.borrow() {
            let _ = timeout(HELD, self.is_held.subscribe().wait_for(|held| !held)).await;
        }
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

    #[tokio::test]
    async fn what_is_held_waits_until_it_is_not_and_goes_on_all_the_same() {
        let pace = Pace::new(None);
        pace.hold(true);
        let start = Instant::now();
        let (_, ()) = tokio::join!(pace.take(1), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pace.hold(false);
        });
        assert!((Duration::from_millis(50)..HELD).contains(&start.elapsed()), "{:?}", start.elapsed());
        pace.hold(true);
        pace.take(1).await;
        assert!(start.elapsed() >= HELD);
    }
}
