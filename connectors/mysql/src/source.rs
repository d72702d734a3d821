//! A server's changes: its binlog, joined to a snapshot.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::time::now_ms;
use causeway_core::{
    Change, Error, Event, Key, Op, Opened, Position, Result, Site, Source, Space, Token, Told,
};
use futures_util::StreamExt;
use mysql_async::prelude::Queryable;
use mysql_async::{BinlogStream, BinlogStreamRequest, Conn};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::config::{MysqlConfig, Server};
use crate::conn::{
    connect, failed, in_time, is_lock, is_read_only, make_our_tables, refuse_read_only, run, unavailable,
    with_role,
};
use crate::connector::Definitions;
use crate::content::{self, Count};
use crate::ddl::{Ddl, creation, note, started};
use crate::failover::{self, Resume};
use crate::gtid::{Executed, Told as ToldGtids};
use crate::names;
use crate::place::{Place, executed_of, progress_of, with_executed, with_progress};
use crate::read::{Known, Lock, rows};
use crate::schema::{self, Table, carried, table_of};
use crate::snapshot::{Progress, ReadChunk, Reader, Said};
use crate::stream::{Decoder, Start, Stop};
use crate::target::announced;
use crate::tokens::write_token;

/// An idle server says so this often.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// One that says nothing for so long is gone (FF17c).
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether a server still takes writes.
const ROLE_EVERY: Duration = Duration::from_secs(2);
/// A read that met another transaction's locks is done again so often.
const DEADLOCKS_MAX: usize = 5;
/// Tables left out that are named.
const LEFT_OUT_NAMED: usize = 1000;

/// One site's server as a source.
pub struct MysqlSource {
    config: Arc<MysqlConfig>,
    definitions: Arc<Definitions>,
    site: Site,
    live: Option<Live>,
    /// Why the place where the stream broke is of no use.
    lost: Option<String>,
    /// Up to where the log holds the stream.
    held: Option<Position>,
    /// The binlog is that of a server that took over.
    moved: bool,
}

struct Live {
    label: String,
    /// What names the channel in our tables.
    name: String,
    /// To the task that notes what statements took from tables.
    defined: mpsc::Sender<Ddl>,
    stream: BinlogStream,
    /// Says that the server takes no writes any more.
    demoted: mpsc::Receiver<()>,
    decoder: Decoder,
    side: Conn,
    known: Known,
    /// It keeps what it streamed, whatever crashes.
    durable: bool,
    /// States that were asked for, until their token passes.
    asked: HashMap<Token, Vec<(Key, Option<Bytes>)>>,
    /// They may be of a write that nobody made just then.
    uncertain: bool,
    snapshot: Option<Snapshot>,
    /// How far the snapshot was at each place, from its begin on.
    progress: VecDeque<(u64, Progress)>,
    /// Where its end stands.
    snapshot_ended: Option<u64>,
    /// The furthest place that a restart point was asked for.
    asked_for: AtomicU64,
    /// What was committed before came out of `next` before the last call, in milliseconds since 1970; 0: not known.
    current: u64,
    /// When the server said something last.
    heard: Instant,
    ready: VecDeque<Event>,
}

/// A snapshot that is being read.
struct Snapshot {
    said: mpsc::Receiver<Said>,
    /// First token to second one and the table, of chunks whose first has not passed.
    begun: HashMap<Token, (Token, Space)>,
    /// By their second token.
    chunks: HashMap<Token, (ReadChunk, OwnedSemaphorePermit)>,
    /// Chunks that have not passed.
    open: usize,
    ended: bool,
    left_out: LeftOut,
    told: ToldOf,
}

/// Of rows without a primary key, how many the stream has told of since a snapshot began: they stand before the `read` that
/// counts them.
#[derive(Default)]
struct ToldOf {
    counts: HashMap<u128, u64>,
}

/// Contents of which that is known. Of others it is taken for none, which makes a difference where rows that the other site
/// has by itself stay (`existing`).
const TOLD_OF_MAX: usize = 1 << 20;

