//! Wrong settings, wrong servers, broken lines and full disks: each gets an error that says what and where,
//! and loses nothing. Real servers, the real daemon, the real command line.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_stories::proxy::{Disturbed, Line, Proxy};
use causeway_stories::{DRAIN, Link, Setup, durable, seed, servers};
use causeway_testkit::data::{History, Traffic, TrafficOptions, fill, judge, large_hash};
use causeway_testkit::resp::{Connection, cmd};
use causeway_testkit::servers::{Options, RedisServer, Tls, free_port};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::{Phase, Status};

/// Some restart points are written until the log is full.
const PACE: Duration = Duration::from_millis(40);
/// What a person waits for a message.
const SOON: Duration = Duration::from_secs(60);

fn with(args: &[&str]) -> Options {
    Options { args: args.iter().map(|word| (*word).to_owned()).collect(), ..Options::default() }
}

fn one_way() -> Setup {
    Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() }
}

/// The exit code, and all that was said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    (output.status.code(), text.concat())
}

/// `syncd WORDS` ends with `code` and says each of `expected`; returns all that it said.
fn expect(link: &Link, words: &[&str], code: i32, expected: &[&str]) -> Result<String> {
    let (ended, text) = said(&link.syncd(words)?);
    // A line is broken where the terminal's ends.
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(ended == Some(code), "syncd {words:?} ended with {ended:?}, not {code}: {text}");
    for part in expected {
        ensure!(flat.contains(part), "syncd {words:?} doesn't say `{part}`: {text}");
    }
    Ok(flat)
}

/// What stands in the way of any direction.
fn errors(status: &Status) -> String {
    let all = status.channels.iter().flat_map(|channel| &channel.directions);
    all.filter_map(|direction| direction.error.clone()).collect::<Vec<_>>().join("\n")
}

/// Waits until the status names an error with each of `expected`.
fn wait_for_error(link: &Link, expected: &[&str]) -> Result<Status> {
    link.wait_until(&format!("an error with {expected:?}"), SOON, |status| {
        expected.iter().all(|part| errors(status).contains(part))
    })
}

fn dead_letters(status: &Status) -> u64 {
    status.channels.iter().flat_map(|c| &c.directions).map(|d| d.dead_letters).sum()
}

/// Fails with what was kept aside, if anything was.
fn nothing_is_dead(link: &Link, status: &Status) -> Result<()> {
    ensure!(dead_letters(status) == 0, "dead letters: {}\n{}", link.dead_letters(), link.log_end());
    Ok(())
}

fn get(server: &RedisServer, key: &str) -> Result<Option<String>> {
    Ok(server.connect()?.must(&["GET", key])?.text())
}

/// How many keys of the user's a server has in database 0.
fn keys_of(server: &RedisServer) -> Result<usize> {
    let keys = server.connect()?.must(&["KEYS", "*"])?;
    let ours = |key: &String| key.starts_with("causeway:{");
    Ok(keys.items().iter().filter_map(|key| key.text()).filter(|key| !ours(key)).count())
}

fn write(url: &str, site: &str, seed: u64, rate: u64) -> Traffic {
    Traffic::start(TrafficOptions { url: url.to_owned(), site: site.to_owned(), seed, rate, filled: None })
}

/// Every acknowledged write is at both `urls`, once, and the verifier agrees.
fn prove(link: &Link, histories: &[History], urls: &[String]) -> Result<()> {
    let status = link.wait_until_drained(DRAIN)?;
    let verdict = judge(histories, urls)?;
    println!("{} keys, {} increments, {} elements", verdict.keys, verdict.increments, verdict.elements);
    ensure!(verdict.increments > 0, "nothing was written");
    ensure!(verdict.wrong.is_empty(), "{}\n{}", verdict.wrong.join("\n"), link.log_end());
    nothing_is_dead(link, &status)?;
    link.verify()
}

/// Counts the bytes of a replication stream from its `+FULLRESYNC` on.
struct FromSnapshot {
    at: Option<usize>,
}

impl FromSnapshot {
    /// The range of the stream's bytes that `bytes` is, and where in `bytes` it begins.
    fn see(&mut self, bytes: &[u8]) -> Option<(usize, usize)> {
        let (before, begin) = match self.at {
            Some(at) => (at, 0),
            None => (0, bytes.windows(11).position(|part| part == b"+FULLRESYNC")?),
        };
        self.at = Some(before + bytes.len() - begin);
        Some((before, begin))
    }
}

/// A wrong password is told, without the password, and mended without a restart.
#[test]
fn a_wrong_password_is_told_and_nothing_is_lost() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["SET", "before", "1"])?;
    dc.must(&["CONFIG", "SET", "requirepass", "first-secret"])?;
    let at = format!("127.0.0.1:{}", link.stores[0].port());
    link.move_to(0, &format!("redis://:second-secret@{at}"))?;
    let text = expect(&link, &["check"], 1, &["password", &at])?;
    ensure!(!text.contains("-secret"), "a secret is told: {text}");
    link.start()?;
    let status = wait_for_error(&link, &[&at])?;
    ensure!(status.channels[0].directions.iter().any(|d| d.phase == Phase::Failed), "{status:?}");
    ensure!(!errors(&status).contains("-secret") && !link.log_end().contains("-secret"), "a secret is told");
    dc.must(&["CONFIG", "SET", "requirepass", "second-secret"])?;
    link.wait_until_drained(DRAIN)?;
    ensure!(get(&link.stores[1], "before")?.as_deref() == Some("1"), "not copied");
    link.verify()
}

