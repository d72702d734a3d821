//! `verifier repair`: what differs is carried from one site to the other, by the daemon and through its log, so that
//! order, markers and the rule for concurrent writes hold.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::Repair;
use crate::compare::{Candidates, Difference, Outcome, Place, Progress, Settings, Traffic, compare, recheck};
use crate::config::{Channel, Config};
use crate::daemon::{self, Asked, ask};
use crate::error::{Error, Result};
use crate::pace::{Pace, Rates};
use crate::pair::{Task, each};
use crate::report::{ChannelReport, KeyAt, Report, SHOWN, grouped, key_text, place, push, word};
use crate::results::Results;
use crate::undo::{Keeper, Undoable, taken_back_by};

/// Keys of one request: the daemon takes no more.
pub(crate) const KEYS_AT_ONCE: usize = 1000;

/// Keys of one question to the logs, which are read through for each.
const WHOSE_AT_ONCE: usize = 100_000;

/// How long a daemon may take to read its logs through.
const LOGS_READ_TIMEOUT: Duration = Duration::from_secs(1800);

/// How long a daemon may take to answer one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What asks for that.
///
/// # Errors
///
/// [`Error::Local`].
pub(crate) fn client() -> Result<reqwest::Client> {
    daemon::client(ANSWER_TIMEOUT)
}

/// Has the daemon carry what `keys`, at most [`KEYS_AT_ONCE`], hold at the site `from`.
///
/// # Errors
///
/// [`Error::Local`] if no daemon takes it.
pub(crate) async fn carry(
    client: &reqwest::Client,
    (config, channel): (&Config, &Channel),
    from: &str,
    keys: &[KeyAt],
) -> Result<()> {
    let body = json!({ "from": from, "keys": keys });
    let asked = Asked { config, channel: &channel.name, path: "repair", what: "takes the repair of" };
    ask(asked, |url| client.post(url).json(&body)).await.map(drop)
}

/// Runs `verifier repair`; whether both sites are equal at the end.
///
/// # Errors
///
/// As [`crate::check::run`]; [`Error::Usage`] if the site is none of the link's, or more differs than may be repaired, and
/// [`Error::Local`] if no daemon takes the repair.
pub(crate) async fn run(arguments: &Repair) -> Result<bool> {
    let listed = arguments.report.as_deref().map(Listed::read).transpose()?;
    let keeper = Keeper::new(&arguments.keep, format!("repair from {}", arguments.from))?;
    let client = client()?;
    let mut task = Repairing { listed, arguments, client, keeper, plans: BTreeMap::new() };
    let report = each(&arguments.common, arguments.keys_max, &mut task).await?;
    let plans = &task.plans;
    let repairable: u64 = plans.values().map(|plan| plan.keys).sum();
    if arguments.json {
        let channels = plans.iter().map(|(channel, plan)| {
            json!({ "channel": channel, "keys": plan.keys, "left": plan.left, "repaired": plan.repaired })
        });
        let json = json!({
            "from": arguments.from,
            "done": arguments.yes,
            "equal": report.equal(),
            "undo": task.keeper.path(),
            "channels": channels.collect::<Vec<_>>(),
            "check": serde_json::from_str::<Value>(&report.json()).unwrap_or_default(),
        });
        println!("{json}");
        return Ok(report.equal());
    }
    for (channel, plan) in plans {
        print!("{}", plan.text(channel, arguments));
    }
    if arguments.yes {
        print!("{}", report.text());
        if let Some(path) = task.keeper.path() {
            print!("{}", taken_back_by(&arguments.common.config, path));
        }
    } else if repairable > 0 {
        println!("nothing was changed: say --yes to do it");
    }
    Ok(report.equal())
}

/// Who is right about a key that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// That site, by its place in the link.
    Site(usize),
    /// The site that wrote it last.
    Newest,
    /// The site that serves its tenant.
    Owner,
}

