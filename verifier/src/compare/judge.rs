use schemars::JsonSchema;
use serde::Serialize;

use super::State;

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DifferenceKind {
    /// The link's first site lacks it.
    Missing,
    /// Only the link's first site has it.
    Extra,
    /// Both have it, with other content or of another type.
    Content,
    /// Same content, but the expire-at times are further apart than allowed.
    Expiry,
}

impl DifferenceKind {
    /// The word of the report.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            DifferenceKind::Missing => "missing",
            DifferenceKind::Extra => "extra",
            DifferenceKind::Content => "content",
            DifferenceKind::Expiry => "expiry",
        }
    }
}

/// What two states of a key are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same, or absent at both sites.
    Equal,
    /// Different.
    Different(DifferenceKind),
}

/// Judges pairs of states.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judge {
    /// Expire-at times this far apart, in milliseconds, are equal.
    pub(crate) expiry_tolerance_ms: u64,
}

impl Judge {
    /// Judges what the sites held at `now` (milliseconds since 1970). A key whose expire-at has passed is
    /// absent, whether its site has removed it or not.
    pub(crate) fn judge(&self, sites: [Option<State>; 2], now: u64) -> Verdict {
        let [first, second] = sites.map(|s| s.filter(|s| s.expire_at.is_none_or(|at| at > now)));
        match (first, second) {
            (None, None) => Verdict::Equal,
            (None, Some(_)) => Verdict::Different(DifferenceKind::Missing),
            (Some(_), None) => Verdict::Different(DifferenceKind::Extra),
            (Some(a), Some(b)) if a.digest != b.digest => Verdict::Different(DifferenceKind::Content),
            (Some(a), Some(b)) => match (a.expire_at, b.expire_at) {
                (None, None) => Verdict::Equal,
                (Some(a), Some(b)) if a.abs_diff(b) <= self.expiry_tolerance_ms => Verdict::Equal,
                _ => Verdict::Different(DifferenceKind::Expiry),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(digest: u128, expire_at: Option<u64>) -> Option<State> {
        Some(State { what: "string", digest, expire_at })
    }

    #[test]
    fn each_kind_is_told_from_the_first_sites_view() {
        use DifferenceKind::{Content, Expiry, Extra, Missing};
        let judge = Judge { expiry_tolerance_ms: 1000 };
        let cases = [
            ([None, None], None),
            ([None, state(1, None)], Some(Missing)),
            ([state(1, None), None], Some(Extra)),
            ([state(1, None), state(2, None)], Some(Content)),
            ([state(1, Some(9000)), state(1, Some(10_000))], None),
            ([state(1, Some(9000)), state(1, Some(10_001))], Some(Expiry)),
            ([state(1, Some(9000)), state(1, None)], Some(Expiry)),
            ([state(1, Some(9000)), state(2, None)], Some(Content)),
            ([state(1, Some(5000)), None], None),
            ([state(1, Some(5000)), state(2, None)], Some(Missing)),
            ([state(1, Some(5001)), None], Some(Extra)),
        ];
        for (sites, expected) in cases {
            let expected = expected.map_or(Verdict::Equal, Verdict::Different);
            assert_eq!(judge.judge(sites, 5000), expected, "{sites:?}");
        }
    }
}
