//! `verifier undo`: puts back what a repair has overwritten, key by key, where the key holds what the repair put there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::now_ms;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::file::{Header, Record, Records};
use super::{Keeper, PutBack, Undo, Undoable, Value};
use crate::cli::Common;
use crate::compare::{
    Candidates, Difference, Judge, Outcome, Progress, Settings, State, Traffic, Verdict, recheck,
};
use crate::config::{self, Channel, Config, Wanted};
use crate::error::{Error, Result};
use crate::pace::{Pace, Rates};
use crate::pair::{Task, each};
use crate::repair;
use crate::report::{KeyAt, SHOWN, grouped, key_text, place, push};

/// Keys looked at in one go, and about the most that their values take: a single one may take more.
const KEYS_AT_ONCE: usize = 500;
const BYTES_AT_ONCE: usize = 16 << 20;

/// Keys that are put back at the same time.
const WRITES_UNDER_WAY: usize = 8;

/// How far apart two readings of one expire-at time may be: before Redis 7.0 it is told as the time that is left.
const EXPIRY_TOLERANCE_MS: u64 = 100;

/// How long the other site may take to get what was put back, before each look at it.
const SETTLE: Duration = Duration::from_secs(10);

/// How often what another key stood in the way of is tried again.
const PASSES_MAX: usize = 10;

/// Keys that are listed: as many as a repair takes unless told otherwise.
const LIST_MAX: usize = 100_000;

/// Runs `verifier undo`; whether every key holds again what it held, at both sites.
///
/// # Errors
///
/// [`Error::Usage`] if the file is no undo file, or none of this configuration's; else as [`crate::check::run`].
pub(crate) async fn run(arguments: &Undo) -> Result<bool> {
    let (header, channels) = look_through(&arguments.file, &arguments.config)?;
    let name = arguments.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let keeper = Keeper::new(&arguments.keep, format!("undo of {name}"))?;
    let mut task = Undoing { arguments, header, keeper, sites: Vec::new(), tallies: BTreeMap::new() };
    let mut equal = true;
    for channel in channels {
        let common = Common {
            config: arguments.config.clone(),
            channel: Some(channel),
            tenant: None,
            expiry_tolerance: Duration::from_secs(1),
            settle: SETTLE,
            ops_per_second: None,
            bytes_per_second: None,
        };
        equal &= each(&common, LIST_MAX, &mut task).await?.equal();
    }
    let is_back = equal && task.is_back();
    if arguments.json {
        println!("{}", task.json(is_back));
    } else {
        print!("{}", task.text());
    }
    Ok(is_back)
}

/// Reads the whole file once, before anything is connected to: its header, and which channels it has keys of.
fn look_through(path: &Path, config: &Path) -> Result<(Header, BTreeSet<String>)> {
    let (header, mut records) = Records::open(path)?;
    let mut found: BTreeSet<(String, String)> = BTreeSet::new();
    while let Some(record) = records.next()? {
        found.insert((record.channel, record.site));
    }
    if records.is_cut {
        eprintln!("verifier: the last line of {} is cut: what it kept was not overwritten", path.display());
    }
    let (link, sites) = config::load_link(config)?;
    if link != header.link {
        return Err(Error::Usage(format!(
            "{}: undo file of another link: it is of {}, the configuration of {link}",
            path.display(),
            header.link
        )));
    }
    if let Some((_, site)) = found.iter().find(|(_, site)| !sites.contains(site)) {
        let [first, second] = &sites;
        return Err(Error::Usage(format!(
            "{}: it has keys of the site {site}, the configuration's are {first} and {second}",
            path.display()
        )));
    }
    let channels: BTreeSet<String> = found.into_iter().map(|(channel, _)| channel).collect();
    // All of them, before anything is put back of one.
    for channel in &channels {
        config::load(config, &Wanted { channel: Some(channel.clone()), tenant: None })?;
    }
    Ok((header, channels))
}

struct Undoing<'a> {
    arguments: &'a Undo,
    header: Header,
    keeper: Keeper<'a>,
    sites: Vec<String>,
    tallies: BTreeMap<String, Tally>,
}

/// What became of a channel's keys, or would.
#[derive(Debug, Default)]
struct Tally {
    /// Keys of the file.
    keys: u64,
    /// Those that are put back, and of these those that are deleted, as there was nothing.
    back: u64,
    deleted: u64,
    /// Those that hold already what they held before.
    as_before: u64,
    /// Those that hold something else than the repair put there: somebody wrote them since.
    changed: u64,
    /// Those that cannot be put back.
    left: u64,
    /// The sites where they are, and whether what is written there goes on to the other one.
    sites: BTreeMap<String, bool>,
    /// Keys put back that differ between the sites afterwards.
    different: u64,
    lines: Vec<Line>,
}

