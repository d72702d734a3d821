//! What exists, read in chunks by primary key while everybody writes.
//!
//! A chunk is read between two tokens (DESIGN.md §4, the watermark method): it stands in the stream where the second one
//! passes, and rows that the stream names between the two stand in it as they are there. The first token is committed before the read
//! begins, so that the read sees all that stands before it in the binlog.
//!
//! Rows without a primary key have no order. Their table is read in slices by a number that is made of what a row holds
//! ([`content::spread`]), so that all rows of one content are of one slice. How many there are has to be known at a place: while
//! the table is locked against writes for a moment, a view of it is opened and the first token written; the slice is read
//! in that view, and counts with what came and went between the tokens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use causeway_core::{Error, Key, Result, Space, Token};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use mysql_async::{Params, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::Server;
use crate::conn::{connect, in_time, is_lock, run, scanned, unavailable};
use crate::content;
use crate::read::{cells_of, columns_in_order, content_name, named, write_key_value};
use crate::row::{Cell, Charsets, key_cells, write_name};
use crate::schema::{Column, Table};
use crate::tokens::write_token;

/// What the reader says to the source, before what it says shows in the binlog.
#[derive(Debug)]
pub(crate) enum Said {
    /// A chunk is read between these two.
    Begins {
        low: Token,
        high: Token,
        table: Space,
    },
    /// What it holds, with a place in the queue of chunks.
    Rows {
        high: Token,
        chunk: ReadChunk,
        place: OwnedSemaphorePermit,
    },
    /// That was the last one.
    Ended,
    Failed(Error),
}

/// The rows of a chunk, and how far the snapshot is with them.
#[derive(Debug)]
pub(crate) struct ReadChunk {
    pub(crate) rows: Vec<(Key, Bytes)>,
    /// Of a table without a primary key: how many of each content.
    pub(crate) counts: Vec<(Key, u64)>,
    pub(crate) progress: Progress,
}

/// How far a snapshot is: tables come in the order of their names, byte by byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// `schema.name` of the table that is read; empty: none yet.
    pub(crate) table: String,
    /// The name of its last key that was read, or which of its [`Slices`] comes next; `None`: all of it was.
    pub(crate) key: Option<Vec<u8>>,
}

impl Progress {
    /// As a part of a position's context: `TABLE;KEY`, both in base64.
    pub(crate) fn text(&self) -> String {
        let key = self.key.as_ref().map_or_else(|| "-".to_owned(), |key| BASE64.encode(key));
        format!("{};{key}", BASE64.encode(&self.table))
    }

    pub(crate) fn parse(text: &str) -> Option<Progress> {
        let (table, key) = text.split_once(';')?;
        let key = if key == "-" { None } else { Some(BASE64.decode(key).ok()?) };
        Some(Progress { table: String::from_utf8(BASE64.decode(table).ok()?).ok()?, key })
    }

    /// Whether `table` is done.
    fn is_past(&self, table: &Table) -> bool {
        let name = table.full_name();
        name < self.table || name == self.table && self.key.is_none()
    }

    /// Which slice of `table` comes next; `None`: it is read from its beginning.
    fn slice(&self, table: &Table) -> Option<Slices> {
        let text = self.key.as_ref().filter(|_| table.full_name() == self.table)?;
        Slices::parse(text).filter(|slices| slices.columns == columns_of(table) && slices.of > 0)
    }

    /// The key of `table` behind which to go on; `None`: from its beginning, as with one that has another key by now.
    fn place(&self, table: &Table) -> Option<Vec<Cell>> {
        let key = self.key.as_ref().filter(|_| table.full_name() == self.table)?;
        key_cells(key, &table.key_kinds()).ok()
    }
}

/// Chunks that wait for the stream to reach them.
const CHUNKS_MAX: usize = 4;
/// Rows of a table's first chunk.
const ROWS_FIRST: usize = 500;
const ROWS_MAX: usize = 20_000;
/// A chunk is about this long.
const CHUNK_BYTES: usize = 512 << 10;
/// And ends here, where its rows are longer than those before.
const CHUNK_BYTES_MAX: usize = 8 * CHUNK_BYTES;

