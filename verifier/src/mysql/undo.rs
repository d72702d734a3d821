//! Rows kept whole, and put back in a transaction if nobody wrote them since.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, IsolationLevel, Row, Transaction, TxOpts};
use tokio::time::timeout;

use super::exact::{Cells, cells, column_list, insert, other_columns, sql_bytes, update};
use super::read::{KEYS_AT_ONCE, MysqlReader};
use super::row::{Form, literals, name, state};
use super::sieve;
use super::table::{Found, Table};
use crate::compare::State;
use crate::error::{Error, Result};
use crate::report::printable;
use crate::undo::{Held, PutBack, Undoable, Value};

const KEEP: &str = "read what is overwritten";

/// How long one try may take: longer than a lock is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// How often a transaction that lost against another one is tried again.
const TRIES: usize = 5;

/// Why a key was not put back.
enum Stop {
    /// Another transaction was in the way: it may go the next time.
    Again,
    Answer(PutBack),
    Fail(Error),
}

impl MysqlReader {
    /// The table that `space` is, as both have it and as it is here.
    fn own(&self, space: &Space) -> Option<(&Table, &Found)> {
        let Space::Table(name) = space else { return None };
        let name = std::str::from_utf8(name).ok()?;
        Some((self.both.get(name).filter(|table| !table.key.is_empty())?, self.own.get(name)?))
    }

    /// The longest statement that the server takes.
    async fn packet_max(&self) -> Result<usize> {
        let rows = self.link.query("SELECT @@max_allowed_packet", KEEP).await?;
        let told = rows.first().and_then(|row| row.get_opt::<String, _>(0)?.ok()?.parse().ok());
        told.ok_or_else(|| self.link.site.failed(KEEP, "it does not tell its max_allowed_packet"))
    }

