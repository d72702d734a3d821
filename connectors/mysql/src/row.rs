//! A row between three forms: what the server sends, the JSON that stands in the log, and SQL. No I/O.
//!
//! The JSON of a row is an object with all of its columns, in their order. It is the same whether the row came out of
//! the binlog or of a SELECT, and holds each value bit by bit:
//!
//! ```text
//! integers, YEAR, BIT, FLOAT, DOUBLE   a number
//! DECIMAL, dates and times             text, times of a TIMESTAMP in UTC
//! ENUM, SET                            text: the labels
//! text of a utf8 charset, or ASCII     text
//! text of another charset              {"charset":"latin1","base64":"…"}: the stored bytes
//! BINARY, BLOB, GEOMETRY               {"base64":"…"}
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use mysql_async::Value;
use mysql_async::binlog::jsonb::{JsonContainer, JsonDom, JsonNumber, JsonScalar};
use mysql_async::binlog::value::BinlogValue;
use mysql_async::consts::ColumnType;
use serde_json::Value as Json;

/// The collation `binary`: what has it is no text.
const BINARY: u16 = 63;

/// The charset of each collation of a server, by the collation's number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Charsets(HashMap<u16, Arc<str>>);

impl Charsets {
    pub(crate) fn new(collations: impl IntoIterator<Item = (u16, String)>) -> Charsets {
        Charsets(collations.into_iter().map(|(id, name)| (id, Arc::from(name))).collect())
    }

    fn of(&self, collation: u16) -> Result<Arc<str>, String> {
        self.0.get(&collation).cloned().ok_or_else(|| format!("the server has no collation {collation}"))
    }
}

/// How the values of a column come, and what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it is.
    Plain,
    /// A signed MEDIUMINT: the driver reads the lowest one as the highest and one more.
    Medium,
    /// `YEAR`: the binlog has 1900 for 0.
    Year,
    /// Big-endian bits.
    Bit,
    /// Seconds since 1970, as text, in the binlog.
    Timestamp,
    /// Stored text of this charset.
    Text(Arc<str>),
    /// `BINARY(n)` and the like: the binlog leaves out the zeros at the end.
    Bytes { padded_to: usize },
    /// Index to label.
    Enum(Vec<Cell>),
    /// Bits to labels.
    Set(Vec<Cell>),
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(String),
    /// Bytes, of a charset or none.
    Raw(Option<Arc<str>>, Vec<u8>),
}

// A float that is in a row is finite: the servers store no other.
impl Eq for Cell {}

/// Of a column of the binlog, as its table map tells: `meta` is the type's metadata, `labels` those of an ENUM or SET.
pub(crate) fn kind_of(
    kind: ColumnType,
    meta: &[u8],
    unsigned: bool,
    collation: u16,
    labels: Vec<Vec<u8>>,
    charsets: &Charsets,
) -> Result<Kind, String> {
    use ColumnType::*;
    Ok(match kind {
        MYSQL_TYPE_INT24 if !unsigned => Kind::Medium,
        MYSQL_TYPE_YEAR => Kind::Year,
        MYSQL_TYPE_BIT => Kind::Bit,
        MYSQL_TYPE_TIMESTAMP | MYSQL_TYPE_TIMESTAMP2 => Kind::Timestamp,
        MYSQL_TYPE_ENUM | MYSQL_TYPE_SET => {
            let charset = charsets.of(collation)?;
            let labels = labels.into_iter().map(|label| text_cell(label, &charset)).collect();
            if kind == MYSQL_TYPE_ENUM { Kind::Enum(labels) } else { Kind::Set(labels) }
        }
        MYSQL_TYPE_STRING if collation == BINARY => Kind::Bytes { padded_to: string_length(meta) },
        MYSQL_TYPE_STRING
        | MYSQL_TYPE_VAR_STRING
        | MYSQL_TYPE_VARCHAR
        | MYSQL_TYPE_TINY_BLOB
        | MYSQL_TYPE_MEDIUM_BLOB
        | MYSQL_TYPE_LONG_BLOB
        | MYSQL_TYPE_BLOB
            if collation != BINARY =>
        {
            Kind::Text(charsets.of(collation)?)
        }
        MYSQL_TYPE_VAR_STRING
        | MYSQL_TYPE_VARCHAR
        | MYSQL_TYPE_TINY_BLOB
        | MYSQL_TYPE_MEDIUM_BLOB
        | MYSQL_TYPE_LONG_BLOB
        | MYSQL_TYPE_BLOB
        | MYSQL_TYPE_GEOMETRY
        | MYSQL_TYPE_VECTOR => Kind::Bytes { padded_to: 0 },
        _ => Kind::Plain,
    })
}

