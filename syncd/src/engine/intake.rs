//! What applications hand over (docs/INTAKE.md): it goes into its site's log as what the store's stream brings does, and
//! waits there until the site's applier has written it into the site's own store (`deliver.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use causeway_core::{Change, Key, Op, Seq};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::EngineError;
use super::capture::{Batch, Capture, CaptureTask};
use super::recent::key_digest;
use super::shared::lock;
use crate::config::Deliver;

/// What is handed over at once, as it comes to capture.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) by: By,
    /// Each named, as `intake`.
    pub(crate) changes: Vec<Change>,
    pub(crate) told: oneshot::Sender<Result<Taken, NotTaken>>,
}

/// Who hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    /// A request.
    Request(Request),
    /// The reader of the intake topic, which has come to this place with it.
    Topic(TopicPlace),
}

/// What tells a request from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Its idempotency key; `None`: each time it comes it is another one.
    pub(crate) key: Option<Bytes>,
    /// Digest of its body.
    pub(crate) body: u64,
}

/// Of the intake topic, the newest message that the log holds something of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicPlace {
    /// Its offset.
    pub(crate) offset: u64,
    /// So many of its changes are in the log; more than it has: it was refused.
    pub(crate) changes: u64,
    /// Digest of its value: another message at this offset is of another topic.
    pub(crate) body: u64,
}

/// It has its places in the log.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Lines that the log held already.
    pub(crate) repeated: usize,
    /// Told once all of it is durable; dropped if that is not known.
    pub(crate) durable: oneshot::Receiver<()>,
}

/// Why a request was not taken; none of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// As many as may wait do.
    #[error("{0}")]
    Full(&'static str),
    /// Capture has no place in the store's stream yet.
    #[error("the site's store was not reached yet")]
    NotYet,
    /// Another request had its key.
    #[error("another request with this idempotency key had another body: give each request a key of its own")]
    OtherBody,
}

/// What a site's log holds of the intake topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicHeld {
    /// Nothing was ever taken.
    Nothing,
    /// Everything up to here.
    To(TopicPlace),
    /// The log that would say is damaged, or gone.
    Unknown,
}

impl Request {
    /// Of one of its lines: `line:body:key`; empty where the request has no key.
    pub(crate) fn name(&self, line: usize) -> Bytes {
        match &self.key {
            None => Bytes::new(),
            Some(key) => [format!("{line}:{:016x}:", self.body).as_bytes(), key].concat().into(),
        }
    }

    /// Reads what [`name`](Request::name) wrote.
    fn of(name: &Bytes) -> Option<(usize, Request)> {
        let mut parts = name.splitn(3, |byte| *byte == b':');
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (line, body) = (text()?.parse().ok()?, u64::from_str_radix(text()?, 16).ok()?);
        let key = name.slice_ref(parts.next()?);
        Some((line, Request { key: Some(key), body }))
    }
}

impl TopicPlace {
    /// The digest of a message that was passed over unread.
    pub(crate) const UNREAD: u64 = 0;

    /// Of a change up to which this is the place: `@offset:line:body`.
    pub(crate) fn name(&self) -> Bytes {
        let TopicPlace { offset, changes, body } = self;
        format!("@{offset}:{}:{body:016x}", changes.saturating_sub(1)).into()
    }

    /// Reads what [`name`](TopicPlace::name) wrote.
    pub(crate) fn of(name: &[u8]) -> Option<TopicPlace> {
        let mut parts = std::str::from_utf8(name).ok()?.strip_prefix('@')?.splitn(3, ':');
        let mut number = || parts.next()?.parse().ok();
        let (offset, line): (u64, u64) = (number()?, number()?);
        let body = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(TopicPlace { offset, changes: line.saturating_add(1), body })
    }
}

/// The requests that the log holds, by their idempotency keys: the last so many.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Digest of the body, and how many lines stand in the log.
    held: HashMap<Bytes, (u64, usize)>,
    order: VecDeque<Bytes>,
}

impl Requests {
    /// Takes note of a change of the log.
    pub(super) fn note(&mut self, change: &Change, max: usize) {
        let Some((line, Request { key: Some(key), body })) = change.intake.as_ref().and_then(Request::of)
        else {
            return;
        };
        match self.held.get_mut(&key) {
            Some(held) => *held = (body, line + 1),
            None => {
                // A record is part of a larger buffer.
                let key = Bytes::copy_from_slice(&key);
                self.order.push_back(key.clone());
                self.held.insert(key, (body, line + 1));
            }
        }
        while self.order.len() > max {
            self.order.pop_front().map(|oldest| self.held.remove(&oldest));
        }
    }

    /// How many lines of `request` the log holds.
    fn lines(&self, request: &Request) -> Result<usize, NotTaken> {
        match request.key.as_ref().and_then(|key| self.held.get(key)) {
            None => Ok(0),
            Some((body, lines)) if *body == request.body => Ok(*lines),
            Some(_) => Err(NotTaken::OtherBody),
        }
    }
}

