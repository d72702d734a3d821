//! Large values that have to be read again come in pieces: through bounded memory, whole or not at all.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each test file uses its part")]
mod source_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use causeway_core::{Change, Event, Op, Opened, Part, Site, Source};
use causeway_redis::source::RedisSource;
use causeway_testkit::resp::{Connection, cmd};
use source_support::*;
use tokio::sync::Mutex;

/// Knows how much of the process's memory is in use, and was at the most.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let used = USED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(used, Ordering::Relaxed);
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const LIMIT: usize = 64 << 10;
const SMALL_LIMIT: &str = "limits = { value_bytes_max = 65536 }";

const TYPES: [&str; 6] = ["hash", "list", "set", "zset", "stream", "string"];

/// Keys of every type whose value is of about `bytes` bytes; random, so that no server packs them.
fn fill(c: &mut Connection, bytes: usize) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut value = || -> String {
        let mut digit = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            char::from(b'!' + (seed % 90) as u8)
        };
        (0..1000).map(|_| digit()).collect()
    };
    for n in 0..bytes / 1000 {
        let (n, value) = (n.to_string(), value());
        let id = format!("{}-1", 1 + n.parse::<u64>().unwrap());
        let commands = [
            cmd(&["HSET", "hash", &n, &value]),
            cmd(&["RPUSH", "list", &value]),
            cmd(&["SADD", "set", &value]),
            cmd(&["ZADD", "zset", &n, &value]),
            cmd(&["XADD", "stream", &id, "f", &value]),
            cmd(&["APPEND", "string", &value]),
        ];
        c.pipeline(&commands).unwrap();
    }
    c.must(&["XGROUP", "CREATE", "stream", "g", "0"]).unwrap();
    c.must(&["XREADGROUP", "GROUP", "g", "alice", "COUNT", "50", "STREAMS", "stream", ">"]).unwrap();
    c.must(&["PEXPIREAT", "hash", "9999999999999"]).unwrap();
}

/// Fails unless large values came in pieces, in order and with one end each, and nothing large came whole.
fn come_in_pieces(changes: &[Change], ended: usize) {
    let mut ends = 0;
    for (i, change) in changes.iter().enumerate() {
        let bytes = change.value.as_ref().map_or(0, |value| value.len());
        assert!(bytes <= LIMIT, "{:?} has {bytes} bytes", change.key);
        let Some(Part { n, last }) = change.part else { continue };
        ends += usize::from(last);
        assert_eq!(last, bytes == 0, "the last one brings nothing, and no other");
        assert!(change.group.is_none() || last, "a group is held whole: only ends stand in one");
        let before = changes[..i].iter().rfind(|c| c.key == change.key && c.pos == change.pos);
        assert_eq!(before.and_then(|c| c.part).map(|part| part.n), n.checked_sub(1));
    }
    assert_eq!(ends, ended);
}

/// FF22.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_keys_that_are_renamed_or_copied_come_in_pieces() {
    let (Some(server), Some(target)) = (server(&[]), server(&[])) else { return };
    let _alone = ALONE.lock().await;
    let mut c = server.connect().unwrap();
    fill(&mut c, 1 << 20);
    c.must(&["SET", "small", "1"]).unwrap();
    let mut source = source(&server, SMALL_LIMIT);
    let mut model = Model::new(&target);
    open(&mut source, None, true).await;
    model.take(until(&mut source, |e| matches!(e, Event::SnapshotEnded { .. })).await, &source);
    for name in TYPES {
        c.must(&["COPY", name, &format!("{name}:copy")]).unwrap();
        c.must(&["RENAME", name, &format!("{name}:moved")]).unwrap();
        // What is done to it before it was read, and after.
        c.must(&["PEXPIREAT", &format!("{name}:copy"), "9999999999998"]).unwrap();
    }
    c.must(&["RENAME", "small", "tiny"]).unwrap();
    c.must(&["MULTI"]).unwrap();
    c.must(&["INCR", "counted"]).unwrap();
    c.must(&["LMOVE", "list:moved", "list:copy", "LEFT", "RIGHT"]).unwrap();
    c.must(&["EXEC"]).unwrap();
    let events = settle(&mut source).await;
    let all = changes(&events);
    let reads: Vec<Change> = all.iter().filter(|c| c.op == Op::State).cloned().collect();
    // Each type twice; a list that was not read yet when it was moved on is read once.
    let ends = reads.iter().filter(|c| c.part.is_some_and(|part| part.last)).count();
    assert!((12..=14).contains(&ends), "{ends}");
    come_in_pieces(&reads, ends);
    assert!(texts(&events).contains(&"state 0:tiny dump".to_owned()), "a small one comes whole");
    // Of a group the ends stand first, and the old name goes with the new one.
    let moved = all.iter().position(|c| &c.key.name[..] == b"hash:moved" && c.group.is_some()).unwrap();
    assert_eq!((all[moved].group.unwrap().n, all[moved].expire_at), (0, Some(9_999_999_999_999)));
    assert_eq!((&all[moved + 1].key.name[..], all[moved + 1].value.clone()), (&b"hash"[..], None));
    model.take(events, &source);
    c.must(&["HINCRBY", "hash:moved", "later", "1"]).unwrap();
    model.take(settle(&mut source).await, &source);
    assert_eq!(contents(&mut c), contents(&mut target.connect().unwrap()));
    // Asked for by the peer, it comes the same way.
    let keys = TYPES.iter().map(|name| key(0, &format!("{name}:moved"))).collect();
    let token = source.refresh(keys).await.unwrap();
    let events = until(&mut source, |e| *e == Event::Token(token)).await;
    come_in_pieces(&changes(&events), TYPES.len());
}

