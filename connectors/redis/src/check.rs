//! Looks at both servers before anything runs, and says what stands in the way.
//!
//! What cannot be asked (no right to CONFIG, INFO or ACL, as with many a managed server) is no finding: the
//! first use tells. Clocks are the daemon's matter.

mod only;
mod rights;

use std::collections::HashMap;

use causeway_core::{Error, Finding, Result, Site};

use crate::config::{Evictions, RedisConfig};
use crate::conn::{Conn, bytes_of, server_error};
use crate::info::config_get;
use crate::resp::{Reply, decimal};

pub(crate) use only::only_at;
use rights::{Right, Roles, denied};

/// A backlog under this is gone within a second or two of traffic that a line's hiccup may take.
const BACKLOG_BYTES_MIN: u64 = 64 << 20;
/// Redis's own default for a replica's buffer: under it, a snapshot of some size ends in the middle.
const REPLICA_BUFFER_BYTES_MIN: u64 = 256 << 20;
/// What one SCAN step of [`cleanup`] looks at.
const SCAN_COUNT: &[u8] = b"1000";

/// What was found about one server.
struct Server {
    site: String,
    /// `host:port`.
    endpoint: String,
    roles: Roles,
    info: HashMap<String, String>,
    settings: HashMap<&'static str, String>,
    denied: Vec<&'static Right>,
}

const SETTINGS: [&str; 7] = [
    "maxmemory-policy",
    "repl-backlog-size",
    "client-output-buffer-limit",
    "min-replicas-to-write",
    "appendonly",
    "appendfsync",
    "databases",
];

/// Looks at the servers of `sites`; see [`Connector::check`](causeway_core::Connector::check).
///
/// # Errors
///
/// `Retry`: one cannot be reached. `Setup`: one doesn't let us in.
pub(crate) async fn check(config: &RedisConfig, sites: &[Site]) -> Result<Vec<Finding>> {
    let mut servers = Vec::new();
    let mut findings = Vec::new();
    for site in sites {
        let server = look(config, *site).await?;
        server.findings(config.evictions, &mut findings);
        servers.push(server);
    }
    if let [first, second] = &servers[..] {
        between(first, second, &mut findings);
    }
    Ok(findings)
}

async fn look(config: &RedisConfig, site: Site) -> Result<Server> {
    let ([first, second], [first_carries, second_carries]) = (&config.sites, config.carries);
    let (name, source, target) = match site {
        Site::First => (first, first_carries, second_carries),
        Site::Second => (second, second_carries, first_carries),
    };
    let mut conn = Conn::connect(config.endpoint(site)).await?;
    let label = conn.endpoint_label().to_owned();
    let pong = conn.call(&[b"PING"]).await?;
    bytes_of("PING", &label, &pong)?;
    let info = match conn.call(&[b"INFO"]).await? {
        Reply::Error(text) if text.starts_with("NOPERM") => HashMap::new(),
        reply => parse_info(&String::from_utf8_lossy(&bytes_of("ask for INFO", &label, &reply)?)),
    };
    let mut settings = HashMap::new();
    for name in SETTINGS {
        if let Some(value) = config_get(&mut conn, name.as_bytes()).await? {
            settings.insert(name, value);
        }
    }
    let denied = denied(&mut conn, &String::from_utf8_lossy(&config.names.marker)).await?;
    let roles = Roles { source, target };
    Ok(Server { site: name.clone(), endpoint: label, roles, info, settings, denied })
}

