//! A run: one step after the other, each announced in the journal before it begins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::book::{OnFailure, Runbook, Step};
use super::journal::{self, Event, Journal, JournalError, Note, Who};
use super::state::{RunState, StepWord};
use super::steps::{self, Outcome};
use super::when::Base;
use super::words;
use super::world::World;
use crate::config::{Config, format_duration};
use crate::status::{parse_rfc3339, rfc3339};

/// How a run left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every step was done, skipped, or failed where the run may go on.
    Done,
    /// A step failed. `code` is 1 where the answer is no, 3 where it could not be done.
    Failed {
        /// Which.
        step: String,
        /// Of the process.
        code: u8,
    },
    /// A person has to approve.
    Waits {
        /// Which step.
        step: String,
    },
    /// It was told to stop.
    Stopped {
        /// In which step.
        step: String,
    },
}

/// Carries out a run.
pub struct Runner<'a> {
    pub(super) book: &'a Runbook,
    pub(super) config: &'a Config,
    pub(super) world: &'a dyn World,
    /// Cancelled: end in an orderly way.
    pub(super) stop: CancellationToken,
    /// What `stop` is for the journal.
    pub(super) signal: &'a (dyn Fn() -> String + Sync),
    pub(super) who: Who,
    journal: Journal,
    pub(super) state: RunState,
    /// `--approve`, as long as no step has used it.
    approve: bool,
}

impl<'a> Runner<'a> {
    /// For the run that `journal` tells of last. Nothing happens before [`begin`](Runner::begin) or
    /// [`resume`](Runner::resume), and then [`go`](Runner::go).
    pub fn new(
        book: &'a Runbook,
        config: &'a Config,
        world: &'a dyn World,
        journal: Journal,
        who: Who,
        (stop, signal): (CancellationToken, &'a (dyn Fn() -> String + Sync)),
    ) -> Runner<'a> {
        let state = RunState::of(journal.lines());
        Runner { book, config, world, stop, signal, who, journal, state, approve: false }
    }

    /// Where the run stands.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Begins a new run with these parameters; one that is open is given up.
    ///
    /// # Errors
    ///
    /// The journal's.
    pub fn begin(&mut self, params: BTreeMap<String, String>) -> Result<(), JournalError> {
        let who = self.who.clone();
        if self.state.is_open() {
            self.note(Event::Abandoned { who: who.clone() })?;
        }
        self.state.run += 1;
        self.note(journal::begin(who, self.book, &self.config.link, params))
    }

    /// Goes on with the run that is open; `approve`: the step that waits for a person is approved.
    ///
    /// # Errors
    ///
    /// The journal's.
    pub fn resume(&mut self, approve: bool) -> Result<(), JournalError> {
        self.approve = approve;
        self.note(Event::Resume { who: self.who.clone() })
    }

    /// Does what is left to do.
    ///
    /// # Errors
    ///
    /// The journal cannot be written; what it did not announce was not begun.
    pub async fn go(&mut self) -> Result<Ended, JournalError> {
        let count = self.book.steps.len();
        while let Some(index) = self.state.position {
            let Some(step) = self.book.steps.get(index) else { break };
            let place = format!("[{}/{count}] {}", index + 1, step.name);
            if self.stop.is_cancelled()
                && let Some(ended) = self.end(index, step, &place, Outcome::Stopped)?
            {
                return Ok(ended);
            }
            if let Some(why) = self.leave_out(step) {
                self.world.say(&format!("{place}: skipped, {why}"));
                self.note(Event::Skipped { step: step.name.clone(), why })?;
                continue;
            }
            let begun = self.start(index, step, &place)?;
            let outcome = match begun {
                Ok(window) => steps::run(self, step, window).await?,
                Err(wrong) => Outcome::Failed(wrong),
            };
            self.world.live("");
            if let Some(ended) = self.end(index, step, &place, outcome)? {
                return Ok(ended);
            }
        }
        if !self.state.over {
            let failed = self.state.failed();
            self.note(Event::End { failed })?;
        }
        Ok(Ended::Done)
    }

    /// Why the step is skipped, if it is.
    fn leave_out(&self, step: &Step) -> Option<String> {
        let of = self.state.steps.get(step.when_failed?)?;
        (of.word != StepWord::Failed).then(|| format!("`{}` did not fail", of.name))
    }

