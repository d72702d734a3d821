//! The conformance suite on the store in memory.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use causeway_core::{Connector, Site};
use causeway_memory::Memory;
use causeway_testkit::{Subject, TestValue, TestWrite};

fn main() -> ExitCode {
    causeway_testkit::run(|| async {
        // Small parts, so that the suite's long value comes in many.
        Some(Box::new(InMemory(Memory::new().with_part_bytes(1_000))) as Box<dyn Subject>)
    })
}

struct InMemory(Memory);

#[async_trait]
impl Subject for InMemory {
    fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(self.0.clone())
    }

    async fn write(&self, site: Site, writes: &[TestWrite]) -> Result<()> {
        let commands: Vec<String> = writes.iter().map(command).collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        self.0.write(site, &commands).map_err(|why| anyhow!(why))
    }

    async fn read(&self, site: Site, key: &str) -> Result<Option<TestValue>> {
        Ok(self.0.read(site, key).map(|(text, expire_at)| TestValue { text, expire_at }))
    }

    async fn kill_link(&self, site: Site) -> Result<()> {
        self.0.cut(site);
        Ok(())
    }
}

fn command(write: &TestWrite) -> String {
    match write {
        TestWrite::Set(key, value) => format!("SET {key} {value}"),
        TestWrite::Incr(key, by) => format!("INCRBY {key} {by}"),
        TestWrite::Push(key, value) => format!("RPUSH {key} {value}"),
        TestWrite::HSet(key, field, value) => format!("HSET {key} {field} {value}"),
        TestWrite::HIncr(key, field, by) => format!("HINCRBY {key} {field} {by}"),
        TestWrite::Rename(from, to) => format!("RENAME {from} {to}"),
        TestWrite::Del(key) => format!("DEL {key}"),
        TestWrite::ExpireAt(key, at) => format!("PEXPIREAT {key} {at}"),
    }
}
