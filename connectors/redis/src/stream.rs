//! What the commands of the replication stream mean, as events: transactions, our own ones told from the
//! application's, filters, and re-reads with their place. No I/O: what has to be asked of the server is
//! said by [`Step`] and by [`Stream::take_asked`].
//!
//! A key is *open* from the command that made its value unknown to the place where it was read again:
//! changes to it in between are in what was read, and are swallowed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use causeway_core::{Change, Event, Group, Key, Marker, Op, Part, Position, Space, Token, Told};

use crate::args::swapped;
use crate::commands::{Effects, SplitOp, effects};
use crate::filter::{EMPTY_NAME, Filter};
use crate::names::{self, Names};
use crate::resp::Command;

/// The most keys that may be open at once. More of them mean that we are so far behind that reading them
/// one by one takes longer than a snapshot.
const OPEN_MAX: usize = 1 << 20;

/// A number of the stream, and whose it is: a failover gives the same bytes a new name from some offset on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// What offsets up to `until` are numbered by.
    pub old: Bytes,
    /// The last offset that both have.
    pub until: u64,
    /// What those above are numbered by.
    pub new: Bytes,
}

impl History {
    /// One that knows no failover.
    pub fn single(id: Bytes) -> History {
        History { old: id.clone(), until: 0, new: id }
    }

    /// The place behind the byte `at`, with database `db` selected.
    pub fn position(&self, at: u64, db: u32) -> Position {
        let history = if at <= self.until { &self.old } else { &self.new };
        Position { history: history.clone(), at, context: context(db) }
    }

    /// A place within the transaction that begins behind the byte `start`; the stream is resumed before it.
    fn within(&self, start: u64, db: u32) -> Position {
        Position { at: start + 1, context: Bytes::from(format!("{db}-1")), ..self.position(start, db) }
    }

    /// Whether a position is of this stream.
    pub fn knows(&self, position: &Position) -> bool {
        position.history == self.new || position.history == self.old && position.at <= self.until
    }
}

fn context(db: u32) -> Bytes {
    const SMALL: [&[u8]; 16] = [
        b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"10", b"11", b"12", b"13", b"14", b"15",
    ];
    match SMALL.get(db as usize) {
        Some(text) => Bytes::from_static(text),
        None => Bytes::from(db.to_string()),
    }
}

/// Keys that are read again together: their states form one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Database and name; the names are copies, so that they keep no read's bytes alive.
    pub keys: Vec<(u32, Bytes)>,
    /// They are open for it.
    pub opened: bool,
}

/// A key as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What it holds; `None`: it does not exist.
    pub held: Option<Held>,
    /// When it expires, ms since 1970.
    pub expire_at: Option<u64>,
}

/// The value of a key that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Its DUMP payload.
    Whole(Bytes),
    /// So many [`Piece`]s, which came before.
    Pieces(u32),
}

impl Found {
    /// As a `read` or a `state`; of a value in pieces the last one, which brings nothing of it.
    pub(crate) fn change(self, op: Op, key: Key, pos: &Position, now: u64) -> Change {
        let (value, part) = match self.held {
            None => (None, None),
            Some(Held::Whole(payload)) => (Some(payload), None),
            Some(Held::Pieces(n)) => (Some(Bytes::new()), Some(Part { n, last: true })),
        };
        let mut change = Change::captured(op, key, value, pos.clone(), now);
        change.part = part;
        change.expire_at = self.expire_at;
        change
    }
}

/// A piece of a large value that is being read. Those of a value come in order, and before what else is read
/// with the same token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The key's database.
    pub db: u32,
    /// And its name.
    pub name: Bytes,
    /// As [`Set::opened`].
    pub opened: bool,
    /// Counts from 0.
    pub n: u32,
    /// Whole RESP arrays.
    pub commands: Bytes,
    /// When the key expires, ms since 1970.
    pub expire_at: Option<u64>,
}

impl Piece {
    /// As a piece of a `read` or a `state`.
    pub(crate) fn change(self, op: Op, pos: &Position, now: u64) -> Change {
        let key = Key { space: Space::Db(self.db), name: self.name };
        let mut change = Change::captured(op, key, Some(self.commands), pos.clone(), now);
        change.part = Some(Part { n: self.n, last: false });
        change.expire_at = self.expire_at;
        change
    }
}

