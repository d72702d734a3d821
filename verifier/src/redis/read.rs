use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use redis::{Cmd, Pipeline, Value, cmd};

use super::canonical;
use super::link::{Lane, Link};
use super::open::Features;
use super::reply;
use super::streams::StreamDraft;
use crate::compare::{Page, Parts, Place, Reader, State};
use crate::digest::{Ordered, Tag, Unordered, never_equal};
use crate::error::Result;
use crate::filter::Scope;

/// Keys asked for by one SCAN.
pub(super) const SCAN_COUNT: usize = 1000;

/// Bytes of a string that are read at once with many others; a longer one is read on by itself.
pub(super) const STRING_PAGE: usize = 64 * 1024;

/// Elements of a value that are read at once with many others; a larger one is read on by itself.
pub(super) const ELEMENTS_PAGE: usize = 64;

/// The same two as commands say them: the last index of a page, and its size.
const LAST_BYTE: &[u8] = b"65535";
const LAST_ELEMENT: &[u8] = b"63";
const ELEMENTS: &[u8] = b"64";

/// What the replies of one pipeline shall take at most, judged by the ones before: SCAN names keys in the
/// order of their hashes, so what one page weighs, so does the next.
pub(super) const PIPELINE_BYTES: usize = 4 << 20;

/// What kind of value a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    String,
    List,
    Set,
    Zset,
    Hash,
    Stream,
    /// A module's, or one that came after this was written: its DUMP payload is compared.
    Other,
}

impl Kind {
    fn of(name: &[u8]) -> Kind {
        match name {
            b"none" => Kind::Absent,
            b"string" => Kind::String,
            b"list" => Kind::List,
            b"set" => Kind::Set,
            b"zset" => Kind::Zset,
            b"hash" => Kind::Hash,
            b"stream" => Kind::Stream,
            _ => Kind::Other,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Kind::Absent => "none",
            Kind::String => "string",
            Kind::List => "list",
            Kind::Set => "set",
            Kind::Zset => "zset",
            Kind::Hash => "hash",
            Kind::Stream => "stream",
            Kind::Other => "other",
        }
    }
}

/// One site's Redis.
pub(crate) struct RedisReader {
    pub(super) link: Link,
    pub(super) features: Features,
    scope: Scope,
    /// What a key's replies weighed, on average, in the last pipeline.
    key_bytes: AtomicUsize,
}

/// A value while it is put together from several rounds.
enum Draft {
    Done(&'static str, u128),
    /// A string's first page, which it fills.
    String(Vec<u8>),
    List(Ordered),
    Set(Unordered, u64),
    Zset(Unordered),
    /// Fields and values in turn, and from where to go on.
    Hash(Vec<Value>, u64),
    Stream(StreamDraft),
}

impl RedisReader {
    /// Reads through `link` what is in `scope`.
    pub(super) fn new(link: Link, features: Features, scope: Scope) -> Self {
        RedisReader { link, features, scope, key_bytes: AtomicUsize::new(PIPELINE_BYTES / 64) }
    }

    pub(super) fn db(space: &Space) -> Option<u32> {
        match space {
            Space::Db(db) => Some(*db),
            _ => None,
        }
    }

    /// How many keys go into one pipeline.
    fn pipeline_keys(&self) -> usize {
        let by_weight = PIPELINE_BYTES / self.key_bytes.load(Ordering::Relaxed).max(1);
        by_weight.min(self.link.pace.burst() / 2).clamp(8, SCAN_COUNT)
    }

