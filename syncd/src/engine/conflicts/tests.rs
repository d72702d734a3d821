use bytes::Bytes;
use causeway_core::{Hlc, Key, Op, Position, Seq};
use tempfile::TempDir;

use super::*;

const CONFIG: ConflictsConfig =
    ConflictsConfig { size_max: 1 << 20, age_max: Duration::from_secs(30 * 86_400), values: false };

fn change(op: Op, seq: u64, key: &str, value: Option<&str>) -> Change {
    let key = Key { space: Space::Db(3), name: Bytes::copy_from_slice(key.as_bytes()) };
    let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    let (pos, time) = (Position { history: Bytes::new(), at: 0, context: Bytes::new() }, 1_772_330_400_000);
    Change { seq: Seq(seq), hlc: Hlc(seq << 21), ..Change::captured(op, key, value, pos, time) }
}

/// At `cloud`, whose write of `value` stands against a delete from `dc`.
fn note(conflicts: &Conflicts, key: &str, value: &str) {
    let theirs = change(Op::Delete, 7, key, None);
    let ours = change(Op::Command, 9, key, Some(value));
    conflicts.note(&Conflict { theirs: &theirs, ours: &ours, element: None, resolution: Resolution::Kept });
}

fn conflicts(log: &Arc<ConflictLog>) -> Conflicts {
    Conflicts::new("tags", ["dc".to_owned(), "cloud".to_owned()], Site::First, Some(Arc::clone(log)))
}

fn all(log: &ConflictLog) -> ConflictPage {
    log.list(&ConflictQuery { channel: None, key: None, since: None, before: None, limit: usize::MAX })
        .unwrap()
}

fn keys(page: &ConflictPage) -> Vec<String> {
    page.conflicts.iter().map(|entry| entry.key.to_string()).collect()
}

fn on_disk(dir: &TempDir) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn size(dir: &TempDir) -> u64 {
    on_disk(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn an_entry_holds_both_writes_and_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    note(&conflicts(&log), "push:1", "SET push:1 secret");
    let page = all(&log);
    let [entry] = &page.conflicts[..] else { panic!("{page:?}") };
    assert_eq!((entry.id, entry.channel.as_str(), entry.db), (1, "tags", Some(3)));
    assert_eq!(
        (entry.from.as_str(), entry.to.as_str(), entry.winner.as_deref()),
        ("dc", "cloud", Some("cloud"))
    );
    let [dc, cloud] = &entry.sides;
    assert_eq!((dc.site.as_str(), dc.seq, dc.op.as_str(), dc.digest.as_deref()), ("dc", 7, "delete", None));
    assert_eq!(
        (cloud.site.as_str(), cloud.seq, cloud.hlc.as_str(), cloud.bytes),
        ("cloud", 9, "18874368", 17)
    );
    assert_eq!(cloud.digest, Some(format!("{:032x}", xxh3_128(b"SET push:1 secret"))));
    assert_eq!(cloud.time, "2026-03-01T02:00:00.000Z");
    let text = std::fs::read_to_string(&on_disk(&dir)[0]).unwrap();
    assert!(!text.contains("secret") && !serde_json::to_string(&page).unwrap().contains("secret"), "{text}");
}

#[test]
fn values_are_kept_and_shown_only_where_the_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), ConflictsConfig { values: true, ..CONFIG }).unwrap();
    note(&conflicts(&log), "k", "SET k 1");
    note(&conflicts(&log), "large", &"x".repeat(TEXT_BYTES_MAX + 1));
    let page = all(&log);
    assert_eq!(page.conflicts[1].sides[1].value, Some(KeyText::Text("SET k 1".to_owned())));
    assert_eq!((&page.conflicts[0].sides[1].value, page.conflicts[0].sides[1].bytes), (&None, 65_537));
    drop(log);
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    let page = all(&log);
    assert!(
        page.conflicts.len() == 2 && !serde_json::to_string(&page).unwrap().contains("SET k"),
        "{page:?}"
    );
}

#[test]
fn ids_go_on_after_a_restart_and_find_their_entry() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
        note(&conflicts(&log), "a", "1");
        note(&conflicts(&log), "b", "2");
        log.flush();
    }
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    let page = all(&log);
    assert_eq!(page.conflicts.iter().map(|entry| entry.id).collect::<Vec<_>>(), [4, 3, 2, 1]);
    assert_eq!(on_disk(&dir).len(), 1);
    assert_eq!(log.get(3).unwrap().as_ref(), page.conflicts.get(1));
    assert_eq!((log.get(0).unwrap(), log.get(5).unwrap(), log.get(u64::MAX).unwrap()), (None, None, None));
}

#[test]
fn a_query_narrows_and_pages_leave_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    for i in 0..10 {
        note(&conflicts(&log), if i % 2 == 0 { "even" } else { "odd\n" }, "1");
    }
    let query = ConflictQuery {
        channel: Some("tags".to_owned()),
        key: Some("even".to_owned()),
        since: Some(SystemTime::now() - Duration::from_secs(60)),
        before: None,
        limit: 2,
    };
    let (mut before, mut ids) = (None, Vec::new());
    loop {
        let page = log.list(&ConflictQuery { before, ..query.clone() }).unwrap();
        ids.extend(page.conflicts.iter().map(|entry| entry.id));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(ids, [9, 7, 5, 3, 1]);
    let found = |query: ConflictQuery| log.list(&query).unwrap().conflicts.len();
    assert_eq!(found(ConflictQuery { key: Some("odd\\n".to_owned()), limit: 9, ..query.clone() }), 5);
    assert_eq!(found(ConflictQuery { channel: Some("other".to_owned()), ..query.clone() }), 0);
    assert_eq!(found(ConflictQuery { since: Some(SystemTime::now() + Duration::from_secs(60)), ..query }), 0);
}

