use crate::Site;

/// A hybrid logical clock's reading, and so the version of a change: 63 bits, from the top 42 of
/// milliseconds since 1970, 12 of counter, 1 for the site (no two sites' are equal), 8 zero (room for a
/// store that counts on top of a version). 0 is older than every change: the version of a `read`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hlc(pub u64);

const SITE_BIT: u64 = 1 << 8;
const COUNTER_ONE: u64 = 1 << 9;
const MILLIS_SHIFT: u32 = 21;

impl Hlc {
    /// The first reading of the millisecond `unix_ms` at `site`.
    pub fn at(unix_ms: u64, site: Site) -> Hlc {
        Hlc((unix_ms << MILLIS_SHIFT) | (site.index() as u64 * SITE_BIT))
    }

    /// The smallest reading of `site` above this one: one is added to the counter, carrying into the time.
    pub fn next(self, site: Site) -> Hlc {
        let counted = (self.0 / COUNTER_ONE + 1) * COUNTER_ONE;
        Hlc(counted | (site.index() as u64 * SITE_BIT))
    }

    /// The physical part, in milliseconds since 1970.
    pub fn unix_ms(self) -> u64 {
        self.0 >> MILLIS_SHIFT
    }
}

/// The clock of one site's capture: never goes back, whatever the machine's clock does.
#[derive(Debug, Clone)]
pub struct HlcClock {
    site: Site,
    last: Hlc,
}

impl HlcClock {
    /// A clock for `site` that continues after `last` (0 if nothing was stamped before).
    pub fn new(site: Site, last: Hlc) -> Self {
        HlcClock { site, last }
    }

    /// Stamps a local write at `unix_ms`: above everything stamped or observed before.
    pub fn stamp(&mut self, unix_ms: u64) -> Hlc {
        self.last = Hlc::at(unix_ms, self.site).max(self.last.next(self.site));
        self.last
    }

    /// Takes note of the peer's change that was applied here: later stamps are above it.
    pub fn observe(&mut self, applied: Hlc) {
        self.last = self.last.max(applied);
    }

    /// The highest reading stamped or observed so far.
    pub fn last(&self) -> Hlc {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FF46.
    #[test]
    fn a_clock_that_steps_back_never_stamps_lower() {
        let mut clock = HlcClock::new(Site::First, Hlc(0));
        let before = clock.stamp(10_000);
        let after = clock.stamp(5_000);
        assert!(after > before);
        assert_eq!(after.unix_ms(), 10_000);
    }

    #[test]
    fn the_counter_carries_into_the_time_and_leaves_the_low_bits_zero() {
        let mut clock = HlcClock::new(Site::Second, Hlc(0));
        let mut last = clock.stamp(1);
        for _ in 0..5_000 {
            let next = clock.stamp(1);
            assert!(next > last);
            assert_eq!(next.0 & 0xff, 0);
            assert_eq!(next.0 & SITE_BIT, SITE_BIT);
            last = next;
        }
        assert_eq!(last.unix_ms(), 2);
    }

    #[test]
    fn two_sites_never_stamp_the_same() {
        assert_ne!(Hlc::at(7, Site::First), Hlc::at(7, Site::Second));
        assert!(Hlc::at(7, Site::Second).next(Site::First) > Hlc::at(7, Site::Second));
    }
}
