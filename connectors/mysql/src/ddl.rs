//! Statements that change what tables are: what the binlog says of them, which of them only add, and how they are run at a
//! target so that each runs once.
//!
//! Such a statement commits by itself, so no transaction can hold it together with the marker. The row of
//! `causeway_applied` announces it first, with the connection that will run it and what the table was; then it runs, and
//! then the marker moves. The site's own capture leaves out what the announced connection does, and after a crash the table
//! tells whether it ran: it is another one, or it is not.

use bytes::Bytes;
use causeway_core::{Change, DdlPolicy, Error, Key, Op, Position, Result, Seq, Space};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use serde::{Deserialize, Serialize};

use crate::config::Tables;
use crate::conn::{failed, in_time};
use crate::names::{GONE, SCHEMA};
use crate::schema::sql_name;

/// A statement as it stands in the log, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ddl {
    /// The database that was chosen where it ran; may be empty.
    pub(crate) schema: String,
    /// As it was written.
    pub(crate) sql: String,
    /// Nobody wrote it: it makes a table that was there when a snapshot began, where the target has none. With how its
    /// database writes text: `CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<String>,
}

/// What a statement does, and to which tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    /// `ALTER TABLE`
    pub(crate) what: String,
    /// Schema and name.
    pub(crate) tables: Vec<(String, String)>,
    /// It takes nothing away from anybody, and does the same at each site: a table, a column or an index is added.
    pub(crate) only_adds: bool,
    /// It takes rows away.
    pub(crate) empties: bool,
    /// Rows have other names behind it: of a table, or of a key.
    pub(crate) moves: bool,
    /// It does one thing: where the server says that this is so already, it is done.
    pub(crate) is_one: bool,
    /// What is no longer there: of a table a column, or itself where that is empty.
    pub(crate) gone: Vec<(String, String)>,
    /// What is there now; `*`: a table with all of its columns.
    pub(crate) there: Vec<(String, String)>,
}

impl Ddl {
    /// Reads it back.
    pub(crate) fn of(change: &Change) -> Option<Ddl> {
        (change.op == Op::Ddl).then(|| serde_json::from_slice(change.value.as_deref()?).ok()).flatten()
    }

    /// The change of the log; `None` if it concerns no table that is carried.
    pub(crate) fn change(&self, definition: &Definition, tables: &Tables, time: u64) -> Option<Change> {
        let (schema, name) = definition.tables.iter().find(|(schema, name)| tables.carries(schema, name))?;
        let key = Key { space: Space::Table(format!("{schema}.{name}").into()), name: Bytes::new() };
        // Two texts always have a JSON form, and memory takes it.
        let value = serde_json::to_vec(self).ok()?;
        Some(Change::captured(Op::Ddl, key, Some(value.into()), Position::default(), time))
    }

    pub(crate) fn definition(&self) -> Option<Definition> {
        definition(&self.sql, &self.schema)
    }

    /// What the channel does with it.
    pub(crate) fn policy(&self, set: Option<DdlPolicy>) -> DdlPolicy {
        if self.made.is_some() && set != Some(DdlPolicy::Ignore) {
            return DdlPolicy::Apply;
        }
        set.unwrap_or(match self.definition() {
            Some(definition) if definition.only_adds => DdlPolicy::Apply,
            _ => DdlPolicy::Hold,
        })
    }

    /// Whether rows of tables that stay are gone with it.
    pub(crate) fn empties(&self) -> bool {
        self.definition().is_some_and(|definition| definition.empties)
    }
}

/// What a row of `causeway_applied` says is about to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Announced {
    /// The change's place in the log.
    pub(crate) seq: Seq,
    /// The connection's number at the server.
    pub(crate) connection: u32,
    /// What the tables were.
    pub(crate) before: u64,
    /// When the server was started, in seconds since 1970: connections have other numbers since then.
    pub(crate) started: u64,
}

impl std::fmt::Display for Announced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{:x}:{}", self.seq.0, self.connection, self.before, self.started)
    }
}

