//! A scan, where replication is refused, after a break: it goes on where it was, and reads everything all the
//! same.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[allow(dead_code, reason = "each test file uses its part")]
mod source_support;

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use causeway_core::{Change, Event, Op, Opened, Position, Site, Source, Space};
use causeway_redis::source::RedisSource;
use causeway_testkit::resp::{Connection, Reply};
use causeway_testkit::servers::RedisServer;
use source_support::{changes, config, open, server, until};

type Name = (u32, Bytes);

/// A server whose user `scan` may not replicate.
fn without_replication(args: &[&str]) -> Option<(RedisServer, Connection)> {
    let server = server(args)?;
    let mut connection = server.connect().unwrap();
    let rights = "ACL SETUSER scan on >s3cret ~* &* +@all -psync -sync";
    connection.must(&rights.split(' ').collect::<Vec<_>>()).unwrap();
    Some((server, connection))
}

fn source(server: &RedisServer) -> RedisSource {
    let url = format!("url = \"redis://scan:s3cret@127.0.0.1:{}\"", server.port());
    RedisSource::new(config(&url, ""), Site::First)
}

fn name(change: &Change) -> Name {
    let Space::Db(db) = change.key.space else { panic!("not a database") };
    (db, change.key.name.clone())
}

fn reads(events: &[Event]) -> Vec<Name> {
    changes(events).iter().filter(|c| c.op == Op::Read).map(name).collect()
}

/// All keys but ours.
fn names(connection: &mut Connection) -> BTreeSet<Name> {
    let mut all = BTreeSet::new();
    for db in 0..16u32 {
        connection.must(&["SELECT", &db.to_string()]).unwrap();
        let keys = connection.must(&["KEYS", "*"]).unwrap();
        let names =
            keys.items().iter().filter_map(|key| key.text()).filter(|key| !key.starts_with("causeway:"));
        all.extend(names.map(|key| (db, Bytes::from(key))));
    }
    connection.must(&["SELECT", "0"]).unwrap();
    all
}

/// Takes events until `count` keys were read, and says where a restart would go on, through the text that
/// stands in the log.
async fn read_some(source: &mut RedisSource, count: usize) -> (Vec<Name>, Position) {
    let mut taken = 0;
    let events = until(source, |e| {
        taken += usize::from(matches!(e, Event::Change(c) if c.op == Op::Read));
        taken >= count
    })
    .await;
    let last = changes(&events).last().unwrap().pos.clone();
    let restart_point = source.restart_point(&last).to_string();
    assert!(!restart_point.contains(' '), "{restart_point}");
    (reads(&events), restart_point.parse().unwrap())
}

async fn read_rest(source: &mut RedisSource) -> Vec<Change> {
    changes(&until(source, |e| matches!(e, Event::SnapshotEnded { .. })).await)
}

/// A daemon that was killed reads what it never read first, then the rest again: what changed meanwhile, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_a_scan_goes_on_and_still_finds_what_changed_meanwhile() {
    let Some((server, mut c)) = without_replication(&[]) else { return };
    c.must(&["DEBUG", "POPULATE", "20000", "key", "20"]).unwrap();
    c.must(&["SELECT", "3"]).unwrap();
    c.must(&["DEBUG", "POPULATE", "3000", "key", "20"]).unwrap();
    c.must(&["SELECT", "0"]).unwrap();
    let mut killed = source(&server);
    assert_eq!(open(&mut killed, None, true).await, Opened::Anew { lost: None });
    let (before, place) = read_some(&mut killed, 12_000).await;
    drop(killed);
    // In the break: changed, deleted, new, all where the scan had been or not.
    let changed = before.first().unwrap().1.clone();
    let deleted = before.get(100).unwrap().1.clone();
    c.must(&[b"SET".as_slice(), &changed, b"changed"]).unwrap();
    c.must(&[b"DEL".as_slice(), &deleted]).unwrap();
    c.must(&["SET", "new", "1"]).unwrap();

    let mut next = source(&server);
    next.snapshot_broke_at(&place);
    assert_eq!(open(&mut next, None, true).await, Opened::Anew { lost: None });
    let after = read_rest(&mut next).await;
    let known: BTreeSet<Name> = before.iter().cloned().collect();
    let fresh = after.iter().take(8_000).filter(|change| !known.contains(&name(change))).count();
    assert!(fresh > 6_500, "{fresh} of the first 8000 were not read before the break");
    let found: BTreeSet<Name> = after.iter().map(name).collect();
    assert_eq!(found, names(&mut c), "every key is read after the break");
    assert!(after.len() < 24_500, "{} reads of 23000 keys: one round, not two", after.len());
    let read = after.iter().find(|change| name(change) == (0, changed.clone())).unwrap();
    let now = c.must(&[b"DUMP".as_slice(), &changed]).unwrap();
    assert_eq!(Reply::Bulk(read.value.as_ref().map(|value| value.to_vec())), now);
    // Complete: there is nothing to go on from.
    assert_eq!(next.restart_point(&place).context, "");
}

/// However often it breaks, a scan gets everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_that_never_ends_gets_everywhere() {
    let Some((server, mut c)) = without_replication(&[]) else { return };
    c.must(&["DEBUG", "POPULATE", "20000", "key", "20"]).unwrap();
    let mut found: HashMap<Name, u32> = HashMap::new();
    let mut place = None;
    for round in 0..5 {
        let mut source = source(&server);
        if let Some(place) = &place {
            source.snapshot_broke_at(place);
        }
        open(&mut source, None, true).await;
        let (read, broke_at) = read_some(&mut source, 6_000).await;
        assert!(round > 0 || read.len() < 8_000, "it broke in the middle");
        read.into_iter().for_each(|name| *found.entry(name).or_default() += 1);
        place = Some(broke_at);
    }
    assert_eq!(found.len(), 20_000);
}

