//! Times of a runbook: written out, from the start or end of an earlier step, or given by `--set`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::book::Runbook;
use super::tree::Place;
use crate::config::parse_duration;
use crate::status::{parse_rfc3339, rfc3339};

/// What a time may be, for messages.
pub(super) const ALLOWED: &str = "allowed is RFC 3339 such as 2026-03-01T02:00:00Z, `start of STEP`, `end of STEP` or \
                                  `$PARAM`, each with an offset such as ` - 5m` or without";

/// `[from, to)`.
#[derive(Debug, Clone)]
pub struct Window {
    /// Its first moment.
    pub from: Time,
    /// The first moment after it.
    pub to: Time,
    /// What the keys themselves say, in place of the logs.
    pub column: Option<TimeColumn>,
}

/// Where keys say themselves when they were written.
#[derive(Debug, Clone)]
pub struct TimeColumn {
    /// The column, or the field.
    pub name: String,
    /// At which site that counts, where something is carried.
    pub site: Option<String>,
}

/// A point in time as the file says it.
#[derive(Debug, Clone)]
pub struct Time {
    /// As it stands in the file.
    pub text: String,
    pub(super) base: Base,
    /// In milliseconds.
    pub(super) offset: i64,
    pub(super) at: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Fixed(SystemTime),
    Start(String),
    End(String),
    Param(String),
}

impl Time {
    /// `None` if `text` is no time; the names in it are not looked at.
    pub(super) fn parse(text: &str, at: Place) -> Option<Time> {
        let whole = |base, offset| Time { text: text.to_owned(), base, offset, at };
        if let Some(base) = base(text) {
            return Some(whole(base, 0));
        }
        let place = text.rfind(" - ").max(text.rfind(" + "))?;
        let (before, after) = (&text[..place], &text[place..]);
        let offset = parse_duration(after.get(3..)?.trim())?;
        let offset = i64::try_from(offset.as_millis()).ok()?;
        let offset = if after.starts_with(" - ") { -offset } else { offset };
        Some(whole(base(before)?, offset))
    }

    /// The earlier step that it names.
    pub(super) fn step(&self) -> Option<&str> {
        match &self.base {
            Base::Start(step) | Base::End(step) => Some(step),
            _ => None,
        }
    }

    /// What it is, once `known` says what its base is.
    pub(super) fn resolve(&self, known: impl Fn(&Base) -> Option<SystemTime>) -> Option<SystemTime> {
        let base = match &self.base {
            Base::Fixed(time) => *time,
            base => known(base)?,
        };
        let offset = Duration::from_millis(self.offset.unsigned_abs());
        let time = if self.offset < 0 { base.checked_sub(offset)? } else { base.checked_add(offset)? };
        // The interface's times are whole milliseconds since 1970.
        (time >= UNIX_EPOCH && time < UNIX_EPOCH + YEAR_9999).then_some(time)
    }
}

/// Where RFC 3339 ends.
const YEAR_9999: Duration = Duration::from_secs(253_402_300_799);

fn base(text: &str) -> Option<Base> {
    let text = text.trim();
    let named = |name: &str| (!name.is_empty() && !name.contains(' ')).then(|| name.to_owned());
    if let Some(name) = text.strip_prefix('$') {
        return named(name).map(Base::Param);
    }
    if let Some(name) = text.strip_prefix("start of ") {
        return named(name.trim()).map(Base::Start);
    }
    if let Some(name) = text.strip_prefix("end of ") {
        return named(name.trim()).map(Base::End);
    }
    parse_rfc3339(text).filter(|time| *time < UNIX_EPOCH + YEAR_9999).map(Base::Fixed)
}

impl Window {
    /// Both ends; what is wrong with them as a sentence.
    pub(super) fn resolve(
        &self,
        known: impl Fn(&Base) -> Option<SystemTime>,
    ) -> Result<(SystemTime, SystemTime), String> {
        let end = |time: &Time| {
            time.resolve(&known).ok_or_else(|| format!("`{}` is no time that is known", time.text))
        };
        let (from, to) = (end(&self.from)?, end(&self.to)?);
        if from >= to {
            return Err(format!(
                "the window begins at {} and ends at {}: it has to end later than it begins",
                rfc3339(from),
                rfc3339(to)
            ));
        }
        Ok((from, to))
    }

