//! Exactness under load: whatever is read again, and wherever the link breaks, what the log says makes a
//! second server equal, counters included.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod source_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use causeway_core::{ErrorKind, Event, Opened, Site, Source, Told};
use causeway_redis::source::RedisSource;
use causeway_testkit::resp::{Command, cmd};
use causeway_testkit::servers::RedisServer;
use source_support::*;

/// A small generator of its own: the same seed gives the same traffic.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn one(dice: &mut Dice) -> Command {
    let mut name = |kind: &str| format!("{kind}:{}", dice.below(6));
    let (n, m, s, t, l, z) = (name("n"), name("n"), name("s"), name("s"), name("l"), name("z"));
    let (h, x, l2, hll) = (name("h"), name("x"), name("l"), name("p"));
    // Keys that expire are never prolonged by a write that says nothing of time: a second server expires
    // them on its own, and may do so just before such a write reaches it.
    let (e, e2) = (name("e"), name("e"));
    let value = dice.below(1000).to_string();
    let pick = dice.below(34);
    let words: Vec<&str> = match pick {
        0..=3 => vec!["INCR", &n],
        4 => vec!["RENAME", &n, &m],
        5 => vec!["COPY", &n, &m, "REPLACE"],
        6 => vec!["SADD", &s, &value],
        7 => vec!["SUNIONSTORE", &s, &s, &t],
        8 => vec!["SMOVE", &s, &t, &value],
        9 => vec!["SPOP", &s],
        10 => vec!["RPUSH", &l, &value],
        11 => vec!["LMOVE", &l, &l2, "LEFT", "RIGHT"],
        12 => vec!["SORT", &l, "STORE", &l2],
        13 => vec!["LPOP", &l],
        14 => vec!["ZINCRBY", &z, "1", &value],
        15 => vec!["ZRANGESTORE", &z, &z, "0", "50"],
        16 => vec!["HINCRBY", &h, &value, "1"],
        17 => vec!["XADD", &x, "MAXLEN", "100", "*", "f", &value],
        18 => vec!["MOVE", &n, "1"],
        19 => vec!["PEXPIRE", &e, "40"],
        20 => vec!["COPY", &e, &e2, "REPLACE"],
        21 => vec!["SET", &e, &value, "PX", "60"],
        22 => vec!["APPEND", &x[..1], &value],
        23 => vec!["DEL", &n, &s, &x],
        24 => vec!["MSET", &n, &value, &m, "7"],
        25 => {
            vec!["EVAL", "redis.call('INCR', KEYS[1]); redis.call('RENAME', KEYS[1], KEYS[2])", "2", &n, &m]
        }
        26 => vec!["PFADD", &hll, &value],
        27 => vec!["INCRBYFLOAT", &n, "0.5"],
        28 => vec!["SELECT", ["0", "0", "0", "1"][dice.below(4) as usize]],
        29 => vec!["RENAMENX", &s, &t],
        30 => vec!["BITOP", "OR", &hll[..1], &n, &m],
        31 => vec!["SETRANGE", &h[..1], "3", &value],
        32 => vec!["GETDEL", &n],
        _ => vec!["HINCRBYFLOAT", &h, &value, "0.5"],
    };
    cmd(&words)
}

/// Writes until told to stop; returns how many commands had an effect or were refused.
fn traffic(server: &RedisServer, seed: u64, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let mut connection = server.connect().unwrap();
    std::thread::spawn(move || {
        let mut dice = Dice(seed);
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut batch: Vec<Command> = (0..dice.below(40) + 1).map(|_| one(&mut dice)).collect();
            if dice.below(4) == 0 {
                batch.insert(0, cmd(&["MULTI"]));
                batch.push(cmd(&["EXEC"]));
            }
            count += batch.len() as u64;
            // Refusals are a part of it: wrong types, missing keys.
            connection.pipeline(&batch).unwrap();
            if dice.below(3) == 0 {
                std::thread::sleep(Duration::from_millis(dice.below(4)));
            }
        }
        count
    })
}

