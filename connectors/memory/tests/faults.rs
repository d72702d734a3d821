//! What the faults do, as an engine sees it.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use causeway_core::{
    Batch, Change, Connector, ErrorKind, Event, Marker, Opened, Outcome, Position, Seq, Site, Target, Term,
    Told,
};
use causeway_memory::{Fault, Memory};

const HERE: Site = Site::First;

/// The change that the stream makes of `command`.
async fn change(command: &str) -> Change {
    let memory = Memory::new();
    let mut source = memory.source(HERE);
    source.open(None, false, Told::new()).await.unwrap();
    memory.write(HERE, &[command]).unwrap();
    let mut events = Vec::new();
    source.next(&mut events, usize::MAX).await.unwrap();
    match events.remove(0) {
        Event::Change(change) => change,
        other => panic!("{other:?}"),
    }
}

async fn batch(applied: u64, commands: &[&str]) -> Batch {
    let mut changes = Vec::new();
    for command in commands {
        changes.push(change(command).await);
    }
    let marker = Marker { applied: Seq(applied), ..Marker::default() };
    Batch { marker, changes, ..Batch::default() }
}

async fn taken(memory: &Memory) -> (Box<dyn Target>, Option<Marker>) {
    let mut target = memory.target(HERE);
    let marker = target.take_over(Term(1)).await.unwrap();
    (target, marker)
}

#[tokio::test]
async fn a_cut_after_a_commit_leaves_its_marker_and_no_outcome() {
    let memory = Memory::new();
    let (mut target, _) = taken(&memory).await;
    memory.inject(HERE, Fault::CutAfter(2));
    target.send(batch(1, &["INCRBY k 1"]).await).await.unwrap();
    assert!(matches!(target.outcome().await, Ok(Outcome::Committed { .. })));
    target.send(batch(2, &["INCRBY k 1"]).await).await.unwrap();
    assert_eq!(target.outcome().await.unwrap_err().kind(), ErrorKind::Retry);
    assert_eq!(taken(&memory).await.1.map(|m| m.applied), Some(Seq(2)));
    assert_eq!(memory.read(HERE, "k").unwrap().0, "string 2");
}

#[tokio::test]
async fn a_full_store_is_the_servers_fault_and_a_rejected_batch_the_changes() {
    let memory = Memory::new();
    let (mut target, _) = taken(&memory).await;
    memory.inject(HERE, Fault::Full);
    target.send(batch(1, &["SET a 1"]).await).await.unwrap();
    assert!(matches!(target.outcome().await, Ok(Outcome::Rejected { transient: true, .. })));
    memory.clear(HERE);
    memory.inject(HERE, Fault::Reject("bad".into()));
    target.send(batch(1, &["SET a 1", "SET bad 1"]).await).await.unwrap();
    assert!(matches!(target.outcome().await, Ok(Outcome::Rejected { transient: false, .. })));
    assert!(memory.dump(HERE).is_empty());
    assert_eq!(taken(&memory).await.1, None);
}

#[tokio::test]
async fn a_slow_store_commits_late_and_in_order() {
    let memory = Memory::new();
    let (mut target, _) = taken(&memory).await;
    memory.inject(HERE, Fault::Slow(Duration::from_millis(50)));
    target.send(batch(1, &["RPUSH k a"]).await).await.unwrap();
    memory.clear(HERE);
    target.send(batch(2, &["RPUSH k b"]).await).await.unwrap();
    assert_eq!(memory.read(HERE, "k"), None);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(matches!(target.outcome().await, Ok(Outcome::Committed { .. })));
    }
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(memory.read(HERE, "k").unwrap().0, "list a b");
}

/// FF25.
#[tokio::test]
async fn a_store_that_comes_back_older_has_its_older_marker_and_another_history() {
    let memory = Memory::new();
    let (mut target, _) = taken(&memory).await;
    target.send(batch(1, &["SET k old"]).await).await.unwrap();
    memory.save(HERE);
    target.send(batch(2, &["SET k new"]).await).await.unwrap();
    let mut source = memory.source(HERE);
    source.open(None, false, Told::new()).await.unwrap();
    memory.write(HERE, &["SET k local"]).unwrap();
    let position = position_of_next(&mut *source).await;

    memory.restart_older(HERE);
    assert_eq!(source.next(&mut Vec::new(), 1).await.unwrap_err().kind(), ErrorKind::Retry);
    let opened = source.open(Some(&position), true, Told::new()).await.unwrap();
    assert!(matches!(opened, Opened::Anew { lost: Some(_) }));
    assert_eq!(taken(&memory).await.1.map(|m| m.applied), Some(Seq(1)));
    assert_eq!(memory.read(HERE, "k").unwrap().0, "string old");
}

/// FF03.
#[tokio::test]
async fn an_overrun_backlog_is_a_lost_position() {
    let memory = Memory::new();
    let mut source = memory.source(HERE);
    source.open(None, false, Told::new()).await.unwrap();
    memory.write(HERE, &["SET k 0"]).unwrap();
    let position = position_of_next(&mut *source).await;
    memory.limit_backlog(HERE, Some(5));
    for n in 0..10 {
        memory.write(HERE, &[&format!("SET k {n}")]).unwrap();
    }
    let opened = source.open(Some(&position), false, Told::new()).await.unwrap();
    assert!(matches!(opened, Opened::Anew { lost: Some(_) }));
}

#[tokio::test]
async fn a_stopped_store_lets_nobody_in_until_it_is_started() {
    let memory = Memory::new();
    memory.stop(HERE);
    assert_eq!(memory.source(HERE).open(None, true, Told::new()).await.unwrap_err().kind(), ErrorKind::Retry);
    assert_eq!(memory.target(HERE).take_over(Term(1)).await.unwrap_err().kind(), ErrorKind::Retry);
    memory.start(HERE);
    assert!(memory.source(HERE).open(None, true, Told::new()).await.is_ok());
}

/// FF23.
#[tokio::test]
async fn a_flush_comes_as_ddl_and_says_that_the_marker_is_gone() {
    let memory = Memory::new();
    let (mut target, _) = taken(&memory).await;
    target.send(batch(1, &["SET k v"]).await).await.unwrap();
    let mut source = memory.source(HERE);
    source.open(None, false, Told::new()).await.unwrap();
    memory.write(HERE, &["FLUSHALL"]).unwrap();
    let mut events = Vec::new();
    source.next(&mut events, usize::MAX).await.unwrap();
    assert!(matches!(&events[..], [Event::Change(_), Event::MarkerLost { .. }]), "{events:?}");
    assert_eq!(taken(&memory).await.1, None);
}

async fn position_of_next(source: &mut dyn causeway_core::Source) -> Position {
    let mut events = Vec::new();
    source.next(&mut events, usize::MAX).await.unwrap();
    match events.last() {
        Some(Event::Change(change)) => change.pos.clone(),
        other => panic!("{other:?}"),
    }
}
