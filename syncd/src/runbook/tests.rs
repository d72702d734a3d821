//! Runbooks against a world that pretends, on tokio's paused clock.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::journal::{Event, Journal, Line, Who};
use super::{Ended, Exit, Program, Refusal, RunState, Runbook, Runner, StepWord, World, plan};
use crate::config::Config;
use crate::status::{
    ChannelState, ChannelStatus, DirectionStatus, Lag, Phase, Progress, Status, parse_rfc3339,
};

const CONFIG: &str = r#"
[link]
name = "l"
sites = ["dc", "cloud"]
[[channel]]
name = "tags"
store = "redis"
direction = "both"
snapshot = "dc"
dc = { url = "redis://127.0.0.1:1" }
cloud = { url = "redis://127.0.0.1:2" }
[[channel]]
name = "queue"
store = "redis"
direction = "both"
snapshot = "none"
dc = { url = "redis://127.0.0.1:3" }
cloud = { url = "redis://127.0.0.1:4" }
"#;

fn config(folder: &Path) -> Config {
    let path = folder.join("syncd.toml");
    std::fs::write(&path, CONFIG).unwrap();
    Config::load(path).unwrap()
}

fn parse(config: &Config, yaml: &str) -> Result<Runbook, String> {
    Runbook::parse(Path::new("b.yaml"), yaml, config).map_err(|error| error.to_string())
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let steps = |text: &str| format!("runbook: b\nsteps:\n{text}");
    let mut wrong = Vec::new();
    for (yaml, place, holds) in [
        ("steps: [wait]".to_owned(), "1:1", "lacks `runbook`"),
        ("runbook: b".to_owned(), "1:1", "lacks `steps`"),
        ("runbook: a b\nsteps: []".to_owned(), "1:10", "allowed is 1 to 64 of"),
        (
            "runbook: b\nstep: []".to_owned(),
            "2:1",
            "no `step`, allowed is `runbook`, `about`, `params`, `steps`",
        ),
        ("runbook: b\nsteps: []".to_owned(), "2:8", "0 steps"),
        ("- a".to_owned(), "1:1", "a runbook is a list"),
        (
            steps("- waits: { for: 1m }"),
            "3:3",
            "no step is called `waits`, allowed is one of `snapshot`, `wait`",
        ),
        (steps("- wait:\n  for: 1m"), "4:3", "`for` stands beside `wait`"),
        (steps("- wait: { for: 1m }\n  verify: {}"), "4:3", "stands beside `wait`"),
        (
            steps("- wait: { for: soon }"),
            "3:16",
            "for is `soon`, allowed is a whole number with one of ms, s, m",
        ),
        (steps("- wait: { for: 0s }"), "3:16", "for is `0s`"),
        (steps("- wait: { for: 1m, timeout: 1m }"), "3:29", "it ends by itself"),
        (steps("- wait: { until: streaming }"), "3:9", "step `wait` has no end: say `timeout`"),
        (steps("- wait: { at: 2026-03-01T02:00:00Z }"), "3:9", "has no end"),
        (steps("- wait: { until: today, timeout: 1m }"), "3:18", "allowed is `streaming`"),
        (steps("- wait: { timeout: 1m }"), "3:9", "what it waits for"),
        (steps("- wait: { for: 1m, until: streaming }"), "3:9", "what it waits for, one of"),
        (steps("- wait: { lag_seconds_max: -1, timeout: 1m }"), "3:28", "a number, 0 or more"),
        (steps("- wait: { lag_changes_max: 1.5, timeout: 1m }"), "3:28", "a whole number"),
        (steps("- snapshot: { channels: [tags] }"), "3:13", "has no end"),
        (steps("- snapshot: { channels: [queue], timeout: 1h }"), "3:25", "nothing to copy"),
        (steps("- verify: { channels: [tag] }"), "3:24", "no channel `tag` in"),
        (steps("- verify: { channels: tags }"), "3:23", "allowed is a list: [tags, queue]"),
        (steps("- verify: { channels: [tags, tags] }"), "3:30", "twice"),
        (steps("- verify: { channels: [] }"), "3:23", "leave it out for all"),
        (
            steps("- verify: { channel: tags }"),
            "3:13",
            "no `channel`, allowed is `channels`, `from`, `to`, `time_column`, `timeout`",
        ),
        (steps("- verify: { from: 2026-03-01T02:00:00Z }"), "3:11", "lacks `to`"),
        (steps("- verify: { from: yesterday, to: $x }"), "3:19", "allowed is RFC 3339 such as"),
        (
            steps("- verify: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T02:00:00Z }"),
            "3:45",
            "has to end later than it begins",
        ),
        (steps("- verify: { from: $x, to: $x + 1m }"), "3:19", "there is no param `x`; params has none"),
        (steps("- backfill: {}"), "3:13", "lacks `from` and `to`"),
        (steps("- verify: { time_column: changed }"), "3:26", "say `from` and `to`"),
        (
            steps(
                "- backfill: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z, time_column: changed }",
            ),
            "3:13",
            "lacks `site`",
        ),
        (
            steps("- backfill: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z, site: dc }"),
            "3:75",
            "site goes with time_column",
        ),
        (
            steps(
                "- backfill: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z, time_column: changed, site: x }",
            ),
            "3:97",
            "allowed is dc or cloud",
        ),
        (
            steps(
                "- wait: { for: 1m }\n- backfill: { from: start of wait, to: end of verify }\n- verify: {}",
            ),
            "4:40",
            "step `verify` comes later, or is this one; before it there is wait",
        ),
        (steps("- backfill: { from: start of x, to: end of x }"), "3:21", "there is no step `x`"),
        (
            steps(
                "- wait: { for: 1m, on_failure: end }\n- verify: {}\n- backfill: { name: end, from: start of verify, to: end of verify }",
            ),
            "5:32",
            "`verify` may have no time: the on_failure of `wait` goes past it",
        ),
        (steps("- repair: {}"), "3:11", "lacks `from`"),
        (steps("- repair: { from: here }"), "3:19", "allowed is `dc`, `cloud`, `newest`, `owner`"),
        (steps("- repair: { from: dc, share_max: 101 }"), "3:34", "0 to 100"),
        (steps("- observe: { lag_seconds_max: 5 }"), "3:12", "has no end: say `for`"),
        (steps("- approve: { ask: }"), "3:17", "here is nothing, allowed is a text"),
        (steps("- verify: {}\n- verify: {}"), "4:3", "two steps `verify`, the first in line 3"),
        (steps("- verify: { name: stop }"), "3:19", "which on_failure means otherwise"),
        (steps("- verify: { on_failure: x }"), "3:25", "allowed is stop, continue or a step: verify"),
        (steps("- verify: { attempts: 3 }"), "3:23", "attempts is for an on_failure that names a step"),
        (steps("- verify: { on_failure: verify, attempts: 0 }"), "3:43", "1 to 100"),
        (
            steps("- verify: {}\n- approve: { ask: x, when: verify failed }"),
            "4:28",
            "say `on_failure: continue`",
        ),
        (steps("- approve: { ask: x, when: verify failed }"), "3:28", "there is no step `verify`"),
        (steps("- approve: { ask: x, when: always }"), "3:28", "allowed is `STEP failed`"),
        ("runbook: b\nparams: { x: }\nsteps:\n- wait: { for: 1m }".to_owned(), "2:11", "no step uses `$x`"),
        (
            "runbook: b\nparams: { x: { default: now } }\nsteps:\n- wait: { for: 1m }".to_owned(),
            "2:25",
            "default is `now`, allowed is RFC 3339",
        ),
        (steps("- wait: { for: [1m] }"), "3:16", "here is a list, allowed is a text"),
        (steps("- wait: { for: 1m"), "4:1", ""),
    ] {
        let error = parse(&config, &yaml).err().unwrap_or_default();
        if !error.starts_with(&format!("b.yaml:{place}: ")) || !error.contains(holds) {
            wrong.push(format!("{yaml}\n{place}: {holds}\n{error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

const WHOLE: &str = "
runbook: whole
about: everything that can be said
params:
  from: { about: when it began }
  to: { default: 2026-03-01T02:12:00Z }
steps:
  - wait: { name: ready, until: streaming, lag_seconds_max: 5, timeout: 10m }
  - snapshot: { channels: [tags], again: false, timeout: 2h }
  - verify: { channels: [tags, queue], from: $from - 5m, to: $to, on_failure: continue }
  - approve: { ask: May it be repaired?, when: verify failed }
  - repair: { from: dc, keys_max: 100, share_max: 0.5, when: verify failed, timeout: 1h, on_failure: ready, attempts: 2 }
  - backfill: { from: start of snapshot, to: end of snapshot + 1m }
  - backfill: { name: older, channels: [tags], from: $from, to: $to, time_column: changed, site: cloud }
  - wait: { name: pause, for: 1m }
  - wait: { name: night, at: end of pause + 1h, timeout: 2h }
  - observe: { for: 30m, lag_seconds_max: 10, conflicts_max: 5, on_failure: continue }
";

#[test]
fn a_plan_says_each_step_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let book = parse(&config(folder.path()), WHOLE).unwrap();
    let words: Vec<String> = plan(&book, &BTreeMap::new())
        .into_iter()
        .map(|step| format!("{}: {} | {} | {}", step.name, step.does, step.bounds, step.on_failure))
        .collect();
    let text = words.join("\n");
    for expected in [
        "ready: waits until every direction of all channels is streaming and lags by 5 s at the most | at most 10 min 0 s",
        "snapshot: copies what exists in tags, unless one was made before",
        "what was written from $from - 5m (to be given by --set from=…) to $to",
        "repair: compares both sites in all channels, and carries over what dc has where they differ | at most 1 h 0 min, \
         at most 100 keys of a channel, at most 0.5 % of all keys | the run goes to `ready`, up to 2 times; then it stops",
        "backfill: brings over what was written in tags, queue from start of snapshot to end of snapshot + 1m",
        "older: brings over what was written in tags from $from (to be given by --set from=…) to $to",
        ", by changed at cloud, and compares it",
        "fails at once if that is more than 2 h 0 min away",
        "watches all channels for 30 min 0 s: always streaming, lag at most 10 s, at most 5 new conflicts, at most 0 dead \
         letters and 0 gaps",
    ] {
        assert!(text.contains(expected), "{expected}\nin\n{text}");
    }
    let set = |pairs: &[(&str, &str)]| {
        book.with(&pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>())
    };
    assert!(set(&[]).unwrap_err().contains("`from` (when it began) has no value: say --set from="));
    assert!(set(&[("x", "2026-03-01T02:00:00Z")]).unwrap_err().contains("params are from, to"));
    let late = set(&[("from", "2026-03-01T02:30:00Z")]).unwrap_err();
    assert!(late.contains("step `verify`: the window begins at"), "{late}");
    assert_eq!(set(&[("from", "2026-03-01T02:00:00Z")]).unwrap()["to"], "2026-03-01T02:12:00Z");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever a file holds, it is read or refused.
    #[test]
    fn no_text_panics(text in "(\\PC|[\\n\\t {}\\[\\]:,&*!|>'\"%#-]){0,200}") {
        let folder = tempfile::tempdir().unwrap();
        let _ = parse(&shared_config(folder.path()), &text);
    }

    /// Nor does a good one with pieces moved about.
    #[test]
    fn no_damage_panics(cuts in prop::collection::vec((0usize..1200, 0usize..40, 0usize..1200), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let mut chars: Vec<char> = WHOLE.chars().collect();
        for (from, count, to) in cuts {
            let from = from.min(chars.len());
            let end = (from + count).min(chars.len());
            let piece: Vec<char> = chars.drain(from..end).collect();
            let to = to.min(chars.len());
            chars.splice(to..to, piece);
        }
        let text: String = chars.into_iter().collect();
        if let Err(error) = parse(&shared_config(folder.path()), &text) {
            prop_assert!(error.starts_with("b.yaml:"), "{}", error);
        }
    }
}

/// One for all cases: reading it takes longer than reading a runbook.
fn shared_config(folder: &Path) -> Config {
    static CONFIG: std::sync::OnceLock<Config> = std::sync::OnceLock::new();
    CONFIG.get_or_init(|| config(folder)).clone()
}

/// When the pretended clock begins.
fn epoch() -> SystemTime {
    parse_rfc3339("2026-03-01T02:00:00Z").unwrap()
}

/// A daemon with both channels, on the paused clock.
struct Daemon {
    since: u32,
    first: u64,
    begins: Option<Instant>,
    ends: Option<Instant>,
    begun: u32,
    phase: Phase,
    lag: Option<f64>,
    conflicts: u64,
    dead_letters: u64,
    unreached: bool,
}

type Answers = VecDeque<(i32, u64)>;

struct Fake {
    began: Instant,
    daemon: Mutex<Daemon>,
    /// What programs answer, and after how many seconds; 0 at once when there are no more.
    programs: Mutex<Answers>,
    called: Mutex<Vec<String>>,
    person: Option<bool>,
}

impl Fake {
    fn new() -> Fake {
        let daemon = Daemon {
            since: 0,
            first: 7,
            begins: None,
            ends: None,
            begun: 0,
            phase: Phase::Streaming,
            lag: Some(0.1),
            conflicts: 3,
            dead_letters: 0,
            unreached: false,
        };
        Fake {
            began: Instant::now(),
            daemon: Mutex::new(daemon),
            programs: Mutex::default(),
            called: Mutex::default(),
            person: None,
        }
    }

    fn with_programs(self, answers: &[(i32, u64)]) -> Fake {
        *self.programs.lock().unwrap() = answers.iter().copied().collect();
        self
    }

    fn called(&self) -> Vec<String> {
        self.called.lock().unwrap().clone()
    }
}

impl Daemon {
    fn moves_on(&mut self) {
        let now = Instant::now();
        if self.begins.is_some_and(|at| at <= now) {
            self.begins = None;
            (self.first, self.begun) = (self.first + 100, self.begun + 1);
            self.ends = Some(now + Duration::from_secs(40));
        }
        if self.ends.is_some_and(|at| at <= now) {
            self.ends = None;
        }
    }
}

#[async_trait]
impl World for Fake {
    fn now(&self) -> SystemTime {
        epoch() + self.began.elapsed()
    }

    async fn status(&self) -> Result<Status, String> {
        let mut daemon = self.daemon.lock().unwrap();
        daemon.moves_on();
        if daemon.unreached {
            return Err("no daemon answers".to_owned());
        }
        let direction = |from: &str, to: &str, copies: bool| DirectionStatus {
            from: from.into(),
            to: to.into(),
            phase: if copies && daemon.ends.is_some() { Phase::Snapshot } else { daemon.phase },
            snapshot: Progress { done: 5, total: Some(10) },
            snapshot_first: copies.then_some(daemon.first),
            lag: Lag { changes: Some(0), seconds: daemon.lag },
            applied: 0,
            conflicts: if copies { daemon.conflicts } else { 0 },
            dead_letters: if copies { daemon.dead_letters } else { 0 },
            gaps: 0,
            left_out: 0,
            captured_per_second: 0.0,
            applied_per_second: 0.0,
            held: None,
            error: None,
            warning: None,
            intake: None,
        };
        let channel = |name: &str, copies| ChannelStatus {
            name: name.into(),
            store: "redis".into(),
            state: ChannelState::Running,
            directions: vec![direction("dc", "cloud", copies), direction("cloud", "dc", false)],
            member: None,
        };
        Ok(Status {
            link: "l".into(),
            sites: vec!["dc".into(), "cloud".into()],
            since: daemon.since.to_string(),
            channels: vec![channel("tags", true), channel("queue", false)],
            consumer_group: None,
        })
    }

    async fn snapshot(&self, channel: &str) -> Result<(), Refusal> {
        {
            let mut daemon = self.daemon.lock().unwrap();
            daemon.moves_on();
            if daemon.ends.is_some() {
                return Err(Refusal::No(format!("{channel}: a snapshot is running")));
            }
            // Two requests before it begins are one.
            let soon = Instant::now() + Duration::from_secs(3);
            daemon.begins.get_or_insert(soon);
        }
        // The answer takes a while: a kill may come in between.
        tokio::time::sleep(Duration::from_millis(700)).await;
        Ok(())
    }

    async fn program(
        &self,
        program: Program,
        args: &[String],
        answer: &Path,
        end: &CancellationToken,
    ) -> Result<Exit, String> {
        let args: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.ends_with(".toml")).collect();
        self.called.lock().unwrap().push(format!("{program:?} {}", args.join(" ")));
        let (code, seconds) = self.programs.lock().unwrap().pop_front().unwrap_or((0, 0));
        tokio::select! {
            () = end.cancelled() => return Ok(Exit::Signal(15)),
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
        let json = format!("{{\"equal\":{},\"compared\":10,\"different\":{code}}}", code == 0);
        std::fs::write(answer, json).unwrap();
        Ok(Exit::Code(code))
    }

    async fn ask(&self, _: &str) -> Option<bool> {
        self.person
    }

    fn say(&self, _: &str) {}

    fn live(&self, _: &str) {}
}

fn who() -> Who {
    Who { user: "alice".into(), host: "h".into(), pid: 1 }
}

struct Stage {
    folder: tempfile::TempDir,
    config: Config,
    book: Runbook,
}

impl Stage {
    fn new(steps: &str) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let book = parse(&config, &format!("runbook: b\nsteps:\n{steps}")).unwrap();
        Stage { folder, config, book }
    }

    fn runner<'a>(&'a self, world: &'a Fake, stop: &CancellationToken) -> Runner<'a> {
        let journal = Journal::open(self.folder.path(), "b").unwrap();
        Runner::new(&self.book, &self.config, world, journal, who(), (stop.clone(), &|| "SIGTERM".to_owned()))
    }

    async fn run(&self, world: &Fake) -> (Ended, RunState) {
        let mut runner = self.runner(world, &CancellationToken::new());
        runner.begin(BTreeMap::new()).unwrap();
        let ended = runner.go().await.unwrap();
        (ended, runner.state().clone())
    }

    async fn resume(&self, world: &Fake, approve: bool) -> (Ended, RunState) {
        let mut runner = self.runner(world, &CancellationToken::new());
        runner.resume(approve).unwrap();
        let ended = runner.go().await.unwrap();
        (ended, runner.state().clone())
    }

    fn lines(&self) -> Vec<Line> {
        super::read(self.folder.path(), "b").unwrap().unwrap().0
    }
}

fn words(state: &RunState) -> Vec<(&str, StepWord, u32)> {
    state.steps.iter().map(|step| (step.name.as_str(), step.word, step.attempt)).collect()
}

fn outcome<'s>(state: &'s RunState, name: &str) -> &'s str {
    state
        .steps
        .iter()
        .find(|step| step.name == name)
        .and_then(|step| step.outcome.as_deref())
        .unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_run_does_its_steps_in_order_with_the_windows_that_came_out() {
    let stage = Stage::new(
        "- wait: { until: streaming, timeout: 1m }\n- snapshot: { channels: [tags], timeout: 5m }\n\
         - backfill: { channels: [tags], from: start of snapshot - 5m, to: end of snapshot }\n\
         - verify: { channels: [tags, queue], timeout: 1h }\n- repair: { from: dc, keys_max: 7 }\n\
         - backfill: { name: older, channels: [queue], from: start of snapshot, to: end of snapshot, time_column: at, site: dc }\n\
         - verify: { name: again, channels: [queue], from: start of snapshot, to: end of snapshot, time_column: at }\n\
         - observe: { for: 10m, conflicts_max: 0 }",
    );
    let world = Fake::new();
    let (ended, state) = stage.run(&world).await;
    assert_eq!(ended, Ended::Done, "{state:?}");
    assert!(words(&state).iter().all(|(_, word, attempt)| (*word, *attempt) == (StepWord::Done, 1)));
    let [from, to] = ["2026-03-01T01:55:00.000Z", state.steps[1].ended.as_deref().unwrap()];
    let began = "2026-03-01T02:00:00.000Z";
    assert_eq!(
        world.called(),
        [
            format!("Syncd backfill --config --channel tags --from {from} --to {to} --json"),
            "Verifier check --config --channel tags --json".to_owned(),
            "Verifier check --config --channel queue --json".to_owned(),
            "Verifier repair --config --from dc --keys-max 7 --yes --json".to_owned(),
            format!(
                "Syncd backfill --config --channel queue --from {began} --to {to} --time-column at --site dc --json"
            ),
            format!(
                "Verifier check --config --channel queue --from {began} --to {to} --time-column at --json"
            ),
        ]
    );
    assert_eq!(world.daemon.lock().unwrap().begun, 1);
    assert_eq!(
        outcome(&state, "verify"),
        "tags: equal, 10 compared, 0 different; queue: equal, 10 compared, 0 different"
    );
    assert_eq!(outcome(&state, "observe"), "all was well for 10 min 0 s, 0 new conflicts");
    let took =
        state.steps[7].ended_at().unwrap().duration_since(state.steps[7].started_at().unwrap()).unwrap();
    assert!(took >= Duration::from_secs(600) && took < Duration::from_secs(602), "{took:?}");
    assert!(state.over && matches!(stage.lines().last().unwrap().event, Event::End { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_repaired_only_where_there_is_one() {
    let steps = "- verify: { on_failure: continue }\n- approve: { ask: May it?, when: verify failed }\n\
                 - repair: { from: dc, when: verify failed }\n- verify: { name: proof }";
    let stage = Stage::new(steps);
    let (ended, state) = stage.run(&Fake::new()).await;
    assert_eq!(ended, Ended::Done);
    assert_eq!(words(&state)[1..3], [("approve", StepWord::Skipped, 0), ("repair", StepWord::Skipped, 0)]);

    // With one, a person has to say yes; without a terminal the run stops until then.
    let stage = Stage::new(steps);
    let world = Fake::new().with_programs(&[(1, 0)]);
    let (ended, state) = stage.run(&world).await;
    assert_eq!(ended, Ended::Waits { step: "approve".into() });
    assert_eq!(
        outcome(&state, "approve"),
        "for approval: May it? Say `syncd runbook resume b.yaml --approve`"
    );
    let (ended, _) = stage.resume(&world, false).await;
    assert_eq!(ended, Ended::Waits { step: "approve".into() });
    let (ended, state) = stage.resume(&world, true).await;
    assert_eq!(ended, Ended::Done);
    assert_eq!(state.steps[1].by, Some(who()));
    assert_eq!(words(&state)[2..], [("repair", StepWord::Done, 1), ("proof", StepWord::Done, 1)]);
    assert_eq!(state.failed(), ["verify"]);
    assert!(matches!(&stage.lines().last().unwrap().event, Event::End { failed } if failed == &["verify"]));

    // At a terminal no means no.
    let world = Fake { person: Some(false), ..Fake::new().with_programs(&[(1, 0)]) };
    let (ended, state) = Stage::new(steps).run(&world).await;
    assert_eq!(ended, Ended::Failed { step: "approve".into(), code: 1 });
    assert_eq!(state.steps[1].by, Some(who()));
}

#[tokio::test(start_paused = true)]
async fn failures_lead_where_they_should_and_loops_end() {
    let stage = Stage::new(
        "- wait: { for: 10s }\n- verify: { on_failure: wait, attempts: 3 }\n- observe: { for: 1m }",
    );
    let world = Fake::new().with_programs(&[(1, 1); 9]);
    let (ended, state) = stage.run(&world).await;
    assert_eq!(ended, Ended::Failed { step: "verify".into(), code: 1 });
    assert_eq!(
        words(&state),
        [("wait", StepWord::Done, 4), ("verify", StepWord::Failed, 4), ("observe", StepWord::Pending, 0)]
    );
    assert!(outcome(&state, "verify").starts_with("not equal, 10 compared, 1 different; "));
    // Resumed, it is tried once more; the jumps are used up. 3 is what could not be done.
    *world.programs.lock().unwrap() = [(3, 0)].into();
    let (ended, _) = stage.resume(&world, false).await;
    assert_eq!(ended, Ended::Failed { step: "verify".into(), code: 3 });
    *world.programs.lock().unwrap() = [(0, 0)].into();
    let (ended, state) = stage.resume(&world, false).await;
    assert_eq!((ended, state.steps[1].attempt), (Ended::Done, 6));

    // What could not be done is no "no": nobody may be asked to approve a repair of what was never compared.
    let stage = Stage::new(
        "- verify: { on_failure: continue }\n- approve: { ask: May it?, when: verify failed }\n- verify: { name: proof }",
    );
    let (ended, state) = stage.run(&Fake::new().with_programs(&[(3, 0)])).await;
    assert_eq!(ended, Ended::Failed { step: "verify".into(), code: 3 });
    assert_eq!(state.steps[1].word, StepWord::Pending);
}

#[tokio::test(start_paused = true)]
async fn every_wait_has_an_end() {
    for (steps, code, holds) in [
        ("- wait: { until: streaming, timeout: 1m }", 1, "not so within 1 min 0 s: tags dc->cloud is gap"),
        ("- wait: { lag_seconds_max: 1, timeout: 1m }", 1, "lags by 60.0 s"),
        ("- wait: { at: 2026-03-01T05:00:00Z, timeout: 1h }", 1, "is 3 h 0 min away, more than 1 h 0 min"),
        ("- snapshot: { timeout: 1m }", 1, "not there within 1 min 0 s"),
        ("- verify: { timeout: 1m }", 3, "verifier check did not end within 1 min 0 s"),
        ("- backfill: { from: 2026-03-01T02:00:00Z, to: 2026-03-01T03:00:00Z }", 3, "which is still to come"),
    ] {
        let stage = Stage::new(steps);
        let world = Fake::new().with_programs(&[(0, 9_999)]);
        (world.daemon.lock().unwrap().phase, world.daemon.lock().unwrap().lag) = (Phase::Gap, Some(60.0));
        let (ended, state) = stage.run(&world).await;
        assert!(matches!(ended, Ended::Failed { code: found, .. } if found == code), "{steps}: {ended:?}");
        assert!(state.steps[0].outcome.as_deref().unwrap().contains(holds), "{steps}: {state:?}");
        assert!(world.began.elapsed() < Duration::from_secs(62), "{steps}");
    }
    // Where nobody could look, that is no "no".
    let world = Fake::new();
    world.daemon.lock().unwrap().unreached = true;
    let (ended, state) = Stage::new("- wait: { until: streaming, timeout: 1m }").run(&world).await;
    assert_eq!(ended, Ended::Failed { step: "wait".into(), code: 3 });
    assert!(outcome(&state, "wait").contains("no daemon answers"));
}

#[tokio::test(start_paused = true)]
async fn an_observation_fails_as_soon_as_a_gate_breaks() {
    type Break = fn(&mut Daemon);
    let breaks: [(Break, u8, &str); 7] = [
        (|daemon| daemon.phase = Phase::Gap, 1, "tags dc->cloud is gap (and 3 more)"),
        (|daemon| daemon.lag = Some(6.0), 1, "lags by 6.0 s, allowed are 5 s"),
        (|daemon| daemon.lag = None, 1, "does not know its lag"),
        (|daemon| daemon.conflicts = 9, 1, "6 new conflicts, allowed are 5"),
        // It counts anew after a restart.
        (|daemon| (daemon.since, daemon.conflicts) = (1, 6), 1, "6 new conflicts"),
        (|daemon| daemon.dead_letters = 1, 1, "1 dead letters, allowed are 0"),
        (|daemon| daemon.unreached = true, 3, "no daemon answers"),
    ];
    for (breaks, code, holds) in breaks {
        let stage = Stage::new("- observe: { for: 10m, lag_seconds_max: 5, conflicts_max: 5 }");
        let world = Fake::new();
        let (ran, ()) = tokio::join!(stage.run(&world), async {
            tokio::time::sleep(Duration::from_millis(60_500)).await;
            breaks(&mut world.daemon.lock().unwrap());
        });
        let at = world.began.elapsed();
        assert_eq!(ran.0, Ended::Failed { step: "observe".into(), code }, "{holds}");
        assert!(outcome(&ran.1, "observe").contains(holds), "{holds}: {:?}", ran.1);
        assert!(at < Duration::from_secs(if code == 3 { 95 } else { 63 }), "{holds}: {at:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_signal_stops_the_run_in_an_orderly_way() {
    for steps in
        ["- observe: { for: 10m }", "- verify: {}", "- wait: { for: 10m }", "- snapshot: { timeout: 1h }"]
    {
        let stage = Stage::new(steps);
        let world = Fake::new().with_programs(&[(0, 600)]);
        let stop = CancellationToken::new();
        let mut runner = stage.runner(&world, &stop);
        runner.begin(BTreeMap::new()).unwrap();
        let (ended, ()) = tokio::join!(runner.go(), async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            stop.cancel();
        });
        assert!(matches!(ended.unwrap(), Ended::Stopped { .. }), "{steps}");
        assert_eq!(runner.state().steps[0].word, StepWord::Interrupted, "{steps}");
        assert!(world.began.elapsed() < Duration::from_secs(11), "{steps}");
        drop(runner);
        assert_eq!(stage.resume(&world, false).await.0, Ended::Done, "{steps}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_under_way_is_joined_and_one_that_a_daemon_lost_is_asked_for_again() {
    // The daemon's own first one.
    let stage = Stage::new("- snapshot: { timeout: 1h }");
    let world = Fake::new();
    world.daemon.lock().unwrap().ends = Some(Instant::now() + Duration::from_secs(20));
    assert_eq!(stage.run(&world).await.0, Ended::Done);
    assert_eq!(world.daemon.lock().unwrap().begun, 0);
    assert!(world.began.elapsed() >= Duration::from_secs(20));

    // It had one, and that is enough.
    let stage = Stage::new("- snapshot: { again: false, timeout: 1h }");
    let world = Fake::new();
    assert_eq!(stage.run(&world).await.0, Ended::Done);
    assert_eq!(world.daemon.lock().unwrap().begun, 0);

    // The daemon dies with the request, and another one begins.
    let stage = Stage::new("- snapshot: { timeout: 1h }");
    let world = Fake::new();
    let (ran, ()) = tokio::join!(stage.run(&world), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut daemon = world.daemon.lock().unwrap();
        (daemon.since, daemon.begins) = (1, None);
    });
    assert_eq!((ran.0, world.daemon.lock().unwrap().begun), (Ended::Done, 1));
}

/// The runner dies at any moment, again and again: its future is dropped, as a kill would end it between two system
/// calls. Every step ends up done as one run would have done it, and one snapshot is made.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_killed_anywhere_ends_as_one_that_was_not() {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("CAUSEWAY_SEED={seed}");
    for round in 0..100 {
        let mut random = SmallRng::seed_from_u64(seed + round);
        let stage = Stage::new(
            "- wait: { for: 20s }\n- snapshot: { timeout: 1h }\n- backfill: { from: start of snapshot, to: end of snapshot }\n\
             - observe: { for: 30s }\n- verify: {}\n- repair: { channels: [tags, queue], from: dc }",
        );
        let world = Fake::new().with_programs(&[(0, 7); 60]);
        let mut runner = stage.runner(&world, &CancellationToken::new());
        runner.begin(BTreeMap::new()).unwrap();
        let mut deaths = 0;
        let ended = loop {
            let lives = Duration::from_millis(random.random_range(0..45_000));
            if let Ok(ended) = tokio::time::timeout(lives, runner.go()).await {
                break ended.unwrap();
            }
            deaths += 1;
            assert!(deaths < 1_000, "round {round}");
            drop(runner);
            // The daemon may restart meanwhile, too: what it was only asked for is lost, what it began is not.
            if random.random_bool(0.2) {
                let mut daemon = world.daemon.lock().unwrap();
                daemon.moves_on();
                (daemon.since, daemon.begins) = (daemon.since + 1, None);
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60_000))).await;
            runner = stage.runner(&world, &CancellationToken::new());
            runner.resume(false).unwrap();
        };
        let state = runner.state().clone();
        assert_eq!(ended, Ended::Done, "round {round}");
        for step in &state.steps {
            assert_eq!((step.word, step.attempt), (StepWord::Done, 1), "round {round}: {step:?}");
        }
        assert_eq!(world.daemon.lock().unwrap().begun, 1, "round {round}");
        // In order, each done once, and nothing before it was announced.
        let done: Vec<String> = stage
            .lines()
            .into_iter()
            .filter_map(|line| match line.event {
                Event::Done { step, .. } => Some(step),
                _ => None,
            })
            .collect();
        assert_eq!(done, ["wait", "snapshot", "backfill", "observe", "verify", "repair"], "round {round}");
        // The window does not depend on how often somebody died.
        let windows: Vec<String> =
            world.called().into_iter().filter(|call| call.contains("backfill")).collect();
        let per_channel = |name: &str| {
            let mut calls: Vec<&String> = windows.iter().filter(|call| call.contains(name)).collect();
            calls.dedup();
            calls.len()
        };
        assert_eq!((per_channel("tags"), per_channel("queue")), (1, 1), "round {round}: {windows:?}");
        let ended = state.steps[3].ended_at().unwrap();
        assert!(ended < UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    }
}