impl ToldOf {
    fn digest(key: &Key) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        if let Space::Table(name) = &key.space {
            hasher.update(name);
            hasher.update(b";");
        }
        hasher.update(&key.name);
        hasher.digest128()
    }

    /// As the other site counts, which had none of them.
    fn note(&mut self, change: &Change) {
        if change.op != Op::Command {
            return;
        }
        let digest = ToldOf::digest(&change.key);
        if change.value.as_deref() != Some(content::ADDED) {
            if let Some(count) = self.counts.get_mut(&digest) {
                *count = count.saturating_sub(1);
            }
        } else if self.counts.len() < TOLD_OF_MAX || self.counts.contains_key(&digest) {
            *self.counts.entry(digest).or_default() += 1;
        }
    }

    fn of(&self, key: &Key) -> u64 {
        self.counts.get(&ToldOf::digest(key)).copied().unwrap_or(0)
    }
}

/// How many rows, at least, and of which tables, with the reason.
type LeftOut = (u64, Vec<(Key, String)>);

/// Who the server is, and where its binlog ends.
pub(crate) struct Found {
    pub(crate) server: Bytes,
    pub(crate) server_id: u32,
    pub(crate) is_mariadb: bool,
    pub(crate) end: Place,
    /// Which transactions it had there, as far as that is told with the place.
    pub(crate) executed: Option<Executed>,
    durable: bool,
}

impl MysqlSource {
    /// `site`'s server; connects to nothing yet.
    pub(crate) fn new(config: Arc<MysqlConfig>, definitions: Arc<Definitions>, site: Site) -> MysqlSource {
        MysqlSource { config, definitions, site, live: None, lost: None, held: None, moved: false }
    }

    fn server(&self) -> &Server {
        self.config.server(self.site)
    }

    fn live(&mut self, action: &str) -> Result<&mut Live> {
        let missing = unavailable(action, &self.server().label(), "not connected");
        self.live.as_mut().ok_or(missing)
    }

    /// Opens the binlog at a place.
    async fn stream(&self, place: &Place, found: &Found) -> Result<BinlogStream> {
        let label = self.server().label();
        let mut conn = connect(self.server()).await?;
        // An address may be another server's from one moment to the next.
        if identity(&mut conn, &label, found.is_mariadb).await? != found.server {
            return Err(unavailable("read the binlog", &label, "another server answers now"));
        }
        failover::prepare(&mut conn, &label, found.is_mariadb).await?;
        let request =
            BinlogStreamRequest::new(replica_id()).with_filename(place.file.as_bytes()).with_pos(place.at);
        in_time("read the binlog", &label, conn.get_binlog_stream(request)).await
    }

    /// Where to read on behind `from`: `Err` says why that cannot be.
    async fn resume(
        &self,
        conn: &mut Conn,
        from: &Position,
        found: &Found,
    ) -> Result<std::result::Result<Resume, String>> {
        let label = self.server().label();
        let Some(place) = Place::of(from) else {
            return Ok(Err("it is of another kind of store".into()));
        };
        if self.held.as_ref().is_some_and(|held| held.history != from.history) {
            return Ok(Err("it is another server's, and the log goes on in a third one's binlog".into()));
        }
        let held = self.held.as_ref().filter(|held| held.at > from.at);
        let last = held.unwrap_or(from);
        let Some(last_place) = Place::of(last) else {
            return Ok(Err("it is of another kind of store".into()));
        };
        if place.server == found.server && last_place.server == found.server && place.lift == last_place.lift
        {
            let stands = failover::stands(conn, &label, &place, found).await?;
            return Ok(stands.map(|()| Resume {
                place,
                stretch: None,
                executed: executed_of(from),
                moved: false,
            }));
        }
        failover::find(self.server(), conn, (from, &place), (last, &last_place), found).await
    }
}

/// What we call ourselves as a replica: a server ends what an earlier one of the same number reads.
pub(crate) fn replica_id() -> u32 {
    xxhash_rust::xxh3::xxh3_64(Token::unique().text().as_bytes()) as u32 | 1 << 31
}

/// What tells the server from all others.
async fn identity(conn: &mut Conn, label: &str, is_mariadb: bool) -> Result<Bytes> {
    let identity = if is_mariadb { "@@server_uid" } else { "@@server_uuid" };
    let found: Option<String> =
        in_time("ask who it is", label, conn.query_first(format!("SELECT {identity}"))).await?;
    Ok(found.unwrap_or_default().into())
}

