use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::{Change, Key, Position, Result, Site, Source, Space, Target};

/// What a kind of store can and cannot do; decides which of the conformance suite's behaviours apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its stream goes on after a break from a position.
    pub resumes: bool,
    /// A transaction of several keys stays whole.
    pub groups: bool,
    /// Keys expire by themselves.
    pub expiry: bool,
    /// [`Target::watch`] is there.
    pub watch: bool,
    /// A snapshot that broke goes on from its restart point, as the stream does.
    pub resumes_snapshot: bool,
    /// Its changes are operations on elements of keys (INCR, HSET), not whole keys alone.
    pub operations: bool,
}

/// How a change depends on what was there before (DESIGN.md §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The result doesn't depend on what was there: SET, HSET f, a state.
    Absolute,
    /// Any order gives the same: INCRBY, PFADD.
    Commuting,
    /// All else: RPUSH, APPEND.
    Other,
    /// An observed delete: removes exactly what its origin had seen.
    Observed,
}

/// What conflicts: a key, or an element of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The key.
    pub key: Key,
    /// A hash field, a member, [`Unit::EXPIRE_AT`]; `None`: the whole key.
    pub element: Option<Bytes>,
}

impl Unit {
    /// The element that is a key's expire-at.
    pub const EXPIRE_AT: &[u8] = b"#ttl";

    /// Whether a change to one can be seen in the other.
    pub fn overlaps(&self, other: &Unit) -> bool {
        self.key == other.key
            && (self.element.is_none() || other.element.is_none() || self.element == other.element)
    }
}

/// A channel as its configuration says it, for the connector that opens it.
#[derive(Debug, Clone)]
pub struct ChannelSpec {
    /// The link's name: a part of marker names.
    pub link: String,
    /// The channel's name.
    pub channel: String,
    /// The names of the sites.
    pub sites: [String; 2],
    /// Of each site, whether what it writes is carried to its peer: `direction`.
    pub carries: [bool; 2],
    /// The table of `[[channel]]`, without the keys that are the daemon's own.
    pub table: toml::Table,
    /// The two sites' tables in it.
    pub site_tables: [toml::Table; 2],
    /// Secrets by `${NAME}` were filled in; `password_file` was not read yet.
    pub directory: std::path::PathBuf,
}

/// A channel's configuration is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.join("."))]
pub struct OpenError {
    /// The key at fault, from the channel's table on: `["limits", "apply_ops_per_second"]`.
    pub path: Vec<String>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// One line of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether the channel cannot run like this.
    pub fatal: bool,
    /// The site it is about, by name, if one.
    pub site: Option<String>,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// Keys that one site has and its peer lacks, as one look through the store found them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyAt {
    /// How many.
    pub count: u64,
    /// No key was counted twice; `false`: there were too many of them to be sure.
    pub exact: bool,
    /// The first of them, as many as were asked for.
    pub keys: Vec<Key>,
}

/// One channel's pair of store instances. Opening one connects to nothing.
#[async_trait]
pub trait Connector: Send + Sync {
    /// The `store` of the configuration.
    fn store(&self) -> &'static str;

    /// What the store can do.
    fn capability(&self) -> Capability;

    /// How much goes into one batch of a target where the channel's `batch` does not say: changes, and bytes.
    fn batch_max(&self) -> (usize, usize) {
        (512, 524_288)
    }

    /// The change stream of `site`'s instance.
    fn source(&self, site: Site) -> Box<dyn Source>;

    /// `site`'s instance as the target of its peer's changes.
    fn target(&self, site: Site) -> Box<dyn Target>;

    /// What `change` touches, and how. A change of the whole space gives a unit with an empty key name.
    fn units(&self, change: &Change) -> Vec<(Unit, Class)>;

    /// A digest of what a `read`, `state` or `put` says the whole key holds: the same for the same content,
    /// however it is encoded. `None` where that cannot be told (a piece of a value).
    fn content(&self, change: &Change) -> Option<u128> {
        if change.part.is_some() {
            return None;
        }
        Some(change.value.as_deref().map_or(0, xxhash_rust::xxh3::xxh3_128))
    }

    /// Whether `change` concerns something that there may be several of, so that a `read` says how many there are: one that
    /// went meanwhile must not be counted with them.
    fn is_counted(&self, change: &Change) -> bool {
        let _ = change;
        false
    }