    fn first_commands(&self, commands: &mut Pipeline, name: &Bytes, kind: Kind) {
        let name = name.as_ref();
        // With room for its parts from the start: a million keys make millions of these.
        let mut add = |parts: &[&[u8]]| {
            let mut command = Cmd::with_capacity(parts.len(), parts.iter().map(|part| part.len()).sum());
            parts.iter().for_each(|part| {
                command.arg(*part);
            });
            commands.add_command(command);
        };
        match kind {
            Kind::Absent => {}
            Kind::String => add(&[b"GETRANGE", name, b"0", LAST_BYTE]),
            Kind::List => add(&[b"LRANGE", name, b"0", LAST_ELEMENT]),
            Kind::Set => add(&[b"SSCAN", name, b"0", b"COUNT", ELEMENTS]),
            Kind::Zset => add(&[b"ZRANGE", name, b"0", LAST_ELEMENT, b"WITHSCORES"]),
            Kind::Hash => add(&[b"HSCAN", name, b"0", b"COUNT", ELEMENTS]),
            Kind::Stream => {
                add(&[b"XRANGE", name, b"-", b"+", b"COUNT", ELEMENTS]);
                add(&[b"XINFO", b"STREAM", name]);
                add(&[b"XINFO", b"GROUPS", name]);
            }
            Kind::Other => add(&[b"DUMP", name]),
        }
        add(&[if self.features.expire_time { b"PEXPIRETIME".as_slice() } else { b"PTTL" }, name]);
    }

    /// The first page of a value, from the replies to [`first_commands`](Self::first_commands).
    fn draft(&self, kind: Kind, replies: &mut impl Iterator<Item = Value>) -> Result<Option<Draft>> {
        const ACTION: &str = "read values";
        let mut next = || self.link.accept(replies.next().unwrap_or(Value::Nil), ACTION);
        let draft = match kind {
            Kind::Absent => None,
            Kind::String => next()?.and_then(|value| match value {
                Value::BulkString(bytes) if bytes.len() >= STRING_PAGE => Some(Draft::String(bytes)),
                Value::BulkString(bytes) => {
                    let (tag, digest) = canonical::text(&bytes);
                    let what = if tag == Tag::HyperLogLog { "hyperloglog" } else { kind.what() };
                    Some(Draft::Done(what, digest))
                }
                _ => None,
            }),
            Kind::List => next()?.and_then(reply::list).map(|items| {
                let mut all = Ordered::new();
                items.iter().filter_map(reply::bytes).for_each(|item| all.add(item));
                Draft::List(all)
            }),
            Kind::Set => next()?.and_then(reply::scanned).map(|(cursor, items)| {
                let mut all = Unordered::default();
                items.iter().filter_map(reply::bytes).for_each(|item| all.add(item));
                Draft::Set(all, cursor)
            }),
            Kind::Zset => next()?.and_then(reply::list).map(|items| {
                let mut all = Unordered::default();
                super::rest::add_scored(&mut all, &items);
                Draft::Zset(all)
            }),
            Kind::Hash => next()?.and_then(reply::scanned).map(|(cursor, items)| Draft::Hash(items, cursor)),
            Kind::Stream => {
                let (entries, info, groups) = (next()?, next()?, next()?);
                StreamDraft::new(entries, info, groups, self.features.stream_counters).map(Draft::Stream)
            }
            Kind::Other => next()?.and_then(|value| match value {
                // The version of the format and a checksum stand at its end; they are no content.
                Value::BulkString(bytes) => {
                    let mut all = Ordered::new();
                    all.add_bytes(bytes.get(..bytes.len().saturating_sub(10)).unwrap_or_default());
                    Some(Draft::Done(kind.what(), all.digest(Tag::Other, &Unordered::default())))
                }
                _ => None,
            }),
        };
        Ok(draft)
    }

