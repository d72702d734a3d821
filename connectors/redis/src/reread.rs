//! Reads keys again, each together with a token: so that what was read has a place in the stream.
//!
//! A task owns a connection beside the link and asks in transactions: `SET token`, then `DUMP` and
//! `PEXPIRETIME` of each key. Where the token comes by in the stream, the values were as read. A value over the
//! limit is not held: it is cut into pieces while the answer comes, and these are handed over at once; only with
//! the answer's end is it known that all of it was right. What was read and not yet taken is bounded; what waits
//! to be read is names only, and bounded by [`Stream`]. Each second it also asks where the server's stream ends
//! by now, whether or not anything is taken.
//!
//! [`Stream`]: crate::stream::Stream

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use causeway_core::time::now_ms;
use causeway_core::{Error, Result, Token};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::conn::{Conn, Endpoint, server_error, unavailable};
use crate::info::ServerInfo;
use crate::names::Names;
use crate::progress::Progress;
use crate::rdb::{self, Cut, DumpCutter};
use crate::resp::{self, Head, Reply};
use crate::stream::{Found, Held, KeyArgs, Piece, Set};

/// Keys of one transaction: the server is kept from others for well under a millisecond by small ones.
const KEYS_MAX: usize = 256;
/// About how many bytes one transaction reads; a single key may be larger.
const READ_BYTES: u64 = 4 << 20;
/// What may be read and not yet taken; a larger key waits until it is alone.
const ROOM_BYTES: u64 = 32 << 20;
/// And of the pieces of large values.
const PIECES_BYTES: u64 = 8 << 20;
/// How often the server is asked how far its stream is; it hangs up on nobody who says something that often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Debug)]
pub enum Request {
    /// To read these keys, the sets whole.
    Sets(Vec<Set>),
    /// To read these keys, in any number of transactions, the last one with this token.
    Refresh(Vec<(u32, Bytes)>, Token),
    /// Which arguments of this command are keys.
    Keys(Vec<u8>),
}

/// What is answered.
#[derive(Debug)]
pub enum Answer {
    /// This token is a re-read's, and is about to be written: what was read follows.
    Sent(Token),
    /// A piece of a value that is being read with it; room is given back when that is dropped.
    Piece(Token, Piece, OwnedSemaphorePermit),
    /// What was read with it; room is given back when this is dropped.
    Read(Read),
    /// The command's key arguments, if anybody knows.
    Keys(Vec<u8>, Option<KeyArgs>),
    /// Nothing more comes.
    Failed(Error),
}

/// What a key was when it was read, or why it cannot be carried.
pub type Value = Result<Found, String>;

/// What one transaction read.
#[derive(Debug)]
pub struct Read {
    /// Its token.
    pub token: Token,
    /// The keys, and what each was.
    pub found: Vec<(Set, Vec<Value>)>,
    /// Somebody waits for the token.
    pub announced: bool,
    _room: OwnedSemaphorePermit,
}

/// The asking end. Dropping it ends the task.
#[derive(Debug)]
pub struct Side {
    requests: mpsc::UnboundedSender<Request>,
    answers: mpsc::UnboundedReceiver<Answer>,
    task: JoinHandle<()>,
    label: String,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Side {
    /// Takes over a connection; a new one goes to the same address. `has_expiretime`: the server is of 7.0
    /// or later. `progress` is told what the server says of its stream. `cut`: which values come in pieces.
    pub(crate) fn start(
        conn: Conn,
        endpoint: &Endpoint,
        names: &Names,
        has_expiretime: bool,
        progress: Arc<Progress>,
        cut: rdb::Options,
    ) -> Side {
        let (requests, inbox) = mpsc::unbounded_channel();
        let (outbox, answers) = mpsc::unbounded_channel();
        let label = conn.endpoint_label().to_owned();
        let reader = Reader {
            endpoint: endpoint.only(conn.address()),
            conn,
            busy: false,
            beside: None,
            version: None,
            token_key: names.token.clone(),
            has_expiretime,
            jobs: VecDeque::new(),
            room: Arc::new(Semaphore::new(ROOM_BYTES as usize)),
            pieces: Arc::new(Semaphore::new(PIECES_BYTES as usize)),
            inbox,
            outbox,
            progress,
            cut,
            look_at: Instant::now() + LOOK_EVERY,
        };
        Side { requests, answers, task: tokio::spawn(reader.run()), label }
    }

    /// Asks. Returns at once.
    ///
    /// # Errors
    ///
    /// `Retry`: the task has ended; its reason came as an answer.
    pub fn ask(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| self.ended())
    }

