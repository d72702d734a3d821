//! A channel's configuration: the keys that this connector knows, their defaults and their bounds.
//!
//! The daemon's own keys are gone from the tables that come in, and `${NAME}` is filled in.

use std::path::Path;

use causeway_core::settings::{At, Secret, percent};
use causeway_core::{ChannelSpec, OpenError, Site};
use url::Url;

use crate::endpoint::{Address, Endpoint, TlsFiles};
use crate::filter::Filter;
use crate::names::Names;
use crate::rdb;

/// What is done where a server may evict keys: `evictions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Evictions {
    /// The channel does not start unless both servers are `noeviction`.
    #[default]
    Refuse,
    /// They are deletes like any other, and are carried.
    Carry,
}

/// `batch`: one transaction at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most changes; 512 unless set.
    pub items_max: usize,
    /// Most bytes; 512 KiB unless set.
    pub bytes_max: usize,
}

/// `limits` of a channel; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How fast a snapshot is read from the source.
    pub snapshot_bytes_per_second: Option<u64>,
    /// How fast changes are applied.
    pub apply_ops_per_second: Option<u64>,
    /// A value that is larger, in a snapshot or read again, is carried in parts of about half this size; 1 MiB
    /// unless set.
    pub value_bytes_max: usize,
}

impl Limits {
    /// Where values are cut.
    pub(crate) fn cut(&self) -> rdb::Options {
        let max = self.value_bytes_max;
        rdb::Options { part_bytes: (max / 2).max(1), whole_bytes_max: max }
    }
}

/// One channel, as this connector sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct RedisConfig {
    /// The link's name.
    pub link: String,
    /// The channel's name.
    pub channel: String,
    /// The sites' names.
    pub sites: [String; 2],
    /// Of each site, whether what it writes is carried to its peer.
    pub carries: [bool; 2],
    /// The keys that it carries.
    pub filter: Filter,
    /// What is done about evictions.
    pub evictions: Evictions,
    /// One transaction at the target.
    pub batch: BatchLimits,
    /// Rates and sizes.
    pub limits: Limits,
    /// Both sites' servers.
    pub endpoints: [Endpoint; 2],
    /// What our own keys are called.
    pub names: Names,
}

const CHANNEL_KEYS: [&str; 6] = ["keys", "except", "dbs", "evictions", "batch", "limits"];
const SITE_KEYS: [&str; 7] = ["url", "urls", "user", "password_file", "ca_file", "cert_file", "key_file"];
const BATCH_KEYS: [&str; 2] = ["items_max", "bytes_max"];
const LIMIT_KEYS: [&str; 3] = ["snapshot_bytes_per_second", "apply_ops_per_second", "value_bytes_max"];

/// The largest database number that is believed: `databases` of a server goes to 2^31, in use are a few.
const DB_MAX: i64 = 1 << 20;

type Result<T> = std::result::Result<T, OpenError>;

impl RedisConfig {
    /// Reads the tables; connects to nothing, but looks whether the files named are there.
    ///
    /// # Errors
    ///
    /// A key that is not known or a value that is not allowed: names it, and what is.
    pub fn parse(spec: &ChannelSpec) -> Result<RedisConfig> {
        let top = At { table: &spec.table, path: Vec::new() };
        top.known(&CHANNEL_KEYS)?;
        let dbs = match top.table.get("dbs") {
            None => None,
            Some(_) => Some(top.integers("dbs", DB_MAX)?.into_iter().map(|n| n as u32).collect()),
        };
        let filter = Filter::new(&top.strings("keys", "push:*")?, &top.strings("except", "push:*")?, dbs);
        let evictions = match top.string("evictions")?.as_deref() {
            None | Some("refuse") => Evictions::Refuse,
            Some("carry") => Evictions::Carry,
            Some(_) => return Err(top.error("evictions", "allowed are `refuse` and `carry`")),
        };
        let batch = top.inner("batch")?;
        batch.known(&BATCH_KEYS)?;
        let limits = top.inner("limits")?;
        limits.known(&LIMIT_KEYS)?;
        let [first, second] = [0, 1].map(|i| site(spec, i));
        Ok(RedisConfig {
            link: spec.link.clone(),
            channel: spec.channel.clone(),
            sites: spec.sites.clone(),
            carries: spec.carries,
            filter,
            evictions,
            batch: BatchLimits {
                items_max: batch.size("items_max", 1, 1 << 20)?.unwrap_or(512),
                bytes_max: batch.size("bytes_max", 1, 1 << 30)?.unwrap_or(512 << 10),
            },
            limits: Limits {
                snapshot_bytes_per_second: limits.rate("snapshot_bytes_per_second")?,
                apply_ops_per_second: limits.rate("apply_ops_per_second")?,
                value_bytes_max: limits.size("value_bytes_max", 1024, 256 << 20)?.unwrap_or(1 << 20),
            },
            endpoints: [first?, second?],
            names: Names::new(&spec.link, &spec.channel),
        })
    }

