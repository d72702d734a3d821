//! The configuration file (DESIGN.md §10): read, checked and answered before anything connects.
//!
//! `file` holds the keys as they stand in the file, and with them the JSON schema; `load` reads and
//! checks; this module holds what the rest of the daemon sees. What only one kind of store knows (its
//! URLs, patterns and limits) is passed on to its connector unread.

mod channel;
mod endpoints;
mod env;
mod error;
mod file;
mod load;
mod log;
mod places;
mod schema;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use causeway_core::{ChannelSpec, Connector, Key, Pattern, Site, Space};
use schemars::JsonSchema;
use serde::Deserialize;

pub use error::ConfigError;
pub use schema::json_schema;
pub use units::{format_bytes, format_duration, parse_duration};

use crate::log::{KafkaCluster, KafkaOptions};
use crate::owners::Owners;
use crate::registry::Registry;
use places::Places;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, as it was named.
    pub path: PathBuf,
    /// The link's name.
    pub link: String,
    /// The sites' names; the first one is the authority.
    pub sites: [String; 2],
    /// The change log.
    pub log: LogConfig,
    /// The conflict log.
    pub conflicts: ConflictsConfig,
    /// Of the whole process.
    pub limits: Limits,
    /// The HTTP interface.
    pub api: ApiConfig,
    /// At least one, names unique.
    pub channels: Vec<Channel>,
    places: Places,
    filled: env::Filled,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// The embedded log's folder, and what is kept beside any log; relative to the working directory like
    /// [`Config::path`], or absolute.
    pub dir: PathBuf,
    /// What is applied is kept this much longer at least, for a target that comes back older than it was.
    pub age_min: Duration,
    /// Where the records are.
    pub store: LogStore,
}

/// The kind of log.
#[derive(Debug, Clone, PartialEq)]
pub enum LogStore {
    /// In the folder.
    Embedded {
        /// Bytes on disk over which capture waits.
        size_max: u64,
    },
    /// In each site's Kafka.
    Kafka {
        /// By site.
        clusters: BTreeMap<String, KafkaCluster>,
        /// Without what the daemon's budget decides.
        options: KafkaOptions,
    },
}

/// `[conflicts]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConflictsConfig {
    /// Bytes on disk at the most.
    pub size_max: u64,
    /// How long an entry is kept at the most.
    pub age_max: Duration,
    /// Entries hold values, not only digests.
    pub values: bool,
}

/// `[limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, of which the buffers get their shares (docs/ARCHITECTURE.md, section 7).
    pub memory: u64,
}

/// `[api]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where the daemon listens.
    pub listen: SocketAddr,
    /// Where the verifier finds each site's daemon, if not at `listen`.
    pub urls: BTreeMap<String, String>,
}

/// One `[[channel]]`.
#[derive(Clone)]
pub struct Channel {
    /// Unique in the link.
    pub name: String,
    /// One of the registry's.
    pub store: String,
    /// Which way changes go.
    pub direction: Direction,
    /// Whose existing data is copied.
    pub snapshot: SnapshotOf,
    /// Wins for a key that both sites had before and nobody writes. `None` only if nothing is copied.
    pub existing: Option<Site>,
    /// Who wins of two concurrent writes.
    pub conflict: Conflict,
    /// A key that one site kept alive by EXPIRE while the other let it expire lives (DESIGN.md §5).
    pub keep_alive: bool,
    /// How much one transaction of the applier holds.
    pub batch: BatchLimits,
    /// What applications hand over.
    pub intake: Option<Arc<Intake>>,
    /// Where a key names its tenant: `push:{tenant}:*`.
    pub tenant_key: Option<String>,
    /// For the connector; holds secrets, and is therefore not in `Debug`.
    pub spec: ChannelSpec,
}

/// Leaves out what may hold secrets.
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("name", &self.name)
            .field("store", &self.store)
            .field("direction", &self.direction)
            .field("snapshot", &self.snapshot)
            .field("existing", &self.existing)
            .field("conflict", &self.conflict)
            .field("keep_alive", &self.keep_alive)
            .field("batch", &self.batch)
            .field("intake", &self.intake)
            .field("tenant_key", &self.tenant_key)
            .finish_non_exhaustive()
    }
}

