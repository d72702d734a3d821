use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::now_ms;
use futures_util::{Stream, StreamExt, stream};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::settle::{Candidates, settle};
use super::{Judge, Outcome, Page, Progress, Reader, State, Traffic, Verdict};
use crate::error::Result;

/// Pages under way at a time: enough that both servers always have one to work on while another is being
/// digested, few enough that what they hold stays small.
const PAGES_UNDER_WAY: usize = 4;

/// Candidates held before they are settled: a site that is empty makes every key one.
const CANDIDATES_MAX: usize = 100_000;

/// Keys that are counted exactly, by a set of 8-byte hashes: some 300 MB at its fullest. A SCAN names a key
/// twice only while a table shrinks, so beyond it the count is nearly right, and said to be so.
const COUNTED_MAX: usize = 16_000_000;

/// How a comparison goes about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// What counts as equal.
    pub(crate) judge: Judge,
    /// How many differences, and undecided keys, are listed.
    pub(crate) list_max: usize,
    /// How often a key that differs is read again before it is undecided; at least 2.
    pub(crate) rounds_max: usize,
}

/// Compares everything in the readers' scope: lists the first site's keys and reads each at both sites, then
/// lists the second site's and looks for those that the first has not; where keys have an order, stretch by stretch,
/// see [`Run::stretches`]. What differs is read again after `traffic` has come to rest, see [`settle`].
///
/// Memory: the pages under way, a set of at most [`COUNTED_MAX`] hashes, and at most [`CANDIDATES_MAX`]
/// candidates.
///
/// # Errors
///
/// Those of the readers.
pub(crate) async fn compare<R: Reader>(
    sites: [&R; 2],
    traffic: &impl Traffic,
    progress: &impl Progress,
    settings: Settings,
) -> Result<Outcome> {
    let mut run = Run::new(sites, traffic, settings);
    run.spaces(progress, |_| true).await?;
    run.finish().await
}

pub(super) struct Run<'a, R, T> {
    pub(super) sites: [&'a R; 2],
    traffic: &'a T,
    pub(super) settings: Settings,
    candidates: Candidates,
    pub(super) counted: Counted,
    outcome: Outcome,
}