/// Both sites are reached with TLS only: with another authority than theirs the channel says so and nothing is
/// applied, with the right one both directions go on without a restart.
#[test]
fn a_wrong_authority_is_told_and_the_right_one_lets_both_ways_run() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [Some(tls), Some(stranger)] = [Tls::generate(dirs[0].path())?, Tls::generate(dirs[1].path())?] else {
        println!("ignored: openssl is missing");
        return Ok(());
    };
    let secure = || Options { tls: Some(tls.clone()), ..durable() };
    let mut link = Link::new([secure(), secure()], &Setup::default())?;
    let ca = link.dir().join("ca.pem");
    std::fs::copy(&stranger.ca, &ca)?;
    for site in [0, 1] {
        let (plain, url) = (link.urls()[site].clone(), link.stores[site].tls_url().context("no TLS")?);
        let with_ca = format!("url = \"{url}\", ca_file = \"{}\"", ca.display());
        link.edit(&format!("url = \"{plain}\""), &with_ca)?;
        link.stores[site].connect()?.must(&["SET", &format!("early:{site}"), "1"])?;
    }
    let at = link.stores[0].tls_url().context("no TLS")?.replace("rediss://", "");
    expect(&link, &["check"], 1, &["connect with TLS", "invalid peer certificate", "ca_file", &at])?;
    link.start()?;
    let status = wait_for_error(&link, &["connect with TLS", "ca_file", &at])?;
    ensure!(status.channels[0].directions.iter().all(|d| d.phase == Phase::Failed), "{status:?}");
    std::fs::copy(&tls.ca, &ca)?;
    link.wait_until_drained(DRAIN)?;
    for n in 0..100 {
        for store in &link.stores {
            store.connect()?.must(&["INCR", &format!("counted:{}:{}", store.port(), n % 3)])?;
        }
    }
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    for store in &link.stores {
        ensure!(keys_of(store)? == 8, "{} keys", keys_of(store)?);
        for origin in &link.stores {
            let counted = get(store, &format!("counted:{}:0", origin.port()))?;
            ensure!(counted.as_deref() == Some("34"), "counted is {counted:?}");
        }
    }
    link.verify()
}

/// A port with nobody behind it: named at once, and the channel begins when somebody comes.
#[test]
fn a_wrong_port_is_told_and_waited_for() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let at = format!("127.0.0.1:{}", link.stores[1].port());
    link.stores[1].kill9();
    expect(&link, &["check"], 3, &[&at])?;
    link.start()?;
    wait_for_error(&link, &[&at])?;
    link.stores[0].connect()?.must(&["SET", "early", "1"])?;
    link.stores[1].restart()?;
    link.wait_until_drained(DRAIN)?;
    ensure!(get(&link.stores[1], "early")?.as_deref() == Some("1"), "not copied");
    Ok(())
}

/// What answers is no Redis at all.
#[test]
fn a_server_that_is_no_redis_is_told() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
    let at = listener.local_addr()?.to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            count.fetch_add(1, Ordering::SeqCst);
            let _read = client.read(&mut [0; 1024]);
            let _gone = client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let mut link = Link::new([Options::default(), durable()], &one_way())?;
    link.move_to(0, &format!("redis://{at}"))?;
    expect(&link, &["check"], 3, &[&at])?;
    link.start()?;
    wait_for_error(&link, &[&at])?;
    let before = asked.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(2));
    ensure!(asked.load(Ordering::SeqCst) > before, "not tried again\n{}", link.log_end());
    ensure!(keys_of(&link.stores[1])? == 0, "something was applied");
    Ok(())
}

fn lame_user(link: &Link) -> Result<()> {
    let mut dc = link.stores[0].connect()?;
    dc.must(&["ACL", "SETUSER", "lame", "on", ">lame-secret", "~*", "&*", "+@all", "-psync", "-sync"])?;
    link.move_to(0, &format!("redis://lame:lame-secret@127.0.0.1:{}", link.stores[0].port()))
}

/// Both ways, the stream is needed: without the right to it the channel says so and doesn't start.
#[test]
fn without_the_right_to_psync_both_ways_are_refused() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    lame_user(&link)?;
    let (_, told) = said(&link.syncd(&["check"])?);
    ensure!(told.contains("no right to PSYNC"), "{told}");
    link.start()?;
    link.stores[0].connect()?.must(&["SET", "early", "1"])?;
    link.stores[1].connect()?.must(&["SET", "late", "1"])?;
    let status = wait_for_error(&link, &["psync", "127.0.0.1", "dc: "])?;
    ensure!(status.channels[0].directions[0].phase == Phase::Failed, "{status:?}");
    link.stores[0].connect()?.must(&["ACL", "SETUSER", "lame", "+psync"])?;
    link.wait_until_drained(DRAIN)?;
    ensure!(get(&link.stores[1], "early")?.as_deref() == Some("1"), "not copied");
    ensure!(get(&link.stores[0], "late")?.as_deref() == Some("1"), "not copied back");
    link.verify()
}

/// FF26: one way, the keys are scanned and read again at each keyspace event, and the log says so.
#[test]
fn without_the_right_to_psync_one_way_is_scanned() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &one_way())?;
    lame_user(&link)?;
    fill(&link.urls()[0], seed, 2_000)?;
    link.start()?;
    let status =
        link.wait_until("streaming", DRAIN, |s| s.channels[0].directions[0].phase == Phase::Streaming)?;
    let warning = status.channels[0].directions[0].warning.clone().unwrap_or_default();
    ensure!(warning.starts_with("dc: SCAN mode") && warning.contains("+psync"), "{status:?}");
    expect(&link, &["status"], 0, &["warning: dc: SCAN mode"])?;
    let log = std::fs::read_to_string(link.dir().join("syncd.log"))?;
    ensure!(log.contains("replication is refused"), "the log doesn't say it:\n{log}");
    let writer = write(&link.urls()[0], "dc", seed, 500);
    std::thread::sleep(Duration::from_secs(3));
    prove(&link, &[writer.stop()], &link.urls())
}

/// A target that is a read-only replica: told by `check` and by the daemon, which waits for its master.
#[test]
fn a_target_that_is_a_replica_is_told_and_waited_for() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let master = RedisServer::start(Options::default())?;
    let mut link = Link::new([durable(), Options::default()], &one_way())?;
    let mut cloud = link.stores[1].connect()?;
    cloud.must(&["REPLICAOF", "127.0.0.1", &master.port().to_string()])?;
    link.stores[0].connect()?.must(&["SET", "kept", "1"])?;
    expect(&link, &["check"], 1, &["cloud: this server is a replica"])?;
    link.start()?;
    wait_for_error(&link, &["cloud", "replica"])?;
    cloud.must(&["REPLICAOF", "NO", "ONE"])?;
    link.wait_until_drained(DRAIN)?;
    ensure!(get(&link.stores[1], "kept")?.as_deref() == Some("1"), "not copied");
    nothing_is_dead(&link, &link.status()?)?;
    Ok(())
}

