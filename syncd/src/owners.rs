//! Whose a key is: the tenant that its name tells, and the site that serves that tenant.

use std::collections::HashMap;
use std::fmt;

use causeway_core::Site;
use regex::bytes::{Regex, RegexBuilder};

/// Where the name of a key tells its tenant: a pattern such as `push:{tenant}:*`, in which `{tenant}` stands once and
/// takes at least one byte and as few as it can, and each `*` takes any bytes.
#[derive(Clone)]
pub struct TenantKey(Regex);

const TENANT: &str = "{tenant}";

impl TenantKey {
    /// Reads a pattern; `None` if `{tenant}` does not stand in it once.
    pub fn new(pattern: &str) -> Option<TenantKey> {
        let (before, after) = pattern.split_once(TENANT)?;
        if after.contains(TENANT) {
            return None;
        }
        let any = |text: &str| text.split('*').map(regex::escape).collect::<Vec<_>>().join(".*");
        let pattern = format!("^{}(.+?){}$", any(before), any(after));
        RegexBuilder::new(&pattern).unicode(false).dot_matches_new_line(true).build().ok().map(TenantKey)
    }

    /// The tenant of the key `name`; `None` if it is nobody's.
    pub fn tenant<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        self.0.captures(name)?.get(1).map(|tenant| tenant.as_bytes())
    }
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantKey({})", self.0)
    }
}

/// A table of tenants and the sites that serve them.
#[derive(Debug, Clone)]
pub struct Owners {
    key: TenantKey,
    sites: HashMap<Vec<u8>, Site>,
}

/// A line of an owner table that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    /// What is wrong with it, and what is allowed.
    pub message: String,
}

impl Owners {
    /// Reads `tenant,site` lines; the last comma counts, so a tenant may have some. Empty lines and those that begin
    /// with `#` say nothing. `sites` are the names of the link's.
    ///
    /// # Errors
    ///
    /// The first line that is none, that names no site of the link, or a tenant for the second time.
    pub fn read(text: &str, key: TenantKey, sites: &[String; 2]) -> Result<Owners, BadLine> {
        let mut found = HashMap::new();
        for (line, row) in (1..).zip(text.lines()) {
            let bad = |message| Err(BadLine { line, message });
            if row.trim().is_empty() || row.starts_with('#') {
                continue;
            }
            let Some((tenant, site)) =
                row.rsplit_once(',').map(|(tenant, site)| (tenant.trim(), site.trim()))
            else {
                return bad(format!("`{row}` has no comma, allowed is `tenant,site`"));
            };
            if tenant.is_empty() {
                return bad(format!("`{row}` names no tenant, allowed is `tenant,site`"));
            }
            let Some(owner) = Site::named(site, sites) else {
                let [first, second] = sites;
                return bad(format!("the site is `{site}`, allowed is `{first}` or `{second}`"));
            };
            if found.insert(tenant.as_bytes().to_vec(), owner).is_some() {
                return bad(format!(
                    "tenant `{tenant}` stands here for the second time, allowed is one line each"
                ));
            }
        }
        Ok(Owners { key, sites: found })
    }

    /// How many tenants it names.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The site that serves the tenant of the key `name`; `None` if it has none, or one that the table does not name.
    pub fn of(&self, name: &[u8]) -> Option<Site> {
        self.sites.get(self.key.tenant(name)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(pattern: &str, name: &str) -> Option<String> {
        let key = TenantKey::new(pattern).unwrap();
        key.tenant(name.as_bytes()).map(|tenant| String::from_utf8_lossy(tenant).into_owned())
    }

    #[test]
    fn the_tenant_is_what_stands_in_its_place() {
        for (pattern, name, expected) in [
            ("push:{tenant}:*", "push:app-1:device:7", Some("app-1")),
            ("push:{tenant}:*", "push:app-1:", Some("app-1")),
            ("push:{tenant}:*", "push::device", None),
            ("push:{tenant}:*", "Push:app-1:x", None),
            ("push:{tenant}:*", "push:app-1", None),
            ("*:{tenant}", "a:b", Some("b")),
            ("{tenant}", "anything\n at all", Some("anything\n at all")),
            ("{tenant}.*.q", "a.b.q", Some("a")),
            ("[{tenant}]", "[x]", Some("x")),
        ] {
            assert_eq!(tenant(pattern, name).as_deref(), expected, "{pattern} {name}");
        }
        assert_eq!(
            TenantKey::new("push:{tenant}:*").unwrap().tenant(b"push:\xff\xfe:x"),
            Some(&b"\xff\xfe"[..])
        );
        assert!(TenantKey::new("push:*").is_none() && TenantKey::new("{tenant}{tenant}").is_none());
    }

    #[test]
    fn an_owner_table_is_read_line_by_line() {
        let read = |text: &str| {
            let sites = ["dc".to_owned(), "cloud".to_owned()];
            Owners::read(text, TenantKey::new("push:{tenant}:*").unwrap(), &sites)
        };
        let owners = read("# moved on Monday\n\napp-1,cloud\r\napp,2 , dc\n").unwrap();
        assert_eq!(owners.len(), 2);
        assert_eq!(owners.of(b"push:app-1:x"), Some(Site::Second));
        assert_eq!(owners.of(b"push:app,2:x"), Some(Site::First));
        assert_eq!((owners.of(b"push:app-3:x"), owners.of(b"other")), (None, None));
        for (text, line, message) in [
            ("a,dc\nb", 2, "`b` has no comma"),
            (",dc", 1, "names no tenant"),
            ("a,moon", 1, "the site is `moon`, allowed is `dc` or `cloud`"),
            ("a,dc\na,cloud", 2, "tenant `a` stands here for the second time"),
        ] {
            let bad = read(text).unwrap_err();
            assert_eq!(bad.line, line);
            assert!(bad.message.contains(message), "{}", bad.message);
        }
    }
}
