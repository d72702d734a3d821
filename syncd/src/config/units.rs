//! Sizes and durations carry their unit: `"512MiB"`, `"10s"`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

const SIZES: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes, as `"512MiB"` in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^[0-9]+ ?(B|[KMGT]i?B)$"))]
pub(super) struct Size(pub(super) u64);

/// Milliseconds, as `"10s"` in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("pattern" = "^[0-9]+ ?(ms|s|m|h|d)$"))]
pub(super) struct Millis(pub(super) u64);

impl Millis {
    pub(super) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    if unit == "B" {
        return Some(number);
    }
    let (_, factor) = SIZES.into_iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(factor)
}

fn millis(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let (_, factor) = DURATIONS.into_iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(factor)
}

/// The duration that `text` says as a key of the file would: `10s`, `2h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    millis(text).map(Duration::from_millis)
}

struct Text<T> {
    parse: fn(&str) -> Option<T>,
    allowed: &'static str,
}

impl<T> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.allowed)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed =
            "a whole number with its unit, one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB: \"512MiB\"";
        deserializer.deserialize_str(Text { parse: size, allowed }).map(Size)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = "a whole number with its unit, one of ms, s, m, h, d: \"10s\"";
        deserializer.deserialize_str(Text { parse: millis, allowed }).map(Millis)
    }
}

/// `bytes` for a person: `512 MiB`, `1.4 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    for (unit, factor) in SIZES.into_iter().take(4) {
        if bytes >= factor {
            let value = bytes as f64 / factor as f64;
            return if bytes.is_multiple_of(factor) {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

/// `seconds` for a person, two units at most: `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn format_duration(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_need_a_known_unit() {
        assert_eq!(size("512MiB"), Some(512 << 20));
        assert_eq!(size("10 GB"), Some(10_000_000_000));
        assert_eq!(size("7B"), Some(7));
        assert_eq!(millis("1h"), Some(3_600_000));
        assert_eq!(millis("250ms"), Some(250));
        for text in ["", "512", "MiB", "1.5GiB", "-1B", "5 mb", "99999999999TiB", "1h 2m"] {
            assert_eq!((size(text), millis(text)), (None, None), "{text}");
        }
    }

    #[test]
    fn a_person_reads_two_units_at_most() {
        assert_eq!(format_bytes(512 << 20), "512 MiB");
        assert_eq!(format_bytes(1_500_000_000), "1.4 GiB");
        assert_eq!(format_bytes(12), "12 B");
        assert_eq!(format_duration(Duration::from_millis(850)), "850 ms");
        assert_eq!(format_duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(format_duration(Duration::from_secs(7_500)), "2 h 5 min");
        assert_eq!(format_duration(Duration::from_secs(180_000)), "2 d 2 h");
    }
}
