//! Rows of tables without a primary key: a row is what its columns hold, and of each there may be several.
//!
//! Its key in the log is the row itself: a JSON object like any row's, with the columns in the order of their names, so
//! that it is the same wherever they stand. A row that came is the command `+1`, one that went `-1`; a `read` and a `state`
//! say how many there are.
//!
//! A server takes many things for one that are several: `a` and `A`, 0.0 and -0.0. What is counted and deleted here is told
//! apart byte by byte ([`Content::of`]).

use std::collections::HashMap;
use std::fmt::Write as _;

use causeway_core::{Change, Class, Op, Result};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use crate::conn::scanned;
use crate::read::Lock;
use crate::row::{Cell, columns_of, write_json, write_name, write_sql};
use crate::schema::{Column, Table};
use crate::sql::{Expected, Statement, Wrong, insert_head};

/// The value of a command that says that a row came.
pub(crate) const ADDED: &[u8] = b"+1";
/// The same, that one went.
pub(crate) const REMOVED: &[u8] = b"-1";

/// What a change says of rows of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Added,
    Removed,
    Count(Count),
}

/// How many rows of one content there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) rows: u64,
    /// So many of them the stream told before the snapshot came to them.
    pub(crate) told: u64,
}

impl Count {
    /// The value of a `read` or a `state`: `3`, or `3,1` where one of the three was told before.
    pub(crate) fn text(self) -> String {
        match self {
            Count { rows, told: 0 } => rows.to_string(),
            Count { rows, told } => format!("{rows},{told}"),
        }
    }

    /// Reads it back; `None`: it is the value of something else.
    pub(crate) fn parse(text: &[u8]) -> Option<Count> {
        let text = std::str::from_utf8(text).ok()?;
        let (rows, told) = text.split_once(',').unwrap_or((text, "0"));
        let number = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten()
        };
        Some(Count { rows: number(rows)?, told: number(told)? })
    }
}

impl Said {
    /// `None`: it concerns a row that has a primary key. `keyless`: its table has none.
    pub(crate) fn of(change: &Change, keyless: bool) -> Option<Said> {
        match (change.op, change.value.as_deref()) {
            (Op::Command, Some(ADDED)) => Some(Said::Added),
            (Op::Command, Some(REMOVED)) => Some(Said::Removed),
            (Op::Read | Op::State, Some(value)) => Count::parse(value).map(Said::Count),
            (Op::Read | Op::State | Op::Delete, None) if keyless => {
                Some(Said::Count(Count { rows: 0, told: 0 }))
            }
            _ => None,
        }
    }

    /// How it depends on what was there. Rows that come do not; one can go only if it is there.
    pub(crate) fn class(self) -> Class {
        match self {
            Said::Added => Class::Commuting,
            Said::Removed => Class::Other,
            Said::Count(_) => Class::Absolute,
        }
    }
}

/// Columns in the order in which they stand in a key: of their names, byte by byte.
pub(crate) fn order<'n>(names: impl Iterator<Item = &'n str>) -> Vec<usize> {
    let mut order: Vec<(&str, usize)> = names.enumerate().map(|(at, name)| (name, at)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, at)| at).collect()
}

/// The name of a row's key; `columns` in their [`order`].
pub(crate) fn name<'c>(columns: impl Iterator<Item = (&'c str, &'c Cell)>) -> Vec<u8> {
    let mut name = Vec::with_capacity(64);
    write_json(&mut name, columns);
    name
}

/// All rows of one content, in a table as it is here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Content {
    table: String,
    /// What is true of them and of no other row.
    same: String,
    /// Names and values of the columns that are written.
    columns: Vec<(String, String)>,
    /// What [`look_up`] gives for them; `None`: that cannot be told.
    hash: Option<u32>,
}

