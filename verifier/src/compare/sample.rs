//! A part of the keys, taken at random, and what it says of all of them.

use causeway_core::Space;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::pass::hash;

/// Which keys are in a sample: the same ones at both sites, and others with another seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// How many keys of a million.
    pub(crate) per_million: u32,
    pub(crate) seed: u64,
}

impl Sample {
    /// Whether a key is in it. All tables themselves are.
    pub(super) fn takes(&self, space: &Space, name: &[u8]) -> bool {
        let drawn = xxh3_64_with_seed(&hash(space, name).to_le_bytes(), self.seed) % 1_000_000;
        *space == Space::Whole || drawn < u64::from(self.per_million)
    }
}

/// With a confidence of 95 %, no larger share of all keys differs, where `differ` of `compared` that were taken at random do.
///
/// The upper end of the exact one-sided interval of a Poisson distribution, which is never below that of the binomial one.
pub(crate) fn share_at_most(compared: u64, differ: u64) -> f64 {
    if compared == 0 {
        return 1.0;
    }
    // The mean under which so few come with a probability of 5 %.
    let (mut low, mut high) = (differ as f64, 2.0 * differ as f64 + 50.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if at_most(differ, middle) > 0.05 { low = middle } else { high = middle }
    }
    (high / compared as f64).min(1.0)
}

/// The probability that no more than `count` come where `mean` do on average.
fn at_most(count: u64, mean: f64) -> f64 {
    // From the largest term down: beyond some of them none counts.
    let mut term = 1.0;
    let mut sum = 1.0;
    let mut log_largest = -mean;
    for k in 1..=count {
        log_largest += (mean / k as f64).ln();
    }
    for k in (1..=count).rev() {
        term *= k as f64 / mean;
        sum += term;
        if term < 1e-17 {
            break;
        }
    }
    (log_largest + sum.ln()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sample_says_is_what_tables_say() {
        // Upper ends of the one-sided 95 % interval of a Poisson count, from the chi-squared distribution.
        for (differ, mean) in [(0, 2.9957), (1, 4.7439), (2, 6.2958), (10, 16.9622), (100, 118.0788)] {
            let share = share_at_most(1_000_000, differ);
            assert!((share * 1e6 - mean).abs() < 0.002, "{differ}: {share}");
        }
        assert_eq!((share_at_most(0, 0), share_at_most(2, 2)), (1.0, 1.0));
        let many = share_at_most(10_000_000, 1_000_000);
        assert!((0.1..0.1003).contains(&many), "{many}");
    }

    #[test]
    fn a_sample_is_as_large_as_was_asked_for_and_another_one_with_another_seed() {
        let taken = |seed| {
            let sample = Sample { per_million: 10_000, seed };
            let all = (0..100_000u32).filter(move |n| sample.takes(&Space::Db(0), n.to_string().as_bytes()));
            all.collect::<Vec<_>>()
        };
        let (one, other) = (taken(1), taken(2));
        assert!(
            (800..1200).contains(&one.len()) && (800..1200).contains(&other.len()),
            "{} {}",
            one.len(),
            other.len()
        );
        assert!(one.iter().filter(|n| other.contains(n)).count() < 50);
        let none = Sample { per_million: 0, seed: 1 };
        assert!(none.takes(&Space::Whole, b"shop.t") && !none.takes(&Space::Db(0), b"k"));
    }
}