#[test]
fn the_oldest_files_go_before_all_are_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    let conflicts = conflicts(&log);
    for i in 0..6_000 {
        note(&conflicts, &format!("push:{i}"), "1");
        if i % 1_000 == 999 {
            log.flush();
            assert!(size(&dir) <= CONFIG.size_max, "{} after {i}", size(&dir));
        }
    }
    let page = all(&log);
    assert_eq!((page.left_out, conflicts.total()), (0, 6_000));
    assert!(on_disk(&dir).len() >= 6, "{:?}", on_disk(&dir));
    let kept = page.conflicts.len();
    assert!((1_000..5_000).contains(&kept), "{kept}");
    let newest: Vec<_> = (6_000 - kept..6_000).rev().map(|i| format!("push:{i}")).collect();
    assert_eq!(keys(&page), newest);
}

#[test]
fn what_is_too_old_is_not_listed_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    note(&conflicts(&log), "k", "1");
    log.flush();
    let query = ConflictQuery { channel: None, key: None, since: None, before: None, limit: 9 };
    let listed = |now| files::page(&log.files, &query, now).unwrap().conflicts.len();
    let now = SystemTime::now();
    assert_eq!(listed(now + CONFIG.age_max - Duration::from_secs(60)), 1);
    assert_eq!(listed(now + CONFIG.age_max + Duration::from_secs(60)), 0);
    // A part of the age later a new file is begun, so that the old entry does not stay for the new one's sake.
    let later = now + CONFIG.age_max / 4;
    let entry = all(&log).conflicts.remove(0);
    assert_eq!(lock(&log.files).append(vec![entry], later).0, 1);
    assert_eq!(on_disk(&dir).len(), 2);
    lock(&log.files).upkeep(now + CONFIG.age_max + Duration::from_secs(60));
    assert_eq!(on_disk(&dir).len(), 0);
    note(&conflicts(&log), "again", "1");
    assert_eq!(keys(&all(&log)), ["again"]);
}

/// A crash of the machine cuts the last line off; what follows must not be glued to it.
#[test]
fn a_torn_line_is_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    for key in ["a", "b", "c"] {
        note(&conflicts(&log), key, "1");
    }
    log.flush();
    drop(log);
    let path = on_disk(&dir).remove(0);
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 40]).unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    assert_eq!((keys(&all(&log)), all(&log).damaged), (vec!["b".to_owned(), "a".to_owned()], 1));
    note(&conflicts(&log), "d", "1");
    let page = all(&log);
    assert_eq!((keys(&page), page.damaged), (vec!["d".to_owned(), "b".to_owned(), "a".to_owned()], 1));
    assert_eq!(page.conflicts[0].id, 4, "an id is not given twice");
    // And in the middle, what is no text at all.
    drop(log);
    let mut text = std::fs::read(&path).unwrap();
    text[10..60].fill(0xff);
    std::fs::write(&path, &text).unwrap();
    let page = all(&ConflictLog::open(dir.path(), CONFIG).unwrap());
    assert_eq!((keys(&page), page.damaged), (vec!["d".to_owned(), "b".to_owned()], 2));
}

/// While the disk does not answer, the data path goes on; what does not fit is counted.
#[test]
fn a_full_queue_leaves_out_and_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    let conflicts = conflicts(&log);
    let noted = (QUEUE_MAX + BATCH_MAX + 100) as u64;
    let stalled = lock(&log.files);
    let began = Instant::now();
    for _ in 0..noted {
        note(&conflicts, "k", "1");
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(stalled);
    let left_out = log.left_out();
    assert!((100..=noted - QUEUE_MAX as u64).contains(&left_out), "{left_out}");
    let newest = all(&log).conflicts[0].id;
    assert_eq!((newest, conflicts.total()), (noted - left_out, noted));
    assert_eq!(log.queued_bytes.load(Ordering::SeqCst), 0);
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    let stalled = lock(&log.files);
    let key = "k".repeat(TEXT_BYTES_MAX);
    for _ in 0..QUEUE_MAX {
        note(&conflicts(&log), &key, "1");
    }
    assert!(log.queued_bytes.load(Ordering::SeqCst) < QUEUE_BYTES_MAX + TEXT_BYTES_MAX + ENTRY_BYTES);
    assert!(log.left_out() > 3_000, "{}", log.left_out());
    drop(stalled);
    let left_out = log.left_out();
    note(&conflicts(&log), &"k".repeat(TEXT_BYTES_MAX + 1), "1");
    assert_eq!(log.left_out(), left_out + 1);
}

#[test]
fn a_folder_that_cannot_be_written_is_counted_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let log = ConflictLog::open(dir.path(), CONFIG).unwrap();
    std::fs::remove_dir(dir.path()).unwrap();
    note(&conflicts(&log), "lost", "1");
    log.flush();
    assert_eq!(log.left_out(), 1);
    std::fs::create_dir(dir.path()).unwrap();
    note(&conflicts(&log), "k", "1");
    assert_eq!(keys(&all(&log)), ["k"]);
}
