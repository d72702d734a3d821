//! A file's text to a [`Runbook`]: read, and checked as a whole against the configuration.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use causeway_core::Site;
use sha2::{Digest, Sha256};

use super::book::{Gates, Kind, OnFailure, Param, Runbook, Step, Wait, Wanted};
use super::tree::{self, Entry, Node, Place, Value, Wrong};
use super::when::{self, Base, Time, TimeColumn, Window};
use crate::config::{Config, ConfigError, parse_duration};
use crate::status::parse_rfc3339;

const TOP_KEYS: &[&str] = &["runbook", "about", "params", "steps"];
const PARAM_KEYS: &[&str] = &["about", "default"];

/// What every step may say.
const STEP_KEYS: [&str; 4] = ["name", "when", "on_failure", "attempts"];

/// Each kind and what it may say besides.
const KINDS: [(&str, &[&str]); 7] = [
    ("snapshot", &["channels", "again", "timeout"]),
    ("wait", &["channels", "until", "lag_changes_max", "lag_seconds_max", "at", "for", "timeout"]),
    ("verify", &["channels", "from", "to", "time_column", "timeout"]),
    ("backfill", &["channels", "from", "to", "time_column", "site", "timeout"]),
    ("repair", &["channels", "from", "keys_max", "share_max", "timeout"]),
    ("observe", &["channels", "for", "lag_seconds_max", "conflicts_max", "dead_letters_max", "gaps_max"]),
    ("approve", &["ask"]),
];

const STEPS_MAX: usize = 200;
const PARAMS_MAX: usize = 50;

/// Jumps of one step in a run.
const ATTEMPTS_MAX: u64 = 100;

/// No step takes a year.
const TIME_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A million keys are verified in minutes; what takes longer than a day has to say so.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(86_400);

type Answer<T> = Result<T, Wrong>;

impl Runbook {
    /// Reads and checks the file at `path` against `config`; changes nothing and asks nobody.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it: where, and what is allowed.
    pub fn load(path: &Path, config: &Config) -> Result<Runbook, ConfigError> {
        let unread =
            |error: std::io::Error| ConfigError::whole_file(path, format!("cannot be read: {error}"));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(unread)?;
        file.take(tree::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
        if bytes.len() as u64 > tree::BYTES_MAX {
            let message = format!("is larger than {} KiB, allowed is less", tree::BYTES_MAX >> 10);
            return Err(ConfigError::whole_file(path, message));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| ConfigError::whole_file(path, "is no text in UTF-8, allowed is YAML in UTF-8"))?;
        Runbook::parse(path, &text, config)
    }

    /// As [`load`](Runbook::load), of a text.
    ///
    /// # Errors
    ///
    /// As [`load`](Runbook::load).
    pub fn parse(path: &Path, text: &str, config: &Config) -> Result<Runbook, ConfigError> {
        let read = || {
            let root = tree::read(text)?;
            let top = Fields::of(&root, "a runbook".to_owned(), TOP_KEYS)?;
            let name = top.needed("runbook")?;
            let name = self::name(name, "runbook")?;
            let params = params(&top)?;
            let steps = steps(&top, config)?;
            let book = Runbook {
                path: path.to_owned(),
                name,
                about: top.get("about").map(text_of).transpose()?.map(str::to_owned),
                digest: hex(&Sha256::digest(text.as_bytes())),
                params,
                steps,
            };
            times(&book, &top)?;
            Ok(book)
        };
        read().map_err(|Wrong { at, message }| ConfigError::at(path, at, message))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The keys of a map, all of them known ones.
struct Fields<'a> {
    at: Place,
    what: String,
    entries: &'a [Entry],
}

impl<'a> Fields<'a> {
    fn of(node: &'a Node, what: String, allowed: &[&str]) -> Answer<Fields<'a>> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} is {}, allowed is a map with {}", node.value.what(), list(allowed));
            return Err(Wrong::new(node.at, message));
        };
        if let Some(entry) = entries.iter().find(|entry| !allowed.contains(&entry.key.as_str())) {
            let message = format!("{what} has no `{}`, allowed is {}", shown(&entry.key), list(allowed));
            return Err(Wrong::new(entry.at, message));
        }
        Ok(Fields { at: node.at, what, entries })
    }

    fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    fn needed(&self, key: &str) -> Answer<&'a Node> {
        self.get(key).ok_or_else(|| Wrong::new(self.at, format!("{} lacks `{key}`", self.what)))
    }

    fn count(&self, key: &str) -> Answer<Option<u64>> {
        let Some(node) = self.get(key) else { return Ok(None) };
        match text_of(node)?.parse() {
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(not(node, key, "a whole number, 0 or more")),
        }
    }

    fn number(&self, key: &str) -> Answer<Option<f64>> {
        let Some(node) = self.get(key) else { return Ok(None) };
        match text_of(node)?.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            _ => Err(not(node, key, "a number, 0 or more")),
        }
    }

    fn duration(&self, key: &str) -> Answer<Option<Duration>> {
        let Some(node) = self.get(key) else { return Ok(None) };
        match parse_duration(text_of(node)?) {
            Some(time) if !time.is_zero() && time <= TIME_MAX => Ok(Some(time)),
            _ => Err(not(node, key, "a whole number with one of ms, s, m, h, d, such as 10m, up to 366d")),
        }
    }

    fn timeout(&self) -> Answer<Duration> {
        self.duration("timeout")?.ok_or_else(|| {
            Wrong::new(self.at, format!("{} has no end: say `timeout`, such as `timeout: 10m`", self.what))
        })
    }

    fn time(&self, key: &str) -> Answer<Option<Time>> {
        let Some(node) = self.get(key) else { return Ok(None) };
        Time::parse(text_of(node)?, node.at).map(Some).ok_or_else(|| {
            let text = text_of(node).unwrap_or_default();
            Wrong::new(node.at, format!("{key} is `{}`, {}", shown(text), when::ALLOWED))
        })
    }

    fn window(&self) -> Answer<Option<Window>> {
        let (from, to) = match (self.time("from")?, self.time("to")?) {
            (None, None) => {
                return match self.get("time_column") {
                    None => Ok(None),
                    Some(node) => Err(Wrong::new(node.at, "time_column is of a window: say `from` and `to`")),
                };
            }
            (Some(from), Some(to)) => (from, to),
            (from, _) => {
                let lacks = if from.is_some() { "to" } else { "from" };
                return Err(Wrong::new(self.at, format!("{} lacks `{lacks}`: a window has both", self.what)));
            }
        };
        let column = self
            .get("time_column")
            .map(text_of)
            .transpose()?
            .map(|name| TimeColumn { name: name.to_owned(), site: None });
        let window = Window { from, to, column };
        if window.is_upside_down() {
            let message = format!("{}: the window has to end later than it begins", self.what);
            return Err(Wrong::new(window.to.at, message));
        }
        Ok(Some(window))
    }

    fn channels(&self, config: &Config) -> Answer<Option<Vec<String>>> {
        let Some(node) = self.get("channels") else { return Ok(None) };
        let known: Vec<&str> = config.channels.iter().map(|channel| channel.name.as_str()).collect();
        let Value::List(items) = &node.value else {
            let message =
                format!("channels is {}, allowed is a list: [{}]", node.value.what(), known.join(", "));
            return Err(Wrong::new(node.at, message));
        };
        let mut channels: Vec<String> = Vec::new();
        for item in items {
            let name = text_of(item)?;
            if !known.contains(&name) {
                let message = format!(
                    "no channel `{}` in {}, there is {}",
                    shown(name),
                    config.path.display(),
                    list(&known)
                );
                return Err(Wrong::new(item.at, message));
            }
            if channels.iter().any(|channel| channel == name) {
                return Err(Wrong::new(item.at, format!("channel `{name}` stands here twice")));
            }
            channels.push(name.to_owned());
        }
        match channels.is_empty() {
            true => Err(Wrong::new(node.at, "channels is empty: name some, or leave it out for all")),
            false => Ok(Some(channels)),
        }
    }
}

