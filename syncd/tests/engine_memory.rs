//! The real engine and the real log between two stores in memory, whose links break, whose positions get
//! lost and whose answers go missing.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use causeway_core::{ChannelSpec, Connector, OpenError, Site};
use causeway_memory::{Fault, Memory};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::config::{Config, LogStore};
use syncd::engine::Daemon;
use syncd::registry::Registry;
use syncd::status::{
    ConflictEntry, ConflictQuery, Control, ControlError, DeadLetterQuery, HandOver, HandedOver, HeldAnswer,
    KeyText, NotHandedOver, Phase, Resolution, Status,
};

fn open(spec: &ChannelSpec) -> Result<Arc<dyn Connector>, OpenError> {
    causeway_memory::open(spec)
}

struct Running {
    memory: Memory,
    config: Config,
    daemon: Arc<Daemon>,
    dir: tempfile::TempDir,
}

impl Running {
    async fn start(memory: Memory, direction: &str, snapshot: &str) -> Running {
        Running::start_with(memory, direction, snapshot, u64::MAX).await
    }

    async fn start_with(memory: Memory, direction: &str, snapshot: &str, log_bytes_max: u64) -> Running {
        let existing = if snapshot == "both" { "existing = \"dc\"\n" } else { "" };
        let lines = format!("direction = \"{direction}\"\nsnapshot = \"{snapshot}\"\n{existing}");
        Running::start_as(memory, &lines, log_bytes_max).await
    }

    /// With these lines of the channel.
    async fn start_as(memory: Memory, lines: &str, log_bytes_max: u64) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("syncd.toml");
        let text = format!(
            "[link]\nname = \"t\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"push\"\nstore = \"memory\"\n\
             {lines}batch = {{ items_max = 64 }}\n\
             dc = {{ url = \"memory://dc\" }}\ncloud = {{ url = \"memory://cloud\" }}\n"
        );
        std::fs::write(&path, text).unwrap();
        let mut config = Config::load_with(&path, &Registry::built_in().with("memory", open)).unwrap();
        // Smaller than a file may say, so that it is full soon.
        if let LogStore::Embedded { size_max } = &mut config.log.store {
            *size_max = (*size_max).min(log_bytes_max);
        }
        let daemon = Daemon::start(&config, vec![Arc::new(memory.clone())]).await.unwrap();
        Running { memory, config, daemon, dir }
    }

    async fn restart(&mut self) {
        self.daemon.stop().await;
        self.daemon = Daemon::start(&self.config, vec![Arc::new(self.memory.clone())]).await.unwrap();
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let status = self.daemon.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything is carried, seen for as long as two restart points take.
    async fn drained(&self) {
        let quiet = |status: &Status| {
            status.channels[0]
                .directions
                .iter()
                .all(|d| d.phase == Phase::Streaming && d.lag.changes == Some(0) && d.error.is_none())
        };
        let mut since = Instant::now();
        let end = Instant::now() + Duration::from_secs(120);
        while since.elapsed() < Duration::from_millis(2_500) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let status = self.daemon.status();
            if !quiet(&status) {
                since = Instant::now();
            }
            assert!(Instant::now() < end, "not drained: {status:#?}");
        }
    }

    async fn equal(&self) {
        self.drained().await;
        assert_eq!(self.memory.dump(Site::First), self.memory.dump(Site::Second));
    }
}

