//! Stories of applications that produce to the intake topic.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_core::Change;
use causeway_stories::{Link, Setup, durable, kafkas_own, log_in_kafka, seed, servers, story_seconds};
use causeway_testkit::kafka::{self, KafkaServer, kafka_home};
use causeway_testkit::resp::Connection;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, Offset as At, TopicPartitionList};
use serde_json::json;
use syncd::log::{KafkaCluster, KafkaLog, KafkaOptions, Log, PartitionId};

use super::{DRAIN, PAUSE};

const SITES: [&str; 2] = ["dc", "cloud"];

fn topic(site: usize) -> String {
    format!("causeway.story.push.{}.intake", SITES[site])
}

/// Brokers of a story alone, and a link over them whose applications hand over.
fn link() -> Result<Option<([KafkaServer; 2], Link)>> {
    if !servers() || kafka_home().is_none() {
        return Ok(None);
    }
    let brokers = KafkaServer::start_both([kafka::Options::default(), kafka::Options::default()])?;
    let tables = log_in_kafka(&brokers[0], &brokers[1]);
    let channel = "intake = { deliver = \"both\" }".to_owned();
    let setup = Setup { tables, channel, snapshot: "none", ..Setup::default() };
    Ok(Some((brokers, Link::new([durable(), durable()], &setup)?)))
}

/// What an application has produced, all of it acknowledged.
#[derive(Default)]
struct Produced {
    messages: u64,
    /// Messages of which no line may be taken.
    wrong: u64,
    lines: u64,
    /// Of keys that it alone writes, the last value.
    last: BTreeMap<String, String>,
}

struct Producer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Produced>>,
}

impl Producer {
    /// A few messages at a time, of a few lines each, until it is stopped.
    fn start(broker: &str, site: usize, seed: u64) -> Result<Producer> {
        let mut config = ClientConfig::new();
        // It tries until the broker has it.
        config.set("enable.idempotence", "true").set("message.timeout.ms", "0");
        config.set("bootstrap.servers", broker).set("reconnect.backoff.max.ms", "500");
        let (producer, topic): (BaseProducer, _) = (config.create()?, topic(site));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut rng, mut made) = (SmallRng::seed_from_u64(seed), Produced::default());
            while !stopped.load(Ordering::SeqCst) {
                for _ in 0..rng.random_range(1..10) {
                    let message = made.draw(&mut rng, site);
                    producer
                        .send(BaseRecord::<(), String>::to(&topic).payload(&message))
                        .map_err(|(error, _)| error)?;
                }
                producer.flush(Timeout::Never)?;
                ensure!(producer.client().fatal_error().is_none(), "{:?}", producer.client().fatal_error());
                std::thread::sleep(PAUSE);
            }
            Ok(made)
        });
        Ok(Producer { stop, thread })
    }

    fn finish(self) -> Result<Produced> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("a producer panicked"))?
    }
}

impl Produced {
    fn draw(&mut self, rng: &mut SmallRng, site: usize) -> String {
        self.messages += 1;
        if rng.random_ratio(1, 40) {
            self.wrong += 1;
            // Neither line is taken.
            let good = json!({"command": ["SET", format!("tag:own-{site}-0"), "of a message that is wrong"]});
            return format!("{good}\n{}", json!({"command": ["INCR", "n"]}));
        }
        let lines: Vec<String> = (0..rng.random_range(1..4))
            .map(|_| {
                self.lines += 1;
                let value = format!("{site}-{}", self.lines);
                let key = match rng.random_ratio(1, 4) {
                    true => format!("tag:hot-{}", rng.random_range(0..20)),
                    false => format!("tag:own-{site}-{}", rng.random_range(0..200)),
                };
                let line = json!({"command": ["SET", key, value]}).to_string();
                self.last.insert(key, value);
                line
            })
            .collect();
        lines.join("\n")
    }
}

