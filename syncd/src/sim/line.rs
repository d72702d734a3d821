//! Puts a line between the engine and the stores in memory: everything takes time, what is on its way when
//! a connection breaks arrives or does not, and what a dead process had sent may still take effect.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use causeway_core::{
    Batch, Capability, Change, Class, Connector, Error, Event, Finding, Key, Keys, Marker, Op, Opened,
    Outcome, Position, Result, Seq, Site, Source, Target, Term, Token, Told, Unit,
};
use causeway_memory::Memory;
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::world::{Step, World, name, show};

/// Events that are on their way at the most.
const ON_THE_WAY: usize = 4_096;

pub(super) struct Line {
    pub(super) world: Arc<World>,
    pub(super) memory: Memory,
}

fn broken(action: &str) -> Error {
    Error::Unavailable { action: action.into(), endpoint: "line".into(), source: "the line broke".into() }
}

#[async_trait]
impl Connector for Line {
    fn store(&self) -> &'static str {
        "memory"
    }

    fn capability(&self) -> Capability {
        self.memory.capability()
    }

    fn source(&self, site: Site) -> Box<dyn Source> {
        Box::new(SlowSource {
            world: Arc::clone(&self.world),
            site,
            inner: self.memory.source(site),
            fresh: Vec::new(),
            open_from: 0,
            opened: VecDeque::new(),
            on_the_way: VecDeque::new(),
            current: [0; 2],
            failed: None,
        })
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        Box::new(SlowTarget {
            world: Arc::clone(&self.world),
            memory: self.memory.clone(),
            site,
            link: None,
            front: None,
            settled: Seq(0),
        })
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        self.memory.units(change)
    }

    fn content(&self, change: &Change) -> Option<u128> {
        self.memory.content(change)
    }

    fn carries(&self, key: &Key) -> bool {
        self.memory.carries(key)
    }

    fn intake(&self, line: &[u8]) -> std::result::Result<Change, String> {
        self.memory.intake(line)
    }

    async fn check(&self, sites: &[Site]) -> Result<Vec<Finding>> {
        self.world.take_time(Step::Connect, Site::First).await;
        self.memory.check(sites).await
    }

    async fn cleanup(&self, site: Site) -> Result<u64> {
        self.memory.cleanup(site).await
    }
}

struct SlowSource {
    world: Arc<World>,
    site: Site,
    inner: Box<dyn Source>,
    fresh: Vec<Event>,
    /// From where the store would have been read again before it brought `fresh`.
    open_from: u64,
    on_the_way: VecDeque<(Instant, Event)>,
    /// Up to when the store told all that is on the way, and up to when that has come.
    current: [u64; 2],
    /// Of what is read again and on the way: from where it would have to be read.
    opened: VecDeque<u64>,
    /// What comes behind that.
    failed: Option<Error>,
}

impl SlowSource {
    /// Sends on their way what the store brought.
    fn leave(&mut self) {
        let last = self.on_the_way.back().map(|(due, _)| *due);
        let mut due = Instant::now() + self.world.draw(Step::Stream, self.site);
        due = last.map_or(due, |last| due.max(last));
        for event in self.fresh.drain(..) {
            if ends_reread(&event) {
                self.opened.push_back(self.open_from);
            }
            if self.world.random(|random| random.chance(100)) {
                due += self.world.draw(Step::Stream, self.site);
            }
            if self.world.row_max > 0 && matches!(&event, Event::Change(change) if change.op == Op::Read) {
                due += Duration::from_millis(self.world.random(|random| random.below(self.world.row_max)));
            }
            self.on_the_way.push_back((due, event));
        }
    }

    fn tell(&self, event: &Event) {
        let site = self.site.index();
        match event {
            Event::Change(change) => {
                self.world.note_key(name(change), || format!("{site} captures {}", show(change)));
            }
            Event::Idle { .. } | Event::Token(_) => {}
            Event::Marker { marker, pos } => {
                self.world.note(|| format!("{site} captures the marker {marker} at {pos}"));
            }
            Event::SnapshotStarted { pos, .. } => {
                self.world.note(|| format!("{site} captures a snapshot's begin at {pos}"));
            }
            Event::SnapshotEnded { pos, .. } => {
                self.world.note(|| format!("{site} captures a snapshot's end at {pos}"));
            }
            other => self.world.note(|| format!("{site} captures {other:?}")),
        }
    }
}