    /// Hands `take` each of the rows with these names: its name, and what it is.
    async fn each_whole(
        &self,
        (table, own): (&Table, &Found),
        names: &[Bytes],
        take: &mut (dyn FnMut(Bytes, Cells) -> Result<()> + Send),
    ) -> Result<()> {
        let keys: Vec<Vec<String>> = names.iter().filter_map(|name| literals(table, name)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let columns = format!("{}, {}", table.key_list(self.site), column_list(own));
        let sql = sieve::columns_of(table, self.site, &columns, &keys);
        let each = |row: Row| {
            let values = row.unwrap();
            let (key, whole) = values.split_at(table.key.len().min(values.len()));
            if whole.len() != own.columns.len() {
                return Err(self.link.site.failed(KEEP, "other columns came than were asked for"));
            }
            take(name(table, &key.iter().collect::<Vec<_>>()), cells(own, whole))
        };
        self.link.each(&sql, KEEP, each).await
    }

    async fn try_put_back(
        &self,
        conn: &mut Conn,
        (table, own, key): (&Table, &Found, &[String]),
        back: Option<&Cells>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<(), Stop> {
        let mut options = TxOpts::new();
        options.with_isolation_level(IsolationLevel::RepeatableRead);
        let mut transaction = conn.start_transaction(options).await.map_err(|e| self.stop(e))?;
        let done = self.write(&mut transaction, (table, own, key), back, is_expected).await;
        match done {
            Ok(()) => transaction.commit().await.map_err(|e| self.stop(e)),
            Err(stop) => {
                // Where this fails the connection has ended, and so has the transaction.
                let _ = transaction.rollback().await;
                Err(stop)
            }
        }
    }

    async fn write(
        &self,
        transaction: &mut Transaction<'_>,
        (table, own, key): (&Table, &Found, &[String]),
        back: Option<&Cells>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<(), Stop> {
        let refused = |reason: &str| Stop::Answer(PutBack::Refused(reason.to_owned()));
        let keys = [key.to_vec()];
        let select = sieve::rows_of(table, self.site, &keys) + " FOR UPDATE";
        let found: Vec<Row> = transaction.exec(select, ()).await.map_err(|e| self.stop(e))?;
        let now = match found.into_iter().next() {
            Some(row) => Some(state(table, &self.cells(table, row).map_err(Stop::Fail)?)),
            None => None,
        };
        if !is_expected(now) {
            return Err(Stop::Answer(PutBack::Changed));
        }
        // Columns that the other site lacks are no part of the comparison, and a repair leaves those of a row that is there as
        // they are.
        let of_both = |cells: &Cells| -> Cells {
            let is_of_both = |name: &String| table.columns.iter().any(|one| one.name == name.to_lowercase());
            let cells = cells.iter().filter(|(name, _)| is_of_both(name));
            cells.map(|(name, cell)| (name.clone(), cell.clone())).collect()
        };
        let back = back.map(|cells| if now.is_some() { of_both(cells) } else { cells.clone() });
        let place = sieve::key_is(table, self.site, key);
        let write = match &back {
            Some(cells) if now.is_none() => insert(&own.sql_name(), cells),
            Some(cells) => update(&own.sql_name(), cells, &place),
            None => Some(format!("DELETE FROM {} WHERE {place}", own.sql_name())),
        };
        let write = write.ok_or_else(|| refused("the undo file holds a value that is none"))?;
        transaction.query_drop(write).await.map_err(|e| self.stop(e))?;
        // What the column doesn't take as it is, or a trigger changes, shows here.
        let select = sieve::columns_of(table, self.site, &column_list(own), &keys);
        let found: Vec<Row> = transaction.exec(select, ()).await.map_err(|e| self.stop(e))?;
        let now = found.into_iter().next().map(|row| cells(own, &row.unwrap()));
        match (&now, &back) {
            (Some(now), Some(back)) => match back.iter().find(|(name, cell)| now.get(*name) != Some(cell)) {
                None => Ok(()),
                Some((column, _)) => {
                    let why = "does not take its old value: was it, or a trigger, changed?";
                    Err(refused(&format!("{column} {why}")))
                }
            },
            (None, None) => Ok(()),
            _ => Err(refused("a trigger changes it")),
        }
    }

    /// The server's own texts may show values.
    fn stop(&self, error: mysql_async::Error) -> Stop {
        let mysql_async::Error::Server(server) = &error else {
            return Stop::Fail(self.link.site.failed("put a row back", error));
        };
        let code = server.code;
        let refused = |reason: &str| Stop::Answer(PutBack::Refused(reason.to_owned()));
        let blocked = |reason: &str| Stop::Answer(PutBack::Blocked(reason.to_owned()));
        let fail = |reason: &str| Stop::Fail(self.link.site.failed("put a row back", reason));
        match code {
            1205 | 1213 | 1020 => Stop::Again,
            1062 => blocked("another row holds what has to be unique"),
            1216 | 1217 | 1451 | 1452 => blocked("a foreign key stands in the way"),
            1153 => refused("it is larger than max_allowed_packet lets a statement be"),
            1044 | 1142 | 1143 => {
                fail("the account needs SELECT, INSERT, UPDATE and DELETE on the tables of the channel")
            }
            1290 | 1792 | 1836 => fail("the server is read-only"),
            _ => refused(&format!("the server refuses it, error {code}")),
        }
    }
}

impl Undoable for MysqlReader {
    async fn keep(
        &self,
        space: &Space,
        names: &[Bytes],
        value_max: u64,
        take: &mut (dyn FnMut(usize, Held) -> Result<()> + Send),
    ) -> Result<()> {
        let Some((table, own)) = self.own(space) else { return Err(self.unknown(space)) };
        let packet_max = self.packet_max().await?;
        let is_text = table.key_columns().any(|column| column.form == Form::Text);
        let held = |cells: &Cells| {
            let bytes = serde_json::to_vec(cells).unwrap_or_default();
            match bytes.len() as u64 > value_max || sql_bytes(cells) > packet_max {
                true => Held::TooLarge,
                false => Held::Value(Value { bytes, expire_at: None }),
            }
        };
        for (n, some) in names.chunks(KEYS_AT_ONCE).enumerate() {
            let mut open: HashMap<&Bytes, usize> =
                some.iter().enumerate().map(|(at, name)| (name, n * KEYS_AT_ONCE + at)).collect();
            let mut whole = |name: Bytes, cells: Cells| match open.remove(&name) {
                Some(at) => take(at, held(&cells)),
                None => Ok(()),
            };
            self.each_whole((table, own), some, &mut whole).await?;
            let mut open: Vec<(&Bytes, usize)> = open.into_iter().collect();
            open.sort_unstable_by_key(|(_, at)| *at);
            for (name, at) in open {
                let mut found = Held::Absent;
                // What the collation takes for the same key is spelt in another way here.
                if is_text {
                    let mut whole = |_: Bytes, cells: Cells| {
                        found = held(&cells);
                        Ok(())
                    };
                    self.each_whole((table, own), std::slice::from_ref(name), &mut whole).await?;
                }
                take(at, found)?;
            }
        }
        Ok(())
    }

    fn obstacle(&self, space: &Space, back: Option<&Value>) -> Option<String> {
        let Some((_, own)) = self.own(space) else {
            return Some("its table is gone, or has no primary key that both sites share".to_owned());
        };
        let cells: Cells = match back.map(|value| serde_json::from_slice(&value.bytes)) {
            None => return None,
            Some(Ok(cells)) => cells,
            Some(Err(_)) => return Some("the undo file holds no row of it".to_owned()),
        };
        other_columns(own, &cells).map(|how| format!("its table has other columns now: {how}"))
    }

    async fn put_back(
        &self,
        space: &Space,
        name: &Bytes,
        back: Option<&Value>,
        is_expected: &(dyn Fn(Option<State>) -> bool + Send + Sync),
    ) -> Result<PutBack> {
        let refused = |reason: &str| Ok(PutBack::Refused(reason.to_owned()));
        let Some((table, own)) = self.own(space) else { return refused("its table is gone") };
        let Some(key) = literals(table, name) else { return refused("its name is none of its table's") };
        let cells: Option<Cells> = match back.map(|value| serde_json::from_slice(&value.bytes)) {
            None => None,
            Some(Ok(cells)) => Some(cells),
            Some(Err(_)) => return refused("the undo file holds no row of it"),
        };
        let action = format!("put back {} {}", own.sql_name(), printable(name));
        let mut conn = self.link.writer(&action).await?;
        for _ in 0..TRIES {
            let tried = self.try_put_back(&mut conn, (table, own, &key), cells.as_ref(), is_expected);
            match timeout(ANSWER_TIMEOUT, tried)
                .await
                .map_err(|_| self.link.site.failed(&action, "no answer"))?
            {
                Ok(()) => return Ok(PutBack::Done),
                Err(Stop::Answer(answer)) => return Ok(answer),
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Again) => {}
            }
        }
        Ok(PutBack::Blocked("other transactions hold it".to_owned()))
    }
}
