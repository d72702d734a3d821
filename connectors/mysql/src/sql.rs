//! Changes as statements. No I/O.

use std::fmt::Write as _;

use causeway_core::Change;

use crate::content::Content;
use crate::read::write_key;
use crate::row::{Cell, columns_of, key_cells, write_name, write_names, write_sql};
use crate::schema::Table;

/// One statement, and what has to come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) expected: Expected,
}

/// What the server has to answer; else the transaction is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Nothing,
    /// The row that says who may apply is still ours.
    Fence,
    /// It matches so many rows.
    Rows(u64),
    /// The same, and the whole table may be looked through for them.
    Found(u64),
}

/// What a change makes of its row, in a table as it is here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    table: String,
    /// `(k1 = … AND k2 = …)`.
    key: String,
    /// Another row can be in its way.
    other_unique: bool,
    /// It was there before, as its origin saw it.
    was_there: bool,
    /// Names and values of the columns that are written; `None`: it is gone.
    columns: Option<Vec<(String, String)>>,
}

/// Why a change has no form here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The table lacks this column.
    Column(String),
    /// The record is none of this table's.
    Form(String),
    /// The row had a primary key, and the table has none.
    NoKey,
}

impl Row {
    pub(crate) fn of(change: &Change, table: &Table) -> Result<Row, Wrong> {
        if table.is_keyless() {
            return Err(Wrong::NoKey);
        }
        let cells = key_cells(&change.key.name, &table.key_kinds()).map_err(Wrong::Form)?;
        let mut key = String::new();
        write_key(&mut key, table, &cells);
        let columns = match &change.value {
            None => None,
            Some(json) => {
                let mut columns = Vec::with_capacity(table.columns.len());
                for (name, cell) in columns_of(json).map_err(Wrong::Form)? {
                    let column = table.column(&name);
                    if column.is_none() && table.gone.contains(&name.to_lowercase()) {
                        continue;
                    }
                    let column = column.ok_or(Wrong::Column(name.clone()))?;
                    if !column.generated {
                        columns.push((name, value(&cell)));
                    }
                }
                Some(columns)
            }
        };
        Ok(Row {
            table: table.sql_name(),
            key,
            other_unique: table.other_unique,
            was_there: change.before.is_some(),
            columns,
        })
    }

    pub(crate) fn is_delete(&self) -> bool {
        self.columns.is_none()
    }

    /// Whether it is there, with a lock on it or on its place.
    pub(crate) fn exists(&self) -> String {
        format!("SELECT 1 FROM {} WHERE {} FOR UPDATE", self.table, self.key)
    }

    pub(crate) fn delete(&self) -> Statement {
        Statement {
            sql: format!("DELETE FROM {} WHERE {}", self.table, self.key),
            expected: Expected::Nothing,
        }
    }

    /// It is there.
    pub(crate) fn update(&self) -> Statement {
        let mut sql = format!("UPDATE {} SET ", self.table);
        for (n, (name, value)) in self.columns().iter().enumerate() {
            if n > 0 {
                sql.push_str(", ");
            }
            write_name(&mut sql, name);
            sql.push_str(" = ");
            sql.push_str(value);
        }
        let _ = write!(sql, " WHERE {}", self.key);
        Statement { sql, expected: Expected::Rows(1) }
    }

    /// It is not.
    pub(crate) fn insert(&self) -> Statement {
        let sql = insert_head(&self.table, self.names()) + "VALUES " + &self.values();
        Statement { sql, expected: Expected::Nothing }
    }

    /// About how long it is in a statement.
    fn bytes(&self) -> usize {
        self.key.len() + self.columns().iter().map(|(_, value)| value.len() + 2).sum::<usize>()
    }

    fn columns(&self) -> &[(String, String)] {
        self.columns.as_deref().unwrap_or_default()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.columns().iter().map(|(name, _)| name.as_str())
    }

    fn values(&self) -> String {
        let values: Vec<&str> = self.columns().iter().map(|(_, value)| value.as_str()).collect();
        format!("({})", values.join(", "))
    }

