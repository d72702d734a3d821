use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use causeway_core::Space;
use mysql_async::{Row, Value};
use xxhash_rust::xxh3::xxh3_128;

use super::connect::Link;
use super::row::{Form, literals, name, parts, state};
use super::sieve::{self, Within};
use super::table::{Column, Found, Table, Tables, find};
use crate::compare::{Page, Parts, Place, Reader, State, Stretch, Sum};
use crate::digest::{Ordered, Tag, Unordered, never_equal};
use crate::error::{Error, Result};
use crate::window::Window;

/// Keys of one page.
const PAGE: u64 = 1000;

/// Keys of one SELECT.
pub(super) const KEYS_AT_ONCE: usize = 500;

/// One site's server.
///
/// The tables themselves are keys of [`Space::Whole`]: there one differs that the other site lacks, or has with other
/// columns or another key, and one without a key whose rows differ.
pub(crate) struct MysqlReader {
    pub(super) link: Link,
    /// 0 for the link's first site.
    pub(super) site: usize,
    tables: Tables,
    /// Those that both sites have.
    pub(super) both: Arc<BTreeMap<String, Table>>,
    /// Those of this site, as they are here.
    pub(super) own: BTreeMap<String, Found>,
    /// Those that one has.
    all: Arc<BTreeSet<String>>,
    /// The last keys of pages.
    pages: Mutex<HashMap<(Space, u64), Bytes>>,
}

impl MysqlReader {
    pub(super) fn new(
        link: Link,
        site: usize,
        tables: Tables,
        both: Arc<BTreeMap<String, Table>>,
        all: Arc<BTreeSet<String>>,
        own: BTreeMap<String, Found>,
    ) -> MysqlReader {
        MysqlReader { link, site, tables, both, own, all, pages: Mutex::default() }
    }

    /// The table that `space` is.
    fn table(&self, space: &Space) -> Option<&Table> {
        let Space::Table(name) = space else { return None };
        self.both.get(std::str::from_utf8(name).ok()?)
    }

    pub(super) fn unknown(&self, space: &Space) -> Error {
        self.link.site.failed("read rows", format!("{space:?} is no table of both sites"))
    }

    /// A row's cells.
    pub(super) fn cells(&self, table: &Table, row: Row) -> Result<Vec<Value>> {
        let cells = row.unwrap();
        match cells.len() == table.columns.len() {
            true => Ok(cells),
            false => Err(self.link.site.failed("read rows", "other columns came than were asked for")),
        }
    }