/// What has to happen before the next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Done,
    /// [`Stream::learn`] has to be told which arguments of this command (its name in upper case) are keys; the
    /// command was not taken: it has to be given again.
    Unknown(Vec<u8>),
    /// A token of this process came by. If it was a re-read's, [`Stream::close`] has to be called.
    Token(Token),
}

/// Which arguments are keys: first, last (from the end if negative), step, as `COMMAND INFO` tells.
pub type KeyArgs = (i64, i64, i64);

/// What a single command of a transaction does.
enum Item {
    One { db: u32, key: Bytes, raw: Bytes },
    Delete { db: u32, key: Bytes },
    Reread(Vec<(u32, Bytes)>),
    Whole { db: u32, command: Command },
    Function { db: u32, raw: Bytes },
}

/// A transaction, or one command outside of any.
#[derive(Default)]
struct Tx {
    /// Offset before it.
    start: u64,
    start_db: u32,
    items: Vec<Item>,
    /// Something of it was seen that writes.
    began: bool,
    /// Keys that the server deleted in it, of a transaction of ours.
    ended: Vec<Item>,
    /// Its first write was our marker.
    own: bool,
    marker: Option<Bytes>,
    /// The marker is gone behind it.
    marker_lost: bool,
    tokens: Vec<Token>,
}

/// The stream's state between two commands.
pub struct Stream {
    endpoint: String,
    filter: Filter,
    names: Names,
    history: History,
    at: u64,
    db: u32,
    /// When what comes now was received, ms since 1970.
    pub now: u64,
    in_multi: bool,
    tx: Tx,
    group: Vec<Change>,
    open: HashMap<(u32, Bytes), u64>,
    /// Places of the commands that opened keys: how many of each are open, and the database selected there.
    opened_at: BTreeMap<u64, (usize, u32)>,
    asked: Vec<Set>,
    /// See [`Source::open`](causeway_core::Source::open).
    told: Told,
    /// What was not opened for that: it was open, up to there, before the break.
    told_of: HashSet<(u32, Bytes)>,
    /// Tokens that came by, with the offsets before and behind.
    tokens: VecDeque<(Token, u64, Position)>,
    known: HashMap<Vec<u8>, Option<KeyArgs>>,
    /// What of the transaction under way cannot be carried, and why.
    left_out: Vec<(Key, String)>,
    /// Databases whose key with the empty name was told of: once each.
    empty_names: Vec<u32>,
}

/// Why the stream cannot go on.
#[derive(Debug)]
pub enum StreamError {
    /// Not what a server sends.
    Garbled(String),
    /// Over 2^20 open keys.
    TooFarBehind,
}

impl Stream {
    /// A stream that goes on behind offset `at` with database `db` selected.
    pub fn new(endpoint: &str, filter: Filter, names: Names, history: History, at: u64, db: u32) -> Stream {
        Stream {
            endpoint: endpoint.to_owned(),
            filter,
            names,
            history,
            at,
            db,
            now: 0,
            in_multi: false,
            tx: Tx::default(),
            group: Vec::new(),
            open: HashMap::new(),
            opened_at: BTreeMap::new(),
            asked: Vec::new(),
            told: Told::new(),
            told_of: HashSet::new(),
            tokens: VecDeque::new(),
            known: HashMap::new(),
            left_out: Vec::new(),
            empty_names: Vec::new(),
        }
    }

    /// See [`Source::open`](causeway_core::Source::open).
    #[must_use]
    pub fn told(self, told: Told) -> Stream {
        Stream { told, ..self }
    }

    /// Behind the last command, transactions taken as a whole.
    pub fn position(&self) -> Position {
        match self.in_multi {
            true => self.history.position(self.tx.start, self.tx.start_db),
            false => self.history.position(self.at, self.db),
        }
    }

    /// Offset behind the last command.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whose offsets these are.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Nothing is under way: no transaction, no open key, no token.
    pub fn is_quiet(&self) -> bool {
        !self.in_multi && self.open.is_empty() && self.tokens.is_empty() && self.asked.is_empty()
    }

