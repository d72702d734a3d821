//! Rows bit by bit, as JSON and as SQL. No I/O.
//!
//! A text is the bytes that are stored, with its column's charset; a number has all of its digits; a time is a text in UTC.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use mysql_async::Value;
use serde::{Deserialize, Serialize};

use super::row::{Form, canonical};
use super::table::{Found, FoundColumn, quoted};

/// A value as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Cell {
    Null,
    Number(String),
    /// In this charset, in base64.
    Text(String, String),
    /// In base64.
    Bytes(String),
}

/// Not what it holds.
impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cell")
    }
}

/// A row, by its columns' names.
pub(super) type Cells = BTreeMap<String, Cell>;

/// What to ask for of each column.
pub(super) fn column_list(table: &Found) -> String {
    let columns = table.columns.iter().map(|column| match column.is_text() {
        true => format!("CONVERT({} USING binary)", quoted(&column.name)),
        false => quoted(&column.name),
    });
    columns.collect::<Vec<_>>().join(", ")
}

/// The row of what came for [`column_list`].
pub(super) fn cells(table: &Found, values: &[Value]) -> Cells {
    let cells = table.columns.iter().zip(values);
    cells.map(|(column, value)| (column.name.clone(), cell(column, value))).collect()
}

fn cell(column: &FoundColumn, value: &Value) -> Cell {
    let text = |text: &[u8]| Cell::Text("utf8mb4".to_owned(), BASE64.encode(text));
    match value {
        Value::NULL => Cell::Null,
        Value::Int(n) => Cell::Number(n.to_string()),
        Value::UInt(n) => Cell::Number(n.to_string()),
        // With an exponent it is a double; without one -0.0 would lose its sign.
        Value::Float(n) => Cell::Number(format!("{:e}", f64::from(*n))),
        Value::Double(n) => Cell::Number(format!("{n:e}")),
        Value::Date(..) | Value::Time(..) => text(&canonical(value, Form::Time).unwrap_or_default()),
        Value::Bytes(bytes) if column.is_text() => Cell::Text(column.charset.clone(), BASE64.encode(bytes)),
        Value::Bytes(bytes) => match Form::of([&column.data_type, &column.data_type]) {
            Form::Number => Cell::Number(String::from_utf8_lossy(bytes).into_owned()),
            Form::Bytes | Form::Opaque | Form::Bit => Cell::Bytes(BASE64.encode(bytes)),
            Form::Float | Form::Text | Form::Label | Form::Json | Form::Time => text(bytes),
        },
    }
}

impl Cell {
    /// As SQL; `None`: it is none that was read from a row.
    fn sql(&self) -> Option<String> {
        let hex = |base64: &str| -> Option<String> {
            let bytes = BASE64.decode(base64).ok()?;
            let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            let digits = digits.map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            Some(format!("x'{}'", digits.collect::<String>()))
        };
        match self {
            Cell::Null => Some("NULL".to_owned()),
            Cell::Number(digits) => {
                let is_number = digits.bytes().any(|b| b.is_ascii_digit())
                    && digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
                    && !digits.contains("--");
                is_number.then(|| digits.clone())
            }
            Cell::Text(charset, text) => {
                let is_name = charset.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                if is_name { Some(format!("_{charset} {}", hex(text)?)) } else { None }
            }
            Cell::Bytes(bytes) => hex(bytes),
        }
    }

    /// Bytes of it as SQL, at the most.
    fn sql_bytes(&self) -> usize {
        match self {
            Cell::Null => 4,
            Cell::Number(digits) => digits.len(),
            Cell::Text(charset, base64) => charset.len() + base64.len() / 4 * 6 + 5,
            Cell::Bytes(base64) => base64.len() / 4 * 6 + 3,
        }
    }
}

/// About how many bytes of a statement put the row back.
pub(super) fn sql_bytes(cells: &Cells) -> usize {
    cells.iter().map(|(name, cell)| name.len() + cell.sql_bytes() + 8).sum::<usize>() + 256
}

/// Puts the row into `table`, which lacks it; `None`: a value is none.
pub(super) fn insert(table: &str, cells: &Cells) -> Option<String> {
    let names: Vec<String> = cells.keys().map(|name| quoted(name)).collect();
    let values: Option<Vec<String>> = cells.values().map(Cell::sql).collect();
    Some(format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), values?.join(", ")))
}

