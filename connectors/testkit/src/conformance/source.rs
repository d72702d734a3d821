//! What a source promises.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use causeway_core::{Change, Class, Event, Op, Opened, Position, Site, Told, Unit};

use super::drive::{
    Applier, Reader, captured, changes, equal, holds, hset, in_ms, incr, name, names, push, set,
};
use super::{Subject, TestWrite};

const FIRST: Site = Site::First;

fn is_snapshot_end(event: &Event) -> bool {
    matches!(event, Event::SnapshotEnded { .. })
}

pub(super) async fn a_snapshot_brings_everything_that_exists(subject: &dyn Subject) -> Result<()> {
    let mut keys = vec!["string", "counter", "list", "hash", "ends", "long"];
    subject.write(FIRST, &[set("string", "v")]).await?;
    subject.write(FIRST, &[TestWrite::Incr("counter".into(), 41)]).await?;
    subject.write(FIRST, &[push("list", "b"), push("list", "a")]).await?;
    subject.write(FIRST, &[hset("hash", "f", "1"), hset("hash", "g", "2")]).await?;
    let mut ends = vec![set("ends", "v")];
    if subject.connector().capability().expiry {
        ends.push(TestWrite::ExpireAt("ends".into(), in_ms(3_600_000)));
    }
    subject.write(FIRST, &ends).await?;
    // Long enough that a connector may take it to pieces.
    let long: Vec<_> = (0..2_000).map(|n| push("long", &format!("element-{n:05}"))).collect();
    subject.write(FIRST, &long).await?;
    let many: Vec<String> = (0..300).map(|n| format!("many:{n}")).collect();
    for key in &many {
        subject.write(FIRST, &[set(key, "v")]).await?;
    }
    keys.extend(many.iter().map(String::as_str));

    let mut reader = Reader::anew(subject, FIRST, true).await?;
    let events = reader.until("the snapshot's end", is_snapshot_end).await?;
    let start = events.iter().position(|e| matches!(e, Event::SnapshotStarted { .. }));
    let end = events.iter().position(is_snapshot_end).context("it came")?;
    ensure!(start.is_some_and(|start| start < end), "no start before the end");
    let told = changes(&events[..end]);
    // What makes the tables comes first, where a store has such.
    let reads: Vec<Change> = told.into_iter().skip_while(|change| change.op == Op::Ddl).collect();
    ensure!(reads.iter().all(|c| c.op == Op::Read), "something else than reads in a snapshot");
    let found: BTreeSet<String> = names(&reads).into_iter().collect();
    ensure!(found == keys.iter().map(|k| (*k).to_owned()).collect(), "it named {found:?}");
    if let Event::SnapshotEnded { left_out, .. } = &events[end] {
        ensure!(left_out.0 == 0, "left out: {left_out:?}");
    }

    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(reads).await?;
    let values = equal(subject, &keys).await?;
    ensure!(values.iter().all(Option::is_some), "a key is at neither site");
    Ok(())
}

pub(super) async fn a_stream_goes_on_after_its_snapshot_without_a_hole(subject: &dyn Subject) -> Result<()> {
    let counters = ["c0", "c1", "c2", "c3", "c4"];
    for n in 0..400 {
        subject.write(FIRST, &[set(&format!("filler:{n}"), "v")]).await?;
    }
    // Where writes are requests of their own, fewer take as long.
    let rounds = if subject.tells_every_write() { 600 } else { 150 };
    let writing = async {
        for n in 0..rounds {
            subject.write(FIRST, &[incr(counters[n % 5])]).await?;
            subject.write(FIRST, &[push("list", &n.to_string())]).await?;
            tokio::task::yield_now().await;
        }
        subject.write(FIRST, &[set("end", "v")]).await
    };
    let reading = async {
        let mut reader = Reader::anew(subject, FIRST, true).await?;
        // The snapshot may hold the last write already.
        let mut events = reader.until("the snapshot's end", is_snapshot_end).await?;
        let is_end = |e: &Event| matches!(e, Event::Change(c) if c.key.name == name("end"));
        if !events.iter().any(is_end) {
            events.extend(reader.until("the last write", is_end).await?);
        }
        anyhow::Ok(events)
    };
    let (written, events) = tokio::join!(writing, reading);
    written?;
    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(changes(&events?)).await?;
    for counter in counters {
        holds(subject, Site::Second, counter, &format!("string {}", rounds / 5)).await?;
    }
    equal(subject, &["list", "c0", "end", "filler:399"]).await?;
    Ok(())
}

