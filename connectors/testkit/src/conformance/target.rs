//! What a target promises.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use causeway_core::{Change, Event, Op, Outcome, Site};

use super::Subject;
use super::drive::{
    Applier, Reader, captured, changes, committed, equal, holds, incr, name, names, push, set, text,
};

const FIRST: Site = Site::First;
const SECOND: Site = Site::Second;

pub(super) async fn a_marker_is_read_back_when_taken_over(subject: &dyn Subject) -> Result<()> {
    let (mut applier, none) = Applier::new(subject, SECOND, 1).await?;
    ensure!(none.is_none(), "a fresh store has the marker {none:?}");
    let batch = applier.batch(captured(subject, &[set("k", "v")]).await?);
    committed(applier.send(batch).await?)?;
    // Also of a batch whose changes were all dropped.
    let mut empty = applier.batch(Vec::new());
    empty.marker.done = vec![7..9, 11..12];
    empty.marker.dropped = vec![causeway_core::Seq(8)];
    let expected = empty.marker.clone();
    committed(applier.send(empty).await?)?;
    ensure!(applier.target.settled() >= expected.applied, "settled is {}", applier.target.settled());

    let (_, found) = Applier::new(subject, SECOND, 2).await?;
    ensure!(found.as_ref() == Some(&expected), "found {found:?}, left {expected:?}");
    let found = applier.target.take_over(causeway_core::Term(3)).await?;
    ensure!(found.as_ref() == Some(&expected), "found {found:?} when it took over again");
    Ok(())
}

/// FF14.
pub(super) async fn our_own_transactions_pass_as_markers_and_are_not_captured(
    subject: &dyn Subject,
) -> Result<()> {
    let of_first = captured(subject, &[set("a", "1"), incr("b"), push("c", "x"), set("a", "2")]).await?;
    let mut reader = Reader::anew(subject, SECOND, false).await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let mut markers = Vec::new();
    // One with several changes, one with one, one with none: a store may show each in a way of its own.
    for changes in [of_first[..3].to_vec(), of_first[3..].to_vec(), Vec::new()] {
        let batch = applier.batch(changes);
        markers.push(batch.marker.to_string());
        committed(applier.send(batch).await?)?;
    }
    let events = reader.up_to_now(subject, SECOND, "end").await?;
    let captured = names(&changes(&events));
    ensure!(captured.is_empty(), "captured our own: {captured:?}");
    let passed: Vec<String> = events
        .iter()
        .filter_map(|e| if let Event::Marker { marker, .. } = e { Some(marker.to_string()) } else { None })
        .collect();
    ensure!(passed == markers, "passed {passed:?}, sent {markers:?}");
    Ok(())
}

pub(super) async fn batches_take_effect_in_the_order_in_which_they_were_sent(
    subject: &dyn Subject,
) -> Result<()> {
    let writes: Vec<_> = (0..200).map(|n| push("list", &n.to_string())).collect();
    let changes = captured(subject, &writes).await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let mut under_way = 0;
    for change in changes {
        let batch = applier.batch(vec![change]);
        applier.target.send(batch).await?;
        under_way += 1;
        if under_way == 40 {
            committed(applier.outcome().await?)?;
            under_way -= 1;
        }
    }
    for _ in 0..under_way {
        committed(applier.outcome().await?)?;
    }
    equal(subject, &["list"]).await?;
    Ok(())
}

