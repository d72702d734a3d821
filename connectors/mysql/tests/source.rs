//! What a server's binlog can do to its reader: be purged, reset, of another server, lack what is needed, fall silent.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_core::{
    Change, Class, DdlPolicy, Error, ErrorKind, Event, Op, Opened, Position, Site, Source, Told,
};
use causeway_testkit::mysql::{Flavour, MysqlServer, numbers};
use support::{changes, events_until, pair, until, up_to_now, values};

const TABLE: &str = "CREATE TABLE suite.t (id INT PRIMARY KEY, v VARCHAR(100)); \
                     CREATE DATABASE other; CREATE TABLE other.t (id INT PRIMARY KEY)";

fn is_snapshot_end(event: &Event) -> bool {
    matches!(event, Event::SnapshotEnded { .. })
}

/// That nothing goes on at `at`, and the reason.
async fn assert_lost(source: &mut dyn Source, at: &Position, expected: &str) {
    match source.open(Some(at), true, Told::new()).await.unwrap() {
        Opened::Anew { lost: Some(reason) } => assert!(reason.contains(expected), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// FF03.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_binlog_is_a_gap() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    let mut source = pair.stream().await;
    server.sql("INSERT INTO suite.t VALUES (1, 'a')").unwrap();
    let (_, at) = up_to_now(source.as_mut(), server).await;
    drop(source);
    server.sql("FLUSH BINARY LOGS; INSERT INTO suite.t VALUES (2, 'b'); FLUSH BINARY LOGS").unwrap();
    let last = server.binlog().unwrap();
    // What is still read by somebody stays.
    while server.sql("SHOW BINARY LOGS").unwrap().contains("binlog.000001") {
        server.sql(&format!("PURGE BINARY LOGS TO '{last}'")).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut source = pair.connector.source(Site::First);
    assert_lost(source.as_mut(), &at, "is purged").await;
    let read = until(source.as_mut(), is_snapshot_end).await;
    assert!(read.iter().any(|change| change.key.name == "2"), "{read:?}");
}

/// FF17b: the same file and place, and another history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_binlog_and_another_server_are_gaps() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    let mut source = pair.stream().await;
    server.sql("INSERT INTO suite.t VALUES (1, 'a')").unwrap();
    let (_, at) = up_to_now(source.as_mut(), server).await;
    drop(source);
    server.reset_binlog().unwrap();
    for n in 10..60 {
        server.sql(&format!("INSERT INTO suite.t VALUES ({n}, REPEAT('x', 90))")).unwrap();
    }
    let mut source = pair.connector.source(Site::First);
    assert_lost(source.as_mut(), &at, "its binlog was reset").await;
    let mut other = pair.connector.source(Site::Second);
    assert_lost(other.as_mut(), &at, "another server").await;
}

/// FF16: a server that does not sync its binlog has rows after a crash that its binlog lacks. It is a gap, and the rows come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binlog_that_lost_its_end_is_a_gap() {
    let Some(mut pair) = pair(TABLE) else { return };
    let mut source = pair.stream().await;
    pair.servers[0].sql("INSERT INTO suite.t VALUES (1, 'a')").unwrap();
    let (_, kept) = up_to_now(source.as_mut(), &pair.servers[0]).await;
    pair.servers[0].sql("INSERT INTO suite.t VALUES (2, 'b')").unwrap();
    let (_, at) = up_to_now(source.as_mut(), &pair.servers[0]).await;
    drop(source);
    let binlog = pair.servers[0].dir().join("data").join(pair.servers[0].binlog().unwrap());
    pair.servers[0].kill();
    let file = std::fs::OpenOptions::new().write(true).open(binlog).unwrap();
    file.set_len(kept.at & ((1 << 40) - 1)).unwrap();
    pair.servers[0].restart().unwrap();
    let mut source = pair.connector.source(Site::First);
    assert_lost(source.as_mut(), &at, "the server lost its end").await;
    let read = until(source.as_mut(), is_snapshot_end).await;
    assert!(read.iter().any(|change| change.key.name == "2"), "{read:?}");
}

/// FF06: a session may leave out what we need. It is a gap, at once, and the rows come by a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_not_whole_and_statements_are_gaps() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    for (setting, wanted) in [
        ("SET SESSION binlog_row_image = MINIMAL", "binlog_row_image has to be FULL"),
        ("SET SESSION binlog_format = STATEMENT", "binlog_format has to be ROW"),
    ] {
        server.sql("REPLACE INTO suite.t VALUES (1, 'a')").unwrap();
        let mut source = pair.stream().await;
        let (_, at) = up_to_now(source.as_mut(), server).await;
        server.sql(&format!("{setting}; UPDATE suite.t SET v = '{}' WHERE id = 1", wanted.len())).unwrap();
        let error = events_until(source.as_mut(), |_| false).await.unwrap_err();
        assert!(matches!(&error, Error::PositionLost { reason, .. } if reason.contains(wanted)), "{error}");
        assert_lost(source.as_mut(), &at, wanted).await;
        let read = until(source.as_mut(), is_snapshot_end).await;
        assert!(values(&read)["1"].contains(&format!("\"v\":\"{}\"", wanted.len())), "{read:?}");
    }
}