    /// What an INSERT that finds the row does.
    fn on_duplicate(&self) -> String {
        let mut sql = " ON DUPLICATE KEY UPDATE ".to_owned();
        for (n, name) in self.names().enumerate() {
            if n > 0 {
                sql.push_str(", ");
            }
            write_name(&mut sql, name);
            sql.push_str(" = VALUES(");
            write_name(&mut sql, name);
            sql.push(')');
        }
        sql
    }

    /// In which kind of statement it goes in the fast way. Those of one kind that follow each other are one statement.
    fn kind(&self, keep_existing: bool) -> Kind {
        match (&self.columns, self.was_there, self.other_unique) {
            (None, ..) => Kind::Delete,
            _ if keep_existing => Kind::Insert,
            (_, _, false) => Kind::Upsert,
            (_, true, true) => Kind::Update,
            (_, false, true) => Kind::Insert,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Delete,
    /// It must not be there.
    Insert,
    /// It must be there.
    Update,
    /// Whether it is there or not. Only where no other row can be in the way: that one would be taken for it.
    Upsert,
}

/// `INSERT INTO table (columns) `.
pub(crate) fn insert_head<'a>(table: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut sql = format!("INSERT INTO {table} (");
    write_names(&mut sql, names);
    sql.push_str(") ");
    sql
}

fn value(cell: &Cell) -> String {
    let mut out = String::new();
    write_sql(&mut out, cell);
    out
}

/// A statement of several rows is about this long at most.
const STATEMENT_BYTES: usize = 256 << 10;

/// What becomes of the rows of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Of one with a primary key; `true`: it is kept where it exists.
    Row(Row, bool),
    /// So many rows of one content come.
    Add(Content, u64),
    /// So many go.
    Remove(Content, u64),
}

/// Steps in their order, as few statements.
pub(crate) fn fast(steps: Vec<Step>, statements: &mut Vec<Statement>) {
    let (mut rows, mut contents): (Vec<(Row, bool)>, Vec<Content>) = (Vec::new(), Vec::new());
    for step in steps {
        if !matches!(step, Step::Row(..)) {
            fast_rows(&std::mem::take(&mut rows), statements);
        }
        if !matches!(step, Step::Add(_, 1)) {
            add_each(&std::mem::take(&mut contents), statements);
        }
        match step {
            Step::Row(row, keep) => rows.push((row, keep)),
            Step::Add(content, 1) => contents.push(content),
            Step::Add(content, count) => content.add(count, statements),
            Step::Remove(_, 0) => {}
            Step::Remove(content, count) => statements.push(content.remove(count)),
        }
    }
    fast_rows(&rows, statements);
    add_each(&contents, statements);
}

/// One row of each content.
fn add_each(contents: &[Content], statements: &mut Vec<Statement>) {
    let mut rest = contents;
    while let Some(first) = rest.first() {
        let mut bytes = 0;
        let fits = |content: &&Content| {
            bytes += content.bytes();
            bytes <= STATEMENT_BYTES && content.table() == first.table() && content.names().eq(first.names())
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, behind) = rest.split_at(count);
        rest = behind;
        let values: Vec<String> = now.iter().map(Content::values).collect();
        let sql = insert_head(first.table(), first.names()) + "VALUES " + &values.join(", ");
        statements.push(Statement { sql, expected: Expected::Nothing });
    }
}

