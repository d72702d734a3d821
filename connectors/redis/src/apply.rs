//! A server as the target of its peer's changes: transactions with the marker in them, pipelined on one
//! connection that fences every older one.
//!
//! A transaction is `MULTI, SET marker, commands, EXEC`, so that the marker is there exactly if the data
//! is. The connection is in database 0 between any two of them, whatever became of the one before: a
//! refused transaction leaves the database where it was. What has to be known before a transaction may be
//! written (does the server have this database, does it take payloads of this version) is asked when it is
//! met first, on the same connection.
//!
//! Not here: how a change becomes commands (`encode`), what the replies mean (`answer`), how older
//! connections are ended (`fence`).

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use causeway_core::{
    Batch, Change, Error, Key, Keys, Marker, Outcome, Result, Seq, Site, Space, Target, Term, Token,
};

use crate::config::RedisConfig;
use crate::conn::{Conn, ConnReader, ConnWriter, Endpoint, server_error, unavailable};
use crate::names;
use crate::resp::{self, Reply};

pub(crate) mod answer;
pub(crate) mod encode;
pub(crate) mod fence;
mod holds;
mod lasting;
mod limit;
mod probe;

use answer::{Answer, Collector};
use encode::{Hidden, piece_name};
use lasting::Clock;
use limit::Limit;

/// Keys of one WATCH: a command of this many arguments keeps the server busy for well under a millisecond.
const WATCH_KEYS: usize = 1000;
/// Keys that one SCAN step looks at.
const SCAN_COUNT: &[u8] = b"1000";
/// How a page's cursor is put together: the database above, the server's own cursor below. A server that
/// is no cluster counts up to its table's size, so 48 bits are never short.
const CURSOR_BITS: u32 = 48;
/// A buffer that grew beyond this is given back after use.
const BUFFER_KEPT: usize = 4 << 20;

/// One site's server, as the target of its peer's changes.
pub struct RedisTarget {
    config: Arc<RedisConfig>,
    site: Site,
    /// Where a payload is tried; never exists.
    probe_key: Vec<u8>,
    limit: Option<Limit>,
    link: Option<Link>,
    out: BytesMut,
    settled: Seq,
}

/// A connection that holds the partition, and what is under way on it.
struct Link {
    reader: ConnReader,
    writer: ConnWriter,
    /// Without the right to end other connections: each transaction is on condition that the marker is
    /// still the one that we wrote.
    guarded: Option<Guard>,
    pending: VecDeque<Pending>,
    /// Outcomes that came in while something else was waited for.
    ready: VecDeque<(Outcome, Seq)>,
    /// Keys are being watched.
    watching: bool,
    /// Databases that were asked for, and whether the server has them.
    databases: Vec<(u32, bool)>,
    /// RDB versions of payloads that were tried, and whether the server takes them.
    payloads: Vec<(u16, bool)>,
    /// Values of which a piece was refused, and which no committed transaction deleted yet. The next one
    /// does, so that no marker can count the refusal as answered before what is left of the value is gone.
    broken: Vec<Hidden>,
    clock: Clock,
}

struct Guard {
    /// The marker's text that has to be there.
    marker: Bytes,
}

/// What the next replies belong to.
enum Pending {
    /// A transaction.
    Batch { collector: Collector, applied: Seq },
    /// It was never sent.
    Known { outcome: Outcome, applied: Seq },
}

impl std::fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisTarget({} at {})", self.config.channel, self.endpoint().label())
    }
}

impl RedisTarget {
    /// `site`'s server; connects to nothing yet.
    pub fn new(config: Arc<RedisConfig>, site: Site) -> RedisTarget {
        RedisTarget {
            probe_key: [config.names.prefix.as_slice(), b"probe"].concat(),
            limit: config.limits.apply_ops_per_second.map(Limit::new),
            link: None,
            out: BytesMut::new(),
            settled: Seq(0),
            config,
            site,
        }
    }

    fn endpoint(&self) -> &Endpoint {
        let [first, second] = &self.config.endpoints;
        match self.site {
            Site::First => first,
            Site::Second => second,
        }
    }

    fn not_connected(&self, action: &str) -> Error {
        unavailable(action, &self.endpoint().label(), "not connected")
    }

    fn link(&mut self, action: &str) -> Result<&mut Link> {
        let missing = self.not_connected(action);
        self.link.as_mut().ok_or(missing)
    }