/// What stands in a site's log and not yet in its store, as far as capture has seen the store's stream.
#[derive(Debug, Default)]
pub(crate) struct Undelivered {
    waiting: BTreeMap<Seq, Waiting>,
    /// Of each key how many, by its digest.
    keys: HashMap<u128, usize>,
}

#[derive(Debug)]
struct Waiting {
    digest: u128,
    low: Seq,
    cost: usize,
}

impl Undelivered {
    /// Notes a change that has its place in the log.
    pub(super) fn note(&mut self, change: &Change) {
        let waiting = Waiting { digest: key_digest(&change.key), low: change.low, cost: change.cost() };
        *self.keys.entry(waiting.digest).or_default() += 1;
        self.waiting.insert(change.seq, waiting);
    }

    /// Everything below is in the store.
    pub(super) fn delivered(&mut self, below: Seq) {
        while let Some(first) = self.waiting.first_entry().filter(|first| *first.key() < below) {
            let digest = first.remove().digest;
            if let Some(count) = self.keys.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&digest);
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether something for this key waits.
    pub(crate) fn is_waiting(&self, digest: u128) -> bool {
        self.keys.contains_key(&digest)
    }

    /// The oldest, and what of the peer's log every key had seen when it was handed over.
    pub(crate) fn oldest(&self) -> Option<(Seq, Seq)> {
        self.waiting.first_key_value().map(|(seq, waiting)| (*seq, waiting.low))
    }

    /// The first of `from..end`, at most so many, and of so many bytes unless one alone has more.
    pub(crate) fn next(
        &self,
        (from, end): (Seq, Seq),
        (items_max, bytes_max): (usize, usize),
    ) -> BTreeSet<Seq> {
        let mut bytes = 0;
        let mut next = BTreeSet::new();
        for (seq, waiting) in self.waiting.range(from..end.max(from)).take(items_max) {
            bytes += waiting.cost;
            if bytes > bytes_max && !next.is_empty() {
                break;
            }
            next.insert(*seq);
        }
        next
    }
}

/// Changes of one append.
pub(super) const TAKEN_MAX: usize = 4096;

impl CaptureTask {
    /// Whether applications hand over what is done to `key`.
    pub(super) fn is_handed_over(&self, key: &Key) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.takes(key))
    }

    /// Whether the store's stream tells of a write that is for the intake to tell. One past the intake is counted: not with
    /// `deliver = "peer"`, which says that the application writes it itself, and no delete, as the key may have expired.
    pub(super) fn is_for_the_intake(&self, change: &Change) -> bool {
        let is_write = matches!(change.op, Op::Put | Op::Delete | Op::Command | Op::State);
        if !is_write || change.was_asked_for() || !self.is_handed_over(&change.key) {
            return false;
        }
        let by_us = self.intake.as_ref().is_some_and(|intake| intake.deliver == Deliver::Both);
        if by_us && change.op != Op::Delete && change.part.is_none_or(|part| part.last) {
            self.stats.counts.past_intake.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Whether something for `digest`'s key stands in the log and not yet in the store.
    pub(super) fn is_undelivered(&self, digest: u128) -> bool {
        lock(&self.shared.undelivered).is_waiting(digest)
    }

    /// `change` of the log was handed over.
    pub(super) fn note_handed_over(&self, change: &Change) {
        if change.intake.is_some() && self.peer.is_some() {
            lock(&self.shared.undelivered).note(change);
        }
    }
}

impl Capture {
    /// Takes what applications hand over, `first` and what waits behind it, into one append.
    pub(super) async fn take_handed(
        &mut self,
        task: &mut CaptureTask,
        first: Handed,
    ) -> Result<(), EngineError> {
        let mut batch = Batch::default();
        let remembered = task.intake.as_ref().map_or(0, |intake| intake.remembered);
        let mut next = Some(first);
        while let Some(handed) = next {
            let Handed { by, changes, told } = handed;
            let taken = self.admit(task, &by, changes.len());
            let _gone = match taken {
                Err(not) => told.send(Err(not)),
                Ok(repeated) => {
                    let count = changes.len();
                    for change in changes.into_iter().skip(repeated) {
                        let now = (task.clock)();
                        let time = if matches!(by, By::Topic(_)) { change.time.min(now) } else { now };
                        let change = Change { pos: self.last.clone(), time, ..change };
                        self.requests.note(&change, remembered);
                        self.place(task, change, &mut batch)?;
                    }
                    if let By::Topic(place) = by {
                        self.point.topic = Some(place);
                    }
                    let (answer, durable) = oneshot::channel();
                    batch.answers.push(answer);
                    let repeated = repeated.min(count);
                    told.send(Ok(Taken { repeated, durable }))
                }
            };
            next = if batch.changes.len() < TAKEN_MAX { task.handed.try_recv().ok() } else { None };
        }
        self.append(task, batch).await
    }

    /// How many of the first of `changes` the log holds already, if the others may come in.
    fn admit(&self, task: &CaptureTask, by: &By, changes: usize) -> Result<usize, NotTaken> {
        let repeated = match by {
            By::Request(request) => self.requests.lines(request)?,
            // Its reader knows where it is.
            By::Topic(_) => 0,
        };
        if repeated >= changes {
            return Ok(repeated);
        }
        if self.resume_at.is_none() {
            return Err(NotTaken::NotYet);
        }
        if task.log.is_full() {
            return Err(NotTaken::Full(
                "the log is full: what the appliers have not brought in yet fills it",
            ));
        }
        let waiting_max = task.intake.as_ref().map_or(0, |intake| intake.waiting_max);
        if lock(&task.shared.undelivered).len() >= waiting_max {
            return Err(NotTaken::Full("as many changes as may wait for the site's own store do"));
        }
        Ok(repeated)
    }
}

#[cfg(test)]
mod tests {
    use causeway_core::{Position, Space};

    use super::*;

    fn handed(seq: u64, key: &'static str, name: Bytes) -> Change {
        let key = Key { space: Space::Whole, name: Bytes::from_static(key.as_bytes()) };
        let change = Change::captured(Op::Put, key, None, Position::default(), 0);
        Change { seq: Seq(seq), low: Seq(seq / 2), intake: Some(name), ..change }
    }

    #[test]
    fn a_request_that_comes_again_is_known_by_its_key_and_its_body() {
        let request =
            |key: &'static str, body| Request { key: Some(Bytes::from_static(key.as_bytes())), body };
        let mut requests = Requests::default();
        for line in 0..3 {
            requests.note(&handed(line, "k", request("a:1", 7).name(line as usize)), 2);
        }
        assert_eq!(requests.lines(&request("a:1", 7)), Ok(3));
        assert_eq!(requests.lines(&request("a:1", 8)), Err(NotTaken::OtherBody));
        assert_eq!(requests.lines(&request("a", 7)), Ok(0));
        requests.note(&handed(3, "k", Request { key: None, body: 7 }.name(0)), 2);
        assert_eq!(requests.lines(&Request { key: None, body: 7 }), Ok(0), "it has no key");
        requests.note(&handed(4, "k", request("b", 1).name(0)), 2);
        requests.note(&handed(5, "k", request("c", 1).name(0)), 2);
        assert_eq!(requests.lines(&request("a:1", 7)), Ok(0), "too long ago");
        assert_eq!(requests.lines(&request("c", 1)), Ok(1));
        requests.note(&handed(6, "k", Bytes::from_static(b"x:y")), 2);
    }

    #[test]
    fn a_change_says_which_message_it_is_of() {
        let place = TopicPlace { offset: 7, changes: 3, body: 0xabc };
        assert_eq!(place.name(), "@7:2:0000000000000abc");
        assert_eq!(TopicPlace::of(&place.name()), Some(place));
        for other in ["", "@", "@7", "@7:x:1", "7:2:a", "@7:2:", "@-1:2:a"] {
            assert_eq!(TopicPlace::of(other.as_bytes()), None, "{other}");
        }
        assert!(Request::of(&place.name()).is_none());
        let request = Request { key: Some(Bytes::from_static(b"@7:2:a")), body: 1 };
        assert_eq!(TopicPlace::of(&request.name(0)), None, "a key that looks like one");
    }

    #[test]
    fn what_waits_is_taken_in_order_and_by_size() {
        let mut undelivered = Undelivered::default();
        (2..6).for_each(|seq| undelivered.note(&handed(seq, if seq < 4 { "a" } else { "b" }, Bytes::new())));
        let [a, b] = ["a", "b"].map(|key| key_digest(&handed(0, key, Bytes::new()).key));
        let next = |from, end, items, bytes| {
            let next = undelivered.next((Seq(from), Seq(end)), (items, bytes));
            next.into_iter().map(|seq| seq.0).collect::<Vec<_>>()
        };
        assert_eq!(next(0, 9, 3, usize::MAX), [2, 3, 4]);
        assert_eq!(next(3, 5, 9, usize::MAX), [3, 4]);
        assert_eq!(next(0, 9, 9, 1), [2], "one goes alone");
        assert_eq!(next(7, 5, 9, 1), [0; 0]);
        assert_eq!(undelivered.oldest(), Some((Seq(2), Seq(1))));
        undelivered.delivered(Seq(3));
        assert!(undelivered.is_waiting(a));
        undelivered.delivered(Seq(4));
        assert!(!undelivered.is_waiting(a) && undelivered.is_waiting(b));
        undelivered.delivered(Seq(9));
        assert_eq!((undelivered.len(), undelivered.oldest()), (0, None));
    }
}
