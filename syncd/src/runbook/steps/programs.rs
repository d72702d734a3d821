//! `verify`, `backfill` and `repair`: programs that say their answer as JSON, and by their exit code whether it is a yes.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{Outcome, sleep};
use crate::config::format_duration;
use crate::runbook::book::Step;
use crate::runbook::journal::{Event, JournalError, Note};
use crate::runbook::run::Runner;
use crate::runbook::when::TimeColumn;
use crate::runbook::world::{Exit, Program};
use crate::status::rfc3339;

/// Of an answer that is read for its figures; the file has it whole.
const ANSWER_MAX: u64 = 64 << 20;

/// What a repair may reach at the most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) keys_max: Option<u64>,
    pub(super) share_max: Option<f64>,
}

/// After a break everything is compared again: a proof has one time.
pub(super) async fn verify(
    runner: &mut Runner<'_>,
    step: &Step,
    channels: Option<&[String]>,
    window: Option<[SystemTime; 2]>,
    timeout: Duration,
) -> Result<Outcome, JournalError> {
    if let Some(early) = window.and_then(|window| too_early(runner, window)) {
        return Ok(early);
    }
    let mut all = Vec::new();
    for channel in each(channels) {
        let mut args = arguments(runner, "check", channel);
        args.extend(window.into_iter().flat_map(|window| window_arguments(window, step)));
        args.push("--json".to_owned());
        all.push((
            channel.map(str::to_owned),
            run(runner, step, Program::Verifier, channel, &args, timeout).await,
        ));
        if matches!(all.last(), Some((_, Outcome::Stopped | Outcome::Failed(_)))) {
            break;
        }
    }
    Ok(together(all))
}

/// After a break channels that are done are not done again, as what they brought over stays.
pub(super) async fn backfill(
    runner: &mut Runner<'_>,
    step: &Step,
    channels: &[String],
    window: [SystemTime; 2],
    timeout: Duration,
) -> Result<Outcome, JournalError> {
    if let Some(early) = too_early(runner, window) {
        return Ok(early);
    }
    let channels: Vec<Option<&str>> = channels.iter().map(|channel| Some(channel.as_str())).collect();
    parts(runner, step, &channels, Program::Syncd, timeout, |runner, channel| {
        let mut args = arguments(runner, "backfill", channel);
        args.extend(window_arguments(window, step));
        args.push("--json".to_owned());
        args
    })
    .await
}

/// As [`backfill`]; the program compares anew by itself what is left to do.
pub(super) async fn repair(
    runner: &mut Runner<'_>,
    step: &Step,
    channels: Option<&[String]>,
    from: &str,
    limits: Limits,
    timeout: Duration,
) -> Result<Outcome, JournalError> {
    parts(runner, step, &each(channels), Program::Verifier, timeout, |runner, channel| {
        let mut args = arguments(runner, "repair", channel);
        args.extend(["--from".to_owned(), from.to_owned()]);
        args.extend(limits.keys_max.into_iter().flat_map(|max| ["--keys-max".to_owned(), max.to_string()]));
        args.extend(limits.share_max.into_iter().flat_map(|max| ["--share-max".to_owned(), max.to_string()]));
        args.extend(["--yes".to_owned(), "--json".to_owned()]);
        args
    })
    .await
}