fn out_of_memory(setup: &Setup) -> Result<()> {
    let mut link = Link::new([durable(), durable()], setup)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let mut cloud = link.stores[1].connect()?;
    cloud.must(&["CONFIG", "SET", "maxmemory", "4mb"])?;
    let mut dc = link.stores[0].connect()?;
    let value = "v".repeat(100_000);
    for n in 0..200 {
        dc.must(&["SET", &format!("large:{n}"), &value])?;
        dc.must(&["INCR", "counted"])?;
        dc.must(&["RPUSH", "listed", &n.to_string()])?;
    }
    let status = wait_for_error(&link, &["OOM"])?;
    ensure!(status.channels[0].directions[0].lag.changes > Some(0), "{status:?}");
    // It goes on waiting, also over a restart.
    link.kill()?;
    link.start()?;
    let status = wait_for_error(&link, &["OOM"])?;
    nothing_is_dead(&link, &status)?;
    cloud.must(&["CONFIG", "SET", "maxmemory", "0"])?;
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    ensure!(errors(&status).is_empty(), "{status:?}");
    ensure!(get(&link.stores[1], "counted")?.as_deref() == Some("200"), "increments differ");
    ensure!(cloud.must(&["LLEN", "listed"])?.int() == Some(200), "elements differ");
    link.verify()
}

/// A target out of memory is waited for and told; nothing goes to the dead letters, nothing is lost.
#[test]
fn a_target_out_of_memory_is_waited_for() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    out_of_memory(&one_way())
}

/// The same where the target's own capture needs to write tokens into it.
#[test]
fn a_target_out_of_memory_is_waited_for_both_ways() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    out_of_memory(&Setup::default())
}

/// FF20: a server that evicts is refused, unless the channel says that evictions are carried.
#[test]
fn an_eviction_policy_is_refused_or_carried() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let evicting = || with(&["--maxmemory-policy", "allkeys-random"]);
    let mut link = Link::new([evicting(), durable()], &Setup::default())?;
    expect(&link, &["check"], 1, &["dc: maxmemory-policy is allkeys-random", "noeviction", "carry"])?;
    link.edit("direction =", "evictions = \"carry\"\ndirection =")?;
    expect(&link, &["check"], 0, &["it can run"])?;
    link.start()?;
    let mut dc = link.stores[0].connect()?;
    for n in 0..3_000 {
        dc.must(&["SET", &format!("key:{n}"), &"v".repeat(2_000)])?;
    }
    link.wait_until_drained(DRAIN)?;
    dc.must(&["CONFIG", "SET", "maxmemory", "5mb"])?;
    for n in 3_000..3_200 {
        let _full = dc.call(&["SET", &format!("key:{n}"), "v"])?;
    }
    link.wait_until_drained(DRAIN)?;
    // Our own keys can be evicted as any other; nothing more is, while this is looked at.
    dc.must(&["CONFIG", "SET", "maxmemory", "0"])?;
    link.wait_until_drained(DRAIN)?;
    let left = keys_of(&link.stores[0])?;
    ensure!(left < 3_000, "nothing was evicted");
    ensure!(keys_of(&link.stores[1])? == left, "{left} keys, {} at cloud", keys_of(&link.stores[1])?);
    link.verify()
}

/// FF20: the daemon itself doesn't start on a server that evicts, where that was not said.
#[test]
fn a_daemon_does_not_run_on_a_server_that_evicts() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let evicting = with(&["--maxmemory-policy", "allkeys-random"]);
    let mut link = Link::new([evicting, durable()], &Setup::default())?;
    link.start()?;
    wait_for_error(&link, &["maxmemory-policy"])?;
    Ok(())
}

/// FF22: keys that exist at the target before the snapshot, of whatever type: `existing` decides.
#[test]
fn existing_decides_about_keys_that_both_had() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    for (winner, loser) in [(0, 1), (1, 0)] {
        let mut link = Link::new([durable(), durable()], &Setup::default())?;
        if winner == 1 {
            link.edit("existing = \"dc\"", "existing = \"cloud\"")?;
        }
        let name = ["dc", "cloud"];
        for site in [0, 1] {
            let mut store = link.stores[site].connect()?;
            store.must(&["SET", "same", name[site]])?;
            store.must(&["SET", &format!("only:{}", name[site]), "1"])?;
            for n in 0..100 {
                store.must(&["HSET", &format!("hash:{n}"), name[site], "1"])?;
            }
        }
        link.stores[winner].connect()?.must(&["RPUSH", "type", "a", "b"])?;
        link.stores[loser].connect()?.must(&["SET", "type", "text", "EX", "1000"])?;
        link.start()?;
        let status = link.wait_until_drained(DRAIN)?;
        nothing_is_dead(&link, &status)?;
        for store in &link.stores {
            let mut to = store.connect()?;
            ensure!(get(store, "same")?.as_deref() == Some(name[winner]), "{} did not win", name[winner]);
            ensure!(to.must(&["LLEN", "type"])?.int() == Some(2), "{}: not its type", name[winner]);
            ensure!(to.must(&["TTL", "type"])?.int() == Some(-1), "{}: not its TTL", name[winner]);
            ensure!(to.must(&["HGETALL", "hash:7"])?.items().len() == 2, "mixed");
            ensure!(to.must(&["EXISTS", "only:dc", "only:cloud"])?.int() == Some(2), "one is missing");
        }
        link.verify()?;
    }
    Ok(())
}

/// FF45: a command that the target refuses for the key's type is kept aside and the key is healed; all
/// others go on, and no value is told.
#[test]
fn a_wrong_type_at_the_target_is_kept_aside_and_healed() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &one_way())?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    // A third one writes into the target.
    link.stores[1].connect()?.must(&["SET", "list", "no list"])?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["RPUSH", "list", "discreet-1", "discreet-2"])?;
    for _ in 0..100 {
        dc.must(&["INCR", "other"])?;
    }
    let status = link.wait_until_drained(DRAIN)?;
    ensure!(dead_letters(&status) == 1, "{status:?}");
    let letters = expect(&link, &["dead-letters", "--json"], 0, &["\"list\"", "WRONGTYPE", "\"command\""])?;
    let kept = std::fs::read_to_string(link.dir().join("data/log/dead-letters.jsonl"))?;
    ensure!(![letters, kept].concat().contains("discreet"), "a value is told");
    ensure!(link.stores[1].connect()?.must(&["LLEN", "list"])?.int() == Some(2), "not healed");
    ensure!(get(&link.stores[1], "other")?.as_deref() == Some("100"), "others waited");
    link.verify()
}