fn parse_info(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

impl Server {
    fn info(&self, name: &str) -> &str {
        self.info.get(name).map_or("", String::as_str)
    }

    fn number(&self, setting: &str) -> Option<u64> {
        self.settings.get(setting)?.parse().ok()
    }

    /// `Redis 7.0.15`, `Valkey 9.1.2`.
    fn version(&self) -> String {
        match self.info.get("valkey_version") {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", self.info("redis_version")),
        }
    }

    fn findings(&self, evictions: Evictions, findings: &mut Vec<Finding>) {
        let mut add = |fatal: bool, what: String, advice: &str| {
            findings.push(Finding { fatal, site: Some(self.site.clone()), what, advice: advice.to_owned() });
        };
        if self.info("cluster_enabled") == "1" || self.info("redis_mode") == "cluster" {
            add(
                true,
                "Redis Cluster isn't supported yet".to_owned(),
                "name a server with cluster-enabled no",
            );
        }
        if self.info("role") == "slave" {
            add(
                true,
                "this server is a replica".to_owned(),
                "name its master, or list all of them in `urls`: the first that is master is taken",
            );
        }
        let major = self.info("redis_version").split('.').next().and_then(|n| n.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            add(
                false,
                format!("{} is older than what is tested", self.version()),
                "update it to 7.0 or later",
            );
        }
        for finding in rights::findings(&self.denied, &self.site, &self.endpoint, self.roles) {
            add(finding.fatal, finding.what, &finding.advice);
        }
        if let Some(policy) = self.settings.get("maxmemory-policy").filter(|p| *p != "noeviction")
            && evictions == Evictions::Refuse
        {
            add(
                true,
                format!("maxmemory-policy is {policy}: what it evicts is deleted at the other site, too"),
                "set maxmemory-policy noeviction, or say `evictions = \"carry\"` for this channel",
            );
        }
        if let Some(bytes) = self.number("repl-backlog-size").filter(|bytes| *bytes < BACKLOG_BYTES_MIN) {
            add(
                false,
                format!("repl-backlog-size is {bytes} bytes: a short break of the line becomes a gap"),
                "set it to what the busiest hour writes in the longest break to be survived, 64mb at least",
            );
        }
        let limit = self.settings.get("client-output-buffer-limit").and_then(|text| replica_limit(text));
        if let Some(bytes) = limit.filter(|bytes| (1..REPLICA_BUFFER_BYTES_MIN).contains(bytes)) {
            add(
                false,
                format!("client-output-buffer-limit of replicas is {bytes} bytes: a snapshot may be cut off"),
                "raise it: CONFIG SET client-output-buffer-limit \"replica 1gb 512mb 120\"",
            );
        }
        if self.number("min-replicas-to-write").is_some_and(|n| n > 0) {
            add(
                false,
                "min-replicas-to-write is set: the server counts syncd among its replicas (WAIT does, too)"
                    .to_owned(),
                "raise it by one; what syncd acknowledges is in the change log, not in a second server",
            );
        }
        match (self.settings.get("appendonly"), self.settings.get("appendfsync")) {
            (Some(only), _) if only == "no" => add(
                false,
                "appendonly is no: a crash loses what was written since the last save".to_owned(),
                "the channel notices it and rolls forward; set appendonly yes to lose less",
            ),
            (Some(_), Some(fsync)) if fsync == "no" => add(
                false,
                "appendfsync is no: a crash loses what the system had not written yet".to_owned(),
                "set appendfsync everysec or always",
            ),
            _ => {}
        }
    }
}

fn between(first: &Server, second: &Server, findings: &mut Vec<Finding>) {
    let mut add = |fatal: bool, what: String, advice: &str| {
        findings.push(Finding { fatal, site: None, what, advice: advice.to_owned() });
    };
    if !first.info("run_id").is_empty() && first.info("run_id") == second.info("run_id") {
        add(
            true,
            "both sites' URLs lead to the same server: every change would come back to it".to_owned(),
            "correct the URL of one of them",
        );
    }
    if first.version() != second.version() {
        add(
            false,
            format!("{} runs {}, {} runs {}", first.site, first.version(), second.site, second.version()),
            "values that the other version's RESTORE refuses are written by their type, which is slower; \
             commands that only one knows cannot be carried",
        );
    }
    match (first.number("databases"), second.number("databases")) {
        (Some(a), Some(b)) if a != b => add(
            false,
            format!("{} has {a} databases, {} has {b}", first.site, second.site),
            "changes to a database that only one has go to the dead letters: set `databases` alike",
        ),
        _ => {}
    }
}

/// The hard limit for replicas in `normal 0 0 0 slave 268435456 67108864 60 …`; 0 is none.
fn replica_limit(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    words.find(|word| matches!(*word, "slave" | "replica"))?;
    words.next()?.parse().ok()
}

/// Takes everything that is ours out of `site`'s server, in all databases; returns how many keys.
///
/// # Errors
///
/// `Retry` and `Setup`; called again, it goes on.
pub(crate) async fn cleanup(config: &RedisConfig, site: Site) -> Result<u64> {
    const ACTION: &str = "clean up";
    let [first, second] = &config.endpoints;
    let endpoint = match site {
        Site::First => first,
        Site::Second => second,
    };
    let mut conn = Conn::connect(endpoint).await?;
    let label = conn.endpoint_label().to_owned();
    let pattern = pattern(&config.names.prefix);
    let mut removed = 0;
    for db in 0u32.. {
        // There is one more than there are databases, and one the server has at least.
        match conn.call(&[b"SELECT", &decimal(db)]).await?.error() {
            Some(_) if db > 0 => break,
            Some(text) => return Err(server_error(ACTION, &label, text)),
            None => {}
        }
        let mut cursor = bytes::Bytes::from_static(b"0");
        loop {
            let page = conn.call(&[b"SCAN", &cursor, b"MATCH", &pattern, b"COUNT", SCAN_COUNT]).await?;
            if let Some(text) = page.error() {
                return Err(server_error(ACTION, &label, text));
            }
            let (next, keys) = match page.items() {
                Some([next, keys]) => (next.bytes(), keys.items().unwrap_or_default()),
                _ => (None, Default::default()),
            };
            cursor = next.cloned().ok_or_else(|| Error::Garbled {
                endpoint: label.clone(),
                what: "reply to SCAN",
                at: 0,
                reason: "a cursor and an array of keys were expected".to_owned(),
            })?;
            let ours = |key: &Reply| key.bytes().filter(|k| k.starts_with(&config.names.prefix)).cloned();
            for key in keys.iter().filter_map(ours) {
                let gone = conn.call(&[b"UNLINK", &key]).await?;
                match gone.error() {
                    Some(text) => return Err(server_error(ACTION, &label, text)),
                    None => removed += gone.int().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                }
            }
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(removed)
}

/// A pattern that takes what begins with `prefix`, byte for byte.
fn pattern(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests;
