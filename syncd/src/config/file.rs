//! The keys as they stand in the file. The doc comments are the descriptions in the JSON schema.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Deliver;
use super::units::{Millis, Size};

/// Causeway's configuration: the link between two sites and its channels.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The two sites.
    pub(super) link: LinkTable,
    /// The change log.
    #[serde(default)]
    pub(super) log: LogTable,
    /// The conflict log: concurrent writes and how they were decided.
    #[serde(default)]
    pub(super) conflicts: ConflictsTable,
    /// Limits of the whole process.
    #[serde(default)]
    pub(super) limits: LimitsTable,
    /// The HTTP interface: /v1/…, /metrics, /healthz, /readyz, the page at /.
    #[serde(default)]
    pub(super) api: ApiTable,
    /// One pair of store instances each.
    #[schemars(length(min = 1))]
    pub(super) channel: Vec<ChannelTable>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkTable {
    /// A part of marker and topic names: 1 to 64 letters, digits, `-` and `_`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub(super) name: String,
    /// Exactly two names. The first site is the authority where order cannot decide.
    #[schemars(length(equal = 2))]
    pub(super) sites: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogTable {
    /// `embedded` (one process, one folder) or `kafka`.
    pub(super) kind: LogKind,
    /// The folder of the embedded log, relative to this file. With Kafka: of what is kept beside the log
    /// (dead letters, conflicts, pauses).
    pub(super) dir: String,
    /// Of the embedded log: size on disk over which capture waits for the appliers; 10GiB if left out.
    pub(super) size_max: Option<Size>,
    /// How long applied changes are kept at least, for a target that comes back older than it was.
    pub(super) age_min: Millis,
    /// Of Kafka: a site's bootstrap brokers, by site, several with commas between them; the same ones for both
    /// sites share one cluster.
    pub(super) brokers: BTreeMap<String, String>,
    /// Of Kafka: replicas of a topic that is created; 3 if left out.
    #[schemars(range(min = 1))]
    pub(super) replication: Option<i64>,
    /// Of Kafka: `min.insync.replicas` of a topic that is created; 2 if left out, 1 where `replication` is 1.
    #[schemars(range(min = 1))]
    pub(super) min_insync: Option<i64>,
    /// Of Kafka: how batches are compressed; `lz4` if left out.
    pub(super) compression: Option<Compression>,
    /// Of Kafka: how long the producer waits for more before it sends; not at all if left out.
    pub(super) linger: Option<Millis>,
    /// Of Kafka: about the largest batch for one partition; 1MB if left out.
    pub(super) batch_bytes: Option<Size>,
    /// Of Kafka: a larger record is cut into pieces; 900KB if left out, 64KB at least. Below the topic's
    /// `max.message.bytes`.
    pub(super) record_bytes_max: Option<Size>,
    /// Of Kafka: more settings of its clients, by librdkafka's names: `"security.protocol" = "SASL_SSL"`.
    pub(super) client: BTreeMap<String, Setting>,
    /// The same for one site's Kafka, by site; goes before `client`.
    pub(super) clients: BTreeMap<String, BTreeMap<String, Setting>>,
}

impl Default for LogTable {
    fn default() -> Self {
        LogTable {
            kind: LogKind::Embedded,
            dir: "data/log".to_owned(),
            size_max: None,
            age_min: Millis(3_600_000),
            brokers: BTreeMap::new(),
            replication: None,
            min_insync: None,
            compression: None,
            linger: None,
            batch_bytes: None,
            record_bytes_max: None,
            client: BTreeMap::new(),
            clients: BTreeMap::new(),
        }
    }
}

/// A setting of a client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Setting {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Setting {
    pub(super) fn text(&self) -> String {
        match self {
            Setting::Text(text) => text.clone(),
            Setting::Number(number) => number.to_string(),
            Setting::Flag(flag) => flag.to_string(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Compression {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogKind {
    Embedded,
    Kafka,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConflictsTable {
    /// Size on disk, 1MiB at least; the oldest entries go first.
    pub(super) size_max: Size,
    /// Older entries go, 1h at least.
    pub(super) age_max: Millis,
    /// Whether entries hold both writes' values, not only their digests.
    pub(super) values: bool,
}

impl Default for ConflictsTable {
    fn default() -> Self {
        ConflictsTable { size_max: Size(64 << 20), age_max: Millis(30 * 86_400_000), values: false }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    /// Sizes the buffers that grow with it, 32MiB at least; docs/ARCHITECTURE.md lists all, in section 7.
    pub(super) memory: Size,
}

impl Default for LimitsTable {
    fn default() -> Self {
        LimitsTable { memory: Size(512 << 20) }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApiTable {
    /// IP address and port; `syncd run --listen` overrides it.
    pub(super) listen: String,
    /// Where each site's daemon is found by others, by site: `http://host:port`.
    pub(super) urls: BTreeMap<String, String>,
}

impl Default for ApiTable {
    fn default() -> Self {
        ApiTable { listen: "127.0.0.1:7400".to_owned(), urls: BTreeMap::new() }
    }
}

/// The keys of a channel that are the daemon's own; all others, and the two sites' tables, are the store's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = super::schema::add_store_keys)]
pub(super) struct ChannelTable {
    /// Unique in the link: 1 to 64 letters, digits, `-` and `_`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub(super) name: String,
    /// The kind of store.
    pub(super) store: String,
    /// `both`, or one way as `dc->cloud`.
    pub(super) direction: String,
    /// Whose existing data is copied: a site's name, `both` or `none`.
    pub(super) snapshot: String,
    /// A site that `snapshot` names: wins for a key that both had before and nobody writes. Left out: the
    /// one that `snapshot` names, the link's first of both.
    pub(super) existing: Option<String>,
    /// Who wins of two concurrent writes: the newest, or the site that owns the key's tenant.
    #[serde(default)]
    pub(super) conflict: ConflictKey,
    /// A key that one site kept alive by EXPIRE while the other let it expire lives.
    #[serde(default = "yes")]
    pub(super) keep_alive: bool,
    /// How much one transaction of the applier holds.
    #[serde(default)]
    pub(super) batch: BatchTable,
    /// What applications hand over, instead of what the stores' streams tell (docs/INTAKE.md).
    pub(super) intake: Option<IntakeTable>,
    /// How a key names its tenant.
    pub(super) tenant: Option<TenantTable>,
    /// For `conflict = "owner"`: a file of `tenant,site` lines, relative to the configuration. Of a tenant that is not
    /// in it the later write wins.
    pub(super) owners_file: Option<String>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ConflictKey {
    #[default]
    Newest,
    Owner,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchTable {
    /// Changes, 1 or more; left out: 512, one way to Elasticsearch 2048.
    #[schemars(range(min = 1))]
    pub(super) items_max: Option<i64>,
    /// Bytes, 1 or more; left out: 524288, one way to Elasticsearch 1048576.
    #[schemars(range(min = 1))]
    pub(super) bytes_max: Option<i64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IntakeTable {
    /// `both`: the application hands a change over and writes nothing itself. `peer`: it has written it into its own
    /// site's store already.
    pub(super) deliver: Deliver,
    /// Patterns of what is handed over: keys of Redis, indices of Elasticsearch. Left out: all that the channel carries. The
    /// stores' streams tell of the rest.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub(super) keys: Option<Vec<String>>,
    /// Changes that may wait for a site's own store; when so many do, it takes no more.
    #[serde(default = "waiting_max")]
    #[schemars(range(min = 1))]
    pub(super) waiting_max: i64,
    /// Idempotency keys that are remembered for each site, the newest ones.
    #[serde(default = "remembered")]
    #[schemars(range(min = 0))]
    pub(super) remembered: i64,
}

fn waiting_max() -> i64 {
    100_000
}

fn remembered() -> i64 {
    100_000
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantTable {
    /// A key pattern with `{tenant}` in it once: `push:{tenant}:*`.
    pub(super) key: String,
}

/// Those of [`ChannelTable`].
pub(super) const CHANNEL_KEYS: [&str; 11] = [
    "name",
    "store",
    "direction",
    "snapshot",
    "existing",
    "conflict",
    "keep_alive",
    "batch",
    "intake",
    "tenant",
    "owners_file",
];