fn tell_logs() {
    let _already = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_and_what_follows_arrive_at_the_other_site() {
    tell_logs();
    let memory = Memory::new();
    memory.write(Site::First, &["SET a 1", "RPUSH l x", "RPUSH l y"]).unwrap();
    memory.write(Site::Second, &["SET only-cloud 1"]).unwrap();
    let mut run = Running::start(memory, "both", "both").await;
    run.memory.write(Site::First, &["INCRBY n 5", "HSET h f 1"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY m 7"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "n").unwrap().0, "string 5");
    run.restart().await;
    run.memory.write(Site::Second, &["INCRBY m 1"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "m").unwrap().0, "string 8");
    run.daemon.stop().await;
}

/// FF24: links that break, positions that get lost and answers that go missing double or lose nothing.
#[tokio::test(flavor = "multi_thread")]
async fn every_write_counts_once_through_every_fault() {
    tell_logs();
    let seed =
        std::env::var("CAUSEWAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("CAUSEWAY_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let memory = Memory::new();
    for i in 0..200 {
        memory.write(Site::BOTH[i % 2], &[&format!("SET before{i} {i}")]).unwrap();
    }
    let mut run = Running::start(memory, "both", "both").await;
    let mut sums = [[0_u64; 20]; 2];
    let mut lists = vec![vec![Vec::new(); 8]; 2];
    let end = Instant::now() + Duration::from_secs(12);
    let mut n = 0_u64;
    while Instant::now() < end {
        for _ in 0..random.random_range(1..40) {
            n += 1;
            let site = random.random_range(0..2_usize);
            let (counter, list) = (random.random_range(0..20_usize), random.random_range(0..8_usize));
            let by = random.random_range(1..9_u64);
            let commands = match random.random_range(0..6) {
                0 | 1 => {
                    sums[site][counter] += by;
                    vec![format!("INCRBY c{site}-{counter} {by}")]
                }
                2 => {
                    lists[site][list].push(n);
                    vec![format!("RPUSH l{site}-{list} {n}")]
                }
                3 => {
                    sums[site][counter] += by;
                    lists[site][list].push(n);
                    vec![format!("INCRBY c{site}-{counter} {by}"), format!("RPUSH l{site}-{list} {n}")]
                }
                4 => vec![format!("DEL h{site}-{list}")],
                _ => vec![format!("HINCRBY h{site}-{list} f{counter} {by}")],
            };
            let words: Vec<&str> = commands.iter().map(String::as_str).collect();
            run.memory.write(Site::BOTH[site], &words).unwrap();
        }
        let at = Site::BOTH[random.random_range(0..2_usize)];
        match random.random_range(0..150) {
            0..5 => run.memory.cut(at),
            5..8 => run.memory.inject(at, Fault::CutAfter(random.random_range(0..4))),
            8..10 => run.memory.lose_position(at),
            10 => run.restart().await,
            11 => {
                run.memory.inject(at, Fault::Full);
                tokio::time::sleep(Duration::from_millis(300)).await;
                run.memory.clear(at);
            }
            12 => {
                run.memory.stop(at);
                tokio::time::sleep(Duration::from_millis(200)).await;
                run.memory.start(at);
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..15))).await;
    }
    for site in Site::BOTH {
        run.memory.clear(site);
    }
    run.equal().await;
    let mut wrong = Vec::new();
    let mut expect = |key: String, expected: String| {
        let found = run.memory.read(Site::First, &key).map(|found| found.0);
        if found.as_ref() != Some(&expected) {
            wrong.push(format!("{key}: expected {expected}, found {found:?}"));
        }
    };
    for site in 0..2 {
        for (counter, sum) in sums[site].iter().enumerate().filter(|(_, sum)| **sum > 0) {
            expect(format!("c{site}-{counter}"), format!("string {sum}"));
        }
        for (list, pushed) in lists[site].iter().enumerate().filter(|(_, pushed)| !pushed.is_empty()) {
            let words: Vec<String> = pushed.iter().map(u64::to_string).collect();
            expect(format!("l{site}-{list}"), format!("list {}", words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let status = run.daemon.status();
    assert!(status.channels[0].directions.iter().all(|d| d.dead_letters == 0), "{status:#?}");
    run.daemon.stop().await;
}

/// FF23.
const INTAKE: &str = "direction = \"both\"\nsnapshot = \"none\"\nintake = { deliver = \"both\", keys = [\"h:*\"], \
                      waiting_max = 3 }\n";

impl Running {
    /// With an intake, and all of it begun.
    async fn with_intake(memory: Memory) -> Running {
        let run = Running::start_as(memory, INTAKE, u64::MAX).await;
        run.drained().await;
        run
    }

    async fn hand_over(
        &self,
        site: &str,
        key: Option<&str>,
        body: &str,
    ) -> Result<HandedOver, NotHandedOver> {
        let key = key.map(str::to_owned);
        let request = HandOver { site: Some(site.to_owned()), key, body: body.to_owned().into() };
        self.daemon.hand_over("push", request).await
    }

    fn intake(&self) -> Vec<(u64, u64)> {
        let directions = &self.daemon.status().channels[0].directions;
        directions
            .iter()
            .map(|direction| direction.intake.map_or((9, 9), |it| (it.waiting, it.past)))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_is_in_both_stores_once() {
    let mut run = Running::with_intake(Memory::new()).await;
    let both = "HSET h:1 f 1\nSET h:2 x\n";
    assert_eq!(run.hand_over("dc", Some("a"), both).await.unwrap(), HandedOver { accepted: 2, repeated: 0 });
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "h:1").unwrap().0, "hash f 1");
    run.hand_over("cloud", None, "SET h:2 y").await.unwrap();
    // What came again is not done again, also by another process.
    for _ in 0..2 {
        let again = run.hand_over("dc", Some("a"), both).await.unwrap();
        assert_eq!(again, HandedOver { accepted: 2, repeated: 2 });
        run.equal().await;
        assert_eq!(run.memory.read(Site::First, "h:2").unwrap().0, "string y");
        run.restart().await;
        run.drained().await;
    }
    let other = run.hand_over("dc", Some("a"), "SET h:2 z").await.unwrap_err();
    assert!(matches!(other, NotHandedOver::OtherBody(_)), "{other}");
    // Written past the intake, and beside it.
    run.memory.write(Site::Second, &["SET h:3 x", "SET beside 1"]).unwrap();
    run.drained().await;
    assert_eq!(run.memory.read(Site::First, "h:3"), None);
    assert!(run.memory.read(Site::First, "beside").is_some());
    assert_eq!(run.intake(), [(0, 0), (0, 1)]);
    run.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_intake_takes_what_it_can_while_the_sites_own_store_is_away() {
    let run = Running::with_intake(Memory::new()).await;
    run.memory.stop(Site::First);
    for n in 0..3 {
        run.hand_over("dc", None, &format!("SET h:{n} {n}")).await.unwrap();
    }
    let full = run.hand_over("dc", None, "SET h:3 3").await.unwrap_err();
    assert!(
        matches!(&full, NotHandedOver::Full(why) if why.contains("wait for the site's own store")),
        "{full}"
    );
    run.until("the peer has them", |_| run.memory.read(Site::Second, "h:2").is_some()).await;
    assert_eq!(run.intake()[0], (3, 0));
    // Decided where both come together: the other site's is newer.
    run.hand_over("cloud", None, "SET h:1 newer").await.unwrap();
    run.memory.start(Site::First);
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "h:1").unwrap().0, "string newer");
    assert_eq!(run.intake(), [(0, 0), (0, 0)]);
    run.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_line_is_named_and_nothing_of_its_request_is_taken() {
    let run = Running::with_intake(Memory::new()).await;
    let body = "SET h:1 x\n\nINCRBY h:2 1\nSET other 1\nSET\nRENAME h:1 h:2";
    let NotHandedOver::Lines(lines) = run.hand_over("dc", None, body).await.unwrap_err() else { panic!() };
    let named: Vec<u64> = lines.iter().map(|line| line.line).collect();
    assert_eq!(named, [3, 4, 5, 6], "{lines:?}");
    assert!(lines[0].error.contains("results in") && lines[1].error.contains("intake.keys"), "{lines:?}");
    for (site, body, why) in [("dc", "\n", "no line"), ("mars", "SET h:1 x", "no such site")] {
        let wrong = run.hand_over(site, None, body).await.unwrap_err();
        assert!(matches!(&wrong, NotHandedOver::Wrong(text) if text.contains(why)), "{wrong}");
    }
    let none = HandOver { site: None, key: None, body: "SET h:1 x".into() };
    let wrong = run.daemon.hand_over("push", none).await.unwrap_err().to_string();
    assert!(wrong.contains("?site=dc or ?site=cloud"), "{wrong}");
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "h:1"), None);
    run.daemon.stop().await;

    let run = Running::start(Memory::new(), "both", "none").await;
    let none = run.hand_over("dc", None, "SET h:1 x").await.unwrap_err().to_string();
    assert!(none.contains("intake = {"), "{none}");
    run.daemon.stop().await;
}

/// What a store refuses is a dead letter, and the other store's.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_sites_own_store_refuses_is_a_dead_letter_there() {
    let memory = Memory::new();
    memory.write(Site::First, &["RPUSH h:1 x"]).unwrap();
    let run = Running::with_intake(memory).await;
    run.hand_over("dc", None, "HSET h:1 f 1\nSET h:2 x").await.unwrap();
    run.drained().await;
    assert_eq!(run.memory.read(Site::Second, "h:1").unwrap().0, "hash f 1");
    assert_eq!(run.memory.read(Site::First, "h:1").unwrap().0, "list x");
    assert!(run.memory.read(Site::First, "h:2").is_some(), "the others go in");
    let page = run.daemon.dead_letters(&DeadLetterQuery { channel: None, before: None, limit: 9 });
    let told: Vec<_> = page.dead_letters.iter().map(|l| (l.from.as_str(), l.to.as_str())).collect();
    assert_eq!(told, [("dc", "dc")]);
    run.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_empties_a_store_waits_for_an_operator() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.memory.write(Site::First, &["SET a 1"]).unwrap();
    run.drained().await;
    run.memory.write(Site::First, &["FLUSHALL"]).unwrap();
    run.until("held", |status| status.channels[0].directions[0].held.is_some()).await;
    assert!(run.memory.read(Site::Second, "a").is_some());
    assert!(run.daemon.resume(Some("push"), Some(HeldAnswer::Apply)).await.is_ok());
    run.equal().await;
    assert!(run.memory.read(Site::Second, "a").is_none());
    run.memory.write(Site::Second, &["INCRBY n 1"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "n").unwrap().0, "string 1");
    run.daemon.stop().await;
}

/// FF41, FF45: a change that the target refuses is kept, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_is_kept_and_blocks_nobody() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.memory.inject(Site::Second, Fault::Refuse("bad".to_owned()));
    run.memory.inject(Site::Second, Fault::Reject("worse".to_owned()));
    run.memory.write(Site::First, &["INCRBY bad 1", "INCRBY good 1"]).unwrap();
    run.memory.write(Site::First, &["INCRBY worse 1"]).unwrap();
    run.memory.write(Site::First, &["INCRBY good 1"]).unwrap();
    run.until("both kept", |status| status.channels[0].directions[0].dead_letters >= 2).await;
    run.until("the rest", |_| run.memory.read(Site::Second, "good").is_some_and(|v| v.0 == "string 2")).await;
    run.daemon.stop().await;
}

/// A dead letter that was seen to goes off the list, for good, and its key is what the origin has.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_acknowledged_once_its_key_was_asked_for() {
    tell_logs();
    let mut run = Running::start(Memory::new(), "both", "both").await;
    run.until("begun", |status| status.channels[0].directions.iter().all(|d| d.phase == Phase::Streaming))
        .await;
    run.memory.inject(Site::Second, Fault::Refuse("bad".to_owned()));
    run.memory.write(Site::First, &["INCRBY bad 1"]).unwrap();
    run.memory.write(Site::First, &["INCRBY bad 1"]).unwrap();
    // Two commands, and at least one state that the target was sent for them.
    let kept = |run: &Running| run.daemon.status().channels[0].directions[0].dead_letters;
    run.until("kept", |_| kept(&run) >= 3).await;
    run.drained().await;
    let page = |before, limit| {
        let query = DeadLetterQuery { channel: Some("push".to_owned()), before, limit };
        run.daemon.dead_letters(&query)
    };
    let (all, newest) = (page(None, 100), page(None, 1));
    let rest = page(newest.next, 100);
    assert_eq!(
        newest.dead_letters.iter().chain(&rest.dead_letters).collect::<Vec<_>>(),
        all.dead_letters.iter().collect::<Vec<_>>()
    );
    let last = all.dead_letters.last().unwrap();
    assert_eq!((last.op.as_str(), all.next), ("command", None));
    // What cannot be asked for stays.
    run.memory.stop(Site::First);
    let refused = run.daemon.acknowledge(None, Some(last.id)).await;
    assert!(
        refused.as_ref().is_err_and(|error| error.to_string().contains("dc was not reached")),
        "{refused:?}"
    );
    assert_eq!(kept(&run), all.dead_letters.len() as u64);
    run.memory.start(Site::First);
    run.memory.clear(Site::Second);
    run.drained().await;
    assert_eq!(run.daemon.acknowledge(None, Some(last.id)).await, Ok(1));
    assert_eq!(kept(&run), all.dead_letters.len() as u64 - 1);
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "bad").unwrap().0, "string 2");
    let gone = run.daemon.acknowledge(None, Some(last.id)).await;
    assert_eq!(gone, Err(ControlError::NoSuchDeadLetter { id: last.id }));
    run.restart().await;
    assert_eq!(kept(&run), all.dead_letters.len() as u64 - 1);
    run.drained().await;
    assert_eq!(run.daemon.acknowledge(Some("push"), None).await, Ok(all.dead_letters.len() as u64 - 1));
    run.restart().await;
    assert_eq!(kept(&run), 0);
    run.daemon.stop().await;
}

