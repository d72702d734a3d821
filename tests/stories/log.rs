//! The change log's own troubles, met by the real daemon: no room, and bytes that are not what was written.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use causeway_stories::{DRAIN, Link, Setup, durable, seed, servers};
use causeway_testkit::resp::cmd;
use causeway_testkit::servers::RedisServer;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::Phase;

fn get(server: &RedisServer, key: &str) -> Result<Option<String>> {
    Ok(server.connect()?.must(&["GET", key])?.text())
}

/// Waits until the status says that the log is full, of every direction.
fn wait_until_full(link: &Link) -> Result<()> {
    link.wait_until("a full log", DRAIN, |s| {
        let full = |error: &Option<String>| error.as_ref().is_some_and(|e| e.contains("the log is full"));
        s.channels[0].directions.iter().all(|d| d.phase == Phase::Paused && full(&d.error))
    })?;
    Ok(())
}

/// The file system takes no more (here: a limit on the size of files, for which no right is needed). The daemon says
/// so and goes on running; it stops in order, starts on the full log, and loses nothing once there is room.
#[test]
fn a_log_that_cannot_grow_pauses_and_goes_on_without_loss() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let prlimit = |words: &[&str]| {
        let ran = Command::new("prlimit").args(words).stdin(Stdio::null()).output();
        ran.is_ok_and(|output| output.status.success())
    };
    if !prlimit(&["--version"]) {
        println!("ignored: there is no prlimit to limit files with");
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    // The signal is ignored, so that writing fails as it does on a full disk. The hard limit stays as it is.
    let limited = "trap '' XFSZ; exec prlimit --fsize=4194304: \"$0\" \"$@\"";
    link.launcher = ["sh", "-c", limited].map(str::to_owned).to_vec();
    link.start()?;
    let writers = link.traffic(seed, 500);
    let mut random = SmallRng::seed_from_u64(seed);
    for n in 0..60 {
        let mut value = vec![0; 100_000];
        random.fill(&mut value[..]);
        link.stores[n % 2].connect()?.must(&[b"SET", format!("large:{n}").as_bytes(), &value])?;
    }
    wait_until_full(&link)?;
    ensure!(link.log().contains("the log is full, appends wait"), "not logged\n{}", link.log_end());
    link.stop_in_order()?;
    link.start()?;
    wait_until_full(&link)?;
    // There is room again, and nobody tells the daemon.
    ensure!(prlimit(&["--pid", &link.pid()?.to_string(), "--fsize=unlimited:"]), "the limit stays");
    link.prove(writers, DRAIN)
}

/// The segments of the log of `origin`, oldest first.
fn segments(dir: &Path, origin: &str) -> Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(dir.join(format!("data/log/push.{origin}.0")))?;
    let mut all: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    all.retain(|path| path.extension().is_some_and(|suffix| suffix == "redb"));
    all.sort();
    Ok(all)
}

/// Changes one byte of each place in the log of `origin` that holds `text`.
fn damage(dir: &Path, origin: &str, text: &[u8]) -> Result<()> {
    let mut places = 0;
    for path in segments(dir, origin)? {
        let mut bytes = std::fs::read(&path)?;
        let found: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text)).collect();
        found.iter().for_each(|at| bytes[*at] ^= 0x20);
        places += found.len();
        std::fs::write(&path, bytes)?;
    }
    ensure!(places > 0, "`{}` is in no segment", text.escape_ascii());
    Ok(())
}

