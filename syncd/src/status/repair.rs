//! Keys that are to be at one site as they are at the other.

use bytes::Bytes;
use causeway_core::{Key, Space, document};
use serde::{Deserialize, Serialize};

use super::KeyText;

/// The body of `POST /v1/channels/{name}/repair`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairQuery {
    /// The site whose states are carried to the other one.
    pub from: String,
    /// At most [`KEYS_MAX`](RepairQuery::KEYS_MAX).
    pub keys: Vec<KeyAt>,
}

impl RepairQuery {
    /// Of one request, at the most.
    pub const KEYS_MAX: usize = 1_000;
}

/// A key, and where it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyAt {
    /// Its name, as the log has it; of a document its id.
    pub key: KeyText,
    /// The database it is in, for stores that have numbered ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<u32>,
    /// The table that it is a row of, as `schema.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The index that it is a document of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// The document's routing, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<String>,
}

impl KeyAt {
    /// As it is told.
    pub fn of(key: &Key) -> KeyAt {
        let mut at =
            KeyAt { key: KeyText::from(&key.name[..]), db: None, table: None, index: None, routing: None };
        let text = |name: &Bytes| Some(String::from_utf8_lossy(name).into_owned());
        match &key.space {
            Space::Db(db) => at.db = Some(*db),
            Space::Table(table) => at.table = text(table),
            Space::Index(index) => {
                at.index = text(index);
                if let Some((id, routing)) = document::parts(&key.name) {
                    at.key = KeyText::Text(id.to_owned());
                    at.routing = routing.map(str::to_owned);
                }
            }
            Space::Whole | Space::Bucket(_) => {}
        }
        at
    }

    /// `None`: it has no name, or only a document's routing says where it is.
    pub fn key(&self) -> Option<Key> {
        let name = Bytes::from(self.key.bytes().filter(|name| !name.is_empty())?);
        let KeyAt { db, table, index, routing, .. } = self;
        let (space, name) = match (db, table, index) {
            (None, None, Some(index)) => {
                let name = document::name(std::str::from_utf8(&name).ok()?, routing.as_deref());
                (Space::Index(index.clone().into()), name)
            }
            _ if routing.is_some() => return None,
            (Some(db), ..) => (Space::Db(*db), name),
            (None, Some(table), _) => (Space::Table(table.clone().into()), name),
            (None, None, None) => (Space::Whole, name),
        };
        Some(Key { space, name })
    }
}

/// How many keys were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// Their states are in the log.
    pub asked: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_told_by_its_id_its_index_and_its_routing() {
        for (id, routing, json) in [
            ("7", None, r#"{"key":"7","index":"push-1"}"#),
            ("7", Some("r"), r#"{"key":"7","index":"push-1","routing":"r"}"#),
            ("a\0", None, r#"{"key":"a\u0000","index":"push-1"}"#),
        ] {
            let key = Key { space: Space::Index("push-1".into()), name: document::name(id, routing) };
            assert_eq!(serde_json::to_string(&KeyAt::of(&key)).unwrap(), json);
            assert_eq!(serde_json::from_str::<KeyAt>(json).unwrap().key(), Some(key));
        }
        for none in [
            r#"{"key":"","index":"i"}"#,
            r#"{"key":"a","routing":"r"}"#,
            r#"{"key":"a","db":0,"routing":"r"}"#,
            r#"{"key":{"base64":"/w=="},"index":"i"}"#,
        ] {
            assert_eq!(serde_json::from_str::<KeyAt>(none).unwrap().key(), None, "{none}");
        }
    }
}
