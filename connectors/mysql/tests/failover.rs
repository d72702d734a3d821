//! A server is replaced by its replica: its binlog goes on where the old one ended, or it is a gap, and says why.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_core::{
    Change, ChannelSpec, Connector, Error, Event, Op, Opened, Position, Site, Source, Space, Told,
};
use causeway_testkit::mysql::{Flavour, MysqlOptions, MysqlServer, mysql_server};
use support::{events_until, until, up_to_now};

/// A primary, its replica, and a connector that knows both.
struct Replicated {
    servers: [MysqlServer; 2],
    connector: Arc<dyn Connector>,
}

fn options(args: &[&str]) -> MysqlOptions {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    MysqlOptions { args, ..MysqlOptions::default() }
}

/// `args`: of the replica. `None` where no server can be had.
fn replicated(args: &[&str]) -> Option<Replicated> {
    // A primary that is a replica later writes what it replicates, too. A site's servers have one domain.
    let ours = ["--log-slave-updates=ON", "--loose-gtid-domain-id=7"];
    let servers = [mysql_server(&options(&ours))?, mysql_server(&options(&[&ours, args].concat()))?];
    servers[1].replicate(&servers[0]).unwrap();
    servers[0]
        .sql("CREATE DATABASE suite; CREATE TABLE suite.t (id INT PRIMARY KEY, v VARCHAR(100))")
        .unwrap();
    let connector = connector_of(&servers);
    Some(Replicated { servers, connector })
}

/// One that knows nothing of the servers yet.
fn connector_of(servers: &[MysqlServer; 2]) -> Arc<dyn Connector> {
    let urls: Vec<toml::Value> = servers.iter().map(|server| server.url().into()).collect();
    let site = |key: &str, value: toml::Value| toml::Table::from_iter([(key.to_owned(), value)]);
    let spec = ChannelSpec {
        link: "dc-cloud".into(),
        channel: "orders".into(),
        sites: ["dc".into(), "cloud".into()],
        carries: [true, false],
        table: toml::Table::from_iter([("tables".to_owned(), vec!["suite.*"].into())]),
        site_tables: [site("urls", urls.into()), site("url", "mysql://root@127.0.0.1:1".into())],
        directory: PathBuf::from("."),
    };
    causeway_mysql::open(&spec).unwrap()
}

impl Replicated {
    fn catch_up(&self, replica: usize) {
        let gtids = self.servers[1 - replica].gtids().unwrap();
        self.servers[replica].wait_for(&gtids).unwrap();
    }

    /// What stands behind `held` when the stream goes on at `from`, up to now at `server`; fails if it does not go on.
    async fn goes_on(
        &self,
        from: &Position,
        held: &Position,
        server: usize,
    ) -> (Box<dyn Source>, Vec<Change>, Position) {
        let mut source = self.connector.source(Site::First);
        source.held(held);
        assert_eq!(source.open(Some(from), true, Told::new()).await.unwrap(), Opened::Resumed);
        let end = 1000 + ENDS.fetch_add(1, Ordering::SeqCst);
        self.servers[server].sql(&format!("INSERT INTO suite.t VALUES ({end}, 'end')")).unwrap();
        let is_end = |e: &Event| matches!(e, Event::Change(c) if c.key.name == end.to_string());
        let mut came = until(source.as_mut(), is_end).await;
        came.retain(|change| matches!(&change.key.space, Space::Table(name) if name == "suite.t"));
        let at = came.iter().find(|change| change.key.name == end.to_string()).unwrap().pos.clone();
        came.retain(|change| change.pos.at < at.at && change.key.name.len() < 4);
        let mut before = from.at;
        for change in &came {
            assert!(
                change.pos.at >= before && change.pos.history == from.history,
                "{} after {before}",
                change.pos
            );
            before = change.pos.at;
        }
        (source, came.into_iter().filter(|change| change.pos.at > held.at).collect(), at)
    }

    /// Why the stream cannot go on at `from`.
    async fn lost(&self, from: &Position, held: &Position) -> String {
        let mut source = self.connector.source(Site::First);
        source.held(held);
        match source.open(Some(from), true, Told::new()).await.unwrap() {
            Opened::Anew { lost: Some(reason) } => {
                assert!(!source.keeps_what_it_streamed(), "it may lack what was streamed");
                reason
            }
            other => panic!("{other:?} from {from} held {held}"),
        }
    }
}

/// Rows that end what is read.
static ENDS: AtomicU64 = AtomicU64::new(0);

fn keys(changes: &[Change]) -> Vec<String> {
    let puts = changes.iter().filter(|change| change.op == Op::Put);
    puts.map(|change| String::from_utf8_lossy(&change.key.name).into_owned()).collect()
}

