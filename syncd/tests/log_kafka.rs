//! What the log on Kafka promises, against a real broker: alone, beside others that write, and while the broker
//! dies.

#![allow(clippy::unwrap_used)]

mod log_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_core::{Change, Key, Op, Position, Seq, Term};
use causeway_testkit::kafka::{KafkaServer, shared};
use log_support::{append, assert_run, change, changes, read_all};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use syncd::log::{
    Error, Group, GroupMember, IntakeReader, IntakeTopic, KafkaCluster, KafkaLog, KafkaOptions, Log, Offset,
    PartitionId, Turn,
};

/// A link of its own on the brokers that all tests share.
struct Link {
    brokers: String,
    options: KafkaOptions,
}

impl Link {
    /// `None` where no Kafka can be had.
    fn new() -> Option<Link> {
        Some(Link::at(&shared()?.dc.brokers()))
    }

    fn at(brokers: &str) -> Link {
        static LINKS: AtomicU64 = AtomicU64::new(0);
        let link = format!("l{}", LINKS.fetch_add(1, Ordering::SeqCst));
        let options = KafkaOptions {
            link,
            replication: 1,
            min_insync: 1,
            age_min: Duration::ZERO,
            cache_bytes: 0,
            ..KafkaOptions::default()
        };
        Link { brokers: brokers.to_owned(), options }
    }

    fn topic(&self) -> String {
        format!("causeway.{}.tags.dc", self.options.link)
    }

    async fn try_open(&self) -> Result<Arc<KafkaLog>, Error> {
        let cluster = KafkaCluster { brokers: self.brokers.clone(), client: BTreeMap::new() };
        let clusters = BTreeMap::from([("dc".to_owned(), cluster)]);
        KafkaLog::open(&clusters, &[id()], &[], self.options.clone()).await
    }

    async fn open(&self) -> Arc<KafkaLog> {
        self.try_open().await.unwrap()
    }

    fn client<T: rdkafka::config::FromClientConfig>(&self) -> T {
        ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap()
    }

    /// A message that no log wrote.
    fn produce(&self, headers: &[(&str, &str)], value: &str) {
        let producer: BaseProducer = self.client();
        let mut owned = rdkafka::message::OwnedHeaders::new();
        for (key, value) in headers {
            owned = owned.insert(rdkafka::message::Header { key, value: Some(*value) });
        }
        let topic = self.topic();
        producer.send(BaseRecord::<(), str>::to(&topic).partition(0).payload(value).headers(owned)).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    }

    /// The log with its intake topic.
    async fn open_with_intake(&self) -> (Arc<KafkaLog>, IntakeTopic) {
        let cluster = KafkaCluster { brokers: self.brokers.clone(), client: BTreeMap::new() };
        let clusters = BTreeMap::from([("dc".to_owned(), cluster)]);
        let log = KafkaLog::open(&clusters, &[id()], &[id()], self.options.clone()).await.unwrap();
        let topic = log.intake_topic(&id()).unwrap();
        (log, topic)
    }
}

/// Offsets and values up to the first read that brings nothing.
async fn all_of(reader: &mut IntakeReader) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    let mut quiet = 0;
    while quiet < 5 {
        let read = reader.next(1 << 20).await.unwrap();
        quiet = if read.is_empty() { quiet + 1 } else { 0 };
        all.extend(read.into_iter().map(|m| (m.offset, String::from_utf8_lossy(&m.value).into_owned())));
    }
    all
}

