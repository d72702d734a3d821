use std::collections::HashMap;

use bytes::Bytes;
use causeway_core::Space;

use super::judge::now_ms;
use super::pass::Run;
use super::{Progress, Reader, State, Stretch, Traffic, Verdict};
use crate::error::Result;

/// Keys of a stretch, from fewest to most: the more of them are equal, the less a store has to say for each.
const KEYS_MIN: u64 = 256;
const KEYS_MAX: u64 = 16_384;

/// After so many of the shortest stretches in a row that differ, they are read without asking for their sums.
const DIFFERING: u32 = 4;

/// Keys of a stretch that is.
const KEYS_READ: u64 = 2048;

/// Keys that a site may have in it; where it has more, it is cut by that site's keys.
const KEYS_READ_MAX: usize = 4 * KEYS_READ as usize;

/// How long the next stretch is.
struct Next {
    keys: u64,
    /// Of the shortest stretches, those in a row that differed.
    differing: u32,
    /// The site by whose keys it ends: the one that has more of them thereabouts.
    site: usize,
}

impl Next {
    fn is_read(&self) -> bool {
        self.differing >= DIFFERING
    }

    fn keys(&self) -> u64 {
        if self.is_read() { KEYS_READ } else { self.keys }
    }
}

impl<R: Reader, T: Traffic> Run<'_, R, T> {
    /// Compares a space whose keys have an order: each stretch by what the stores say of it, and key by key where that
    /// differs. Stretches become longer while they are equal, and short where they are not; where nearly all differ,
    /// they are read at once.
    pub(super) async fn stretches(&mut self, space: &Space, progress: &impl Progress) -> Result<()> {
        let [first, second] = self.sites;
        let mut next = Next { keys: KEYS_MIN, differing: 0, site: 0 };
        let mut after: Option<Bytes> = None;
        let mut to = self.end(space, None, &next).await?;
        loop {
            let stretch = Stretch { after: after.clone(), to: to.clone() };
            let mut behind = None;
            let sums = match next.is_read() {
                true => None,
                false => {
                    // While the sums are made, one site looks where the stretch behind ends.
                    let longer = Next { keys: (next.keys * 2).min(KEYS_MAX), ..next };
                    let ends = async {
                        match &to {
                            Some(to) => self.end(space, Some(to), &longer).await,
                            None => Ok(None),
                        }
                    };
                    let (a, b, end) = futures_util::try_join!(
                        first.sum(space, &stretch),
                        second.sum(space, &stretch),
                        ends
                    )?;
                    if a == b {
                        (next, behind) = (Next { differing: 0, ..longer }, Some(end));
                    }
                    Some((a, b))
                }
            };
            let keys = match sums {
                Some((a, b)) if a == b => {
                    self.counted.count += a.keys;
                    a.keys
                }
                Some((a, b)) if a.keys.max(b.keys) > KEYS_MIN => {
                    next = Next { keys: KEYS_MIN, site: usize::from(b.keys > a.keys), ..next };
                    to = self.end(space, after.as_ref(), &next).await?;
                    continue;
                }
                sums => match self.read_stretch(space, &stretch).await? {
                    Read::Keys { keys, differ } => {
                        let again = sums.is_some() || differ;
                        next.differing = if again { next.differing + 1 } else { 0 };
                        keys
                    }
                    Read::TooMany { site } => {
                        next.site = site;
                        to = self.end(space, after.as_ref(), &next).await?;
                        continue;
                    }
                },
            };
            progress.advance(keys);
            self.settle_if_full().await?;
            let Some(end) = to else { return Ok(()) };
            to = match behind {
                Some(behind) => behind,
                None => self.end(space, Some(&end), &next).await?,
            };
            after = Some(end);
        }
    }

    /// Where the stretch behind `after` ends; `None`: it is the last one.
    async fn end(&self, space: &Space, after: Option<&Bytes>, next: &Next) -> Result<Option<Bytes>> {
        let [first, second] = self.sites;
        let (one, other) = if next.site == 0 { (first, second) } else { (second, first) };
        match one.key_behind(space, after, next.keys()).await? {
            Some(end) => Ok(Some(end)),
            None => other.key_behind(space, after, next.keys()).await,
        }
    }

    /// Reads a stretch at both sites.
    async fn read_stretch(&mut self, space: &Space, stretch: &Stretch) -> Result<Read> {
        let [first, second] = self.sites.map(|site| site.states(space, stretch, KEYS_READ_MAX));
        let (a, b) = futures_util::try_join!(first, second)?;
        let mut both: HashMap<Bytes, [Option<State>; 2]> = HashMap::new();
        for (site, states) in [a, b].into_iter().enumerate() {
            let Some(states) = states else { return Ok(Read::TooMany { site }) };
            for (name, state) in states {
                if let Some(held) = both.entry(name).or_default().get_mut(site) {
                    *held = Some(state);
                }
            }
        }
        let (now, keys) = (now_ms(), both.len() as u64);
        self.counted.count += keys;
        let mut differ = false;
        for (name, sites) in both {
            if self.settings.judge.judge(sites, now) != Verdict::Equal {
                differ = true;
                self.suspect(space, name);
            }
        }
        Ok(Read::Keys { keys, differ })
    }
}

/// What came of reading a stretch.
enum Read {
    /// So many keys, and whether any differs.
    Keys { keys: u64, differ: bool },
    /// This site has more than may be held.
    TooMany { site: usize },
}
