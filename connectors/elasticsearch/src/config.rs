//! A channel's configuration: the keys that this connector knows, their defaults and their bounds.

use std::path::PathBuf;
use std::time::Duration;

use causeway_core::settings::{At, Secret, percent};
use causeway_core::{ChannelSpec, OpenError, Pattern, Site};
use url::Url;

/// One channel, as this connector sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) link: String,
    pub(crate) channel: String,
    pub(crate) sites: [String; 2],
    /// Of each site, whether what it writes is carried to its peer.
    pub(crate) carries: [bool; 2],
    pub(crate) indices: Indices,
    /// Settings, mappings and aliases are carried, too.
    pub(crate) definitions: bool,
    /// How often a site is asked for what is new.
    pub(crate) poll: Duration,
    /// How often a site's ids are listed, which is how deletes are found; `None`: never.
    pub(crate) deletes: Option<Duration>,
    /// Ids that are held in memory for that.
    pub(crate) ids_max: usize,
    /// A copied document is dated so much before the copy began.
    pub(crate) clock_offset: Duration,
    pub(crate) snapshot_bytes_per_second: Option<u64>,
    /// Shards that are read at once.
    pub(crate) shards_at_once: usize,
    pub(crate) bulk_bytes_max: usize,
    /// How often a request that the server has no room for is sent again before the batch counts as refused for now.
    pub(crate) bulk_tries_max: u32,
    pub(crate) servers: [Server; 2],
}

/// `indices` and `exclude`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Indices {
    globs: Vec<String>,
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Indices {
    fn new(include: &[String], exclude: &[String]) -> Indices {
        let patterns = |globs: &[String]| globs.iter().map(|glob| Pattern::new(glob)).collect();
        Indices { globs: include.to_vec(), include: patterns(include), exclude: patterns(exclude) }
    }

    /// Whether the channel carries the index; ours never, nor what begins with a dot.
    pub(crate) fn carries(&self, index: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(index.as_bytes()));
        !index.starts_with('.') && any(&self.include) && !any(&self.exclude)
    }

    /// As a part of a request's path.
    pub(crate) fn expression(&self) -> String {
        self.globs.join(",")
    }
}

/// One site's nodes, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// `http://host:port`, without a slash at the end: any node will do.
    pub(crate) urls: Vec<Url>,
    pub(crate) auth: Auth,
    /// Who signs the nodes' certificates; `None`: the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// What a request authenticates with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Auth {
    None,
    Basic(String, Secret),
    /// As Elasticsearch encodes it.
    ApiKey(Secret),
}

const CHANNEL_KEYS: [&str; 10] = [
    "indices",
    "exclude",
    "definitions",
    "poll",
    "deletes",
    "ids_max",
    "clock_offset",
    "bulk",
    "batch",
    "limits",
];
const SITE_KEYS: [&str; 8] =
    ["url", "urls", "user", "password_file", "api_key_file", "ca_file", "cert_file", "key_file"];
const BULK_KEYS: [&str; 2] = ["bytes_max", "tries_max"];
const BATCH_KEYS: [&str; 2] = ["items_max", "bytes_max"];
const LIMIT_KEYS: [&str; 2] = ["snapshot_bytes_per_second", "shards_at_once"];

type Result<T> = std::result::Result<T, OpenError>;