fn params(top: &Fields<'_>) -> Answer<Vec<Param>> {
    let Some(node) = top.get("params") else { return Ok(Vec::new()) };
    let Value::Map(entries) = &node.value else {
        let message =
            format!("params is {}, allowed is a map of names: {{ from: {{ about: … }} }}", node.value.what());
        return Err(Wrong::new(node.at, message));
    };
    if entries.len() > PARAMS_MAX {
        return Err(Wrong::new(node.at, format!("{} params, allowed are {PARAMS_MAX}", entries.len())));
    }
    let read = |entry: &Entry| {
        let what = format!("param `{}`", shown(&entry.key));
        if !is_name(&entry.key) {
            return Err(Wrong::new(entry.at, format!("{what}: {NAME}")));
        }
        let name = entry.key.clone();
        if entry.value.value == Value::Nothing {
            return Ok(Param { name, about: None, default: None });
        }
        let fields = Fields::of(&entry.value, what, PARAM_KEYS)?;
        let about = fields.get("about").map(text_of).transpose()?.map(str::to_owned);
        let default = match fields.get("default") {
            None => None,
            Some(node) => match text_of(node)? {
                text if parse_rfc3339(text).is_some() => Some(text.to_owned()),
                _ => return Err(not(node, "default", "RFC 3339 such as 2026-03-01T02:00:00Z")),
            },
        };
        Ok(Param { name, about, default })
    };
    entries.iter().map(read).collect()
}

/// A step before the names in it are looked up.
struct Raw<'a> {
    name: String,
    fields: Fields<'a>,
    kind: Kind,
    at: Place,
}

fn steps(top: &Fields<'_>, config: &Config) -> Answer<Vec<Step>> {
    let node = top.needed("steps")?;
    let Value::List(items) = &node.value else {
        return Err(Wrong::new(node.at, format!("steps is {}, allowed is a list", node.value.what())));
    };
    if items.is_empty() || items.len() > STEPS_MAX {
        return Err(Wrong::new(node.at, format!("{} steps, allowed are 1 to {STEPS_MAX}", items.len())));
    }
    let mut raws: Vec<Raw<'_>> = Vec::with_capacity(items.len());
    for item in items {
        let raw = raw(item, config)?;
        if let Some(first) = raws.iter().find(|other| other.name == raw.name) {
            let message = format!(
                "there are two steps `{}`, the first in line {}: give one of them another `name`",
                raw.name, first.at.0
            );
            return Err(Wrong::new(raw.at, message));
        }
        raws.push(raw);
    }
    let names: Vec<String> = raws.iter().map(|raw| raw.name.clone()).collect();
    let failures: Vec<OnFailure> =
        raws.iter().map(|raw| on_failure(raw, &names)).collect::<Answer<Vec<_>>>()?;
    let mut steps = Vec::with_capacity(raws.len());
    for (index, raw) in raws.into_iter().enumerate() {
        let when_failed = when_failed(&raw, &names[..index], &names, &failures)?;
        let Raw { name, kind, .. } = raw;
        steps.push(Step { name, kind, when_failed, on_failure: failures[index] });
    }
    Ok(steps)
}

fn raw<'a>(item: &'a Node, config: &Config) -> Answer<Raw<'a>> {
    let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let Value::Map(entries) = &item.value else {
        let message = format!(
            "a step is {}, allowed is one of {} with what it needs: `- wait: {{ for: 1m }}`",
            item.value.what(),
            list(&kinds)
        );
        return Err(Wrong::new(item.at, message));
    };
    let [entry, rest @ ..] = entries.as_slice() else {
        return Err(Wrong::new(item.at, format!("a step is empty, allowed is one of {}", list(&kinds))));
    };
    let Some((kind, keys)) = KINDS.iter().find(|(kind, _)| *kind == entry.key) else {
        let message =
            format!("no step is called `{}`, allowed is one of {}", shown(&entry.key), list(&kinds));
        return Err(Wrong::new(entry.at, message));
    };
    if let Some(second) = rest.first() {
        let message = format!(
            "`{}` stands beside `{kind}`: what a step says belongs under it, indented further, and a new step begins with `-`",
            shown(&second.key)
        );
        return Err(Wrong::new(second.at, message));
    }
    let allowed: Vec<&str> = keys.iter().copied().chain(STEP_KEYS).collect();
    let fields = Fields::of(&entry.value, format!("step `{kind}`"), &allowed)?;
    let name = match fields.get("name") {
        None => (*kind).to_owned(),
        Some(node) => match self::name(node, "name")? {
            name if name == "stop" || name == "continue" => {
                return Err(Wrong::new(
                    node.at,
                    format!("name is `{name}`, which on_failure means otherwise"),
                ));
            }
            name => name,
        },
    };
    let fields = Fields { what: format!("step `{name}`"), ..fields };
    let kind = self::kind(kind, &fields, config)?;
    Ok(Raw { name, fields, kind, at: entry.at })
}

