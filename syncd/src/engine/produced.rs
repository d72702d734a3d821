//! What applications produce to the intake topic (docs/INTAKE.md): it is read from where the site's log ends with it, and handed
//! to capture as requests are.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use causeway_core::{Change, Connector, Site};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::dead_letters::DeadLetters;
use super::hand_over::lines;
use super::intake::{By, Handed, TAKEN_MAX, Taken, TopicHeld, TopicPlace};
use super::shared::{DirectionStats, lock};
use super::{BACKOFF_MIN, Backoff, EngineError};
use crate::config::Intake;
use crate::log::{Error as LogError, IntakeTopic, PartitionId, Produced};
use crate::status::{HandOver, NotHandedOver};

/// A read of the topic is about this long, in bytes.
const READ_BYTES: usize = 1 << 20;
/// What is full or not ready is tried again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is found out what waits in the topic.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An end that lies before what was read is looked at again after this.
const SURE_AFTER: Duration = Duration::from_secs(5);
/// How often what was taken long ago is forgotten there.
const TRIM_EVERY: Duration = Duration::from_secs(60);

/// Reads the intake topic of one channel at one site.
pub(super) struct TopicReader {
    pub(super) topic: IntakeTopic,
    pub(super) channel: String,
    /// The log of the changes.
    pub(super) partition: PartitionId,
    pub(super) site: Site,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) intake: Arc<Intake>,
    pub(super) handing: mpsc::Sender<Handed>,
    /// Up to where the log holds the topic; told once capture has read the log.
    pub(super) begun: oneshot::Receiver<TopicHeld>,
    pub(super) stats: Arc<DirectionStats>,
    pub(super) dead_letters: Arc<DeadLetters>,
}

/// What is known of the topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TopicState {
    /// Messages that were not taken yet; `None`: not known.
    pub(crate) behind: Option<u64>,
    /// Why it is not read just now.
    pub(crate) trouble: Option<String>,
}

/// Where a reading begins.
#[derive(Debug, PartialEq, Eq)]
enum Begin {
    /// Here, and all of it is new.
    At(u64),
    /// At the message that was taken last, which shows that this is the topic that it was.
    Again(TopicPlace),
    /// At the end of this range: retention took what stood in it before it was read.
    Lost(Range<u64>),
    /// At its start: it is another topic than the one that was read up to there.
    Anew(u64),
}

impl Begin {
    /// Behind `place`, in a topic that holds `ends`.
    fn of(place: Option<TopicPlace>, ends: Range<u64>) -> Begin {
        let Some(place) = place else { return Begin::At(ends.start) };
        let next = place.offset + 1;
        match ends {
            Range { start, .. } if start > next => Begin::Lost(next..start),
            Range { start, .. } if start == next => Begin::At(start),
            Range { start, end } if end < next => Begin::Anew(start),
            _ if place.body == TopicPlace::UNREAD => Begin::At(next),
            _ => Begin::Again(place),
        }
    }
}

/// Why a reading ended.
enum End {
    /// Capture did.
    Capture,
    /// It has to be found out anew where to go on.
    Again,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Log(#[from] LogError),
    #[error("{0}")]
    Engine(#[from] EngineError),
}

fn digest(message: &Produced) -> u64 {
    // One that was read has another than `UNREAD`.
    xxh3_64(&message.value) | 1
}

impl TopicReader {
    /// Runs until `stop`, or until capture ends.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.read() => {}
        }
    }

