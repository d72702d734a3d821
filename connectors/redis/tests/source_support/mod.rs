//! A source on a real server, and a model of what the daemon does with its events: a log whose records are
//! carried out on a second server, and a restart that drops what it has already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use causeway_core::{
    Change, ChannelSpec, Event, Key, Op, Opened, Position, Site, Source, Space, Token, Told,
};
use causeway_redis::config::RedisConfig;
use causeway_redis::source::RedisSource;
use causeway_testkit::resp::{Connection, Reply, encode};
use causeway_testkit::servers::{Options, RedisServer, redis_server};

/// A test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server, or `None` where there is no program for it.
pub(crate) fn server(args: &[&str]) -> Option<RedisServer> {
    redis_server()?;
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    Some(RedisServer::start(Options { args, ..Options::default() }).expect("a server starts"))
}

/// Both sites on `url`, with more keys of the channel's table.
pub(crate) fn config(site: &str, more: &str) -> Arc<RedisConfig> {
    let table = |text: &str| text.parse::<toml::Table>().expect("a table");
    let spec = ChannelSpec {
        link: "dc-cloud".into(),
        channel: "tags".into(),
        sites: ["dc".into(), "cloud".into()],
        carries: [true; 2],
        table: table(more),
        site_tables: [table(site), table(site)],
        directory: std::env::temp_dir(),
    };
    Arc::new(RedisConfig::parse(&spec).expect("a right configuration"))
}

pub(crate) fn source(server: &RedisServer, more: &str) -> RedisSource {
    RedisSource::new(config(&format!("url = \"{}\"", server.url()), more), Site::First)
}

pub(crate) fn key(db: u32, name: &str) -> Key {
    Key { space: Space::Db(db), name: name.to_owned().into() }
}