/// Whether it may be what became of a key that had to be read again.
fn ends_reread(event: &Event) -> bool {
    matches!(event, Event::Change(change) if matches!(change.op, Op::State | Op::Delete) && !change.uncertain)
}

#[async_trait]
impl Source for SlowSource {
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, told: Told) -> Result<Opened> {
        (self.failed, self.fresh, self.current) = (None, Vec::new(), [0; 2]);
        self.on_the_way.clear();
        self.opened.clear();
        self.world.take_time(Step::Connect, self.site).await;
        let opened = self.inner.open(from, snapshot, told).await;
        self.world.note(|| {
            let from = from.map(ToString::to_string);
            format!("{} opens from {from:?}: {opened:?}", self.site.index())
        });
        self.world.take_time(Step::Connect, self.site).await;
        opened
    }

    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        if self.on_the_way.is_empty() {
            self.current[1] = self.current[0];
        }
        loop {
            let now = Instant::now();
            let due = self.on_the_way.iter().take_while(|(due, _)| *due <= now).count() as u64;
            if due > 0 {
                let all = self.world.random(|random| random.chance(700));
                let most = if bytes_max == 1 { 1 } else { due };
                let count = if all { most } else { self.world.random(|random| 1 + random.below(most)) };
                for (_, event) in self.on_the_way.drain(..count as usize).collect::<Vec<_>>() {
                    self.tell(&event);
                    if ends_reread(&event) {
                        self.opened.pop_front();
                    }
                    events.push(event);
                }
                return Ok(());
            }
            let next = self.on_the_way.front().map(|(due, _)| *due);
            if next.is_none()
                && let Some(failed) = self.failed.take()
            {
                return Err(failed);
            }
            let far = Position { at: u64::MAX, ..Position::default() };
            self.open_from = self.inner.restart_point(&far).at;
            let room = self.failed.is_none() && self.on_the_way.len() < ON_THE_WAY;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
                got = self.inner.next(&mut self.fresh, usize::MAX), if room => match got {
                    Ok(()) => {
                        self.current[0] = self.inner.current().unwrap_or_default();
                        self.leave();
                    }
                    Err(error) => {
                        if self.world.random(|random| random.chance(500)) {
                            self.on_the_way.clear();
                        }
                        self.failed = Some(error);
                    }
                },
            }
        }
    }

    fn current(&self) -> Option<u64> {
        Some(self.current[1])
    }

    fn backlog_end(&self) -> Option<u64> {
        self.inner.backlog_end()
    }

    fn keeps_what_it_streamed(&self) -> bool {
        self.inner.keeps_what_it_streamed()
    }

    fn held(&mut self, last: &Position) {
        self.inner.held(last);
    }

    fn moved(&self) -> bool {
        self.inner.moved()
    }

    fn diverged(&self, last: &Position) -> bool {
        self.inner.diverged(last)
    }

    fn acknowledge(&mut self, durable: &Position) {
        self.inner.acknowledge(durable);
    }

    fn restart_point(&self, durable: &Position) -> Position {
        let from = self.inner.restart_point(durable);
        let open = self.opened.iter().fold(from.at, |at, open| at.min(*open));
        Position { at: open, ..from }
    }

    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token> {
        self.world.take_time(Step::Connect, self.site).await;
        for key in &keys {
            let name = String::from_utf8_lossy(&key.name);
            self.world.note_key(&name, || format!("{} is asked for {name}", self.site.index()));
        }
        let token = self.inner.refresh(keys).await;
        self.world.take_time(Step::Connect, self.site).await;
        token
    }
}

struct SlowTarget {
    world: Arc<World>,
    memory: Memory,
    site: Site,
    link: Option<Link>,
    /// The answer that is next, and when it is there.
    front: Option<Answer>,
    settled: Seq,
}

type Inner = Arc<Mutex<Box<dyn Target>>>;
type Answer = (Instant, Seq, Result<Outcome>);

/// A connection: what was sent goes on by itself.
struct Link {
    world: Arc<World>,
    inner: Inner,
    batches: mpsc::UnboundedSender<Batch>,
    answers: mpsc::UnboundedReceiver<Answer>,
    carrier: AbortHandle,
    /// Of the store, when it began.
    cuts: u64,
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.world.random(|random| random.chance(500)) {
            self.carrier.abort();
        }
    }
}