    async fn read(&mut self) {
        let Ok(held) = (&mut self.begun).await else { return };
        let mut place = match held {
            TopicHeld::To(place) => Some(place),
            TopicHeld::Nothing | TopicHeld::Unknown => None,
        };
        let mut is_unknown = held == TopicHeld::Unknown;
        let mut backoff = Backoff::new(self.topic.name(), BACKOFF_MIN);
        loop {
            let before = place;
            let ended = match is_unknown {
                true => self.pass_over(&mut place).await,
                false => self.follow(&mut place, &mut backoff).await,
            };
            is_unknown &= ended.is_err();
            match ended {
                Ok(End::Capture) => return,
                Ok(End::Again) => {}
                Err(failed) => {
                    let (failures, wait) = backoff.failed(place != before, false);
                    if failures == 1 {
                        warn!(topic = self.topic.name(), error = %failed, "the intake topic is not read just now");
                    }
                    self.tell_trouble(None, &failed);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn tell(&self, state: TopicState) {
        *lock(&self.stats.topic) = state;
    }

    fn tell_trouble(&self, behind: Option<u64>, what: &impl std::fmt::Display) {
        let trouble = Some(format!("{}: {what}", self.topic.name()));
        self.tell(TopicState { behind, trouble });
    }

    /// Goes to the topic's end: what was taken a second time would go over what was written since.
    async fn pass_over(&self, place: &mut Option<TopicPlace>) -> Result<End, Failed> {
        let ends = self.topic.ends().await?;
        let Some(last) = ends.end.checked_sub(1) else { return Ok(End::Again) };
        if !ends.is_empty() {
            let text = format!(
                "the log no longer says up to where it was read: messages {} to {last} are not taken; what of them is not in \
                 the stores has to be produced again",
                ends.start
            );
            self.refuse(last, &text).await?;
        }
        let passed = TopicPlace { offset: last, changes: u64::MAX, body: TopicPlace::UNREAD };
        let taken = self.hand(Vec::new(), passed).await;
        *place = Some(passed);
        Ok(if taken.is_some() { End::Again } else { End::Capture })
    }

    /// Hands over what comes behind `place`, and takes that on.
    async fn follow(&self, place: &mut Option<TopicPlace>, backoff: &mut Backoff) -> Result<End, Failed> {
        let mut ends = self.topic.ends().await?;
        let (from, mut again) = match Begin::of(*place, ends.clone()) {
            Begin::At(from) => (from, None),
            Begin::Again(last) => (last.offset, Some(last)),
            Begin::Lost(range) => {
                let text = format!(
                    "messages {} to {} were gone before they were read: its retention has to be longer than syncd is away; \
                     what they said has to be produced again",
                    range.start,
                    range.end - 1
                );
                self.refuse(range.start, &text).await?;
                (range.end, None)
            }
            Begin::Anew(_) => {
                // A leader that has just become it may not know the end yet.
                tokio::time::sleep(SURE_AFTER).await;
                return match Begin::of(*place, self.topic.ends().await?) {
                    Begin::Anew(start) => self.is_another(place, start).await,
                    _ => Ok(End::Again),
                };
            }
        };
        let mut reader = self.topic.reader(from)?;
        info!(topic = self.topic.name(), from, "reads the intake topic");
        backoff.began();
        let (mut looked, mut trimmed, mut trimmable) = (None::<Instant>, Instant::now(), None);
        loop {
            let read = match reader.next(READ_BYTES).await {
                Err(LogError::Trimmed { .. }) => return Ok(End::Again),
                read => read?,
            };
            let mut taken_of_first = 0;
            if let Some(last) = again.filter(|_| !read.is_empty() || reader.is_at_end()) {
                let is_it = |first: &Produced| first.offset == last.offset && digest(first) == last.body;
                if !read.first().is_some_and(is_it) {
                    let start = self.topic.ends().await?.start;
                    // Unless retention took it just then.
                    return match start > last.offset {
                        true => Ok(End::Again),
                        false => self.is_another(place, start).await,
                    };
                }
                (taken_of_first, again) = (last.changes, None);
            }
            let mut messages = read.into_iter();
            while messages.len() > 0 {
                let (mut changes, mut to) = (Vec::new(), *place);
                while changes.len() < TAKEN_MAX
                    && let Some(message) = messages.next()
                {
                    let done = std::mem::take(&mut taken_of_first);
                    to = Some(self.take(message, done, &mut changes).await?);
                }
                let Some(to) = to.filter(|to| Some(*to) != *place) else { continue };
                let Some(Taken { durable, .. }) = self.hand(changes, to).await else {
                    return Ok(End::Capture);
                };
                *place = Some(to);
                if trimmed.elapsed() > TRIM_EVERY {
                    trimmed = Instant::now();
                    // By now a restart point tells of what was taken then.
                    let before = trimmable.replace((durable, to.offset));
                    self.trim(before).await;
                }
            }
            let next = place.map_or(0, |place| place.offset + 1);
            if looked.is_none_or(|looked| looked.elapsed() > LOOK_EVERY) {
                looked = Some(Instant::now());
                let before = std::mem::replace(&mut ends, self.topic.ends().await?);
                if ends.start < before.start || ends.end < next {
                    return Ok(End::Again);
                }
            }
            let behind = Some(ends.end.saturating_sub(next.max(ends.start)));
            self.tell(TopicState { behind, trouble: None });
        }
    }

    /// Adds the changes of `message` to `changes`, but for the first `done`; returns the place that it is.
    async fn take(
        &self,
        message: Produced,
        done: u64,
        changes: &mut Vec<Change>,
    ) -> Result<TopicPlace, Failed> {
        let (offset, body) = (message.offset, digest(&message));
        let reason = match message.value.len() {
            size if size > HandOver::BODY_MAX => {
                format!("it has {size} bytes, allowed are {}", HandOver::BODY_MAX)
            }
            _ => match lines(self.connector.as_ref(), &self.intake, &message.value) {
                Ok(all) => {
                    let mut place = TopicPlace { offset, changes: 0, body };
                    let time = message.time.unwrap_or(u64::MAX);
                    for change in all {
                        place.changes += 1;
                        if place.changes > done {
                            changes.push(Change { intake: Some(place.name()), time, ..change });
                        }
                    }
                    return Ok(place);
                }
                Err(NotHandedOver::Lines(wrong)) => {
                    let shown =
                        wrong.iter().take(3).map(|wrong| format!("line {}: {}", wrong.line, wrong.error));
                    shown.collect::<Vec<_>>().join("; ")
                }
                Err(other) => other.to_string(),
            },
        };
        let refused = TopicPlace { offset, changes: u64::MAX, body };
        if done < refused.changes {
            let text = format!("message {offset} was not taken, and so no line of it: {reason}");
            self.refuse(offset, &text).await?;
        }
        Ok(refused)
    }

    /// To capture, as often as it takes; `None`: that has ended.
    async fn hand(&self, changes: Vec<Change>, to: TopicPlace) -> Option<Taken> {
        loop {
            let (told, taken) = oneshot::channel();
            let (by, changes) = (By::Topic(to), changes.clone());
            self.handing.send(Handed { by, changes, told }).await.ok()?;
            match taken.await.ok()? {
                Ok(taken) => return Some(taken),
                Err(not) => {
                    let behind = lock(&self.stats.topic).behind;
                    self.tell_trouble(behind, &not);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Keeps as a dead letter, from the site to itself, that nothing was taken at `offset`.
    async fn refuse(&self, offset: u64, text: &str) -> Result<(), EngineError> {
        let reason = format!("{}: {text}", self.topic.name());
        error!(channel = self.channel, reason, "of the intake topic was not taken");
        self.dead_letters.keep_produced(&self.channel, &self.partition, self.site, offset, &reason).await
    }

    /// The topic was deleted and made anew: it is read from its start.
    async fn is_another(&self, place: &mut Option<TopicPlace>, start: u64) -> Result<End, Failed> {
        if let Some(last) = place.take() {
            let text = format!(
                "the topic is another one than that of which message {} was taken last: it was deleted and made anew; it is read \
                 from its message {start} on, and what the earlier one held behind that message has to be produced again",
                last.offset
            );
            self.refuse(last.offset, &text).await?;
        }
        Ok(End::Again)
    }

    /// Forgets in the topic what was taken, if that is durable; the last message stays.
    async fn trim(&self, taken: Option<(oneshot::Receiver<()>, u64)>) {
        let Some((durable, offset)) = taken else { return };
        if durable.await.is_ok()
            && let Err(error) = self.topic.trim(offset).await
        {
            warn!(topic = self.topic.name(), %error, "what was taken is not removed from the topic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_begins_where_the_last_one_ended_and_says_what_is_lost() {
        let place = TopicPlace { offset: 7, changes: 1, body: 5 };
        assert_eq!(Begin::of(None, 3..9), Begin::At(3));
        assert_eq!(Begin::of(Some(place), 3..9), Begin::Again(place));
        assert_eq!(Begin::of(Some(place), 7..8), Begin::Again(place));
        assert_eq!(Begin::of(Some(place), 8..8), Begin::At(8), "all of it was removed");
        assert_eq!(Begin::of(Some(place), 8..12), Begin::At(8));
        assert_eq!(Begin::of(Some(place), 9..12), Begin::Lost(8..9));
        assert_eq!(Begin::of(Some(place), 0..7), Begin::Anew(0));
        assert_eq!(Begin::of(Some(place), 0..0), Begin::Anew(0));
        let passed = TopicPlace { body: TopicPlace::UNREAD, ..place };
        assert_eq!(Begin::of(Some(passed), 3..9), Begin::At(8));
        assert_eq!(Begin::of(Some(passed), 0..7), Begin::Anew(0));
    }
}
