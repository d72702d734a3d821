//! `snapshot`: copies what exists again, exactly once for each attempt, whatever is killed when.
//!
//! Before the daemon is asked, the journal notes at which seq the last snapshot of each direction began
//! (`snapshot_first` of the status). That the one asked for has begun is told by a greater one, by whoever asks and
//! however often daemon and runner died meanwhile: the daemon keeps it in its log. Asking twice does no harm while the
//! first request waits (they are one then), and is refused while a snapshot runs.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Outcome, POLL, chosen, elsewhere, first_of, phase, sleep};
use crate::config::format_duration;
use crate::runbook::book::Step;
use crate::runbook::journal::{Event, JournalError, Note};
use crate::runbook::run::Runner;
use crate::runbook::world::Refusal;
use crate::status::{ChannelStatus, DirectionStatus, Phase, Status};

/// How long a snapshot of nothing, which moves no seq, is waited for.
const EMPTY_WAIT: Duration = Duration::from_secs(10);

/// How the daemon says that one is under way.
const RUNNING: &str = "a snapshot is running";

pub(super) async fn run(
    runner: &mut Runner<'_>,
    step: &Step,
    channels: &[String],
    again: bool,
    timeout: Duration,
) -> Result<Outcome, JournalError> {
    let end = Instant::now() + timeout;
    let mut asked_here: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        let mut waits = Vec::new();
        let mut reached = true;
        match runner.world.status().await {
            Err(unreached) => (waits, reached) = (vec![unreached], false),
            Ok(status) => {
                for name in channels {
                    match one(runner, step, &status, name, again, &mut asked_here).await? {
                        Stands::There => {}
                        Stands::Waits(what) => waits.push(what),
                        Stands::Over(outcome) => return Ok(outcome),
                    }
                }
            }
        }
        if waits.is_empty() {
            return Ok(Outcome::done(format!("{} copied", channels.join(", "))));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("not there within {}: {}", format_duration(timeout), first_of(&waits));
            return Ok(if reached { Outcome::no(what) } else { Outcome::Failed(what) });
        }
        runner.world.live(&format!("{} left; {}", format_duration(left), first_of(&waits)));
        if !sleep(&runner.stop, POLL.min(left)).await {
            return Ok(Outcome::Stopped);
        }
    }
}

enum Stands {
    There,
    Waits(String),
    Over(Outcome),
}

async fn one(
    runner: &mut Runner<'_>,
    step: &Step,
    status: &Status,
    name: &String,
    again: bool,
    asked_here: &mut BTreeMap<String, Instant>,
) -> Result<Stands, JournalError> {
    let channel = match chosen(status, Some(std::slice::from_ref(name))).map(|found| found.first().copied()) {
        Ok(Some(channel)) => channel,
        _ => {
            let what = format!("the daemon has no channel {name}: it runs with another file");
            return Ok(Stands::Over(Outcome::Failed(what)));
        }
    };
    let copied = copied(runner, channel);
    if copied.is_empty() {
        return Ok(Stands::Waits(elsewhere(channel)));
    }
    if let Some(failed) = copied.iter().find(|direction| direction.phase == Phase::Failed) {
        return Ok(Stands::Over(Outcome::Failed(format!("{name} is {}", phase(failed)))));
    }
    // Only then does the daemon know what its log says of snapshots, and is none under way.
    let rests = copied.iter().all(|direction| direction.phase == Phase::Streaming);
    let first = |direction: &DirectionStatus| (direction.from.clone(), direction.snapshot_first);
    let now: BTreeMap<_, _> = copied.iter().map(|direction| first(direction)).collect();
    let notes = runner.notes(step);
    let before = notes.iter().find_map(|note| match note {
        Note::Asking { channel, first } if channel == name => Some(first),
        _ => None,
    });
    let asked = notes.iter().rev().find_map(|note| match note {
        Note::Asked { channel, since, joined } if channel == name => Some((since, *joined)),
        _ => None,
    });
    let joined = asked.is_some_and(|(_, joined)| joined);
    let moved = before.is_some_and(|before| {
        now.iter().all(|(from, first)| first.is_some() && *first > before.get(from).copied().flatten())
    });
    let in_hand = asked_here.get(name);
    let of_nothing = in_hand.is_some_and(|at| at.elapsed() >= EMPTY_WAIT)
        && copied.iter().all(|direction| direction.snapshot.total == Some(0))
        // As long as something is outstanding, the daemon may not have begun.
        && copied.iter().all(|direction| direction.lag.changes == Some(0));
    if joined || moved {
        return Ok(if rests { Stands::There } else { Stands::Waits(how_far(name, &copied)) });
    }
    if rests && of_nothing {
        return Ok(Stands::There);
    }
    let had_one = now.values().all(Option::is_some);
    if before.is_none() && !again && had_one && rests {
        return Ok(Stands::There);
    }
    // A daemon that still has the request need not be asked again; one that began since then has lost it.
    let has_it = asked.is_some_and(|(since, _)| *since == status.since);
    if has_it {
        asked_here.entry(name.clone()).or_insert_with(Instant::now);
        return Ok(Stands::Waits(format!("{name} has not begun yet")));
    }
    if before.is_some() && asked.is_some() && !rests {
        return Ok(Stands::Waits(how_far(name, &copied)));
    }
    if before.is_none() {
        if copied.iter().any(|direction| direction.phase == Phase::Starting) {
            return Ok(Stands::Waits(how_far(name, &copied)));
        }
        let note = Note::Asking { channel: name.clone(), first: now };
        runner.note(Event::Note { step: step.name.clone(), note })?;
    }
    let joined = match runner.world.snapshot(name).await {
        Ok(()) => false,
        Err(Refusal::No(why)) if why.ends_with(RUNNING) => {
            // It began since the status was asked for, or is of one of two directions: then it is asked for later.
            if copied.iter().any(|direction| direction.phase == Phase::Streaming) {
                return Ok(Stands::Waits(why));
            }
            true
        }
        Err(Refusal::No(why)) => return Ok(Stands::Over(Outcome::no(why))),
        Err(Refusal::Failed(why)) => return Ok(Stands::Waits(why)),
    };
    let note = Note::Asked { channel: name.clone(), since: status.since.clone(), joined };
    runner.note(Event::Note { step: step.name.clone(), note })?;
    let how = if joined { "one is under way already, and is waited for" } else { "asked for" };
    runner.world.say(&format!("    {name}: snapshot {how}"));
    asked_here.insert(name.clone(), Instant::now());
    Ok(Stands::Waits(format!("{name} begins")))
}

/// The directions that copy what exists.
fn copied<'s>(runner: &Runner<'_>, channel: &'s ChannelStatus) -> Vec<&'s DirectionStatus> {
    let Some((_, config)) = runner.config.channel(&channel.name) else { return Vec::new() };
    let named = |direction: &&DirectionStatus| {
        causeway_core::Site::named(&direction.from, &runner.config.sites)
            .is_some_and(|site| config.snapshot.names(site))
    };
    channel.directions.iter().filter(named).collect()
}

fn how_far(name: &str, copied: &[&DirectionStatus]) -> String {
    let Some(direction) = copied.iter().find(|direction| direction.phase != Phase::Streaming) else {
        return format!("{name} is streaming");
    };
    match (direction.phase, direction.snapshot.total) {
        (Phase::Snapshot, Some(total)) => {
            format!("{name}: {} of {total} keys copied", direction.snapshot.done)
        }
        (Phase::Snapshot, None) => format!("{name}: {} keys copied", direction.snapshot.done),
        _ => format!("{name} is {}", phase(direction)),
    }
}
