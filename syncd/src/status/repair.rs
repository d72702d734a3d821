//! Keys that are to be at one site as they are at the other.

use bytes::Bytes;
use causeway_core::{Key, Space};
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
    /// Its name, as the log has it.
    pub key: KeyText,
    /// The database it is in, for stores that have numbered ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db: Option<u32>,
    /// The table that it is a row of, as `schema.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
}

impl KeyAt {
    /// As it is told.
    pub fn of(key: &Key) -> KeyAt {
        let (db, table) = match &key.space {
            Space::Db(db) => (Some(*db), None),
            Space::Table(table) => (None, Some(String::from_utf8_lossy(table).into_owned())),
            Space::Whole | Space::Index(_) | Space::Bucket(_) => (None, None),
        };
        KeyAt { key: KeyText::from(&key.name[..]), db, table }
    }

    /// `None`: it has no name.
    pub fn key(&self) -> Option<Key> {
        let name = Bytes::from(self.key.bytes().filter(|name| !name.is_empty())?);
        let space = match (self.db, &self.table) {
            (Some(db), _) => Space::Db(db),
            (None, Some(table)) => Space::Table(table.clone().into()),
            (None, None) => Space::Whole,
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