    async fn read_some(&self, db: u32, names: &[Bytes], kinds: &[Kind]) -> Result<Vec<Option<State>>> {
        let mut commands = Pipeline::with_capacity(names.len() * 2 + 1);
        if !self.features.expire_time {
            commands.add_command(cmd("TIME"));
        }
        for (name, kind) in names.iter().zip(kinds) {
            self.first_commands(&mut commands, name, *kind);
        }
        let replies = self.link.send(db, Lane::Values, commands, "read values").await?;
        let weight: usize = replies.iter().map(reply::weight).sum();
        self.key_bytes.store((weight / names.len().max(1)).max(1), Ordering::Relaxed);

        let mut replies = replies.into_iter();
        let now = match self.features.expire_time {
            true => 0,
            false => server_time(self.link.accept(replies.next().unwrap_or(Value::Nil), "ask the time")?),
        };
        let mut expiries = Vec::with_capacity(names.len());
        let mut drafts = Vec::with_capacity(names.len());
        for kind in kinds {
            drafts.push(self.draft(*kind, &mut replies)?);
            let expiry = replies.next().unwrap_or(Value::Nil);
            let expiry = self.link.accept(expiry, "read expire-at times")?;
            expiries.push(expiry.as_ref().and_then(reply::number));
        }
        let digests = self.finish(db, names, drafts).await?;
        let states = kinds.iter().zip(digests).zip(expiries).map(|((kind, digest), expiry)| {
            let expire_at = match expiry {
                None | Some(-2) => return None,
                Some(-1) => None,
                Some(at) if self.features.expire_time => u64::try_from(at).ok(),
                Some(left) => u64::try_from(left).ok().map(|left| now + left),
            };
            let (what, digest) = digest.unwrap_or_else(|| (kind.what(), never_equal()));
            Some(State { what, digest, expire_at })
        });
        Ok(states.collect())
    }

    /// Brings the drafts to their ends: what many need in one round for all, what is large one by one.
    async fn finish(
        &self,
        db: u32,
        names: &[Bytes],
        mut drafts: Vec<Option<Draft>>,
    ) -> Result<Vec<Option<(&'static str, u128)>>> {
        let mut expiries = self.field_expiries(db, names, &drafts).await?;
        let mut streams: Vec<(&Bytes, &mut StreamDraft)> = Vec::new();
        for (name, draft) in names.iter().zip(&mut drafts) {
            if let Some(Draft::Stream(draft)) = draft {
                streams.push((name, draft));
            }
        }
        self.read_groups(db, &mut streams).await?;

        let mut digests = Vec::with_capacity(names.len());
        for (at, (name, draft)) in names.iter().zip(drafts).enumerate() {
            digests.push(match draft {
                None => None,
                Some(Draft::Done(what, digest)) => Some((what, digest)),
                Some(Draft::String(first)) => {
                    self.rest_of_string(db, name, &first).await?.map(|digest| ("string", digest))
                }
                Some(Draft::List(first)) => self.rest_of_list(db, name, first).await?.map(|d| ("list", d)),
                Some(Draft::Set(first, cursor)) => {
                    self.rest_of_set(db, name, first, cursor).await?.map(|digest| ("set", digest))
                }
                Some(Draft::Zset(first)) => self.rest_of_zset(db, name, first).await?.map(|d| ("zset", d)),
                Some(Draft::Hash(items, cursor)) => {
                    let expiries = expiries.remove(&at).unwrap_or_default();
                    let mut first = Unordered::default();
                    super::rest::add_fields(&mut first, &items, &expiries);
                    self.rest_of_hash(db, name, first, cursor).await?.map(|digest| ("hash", digest))
                }
                Some(Draft::Stream(draft)) => {
                    self.rest_of_stream(db, name, draft).await?.map(|digest| ("stream", digest))
                }
            });
        }
        Ok(digests)
    }

    /// When the fields of the hashes among `drafts` expire, by the draft's index.
    async fn field_expiries(
        &self,
        db: u32,
        names: &[Bytes],
        drafts: &[Option<Draft>],
    ) -> Result<BTreeMap<usize, Vec<Option<u64>>>> {
        let mut expiries = BTreeMap::new();
        if !self.features.field_expiry {
            return Ok(expiries);
        }
        let mut commands = Pipeline::new();
        let mut asked = Vec::new();
        for (at, (name, draft)) in names.iter().zip(drafts).enumerate() {
            if let Some(Draft::Hash(items, _)) = draft
                && !items.is_empty()
            {
                commands.add_command(super::rest::ask_field_expiries(name, items));
                asked.push(at);
            }
        }
        let replies = self.link.send(db, Lane::Values, commands, "read fields' expire-at times").await?;
        for (at, reply) in asked.into_iter().zip(replies) {
            let reply = self.link.accept(reply, "read fields' expire-at times")?;
            expiries.insert(at, super::rest::field_expiries(reply));
        }
        Ok(expiries)
    }

