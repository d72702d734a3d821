//! What a check needs of the daemon's configuration file. Keys it does not need are not looked at: whether
//! they are right is the daemon's to say (`syncd check`).

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_core::Pattern;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cli::duration;
use crate::elasticsearch::Indices;
use crate::error::{Error, Result};
use crate::filter::{Scope, escape};
use crate::mysql::Tables;

/// How often a daemon asks Elasticsearch for what is new, unless `poll` says otherwise, and how long one look may take.
const POLL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(500);

/// The configuration, as far as a check needs it.
#[derive(Debug)]
pub(crate) struct Config {
    /// The link's name.
    pub(crate) link: String,
    /// The sites' names, in the link's order.
    pub(crate) sites: [String; 2],
    /// Where daemons may answer: `http://host:port`, without a slash at the end.
    pub(crate) apis: Vec<String>,
    /// Where the log's folder is: what is kept beside it goes here.
    pub(crate) data: PathBuf,
    /// The channels asked for; at least one.
    pub(crate) channels: Vec<Channel>,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Its name.
    pub(crate) name: String,
    /// What it carries, of which kind of store.
    pub(crate) store: Store,
    /// Of each site whether what is written there is carried to the other one.
    pub(crate) carries: [bool; 2],
    /// Some of it is told by applications, and what is written into a store itself stays there.
    pub(crate) intake: bool,
    /// How long a daemon may not know yet of what was written, as it asks the store now and then.
    pub(crate) late: Duration,
    /// How to reach it at each site.
    pub(crate) endpoints: [Endpoints; 2],
}

/// What a channel carries.
#[derive(Debug)]
pub(crate) enum Store {
    /// Keys.
    Redis(Scope),
    /// Tables.
    Mysql(Tables),
    /// Indices.
    Elasticsearch(Indices),
}

/// How to reach a channel's instance at one site. Not `Debug` for its secrets' sake.
#[derive(Default, Clone)]
pub(crate) struct Endpoints {
    /// Addresses; more than one: the first that answers as master is taken.
    pub(crate) urls: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// Of Elasticsearch, as the server encodes it.
    pub(crate) api_key: Option<String>,
    /// PEM: the authority that signed the server's certificate.
    pub(crate) ca: Option<Vec<u8>>,
    /// PEM: our own certificate and its key.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoints").finish_non_exhaustive()
    }
}

/// What of the file is to be read.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wanted {
    /// This channel only.
    pub(crate) channel: Option<String>,
    /// The keys of this tenant only.
    pub(crate) tenant: Option<String>,
}

/// Reads the file at `path`. `${NAME}` in an address or a secret is taken from the environment; paths are
/// relative to the file's folder.
///
/// # Errors
///
/// [`Error::Usage`], as `file:line:column: message`.
pub(crate) fn load(path: &Path, wanted: &Wanted) -> Result<Config> {
    parsed(path, |file, root| read(file, root, wanted))
}

/// The link's name and its sites', whatever else is in the file at `path`.
///
/// # Errors
///
/// As [`load`].
pub(crate) fn load_link(path: &Path) -> Result<(String, [String; 2])> {
    parsed(path, |file, root| link_of(file, root.get_ref()))
}

fn parsed<T>(path: &Path, read: impl FnOnce(&File<'_>, &Spanned<DeTable<'_>>) -> Result<T>) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
    let file = File { path, text: &text };
    let root = DeTable::parse(&text).map_err(|e| file.bad(e.span().unwrap_or(0..0), e.message()))?;
    read(&file, &root)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

type Node<'a> = Spanned<DeValue<'a>>;