pub(super) async fn a_batch_of_an_older_applier_has_no_effect(subject: &dyn Subject) -> Result<()> {
    let changes = captured(subject, &[incr("k"), incr("k")]).await?;
    let (mut older, _) = Applier::new(subject, SECOND, 1).await?;
    let batch = older.batch(changes[..1].to_vec());
    committed(older.send(batch).await?)?;
    let (mut newer, marker) = Applier::new(subject, SECOND, 2).await?;
    let late = older.batch(changes[1..].to_vec());
    match older.send(late).await {
        Err(_) | Ok(Outcome::Touched | Outcome::Rejected { .. }) => {}
        Ok(committed) => bail!("an older applier's batch: {committed:?}"),
    }
    holds(subject, SECOND, "k", "string 1").await?;
    let again = newer.target.take_over(causeway_core::Term(3)).await?;
    ensure!(again == marker, "the marker became {again:?}");
    let batch = newer.batch(changes[1..].to_vec());
    committed(newer.send(batch).await?)?;
    holds(subject, SECOND, "k", "string 2").await
}

/// FF24.
pub(super) async fn each_change_takes_effect_once_whatever_the_link_does(
    subject: &dyn Subject,
) -> Result<()> {
    let writes: Vec<_> = (0..300).map(|n| push("list", &n.to_string())).collect();
    let changes = captured(subject, &writes).await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let mut term = 1;
    while (applier.next as usize) < changes.len() {
        let (mut under_way, mut broken) = (0, false);
        while !broken && under_way < 30 && (applier.next as usize) < changes.len() {
            let batch = applier.batch(vec![changes[applier.next as usize].clone()]);
            broken = applier.target.send(batch).await.is_err();
            under_way += 1;
        }
        // Cut in the midst of batches of which nobody knows whether they took effect.
        for left in (0..under_way).rev() {
            if left == under_way / 2 {
                subject.kill_link(SECOND).await?;
            }
            broken = broken || applier.outcome().await.is_err();
        }
        term += 1;
        (applier, _) = Applier::new(subject, SECOND, term).await?;
    }
    equal(subject, &["list"]).await?;
    Ok(())
}

/// FF45.
pub(super) async fn a_refused_change_names_its_index_and_the_rest_takes_effect(
    subject: &dyn Subject,
) -> Result<()> {
    // A counter at the first site, a list at the second.
    let changes = captured(subject, &[set("a", "1"), incr("k"), set("b", "2")]).await?;
    subject.refuse_strings(SECOND, "k").await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let batch = applier.batch(changes);
    let marker = batch.marker.clone();
    let outcome = applier.send(batch).await?;
    let Outcome::Committed { refused, .. } = &outcome else { bail!("the outcome is {outcome:?}") };
    ensure!(refused.iter().map(|r| r.index).collect::<Vec<_>>() == [1], "refused: {refused:?}");
    holds(subject, SECOND, "a", "string 1").await?;
    holds(subject, SECOND, "b", "string 2").await?;
    holds(subject, SECOND, "k", "list x").await?;
    let (_, found) = Applier::new(subject, SECOND, 2).await?;
    ensure!(found == Some(marker), "the marker is {found:?}");
    Ok(())
}

pub(super) async fn a_read_keeps_what_exists_if_it_is_told_to(subject: &dyn Subject) -> Result<()> {
    subject.write(FIRST, &[set("x", "here")]).await?;
    subject.write(FIRST, &[set("y", "here")]).await?;
    subject.write(SECOND, &[set("x", "there")]).await?;
    let mut reader = Reader::anew(subject, FIRST, true).await?;
    let events = reader.until("the snapshot", |e| matches!(e, Event::SnapshotEnded { .. })).await?;
    let reads: Vec<Change> = changes(&events).into_iter().filter(|change| change.op == Op::Read).collect();
    let x = reads.iter().position(|c| c.key.name == name("x")).context("no read of x")?;

    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let mut batch = applier.batch(reads.clone());
    batch.keep_existing = true;
    let outcome = applier.send(batch).await?;
    let Outcome::Committed { refused, existing } = &outcome else { bail!("the outcome is {outcome:?}") };
    ensure!(refused.is_empty() && *existing == [x], "the outcome is {outcome:?}, x is {x}");
    holds(subject, SECOND, "x", "string there").await?;
    holds(subject, SECOND, "y", "string here").await?;

    applier.apply(reads).await?;
    holds(subject, SECOND, "x", "string here").await
}