/// Rows of a chunk, where one is about so long.
fn rows_of(row_bytes: usize) -> usize {
    (CHUNK_BYTES / row_bytes.max(1)).clamp(1, ROWS_MAX)
}

/// Reads the tables; ends when nobody listens any more.
pub(crate) struct Reader {
    pub(crate) server: Server,
    /// Of the channel, for tokens.
    pub(crate) name: String,
    pub(crate) tables: Vec<Table>,
    /// From where it goes on.
    pub(crate) progress: Progress,
    pub(crate) charsets: Charsets,
    pub(crate) bytes_per_second: Option<u64>,
}

impl Reader {
    /// Begins to read, in a task of its own.
    pub(crate) fn start(self) -> mpsc::Receiver<Said> {
        let (say, said) = mpsc::channel(2 * CHUNKS_MAX);
        tokio::spawn(async move {
            let last = match self.read(&say).await {
                Ok(()) => Said::Ended,
                Err(error) => Said::Failed(error),
            };
            let _gone = say.send(last).await;
        });
        said
    }

    async fn read(&self, say: &mpsc::Sender<Said>) -> Result<()> {
        let label = self.server.label();
        let mut conn = connect(&self.server).await?;
        let places = Arc::new(Semaphore::new(CHUNKS_MAX));
        let (began, mut read) = (Instant::now(), 0_u64);
        for table in self.tables.iter().filter(|table| !self.progress.is_past(table)) {
            if table.is_keyless() {
                let rate = |bytes: usize| {
                    read += bytes as u64;
                    self.bytes_per_second.map(|rate| {
                        let due = Duration::from_secs_f64(read as f64 / rate as f64);
                        due.saturating_sub(began.elapsed())
                    })
                };
                if !self.read_contents(&mut conn, &label, table, &places, say, rate).await? {
                    return Ok(());
                }
                continue;
            }
            let mut last = self.progress.place(table);
            let mut rows_max = rows_of(table.row_bytes).min(ROWS_FIRST);
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                let (low, high) = (Token::unique(), Token::unique());
                if say.send(Said::Begins { low, high, table: table.space() }).await.is_err() {
                    return Ok(());
                }
                write_token(&mut conn, &label, &self.name, low).await?;
                let chunk = self.chunk(&mut conn, &label, table, last.as_deref(), rows_max).await?;
                let (rows, bytes, whole, next) = (chunk.rows.len(), chunk.bytes, chunk.whole, chunk.last);
                let key = chunk.rows.last().filter(|_| !chunk.whole).map(|(key, _)| key.name.to_vec());
                let progress = Progress { table: table.full_name(), key };
                let chunk = ReadChunk { rows: chunk.rows, counts: Vec::new(), progress };
                let _ = say.send(Said::Rows { high, chunk, place }).await;
                write_token(&mut conn, &label, &self.name, high).await?;
                if whole {
                    break;
                }
                last = next;
                rows_max = rows_of(bytes / rows.max(1));
                read += bytes as u64;
                if let Some(rate) = self.bytes_per_second {
                    let due = Duration::from_secs_f64(read as f64 / rate as f64);
                    tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
                }
            }
        }
        Ok(())
    }

    /// Reads a table without a primary key, slice by slice; whether anybody still listens. `pause` is told of what was read,
    /// and tells how long to wait then.
    async fn read_contents(
        &self,
        conn: &mut Conn,
        label: &str,
        table: &Table,
        places: &Arc<Semaphore>,
        say: &mpsc::Sender<Said>,
        mut pause: impl FnMut(usize) -> Option<Duration>,
    ) -> Result<bool> {
        let mut slices = match self.progress.slice(table) {
            Some(slices) => slices,
            None => Slices::begin(conn, label, table).await?,
        };
        let mut view = connect(&self.server).await?;
        while slices.next < slices.of {
            let Ok(place) = Arc::clone(places).acquire_many_owned(SLICE_PLACES).await else {
                return Ok(false);
            };
            let (low, high) = (Token::unique(), Token::unique());
            if say.send(Said::Begins { low, high, table: table.space() }).await.is_err() {
                return Ok(false);
            }
            self.open_view(&mut view, conn, label, table, low).await?;
            let found = self.slice(&mut view, label, table, &slices).await?;
            run(&mut view, label, "read a table", "COMMIT").await?;
            let mut bytes = 0;
            let counts = match found {
                Some((counts, read)) => {
                    bytes = read;
                    slices.next += 1;
                    counts
                }
                // It is longer than was thought: begun anew, in smaller slices.
                None => {
                    slices = Slices { next: 0, of: slices.of.saturating_mul(4), ..slices };
                    Vec::new()
                }
            };
            let key = (slices.next < slices.of).then(|| slices.text().into_bytes());
            let progress = Progress { table: table.full_name(), key };
            let chunk = ReadChunk { rows: Vec::new(), counts, progress };
            let _ = say.send(Said::Rows { high, chunk, place }).await;
            write_token(conn, label, &self.name, high).await?;
            if let Some(wait) = pause(bytes) {
                tokio::time::sleep(wait).await;
            }
        }
        Ok(true)
    }

    /// Opens a view of `table` that holds just what stands before `low` in the binlog.
    async fn open_view(
        &self,
        view: &mut Conn,
        conn: &mut Conn,
        label: &str,
        table: &Table,
        low: Token,
    ) -> Result<()> {
        let action = format!("lock {} for a moment", table.full_name());
        for tries in 0.. {
            // One of its own, which the server ends if we do not: nobody may be kept from writing for long.
            let mut locks = connect(&self.server).await?;
            let waits =
                format!("SET lock_wait_timeout = {LOCK_SECONDS}, wait_timeout = {LOCKED_SECONDS_MAX}");
            run(&mut locks, label, &action, waits).await?;
            let lock = format!("LOCK TABLES {} READ", table.sql_name());
            match run(&mut locks, label, &action, lock).await {
                Err(error) if is_lock(&error) && tries < LOCK_TRIES => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                    continue;
                }
                locked => locked?,
            }
            run(view, label, &action, "START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
            write_token(conn, label, &self.name, low).await?;
            // Fails if it was not locked any more.
            run(&mut locks, label, &action, "UNLOCK TABLES").await?;
            break;
        }
        Ok(())
    }

    /// How many rows of each content a slice has, and about how long they are; `None`: it is too long.
    async fn slice(
        &self,
        view: &mut Conn,
        label: &str,
        table: &Table,
        slices: &Slices,
    ) -> Result<Option<(Vec<(Key, u64)>, usize)>> {
        let action = format!("read a slice of {}", table.full_name());
        let reading = slices.read(view, table, &self.charsets, SLICE_BYTES_MAX);
        let read = scanned(&action, label, reading).await?;
        let found = read.map_err(|reason| unavailable(&action, label, reason))?;
        let key = |name: Vec<u8>| Key { space: table.space(), name: name.into() };
        Ok(found.map(|(counts, bytes)| {
            (counts.into_iter().map(|(name, count)| (key(name), count)).collect(), bytes)
        }))
    }

    async fn chunk(
        &self,
        conn: &mut Conn,
        label: &str,
        table: &Table,
        after: Option<&[Cell]>,
        rows_max: usize,
    ) -> Result<Chunk> {
        let action = format!("read a chunk of {}", table.full_name());
        let mut chunk = Chunk { rows: Vec::new(), bytes: 0, whole: true, last: None };
        let space = table.space();
        let sql = select(table, after, rows_max);
        let reading = async {
            let mut found = conn.exec_iter(sql, ()).await?;
            while let Some(row) = found.next().await? {
                let (cells, bytes) = match cells_of(row, table, &self.charsets) {
                    Ok(cells) => cells,
                    Err(reason) => return Ok(Err(reason)),
                };
                let (name, json) = named(table, &cells);
                chunk.bytes += bytes;
                chunk.rows.push((Key { space: space.clone(), name: name.into() }, json.into()));
                let full = chunk.bytes >= CHUNK_BYTES_MAX;
                if full || chunk.rows.len() == rows_max {
                    chunk.whole = false;
                    chunk.last =
                        Some(table.key.iter().filter_map(|&index| cells.get(index).cloned()).collect());
                }
                if full {
                    break;
                }
            }
            found.drop_result().await?;
            Ok(Ok(()))
        };
        let read = in_time(&action, label, reading).await?;
        read.map_err(|reason| unavailable(&action, label, reason))?;
        Ok(chunk)
    }
}

