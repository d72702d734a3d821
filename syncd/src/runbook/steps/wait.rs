//! `wait`: until the channels are as wanted, until a point in time, or for a time.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Outcome, POLL, chosen, elsewhere, first_of, label, phase, sleep};
use crate::config::format_duration;
use crate::runbook::book::{Step, Wanted};
use crate::runbook::run::Runner;
use crate::runbook::when::Time;
use crate::runbook::words::wanted_words;
use crate::status::{Phase, Status, rfc3339};

/// Until every direction of `channels` is as `wanted`. After a break its time begins anew: what passed meanwhile
/// nobody looked at.
pub(super) async fn for_status(
    runner: &Runner<'_>,
    channels: Option<&[String]>,
    wanted: &Wanted,
    timeout: Duration,
) -> Outcome {
    let end = Instant::now() + timeout;
    loop {
        let asked = runner.world.status().await;
        let lacks = match &asked {
            Ok(status) => lacks(status, channels, wanted),
            Err(unreached) => vec![unreached.clone()],
        };
        if lacks.is_empty() {
            return Outcome::done(format!("every direction {}", wanted_words(wanted)));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("not so within {}: {}", format_duration(timeout), first_of(&lacks));
            return if asked.is_ok() { Outcome::no(what) } else { Outcome::Failed(what) };
        }
        runner.world.live(&format!("{} left; {}", format_duration(left), first_of(&lacks)));
        if !sleep(&runner.stop, POLL.min(left)).await {
            return Outcome::Stopped;
        }
    }
}

/// What is not as wanted; nothing: all of it is.
fn lacks(status: &Status, channels: Option<&[String]>, wanted: &Wanted) -> Vec<String> {
    let channels = match chosen(status, channels) {
        Ok(channels) => channels,
        Err(missing) => {
            return vec![format!("the daemon has no channel {missing}: it runs with another file")];
        }
    };
    let mut lacks = Vec::new();
    for channel in channels {
        if channel.directions.is_empty() {
            lacks.push(elsewhere(channel));
        }
        for direction in &channel.directions {
            let label = label(channel, direction);
            if wanted.streaming && direction.phase != Phase::Streaming {
                lacks.push(format!("{label} is {}", phase(direction)));
            }
            match (wanted.lag_changes_max, direction.lag.changes) {
                (Some(max), Some(lag)) if lag > max => lacks.push(format!("{label} lags by {lag} changes")),
                (Some(_), None) => lacks.push(format!("{label} does not know its lag")),
                _ => {}
            }
            match (wanted.lag_seconds_max, direction.lag.seconds) {
                (Some(max), Some(lag)) if lag > max => lacks.push(format!("{label} lags by {lag:.1} s")),
                (Some(_), None) => lacks.push(format!("{label} does not know its lag")),
                _ => {}
            }
        }
    }
    lacks
}

/// Until a point in time, unless it is too far away.
pub(super) async fn until(runner: &Runner<'_>, time: &Time, timeout: Duration) -> Outcome {
    let Some(end) = time.resolve(|base| runner.time(base)) else {
        return Outcome::Failed(format!("`{}` is no time that is known", time.text));
    };
    let away = end.duration_since(runner.world.now()).unwrap_or_default();
    if away > timeout {
        return Outcome::no(format!(
            "{} is {} away, more than {}",
            rfc3339(end),
            format_duration(away),
            format_duration(timeout)
        ));
    }
    passes(runner, end).await
}

/// For a time, from when the step began: a break counts.
pub(super) async fn out(runner: &Runner<'_>, step: &Step, time: Duration) -> Outcome {
    let state = runner.state().steps.iter().find(|state| state.name == step.name);
    let began = state.and_then(|state| state.started_at()).unwrap_or_else(|| runner.world.now());
    passes(runner, began + time).await
}

async fn passes(runner: &Runner<'_>, end: SystemTime) -> Outcome {
    while let Ok(left) = end.duration_since(runner.world.now()) {
        if left.is_zero() {
            break;
        }
        runner.world.live(&format!("{} left, until {}", format_duration(left), rfc3339(end)));
        // In short pieces: the clock of the wall may be set meanwhile.
        if !sleep(&runner.stop, POLL.min(left)).await {
            return Outcome::Stopped;
        }
    }
    Outcome::done(format!("it is past {}", rfc3339(end)))
}
