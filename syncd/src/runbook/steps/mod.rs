//! Each kind of step. All of them can be begun again after a break, in the middle of anything (docs/RUNBOOKS.md has what
//! that means for each).

mod approve;
mod observe;
mod programs;
mod snapshot;
mod wait;

use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::book::{Kind, Step, Wait};
use super::journal::{JournalError, Who};
use super::run::Runner;
use crate::status::{ChannelStatus, DirectionStatus, Status};

/// What came of a step, as a phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done; perhaps because a person said so.
    Done(String, Option<Who>),
    /// The answer is no; perhaps a person's.
    No(String, Option<Who>),
    /// It could not be done.
    Failed(String),
    /// It waits for a person.
    Waits(String),
    /// The run was told to stop.
    Stopped,
}

impl Outcome {
    pub(super) fn done(what: impl Into<String>) -> Outcome {
        Outcome::Done(what.into(), None)
    }

    pub(super) fn no(what: impl Into<String>) -> Outcome {
        Outcome::No(what.into(), None)
    }
}

/// How often the daemon is asked how things stand.
const POLL: Duration = Duration::from_secs(1);

pub(super) async fn run(
    runner: &mut Runner<'_>,
    step: &Step,
    window: Option<[SystemTime; 2]>,
) -> Result<Outcome, JournalError> {
    match &step.kind {
        Kind::Snapshot { channels, again, timeout } => {
            snapshot::run(runner, step, channels, *again, *timeout).await
        }
        Kind::Wait(Wait::Status { channels, wanted, timeout }) => {
            Ok(wait::for_status(runner, channels.as_deref(), wanted, *timeout).await)
        }
        Kind::Wait(Wait::At { time, timeout }) => Ok(wait::until(runner, time, *timeout).await),
        Kind::Wait(Wait::For(time)) => Ok(wait::out(runner, step, *time).await),
        Kind::Verify { channels, timeout, .. } => {
            programs::verify(runner, step, channels.as_deref(), window, *timeout).await
        }
        Kind::Backfill { channels, timeout, .. } => match window {
            Some(window) => programs::backfill(runner, step, channels, window, *timeout).await,
            None => Ok(Outcome::Failed("its window is not known".to_owned())),
        },
        Kind::Repair { channels, from, keys_max, share_max, timeout } => {
            let limits = programs::Limits { keys_max: *keys_max, share_max: *share_max };
            programs::repair(runner, step, channels.as_deref(), from, limits, *timeout).await
        }
        Kind::Observe { channels, time, gates } => {
            Ok(observe::run(runner, channels.as_deref(), *time, gates).await)
        }
        Kind::Approve { ask } => Ok(approve::run(runner, ask).await),
    }
}

/// Sleeps, unless `stop` is cancelled; whether it was not.
async fn sleep(stop: &CancellationToken, time: Duration) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

/// The named channels of `status`, or all; the name of one that is not there.
fn chosen<'s>(status: &'s Status, channels: Option<&[String]>) -> Result<Vec<&'s ChannelStatus>, String> {
    let find = |name: &String| {
        status.channels.iter().find(|channel| channel.name == *name).ok_or_else(|| name.clone())
    };
    match channels {
        Some(names) => names.iter().map(find).collect(),
        None => Ok(status.channels.iter().collect()),
    }
}

/// `tags dc->cloud`.
fn label(channel: &ChannelStatus, direction: &DirectionStatus) -> String {
    format!("{} {}->{}", channel.name, direction.from, direction.to)
}

/// The phase, and why it is none that is wanted.
fn phase(direction: &DirectionStatus) -> String {
    let phase = direction.phase.as_str();
    match (&direction.held, &direction.error) {
        (Some(held), _) => format!("{phase}, held: {held}"),
        (_, Some(error)) => format!("{phase}: {error}"),
        _ => phase.to_owned(),
    }
}

/// Why nothing can be told of `channel`.
fn elsewhere(channel: &ChannelStatus) -> String {
    match &channel.member {
        Some(member) => {
            format!("{} is served by the daemon {member}: name that one with --listen", channel.name)
        }
        None => format!("{} is served by no daemon just now", channel.name),
    }
}

/// `first`, and how many more.
fn first_of(all: &[String]) -> String {
    match all {
        [] => String::new(),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} (and {} more)", rest.len()),
    }
}