pub(super) async fn a_stream_without_a_snapshot_brings_what_is_new(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[set("old", "v")]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    subject.write(FIRST, &[set("new", "v")]).await?;
    let events = reader.up_to_now(subject, FIRST, "end").await?;
    let found = names(&changes(&events));
    ensure!(found == ["new"], "it named {found:?}");
    Ok(())
}

pub(super) async fn a_stream_resumes_with_exactly_what_was_missed(subject: &dyn Subject) -> Result<()> {
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    subject.write(FIRST, &[incr("k")]).await?;
    reader.up_to_now(subject, FIRST, "end:1").await?;
    let durable = reader.position.clone().context("a position")?;
    reader.source.acknowledge(&durable);
    let from = reader.source.restart_point(&durable);

    subject.kill_link(FIRST).await?;
    for _ in 0..10 {
        subject.write(FIRST, &[incr("k")]).await?;
    }
    // The same source again, and one that another process would have: both bring the same.
    for mut again in [reader, Reader::new(subject, FIRST)] {
        let opened = again.source.open(Some(&from), true, Told::new()).await?;
        ensure!(opened == Opened::Resumed, "it was not resumed: {opened:?}");
        let is_third = |e: &Event| matches!(e, Event::Change(c) if c.key.name == name("end:2"));
        if subject.read(FIRST, "end:2").await?.is_none() {
            subject.write(FIRST, &[set("end:2", "v")]).await?;
        }
        let events = again.until("what was missed", is_third).await?;
        let found = names(&changes(&events));
        let times = if subject.tells_every_write() { 10 } else { 1 };
        let mut expected = vec!["k".to_owned(); times];
        expected.push("end:2".into());
        ensure!(found == expected, "after the resume came {found:?}");
        ensure!(!events.iter().any(is_snapshot_end), "a snapshot came though it resumed");
    }
    Ok(())
}

pub(super) async fn a_lost_position_is_told(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[set("k", "v")]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    reader.up_to_now(subject, FIRST, "end").await?;
    let real = reader.position.clone().context("a position")?;
    let history = "0123456789abcdef0123456789abcdef01234567";
    let gone = Position { history: name(history), ..real };
    let mut reader = Reader::new(subject, FIRST);
    let opened = reader.source.open(Some(&gone), true, Told::new()).await?;
    ensure!(matches!(opened, Opened::Anew { lost: Some(_) }), "it said {opened:?}");
    let events = reader.until("the snapshot's end", is_snapshot_end).await?;
    ensure!(names(&changes(&events)).contains(&"k".to_owned()), "the snapshot lacks a key");
    Ok(())
}

pub(super) async fn a_transaction_comes_as_one_group(subject: &dyn Subject) -> Result<()> {
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    subject.write(FIRST, &[set("a", "1"), incr("b"), push("c", "x")]).await?;
    let events = reader.up_to_now(subject, FIRST, "end").await?;
    let group = changes(&events);
    ensure!(names(&group) == ["a", "b", "c"], "it named {:?}", names(&group));
    let groups: Vec<_> = group.iter().map(|c| c.group).collect();
    let id = groups[0].context("no group")?.id;
    for (n, group) in groups.iter().enumerate() {
        let group = group.context("no group")?;
        let right = group.id == id && group.n as usize == n && group.last == (n == 2);
        ensure!(right, "its groups are {groups:?}");
    }
    ensure!(group.iter().all(|c| c.pos == group[2].pos), "its changes have several positions");

    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(group).await?;
    equal(subject, &["a", "b", "c"]).await?;
    Ok(())
}

