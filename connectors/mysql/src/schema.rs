//! What a server says of its tables.

use std::sync::Arc;

use bytes::Bytes;
use causeway_core::{Key, Result, Space};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};

use crate::config::Tables;
use crate::conn::{failed, in_time};
use crate::row::{Charsets, KeyKind, write_name, write_names};

/// A table of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    /// Of the primary key, in its order: indices of columns. Empty: it has none, and a row is what all of its columns hold
    /// ([`crate::content`]). A unique index without NULL is one to the server, and so in its binlog, where there is no other.
    pub(crate) key: Vec<usize>,
    /// Columns that it no longer has, as [`crate::ddl::gone`] tells.
    pub(crate) gone: Vec<String>,
    /// It has another unique index, so that a row can be in the way of one with another key.
    pub(crate) other_unique: bool,
    /// Rows, as the server guesses.
    pub(crate) rows: u64,
    /// How long one is, as the server guesses.
    pub(crate) row_bytes: usize,
    /// What kind of table it is, where it is no ordinary one of InnoDB.
    pub(crate) odd: Option<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// As `information_schema` names it: `varchar`, `bigint`.
    pub(crate) data_type: String,
    /// Of text.
    pub(crate) charset: Option<Arc<str>>,
    pub(crate) collation: Option<String>,
    /// Its value follows from others, and is not written.
    pub(crate) generated: bool,
}

impl Table {
    /// `schema.name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// The same as SQL.
    pub(crate) fn sql_name(&self) -> String {
        sql_name(&self.schema, &self.name)
    }

    pub(crate) fn space(&self) -> Space {
        Space::Table(self.full_name().into())
    }

    /// Its rows have no name but what they hold.
    pub(crate) fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// The column of that name, in whatever case: to a server they are the same (FF10).
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        let is_it =
            |column: &&Column| column.name == name || column.name.to_lowercase() == name.to_lowercase();
        self.columns.iter().find(is_it)
    }

    /// The columns of the primary key, in its order.
    pub(crate) fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().filter_map(|&index| self.columns.get(index))
    }

    pub(crate) fn key_kinds(&self) -> Vec<KeyKind> {
        self.key_columns().map(Column::key_kind).collect()
    }

    /// All columns as a list in SQL.
    pub(crate) fn column_list(&self) -> String {
        let mut out = String::new();
        write_names(&mut out, self.columns.iter().map(|column| column.name.as_str()));
        out
    }

    /// Those of the primary key, in its order, as a list in SQL.
    pub(crate) fn key_list(&self) -> String {
        let mut out = String::new();
        write_names(&mut out, self.key_columns().map(|column| column.name.as_str()));
        out
    }

    /// Why it cannot be carried, if it cannot.
    pub(crate) fn not_carried(&self) -> Option<String> {
        if let Some(odd) = &self.odd {
            return Some(format!("it is {odd}, and no ordinary table of InnoDB"));
        }
        if self.is_keyless()
            && let Some(column) = self.columns.iter().find(|column| column.type_name() == "json")
        {
            return Some(keyless_json(&column.name));
        }
        if let Some(column) =
            self.key_columns().find(|c| ["enum", "set", "float", "double"].contains(&c.type_name()))
        {
            return Some(format!("a {} in the primary key, {}", column.data_type, column.name));
        }
        let foreign = ["uuid", "inet4", "inet6"];
        let column = self.columns.iter().find(|column| foreign.contains(&column.type_name()))?;
        Some(format!("its column {} is of type {}", column.name, column.data_type))
    }
}

impl Column {
    fn type_name(&self) -> &str {
        &self.data_type
    }

    fn key_kind(&self) -> KeyKind {
        match self.type_name() {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" | "bit" => KeyKind::Number,
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => KeyKind::Bytes,
            _ => self.charset.clone().map_or(KeyKind::Other, KeyKind::Text),
        }
    }
}

/// A table's name as SQL.
pub(crate) fn sql_name(schema: &str, name: &str) -> String {
    let mut out = String::new();
    write_name(&mut out, schema);
    out.push('.');
    write_name(&mut out, name);
    out
}