    /// Announces the step. Its window is what it was before a break, as the times it rests on have not changed.
    fn start(
        &mut self,
        index: usize,
        step: &Step,
        place: &str,
    ) -> Result<Result<Option<[SystemTime; 2]>, String>, JournalError> {
        let (open, attempt) = self.state.steps.get(index).map_or((false, 0), |s| (s.is_open(), s.attempt));
        let window = step.kind.window().map(|window| window.resolve(|base| self.time(base)));
        let window = window.transpose().map(|window| window.map(|(from, to)| [from, to]));
        let told = window.as_ref().ok().and_then(|window| window.map(|ends| ends.map(rfc3339)));
        let between = told.as_ref().map(|[from, to]| format!(" ({from} to {to})")).unwrap_or_default();
        let again = if open { ", again after a break" } else { "" };
        let does = words::does(&step.kind, &self.state.params);
        self.world.say(&format!("{place}: {does}{between}{again}"));
        self.note(Event::Started {
            step: step.name.clone(),
            attempt: if open { attempt.max(1) } else { attempt + 1 },
            resumed: open,
            window: told,
        })?;
        Ok(window)
    }

    /// Writes down what came of the step; how the run left off, if it did.
    fn end(
        &mut self,
        index: usize,
        step: &Step,
        place: &str,
        outcome: Outcome,
    ) -> Result<Option<Ended>, JournalError> {
        let name = step.name.clone();
        let (outcome, code, by) = match outcome {
            Outcome::Done(outcome, by) => {
                self.note(Event::Done { step: name, outcome: outcome.clone(), by })?;
                self.world.say(&format!("{place}: done, {outcome}{}", self.took(index)));
                return Ok(None);
            }
            Outcome::Waits(what) => {
                self.note(Event::Waiting { step: name.clone(), what: what.clone() })?;
                self.world.say(&format!("{place}: waits, {what}"));
                return Ok(Some(Ended::Waits { step: name }));
            }
            Outcome::Stopped => {
                let signal = (self.signal)();
                self.note(Event::Interrupted { step: name.clone(), signal: signal.clone() })?;
                self.world.say(&format!("{place}: stopped by {signal}"));
                return Ok(Some(Ended::Stopped { step: name }));
            }
            Outcome::No(outcome, by) => (outcome, 1, by),
            Outcome::Failed(outcome) => (outcome, 3, None),
        };
        let jumps = self.state.steps.get(index).map_or(0, |step| step.jumps);
        let then = match step.on_failure {
            // What could not be done is no answer: to go on would be to go on in the dark.
            _ if code != 1 => "stop".to_owned(),
            OnFailure::Stop => "stop".to_owned(),
            OnFailure::Continue => "continue".to_owned(),
            OnFailure::GoTo { step, attempts } => match self.book.steps.get(step) {
                Some(to) if jumps < attempts => to.name.clone(),
                _ => "stop".to_owned(),
            },
        };
        let next = match then.as_str() {
            "stop" => "the run stops".to_owned(),
            "continue" => "the run goes on".to_owned(),
            step => format!("the run goes to `{step}`"),
        };
        let stops = then == "stop";
        self.note(Event::Failed { step: name.clone(), outcome: outcome.clone(), code, then, by })?;
        self.world.say(&format!("{place}: failed, {outcome}{}; {next}", self.took(index)));
        Ok(stops.then_some(Ended::Failed { step: name, code }))
    }

    fn took(&self, index: usize) -> String {
        let step = self.state.steps.get(index);
        let took = step.and_then(|step| step.ended_at()?.duration_since(step.started_at()?).ok());
        took.map(|took| format!(" ({})", format_duration(took))).unwrap_or_default()
    }

    /// What a time of the runbook rests on.
    pub(super) fn time(&self, base: &Base) -> Option<SystemTime> {
        let step = |name: &String| self.state.steps.iter().find(|step| step.name == *name);
        match base {
            Base::Fixed(time) => Some(*time),
            Base::Param(name) => parse_rfc3339(self.state.params.get(name)?),
            Base::Start(name) => step(name)?.started_at(),
            Base::End(name) => step(name)?.ended_at(),
        }
    }

    /// Adds a line to the journal, and takes it in.
    pub(super) fn note(&mut self, event: Event) -> Result<(), JournalError> {
        let line = self.journal.append(self.world.now(), self.state.run, event)?;
        self.state.take(line);
        Ok(())
    }

    /// What the step noted in this attempt.
    pub(super) fn notes(&self, step: &Step) -> Vec<Note> {
        let state = self.state.steps.iter().find(|state| state.name == step.name);
        state.map(|state| state.notes.clone()).unwrap_or_default()
    }

    /// Where the answer of a program that `step` runs goes, for `channel` or all.
    pub(super) fn answer_file(&self, step: &Step, channel: Option<&str>) -> PathBuf {
        let channel = channel.map(|channel| format!(".{channel}")).unwrap_or_default();
        let name = format!("{}.{}.{}{channel}.json", self.book.name, self.state.run, step.name);
        self.journal.path().with_file_name(name)
    }

    /// Uses up `--approve`.
    pub(super) fn take_approval(&mut self) -> bool {
        std::mem::take(&mut self.approve)
    }
}