/// Who the server is; and refuses one whose binlog would not tell all.
pub(crate) async fn look(conn: &mut Conn, label: &str) -> Result<Found> {
    let ask = "ask for settings";
    let version: Option<String> = in_time(ask, label, conn.query_first("SELECT VERSION()")).await?;
    let is_mariadb = version.unwrap_or_default().contains("MariaDB");
    let server = identity(conn, label, is_mariadb).await?;
    let sql = "SELECT @@server_id, @@log_bin, @@binlog_format, @@binlog_row_image, @@binlog_row_metadata, @@sync_binlog, \
               @@innodb_flush_log_at_trx_commit";
    let row: Option<(u32, u64, String, String, String, u64, u64)> =
        in_time(ask, label, conn.query_first(sql)).await?;
    let (server_id, log_bin, format, image, metadata, sync, flush) =
        row.ok_or_else(|| unavailable(ask, label, "no answer"))?;
    let wrong = [
        ("log_bin", if log_bin == 1 { "ON" } else { "OFF" }, "ON"),
        ("binlog_format", &format, "ROW"),
        ("binlog_row_image", &image, "FULL"),
        ("binlog_row_metadata", &metadata, "FULL"),
    ]
    .into_iter()
    .find(|(_, is, wanted)| !is.eq_ignore_ascii_case(wanted));
    if let Some((setting, is, wanted)) = wrong {
        return Err(Error::Setup {
            action: "read the binlog".into(),
            endpoint: label.into(),
            reason: format!("{setting} is {is}"),
            advice: format!("set it to {wanted}, in the server's configuration too"),
        });
    }
    // The word of MySQL since 8.2, and that of all others.
    let status = match conn.query_first::<mysql_async::Row, _>("SHOW BINARY LOG STATUS").await {
        Ok(row) => row,
        Err(mysql_async::Error::Server(e)) if e.code == 1064 => {
            in_time("find the binlog's end", label, conn.query_first("SHOW MASTER STATUS")).await?
        }
        Err(other) => return Err(failed("find the binlog's end", label, other)),
    };
    let text = |index: usize| status.as_ref().and_then(|row| row.get_opt::<String, _>(index)?.ok());
    let at = status.as_ref().and_then(|row| row.get_opt::<u64, _>(1)?.ok());
    let (Some(file), Some(at)) = (text(0), at) else {
        return Err(unavailable("find the binlog's end", label, "the server has none"));
    };
    let end = Place { history: server.clone(), server: server.clone(), file, at, ..Place::default() };
    if end.position().is_none() {
        return Err(unavailable("find the binlog's end", label, format!("{} has no number", end.file)));
    }
    // MySQL alone tells it with the place.
    let executed = text(4).filter(|text| !text.is_empty() && !is_mariadb);
    let executed = executed.and_then(|text| Executed::parse(&text));
    let durable = sync == 1 && flush == 1;
    Ok(Found { server, server_id, is_mariadb, end, executed, durable })
}