/// What applications produce is read in order, of transactions what was committed; what was taken is removed below a place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intake_topic_is_read_and_trimmed() {
    let Some(link) = Link::new() else { return };
    let (log, topic) = link.open_with_intake().await;
    assert_eq!(topic.name(), format!("{}.intake", link.topic()));
    assert_eq!(topic.ends().await.unwrap(), 0..0);
    let name = topic.name().to_owned();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &link.brokers)
        .set("transactional.id", &name)
        .create()
        .unwrap();
    let wait = Duration::from_secs(20);
    let produce = |values: &[&str], commits: bool| {
        producer.begin_transaction().unwrap();
        for value in values {
            producer.send(BaseRecord::<(), str>::to(&name).payload(value)).unwrap();
        }
        producer.flush(wait).unwrap();
        if commits { producer.commit_transaction(wait) } else { producer.abort_transaction(wait) }.unwrap();
    };
    producer.init_transactions(wait).unwrap();
    produce(&["a", "b"], true);
    produce(&["given up"], false);
    let large = "x".repeat(800_000);
    produce(&["c", &large], true);
    // Behind each transaction stands its end.
    let read = all_of(&mut topic.reader(0).unwrap()).await;
    let places: Vec<u64> = read.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(places, [0, 1, 5, 6]);
    assert_eq!([&read[0].1, &read[1].1, &read[2].1, &read[3].1], ["a", "b", "c", &large]);
    assert_eq!(topic.ends().await.unwrap(), 0..8);

    topic.trim(5).await.unwrap();
    assert_eq!(topic.ends().await.unwrap(), 5..8);
    let mut reader = topic.reader(5).unwrap();
    assert_eq!(all_of(&mut reader).await.len(), 2);
    produce(&["d"], true);
    assert_eq!(all_of(&mut reader).await, [(8, "d".to_owned())]);
    for gone in [0, 20] {
        let mut reader = topic.reader(gone).unwrap();
        let failed = loop {
            match reader.next(1 << 20).await {
                Ok(read) => assert!(read.is_empty(), "{read:?}"),
                Err(failed) => break failed,
            }
        };
        assert!(matches!(failed, Error::Trimmed { .. }), "{failed:?}");
    }
    let old = KafkaOptions { age_min: Duration::from_secs(3600), ..link.options.clone() };
    let (_log, patient) = Link { options: old, ..link }.open_with_intake().await;
    patient.trim(8).await.unwrap();
    assert_eq!(patient.ends().await.unwrap(), 5..10, "they are too young");
    log.close().await;
}

fn id() -> PartitionId {
    log_support::partition("dc")
}

/// Begins a term.
async fn take_over(log: &dyn Log) -> Term {
    try_take_over(log).await.unwrap()
}

/// The same, where another may be quicker.
async fn try_take_over(log: &dyn Log) -> Result<Term, Error> {
    let key = Key::none();
    let fence = Change::captured(Op::Fence, key, None, Position::default(), 1);
    Ok(Term::from(put(log, vec![fence]).await?))
}

fn of_term(term: Term, from: u64, to: u64) -> Vec<Change> {
    changes(from, to).into_iter().map(|change| Change { term, ..change }).collect()
}

async fn put(log: &dyn Log, changes: Vec<Change>) -> Result<Offset, Error> {
    log.append(&id(), changes).await?.await
}

