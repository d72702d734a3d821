//! What the log's tests share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Change, Key, Op, Position, Seq, Space, Term};
use syncd::log::{EmbeddedLog, EmbeddedOptions, Error, Log, Offset, PartitionId};

pub fn partition(origin: &str) -> PartitionId {
    PartitionId { channel: "tags".to_owned(), origin: origin.to_owned(), number: 0 }
}

/// The `n`th change of a run: all that is in it follows from `n`.
pub fn change(n: u64) -> Change {
    let key = Key { space: Space::Db(0), name: Bytes::from(format!("key:{n}")) };
    let value = Bytes::from(format!("value {n} ").repeat(1 + (n % 17) as usize));
    let pos = Position { history: Bytes::from_static(b"run"), at: n * 10, context: Bytes::from_static(b"0") };
    let mut change = Change::captured(Op::Command, key, Some(value), pos, 1_760_000_000_000 + n);
    change.seq = Seq(n);
    change.term = Term(1);
    change
}

pub fn changes(from: u64, to: u64) -> Vec<Change> {
    (from..to).map(change).collect()
}

/// Small segments, groups and blocks, so that a test of a few megabytes has many; nothing is too young to go.
pub fn small() -> EmbeddedOptions {
    EmbeddedOptions {
        age_min: Duration::ZERO,
        cache_bytes: 0,
        in_flight_bytes: 64 << 10,
        block_bytes: 4096,
        segment_bytes: 512 << 10,
        ..EmbeddedOptions::default()
    }
}

pub async fn open(dir: &Path, options: EmbeddedOptions) -> Arc<EmbeddedLog> {
    // A writer that was just killed may take a moment to let go.
    for _ in 0..100 {
        match EmbeddedLog::open(dir, options.clone()).await {
            Err(Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            opened => return opened.expect("the log opens"),
        }
    }
    panic!("the log stays in use");
}

/// Appends `from..to` and waits until all is durable.
pub async fn append(log: &Arc<impl Log>, id: &PartitionId, from: u64, to: u64) {
    let mut last = None;
    for n in (from..to).step_by(20) {
        last = Some(log.append(id, changes(n, (n + 20).min(to))).await.unwrap());
    }
    if let Some(last) = last {
        last.await.unwrap();
    }
}

/// Everything from `from` on, read in steps of `bytes_max`.
pub async fn read_all(
    log: &Arc<impl Log>,
    id: &PartitionId,
    from: Offset,
    bytes_max: usize,
) -> Result<Vec<(Offset, Change)>, Error> {
    let mut all = Vec::new();
    let mut at = from;
    loop {
        let some = log.read(id, at, bytes_max).await?;
        let Some((last, _)) = some.last() else { return Ok(all) };
        at = Offset(last.0 + 1);
        all.extend(some);
    }
}

/// That `from..to` stand there, each under its own number.
pub fn assert_run(records: &[(Offset, Change)], from: u64, to: u64) {
    assert_eq!(records.len() as u64, to - from, "records {from}..{to}");
    for ((offset, read), n) in records.iter().zip(from..) {
        assert_eq!(offset.0, n);
        assert!(*read == change(n), "record {n} is another");
    }
}
