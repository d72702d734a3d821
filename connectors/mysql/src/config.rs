//! A channel's configuration: the keys that this connector knows, their defaults and their bounds.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use causeway_core::settings::{At, Secret, percent};
use causeway_core::{ChannelSpec, DdlPolicy, OpenError, Pattern, Site};
use url::Url;

/// One channel, as this connector sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct MysqlConfig {
    /// The link's name.
    pub link: String,
    /// The channel's name.
    pub channel: String,
    /// The sites' names.
    pub sites: [String; 2],
    /// Of each site, whether what it writes is carried to its peer.
    pub carries: [bool; 2],
    /// The tables that it carries.
    pub tables: Tables,
    /// What is done with every change of a table; `None`: what only adds is applied, and all else waits for an operator.
    pub ddl: Option<DdlPolicy>,
    /// How fast a snapshot is read from the source; `None`: no limit.
    pub snapshot_bytes_per_second: Option<u64>,
    /// Both sites' servers.
    pub servers: [Server; 2],
}

/// `tables` and `exclude`: patterns of `schema.table`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// Databases of the servers themselves, and ours.
const NEVER: [&str; 5] = ["mysql", "information_schema", "performance_schema", "sys", crate::names::SCHEMA];

impl Tables {
    /// Carries what one of `include` takes and none of `exclude`.
    pub fn new(include: &[String], exclude: &[String]) -> Tables {
        let patterns = |globs: &[String]| globs.iter().map(|glob| Pattern::new(glob)).collect();
        Tables { include: patterns(include), exclude: patterns(exclude) }
    }

    /// Whether the channel carries the table. Those of the server's own databases and of ours are never carried.
    pub fn carries(&self, schema: &str, table: &str) -> bool {
        let name = format!("{schema}.{table}");
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()));
        !NEVER.contains(&schema) && any(&self.include) && !any(&self.exclude)
    }
}

/// One site's server, and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Names or addresses, and ports (3306 unless given): of several the one that takes writes is meant.
    pub addresses: Vec<(String, u16)>,
    /// Which of several that was.
    pub(crate) chosen: Chosen,
    /// The account; `root` unless given.
    pub user: String,
    /// Its password; `None`: it has none.
    pub password: Option<Secret>,
    /// With TLS: who signed the server's certificate.
    pub tls: Option<Tls>,
}

/// TLS, with the server's certificate checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of who signs the servers' certificates.
    pub ca: PathBuf,
    /// PEM files of our own certificate and its key, where the server asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Which of several addresses took writes when we connected last, for all that connect to the site.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen(Arc<Mutex<Option<usize>>>);

impl Chosen {
    pub(crate) fn get(&self) -> Option<usize> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, index: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }
}

/// It is not configured.
impl PartialEq for Chosen {
    fn eq(&self, _: &Chosen) -> bool {
        true
    }
}

impl Eq for Chosen {}

