//! What the log names that was written in a stretch of time.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::time::rfc3339;
use causeway_core::{Change, Connector, Hlc, Key, Op, Space};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::recent::key_digest;
use super::restart::{Terms, restart_point, walk_kept};
use crate::log::{self, Log, Offset, PartitionId};

/// What is read of the log at once, in bytes.
const READ_BYTES: usize = 1 << 20;
/// So much earlier than a window the log is read: a clock may have been set back.
const SLACK_MS: u64 = 10_000;
/// Keys that are known to have been named lately.
const LATELY_MAX: usize = 1 << 18;

/// A place that was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Named {
    /// A key.
    Key(Key),
    /// A change of more than keys: any key there. Or one that has no name, such as a row without a primary key.
    Space(Space),
}

/// Why what was written in a window is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    /// Retention has taken some of it.
    #[error("the log of {partition} no longer holds it: it begins {}", begins(*since))]
    Gone {
        /// Whose.
        partition: PartitionId,
        /// The time of the first restart point that is kept, in milliseconds since 1970; 0: there is none.
        since: u64,
    },
    /// Some of it is damaged.
    #[error("the log of {partition} is damaged there, at record {at}")]
    Damaged {
        /// Whose.
        partition: PartitionId,
        /// The first record.
        at: Offset,
    },
    /// Whoever asked is gone.
    #[error("nobody listens")]
    Unheard,
    /// The log's.
    #[error(transparent)]
    Log(log::Error),
}

/// One site's log of a channel, and what understands its changes.
pub(crate) struct Names<'a> {
    pub(crate) log: &'a dyn Log,
    pub(crate) partition: &'a PartitionId,
    pub(crate) connector: &'a dyn Connector,
}

