//! In which order the changes of both sites take effect.

use causeway_core::{Change, Connector, Hlc, Key, Op, Seq, Site};

use super::recent::{UNSURE, is_reread};
use super::switch::{Part, is_off};
use crate::owners::Owners;

/// Of two changes to one key the one with the higher version takes effect last. Whatever follows another change has a
/// higher one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// Goes into the header `hlc` of a `state` that has the version of an older write.
    pub(crate) place: u64,
    /// Of one site's changes at one place.
    pub(crate) seq: u64,
}

impl Version {
    /// That of a write at this time.
    pub(crate) fn at(hlc: Hlc) -> Version {
        Version { place: hlc.0, seq: 0 }
    }
}

/// The changes of one site, as both sites look at them.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) connector: &'a dyn Connector,
    /// Where `conflict` is `owner`.
    pub(crate) owners: Option<&'a Owners>,
    pub(crate) site: Site,
}

impl Side<'_> {
    /// The changes of the other site.
    pub(crate) fn peer(self) -> Self {
        Side { site: self.site.peer(), ..self }
    }

    fn owner(&self, key: &Key) -> Option<Site> {
        self.owners.filter(|_| !is_off(Part::Owner))?.of(&key.name)
    }

    /// The version of what `change` does to `key`: by the clocks, or, where a site owns the key, by its log.
    pub(crate) fn version(&self, change: &Change, key: &Key) -> Version {
        let Some(owner) = self.owner(key) else { return Version::at(change.hlc) };
        // What was read again has the place of a write before it.
        let is_read = change.op == Op::Read || change.was_asked_for();
        let place = if is_read { change.hlc } else { self.at(owner, change.seq, change.seen) };
        if owner == self.site || change.op == Op::Read || is_reread(change) {
            return Version::at(place);
        }
        Version { place: place.0 & !UNSURE, seq: change.seq.0 }
    }

    /// The place of a change made here to `key`, where a site owns it.
    pub(crate) fn place(&self, key: &Key, seq: Seq, seen: Seq) -> Option<Hlc> {
        self.owner(key).map(|owner| self.at(owner, seq, seen))
    }

    /// The owner's changes stand at their numbers, those of the other site right behind the last one that they had seen:
    /// of two of which neither had seen the other the owner's is later, and each is later than what it had seen.
    fn at(&self, owner: Site, seq: Seq, seen: Seq) -> Hlc {
        let steps = if owner == self.site { 2 * (seq.0 + 1) } else { 2 * seen.0 + 1 };
        // As in an hlc, the lowest bits are free.
        Hlc(steps << 8)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use causeway_core::{Position, Space};
    use causeway_memory::Memory;

    use super::*;
    use crate::owners::TenantKey;

    #[test]
    fn the_owner_s_log_orders_the_changes_of_both_sites() {
        let memory = Memory::new();
        let sites = ["dc".to_owned(), "cloud".to_owned()];
        let owners = Owners::read("a,cloud", TenantKey::new("{tenant}:*").unwrap(), &sites).unwrap();
        let side = |site| Side { connector: &memory, owners: Some(&owners), site };
        let version = |site, key: &'static str, (seq, seen, hlc): (u64, u64, u64)| {
            let key = Key { space: Space::Whole, name: Bytes::from_static(key.as_bytes()) };
            let mut change = Change::captured(Op::Put, key.clone(), None, Position::default(), 0);
            (change.seq, change.seen, change.hlc) = (Seq(seq), Seq(seen), Hlc(hlc));
            side(site).version(&change, &key)
        };
        let owner = |seq| version(Site::Second, "a:1", (seq, 0, 1));
        let other = |seq, seen| version(Site::First, "a:1", (seq, seen, u64::MAX));
        assert!(
            owner(6) < other(1, 7) && other(1, 7) < owner(7),
            "between what it had seen and what it had not"
        );
        assert!(other(1, 7) < other(2, 7) && other(2, 7) < other(3, 8));
        assert_eq!(version(Site::First, "b:1", (1, 7, 9)), Version::at(Hlc(9)), "nobody owns it");
    }

    #[test]
    fn what_was_read_again_stands_where_the_write_before_it_stood() {
        let memory = Memory::new();
        let sites = ["dc".to_owned(), "cloud".to_owned()];
        let owners = Owners::read("a,cloud", TenantKey::new("{tenant}").unwrap(), &sites).unwrap();
        let key = Key { space: Space::Whole, name: Bytes::from_static(b"a") };
        let first = Side { connector: &memory, owners: Some(&owners), site: Site::First };
        let write = first.place(&key, Seq(3), Seq(7)).unwrap();
        let mut state = Change::captured(Op::State, key.clone(), None, Position::default(), 0);
        (state.seq, state.seen, state.uncertain) = (Seq(5), Seq(9), true);
        state.hlc = write;
        assert_eq!(first.version(&state, &key), Version::at(write));
        // It may hold a write that no log names: newer than the last one that is known, older than any later one.
        state.hlc = Hlc(write.0 | UNSURE);
        assert_eq!(first.version(&state, &key), Version { place: write.0, seq: 5 });
    }
}
