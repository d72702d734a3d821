//! What a source and a target promise together.

use anyhow::{Context, Result, ensure};
use causeway_core::{Event, Op, Opened, Site, Told};

use super::drive::{Applier, Reader, captured, changes, equal, holds, in_ms, incr, name, push, set};
use super::{Subject, TestWrite};

const FIRST: Site = Site::First;
const SECOND: Site = Site::Second;

pub(super) async fn the_state_of_an_absent_key_deletes_it(subject: &dyn Subject) -> Result<()> {
    let key = captured(subject, &[push("k", "x")]).await?.remove(0).key;
    subject.write(FIRST, &[TestWrite::Del("k".into())]).await?;
    subject.write(SECOND, &[push("k", "y")]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    let token = reader.source.refresh(vec![key]).await?;
    let events = reader.until("the token", |e| *e == Event::Token(token)).await?;
    let states = changes(&events);
    let states: Vec<_> = states.into_iter().filter(|c| c.op == Op::State).collect();
    ensure!(states.len() == 1 && states[0].value.is_none(), "the states are {states:?}");
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    applier.apply(states).await?;
    holds(subject, SECOND, "k", "").await
}

/// FF19.
pub(super) async fn an_expiry_is_carried_as_absolute_time(subject: &dyn Subject) -> Result<()> {
    let (by_stream, by_state) = (in_ms(3_600_000), in_ms(7_200_000));
    let writes = [set("stream", "v"), TestWrite::ExpireAt("stream".into(), by_stream)];
    let mut all = captured(subject, &writes).await?;
    let key = captured(subject, &[set("state", "v")]).await?.remove(0).key;
    subject.write(FIRST, &[TestWrite::ExpireAt("state".into(), by_state)]).await?;
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    let token = reader.source.refresh(vec![key]).await?;
    all.extend(changes(&reader.until("the token", |e| *e == Event::Token(token)).await?));
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    applier.apply(all).await?;
    let values = equal(subject, &["stream", "state"]).await?;
    let ends: Vec<_> = values.into_iter().map(|v| v.and_then(|v| v.expire_at)).collect();
    ensure!(ends == [Some(by_stream), Some(by_state)], "they end at {ends:?}");
    Ok(())
}

/// FF24, FF44.
pub(super) async fn a_link_cut_on_both_sides_loses_and_doubles_nothing(subject: &dyn Subject) -> Result<()> {
    let mut reader = Reader::anew(subject, FIRST, false).await?;
    let mut log = Vec::new();
    for round in 0..6 {
        let end = format!("end:{round}");
        for n in 0..50 {
            subject.write(FIRST, &[incr("count"), push("list", &format!("{round}-{n}"))]).await?;
            if n == 25 && round % 2 == 1 {
                subject.kill_link(FIRST).await?;
            }
        }
        subject.write(FIRST, &[set(&end, "v")]).await?;
        let is_end = |e: &Event| matches!(e, Event::Change(c) if c.key.name == name(&end));
        loop {
            match reader.until("the end of a round", is_end).await {
                Ok(events) => {
                    log.extend(changes(&events));
                    break;
                }
                Err(error) if error.is::<causeway_core::Error>() => {
                    // What came before the break was not kept: read on from what was.
                    let from = reader.position.clone().context("a position")?;
                    let opened = reader.source.open(Some(&from), true, Told::new()).await?;
                    ensure!(opened == Opened::Resumed, "it was not resumed: {opened:?}");
                }
                Err(error) => return Err(error),
            }
        }
    }
    let (mut applier, _) = Applier::new(subject, SECOND, 1).await?;
    applier.apply(log).await?;
    holds(subject, SECOND, "count", "string 300").await?;
    equal(subject, &["count", "list"]).await?;
    Ok(())
}
