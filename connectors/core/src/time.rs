//! Times as people and programs are told them: RFC 3339.

use jiff::{SignedDuration, Timestamp};

/// As RFC 3339 in UTC with milliseconds. `ms`: milliseconds since 1970; what is beyond the year 9999 is its end.
pub fn rfc3339(ms: u64) -> String {
    let time =
        i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}

/// The time that an RFC 3339 text with its offset names, in milliseconds since 1970; `None` if it is none, or before 1970.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let time: Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().filter(|_| time.as_duration() >= SignedDuration::ZERO)
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_250, "2000-02-29T00:00:00.250Z"),
            (1_772_330_400_250, "2026-03-01T02:00:00.250Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
            assert_eq!(parse_rfc3339(text), Some(ms), "{text}");
        }
        assert_eq!(rfc3339(u64::MAX), "9999-12-30T22:00:00.999Z", "the last one of any time zone");
        for text in ["2026-03-01T04:00:00+02:00", "2026-02-28 20:30:00-05:30", "2026-03-01T02:00:00Z"] {
            assert_eq!(parse_rfc3339(text), Some(1_772_330_400_000), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2026-03-01",
            "2026-03-01T02:00:00",
            "2026-02-30T02:00:00Z",
            "1969-12-31T23:59:59Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
