//! `syncd run`: the daemon's life from the checked configuration to the drain.

use std::sync::Arc;
use std::time::Duration;

use indicatif::MultiProgress;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::args::Common;
use super::{Failure, logging, output, progress};
use crate::api;
use crate::config::Config;
use crate::engine::{Daemon, StartError};
use crate::registry::Registry;
use crate::status::Control;

/// Longest drain: a SIGTERM ends the process within 10 s, whatever a store does. The engine gives up on a
/// store that does not answer a little earlier, and closes the log.
const DRAIN_MAX: Duration = Duration::from_secs(8);

/// Longest wait for answers of the interface that are under way at the end.
const INTERFACE_DRAIN_MAX: Duration = Duration::from_millis(500);

pub(super) async fn run(common: &Common, config: &Config) -> Result<(), Failure> {
    if common.channel.is_some() {
        return Err(Failure::Usage("`syncd run` runs every channel; `syncd pause` stops one".to_owned()));
    }
    let bars = MultiProgress::new();
    logging::start(common.json, bars.clone());
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot wait for signals: {error}"));
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate()).map_err(failed)?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
    };
    let connectors = config.open(&Registry::built_in())?;
    // The port first: it tells of a daemon that runs already, before the folder is touched.
    let listener = api::bind(common.address(config)).await.map_err(Failure::Failed)?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::Failed(format!("no address to listen at: {error}")))?;
    let started = tokio::select! {
        started = Daemon::start_at(config, connectors, common.site(config)) => started,
        name = signals.next() => {
            info!(signal = name, "stopped before it had begun");
            return Ok(());
        }
    };
    let engine = started.map_err(|error| match error {
        StartError::EmbeddedLog | StartError::OneWay { .. } => Failure::Usage(error.to_string()),
        error => Failure::Failed(error.to_string()),
    })?;

    let (stop, stopped) = oneshot::channel::<()>();
    let control: Arc<dyn Control> = engine.clone();
    let mut interface = tokio::spawn(api::serve(listener, control.clone(), async {
        let _ = stopped.await;
    }));
    if common.json {
        output::json(&serde_json::json!({ "listening": format!("http://{address}/") }))?;
    } else {
        output::line(&format!("listening on http://{address}/"))?;
    }
    let lines = progress::Lines::start(control, bars);

    let lost = tokio::select! {
        name = signals.next() => {
            info!(signal = name, "stopping");
            None
        }
        ended = &mut interface => Some(format!("the interface at {address} ended: {ended:?}")),
    };
    drop(lines);
    tokio::select! {
        drained = tokio::time::timeout(DRAIN_MAX, engine.stop()) => match drained {
            Ok(()) => {}
            Err(_) => warn!(seconds = DRAIN_MAX.as_secs(), "not everything could be finished in time; the next start goes on from there"),
        },
        name = signals.next() => {
            return Err(Failure::Failed(format!("second {name}: stopped at once; the next start goes on from there")));
        }
    }
    if let Some(reason) = lost {
        return Err(Failure::Failed(reason));
    }
    let _ = stop.send(());
    let _ = tokio::time::timeout(INTERFACE_DRAIN_MAX, interface).await;
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