    /// How many keys are open.
    pub fn open_keys(&self) -> usize {
        self.open.len()
    }

    /// See [`Source::restart_point`](causeway_core::Source::restart_point).
    pub fn restart_point(&self, durable: &Position) -> Position {
        match self.opened_at.first_key_value() {
            Some((&start, &(_, db))) if start < durable.at => self.history.position(start, db),
            // After a break the stream is read again from before `durable`: what opens a re-read there is
            // not known yet.
            _ if self.at() < durable.at => self.position(),
            _ => durable.clone(),
        }
    }

    /// Keys to be read again that were not taken yet.
    pub fn take_asked(&mut self) -> Vec<Set> {
        std::mem::take(&mut self.asked)
    }

    /// Whether [`take_asked`](Stream::take_asked) has something.
    pub fn has_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Keys of a command that [`Step::Unknown`] named; `None`: nobody knows.
    pub fn learn(&mut self, name: Vec<u8>, keys: Option<KeyArgs>) {
        if keys.is_none() {
            tracing::warn!(
                command = %String::from_utf8_lossy(&name), endpoint = %self.endpoint,
                "a command that this version doesn't know cannot be carried: what it writes is not copied"
            );
        }
        self.known.insert(name, keys);
    }

    /// The token that came by first and was not closed or passed yet.
    pub fn token(&self) -> Option<Token> {
        self.tokens.front().map(|(token, ..)| *token)
    }

    /// The token was not a re-read's: it is [`Target::watch`](causeway_core::Target::watch)'s.
    pub fn pass_token(&mut self, events: &mut Vec<Event>) {
        if let Some((token, ..)) = self.tokens.pop_front() {
            events.push(Event::Token(token));
        }
    }

    /// The token that came by first is a re-read's: appends a piece of what was read with it. It stands where the
    /// token came by, outside of any group, as it is nothing before [`close`](Stream::close) ends the value.
    pub fn piece(&self, piece: Piece, events: &mut Vec<Event>) {
        if let Some((.., pos)) = self.tokens.front() {
            let uncertain = !piece.opened;
            let change = piece.change(Op::State, pos, self.now);
            events.push(Event::Change(Change { uncertain, ..change }));
        }
    }

    /// The token was a re-read's: appends what was found, as states that stand where the token came by, and
    /// then the token itself if somebody waits for it. A reason in place of a key: it cannot be carried.
    pub fn close(
        &mut self,
        found: Vec<(Set, Vec<Result<Found, String>>)>,
        announced: bool,
        events: &mut Vec<Event>,
    ) {
        let Some((token, start, pos)) = self.tokens.pop_front() else { return };
        for (i, (set, states)) in found.into_iter().enumerate() {
            let mut group = std::mem::take(&mut self.group);
            for ((db, name), state) in set.keys.into_iter().zip(states) {
                if set.opened {
                    self.close_key(db, &name);
                }
                let key = Key { space: Space::Db(db), name };
                let state = match state {
                    Ok(state) => state,
                    Err(reason) => {
                        events.push(Event::LeftOut { key, reason, pos: pos.clone() });
                        continue;
                    }
                };
                // What a write left absent it has deleted.
                let op = if set.opened && state.held.is_none() { Op::Delete } else { Op::State };
                let state = state.change(op, key, &pos, self.now);
                group.push(Change { uncertain: !set.opened, ..state });
            }
            // What ends a value goes first: an applier's batch can be cut before a group only.
            group.sort_by_key(|change| change.part.is_none());
            // The token's own transaction is longer than the sets it can hold: ids stay unique.
            self.flush(start.wrapping_add(i as u64), group, events);
        }
        if announced {
            events.push(Event::Token(token));
        }
    }

    fn close_key(&mut self, db: u32, name: &Bytes) {
        let Some(start) = self.open.remove(&(db, name.clone())) else { return };
        if let Some((n, _)) = self.opened_at.get_mut(&start) {
            *n -= 1;
            if *n == 0 {
                self.opened_at.remove(&start);
            }
        }
    }

