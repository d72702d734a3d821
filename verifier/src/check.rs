use causeway_core::time::now_ms;

use crate::cli::Check;
use crate::compare::{ByTime, Outcome, Progress, Sample, Settings, Traffic, compare, compare_named};
use crate::config::{Channel, Config};
use crate::error::{Error, Result};
use crate::pair::{Task, each};
use crate::results::Results;
use crate::show::tell;
use crate::undo::Undoable;
use crate::window::{Window, Written};

struct Checking<'a> {
    /// Rows tell themselves when they were written.
    time_column: Option<&'a str>,
    /// Only what they say at this site.
    at: Option<&'a str>,
    window: Option<Window>,
    sample: Option<Sample>,
    /// Up to when what was written in it is known, of each channel.
    until: Vec<Option<u64>>,
}

impl Task for Checking<'_> {
    async fn run<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        mut settings: Settings,
    ) -> Result<Outcome> {
        settings.sample = self.sample;
        let Some(window) = self.window else { return compare(sites, traffic, progress, settings).await };
        if let Some(column) = self.time_column {
            let place = |at| config.sites.iter().position(|site| site == at);
            let at = match (self.at, self.at.and_then(place)) {
                (Some(at), None) => {
                    let sites = config.sites.join(" or ");
                    return Err(Error::Usage(format!("--at {at}: no such site, allowed is {sites}")));
                }
                (_, at) => at,
            };
            let mut rows = ByTime::new(sites, (column, window), at).await?;
            self.until.push(Some(window.to));
            return compare_named(sites, &mut rows, traffic, progress, settings).await;
        }
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
/// Those of [`each`] and [`tell`]; no result is printed then.
pub(crate) async fn run(arguments: &Check) -> Result<bool> {
    let window = Window::new(arguments.from, arguments.to)?;
    // A result that cannot be written is told before the work is done.
    arguments.result.as_deref().map(Results::create).transpose()?;
    let began = now_ms();
    let per_million = |percent: f64| (percent * 10_000.0).round() as u32;
    let sample = arguments.sample.map(|share| Sample { per_million: per_million(share).max(1), seed: began });
    let time_column = arguments.time_column.as_deref();
    let at = arguments.at.as_deref();
    let mut task = Checking { time_column, at, window, sample, until: Vec::new() };
    let mut report = each(&arguments.common, arguments.list_max, &mut task).await?;
    report.window = window.map(|window| (window, task.until.into_iter().min().flatten()));
    report.sample = sample;
    tell(&report, began, arguments.json, arguments.html.as_deref(), arguments.result.as_deref())?;
    Ok(report.equal())
}
