//! The intake topic: what applications produce, beside the topic of their site's changes (docs/INTAKE.md).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset as At, TopicPartitionList};

use super::super::{Error, Offset, PartitionId, Result};
use super::cluster::{Cluster, Logged, blocking};
use super::partition::Shared;

/// How long a read waits for the first message.
const WAIT: Duration = Duration::from_millis(200);

/// The topic to which applications at one site produce what they hand over to one channel; it has one partition.
#[derive(Clone)]
pub struct IntakeTopic {
    id: PartitionId,
    name: Arc<str>,
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for IntakeTopic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntakeTopic").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A message of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// Its offset.
    pub offset: u64,
    /// Lines, as the body of a request has them; empty where the message has no value.
    pub value: Bytes,
    /// Milliseconds since 1970: when the broker appended it, or where the topic says otherwise when it was made; `None`: it has none.
    pub time: Option<u64>,
}

impl IntakeTopic {
    pub(super) fn new(
        id: PartitionId,
        name: String,
        cluster: Arc<Cluster>,
        shared: Arc<Shared>,
    ) -> IntakeTopic {
        IntakeTopic { id, name: name.into(), cluster, shared }
    }

    /// `causeway.<link>.<channel>.<origin>.intake`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds: from the oldest message to behind the newest.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`].
    pub async fn ends(&self) -> Result<Range<u64>> {
        let this = self.clone();
        let found =
            blocking(move || this.cluster.watermarks(&this.name, 0, || this.shared.is_closing())).await;
        found.map(|(start, end)| start..end)
    }

    /// Reads it from `from` on.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`].
    pub fn reader(&self, from: u64) -> Result<IntakeReader> {
        let consumer = self.cluster.consumer()?;
        let mut places = TopicPartitionList::new();
        places
            .add_partition_offset(&self.name, 0, At::Offset(from as i64))
            .and_then(|()| consumer.assign(&places))
            .map_err(|error| self.cluster.failed("go to a place of the intake topic", &error))?;
        Ok(IntakeReader {
            topic: self.clone(),
            consumer: Arc::new(consumer),
            next: from,
            is_at_end: false,
            failed: None,
        })
    }

    /// Forgets what stands before `below` and is older than the log keeps its records.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`].
    pub async fn trim(&self, below: u64) -> Result<()> {
        let below = self.cluster.old_enough(&self.name, 0, below).await?;
        self.cluster.delete_below(&self.name, 0, below).await.map(drop)
    }
}

/// Reads an intake topic. Of transactions it reads those that were committed.
pub struct IntakeReader {
    topic: IntakeTopic,
    consumer: Arc<BaseConsumer<Logged>>,
    next: u64,
    is_at_end: bool,
    /// What came behind the messages that were told last.
    failed: Option<Error>,
}

impl IntakeReader {
    /// Whether the last read came to the end, as it was then.
    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// Messages in order, about `bytes_max` of values at the most unless one alone has more; none if none comes soon.
    ///
    /// # Errors
    ///
    /// Another reader has to be made. [`Error::Trimmed`]: what stands next is not there any more, or never was;
    /// [`Error::Kafka`].
    pub async fn next(&mut self, bytes_max: usize) -> Result<Vec<Produced>> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let consumer = Arc::clone(&self.consumer);
        let (read, failed) = blocking(move || poll(&consumer, bytes_max)).await;
        self.is_at_end = matches!(failed, Some(KafkaError::PartitionEOF(_)));
        let failed = failed.filter(|_| !self.is_at_end);
        self.next = read.last().map_or(self.next, |last| last.offset + 1);
        let failed = failed.map(|error| match error {
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset,
            ) => {
                let (partition, from) = (self.topic.id.clone(), Offset(self.next));
                Error::Trimmed { partition, from, start: Offset(0) }
            }
            error => self.topic.cluster.failed("read the intake topic", &error),
        });
        match failed {
            Some(failed) if read.is_empty() => Err(failed),
            failed => {
                self.failed = failed;
                Ok(read)
            }
        }
    }
}

/// What a message takes beside its value.
const MESSAGE_BYTES: usize = 64;

fn poll(consumer: &BaseConsumer<Logged>, bytes_max: usize) -> (Vec<Produced>, Option<KafkaError>) {
    let (mut read, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_max {
        match consumer.poll(if read.is_empty() { WAIT } else { Duration::ZERO }) {
            None => break,
            Some(Err(error)) => return (read, Some(error)),
            Some(Ok(message)) => {
                let value = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                bytes += value.len() + MESSAGE_BYTES;
                let time = message.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
                read.push(Produced { offset: message.offset() as u64, value, time });
            }
        }
    }
    (read, None)
}