impl From {
    /// Sites go before the words: one may be called `newest`.
    fn read(text: &str, config: &Config) -> Result<From> {
        let site = config.sites.iter().position(|site| site == text);
        match (site, text) {
            (Some(site), _) => Ok(From::Site(site)),
            (None, "newest") => Ok(From::Newest),
            (None, "owner") => Ok(From::Owner),
            _ => {
                let [first, second] = &config.sites;
                Err(Error::Usage(format!("--from {text}: allowed is {first}, {second}, newest or owner")))
            }
        }
    }
}

/// What is to be done in a channel, and what became of it.
#[derive(Debug, Default)]
struct Plan {
    /// Keys that are carried.
    keys: u64,
    /// What differs and cannot be: tables themselves, what never came to rest, and keys that nobody is right about.
    left: u64,
    /// Those of them that are too large to be kept.
    too_large: u64,
    /// Keys that were the same at both sites afterwards.
    repaired: u64,
    lines: Vec<String>,
}

impl Plan {
    fn text(&self, channel: &str, arguments: &Repair) -> String {
        let from = match arguments.from.as_str() {
            "newest" => "the site that wrote them last",
            "owner" => "the site that serves their tenants",
            site => site,
        };
        let (what, count) =
            if arguments.yes { ("repaired", self.repaired) } else { ("to repair", self.keys) };
        let mut out = format!("channel {channel}: {} keys {what}, as they are at {from}", grouped(count));
        if self.left > 0 {
            out += &format!(", {} left", grouped(self.left));
        }
        if self.too_large > 0 {
            out +=
                &format!(", {} of them too large to be kept: see --undo-value-max", grouped(self.too_large));
        }
        out.push('\n');
        for line in self.lines.iter().take(SHOWN) {
            push(&mut out, line);
        }
        if self.lines.len() > SHOWN {
            out +=
                &format!("  … and {} more; --json lists them\n", grouped((self.lines.len() - SHOWN) as u64));
        }
        out
    }
}

/// What an earlier check listed.
#[derive(Debug, Deserialize)]
struct Listed {
    link: String,
    channels: Vec<ListedChannel>,
    differences: Vec<ListedKey>,
}

#[derive(Debug, Deserialize)]
struct ListedChannel {
    name: String,
    compared: u64,
}

#[derive(Debug, Deserialize)]
struct ListedKey {
    channel: String,
    #[serde(flatten)]
    at: KeyAt,
}

impl Listed {
    fn of(report: &Report) -> Listed {
        let channel =
            |of: &ChannelReport| ListedChannel { name: of.name.clone(), compared: of.outcome.compared };
        let differing = report.listed().filter(|(_, one)| one.kind.is_some());
        let key = |(channel, one): (&str, &Difference)| ListedKey {
            channel: channel.to_owned(),
            at: KeyAt::of(&one.space, &one.name),
        };
        Listed {
            link: report.link.clone(),
            channels: report.channels.iter().map(channel).collect(),
            differences: differing.map(key).collect(),
        }
    }

    fn read(path: &Path) -> Result<Listed> {
        let wrong = |error: &dyn std::fmt::Display| {
            Error::Usage(format!(
                "{}: {error}; allowed is what `verifier check --json` prints, or the file of `--result`",
                path.display()
            ))
        };
        if Results::is_at(path).map_err(|error| wrong(&error))? {
            return Ok(Listed::of(&Results::open(path)?.read(None)?.0));
        }
        let text = std::fs::read(path).map_err(|error| wrong(&error))?;
        serde_json::from_slice(&text).map_err(|error| wrong(&error))
    }

    /// The keys of `channel`, and how many were compared then.
    fn keys(&self, config: &Config, channel: &str) -> Result<(Candidates, u64)> {
        if self.link != config.link {
            return Err(Error::Usage(format!(
                "the report is of the link {}, the configuration of {}",
                self.link, config.link
            )));
        }
        let mut keys = Candidates::new();
        for one in self.differences.iter().filter(|one| one.channel == channel) {
            let wrong = || Error::Usage(format!("the report has a key that is none: {:?}", one.at));
            keys.insert(one.at.key().ok_or_else(wrong)?, None);
        }
        let compared = self.channels.iter().find(|one| one.name == channel).map_or(0, |one| one.compared);
        Ok((keys, compared))
    }
}

