//! `syncd runbook` as a program of its own: against a daemon and a verifier that pretend, and killed at any moment.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod cli_support;

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use causeway_core::Key;
use cli_support::{Fake, command, run};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use syncd::config::Config;
use syncd::runbook::Runbook;
use syncd::status::{
    By, ConflictEntry, ConflictPage, ConflictQuery, Control, ControlError, DeadLetterPage, DeadLetterQuery,
    HandOver, HandedOver, HeldAnswer, Lag, NotHandedOver, Phase, Progress, Status, Whose, WrittenLine,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// One channel `tags`, whose snapshots take a while.
#[derive(Default)]
struct Daemon {
    inner: Fake,
    snapshots: Mutex<(u64, Option<Instant>)>,
}

const COPY: Duration = Duration::from_millis(1_500);

impl Daemon {
    fn begun(&self) -> u64 {
        self.snapshots.lock().unwrap().0
    }
}

#[async_trait]
impl Control for Daemon {
    fn status(&self) -> Status {
        let (begun, at) = *self.snapshots.lock().unwrap();
        let copies = at.is_some_and(|at| at.elapsed() < COPY);
        let mut status = self.inner.status();
        for direction in &mut status.channels[0].directions {
            direction.phase = if copies { Phase::Snapshot } else { Phase::Streaming };
            direction.snapshot = Progress { done: 5, total: Some(10) };
            direction.snapshot_first = Some(100 * begun);
            direction.lag = Lag { changes: Some(0), seconds: Some(0.0) };
            (direction.held, direction.warning, direction.dead_letters) = (None, None, 0);
        }
        status
    }

    async fn snapshot(&self, channel: &str) -> Result<(), ControlError> {
        let mut snapshots = self.snapshots.lock().unwrap();
        if snapshots.1.is_some_and(|at| at.elapsed() < COPY) {
            return Err(ControlError::Refused(format!("{channel}: a snapshot is running")));
        }
        *snapshots = (snapshots.0 + 1, Some(Instant::now()));
        Ok(())
    }

    async fn pause(&self, channel: Option<&str>) -> Result<(), ControlError> {
        self.inner.pause(channel).await
    }

    async fn resume(&self, channel: Option<&str>, held: Option<HeldAnswer>) -> Result<(), ControlError> {
        self.inner.resume(channel, held).await
    }

    fn dead_letters(&self, query: &DeadLetterQuery) -> DeadLetterPage {
        self.inner.dead_letters(query)
    }

    async fn acknowledge(&self, channel: Option<&str>, id: Option<u64>) -> Result<u64, ControlError> {
        self.inner.acknowledge(channel, id).await
    }

    async fn hand_over(&self, channel: &str, request: HandOver) -> Result<HandedOver, NotHandedOver> {
        self.inner.hand_over(channel, request).await
    }

    fn intake_bytes(&self) -> usize {
        self.inner.intake_bytes()
    }

    async fn repair(&self, channel: &str, from: &str, keys: Vec<Key>) -> Result<u64, ControlError> {
        self.inner.repair(channel, from, keys).await
    }

    async fn written(
        &self,
        channel: &str,
        window: Range<u64>,
    ) -> Result<mpsc::Receiver<Vec<WrittenLine>>, ControlError> {
        self.inner.written(channel, window).await
    }

    async fn whose(&self, channel: &str, by: By, keys: Vec<Key>) -> Result<Whose, ControlError> {
        self.inner.whose(channel, by, keys).await
    }

    fn conflicts(&self, query: &ConflictQuery) -> Result<ConflictPage, ControlError> {
        self.inner.conflicts(query)
    }

    fn conflict(&self, id: u64) -> Result<Option<ConflictEntry>, ControlError> {
        self.inner.conflict(id)
    }

    fn ready(&self) -> bool {
        true
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

/// A folder with a configuration, a runbook of `steps`, and a verifier that writes down what it is asked in `calls`,
/// takes a third of a second, and answers with the code in `code`.
struct Stage {
    folder: TempDir,
    daemon: Arc<Daemon>,
    /// It serves as long as this lives.
    _runtime: tokio::runtime::Runtime,
    address: String,
}

const VERIFIER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 3
echo "begin $$ $*" >> calls
sleep 0.3
read -r code < code
[ "$code" = 0 ] && equal=true || equal=false
echo "{\"equal\":$equal,\"compared\":10,\"different\":$code}"
echo "end $$" >> calls
exit "$code"
"#;

impl Stage {
    fn new(steps: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        cli_support::config(folder.path());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let daemon = Arc::new(Daemon::default());
        let address = runtime.block_on(async {
            let listener = syncd::api::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(syncd::api::serve(listener, daemon.clone(), std::future::pending()));
            address.to_string()
        });
        let stage = Stage { folder, daemon, _runtime: runtime, address };
        stage.write("b.yaml", &format!("runbook: b\nsteps:\n{steps}\n"));
        stage.write("code", "0\n");
        stage.write("verifier", VERIFIER);
        let path = stage.path("verifier");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn args<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["runbook", words[0], "b.yaml", "--listen", &self.address];
        if matches!(words[0], "run" | "resume") {
            args.extend(["--verifier", "./verifier"]);
        }
        args.extend(&words[1..]);
        args
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        run(self.folder.path(), &self.args(words))
    }

    fn spawn(&self, words: &[&str]) -> Child {
        let mut command: Command = command(self.folder.path(), &self.args(words));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn events(&self) -> Vec<Value> {
        let text = self.read("data/runbooks/b.jsonl");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn status(&self) -> Value {
        let (code, out, err) = self.run(&["status", "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// Verifiers that began and did not end by themselves.
    fn alive(&self) -> Vec<String> {
        let calls = self.read("calls");
        let pids = calls.lines().filter_map(|line| line.strip_prefix("begin ")?.split(' ').next());
        let lives = |pid: &&str| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains("./verifier")
        };
        pids.filter(lives).map(str::to_owned).collect()
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Stage) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < end, "{what}: {}", self.read("calls"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn words(status: &Value) -> Vec<String> {
    let steps = status["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| format!("{} {}", step["name"].as_str().unwrap(), step["state"].as_str().unwrap()))
        .collect()
}

#[test]
fn the_examples_are_taken_and_say_what_they_do() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut seen = 0;
    for entry in std::fs::read_dir(configs.join("runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for config in ["redis.toml", "minimal.toml"] {
            let config = Config::load(configs.join(config)).unwrap();
            let book = Runbook::load(&path, &config).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(book.name, name);
        }
        let folder = tempfile::tempdir().unwrap();
        let config = configs.join("minimal.toml");
        let args = ["runbook", "check", path.to_str().unwrap(), "--config", config.to_str().unwrap()];
        let (code, out, err) = run(folder.path(), &args);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(
            out.contains("if the answer is no") && out.lines().all(|line| line.chars().count() <= 100),
            "{out}"
        );
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn a_run_asks_for_approval_and_goes_on_with_it() {
    let stage = Stage::new(
        "- snapshot: { channels: [tags], timeout: 1m }\n- verify: { on_failure: continue }\n\
         - approve: { ask: May it?, when: verify failed }\n- repair: { from: dc, keys_max: 7, when: verify failed }",
    );
    let (code, out, err) = stage.run(&["check"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("2. verify\n    compares both sites in all channels, every key"), "{out}");
    assert!(!stage.path("data").exists(), "a check leaves nothing");
    assert_eq!(stage.run(&["run", "--dry-run"]).1, out);
    let (code, out, _) = stage.run(&["check", "--json"]);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, plan["steps"][3]["only"].as_str()), (0, Some("only if `verify` failed")));

    stage.write("code", "1\n");
    let (code, out, err) = stage.run(&["run"]);
    assert_eq!(code, 1, "{out}{err}");
    for expected in ["[1/4] snapshot: done, tags copied", "the run goes on", "resume b.yaml --approve"] {
        assert!(err.contains(expected), "{expected} in {err}");
    }
    assert!(out.contains("run 1: waiting") && out.contains("May it?"), "{out}");
    assert!(!err.contains('\x1b'), "colour where there is no terminal: {err}");
    assert_eq!(
        words(&stage.status()),
        ["snapshot done", "verify failed", "approve waiting", "repair pending"]
    );

    // A run that is not at its end is not begun again by mistake, and nothing else is approved.
    let (code, _, err) = stage.run(&["run"]);
    assert!(code == 2 && err.contains("it stands at `approve`") && err.contains("--anew"), "{err}");
    assert_eq!(stage.run(&["resume"]).0, 1);
    stage.write("code", "0\n");
    let (code, out, err) = stage.run(&["resume", "--approve", "--json"]);
    assert_eq!(code, 0, "{err}");
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["state"], "done");
    assert!(
        status["steps"][2]["by"]["user"].is_string() && status["steps"][2]["by"]["pid"].is_u64(),
        "{out}"
    );
    assert_eq!(words(&status), ["snapshot done", "verify failed", "approve done", "repair done"]);
    let calls = stage.read("calls");
    assert!(calls.contains("repair --config syncd.toml --from dc --keys-max 7 --yes --json"), "{calls}");
    assert_eq!(stage.daemon.begun(), 1);
    let (code, _, err) = stage.run(&["resume"]);
    assert!(code == 2 && err.contains("is over"), "{err}");
    // The verifier's own words are kept.
    assert!(stage.read("data/runbooks/b.1.verify.json").contains("\"different\":1"));
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_and_says_how_to_go_on() {
    let stage = Stage::new("- verify: {}");
    assert_eq!(stage.run(&["status"]).0, 1);
    let (code, _, err) = stage.run(&["resume"]);
    assert!(code == 2 && err.contains("was never run"), "{err}");
    stage.write("code", "3\n");
    let (code, out, _) = stage.run(&["run"]);
    assert!(code == 3 && out.contains("exit code 3"), "{out}");
    let (code, _, err) = stage.run(&["resume", "--approve"]);
    assert!(code == 2 && err.contains("nothing waits for it"), "{err}");

    let text = stage.read("b.yaml");
    stage.write("b.yaml", &format!("{text}# changed\n"));
    let (code, _, err) = stage.run(&["resume"]);
    assert!(
        code == 2 && err.contains("b.yaml has changed since run 1 began") && err.contains("--anew"),
        "{err}"
    );
    assert_eq!(stage.status()["changed"], true);
    stage.write("code", "0\n");
    assert_eq!(stage.run(&["run", "--anew"]).0, 0);
    let status = stage.status();
    assert_eq!((&status["run"], &status["state"]), (&2.into(), &"done".into()));
    assert!(
        stage.events().iter().any(|event| event["event"] == "abandoned" && event["who"]["user"].is_string())
    );

    for (text, code, holds) in [
        ("runbook: b\nsteps:\n- waits: {}\n", 2, "b.yaml:3:3: no step is called `waits`"),
        ("runbook: b\nsteps:\n- verify: { channels: [x] }\n", 2, "there is `tags`"),
    ] {
        stage.write("b.yaml", text);
        for verb in ["check", "run", "status"] {
            let (found, out, err) = stage.run(&[verb]);
            assert!(found == code && err.contains(holds) && out.is_empty(), "{verb}: {out}{err}");
        }
    }
    let none = ["runbook", "run", "none.yaml"];
    let (code, _, err) = run(stage.folder.path(), &none);
    assert!(code == 2 && err.contains("none.yaml: cannot be read"), "{err}");
}

#[test]
fn one_runner_at_a_time_and_a_signal_ends_it_with_its_program() {
    let stage = Stage::new("- verify: {}\n- observe: { for: 1s }");
    stage.write("verifier", &VERIFIER.replace("sleep 0.3", "sleep 60"));
    for name in ["TERM", "INT"] {
        let words = if name == "TERM" { "run" } else { "resume" };
        let mut child = stage.spawn(&[words]);
        stage.wait_for("the verifier runs", |stage| !stage.alive().is_empty());
        let (code, _, err) = stage.run(&["run", "--anew"]);
        assert!(code == 3 && err.contains("runs this runbook just now"), "{err}");
        assert_eq!(stage.status()["state"], "running");
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert!(stage.alive().is_empty());
        let status = stage.status();
        assert_eq!((&status["state"], words_of(&status)), (&"interrupted".into(), "interrupted".to_owned()));
        let last = stage.events().pop().unwrap();
        assert_eq!((&last["event"], &last["signal"]), (&"interrupted".into(), &format!("SIG{name}").into()));
    }
    stage.write("verifier", VERIFIER);
    assert_eq!(stage.run(&["resume"]).0, 0);
}

fn words_of(status: &Value) -> String {
    status["steps"][0]["state"].as_str().unwrap().to_owned()
}

/// kill -9 at any moment, again and again: the run goes on at the step that it was in, nothing is done twice that must
/// not be, no program outlives its runner, and the journal tells all of it.
#[test]
fn a_run_that_is_killed_at_any_moment_is_done_as_one_that_was_not() {
    let seed: u64 =
        std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("CAUSEWAY_SEED={seed} a_run_that_is_killed_at_any_moment_is_done_as_one_that_was_not");
    let runs: Vec<_> = (0..4)
        .map(|round| {
            std::thread::spawn(move || killed_again_and_again(SmallRng::seed_from_u64(seed ^ round)))
        })
        .collect();
    let deaths: Vec<usize> = runs.into_iter().map(|run| run.join().unwrap()).collect();
    println!("killed {deaths:?} times");
    assert!(deaths.iter().sum::<usize>() > 0);
}

/// How often it was killed.
fn killed_again_and_again(mut random: SmallRng) -> usize {
    let names = ["wait", "snapshot", "verify", "repair", "observe"];
    let stage = Stage::new(
        "- wait: { for: 1s }\n- snapshot: { timeout: 1m }\n- verify: { channels: [tags] }\n- repair: { from: dc }\n\
         - observe: { for: 1s }",
    );
    let mut deaths = 0;
    let mut child = stage.spawn(&["run"]);
    loop {
        // Long enough now and then for a step that begins anew, and short mostly.
        let most = if random.random_bool(0.6) { 700 } else { 2_500 };
        let lives = Duration::from_millis(random.random_range(0..most));
        let end = Instant::now() + lives;
        let mut exit = None;
        while exit.is_none() && Instant::now() < end {
            exit = child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(exit) = exit {
            assert_eq!(exit.code(), Some(0), "{:?}", stage.events());
            break;
        }
        signal(&child, "KILL");
        child.wait().unwrap();
        deaths += 1;
        assert!(deaths < 200);
        stage.wait_for("the killed runner's program is gone", |stage| stage.alive().is_empty());
        // Killed before it had begun: there is nothing to resume.
        let begun = stage.events_whole().iter().any(|event| event["event"] == "begin");
        child = stage.spawn(&[if begun { "resume" } else { "run" }]);
    }
    let events = stage.events();
    let of = |word: &str| events.iter().filter(|event| event["event"] == word).collect::<Vec<_>>();
    let done: Vec<&str> = of("done").iter().map(|event| event["step"].as_str().unwrap()).collect();
    assert_eq!(done, names);
    assert_eq!((of("begin").len(), of("end").len(), of("failed").len()), (1, 1, 0));
    assert!(of("resume").len() <= deaths);
    // Once each, or begun again in the same attempt: no step is left out, none is done twice.
    assert!(of("started").iter().all(|event| event["attempt"] == 1), "{events:?}");
    assert_eq!(stage.daemon.begun(), 1, "{events:?}");
    let calls = stage.read("calls");
    for (verb, step) in [("check", "verify"), ("repair", "repair")] {
        let begun = calls.lines().filter(|line| line.contains(&format!(" {verb} "))).count();
        let announced = of("started").iter().filter(|event| event["step"] == step).count();
        assert!((1..=announced).contains(&begun), "{verb}: {begun} of {announced}\n{calls}");
    }
    let times: Vec<&str> = events.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(words(&stage.status()), names.map(|name| format!("{name} done")));
    deaths
}

impl Stage {
    /// As [`Stage::events`], while the last line may be cut off.
    fn events_whole(&self) -> Vec<Value> {
        let text = self.read("data/runbooks/b.jsonl");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