impl Server {
    /// `host:port`: of several, the one that takes writes, or all while that is not known.
    pub fn label(&self) -> String {
        match self.chosen.get() {
            Some(index) => self.label_of(index),
            None => {
                (0..self.addresses.len()).map(|index| self.label_of(index)).collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// `host:port` of one.
    pub(crate) fn label_of(&self, index: usize) -> String {
        self.addresses.get(index).map_or_else(String::new, |(host, port)| format!("{host}:{port}"))
    }
}

const CHANNEL_KEYS: [&str; 5] = ["tables", "exclude", "ddl", "batch", "limits"];
const SITE_KEYS: [&str; 7] = ["url", "urls", "user", "password_file", "ca_file", "cert_file", "key_file"];
const BATCH_KEYS: [&str; 2] = ["items_max", "bytes_max"];
const LIMIT_KEYS: [&str; 1] = ["snapshot_bytes_per_second"];

type Result<T> = std::result::Result<T, OpenError>;

impl MysqlConfig {
    /// Reads the tables; connects to nothing, but looks whether the files named are there.
    ///
    /// # Errors
    ///
    /// A key that is not known or a value that is not allowed: names it, and what is.
    pub fn parse(spec: &ChannelSpec) -> Result<MysqlConfig> {
        let top = At { table: &spec.table, path: Vec::new() };
        let (batch, limits) = (top.inner("batch")?, top.inner("limits")?);
        top.known(&CHANNEL_KEYS)?;
        batch.known(&BATCH_KEYS)?;
        limits.known(&LIMIT_KEYS)?;
        for (table, site) in spec.site_tables.iter().zip(&spec.sites) {
            At { table, path: vec![site.clone()] }.known(&SITE_KEYS)?;
        }
        let include = top.strings("tables", "shop.*")?;
        if include.is_empty() {
            return Err(
                top.error("tables", "is missing, allowed is a list of patterns, such as [\"shop.*\"]")
            );
        }
        if let Some(wrong) = include.iter().find(|pattern| !pattern.contains('.')) {
            let message = format!("`{wrong}` has no dot: write `schema.table`, such as `shop.*`");
            return Err(top.error("tables", &message));
        }
        let ddl = match top.string("ddl")?.as_deref() {
            None => None,
            Some("apply") => Some(DdlPolicy::Apply),
            Some("hold") => Some(DdlPolicy::Hold),
            Some("ignore") => Some(DdlPolicy::Ignore),
            Some(other) => {
                let message = format!("is `{other}`, allowed is one of apply, hold, ignore");
                return Err(top.error("ddl", &message));
            }
        };
        // The daemon cuts batches by these; here they are looked at only.
        batch.size("items_max", 1, 1 << 20)?;
        batch.size("bytes_max", 1, 1 << 30)?;
        let [first, second] = [0, 1].map(|index| server(spec, index));
        Ok(MysqlConfig {
            link: spec.link.clone(),
            channel: spec.channel.clone(),
            sites: spec.sites.clone(),
            carries: spec.carries,
            tables: Tables::new(&include, &top.strings("exclude", "shop.tmp_*")?),
            ddl,
            snapshot_bytes_per_second: limits.rate("snapshot_bytes_per_second")?,
            servers: [first?, second?],
        })
    }

    /// `site`'s server.
    pub fn server(&self, site: Site) -> &Server {
        let [first, second] = &self.servers;
        match site {
            Site::First => first,
            Site::Second => second,
        }
    }

    /// `site`'s name.
    pub fn site(&self, site: Site) -> &str {
        let [first, second] = &self.sites;
        match site {
            Site::First => first,
            Site::Second => second,
        }
    }
}

fn server(spec: &ChannelSpec, index: usize) -> Result<Server> {
    let [first, second] = &spec.site_tables;
    let [first_name, second_name] = &spec.sites;
    let (table, name) = if index == 0 { (first, first_name) } else { (second, second_name) };
    let at = At { table, path: vec![name.clone()] };
    let (key, urls) = at.urls("mysql://user@127.0.0.1:3306", "mysql://user@127.0.0.1:3306")?;
    let mut all: Option<Server> = None;
    for text in &urls {
        let parsed = parse_url(text).map_err(|message| at.error(key, &message))?;
        match &mut all {
            None => all = Some(parsed),
            Some(all) if (&all.user, &all.password) != (&parsed.user, &parsed.password) => {
                return Err(at.error(key, "all must have the same user and password"));
            }
            Some(all) => all.addresses.extend(parsed.addresses),
        }
    }
    let mut server = all.ok_or_else(|| at.error(key, "is empty, allowed is one server or more"))?;
    if let Some(user) = at.string("user")? {
        server.user = user;
    }
    let file = |key: &str| at.file(key, &spec.directory);
    if let Some(path) = file("password_file")? {
        if server.password.is_some() {
            return Err(at.error("password_file", "the URL holds a password already: keep one of both"));
        }
        server.password = Some(Secret::File(path));
    }
    let client = at.identity(&spec.directory)?;
    server.tls = match (file("ca_file")?, client) {
        (Some(ca), client) => Some(Tls { ca, client }),
        (None, Some(_)) => return Err(at.error("ca_file", "is missing: it is what turns TLS on")),
        (None, None) => None,
    };
    Ok(server)
}

/// What is wrong with a URL is said without quoting it: it can hold a password.
fn parse_url(text: &str) -> std::result::Result<Server, String> {
    const FORM: &str = "allowed is mysql://[user[:password]@]host[:port]";
    let url = Url::parse(text).map_err(|e| format!("{e}; {FORM}"))?;
    if url.scheme() != "mysql" {
        return Err(format!("scheme `{}` is not known; {FORM}", url.scheme()));
    }
    if !matches!(url.path(), "" | "/") {
        return Err("a database in the URL means nothing here: use `tables` of the channel".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("nothing may follow the address (encode `?` and `#` in a password); {FORM}"));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or(format!("a host is missing; {FORM}"))?;
    let decoded =
        |part: &str| percent(part).ok_or_else(|| "user or password is not percent-encoded UTF-8".to_owned());
    let user = if url.username().is_empty() { "root".to_owned() } else { decoded(url.username())? };
    Ok(Server {
        addresses: vec![(
            host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            url.port().unwrap_or(3306),
        )],
        chosen: Chosen::default(),
        user,
        password: url.password().map(decoded).transpose()?.map(Secret::Text),
        tls: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(channel: &str, dc: &str) -> ChannelSpec {
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        ChannelSpec {
            link: "dc-cloud".into(),
            channel: "orders".into(),
            sites: ["dc".into(), "cloud".into()],
            carries: [true; 2],
            table: table(channel),
            site_tables: [table(dc), table("url = \"mysql://root@127.0.0.1:3307\"")],
            directory: PathBuf::from("."),
        }
    }

    #[test]
    fn the_documented_keys_are_read() {
        let spec = spec(
            "tables = [\"shop.*\", \"crm.people\"]\nexclude = [\"shop.tmp_*\"]\nbatch = { items_max = 64 }",
            "url = \"mysql://app:p%3Ass@db.dc\"",
        );
        let config = MysqlConfig::parse(&spec).unwrap();
        let server = config.server(Site::First);
        assert_eq!((server.label().as_str(), server.user.as_str()), ("db.dc:3306", "app"));
        assert_eq!(server.password, Some(Secret::Text("p:ss".into())));
        let several = self::spec("tables = [\"shop.*\"]", "urls = [\"mysql://a\", \"mysql://b:3307\"]");
        let several = MysqlConfig::parse(&several).unwrap();
        assert_eq!(several.server(Site::First).label(), "a:3306, b:3307");
        several.server(Site::First).chosen.set(1);
        assert_eq!(several.clone().server(Site::First).label(), "b:3307");
        for (schema, table, carried) in [
            ("shop", "orders", true),
            ("shop", "tmp_1", false),
            ("crm", "people", true),
            ("crm", "other", false),
            ("mysql", "user", false),
        ] {
            assert_eq!(config.tables.carries(schema, table), carried, "{schema}.{table}");
        }
        let all = Tables::new(&["*.*".into()], &[]);
        assert!(all.carries("a", "b") && !all.carries("mysql", "user") && !all.carries("causeway", "x"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let good = "tables = [\"shop.*\"]";
        let url = "url = \"mysql://root@127.0.0.1\"";
        for (channel, dc, path, message) in [
            ("", url, "tables", "is missing"),
            ("tables = [\"shop\"]", url, "tables", "has no dot"),
            ("tables = [\"shop.*\"]\ntable = 1", url, "table", "unknown field"),
            (good, "", "dc.url", "is missing"),
            (good, "urls = []", "dc.urls", "a list of texts"),
            (good, "url = \"mysql://x\"\nurls = [\"mysql://y\"]", "dc.urls", "keep one of both"),
            (good, "urls = [\"mysql://x\", \"mysql://z@y\"]", "dc.urls", "the same user"),
            (good, "url = \"redis://x\"", "dc.url", "scheme `redis`"),
            (good, "url = \"mysql://x/shop\"", "dc.url", "use `tables`"),
            (good, "url = \"mysql://x\"\ncert_file = \"Cargo.toml\"", "dc.key_file", "is missing"),
            (good, "url = \"mysql://x\"\nca_file = \"nowhere.pem\"", "dc.ca_file", "nowhere.pem"),
            ("tables = [\"a.b\"]\nlimits = { x = 1 }", url, "limits.x", "unknown field"),
        ] {
            let error = MysqlConfig::parse(&spec(channel, dc)).unwrap_err();
            assert_eq!(error.path.join("."), path, "{error}");
            assert!(error.message.contains(message), "{error}");
        }
    }
}