struct Repairing<'a> {
    listed: Option<Listed>,
    arguments: &'a Repair,
    client: reqwest::Client,
    keeper: Keeper<'a>,
    plans: BTreeMap<String, Plan>,
}

impl Task for Repairing<'_> {
    async fn run<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        let from = From::read(&self.arguments.from, config)?;
        if self.arguments.yes && config.apis.is_empty() {
            return Err(Error::Local(
                "the configuration says of no daemon where it answers: set `[api]`".to_owned(),
            ));
        }
        let found = match &self.listed {
            None => compare(sites, traffic, progress, settings).await?,
            Some(listed) => {
                let (keys, compared) = listed.keys(config, &channel.name)?;
                if let Some((space, name)) =
                    keys.keys().find(|(space, name)| sites[0].place(space, name) == Place::Outside)
                {
                    return Err(Error::Usage(format!(
                        "channel {}: the report has a key that it does not carry: {} {}",
                        channel.name,
                        place(space),
                        key_text(space, name)
                    )));
                }
                let mut found = recheck(sites, keys, traffic, settings).await?;
                found.compared = compared;
                found
            }
        };
        self.refuse(&channel.name, &found)?;
        let keys: Vec<&Difference> = found.differences.iter().filter(|one| is_key(one)).collect();
        let whose = self.whose(config, channel, from, &keys).await?;
        let mut plan = Plan::default();
        let mut of_sites: [Vec<&Difference>; 2] = Default::default();
        for (one, site) in keys.iter().zip(whose) {
            let overwritten = site.and_then(|site| sites.get(1 - site));
            let obstacle = overwritten.and_then(|overwritten| overwritten.obstacle(&one.space, None));
            let of = match site.and_then(|site| Some((config.sites.get(site)?, of_sites.get_mut(site)?))) {
                Some(_) if let Some(obstacle) = obstacle => format!("left, {obstacle}: "),
                Some((site, keys)) => {
                    keys.push(one);
                    if let From::Site(_) = from { String::new() } else { format!("from {site} ") }
                }
                None if from == From::Owner => "left, nobody serves its tenant: ".to_owned(),
                None => "left, no log names it: ".to_owned(),
            };
            let (kind, place) = (word(one.kind), place(&one.space));
            plan.lines.push(format!("  {kind:<9} {of}{place} {}", key_text(&one.space, &one.name)));
        }
        plan.keys = of_sites.iter().map(|keys| keys.len() as u64).sum();
        plan.left = found.different + found.undecided - plan.keys;
        let outcome = if self.arguments.yes && plan.keys > 0 {
            let repaired = of_sites.iter().flatten().map(|one| (one.space.clone(), one.name.clone()));
            let repaired: Vec<_> = repaired.collect();
            for (site, keys) in config.sites.iter().zip(&of_sites) {
                plan.too_large += self.send((config, channel), sites, site, keys).await?;
            }
            plan.left += plan.too_large;
            let candidates = repaired.iter().cloned().map(|key| (key, None)).collect();
            let left = recheck(sites, candidates, traffic, settings).await?;
            plan.repaired = plan.keys - left.different - left.undecided;
            joined(found, left, &repaired.into_iter().collect())
        } else {
            found
        };
        self.plans.insert(channel.name.clone(), plan);
        Ok(outcome)
    }
}

/// Whether it is a key that can be carried, and no table itself.
fn is_key(one: &Difference) -> bool {
    one.kind.is_some() && one.sites.iter().flatten().all(|state| !matches!(state.what, "table" | "function"))
}

