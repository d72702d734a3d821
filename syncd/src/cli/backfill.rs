//! `syncd backfill`: what the logs name that was written in a window, or what the keys say of themselves, is carried once more,
//! as it is now, and the window is compared afterwards.

use std::collections::{BTreeMap, HashSet};
use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;

use causeway_core::time;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::args::{BackfillArgs, Common};
use super::client::{Client, Lines};
use super::table::thousands;
use super::{Failure, output, programs};
use crate::config::Config;
use crate::status::{KeyAt, RepairQuery, Repaired, WrittenLine};

/// Keys that are known to have been asked for; beyond, one may be asked for twice.
const KNOWN_MAX: usize = 4 << 20;

/// How long the comparison waits for what is under way, before each time that it reads again.
const SETTLE: &str = "60s";

/// What became of it.
#[derive(Debug, Default, Serialize)]
struct Done<'a> {
    channel: &'a str,
    from: String,
    to: String,
    /// By site, how many keys its log names.
    keys: BTreeMap<String, u64>,
    /// How many of them were carried.
    asked: u64,
    /// Where something was written that has no name: by site, the table, or nothing for the whole channel.
    unnamed: Vec<(String, Option<String>)>,
    /// Up to when the logs are known to name everything.
    known_until: Option<String>,
    /// Whether both sites hold the same of the window; nothing where that was not asked for.
    equal: Option<bool>,
}

/// Carries the window of `args`, and compares it.
///
/// # Errors
///
/// [`Failure::No`] if the window still differs, or something in it has no name.
pub(super) async fn backfill(common: &Common, config: &Config, args: &BackfillArgs) -> Result<(), Failure> {
    let Some(channel) = common.channel.as_deref() else {
        return Err(Failure::Usage("backfill needs --channel NAME".to_owned()));
    };
    let to = args.to.unwrap_or_else(time::now_ms).min(time::now_ms());
    if args.from >= to {
        let (from, to) = (time::rfc3339(args.from), time::rfc3339(to));
        return Err(Failure::Usage(format!(
            "--from {from} is not before {to}: allowed is a time before --to and now"
        )));
    }
    let mut done = Done { channel, from: time::rfc3339(args.from), to: time::rfc3339(to), ..Done::default() };
    match &args.time_column {
        None => carry(common, config, args, &mut done).await?,
        Some(_) => carry_by_time(common, config, args, &mut done).await?,
    }
    let is_known = done.known_until.as_deref().and_then(time::parse_rfc3339).is_some_and(|until| until >= to);
    if !args.dry_run && !args.no_verify {
        let report = compare(common, args, &done, &[]).await?;
        done.equal = Some(report.equal);
    }
    if common.json {
        output::json(&done)?;
    } else {
        output::line(&text(&done, args, is_known))?;
    }
    match done.equal {
        Some(false) => Err(Failure::No(None)),
        None if !done.unnamed.is_empty() || !is_known => Err(Failure::No(None)),
        _ => Ok(()),
    }
}