    /// The libraries of functions, by name, with what makes each up.
    async fn functions(&self) -> Result<BTreeMap<Bytes, State>> {
        let mut found = BTreeMap::new();
        // They are nobody's in particular: a check of one tenant's keys leaves them out.
        if !self.features.functions || self.scope.tenant.is_some() {
            return Ok(found);
        }
        let list = cmd("FUNCTION").arg("LIST").arg("WITHCODE").take();
        let list = self.link.list(0, Lane::Keys, list, "list functions").await?;
        for library in list.unwrap_or_default().into_iter().filter_map(reply::list) {
            let text = |name: &str| reply::named(&library, name).and_then(reply::bytes).unwrap_or_default();
            let mut all = Ordered::new();
            for part in ["library_name", "engine", "library_code"] {
                all.add(text(part));
            }
            let digest = all.digest(Tag::Function, &Unordered::default());
            let name = [b"function library ", text("library_name")].concat();
            found.insert(name.into(), State { what: "function", digest, expire_at: None });
        }
        Ok(found)
    }
}

/// The server's clock, in milliseconds since 1970, from a reply to TIME.
pub(super) fn server_time(reply: Option<Value>) -> u64 {
    let parts = reply.and_then(reply::list).unwrap_or_default();
    match parts.iter().map(reply::number).collect::<Vec<_>>().as_slice() {
        [Some(seconds), Some(micros)] => (seconds * 1000 + micros / 1000).max(0) as u64,
        _ => 0,
    }
}

/// Functions live in [`Space::Whole`], one pseudo-key a library; keys in [`Space::Db`].
impl Reader for RedisReader {
    type Hint = Kind;

    async fn probe(&self) -> Result<Duration> {
        self.link.probe().await
    }

    fn hold(&self, is_held: bool) {
        self.link.pace.hold(is_held);
    }

    fn place(&self, space: &Space, name: &[u8]) -> Place {
        match space {
            // The log names no function: one that differed is compared again.
            Space::Whole if !name.is_empty() => Place::Key,
            Space::Db(db) if self.scope.carries_db(*db) && self.scope.carries(name) => Place::Key,
            _ => Place::Outside,
        }
    }

