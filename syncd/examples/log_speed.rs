//! What a record costs in the embedded log: appends records of about 150 bytes in calls of 100, reads them
//! at the tail at the same time, then all of them again from disk, and prints rates and CPU seconds.
//!
//! `log_speed [DIR] [RECORDS]`; `bench/log/speed` is the usual way to call it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use causeway_core::{Change, Hlc, Key, Op, Position, Seq, Space, Term};
use causeway_testkit::process::cpu_seconds;
use syncd::log::{EmbeddedLog, EmbeddedOptions, Log, Offset, PartitionId};

fn change(n: u64, history: &Bytes, value: &Bytes) -> Change {
    let key =
        Key { space: Space::Db(0), name: Bytes::from(format!("push:app-{:05}:dev-{n:012}", n % 20_000)) };
    let pos = Position { history: history.clone(), at: n * 143, context: Bytes::from_static(b"0") };
    let time = 1_760_000_000_000 + n / 100;
    let mut change = Change::captured(Op::Command, key, Some(value.clone()), pos, time);
    change.seq = Seq(n);
    change.term = Term(3);
    change.hlc = Hlc(time << 21 | (n % 100) << 9);
    change.seen = Seq(n / 7);
    change.low = Seq(n / 7);
    change
}

/// CPU seconds of this process, all threads.
fn cpu() -> Result<f64> {
    cpu_seconds(std::process::id())
}

async fn read(log: &EmbeddedLog, id: &PartitionId, count: u64) -> Result<()> {
    let mut at = Offset(0);
    while at.0 < count {
        let some = log.read(id, at, 1 << 20).await?;
        match some.last() {
            Some((last, _)) => at = Offset(last.0 + 1),
            None => log.wait_beyond(id, at).await,
        }
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let base = PathBuf::from(args.next().unwrap_or_else(|| "/tmp".to_owned()));
    let count: u64 = args.next().map_or(Ok(2_000_000), |text| text.parse())? / 100 * 100;
    let dir = tempfile::tempdir_in(base)?;
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).await?;
    let id = Arc::new(PartitionId { channel: "tags".to_owned(), origin: "dc".to_owned(), number: 0 });
    let (history, value) = (Bytes::from(vec![b'f'; 40]), Bytes::from(vec![b'v'; 120]));
    let cpu_start = cpu()?;
    for n in 0..count {
        std::hint::black_box(change(n, &history, &value));
    }
    let making = cpu()? - cpu_start;
    println!("making {count} changes: {:.0} ns CPU each (not the log's)", making / count as f64 * 1e9);

    let report = |what: &str, started: Instant, cpu: f64| {
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{what}: {:.0} records/s, {:.0} ns CPU each",
            count as f64 / seconds,
            cpu / count as f64 * 1e9
        );
    };
    let (cpu_start, started) = (cpu()?, Instant::now());
    let reader = {
        let (log, id) = (log.clone(), id.clone());
        tokio::spawn(async move { read(&log, &id, count).await })
    };
    let mut last = None;
    for n in (0..count).step_by(100) {
        let changes = (n..n + 100).map(|n| change(n, &history, &value)).collect();
        last = Some(log.append(&id, changes).await?);
    }
    if let Some(last) = last {
        last.await?;
    }
    reader.await??;
    report("append, durable, and read at the tail", started, cpu()? - cpu_start - making);
    println!("on disk: {:.0} bytes a record", log.size_bytes() as f64 / count as f64);

    log.close().await;
    let log = EmbeddedLog::open(dir.path(), EmbeddedOptions { cache_bytes: 0, ..Default::default() }).await?;
    let (cpu_start, started) = (cpu()?, Instant::now());
    read(&log, &id, count).await?;
    report("read again from disk", started, cpu()? - cpu_start);

    let started = Instant::now();
    let other = PartitionId { number: 1, ..(*id).clone() };
    for n in 0..1000 {
        log.append(&other, vec![change(n, &history, &value)]).await?.await?;
    }
    println!("one record at a time, durable: {:.2} ms each", started.elapsed().as_secs_f64());
    Ok(())
}
