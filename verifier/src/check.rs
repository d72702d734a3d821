use causeway_core::time::now_ms;

use crate::cli::Check;
use crate::compare::{Outcome, Progress, Settings, Traffic, compare, compare_named};
use crate::config::{Channel, Config};
use crate::error::Result;
use crate::pair::{Task, each};
use crate::results::Results;
use crate::show::tell;
use crate::undo::Undoable;
use crate::window::{Window, Written};

struct Checking {
    window: Option<Window>,
    /// Up to when what was written in it is known, of each channel.
    until: Vec<Option<u64>>,
}

impl Task for Checking {
    async fn run<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        let Some(window) = self.window else { return compare(sites, traffic, progress, settings).await };
        let mut written = Written::ask(config, &channel.name, window).await?;
        let outcome = compare_named(sites, &mut written, traffic, progress, settings).await?;
        self.until.push(written.until());
        Ok(outcome)
    }
}

/// Runs `verifier check`; whether both sites are equal.
///
/// # Errors
///
/// [`Error::Usage`](crate::error::Error::Usage) and [`Error::Store`](crate::error::Error::Store); no result is printed then. [`Error::Local`](crate::error::Error::Local) if the page cannot be
/// written, or what was written in a window is not known.
pub(crate) async fn run(arguments: &Check) -> Result<bool> {
    let window = Window::new(arguments.from, arguments.to)?;
    // A result that cannot be written is told before the work is done.
    arguments.result.as_deref().map(Results::create).transpose()?;
    let began = now_ms();
    let mut task = Checking { window, until: Vec::new() };
    let mut report = each(&arguments.common, arguments.list_max, &mut task).await?;
    report.window = window.map(|window| (window, task.until.into_iter().min().flatten()));
    tell(&report, began, arguments.json, arguments.html.as_deref(), arguments.result.as_deref())?;
    Ok(report.equal())
}