/// Which way a channel carries changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Both ways.
    Both,
    /// Only what this site writes, to its peer.
    From(Site),
}

impl Direction {
    /// Whether what `origin` writes is carried to its peer.
    pub fn carries(self, origin: Site) -> bool {
        match self {
            Direction::Both => true,
            Direction::From(site) => site == origin,
        }
    }

    /// The sites whose changes are carried, the first one first.
    pub fn origins(self) -> impl Iterator<Item = Site> {
        Site::BOTH.into_iter().filter(move |site| self.carries(*site))
    }
}

/// Whose existing data is copied to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotOf {
    /// Both sites' to each other.
    Both,
    /// One site's.
    One(Site),
    /// Nobody's.
    None,
}

impl SnapshotOf {
    /// Whether `site`'s existing data is copied.
    pub fn names(self, site: Site) -> bool {
        match self {
            SnapshotOf::Both => true,
            SnapshotOf::One(one) => one == site,
            SnapshotOf::None => false,
        }
    }
}

/// Who wins of two concurrent writes to one unit.
#[derive(Debug, Clone, Default)]
pub enum Conflict {
    /// The higher hlc.
    #[default]
    Newest,
    /// The site that owns the key; the higher hlc for a key that nobody owns.
    Owner(Arc<Owners>),
}

impl Conflict {
    /// Who owns what, where that decides.
    pub fn owners(&self) -> Option<&Arc<Owners>> {
        match self {
            Conflict::Newest => None,
            Conflict::Owner(owners) => Some(owners),
        }
    }
}

/// How much one transaction of the applier holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Changes; at least 1. `None`: what the store takes best.
    pub items_max: Option<usize>,
    /// Bytes; at least 1. A single larger change still goes, alone. `None`: what the store takes best.
    pub bytes_max: Option<usize>,
}

/// Of a channel, what is handed over by applications and not told by the stores' streams (docs/INTAKE.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intake {
    /// Who writes it at its own site.
    pub deliver: Deliver,
    /// Patterns of keys, or of the tables or indices that they are in; empty: all.
    pub keys: Vec<Pattern>,
    /// Changes that may wait for a site's own store; at least 1.
    pub waiting_max: usize,
    /// Idempotency keys that are remembered.
    pub remembered: usize,
}

impl Intake {
    /// Whether `key` is one of those; what has no name is none.
    pub fn takes(&self, key: &Key) -> bool {
        let name = match &key.space {
            Space::Whole | Space::Db(_) => &key.name,
            Space::Table(name) | Space::Index(name) | Space::Bucket(name) => name,
        };
        let is_named = || self.keys.is_empty() || self.keys.iter().any(|pattern| pattern.matches(name));
        !key.name.is_empty() && is_named()
    }
}

/// Who writes into its own site's store what an application hands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deliver {
    /// The application itself, before it hands it over.
    Peer,
    /// Causeway.
    Both,
}

impl Config {
    /// Reads and checks the file at `path`, with the stores of [`Registry::built_in`].
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it: where, which key, and what is allowed.
    pub fn load(path: impl AsRef<Path>) -> Result<Config, ConfigError> {
        Config::load_with(path.as_ref(), &Registry::built_in())
    }

    /// As [`load`](Config::load), with other stores: tests bring the one in memory.
    ///
    /// # Errors
    ///
    /// As [`load`](Config::load).
    pub fn load_with(path: &Path, registry: &Registry) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::whole_file(path, format!("cannot be read: {error}")))?;
        load::load(path, &text, registry, &env::process)
    }

    /// Opens every channel's connector, in the order of [`Config::channels`]; connects to nothing.
    ///
    /// # Errors
    ///
    /// A channel's own keys are wrong: where, and what is allowed.
    pub fn open(&self, registry: &Registry) -> Result<Vec<Arc<dyn Connector>>, ConfigError> {
        load::open(self, registry)
    }

    /// The channel of that name, and its place in [`Config::channels`].
    pub fn channel(&self, name: &str) -> Option<(usize, &Channel)> {
        self.channels.iter().enumerate().find(|(_, channel)| channel.name == name)
    }

    /// The name of `site`.
    pub fn site_name(&self, site: Site) -> &str {
        &self.sites[site.index()]
    }
}
