//! Rows in canonical form, and their names. No I/O.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use mysql_async::Value;
use serde_json::Value as Json;
use xxhash_rust::xxh3::xxh3_128;

use super::table::{Column, Table};
use crate::compare::{Parts, State};
use crate::digest::{Ordered, Tag, Unordered};

/// What kind of values a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Integers, DECIMAL, YEAR.
    Number,
    /// FLOAT and DOUBLE.
    Float,
    Bit,
    Text,
    /// ENUM and SET: text, in an order of their own.
    Label,
    Bytes,
    /// JSON at one site at least.
    Json,
    /// Dates and times.
    Time,
    /// Geometry and vectors: bytes that functions of text do not take.
    Opaque,
}

impl Form {
    /// Of the types at both sites, in the words of `information_schema`.
    pub(super) fn of(types: [&str; 2]) -> Form {
        if types.contains(&"json") {
            return Form::Json;
        }
        match types[0] {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => Form::Number,
            "float" | "double" => Form::Float,
            "bit" => Form::Bit,
            "enum" | "set" => Form::Label,
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Form::Bytes,
            "date" | "time" | "datetime" | "timestamp" => Form::Time,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
            | "multipolygon" | "geometrycollection" | "geomcollection" | "vector" => Form::Opaque,
            _ => Form::Text,
        }
    }
}

/// A value in canonical form: as text or bytes, whatever its type; `None`: NULL.
///
/// A number has all of its digits (a FLOAT those of its double), a time is in UTC and has six digits behind the second
/// or none, JSON has no spaces and its keys in order.
pub(super) fn canonical(value: &Value, form: Form) -> Option<Vec<u8>> {
    Some(match value {
        Value::NULL => return None,
        Value::Bytes(bits) if form == Form::Bit => {
            bits.iter().fold(0_u64, |all, bit| all << 8 | u64::from(*bit)).to_string().into_bytes()
        }
        Value::Bytes(text) if form == Form::Json => match serde_json::from_slice(text) {
            Ok(json) => {
                let mut out = String::new();
                write_json(&mut out, &json);
                out.into_bytes()
            }
            Err(_) => text.clone(),
        },
        Value::Bytes(bytes) => bytes.clone(),
        Value::Int(n) => n.to_string().into_bytes(),
        Value::UInt(n) => n.to_string().into_bytes(),
        Value::Float(n) => f64::from(*n).to_string().into_bytes(),
        Value::Double(n) => n.to_string().into_bytes(),
        Value::Date(year, month, day, hour, minute, second, micros) => {
            let mut text = format!("{year:04}-{month:02}-{day:02}");
            if (*hour, *minute, *second, *micros) != (0, 0, 0, 0) {
                let _ = write!(text, " {hour:02}:{minute:02}:{second:02}");
            }
            write_fraction(&mut text, *micros);
            text.into_bytes()
        }
        Value::Time(negative, days, hours, minutes, seconds, micros) => {
            let sign = if *negative { "-" } else { "" };
            let hours = u64::from(*days) * 24 + u64::from(*hours);
            let mut text = format!("{sign}{hours:02}:{minutes:02}:{seconds:02}");
            write_fraction(&mut text, *micros);
            text.into_bytes()
        }
    })
}

fn write_fraction(text: &mut String, micros: u32) {
    if micros > 0 {
        let _ = write!(text, ".{micros:06}");
    }
}

/// JSON without spaces and with its keys in order. A number without a fraction has no exponent, and is no other than as
/// it is written.
fn write_json(out: &mut String, json: &Json) {
    match json {
        Json::Array(all) => {
            out.push('[');
            for (n, one) in all.iter().enumerate() {
                out.push_str(if n > 0 { "," } else { "" });
                write_json(out, one);
            }
            out.push(']');
        }
        Json::Object(all) => {
            let mut all: Vec<_> = all.iter().collect();
            all.sort_by_key(|(name, _)| name.as_bytes());
            out.push('{');
            for (n, (name, one)) in all.into_iter().enumerate() {
                out.push_str(if n > 0 { "," } else { "" });
                let _ = write!(out, "{}:", Json::from(name.as_str()));
                write_json(out, one);
            }
            out.push('}');
        }
        plain => {
            let _ = write!(out, "{plain}");
        }
    }
}

