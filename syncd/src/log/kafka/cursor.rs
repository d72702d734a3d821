//! A consumer that stands somewhere in a partition.

use std::ops::Range;
use std::time::{Duration, Instant};

use causeway_core::{Change, Op, Seq};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset as At, TopicPartitionList};
use tracing::warn;

use super::super::partition::lock;
use super::super::{Error, Offset, Result};
use super::cluster::Logged;
use super::messages::{Assembler, Fence, Received, Unreadable};
use super::partition::{Partition, UNDER_WAY_MAX};

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// After so long without an answer the log says so.
const QUIET: Duration = Duration::from_secs(10);

/// A consumer of one partition, and what it is about to put together.
pub(super) struct Cursor {
    consumer: BaseConsumer<Logged>,
    assembler: Assembler,
    /// The next message's place.
    next: u64,
    /// Behind the last record that was handed out.
    behind: u64,
    warned: bool,
    /// It has passed what it could not read: the next read may not go on with it.
    pub(super) spoiled: bool,
}

/// What a poll brought.
enum Polled {
    /// Records may have become whole.
    Message,
    /// Nothing, for now.
    Nothing,
    /// Nothing is there beyond this place.
    End,
}

impl Cursor {
    /// Stands at `from`, below which the newest fence stands at `fence`.
    pub(super) fn open(partition: &Partition, from: u64, fence: u64) -> Result<Cursor> {
        let consumer = partition.cluster.consumer()?;
        let mut cursor = Cursor {
            consumer,
            assembler: Assembler::new(fence),
            next: from,
            behind: from,
            warned: false,
            spoiled: false,
        };
        cursor.seek(partition, from, fence)?;
        Ok(cursor)
    }

    /// Goes to `from`, below which the newest fence stands at `fence`.
    pub(super) fn seek(&mut self, partition: &Partition, from: u64, fence: u64) -> Result<()> {
        let mut places = TopicPartitionList::new();
        let assigned = places
            .add_partition_offset(&partition.topic, partition.number() as i32, At::Offset(from as i64))
            .and_then(|()| self.consumer.assign(&places));
        self.assembler = Assembler::new(fence);
        (self.next, self.behind) = (from, from);
        assigned.map_err(|error| partition.cluster.failed("go to a place of the log", &error))
    }

    /// Whether a read from `from` on goes on where the last one ended.
    pub(super) fn continues(&self, from: u64) -> bool {
        (self.behind..=self.next).contains(&from) && self.assembler.is_between_appends()
    }

    /// Where the next message stands.
    pub(super) fn place(&self) -> u64 {
        self.next
    }