/// A snapshot that is damaged or cut off on the line is named and begun again; what a damaged one brought
/// does not stay.
#[test]
fn a_damaged_snapshot_is_told_and_nothing_of_it_stays() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut link = Link::new([durable(), durable()], &one_way())?;
    fill(&link.urls()[0], seed, 5_000)?;
    // In turn: a wrong byte, a cut, a wrong byte near the beginning; then nothing more.
    let faults = Arc::new(AtomicUsize::new(0));
    let places: [usize; 3] = [random.random_range(50_000..150_000), 80_000, random.random_range(200..2_000)];
    let done = Arc::clone(&faults);
    let proxy = Proxy::start(link.stores[0].port(), move |_| {
        let mut stream = FromSnapshot { at: None };
        let done = Arc::clone(&done);
        let mut hit = false;
        Box::new(move |bytes| {
            let Some((before, begin)) = stream.see(bytes) else { return Line::On };
            let fault = done.load(Ordering::SeqCst);
            let Some(place) = places.get(fault).filter(|_| !hit) else { return Line::On };
            let Some(at) = place.checked_sub(before).map(|at| at + begin).filter(|at| *at < bytes.len())
            else {
                return Line::On;
            };
            hit = true;
            done.fetch_add(1, Ordering::SeqCst);
            if fault == 1 {
                bytes.truncate(at);
                return Line::Cut;
            }
            bytes[at] ^= 0x20;
            Line::On
        })
    })?;
    link.move_to(0, &proxy.url())?;
    link.start()?;
    link.wait_until("three faults", DRAIN, |_| faults.load(Ordering::SeqCst) == 3)?;
    link.wait_until("the snapshot", DRAIN, |s| s.channels[0].directions[0].phase == Phase::Streaming)?;
    link.stores[0].connect()?.must(&["SET", "after", "1"])?;
    let status = link.wait_until_drained(DRAIN)?;
    let log = std::fs::read_to_string(link.dir().join("syncd.log"))?;
    ensure!(log.contains("RDB") && log.contains(&format!("127.0.0.1:{}", proxy.port())), "not told:\n{log}");
    ensure!(!log.contains("panicked"), "{log}");
    println!("{}", log.lines().filter(|line| line.contains("capture failed")).collect::<Vec<_>>().join("\n"));
    // What the target itself found to be damaged is among the dead letters; the clean snapshot healed it.
    println!("{} dead letters", dead_letters(&status));
    link.verify()
}

/// What is no RESP in the stream is named with its place, the link is opened again, and nothing is lost or
/// made up.
#[test]
fn garbage_in_the_stream_is_told_and_nothing_of_it_is_applied() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &one_way())?;
    let garble = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&garble);
    let proxy = Proxy::start(link.stores[0].port(), move |_| {
        let mut stream = FromSnapshot { at: None };
        let mut continued = false;
        let asked = Arc::clone(&asked);
        Box::new(move |bytes| {
            continued |= bytes.starts_with(b"+CONTINUE");
            let is_stream = continued || stream.see(bytes).is_some();
            // A read that begins with a command: what stands before it is garbage for sure.
            if is_stream && bytes.starts_with(b"*") && asked.swap(false, Ordering::SeqCst) {
                bytes.splice(0..0, *b"\x00\x01garbage?\r\n$-7\r\n*9999999999\r\n");
            }
            Line::On
        })
    })?;
    link.move_to(0, &proxy.url())?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let writer = write(&link.urls()[0], "dc", seed, 1_000);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(700));
        garble.store(true, Ordering::SeqCst);
        link.wait_until("garbled", SOON, |_| !garble.load(Ordering::SeqCst))?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let history = writer.stop();
    let log = std::fs::read_to_string(link.dir().join("syncd.log"))?;
    let told: Vec<_> = log.lines().filter(|line| line.contains("capture failed")).collect();
    println!("{}", told.join("\n"));
    ensure!(told.len() >= 3 && told.iter().all(|line| line.contains("127.0.0.1")), "not told:\n{log}");
    prove(&link, &[history], &link.urls())
}

/// Fills the log while the target is frozen, a megabyte `every` so often; the status has to say `told`.
fn full_log(link: &mut Link, megabytes: usize, every: Duration, told: &str) -> Result<()> {
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.stores[1].pause();
    let mut dc = link.stores[0].connect()?;
    let mut random = SmallRng::seed_from_u64(seed());
    let mut value = vec![0; 1 << 20];
    let wrote = (0..megabytes).try_for_each(|n| -> Result<()> {
        random.fill(&mut value[..]);
        std::thread::sleep(every);
        dc.must(&[b"SET", format!("large:{n}").as_bytes(), &value])?;
        dc.must(&["INCR", "counted"])?;
        Ok(())
    });
    let paused = link.wait_until("paused by a full log", SOON, |s| {
        s.channels[0].directions[0].phase == Phase::Paused && errors(s).contains(told)
    });
    link.stores[1].resume();
    wrote?;
    paused?;
    // By the last write, not by the status: while an append waits for room it can look as if all were done.
    let last = Some(megabytes.to_string());
    link.wait_until("the last write", DRAIN, |_| get(&link.stores[1], "counted").is_ok_and(|n| n == last))?;
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(link, &status)?;
    link.verify()
}

/// A log over its size stops capture on purpose, says so, and goes on without loss.
#[test]
fn a_full_log_pauses_and_goes_on_without_loss() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let setup = Setup { tables: "[log]\nsize_max = \"64MiB\"\nage_min = \"1s\"".into(), ..one_way() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    full_log(&mut link, 110, PACE, "")
}

/// The same where it fills up before the first restart point behind its beginning is written.
#[test]
fn a_log_that_is_full_at_once_goes_on_without_loss() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let setup = Setup { tables: "[log]\nsize_max = \"64MiB\"\nage_min = \"1s\"".into(), ..one_way() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    full_log(&mut link, 110, Duration::ZERO, "")
}

/// The status says why it is paused, and where.
#[test]
fn a_full_log_is_told() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let setup = Setup { tables: "[log]\nsize_max = \"64MiB\"\nage_min = \"1s\"".into(), ..one_way() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    full_log(&mut link, 90, PACE, "full")
}