    /// Passes on what `did`; after an error the connection is of no use.
    fn watch_over<T>(&mut self, action: &str, did: Result<T>) -> Result<T> {
        did.map_err(|error| {
            self.link = None;
            match error {
                Error::Unavailable { endpoint, source, .. } => {
                    Error::Unavailable { action: action.to_owned(), endpoint, source }
                }
                other => other,
            }
        })
    }

    async fn connect(&mut self, term: Term) -> Result<Option<Marker>> {
        let mut conn = Conn::connect(self.endpoint()).await?;
        fence::require_master(&mut conn).await?;
        let name = fence::connection_name(&self.config.link, &self.config.channel);
        let alone = fence::end_others(&mut conn, &name).await?;
        let (marker, text) = fence::read_marker(&mut conn, &self.config.names.marker).await?;
        fence::require_newest(&conn, marker.as_ref(), term)?;
        let guarded = match alone {
            true => None,
            false => {
                let text =
                    fence::claim(&mut conn, &self.config.names.marker, marker.as_ref(), text, term).await?;
                Some(Guard { marker: text })
            }
        };
        let clock = Clock::read(&mut conn).await?;
        let (reader, writer) = conn.split();
        self.link = Some(Link {
            clock,
            reader,
            writer,
            guarded,
            pending: VecDeque::new(),
            ready: VecDeque::new(),
            watching: false,
            databases: vec![(0, true)],
            payloads: Vec::new(),
            broken: Vec::new(),
        });
        Ok(marker)
    }

    async fn send_batch(&mut self, batch: Batch) -> Result<()> {
        if let Some(limit) = &mut self.limit {
            limit.take(batch.changes.len() as u64).await;
        }
        let action = action(&batch);
        let applied = batch.marker.applied;
        let marker = Bytes::from(batch.marker.to_string());
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let missing = self.not_connected(&action);
        let link = self.link.as_mut().ok_or(missing)?;
        if batch.watched && !link.watching {
            // Another transaction came in between and ended the watch: nothing is known of the keys.
            link.pending.push_back(Pending::Known { outcome: Outcome::Touched, applied });
            self.out = out;
            return Ok(());
        }
        if let Some(reason) = link.learn(&batch, &self.probe_key).await? {
            let outcome = Outcome::Rejected { transient: true, reason };
            link.pending.push_back(Pending::Known { outcome, applied });
            self.out = out;
            return Ok(());
        }
        let incomplete = link.incomplete(&batch, &self.config.names).await?;
        let guarded = link.guarded.is_some();
        if guarded || (link.watching && !batch.watched) {
            link.drain().await?;
        }
        if link.watching && !batch.watched {
            // The server would take the watch as a condition of this transaction.
            link.command(&[b"UNWATCH"]).await?;
        }
        if guarded {
            link.watch_marker(&self.config.names.marker).await?;
        }
        link.watching = false;
        let expected = encode::Encoder {
            names: &self.config.names,
            filter: &self.config.filter,
            marker: &marker,
            databases: &link.databases,
            payloads: &link.payloads,
            broken: &link.broken,
            incomplete: &incomplete,
            now: link.clock.now(),
        }
        .batch(&batch, &mut out);
        let collector = Collector::new(expected, action, batch.watched || guarded);
        link.pending.push_back(Pending::Batch { collector, applied });
        link.writer.send(&out).await?;
        if out.capacity() <= BUFFER_KEPT {
            self.out = out;
        }
        if guarded {
            link.drain().await?;
            link.settle_guard(&self.config.names.marker, marker).await?;
        }
        Ok(())
    }

    async fn next_outcome(&mut self) -> Result<Outcome> {
        loop {
            let Some(link) = self.link.as_mut() else { return Err(self.not_connected("apply changes")) };
            if let Some((outcome, applied)) = link.ready.pop_front() {
                self.settled = self.settled.max(applied);
                return Ok(outcome);
            }
            if link.pending.is_empty() {
                return std::future::pending().await;
            }
            link.step().await?;
        }
    }

