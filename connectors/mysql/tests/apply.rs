//! What a target can do to what is applied: lack a table, refuse a row, hold a lock, be read-only, have been taken over.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use causeway_core::{
    Batch, Change, DdlPolicy, ErrorKind, Event, Op, Outcome, Position, Seq, Site, Term, Told,
};
use causeway_testkit::mysql::numbers;
use support::{batch, changes, committed, events_until, pair, send};

const TABLE: &str = "CREATE TABLE suite.t (id INT PRIMARY KEY, v VARCHAR(100), u INT, UNIQUE KEY (u))";

/// FF56, FF45: a row that does not fit is refused with its reason and without its value, its transaction with it; the rest
/// goes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_does_not_fit_is_refused_with_its_transaction() {
    let Some(pair) = pair(TABLE) else { return };
    let changes = pair
        .captured(
            "INSERT INTO suite.t VALUES (1, 'a', 1); \
             BEGIN; INSERT INTO suite.t VALUES (2, 'hunter2 hunter2', 2); INSERT INTO suite.t VALUES (3, 'c', 3); COMMIT; \
             INSERT INTO suite.t VALUES (4, 'd', 4); INSERT INTO suite.t VALUES (5, 'e', 5); DELETE FROM suite.t WHERE id = 1",
        )
        .await;
    pair.servers[1].sql("ALTER TABLE suite.t MODIFY v VARCHAR(10)").unwrap();
    // Another row has this number.
    pair.servers[1].sql("INSERT INTO suite.t VALUES (50, 'there', 5)").unwrap();
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let Outcome::Committed { refused, .. } = send(target.as_mut(), batch(1, 6, changes)).await.unwrap()
    else {
        panic!("not committed")
    };
    assert_eq!(refused.iter().map(|refused| refused.index).collect::<Vec<_>>(), [1, 2, 4]);
    assert!(refused[0].reason.contains("Data too long for column 'v'"), "{refused:?}");
    let of_index = ["'u'", "'t.u'"].iter().any(|index| refused[2].reason.contains(index));
    assert!(refused[2].reason.contains("Duplicate entry") && of_index, "{refused:?}");
    assert!(refused.iter().all(|refused| !refused.reason.contains("hunter2")), "{refused:?}");
    let rows = pair.servers[1].sql("SELECT id FROM suite.t ORDER BY id").unwrap();
    assert_eq!(rows.split_whitespace().collect::<Vec<_>>(), ["4", "50"]);
}

/// FF10: names of columns are the same in any case, and in any order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_are_the_same_in_any_case() {
    let Some(pair) = pair("CREATE TABLE suite.other (id INT PRIMARY KEY)") else { return };
    pair.servers[0].sql("CREATE TABLE suite.t (Id INT PRIMARY KEY, userName VARCHAR(9), n INT)").unwrap();
    pair.servers[1].sql("CREATE TABLE suite.t (N INT, USERNAME VARCHAR(9), ID INT PRIMARY KEY)").unwrap();
    assert!(pair.connector.check(&Site::BOTH).await.unwrap().iter().all(|finding| !finding.fatal));
    let sql = "INSERT INTO suite.t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3); UPDATE suite.t SET userName = 'B' WHERE id = 2; \
               DELETE FROM suite.t WHERE ID = 3; UPDATE suite.t SET iD = 4 WHERE Id = 1";
    let changes = pair.captured(sql).await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    assert_eq!(send(target.as_mut(), batch(1, 9, changes)).await.unwrap(), committed());
    let rows = pair.servers[1].sql("SELECT id, username, n FROM suite.t ORDER BY id").unwrap();
    assert_eq!(rows, "2\tB\t2\n4\ta\t1\n");
}

