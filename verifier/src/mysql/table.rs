//! The tables of a channel, as both sites have them.

use std::collections::{BTreeMap, BTreeSet};

use causeway_core::Pattern;
use mysql_async::Row;

use super::connect::Link;
use super::row::Form;
use crate::compare::Parts;
use crate::digest::{Ordered, Tag, Unordered};
use crate::error::Result;

/// Which tables a channel carries: patterns of `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Patterns of which a table matches at least one.
    pub(crate) include: Vec<Pattern>,
    /// Patterns of which it matches none.
    pub(crate) exclude: Vec<Pattern>,
}

/// Databases of the servers themselves, and ours.
const NEVER: [&str; 5] = ["mysql", "information_schema", "performance_schema", "sys", "causeway"];

impl Tables {
    fn carries(&self, schema: &str, table: &str) -> bool {
        let name = format!("{schema}.{table}");
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name.as_bytes()));
        !NEVER.contains(&schema) && any(&self.include) && !any(&self.exclude)
    }
}

/// A table at one site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    schema: String,
    table: String,
    pub(super) columns: Vec<FoundColumn>,
    /// Names of the primary key's columns, in its order; empty: it has none.
    key: Vec<String>,
    /// The name of the key's index.
    index: String,
    /// Rows, as the server guesses.
    rows: u64,
}

/// A column whose value does not follow from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundColumn {
    pub(super) name: String,
    /// In the words of `information_schema`.
    pub(super) data_type: String,
    /// Empty: it holds no text, or JSON.
    pub(super) charset: String,
    collation: String,
    nullable: bool,
    /// Of the primary key, or of the unique index that the server takes for it.
    is_of_key: bool,
}

impl Found {
    /// What its definition is made of, by name.
    pub(super) fn parts(&self) -> Parts {
        let mut key = Ordered::new();
        self.key.iter().for_each(|column| key.add(column.to_lowercase().as_bytes()));
        let columns = self.columns.iter().map(|column| (format!("column {}", column.name.to_lowercase()), 1));
        let key = ("primary key".to_owned(), key.digest(Tag::Table, &Unordered::default()));
        columns.chain([key]).collect()
    }

    /// Its name as SQL.
    pub(super) fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }

    fn column(&self, name: &str) -> Option<&FoundColumn> {
        self.columns.iter().find(|column| column.name.to_lowercase() == name)
    }
}

/// All tables of `tables` at one site, by `schema.table`.
pub(super) async fn find(link: &Link, tables: &Tables) -> Result<BTreeMap<String, Found>> {
    let action = "look at the tables";
    let never = NEVER.map(|schema| format!("'{schema}'")).join(", ");
    let names = format!(
        "SELECT table_schema, table_name, COALESCE(table_rows, 0) FROM information_schema.tables \
         WHERE table_type NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE') AND table_schema NOT IN ({never})"
    );
    let columns = format!(
        "SELECT table_schema, table_name, column_name, data_type, COALESCE(character_set_name, ''), \
         COALESCE(collation_name, ''), is_nullable, extra, column_key FROM information_schema.columns \
         WHERE table_schema NOT IN ({never}) ORDER BY table_schema, table_name, ordinal_position"
    );
    let keys = format!(
        "SELECT table_schema, table_name, index_name, column_name FROM information_schema.statistics \
         WHERE non_unique = 0 AND column_name IS NOT NULL AND table_schema NOT IN ({never}) \
         ORDER BY table_schema, table_name, index_name, seq_in_index"
    );
    let mut found = BTreeMap::new();
    for row in link.query(&names, action).await? {
        let (schema, table) = (text(&row, 0), text(&row, 1));
        if tables.carries(&schema, &table) {
            let rows = text(&row, 2).parse().unwrap_or(0);
            found.insert(format!("{schema}.{table}"), Found { schema, table, rows, ..Found::default() });
        }
    }
    for row in link.query(&columns, action).await? {
        let Some(table) = found.get_mut(&format!("{}.{}", text(&row, 0), text(&row, 1))) else { continue };
        // `DEFAULT_GENERATED` is MySQL's word for a default that is an expression.
        if text(&row, 7).to_uppercase().split(' ').any(|word| word == "GENERATED") {
            continue;
        }
        table.columns.push(FoundColumn {
            name: text(&row, 2),
            data_type: text(&row, 3).to_lowercase(),
            charset: text(&row, 4),
            collation: text(&row, 5),
            nullable: text(&row, 6) == "YES",
            is_of_key: text(&row, 8) == "PRI",
        });
    }
    let mut indexes: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for row in link.query(&keys, action).await? {
        let of_table = indexes.entry(format!("{}.{}", text(&row, 0), text(&row, 1))).or_default();
        of_table.entry(text(&row, 2)).or_default().push(text(&row, 3));
    }
    for (name, table) in &mut found {
        let of_table = indexes.remove(name).unwrap_or_default();
        (table.index, table.key) = key_of(of_table, &table.columns).unwrap_or_default();
    }
    Ok(found)
}