/// The length in bytes of a CHAR or BINARY column, from its type's metadata (sql/log_event.cc, `Field_string`).
fn string_length(meta: &[u8]) -> usize {
    let (high, low) = (meta.first().copied().unwrap_or(0), meta.get(1).copied().unwrap_or(0));
    let above = if high & 0x30 == 0x30 { 0 } else { usize::from((high & 0x30) ^ 0x30) << 4 };
    usize::from(low) | above
}

/// A value of the binlog.
pub(crate) fn from_binlog(value: BinlogValue<'static>, kind: &Kind) -> Result<Cell, String> {
    let value = match value {
        BinlogValue::Value(value) => value,
        BinlogValue::Jsonb(json) => {
            let json = json.parse().map_err(|e| format!("a JSON value: {e}"))?;
            let json = json_text(json)?;
            return Ok(Cell::Text(json.to_string()));
        }
        BinlogValue::JsonDiff(_) => {
            return Err(
                "only a part of a JSON value is in the binlog: binlog_row_value_options has to be empty"
                    .into(),
            );
        }
    };
    Ok(match (kind, value) {
        (_, Value::NULL) => Cell::Null,
        (Kind::Medium, Value::Int(n)) if n >= 1 << 23 => Cell::Int(n - (1 << 24)),
        (Kind::Year, Value::Bytes(text)) => Cell::UInt(match text.as_slice() {
            b"1900" => 0,
            text => number(text)?,
        }),
        (Kind::Bit, Value::Bytes(bits)) => Cell::UInt(bits_of(&bits)?),
        (Kind::Timestamp, Value::Bytes(text)) => Cell::Text(utc(&text)?),
        (Kind::Timestamp, Value::Int(seconds)) => Cell::Text(utc(seconds.to_string().as_bytes())?),
        (Kind::Enum(labels), Value::Int(index)) => {
            match usize::try_from(index).ok().and_then(|n| n.checked_sub(1)) {
                // What was refused, in a session without strict mode.
                None => Cell::UInt(0),
                Some(n) => labels.get(n).cloned().ok_or_else(|| format!("an ENUM has no label {index}"))?,
            }
        }
        (Kind::Set(labels), Value::Bytes(bits)) => set_cell(&bits, labels)?,
        (Kind::Bytes { padded_to }, Value::Bytes(mut bytes)) => {
            bytes.resize(bytes.len().max(*padded_to), 0);
            Cell::Raw(None, bytes)
        }
        (Kind::Text(charset), Value::Bytes(bytes)) => text_cell(bytes, charset),
        (_, value) => plain(value)?,
    })
}

/// A value of MySQL's JSON as a SELECT prints it. A date, a time or bytes in it are the text that they look like there, and
/// a DECIMAL is a number; one of more digits than a double has would be another number at the target.
fn json_text(json: JsonDom) -> Result<Json, String> {
    Ok(match json {
        JsonDom::Container(JsonContainer::Array(all)) => {
            Json::Array(all.into_iter().map(json_text).collect::<Result<_, _>>()?)
        }
        JsonDom::Container(JsonContainer::Object(all)) => {
            let named = all.into_iter().map(|(name, value)| Ok((name, json_text(value)?)));
            Json::Object(named.collect::<Result<_, String>>()?)
        }
        JsonDom::Scalar(JsonScalar::Number(JsonNumber::Decimal(exact))) => {
            let exact = exact.to_string();
            let number: serde_json::Number =
                exact.parse().map_err(|e| format!("a DECIMAL in a JSON value: {e}"))?;
            let is_same = |double: f64| digits_of(&format!("{double}")) == digits_of(&exact);
            if number.is_f64() && !number.as_f64().is_some_and(is_same) {
                return Err(format!(
                    "the DECIMAL {exact} in a JSON value has more digits than JSON text keeps"
                ));
            }
            Json::Number(number)
        }
        JsonDom::Scalar(scalar) => scalar.into(),
    })
}

