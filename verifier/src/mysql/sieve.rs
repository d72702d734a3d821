//! Statements: sums of rows that the servers compute, and stretches of keys. No I/O.
//!
//! Of each row the server makes one text, from the same forms on any server and in any charset, and of the rows it adds up
//! the first 64 bits of that text's SHA-256 and its CRC-32. A sum and no XOR, in which two equal changes cancel each
//! other (FF53); NULL is a text of its own, where CONCAT_WS would drop it. Forms that differ without a difference only
//! cost a read of the rows.

use causeway_core::time::rfc3339;

use super::row::Form;
use super::table::{Column, Table};
use crate::window::Window;

/// Keys behind `after`, up to and with `to`, as SQL: each value in the key's order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Within<'a> {
    pub(super) after: Option<&'a [String]>,
    pub(super) to: Option<&'a [String]>,
}

/// The number of rows, the number of those that have a text, and the two sums.
pub(super) fn sum(table: &Table, site: usize, within: Within<'_>) -> String {
    let row = row_text(table, site);
    format!(
        "SELECT COUNT(*), COUNT({row}), COALESCE(SUM(CAST(CONV(LEFT(SHA2({row}, 256), 16), 16, 10) AS UNSIGNED)), 0), \
         COALESCE(SUM(CRC32({row})), 0) FROM {}{}",
        name(table, site),
        clause(table, site, within)
    )
}

/// All columns of the rows of a stretch, of at most `rows_max` of them.
pub(super) fn rows(table: &Table, site: usize, within: Within<'_>, rows_max: usize) -> String {
    let (columns, place) = (table.column_list(site), clause(table, site, within));
    format!("SELECT {columns} FROM {}{place} LIMIT {rows_max}", name(table, site))
}

/// All columns of the rows with these keys.
pub(super) fn rows_of(table: &Table, site: usize, keys: &[Vec<String>]) -> String {
    columns_of(table, site, &table.column_list(site), keys)
}

/// These columns, as SQL, of the rows with these keys.
pub(super) fn columns_of(table: &Table, site: usize, columns: &str, keys: &[Vec<String>]) -> String {
    let several = table.key.len() > 1;
    let row = |values: String| if several { format!("({values})") } else { values };
    let any: Vec<String> = keys.iter().map(|key| row(key.join(", "))).collect();
    let key = row(table.key_list(site));
    format!("SELECT {columns} FROM {} WHERE {key} IN ({})", name(table, site), any.join(", "))
}

/// Which row has this key, as a condition.
pub(super) fn key_is(table: &Table, site: usize, key: &[String]) -> String {
    let columns = table.key_columns().zip(key);
    let pairs = columns.map(|(column, value)| format!("{} = {value}", column.at(site).sql));
    pairs.collect::<Vec<_>>().join(" AND ")
}

/// Keys behind `after`, from the `skip`th on, `count` of them.
pub(super) fn keys(table: &Table, site: usize, after: Option<&[String]>, skip: u64, count: u64) -> String {
    let keys = table.key_list(site);
    format!(
        "SELECT {keys} FROM {}{} ORDER BY {keys} LIMIT {count} OFFSET {skip}",
        name(table, site),
        clause(table, site, Within { after, to: None })
    )
}

/// The first `count` keys behind `after` of rows whose `column` holds a time in the window, in UTC.
pub(super) fn keys_by_time(
    table: &Table,
    site: usize,
    after: Option<&[String]>,
    (column, window): (&Column, Window),
    count: u64,
) -> String {
    let (keys, column) = (table.key_list(site), &column.at(site).sql);
    let behind = clause(table, site, Within { after, to: None });
    let and = if behind.is_empty() { " WHERE" } else { " AND" };
    let [from, to] = [window.from, window.to].map(|ms| rfc3339(ms).replace('T', " ").replace('Z', ""));
    format!(
        "SELECT {keys} FROM {}{behind}{and} {column} >= '{from}' AND {column} < '{to}' ORDER BY {keys} LIMIT {count}",
        name(table, site)
    )
}

fn name(table: &Table, site: usize) -> &str {
    let [first, second] = &table.sql;
    if site == 0 { first } else { second }
}

fn row_text(table: &Table, site: usize) -> String {
    let texts: Vec<String> = table.columns.iter().map(|column| column_text(column, site)).collect();
    match texts.as_slice() {
        [] => "''".to_owned(),
        texts => format!("CONCAT({})", texts.join(", ',', ")),
    }
}

