//! A server as the target of its peer's changes: one transaction a batch, with the marker first in it.
//!
//! The first statement of each transaction writes the marker where the term is still ours, and so holds that row until
//! the end: whoever takes over waits for it, and what an older applier sends later changes no row and is rolled back.
//! That row in the binlog also tells the site's own capture that the transaction is ours, on any server.
//!
//! A batch goes in the fast way, as few statements that say what must hold (`sql`); where something else
//! holds, it is rolled back and goes in change by change, each behind a savepoint.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::{
    Batch, Change, Error, Key, Keys, Marker, Op, Outcome, Refused, Result, Seq, Site, Space, Target, Term,
    Token,
};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{MysqlConfig, Server};
use crate::conn::{
    ANSWER_MAX, SCAN_MAX, connect, failed, in_time, is_lock, is_lock_code, make_our_tables, refuse_read_only,
    run, scanned, text, unavailable,
};
use crate::connector::Definitions;
use crate::content::{Content, Count, Said};
use crate::ddl::{Announced, Ddl, fingerprint, gone, has_database, note, show_create, started, still_runs};
use crate::names::{self, APPLIED, SCHEMA};
use crate::read::{Known, Lock, counted, rows};
use crate::row::write_name;
use crate::schema::{Table, carried, table_of};
use crate::snapshot::Slices;
use crate::sql::{self, Expected, Row, Statement, Step};
use crate::tokens::write_token;

/// A batch that met another transaction's locks is tried again so often at once.
const DEADLOCKS_MAX: usize = 10;
/// Keys of one page of [`Target::keys`].
const KEYS_AT_ONCE: usize = 1000;
/// Statements that are sent together are about this long at most.
const TOGETHER_BYTES: usize = 1 << 20;
/// What a packet has besides the statement, and more.
const PACKET_ROOM: usize = 1024;
/// Batches that wait for the connection: the daemon has fewer under way.
const QUEUE: usize = 64;

/// One site's server, as the target of its peer's changes.
pub struct MysqlTarget {
    config: Arc<MysqlConfig>,
    definitions: Arc<Definitions>,
    site: Site,
    link: Option<Link>,
    settled: Seq,
}

/// The way to the task that has the connection.
struct Link {
    jobs: mpsc::Sender<Job>,
    outcomes: mpsc::Receiver<(Result<Outcome>, Seq)>,
    worker: JoinHandle<()>,
}

/// What is under way ends with the target, and does not come later: the server undoes it.
impl Drop for Link {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

enum Job {
    Batch(Batch),
    Watch(Vec<Key>, oneshot::Sender<Result<Token>>),
    Holds(Vec<Change>, oneshot::Sender<Result<Vec<bool>>>),
    Keys(u64, oneshot::Sender<Result<Keys>>),
}

/// What has the connection.
struct Worker {
    config: Arc<MysqlConfig>,
    definitions: Arc<Definitions>,
    /// What is known of the tables is of then.
    definitions_known: u64,
    site: Site,
    label: String,
    name: String,
    term: Term,
    conn: Conn,
    known: Known,
    /// The server's `max_allowed_packet`, less what a packet has around a statement.
    packet_max: usize,
    /// What watched keys held.
    watched: HashMap<Key, Option<Bytes>>,
    listing: Listing,
    /// Tables that were said to lack a row that went at the other site.
    lacking: HashSet<String>,
}

/// Where the listing of keys is.
#[derive(Default)]
struct Listing {
    /// Which page comes next.
    page: u64,
    /// The last one is read.
    tables: Vec<Table>,
    /// Behind which key to go on.
    after: Option<Vec<crate::row::Cell>>,
    /// Which slice comes next, of a table without a primary key.
    slices: Option<Slices>,
}

impl MysqlTarget {
    /// `site`'s server; connects to nothing yet.
    pub(crate) fn new(config: Arc<MysqlConfig>, definitions: Arc<Definitions>, site: Site) -> MysqlTarget {
        MysqlTarget { config, definitions, site, link: None, settled: Seq(0) }
    }

    fn server(&self) -> &Server {
        self.config.server(self.site)
    }

    fn gone(&self, action: &str) -> Error {
        unavailable(action, &self.server().label(), "not connected")
    }

