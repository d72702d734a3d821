//! A document's canonical form: the same for the same content, whatever its spaces, escapes and order of keys.

use serde_json::value::RawValue;

use crate::digest::{Ordered, Tag, Unordered};

/// Parts of a form; the first byte of each.
const OBJECT: u8 = b'{';
const LIST: u8 = b'[';
const TEXT: u8 = b'"';
/// A number as it was written, `true`, `false` or `null`.
const OTHER: u8 = b'=';

/// The digest of a document; `None`: it is no JSON object.
pub(super) fn digest(source: &str) -> Option<u128> {
    let mut form = Vec::with_capacity(source.len());
    let raw: &RawValue = serde_json::from_str(source).ok()?;
    if !raw.get().starts_with('{') {
        return None;
    }
    write(raw, &mut form)?;
    let mut all = Ordered::new();
    all.add(&form);
    Some(all.digest(Tag::Document, &Unordered::default()))
}

fn write(value: &RawValue, form: &mut Vec<u8>) -> Option<()> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'{' => {
            let Fields(mut fields) = serde_json::from_str(text).ok()?;
            // Of a key that comes twice both count, in their order.
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            form.push(OBJECT);
            length(fields.len(), form);
            for (name, value) in fields {
                length(name.len(), form);
                form.extend_from_slice(name.as_bytes());
                write(value, form)?;
            }
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            form.push(LIST);
            length(items.len(), form);
            for item in items {
                write(item, form)?;
            }
        }
        b'"' => {
            let text: String = serde_json::from_str(text).ok()?;
            form.push(TEXT);
            length(text.len(), form);
            form.extend_from_slice(text.as_bytes());
        }
        _ => {
            form.push(OTHER);
            length(text.len(), form);
            form.extend_from_slice(text.as_bytes());
        }
    }
    Some(())
}

fn length(length: usize, form: &mut Vec<u8>) {
    form.extend_from_slice(&(length as u64).to_le_bytes());
}

/// An object's fields as they come.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FF53.
    #[test]
    fn the_same_content_has_one_digest_and_any_other_has_another() {
        let one = digest(r#"{"a":1.0,"b":["x",null,{"c":"é"}]}"#).unwrap();
        assert_eq!(digest("{ \"b\" : [\"x\", null,\n{\"c\":\"\\u00e9\"}], \"a\":1.0 }"), Some(one));
        for other in [
            r#"{"a":1,"b":["x",null,{"c":"é"}]}"#,
            r#"{"a":1.00,"b":["x",null,{"c":"é"}]}"#,
            r#"{"a":"1.0","b":["x",null,{"c":"é"}]}"#,
            r#"{"a":1.0,"b":[null,"x",{"c":"é"}]}"#,
            r#"{"a":1.0,"b":["x",null,{"c":"é"},{}]}"#,
            r#"{"a":1.0,"b":["x","null",{"c":"é"}]}"#,
            r#"{"a":1.0,"a":1.0,"b":["x",null,{"c":"é"}]}"#,
            r#"{"a":1.0,"b":["x",null,{"c":"e"}]}"#,
            r#"{"a":1.0,"b":["x",null,{"c":"é"}],"z":[]}"#,
            "{}",
        ] {
            assert_ne!(digest(other).unwrap(), one, "{other}");
        }
        for none in ["", "[]", "{", "1"] {
            assert_eq!(digest(none), None, "{none}");
        }
    }

    #[test]
    fn digests_are_those_that_the_page_tells() {
        crate::digest::tests::assert_told("document `{\"a\":1.0}`", digest("{\"a\":1.0}").unwrap());
    }
}
