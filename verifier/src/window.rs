//! A stretch of time, and what the daemons' logs name that was written in it: `GET /v1/channels/{name}/written`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::{now_ms, parse_rfc3339, rfc3339};
use serde::Deserialize;

use crate::cli::duration;
use crate::compare::{Name, Naming};
use crate::config::Config;
use crate::daemon::{Asked, ask};
use crate::error::{Error, Result};
use crate::report::KeyAt;

/// How long a daemon may be silent: it may wait for its streams, and read through much of a log that names nothing.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A line is longer than any key with its place.
const LINE_MAX: usize = 8 << 20;

/// From a time up to another one, milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Window {
    /// `to`: now, if it is not given or lies ahead.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is no time in it.
    pub(crate) fn new(from: Option<u64>, to: Option<u64>) -> Result<Option<Window>> {
        let now = now_ms();
        let to = to.unwrap_or(now).min(now);
        match from {
            None => Ok(None),
            Some(from) if from < to => Ok(Some(Window { from, to })),
            Some(from) => Err(Error::Usage(format!(
                "--from {} is not before {}: allowed is a time that lies before --to and before now",
                rfc3339(from),
                rfc3339(to)
            ))),
        }
    }
}

/// A time as RFC 3339, or how long ago it was: `30m`, `2h`, `7d`; milliseconds since 1970.
///
/// # Errors
///
/// What is allowed.
pub(crate) fn time(text: &str) -> std::result::Result<u64, String> {
    let ago = || {
        let ago = duration(text).ok().filter(|_| !text.ends_with("ms"))?;
        now_ms().checked_sub(u64::try_from(ago.as_millis()).ok()?)
    };
    let wrong = "allowed is RFC 3339 such as 2026-03-01T02:00:00Z, or how long ago it was: 30m, 2h, 7d";
    parse_rfc3339(text).or_else(ago).ok_or_else(|| wrong.to_owned())
}

/// What the logs name, as the daemon tells it.
pub(crate) struct Written {
    channel: String,
    answer: reqwest::Response,
    /// What came and is no whole line yet.
    rest: Vec<u8>,
    lines: VecDeque<Line>,
    /// By site, up to when the logs are known to name everything; `None` before they said it.
    end: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    End {
        end: BTreeMap<String, Option<String>>,
    },
    Error {
        error: String,
        #[serde(default)]
        gone: bool,
    },
    Whole {
        #[serde(rename = "whole")]
        _whole: bool,
        table: Option<String>,
    },
    Key(KeyAt),
}

impl Written {
    /// Asks the daemons, the first that answers.
    ///
    /// # Errors
    ///
    /// [`Error::Local`] if none does, or its log does not reach back so far.
    pub(crate) async fn ask(config: &Config, channel: &str, window: Window) -> Result<Written> {
        let client = reqwest::Client::builder()
            .connect_timeout(crate::daemon::API_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            .no_proxy()
            .build()
            .map_err(|e| Error::Local(format!("set up the HTTP client: {e}")))?;
        let query = [("from", rfc3339(window.from)), ("to", rfc3339(window.to))];
        let what = Asked { config, channel, path: "written", what: "says what was written in" };
        let answer = ask(what, |url| client.get(url).query(&query)).await?;
        Ok(Written {
            channel: channel.to_owned(),
            answer,
            rest: Vec::new(),
            lines: VecDeque::new(),
            end: None,
        })
    }

    /// Up to when the logs are known to name everything that was written, if that is known and all was read.
    pub(crate) fn until(&self) -> Option<u64> {
        let ends = self.end.as_ref()?.values().map(|end| parse_rfc3339(end.as_deref()?));
        ends.collect::<Option<Vec<u64>>>()?.into_iter().min()
    }

    fn failed(&self, reason: impl std::fmt::Display) -> Error {
        Error::Local(format!("channel {}: what was written is not known: {reason}", self.channel))
    }

    /// Reads what came into lines.
    fn split(&mut self) -> Result<()> {
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return match self.rest.len() > LINE_MAX {
                true => Err(self.failed("the daemon sent what is no answer of syncd")),
                false => Ok(()),
            };
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        for line in whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = serde_json::from_slice(line);
            self.lines.push_back(line.map_err(|error| self.failed(error))?);
        }
        Ok(())
    }
}

impl Naming for Written {
    async fn next(&mut self) -> Result<Option<Vec<Name>>> {
        loop {
            let mut names = Vec::new();
            while let Some(line) = self.lines.pop_front() {
                match line {
                    Line::Key(at) => {
                        let (space, name) = at.key().ok_or_else(|| self.failed("a key is none"))?;
                        names.push(Name::Key(space, name));
                    }
                    Line::Whole { table, .. } => {
                        let space = table.map_or(Space::Whole, |table| Space::Table(Bytes::from(table)));
                        names.push(Name::Space(space));
                    }
                    Line::End { end } => self.end = Some(end),
                    Line::Error { error, gone: true } => {
                        return Err(Error::Gone(format!("channel {}: {error}", self.channel)));
                    }
                    Line::Error { error, .. } => return Err(self.failed(error)),
                }
            }
            if !names.is_empty() {
                return Ok(Some(names));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            match self.answer.chunk().await {
                Ok(Some(some)) => self.rest.extend_from_slice(&some),
                Ok(None) => return Err(self.failed("the daemon's answer was cut off: ask again")),
                Err(error) => return Err(self.failed(error.without_url())),
            }
            self.split()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_time_in_it() {
        let now = now_ms();
        assert_eq!(Window::new(None, None).unwrap(), None);
        assert_eq!(Window::new(Some(5), Some(9)).unwrap(), Some(Window { from: 5, to: 9 }));
        let open = Window::new(Some(now - 1000), Some(now + 60_000)).unwrap().unwrap();
        assert!((now..now + 10_000).contains(&open.to));
        for (from, to) in [(9, 9), (9, 5), (now + 60_000, now + 90_000)] {
            assert!(Window::new(Some(from), Some(to)).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn a_time_is_told_or_how_long_ago_it_was() {
        assert_eq!(time("2026-03-01T02:00:00Z"), Ok(1_772_330_400_000));
        let ago = now_ms() - time("2h").unwrap();
        assert!((7_200_000..7_210_000).contains(&ago), "{ago}");
        for text in
            ["", "2", "h", "2w", "-2h", "yesterday", "99999999999999999999d", "999999999999999d", "9é"]
        {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
