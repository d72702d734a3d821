//! The rest of values that did not fit into the first page. What is held is one page, and of a hash or set
//! that SCAN lists twice in places the hashes of its elements.

use std::collections::HashSet;

use redis::{Cmd, Value, cmd};
use xxhash_rust::xxh3::xxh3_128;

use super::canonical;
use super::link::Lane;
use super::read::{ELEMENTS_PAGE, RedisReader, STRING_PAGE};
use super::reply;
use crate::digest::{Ordered, Tag, Unordered};
use crate::error::Result;

const ACTION: &str = "read a large value";

/// What a page of a large value shall weigh.
const PAGE_BYTES: usize = 1 << 20;

/// The most elements that one command asks for: a server does nothing else meanwhile.
const PAGE_ELEMENTS_MAX: usize = 4096;

/// Elements of one value that can be told apart where SCAN lists some twice: 16 bytes and a bit each.
const DISTINCT_MAX: usize = 8_000_000;

/// Adds members and scores, in turn, of a reply to ZRANGE.
pub(super) fn add_scored(all: &mut Unordered, items: &[Value]) {
    each_scored(items, &[], &mut |element| all.add(element));
}

pub(super) fn each_scored(items: &[Value], _expiries: &[Option<u64>], count: &mut dyn FnMut(&[u8])) {
    let mut form = Vec::new();
    for pair in items.chunks_exact(2) {
        let [member, score] = pair else { continue };
        let Some(member) = reply::bytes(member) else { continue };
        canonical::scored(&mut form, member, score_of(score));
        count(&form);
    }
}

