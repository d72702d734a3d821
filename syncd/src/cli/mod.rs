//! The command line: `syncd run|check|status|…` (DESIGN.md §10).
//!
//! Results go to stdout, as text for a person or with `--json`; logs and errors go to stderr. Exit codes:
//! 0 done, 1 the answer is "no", 2 bad use or bad configuration, 3 could not reach or failed.

mod args;
mod backfill;
mod check;
mod cleanup;
mod client;
mod commands;
mod conflicts;
mod dead_letters;
mod logging;
mod output;
mod programs;
mod progress;
mod run;
mod runbook;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, ConfigError};
use args::{
    Args, Command, ConflictsArgs, ConflictsCommand, DeadLettersArgs, DeadLettersCommand, DeadLettersListArgs,
};

/// Why a command did not do what it was asked to; decides the exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// 1: it was done, and the answer is "no". Holds nothing to say where the result said it.
    No(Option<String>),
    /// 2: it was asked wrongly, or the configuration is wrong.
    Usage(String),
    /// 3: something could not be reached, or failed.
    Failed(String),
}

impl Failure {
    /// Of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::No(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Failed(_) => 3,
        }
    }

    fn message(&self) -> Option<&str> {
        match self {
            Failure::No(message) => message.as_deref(),
            Failure::Usage(message) | Failure::Failed(message) => Some(message),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

/// Parses `args` (the program's name first), does what they ask, and returns the process's exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        // Help is an answer and goes to stdout with 0; anything else is bad use.
        Err(answer) => {
            let _ = answer.print();
            return ExitCode::from(if answer.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Failed(format!("cannot start threads: {error}"))),
    };
    let done = runtime.block_on(dispatch(&args));
    // Nothing that still runs may hold up the exit.
    runtime.shutdown_background();
    done.map_or_else(|failure| report(&failure), |()| ExitCode::SUCCESS)
}

fn report(failure: &Failure) -> ExitCode {
    if let Some(message) = failure.message() {
        eprintln!("syncd: {message}");
    }
    ExitCode::from(failure.exit_code())
}

async fn dispatch(args: &Args) -> Result<(), Failure> {
    if let Some(name) = args.command.later() {
        return Err(Failure::Usage(format!("`syncd {name}` is not in this release")));
    }
    let config = Config::load(&args.common.config)?;
    args.common.fits(&config)?;
    match &args.command {
        Command::Run(_) => run::run(&args.common, &config).await,
        Command::Check => check::check(&args.common, &config).await,
        Command::Status(status) => commands::status(&args.common, &config, status.watch).await,
        Command::Pause => commands::pause(&args.common, &config).await,
        Command::Resume(resume) => commands::resume(&args.common, &config, resume.held).await,
        Command::Snapshot => commands::snapshot(&args.common, &config).await,
        Command::DeadLetters(DeadLettersArgs { asked }) => match asked {
            None => dead_letters::list(&args.common, &config, &DeadLettersListArgs::default()).await,
            Some(DeadLettersCommand::List(list)) => dead_letters::list(&args.common, &config, list).await,
            Some(DeadLettersCommand::Ack(ack)) => dead_letters::ack(&args.common, &config, ack).await,
        },
        Command::Conflicts(ConflictsArgs { asked }) => match asked {
            None => conflicts::count(&args.common, &config).await,
            Some(ConflictsCommand::List(list)) => conflicts::list(&args.common, &config, list).await,
            Some(ConflictsCommand::Show { id }) => conflicts::show(&args.common, &config, *id).await,
        },
        Command::Cleanup => cleanup::cleanup(&args.common, &config).await,
        Command::Runbook(asked) => runbook::runbook(&args.common, &config, &asked.asked).await,
        Command::Backfill(window) => backfill::backfill(&args.common, &config, window).await,
        Command::Tenant(_) | Command::Doctor(_) => Ok(()),
    }
}