/// The digest of a row: of each column's name, whether it is NULL, and its canonical form, in the order of the names.
pub(super) fn state(table: &Table, cells: &[Value]) -> State {
    let mut all = Ordered::new();
    for (column, cell) in table.columns.iter().zip(cells) {
        all.add(column.name.as_bytes());
        match canonical(cell, column.form) {
            None => all.add(b"\0"),
            Some(mut form) => {
                form.push(1);
                all.add(&form);
            }
        }
    }
    State { what: "row", digest: all.digest(Tag::Row, &Unordered::default()), expire_at: None }
}

/// A digest of each column of a row, by its name.
pub(super) fn parts(table: &Table, cells: &[Value]) -> Parts {
    let part = |(column, cell): (&Column, &Value)| {
        let digest = canonical(cell, column.form).map_or(0, |form| xxh3_128(&form) | 1);
        (column.name.clone(), digest)
    };
    table.columns.iter().zip(cells).map(part).collect()
}

/// The name of a row, as the log has it: of a key of one column its text or bytes, of several a JSON array.
pub(super) fn name(table: &Table, key: &[&Value]) -> Bytes {
    let forms = |cell: &Value, column: &Column| canonical(cell, column.form).unwrap_or_default();
    let cells = key.iter().zip(table.key_columns());
    if let [_] = key {
        return cells.map(|(cell, column)| forms(cell, column)).next().unwrap_or_default().into();
    }
    let json = cells.map(|(cell, column)| {
        let form = forms(cell, column);
        match (column.form, std::str::from_utf8(&form)) {
            (Form::Bytes, _) | (_, Err(_)) => serde_json::json!({ "base64": BASE64.encode(&form) }),
            (Form::Number | Form::Bit, Ok(text)) => {
                serde_json::from_str(text).unwrap_or_else(|_| text.into())
            }
            (_, Ok(text)) => text.into(),
        }
    });
    Json::Array(json.collect()).to_string().into_bytes().into()
}

/// The values of a key as SQL, in the key's order; `None`: the name is none of this table's.
pub(super) fn literals(table: &Table, name: &[u8]) -> Option<Vec<String>> {
    let columns: Vec<&Column> = table.key_columns().collect();
    if let [column] = columns.as_slice() {
        return Some(vec![literal(name, column.form)]);
    }
    let cells: Vec<Json> = serde_json::from_slice(name).ok()?;
    if cells.len() != columns.len() {
        return None;
    }
    let cells = cells.into_iter().zip(columns).map(|(cell, column)| {
        let form = match cell {
            Json::String(text) => text.into_bytes(),
            Json::Number(n) => n.to_string().into_bytes(),
            Json::Object(object) => BASE64.decode(object.get("base64")?.as_str()?).ok()?,
            _ => return None,
        };
        Some(literal(&form, column.form))
    });
    cells.collect()
}