/// The status says how long what waits has waited, whatever for, and never that it streams what it cannot reach.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_told_with_its_age_and_what_is_away_with_its_site() {
    tell_logs();
    let mut run = Running::start(Memory::new(), "both", "both").await;
    run.drained().await;
    let there = |status: &Status| status.channels[0].directions[0].clone();
    let old = |status: &Status, seconds: f64| there(status).lag.seconds.is_some_and(|age| age >= seconds);
    run.daemon.pause(None).await.unwrap();
    run.memory.write(Site::First, &["INCRBY n 1"]).unwrap();
    let status = run.until("a second old", |status| old(status, 1.0)).await;
    assert!(there(&status).phase == Phase::Paused && there(&status).lag.changes >= Some(1), "{status:#?}");
    // It is as old after a restart.
    run.restart().await;
    let status = run.until("known again", |status| there(status).lag.seconds.is_some()).await;
    assert!(old(&status, 1.0) && there(&status).phase == Phase::Paused, "{status:#?}");
    let ends = std::time::SystemTime::now() + Duration::from_secs(60);
    let began = syncd::status::parse_rfc3339(&status.since).unwrap();
    assert!(began < ends && began + Duration::from_secs(120) > ends, "{}", status.since);
    run.daemon.resume(None, None).await.unwrap();
    run.drained().await;
    assert!(there(&run.daemon.status()).lag.seconds == Some(0.0));
    run.memory.write(Site::First, &["FLUSHALL"]).unwrap();
    run.until("held", |status| there(status).held.is_some() && old(status, 1.0)).await;
    run.daemon.resume(None, Some(HeldAnswer::Apply)).await.unwrap();
    run.drained().await;
    run.memory.stop(Site::First);
    let both_away = |status: &Status| {
        status.channels[0].directions.iter().all(|d| {
            let said = |error: &String| error.starts_with("dc: ") && error.contains("it is tried again");
            d.phase == Phase::Starting && d.error.as_ref().is_some_and(said)
        })
    };
    run.memory.write(Site::Second, &["INCRBY m 1"]).unwrap();
    let status = run.until("away", both_away).await;
    assert_eq!(there(&status).lag, Default::default(), "nobody knows what dc does meanwhile");
    run.until("waits for dc", |status| status.channels[0].directions[1].lag.seconds > Some(0.5)).await;
    run.memory.start(Site::First);
    run.equal().await;
    run.daemon.stop().await;
}