    fn ended(&self) -> Error {
        unavailable("read keys again", &self.label, "the connection beside the link has ended")
    }

    /// Waits for an answer. May be dropped while it waits, without loss.
    pub async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            None => Answer::Failed(self.ended()),
        }
    }

    /// An answer that is there.
    pub fn try_answer(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

struct Job {
    set: Set,
    /// Has to be read with this token.
    token: Option<Token>,
    /// About what its keys take; not asked yet: `None`.
    bytes: Option<Vec<u64>>,
}

struct Reader {
    conn: Conn,
    /// An answer to what was asked on it is still coming.
    busy: bool,
    /// For what has to be asked meanwhile.
    beside: Option<Conn>,
    /// The RDB version of the server's payloads, once one was seen.
    version: Option<u16>,
    endpoint: Endpoint,
    token_key: Vec<u8>,
    has_expiretime: bool,
    jobs: VecDeque<Job>,
    room: Arc<Semaphore>,
    pieces: Arc<Semaphore>,
    inbox: mpsc::UnboundedReceiver<Request>,
    outbox: mpsc::UnboundedSender<Answer>,
    progress: Arc<Progress>,
    cut: rdb::Options,
    /// When the server is asked next.
    look_at: Instant,
}

/// What an element of EXEC's answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Status,
    Time,
    /// The token's own payload, whose footer tells the version.
    Version,
    Expiry,
    Dump,
}

const ACTION: &str = "read keys again";

impl Reader {
    async fn run(mut self) {
        if let Err(error) = self.serve().await {
            let _ = self.outbox.send(Answer::Failed(error));
        }
    }

    async fn serve(&mut self) -> Result<()> {
        loop {
            if self.jobs.is_empty() {
                tokio::select! {
                    biased;
                    () = sleep_until(self.look_at) => {}
                    request = self.inbox.recv() => match request {
                        None => return Ok(()),
                        Some(request) => self.take(request).await?,
                    },
                }
            }
            if self.look_at <= Instant::now() {
                self.look().await?;
            }
            while let Ok(request) = self.inbox.try_recv() {
                self.take(request).await?;
            }
            if !self.jobs.is_empty() {
                self.read_some().await?;
            }
        }
    }

    /// A connection on which nothing is under way.
    async fn idle(&mut self) -> Result<&mut Conn> {
        if !self.busy {
            return Ok(&mut self.conn);
        }
        let beside = match self.beside.take() {
            Some(beside) => beside,
            None => Conn::connect(&self.endpoint).await?,
        };
        Ok(self.beside.insert(beside))
    }

    /// Asks how far the server's stream is. A connection that the server closed while nothing was under way on it
    /// is replaced.
    async fn look(&mut self) -> Result<()> {
        let asked = now_ms();
        match self.idle().await?.call(&[b"INFO", b"replication"]).await {
            Ok(reply) => {
                if let Some(text) = reply.bytes() {
                    let info = ServerInfo::parse(&String::from_utf8_lossy(text));
                    self.progress.server_says(&info, asked);
                }
            }
            Err(_) if self.busy => self.beside = None,
            Err(_) => {
                self.conn = Conn::connect(&self.endpoint).await?;
                self.version = None;
            }
        }
        self.look_at = Instant::now() + LOOK_EVERY;
        Ok(())
    }

