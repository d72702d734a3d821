use std::collections::HashMap;

use bytes::Bytes;
use causeway_core::Space;
use causeway_core::time::now_ms;

use super::pass::Settings;
use super::{Difference, Outcome, Reader, Rest, State, Traffic, Verdict};
use crate::error::Result;

/// Keys read again in one go.
const CHUNK: usize = 1000;

/// A key that may differ.
type Candidate = (Space, Bytes);

/// Keys that may differ, and what each was when it was read, if it was.
pub(crate) type Candidates = HashMap<Candidate, Option<[Option<State>; 2]>>;

/// A candidate while it is read again and again.
struct Open {
    key: Candidate,
    /// What it was when it was read last.
    last: Option<[Option<State>; 2]>,
}

/// Reads `candidates` again until each is equal, or was the same at both sites in two rounds in a row while
/// nothing was under way to change it; what that never happens to is undecided. Each round begins with a
/// wait for the traffic. Where it is known that all of that was applied, what was read before the first round counts
/// as one.
pub(super) async fn settle<R: Reader>(
    sites: [&R; 2],
    candidates: Candidates,
    traffic: &impl Traffic,
    settings: Settings,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut open: Vec<Open> = candidates.into_iter().map(|(key, last)| Open { key, last }).collect();
    // In the order of the keys, so that two runs list the same.
    open.sort_unstable_by(|a, b| a.key.cmp(&b.key));

    for round in 0..settings.rounds_max {
        if open.is_empty() {
            return Ok(());
        }
        let rest = traffic.rest().await;
        let mut unsettled = Vec::new();
        for chunk in open.chunk_by(|a, b| a.key.0 == b.key.0).flat_map(|space| space.chunks(CHUNK)) {
            let now_held = read(sites, chunk).await?;
            for (one, sites) in chunk.iter().zip(now_held) {
                let stable = one.last == Some(sites) && (round > 0 || rest == Rest::Applied);
                match settings.judge.judge(sites, now_ms()) {
                    Verdict::Equal => {}
                    Verdict::Different(kind) if stable && rest != Rest::Moving => {
                        let (space, name) = one.key.clone();
                        let parts = Vec::new();
                        outcome.add(
                            Difference { space, name, kind: Some(kind), sites, parts },
                            settings.list_max,
                        );
                    }
                    Verdict::Different(_) => {
                        unsettled.push(Open { key: one.key.clone(), last: Some(sites) });
                    }
                }
            }
        }
        open = unsettled;
    }
    for Open { key: (space, name), last } in open {
        let sites = last.unwrap_or_default();
        outcome.add(Difference { space, name, kind: None, sites, parts: Vec::new() }, settings.list_max);
    }
    Ok(())
}

/// Compares `candidates` alone, as [`settle`] does.
///
/// # Errors
///
/// Those of the readers.
pub(crate) async fn recheck<R: Reader>(
    sites: [&R; 2],
    candidates: Candidates,
    traffic: &impl Traffic,
    settings: Settings,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    settle(sites, candidates, traffic, settings, &mut outcome).await?;
    Ok(outcome)
}

/// Reads the keys of one space at both sites, each as it is there.
async fn read<R: Reader>(sites: [&R; 2], chunk: &[Open]) -> Result<Vec<[Option<State>; 2]>> {
    let Some(Open { key: (space, _), .. }) = chunk.first() else { return Ok(Vec::new()) };
    let names: Vec<Bytes> = chunk.iter().map(|one| one.key.1.clone()).collect();
    let of_site = async |reader: &R| {
        let hints = reader.look(space, &names).await?;
        reader.read(space, &names, &hints).await
    };
    let (a, b) = futures_util::try_join!(of_site(sites[0]), of_site(sites[1]))?;
    Ok(a.into_iter().zip(b).map(|(a, b)| [a, b]).collect())
}