/// A record that the applier has yet to read is damaged while the daemon is stopped: of the very first block behind
/// the marker if `at_once`, else of a later one.
fn damaged_record(at_once: bool) -> Result<()> {
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &one_way)?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["SET", "text", "before"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    // From here on nothing is applied.
    let paused = link.syncd(&["pause"])?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    let counted = |n: u32| [cmd(&["INCR", "counted"]), cmd(&["RPUSH", "listed", &n.to_string()])];
    let ahead: u32 = if at_once { 0 } else { 1_000 };
    dc.pipeline(&(0..ahead).flat_map(counted).collect::<Vec<_>>())?;
    let captured = |link: &Link, at_least: u64| {
        link.wait_until("capture", DRAIN, |s| s.channels[0].directions[0].lag.changes >= Some(at_least))
    };
    captured(&link, u64::from(2 * ahead))?;
    // In a block of its own, or nearly.
    dc.must(&["SET", "text", "the-damaged-value"])?;
    captured(&link, u64::from(2 * ahead) + 1)?;
    // More than a restart of capture looks back over.
    dc.pipeline(&(ahead..4_000).flat_map(counted).collect::<Vec<_>>())?;
    captured(&link, 8_001)?;
    // In order: of a segment that was not closed, a damaged byte would cost all records.
    let (code, _) = link.terminate()?;
    ensure!(code == Some(0), "exit {code:?}\n{}", link.log_end());
    damage(link.dir(), "dc", b"the-damaged-value")?;
    link.start()?;
    let resumed = || link.syncd(&["resume"]).is_ok_and(|output| output.status.success());
    link.wait_until("resumed", DRAIN, |_| resumed())?;
    let last = Some("4000".to_owned());
    link.wait_until("the last write", DRAIN, |_| get(&link.stores[1], "counted").is_ok_and(|n| n == last))?;
    link.wait_until_drained(DRAIN)?;
    let log = link.log();
    let told = log.lines().find(|line| line.contains("are damaged")).context("the damage is not told")?;
    println!("{told}");
    let named = ["partition=push.dc.0", "segment=\"push.dc.0/", "from=", "after_seq="];
    ensure!(named.iter().all(|part| told.contains(part)), "not named: {told}");
    ensure!(!log.contains("the-damaged"), "a value is told\n{}", link.log_end());
    let gaps = link.metric("causeway_gaps_total", "dc")?;
    ensure!(gaps >= 1.0, "{gaps} gaps are counted\n{}", link.log_end());
    let text = get(&link.stores[1], "text")?;
    ensure!(text.as_deref() == Some("the-damaged-value"), "the snapshot did not bring it: {text:?}");
    link.verify()?;
    let (code, _) = link.terminate()?;
    ensure!(code == Some(0), "exit {code:?}\n{}", link.log_end());
    Ok(())
}

/// FF42: a damaged record is named with its partition and place and is never read as data; what it held is a gap,
/// which a snapshot closes.
#[test]
fn a_damaged_record_is_named_and_repaired() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    damaged_record(false)
}

/// FF42: the same where applying begins with it.
#[test]
fn a_damaged_record_at_the_marker_is_named_and_repaired() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    damaged_record(true)
}

/// FF47: a log that is not the one that the markers speak of is never taken for it: its changes have other numbers.
#[test]
fn a_log_that_was_made_anew_is_refused_until_all_begins_anew() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    let mut dc = link.stores[0].connect()?;
    dc.pipeline(&(0..500).map(|n| cmd(&["SET", &format!("before:{n}"), "x"])).collect::<Vec<_>>())?;
    link.wait_until_drained(DRAIN)?;
    link.stop_in_order()?;
    std::fs::remove_dir_all(link.dir().join("data/log/push.dc.0"))?;
    dc.must(&["SET", "meanwhile", "y"])?;
    link.start()?;
    link.wait_until("refused", DRAIN, |s| {
        let told =
            |error: &Option<String>| error.as_ref().is_some_and(|e| e.contains("they are not this log's"));
        s.channels[0].directions.iter().any(|d| d.phase == Phase::Failed && told(&d.error))
    })?;
    link.stop_in_order()?;
    let cleaned = link.syncd(&["cleanup"])?;
    ensure!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    std::fs::remove_dir_all(link.dir().join("data/log"))?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    dc.must(&["SET", "after", "z"])?;
    link.wait_until("all of it", DRAIN, |_| {
        let held = |key: &str| get(&link.stores[1], key).is_ok_and(|value| value.is_some());
        held("meanwhile") && held("after")
    })?;
    link.wait_until_drained(DRAIN)?;
    link.verify()
}
