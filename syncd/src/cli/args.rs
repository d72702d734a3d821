//! What can be asked, and the help that says so.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_core::Site;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};

use super::Failure;
use crate::config::{Config, parse_duration};
use crate::runbook::parse_set;
use crate::status::{HeldAnswer, RepairQuery, parse_rfc3339};

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

const CONFLICTS_HELP: &str = "\
Resolutions: kept      the site's own write stands, the peer's was dropped
             replaced  the peer's stands, the site's own was overwritten
             merged    both took effect, the site's own on top

Examples:
  syncd conflicts                                 how many, of each direction
  syncd conflicts list --since 2h                 the newest of the last two hours
  syncd conflicts list --channel tags --key push:7 --json
  syncd conflicts show 4711                       one, with both sides' writes

Values are only kept and shown with `values = true` in the file's [conflicts].";

const DEAD_LETTERS_HELP: &str = "\
Examples:
  syncd dead-letters                              the newest
  syncd dead-letters list --channel tags --limit 500
  syncd dead-letters ack 1772330400123            that one was seen to
  syncd dead-letters ack --all --channel tags

Before one goes off the list, its origin is asked what the key holds now, and the other site gets
that: mend first what made the target refuse it. The change itself is never done again.";

const RUNBOOK_HELP: &str = "\
Examples:
  syncd runbook check  weekly-proof.yaml          what is wrong with it; what it would do
  syncd runbook run    weekly-proof.yaml
  syncd runbook run    close-a-cutover-window.yaml --set from=2026-03-01T02:00:00Z
  syncd runbook status weekly-proof.yaml          each step, and what it waits for
  syncd runbook resume weekly-proof.yaml          after a break, or once what failed is mended
  syncd runbook resume weekly-proof.yaml --approve

Exit codes: 0 done, 1 a gate failed, something differs, or a person has to approve,
            2 bad use or a bad file, 3 could not reach or failed, or stopped.

docs/RUNBOOKS.md says how to write one, and what resume does in the middle of each step.";

const BACKFILL_HELP: &str = "\
Examples:
  syncd backfill --channel tags --from 2h
  syncd backfill --channel tags --from 2026-03-01T02:00:00Z --to 2026-03-01T02:30:00Z
  syncd backfill --channel tags --from 2h --dry-run      how many keys that would be

Each key is read at the site whose log names it, and appended to that log as a state: what the other
site wrote since stays. Then `verifier check` compares the window. Exit code: 0 the window is equal,
1 it differs, or part of it is not known.";

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

    /// The only site, if `--site` names one.
    pub(super) fn site(&self, config: &Config) -> Option<Site> {
        Site::BOTH.into_iter().find(|site| self.site.as_deref() == Some(config.site_name(*site)))
    }

    /// The sites that `--site` leaves.
    pub(super) fn sites(&self, config: &Config) -> Vec<Site> {
        self.site(config).map_or_else(|| Site::BOTH.to_vec(), |site| vec![site])
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
    /// What the targets refused, newest first; and takes it off the list.
    #[command(after_help = DEAD_LETTERS_HELP)]
    DeadLetters(DeadLettersArgs),
    /// Concurrent writes and how they were decided; alone: how many.
    #[command(after_help = CONFLICTS_HELP)]
    Conflicts(ConflictsArgs),
    /// Takes everything that is ours out of both sites' stores: markers, tokens, unfinished pieces.
    #[command(after_help = "The daemon must not run. Your own data stays as it is.")]
    Cleanup,
    /// Moves tenants from site to site (a later release).
    Tenant(Later),
    /// Checks and runs a plan of steps, and goes on with it after a break.
    #[command(after_help = RUNBOOK_HELP)]
    Runbook(RunbookArgs),
    /// Carries once more, as it is now, what the logs name that was written in a window of time; needs --channel.
    #[command(after_help = BACKFILL_HELP)]
    Backfill(BackfillArgs),
    /// Compares the sites' configuration (a later release).
    Doctor(Later),
}

