//! What the embedded log promises while nothing goes wrong.

#![allow(clippy::unwrap_used)]

mod log_support;

use std::time::{Duration, SystemTime};

use causeway_core::{Op, Seq};
use futures_util::future::{FutureExt as _, join_all};
use log_support::{append, assert_run, change, changes, open, partition, read_all, small};
use syncd::log::{EmbeddedLog, EmbeddedOptions, Error, Log, Offset};

#[tokio::test]
async fn what_was_appended_reads_back_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (dc, cloud) = (partition("dc"), partition("cloud"));
    let log = open(dir.path(), small()).await;
    assert_eq!(log.bounds(&dc), Offset(0)..Offset(0));
    let first = log.append(&dc, changes(0, 3)).await.unwrap().await.unwrap();
    let second = log.append(&dc, changes(3, 5000)).await.unwrap().await.unwrap();
    let other = log.append(&cloud, changes(0, 1)).await.unwrap().await.unwrap();
    let nothing = log.append(&dc, Vec::new()).await.unwrap().await.unwrap();
    assert_eq!((first, second, other, nothing), (Offset(0), Offset(3), Offset(0), Offset(5000)));
    for step in [1, 3000, 1 << 30] {
        assert_run(&read_all(&log, &dc, Offset(0), step).await.unwrap(), 0, 5000);
    }
    log.close().await;
    assert!(matches!(log.append(&dc, Vec::new()).await, Err(Error::Closed { .. })));

    let log = open(dir.path(), small()).await;
    assert_eq!(log.partitions(), [cloud.clone(), dc.clone()]);
    assert_eq!(log.bounds(&dc), Offset(0)..Offset(5000));
    assert_run(&read_all(&log, &dc, Offset(0), 5000).await.unwrap(), 0, 5000);
    append(&log, &dc, 5000, 5010).await;
    assert_run(&read_all(&log, &dc, Offset(4990), 1).await.unwrap(), 4990, 5010);
    assert_run(&read_all(&log, &cloud, Offset(0), 1).await.unwrap(), 0, 1);
    assert!(log.read(&dc, Offset(6000), 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_reader_at_the_tail_needs_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), EmbeddedOptions::default()).await;
    append(&log, &id, 0, 2000).await;
    // Without the files there is only memory to read from.
    std::fs::remove_dir_all(dir.path().join("tags.dc.0")).unwrap();
    assert_run(&read_all(&log, &id, Offset(0), 10_000).await.unwrap(), 0, 2000);
}

#[tokio::test]
async fn a_read_stops_near_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    append(&log, &id, 0, 1000).await;
    let some = log.read(&id, Offset(0), 5000).await.unwrap();
    let cost: usize = some.iter().map(|(_, change)| change.cost()).sum();
    assert!((5000..6000).contains(&cost), "{cost}");
    assert_eq!(log.read(&id, Offset(999), 0).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_keep_their_order_while_others_append() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), EmbeddedOptions { in_flight_bytes: 20_000, ..small() }).await;
    let writers = (0..4).map(|number| {
        let log = log.clone();
        tokio::spawn(async move {
            let id = partition(if number % 2 == 0 { "dc" } else { "cloud" });
            let mut handles = Vec::new();
            for n in 0..300 {
                let mut pair = changes(2 * n, 2 * n + 2);
                pair.iter_mut().for_each(|change| change.epoch = number);
                handles.push(log.append(&id, pair).await.unwrap());
            }
            let offsets = join_all(handles).await;
            let offsets: Vec<_> = offsets.into_iter().map(|offset| offset.unwrap()).collect();
            assert!(offsets.is_sorted());
            (id, number, offsets)
        })
    });
    for done in join_all(writers).await {
        let (id, number, offsets) = done.unwrap();
        let own = read_all(&log, &id, Offset(0), 100_000).await.unwrap();
        let own: Vec<_> = own.into_iter().filter(|(_, change)| change.epoch == number).collect();
        assert_eq!(own.len(), 600);
        for (n, (offset, change)) in own.iter().enumerate() {
            assert_eq!(change.seq, Seq(n as u64));
            assert_eq!(offset.0, offsets[n / 2].0 + n as u64 % 2, "one call's changes stand together");
        }
    }
}

#[tokio::test]
async fn a_seq_is_found_among_fences_and_behind_what_was_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    let mut all = Vec::new();
    for n in 0..8000u64 {
        if n % 100 == 0 {
            let mut fence = change(n);
            (fence.op, fence.seq) = (Op::Fence, Seq(0));
            all.push(fence);
        }
        let mut change = change(n);
        change.seq = Seq(n + n / 1000);
        all.push(change);
    }
    for some in all.chunks(50) {
        log.append(&id, some.to_vec()).await.unwrap().await.unwrap();
    }
    for seq in [0, 1, 99, 100, 4_003, 4_004, 8_006, 8_007, 9_000] {
        let expected = all.iter().position(|change| change.op != Op::Fence && change.seq >= Seq(seq));
        let expected = expected.unwrap_or(all.len()) as u64;
        assert_eq!(log.locate(&id, Seq(seq)).await.unwrap(), Offset(expected), "seq {seq}");
    }
    assert!(log.trim(&id, Offset(7000)).await.unwrap() > 0);
    let start = log.bounds(&id).start;
    let first = read_all(&log, &id, start, 1 << 20).await.unwrap();
    let (first, _) = first.iter().find(|(_, change)| change.op != Op::Fence).unwrap();
    assert_eq!(log.locate(&id, Seq(5)).await.unwrap(), *first);
}

