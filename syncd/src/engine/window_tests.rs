use std::path::Path;
use std::sync::Arc;

use causeway_core::{Position, Seq, Term};
use causeway_memory::Memory;

use super::super::restart::{RestartPoint, position_record};
use super::*;
use crate::log::{EmbeddedLog, EmbeddedOptions};

/// Seconds, in milliseconds since 1970.
const fn at(second: u64) -> u64 {
    1_000_000_000 + second * 1_000
}

fn key(name: &str) -> Key {
    Key { space: Space::Whole, name: name.to_owned().into() }
}

/// A log of which each record is told in turn.
struct Story {
    log: Arc<EmbeddedLog>,
    id: PartitionId,
    seq: u64,
    term: Term,
    current: u64,
}

impl Story {
    async fn begin(dir: &Path) -> Story {
        let id = PartitionId { channel: "push".to_owned(), origin: "dc".to_owned(), number: 0 };
        let options = EmbeddedOptions {
            age_min: Duration::ZERO,
            segment_bytes: 8 << 10,
            block_bytes: 1 << 10,
            ..EmbeddedOptions::default()
        };
        let log = EmbeddedLog::open(dir, options).await.unwrap();
        Story { log, id, seq: 0, term: Term(0), current: 0 }
    }

    async fn append(&mut self, change: Change) {
        let change = Change { seq: Seq(self.seq), term: self.term, ..change };
        self.seq += u64::from(change.op != Op::Fence);
        self.log.append(&self.id, vec![change]).await.unwrap().await.unwrap();
    }

    async fn fence(&mut self) {
        self.term = self.log.bounds(&self.id).end.into();
        self.append(Change::captured(Op::Fence, Key::none(), None, Position::default(), 0)).await;
    }

    /// At `second` the store was read up to what it did before `current`.
    async fn position(&mut self, second: u64, current: Option<u64>) {
        self.current = current.map_or(self.current, at);
        let point = RestartPoint { current: self.current, ..RestartPoint::default() };
        self.append(position_record(&point, Position::default(), at(second))).await;
    }

    async fn op(&mut self, op: Op, name: &str, hlc: u64) {
        let change = Change::captured(op, key(name), Some("v".into()), Position::default(), 0);
        self.append(Change { hlc: Hlc(hlc), ..change }).await;
    }

    async fn put(&mut self, name: &str) {
        self.op(Op::Put, name, 1).await;
    }

    /// A second with one write in it, read as it was made.
    async fn second(&mut self, second: u64) {
        self.put(&format!("key:{second}")).await;
        self.position(second, Some(second)).await;
    }

    async fn named(&self, window: Range<u64>) -> Result<(Vec<String>, u64), Unknown> {
        let connector = Memory::new();
        let names = Names { log: &*self.log, partition: &self.id, connector: &connector };
        let (out, mut told) = mpsc::channel(1);
        let walk = async {
            let walked =
                names.of_window(at(window.start)..at(window.end), Duration::from_millis(50), &out).await;
            drop(out);
            walked
        };
        let listen = async {
            let mut named = Vec::new();
            while let Some(some) = told.recv().await {
                named.extend(some);
            }
            named
        };
        let (walked, named) = tokio::join!(walk, listen);
        let text = |named| match named {
            Named::Key(key) => String::from_utf8_lossy(&key.name).into_owned(),
            Named::Space(space) => format!("{space:?}"),
        };
        Ok((named.into_iter().map(text).collect(), walked?))
    }
}

/// Whether `named` has every key of `[from, to)`, and none that is more than the slack away.
fn holds(named: &[String], seconds: Range<u64>) {
    for second in seconds.clone() {
        assert!(named.contains(&format!("key:{second}")), "{second} of {seconds:?}: {named:?}");
    }
    let slack = SLACK_MS / 1000 + 2;
    let near = seconds.start.saturating_sub(slack)..seconds.end + slack;
    for name in named {
        let second: u64 = name.trim_start_matches("key:").parse().unwrap();
        assert!(near.contains(&second), "{name} is far from {seconds:?}");
    }
}