impl File<'_> {
    fn bad(&self, span: Range<usize>, message: impl std::fmt::Display) -> Error {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Error::Usage(format!("{}:{line}:{column}: {message}", self.path.display()))
    }

    fn expected(&self, node: &Node<'_>, key: &str, what: &str) -> Error {
        self.bad(node.span(), format!("`{key}` is of type {}, allowed is {what}", node.get_ref().type_str()))
    }

    fn folder_path(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    fn table<'t, 'a>(&self, node: &'t Node<'a>, key: &str) -> Result<&'t DeTable<'a>> {
        node.get_ref().as_table().ok_or_else(|| self.expected(node, key, "a table"))
    }

    fn text(&self, node: &Node<'_>, key: &str) -> Result<String> {
        node.get_ref().as_str().map(str::to_owned).ok_or_else(|| self.expected(node, key, "a text"))
    }

    /// The text at `key` of `table`, with `${NAME}` filled in.
    fn filled(&self, table: &DeTable<'_>, key: &str) -> Result<Option<String>> {
        table.get(key).map(|node| self.fill(node, key)).transpose()
    }

    fn fill(&self, node: &Node<'_>, key: &str) -> Result<String> {
        let text = self.text(node, key)?;
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else {
                return Err(self.bad(node.span(), format!("`{key}`: `${{` without its `}}`")));
            };
            let value = std::env::var(name).map_err(|_| {
                self.bad(node.span(), format!("`{key}`: the environment has no variable `{name}`; set it"))
            })?;
            out += before;
            out += &value;
            rest = after;
        }
        Ok(out + rest)
    }

    /// The texts at `key`: a list, or one alone.
    fn texts(&self, table: &DeTable<'_>, key: &str) -> Result<Vec<String>> {
        let Some(node) = table.get(key) else { return Ok(Vec::new()) };
        match node.get_ref() {
            DeValue::String(one) => Ok(vec![one.clone().into_owned()]),
            DeValue::Array(many) => many.iter().map(|node| self.text(node, key)).collect(),
            _ => Err(self.expected(node, key, "a list of texts")),
        }
    }

    fn bytes_of(&self, table: &DeTable<'_>, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(name) = self.filled(table, key)? else { return Ok(None) };
        let path = self.folder_path(&name);
        let span = table.get(key).map(Spanned::span).unwrap_or_default();
        let bytes =
            std::fs::read(&path).map_err(|e| self.bad(span, format!("`{key}`: {}: {e}", path.display())))?;
        Ok(Some(bytes))
    }
}

fn read(file: &File<'_>, root: &Spanned<DeTable<'_>>, wanted: &Wanted) -> Result<Config> {
    let whole = root.get_ref();
    let (name, sites) = link_of(file, whole)?;

    let mut channels = Vec::new();
    let mut names = Vec::new();
    let list = whole.get("channel").and_then(|node| node.get_ref().as_array());
    let Some(list) = list else {
        return Err(
            file.bad(whole.get("channel").map(Spanned::span).unwrap_or(0..0), "there is no `[[channel]]`")
        );
    };
    for node in list.iter() {
        let table = file.table(node, "channel")?;
        let name = match table.get("name") {
            Some(name) => file.text(name, "name")?,
            None => return Err(file.bad(node.span(), "a channel has no `name`")),
        };
        names.push(name.clone());
        if wanted.channel.as_ref().is_none_or(|only| *only == name) {
            channels.push(channel(file, node, table, name, &sites, wanted)?);
        }
    }
    if let (Some(only), true) = (&wanted.channel, channels.is_empty()) {
        return Err(Error::Usage(format!(
            "{}: there is no channel `{only}`; there are: {}",
            file.path.display(),
            names.join(", ")
        )));
    }
    if channels.is_empty() {
        return Err(file.bad(0..0, "there is no `[[channel]]`"));
    }
    let apis = match whole.get("api") {
        Some(node) => apis(file, file.table(node, "api")?)?,
        None => Vec::new(),
    };
    let log = match whole.get("log") {
        Some(node) => file.filled(file.table(node, "log")?, "dir")?,
        None => None,
    };
    let log = file.folder_path(log.as_deref().unwrap_or("data/log"));
    let data = log.parent().unwrap_or(Path::new("")).to_owned();
    Ok(Config { link: name, sites, apis, data, channels })
}

/// The link's name and its sites'.
fn link_of(file: &File<'_>, whole: &DeTable<'_>) -> Result<(String, [String; 2])> {
    let link = whole.get("link").ok_or_else(|| file.bad(0..0, "there is no `[link]`"))?;
    let table = file.table(link, "link")?;
    let name = match table.get("name") {
        Some(node) => file.text(node, "link.name")?,
        None => return Err(file.bad(link.span(), "`[link]` has no `name`")),
    };
    let sites = file.texts(table, "sites")?;
    let sites: [String; 2] = match sites.try_into() {
        Ok(sites) => sites,
        Err(_) => {
            return Err(file.bad(
                table.get("sites").unwrap_or(link).span(),
                "`[link]` needs `sites`, the names of exactly two: sites = [\"dc\", \"cloud\"]",
            ));
        }
    };
    if sites[0] == sites[1] {
        return Err(file.bad(link.span(), "both `sites` have the same name"));
    }
    Ok((name, sites))
}

