//! `verifier report`: what a run found, from the result file.

use std::path::Path;

use causeway_core::time::{now_ms, rfc3339};
use serde_json::json;

use crate::cli::ReportOf;
use crate::error::{Error, Result};
use crate::html;
use crate::report::{Report, grouped};
use crate::results::{Results, Run};

/// Runs of which a page shows how they went.
const HISTORY: usize = 60;

/// Shows a run; whether it found both sites equal.
///
/// # Errors
///
/// [`Error::Usage`] if there is no such run, and [`Error::Local`] if the page cannot be written.
pub(crate) fn run(arguments: &ReportOf) -> Result<bool> {
    let results = Results::open(&arguments.file)?;
    if arguments.list {
        let runs = results.runs(usize::MAX)?;
        print!("{}", if arguments.json { lines(&runs) } else { table(&runs) });
        return Ok(runs.last().is_none_or(|run| run.equal));
    }
    let (report, began) = results.read(arguments.run)?;
    if let Some(path) = &arguments.html {
        write_page(path, &report, began, &results.runs(HISTORY)?)?;
    }
    if arguments.json {
        println!("{}", report.json());
    } else {
        println!("checked {}", rfc3339(began));
        print!("{}", report.text());
    }
    Ok(report.equal())
}

/// Tells what came of a check that began at `began`: prints it, writes it as a page, and adds it to a result file.
///
/// # Errors
///
/// [`Error::Local`] if one of them cannot be written; [`Error::Usage`] if the result file is another one.
pub(crate) fn tell(
    report: &Report,
    began: u64,
    json: bool,
    html: Option<&Path>,
    result: Option<&Path>,
) -> Result<()> {
    let history = match result {
        Some(path) => {
            let mut results = Results::create(path)?;
            results.add(report, began)?;
            results.runs(HISTORY)?
        }
        None => Vec::new(),
    };
    if let Some(path) = html {
        write_page(path, report, now_ms(), &history)?;
    }
    if json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

fn write_page(path: &Path, report: &Report, time: u64, history: &[Run]) -> Result<()> {
    std::fs::write(path, html::page(report, time, history))
        .map_err(|e| Error::Local(format!("write the page {}: {e}", path.display())))
}

fn lines(runs: &[Run]) -> String {
    let line = |run: &Run| {
        let window =
            run.window.map(|window| json!({ "from": rfc3339(window.from), "to": rfc3339(window.to) }));
        let json = json!({
            "run": run.id,
            "began": rfc3339(run.began),
            "equal": run.equal,
            "compared": run.compared,
            "different": run.different,
            "undecided": run.undecided,
            "window": window,
        });
        format!("{json}\n")
    };
    runs.iter().map(line).collect()
}

fn table(runs: &[Run]) -> String {
    let mut out = format!(
        "{:>6}  {:<24}  {:>15}  {:>11}  {:>11}  of\n",
        "run", "began", "compared", "different", "undecided"
    );
    for run in runs {
        let of = if run.window.is_some() { "a window" } else { "everything" };
        out += &format!(
            "{:>6}  {:<24}  {:>15}  {:>11}  {:>11}  {of}\n",
            run.id,
            rfc3339(run.began),
            grouped(run.compared),
            grouped(run.different),
            grouped(run.undecided)
        );
    }
    out
}
