/// A small generator of pseudo-random numbers (SplitMix64): a seed gives the same ones everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`, which is at least 1.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether something of so many per mille happens.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Between `min` and `max`, small ones as likely as large ones by order of magnitude.
    pub(super) fn scaled(&mut self, min: u64, max: u64) -> u64 {
        let (low, high) = ((min.max(1) as f64).ln(), (max.max(2) as f64 + 1.0).ln());
        let at = self.below(1 << 20) as f64 / (1u64 << 20) as f64;
        ((low + (high - low) * at).exp() as u64).clamp(min, max)
    }
}