fn channel(
    file: &File<'_>,
    node: &Node<'_>,
    table: &DeTable<'_>,
    name: String,
    sites: &[String; 2],
    wanted: &Wanted,
) -> Result<Channel> {
    let store = match table.get("store") {
        Some(store) => file.text(store, "store")?,
        None => return Err(file.bad(node.span(), format!("channel `{name}` has no `store`"))),
    };
    let mut late = Duration::ZERO;
    let (store, form) = match store.as_str() {
        "redis" => (Store::Redis(keys(file, node, table, &name, wanted)?), "redis://…"),
        "mysql" => (Store::Mysql(tables(file, node, table, &name, wanted)?), "mysql://…"),
        "elasticsearch" => {
            late = poll(file, table)? + LOOK;
            (Store::Elasticsearch(indices(file, node, table, &name, wanted)?), "http://…")
        }
        other => {
            let span = table.get("store").map(Spanned::span).unwrap_or_default();
            let message = format!(
                "channel `{name}`: this release compares `redis`, `mysql` and `elasticsearch`, not `{other}`; name a channel by --channel"
            );
            return Err(file.bad(span, message));
        }
    };
    let of_site = |site: &str| match table.get(site) {
        Some(at) => endpoints(file, at, file.table(at, site)?, site),
        None => Err(file.bad(
            node.span(),
            format!("channel `{name}` does not say where it is at `{site}`: {site} = {{ url = \"{form}\" }}"),
        )),
    };
    let direction = match table.get("direction") {
        Some(node) => file.text(node, "direction")?,
        None => "both".to_owned(),
    };
    let from = direction.split_once("->").map(|(from, _)| from.trim());
    let carries = [0, 1].map(|n: usize| from.is_none_or(|from| from == sites[n]));
    let endpoints = [of_site(&sites[0])?, of_site(&sites[1])?];
    Ok(Channel { endpoints, name, store, carries, intake: table.get("intake").is_some(), late })
}

/// Which keys a channel of Redis carries.
fn keys(file: &File<'_>, node: &Node<'_>, table: &DeTable<'_>, name: &str, wanted: &Wanted) -> Result<Scope> {
    let patterns = |key: &str| -> Result<Vec<Vec<u8>>> {
        Ok(file.texts(table, key)?.into_iter().map(String::into_bytes).collect())
    };
    let tenant = match &wanted.tenant {
        Some(id) => Some(tenant(file, node, table, name, id)?),
        None => None,
    };
    Ok(Scope { keys: patterns("keys")?, except: patterns("except")?, dbs: databases(file, table)?, tenant })
}

/// Which tables a channel of MySQL carries.
fn tables(
    file: &File<'_>,
    node: &Node<'_>,
    table: &DeTable<'_>,
    name: &str,
    wanted: &Wanted,
) -> Result<Tables> {
    no_tenant(file, node, name, wanted, "rows")?;
    let include = patterns(&file.texts(table, "tables")?);
    if include.is_empty() {
        return Err(file.bad(node.span(), format!("channel `{name}` has no `tables`: tables = [\"shop.*\"]")));
    }
    Ok(Tables { include, exclude: patterns(&file.texts(table, "exclude")?) })
}

/// Which indices a channel of Elasticsearch carries.
fn indices(
    file: &File<'_>,
    node: &Node<'_>,
    table: &DeTable<'_>,
    name: &str,
    wanted: &Wanted,
) -> Result<Indices> {
    no_tenant(file, node, name, wanted, "documents")?;
    let globs = file.texts(table, "indices")?;
    if globs.is_empty() {
        return Err(
            file.bad(node.span(), format!("channel `{name}` has no `indices`: indices = [\"push-*\"]"))
        );
    }
    let exclude = patterns(&file.texts(table, "exclude")?);
    Ok(Indices { include: patterns(&globs), globs, exclude })
}

