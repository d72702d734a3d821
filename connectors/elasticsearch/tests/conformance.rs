//! The conformance suite against two real nodes, with an index of its own for each behaviour.

mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use causeway_core::{Connector, Site};
use causeway_testkit::{Subject, TestValue, TestWrite};
use serde_json::{Value, json};
use support::Pair;
use tokio::time::Instant;

/// One shard, as the suite takes a key that it wrote last for the end of all: shards have no common order.
const INDEX: &str = r#"{"settings":{"number_of_shards":1,"number_of_replicas":0},
    "mappings":{"properties":{"text":{"type":"keyword"}}}}"#;

fn main() -> ExitCode {
    causeway_testkit::run(|| async {
        match Pair::new("deletes = \"200ms\"", Some(INDEX)).await {
            Ok(pair) => pair.map(|pair| Box::new(Nodes(pair)) as Box<dyn Subject>),
            Err(error) => panic!("two nodes and a connector: {error:#}"),
        }
    })
}

/// Keys are documents of one index, whose field says in words what the suite would have of a key.
struct Nodes(Pair);

impl Nodes {
    async fn get(&self, site: Site, key: &str) -> Result<Option<String>> {
        let source = self.0.source(site, key).await?;
        let text = |source: String| -> Result<String> {
            let value: Value = serde_json::from_str(&source)?;
            Ok(value.get("text").and_then(Value::as_str).context("no text")?.to_owned())
        };
        source.map(text).transpose()
    }

    async fn put(&self, site: Site, key: &str, text: &str) -> Result<()> {
        self.0.put(site, key, &json!({ "text": text }).to_string()).await.map(drop)
    }

    async fn hash(&self, site: Site, key: &str, field: &str, new: impl Fn(&str) -> String) -> Result<()> {
        let old = self.get(site, key).await?.unwrap_or_default();
        let words: Vec<&str> = old.split(' ').skip(1).collect();
        let mut fields: BTreeMap<&str, String> =
            words.chunks(2).map(|pair| (pair[0], pair[1..].concat())).collect();
        let value = new(fields.get(field).map_or("", String::as_str));
        fields.insert(field, value);
        let pairs: Vec<String> = fields.iter().map(|(field, value)| format!("{field} {value}")).collect();
        self.put(site, key, &format!("hash {}", pairs.join(" "))).await
    }

    async fn apply(&self, site: Site, write: &TestWrite) -> Result<()> {
        match write {
            TestWrite::Set(key, value) => self.put(site, key, &format!("string {value}")).await,
            TestWrite::Incr(key, by) => {
                let old = self.get(site, key).await?;
                let number: i64 =
                    old.as_deref().map_or(Ok(0), |old| old.trim_start_matches("string ").parse())?;
                self.put(site, key, &format!("string {}", number + by)).await
            }
            TestWrite::Push(key, value) => {
                let old = self.get(site, key).await?.unwrap_or_else(|| "list".to_owned());
                self.put(site, key, &format!("{old} {value}")).await
            }
            TestWrite::HSet(key, field, value) => self.hash(site, key, field, |_| value.clone()).await,
            TestWrite::HIncr(key, field, by) => {
                self.hash(site, key, field, |old| (old.parse::<i64>().unwrap_or(0) + by).to_string()).await
            }
            TestWrite::Del(key) => {
                let (status, text) = self.0.ask(site, "DELETE", &format!("/_doc/{key}"), "").await?;
                ensure!(status == 200 || status == 404, "{text}");
                Ok(())
            }
            TestWrite::Rename(from, to) => {
                let old = self.get(site, from).await?.context("nothing to rename")?;
                self.put(site, to, &old).await?;
                self.0.must(site, "DELETE", &format!("/_doc/{from}"), "").await.map(drop)
            }
            TestWrite::ExpireAt(..) => bail!("documents do not expire"),
        }
    }
}

#[async_trait]
impl Subject for Nodes {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::clone(&self.0.connector)
    }

    fn tells_every_write(&self) -> bool {
        false
    }

    async fn write(&self, site: Site, writes: &[TestWrite]) -> Result<()> {
        // Of many appends to one key the last one is what all of them come to.
        let mut appended: Option<(&str, String)> = None;
        for write in writes {
            match (write, &mut appended) {
                (TestWrite::Push(key, value), Some((to, text))) if key == to => {
                    text.push_str(&format!(" {value}"))
                }
                (TestWrite::Push(key, value), None) if writes.len() > 50 => {
                    appended = Some((key, format!("list {value}")))
                }
                _ => self.apply(site, write).await.with_context(|| format!("{write:?}"))?,
            }
        }
        match appended {
            Some((key, text)) => self.put(site, key, &text).await,
            None => Ok(()),
        }
    }

    async fn read(&self, site: Site, key: &str) -> Result<Option<TestValue>> {
        Ok(self.get(site, key).await?.map(|text| TestValue { text, expire_at: None }))
    }

    async fn refuse_strings(&self, site: Site, key: &str) -> Result<()> {
        // No mapping refuses one document: one whose version was given from outside does.
        let body = json!({ "text": "list x" }).to_string();
        let path = format!("/_doc/{key}?version={}&version_type=external", u64::MAX >> 1);
        self.0.must(site, "PUT", &path, &body).await.map(drop)
    }

    async fn kill_link(&self, site: Site) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(1);
        self.0.lines[site.index()].cut();
        tokio::time::sleep_until(until).await;
        Ok(())
    }
}
