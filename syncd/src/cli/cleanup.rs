//! `syncd cleanup`: the stores as they were before Causeway, with the data that is there now.

use super::args::Common;
use super::client::Client;
use super::{Failure, output};
use crate::config::{Config, LogStore};
use crate::log::{self, EmbeddedLog, EmbeddedOptions, Log};
use crate::registry::Registry;

pub(super) async fn cleanup(common: &Common, config: &Config) -> Result<(), Failure> {
    let address = common.address(config);
    if Client::new(address)?.answers().await {
        return Err(Failure::Failed(format!(
            "a daemon answers at {address}; stop it first: what it needs would be taken away under it"
        )));
    }
    // A daemon that listens elsewhere holds the folder.
    let dir = &config.log.dir;
    let kafka = matches!(config.log.store, LogStore::Kafka { .. });
    let failed = |error: log::Error| Failure::Failed(error.to_string());
    let (mut embedded, mut _held) = (None, None);
    if dir.is_dir() && kafka {
        _held = Some(log::take_lock(dir).map_err(failed)?);
    } else if dir.is_dir() {
        embedded = Some(EmbeddedLog::open(dir, EmbeddedOptions::default()).await.map_err(failed)?);
    }
    let connectors = config.open(&Registry::built_in())?;
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for (channel, connector) in config.channels.iter().zip(connectors) {
        if common.channel.as_ref().is_some_and(|only| *only != channel.name) {
            continue;
        }
        for site in common.sites(config) {
            let name = config.site_name(site);
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
    if let Some(log) = embedded {
        log.close().await;
    }
    if common.json {
        output::json(&done)?;
    } else if kafka {
        let topics = format!("causeway.{}.*", config.link);
        output::line(&format!("The topics {topics} stay in Kafka; delete them to begin from nothing."))?;
    } else if dir.exists() {
        let dir = dir.display();
        output::line(&format!("The change log stays in {dir}; remove that folder to begin from nothing."))?;
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("\n       "))) }
}