/// FF22, FF26: where keys are scanned, each is read like that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_keys_that_are_scanned_come_in_pieces() {
    let (Some(server), Some(target)) = (server(&[]), server(&[])) else { return };
    let _alone = ALONE.lock().await;
    let mut c = server.connect().unwrap();
    let rights = "ACL SETUSER scan on >s3cret ~* &* +@all -psync -sync";
    c.must(&rights.split(' ').collect::<Vec<_>>()).unwrap();
    fill(&mut c, 1 << 20);
    let url = format!("url = \"redis://scan:s3cret@127.0.0.1:{}\"", server.port());
    let mut source = RedisSource::new(config(&url, SMALL_LIMIT), Site::First);
    open(&mut source, None, true).await;
    assert!(source.is_scanning());
    let mut model = Model::new(&target);
    let events = until(&mut source, |e| matches!(e, Event::SnapshotEnded { .. })).await;
    let reads = changes(&events);
    assert!(reads.iter().all(|c| c.op == Op::Read));
    come_in_pieces(&reads, TYPES.len());
    model.take(events, &source);
    assert_eq!(contents(&mut c), contents(&mut target.connect().unwrap()));
    c.must(&["HSET", "hash", "touched", "1"]).unwrap();
    let touched = |e: &Event| matches!(e, Event::Change(c) if c.op == Op::State && c.part.is_some_and(|part| part.last));
    let events = until(&mut source, touched).await;
    come_in_pieces(&changes(&events), 1);
    model.take(events, &source);
    assert_eq!(contents(&mut c), contents(&mut target.connect().unwrap()));
}

/// FF22, promise 8: neither while the pieces are taken, nor while nobody takes any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_key_is_read_again_through_bounded_memory() {
    const VALUE_BYTES: usize = 60 << 20;
    let Some(server) = server(&[]) else { return };
    let _alone = ALONE.lock().await;
    let mut c = server.connect().unwrap();
    let block = "x".repeat(1 << 20);
    for n in 0..VALUE_BYTES / block.len() {
        c.must(&["HSET", "hash", &n.to_string(), &block]).unwrap();
    }
    drop(block);
    c.must(&["CONFIG", "SET", "rdbcompression", "no"]).unwrap();
    let mut source = source(&server, "limits = { value_bytes_max = 2097152 }");
    open(&mut source, None, false).await;
    settle(&mut source).await;
    let before = USED.load(Ordering::SeqCst);
    MOST.store(before, Ordering::SeqCst);
    c.must(&["RENAME", "hash", "moved"]).unwrap();
    let mut events = Vec::new();
    let (mut bytes, mut ended) = (0, false);
    while !ended {
        let first = bytes == 0;
        tokio::time::timeout(PATIENCE, source.next(&mut events, 256 << 10)).await.unwrap().unwrap();
        for change in changes(&events).iter().filter(|c| c.part.is_some()) {
            bytes += change.value.as_ref().map_or(0, |value| value.len());
            ended |= change.part.is_some_and(|part| part.last);
        }
        events.clear();
        if first && bytes > 0 {
            // The server goes on sending what it can.
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
    let grown = MOST.load(Ordering::SeqCst) - before;
    println!("{bytes} bytes in pieces, {} KiB of memory", grown >> 10);
    assert!(bytes > VALUE_BYTES);
    assert!(grown < 20 << 20, "{grown} bytes");
}

/// FF24: a line that breaks in the middle of a value: that one never ends, and it is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_a_break_cut_off_never_ends_and_is_read_again() {
    let Some(server) = server(&[]) else { return };
    let _alone = ALONE.lock().await;
    let mut c = server.connect().unwrap();
    // More than what may be read and not taken, and the kernel's buffers.
    fill(&mut c, 25 << 20);
    let mut source = source(&server, SMALL_LIMIT);
    open(&mut source, None, false).await;
    let durable = changes(&{
        c.must(&["SET", "before", "1"]).unwrap();
        settle(&mut source).await
    })[0]
        .pos
        .clone();
    for name in ["hash", "string"] {
        let moved = format!("{name}:moved");
        c.must(&["RENAME", name, &moved]).unwrap();
        let mut events = Vec::new();
        while changes(&events).iter().all(|c| c.part.is_none()) {
            source.next(&mut events, 1).await.unwrap();
        }
        let begun = changes(&events).iter().find(|c| c.part.is_some()).unwrap().clone();
        assert!(source.restart_point(&begun.pos).at < begun.pos.at, "the key is open until its value ends");
        c.must(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap();
        while source.next(&mut events, 256 << 10).await.is_ok() {}
        assert!(changes(&events).iter().all(|c| c.part.is_none_or(|part| !part.last)), "it ended");
        // As a daemon that was killed there would.
        let from = source.restart_point(&durable);
        assert_eq!(open(&mut source, Some(&from), true).await, Opened::Resumed);
        let ended = |e: &Event| matches!(e, Event::Change(c) if &c.key.name[..] == moved.as_bytes() && c.part.is_some_and(|p| p.last));
        let again = changes(&until(&mut source, ended).await);
        let pieces: Vec<Change> = again.into_iter().filter(|c| &c.key.name[..] == moved.as_bytes()).collect();
        assert!(pieces[0].part == Some(Part { n: 0, last: false }) && pieces[0].pos.at > begun.pos.at);
        come_in_pieces(&pieces, 1);
    }
}
