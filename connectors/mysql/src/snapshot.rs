//! What exists, read in chunks by primary key while everybody writes.
//!
//! A chunk is read between two tokens (DESIGN.md §4, the watermark method): it stands in the stream where the second one
//! passes, and rows that the stream names between the two stand in it as they are there. The first token is committed before the read
//! begins, so that the read sees all that stands before it in the binlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use causeway_core::{Error, Key, Result, Space, Token};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::Server;
use crate::conn::{connect, in_time, unavailable};
use crate::read::{cells_of, named, write_key_value};
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
    pub(crate) progress: Progress,
}

/// How far a snapshot is: tables come in the order of their names, byte by byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// `schema.name` of the table that is read; empty: none yet.
    pub(crate) table: String,
    /// The name of its last key that was read; `None`: all of it was.
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
                let chunk = ReadChunk { rows: chunk.rows, progress };
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
    fn a_chunk_goes_on_behind_the_last_key() {
        let column = |name: &str| Column {
            name: name.into(),
            data_type: "int".into(),
            charset: None,
            collation: None,
            generated: false,
        };
        let mut table = Table {
            schema: "shop".into(),
            name: "t".into(),
            columns: vec![column("a"), column("b"), column("c")],
            key: vec![1],
            other_unique: false,
            rows: 0,
            row_bytes: 0,
            gone: Vec::new(),
            odd: None,
        };
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
