//! A server's change stream, joined to its snapshot: the replication link and what is beside it, as events.
//!
//! Not here: the wire ([`link`](crate::link)), what a command means ([`stream`](crate::stream)), reading keys
//! again ([`reread`](crate::reread)), and what is done where replication is refused (`scan`).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{
    Behind, Change, Error, Event, Key, Op, Opened, Part, Position, Rereads, Result, Site, Source, Space,
    Token, Told,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::config::RedisConfig;
use crate::conn::{Conn, Endpoint, unavailable};
use crate::filter::{EMPTY_NAME, Filter};
use crate::info::{ServerInfo, config_get, replica_buffer_max};
use crate::link::{Item, Link, LinkOptions, Opening, Start};
use crate::progress::Progress;
use crate::rdb::{self, Splitter, Value};
use crate::reread::{Answer, Read, Request, Side};
use crate::resp::Command;
use crate::scan::{ScanLive, ScanPlace};
use crate::stream::{History, Piece, Step, Stream, StreamError};

/// How long a server may be silent, at least: three pings of the usual period.
const SILENCE_MIN: Duration = Duration::from_secs(30);
/// How long we wait for a snapshot that was not begun before we asked for it.
const OTHER_SNAPSHOT_MAX: Duration = Duration::from_secs(60);
/// Left-out keys that are named.
const LEFT_OUT_NAMED: usize = 1000;

/// The change stream of one site's server.
pub struct RedisSource {
    config: Arc<RedisConfig>,
    site: Site,
    /// Changes are applied into this server, too.
    applied_into: Arc<AtomicBool>,
    live: Option<Mode>,
    /// Where a scan that broke had come to.
    scan_broke_at: Option<ScanPlace>,
    /// Of the link that is open, or broke last.
    progress: Arc<Mutex<Option<Arc<Progress>>>>,
}

/// How an open source reads.
enum Mode {
    Stream(Box<Live>),
    Scan(Box<ScanLive>),
}

/// Channel and server.
impl std::fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisSource({} at {})", self.config.channel, self.endpoint().label())
    }
}

impl RedisSource {
    /// A source that is connected to nothing yet.
    pub fn new(config: Arc<RedisConfig>, site: Site) -> RedisSource {
        RedisSource {
            config,
            site,
            applied_into: Arc::default(),
            live: None,
            scan_broke_at: None,
            progress: Arc::default(),
        }
    }

    /// Lets the source know, at any time, whether changes are applied into this server, too: then it has to
    /// be a replica, as nothing else tells the applier's writes from the application's.
    #[must_use]
    pub fn applied_into(self, flag: Arc<AtomicBool>) -> RedisSource {
        RedisSource { applied_into: flag, ..self }
    }

    fn endpoint(&self) -> &Endpoint {
        self.config.endpoint(self.site)
    }

    /// Whether the server refused replication, so that keys are scanned and read again at each keyspace
    /// event: weaker, see connectors/redis/README.md.
    pub fn is_scanning(&self) -> bool {
        matches!(self.live, Some(Mode::Scan(_)))
    }

    fn live(&mut self, action: &str) -> Result<&mut Mode> {
        let label = self.endpoint().label();
        self.live.as_mut().ok_or_else(|| unavailable(action, &label, "the stream is not open"))
    }

    /// What gives the progress of the link that is open, for as long as this source is there.
    fn told_progress(&self) -> impl Fn() -> Option<Arc<Progress>> + Send + Sync + use<> {
        let progress = Arc::downgrade(&self.progress);
        move || progress.upgrade()?.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_progress(&self, progress: Option<Arc<Progress>>) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// A scan has to be impossible where its own applier's writes would come back.
    fn may_scan(&self, reason: &str) -> Result<()> {
        if !self.applied_into.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Setup {
            action: "ask for the replication stream".into(),
            endpoint: self.endpoint().label(),
            reason: format!(
                "refused ({reason}), and without it our own applied changes cannot be told from others"
            ),
            advice: "give the user +psync +replconf (ACL SETUSER), or let nothing be applied into this site"
                .into(),
        })
    }