/// Takes events until `done` says so of the newest one.
pub(crate) async fn until(source: &mut RedisSource, mut done: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    let mut seen = 0;
    let take = async {
        loop {
            source.next(&mut events, 1 << 20).await.expect("the stream goes on");
            while let Some(event) = events.get(seen) {
                seen += 1;
                if done(event) {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, take).await.expect("the events come in time");
    events
}

/// Takes events until everything done so far has come, re-reads included. Tokens are left out.
pub(crate) async fn settle(source: &mut RedisSource) -> Vec<Event> {
    let mut events = Vec::new();
    // The first token comes behind all writes; what these asked to be read comes before the second one.
    for _ in 0..2 {
        let token = source.refresh(Vec::new()).await.expect("refresh");
        events.extend(until(source, |e| *e == Event::Token(token)).await);
    }
    events.retain(|e| !matches!(e, Event::Token(_) | Event::Idle { .. }));
    events
}

/// The changes among events.
pub(crate) fn changes(events: &[Event]) -> Vec<Change> {
    let change = |e: &Event| match e {
        Event::Change(c) => Some(c.clone()),
        _ => None,
    };
    events.iter().filter_map(change).collect()
}

/// `op db:key words of the value`, states and reads by whether there is one.
pub(crate) fn text(change: &Change) -> String {
    let Space::Db(db) = change.key.space else { panic!("not a database") };
    let name = String::from_utf8_lossy(&change.key.name);
    let value = match (&change.value, change.op) {
        (None, _) => "-".to_owned(),
        (Some(_), Op::Read | Op::State) => "dump".to_owned(),
        (Some(v), _) => {
            let words = causeway_redis::resp::parse_command(&mut bytes::BytesMut::from(&v[..]));
            let command = words.expect("RESP").expect("whole");
            let words: Vec<String> =
                command.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            words.join(" ")
        }
    };
    format!("{} {db}:{name} {value}", change.op.as_str())
}

pub(crate) fn texts(events: &[Event]) -> Vec<String> {
    changes(events).iter().map(text).collect()
}

/// What the daemon does with events: here, at once.
pub(crate) struct Model {
    target: Connection,
    /// Of the last record of the log.
    pub(crate) last: Option<Position>,
    /// Newest restart point.
    pub(crate) restart: Option<Position>,
    pub(crate) applied: u64,
    pub(crate) markers: u64,
    group: Option<u64>,
}

impl Model {
    pub(crate) fn new(target: &RedisServer) -> Model {
        let target = target.connect().expect("the target answers");
        Model { target, last: None, restart: None, applied: 0, markers: 0, group: None }
    }

    /// Whether the log holds it already.
    fn is_old(&self, pos: &Position) -> bool {
        self.last.as_ref().is_some_and(|last| last.history == pos.history && pos.at <= last.at)
    }

    pub(crate) fn take(&mut self, events: Vec<Event>, source: &RedisSource) {
        // As in the log: the newest position of all that was there before counts for all of these.
        let before = self.last.clone();
        for event in events {
            match event {
                Event::Change(change) => {
                    if change.op != Op::Read {
                        let old = std::mem::replace(&mut self.last, before.clone());
                        let skip = self.is_old(&change.pos);
                        self.last = old;
                        if skip {
                            continue;
                        }
                        self.last = Some(change.pos.clone());
                    }
                    self.groups_stay_together(&change);
                    self.apply(&change);
                }
                Event::Marker { .. } => self.markers += 1,
                Event::Idle { pos } | Event::SnapshotEnded { pos, .. } if !self.is_old(&pos) => {
                    self.last = Some(pos);
                }
                _ => {}
            }
        }
        if let Some(last) = &self.last {
            self.restart = Some(source.restart_point(last));
        }
    }

    /// A group that a break cut off is void.
    pub(crate) fn forget_open_group(&mut self) {
        assert_eq!(self.group, None, "a group comes whole in one call");
    }

    fn groups_stay_together(&mut self, change: &Change) {
        match (self.group, change.group) {
            (None, Some(g)) => {
                assert_eq!(g.n, 0, "a group begins with its first");
                self.group = (!g.last).then_some(g.id);
            }
            (Some(open), Some(g)) => {
                assert_eq!(open, g.id, "nothing stands within a group");
                self.group = (!g.last).then_some(g.id);
            }
            (Some(_), None) => panic!("something stands within a group"),
            (None, None) => {}
        }
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        self.applied += 1;
        let Space::Db(db) = change.key.space else { panic!("not a database") };
        self.must(&[b"SELECT", db.to_string().as_bytes()]);
        let expire = change.expire_at.unwrap_or(0).to_string();
        match (change.op, &change.value) {
            (Op::Read | Op::State, Some(value)) if change.part.is_some() => {
                if change.part.is_some_and(|p| p.n == 0) {
                    self.must(&[b"DEL", &change.key.name]);
                }
                self.raw(value);
                if change.part.is_some_and(|p| p.last) && change.expire_at.is_some() {
                    self.must(&[b"PEXPIREAT", &change.key.name, expire.as_bytes()]);
                }
            }
            (Op::Read, Some(value)) if change.key.name.is_empty() => self.raw(value),
            (Op::Read | Op::State, Some(value)) => {
                self.must(&[b"RESTORE", &change.key.name, expire.as_bytes(), value, b"REPLACE", b"ABSTTL"]);
            }
            (Op::State | Op::Delete, None) => self.must(&[b"DEL", &change.key.name]),
            (Op::Command | Op::Ddl, Some(value)) => self.raw(value),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn raw(&mut self, commands: &[u8]) {
        let mut buf = bytes::BytesMut::from(commands);
        while let Some(command) = causeway_redis::resp::parse_command(&mut buf).expect("RESP") {
            let words: Vec<&[u8]> = command.iter().collect();
            self.must(&words);
        }
    }

    fn must(&mut self, words: &[&[u8]]) {
        let reply = self.target.call(words).expect("the target answers");
        if let Reply::Error(text) = reply {
            let shown: Vec<_> = words.iter().take(3).map(|w| String::from_utf8_lossy(w)).collect();
            panic!("the target refuses {shown:?}: {text}");
        }
    }
}

/// Digest of every key that is not ours, and when it expires.
pub(crate) fn contents(connection: &mut Connection) -> BTreeMap<(u32, String), (String, i64)> {
    let mut all = BTreeMap::new();
    for db in 0..15u32 {
        connection.must(&["SELECT", &db.to_string()]).unwrap();
        let names = connection.must(&["KEYS", "*"]).unwrap();
        for name in names.items().iter().filter_map(Reply::text) {
            if name.starts_with("causeway:{") {
                continue;
            }
            let mut out = Vec::new();
            encode(&["DEBUG", "DIGEST-VALUE", &name], &mut out);
            encode(&["PEXPIRETIME", &name], &mut out);
            connection.write(&out).unwrap();
            let digest = connection.read().unwrap().items()[0].text().unwrap();
            let expire = connection.read().unwrap().int().unwrap();
            if expire != -2 {
                all.insert((db, name), (digest, expire));
            }
        }
    }
    connection.must(&["SELECT", "0"]).unwrap();
    all
}

pub(crate) async fn open(source: &mut RedisSource, from: Option<&Position>, snapshot: bool) -> Opened {
    tokio::time::timeout(PATIENCE, source.open(from, snapshot, Told::new()))
        .await
        .expect("in time")
        .expect("opens")
}

pub(crate) fn has_token(events: &[Event], token: Token) -> bool {
    events.contains(&Event::Token(token))
}