    /// Takes the next command, appends what it means to `events`, and says what has to happen before the
    /// one after it.
    ///
    /// # Errors
    ///
    /// The stream is of no use any more.
    pub fn feed(&mut self, command: &Command, events: &mut Vec<Event>) -> Result<Step, StreamError> {
        let name = command.arg(0).unwrap_or_default();
        let is = |text: &[u8]| name.eq_ignore_ascii_case(text);
        let end = self.at + command.raw.len() as u64;
        match name.len() {
            4 if is(b"EXEC") => {
                if !self.in_multi {
                    return Err(StreamError::Garbled("EXEC without MULTI".into()));
                }
                self.at = end;
                self.in_multi = false;
                return self.commit(events);
            }
            5 if is(b"MULTI") => {
                if self.in_multi {
                    return Err(StreamError::Garbled("MULTI within MULTI".into()));
                }
                self.begin();
                self.in_multi = true;
                self.at = end;
                return Ok(Step::Done);
            }
            6 if is(b"SELECT") => {
                let db =
                    command.arg(1).and_then(|a| std::str::from_utf8(a).ok()).and_then(|a| a.parse().ok());
                self.db = db.ok_or_else(|| StreamError::Garbled("SELECT without a database".into()))?;
                self.at = end;
                return Ok(Step::Done);
            }
            4 if is(b"PING") => {
                self.at = end;
                return Ok(Step::Done);
            }
            _ => {}
        }
        if !self.in_multi {
            self.begin();
        }
        if let Some(unknown) = self.add(command)? {
            return Ok(Step::Unknown(unknown));
        }
        self.at = end;
        if self.in_multi { Ok(Step::Done) } else { self.commit(events) }
    }

    fn begin(&mut self) {
        let mut items = std::mem::take(&mut self.tx.items);
        items.clear();
        self.tx = Tx { start: self.at, start_db: self.db, items, ..Tx::default() };
    }

    /// Adds what `command` does to the transaction. Returns its name if its keys have to be asked for: it
    /// was not added then.
    fn add(&mut self, command: &Command) -> Result<Option<Vec<u8>>, StreamError> {
        let db = self.db;
        if self.tx.own && !command.arg(1).is_some_and(names::is_ours) && !is_whole(command) {
            // What our own applier wrote is the peer's, whatever it is. But a key whose time was over when it came
            // to it was deleted by the server.
            if let (b"DEL" | b"UNLINK", Some(key), 2) =
                (command.arg(0).unwrap_or_default(), command.slice(1), command.len())
            {
                self.tx.ended.push(Item::Delete { db, key });
            }
            return Ok(None);
        }
        let effects = match effects(command, db) {
            Effects::Unknown => match self.keys_of_unknown(command) {
                Ok(effects) => effects,
                Err(name) => return Ok(Some(name)),
            },
            known => known,
        };
        let tx = &mut self.tx;
        match effects {
            Effects::Nothing | Effects::Unknown => return Ok(None),
            Effects::One(key) => {
                if names::is_ours(&key) {
                    self.ours(db, &key, command)?;
                } else {
                    tx.items.push(Item::One { db, key, raw: command.raw.clone() });
                }
            }
            Effects::Split(split) => {
                for (key, op) in split {
                    if names::is_ours(&key) {
                        self.ours(db, &key, command)?;
                        continue;
                    }
                    self.tx.items.push(match op {
                        SplitOp::Delete => Item::Delete { db, key },
                        SplitOp::Command(raw) => Item::One { db, key, raw },
                    });
                }
            }
            Effects::Reread(keys) => tx.items.push(Item::Reread(keys)),
            Effects::Whole => {
                if touches_first(command, db) {
                    tx.marker_lost = true;
                }
                tx.items.push(Item::Whole { db, command: command.clone() });
            }
            Effects::Function => tx.items.push(Item::Function { db, raw: command.raw.clone() }),
        }
        self.tx.began = true;
        Ok(None)
    }