/// FF12: rows change their unique values with each other, as they did at their origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_that_are_swapped_arrive() {
    let Some(pair) = pair(TABLE) else { return };
    let changes = pair
        .captured(
            "INSERT INTO suite.t VALUES (1, 'a', 1), (2, 'b', 2); \
             BEGIN; UPDATE suite.t SET u = NULL WHERE id = 1; UPDATE suite.t SET u = 1 WHERE id = 2; \
             UPDATE suite.t SET u = 2 WHERE id = 1; COMMIT; DELETE FROM suite.t WHERE id = 2; \
             INSERT INTO suite.t VALUES (3, 'c', 1); UPDATE suite.t SET id = 4 WHERE id = 3",
        )
        .await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    assert_eq!(send(target.as_mut(), batch(1, 20, changes)).await.unwrap(), committed());
    let [first, second] =
        pair.servers.each_ref().map(|server| server.sql("SELECT * FROM suite.t ORDER BY id").unwrap());
    assert_eq!(first, second);
}

/// What lies in the server and not in the row waits, and names what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_or_read_only_is_waited_for() {
    let Some(pair) = pair(TABLE) else { return };
    let changes = pair.captured("INSERT INTO suite.t VALUES (1, 'a', 1)").await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    for (spoil, mend, reason) in [
        (
            "ALTER TABLE suite.t DROP COLUMN v",
            "ALTER TABLE suite.t ADD COLUMN v VARCHAR(100)",
            "the column v of suite.t is missing",
        ),
        (
            "RENAME TABLE suite.t TO suite.away",
            "RENAME TABLE suite.away TO suite.t",
            "the table suite.t is missing",
        ),
    ] {
        pair.servers[1].sql(spoil).unwrap();
        match send(target.as_mut(), batch(1, 1, changes.clone())).await.unwrap() {
            Outcome::Rejected { transient: true, reason: told } => assert!(told.contains(reason), "{told}"),
            other => panic!("{other:?}"),
        }
        pair.servers[1].sql(mend).unwrap();
    }
    assert_eq!(send(target.as_mut(), batch(1, 1, changes)).await.unwrap(), committed());
    assert_eq!(pair.servers[1].sql("SELECT v FROM suite.t").unwrap().trim(), "a");
}

/// FF07: what is larger than the server takes at once goes in by and by; a row that is larger alone is refused, and names
/// the setting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_a_packet_goes_in_or_is_refused() {
    let Some(pair) = pair("CREATE TABLE suite.t (id INT PRIMARY KEY, v LONGBLOB)") else { return };
    let changes = pair
        .captured(&format!(
            "USE suite; INSERT INTO t SELECT seq, REPEAT('x', 30000) FROM {}; \
             INSERT INTO t VALUES (1000, REPEAT(x'00', 3000000)); INSERT INTO t VALUES (1001, 'small')",
            numbers(100)
        ))
        .await;
    pair.servers[1].sql("SET GLOBAL max_allowed_packet = 1048576").unwrap();
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let count = changes.len() as u64;
    let Outcome::Committed { refused, .. } = send(target.as_mut(), batch(1, count, changes)).await.unwrap()
    else {
        panic!("not committed")
    };
    assert_eq!(refused.iter().map(|refused| refused.index).collect::<Vec<_>>(), [100], "{refused:?}");
    assert!(refused[0].reason.contains("max_allowed_packet of this server"), "{refused:?}");
    assert_eq!(pair.servers[1].sql("SELECT COUNT(*) FROM suite.t").unwrap().trim(), "101");
}

/// Somebody who holds a row is waited for; a deadlock is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_locked_is_waited_for() {
    let Some(pair) = pair(TABLE) else { return };
    let changes = pair.captured("INSERT INTO suite.t VALUES (1, 'a', 1); UPDATE suite.t SET v = 'b'").await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    send(target.as_mut(), batch(1, 1, changes[..1].to_vec())).await.unwrap();
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| {
            pair.servers[1].sql("BEGIN; SELECT * FROM suite.t FOR UPDATE; DO SLEEP(1.5); COMMIT").unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        let applied = tokio::runtime::Handle::current();
        let outcome = tokio::task::block_in_place(|| {
            applied.block_on(send(target.as_mut(), batch(1, 2, changes[1..].to_vec())))
        });
        assert_eq!(outcome.unwrap(), committed());
        holding.join().unwrap();
    });
    assert_eq!(pair.servers[1].sql("SELECT v FROM suite.t").unwrap().trim(), "b");
}