    async fn ask<T>(
        &mut self,
        action: &str,
        job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job,
    ) -> Result<T> {
        let gone = self.gone(action);
        let Some(link) = &self.link else { return Err(gone) };
        let (answer, answered) = oneshot::channel();
        let answered = match link.jobs.send(job(answer)).await {
            Ok(()) => answered.await.ok(),
            Err(_) => None,
        };
        let answer = answered.unwrap_or(Err(gone));
        if answer.is_err() {
            self.link = None;
        }
        answer
    }
}

#[async_trait]
impl Target for MysqlTarget {
    async fn take_over(&mut self, term: Term) -> Result<Option<Marker>> {
        self.link = None;
        let mut conn = connect(self.server()).await?;
        let label = self.server().label();
        refuse_read_only(&mut conn, &label, "apply").await?;
        make_our_tables(&mut conn, &label).await?;
        let packet: Option<u64> =
            in_time("take over", &label, conn.query_first("SELECT @@max_allowed_packet")).await?;
        let name = names::row(&self.config.link, &self.config.channel);
        let marker = take_over(&mut conn, &label, &name, term).await?;
        self.settled = marker.as_ref().map_or(Seq(0), |marker| marker.settled);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (say, outcomes) = mpsc::channel(QUEUE);
        let worker = Worker {
            config: Arc::clone(&self.config),
            definitions: Arc::clone(&self.definitions),
            definitions_known: 0,
            site: self.site,
            label,
            name,
            term,
            conn,
            known: Known::default(),
            packet_max: usize::try_from(packet.unwrap_or(0))
                .unwrap_or(usize::MAX)
                .saturating_sub(PACKET_ROOM),
            watched: HashMap::new(),
            listing: Listing::default(),
            lacking: HashSet::new(),
        };
        let worker = tokio::spawn(worker.run(queue, say));
        self.link = Some(Link { jobs, outcomes, worker });
        Ok(marker)
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let gone = self.gone("apply");
        let Some(link) = &self.link else { return Err(gone) };
        if link.jobs.send(Job::Batch(batch)).await.is_ok() {
            return Ok(());
        }
        Err(self.outcome().await.err().unwrap_or(gone))
    }

    async fn outcome(&mut self) -> Result<Outcome> {
        let gone = self.gone("apply");
        let Some(link) = &mut self.link else { return Err(gone) };
        match link.outcomes.recv().await {
            Some((Ok(outcome), applied)) => {
                self.settled = self.settled.max(applied);
                Ok(outcome)
            }
            Some((Err(error), _)) => {
                self.link = None;
                Err(error)
            }
            None => {
                self.link = None;
                Err(gone)
            }
        }
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        let keys = keys.to_vec();
        self.ask("watch rows", |answer| Job::Watch(keys, answer)).await
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let changes = changes.to_vec();
        self.ask("compare rows", |answer| Job::Holds(changes, answer)).await
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        self.ask("list keys", |answer| Job::Keys(cursor, answer)).await
    }

