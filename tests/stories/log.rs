//! The change log's own troubles, met by the real daemon: no room.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_stories::{Link, Setup, seed, servers};
use causeway_testkit::servers::{AppendOnly, Options};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::Phase;

const DRAIN: Duration = Duration::from_secs(90);

fn durable() -> Options {
    Options { appendonly: AppendOnly::Always, ..Options::default() }
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
    let (code, took) = link.terminate()?;
    ensure!(
        code == Some(0) && took < Duration::from_secs(10),
        "exit {code:?} after {took:?}\n{}",
        link.log_end()
    );
    link.start()?;
    wait_until_full(&link)?;
    // There is room again, and nobody tells the daemon.
    ensure!(prlimit(&["--pid", &link.pid()?.to_string(), "--fsize=unlimited:"]), "the limit stays");
    link.prove(writers, DRAIN)
}