impl Content {
    /// Of the key `name`. A column that it does not name came later, and holds its DEFAULT in these rows.
    ///
    /// # Errors
    ///
    /// It names a column that the table lacks, or is no row.
    pub(crate) fn of(name: &[u8], table: &Table) -> std::result::Result<Content, Wrong> {
        let cells: HashMap<String, Cell> = columns_of(name).map_err(Wrong::Form)?.into_iter().collect();
        let is_here = |name: &str| table.columns.iter().any(|column| column.name == name);
        let missing = |name: &&String| !is_here(name) && !table.gone.contains(&name.to_lowercase());
        if let Some(missing) = cells.keys().find(missing) {
            return Err(Wrong::Column(missing.clone()));
        }
        let (mut same, mut columns) = (String::new(), Vec::new());
        let mut hashes = cells.keys().all(|name| is_here(name)).then(String::new);
        for index in order(table.columns.iter().map(|column| column.name.as_str())) {
            let Some(column) = table.columns.get(index).filter(|column| !column.generated) else { continue };
            if !same.is_empty() {
                same.push_str(" AND ");
            }
            let Some(cell) = cells.get(&column.name) else {
                hashes = None;
                write_name(&mut same, &column.name);
                same.push_str(" <=> DEFAULT(");
                write_name(&mut same, &column.name);
                same.push(')');
                continue;
            };
            write_same(&mut same, column, cell);
            let mut value = String::new();
            write_sql(&mut value, cell);
            columns.push((column.name.clone(), value));
            if let Some(all) = &mut hashes
                && is_hashed(column)
            {
                match cell_hash(cell) {
                    Some(_) if *cell == Cell::Null => {}
                    Some(hash) => {
                        let comma = if all.is_empty() { "" } else { "," };
                        let _ = write!(all, "{comma}{hash}");
                    }
                    None => hashes = None,
                }
            }
        }
        if same.is_empty() {
            same.push_str("TRUE");
        }
        let hash = hashes.map(|all| crc32fast::hash(all.as_bytes()));
        Ok(Content { table: table.sql_name(), same, columns, hash })
    }

    /// Adds `rows` of them; none where that is 0.
    pub(crate) fn add(&self, rows: u64, statements: &mut Vec<Statement>) {
        let head = insert_head(&self.table, self.names());
        let mut left = rows;
        while left > 0 {
            let now = left.min(ROWS_AT_ONCE);
            left -= now;
            let sql = match now {
                1 => format!("{head}VALUES {}", self.values()),
                _ => format!(
                    "{head}WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {now}) SELECT {} FROM n",
                    self.list()
                ),
            };
            statements.push(Statement { sql, expected: Expected::Nothing });
        }
    }

