//! What identifies a document, and our own index.
//!
//! A key's name is its document's id and routing: [`document`](causeway_core::document).

use bytes::Bytes;
pub(crate) use causeway_core::document::name;
use causeway_core::{Key, Space, document};
use xxhash_rust::xxh3::xxh3_64;

/// The document with our last marker.
pub(crate) const MARKER: &str = "marker";
/// Begins the id of a document with a batch's marker.
pub(crate) const BATCH: &str = "batch:";
/// Begins the id of a token's document.
pub(crate) const TOKEN: &str = "token:";

/// Bytes of a name in our index's name.
const SLUG_MAX: usize = 60;

/// The index of our own that a channel has at each site, with markers and tokens. Hidden: no pattern of anybody's carries
/// it, as ours never begin with a dot.
pub(crate) fn own_index(link: &str, channel: &str) -> String {
    let name = format!("{link}-{channel}");
    let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let slug: String = name.to_ascii_lowercase().chars().map(allowed).take(SLUG_MAX).collect();
    // Names that look alike without capitals, and `a-b` with `c` and `a` with `b-c`.
    let own = xxh3_64(format!("{}:{link}:{channel}", link.len()).as_bytes());
    format!(".causeway-{slug}-{own:016x}")
}

/// The index beside it in which the ids are kept that were there: see [`known`](crate::known).
pub(crate) fn ids_index(link: &str, channel: &str) -> String {
    format!("{}-ids", own_index(link, channel))
}

/// A document's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Doc {
    pub(crate) index: String,
    pub(crate) id: String,
    pub(crate) routing: Option<String>,
}

/// The key of a document.
pub(crate) fn key(index: &str, id: &str, routing: Option<&str>) -> Key {
    let space = Space::Index(Bytes::copy_from_slice(index.as_bytes()));
    Key { space, name: name(id, routing) }
}

/// The document of a key; `None`: it is of no index, or not of UTF-8.
pub(crate) fn doc(key: &Key) -> Option<Doc> {
    let Space::Index(index) = &key.space else { return None };
    let index = std::str::from_utf8(index).ok()?.to_owned();
    let (id, routing) = document::parts(&key.name)?;
    Some(Doc { index, id: id.to_owned(), routing: routing.map(str::to_owned) })
}

/// The index of a key.
pub(crate) fn index(key: &Key) -> Option<&str> {
    match &key.space {
        Space::Index(index) => std::str::from_utf8(index).ok(),
        _ => None,
    }
}

/// As a part of a URL's path, or a value in its query.
pub(crate) fn in_url(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_to_its_document() {
        let found = doc(&key("push-1", "a", Some("r"))).unwrap();
        assert_eq!(found, Doc { index: "push-1".into(), id: "a".into(), routing: Some("r".into()) });
        assert_eq!(doc(&Key { space: Space::Whole, name: "a".into() }), None);
    }

    #[test]
    fn two_channels_never_share_an_index() {
        assert_ne!(own_index("a-b", "c"), own_index("a", "b-c"));
        assert_ne!(own_index("L", "c"), own_index("l", "c"));
        assert!(own_index("DC→cloud", &"x".repeat(300)).len() < 100);
    }

    #[test]
    fn what_goes_into_a_url_is_encoded() {
        assert_eq!(in_url("a/b?c=é"), "a%2Fb%3Fc%3D%C3%A9");
    }
}
