//! The change log on Kafka: a topic for each channel and origin, in the origin's own cluster.
//!
//! A record's [`Offset`] is its message's. Kafka gives no two writers a way to exclude each other without a
//! transaction for each append, so the log does it itself: a writer begins with a fence that is meant for one
//! place, the end as it knew it, and counts only there. Whoever finds its next message elsewhere than behind its
//! last one was overtaken, and every reader passes over what it brought behind the newer fence. How messages
//! become records is in `messages`.

mod cluster;
mod cursor;
mod group;
mod intake;
mod messages;
mod partition;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use causeway_core::{Change, Op, Seq, Term};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::types::RDKafkaConfRes;
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::partition::lock;
use super::{Appended, Error, Log, Offset, PartitionId, RecordContext, Result};
use cluster::{Cluster, blocking};
use cursor::Cursor;
use messages::{Message, fence, push_messages};
use partition::{Partition, Pending, Role, SILENT, Shared, UNDER_WAY_MAX};

pub(crate) use group::new_name;
pub use group::{Group, GroupMember, Membership, Turn};
pub use intake::{IntakeReader, IntakeTopic, Produced};

/// Settings of the log on Kafka.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaOptions {
    /// Part of the topics' names: `causeway.<link>.<channel>.<origin>`.
    pub link: String,
    /// Replicas of a topic that is created. Default 3.
    pub replication: usize,
    /// Replicas that must hold a record before it counts. Default 2.
    pub min_insync: usize,
    /// Records are kept at least this long, even when they are applied. Default 1 h.
    pub age_min: Duration,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`. Default `lz4`.
    pub compression: String,
    /// How long the producer waits for more before it sends. Default none.
    pub linger: Duration,
    /// About the largest request to one partition, in bytes. Default 1 MB.
    pub batch_bytes: usize,
    /// A record that is larger, in bytes, is cut into pieces. Default 900 kB.
    pub record_bytes_max: usize,
    /// Bytes that a reader fetches ahead. Default 4 MiB.
    pub fetch_bytes: usize,
    /// Memory for the records appended or read last, of all partitions, in bytes of [`Change::cost`].
    pub cache_bytes: usize,
    /// Bytes of [`Change::cost`] that may be on their way to the brokers. Default 16 MiB.
    pub in_flight_bytes: usize,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        KafkaOptions {
            link: "link".to_owned(),
            replication: 3,
            min_insync: 2,
            age_min: Duration::from_secs(3600),
            compression: "lz4".to_owned(),
            linger: Duration::ZERO,
            batch_bytes: 1_000_000,
            record_bytes_max: 900_000,
            fetch_bytes: 4 << 20,
            cache_bytes: 32 << 20,
            in_flight_bytes: 16 << 20,
        }
    }
}

impl KafkaOptions {
    /// The largest message that a producer hands to a broker, with room for what surrounds it.
    fn message_bytes_max(&self) -> usize {
        self.batch_bytes.max(self.record_bytes_max) + 8192
    }
}

/// One site's Kafka: its brokers, and more settings of its clients by librdkafka's names (TLS, SASL, …).
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaCluster {
    /// `host:port`, several with commas between them.
    pub brokers: String,
    /// As `CONFIGURATION.md` of librdkafka has them. What the log's promises rest on cannot be changed.
    pub client: BTreeMap<String, String>,
}

/// Leaves out what may hold secrets.
impl std::fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<_> = self.client.keys().collect();
        f.debug_struct("KafkaCluster").field("brokers", &self.brokers).field("client", &set).finish()
    }
}

impl KafkaCluster {
    /// Sees whether librdkafka takes all of `client`; connects to nothing.
    ///
    /// # Errors
    ///
    /// The name, and what is wrong with it.
    pub fn check(&self) -> std::result::Result<(), (String, String)> {
        for (name, value) in &self.client {
            if cluster::OURS.iter().chain(&cluster::OURS_PRODUCING).any(|(ours, _)| ours == name)
                || name == "bootstrap.servers"
            {
                return Err((name.clone(), "it is the log's own and cannot be set".to_owned()));
            }
            let mut config = rdkafka::ClientConfig::new();
            let reason = match config.set(name, value).create_native_config() {
                Ok(_) => continue,
                // What it says itself holds the value, which may be a secret.
                Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
                    "no setting of librdkafka's, see its CONFIGURATION.md"
                }
                Err(_) => "not a value that this setting takes, see librdkafka's CONFIGURATION.md",
            };
            return Err((name.clone(), reason.to_owned()));
        }
        Ok(())
    }
}

/// The change log on Kafka, of all partitions of one link.
pub struct KafkaLog {
    partitions: HashMap<PartitionId, Arc<Partition>>,
    /// Topics that applications produce to.
    intakes: HashMap<PartitionId, IntakeTopic>,
    clusters: BTreeMap<String, Arc<Cluster>>,
    shared: Arc<Shared>,
    options: Arc<KafkaOptions>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("link", &self.options.link).finish_non_exhaustive()
    }
}

/// How long what is under way gets when the log is closed.
const CLOSE_AT_MOST: Duration = Duration::from_secs(3);
/// How often a fence is tried that others come before.
const FENCE_TRIES: usize = 50;
/// How often it is looked whether an earlier term has something under way.
const UNDER_WAY_AGAIN: Duration = Duration::from_millis(10);
/// Retention asks the brokers for no less than this.
const TRIM_AT_LEAST: u64 = 1000;
/// A consumer at the end of a topic waits for what comes, at a time.
const FOLLOW: Duration = Duration::from_millis(200);
/// After a failure.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

impl KafkaLog {
    /// Connects to each site's Kafka, creates what topics are missing for `partitions`, and for the intakes of some of them,
    /// and finds out what they hold. `clusters`: by site.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`] where brokers cannot be reached, [`Error::Topic`] for one that is there and unfit,
    /// [`Error::Name`].
    pub async fn open(
        clusters: &BTreeMap<String, KafkaCluster>,
        partitions: &[PartitionId],
        intakes: &[PartitionId],
        options: KafkaOptions,
    ) -> Result<Arc<KafkaLog>> {
        let options = Arc::new(options);
        let shared = Arc::new(Shared {
            permits: Semaphore::new(options.in_flight_bytes.clamp(1, Semaphore::MAX_PERMITS)),
            partitions: partitions.len(),
            closed: watch::Sender::new(false),
            cache_bytes: options.cache_bytes,
            in_flight_bytes: options.in_flight_bytes,
            name: format!("Kafka, link {}", options.link),
        });
        let connected: Result<BTreeMap<String, Arc<Cluster>>> = clusters
            .iter()
            .map(|(site, cluster)| {
                let made = Cluster::new(&cluster.brokers, &options, cluster.client.clone())?;
                Ok((site.clone(), Arc::new(made)))
            })
            .collect();
        let mut log = KafkaLog {
            partitions: HashMap::new(),
            intakes: HashMap::new(),
            clusters: connected?,
            shared,
            options,
        };
        let mut topics: BTreeMap<&str, BTreeMap<String, u32>> = BTreeMap::new();
        for id in partitions {
            let counts = topics.entry(&id.origin).or_default().entry(log.topic(id)).or_default();
            *counts = (*counts).max(id.number + 1);
        }
        for id in intakes {
            let (cluster, topic) =
                (Arc::clone(log.cluster(&id.origin)?), format!("{}.intake", log.topic(id)));
            topics.entry(&id.origin).or_default().insert(topic.clone(), 1);
            let intake = IntakeTopic::new(id.clone(), topic, cluster, Arc::clone(&log.shared));
            log.intakes.insert(id.clone(), intake);
        }
        for (site, topics) in topics {
            log.cluster(site)?.ensure(&topics).await?;
        }
        for id in partitions {
            let partition = log.found(id).await?;
            log.partitions.insert(id.clone(), partition);
        }
        Ok(Arc::new(log))
    }

    fn topic(&self, id: &PartitionId) -> String {
        format!("causeway.{}.{}.{}", self.options.link, id.channel, id.origin)
    }

    fn cluster(&self, site: &str) -> Result<&Arc<Cluster>> {
        self.clusters.get(site).ok_or_else(|| Error::Kafka {
            brokers: "none".to_owned(),
            action: "find the brokers",
            reason: format!("no brokers are configured for {site}"),
        })
    }

    /// Joins the daemons of `site`, as `name`: which of them serves what `site` writes is what Kafka assigns.
    ///
    /// # Errors
    ///
    /// [`Error::Kafka`] for settings that a member cannot have.
    pub fn join(&self, site: &str, name: String) -> Result<Group> {
        let cluster = Arc::clone(self.cluster(site)?);
        let group = format!("causeway.{}.{site}", self.options.link);
        let own = self.partitions.values().filter(|partition| partition.id.origin == site);
        Group::join(cluster, group, name, own.map(|own| (own.topic.clone(), own.id.clone())))
    }

    /// The partition, and what it holds.
    async fn found(&self, id: &PartitionId) -> Result<Arc<Partition>> {
        let cluster = Arc::clone(self.cluster(&id.origin)?);
        let partition =
            Arc::new(Partition::new(id.clone(), self.topic(id), cluster, Arc::clone(&self.shared)));
        let explored = Arc::clone(&partition);
        blocking(move || explored.explore()).await?;
        let range = partition.bounds();
        info!(partition = %id, topic = partition.topic, start = range.start, end = range.end, "found in Kafka");
        Ok(partition)
    }

    fn find(&self, id: &PartitionId) -> Result<Arc<Partition>> {
        if self.shared.is_closing() {
            return Err(self.shared.closed_error());
        }
        let reason = "it was not named when the log was opened";
        self.partitions.get(id).cloned().ok_or_else(|| Error::Name { partition: id.clone(), reason })
    }

    fn context(&self, id: &PartitionId) -> RecordContext {
        RecordContext { channel: id.channel.clone(), origin: id.origin.clone() }
    }

    /// Appends a fence, where nobody else's record comes in between: from there on the partition is ours.
    async fn take_over(&self, partition: &Arc<Partition>, mut change: Change) -> Result<Offset> {
        let context = self.context(&partition.id);
        // Of an earlier term of our own: what is still to come stands before the fence, or nowhere.
        while partition.waits_since().is_some() && !self.shared.is_closing() {
            tokio::time::sleep(UNDER_WAY_AGAIN).await;
        }
        for _ in 0..FENCE_TRIES {
            let (term, before) = self.begin_to_write(partition).await?;
            change.term = Term(term);
            let message = fence(&change, before, &context);
            let (reply, placed) = oneshot::channel();
            self.send(partition, vec![message], vec![(0, change.clone())], 0, reply)?;
            match placed.await.unwrap_or(Err(self.shared.closed_error())) {
                Ok(place) if place.0 == term => {
                    partition.fenced(messages::Fence { at: term, before });
                    return Ok(place);
                }
                Ok(_) | Err(Error::Fenced { .. }) => {
                    debug!(partition = %partition.id, "another one came first")
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Fenced { partition: partition.id.clone() })
    }

    /// Sees that this process writes the partition. Without a fence nobody is kept from it: for logs of one writer.
    async fn writes(&self, partition: &Arc<Partition>) -> Result<()> {
        match &lock(&partition.state).role {
            Role::Writes { .. } => return Ok(()),
            Role::Failed(error) => return Err(error.clone()),
            Role::Reads => {}
        }
        self.begin_to_write(partition).await.map(|_| ())
    }

    /// Finds the partition's end: what is appended stands there. Returns it, and the newest fence.
    async fn begin_to_write(&self, partition: &Arc<Partition>) -> Result<(u64, Option<u64>)> {
        let explored = Arc::clone(partition);
        blocking(move || explored.explore()).await?;
        let mut state = lock(&partition.state);
        let next = state.known_to;
        state.role = Role::Writes { next, fence: next };
        state.tail.restart(next);
        Ok((next, state.fences.last().copied()))
    }

    /// Hands messages to the producer, in order.
    fn send(
        &self,
        partition: &Arc<Partition>,
        messages: Vec<Message>,
        records: Vec<(u64, Change)>,
        cost: usize,
        reply: oneshot::Sender<Result<Offset>>,
    ) -> Result<()> {
        let producer = partition.cluster.producer()?;
        let count = messages.len() as u64;
        let pending = Pending::new(Arc::clone(partition), records, count, cost, reply);
        lock(&partition.state).under_way.push_back(std::time::Instant::now());
        for (sent, message) in messages.into_iter().enumerate() {
            let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
            for (key, value) in &message.headers {
                headers = headers.insert(Header { key, value: Some(value.as_ref()) });
            }
            let mut record: BaseRecord<'_, [u8], [u8], Arc<Pending>> =
                BaseRecord::with_opaque_to(&partition.topic, Arc::clone(&pending))
                    .partition(partition.number() as i32)
                    .headers(headers);
            if let Some(key) = &message.key {
                record = record.key(key);
            }
            if let Some(value) = &message.value {
                record = record.payload(value);
            }
            if let Err((error, _)) = producer.send(record) {
                // A part of it may be on its way: nothing may come behind that.
                pending.give_up(count - sent as u64, &error.to_string());
                return Ok(());
            }
        }
        Ok(())
    }

    /// Follows the end of a partition that others write, in a thread of its own.
    fn follow(&self, partition: &Arc<Partition>) {
        let from;
        {
            let mut state = lock(&partition.state);
            if state.followed || state.writes() {
                state.released = false;
                return;
            }
            // One that failed still has to begin with a fence, should it write again.
            state.followed = true;
            state.released = false;
            from = state.known_to;
            state.tail.restart(from);
        }
        let partition = Arc::clone(partition);
        let name = format!("follow {}", partition.id);
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            follow(&partition, from);
            lock(&partition.state).followed = false;
        });
        if let Err(error) = spawned {
            error!(%error, "a thread that follows the log cannot be started");
        }
    }
}

