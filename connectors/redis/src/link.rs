//! The replication link: a connection on which the server takes us for a replica.
//!
//! One task reads, frames and counts, and stops reading when what it has read is not taken: so memory is
//! bounded here, and the server sees a slow replica. Another one sends the offset that
//! [`Link::acknowledge`] allowed each second, whether or not anybody takes what was read.
//!
//! Source: Redis documentation, "Replication"; what the servers do on the wire was tried on 7.0.15, 8.0.6
//! and Valkey 9.1.2 (bare newlines before an answer and before the snapshot; no stream after a diskless
//! snapshot until the first acknowledgement; SELECT not repeated after `+CONTINUE`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use causeway_core::{Error, Result};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::conn::{Conn, ConnReader, ConnWriter, Endpoint, server_error, unavailable};
use crate::progress::Progress;
use crate::resp::{self, Command, CommandParser, Reply, ReplyParser};

/// What may be read and not taken yet. A snapshot at line speed needs a few reads' worth; the rest is for
/// bursts of the stream.
const QUEUE_BYTES: usize = 16 << 20;
/// The same as a count of reads: a read of one byte is held, too.
const QUEUE_READS: usize = 4096;
/// The end mark of a snapshot without a length.
const MARK_BYTES: usize = 40;
/// How often the offset is sent: a replica of Redis does it each second.
const ACK_EVERY: Duration = Duration::from_secs(1);

/// How a link is opened.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// Replication id and offset to go on behind; `None`: a snapshot.
    pub from: Option<(Bytes, u64)>,
    /// Ask for a snapshot without keys, if the server can (7.0 and later).
    pub empty_snapshot: bool,
    /// How fast the snapshot is read.
    pub bytes_per_second: Option<u64>,
    /// How long the server may be silent; it pings each `repl-ping-replica-period`, 10 s unless set.
    pub silence_max: Duration,
    /// What `CLIENT LIST` shows.
    pub name: String,
}

/// How the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With a snapshot; the stream goes on behind `at`.
    Full {
        /// The replication id.
        id: Bytes,
        /// The offset at which the snapshot was taken.
        at: u64,
    },
    /// With what came after the offset asked for.
    Continue {
        /// The replication id from here on: another one after a failover.
        id: Bytes,
    },
}

/// An attempt's outcome.
#[derive(Debug)]
pub enum Opening {
    /// It stands.
    Open(Link, Start),
    /// The server doesn't let us be a replica; holds what it said.
    Refused(String),
}

/// What comes over a link.
#[derive(Debug)]
pub enum Item {
    /// Some bytes of the snapshot.
    Rdb(Bytes),
    /// There are no more of it.
    RdbEnd,
    /// Commands of the stream. Their `raw` lengths are what the offset counts.
    Commands(Vec<Command>),
}

type Queued = (Result<Item>, Option<OwnedSemaphorePermit>);

/// A replication link that stands. Dropping it hangs up.
#[derive(Debug)]
pub struct Link {
    items: mpsc::Receiver<Queued>,
    /// Of the item that was taken last: given back when the next one is asked for.
    held: Option<OwnedSemaphorePermit>,
    ack: Arc<Ack>,
    progress: Arc<Progress>,
    label: String,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Debug)]
struct Ack {
    at: AtomicU64,
    /// The snapshot has come: acknowledgements mean something from here on.
    streaming: AtomicBool,
    now: Notify,
}

impl Ack {
    fn start_streaming(&self) {
        self.streaming.store(true, Ordering::Release);
        self.now.notify_one();
    }
}

