//! `syncd cleanup`: the stores as they were before Causeway, with the data that is there now.

use causeway_core::Site;

use super::args::Common;
use super::client::Client;
use super::{Failure, output};
use crate::config::Config;
use crate::log::{EmbeddedLog, EmbeddedOptions, Log};
use crate::registry::Registry;

pub(super) async fn cleanup(common: &Common, config: &Config) -> Result<(), Failure> {
    let address = common.address(config);
    if Client::new(address)?.answers().await {
        return Err(Failure::Failed(format!(
            "a daemon answers at {address}; stop it first: what it needs would be taken away under it"
        )));
    }
    // A daemon that listens elsewhere holds the log's folder.
    let log = match config.log.dir.is_dir() {
        true => Some(EmbeddedLog::open(&config.log.dir, EmbeddedOptions::default()).await),
        false => None,
    };
    let log = log.transpose().map_err(|error| Failure::Failed(error.to_string()))?;
    let connectors = config.open(&Registry::built_in())?;
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for (channel, connector) in config.channels.iter().zip(connectors) {
        if common.channel.as_ref().is_some_and(|only| *only != channel.name) {
            continue;
        }
        for site in Site::BOTH {
            let name = config.site_name(site);
            if common.site.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            match connector.cleanup(site).await {
                Ok(removed) => {
                    if !common.json {
                        output::line(&format!("channel {} at {name}: {removed} keys removed", channel.name))?;
                    }
                    done.push(
                        serde_json::json!({ "channel": channel.name, "site": name, "removed": removed }),
                    );
                }
                Err(error) => failures.push(format!("channel {} at {name}: {error}", channel.name)),
            }
        }
    }
    if let Some(log) = log {
        log.close().await;
    }
    if common.json {
        output::json(&done)?;
    } else if config.log.dir.exists() {
        let dir = config.log.dir.display();
        output::line(&format!("The change log stays in {dir}; remove that folder to begin from nothing."))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("\n       "))) }
}
