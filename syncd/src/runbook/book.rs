//! What a runbook says, once it is read and checked.

use std::path::PathBuf;
use std::time::Duration;

use super::when::{Time, Window};

/// A checked runbook.
#[derive(Debug, Clone)]
pub struct Runbook {
    /// The file it came from, as it was named.
    pub path: PathBuf,
    /// What its journal is named after.
    pub name: String,
    /// For a person.
    pub about: Option<String>,
    /// SHA-256 of the file's text, in hexadecimal digits.
    pub digest: String,
    /// What `--set` may say.
    pub params: Vec<Param>,
    /// In the order of the file; at least one, names unique.
    pub steps: Vec<Step>,
}

/// A time that a run is given by `--set`.
#[derive(Debug, Clone)]
pub struct Param {
    /// Unique in the runbook.
    pub name: String,
    /// For a person.
    pub about: Option<String>,
    /// RFC 3339; what it is without `--set`.
    pub default: Option<String>,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its own, or its kind's.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// It is done only if that earlier step failed, else skipped.
    pub when_failed: Option<usize>,
    /// What follows if its answer is no.
    pub on_failure: OnFailure,
}

/// What follows if a step's answer is no. Where it could not be done, the run stops in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The run stops there; `resume` tries the step again.
    Stop,
    /// The next step.
    Continue,
    /// That step, up to `attempts` times in a run; then the run stops.
    GoTo {
        /// Index of the step.
        step: usize,
        /// At least 1.
        attempts: u32,
    },
}

/// What a step does. `channels` are never empty and in the configuration; `None` is all of them.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Copies what exists again, and waits until it is copied.
    Snapshot {
        /// Each with a site whose data is copied.
        channels: Vec<String>,
        /// Also where one was made before.
        again: bool,
        /// Longest time.
        timeout: Duration,
    },
    /// Waits.
    Wait(Wait),
    /// Compares both sites, by `verifier check`.
    Verify {
        /// Which.
        channels: Option<Vec<String>>,
        /// Only what was written then.
        window: Option<Window>,
        /// Longest time.
        timeout: Duration,
    },
    /// Closes a window, by `syncd backfill`.
    Backfill {
        /// Which, one after the other.
        channels: Vec<String>,
        /// What is closed.
        window: Window,
        /// Longest time, of each channel.
        timeout: Duration,
    },
    /// Carries over what differs, by `verifier repair --yes`.
    Repair {
        /// Which.
        channels: Option<Vec<String>>,
        /// A site, `newest` or `owner`.
        from: String,
        /// Refuse if more keys of a channel differ.
        keys_max: Option<u64>,
        /// Refuse if more than this share of all differs, in percent.
        share_max: Option<f64>,
        /// Longest time.
        timeout: Duration,
    },
    /// Watches for a time; fails as soon as a gate breaks.
    Observe {
        /// Which.
        channels: Option<Vec<String>>,
        /// How long.
        time: Duration,
        /// What must hold all the time.
        gates: Gates,
    },
    /// Asks a person.
    Approve {
        /// The question.
        ask: String,
    },
}

impl Kind {
    /// The word of the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Snapshot { .. } => "snapshot",
            Kind::Wait(_) => "wait",
            Kind::Verify { .. } => "verify",
            Kind::Backfill { .. } => "backfill",
            Kind::Repair { .. } => "repair",
            Kind::Observe { .. } => "observe",
            Kind::Approve { .. } => "approve",
        }
    }

    /// The times that it names.
    pub(super) fn times(&self) -> Vec<&Time> {
        match self {
            Kind::Verify { window: Some(window), .. } | Kind::Backfill { window, .. } => {
                vec![&window.from, &window.to]
            }
            Kind::Wait(Wait::At { time, .. }) => vec![time],
            _ => Vec::new(),
        }
    }

    /// The window that it names.
    pub(super) fn window(&self) -> Option<&Window> {
        match self {
            Kind::Verify { window, .. } => window.as_ref(),
            Kind::Backfill { window, .. } => Some(window),
            _ => None,
        }
    }
}

/// What a step waits for.
#[derive(Debug, Clone)]
pub enum Wait {
    /// Until all of it holds for every direction of the channels.
    Status {
        /// Which.
        channels: Option<Vec<String>>,
        /// At least one.
        wanted: Wanted,
        /// Longest time.
        timeout: Duration,
    },
    /// Until a point in time.
    At {
        /// Which.
        time: Time,
        /// If it is further away than this, the step fails at once.
        timeout: Duration,
    },
    /// For so long.
    For(Duration),
}

/// What a direction has to be like.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wanted {
    /// Its phase is `streaming`.
    pub streaming: bool,
    /// Its lag is known and not more.
    pub lag_changes_max: Option<u64>,
    /// Its lag is known and not more.
    pub lag_seconds_max: Option<f64>,
}

/// What must hold while a step observes; the phase must be `streaming` in any case.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gates {
    /// Of the oldest change that waits.
    pub lag_seconds_max: Option<f64>,
    /// Since the step began, of all its channels together.
    pub conflicts_max: Option<u64>,
    /// On the list, of all its channels together.
    pub dead_letters_max: u64,
    /// Open ones, of all its channels together.
    pub gaps_max: u64,
}
