//! A set of keys that may be far more than memory has room for.

use std::collections::HashSet;
use std::path::PathBuf;

use causeway_core::{Class, Seq};
use tracing::warn;

use super::EngineError;
use super::order::Version;
use super::recent::Touch;
use super::spill::Spill;

/// Keys, by their digests; most of them in a file, where they are many.
#[derive(Debug)]
pub(super) struct KeySet {
    held: HashSet<u128>,
    held_max: usize,
    spill: Spill,
}

impl KeySet {
    /// Holds at most `held_max` keys in memory, and the others in a file in `dir`.
    pub(super) fn new(dir: PathBuf, held_max: usize) -> KeySet {
        let held_max = held_max.max(1);
        KeySet { held: HashSet::new(), held_max, spill: Spill::new(dir, held_max.saturating_mul(4)) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> u64 {
        self.held.len() as u64 + self.spill.len()
    }

    /// # Errors
    ///
    /// The file's.
    pub(super) fn contains(&self, digest: u128) -> Result<bool, EngineError> {
        if self.held.contains(&digest) {
            return Ok(true);
        }
        Ok(!self.spill.of(digest, Seq(0)).map_err(EngineError::Spilled)?.is_empty())
    }

    /// Whether it is new.
    ///
    /// # Errors
    ///
    /// The file's.
    pub(super) fn insert(&mut self, digest: u128) -> Result<bool, EngineError> {
        if self.contains(digest)? {
            return Ok(false);
        }
        if self.held.len() >= self.held_max {
            let held: Vec<_> = self.held.iter().map(|held| (*held, MEMBER)).collect();
            match self.spill.add(&held) {
                Ok(()) => self.held.clear(),
                Err(error) => {
                    warn!(%error, "no room in a file for keys that may be forgotten: they stay in memory");
                    self.held_max = self.held.len() * 2;
                }
            }
        }
        self.held.insert(digest);
        Ok(true)
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) {
        self.held = HashSet::new();
        self.spill.clear();
    }
}

/// What the file holds of a key that is in the set: nothing but that.
const MEMBER: Touch = Touch {
    seq: Seq(0),
    seen: Seq(0),
    at: 0,
    version: Version { place: 0, seq: 0 },
    class: Class::Other,
    element: None,
    is_expire_at: false,
    is_state: false,
    is_absent: false,
    is_guess: false,
    reread: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_what_memory_holds_are_in_the_set_once() {
        let mut keys = KeySet::new(std::env::temp_dir(), 8);
        let digest = |n: u64| u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834);
        for round in 0..2 {
            for n in 0..100 {
                assert_eq!(keys.insert(digest(n)).unwrap(), round == 0, "{n}");
            }
        }
        assert_eq!(keys.len(), 100);
        assert!((0..100).all(|n| keys.contains(digest(n)).unwrap()));
        assert!((100..1000).all(|n| !keys.contains(digest(n)).unwrap()));
        keys.clear();
        assert!(keys.is_empty() && !keys.contains(digest(7)).unwrap());
    }
}