    async fn open_link(
        &mut self,
        from: Option<&Position>,
        snapshot: bool,
        told: Told,
    ) -> Result<(Mode, Opened)> {
        let mut side = Conn::connect(self.endpoint()).await?;
        let label = side.endpoint_label().to_owned();
        let endpoint = self.endpoint().only(side.address());
        let name = format!("causeway:{}.{}:capture", self.config.link, self.config.channel);
        side.call(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
        let pings = config_get(&mut side, b"repl-ping-replica-period").await?;
        let period = pings.and_then(|seconds| seconds.parse().ok()).unwrap_or(10);
        // Of several servers the one that answers now may be behind the one that streamed.
        let keeps = self.endpoint().addresses.len() == 1
            && config_get(&mut side, b"appendonly").await?.as_deref() == Some("yes")
            && config_get(&mut side, b"appendfsync").await?.as_deref() == Some("always");
        let buffer = config_get(&mut side, b"client-output-buffer-limit").await?;
        let resume = from.map(resume_from);
        let began = Instant::now();
        loop {
            let asked = now_ms();
            let info = ServerInfo::read(&mut side).await?;
            info.suits_capture(&label)?;
            let options = LinkOptions {
                from: resume.as_ref().and_then(|r| r.as_ref().ok()).map(|(id, at, _)| (id.clone(), *at)),
                empty_snapshot: !snapshot,
                bytes_per_second: self.config.limits.snapshot_bytes_per_second,
                silence_max: SILENCE_MIN.max(Duration::from_secs(period).saturating_mul(3)),
                name: name.clone(),
            };
            let (link, start) = match Link::open(&endpoint, &options).await? {
                Opening::Open(link, start) => (link, start),
                Opening::Refused(reason) => {
                    self.may_scan(&reason)?;
                    let lost = from.map(|_| "without replication nothing goes on after a break".to_owned());
                    let config = self.config.clone();
                    let place = self.scan_broke_at.clone();
                    let live =
                        ScanLive::open(config, &endpoint, side, &info, &reason, snapshot, place).await?;
                    return Ok((Mode::Scan(Box::new(live)), Opened::Anew { lost }));
                }
            };
            let (history, at, db, opened) = match (start, &resume) {
                (Start::Continue { id }, Some(Ok((asked, at, db)))) => {
                    let history = continued(&mut side, id, asked).await?;
                    (history, *at, *db, Opened::Resumed)
                }
                (Start::Full { id, at }, _) => {
                    // We may have been given a snapshot that was begun for another replica, before we asked:
                    // it lacks what was applied until now.
                    if id == info.replid && at < info.offset {
                        drop(link);
                        if began.elapsed() > OTHER_SNAPSHOT_MAX {
                            let reason =
                                "another replica's snapshot is under way; ours has to begin after it";
                            return Err(unavailable("begin a snapshot", &label, reason));
                        }
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        continue;
                    }
                    let lost = resume.as_ref().map(|r| lost_because(r, &info, &id));
                    (History::single(id), at, 0, Opened::Anew { lost })
                }
                (Start::Continue { .. }, _) => {
                    return Err(unavailable("go on with the stream", &label, "nothing was asked to go on"));
                }
            };
            let has_expiretime = info.has_expiretime();
            let progress = link.progress();
            progress.buffer_max(replica_buffer_max(buffer.as_deref()));
            progress.server_says(&info, asked);
            let cut = self.config.limits.cut();
            let side = Side::start(side, &endpoint, &self.config.names, has_expiretime, progress, cut);
            let stream =
                Stream::new(&label, self.config.filter.clone(), self.config.names.clone(), history, at, db);
            let anew = matches!(opened, Opened::Anew { .. });
            let stream = stream.told(if anew { Told::new() } else { told });
            let snapshot = anew.then(|| Snapshot::new(&self.config, &stream, &info, snapshot));
            // What comes behind it was written since we asked.
            let backlog_end = (!anew).then_some(info.offset);
            let live = Live { keeps, backlog_end, ..Live::new(label, link, side, stream, snapshot) };
            return Ok((Mode::Stream(Box::new(live)), opened));
        }
    }
}

/// Id, offset and database to go on behind, or why that cannot be asked for.
fn resume_from(from: &Position) -> Result<(Bytes, u64, u32), String> {
    let text = std::str::from_utf8(&from.context).unwrap_or_default();
    // The database, and how far before the place.
    let (db, before) = text.split_once('-').unwrap_or((text, "0"));
    let id = &from.history;
    match (db.parse(), before.parse::<u64>()) {
        (Ok(db), Ok(before)) if id.len() == 40 && id.iter().all(u8::is_ascii_alphanumeric) => {
            Ok((id.clone(), from.at.saturating_sub(before), db))
        }
        _ => Err("the position is none of a replication stream".to_owned()),
    }
}

fn lost_because(resume: &Result<(Bytes, u64, u32), String>, info: &ServerInfo, now: &Bytes) -> String {
    match resume {
        Err(reason) => reason.clone(),
        Ok((id, at, _)) if id == now => format!(
            "the server's backlog no longer reaches back to byte {} (it begins at {}); a larger \
             repl-backlog-size bridges longer breaks",
            at + 1,
            info.backlog_start
        ),
        Ok(_) => {
            "the server's replication id is another one: it was restarted, replaced, or lost its backlog"
                .to_owned()
        }
    }
}

/// Which offsets bear which id after `+CONTINUE id` to a stream that was known as `asked`.
async fn continued(side: &mut Conn, id: Bytes, asked: &Bytes) -> Result<History> {
    if id == *asked {
        return Ok(History::single(id));
    }
    let info = ServerInfo::read(side).await?;
    if info.replid != id || info.replid2 != *asked {
        let reason = "the replication id changes just now";
        return Err(unavailable("go on with the stream", side.endpoint_label(), reason));
    }
    Ok(History { old: asked.clone(), until: info.second_offset.saturating_sub(1), new: id })
}

/// The snapshot under way.
struct Snapshot {
    splitter: Splitter,
    filter: Filter,
    /// What it brings is wanted.
    wanted: bool,
    started: Option<Event>,
    pos: Position,
    /// The link has brought all of it.
    arrived: bool,
    /// The splitter has seen its end.
    complete: bool,
    left_out: (u64, Vec<(Key, String)>),
    now: u64,
}

impl Snapshot {
    fn new(config: &RedisConfig, stream: &Stream, info: &ServerInfo, wanted: bool) -> Snapshot {
        let carried = info.keys.iter().filter(|(db, _)| config.filter.carries_db(*db));
        // With patterns nobody knows how many of them are meant.
        let total = config.filter.is_whole().then(|| carried.map(|(_, n)| n).sum());
        let pos = stream.position();
        Snapshot {
            splitter: Splitter::new(config.limits.cut()),
            filter: config.filter.clone(),
            wanted,
            started: wanted.then(|| Event::SnapshotStarted { total, pos: pos.clone() }),
            pos,
            arrived: false,
            complete: false,
            left_out: (0, Vec::new()),
            now: now_ms(),
        }
    }

