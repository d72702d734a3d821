use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use causeway_core::{
    Behind, Change, Error, Event, Key, Op, Opened, Part, Position, Result, Source, Token, Told,
};

use crate::command::{Stored, key};
use crate::store::{Fault, Open, Store, Why};

/// How often a stream at its end says so; also how long an expired key may go unnoticed.
const IDLE_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn unavailable(action: &str, endpoint: &str, why: &str) -> Error {
    Error::Unavailable { action: action.into(), endpoint: endpoint.into(), source: why.to_owned().into() }
}

pub(crate) struct MemorySource {
    store: Arc<Store>,
    endpoint: String,
    id: u64,
    /// Values longer than this come in parts.
    part_bytes: usize,
    tells_times: bool,
    /// The stream's end when it went on.
    backlog_end: Option<u64>,
    epoch: Option<u64>,
    at: u64,
    /// Keys that have to be read again.
    opened: Open,
    /// The same as `at`, for others to see.
    read: Arc<AtomicU64>,
    /// What of the snapshot has not been handed over yet.
    snapshot: VecDeque<Event>,
    /// When the stream was last at its end, and when it was before that.
    at_end: [u64; 2],
}

impl MemorySource {
    pub(crate) fn new(store: Arc<Store>, endpoint: String, part_bytes: usize, tells_times: bool) -> Self {
        let snapshot = VecDeque::new();
        let id = store.unique();
        let (opened, read) = (Open::default(), Arc::default());
        let (epoch, backlog_end, at, at_end) = (None, None, 0, [0; 2]);
        MemorySource {
            store,
            endpoint,
            id,
            part_bytes,
            tells_times,
            backlog_end,
            epoch,
            at,
            opened,
            read,
            snapshot,
            at_end,
        }
    }