#[tokio::test]
async fn a_waiter_wakes_when_records_are_durable() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    let mut wait = Box::pin(log.wait_beyond(&id, Offset(1)));
    assert!(wait.as_mut().now_or_never().is_none());
    append(&log, &id, 0, 1).await;
    assert!(wait.as_mut().now_or_never().is_none());
    append(&log, &id, 1, 2).await;
    wait.await;
    assert_eq!(log.bounds(&id).end, Offset(2));
    let forever = log.wait_beyond(&id, Offset(9));
    tokio::join!(forever, log.close());
}

#[tokio::test]
async fn retention_forgets_only_what_is_below_and_old() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let hour = Duration::from_secs(3600);
    let log = open(dir.path(), EmbeddedOptions { age_min: hour, ..small() }).await;
    append(&log, &id, 0, 20_000).await;
    let full = log.size_bytes();
    assert_eq!(log.trim(&id, Offset(20_000)).await.unwrap(), 0, "all of it is too young");
    for entry in std::fs::read_dir(dir.path().join("tags.dc.0")).unwrap() {
        let file = std::fs::File::options().append(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(SystemTime::now() - 2 * hour).unwrap();
    }
    let gone = log.trim(&id, Offset(10_000)).await.unwrap();
    assert!((5_000..=10_000).contains(&gone), "{gone}");
    assert_eq!(log.bounds(&id), Offset(gone)..Offset(20_000));
    assert!(log.size_bytes() < full * 9 / 10, "{} of {full}", log.size_bytes());
    let trimmed = log.read(&id, Offset(gone - 1), 1).await;
    assert!(matches!(trimmed, Err(Error::Trimmed { start, .. }) if start == Offset(gone)));
    assert_run(&read_all(&log, &id, Offset(gone), 100_000).await.unwrap(), gone, 20_000);
}

#[tokio::test]
async fn a_log_that_is_trimmed_to_its_end_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    append(&log, &id, 0, 2000).await;
    assert_eq!(log.trim(&id, Offset(u64::MAX)).await.unwrap(), 2000);
    assert_eq!(log.bounds(&id), Offset(2000)..Offset(2000));
    assert!(log.read(&id, Offset(2000), 1).await.unwrap().is_empty());
    log.close().await;
    let log = open(dir.path(), small()).await;
    assert_eq!(log.bounds(&id), Offset(2000)..Offset(2000));
    append(&log, &id, 2000, 2001).await;
    assert_run(&read_all(&log, &id, Offset(2000), 1).await.unwrap(), 2000, 2001);
}

#[tokio::test]
async fn a_full_log_says_so_and_goes_on_when_something_was_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let options = EmbeddedOptions { size_max: 8 << 20, in_flight_bytes: 1 << 20, ..small() };
    let log = open(dir.path(), options).await;
    let writer = {
        let (log, id) = (log.clone(), id.clone());
        tokio::spawn(async move { append(&log, &id, 0, 100_000).await })
    };
    while log.room().is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Err(Error::Full { reason, .. }) = log.room() else { panic!("it is full") };
    assert!(reason.contains("allowed are 8388608"), "{reason}");
    let mut at = Offset(0);
    while at < Offset(100_000) {
        let records = read_all(&log, &id, at, 1 << 20).await.unwrap();
        assert_run(&records, at.0, at.0 + records.len() as u64);
        at = Offset(at.0 + records.len() as u64);
        log.trim(&id, at).await.unwrap();
        log.room_returned().await;
        assert!(log.size_bytes() <= 9 << 20);
    }
    writer.await.unwrap();
    assert_eq!(log.bounds(&id).end, Offset(100_000));
}

/// The lock is the folder's, so a second daemon is refused whatever its configuration says.
#[tokio::test]
async fn a_second_opener_is_refused_and_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).await;
    let Err(Error::InUse { pid, .. }) = EmbeddedLog::open(dir.path(), small()).await else {
        panic!("opened twice")
    };
    assert_eq!(pid, std::process::id().to_string());
    log.close().await;
    EmbeddedLog::open(dir.path(), small()).await.unwrap();
}

#[tokio::test]
async fn a_folder_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), small()).await.close().await;
    std::fs::write(dir.path().join("format"), "2\n").unwrap();
    let refused = EmbeddedLog::open(dir.path(), small()).await;
    assert!(matches!(refused, Err(Error::Newer { found: 2, known: 1, .. })));
}

#[tokio::test]
async fn any_name_has_a_folder_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), small()).await;
    let mut ids = Vec::new();
    for (channel, origin) in [("a.b", "c"), ("a", "b.c"), ("../x", "/"), ("ünï", "%41"), ("A", "%")] {
        let id =
            syncd::log::PartitionId { channel: channel.to_owned(), origin: origin.to_owned(), number: 7 };
        append(&log, &id, 0, 1).await;
        ids.push(id);
    }
    log.close().await;
    ids.sort();
    assert_eq!(open(dir.path(), small()).await.partitions(), ids);
    let long = syncd::log::PartitionId { channel: "x".repeat(300), origin: "dc".to_owned(), number: 0 };
    let log = open(&dir.path().join("other"), small()).await;
    assert!(matches!(log.append(&long, changes(0, 1)).await, Err(Error::Name { .. })));
}