/// FF38: an older applier that wakes up while a newer one has taken over changes nothing, also one whose transaction was
/// open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_applier_that_wakes_up_changes_nothing() {
    let Some(pair) = pair(TABLE) else { return };
    let changes =
        pair.captured("INSERT INTO suite.t VALUES (1, 'a', 1); INSERT INTO suite.t VALUES (2, 'b', 2)").await;
    let mut older = pair.connector.target(Site::Second);
    older.take_over(Term(5)).await.unwrap();
    assert_eq!(send(older.as_mut(), batch(5, 1, changes[..1].to_vec())).await.unwrap(), committed());
    let mut newer = pair.connector.target(Site::Second);
    let found = newer.take_over(Term(9)).await.unwrap().unwrap();
    assert_eq!(found.applied.0, 1);
    let error = send(older.as_mut(), batch(5, 2, changes[1..].to_vec())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    let error = older.take_over(Term(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(pair.servers[1].sql("SELECT COUNT(*) FROM suite.t").unwrap().trim(), "1");
    assert_eq!(send(newer.as_mut(), batch(9, 2, changes[1..].to_vec())).await.unwrap(), committed());
}

/// The check names what stands in the way, at which site, and what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_way_is_named() {
    let Some(pair) = pair(TABLE) else { return };
    let sites = [Site::First, Site::Second];
    let findings = pair.connector.check(&sites).await.unwrap();
    assert!(!findings.iter().any(|finding| finding.fatal), "{findings:?}");
    pair.servers[0]
        .sql(
            "CREATE TABLE suite.m (id INT PRIMARY KEY) ENGINE=MyISAM; CREATE TABLE suite.half (v INT); CREATE TABLE suite.other (v INT); CREATE TABLE suite.here (id INT PRIMARY KEY AUTO_INCREMENT); \
             CREATE TABLE suite.child (id INT PRIMARY KEY, t INT, FOREIGN KEY (t) REFERENCES suite.t (id) ON DELETE CASCADE)",
        )
        .unwrap();
    pair.servers[1]
        .sql(
            "CREATE TABLE suite.half (v INT PRIMARY KEY); CREATE TABLE suite.other (v BIGINT); \
             ALTER TABLE suite.t DROP COLUMN v; CREATE TABLE suite.log (id INT PRIMARY KEY); \
             CREATE TRIGGER suite.tr AFTER INSERT ON suite.t FOR EACH ROW INSERT INTO suite.log VALUES (NEW.id)",
        )
        .unwrap();
    let findings = pair.connector.check(&sites).await.unwrap();
    for (fatal, site, what) in [
        (true, Some("cloud"), "suite.half has a primary key here, and none at the other site"),
        (true, Some("dc"), "suite.half has no primary key here, and one at the other site"),
        (true, Some("cloud"), "suite.other has other columns here, or such of other types"),
        (false, Some("cloud"), "suite.other without a primary key"),
        (true, Some("dc"), "suite.m cannot be carried: it is a BASE TABLE of MyISAM"),
        (true, Some("dc"), "suite.child has a foreign key that changes its rows by itself"),
        (false, Some("cloud"), "the table suite.here is missing"),
        (true, Some("cloud"), "suite.t lacks the column v"),
        (false, Some("cloud"), "the trigger tr of suite.t runs again"),
        (false, None, "both sites give the same numbers to AUTO_INCREMENT columns"),
    ] {
        let told = findings
            .iter()
            .any(|f| f.fatal == fatal && f.site.as_deref() == site && f.what.starts_with(what));
        assert!(told, "{what}: {findings:#?}");
    }
}

const KEYLESS: &str = "CREATE TABLE suite.k (a INT, v VARCHAR(20), u INT, UNIQUE KEY (u))";

/// Rows of a table without a primary key go in as often as they came, and what is there beside them does not matter. What
/// goes and is not there is no reason to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_go_in_as_often_as_they_came() {
    let Some(pair) = pair(KEYLESS) else { return };
    let came = pair
        .captured(
            "INSERT INTO suite.k VALUES (1, 'a', NULL), (1, 'a', NULL), (1, 'A', NULL), (NULL, NULL, 5); \
             UPDATE suite.k SET a = 2 WHERE v = 'a' LIMIT 1; INSERT INTO suite.k VALUES (1, 'a', NULL); \
             DELETE FROM suite.k WHERE u = 5; INSERT INTO suite.k VALUES (NULL, NULL, 5), (7, 'x', NULL); \
             DELETE FROM suite.k WHERE a = 7",
        )
        .await;
    pair.servers[1].sql("INSERT INTO suite.k VALUES (50, 'own', NULL)").unwrap();
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let count = came.len() as u64;
    assert_eq!(send(target.as_mut(), batch(1, count, came.clone())).await.unwrap(), committed());
    let rows = "SELECT COUNT(*), a, HEX(v), u FROM suite.k WHERE v IS NULL OR v <> 'own' GROUP BY a, HEX(v), u \
                ORDER BY 2, 3, 4";
    let both = || pair.servers.each_ref().map(|server| server.sql(rows).unwrap());
    let [first, second] = both();
    assert_eq!(first, second);
    assert_eq!(first.lines().count(), 4, "{first}");
    // As where both sites deleted it at once.
    let gone = came.last().unwrap().clone();
    let more = vec![gone.clone(), came[0].clone(), gone];
    assert_eq!(send(target.as_mut(), batch(1, count + 3, more)).await.unwrap(), committed());
    pair.servers[0].sql("INSERT INTO suite.k VALUES (1, 'a', NULL)").unwrap();
    let [first, second] = both();
    assert_eq!(first, second);
    // What another index does not let in is refused alone.
    let is_five =
        |c: &&Change| c.value.as_deref() == Some(b"+1") && c.key.name.starts_with(b"{\"a\":null,\"u\":5");
    let changes = [&came[0], came.iter().find(is_five).unwrap()];
    let changes = changes.map(|change| Change { group: None, ..change.clone() }).to_vec();
    let outcome = send(target.as_mut(), batch(1, count + 5, changes)).await.unwrap();
    let Outcome::Committed { refused, .. } = outcome else { panic!("{outcome:?}") };
    assert!(refused.len() == 1 && refused[0].reason.contains("Duplicate entry"), "{refused:?}");
}

