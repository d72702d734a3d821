//! A channel's pair of servers: what [`open`](crate::open) returns.

use std::sync::Arc;

use async_trait::async_trait;
use causeway_core::{
    Capability, Change, ChannelSpec, Class, Connector, Finding, Key, OpenError, Result, Site, Source, Target,
    Unit,
};

use crate::check;
use crate::config::MysqlConfig;
use crate::schema::table_of;
use crate::source::MysqlSource;
use crate::target::MysqlTarget;

/// Two servers that are kept equal. Made of its configuration alone; sources and targets connect.
#[derive(Debug)]
pub struct Mysql {
    config: Arc<MysqlConfig>,
}

impl Mysql {
    /// Reads a channel's configuration; connects to nothing.
    ///
    /// # Errors
    ///
    /// As [`MysqlConfig::parse`].
    pub fn new(spec: &ChannelSpec) -> std::result::Result<Mysql, OpenError> {
        Ok(Mysql { config: Arc::new(MysqlConfig::parse(spec)?) })
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
        Box::new(MysqlSource::new(Arc::clone(&self.config), site))
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        Box::new(MysqlTarget::new(Arc::clone(&self.config), site))
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        if !change.op.is_data() || change.key.name.is_empty() {
            return Vec::new();
        }
        vec![(Unit { key: change.key.clone(), element: None }, Class::Absolute)]
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