impl Announced {
    pub(crate) fn parse(text: &str) -> Option<Announced> {
        let mut parts = text.split(':');
        let (seq, connection) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let before = u64::from_str_radix(parts.next()?, 16).ok()?;
        let started = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Announced { seq: Seq(seq), connection, before, started })
    }
}

/// The statement that makes a table of the server at another one, unless it is there.
pub(crate) async fn creation(
    conn: &mut Conn,
    label: &str,
    (schema, name): (&str, &str),
) -> Result<Option<Ddl>> {
    let Some(text) = show_create(conn, label, (schema, name)).await? else { return Ok(None) };
    let Some(rest) = text.strip_prefix("CREATE TABLE ") else { return Ok(None) };
    // Which number is given next is each site's own.
    let (columns, options) = rest.split_at(rest.rfind("\n)").unwrap_or(0));
    let (options, comment) = options.split_at(options.find(" COMMENT=").unwrap_or(options.len()));
    let options: Vec<&str> = options.split(' ').filter(|word| !word.starts_with("AUTO_INCREMENT=")).collect();
    let sql = format!("CREATE TABLE IF NOT EXISTS {columns}{}{comment}", options.join(" "));
    let ask = "SELECT CONCAT('CHARACTER SET ', default_character_set_name, ' COLLATE ', default_collation_name) FROM \
               information_schema.schemata WHERE schema_name = ?";
    let made: Option<String> = in_time("look at a database", label, conn.exec_first(ask, (schema,))).await?;
    Ok(Some(Ddl { schema: schema.to_owned(), sql, made: Some(made.unwrap_or_default()) }))
}

/// Whether the server has the database.
pub(crate) async fn has_database(conn: &mut Conn, label: &str, schema: &str) -> Result<bool> {
    let ask = "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = ?";
    let count: Option<u64> = in_time("look at a database", label, conn.exec_first(ask, (schema,))).await?;
    Ok(count.unwrap_or(0) > 0)
}

/// What a table is, as the server writes it; `None`: it has none of the name.
pub(crate) async fn show_create(
    conn: &mut Conn,
    label: &str,
    (schema, name): (&str, &str),
) -> Result<Option<String>> {
    let ask = "look at a table";
    let sql = format!("SHOW CREATE TABLE {}", sql_name(schema, name));
    let row: Option<mysql_async::Row> =
        match in_time(ask, label, async { Ok(conn.query_first(sql).await) }).await? {
            // There is no such table, or no such database.
            Err(mysql_async::Error::Server(error)) if matches!(error.code, 1146 | 1049) => None,
            found => found.map_err(|error| failed(ask, label, error))?,
        };
    Ok(row.and_then(|row| row.get_opt(1)?.ok()))
}

/// What tables are, as a number.
pub(crate) async fn fingerprint(conn: &mut Conn, label: &str, tables: &[(String, String)]) -> Result<u64> {
    let mut all = String::new();
    for (schema, name) in tables {
        let text = show_create(conn, label, (schema, name)).await?.unwrap_or_default();
        // The next number to be given changes with every row.
        let said = text.split_whitespace().filter(|word| !word.starts_with("AUTO_INCREMENT="));
        said.for_each(|word| all.extend([" ", word]));
        all.push(';');
    }
    Ok(xxhash_rust::xxh3::xxh3_64(all.as_bytes()))
}

/// When the server was started, in seconds since 1970.
pub(crate) async fn started(conn: &mut Conn, label: &str) -> Result<u64> {
    let ask = "ask since when it runs";
    let now: Option<u64> = in_time(ask, label, conn.query_first("SELECT UNIX_TIMESTAMP()")).await?;
    let uptime: Option<(String, u64)> =
        in_time(ask, label, conn.query_first("SHOW GLOBAL STATUS LIKE 'Uptime'")).await?;
    Ok(now.unwrap_or(0).saturating_sub(uptime.map_or(0, |(_, seconds)| seconds)))
}