async fn parts(
    runner: &mut Runner<'_>,
    step: &Step,
    channels: &[Option<&str>],
    program: Program,
    timeout: Duration,
    args: impl Fn(&Runner<'_>, Option<&str>) -> Vec<String>,
) -> Result<Outcome, JournalError> {
    let notes = runner.notes(step);
    let mut all = Vec::new();
    for channel in channels {
        let name = channel.unwrap_or("*");
        let before = notes.iter().find_map(|note| match note {
            Note::Part { channel, outcome } if channel == name => Some(outcome.clone()),
            _ => None,
        });
        if let Some(outcome) = before {
            all.push((channel.map(str::to_owned), Outcome::done(outcome)));
            continue;
        }
        let outcome = run(runner, step, program, *channel, &args(runner, *channel), timeout).await;
        if let (Outcome::Done(outcome, _), true) = (&outcome, channels.len() > 1) {
            let note = Note::Part { channel: name.to_owned(), outcome: outcome.clone() };
            runner.note(Event::Note { step: step.name.clone(), note })?;
        }
        let ends = matches!(outcome, Outcome::Stopped | Outcome::Failed(_));
        all.push((channel.map(str::to_owned), outcome));
        if ends {
            break;
        }
    }
    Ok(together(all))
}

fn each(channels: Option<&[String]>) -> Vec<Option<&str>> {
    channels.map_or_else(|| vec![None], |all| all.iter().map(|one| Some(one.as_str())).collect())
}

fn arguments(runner: &Runner<'_>, command: &str, channel: Option<&str>) -> Vec<String> {
    let config = runner.config.path.display().to_string();
    let mut args = vec![command.to_owned(), "--config".to_owned(), config];
    args.extend(channel.into_iter().flat_map(|channel| ["--channel".to_owned(), channel.to_owned()]));
    args
}

fn window_arguments([from, to]: [SystemTime; 2], step: &Step) -> Vec<String> {
    let mut args = vec!["--from".to_owned(), rfc3339(from), "--to".to_owned(), rfc3339(to)];
    if let Some(TimeColumn { name, site }) = step.kind.window().and_then(|window| window.column.clone()) {
        args.extend(["--time-column".to_owned(), name]);
        args.extend(site.into_iter().flat_map(|site| ["--site".to_owned(), site]));
    }
    args
}

/// A window that is not over holds what nobody has written yet.
fn too_early(runner: &Runner<'_>, [_, to]: [SystemTime; 2]) -> Option<Outcome> {
    let what = || format!("the window ends at {}, which is still to come: `wait` until then", rfc3339(to));
    (to > runner.world.now()).then(|| Outcome::Failed(what()))
}

/// The worst of them, with what each said.
fn together(all: Vec<(Option<String>, Outcome)>) -> Outcome {
    let several = all.len() > 1;
    let mut said = Vec::new();
    let mut worst = 0;
    for (channel, outcome) in all {
        let (weight, text) = match outcome {
            Outcome::Done(text, _) => (0, text),
            Outcome::No(text, _) => (1, text),
            Outcome::Failed(text) => (2, text),
            Outcome::Stopped | Outcome::Waits(_) => return Outcome::Stopped,
        };
        worst = worst.max(weight);
        said.push(match channel.filter(|_| several) {
            Some(channel) => format!("{channel}: {text}"),
            None => text,
        });
    }
    let said = said.join("; ");
    match worst {
        0 => Outcome::done(said),
        1 => Outcome::no(said),
        _ => Outcome::Failed(said),
    }
}

async fn run(
    runner: &Runner<'_>,
    step: &Step,
    program: Program,
    channel: Option<&str>,
    args: &[String],
    timeout: Duration,
) -> Outcome {
    let answer = runner.answer_file(step, channel);
    let called = match program {
        Program::Verifier => format!("verifier {}", args[0]),
        Program::Syncd => format!("syncd {}", args[0]),
    };
    runner.world.live("");
    let end = runner.stop.child_token();
    let running = runner.world.program(program, args, &answer, &end);
    tokio::pin!(running);
    let (exit, in_time) = tokio::select! {
        biased;
        exit = &mut running => (exit, true),
        // A stop goes to the program by its own road; then its end is waited for.
        timed_out = sleep(&runner.stop, timeout) => {
            end.cancel();
            (running.await, !timed_out)
        }
    };
    let exit = match exit {
        Ok(exit) => exit,
        Err(wrong) => return Outcome::Failed(wrong),
    };
    // Whatever it said, it may have been ended before its end.
    if runner.stop.is_cancelled() && exit != Exit::Code(0) {
        return Outcome::Stopped;
    }
    if !in_time {
        return Outcome::Failed(format!("{called} did not end within {}", format_duration(timeout)));
    }
    let figures = figures(&answer);
    let kept = answer.display();
    match exit {
        Exit::Code(0) => Outcome::done(figures.unwrap_or_else(|| format!("{called} said yes"))),
        Exit::Code(1) => {
            let figures = figures.unwrap_or_else(|| format!("{called} said no"));
            Outcome::no(format!("{figures}; {kept} has the list"))
        }
        Exit::Code(2) => Outcome::Failed(format!("{called} found its use or its file wrong; see above")),
        Exit::Code(code) => Outcome::Failed(format!("{called} could not do it, exit code {code}; see above")),
        Exit::Signal(signal) => Outcome::Failed(format!("{called} was ended by signal {signal}")),
    }
}

/// The counts of an answer: `equal, 1000 compared, 0 different`.
fn figures(answer: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(answer).ok()?.take(ANSWER_MAX).read_to_end(&mut text).ok()?;
    let json: Value = serde_json::from_slice(&text).ok()?;
    let mut said = match json.get("equal").and_then(Value::as_bool) {
        Some(true) => vec!["equal".to_owned()],
        Some(false) => vec!["not equal".to_owned()],
        None => Vec::new(),
    };
    // Of a repair, what each channel got.
    let channels: Vec<&Value> =
        json.get("channels").and_then(Value::as_array).into_iter().flatten().collect();
    for name in ["compared", "different", "undecided", "asked", "keys", "repaired", "left"] {
        let own = json.get(name).and_then(Value::as_u64);
        let sum = || {
            let of: Vec<u64> = channels.iter().filter_map(|one| one.get(name)?.as_u64()).collect();
            (!of.is_empty()).then(|| of.iter().fold(0, |sum: u64, count| sum.saturating_add(*count)))
        };
        said.extend(own.or_else(sum).map(|count| format!("{count} {name}")));
    }
    (!said.is_empty()).then(|| said.join(", "))
}
