//! A runbook against real stores, the real daemon and the real verifier, with the runner killed again and again.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_stories::{DRAIN, Link, Setup, durable, program, seed, servers};
use causeway_testkit::data::fill;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use syncd::status::Status;

const STEPS: &str = "
runbook: copy-again
steps:
  - wait:     { name: ready, until: streaming, lag_seconds_max: 5, timeout: 1m }
  - snapshot: { timeout: 2m }
  - verify:   { channels: [push], timeout: 2m }
  - backfill: { from: start of ready - 1m, to: end of snapshot, timeout: 2m }
  - repair:   { from: dc, keys_max: 10, timeout: 2m }
  - observe:  { for: 2s, conflicts_max: 0 }
";

fn runner(link: &Link, word: &str) -> Result<Child> {
    Ok(Command::new(program("syncd")?)
        .args(["runbook", word])
        .arg(link.dir().join("copy-again.yaml"))
        .arg("--config")
        .arg(link.config())
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?)
}

/// The runner dies at any moment: the copy that the runbook asks for is made once, and both sites are proved equal at the
/// end.
#[test]
fn a_runbook_whose_runner_is_killed_copies_once_and_proves_it() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let channel = "limits = { snapshot_bytes_per_second = 500_000 }".to_owned();
    let mut link = Link::new([durable(), durable()], &Setup { snapshot: "dc", channel, ..Setup::default() })?;
    fill(&link.urls()[0], seed, 3_000)?;
    std::fs::write(link.dir().join("copy-again.yaml"), STEPS)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;

    let first = |status: &Status| status.channels[0].directions[0].snapshot_first;
    let before = first(&link.status()?).context("there was a first copy")?;
    let mut seen = BTreeSet::from([before]);
    let (mut deaths, end) = (0, Instant::now() + DRAIN);
    let mut child = runner(&link, "run")?;
    let done = loop {
        let lives = Instant::now() + Duration::from_millis(random.random_range(0..2_500));
        let mut exit = None;
        while exit.is_none() && Instant::now() < lives {
            exit = child.try_wait()?;
            seen.extend(first(&link.status()?));
            std::thread::sleep(Duration::from_millis(20));
        }
        if exit.is_some() {
            break child.wait_with_output()?;
        }
        ensure!(Instant::now() < end, "not done after {deaths} deaths\n{}", link.log_end());
        child.kill()?;
        child.wait()?;
        deaths += 1;
        let begun = link.dir().join("data/runbooks/copy-again.jsonl");
        let begun = std::fs::read_to_string(begun).is_ok_and(|text| text.contains("\"begin\""));
        child = runner(&link, if begun { "resume" } else { "run" })?;
    };
    println!("the runner was killed {deaths} times");
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{}: {said}\n{}", done.status, link.log_end());
    let status: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    ensure!(status["state"] == "done", "{said}");
    let steps = status["steps"].as_array().context("no steps")?;
    ensure!(steps.iter().all(|step| step["state"] == "done" && step["attempt"] == 1), "{said}");
    ensure!(steps[2]["outcome"].as_str().is_some_and(|text| text.starts_with("equal, ")), "{said}");
    ensure!(seen.len() == 2, "one copy moves the first seq once: {seen:?}");
    link.verify()
}
