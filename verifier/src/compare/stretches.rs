use std::collections::HashMap;

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::now_ms;

use super::pass::Run;
use super::{Progress, Reader, State, Stretch, Traffic, Verdict};
use crate::error::Result;

/// Keys of a stretch, from fewest to most: the more of them are equal, the less a store has to say for each.
const KEYS_MIN: u64 = 1024;
const KEYS_MAX: u64 = 16_384;

/// After so many of the shortest stretches in a row that differ, they are read without asking for their sums.
const DIFFERING: u32 = 4;

/// Keys of a stretch that is.
const KEYS_READ: u64 = 4096;

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
            // While a stretch is compared, one site looks where the one behind it ends.
            let longer = Next { keys: (next.keys * 2).min(KEYS_MAX), ..next };
            let behind = async {
                match &to {
                    Some(to) => self.end(space, Some(to), &longer).await,
                    None => Ok(None),
                }
            };
            let (keys, behind) = if next.is_read() {
                let (states, behind) = futures_util::try_join!(self.states(space, &stretch), behind)?;
                match states {
                    Ok(states) => {
                        let (keys, differ) = self.judge_stretch(space, states);
                        if !differ {
                            next.differing = 0;
                        }
                        (keys, differ.then_some(behind))
                    }
                    Err(site) => {
                        next.site = site;
                        to = self.end(space, after.as_ref(), &next).await?;
                        continue;
                    }
                }
            } else {
                let sums = async {
                    futures_util::try_join!(first.sum(space, &stretch), second.sum(space, &stretch))
                };
                let ((a, b), behind) = futures_util::try_join!(sums, behind)?;
                if a == b {
                    self.counted.count += a.keys;
                    next = Next { differing: 0, ..longer };
                    (a.keys, Some(behind))
                } else if a.keys.max(b.keys) > KEYS_MIN {
                    next = Next { keys: KEYS_MIN, site: usize::from(b.keys > a.keys), ..next };
                    to = self.end(space, after.as_ref(), &next).await?;
                    continue;
                } else {
                    // There were as few just now.
                    let Ok(states) = self.states(space, &stretch).await? else { continue };
                    next.differing += 1;
                    (self.judge_stretch(space, states).0, None)
                }
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

    /// What both sites hold in a stretch; `Err`: this site has more there than may be held.
    async fn states(&self, space: &Space, stretch: &Stretch) -> Result<std::result::Result<Held, usize>> {
        let [first, second] = self.sites.map(|site| site.states(space, stretch, KEYS_READ_MAX));
        let (a, b) = futures_util::try_join!(first, second)?;
        let mut both = Held::new();
        for (site, states) in [a, b].into_iter().enumerate() {
            let Some(states) = states else { return Ok(Err(site)) };
            for (name, state) in states {
                if let Some(held) = both.entry(name).or_default().get_mut(site) {
                    *held = Some(state);
                }
            }
        }
        Ok(Ok(both))
    }

    /// How many keys there are, and whether any differs.
    fn judge_stretch(&mut self, space: &Space, held: Held) -> (u64, bool) {
        let (now, keys) = (now_ms(), held.len() as u64);
        self.counted.count += keys;
        let mut differ = false;
        for (name, sites) in held {
            if self.settings.judge.judge(sites, now) != Verdict::Equal {
                differ = true;
                self.suspect(space, name, Some(sites));
            }
        }
        (keys, differ)
    }
}

/// What the sites hold, by key.
type Held = HashMap<Bytes, [Option<State>; 2]>;