    fn settled(&self) -> Seq {
        self.settled
    }
}

/// Raises the term, and reads the marker that stands there then. Waits for a transaction of an older applier.
async fn take_over(conn: &mut Conn, label: &str, name: &str, term: Term) -> Result<Option<Marker>> {
    let action = "take over";
    let raise = format!(
        "INSERT INTO {SCHEMA}.{APPLIED} (name, term, batch, marker) VALUES ('{name}', {term}, 0, '') ON DUPLICATE KEY \
         UPDATE term = GREATEST(term, {term})",
        term = term.0
    );
    run(conn, label, action, raise).await?;
    let read = format!("SELECT term, marker FROM {SCHEMA}.{APPLIED} WHERE name = '{name}'");
    let found: Option<(u64, String)> = in_time(action, label, conn.query_first(read)).await?;
    let (held, marker) = found.ok_or_else(|| unavailable(action, label, "our row is gone"))?;
    if held > term.0 {
        return Err(fenced(label, Some(held), term));
    }
    if marker.is_empty() {
        return Ok(None);
    }
    let parsed = marker.parse().map(Some);
    parsed.map_err(|text| unavailable(action, label, format!("`{text}` in {SCHEMA}.{APPLIED} is no marker")))
}

/// What the row of a channel says is about to be run.
pub(crate) async fn announced(conn: &mut Conn, label: &str, name: &str) -> Result<Option<Announced>> {
    let read = format!("SELECT ddl FROM {SCHEMA}.{APPLIED} WHERE name = '{name}'");
    let found: Option<Option<String>> = in_time("look at the marker", label, conn.query_first(read)).await?;
    Ok(found.flatten().and_then(|text| Announced::parse(&text)))
}

fn fenced(label: &str, held: Option<u64>, term: Term) -> Error {
    let held = held.map_or_else(String::new, |held| format!("its marker is of term {held}, "));
    let reason = format!("{held}ours is {}; if the log was made anew, run `syncd cleanup` first", term.0);
    Error::Fenced { endpoint: label.to_owned(), reason }
}

/// Why a transaction did not come to its end.
enum Broken {
    /// Another way is needed: something else is there than was expected.
    Unexpected,
    /// Another transaction was in the way.
    Locked,
    /// The server refuses a statement; 0: it was not even sent.
    Refused {
        code: u16,
        message: String,
    },
    Failed(Error),
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>, say: mpsc::Sender<(Result<Outcome>, Seq)>) {
        while let Some(job) = queue.recv().await {
            let goes_on = match job {
                Job::Batch(batch) => {
                    let applied = batch.marker.applied;
                    let outcome = self.batch(batch).await;
                    let failed = outcome.is_err();
                    say.send((outcome, applied)).await.is_ok() && !failed
                }
                Job::Watch(keys, answer) => tell(answer, self.watch(&keys).await),
                Job::Holds(changes, answer) => tell(answer, self.holds(&changes).await),
                Job::Keys(cursor, answer) => tell(answer, self.keys(cursor).await),
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn batch(&mut self, batch: Batch) -> Result<Outcome> {
        let definitions =
            self.definitions.get(self.site.index()).map_or(0, |count| count.load(Ordering::SeqCst));
        if std::mem::replace(&mut self.definitions_known, definitions) != definitions {
            self.known.forget();
        }
        if let Some(change) = batch.changes.iter().find(|change| change.op == Op::Ddl) {
            if batch.changes.len() > 1 {
                let reason =
                    "a statement that commits by itself is in a transaction of other changes".to_owned();
                return Ok(Outcome::Rejected { transient: false, reason });
            }
            let ran = self.define(change).await;
            self.known.forget();
            if let (Ok(()), Some(ddl)) = (&ran, Ddl::of(change)) {
                note(&mut self.conn, &self.label, &self.name, &ddl, false).await?;
            }
            let marker = Batch { changes: Vec::new(), ..batch.clone() };
            let moved = match ran {
                Ok(()) => self.fast(&marker, &HashMap::new()).await,
                Err(broken) => Err(broken),
            };
            return match moved {
                Ok(outcome) => Ok(outcome),
                Err(Broken::Locked | Broken::Unexpected) => {
                    let reason = "other transactions hold the table".to_owned();
                    Ok(Outcome::Rejected { transient: true, reason })
                }
                Err(Broken::Refused { code, message }) if READ_ONLY.contains(&code) => {
                    Err(unavailable("apply", &self.label, refusal(code, message)))
                }
                Err(Broken::Refused { code, message }) => {
                    // What is missing, also a right, is for an operator to say what to do about.
                    let transient = is_transient(code) && !OPERATORS.contains(&code);
                    Ok(Outcome::Rejected { transient, reason: refusal(code, message) })
                }
                Err(Broken::Failed(error)) => Err(error),
            };
        }
        let watched = std::mem::take(&mut self.watched);
        for _ in 0..DEADLOCKS_MAX {
            let tried = match self.fast(&batch, &watched).await {
                Err(Broken::Unexpected | Broken::Refused { .. }) => {
                    self.undo().await?;
                    self.known.forget();
                    self.slow(&batch, &watched).await
                }
                tried => tried,
            };
            match tried {
                Ok(outcome) => return Ok(outcome),
                Err(Broken::Locked | Broken::Unexpected) => self.undo().await?,
                Err(Broken::Refused { code, message }) => {
                    self.undo().await?;
                    let reason = refusal(code, message);
                    if READ_ONLY.contains(&code) {
                        // Another one may have become the primary: whoever connects again finds it.
                        return Err(unavailable("apply", &self.label, reason));
                    }
                    return Ok(Outcome::Rejected { transient: is_transient(code), reason });
                }
                Err(Broken::Failed(error)) => return Err(error),
            }
        }
        Err(unavailable("apply", &self.label, "other transactions hold these rows"))
    }

    /// Runs a statement that commits by itself, if it did not run already.
    async fn define(&mut self, change: &Change) -> std::result::Result<(), Broken> {
        let wrong =
            || Broken::Refused { code: 0, message: "it is no statement that changes a table".to_owned() };
        let ddl = Ddl::of(change).ok_or_else(wrong)?;
        let definition = ddl.definition().ok_or_else(wrong)?;
        let table = definition.tables.first().ok_or_else(wrong)?;
        let label = self.label.clone();
        let earlier = announced(&mut self.conn, &label, &self.name).await.map_err(Broken::Failed)?;
        let earlier = earlier.filter(|earlier| earlier.seq == change.seq);
        if let Some(earlier) = earlier
            && earlier.connection != self.conn.id()
            && still_runs(&mut self.conn, &label, earlier).await.map_err(Broken::Failed)?
        {
            let message = format!("connection {} still runs it", earlier.connection);
            return Err(Broken::Refused { code: RUNS, message });
        }
        if let Some(database) = &ddl.made {
            let dropped = gone(&mut self.conn, &label, &format!("{}.{}", table.0, table.1)).await;
            let dropped = dropped.map_err(Broken::Failed)?.iter().any(String::is_empty);
            let there = show_create(&mut self.conn, &label, (&table.0, &table.1)).await;
            if dropped || there.map_err(Broken::Failed)?.is_some() {
                return Ok(());
            }
            if !has_database(&mut self.conn, &label, &table.0).await.map_err(Broken::Failed)? {
                let mut sql = "CREATE DATABASE ".to_owned();
                write_name(&mut sql, &table.0);
                sql.extend([" ", database]);
                self.execute(&[Statement { sql, expected: Expected::Nothing }]).await?;
            }
        }
        let before = fingerprint(&mut self.conn, &label, &definition.tables).await.map_err(Broken::Failed)?;
        match earlier {
            Some(earlier) if earlier.before != before => return Ok(()),
            Some(_) if definition.what == "RENAME TABLE" => {
                // Two that are alike may have been swapped.
                self.announce("NULL").await?;
                let message = "it may have run before a break: look, and answer `drop` if it has".to_owned();
                return Err(Broken::Refused { code: 0, message });
            }
            _ => {}
        }
        if !ddl.schema.is_empty() {
            let mut sql = "USE ".to_owned();
            write_name(&mut sql, &ddl.schema);
            self.execute(&[Statement { sql, expected: Expected::Nothing }]).await?;
        }
        let (seq, connection) = (change.seq, self.conn.id());
        let started = started(&mut self.conn, &label).await.map_err(Broken::Failed)?;
        self.announce(&format!("'{}'", Announced { seq, connection, before, started })).await?;
        // It may take hours: no answer is no fault.
        match self.conn.query_drop(&ddl.sql).await {
            Err(mysql_async::Error::Server(error)) if definition.is_one && IS_SO.contains(&error.code) => {
                info!(endpoint = label, sql = ddl.sql, answer = error.message, "it is so already");
                Ok(())
            }
            Err(error @ mysql_async::Error::Server(_)) => {
                // It has not run: what becomes of the table until it is tried again says nothing.
                self.announce("NULL").await?;
                Err(self.broken(error))
            }
            ran => ran.map_err(|error| self.broken(error)),
        }
    }

    /// Says in our row which statement is about to be run; leaves the marker as it is.
    async fn announce(&mut self, ddl: &str) -> std::result::Result<(), Broken> {
        let sql = format!(
            "UPDATE {SCHEMA}.{APPLIED} SET ddl = {ddl} WHERE name = '{}' AND term = {}",
            self.name, self.term.0
        );
        self.execute(&[Statement { sql, expected: Expected::Fence }]).await
    }

    async fn undo(&mut self) -> Result<()> {
        run(&mut self.conn, &self.label, "apply", "ROLLBACK").await
    }

    /// Begins the transaction: the marker, where the term is ours.
    fn begin(&self, batch: &Batch) -> Vec<Statement> {
        let sql = format!(
            "UPDATE {SCHEMA}.{APPLIED} SET batch = batch + 1, marker = '{marker}', ddl = IF(CAST(SUBSTRING_INDEX(ddl, ':', 1) AS \
             UNSIGNED) < {applied}, NULL, ddl) WHERE name = '{name}' AND term = {term}",
            marker = batch.marker,
            applied = batch.marker.applied.0,
            name = self.name,
            term = self.term.0
        );
        vec![
            Statement { sql: "BEGIN".into(), expected: Expected::Nothing },
            Statement { sql, expected: Expected::Fence },
        ]
    }

    /// Whether watched keys hold what they held; locks them.
    async fn untouched(
        &mut self,
        watched: &HashMap<Key, Option<Bytes>>,
    ) -> std::result::Result<bool, Broken> {
        let keys: Vec<Key> = watched.keys().cloned().collect();
        let found = rows(&mut self.conn, &self.label, &mut self.known, &keys, Lock::Update).await;
        Ok(found.map_err(of_lock)? == *watched)
    }

    async fn fast(
        &mut self,
        batch: &Batch,
        watched: &HashMap<Key, Option<Bytes>>,
    ) -> std::result::Result<Outcome, Broken> {
        let mut statements = self.begin(batch);
        if batch.watched {
            self.execute(&statements).await?;
            statements.clear();
            if !self.untouched(watched).await? {
                self.undo().await.map_err(Broken::Failed)?;
                return Ok(Outcome::Touched);
            }
        }
        let mut planned = Vec::with_capacity(batch.changes.len());
        for change in batch.changes.iter().filter(|change| change.op.is_data()) {
            let Some(made) = self.planned(change).await? else { return Err(Broken::Unexpected) };
            planned.push((made, change));
        }
        let mut held = HashMap::new();
        if planned.iter().any(|(made, _)| matches!(made, Planned::Content(_, Said::Count(_)))) {
            self.execute(&statements).await?;
            statements.clear();
            held = self.held(batch, watched).await?;
        }
        let mut steps = Vec::with_capacity(planned.len());
        for (made, change) in planned {
            let keep = batch.keep_existing && change.op == Op::Read;
            steps.push(match made {
                Planned::Row(row) => Step::Row(row, keep),
                Planned::Content(content, said) => match step(content, said, keep, held.get_mut(&change.key))
                {
                    Some(step) => step,
                    None => return Err(Broken::Unexpected),
                },
            });
        }
        sql::fast(steps, &mut statements);
        self.execute(&statements).await?;
        self.commit().await?;
        Ok(Outcome::Committed { refused: Vec::new(), existing: Vec::new() })
    }

    /// What a change makes of its row; `None`: that cannot be told, see [`Worker::slow`].
    async fn planned(&mut self, change: &Change) -> std::result::Result<Option<Planned>, Broken> {
        let table =
            self.known.table(&mut self.conn, &self.label, &change.key).await.map_err(Broken::Failed)?;
        Ok(table.and_then(|table| Planned::of(change, table).ok()))
    }

    /// How many rows there are of each content of which one of the batch's changes says how many there have to be; locks
    /// them. What is `watched` was just looked at.
    async fn held(
        &mut self,
        batch: &Batch,
        watched: &HashMap<Key, Option<Bytes>>,
    ) -> std::result::Result<HashMap<Key, u64>, Broken> {
        let mut held = HashMap::new();
        let mut by_table: HashMap<&Space, Vec<&Key>> = HashMap::new();
        for change in batch.changes.iter().filter(|change| change.op.is_data()) {
            let table =
                self.known.table(&mut self.conn, &self.label, &change.key).await.map_err(Broken::Failed)?;
            let is_keyless = table.is_some_and(Table::is_keyless);
            let Some(Said::Count(_)) = table.and_then(|_| Said::of(change, is_keyless)) else { continue };
            match watched.get(&change.key).filter(|_| batch.watched && is_keyless) {
                Some(row) => {
                    let count = row.as_deref().and_then(Count::parse).map_or(0, |count| count.rows);
                    held.insert(change.key.clone(), count);
                }
                None => by_table.entry(&change.key.space).or_default().push(&change.key),
            }
        }
        for keys in by_table.into_values() {
            let Some(first) = keys.first() else { continue };
            let table = self.known.table(&mut self.conn, &self.label, first).await.map_err(Broken::Failed)?;
            let Some(table) = table else { continue };
            let found = counted(&mut self.conn, &self.label, table, &keys, Lock::Update).await;
            held.extend(found.map_err(of_lock)?);
        }
        Ok(held)
    }

    /// Change by change.
    async fn slow(
        &mut self,
        batch: &Batch,
        watched: &HashMap<Key, Option<Bytes>>,
    ) -> std::result::Result<Outcome, Broken> {
        self.execute(&self.begin(batch)).await?;
        if batch.watched && !self.untouched(watched).await? {
            self.undo().await.map_err(Broken::Failed)?;
            return Ok(Outcome::Touched);
        }
        let (mut refused, mut existing) = (Vec::new(), Vec::new());
        let mut held = self.held(batch, watched).await?;
        let mut from = 0;
        while from < batch.changes.len() {
            let is_last = |change: &Change| change.group.is_none_or(|group| group.last);
            let rest = batch.changes.get(from..).unwrap_or_default();
            let count = rest.iter().position(is_last).map_or(rest.len(), |last| last + 1);
            let group = rest.get(..count).unwrap_or_default();
            self.savepoint("SAVEPOINT causeway").await?;
            match self.group(group, from, batch.keep_existing, &mut existing, &mut held).await {
                Ok(()) => {}
                Err(Broken::Refused { code, message }) if !is_transient(code) => {
                    self.savepoint("ROLLBACK TO SAVEPOINT causeway").await?;
                    existing.retain(|index| *index < from);
                    held = self.held(batch, &HashMap::new()).await?;
                    let reason = refusal(code, message);
                    refused
                        .extend((from..from + count).map(|index| Refused { index, reason: reason.clone() }));
                }
                Err(other) => return Err(other),
            }
            from += count;
        }
        self.commit().await?;
        Ok(Outcome::Committed { refused, existing })
    }

    async fn savepoint(&mut self, sql: &str) -> std::result::Result<(), Broken> {
        run(&mut self.conn, &self.label, "apply", sql).await.map_err(Broken::Failed)
    }

    async fn group(
        &mut self,
        group: &[Change],
        from: usize,
        keep_existing: bool,
        existing: &mut Vec<usize>,
        held: &mut HashMap<Key, u64>,
    ) -> std::result::Result<(), Broken> {
        for (n, change) in group.iter().enumerate().filter(|(_, change)| change.op.is_data()) {
            let table =
                self.known.table(&mut self.conn, &self.label, &change.key).await.map_err(Broken::Failed)?;
            let Some(table) = table else {
                if self.known.is_dropped(&change.key) {
                    continue;
                }
                let name = table_of(&change.key)
                    .map_or_else(String::new, |(schema, name)| format!("{schema}.{name}"));
                return Err(Broken::Refused {
                    code: NO_TABLE,
                    message: format!("the table {name} is missing: make it"),
                });
            };
            let full = table.full_name();
            let planned = Planned::of(change, table).map_err(|wrong| match wrong {
                sql::Wrong::Column(name) => Broken::Refused {
                    code: NO_COLUMN,
                    message: format!("the column {name} of {full} is missing: add it"),
                },
                sql::Wrong::NoKey => Broken::Refused {
                    code: NO_KEY,
                    message: format!(
                        "{full} has no primary key here, and had one where this row was written: add it"
                    ),
                },
                sql::Wrong::Form(message) => Broken::Refused { code: 0, message },
            })?;
            let keep = keep_existing && change.op == Op::Read;
            let row = match planned {
                Planned::Row(row) => row,
                Planned::Content(content, said) => {
                    match step(content, said, keep, held.get_mut(&change.key)) {
                        None => existing.push(from + n),
                        Some(Step::Remove(content, rows)) => {
                            let found = self.remove(&content, rows).await?;
                            self.lacks(&full, said, found, rows)?;
                        }
                        Some(step) => {
                            let mut statements = Vec::new();
                            sql::fast(vec![step], &mut statements);
                            self.execute(&statements).await?;
                        }
                    }
                    continue;
                }
            };
            if row.is_delete() {
                self.execute(&[row.delete()]).await?;
                continue;
            }
            let there: Option<u8> = match timeout(ANSWER_MAX, self.conn.query_first(row.exists())).await {
                Ok(there) => there.map_err(|error| self.broken(error))?,
                Err(_) => return Err(Broken::Failed(unavailable("apply", &self.label, "no answer"))),
            };
            match there {
                Some(_) if keep => existing.push(from + n),
                Some(_) => self.execute(&[row.update()]).await?,
                None => self.execute(&[row.insert()]).await?,
            }
        }
        Ok(())
    }

    /// Takes so many rows away; how many were there.
    async fn remove(&mut self, content: &Content, rows: u64) -> std::result::Result<u64, Broken> {
        if rows == 0 {
            return Ok(0);
        }
        Ok(self.matched(SCAN_MAX, content.remove(rows).sql, 1).await?.into_iter().sum())
    }

    /// As [`answers`], within `wait`.
    async fn matched(
        &mut self,
        wait: Duration,
        sql: String,
        count: usize,
    ) -> std::result::Result<Vec<u64>, Broken> {
        let ran = timeout(wait, answers(&mut self.conn, sql, count)).await;
        let late = |_| Broken::Failed(unavailable("apply", &self.label, "no answer"));
        ran.map_err(late)?.map_err(|error| self.broken(error))
    }

    /// Says what it means that `found` rows were taken away of so many.
    fn lacks(&mut self, table: &str, said: Said, found: u64, rows: u64) -> std::result::Result<(), Broken> {
        match said {
            _ if found == rows => Ok(()),
            // Both sites took it away at once, or it was never here.
            Said::Removed => {
                if self.lacking.insert(table.to_owned()) {
                    warn!(
                        endpoint = self.label,
                        table,
                        "a row that went at the other site was not here: unless both sites deleted it at once they differed"
                    );
                }
                Ok(())
            }
            _ => {
                let message = format!("{rows} equal rows of {table} have to go, and {found} were found");
                Err(Broken::Refused { code: 0, message })
            }
        }
    }

    async fn commit(&mut self) -> std::result::Result<(), Broken> {
        // Whether it is committed is unknown after any error, also of the server's.
        run(&mut self.conn, &self.label, "commit", "COMMIT").await.map_err(Broken::Failed)
    }

    fn broken(&self, error: mysql_async::Error) -> Broken {
        match error {
            mysql_async::Error::Server(e) if is_lock_code(e.code) => Broken::Locked,
            mysql_async::Error::Server(e) => Broken::Refused { code: e.code, message: e.message },
            other => Broken::Failed(failed("apply", &self.label, other)),
        }
    }

    /// Sends statements, several together; the first that fails is the last.
    async fn execute(&mut self, statements: &[Statement]) -> std::result::Result<(), Broken> {
        let mut rest = statements;
        while let Some(first) = rest.first() {
            let mut bytes = first.sql.len();
            if bytes > self.packet_max {
                let message = format!(
                    "it takes {bytes} bytes as a statement, and max_allowed_packet of this server lets {} pass: raise it",
                    self.packet_max
                );
                return Err(Broken::Refused { code: 0, message });
            }
            let fits = |statement: &&Statement| {
                bytes += statement.sql.len() + 1;
                bytes <= TOGETHER_BYTES.min(self.packet_max)
            };
            let count = 1 + rest.iter().skip(1).take_while(fits).count();
            let (together, behind) = rest.split_at(count);
            self.execute_together(together).await?;
            rest = behind;
        }
        Ok(())
    }

    /// In one packet: each is answered before the next one runs.
    async fn execute_together(&mut self, statements: &[Statement]) -> std::result::Result<(), Broken> {
        let all: Vec<&str> = statements.iter().map(|statement| statement.sql.as_str()).collect();
        let scans = statements.iter().any(|statement| matches!(statement.expected, Expected::Found(_)));
        let wait = if scans { SCAN_MAX } else { ANSWER_MAX };
        let matched = self.matched(wait, all.join(";"), statements.len()).await?;
        for (statement, matched) in statements.iter().zip(matched) {
            match statement.expected {
                Expected::Fence if matched != 1 => {
                    return Err(Broken::Failed(fenced(&self.label, None, self.term)));
                }
                Expected::Rows(count) | Expected::Found(count) if matched != count => {
                    return Err(Broken::Unexpected);
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn watch(&mut self, keys: &[Key]) -> Result<Token> {
        self.watched = rows(&mut self.conn, &self.label, &mut self.known, keys, Lock::None).await?;
        let token = Token::unique();
        write_token(&mut self.conn, &self.label, &self.name, token).await?;
        Ok(token)
    }

    async fn holds(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        let keys: Vec<Key> = changes.iter().map(|change| change.key.clone()).collect();
        let found = rows(&mut self.conn, &self.label, &mut self.known, &keys, Lock::None).await?;
        let holds = |change: &Change| {
            let Some(row) = found.get(&change.key) else { return false };
            let count = |value: &Option<Bytes>| Count::parse(value.as_deref()?).map(|count| count.rows);
            match count(&change.value) {
                Some(rows) => count(row) == Some(rows),
                None => *row == change.value,
            }
        };
        Ok(changes.iter().map(holds).collect())
    }

    async fn keys(&mut self, cursor: u64) -> Result<Keys> {
        if cursor == 0 || cursor != self.listing.page {
            let mut tables = carried(&mut self.conn, &self.label, &self.config.tables).await?;
            tables.retain(|table| table.not_carried().is_none());
            tables.reverse();
            self.listing = Listing { tables, ..Listing::default() };
        }
        let charsets = self.known.charsets(&mut self.conn, &self.label).await?;
        let Listing { page, tables, after, slices } = &mut self.listing;
        let mut keys = Vec::new();
        while let Some(table) = tables.last() {
            if table.is_keyless() {
                let now = match slices {
                    Some(slices) => *slices,
                    None => Slices::begin(&mut self.conn, &self.label, table).await?,
                };
                let action = format!("list the rows of {}", table.full_name());
                let reading = now.read(&mut self.conn, table, &charsets, usize::MAX);
                let read = scanned(&action, &self.label, reading).await?;
                let read = read.map_err(|reason| unavailable(&action, &self.label, reason))?;
                let names = read.into_iter().flat_map(|(counts, _)| counts.into_keys());
                keys.extend(names.map(|name| Key { space: table.space(), name: name.into() }));
                *slices = now.after();
                if slices.is_none() {
                    tables.pop();
                }
                if keys.len() >= KEYS_AT_ONCE {
                    break;
                }
                continue;
            }
            let sql = crate::snapshot::select_keys(table, after.as_deref(), KEYS_AT_ONCE);
            let action = format!("list the keys of {}", table.full_name());
            let rows: Vec<mysql_async::Row> = in_time(&action, &self.label, self.conn.exec(sql, ())).await?;
            let whole = rows.len() < KEYS_AT_ONCE;
            for row in rows {
                let cells = crate::read::key_of(row, &charsets)
                    .map_err(|reason| unavailable(&action, &self.label, reason))?;
                let name = crate::row::key_name(&cells.iter().collect::<Vec<_>>());
                keys.push(Key { space: table.space(), name: name.into() });
                *after = Some(cells);
            }
            if whole {
                tables.pop();
                *after = None;
            }
            if keys.len() >= KEYS_AT_ONCE {
                break;
            }
        }
        *page += 1;
        let next = (!tables.is_empty()).then_some(*page);
        Ok((keys, next))
    }
}

/// What a change makes of rows.
enum Planned {
    /// Of one with a primary key.
    Row(Row),
    /// Of those of one content.
    Content(Content, Said),
}

impl Planned {
    fn of(change: &Change, table: &Table) -> std::result::Result<Planned, sql::Wrong> {
        if table.is_keyless()
            && let Some(reason) = table.not_carried()
        {
            return Err(sql::Wrong::Form(format!("{} cannot be carried: {reason}", table.full_name())));
        }
        Ok(match Said::of(change, table.is_keyless()) {
            Some(said) => Planned::Content(Content::of(&change.key.name, table)?, said),
            None if change.op == Op::Command => {
                return Err(sql::Wrong::Form("a command that is none of a row".to_owned()));
            }
            None => Planned::Row(Row::of(change, table)?),
        })
    }
}

/// What has to be done about rows of one content, of which there are `held`, where that was asked for; `None`: what exists
/// is kept.
fn step(content: Content, said: Said, keep: bool, held: Option<&mut u64>) -> Option<Step> {
    let (there, now) = match (said, &held) {
        (Said::Count(Count { rows, told }), Some(there)) => {
            // What the stream told before is no row that existed.
            if keep && **there > told {
                return None;
            }
            (**there, rows)
        }
        (Said::Added, there) => (0, 1 + there.as_deref().copied().unwrap_or(0)),
        (Said::Removed, there) => (1, there.as_deref().copied().unwrap_or(1).saturating_sub(1)),
        (Said::Count(_), None) => return None,
    };
    let step = match said {
        Said::Added => Step::Add(content, 1),
        Said::Removed => Step::Remove(content, 1),
        Said::Count(_) if now >= there => Step::Add(content, now - there),
        Said::Count(_) => Step::Remove(content, there - now),
    };
    if let Some(held) = held {
        *held = now;
    }
    Some(step)
}

/// What is said of a refusal.
fn refusal(code: u16, message: String) -> String {
    if code == 0 { message } else { text(code, &message) }
}

/// Our own code for a table that the server lacks, and for a column: as the server's own.
const NO_TABLE: u16 = 1146;
const NO_COLUMN: u16 = 1054;
/// Our own code for a table that lacks a primary key: as that of a server that asks for one.
const NO_KEY: u16 = 3750;
/// Of a statement that changes a table: a table, a column or a right is missing.
const OPERATORS: [u16; 6] = [NO_TABLE, NO_COLUMN, 1044, 1142, 1143, 1227];
/// What a server answers where it already is as a statement would make it: a table, a column or an index is there, or is not.
const IS_SO: [u16; 5] = [1050, 1051, 1060, 1061, 1091];
/// Our own code for a statement that an earlier connection still runs: as the server's that it was interrupted.
const RUNS: u16 = 1317;

/// Whether a refusal lies in the server, or in its tables, and not in the row: it waits until that is mended.
/// The server takes no writes: read_only, super_read_only.
const READ_ONLY: [u16; 2] = [1290, 1836];

fn is_transient(code: u16) -> bool {
    matches!(
        code,
        // Out of memory, disk full, table full; too many connections; read-only in three ways; rights; a table or a
        // column that is missing; shutting down.
        1021 | 1037
            | 1038
            | 1040
            | 1041
            | 1114
            | 1290
            | 1792
            | 1836
            | 1044
            | 1045
            | 1142
            | 1143
            | 1227
            | 1053
            | NO_TABLE
            | NO_COLUMN
            | NO_KEY
            | RUNS
    )
}

fn of_lock(error: Error) -> Broken {
    if is_lock(&error) { Broken::Locked } else { Broken::Failed(error) }
}

/// Runs `sql`, of so many statements, and counts the rows that each matched.
async fn answers(conn: &mut Conn, sql: String, count: usize) -> mysql_async::Result<Vec<u64>> {
    let mut result = conn.query_iter(sql).await?;
    let mut matched = Vec::with_capacity(count);
    loop {
        matched.push(result.affected_rows());
        if matched.len() == count {
            break;
        }
        // Goes on to the next statement's answer.
        result.next().await?;
    }
    result.drop_result().await?;
    Ok(matched)
}

fn tell<T>(answer: oneshot::Sender<Result<T>>, told: Result<T>) -> bool {
    let goes_on = told.is_ok();
    answer.send(told).is_ok() && goes_on
}
