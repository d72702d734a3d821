use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use causeway_core::{Change, Event, Group, Marker, Op, Outcome, Position, Refused, Term, Token, Told};
use tokio::sync::Notify;

use crate::command::{Command, Stored, key};
use crate::source::pieces;
use crate::value::Value;

/// What can be made to go wrong at one site, until it is [cleared](crate::Memory::clear).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Changes of this key are refused, one by one.
    Refuse(String),
    /// Batches with a change of this key are rejected as a whole, and it is the change's fault.
    Reject(String),
    /// No memory left: batches are rejected as a whole, and it is the server's fault.
    Full,
    /// A batch takes effect, and its outcome comes, only after this time.
    Slow(Duration),
    /// The stream brings nothing, though it goes on.
    Stall,
    /// The link breaks after so many more batches took effect, before their outcome is told.
    CutAfter(u64),
    /// The link breaks wherever this key comes by, on the way out and on the way in, before it takes effect.
    CutAt(String),
}

/// What the stream holds of one transaction.
#[derive(Debug, Clone)]
enum Logged {
    Local(Vec<Write>),
    Ours(Marker),
    Token(Token),
    /// Read for the source of this number only, because it was asked to or met an [`Again`](Write::Again).
    Refreshed(u64, Token, Vec<(String, Option<Stored>)>, Why),
}

/// What the stream holds of one command.
#[derive(Debug, Clone)]
enum Write {
    Known(Op, String, Option<Bytes>),
    /// What became of these keys has to be read.
    Again(Vec<String>),
}

/// Why keys were read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    Met,
}

/// Keys of which a reader of the stream has met an [`Again`](Write::Again), with its place, until it comes to what
/// they hold: changes to them in between are in that.
#[derive(Debug, Default)]
pub(crate) struct Open {
    keys: BTreeMap<String, u64>,
    /// Those not asked for yet.
    asked: Vec<Vec<String>>,
    told: Told,
}

impl Open {
    /// The place of the oldest.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.keys.values().min().copied()
    }

    pub(crate) fn take_asked(&mut self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.asked)
    }

    pub(crate) fn new(told: Told) -> Open {
        Open { told, ..Open::default() }
    }

    /// Those of `names`, written by the transaction at `at`, that nothing behind it tells of.
    fn open(&mut self, names: &[String], at: u64) {
        let is_told = |name: &&String| self.told.get(&key(name)).is_some_and(|told| *told > at + 1);
        let news = names.iter().filter(|name| !self.keys.contains_key(*name) && !is_told(name));
        let names: Vec<_> = news.cloned().collect();
        self.keys.extend(names.iter().map(|name| (name.clone(), at)));
        if !names.is_empty() {
            self.asked.push(names);
        }
    }
}

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One site's store. A transaction is one place of its stream.
pub(crate) struct Store {
    state: Mutex<State>,
    clock: Mutex<Clock>,
    /// The next number that nothing of this pair of stores has.
    ids: Arc<AtomicU64>,
    /// Told after each change of the state.
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct State {
    /// The clock, when the state was locked.
    pub(crate) now: u64,
    ids: Arc<AtomicU64>,
    pub(crate) data: BTreeMap<String, Stored>,
    pub(crate) marker: Option<Marker>,
    pub(crate) token: Option<Token>,
    /// Values that come in parts, until the last one is there.
    parts: HashMap<String, Vec<u8>>,
    /// Counts the changes of each key, for watches.
    touched: HashMap<String, u64>,
    /// Counts the histories that were begun; its text is the position's.
    history: u64,
    /// The histories of the primaries that this store took over from, each with up to where it had that.
    before: Vec<(Bytes, u64)>,
    log: VecDeque<(Logged, u64)>,
    /// The place of the first of `log`.
    log_start: u64,
    pub(crate) backlog_max: Option<usize>,
    /// It came back older than its stream was.
    pub(crate) forgot: bool,
    /// Counts up when connections are cut.
    pub(crate) epoch: u64,
    pub(crate) down: bool,
    /// How often a stream was opened, or tried to be.
    pub(crate) streams: u64,
    /// How often a target took over, or tried to.
    pub(crate) reigns: u64,
    /// The target that took over last.
    pub(crate) holder: u64,
    pub(crate) term: Term,
    pub(crate) faults: Vec<Fault>,
    pub(crate) acknowledged: Option<Position>,
    saved: Option<(BTreeMap<String, Stored>, Option<Marker>)>,
}

impl Store {
    pub(crate) fn new(ids: Arc<AtomicU64>) -> Store {
        let mut state = State { ids: Arc::clone(&ids), ..State::default() };
        state.history = state.unique();
        let clock: Mutex<Clock> = Mutex::new(Arc::new(machine_ms));
        Store { state: Mutex::new(state), clock, ids, changed: Notify::new() }
    }