/// Lets the row that `key` finds be this one.
pub(super) fn update(table: &str, cells: &Cells, key: &str) -> Option<String> {
    let set = |(name, cell): (&String, &Cell)| Some(format!("{} = {}", quoted(name), cell.sql()?));
    let set: Option<Vec<String>> = cells.iter().map(set).collect();
    Some(format!("UPDATE {table} SET {} WHERE {key}", set?.join(", ")))
}

/// How the columns of a row and those of its table differ; `None`: they don't.
pub(super) fn other_columns(table: &Found, cells: &Cells) -> Option<String> {
    let has = |name: &String| table.columns.iter().any(|column| column.name == *name);
    let gone = cells.keys().find(|name| !has(name)).map(|name| format!("it lacks {name}"));
    let new = table.columns.iter().find(|column| !cells.contains_key(&column.name));
    gone.or_else(|| new.map(|column| format!("{} is new", column.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, &str, &str)]) -> Found {
        Found::of("s", "t", columns)
    }

    fn row(columns: &[(&str, &str, &str)], values: &[Value]) -> Cells {
        let cells = cells(&table(columns), values);
        let json = serde_json::to_vec(&cells).unwrap();
        assert_eq!(serde_json::from_slice::<Cells>(&json).unwrap(), cells, "it reads back");
        cells
    }

    #[test]
    fn a_value_is_written_as_it_is_stored() {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        for (data_type, charset, value, sql) in [
            ("int", "", Value::Int(-7), "-7"),
            ("decimal", "", bytes(b"-0.50"), "-0.50"),
            ("float", "", Value::Float(0.1), "1.0000000149011612e-1"),
            ("double", "", Value::Double(-0.0), "-0e0"),
            ("bit", "", bytes(&[1, 0]), "x'0100'"),
            ("varchar", "gbk", bytes(b"\xc4\xe3"), "_gbk x'c4e3'"),
            ("varchar", "utf8mb4", bytes(b""), "_utf8mb4 x''"),
            ("varchar", "utf8mb4", Value::NULL, "NULL"),
            ("enum", "latin1", bytes(b"\xe9"), "_latin1 x'e9'"),
            ("json", "", bytes(b"1"), "_utf8mb4 x'31'"),
            ("uuid", "", bytes(b"a-"), "_utf8mb4 x'612d'"),
            ("varbinary", "", bytes(b"\0\xff"), "x'00ff'"),
            ("point", "", bytes(b"\0"), "x'00'"),
            ("datetime", "", Value::Date(0, 0, 0, 0, 0, 0, 0), "_utf8mb4 x'303030302d30302d3030'"),
        ] {
            let cells = row(&[("c", data_type, charset)], &[value]);
            assert_eq!(insert("t", &cells).unwrap(), format!("INSERT INTO t (`c`) VALUES ({sql})"));
            let bytes = cells.values().map(Cell::sql_bytes).sum::<usize>();
            assert!(bytes >= sql.len() && bytes <= sql.len() + 6, "{bytes} {sql}");
        }
        assert_eq!(
            column_list(&table(&[("a", "int", ""), ("b`", "text", "gbk")])),
            "`a`, CONVERT(`b``` USING binary)"
        );
    }

    /// Nothing that a file holds is taken for SQL.
    #[test]
    fn what_is_no_value_is_no_sql() {
        for cell in [
            Cell::Number("1 OR 1".into()),
            Cell::Number(String::new()),
            Cell::Number("1--1".into()),
            Cell::Text("utf8mb4 x'00', b = ".into(), String::new()),
            Cell::Text("utf8mb4".into(), "'".into()),
            Cell::Bytes("x".into()),
        ] {
            let cells = Cells::from([("c".to_owned(), cell)]);
            assert_eq!((insert("t", &cells), update("t", &cells, "k = 1")), (None, None), "{cells:?}");
        }
        let cells = Cells::from([("c` = 1, d".to_owned(), Cell::Null)]);
        assert_eq!(update("t", &cells, "k = 1").unwrap(), "UPDATE t SET `c`` = 1, d` = NULL WHERE k = 1");
    }

    #[test]
    fn columns_that_came_or_went_are_named() {
        let cells = row(&[("a", "int", ""), ("b", "int", "")], &[Value::Int(1), Value::Int(2)]);
        let differ = |columns: &[(&str, &str, &str)]| other_columns(&table(columns), &cells);
        assert_eq!(differ(&[("b", "int", ""), ("a", "text", "gbk")]), None);
        assert_eq!(differ(&[("a", "int", "")]), Some("it lacks b".into()));
        assert_eq!(differ(&[("a", "int", ""), ("b", "int", ""), ("c", "int", "")]), Some("c is new".into()));
    }
}
