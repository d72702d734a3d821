//! What can be asked, and the help that says so.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use super::Failure;
use crate::config::Config;
use crate::status::HeldAnswer;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  syncd check  --config syncd.toml            what stands in the way, before anything is copied
  syncd run    --config syncd.toml            the daemon, with its page at http://127.0.0.1:7400/
  syncd status --config syncd.toml --watch    phase, progress, lag
  syncd pause  --config syncd.toml --channel tags
  syncd resume --config syncd.toml --channel tags --held drop

Exit codes: 0 done, 1 the answer is \"no\",
            2 bad use or bad configuration, 3 could not reach or failed.";

/// Keeps the stores of two sites equal while both serve traffic.
#[derive(Debug, Parser)]
#[command(name = "syncd", version, after_help = EXAMPLES, styles = STYLES, max_term_width = 100)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// The configuration file.
    #[arg(
        long,
        short,
        global = true,
        value_name = "FILE",
        default_value = "syncd.toml",
        env = "SYNCD_CONFIG"
    )]
    pub(super) config: PathBuf,
    /// Results as JSON; `run` writes its log as JSON, too.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Where the daemon serves its interface, instead of the configuration's api.listen.
    #[arg(long, global = true, value_name = "IP:PORT")]
    pub(super) listen: Option<SocketAddr>,
    /// Only this channel.
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) channel: Option<String>,
    /// Only this site.
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) site: Option<String>,
    /// Only this tenant.
    #[arg(long, global = true, value_name = "ID")]
    pub(super) tenant: Option<String>,
}

impl Common {
    /// Where the daemon serves its interface.
    pub(super) fn address(&self, config: &Config) -> SocketAddr {
        self.listen.unwrap_or(config.api.listen)
    }

    /// Refuses names that the configuration doesn't have, and what this release cannot do with them.
    pub(super) fn fits(&self, config: &Config) -> Result<(), Failure> {
        if let Some(channel) = self.channel.as_ref().filter(|name| config.channel(name).is_none()) {
            let known: Vec<_> = config.channels.iter().map(|channel| channel.name.as_str()).collect();
            return Err(Failure::Usage(format!("--channel `{channel}`: there is {}", known.join(", "))));
        }
        if let Some(site) = self.site.as_ref().filter(|name| !config.sites.contains(name)) {
            return Err(Failure::Usage(format!("--site `{site}`: there is {}", config.sites.join(", "))));
        }
        if self.tenant.is_some() {
            return Err(Failure::Usage("--tenant is not in this release".to_owned()));
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the daemon until SIGTERM or Ctrl-C; then what is under way is finished.
    #[command(after_help = "\
Example:
  syncd run --config syncd.toml --listen 127.0.0.1:7400")]
    Run(RunArgs),
    /// Looks at every channel's servers and says what stands in the way; changes nothing.
    #[command(
        after_help = "Exit code: 0 nothing stands in the way, 1 something does, 3 a server is out of reach."
    )]
    Check,
    /// Phase, progress, lag and counts of every channel.
    Status(StatusArgs),
    /// Stops a channel, or all, in an orderly way.
    Pause,
    /// Lets a paused channel go on, and answers what is held.
    #[command(after_help = "\
Example: a FLUSHALL at one site is held; the other site shall keep its data:
  syncd resume --channel tags --held drop")]
    Resume(ResumeArgs),
    /// Starts a channel's snapshot again; needs --channel.
    Snapshot,
    /// What the targets refused.
    DeadLetters,
    /// How many concurrent writes were decided.
    Conflicts,
    /// Takes everything that is ours out of both sites' stores: markers, tokens, unfinished pieces.
    #[command(after_help = "The daemon must not run. Your own data stays as it is.")]
    Cleanup,
    /// Moves tenants from site to site (a later release).
    Tenant(Later),
    /// Runs a plan of steps (a later release).
    Runbook(Later),
    /// Closes a window of time (a later release).
    Backfill(Later),
    /// Compares the sites' configuration (a later release).
    Doctor(Later),
}

impl Command {
    /// Its name, if it is of a later release.
    pub(super) fn later(&self) -> Option<&'static str> {
        match self {
            Command::Tenant(_) => Some("tenant"),
            Command::Runbook(_) => Some("runbook"),
            Command::Backfill(_) => Some("backfill"),
            Command::Doctor(_) => Some("doctor"),
            Command::Run(_)
            | Command::Check
            | Command::Status(_)
            | Command::Pause
            | Command::Resume(_)
            | Command::Snapshot
            | Command::DeadLetters
            | Command::Conflicts
            | Command::Cleanup => None,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Again each second, until Ctrl-C.
    #[arg(long, short)]
    pub(super) watch: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// What becomes of a held whole-store change (FLUSHALL): done at the target, too, or not.
    #[arg(long, value_name = "ANSWER")]
    pub(super) held: Option<HeldAnswer>,
}

/// Whatever a later release will take.
#[derive(Debug, clap::Args)]
pub(super) struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}