/// How often a daemon looks for what is new in a channel of Elasticsearch.
fn poll(file: &File<'_>, table: &DeTable<'_>) -> Result<Duration> {
    let Some(node) = table.get("poll") else { return Ok(POLL) };
    duration(&file.text(node, "poll")?).map_err(|allowed| file.bad(node.span(), format!("`poll`: {allowed}")))
}

fn patterns(globs: &[String]) -> Vec<Pattern> {
    globs.iter().map(|glob| Pattern::new(glob)).collect()
}

/// Of some stores it is not known which of `what` are a tenant's.
fn no_tenant(file: &File<'_>, node: &Node<'_>, name: &str, wanted: &Wanted, what: &str) -> Result<()> {
    if wanted.tenant.is_none() {
        return Ok(());
    }
    let message =
        format!("channel `{name}`: this release does not tell {what} of a tenant; leave --tenant out");
    Err(file.bad(node.span(), message))
}

fn tenant(
    file: &File<'_>,
    node: &Node<'_>,
    table: &DeTable<'_>,
    name: &str,
    id: &str,
) -> Result<Vec<Vec<u8>>> {
    let patterns = match table.get("tenant") {
        Some(tenant) => file.texts(file.table(tenant, "tenant")?, "key")?,
        None => Vec::new(),
    };
    if patterns.is_empty() || !patterns.iter().all(|p| p.contains("{tenant}")) {
        let span = table.get("tenant").unwrap_or(node).span();
        let message = format!(
            "channel `{name}` does not say which keys are a tenant's: tenant = {{ key = \"push:{{tenant}}:*\" }}"
        );
        return Err(file.bad(span, message));
    }
    Ok(patterns.iter().map(|p| p.replace("{tenant}", &escape(id)).into_bytes()).collect())
}

fn databases(file: &File<'_>, table: &DeTable<'_>) -> Result<Vec<u32>> {
    let Some(node) = table.get("dbs") else { return Ok(Vec::new()) };
    let wrong = |node: &Node<'_>| file.expected(node, "dbs", "a list of database numbers: [0, 3]");
    let list = node.get_ref().as_array().ok_or_else(|| wrong(node))?;
    list.iter()
        .map(|item| {
            let number = item.get_ref().as_integer().filter(|n| n.radix() == 10);
            number.and_then(|n| n.as_str().replace('_', "").parse().ok()).ok_or_else(|| wrong(item))
        })
        .collect()
}

fn endpoints(file: &File<'_>, node: &Node<'_>, table: &DeTable<'_>, site: &str) -> Result<Endpoints> {
    let mut urls = Vec::new();
    urls.extend(file.filled(table, "url")?);
    if let Some(list) = table.get("urls") {
        let list = list.get_ref().as_array().ok_or_else(|| file.expected(list, "urls", "a list of texts"))?;
        for item in list.iter() {
            urls.push(file.fill(item, "urls")?);
        }
    }
    if urls.is_empty() {
        return Err(file.bad(node.span(), format!("`{site}` has no `url` and no `urls`")));
    }
    let secret = |key: &str| -> Result<Option<String>> {
        let text = file.bytes_of(table, key)?.map(String::from_utf8).transpose();
        text.map_err(|_| file.bad(node.span(), format!("`{site}`: what `{key}` holds is not UTF-8")))
    };
    let password = match secret("password_file")? {
        Some(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
        None => file.filled(table, "password")?,
    };
    let api_key = secret("api_key_file")?.map(|text| text.trim().to_owned());
    let identity = match (file.bytes_of(table, "cert_file")?, file.bytes_of(table, "key_file")?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            return Err(
                file.bad(node.span(), format!("`{site}`: `cert_file` and `key_file` belong together"))
            );
        }
    };
    Ok(Endpoints {
        urls,
        user: file.filled(table, "user")?,
        password,
        api_key,
        ca: file.bytes_of(table, "ca_file")?,
        identity,
    })
}

