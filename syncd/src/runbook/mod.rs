//! Runbooks: YAML files of steps that are checked as a whole, run, and gone on with after a crash (docs/RUNBOOKS.md).
//!
//! | module | holds |
//! |---|---|
//! | `tree` | YAML as a tree that knows its lines and columns, within bounds |
//! | `book`, `parse`, `when` | what a runbook says, and how it is read and checked against the configuration |
//! | `words` | the plan in words |
//! | `journal`, `state` | what happened, durably, and where that leaves a run |
//! | `world` | what a run needs from outside: the daemon, programs, a clock, a person |
//! | `run`, `steps` | the run itself, and each kind of step |
//!
//! The engine's side of a run is the daemon's interface and programs beside it; nothing here touches a store or a log.

mod book;
mod journal;
mod parse;
mod run;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod tree;
mod when;
mod words;
mod world;

pub use book::{Kind, OnFailure, Runbook, Step};
pub use journal::{Event, Journal, JournalError, Line, Note, Who, folder, read};
pub use run::{Ended, Runner};
pub use state::{RunState, StepState, StepWord};
pub use when::parse_set;
pub use words::{PlannedStep, plan};
pub use world::{Exit, Program, Refusal, World};