/// That the data records read are those numbered `0..end`.
fn assert_seqs(records: &[(Offset, Change)], end: u64) {
    let seqs: Vec<u64> = records.iter().filter(|(_, c)| c.op != Op::Fence).map(|(_, c)| c.seq.0).collect();
    assert_eq!(seqs, (0..end).collect::<Vec<_>>());
    assert!(records.iter().map(|(at, _)| at).is_sorted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_appended_reads_back_also_by_another() {
    let Some(link) = Link::new() else { return };
    let log = link.open().await;
    assert_eq!(log.bounds(&id()), Offset(0)..Offset(0));
    assert!(log.read(&id(), Offset(0), 1).await.unwrap().is_empty());
    let first = put(&*log, changes(0, 3)).await.unwrap();
    let second = put(&*log, changes(3, 5000)).await.unwrap();
    let nothing = put(&*log, Vec::new()).await.unwrap();
    assert_eq!((first, second, nothing), (Offset(0), Offset(3), Offset(5000)));
    for step in [3000, 1 << 30] {
        assert_run(&read_all(&log, &id(), Offset(0), step).await.unwrap(), 0, 5000);
    }
    log.close().await;
    assert!(matches!(log.append(&id(), Vec::new()).await, Err(Error::Closed { .. })));

    let log = link.open().await;
    assert_eq!(log.bounds(&id()), Offset(0)..Offset(5000));
    assert_run(&read_all(&log, &id(), Offset(0), 50_000).await.unwrap(), 0, 5000);
    append(&log, &id(), 5000, 5010).await;
    assert_run(&read_all(&log, &id(), Offset(4990), 1).await.unwrap(), 4990, 5010);
    assert!(log.read(&id(), Offset(6000), 1).await.unwrap().is_empty());
}

/// Else a marker that an applier wrote would speak of more than the log holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_lies_below_the_end() {
    let Some(link) = Link::new() else { return };
    let writer = link.open().await;
    put(&*writer, changes(0, 10)).await.unwrap();
    let reader = link.open().await;
    put(&*writer, changes(10, 20)).await.unwrap();
    // Nobody follows the end here.
    assert_eq!(reader.bounds(&id()).end, Offset(10));
    let read = reader.read(&id(), Offset(0), 1 << 20).await.unwrap();
    let last = read.last().unwrap().0;
    assert!(last >= Offset(10), "only up to {last}");
    assert!(reader.bounds(&id()).end > last, "{:?}", reader.bounds(&id()));
    assert!(reader.locate(&id(), Seq(last.0)).await.unwrap() < reader.bounds(&id()).end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_change_comes_back_however_large_it_is() {
    let Some(mut link) = Link::new() else { return };
    link.options.record_bytes_max = 100_000;
    let log = link.open().await;
    let mut all = Vec::new();
    for (n, (key, value, before)) in [
        (10, None, None),
        (10, Some(0), None),
        (10, Some(99_000), Some(0)),
        (10, Some(1_000_000), None),
        (300_000, Some(5_000_000), Some(150_000)),
        (0, Some(3), None),
        (20, Some(40_000_000), None),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = |len: usize| Bytes::from((0..len).map(|at| (at * 7 + n) as u8).collect::<Vec<_>>());
        let mut change = change(n as u64);
        change.key.name = bytes(key);
        change.value = value.map(bytes);
        change.before = before.map(bytes);
        all.push(change);
    }
    let one = put(&*log, all[..3].to_vec()).await.unwrap();
    assert_eq!(one, Offset(0));
    put(&*log, all[3..].to_vec()).await.unwrap();
    for log in [&log, &link.open().await] {
        let read = read_all(log, &id(), Offset(0), 1).await.unwrap();
        assert_eq!(read.len(), all.len());
        assert!(read.iter().zip(&all).all(|((_, read), put)| read == put));
        // A place within the pieces of one is before the next one.
        let inside = Offset(read[4].0.0 + 2);
        assert_eq!(log.read(&id(), inside, 1).await.unwrap()[0].0, read[5].0);
        for (n, (offset, _)) in read.iter().enumerate() {
            assert_eq!(log.locate(&id(), Seq(n as u64)).await.unwrap(), *offset, "seq {n}");
        }
        assert_eq!(log.bounds(&id()).end.0, read[6].0.0 + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_overtaken_finds_out_and_harms_nothing() {
    let Some(link) = Link::new() else { return };
    let (one, two) = (link.open().await, link.open().await);
    let first = take_over(&*one).await;
    put(&*one, of_term(first, 0, 100)).await.unwrap();
    let second = take_over(&*two).await;
    assert!(second > first);
    // The first one sleeps and wakes: it may well believe that it goes on.
    let late = put(&*one, of_term(first, 100, 150)).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    let later = put(&*one, of_term(first, 150, 160)).await;
    assert!(matches!(later, Err(Error::Fenced { .. })), "{later:?}");
    // The second one finds somebody else's messages behind its fence, which count for nothing.
    put(&*two, of_term(second, 100, 200)).await.unwrap();
    put(&*two, of_term(second, 200, 300)).await.unwrap();
    let writer = two;
    for log in [writer, link.open().await] {
        let read = read_all(&log, &id(), Offset(0), 1000).await.unwrap();
        assert_seqs(&read, 300);
        for seq in [0, 99, 100, 149, 150, 199, 299] {
            let at = log.locate(&id(), Seq(seq)).await.unwrap();
            let found = log.read(&id(), at, 1).await.unwrap();
            assert_eq!((found[0].0, found[0].1.seq), (at, Seq(seq)));
        }
        assert_eq!(log.locate(&id(), Seq(300)).await.unwrap(), log.bounds(&id()).end);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_take_over_at_once_one_writes() {
    let Some(link) = Link::new() else { return };
    let mut logs = Vec::new();
    for _ in 0..4 {
        logs.push(link.open().await);
    }
    let next = Arc::new(tokio::sync::Mutex::new(()));
    let tasks: Vec<_> = logs
        .iter()
        .map(|log| {
            let (log, next) = (log.clone(), next.clone());
            tokio::spawn(async move {
                let mut reigns = 0;
                let end = Instant::now() + Duration::from_secs(60);
                while reigns < 4 && Instant::now() < end {
                    // Another's fence may come behind ours before ours is told of.
                    let term = match try_take_over(&*log).await {
                        Ok(term) => term,
                        Err(Error::Fenced { .. }) => continue,
                        Err(other) => panic!("{other}"),
                    };
                    let began = Instant::now();
                    reigns += 1;
                    // As capture does: it knows what stands before its fence, and goes on behind that.
                    let before = read_all(&log, &id(), Offset(0), 1 << 20).await.unwrap();
                    let counted = before.iter().filter(|(at, c)| at.0 < term.0 && c.op != Op::Fence).count();
                    for n in counted as u64.. {
                        match put(&*log, of_term(term, n, n + 1)).await {
                            Ok(_) => {}
                            Err(Error::Fenced { .. }) => break,
                            Err(other) => panic!("{other}"),
                        }
                        // The last one is overtaken by nobody.
                        if Instant::now() > began + Duration::from_secs(3) {
                            break;
                        }
                        if n % 20 == 19 {
                            let _others = next.lock().await;
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
                reigns
            })
        })
        .collect();
    let mut reigns = 0;
    for task in tasks {
        reigns += task.await.unwrap();
    }
    let log = link.open().await;
    let read = read_all(&log, &id(), Offset(0), 1 << 20).await.unwrap();
    let data = read.iter().filter(|(_, c)| c.op != Op::Fence).count() as u64;
    println!("{reigns} reigns, {data} records");
    assert!(reigns == 16 && data > 20);
    assert_seqs(&read, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_sees_what_another_appends() {
    let Some(mut link) = Link::new() else { return };
    let writer = link.open().await;
    take_over(&*writer).await;
    append(&writer, &id(), 0, 1000).await;
    // One with room for a few records only, and one with plenty.
    for cache_bytes in [4096, 16 << 20] {
        link.options.cache_bytes = cache_bytes;
        let reader = link.open().await;
        let from = reader.bounds(&id()).end;
        let writing = {
            let writer = writer.clone();
            tokio::spawn(async move {
                for n in 0..200 {
                    append(&writer, &id(), n * 5, n * 5 + 5).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        };
        let mut read = Vec::new();
        let mut at = from;
        while read.len() < 1000 {
            let id = id();
            let waited = tokio::time::timeout(Duration::from_secs(20), reader.wait_beyond(&id, at)).await;
            waited.expect("nothing comes any more");
            let some = reader.read(&id, at, 1 << 20).await.unwrap();
            at = some.last().map_or(at, |(offset, _)| Offset(offset.0 + 1));
            read.extend(some);
        }
        writing.await.unwrap();
        assert_seqs(&read, 1000);
        assert_eq!(reader.bounds(&id()).end, at);
        reader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_is_named_and_what_is_behind_it_found() {
    let Some(link) = Link::new() else { return };
    let log = link.open().await;
    append(&log, &id(), 0, 8000).await;
    assert_eq!(log.trim(&id(), Offset(10)).await.unwrap(), 0, "not worth asking for");
    assert_eq!(log.trim(&id(), Offset(5000)).await.unwrap(), 5000);
    for log in [log, link.open().await] {
        assert_eq!(log.bounds(&id()), Offset(5000)..Offset(8000));
        let read = log.read(&id(), Offset(4999), 1).await;
        assert!(matches!(read, Err(Error::Trimmed { start: Offset(5000), .. })), "{read:?}");
        assert_eq!(log.locate(&id(), Seq(7)).await.unwrap(), Offset(5000));
        assert_eq!(log.locate(&id(), Seq(6000)).await.unwrap(), Offset(6000));
        assert_run(&read_all(&log, &id(), Offset(5000), 1 << 20).await.unwrap(), 5000, 8000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_young_is_kept() {
    let Some(mut link) = Link::new() else { return };
    link.options.age_min = Duration::from_secs(3600);
    let log = link.open().await;
    append(&log, &id(), 0, 3000).await;
    assert_eq!(log.trim(&id(), Offset(3000)).await.unwrap(), 0);
    assert_eq!(log.bounds(&id()).start, Offset(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_of_kafkas_own_is_seen_while_reading() {
    let Some(link) = Link::new() else { return };
    let (log, reader) = (link.open().await, link.open().await);
    append(&log, &id(), 0, 3000).await;
    let behind = link.open().await;
    log.trim(&id(), Offset(2000)).await.unwrap();
    // This one still believes that all is there.
    assert_eq!(behind.bounds(&id()).start, Offset(0));
    let read = behind.read(&id(), Offset(100), 1).await;
    assert!(matches!(read, Err(Error::Trimmed { start: Offset(2000), .. })), "{read:?}");
    assert_eq!(behind.bounds(&id()).start, Offset(2000));
    drop(reader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_others_are_passed_over_and_broken_records_are_named() {
    let Some(link) = Link::new() else { return };
    let log = link.open().await;
    append(&log, &id(), 0, 10).await;
    link.produce(&[], "hello");
    link.produce(
        &[("v", "1"), ("op", "put"), ("channel", "tags"), ("origin", "dc"), ("term", "1"), ("seq", "x")],
        "broken",
    );
    log.close().await;
    let log = link.open().await;
    append(&log, &id(), 10, 20).await;
    let some = log.read(&id(), Offset(0), 1 << 20).await.unwrap();
    assert_run(&some, 0, 10);
    let broken = log.read(&id(), Offset(10), 1 << 20).await;
    let Err(Error::Corrupt { from: Offset(11), to: Offset(12), reason, .. }) = &broken else {
        panic!("{broken:?}")
    };
    assert!(reason.contains("`seq`"), "{reason}");
    let rest = log.read(&id(), Offset(12), 1 << 20).await.unwrap();
    assert_eq!(rest.len(), 10);
    assert_eq!(log.damaged(&id()), [Offset(11)..Offset(12)]);
    assert_eq!(log.locate(&id(), Seq(15)).await.unwrap(), rest[5].0);
    // A newer version's record is never taken for a damaged one.
    link.produce(&[("v", "9"), ("op", "put")], "from the future");
    let newer = link.try_open().await.map(|_| ()).unwrap_err();
    assert!(matches!(newer, Error::NewerRecord { place: Offset(22), found: 9, .. }), "{newer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_unfit_is_refused() {
    let Some(link) = Link::new() else { return };
    let admin: AdminClient<DefaultClientContext> = link.client();
    let create = |count, settings: &'static [(&'static str, &'static str)]| {
        let admin = &admin;
        let link = Link::at(&link.brokers);
        async move {
            let topic = link.topic();
            let new = NewTopic::new(&topic, count, TopicReplication::Fixed(1));
            let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
            let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
            assert!(made.iter().all(Result::is_ok), "{made:?}");
            link.try_open().await.map(|_| ()).unwrap_err().to_string()
        }
    };
    assert!(create(3, &[]).await.contains("it has 3 partitions, and this channel has 1"));
    let compacted = create(1, &[("cleanup.policy", "compact")]).await;
    assert!(compacted.contains("cleanup.policy is `compact`"), "{compacted}");
    let small = create(1, &[("max.message.bytes", "100000")]).await;
    assert!(small.contains("max.message.bytes is 100000"), "{small}");
    let mut link = Link::at(&link.brokers);
    link.options.replication = 3;
    let replicas = link.try_open().await.map(|_| ()).unwrap_err().to_string();
    assert!(replicas.contains("log.replication is 3, and there are 1 brokers"), "{replicas}");
    let nobody = Link::at("127.0.0.1:1").try_open().await.map(|_| ()).unwrap_err().to_string();
    assert!(nobody.contains("Kafka at 127.0.0.1:1"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_is_noticed() {
    let Some(link) = Link::new() else { return };
    let log = link.open().await;
    append(&log, &id(), 0, 100).await;
    let admin: AdminClient<DefaultClientContext> = link.client();
    admin.delete_topics(&[&link.topic()], &AdminOptions::new()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reader = link.open().await;
    assert_eq!(reader.bounds(&id()), Offset(0)..Offset(0));
    let outcome = tokio::time::timeout(Duration::from_secs(30), put(&*log, changes(100, 101))).await;
    let error = outcome.expect("an answer").expect_err("it stands nowhere");
    println!("{error}");
    let again = log.read(&id(), Offset(50), 1).await;
    let error = again.expect_err("it is not there").to_string();
    assert!(error.contains("made anew"), "{error}");
}

/// A broker of its own that dies again and again, while one appends and another follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_costs_nothing_and_doubles_nothing() {
    if shared().is_none() {
        return;
    }
    let mut broker = KafkaServer::start(Default::default()).unwrap();
    let mut link = Link::at(&broker.brokers());
    link.options.cache_bytes = 1 << 20;
    let (log, reader) = (link.open().await, link.open().await);
    let term = take_over(&*log).await;
    let writer = {
        let log = log.clone();
        tokio::spawn(async move {
            let mut handles = Vec::new();
            let end = Instant::now() + Duration::from_secs(40);
            let mut n = 0;
            while Instant::now() < end {
                handles.push(log.append(&id(), of_term(term, n, n + 7)).await.unwrap());
                n += 7;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            for handle in handles {
                handle.await.unwrap();
            }
            n
        })
    };
    let follower = tokio::spawn(async move {
        let mut read: Vec<(Offset, Change)> = Vec::new();
        let mut at = Offset(0);
        loop {
            let waited = tokio::time::timeout(Duration::from_secs(25), reader.wait_beyond(&id(), at)).await;
            if waited.is_err() {
                return read;
            }
            let some = reader.read(&id(), at, 1 << 20).await.unwrap();
            at = some.last().map_or(at, |(offset, _)| Offset(offset.0 + 1));
            read.extend(some);
        }
    });
    let mut full = 0;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        broker.kill();
        tokio::time::sleep(Duration::from_secs(6)).await;
        full += u32::from(matches!(log.room(), Err(Error::Silent { .. })));
        broker =
            tokio::task::spawn_blocking(move || broker.restart().map(|()| broker)).await.unwrap().unwrap();
        log.room_returned().await;
    }
    assert_eq!(full, 2, "capture would have paused");
    let written = writer.await.unwrap();
    assert_seqs(&follower.await.unwrap(), written);
    assert_seqs(&read_all(&link.open().await, &id(), Offset(0), 1 << 20).await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_gave_up_another_takes_up_and_gives_back() {
    let Some(link) = Link::new() else { return };
    let (one, other) = (link.open().await, link.open().await);
    let mut written = 0;
    for _ in 0..3 {
        for (log, reader) in [(&one, &other), (&other, &one)] {
            let term = take_over(&**log).await;
            put(&**log, of_term(term, written, written + 100)).await.unwrap();
            written += 100;
            log.release(&id());
            // Nobody has read there yet.
            let known = reader.bounds(&id()).end;
            let end = reader.end(&id()).await.unwrap();
            assert!(end > known && reader.bounds(&id()).end == end, "{known} {end}");
            assert_seqs(&read_all(reader, &id(), Offset(0), 1 << 30).await.unwrap(), written);
        }
    }
    one.wait_beyond(&id(), Offset(0)).await;
    one.release(&id());
    let term = take_over(&*other).await;
    put(&*other, of_term(term, written, written + 1)).await.unwrap();
    let end = other.bounds(&id()).end;
    tokio::time::timeout(Duration::from_secs(20), one.wait_beyond(&id(), Offset(end.0 - 1))).await.unwrap();
    assert_seqs(&read_all(&one, &id(), Offset(0), 1 << 30).await.unwrap(), written + 1);
}

/// Waits for what the group says next.
async fn told(group: &mut Group) -> Turn {
    tokio::time::timeout(Duration::from_secs(40), group.next()).await.unwrap().unwrap()
}

/// Waits until the members that the brokers tell of are as `wanted` says.
async fn members(group: &Group, wanted: impl Fn(&[GroupMember]) -> bool) -> Vec<GroupMember> {
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        let members = group.membership().members().await.unwrap_or_default();
        if wanted(&members) {
            return members;
        }
        assert!(Instant::now() < end, "{members:?} {:?}", group.membership().trouble());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_stays_with_its_member_and_goes_to_another_when_that_one_is_gone() {
    let Some(link) = Link::new() else { return };
    let (log, other) = (link.open().await, link.open().await);
    let mut first = log.join("dc", "first".to_owned()).unwrap();
    assert!(matches!(told(&mut first).await, Turn::Given(ids) if ids == [id()]));
    let mut second = other.join("dc", "second".to_owned()).unwrap();
    let both = members(&second, |members| members.len() == 2).await;
    assert_eq!((both[0].name.as_str(), both[0].partitions.as_slice()), ("first", &[id()][..]));
    assert_eq!((both[1].name.as_str(), both[1].partitions.len()), ("second", 0));
    // It is back before it is missed.
    drop(first);
    let mut first = log.join("dc", "first".to_owned()).unwrap();
    assert!(matches!(told(&mut first).await, Turn::Given(ids) if ids == [id()]));
    drop(first);
    loop {
        match told(&mut second).await {
            Turn::Given(ids) if ids.is_empty() => {}
            Turn::Given(ids) => break assert_eq!(ids, [id()]),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_with_one_name_do_not_stay_so() {
    let Some(link) = Link::new() else { return };
    let (log, other) = (link.open().await, link.open().await);
    let one = log.join("dc", "copied".to_owned()).unwrap();
    members(&one, |members| members.len() == 1).await;
    let two = other.join("dc", "copied".to_owned()).unwrap();
    let names =
        |members: &[GroupMember]| members.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    let found = names(&members(&two, |members| members.len() == 2).await);
    assert_ne!(one.membership().name(), two.membership().name());
    assert!(
        found.contains(&one.membership().name()) && found.contains(&two.membership().name()),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_group_cannot_be_joined_is_told() {
    let Some(link) = Link::new() else { return };
    let client = [("session.timeout.ms", "500"), ("heartbeat.interval.ms", "100")];
    let client = client.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let cluster = KafkaCluster { brokers: link.brokers.clone(), client };
    let clusters = BTreeMap::from([("dc".to_owned(), cluster)]);
    let log = KafkaLog::open(&clusters, &[id()], &[], link.options.clone()).await.unwrap();
    let group = log.join("dc", "hasty".to_owned()).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let trouble = loop {
        match group.membership().trouble() {
            Some(trouble) => break trouble,
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(Instant::now() < end, "nothing is told");
    };
    assert!(trouble.contains("cannot be joined") && trouble.contains("session timeout"), "{trouble}");
}