    /// Takes what is there; `None` if nothing is.
    fn take(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<Option<()>> {
        let mut state = self.store.lock();
        if state.down || self.epoch != Some(state.epoch) {
            self.epoch = None;
            return Err(unavailable("read the stream", &self.endpoint, "the connection is cut"));
        }
        if state.faults.contains(&Fault::Stall) {
            return Ok(None);
        }
        self.at_end[1] = self.at_end[0];
        let before = events.len();
        let mut bytes = 0;
        while bytes < bytes_max {
            if let Some(event) = self.snapshot.pop_front() {
                bytes += cost(&event);
                events.push(event);
                continue;
            }
            let next = state.events(self.at, self.id, self.part_bytes, &mut self.opened).map_err(|why| {
                // As a server does that drops a reader which is too slow.
                self.epoch = None;
                unavailable("read the stream", &self.endpoint, &why)
            })?;
            let Some(next) = next else {
                self.at_end[0] = state.now;
                break;
            };
            for names in self.opened.take_asked() {
                state.refresh(self.id, Token(self.store.unique()), names, Why::Met);
            }
            bytes += next.iter().map(cost).sum::<usize>();
            events.extend(next);
            self.at += 1;
        }
        if state.cuts_at(events.iter().skip(before).filter_map(change)) {
            self.epoch = None;
            return Err(unavailable("read the stream", &self.endpoint, "the connection is cut"));
        }
        self.read.store(self.at, Ordering::Relaxed);
        Ok((events.len() > before).then_some(()))
    }
}

fn change(event: &Event) -> Option<&Change> {
    if let Event::Change(change) = event { Some(change) } else { None }
}

fn cost(event: &Event) -> usize {
    match event {
        Event::Change(change) => change.cost(),
        _ => 100,
    }
}

/// What a key holds, as one change or several.
pub(crate) fn pieces(
    op: Op,
    name: &str,
    stored: &Stored,
    pos: &Position,
    part_bytes: usize,
    now: u64,
) -> Vec<Change> {
    let value = stored.value.bytes();
    let change = |value, part| {
        let mut change = Change::captured(op, key(name), Some(value), pos.clone(), now);
        change.expire_at = stored.expire_at;
        change.part = part;
        change
    };
    if value.len() <= part_bytes {
        return vec![change(value, None)];
    }
    let count = value.len().div_ceil(part_bytes);
    let piece = |n: usize| {
        let part = Part { n: u32::try_from(n).unwrap_or(u32::MAX), last: n + 1 == count };
        change(value.slice(n * part_bytes..value.len().min((n + 1) * part_bytes)), Some(part))
    };
    (0..count).map(piece).collect()
}

#[async_trait]
impl Source for MemorySource {
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, told: Told) -> Result<Opened> {
        // What was asked for before the break is not answered.
        self.id = self.store.unique();
        self.opened = Open::new(told);
        self.at_end = [0; 2];
        self.backlog_end = None;
        let mut state = self.store.lock();
        state.streams += 1;
        if state.down {
            return Err(unavailable("open the stream", &self.endpoint, "the store is down"));
        }
        self.epoch = Some(state.epoch);
        self.snapshot.clear();
        let lost = match from.map(|from| state.resume(from)) {
            Some(Ok(at)) => {
                self.at = at;
                self.backlog_end = (!self.tells_times).then(|| state.end().at);
                self.read.store(at, Ordering::Relaxed);
                return Ok(Opened::Resumed);
            }
            Some(Err(why)) => Some(why),
            None => None,
        };
        let pos = state.end();
        self.at = pos.at;
        self.read.store(self.at, Ordering::Relaxed);
        if snapshot {
            let total = Some(state.data.len() as u64);
            self.snapshot.push_back(Event::SnapshotStarted { total, pos: pos.clone() });
            for (name, stored) in &state.data {
                let rows = pieces(Op::Read, name, stored, &pos, self.part_bytes, state.now);
                self.snapshot.extend(rows.into_iter().map(Event::Change));
            }
            self.snapshot.push_back(Event::SnapshotEnded { pos, left_out: (0, Vec::new()) });
        }
        Ok(Opened::Anew { lost })
    }

    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        let store = Arc::clone(&self.store);
        loop {
            // Armed before the look, so that what comes between the two is not missed.
            let changed = store.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.take(events, bytes_max)?.is_some() {
                return Ok(());
            }
            let waited = tokio::time::timeout(IDLE_EVERY, changed).await.is_err();
            if waited && !self.store.lock().faults.contains(&Fault::Stall) {
                if self.take(events, bytes_max)?.is_none() {
                    let mut pos = self.store.lock().end();
                    pos.at = self.at;
                    events.push(Event::Idle { pos });
                }
                return Ok(());
            }
        }
    }

    fn current(&self) -> Option<u64> {
        Some(self.at_end[1])
    }

    fn backlog_end(&self) -> Option<u64> {
        self.backlog_end
    }

    fn keeps_what_it_streamed(&self) -> bool {
        !self.store.lock().forgot
    }

    fn behind(&self) -> Option<Behind> {
        let (store, read) = (Arc::clone(&self.store), Arc::downgrade(&self.read));
        Some(Arc::new(move || {
            let read = read.upgrade()?.load(Ordering::Relaxed);
            store.lock().behind(read)
        }))
    }

    fn acknowledge(&mut self, durable: &Position) {
        self.store.lock().acknowledged = Some(durable.clone());
    }

    fn restart_point(&self, durable: &Position) -> Position {
        // What is not read yet after a break may open keys, too.
        let from = self.opened.oldest().unwrap_or(self.at).min(durable.at);
        Position { at: from, ..durable.clone() }
    }

    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token> {
        let token = Token(self.store.unique());
        {
            let mut state = self.store.lock();
            if state.down || self.epoch != Some(state.epoch) {
                return Err(unavailable("read keys again", &self.endpoint, "the connection is cut"));
            }
            let names = keys.iter().filter_map(|k| String::from_utf8(k.name.to_vec()).ok()).collect();
            state.refresh(self.id, token, names, Why::Asked);
        }
        self.store.changed.notify_waiters();
        Ok(token)
    }
}
