//! The one way through a value's bytes: [`Walk::step`] takes one element at a time, as soon as all its
//! bytes are there, and decodes nothing that nobody asks for. Finding a value's end, cutting it into
//! parts and rewriting a DUMP payload are all done by stepping through it.
//!
//! Sources: `rdbSaveObject` of Redis 7.0 to 8.0 and of Valkey 9.0.

use super::packed::Packing;
use super::read::{Cursor, Length, Parse, Raw, Stop, StreamId};

/// The type byte of a plain string value.
pub(super) const TYPE_STRING: u8 = 0;

/// Valkey counts its own RDB versions from here; Redis's type 22 has another meaning from here on.
pub(super) const VALKEY_VERSION_MIN: u16 = 80;

/// Redis 7.4, whose release candidate had a type 22 of its own, wrote this version first.
const FIELD_EXPIRY_VERSION_MIN: u16 = 12;

/// What the elements of a whole-blob value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    List,
    Set,
    Zset,
    Hash,
    /// Field, value, expiry (0: none) in turns.
    HashExpiring,
}

/// Where a hash's field expiries stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldExpiry {
    None,
    /// Before the field, absolute ms (Redis 7.4's release candidate).
    Absolute,
    /// Before the field, counted from one less than the smallest of the hash (Redis 7.4).
    Relative,
    /// After the value, absolute ms, -1 for none (Valkey 9).
    After,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Text,
    List,
    Set,
    ZsetText,
    Zset,
    Hash(FieldExpiry),
    /// `smallest`: the smallest field expiry (8 bytes) stands before the blob.
    Blob {
        packing: Packing,
        content: Content,
        smallest: bool,
    },
    /// `containers`: each node begins with its kind.
    Quicklist {
        containers: bool,
    },
    /// 1..=3, growing with Redis 5.0, 7.0, 7.2.
    Stream(u8),
    Module,
}

/// What a stream holds besides entries and groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamMeta {
    pub(super) length: u64,
    pub(super) last: StreamId,
    /// The largest deleted id. Redis 7.0 brought this and the next; of an older stream it takes 0-0.
    pub(super) deleted: StreamId,
    /// Entries ever added; of an older stream, those it has.
    pub(super) added: u64,
}