fn literal(form: &[u8], kind: Form) -> String {
    let digits = form.strip_prefix(b"-").unwrap_or(form);
    let is_number = !digits.is_empty() && digits.iter().all(|b| b.is_ascii_digit() || *b == b'.');
    if let (Form::Number | Form::Bit, true) = (kind, is_number) {
        return String::from_utf8_lossy(form).into_owned();
    }
    let mut out = if matches!(kind, Form::Bytes | Form::Opaque) { "x'" } else { "_utf8mb4 x'" }.to_owned();
    for byte in form {
        let _ = write!(out, "{byte:02x}");
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::super::table::ColumnAt;
    use super::*;

    fn form(value: Value, form: Form) -> String {
        canonical(&value, form).map_or("NULL".into(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn bytes(text: &str) -> Value {
        Value::Bytes(text.as_bytes().to_vec())
    }

    fn table(forms: &[Form]) -> Table {
        let column = |(n, form): (usize, &Form)| {
            let at = ColumnAt { sql: format!("`c{n}`"), is_long: false, is_utf8: true, nullable: true };
            Column { name: format!("c{n}"), form: *form, sites: [at.clone(), at] }
        };
        Table {
            sql: ["`s`.`t`".into(), "`s`.`t`".into()],
            columns: forms.iter().enumerate().map(column).collect(),
            key: (0..forms.len()).collect(),
            is_ordered: true,
            rows: [0; 2],
        }
    }

    #[test]
    fn a_value_has_one_form() {
        for (value, kind, expected) in [
            (Value::NULL, Form::Text, "NULL"),
            (Value::Int(-7), Form::Number, "-7"),
            (Value::UInt(u64::MAX), Form::Number, "18446744073709551615"),
            (Value::Float(0.1), Form::Float, "0.10000000149011612"),
            (Value::Double(0.1), Form::Float, "0.1"),
            (Value::Double(-0.0), Form::Float, "-0"),
            (Value::Bytes(vec![1, 0]), Form::Bit, "256"),
            (bytes("a "), Form::Text, "a "),
            (bytes("{\"b\": [1.50, \"x\"], \"a\": null}"), Form::Json, "{\"a\":null,\"b\":[1.5,\"x\"]}"),
            (bytes("no JSON"), Form::Json, "no JSON"),
            (Value::Date(2026, 3, 1, 0, 0, 0, 0), Form::Time, "2026-03-01"),
            (Value::Date(2026, 3, 1, 2, 0, 0, 50), Form::Time, "2026-03-01 02:00:00.000050"),
            (Value::Time(true, 34, 22, 59, 59, 0), Form::Time, "-838:59:59"),
        ] {
            assert_eq!(form(value, kind), expected);
        }
    }

    #[test]
    fn null_is_no_text_and_where_a_value_ends_is_content() {
        let table = table(&[Form::Text, Form::Text]);
        let digest = |cells: [Value; 2]| state(&table, &cells).digest;
        let all = [
            digest([Value::NULL, bytes("")]),
            digest([bytes(""), Value::NULL]),
            digest([bytes(""), bytes("")]),
            digest([bytes("ab"), bytes("c")]),
            digest([bytes("a"), bytes("bc")]),
            digest([bytes("\0"), bytes("")]),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[..n].contains(one), "{n}");
        }
    }

    /// docs/DIGESTS.md names them.
    #[test]
    fn vectors() {
        let table = table(&[Form::Number, Form::Text]);
        for (content, cells) in [
            ("row `c0` = 7, `c1` = `abc`", [Value::Int(7), bytes("abc")]),
            ("row `c0` = 7, `c1` = NULL", [Value::Int(7), Value::NULL]),
            ("row `c0` = 7, `c1` = an empty text", [Value::Int(7), bytes("")]),
        ] {
            crate::digest::tests::assert_told(content, state(&table, &cells).digest);
        }
    }

    #[test]
    fn a_key_reads_back_from_its_name() {
        let one = table(&[Form::Text]);
        assert_eq!(literals(&one, &name(&one, &[&bytes("it's")])).unwrap(), ["_utf8mb4 x'69742773'"]);
        let several = table(&[Form::Number, Form::Bytes, Form::Time]);
        let cells = [Value::Int(-7), Value::Bytes(vec![0, 255]), Value::Date(2026, 3, 1, 0, 0, 0, 0)];
        let named = name(&several, &cells.iter().collect::<Vec<_>>());
        assert_eq!(&named[..], br#"[-7,{"base64":"AP8="},"2026-03-01"]"#);
        assert_eq!(
            literals(&several, &named).unwrap(),
            ["-7", "x'00ff'", "_utf8mb4 x'323032362d30332d3031'"]
        );
        assert_eq!(literals(&several, b"[1]"), None);
        assert_eq!(literals(&several, b"x"), None);
    }

    /// Nothing that a name holds is taken for SQL.
    #[test]
    fn what_is_no_number_is_no_number_s_literal() {
        assert_eq!(literal(b"1 OR 1", Form::Number), "_utf8mb4 x'31204f522031'");
        assert_eq!(literal(b"", Form::Number), "_utf8mb4 x''");
        assert_eq!(literal(b"1-2", Form::Number), "_utf8mb4 x'312d32'");
    }
}
