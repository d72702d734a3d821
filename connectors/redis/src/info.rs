//! What a server says about itself, as far as capture needs it.

use bytes::Bytes;
use causeway_core::{Error, Result};

use crate::conn::{Conn, bytes_of, server_error, unavailable};
use crate::resp::Reply;

/// Parts of `INFO`. What a server doesn't say is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis_version`; Valkey's too, which says the Redis that it is compatible with.
    pub version: (u32, u32),
    /// `run_id`: another one after each start.
    pub run_id: Bytes,
    /// `redis_mode:cluster` or `cluster_enabled:1`.
    pub cluster: bool,
    /// `role:slave`.
    pub replica: bool,
    /// `master_replid`: what numbers the replication stream.
    pub replid: Bytes,
    /// `master_replid2`: what numbered it before a failover.
    pub replid2: Bytes,
    /// `second_repl_offset`: the first byte that `replid2` no longer numbers.
    pub second_offset: u64,
    /// `master_repl_offset`: the last byte of the stream so far.
    pub offset: u64,
    /// `repl_backlog_first_byte_offset`; 0 without a backlog.
    pub backlog_start: u64,
    /// `repl_backlog_size`: how many bytes of the stream are kept.
    pub backlog_bytes: u64,
    /// Keys of each database that has some.
    pub keys: Vec<(u32, u64)>,
}

impl ServerInfo {
    /// Asks.
    ///
    /// # Errors
    ///
    /// `Retry` and `Setup`.
    pub async fn read(conn: &mut Conn) -> Result<ServerInfo> {
        let reply = conn.call(&[b"INFO"]).await?;
        let text = bytes_of("ask for INFO", conn.endpoint_label(), &reply)?;
        Ok(ServerInfo::parse(&String::from_utf8_lossy(&text)))
    }

    /// Of the text of `INFO`, or of a section of it.
    pub(crate) fn parse(text: &str) -> ServerInfo {
        let mut info = ServerInfo::default();
        let number = |value: &str| value.parse().unwrap_or_default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            match name {
                "redis_version" => {
                    let mut parts = value.split('.').map(|part| part.parse().unwrap_or_default());
                    info.version = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                }
                "run_id" => info.run_id = Bytes::copy_from_slice(value.as_bytes()),
                "redis_mode" | "server_mode" => info.cluster |= value == "cluster",
                "cluster_enabled" => info.cluster |= value == "1",
                "role" => info.replica = value != "master",
                "master_replid" => info.replid = Bytes::copy_from_slice(value.as_bytes()),
                "master_replid2" => info.replid2 = Bytes::copy_from_slice(value.as_bytes()),
                "second_repl_offset" => info.second_offset = number(value),
                "master_repl_offset" => info.offset = number(value),
                "repl_backlog_size" => info.backlog_bytes = number(value),
                "repl_backlog_first_byte_offset" => info.backlog_start = number(value),
                _ => {
                    let db = name.strip_prefix("db").and_then(|n| n.parse().ok());
                    let keys = value.strip_prefix("keys=").and_then(|v| v.split(',').next());
                    if let (Some(db), Some(keys)) = (db, keys) {
                        info.keys.push((db, number(keys)));
                    }
                }
            }
        }
        info
    }

    /// Whether the server can be a source.
    ///
    /// # Errors
    ///
    /// `Setup`: a cluster, or a replica.
    pub fn suits_capture(&self, label: &str) -> Result<()> {
        let setup = |reason: &str, advice: &str| {
            Err(Error::Setup {
                action: "capture".into(),
                endpoint: label.into(),
                reason: reason.into(),
                advice: advice.into(),
            })
        };
        if self.cluster {
            return setup("this is a node of a cluster", "name a server with cluster-enabled no");
        }
        if self.replica {
            let advice = "name the master, or list all servers in `urls`: tokens have to be written";
            return setup("this server is a replica", advice);
        }
        Ok(())
    }

    /// Whether `PEXPIRETIME` is there.
    pub fn has_expiretime(&self) -> bool {
        self.version >= (7, 0)
    }
}

/// `CONFIG GET name`: `None` if it is not allowed or there is no such setting.
///
/// # Errors
///
/// `Retry`.
pub async fn config_get(conn: &mut Conn, name: &[u8]) -> Result<Option<String>> {
    let reply = conn.call(&[b"CONFIG", b"GET", name]).await?;
    if let Some(text) = reply.error() {
        let refused = server_error("read a setting", conn.endpoint_label(), text);
        return match refused {
            Error::Setup { .. } => Ok(None),
            other => Err(unavailable("read a setting", conn.endpoint_label(), other)),
        };
    }
    let value = reply.items().and_then(|pair| pair.get(1)).and_then(Reply::bytes);
    Ok(value.map(|v| String::from_utf8_lossy(v).into_owned()))
}

/// By how many bytes a replica may be behind before it is cut off, 0 for any, from a
/// `client-output-buffer-limit` (`normal 0 0 0 slave 268435456 67108864 60 …`): the smaller of the hard limit
/// and of the soft one, which holds for longer only. What is unknown is what servers have unless told otherwise.
pub(crate) fn replica_buffer_max(setting: Option<&str>) -> u64 {
    const UNLESS_TOLD: u64 = 64 << 20;
    let mut words = setting.unwrap_or_default().split_whitespace();
    let found = words.any(|word| matches!(word, "slave" | "replica"));
    let limits: Option<Vec<u64>> = words.take(2).map(|word| word.parse().ok()).collect();
    match limits {
        Some(limits) if found => limits.into_iter().filter(|bytes| *bytes > 0).min().unwrap_or(0),
        _ => UNLESS_TOLD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_of_a_replicas_buffer_counts() {
        let normal = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        assert_eq!(replica_buffer_max(Some(normal)), 64 << 20);
        assert_eq!(replica_buffer_max(Some("replica 100 0 0")), 100);
        assert_eq!(replica_buffer_max(Some("replica 0 0 0 pubsub 1 1 1")), 0);
        for unknown in [None, Some(""), Some("slave x y z"), Some("normal 1 1 1")] {
            assert_eq!(replica_buffer_max(unknown), 64 << 20);
        }
    }

    #[test]
    fn info_is_read_as_servers_write_it() {
        let text = "# Server\r\nredis_version:7.0.15\r\nrun_id:cc\r\nredis_mode:standalone\r\n# Replication\r\nrole:master\r\n\
                    connected_slaves:0\r\nmaster_replid:aa\r\nmaster_replid2:bb\r\nmaster_repl_offset:17\r\n\
                    second_repl_offset:-1\r\nrepl_backlog_size:1048576\r\nrepl_backlog_first_byte_offset:1\r\n# Cluster\r\ncluster_enabled:0\r\n\
                    # Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb12:keys=4,expires=0,avg_ttl=0,subexpiry=0\r\n";
        let info = ServerInfo::parse(text);
        assert_eq!(info.version, (7, 0));
        assert!(!info.cluster && !info.replica && info.has_expiretime());
        assert_eq!(info.run_id, "cc");
        assert_eq!((info.offset, info.second_offset, info.backlog_start), (17, 0, 1));
        assert_eq!(info.backlog_bytes, 1 << 20);
        assert_eq!(info.keys, [(0, 3), (12, 4)]);
        assert!(info.suits_capture("x").is_ok());
        assert!(ServerInfo::parse("role:slave").suits_capture("x").is_err());
        assert!(ServerInfo::parse("cluster_enabled:1").suits_capture("x").is_err());
        assert_eq!(ServerInfo::parse("no such thing\n\n:::"), ServerInfo::default());
    }
}