/// Of a number without an exponent, without zeros that say nothing.
fn digits_of(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// A value of a SELECT by the binary protocol, of a column of type `kind` and `collation`.
pub(crate) fn from_select(
    value: Value,
    kind: ColumnType,
    collation: u16,
    charsets: &Charsets,
) -> Result<Cell, String> {
    use ColumnType::*;
    Ok(match (kind, value) {
        (_, Value::NULL) => Cell::Null,
        (MYSQL_TYPE_BIT, Value::Bytes(bits)) => Cell::UInt(bits_of(&bits)?),
        (MYSQL_TYPE_YEAR, Value::Int(year)) => Cell::UInt(year as u64),
        (MYSQL_TYPE_NEWDECIMAL | MYSQL_TYPE_DECIMAL, Value::Bytes(text)) => plain(Value::Bytes(text))?,
        (MYSQL_TYPE_JSON, Value::Bytes(text)) => {
            // As the binlog's is written: without the spaces.
            let json: Json = serde_json::from_slice(&text).map_err(|e| format!("a JSON value: {e}"))?;
            Cell::Text(json.to_string())
        }
        (_, Value::Bytes(bytes)) if collation == BINARY => Cell::Raw(None, bytes),
        (_, Value::Bytes(bytes)) => text_cell(bytes, &charsets.of(collation)?),
        (_, value) => plain(value)?,
    })
}

fn plain(value: Value) -> Result<Cell, String> {
    Ok(match value {
        Value::NULL => Cell::Null,
        Value::Int(n) => u64::try_from(n).map_or(Cell::Int(n), Cell::UInt),
        Value::UInt(n) => Cell::UInt(n),
        // All of its digits: the shortest ones that give it back may lie beyond the largest.
        Value::Float(n) => Cell::Double(f64::from(n)),
        Value::Double(n) => Cell::Double(n),
        Value::Bytes(text) => {
            Cell::Text(String::from_utf8(text).map_err(|_| "a number that is no text".to_owned())?)
        }
        Value::Date(year, month, day, hour, minute, second, micros) => {
            let mut text = format!("{year:04}-{month:02}-{day:02}");
            if (hour, minute, second, micros) != (0, 0, 0, 0) {
                let _ = write!(text, " {hour:02}:{minute:02}:{second:02}");
            }
            fraction(&mut text, micros);
            Cell::Text(text)
        }
        Value::Time(negative, days, hours, minutes, seconds, micros) => {
            let hours = u64::from(days) * 24 + u64::from(hours);
            let sign = if negative { "-" } else { "" };
            let mut text = format!("{sign}{hours:02}:{minutes:02}:{seconds:02}");
            fraction(&mut text, micros);
            Cell::Text(text)
        }
    })
}

fn fraction(text: &mut String, micros: u32) {
    if micros > 0 {
        let _ = write!(text, ".{micros:06}");
    }
}

/// `epoch` or `epoch.micros` as a time in UTC. 0 is the zero date.
fn utc(text: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let (seconds, micros) = text.split_once('.').unwrap_or((text, "0"));
    let parsed = |text: &str| text.parse::<u64>().map_err(|_| "a TIMESTAMP that is no number".to_owned());
    let (seconds, micros) = (parsed(seconds)?, parsed(micros)? as u32);
    if seconds == 0 {
        return Ok("0000-00-00".to_owned());
    }
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days as i64);
    let value =
        Value::Date(year, month, day, (rest / 3600) as u8, (rest / 60 % 60) as u8, (rest % 60) as u8, micros);
    match plain(value)? {
        Cell::Text(text) => Ok(text),
        _ => Err("a TIMESTAMP that is no time".to_owned()),
    }
}

/// The Gregorian date so many days after 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date(days: i64) -> (u16, u8, u8) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as u16, month as u8, day as u8)
}

fn number(text: &[u8]) -> Result<u64, String> {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| "a number that is none".to_owned())
}