    pub(crate) fn set_clock(&self, clock: Clock) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
    }

    /// A number that no other call for this pair of stores returned.
    pub(crate) fn unique(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// The state, with what has expired by now deleted.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has left it whole: changes are made in one step.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now = self.clock.lock().unwrap_or_else(PoisonError::into_inner)();
        state.expire();
        state
    }
}

fn machine_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    fn unique(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn end(&self) -> Position {
        self.position(self.log_start + self.log.len() as u64)
    }

    /// How much of what is kept at most a reader who has come to `read` has not read.
    pub(crate) fn behind(&self, read: u64) -> Option<f64> {
        let kept = self.backlog_max?.max(1);
        Some(self.end().at.saturating_sub(read) as f64 / kept as f64)
    }

    fn position(&self, at: u64) -> Position {
        Position { history: Bytes::from(format!("memory-{}", self.history)), at, context: Bytes::new() }
    }

    /// Whether the stream can go on behind `from`; `Err` says why not.
    pub(crate) fn resume(&self, from: &Position) -> Result<u64, String> {
        let end = self.end();
        let had = |(history, to): &(Bytes, u64)| *history == from.history && from.at <= *to;
        if from.history != end.history && !self.before.iter().any(had) {
            Err(format!("the store's history is {}", String::from_utf8_lossy(&end.history)))
        } else if from.at < self.log_start || from.at > end.at {
            Err(format!("the backlog is {}..{}", self.log_start, end.at))
        } else {
            Ok(from.at)
        }
    }

    /// The events of the transaction at `at`, for the source `source`, which has values that are longer than
    /// `part_bytes` in parts; `Ok(None)` at the end.
    pub(crate) fn events(
        &self,
        at: u64,
        source: u64,
        part_bytes: usize,
        open: &mut Open,
    ) -> Result<Option<Vec<Event>>, String> {
        let index = at.checked_sub(self.log_start).ok_or("the backlog was overrun")?;
        let Some((logged, time)) = usize::try_from(index).ok().and_then(|i| self.log.get(i)) else {
            return Ok(None);
        };
        let pos = self.position(at + 1);
        let change = |op, name: &str, value| Change::captured(op, key(name), value, pos.clone(), *time);
        Ok(Some(match logged {
            Logged::Local(writes) => {
                let mut changes = Vec::new();
                for write in writes {
                    match write {
                        Write::Again(names) => open.open(names, at),
                        Write::Known(_, name, _) if open.keys.contains_key(name) => {}
                        Write::Known(op, name, value) => changes.push(change(*op, name, value.clone())),
                    }
                }
                let flushed = changes.iter().any(|change| change.op == Op::Ddl);
                let mut events = grouped(changes, at);
                if flushed {
                    events.push(Event::MarkerLost { pos: pos.clone() });
                }
                events
            }
            Logged::Ours(marker) => vec![Event::Marker { marker: marker.clone(), pos }],
            Logged::Token(token) => vec![Event::Token(*token)],
            Logged::Refreshed(of, ..) if *of != source => Vec::new(),
            Logged::Refreshed(_, token, states, why) => {
                let mut changes = Vec::new();
                for (name, stored) in states {
                    match stored {
                        None if *why == Why::Met => changes.push(change(Op::Delete, name, None)),
                        None => changes.push(change(Op::State, name, None)),
                        Some(stored) => {
                            changes.extend(pieces(Op::State, name, stored, &pos, part_bytes, *time));
                        }
                    }
                }
                if *why == Why::Asked {
                    changes.iter_mut().for_each(|change| change.uncertain = true);
                    return Ok(Some(
                        changes.into_iter().map(Event::Change).chain([Event::Token(*token)]).collect(),
                    ));
                }
                open.keys.retain(|name, _| states.iter().all(|(closed, _)| closed != name));
                match changes.iter().any(|change| change.part.is_some()) {
                    true => changes.into_iter().map(Event::Change).collect(),
                    false => grouped(changes, at),
                }
            }
        }))
    }

    fn append(&mut self, logged: Logged) {
        self.log.push_back((logged, self.now));
        while self.backlog_max.is_some_and(|max| self.log.len() > max) {
            self.log.pop_front();
            self.log_start += 1;
        }
    }

    fn put(&mut self, name: &str, stored: Option<Stored>) {
        *self.touched.entry(name.to_owned()).or_default() += 1;
        match stored {
            Some(stored) => self.data.insert(name.to_owned(), stored),
            None => self.data.remove(name),
        };
    }

    fn flush(&mut self) {
        let names: Vec<String> = self.data.keys().cloned().collect();
        names.iter().for_each(|name| self.put(name, None));
        self.marker = None;
        self.token = None;
        self.parts.clear();
    }

    fn expire(&mut self) {
        let now = self.now;
        let due: Vec<String> = self
            .data
            .iter()
            .filter(|(_, s)| s.expire_at.is_some_and(|at| at <= now))
            .map(|(k, _)| k.clone())
            .collect();
        for name in due {
            self.put(&name, None);
            self.append(Logged::Local(vec![Write::Known(Op::Delete, name, None)]));
        }
    }

    /// Moves what a key holds to another one.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), String> {
        let moved = self.data.get(from).cloned().ok_or("ERR no such key")?;
        self.put(from, None);
        self.put(to, Some(moved));
        Ok(())
    }

    /// Writes as an application does, in one transaction: all of it or, where one is refused, nothing.
    pub(crate) fn write(&mut self, commands: &[Command]) -> Result<(), String> {
        let mut writes = Vec::new();
        let names = commands.iter().flat_map(Command::keys);
        let before: Vec<(String, Option<Stored>)> =
            names.map(|name| (name.to_owned(), self.data.get(name).cloned())).collect();
        for command in commands {
            let name = command.key();
            if let Command::Rename(from, to) = command {
                if let Err(reason) = self.rename(from, to) {
                    before.into_iter().for_each(|(name, stored)| self.put(&name, stored));
                    return Err(reason);
                }
                writes.push(Write::Again(vec![from.clone(), to.clone()]));
                continue;
            }
            if *command == Command::FlushAll {
                self.flush();
            } else {
                let old = self.data.get(name);
                match command.on(old.cloned()) {
                    // As a server does, the stream leaves out what had no effect.
                    Ok(stored) if command.may_do_nothing() && stored.as_ref() == old => continue,
                    Ok(stored) => self.put(name, stored),
                    Err(reason) => {
                        before.into_iter().for_each(|(name, stored)| self.put(&name, stored));
                        return Err(reason);
                    }
                }
            }
            let value = (command.op() != Op::Delete).then(|| Bytes::from(text(command)));
            writes.push(Write::Known(command.op(), name.to_owned(), value));
        }
        if !writes.is_empty() {
            self.append(Logged::Local(writes));
        }
        Ok(())
    }

    pub(crate) fn touches(&self, names: impl Iterator<Item = String>) -> Vec<(String, u64)> {
        names.map(|name| (name.clone(), self.touched.get(&name).copied().unwrap_or(0))).collect()
    }

    /// Whether the key holds just what a `read` or `state` says.
    pub(crate) fn holds(&self, change: &causeway_core::Change) -> bool {
        let held = std::str::from_utf8(&change.key.name).ok().and_then(|name| self.data.get(name));
        match (held, &change.value) {
            (None, None) => true,
            (Some(held), Some(value)) => {
                change.part.is_none() && held.expire_at == change.expire_at && held.value.bytes() == *value
            }
            _ => false,
        }
    }

    pub(crate) fn is_touched(&self, watched: &[(String, u64)]) -> bool {
        watched.iter().any(|(name, count)| self.touched.get(name).copied().unwrap_or(0) != *count)
    }

    pub(crate) fn write_token(&mut self, token: Token) {
        self.token = Some(token);
        self.append(Logged::Token(token));
    }

    pub(crate) fn refresh(&mut self, source: u64, token: Token, names: Vec<String>, why: Why) {
        let states = names.into_iter().map(|name| (name.clone(), self.data.get(&name).cloned())).collect();
        self.token = Some(token);
        self.append(Logged::Refreshed(source, token, states, why));
    }

    /// Applies a peer's batch in one transaction, marker included; or rejects it whole.
    pub(crate) fn apply(&mut self, batch: &causeway_core::Batch) -> Outcome {
        for change in &batch.changes {
            let name = String::from_utf8_lossy(&change.key.name).into_owned();
            if self.faults.contains(&Fault::Reject(name)) {
                return Outcome::Rejected { transient: false, reason: "REJECTED by a fault".into() };
            }
        }
        if self.faults.contains(&Fault::Full) {
            return Outcome::Rejected { transient: true, reason: "OOM by a fault".into() };
        }
        let (mut refused, mut existing) = (Vec::new(), Vec::new());
        for (index, change) in batch.changes.iter().enumerate() {
            match self.apply_one(change, batch.keep_existing) {
                Ok(true) => {}
                Ok(false) => existing.push(index),
                Err(reason) => refused.push(Refused { index, reason }),
            }
        }
        self.marker = Some(batch.marker.clone());
        self.append(Logged::Ours(batch.marker.clone()));
        Outcome::Committed { refused, existing }
    }

    /// `Ok(false)`: the key exists and is kept.
    fn apply_one(&mut self, change: &Change, keep_existing: bool) -> Result<bool, String> {
        let name =
            String::from_utf8(change.key.name.to_vec()).map_err(|_| "the key is not text".to_owned())?;
        if self.faults.contains(&Fault::Refuse(name.clone())) {
            return Err("REFUSED by a fault".into());
        }
        match change.op {
            Op::Refresh | Op::Fence | Op::Position => Err(format!("{} is no data", change.op.as_str())),
            Op::Delete => {
                self.put(&name, None);
                Ok(true)
            }
            Op::Read if keep_existing && self.data.contains_key(&name) => {
                self.parts.remove(&name);
                Ok(false)
            }
            Op::Read | Op::Put | Op::State => {
                let stored = match (&change.value, change.part) {
                    (None, None) => None,
                    (None, Some(_)) => {
                        self.parts.remove(&name);
                        return Ok(true);
                    }
                    (Some(value), part) => {
                        let mut whole = match part {
                            Some(part) if part.n > 0 => self.parts.remove(&name).unwrap_or_default(),
                            _ => Vec::new(),
                        };
                        whole.extend_from_slice(value);
                        if part.is_some_and(|p| !p.last) {
                            self.parts.insert(name, whole);
                            return Ok(true);
                        }
                        let value = Value::parse(&whole).ok_or("the value has no known form")?;
                        Some(Stored { value, expire_at: change.expire_at })
                    }
                };
                self.put(&name, stored);
                Ok(true)
            }
            Op::Command | Op::Ddl => {
                let command = Command::parse(change.value.as_deref().unwrap_or_default())?;
                if command == Command::FlushAll {
                    self.flush();
                } else {
                    let stored = command.on(self.data.get(command.key()).cloned())?;
                    self.put(command.key(), stored);
                }
                Ok(true)
            }
        }
    }

    /// Whether the link breaks where one of `changes` comes by; then it did.
    pub(crate) fn cuts_at<'a>(
        &mut self,
        changes: impl IntoIterator<Item = &'a causeway_core::Change>,
    ) -> bool {
        let names: Vec<_> =
            changes.into_iter().map(|change| String::from_utf8_lossy(&change.key.name)).collect();
        let hits = |fault: &Fault| matches!(fault, Fault::CutAt(key) if names.iter().any(|name| name == key));
        let cuts = self.faults.iter().any(hits);
        if cuts {
            self.cut();
        }
        cuts
    }

    /// Takes everything of ours out; how many keys that were.
    pub(crate) fn cleanup(&mut self) -> u64 {
        let count = u64::from(self.marker.take().is_some()) + u64::from(self.token.take().is_some());
        count + std::mem::take(&mut self.parts).len() as u64
    }

    pub(crate) fn cut(&mut self) {
        self.epoch += 1;
    }

    pub(crate) fn lose_position(&mut self) {
        self.forgot = false;
        self.before.clear();
        self.history = self.unique();
        self.log_start += self.log.len() as u64;
        self.log.clear();
        self.cut();
    }

    pub(crate) fn promote(&mut self) {
        let end = self.end();
        self.before.push((end.history, end.at));
        self.history = self.unique();
        self.cut();
    }

    pub(crate) fn save(&mut self) {
        self.saved = Some((self.data.clone(), self.marker.clone()));
    }

    pub(crate) fn restart_older(&mut self) {
        let (data, marker) = self.saved.clone().unwrap_or_default();
        (self.data, self.marker, self.token) = (data, marker, None);
        self.parts.clear();
        self.touched.clear();
        self.lose_position();
        self.forgot = true;
    }
}

