//! Clocks that are wrong: the daemon's jumps while the stores' are right; those of the two stores differ.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use causeway_core::{Change, Op};
use causeway_stories::{DRAIN, Link, Setup, durable, seed, servers};
use causeway_testkit::resp::Connection;
use causeway_testkit::servers::{Options, faketime, other_redis_server, redis_server};
use syncd::log::{EmbeddedLog, EmbeddedOptions, Log, Offset, PartitionId};

/// libfaketime looks at its file this often.
const NOTICED: Duration = Duration::from_secs(1);
const HOUR_MS: u64 = 3_600_000;

/// A clock that is as wrong as its file says.
struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    fn new(library: PathBuf, dir: &Path) -> Result<Clock> {
        let clock = Clock { library, file: dir.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// For the program that is to have this clock. Only the time of day jumps, as on a real machine: sleeps
    /// and time-outs go by the monotonic clock.
    fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", NOTICED.as_secs().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// `ahead`: seconds, negative if the clock is late.
    fn set(&self, ahead: i64) -> Result<()> {
        // Renamed, so that nobody reads half of it.
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{ahead:+}\n"))?;
        Ok(std::fs::rename(next, &self.file)?)
    }
}

fn unix_ms() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?)
}

/// Writes a key that lives half an hour and one that lives a second at each site; returns the names of the
/// long ones, and when they expire.
fn write_expiring(link: &Link, when: &str, expiring: &mut Vec<(String, u64)>) -> Result<()> {
    for (store, site) in link.stores.iter().zip(["dc", "cloud"]) {
        let (name, at) = (format!("clock:{when}:{site}"), unix_ms()? + HOUR_MS / 2);
        let mut connection = store.connect()?;
        connection.must(&["SET", &name, when, "PXAT", &at.to_string()])?;
        connection.must(&["SET", &format!("{name}:short"), when, "PX", "1000"])?;
        expiring.push((name, at));
    }
    Ok(())
}

/// Everything that the log of `origin` holds.
async fn read_log(log: &EmbeddedLog, origin: &str) -> Result<Vec<Change>> {
    let id = PartitionId { channel: "push".to_owned(), origin: origin.to_owned(), number: 0 };
    let (mut from, end) = (log.bounds(&id).start, log.bounds(&id).end);
    ensure!(from == Offset(0), "the log of {origin} was trimmed to {from}, and cannot be judged");
    let mut changes = Vec::new();
    while from < end {
        let read = log.read(&id, from, 1 << 20).await?;
        from = Offset(read.last().context("a hole in the log")?.0.0 + 1);
        changes.extend(read.into_iter().map(|(_, change)| change));
    }
    Ok(changes)
}

/// The versions rise in the order of the log, though the clock was `ahead_ms` ahead and then late.
fn judge_versions(changes: &[Change], origin: &str, began_ms: u64, ahead_ms: u64) -> Result<()> {
    let made = |change: &&Change| matches!(change.op, Op::Put | Op::Delete | Op::Command);
    let mut highest = None;
    let (mut ahead, mut back) = (false, 0_u64);
    for change in changes.iter().filter(made) {
        ensure!(
            highest < Some(change.hlc),
            "{origin}: hlc {} at seq {} after {highest:?}",
            change.hlc.0,
            change.seq
        );
        highest = Some(change.hlc);
        ahead |= change.time > began_ms + ahead_ms;
        back += u64::from(ahead && change.time < began_ms);
        // Once it was ahead, later versions stay there.
        ensure!(
            !ahead || change.hlc.unix_ms() > began_ms + ahead_ms,
            "{origin}: seq {} fell back",
            change.seq
        );
    }
    ensure!(
        ahead && back > 0,
        "{origin}: the clock did not jump: ahead {ahead}, then back in {back} changes"
    );
    println!("{origin}: {} records, {back} made while the clock was late", changes.len());
    Ok(())
}

/// FF46: the clock steps an hour ahead, back to five minutes late, and the daemon is killed and started with
/// that clock: nothing is lost or doubled, versions never go back, and what expires does when its store says.
#[test]
fn a_clock_that_jumps_loses_nothing_and_reorders_nothing() -> Result<()> {
    let (true, Some(library)) = (servers(), faketime()) else { return Ok(()) };
    let seed = seed();
    // By the jumping clock, records are old at once; all of them are wanted in the end.
    let setup = Setup { tables: "[log]\nage_min = \"1d\"".to_owned(), ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &setup)?;
    let clock = Clock::new(library, link.dir())?;
    link.environment = clock.environment();
    let began_ms = unix_ms()?;
    link.start()?;
    let writers = link.traffic(seed, 800);
    link.wait_until_applied(500, DRAIN)?;

    let mut expiring = Vec::new();
    let mut go_on = |link: &Link, when: &str| -> Result<()> {
        std::thread::sleep(2 * NOTICED);
        write_expiring(link, when, &mut expiring)?;
        std::thread::sleep(NOTICED);
        Ok(())
    };
    go_on(&link, "right")?;
    clock.set(3_600)?;
    go_on(&link, "ahead")?;
    clock.set(-300)?;
    go_on(&link, "late")?;
    link.kill()?;
    link.start()?;
    go_on(&link, "started-late")?;
    clock.set(0)?;
    go_on(&link, "right-again")?;
    link.prove(writers, DRAIN)?;

    for (store, site) in link.stores.iter().zip(["dc", "cloud"]) {
        let mut connection = store.connect()?;
        for (name, at) in &expiring {
            let found = connection.must(&["PEXPIRETIME", name])?.int();
            ensure!(found == i64::try_from(*at).ok(), "{name} at {site} expires at {found:?}, not {at}");
            let short = connection.must(&["EXISTS", &format!("{name}:short")])?.int();
            ensure!(short == Some(0), "{name}:short is still at {site}");
        }
    }

    let (code, _) = link.terminate()?;
    ensure!(code == Some(0), "exit {code:?}\n{}", link.log_end());
    tokio::runtime::Runtime::new()?.block_on(async {
        let log = EmbeddedLog::open(&link.dir().join("data/log"), EmbeddedOptions::default()).await?;
        for origin in ["dc", "cloud"] {
            judge_versions(&read_log(&log, origin).await?, origin, began_ms, HOUR_MS - 60_000)?;
        }
        log.close().await;
        Ok(())
    })
}