/// Notes in the server what its tables no longer have: what the peer writes into it, as it has not seen that yet, is left
/// out then. Of a statement of the peer nothing is gone: its rows come in order.
pub(crate) async fn note(conn: &mut Conn, label: &str, name: &str, ddl: &Ddl, is_own: bool) -> Result<()> {
    let Some(definition) = ddl.definition().filter(|_| ddl.made.is_none()) else { return Ok(()) };
    let action = "note what a table no longer has";
    for (space, column) in definition.there {
        let sql = format!("DELETE FROM {SCHEMA}.{GONE} WHERE name = ? AND space = ? AND ? IN ('*', col)");
        in_time(action, label, conn.exec_drop(sql, (name, space, column))).await?;
    }
    for (space, column) in definition.gone.into_iter().filter(|_| is_own) {
        let sql = format!("REPLACE INTO {SCHEMA}.{GONE} (name, space, col) VALUES (?, ?, ?)");
        in_time(action, label, conn.exec_drop(sql, (name, space, column))).await?;
    }
    Ok(())
}

/// The columns that a table of the server no longer has; an empty one is the table itself.
pub(crate) async fn gone(conn: &mut Conn, label: &str, space: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT DISTINCT col FROM {SCHEMA}.{GONE} WHERE space = ?");
    in_time("look what a table no longer has", label, conn.exec(sql, (space,))).await
}

/// Whether the announced connection still runs a statement; one that only waits is ended, as its process may wake up and
/// run it.
///
/// # Errors
///
/// The server does not answer.
pub(crate) async fn still_runs(conn: &mut Conn, label: &str, earlier: Announced) -> Result<bool> {
    // Two seconds that were rounded.
    if started(conn, label).await?.abs_diff(earlier.started) > 2 {
        return Ok(false);
    }
    let connection = earlier.connection;
    let sql = format!(
        "SELECT command FROM information_schema.processlist WHERE id = {connection} AND user = SUBSTRING_INDEX(USER(), '@', 1)"
    );
    let command: Option<String> = in_time("look at a connection", label, conn.query_first(sql)).await?;
    match command.as_deref() {
        None => Ok(false),
        Some("Sleep") => {
            let killed =
                in_time("end a connection", label, conn.query_drop(format!("KILL {connection}"))).await;
            // It may have ended by itself.
            match killed {
                Err(Error::Unavailable { .. }) | Ok(()) => Ok(false),
                Err(other) => Err(other),
            }
        }
        Some(_) => Ok(true),
    }
}

/// The words of a statement, in upper case but for quoted ones; comments count as blanks.
pub(crate) struct Words<'t>(pub(crate) &'t str);