/// Changes that belong together.
fn grouped(mut changes: Vec<Change>, id: u64) -> Vec<Event> {
    let count = changes.len();
    if count > 1 {
        for (n, change) in changes.iter_mut().enumerate() {
            change.group = Some(Group { id, n: u32::try_from(n).unwrap_or(u32::MAX), last: n + 1 == count });
        }
    }
    changes.into_iter().map(Event::Change).collect()
}

/// The words of a command.
fn text(command: &Command) -> String {
    match command {
        Command::Rename(from, to) => format!("RENAME {from} {to}"),
        Command::Set(k, v) => format!("SET {k} {v}"),
        Command::IncrBy(k, n) => format!("INCRBY {k} {n}"),
        Command::RPush(k, e) => format!("RPUSH {k} {e}"),
        Command::HSet(k, f, v) => format!("HSET {k} {f} {v}"),
        Command::HIncrBy(k, f, n) => format!("HINCRBY {k} {f} {n}"),
        Command::HDel(k, f) => format!("HDEL {k} {f}"),
        Command::SAdd(k, m) => format!("SADD {k} {m}"),
        Command::SRem(k, m) => format!("SREM {k} {m}"),
        Command::ExpireAt(k, at) => format!("PEXPIREAT {k} {at}"),
        Command::Persist(k) => format!("PERSIST {k}"),
        Command::Del(k) => format!("DEL {k}"),
        Command::FlushAll => "FLUSHALL".into(),
    }
}
