//! The conformance suite against two real servers for each behaviour.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_core::{ChannelSpec, Connector, Site};
use causeway_testkit::resp::{Command, Connection, Reply, cmd};
use causeway_testkit::servers::{Options, RedisServer, other_redis_server, redis_server};
use causeway_testkit::{Subject, TestValue, TestWrite};

fn main() -> ExitCode {
    causeway_testkit::run(|| async {
        redis_server()?;
        match Servers::start() {
            Ok(servers) => Some(Box::new(servers) as Box<dyn Subject>),
            Err(error) => panic!("two servers and a connector: {error:#}"),
        }
    })
}

struct Servers {
    servers: [RedisServer; 2],
    connections: [Mutex<Connection>; 2],
    connector: Arc<dyn Connector>,
}

impl Servers {
    fn start() -> Result<Servers> {
        // An idle master says so each second, that the suite need not wait for ten.
        let args = vec!["--repl-ping-replica-period".to_owned(), "1".to_owned()];
        let start =
            |program| RedisServer::start(Options { args: args.clone(), program, ..Options::default() });
        let servers = [start(None)?, start(other_redis_server())?];
        let site = |server: &RedisServer| {
            let mut table = toml::Table::new();
            table.insert("url".into(), server.url().into());
            table
        };
        let mut limits = toml::Table::new();
        // Small, so that the suite's long value comes in many parts.
        limits.insert("value_bytes_max".into(), 4_096.into());
        let mut table = toml::Table::new();
        table.insert("limits".into(), limits.into());
        let spec = ChannelSpec {
            link: "dc-cloud".into(),
            channel: "tags".into(),
            sites: ["dc".into(), "cloud".into()],
            carries: [true; 2],
            table,
            site_tables: [site(&servers[0]), site(&servers[1])],
            directory: PathBuf::from("."),
        };
        let connections = [Mutex::new(servers[0].connect()?), Mutex::new(servers[1].connect()?)];
        Ok(Servers { servers, connections, connector: causeway_redis::open(&spec)? })
    }

    fn connection(&self, site: Site) -> MutexGuard<'_, Connection> {
        self.connections[site.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Subject for Servers {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::clone(&self.connector)
    }

    async fn write(&self, site: Site, writes: &[TestWrite]) -> Result<()> {
        let mut commands: Vec<Command> = writes.iter().map(command).collect();
        if commands.len() > 1 {
            commands.insert(0, cmd(&["MULTI"]));
            commands.push(cmd(&["EXEC"]));
        }
        let replies = self.connection(site).pipeline(&commands)?;
        match replies.iter().find_map(Reply::error) {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        }
    }

    async fn read(&self, site: Site, key: &str) -> Result<Option<TestValue>> {
        let mut connection = self.connection(site);
        let kind = connection.must(&["TYPE", key])?.text().context("a type")?;
        let (kind, read) = match kind.as_str() {
            "none" => return Ok(None),
            "string" => ("string", cmd(&["GET", key])),
            "list" => ("list", cmd(&["LRANGE", key, "0", "-1"])),
            "hash" => ("hash", cmd(&["HGETALL", key])),
            other => bail!("{key} is a {other}"),
        };
        let reply = connection.must(&read)?;
        let mut words: Vec<String> = match &reply {
            Reply::Array(Some(items)) => items.iter().filter_map(Reply::text).collect(),
            reply => reply.text().into_iter().collect(),
        };
        if kind == "hash" {
            let mut pairs: Vec<String> = words.chunks(2).map(|pair| pair.join(" ")).collect();
            pairs.sort();
            words = pairs;
        }
        let expire_at = connection.must(&["PEXPIRETIME", key])?.int().and_then(|at| u64::try_from(at).ok());
        Ok(Some(TestValue { text: format!("{kind} {}", words.join(" ")), expire_at }))
    }

    async fn kill_link(&self, site: Site) -> Result<()> {
        // All connections but a new one of our own; then that one takes the old one's place.
        let mut killer = self.servers[site.index()].connect()?;
        for kind in ["normal", "replica", "pubsub"] {
            killer.must(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])?;
        }
        *self.connection(site) = killer;
        Ok(())
    }
}

fn command(write: &TestWrite) -> Command {
    match write {
        TestWrite::Set(key, value) => cmd(&["SET", key, value]),
        TestWrite::Incr(key, by) => cmd(&["INCRBY", key, &by.to_string()]),
        TestWrite::Push(key, value) => cmd(&["RPUSH", key, value]),
        TestWrite::HSet(key, field, value) => cmd(&["HSET", key, field, value]),
        TestWrite::HIncr(key, field, by) => cmd(&["HINCRBY", key, field, &by.to_string()]),
        TestWrite::Rename(from, to) => cmd(&["RENAME", from, to]),
        TestWrite::Del(key) => cmd(&["DEL", key]),
        TestWrite::ExpireAt(key, at) => cmd(&["PEXPIREAT", key, &at.to_string()]),
    }
}
