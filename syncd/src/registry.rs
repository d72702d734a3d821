//! The kinds of store that this build knows: a new one is one line in [`Registry::built_in`].

use causeway_core::Open;

/// `store` of the configuration to the connector that opens it.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    stores: Vec<(&'static str, Open)>,
}

impl Registry {
    /// Those of this release.
    pub fn built_in() -> Registry {
        Registry::default()
            .with("redis", causeway_redis::open)
            .with("mysql", causeway_mysql::open)
            .with("elasticsearch", causeway_elasticsearch::open)
    }

    /// With one more; tests bring the store in memory.
    #[must_use]
    pub fn with(mut self, store: &'static str, open: Open) -> Registry {
        self.stores.push((store, open));
        self
    }

    /// How `store` is opened.
    pub fn get(&self, store: &str) -> Option<Open> {
        self.stores.iter().find(|(name, _)| *name == store).map(|(_, open)| *open)
    }

    /// The names, as the configuration may have them.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.stores.iter().map(|(name, _)| *name)
    }
}