/// FF05: a reader that lags reads rows as the table was when they were written. What changed it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_read_by_the_definition_of_their_time() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    let mut source = pair.stream().await;
    server
        .sql(
            "INSERT INTO suite.t VALUES (1, '17'); ALTER TABLE suite.t MODIFY v INT, ADD COLUMN w INT FIRST; \
             INSERT INTO suite.t VALUES (8, 2, 18); ALTER TABLE suite.t DROP COLUMN v, RENAME COLUMN w TO v; \
             INSERT INTO suite.t VALUES (9, 3); TRUNCATE suite.t",
        )
        .unwrap();
    let is_last =
        |e: &Event| matches!(e, Event::Change(c) if pair.connector.shown(c).starts_with("TRUNCATE"));
    let came = changes(events_until(source.as_mut(), is_last).await.unwrap());
    let (statements, rows): (Vec<Change>, Vec<Change>) = came.into_iter().partition(|c| c.op == Op::Ddl);
    let shown: Vec<String> = statements.iter().map(|change| pair.connector.shown(change)).collect();
    assert!(shown[0].starts_with("ALTER TABLE suite.t MODIFY v INT"), "{shown:?}");
    let empties: Vec<bool> = statements.iter().map(|change| pair.connector.empties(change)).collect();
    assert_eq!(empties, [false, false, true]);
    assert!(statements.iter().all(|c| pair.connector.ddl_policy(c) == DdlPolicy::Hold), "{statements:?}");
    let rows = values(&rows);
    assert_eq!(rows["1"], "{\"id\":1,\"v\":\"17\"}");
    assert_eq!(rows["2"], "{\"w\":8,\"id\":2,\"v\":18}");
    assert_eq!(rows["3"], "{\"v\":9,\"id\":3}");
}

/// FF04: transactions of other tables move the position, and nothing comes twice or is missing after a resume there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_carried_moves_the_position() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    let mut source = pair.stream().await;
    server
        .sql("INSERT INTO suite.t VALUES (1, 'a'); INSERT INTO other.t VALUES (1); FLUSH BINARY LOGS")
        .unwrap();
    server.sql("INSERT INTO other.t VALUES (2), (3)").unwrap();
    let file = |event: &Event| match event {
        Event::Idle { pos } => Some(String::from_utf8_lossy(&pos.context).into_owned()),
        _ => None,
    };
    let idle = |e: &Event| file(e).is_some_and(|file| file.starts_with("binlog.000002"));
    let events = events_until(source.as_mut(), idle).await.unwrap();
    let at =
        events.iter().rev().find_map(|e| if let Event::Idle { pos } = e { Some(pos.clone()) } else { None });
    drop(source);
    server.sql("INSERT INTO suite.t VALUES (2, 'b')").unwrap();
    let mut source = pair.connector.source(Site::First);
    assert_eq!(source.open(at.as_ref(), true, Told::new()).await.unwrap(), Opened::Resumed);
    let (came, _) = up_to_now(source.as_mut(), server).await;
    assert_eq!(values(&came).keys().collect::<Vec<_>>(), ["2"]);
}