impl Config {
    /// Reads the tables; connects to nothing, but looks whether the files named are there.
    ///
    /// # Errors
    ///
    /// A key that is not known or a value that is not allowed: names it, and what is.
    pub(crate) fn parse(spec: &ChannelSpec) -> Result<Config> {
        let top = At { table: &spec.table, path: Vec::new() };
        let (batch, limits, bulk) = (top.inner("batch")?, top.inner("limits")?, top.inner("bulk")?);
        top.known(&CHANNEL_KEYS)?;
        batch.known(&BATCH_KEYS)?;
        limits.known(&LIMIT_KEYS)?;
        bulk.known(&BULK_KEYS)?;
        for (table, site) in spec.site_tables.iter().zip(&spec.sites) {
            At { table, path: vec![site.clone()] }.known(&SITE_KEYS)?;
        }
        let include = top.strings("indices", "push-*")?;
        if include.is_empty() {
            return Err(
                top.error("indices", "is missing, allowed is a list of patterns, such as [\"push-*\"]")
            );
        }
        let exclude = top.strings("exclude", "push-tmp-*")?;
        for (key, patterns) in [("indices", &include), ("exclude", &exclude)] {
            if let Some(wrong) = patterns.iter().find(|pattern| !is_pattern(pattern)) {
                let message = format!(
                    "`{wrong}` is no name of an index, of which `*` may stand for any part: allowed are small letters, \
                     digits and `-_.+`, and no dot, dash, `_` or `+` in front"
                );
                return Err(top.error(key, &message));
            }
        }
        // The daemon cuts batches by these; here they are looked at only.
        batch.size("items_max", 1, 1 << 20)?;
        batch.size("bytes_max", 1, 1 << 30)?;
        let definitions = match top.string("definitions")?.as_deref() {
            None | Some("apply") => true,
            Some("ignore") => false,
            Some(other) => {
                let message = format!("is `{other}`, allowed is one of apply, ignore");
                return Err(top.error("definitions", &message));
            }
        };
        let deletes = match top.string("deletes")?.as_deref() {
            Some("never") => None,
            _ => Some(duration(&top, "deletes", 60_000, (100, 86_400_000))?),
        };
        let [first, second] = [0, 1].map(|index| server(spec, index));
        Ok(Config {
            link: spec.link.clone(),
            channel: spec.channel.clone(),
            sites: spec.sites.clone(),
            carries: spec.carries,
            indices: Indices::new(&include, &exclude),
            definitions,
            poll: duration(&top, "poll", 1_000, (10, 3_600_000))?,
            deletes,
            ids_max: top.size("ids_max", 0, 1 << 30)?.unwrap_or(1_000_000),
            clock_offset: duration(&top, "clock_offset", 5_000, (0, 3_600_000))?,
            snapshot_bytes_per_second: limits.rate("snapshot_bytes_per_second")?,
            shards_at_once: limits.size("shards_at_once", 1, 64)?.unwrap_or(4),
            bulk_bytes_max: bulk.size("bytes_max", 1_024, 1 << 30)?.unwrap_or(5 << 20),
            bulk_tries_max: bulk
                .size("tries_max", 1, 1_000)?
                .and_then(|tries| u32::try_from(tries).ok())
                .unwrap_or(8),
            servers: [first?, second?],
        })
    }

    /// `site`'s server.
    pub(crate) fn server(&self, site: Site) -> &Server {
        let [first, second] = &self.servers;
        if site == Site::First { first } else { second }
    }

    /// `site`'s name.
    pub(crate) fn site(&self, site: Site) -> &str {
        let [first, second] = &self.sites;
        if site == Site::First { first } else { second }
    }

    /// Whether what `site` writes is carried.
    pub(crate) fn is_source(&self, site: Site) -> bool {
        let [first, second] = self.carries;
        if site == Site::First { first } else { second }
    }
}

fn is_pattern(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.+*".contains(c);
    text.chars().all(allowed) && !text.starts_with(['-', '_', '+', '.'])
}

/// A duration with its unit: `ms`, `s` or `m`; `default` and the bounds are in milliseconds.
fn duration(at: &At<'_>, key: &str, default: u64, (min, max): (u64, u64)) -> Result<Duration> {
    let Some(text) = at.string(key)? else { return Ok(Duration::from_millis(default)) };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.get(digits.len()..) {
        Some("ms") => Some(1),
        Some("s") => Some(1_000),
        Some("m") => Some(60_000),
        _ => None,
    };
    let ms = digits.parse::<u64>().ok().zip(scale).and_then(|(number, scale)| number.checked_mul(scale));
    match ms.filter(|ms| (min..=max).contains(ms)) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => {
            let message = format!(
                "is `{text}`, allowed is a time with its unit, from {min}ms to {max}ms, such as `30s`"
            );
            Err(at.error(key, &message))
        }
    }
}

fn server(spec: &ChannelSpec, index: usize) -> Result<Server> {
    let [first, second] = &spec.site_tables;
    let [first_name, second_name] = &spec.sites;
    let (table, name) = if index == 0 { (first, first_name) } else { (second, second_name) };
    let at = At { table, path: vec![name.clone()] };
    let (key, texts) = at.urls("http://127.0.0.1:9200", "https://es1.example:9200")?;
    let mut urls = Vec::new();
    let mut named: Option<(String, Option<String>)> = None;
    for text in &texts {
        let (url, user) = parse_url(text).map_err(|message| at.error(key, &message))?;
        if !urls.is_empty() && user != named {
            return Err(at.error(key, "all must have the same user and password"));
        }
        named = user;
        urls.push(url);
    }
    let file = |key: &str| at.file(key, &spec.directory);
    let (in_url, password) = named.map_or((None, None), |(user, password)| (Some(user), password));
    let user = at.string("user")?.or(in_url);
    let password = match (file("password_file")?, password) {
        (Some(_), Some(_)) => {
            return Err(at.error("password_file", "the URL holds a password already: keep one of both"));
        }
        (Some(path), None) => Some(Secret::File(path)),
        (None, text) => text.map(Secret::Text),
    };
    let auth = match (file("api_key_file")?, user, password) {
        (Some(path), None, None) => Auth::ApiKey(Secret::File(path)),
        (Some(_), ..) => {
            return Err(at.error("api_key_file", "a user or a password is given, too: keep one of both"));
        }
        (None, Some(user), Some(password)) => Auth::Basic(user, password),
        (None, Some(_), None) => {
            return Err(at.error("password_file", "is missing: a user needs its password"));
        }
        (None, None, Some(_)) => return Err(at.error("user", "is missing: a password needs its user")),
        (None, None, None) => Auth::None,
    };
    let client = at.identity(&spec.directory)?;
    let ca = file("ca_file")?;
    if (ca.is_some() || client.is_some()) && urls.iter().any(|url| url.scheme() != "https") {
        return Err(
            at.error(key, "is http, and certificates are given: allowed is https://host:port with them")
        );
    }
    Ok(Server { urls, auth, ca, client })
}