    /// The same as `change` with a number that fits, where its site gave it one that can be in the way of those that
    /// the other site gave; `None`: it has no number.
    fn renumbered(&self, change: &Change) -> Option<Change> {
        let _ = change;
        None
    }

    /// Whether a change was refused for such a number.
    fn is_misnumbered(&self, reason: &str) -> bool {
        let _ = reason;
        false
    }

    /// Where `change`, which concerns the whole store, takes what `key` holds (`SWAPDB`); `None`: nowhere.
    fn moved(&self, change: &Change, key: &Key) -> Option<Key> {
        let _ = (change, key);
        None
    }

    /// What an application hands over by `line`, the JSON of one change (docs/INTAKE.md): a change of one key that does not
    /// depend on what the key holds. Its time is for the caller to tell.
    ///
    /// # Errors
    ///
    /// What is wrong with the line, and what is allowed.
    fn intake(&self, line: &[u8]) -> std::result::Result<Change, String> {
        let _ = line;
        Err(format!("the intake does not know the store {} yet: its stream is carried", self.store()))
    }

    /// Which store a position is of: what numbers its stream, unless that stream went over to another store.
    fn store_of(&self, position: &Position) -> Bytes {
        position.history.clone()
    }

    /// Whether the channel carries `key`.
    fn carries(&self, key: &Key) -> bool {
        let _ = key;
        true
    }

    /// What the channel does with a [`Op::Ddl`](crate::Op::Ddl).
    fn ddl_policy(&self, change: &Change) -> DdlPolicy {
        let _ = change;
        DdlPolicy::Hold
    }

    /// Whether a [`Op::Ddl`](crate::Op::Ddl) takes away what the store holds (`FLUSHALL`, `TRUNCATE`): what it had not seen
    /// is brought back then, and where it is dropped, its origin gets back what it lost. Else it only changes what tables
    /// are.
    fn empties(&self, change: &Change) -> bool {
        let _ = change;
        true
    }

    /// Whether one that empties takes `key`.
    fn takes(&self, change: &Change, key: &Key) -> bool {
        let _ = (change, key);
        true
    }

    /// Where `change`, of more than one key, leaves other content than before; [`Space::Whole`]: anywhere.
    fn spaces(&self, change: &Change) -> Vec<Space> {
        let _ = change;
        vec![Space::Whole]
    }

    /// What an operator is shown of a [`Op::Ddl`](crate::Op::Ddl): the command's name, or the statement.
    fn shown(&self, change: &Change) -> String {
        let _ = change;
        "a change of the whole store".to_owned()
    }

    /// Whether a [`Op::Ddl`](crate::Op::Ddl) would reach data that the channel does not carry. It is never
    /// applied then: it can only be dropped.
    fn reaches_beyond(&self, change: &Change) -> bool {
        let _ = change;
        false
    }

    /// Looks at the servers of `sites`, and, of both, at the two together; says what stands in the way: empty if
    /// nothing does. A server that cannot be reached is an error.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`.
    async fn check(&self, sites: &[Site]) -> Result<Vec<Finding>>;

    /// Counts the keys that `site` has and its peer lacks, of those that the channel carries, and lists the
    /// first `listed_max` of them. Only reads, and holds a bounded part of the keys; takes as long as listing
    /// all of `site`'s keys does. Keys written meanwhile may count or not. `None`: not built for this store.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`.
    async fn only_at(&self, site: Site, listed_max: usize) -> Result<Option<OnlyAt>> {
        let _ = (site, listed_max);
        Ok(None)
    }

    /// Takes everything that is ours out of `site`'s instance: markers, tokens, unfinished pieces. Returns
    /// how many keys it removed.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`.
    async fn cleanup(&self, site: Site) -> Result<u64>;
}

/// What a channel does with a change of more than keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DdlPolicy {
    /// The target does it, too.
    Apply,
    /// An operator says whether it does.
    Hold,
    /// It doesn't.
    Ignore,
}

/// Opens a channel's connector; the daemon's list holds one of these for each kind of store.
pub type Open = fn(&ChannelSpec) -> std::result::Result<Arc<dyn Connector>, OpenError>;