/// Brings batches to the store, one behind the other.
async fn carry(
    world: Arc<World>,
    site: Site,
    inner: Inner,
    mut batches: mpsc::UnboundedReceiver<Batch>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    let mut last = Instant::now();
    while let Some(batch) = batches.recv().await {
        world.take_time(Step::Commit, site).await;
        let mut target = inner.lock().await;
        let changes = batch.changes.clone();
        let (applied, told) = (batch.marker.applied, format!("{} commits {}", site.index(), batch.marker));
        let how = format!(
            "{}{}",
            if batch.watched { " watched" } else { "" },
            if batch.keep_existing { " fill" } else { "" }
        );
        let outcome = match target.send(batch).await {
            Ok(()) => target.outcome().await,
            Err(error) => Err(error),
        };
        drop(target);
        world.note_changes(|| format!("{told}{how}: {outcome:?}"), &changes);
        let failed = outcome.is_err();
        last = last.max(Instant::now() + world.draw(Step::Answer, site));
        if answers.send((last, applied, outcome)).is_err() || failed {
            return;
        }
    }
}

impl SlowTarget {
    async fn question(&self, action: &str) -> Result<Inner> {
        let link = self.link.as_ref().ok_or_else(|| broken(action))?;
        self.world.take_time(Step::Connect, self.site).await;
        Ok(Arc::clone(&link.inner))
    }
}

#[async_trait]
impl Target for SlowTarget {
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>> {
        (self.link, self.front) = (None, None);
        self.world.take_time(Step::Connect, self.site).await;
        let cuts = self.world.cuts(self.site);
        let mut inner = self.memory.target(self.site);
        let marker = inner.take_over(term).await?;
        self.world.note(|| {
            let marker = marker.as_ref().map(Marker::to_string);
            format!("{} is taken over, the marker is {marker:?}", self.site.index())
        });
        let inner = Arc::new(Mutex::new(inner));
        let (batches, sent) = mpsc::unbounded_channel();
        let (answered, answers) = mpsc::unbounded_channel();
        let carried = carry(Arc::clone(&self.world), self.site, Arc::clone(&inner), sent, answered);
        let carrier = tokio::spawn(carried).abort_handle();
        self.link = Some(Link { world: Arc::clone(&self.world), inner, batches, answers, carrier, cuts });
        self.world.take_time(Step::Connect, self.site).await;
        Ok(marker)
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let link = self.link.as_ref().ok_or_else(|| broken("apply a batch"))?;
        link.batches.send(batch).map_err(|_| broken("apply a batch"))
    }

    async fn outcome(&mut self) -> Result<Outcome> {
        let Some(link) = &mut self.link else { return std::future::pending().await };
        if self.front.is_none() {
            self.front = link.answers.recv().await;
        }
        let Some((due, ..)) = &self.front else { return Err(broken("read an outcome")) };
        tokio::time::sleep_until(*due).await;
        // Nothing waits from here on.
        let lost = link.cuts != self.world.cuts(self.site) && self.world.random(|random| random.chance(700));
        match self.front.take() {
            Some((_, applied, outcome)) if !lost => {
                self.settled = self.settled.max(applied);
                outcome
            }
            _ => {
                self.link = None;
                Err(broken("read an outcome"))
            }
        }
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        let inner = self.question("watch keys").await?;
        let token = inner.lock().await.watch(keys).await;
        for key in keys {
            let name = String::from_utf8_lossy(&key.name);
            self.world.note_key(&name, || format!("{} watches {name}: {token:?}", self.site.index()));
        }
        self.world.take_time(Step::Connect, self.site).await;
        token
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let inner = self.question("compare keys").await?;
        let held = inner.lock().await.holds(changes).await;
        self.world.take_time(Step::Connect, self.site).await;
        held
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        let inner = self.question("list keys").await?;
        let keys = inner.lock().await.keys(cursor).await;
        self.world.take_time(Step::Connect, self.site).await;
        keys
    }

    fn settled(&self) -> Seq {
        self.settled
    }
}

/// A pause that a person would take.
pub(super) const MOMENT: Duration = Duration::from_millis(100);