impl Link {
    /// Connects, and asks for the stream. Returns once the server has answered: with a snapshot that is when
    /// the server has forked, up to `repl-diskless-sync-delay` later.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`, as [`Conn::connect`].
    pub async fn open(endpoint: &Endpoint, options: &LinkOptions) -> Result<Opening> {
        let mut conn = Conn::connect(endpoint).await?;
        let label = conn.endpoint_label().to_owned();
        let reply = conn.call(&[b"PING"]).await?;
        if let Some(text) = reply.error().filter(|text| !text.starts_with("NOPERM")) {
            return Err(server_error("greet the server", &label, text));
        }
        // For the operator's eyes only: a server that refuses the name does no harm.
        conn.call(&[b"CLIENT", b"SETNAME", options.name.as_bytes()]).await?;
        let handshake: [&[&[u8]]; 2] = [
            // Port 0: nobody shall connect to us, and a Sentinel finds no replica there to promote.
            &[b"REPLCONF", b"listening-port", b"0"],
            // No version is announced: Valkey would answer with an RDB of its own form.
            &[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"],
        ];
        for step in handshake {
            if let Some(text) = conn.call(step).await?.error() {
                return refused_or("announce a replica", &label, text);
            }
        }
        if options.empty_snapshot {
            // Unknown before 7.0: all keys come then, and are thrown away here.
            conn.call(&[b"REPLCONF", b"rdb-filter-only", b""]).await?;
        }
        let (mut reader, mut writer) = conn.split();
        reader.set_idle(options.silence_max);
        let (id, next) = match &options.from {
            // An offset names the last byte that we have; the server is told the first one that we miss.
            Some((id, at)) => (id.clone(), resp::decimal(at.saturating_add(1))),
            None => (Bytes::from_static(b"?"), b"-1".to_vec()),
        };
        writer.command(&[b"PSYNC", &id, &next]).await?;
        let answer = match answer(&mut reader).await? {
            Reply::Simple(line) => line,
            Reply::Error(text) => return refused_or("ask for the replication stream", &label, &text),
            _ => return Err(garbled(&label, "answer to PSYNC", 0, "a status was expected")),
        };
        let start = parse_start(&answer, &id)
            .ok_or_else(|| garbled(&label, "answer to PSYNC", 0, "neither FULLRESYNC nor CONTINUE"))?;
        let at = match (&start, &options.from) {
            (Start::Full { at, .. }, _) | (Start::Continue { .. }, Some((_, at))) => *at,
            (Start::Continue { .. }, None) => {
                return Err(garbled(&label, "answer to PSYNC", 0, "CONTINUE where nothing was asked for"));
            }
        };
        let ack =
            Arc::new(Ack { at: AtomicU64::new(at), streaming: AtomicBool::new(false), now: Notify::new() });
        let progress = Arc::new(Progress::at(at));
        let (queue, items) = mpsc::channel(QUEUE_READS);
        let read = Reading {
            reader,
            queue: queue.clone(),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            ack: ack.clone(),
            progress: progress.clone(),
            at,
        };
        let with_snapshot = matches!(start, Start::Full { .. });
        let tasks = [
            tokio::spawn(read.run(with_snapshot, options.bytes_per_second)),
            tokio::spawn(write_acks(writer, ack.clone(), queue)),
        ];
        Ok(Opening::Open(Link { items, held: None, ack, progress, label, tasks }, start))
    }

    /// Waits for what comes next. May be dropped while it waits, without loss.
    ///
    /// # Errors
    ///
    /// `Retry`: broken, silent for too long, or not as the protocol says; the link is of no use then.
    pub async fn next(&mut self) -> Result<Item> {
        self.held = None;
        match self.items.recv().await {
            Some((item, held)) => {
                self.held = held;
                item
            }
            None => Err(unavailable("read the replication stream", &self.label, "the link is closed")),
        }
    }

    /// What is there without waiting.
    ///
    /// # Errors
    ///
    /// As [`next`](Link::next).
    pub fn try_next(&mut self) -> Result<Option<Item>> {
        self.held = None;
        match self.items.try_recv() {
            Ok((item, held)) => {
                self.held = held;
                item.map(Some)
            }
            Err(_) => Ok(None),
        }
    }

    /// Lets the server know within a second that everything up to `at` is safe with us. Never goes back.
    pub fn acknowledge(&self, at: u64) {
        self.ack.at.fetch_max(at, Ordering::AcqRel);
    }

    /// Up to where the stream was read, taken or not.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// `host:port`.
    pub fn endpoint_label(&self) -> &str {
        &self.label
    }
}

/// Whether the server's words mean that a replica is not welcome at all; anything else is an error.
fn refused_or(action: &str, label: &str, text: &str) -> Result<Opening> {
    let unknown = text.starts_with("ERR unknown command") || text.starts_with("ERR unknown subcommand");
    if text.starts_with("NOPERM") || unknown {
        let text = text.split(", with args beginning with").next().unwrap_or_default();
        return Ok(Opening::Refused(text.to_owned()));
    }
    Err(server_error(action, label, text))
}

fn garbled(label: &str, what: &'static str, at: u64, reason: impl Into<String>) -> Error {
    Error::Garbled { endpoint: label.into(), what, at, reason: reason.into() }
}

/// Waits for a reply, before which a server that is busy forking sends bare newlines.
async fn answer(reader: &mut ConnReader) -> Result<Reply> {
    let label = reader.endpoint_label().to_owned();
    loop {
        let buf = reader.buffer();
        buf.advance(resp::bare_newlines(buf));
        // The answer is one line: a parser of its own costs nothing, and keeps the newlines out.
        let reply = ReplyParser::default()
            .parse(buf)
            .map_err(|e| garbled(&label, "answer to PSYNC", e.at as u64, e.reason))?;
        match reply {
            Some(reply) => return Ok(reply),
            None => reader.fill().await?,
        };
    }
}

/// `FULLRESYNC <id> <offset>`, `CONTINUE <id>`, or `CONTINUE` of servers before 4.0.
fn parse_start(line: &[u8], asked: &Bytes) -> Option<Start> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let id = |word: &str| {
        let printable = word.len() <= MARK_BYTES && word.bytes().all(|b| b.is_ascii_alphanumeric());
        printable.then(|| Bytes::copy_from_slice(word.as_bytes()))
    };
    match words.next()? {
        "FULLRESYNC" => Some(Start::Full { id: id(words.next()?)?, at: words.next()?.parse().ok()? }),
        "CONTINUE" => Some(Start::Continue {
            id: match words.next() {
                Some(word) => id(word)?,
                None => asked.clone(),
            },
        }),
        _ => None,
    }
}

