//! Stories of applications that hand over what they do.

mod produced;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_client::{Client, Error};
use causeway_stories::{DRAIN, Link, Seat, Setup, differing, kill_in_turn, seed, story_seconds};
use causeway_testkit::elasticsearch::{ElasticsearchServer, elasticsearch_home};
use causeway_testkit::servers::Options;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use syncd::status::Phase;

/// However long a node or the daemon is away in a story.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two requests: what two nodes on a small machine can write.
const PAUSE: Duration = Duration::from_millis(20);

/// An application: hands over what `draw` draws, a few changes at a time, until it is stopped. Keeps what the keys are to hold
/// that it alone writes.
struct Application {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<BTreeMap<String, Option<Value>>>>,
}

/// The key, what it is to hold, and the line that says so.
type Drawn = (String, Option<Value>, Value);

impl Application {
    fn start(client: Client, seed: u64, draw: fn(&mut SmallRng, u64) -> Drawn) -> Application {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (mut rng, mut kept, mut n) = (SmallRng::seed_from_u64(seed), BTreeMap::new(), 0);
            while !stopped.load(Ordering::SeqCst) {
                let drawn: Vec<Drawn> = (0..rng.random_range(1..20))
                    .map(|_| {
                        n += 1;
                        draw(&mut rng, n)
                    })
                    .collect();
                let lines: Vec<&Value> = drawn.iter().map(|(_, _, line)| line).collect();
                runtime.block_on(client.hand_over(&lines))?;
                kept.extend(drawn.into_iter().map(|(key, value, _)| (key, value)));
                std::thread::sleep(PAUSE);
            }
            Ok(kept)
        });
        Application { stop, thread }
    }

    fn finish(self) -> Result<BTreeMap<String, Option<Value>>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("an application panicked"))?
    }
}

fn document<const SITE: usize>(rng: &mut SmallRng, n: u64) -> Drawn {
    let id = match rng.random_range(0..4) {
        0 => format!("hot-{}", rng.random_range(0..20)),
        _ => format!("own-{SITE}-{}", rng.random_range(0..200)),
    };
    let source = rng.random_bool(0.8).then(|| json!({"v": format!("{SITE}-{n}")}));
    let line = match &source {
        Some(source) => json!({"index": "push-1", "id": id, "source": source}),
        None => json!({"index": "push-1", "id": id, "delete": true}),
    };
    (id, source, line)
}

/// FF32, FF36: deletes are forgotten by the stores at once, and what is late does not bring them back. Both sites hand over, and write nothing
/// themselves, while syncd and either node are killed.
#[test]
fn documents_that_are_handed_over_end_equal_whatever_is_killed() -> Result<()> {
    if elasticsearch_home().is_none() {
        return Ok(());
    }
    let mut nodes = ElasticsearchServer::start_both(&[])?;
    let seed = seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let index = r#"{"settings":{"number_of_shards":2,"number_of_replicas":0,"gc_deletes":"100ms"},
        "mappings":{"properties":{"v":{"type":"keyword"}}}}"#;
    for node in &nodes {
        node.must("PUT", "/push-1", index)?;
    }
    nodes[0].fill("push-1", 500)?;
    let mut seat = Seat::with(&format!(
        "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"push\"\nstore = \"elasticsearch\"\n\
         direction = \"both\"\nsnapshot = \"dc\"\nindices = [\"push-*\"]\npoll = \"100ms\"\nintake = {{ deliver = \"both\" }}\n\
         dc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
        nodes[0].url(),
        nodes[1].url()
    ))?;
    seat.start(None)?;
    let client = |site| Client::new(&seat.url(), "push").at(site).patient_for(PATIENCE);
    // They begin while the copy is under way.
    let applications = [
        Application::start(client("dc"), seed, document::<0>),
        Application::start(client("cloud"), seed ^ 1, document::<1>),
    ];
    let end = Instant::now() + story_seconds(30);
    let mut kills = 0;
    while Instant::now() < end || kills < 4 {
        std::thread::sleep(Duration::from_millis(rng.random_range(1_500..4_000)));
        kill_in_turn(kills, &mut seat, &mut nodes)?;
        kills += 1;
    }
    let kept: Vec<_> = applications.into_iter().map(Application::finish).collect::<Result<_>>()?;
    let status = seat.wait_until_drained(DRAIN)?;
    let dead: u64 = status.channels.iter().flat_map(|c| &c.directions).map(|d| d.dead_letters).sum();
    ensure!(dead == 0, "{dead} dead letters\n{}", seat.log_end());
    let [dc, cloud] = [nodes[0].documents("push-1")?, nodes[1].documents("push-1")?];
    ensure!(dc == cloud, "seed {seed}: {:?}\n{}", differing(&dc, &cloud), seat.log_end());
    for (id, value) in kept.iter().flatten().filter(|(id, _)| id.starts_with("own-")) {
        let value = value.as_ref().map(Value::to_string);
        ensure!(dc.get(id) == value.as_ref(), "seed {seed}: {id} holds {:?}, not {value:?}", dc.get(id));
    }
    let old = dc.keys().filter(|id| id.starts_with("old-")).count();
    ensure!(old == 500, "{old} of 500 are copied");
    println!("{kills} kills, {} documents", dc.len());
    Ok(())
}