/// What the log of `site` holds that was produced, by the names it has there.
fn taken(brokers: &[KafkaServer; 2], site: usize) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let id = PartitionId { channel: "push".to_owned(), origin: SITES[site].to_owned(), number: 0 };
        let cluster = KafkaCluster { brokers: brokers[site].brokers(), client: BTreeMap::new() };
        let options = KafkaOptions {
            link: "story".to_owned(),
            replication: 1,
            min_insync: 1,
            ..KafkaOptions::default()
        };
        let clusters = BTreeMap::from([(SITES[site].to_owned(), cluster)]);
        let log = KafkaLog::open(&clusters, std::slice::from_ref(&id), &[], options).await?;
        let (mut from, mut names) = (log.bounds(&id).start, Vec::new());
        while from < log.bounds(&id).end {
            let read = log.read(&id, from, 1 << 20).await?;
            let Some((last, _)) = read.last() else { break };
            from.0 = last.0 + 1;
            let named = |change: &Change| {
                change.intake.as_ref().map(|name| String::from_utf8_lossy(name).into_owned())
            };
            names.extend(read.iter().filter_map(|(_, change)| named(change)));
        }
        log.close().await;
        Ok(names)
    })
}

fn dead_letters(link: &Link) -> usize {
    link.dead_letters().lines().count()
}

/// Waits until nothing is left in the topics either.
fn wait_until_taken(link: &Link, at_most: Duration) -> Result<()> {
    let read = |status: &syncd::status::Status| {
        let all = status.channels.iter().flat_map(|channel| &channel.directions);
        all.into_iter().all(|direction| direction.intake.is_some_and(|intake| intake.in_topic == Some(0)))
    };
    link.wait_until("the topics are read", at_most, read)?;
    // What it says is a few seconds old.
    std::thread::sleep(Duration::from_secs(6));
    link.wait_until("the topics are read", at_most, read)?;
    link.wait_until_drained(at_most).map(|_| ())
}