    /// Takes `rows` of them away, which must be there.
    pub(crate) fn remove(&self, rows: u64) -> Statement {
        let sql = format!("DELETE FROM {} WHERE {} LIMIT {rows}", self.table, self.same);
        Statement { sql, expected: Expected::Found(rows) }
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// As a part of VALUES.
    pub(crate) fn values(&self) -> String {
        format!("({})", self.list())
    }

    fn list(&self) -> String {
        let values: Vec<&str> = self.columns.iter().map(|(_, value)| value.as_str()).collect();
        values.join(", ")
    }

    /// About how long it is in a statement.
    pub(crate) fn bytes(&self) -> usize {
        self.same.len() + self.columns.iter().map(|(_, value)| value.len() + 2).sum::<usize>()
    }
}

/// Rows of one statement that makes several: no more than the servers let a recursion go.
const ROWS_AT_ONCE: u64 = 1000;
/// A text up to this long is compared by its collation as well, for which there may be an index.
const INDEXED_MAX: usize = 100;

const INTEGERS: [&str; 5] = ["tinyint", "smallint", "mediumint", "int", "bigint"];

/// Writes what is true if `column` holds just `cell`.
fn write_same(sql: &mut String, column: &Column, cell: &Cell) {
    let mut name = String::new();
    write_name(&mut name, &column.name);
    let mut value = String::new();
    write_sql(&mut value, cell);
    let hex = |bytes: &[u8]| {
        let mut hex = String::new();
        write_sql(&mut hex, &Cell::Raw(None, bytes.to_vec()));
        hex
    };
    let _ = match (column.data_type.as_str(), cell) {
        (_, Cell::Null) => write!(sql, "{name} IS NULL"),
        // Both zeros are equal.
        ("float" | "double", Cell::Double(n)) if *n == 0.0 => {
            let not = if n.is_sign_negative() { "" } else { "NOT " };
            write!(sql, "{name} = 0 AND {not}ATAN2({name}, -1) < 0")
        }
        // A number of one or two digits is taken for a year of this century, and bits for text.
        ("year" | "bit", Cell::UInt(n)) => write!(sql, "{name} + 0 = {n}"),
        ("decimal", Cell::Text(text))
            if text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.')) =>
        {
            write!(sql, "{name} = {text}")
        }
        (kind, Cell::Text(text)) if column.charset.is_some() => {
            let is_label = ["enum", "set"].contains(&kind);
            if !is_label && text.len() <= INDEXED_MAX {
                let _ = write!(sql, "{name} = {value} AND ");
            }
            write!(sql, "CAST({name} AS BINARY) = {}", hex(text.as_bytes()))
        }
        (_, Cell::Raw(Some(_), bytes)) => write!(sql, "CAST({name} AS BINARY) = {}", hex(bytes)),
        (kind, Cell::Raw(None, bytes)) if !is_bytes(kind) => {
            // GEOMETRY and its kin.
            write!(sql, "HEX({name}) = HEX({})", hex(bytes))
        }
        _ => write!(sql, "{name} = {value}"),
    };
}

fn is_bytes(kind: &str) -> bool {
    kind.ends_with("blob") || kind.ends_with("binary")
}

/// Whether a column counts for what [`look_up`] gives: one whose text is the same here as at the server.
fn is_hashed(column: &Column) -> bool {
    let kind = column.data_type.as_str();
    let is_text = kind.ends_with("char") || kind.ends_with("text");
    !column.generated && (INTEGERS.contains(&kind) || is_text && column.charset.is_some() || is_bytes(kind))
}

/// As the server's CRC32; 0 of NULL, which does not count.
fn cell_hash(cell: &Cell) -> Option<u32> {
    Some(match cell {
        Cell::Null => 0,
        Cell::Int(n) => crc32fast::hash(n.to_string().as_bytes()),
        Cell::UInt(n) => crc32fast::hash(n.to_string().as_bytes()),
        Cell::Text(text) => crc32fast::hash(text.as_bytes()),
        Cell::Raw(_, bytes) => crc32fast::hash(bytes),
        Cell::Double(_) => return None,
    })
}

/// A number that is the same for rows of one content, as SQL; this side can tell it, too.
fn look_up(table: &Table) -> String {
    let hash = |column: &Column| {
        let mut name = String::new();
        write_name(&mut name, &column.name);
        // ZEROFILL is for the eye.
        let zero = if INTEGERS.contains(&column.data_type.as_str()) { " + 0" } else { "" };
        format!("CRC32({name}{zero})")
    };
    sql_hash(table, is_hashed, hash)
}

/// A number that spreads the rows of a table evenly, and is the same for rows of one content, as SQL.
pub(crate) fn spread(table: &Table) -> String {
    let hash = |column: &Column| {
        let mut name = String::new();
        write_name(&mut name, &column.name);
        format!("CRC32({name})")
    };
    sql_hash(table, |column| !column.generated, hash)
}

fn sql_hash(table: &Table, counts: fn(&Column) -> bool, hash: impl Fn(&Column) -> String) -> String {
    let order = order(table.columns.iter().map(|column| column.name.as_str()));
    let columns = order.iter().filter_map(|index| table.columns.get(*index)).filter(|column| counts(column));
    let all: Vec<String> = columns.map(hash).collect();
    match all.is_empty() {
        true => "0".to_owned(),
        // NULL is passed over.
        false => format!("CRC32(CONCAT_WS(',', {}))", all.join(", ")),
    }
}

/// Contents of one SELECT, and about how long it is.
const AT_ONCE: usize = 600;
const AT_ONCE_BYTES: usize = 512 << 10;
/// So many are looked for one by one, for which there may be an index.
const ONE_BY_ONE: usize = 4;

/// How many rows there are of each of `contents`, which are different ones of `table`, in the same order. With a lock none
/// of them comes or goes until the transaction ends: where no index helps, no row of the table does.
pub(crate) async fn counts(
    conn: &mut Conn,
    label: &str,
    table: &Table,
    contents: &[&Content],
    lock: Lock,
) -> Result<Vec<u64>> {
    let action = format!("count rows of {}", table.full_name());
    let hash = look_up(table);
    let mut counts = vec![0; contents.len()];
    let mut rest: Vec<usize> = (0..contents.len()).collect();
    // A content that lacks a column may be another one's, too.
    rest.sort_by_key(|at| contents.get(*at).is_some_and(|content| content.hash.is_none()));
    let mut rest = &rest[..];
    while !rest.is_empty() {
        let (mut bytes, mut count) = (0, 0);
        for content in rest.iter().filter_map(|at| contents.get(*at)) {
            bytes += content.same.len() + 20;
            let fits = count < AT_ONCE && bytes <= AT_ONCE_BYTES && content.hash.is_some();
            if count > 0 && !fits {
                break;
            }
            count += 1;
        }
        let (now, behind) = rest.split_at(count);
        rest = behind;
        let of: Vec<(usize, &Content)> =
            now.iter().filter_map(|at| Some((*at, *contents.get(*at)?))).collect();
        let sql = count_sql(&table.sql_name(), &hash, &of, lock);
        let found: Vec<(Option<i64>, u64)> = scanned(&action, label, conn.query(sql)).await?;
        for (at, rows) in found.into_iter().filter_map(|(at, rows)| Some((usize::try_from(at?).ok()?, rows)))
        {
            if let Some(count) = counts.get_mut(at) {
                *count = rows;
            }
        }
    }
    Ok(counts)
}

fn count_sql(table: &str, hash: &str, contents: &[(usize, &Content)], lock: Lock) -> String {
    let mut sql = "SELECT CASE".to_owned();
    for (at, content) in contents {
        let _ = write!(sql, " WHEN {} THEN {at}", content.same);
    }
    let _ = write!(sql, " END, COUNT(*) FROM {table} WHERE ");
    let hashes: Option<Vec<String>> = contents
        .iter()
        .map(|(_, content)| content.hash.map(|hash| hash.to_string()))
        .collect::<Option<_>>()
        .filter(|_| contents.len() > ONE_BY_ONE);
    match hashes {
        Some(hashes) => {
            let _ = write!(sql, "{hash} IN ({})", hashes.join(", "));
        }
        None => {
            for (n, (_, content)) in contents.iter().enumerate() {
                let or = if n > 0 { " OR " } else { "" };
                let _ = write!(sql, "{or}({})", content.same);
            }
        }
    }
    sql + " GROUP BY 1" + lock.sql()
}

#[cfg(test)]
mod tests {
    use causeway_core::{Key, Position, Space};

