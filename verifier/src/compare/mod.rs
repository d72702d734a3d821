//! Two sites' keys, compared: what differs, what cannot be decided. Knows no store; a store is a [`Reader`]
//! for each site.

mod by_time;
mod judge;
mod named;
mod pass;
mod sample;
mod settle;
mod stretches;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;

use crate::error::Result;
use crate::window::Window;

pub(crate) use by_time::ByTime;
pub(crate) use judge::{DifferenceKind, Judge, Verdict};
pub(crate) use named::{Name, Naming, Place, compare_named};
pub(crate) use pass::{Settings, compare};
pub(crate) use sample::{Sample, share_at_most};
pub(crate) use settle::{Candidates, recheck};

/// What a site holds under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// What kind of value it is, in the store's word (`hash`); for people only.
    pub(crate) what: &'static str,
    /// Of the canonical content: equal where the content is, whatever its encoding.
    pub(crate) digest: u128,
    /// Milliseconds since 1970; `None`: never.
    pub(crate) expire_at: Option<u64>,
}

/// A page of keys.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Those in scope; a key may come more than once.
    pub(crate) names: Vec<Bytes>,
    /// How many the store looked through for it.
    pub(crate) scanned: u64,
    /// From where to go on; `None`: that was the last.
    pub(crate) next: Option<u64>,
}

/// A part of a space's keys in their order: those behind `after`, up to and with `to`; `None`: it has no end there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) after: Option<Bytes>,
    pub(crate) to: Option<Bytes>,
}

/// What a store says of a stretch without naming its keys: equal at both sites where the stretch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) keys: u64,
    pub(crate) digest: u128,
}

/// One site of a channel, read for a comparison.
pub(crate) trait Reader: Send + Sync {
    /// What [`look`](Reader::look) finds: what a read may take for granted until it finds otherwise.
    type Hint: Copy + Send + Sync;

    /// The spaces in scope that hold anything, and about how many keys each holds.
    fn spaces(&self) -> impl Future<Output = Result<Vec<(Space, u64)>>> + Send;

    /// Lists keys from `cursor` (0 at first); a key that exists all the time is listed at least once.
    fn page(&self, space: &Space, cursor: u64) -> impl Future<Output = Result<Page>> + Send;

    /// What kinds of values `names` have; one for each, in the same order.
    fn look(&self, space: &Space, names: &[Bytes]) -> impl Future<Output = Result<Vec<Self::Hint>>> + Send;

    /// What `names` hold (a name may come twice); one for each, in the same order, `None` where absent. `hints` may be the peer's: a
    /// key that is of another kind here gives a state that equals no other.
    fn read(
        &self,
        space: &Space,
        names: &[Bytes],
        hints: &[Self::Hint],
    ) -> impl Future<Output = Result<Vec<Option<State>>>> + Send;

    /// Keys of `space` behind `after` of which `column` holds a time in the window; none: that was all. `None`: its values have
    /// no such column.
    fn page_by_time(
        &self,
        space: &Space,
        (column, window): (&str, Window),
        after: Option<&Bytes>,
    ) -> impl Future<Output = Result<Option<Vec<Bytes>>>> + Send {
        let _ = (space, column, window, after);
        std::future::ready(Ok(None))
    }

    /// How long the store takes to answer that it is there.
    fn probe(&self) -> impl Future<Output = Result<Duration>> + Send {
        std::future::ready(Ok(Duration::ZERO))
    }

    /// Whether what is read waits, for a while each time.
    fn hold(&self, is_held: bool) {
        let _ = is_held;
    }

    /// Indices of those of `names` that do not exist here, ascending.
    fn absent(&self, space: &Space, names: &[Bytes]) -> impl Future<Output = Result<Vec<usize>>> + Send;

    /// Of each of `names` the parts of what it holds, by name, and a digest of each; none where values have no parts that
    /// have names.
    fn parts(&self, space: &Space, names: &[Bytes]) -> impl Future<Output = Result<Vec<Parts>>> + Send {
        let _ = space;
        std::future::ready(Ok(vec![Parts::new(); names.len()]))
    }

    /// What it makes of a name that the log gives a key.
    fn place(&self, space: &Space, name: &[u8]) -> Place {
        let _ = (space, name);
        Place::Key
    }

    /// Whether its keys count among those compared.
    fn counts(&self, space: &Space) -> bool {
        let _ = space;
        true
    }

    /// Whether the keys of `space` have one order at both sites, and what is below is there for it.
    fn is_ordered(&self, space: &Space) -> bool {
        let _ = space;
        false
    }

    /// The key that stands `keys` behind `after`, or behind the beginning; `None`: there are fewer.
    fn key_behind(
        &self,
        space: &Space,
        after: Option<&Bytes>,
        keys: u64,
    ) -> impl Future<Output = Result<Option<Bytes>>> + Send {
        let _ = (space, after, keys);
        std::future::ready(Ok(None))
    }

    /// What the store says of a stretch.
    fn sum(&self, space: &Space, stretch: &Stretch) -> impl Future<Output = Result<Sum>> + Send {
        let _ = (space, stretch);
        std::future::ready(Ok(Sum::default()))
    }

