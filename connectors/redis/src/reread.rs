//! Reads keys again, each together with a token: so that what was read has a place in the stream.
//!
//! A task owns a connection beside the link and asks in transactions: `SET token`, then `DUMP` and
//! `PEXPIRETIME` of each key. Where the token comes by in the stream, the values were as read. What was read
//! and not yet taken is bounded; what waits to be read is names only, and bounded by [`Stream`]. Each second it
//! also asks where the server's stream ends by now, whether or not anything is taken.
//!
//! [`Stream`]: crate::stream::Stream

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_core::{Error, Result, Token};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::conn::{Conn, Endpoint, server_error, unavailable};
use crate::info::ServerInfo;
use crate::names::{self, Names};
use crate::progress::Progress;
use crate::resp::{self, Reply};
use crate::stream::{Found, KeyArgs, Set};

/// Keys of one transaction: the server is kept from others for well under a millisecond by small ones.
const KEYS_MAX: usize = 256;
/// About how many bytes one transaction reads; a single key may be larger.
const READ_BYTES: u64 = 4 << 20;
/// What may be read and not yet taken; a larger key waits until it is alone.
const ROOM_BYTES: u64 = 32 << 20;
/// A key that takes more of the server's memory isn't read whole: no server takes such a payload in one
/// string (`proto-max-bulk-len`).
pub(crate) const KEY_BYTES_MAX: u64 = 512 << 20;
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
    /// What was read with it; room is given back when this is dropped.
    Read(Read),
    /// The command's key arguments, if anybody knows.
    Keys(Vec<u8>, Option<KeyArgs>),
    /// Nothing more comes.
    Failed(Error),
}

/// What one transaction read.
#[derive(Debug)]
pub struct Read {
    /// Its token.
    pub token: Token,
    /// The keys, and what each was, or why it cannot be carried.
    pub found: Vec<(Set, Vec<Result<Found, String>>)>,
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
    /// or later. `progress` is told what the server says of its stream. A key that takes more than
    /// `key_bytes_max` of the server's memory is not read.
    pub(crate) fn start(
        conn: Conn,
        endpoint: &Endpoint,
        names: &Names,
        has_expiretime: bool,
        progress: Arc<Progress>,
        key_bytes_max: u64,
    ) -> Side {
        let (requests, inbox) = mpsc::unbounded_channel();
        let (outbox, answers) = mpsc::unbounded_channel();
        let label = conn.endpoint_label().to_owned();
        let reader = Reader {
            endpoint: endpoint.only(conn.address()),
            conn,
            token_key: names.token.clone(),
            has_expiretime,
            jobs: VecDeque::new(),
            room: Arc::new(Semaphore::new(ROOM_BYTES as usize)),
            outbox,
            progress,
            key_bytes_max,
            look_at: Instant::now() + LOOK_EVERY,
        };
        Side { requests, answers, task: tokio::spawn(reader.run(inbox)), label }
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
    endpoint: Endpoint,
    token_key: Vec<u8>,
    has_expiretime: bool,
    jobs: VecDeque<Job>,
    room: Arc<Semaphore>,
    outbox: mpsc::UnboundedSender<Answer>,
    progress: Arc<Progress>,
    key_bytes_max: u64,
    /// When the server is asked next.
    look_at: Instant,
}

/// What an element of EXEC's answer is.
enum Slot {
    Status,
    Time,
    Dump,
    Expiry,
}

impl Reader {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Request>) {
        if let Err(error) = self.serve(&mut inbox).await {
            let _ = self.outbox.send(Answer::Failed(error));
        }
    }

    async fn serve(&mut self, inbox: &mut mpsc::UnboundedReceiver<Request>) -> Result<()> {
        loop {
            if self.jobs.is_empty() {
                tokio::select! {
                    biased;
                    () = sleep_until(self.look_at) => {}
                    request = inbox.recv() => match request {
                        None => return Ok(()),
                        Some(request) => self.take(request).await?,
                    },
                }
            }
            if self.look_at <= Instant::now() {
                self.look().await?;
            }
            while let Ok(request) = inbox.try_recv() {
                self.take(request).await?;
            }
            if !self.jobs.is_empty() {
                self.read_some().await?;
            }
        }
    }

    /// Asks how far the server's stream is. Nothing is under way, so a connection that the server closed can be
    /// replaced.
    async fn look(&mut self) -> Result<()> {
        match self.conn.call(&[b"INFO", b"replication"]).await {
            Ok(reply) => {
                if let Some(text) = reply.bytes() {
                    self.progress.server_says(&ServerInfo::parse(&String::from_utf8_lossy(text)));
                }
            }
            Err(_) => self.conn = Conn::connect(&self.endpoint).await?,
        }
        self.look_at = Instant::now() + LOOK_EVERY;
        Ok(())
    }