fn bits_of(bits: &[u8]) -> Result<u64, String> {
    if bits.len() > 8 {
        return Err("a BIT of more than 64".to_owned());
    }
    Ok(bits.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn set_cell(bits: &[u8], labels: &[Cell]) -> Result<Cell, String> {
    let bits = bits.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let (mut text, mut bytes, mut charset) = (Vec::new(), Vec::new(), None);
    for (n, label) in labels.iter().enumerate().take(64).filter(|(n, _)| bits >> n & 1 == 1) {
        let own = match label {
            Cell::Text(text) => text.as_bytes(),
            Cell::Raw(of, bytes) => {
                charset.clone_from(of);
                bytes
            }
            _ => return Err(format!("a SET has no label {n}")),
        };
        for all in [&mut text, &mut bytes] {
            if !all.is_empty() {
                all.push(b',');
            }
            all.extend_from_slice(own);
        }
    }
    match charset {
        Some(_) => Ok(Cell::Raw(charset, bytes)),
        None => String::from_utf8(text).map(Cell::Text).map_err(|_| "labels that are no text".to_owned()),
    }
}

/// Charsets in which bytes below 128 are not always ASCII.
const NOT_ASCII: [&str; 7] = ["ucs2", "utf16", "utf16le", "utf32", "sjis", "cp932", "swe7"];

fn text_cell(bytes: Vec<u8>, charset: &Arc<str>) -> Cell {
    let readable = charset.starts_with("utf8") || bytes.is_ascii() && !NOT_ASCII.contains(&charset.as_ref());
    if !readable {
        return Cell::Raw(Some(Arc::clone(charset)), bytes);
    }
    String::from_utf8(bytes).map_or_else(|e| Cell::Raw(Some(Arc::clone(charset)), e.into_bytes()), Cell::Text)
}

/// Writes the JSON of a row.
pub(crate) fn write_json<'a>(out: &mut Vec<u8>, columns: impl Iterator<Item = (&'a str, &'a Cell)>) {
    out.push(b'{');
    for (n, (name, cell)) in columns.enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_json_text(out, name);
        out.push(b':');
        write_json_cell(out, cell);
    }
    out.push(b'}');
}

fn write_json_text(out: &mut Vec<u8>, text: &str) {
    // A text always has a JSON form, and memory takes it.
    let _ = serde_json::to_writer(out, text);
}

fn write_json_cell(out: &mut Vec<u8>, cell: &Cell) {
    let written = match cell {
        Cell::Null => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        Cell::Int(n) => serde_json::to_writer(&mut *out, n),
        Cell::UInt(n) => serde_json::to_writer(&mut *out, n),
        Cell::Double(n) => serde_json::to_writer(&mut *out, n),
        Cell::Text(text) => {
            write_json_text(out, text);
            Ok(())
        }
        Cell::Raw(charset, bytes) => {
            out.push(b'{');
            if let Some(charset) = charset {
                out.extend_from_slice(b"\"charset\":");
                write_json_text(out, charset);
                out.push(b',');
            }
            out.extend_from_slice(b"\"base64\":\"");
            out.extend_from_slice(BASE64.encode(bytes).as_bytes());
            out.extend_from_slice(b"\"}");
            Ok(())
        }
    };
    debug_assert!(written.is_ok());
}

/// The name of a row's key: of one column its text or bytes as they are, of several a JSON array.
pub(crate) fn key_name(key: &[&Cell]) -> Vec<u8> {
    if let [cell] = key {
        return match cell {
            Cell::Text(text) => text.clone().into_bytes(),
            Cell::Raw(_, bytes) => bytes.clone(),
            Cell::Null | Cell::Int(_) | Cell::UInt(_) | Cell::Double(_) => json_of(cell),
        };
    }
    let mut out = vec![b'['];
    for (n, cell) in key.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write_json_cell(&mut out, cell);
    }
    out.push(b']');
    out
}

fn json_of(cell: &Cell) -> Vec<u8> {
    let mut out = Vec::new();
    write_json_cell(&mut out, cell);
    out
}

/// Reads back a value of a row's JSON.
pub(crate) fn from_json(json: Json) -> Result<Cell, String> {
    Ok(match json {
        Json::Null => Cell::Null,
        Json::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), ..) => Cell::UInt(n),
            (_, Some(n), _) => Cell::Int(n),
            (_, _, Some(n)) => Cell::Double(n),
            _ => return Err("a number that is none".to_owned()),
        },
        Json::String(text) => Cell::Text(text),
        Json::Object(mut object) => {
            let Some(Json::String(bytes)) = object.remove("base64") else {
                return Err("an object without `base64`".to_owned());
            };
            let charset = match object.remove("charset") {
                None => None,
                Some(Json::String(name)) if name.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                    Some(Arc::from(name))
                }
                Some(_) => return Err("a `charset` that is none".to_owned()),
            };
            Cell::Raw(charset, BASE64.decode(bytes).map_err(|e| format!("`base64`: {e}"))?)
        }
        Json::Bool(_) | Json::Array(_) => return Err("a value of no column".to_owned()),
    })
}

