//! Rows read by their keys, in the form in which the log has them.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use causeway_core::{Key, Result};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use crate::conn::{in_time, unavailable};
use crate::content::{Content, Count, counts, name, order};
use crate::ddl::gone;
use crate::row::{
    Cell, Charsets, KeyKind, from_select, key_cells, key_name, write_json, write_name, write_sql,
};
use crate::schema::{Column, Table, table, table_of};

/// Keys of one SELECT.
const KEYS_AT_ONCE: usize = 500;

/// Whether rows that are read stay as they are until the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    None,
    /// Nobody may change them.
    Share,
    /// The same, and they will be changed here.
    Update,
}

impl Lock {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Lock::None => "",
            // MariaDB has no `FOR SHARE`.
            Lock::Share => " LOCK IN SHARE MODE",
            Lock::Update => " FOR UPDATE",
        }
    }
}

/// The tables of a server, as they were when each was asked for first.
#[derive(Debug, Default)]
pub(crate) struct Known {
    tables: HashMap<String, Option<Table>>,
    /// Those that are not there, as this server's own statements dropped them.
    dropped: HashSet<String>,
    charsets: Option<Charsets>,
}

impl Known {
    /// The table that `key` is of, if the server has it.
    pub(crate) async fn table(&mut self, conn: &mut Conn, label: &str, key: &Key) -> Result<Option<&Table>> {
        let Some((schema, name)) = table_of(key) else { return Ok(None) };
        let full = format!("{schema}.{name}");
        if !self.tables.contains_key(&full) {
            let mut found = table(conn, label, schema, name).await?;
            let gone = gone(conn, label, &full).await?;
            match &mut found {
                Some(table) => table.gone = gone,
                None if gone.iter().any(String::is_empty) => {
                    tracing::warn!(
                        table = full,
                        "it was dropped here: what the peer still writes into it is left out"
                    );
                    self.dropped.insert(full.clone());
                }
                None => {}
            }
            self.tables.insert(full.clone(), found);
        }
        Ok(self.tables.get(&full).and_then(Option::as_ref))
    }

    /// Whether the table that `key` is of was dropped here, as far as it was asked for.
    pub(crate) fn is_dropped(&self, key: &Key) -> bool {
        table_of(key).is_some_and(|(schema, name)| self.dropped.contains(&format!("{schema}.{name}")))
    }

    /// Asks again from now on.
    pub(crate) fn forget(&mut self) {
        self.tables.clear();
        self.dropped.clear();
    }

    pub(crate) async fn charsets(&mut self, conn: &mut Conn, label: &str) -> Result<Charsets> {
        match &self.charsets {
            Some(found) => Ok(found.clone()),
            None => Ok(self.charsets.insert(crate::schema::charsets(conn, label).await?).clone()),
        }
    }
}

/// The rows of `keys`, each as JSON, of a table without a primary key how many there are; `None`: there is none. Keys of
/// tables that the account does not see are left out.
pub(crate) async fn rows(
    conn: &mut Conn,
    label: &str,
    known: &mut Known,
    keys: &[Key],
    lock: Lock,
) -> Result<HashMap<Key, Option<Bytes>>> {
    let charsets = known.charsets(conn, label).await?;
    let mut found: HashMap<Key, Option<Bytes>> = HashMap::new();
    let mut by_table: BTreeMap<_, Vec<&Key>> = BTreeMap::new();
    for key in keys.iter().filter(|key| !key.name.is_empty()) {
        by_table.entry(&key.space).or_default().push(key);
    }
    for keys in by_table.into_values() {
        let Some(first) = keys.first() else { continue };
        let Some(table) = known.table(conn, label, first).await? else { continue };
        if table.is_keyless() {
            if table.not_carried().is_some() {
                continue;
            }
            let read = counted(conn, label, table, &keys, lock).await?;
            let value = |rows: u64| (rows > 0).then(|| Count { rows, told: 0 }.text().into());
            found.extend(read.into_iter().map(|(key, rows)| (key, value(rows))));
            continue;
        }
        let spelt = table.key_kinds().iter().any(|kind| matches!(kind, KeyKind::Text(_)));
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let rows = select(conn, label, table, &charsets, keys, lock).await?;
            // The collation of a key may take two spellings for one.
            let alone = spelt && !rows.is_empty();
            let rows: HashMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
            for key in keys {
                let mut row = rows.get(key.name.as_ref()).cloned();
                if row.is_none() && alone {
                    row = select(conn, label, table, &charsets, &[key], lock)
                        .await?
                        .pop()
                        .map(|(_, json)| json);
                }
                found.insert((*key).clone(), row.map(Bytes::from));
            }
        }
    }
    Ok(found)
}