/// A snapshot's counts: what exists is kept where that was asked for, but for what the stream had told before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_that_exist_are_kept_or_counted_anew() {
    let Some(pair) = pair(KEYLESS) else { return };
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let key = pair.captured("INSERT INTO suite.k VALUES (1, 'a', NULL)").await[0].key.clone();
    let change = |op, value: &str| {
        Change::captured(op, key.clone(), Some(value.to_owned().into()), Position::default(), 0)
    };
    let none = |op| Change { value: None, ..change(op, "") };
    let rows =
        || pair.servers[1].sql("SELECT COUNT(*) FROM suite.k WHERE v = 'a'").unwrap().trim().to_owned();
    let kept = |index| Outcome::Committed { refused: Vec::new(), existing: vec![index] };
    let (came, went) = (change(Op::Command, "+1"), change(Op::Command, "-1"));
    let mut seq = 0;
    for (changes, keep, outcome, expected) in [
        (vec![change(Op::Read, "3")], true, committed(), "3"),
        (vec![change(Op::Read, "5")], true, kept(0), "3"),
        (vec![came.clone(), change(Op::Read, "5,1")], true, kept(1), "4"),
        (vec![change(Op::Read, "5,1")], false, committed(), "5"),
        (vec![change(Op::State, "2500"), went.clone()], false, committed(), "2499"),
        (vec![came.clone(), change(Op::State, "1"), came.clone()], false, committed(), "2"),
        (vec![went.clone(), went.clone(), went, change(Op::State, "1")], false, committed(), "1"),
        (vec![none(Op::Delete)], false, committed(), "0"),
        (vec![came.clone(), came], false, committed(), "2"),
        (vec![change(Op::Read, "7,2")], true, committed(), "7"),
        (vec![none(Op::State)], true, committed(), "0"),
    ] {
        seq += changes.len() as u64;
        let batch = Batch { keep_existing: keep, ..batch(1, seq, changes) };
        assert_eq!(send(target.as_mut(), batch).await.unwrap(), outcome, "{expected}");
        assert_eq!(rows(), expected);
    }
}