/// The window that a `backfill` closes.
fn closed(fields: &Fields<'_>, config: &Config) -> Answer<Window> {
    let mut window = fields.window()?.ok_or_else(|| {
        Wrong::new(fields.at, format!("{} lacks `from` and `to`: the window that it closes", fields.what))
    })?;
    match (&mut window.column, fields.get("site")) {
        (None, None) => {}
        (None, Some(node)) => {
            return Err(Wrong::new(node.at, "site goes with time_column: the logs say which site wrote"));
        }
        (Some(_), None) => {
            let message = format!("{} lacks `site`: whose keys are carried", fields.what);
            return Err(Wrong::new(fields.at, message));
        }
        (Some(column), Some(node)) => {
            let site = text_of(node)?;
            if !config.sites.iter().any(|known| known == site) {
                return Err(not(node, "site", &config.sites.join(" or ")));
            }
            column.site = Some(site.to_owned());
        }
    }
    Ok(window)
}

fn kind(kind: &str, fields: &Fields<'_>, config: &Config) -> Answer<Kind> {
    let channels = fields.channels(config)?;
    let all = || config.channels.iter().map(|channel| channel.name.clone()).collect::<Vec<_>>();
    let program_timeout = || Ok(fields.duration("timeout")?.unwrap_or(PROGRAM_TIMEOUT));
    Ok(match kind {
        "snapshot" => Kind::Snapshot {
            channels: copied(fields, channels, config)?,
            again: match fields.get("again") {
                None => true,
                Some(node) => match text_of(node)? {
                    "true" => true,
                    "false" => false,
                    _ => return Err(not(node, "again", "true or false")),
                },
            },
            timeout: fields.timeout()?,
        },
        "wait" => Kind::Wait(wait(fields, channels)?),
        "verify" => Kind::Verify { channels, window: fields.window()?, timeout: program_timeout()? },
        "backfill" => Kind::Backfill {
            channels: channels.unwrap_or_else(all),
            window: closed(fields, config)?,
            timeout: program_timeout()?,
        },
        "repair" => {
            let [first, second] = &config.sites;
            let allowed = [first.as_str(), second.as_str(), "newest", "owner"];
            let node = fields.needed("from")?;
            let from = text_of(node)?;
            if !allowed.contains(&from) {
                return Err(not(node, "from", &list(&allowed)));
            }
            let share_max = fields.number("share_max")?;
            if share_max.is_some_and(|share| share > 100.0) {
                return Err(not(fields.needed("share_max")?, "share_max", "a number of percent, 0 to 100"));
            }
            Kind::Repair {
                channels,
                from: from.to_owned(),
                keys_max: fields.count("keys_max")?,
                share_max,
                timeout: program_timeout()?,
            }
        }
        "observe" => Kind::Observe {
            channels,
            time: fields.duration("for")?.ok_or_else(|| {
                Wrong::new(fields.at, format!("{} has no end: say `for`, such as `for: 30m`", fields.what))
            })?,
            gates: Gates {
                lag_seconds_max: fields.number("lag_seconds_max")?,
                conflicts_max: fields.count("conflicts_max")?,
                dead_letters_max: fields.count("dead_letters_max")?.unwrap_or(0),
                gaps_max: fields.count("gaps_max")?.unwrap_or(0),
            },
        },
        _ => Kind::Approve { ask: text_of(fields.needed("ask")?)?.trim().to_owned() },
    })
}