/// Promise 3: a target that comes back older than it was is rolled forward.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_comes_back_older_is_rolled_forward() {
    tell_logs();
    let run = Running::start(Memory::new(), "dc->cloud", "dc").await;
    run.memory.write(Site::First, &["INCRBY n 1", "RPUSH l a"]).unwrap();
    run.drained().await;
    run.memory.save(Site::Second);
    run.memory.write(Site::First, &["INCRBY n 1", "RPUSH l b"]).unwrap();
    run.drained().await;
    run.memory.restart_older(Site::Second);
    run.memory.write(Site::First, &["INCRBY n 1"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "n").unwrap().0, "string 3");
    assert_eq!(run.memory.read(Site::Second, "l").unwrap().0, "list a b");
    run.daemon.stop().await;
}

/// Promise 3: what a store forgot of its own changes comes back from the peer.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_forgot_comes_back_from_its_peer() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.memory.write(Site::First, &["INCRBY n 1", "RPUSH l a", "SET gone 1"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY m 1"]).unwrap();
    run.drained().await;
    run.memory.save(Site::First);
    run.memory.write(Site::First, &["INCRBY n 1", "RPUSH l b", "SET new 1"]).unwrap();
    run.memory.write(Site::First, &["DEL gone"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY m 1"]).unwrap();
    run.drained().await;
    run.memory.restart_older(Site::First);
    run.memory.write(Site::First, &["INCRBY other 1"]).unwrap();
    run.equal().await;
    let read = |key: &str| run.memory.read(Site::First, key).map(|found| found.0);
    assert_eq!(read("n").as_deref(), Some("string 2"));
    assert_eq!(read("l").as_deref(), Some("list a b"));
    assert_eq!(read("m").as_deref(), Some("string 2"));
    assert_eq!((read("new").as_deref(), read("gone")), (Some("string 1"), None));
    run.daemon.stop().await;
}

/// A site that comes back empty is filled again, and takes nothing of its peer's with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_comes_back_empty_is_filled_again() {
    tell_logs();
    let memory = Memory::new();
    memory.write(Site::First, &["SET before 1"]).unwrap();
    let run = Running::start(memory, "both", "both").await;
    run.memory.write(Site::First, &["INCRBY n 2"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY m 3", "RPUSH l a"]).unwrap();
    run.drained().await;
    run.memory.restart_older(Site::Second);
    run.memory.write(Site::Second, &["SET new 1"]).unwrap();
    run.memory.write(Site::First, &["INCRBY n 1"]).unwrap();
    run.equal().await;
    let read = |key: &str| run.memory.read(Site::First, key).map(|found| found.0);
    assert_eq!(read("before").as_deref(), Some("string 1"));
    assert_eq!((read("n").as_deref(), read("m").as_deref()), (Some("string 3"), Some("string 3")));
    assert_eq!((read("l").as_deref(), read("new").as_deref()), (Some("list a"), Some("string 1")));
    run.daemon.stop().await;
}

/// What a broken snapshot had read is not taken for writes that the peer has.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_restarts_while_it_is_copied_keeps_what_it_has() {
    tell_logs();
    for pause in [0, 2, 10, 40] {
        let memory = Memory::new();
        for i in 0..3_000 {
            memory.write(Site::First, &[&format!("SET k{i} {i}")]).unwrap();
        }
        memory.save(Site::First);
        let run = Running::start(memory, "both", "dc").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        run.memory.restart_older(Site::First);
        run.equal().await;
        assert_eq!(run.memory.dump(Site::First).len(), 3_000, "after {pause} ms");
        run.daemon.stop().await;
    }
}

/// Promise 7: what fails again at the same place is tried ever more seldom, at either end of the log.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_at_the_same_place_is_tried_ever_more_seldom() {
    tell_logs();
    let run = Running::start(Memory::new(), "dc->cloud", "dc").await;
    run.until("begun", |status| status.channels[0].directions[0].phase == Phase::Streaming).await;
    let tries = || (run.memory.tries(Site::First).0, run.memory.tries(Site::Second).1);
    for (site, what, bad) in [(Site::Second, "reigns", "string 1"), (Site::First, "streams", "string 2")] {
        run.memory.inject(site, Fault::CutAt("bad".to_owned()));
        let before = tries();
        run.memory.write(Site::First, &["INCRBY bad 1"]).unwrap();
        tokio::time::sleep(Duration::from_millis(1_700)).await;
        let after = tries();
        let tried = (after.0 - before.0) + (after.1 - before.1);
        // After 0.05, 0.1, 0.2, 0.4 and 0.8 s, or half of that; without backoff it is twenty times and more.
        assert!((2..=7).contains(&tried), "{what}: tried {tried} times");
        run.memory.clear(site);
        run.until("arrived", |_| run.memory.read(Site::Second, "bad").is_some_and(|found| found.0 == bad))
            .await;
        run.until("told", |status| status.channels[0].directions[0].lag.changes == Some(0)).await;
        // It came further: what breaks now is tried again at once.
        let (before, since) = (tries(), Instant::now());
        run.memory.cut(site);
        run.memory.write(Site::First, &["INCRBY good 1"]).unwrap();
        run.until("tried again", |_| tries() != before).await;
        assert!(since.elapsed() < Duration::from_millis(750), "{what}: {:?}", since.elapsed());
    }
    run.daemon.stop().await;
}