/// What is left of `found` once the keys `repaired` were repaired, of which `left` still differ.
fn joined(found: Outcome, left: Outcome, repaired: &HashSet<(Space, Bytes)>) -> Outcome {
    let mut all = Outcome::default();
    (all.compared, all.compared_roughly) = (found.compared, found.compared_roughly);
    let is_left = |one: &Difference| !repaired.contains(&(one.space.clone(), one.name.clone()));
    let others = found.differences.into_iter().filter(is_left);
    let all_left = others.chain(found.unsettled).chain(left.differences).chain(left.unsettled);
    all_left.for_each(|one| all.add(one, usize::MAX));
    all
}

impl Repairing<'_> {
    /// More than may differ is no accident, and perhaps the wrong site.
    fn refuse(&self, channel: &str, found: &Outcome) -> Result<()> {
        let Repair { keys_max, share_max, .. } = self.arguments;
        if found.different > *keys_max as u64 {
            return Err(Error::Usage(format!(
                "channel {channel}: {} keys differ, allowed are {keys_max}: look why, or raise --keys-max",
                grouped(found.different)
            )));
        }
        let share = 100.0 * found.different as f64 / found.compared.max(1) as f64;
        if found.different > 100 && share > *share_max {
            return Err(Error::Usage(format!(
                "channel {channel}: {share:.1} % of the keys differ, allowed are {share_max} %: look why, or raise --share-max"
            )));
        }
        Ok(())
    }

    /// Of each of `keys` the site that is right, by its place in the link; `None`: nobody can say.
    async fn whose(
        &self,
        config: &Config,
        channel: &Channel,
        from: From,
        keys: &[&Difference],
    ) -> Result<Vec<Option<usize>>> {
        #[derive(Deserialize)]
        struct Whose {
            whose: Vec<Option<String>>,
        }
        let by = match from {
            From::Site(site) => return Ok(vec![Some(site); keys.len()]),
            From::Newest => "newest",
            From::Owner => "owner",
        };
        let client = daemon::client(LOGS_READ_TIMEOUT)?;
        let mut all = Vec::with_capacity(keys.len());
        for some in keys.chunks(WHOSE_AT_ONCE) {
            let keys: Vec<KeyAt> = some.iter().map(|one| KeyAt::of(&one.space, &one.name)).collect();
            let body = json!({ "by": by, "keys": keys });
            let what = "says which site is right about keys of";
            let asked = Asked { config, channel: &channel.name, path: "whose", what };
            let answer = ask(asked, |url| client.post(url).json(&body)).await?;
            let Whose { whose } = answer.json().await.map_err(|error| {
                Error::Local(format!(
                    "channel {}: the daemon's answer: {}",
                    channel.name,
                    error.without_url()
                ))
            })?;
            if whose.len() != some.len() {
                return Err(Error::Local(format!("channel {}: the daemon told of other keys", channel.name)));
            }
            let place = |name: &String| config.sites.iter().position(|site| site == name);
            all.extend(whose.iter().map(|name| name.as_ref().and_then(place)));
        }
        Ok(all)
    }

    /// Has the daemon carry what `keys` hold at `from`, a request after the other, once it is kept what that overwrites; how
    /// many were left out because it could not be kept.
    async fn send<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        from: &str,
        keys: &[&Difference],
    ) -> Result<u64> {
        let [first, second] = sites;
        let overwritten = if config.sites[0] == from { (1, second) } else { (0, first) };
        let pace = Pace::new(Rates { ops: self.arguments.keys_per_second, bytes: None });
        let mut left_out = 0;
        for some in keys.chunks(KEYS_AT_ONCE.min(pace.burst())) {
            pace.take(some.len()).await;
            let too_large = self.keeper.keep(config, &channel.name, overwritten, some).await?;
            left_out += too_large.len() as u64;
            let kept = some.iter().enumerate().filter(|(n, _)| !too_large.contains(n));
            let keys: Vec<KeyAt> = kept.map(|(_, one)| KeyAt::of(&one.space, &one.name)).collect();
            if keys.is_empty() {
                continue;
            }
            carry(&self.client, (config, channel), from, &keys).await?;
        }
        Ok(left_out)
    }
}
