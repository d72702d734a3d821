//! What names a document of an index, in a [`Key`](crate::Key).
//!
//! It is found by its id *and* its routing: two of one id may lie in two shards. So its name is the id, and, where it has a
//! routing, a zero byte and the routing behind it.

use bytes::Bytes;

/// A document's name.
pub fn name(id: &str, routing: Option<&str>) -> Bytes {
    match routing {
        Some(routing) => Bytes::from(format!("{id}\0{routing}")),
        // An id may hold such a byte itself: no routing is empty, so that this one says that there is none.
        None if id.contains('\0') => Bytes::from(format!("{id}\0")),
        None => Bytes::copy_from_slice(id.as_bytes()),
    }
}

/// The id and the routing of a document of this name; `None`: it is no document's.
pub fn parts(name: &[u8]) -> Option<(&str, Option<&str>)> {
    let name = std::str::from_utf8(name).ok()?;
    let (id, routing) = name.rsplit_once('\0').map_or((name, None), |(id, routing)| (id, Some(routing)));
    (!id.is_empty()).then(|| (id, routing.filter(|routing| !routing.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_to_its_document() {
        for (id, routing) in [
            ("a", None),
            ("a", Some("r")),
            ("a\0b", None),
            ("a\0", None),
            ("a\0b", Some("r")),
            ("é/ ?", Some("x y")),
        ] {
            assert_eq!(parts(&name(id, routing)), Some((id, routing)));
        }
        assert_ne!(name("a", Some("b")), name("a\0b", None));
        assert_eq!((parts(b""), parts(b"\0r"), parts(b"\xff")), (None, None, None));
    }
}