/// The channels of a snapshot: only such as copy something.
fn copied(fields: &Fields<'_>, named: Option<Vec<String>>, config: &Config) -> Answer<Vec<String>> {
    let copies = |name: &str| {
        config.channel(name).is_some_and(|(_, channel)| {
            Site::BOTH.into_iter().any(|site| channel.snapshot.names(site) && channel.direction.carries(site))
        })
    };
    let at = fields.get("channels").map_or(fields.at, |node| node.at);
    match named {
        Some(named) => match named.iter().find(|name| !copies(name)) {
            None => Ok(named),
            Some(name) => {
                let message = format!("channel `{name}` has `snapshot = \"none\"`: there is nothing to copy");
                Err(Wrong::new(at, message))
            }
        },
        None => {
            let all: Vec<String> = config
                .channels
                .iter()
                .map(|channel| channel.name.clone())
                .filter(|name| copies(name))
                .collect();
            match all.is_empty() {
                false => Ok(all),
                true => {
                    Err(Wrong::new(at, "every channel has `snapshot = \"none\"`: there is nothing to copy"))
                }
            }
        }
    }
}

fn wait(fields: &Fields<'_>, channels: Option<Vec<String>>) -> Answer<Wait> {
    let mut wanted = Wanted {
        streaming: false,
        lag_changes_max: fields.count("lag_changes_max")?,
        lag_seconds_max: fields.number("lag_seconds_max")?,
    };
    if let Some(node) = fields.get("until") {
        match text_of(node)? {
            "streaming" => wanted.streaming = true,
            _ => return Err(not(node, "until", "`streaming`; a point in time is `at`")),
        }
    }
    let (at, time) = (fields.time("at")?, fields.duration("for")?);
    let ways = [wanted != Wanted::default(), at.is_some(), time.is_some()];
    if ways.into_iter().filter(|way| *way).count() != 1 {
        let message = format!(
            "{} has to say what it waits for, one of: `until: streaming`, lag_seconds_max and lag_changes_max, alone or \
             together; `at`; `for`",
            fields.what
        );
        return Err(Wrong::new(fields.at, message));
    }
    let useless = |key: &str, why: &str| match fields.get(key) {
        Some(node) => Err(Wrong::new(node.at, format!("{} has no use for `{key}`: {why}", fields.what))),
        None => Ok(()),
    };
    if let Some(time) = time {
        useless("timeout", "it ends by itself")?;
        useless("channels", "it looks at none")?;
        return Ok(Wait::For(time));
    }
    let timeout = fields.timeout()?;
    match at {
        Some(time) => {
            useless("channels", "it looks at none")?;
            Ok(Wait::At { time, timeout })
        }
        None => Ok(Wait::Status { channels, wanted, timeout }),
    }
}

fn on_failure(raw: &Raw<'_>, names: &[String]) -> Answer<OnFailure> {
    let fields = &raw.fields;
    let attempts = match (fields.get("attempts"), fields.count("attempts")?) {
        (Some(node), Some(attempts)) => match attempts {
            1..=ATTEMPTS_MAX => Some((node, attempts as u32)),
            _ => return Err(not(node, "attempts", &format!("1 to {ATTEMPTS_MAX}"))),
        },
        _ => None,
    };
    let node = fields.get("on_failure");
    let said = node.map(text_of).transpose()?.unwrap_or("stop");
    let fixed = match said {
        "stop" => OnFailure::Stop,
        "continue" => OnFailure::Continue,
        name => match names.iter().position(|known| known == name) {
            Some(step) => {
                return Ok(OnFailure::GoTo { step, attempts: attempts.map_or(1, |(_, attempts)| attempts) });
            }
            None => {
                let at = node.map_or(raw.at, |node| node.at);
                let message = format!(
                    "on_failure is `{}`, allowed is stop, continue or a step: {}",
                    shown(name),
                    names.join(", ")
                );
                return Err(Wrong::new(at, message));
            }
        },
    };
    match attempts {
        Some((node, _)) => Err(Wrong::new(
            node.at,
            format!("attempts is for an on_failure that names a step, here it is `{said}`"),
        )),
        None => Ok(fixed),
    }
}

