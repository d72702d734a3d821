//! What the daemons say of their lag, over `GET /v1/status`.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Deserialize;

use crate::compare::{Rest, Traffic};
use crate::config::{Channel, Config};
use crate::error::{Error, Result};
use crate::repair;

/// How long a daemon may take to say how it is.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a daemon is asked.
const POLL: Duration = Duration::from_millis(250);

/// The pause before a re-read where no daemon can say what is under way.
const PAUSE: Duration = Duration::from_millis(700);

/// What asks daemons.
///
/// # Errors
///
/// [`Error::Local`].
pub(crate) fn client(timeout: Duration) -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().timeout(timeout).no_proxy().build();
    client.map_err(|e| Error::Local(format!("set up the HTTP client: {e}")))
}

/// The daemons of a link, as far as one channel's traffic goes.
pub(crate) struct Daemons<'a> {
    client: &'a reqwest::Client,
    config: &'a Config,
    channel: &'a Channel,
    settle: Duration,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    channels: Vec<ChannelStatus>,
}

#[derive(Deserialize)]
struct ChannelStatus {
    name: String,
    #[serde(default)]
    directions: Vec<Direction>,
}

#[derive(Deserialize)]
struct Direction {
    from: String,
    #[serde(default)]
    lag: Option<Lag>,
    #[serde(default)]
    applied: Option<u64>,
}

#[derive(Deserialize)]
struct Lag {
    changes: Option<u64>,
}

/// One direction, as seen in one poll.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    from: String,
    lag: u64,
    applied: u64,
}

/// Judges polls that follow each other.
#[derive(Debug, Default)]
struct Watch {
    /// What has to be applied by when, from the first poll.
    goals: Vec<Seen>,
    /// Polls in a row that showed everything applied.
    quiet: u32,
    moved: bool,
}

impl Watch {
    /// Takes one poll; whether all that was under way in the first one is applied, by two polls in a row
    /// (the first may come before capture has read what was written last).
    fn poll(&mut self, seen: Vec<Seen>) -> bool {
        if self.goals.is_empty() {
            self.goals = seen.clone();
        }
        let done = seen.iter().all(|now| {
            let goal = self.goals.iter().find(|goal| goal.from == now.from);
            now.lag == 0
                || goal.is_some_and(|goal| now.applied >= goal.applied.saturating_add(goal.lag).max(1))
        });
        self.moved |= seen != self.goals;
        self.quiet = if done { self.quiet + 1 } else { 0 };
        self.quiet >= 2
    }
}

impl<'a> Daemons<'a> {
    /// `settle` bounds each wait.
    pub(crate) fn new(
        client: &'a reqwest::Client,
        config: &'a Config,
        channel: &'a Channel,
        settle: Duration,
    ) -> Self {
        Daemons { client, config, channel, settle }
    }

    /// Until the daemons know of what was written before now, where they ask the store only now and then for what is new: they
    /// look when they are asked what keys hold, and answer behind that.
    async fn look(&self) {
        let Channel { late, carries, .. } = self.channel;
        if late.is_zero() {
            return;
        }
        let ask = async {
            let Ok(client) = repair::client() else { return };
            let sites = self.config.sites.iter().zip(carries).filter(|(_, carries)| **carries);
            let asks = sites.map(|(site, _)| repair::carry(&client, (self.config, self.channel), site, &[]));
            // Where none answers, or of another process, they look after a while by themselves.
            let _ = tokio::time::timeout(self.settle, join_all(asks)).await;
        };
        tokio::join!(ask, tokio::time::sleep(*late));
    }

    /// The directions of the channel of which a lag is known; `None` if no daemon answers.
    async fn poll(&self) -> Option<Vec<Seen>> {
        let mut seen = Vec::new();
        let mut answered = false;
        for api in &self.config.apis {
            let request = self.client.get(format!("{api}/v1/status")).send();
            let Ok(response) = request.await else { continue };
            let Ok(status) = response.json::<Status>().await else { continue };
            for channel in status.channels.into_iter().filter(|c| c.name == self.channel.name) {
                for direction in channel.directions {
                    let Some(lag) = direction.lag.and_then(|lag| lag.changes) else { continue };
                    answered = true;
                    seen.push(Seen { from: direction.from, lag, applied: direction.applied.unwrap_or(0) });
                }
            }
        }
        answered.then_some(seen)
    }
}

impl Traffic for Daemons<'_> {
    async fn rest(&self) -> Rest {
        self.look().await;
        let start = Instant::now();
        let mut watch = Watch::default();
        loop {
            let Some(seen) = self.poll().await else {
                tokio::time::sleep(PAUSE).await;
                return Rest::Unknown;
            };
            if watch.poll(seen) {
                return Rest::Applied;
            }
            if start.elapsed() >= self.settle {
                return if watch.moved { Rest::Moving } else { Rest::Unknown };
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What is asked of the daemons: of a channel, at `/v1/channels/{name}/` and `path`.
pub(crate) struct Asked<'a> {
    pub(crate) config: &'a Config,
    pub(crate) channel: &'a str,
    pub(crate) path: &'a str,
    /// A verb phrase of what one does that answers, to which the channel is added.
    pub(crate) what: &'a str,
}

/// Asks one daemon after the other; the first answer that is none of an error.
///
/// # Errors
///
/// [`Error::Local`] with what each said.
pub(crate) async fn ask(
    asked: Asked<'_>,
    request: impl Fn(reqwest::Url) -> reqwest::RequestBuilder,
) -> Result<reqwest::Response> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let Asked { config, channel, path, what } = asked;
    if config.apis.is_empty() {
        return Err(Error::Local(
            "the configuration says of no daemon where it answers: set `[api]`".to_owned(),
        ));
    }
    let mut refusals = Vec::new();
    for api in &config.apis {
        let mut url = match reqwest::Url::parse(api) {
            Ok(url) => url,
            Err(error) => {
                refusals.push(format!("{api}: {error}"));
                continue;
            }
        };
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "channels", channel, path]);
        }
        match request(url).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(answer),
            Ok(answer) => {
                let status = answer.status();
                let told =
                    answer.json::<Refusal>().await.map_or_else(|_| status.to_string(), |told| told.error);
                refusals.push(format!("{api}: {told}"));
            }
            Err(error) => refusals.push(format!("{api}: {}", error.without_url())),
        }
    }
    Err(Error::Local(format!("no daemon {what} channel {channel}: {}", refusals.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lag: u64, applied: u64) -> Vec<Seen> {
        vec![Seen { from: "dc".into(), lag, applied }, Seen { from: "cloud".into(), lag: 0, applied: 7 }]
    }

    #[test]
    fn two_polls_without_lag_are_rest() {
        let mut watch = Watch::default();
        assert!(!watch.poll(seen(0, 5)));
        assert!(watch.poll(seen(0, 5)));
    }

    #[test]
    fn what_was_under_way_is_waited_for_and_not_what_comes_after() {
        let mut watch = Watch::default();
        assert!(!watch.poll(seen(10, 5)));
        assert!(!watch.poll(seen(10, 14)));
        assert!(!watch.poll(seen(10, 15)));
        assert!(watch.poll(seen(10, 16)));
        assert!(watch.moved);
    }
}