/// The same where the disk under the log is full. Needs the right to mount a small file system.
#[test]
fn a_full_disk_pauses_and_goes_on_without_loss() -> Result<()> {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    if !servers() {
        return Ok(());
    }
    let setup = Setup { tables: "[log]\nage_min = \"1s\"".into(), ..one_way() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    let dir = link.dir().join("data");
    std::fs::create_dir(&dir)?;
    let mount = ["-t", "tmpfs", "-o", "size=220m", "none"];
    if !Command::new("mount").args(mount).arg(&dir).output()?.status.success() {
        println!("ignored: no right to mount a small file system");
        return Ok(());
    }
    let _mounted = Mounted(dir);
    let done = full_log(&mut link, 190, PACE / 2, "");
    link.kill()?;
    done
}

/// A key that nobody knows, and a pair that is none: told with file, line and column, before anything runs.
#[test]
fn a_wrong_configuration_is_told_with_its_line() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let link = Link::new([Options::default(), Options::default()], &Setup::default())?;
    let good = std::fs::read_to_string(link.config())?;
    let [dc, cloud] = [0, 1].map(|site| link.urls()[site].clone());
    let line = |text: &str, part: &str| {
        text.lines().position(|line| line.contains(part)).map_or(0, |before| before + 1)
    };
    let second = format!(
        "\n[[channel]]\nname = \"pull\"\nstore = \"redis\"\ndirection = \"both\"\nsnapshot = \"none\"\n\
         dc = {{ url = \"{cloud}\" }}\ncloud = {{ url = \"{dc}\" }}\n"
    );
    for (text, marked, expected) in [
        (good.replace("direction =", "directon ="), "directon", "unknown field `directon`"),
        (good.replace("[api]", "[api]\nlissten = 1"), "lissten", "unknown field `lissten`"),
        (good.replace("cloud = { url", "cloud = { urll"), "urll", "cloud.urll: unknown field"),
        (good.replace(&cloud, &dc), "cloud = {", "both sites are the server"),
        (good.clone() + &second, "name = \"pull\"", "keeps the same two servers equal"),
    ] {
        std::fs::write(link.config(), &text)?;
        for word in ["check", "run"] {
            let told = expect(&link, &[word], 2, &[expected])?;
            let at = line(&text, marked);
            // A channel that is wrong as a whole may be named by the line of its header.
            let named = [at, at - 1].iter().any(|at| told.contains(&format!("syncd.toml:{at}:")));
            ensure!(named, "not line {at}: {told}");
        }
    }
    Ok(())
}

/// One server under two names: `check` finds it.
#[test]
fn the_same_server_under_two_names_is_refused() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let link = Link::new([durable(), durable()], &Setup::default())?;
    link.stores[0].connect()?.must(&["SET", "kept", "1"])?;
    let socket = format!("unix://{}", link.stores[0].socket().display());
    link.move_to(1, &socket)?;
    expect(&link, &["check"], 1, &["same server"])?;
    ensure!(get(&link.stores[0], "kept")?.as_deref() == Some("1"), "lost");
    Ok(())
}

/// The daemon finds it, too, fails the channel, and leaves the server as it is.
#[test]
fn a_daemon_does_not_run_on_the_same_server_twice() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["SET", "kept", "1"])?;
    link.move_to(1, &format!("unix://{}", link.stores[0].socket().display()))?;
    link.start()?;
    dc.must(&["INCR", "counted"])?;
    wait_for_error(&link, &["same server"])?;
    dc.must(&["INCR", "counted"])?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(get(&link.stores[0], "counted")?.as_deref() == Some("2"), "changes came back");
    ensure!(get(&link.stores[0], "kept")?.as_deref() == Some("1"), "lost");
    Ok(())
}

/// Redis Cluster is not carried yet, and says so.
#[test]
fn a_cluster_is_refused() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    for site in [0, 1] {
        let mut options = [durable(), durable()];
        options[site] = with(&["--cluster-enabled", "yes"]);
        let mut link = Link::new(options, &Setup::default())?;
        expect(&link, &["check"], 1, &["Redis Cluster isn't supported yet"])?;
        link.start()?;
        let status = wait_for_error(&link, &["luster", ["dc", "cloud"][site]])?;
        let state = |d: &syncd::status::DirectionStatus| d.phase == Phase::Failed;
        ensure!(status.channels[0].directions.iter().any(state), "{status:?}");
    }
    Ok(())
}

/// A second daemon on the folder is refused, and the first one isn't disturbed.
#[test]
fn a_second_daemon_on_the_folder_is_refused() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    expect(&link, &["run"], 3, &["127.0.0.1"])?;
    expect(&link, &["run", "--listen", "127.0.0.1:0"], 3, &["data/log", "use"])?;
    link.stores[0].connect()?.must(&["INCR", "counted"])?;
    link.wait_until_drained(DRAIN)?;
    ensure!(get(&link.stores[1], "counted")?.as_deref() == Some("1"), "disturbed");
    Ok(())
}

/// The target comes back as it was some seconds ago, or empty, while the origin goes on.
fn target_comes_back_older(setup: &Setup, empty: bool) -> Result<()> {
    let seed = seed();
    let both = setup.direction == "both";
    let mut link = Link::new([durable(), Options::default()], setup)?;
    let urls = link.urls();
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let at_dc = write(&urls[0], "dc", seed, 500);
    let at_cloud = both.then(|| write(&urls[1], "cloud", seed + 1, 500));
    std::thread::sleep(Duration::from_secs(1));
    if !empty {
        link.stores[1].connect()?.must(&["SAVE"])?;
    }
    std::thread::sleep(Duration::from_secs(2));
    // What cloud acknowledged and nobody has read yet dies with it: its writer ends, and its log is drained.
    let mut histories: Vec<_> = at_cloud.into_iter().map(Traffic::stop).collect();
    link.wait_until("what cloud wrote", DRAIN, |s| {
        !both || s.channels[0].directions[1].lag.changes == Some(0)
    })?;
    std::thread::sleep(Duration::from_secs(2));
    link.stores[1].kill9();
    std::thread::sleep(Duration::from_millis(500));
    link.stores[1].restart()?;
    std::thread::sleep(Duration::from_secs(1));
    histories.push(at_dc.stop());
    // The daemon has to see the break before it can be at rest.
    std::thread::sleep(Duration::from_secs(2));
    prove(&link, &histories, &urls)
}

/// FF55: one way, a target from an old file is rolled forward from the log by its marker.
#[test]
fn a_target_from_an_old_file_is_rolled_forward() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    target_comes_back_older(&one_way(), false)
}

/// FF25, FF55: both ways, what the target forgot of its own comes back from the peer, too.
#[test]
fn a_target_from_an_old_file_gets_its_own_back() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    target_comes_back_older(&Setup::default(), false)
}

/// FF25, FF55: both ways, a server that lost everything gets all of it back.
#[test]
fn a_target_that_comes_back_empty_gets_its_own_back() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    target_comes_back_older(&Setup::default(), true)
}

