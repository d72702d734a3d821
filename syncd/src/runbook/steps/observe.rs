//! `observe`: watches the channels for a time, and fails as soon as a gate breaks.

use std::time::Duration;

use tokio::time::Instant;

use super::{Outcome, POLL, chosen, elsewhere, first_of, label, phase, sleep};
use crate::config::format_duration;
use crate::runbook::book::Gates;
use crate::runbook::run::Runner;
use crate::status::{Phase, Status};

/// The daemon may be out of sight for so long: one lost answer breaks no gate.
const UNSEEN_MAX: Duration = Duration::from_secs(30);

/// After a break it watches for the whole time again: nobody did meanwhile.
pub(super) async fn run(
    runner: &Runner<'_>,
    channels: Option<&[String]>,
    time: Duration,
    gates: &Gates,
) -> Outcome {
    let began = Instant::now();
    let (mut seen, mut conflicts) = (began, NewConflicts::default());
    loop {
        let left = time.saturating_sub(began.elapsed());
        match runner.world.status().await {
            Ok(status) => {
                seen = Instant::now();
                let broken = broken(&status, channels, gates, &mut conflicts);
                if !broken.is_empty() {
                    let after = format_duration(began.elapsed());
                    return Outcome::no(format!("after {after}: {}", first_of(&broken)));
                }
                if left.is_zero() {
                    let time = format_duration(time);
                    return Outcome::done(format!(
                        "all was well for {time}, {} new conflicts",
                        conflicts.new
                    ));
                }
                runner.world.live(&format!("{} left; all is well", format_duration(left)));
            }
            Err(unreached) if seen.elapsed() >= UNSEEN_MAX => return Outcome::Failed(unreached),
            Err(unreached) => runner.world.live(&format!("{} left; {unreached}", format_duration(left))),
        }
        // Its last look is at its end.
        let pause = if left.is_zero() { POLL } else { POLL.min(left) };
        if !sleep(&runner.stop, pause).await {
            return Outcome::Stopped;
        }
    }
}

/// Conflicts since the step began, though the daemon counts from its own start.
#[derive(Debug, Default)]
struct NewConflicts {
    /// The daemon that was seen last, and what it had counted then.
    last: Option<(String, u64)>,
    new: u64,
}

impl NewConflicts {
    fn take(&mut self, since: &str, count: u64) {
        let known = match &self.last {
            None => count,
            Some((last, known)) if last == since => *known,
            // Another daemon counts from 0.
            Some(_) => 0,
        };
        self.new += count.saturating_sub(known);
        self.last = Some((since.to_owned(), count));
    }
}

fn broken(
    status: &Status,
    channels: Option<&[String]>,
    gates: &Gates,
    conflicts: &mut NewConflicts,
) -> Vec<String> {
    let channels = match chosen(status, channels) {
        Ok(channels) => channels,
        Err(missing) => {
            return vec![format!("the daemon has no channel {missing}: it runs with another file")];
        }
    };
    let (mut broken, mut counted, mut dead_letters, mut gaps) = (Vec::new(), 0, 0, 0);
    for channel in channels {
        if channel.directions.is_empty() {
            broken.push(elsewhere(channel));
        }
        for direction in &channel.directions {
            counted += direction.conflicts;
            dead_letters += direction.dead_letters;
            gaps += direction.gaps;
            let label = label(channel, direction);
            // An open gap is judged by its own gate.
            let may_be = direction.phase == Phase::Gap && gates.gaps_max > 0;
            if direction.phase != Phase::Streaming && !may_be {
                broken.push(format!("{label} is {}", phase(direction)));
            }
            match (gates.lag_seconds_max, direction.lag.seconds) {
                (Some(max), Some(lag)) if lag > max => {
                    broken.push(format!("{label} lags by {lag:.1} s, allowed are {max} s"));
                }
                (Some(_), None) => broken.push(format!("{label} does not know its lag")),
                _ => {}
            }
        }
    }
    conflicts.take(&status.since, counted);
    let new = conflicts.new;
    if let Some(max) = gates.conflicts_max.filter(|max| new > *max) {
        broken.push(format!("{new} new conflicts, allowed are {max}"));
    }
    if dead_letters > gates.dead_letters_max {
        broken.push(format!("{dead_letters} dead letters, allowed are {}", gates.dead_letters_max));
    }
    if gaps > gates.gaps_max {
        broken.push(format!("{gaps} open gaps, allowed are {}", gates.gaps_max));
    }
    broken
}
