use crate::cli::Check;
use crate::compare::{Outcome, Progress, Reader, Settings, Traffic, compare};
use crate::config::{Channel, Config};
use crate::error::{Error, Result};
use crate::html;
use crate::pair::{Task, each};

struct Checking;

impl Task for Checking {
    async fn run<R: Reader>(
        &mut self,
        _: (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        compare(sites, traffic, progress, settings).await
    }
}

/// Runs `verifier check`; whether both sites are equal.
///
/// # Errors
///
/// [`Error::Usage`] and [`Error::Store`]; no result is printed then. [`Error::Local`] if the page cannot be
/// written.
pub(crate) async fn run(arguments: &Check) -> Result<bool> {
    let report = each(&arguments.common, arguments.list_max, &mut Checking).await?;
    if let Some(path) = &arguments.html {
        std::fs::write(path, html::page(&report))
            .map_err(|e| Error::Local(format!("write the page {}: {e}", path.display())))?;
    }
    if arguments.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(report.equal())
}
