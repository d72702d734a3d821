//! What stands in a log at or before the place where one is, by seq: a decision about a key does what its site wrote
//! again on top, and a key that is evaluated again is put together from the records of both sites.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use causeway_core::{Change, Op, Seq};

use super::EngineError;
use super::reader::Reader;
use super::recent::key_digest;
use super::restart::walk_seqs;
use crate::log::{Error as LogError, Log, PartitionId};

/// A stretch of a partition that was read lately. Batch after batch wants about the same one, as long as the peer has
/// not seen it.
pub(crate) struct Lookback {
    log: Arc<dyn Log>,
    partition: PartitionId,
    bytes_max: usize,
    /// Reads on behind what is kept.
    reader: Option<Reader>,
    first: Seq,
    /// Each has the next seq.
    kept: VecDeque<Change>,
    bytes: usize,
    /// What was wanted lately and stands too far apart for that: a batch that is decided once more, as its keys were
    /// written meanwhile, wants that again, and must not read the log for it while they are watched.
    apart: HashMap<Seq, Change>,
    apart_bytes: usize,
    /// The same of some keys' changes.
    of_keys: Option<OfKeys>,
}

/// All changes of some keys, each from a seq on.
struct OfKeys {
    from: HashMap<u128, Seq>,
    end: Seq,
    changes: Vec<Change>,
}

impl OfKeys {
    fn holds(&self, wanted: &HashMap<u128, Seq>) -> bool {
        wanted.iter().all(|(digest, from)| self.from.get(digest).is_some_and(|held| held <= from))
    }
}

/// Whether `change` is one of the keys `wanted`, by their digests, each from its seq on.
fn is_of(wanted: &HashMap<u128, Seq>, change: &Change) -> bool {
    change.op.is_data() && wanted.get(&key_digest(&change.key)).is_some_and(|from| change.seq >= *from)
}

/// So many records that nobody wants are read at any rate: looking one up costs about as much.
const FAR: u64 = 4096;

impl Lookback {
    /// Keeps at the most about `bytes_max` of [`Change::cost`] between two calls, and twice as much where what is wanted
    /// stands far apart.
    pub(crate) fn new(log: Arc<dyn Log>, partition: PartitionId, bytes_max: usize) -> Lookback {
        Lookback {
            log,
            partition,
            bytes_max,
            reader: None,
            first: Seq(0),
            kept: VecDeque::new(),
            bytes: 0,
            apart: HashMap::new(),
            apart_bytes: 0,
            of_keys: None,
        }
    }

    /// The records with the seqs `wanted`, all of which are durable in the log; those that are damaged there
    /// are missing.
    ///
    /// # Errors
    ///
    /// The log's, and [`EngineError::Hole`].
    pub(crate) async fn fetch(
        &mut self,
        wanted: &BTreeSet<Seq>,
    ) -> Result<HashMap<Seq, Change>, EngineError> {
        let apart = |seq: &Seq| Some((*seq, self.apart.get(seq)?.clone()));
        let mut found: HashMap<Seq, Change> = wanted.iter().filter_map(apart).collect();
        if found.is_empty() {
            self.read(wanted, &mut found).await?;
        } else {
            let missing = wanted.iter().filter(|seq| !found.contains_key(seq)).copied().collect();
            self.read(&missing, &mut found).await?;
        }
        if wanted.first().is_some_and(|oldest| *oldest < self.first) {
            self.keep_apart(&found);
        }
        Ok(found)
    }

    fn keep_apart(&mut self, found: &HashMap<Seq, Change>) {
        let news = found.iter().filter(|(seq, _)| !self.apart.contains_key(seq));
        let mut cost: usize = news.map(|(_, change)| change.cost()).sum();
        if self.apart_bytes + cost > self.bytes_max {
            self.apart.clear();
            self.apart_bytes = 0;
            cost = found.values().map(Change::cost).sum();
            if cost > self.bytes_max {
                return;
            }
        }
        self.apart_bytes += cost;
        for (seq, change) in found {
            self.apart.entry(*seq).or_insert_with(|| change.clone());
        }
    }

    async fn read(
        &mut self,
        wanted: &BTreeSet<Seq>,
        found: &mut HashMap<Seq, Change>,
    ) -> Result<(), EngineError> {
        let Some(&oldest) = wanted.first() else { return Ok(()) };
        self.turn_to(oldest).await?;
        let mut from = oldest;
        loop {
            let end = self.end();
            for &seq in wanted.range(from..end.max(from)) {
                let at = seq.0.checked_sub(self.first.0);
                let change = at.and_then(|at| self.kept.get(at as usize));
                found.extend(change.map(|change| (seq, change.clone())));
            }
            let Some(&next) = wanted.range(end.max(from)..).next() else { return Ok(()) };
            from = end;
            if !self.is_near(end, next) {
                self.restart(next).await?;
            }
            self.read_on().await?;
        }
    }

