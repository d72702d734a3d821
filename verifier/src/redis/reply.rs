//! Taking replies apart. A reply of an unexpected shape is an empty or absent one: it gives a state that
//! does not last, and so shows as a difference or as undecided, never as equal.

use redis::Value;

/// A text of the reply; numbers are none.
pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// A number, also one written as text.
pub(super) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        other => std::str::from_utf8(bytes(other)?).ok()?.parse().ok(),
    }
}

/// A list's items.
pub(super) fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) | Value::Set(items) => Some(items),
        _ => None,
    }
}

/// A cursor and the page that goes with it, as SCAN and its kin answer.
pub(super) fn scanned(value: Value) -> Option<(u64, Vec<Value>)> {
    let [cursor, page] = <[Value; 2]>::try_from(list(value)?).ok()?;
    let cursor = std::str::from_utf8(bytes(&cursor)?).ok()?.parse().ok()?;
    Some((cursor, list(page)?))
}

/// What stands after `name` in a reply of names and values.
pub(super) fn named<'a>(items: &'a [Value], name: &str) -> Option<&'a Value> {
    items.chunks_exact(2).find_map(|pair| match pair {
        [key, value] if bytes(key) == Some(name.as_bytes()) => Some(value),
        _ => None,
    })
}

/// The bytes that the texts of a reply take.
pub(super) fn weight(value: &Value) -> usize {
    match value {
        Value::Array(items) | Value::Set(items) => items.iter().map(weight).sum(),
        other => bytes(other).map_or(8, |b| b.len() + 24),
    }
}