/// How long a lock on a table is waited for at a time, while which nobody else may write it.
const LOCK_SECONDS: u32 = 1;
/// And between two.
const LOCK_PAUSE: Duration = Duration::from_secs(2);
/// So often.
const LOCK_TRIES: u32 = 300;
/// After so long the server itself ends a lock.
const LOCKED_SECONDS_MAX: u32 = 10;
/// About how long a slice is, and at the most. Each costs a look through the whole table.
const SLICE_BYTES: u64 = 16 << 20;
const SLICE_BYTES_MAX: usize = 4 * SLICE_BYTES as usize;

/// A slice of so many contents is read, however long they are.
const CONTENTS_MIN: usize = 16;
/// Of the places for chunks, so many are for a slice.
const SLICE_PLACES: u32 = 2;

/// Slices of a table without a primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slices {
    next: u64,
    of: u64,
    /// Of its columns: with others a row is of another slice.
    columns: u64,
}

impl Slices {
    /// As many as it takes.
    pub(crate) async fn begin(conn: &mut Conn, label: &str, table: &Table) -> Result<Slices> {
        let action = format!("count the rows of {}", table.full_name());
        let sql = format!("SELECT COUNT(*) FROM {}", table.sql_name());
        let rows: Option<u64> = scanned(&action, label, conn.query_first(sql)).await?;
        // In the log a row is longer than in the server.
        let bytes = rows.unwrap_or(0).saturating_mul(2 * table.row_bytes.max(50) as u64);
        Ok(Slices { next: 0, of: bytes / SLICE_BYTES + 1, columns: columns_of(table) })
    }