/// A text that no other value of the column has, and that does not run into the next one's.
fn column_text(column: &Column, site: usize) -> String {
    let at = column.at(site);
    let name = &at.sql;
    let utf8 = if at.is_utf8 { name.clone() } else { format!("CONVERT({name} USING utf8mb4)") };
    let text = match column.form {
        Form::Number | Form::Time => name.clone(),
        Form::Bit => format!("{name} + 0"),
        // A FLOAT as text has six digits, and zero no sign.
        Form::Float => format!("CONCAT({name} * 1e0, IF({name} = 0 AND ATAN2({name}, -1) < 0, '-', ''))"),
        Form::Json => format!("SHA2(CONVERT({name} USING utf8mb4), 256)"),
        Form::Opaque => format!("SHA2(HEX({name}), 256)"),
        // Together they could be longer than the server lets a text be.
        Form::Text | Form::Label if at.is_long => format!("SHA2({utf8}, 256)"),
        Form::Bytes if at.is_long => format!("SHA2({name}, 256)"),
        Form::Bytes => format!("HEX({name})"),
        Form::Text | Form::Label => format!("CONCAT(LENGTH({utf8}), ':', {utf8})"),
    };
    if at.nullable { format!("COALESCE({text}, '~')") } else { text }
}

/// ` WHERE …`, or nothing.
fn clause(table: &Table, site: usize, within: Within<'_>) -> String {
    let behind = within.after.map(|key| bound(table, site, key, (">", ">")));
    let up_to = within.to.map(|key| bound(table, site, key, ("<", "<=")));
    let all: Vec<String> = behind.into_iter().chain(up_to).collect();
    if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
}

/// `a >= 1 AND (a > 1 OR a = 1 AND (b > 2))`: the first column alone finds the place in the index.
fn bound(table: &Table, site: usize, key: &[String], (strict, last): (&str, &str)) -> String {
    let pairs: Vec<(&str, &String)> =
        table.key_columns().map(|column| column.at(site).sql.as_str()).zip(key).collect();
    let count = pairs.len();
    let mut inner = String::new();
    for (n, (column, value)) in pairs.iter().enumerate() {
        if n + 1 == count {
            inner += &format!("{column} {last} {value}");
        } else {
            inner += &format!("{column} {strict} {value} OR {column} = {value} AND (");
        }
    }
    inner += &")".repeat(count.saturating_sub(1));
    match pairs.first() {
        Some((column, value)) if count > 1 => format!("{column} {strict}= {value} AND ({inner})"),
        _ => inner,
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::ColumnAt;
    use super::*;

    fn table(key: Vec<usize>) -> Table {
        let column = |name: &str, form, is_long, is_utf8, nullable| {
            let at = ColumnAt { sql: format!("`{name}`"), is_long, is_utf8, nullable };
            Column { name: name.into(), form, sites: [at.clone(), at] }
        };
        Table {
            sql: ["`s`.`t`".into(), "`s`.`t`".into()],
            columns: vec![
                column("a", Form::Number, false, true, false),
                column("b", Form::Text, false, false, true),
                column("c", Form::Bytes, true, true, false),
            ],
            key,
            is_ordered: true,
            rows: [0; 2],
        }
    }

    #[test]
    fn a_stretch_is_found_by_the_key_s_order() {
        let (one, two) = (table(vec![0]), table(vec![0, 1]));
        let (low, high) = (["1".to_owned(), "'x'".to_owned()], ["2".to_owned(), "'y'".to_owned()]);
        let within = Within { after: Some(&low), to: Some(&high) };
        assert_eq!(clause(&one, 0, within), " WHERE `a` > 1 AND `a` <= 2");
        assert_eq!(
            clause(&two, 0, within),
            " WHERE `a` >= 1 AND (`a` > 1 OR `a` = 1 AND (`b` > 'x')) AND `a` <= 2 AND (`a` < 2 OR `a` = 2 AND (`b` <= 'y'))"
        );
        assert_eq!(clause(&one, 0, Within::default()), "");
        assert_eq!(
            keys(&two, 1, Some(&low), 9, 1),
            "SELECT `a`, `b` FROM `s`.`t` WHERE `a` >= 1 AND (`a` > 1 OR `a` = 1 AND (`b` > 'x')) ORDER BY `a`, `b` LIMIT 1 OFFSET 9"
        );
    }

    #[test]
    fn rows_are_found_by_their_keys() {
        let keys = [vec!["1".to_owned(), "'x'".to_owned()], vec!["2".to_owned(), "'y'".to_owned()]];
        let two = rows_of(&table(vec![0, 1]), 0, &keys);
        assert!(two.ends_with(" WHERE (`a`, `b`) IN ((1, 'x'), (2, 'y'))"), "{two}");
        let one = rows_of(&table(vec![0]), 0, &[vec!["1".to_owned()]]);
        assert!(one.ends_with(" WHERE `a` IN (1)"), "{one}");
    }

    #[test]
    fn a_row_is_one_text_whatever_its_columns_hold() {
        let text = "CONCAT(LENGTH(CONVERT(`b` USING utf8mb4)), ':', CONVERT(`b` USING utf8mb4))";
        assert_eq!(
            row_text(&table(vec![0]), 0),
            format!("CONCAT(`a`, ',', COALESCE({text}, '~'), ',', SHA2(`c`, 256))")
        );
    }
}
