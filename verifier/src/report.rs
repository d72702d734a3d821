//! A check's result, as JSON and for people. Keys and digests only, never a value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use causeway_core::time::rfc3339;
use causeway_core::{Space, document};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::{Difference, DifferenceKind, Outcome, Sample, State, share_at_most};
use crate::window::Window;

/// Keys named to people; `--json` has more.
pub(crate) const SHOWN: usize = 20;

/// A line's length at most.
const WIDTH: usize = 100;

/// What a check found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) link: String,
    pub(crate) sites: [String; 2],
    pub(crate) tenant: Option<String>,
    /// Only what was written in it; and up to when that is known.
    pub(crate) window: Option<(Window, Option<u64>)>,
    /// Only a part of the keys, taken at random.
    pub(crate) sample: Option<Sample>,
    pub(crate) took: Duration,
    /// Differences listed at most.
    pub(crate) list_max: usize,
    pub(crate) channels: Vec<ChannelReport>,
}

/// What it found in one channel.
#[derive(Debug)]
pub(crate) struct ChannelReport {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

/// What `verifier check --json` prints: the differences between the two sites of a link. No value is in it.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "verifier check --json", rename = "Check")]
struct Whole<'a> {
    /// The link's name.
    link: &'a str,
    /// Nothing differs, nothing is undecided, and of a window all is known that was written.
    equal: bool,
    /// Keys.
    compared: u64,
    /// Keys that differ; all of them.
    different: u64,
    /// Keys that kept changing; all of them.
    undecided: u64,
    /// Only what was written in it was compared; left out where everything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowAt>,
    /// Only a part of the keys was compared, taken at random; left out where all were.
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<SampleOf>,
    /// In the order of the configuration.
    channels: Vec<Counts<'a>>,
    /// The first ones of each channel; `--list-max` says how many.
    differences: Vec<Listed<'a>>,
}

/// A stretch of time, RFC 3339.
#[derive(Serialize, JsonSchema)]
struct WindowAt {
    from: String,
    /// No part of it.
    to: String,
    /// Up to when it is known what was written; null: that is not known.
    known_until: Option<String>,
}

/// A part of the keys, taken at random.
#[derive(Serialize, JsonSchema)]
struct SampleOf {
    /// How large a part was asked for, from 0 to 1.
    share: f64,
    /// With this confidence...
    confidence: f64,
    /// ...no larger part of all keys differs, or is undecided.
    differ_at_most: f64,
}

/// What was found in a channel.
#[derive(Serialize, JsonSchema)]
struct Counts<'a> {
    name: &'a str,
    compared: u64,
    different: u64,
    undecided: u64,
}

/// A key that differs.
#[derive(Serialize, JsonSchema)]
struct Listed<'a> {
    channel: &'a str,
    #[serde(flatten)]
    at: KeyAt,
    kind: DifferenceKind,
    /// Columns of a row, fields or members of a value, or what of a table; `type` where that differs.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    parts: &'a [String],
    /// By the site's name; null where it lacks the key.
    sites: BTreeMap<&'a str, Option<Held>>,
}

/// What a site holds.
#[derive(Serialize, JsonSchema)]
struct Held {
    /// 32 hexadecimal digits; compares within one run only.
    digest: String,
    /// RFC 3339; null: never.
    expire_at: Option<String>,
}

/// The JSON Schema of [`Report::json`].
#[cfg(test)]
fn json_schema() -> String {
    let schema = schemars::schema_for!(Whole<'static>);
    // A schema is JSON.
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

/// A key and where it lives, as reports and the daemon's interface have it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct KeyAt {
    key: KeyText,
    #[serde(flatten)]
    place: PlaceAt,
    /// Of a document that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    routing: Option<String>,
}

/// Where a key lives; a table itself, and a library of functions, nowhere.
#[derive(Debug, Default, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlaceAt {
    /// A database of Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) db: Option<u32>,
    /// `schema.table`, of a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<String>,
    /// Of a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<String>,
}