/// Promise 8: what is applied would push out of the store's backlog what its own capture has not read yet.
#[tokio::test(flavor = "multi_thread")]
async fn applying_waits_until_the_targets_own_capture_has_caught_up() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.drained().await;
    run.memory.limit_backlog(Site::First, Some(100));
    run.memory.inject(Site::First, Fault::Stall);
    for i in 0..45 {
        run.memory.write(Site::First, &[&format!("SET k{i} {i}")]).unwrap();
    }
    run.memory.write(Site::Second, &["SET under-half 1"]).unwrap();
    run.until("applied", |_| run.memory.read(Site::First, "under-half").is_some()).await;
    for i in 45..60 {
        run.memory.write(Site::First, &[&format!("SET k{i} {i}")]).unwrap();
    }
    run.memory.write(Site::Second, &["SET over-half 1"]).unwrap();
    run.until("logged", |status| status.channels[0].directions[1].lag.changes == Some(1)).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(run.memory.read(Site::First, "over-half").is_none());
    run.memory.clear(Site::First);
    run.equal().await;
    assert!(run.memory.read(Site::First, "over-half").is_some());
    assert_eq!(run.daemon.status().channels[0].directions[0].gaps, 0);
    run.daemon.stop().await;
}

/// Promise 8: a capture that waits for room in a full log catches up only if appliers make room.
#[tokio::test(flavor = "multi_thread")]
async fn applying_does_not_wait_for_a_capture_that_waits_for_a_full_log() {
    tell_logs();
    let run = Running::start_with(Memory::new(), "both", "both", 4 << 20).await;
    run.drained().await;
    run.memory.limit_backlog(Site::First, Some(100));
    run.memory.inject(Site::First, Fault::Stall);
    for i in 0..60 {
        run.memory.write(Site::First, &[&format!("SET k{i} {i}")]).unwrap();
    }
    run.memory.write(Site::Second, &["SET probe 1"]).unwrap();
    run.until("logged", |status| status.channels[0].directions[1].lag.changes == Some(1)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(run.memory.read(Site::First, "probe").is_none());
    let mut random = SmallRng::seed_from_u64(1);
    for i in 0..200 {
        let value: String = (0..64 << 10).map(|_| char::from(random.random_range(b'!'..b'~'))).collect();
        run.memory.write(Site::Second, &[&format!("SET large{i} {value}")]).unwrap();
    }
    run.until("applied", |_| run.memory.read(Site::First, "probe").is_some()).await;
    run.daemon.stop().await;
}

async fn both_logged(run: &Running) {
    let logged = |status: &Status| {
        status.channels[0].directions.iter().all(|direction| direction.lag.changes.is_some_and(|n| n > 0))
    };
    run.until("both logged", logged).await;
}

fn listed(run: &Running, key: &str) -> Vec<ConflictEntry> {
    let key = Some(key.to_owned());
    let query =
        ConflictQuery { channel: Some("push".to_owned()), key, since: None, before: None, limit: 100 };
    run.daemon.conflicts(&query).unwrap().conflicts
}

/// What was decided can be read afterwards, also after a restart, and holds no value.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_are_in_the_conflict_log() {
    tell_logs();
    let mut run = Running::start(Memory::new(), "both", "both").await;
    run.memory.write(Site::First, &["SET k before", "SET calm 1"]).unwrap();
    run.drained().await;
    run.daemon.pause(None).await.unwrap();
    run.memory.write(Site::First, &["DEL k"]).unwrap();
    run.memory.write(Site::Second, &["SET k hunter2"]).unwrap();
    both_logged(&run).await;
    run.daemon.resume(None, None).await.unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "k").unwrap().0, "string hunter2");
    let entries = listed(&run, "k");
    let [entry] = &entries[..] else { panic!("{entries:#?}") };
    assert_eq!((entry.from.as_str(), entry.to.as_str()), ("dc", "cloud"));
    assert_eq!((entry.resolution, entry.winner.as_deref()), (Resolution::Kept, Some("cloud")));
    let [dc, cloud] = &entry.sides;
    assert_eq!((dc.site.as_str(), dc.op.as_str(), dc.digest.as_deref()), ("dc", "delete", None));
    assert_eq!((cloud.site.as_str(), cloud.op.as_str(), cloud.bytes), ("cloud", "command", 13));
    assert!(cloud.digest.as_ref().is_some_and(|digest| digest.len() == 32) && cloud.seq > 0, "{entry:#?}");
    assert!(dc.hlc != cloud.hlc && listed(&run, "calm").is_empty(), "{entry:#?}");
    let status = run.daemon.status();
    assert_eq!(status.channels[0].directions.iter().map(|d| d.conflicts).collect::<Vec<_>>(), [1, 0]);
    let metrics = run.daemon.metrics();
    let counted = |line: &&str| line.starts_with("causeway_conflicts_total{") && !line.ends_with(" 0");
    let counted: Vec<_> = metrics.lines().filter(counted).collect();
    assert!(counted.len() == 1 && counted[0].ends_with(" 1"), "{metrics}");
    for label in ["channel=\"push\"", "from=\"dc\"", "to=\"cloud\"", "resolution=\"kept\""] {
        assert!(counted[0].contains(label), "{counted:?}");
    }
    assert!(metrics.contains("causeway_conflicts_left_out_total 0"), "{metrics}");
    run.restart().await;
    assert_eq!(run.daemon.conflict(entry.id).unwrap().as_ref(), Some(entry));
    run.daemon.stop().await;
    let mut files = 0;
    for file in std::fs::read_dir(run.dir.path().join("data/log/conflicts")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        files += 1;
    }
    assert_eq!(files, 1);
}