    /// All keys of a stretch, and what they hold; `None`: there are more than `keys_max`.
    fn states(
        &self,
        space: &Space,
        stretch: &Stretch,
        keys_max: usize,
    ) -> impl Future<Output = Result<Option<Vec<(Bytes, State)>>>> + Send {
        let _ = (space, stretch, keys_max);
        std::future::ready(Ok(None))
    }
}

/// The parts of a value, by name.
pub(crate) type Parts = BTreeMap<String, u128>;

/// Lets the traffic come to rest before keys are read again.
pub(crate) trait Traffic: Send + Sync {
    /// Waits until everything written before this call is applied at the peer, or as long as is allowed.
    fn rest(&self) -> impl Future<Output = Rest> + Send;
}

/// How a wait for the traffic ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// All that was under way is applied.
    Applied,
    /// Nobody can say, or nothing moves: what keys do decides.
    Unknown,
    /// Changes are still being applied.
    Moving,
}

/// Told how far a comparison is.
pub(crate) trait Progress: Send + Sync {
    /// A stretch of work begins: what it is, and how many keys.
    fn begin(&self, what: &str, keys: u64);
    /// There are so many more keys than was said.
    fn expect(&self, keys: u64);
    /// So many more were looked through.
    fn advance(&self, keys: u64);
    /// It ended.
    fn end(&self);
}

/// What differs.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    /// Where the key lives.
    pub(crate) space: Space,
    /// The key.
    pub(crate) name: Bytes,
    /// How it differs; `None`: undecided, it never came to rest.
    pub(crate) kind: Option<DifferenceKind>,
    /// What each site held when it was read last, the link's first site first.
    pub(crate) sites: [Option<State>; 2],
    /// Where both hold something: the names of its parts that differ, as far as that was asked for.
    pub(crate) parts: Vec<String>,
}

/// A comparison's result. The lists are capped, the counts are exact.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Different keys looked at.
    pub(crate) compared: u64,
    /// `compared` may count a key twice: there were more than a set of them may hold.
    pub(crate) compared_roughly: bool,
    /// Keys that differ.
    pub(crate) different: u64,
    /// Keys that never came to rest.
    pub(crate) undecided: u64,
    /// Those that differ, or are undecided, by what they are and how.
    pub(crate) counts: BTreeMap<(&'static str, Option<DifferenceKind>), u64>,
    /// Those that differ.
    pub(crate) differences: Vec<Difference>,
    /// Those that are undecided.
    pub(crate) unsettled: Vec<Difference>,
    /// Hashes of the keys counted as different or undecided, so that none is counted twice.
    pub(crate) reported: HashSet<u64>,
}

/// Keys whose parts are looked for, and read at once.
const NARROWED_MAX: usize = 1000;
const NARROWED_AT_ONCE: usize = 500;

/// Parts of one key that are named.
const PARTS_MAX: usize = 100;

/// Names of the parts that are not the same, the first ones.
fn differing(a: &Parts, b: &Parts) -> Vec<String> {
    // One of them has too many to be read.
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let all: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let mut differ = all.into_iter().filter(|name| a.get(*name) != b.get(*name));
    let mut named: Vec<String> = differ.by_ref().take(PARTS_MAX).cloned().collect();
    match differ.count() {
        0 => {}
        more => named.push(format!("… and {more} more")),
    }
    named
}

impl Outcome {
    /// Finds the parts that differ of the first [`NARROWED_MAX`] differences in content.
    pub(crate) async fn narrow<R: Reader>(&mut self, [first, second]: [&R; 2]) -> Result<()> {
        let mut of_space: BTreeMap<Space, Vec<usize>> = BTreeMap::new();
        for (at, one) in self.differences.iter_mut().enumerate().take(NARROWED_MAX) {
            match one.sites {
                [Some(a), Some(b)] if a.what != b.what => one.parts = vec!["type".to_owned()],
                [Some(_), Some(_)] if one.kind == Some(DifferenceKind::Content) => {
                    of_space.entry(one.space.clone()).or_default().push(at);
                }
                _ => {}
            }
        }
        for (space, places) in of_space {
            for some in places.chunks(NARROWED_AT_ONCE) {
                let differences = some.iter().filter_map(|&at| self.differences.get(at));
                let names: Vec<Bytes> = differences.map(|one| one.name.clone()).collect();
                let parts =
                    futures_util::try_join!(first.parts(&space, &names), second.parts(&space, &names))?;
                for ((&at, a), b) in some.iter().zip(parts.0).zip(parts.1) {
                    let Some(one) = self.differences.get_mut(at) else { continue };
                    one.parts = differing(&a, &b);
                }
            }
        }
        Ok(())
    }

    /// Counts `difference`, and lists it if there are fewer than `list_max` of its sort.
    pub(crate) fn add(&mut self, difference: Difference, list_max: usize) {
        self.reported.insert(pass::hash(&difference.space, &difference.name));
        let what = difference.sites.iter().flatten().map(|s| s.what).next().unwrap_or("gone");
        *self.counts.entry((what, difference.kind)).or_default() += 1;
        let list = match difference.kind {
            Some(_) => {
                self.different += 1;
                &mut self.differences
            }
            None => {
                self.undecided += 1;
                &mut self.unsettled
            }
        };
        if list.len() < list_max {
            list.push(difference);
        }
    }
}