/// Rows in their order, each with whether a row that exists is kept, as few statements.
fn fast_rows(rows: &[(Row, bool)], statements: &mut Vec<Statement>) {
    let mut rest = rows;
    while let Some((first, keep)) = rest.first() {
        let kind = first.kind(*keep);
        let same = |(row, keep): &(Row, bool)| {
            kind != Kind::Update
                && row.kind(*keep) == kind
                && row.table == first.table
                && row.names().eq(first.names())
        };
        let mut bytes = 0;
        let fits = |(row, _): &&(Row, bool)| {
            bytes += row.bytes();
            bytes <= STATEMENT_BYTES
        };
        let count = rest.iter().take_while(|row| same(row)).take_while(fits).count().max(1);
        let (run, behind) = rest.split_at(count);
        rest = behind;
        statements.push(match kind {
            Kind::Update => first.update(),
            Kind::Delete => {
                let keys: Vec<&str> = run.iter().map(|(row, _)| row.key.as_str()).collect();
                let sql = format!("DELETE FROM {} WHERE {}", first.table, keys.join(" OR "));
                Statement { sql, expected: Expected::Nothing }
            }
            Kind::Insert | Kind::Upsert => {
                let values: Vec<String> = run.iter().map(|(row, _)| row.values()).collect();
                let mut sql = insert_head(&first.table, first.names()) + "VALUES " + &values.join(", ");
                if kind == Kind::Upsert {
                    sql += &first.on_duplicate();
                }
                Statement { sql, expected: Expected::Nothing }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use causeway_core::{Key, Op, Position};

    use super::*;
    use crate::schema::tests::shop_t;

    fn table(other_unique: bool) -> Table {
        let columns = [("id", "int", false), ("v", "varchar", false), ("g", "int", true)];
        Table { other_unique, ..shop_t(&columns, vec![0]) }
    }

    fn row(id: u32, value: Option<&str>, before: bool, other_unique: bool) -> (Row, bool) {
        let table = table(other_unique);
        let key = Key { space: table.space(), name: id.to_string().into() };
        let json = value.map(|v| format!("{{\"id\":{id},\"v\":\"{v}\",\"g\":7}}").into());
        let mut change = Change::captured(Op::Put, key, json, Position::default(), 0);
        change.before = before.then(|| "{}".into());
        (Row::of(&change, &table).unwrap(), false)
    }

    fn sql(rows: &[(Row, bool)]) -> Vec<String> {
        let mut statements = Vec::new();
        fast_rows(rows, &mut statements);
        statements.into_iter().map(|statement| statement.sql).collect()
    }

    #[test]
    fn rows_of_one_kind_are_one_statement() {
        let all = [
            row(1, Some("a"), false, false),
            row(2, Some("b"), true, false),
            row(1, None, false, false),
            row(2, None, false, false),
            row(3, Some("it's"), false, false),
        ];
        let upsert = " ON DUPLICATE KEY UPDATE `id` = VALUES(`id`), `v` = VALUES(`v`)";
        assert_eq!(
            sql(&all),
            [
                format!("INSERT INTO `shop`.`t` (`id`, `v`) VALUES (1, 'a'), (2, 'b'){upsert}"),
                "DELETE FROM `shop`.`t` WHERE (`id` = 1) OR (`id` = 2)".to_owned(),
                format!("INSERT INTO `shop`.`t` (`id`, `v`) VALUES (3, 'it''s'){upsert}"),
            ]
        );
    }

    /// FF12: where another row can be in the way, no row is taken for another one.
    #[test]
    fn with_another_unique_index_rows_are_found_by_their_key_alone() {
        let all = [row(1, Some("a"), false, true), row(2, Some("b"), true, true)];
        assert_eq!(
            sql(&all),
            [
                "INSERT INTO `shop`.`t` (`id`, `v`) VALUES (1, 'a')",
                "UPDATE `shop`.`t` SET `id` = 2, `v` = 'b' WHERE (`id` = 2)"
            ]
        );
    }

    #[test]
    fn what_does_not_fit_the_table_is_told() {
        let key = |name: &'static str| Key { space: table(false).space(), name: name.into() };
        let change = |name, json: &'static str| {
            Change::captured(Op::Put, key(name), Some(json.into()), Position::default(), 0)
        };
        let of = |change: &Change| Row::of(change, &table(false));
        assert_eq!(of(&change("1", "{\"x\":1}")), Err(Wrong::Column("x".into())));
        assert!(matches!(of(&change("a", "{}")), Err(Wrong::Form(_))));
        assert!(matches!(of(&change("1", "[]")), Err(Wrong::Form(_))));
    }
}
