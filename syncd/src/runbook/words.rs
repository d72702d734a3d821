//! The plan in words.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::book::{Gates, Kind, OnFailure, Runbook, Step, Wait, Wanted};
use super::when::{Time, TimeColumn, Window};
use crate::config::format_duration;

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedStep {
    /// Unique in the runbook.
    pub name: String,
    /// The word of the file.
    pub kind: &'static str,
    /// What it does.
    pub does: String,
    /// Its bounds.
    pub bounds: String,
    /// When it is skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// What follows if its answer is no.
    pub on_failure: String,
}

/// What each step of `book` will do; `values` are the parameters', as far as they are known.
pub fn plan(book: &Runbook, values: &BTreeMap<String, String>) -> Vec<PlannedStep> {
    let one = |step: &Step| PlannedStep {
        name: step.name.clone(),
        kind: step.kind.as_str(),
        does: does(&step.kind, values),
        bounds: bounds(&step.kind),
        only: step.when_failed.and_then(|of| Some(format!("only if `{}` failed", book.steps.get(of)?.name))),
        on_failure: on_failure(step, book),
    };
    book.steps.iter().map(one).collect()
}

fn some(channels: Option<&[String]>) -> String {
    channels.map_or_else(|| "all channels".to_owned(), |channels| channels.join(", "))
}

fn time(time: &Time, values: &BTreeMap<String, String>) -> String {
    match &time.base {
        super::when::Base::Param(name) => match values.get(name) {
            Some(value) => format!("{} (${name} is {value})", time.text),
            None => format!("{} (to be given by --set {name}=…)", time.text),
        },
        _ => time.text.clone(),
    }
}

fn window(window: &Window, values: &BTreeMap<String, String>) -> String {
    let by = match &window.column {
        None => String::new(),
        Some(TimeColumn { name, site: None }) => format!(", by {name}"),
        Some(TimeColumn { name, site: Some(site) }) => format!(", by {name} at {site}"),
    };
    format!("from {} to {}{by}", time(&window.from, values), time(&window.to, values))
}

pub(super) fn does(kind: &Kind, values: &BTreeMap<String, String>) -> String {
    match kind {
        Kind::Snapshot { channels, again, .. } => {
            let unless = if *again { "" } else { ", unless one was made before" };
            format!("copies what exists in {}{unless}, and waits until it is there", channels.join(", "))
        }
        Kind::Wait(Wait::Status { channels, wanted, .. }) => {
            format!("waits until every direction of {} {}", some(channels.as_deref()), wanted_words(wanted))
        }
        Kind::Wait(Wait::At { time: at, .. }) => format!("waits until {}", time(at, values)),
        Kind::Wait(Wait::For(time)) => format!("waits for {}", format_duration(*time)),
        Kind::Verify { channels, window: None, .. } => {
            format!("compares both sites in {}, every key", some(channels.as_deref()))
        }
        Kind::Verify { channels, window: Some(of), .. } => {
            let channels = some(channels.as_deref());
            format!("compares both sites in {channels}, what was written {}", window(of, values))
        }
        Kind::Backfill { channels, window: of, .. } => {
            format!(
                "brings over what was written in {} {}, and compares it",
                channels.join(", "),
                window(of, values)
            )
        }
        Kind::Repair { channels, from, .. } => {
            let what = match from.as_str() {
                "newest" => "what was written last".to_owned(),
                "owner" => "what its owner has".to_owned(),
                site => format!("what {site} has"),
            };
            format!(
                "compares both sites in {}, and carries over {what} where they differ",
                some(channels.as_deref())
            )
        }
        Kind::Observe { channels, time, gates } => {
            let (channels, time) = (some(channels.as_deref()), format_duration(*time));
            format!("watches {channels} for {time}: {}", gates_words(gates))
        }
        Kind::Approve { ask } => format!("asks a person: {ask}"),
    }
}

pub(super) fn wanted_words(wanted: &Wanted) -> String {
    let streaming = wanted.streaming.then(|| "is streaming".to_owned());
    let changes = wanted.lag_changes_max.map(|max| format!("lags by {max} changes at the most"));
    let seconds = wanted.lag_seconds_max.map(|max| format!("lags by {max} s at the most"));
    [streaming, changes, seconds].into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn gates_words(gates: &Gates) -> String {
    let lag = gates.lag_seconds_max.map(|max| format!("lag at most {max} s"));
    let conflicts = gates.conflicts_max.map(|max| format!("at most {max} new conflicts"));
    let rest = format!("at most {} dead letters and {} gaps", gates.dead_letters_max, gates.gaps_max);
    let all = [Some("always streaming".to_owned()), lag, conflicts, Some(rest)];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn within(timeout: &Duration) -> String {
    format!("at most {}", format_duration(*timeout))
}

fn bounds(kind: &Kind) -> String {
    match kind {
        Kind::Snapshot { timeout, .. }
        | Kind::Wait(Wait::Status { timeout, .. })
        | Kind::Verify { timeout, .. } => within(timeout),
        Kind::Wait(Wait::At { timeout, .. }) => {
            format!("fails at once if that is more than {} away", format_duration(*timeout))
        }
        Kind::Wait(Wait::For(time)) | Kind::Observe { time, .. } => {
            format!("exactly {}", format_duration(*time))
        }
        Kind::Backfill { timeout, channels, .. } => {
            let each = if channels.len() > 1 { " for each channel" } else { "" };
            format!("{}{each}", within(timeout))
        }
        Kind::Repair { keys_max, share_max, timeout, .. } => {
            let keys = keys_max.map(|max| format!("at most {max} keys of a channel"));
            let share = share_max.map(|max| format!("at most {max} % of all keys"));
            let all = [Some(within(timeout)), keys, share];
            all.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Kind::Approve { .. } => {
            "without a terminal the run stops here until `syncd runbook resume FILE --approve`".to_owned()
        }
    }
}

fn on_failure(step: &Step, book: &Runbook) -> String {
    match step.on_failure {
        OnFailure::Stop => "the run stops; resume tries this step again".to_owned(),
        OnFailure::Continue => "the run goes on".to_owned(),
        OnFailure::GoTo { step, attempts } => {
            let name = book.steps.get(step).map_or("?", |step| step.name.as_str());
            let often = match attempts {
                1 => "once".to_owned(),
                times => format!("up to {times} times"),
            };
            format!("the run goes to `{name}`, {often}; then it stops")
        }
    }
}