/// Reads back the columns of a row's JSON, in their order.
pub(crate) fn columns_of(json: &[u8]) -> Result<Vec<(String, Cell)>, String> {
    let object: serde_json::Map<String, Json> =
        serde_json::from_slice(json).map_err(|e| format!("a row that is no JSON object: {e}"))?;
    object.into_iter().map(|(name, json)| Ok((name, from_json(json)?))).collect()
}

/// The key's values, of a table whose primary key has `columns`, each a text or not: `key_name` read backwards.
pub(crate) fn key_cells(name: &[u8], columns: &[KeyKind]) -> Result<Vec<Cell>, String> {
    if let [kind] = columns {
        return Ok(vec![match kind {
            KeyKind::Bytes => Cell::Raw(None, name.to_vec()),
            KeyKind::Text(charset) => text_cell(name.to_vec(), charset),
            KeyKind::Number => {
                from_json(serde_json::from_slice(name).map_err(|e| format!("a key that is no number: {e}"))?)?
            }
            KeyKind::Other => {
                Cell::Text(String::from_utf8(name.to_vec()).map_err(|_| "a key that is no text".to_owned())?)
            }
        }]);
    }
    let cells: Vec<Json> =
        serde_json::from_slice(name).map_err(|e| format!("a key that is no JSON array: {e}"))?;
    if cells.len() != columns.len() {
        return Err(format!("a key of {} columns where the table's has {}", cells.len(), columns.len()));
    }
    cells.into_iter().map(from_json).collect()
}

/// What a column of a primary key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// Integers, floats, YEAR, BIT.
    Number,
    /// Stored text of this charset.
    Text(Arc<str>),
    /// Bytes.
    Bytes,
    /// What is written as text: DECIMAL, dates and times; ENUM and SET.
    Other,
}

/// Writes a value as SQL. Times are in UTC, as is the session.
pub(crate) fn write_sql(out: &mut String, cell: &Cell) {
    let _ = match cell {
        Cell::Null => out.write_str("NULL"),
        Cell::Int(n) => write!(out, "{n}"),
        Cell::UInt(n) => write!(out, "{n}"),
        // With an exponent it is a double; without one -0.0 would lose its sign.
        Cell::Double(n) => write!(out, "{n:e}"),
        Cell::Text(text) => {
            out.push('\'');
            for c in text.chars() {
                match c {
                    '\'' => out.push_str("''"),
                    '\\' => out.push_str("\\\\"),
                    '\0' => out.push_str("\\0"),
                    c => out.push(c),
                }
            }
            out.push('\'');
            Ok(())
        }
        Cell::Raw(charset, bytes) => {
            if let Some(charset) = charset {
                out.push('_');
                out.push_str(charset);
                out.push(' ');
            }
            out.push_str("x'");
            for byte in bytes {
                for digit in [byte >> 4, byte & 15] {
                    out.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                }
            }
            out.push('\'');
            Ok(())
        }
    };
}

/// Writes a name of a table or column as SQL.
pub(crate) fn write_name(out: &mut String, name: &str) {
    out.push('`');
    out.push_str(&name.replace('`', "``"));
    out.push('`');
}