    use super::*;
    use crate::schema::tests::shop_t;

    fn table() -> Table {
        let columns = [("n", "int", false), ("d", "double", false), ("g", "int", true)];
        Table { gone: vec!["old".into()], ..shop_t(&columns, Vec::new()) }
    }

    fn sql(name: &str) -> String {
        Content::of(name.as_bytes(), &table()).unwrap().remove(1).sql
    }

    #[test]
    fn a_row_is_named_by_what_it_holds_wherever_the_columns_stand() {
        let cells = [("b", Cell::UInt(1)), ("a", Cell::Null), ("c", Cell::Text("x".into()))];
        let order = order(cells.iter().map(|(name, _)| *name));
        let name = name(order.iter().map(|at| (cells[*at].0, &cells[*at].1)));
        assert_eq!(String::from_utf8(name).unwrap(), "{\"a\":null,\"b\":1,\"c\":\"x\"}");
    }

    #[test]
    fn rows_are_told_apart_by_all_columns_that_are_written() {
        let delete = "DELETE FROM `shop`.`t` WHERE";
        assert_eq!(sql("{\"d\":1.5,\"g\":7,\"n\":3}"), format!("{delete} `d` = 1.5e0 AND `n` = 3 LIMIT 1"));
        assert_eq!(
            sql("{\"d\":-0.0,\"n\":null}"),
            format!("{delete} `d` = 0 AND ATAN2(`d`, -1) < 0 AND `n` IS NULL LIMIT 1")
        );
        assert_eq!(
            sql("{\"n\":3,\"old\":1}"),
            format!("{delete} `d` <=> DEFAULT(`d`) AND `n` = 3 LIMIT 1"),
            "one column came later, and one is gone"
        );
        let wrong = |name: &str| Content::of(name.as_bytes(), &table()).unwrap_err();
        assert_eq!(wrong("{\"x\":1}"), Wrong::Column("x".into()));
        assert!(matches!(wrong("[1,2]"), Wrong::Form(_)));
    }

    #[test]
    fn several_rows_of_one_content_are_one_statement() {
        let content = Content::of(b"{\"d\":null,\"n\":3}", &table()).unwrap();
        let mut statements = Vec::new();
        content.add(2001, &mut statements);
        assert_eq!(statements.len(), 3);
        assert!(statements[0].sql.ends_with("i < 1000) SELECT NULL, 3 FROM n"), "{}", statements[0].sql);
        assert_eq!(statements[2].sql, "INSERT INTO `shop`.`t` (`d`, `n`) VALUES (NULL, 3)");
    }

    #[test]
    fn what_a_change_says_of_rows_reads_back() {
        let key = Key { space: Space::Table("shop.t".into()), name: "{}".into() };
        let said = |op, value: Option<&'static str>, keyless| {
            let change = Change::captured(op, key.clone(), value.map(Into::into), Position::default(), 0);
            Said::of(&change, keyless)
        };
        let count = |rows, told| Some(Said::Count(Count { rows, told }));
        assert_eq!(said(Op::Command, Some("+1"), false), Some(Said::Added));
        assert_eq!(said(Op::Command, Some("-1"), true), Some(Said::Removed));
        assert_eq!(said(Op::Command, Some("x"), true), None);
        assert_eq!(said(Op::Read, Some("3,1"), true), count(3, 1));
        assert_eq!(said(Op::State, Some("18446744073709551615"), true), count(u64::MAX, 0));
        assert_eq!(said(Op::State, None, true), count(0, 0));
        assert_eq!(said(Op::State, None, false), None);
        assert_eq!(said(Op::State, Some("{\"id\":1}"), true), None);
        assert_eq!(said(Op::Put, Some("1"), true), None);
        for count in [Count { rows: 3, told: 1 }, Count { rows: 3, told: 0 }] {
            assert_eq!(Count::parse(count.text().as_bytes()), Some(count));
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_from_the_log_makes_a_content_panic(name: Vec<u8>, value: Vec<u8>) {
            let _ = Content::of(&name, &table());
            let _ = Count::parse(&value);
        }
    }
}