fn wait_for(store: &mut Connection, key: &str, value: &str) -> Result<()> {
    let end = Instant::now() + DRAIN;
    loop {
        let held = store.must(&["GET", key])?.text();
        if held.as_deref() == Some(value) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{key}: {held:?}, not {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// FF24: whoever dies, of what was produced each line is in the log once, in its order, and of a wrong message none.
#[test]
fn what_is_produced_is_taken_once_whatever_is_killed() -> Result<()> {
    let Some((mut brokers, mut link)) = link()? else { return Ok(()) };
    link.part()?;
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    link.start()?;
    let producers = [0, 1].map(|site| Producer::start(&brokers[site].brokers(), site, seed + site as u64));
    let end = Instant::now() + story_seconds(25);
    let mut kills = 0;
    while Instant::now() < end || kills < 6 {
        std::thread::sleep(Duration::from_millis(rng.random_range(300..3_000)));
        let site = rng.random_range(0..2);
        let down = Duration::from_millis(rng.random_range(0..1_500));
        match kills % 3 {
            0 => {
                link.kill_at(site)?;
                std::thread::sleep(down);
                link.start_at(site)?;
            }
            1 => {
                brokers[site].kill();
                std::thread::sleep(down);
                brokers[site].restart()?;
            }
            _ => {
                link.stores[site].kill9();
                std::thread::sleep(down);
                link.stores[site].restart()?;
            }
        }
        kills += 1;
    }
    let made = producers.into_iter().map(|producer| producer?.finish()).collect::<Result<Vec<_>>>()?;
    wait_until_taken(&link, DRAIN)?;
    link.verify()?;
    for (site, made) in made.iter().enumerate() {
        println!("{}: {} messages, {} lines, {} wrong", SITES[site], made.messages, made.lines, made.wrong);
        let names = taken(&brokers, site)?;
        let places: Vec<(u64, u64)> = names
            .iter()
            .filter_map(|name| {
                let mut numbers = name.strip_prefix('@')?.split(':').map(str::parse);
                Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
            })
            .collect();
        ensure!(places.len() == names.len(), "seed {seed}: names that are none");
        ensure!(places.is_sorted_by(|one, next| one < next), "seed {seed}: not in order, or twice");
        ensure!(places.len() as u64 == made.lines, "seed {seed}: {} of {} lines", places.len(), made.lines);
        let mut store = link.stores[1 - site].connect()?;
        for (key, value) in made.last.iter().filter(|(key, _)| key.contains("own")) {
            let held = store.must(&["GET", key])?.text();
            ensure!(held.as_ref() == Some(value), "seed {seed}: {key}: {held:?}, not {value}");
        }
    }
    let wrong: u64 = made.iter().map(|made| made.wrong).sum();
    ensure!(dead_letters(&link) as u64 == wrong, "{} dead letters, not {wrong}", dead_letters(&link));
    Ok(())
}

/// FF40, FF47: what retention took before it was read, and a topic that was made anew, are told and do not end the reading. An
/// application is Kafka's own console producer, as in docs/INTAKE.md.
#[test]
fn a_topic_that_loses_messages_or_is_made_anew_is_told() -> Result<()> {
    let Some((brokers, mut link)) = link()? else { return Ok(()) };
    link.start()?;
    let broker = brokers[0].brokers();
    let produce = |lines: &[&str]| -> Result<()> {
        let mut console = kafkas_own("ConsoleProducer", &broker)?;
        console.args(["--topic", &topic(0)]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = console.spawn()?;
        child.stdin.take().context("no stdin")?.write_all(lines.join("\n").as_bytes())?;
        ensure!(child.wait()?.success(), "the console producer failed");
        Ok(())
    };
    let set = |key: &str, value: &str| json!({"command": ["SET", key, value]}).to_string();
    produce(&[&set("a", "1"), "no JSON", &set("b", "1")])?;
    let mut cloud = link.stores[1].connect()?;
    wait_for(&mut cloud, "a", "1")?;
    wait_for(&mut cloud, "b", "1")?;
    let told = |link: &Link, what: &str| -> Result<()> {
        let letters = link.dead_letters();
        let last = letters.lines().last().unwrap_or_default();
        ensure!(last.contains(what) && last.contains("\"op\":\"produced\""), "{what}: {letters}");
        Ok(())
    };
    told(&link, "message 1 was not taken")?;
    ensure!(dead_letters(&link) == 1, "{}", link.dead_letters());

    link.kill()?;
    produce(&[&set("a", "lost"), &set("c", "kept")])?;
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &broker).create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic(0), 0, At::Offset(4))?;
    runtime.block_on(admin.delete_records(&below, &AdminOptions::new()))?;
    link.start()?;
    wait_for(&mut cloud, "c", "kept")?;
    ensure!(cloud.must(&["GET", "a"])?.text().as_deref() == Some("1"), "what was gone is there");
    told(&link, "messages 3 to 3 were gone before they were read")?;

    // As long as the one before, and longer.
    link.kill()?;
    runtime.block_on(admin.delete_topics(&[&topic(0)], &AdminOptions::new()))?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.kill()?;
    let anew: Vec<String> = (0..7).map(|n| set("d", &n.to_string())).collect();
    produce(&anew.iter().map(String::as_str).collect::<Vec<_>>())?;
    link.start()?;
    wait_for(&mut cloud, "d", "6")?;
    told(&link, "it was deleted and made anew")?;
    ensure!(dead_letters(&link) == 3, "{}", link.dead_letters());

    // What was told once is not told again.
    link.kill()?;
    produce(&[&set("e", "1")])?;
    link.start()?;
    wait_for(&mut cloud, "e", "1")?;
    ensure!(dead_letters(&link) == 3, "{}", link.dead_letters());
    link.wait_until_drained(DRAIN)?;
    link.verify()
}