    /// Appends what the bytes fed so far hold, up to about `bytes_max`; true if there may be more.
    fn take(&mut self, label: &str, events: &mut Vec<Event>, bytes_max: usize) -> Result<bool> {
        events.extend(self.started.take());
        let mut bytes = 0;
        while !self.complete && self.wanted {
            if bytes >= bytes_max {
                return Ok(true);
            }
            let next = self.splitter.next().map_err(|e| Error::Garbled {
                endpoint: label.to_owned(),
                what: "RDB",
                at: e.at,
                reason: e.reason,
            })?;
            let Some(item) = next else { break };
            let Some(change) = self.change(item) else { continue };
            let (change, end) = end_apart(change);
            for change in std::iter::once(change).chain(end) {
                bytes += change.cost();
                events.push(Event::Change(change));
            }
        }
        if !self.arrived {
            return Ok(false);
        }
        if self.wanted && !self.complete {
            let at = self.splitter.consumed();
            let reason = "the bytes end before the RDB does".to_owned();
            return Err(Error::Garbled { endpoint: label.to_owned(), what: "RDB", at, reason });
        }
        if self.wanted {
            let left_out = std::mem::take(&mut self.left_out);
            events.push(Event::SnapshotEnded { pos: self.pos.clone(), left_out });
        }
        Ok(false)
    }

