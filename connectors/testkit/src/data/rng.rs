/// A small generator of our own (SplitMix64), so that a seed gives the same data for ever, whatever
/// version of a library is used.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The generator of item `index` of `seed`: items can be made in any order.
    pub(crate) fn of(seed: u64, index: u64) -> Rng {
        let mut rng = Rng(seed ^ index.wrapping_mul(STEP).rotate_left(17));
        rng.next();
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from `0..n`; `n` is at least 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Evenly from `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `0..n`, where `k` is drawn about as often as `1 / (k + 1)` says.
    pub(crate) fn zipf(&mut self, n: u64) -> u64 {
        let x = ((n as f64 + 1.0).ln() * self.unit()).exp() - 1.0;
        (x as u64).min(n - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_zipf_draw_is_the_most_frequent() {
        let mut rng = Rng::new(1);
        let mut counts = [0u32; 100];
        (0..100_000).for_each(|_| counts[rng.zipf(100) as usize] += 1);
        assert!(counts[0] > 2 * counts[3] && counts[3] > 2 * counts[30], "{counts:?}");
        assert!(counts[99] > 0);
    }

    /// The data of a seed is part of what tests and benches have in common: it must not change.
    #[test]
    fn a_seed_gives_these_numbers_for_ever() {
        let mut rng = Rng::new(0);
        assert_eq!([rng.next(), rng.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }
}
