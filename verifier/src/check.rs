use std::time::{Duration, Instant};

use crate::cli::Check;
use crate::compare::{Progress, Reader, Settings, Traffic, compare};
use crate::config::{Channel, Config};
use crate::error::{Error, Result};
use crate::html;
use crate::pair::{Task, each};
use crate::report::{ChannelReport, Report};

/// How long a daemon may take to say how it is.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(2);

/// What asks daemons.
///
/// # Errors
///
/// [`Error::Local`].
pub(crate) fn client(timeout: Duration) -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().timeout(timeout).no_proxy().build();
    client.map_err(|e| Error::Local(format!("set up the HTTP client: {e}")))
}

struct Checking;

impl Task for Checking {
    async fn run<R: Reader>(
        &mut self,
        (_, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<ChannelReport> {
        let outcome = compare(sites, traffic, progress, settings).await?;
        Ok(ChannelReport { name: channel.name.clone(), outcome })
    }
}

/// Runs `verifier check`; whether both sites are equal.
///
/// # Errors
///
/// [`Error::Usage`] and [`Error::Store`]; no result is printed then. [`Error::Local`] if the page cannot be
/// written.
pub(crate) async fn run(arguments: &Check) -> Result<bool> {
    let start = Instant::now();
    let (config, channels) = each(&arguments.common, arguments.list_max, &mut Checking).await?;
    let report = Report {
        link: config.link,
        sites: config.sites,
        tenant: arguments.common.tenant.clone(),
        took: start.elapsed(),
        list_max: arguments.list_max,
        channels,
    };
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