/// The primary key among unique indexes, with its columns: `PRIMARY`, or the one index of just those columns that the server
/// takes for one's.
fn key_of(
    mut indexes: BTreeMap<String, Vec<String>>,
    columns: &[FoundColumn],
) -> Option<(String, Vec<String>)> {
    if let Some(primary) = indexes.remove_entry("PRIMARY") {
        return Some(primary);
    }
    let of_key: BTreeSet<&str> =
        columns.iter().filter(|column| column.is_of_key).map(|column| column.name.as_str()).collect();
    let mut taken = indexes
        .into_iter()
        .filter(|(_, columns)| columns.iter().map(String::as_str).collect::<BTreeSet<_>>() == of_key);
    let key = taken.next()?;
    taken.next().is_none().then_some(key)
}

fn text(row: &Row, index: usize) -> String {
    row.get_opt::<String, _>(index).and_then(std::result::Result::ok).unwrap_or_default()
}

/// A table that both sites have, so far as it is the same.
#[derive(Debug)]
pub(super) struct Table {
    /// As SQL, at each site, read by its key: what a server guesses of its rows may send it elsewhere.
    pub(super) sql: [String; 2],
    /// Columns that both have and that hold something of their own, in the order of their names.
    pub(super) columns: Vec<Column>,
    /// Of the primary key, in its order: indices of `columns`. Empty: it has none, or another one at each site.
    pub(super) key: Vec<usize>,
    /// The key's order is the same at both sites.
    pub(super) is_ordered: bool,
    /// Rows, as the servers guess.
    pub(super) rows: [u64; 2],
}

/// A column of both.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// In lower case, as names mean the same in any.
    pub(super) name: String,
    pub(super) form: Form,
    /// What it is at each site.
    pub(super) sites: [ColumnAt; 2],
}

/// A column at one site.
#[derive(Debug, Clone)]
pub(super) struct ColumnAt {
    /// Its name, as SQL.
    pub(super) sql: String,
    /// Its values may be megabytes long.
    pub(super) is_long: bool,
    /// The bytes stored are UTF-8, or no text.
    pub(super) is_utf8: bool,
    pub(super) nullable: bool,
}

/// What both have of a table.
pub(super) fn common(sites: [&Found; 2]) -> Table {
    let [first, second] = sites;
    let names: BTreeSet<String> = first.columns.iter().map(|column| column.name.to_lowercase()).collect();
    let pair = |name: &String| Some([first.column(name)?, second.column(name)?]);
    let columns: Vec<Column> = names
        .iter()
        .filter_map(|name| {
            let both = pair(name)?;
            Some(Column {
                name: name.clone(),
                form: Form::of(both.map(|column| column.data_type.as_str())),
                sites: both.map(FoundColumn::at),
            })
        })
        .collect();
    let key = |found: &Found| -> Option<Vec<usize>> {
        let place = |key: &String| columns.iter().position(|column| column.name == key.to_lowercase());
        found.key.iter().map(place).collect()
    };
    let key = match (key(first), key(second)) {
        (Some(one), Some(other)) if one == other => one,
        _ => Vec::new(),
    };
    let is_ordered = key.iter().filter_map(|&index| pair(&columns.get(index)?.name)).all(|[one, other]| {
        one.collation == other.collation && Form::of([&one.data_type, &other.data_type]) != Form::Label
    });
    let sql = |found: &Found| {
        let name = found.sql_name();
        if key.is_empty() { name } else { format!("{name} FORCE INDEX ({})", quoted(&found.index)) }
    };
    Table {
        sql: sites.map(sql),
        is_ordered: is_ordered && !key.is_empty(),
        rows: sites.map(|found| found.rows),
        columns,
        key,
    }
}

impl FoundColumn {
    /// Whether what is stored are letters of a charset.
    pub(super) fn is_text(&self) -> bool {
        !self.charset.is_empty()
    }

    fn at(&self) -> ColumnAt {
        ColumnAt {
            sql: quoted(&self.name),
            is_long: [
                "tinyblob",
                "blob",
                "mediumblob",
                "longblob",
                "tinytext",
                "text",
                "mediumtext",
                "longtext",
                "json",
            ]
            .contains(&self.data_type.as_str()),
            is_utf8: matches!(self.charset.as_str(), "" | "utf8mb4" | "utf8mb3" | "utf8" | "ascii"),
            nullable: self.nullable,
        }
    }
}

pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

impl Table {
    /// All columns, as SQL at that site.
    pub(super) fn column_list(&self, site: usize) -> String {
        list(self.columns.iter(), site)
    }

    /// Those of the primary key.
    pub(super) fn key_list(&self, site: usize) -> String {
        list(self.key_columns(), site)
    }

    pub(super) fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().filter_map(|&index| self.columns.get(index))
    }
}

fn list<'a>(columns: impl Iterator<Item = &'a Column>, site: usize) -> String {
    columns.map(|column| column.at(site).sql.as_str()).collect::<Vec<_>>().join(", ")
}

impl Column {
    pub(super) fn at(&self, site: usize) -> &ColumnAt {
        let [first, second] = &self.sites;
        if site == 0 { first } else { second }
    }
}

#[cfg(test)]
impl Found {
    /// With these columns: name, type, charset.
    pub(super) fn of(schema: &str, table: &str, columns: &[(&str, &str, &str)]) -> Found {
        let column = |(name, data_type, charset): &(&str, &str, &str)| FoundColumn {
            name: (*name).to_owned(),
            data_type: (*data_type).to_owned(),
            charset: (*charset).to_owned(),
            collation: String::new(),
            nullable: true,
            is_of_key: false,
        };
        let columns = columns.iter().map(column).collect();
        Found { schema: schema.to_owned(), table: table.to_owned(), columns, ..Found::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(columns: &[(&str, &str)], key: &[&str]) -> Found {
        let column = |(name, data_type): &(&str, &str)| FoundColumn {
            name: (*name).to_owned(),
            data_type: (*data_type).to_owned(),
            charset: String::new(),
            collation: String::new(),
            nullable: false,
            is_of_key: key.contains(name),
        };
        Found {
            schema: "shop".into(),
            table: "t`".into(),
            columns: columns.iter().map(column).collect(),
            key: key.iter().map(|key| (*key).to_owned()).collect(),
            index: "PRIMARY".into(),
            rows: 7,
        }
    }

    /// FF10.
    #[test]
    fn names_mean_the_same_in_any_case_and_order() {
        let (a, b) = (
            found(&[("Id", "int"), ("V", "text")], &["Id"]),
            found(&[("v", "text"), ("ID", "int")], &["ID"]),
        );
        assert_eq!(a.parts(), b.parts());
        let table = common([&a, &b]);
        assert_eq!(
            (table.column_list(0).as_str(), table.column_list(1).as_str()),
            ("`Id`, `V`", "`ID`, `v`")
        );
        assert_eq!(
            (table.key_list(1).as_str(), table.sql[0].as_str(), table.is_ordered),
            ("`ID`", "`shop`.`t``` FORCE INDEX (`PRIMARY`)", true)
        );
    }

    #[test]
    fn what_tables_have_not_in_common_is_another_definition() {
        let a = found(&[("id", "int"), ("v", "text")], &["id"]);
        for b in [found(&[("id", "int")], &["id"]), found(&[("id", "int"), ("v", "text")], &["v"])] {
            assert_ne!(a.parts(), b.parts());
        }
        let other_key = common([&a, &found(&[("id", "int"), ("v", "text")], &["v"])]);
        assert!(other_key.key.is_empty() && !other_key.is_ordered && other_key.columns.len() == 2);
    }

    #[test]
    fn a_unique_index_is_a_key_where_there_is_no_other() {
        let table = found(&[("a", "int"), ("b", "int"), ("c", "int")], &["a", "b"]);
        let indexes = |all: &[(&str, &[&str])]| {
            let index = |(name, columns): &(&str, &[&str])| {
                ((*name).to_owned(), columns.iter().map(|column| (*column).to_owned()).collect())
            };
            key_of(all.iter().map(index).collect(), &table.columns).map(|(name, _)| name)
        };
        assert_eq!(indexes(&[("PRIMARY", &["c"]), ("u", &["a", "b"])]), Some("PRIMARY".into()));
        assert_eq!(indexes(&[("u", &["b", "a"]), ("v", &["c"])]), Some("u".into()));
        assert_eq!(indexes(&[("v", &["c"])]), None);
        assert_eq!(indexes(&[("u", &["b", "a"]), ("w", &["a", "b"])]), None, "which of the two is not told");
    }

    #[test]
    fn what_is_carried_is_what_the_patterns_take() {
        let tables = Tables { include: vec![Pattern::new("*.*")], exclude: vec![Pattern::new("shop.tmp_*")] };
        assert!(
            tables.carries("shop", "t")
                && !tables.carries("shop", "tmp_1")
                && !tables.carries("mysql", "user")
        );
    }
}