/// A watched batch sees rows of its contents come and go, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_watched() {
    let Some(pair) = pair(KEYLESS) else { return };
    let came = pair.captured("INSERT INTO suite.k VALUES (1, 'a', NULL)").await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    for (sql, outcome) in [
        ("INSERT INTO suite.k VALUES (1, 'A', NULL)", committed()),
        ("INSERT INTO suite.k VALUES (1, 'a', NULL)", Outcome::Touched),
        ("DELETE FROM suite.k WHERE BINARY v = 'a' LIMIT 1", Outcome::Touched),
        ("UPDATE suite.k SET a = 2 WHERE BINARY v = 'A'", committed()),
    ] {
        target.watch(&[came[0].key.clone()]).await.unwrap();
        pair.servers[1].sql(sql).unwrap();
        let batch = Batch { watched: true, ..batch(1, 1, came.clone()) };
        assert_eq!(send(target.as_mut(), batch).await.unwrap(), outcome, "{sql}");
    }
}

/// A table gets or loses columns, and a primary key, while rows that were written before are under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_before_a_change_of_a_table_without_a_key_are_not_misread() {
    let Some(pair) = pair("CREATE TABLE suite.k (a INT, v VARCHAR(20))") else { return };
    let came = pair
        .captured("INSERT INTO suite.k VALUES (1, 'a'), (1, 'a'), (2, 'b'); DELETE FROM suite.k WHERE a = 1 LIMIT 1")
        .await;
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let cloud = &pair.servers[1];
    // It came here first, and one row was changed since.
    cloud
        .sql("ALTER TABLE suite.k ADD COLUMN w INT DEFAULT 7; INSERT INTO suite.k VALUES (1, 'a', 8)")
        .unwrap();
    assert_eq!(send(target.as_mut(), batch(1, 4, came.clone())).await.unwrap(), committed());
    let rows = || cloud.sql("SELECT * FROM suite.k ORDER BY 1, 3").unwrap();
    assert_eq!(rows(), "1\ta\t7\n1\ta\t8\n2\tb\t7\n");
    let state = Change { op: Op::State, value: Some("3".into()), ..came[0].clone() };
    assert_eq!(send(target.as_mut(), batch(1, 5, vec![state])).await.unwrap(), committed());
    assert_eq!(rows(), "1\ta\t7\n1\ta\t7\n1\ta\t7\n1\ta\t8\n2\tb\t7\n");
    // A key: they go in as what they hold.
    let key = "DELETE FROM suite.k WHERE a = 1 ORDER BY w LIMIT 3; ALTER TABLE suite.k DROP COLUMN w, ADD PRIMARY KEY (a)";
    cloud.sql(key).unwrap();
    let mut newer = pair.connector.target(Site::Second);
    newer.take_over(Term(2)).await.unwrap();
    let went = came.iter().find(|c| c.value.as_deref() == Some(b"-1")).unwrap();
    let again = vec![went.clone(), came[0].clone()];
    assert_eq!(send(newer.as_mut(), batch(2, 7, again)).await.unwrap(), committed());
    let rows = || cloud.sql("SELECT * FROM suite.k ORDER BY 1").unwrap();
    assert_eq!(rows(), "1\ta\n2\tb\n");
    // And the other way: a row that had a key waits for one.
    pair.servers[0].sql("ALTER TABLE suite.k ADD PRIMARY KEY (a)").unwrap();
    let keyed = pair.captured("UPDATE suite.k SET v = 'c' WHERE a = 2").await;
    cloud.sql("ALTER TABLE suite.k DROP PRIMARY KEY").unwrap();
    let mut newest = pair.connector.target(Site::Second);
    newest.take_over(Term(3)).await.unwrap();
    match send(newest.as_mut(), batch(3, 8, keyed.clone())).await.unwrap() {
        Outcome::Rejected { transient: true, reason } => {
            assert!(reason.contains("no primary key here"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    cloud.sql("ALTER TABLE suite.k ADD PRIMARY KEY (a)").unwrap();
    assert_eq!(send(newest.as_mut(), batch(3, 8, keyed)).await.unwrap(), committed());
    assert_eq!(rows(), "1\ta\n2\tc\n");
    let statement = pair.captured("ALTER TABLE suite.k DROP PRIMARY KEY").await;
    assert_eq!(pair.connector.ddl_policy(&statement[0]), DdlPolicy::Hold);
}

/// The statements among `changes`.
fn statements(changes: &[Change]) -> Vec<Change> {
    changes.iter().filter(|change| change.op == Op::Ddl).cloned().collect()
}

/// FF05: a statement that changes a table goes in where it stood between the rows, and the target's own stream does not
/// tell of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_table_goes_in_once_and_does_not_come_back() {
    let Some(pair) = pair(TABLE) else { return };
    let mut back = pair.connector.source(Site::Second);
    back.open(None, false, Told::new()).await.unwrap();
    let came = pair
        .captured(
            "INSERT INTO suite.t VALUES (1, 'a', 1); USE suite; ALTER TABLE t ADD COLUMN w INT DEFAULT 7 FIRST; \
             INSERT INTO suite.t VALUES (8, 2, 'b', 2); CREATE TABLE suite.more (id INT PRIMARY KEY); \
             INSERT INTO suite.more VALUES (5); CREATE DATABASE elsewhere; CREATE TABLE elsewhere.t (id INT)",
        )
        .await;
    assert_eq!(statements(&came).len(), 2, "{came:?}");
    let policies: Vec<DdlPolicy> = statements(&came).iter().map(|c| pair.connector.ddl_policy(c)).collect();
    assert_eq!(policies, [DdlPolicy::Apply; 2]);
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    for (n, change) in came.iter().enumerate() {
        let change = Change { seq: Seq(n as u64), ..change.clone() };
        assert_eq!(send(target.as_mut(), batch(1, n as u64 + 1, vec![change])).await.unwrap(), committed());
    }
    let rows =
        pair.servers[1].sql("SELECT id, w, v FROM suite.t ORDER BY id; SELECT id FROM suite.more").unwrap();
    assert_eq!(rows.split_whitespace().collect::<Vec<_>>(), ["1", "7", "a", "2", "8", "b", "5"]);
    pair.servers[1].sql("ALTER TABLE suite.t DROP COLUMN v").unwrap();
    let is_last = |e: &Event| matches!(e, Event::Change(c) if c.op == Op::Ddl);
    let events = events_until(back.as_mut(), is_last).await.unwrap();
    let markers = events.iter().filter(|e| matches!(e, Event::Marker { .. })).count();
    assert_eq!(markers, came.len(), "each is told of once: {events:?}");
    let told = changes(events);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(pair.connector.shown(&told[0]).contains("DROP COLUMN v"), "{told:?}");
}

/// FF44: after a break the table itself tells whether a statement ran; a connection that may still run it is waited for,
/// and one that sleeps before it is ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_table_that_broke_off_is_done_once() {
    let Some(pair) = pair(TABLE) else { return };
    let came = pair.captured("ALTER TABLE suite.t ADD COLUMN w INT, ADD COLUMN x INT").await;
    let change = Change { seq: Seq(4), ..statements(&came)[0].clone() };
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let again = || batch(1, 5, vec![change.clone()]);
    assert_eq!(send(target.as_mut(), again()).await.unwrap(), committed());
    // As it was before the marker moved: announced, and run.
    let before = "SELECT ddl IS NULL FROM causeway.causeway_applied";
    assert_eq!(pair.servers[1].sql(before).unwrap().trim(), "1");
    let uptime = pair.servers[1].sql("SELECT UNIX_TIMESTAMP(); SHOW GLOBAL STATUS LIKE 'Uptime'").unwrap();
    let numbers: Vec<u64> = uptime.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let started = numbers[0] - numbers[1];
    let announce = |seq: u64, connection: u64, before: &str| {
        let sql =
            format!("UPDATE causeway.causeway_applied SET ddl = '{seq}:{connection}:{before}:{started}'");
        pair.servers[1].sql(&sql).unwrap();
    };
    announce(4, 4_000_000, "abc");
    assert_eq!(send(target.as_mut(), again()).await.unwrap(), committed());
    // Announced for another place of the log: this one has not run, and the server says why it cannot.
    announce(3, 4_000_000, "abc");
    let Outcome::Rejected { transient: false, reason } = send(target.as_mut(), again()).await.unwrap() else {
        panic!("it ran twice")
    };
    assert!(reason.contains("Duplicate column name 'w'"), "{reason}");
    // It is mended, and tried again: what was refused has not run.
    pair.servers[1].sql("ALTER TABLE suite.t DROP COLUMN w, DROP COLUMN x").unwrap();
    assert_eq!(send(target.as_mut(), again()).await.unwrap(), committed());
    pair.servers[1].sql("SELECT w, x FROM suite.t").unwrap();
    // One that runs.
    std::thread::scope(|scope| {
        let running = scope.spawn(|| drop(pair.servers[1].sql("SELECT 'ours', SLEEP(3)")));
        let mut id = String::new();
        while id.is_empty() {
            let find =
                "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT ''ours%' LIMIT 1";
            id = pair.servers[1].sql(find).unwrap().trim().to_owned();
        }
        announce(4, id.parse().unwrap(), "abc");
        let handle = tokio::runtime::Handle::current();
        let outcome = tokio::task::block_in_place(|| handle.block_on(send(target.as_mut(), again())));
        let Outcome::Rejected { transient: true, reason } = outcome.unwrap() else {
            panic!("not waited for")
        };
        assert!(reason.contains("still runs it"), "{reason}");
        running.join().unwrap();
    });
    assert_eq!(send(target.as_mut(), again()).await.unwrap(), committed());
    // One that sleeps: an applier that was stopped between the two.
    let mut older = pair.connector.target(Site::Second);
    older.take_over(Term(1)).await.unwrap();
    let sleeping = "SELECT id FROM information_schema.processlist WHERE command = 'Sleep' AND user = 'root' ORDER BY id DESC LIMIT 1";
    let id: u64 = pair.servers[1].sql(sleeping).unwrap().trim().parse().unwrap();
    announce(4, id, "abc");
    assert_eq!(send(target.as_mut(), again()).await.unwrap(), committed());
    let left = format!(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id} AND command <> 'Killed'"
    );
    assert_eq!(pair.servers[1].sql(&left).unwrap().trim(), "0", "it could still run it");
    let mut newer = pair.connector.target(Site::Second);
    newer.take_over(Term(2)).await.unwrap();
    let error = send(target.as_mut(), again()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}
