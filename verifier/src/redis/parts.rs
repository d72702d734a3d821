//! The elements of a value, so that a difference can be told down to them.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::read::{Kind, RedisReader};
use super::rest::{Each, each_field, each_member, each_scored};
use crate::compare::Parts;
use crate::error::Result;
use crate::report::printable;

/// A value with more elements is told as a whole.
const ELEMENTS_MAX: usize = 100_000;

/// Takes an element's name out of its canonical form.
type NameOf = fn(&[u8]) -> &[u8];

/// `len(field) ‖ field ‖ …`
fn field(form: &[u8]) -> &[u8] {
    let (length, rest) = form.split_first_chunk().unwrap_or((&[0; 8], &[]));
    rest.get(..u64::from_le_bytes(*length) as usize).unwrap_or_default()
}

/// `score ‖ member`
fn member(form: &[u8]) -> &[u8] {
    form.get(8..).unwrap_or_default()
}

impl RedisReader {
    /// The elements of what `name` holds, by name, each with a digest of what it is; none if it has no elements that have
    /// names, or too many.
    pub(super) async fn elements(&self, db: u32, name: &Bytes, kind: Kind) -> Result<Parts> {
        let (scan, each, name_of): (_, Each, NameOf) = match kind {
            Kind::Hash => ("HSCAN", each_field, field),
            Kind::Set => ("SSCAN", each_member, |form| form),
            Kind::Zset => ("ZSCAN", each_scored, member),
            _ => return Ok(Parts::new()),
        };
        let mut parts = Parts::new();
        let mut note = |form: &[u8]| {
            parts.insert(printable(name_of(form)).into_owned(), xxh3_128(form));
            parts.len() <= ELEMENTS_MAX
        };
        let whole = self.scan(db, name, scan, 0, each, &mut note).await?;
        Ok(if whole { parts } else { Parts::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::canonical;
    use super::*;

    #[test]
    fn the_name_of_an_element_is_in_its_form() {
        let mut form = Vec::new();
        canonical::field(&mut form, b"f", b"value", None);
        assert_eq!(field(&form), b"f");
        canonical::field(&mut form, b"", b"value", Some(7));
        assert_eq!(field(&form), b"");
        canonical::scored(&mut form, b"m", 1.5);
        assert_eq!(member(&form), b"m");
        assert_eq!((field(b"short"), member(b"short")), (&b""[..], &b""[..]));
    }
}