/// A key: text, or what it is in base64 where it is not UTF-8. Of a document its id.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum KeyText {
    Text(String),
    Bytes { base64: String },
}

impl PlaceAt {
    pub(crate) fn of(space: &Space) -> PlaceAt {
        let text = |name: &Bytes| Some(String::from_utf8_lossy(name).into_owned());
        let nowhere = PlaceAt::default();
        match space {
            Space::Db(db) => PlaceAt { db: Some(*db), ..nowhere },
            Space::Table(name) => PlaceAt { table: text(name), ..nowhere },
            Space::Index(name) => PlaceAt { index: text(name), ..nowhere },
            Space::Whole | Space::Bucket(_) => nowhere,
        }
    }

    /// The way back.
    pub(crate) fn space(self) -> Space {
        match self {
            PlaceAt { db: Some(db), .. } => Space::Db(db),
            PlaceAt { table: Some(table), .. } => Space::Table(table.into()),
            PlaceAt { index: Some(index), .. } => Space::Index(index.into()),
            _ => Space::Whole,
        }
    }
}

impl KeyAt {
    pub(crate) fn of(space: &Space, name: &[u8]) -> KeyAt {
        let (name, routing) = match (space, document::parts(name)) {
            (Space::Index(_), Some((id, routing))) => (id.as_bytes(), routing.map(str::to_owned)),
            _ => (name, None),
        };
        let key = match std::str::from_utf8(name) {
            Ok(text) => KeyText::Text(text.to_owned()),
            Err(_) => KeyText::Bytes { base64: BASE64.encode(name) },
        };
        KeyAt { key, place: PlaceAt::of(space), routing }
    }

    /// What it is of; `None`: it is no key.
    pub(crate) fn key(&self) -> Option<(Space, Bytes)> {
        let space = self.place.clone().space();
        let name = match (&space, &self.key) {
            // No routing is empty.
            (Space::Index(_), _) if self.routing.as_deref() == Some("") => return None,
            (Space::Index(_), KeyText::Text(id)) => document::name(id, self.routing.as_deref()),
            (Space::Index(_), KeyText::Bytes { .. }) => return None,
            (_, KeyText::Text(text)) => text.clone().into(),
            (_, KeyText::Bytes { base64 }) => BASE64.decode(base64).ok()?.into(),
        };
        Some((space, name))
    }
}

impl Report {
    /// Whether nothing differs, nothing is undecided, and all that was to be compared is known.
    pub(crate) fn equal(&self) -> bool {
        self.is_known() && self.channels.iter().all(|c| c.outcome.different == 0 && c.outcome.undecided == 0)
    }

    /// Whether it is known what was written in all of the window, if there is one.
    fn is_known(&self) -> bool {
        self.window.is_none_or(|(window, until)| until.is_some_and(|until| until >= window.to))
    }

    /// With a confidence of 95 %, no larger part of all keys is not equal than the sample says.
    fn differ_at_most(&self) -> f64 {
        share_at_most(self.sum(|o| o.compared), self.sum(|o| o.different + o.undecided))
    }

    /// The sum of something over the channels.
    pub(crate) fn sum(&self, of: impl Fn(&Outcome) -> u64) -> u64 {
        self.channels.iter().map(|c| of(&c.outcome)).sum()
    }

    /// Differences, then undecided keys, with their channels.
    pub(crate) fn listed(&self) -> impl Iterator<Item = (&str, &Difference)> {
        let of = |pick: fn(&Outcome) -> &Vec<Difference>| {
            let all = self.channels.iter();
            all.flat_map(move |c| pick(&c.outcome).iter().map(|d| (c.name.as_str(), d))).take(self.list_max)
        };
        of(|o| &o.differences).chain(of(|o| &o.unsettled))
    }

