//! Proves that both sites of a link hold the same.
//!
//! `check` reads every key of both sites by another road than the copy took, digests its canonical content,
//! and compares the digests; a difference counts only if it outlives the traffic. Results go to standard
//! output, progress and errors to standard error. Exit codes: 0 equal, 1 different or undecided, 2 bad use
//! or configuration, 3 could not reach or failed.

mod check;
mod cli;
mod compare;
mod config;
mod daemon;
mod digest;
mod elasticsearch;
mod error;
mod filter;
mod html;
mod mysql;
mod pace;
mod pair;
mod progress;
mod redis;
mod repair;
mod report;
mod results;
mod show;
mod site;
mod undo;
mod watch;
mod window;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check(arguments) => check::run(&arguments).await,
        Command::Repair(arguments) => repair::run(&arguments).await,
        Command::Undo(arguments) => undo::run(&arguments).await,
        Command::Watch(arguments) => watch::run(&arguments).await,
        Command::Report(arguments) => show::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("verifier: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
