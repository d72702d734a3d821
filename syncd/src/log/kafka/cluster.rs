//! One Kafka cluster: its clients, and the topics in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::{Message as _, Offset as At, TopicPartitionList};
use tracing::{debug, info, warn};

use super::super::partition::lock;
use super::super::{Error, Result};
use super::KafkaOptions;
use super::partition::Pending;

/// How long a request may take before it counts as failed; it is tried again.
pub(super) const REQUEST: Duration = Duration::from_secs(10);
/// A topic that another daemon created is not told of by every broker at once.
const CREATED_ELSEWHERE: Duration = Duration::from_millis(200);
/// But after so many tries.
const SEEN_AFTER_TRIES: usize = 50;

/// The ends of a topic are asked for again after this.
const WATERMARKS_AGAIN: Duration = Duration::from_millis(100);

/// What Causeway's promises rest on: it is set last, and cannot be overridden.
pub(super) const OURS: [(&str, &str); 3] =
    [("enable.auto.commit", "false"), ("auto.offset.reset", "error"), ("enable.partition.eof", "true")];
/// As [`OURS`], of producers: what one call brings stays in order, and none of it is given up or doubled.
pub(super) const OURS_PRODUCING: [(&str, &str); 5] = [
    ("enable.idempotence", "true"),
    ("enable.gapless.guarantee", "true"),
    ("acks", "all"),
    ("message.timeout.ms", "0"),
    ("queue.buffering.max.messages", "0"),
];

/// One site's Kafka.
pub(super) struct Cluster {
    /// As configured.
    pub(super) brokers: String,
    pub(super) options: Arc<KafkaOptions>,
    common: BTreeMap<String, String>,
    producer: Mutex<Option<Arc<ThreadedProducer<Deliveries>>>>,
    admin: AdminClient<DefaultClientContext>,
    /// Asks about topics; reads nothing.
    pub(super) asks: BaseConsumer<Logged>,
}

/// Tells of deliveries.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    log: Logged,
}

/// Passes on what librdkafka has to say.
#[derive(Debug, Default)]
pub(super) struct Logged;

impl ClientContext for Logged {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => warn!(facility, "kafka: {message}"),
            _ => debug!(facility, "kafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Tried again for ever; what waits for it says so by itself.
        debug!(%error, "kafka: {reason}");
    }
}

impl ConsumerContext for Logged {}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<Pending>) {
        match result {
            Ok(message) => pending.delivered(Ok(message.offset())),
            Err((error, _)) => pending.delivered(Err(error.to_string())),
        }
    }
}

/// What all clients have in common.
fn base(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "causeway");
    // Back after an outage as soon as it is over.
    config.set("reconnect.backoff.max.ms", "1000");
    config.set_log_level(RDKafkaLogLevel::Warning);
    config
}

impl Cluster {
    /// Clients for these brokers; connects to nothing yet.
    pub(super) fn new(
        brokers: &str,
        options: &Arc<KafkaOptions>,
        common: BTreeMap<String, String>,
    ) -> Result<Cluster> {
        let mut config = base(brokers);
        config.extend(common.clone());
        let failed = |error: KafkaError| Error::Kafka {
            brokers: brokers.to_owned(),
            action: Error::SET_UP,
            reason: error.to_string(),
        };
        let admin = config.create().map_err(failed)?;
        let asks = config.create_with_context(Logged).map_err(failed)?;
        let (brokers, options) = (brokers.to_owned(), Arc::clone(options));
        Ok(Cluster { brokers, options, common, producer: Mutex::new(None), admin, asks })
    }

    pub(super) fn failed(&self, action: &'static str, error: &impl ToString) -> Error {
        Error::Kafka { brokers: self.brokers.clone(), action, reason: error.to_string() }
    }

    /// The error for a topic that is not as it has to be.
    pub(super) fn unfit(&self, topic: &str, reason: String) -> Error {
        Error::Topic { topic: topic.to_owned(), brokers: self.brokers.clone(), reason }
    }

