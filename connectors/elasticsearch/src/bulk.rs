//! Bulk requests: their lines, and what each item was answered.

use bytes::{BufMut as _, Bytes, BytesMut};
use causeway_core::Result;
use reqwest::Method;
use serde::Deserialize;

use crate::http::{Client, reason};
use crate::names::{Doc, in_url};

/// One document to be written.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) doc: Doc,
    /// Its content; `None`: it is deleted.
    pub(crate) source: Option<Bytes>,
    pub(crate) guard: Guard,
}

/// What the store takes it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The document's version is below this one, which it has then.
    Version(u64),
    /// Nothing was done to the document since this operation.
    Unchanged { seq_no: i64, primary_term: u64 },
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// It is there.
    Written,
    /// The store holds something else than the guard says; of a version, which it has.
    Conflict(Option<u64>),
    /// The server has no room, or may not write just now.
    Busy(String),
    /// It is the document's fault.
    Refused(String),
}

/// Bytes that an item's action line takes beside its names.
const ACTION_BYTES: usize = 150;

impl Item {
    /// About what it takes in a request.
    pub(crate) fn cost(&self) -> usize {
        let routing = self.doc.routing.as_ref().map_or(0, String::len);
        let names = self.doc.index.len() + self.doc.id.len() + routing;
        ACTION_BYTES + names + self.source.as_ref().map_or(0, Bytes::len)
    }

    /// A bulk request is cut at the ends of lines, so that a document that has some goes alone: it stays as it is.
    pub(crate) fn goes_alone(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.contains(&b'\n'))
    }

    fn write(&self, body: &mut BytesMut) {
        let mut action = serde_json::json!({"_index": self.doc.index, "_id": self.doc.id});
        if let Some(fields) = action.as_object_mut() {
            if let Some(routing) = &self.doc.routing {
                fields.insert("routing".to_owned(), routing.clone().into());
            }
            match self.guard {
                Guard::Version(version) => {
                    fields.insert("version".to_owned(), version.into());
                    fields.insert("version_type".to_owned(), "external".into());
                }
                Guard::Unchanged { seq_no, primary_term } => {
                    fields.insert("if_seq_no".to_owned(), seq_no.into());
                    fields.insert("if_primary_term".to_owned(), primary_term.into());
                }
            }
        }
        let op = if self.source.is_some() { "index" } else { "delete" };
        body.put_slice(serde_json::json!({ op: action }).to_string().as_bytes());
        body.put_u8(b'\n');
        if let Some(source) = &self.source {
            body.put_slice(source);
            body.put_u8(b'\n');
        }
    }
}

#[derive(Deserialize)]
struct Answered {
    items: Vec<std::collections::HashMap<String, Said>>,
}

/// What is said of one item.
#[derive(Debug, Deserialize)]
pub(crate) struct Said {
    pub(crate) status: u16,
    #[serde(default)]
    error: Option<serde_json::Value>,
    #[serde(rename = "_seq_no", default)]
    pub(crate) seq_no: i64,
    #[serde(rename = "_primary_term", default)]
    pub(crate) primary_term: u64,
}

impl Said {
    pub(crate) fn done(&self) -> Done {
        judge(self.status, self.error.as_ref())
    }
}

/// FF33: a request that succeeds says nothing of its items.
fn judge(status: u16, error: Option<&serde_json::Value>) -> Done {
    let kind =
        error.and_then(|error| error.get("type")).and_then(serde_json::Value::as_str).unwrap_or_default();
    let told = || error.map_or_else(|| format!("status {status}"), reason);
    match status {
        200..=299 => Done::Written,
        // A delete of what is not there.
        404 if error.is_none() => Done::Written,
        409 => Done::Conflict(current_version(&told())),
        429 | 500..=599 => Done::Busy(told()),
        _ if kind == "cluster_block_exception" => Done::Busy(told()),
        _ => Done::Refused(told()),
    }
}

/// Of `…, current version [7] is higher or equal to …`.
fn current_version(reason: &str) -> Option<u64> {
    let (_, rest) = reason.split_once("current version [")?;
    rest.split(']').next()?.parse().ok()
}

/// Sends a bulk request to `path`; what it says of each item, in their order. `None`: it was refused as a whole for what
/// is in it, as it is too large.
///
/// # Errors
///
/// As [`Client::send`]. Any of the items may have been written.
pub(crate) async fn send(
    client: &Client,
    action: &str,
    path: &str,
    body: Bytes,
    count: usize,
) -> Result<Option<Vec<Said>>> {
    let path = format!(
        "{path}?filter_path=items.*.status,items.*.error.type,items.*.error.reason,items.*._seq_no,items.*._primary_term"
    );
    let answer = client.send(action, Method::POST, &path, Some(body)).await?;
    if matches!(answer.status, 400 | 413) {
        return Ok(None);
    }
    let answered: Answered = answer.ok(action)?.parse(action)?;
    let said: Vec<Said> = answered.items.into_iter().filter_map(|item| item.into_values().next()).collect();
    if said.len() != count {
        return Err(
            client.garbled("answer", format!("{action}: {} items of {count} were answered", said.len()))
        );
    }
    Ok(Some(said))
}

