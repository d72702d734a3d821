//! What is left of the log after a crash, and after its files were damaged.

#![allow(clippy::unwrap_used)]

mod log_support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log_support::{append, assert_run, changes, open, partition, read_all, small};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::log::{Error, Log, Offset};

const DIR: &str = "CAUSEWAY_LOG_TEST_DIR";

/// The other process: goes on where the log ends, and says what is durable.
#[tokio::test]
#[ignore = "run by the tests of this file, in a process of its own"]
async fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let log = open(Path::new(&dir), small()).await;
    let ids = [partition("dc"), partition("cloud")];
    let mut next = ids.each_ref().map(|id| log.bounds(id).end.0);
    let mut random = SmallRng::seed_from_u64(next[0]);
    for id in ids.clone() {
        let log = log.clone();
        tokio::spawn(async move {
            // What is durable can be read whatever happens; the small options keep nothing in memory.
            loop {
                let end = log.bounds(&id).end.0;
                if end > 0
                    && let Err(error) = log.read(&id, Offset(end - 1), 1).await
                {
                    println!("error {error}");
                    std::process::exit(1);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..1_000_000 {
        for (i, id) in ids.iter().enumerate() {
            let count = random.random_range(1..60);
            let handle = log.append(id, changes(next[i], next[i] + count)).await.unwrap();
            next[i] += count;
            under_way.push_back((i, next[i], handle));
        }
        while under_way.len() > 16 {
            let Some((i, end, handle)) = under_way.pop_front() else { break };
            handle.await.unwrap();
            // One write, so that a kill leaves no half a line.
            std::io::stdout().write_all(format!("durable {i} {end}\n").as_bytes()).unwrap();
        }
    }
}

fn child(dir: &Path, with: &[&str]) -> Child {
    let me = std::env::current_exe().unwrap();
    let test = ["--exact", "child_that_appends_until_it_is_killed", "--ignored", "--nocapture"];
    let (program, args) = match with {
        [] => (me.into_os_string(), Vec::new()),
        [program, args @ ..] => {
            (program.into(), args.iter().map(Into::into).chain([me.into_os_string()]).collect())
        }
    };
    let mut command = Command::new(program);
    command.args(args).args(test).env(DIR, dir).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// The end of each partition that the child said was durable, up to its death.
fn durable(child: &mut Child, mut each: impl FnMut(&mut Child, [u64; 2])) -> [u64; 2] {
    let mut ends = [0; 2];
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Ok(line) = line else { break };
        assert!(!line.starts_with("error"), "{line}");
        let words: Vec<_> = line.split(' ').collect();
        if let ["durable", i, end] = words[..] {
            ends[i.parse::<usize>().unwrap()] = end.parse().unwrap();
            each(child, ends);
        }
    }
    child.wait().unwrap();
    ends
}

/// Promise 1: acknowledged is durable. Once more after each kill, on top of what is there.
#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = SmallRng::seed_from_u64(20_261_122);
    let mut before = [0; 2];
    for round in 0..25 {
        let lines = random.random_range(1..120);
        let mut seen = 0;
        let mut child = child(dir.path(), &[]);
        let acked = durable(&mut child, |child, _| {
            seen += 1;
            if seen == lines {
                // Somewhere within the next group commits.
                std::thread::sleep(Duration::from_micros(random.random_range(0..3000)));
                child.kill().unwrap();
            }
        });
        let log = open(dir.path(), small()).await;
        for (i, id) in [partition("dc"), partition("cloud")].iter().enumerate() {
            let bounds = log.bounds(id);
            assert!(
                bounds.end.0 >= acked[i].max(before[i]),
                "round {round}: {bounds:?}, acknowledged {acked:?}"
            );
            let from = before[i].saturating_sub(500);
            assert_run(&read_all(&log, id, Offset(from), 1 << 20).await.unwrap(), from, bounds.end.0);
            before[i] = bounds.end.0;
        }
        log.close().await;
    }
    let log = open(dir.path(), small()).await;
    assert_run(&read_all(&log, &partition("dc"), Offset(0), 1 << 20).await.unwrap(), 0, before[0]);
    assert!(before[0] > 1000);
}

/// A log of two partitions whose writer was killed, and the end of each.
async fn killed(dir: &Path, records: u64) -> [u64; 2] {
    let mut child = child(dir, &[]);
    let acked = durable(&mut child, |child, ends| {
        if ends[0] >= records {
            child.kill().unwrap();
        }
    });
    assert!(acked[0] >= records);
    acked
}

fn segments(dir: &Path, origin: &str) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir.join(format!("tags.{origin}.0")))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "redb"))
        .collect();
    all.sort();
    all
}

/// Reads everything that can be read: either it is what was written, or the error names its place.
async fn read_around(dir: &Path, origin: &str, acked: u64) -> (u64, Vec<String>) {
    let log = open(dir, small()).await;
    let id = partition(origin);
    let end = log.bounds(&id).end;
    assert!(end.0 >= acked, "offsets are never given twice");
    let (mut at, mut good, mut errors) = (Offset(0), 0, Vec::new());
    while at < end {
        match log.read(&id, at, 1 << 20).await {
            Ok(records) => {
                assert_run(&records, at.0, at.0 + records.len() as u64);
                good += records.len() as u64;
                at = Offset(at.0 + records.len() as u64);
            }
            Err(Error::Corrupt { partition, from, to, reason, .. }) => {
                assert_eq!((&partition, from), (&id, at));
                assert!(to > from && to <= end, "{from}..{to} of {end}");
                errors.push(format!("{from}..{to} {reason}"));
                at = to;
            }
            Err(other) => panic!("{other}"),
        }
    }
    // And it goes on behind the damage.
    let first = log.append(&id, changes(end.0, end.0 + 3)).await.unwrap().await.unwrap();
    assert_eq!(first, end);
    assert_run(&log.read(&id, end, 1 << 20).await.unwrap(), end.0, end.0 + 3);
    log.close().await;
    (good, errors)
}