/// How many rows of each content the changes leave, as a target takes them that had none.
fn counted(changes: &[Change]) -> BTreeMap<String, u64> {
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    for change in changes.iter().filter(|change| change.op != Op::Ddl) {
        let name = String::from_utf8(change.key.name.to_vec()).unwrap();
        let value = change.value.as_deref().map_or("0", |value| std::str::from_utf8(value).unwrap());
        let rows = rows.entry(name).or_default();
        *rows = match (change.op, value) {
            (Op::Command, "+1") => *rows + 1,
            (Op::Command, "-1") => rows.saturating_sub(1),
            (Op::Read | Op::State, count) => count.split(',').next().unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        };
    }
    rows.retain(|_, count| *count > 0);
    rows
}

/// The same as the server has it, of the table `suite.k`.
fn held(server: &MysqlServer) -> BTreeMap<String, u64> {
    let rows = server.sql("SELECT COUNT(*), a, v FROM suite.k GROUP BY a, v").unwrap();
    let of = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        (format!("{{\"a\":{},\"v\":\"{}\"}}", words[1], words[2]), words[0].parse().unwrap())
    };
    rows.lines().map(of).collect()
}

const KEYLESS: &str = "CREATE TABLE suite.k (v VARCHAR(1000) COLLATE utf8mb4_bin, a INT)";

/// Rows of a table without a primary key: each that comes and each that goes is told, and nothing that was undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_come_and_go() {
    let Some(pair) = pair(KEYLESS) else { return };
    let came = pair
        .captured(
            "INSERT INTO suite.k VALUES ('x', 1); INSERT INTO suite.k VALUES ('x', 1), ('y', 2); \
             BEGIN; INSERT INTO suite.k VALUES ('z', 9); SAVEPOINT s; DELETE FROM suite.k; ROLLBACK TO SAVEPOINT s; \
             UPDATE suite.k SET a = 3 WHERE v = 'y'; COMMIT; DELETE FROM suite.k WHERE a = 1 LIMIT 1; \
             BEGIN; DELETE FROM suite.k; ROLLBACK",
        )
        .await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let told: Vec<_> =
        came.iter().map(|c| text(c.value.as_deref().unwrap()) + " " + &text(&c.key.name)).collect();
    assert_eq!(
        told,
        [
            "+1 {\"a\":1,\"v\":\"x\"}",
            "+1 {\"a\":1,\"v\":\"x\"}",
            "+1 {\"a\":2,\"v\":\"y\"}",
            "+1 {\"a\":9,\"v\":\"z\"}",
            "-1 {\"a\":2,\"v\":\"y\"}",
            "+1 {\"a\":3,\"v\":\"y\"}",
            "-1 {\"a\":1,\"v\":\"x\"}",
        ]
    );
    let groups: Vec<_> = came.iter().map(|change| change.group.map(|group| (group.n, group.last))).collect();
    assert_eq!(groups[3..6], [Some((0, false)), Some((1, false)), Some((2, true))]);
    let classes: Vec<_> = came.iter().map(|change| pair.connector.units(change)[0].1).collect();
    assert_eq!((classes[0], classes[6]), (Class::Commuting, Class::Other));
    assert_eq!(counted(&came), held(&pair.servers[0]));
}