    /// As JSON, on one line.
    pub(crate) fn json(&self) -> String {
        let channels = self.channels.iter().map(|ChannelReport { name, outcome }| Counts {
            name,
            compared: outcome.compared,
            different: outcome.different,
            undecided: outcome.undecided,
        });
        let whole = Whole {
            link: &self.link,
            equal: self.equal(),
            compared: self.sum(|o| o.compared),
            different: self.sum(|o| o.different),
            undecided: self.sum(|o| o.undecided),
            window: self.window.map(|(window, until)| WindowAt {
                from: rfc3339(window.from),
                to: rfc3339(window.to),
                known_until: until.map(rfc3339),
            }),
            sample: self.sample.map(|sample| SampleOf {
                share: f64::from(sample.per_million) / 1e6,
                confidence: 0.95,
                differ_at_most: self.differ_at_most(),
            }),
            channels: channels.collect(),
            differences: self.listed().filter_map(|(c, d)| Some(self.difference(c, d, d.kind?))).collect(),
        };
        // Texts, numbers and maps with text keys: nothing that JSON has not.
        serde_json::to_string(&whole).unwrap_or_default()
    }

    fn difference<'a>(&'a self, channel: &'a str, it: &'a Difference, kind: DifferenceKind) -> Listed<'a> {
        let held = |state: &State| Held { digest: digest(state), expire_at: state.expire_at.map(rfc3339) };
        let states = it.sites.iter().map(|state| state.as_ref().map(held));
        let sites = self.sites.iter().map(String::as_str).zip(states).collect();
        Listed { channel, at: KeyAt::of(&it.space, &it.name), kind, parts: &it.parts, sites }
    }

    /// For people: at most [`WIDTH`] columns, at most [`SHOWN`] keys.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let verdict = if self.equal() { "equal" } else { "NOT EQUAL" };
        let of_tenant =
            self.tenant.as_ref().map_or(String::new(), |id| format!(", tenant {}", printable(id.as_bytes())));
        let [first, second] = &self.sites;
        push(&mut out, &format!("{}: {first} and {second} are {verdict}{of_tenant}", self.link));
        if let Some((window, until)) = self.window {
            push(&mut out, &format!("written from {} to {}", rfc3339(window.from), rfc3339(window.to)));
            if !self.is_known() {
                let until = until.map_or("an unknown time".to_owned(), rfc3339);
                push(&mut out, &format!("NOT KNOWN beyond {until}: a stream is behind, or does not tell"));
            }
        }
        if let Some(sample) = self.sample {
            let (share, at_most) = (f64::from(sample.per_million) / 1e4, 100.0 * self.differ_at_most());
            push(
                &mut out,
                &format!(
                    "a sample of {share} % of the keys; of all, with 95 % confidence, at most {at_most:.4} % are not equal"
                ),
            );
        }
        let compared = self.sum(|o| o.compared);
        let seconds = self.took.as_secs_f64().max(0.001);
        let rate = (compared as f64 / seconds) as u64;
        let about = if self.channels.iter().any(|c| c.outcome.compared_roughly) { "about " } else { "" };
        push(
            &mut out,
            &format!(
                "{about}{} keys compared in {seconds:.1} s, {} keys/s",
                grouped(compared),
                grouped(rate)
            ),
        );
        for ChannelReport { name, outcome } in &self.channels {
            push(
                &mut out,
                &format!(
                    "channel {name}: {} compared, {} different, {} undecided",
                    grouped(outcome.compared),
                    grouped(outcome.different),
                    grouped(outcome.undecided)
                ),
            );
            for ((what, kind), count) in &outcome.counts {
                push(&mut out, &format!("  {:>10} {what} {}", grouped(*count), self.describe(*kind)));
            }
        }
        let mut shown = 0;
        for (channel, difference) in self.listed().take(SHOWN) {
            if shown == 0 {
                push(&mut out, "keys:");
            }
            shown += 1;
            let place = place(&difference.space);
            let head = format!("  {:<9} {channel} {place}", word(difference.kind));
            let room = WIDTH.saturating_sub(head.chars().count() + 1).max(20);
            let parts = match difference.parts.as_slice() {
                [] => String::new(),
                parts => format!(" ({})", printable(parts.join(", ").as_bytes())),
            };
            let name = key_text(&difference.space, &difference.name);
            push(&mut out, &format!("{head} {}", shortened(&format!("{name}{parts}"), room)));
        }
        let all = self.sum(|o| o.different + o.undecided);
        if all > shown {
            push(&mut out, &format!("  … and {} more; --json and --html list them", grouped(all - shown)));
        }
        out
    }

    /// What a kind means, in the sites' names.
    pub(crate) fn describe(&self, kind: Option<DifferenceKind>) -> String {
        let [first, second] = &self.sites;
        match kind {
            Some(DifferenceKind::Missing) => format!("missing at {first}"),
            Some(DifferenceKind::Extra) => format!("missing at {second} (extra at {first})"),
            Some(DifferenceKind::Content) => "different in content".to_owned(),
            Some(DifferenceKind::Expiry) => "different in expire-at".to_owned(),
            None => "undecided (kept changing)".to_owned(),
        }
    }
}