    /// Of every consumer; what is given stands unless the configuration says otherwise.
    pub(super) fn consumer_config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = base(&self.brokers);
        config.set("group.id", "causeway");
        defaults.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        config.extend(self.common.clone());
        OURS.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        config
    }

    /// A consumer without a partition yet.
    pub(super) fn consumer(&self) -> Result<BaseConsumer<Logged>> {
        // A record that is larger comes all the same.
        let fetch = self.options.fetch_bytes.clamp(64 << 10, 1 << 30);
        let config = self.consumer_config(&[
            ("queued.max.messages.kbytes", &(fetch >> 10).to_string()),
            ("fetch.message.max.bytes", &fetch.to_string()),
            // A queue that was full is filled again before a fast reader has emptied it. Of each such wait librdkafka spends
            // the last millisecond in a loop, also for a consumer that nobody reads from at present.
            ("fetch.wait.max.ms", "100"),
            ("fetch.queue.backoff.ms", "8"),
        ]);
        config.create_with_context(Logged).map_err(|error| self.failed("set up a consumer", &error))
    }

    /// The producer; made anew if the last one gave up for good.
    pub(super) fn producer(&self) -> Result<Arc<ThreadedProducer<Deliveries>>> {
        let mut kept = lock(&self.producer);
        if let Some(producer) = kept.as_ref().filter(|producer| producer.client().fatal_error().is_none()) {
            return Ok(Arc::clone(producer));
        }
        let mut config = base(&self.brokers);
        let options = &self.options;
        config.set("linger.ms", (options.linger.as_micros() as f64 / 1000.0).to_string());
        config.set("compression.codec", &options.compression);
        config.set("batch.size", options.batch_bytes.to_string());
        config.set("batch.num.messages", "1000000");
        config.set("message.max.bytes", options.message_bytes_max().to_string());
        config.set("queue.buffering.max.kbytes", "2147483647");
        config.set("socket.nagle.disable", "true");
        config.set("retry.backoff.max.ms", "500");
        config.extend(self.common.clone());
        OURS_PRODUCING.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        let producer: ThreadedProducer<Deliveries> = config
            .create_with_context(Deliveries::default())
            .map_err(|error| self.failed("set up a producer", &error))?;
        Ok(Arc::clone(kept.insert(Arc::new(producer))))
    }

    /// Waits for what is under way, at most so long, and gives up the rest.
    pub(super) fn close(&self, at_most: Duration) {
        if let Some(producer) = lock(&self.producer).take() {
            if let Err(error) = producer.flush(at_most) {
                warn!(brokers = %self.brokers, %error, "given up: what was on its way to the log");
            }
            producer.purge(PurgeConfig::default().queue().inflight());
            producer.poll(Duration::ZERO);
        }
    }

    /// Sees that `topics` are there as they should be: name and count of partitions.
    ///
    /// # Errors
    ///
    /// [`Error::Topic`] for one that is there and is not as it has to be, [`Error::Kafka`].
    pub(super) async fn ensure(self: &Arc<Self>, topics: &BTreeMap<String, u32>) -> Result<()> {
        // Those that another daemon makes meanwhile are looked at, too.
        for _ in 0..SEEN_AFTER_TRIES {
            if self.ensured(topics).await? {
                return Ok(());
            }
            tokio::time::sleep(CREATED_ELSEWHERE).await;
        }
        let reason = "it is there, and this user is not told of it: allow `Describe` on the link's topics";
        let first = topics.keys().next().map_or("", String::as_str);
        Err(self.unfit(first, reason.to_owned()))
    }

    /// The same, once; `false` if another daemon created one just then.
    async fn ensured(self: &Arc<Self>, topics: &BTreeMap<String, u32>) -> Result<bool> {
        let this = Arc::clone(self);
        let found = blocking(move || this.asks.fetch_metadata(None, REQUEST)).await;
        let found = found.map_err(|error| self.failed("list the topics", &error))?;
        let counts: BTreeMap<String, usize> =
            found.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect();
        let brokers = found.brokers().len();
        let (there, missing): (Vec<_>, Vec<_>) =
            topics.iter().partition(|(name, _)| counts.get(*name).is_some_and(|count| *count > 0));
        for (name, wanted) in &there {
            let count = counts.get(*name).copied().unwrap_or(0);
            if count != **wanted as usize {
                let reason = format!(
                    "it has {count} partitions, and this channel has {wanted}: the order of changes would be \
                     lost. Remove the topic, or give the link another name"
                );
                return Err(self.unfit(name, reason));
            }
        }
        let names: Vec<&str> = there.iter().map(|(name, _)| name.as_str()).collect();
        self.check(&names).await?;
        self.create(&missing, brokers).await
    }

    /// `false` if another one created some of them meanwhile.
    async fn create(&self, missing: &[(&String, &u32)], brokers: usize) -> Result<bool> {
        if missing.is_empty() {
            return Ok(true);
        }
        let mut all = true;
        let options = &self.options;
        let (replication, min_insync) = (options.replication as i32, options.min_insync.to_string());
        let bytes_max = (options.record_bytes_max.max(options.batch_bytes) + 65536).to_string();
        let new = missing.iter().map(|(name, count)| {
            NewTopic::new(name, **count as i32, TopicReplication::Fixed(replication))
                .set("min.insync.replicas", &min_insync)
                .set("cleanup.policy", "delete")
                // Retention is ours.
                .set("retention.ms", "-1")
                .set("retention.bytes", "-1")
                .set("message.timestamp.type", "LogAppendTime")
                .set("max.message.bytes", &bytes_max)
                .set("unclean.leader.election.enable", "false")
        });
        let new: Vec<NewTopic<'_>> = new.collect();
        let asked = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        let results = self.admin.create_topics(&new, &asked).await;
        for result in results.map_err(|error| self.failed("create the topics", &error))? {
            match result {
                Ok(topic) => info!(topic, brokers = %self.brokers, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => all = false,
                Err((topic, error)) => {
                    let reason = match error {
                        RDKafkaErrorCode::InvalidReplicationFactor => {
                            format!("log.replication is {replication}, and there are {brokers} brokers")
                        }
                        other => format!("it cannot be created: {other}"),
                    };
                    return Err(self.unfit(&topic, reason));
                }
            }
        }
        Ok(all)
    }

    /// What makes a topic unfit for a log is an error; what makes it less safe than configured is told.
    async fn check(&self, topics: &[&str]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let specifiers: Vec<_> = topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let asked = AdminOptions::new().request_timeout(Some(REQUEST));
        let found = match self.admin.describe_configs(&specifiers, &asked).await {
            Ok(found) => found,
            Err(error) => return Err(self.failed("read the topics' settings", &error)),
        };
        for (topic, found) in topics.iter().zip(found) {
            let Ok(found) = found else {
                warn!(topic, brokers = %self.brokers, "its settings cannot be read: DescribeConfigs is not allowed");
                continue;
            };
            let value =
                |name: &str| found.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
            let refuse = |reason| Err(self.unfit(topic, reason));
            let policy = value("cleanup.policy");
            if policy.contains("compact") {
                return refuse(format!(
                    "its cleanup.policy is `{policy}`: that takes changes away in the middle. Allowed is `delete`"
                ));
            }
            let largest = value("max.message.bytes").parse().unwrap_or(usize::MAX);
            if largest < self.options.message_bytes_max() {
                return refuse(format!(
                    "its max.message.bytes is {largest}: lower log.record_bytes_max ({}) and log.batch_bytes ({}) to \
                     at least 8192 less",
                    self.options.record_bytes_max, self.options.batch_bytes
                ));
            }
            let insync = value("min.insync.replicas");
            if insync.parse().unwrap_or(0) < self.options.min_insync {
                warn!(
                    topic,
                    insync,
                    wanted = self.options.min_insync,
                    "min.insync.replicas is lower than configured"
                );
            }
            for (name, told) in [("retention.ms", "-1"), ("retention.bytes", "-1")] {
                if value(name) != told {
                    warn!(
                        topic,
                        setting = name,
                        found = value(name),
                        "retention of Kafka's own: if it takes what \
                        the peer has not applied, that is a gap"
                    );
                }
            }
        }
        Ok(())
    }

    /// The oldest place that is kept, and the one behind the newest; tried until `is_closing` says otherwise. Blocks.
    pub(super) fn watermarks(
        &self,
        topic: &str,
        number: u32,
        is_closing: impl Fn() -> bool,
    ) -> Result<(u64, u64)> {
        let end = Instant::now() + REQUEST;
        loop {
            match self.asks.fetch_watermarks(topic, number as i32, REQUEST) {
                Ok((low, high)) => return Ok((low.max(0) as u64, high.max(0) as u64)),
                // A topic that was just created, or whose leader changes, is not known everywhere at once.
                Err(_) if Instant::now() < end && !is_closing() => {
                    std::thread::sleep(WATERMARKS_AGAIN);
                    // Else the client believes for a while that there is none.
                    let _seen = self.asks.fetch_metadata(Some(topic), REQUEST);
                }
                Err(error) => return Err(self.failed("find the ends of a topic", &error)),
            }
        }
    }

    /// The place before which, of what stands before `below`, everything was appended longer ago than the log's `age_min`.
    pub(super) async fn old_enough(self: &Arc<Self>, topic: &str, number: u32, below: u64) -> Result<u64> {
        let age = self.options.age_min;
        if age.is_zero() {
            return Ok(below);
        }
        let (this, topic) = (Arc::clone(self), topic.to_owned());
        let young = blocking(move || this.younger_than(&topic, number, age)).await?;
        Ok(young.map_or(below, |young| young.min(below)))
    }

    /// The place of the first message that was appended `age` ago or later; `None`: none was. Blocks.
    fn younger_than(&self, topic: &str, number: u32, age: Duration) -> Result<Option<u64>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = now.saturating_sub(age).as_millis() as i64;
        let mut times = TopicPartitionList::new();
        let failed = |error: KafkaError| self.failed("find the age of records", &error);
        times.add_partition_offset(topic, number as i32, At::Offset(at)).map_err(failed)?;
        let found = self.asks.offsets_for_times(times, REQUEST).map_err(failed)?;
        Ok(match found.elements().first().map(|element| element.offset()) {
            Some(At::Offset(place)) => Some(place as u64),
            _ => None,
        })
    }

    /// Deletes what stands before `below`; returns the oldest place that is kept then.
    pub(super) async fn delete_below(&self, topic: &str, number: u32, below: u64) -> Result<u64> {
        let mut places = TopicPartitionList::new();
        let failed = |error: KafkaError| self.failed("delete old records", &error);
        places.add_partition_offset(topic, number as i32, At::Offset(below as i64)).map_err(failed)?;
        let asked = AdminOptions::new().request_timeout(Some(REQUEST)).operation_timeout(Some(REQUEST));
        let deleted = self.admin.delete_records(&places, &asked).await.map_err(failed)?;
        let mut start = below;
        for element in deleted.elements() {
            element.error().map_err(failed)?;
            if let At::Offset(low) = element.offset() {
                start = low as u64;
            }
        }
        Ok(start)
    }
}

/// Runs what waits for a server off the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and who waits here with it.
        Err(_) => std::future::pending().await,
    }
}