/// What is read of a backlog counts as written when the store says it was, however late it is read.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_after_an_outage_is_as_old_as_it_is() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.memory.write(Site::First, &["SET warm 1"]).unwrap();
    run.drained().await;
    run.memory.inject(Site::First, Fault::Stall);
    run.memory.write(Site::First, &["SET k older", "INCRBY n 2"]).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    run.memory.write(Site::Second, &["SET k newer", "INCRBY n 3"]).unwrap();
    run.until("applied", |_| run.memory.read(Site::First, "k").unwrap().0 == "string newer").await;
    run.memory.cut(Site::First);
    run.memory.clear(Site::First);
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "k").unwrap().0, "string newer");
    assert_eq!(run.memory.read(Site::First, "n").unwrap().0, "string 5");
    run.memory.write(Site::First, &["SET k newest"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "k").unwrap().0, "string newest");
    run.daemon.stop().await;
}

/// What was written in a gap comes as a state: ours is done again on top, and that is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_both_sites_did_to_parts_of_a_key_is_told_as_merged() {
    tell_logs();
    let run = Running::start(Memory::new(), "both", "both").await;
    run.memory.write(Site::First, &["HSET h before 1"]).unwrap();
    run.drained().await;
    run.daemon.pause(None).await.unwrap();
    run.memory.write(Site::First, &["HSET h f 1"]).unwrap();
    run.memory.lose_position(Site::First);
    run.memory.write(Site::Second, &["HSET h g 2", "HINCRBY h g 3"]).unwrap();
    both_logged(&run).await;
    run.daemon.resume(None, None).await.unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::First, "h").unwrap().0, "hash before 1 f 1 g 5");
    let entries = listed(&run, "h");
    let [entry] = &entries[..] else { panic!("{entries:#?}") };
    assert_eq!((entry.resolution, entry.winner.as_deref()), (Resolution::Merged, None));
    assert_eq!(entry.element, Some(KeyText::Text("g".to_owned())));
    assert_eq!((entry.sides[0].op.as_str(), entry.sides[1].op.as_str()), ("state", "command"));
    run.daemon.stop().await;
}

