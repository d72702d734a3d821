//! Which servers a channel's site tables name, as far as their text tells: to refuse what would make a
//! channel copy a server into itself, or two channels bring each other's changes back.

use std::collections::BTreeSet;

/// The servers in a site's `url` or `urls`, in one spelling each: without credentials, query and
/// database, with the port, and with loopback spelt one way. Empty if there is none to be found.
pub(super) fn of(site: &toml::Table) -> BTreeSet<String> {
    let one = site.get("url").into_iter();
    let many = site.get("urls").and_then(toml::Value::as_array).into_iter().flatten();
    one.chain(many).filter_map(toml::Value::as_str).map(normalise).collect()
}

fn normalise(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let scheme = scheme.to_ascii_lowercase();
    if scheme == "unix" || scheme.ends_with("+unix") || scheme == "redis+socket" {
        let path = rest.split(['?', '#']).next().unwrap_or(rest);
        return format!("unix:{}", path.rsplit_once('@').map_or(path, |(_, path)| path));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let server = authority.rsplit_once('@').map_or(authority, |(_, server)| server).to_ascii_lowercase();
    // An IPv6 address in brackets has colons of its own.
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (server.as_str(), ""),
    };
    let host = match host {
        "localhost" | "[::1]" | "" => "127.0.0.1",
        host => host,
    };
    let port = match (port, scheme.trim_end_matches('s')) {
        ("", "redi" | "valkey") => "6379",
        ("", "mysql") => "3306",
        ("", "http") => "9200",
        ("", "couchbase") => "11210",
        (port, _) => port,
    };
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_has_one_spelling() {
        for (url, expected) in [
            ("redis://127.0.0.1:6401", "127.0.0.1:6401"),
            ("redis://user:p@ss@LOCALHOST:6401/3?x=1", "127.0.0.1:6401"),
            ("rediss://[::1]", "127.0.0.1:6379"),
            ("redis://[fe80::1]:7", "[fe80::1]:7"),
            ("redis://cache.example", "cache.example:6379"),
            ("redis://cache.example:6379/", "cache.example:6379"),
            ("unix:///run/redis.sock?db=1", "unix:/run/redis.sock"),
            ("127.0.0.1:6401", "127.0.0.1:6401"),
        ] {
            assert_eq!(normalise(url), expected, "{url}");
        }
    }
}
