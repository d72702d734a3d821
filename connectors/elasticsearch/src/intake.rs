//! A change that an application hands over, as JSON (docs/INTAKE.md): `{"index": "push-1", "id": "7", "source": {…}}`, with
//! `"routing"` where the document has one, and `"delete": true` in place of the source.

use bytes::Bytes;
use causeway_core::{Change, Op, Position};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::names;

/// Bytes of an id, of a routing: what the server takes.
const ID_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    index: String,
    id: String,
    routing: Option<String>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(default)]
    delete: bool,
}

/// Reads a line; the source stays the bytes that it is.
///
/// # Errors
///
/// It is no such JSON, or no such document can be.
pub(crate) fn change(line: &[u8]) -> Result<Change, String> {
    let form =
        "a line is {\"index\": …, \"id\": …, \"source\": {…}} or {\"index\": …, \"id\": …, \"delete\": true}";
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| format!("{error}; {form}"))?;
    for (what, text) in [("id", Some(&line.id)), ("routing", line.routing.as_ref())] {
        let length = text.map_or(1, String::len);
        if length == 0 || length > ID_MAX {
            return Err(format!("the {what} has {length} bytes, allowed are 1 to {ID_MAX}"));
        }
    }
    let (op, value) = match (line.source, line.delete) {
        (Some(source), false) if source.get().starts_with('{') => {
            (Op::Put, Some(Bytes::copy_from_slice(source.get().as_bytes())))
        }
        (Some(_), false) => return Err(format!("the source is no JSON object; {form}")),
        (None, true) => (Op::Delete, None),
        _ => return Err(form.to_owned()),
    };
    let key = names::key(&line.index, &line.id, line.routing.as_deref());
    Ok(Change::captured(op, key, value, Position::default(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_stays_byte_for_byte() {
        let line = r#"{"index":"push-1","id":"7","routing":"r","source":{"n": 1.10,  "a":[ ]}}"#;
        let put = change(line.as_bytes()).unwrap();
        assert_eq!((put.op, put.value.as_deref()), (Op::Put, Some(&br#"{"n": 1.10,  "a":[ ]}"#[..])));
        assert_eq!(put.key, names::key("push-1", "7", Some("r")));
        let gone = change(br#"{"index":"push-1","id":"7","delete":true}"#).unwrap();
        assert_eq!((gone.op, gone.value, gone.key), (Op::Delete, None, names::key("push-1", "7", None)));
    }

    #[test]
    fn what_is_no_document_says_why() {
        let long = format!(r#"{{"index":"i","id":"{}","delete":true}}"#, "x".repeat(513));
        for (line, part) in [
            ("{", "EOF"),
            (r#"{"index":"i","source":{}}"#, "missing field `id`"),
            (r#"{"index":"i","id":"1"}"#, "a line is"),
            (r#"{"index":"i","id":"1","source":{},"delete":true}"#, "a line is"),
            (r#"{"index":"i","id":"1","source":[1]}"#, "no JSON object"),
            (r#"{"index":"i","id":"1","_source":{}}"#, "unknown field"),
            (r#"{"index":"i","id":"","delete":true}"#, "1 to 512"),
            (r#"{"index":"i","id":"1","routing":"","delete":true}"#, "routing"),
            (long.as_str(), "513 bytes"),
        ] {
            let error = change(line.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