/// FF43.
pub(super) async fn an_idle_stream_moves_its_position(subject: &dyn Subject) -> Result<()> {
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    reader.up_to_now(subject, FIRST, "end").await?;
    let written = reader.position.clone().context("a position")?;
    let is_idle = |e: &Event| matches!(e, Event::Idle { pos } if pos.at >= written.at);
    reader.until("an idle stream's position", is_idle).await?;
    let idle = reader.position.clone().context("a position")?;
    ensure!(idle.history == written.history, "the history changed");

    let mut again = Reader::new(subject, FIRST);
    let opened = again.source.open(Some(&idle), true, Told::new()).await?;
    ensure!(opened == Opened::Resumed, "it was not resumed: {opened:?}");
    let events = again.up_to_now(subject, FIRST, "end:2").await?;
    ensure!(changes(&events).is_empty(), "something came twice: {:?}", names(&changes(&events)));
    Ok(())
}

/// FF18.
pub(super) async fn a_refreshed_state_stands_where_it_was_read(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[incr("k"), push("l", "first")]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    let keys: Vec<_> = captured(subject, &[incr("k"), push("l", "second")]).await?;
    let keys: Vec<_> = keys.into_iter().map(|c| c.key).collect();
    let writing = async {
        for n in 0..500 {
            subject.write(FIRST, &[incr("k")]).await?;
            subject.write(FIRST, &[push("l", &n.to_string())]).await?;
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    let reading = async {
        let mut events = Vec::new();
        for _ in 0..20 {
            let token = reader.source.refresh(keys.clone()).await?;
            let came = reader.until("the token of a refresh", |e| *e == Event::Token(token)).await?;
            let end = came.iter().position(|e| *e == Event::Token(token)).context("it came")?;
            let states = changes(&came[..end]).iter().filter(|c| c.op == Op::State).count();
            ensure!(states >= keys.len(), "{states} states before the token");
            events.extend(came);
        }
        anyhow::Ok(events)
    };
    let (written, events) = tokio::join!(writing, reading);
    written?;
    let mut events = events?;
    events.extend(reader.up_to_now(subject, FIRST, "end").await?);
    // The first state makes up for what was there before; each later one would show a hole or a double.
    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(changes(&events)).await?;
    holds(subject, Site::Second, "k", "string 502").await?;
    equal(subject, &["k", "l"]).await?;
    Ok(())
}

/// A write whose outcome has to be read, of a key of which a state was asked for, too.
pub(super) async fn what_was_asked_for_is_told_from_what_was_written(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[set("from", "new")]).await?;
    let keys: Vec<_> = captured(subject, &[set("to", "old")]).await?.into_iter().map(|c| c.key).collect();
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    let token = reader.source.refresh(keys).await?;
    subject.write(FIRST, &[TestWrite::Rename("from".into(), "to".into())]).await?;
    let mut events = reader.until("the token of a refresh", |e| *e == Event::Token(token)).await?;
    let of_key = |e: &Event, uncertain| matches!(e, Event::Change(c) if c.key.name == name("to") && c.uncertain == uncertain);
    ensure!(events.iter().any(|e| of_key(e, true)), "nothing came as asked for: {events:?}");
    if !events.iter().any(|e| of_key(e, false)) {
        events.extend(reader.until("what was written", |e| of_key(e, false)).await?);
    }
    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(changes(&events)).await?;
    holds(subject, Site::Second, "to", "string new").await?;
    equal(subject, &["from", "to"]).await?;
    Ok(())
}

/// The outcome of a write is not read again where the log has it from before a break.
pub(super) async fn what_the_log_tells_of_is_not_read_again(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[set("from", "new")]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    reader.up_to_now(subject, FIRST, "end:1").await?;
    let from = reader.source.restart_point(&reader.position.clone().context("a position")?);
    subject.write(FIRST, &[TestWrite::Rename("from".into(), "to".into())]).await?;
    let is_to = |e: &Event| matches!(e, Event::Change(c) if c.key.name == name("to"));
    let events = reader.until("what was written", is_to).await?;
    let told = changes(&events).into_iter().find(|c| c.key.name == name("to")).context("it came")?;
    subject.write(FIRST, &[set("end:2", "v")]).await?;
    // What is told of at that place only, or not at all, may have been written since.
    for (at, again) in [(told.pos.at, false), (from.at, true)] {
        let mut reader = Reader::new(subject, FIRST);
        let opened = reader.source.open(Some(&from), true, [(told.key.clone(), at)].into()).await?;
        ensure!(opened == Opened::Resumed, "it was not resumed: {opened:?}");
        let is_end = |e: &Event| matches!(e, Event::Change(c) if c.key.name == name("end:2"));
        let mut events = reader.until("what came after it", is_end).await?;
        if again && !events.iter().any(is_to) {
            events.extend(reader.until("what was written", is_to).await?);
        }
        events.extend(reader.up_to_now(subject, FIRST, if again { "end:4" } else { "end:3" }).await?);
        ensure!(events.iter().any(is_to) == again, "told at {at}: {events:?}");
    }
    Ok(())
}

/// FF20.
pub(super) async fn an_expired_key_comes_as_a_delete(subject: &dyn Subject) -> Result<()> {
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    subject.write(FIRST, &[set("k", "v"), TestWrite::ExpireAt("k".into(), in_ms(200))]).await?;
    let is_delete =
        |e: &Event| matches!(e, Event::Change(c) if c.op == Op::Delete && c.key.name == name("k"));
    let events = reader.until("the delete", is_delete).await?;
    let (mut applier, _) = Applier::new(subject, Site::Second, 1).await?;
    applier.apply(changes(&events)).await?;
    equal(subject, &["k"]).await?;
    Ok(())
}

pub(super) async fn units_say_what_a_change_touches(subject: &dyn Subject) -> Result<()> {
    let writes = [
        set("set", "v"),
        incr("count"),
        push("list", "e"),
        hset("hash", "f", "v"),
        hset("hash", "g", "v"),
        TestWrite::HIncr("hash".into(), "n".into(), 2),
        TestWrite::HIncr("hash".into(), "f2".into(), 2),
        TestWrite::Del("hash".into()),
    ];
    let operations = subject.connector().capability().operations;
    let by_operation = [
        vec![Class::Absolute],
        vec![Class::Commuting],
        vec![Class::Other],
        vec![Class::Absolute],
        vec![Class::Absolute],
        vec![Class::Commuting],
        vec![Class::Commuting],
        // A store with versions of its own keeps a delete absolute.
        vec![Class::Observed, Class::Absolute],
    ];
    let expected = by_operation.map(|classes| if operations { classes } else { vec![Class::Absolute] });
    let connector = subject.connector();
    let changes = captured(subject, &writes).await?;
    let units: Vec<Vec<(Unit, Class)>> = changes.iter().map(|c| connector.units(c)).collect();
    for (n, (units, classes)) in units.iter().zip(expected).enumerate() {
        let write = &writes[n];
        ensure!(!units.is_empty(), "{write:?} touches nothing");
        ensure!(units.iter().all(|(u, _)| u.key == changes[n].key), "{write:?} touches another key");
        ensure!(units.iter().any(|(_, c)| classes.contains(c)), "{write:?} is {units:?}");
    }
    let overlap =
        |a: usize, b: usize| units[a].iter().any(|(x, _)| units[b].iter().any(|(y, _)| x.overlaps(y)));
    for (a, b, expected) in [
        (0, 1, false), // two keys
        (0, 0, true),
        (3, 3, true),        // a field and itself
        (3, 4, !operations), // two fields
        (3, 5, !operations),
        (5, 6, !operations),
        (3, 7, true), // a field and its key's delete
        (5, 7, true),
    ] {
        ensure!(overlap(a, b) == expected, "{:?} and {:?}: overlap is not {expected}", writes[a], writes[b]);
    }
    Ok(())
}