    /// What each of `names` is to `of`; `None`: there is no such row.
    async fn each<T: Clone>(
        &self,
        table: &Table,
        names: &[Bytes],
        of: impl Fn(&[Value]) -> T,
    ) -> Result<Vec<Option<T>>> {
        let is_text = table.key_columns().any(|column| column.form == Form::Text);
        let mut found = HashMap::new();
        for cells in self.rows(table, names).await? {
            found.insert(row_name(table, &cells), of(&cells));
        }
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let mut one = found.get(name).cloned();
            // What the collation takes for the same key is spelt in another way here.
            if one.is_none() && is_text && !found.is_empty() {
                one = self.rows(table, std::slice::from_ref(name)).await?.first().map(|cells| of(cells));
            }
            all.push(one);
        }
        Ok(all)
    }

    /// Sums of a stretch: of the whole table where it has no key.
    async fn sum_of(&self, table: &Table, within: Within<'_>) -> Result<Sum> {
        let rows = self.link.query(&sieve::sum(table, self.site, within), "compare rows").await?;
        let cell =
            |n: usize| rows.first().and_then(|row| row.get_opt::<String, _>(n)?.ok()).unwrap_or_default();
        let (count, counted) = (cell(0), cell(1));
        // A text that is too long for the server is none.
        let digest = match count == counted && !count.is_empty() {
            true => xxh3_128(format!("{count}/{}/{}", cell(2), cell(3)).as_bytes()),
            false => never_equal(),
        };
        Ok(Sum { keys: count.parse().unwrap_or(0), digest })
    }

    /// What each of these tables is made of: its definition, and its rows where they have no names.
    async fn definitions(&self, names: &[Bytes]) -> Result<Vec<Option<Parts>>> {
        let found = find(&self.link, &self.tables).await?;
        let mut definitions = Vec::with_capacity(names.len());
        for name in names {
            let name = std::str::from_utf8(name).unwrap_or_default();
            let mut parts = found.get(name).map(Found::parts);
            if let (Some(parts), Some(table)) = (&mut parts, self.both.get(name).filter(|t| t.key.is_empty()))
            {
                parts.insert("rows".to_owned(), self.sum_of(table, Within::default()).await?.digest);
            }
            definitions.push(parts);
        }
        Ok(definitions)
    }

    async fn tables(&self, names: &[Bytes]) -> Result<Vec<Option<State>>> {
        let state = |parts: Parts| {
            let mut digest = Ordered::new();
            for (name, part) in parts {
                digest.add(name.as_bytes());
                digest.add(&part.to_le_bytes());
            }
            State { what: "table", digest: digest.digest(Tag::Table, &Unordered::default()), expire_at: None }
        };
        Ok(self.definitions(names).await?.into_iter().map(|parts| parts.map(state)).collect())
    }

    /// The rows with these names, in any order.
    async fn rows(&self, table: &Table, names: &[Bytes]) -> Result<Vec<Vec<Value>>> {
        let mut found = Vec::new();
        for some in names.chunks(KEYS_AT_ONCE) {
            let keys: Vec<Vec<String>> = some.iter().filter_map(|name| literals(table, name)).collect();
            if keys.is_empty() {
                continue;
            }
            let rows = self.link.exec(&sieve::rows_of(table, self.site, &keys), (), "read rows").await?;
            for row in rows {
                found.push(self.cells(table, row)?);
            }
        }
        Ok(found)
    }

    /// Both ends of a stretch as SQL.
    fn ends(&self, table: &Table, stretch: &Stretch) -> Result<[Option<Vec<String>>; 2]> {
        let end = |name: &Option<Bytes>| match name {
            None => Ok(None),
            Some(name) => match literals(table, name) {
                Some(key) => Ok(Some(key)),
                None => Err(self.link.site.failed("read rows", "a key that is none of its table")),
            },
        };
        Ok([end(&stretch.after)?, end(&stretch.to)?])
    }

    /// Keys behind `after`, in their order.
    async fn keys(&self, table: &Table, after: Option<&Bytes>, skip: u64, count: u64) -> Result<Vec<Bytes>> {
        let [after, _] = self.ends(table, &Stretch { after: after.cloned(), to: None })?;
        let sql = sieve::keys(table, self.site, after.as_deref(), skip, count);
        let rows = self.link.exec(&sql, (), "list keys").await?;
        Ok(rows.into_iter().map(|row| name(table, &row.unwrap().iter().collect::<Vec<_>>())).collect())
    }
}

impl Reader for MysqlReader {
    type Hint = ();

    async fn spaces(&self) -> Result<Vec<(Space, u64)>> {
        let keyed = self.both.iter().filter(|(_, table)| !table.key.is_empty());
        let rows =
            keyed.map(|(name, table)| (Space::Table(Bytes::from(name.clone())), table.rows[self.site]));
        Ok([(Space::Whole, 0)].into_iter().chain(rows).collect())
    }

    async fn page_by_time(
        &self,
        space: &Space,
        (column, window): (&str, Window),
        after: Option<&Bytes>,
    ) -> Result<Option<Vec<Bytes>>> {
        let Some(table) = self.table(space).filter(|table| !table.key.is_empty()) else { return Ok(None) };
        let is_it = |one: &&Column| one.name == column.to_lowercase() && one.form == Form::Time;
        let Some(column) = table.columns.iter().find(is_it) else { return Ok(None) };
        let [after, _] = self.ends(table, &Stretch { after: after.cloned(), to: None })?;
        let sql = sieve::keys_by_time(table, self.site, after.as_deref(), (column, window), PAGE);
        let rows = self.link.exec(&sql, (), "list keys by time").await?;
        let name_of = |row: Row| name(table, &row.unwrap().iter().collect::<Vec<_>>());
        Ok(Some(rows.into_iter().map(name_of).collect()))
    }

    async fn probe(&self) -> Result<Duration> {
        self.link.probe().await
    }

    fn hold(&self, is_held: bool) {
        self.link.pace.hold(is_held);
    }

