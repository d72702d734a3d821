//! A channel's pair of servers: what [`open`](crate::open) returns.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use bytes::Bytes;
use causeway_core::{
    Capability, Change, ChannelSpec, Class, Connector, DdlPolicy, Finding, Key, OpenError, Position, Result,
    Site, Source, Space, Target, Unit,
};

use crate::check;
use crate::config::MysqlConfig;
use crate::content::{Count, Said};
use crate::ddl::Ddl;
use crate::place;
use crate::schema::table_of;
use crate::source::MysqlSource;
use crate::target::MysqlTarget;

/// Characters of a statement that are shown.
const SHOWN_MAX: usize = 120;

/// Two servers that are kept equal. Made of its configuration alone; sources and targets connect.
#[derive(Debug)]
pub struct Mysql {
    config: Arc<MysqlConfig>,
    definitions: Arc<Definitions>,
}

/// Of each site, how many statements were seen that changed its tables: what is known of them is old then.
pub(crate) type Definitions = [AtomicU64; 2];

impl Mysql {
    /// Reads a channel's configuration; connects to nothing.
    ///
    /// # Errors
    ///
    /// As [`MysqlConfig::parse`].
    pub fn new(spec: &ChannelSpec) -> std::result::Result<Mysql, OpenError> {
        Ok(Mysql { config: Arc::new(MysqlConfig::parse(spec)?), definitions: Arc::default() })
    }
}

#[async_trait]
impl Connector for Mysql {
    fn store(&self) -> &'static str {
        "mysql"
    }

    fn capability(&self) -> Capability {
        Capability {
            resumes: true,
            groups: true,
            expiry: false,
            watch: true,
            resumes_snapshot: true,
            operations: false,
        }
    }

    fn source(&self, site: Site) -> Box<dyn Source> {
        Box::new(MysqlSource::new(Arc::clone(&self.config), Arc::clone(&self.definitions), site))
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        Box::new(MysqlTarget::new(Arc::clone(&self.config), Arc::clone(&self.definitions), site))
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        if !change.op.is_data() || change.key.name.is_empty() {
            return Vec::new();
        }
        let class = Said::of(change, false).map_or(Class::Absolute, Said::class);
        vec![(Unit { key: change.key.clone(), element: None }, class)]
    }

    fn content(&self, change: &Change) -> Option<u128> {
        // How many of them were told before is no part of it.
        let value = match Said::of(change, false) {
            Some(Said::Count(Count { rows, .. })) => Some(Count { rows, told: 0 }.text().into()),
            _ => change.value.clone(),
        };
        Some(value.as_deref().map_or(0, xxhash_rust::xxh3::xxh3_128))
    }

    fn is_counted(&self, change: &Change) -> bool {
        Said::of(change, false).is_some()
    }

    fn ddl_policy(&self, change: &Change) -> DdlPolicy {
        Ddl::of(change).map_or(DdlPolicy::Hold, |ddl| ddl.policy(self.config.ddl))
    }

    fn empties(&self, change: &Change) -> bool {
        Ddl::of(change).is_some_and(|ddl| ddl.empties())
    }

    fn takes(&self, change: &Change, key: &Key) -> bool {
        change.key.space == key.space
    }

    fn spaces(&self, change: &Change) -> Vec<Space> {
        let tables = Ddl::of(change).and_then(|ddl| ddl.definition()).map_or(Vec::new(), |d| d.tables);
        let carried = tables.iter().filter(|(schema, name)| self.config.tables.carries(schema, name));
        carried.map(|(schema, name)| Space::Table(format!("{schema}.{name}").into())).collect()
    }

    fn shown(&self, change: &Change) -> String {
        let sql = Ddl::of(change).map_or(String::new(), |ddl| ddl.sql);
        let one_line: Vec<&str> = sql.split_whitespace().collect();
        let mut shown = one_line.join(" ");
        if let Some((end, _)) = shown.char_indices().nth(SHOWN_MAX) {
            shown.replace_range(end.., "…");
        }
        shown
    }

    fn reaches_beyond(&self, change: &Change) -> bool {
        let tables = Ddl::of(change).and_then(|ddl| ddl.definition()).map_or(Vec::new(), |d| d.tables);
        tables.iter().any(|(schema, name)| !self.config.tables.carries(schema, name))
    }

    fn store_of(&self, position: &Position) -> Bytes {
        place::server_of(position)
    }

    fn carries(&self, key: &Key) -> bool {
        table_of(key).is_some_and(|(schema, table)| self.config.tables.carries(schema, table))
    }

    async fn check(&self, sites: &[Site]) -> Result<Vec<Finding>> {
        check::check(&self.config, sites).await
    }

    async fn cleanup(&self, site: Site) -> Result<u64> {
        check::cleanup(&self.config, site).await
    }
}