async fn write_acks(mut writer: ConnWriter, ack: Arc<Ack>, queue: mpsc::Sender<Queued>) {
    let mut every = tokio::time::interval(ACK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = ack.now.notified() => {}
        }
        if !ack.streaming.load(Ordering::Acquire) {
            continue;
        }
        let at = resp::decimal(ack.at.load(Ordering::Acquire));
        if let Err(error) = writer.command(&[b"REPLCONF", b"ACK", &at]).await {
            // The reader's own error says it better, if it comes first.
            let _ = queue.send((Err(error), None)).await;
            return;
        }
    }
}

struct Reading {
    reader: ConnReader,
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    ack: Arc<Ack>,
    progress: Arc<Progress>,
    /// Offset behind the last command that was taken off the buffer.
    at: u64,
}

/// The one who takes is gone.
struct Gone;

impl Reading {
    async fn run(mut self, with_snapshot: bool, bytes_per_second: Option<u64>) {
        let ended = async {
            if with_snapshot {
                self.snapshot(bytes_per_second).await?;
            }
            self.progress.snapshot_ended();
            self.ack.start_streaming();
            self.stream().await
        };
        if let Err(Some(error)) = ended.await {
            let _ = self.queue.send((Err(error), None)).await;
        }
    }

    /// Waits until there is room for `bytes` (of something larger than all the room: until all is free).
    async fn push(&mut self, item: Item, bytes: usize) -> Result<(), Gone> {
        let permits = bytes.min(QUEUE_BYTES) as u32;
        let held = self.room.clone().acquire_many_owned(permits).await.map_err(|_| Gone)?;
        self.queue.send((Ok(item), Some(held))).await.map_err(|_| Gone)
    }

    fn label(&self) -> String {
        self.reader.endpoint_label().to_owned()
    }