/// Where daemons answer: `urls = { dc = "http://…", cloud = … }`, or where the one at `listen` does.
fn apis(file: &File<'_>, table: &DeTable<'_>) -> Result<Vec<String>> {
    if let Some(node) = table.get("urls") {
        let urls = file.table(node, "api.urls")?;
        return urls
            .iter()
            .map(|(_, url)| Ok(file.fill(url, "api.urls")?.trim_end_matches('/').to_owned()))
            .collect();
    }
    let Some(listen) = file.filled(table, "listen")? else { return Ok(Vec::new()) };
    let reachable = match listen.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen,
    };
    Ok(vec![format!("http://{reachable}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[link]
name = "dc-cloud"
sites = ["dc", "cloud"]
[api]
listen = "0.0.0.0:7400"
[[channel]]
name = "tags"
store = "redis"
unknown_to_us = 1
keys = ["push:*"]
except = ["push:tmp:*"]
dbs = [0, 3]
dc = { url = "redis://127.0.0.1:6401", user = "u", password = "${CARGO_PKG_NAME}" }
cloud = { urls = ["redis://127.0.0.1:1", "redis://127.0.0.1:2"] }
tenant = { key = "push:{tenant}:*" }
[[channel]]
name = "orders"
store = "mysql"
"#;

    fn load_text(text: &str, channel: Option<&str>, tenant: Option<&str>) -> Result<Config> {
        let file = File { path: Path::new("syncd.toml"), text };
        let root = DeTable::parse(text).map_err(|e| file.bad(e.span().unwrap_or(0..0), e.message()))?;
        let wanted = Wanted { channel: channel.map(str::to_owned), tenant: tenant.map(str::to_owned) };
        read(&file, &root, &wanted)
    }

    fn message(text: &str, channel: Option<&str>) -> String {
        load_text(text, channel, None).unwrap_err().to_string()
    }

    #[test]
    fn what_a_check_needs_is_read() {
        let config = load_text(GOOD, Some("tags"), Some("a*")).unwrap();
        assert_eq!((config.link.as_str(), config.sites[1].as_str()), ("dc-cloud", "cloud"));
        assert_eq!(config.apis, ["http://127.0.0.1:7400"]);
        let tags = &config.channels[0];
        let Store::Redis(scope) = &tags.store else { panic!("{:?}", tags.store) };
        assert_eq!(scope.dbs, [0, 3]);
        assert_eq!(scope.tenant.as_deref(), Some(&[b"push:a\\*:*".to_vec()][..]));
        assert_eq!(tags.endpoints[0].password.as_deref(), Some("verifier"));
        assert_eq!(tags.endpoints[1].urls.len(), 2);
        assert_eq!((config.data.as_path(), tags.carries), (Path::new("data"), [true, true]));
        let one_way = GOOD.replace("name = \"tags\"", "name = \"tags\"\ndirection = \"cloud->dc\"");
        let one_way = format!("{one_way}[log]\ndir = \"/var/lib/causeway/log\"\n");
        let config = load_text(&one_way, Some("tags"), None).unwrap();
        assert_eq!(config.data, Path::new("/var/lib/causeway"));
        assert_eq!(config.channels[0].carries, [false, true]);
        assert_eq!(format!("{:?}", tags.endpoints[0]), "Endpoints { .. }");
    }

    #[test]
    fn a_bad_file_is_told_by_line_and_key() {
        let cases = [
            (GOOD.replace("[0, 3]", "[0, \"x\"]"), "syncd.toml:13:11: `dbs` is of type string"),
            (GOOD.replace("= [\"push:*\"]", "= 3"), "syncd.toml:11:8: `keys` is of type integer"),
            (GOOD.replace("url = \"redis://127.0.0.1:6401\", ", ""), "`dc` has no `url` and no `urls`"),
            (GOOD.replace("CARGO_PKG_NAME", "NO_SUCH_NAME_X"), "no variable `NO_SUCH_NAME_X`"),
            (GOOD.replace("[\"dc\", \"cloud\"]", "[\"dc\"]"), "syncd.toml:4:9: `[link]` needs `sites`"),
            ("[link".to_owned(), "syncd.toml:1:"),
            (String::new(), "there is no `[link]`"),
        ];
        for (text, expected) in cases {
            let message = message(&text, Some("tags"));
            assert!(message.contains(expected), "{message}");
        }
        let other = GOOD.replace("\"mysql\"", "\"memory\"");
        assert!(message(&other, None).contains("`redis`, `mysql` and `elasticsearch`, not `memory`"));
        assert!(message(GOOD, Some("orders")).contains("channel `orders` has no `tables`"));
        assert!(message(GOOD, Some("tag")).contains("there are: tags, orders"));
    }
}