    fn place(&self, space: &Space, name: &[u8]) -> Place {
        let Some(table) = self.table(space) else {
            let is_table = |name: &[u8]| std::str::from_utf8(name).is_ok_and(|name| self.all.contains(name));
            return match space {
                Space::Table(name) if is_table(name) => Place::Space,
                // The log names no table itself: one that differed is compared again.
                Space::Whole if is_table(name) => Place::Key,
                _ => Place::Outside,
            };
        };
        let mut columns = table.key_columns();
        let is_named = match (columns.next(), columns.next()) {
            // A text alone stands in the log as it is stored.
            (Some(column), None) => column.sites.iter().all(|at| at.is_utf8),
            _ => !table.key.is_empty() && literals(table, name).is_some(),
        };
        if is_named { Place::Key } else { Place::Space }
    }

    fn counts(&self, space: &Space) -> bool {
        *space != Space::Whole
    }

    async fn page(&self, space: &Space, cursor: u64) -> Result<Page> {
        if *space == Space::Whole {
            let names = self.all.iter().cloned().map(Bytes::from).collect();
            return Ok(Page { names, scanned: 0, next: None });
        }
        let table = self.table(space).ok_or_else(|| self.unknown(space))?;
        let pages = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let after = pages().remove(&(space.clone(), cursor));
        let names = self.keys(table, after.as_ref(), 0, PAGE).await?;
        let next = (names.len() as u64 == PAGE).then_some(cursor + 1);
        if let (Some(next), Some(last)) = (next, names.last()) {
            pages().insert((space.clone(), next), last.clone());
        }
        Ok(Page { scanned: names.len() as u64, names, next })
    }

    async fn look(&self, _: &Space, names: &[Bytes]) -> Result<Vec<()>> {
        Ok(vec![(); names.len()])
    }

    async fn read(&self, space: &Space, names: &[Bytes], _: &[()]) -> Result<Vec<Option<State>>> {
        if *space == Space::Whole {
            return self.tables(names).await;
        }
        let table = self.table(space).ok_or_else(|| self.unknown(space))?;
        self.each(table, names, |cells| state(table, cells)).await
    }

    async fn parts(&self, space: &Space, names: &[Bytes]) -> Result<Vec<Parts>> {
        let found = match self.table(space) {
            Some(table) => self.each(table, names, |cells| parts(table, cells)).await?,
            None => self.definitions(names).await?,
        };
        Ok(found.into_iter().map(Option::unwrap_or_default).collect())
    }

    async fn absent(&self, space: &Space, names: &[Bytes]) -> Result<Vec<usize>> {
        let states = self.read(space, names, &[]).await?;
        Ok((0..names.len()).filter(|&at| states.get(at).is_none_or(Option::is_none)).collect())
    }

    fn is_ordered(&self, space: &Space) -> bool {
        self.table(space).is_some_and(|table| table.is_ordered)
    }

    async fn key_behind(&self, space: &Space, after: Option<&Bytes>, keys: u64) -> Result<Option<Bytes>> {
        let table = self.table(space).ok_or_else(|| self.unknown(space))?;
        Ok(self.keys(table, after, keys.saturating_sub(1), 1).await?.pop())
    }

    async fn sum(&self, space: &Space, stretch: &Stretch) -> Result<Sum> {
        let table = self.table(space).ok_or_else(|| self.unknown(space))?;
        let [after, to] = self.ends(table, stretch)?;
        self.sum_of(table, Within { after: after.as_deref(), to: to.as_deref() }).await
    }

    async fn states(
        &self,
        space: &Space,
        stretch: &Stretch,
        keys_max: usize,
    ) -> Result<Option<Vec<(Bytes, State)>>> {
        let table = self.table(space).ok_or_else(|| self.unknown(space))?;
        let [after, to] = self.ends(table, stretch)?;
        let within = Within { after: after.as_deref(), to: to.as_deref() };
        let mut states = Vec::new();
        let take = |row| {
            let cells = self.cells(table, row)?;
            states.push((row_name(table, &cells), state(table, &cells)));
            Ok(())
        };
        self.link.each(&sieve::rows(table, self.site, within, keys_max + 1), "read rows", take).await?;
        Ok((states.len() <= keys_max).then_some(states))
    }
}

fn row_name(table: &Table, cells: &[Value]) -> Bytes {
    let key: Vec<&Value> = table.key.iter().filter_map(|&index| cells.get(index)).collect();
    name(table, &key)
}
