use std::time::Duration;

use causeway_core::{Key, Position, Space};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::{EmbeddedLog, EmbeddedOptions, Offset};

const RECORDS: u64 = 30_000;

fn change(seq: u64) -> Change {
    let key = Key { space: Space::Db(0), name: format!("key:{seq}").into() };
    let change = Change::captured(Op::Put, key, None, Position::default(), 0);
    Change { seq: Seq(seq), ..change }
}

/// A log of `RECORDS`, with a fence among them now and then.
async fn log(dir: &std::path::Path) -> (Arc<dyn Log>, PartitionId) {
    let id = PartitionId { channel: "push".to_owned(), origin: "dc".to_owned(), number: 0 };
    // Segments that retention can take.
    let options = EmbeddedOptions {
        age_min: Duration::ZERO,
        segment_bytes: 256 << 10,
        block_bytes: 16 << 10,
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(dir, options).await.unwrap();
    for from in (0..RECORDS).step_by(1_000) {
        let term = causeway_core::Term(log.bounds(&id).end.0);
        let fence = Change { op: Op::Fence, key: Key::none(), term, ..change(0) };
        let placed = log.append(&id, vec![fence]).await.unwrap();
        placed.await.unwrap();
        let changes = (from..from + 1_000).map(|seq| Change { term, ..change(seq) }).collect();
        let placed = log.append(&id, changes).await.unwrap();
        placed.await.unwrap();
    }
    (log, id)
}

fn seqs<'a>(changes: impl Iterator<Item = &'a Change>) -> Vec<u64> {
    changes.map(|change| change.seq.0).collect()
}

/// Whatever is asked for, and whatever of it is kept, comes back.
#[tokio::test]
async fn what_is_wanted_is_found_wherever_one_has_read() {
    let dir = tempfile::tempdir().unwrap();
    let (log, id) = log(dir.path()).await;
    let mut random = SmallRng::seed_from_u64(7);
    for records_kept in [10, 5_000, 2 * RECORDS as usize] {
        let mut lookback = Lookback::new(Arc::clone(&log), id.clone(), records_kept * change(RECORDS).cost());
        for _ in 0..60 {
            let (start, spread) = (random.random_range(0..RECORDS), random.random_range(1..RECORDS));
            let end = (start + spread).min(RECORDS);
            let wanted: BTreeSet<Seq> = (0..20).map(|_| Seq(random.random_range(start..end))).collect();
            let found = lookback.fetch(&wanted).await.unwrap();
            assert!(wanted.iter().all(|seq| found[seq].seq == *seq) && found.len() == wanted.len());
            let range = Seq(start)..Seq(end);
            if let Some(kept) = lookback.range(range).await.unwrap() {
                assert_eq!(seqs(kept), (start..end).collect::<Vec<_>>());
            } else {
                assert!(records_kept < RECORDS as usize, "{start}..{end} fits");
            }
            let held: usize = lookback.kept.iter().map(Change::cost).sum();
            assert_eq!(held, lookback.bytes);
            assert!(held <= lookback.bytes_max + (3 << 20), "{held}");
        }
    }
}

/// All of it fits: it is read once, from either end, and then from memory.
#[tokio::test]
async fn what_is_kept_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, id) = log(dir.path()).await;
    let mut lookback = Lookback::new(Arc::clone(&log), id, 1 << 30);
    lookback.fetch(&BTreeSet::from([Seq(20_000)])).await.unwrap();
    lookback.fetch(&BTreeSet::from([Seq(0), Seq(RECORDS - 1)])).await.unwrap();
    log.close().await;
    assert_eq!(lookback.range(Seq(0)..Seq(RECORDS)).await.unwrap().unwrap().count(), RECORDS as usize);
    assert_eq!(lookback.fetch(&BTreeSet::from([Seq(5), Seq(29_000)])).await.unwrap().len(), 2);
    assert!(lookback.range(Seq(9)..Seq(9)).await.unwrap().is_none());
}

/// Whoever stands where retention took what nobody wants any more reads on behind it.
#[tokio::test]
async fn what_has_gone_meanwhile_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (log, id) = log(dir.path()).await;
    let mut lookback = Lookback::new(Arc::clone(&log), id.clone(), 1 << 30);
    lookback.fetch(&BTreeSet::from([Seq(5)])).await.unwrap();
    let read_to = lookback.end();
    log.trim(&id, Offset(RECORDS - 1_000)).await.unwrap();
    let start = log.bounds(&id).start;
    let gone = log.read(&id, start, usize::MAX).await.unwrap();
    let oldest = gone.iter().find(|(_, change)| change.op != Op::Fence).unwrap().1.seq;
    assert!(read_to < oldest && oldest < Seq(RECORDS - 1), "{read_to} {oldest}");
    let wanted = BTreeSet::from([read_to, Seq(oldest.0 - 1), oldest, Seq(RECORDS - 1)]);
    let found = lookback.fetch(&wanted).await.unwrap();
    let mut seqs: Vec<_> = found.keys().copied().collect();
    seqs.sort();
    assert_eq!(seqs, [oldest, Seq(RECORDS - 1)]);
}

/// What was wanted once and is too far apart to be kept with all between is not read again.
#[tokio::test]
async fn what_is_far_apart_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let (log, id) = log(dir.path()).await;
    let mut lookback = Lookback::new(Arc::clone(&log), id, 5_000 * change(RECORDS).cost());
    let wanted = BTreeSet::from([5, 9_000, 20_000, RECORDS - 1].map(Seq));
    let keys =
        |seqs: [u64; 3]| seqs.map(|seq| (key_digest(&change(seq).key), Seq(seq))).into_iter().collect();
    let of_keys = keys([7, 10_000, 25_000]);
    assert_eq!(lookback.fetch(&wanted).await.unwrap().len(), 4);
    let found = lookback.of_keys(&of_keys, Seq(20_000)).await.unwrap();
    assert_eq!(seqs(found.iter()), [7, 10_000]);
    let found = lookback.of_keys(&of_keys, Seq(RECORDS)).await.unwrap();
    assert_eq!(seqs(found.iter()), [7, 10_000, 25_000]);
    log.close().await;
    assert_eq!(lookback.fetch(&wanted).await.unwrap().len(), 4);
    assert_eq!(lookback.fetch(&BTreeSet::from([Seq(5), Seq(9_000)])).await.unwrap().len(), 2);
    assert_eq!(seqs(lookback.of_keys(&of_keys, Seq(RECORDS)).await.unwrap().iter()), [7, 10_000, 25_000]);
    let later = keys([7, 10_001, 25_000]);
    let found = lookback.of_keys(&later, Seq(RECORDS)).await;
    assert!(found.is_err(), "another key is not held, and the log is closed");
}