/// Sends `items`, which none [goes alone](Item::goes_alone) of, as one request, or where that is refused as a whole, its
/// halves.
///
/// # Errors
///
/// As [`send`].
pub(crate) async fn write(client: &Client, items: &[&Item]) -> Result<Vec<Done>> {
    let mut body = BytesMut::with_capacity(items.iter().map(|item| item.cost()).sum());
    items.iter().for_each(|item| item.write(&mut body));
    let action = format!("write {} documents", items.len());
    if let Some(said) = send(client, &action, "/_bulk", body.freeze(), items.len()).await? {
        return Ok(said.iter().map(Said::done).collect());
    }
    match items.split_at(items.len() / 2) {
        ([], _) => {
            let reason =
                "the server takes no request of its size, or cannot read it: see http.max_content_length";
            Ok(vec![Done::Refused(reason.to_owned()); items.len()])
        }
        (first, second) => {
            let mut done = Box::pin(write(client, first)).await?;
            done.extend(Box::pin(write(client, second)).await?);
            Ok(done)
        }
    }
}

/// Writes one document by a request of its own.
///
/// # Errors
///
/// As [`Client::send`].
pub(crate) async fn write_alone(client: &Client, item: &Item) -> Result<Done> {
    let guard = match item.guard {
        Guard::Version(version) => format!("version={version}&version_type=external"),
        Guard::Unchanged { seq_no, primary_term } => {
            format!("if_seq_no={seq_no}&if_primary_term={primary_term}")
        }
    };
    let routing =
        item.doc.routing.as_ref().map_or(String::new(), |routing| format!("&routing={}", in_url(routing)));
    let path = format!("/{}/_doc/{}?{guard}{routing}", in_url(&item.doc.index), in_url(&item.doc.id));
    let method = if item.source.is_some() { Method::PUT } else { Method::DELETE };
    let answer = client.send("write a document", method, &path, item.source.clone()).await?;
    #[derive(Deserialize, Default)]
    struct Body {
        #[serde(default)]
        error: Option<serde_json::Value>,
    }
    let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
    Ok(judge(answer.status, body.error.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FF33.
    #[test]
    fn each_item_of_a_bulk_request_has_an_answer_of_its_own() {
        let said = |text: &str| serde_json::from_str::<Said>(text).unwrap().done();
        assert_eq!(said(r#"{"status":201,"_seq_no":4}"#), Done::Written);
        assert_eq!(said(r#"{"status":404}"#), Done::Written);
        let conflict = r#"{"status":409,"error":{"type":"version_conflict_engine_exception",
            "reason":"[a]: version conflict, current version [1000] is higher or equal to the one provided [7]"}}"#;
        assert_eq!(said(conflict), Done::Conflict(Some(1000)));
        let busy = r#"{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"full"}}"#;
        assert!(matches!(said(busy), Done::Busy(_)));
        let blocked = r#"{"status":403,"error":{"type":"cluster_block_exception","reason":"read-only"}}"#;
        assert!(matches!(said(blocked), Done::Busy(_)));
        let wrong = r#"{"status":400,"error":{"type":"document_parsing_exception","reason":"failed to parse field [n]"}}"#;
        assert!(matches!(said(wrong), Done::Refused(why) if why.contains("[n]")));
        let missing =
            r#"{"status":404,"error":{"type":"index_not_found_exception","reason":"no such index [x]"}}"#;
        assert!(matches!(said(missing), Done::Refused(_)));
    }

    #[test]
    fn a_document_keeps_its_bytes_and_one_with_line_ends_goes_alone() {
        let doc = Doc { index: "i".into(), id: "é\"".into(), routing: Some("r".into()) };
        let source = Bytes::from_static(b"{ \"a\":1.0,\"a\":1e400 }");
        let item = Item { doc, source: Some(source), guard: Guard::Version(512) };
        let mut body = BytesMut::new();
        item.write(&mut body);
        let text = String::from_utf8(body.to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "{ \"a\":1.0,\"a\":1e400 }");
        let action: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        let expected = serde_json::json!({"index": {"_index": "i", "_id": "é\"", "routing": "r", "version": 512,
            "version_type": "external"}});
        assert_eq!(action, expected);
        assert!(!item.goes_alone());
        assert!(Item { source: Some("{\n}".into()), ..item }.goes_alone());
    }
}