/// A session that has ended at both sites is opened again in a gap, as it was before but for its expire-at: the peer,
/// whose own expiry had not been seen then, takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_opened_again_in_a_gap_is_carried() {
    tell_logs();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let memory = Memory::new();
    let write = |memory: &Memory, site, at: u64| {
        memory.write(site, &["SET k session", &format!("PEXPIREAT k {at}")]).unwrap();
    };
    Site::BOTH.into_iter().for_each(|site| write(&memory, site, now + 6_000));
    let run = Running::start(memory, "both", "both").await;
    run.drained().await;
    run.daemon.pause(None).await.unwrap();
    run.until("it ended", |_| Site::BOTH.iter().all(|site| run.memory.read(*site, "k").is_none())).await;
    both_logged(&run).await;
    run.memory.inject(Site::First, Fault::Stall);
    write(&run.memory, Site::First, now + 3_600_000);
    run.memory.lose_position(Site::First);
    run.memory.clear(Site::First);
    let more = |status: &Status| status.channels[0].directions[0].lag.changes.is_some_and(|n| n > 1);
    run.until("the gap", more).await;
    run.daemon.resume(None, None).await.unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "k").unwrap().1, Some(now + 3_600_000));
    run.daemon.stop().await;
}

/// FF22: of two states in pieces, each written without the other, one stands, at both sites.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_concurrent_values_in_pieces_the_same_one_stands_at_both_sites() {
    tell_logs();
    let run = Running::start(Memory::new().with_part_bytes(4), "both", "both").await;
    run.memory.write(Site::First, &["SET k before"]).unwrap();
    run.drained().await;
    run.daemon.pause(None).await.unwrap();
    for (site, write) in [(Site::First, "SET k written-at-dc"), (Site::Second, "SET k written-at-cloud")] {
        // It is lost with the position, and comes as a state.
        run.memory.inject(site, Fault::Stall);
        run.memory.write(site, &[write]).unwrap();
        run.memory.lose_position(site);
    }
    Site::BOTH.into_iter().for_each(|site| run.memory.clear(site));
    both_logged(&run).await;
    run.daemon.resume(None, None).await.unwrap();
    run.equal().await;
    assert!(run.memory.read(Site::First, "k").unwrap().0.starts_with("string written-at-"));
    run.daemon.stop().await;
}

/// FF22: a value that the target refuses is asked for once more, and not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_pieces_that_is_refused_each_time_does_not_come_for_ever() {
    tell_logs();
    let run = Running::start(Memory::new().with_part_bytes(4), "both", "both").await;
    run.memory.write(Site::First, &["SET k before", "SET n 1"]).unwrap();
    run.drained().await;
    run.memory.inject(Site::Second, Fault::Refuse("k".into()));
    run.memory.lose_position(Site::First);
    run.memory.write(Site::First, &["SET k no-one-takes-this"]).unwrap();
    let dead = |status: &Status| status.channels[0].directions[0].dead_letters;
    run.until("refused", |status| dead(status) > 0).await;
    run.drained().await;
    // Six pieces of the value that was read in the gap, or was written, and once more.
    let kept = dead(&run.daemon.status());
    assert!((7..=20).contains(&kept), "{kept}");
    run.memory.clear(Site::Second);
    run.memory.write(Site::First, &["SET k again", "INCRBY n 1"]).unwrap();
    run.equal().await;
    run.daemon.stop().await;
}

/// The folder of the log of what `dc` writes.
fn own_log(run: &Running) -> std::path::PathBuf {
    run.dir.path().join("data/log/push.dc.0")
}

/// Damages every block of the log of `dc` that holds `text`.
fn damage(run: &Running, text: &[u8]) {
    let mut damaged = 0;
    for entry in std::fs::read_dir(own_log(run)).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let starts = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text)).collect::<Vec<_>>();
        damaged += starts.len();
        starts.into_iter().for_each(|at| bytes[at] ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(damaged > 0, "{} is nowhere", text.escape_ascii());
}

/// FF42: capture was behind the damage, and the peer, too: the stream is not read again from before it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_before_the_damage_is_not_carried_twice() {
    tell_logs();
    let mut run = Running::start(Memory::new(), "both", "none").await;
    run.until("begun", |status| status.channels[0].directions.iter().all(|d| d.phase == Phase::Streaming))
        .await;
    run.memory.write(Site::First, &["INCRBY n 1"]).unwrap();
    run.until("carried", |_| run.memory.read(Site::Second, "n").is_some()).await;
    run.daemon.stop().await;
    damage(&run, b"INCRBY n 1");
    // Of the restart points, those behind it.
    for end in 1..9 {
        let held = format!("\"data_end\":{end}}}");
        let files = std::fs::read_dir(own_log(&run))
            .unwrap()
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        if files.into_iter().any(|bytes| bytes.windows(held.len()).any(|part| part == held.as_bytes())) {
            damage(&run, held.as_bytes());
        }
    }
    run.restart().await;
    run.memory.write(Site::First, &["INCRBY n 1"]).unwrap();
    run.equal().await;
    assert_eq!(run.memory.read(Site::Second, "n").unwrap().0, "string 2");
    assert!(metric(&run, "causeway_gaps_total", "dc") > 0);
    run.daemon.stop().await;
}

fn metric(run: &Running, name: &str, from: &str) -> u64 {
    let from = format!("from=\"{from}\"");
    let metrics = run.daemon.metrics();
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(&from));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).expect(name)
}