impl Words<'_> {
    /// The next word, as it was written.
    pub(crate) fn raw(&mut self) -> String {
        loop {
            self.0 = self.0.trim_start();
            let comment = if self.0.starts_with("/*") {
                self.0.find("*/").map(|end| end + 2)
            } else if self.0.starts_with('#') || self.0.starts_with("-- ") {
                self.0.find('\n')
            } else {
                break;
            };
            self.0 = self.0.get(comment.unwrap_or(self.0.len())..).unwrap_or_default();
        }
        let mut word = String::new();
        let mut rest = self.0.chars();
        match rest.next() {
            None => {}
            Some(quote @ ('`' | '"' | '\'')) => {
                word.push(quote);
                while let Some(c) = rest.next() {
                    // A name has no escapes.
                    let c =
                        if c == '\\' && quote != '`' { rest.next() } else { Some(c).filter(|c| *c != quote) };
                    let Some(c) = c else { break };
                    word.push(c);
                }
                self.0 = rest.as_str();
            }
            Some(first) if is_word(first) => {
                let end = self.0.find(|c| !is_word(c)).unwrap_or(self.0.len());
                let (found, rest) = self.0.split_at(end);
                word.push_str(found);
                self.0 = rest;
            }
            Some(other) => {
                word.push(other);
                self.0 = rest.as_str();
            }
        }
        word
    }

    pub(crate) fn next(&mut self) -> String {
        self.raw().to_uppercase()
    }

    /// A table's name: `name`, or `schema.name`.
    fn table(&mut self, schema: &str) -> Option<(String, String)> {
        let name = |word: String| unquoted(&word).to_owned();
        let first = name(self.raw());
        if let Some(rest) = self.0.trim_start().strip_prefix('.') {
            self.0 = rest;
            return Some((first, name(self.raw())));
        }
        (!first.is_empty()).then(|| (schema.to_owned(), first))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// What `text`, run where the database `schema` was chosen, does to the definition or the whole content of tables; `None`:
/// nothing.
fn definition(text: &str, schema: &str) -> Option<Definition> {
    let mut words = Words(text);
    let verb = words.next();
    let skipped =
        ["OR", "REPLACE", "UNIQUE", "FULLTEXT", "SPATIAL", "ONLINE", "OFFLINE", "IGNORE", "TEMPORARY"];
    let (mut word, mut takes) = (words.next(), false);
    while skipped.contains(&word.as_str()) {
        if word == "TEMPORARY" {
            return None;
        }
        // A table, or rows that are in the way.
        takes |= word == "REPLACE" || word == "IGNORE";
        word = words.next();
    }
    let what = match (verb.as_str(), word.as_str()) {
        ("TRUNCATE", "TABLE") | ("CREATE" | "ALTER" | "DROP" | "RENAME", "TABLE" | "TABLES") => {
            format!("{verb} TABLE")
        }
        ("TRUNCATE", _) => {
            // `TABLE` may be left out.
            words = Words(text);
            words.next();
            verb
        }
        ("CREATE" | "DROP", "INDEX") => {
            while !matches!(words.next().as_str(), "ON" | "") {}
            format!("{verb} INDEX")
        }
        _ => return None,
    };
    let mut ahead = Words(words.0);
    let is_careful = ahead.next() == "IF";
    if is_careful {
        while !matches!(ahead.next().as_str(), "EXISTS" | "") {}
        words = ahead;
    }
    let mut tables = vec![words.table(schema)?];
    let actions = if what == "ALTER TABLE" { actions(words.0) } else { Vec::new() };
    let only_adds = match what.as_str() {
        "CREATE TABLE" | "CREATE INDEX" => true,
        "ALTER TABLE" => only_adds(&actions),
        "DROP TABLE" | "RENAME TABLE" => {
            // Lists: `a, b` and `a TO b, c TO d`.
            loop {
                match words.next().as_str() {
                    "," | "TO" => tables.extend(words.table(schema)),
                    "" => break,
                    _ => {}
                }
            }
            false
        }
        _ => false,
    };
    // What a server of some version runs and we skip.
    let hides = what == "ALTER TABLE" && (text.contains("/*!") || text.contains("/*M!"));
    // What is not UTF-8 is shown so.
    let only_adds = only_adds && !takes && !hides && !text.contains('\u{fffd}');
    let is_one = match (what.as_str(), &actions[..]) {
        ("ALTER TABLE", [action]) => is(action.first(), &["ADD", "DROP"]) && !lists(action),
        ("ALTER TABLE" | "RENAME TABLE", _) => false,
        _ => tables.len() == 1,
    };
    let mut empties = what.starts_with("TRUNCATE");
    let mut moves = what == "RENAME TABLE";
    let full = |(schema, name): &(String, String)| format!("{schema}.{name}");
    let (mut gone, mut there) = (Vec::new(), Vec::new());
    match what.as_str() {
        "ALTER TABLE" => {
            let table = tables.first().map(full).unwrap_or_default();
            for action in &actions {
                empties |= is(action.first(), &["TRUNCATE", "DROP"]) && is(action.get(1), &["PARTITION"]);
                let column = |all: &mut Vec<_>, name: String| all.push((table.clone(), name));
                dropped(action).into_iter().for_each(|name| column(&mut gone, name));
                added(action).into_iter().for_each(|name| column(&mut there, name));
                let to = renamed(action, schema);
                moves |= to.is_some() || action.iter().any(|word| is(Some(word), &["PRIMARY", "EXCHANGE"]));
                tables.extend(to);
            }
        }
        "DROP TABLE" => gone.extend(tables.iter().map(|table| (full(table), String::new()))),
        "CREATE TABLE" => {
            // Where it is there already it may be another one than this says.
            let all = if is_careful { "" } else { "*" };
            there.extend(tables.iter().map(|table| (full(table), all.to_owned())));
        }
        "RENAME TABLE" => {
            there.extend(tables.iter().skip(1).step_by(2).map(|table| (full(table), "*".to_owned())))
        }
        _ => {}
    }
    Some(Definition { what, tables, only_adds, empties, moves, is_one, gone, there })
}

/// The parts of an ALTER TABLE: what stands between its commas, outside of all brackets. Words as they were written.
fn actions(text: &str) -> Vec<Vec<String>> {
    let (mut words, mut depth) = (Words(text), 0_usize);
    let mut all = vec![Vec::new()];
    loop {
        let word = words.raw();
        match word.as_str() {
            "" => return all,
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            "," if depth == 0 => {
                all.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if let Some(action) = all.last_mut() {
            action.push(word);
        }
    }
}

fn is(word: Option<&String>, all: &[&str]) -> bool {
    word.is_some_and(|word| all.iter().any(|one| one.eq_ignore_ascii_case(word)))
}

/// `ADD (a INT, b INT)`
fn lists(action: &[String]) -> bool {
    behind(action, "ADD").first().is_some_and(|first| first == "(")
}

/// Whether an ALTER TABLE adds columns and indexes, and does nothing else; and whether it fills rows that are there with the
/// same at both sites, and rows that the other site adds meanwhile have a value.
fn only_adds(actions: &[Vec<String>]) -> bool {
    let not_only = ["PRIMARY", "CONSTRAINT", "FOREIGN", "PARTITION", "PERIOD", "SYSTEM", "CHECK"];
    let differs = [
        "REFERENCES",
        "CURRENT_TIMESTAMP",
        "NOW",
        "LOCALTIME",
        "LOCALTIMESTAMP",
        "SYSDATE",
        "CURDATE",
        "CURTIME",
        "CURRENT_DATE",
        "CURRENT_TIME",
        "UTC_TIMESTAMP",
        "UNIX_TIMESTAMP",
        "UUID",
        "RAND",
        "AUTO_INCREMENT",
        "NEXTVAL",
        "CURRENT_USER",
        "SERIAL",
    ];
    actions.iter().all(|action| {
        let [verb, rest @ ..] = &action[..] else { return false };
        let says_how = is(Some(verb), &["ALGORITHM", "LOCK"]) && rest.len() <= 2;
        let has = |word: &str| rest.iter().any(|one| one.eq_ignore_ascii_case(word));
        let needs_value = has("NULL") && has("NOT") && !has("DEFAULT") && !has("AS");
        let computes = rest.iter().position(|word| is(Some(word), &["DEFAULT"])).is_some_and(|at| {
            let behind = rest.get(at + 1..).unwrap_or_default();
            behind.iter().take(2).any(|word| word == "(")
        });
        let adds = is(Some(verb), &["ADD"]) && !is(rest.first(), &not_only) && !lists(action);
        let adds = adds && !needs_value && !computes;
        says_how || adds && !rest.iter().any(|word| is(Some(word), &differs))
    })
}

/// What is no column in ADD or DROP.
const NO_COLUMN: [&str; 12] = [
    "INDEX",
    "KEY",
    "PRIMARY",
    "FOREIGN",
    "CONSTRAINT",
    "CHECK",
    "PARTITION",
    "PERIOD",
    "SYSTEM",
    "UNIQUE",
    "FULLTEXT",
    "SPATIAL",
];

/// The words of an action behind `verb` and `COLUMN`, where it is one of columns.
fn behind<'a>(action: &'a [String], verb: &str) -> &'a [String] {
    let mut rest = match action {
        [first, rest @ ..] if verb.eq_ignore_ascii_case(first) => rest,
        _ => return &[],
    };
    if is(rest.first(), &NO_COLUMN) {
        return &[];
    }
    for skipped in ["COLUMN", "IF", "NOT", "EXISTS"] {
        if let [first, after @ ..] = rest
            && skipped.eq_ignore_ascii_case(first)
        {
            rest = after;
        }
    }
    rest
}

/// A name without its quotes; [`Words`] takes the last one away.
fn unquoted(word: &str) -> &str {
    word.strip_prefix(['`', '"']).unwrap_or(word)
}

fn column(word: &str) -> String {
    unquoted(word).to_lowercase()
}

fn dropped(action: &[String]) -> Option<String> {
    behind(action, "DROP").first().map(|name| column(name))
}

/// One column, or a list of them in brackets.
fn added(action: &[String]) -> Vec<String> {
    let rest = behind(action, "ADD");
    if rest.first().is_none_or(|first| first != "(") {
        return rest.first().map(|name| column(name)).into_iter().collect();
    }
    let (mut depth, mut begins, mut names) = (0_usize, false, Vec::new());
    for word in rest {
        match word.as_str() {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            name if begins => names.push(column(name)),
            _ => {}
        }
        begins = depth == 1 && (word == "(" || word == ",");
    }
    names
}

/// What an action makes of the table's name.
fn renamed(action: &[String], schema: &str) -> Option<(String, String)> {
    let mut to = match action {
        [verb, rest @ ..] if verb.eq_ignore_ascii_case("RENAME") => rest,
        _ => return None,
    };
    if is(to.first(), &["COLUMN", "INDEX", "KEY"]) {
        return None;
    }
    if is(to.first(), &["TO", "AS", "="]) {
        to = &to[1..];
    }
    match to {
        [of, dot, name, ..] if dot == "." => Some((unquoted(of).to_owned(), unquoted(name).to_owned())),
        [name, ..] => Some((schema.to_owned(), unquoted(name).to_owned())),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_change_a_table_name_it() {
        for (text, expected) in [
            ("ALTER TABLE orders ADD COLUMN x INT", "ALTER TABLE shop.orders adds"),
            (
                "alter table orders add x decimal(5,2) default 1 after y, add unique key `k, z` (x, y)",
                "ALTER TABLE shop.orders adds",
            ),
            ("ALTER TABLE orders ADD a INT, ALGORITHM=INSTANT", "ALTER TABLE shop.orders adds"),
            ("ALTER TABLE orders ADD (a INT NOT NULL, b INT DEFAULT 0)", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD n SERIAL", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD d DATE DEFAULT (UTC_DATE())", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD d BIGINT DEFAULT UUID_SHORT()", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD d BIGINT DEFAULT 5 COMMENT '(x)'", "ALTER TABLE shop.orders adds"),
            ("ALTER TABLE orders WAIT 5 DROP COLUMN y", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD x INT COMMENT 'it\\'s', DROP COLUMN y", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD x INT COMMENT 'it''s, DROP y' ", "ALTER TABLE shop.orders adds"),
            ("ALTER TABLE orders ADD x INT /*!80000 , DROP COLUMN y */", "ALTER TABLE shop.orders"),
            ("ALTER IGNORE TABLE orders ADD UNIQUE (x)", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD x INT NOT NULL", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD x INT NOT NULL DEFAULT 0", "ALTER TABLE shop.orders adds"),
            ("ALTER TABLE orders ADD x DATETIME DEFAULT CURRENT_TIMESTAMP", "ALTER TABLE shop.orders"),
            ("ALTER TABLE orders ADD PRIMARY KEY (id)", "ALTER TABLE shop.orders"),
            (
                "ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (x) REFERENCES y (z)",
                "ALTER TABLE shop.orders",
            ),
            ("ALTER TABLE orders ADD COLUMN x INT, DROP COLUMN y", "ALTER TABLE shop.orders"),
            (
                "ALTER TABLE orders RENAME COLUMN a TO b, RENAME TO crm.sales",
                "ALTER TABLE shop.orders crm.sales",
            ),
            ("ALTER TABLE orders RENAME sales", "ALTER TABLE shop.orders shop.sales"),
            ("ALTER TABLE orders ENGINE=InnoDB", "ALTER TABLE shop.orders"),
            ("/* tool */ alter table `crm`.`a b` drop column x", "ALTER TABLE crm.a b"),
            ("TRUNCATE orders", "TRUNCATE shop.orders"),
            ("truncate table crm.people", "TRUNCATE TABLE crm.people"),
            ("DROP TABLE IF EXISTS `orders` /* generated by server */", "DROP TABLE shop.orders"),
            ("DROP TABLE `a`,`crm`.`b` CASCADE", "DROP TABLE shop.a crm.b"),
            ("CREATE TABLE IF NOT EXISTS t (id int)", "CREATE TABLE shop.t adds"),
            ("CREATE OR REPLACE TABLE t (id int)", "CREATE TABLE shop.t"),
            ("CREATE UNIQUE INDEX i ON shop2.t (a)", "CREATE INDEX shop2.t adds"),
            ("DROP INDEX i ON t", "DROP INDEX shop.t"),
            ("RENAME TABLE a TO b, b TO crm.c", "RENAME TABLE shop.a shop.b shop.b crm.c"),
            ("CREATE TEMPORARY TABLE t (id int)", ""),
            ("GRANT ALL ON *.* TO x", ""),
            ("CREATE DATABASE d", ""),
            ("", ""),
            ("ALTER TABLE", ""),
            ("/* never closed", ""),
            ("DROP INDEX i", ""),
            ("ALTER TABLE t ADD `never closed", "ALTER TABLE shop.t adds"),
        ] {
            let found = definition(text, "shop").map_or(String::new(), |found| {
                let tables: Vec<String> = found.tables.iter().map(|(s, t)| format!(" {s}.{t}")).collect();
                format!("{}{}{}", found.what, tables.concat(), if found.only_adds { " adds" } else { "" })
            });
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn statements_say_what_is_gone_and_what_is_there() {
        for (text, gone, there) in [
            (
                "ALTER TABLE t DROP a, DROP COLUMN IF EXISTS `B`, DROP INDEX i, DROP PRIMARY KEY",
                "s.t.a s.t.b",
                "",
            ),
            (
                "alter table t add (x int, y decimal(5,2)), add z int, add index (q), drop w",
                "s.t.w",
                "s.t.x s.t.y s.t.z",
            ),
            ("ALTER TABLE t ADD COLUMN IF NOT EXISTS x INT", "", "s.t.x"),
            ("DROP TABLE a, b.c", "s.a. b.c.", ""),
            ("CREATE TABLE t (id INT)", "", "s.t.*"),
            ("CREATE TABLE IF NOT EXISTS t (id INT)", "", "s.t."),
            ("RENAME TABLE a TO b, c TO d", "", "s.b.* s.d.*"),
            ("TRUNCATE t", "", ""),
        ] {
            let found = definition(text, "s").unwrap();
            let all = |all: Vec<(String, String)>| -> String {
                all.iter().map(|(space, column)| format!("{space}.{column}")).collect::<Vec<_>>().join(" ")
            };
            assert_eq!((all(found.gone).as_str(), all(found.there).as_str()), (gone, there), "{text}");
        }
    }

    #[test]
    fn what_is_announced_reads_back() {
        let announced = Announced { seq: Seq(7), connection: 12, before: u64::MAX, started: 5 };
        assert_eq!(Announced::parse(&announced.to_string()), Some(announced));
        for wrong in ["", "7", "7:x:1:1", "7:1:g:1", "7:1:1", "7:1:1:1:1"] {
            assert_eq!(Announced::parse(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        /// Whatever stands there, it is read to its end.
        #[test]
        fn any_text_is_read(text in ".{0,80}", parts in proptest::collection::vec(0..12_usize, 0..20)) {
            let words = [
                "ALTER TABLE t ", "ADD ", "DROP ", "COLUMN ", "(", ")", ",", "`", "'", "\\", "/*", "RENAME TO ",
            ];
            let pieces: String = parts.iter().filter_map(|part| words.get(*part).copied()).collect();
            for text in [text.clone(), format!("ALTER TABLE {text}"), pieces.clone(), format!("{pieces}{text}")] {
                let _ = definition(&text, "s");
                let _ = Announced::parse(&text);
            }
        }
    }
}