    /// Takes one message, if there is one within `wait`.
    fn poll(
        &mut self,
        partition: &Partition,
        wait: Duration,
        out: &mut Vec<(Offset, Change)>,
    ) -> Result<Polled> {
        let message = match self.consumer.poll(wait) {
            None => return Ok(Polled::Nothing),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Polled::End),
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset,
            ))) => return Err(self.out_of_range(partition)),
            Some(Err(error)) => {
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(partition = %partition.id, brokers = %partition.cluster.brokers, %error, "the log cannot be \
                        read just now: it is tried again");
                }
                std::thread::sleep(wait.min(POLL));
                return Ok(Polled::Nothing);
            }
            Some(Ok(message)) => message,
        };
        self.warned = false;
        let at = message.offset() as u64;
        let fed = feed(&mut self.assembler, &message, out);
        drop(message);
        self.next = at + 1;
        match fed {
            Ok(fence) => fence.into_iter().for_each(|fence: Fence| partition.fenced(fence)),
            Err(Unreadable::Foreign) => {
                warn!(partition = %partition.id, topic = %partition.topic, at, "passed over: a message of somebody else");
            }
            Err(unreadable) => {
                let told = unreadable.told(&partition.id, &partition.topic, at);
                if matches!(told, Error::Corrupt { .. }) {
                    partition.note_damaged(at);
                }
                return Err(told);
            }
        }
        Ok(Polled::Message)
    }

    /// What was asked for is not there any more, or never was.
    fn out_of_range(&self, partition: &Partition) -> Error {
        match partition.watermarks() {
            Ok((start, _)) if self.next < start => {
                partition.start.fetch_max(start, std::sync::atomic::Ordering::SeqCst);
                Error::Trimmed {
                    partition: partition.id.clone(),
                    from: Offset(self.next),
                    start: Offset(start),
                }
            }
            Ok((start, end)) => partition.anew(self.next, start, end),
            Err(error) => error,
        }
    }

    /// Records from `from` on, at the most about `bytes_max` of cost, and at least one if one counts below the
    /// partition's end. Waits for brokers that don't answer, until the log is closed.
    pub(super) fn read(
        &mut self,
        partition: &Partition,
        from: u64,
        bytes_max: usize,
    ) -> Result<Vec<(Offset, Change)>> {
        let (mut out, mut bytes) = (Vec::new(), 0);
        let mut quiet_since = Instant::now();
        loop {
            let before = out.len();
            let wait = if out.is_empty() { POLL } else { Duration::ZERO };
            match self.poll(partition, wait, &mut out) {
                Ok(Polled::Message) => quiet_since = Instant::now(),
                Ok(Polled::Nothing) if !out.is_empty() => break,
                Ok(Polled::End) if !out.is_empty() || self.next >= partition.bounds().end => break,
                Ok(Polled::Nothing | Polled::End) => {
                    if partition.shared.is_closing() {
                        return Err(partition.shared.closed_error());
                    }
                    if quiet_since.elapsed() > QUIET {
                        quiet_since = Instant::now();
                        warn!(partition = %partition.id, brokers = %partition.cluster.brokers, from, "the log \
                            cannot be read just now: its brokers do not answer");
                    }
                }
                // What stands before it comes first.
                Err(Error::Corrupt { .. }) if !out.is_empty() => {
                    self.spoiled = true;
                    break;
                }
                Err(error) => return Err(error),
            }
            bytes += out[before..].iter().map(|(_, change)| change.cost()).sum::<usize>();
            if bytes >= bytes_max && !out.is_empty() {
                break;
            }
        }
        out.retain(|(offset, _)| offset.0 >= from);
        self.behind = out.last().map_or(self.behind, |(offset, _)| offset.0 + 1);
        Ok(out)
    }

    /// What came, waiting for it at most `wait`.
    pub(super) fn follow(&mut self, partition: &Partition, wait: Duration) -> Result<Vec<(Offset, Change)>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut wait = wait;
        // About what one read of an applier takes.
        while bytes < 256 << 10 {
            let before = out.len();
            match self.poll(partition, wait, &mut out) {
                Ok(Polled::Message) => wait = Duration::ZERO,
                Ok(Polled::Nothing | Polled::End) => break,
                Err(Error::Corrupt { from, .. }) if !out.is_empty() => {
                    // Is met again, by a cursor that begins there.
                    self.spoiled = true;
                    self.next = from.0;
                    break;
                }
                Err(error) => return Err(error),
            }
            bytes += out[before..].iter().map(|(_, change)| change.cost()).sum::<usize>();
        }
        Ok(out)
    }
}

fn feed(
    assembler: &mut Assembler,
    message: &BorrowedMessage<'_>,
    out: &mut Vec<(Offset, Change)>,
) -> std::result::Result<Option<Fence>, Unreadable> {
    let headers = message.headers();
    let headers = headers.iter().flat_map(|headers| headers.iter()).map(|header| (header.key, header.value));
    let received = Received::new(message.key(), message.payload(), headers);
    assembler.feed(message.offset() as u64, received, out)
}

impl Partition {
    /// The oldest message that is kept, and the place behind the newest; asks the broker.
    pub(super) fn watermarks(&self) -> Result<(u64, u64)> {
        self.cluster.watermarks(&self.topic, self.number(), || self.shared.is_closing())
    }

    /// The error for a topic that ends before what was there.
    pub(super) fn anew(&self, at: u64, start: u64, end: u64) -> Error {
        let reason = format!(
            "partition {} holds {start}..{end}, and had more before, up to {at} at least: it was made anew, or its \
             brokers have lost what they had acknowledged. Stop the daemons, compare both sites, and begin with an \
             empty log",
            self.number()
        );
        self.cluster.unfit(&self.topic, reason)
    }

    /// Finds out what the topic holds: its ends, its fences, and its newest record that counts. Blocks.
    pub(super) fn explore(&self) -> Result<()> {
        // Before the brokers are asked: what is written here meanwhile lies beyond their answer.
        let known = lock(&self.state).known_to;
        let (start, end) = self.watermarks()?;
        if end < known {
            return Err(self.anew(known, start, end));
        }
        self.start.store(start, std::sync::atomic::Ordering::SeqCst);
        self.explore_to(known.max(start), start, end)?;
        let mut state = lock(&self.state);
        state.known_to = state.known_to.max(end);
        Ok(())
    }

