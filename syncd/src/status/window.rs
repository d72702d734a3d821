//! What was written in a stretch of time, as the logs name it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::KeyAt;

/// A line of the answer of `GET /v1/channels/{name}/written`. The last one is an [`End`](WrittenLine::End) or an
/// [`Error`](WrittenLine::Error); an answer that ends otherwise was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WrittenLine {
    /// A key that `site` wrote; may come more than once.
    Key {
        /// Whose log names it.
        site: String,
        /// Which.
        #[serde(flatten)]
        at: KeyAt,
    },
    /// `site` wrote something that has no name: any key of that table, or where there is none of the whole channel.
    Whole {
        /// Whose log names it.
        site: String,
        /// Always.
        whole: bool,
        /// The table, as `schema.table`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        table: Option<String>,
    },
    /// That was all.
    End {
        /// By site: before which time everything that its store did was told, RFC 3339; `None`: not known.
        end: BTreeMap<String, Option<String>>,
    },
    /// The logs do not say it all.
    Error {
        /// Why.
        error: String,
        /// The logs no longer hold it, and never will again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        gone: bool,
    },
}

/// Which site is right about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The one with the newest write that a log still holds.
    Newest,
    /// The one that serves its tenant.
    Owner,
}

/// The body of `POST /v1/channels/{name}/whose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhoseQuery {
    /// Which site is right.
    pub by: By,
    /// At most [`KEYS_MAX`](WhoseQuery::KEYS_MAX).
    pub keys: Vec<KeyAt>,
}

impl WhoseQuery {
    /// Of one request, at the most: the logs are read through for each.
    pub const KEYS_MAX: usize = 100_000;
    /// How large its body may be.
    pub const BODY_MAX: usize = 64 << 20;
}

/// Which site is right about each key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// By the order of the keys asked for; `None`: no log names the key, or nobody serves its tenant.
    pub whose: Vec<Option<String>>,
}