    fn change(&mut self, item: rdb::Item) -> Option<Change> {
        match item {
            rdb::Item::Entry(entry) => {
                let first = !matches!(entry.value, Value::Part { n: 1.., .. });
                if first && self.filter.leaves_out(entry.db, &entry.name) {
                    let key = Key { space: Space::Db(entry.db), name: entry.name };
                    self.leave_out(key, EMPTY_NAME.to_owned());
                    return None;
                }
                if !self.filter.carries(entry.db, &entry.name) {
                    return None;
                }
                let key = Key { space: Space::Db(entry.db), name: entry.name };
                let (value, part) = match entry.value {
                    Value::Dump(payload) => (payload, None),
                    Value::Part { n, last, commands } => (commands, Some(Part { n, last })),
                    Value::Left { reason } => {
                        self.leave_out(key, reason);
                        return None;
                    }
                };
                let mut change = Change::captured(Op::Read, key, Some(value), self.pos.clone(), self.now);
                change.expire_at = entry.expire_at;
                change.part = part;
                Some(change)
            }
            rdb::Item::Function(code) => {
                let load = Command::of(&[b"FUNCTION", b"LOAD", b"REPLACE", &code]);
                let key = Key { space: Space::Db(0), name: Bytes::new() };
                Some(Change::captured(Op::Read, key, Some(load.raw), self.pos.clone(), self.now))
            }
            rdb::Item::Aux { name, value } if name == "module-aux" => {
                let reason = format!("data of the module type {}", String::from_utf8_lossy(&value));
                self.leave_out(Key { space: Space::Db(0), name: Bytes::new() }, reason);
                None
            }
            rdb::Item::End => {
                self.complete = true;
                None
            }
            rdb::Item::Version(_) | rdb::Item::Aux { .. } | rdb::Item::Sizes { .. } => None,
        }
    }

    fn leave_out(&mut self, key: Key, reason: String) {
        let (count, named) = &mut self.left_out;
        *count += 1;
        if named.len() < LEFT_OUT_NAMED {
            named.push((key, reason));
        }
    }
}

/// Of a value's last piece, what it brings and an end that brings nothing: the target makes the value appear
/// with the end, once it is known that nothing of the value was refused.
fn end_apart(mut change: Change) -> (Change, Option<Change>) {
    let Some(Part { n, last: true }) = change.part else { return (change, None) };
    let part = Some(Part { n: n.wrapping_add(1), last: true });
    let end = Change { value: Some(Bytes::new()), part, ..change.clone() };
    change.part = Some(Part { n, last: false });
    (change, Some(end))
}

/// What has to come before there is more to do.
enum Need {
    /// Nothing: the caller has enough.
    Room,
    /// Something from the link.
    Link,
    /// Something from the connection beside it.
    Answer,
}

/// What was read with a token so far.
#[derive(Default)]
struct Reading {
    /// Not taken yet.
    pieces: VecDeque<(Piece, OwnedSemaphorePermit)>,
    /// Once all of it is there.
    read: Option<Read>,
}

/// A stream that is open.
struct Live {
    label: String,
    link: Link,
    side: Side,
    stream: Stream,
    snapshot: Option<Snapshot>,
    commands: std::vec::IntoIter<Command>,
    /// A command whose keys are being asked for.
    held: Option<Command>,
    /// Of the tokens of re-reads.
    reads: HashMap<Token, Reading>,
    /// Asked for when the snapshot is behind us: nothing could be taken before.
    later: Vec<Request>,
    /// The last position that the caller knows of.
    told: u64,
    /// The server syncs to disk before it streams.
    keeps: bool,
    /// The server's end of the stream before it went on.
    backlog_end: Option<u64>,
}

impl Live {
    fn new(label: String, link: Link, side: Side, stream: Stream, snapshot: Option<Snapshot>) -> Live {
        let told = stream.at();
        let commands = Vec::new().into_iter();
        Live {
            label,
            link,
            side,
            stream,
            snapshot,
            commands,
            held: None,
            reads: HashMap::new(),
            later: Vec::new(),
            told,
            keeps: false,
            backlog_end: None,
        }
    }

    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        let progress = self.link.progress();
        progress.handed_out(self.told);
        let before = events.len();
        let mut bytes_left = bytes_max.max(1);
        loop {
            let from = events.len();
            let need = self.work(events, bytes_left)?;
            progress.is_reading_again(self.stream.open_keys());
            let added: usize = events.iter().skip(from).map(cost).sum();
            bytes_left = bytes_left.saturating_sub(added);
            let enough = bytes_left == 0 || events.len() > before;
            match need {
                Need::Room => break,
                Need::Link => match self.link.try_next()? {
                    Some(item) if bytes_left > 0 => self.arrived(item),
                    Some(item) => {
                        self.arrived(item);
                        break;
                    }
                    None => {
                        self.tell_idle(events);
                        if enough || events.len() > before {
                            break;
                        }
                        tokio::select! {
                            item = self.link.next() => {
                                let item = item?;
                                self.arrived(item);
                            }
                            answer = self.side.answer() => self.answered(answer)?,
                        }
                    }
                },
                Need::Answer => {
                    if enough {
                        break;
                    }
                    let answer = self.side.answer().await;
                    self.answered(answer)?;
                }
            }
        }
        if let Some(at) = events.iter().skip(before).rev().find_map(place) {
            self.told = self.told.max(at);
        }
        Ok(())
    }

