use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::now_ms;

use super::pass::{Run, read_both};
use super::{Outcome, Progress, Reader, Settings, Traffic, Verdict};
use crate::error::Result;

/// Keys read in one go.
const CHUNK: usize = 1000;

/// Something that is to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// A key, by the name that the log gives it.
    Key(Space, Bytes),
    /// All of a space; [`Space::Whole`]: all there is.
    Space(Space),
}

/// Says what is to be compared.
pub(crate) trait Naming {
    /// Some more of it, a name perhaps more than once; `None`: that was all.
    async fn next(&mut self) -> Result<Option<Vec<Name>>>;
}

/// What a reader makes of a name of the log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// One of its keys.
    Key,
    /// A key of which the log's name is not known to be its own: all of the space is to be compared.
    Space,
    /// None that is compared.
    Outside,
}

/// Compares what `naming` names, and nothing else: each key, and all of the spaces where something has no name. Where a key
/// is absent at both sites they are equal there.
///
/// Memory: as [`compare`](super::compare).
///
/// # Errors
///
/// Those of the readers, and of `naming`.
pub(crate) async fn compare_named<R: Reader>(
    sites: [&R; 2],
    naming: &mut impl Naming,
    traffic: &impl Traffic,
    progress: &impl Progress,
    settings: Settings,
) -> Result<Outcome> {
    let mut run = Run::new(sites, traffic, settings);
    let mut whole = BTreeSet::new();
    progress.begin("comparing what was written", 0);
    while let Some(some) = naming.next().await? {
        let looked_through = some.len() as u64;
        progress.expect(looked_through);
        let mut keys: BTreeMap<Space, Vec<Bytes>> = BTreeMap::new();
        for name in some {
            match name {
                Name::Space(space) => {
                    whole.insert(space);
                }
                Name::Key(space, name) if run.is_counted(&space, &name) || whole.contains(&space) => {}
                Name::Key(space, name) => match sites[0].place(&space, &name) {
                    Place::Key => keys.entry(space).or_default().push(name),
                    Place::Space => {
                        whole.insert(space);
                    }
                    Place::Outside => {}
                },
            }
        }
        for (space, mut names) in keys {
            names.sort_unstable();
            names.dedup();
            for some in names.chunks(CHUNK) {
                run.look(&space, some).await?;
            }
        }
        run.settle_if_full().await?;
        progress.advance(looked_through);
    }
    progress.end();
    // What a table is made of may have changed, and its rows may have no names.
    let tables: Vec<Bytes> = whole
        .iter()
        .filter_map(|space| match space {
            Space::Table(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    run.look(&Space::Whole, &tables).await?;
    if !whole.is_empty() {
        run.spaces(progress, |space| whole.contains(space) || whole.contains(&Space::Whole)).await?;
    }
    run.finish().await
}

impl<R: Reader, T: Traffic> Run<'_, R, T> {
    /// Reads `names`, and suspects those that differ.
    async fn look(&mut self, space: &Space, names: &[Bytes]) -> Result<()> {
        let states = read_both(self.sites, space, names).await?;
        let now = now_ms();
        for (name, states) in names.iter().zip(states) {
            self.count(space, name);
            if self.settings.judge.judge(states, now) != Verdict::Equal {
                self.suspect(space, name.clone(), Some(states));
            }
        }
        Ok(())
    }
}