    /// A command on a key of ours: nobody's data, but the marker and the tokens mean something.
    fn ours(&mut self, db: u32, key: &Bytes, command: &Command) -> Result<(), StreamError> {
        if db != 0 {
            return Ok(());
        }
        let is_set = command.eq_ignore_case(0, b"SET");
        if *key == self.names.marker {
            if !is_set {
                // Somebody, or `syncd cleanup`, took it away.
                self.tx.marker_lost = true;
                return Ok(());
            }
            if !self.tx.began {
                self.tx.own = true;
            }
            self.tx.marker = command.slice(2);
            self.tx.marker_lost = false;
        } else if *key == self.names.token && is_set {
            let token = command.arg(2).and_then(Token::parse);
            self.tx.tokens.extend(token);
        }
        Ok(())
    }

    /// What a command outside the table writes, as far as the server told; `Err`: it was not asked yet.
    fn keys_of_unknown(&mut self, command: &Command) -> Result<Effects, Vec<u8>> {
        let name = command.arg(0).unwrap_or_default().to_ascii_uppercase();
        let Some(&(first, last, step)) = (match self.known.get(&name) {
            None => return Err(name),
            Some(known) => known.as_ref(),
        }) else {
            let reason = format!(
                "what {} writes: a command that this version doesn't know, nor the server its keys",
                String::from_utf8_lossy(&name)
            );
            self.left_out.push((Key { space: Space::Db(self.db), name: Bytes::new() }, reason));
            return Ok(Effects::Nothing);
        };
        let last = if last < 0 { command.len() as i64 + last } else { last };
        let keys: Vec<(u32, Bytes)> = (first..=last)
            .step_by(usize::try_from(step).unwrap_or(1).max(1))
            .filter_map(|i| Some((self.db, command.slice(usize::try_from(i).ok()?)?)))
            .collect();
        Ok(if keys.is_empty() { Effects::Nothing } else { Effects::Reread(keys) })
    }