    /// Looks at what stands between `known` and `end`; where nothing was known, at enough of it.
    pub(super) fn explore_to(&self, known: u64, start: u64, end: u64) -> Result<()> {
        if end <= known {
            return Ok(());
        }
        let first_time = known == start;
        // Two writers that were fenced may have brought so much behind the newest fence.
        let mut window = if first_time { 2 * UNDER_WAY_MAX as u64 } else { end - known };
        loop {
            let from = end.saturating_sub(window).max(known);
            let mut cursor = Cursor::open(self, from, self.fence_above(from))?;
            let mut last = None;
            let mut newest = None;
            while cursor.next < end {
                let mut out = Vec::new();
                match cursor.poll(self, POLL, &mut out) {
                    Ok(Polled::End) => break,
                    Ok(_) => {}
                    Err(Error::Corrupt { .. }) => {}
                    Err(error) => return Err(error),
                }
                if self.shared.is_closing() {
                    return Err(self.shared.closed_error());
                }
                last = out.last().map(|(offset, _)| *offset).or(last);
                newest = Some(cursor.assembler.newest_fence());
            }
            if first_time && let Some(newest) = newest.filter(|newest| *newest >= start) {
                self.find_fences(newest, start)?;
            }
            match last {
                Some(last) => {
                    self.reached(last);
                    return Ok(());
                }
                None if from <= known => return Ok(()),
                None => window = window.saturating_mul(4),
            }
        }
    }

    /// Goes from fence to fence, from the one at `newest` back to the oldest that is kept.
    fn find_fences(&self, newest: u64, start: u64) -> Result<()> {
        let mut at = newest;
        let mut cursor = Cursor::open(self, at, 0)?;
        loop {
            let mut out = Vec::new();
            let since = Instant::now();
            let found = loop {
                match self.fence_at(&mut cursor, &mut out)? {
                    Some(found) => break found,
                    None if self.shared.is_closing() => return Err(self.shared.closed_error()),
                    None if since.elapsed() > QUIET => {
                        return Err(self.cluster.failed("find the fences of a topic", &"no answer"));
                    }
                    None => {}
                }
            };
            // The records of a reign whose fence is not there: a log without fences, in tests.
            let Some(fence) = found else { return Ok(()) };
            self.fenced(fence);
            match fence.before {
                Some(before) if before >= start && before < at => at = before,
                _ => return Ok(()),
            }
            cursor.seek(self, at, 0)?;
        }
    }

    /// The fence that the message behind the cursor is; `Some(None)` if it is none.
    fn fence_at(
        &self,
        cursor: &mut Cursor,
        out: &mut Vec<(Offset, Change)>,
    ) -> Result<Option<Option<Fence>>> {
        match cursor.consumer.poll(POLL) {
            Some(Ok(message)) => Ok(Some(feed(&mut cursor.assembler, &message, out).ok().flatten())),
            _ => Ok(None),
        }
    }

    /// The place of the first record with `seq` or a later one; blocks.
    pub(super) fn locate_cold(&self, seq: Seq) -> Result<Offset> {
        loop {
            match self.search(seq) {
                Err(Error::Trimmed { .. }) if !self.shared.is_closing() => {}
                found => return found,
            }
        }
    }

    fn search(&self, seq: Seq) -> Result<Offset> {
        let Range { start, end } = self.bounds();
        let [before, behind] = self.marks(seq);
        let mut low = before.map_or(start, |(place, _)| place).clamp(start, end);
        let mut high = behind.map_or(end, |(place, _)| place).clamp(low, end);
        // Nearly every message is a record with the next seq, so that one place tells of another; where that
        // misleads, every third step halves what is left.
        let mut guess = before.map(|(place, known)| place + (seq.0 - known.0)).or(Some(low));
        for step in 1.. {
            if low >= high {
                break;
            }
            let middle = low + (high - low) / 2;
            let at = guess.take().unwrap_or(middle).clamp(low, high - 1);
            match self.first_numbered(at, high) {
                Ok(Some((place, found))) if found == seq => return Ok(Offset(place)),
                Ok(Some((place, found))) if found < seq => {
                    low = place + 1;
                    guess = (step % 3 > 0).then(|| place + (seq.0 - found.0));
                }
                Ok(Some((place, found))) => {
                    high = at;
                    guess = (step % 3 > 0).then(|| place.saturating_sub((found.0 - seq.0).max(1)));
                }
                Ok(None) => high = at,
                Err(Error::Corrupt { to, .. }) => low = to.0,
                Err(error) => return Err(error),
            }
        }
        match self.first_numbered(low, end) {
            Ok(found) => Ok(Offset(found.map_or(end, |(place, _)| place))),
            Err(Error::Corrupt { from, .. }) => Ok(from),
            Err(error) => Err(error),
        }
    }

    /// The first record at or behind `from`, and before `end`, that has a seq: its place, and its seq.
    fn first_numbered(&self, from: u64, end: u64) -> Result<Option<(u64, Seq)>> {
        let mut at = from;
        while at < end {
            let records = match self.read_kept(at, 1) {
                Some(records) => records,
                None => self.read_cold(at, 1)?,
            };
            let Some((last, _)) = records.last() else { return Ok(None) };
            let next = last.0 + 1;
            let numbered = records.iter().find(|(_, change)| change.op != Op::Fence);
            if let Some((offset, change)) = numbered {
                return Ok((offset.0 < end).then_some((offset.0, change.seq)));
            }
            at = next;
        }
        Ok(None)
    }
}
