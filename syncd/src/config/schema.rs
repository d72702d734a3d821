//! The JSON schema of the file, for editors: `configs/syncd.schema.json`.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::file::File;

/// The schema of the configuration file, as text that ends with a newline. `configs/syncd.schema.json`
/// holds it, and a test compares the two.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(File);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

/// What stores know besides the daemon's keys. For editors only: the connector is what checks.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes keys that connectors read")]
struct StoreKeys {
    /// Redis: patterns of the keys that are carried, as KEYS takes them. Left out: all.
    #[schemars(length(min = 1))]
    keys: Option<Vec<String>>,
    /// Redis: of those, patterns of the keys that are not carried.
    #[schemars(length(min = 1))]
    except: Option<Vec<String>>,
    /// Redis: numbers of the databases that are carried. Left out: all.
    #[schemars(length(min = 1))]
    dbs: Option<Vec<u32>>,
    /// Redis: `refuse` to start unless both servers are noeviction, or `carry` evictions as deletes.
    evictions: Option<Evictions>,
    /// MySQL: patterns of `schema.table` that are carried.
    #[schemars(length(min = 1))]
    tables: Option<Vec<String>>,
    /// MySQL: of those, patterns of tables that are not carried. Elasticsearch: the same of indices.
    #[schemars(length(min = 1))]
    exclude: Option<Vec<String>>,
    /// Elasticsearch: patterns of names of indices that are carried.
    #[schemars(length(min = 1))]
    indices: Option<Vec<String>>,
    /// Elasticsearch: whether settings, mappings and aliases go ahead of the documents; `apply` unless set.
    definitions: Option<Definitions>,
    /// Elasticsearch: how often a site is asked for what is new, such as `500ms`; `1s` unless set.
    poll: Option<String>,
    /// Elasticsearch: how often ids are listed, which is how deletes are found, or `never`; `60s` unless set.
    deletes: Option<String>,
    /// Elasticsearch: ids that are held for that; 1000000 unless set. With more documents deletes are not found.
    ids_max: Option<u64>,
    /// Elasticsearch: what the sites' clocks may differ; `5s` unless set.
    clock_offset: Option<String>,
    /// Elasticsearch: how documents are written.
    bulk: Option<Bulk>,
    /// MySQL: what is done with changes of a table's definition; left out: what only adds is applied, all else held.
    ddl: Option<Ddl>,
    /// How fast a snapshot is read and changes are applied.
    limits: Option<StoreLimits>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes keys that connectors read")]
enum Ddl {
    Apply,
    Hold,
    Ignore,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes keys that connectors read")]
enum Definitions {
    Apply,
    Ignore,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "describes keys that connectors read")]
struct Bulk {
    /// Bytes of a request; 5242880 unless set. A larger document goes alone.
    #[schemars(range(min = 1024))]
    bytes_max: Option<u64>,
    /// How often what the server has no room for is sent again; 8 unless set.
    #[schemars(range(min = 1, max = 1000))]
    tries_max: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[allow(dead_code, reason = "describes keys that connectors read")]
enum Evictions {
    Refuse,
    Carry,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "describes keys that connectors read")]
struct StoreLimits {
    /// Left out: as fast as it goes.
    #[schemars(range(min = 1))]
    snapshot_bytes_per_second: Option<u64>,
    /// Left out: as fast as it goes.
    #[schemars(range(min = 1))]
    apply_ops_per_second: Option<u64>,
    /// Redis: a larger value is carried in parts of about half this size; 1048576 unless set.
    #[schemars(range(min = 1024))]
    value_bytes_max: Option<u64>,
    /// Elasticsearch: shards that are read at once; 4 unless set.
    #[schemars(range(min = 1, max = 64))]
    shards_at_once: Option<u32>,
}

/// One site's servers: `url` or `urls`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "describes keys that connectors read")]
struct StoreSite {
    /// `redis://[[user]:password@]host[:port]`, `rediss://…` for TLS, or `unix:///path`;
    /// `mysql://[user[:password]@]host[:port]`; `http[s]://[user:password@]host[:port]`.
    url: Option<String>,
    /// Several: the first that answers as a master is taken; of MySQL the one that takes writes; of Elasticsearch any that
    /// answers.
    #[schemars(length(min = 1))]
    urls: Option<Vec<String>>,
    /// An ACL user, which needs a password; an account.
    user: Option<String>,
    /// A file whose first line is the password, relative to this file.
    password_file: Option<String>,
    /// Elasticsearch: a file with an API key, as the server encodes it, instead of user and password.
    api_key_file: Option<String>,
    /// Certificates of the authority that the server's is checked with, PEM. Left out: the system's; MySQL: no TLS.
    ca_file: Option<String>,
    /// Our certificate, PEM; with `key_file`.
    cert_file: Option<String>,
    /// Our certificate's key, PEM.
    key_file: Option<String>,
}

/// Adds to the schema of a channel's table the keys of the stores, and takes every other key for a site's
/// table: the sites' names are the link's affair.
pub(super) fn add_store_keys(schema: &mut Schema) {
    let inline = || SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator();
    let store = inline().into_root_schema_for::<StoreKeys>();
    let mut site = inline().into_root_schema_for::<StoreSite>();
    for key in ["$schema", "title"] {
        site.remove(key);
    }
    let properties = schema.ensure_object().get_mut("properties").and_then(|p| p.as_object_mut());
    if let (Some(properties), Some(more)) = (properties, store.get("properties").and_then(|p| p.as_object()))
    {
        properties.extend(more.clone());
    }
    schema.insert("additionalProperties".to_owned(), site.to_value());
}
