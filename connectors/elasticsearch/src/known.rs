//! Which documents were there, and so which are gone.
//!
//! A shard does not tell of deletes: an id that was listed and is listed no more was deleted. Ids are held in memory, at
//! most `ids_max` of them, and kept in an index of our own, in [`BUCKETS`] documents for each index, of which those are
//! written anew that changed since the last listing. So what is deleted while nobody runs is found, too, unless it was
//! made after the last listing.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use causeway_core::{Key, Space};
use xxhash_rust::xxh3::xxh3_64;

use crate::names::index;

/// Documents in which the ids of an index are kept.
pub(crate) const BUCKETS: u64 = 256;

/// An index and the number of one of its documents with ids.
pub(crate) type Bucket = (String, u64);

/// Ids of documents that were there.
#[derive(Debug)]
pub(crate) struct Known {
    indices: HashMap<String, HashMap<Bytes, Met>>,
    /// What the ids come to that are kept in a bucket.
    kept: BTreeMap<Bucket, u64>,
    count: usize,
    max: usize,
    listing: u32,
    /// Of something that is missing the listing after that tells.
    unsure: bool,
    /// There were too many.
    gave_up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Met {
    /// The number of the listing that met it last.
    listing: u32,
    /// Only an earlier process met it: it has to be missing twice.
    earlier: bool,
}

impl Known {
    pub(crate) fn new(max: usize) -> Known {
        Known {
            indices: HashMap::new(),
            kept: BTreeMap::new(),
            count: 0,
            max,
            listing: 0,
            unsure: false,
            gave_up: max == 0,
        }
    }

    /// Whether deletes cannot be found, as there are more documents than ids may be held.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// The document is there. `true`: that was one too many, and nothing is known from now on.
    pub(crate) fn met(&mut self, index: &str, name: &Bytes) -> bool {
        self.note(index, name, false)
    }

    /// An earlier process kept these ids in `bucket`; with `load` off they are known of no more.
    pub(crate) fn kept(&mut self, bucket: Bucket, names: &[Bytes], load: bool) {
        if load {
            names.iter().for_each(|name| _ = self.note(&bucket.0, name, true));
        }
        self.kept.insert(bucket, sum(names.iter()));
    }

    fn note(&mut self, index: &str, name: &Bytes, earlier: bool) -> bool {
        if self.gave_up {
            return false;
        }
        if !self.indices.contains_key(index) {
            self.indices.insert(index.to_owned(), HashMap::new());
        }
        let Some(names) = self.indices.get_mut(index) else { return false };
        let met = Met { listing: self.listing, earlier };
        match names.get_mut(name) {
            Some(known) => *known = met,
            // A copy: what was read is part of a larger buffer.
            None => {
                names.insert(Bytes::copy_from_slice(name), met);
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

    /// What the listing that began last did not meet, of the indices that are there still. Of what only an earlier process
    /// met the listing after that tells: our applier may be about to say that it was the one who deleted it.
    pub(crate) fn missing(&mut self, there: impl Fn(&str) -> bool) -> Vec<Key> {
        let mut missing = Vec::new();
        self.unsure = false;
        for (index, names) in self.indices.iter_mut().filter(|(index, _)| there(index)) {
            let space = Space::Index(Bytes::copy_from_slice(index.as_bytes()));
            for (name, met) in names.iter_mut().filter(|(_, met)| met.listing != self.listing) {
                if std::mem::take(&mut met.earlier) {
                    self.unsure = true;
                    continue;
                }
                missing.push(Key { space: space.clone(), name: name.clone() });
            }
        }
        missing.sort_unstable();
        missing
    }

    /// Whether the listing after the last one that was asked for what is [`missing`](Known::missing) tells of something more.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure
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

    /// The buckets whose ids are not those that are kept, with their ids; they count as kept from now on. One without ids is to
    /// be removed.
    pub(crate) fn changed(&mut self) -> Vec<(Bucket, Vec<Bytes>)> {
        let mut sums: BTreeMap<Bucket, u64> = self.kept.keys().map(|bucket| (bucket.clone(), 0)).collect();
        for (index, names) in &self.indices {
            let mut of_index = vec![0_u64; BUCKETS as usize];
            for name in names.keys() {
                let hash = xxh3_64(name);
                if let Some(sum) = of_index.get_mut((hash % BUCKETS) as usize) {
                    *sum = sum.wrapping_add(hash | 1);
                }
            }
            let sums_of = of_index.into_iter().zip(0..).filter(|(sum, _)| *sum != 0);
            sums.extend(sums_of.map(|(sum, number)| ((index.clone(), number), sum)));
        }
        let differ =
            sums.into_iter().filter(|(bucket, sum)| self.kept.get(bucket).copied().unwrap_or(0) != *sum);
        let differ: Vec<(Bucket, u64)> = differ.collect();
        let mut changed: BTreeMap<Bucket, Vec<Bytes>> = BTreeMap::new();
        for (bucket, sum) in differ {
            match sum {
                0 => _ = self.kept.remove(&bucket),
                _ => _ = self.kept.insert(bucket.clone(), sum),
            }
            changed.insert(bucket, Vec::new());
        }
        if changed.is_empty() {
            return Vec::new();
        }
        for (index, names) in &self.indices {
            for name in names.keys() {
                if let Some(ids) = changed.get_mut(&(index.clone(), xxh3_64(name) % BUCKETS)) {
                    ids.push(name.clone());
                }
            }
        }
        changed.into_iter().collect()
    }
}

/// What ids come to, in any order.
fn sum<'a>(names: impl Iterator<Item = &'a Bytes>) -> u64 {
    names.fold(0, |sum, name| sum.wrapping_add(xxh3_64(name) | 1))
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
    fn ids_are_kept_once_and_what_an_earlier_process_met_has_to_be_missing_twice() {
        let mut known = Known::new(1_000);
        let names: Vec<Bytes> = (0..600).map(|n| Bytes::from(format!("n{n}"))).collect();
        names.iter().for_each(|name| _ = known.met("i", name));
        let changed = known.changed();
        assert_eq!(changed.iter().map(|(_, ids)| ids.len()).sum::<usize>(), 600);
        assert!(known.changed().is_empty());
        let mut later = Known::new(1_000);
        changed.into_iter().for_each(|(bucket, ids)| later.kept(bucket, &ids, true));
        assert!(later.changed().is_empty());
        later.begin();
        names.iter().skip(1).for_each(|name| _ = later.met("i", name));
        assert!(later.missing(|_| true).is_empty() && later.is_unsure());
        later.begin();
        names.iter().skip(1).for_each(|name| _ = later.met("i", name));
        let gone = key("i", "n0", None);
        assert_eq!(later.missing(|_| true), std::slice::from_ref(&gone));
        assert!(!later.is_unsure());
        later.forget(&gone);
        let changed = later.changed();
        assert!(changed.len() == 1 && !changed[0].1.contains(&gone.name));
        later.keep(|_| false);
        assert!(later.changed().iter().all(|(_, ids)| ids.is_empty()));
        assert!(later.changed().is_empty());
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