fn when_failed(
    raw: &Raw<'_>,
    earlier: &[String],
    all: &[String],
    failures: &[OnFailure],
) -> Answer<Option<usize>> {
    let Some(node) = raw.fields.get("when") else { return Ok(None) };
    let text = text_of(node)?;
    let Some(name) = text.strip_suffix(" failed").map(str::trim) else {
        return Err(not(node, "when", "`STEP failed`, with an earlier step"));
    };
    let Some(step) = earlier.iter().position(|known| known == name) else {
        return Err(Wrong::new(node.at, no_earlier(name, earlier, all)));
    };
    if failures.get(step) == Some(&OnFailure::Stop) {
        let message = format!(
            "when is `{}`, but a run ends where `{name}` fails: say `on_failure: continue` there",
            shown(text)
        );
        return Err(Wrong::new(node.at, message));
    }
    Ok(Some(step))
}

fn no_earlier(name: &str, earlier: &[String], all: &[String]) -> String {
    let there = match earlier {
        [] => "there is none before it".to_owned(),
        earlier => format!("before it there is {}", earlier.join(", ")),
    };
    match all.iter().any(|known| known == name) {
        true => format!("step `{}` comes later, or is this one; {there}", shown(name)),
        false => format!("there is no step `{}`; {there}", shown(name)),
    }
}

/// Checks what the times of the steps refer to, and that each parameter is used.
fn times(book: &Runbook, top: &Fields<'_>) -> Answer<()> {
    let names: Vec<String> = book.steps.iter().map(|step| step.name.clone()).collect();
    let mut used: Vec<&str> = Vec::new();
    for (index, step) in book.steps.iter().enumerate() {
        for time in step.kind.times() {
            if let Base::Param(name) = &time.base {
                if !book.params.iter().any(|param| param.name == *name) {
                    let known: Vec<&str> = book.params.iter().map(|param| param.name.as_str()).collect();
                    let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    let message = format!("there is no param `{}`; params has {there}", shown(name));
                    return Err(Wrong::new(time.at, message));
                }
                used.push(name);
            }
            let Some(name) = time.step() else { continue };
            let Some(other) = names.iter().take(index).position(|known| known == name) else {
                return Err(Wrong::new(
                    time.at,
                    no_earlier(name, names.get(..index).unwrap_or_default(), &names),
                ));
            };
            if let Some(why) = may_be_left_out(book, other) {
                return Err(Wrong::new(time.at, format!("`{name}` may have no time: {why}")));
            }
        }
    }
    let unused = book.params.iter().find(|param| !used.contains(&param.name.as_str()));
    match (unused, top.get("params").map(|node| &node.value)) {
        (Some(param), Some(Value::Map(entries))) => {
            let at = entries.iter().find(|entry| entry.key == param.name).map_or(top.at, |entry| entry.at);
            Err(Wrong::new(at, format!("no step uses `${}`: use it, or leave it out", param.name)))
        }
        _ => Ok(()),
    }
}

/// Why a run may come behind step `index` without having done it.
fn may_be_left_out(book: &Runbook, index: usize) -> Option<String> {
    if book.steps.get(index)?.when_failed.is_some() {
        return Some("it is skipped if its `when` does not hold".to_owned());
    }
    let over = |step: &&Step| matches!(step.on_failure, OnFailure::GoTo { step: to, .. } if to > index);
    let jumps = book.steps.iter().take(index).find(over)?;
    Some(format!("the on_failure of `{}` goes past it", jumps.name))
}

fn name(node: &Node, key: &str) -> Answer<String> {
    let text = text_of(node)?;
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(node.at, format!("{key} is `{}`, {NAME}", shown(text)))),
    }
}

const NAME: &str = "allowed is 1 to 64 of A-Z a-z 0-9 - _";

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn text_of(node: &Node) -> Answer<&str> {
    match &node.value {
        Value::Text(text) => Ok(text),
        other => Err(Wrong::new(node.at, format!("here is {}, allowed is a text", other.what()))),
    }
}

fn not(node: &Node, key: &str, allowed: &str) -> Wrong {
    let text = text_of(node).unwrap_or_default();
    Wrong::new(node.at, format!("{key} is `{}`, allowed is {allowed}", shown(text)))
}

/// A text of the file as a message shows it.
fn shown(text: &str) -> String {
    const MAX: usize = 60;
    let mut line: String = text.chars().take(MAX).map(|c| if c == '\n' { ' ' } else { c }).collect();
    if text.chars().nth(MAX).is_some() {
        line.push('…');
    }
    line
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