/// A snapshot of a table without a primary key counts right while rows come and go, and one that broke goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_counted_while_they_come_and_go() {
    let Some(pair) = pair(KEYLESS) else { return };
    let server = &pair.servers[0];
    let rows = numbers(60_000);
    server
        .sql(&format!(
            "USE suite; INSERT INTO k SELECT REPEAT(CHAR(97 + seq % 26), 600), seq % 20000 FROM {rows}; \
             ANALYZE TABLE k"
        ))
        .unwrap();
    let stop = AtomicBool::new(false);
    let write = || {
        let mut n = 0;
        while !stop.load(Ordering::SeqCst) {
            n += 1;
            let (a, b) = (n * 7 % 20_000, n * 13 % 20_000);
            let sql = format!(
                "INSERT INTO suite.k VALUES (REPEAT(CHAR(97 + {a} % 26), 600), {a}), ('new', {b}); \
                 DELETE FROM suite.k WHERE a = {b} LIMIT 1; UPDATE suite.k SET v = 'changed' WHERE a = {a} LIMIT 2"
            );
            server.sql(&sql).unwrap();
        }
    };
    let read = async {
        let mut source = pair.connector.source(Site::First);
        source.open(None, true, Told::new()).await.unwrap();
        let (mut all, mut breaks) = (Vec::<Change>::new(), 0);
        let mut first = None;
        loop {
            let is_read = |e: &Event| matches!(e, Event::Change(c) if c.op == Op::Read);
            let events = events_until(source.as_mut(), |e| is_snapshot_end(e) || is_read(e)).await.unwrap();
            let ended = events.iter().any(is_snapshot_end);
            all.extend(changes(events));
            if ended {
                break;
            }
            let durable = all.last().unwrap().pos.clone();
            // One part has to be whole.
            if *first.get_or_insert(durable.at) == durable.at {
                continue;
            }
            (first, breaks) = (None, breaks + 1);
            let restart = source.restart_point(&durable);
            assert!(restart.to_string().contains(';'), "{restart}");
            source = pair.connector.source(Site::First);
            assert_eq!(source.open(Some(&restart), true, Told::new()).await.unwrap(), Opened::Resumed);
            // What stands at the last place may not be whole; what comes again comes from the restart point on.
            all.retain(|change| change.pos.at < durable.at && change.pos.at <= restart.at);
        }
        stop.store(true, Ordering::SeqCst);
        (all, breaks, source)
    };
    let (all, breaks) = std::thread::scope(|scope| {
        let writing = scope.spawn(write);
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            let (mut all, breaks, mut source) = handle.block_on(read);
            writing.join().unwrap();
            all.extend(handle.block_on(up_to_now(source.as_mut(), server)).0);
            (all, breaks)
        })
    });
    assert!(breaks > 1, "it was read in one piece");
    let (told, held) = (counted(&all), held(server));
    let differ: Vec<_> = held.iter().filter(|(row, count)| told.get(*row) != Some(count)).take(5).collect();
    assert!(differ.is_empty() && told.len() == held.len(), "{} and {}: {differ:?}", told.len(), held.len());
}

/// A unique index without NULL is a primary key where there is none, for the binlog as for every other way to read a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unique_index_may_be_the_key() {
    let create = "CREATE TABLE suite.u (z INT, b INT NOT NULL, c INT NOT NULL, UNIQUE KEY zz (c, b), UNIQUE KEY aa (z))";
    let Some(pair) = pair(create) else { return };
    let mut source = pair.stream().await;
    pair.servers[0].sql("INSERT INTO suite.u VALUES (1, 2, 3); UPDATE suite.u SET z = 7").unwrap();
    let (came, _) = up_to_now(source.as_mut(), &pair.servers[0]).await;
    assert!(came.iter().all(|change| change.op == Op::Put && change.key.name == "[3,2]"), "{came:?}");
    let token = source.refresh(vec![came[0].key.clone()]).await.unwrap();
    let states = until(source.as_mut(), |e| *e == Event::Token(token)).await;
    assert_eq!(values(&states)["[3,2]"], "{\"z\":7,\"b\":2,\"c\":3}");
    let findings = pair.connector.check(&[Site::First, Site::Second]).await.unwrap();
    assert!(!findings.iter().any(|finding| finding.fatal), "{findings:?}");
}