/// Why a table without a primary key is not carried if it has the column `name` of type JSON: which of its values are equal,
/// no server tells.
pub(crate) fn keyless_json(name: &str) -> String {
    format!(
        "it has no primary key, and whether two of its rows are equal cannot be told, as {name} is of type JSON"
    )
}

/// What is said of a table that is left out.
pub(crate) fn left_out(space: Space, reason: &str) -> (Key, String) {
    (Key { space, name: Bytes::new() }, format!("rows of a table that is not carried: {reason}"))
}

/// The table that a key is of: `schema` and `name`.
pub(crate) fn table_of(key: &Key) -> Option<(&str, &str)> {
    match &key.space {
        Space::Table(name) => std::str::from_utf8(name).ok()?.split_once('.'),
        _ => None,
    }
}

/// The charsets of the server's collations.
pub(crate) async fn charsets(conn: &mut Conn, label: &str) -> Result<Charsets> {
    // MariaDB lists a collation that goes with several charsets under each.
    let mariadb =
        "SELECT id, character_set_name FROM information_schema.collation_character_set_applicability";
    let both = "SELECT id, character_set_name FROM information_schema.collations WHERE id IS NOT NULL AND \
                character_set_name IS NOT NULL";
    let action = "list the collations";
    let found = match conn.query::<(u64, String), _>(mariadb).await {
        Ok(found) => found,
        Err(mysql_async::Error::Server(_)) => in_time(action, label, conn.query(both)).await?,
        Err(other) => return Err(failed(action, label, other)),
    };
    Ok(Charsets::new(found.into_iter().filter_map(|(id, name)| Some((u16::try_from(id).ok()?, name)))))
}

/// All tables that the channel carries, in the order of [`Table::full_name`], byte by byte.
pub(crate) async fn carried(conn: &mut Conn, label: &str, tables: &Tables) -> Result<Vec<Table>> {
    let names: Vec<(String, String)> = in_time(
        "list the tables",
        label,
        conn.query(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type NOT IN ('VIEW', 'SYSTEM VIEW', 'SEQUENCE')",
        ),
    )
    .await?;
    let mut found = Vec::new();
    for (schema, name) in names.into_iter().filter(|(schema, name)| tables.carries(schema, name)) {
        found.extend(table(conn, label, &schema, &name).await?);
    }
    // The server's order is that of its collation.
    found.sort_by_key(Table::full_name);
    Ok(found)
}