    /// Passes the snapshot on, framed either way. `Err(None)`: nobody takes it.
    async fn snapshot(&mut self, bytes_per_second: Option<u64>) -> Result<(), Option<Error>> {
        let mut framing = self.framing().await?;
        let mut brake = bytes_per_second.map(Brake::new);
        loop {
            let buf = self.reader.buffer();
            let (chunk, ended) = framing.take(buf);
            let bytes = chunk.len();
            if bytes > 0 {
                self.push(Item::Rdb(chunk), bytes).await.map_err(|Gone| None)?;
            }
            if ended {
                return self.push(Item::RdbEnd, 0).await.map_err(|Gone| None);
            }
            if let Some(brake) = &mut brake {
                tokio::time::sleep(brake.pause(bytes)).await;
            }
            self.reader.fill().await?;
        }
    }

    /// `$<length>` or `$EOF:<mark>`, behind any number of bare newlines.
    async fn framing(&mut self) -> Result<Framing, Option<Error>> {
        let label = self.label();
        loop {
            let buf = self.reader.buffer();
            buf.advance(resp::bare_newlines(buf));
            if let Some(end) = buf.iter().position(|&b| b == b'\n') {
                let line = buf.split_to(end + 1);
                let line = line.strip_suffix(b"\r\n").unwrap_or(&line);
                if let Some(text) = line.strip_prefix(b"-") {
                    let text = String::from_utf8_lossy(text);
                    return Err(Some(server_error("read the snapshot", &label, &text)));
                }
                return Framing::parse(line)
                    .ok_or_else(|| Some(garbled(&label, "RDB", 0, "`$length` or `$EOF:mark` was expected")));
            }
            if buf.len() > 2 * MARK_BYTES {
                return Err(Some(garbled(&label, "RDB", 0, "`$length` or `$EOF:mark` was expected")));
            }
            self.reader.fill().await?;
        }
    }

    async fn stream(&mut self) -> Result<(), Option<Error>> {
        let mut parser = CommandParser::default();
        let label = self.label();
        loop {
            let mut commands = Vec::new();
            let mut bytes = 0;
            loop {
                let buf = self.reader.buffer();
                // Between commands only: inside of one a newline is a byte like any other.
                if parser.is_between() && buf.first() == Some(&b'\n') {
                    buf.advance(resp::bare_newlines(buf));
                }
                let parsed = parser.parse(buf).map_err(|e| {
                    let at = self.at + bytes as u64 + e.at as u64;
                    Some(garbled(&label, "replication stream", at, e.reason))
                })?;
                let Some(command) = parsed else { break };
                bytes += command.raw.len();
                if command.eq_ignore_case(0, b"REPLCONF") && command.eq_ignore_case(1, b"GETACK") {
                    self.ack.now.notify_one();
                }
                commands.push(command);
            }
            if !commands.is_empty() {
                self.at += bytes as u64;
                self.progress.read_to(self.at);
                let held = bytes + commands.capacity() * size_of::<Command>();
                self.push(Item::Commands(commands), held).await.map_err(|Gone| None)?;
            }
            self.reader.fill().await?;
        }
    }
}

/// How a snapshot's end is known.
enum Framing {
    Left(u64),
    Mark(Box<Mark>),
}

impl Framing {
    fn parse(line: &[u8]) -> Option<Framing> {
        let rest = line.strip_prefix(b"$")?;
        if let Some(mark) = rest.strip_prefix(b"EOF:") {
            return Some(Framing::Mark(Box::new(Mark::new(mark.try_into().ok()?))));
        }
        Some(Framing::Left(std::str::from_utf8(rest).ok()?.parse().ok()?))
    }

    /// Takes what belongs to the snapshot off `buf`, and says whether it ended.
    fn take(&mut self, buf: &mut BytesMut) -> (Bytes, bool) {
        match self {
            Framing::Left(left) => {
                let n = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                (buf.split_to(n).freeze(), *left == 0)
            }
            Framing::Mark(mark) => match mark.find(buf) {
                Some(at) => {
                    let chunk = buf.split_to(at).freeze();
                    buf.advance(MARK_BYTES);
                    (chunk, true)
                }
                // What is kept back may be the beginning of the mark.
                None => (buf.split_to(buf.len().saturating_sub(MARK_BYTES - 1)).freeze(), false),
            },
        }
    }
}

