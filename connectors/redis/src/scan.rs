//! What is done where the server lets us be no replica: SCAN, and keyspace events that say which keys were
//! touched. Every touched key is read again whole.
//!
//! Weaker than the stream, and said so when it is chosen: a break loses events for good, operations become
//! states, FLUSHALL, FLUSHDB and SWAPDB give no event and are not seen, and our own applied changes could not
//! be told from the application's. So it serves a site that nothing is applied into.
//!
//! **After a break** any key may have changed, and no server tells which: events are not kept for anybody, and
//! `OBJECT IDLETIME` stands still for a key that is written while the server saves to disk. So all keys are
//! read again, whatever was read before; only then is the snapshot said to be complete, and the daemon sweeps
//! what it did not name. But the scan goes on at its [`ScanPlace`], which the restart point carries, and comes
//! round to there: what was never read comes first, so that a scan longer than the time between two breaks
//! gets everywhere; and what was read already is compared with what the target holds, not written again.
//!
//! Order: everything is read over one connection, one after the other, and its events come in that order. A
//! key is touched before it is read, so what is read last holds every write that was announced before.

mod lister;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{Error, Event, Key, Op, Position, Result, Space, Token};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::RedisConfig;
use crate::conn::{Conn, ConnReader, ConnWriter, Endpoint, server_error, unavailable};
use crate::filter::Filter;
use crate::info::{ServerInfo, config_get};
use crate::reread::{Answer, Read, Request, Side};
use crate::resp::Reply;
use crate::source::cost;
use crate::stream::{Piece, Set};

use lister::Page;
pub(crate) use lister::{ScanPlace, page, select};

/// Touched keys that wait to be read; more mean that we can't keep up, and a new snapshot is cheaper.
const TOUCHED_MAX: usize = 1 << 20;
/// Keys that are asked for at once.
const ASK_MAX: usize = 256;
/// Keys under way: one request is being read while the next one waits.
const ASKED_MAX: u64 = 2 * ASK_MAX as u64;
/// A subscriber is silent where nothing is written: pings tell whether the line is alive.
const PING_EVERY: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// Left-out keys that are named.
const LEFT_OUT_NAMED: usize = 1000;

type Name = (u32, Bytes);
type Pages = mpsc::Receiver<Result<Page>>;

/// Keys that were touched and not read since, oldest first.
#[derive(Debug, Default)]
struct Touched {
    order: VecDeque<Name>,
    known: HashSet<Name>,
    failed: Option<Error>,
}