/// One step's finding.
#[derive(Clone, Copy, Debug)]
pub(super) enum Element<'a> {
    /// How many elements the value claims to have; not to be trusted.
    Head(u64),
    Text(Raw<'a>),
    Item(Raw<'a>),
    /// A packed run of list items.
    Node(Packing, Raw<'a>),
    Member(Raw<'a>),
    Scored(Raw<'a>, f64),
    /// The expiry in ms since 1970.
    Field(Raw<'a>, Raw<'a>, Option<u64>),
    Blob(Packing, Content, Raw<'a>),
    /// A listpack of stream entries; their ids are relative to the given one.
    Entries(StreamId, Raw<'a>),
    StreamMeta(StreamMeta),
    /// `read`: entries read, where known.
    Group {
        name: Raw<'a>,
        last: StreamId,
        read: Option<u64>,
    },
    /// An entry of the group's pending list, in order of id. Its consumer comes later.
    Pending {
        id: StreamId,
        delivered_ms: u64,
        deliveries: u64,
    },
    Consumer(Raw<'a>),
    /// A pending entry of the last consumer.
    Owned(StreamId),
    /// Name and version of the module type that a module value is of.
    Module(u64),
    /// Bytes that mean nothing to us.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Items,
    Entries,
    Meta,
    GroupCount,
    Group,
    Pending,
    ConsumerCount,
    Consumer,
    Owned,
    Done,
}

/// A place inside a value.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    shape: Shape,
    phase: Phase,
    /// Elements left of the innermost count.
    left: u64,
    groups: u64,
    consumers: u64,
    /// The smallest field expiry.
    smallest: u64,
}

impl Walk {
    /// The beginning of a value of type `kind` in an RDB of `version`; `None` for a type that is unknown
    /// and therefore can't even be skipped.
    pub(super) fn new(kind: u8, version: u16) -> Option<Walk> {
        let blob = |packing, content| Shape::Blob { packing, content, smallest: false };
        // Valkey does not write a 22 under the old header that it sends to a replica that doesn't say who
        // it is: such a full sync fails at its side ("Can't store key in RDB version 11", 9.1.2).
        let of_valkey = version >= VALKEY_VERSION_MIN;
        let of_redis = version >= FIELD_EXPIRY_VERSION_MIN && !of_valkey;
        let shape = match kind {
            TYPE_STRING => Shape::Text,
            1 => Shape::List,
            2 => Shape::Set,
            3 => Shape::ZsetText,
            4 => Shape::Hash(FieldExpiry::None),
            5 => Shape::Zset,
            7 => Shape::Module,
            9 => blob(Packing::Zipmap, Content::Hash),
            10 => blob(Packing::Ziplist, Content::List),
            11 => blob(Packing::Intset, Content::Set),
            12 => blob(Packing::Ziplist, Content::Zset),
            13 => blob(Packing::Ziplist, Content::Hash),
            14 => Shape::Quicklist { containers: false },
            15 => Shape::Stream(1),
            16 => blob(Packing::Listpack, Content::Hash),
            17 => blob(Packing::Listpack, Content::Zset),
            18 => Shape::Quicklist { containers: true },
            19 => Shape::Stream(2),
            20 => blob(Packing::Listpack, Content::Set),
            21 => Shape::Stream(3),
            22 if of_valkey => Shape::Hash(FieldExpiry::After),
            22 if of_redis => Shape::Hash(FieldExpiry::Absolute),
            23 if of_redis => blob(Packing::Listpack, Content::HashExpiring),
            24 if of_redis => Shape::Hash(FieldExpiry::Relative),
            25 if of_redis => {
                Shape::Blob { packing: Packing::Listpack, content: Content::HashExpiring, smallest: true }
            }
            _ => return None,
        };
        Some(Walk { shape, phase: Phase::Start, left: 0, groups: 0, consumers: 0, smallest: 0 })
    }

    pub(super) fn done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Whether the value is a module's, which only that module can read.
    pub(super) fn of_module(&self) -> bool {
        matches!(self.shape, Shape::Module)
    }

    pub(super) fn of_stream(&self) -> bool {
        matches!(self.shape, Shape::Stream(_))
    }

    /// Takes the next element from the beginning of `bytes`; gives it and its length.
    ///
    /// # Errors
    ///
    /// [`Stop::Short`]: nothing was taken, call again with more bytes. After [`Stop::Bad`] or when
    /// [`done`](Self::done), don't call again.
    pub(super) fn step<'a>(&mut self, bytes: &'a [u8]) -> Parse<(Element<'a>, usize)> {
        let mut cursor = Cursor::new(bytes);
        // Only what is taken whole may change the place.
        let before = (self.phase, self.left, self.groups, self.consumers, self.smallest);
        match self.element(&mut cursor) {
            Ok(element) => Ok((element, cursor.at())),
            Err(stop) => {
                (self.phase, self.left, self.groups, self.consumers, self.smallest) = before;
                Err(stop)
            }
        }
    }

    fn element<'a>(&mut self, cursor: &mut Cursor<'a>) -> Parse<Element<'a>> {
        match (self.phase, self.shape) {
            (Phase::Done, _) => Err(Stop::bad("the value has ended already")),
            (Phase::Start, _) => self.start(cursor),
            (_, Shape::Stream(form)) => self.stream(cursor, form),
            (_, Shape::Module) => self.module(cursor),
            (_, shape) => {
                let element = self.item(cursor, shape)?;
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.phase = Phase::Done;
                }
                Ok(element)
            }
        }
    }

    fn start<'a>(&mut self, cursor: &mut Cursor<'a>) -> Parse<Element<'a>> {
        match self.shape {
            Shape::Text => {
                self.phase = Phase::Done;
                return Ok(Element::Text(cursor.string()?));
            }
            Shape::Blob { packing, content, smallest } => {
                if smallest {
                    cursor.u64_le()?;
                }
                self.phase = Phase::Done;
                return Ok(Element::Blob(packing, content, cursor.string()?));
            }
            Shape::Module => {
                self.phase = Phase::Items;
                return Ok(Element::Module(cursor.count()?));
            }
            Shape::Hash(FieldExpiry::Relative) => self.smallest = cursor.u64_le()?,
            _ => {}
        }
        self.left = cursor.count()?;
        self.phase = match self.shape {
            Shape::Stream(_) if self.left == 0 => Phase::Meta,
            Shape::Stream(_) => Phase::Entries,
            _ if self.left == 0 => Phase::Done,
            _ => Phase::Items,
        };
        Ok(Element::Head(self.left))
    }

    fn item<'a>(&mut self, cursor: &mut Cursor<'a>, shape: Shape) -> Parse<Element<'a>> {
        Ok(match shape {
            Shape::List => Element::Item(cursor.string()?),
            Shape::Set => Element::Member(cursor.string()?),
            Shape::ZsetText => Element::Scored(cursor.string()?, cursor.double_text()?),
            Shape::Zset => Element::Scored(cursor.string()?, f64::from_le_bytes(cursor.array()?)),
            Shape::Quicklist { containers: false } => Element::Node(Packing::Ziplist, cursor.string()?),
            Shape::Quicklist { containers: true } => match cursor.count()? {
                1 => Element::Item(cursor.string()?),
                2 => Element::Node(Packing::Listpack, cursor.string()?),
                _ => return Err(Stop::bad("a list node of an unknown kind")),
            },
            Shape::Hash(expiry) => {
                let mut at = match expiry {
                    FieldExpiry::None | FieldExpiry::After => None,
                    FieldExpiry::Absolute => Some(cursor.count()?).filter(|&ms| ms != 0),
                    FieldExpiry::Relative => match cursor.count()? {
                        0 => None,
                        from => Some(from.wrapping_add(self.smallest).wrapping_sub(1)),
                    },
                };
                let (field, value) = (cursor.string()?, cursor.string()?);
                if expiry == FieldExpiry::After {
                    at = Some(cursor.u64_le()?).filter(|&ms| ms != u64::MAX);
                }
                Element::Field(field, value, at)
            }
            Shape::Text | Shape::Blob { .. } | Shape::Stream(_) | Shape::Module => Element::Nothing,
        })
    }

    fn stream<'a>(&mut self, cursor: &mut Cursor<'a>, form: u8) -> Parse<Element<'a>> {
        match self.phase {
            Phase::Entries => {
                let Raw::Plain(id) = cursor.string()? else {
                    return Err(Stop::bad("a stream node's id is no plain string"));
                };
                let base = match id.len() {
                    16 => Cursor::new(id).stream_id()?,
                    _ => return Err(Stop::bad("a stream node's id is not 16 bytes long")),
                };
                let entries = cursor.string()?;
                self.left -= 1;
                if self.left == 0 {
                    self.phase = Phase::Meta;
                }
                Ok(Element::Entries(base, entries))
            }
            Phase::Meta => {
                let (length, last) = (cursor.count()?, cursor.stream_id_counts()?);
                let (mut deleted, mut added) = (StreamId::default(), length);
                if form >= 2 {
                    cursor.stream_id_counts()?; // the first entry's id follows from the entries
                    (deleted, added) = (cursor.stream_id_counts()?, cursor.count()?);
                }
                self.phase = Phase::GroupCount;
                Ok(Element::StreamMeta(StreamMeta { length, last, deleted, added }))
            }
            Phase::GroupCount => {
                self.groups = cursor.count()?;
                self.next_group();
                Ok(Element::Nothing)
            }
            Phase::Group => {
                let (name, last) = (cursor.string()?, cursor.stream_id_counts()?);
                // -1 (unknown) is written as the largest length.
                let read =
                    if form >= 2 { Some(cursor.count()?).filter(|&read| read != u64::MAX) } else { None };
                self.left = cursor.count()?;
                self.groups -= 1;
                self.phase = if self.left == 0 { Phase::ConsumerCount } else { Phase::Pending };
                Ok(Element::Group { name, last, read })
            }
            Phase::Pending => {
                let (id, delivered_ms, deliveries) = (cursor.stream_id()?, cursor.u64_le()?, cursor.count()?);
                self.left -= 1;
                if self.left == 0 {
                    self.phase = Phase::ConsumerCount;
                }
                Ok(Element::Pending { id, delivered_ms, deliveries })
            }
            Phase::ConsumerCount => {
                self.consumers = cursor.count()?;
                self.next_consumer();
                Ok(Element::Nothing)
            }
            Phase::Consumer => {
                let name = cursor.string()?;
                cursor.u64_le()?; // seen
                if form >= 3 {
                    cursor.u64_le()?; // active
                }
                self.left = cursor.count()?;
                self.consumers -= 1;
                if self.left == 0 {
                    self.next_consumer();
                } else {
                    self.phase = Phase::Owned;
                }
                Ok(Element::Consumer(name))
            }
            Phase::Owned => {
                let id = cursor.stream_id()?;
                self.left -= 1;
                if self.left == 0 {
                    self.next_consumer();
                }
                Ok(Element::Owned(id))
            }
            Phase::Start | Phase::Items | Phase::Done => Err(Stop::bad("a stream's reading lost its place")),
        }
    }

    fn next_group(&mut self) {
        self.phase = if self.groups == 0 { Phase::Done } else { Phase::Group };
    }

    fn next_consumer(&mut self) {
        if self.consumers == 0 {
            self.next_group();
        } else {
            self.phase = Phase::Consumer;
        }
    }

    fn module<'a>(&mut self, cursor: &mut Cursor<'a>) -> Parse<Element<'a>> {
        if module_field(cursor)? {
            self.phase = Phase::Done;
        }
        Ok(Element::Nothing)
    }
}

/// Skips one field of a module's data, which names its kind so that others can; true at the end mark.
pub(super) fn module_field(cursor: &mut Cursor<'_>) -> Parse<bool> {
    match cursor.length()? {
        Length::Plain(0) => return Ok(true),
        Length::Plain(1 | 2) => _ = cursor.count()?,
        Length::Plain(3) => _ = cursor.take(4)?,
        Length::Plain(4) => _ = cursor.take(8)?,
        Length::Plain(5) => _ = cursor.string()?,
        _ => return Err(Stop::bad("a module's data of an unknown kind")),
    }
    Ok(false)
}

/// A module type's name out of its id: nine characters of six bits, then ten bits of version.
pub(super) fn module_name(id: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let letters = (0..9).map(|n| char::from(LETTERS[(id >> (58 - 6 * n) & 63) as usize]));
    format!("{} version {}", letters.collect::<String>(), id & 1023)
}
