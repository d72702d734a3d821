//! Two servers, a connector between them, and the two ends of it.

#![allow(clippy::unwrap_used)] // a failure here is a failed test
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use causeway_core::{
    Batch, Change, ChannelSpec, Connector, Event, Hlc, Marker, Op, Opened, Outcome, Position, Seq, Site,
    Source, Target, Term, Told,
};
use causeway_testkit::mysql::{MysqlOptions, MysqlServer, mysql_server, other_mysql_server};

/// How long a test waits for one thing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two servers whose database `suite` is carried.
pub(crate) struct Pair {
    pub(crate) servers: [MysqlServer; 2],
    pub(crate) connector: Arc<dyn Connector>,
}

/// `None` where no server can be had.
pub(crate) fn pair(create: &str) -> Option<Pair> {
    let other = MysqlOptions { program: other_mysql_server(), ..MysqlOptions::default() };
    let servers = [mysql_server(&MysqlOptions::default())?, mysql_server(&other)?];
    let site = |server: &MysqlServer| toml::Table::from_iter([("url".to_owned(), server.url().into())]);
    let spec = ChannelSpec {
        link: "dc-cloud".into(),
        channel: "orders".into(),
        sites: ["dc".into(), "cloud".into()],
        carries: [true; 2],
        table: toml::Table::from_iter([("tables".to_owned(), vec!["suite.*"].into())]),
        site_tables: [site(&servers[0]), site(&servers[1])],
        directory: PathBuf::from("."),
    };
    let pair = Pair { servers, connector: causeway_mysql::open(&spec).unwrap() };
    pair.sql_at_both("CREATE DATABASE suite");
    pair.sql_at_both(create);
    Some(pair)
}

impl Pair {
    pub(crate) fn sql_at_both(&self, sql: &str) {
        self.servers.iter().for_each(|server| drop(server.sql(sql).unwrap()));
    }

    /// The first site's stream, from now on.
    pub(crate) async fn stream(&self) -> Box<dyn Source> {
        let mut source = self.connector.source(Site::First);
        assert_eq!(source.open(None, false, Told::new()).await.unwrap(), Opened::Anew { lost: None });
        source
    }

    /// What the first site's stream tells of `sql`.
    pub(crate) async fn captured(&self, sql: &str) -> Vec<Change> {
        let mut source = self.stream().await;
        self.servers[0].sql(sql).unwrap();
        up_to_now(&mut *source, &self.servers[0]).await.0
    }
}

/// Everything up to the event that `last` accepts, or an error.
pub(crate) async fn events_until(
    source: &mut dyn Source,
    last: impl Fn(&Event) -> bool,
) -> Result<Vec<Event>, causeway_core::Error> {
    let mut events = Vec::new();
    while !events.iter().any(&last) {
        tokio::time::timeout(PATIENCE, source.next(&mut events, 1 << 20)).await.expect("in time")?;
    }
    Ok(events)
}

pub(crate) fn changes(events: Vec<Event>) -> Vec<Change> {
    events
        .into_iter()
        .filter_map(|e| if let Event::Change(change) = e { Some(change) } else { None })
        .collect()
}

/// Everything up to the event that `last` accepts.
pub(crate) async fn until(source: &mut dyn Source, last: impl Fn(&Event) -> bool) -> Vec<Change> {
    changes(events_until(source, last).await.unwrap())
}

/// Everything up to now, and the place behind it.
pub(crate) async fn up_to_now(source: &mut dyn Source, server: &MysqlServer) -> (Vec<Change>, Position) {
    server.sql("CREATE TABLE IF NOT EXISTS suite.ends (id INT PRIMARY KEY AUTO_INCREMENT)").unwrap();
    server.sql("INSERT INTO suite.ends VALUES ()").unwrap();
    let is_end = |change: &Change| change.op == Op::Put && is_ends(change);
    let mut all = until(source, |e| matches!(e, Event::Change(c) if is_end(c))).await;
    let end = all.iter().position(is_end).unwrap();
    let at = all[end].pos.clone();
    all.truncate(end);
    // And what made the table.
    all.retain(|change| !is_ends(change));
    (all, at)
}

fn is_ends(change: &Change) -> bool {
    matches!(&change.key.space, causeway_core::Space::Table(name) if name.as_ref() == b"suite.ends")
}

/// By key.
pub(crate) fn values(changes: &[Change]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    changes
        .iter()
        .map(|c| (text(&c.key.name), c.value.as_ref().map_or_else(String::new, |v| text(v))))
        .collect()
}

/// One batch of these, behind those before.
pub(crate) fn batch(term: u64, seq: u64, changes: Vec<Change>) -> Batch {
    let marker = Marker { term: Term(term), applied: Seq(seq), hlc: Hlc(seq << 9), ..Marker::default() };
    Batch { marker, changes, ..Batch::default() }
}

/// Sends a batch and waits for what comes of it.
pub(crate) async fn send(target: &mut dyn Target, batch: Batch) -> Result<Outcome, causeway_core::Error> {
    target.send(batch).await?;
    tokio::time::timeout(PATIENCE, target.outcome()).await.expect("in time")
}

pub(crate) fn committed() -> Outcome {
    Outcome::Committed { refused: Vec::new(), existing: Vec::new() }
}
