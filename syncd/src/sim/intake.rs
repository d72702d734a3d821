//! Applications that hand over what they do, each request until it is taken, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Site;

use super::plan::Do;
use super::world::{World, lock};
use crate::engine::Daemon;
use crate::status::{Control as _, HandOver, NotHandedOver};

/// Patterns of the keys that are handed over: each kind of [`Writer`](super::plan) that knows only absolute commands.
pub(super) const KEYS: [&str; 4] = ["r*", "t*", "h*", "s*"];

/// Whether a key's writes are handed over.
fn is_handed_over(command: &str) -> bool {
    command.split(' ').nth(1).is_some_and(|key| KEYS.iter().any(|pattern| key.starts_with(&pattern[..1])))
}

/// Makes of a transaction what is written and what is handed over.
pub(super) fn split(step: Do) -> Vec<Do> {
    let Do::Write(site, commands) = step else { return vec![step] };
    let (handed, written): (Vec<_>, Vec<_>) =
        commands.into_iter().partition(|command| is_handed_over(command));
    let handed = handed.into_iter().filter(|command| !command.starts_with("RENAME")).collect();
    let all = [Do::Write(site, written), Do::Hand(site, handed)];
    all.into_iter().filter(|step| !matches!(step, Do::Write(_, c) | Do::Hand(_, c) if c.is_empty())).collect()
}

/// How long an application waits before it tries again.
const AGAIN: Duration = Duration::from_millis(40);
/// And for an answer.
const ANSWER_AT_MOST: Duration = Duration::from_millis(1_500);

/// The applications of one site.
pub(super) struct Applications {
    world: Arc<World>,
    channel: &'static str,
    site: Site,
    name: String,
    /// Each with its number.
    requests: Mutex<VecDeque<(u64, String)>>,
    /// Who serves the site just now.
    daemon: Mutex<Option<Arc<Daemon>>>,
    pub(super) failures: Mutex<Vec<String>>,
}

impl Applications {
    pub(super) fn new(
        world: &Arc<World>,
        channel: &'static str,
        (site, name): (Site, &str),
    ) -> Arc<Applications> {
        Arc::new(Applications {
            world: Arc::clone(world),
            channel,
            site,
            name: name.to_owned(),
            requests: Mutex::default(),
            daemon: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    pub(super) fn ask(&self, number: u64, commands: &[String]) {
        lock(&self.requests).push_back((number, commands.join("\n")));
    }

    pub(super) fn served_by(&self, daemon: Option<&Arc<Daemon>>) {
        *lock(&self.daemon) = daemon.cloned();
    }

    /// Whether everything was taken.
    pub(super) fn is_done(&self) -> bool {
        lock(&self.requests).is_empty()
    }

    /// Hands over what there is, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let next = lock(&self.requests).front().cloned();
            let daemon = lock(&self.daemon).clone();
            let (Some((number, body)), Some(daemon)) = (next, daemon) else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let request = HandOver {
                site: Some(self.name.clone()),
                key: Some(number.to_string()),
                body: Bytes::from(body.clone()),
            };
            let answer = tokio::time::timeout(ANSWER_AT_MOST, daemon.hand_over(self.channel, request)).await;
            self.world.note(|| format!("{} hands over {number}: {answer:?}", self.site.index()));
            match answer {
                Ok(Ok(_)) => _ = lock(&self.requests).pop_front(),
                Err(_) | Ok(Err(NotHandedOver::Full(_) | NotHandedOver::NotNow(_))) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Ok(Err(other)) => {
                    lock(&self.failures).push(format!("not taken: {body}: {other}"));
                    lock(&self.requests).pop_front();
                }
            }
        }
    }
}
