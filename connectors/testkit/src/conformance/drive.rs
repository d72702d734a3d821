//! The two ends of a behaviour: a reader of a source, and an applier into a target.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use causeway_core::{
    Batch, Change, Event, Hlc, Key, Marker, Op, Opened, Outcome, Position, Seq, Site, Source, Target, Term,
    Told,
};

use super::{Subject, TestValue, TestWrite};

/// How long a behaviour waits for one thing to come out of a stream.
const WAIT_MAX: Duration = Duration::from_secs(30);
const BYTES_MAX: usize = 1 << 20;

pub(super) fn set(key: &str, value: &str) -> TestWrite {
    TestWrite::Set(key.into(), value.into())
}

pub(super) fn incr(key: &str) -> TestWrite {
    TestWrite::Incr(key.into(), 1)
}

pub(super) fn push(key: &str, value: &str) -> TestWrite {
    TestWrite::Push(key.into(), value.into())
}

pub(super) fn hset(key: &str, field: &str, value: &str) -> TestWrite {
    TestWrite::HSet(key.into(), field.into(), value.into())
}

pub(super) fn name(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// Reads `site`'s stream.
pub(super) struct Reader {
    pub(super) source: Box<dyn Source>,
    /// Behind the last event.
    pub(super) position: Option<Position>,
}

impl Reader {
    pub(super) fn new(subject: &dyn Subject, site: Site) -> Reader {
        Reader { source: subject.connector().source(site), position: None }
    }

    /// Opens a stream that begins anew.
    pub(super) async fn anew(subject: &dyn Subject, site: Site, snapshot: bool) -> Result<Reader> {
        let mut reader = Reader::new(subject, site);
        let opened = reader.source.open(None, snapshot, Told::new()).await?;
        ensure!(opened == Opened::Anew { lost: None }, "a first open gave {opened:?}");
        Ok(reader)
    }

    /// All events up to one that `last` accepts, and what came together with it.
    pub(super) async fn until(&mut self, what: &str, last: impl Fn(&Event) -> bool) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let reading = async {
            loop {
                let from = events.len();
                self.source.next(&mut events, BYTES_MAX).await?;
                ensure!(events.len() > from, "`next` returned without an event");
                if events[from..].iter().any(&last) {
                    return Ok(());
                }
            }
        };
        let done = tokio::time::timeout(WAIT_MAX, reading).await;
        done.map_err(|_| anyhow!("{what} doesn't come"))??;
        for event in &events {
            self.position = position(event).or(self.position.take());
        }
        Ok(events)
    }

    /// Writes a key of its own at `site` and returns everything that came before it.
    pub(super) async fn up_to_now(
        &mut self,
        subject: &dyn Subject,
        site: Site,
        end: &str,
    ) -> Result<Vec<Event>> {
        subject.write(site, &[set(end, "end")]).await?;
        let is_end = |event: &Event| matches!(event, Event::Change(c) if c.key.name == name(end));
        let mut events = self.until(&format!("the write of {end}"), is_end).await?;
        let at = events.iter().position(is_end).context("it came")?;
        events.truncate(at);
        Ok(events)
    }
}

fn position(event: &Event) -> Option<Position> {
    match event {
        Event::Change(change) => Some(change.pos.clone()),
        Event::Marker { pos, .. }
        | Event::MarkerLost { pos }
        | Event::Idle { pos }
        | Event::SnapshotEnded { pos, .. } => Some(pos.clone()),
        Event::Token(_) | Event::LeftOut { .. } | Event::SnapshotStarted { .. } => None,
    }
}

pub(super) fn changes(events: &[Event]) -> Vec<Change> {
    let change = |event: &Event| match event {
        Event::Change(change) => Some(change.clone()),
        _ => None,
    };
    events.iter().filter_map(change).collect()
}

/// When the changes of an applier begin to be made, milliseconds since 1970: a store may have to tell versions of ours from
/// others by what they can be.
const MADE_FROM: u64 = 1_767_225_600_000;

/// The version of the change with this seq.
fn hlc(seq: u64) -> Hlc {
    Hlc(Hlc::at(MADE_FROM, Site::First).0 + (seq << 9))
}

/// Applies into `site`'s store, with a marker that counts seqs as the log would.
pub(super) struct Applier {
    pub(super) target: Box<dyn Target>,
    pub(super) term: Term,
    pub(super) next: u64,
}

