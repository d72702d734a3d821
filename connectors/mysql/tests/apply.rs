//! What a target can do to what is applied: lack a table, refuse a row, hold a lock, be read-only, have been taken over.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use causeway_core::{ErrorKind, Outcome, Site, Term};
use causeway_testkit::mysql::numbers;
use support::{batch, committed, pair, send};

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
    assert!(refused[2].reason.contains("Duplicate entry") && refused[2].reason.contains("u'"), "{refused:?}");
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
        (true, Some("cloud"), "the table suite.here is missing"),
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