fn score_of(value: &Value) -> f64 {
    let text = reply::bytes(value).and_then(|bytes| std::str::from_utf8(bytes).ok());
    // Redis writes `inf` and `-inf`, which Rust reads.
    text.and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

/// Adds fields and values, in turn, of a reply to HSCAN; `expiries` has one for each field, or none at all.
pub(super) fn add_fields(all: &mut Unordered, items: &[Value], expiries: &[Option<u64>]) {
    each_field(items, expiries, &mut |element| all.add(element));
}

pub(super) fn each_member(items: &[Value], _expiries: &[Option<u64>], count: &mut dyn FnMut(&[u8])) {
    items.iter().filter_map(reply::bytes).for_each(count);
}

pub(super) fn each_field(items: &[Value], expiries: &[Option<u64>], count: &mut dyn FnMut(&[u8])) {
    let mut form = Vec::new();
    for (at, pair) in items.chunks_exact(2).enumerate() {
        let [field, value] = pair else { continue };
        let (Some(field), Some(value)) = (reply::bytes(field), reply::bytes(value)) else { continue };
        canonical::field(&mut form, field, value, expiries.get(at).copied().flatten());
        count(&form);
    }
}

/// Asks when the fields among `items` (fields and values in turn) expire.
pub(super) fn ask_field_expiries(name: &[u8], items: &[Value]) -> Cmd {
    let mut command = cmd("HPEXPIRETIME");
    command.arg(name).arg("FIELDS").arg(items.len() / 2);
    for pair in items.chunks_exact(2) {
        command.arg(pair.first().and_then(reply::bytes).unwrap_or_default());
    }
    command
}

/// The answer to it: milliseconds since 1970, `None`: never, or the field is gone.
pub(super) fn field_expiries(reply: Option<Value>) -> Vec<Option<u64>> {
    let items = reply.and_then(reply::list).unwrap_or_default();
    items.iter().map(|item| u64::try_from(reply::number(item)?).ok()).collect()
}

/// Elements to ask for next, after a page of `elements` that weighed `bytes`.
fn next_page(elements: usize, bytes: usize) -> usize {
    let each = bytes / elements.max(1);
    (PAGE_BYTES / each.max(1)).clamp(8, PAGE_ELEMENTS_MAX)
}

fn weight(items: &[Value]) -> usize {
    items.iter().map(reply::weight).sum()
}

/// Hands each element of a page over in its canonical form.
pub(super) type Each = fn(&[Value], &[Option<u64>], &mut dyn FnMut(&[u8]));

impl RedisReader {
    pub(super) async fn rest_of_string(&self, db: u32, name: &[u8], first: &[u8]) -> Result<Option<u128>> {
        let mut all = Ordered::new();
        all.add_bytes(first);
        let mut from = STRING_PAGE;
        loop {
            let page = cmd("GETRANGE").arg(name).arg(from).arg(from + PAGE_BYTES - 1).take();
            let page = self.link.ask(db, Lane::Values, page, ACTION).await?;
            let Some(page) = self.link.accept(page, ACTION)? else { return Ok(None) };
            let page = reply::bytes(&page).unwrap_or_default();
            all.add_bytes(page);
            from += PAGE_BYTES;
            if page.len() < PAGE_BYTES {
                return Ok(Some(all.digest(Tag::String, &Unordered::default())));
            }
        }
    }

    pub(super) async fn rest_of_list(&self, db: u32, name: &[u8], mut all: Ordered) -> Result<Option<u128>> {
        let mut more = all.count() as usize >= ELEMENTS_PAGE;
        let mut asked = ELEMENTS_PAGE;
        while more {
            let from = all.count();
            let page = cmd("LRANGE").arg(name).arg(from).arg(from + asked as u64 - 1).take();
            let Some(items) = self.link.list(db, Lane::Values, page, ACTION).await? else { return Ok(None) };
            items.iter().filter_map(reply::bytes).for_each(|item| all.add(item));
            more = items.len() >= asked;
            asked = next_page(items.len(), weight(&items));
        }
        Ok(Some(all.digest(Tag::List, &Unordered::default())))
    }

    pub(super) async fn rest_of_zset(
        &self,
        db: u32,
        name: &[u8],
        mut all: Unordered,
    ) -> Result<Option<u128>> {
        let mut more = all.count() as usize >= ELEMENTS_PAGE;
        let mut asked = ELEMENTS_PAGE;
        while more {
            let from = all.count();
            let page =
                cmd("ZRANGE").arg(name).arg(from).arg(from + asked as u64 - 1).arg("WITHSCORES").take();
            let Some(items) = self.link.list(db, Lane::Values, page, ACTION).await? else { return Ok(None) };
            add_scored(&mut all, &items);
            more = items.len() / 2 >= asked;
            asked = next_page(items.len() / 2, weight(&items));
        }
        Ok(Some(all.digest(Tag::Zset)))
    }

    pub(super) async fn rest_of_set(
        &self,
        db: u32,
        name: &[u8],
        first: Unordered,
        cursor: u64,
    ) -> Result<Option<u128>> {
        self.rest_by_scan(db, name, ["SSCAN", "SCARD"], (first, cursor), each_member, Tag::Set).await
    }

    pub(super) async fn rest_of_hash(
        &self,
        db: u32,
        name: &[u8],
        first: Unordered,
        cursor: u64,
    ) -> Result<Option<u128>> {
        self.rest_by_scan(db, name, ["HSCAN", "HLEN"], (first, cursor), each_field, Tag::Hash).await
    }

    /// Scans on from `first` and its cursor. A scan names an element twice if its table shrinks meanwhile:
    /// then there were more than the value has, and it is scanned again with every element's hash held.
    async fn rest_by_scan(
        &self,
        db: u32,
        name: &[u8],
        [scan, count]: [&str; 2],
        (first, cursor): (Unordered, u64),
        each: Each,
        tag: Tag,
    ) -> Result<Option<u128>> {
        if cursor == 0 {
            return Ok(Some(first.digest(tag)));
        }
        let mut all = first;
        let mut count_all = |element: &[u8]| {
            all.add(element);
            true
        };
        if !self.scan(db, name, scan, cursor, each, &mut count_all).await? {
            return Ok(None);
        }
        let count = self.link.ask(db, Lane::Values, cmd(count).arg(name).take(), ACTION).await?;
        let count = self.link.accept(count, ACTION)?.as_ref().and_then(reply::number).unwrap_or(0);
        if all.count() <= count.max(0) as u64 {
            return Ok(Some(all.digest(tag)));
        }
        let mut all = Unordered::default();
        let mut met = HashSet::new();
        let mut count_new = |element: &[u8]| {
            if met.insert(xxh3_128(element)) {
                all.add(element);
            }
            met.len() < DISTINCT_MAX
        };
        let whole = self.scan(db, name, scan, 0, each, &mut count_new).await?;
        Ok(whole.then(|| all.digest(tag)))
    }

    /// Scans from `cursor` to the end; `false` if the value is gone, is another, or `count` says stop.
    pub(super) async fn scan(
        &self,
        db: u32,
        name: &[u8],
        scan: &str,
        mut cursor: u64,
        each: Each,
        count: &mut (dyn FnMut(&[u8]) -> bool + Send),
    ) -> Result<bool> {
        let mut asked = ELEMENTS_PAGE;
        loop {
            let page = cmd(scan).arg(name).arg(cursor).arg("COUNT").arg(asked).take();
            let page = self.link.ask(db, Lane::Values, page, ACTION).await?;
            let Some((next, items)) = self.link.accept(page, ACTION)?.and_then(reply::scanned) else {
                return Ok(false);
            };
            let expiries = if scan == "HSCAN" && self.features.field_expiry && !items.is_empty() {
                let reply = self.link.ask(db, Lane::Values, ask_field_expiries(name, &items), ACTION).await?;
                field_expiries(self.link.accept(reply, ACTION)?)
            } else {
                Vec::new()
            };
            let mut go_on = true;
            each(&items, &expiries, &mut |element| go_on &= count(element));
            if !go_on {
                return Ok(false);
            }
            if next == 0 {
                return Ok(true);
            }
            cursor = next;
            if !items.is_empty() {
                asked = next_page(items.len(), weight(&items));
            }
        }
    }
}