    /// `site`'s servers.
    pub fn endpoint(&self, site: Site) -> &Endpoint {
        let [first, second] = &self.endpoints;
        match site {
            Site::First => first,
            Site::Second => second,
        }
    }
}

fn site(spec: &ChannelSpec, index: usize) -> Result<Endpoint> {
    let [first, second] = &spec.site_tables;
    let [first_name, second_name] = &spec.sites;
    let (table, name) = if index == 0 { (first, first_name) } else { (second, second_name) };
    let at = At { table, path: vec![name.clone()] };
    at.known(&SITE_KEYS)?;
    let (key, urls) = at.urls("redis://127.0.0.1:6379", "redis://10.0.0.1:6379")?;
    let mut endpoint: Option<Endpoint> = None;
    for text in &urls {
        let parsed = server(text, &spec.directory).map_err(|message| at.error(key, &message))?;
        match &mut endpoint {
            None => endpoint = Some(parsed),
            Some(all) => {
                if (all.tls.is_some(), &all.user, &all.password)
                    != (parsed.tls.is_some(), &parsed.user, &parsed.password)
                {
                    return Err(at.error(key, "all must have the same scheme, user and password"));
                }
                all.addresses.extend(parsed.addresses);
            }
        }
    }
    let mut endpoint = endpoint.ok_or_else(|| at.error(key, "is empty, allowed is one server or more"))?;
    if let Some(user) = at.string("user")? {
        endpoint.user = Some(user);
    }
    let file = |key: &str| at.file(key, &spec.directory);
    if let Some(path) = file("password_file")? {
        if endpoint.password.is_some() {
            return Err(at.error("password_file", "the URL holds a password already: keep one of both"));
        }
        endpoint.password = Some(Secret::File(path));
    }
    if endpoint.user.is_some() && endpoint.password.is_none() {
        return Err(at.error("user", "needs a password: give `password_file`"));
    }
    let ca = file("ca_file")?;
    match &mut endpoint.tls {
        Some(tls) => {
            tls.ca = ca;
            tls.client = at.identity(&spec.directory)?;
        }
        None => {
            for (key, given) in
                [("ca_file", ca), ("cert_file", file("cert_file")?), ("key_file", file("key_file")?)]
            {
                if given.is_some() {
                    return Err(at.error(key, "means nothing without TLS: write the URL as `rediss://`"));
                }
            }
        }
    }
    Ok(endpoint)
}

/// One URL. What is wrong with it is said without quoting it: it can hold a password.
fn server(text: &str, directory: &Path) -> std::result::Result<Endpoint, String> {
    const FORMS: &str =
        "allowed are redis://[[user]:password@]host[:port], rediss://… for TLS, and unix:///path";
    let url = Url::parse(text).map_err(|e| format!("{e}; {FORMS}"))?;
    let decoded =
        |part: &str| percent(part).ok_or_else(|| "user or password is not percent-encoded UTF-8".to_owned());
    let address = match url.scheme() {
        "redis" | "rediss" => {
            let host =
                url.host_str().filter(|h| !h.is_empty()).ok_or(format!("a host is missing; {FORMS}"))?;
            if !matches!(url.path(), "" | "/") {
                return Err("a database in the URL means nothing here: use `dbs` of the channel".into());
            }
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            Address::Tcp { host, port: url.port().unwrap_or(6379) }
        }
        "unix" | "redis+unix" => {
            let path = percent(url.path()).unwrap_or_default();
            if path.len() < 2 {
                return Err(format!("a path is missing; {FORMS}"));
            }
            Address::Unix(directory.join(path))
        }
        other => return Err(format!("scheme `{other}` is not known; {FORMS}")),
    };
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("nothing may follow the address (encode `?` and `#` in a password); {FORMS}"));
    }
    let mut endpoint = Endpoint::new(address);
    if url.scheme() == "rediss" {
        endpoint.tls = Some(TlsFiles::default());
    }
    if !url.username().is_empty() {
        endpoint.user = Some(decoded(url.username())?);
    }
    if let Some(password) = url.password() {
        endpoint.password = Some(Secret::Text(decoded(password)?));
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests;