    /// The transaction is over.
    fn commit(&mut self, events: &mut Vec<Event>) -> Result<Step, StreamError> {
        let start = self.tx.start;
        let pos = self.history.position(self.at, self.db);
        let marker_lost = self.tx.marker_lost;
        if self.tx.own {
            let text = self.tx.marker.take().unwrap_or_default();
            let marker: Marker = std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| StreamError::Garbled("our own marker cannot be read".into()))?;
            let within = self.history.within(start, self.tx.start_db);
            self.tx.items.clear();
            self.tx.items.append(&mut self.tx.ended);
            self.take_items(&within, start, events)?;
            events.push(Event::Marker { marker, pos: pos.clone() });
        } else {
            self.take_items(&pos, start, events)?;
        }
        for (key, reason) in self.left_out.drain(..) {
            events.push(Event::LeftOut { key, reason, pos: pos.clone() });
        }
        if marker_lost {
            events.push(Event::MarkerLost { pos: pos.clone() });
        }
        for token in self.tx.tokens.drain(..) {
            self.tokens.push_back((token, start, pos.clone()));
        }
        Ok(self.token().map_or(Step::Done, Step::Token))
    }

    /// Appends what the transaction that began at `start` holds, at `pos`.
    fn take_items(&mut self, pos: &Position, start: u64, events: &mut Vec<Event>) -> Result<(), StreamError> {
        if self.tx.items.is_empty() {
            return Ok(());
        }
        let mut items = std::mem::take(&mut self.tx.items);
        let mut group = std::mem::take(&mut self.group);
        for item in items.drain(..) {
            self.item(item, pos, &mut group)?;
        }
        self.tx.items = items;
        self.flush(start, group, events);
        Ok(())
    }

    /// Appends changes that belong together, and keeps the vector for the next ones.
    fn flush(&mut self, id: u64, mut group: Vec<Change>, events: &mut Vec<Event>) {
        let last = group.len().saturating_sub(1);
        if last > 0 {
            for (n, change) in group.iter_mut().enumerate() {
                change.group = Some(Group { id, n: n as u32, last: n == last });
            }
        }
        events.extend(group.drain(..).map(Event::Change));
        self.group = group;
    }

    fn item(&mut self, item: Item, pos: &Position, group: &mut Vec<Change>) -> Result<(), StreamError> {
        let now = self.now;
        let mut push = |op, db, name, value| {
            let key = Key { space: Space::Db(db), name };
            group.push(Change::captured(op, key, value, pos.clone(), now));
        };
        match item {
            Item::One { db, key, .. } | Item::Delete { db, key } if key.is_empty() => self.empty_name(db),
            Item::One { db, key, raw } => {
                if self.filter.carries(db, &key) && !self.is_open(db, &key) {
                    push(Op::Command, db, key, Some(raw));
                }
            }
            Item::Delete { db, key } => {
                if self.filter.carries(db, &key) && !self.is_open(db, &key) {
                    push(Op::Delete, db, key, None);
                }
            }
            Item::Reread(keys) => self.reread(keys)?,
            Item::Function { db, raw } => push(Op::Command, db, Bytes::new(), Some(raw)),
            Item::Whole { db, command } => {
                let swapped = swapped(&command.raw);
                let carried = match swapped {
                    Some((a, b)) => self.filter.carries_db(a) || self.filter.carries_db(b),
                    None => !command.eq_ignore_case(0, b"FLUSHDB") || self.filter.carries_db(db),
                };
                if carried {
                    push(Op::Ddl, db, Bytes::new(), Some(command.raw.clone()));
                }
                if let Some((a, b)) = swapped {
                    self.reread_swapped(a, b)?;
                }
            }
        }
        Ok(())
    }

    /// Something was written to the key with the empty name.
    fn empty_name(&mut self, db: u32) {
        if self.filter.leaves_out(db, b"") && !self.empty_names.contains(&db) {
            self.empty_names.push(db);
            self.left_out.push((Key { space: Space::Db(db), name: Bytes::new() }, EMPTY_NAME.to_owned()));
        }
    }

    fn is_open(&self, db: u32, key: &Bytes) -> bool {
        !self.open.is_empty() && self.open.contains_key(&(db, key.clone()))
    }

    /// Opens those of `keys` that are carried and not open yet.
    fn reread(&mut self, keys: Vec<(u32, Bytes)>) -> Result<(), StreamError> {
        let mut set = Vec::with_capacity(keys.len());
        for (db, name) in keys {
            if name.is_empty() {
                self.empty_name(db);
            }
            if !self.filter.carries(db, &name) || self.is_open(db, &name) {
                continue;
            }
            if self.open.len() >= OPEN_MAX {
                return Err(StreamError::TooFarBehind);
            }
            let name = Bytes::copy_from_slice(&name);
            if self.is_told(db, &name) {
                self.told_of.insert((db, name));
                continue;
            }
            self.open.insert((db, name.clone()), self.tx.start);
            self.opened_at.entry(self.tx.start).or_insert((0, self.tx.start_db)).0 += 1;
            set.push((db, name));
        }
        if !set.is_empty() {
            self.asked.push(Set { keys: set, opened: true });
        }
        Ok(())
    }

    /// Whether the log says what a key held behind the transaction that ends here.
    fn is_told(&self, db: u32, name: &Bytes) -> bool {
        !self.told.is_empty()
            && self
                .told
                .get(&Key { space: Space::Db(db), name: name.clone() })
                .is_some_and(|at| *at > self.at)
    }

    /// What was open in one of two databases is now unknown in the other one: the target, which swaps its
    /// own, has there what it had here.
    fn reread_swapped(&mut self, a: u32, b: u32) -> Result<(), StreamError> {
        let other = |db| if db == a { b } else { a };
        let told_of = self.told_of.iter().filter(|(db, name)| self.is_told(*db, name));
        let keys = self.open.keys().chain(told_of).filter(|(db, _)| *db == a || *db == b);
        let keys: Vec<_> = keys.map(|(db, name)| (other(*db), name.clone())).collect();
        for key in keys {
            self.reread(vec![key])?;
        }
        Ok(())
    }
}

fn is_whole(command: &Command) -> bool {
    [&b"FLUSHALL"[..], b"FLUSHDB", b"SWAPDB"].iter().any(|name| command.eq_ignore_case(0, name))
}

/// Whether a command on a whole database concerns database 0, where the marker is.
fn touches_first(command: &Command, db: u32) -> bool {
    match swapped(&command.raw) {
        Some((a, b)) => a == 0 || b == 0,
        None => db == 0 || !command.eq_ignore_case(0, b"FLUSHDB"),
    }
}

#[cfg(test)]
mod tests;