/// A search for the end mark. It skips by what the mark's last place holds (Horspool), which in binary data
/// is most often a byte that the mark, hex digits, does not have: so one byte in forty is looked at.
struct Mark {
    mark: [u8; MARK_BYTES],
    skip: [u8; 256],
}

impl Mark {
    fn new(mark: [u8; MARK_BYTES]) -> Mark {
        let mut skip = [MARK_BYTES as u8; 256];
        for (i, &byte) in mark.iter().take(MARK_BYTES - 1).enumerate() {
            skip[usize::from(byte)] = (MARK_BYTES - 1 - i) as u8;
        }
        Mark { mark, skip }
    }

    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut start = 0;
        while let Some(window) = bytes.get(start..start + MARK_BYTES) {
            if window == self.mark {
                return Some(start);
            }
            start += usize::from(self.skip[usize::from(window[MARK_BYTES - 1])]);
        }
        None
    }
}

/// Keeps an average rate since it began.
struct Brake {
    began: Instant,
    bytes: u64,
    per_second: u64,
}

impl Brake {
    fn new(per_second: u64) -> Brake {
        Brake { began: Instant::now(), bytes: 0, per_second: per_second.max(1) }
    }

    fn pause(&mut self, bytes: usize) -> Duration {
        self.bytes += bytes as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.per_second as f64);
        due.saturating_sub(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> [u8; MARK_BYTES] {
        *b"0123456789abcdef0123456789abcdef01234567"
    }

    #[test]
    fn the_end_mark_is_found_wherever_reads_cut_it() {
        let mut wire = b"REDIS0010\xfa\x00012345".to_vec();
        // A beginning of the mark within the data is data.
        wire.extend_from_slice(&mark()[..39]);
        let data = wire.clone();
        wire.extend_from_slice(&mark());
        wire.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        for cut in 1..wire.len() {
            let mut framing = Framing::parse(&[b"$EOF:", &mark()[..]].concat()).unwrap();
            let mut buf = BytesMut::new();
            let mut got = Vec::new();
            let mut ended = false;
            for piece in wire.chunks(cut) {
                buf.extend_from_slice(piece);
                if !ended {
                    let (chunk, end) = framing.take(&mut buf);
                    got.extend_from_slice(&chunk);
                    ended = end;
                }
            }
            assert!(ended && got == data, "cut every {cut} bytes");
            assert_eq!(&buf[..], b"*1\r\n$4\r\nPING\r\n");
        }
    }

    #[test]
    fn a_snapshot_with_a_length_ends_there() {
        let mut framing = Framing::parse(b"$5").unwrap();
        let mut buf = BytesMut::from(&b"abc"[..]);
        assert_eq!(framing.take(&mut buf), (Bytes::from_static(b"abc"), false));
        buf.extend_from_slice(b"de*1");
        assert_eq!(framing.take(&mut buf), (Bytes::from_static(b"de"), true));
        assert_eq!(&buf[..], b"*1");
    }

    #[test]
    fn what_is_no_framing_is_refused() {
        for line in [&b""[..], b"$", b"$-1", b"$x", b"*3", b"$EOF:", b"$EOF:123", b"+OK"] {
            assert!(Framing::parse(line).is_none());
        }
    }

    #[test]
    fn answers_to_psync_are_told_apart() {
        let asked = Bytes::from_static(b"old");
        let full = parse_start(b"FULLRESYNC abc 17", &asked);
        assert_eq!(full, Some(Start::Full { id: Bytes::from_static(b"abc"), at: 17 }));
        let to = |id: &'static [u8]| Some(Start::Continue { id: Bytes::from_static(id) });
        assert_eq!(parse_start(b"CONTINUE new", &asked), to(b"new"));
        assert_eq!(parse_start(b"CONTINUE", &asked), to(b"old"));
        for line in [&b""[..], b"OK", b"FULLRESYNC abc", b"FULLRESYNC abc x", b"FULLRESYNC a@b 1", b"\xff"] {
            assert_eq!(parse_start(line, &asked), None);
        }
    }
}