impl<'a, R: Reader, T: Traffic> Run<'a, R, T> {
    pub(super) fn new(sites: [&'a R; 2], traffic: &'a T, settings: Settings) -> Self {
        Run {
            sites,
            traffic,
            settings,
            candidates: Candidates::new(),
            counted: Counted::default(),
            outcome: Outcome::default(),
        }
    }

    /// Compares all of the spaces that are `wanted`.
    pub(super) async fn spaces(
        &mut self,
        progress: &impl Progress,
        wanted: impl Fn(&Space) -> bool,
    ) -> Result<()> {
        let sites = self.sites;
        let [first, second] = sites;
        let mut spaces = [first.spaces().await?, second.spaces().await?];
        spaces.iter_mut().for_each(|spaces| spaces.retain(|(space, _)| wanted(space)));
        progress.begin("comparing", spaces[0].iter().map(|(_, keys)| keys).sum());
        let is_ordered = |space: &Space| first.is_ordered(space) && second.is_ordered(space);
        // Those of a stretch come once.
        let one_by_one = spaces[0].iter().filter(|(space, _)| !is_ordered(space));
        self.counted.expect(one_by_one.map(|(_, keys)| *keys as usize).sum());
        for (space, _) in &spaces[0] {
            if is_ordered(space) {
                self.stretches(space, progress).await?;
                continue;
            }
            let pages = pages(first, space).map(|page| async move {
                let page = page?;
                let states = read_both(sites, space, &page.names).await?;
                Ok::<_, crate::error::Error>((page, states))
            });
            let mut pages = std::pin::pin!(pages.buffer_unordered(PAGES_UNDER_WAY));
            while let Some(read) = pages.next().await {
                let (page, states) = read?;
                progress.advance(page.scanned);
                self.judge(space, page.names, states);
                self.settle_if_full().await?;
            }
        }
        progress.end();

        let others = || spaces[1].iter().filter(|(space, _)| !is_ordered(space));
        progress.begin("looking for extra keys", others().map(|(_, keys)| keys).sum());
        for (space, _) in others() {
            let pages = pages(second, space).map(|page| async move {
                let page = page?;
                let absent = first.absent(space, &page.names).await?;
                Ok::<_, crate::error::Error>((page, absent))
            });
            let mut pages = std::pin::pin!(pages.buffer_unordered(PAGES_UNDER_WAY));
            while let Some(read) = pages.next().await {
                let (page, absent) = read?;
                progress.advance(page.scanned);
                for name in absent.into_iter().filter_map(|at| page.names.get(at)) {
                    self.count(space, name);
                    self.suspect(space, name.clone(), None);
                }
                self.settle_if_full().await?;
            }
        }
        progress.end();
        Ok(())
    }

    /// Settles what is left; the result.
    pub(super) async fn finish(mut self) -> Result<Outcome> {
        self.settle().await?;
        self.outcome.compared = self.counted.count;
        self.outcome.compared_roughly = self.counted.roughly;
        Ok(self.outcome)
    }

    /// Whether the key was looked at before, as far as that is known.
    pub(super) fn is_counted(&self, space: &Space, name: &[u8]) -> bool {
        self.counted.hashes.contains(&hash(space, name))
    }

    fn judge(&mut self, space: &Space, names: Vec<Bytes>, states: Vec<[Option<State>; 2]>) {
        let now = now_ms();
        for (name, sites) in names.into_iter().zip(states) {
            self.count(space, &name);
            // Absent at both: deleted since it was listed, or changed into another kind of value.
            if sites == [None, None] || self.settings.judge.judge(sites, now) != Verdict::Equal {
                self.suspect(space, name, Some(sites));
            }
        }
    }

    pub(super) fn count(&mut self, space: &Space, name: &[u8]) {
        if self.sites[0].counts(space) {
            self.counted.add(space, name);
        }
    }

    /// Takes note of a key that may differ, once, and of what it was if it was read.
    pub(super) fn suspect(&mut self, space: &Space, name: Bytes, sites: Option<[Option<State>; 2]>) {
        if !self.outcome.reported.contains(&hash(space, &name)) {
            self.candidates.insert((space.clone(), name), sites);
        }
    }

    pub(super) async fn settle_if_full(&mut self) -> Result<()> {
        if self.candidates.len() >= CANDIDATES_MAX { self.settle().await } else { Ok(()) }
    }

    async fn settle(&mut self) -> Result<()> {
        let candidates = std::mem::take(&mut self.candidates);
        settle(self.sites, candidates, self.traffic, self.settings, &mut self.outcome).await
    }
}

/// The pages of `space`, each asked for when the one before is there.
fn pages<'a, R: Reader>(reader: &'a R, space: &'a Space) -> impl Stream<Item = Result<Page>> + Send + 'a {
    stream::unfold(Some(0), move |cursor| async move {
        let page = reader.page(space, cursor?).await;
        let next = page.as_ref().ok().and_then(|page| page.next);
        Some((page, next))
    })
}

/// Reads `names` at both sites at once, taking for granted that the second holds the same kinds of values as
/// the first: a key for which that is wrong differs, and is read again without it.
pub(super) async fn read_both<R: Reader>(
    [first, second]: [&R; 2],
    space: &Space,
    names: &[Bytes],
) -> Result<Vec<[Option<State>; 2]>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let hints = first.look(space, names).await?;
    let (a, b) =
        futures_util::try_join!(first.read(space, names, &hints), second.read(space, names, &hints))?;
    Ok(a.into_iter().zip(b).map(|(a, b)| [a, b]).collect())
}

/// Counts different keys.
#[derive(Default)]
pub(super) struct Counted {
    hashes: HashSet<u64, BuildHasherDefault<AsIs>>,
    pub(super) count: u64,
    roughly: bool,
}

impl Counted {
    /// Makes room for so many.
    fn expect(&mut self, keys: usize) {
        self.hashes.reserve(keys.min(COUNTED_MAX));
    }

    fn add(&mut self, space: &Space, name: &[u8]) {
        let hash = hash(space, name);
        if self.hashes.len() < COUNTED_MAX {
            self.count += u64::from(self.hashes.insert(hash));
        } else {
            self.roughly = true;
            self.count += u64::from(!self.hashes.contains(&hash));
        }
    }
}

/// 64 bits that stand for a key where a mix-up costs a count, never a difference unseen.
pub(super) fn hash(space: &Space, name: &[u8]) -> u64 {
    let seed = match space {
        Space::Db(db) => u64::from(*db) + 1,
        Space::Table(name) | Space::Index(name) | Space::Bucket(name) => xxh3_64(name),
        Space::Whole => 0,
    };
    xxh3_64_with_seed(name, seed)
}

/// What is hashed is a hash already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, &byte| hash << 8 | u64::from(byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