/// FF17c: heartbeats tell an idle server from one that is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_given_up() {
    let Some(pair) = pair(TABLE) else { return };
    let mut source = pair.stream().await;
    up_to_now(source.as_mut(), &pair.servers[0]).await;
    pair.servers[0].pause();
    // As the daemon waits, which has something else to do each second.
    let mut events = Vec::new();
    let error = loop {
        let second = std::time::Duration::from_secs(1);
        if let Ok(Err(error)) = tokio::time::timeout(second, source.next(&mut events, 1 << 20)).await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Retry);
    assert!(error.to_string().contains("says nothing"), "{error}");
    pair.servers[0].resume();
}

/// A row whose primary key changes is another row; a rollback leaves nothing; a savepoint that is rolled back neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_and_what_is_undone() {
    let Some(pair) = pair(TABLE) else { return };
    let came = pair
        .captured(
            "INSERT INTO suite.t VALUES (1, 'a'); UPDATE suite.t SET id = 2; \
             BEGIN; INSERT INTO suite.t VALUES (7, 'x'); ROLLBACK; \
             BEGIN; INSERT INTO suite.t VALUES (8, 'y'); SAVEPOINT s; INSERT INTO suite.t VALUES (9, 'z'); \
             ROLLBACK TO SAVEPOINT s; UPDATE suite.t SET v = 'b' WHERE id = 2; COMMIT",
        )
        .await;
    let told: Vec<_> =
        came.iter().map(|c| (c.op, c.key.name.clone(), c.group.map(|g| (g.n, g.last)))).collect();
    let pair_of = |n, last| Some((n, last));
    assert_eq!(
        told,
        [
            (Op::Put, "1".into(), None),
            (Op::Delete, "1".into(), pair_of(0, false)),
            (Op::Put, "2".into(), pair_of(1, true)),
            (Op::Put, "8".into(), pair_of(0, false)),
            (Op::Put, "2".into(), pair_of(1, true)),
        ]
    );
    assert_eq!(came[4].before.as_deref(), Some(&b"{\"id\":2,\"v\":\"a\"}"[..]));
}

/// FF01, FF07: a transaction that is too large to be held is told in pieces, the same ones when it is read again, and a
/// restart never begins within it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_transaction_comes_in_pieces() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    let mut source = pair.stream().await;
    server.sql("INSERT INTO suite.t VALUES (0, 'before')").unwrap();
    let (_, before) = up_to_now(source.as_mut(), server).await;
    let rows = numbers(200_000);
    server.sql(&format!("USE suite; INSERT INTO t SELECT seq, REPEAT('x', 90) FROM {rows}")).unwrap();
    let (all, after) = up_to_now(source.as_mut(), server).await;
    assert_eq!(all.len(), 200_000);
    let places = |all: &[Change]| -> Vec<(u64, usize)> {
        let ends = all.iter().filter(|change| change.group.is_some_and(|group| group.last));
        ends.map(|change| (change.pos.at, change.group.unwrap().n as usize)).collect()
    };
    let pieces = places(&all);
    assert!((3..12).contains(&pieces.len()), "{pieces:?}");
    let at = |place: u64| all.iter().find(|change| change.pos.at == place).unwrap().pos.clone();
    let middle = at(pieces[1].0);
    let restart = source.restart_point(&middle);
    assert!(restart.at >= before.at && restart.at < pieces[0].0, "{restart} of {pieces:?}");
    assert_eq!(source.restart_point(&after).at, after.at);
    source.acknowledge(&after);
    assert_eq!(source.restart_point(&middle).at, middle.at, "it is of no interest any more");

    let mut again = pair.connector.source(Site::First);
    assert_eq!(again.open(Some(&restart), true, Told::new()).await.unwrap(), Opened::Resumed);
    let is_last = |e: &Event| matches!(e, Event::Change(c) if c.pos == after);
    let came: Vec<Change> = until(again.as_mut(), is_last).await;
    let came: Vec<Change> = came.into_iter().filter(|change| change.pos.at < after.at).collect();
    assert_eq!(places(&came), pieces);
}

