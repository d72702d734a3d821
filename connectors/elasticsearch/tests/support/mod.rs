//! A channel between two indices of the nodes that the tests of a process share, each behind a line that can be cut.

#![allow(dead_code, reason = "each test uses its part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use causeway_core::{
    Batch, Change, ChannelSpec, Connector, Event, Hlc, Key, Marker, Op, Opened, Outcome, Position, Seq, Site,
    Source, Space, Target, Term, Told,
};
use causeway_testkit::elasticsearch::{ElasticsearchServer, shared};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Connections go through it to `port`, until they are cut.
pub(crate) struct Line {
    pub(crate) port: u16,
    cut: watch::Sender<u64>,
}

impl Line {
    pub(crate) async fn to(port: u16) -> Result<Line> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own = listener.local_addr()?.port();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
                    else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Ok(Line { port: own, cut })
    }

    pub(crate) fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

/// Two sites with an index each, of the same name.
pub(crate) struct Pair {
    pub(crate) nodes: &'static [ElasticsearchServer; 2],
    pub(crate) lines: [Line; 2],
    pub(crate) index: String,
    pub(crate) connector: Arc<dyn Connector>,
}

/// An index's definition that the tests' documents fit.
pub(crate) const INDEX: &str = r#"{"settings":{"number_of_shards":2,"number_of_replicas":0},
    "mappings":{"properties":{"text":{"type":"keyword"}}}}"#;

impl Pair {
    /// `None`: no Elasticsearch here. `more`: of the channel's table. With `definition` the index is made at both.
    pub(crate) async fn new(more: &str, definition: Option<&str>) -> Result<Option<Pair>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let nodes = tokio::task::spawn_blocking(shared).await?;
        let Some(nodes) = nodes else { return Ok(None) };
        let index = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lines = [Line::to(nodes[0].port()).await?, Line::to(nodes[1].port()).await?];
        let urls = lines.each_ref().map(|line| format!("http://127.0.0.1:{}", line.port));
        let connector = causeway_elasticsearch::open(&spec(&index, more, [&urls[0], &urls[1]])?)?;
        let pair = Pair { nodes, lines, index, connector };
        if let Some(definition) = definition {
            for site in Site::BOTH {
                pair.must(site, "PUT", "", definition).await?;
            }
        }
        Ok(Some(pair))
    }

    /// A request about the index, which has to succeed.
    pub(crate) async fn must(&self, site: Site, method: &str, path: &str, body: &str) -> Result<Value> {
        let (node, path) = (&self.nodes[site.index()], format!("/{}{path}", self.index));
        let (method, body) = (method.to_owned(), body.to_owned());
        tokio::task::spawn_blocking(move || node.must(&method, &path, &body)).await?
    }

    /// The answer's status and text.
    pub(crate) async fn ask(
        &self,
        site: Site,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, String)> {
        let (node, path) = (&self.nodes[site.index()], format!("/{}{path}", self.index));
        let (method, body) = (method.to_owned(), body.to_owned());
        tokio::task::spawn_blocking(move || node.request(&method, &path, &body)).await?
    }

    pub(crate) async fn put(&self, site: Site, id: &str, source: &str) -> Result<Value> {
        self.must(site, "PUT", &format!("/_doc/{id}"), source).await
    }

    /// A document's bytes.
    pub(crate) async fn source(&self, site: Site, id: &str) -> Result<Option<String>> {
        let (status, text) = self.ask(site, "GET", &format!("/_source/{id}"), "").await?;
        Ok((status == 200).then_some(text))
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        Key { space: Space::Index(Bytes::from(self.index.clone())), name: Bytes::from(name.to_owned()) }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // What stays costs the nodes that the tests share a little.
        for node in self.nodes {
            let _ = node.request("DELETE", &format!("/{}*", self.index), "");
            let _ = node.request("DELETE", &format!("/.causeway-l-{}*?expand_wildcards=all", self.index), "");
        }
    }
}

/// A channel of `index` between two addresses.
pub(crate) fn spec(index: &str, more: &str, urls: [&str; 2]) -> Result<ChannelSpec> {
    let table = format!("indices = [\"{index}*\"]\npoll = \"20ms\"\n{more}");
    let site = |url: &str| toml::from_str(&format!("url = \"{url}\""));
    Ok(ChannelSpec {
        link: "l".into(),
        channel: index.into(),
        sites: ["dc".into(), "cloud".into()],
        carries: [true, true],
        table: toml::from_str(&table)?,
        site_tables: [site(urls[0])?, site(urls[1])?],
        directory: std::env::temp_dir(),
    })
}