impl Command {
    /// Its name, if it is of a later release.
    pub(super) fn later(&self) -> Option<&'static str> {
        match self {
            Command::Tenant(_) => Some("tenant"),
            Command::Doctor(_) => Some("doctor"),
            Command::Run(_)
            | Command::Check
            | Command::Status(_)
            | Command::Pause
            | Command::Resume(_)
            | Command::Snapshot
            | Command::DeadLetters(_)
            | Command::Conflicts(_)
            | Command::Runbook(_)
            | Command::Backfill(_)
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

#[derive(Debug, clap::Args)]
pub(super) struct BackfillArgs {
    /// Since this time, as 2026-03-01T02:00:00Z, or since so long ago, as 30m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = since_ms)]
    pub(super) from: u64,
    /// Up to this time, which is no part of it; now, if it is not given.
    #[arg(long, value_name = "TIME", value_parser = since_ms)]
    pub(super) to: Option<u64>,
    /// Carries what the keys themselves say was written then at --site, where the sites differ: a column of MySQL tables, a date
    /// field of Elasticsearch. For a time of which no log knows; deletes are not seen
    #[arg(long, value_name = "NAME")]
    pub(super) time_column: Option<String>,
    /// Only says how many keys it would be.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Does not compare the window afterwards.
    #[arg(long)]
    pub(super) no_verify: bool,
    /// The verifier's program, if it is not beside this one.
    #[arg(long, value_name = "FILE", conflicts_with = "no_verify")]
    pub(super) verifier: Option<PathBuf>,
    /// At most this many keys a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) keys_per_second: Option<u32>,
}

impl BackfillArgs {
    /// Keys that are asked for at once: no more than a tenth of a second may take.
    pub(super) fn batch(&self) -> usize {
        let rate = self.keys_per_second.map_or(RepairQuery::KEYS_MAX, |rate| rate as usize / 10);
        rate.clamp(1, RepairQuery::KEYS_MAX)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    pub(super) asked: Option<DeadLettersCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// Lists them, newest first.
    List(DeadLettersListArgs),
    /// Takes them off the list; needs ids, or --all.
    Ack(AckArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct DeadLettersListArgs {
    /// At the most so many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
}

impl Default for DeadLettersListArgs {
    fn default() -> Self {
        DeadLettersListArgs { limit: 50 }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct AckArgs {
    /// As listed.
    #[arg(required_unless_present = "all")]
    pub(super) ids: Vec<u64>,
    /// All of them, or of --channel.
    #[arg(long, conflicts_with = "ids")]
    pub(super) all: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConflictsArgs {
    #[command(subcommand)]
    pub(super) asked: Option<ConflictsCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConflictsCommand {
    /// Lists them, newest first.
    #[command(after_help = CONFLICTS_HELP)]
    List(ConflictsListArgs),
    /// Shows one with both sides' writes; exit code 1 if it is not there, or no more.
    Show {
        /// As listed.
        id: u64,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ConflictsListArgs {
    /// Only of this key, as it is or as it is listed.
    #[arg(long)]
    pub(super) key: Option<String>,
    /// Only since this time, as 2026-03-01T02:00:00Z, or since so long ago, as 30m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(super) since: Option<SystemTime>,
    /// At the most so many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunbookArgs {
    #[command(subcommand)]
    pub(super) asked: RunbookCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum RunbookCommand {
    /// Says what is wrong with the file, else what each step would do; changes nothing.
    Check(RunbookCheckArgs),
    /// Runs it from its first step.
    Run(RunbookRunArgs),
    /// Goes on with a run that was stopped, killed, failed, or waits for approval.
    Resume(RunbookResumeArgs),
    /// What became of each step of the last run.
    Status(RunbookFile),
}

#[derive(Debug, clap::Args)]
pub(super) struct RunbookFile {
    /// The runbook.
    pub(super) file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunbookCheckArgs {
    #[command(flatten)]
    pub(super) file: RunbookFile,
    /// A value of the file's `params`, such as from=2026-03-01T02:00:00Z.
    #[arg(long, value_name = "NAME=TIME", value_parser = parse_set)]
    pub(super) set: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunbookRunArgs {
    #[command(flatten)]
    pub(super) check: RunbookCheckArgs,
    /// Only say what would be done, as `check` does.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Give up a run that is not at its end.
    #[arg(long)]
    pub(super) anew: bool,
    #[command(flatten)]
    pub(super) programs: Programs,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunbookResumeArgs {
    #[command(flatten)]
    pub(super) file: RunbookFile,
    /// Approve the step that waits for it.
    #[arg(long)]
    pub(super) approve: bool,
    #[command(flatten)]
    pub(super) programs: Programs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Programs {
    /// The program that verify, repair and backfill compare with; without it the one beside this program.
    #[arg(long, value_name = "PATH")]
    pub(super) verifier: Option<PathBuf>,
}

fn since(text: &str) -> Result<SystemTime, String> {
    let ago = || parse_duration(text).and_then(|ago| SystemTime::now().checked_sub(ago));
    let wrong = "allowed is RFC 3339 such as 2026-03-01T02:00:00Z, or a number with one of ms, s, m, h, d";
    parse_rfc3339(text).or_else(ago).ok_or_else(|| wrong.to_owned())
}

/// The same, in milliseconds since 1970.
fn since_ms(text: &str) -> Result<u64, String> {
    since(text).map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

/// Whatever a later release will take.
#[derive(Debug, clap::Args)]
pub(super) struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}
