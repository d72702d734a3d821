//! The log on Kafka against a bare librdkafka producer and consumer of the same messages, and the embedded log
//! beside them: what a change costs to append until it is durable, and to read again by somebody else.
//!
//! `log_kafka BROKERS [CHANGES]`; `bench/log/kafka` starts a broker and calls it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use causeway_core::{Change, Hlc, Key, Op, Position, Seq, Space};
use causeway_testkit::process::cpu_seconds;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset as At, TopicPartitionList};
use syncd::log::{
    EmbeddedLog, EmbeddedOptions, KafkaCluster, KafkaLog, KafkaOptions, Log, Offset, PartitionId,
    RecordContext, headers,
};

/// Changes in one append, as capture brings them under load.
const APPEND: u64 = 500;
/// Appends under way, as capture has them.
const UNDER_WAY: usize = 64;

/// A change of about `bytes` of key and value, which don't compress to nothing.
fn change(n: u64, bytes: usize, history: &Bytes) -> Change {
    let name = Bytes::from(format!("push:app-{:05}:dev-{n:012}", n % 20_000));
    let mut value = String::with_capacity(bytes);
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while value.len() + name.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.push_str(&format!("{state:016x}"));
    }
    value.truncate(bytes.saturating_sub(name.len()));
    let pos = Position { history: history.clone(), at: n * 143, context: Bytes::from_static(b"0") };
    let time = 1_760_000_000_000 + n / 100;
    let key = Key { space: Space::Db(0), name };
    let mut change = Change::captured(Op::Command, key, Some(Bytes::from(value)), pos, time);
    change.seq = Seq(n);
    change.hlc = Hlc(time << 21 | (n % 100) << 9);
    change.seen = Seq(n / 7);
    change.low = Seq(n / 7);
    change
}

/// CPU seconds of this process, all threads.
fn cpu() -> Result<f64> {
    cpu_seconds(std::process::id())
}

struct Figures {
    rate: f64,
    micros: f64,
}

/// Runs `what` and says how many of `count` it did a second, and what each cost.
async fn measured<T>(count: u64, what: impl Future<Output = Result<T>>) -> Result<(T, Figures)> {
    let (cpu_start, started) = (cpu()?, Instant::now());
    let done = what.await?;
    let seconds = started.elapsed().as_secs_f64();
    let micros = (cpu()? - cpu_start) / count as f64 * 1e6;
    Ok((done, Figures { rate: count as f64 / seconds, micros }))
}

async fn append(log: &dyn Log, id: &PartitionId, changes: &[Change]) -> Result<()> {
    let mut under_way = std::collections::VecDeque::new();
    for some in changes.chunks(APPEND as usize) {
        if under_way.len() == UNDER_WAY
            && let Some(oldest) = under_way.pop_front()
        {
            let oldest: syncd::log::Appended = oldest;
            oldest.await?;
        }
        under_way.push_back(log.append(id, some.to_vec()).await?);
    }
    for appended in under_way {
        appended.await?;
    }
    Ok(())
}

async fn read(log: &dyn Log, id: &PartitionId, count: u64) -> Result<()> {
    let mut at = Offset(0);
    while at.0 < count {
        let some = log.read(id, at, 1 << 20).await?;
        at = some.last().map(|(last, _)| Offset(last.0 + 1)).context("the log ends before its end")?;
    }
    Ok(())
}

/// The same messages, by a producer with the same settings.
async fn produce(brokers: &str, topic: &str, changes: &[Change]) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("enable.idempotence", "true").set("acks", "all");
    config.set("linger.ms", "0").set("compression.codec", "lz4").set("batch.size", "1000000");
    config.set("batch.num.messages", "1000000").set("queue.buffering.max.messages", "100000");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
    let context = RecordContext { channel: "tags".to_owned(), origin: "dc".to_owned() };
    for change in changes {
        let mut all = OwnedHeaders::new_with_capacity(12);
        for (key, value) in headers(change, &context) {
            all = all.insert(Header { key, value: Some(value.as_ref()) });
        }
        let value = change.value.clone().unwrap_or_default();
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic)
            .partition(0)
            .key(change.key.name.as_ref())
            .payload(value.as_ref())
            .headers(all);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}

async fn consume(brokers: &str, topic: &str, count: u64) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "bare").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create()?;
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(topic, 0, At::Beginning)?;
    consumer.assign(&places)?;
    let mut left = count;
    while left > 0 {
        if let Some(message) = consumer.poll(Duration::from_secs(10)) {
            std::hint::black_box(message?.payload());
            left -= 1;
        }
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let brokers = args.next().context("BROKERS is missing")?;
    let count: u64 = args.next().map_or(Ok(300_000), |text| text.parse())? / APPEND * APPEND;
    let id = PartitionId { channel: "tags".to_owned(), origin: "dc".to_owned(), number: 0 };
    let history = Bytes::from(vec![b'f'; 40]);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    println!(
        "{count} changes; rate in changes/s, CPU of this process in µs each (the broker's is not in it)"
    );
    println!("bytes  log                    append/s    µs   read/s    µs   by bare: append  read");
    for bytes in [200, 1024] {
        let changes: Vec<Change> = (0..count).map(|n| change(n, bytes, &history)).collect();
        let mut rows: Vec<(&str, Figures, Figures)> = Vec::new();
        for round in 0..2 {
            // The first round warms up the broker.
            rows.clear();
            let topic = format!("bare-{bytes}-{round}-{}", std::process::id());
            let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
            admin.create_topics([&new], &AdminOptions::new()).await?;
            let ((), write) = measured(count, produce(&brokers, &topic, &changes)).await?;
            let ((), again) = measured(count, consume(&brokers, &topic, count)).await?;
            rows.push(("bare rdkafka", write, again));

            let options = KafkaOptions {
                link: format!("bench-{bytes}-{round}-{}", std::process::id()),
                replication: 1,
                min_insync: 1,
                ..KafkaOptions::default()
            };
            let cluster = KafkaCluster { brokers: brokers.clone(), client: BTreeMap::new() };
            let clusters = BTreeMap::from([("dc".to_owned(), cluster)]);
            let log = KafkaLog::open(&clusters, std::slice::from_ref(&id), &[], options.clone()).await?;
            let ((), write) = measured(count, append(log.as_ref(), &id, &changes)).await?;
            log.close().await;
            let log = KafkaLog::open(&clusters, std::slice::from_ref(&id), &[], options).await?;
            let ((), again) = measured(count, read(log.as_ref(), &id, count)).await?;
            log.close().await;
            rows.push(("the log on Kafka", write, again));

            let dir = tempfile::tempdir()?;
            let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).await?;
            let ((), write) = measured(count, append(log.as_ref(), &id, &changes)).await?;
            log.close().await;
            let log: Arc<dyn Log> = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).await?;
            let ((), again) = measured(count, read(log.as_ref(), &id, count)).await?;
            log.close().await;
            rows.push(("embedded", write, again));
        }
        let bare = rows.first().map_or((1.0, 1.0), |(_, write, again)| (write.rate, again.rate));
        for (name, write, again) in &rows {
            println!(
                "{bytes:>5}  {name:<20} {:>10.0} {:>5.1} {:>8.0} {:>5.1} {:>17.2} {:>5.2}",
                write.rate,
                write.micros,
                again.rate,
                again.micros,
                write.rate / bare.0,
                again.rate / bare.1
            );
        }
    }
    Ok(())
}