/// FF21: transactions, scripts and functions arrive as what they did; functions themselves, too.
#[test]
fn transactions_scripts_and_functions_arrive() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let mut dc = link.stores[0].connect()?;
    let library = |name: &str| {
        format!(
            "#!lua name={name}\nredis.register_function('{name}_add', function(keys, args)\n\
             local n = redis.call('INCRBY', keys[1], args[1])\n\
             redis.call('RPUSH', keys[2], n)\nreturn n end)"
        )
    };
    dc.must(&["FUNCTION", "LOAD", &library("before")])?;
    dc.must(&["FCALL", "before_add", "2", "{t}:n", "{t}:list", "5"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    for site in [0, 1] {
        let mut store = link.stores[site].connect()?;
        let name = ["dc", "cloud"][site];
        let key = |word: &str| format!("{name}:{word}");
        store.must(&["FUNCTION", "LOAD", "REPLACE", &library(name)])?;
        let random = "redis.call('SET', KEYS[1], redis.call('TIME')[2] .. ':' .. math.random(1e9)) \
                      redis.call('HINCRBYFLOAT', KEYS[2], 'f', '0.1') \
                      redis.call('PEXPIRE', KEYS[1], 100000) return redis.call('INCR', KEYS[3])";
        let sha = store.must(&["SCRIPT", "LOAD", random])?.text().context("no sha")?;
        for n in 0..50_u32 {
            store.must(&["MULTI"])?;
            store.must(&["INCR", &key("counted")])?;
            store.must(&["RPUSH", &key("list"), &n.to_string()])?;
            store.must(&["SELECT", "3"])?;
            store.must(&["HSET", &key("hash"), &n.to_string(), "1"])?;
            store.must(&["SELECT", "0"])?;
            store.must(&["EXEC"])?;
            let word = if n % 2 == 0 { ["EVAL", random] } else { ["EVALSHA", &sha] };
            let keys = [key(&format!("random:{n}")), key("floats"), key("scripted")];
            store.must(&[word[0], word[1], "3", &keys[0], &keys[1], &keys[2]])?;
            store.must(&["FCALL", &format!("{name}_add"), "2", &key("fn"), &key("fl"), "2"])?;
        }
        store.must(&["FUNCTION", "DELETE", "before"]).map(drop).or_else(|error| {
            // The other site's delete may have come first.
            if error.to_string().contains("not found") { Ok(()) } else { Err(error) }
        })?;
    }
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    for store in &link.stores {
        for name in ["dc", "cloud"] {
            for (word, expected) in [("counted", "50"), ("scripted", "50"), ("fn", "100")] {
                let found = get(store, &format!("{name}:{word}"))?;
                ensure!(found.as_deref() == Some(expected), "{name}:{word} is {found:?}, not {expected}");
            }
        }
        let functions = store.connect()?.must(&["FUNCTION", "LIST"])?;
        ensure!(functions.items().len() == 2, "functions: {functions:?}");
    }
    link.verify()
}

/// FF18, FF22: a key of many values is built in pieces at the target, with its TTL, while it is written to.
#[test]
fn a_large_key_arrives_in_pieces_with_its_ttl() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    large_key(false)
}

/// FF22: the same over a key of that name that the target had.
#[test]
fn a_large_key_replaces_one_that_the_target_had() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    large_key(true)
}

fn large_key(existing: bool) -> Result<()> {
    let channel = "limits = { value_bytes_max = 65536 }".to_owned();
    let mut link = Link::new([durable(), durable()], &Setup { channel, ..Setup::default() })?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    for command in large_hash("large", 20 << 20) {
        dc.must(&command)?;
    }
    dc.must(&["EXPIRE", "large", "3600"])?;
    dc.must(&["SET", "text", &"x".repeat(3 << 20), "EX", "3600"])?;
    for command in large_hash("cloud-large", 5 << 20) {
        cloud.must(&command)?;
    }
    if existing {
        cloud.must(&["HSET", "large", "stale", "1"])?;
        cloud.must(&["RPUSH", "text", "no text"])?;
    }
    link.start()?;
    // While it is on its way: one counts in it.
    for n in 0..200 {
        dc.must(&["HINCRBY", "large", "counted", "1"])?;
        cloud.must(&["INCR", &format!("other:{n}")])?;
    }
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    for key in ["large", "text"] {
        let [there, here] = [&mut dc, &mut cloud].map(|c| c.must(&["PEXPIRETIME", key]));
        let (there, here) = (there?.int(), here?.int());
        ensure!(there == here && there > Some(0), "{key} expires at {there:?} and {here:?}");
    }
    ensure!(cloud.must(&["HGET", "large", "counted"])?.int() == Some(200), "increments differ");
    ensure!(cloud.must(&["HEXISTS", "large", "stale"])?.int() == Some(0), "the old value shines through");
    println!("peak memory {} MiB", link.peak_memory()? >> 20);
    link.verify()
}

/// FF22, FF24: a large key that is renamed, or copied, crosses in pieces, also if the daemon is killed in the
/// middle: there is never a part of it to be seen, and never a command that holds all of it.
#[test]
fn a_large_key_that_is_read_again_arrives_in_pieces_and_whole() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let channel = "limits = { value_bytes_max = 65536 }".to_owned();
    let mut link = Link::new([durable(), durable()], &Setup { channel, ..Setup::default() })?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    for command in large_hash("large", 40 << 20) {
        dc.must(&command)?;
    }
    dc.must(&["EXPIRE", "large", "3600"])?;
    // Not the same over and over: a server packs that.
    let mut random = SmallRng::seed_from_u64(1);
    let text: String = (0..3 << 20).map(|_| char::from(random.random_range(b'!'..b'~'))).collect();
    dc.must(&["SET", "text", &text])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    dc.must(&["RENAME", "large", "moved"])?;
    dc.must(&["COPY", "text", "copied"])?;
    kill_among_pieces(&mut link, "moved")?;
    // What is done to it while it was not carried, at both sites.
    dc.must(&["HINCRBY", "moved", "counted", "7"])?;
    cloud.must(&["SET", "at-cloud", "1"])?;
    link.start()?;
    for _ in 0..200 {
        dc.must(&["HINCRBY", "moved", "counted", "1"])?;
    }
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    ensure!(cloud.must(&["HGET", "moved", "counted"])?.int() == Some(207), "increments differ");
    ensure!(cloud.must(&["EXISTS", "large"])?.int() == Some(0), "the old name is still there");
    nothing_came_whole(&mut cloud)?;
    link.verify()
}

