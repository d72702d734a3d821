//! Whose write a document's version tells of.
//!
//! What we apply has its change's `hlc` as its version, whose low 8 bits are zero. What an application writes without a
//! version of its own counts on by one from what is there, or begins at 1. So low bits that are not zero, and small
//! numbers, are an application's. One that wrote 256 times on top of ours between two looks would pass for ours: a limit
//! that the README names.

use causeway_core::{Hlc, Site};

/// 2020-01-01: no change of ours is older, and no application counts so far.
const OURS_MIN_MS: u64 = 1_577_836_800_000;
/// The low bits in which a store counts on.
const COUNT: u64 = 0xff;
/// The bit of the site.
const SITE: u64 = 1 << 8;
/// A version so far beyond our clock was given by somebody else.
const BEYOND_MS: u64 = 86_400_000;

/// Whether an applier of ours gave it.
pub(crate) fn is_ours(version: u64) -> bool {
    version & COUNT == 0 && version >= Hlc::at(OURS_MIN_MS, Site::First).0
}

/// The lowest that an applier of ours gives to a change of `site`.
pub(crate) fn lowest(site: Site) -> u64 {
    Hlc::at(OURS_MIN_MS, site).0
}

/// Whether an applier of ours gave it to a change of `site`.
pub(crate) fn is_of(version: u64, site: Site) -> bool {
    is_ours(version) && (version & SITE != 0) == (site == Site::Second)
}

/// The version of ours that an application wrote on top of, if one.
pub(crate) fn base(version: u64) -> Option<Hlc> {
    let base = version & !COUNT;
    (!is_ours(version) && is_ours(base)).then_some(Hlc(base))
}

/// The lowest of ours, of a change of `site`, that the store takes above `current`.
pub(crate) fn above(current: u64, site: Site) -> u64 {
    Hlc(current).next(site).0
}

/// Whether the document has versions that are not ours and that ours would not get above.
pub(crate) fn is_beyond(version: u64, now_ms: u64) -> bool {
    version > Hlc::at(now_ms.saturating_add(BEYOND_MS), Site::Second).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_and_an_application_s_are_told_apart() {
        let ours = Hlc::at(1_790_000_000_000, Site::Second).0;
        assert!(is_ours(ours) && is_of(ours, Site::Second) && !is_of(ours, Site::First));
        assert_eq!(base(ours), None);
        assert!(Site::BOTH.iter().all(|site| is_of(lowest(*site), *site)));
        assert_eq!((is_ours(ours + 1), base(ours + 1)), (false, Some(Hlc(ours))));
        for small in [0, 1, 256, 1 << 40] {
            assert_eq!((is_ours(small), base(small)), (false, None));
        }
        assert!(above(ours + 3, Site::First) > ours + 3 && is_of(above(ours + 3, Site::First), Site::First));
        assert!(is_beyond(u64::MAX >> 1, 1_790_000_000_000) && !is_beyond(ours, 1_790_000_000_000));
    }
}