    /// Waits until so many bytes more may be read and not taken. Meanwhile questions are answered: who takes may
    /// wait for that first.
    async fn room(&mut self, of: Arc<Semaphore>, bytes: u64, max: u64) -> Result<OwnedSemaphorePermit> {
        if self.look_at <= Instant::now() {
            self.look().await?;
        }
        let bytes = u32::try_from(bytes.clamp(1, max)).unwrap_or(u32::MAX);
        let room = of.acquire_many_owned(bytes);
        tokio::pin!(room);
        let gone = "nobody takes what is read";
        loop {
            tokio::select! {
                biased;
                room = &mut room => {
                    return room.map_err(|_| unavailable(ACTION, self.conn.endpoint_label(), gone));
                }
                () = sleep_until(self.look_at) => self.look().await?,
                request = self.inbox.recv() => match request {
                    None => return Err(unavailable(ACTION, self.conn.endpoint_label(), gone)),
                    Some(request) => self.take(request).await?,
                },
            }
        }
    }

    async fn take(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Sets(sets) => {
                self.jobs.extend(sets.into_iter().map(|set| Job { set, token: None, bytes: None }));
            }
            Request::Refresh(keys, token) => {
                for key in keys {
                    let set = Set { keys: vec![key], opened: false };
                    self.jobs.push_back(Job { set, token: None, bytes: None });
                }
                // A set of its own for the token: it ends the transaction that reads the last keys.
                let set = Set { keys: Vec::new(), opened: false };
                self.jobs.push_back(Job { set, token: Some(token), bytes: Some(Vec::new()) });
            }
            Request::Keys(name) => {
                let keys = self.key_args(&name).await?;
                let _ = self.outbox.send(Answer::Keys(name, keys));
            }
        }
        Ok(())
    }

    async fn key_args(&mut self, name: &[u8]) -> Result<Option<KeyArgs>> {
        let reply = self.idle().await?.call(&[b"COMMAND", b"INFO", name]).await?;
        let info = reply.items().and_then(|all| all.first()).and_then(Reply::items).unwrap_or_default();
        let number = |i: usize| info.get(i).and_then(Reply::int);
        Ok(match (number(3), number(4), number(5)) {
            (Some(first), Some(last), Some(step)) if first > 0 => Some((first, last, step)),
            _ => None,
        })
    }

    /// Reads as many of the jobs as one transaction should hold.
    async fn read_some(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        let mut keys = 0;
        while let Some(job) = self.jobs.front() {
            if !batch.is_empty() && keys + job.set.keys.len() > KEYS_MAX {
                break;
            }
            keys += job.set.keys.len();
            let ends = job.token.is_some();
            batch.extend(self.jobs.pop_front());
            if ends {
                break;
            }
        }
        self.ask_sizes(&mut batch).await?;
        let (mut bytes, mut whole, mut taken) = (0, 0, 0);
        for job in &batch {
            let size: u64 = job.bytes.iter().flatten().sum();
            if taken > 0 && bytes + size > READ_BYTES {
                break;
            }
            bytes += size;
            // More of a key is not held at once.
            let held = self.cut.whole_bytes_max as u64;
            whole += job.bytes.iter().flatten().map(|bytes| held.min(*bytes)).sum::<u64>();
            taken += 1;
        }
        for job in batch.drain(taken..).rev() {
            self.jobs.push_front(job);
        }
        let room = self.room(self.room.clone(), whole, ROOM_BYTES).await?;
        let announced = batch.last().and_then(|job| job.token);
        let token = announced.unwrap_or_else(Token::unique);
        // Before the token is written: whoever meets it in the stream finds this first.
        let _ = self.outbox.send(Answer::Sent(token));
        let found = self.transaction(token, batch).await?;
        let read = Read { token, found, announced: announced.is_some(), _room: room };
        let _ = self.outbox.send(Answer::Read(read));
        Ok(())
    }

    /// Asks what each key takes, so that neither the server nor we hold too much at once.
    async fn ask_sizes(&mut self, batch: &mut [Job]) -> Result<()> {
        let mut out = BytesMut::new();
        let mut db = None;
        let mut selects = Vec::new();
        for (to, name) in batch.iter().filter(|job| job.bytes.is_none()).flat_map(|job| &job.set.keys) {
            selects.push(db != Some(*to));
            if db.replace(*to) != Some(*to) {
                resp::encode(&mut out, &[b"SELECT", &resp::decimal(*to)]);
            }
            resp::encode(&mut out, &[b"MEMORY", b"USAGE", name]);
        }
        self.conn.send(&out).await?;
        let mut selects = selects.into_iter();
        for job in batch.iter_mut().filter(|job| job.bytes.is_none()) {
            let mut bytes = Vec::with_capacity(job.set.keys.len());
            for _ in &job.set.keys {
                if selects.next() == Some(true) {
                    self.checked_reply("select a database").await?;
                }
                // Not allowed to ask: then a key counts as a middling one.
                let unknown = 64 << 10;
                let size = self.conn.reply().await?;
                let size = if size.is_nil() { 0 } else { size.int().unwrap_or(unknown) };
                bytes.push(u64::try_from(size).unwrap_or(0));
            }
            job.bytes = Some(bytes);
        }
        Ok(())
    }

    async fn checked_reply(&mut self, action: &str) -> Result<Reply> {
        let reply = self.conn.reply().await?;
        match reply.error() {
            Some(text) => Err(server_error(action, self.conn.endpoint_label(), text)),
            None => Ok(reply),
        }
    }

    /// `MULTI, SELECT 0, SET token, then each key, EXEC`, and what each command but the first and last answers.
    fn commands(&self, token: Token, batch: &[Job]) -> (BytesMut, Vec<Slot>) {
        let mut out = BytesMut::new();
        let mut slots = vec![Slot::Status, Slot::Status];
        resp::encode(&mut out, &[b"MULTI"]);
        resp::encode(&mut out, &[b"SELECT", b"0"]);
        resp::encode(&mut out, &[b"SET", &self.token_key, token.text().as_bytes()]);
        if self.version.is_none() {
            resp::encode(&mut out, &[b"DUMP", &self.token_key]);
            slots.push(Slot::Version);
        }
        if !self.has_expiretime {
            resp::encode(&mut out, &[b"TIME"]);
            slots.push(Slot::Time);
        }
        let expiry: &[u8] = if self.has_expiretime { b"PEXPIRETIME" } else { b"PTTL" };
        let mut db = 0;
        for (to, name) in batch.iter().flat_map(|job| &job.set.keys) {
            if std::mem::replace(&mut db, *to) != *to {
                resp::encode(&mut out, &[b"SELECT", &resp::decimal(*to)]);
                slots.push(Slot::Status);
            }
            resp::encode(&mut out, &[expiry, name]);
            resp::encode(&mut out, &[b"DUMP", name]);
            slots.extend([Slot::Expiry, Slot::Dump]);
        }
        resp::encode(&mut out, &[b"EXEC"]);
        (out, slots)
    }

    /// Reads the keys of `batch` together with `token`.
    async fn transaction(&mut self, token: Token, batch: Vec<Job>) -> Result<Vec<(Set, Vec<Value>)>> {
        let (out, slots) = self.commands(token, &batch);
        self.busy = true;
        self.conn.send(&out).await?;
        self.queued(&slots).await?;
        let mut keys = VecDeque::new();
        for job in &batch {
            keys.extend(job.set.keys.iter().map(|(db, name)| (job.set.opened, *db, name.clone())));
        }
        let mut found = VecDeque::new();
        let (mut time, mut expire_at) = (0, None);
        for slot in slots {
            if slot == Slot::Dump {
                let Some((opened, db, name)) = keys.pop_front() else { break };
                let piece = Piece { db, name, opened, n: 0, commands: Bytes::new(), expire_at };
                let held = self.value(token, piece).await?;
                let state = |held| Found { expire_at: expire_at.filter(|_| Option::is_some(&held)), held };
                found.push_back(held.map(state));
                continue;
            }
            let reply = self.checked_reply(ACTION).await?;
            match slot {
                Slot::Status | Slot::Dump => {}
                Slot::Time => time = reply.time_ms().ok_or_else(|| self.garbled("TIME is no time"))?,
                Slot::Version => {
                    let opened = reply.bytes().and_then(|payload| rdb::open(payload).ok());
                    let Some((.., version)) = opened else { return Err(self.garbled("DUMP is no payload")) };
                    self.version = Some(version);
                }
                Slot::Expiry => {
                    let at = reply.int().ok_or_else(|| self.garbled("an expire-at is no number"))?;
                    // -1: never. -2: there is no such key, as DUMP will say.
                    let left = (at >= 0).then_some(at);
                    let at = if self.has_expiretime { left } else { left.map(|at| time.saturating_add(at)) };
                    expire_at = at.and_then(|at| u64::try_from(at).ok());
                }
            }
        }
        self.busy = false;
        self.beside = None;
        let read = |job: Job| {
            let found = found.drain(..job.set.keys.len().min(found.len())).collect();
            (job.set, found)
        };
        Ok(batch.into_iter().map(read).collect())
    }

    /// Waits until the server has taken the transaction and done it, and takes the first line of its answer.
    async fn queued(&mut self, slots: &[Slot]) -> Result<()> {
        let mut refused = None;
        for _ in 0..=slots.len() {
            let reply = self.conn.reply().await?;
            if let Some(text) = reply.error() {
                refused.get_or_insert_with(|| text.to_owned());
            }
        }
        if let Some(text) = refused {
            return Err(server_error(ACTION, self.conn.endpoint_label(), &text));
        }
        match self.conn.reader().head().await? {
            Head::Array { len, start } if len == slots.len() => {
                self.conn.reader().buffer().advance(start);
                Ok(())
            }
            Head::Array { .. } => Err(self.garbled("not one element for each command")),
            Head::Bulk { .. } | Head::Other => {
                self.checked_reply(ACTION).await?;
                Err(self.garbled("an array was expected"))
            }
        }
    }

    /// Reads the answer to DUMP. A value over the limit is handed over in pieces, all like `piece`, as it comes.
    async fn value(&mut self, token: Token, mut piece: Piece) -> Result<Result<Option<Held>, String>> {
        let Head::Bulk { len, start } = self.conn.reader().head().await? else {
            // Nil, or an error.
            self.checked_reply(ACTION).await?;
            return Ok(Ok(None));
        };
        if len <= self.cut.whole_bytes_max.saturating_add(1 + rdb::FOOTER_BYTES) {
            return Ok(Ok(self.checked_reply(ACTION).await?.bytes().cloned().map(Held::Whole)));
        }
        self.conn.reader().buffer().advance(start);
        let version = self.version.unwrap_or_default();
        let mut cutter = DumpCutter::new(piece.name.clone(), len as u64, version, self.cut.part_bytes);
        let mut left = len;
        loop {
            let next = cutter.next().map_err(|e| Error::Garbled {
                endpoint: self.conn.endpoint_label().to_owned(),
                what: "answer to DUMP",
                at: e.at,
                reason: e.reason,
            })?;
            match next {
                Some(Cut::Part { n, commands }) => {
                    (piece.n, piece.commands) = (n, commands);
                    let bytes = piece.commands.len() as u64;
                    let room = self.room(self.pieces.clone(), bytes, PIECES_BYTES).await?;
                    let _ = self.outbox.send(Answer::Piece(token, piece.clone(), room));
                }
                Some(Cut::End { parts }) => {
                    return self.line_end().await.map(|()| Ok(Some(Held::Pieces(parts))));
                }
                Some(Cut::Left { reason }) => {
                    let reason = format!("too large to be read again whole, and {reason}");
                    return self.line_end().await.map(|()| Err(reason));
                }
                None => {
                    if self.conn.reader().buffer().is_empty() {
                        self.conn.reader().fill().await?;
                    }
                    let buffer = self.conn.reader().buffer();
                    let fed = left.min(buffer.len());
                    cutter.feed(buffer.get(..fed).unwrap_or_default());
                    buffer.advance(fed);
                    left -= fed;
                }
            }
        }
    }

    /// Takes what ends a string.
    async fn line_end(&mut self) -> Result<()> {
        while self.conn.reader().buffer().len() < 2 {
            self.conn.reader().fill().await?;
        }
        if !self.conn.reader().buffer().starts_with(b"\r\n") {
            return Err(self.garbled("\\r\\n was expected after a string"));
        }
        self.conn.reader().buffer().advance(2);
        Ok(())
    }

    fn garbled(&self, reason: &str) -> Error {
        Error::Garbled {
            endpoint: self.conn.endpoint_label().to_owned(),
            what: "answer to EXEC",
            at: 0,
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