/// FF22, FF24, FF26: the same where keys are scanned.
#[test]
fn a_large_key_that_is_scanned_arrives_in_pieces_and_whole() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let channel = "limits = { value_bytes_max = 65536 }".to_owned();
    let mut link = Link::new([durable(), durable()], &Setup { channel, ..one_way() })?;
    lame_user(&link)?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    for command in large_hash("large", 40 << 20) {
        dc.must(&command)?;
    }
    dc.must(&["EXPIRE", "large", "3600"])?;
    link.start()?;
    kill_among_pieces(&mut link, "large")?;
    dc.must(&["HINCRBY", "large", "counted", "7"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    dc.must(&["HINCRBY", "large", "counted", "1"])?;
    let end = Instant::now() + DRAIN;
    while cloud.must(&["HGET", "large", "counted"])?.int() != Some(8) {
        ensure!(Instant::now() < end, "the last increment does not come: {}", link.log_end());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = link.wait_until_drained(DRAIN)?;
    nothing_is_dead(&link, &status)?;
    nothing_came_whole(&mut cloud)?;
    link.verify()
}

/// Kills the daemon once pieces of `key` are at cloud, which has nothing of the key itself then.
fn kill_among_pieces(link: &mut Link, key: &str) -> Result<()> {
    let mut cloud = link.stores[1].connect()?;
    let end = Instant::now() + DRAIN;
    while cloud.must(&["KEYS", "causeway:*:part:*"])?.items().is_empty() {
        ensure!(cloud.must(&["EXISTS", key])?.int() == Some(0), "{key} was there before it was killed");
        ensure!(Instant::now() < end, "no piece comes: {}", link.log_end());
        std::thread::sleep(Duration::from_millis(1));
    }
    link.kill()?;
    ensure!(cloud.must(&["EXISTS", key])?.int() == Some(0), "a part of {key} is to be seen");
    Ok(())
}

/// Fails if a server was ever asked to RESTORE; it has no small keys that it would have to for.
fn nothing_came_whole(server: &mut Connection) -> Result<()> {
    let stats = server.must(&["INFO", "commandstats"])?.text().unwrap_or_default();
    ensure!(stats.contains("cmdstat_rename:"), "no value was put in place: {stats}");
    ensure!(!stats.contains("cmdstat_restore:"), "a value came whole: {stats}");
    Ok(())
}

/// A master and its replica, which is in step.
fn replicated(link: &Link) -> Result<RedisServer> {
    let spare = RedisServer::start(durable())?;
    let mut conn = spare.connect()?;
    conn.must(&["REPLICAOF", "127.0.0.1", &link.stores[0].port().to_string()])?;
    let end = Instant::now() + SOON;
    loop {
        let info = conn.must(&["INFO", "replication"])?.text().unwrap_or_default();
        if info.contains("master_link_status:up") {
            break;
        }
        ensure!(Instant::now() < end, "the replica is not in step: {info}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let urls = format!("urls = [\"{}\", \"{}\"]", link.urls()[0], spare.url());
    link.edit(&format!("url = \"{}\"", link.urls()[0]), &urls)?;
    Ok(spare)
}

/// FF25: a planned failover: the new master goes on where the old one was, without a gap.
#[test]
fn a_failover_is_followed_without_a_gap() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let spare = replicated(&link)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let at_cloud = write(&link.urls()[1], "cloud", seed + 1, 500);
    let before = write(&link.urls()[0], "dc", seed, 500);
    std::thread::sleep(Duration::from_secs(1));
    let mut old = link.stores[0].connect()?;
    old.must(&["FAILOVER", "TO", "127.0.0.1", &spare.port().to_string()])?;
    let end = Instant::now() + SOON;
    while spare.connect()?.must(&["ROLE"])?.items().first().and_then(|r| r.text()).as_deref()
        != Some("master")
    {
        ensure!(Instant::now() < end, "no failover");
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = write(&spare.url(), "spare", seed + 2, 500);
    std::thread::sleep(Duration::from_secs(3));
    let histories = [before, at_cloud, after].map(Traffic::stop);
    std::thread::sleep(Duration::from_secs(1));
    prove(&link, &histories, &[spare.url(), link.urls()[1].clone()])?;
    let log = std::fs::read_to_string(link.dir().join("syncd.log"))?;
    ensure!(!log.contains("gap: the stream was lost"), "a gap:\n{log}");
    Ok(())
}

/// FF25: a master dies with writes that its replica never got, but we did: they come back from the peer.
#[test]
fn a_failover_that_lost_writes_gets_them_back() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let spare = replicated(&link)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let at_cloud = write(&link.urls()[1], "cloud", seed + 1, 300);
    let before = write(&link.urls()[0], "dc", seed, 300);
    std::thread::sleep(Duration::from_secs(1));
    // From here on the replica gets nothing.
    spare.pause();
    std::thread::sleep(Duration::from_millis(1_500));
    let before = before.stop();
    // All that was acknowledged is captured.
    link.wait_until("captured", DRAIN, |s| s.channels[0].directions[0].lag.changes == Some(0))?;
    std::thread::sleep(Duration::from_millis(500));
    link.stores[0].kill9();
    spare.resume();
    spare.connect()?.must(&["REPLICAOF", "NO", "ONE"])?;
    let after = write(&spare.url(), "spare", seed + 2, 300);
    std::thread::sleep(Duration::from_secs(3));
    let histories = [before, at_cloud.stop(), after.stop()];
    std::thread::sleep(Duration::from_secs(1));
    prove(&link, &histories, &[spare.url(), link.urls()[1].clone()])
}

/// FF44: a line that stalls and breaks at random moments costs nothing but time.
#[test]
fn a_line_that_stalls_and_breaks_loses_nothing() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let lines = link.lines()?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let writers =
        [0, 1].map(|site| write(&link.urls()[site], ["dc", "cloud"][site], seed + site as u64, 1_000));
    let end = Instant::now() + Duration::from_secs(12);
    let (mut cuts, mut stalls) = (0, 0);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(20..900)));
        match lines[random.random_range(0..2_usize)].disturb(&mut random) {
            Disturbed::Cut => cuts += 1,
            Disturbed::Stalled => stalls += 1,
        }
    }
    println!("{cuts} cuts, {stalls} stalls");
    prove(&link, &writers.map(Traffic::stop), &link.urls())
}

/// FF19: times to live are absolute: a late arrival neither prolongs nor revives.
#[test]
fn a_key_that_expired_on_the_way_does_not_live_again() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.stores[1].pause();
    let mut dc = Connection::open(&link.urls()[0])?;
    dc.must(&["SET", "short", "1", "PX", "1500"])?;
    dc.must(&["SET", "long", "1", "PX", "600000"])?;
    std::thread::sleep(Duration::from_millis(2_500));
    link.stores[1].resume();
    link.wait_until_drained(DRAIN)?;
    let mut cloud = link.stores[1].connect()?;
    ensure!(cloud.must(&["EXISTS", "short"])?.int() == Some(0), "it lives again");
    let there = dc.must(&["PEXPIRETIME", "long"])?.int();
    ensure!(cloud.must(&["PEXPIRETIME", "long"])?.int() == there && there > Some(0), "another end");
    link.verify()
}