#[derive(Debug, Default)]
struct Shared {
    touched: Mutex<Touched>,
    news: Notify,
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Touched) -> T) -> T {
        f(&mut self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn fail(&self, error: Error) {
        self.with(|t| t.failed = Some(error));
        self.news.notify_one();
    }
}

/// A scan and the events beside it, open.
pub(crate) struct ScanLive {
    config: Arc<RedisConfig>,
    side: Side,
    shared: Arc<Shared>,
    pages: Option<Pages>,
    tasks: Vec<JoinHandle<()>>,
    history: Bytes,
    at: u64,
    /// How many sets were ever asked for, and how many came: in the same order.
    asked: u64,
    came: u64,
    /// The server's `run_id`.
    server: Bytes,
    /// Pages under way: once so many sets came, the scan has got behind this place.
    marks: VecDeque<(u64, Option<(u32, u64)>)>,
    /// How far the scan has got.
    place: Option<(u32, u64)>,
    /// With `snapshot_bytes_per_second`: before this, no more of the snapshot is asked for.
    paced_until: Instant,
    started: Option<Event>,
    /// The snapshot is under way: not all its pages were answered.
    scanning: bool,
    wanted: bool,
    left_out: (u64, Vec<(Key, String)>),
}

impl Drop for ScanLive {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl ScanLive {
    /// Subscribes, and then begins to scan (if `wanted`), at `from` if that is a place of this server as it
    /// runs now. `conn`: to the server that refused.
    pub(crate) async fn open(
        config: Arc<RedisConfig>,
        endpoint: &Endpoint,
        mut conn: Conn,
        info: &ServerInfo,
        reason: &str,
        wanted: bool,
        from: Option<ScanPlace>,
    ) -> Result<ScanLive> {
        let label = conn.endpoint_label().to_owned();
        events_are_on(&mut conn, reason).await?;
        let shared = Arc::new(Shared::default());
        let mut subscriber = Conn::connect(endpoint).await?;
        let subscribed = subscriber.call(&[b"PSUBSCRIBE", b"__keyevent@*__:*"]).await?;
        if let Some(text) = subscribed.error() {
            return Err(server_error("subscribe to keyspace events", &label, text));
        }
        let (mut reader, writer) = subscriber.split();
        reader.set_idle(SILENCE_MAX);
        let mut tasks = vec![
            tokio::spawn(listen(reader, config.filter.clone(), shared.clone())),
            tokio::spawn(ping(writer)),
        ];
        // From here on nothing is missed: what exists is what a scan lists or an event names.
        let dbs: Vec<u32> = info.keys.iter().map(|(db, _)| *db).collect();
        let (page, pages) = mpsc::channel(1);
        let from = from.filter(|from| wanted && !info.run_id.is_empty() && from.server == info.run_id);
        let from = from.map(|from| (from.db, from.cursor));
        if wanted {
            let lister = Conn::connect(endpoint).await?;
            tasks.push(tokio::spawn(lister::list(lister, dbs, from, config.filter.clone(), page)));
        }
        let (names, cut) = (&config.names, config.limits.cut());
        let side = Side::start(conn, endpoint, names, info.has_expiretime(), Arc::default(), cut);
        let history = Bytes::from(format!("scan:{}", Token::unique().text()));
        tracing::warn!(
            endpoint = label,
            reason,
            "replication is refused: keys are scanned, and read again at each keyspace event; after a break all \
             keys are read again, and FLUSHALL, FLUSHDB and SWAPDB are not seen"
        );
        if let Some((db, cursor)) = from {
            tracing::info!(
                endpoint = label,
                db,
                cursor,
                "the scan goes on where it broke; what it had read before comes once more, at its end"
            );
        }
        let carried = info.keys.iter().filter(|(db, _)| config.filter.carries_db(*db));
        let total = config.filter.is_whole().then(|| carried.map(|(_, n)| n).sum());
        let pos = Position { history: history.clone(), at: 0, context: Bytes::new() };
        let started = match wanted {
            true => Event::SnapshotStarted { total, pos },
            false => Event::Idle { pos },
        };
        Ok(ScanLive {
            config,
            side,
            shared,
            pages: wanted.then_some(pages),
            tasks,
            history,
            at: 0,
            asked: 0,
            came: 0,
            server: info.run_id.clone(),
            marks: VecDeque::new(),
            place: from,
            paced_until: Instant::now(),
            started: Some(started),
            scanning: wanted,
            wanted,
            left_out: (0, Vec::new()),
        })
    }

    fn position(&self) -> Position {
        self.position_at(self.at)
    }

    fn position_at(&self, at: u64) -> Position {
        Position { history: self.history.clone(), at, context: Bytes::new() }
    }

    /// How far the scan has got, all its events up to there having been taken; `None`: nowhere yet, or it
    /// is complete.
    pub(crate) fn place(&self) -> Option<ScanPlace> {
        let (db, cursor) = self.place.filter(|_| self.scanning && !self.server.is_empty())?;
        Some(ScanPlace { server: self.server.clone(), db, cursor })
    }

    /// See [`Source::restart_point`](causeway_core::Source::restart_point): `durable`, with the place.
    pub(crate) fn restart_point(&self, durable: &Position) -> Position {
        let context = self.place().map(|place| place.to_context()).unwrap_or_default();
        Position { context, ..durable.clone() }
    }

    /// See [`Source::refresh`](causeway_core::Source::refresh).
    pub(crate) fn refresh(&mut self, keys: Vec<Name>) -> Result<Token> {
        let token = Token::unique();
        // One more for the token itself.
        let asked = keys.len() as u64 + 1;
        self.side.ask(Request::Refresh(keys, token))?;
        self.asked += asked;
        Ok(token)
    }

    /// See [`Source::next`](causeway_core::Source::next).
    pub(crate) async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        let before = events.len();
        events.extend(self.started.take());
        loop {
            let mut bytes = 0;
            while bytes < bytes_max
                && let Some(answer) = self.side.try_answer()
            {
                let from = events.len();
                self.answered(answer, events)?;
                bytes += events.iter().skip(from).map(cost).sum::<usize>();
            }
            self.ask_touched()?;
            if self.scanning && self.pages.is_none() && self.under_way() == 0 {
                self.scanning = false;
                if self.wanted {
                    let left_out = std::mem::take(&mut self.left_out);
                    events.push(Event::SnapshotEnded { pos: self.position(), left_out });
                }
            }
            if events.len() > before {
                return Ok(());
            }
            let room = self.under_way() < ASKED_MAX;
            let paced = self.pages.is_some() && self.paced_until > Instant::now();
            tokio::select! {
                answer = self.side.answer() => self.answered(answer, events)?,
                () = self.shared.news.notified(), if room => {}
                () = tokio::time::sleep_until(self.paced_until), if room && paced => {}
                page = next_page(&mut self.pages), if room && !paced => match page {
                    Some(page) => {
                        let Page { db, keys, next } = page?;
                        self.ask(keys.into_iter().map(|key| (db, key)), true)?;
                        self.marks.push_back((self.asked, next));
                        self.pass_marks();
                    }
                    None => self.pages = None,
                },
            }
        }
    }

    fn under_way(&self) -> u64 {
        self.asked.saturating_sub(self.came)
    }

    fn ask(&mut self, keys: impl Iterator<Item = Name>, snapshot: bool) -> Result<()> {
        // `opened` tells the snapshot's keys from touched ones when they come back.
        let sets: Vec<Set> = keys.map(|key| Set { keys: vec![key], opened: snapshot }).collect();
        if !sets.is_empty() {
            self.asked += sets.len() as u64;
            self.side.ask(Request::Sets(sets))?;
        }
        Ok(())
    }

    fn pass_marks(&mut self) {
        while let Some((_, place)) = self.marks.pop_front_if(|(count, _)| *count <= self.came) {
            self.place = place;
        }
    }

    /// What was touched goes before more of the scan.
    fn ask_touched(&mut self) -> Result<()> {
        if self.under_way() >= ASKED_MAX {
            return Ok(());
        }
        let (keys, failed) = self.shared.with(|t| {
            let n = t.order.len().min(ASK_MAX);
            let keys: Vec<Name> = t.order.drain(..n).collect();
            keys.iter().for_each(|key| {
                t.known.remove(key);
            });
            (keys, t.failed.take())
        });
        match failed {
            Some(error) => Err(error),
            None => self.ask(keys.into_iter(), false),
        }
    }

    fn answered(&mut self, answer: Answer, events: &mut Vec<Event>) -> Result<()> {
        match answer {
            Answer::Sent(_) | Answer::Keys(..) => Ok(()),
            Answer::Failed(error) => Err(error),
            Answer::Piece(_, piece, _room) => {
                self.piece(piece, events);
                Ok(())
            }
            Answer::Read(read) => {
                self.read(read, events);
                Ok(())
            }
        }
    }

    /// A piece of what is read next: its place is where that will stand.
    fn piece(&mut self, piece: Piece, events: &mut Vec<Event>) {
        if self.config.filter.carries(piece.db, &piece.name) {
            let op = op(piece.opened);
            self.pace(op, piece.name.len() + piece.commands.len());
            let change = piece.change(op, &self.position_at(self.at + 1), now_ms());
            events.push(Event::Change(change));
        }
    }

    /// With `snapshot_bytes_per_second`: so much of it came.
    fn pace(&mut self, op: Op, bytes: usize) {
        if let (Op::Read, Some(rate)) = (op, self.config.limits.snapshot_bytes_per_second) {
            self.paced_until = self.paced_until.max(Instant::now())
                + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        }
    }

    fn read(&mut self, read: Read, events: &mut Vec<Event>) {
        self.at += 1;
        self.came += read.found.len() as u64;
        let (pos, now) = (self.position(), now_ms());
        for (set, states) in read.found {
            for ((db, name), state) in set.keys.into_iter().zip(states) {
                if !self.config.filter.carries(db, &name) {
                    continue;
                }
                let key = Key { space: Space::Db(db), name };
                let state = match state {
                    Ok(state) => state,
                    Err(reason) if self.scanning && self.wanted => {
                        let (count, named) = &mut self.left_out;
                        *count += 1;
                        if named.len() < LEFT_OUT_NAMED {
                            named.push((key, reason));
                        }
                        continue;
                    }
                    // The snapshot has told already.
                    Err(reason) => {
                        events.push(Event::LeftOut { key, reason, pos: pos.clone() });
                        continue;
                    }
                };
                if set.opened && state.held.is_none() {
                    // Gone since it was listed: its event says so.
                    continue;
                }
                let change = state.change(op(set.opened), key, &pos, now);
                self.pace(change.op, change.key.name.len() + change.value.as_ref().map_or(0, Bytes::len));
                events.push(Event::Change(change));
            }
        }
        if read.announced {
            events.push(Event::Token(read.token));
        }
        self.pass_marks();
    }
}

/// What a key that was read is: `listed` by the scan, or touched.
fn op(listed: bool) -> Op {
    if listed { Op::Read } else { Op::State }
}

/// The next page, or for ever nothing where there are no more.
async fn next_page(pages: &mut Option<Pages>) -> Option<Result<Page>> {
    match pages {
        Some(pages) => pages.recv().await,
        None => std::future::pending().await,
    }
}

/// Looks whether the server announces touched keys, and asks it to if it may be asked.
async fn events_are_on(conn: &mut Conn, refused: &str) -> Result<()> {
    const SETTING: &str = "notify-keyspace-events";
    let label = conn.endpoint_label().to_owned();
    let now = config_get(conn, SETTING.as_bytes()).await?;
    let enough = |flags: &str| flags.contains('E') && flags.contains('A');
    if now.as_deref().is_some_and(enough) {
        return Ok(());
    }
    if let Some(flags) = now {
        let more = format!("{flags}EA");
        let reply = conn.call(&[b"CONFIG", b"SET", SETTING.as_bytes(), more.as_bytes()]).await?;
        if reply.error().is_none() {
            tracing::warn!(endpoint = label, "{SETTING} was `{flags}` and is `{more}` now");
            return Ok(());
        }
    }
    Err(Error::Setup {
        action: "capture without replication".into(),
        endpoint: label,
        reason: format!("replication is refused ({refused}) and so are keyspace events"),
        advice: format!(
            "give the user +psync +replconf (better), or set {SETTING} to EA and let the user read it \
             (+config|get)"
        ),
    })
}

/// Keeps the subscriber's line from being silent.
async fn ping(mut writer: ConnWriter) {
    let mut every = tokio::time::interval(PING_EVERY);
    loop {
        every.tick().await;
        if writer.command(&[b"PING"]).await.is_err() {
            // The reader meets it, too.
            return;
        }
    }
}

/// Notes which keys were touched.
async fn listen(mut reader: ConnReader, filter: Filter, shared: Arc<Shared>) {
    loop {
        let reply = match reader.reply().await {
            Ok(reply) => reply,
            Err(error) => return shared.fail(error),
        };
        let Some(name) = touched(&reply).filter(|(db, key)| filter.carries(*db, key)) else { continue };
        let over = shared.with(|t| {
            if t.known.insert(name.clone()) {
                t.order.push_back(name);
            }
            t.order.len() > TOUCHED_MAX
        });
        if over {
            let reason = "keys are touched faster than they can be read again";
            return shared.fail(unavailable("follow keyspace events", reader.endpoint_label(), reason));
        }
        shared.news.notify_one();
    }
}

/// `pmessage`, pattern, `__keyevent@<db>__:<event>`, key.
fn touched(reply: &Reply) -> Option<Name> {
    let [kind, _, channel, key] = reply.items()? else { return None };
    if kind.bytes()? != "pmessage" {
        return None;
    }
    let channel = std::str::from_utf8(channel.bytes()?).ok()?;
    let (db, _) = channel.strip_prefix("__keyevent@")?.split_once("__:")?;
    // A copy: the message's bytes share memory with all that was read with it.
    Some((db.parse().ok()?, Bytes::copy_from_slice(key.bytes()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::parse_reply;
    use bytes::BytesMut;

    #[test]
    fn a_keyspace_event_names_its_key_and_database() {
        let parse = |channel: &str, kind: &str| {
            let (kn, cn) = (kind.len(), channel.len());
            let wire = format!("*4\r\n${kn}\r\n{kind}\r\n$1\r\n*\r\n${cn}\r\n{channel}\r\n$1\r\nk\r\n");
            touched(&parse_reply(&mut BytesMut::from(wire.as_bytes())).unwrap().unwrap())
        };
        assert_eq!(parse("__keyevent@12__:set", "pmessage"), Some((12, Bytes::from_static(b"k"))));
        assert_eq!(parse("__keyevent@x__:set", "pmessage"), None);
        assert_eq!(parse("__keyspace@0__:k", "pmessage"), None);
        assert_eq!(parse("__keyevent@0__:set", "message"), None);
    }
}
