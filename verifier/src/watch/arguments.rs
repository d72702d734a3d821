use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::{Common, duration};

/// Exit code, once it is told to stop: 0 nothing differs, 1 something does, or everything was never compared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  verifier watch --config syncd.toml --listen 127.0.0.1:7401
  verifier watch --config syncd.toml --every 30s --whole-every 12h --ops-per-second 20000
  verifier watch --config syncd.toml --for 10m --json        for a script")]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often what was lately written is compared, as the daemon's logs name it
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    pub(crate) every: Duration,
    /// How often everything is compared, from one begin to the next; it may take longer
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub(crate) whole_every: Duration,
    /// End after so long
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) for_time: Option<Duration>,
    /// Serve metrics for Prometheus there, at /metrics
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Add the result of each comparison of everything to this file, which SQLite reads, and `report` and `repair`
    #[arg(long, value_name = "FILE")]
    pub(crate) result: Option<PathBuf>,
    /// Print what happens as JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// How many keys that differ are watched until they are equal; all are counted
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) list_max: usize,
}