/// `syncd check --json`, which has to end with `code`.
fn checked(link: &Link, code: i32) -> Result<serde_json::Value> {
    let output = link.syncd(&["check", "--json"])?;
    let (ended, text) = said(&output);
    ensure!(ended == Some(code), "syncd check ended with {ended:?}, not {code}: {text}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Keys that only the site outside of `snapshot` has stay there: `check` counts and lists them, and lets the
/// channel run.
#[test]
fn keys_outside_the_snapshot_are_counted_and_listed() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let setup = Setup { snapshot: "dc", channel: "except = [\"tmp:*\"]".to_owned(), ..Setup::default() };
    let link = Link::new([durable(), durable()], &setup)?;
    ensure!(checked(&link, 0)?["channels"][0]["outside_snapshot"] == serde_json::json!([]), "of nothing");
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    dc.must(&["DEBUG", "POPULATE", "20000", "both", "4"])?;
    cloud.must(&["DEBUG", "POPULATE", "21500", "both", "4"])?;
    dc.must(&["SET", "only at dc", "1"])?;
    cloud.must(&["SET", "tmp:1", "1"])?;
    cloud.must(&["SET", "causeway:{story.other}:marker", "1"])?;
    let flat = expect(&link, &["check"], 0, &["cloud: 1,500 keys that dc lacks", "and 1,480 more"])?;
    ensure!(flat.matches("db 0: both:").count() == 20, "not twenty of them: {flat}");
    let all = checked(&link, 0)?;
    let found = &all["channels"][0]["outside_snapshot"];
    ensure!(all["ok"] == true && found.as_array().is_some_and(|sites| sites.len() == 1), "{all}");
    let summary =
        serde_json::json!([found[0]["site"], found[0]["peer"], found[0]["count"], found[0]["exact"]]);
    ensure!(summary == serde_json::json!(["cloud", "dc", 1500, true]), "{summary}");
    let keys = found[0]["keys"].as_array().context("no keys")?;
    let right = |key: &serde_json::Value| key["db"] == 0 && key["key"].as_str().is_some_and(|k| k > "both:");
    ensure!(keys.len() == 1000 && keys.iter().all(right), "{} keys", keys.len());
    // A database that has nothing at dc, a name that is no text; and a user who may not list.
    cloud.must(&["FLUSHALL"])?;
    dc.must(&["FLUSHALL"])?;
    cloud.must(&["SELECT", "9"])?;
    cloud.must(&[b"SET".as_slice(), b"\xff\n", b"1"])?;
    let found = checked(&link, 0)?["channels"][0]["outside_snapshot"].clone();
    ensure!(found[0]["keys"] == serde_json::json!([{ "db": 9, "key": { "base64": "/wo=" } }]), "{found}");
    cloud.must(&["ACL", "SETUSER", "default", "-scan"])?;
    expect(&link, &["check"], 0, &["could not be counted", "SELECT, SCAN and EXISTS"])?;
    // Something else stands in the way: that decides.
    cloud.must(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])?;
    expect(&link, &["check"], 1, &["maxmemory-policy is allkeys-lru"])?;
    Ok(())
}

/// Both ways, a user without the right to the stream is told by `check` before anything runs, whether it may
/// ask the server for its rights or not.
#[test]
fn check_refuses_both_ways_without_the_right_to_the_stream() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let link = Link::new([durable(), durable()], &Setup::default())?;
    lame_user(&link)?;
    let told = ["dc: no right to PSYNC", "both ways", "+psync +replconf"];
    expect(&link, &["check"], 1, &told)?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["ACL", "SETUSER", "lame", "-@admin", "-@dangerous", "+info"])?;
    expect(&link, &["check"], 1, &["dc: no right to REPLCONF", "both ways", "+psync +replconf"])?;
    link.edit("direction = \"both\"", "direction = \"dc->cloud\"")?;
    link.edit("snapshot = \"both\"", "snapshot = \"dc\"")?;
    link.edit("existing = \"dc\"", "")?;
    expect(&link, &["check"], 0, &["dc: no right to REPLCONF", "keys are scanned"])?;
    Ok(())
}

/// FF26: kill -9 in the middle of a scan, changes to what was scanned and what wasn't, and the line cut as
/// well: in the end both sites are equal, deleted keys included.
#[test]
fn a_scan_that_is_killed_goes_on_and_ends_equal() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let channel = "limits = { snapshot_bytes_per_second = 500_000 }".to_owned();
    let mut link = Link::new([durable(), durable()], &Setup { channel, ..one_way() })?;
    lame_user(&link)?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["DEBUG", "POPULATE", "30000", "key", "300"])?;
    fill(&link.urls()[0], seed, 2_000)?;
    let at_target = |at_least: usize, link: &Link| -> Result<()> {
        let end = Instant::now() + DRAIN;
        while keys_of(&link.stores[1])? < at_least {
            ensure!(Instant::now() < end, "the scan stands still\n{}", link.log_end());
            std::thread::sleep(PACE);
        }
        Ok(())
    };
    let writer = write(&link.urls()[0], "dc", seed, 200);
    for round in 1..=2 {
        link.start()?;
        at_target(7_500 * round, &link)?;
        link.kill()?;
        let meanwhile = (0..30_000).step_by(7).map(|n| {
            let key = format!("key:{}", n + round);
            match n % 3 {
                0 => cmd(&["DEL", &key]),
                1 => cmd(&["SET", &key, "changed"]),
                _ => cmd(&["APPEND", &key, "more"]),
            }
        });
        dc.pipeline(&meanwhile.collect::<Vec<_>>())?;
        dc.must(&["SET", &format!("new:{round}"), "1"])?;
    }
    link.start()?;
    at_target(20_000, &link)?;
    dc.must(&["CLIENT", "KILL", "USER", "lame"])?;
    let gone: Vec<_> = (0..500).map(|n| cmd(&["DEL", &format!("key:{}", n * 7 + 5)])).collect();
    dc.pipeline(&gone)?;
    link.wait_until("streaming", DRAIN, |s| s.channels[0].directions[0].phase == Phase::Streaming)?;
    let history = writer.stop();
    let log = std::fs::read_to_string(link.dir().join("syncd.log"))?;
    ensure!(log.contains("the scan goes on where it broke"), "it began anew:\n{}", link.log_end());
    link.wait_until_drained(DRAIN)?;
    prove(&link, &[history], &link.urls())
}