    async fn watch_keys(&mut self, keys: &[Key]) -> Result<Token> {
        let token_key = self.config.names.token.clone();
        let link = self.link("watch keys")?;
        link.drain().await?;
        link.watching = true;
        let mut keys: Vec<(u32, &[u8])> = keys.iter().map(|key| (db_of(key), key.name.as_ref())).collect();
        keys.sort_unstable();
        // All in one round trip: the line may be long.
        let (mut out, mut replies) = (BytesMut::new(), 3);
        resp::encode(&mut out, &[b"UNWATCH"]);
        for same in keys.chunk_by(|a, b| a.0 == b.0) {
            let Some(&(db, _)) = same.first() else { continue };
            if !link.has_database(db).await? {
                continue;
            }
            resp::encode(&mut out, &[b"SELECT", &resp::decimal(db)]);
            replies += 1;
            for chunk in same.chunks(WATCH_KEYS) {
                let mut args = vec![&b"WATCH"[..]];
                args.extend(chunk.iter().map(|(_, name)| name));
                resp::encode(&mut out, &args);
                replies += 1;
            }
        }
        resp::encode(&mut out, &[b"SELECT", b"0"]);
        let token = Token::unique();
        resp::encode(&mut out, &[b"SET", &token_key, token.text().as_bytes()]);
        link.writer.send(&out).await?;
        for _ in 0..replies {
            link.answered("watch keys").await?;
        }
        Ok(token)
    }

    async fn scan(&mut self, cursor: u64) -> Result<Keys> {
        let config = Arc::clone(&self.config);
        let link = self.link("list keys")?;
        link.drain().await?;
        let mut db = u32::try_from(cursor >> CURSOR_BITS).unwrap_or(u32::MAX);
        let mut at = cursor & ((1 << CURSOR_BITS) - 1);
        loop {
            if !link.has_database(db).await? {
                return Ok((Vec::new(), None));
            }
            if !config.filter.carries_db(db) {
                (db, at) = (db + 1, 0);
                continue;
            }
            link.select(db).await?;
            let position = at.to_string();
            let page = link.command(&[b"SCAN", position.as_bytes(), b"COUNT", SCAN_COUNT]).await?;
            link.select(0).await?;
            let (next, names) = scan_page(&page).ok_or_else(|| Error::Garbled {
                endpoint: link.reader.endpoint_label().to_owned(),
                what: "reply to SCAN",
                at: 0,
                reason: "a cursor under 2^48 and an array of keys were expected".to_owned(),
            })?;
            let names: Vec<Bytes> = names.collect();
            let unfinished = names.iter().filter(|name| name.starts_with(&config.names.part));
            let unfinished: Vec<&[u8]> = unfinished.map(|name| name.as_ref()).collect();
            if !unfinished.is_empty() {
                link.select(db).await?;
                let reply = link.call(&[&[&b"UNLINK"[..]], unfinished.as_slice()].concat()).await?;
                link.select(0).await?;
                match reply.error() {
                    None => tracing::info!(keys = unfinished.len(), "unfinished pieces of values removed"),
                    Some(text) => {
                        let reason = answer::shown(text);
                        tracing::warn!(
                            reason,
                            "unfinished pieces of values stay: `syncd cleanup` removes them"
                        );
                    }
                }
            }
            let keys: Vec<Key> = names
                .into_iter()
                .filter(|name| config.filter.carries(db, name))
                .map(|name| Key { space: Space::Db(db), name })
                .collect();
            (db, at) = if next == 0 { (db + 1, 0) } else { (db, next) };
            // An empty page, as an empty database gives, needs no round of the caller's.
            if !keys.is_empty() {
                return Ok((keys, Some((u64::from(db) << CURSOR_BITS) | at)));
            }
        }
    }
}

/// A reply of SCAN: the next cursor, and the keys.
fn scan_page(page: &Reply) -> Option<(u64, impl Iterator<Item = Bytes>)> {
    let [next, keys] = page.items()? else { return None };
    let next = std::str::from_utf8(next.bytes()?).ok()?.parse().ok()?;
    let keys = keys.items()?.iter().filter_map(|key| key.bytes().cloned());
    (next < 1 << CURSOR_BITS).then_some((next, keys))
}

fn action(batch: &Batch) -> String {
    format!("apply {} changes", batch.changes.len())
}

/// The database of a key; a key of the whole server (a function) is in 0.
pub(crate) fn db_of(key: &Key) -> u32 {
    match key.space {
        Space::Db(db) => db,
        _ => 0,
    }
}

