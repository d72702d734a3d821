//! What an application does to follow a channel's changes in Kafka: `read_changes BROKERS TOPIC`, until stopped.
//! The rules are those of docs/RECORD_FORMAT.md, section 4; nothing of Causeway is needed for them.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, brokers, topic] = &args[..] else { bail!("usage: read_changes BROKERS TOPIC") };
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "none").create()?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&from)?;
    let (mut newest, mut append, mut pieces) = (0, Vec::new(), HashMap::<String, Vec<u8>>::new());
    for message in consumer.iter() {
        let message = message?;
        let header = |name: &str| {
            let headers = message.headers()?;
            headers
                .iter()
                .find(|header| header.key == name)
                .and_then(|header| std::str::from_utf8(header.value?).ok())
        };
        let term = header("term").map_or(Ok(0), str::parse::<i64>)?;
        let fence = header("op") == Some("fence");
        match header("v") {
            None => continue,
            Some(version) => {
                ensure!(version == "1", "{version} is a version of the format that this does not know")
            }
        }
        // Rules 3 and 5: a fence that came too late, and what an overtaken writer left.
        if term < newest || (fence && term != message.offset()) {
            continue;
        }
        // Rule 4: the append of the writer before has no end.
        if term > newest || fence {
            (newest, append) = (term, Vec::new());
            pieces.clear();
        }
        if let Some((part, _)) = header("piece").and_then(|piece| piece.split_once(':')) {
            pieces.entry(part.to_owned()).or_default().extend(message.payload().unwrap_or_default());
            continue;
        }
        let op = header("op").context("a message of ours has an op")?;
        if ["read", "put", "delete", "command", "state", "ddl"].contains(&op) {
            let key = pieces.remove("key").or_else(|| message.key().map(<[u8]>::to_vec)).unwrap_or_default();
            let value = pieces.remove("value").or_else(|| message.payload().map(<[u8]>::to_vec));
            let value = value.map_or("-".to_owned(), |value| value.escape_ascii().to_string());
            append.push(format!("{} {op} {} {value}", header("seq").unwrap_or("0"), key.escape_ascii()));
        }
        pieces.clear();
        // Rule 7: all of an append counts, or nothing.
        if header("more").is_none() {
            append.drain(..).for_each(|change| println!("{change}"));
        }
    }
    Ok(())
}