/// Has each key of the window carried once.
async fn carry(
    common: &Common,
    config: &Config,
    args: &BackfillArgs,
    done: &mut Done<'_>,
) -> Result<(), Failure> {
    let client = Client::new(common.address(config))?;
    let path = |last: &str| format!("/v1/channels/{}/{last}", done.channel);
    let (written, repair) = (path("written"), path("repair"));
    let query = [("from", done.from.as_str()), ("to", done.to.as_str())];
    let mut lines = Lines::new(client.stream(&written, &query).await?);
    let only = common.site.as_deref();
    let bar = bar();
    let mut known = HashSet::new();
    let mut batches: BTreeMap<String, Vec<KeyAt>> = BTreeMap::new();
    loop {
        let line = lines.next().await?.ok_or_else(|| {
            Failure::Failed(
                "the daemon's answer was cut off: what was asked for until then is carried; run it again"
                    .to_owned(),
            )
        })?;
        match line {
            WrittenLine::Key { site, .. } | WrittenLine::Whole { site, .. }
                if only.is_some_and(|only| only != site) => {}
            WrittenLine::Key { site, at } => {
                let digest = digest(&site, &at);
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                if !known.insert(digest) {
                    continue;
                }
                *done.keys.entry(site.clone()).or_default() += 1;
                bar.inc(1);
                let batch = batches.entry(site.clone()).or_default();
                batch.push(at);
                if batch.len() >= args.batch() {
                    let keys = std::mem::take(batch);
                    done.asked += ask(&client, &repair, args, site, keys).await?;
                }
            }
            WrittenLine::Whole { site, table, .. } => {
                if !done.unnamed.contains(&(site.clone(), table.clone())) {
                    done.unnamed.push((site, table));
                }
            }
            WrittenLine::End { end } => {
                let ends = end.into_iter().filter(|(site, _)| only.is_none_or(|only| only == site));
                let ends = ends.map(|(_, end)| end).collect::<Option<Vec<_>>>();
                done.known_until = ends.and_then(|ends| ends.into_iter().min());
                break;
            }
            WrittenLine::Error { error, .. } => return Err(Failure::Failed(error)),
        }
    }
    for (site, keys) in batches {
        done.asked += ask(&client, &repair, args, site, keys).await?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Has the daemon carry `keys` as they are at `from`.
async fn ask(
    client: &Client,
    path: &str,
    args: &BackfillArgs,
    from: String,
    keys: Vec<KeyAt>,
) -> Result<u64, Failure> {
    if args.dry_run || keys.is_empty() {
        return Ok(0);
    }
    let pause = args.keys_per_second.map(|rate| Duration::from_secs_f64(keys.len() as f64 / f64::from(rate)));
    let began = tokio::time::Instant::now();
    let Repaired { asked } = client.post_json(path, &RepairQuery { from, keys }).await?;
    if let Some(pause) = pause {
        tokio::time::sleep_until(began + pause).await;
    }
    Ok(asked)
}

/// Has each key carried that says itself that it was written in the window at the one site, and differs.
async fn carry_by_time(
    common: &Common,
    config: &Config,
    args: &BackfillArgs,
    done: &mut Done<'_>,
) -> Result<(), Failure> {
    let site = common.site.clone().filter(|site| config.sites.contains(site)).ok_or_else(|| {
        let sites = config.sites.join(" or --site ");
        Failure::Usage(format!("--time-column needs to know whose keys are carried: --site {sites}"))
    })?;
    let client = Client::new(common.address(config))?;
    let path = format!("/v1/channels/{}/repair", done.channel);
    let listed_max = LISTED_MAX.to_string();
    let mut known = HashSet::new();
    loop {
        let report = compare(common, args, done, &["--at", &site, "--list-max", &listed_max]).await?;
        let listed = report.differences.len();
        let there = report
            .differences
            .into_iter()
            .filter(|one| one.sites.get(&site).is_some_and(|held| !held.is_null()));
        let keys: Vec<KeyAt> = there.map(|one| one.at).filter(|at| known.insert(digest(&site, at))).collect();
        let found = keys.len();
        *done.keys.entry(site.clone()).or_default() += found as u64;
        for keys in keys.chunks(args.batch()) {
            done.asked += ask(&client, &path, args, site.clone(), keys.to_vec()).await?;
        }
        // More of them than are listed come to light once these are equal.
        let are_all = listed < LISTED_MAX;
        if are_all || found == 0 || args.dry_run {
            done.known_until = are_all.then(|| done.to.clone());
            return Ok(());
        }
    }
}

/// Keys that a report lists at the most.
const LISTED_MAX: usize = 100_000;

/// Of a report of `verifier check`.
#[derive(Debug, Deserialize)]
struct Report {
    equal: bool,
    differences: Vec<Differs>,
}

/// A key that differs.
#[derive(Debug, Deserialize)]
struct Differs {
    #[serde(flatten)]
    at: KeyAt,
    /// By the site's name; null where it lacks the key.
    sites: BTreeMap<String, Value>,
}

/// What `verifier check` finds in the window.
async fn compare(
    common: &Common,
    args: &BackfillArgs,
    done: &Done<'_>,
    more: &[&str],
) -> Result<Report, Failure> {
    let program = programs::verifier(args.verifier.as_deref()).map_err(Failure::Failed)?;
    let failed = |what: &str| Failure::Failed(format!("{}: {what}", program.display()));
    let by_time = args.time_column.iter().flat_map(|column| ["--time-column", column]);
    let checked = tokio::process::Command::new(&program)
        .args(["check", "--json", "--settle", SETTLE, "--channel", done.channel])
        .args(["--from", &done.from, "--to", &done.to])
        .args(by_time)
        .args(more)
        .arg("--config")
        .arg(&common.config)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            let no_verify = if args.time_column.is_some() { "" } else { ", or --no-verify" };
            failed(&format!("{error}; say where the verifier is with --verifier{no_verify}"))
        })?;
    match (checked.status.code(), serde_json::from_slice(&checked.stdout)) {
        (Some(0 | 1), Ok(report)) => Ok(report),
        (Some(2), _) => {
            Err(Failure::Usage("the window cannot be compared; what was asked for is carried".to_owned()))
        }
        _ => Err(failed("the window could not be compared; what was asked for is carried")),
    }
}

/// Of a key that a site wrote.
fn digest(site: &str, at: &KeyAt) -> u128 {
    serde_json::to_vec(&(site, at)).map_or(0, |text| xxh3_128(&text))
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} keys of the window, {per_sec}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn text(done: &Done<'_>, args: &BackfillArgs, is_known: bool) -> String {
    let keys: Vec<_> =
        done.keys.iter().map(|(site, keys)| format!("{} by {site}", thousands(*keys))).collect();
    let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
    let mut lines = vec![
        format!("channel {}, written from {} to {}", done.channel, done.from, done.to),
        match &args.time_column {
            None => format!("keys that the logs name: {keys}"),
            Some(column) => format!("keys that differ, by {column}: {keys}"),
        },
    ];
    match args.dry_run {
        true => lines.push("nothing was carried: that was a dry run".to_owned()),
        false => lines.push(format!("carried: {}", thousands(done.asked))),
    }
    for (site, table) in &done.unnamed {
        let what =
            table.as_ref().map_or("the whole channel".to_owned(), |table| format!("the table {table}"));
        lines.push(format!("not carried: {site} changed {what} as such; `verifier check` compares it"));
    }
    if !is_known {
        let until = done.known_until.as_deref().unwrap_or("an unknown time");
        lines.push(format!("NOT KNOWN beyond {until}: a stream is behind, or does not tell"));
    }
    match done.equal {
        Some(true) => lines.push("the window is equal at both sites".to_owned()),
        Some(false) => lines.push(format!(
            "the window is NOT EQUAL: verifier check --channel {} --from {} --to {}{} says what",
            done.channel,
            done.from,
            done.to,
            args.time_column.as_ref().map_or(String::new(), |column| format!(" --time-column {column}"))
        )),
        None => {}
    }
    lines.join("\n")
}
