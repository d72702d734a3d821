use std::time::{Duration, Instant};

use crate::cli::Check;
use crate::compare::{Judge, Settings, compare};
use crate::config::{self, Store, Wanted};
use crate::daemon::Daemons;
use crate::error::{Error, Result};
use crate::progress::Bar;
use crate::report::{ChannelReport, Report};
use crate::{html, mysql, redis};

/// How often a key that differs is read again before it is undecided.
const ROUNDS_MAX: usize = 6;

/// How long a daemon may take to answer.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs `verifier check`; whether both sites are equal.
///
/// # Errors
///
/// [`Error::Usage`] and [`Error::Store`]; no result is printed then. [`Error::Local`] if the page cannot be
/// written.
pub(crate) async fn run(arguments: &Check) -> Result<bool> {
    // There is one provider in this build; set, so that no other crate's default decides.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wanted = Wanted { channel: arguments.channel.clone(), tenant: arguments.tenant.clone() };
    let config = config::load(&arguments.config, &wanted)?;
    let client = reqwest::Client::builder()
        .timeout(API_TIMEOUT)
        .no_proxy()
        .build()
        .map_err(|e| Error::Local(format!("set up the HTTP client: {e}")))?;
    let settings = Settings {
        judge: Judge { expiry_tolerance_ms: arguments.expiry_tolerance.as_millis() as u64 },
        list_max: arguments.list_max,
        rounds_max: ROUNDS_MAX,
    };

    let start = Instant::now();
    let mut channels = Vec::new();
    for channel in &config.channels {
        let traffic = Daemons::new(&client, &config.apis, &channel.name, arguments.settle);
        let (bar, rate) = (Bar::new(&channel.name), arguments.ops_per_second);
        let outcome = match &channel.store {
            Store::Redis(scope) => {
                let [first, second] = redis::open_pair(channel, scope, &config.sites, rate).await?;
                compare([&first, &second], &traffic, &bar, settings).await?
            }
            Store::Mysql(tables) => {
                let [first, second] = mysql::open_pair(channel, tables, &config.sites, rate).await?;
                compare([&first, &second], &traffic, &bar, settings).await?
            }
        };
        channels.push(ChannelReport { name: channel.name.clone(), outcome });
    }
    let report = Report {
        link: config.link,
        sites: config.sites,
        tenant: arguments.tenant.clone(),
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