/// Reads on from `from`, the end of `partition`, until the log is closed, or the partition is ours or nobody's here.
fn follow(partition: &Partition, mut from: u64) {
    let mut cursor: Option<Cursor> = None;
    let reads = || lock(&partition.state).is_followed() && !partition.shared.is_closing();
    while reads() {
        if !partition.wait_for_room() {
            continue;
        }
        let open = match cursor.take() {
            Some(open) => Ok(open),
            None => Cursor::open(partition, from, partition.fence_above(from)),
        };
        let followed = open.and_then(|mut open| {
            let records = open.follow(partition, FOLLOW)?;
            Ok((open, records))
        });
        match followed {
            Ok((open, records)) => {
                from = open.place();
                partition.follow(records, from);
                cursor = Some(open).filter(|open| !open.spoiled);
            }
            Err(Error::Corrupt { to, .. }) => {
                // Whoever reads across it is told.
                from = to.0;
                partition.follow_from(from);
                partition.reached(Offset(from - 1));
            }
            Err(Error::Trimmed { start, .. }) => {
                from = start.0;
                partition.follow_from(from);
            }
            Err(error) => {
                warn!(partition = %partition.id, %error, "following the log failed: it is tried again");
                std::thread::sleep(FOLLOW_AGAIN);
            }
        }
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn append(&self, id: &PartitionId, mut changes: Vec<Change>) -> Result<Appended> {
        let partition = self.find(id)?;
        let (reply, receiver) = oneshot::channel();
        let appended = Appended::new(receiver, self.shared.closed_error());
        if let [change] = changes.as_slice()
            && change.op == Op::Fence
        {
            let _order = partition.order.lock().await;
            let placed = self.take_over(&partition, changes.remove(0)).await;
            let _nobody_waits = reply.send(placed);
            return Ok(appended);
        }
        // What is larger than the whole bound goes alone. So many messages may be under way, and no more.
        let most = self.shared.in_flight_bytes.clamp(1, u32::MAX as usize);
        let least = changes.len() * most.div_ceil(UNDER_WAY_MAX);
        let cost = changes.iter().map(Change::cost).sum::<usize>().max(least).clamp(1, most);
        let _order = partition.order.lock().await;
        let permit = self.shared.permits.acquire_many(cost as u32).await;
        permit.map_err(|_| self.shared.closed_error())?.forget();
        if let Err(error) = self.writes(&partition).await {
            self.shared.permits.add_permits(cost);
            return Err(error);
        }
        if changes.is_empty() {
            self.shared.permits.add_permits(cost);
            let _nobody_waits = reply.send(Ok(Offset(partition.bounds().end)));
            return Ok(appended);
        }
        let context = self.context(id);
        let mut messages = Vec::with_capacity(changes.len());
        let mut records = Vec::with_capacity(changes.len());
        let last = changes.len() - 1;
        for (n, change) in changes.into_iter().enumerate() {
            let first = messages.len() as u64;
            push_messages(&change, &context, self.options.record_bytes_max, n < last, &mut messages);
            records.push((first, change));
        }
        self.send(&partition, messages, records, cost, reply)?;
        Ok(appended)
    }

    async fn read(&self, id: &PartitionId, from: Offset, bytes_max: usize) -> Result<Vec<(Offset, Change)>> {
        let partition = self.find(id)?;
        let Range { start, end } = partition.bounds();
        if from.0 < start {
            return Err(Error::Trimmed { partition: id.clone(), from, start: Offset(start) });
        }
        if from.0 >= end {
            return Ok(Vec::new());
        }
        match partition.read_kept(from.0, bytes_max) {
            Some(records) => Ok(records),
            None => blocking(move || partition.read_cold(from.0, bytes_max)).await,
        }
    }

    async fn newest(&self, id: &PartitionId, count: u64) -> Result<Vec<(Offset, Change)>> {
        let partition = self.find(id)?;
        match partition.newest_kept(count) {
            Some(records) => Ok(records),
            None => blocking(move || partition.newest_cold(count)).await,
        }
    }

    fn passed(&self, id: &PartitionId, at: Offset) {
        if let Ok(partition) = self.find(id) {
            partition.passed(at.0);
        }
    }

    fn release(&self, id: &PartitionId) {
        if let Ok(partition) = self.find(id) {
            partition.release();
        }
    }

    async fn locate(&self, id: &PartitionId, seq: Seq) -> Result<Offset> {
        let partition = self.find(id)?;
        match partition.locate_kept(seq) {
            Some(place) => Ok(place),
            None => blocking(move || partition.locate_cold(seq)).await,
        }
    }

    fn damaged(&self, id: &PartitionId) -> Vec<Range<Offset>> {
        self.find(id).map_or_else(|_| Vec::new(), |partition| lock(&partition.state).damaged.clone())
    }

    fn bounds(&self, id: &PartitionId) -> Range<Offset> {
        let Range { start, end } = self.find(id).map_or(0..0, |partition| partition.bounds());
        Offset(start)..Offset(end)
    }

    async fn end(&self, id: &PartitionId) -> Result<Offset> {
        let partition = self.find(id)?;
        let looked = Arc::clone(&partition);
        blocking(move || looked.explore()).await?;
        Ok(Offset(partition.bounds().end))
    }

    async fn wait_beyond(&self, id: &PartitionId, end: Offset) {
        let Ok(partition) = self.find(id) else { return };
        partition.passed(end.0);
        let mut ends = partition.end.subscribe();
        let mut closed = self.shared.closed.subscribe();
        loop {
            self.follow(&partition);
            tokio::select! {
                _ = ends.wait_for(|now| *now > end.0) => return,
                _ = closed.wait_for(|closed| *closed) => return,
                // It may have been ours, and be somebody else's now.
                () = tokio::time::sleep(FOLLOW_AGAIN) => {}
            }
        }
    }

    async fn trim(&self, id: &PartitionId, below: Offset) -> Result<u64> {
        let partition = self.find(id)?;
        let start = partition.bounds().start;
        if below.0 < start + TRIM_AT_LEAST {
            return Ok(0);
        }
        let (cluster, topic, number) = (&partition.cluster, &partition.topic, partition.number());
        let below = cluster.old_enough(topic, number, below.0).await?;
        if below < start + TRIM_AT_LEAST {
            return Ok(0);
        }
        let kept = cluster.delete_below(topic, number, below).await?;
        partition.start.fetch_max(kept, Ordering::SeqCst);
        Ok(kept.saturating_sub(start))
    }

    fn intake_topic(&self, id: &PartitionId) -> Option<IntakeTopic> {
        self.intakes.get(id).cloned()
    }

    fn queued_bytes(&self) -> usize {
        self.shared.in_flight_bytes.saturating_sub(self.shared.permits.available_permits())
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn room(&self) -> Result<()> {
        for partition in self.partitions.values() {
            if let Some(since) = partition.waits_since().filter(|since| since.elapsed() > SILENT) {
                return Err(Error::Silent {
                    brokers: partition.cluster.brokers.clone(),
                    seconds: since.elapsed().as_secs(),
                });
            }
        }
        if self.shared.is_closing() { Err(self.shared.closed_error()) } else { Ok(()) }
    }

    async fn room_returned(&self) {
        while matches!(self.room(), Err(Error::Silent { .. })) {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn close(&self) {
        self.shared.permits.close();
        self.shared.closed.send_replace(true);
        let (clusters, partitions) = (self.clusters.clone(), self.partitions.clone());
        blocking(move || {
            clusters.values().for_each(|cluster| cluster.close(CLOSE_AT_MOST));
            partitions.values().for_each(|partition| partition.close());
        })
        .await;
    }
}

/// Threads end by themselves.
impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
    }
}