#[async_trait]
impl Source for MysqlSource {
    async fn open(&mut self, from: Option<&Position>, snapshot: bool, _: Told) -> Result<Opened> {
        (self.live, self.moved) = (None, false);
        let mut side = connect(self.server()).await?;
        let label = self.server().label();
        refuse_read_only(&mut side, &label, "read the binlog").await?;
        make_our_tables(&mut side, &label).await?;
        let found = look(&mut side, &label).await?;
        let mut lost = None;
        let mut resumed = None;
        if let Some(from) = from {
            let may = match self.lost.take() {
                Some(reason) => Err(reason),
                None => self.resume(&mut side, from, &found).await?,
            };
            match may {
                Ok(resume) => resumed = Some(resume),
                Err(reason) => lost = Some(reason),
            }
        }
        self.lost = None;
        let opened = if resumed.is_some() { Opened::Resumed } else { Opened::Anew { lost } };
        let resume = resumed.unwrap_or_else(|| Resume {
            place: found.end.clone(),
            stretch: None,
            executed: found.executed.clone(),
            moved: false,
        });
        let executed = match resume.executed {
            Some(executed) => Some(executed),
            None => failover::learn(&mut side, &label, &resume.place, &found).await?,
        };
        self.moved = resume.moved;
        if resume.moved {
            info!(
                site = self.config.site(self.site),
                endpoint = label,
                file = resume.place.file,
                at = resume.place.at,
                "another server took over: its binlog is read from where the log ends"
            );
        }
        let stream = self.stream(&resume.place, &found).await?;
        let mut known = Known::default();
        let charsets = known.charsets(&mut side, &label).await?;
        let name = names::row(&self.config.link, &self.config.channel);
        let begin =
            resume.stretch.as_ref().map_or_else(|| resume.place.order(), |stretch| stretch.position.at);
        let told = ToldGtids::new(begin, executed);
        let start = Start { place: resume.place, stretch: resume.stretch, told };
        let mut decoder = Decoder::new(self.config.tables.clone(), charsets.clone(), name.clone(), start);
        let at = decoder.position();
        if opened != Opened::Resumed
            && let Some(announced) = announced(&mut side, &label, &name).await?
            && started(&mut side, &label).await?.abs_diff(announced.started) <= 2
        {
            let here = decoder.position();
            decoder.expect(announced, found.server_id, here);
        }
        let mut ready = VecDeque::new();
        let progress = match &opened {
            Opened::Resumed => from.and_then(progress_of),
            Opened::Anew { .. } => snapshot.then(Progress::default),
        };
        let snapshot = match &progress {
            Some(progress) => {
                let tables = carried(&mut side, &label, &self.config.tables).await?;
                let (left_out, tables) = split(tables);
                if opened != Opened::Resumed {
                    let total = tables.iter().map(|table| table.rows).sum();
                    ready.push_back(Event::SnapshotStarted { total: Some(total), pos: at.clone() });
                }
                if from.is_none() {
                    // The tables first.
                    for table in &tables {
                        let made = creation(&mut side, &label, (&table.schema, &table.name)).await?;
                        let change = made
                            .and_then(|made| made.change(&made.definition()?, &self.config.tables, now_ms()));
                        ready
                            .extend(change.map(|change| Event::Change(Change { pos: at.clone(), ..change })));
                    }
                }
                let reader = Reader {
                    server: self.server().clone(),
                    name: name.clone(),
                    tables,
                    progress: progress.clone(),
                    charsets,
                    bytes_per_second: self.config.snapshot_bytes_per_second,
                };
                let said = reader.start();
                let (begun, chunks) = (HashMap::new(), HashMap::new());
                let told = ToldOf::default();
                Some(Snapshot { said, begun, chunks, open: 0, ended: false, left_out, told })
            }
            None => {
                ready.push_back(Event::Idle { pos: at });
                None
            }
        };
        info!(site = self.config.site(self.site), endpoint = label, ?opened, "the binlog is read");
        let uncertain = self.config.carries[self.site.peer().index()];
        // One that took over may lack what the old one streamed.
        let is_same = |held: &Position| Place::of(held).is_some_and(|held| held.server == found.server);
        let durable = found.durable && self.held.as_ref().is_none_or(is_same);
        let asked = HashMap::new();
        let (say, defined) = mpsc::channel(DEFINED_MAX);
        tokio::spawn(note_all(self.server().clone(), name.clone(), defined));
        let (demote, demoted) = mpsc::channel(1);
        tokio::spawn(watch_role(self.server().clone(), demote));
        let live = Live {
            label,
            name,
            defined: say,
            stream,
            demoted,
            decoder,
            side,
            known,
            durable,
            asked,
            uncertain,
            snapshot,
            progress: progress.map(|progress| (0, progress)).into_iter().collect(),
            snapshot_ended: None,
            asked_for: AtomicU64::new(0),
            current: 0,
            heard: Instant::now(),
            ready,
        };
        self.live = Some(live);
        Ok(opened)
    }

    fn held(&mut self, last: &Position) {
        self.held = Some(last.clone()).filter(|last| !last.history.is_empty());
    }

    fn moved(&self) -> bool {
        self.moved
    }

    fn warning(&self) -> Option<String> {
        let several = self.server().addresses.len() > 1;
        let is_unknown = self.live.as_ref().is_some_and(|live| !live.decoder.knows_executed());
        (several && is_unknown).then(|| {
            format!(
                "{}: which transactions the server has is not known (GTIDs are off, or several servers write its \
                 binlog): a failover would be a gap, which a snapshot closes",
                self.config.site(self.site)
            )
        })
    }