/// A key, and what is done with it.
#[derive(Debug, Serialize)]
struct Line {
    site: String,
    #[serde(flatten)]
    at: KeyAt,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip)]
    shown: String,
}

impl Tally {
    fn list(
        &mut self,
        site: &str,
        (space, name): (&Space, &Bytes),
        what: &'static str,
        reason: Option<String>,
    ) {
        if self.lines.len() < LIST_MAX {
            let why = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            self.lines.push(Line {
                site: site.to_owned(),
                at: KeyAt::of(space, name),
                what,
                shown: format!("  {what:<9} {} {}{why}", place(space), key_text(space, name)),
                reason,
            });
        }
    }

    fn put_back(&mut self, record: &Record) {
        self.back += 1;
        self.deleted += u64::from(record.held.is_none());
        let what = if record.held.is_some() { "put back" } else { "delete" };
        self.list(&record.site, record.key(), what, None);
    }

    fn change(&mut self, record: &Record) {
        self.changed += 1;
        self.list(&record.site, record.key(), "changed", None);
    }

    fn leave(&mut self, site: &str, key: (&Space, &Bytes), reason: String) {
        self.left += 1;
        self.list(site, key, "left", Some(reason));
    }
}

/// What is to be done with a key.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    PutBack,
    AsBefore,
    Changed,
}

impl Record {
    fn key(&self) -> (&Space, &Bytes) {
        (&self.space, &self.name)
    }

    fn value(&self) -> Option<&Value> {
        self.held.as_ref().map(|(_, value)| value)
    }

    /// What has expired since is nobody's write.
    fn finding(&self, now: Option<State>) -> Finding {
        if same(self.put, now) {
            Finding::PutBack
        } else if same(self.held.as_ref().map(|(state, _)| *state), now) {
            Finding::AsBefore
        } else {
            Finding::Changed
        }
    }
}

fn same(one: Option<State>, other: Option<State>) -> bool {
    let judge = Judge { expiry_tolerance_ms: EXPIRY_TOLERANCE_MS };
    judge.judge([one, other], now_ms()) == Verdict::Equal
}

/// A key at one of the sites.
type Place = (usize, Space, Bytes);

impl Task for Undoing<'_> {
    async fn run<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        _: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        self.sites = config.sites.to_vec();
        let mut pass = Pass {
            arguments: self.arguments,
            keeper: &mut self.keeper,
            config,
            channel,
            sites,
            pace: Pace::new(Rates { ops: self.arguments.keys_per_second, bytes: None }),
            tally: Tally::default(),
            done: Candidates::new(),
            to_carry: BTreeMap::new(),
            blocked: HashMap::new(),
        };
        pass.over_all(None).await?;
        for _ in 0..PASSES_MAX {
            let before = std::mem::take(&mut pass.blocked);
            if before.is_empty() {
                break;
            }
            pass.over_all(Some(&before)).await?;
            if pass.blocked.len() == before.len() {
                break;
            }
        }
        pass.carry().await;
        let Pass { mut tally, done, blocked, .. } = pass;
        for ((at, space, name), reason) in blocked {
            let site = config.sites.get(at).map_or("", String::as_str);
            tally.leave(site, (&space, &name), reason);
        }
        let outcome = match done.is_empty() {
            true => Outcome::default(),
            false => recheck(sites, done, traffic, settings).await?,
        };
        tally.different = outcome.different + outcome.undecided;
        self.tallies.insert(channel.name.clone(), tally);
        Ok(outcome)
    }
}

/// One channel's keys of the file, gone through.
struct Pass<'a, 'b, R> {
    arguments: &'a Undo,
    keeper: &'a mut Keeper<'b>,
    config: &'a Config,
    channel: &'a Channel,
    sites: [&'a R; 2],
    pace: Pace,
    tally: Tally,
    /// What was put back.
    done: Candidates,
    /// Of these what no stream tells of soon, by the site.
    to_carry: BTreeMap<String, Vec<KeyAt>>,
    /// Those in whose way another key stands, and how.
    blocked: HashMap<Place, String>,
}

impl<R: Undoable> Pass<'_, '_, R> {
    /// Goes through the file; after a first time only through `again`.
    async fn over_all(&mut self, again: Option<&HashMap<Place, String>>) -> Result<()> {
        let (_, mut records) = Records::open(&self.arguments.file)?;
        let keys_max = KEYS_AT_ONCE.min(self.pace.burst());
        let (mut some, mut bytes) = (Vec::new(), 0);
        while let Some(record) = records.next()? {
            if record.channel != self.channel.name {
                continue;
            }
            let Some(at) = self.config.sites.iter().position(|site| *site == record.site) else { continue };
            let place = (at, record.space.clone(), record.name.clone());
            if again.is_some_and(|again| !again.contains_key(&place)) {
                continue;
            }
            if again.is_none() {
                self.tally.keys += 1;
                let carries = self.channel.carries.get(at).copied().unwrap_or(true);
                self.tally.sites.insert(record.site.clone(), carries);
            }
            bytes += record.value().map_or(0, |value| value.bytes.len());
            some.push((at, record));
            if some.len() >= keys_max || bytes >= BYTES_AT_ONCE {
                self.over(&some, again.is_none()).await?;
                (some, bytes) = (Vec::new(), 0);
            }
        }
        self.over(&some, again.is_none()).await
    }

