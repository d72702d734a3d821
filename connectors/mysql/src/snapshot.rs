//! What exists, read in chunks by primary key while everybody writes.
//!
//! A chunk is read between two tokens (DESIGN.md §4, the watermark method): it stands in the stream where the second one
//! passes, without the rows whose keys the stream names between the two. The first token is committed before the read
//! begins, so that the read sees all that stands before it in the binlog.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_core::{Error, Key, Result, Token};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::Server;
use crate::conn::{connect, in_time, unavailable};
use crate::read::{cells_of, named};
use crate::row::{Cell, Charsets, write_name, write_sql};
use crate::schema::Table;
use crate::tokens::write_token;

/// What the reader says to the source, before what it says shows in the binlog.
#[derive(Debug)]
pub(crate) enum Said {
    /// A chunk is read between these two.
    Begins {
        low: Token,
        high: Token,
    },
    /// What it holds, with a place in the queue of chunks.
    Rows {
        high: Token,
        rows: Vec<(Key, Bytes)>,
        place: OwnedSemaphorePermit,
    },
    /// That was the last one.
    Ended,
    Failed(Error),
}

/// Chunks that wait for the stream to reach them.
const CHUNKS_MAX: usize = 4;
/// Rows of a table's first chunk.
const ROWS_FIRST: usize = 500;
const ROWS_MAX: usize = 20_000;
/// A chunk is about this long.
const CHUNK_BYTES: usize = 512 << 10;

/// Reads the tables; ends when nobody listens any more.
pub(crate) struct Reader {
    pub(crate) server: Server,
    /// Of the channel, for tokens.
    pub(crate) name: String,
    pub(crate) tables: Vec<Table>,
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
        for table in &self.tables {
            let (mut rows_max, mut last) = (ROWS_FIRST, None);
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                let (low, high) = (Token::unique(), Token::unique());
                if say.send(Said::Begins { low, high }).await.is_err() {
                    return Ok(());
                }
                write_token(&mut conn, &label, &self.name, low).await?;
                let chunk = self.chunk(&mut conn, &label, table, last.as_deref(), rows_max).await?;
                let (rows, bytes) = (chunk.rows.len(), chunk.bytes);
                let _ = say.send(Said::Rows { high, rows: chunk.rows, place }).await;
                write_token(&mut conn, &label, &self.name, high).await?;
                if rows < rows_max {
                    break;
                }
                last = chunk.last;
                let a_row = bytes / rows.max(1);
                rows_max = (CHUNK_BYTES / a_row.max(1)).clamp(1, ROWS_MAX);
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
        let rows: Vec<Row> = in_time(&action, label, conn.exec(select(table, after, rows_max), ())).await?;
        let mut chunk = Chunk { rows: Vec::with_capacity(rows.len()), bytes: 0, last: None };
        let space = table.space();
        let count = rows.len();
        for (n, row) in rows.into_iter().enumerate() {
            let (cells, bytes) =
                cells_of(row, table, &self.charsets).map_err(|reason| unavailable(&action, label, reason))?;
            let (name, json) = named(table, &cells);
            chunk.bytes += bytes;
            chunk.rows.push((Key { space: space.clone(), name: name.into() }, json.into()));
            if n + 1 == count {
                chunk.last = Some(table.key.iter().filter_map(|&index| cells.get(index).cloned()).collect());
            }
        }
        Ok(chunk)
    }
}

struct Chunk {
    rows: Vec<(Key, Bytes)>,
    bytes: usize,
    /// The key of the last row.
    last: Option<Vec<Cell>>,
}

/// The rows behind the key `after`, in the order of the keys.
fn select(table: &Table, after: Option<&[Cell]>, rows_max: usize) -> String {
    select_columns(table, &table.column_list(), after, rows_max)
}

/// Their keys alone.
pub(crate) fn select_keys(table: &Table, after: Option<&[Cell]>, rows_max: usize) -> String {
    let mut list = String::new();
    for (n, column) in table.key_columns().enumerate() {
        if n > 0 {
            list.push_str(", ");
        }
        write_name(&mut list, &column.name);
    }
    select_columns(table, &list, after, rows_max)
}

fn select_columns(table: &Table, columns: &str, after: Option<&[Cell]>, rows_max: usize) -> String {
    let mut sql = format!("SELECT {columns} FROM {}", table.sql_name());
    let keys: Vec<&str> = table.key_columns().map(|column| column.name.as_str()).collect();
    if let Some(after) = after {
        sql.push_str(" WHERE ");
        // `a > 1 OR a = 1 AND (b > 2 OR b = 2 AND (c > 3))`; the first column alone finds the place in the index.
        if keys.len() > 1
            && let (Some(key), Some(cell)) = (keys.first(), after.first())
        {
            write_name(&mut sql, key);
            sql.push_str(" >= ");
            write_sql(&mut sql, cell);
            sql.push_str(" AND (");
        }
        for (n, (key, cell)) in keys.iter().zip(after).enumerate() {
            if n > 0 {
                sql.push_str(" AND (");
            }
            write_name(&mut sql, key);
            sql.push_str(" > ");
            write_sql(&mut sql, cell);
            if n + 1 < keys.len() {
                sql.push_str(" OR ");
                write_name(&mut sql, key);
                sql.push_str(" = ");
                write_sql(&mut sql, cell);
            }
        }
        sql.extend(std::iter::repeat_n(')', keys.len() - 1 + usize::from(keys.len() > 1)));
    }
    sql.push_str(" ORDER BY ");
    for (n, key) in keys.iter().enumerate() {
        if n > 0 {
            sql.push_str(", ");
        }
        write_name(&mut sql, key);
    }
    format!("{sql} LIMIT {rows_max}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Column;

    #[test]
    fn a_chunk_goes_on_behind_the_last_key() {
        let column = |name: &str| Column {
            name: name.into(),
            data_type: "int".into(),
            charset: None,
            generated: false,
        };
        let mut table = Table {
            schema: "shop".into(),
            name: "t".into(),
            columns: vec![column("a"), column("b"), column("c")],
            key: vec![1],
            other_unique: false,
            rows: 0,
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
