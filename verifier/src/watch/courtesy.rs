//! Reading makes way for those whom a store is there for: while a store answers more slowly than it usually does, less is
//! read of it.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::sleep;

use super::state::State;
use crate::compare::Reader;
use crate::error::Error;

/// How often a store is asked for nothing.
const PROBE_EVERY: Duration = Duration::from_millis(200);

/// Answers that say what is usual: of the last five minutes.
const USUAL: usize = 1_500;

/// As long as there are fewer, nothing is known to be unusual.
const USUAL_MIN: usize = 10;

/// An answer may take so many times as long as the quick ones usually do, and a little.
const TIMES: u32 = 4;
const A_LITTLE: Duration = Duration::from_millis(3);

/// Asks both sites again and again how quickly they answer, and holds the reading of a site while it is slow. Ends with an
/// error only.
pub(super) async fn of<R: Reader>(sites: [&R; 2], state: &State) -> Error {
    let [first, second] = [0, 1].map(|site| Box::pin(of_site(site, sites[site], state)));
    match select(first, second).await {
        Either::Left((error, _)) | Either::Right((error, _)) => error,
    }
}

async fn of_site<R: Reader>(site: usize, reader: &R, state: &State) -> Error {
    let mut usual = Usual::default();
    loop {
        let took = match reader.probe().await {
            Ok(took) => took,
            Err(error) => return error,
        };
        let is_slow = usual.is_slow(took);
        reader.hold(is_slow);
        if is_slow {
            state.held(site, PROBE_EVERY);
        }
        sleep(PROBE_EVERY).await;
    }
}

/// How long answers take.
#[derive(Default)]
struct Usual(VecDeque<Duration>);

impl Usual {
    /// Takes note of one, and says whether it took unusually long: against a fifth of the last ones, the quickest.
    fn is_slow(&mut self, took: Duration) -> bool {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        if self.0.len() >= USUAL {
            self.0.pop_front();
        }
        self.0.push_back(took);
        if sorted.len() < USUAL_MIN {
            return false;
        }
        let fifth = sorted.len() / 5;
        let (_, quick, _) = sorted.select_nth_unstable(fifth);
        took > *quick * TIMES + A_LITTLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_told_by_what_is_usual() {
        let ms = Duration::from_millis;
        let mut usual = Usual::default();
        for n in 0..100 {
            assert!(!usual.is_slow(ms(10 + n % 3)), "{n}");
        }
        assert!(usual.is_slow(ms(60)) && !usual.is_slow(ms(40)));
        // What stays so becomes usual.
        let slow = (0..2 * USUAL).filter(|_| usual.is_slow(ms(60))).count();
        assert!((100..USUAL).contains(&slow), "{slow}");
        assert!(usual.0.len() <= USUAL);
    }
}