    async fn over(&mut self, some: &[(usize, Record)], is_first: bool) -> Result<()> {
        for some in some.chunk_by(|(a, one), (b, other)| a == b && one.space == other.space) {
            let Some((at, Record { space, .. })) = some.first() else { continue };
            let Some(&site) = self.sites.get(*at) else { continue };
            let mut possible = Vec::with_capacity(some.len());
            for (_, record) in some {
                match site.obstacle(space, record.value()) {
                    Some(reason) => self.tally.leave(&record.site, record.key(), reason),
                    None => possible.push(record),
                }
            }
            if possible.is_empty() {
                continue;
            }
            let names: Vec<Bytes> = possible.iter().map(|record| record.name.clone()).collect();
            let hints = site.look(space, &names).await?;
            let states = site.read(space, &names, &hints).await?;
            let mut back = Vec::new();
            for (record, now) in possible.into_iter().zip(states) {
                match record.finding(now) {
                    Finding::PutBack => back.push((record, now)),
                    Finding::AsBefore => self.tally.as_before += 1,
                    Finding::Changed => self.tally.change(record),
                }
            }
            if !self.arguments.yes {
                back.iter().for_each(|(record, _)| self.tally.put_back(record));
            } else if !back.is_empty() {
                self.pace.take(back.len()).await;
                if is_first {
                    back = self.keep(*at, site, back).await?;
                }
                self.put_back(*at, site, back).await?;
            }
        }
        Ok(())
    }

    /// Keeps what these keys hold; those of which that can be done.
    async fn keep<'r>(
        &mut self,
        at: usize,
        site: &R,
        mut back: Vec<(&'r Record, Option<State>)>,
    ) -> Result<Vec<(&'r Record, Option<State>)>> {
        let difference = |(record, now): &(&Record, Option<State>)| {
            let mut sites = [record.held.as_ref().map(|(state, _)| *state); 2];
            if let Some(here) = sites.get_mut(at) {
                *here = *now;
            }
            let (space, name) = (record.space.clone(), record.name.clone());
            Difference { space, name, kind: None, sites, parts: Vec::new() }
        };
        let differences: Vec<Difference> = back.iter().map(difference).collect();
        let keys: Vec<&Difference> = differences.iter().collect();
        let left = self.keeper.keep(self.config, &self.channel.name, (at, site), &keys).await?;
        for n in left.into_iter().rev() {
            let (record, _) = back.remove(n);
            let reason = "what it holds now is too large to be kept: see --undo-value-max".to_owned();
            self.tally.leave(&record.site, record.key(), reason);
        }
        Ok(back)
    }