/// How long a test waits for one thing.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// Opens a stream that begins anew.
pub(crate) async fn anew(pair: &Pair, site: Site, snapshot: bool) -> Result<Box<dyn Source>> {
    let mut source = pair.connector.source(site);
    let opened = source.open(None, snapshot, Told::new()).await?;
    anyhow::ensure!(opened == Opened::Anew { lost: None }, "{opened:?}");
    Ok(source)
}

/// Events up to one that `last` accepts.
pub(crate) async fn until(
    source: &mut dyn Source,
    what: &str,
    last: impl Fn(&Event) -> bool,
) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let reading = async {
        loop {
            let from = events.len();
            source.next(&mut events, 1 << 20).await?;
            if events[from..].iter().any(&last) {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, reading).await.map_err(|_| anyhow!("{what} doesn't come"))??;
    Ok(events)
}

pub(crate) fn changes(events: &[Event]) -> Vec<Change> {
    let change = |event: &Event| if let Event::Change(change) = event { Some(change.clone()) } else { None };
    events.iter().filter_map(change).collect()
}

pub(crate) fn is_end(event: &Event) -> bool {
    matches!(event, Event::SnapshotEnded { .. })
}

/// Behind the last event that has a place.
pub(crate) fn position(events: &[Event]) -> Option<Position> {
    events.iter().rev().find_map(|event| match event {
        Event::Change(change) => Some(change.pos.clone()),
        Event::Marker { pos, .. } | Event::Idle { pos } | Event::SnapshotEnded { pos, .. } => {
            Some(pos.clone())
        }
        _ => None,
    })
}

/// Applies into a site, counting seqs as a log does.
pub(crate) struct Applier {
    pub(crate) target: Box<dyn Target>,
    pub(crate) next: u64,
}

impl Applier {
    pub(crate) async fn new(pair: &Pair, site: Site) -> Result<Applier> {
        Applier::of(pair.connector.as_ref(), site).await
    }

    pub(crate) async fn of(connector: &dyn Connector, site: Site) -> Result<Applier> {
        let mut target = connector.target(site);
        let marker = target.take_over(Term(1)).await?;
        Ok(Applier { target, next: marker.map_or(0, |marker| marker.applied.0) })
    }

    /// One batch; changes without an hlc, but for reads, get that of now.
    pub(crate) async fn apply(&mut self, changes: Vec<Change>) -> Result<Outcome> {
        self.apply_as(changes, false).await
    }

    async fn apply_as(&mut self, mut changes: Vec<Change>, decided: bool) -> Result<Outcome> {
        let from = Seq(self.next);
        let mut highest = Hlc(0);
        for change in &mut changes {
            change.seq = Seq(self.next);
            self.next += 1;
            if change.hlc == Hlc(0) && change.op != Op::Read {
                change.hlc = Hlc(Hlc::at(causeway_core::time::now_ms(), Site::First).0 + (self.next << 9));
            }
            highest = highest.max(change.hlc);
        }
        let marker =
            Marker { term: Term(1), applied: Seq(self.next), from, hlc: highest, ..Marker::default() };
        self.target.send(Batch { marker, changes, decided, ..Batch::default() }).await?;
        let outcome = tokio::time::timeout(WAIT_MAX, self.target.outcome()).await;
        outcome.context("an outcome doesn't come")?.map_err(Into::into)
    }

    /// The same, where all of it has to go in.
    pub(crate) async fn must(&mut self, changes: Vec<Change>) -> Result<()> {
        whole(&self.apply(changes).await?)
    }

    /// The same, as what was worked out with all that is known.
    pub(crate) async fn decided(&mut self, changes: Vec<Change>) -> Result<()> {
        whole(&self.apply_as(changes, true).await?)
    }
}

fn whole(outcome: &Outcome) -> Result<()> {
    anyhow::ensure!(
        matches!(outcome, Outcome::Committed { refused, existing } if refused.is_empty() && existing.is_empty()),
        "{outcome:?}"
    );
    Ok(())
}