/// FF42: a site's own log is damaged where its capture was, or where the peer had not come: a gap, which a
/// snapshot closes. Where both are past it, it is told and costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_sites_own_log_is_told_and_a_gap_where_it_matters() {
    tell_logs();
    let remove = |run: &Running| {
        for entry in std::fs::read_dir(own_log(run)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|suffix| suffix == "redb") {
                std::fs::remove_file(path).unwrap();
            }
        }
    };
    let damaged = |text: &'static [u8]| move |run: &Running| damage(run, text);
    // A disk that stalls for seconds keeps restart points from being written: then both are not past it.
    let past = async {
        for _ in 0..3 {
            if !after_damage("what both are past", false, damaged(b"INCRBY old 1")).await {
                return;
            }
        }
        panic!("a gap each time, of what both are past");
    };
    tokio::join!(
        past,
        after_damage("what the peer has not applied", true, damaged(b"INCRBY new 1")),
        after_damage("every restart point", true, damaged(b"remembered_from")),
        after_damage("everything", true, damaged(b"CWB\x01")),
        after_damage("the file", true, remove),
    );
}

/// Whether there was a gap; there has to be one if `is_gap`.
async fn after_damage(what: &str, is_gap: bool, harm: impl Fn(&Running)) -> bool {
    let mut run = Running::start(Memory::new(), "both", "both").await;
    run.until("begun", |status| status.channels[0].directions.iter().all(|d| d.phase == Phase::Streaming))
        .await;
    run.memory.write(Site::First, &["INCRBY old 1"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY theirs 1", "HSET h theirs 1"]).unwrap();
    run.drained().await;
    run.daemon.pause(None).await.unwrap();
    run.memory.write(Site::First, &["INCRBY new 1", "HSET h ours 1"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY theirs 1"]).unwrap();
    both_logged(&run).await;
    run.daemon.stop().await;
    harm(&run);
    run.memory.write(Site::First, &["INCRBY new 1", "INCRBY old 1"]).unwrap();
    run.memory.write(Site::Second, &["INCRBY theirs 1"]).unwrap();
    run.daemon = Daemon::start(&run.config, vec![Arc::new(run.memory.clone())]).await.unwrap();
    run.daemon.resume(None, None).await.unwrap();
    run.equal().await;
    let read = |key: &str| run.memory.read(Site::Second, key).map(|found| found.0);
    for (key, value) in [("old", "string 2"), ("new", "string 2"), ("theirs", "string 3")] {
        assert_eq!(read(key).as_deref(), Some(value), "{what}: {key}");
    }
    assert_eq!(read("h").as_deref(), Some("hash ours 1 theirs 1"), "{what}");
    let was_gap = metric(&run, "causeway_gaps_total", "dc") > 0;
    assert!(was_gap || !is_gap, "{what}");
    assert_eq!(metric(&run, "causeway_gaps_total", "cloud"), 0, "{what}");
    assert_eq!(metric(&run, "causeway_log_damaged", "dc") > 0, what != "the file", "{what}");
    // It is behind us: what comes now goes its ordinary way, and the next start finds no gap.
    run.restart().await;
    run.memory.write(Site::First, &["INCRBY new 1"]).unwrap();
    let arrived =
        |_: &Status| run.memory.read(Site::Second, "new").is_some_and(|found| found.0 == "string 3");
    run.until("what comes now", arrived).await;
    assert_eq!(metric(&run, "causeway_gaps_total", "dc"), 0, "{what}");
    run.daemon.stop().await;
    was_gap
}

/// A second daemon on the same folder is refused.
/// FF47: the log made anew while nobody ran, and grown beyond the old one's end before it is applied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_made_anew_that_has_grown_beyond_the_old_end_is_refused() {
    tell_logs();
    let mut run = Running::start(Memory::new(), "dc->cloud", "dc").await;
    let push = |run: &Running, list: &str, elements: std::ops::Range<u32>| {
        elements.for_each(|n| run.memory.write(Site::First, &[&format!("RPUSH {list} {n}")]).unwrap());
    };
    push(&run, "before", 0..50);
    run.equal().await;
    let arrived = run.memory.dump(Site::Second);

    run.daemon.stop().await;
    std::fs::remove_dir_all(own_log(&run)).unwrap();
    run.memory.stop(Site::Second);
    run.daemon = Daemon::start(&run.config, vec![Arc::new(run.memory.clone())]).await.unwrap();
    let captured = |run: &Running, count| metric(run, "causeway_changes_captured_total", "dc") >= count;
    run.until("its snapshot", |_| captured(&run, 1)).await;
    push(&run, "after", 0..500);
    run.until("it has grown", |_| captured(&run, 500)).await;
    run.daemon.stop().await;

    // An applier begins its term at the end of the log, which is beyond the old one's now.
    run.memory.start(Site::Second);
    run.daemon = Daemon::start(&run.config, vec![Arc::new(run.memory.clone())]).await.unwrap();
    let told = |s: &Status| {
        let direction = &s.channels[0].directions[0];
        let is_told = |error: &String| error.contains("they are not this log's");
        direction.phase == Phase::Failed && direction.error.as_ref().is_some_and(is_told)
    };
    run.until("it is refused", told).await;
    assert_eq!(run.memory.dump(Site::Second), arrived, "something was applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_refused() {
    let run = Running::start(Memory::new(), "both", "none").await;
    let second = Daemon::start(&run.config, vec![Arc::new(run.memory.clone())]).await;
    assert!(second.is_err_and(|error| error.to_string().contains("in use")));
    run.daemon.stop().await;
    drop(run.dir);
}