    /// Has the daemon carry what it would not find by itself, or late.
    async fn carry(&self) {
        let carry = async {
            let client = repair::client()?;
            for (site, keys) in &self.to_carry {
                let at = self.config.sites.iter().position(|name| name == site);
                if at.and_then(|at| self.channel.carries.get(at)) == Some(&false) {
                    continue;
                }
                for some in keys.chunks(repair::KEYS_AT_ONCE) {
                    repair::carry(&client, (self.config, self.channel), site, some).await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = carry.await {
            eprintln!(
                "verifier: {error}; what the other site does not hear of a repair from this one carries"
            );
        }
    }

    async fn put_back(&mut self, at: usize, site: &R, back: Vec<(&Record, Option<State>)>) -> Result<()> {
        let writes = back.into_iter().map(|(record, _)| async move {
            let is_as_before = AtomicBool::new(false);
            let is_expected = |now| {
                let finding = record.finding(now);
                is_as_before.store(finding == Finding::AsBefore, Ordering::Relaxed);
                finding == Finding::PutBack
            };
            let done = site.put_back(&record.space, &record.name, record.value(), &is_expected).await?;
            Ok::<_, Error>((record, done, is_as_before.into_inner()))
        });
        let mut writes = std::pin::pin!(stream::iter(writes).buffer_unordered(WRITES_UNDER_WAY));
        while let Some(done) = writes.next().await {
            let (record, done, is_as_before) = done?;
            match done {
                PutBack::Done => {
                    self.done.insert((record.space.clone(), record.name.clone()), None);
                    if self.channel.intake || R::DELETES_LATE && record.held.is_none() {
                        let to_carry = self.to_carry.entry(record.site.clone()).or_default();
                        to_carry.push(KeyAt::of(&record.space, &record.name));
                    }
                    self.tally.put_back(record);
                }
                // By another name of the same row, or by another undo.
                PutBack::Changed if is_as_before => self.tally.as_before += 1,
                PutBack::Changed => self.tally.change(record),
                PutBack::Refused(reason) => self.tally.leave(&record.site, record.key(), reason),
                PutBack::Blocked(reason) => {
                    self.blocked.insert((at, record.space.clone(), record.name.clone()), reason);
                }
            }
        }
        Ok(())
    }
}

impl Undoing<'_> {
    /// Whether every key of the file holds again what it held.
    fn is_back(&self) -> bool {
        let is_back =
            |tally: &Tally| tally.changed == 0 && tally.left == 0 && (self.arguments.yes || tally.back == 0);
        self.tallies.values().all(is_back)
    }

    fn json(&self, is_back: bool) -> Json {
        let channels: Vec<Json> = self
            .tallies
            .iter()
            .map(|(channel, tally)| {
                json!({
                    "channel": channel, "keys": tally.keys, "back": tally.back, "deleted": tally.deleted,
                    "as_before": tally.as_before, "changed": tally.changed, "left": tally.left,
                    "different": tally.different, "listed": tally.lines,
                })
            })
            .collect();
        json!({
            "link": self.header.link, "of": self.header.what, "time": self.header.time,
            "done": self.arguments.yes, "is_back": is_back, "undo": self.keeper.path(), "channels": channels,
        })
    }

    fn text(&self) -> String {
        let Header { what, time, .. } = &self.header;
        let mut out = String::new();
        for (channel, tally) in &self.tallies {
            let mut line = |text: String| push(&mut out, &text);
            let sites: Vec<&str> = tally.sites.keys().map(String::as_str).collect();
            let hold = if self.arguments.yes { "hold again" } else { "to put back: they will hold again" };
            line(format!(
                "channel {channel}: {} keys at {} {hold} what they held",
                grouped(tally.back),
                sites.join(" and ")
            ));
            line(format!("  before the {what} of {time}"));
            for (count, told) in [
                (tally.deleted, "of them there was none: it is deleted"),
                (tally.as_before, "more hold that already"),
                (tally.changed, "were changed since, and stay as they are"),
                (tally.left, "cannot be put back"),
            ] {
                if count > 0 {
                    line(format!("  {:>9} {told}", grouped(count)));
                }
            }
            for (site, carries) in tally.sites.iter().filter(|_| tally.back > 0) {
                let Some(other) = self.other(site) else { continue };
                match carries {
                    true => line(format!(
                        "  written at {site} like by any client: goes on to {other}, and replaces what that holds"
                    )),
                    false => line(format!(
                        "  the channel carries nothing from {site}: {other} keeps what it has, and the two differ"
                    )),
                }
            }
            for one in tally.lines.iter().take(SHOWN) {
                line(one.shown.clone());
            }
            if tally.lines.len() > SHOWN {
                let more = grouped((tally.lines.len() - SHOWN) as u64);
                line(format!("  … and {more} more; --json lists them"));
            }
            if tally.different > 0 {
                line(format!(
                    "  {} keys put back are not the same at both sites yet: is the daemon running?",
                    grouped(tally.different)
                ));
            }
        }
        if self.tallies.is_empty() {
            out += "the undo file has no key: nothing was overwritten\n";
        }
        if let Some(path) = self.keeper.path() {
            out += &taken_back_by(&self.arguments.config, path);
        } else if !self.arguments.yes && self.tallies.values().any(|tally| tally.back > 0) {
            out += "nothing was changed: say --yes to do it\n";
        }
        out
    }

    fn other(&self, site: &str) -> Option<&str> {
        self.sites.iter().map(String::as_str).find(|other| *other != site)
    }
}

/// How what was kept in `path` is put back.
pub(crate) fn taken_back_by(config: &Path, path: &Path) -> String {
    format!("to take it back: verifier undo --config {} {} --yes\n", config.display(), path.display())
}