    /// Without the next one; `None`: that was the last.
    pub(crate) fn after(self) -> Option<Slices> {
        let next = self.next.saturating_add(1);
        (next < self.of).then_some(Slices { next, ..self })
    }

    fn text(&self) -> String {
        // No key begins like this.
        format!("\0{}/{}/{:x}", self.next, self.of, self.columns)
    }

    fn parse(text: &[u8]) -> Option<Slices> {
        let mut words = std::str::from_utf8(text).ok()?.strip_prefix('\0')?.split('/');
        let (next, of) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Slices { next, of, columns: u64::from_str_radix(words.next()?, 16).ok()? })
    }

    /// How many rows of each content the next one has, by the names of their keys, and about how long they are; `None`: they
    /// are longer than `bytes_max`.
    pub(crate) async fn read(
        &self,
        conn: &mut Conn,
        table: &Table,
        charsets: &Charsets,
        bytes_max: usize,
    ) -> mysql_async::Result<std::result::Result<Option<Contents>, String>> {
        let order = columns_in_order(table);
        let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut bytes = 0;
        let mut found = conn.exec_iter(self.select(table), Params::Empty).await?;
        while let Some(row) = found.next().await? {
            let row: Row = row;
            let cells = match cells_of(row, table, charsets) {
                Ok((cells, _)) => cells,
                Err(reason) => return Ok(Err(reason)),
            };
            let name = content_name(table, &order, &cells);
            match counts.get_mut(&name) {
                Some(count) => *count += 1,
                None => {
                    bytes += name.len() + size_of::<(Key, u64)>();
                    counts.insert(name, 1);
                }
            }
            // A few large ones are not made shorter by smaller slices.
            if bytes > bytes_max && counts.len() > CONTENTS_MIN {
                found.drop_result().await?;
                return Ok(Ok(None));
            }
        }
        found.drop_result().await?;
        Ok(Ok(Some((counts, bytes))))
    }

    fn select(&self, table: &Table) -> String {
        let mut sql = format!("SELECT {} FROM {}", table.column_list(), table.sql_name());
        if self.of > 1 {
            sql.push_str(&format!(" WHERE MOD({}, {}) = {}", content::spread(table), self.of, self.next));
        }
        sql
    }
}

/// How many rows of each content, and about how long they are.
type Contents = (HashMap<Vec<u8>, u64>, usize);