    /// The stream has come further than the last event says, and nothing is under way.
    fn tell_idle(&mut self, events: &mut Vec<Event>) {
        let told = events.last().and_then(place).unwrap_or(0).max(self.told);
        if self.snapshot.is_none() && self.stream.is_quiet() && self.stream.at() > told {
            events.push(Event::Idle { pos: self.stream.position() });
        }
    }

    fn arrived(&mut self, item: Item) {
        match (item, &mut self.snapshot) {
            (Item::Commands(commands), _) => {
                self.stream.now = now_ms();
                self.commands = commands.into_iter();
            }
            (Item::Rdb(bytes), Some(snapshot)) => {
                snapshot.now = now_ms();
                if snapshot.wanted {
                    snapshot.splitter.feed(bytes);
                }
            }
            (Item::RdbEnd, Some(snapshot)) => snapshot.arrived = true,
            (Item::Rdb(_) | Item::RdbEnd, None) => {}
        }
    }

    fn answered(&mut self, answer: Answer) -> Result<()> {
        match answer {
            Answer::Sent(token) => {
                self.reads.insert(token, Reading::default());
            }
            Answer::Piece(token, piece, room) => {
                self.reads.entry(token).or_default().pieces.push_back((piece, room));
            }
            Answer::Read(read) => {
                let reading = self.reads.entry(read.token).or_default();
                reading.read = Some(read);
            }
            Answer::Keys(name, keys) => self.stream.learn(name, keys),
            Answer::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Does what can be done without waiting.
    fn work(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<Need> {
        if let Some(snapshot) = &mut self.snapshot {
            if snapshot.take(&self.label, events, bytes_max)? {
                return Ok(Need::Room);
            }
            if !snapshot.arrived {
                return Ok(Need::Link);
            }
            if !snapshot.wanted {
                events.push(Event::Idle { pos: snapshot.pos.clone() });
            }
            self.snapshot = None;
        }
        for request in self.later.drain(..) {
            self.side.ask(request)?;
        }
        let need = self.commands(events, bytes_max);
        if self.stream.has_asked() {
            self.side.ask(Request::Sets(self.stream.take_asked()))?;
        }
        need
    }

    fn commands(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<Need> {
        let mut bytes = 0;
        let mut counted = events.len();
        loop {
            while let Some(token) = self.stream.token() {
                // A re-read's token was announced before it was written, so that it is known by now.
                while let Some(answer) = self.side.try_answer() {
                    self.answered(answer)?;
                }
                let Some(reading) = self.reads.get_mut(&token) else {
                    self.stream.pass_token(events);
                    continue;
                };
                while let Some((piece, _room)) = reading.pieces.pop_front() {
                    self.stream.piece(piece, events);
                    bytes += events.iter().skip(counted).map(cost).sum::<usize>();
                    counted = events.len();
                    if bytes >= bytes_max {
                        return Ok(Need::Room);
                    }
                }
                let Some(read) = reading.read.take() else { return Ok(Need::Answer) };
                self.reads.remove(&token);
                self.stream.close(read.found, read.announced, events);
            }
            bytes += events.iter().skip(counted).map(cost).sum::<usize>();
            counted = events.len();
            if bytes >= bytes_max {
                return Ok(Need::Room);
            }
            let Some(command) = self.held.take().or_else(|| self.commands.next()) else {
                return Ok(Need::Link);
            };
            match self.stream.feed(&command, events) {
                Ok(Step::Done | Step::Token(_)) => {}
                Ok(Step::Unknown(name)) => {
                    self.held = Some(command);
                    self.side.ask(Request::Keys(name.clone()))?;
                    return Ok(Need::Answer);
                }
                Err(StreamError::Garbled(reason)) => {
                    let (endpoint, at) = (self.label.clone(), self.stream.at());
                    return Err(Error::Garbled { endpoint, what: "replication stream", at, reason });
                }
                Err(StreamError::TooFarBehind) => {
                    return Err(Error::PositionLost {
                        position: self.stream.position().to_string(),
                        reason: "too many keys have to be read again".into(),
                    });
                }
            }
        }
    }
}

/// What an event costs to hold, in bytes.
pub(crate) fn cost(event: &Event) -> usize {
    match event {
        Event::Change(change) => change.cost(),
        _ => 64,
    }
}

fn place(event: &Event) -> Option<u64> {
    match event {
        Event::Change(change) => Some(change.pos.at),
        Event::Marker { pos, .. }
        | Event::MarkerLost { pos }
        | Event::SnapshotStarted { pos, .. }
        | Event::SnapshotEnded { pos, .. }
        | Event::Idle { pos } => Some(pos.at),
        // What stands at its place may still follow it.
        Event::Token(_) | Event::LeftOut { .. } => None,
    }
}

#[async_trait]
impl Source for RedisSource {
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, told: Told) -> Result<Opened> {
        match &self.live {
            Some(Mode::Scan(live)) => self.scan_broke_at = live.place(),
            Some(Mode::Stream(_)) => self.scan_broke_at = None,
            None => {}
        }
        self.live = None;
        self.set_progress(None);
        let (live, opened) = self.open_link(from, snapshot, told).await?;
        if let Mode::Stream(live) = &live {
            self.set_progress(Some(live.link.progress()));
        }
        self.live = Some(live);
        Ok(opened)
    }

    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        if self.is_scanning() {
            self.may_scan("it was refused when the source was opened")?;
        }
        match self.live("read the stream")? {
            Mode::Stream(live) => live.next(events, bytes_max).await,
            Mode::Scan(live) => live.next(events, bytes_max).await,
        }
    }

    fn snapshot_broke_at(&mut self, restart_point: &Position) {
        // A scan that is still known here knows better.
        if self.live.is_none() {
            self.scan_broke_at = ScanPlace::from_context(&restart_point.context);
        }
    }

    fn warning(&self) -> Option<String> {
        self.is_scanning().then(|| {
            format!(
                "SCAN mode: {} refuses replication, so keys are scanned, and read again at each keyspace event; \
                 FLUSHALL, FLUSHDB and SWAPDB are not seen; give the user +psync +replconf there (ACL SETUSER)",
                self.endpoint().label()
            )
        })
    }

    fn diverged(&self, last: &Position) -> bool {
        matches!(&self.live, Some(Mode::Stream(live)) if !live.stream.history().knows(last))
    }

    fn keeps_what_it_streamed(&self) -> bool {
        matches!(&self.live, Some(Mode::Stream(live)) if live.keeps)
    }

    fn current(&self) -> Option<u64> {
        match &self.live {
            Some(Mode::Stream(live)) => live.link.progress().current(),
            _ => None,
        }
    }

    fn backlog_end(&self) -> Option<u64> {
        match &self.live {
            Some(Mode::Stream(live)) => live.backlog_end,
            _ => None,
        }
    }

    fn behind(&self) -> Option<Behind> {
        let progress = self.told_progress();
        Some(Arc::new(move || progress()?.behind()))
    }

    fn rereads(&self) -> Option<Rereads> {
        let progress = self.told_progress();
        Some(Arc::new(move || progress().map_or(0, |progress| progress.rereads())))
    }

    fn acknowledge(&mut self, durable: &Position) {
        if let Some(Mode::Stream(live)) = &mut self.live
            && live.stream.history().knows(durable)
        {
            live.link.acknowledge(durable.at);
        }
    }

    fn restart_point(&self, durable: &Position) -> Position {
        match &self.live {
            Some(Mode::Stream(live)) => live.stream.restart_point(durable),
            Some(Mode::Scan(live)) => live.restart_point(durable),
            None => durable.clone(),
        }
    }

    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token> {
        let filter = self.config.filter.clone();
        let keys = keys.into_iter().filter_map(|key| match key.space {
            Space::Db(db) if filter.carries(db, &key.name) => Some((db, key.name)),
            _ => None,
        });
        let keys = keys.collect();
        match self.live("read keys again")? {
            Mode::Stream(live) => {
                let token = Token::unique();
                let request = Request::Refresh(keys, token);
                match live.snapshot {
                    Some(_) => live.later.push(request),
                    None => live.side.ask(request)?,
                }
                Ok(token)
            }
            Mode::Scan(live) => live.refresh(keys),
        }
    }
}