    async fn spaces(&self) -> Result<Vec<(Space, u64)>> {
        let action = "list databases";
        let reply = self.link.ask(0, Lane::Keys, cmd("INFO").arg("keyspace").take(), action).await?;
        let reply = self.link.accept(reply, action)?;
        let text = reply.as_ref().and_then(reply::bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        let mut spaces: Vec<(Space, u64)> = text
            .lines()
            .filter_map(|line| {
                let (db, rest) = line.trim().strip_prefix("db")?.split_once(":keys=")?;
                let keys = rest.split(',').next()?.parse().ok()?;
                Some((db.parse().ok()?, keys))
            })
            .filter(|(db, _)| self.scope.carries_db(*db))
            .map(|(db, keys)| (Space::Db(db), keys))
            .collect();
        let functions = self.functions().await?.len() as u64;
        if functions > 0 {
            spaces.push((Space::Whole, functions));
        }
        Ok(spaces)
    }

    async fn page(&self, space: &Space, cursor: u64) -> Result<Page> {
        let Some(db) = Self::db(space) else {
            let names: Vec<Bytes> = self.functions().await?.into_keys().collect();
            return Ok(Page { scanned: names.len() as u64, names, next: None });
        };
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("COUNT").arg(SCAN_COUNT);
        if let Some(pattern) = self.scope.server_pattern() {
            scan.arg("MATCH").arg(pattern);
        }
        let action = "list keys";
        let reply = self.link.ask(db, Lane::Keys, scan, action).await?;
        let page = self.link.accept(reply, action)?.and_then(reply::scanned);
        let Some((next, keys)) = page else {
            return Err(self.link.site().failed(action, "the reply to SCAN is none that Redis gives"));
        };
        let scanned = keys.len().max(if self.scope.server_pattern().is_some() { SCAN_COUNT } else { 0 });
        let names = keys.into_iter().filter_map(|key| match key {
            Value::BulkString(name) if self.scope.carries(&name) => Some(Bytes::from(name)),
            _ => None,
        });
        Ok(Page { names: names.collect(), scanned: scanned as u64, next: (next != 0).then_some(next) })
    }

    async fn look(&self, space: &Space, names: &[Bytes]) -> Result<Vec<Kind>> {
        let Some(db) = Self::db(space) else { return Ok(vec![Kind::Other; names.len()]) };
        let mut kinds = Vec::with_capacity(names.len());
        for names in names.chunks(self.link.pace.burst().min(SCAN_COUNT)) {
            let mut commands = Pipeline::with_capacity(names.len());
            for name in names {
                let mut command = Cmd::with_capacity(2, name.len() + 4);
                command.arg("TYPE").arg(name.as_ref());
                commands.add_command(command);
            }
            for reply in self.link.send(db, Lane::Values, commands, "read types").await? {
                let reply = self.link.accept(reply, "read types")?;
                kinds.push(reply.as_ref().and_then(reply::bytes).map_or(Kind::Absent, Kind::of));
            }
        }
        Ok(kinds)
    }

    async fn read(&self, space: &Space, names: &[Bytes], hints: &[Kind]) -> Result<Vec<Option<State>>> {
        let Some(db) = Self::db(space) else {
            let functions = self.functions().await?;
            return Ok(names.iter().map(|name| functions.get(name).copied()).collect());
        };
        let mut states = Vec::with_capacity(names.len());
        while states.len() < names.len() {
            let from = states.len();
            let to = names.len().min(from + self.pipeline_keys());
            let (Some(names), Some(hints)) = (names.get(from..to), hints.get(from..to)) else { break };
            states.extend(self.read_some(db, names, hints).await?);
        }
        Ok(states)
    }

    async fn parts(&self, space: &Space, names: &[Bytes]) -> Result<Vec<Parts>> {
        let mut parts = vec![Parts::new(); names.len()];
        let Some(db) = Self::db(space) else { return Ok(parts) };
        let kinds = self.look(space, names).await?;
        for ((name, kind), parts) in names.iter().zip(kinds).zip(&mut parts) {
            *parts = self.elements(db, name, kind).await?;
        }
        Ok(parts)
    }

    async fn absent(&self, space: &Space, names: &[Bytes]) -> Result<Vec<usize>> {
        let action = "look for keys";
        let Some(db) = Self::db(space) else {
            let functions = self.functions().await?;
            return Ok((0..names.len()).filter(|&at| !functions.contains_key(&names[at])).collect());
        };
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut exists = cmd("EXISTS");
        names.iter().for_each(|name| {
            exists.arg(name.as_ref());
        });
        let reply = self.link.ask(db, Lane::Keys, exists, action).await?;
        if self.link.accept(reply, action)?.as_ref().and_then(reply::number) == Some(names.len() as i64) {
            return Ok(Vec::new());
        }
        let mut commands = Pipeline::with_capacity(names.len());
        for name in names {
            commands.add_command(cmd("EXISTS").arg(name.as_ref()).take());
        }
        let replies = self.link.send(db, Lane::Keys, commands, action).await?;
        let mut absent = Vec::new();
        for (at, reply) in replies.into_iter().enumerate() {
            if self.link.accept(reply, action)?.as_ref().and_then(reply::number) == Some(0) {
                absent.push(at);
            }
        }
        Ok(absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_is_as_large_as_it_is_taken_to_be() {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<usize>().unwrap();
        assert_eq!(text(LAST_BYTE) + 1, STRING_PAGE);
        assert_eq!(text(LAST_ELEMENT) + 1, ELEMENTS_PAGE);
        assert_eq!(text(ELEMENTS), ELEMENTS_PAGE);
    }

    #[test]
    fn what_changed_under_the_reader_equals_nothing() {
        assert_ne!(never_equal(), never_equal());
    }
}