/// Adds a line for people, cut at [`WIDTH`].
pub(crate) fn push(out: &mut String, line: &str) {
    out.extend(line.chars().take(WIDTH));
    out.push('\n');
}

/// The word for a kind, or for undecided.
pub(crate) fn word(kind: Option<DifferenceKind>) -> &'static str {
    kind.map_or("undecided", DifferenceKind::as_str)
}

/// Where a key lives, for people.
pub(crate) fn place(space: &Space) -> String {
    match space {
        Space::Db(db) => format!("db{db}"),
        Space::Table(name) | Space::Index(name) | Space::Bucket(name) => printable(name).into_owned(),
        Space::Whole => "-".to_owned(),
    }
}

/// A key for people, without the place where it lives.
pub(crate) fn key_text(space: &Space, name: &[u8]) -> String {
    match (space, document::parts(name)) {
        (Space::Index(_), Some((id, Some(routing)))) => {
            format!("{}, routing {}", printable(id.as_bytes()), printable(routing.as_bytes()))
        }
        (Space::Index(_), Some((id, None))) => printable(id.as_bytes()).into_owned(),
        _ => printable(name).into_owned(),
    }
}

/// A digest as text: 32 hexadecimal digits.
pub(crate) fn digest(state: &State) -> String {
    format!("{:032x}", state.digest)
}

/// A key on a terminal or a page: what is no printable text is written as `\xNN`.
pub(crate) fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Cow::Borrowed(text),
        _ => {
            let mut out = String::new();
            for chunk in bytes.utf8_chunks() {
                for c in chunk.valid().chars() {
                    if c.is_control() {
                        let mut buffer = [0; 4];
                        for byte in c.encode_utf8(&mut buffer).bytes() {
                            let _ = write!(out, "\\x{byte:02x}");
                        }
                    } else {
                        out.push(c);
                    }
                }
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            Cow::Owned(out)
        }
    }
}

fn shortened(text: &str, room: usize) -> Cow<'_, str> {
    if text.chars().count() <= room {
        return Cow::Borrowed(text);
    }
    let mut short: String = text.chars().take(room.saturating_sub(1)).collect();
    short.push('…');
    Cow::Owned(short)
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Write it anew with `UPDATE_SCHEMA=1 cargo test -p verifier schema`.
    #[test]
    fn the_schema_file_is_the_one_of_this_build() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/check.schema.json");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, json_schema()).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == json_schema(), "{path} is old: UPDATE_SCHEMA=1 writes it anew");
    }

    #[test]
    fn keys_cannot_write_to_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\xff\n"), "a\\x1b[2Jb\\xff\\x0a");
        assert_eq!(printable("clé".as_bytes()), "clé");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