/// The daemon lives, its line breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_break_of_the_line_the_same_source_goes_on() {
    let Some((server, mut c)) = without_replication(&[]) else { return };
    c.must(&["DEBUG", "POPULATE", "20000", "key", "20"]).unwrap();
    let mut source = source(&server);
    open(&mut source, None, true).await;
    let (before, _) = read_some(&mut source, 10_000).await;
    c.must(&["CLIENT", "KILL", "USER", "scan"]).unwrap();
    let mut rest = Vec::new();
    while source.next(&mut rest, 1 << 20).await.is_ok() {}
    // What a restart point of some time ago says is older than what the source itself knows.
    source.snapshot_broke_at(&Position::default());
    open(&mut source, None, true).await;
    let after = read_rest(&mut source).await;
    let known: BTreeSet<Name> = before.into_iter().chain(reads(&rest)).collect();
    let first = after.iter().take(1_000).filter(|change| known.contains(&name(change))).count();
    assert!(first < 900, "{first} of the first 1000 were read before the break");
    assert_eq!(after.iter().map(name).collect::<BTreeSet<_>>(), names(&mut c));
}

/// A table that grows in the break and shrinks while the scan goes on hides no key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_size_hides_no_key_from_a_scan_that_goes_on() {
    let Some((server, mut c)) = without_replication(&[]) else { return };
    c.must(&["DEBUG", "POPULATE", "5000", "key", "20"]).unwrap();
    for (grows, part) in [(true, 2_000), (false, 2_000), (true, 4_000), (false, 500)] {
        let fill: Vec<String> = (0..150_000).map(|n| format!("fill:{n}")).collect();
        let all = |word: &'static str, value: Option<&'static str>, c: &mut Connection| {
            for part in fill.chunks(10_000) {
                let words = part.iter().flat_map(|key| [Some(key.as_str()), value]).flatten();
                c.must(&[word].into_iter().chain(words).collect::<Vec<_>>()).unwrap();
            }
        };
        if !grows {
            all("MSET", Some("x"), &mut c);
        }
        let mut killed = source(&server);
        open(&mut killed, None, true).await;
        let (_, place) = read_some(&mut killed, part).await;
        drop(killed);
        if grows {
            all("MSET", Some("x"), &mut c);
        }
        let mut next = source(&server);
        next.snapshot_broke_at(&place);
        open(&mut next, None, true).await;
        let (begin, _) = read_some(&mut next, 300).await;
        all("UNLINK", None, &mut c);
        let rest = read_rest(&mut next).await;
        let found: BTreeSet<Name> = begin.into_iter().chain(rest.iter().map(name)).collect();
        let missed: Vec<_> = names(&mut c).into_iter().filter(|name| !found.contains(name)).collect();
        assert!(missed.is_empty(), "{} keys were not named: {:?}", missed.len(), missed.first());
    }
}

/// A server that was restarted has other places: the scan begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_of_a_server_before_its_restart_is_not_gone_on_from() {
    let Some((mut server, mut c)) = without_replication(&["--appendonly", "yes"]) else { return };
    let fill: Vec<String> = (0..5_000).flat_map(|n| [format!("k{n}"), "x".to_owned()]).collect();
    let words: Vec<&str> = ["MSET"].into_iter().chain(fill.iter().map(String::as_str)).collect();
    c.must(&words).unwrap();
    let mut killed = source(&server);
    open(&mut killed, None, true).await;
    let (_, place) = read_some(&mut killed, 2_000).await;
    drop(killed);
    server.stop();
    server.restart().unwrap();
    let mut c = server.connect().unwrap();
    let rights = "ACL SETUSER scan on >s3cret ~* &* +@all -psync -sync";
    c.must(&rights.split(' ').collect::<Vec<_>>()).unwrap();
    let mut next = source(&server);
    next.snapshot_broke_at(&place);
    open(&mut next, None, true).await;
    let found: Vec<Name> = read_rest(&mut next).await.iter().map(name).collect();
    assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), names(&mut c));
    assert!(found.len() < 5_500, "{} reads of 5000 keys", found.len());
}

/// What is set for a snapshot holds for a scan, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_keeps_to_the_rate_that_is_set() {
    let Some((server, mut c)) = without_replication(&["--rdbcompression", "no"]) else { return };
    c.must(&["DEBUG", "POPULATE", "2000", "key", "1000"]).unwrap();
    let url = format!("url = \"redis://scan:s3cret@127.0.0.1:{}\"", server.port());
    let slow = config(&url, "limits = { snapshot_bytes_per_second = 1_000_000 }");
    let mut source = RedisSource::new(slow, Site::First);
    let began = std::time::Instant::now();
    open(&mut source, None, true).await;
    let bytes: usize =
        read_rest(&mut source).await.iter().filter_map(|c| c.value.as_ref()).map(Bytes::len).sum();
    assert!(bytes > 2_000_000, "{bytes} bytes");
    // Two requests may be under way.
    let least = (bytes - 700_000) as f64 / 1e6;
    assert!(began.elapsed().as_secs_f64() > least, "{bytes} bytes in {:?}", began.elapsed());
}
