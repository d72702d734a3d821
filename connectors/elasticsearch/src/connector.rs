//! A channel's pair of sites: what [`open`](crate::open) returns.

use std::sync::Arc;

use async_trait::async_trait;
use causeway_core::{
    Capability, Change, ChannelSpec, Class, Connector, DdlPolicy, Finding, Key, Op, OpenError, Result, Site,
    Source, Space, Target, Unit,
};

use crate::check;
use crate::config::Config;
use crate::http::Client;
use crate::intake;
use crate::names;
use crate::shared::SiteState;
use crate::source::EsSource;
use crate::target::{self, EsTarget};

/// Two sites' documents that are kept equal. Made of its configuration alone; sources and targets connect.
#[derive(Debug)]
pub struct Elasticsearch {
    config: Arc<Config>,
    states: [Arc<SiteState>; 2],
}

impl Elasticsearch {
    /// Reads a channel's configuration; connects to nothing.
    ///
    /// # Errors
    ///
    /// A key that is not known or a value that is not allowed: names it, and what is.
    pub fn new(spec: &ChannelSpec) -> std::result::Result<Elasticsearch, OpenError> {
        Ok(Elasticsearch { config: Arc::new(Config::parse(spec)?), states: Default::default() })
    }

    fn state(&self, site: Site) -> Arc<SiteState> {
        let [first, second] = &self.states;
        Arc::clone(if site == Site::First { first } else { second })
    }
}

#[async_trait]
impl Connector for Elasticsearch {
    fn store(&self) -> &'static str {
        "elasticsearch"
    }

    fn capability(&self) -> Capability {
        Capability {
            resumes: true,
            groups: false,
            expiry: false,
            watch: true,
            resumes_snapshot: true,
            operations: false,
        }
    }

    /// Each batch is followed by its marker, and both wait for the disk. Where applications write at the target, too, the
    /// documents of a small one are read shortly before they are written.
    fn batch_max(&self) -> (usize, usize) {
        let one_way = !Site::BOTH.into_iter().all(|site| self.config.is_source(site));
        if one_way { (2_048, 1 << 20) } else { (512, 524_288) }
    }

    fn source(&self, site: Site) -> Box<dyn Source> {
        Box::new(EsSource::new(Arc::clone(&self.config), site, self.state(site)))
    }

    fn target(&self, site: Site) -> Box<dyn Target> {
        Box::new(EsTarget::new(Arc::clone(&self.config), site, self.state(site)))
    }

    fn units(&self, change: &Change) -> Vec<(Unit, Class)> {
        if !change.op.is_data() || change.key.name.is_empty() {
            return Vec::new();
        }
        vec![(Unit { key: change.key.clone(), element: None }, Class::Absolute)]
    }

    /// An index's definition only adds.
    fn ddl_policy(&self, change: &Change) -> DdlPolicy {
        match change.op {
            Op::Ddl if self.config.definitions => DdlPolicy::Apply,
            _ => DdlPolicy::Ignore,
        }
    }

    fn empties(&self, _: &Change) -> bool {
        false
    }

    fn takes(&self, _: &Change, _: &Key) -> bool {
        false
    }

    /// No document becomes another one by it.
    fn spaces(&self, _: &Change) -> Vec<Space> {
        Vec::new()
    }

    fn shown(&self, change: &Change) -> String {
        format!("the definition of {}", names::index(&change.key).unwrap_or("an index"))
    }

    fn reaches_beyond(&self, change: &Change) -> bool {
        names::index(&change.key).is_none_or(|index| !self.config.indices.carries(index))
    }

    fn carries(&self, key: &Key) -> bool {
        names::index(key).is_some_and(|index| self.config.indices.carries(index))
    }

    fn intake(&self, line: &[u8]) -> std::result::Result<Change, String> {
        intake::change(line)
    }

    async fn check(&self, sites: &[Site]) -> Result<Vec<Finding>> {
        check::check(&self.config, sites).await
    }

    async fn cleanup(&self, site: Site) -> Result<u64> {
        let client = Client::new(self.config.server(site))?;
        let (link, channel) = (&self.config.link, &self.config.channel);
        let ids = target::cleanup(&client, &names::ids_index(link, channel)).await?;
        Ok(ids + target::cleanup(&client, &names::own_index(link, channel)).await?)
    }
}