#[tokio::test]
async fn what_was_written_in_a_window_is_named_wherever_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    for second in 0..400 {
        if second % 90 == 0 {
            story.fence().await;
        }
        story.second(second).await;
    }
    for window in [0..5, 3..4, 100..101, 89..95, 200..390, 395..400, 0..400] {
        let (named, current) = story.named(window.clone()).await.unwrap();
        holds(&named, window.clone());
        assert!(current >= at(window.end.min(399)), "{window:?}: {current}");
    }
    let (named, current) = story.named(390..500).await.unwrap();
    holds(&named, 390..400);
    assert_eq!(current, at(399), "nothing is known of what comes later");
}

/// What was written while nobody read stands in the log when somebody did again.
#[tokio::test]
async fn a_backlog_is_named_for_the_time_in_which_it_may_have_been_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    story.fence().await;
    for second in 0..100 {
        story.second(second).await;
    }
    // From 100 on the daemon is away; from 300 on it reads the backlog, for 50 seconds.
    story.fence().await;
    for second in 300..350 {
        story.put(&format!("backlog:{second}")).await;
        story.position(second, None).await;
    }
    for second in 350..400 {
        story.second(second).await;
    }
    let (named, _) = story.named(200..210).await.unwrap();
    for second in 300..350 {
        assert!(named.contains(&format!("backlog:{second}")), "{second}");
    }
    assert!(!named.contains(&"key:399".to_owned()) && !named.contains(&"key:50".to_owned()), "{named:?}");
    let (named, _) = story.named(380..390).await.unwrap();
    holds(&named, 380..390);
}

#[tokio::test]
async fn rows_of_a_snapshot_are_not_written_and_what_has_no_name_is_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    story.fence().await;
    story.op(Op::Read, "row", 0).await;
    story.op(Op::State, "state", 1).await;
    story.op(Op::Delete, "gone", 1).await;
    story.op(Op::Refresh, "asked", 1).await;
    story.append(Change::captured(Op::Ddl, Key::none(), None, Position::default(), 0)).await;
    story.put("row").await;
    story.put("row").await;
    story.position(5, Some(5)).await;
    let (named, _) = story.named(0..5).await.unwrap();
    assert_eq!(named, ["state", "gone", "Whole", "row"]);
}

#[tokio::test]
async fn what_an_older_reign_wrote_behind_a_fence_is_not_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    story.fence().await;
    story.second(1).await;
    let old = story.term;
    story.fence().await;
    let new = std::mem::replace(&mut story.term, old);
    story.put("void").await;
    story.position(9, Some(9)).await;
    story.term = new;
    story.current = at(1);
    story.put("real").await;
    story.position(10, Some(10)).await;
    let (named, _) = story.named(1..8).await.unwrap();
    assert_eq!(named, ["key:1", "real"], "what it said of its stream is not true of the log");
}

#[tokio::test]
async fn a_window_that_retention_has_taken_is_no_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    for second in 0..400 {
        if second % 10 == 0 {
            story.fence().await;
        }
        story.second(second).await;
    }
    let end = story.log.bounds(&story.id).end;
    story.log.trim(&story.id, Offset(end.0 / 2)).await.unwrap();
    assert!(story.log.bounds(&story.id).start > Offset(0));
    match story.named(5..10).await.unwrap_err() {
        Unknown::Gone { since, .. } => assert!((at(50)..at(250)).contains(&since), "{since}"),
        error => panic!("{error}"),
    }
    holds(&story.named(300..310).await.unwrap().0, 300..310);
}

#[tokio::test]
async fn the_newest_write_of_a_key_is_the_one_with_the_highest_version() {
    let dir = tempfile::tempdir().unwrap();
    let mut story = Story::begin(dir.path()).await;
    story.fence().await;
    for (op, name, hlc) in
        [(Op::Put, "a", 7), (Op::Put, "a", 9), (Op::State, "a", 8), (Op::Read, "b", 0), (Op::Put, "c", 3)]
    {
        story.op(op, name, hlc).await;
    }
    let connector = Memory::new();
    let names = Names { log: &*story.log, partition: &story.id, connector: &connector };
    let last = names.last(&["c", "a", "b", "d"].map(key)).await.unwrap();
    assert_eq!(last, [Some(Hlc(3)), Some(Hlc(9)), None, None]);
}