    /// Whether it is known to be empty before anything runs.
    pub(super) fn is_upside_down(&self) -> bool {
        match (&self.from.base, &self.to.base) {
            (Base::Fixed(_), Base::Fixed(_)) => self
                .from
                .resolve(|_| None)
                .zip(self.to.resolve(|_| None))
                .is_some_and(|(from, to)| from >= to),
            (from, to) if from == to => self.from.offset >= self.to.offset,
            // It ends before it begins.
            (Base::End(from), Base::Start(to)) if from == to => self.from.offset >= self.to.offset,
            _ => false,
        }
    }
}

/// `name=value` of `--set`.
///
/// # Errors
///
/// It is none; says what is allowed.
pub fn parse_set(text: &str) -> Result<(String, String), String> {
    let wrong = "allowed is NAME=TIME, with a time such as 2026-03-01T02:00:00Z";
    let (name, value) = text.split_once('=').ok_or(wrong)?;
    match parse_rfc3339(value) {
        Some(_) => Ok((name.to_owned(), value.to_owned())),
        None => Err(wrong.to_owned()),
    }
}

impl Runbook {
    /// Each parameter's value, by `set` or its default, and the windows that are known by then.
    ///
    /// # Errors
    ///
    /// A name that is none, one without a value, or a window that would be empty; says what to do.
    pub fn with(&self, set: &[(String, String)]) -> Result<BTreeMap<String, String>, String> {
        let names: Vec<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
        if let Some((name, _)) = set.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            return Err(match names.is_empty() {
                true => format!("--set {name}: the runbook has no params"),
                false => format!("--set {name}: the runbook's params are {}", names.join(", ")),
            });
        }
        let mut values = BTreeMap::new();
        for param in &self.params {
            let given = set.iter().rev().find(|(name, _)| *name == param.name).map(|(_, value)| value);
            let Some(value) = given.or(param.default.as_ref()) else {
                let about = param.about.as_ref().map(|about| format!(" ({about})")).unwrap_or_default();
                return Err(format!(
                    "`{name}`{about} has no value: say --set {name}=2026-03-01T02:00:00Z",
                    name = param.name
                ));
            };
            values.insert(param.name.clone(), value.clone());
        }
        for step in &self.steps {
            let known = |base: &Base| match base {
                Base::Param(name) => parse_rfc3339(values.get(name)?),
                _ => None,
            };
            if step.kind.times().iter().any(|time| time.step().is_some()) {
                continue;
            }
            if let Some(window) = step.kind.window() {
                window.resolve(known).map_err(|wrong| format!("step `{}`: {wrong}", step.name))?;
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_out_or_follow_from_something() {
        let at = |text: &str| Time::parse(text, (1, 1));
        let fixed = at("2026-03-01T02:00:00Z - 5m").unwrap();
        assert_eq!(rfc3339(fixed.resolve(|_| None).unwrap()), "2026-03-01T01:55:00.000Z");
        let east = at("2026-03-01T04:00:00+02:00").unwrap();
        assert_eq!(rfc3339(east.resolve(|_| None).unwrap()), "2026-03-01T02:00:00.000Z");
        let start = at("start of copy + 90s").unwrap();
        assert_eq!((start.base.clone(), start.offset), (Base::Start("copy".into()), 90_000));
        assert_eq!(start.resolve(|_| None), None);
        assert_eq!(at("end of a-b").unwrap().base, Base::End("a-b".into()));
        assert_eq!(at("$from - 2h").unwrap().base, Base::Param("from".into()));
        for text in [
            "",
            "now",
            "2026-03-01",
            "start of",
            "start of  - 5m",
            "$",
            "$a b",
            "end of x - soon",
            "$x - -5m",
            "$x + 99999999999999999d",
            "5m",
            "end of x -5m",
            "9999-12-31T23:59:59.9Z",
            "\u{85} - 5m",
        ] {
            assert!(at(text).is_none(), "{text}: {:?}", at(text));
        }
        // Before 1970, and after all times.
        assert_eq!(at("1970-01-01T00:00:00Z - 1s").unwrap().resolve(|_| None), None);
        assert_eq!(at("2026-03-01T02:00:00Z + 9999999d").unwrap().resolve(|_| None), None);
    }

    #[test]
    fn a_set_is_a_name_and_a_time() {
        let set = parse_set("from=2026-03-01T02:00:00Z");
        assert_eq!(set, Ok(("from".to_owned(), "2026-03-01T02:00:00Z".to_owned())));
        assert!(parse_set("from").is_err() && parse_set("from=yesterday").is_err());
    }
}