async fn begin(pair: &Replicated) -> Box<dyn Source> {
    let mut source = pair.connector.source(Site::First);
    assert_eq!(source.open(None, false, Told::new()).await.unwrap(), Opened::Anew { lost: None });
    source
}

/// A restart point, and the last place that the log holds, with some transactions between the two.
async fn streamed(pair: &Replicated, source: &mut dyn Source) -> (Position, Position) {
    pair.servers[0].sql("INSERT INTO suite.t VALUES (1, 'a'); FLUSH BINARY LOGS").unwrap();
    let (_, at) = up_to_now(source, &pair.servers[0]).await;
    let from = source.restart_point(&at);
    pair.servers[0]
        .sql("INSERT INTO suite.t VALUES (2, 'b'); INSERT INTO suite.t VALUES (3, 'c'), (4, 'd'); DELETE FROM suite.t WHERE id = 1")
        .unwrap();
    let (_, last) = up_to_now(source, &pair.servers[0]).await;
    (from, last)
}

/// There and back again, each time with a stretch that is read again: each change comes once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_the_replica_and_back() {
    let Some(mut pair) = replicated(&[]) else { return };
    let mut source = begin(&pair).await;
    // What the log does not hold yet when the server dies.
    let (from, last) = streamed(&pair, source.as_mut()).await;
    pair.servers[0]
        .sql("INSERT INTO suite.t VALUES (5, 'e'); UPDATE suite.t SET v = 'x' WHERE id = 2")
        .unwrap();
    pair.catch_up(1);
    drop(source);
    pair.servers[0].kill();
    pair.servers[1].promote().unwrap();
    pair.servers[1]
        .sql("INSERT INTO suite.t VALUES (6, 'f'); FLUSH BINARY LOGS; INSERT INTO suite.t VALUES (7, 'g')")
        .unwrap();
    // As often as you like, before the log holds any more.
    for _ in 0..2 {
        let (source, came, _) = pair.goes_on(&from, &last, 1).await;
        assert!(source.moved());
        assert_eq!(keys(&came), ["5", "2", "6", "7"]);
    }
    // And where it holds some of the new server's, with a restart point that is still the old one's.
    let (source, came, _) = pair.goes_on(&from, &last, 1).await;
    let held = came.iter().find(|change| change.key.name == "6").unwrap().pos.clone();
    let between = source.restart_point(&came[0].pos);
    drop(source);
    let (_, came, _) = pair.goes_on(&from, &held, 1).await;
    assert_eq!(keys(&came), ["7"]);
    let (mut source, came, at) = pair.goes_on(&between, &held, 1).await;
    assert_eq!((keys(&came), source.moved()), (vec!["7".to_owned()], false));

    // The old one comes back as its replica, and takes over again.
    let from = source.restart_point(&at);
    assert_eq!(from.history, last.history);
    pair.servers[0].restart().unwrap();
    let [old, new] = &pair.servers;
    old.replicate(new).unwrap();
    new.sql("INSERT INTO suite.t VALUES (8, 'h')").unwrap();
    let (_, last) = up_to_now(source.as_mut(), new).await;
    new.sql("INSERT INTO suite.t VALUES (9, 'i')").unwrap();
    drop(source);
    pair.catch_up(0);
    pair.servers[1].kill();
    pair.servers[0].promote().unwrap();
    pair.servers[0].sql("INSERT INTO suite.t VALUES (10, 'j')").unwrap();
    let (_, came, _) = pair.goes_on(&from, &last, 0).await;
    assert_eq!(keys(&came), ["9", "10"]);
}