fn tag<const SITE: usize>(rng: &mut SmallRng, n: u64) -> Drawn {
    let key = match rng.random_range(0..4) {
        0 => format!("tag:hot-{}", rng.random_range(0..20)),
        _ => format!("tag:own-{SITE}-{}", rng.random_range(0..200)),
    };
    let value = rng.random_bool(0.8).then(|| json!(format!("{SITE}-{n}")));
    let line = match &value {
        Some(value) => json!({"command": ["SET", key, value]}),
        None => json!({"command": ["DEL", key]}),
    };
    (key, value, line)
}

/// Some keys of a store are handed over at both sites, the others are written there as ever.
#[test]
fn what_is_handed_over_stands_beside_what_is_written() -> Result<()> {
    let channel = "intake = { deliver = \"both\", keys = [\"tag:*\"] }".to_owned();
    let setup = Setup { channel, snapshot: "none", ..Setup::default() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    link.start()?;
    let seed = seed();
    let url = link.api();
    let client = |site| Client::new(&url, "push").at(site).patient_for(PATIENCE);
    // As soon as it serves: the client waits.
    let applications = [
        Application::start(client("dc"), seed, tag::<0>),
        Application::start(client("cloud"), seed ^ 1, tag::<1>),
    ];
    // What is written before a stream has its first place is not carried.
    link.wait_until("both streams", DRAIN, |status| {
        let mut directions = status.channels.iter().flat_map(|channel| &channel.directions);
        directions.all(|direction| direction.phase == Phase::Streaming)
    })?;
    let end = Instant::now() + story_seconds(8);
    let (mut rng, mut n) = (SmallRng::seed_from_u64(seed), 0_u64);
    let mut servers = [link.stores[0].connect()?, link.stores[1].connect()?];
    while Instant::now() < end {
        let kill = Instant::now() + Duration::from_millis(rng.random_range(500..2_500));
        while Instant::now() < kill {
            n += 1;
            for (site, server) in servers.iter_mut().enumerate() {
                server.must(&["INCRBY", &format!("count-{}", n % 10), "1"])?;
                server.must(&["SET", &format!("site-{site}"), &n.to_string()])?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        link.kill()?;
        link.start()?;
    }
    let kept: Vec<_> = applications.into_iter().map(Application::finish).collect::<Result<_>>()?;
    link.wait_until_drained(DRAIN)?;
    link.verify()?;
    for (key, value) in kept.iter().flatten().filter(|(key, _)| key.starts_with("tag:own-")) {
        let held = servers[1].must(&["GET", key])?.text();
        ensure!(
            held.as_deref() == value.as_ref().and_then(Value::as_str),
            "seed {seed}: {key}: {held:?}, not {value:?}"
        );
    }
    let sum: u64 = (0..10)
        .map(|k| {
            Ok(servers[0].must(&["GET", &format!("count-{k}")])?.text().context("none")?.parse::<u64>()?)
        })
        .sum::<Result<u64>>()?;
    ensure!(sum == 2 * n, "counted {sum}, not {}", 2 * n);
    Ok(())
}

/// The example in Python of docs/INTAKE.md, and what is wrong with a line.
#[test]
fn the_example_in_python_hands_over() -> Result<()> {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("no python3 here");
        return Ok(());
    }
    let channel = "intake = { deliver = \"peer\" }".to_owned();
    let setup = Setup { channel, snapshot: "none", ..Setup::default() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    link.start()?;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/intake.py");
    let run = |lines: &str| -> Result<(bool, String)> {
        let mut python = Command::new("python3")
            .args([example, &link.api(), "push", "dc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        python.stdin.take().context("no stdin")?.write_all(lines.as_bytes())?;
        let out = python.wait_with_output()?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    // It has written it itself, as it says.
    link.stores[0].connect()?.must(&["HSET", "h", "f", "1"])?;
    let (done, said) =
        run("{\"command\": [\"HSET\", \"h\", \"f\", \"1\"]}\n{\"command\": [\"SET\", \"k\", \"v\"]}\n")?;
    ensure!(done && said.contains("\"accepted\":2"), "{said}");
    link.wait_until_drained(DRAIN)?;
    link.verify()?;
    let held = link.stores[1].connect()?.must(&["HGET", "h", "f"])?.text();
    ensure!(held.as_deref() == Some("1"), "{held:?}");
    let (done, said) = run("{\"command\": [\"INCR\", \"k\"]}\n")?;
    ensure!(!done && said.contains("results in"), "{said}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wrong = [json!({"command": ["SET", "k", "v"]}), json!({"command": ["FLUSHALL"]})];
    let refused = runtime.block_on(Client::new(&link.api(), "push").at("dc").hand_over(&wrong));
    ensure!(matches!(&refused, Err(Error::Refused { lines, .. }) if lines[0].line == 2), "{refused:?}");
    Ok(())
}

/// The runbook of docs/INTAKE.md: what applications wrote themselves until they all handed over is at both sites in the end.
#[test]
fn a_runbook_moves_the_applications_to_the_intake() -> Result<()> {
    let channel = "intake = { deliver = \"both\" }".to_owned();
    let setup = Setup { channel, snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    let mut dc = link.stores[0].connect()?;
    for n in 0..500 {
        dc.must(&["SET", &format!("old-{n}"), "copied"])?;
    }
    link.start()?;
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/runbooks/move-to-the-intake.yaml");
    let book = link.dir().join("move-to-the-intake.yaml");
    std::fs::write(&book, std::fs::read_to_string(shipped)?.replace("for: 30m", "for: 2s"))?;
    let book = book.to_str().context("a path")?;
    let run = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let out = link.syncd(&[&["runbook"], words, &[book]].concat())?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.code(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (code, said) = run(&["run"])?;
    ensure!(code == Some(1) && said.contains("hand its changes over by now"), "{code:?} {said}");
    // One that has not changed over, and one that has.
    dc.must(&["SET", "old-1", "written past the intake"])?;
    dc.must(&["SET", "new-1", "written past the intake"])?;
    dc.must(&["DEL", "old-2"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lines = [json!({"command": ["SET", "old-3", "handed over"]}), json!({"command": ["DEL", "old-4"]})];
    runtime.block_on(Client::new(&link.api(), "push").at("cloud").patient_for(PATIENCE).hand_over(&lines))?;
    let (code, said) = run(&["resume", "--approve"])?;
    ensure!(code == Some(0), "{code:?} {said}\n{}", link.log_end());
    link.verify()?;
    let mut cloud = link.stores[1].connect()?;
    for (key, held) in [
        ("old-1", Some("written past the intake")),
        ("new-1", Some("written past the intake")),
        ("old-2", None),
        ("old-3", Some("handed over")),
        ("old-4", None),
        ("old-5", Some("copied")),
    ] {
        ensure!(cloud.must(&["GET", key])?.text().as_deref() == held, "{key}");
    }
    Ok(())
}