/// How far the clock of `cloud` is ahead.
const AHEAD_MS: i64 = 120_000;

/// A server whose clock is ahead by `AHEAD_MS`.
fn ahead(library: &Path) -> Result<Options> {
    let server = || redis_server().map(|path| vec![path.display().to_string()]);
    // The C library before the server's own allocator, which asks for the time while the library begins.
    let mut program = vec!["env".to_owned(), format!("LD_PRELOAD={}:libc.so.6", library.display())];
    program.extend(["FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1"].map(str::to_owned));
    program.push(format!("FAKETIME=+{}", AHEAD_MS / 1_000));
    program.extend(other_redis_server().or_else(server).context("redis-server is missing")?);
    Ok(Options { program: Some(program), ..durable() })
}

/// FF19: the servers' clocks differ by two minutes. A key ends at the moment that was said where it was written, at
/// both sites the same, whether it was copied, set, or given another end; what ends is gone at both and stays so.
#[test]
fn servers_whose_clocks_differ_agree_when_a_key_ends() -> Result<()> {
    let (true, Some(library)) = (servers(), faketime()) else { return Ok(()) };
    let mut link = Link::new([durable(), ahead(&library)?], &Setup::default())?;
    let [mut dc, mut cloud] = [link.stores[0].connect()?, link.stores[1].connect()?];
    let time = |of: &mut Connection| -> Result<i64> {
        let time = of.must(&["TIME"])?;
        Ok(1_000 * time.items().first().and_then(|seconds| seconds.int()).context("no time")?)
    };
    let began = [time(&mut dc)?, time(&mut cloud)?];
    let apart = began[1] - began[0];
    ensure!((apart - AHEAD_MS).abs() < 10_000, "the clocks are {apart} ms apart");
    dc.must(&["SET", "copied:dc", "1", "EX", "600"])?;
    cloud.must(&["SET", "copied:cloud", "1", "EX", "600"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    for (to, site) in [(&mut dc, "dc"), (&mut cloud, "cloud")] {
        to.must(&["SET", &format!("set:{site}"), "1", "EX", "600"])?;
        to.must(&["HSET", &format!("later:{site}"), "field", "1"])?;
        to.must(&["EXPIRE", &format!("later:{site}"), "600"])?;
        to.must(&["SET", &format!("kept:{site}"), "1", "EX", "600"])?;
        to.must(&["PERSIST", &format!("kept:{site}")])?;
        to.must(&["SET", &format!("short:{site}"), "1", "PX", "300"])?;
    }
    let gone = |connection: &mut Connection| -> Result<bool> {
        Ok(connection.must(&["EXISTS", "short:dc", "short:cloud"])?.int() == Some(0))
    };
    link.wait_until("the end of what is short", DRAIN, |_| {
        [0, 1]
            .into_iter()
            .all(|site| link.stores[site].connect().is_ok_and(|mut to| gone(&mut to).is_ok_and(|gone| gone)))
    })?;
    link.wait_until_drained(DRAIN)?;
    ensure!(gone(&mut dc)? && gone(&mut cloud)?, "what was short lives again");
    for (site, began) in ["dc", "cloud"].into_iter().zip(began) {
        for word in ["copied", "set", "later"] {
            let key = format!("{word}:{site}");
            let ends = [&mut dc, &mut cloud].map(|to| to.must(&["PEXPIRETIME", &key]).map(|end| end.int()));
            let [here, there] = ends;
            let (here, there) = (here?, there?);
            let right = began + 599_000..began + 600_000 + i64::try_from(DRAIN.as_millis())?;
            ensure!(
                here == there && here.is_some_and(|end| right.contains(&end)),
                "{key}: {here:?}, {there:?}"
            );
        }
        let kept = [&mut dc, &mut cloud].map(|to| to.must(&["TTL", &format!("kept:{site}")]));
        ensure!(
            kept.into_iter().all(|ttl| ttl.is_ok_and(|ttl| ttl.int() == Some(-1))),
            "kept:{site} has an end"
        );
    }
    link.verify()
}