    /// Waits until so many bytes more may be read and not taken; `None`: nobody takes any.
    async fn room(&mut self, bytes: u32) -> Result<Option<OwnedSemaphorePermit>> {
        let room = self.room.clone().acquire_many_owned(bytes);
        tokio::pin!(room);
        loop {
            tokio::select! {
                biased;
                room = &mut room => return Ok(room.ok()),
                () = sleep_until(self.look_at) => self.look().await?,
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
        let reply = self.conn.call(&[b"COMMAND", b"INFO", name]).await?;
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
        let mut bytes = 0;
        let mut taken = 0;
        for job in &batch {
            let size: u64 = job.bytes.iter().flatten().filter(|&&b| b <= self.key_bytes_max).sum();
            if taken > 0 && bytes + size > READ_BYTES {
                break;
            }
            bytes += size;
            taken += 1;
        }
        for job in batch.drain(taken..).rev() {
            self.jobs.push_front(job);
        }
        let permits = u32::try_from(bytes.clamp(1, ROOM_BYTES)).unwrap_or(u32::MAX);
        let Some(room) = self.room(permits).await? else { return Ok(()) };
        let announced = batch.last().and_then(|job| job.token);
        let token = announced.unwrap_or_else(names::next_token);
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

    /// `MULTI, SELECT 0, SET token, then each key, EXEC`.
    async fn transaction(
        &mut self,
        token: Token,
        batch: Vec<Job>,
    ) -> Result<Vec<(Set, Vec<Result<Found, String>>)>> {
        const ACTION: &str = "read keys again";
        let mut out = BytesMut::new();
        let mut slots = vec![Slot::Status, Slot::Status];
        resp::encode(&mut out, &[b"MULTI"]);
        resp::encode(&mut out, &[b"SELECT", b"0"]);
        resp::encode(&mut out, &[b"SET", &self.token_key, names::token_text(token).as_bytes()]);
        if !self.has_expiretime {
            resp::encode(&mut out, &[b"TIME"]);
            slots.push(Slot::Time);
        }
        let expiry: &[u8] = if self.has_expiretime { b"PEXPIRETIME" } else { b"PTTL" };
        let mut db = 0;
        for job in &batch {
            for ((to, name), &bytes) in job.set.keys.iter().zip(job.bytes.iter().flatten()) {
                if bytes > self.key_bytes_max {
                    continue;
                }
                if std::mem::replace(&mut db, *to) != *to {
                    resp::encode(&mut out, &[b"SELECT", &resp::decimal(*to)]);
                    slots.push(Slot::Status);
                }
                resp::encode(&mut out, &[b"DUMP", name]);
                resp::encode(&mut out, &[expiry, name]);
                slots.extend([Slot::Dump, Slot::Expiry]);
            }
        }
        resp::encode(&mut out, &[b"EXEC"]);
        self.conn.send(&out).await?;
        let mut refused = None;
        for _ in 0..=slots.len() {
            let reply = self.conn.reply().await?;
            if let Some(text) = reply.error() {
                refused.get_or_insert_with(|| text.to_owned());
            }
        }
        let executed = self.conn.reply().await?;
        let label = self.conn.endpoint_label();
        let error = refused.as_deref().or(executed.error());
        if let Some(text) = error {
            return Err(server_error(ACTION, label, text));
        }
        let garbled = |reason: &str| Error::Garbled {
            endpoint: label.to_owned(),
            what: "answer to EXEC",
            at: 0,
            reason: reason.to_owned(),
        };
        let replies = executed.items().ok_or_else(|| garbled("an array was expected"))?;
        if replies.len() != slots.len() {
            return Err(garbled("not one element for each command"));
        }
        let mut time = 0;
        let mut dump = None;
        let mut found = VecDeque::new();
        for (slot, reply) in slots.iter().zip(replies) {
            if let Some(text) = reply.error() {
                return Err(server_error(ACTION, label, text));
            }
            match slot {
                Slot::Status => {}
                Slot::Time => {
                    let parts = reply.items().unwrap_or_default();
                    let part = |i: usize| parts.get(i).and_then(Reply::int);
                    let (Some(s), Some(us)) = (part(0), part(1)) else {
                        return Err(garbled("TIME is no time"));
                    };
                    time = s.saturating_mul(1000).saturating_add(us / 1000);
                }
                Slot::Dump => dump = reply.bytes().cloned(),
                Slot::Expiry => {
                    let at = reply.int().ok_or_else(|| garbled("an expire-at is no number"))?;
                    // -1: never. -2: there is no such key, also if it expired since DUMP looked.
                    let state = match (dump.take(), at) {
                        (None, _) | (_, -2) => Found::default(),
                        (dump, -1) => Found { dump, expire_at: None },
                        (dump, at) => {
                            let at = if self.has_expiretime { at } else { time.saturating_add(at) };
                            Found { dump, expire_at: u64::try_from(at).ok() }
                        }
                    };
                    found.push_back(state);
                }
            }
        }
        let mut all = Vec::with_capacity(batch.len());
        for job in batch {
            let mut states = Vec::with_capacity(job.set.keys.len());
            for &bytes in job.bytes.iter().flatten() {
                if bytes > self.key_bytes_max {
                    states.push(Err(format!("too large to be read again: it takes {bytes} bytes of memory")));
                } else {
                    let missing = || "the server did not say what it holds".to_owned();
                    states.push(found.pop_front().ok_or_else(missing));
                }
            }
            all.push((job.set, states));
        }
        Ok(all)
    }
}
