use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::undo::{Keep, Undo};
use crate::watch::Watch;
use crate::window::time;

/// Proves that both sites of a link hold the same.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compare every key of both sites: exit code 0 equal, 1 different or undecided, 2 bad use or
    /// configuration, 3 could not reach
    Check(Check),
    /// Carry what differs from one site to the other, through the daemon's log; without --yes say what that would be
    Repair(Repair),
    /// Put back what a repair has overwritten, from its undo file; without --yes say what that would be
    Undo(Undo),
    /// Compare what was lately written again and again, and everything in the background, until it is told to stop
    Watch(Watch),
    /// Show what a run found, from the result file: for people, as JSON, or as a page
    Report(ReportOf),
}

/// What is looked at, and how.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The daemon's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only this channel
    #[arg(long, value_name = "NAME")]
    pub(crate) channel: Option<String>,
    /// Only the keys of this tenant; the channel's `tenant = { key = … }` says which those are
    #[arg(long, value_name = "ID")]
    pub(crate) tenant: Option<String>,
    /// Expire-at times this far apart are equal: 500ms, 1s, 2m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) expiry_tolerance: Duration,
    /// How long to wait, before each re-read, for what the daemon has yet to apply
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) settle: Duration,
    /// At most this many commands or statements a second to each site
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ops_per_second: Option<u32>,
    /// Read at most about this much a second of each site: 50MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) bytes_per_second: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  verifier check --config syncd.toml                          everything
  verifier check --config syncd.toml --channel tags --tenant 7f3a
  verifier check --config syncd.toml --from 2h                what was written in the last two hours
  verifier check --config syncd.toml --from 2026-03-01T02:00:00Z --to 2026-03-01T02:30:00Z
  verifier check --config syncd.toml --html proof.html")]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Only what was written since then, as the daemon's logs name it: 2026-03-01T02:00:00Z, or how long ago: 30m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Option<u64>,
    /// The end of that stretch of time, which is no part of it; now, if it is not given
    #[arg(long, value_name = "TIME", value_parser = time, requires = "from")]
    pub(crate) to: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The window is told by this column of each row, in UTC, or this date field of each document, not by the daemon's logs: what
    /// was deleted is not seen, nor tables and indices without it
    #[arg(long, value_name = "NAME", requires = "from")]
    pub(crate) time_column: Option<String>,
    /// Only what rows and documents of this site say
    #[arg(long, value_name = "SITE", requires = "time_column")]
    pub(crate) at: Option<String>,
    /// Only this share of the keys, in percent, taken at random; the result says what that proves of all of them
    #[arg(long, value_name = "PERCENT", value_parser = percent, conflicts_with = "from")]
    pub(crate) sample: Option<f64>,
    /// Also write the result as one self-contained page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Also add the result to this file, which SQLite reads, and `report` and `repair`
    #[arg(long, value_name = "FILE")]
    pub(crate) result: Option<PathBuf>,
    /// How many differences (and undecided keys) are listed; all are counted
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) list_max: usize,
}

/// Exit code: that of the run that is shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  verifier report results.sqlite                    the newest run, as `check` told it
  verifier report results.sqlite --list             all of them
  verifier report results.sqlite --run 3 --json
  verifier report results.sqlite --html proof.html  with a chart over time")]
pub(crate) struct ReportOf {
    /// A file that `check --result` or `watch --result` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// This run, by its number; the newest, if none is given
    #[arg(long, value_name = "N")]
    pub(crate) run: Option<i64>,
    /// Print the runs of the file, the newest last
    #[arg(long, conflicts_with_all = ["run", "html"])]
    pub(crate) list: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the result as one self-contained page, too
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Exit code 0: equal at the end; 1: something differs still, or nothing was done yet; 3: no daemon took it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  verifier repair --config syncd.toml --from dc                    what would be done
  verifier repair --config syncd.toml --from dc --yes              do it
  verifier repair --config syncd.toml --from newest --channel orders --yes
  verifier repair --config syncd.toml --from dc --report check.json --yes")]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The site that is right, by its name: the other one gets what it holds. Or `newest`: of each key the site that wrote it
    /// last, by what the logs still hold; or `owner`: the site that serves the key's tenant. What was written meanwhile stays
    #[arg(long, value_name = "SITE|newest|owner")]
    pub(crate) from: String,
    /// Look again at what this report of `check --json` lists, or the newest run of this result file, and repair of that what
    /// still differs; without it everything is compared first
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print the plan, and what became of it, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Refuse if more keys of a channel differ
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) keys_max: usize,
    /// Refuse if more than 100 keys differ and they are more than this share of all, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub(crate) share_max: f64,
    /// At most this many keys a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys_per_second: Option<u32>,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

/// Reads a share.
fn percent(text: &str) -> Result<f64, String> {
    let share: f64 = text.trim_end_matches('%').parse().unwrap_or(f64::NAN);
    let wrong = "allowed is a share in percent from 0.0001 to 100";
    if (0.0001..=100.0).contains(&share) { Ok(share) } else { Err(wrong.to_owned()) }
}

/// Reads `512MiB`, `1GiB`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "allowed is a number of bytes, or with its unit: 64MiB, 1GiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// Reads `500ms`, `1s`, `2m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("allowed is a number with its unit: 500ms, 1s, 2m, 1h, 1d".to_owned()),
    };
    let number: u32 =
        number.parse().map_err(|_| "allowed is a whole number with its unit: 10s".to_owned())?;
    Ok(Duration::from_millis(u64::from(number) * millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_carries_its_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("10").is_err() && duration("s").is_err() && duration("").is_err());
    }

    #[test]
    fn a_size_carries_its_unit() {
        assert_eq!((size("512MiB"), size("7")), (Ok(512 << 20), Ok(7)));
        for wrong in ["", "MiB", "1MB", "-1", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_none_of_nothing_or_of_more_than_all() {
        assert_eq!((percent("0.5"), percent("100%")), (Ok(0.5), Ok(100.0)));
        for wrong in ["", "0", "-1", "100.1", "NaN", "x"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