/// FF18, FF21, FF24.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_is_equal_whatever_was_read_again_and_wherever_the_link_broke() {
    let seconds: u64 = std::env::var("CAUSEWAY_EXACT_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let seed: u64 = std::env::var("CAUSEWAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x9e37_79b9);
    println!("seed {seed}");
    let (Some(server), Some(target)) = (server(&[]), server(&[])) else { return };
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (1..=3).map(|i| traffic(&server, seed.wrapping_mul(i) | 1, stop.clone())).collect();
    // Something is there when the snapshot begins.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut source = source(&server, "");
    let mut model = Model::new(&target);
    assert_eq!(open(&mut source, None, true).await, Opened::Anew { lost: None });
    let mut dice = Dice(seed | 1);
    let began = Instant::now();
    let mut breaks = 0;
    let mut next_break = began + Duration::from_millis(500);
    // What a restart would read from its log: older than what the model holds.
    let mut stored = None;
    let mut complete = false;
    while began.elapsed() < Duration::from_secs(seconds) {
        let mut events = Vec::new();
        let room = 1 << (10 + dice.below(8));
        let taken = tokio::time::timeout(Duration::from_millis(100), source.next(&mut events, room)).await;
        complete |= events.iter().any(|e| matches!(e, Event::SnapshotEnded { .. }));
        model.take(events, &source);
        if dice.below(5) == 0 {
            stored = model.restart.clone();
        }
        if matches!(taken, Ok(Err(_))) || complete && Instant::now() > next_break {
            breaks += 1;
            next_break = Instant::now() + Duration::from_millis(dice.below(600) + 50);
            if dice.below(2) == 0 {
                server.connect().unwrap().must(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
            }
            let from = stored.clone().or(model.restart.clone()).expect("a restart point");
            model.forget_open_group();
            assert_eq!(open(&mut source, Some(&from), true).await, Opened::Resumed);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let written: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    // Keys with a short life are gone by then, also those that only their access removes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut c = server.connect().unwrap();
    contents(&mut c);
    let events = settle(&mut source).await;
    model.take(events, &source);
    let (theirs, ours) = (contents(&mut c), contents(&mut target.connect().unwrap()));
    let differing: Vec<_> = theirs
        .keys()
        .chain(ours.keys())
        .filter(|k| theirs.get(k) != ours.get(k))
        .map(|k| (k, theirs.get(k), ours.get(k)))
        .collect();
    assert!(differing.is_empty(), "seed {seed}: {differing:#?}");
    println!(
        "{written} commands, {} changes applied, {breaks} breaks, {} keys equal",
        model.applied,
        ours.len()
    );
    assert!(breaks > 2 && written > 1000);
}

/// FF26: without the right to be a replica, states follow what is touched, also while keys are scanned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_replication_the_second_server_is_equal_all_the_same() {
    let (Some(server), Some(target)) = (server(&[]), server(&[])) else { return };
    let mut c = server.connect().unwrap();
    let rights = "ACL SETUSER scan on >s3cret ~* &* +@all -psync -sync";
    c.must(&rights.split(' ').collect::<Vec<_>>()).unwrap();
    c.must(&["DEBUG", "POPULATE", "20000", "key", "20"]).unwrap();
    let url = format!("url = \"redis://scan:s3cret@127.0.0.1:{}\"", server.port());
    let mut source = RedisSource::new(config(&url, ""), Site::First);
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = traffic(&server, 99, stop.clone());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(open(&mut source, None, true).await, Opened::Anew { lost: None });
    assert!(source.is_scanning());
    let mut model = Model::new(&target);
    let began = Instant::now();
    let mut ended = 0;
    while began.elapsed() < Duration::from_secs(3) || ended == 0 {
        let mut events = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(50), source.next(&mut events, 1 << 16)).await;
        ended += events.iter().filter(|e| matches!(e, Event::SnapshotEnded { .. })).count();
        model.take(events, &source);
    }
    stop.store(true, Ordering::Relaxed);
    traffic.join().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    contents(&mut c);
    // Events are announced on a line of their own: a token of ours says nothing of what is still there.
    let began = Instant::now();
    loop {
        let mut events = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(200), source.next(&mut events, 1 << 16)).await;
        model.take(events, &source);
        if contents(&mut c) == contents(&mut target.connect().unwrap()) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the sites stay different");
    }
    assert_eq!(ended, 1);
    let token = source.refresh(vec![key(0, "key:1"), key(0, "none")]).await.unwrap();
    let events = until(&mut source, |e| *e == Event::Token(token)).await;
    // Keys of the traffic may expire meanwhile.
    let asked = |text: &String| text.contains(":key:1 ") || text.contains(":none ");
    let told: Vec<_> = changes(&events).iter().map(text).filter(asked).collect();
    assert_eq!(told, ["state 0:key:1 dump", "state 0:none -"]);
    // A position of it is none to go on from.
    let last = model.last.clone();
    assert!(matches!(open(&mut source, last.as_ref(), false).await, Opened::Anew { lost: Some(_) }));
    // What is applied into this site would come back: refused, and said.
    let flag = Arc::new(AtomicBool::new(true));
    let mut source = RedisSource::new(config(&url, ""), Site::First).applied_into(flag);
    let error = source.open(None, true, Told::new()).await.expect_err("refused");
    assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("+psync"), "{error}");
    // Without keyspace events either, and without the right to switch them on.
    c.must(&["CONFIG", "SET", "notify-keyspace-events", ""]).unwrap();
    c.must(&["ACL", "SETUSER", "scan", "-config|set"]).unwrap();
    let mut source = RedisSource::new(config(&url, ""), Site::First);
    let error = source.open(None, true, Told::new()).await.expect_err("refused");
    assert!(
        error.kind() == ErrorKind::Setup && error.to_string().contains("notify-keyspace-events"),
        "{error}"
    );
}

