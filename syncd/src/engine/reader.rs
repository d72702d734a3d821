//! Reads a partition of the log in order, checks that nothing is missing, and hands out whole groups.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use causeway_core::{Change, Connector, Op, Seq};

use super::EngineError;
use super::restart::Terms;
use crate::log::{Error as LogError, Log, Offset, PartitionId};

const READ_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 2 << 20;

/// A record and its place in the log.
pub(crate) type Item = (Offset, Change);

/// A place in a partition of the log, and what was read ahead of it.
pub(crate) struct Reader {
    log: Arc<dyn Log>,
    partition: PartitionId,
    next: Offset,
    expected: Option<Seq>,
    /// Nothing was read yet.
    fresh: bool,
    terms: Terms,
    buffer: VecDeque<Item>,
    bytes: usize,
    /// The store that the records are for, as their connector names it; empty if it is not known.
    own: Option<(Arc<dyn Connector>, Bytes)>,
}

impl Reader {
    /// Reads from the record with `seq` on. If retention took it, the first read fails with `Trimmed`.
    pub(crate) async fn at(
        log: Arc<dyn Log>,
        partition: PartitionId,
        seq: Seq,
    ) -> Result<Reader, EngineError> {
        let next = log.locate(&partition, seq).await?;
        let terms = Terms::default();
        let buffer = VecDeque::new();
        Ok(Reader {
            log,
            partition,
            next,
            expected: Some(seq),
            fresh: true,
            terms,
            buffer,
            bytes: 0,
            own: None,
        })
    }

    /// Records of the store `own`, which they are for, are an error: it is not to get them twice.
    pub(crate) fn not_of(self, connector: &Arc<dyn Connector>, own: Bytes) -> Reader {
        Reader { own: (!own.is_empty()).then(|| (Arc::clone(connector), own)), ..self }
    }

    /// Goes on at the oldest record kept, whatever its seq is.
    pub(crate) fn skip_to(&mut self, next: Offset) {
        self.next = next;
        self.expected = None;
        self.buffer.clear();
        self.bytes = 0;
    }

    /// Waits until at least one record is at hand. May be dropped.
    pub(crate) async fn ready(&mut self) -> Result<(), EngineError> {
        while self.buffer.is_empty() {
            self.fill().await?;
            if self.buffer.is_empty() {
                self.log.wait_beyond(&self.partition, self.next).await;
                if self.log.bounds(&self.partition).end <= self.next {
                    return Err(EngineError::Stopped);
                }
            }
        }
        Ok(())
    }

    /// Reads what is there, up to the bound on memory.
    pub(crate) async fn fill(&mut self) -> Result<(), EngineError> {
        if self.bytes >= BUFFER_BYTES { Ok(()) } else { self.refill().await }
    }

    /// Reads on, whatever is at hand already.
    pub(crate) async fn refill(&mut self) -> Result<(), EngineError> {
        if self.log.bounds(&self.partition).end <= self.next {
            return Ok(());
        }
        let records = self.log.read(&self.partition, self.next, READ_BYTES).await?;
        let start = self.log.bounds(&self.partition).start;
        for (offset, change) in records {
            let is_own =
                |(connector, own): &(Arc<dyn Connector>, Bytes)| connector.store_of(&change.pos) == *own;
            if self.own.as_ref().is_some_and(is_own) {
                return Err(EngineError::SameServer { partition: self.partition.clone() });
            }
            self.next = Offset(offset.0 + 1);
            if !self.terms.admits(&change) {
                continue;
            }
            if change.op != Op::Fence {
                let expected = *self.expected.get_or_insert(change.seq);
                if change.seq < expected {
                    continue;
                }
                if change.seq > expected && std::mem::take(&mut self.fresh) && start > Offset(0) {
                    let (partition, from) = (self.partition.clone(), Offset(0));
                    return Err(EngineError::Log(LogError::Trimmed { partition, from, start: offset }));
                }
                self.fresh = false;
                if change.seq > expected {
                    return Err(EngineError::Hole {
                        partition: self.partition.clone(),
                        expected,
                        found: change.seq,
                        at: offset,
                    });
                }
                self.expected = Some(expected.next());
            }
            self.bytes += change.cost();
            self.buffer.push_back((offset, change));
        }
        Ok(())
    }

    /// The next record, left where it is.
    pub(crate) fn peek(&self) -> Option<&Item> {
        self.buffer.front()
    }

    /// Takes the next record.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        let item = self.buffer.pop_front()?;
        self.bytes = self.bytes.saturating_sub(item.1.cost());
        Some(item)
    }

    /// Where the next record to be handed out stands.
    pub(crate) fn offset(&self) -> Offset {
        self.buffer.front().map_or(self.next, |(offset, _)| *offset)
    }
}