/// How many rows of each of `keys` a table without a primary key has.
pub(crate) async fn counted(
    conn: &mut Conn,
    label: &str,
    table: &Table,
    keys: &[&Key],
    lock: Lock,
) -> Result<HashMap<Key, u64>> {
    let mut found: HashMap<Key, u64> = keys.iter().map(|key| ((*key).clone(), 0)).collect();
    // One that is none of this table's has no row.
    let contents: Vec<(Key, Content)> =
        found.keys().filter_map(|key| Some((key.clone(), Content::of(&key.name, table).ok()?))).collect();
    let all: Vec<&Content> = contents.iter().map(|(_, content)| content).collect();
    let rows = counts(conn, label, table, &all, lock).await?;
    found.extend(contents.into_iter().map(|(key, _)| key).zip(rows));
    Ok(found)
}

async fn select(
    conn: &mut Conn,
    label: &str,
    table: &Table,
    charsets: &Charsets,
    keys: &[&Key],
    lock: Lock,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut sql = format!("SELECT {} FROM {} WHERE ", table.column_list(), table.sql_name());
    let mut any = false;
    for key in keys {
        // A key that is none of this table's has no row.
        let Ok(cells) = key_cells(&key.name, &table.key_kinds()) else { continue };
        if std::mem::replace(&mut any, true) {
            sql.push_str(" OR ");
        }
        write_key(&mut sql, table, &cells);
    }
    if !any {
        return Ok(Vec::new());
    }
    sql.push_str(lock.sql());
    let action = format!("read rows of {}", table.full_name());
    let rows: Vec<Row> = in_time(&action, label, conn.exec(sql, ())).await?;
    let read = rows.into_iter().map(|row| json_of(row, table, charsets));
    read.collect::<std::result::Result<_, _>>().map_err(|reason| unavailable(&action, label, reason))
}

/// `(k1 = … AND k2 = …)`.
pub(crate) fn write_key(sql: &mut String, table: &Table, cells: &[Cell]) {
    sql.push('(');
    for (n, (column, cell)) in table.key_columns().zip(cells).enumerate() {
        if n > 0 {
            sql.push_str(" AND ");
        }
        write_name(sql, &column.name);
        sql.push_str(" = ");
        write_key_value(sql, column, cell);
    }
    sql.push(')');
}

/// A value that a key's column is compared with. A DECIMAL is compared with a text as a double, and so with its neighbours.
pub(crate) fn write_key_value(sql: &mut String, column: &Column, cell: &Cell) {
    match cell {
        Cell::Text(text)
            if column.data_type == "decimal"
                && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.')) =>
        {
            sql.push_str(text);
        }
        _ => write_sql(sql, cell),
    }
}

/// A row of a SELECT of all columns of `table`: its key's name, and its JSON.
pub(crate) fn json_of(
    row: Row,
    table: &Table,
    charsets: &Charsets,
) -> std::result::Result<(Vec<u8>, Vec<u8>), String> {
    let (cells, _) = cells_of(row, table, charsets)?;
    Ok(named(table, &cells))
}

/// Its cells, and about how many bytes they take.
pub(crate) fn cells_of(
    row: Row,
    table: &Table,
    charsets: &Charsets,
) -> std::result::Result<(Vec<Cell>, usize), String> {
    let columns = row.columns();
    let mut cells = Vec::with_capacity(table.columns.len());
    let mut bytes = 0;
    for (value, column) in row.unwrap().into_iter().zip(columns.iter()) {
        if let mysql_async::Value::Bytes(value) = &value {
            bytes += value.len();
        }
        bytes += 8;
        cells.push(from_select(value, column.column_type(), column.character_set(), charsets)?);
    }
    if cells.len() != table.columns.len() {
        return Err(format!("{} columns came of {}", cells.len(), table.columns.len()));
    }
    Ok((cells, bytes))
}

/// The cells of a row of a SELECT of the key's columns.
pub(crate) fn key_of(row: Row, charsets: &Charsets) -> std::result::Result<Vec<Cell>, String> {
    let columns = row.columns();
    let cells = row.unwrap().into_iter().zip(columns.iter());
    cells
        .map(|(value, column)| from_select(value, column.column_type(), column.character_set(), charsets))
        .collect()
}

/// The name of the key of a row of a table without a primary key; `order` as [`columns_in_order`] gives it.
pub(crate) fn content_name(table: &Table, order: &[usize], cells: &[Cell]) -> Vec<u8> {
    let column = |index: &usize| Some((table.columns.get(*index)?.name.as_str(), cells.get(*index)?));
    name(order.iter().filter_map(column))
}

/// The columns of `table` in the order in which they stand in such a name.
pub(crate) fn columns_in_order(table: &Table) -> Vec<usize> {
    order(table.columns.iter().map(|column| column.name.as_str()))
}

/// The key's name and the JSON of a row.
pub(crate) fn named(table: &Table, cells: &[Cell]) -> (Vec<u8>, Vec<u8>) {
    let key: Vec<&Cell> = table.key.iter().filter_map(|&index| cells.get(index)).collect();
    let mut json = Vec::with_capacity(64 * cells.len());
    write_json(&mut json, table.columns.iter().map(|column| column.name.as_str()).zip(cells));
    (key_name(&key), json)
}