/// A snapshot that broke goes on where the log has it, with what changed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_broke_goes_on() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    server
        .sql(&format!(
            "CREATE TABLE suite.Z (id INT PRIMARY KEY); INSERT INTO suite.Z VALUES (1); USE suite; \
             CREATE TABLE suite.z (id INT PRIMARY KEY); INSERT INTO suite.z VALUES (1); \
             INSERT INTO t SELECT seq, REPEAT('x', 90) FROM {}",
            numbers(40_000)
        ))
        .unwrap();
    let mut source = pair.connector.source(Site::First);
    assert_eq!(source.open(None, true, Told::new()).await.unwrap(), Opened::Anew { lost: None });
    let mut first = Vec::new();
    while first.len() < 8_000 {
        first.extend(until(source.as_mut(), |e| matches!(e, Event::Change(c) if c.op == Op::Read)).await);
    }
    let durable = first.last().unwrap().pos.clone();
    let restart = source.restart_point(&durable);
    assert_eq!(restart.to_string().parse(), Ok(restart.clone()));
    drop(source);
    // What stands at the last place may not be whole.
    first.retain(|change| change.pos.at < durable.at);
    server
        .sql("DELETE FROM suite.t WHERE id IN (5, 39999); INSERT INTO suite.t VALUES (50000, 'new')")
        .unwrap();
    let mut source = pair.connector.source(Site::First);
    assert_eq!(source.open(Some(&restart), true, Told::new()).await.unwrap(), Opened::Resumed);
    // It breaks again before anything came: the place is told as it is, and goes on as before.
    let again = source.restart_point(&restart);
    assert_eq!(again, restart);
    assert_eq!(source.open(Some(&again), true, Told::new()).await.unwrap(), Opened::Resumed);
    let second = until(source.as_mut(), is_snapshot_end).await;
    let reads = |all: &[Change]| all.iter().filter(|change| change.op == Op::Read).count();
    assert!(reads(&second) < 38_000, "it began anew: {} of {}", reads(&second), reads(&first));
    let mut held = std::collections::BTreeMap::new();
    for change in first.iter().chain(&second).filter(|change| change.op != Op::Ddl) {
        match &change.value {
            Some(value) => drop(held.insert(change.key.clone(), value.clone())),
            None => drop(held.remove(&change.key)),
        }
    }
    assert_eq!(held.len(), 2 + 40_000 - 2 + 1, "{} and {}", reads(&first), reads(&second));
    let (_, at) = up_to_now(source.as_mut(), server).await;
    assert!(!source.restart_point(&at).to_string().contains(';'), "it has ended");
}