pub(super) async fn a_watched_batch_takes_effect_only_if_nobody_touched_its_keys(
    subject: &dyn Subject,
) -> Result<()> {
    let changes = captured(subject, &[incr("k")]).await?;
    let key = changes[0].key.clone();
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    applier.target.watch(std::slice::from_ref(&key)).await?;
    subject.write(SECOND, &[incr("k")]).await?;
    let from = applier.next;
    let mut batch = applier.batch(changes.clone());
    batch.watched = true;
    let outcome = applier.send(batch).await?;
    ensure!(outcome == Outcome::Touched, "of a touched key: {outcome:?}");
    holds(subject, SECOND, "k", "string 1").await?;

    applier.next = from;
    applier.target.watch(&[key]).await?;
    let mut batch = applier.batch(changes.clone());
    batch.watched = true;
    committed(applier.send(batch).await?)?;
    // What is carried is an operation, or what it made of the key.
    let operations = subject.connector().capability().operations;
    holds(subject, SECOND, "k", if operations { "string 2" } else { "string 1" }).await?;
    // A watch holds for one batch.
    subject.write(SECOND, &[incr("k")]).await?;
    let batch = applier.batch(changes);
    committed(applier.send(batch).await?)?;
    holds(subject, SECOND, "k", if operations { "string 4" } else { "string 1" }).await
}

pub(super) async fn a_watch_s_token_passes_behind_all_earlier_writes(subject: &dyn Subject) -> Result<()> {
    let key = captured(subject, &[incr("k")]).await?.remove(0).key;
    let mut reader = Reader::anew(subject, SECOND, false).await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    for _ in 0..5 {
        subject.write(SECOND, &[incr("k")]).await?;
        let token = applier.target.watch(std::slice::from_ref(&key)).await?;
        let events = reader.until("the token", |e| *e == Event::Token(token)).await?;
        let end = events.iter().position(|e| *e == Event::Token(token)).context("it came")?;
        let before = names(&changes(&events[..end]));
        ensure!(before == ["k"], "before the token came {before:?}");
        // Ends the watch.
        let mut batch = applier.batch(Vec::new());
        batch.watched = true;
        committed(applier.send(batch).await?)?;
    }
    Ok(())
}

pub(super) async fn every_key_is_listed_and_none_of_ours(subject: &dyn Subject) -> Result<()> {
    let all: BTreeSet<String> = (0..350).map(|n| format!("key:{n}")).collect();
    for key in &all {
        subject.write(SECOND, &[set(key, "v")]).await?;
    }
    let key = captured(subject, &[incr("key:0")]).await?.remove(0).key;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    let batch = applier.batch(Vec::new());
    committed(applier.send(batch).await?)?;
    applier.target.watch(&[key]).await?;
    let (mut found, mut cursor) = (BTreeSet::new(), 0);
    loop {
        let (keys, next) = applier.target.keys(cursor).await?;
        found.extend(keys.iter().map(text));
        match next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    ensure!(found == all, "{} keys listed of {}: {found:?}", found.len(), all.len());
    Ok(())
}

pub(super) async fn cleanup_leaves_nothing_of_ours(subject: &dyn Subject) -> Result<()> {
    let changes = captured(subject, &[incr("k")]).await?;
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    applier.target.watch(&[changes[0].key.clone()]).await?;
    let mut batch = applier.batch(changes);
    batch.watched = true;
    committed(applier.send(batch).await?)?;
    let connector = subject.connector();
    ensure!(connector.cleanup(SECOND).await? > 0, "there was nothing to remove");
    ensure!(connector.cleanup(SECOND).await? == 0, "the second time there was something left");
    holds(subject, SECOND, "k", "string 1").await?;
    let (_, marker) = Applier::new(subject, SECOND, 2).await?;
    ensure!(marker.is_none(), "the marker {marker:?} is still there");
    Ok(())
}