/// Writes names of columns as a list in SQL.
pub(crate) fn write_names<'a>(out: &mut String, names: impl Iterator<Item = &'a str>) {
    for (n, name) in names.enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write_name(out, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf8() -> Arc<str> {
        Arc::from("utf8mb4")
    }

    #[test]
    fn a_row_reads_back_from_its_json() {
        let cells = [
            Cell::Null,
            Cell::Int(-7),
            Cell::UInt(u64::MAX),
            Cell::Double(-0.0),
            Cell::Double(1e300),
            Cell::Text("o'hare \"\\ \u{1f600}\0\n".into()),
            Cell::Raw(None, vec![0, 255, 39]),
            Cell::Raw(Some(Arc::from("gbk")), vec![0xc4, 0xe3]),
        ];
        let names: Vec<String> = (0..cells.len()).map(|n| format!("c{n}")).collect();
        let mut json = Vec::new();
        write_json(&mut json, names.iter().map(String::as_str).zip(&cells));
        let read = columns_of(&json).unwrap();
        assert_eq!(read.iter().map(|(name, _)| name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        for ((_, read), cell) in read.iter().zip(&cells) {
            assert_eq!(read, cell);
        }
        assert!(matches!(read[3].1, Cell::Double(n) if n.is_sign_negative()));
    }

    proptest::proptest! {
        #[test]
        fn a_float_reads_back_bit_by_bit(bits: u64) {
            let float = f64::from_bits(bits);
            if float.is_finite() {
                let json = json_of(&Cell::Double(float));
                let read = from_json(serde_json::from_slice(&json).unwrap()).unwrap();
                let read = match read {
                    Cell::Double(read) => read,
                    Cell::UInt(n) => n as f64,
                    Cell::Int(n) => n as f64,
                    other => panic!("{other:?}"),
                };
                assert_eq!(read.to_bits(), bits);
                let mut sql = String::new();
                write_sql(&mut sql, &Cell::Double(float));
                assert_eq!(sql.parse::<f64>().unwrap().to_bits(), bits);
            }
        }

        #[test]
        fn nothing_from_the_log_makes_a_row_panic(json: Vec<u8>, key: Vec<u8>) {
            let _ = columns_of(&json);
            for kinds in [vec![KeyKind::Number], vec![KeyKind::Bytes], vec![KeyKind::Other, KeyKind::Number]] {
                let _ = key_cells(&key, &kinds);
            }
        }
    }

    #[test]
    fn values_are_written_as_sql_that_gives_them_back() {
        for (cell, sql) in [
            (Cell::Null, "NULL"),
            (Cell::Int(-7), "-7"),
            (Cell::Double(-0.0), "-0e0"),
            (Cell::Double(0.1), "1e-1"),
            (Cell::Text("it's \\ \0".into()), r"'it''s \\ \0'"),
            (Cell::Raw(None, vec![0, 0xaf]), "x'00af'"),
            (Cell::Raw(Some(Arc::from("gbk")), vec![0xc4]), "_gbk x'c4'"),
        ] {
            let mut out = String::new();
            write_sql(&mut out, &cell);
            assert_eq!(out, sql);
        }
        let mut out = String::new();
        write_name(&mut out, "a`b");
        assert_eq!(out, "`a``b`");
    }

    #[test]
    fn a_key_reads_back_from_its_name() {
        let text = KeyKind::Text(utf8());
        let cases = [
            (vec![Cell::Int(-3)], vec![KeyKind::Number], "-3"),
            (vec![Cell::UInt(u64::MAX)], vec![KeyKind::Number], "18446744073709551615"),
            (vec![Cell::Text("a,\"b".into())], vec![text.clone()], "a,\"b"),
            (vec![Cell::Raw(None, b"[1]".to_vec())], vec![KeyKind::Bytes], "[1]"),
            (vec![Cell::Text("1.50".into())], vec![KeyKind::Other], "1.50"),
            (vec![Cell::UInt(1), Cell::Text("x".into())], vec![KeyKind::Number, text], "[1,\"x\"]"),
        ];
        for (cells, kinds, name) in cases {
            let written = key_name(&cells.iter().collect::<Vec<_>>());
            assert_eq!(String::from_utf8_lossy(&written), name);
            assert_eq!(key_cells(&written, &kinds).unwrap(), cells);
        }
        assert!(key_cells(b"[1]", &[KeyKind::Number, KeyKind::Number]).is_err());
        assert!(key_cells(b"x", &[KeyKind::Number]).is_err());
    }

    #[test]
    fn times_are_in_utc() {
        for (text, expected) in [
            ("0", "0000-00-00"),
            ("1", "1970-01-01 00:00:01"),
            ("951782400", "2000-02-29"),
            ("2147483647.999999", "2038-01-19 03:14:07.999999"),
            ("4102444799", "2099-12-31 23:59:59"),
        ] {
            assert_eq!(utc(text.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn text_of_other_charsets_stays_as_it_is_stored() {
        let latin1: Arc<str> = Arc::from("latin1");
        assert_eq!(text_cell(b"abc".to_vec(), &latin1), Cell::Text("abc".into()));
        assert_eq!(text_cell(vec![0xe9], &latin1), Cell::Raw(Some(latin1), vec![0xe9]));
        let utf16: Arc<str> = Arc::from("utf16");
        assert_eq!(text_cell(b"\0a".to_vec(), &utf16), Cell::Raw(Some(utf16), b"\0a".to_vec()));
        // What a column of a utf8 charset should not hold, and may.
        assert!(matches!(text_cell(vec![0xff], &utf8()), Cell::Raw(Some(_), _)));
    }
}