    /// The data changes below `end` to the keys `wanted`, by their digests, each from its seq on, as far as they can be
    /// read.
    ///
    /// # Errors
    ///
    /// The log's.
    pub(crate) async fn of_keys(
        &mut self,
        wanted: &HashMap<u128, Seq>,
        end: Seq,
    ) -> Result<Vec<Change>, EngineError> {
        let start = wanted.values().copied().min().unwrap_or_default();
        if let Some(kept) = self.range(start..end).await? {
            return Ok(kept.filter(|change| is_of(wanted, change)).cloned().collect());
        }
        let held = self.of_keys.take().filter(|held| held.holds(wanted));
        let new = || OfKeys { from: wanted.clone(), end: start, changes: Vec::new() };
        let mut held = held.unwrap_or_else(new);
        if held.end < end {
            let OfKeys { from, end: behind, changes } = &mut held;
            let range = std::mem::replace(behind, end)..end;
            let news = |change: Change| {
                if is_of(from, &change) {
                    changes.push(change);
                }
            };
            walk_seqs(self.log.as_ref(), &self.partition, range, news).await?;
        }
        let is_wanted = |change: &&Change| change.seq < end && is_of(wanted, change);
        let found = held.changes.iter().filter(is_wanted).cloned().collect();
        if held.changes.iter().map(Change::cost).sum::<usize>() <= self.bytes_max {
            self.of_keys = Some(held);
        }
        Ok(found)
    }

    /// The records with seqs in `range`, all of which are durable; `None` if they are more than is kept, or some of them
    /// are damaged or gone: whoever reads them himself passes over those.
    ///
    /// # Errors
    ///
    /// The log's.
    pub(crate) async fn range(
        &mut self,
        range: Range<Seq>,
    ) -> Result<Option<impl Iterator<Item = &Change>>, EngineError> {
        let bytes = self.cost().saturating_mul(range.end.0.saturating_sub(range.start.0));
        if range.is_empty() || bytes > self.bytes_max as u64 {
            return Ok(None);
        }
        let mut read = self.turn_to(range.start).await;
        while read.is_ok() && self.first <= range.start && self.end() < range.end {
            read = self.read_on().await;
        }
        match read {
            Ok(()) if self.first <= range.start => {
                let places = [range.start, range.end].map(|seq| (seq.0 - self.first.0) as usize);
                Ok(Some(self.kept.range(places[0]..places[1])))
            }
            Ok(())
            | Err(
                EngineError::Hole { .. }
                | EngineError::Log(LogError::Corrupt { .. } | LogError::Trimmed { .. }),
            ) => {
                self.reader = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn end(&self) -> Seq {
        Seq(self.first.0 + self.kept.len() as u64)
    }

    /// Of one record, as large as those that are kept.
    fn cost(&self) -> u64 {
        (self.bytes / self.kept.len().max(1)).max(Change::COST_MIN) as u64
    }

    /// Whether `count` more records would still be kept.
    fn fits(&self, count: u64) -> bool {
        self.bytes as u64 + self.cost().saturating_mul(count) <= self.bytes_max as u64
    }

    /// Whether what stands between is read, too.
    fn is_near(&self, from: Seq, to: Seq) -> bool {
        let between = to.0.saturating_sub(from.0);
        between <= FAR || self.fits(between)
    }

    /// Sees to it that `seq` is kept, or is what is read next.
    async fn turn_to(&mut self, seq: Seq) -> Result<(), EngineError> {
        if self.reader.is_none() {
            return self.restart(seq).await;
        }
        if seq >= self.first {
            return if self.is_near(self.end(), seq) { Ok(()) } else { self.restart(seq).await };
        }
        if !self.fits(self.first.0 - seq.0) || !self.read_before(seq).await? {
            self.restart(seq).await?;
        }
        Ok(())
    }

    async fn restart(&mut self, seq: Seq) -> Result<(), EngineError> {
        self.clear(seq);
        self.reader = Some(Reader::at(Arc::clone(&self.log), self.partition.clone(), seq).await?);
        Ok(())
    }

    fn clear(&mut self, first: Seq) {
        self.kept.clear();
        (self.first, self.bytes) = (first, 0);
    }

    /// Reads what stands from `seq` to what is kept; whether all of that can be read.
    async fn read_before(&mut self, seq: Seq) -> Result<bool, EngineError> {
        let mut reader = Reader::at(Arc::clone(&self.log), self.partition.clone(), seq).await?;
        let mut before = Vec::new();
        loop {
            match reader.ready().await {
                Err(EngineError::Log(LogError::Corrupt { .. } | LogError::Trimmed { .. })) => {
                    return Ok(false);
                }
                ready => ready?,
            }
            while let Some((_, change)) = reader.pop() {
                if change.op == Op::Fence {
                    continue;
                }
                if change.seq >= self.first {
                    let from = before.first().map(|change: &Change| change.seq);
                    if from != Some(seq) || change.seq != self.first {
                        return Ok(false);
                    }
                    self.first = seq;
                    for change in before.into_iter().rev() {
                        self.bytes += change.cost();
                        self.kept.push_front(change);
                    }
                    return Ok(true);
                }
                before.push(change);
            }
        }
    }

    /// Reads what comes next, and forgets what is too much; what is damaged, or has gone while nobody read on, is passed
    /// over, and all before it forgotten.
    async fn read_on(&mut self) -> Result<(), EngineError> {
        while self.bytes > self.bytes_max
            && let Some(change) = self.kept.pop_front()
        {
            self.bytes -= change.cost();
            self.first = self.first.next();
        }
        let Some(reader) = &mut self.reader else { return Err(EngineError::Stopped) };
        match reader.ready().await {
            Err(EngineError::Log(LogError::Corrupt { to, .. } | LogError::Trimmed { start: to, .. })) => {
                reader.skip_to(to);
                self.clear(self.end());
                return Ok(());
            }
            ready => ready?,
        }
        while let Some((_, change)) = self.reader.as_mut().and_then(Reader::pop) {
            if change.op != Op::Fence {
                if self.kept.is_empty() {
                    self.first = change.seq;
                }
                self.bytes += change.cost();
                self.kept.push_back(change);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "lookback_tests.rs"]
mod tests;