    fn keeps_what_it_streamed(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.durable)
    }

    fn current(&self) -> Option<u64> {
        self.live.as_ref().map(|live| live.current).filter(|current| *current > 0)
    }

    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        let live = self.live("read the binlog")?;
        let came = live.next(events, bytes_max).await;
        let seen = std::mem::take(&mut live.decoder.definitions);
        if let (true, Some(count)) = (seen > 0, self.definitions.get(self.site.index())) {
            count.fetch_add(seen, Ordering::SeqCst);
        }
        if let Err(error) = &came {
            if let Error::PositionLost { reason, .. } = error {
                self.lost = Some(reason.clone());
            }
            self.live = None;
        }
        came
    }

    fn acknowledge(&mut self, _: &Position) {
        if let Some(live) = &mut self.live {
            live.forget();
        }
    }

    fn restart_point(&self, durable: &Position) -> Position {
        self.live.as_ref().map_or_else(|| durable.clone(), |live| live.restart_point(durable))
    }

    async fn refresh(&mut self, keys: Vec<Key>) -> Result<Token> {
        let tables = self.config.tables.clone();
        let live = self.live("read rows again")?;
        let carried = |key: &Key| table_of(key).is_some_and(|(schema, name)| tables.carries(schema, name));
        let keys: Vec<Key> = keys.into_iter().filter(carried).collect();
        let mut tries = 0;
        loop {
            match live.refresh(&keys).await {
                Err(error) if tries < DEADLOCKS_MAX && is_lock(&error) => tries += 1,
                done => {
                    if done.is_err() {
                        self.live = None;
                    }
                    return done;
                }
            }
        }
    }
}

/// Says once that the server takes no writes any more: what took over is to be read then, and the old one may stay
/// connected for ever without a word. Until nobody listens.
async fn watch_role(server: Server, demote: mpsc::Sender<()>) {
    let mut conn: Option<Conn> = None;
    let (index, label) = (server.chosen.get().unwrap_or(0), server.label());
    loop {
        tokio::select! {
            () = demote.closed() => return,
            () = tokio::time::sleep(ROLE_EVERY) => {}
        }
        let is_replica = match &mut conn {
            Some(open) => is_read_only(open, &label).await,
            None => with_role(&server, index).await.map(|(open, is_replica)| {
                conn = Some(open);
                is_replica
            }),
        };
        match is_replica {
            Ok(true) => {
                let _gone = demote.send(()).await;
                return;
            }
            Ok(false) => {}
            // Whether it is there at all the stream knows.
            Err(_) => conn = None,
        }
    }
}

/// Statements that wait to be noted.
const DEFINED_MAX: usize = 1024;

