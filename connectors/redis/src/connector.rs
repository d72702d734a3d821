//! A channel's pair of servers: what [`open`](crate::open) returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use causeway_core::{
    Capability, Change, ChannelSpec, Class, Connector, Finding, Key, OnlyAt, Op, OpenError, Result, Site,
    Source, Space, Target, Unit,
};

use crate::apply::{RedisTarget, db_of};
use crate::args::swapped;
use crate::config::RedisConfig;
use crate::source::RedisSource;
use crate::{check, commands, intake, rdb};

/// Two servers that are kept equal. Made of its configuration alone; sources and targets connect.
#[derive(Debug)]
pub struct Redis {
    config: Arc<RedisConfig>,
    /// Of each site: a target was made, so that its source has to tell our own writes from others.
    applied_into: [Arc<AtomicBool>; 2],
}

impl Redis {
    /// Reads a channel's configuration; connects to nothing.
    ///
    /// # Errors
    ///
    /// As [`RedisConfig::parse`].
    pub fn new(spec: &ChannelSpec) -> Result<Redis, OpenError> {
        Ok(Redis { config: Arc::new(RedisConfig::parse(spec)?), applied_into: Default::default() })
    }

    /// The channel's configuration.
    pub fn config(&self) -> &RedisConfig {
        &self.config
    }

    fn applied_into(&self, site: Site) -> &Arc<AtomicBool> {
        let [first, second] = &self.applied_into;
        match site {
            Site::First => first,
            Site::Second => second,
        }
    }
}

#[async_trait]
impl Connector for Redis {
    fn store(&self) -> &'static str {
        "redis"
    }

    fn capability(&self) -> Capability {
        Capability {
            resumes: true,
            groups: true,
            expiry: true,
            watch: true,
            resumes_snapshot: false,
            operations: true,
        }
    }

    fn source(&self, site: Site) -> Box<dyn Source> {
        let flag = self.applied_into(site).clone();
        Box::new(RedisSource::new(self.config.clone(), site).applied_into(flag))
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        self.applied_into(site).store(true, Ordering::Relaxed);
        Box::new(RedisTarget::new(self.config.clone(), site))
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        commands::units(change)
    }

    fn content(&self, change: &Change) -> Option<u128> {
        match (&change.value, change.part) {
            (_, Some(_)) => None,
            (None, None) => Some(0),
            (Some(payload), None) => rdb::content_digest(payload),
        }
    }

    fn renumbered(&self, change: &Change) -> Option<Change> {
        commands::with_next_id(change)
    }

    fn is_misnumbered(&self, reason: &str) -> bool {
        // `XADD` of Redis 7.0 to 8.x and Valkey.
        reason.contains("equal or smaller than the target stream top item")
    }

    fn moved(&self, change: &Change, key: &Key) -> Option<Key> {
        let (first, second) = swapped(change.value.as_deref()?)?;
        let to = match key.space {
            Space::Db(db) if db == first => second,
            Space::Db(db) if db == second => first,
            _ => return None,
        };
        Some(Key { space: Space::Db(to), name: key.name.clone() })
    }

    fn carries(&self, key: &Key) -> bool {
        matches!(key.space, Space::Db(db) if self.config.filter.carries(db, &key.name))
    }

    fn intake(&self, line: &[u8]) -> std::result::Result<Change, String> {
        intake::change(line)
    }

    fn shown(&self, change: &Change) -> String {
        let command = change.value.as_deref().unwrap_or_default().to_ascii_uppercase();
        let is = |name: &&str| command.windows(name.len()).any(|part| part == name.as_bytes());
        let name = ["FLUSHALL", "FLUSHDB", "SWAPDB"].into_iter().find(is);
        name.unwrap_or("a change of the whole store").to_owned()
    }

    fn reaches_beyond(&self, change: &Change) -> bool {
        let command = change.value.as_deref().unwrap_or_default();
        change.op == Op::Ddl && !self.config.filter.holds_to(db_of(&change.key), command)
    }

    async fn check(&self, sites: &[Site]) -> Result<Vec<Finding>> {
        check::check(&self.config, sites).await
    }

    async fn only_at(&self, site: Site, listed_max: usize) -> Result<Option<OnlyAt>> {
        check::only_at(&self.config, site, listed_max).await.map(Some)
    }

    async fn cleanup(&self, site: Site) -> Result<u64> {
        check::cleanup(&self.config, site).await
    }
}
