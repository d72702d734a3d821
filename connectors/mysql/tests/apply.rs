//! What a target can do to what is applied: lack a table, refuse a row, hold a lock, be read-only, have been taken over.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use causeway_core::{Change, DdlPolicy, ErrorKind, Event, Op, Outcome, Seq, Site, Term, Told};
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
            "CREATE TABLE suite.m (id INT PRIMARY KEY) ENGINE=MyISAM; CREATE TABLE suite.keyless (v INT); CREATE TABLE suite.here (id INT PRIMARY KEY AUTO_INCREMENT); \
             CREATE TABLE suite.child (id INT PRIMARY KEY, t INT, FOREIGN KEY (t) REFERENCES suite.t (id) ON DELETE CASCADE)",
        )
        .unwrap();
    pair.servers[1]
        .sql(
            "ALTER TABLE suite.t DROP COLUMN v; CREATE TABLE suite.log (id INT PRIMARY KEY); \
             CREATE TRIGGER suite.tr AFTER INSERT ON suite.t FOR EACH ROW INSERT INTO suite.log VALUES (NEW.id)",
        )
        .unwrap();
    let findings = pair.connector.check(&sites).await.unwrap();
    for (fatal, site, what) in [
        (true, Some("dc"), "suite.keyless cannot be carried: it has no primary key"),
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