impl Link {
    /// Sends one command while nothing is under way, and waits for its reply.
    async fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        self.writer.command(args).await?;
        self.reader.reply().await
    }

    /// As [`call`](Link::call); an error reply is an error.
    async fn command(&mut self, args: &[&[u8]]) -> Result<Reply> {
        let reply = self.call(args).await?;
        match reply.error() {
            Some(text) => {
                let name = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
                Err(server_error(&name, self.reader.endpoint_label(), text))
            }
            None => Ok(reply),
        }
    }

    /// Reads one reply; an error reply is an error.
    async fn answered(&mut self, action: &str) -> Result<()> {
        let reply = self.reader.reply().await?;
        match reply.error() {
            None => Ok(()),
            Some(text) => Err(server_error(action, self.reader.endpoint_label(), text)),
        }
    }

    async fn select(&mut self, db: u32) -> Result<()> {
        self.command(&[b"SELECT", &resp::decimal(db)]).await?;
        Ok(())
    }

    /// Waits for the replies of all that is under way.
    async fn drain(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.step().await?;
        }
        Ok(())
    }

    /// The values whose last piece is in `batch` although not all before those in it went in. Waits for
    /// the answers to what is under way if there is a last piece: it is not taken back once it was sent.
    async fn incomplete(&mut self, batch: &Batch, names: &names::Names) -> Result<Vec<Hidden>> {
        let piece = |change: &Change| change.part.filter(|_| change.op.is_data() && change.value.is_some());
        let first = |hidden: &Hidden| {
            let same = batch.changes.iter().filter(|c| piece(c).is_some() && Hidden::of(names, c) == *hidden);
            same.filter_map(piece).map(|part| part.n).min()
        };
        let mut incomplete = Vec::new();
        for change in &batch.changes {
            let Some(part) = piece(change) else { continue };
            let hidden = Hidden::of(names, change);
            if part.n == 0 {
                // It deletes what is left, and later transactions must not.
                self.broken.retain(|broken| *broken != hidden);
            }
            if !part.last || probe::known(&self.databases, hidden.db) != Some(true) {
                continue;
            }
            let Some(before) = first(&hidden).and_then(|n| n.checked_sub(1)) else { continue };
            self.drain().await?;
            self.select(hidden.db).await?;
            let head = self.call(&[b"LINDEX", &hidden.progress, b"0"]).await?;
            self.select(0).await?;
            if let Some(text) = head.error().filter(|text| !text.starts_with("WRONGTYPE")) {
                return Err(server_error("LINDEX", self.reader.endpoint_label(), text));
            }
            let went_in = head.bytes().is_some_and(|head| *head == piece_name(change, before));
            if self.broken.contains(&hidden) || !went_in {
                incomplete.push(hidden);
            }
        }
        Ok(incomplete)
    }

    /// Takes the oldest pending one a step further: waits for at most one read. Loses nothing if dropped.
    async fn step(&mut self) -> Result<()> {
        let answer = match self.pending.front_mut() {
            None => return Ok(()),
            Some(Pending::Known { outcome, .. }) => {
                Answer::Outcome(std::mem::replace(outcome, Outcome::Touched))
            }
            Some(Pending::Batch { collector, .. }) => {
                if collector.skip_queued(self.reader.buffer()) {
                    return Ok(());
                }
                let reply = self.reader.reply().await?;
                collector.take(reply, self.reader.endpoint_label())?
            }
        };
        let outcome = match answer {
            Answer::More => return Ok(()),
            Answer::Outcome(outcome) => outcome,
        };
        let applied = match self.pending.pop_front() {
            Some(Pending::Known { applied, .. }) => applied,
            Some(Pending::Batch { collector, applied }) => {
                collector.settle_broken(&outcome, &mut self.broken);
                applied
            }
            None => Seq(0),
        };
        self.ready.push_back((outcome, applied));
        Ok(())
    }
}

#[async_trait]
impl Target for RedisTarget {
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>> {
        self.link = None;
        let did = self.connect(term).await;
        self.watch_over("take over", did)
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let action = action(&batch);
        let did = self.send_batch(batch).await;
        self.watch_over(&action, did)
    }

    async fn outcome(&mut self) -> Result<Outcome> {
        let action = match self.link.as_ref().and_then(|link| link.pending.front()) {
            Some(Pending::Batch { collector, .. }) => collector.action().to_owned(),
            _ => "apply changes".to_owned(),
        };
        let did = self.next_outcome().await;
        self.watch_over(&action, did)
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        let action = format!("watch {} keys", keys.len());
        let did = self.watch_keys(keys).await;
        self.watch_over(&action, did)
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let did = self.holds_now(changes).await;
        self.watch_over("compare keys", did)
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        let did = self.scan(cursor).await;
        self.watch_over("list keys", did)
    }

    fn settled(&self) -> Seq {
        self.settled
    }
}