/// CPU time of this process, from the kernel's own count in ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let rest = stat.rsplit(") ").next().unwrap();
    let ticks: u64 = rest.split(' ').skip(11).take(2).map(|t| t.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Not a test but a measurement: what reading a million keys and a million writes costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; needs redis-benchmark"]
async fn speed() {
    const N: usize = 1_000_000;
    let Some(server) = server(&["--client-output-buffer-limit", "replica 0 0 0"]) else { return };
    server.connect().unwrap().must(&["DEBUG", "POPULATE", "1000000", "key", "64"]).unwrap();
    let mut source = source(&server, "");
    let (cpu0, began) = (cpu(), Instant::now());
    open(&mut source, None, true).await;
    let mut events = Vec::new();
    let mut reads = 0;
    loop {
        events.clear();
        source.next(&mut events, 1 << 18).await.unwrap();
        reads += events.iter().filter(|e| matches!(e, Event::Change(_))).count();
        if events.iter().any(|e| matches!(e, Event::SnapshotEnded { .. })) {
            break;
        }
    }
    let used = (cpu() - cpu0).as_secs_f64() / reads as f64 * 1e6;
    println!("snapshot: {reads} keys in {:?}, {used:.2} us CPU each", began.elapsed());
    let mut load = std::process::Command::new("redis-benchmark")
        .args(["-p", &server.port().to_string(), "-n", "1000000", "-P", "64", "-t", "set", "-r", "1000000"])
        .args(["-d", "64", "-q"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (cpu0, began) = (cpu(), Instant::now());
    let (mut writes, mut calls) = (0, 0);
    while writes < N {
        events.clear();
        source.next(&mut events, 1 << 18).await.unwrap();
        calls += 1;
        writes += events.iter().filter(|e| matches!(e, Event::Change(_))).count();
    }
    let used = (cpu() - cpu0).as_secs_f64() / writes as f64 * 1e6;
    println!("stream: {writes} writes in {:?}, {used:.2} us CPU each, {calls} calls", began.elapsed());
    load.wait().unwrap();
}