/// What MariaDB writes into the binlog although it was rolled back, because a temporary table or one that cannot roll back
/// was in the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_is_not_told() {
    let Some(pair) = pair(&format!("{TABLE}; CREATE TABLE other.m (id INT) ENGINE=MyISAM")) else { return };
    if pair.servers[0].flavour() == Flavour::MySql {
        // With GTIDs it refuses such transactions.
        return;
    }
    let came = pair
        .captured(
            "USE suite; CREATE TEMPORARY TABLE x (id INT); \
             BEGIN; INSERT INTO t VALUES (1, 'undone'); DROP TEMPORARY TABLE x; ROLLBACK; \
             BEGIN; INSERT INTO t VALUES (2, 'a'); INSERT INTO other.m VALUES (1); SAVEPOINT `s 1`; \
             INSERT INTO t VALUES (3, 'undone'); INSERT INTO other.m VALUES (2); ROLLBACK TO SAVEPOINT `s 1`; \
             INSERT INTO t VALUES (4, 'b'); COMMIT; \
             CREATE TEMPORARY TABLE y (id INT); \
             BEGIN; INSERT INTO t VALUES (5, 'c'); DROP TEMPORARY TABLE y; INSERT INTO t VALUES (6, 'd'); COMMIT",
        )
        .await;
    let held = pair.servers[0].sql("SELECT id FROM suite.t ORDER BY id").unwrap();
    let held: Vec<&str> = held.split_whitespace().collect();
    assert_eq!(held, ["2", "4", "5", "6"]);
    assert_eq!(values(&came).keys().collect::<Vec<_>>(), held);
    let groups: Vec<_> = came.iter().map(|change| change.group.map(|group| (group.n, group.last))).collect();
    assert_eq!(groups, [Some((0, false)), Some((1, true)), Some((0, false)), Some((1, true))]);
}

/// Keys that a collation takes for one, DECIMALs that are one as doubles, and a unique index over long text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_keys_are_read_as_they_are() {
    let create = "CREATE TABLE suite.ci (name VARCHAR(20) COLLATE utf8mb4_general_ci PRIMARY KEY, v TEXT); \
                  CREATE TABLE suite.de (id DECIMAL(20,0) PRIMARY KEY)";
    let Some(pair) = pair(create) else { return };
    let server = &pair.servers[0];
    if server.flavour() == Flavour::MariaDb {
        server.sql("ALTER TABLE suite.ci ADD UNIQUE (v)").unwrap();
    }
    let mut source = pair.stream().await;
    server
        .sql(&format!(
            "INSERT INTO suite.ci VALUES ('Bob', 'x'); UPDATE suite.ci SET name = 'bob'; USE suite; \
             INSERT INTO de SELECT 10000000000000000000 + seq FROM {}",
            numbers(3_000)
        ))
        .unwrap();
    let (came, _) = up_to_now(source.as_mut(), server).await;
    assert_eq!(values(&came)["bob"], "{\"name\":\"bob\",\"v\":\"x\"}");
    let keys =
        came.iter().filter(|change| !change.key.name.starts_with(b"1")).map(|change| change.key.clone());
    let token = source.refresh(keys.collect()).await.unwrap();
    let states = until(source.as_mut(), |e| *e == Event::Token(token)).await;
    let states = values(&states);
    assert_eq!(states.len(), 2, "{states:?}");
    assert!(states.values().all(|row| row.contains("bob")), "{states:?}");

    let mut snapshot = pair.connector.source(Site::First);
    snapshot.open(None, true, Told::new()).await.unwrap();
    let read = until(snapshot.as_mut(), is_snapshot_end).await;
    let keys: std::collections::BTreeSet<_> = read.iter().map(|change| change.key.clone()).collect();
    assert_eq!(keys.iter().filter(|key| key.name.len() == 20).count(), 3000);
}

/// The settings without which the binlog would not tell all are refused by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_is_needed_is_named() {
    let Some(pair) = pair(TABLE) else { return };
    let server = &pair.servers[0];
    for (setting, bad, good) in [
        ("binlog_row_metadata", "MINIMAL", "FULL"),
        ("binlog_row_image", "MINIMAL", "FULL"),
        ("binlog_format", "MIXED", "ROW"),
    ] {
        server.sql(&format!("SET GLOBAL {setting} = {bad}")).unwrap();
        let error = pair.connector.source(Site::First).open(None, true, Told::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Setup);
        assert!(error.to_string().contains(&format!("{setting} is {bad}; set it to {good}")), "{error}");
        let findings = pair.connector.check(&[Site::First]).await.unwrap();
        assert!(findings.iter().any(|f| f.fatal && f.what.contains(setting)), "{findings:?}");
        server.sql(&format!("SET GLOBAL {setting} = {good}")).unwrap();
    }
}