/// One table, if it is there.
pub(crate) async fn table(conn: &mut Conn, label: &str, schema: &str, name: &str) -> Result<Option<Table>> {
    let action = format!("look at the table {schema}.{name}");
    let columns: Vec<Row> = in_time(
        &action,
        label,
        conn.exec(
            "SELECT column_name, data_type, character_set_name, extra, collation_name, column_key FROM \
             information_schema.columns WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position",
            (schema, name),
        ),
    )
    .await?;
    let column = |mut row: Row| -> Option<Column> {
        let charset: Option<String> = row.take::<Option<String>, _>(2)?;
        let extra: String = row.take(3)?;
        Some(Column {
            name: row.take(0)?,
            data_type: row.take::<String, _>(1)?.to_lowercase(),
            charset: charset.map(Arc::from),
            collation: row.take::<Option<String>, _>(4)?,
            // `DEFAULT_GENERATED` is MySQL's word for a default that is an expression.
            generated: extra.to_uppercase().split(' ').any(|word| word == "GENERATED"),
        })
    };
    let of_key = |row: &Row| row.get::<String, _>(5).is_some_and(|key| key == "PRI");
    let marked: Vec<bool> = columns.iter().map(of_key).collect();
    let columns: Vec<Column> = columns.into_iter().filter_map(column).collect();
    if columns.is_empty() {
        return Ok(None);
    }
    let indices: Vec<(String, u64, String)> = in_time(
        &action,
        label,
        conn.exec(
            "SELECT index_name, seq_in_index, column_name FROM information_schema.statistics \
             WHERE table_schema = ? AND table_name = ? AND non_unique = 0 AND column_name IS NOT NULL \
             ORDER BY index_name, seq_in_index",
            (schema, name),
        ),
    )
    .await?;
    // Its kind, its engine, its rows, and how long one is.
    type About = (String, Option<String>, Option<u64>, Option<u64>);
    let about: Option<About> = in_time(
        &action,
        label,
        conn.exec_first(
            "SELECT table_type, engine, table_rows, avg_row_length FROM information_schema.tables \
             WHERE table_schema = ? AND table_name = ?",
            (schema, name),
        ),
    )
    .await?;
    let (kind, engine, rows, row_bytes) = about.unwrap_or_default();
    let engine = engine.unwrap_or_default();
    let ordinary = kind == "BASE TABLE" && engine.eq_ignore_ascii_case("InnoDB");
    let place = |wanted: &str| columns.iter().position(|column| column.name == wanted);
    let parts: Vec<(&str, usize)> =
        indices.iter().filter_map(|(index, _, column)| Some((index.as_str(), place(column)?))).collect();
    let (key, is_sure) = key_index(&parts, &marked);
    let odd = match is_sure {
        true => (!ordinary).then(|| format!("a {kind} of {engine}")),
        false => Some("one with two unique indexes of the same columns".to_owned()),
    };
    Ok(Some(Table {
        schema: schema.to_owned(),
        name: name.to_owned(),
        key: parts.iter().filter(|(index, _)| *index == key).map(|(_, column)| *column).collect(),
        other_unique: parts.iter().any(|(index, _)| *index != key),
        rows: rows.unwrap_or(0),
        row_bytes: row_bytes.unwrap_or(0) as usize,
        gone: Vec::new(),
        odd,
        columns,
    }))
}

/// Which of the unique indexes with these `parts`, each an index and a column, is the primary key: `PRIMARY`, or the one whose
/// columns the server has `marked` like those of one. Empty: none. And whether that is sure.
fn key_index<'n>(parts: &[(&'n str, usize)], marked: &[bool]) -> (&'n str, bool) {
    if parts.iter().any(|(index, _)| *index == "PRIMARY") {
        return ("PRIMARY", true);
    }
    let is_marked = |name: &&str| {
        let mut columns: Vec<usize> = parts.iter().filter(|(n, _)| n == name).map(|(_, c)| *c).collect();
        columns.sort_unstable();
        columns.into_iter().eq((0..).zip(marked).filter(|(_, marked)| **marked).map(|(at, _)| at))
    };
    let mut names: Vec<&str> = parts.iter().map(|(index, _)| *index).collect();
    names.dedup();
    let mut found = names.into_iter().filter(is_marked);
    let first = found.next();
    (first.unwrap_or_default(), found.next().is_none())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `shop.t` with these columns: name, type, whether it is generated.
    pub(crate) fn shop_t(columns: &[(&str, &str, bool)], key: Vec<usize>) -> Table {
        let column = |(name, data_type, generated): &(&str, &str, bool)| Column {
            name: (*name).into(),
            data_type: (*data_type).into(),
            charset: (*data_type == "varchar").then(|| "utf8mb4".into()),
            collation: None,
            generated: *generated,
        };
        Table {
            schema: "shop".into(),
            name: "t".into(),
            columns: columns.iter().map(column).collect(),
            key,
            other_unique: false,
            rows: 0,
            row_bytes: 0,
            gone: Vec::new(),
            odd: None,
        }
    }

    #[test]
    fn the_key_is_the_index_that_the_server_takes_for_it() {
        let primary = [("PRIMARY", 0), ("u", 1)];
        assert_eq!(key_index(&primary, &[true, false]), ("PRIMARY", true));
        let unique = [("a", 2), ("u", 1), ("u", 0)];
        assert_eq!(key_index(&unique, &[true, true, false]), ("u", true));
        assert_eq!(key_index(&unique, &[false; 3]), ("", true), "NULL may be in each");
        let two = [("a", 0), ("a", 1), ("b", 1), ("b", 0)];
        assert_eq!(key_index(&two, &[true, true]), ("a", false));
    }
}