/// What the new server lacks, has too much, or no longer has, is a gap with its reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_not_the_same_is_a_gap() {
    for (spoil, expected) in [
        ("behind", "it lacks"),
        ("errant", "it has other transactions in its binlog"),
        ("purged", "its binlog no longer reaches back"),
    ] {
        let Some(mut pair) = replicated(&[]) else { return };
        if spoil == "errant" {
            pair.catch_up(1);
            // In another domain, or MariaDB would not let the primary's pass any more.
            let (domain, writable) = match pair.servers[1].flavour() {
                Flavour::MariaDb => ("SET gtid_domain_id = 9;", ""),
                Flavour::MySql => ("", "SET GLOBAL super_read_only = OFF;"),
            };
            pair.servers[1].sql(&format!("{writable} {domain} CREATE DATABASE errant")).unwrap();
        }
        let mut source = begin(&pair).await;
        if spoil == "behind" {
            pair.catch_up(1);
            let stop =
                if pair.servers[1].flavour() == Flavour::MariaDb { "STOP SLAVE" } else { "STOP REPLICA" };
            pair.servers[1].sql(stop).unwrap();
        }
        let (from, last) = streamed(&pair, source.as_mut()).await;
        drop(source);
        if spoil != "behind" {
            pair.catch_up(1);
        }
        pair.servers[0].kill();
        pair.servers[1].promote().unwrap();
        let new = &pair.servers[1];
        if spoil == "purged" {
            new.sql("FLUSH BINARY LOGS; FLUSH BINARY LOGS").unwrap();
            // What the tables still need stays for a while.
            while new.sql("SHOW BINARY LOGS").unwrap().contains("binlog.000001") {
                let file = new.binlog().unwrap();
                new.sql(&format!("FLUSH BINARY LOGS; PURGE BINARY LOGS TO '{file}'")).unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        new.sql("INSERT INTO suite.t VALUES (6, 'f')").unwrap();
        let reason = pair.lost(&from, &last).await;
        assert!(reason.contains("another server") && reason.contains(expected), "{reason}");
    }
}

/// A replica that does not write what it replicates cannot go on, and says what to set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_a_binlog_of_its_own_is_a_gap() {
    let Some(mut pair) = replicated(&["--log-slave-updates=OFF"]) else { return };
    let mut source = begin(&pair).await;
    let (from, last) = streamed(&pair, source.as_mut()).await;
    drop(source);
    pair.catch_up(1);
    let found = pair.connector.check(&[Site::First]).await.unwrap();
    let told = found.iter().find(|finding| finding.what.contains("does not write into its binlog"));
    assert!(
        told.is_some_and(|finding| !finding.fatal && finding.what.contains("a failover would be a gap")),
        "{found:?}"
    );
    pair.servers[0].kill();
    pair.servers[1].promote().unwrap();
    let reason = pair.lost(&from, &last).await;
    assert!(
        reason.contains("another server") && reason.contains("lacks")
            || reason.contains("log_replica_updates"),
        "{reason}"
    );
}

/// An old primary that stays up, and takes no writes any more, is left for the one that was promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_takes_no_writes_any_more_is_left() {
    let Some(pair) = replicated(&[]) else { return };
    let mut source = begin(&pair).await;
    let (from, last) = streamed(&pair, source.as_mut()).await;
    pair.servers[0].sql("SET GLOBAL read_only = ON").unwrap();
    pair.catch_up(1);
    pair.servers[1].promote().unwrap();
    let error = events_until(source.as_mut(), |_| false).await.unwrap_err();
    assert!(format!("{error:?}").contains("takes no writes any more"), "{error:?}");
    pair.servers[1].sql("INSERT INTO suite.t VALUES (5, 'e')").unwrap();
    let (source, came, _) = pair.goes_on(&from, &last, 1).await;
    assert_eq!((keys(&came), source.moved()), (vec!["5".to_owned()], true));
}

/// Of several servers the one that takes writes is read, whatever their order; of two that do, none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_never_taken_for_the_primary() {
    let Some(mut pair) = replicated(&[]) else { return };
    let found = pair.connector.check(&[Site::First]).await.unwrap();
    assert!(found.iter().all(|finding| !finding.what.contains("failover")), "{found:?}");
    let mut source = begin(&pair).await;
    let (from, last) = streamed(&pair, source.as_mut()).await;
    pair.catch_up(1);
    pair.servers[1].sql("SET sql_log_bin = 0").unwrap();
    // Nobody is promoted: nobody is read.
    pair.servers[0].kill();
    source.held(&last);
    let error = source.open(Some(&from), true, Told::new()).await.unwrap_err();
    assert!(
        matches!(error, Error::Unavailable { .. }) && format!("{error:?}").contains("read-only"),
        "{error:?}"
    );
    // The old one comes back beside the new one, as nobody told it.
    pair.servers[1].promote().unwrap();
    pair.servers[0].restart().unwrap();
    let error = pair.connector.source(Site::First).open(Some(&from), true, Told::new()).await;
    // The source stays where it was as long as that takes writes.
    assert!(error.is_ok_and(|opened| opened == Opened::Resumed));
    let fresh = connector_of(&pair.servers);
    let error = fresh.source(Site::First).open(Some(&from), true, Told::new()).await.unwrap_err();
    assert!(matches!(&error, Error::Setup { reason, .. } if reason.contains("more than one")), "{error:?}");
    pair.servers[0].sql("SET GLOBAL read_only = ON").unwrap();
    let mut source = fresh.source(Site::First);
    source.held(&last);
    assert_eq!(source.open(Some(&from), true, Told::new()).await.unwrap(), Opened::Resumed);
    events_until(source.as_mut(), |event| matches!(event, Event::Idle { .. })).await.unwrap();
    assert!(source.moved());
}
