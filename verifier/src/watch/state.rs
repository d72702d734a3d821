//! What is known of a channel that is watched, what is told of it, and its metrics.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::{now_ms, rfc3339};
use serde_json::{Value, json};

use super::Watch;
use crate::compare::{Difference, DifferenceKind, Name, Outcome};
use crate::error::Error;
use crate::report::{KeyAt, grouped, key_text, place, printable, word};
use crate::window::Window;

/// Of one round so many differences are told one by one.
const TOLD_MAX: usize = 100;

/// One channel.
pub(super) struct State {
    channel: String,
    sites: [String; 2],
    json: bool,
    list_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Keys that differed, or were undecided, when they were compared last.
    open: BTreeMap<(Space, Bytes), Option<DifferenceKind>>,
    /// Those of the last comparison of everything that are too many to be watched.
    more: u64,
    /// What was written before is compared. Milliseconds since 1970.
    known: u64,
    /// When the last comparison of everything began, as long as not all that it found is equal again.
    whole: Option<u64>,
    /// When one began of which all is equal, or was found to be equal later.
    proof: Option<u64>,
    compared: [u64; 2],
    errors: u64,
    held: [Duration; 2],
}

impl State {
    pub(super) fn new(channel: &str, sites: &[String; 2], arguments: &Watch) -> State {
        let begin = now_ms().saturating_sub(arguments.every.as_millis() as u64);
        State {
            channel: channel.to_owned(),
            sites: sites.clone(),
            json: arguments.json,
            list_max: arguments.list_max,
            inner: Mutex::new(Inner { known: begin, ..Inner::default() }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written before this time is compared, in milliseconds since 1970.
    pub(super) fn known(&self) -> u64 {
        self.inner().known
    }

    /// What differed when it was compared last.
    pub(super) fn open(&self) -> Vec<Name> {
        self.inner().open.keys().map(|(space, name)| Name::Key(space.clone(), name.clone())).collect()
    }

    /// These that were `open`, and what was written in `window`, known up to `until`, was compared.
    pub(super) fn compared_lately(
        &self,
        open: &[Name],
        outcome: &Outcome,
        window: Option<Window>,
        until: Option<u64>,
    ) {
        let mut inner = self.inner();
        inner.compared[0] += outcome.compared;
        if let Some(window) = window {
            // A stream that does not tell how far it is is taken to be as far as the window.
            inner.known = until.unwrap_or(window.to).min(window.to).max(inner.known);
        }
        // What the comparison of everything found meanwhile was not looked at.
        let looked_at = open.iter().filter_map(|name| match name {
            Name::Key(space, name) => inner.open.remove_entry(&(space.clone(), name.clone())),
            Name::Space(_) => None,
        });
        let before = looked_at.collect();
        self.take(&mut inner, &before, outcome);
        inner.prove();
        let mended: Vec<_> = before.keys().filter(|key| !inner.open.contains_key(*key)).cloned().collect();
        drop(inner);
        for (space, name) in mended.iter().take(TOLD_MAX) {
            self.say("equal again", Some((space, name)), "");
        }
        if mended.len() > TOLD_MAX {
            self.say(
                "equal again",
                None,
                &format!("{} more keys", grouped((mended.len() - TOLD_MAX) as u64)),
            );
        }
    }

    /// Everything was compared, from `begin` on.
    pub(super) fn compared_wholly(&self, outcome: &Outcome, begin: u64) {
        let mut inner = self.inner();
        inner.compared[1] += outcome.compared;
        let all = outcome.different + outcome.undecided;
        inner.more = all.saturating_sub((outcome.differences.len() + outcome.unsettled.len()) as u64);
        inner.whole = Some(begin);
        let before = inner.open.clone();
        self.take(&mut inner, &before, outcome);
        inner.prove();
        drop(inner);
        let compared = grouped(outcome.compared);
        match all {
            0 => self.say("proof", None, &format!("{compared} keys compared, all equal")),
            _ => self.say("no proof", None, &format!("{compared} keys compared, {} not equal", grouped(all))),
        }
    }

    /// Takes note of what differs, and tells what did not differ `before`.
    fn take(
        &self,
        inner: &mut Inner,
        before: &BTreeMap<(Space, Bytes), Option<DifferenceKind>>,
        outcome: &Outcome,
    ) {
        let mut told = 0;
        for one in outcome.differences.iter().chain(&outcome.unsettled) {
            let key = (one.space.clone(), one.name.clone());
            if before.get(&key).or(inner.open.get(&key)) != Some(&one.kind) {
                told += 1;
                if told <= TOLD_MAX {
                    self.say_difference(one);
                }
            }
            if inner.open.len() < self.list_max {
                inner.open.insert(key, one.kind);
            } else {
                inner.more += 1;
            }
        }
        if told > TOLD_MAX {
            self.say("different", None, &format!("{} more keys", grouped((told - TOLD_MAX) as u64)));
        }
    }

    /// The logs no longer say what was written.
    pub(super) fn skip(&self, reason: &str) {
        let mut inner = self.inner();
        inner.known = now_ms();
        inner.errors += 1;
        drop(inner);
        self.say("left out", None, &format!("{reason}; the next comparison of everything looks at it"));
    }

    /// Something could not be reached, or failed.
    pub(super) fn fail(&self, error: &Error) {
        self.inner().errors += 1;
        self.say("error", None, &error.to_string());
    }

    /// The reading of a site made way.
    pub(super) fn held(&self, site: usize, time: Duration) {
        if let Some(held) = self.inner().held.get_mut(site) {
            *held += time;
        }
    }

    /// Whether everything was compared once, and nothing is known to differ.
    pub(super) fn is_equal(&self) -> bool {
        let inner = self.inner();
        inner.open.is_empty() && inner.more == 0 && inner.proof.is_some()
    }

    /// How it stands, at the end.
    pub(super) fn say_end(&self) {
        let inner = self.inner();
        let open = grouped(inner.open.len() as u64 + inner.more);
        let proof = inner.proof.map_or("never".to_owned(), |at| format!("as of {}", rfc3339(at)));
        let text = format!(
            "{open} keys not equal; written before {} is compared; all equal: {proof}",
            rfc3339(inner.known)
        );
        drop(inner);
        self.say("end", None, &text);
    }

    fn say_difference(&self, one: &Difference) {
        self.say(word(one.kind), Some((&one.space, &one.name)), &one.parts.join(", "));
    }

    /// One line, for people or as JSON. Keys and names of columns only, never a value.
    fn say(&self, event: &str, key: Option<(&Space, &Bytes)>, what: &str) {
        let time = rfc3339(now_ms());
        if self.json {
            let mut line = json!({ "time": time, "channel": self.channel, "event": event });
            let at = key.and_then(|(space, name)| serde_json::to_value(KeyAt::of(space, name)).ok());
            if let (Value::Object(line), Some(Value::Object(at))) = (&mut line, at) {
                line.extend(at);
            }
            if !what.is_empty() {
                line["what"] = what.into();
            }
            write_line(&line);
            return;
        }
        let key =
            key.map_or(String::new(), |(space, name)| format!(" {} {}", place(space), key_text(space, name)));
        let what = match what {
            "" => String::new(),
            what => format!(" {}", printable(what.as_bytes())),
        };
        write_line(&format_args!("{time} {} {event}{key}{what}", self.channel));
    }
}

impl Inner {
    /// With nothing open, what was compared wholly is equal.
    fn prove(&mut self) {
        if self.open.is_empty() && self.more == 0 {
            self.proof = self.whole.take().or(self.proof);
        }
    }
}

/// To standard output; whoever read that may be gone.
fn write_line(line: &dyn std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A label's value, as Prometheus's text format has it.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Gives the values of a metric, each with the labels beside the channel's.
type Values<'a> = &'a dyn Fn(&Inner, &State) -> Vec<(String, f64)>;

/// All metrics, in Prometheus's text format 0.0.4.
pub(super) fn metrics(channels: &[Arc<State>]) -> String {
    let mut out = String::new();
    let now = now_ms();
    let age = |at: u64| now.saturating_sub(at) as f64 / 1000.0;
    let mut family = |name: &str, kind: &str, help: &str, of: Values<'_>| {
        let _ = writeln!(out, "# HELP causeway_verify_{name} {help}\n# TYPE causeway_verify_{name} {kind}");
        for state in channels {
            let channel = label(&state.channel);
            for (labels, value) in of(&state.inner(), state) {
                let _ = writeln!(out, "causeway_verify_{name}{{channel=\"{channel}\"{labels}}} {value}");
            }
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    family(
        "open",
        "gauge",
        "Keys that were not equal, or undecided, when they were compared last.",
        &|inner, _| one((inner.open.len() as u64 + inner.more) as f64),
    );
    family(
        "compared_total",
        "counter",
        "Keys compared: lately written ones, and of everything.",
        &|inner, _| {
            let [lately, wholly] = inner.compared.map(|count| count as f64);
            vec![(",what=\"lately\"".to_owned(), lately), (",what=\"wholly\"".to_owned(), wholly)]
        },
    );
    family("known_age_seconds", "gauge", "What was written longer ago is compared.", &|inner, _| {
        one(age(inner.known))
    });
    family(
        "proof_age_seconds",
        "gauge",
        "How long ago the last comparison of everything began that found all equal; NaN: there was none.",
        &|inner, _| one(inner.proof.map_or(f64::NAN, age)),
    );
    family("errors_total", "counter", "What could not be reached, or failed.", &|inner, _| {
        one(inner.errors as f64)
    });
    family(
        "held_seconds_total",
        "counter",
        "How long reading made way for a slow store.",
        &|inner, state| {
            let held = state.sites.iter().zip(inner.held);
            held.map(|(site, held)| (format!(",site=\"{}\"", label(site)), held.as_secs_f64())).collect()
        },
    );
    out
}