type User = Option<(String, Option<String>)>;

/// What is wrong with a URL is said without quoting it: it can hold a password.
fn parse_url(text: &str) -> std::result::Result<(Url, User), String> {
    const FORM: &str = "allowed is http[s]://[user:password@]host[:port]";
    let mut url = Url::parse(text).map_err(|e| format!("{e}; {FORM}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme `{}` is not known; {FORM}", url.scheme()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("a host is missing; {FORM}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("nothing may follow the address (encode `?` and `#` in a password); {FORM}"));
    }
    let decoded =
        |part: &str| percent(part).ok_or_else(|| "user or password is not percent-encoded UTF-8".to_owned());
    let user = match url.username() {
        "" => None,
        user => Some((decoded(user)?, url.password().map(decoded).transpose()?)),
    };
    let cannot = |()| format!("the address takes no user; {FORM}");
    url.set_username("").map_err(cannot)?;
    url.set_password(None).map_err(cannot)?;
    let address = text.trim_end_matches('/');
    if url.port().is_none() && !address.ends_with(":443") && !address.ends_with(":80") {
        // Of Elasticsearch, not of the web.
        url.set_port(Some(9200)).map_err(cannot)?;
    }
    Ok((url, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(channel: &str, dc: &str) -> ChannelSpec {
        let site = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        ChannelSpec {
            link: "l".into(),
            channel: "c".into(),
            sites: ["dc".into(), "cloud".into()],
            carries: [true, true],
            table: toml::from_str(channel).unwrap(),
            site_tables: [site(dc), site("url = \"http://127.0.0.1:9201\"")],
            directory: std::env::temp_dir(),
        }
    }

    #[test]
    fn a_minimal_channel_has_defaults() {
        let config = Config::parse(&spec("indices = [\"push-*\"]", "url = \"http://es\"")).unwrap();
        assert_eq!(config.servers[0].urls[0].as_str(), "http://es:9200/");
        assert_eq!((config.poll, config.deletes), (Duration::from_secs(1), Some(Duration::from_secs(60))));
        assert!(config.indices.carries("push-1") && !config.indices.carries("other"));
        assert!(!config.indices.carries(".push-1"));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed_and_without_secrets() {
        let ok = "url = \"http://es\"";
        for (channel, dc, path, says) in [
            ("", ok, "indices", "is missing"),
            ("indices = [\"Push\"]", ok, "indices", "small letters"),
            ("indices = [\"a\"]\nindexes = 1", ok, "indexes", "expected one of `indices`"),
            ("indices = [\"a\"]\npoll = \"1\"", ok, "poll", "with its unit"),
            ("indices = [\"a\"]\ndeletes = \"1h\"", ok, "deletes", "with its unit"),
            ("indices = [\"a\"]\nbulk = { bytes_max = 1 }", ok, "bulk.bytes_max", "1024"),
            ("indices = [\"a\"]", "url = \"es:9200\"", "dc.url", "scheme"),
            ("indices = [\"a\"]", "urls = []", "dc.urls", "list of texts"),
            ("indices = [\"a\"]", "url = \"http://u:s3cret@es/?x\"", "dc.url", "nothing may follow"),
            ("indices = [\"a\"]", "url = \"http://es\"\nuser = \"u\"", "dc.password_file", "is missing"),
            ("indices = [\"a\"]", "url = \"http://es\"\nca = \"x\"", "dc.ca", "unknown field"),
        ] {
            let error = Config::parse(&spec(channel, dc)).unwrap_err();
            assert_eq!(error.path.join("."), path, "{error}");
            assert!(error.message.contains(says) && !error.to_string().contains("s3cret"), "{error}");
        }
    }
}
