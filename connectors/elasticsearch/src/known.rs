//! Which documents were there, and so which are gone.
//!
//! A shard does not tell of deletes: an id that was listed and is listed no more was deleted. Ids are held in memory, at
//! most `ids_max` of them. What was deleted while nobody ran is not found like this: `verifier check` lists it.

use std::collections::HashMap;

use bytes::Bytes;
use causeway_core::Key;

use crate::names::index;

/// Ids of documents that were there.
#[derive(Debug)]
pub(crate) struct Known {
    /// Of each index, names and the number of the listing that met them last.
    indices: HashMap<String, HashMap<Bytes, u32>>,
    count: usize,
    max: usize,
    listing: u32,
    /// There were too many.
    gave_up: bool,
}

impl Known {
    pub(crate) fn new(max: usize) -> Known {
        Known { indices: HashMap::new(), count: 0, max, listing: 0, gave_up: max == 0 }
    }

    /// Whether deletes cannot be found, as there are more documents than ids may be held.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// The document is there. `true`: that was one too many, and nothing is known from now on.
    pub(crate) fn met(&mut self, index: &str, name: &Bytes) -> bool {
        if self.gave_up {
            return false;
        }
        if !self.indices.contains_key(index) {
            self.indices.insert(index.to_owned(), HashMap::new());
        }
        let Some(names) = self.indices.get_mut(index) else { return false };
        match names.get_mut(name) {
            Some(listing) => *listing = self.listing,
            // A copy: what was read is part of a larger buffer.
            None => {
                names.insert(Bytes::copy_from_slice(name), self.listing);
                self.count += 1;
            }
        }
        if self.count <= self.max {
            return false;
        }
        self.gave_up = true;
        self.indices = HashMap::new();
        true
    }

    /// A listing begins.
    pub(crate) fn begin(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// What the listing that began last did not meet, of the indices that are there still.
    pub(crate) fn missing(&self, there: impl Fn(&str) -> bool) -> Vec<Key> {
        let mut missing = Vec::new();
        for (index, names) in self.indices.iter().filter(|(index, _)| there(index)) {
            let unmet = names.iter().filter(|(_, listing)| **listing != self.listing);
            let space = causeway_core::Space::Index(Bytes::copy_from_slice(index.as_bytes()));
            missing.extend(unmet.map(|(name, _)| Key { space: space.clone(), name: name.clone() }));
        }
        missing.sort_unstable();
        missing
    }

    /// The document is gone.
    pub(crate) fn forget(&mut self, key: &Key) {
        let names = index(key).and_then(|index| self.indices.get_mut(index));
        if names.is_some_and(|names| names.remove(&key.name).is_some()) {
            self.count = self.count.saturating_sub(1);
        }
    }

    /// Indices that are gone say nothing of their documents.
    pub(crate) fn keep(&mut self, there: impl Fn(&str) -> bool) {
        self.indices.retain(|index, _| there(index));
        self.count = self.indices.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::key;

    #[test]
    fn what_a_listing_does_not_meet_is_missing_until_it_is_forgotten() {
        let mut known = Known::new(3);
        for id in ["a", "b"] {
            assert!(!known.met("i", &Bytes::from(id)));
        }
        known.begin();
        known.met("i", &Bytes::from_static(b"a"));
        assert_eq!(known.missing(|_| true), [key("i", "b", None)]);
        assert!(known.missing(|index| index != "i").is_empty());
        known.forget(&key("i", "b", None));
        assert!(known.missing(|_| true).is_empty());
        known.keep(|_| false);
        assert!(!known.met("j", &Bytes::from_static(b"1")) && !known.gave_up());
    }

    #[test]
    fn too_many_ids_are_given_up_and_nothing_is_missing_then() {
        let mut known = Known::new(1);
        known.met("i", &Bytes::from_static(b"a"));
        assert!(known.met("i", &Bytes::from_static(b"b")) && known.gave_up());
        known.begin();
        assert!(known.missing(|_| true).is_empty());
    }
}