impl Applier {
    /// Takes over at `term`; also what marker was found.
    pub(super) async fn new(
        subject: &dyn Subject,
        site: Site,
        term: u64,
    ) -> Result<(Applier, Option<Marker>)> {
        let mut target = subject.connector().target(site);
        let marker = target.take_over(Term(term)).await?;
        let next = marker.as_ref().map_or(0, |m| m.applied.0);
        Ok((Applier { target, term: Term(term), next }, marker))
    }

    /// The batch of these changes, numbered on from the last.
    pub(super) fn batch(&mut self, mut changes: Vec<Change>) -> Batch {
        let from = Seq(self.next);
        for change in &mut changes {
            change.seq = Seq(self.next);
            change.term = Term(1);
            change.hlc = hlc(self.next);
            self.next += 1;
        }
        let marker = Marker {
            term: self.term,
            applied: Seq(self.next),
            settled: from,
            hlc: hlc(self.next),
            from,
            log: 17,
            ..Marker::default()
        };
        Batch { marker, changes, ..Batch::default() }
    }

    /// Sends a batch and waits for its outcome.
    pub(super) async fn send(&mut self, batch: Batch) -> Result<Outcome> {
        self.target.send(batch).await?;
        self.outcome().await
    }

    pub(super) async fn outcome(&mut self) -> Result<Outcome> {
        let outcome = tokio::time::timeout(WAIT_MAX, self.target.outcome()).await;
        Ok(outcome.map_err(|_| anyhow!("an outcome doesn't come"))??)
    }

    /// Applies all of these, in batches of at most `batch_max`, groups and parts as they come, and expects
    /// that nothing is refused.
    pub(super) async fn apply(&mut self, changes: Vec<Change>) -> Result<()> {
        let mut batch = Vec::new();
        for change in changes {
            let whole = change.group.is_none_or(|g| g.last);
            // Such a one comes alone.
            let alone = |change: &Change| change.op == Op::Ddl;
            if alone(&change) && !batch.is_empty() {
                let batch = self.batch(std::mem::take(&mut batch));
                committed(self.send(batch).await?)?;
            }
            batch.push(change);
            if whole && batch.len() >= 50 || batch.last().is_some_and(alone) {
                let batch = self.batch(std::mem::take(&mut batch));
                committed(self.send(batch).await?)?;
            }
        }
        let batch = self.batch(batch);
        committed(self.send(batch).await?)
    }
}

/// That an outcome is a commit of everything.
pub(super) fn committed(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Committed { refused, existing } if refused.is_empty() && existing.is_empty() => Ok(()),
        other => bail!("expected a commit of everything, got {other:?}"),
    }
}

/// That `key` holds `text` at `site`; `""` for nothing.
pub(super) async fn holds(subject: &dyn Subject, site: Site, key: &str, text: &str) -> Result<()> {
    let found = subject.read(site, key).await?.map(|v| v.text).unwrap_or_default();
    ensure!(found == text, "{key} at the {site:?} site holds {found:?}, expected {text:?}");
    Ok(())
}

/// That both sites hold the same under each of `keys`; the values.
pub(super) async fn equal(subject: &dyn Subject, keys: &[&str]) -> Result<Vec<Option<TestValue>>> {
    let mut values = Vec::new();
    for key in keys {
        let first = subject.read(Site::First, key).await?;
        let second = subject.read(Site::Second, key).await?;
        ensure!(first == second, "{key}: {first:?} at the first site, {second:?} at the second");
        values.push(first);
    }
    Ok(values)
}

/// Writes at the first site, and what came of it out of its stream.
pub(super) async fn captured(subject: &dyn Subject, writes: &[TestWrite]) -> Result<Vec<Change>> {
    let mut reader = Reader::anew(subject, Site::First, false).await?;
    let mut events = Vec::new();
    for write in writes {
        subject.write(Site::First, std::slice::from_ref(write)).await?;
        if !subject.tells_every_write() {
            events.extend(reader.until("a write", |event| matches!(event, Event::Change(_))).await?);
        }
    }
    let more = reader.up_to_now(subject, Site::First, "end:captured").await?;
    events.extend(more);
    let changes = changes(&events);
    ensure!(changes.len() == writes.len(), "{} writes came as {changes:?}", writes.len());
    Ok(changes)
}

/// The keys of changes, as text.
pub(super) fn names(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|c| text(&c.key)).collect()
}

pub(super) fn text(key: &Key) -> String {
    String::from_utf8_lossy(&key.name).into_owned()
}

/// Milliseconds since 1970, so many from now.
pub(super) fn in_ms(ms: u64) -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(ms)
}