/// What the slices of a table depend on.
fn columns_of(table: &Table) -> u64 {
    xxhash_rust::xxh3::xxh3_64(content::spread(table).as_bytes())
}

struct Chunk {
    rows: Vec<(Key, Bytes)>,
    bytes: usize,
    /// There is nothing behind it.
    whole: bool,
    /// The key of the last row, where there is.
    last: Option<Vec<Cell>>,
}

/// The rows behind the key `after`, in the order of the keys.
fn select(table: &Table, after: Option<&[Cell]>, rows_max: usize) -> String {
    select_columns(table, &table.column_list(), after, rows_max)
}

/// Their keys alone.
pub(crate) fn select_keys(table: &Table, after: Option<&[Cell]>, rows_max: usize) -> String {
    select_columns(table, &table.key_list(), after, rows_max)
}

fn select_columns(table: &Table, columns: &str, after: Option<&[Cell]>, rows_max: usize) -> String {
    let mut sql = format!("SELECT {columns} FROM {}", table.sql_name());
    let keys: Vec<&Column> = table.key_columns().collect();
    if let Some(after) = after {
        sql.push_str(" WHERE ");
        // `a > 1 OR a = 1 AND (b > 2 OR b = 2 AND (c > 3))`; the first column alone finds the place in the index.
        if keys.len() > 1
            && let (Some(key), Some(cell)) = (keys.first(), after.first())
        {
            write_name(&mut sql, &key.name);
            sql.push_str(" >= ");
            write_key_value(&mut sql, key, cell);
            sql.push_str(" AND (");
        }
        for (n, (key, cell)) in keys.iter().zip(after).enumerate() {
            if n > 0 {
                sql.push_str(" AND (");
            }
            write_name(&mut sql, &key.name);
            sql.push_str(" > ");
            write_key_value(&mut sql, key, cell);
            if n + 1 < keys.len() {
                sql.push_str(" OR ");
                write_name(&mut sql, &key.name);
                sql.push_str(" = ");
                write_key_value(&mut sql, key, cell);
            }
        }
        sql.extend(std::iter::repeat_n(')', keys.len() - 1 + usize::from(keys.len() > 1)));
    }
    format!("{sql} ORDER BY {} LIMIT {rows_max}", table.key_list())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::shop_t;

    #[test]
    fn a_snapshot_s_progress_reads_back() {
        for key in [None, Some(Vec::new()), Some(b"[1,\"a/b\"]".to_vec())] {
            let progress = Progress { table: "shop.or ders".into(), key };
            assert!(!progress.text().contains(' '));
            assert_eq!(Progress::parse(&progress.text()), Some(progress));
        }
        assert_eq!(Progress::parse(&Progress::default().text()), Some(Progress::default()));
        assert_eq!(Progress::parse("x"), None);
    }

    #[test]
    fn how_far_a_table_without_a_key_is_reads_back() {
        let slices = Slices { next: 3, of: 17, columns: u64::MAX };
        assert_eq!(Slices::parse(slices.text().as_bytes()), Some(slices));
        for wrong in ["", "\u{0}3", "\u{0}3/x/1", "\u{0}3/4/x", "3/4/1", "[1]"] {
            assert_eq!(Slices::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_chunk_goes_on_behind_the_last_key() {
        let mut table = shop_t(&[("a", "int", false), ("b", "int", false), ("c", "int", false)], vec![1]);
        assert_eq!(select(&table, None, 5), "SELECT `a`, `b`, `c` FROM `shop`.`t` ORDER BY `b` LIMIT 5");
        assert_eq!(
            select(&table, Some(&[Cell::UInt(7)]), 5),
            "SELECT `a`, `b`, `c` FROM `shop`.`t` WHERE `b` > 7 ORDER BY `b` LIMIT 5"
        );
        table.key = vec![2, 0];
        assert_eq!(
            select(&table, Some(&[Cell::UInt(7), Cell::Int(-1)]), 5),
            "SELECT `a`, `b`, `c` FROM `shop`.`t` WHERE `c` >= 7 AND (`c` > 7 OR `c` = 7 AND (`a` > -1)) \
             ORDER BY `c`, `a` LIMIT 5"
        );
    }
}
