//! The conformance suite against two real servers for each behaviour.

mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_core::{Connector, Site};
use causeway_testkit::mysql::MysqlServer;
use causeway_testkit::{Subject, TestValue, TestWrite};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use support::{Pair, pair};
use tokio::sync::Mutex;

const TABLE: &str =
    "CREATE TABLE suite.kv (k VARCHAR(190) COLLATE utf8mb4_bin PRIMARY KEY, v LONGTEXT NOT NULL)";

fn main() -> ExitCode {
    causeway_testkit::run(|| async {
        match Servers::new(pair(TABLE)?).await {
            Ok(servers) => Some(Box::new(servers) as Box<dyn Subject>),
            Err(error) => panic!("two servers and a connector: {error:#}"),
        }
    })
}

/// Keys are rows of one table, whose column says in words what the suite would have of a key.
struct Servers {
    pair: Pair,
    connections: [Mutex<Conn>; 2],
}

impl Servers {
    async fn new(pair: Pair) -> Result<Servers> {
        let connections = [connect(&pair.servers[0]).await?, connect(&pair.servers[1]).await?];
        Ok(Servers { pair, connections })
    }
}

async fn connect(server: &MysqlServer) -> Result<Mutex<Conn>> {
    Ok(Mutex::new(Conn::from_url(server.url()).await?))
}

async fn get(conn: &mut Conn, key: &str) -> Result<Option<String>> {
    Ok(conn.exec_first("SELECT v FROM suite.kv WHERE k = ? FOR UPDATE", (key,)).await?)
}

async fn put(conn: &mut Conn, key: &str, text: &str) -> Result<()> {
    let sql = "INSERT INTO suite.kv VALUES (?, ?) ON DUPLICATE KEY UPDATE v = VALUES(v)";
    Ok(conn.exec_drop(sql, (key, text)).await?)
}

async fn apply(conn: &mut Conn, write: &TestWrite) -> Result<()> {
    match write {
        TestWrite::Set(key, value) => put(conn, key, &format!("string {value}")).await,
        TestWrite::Incr(key, by) => {
            let old = get(conn, key).await?;
            let number: i64 =
                old.as_deref().map_or(Ok(0), |old| old.trim_start_matches("string ").parse())?;
            put(conn, key, &format!("string {}", number + by)).await
        }
        TestWrite::Push(key, value) => {
            let old = get(conn, key).await?.unwrap_or_else(|| "list".to_owned());
            put(conn, key, &format!("{old} {value}")).await
        }
        TestWrite::HSet(key, field, value) => hash(conn, key, field, |_| value.clone()).await,
        TestWrite::HIncr(key, field, by) => {
            hash(conn, key, field, |old| (old.parse::<i64>().unwrap_or(0) + by).to_string()).await
        }
        TestWrite::Del(key) => Ok(conn.exec_drop("DELETE FROM suite.kv WHERE k = ?", (key,)).await?),
        TestWrite::Rename(from, to) => {
            conn.exec_drop("DELETE FROM suite.kv WHERE k = ?", (to,)).await?;
            Ok(conn.exec_drop("UPDATE suite.kv SET k = ? WHERE k = ?", (to, from)).await?)
        }
        TestWrite::ExpireAt(..) => bail!("rows do not expire"),
    }
}

async fn hash(conn: &mut Conn, key: &str, field: &str, new: impl Fn(&str) -> String) -> Result<()> {
    let old = get(conn, key).await?.unwrap_or_default();
    let words: Vec<&str> = old.split(' ').skip(1).collect();
    let mut fields: BTreeMap<&str, String> =
        words.chunks(2).map(|pair| (pair[0], pair[1..].concat())).collect();
    let value = new(fields.get(field).map_or("", String::as_str));
    fields.insert(field, value);
    let pairs: Vec<String> = fields.iter().map(|(field, value)| format!("{field} {value}")).collect();
    put(conn, key, &format!("hash {}", pairs.join(" "))).await
}

#[async_trait]
impl Subject for Servers {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::clone(&self.pair.connector)
    }

    async fn write(&self, site: Site, writes: &[TestWrite]) -> Result<()> {
        let mut conn = self.connections[site.index()].lock().await;
        conn.query_drop("BEGIN").await?;
        for write in writes {
            apply(&mut conn, write).await.with_context(|| format!("{write:?}"))?;
        }
        Ok(conn.query_drop("COMMIT").await?)
    }

    async fn read(&self, site: Site, key: &str) -> Result<Option<TestValue>> {
        let text = get(&mut *self.connections[site.index()].lock().await, key).await?;
        Ok(text.map(|text| TestValue { text, expire_at: None }))
    }

    async fn refuse_strings(&self, site: Site, key: &str) -> Result<()> {
        self.write(site, &[TestWrite::Push(key.to_owned(), "x".to_owned())]).await?;
        let sql = format!("ALTER TABLE suite.kv ADD CHECK (k <> '{key}' OR v NOT LIKE 'string%')");
        Ok(self.connections[site.index()].lock().await.query_drop(sql).await?)
    }

    async fn kill_link(&self, site: Site) -> Result<()> {
        // All connections but a new one of our own; then that one takes the old one's place.
        let mut killer = Conn::from_url(self.pair.servers[site.index()].url()).await?;
        let sql =
            "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user = 'root'";
        let all: Vec<u64> = killer.query(sql).await?;
        for id in all {
            // It may have ended by itself.
            let _ended = killer.query_drop(format!("KILL {id}")).await;
        }
        *self.connections[site.index()].lock().await = killer;
        Ok(())
    }
}