impl Names<'_> {
    /// Sends what was written in `window` (milliseconds since 1970, by the clock of the site's capture) to `out`, some of it
    /// more than once and some that was written seconds before or after, but never less: a change whose time is not
    /// known well, as of a backlog that was read after an outage, is named if it may have been made in it. Rows of a
    /// snapshot are not: nobody wrote them. Up to `patience` is waited for the stream to come to the window's end.
    ///
    /// Gives the time, in milliseconds since 1970, before which everything that the store did is named then; 0: not known.
    ///
    /// # Errors
    ///
    /// The log no longer says; what was sent until then is true.
    pub(crate) async fn of_window(
        &self,
        window: Range<u64>,
        patience: Duration,
        out: &mpsc::Sender<Vec<Named>>,
    ) -> Result<u64, Unknown> {
        let mut at = self.begin(window.start.saturating_sub(SLACK_MS)).await?;
        let end = self.log.end(self.partition).await.map_err(Unknown::Log)?;
        let until = Instant::now() + patience;
        let (mut current, mut terms, mut lately) = (0, Terms::default(), HashSet::new());
        while current < window.end {
            if at >= end {
                let more = self.log.wait_beyond(self.partition, at);
                if timeout_at(until, more).await.is_err() || self.log.bounds(self.partition).end <= at {
                    break;
                }
            }
            let records = self.read(at).await?;
            let Some((last, _)) = records.last() else { break };
            at = Offset(last.0 + 1);
            let mut named = Vec::new();
            for (_, change) in records {
                if !terms.admits(&change) {
                    continue;
                }
                if let Some(point) = restart_point(&change).filter(|_| change.op == Op::Position) {
                    current = current.max(point.current);
                    if current >= window.end {
                        break;
                    }
                }
                self.each(&change, |one| {
                    if lately.len() >= LATELY_MAX {
                        lately.clear();
                    }
                    if lately.insert(digest(&one)) {
                        named.push(one);
                    }
                });
            }
            if !named.is_empty() {
                out.send(named).await.map_err(|_| Unknown::Unheard)?;
            }
        }
        Ok(current)
    }

    /// The newest version under which the log holds a write to each of `keys`, in their order; `None`: it names none.
    ///
    /// # Errors
    ///
    /// Those of the log. What it no longer holds is passed over.
    pub(crate) async fn last(&self, keys: &[Key]) -> Result<Vec<Option<Hlc>>, Unknown> {
        let mut newest: HashMap<u128, Option<Hlc>> = keys.iter().map(|key| (key_digest(key), None)).collect();
        let Range { start, end } = self.log.bounds(self.partition);
        let mut terms = Terms::default();
        walk_kept(self.log, self.partition, start, end, |_, change| {
            if !terms.admits(&change) {
                return;
            }
            self.each(&change, |one| {
                if let Named::Key(key) = one
                    && let Some(last) = newest.get_mut(&key_digest(&key))
                {
                    *last = (*last).max(Some(change.hlc));
                }
            });
        })
        .await
        .map_err(Unknown::Log)?;
        Ok(keys.iter().map(|key| newest.get(&key_digest(key)).copied().flatten()).collect())
    }

    /// What `change` wrote.
    fn each(&self, change: &Change, mut each: impl FnMut(Named)) {
        if !change.op.is_data() || change.op == Op::Read {
            return;
        }
        if change.key.name.is_empty() {
            self.connector.spaces(change).into_iter().map(Named::Space).for_each(each);
        } else if self.connector.is_counted(change) {
            each(Named::Space(change.key.space.detached()));
        } else {
            self.connector
                .units(change)
                .into_iter()
                .for_each(|(unit, _)| each(Named::Key(unit.key.detached())));
        }
    }

    /// The newest restart point that was written before `time`, and of what time it was current.
    async fn begin(&self, time: u64) -> Result<Offset, Unknown> {
        let Range { start, end } = self.log.bounds(self.partition);
        let (mut low, mut high, mut found) = (start, end, None);
        while low < high {
            let middle = Offset(low.0 + (high.0 - low.0) / 2);
            match self.next_point(middle, high).await? {
                Some((at, then)) if then < time => (low, found) = (Offset(at.0 + 1), Some(at)),
                _ => high = middle,
            }
        }
        match found {
            Some(at) => Ok(at),
            None if start == Offset(0) => Ok(start),
            None => {
                let since = self.next_point(start, end).await?.map_or(0, |(_, then)| then);
                Err(Unknown::Gone { partition: self.partition.clone(), since })
            }
        }
    }

    /// The first restart point in `[from, end)`, and when it was written.
    async fn next_point(&self, from: Offset, end: Offset) -> Result<Option<(Offset, u64)>, Unknown> {
        let mut at = from;
        while at < end {
            let records = match self.log.read(self.partition, at, READ_BYTES / 8).await {
                Err(log::Error::Trimmed { start: next, .. } | log::Error::Corrupt { to: next, .. })
                    if next > at =>
                {
                    at = next;
                    continue;
                }
                records => records.map_err(Unknown::Log)?,
            };
            let Some((last, _)) = records.last() else { return Ok(None) };
            at = Offset(last.0 + 1);
            let is_point = |(place, change): &&(Offset, Change)| *place < end && change.op == Op::Position;
            if let Some((place, change)) = records.iter().find(is_point) {
                return Ok(Some((*place, change.time)));
            }
        }
        Ok(None)
    }

    async fn read(&self, at: Offset) -> Result<Vec<(Offset, Change)>, Unknown> {
        self.log.read(self.partition, at, READ_BYTES).await.map_err(|error| match error {
            log::Error::Trimmed { .. } => Unknown::Gone { partition: self.partition.clone(), since: 0 },
            log::Error::Corrupt { .. } => Unknown::Damaged { partition: self.partition.clone(), at },
            error => Unknown::Log(error),
        })
    }
}

fn begins(since: u64) -> String {
    if since == 0 { "later".to_owned() } else { format!("at {}", rfc3339(since)) }
}

fn digest(named: &Named) -> u128 {
    match named {
        Named::Key(key) => key_digest(key),
        Named::Space(space) => !key_digest(&Key { space: space.clone(), name: Bytes::new() }),
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