/// Notes what statements took from tables, one after the other; until nobody sends any more.
async fn note_all(server: Server, name: String, mut defined: mpsc::Receiver<Ddl>) {
    while let Some(ddl) = defined.recv().await {
        for wait in [1, 2, 5, 10, 30, 60, 300] {
            let noting = async {
                let mut conn = connect(&server).await?;
                note(&mut conn, &server.label(), &name, &ddl, true).await
            };
            let Err(error) = noting.await else { break };
            warn!(endpoint = server.label(), sql = ddl.sql, %error, "it is not noted what tables no longer have: what \
                the peer still writes there waits");
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
    }
}

/// Those that are not carried, with the reason, and those that are.
fn split(tables: Vec<Table>) -> (LeftOut, Vec<Table>) {
    let (mut left_out, mut carried) = ((0, Vec::new()), Vec::new());
    for table in tables {
        let Some(reason) = table.not_carried() else {
            carried.push(table);
            continue;
        };
        left_out.0 += table.rows.max(1);
        if left_out.1.len() < LEFT_OUT_NAMED {
            left_out.1.push(schema::left_out(table.space(), &reason));
        }
    }
    (left_out, carried)
}

impl Live {
    async fn next(&mut self, events: &mut Vec<Event>, bytes_max: usize) -> Result<()> {
        // Times are of whole seconds.
        self.current = (u64::from(self.decoder.newest) * 1000).min(now_ms()).saturating_sub(1000);
        let before = events.len();
        loop {
            let mut bytes = 0;
            while let Some(event) = self.ready.pop_front() {
                let whole = match &event {
                    // What makes the tables stands in one append with the snapshot's beginning.
                    Event::Change(change) if change.op == Op::Ddl => false,
                    Event::Change(change) => {
                        bytes += change.cost();
                        change.group.is_none_or(|group| group.last)
                    }
                    _ => true,
                };
                events.push(event);
                if whole && bytes >= bytes_max {
                    return Ok(());
                }
            }
            if events.len() > before {
                return Ok(());
            }
            tokio::select! {
                biased;
                said = hear(&mut self.snapshot) => self.heard(said)?,
                Some(()) = self.demoted.recv() => {
                    let reason = "it takes no writes any more (read_only is ON): another server may have taken over";
                    return Err(unavailable("read the binlog", &self.label, reason));
                }
                // Also where somebody else ends this wait each second.
                event = timeout_at(self.heard + SILENCE_MAX, self.stream.next()) => {
                    let silent = |_| unavailable("read the binlog", &self.label, "the server says nothing");
                    let event = event.map_err(silent)?;
                    self.heard = Instant::now();
                    match event {
                        Some(Ok(event)) => {
                            let seen = self.decoder.definitions;
                            self.take(&event)?;
                            if self.decoder.definitions != seen {
                                self.known.forget();
                            }
                            // Not here: this may be given up at any await.
                            for ddl in self.decoder.defined.drain(..) {
                                if let Err(error) = self.defined.try_send(ddl) {
                                    warn!(endpoint = self.label, %error, "it is not noted what tables no longer have");
                                }
                            }
                        }
                        Some(Err(error)) => return Err(self.broke(error)),
                        None => return Err(unavailable("read the binlog", &self.label, "the server ended it")),
                    }
                }
            }
        }
    }

    /// What the server says of a binlog that it cannot send makes a gap.
    fn broke(&self, error: mysql_async::Error) -> Error {
        match &error {
            // ER_MASTER_FATAL_ERROR_READING_BINLOG: purged, or damaged.
            mysql_async::Error::Server(e) if e.code == 1236 => Error::PositionLost {
                position: self.decoder.position().to_string(),
                reason: e.message.clone(),
            },
            _ => failed("read the binlog", &self.label, error),
        }
    }

    fn take(&mut self, event: &mysql_async::binlog::events::Event) -> Result<()> {
        let mut events = Vec::new();
        let stream = &self.stream;
        let taken = self.decoder.take(event, |id| stream.get_tme(id), &mut events);
        taken.map_err(|stop| match stop {
            Stop::Lost(reason) => {
                Error::PositionLost { position: self.decoder.position().to_string(), reason }
            }
            Stop::Garbled(reason) => Error::Garbled {
                endpoint: self.label.clone(),
                what: "binlog",
                at: u64::from(event.header().log_pos()),
                reason,
            },
        })?;
        if std::mem::take(&mut self.decoder.moved) && self.snapshot.is_some() {
            // How far it is, is told by names.
            let reason = "a table or a key got another name while a snapshot was read".to_owned();
            return Err(Error::PositionLost { position: self.decoder.position().to_string(), reason });
        }
        for event in events {
            if let (Event::Change(change), Some(snapshot)) = (&event, &mut self.snapshot) {
                snapshot.told.note(change);
            }
            match (event, self.ready.back()) {
                (Event::Token(token), _) => self.passed(token)?,
                (Event::Idle { pos }, Some(Event::Change(change))) if change.pos == pos => {}
                (Event::Idle { pos }, Some(Event::Marker { pos: told, .. })) if *told == pos => {}
                (idle @ Event::Idle { .. }, Some(Event::Idle { .. })) => {
                    // The newest says it all.
                    self.ready.pop_back();
                    self.ready.push_back(idle);
                }
                (event, _) => {
                    self.ready.push_back(event);
                }
            }
        }
        Ok(())
    }

    /// With how far the snapshot is in the log then: of a chunk that stands at `durable` there may be more to come.
    fn restart_point(&self, durable: &Position) -> Position {
        self.asked_for.fetch_max(durable.at, Ordering::Relaxed);
        let point = self.decoder.restart_point(durable);
        let point = match self.decoder.executed(&point) {
            Some(executed) => with_executed(point, &executed),
            None => point,
        };
        let ended = self.snapshot_ended.is_some_and(|ended| ended < durable.at);
        let reached = self.progress.iter().rev().find(|(at, _)| *at < durable.at).filter(|_| !ended);
        // Where the last restart read on, that place told how far it was then.
        with_progress(point, reached.map(|(_, progress)| progress))
    }

    /// What no later restart point needs: they never go back.
    fn forget(&mut self) {
        let asked = self.asked_for.load(Ordering::Relaxed);
        self.decoder.forget_below(asked);
        while self.progress.get(1).is_some_and(|(at, _)| *at < asked) {
            self.progress.pop_front();
        }
    }

    /// A token stands here in the binlog.
    fn passed(&mut self, token: Token) -> Result<()> {
        let pos = self.decoder.position();
        // Whatever is said of a token was said before it was written.
        while let Some(said) = self.snapshot.as_mut().and_then(|snapshot| snapshot.said.try_recv().ok()) {
            self.heard(said)?;
        }
        if let Some(snapshot) = &mut self.snapshot {
            if let Some((high, table)) = snapshot.begun.remove(&token) {
                self.decoder.open_window(high, table);
                return Ok(());
            }
            if let Some((chunk, place)) = snapshot.chunks.remove(&token) {
                snapshot.open -= 1;
                let Some(mut changed) = self.decoder.close_window(token) else {
                    return Err(unavailable(
                        "read a chunk",
                        &self.label,
                        "too many of its rows changed meanwhile",
                    ));
                };
                let time = now_ms();
                self.progress.push_back((pos.at, chunk.progress));
                for (key, json) in chunk.rows {
                    // As it is here, whoever changed it: a key that no read names did not exist.
                    let Some(json) = changed.rows.remove(&key).unwrap_or(Some(json)) else { continue };
                    let read = Change::captured(Op::Read, key, Some(json), pos.clone(), time);
                    self.ready.push_back(Event::Change(read));
                }
                for (key, rows) in chunk.counts {
                    let since = changed.counts.get(&key).copied().unwrap_or(0);
                    let rows = rows.saturating_add_signed(since);
                    if rows > 0 {
                        let count = Count { rows, told: snapshot.told.of(&key) };
                        let value = Some(count.text().into());
                        let read = Change::captured(Op::Read, key, value, pos.clone(), time);
                        self.ready.push_back(Event::Change(read));
                    }
                }
                drop(place);
                self.end_snapshot(&pos);
                return Ok(());
            }
        }
        if let Some(states) = self.asked.remove(&token) {
            for (key, json) in states {
                let state = Change::captured(Op::State, key, json, pos.clone(), now_ms());
                self.ready.push_back(Event::Change(Change { uncertain: self.uncertain, ..state }));
            }
        }
        self.ready.push_back(Event::Token(token));
        Ok(())
    }

    fn heard(&mut self, said: Said) -> Result<()> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(()) };
        match said {
            Said::Begins { low, high, table } => {
                snapshot.begun.insert(low, (high, table));
                snapshot.open += 1;
            }
            Said::Rows { high, chunk, place } => {
                snapshot.chunks.insert(high, (chunk, place));
            }
            Said::Ended => {
                snapshot.ended = true;
                let pos = self.decoder.position();
                self.end_snapshot(&pos);
            }
            Said::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn end_snapshot(&mut self, pos: &Position) {
        let Some(snapshot) = self.snapshot.take_if(|snapshot| snapshot.ended && snapshot.open == 0) else {
            return;
        };
        self.snapshot_ended = Some(pos.at);
        self.ready.push_back(Event::SnapshotEnded { pos: pos.clone(), left_out: snapshot.left_out });
    }

    /// Reads rows and writes a token in one transaction, in which nobody else can change them.
    async fn refresh(&mut self, keys: &[Key]) -> Result<Token> {
        let token = Token::unique();
        let action = "read rows again";
        run(&mut self.side, &self.label, action, "BEGIN").await?;
        let done = async {
            let found = rows(&mut self.side, &self.label, &mut self.known, keys, Lock::Share).await?;
            write_token(&mut self.side, &self.label, &self.name, token).await?;
            run(&mut self.side, &self.label, action, "COMMIT").await?;
            Ok(found)
        };
        match done.await {
            Ok(found) => {
                self.asked.insert(token, found.into_iter().collect());
                Ok(token)
            }
            Err(error) => {
                run(&mut self.side, &self.label, action, "ROLLBACK").await?;
                Err(error)
            }
        }
    }
}

async fn hear(snapshot: &mut Option<Snapshot>) -> Said {
    if let Some(snapshot) = snapshot
        && let Some(said) = snapshot.said.recv().await
    {
        return said;
    }
    std::future::pending().await
}
