use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Also a counter.
    Str(String),
    /// In order.
    List(Vec<String>),
    /// Fields and their values.
    Hash(BTreeMap<String, String>),
    /// Its members.
    Set(BTreeSet<String>),
}

impl Value {
    /// `string v`, `list a b`, `hash f v g w`, `set a b`: what a `read`, a `state` or a `put` carries.
    pub fn text(&self) -> String {
        let mut words = Vec::new();
        match self {
            Value::Str(value) => words.extend(["string", value]),
            Value::List(items) => {
                words.push("list");
                words.extend(items.iter().map(String::as_str));
            }
            Value::Hash(fields) => {
                words.push("hash");
                words.extend(fields.iter().flat_map(|(f, v)| [f.as_str(), v.as_str()]));
            }
            Value::Set(members) => {
                words.push("set");
                words.extend(members.iter().map(String::as_str));
            }
        }
        words.join(" ")
    }

    /// Reads what [`text`](Value::text) wrote; `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Value> {
        let text = std::str::from_utf8(text).ok()?;
        let (kind, rest) = text.split_once(' ')?;
        let words: Vec<String> = rest.split(' ').map(str::to_owned).collect();
        match (kind, words.as_slice()) {
            ("string", [value]) => Some(Value::Str(value.clone())),
            ("list", _) => Some(Value::List(words)),
            ("set", _) => Some(Value::Set(words.into_iter().collect())),
            ("hash", _) if words.len().is_multiple_of(2) => {
                Some(Value::Hash(words.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect()))
            }
            _ => None,
        }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::from(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_back_from_its_text() {
        for text in ["string v", "string ", "list a b a", "hash f 1 g 2", "set a b"] {
            assert_eq!(Value::parse(text.as_bytes()).unwrap().text(), text);
        }
        for text in [&b"string"[..], b"string a b", b"hash f", b"bag a", b"", b"\xff "] {
            assert_eq!(Value::parse(text), None);
        }
    }
}
