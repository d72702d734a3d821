//! Where a run stands: what its journal's lines come to. Nothing else is kept.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use super::journal::{Event, Line, Note, Who};
use crate::status::parse_rfc3339;

/// A run, as its journal tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunState {
    /// Counts the runs of the runbook, from 1; 0: there was none.
    pub run: u64,
    /// SHA-256 of the runbook's text when it began.
    pub digest: String,
    /// The link of the configuration.
    pub link: String,
    /// The parameters' values.
    pub params: BTreeMap<String, String>,
    /// When it began.
    pub begun: Option<String>,
    /// When its last line was written.
    pub last: Option<String>,
    /// Who began it, or went on with it last.
    pub who: Option<Who>,
    /// In the order of the file.
    pub steps: Vec<StepState>,
    /// The step that is under way, or comes next; `None`: nothing is left.
    pub position: Option<usize>,
    /// It is over: at its end, or given up.
    pub over: bool,
}

/// One step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct StepState {
    /// Its name.
    pub name: String,
    /// What became of it the last time.
    pub word: StepWord,
    /// How often the run came to it.
    pub attempt: u32,
    /// When this attempt began; a break does not change it.
    pub started: Option<String>,
    /// When this attempt ended.
    pub ended: Option<String>,
    /// What came of it, or what it waits for.
    pub outcome: Option<String>,
    /// Who approved, or said no.
    pub by: Option<Who>,
    /// How often its failure was answered by going to another step.
    pub jumps: u32,
    pub(super) notes: Vec<Note>,
    pub(super) code: u8,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepWord {
    /// The run did not come to it.
    Pending,
    /// It is under way, or the runner died in it.
    Started,
    /// It waits for a person.
    Waiting,
    /// The runner was stopped in it.
    Interrupted,
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It was left out.
    Skipped,
}

impl StepWord {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            StepWord::Pending => "pending",
            StepWord::Started => "started",
            StepWord::Waiting => "waiting",
            StepWord::Interrupted => "interrupted",
            StepWord::Done => "done",
            StepWord::Failed => "failed",
            StepWord::Skipped => "skipped",
        }
    }
}

impl StepState {
    pub(super) fn started_at(&self) -> Option<SystemTime> {
        parse_rfc3339(self.started.as_deref()?)
    }

    pub(super) fn ended_at(&self) -> Option<SystemTime> {
        parse_rfc3339(self.ended.as_deref()?)
    }

    /// It began and has not come to an end.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.word, StepWord::Started | StepWord::Waiting | StepWord::Interrupted)
    }
}

impl RunState {
    /// The last run of a journal.
    pub fn of(lines: &[Line]) -> RunState {
        let mut state = RunState::default();
        for line in lines {
            state.take(line);
        }
        state
    }

    pub(super) fn take(&mut self, line: &Line) {
        self.last = Some(line.time.clone());
        match &line.event {
            Event::Begin { who, digest, link, params, steps, .. } => {
                let fresh = |name: &String| StepState {
                    name: name.clone(),
                    word: StepWord::Pending,
                    attempt: 0,
                    started: None,
                    ended: None,
                    outcome: None,
                    by: None,
                    jumps: 0,
                    notes: Vec::new(),
                    code: 0,
                };
                *self = RunState {
                    run: line.run,
                    digest: digest.clone(),
                    link: link.clone(),
                    params: params.clone(),
                    begun: Some(line.time.clone()),
                    last: self.last.take(),
                    who: Some(who.clone()),
                    steps: steps.iter().map(fresh).collect(),
                    position: Some(0),
                    over: false,
                };
            }
            Event::Resume { who } => self.who = Some(who.clone()),
            Event::Torn { .. } => {}
            Event::Abandoned { .. } => self.over = true,
            Event::End { .. } => (self.over, self.position) = (true, None),
            Event::Started { step, attempt, resumed, .. } => self.step(step, |step| {
                // A break inside an attempt keeps when it began and what it noted.
                if !*resumed || step.attempt != *attempt {
                    (step.attempt, step.started, step.notes) =
                        (*attempt, Some(line.time.clone()), Vec::new());
                }
                (step.word, step.ended, step.outcome, step.by) = (StepWord::Started, None, None, None);
            }),
            Event::Note { step, note } => self.step(step, |step| step.notes.push(note.clone())),
            Event::Waiting { step, what } => self.step(step, |step| {
                (step.word, step.outcome) = (StepWord::Waiting, Some(what.clone()));
            }),
            Event::Interrupted { step, signal } => self.step(step, |step| {
                (step.word, step.outcome) = (StepWord::Interrupted, Some(format!("stopped by {signal}")));
            }),
            Event::Skipped { step, why } => {
                self.step(step, |step| {
                    (step.word, step.outcome) = (StepWord::Skipped, Some(why.clone()));
                    (step.started, step.ended) = (None, Some(line.time.clone()));
                });
                self.goes_to(step, 1);
            }
            Event::Done { step, outcome, by } => {
                self.ends(line, step, StepWord::Done, outcome, 0, by);
                self.goes_to(step, 1);
            }
            Event::Failed { step, outcome, code, then, by } => {
                self.ends(line, step, StepWord::Failed, outcome, *code, by);
                match then.as_str() {
                    "stop" => self.goes_to(step, 0),
                    "continue" => self.goes_to(step, 1),
                    next => {
                        self.step(step, |step| step.jumps += 1);
                        self.goes_to(next, 0);
                    }
                }
            }
        }
    }

    fn step(&mut self, name: &str, change: impl FnOnce(&mut StepState)) {
        if let Some(step) = self.steps.iter_mut().find(|step| step.name == name) {
            change(step);
        }
    }

    fn ends(&mut self, line: &Line, step: &str, word: StepWord, outcome: &str, code: u8, by: &Option<Who>) {
        self.step(step, |step| {
            (step.word, step.outcome, step.code) = (word, Some(outcome.to_owned()), code);
            (step.ended, step.by) = (Some(line.time.clone()), by.clone());
        });
    }

    /// The step `beyond` that one comes next.
    fn goes_to(&mut self, step: &str, beyond: usize) {
        let place = self.steps.iter().position(|known| known.name == step);
        self.position = place.map(|place| place + beyond).filter(|place| *place < self.steps.len());
    }

    /// Names of the steps whose last word is `failed`.
    pub fn failed(&self) -> Vec<String> {
        let failed = self.steps.iter().filter(|step| step.word == StepWord::Failed);
        failed.map(|step| step.name.clone()).collect()
    }

    /// There is a run that is not over.
    pub fn is_open(&self) -> bool {
        self.run > 0 && !self.over
    }
}
