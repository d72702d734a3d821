//! A digest of what a DUMP payload holds, the same whichever server packed it and how.

use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::dump::{each_element, open};
use super::packed::{Packed, Packing};
use super::read::{Atom, Parse, Raw, Stop, StreamId, push_int};
use super::stream::each_entry;
use super::walk::{Content, Element, Walk};

/// A digest of what a payload holds: the type, what is in it, when fields expire, a stream's counters,
/// groups and pending entries. It is the same for one content in every encoding and RDB version, but for
/// a module's value, whose bytes are digested. `None`: it is damaged, or of an unknown type.
pub fn content_digest(payload: &[u8]) -> Option<u128> {
    let (kind, value, version) = open(payload).ok()?;
    let walk = Walk::new(kind, version)?;
    if walk.of_module() {
        return Some(xxh3_128_with_seed(value, u64::from(kind)));
    }
    let mut digest = Digest::default();
    each_element(walk, value, |element| digest.put(element)).ok()?;
    Some(digest.end())
}

#[derive(Default)]
struct Digest {
    /// Tells an empty text from an empty stream.
    kind: u8,
    /// What comes in an order that counts.
    ordered: Xxh3,
    /// Members of a set, fields, scored members: each server has them in an order of its own.
    unordered: u128,
}

impl Digest {
    fn put(&mut self, element: &Element<'_>) -> Parse<()> {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        match *element {
            Element::Head(_) | Element::Nothing => {}
            Element::Text(raw) => self.item(b's', raw.atom(&mut first)?),
            Element::Item(raw) => self.item(b'l', raw.atom(&mut first)?),
            Element::Member(raw) => self.member(raw.atom(&mut first)?),
            Element::Scored(raw, score) => self.scored(raw.atom(&mut first)?, score),
            Element::Field(field, value, at) => {
                self.field(field.atom(&mut first)?, value.atom(&mut second)?, at);
            }
            Element::Node(packing, raw) => self.packed(packing, Content::List, raw)?,
            Element::Blob(packing, content, raw) => self.packed(packing, content, raw)?,
            Element::Entries(base, raw) => {
                each_entry(base, raw.text(&mut first)?, |at, body, _| {
                    self.id(at);
                    self.item(b'x', Atom::Text(body));
                    Ok(())
                })?;
            }
            Element::StreamMeta(meta) => {
                self.kind = b'x';
                self.id(meta.last);
                self.id(meta.deleted);
                self.number(meta.added);
            }
            Element::Group { name, last, read } => {
                self.item(b'x', name.atom(&mut first)?);
                self.id(last);
                self.number(read.map_or(0, |read| read.wrapping_add(1)));
            }
            Element::Pending { id, delivered_ms, deliveries } => {
                self.id(id);
                self.number(delivered_ms);
                self.number(deliveries);
            }
            Element::Consumer(name) => self.item(b'x', name.atom(&mut first)?),
            Element::Owned(id) => self.id(id),
            Element::Module(_) => return Err(Stop::bad("a module's value")),
        }
        Ok(())
    }

    fn packed(&mut self, packing: Packing, content: Content, raw: Raw<'_>) -> Parse<()> {
        let mut scratch = Vec::new();
        let mut packed = Packed::new(packing, raw.text(&mut scratch)?)?;
        while let Some(atom) = packed.next()? {
            match content {
                Content::List => self.item(b'l', atom),
                Content::Set => self.member(atom),
                Content::Zset => self.scored(atom, score(packed.required()?)?),
                Content::Hash => self.field(atom, packed.required()?, None),
                Content::HashExpiring => {
                    let value = packed.required()?;
                    let at = u64::try_from(packed.number()?).ok().filter(|&ms| ms != 0);
                    self.field(atom, value, at);
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, kind: u8, atom: Atom<'_>) {
        self.kind = kind;
        update(&mut self.ordered, atom);
    }

    fn id(&mut self, id: StreamId) {
        self.number(id.ms);
        self.number(id.seq);
    }

    fn number(&mut self, number: u64) {
        self.ordered.update(&number.to_le_bytes());
    }

    fn member(&mut self, member: Atom<'_>) {
        let mut digest = Xxh3::new();
        update(&mut digest, member);
        self.add(b't', &digest);
    }

    fn scored(&mut self, member: Atom<'_>, score: f64) {
        let mut digest = Xxh3::new();
        update(&mut digest, member);
        // Adding 0 takes the sign from -0, which servers don't keep.
        digest.update(&(score + 0.0).to_bits().to_le_bytes());
        self.add(b'z', &digest);
    }

    fn field(&mut self, field: Atom<'_>, value: Atom<'_>, at: Option<u64>) {
        let mut digest = Xxh3::new();
        update(&mut digest, field);
        update(&mut digest, value);
        digest.update(&at.unwrap_or(0).to_le_bytes());
        self.add(b'h', &digest);
    }

    fn add(&mut self, kind: u8, digest: &Xxh3) {
        self.kind = kind;
        self.unordered = self.unordered.wrapping_add(digest.digest128());
    }

    fn end(mut self) -> u128 {
        self.ordered.update(&[self.kind]);
        self.ordered.update(&self.unordered.to_le_bytes());
        self.ordered.digest128()
    }
}

/// With its length, so that no two sequences of texts run into the same bytes.
fn update(digest: &mut Xxh3, atom: Atom<'_>) {
    let mut digits = Vec::new();
    let text = match atom {
        Atom::Text(text) => text,
        Atom::Int(number) => {
            push_int(number, &mut digits);
            &digits
        }
    };
    digest.update(&(text.len() as u64).to_le_bytes());
    digest.update(text);
}

fn score(atom: Atom<'_>) -> Parse<f64> {
    match atom {
        Atom::Int(number) => Ok(number as f64),
        Atom::Text(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(Stop::bad("a packed score is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal;
    use super::*;

    fn hash(pairs: &[[&[u8]; 2]]) -> Vec<u8> {
        let mut value = vec![4, pairs.len() as u8];
        for text in pairs.iter().flatten() {
            value.push(text.len() as u8);
            value.extend_from_slice(text);
        }
        value
    }

    #[test]
    fn a_digest_tells_contents_and_not_the_order_of_a_hash_table() {
        let digest = |value: &[u8], version| content_digest(&seal(value, version)).unwrap();
        let one = digest(&hash(&[[b"a", b"1"], [b"b", b"2"]]), 10);
        assert_eq!(one, digest(&hash(&[[b"b", b"2"], [b"a", b"1"]]), 11));
        for other in [
            hash(&[[b"a", b"2"], [b"b", b"1"]]),
            hash(&[[b"a", b"1"]]),
            hash(&[[b"a1", b""], [b"b", b"2"]]),
            vec![0, 1, b'a'],
            vec![2, 2, 1, b'a', 1, b'b'],
        ] {
            assert_ne!(one, digest(&other, 10));
        }
        assert_ne!(digest(&[0, 1, b'a'], 10), digest(&[0, 1, b'b'], 10));
        assert_ne!(digest(&[1, 2, 1, b'a', 1, b'b'], 10), digest(&[1, 2, 1, b'b', 1, b'a'], 10));
        assert_eq!(content_digest(b"no payload"), None);
    }
}
