//! What the site wrote itself, by seq: a decision about a key does it again on top.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use causeway_core::{Change, Op, Seq};

use super::EngineError;
use super::reader::Reader;
use crate::log::{Error as LogError, Log, PartitionId};

/// The stretch of a site's own log that was read last. Batch after batch wants about the same one, as long
/// as the peer has not seen it.
pub(crate) struct OwnLog {
    log: Arc<dyn Log>,
    partition: PartitionId,
    bytes_max: usize,
    /// Reads on behind what is kept.
    reader: Option<Reader>,
    first: Seq,
    kept: VecDeque<Change>,
    bytes: usize,
}

/// So many records that nobody wants are not read: looking one up costs about as much.
const FAR: u64 = 4096;

impl OwnLog {
    /// Keeps at the most about `bytes_max` of [`Change::cost`] between two calls.
    pub(crate) fn new(log: Arc<dyn Log>, partition: PartitionId, bytes_max: usize) -> OwnLog {
        OwnLog { log, partition, bytes_max, reader: None, first: Seq(0), kept: VecDeque::new(), bytes: 0 }
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
        let mut found = HashMap::with_capacity(wanted.len());
        let Some(&oldest) = wanted.first() else { return Ok(found) };
        let end = self.first.0 + self.kept.len() as u64;
        let reader = match &mut self.reader {
            Some(reader) if (self.first.0..=end).contains(&oldest.0) => reader,
            reader => {
                (self.first, self.bytes) = (oldest, 0);
                self.kept.clear();
                reader.insert(Reader::at(Arc::clone(&self.log), self.partition.clone(), oldest).await?)
            }
        };
        let mut from = oldest;
        loop {
            let end = Seq(self.first.0 + self.kept.len() as u64);
            for &seq in wanted.range(from..end.max(from)) {
                let change = self.kept.get((seq.0 - self.first.0) as usize);
                found.extend(change.map(|change| (seq, change.clone())));
            }
            let Some(&next) = wanted.range(end.max(from)..).next() else { return Ok(found) };
            from = end;
            if next.0 > end.0 + FAR {
                (self.first, self.bytes) = (next, 0);
                self.kept.clear();
                *reader = Reader::at(Arc::clone(&self.log), self.partition.clone(), next).await?;
            }
            while self.bytes > self.bytes_max
                && let Some(change) = self.kept.pop_front()
            {
                self.bytes -= change.cost();
                self.first = self.first.next();
            }
            match reader.ready().await {
                Err(EngineError::Log(LogError::Corrupt { to, .. })) => {
                    reader.skip_to(to);
                    self.kept.clear();
                    self.bytes = 0;
                    continue;
                }
                ready => ready?,
            }
            while let Some((_, change)) = reader.pop() {
                if change.op != Op::Fence {
                    if self.kept.is_empty() {
                        self.first = change.seq;
                    }
                    self.bytes += change.cost();
                    self.kept.push_back(change);
                }
            }
        }
    }
}