/// FF42. The last write is torn: the tail of the newest segment is cut off or overwritten.
#[tokio::test]
async fn a_torn_tail_is_recovered_or_named() {
    let origin = tempfile::tempdir().unwrap();
    let acked = killed(origin.path(), 3000).await;
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..16 {
        let dir = copy(origin.path());
        let path = segments(dir.path(), "dc").pop().unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        let cut = random.random_range(0..length);
        if round % 2 == 0 {
            file.set_len(cut).unwrap();
        } else {
            let noise: Vec<u8> = (0..4096).map(|_| random.random()).collect();
            file.write_all_at(&noise, cut).unwrap();
        }
        let (good, errors) = read_around(dir.path(), "dc", acked[0]).await;
        assert!(good >= acked[0] || !errors.is_empty(), "round {round}: {good} of {} and no error", acked[0]);
        let (good, errors) = read_around(dir.path(), "cloud", acked[1]).await;
        assert!(good >= acked[1] && errors.is_empty(), "the other partition is whole");
    }
}

/// FF42. Bits flip somewhere in the middle, in any segment, after a crash and after a clean stop.
#[tokio::test]
async fn a_flipped_bit_is_named_and_costs_no_other_partition() {
    let origin = tempfile::tempdir().unwrap();
    let acked = killed(origin.path(), 3000).await;
    let mut random = SmallRng::seed_from_u64(8);
    let mut named = 0;
    for round in 0..24 {
        let dir = copy(origin.path());
        if round % 2 == 0 {
            open(dir.path(), small()).await.close().await;
        }
        for path in segments(dir.path(), "dc") {
            let mut bytes = std::fs::read(&path).unwrap();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1u8 << random.random_range(0..8u8);
            }
            std::fs::write(&path, bytes).unwrap();
        }
        let (good, errors) = read_around(dir.path(), "dc", acked[0]).await;
        assert!(good >= acked[0] || !errors.is_empty(), "round {round}: {good} of {} and no error", acked[0]);
        named += errors.len();
        let (good, errors) = read_around(dir.path(), "cloud", acked[1]).await;
        assert!(good >= acked[1] && errors.is_empty(), "the other partition is whole");
    }
    assert!(named > 0, "no flip hit anything");
}

/// A record's own bytes are changed, the store's are not: nothing below the log would notice.
#[tokio::test]
async fn a_changed_value_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    append(&log, &id, 0, 2000).await;
    log.close().await;
    let mut changed = 0;
    for path in segments(dir.path(), "dc") {
        let mut bytes = std::fs::read(&path).unwrap();
        let needle = b"value 777 ";
        let found: Vec<_> =
            (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
        for at in found {
            bytes[at] = b'V';
            changed += 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(changed > 0);
    let log = open(dir.path(), small()).await;
    let Err(Error::Corrupt { from, to, reason, .. }) = log.read(&id, Offset(777), 1).await else {
        panic!("it was read")
    };
    assert_eq!((from, reason.as_str()), (Offset(777), "its checksum is wrong"));
    assert!(to.0 > 777 && to.0 < 900, "one block is lost, not more: {to}");
    assert_run(&read_all(&log, &id, to, 1 << 20).await.unwrap(), to.0, 2000);
}

/// FF42. Files that vanish are a loss that is named, too, and no offset is given twice.
#[tokio::test]
async fn missing_segments_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let id = partition("dc");
    let log = open(dir.path(), small()).await;
    append(&log, &id, 0, 60_000).await;
    log.close().await;
    let files = segments(dir.path(), "dc");
    assert!(files.len() > 3);
    std::fs::remove_file(files.last().unwrap()).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    let (good, errors) = read_around(dir.path(), "dc", 60_000).await;
    assert!(good < 60_000);
    assert_eq!(errors.len(), 2, "{errors:?}");
}

/// The disk fills up (here: a limit on the size of files): appends wait, and nothing is lost.
#[tokio::test]
async fn a_full_disk_pauses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // In units of 512 bytes; the signal ignored, so that writing fails as it does on a full disk.
    let mut child = child(dir.path(), &["sh", "-c", "trap '' XFSZ; ulimit -S -f 600; exec \"$0\" \"$@\""]);
    let pid = child.id();
    let raised = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        Command::new("prlimit").args(["--pid", &pid.to_string(), "--fsize=unlimited:"]).status()
    });
    let started = std::time::Instant::now();
    let mut longest = (Duration::ZERO, 0);
    let mut last = std::time::Instant::now();
    let acked = durable(&mut child, |child, ends| {
        if last.elapsed() > longest.0 {
            longest = (last.elapsed(), ends[0]);
        }
        last = std::time::Instant::now();
        if started.elapsed() > Duration::from_millis(2500) {
            child.kill().unwrap();
        }
    });
    if !matches!(raised.join().unwrap(), Ok(status) if status.success()) {
        eprintln!("ignored: no prlimit command to lift the limit with");
        return;
    }
    assert!(longest.0 > Duration::from_millis(300), "it never paused: {longest:?}");
    assert!(acked[0] > longest.1, "it never went on");
    let log = open(dir.path(), small()).await;
    for (i, id) in [partition("dc"), partition("cloud")].iter().enumerate() {
        let end = log.bounds(id).end.0;
        assert!(end >= acked[i]);
        assert_run(&read_all(&log, id, Offset(0), 1 << 20).await.unwrap(), 0, end);
    }
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(to.path()).status().unwrap();
    assert!(copied.success());
    to
}
