//! `verifier check` against two real MySQL or MariaDB servers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use causeway_testkit::mysql::{
    Flavour, MysqlOptions, MysqlServer, mysql_server, numbers, other_mysql_server,
};
use tempfile::TempDir;

use crate::support::{Answer, verifier};

/// Two sites and a configuration.
pub(crate) struct Pair {
    pub(crate) folder: TempDir,
    pub(crate) servers: [Arc<MysqlServer>; 2],
}

impl Pair {
    pub(crate) fn start() -> Option<Pair> {
        let other = MysqlOptions { program: other_mysql_server(), ..MysqlOptions::default() };
        let servers = [mysql_server(&MysqlOptions::default())?, mysql_server(&other)?].map(Arc::new);
        // FF08: the servers' own zones mean nothing.
        servers[0].sql("SET GLOBAL time_zone = '+05:30'; CREATE DATABASE shop").unwrap();
        servers[1].sql("SET GLOBAL time_zone = '-08:00'; CREATE DATABASE shop").unwrap();
        Some(Pair { folder: tempfile::tempdir().unwrap(), servers })
    }

    fn config(&self, channel: &str) -> PathBuf {
        self.config_with("", channel)
    }

    /// `top` before the channel, `channel` in it.
    pub(crate) fn config_with(&self, top: &str, channel: &str) -> PathBuf {
        let path = self.folder.path().join("syncd.toml");
        let [dc, cloud] = self.servers.each_ref().map(|server| server.url());
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n{top}\n[[channel]]\nname = \"orders\"\nstore = \"mysql\"\n\
             direction = \"both\"\n{channel}\ndc = {{ url = \"{dc}\" }}\ncloud = {{ url = \"{cloud}\" }}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn check(&self) -> Answer {
        let path = self.config("tables = [\"shop.*\"]");
        verifier(&["check", "--json", "--list-max", "10000", "--config", path.to_str().unwrap()])
    }

    pub(crate) fn both(&self, sql: &str) {
        (0..self.servers.len()).for_each(|site| self.at(site, sql));
    }

    pub(crate) fn at(&self, site: usize, sql: &str) {
        let head = "SET time_zone = '+00:00'; SET sql_mode = 'ALLOW_INVALID_DATES'; USE shop";
        self.servers[site].sql(&format!("{head}; {sql}")).unwrap();
    }
}

/// `(table, key, kind)` of each difference.
fn found(answer: &Answer) -> BTreeSet<(String, String, String)> {
    let json = answer.json();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = json["differences"].as_array().unwrap();
    list.iter().map(|d| (text(&d["table"]), text(&d["key"]), text(&d["kind"]))).collect()
}

fn expected(all: &[(&str, &str, &str)]) -> BTreeSet<(String, String, String)> {
    all.iter().map(|(table, key, kind)| ((*table).into(), (*key).into(), (*kind).into())).collect()
}

/// A column, what it holds at both sites, and what at one of them then.
pub(crate) const WRONG: &[(&str, &str, &str)] = &[
    ("TINYINT", "-128", "-127"),
    ("TINYINT UNSIGNED", "255", "254"),
    ("SMALLINT", "-32768", "32767"),
    ("MEDIUMINT UNSIGNED", "16777215", "16777214"),
    ("INT", "0", "NULL"),
    ("INT(8) UNSIGNED ZEROFILL", "7", "8"),
    ("BIGINT", "9223372036854775807", "9223372036854775806"),
    ("BIGINT UNSIGNED", "18446744073709551615", "18446744073709551614"),
    ("DECIMAL(65,30)", "0.000000000000000000000000000001", "0.000000000000000000000000000002"),
    (
        "DECIMAL(65,0)",
        "12345678901234567890123456789012345678901234567890",
        "12345678901234567890123456789012345678901234567891",
    ),
    ("FLOAT", "0.1", "0.10000001"),
    ("FLOAT", "16777216", "16777215"),
    ("FLOAT", "0e0", "-0e0"),
    ("DOUBLE", "0.1", "0.10000000000000002"),
    ("DOUBLE", "1.7976931348623157e308", "1.7976931348623155e308"),
    ("DOUBLE", "0e0", "-0e0"),
    ("BIT(1)", "b'1'", "b'0'"),
    (
        "BIT(64)",
        "b'1000000000000000000000000000000000000000000000000000000000000001'",
        "b'1000000000000000000000000000000000000000000000000000000000000000'",
    ),
    ("DATE", "'2024-02-29'", "'2024-03-01'"),
    ("DATE", "'0000-00-00'", "NULL"),
    ("DATETIME", "'2024-02-30 00:00:00'", "'2024-02-29 00:00:00'"),
    ("DATETIME(6)", "'9999-12-31 23:59:59.999999'", "'9999-12-31 23:59:59.999998'"),
    ("TIMESTAMP NULL", "'2024-10-27 00:30:00'", "'2024-10-27 01:30:00'"),
    ("TIMESTAMP(3) NULL", "'2038-01-19 03:14:07.999'", "'2038-01-19 03:14:07.998'"),
    ("TIME", "'-838:59:59'", "'838:59:59'"),
    ("TIME(6)", "'-00:00:00.000001'", "'00:00:00.000001'"),
    ("YEAR", "0", "2000"),
    ("CHAR(10)", "'abc'", "'abC'"),
    ("VARCHAR(300)", "'trail'", "'trail '"),
    ("VARCHAR(300)", "''", "NULL"),
    ("VARCHAR(300)", "'a,1:b'", "'a,1:c'"),
    ("VARCHAR(300)", "'\u{1f600}'", "'\u{1f601}'"),
    ("VARCHAR(50) CHARACTER SET latin1", "'caf\u{e9}'", "'caf\u{e8}'"),
    ("TEXT CHARACTER SET gbk", "'\u{4f60}\u{597d}'", "'\u{4f60}\u{4f60}'"),
    ("VARCHAR(20) CHARACTER SET utf16", "'a\u{1f600}'", "'b\u{1f600}'"),
    ("VARCHAR(20) CHARACTER SET utf8mb3", "'\u{20ac}'", "'\u{20ad}'"),
    ("BINARY(8)", "x'0102'", "x'0103'"),
    ("VARBINARY(300)", "x'010200'", "x'0102'"),
    ("VARBINARY(300)", "x'ff'", "x'fe'"),
    ("TINYBLOB", "x'00ff00'", "x'00ff01'"),
    ("MEDIUMBLOB", "REPEAT(x'00', 70000)", "CONCAT(REPEAT(x'00', 69999), x'01')"),
    ("LONGTEXT", "REPEAT('a', 300000)", "CONCAT(REPEAT('a', 299999), 'b')"),
    ("TINYTEXT", "'x'", "'X'"),
    ("LONGTEXT CHARACTER SET latin1", "'\u{fc}'", "'\u{e4}'"),
    ("ENUM('a','b''c','\u{e9}')", "'a'", "'b''c'"),
    ("ENUM('a','b')", "'a'", "NULL"),
    ("SET('x','y','z')", "'x,z'", "'x,y,z'"),
    ("SET('x','y','z')", "''", "NULL"),
    ("JSON", "'{\"a\": [1, 2, \"x\", null]}'", "'{\"a\": [1, 2, \"x\", 0]}'"),
    ("JSON", "'[1]'", "'[\"1\"]'"),
    ("JSON", "'null'", "NULL"),
    ("GEOMETRY", "ST_GeomFromText('POINT(1.5 -2)')", "ST_GeomFromText('POINT(1.5 -2.0000000000000004)')"),
    ("POINT", "ST_GeomFromText('POINT(1 2)', 3857)", "ST_GeomFromText('POINT(1 2)', 0)"),
];

/// A table with a column for each type, and the same rows at both sites: one for each, and one that stays.
pub(crate) fn fill(pair: &Pair) {
    let columns: Vec<String> =
        WRONG.iter().enumerate().map(|(n, (kind, ..))| format!("c{n} {kind}")).collect();
    // In another order at the other site, and with names in capitals (FF10).
    let others: Vec<String> = columns.iter().rev().map(|column| column.replacen('c', "C", 1)).collect();
    pair.at(0, &format!("CREATE TABLE t (id INT PRIMARY KEY, {})", columns.join(", ")));
    pair.at(1, &format!("CREATE TABLE t ({}, ID INT PRIMARY KEY)", others.join(", ")));
    let all: Vec<String> =
        WRONG.iter().enumerate().map(|(n, (_, before, _))| format!("c{n} = {before}")).collect();
    for id in 0..=WRONG.len() {
        pair.both(&format!("INSERT INTO t SET id = {id}, {}", all.join(", ")));
    }
}

/// One column of each row gets wrong at the second site.
pub(crate) fn plant(pair: &Pair) {
    for (n, (_, _, after)) in WRONG.iter().enumerate() {
        pair.at(1, &format!("UPDATE t SET c{n} = {after} WHERE id = {n}"));
    }
}

/// FF53: a verifier that cannot fail proves nothing. Every type gets one thing wrong, and exactly that is found.
#[test]
fn one_wrong_bit_in_a_value_of_any_type_is_found() {
    let Some(pair) = Pair::start() else { return };
    fill(&pair);
    let answer = pair.check();
    assert_eq!((answer.code, found(&answer)), (0, BTreeSet::new()), "{}", answer.stderr);
    assert_eq!(answer.json()["compared"], WRONG.len() + 1);

    plant(&pair);
    let answer = pair.check();
    let found = found(&answer);
    // MariaDB stores no zero with a sign.
    let has_sign = pair.servers[1].flavour() == Flavour::MySql;
    let (stays, wrong): (Vec<_>, Vec<_>) =
        WRONG.iter().enumerate().partition(|(_, (_, _, after))| *after == "-0e0" && !has_sign);
    let missed: Vec<_> = wrong
        .iter()
        .filter(|(n, _)| !found.contains(&("shop.t".into(), n.to_string(), "content".into())))
        .collect();
    assert!(missed.is_empty(), "{missed:?}\n{}", answer.stderr);
    assert_eq!((answer.code, found.len()), (1, WRONG.len() - stays.len()));
    // Of each row the one column.
    for one in answer.json()["differences"].as_array().unwrap() {
        let column = format!("c{}", one["key"].as_str().unwrap());
        assert_eq!(one["parts"], serde_json::json!([column]), "{one}");
    }
}

/// Stretches of keys of every kind: what one site lacks, at the ends and in the middle, in the order of the keys.
#[test]
fn rows_that_one_site_lacks_are_found_by_keys_of_any_kind() {
    let Some(pair) = Pair::start() else { return };
    let seq = numbers(3000);
    pair.both(&format!(
        "CREATE TABLE negative (id BIGINT PRIMARY KEY, v INT); INSERT INTO negative SELECT seq - 1500, 1 FROM {seq}; \
         CREATE TABLE pairs (a INT, b VARCHAR(20), v INT, PRIMARY KEY (b, a)); \
         INSERT INTO pairs SELECT seq % 7, CONCAT('k''', seq DIV 7), 1 FROM {seq}; \
         CREATE TABLE texts (k VARCHAR(40) PRIMARY KEY, v INT); INSERT INTO texts SELECT CONCAT('User', seq), 1 FROM {seq}; \
         CREATE TABLE bins (k BINARY(16) PRIMARY KEY, v INT); INSERT INTO bins SELECT UNHEX(LEFT(SHA2(seq, 256), 32)), 1 FROM {seq}; \
         CREATE TABLE times (k DATETIME(6) PRIMARY KEY, d DECIMAL(10,2)); \
         INSERT INTO times SELECT TIMESTAMPADD(SECOND, seq * 1000, '2024-01-01'), seq / 100 FROM {seq}; \
         CREATE TABLE uniques (a INT, b INT NOT NULL, UNIQUE KEY other (a), UNIQUE KEY it (b)); \
         INSERT INTO uniques SELECT seq, seq FROM {seq}; \
         CREATE TABLE nothing (id INT PRIMARY KEY); CREATE TABLE filled (id INT PRIMARY KEY); \
         CREATE TABLE emptied (id INT PRIMARY KEY, v INT); INSERT INTO emptied SELECT seq, 1 FROM {seq}"
    ));
    let answer = pair.check();
    assert_eq!((answer.code, found(&answer)), (0, BTreeSet::new()), "{}", answer.stderr);
    assert_eq!(answer.json()["compared"], 7 * 3000);

    pair.at(
        1,
        "DELETE FROM uniques WHERE b = 77; DELETE FROM negative WHERE id IN (-1499, 0, 1500); INSERT INTO negative VALUES (-9999, 1), (9999, 1); \
         DELETE FROM pairs WHERE b = 'k''3' AND a = 2; UPDATE pairs SET v = 2 WHERE b = 'k''428' AND a = 3; \
         UPDATE texts SET k = 'USER7' WHERE k = 'user7'; DELETE FROM texts WHERE k = 'User2999'; \
         DELETE FROM bins WHERE k = UNHEX(LEFT(SHA2(1, 256), 32)); \
         UPDATE times SET d = 30.01 WHERE d = 30.00; DELETE FROM emptied WHERE id > 2; INSERT INTO filled VALUES (1), (2)",
    );
    let answer = pair.check();
    let found = found(&answer);
    let emptied = found.iter().filter(|(table, ..)| table == "shop.emptied").count();
    assert_eq!(emptied, 2998);
    // One row to the collation, spelt in two ways: by which of them it is named is all the same.
    let is_aside = |(table, key, _): &(String, String, String)| table == "shop.emptied" || key == "USER7";
    let rest: BTreeSet<_> = found.into_iter().filter(|one| !is_aside(one)).collect();
    let bin = pair.servers[0].sql("SELECT TO_BASE64(UNHEX(LEFT(SHA2(1, 256), 32)))").unwrap();
    let bin = format!("{{\"base64\":\"{}\"}}", bin.trim());
    let all = [
        ("shop.uniques", "77", "extra"),
        ("shop.negative", "-1499", "extra"),
        ("shop.negative", "0", "extra"),
        ("shop.negative", "1500", "extra"),
        ("shop.negative", "-9999", "missing"),
        ("shop.negative", "9999", "missing"),
        ("shop.pairs", "[\"k'3\",2]", "extra"),
        ("shop.pairs", "[\"k'428\",3]", "content"),
        ("shop.texts", "User7", "content"),
        ("shop.texts", "User2999", "extra"),
        ("shop.bins", bin.as_str(), "extra"),
        ("shop.times", "2024-02-04 17:20:00", "content"),
        ("shop.filled", "1", "missing"),
        ("shop.filled", "2", "missing"),
    ];
    assert_eq!(rest, expected(&all));
    let compared = answer.json()["compared"].as_u64().unwrap();
    assert!(answer.code == 1 && (21_004..=21_005).contains(&compared), "{} {compared}", answer.code);
}

/// What is not a row: tables that one site lacks, has with other columns or another key, and tables without a key.
#[test]
fn tables_that_differ_are_named() {
    let Some(pair) = Pair::start() else { return };
    pair.both(
        "CREATE TABLE same (id INT PRIMARY KEY, v INT); INSERT INTO same VALUES (1, 1); \
         CREATE TABLE log (v INT, w VARCHAR(5)); INSERT INTO log VALUES (1, 'a'), (1, 'a'), (2, NULL); \
         CREATE TABLE bag (v INT); INSERT INTO bag VALUES (1), (1), (2); CREATE VIEW seen AS SELECT * FROM same",
    );
    pair.at(0, "CREATE TABLE alone (id INT PRIMARY KEY); CREATE TABLE k (a INT, b INT, PRIMARY KEY (a)); INSERT INTO k VALUES (1, 2)");
    pair.at(1, "CREATE TABLE k (a INT, b INT, PRIMARY KEY (b)); INSERT INTO k VALUES (1, 2); ALTER TABLE same ADD w INT");
    // The same rows in another order are the same; as many rows, of which others are there twice, are not.
    pair.at(1, "DELETE FROM log; INSERT INTO log VALUES (2, NULL), (1, 'a'), (1, 'a'); DELETE FROM bag; INSERT INTO bag VALUES (1), (2), (2)");
    let answer = pair.check();
    let keys: BTreeSet<_> = found(&answer).into_iter().map(|(_, key, kind)| (key, kind)).collect();
    let all =
        [("shop.alone", "extra"), ("shop.bag", "content"), ("shop.k", "content"), ("shop.same", "content")];
    assert_eq!(keys, all.into_iter().map(|(key, kind)| (key.to_owned(), kind.to_owned())).collect());
    assert_eq!((answer.code, &answer.json()["compared"]), (1, &1.into()));
    for (key, parts) in
        [("shop.bag", vec!["rows"]), ("shop.k", vec!["primary key"]), ("shop.same", vec!["column w"])]
    {
        let json = answer.json();
        let mut listed = json["differences"].as_array().unwrap().iter();
        let one = listed.find(|one| one["key"] == key).unwrap();
        assert_eq!(one["parts"], serde_json::json!(parts), "{key}");
    }
}

/// The same text in another charset, the same key in another collation, the same number in a wider column.
#[test]
fn the_same_content_in_another_column_is_the_same() {
    let Some(pair) = Pair::start() else { return };
    let rows = "(1, 'caf\u{e9}', 7, 1.5, '2024-01-01', 'x'), (2, '\u{fc}', NULL, -0.25, NULL, 'z')";
    for (site, text, int, double, time, label, collation) in [
        (
            0,
            "VARCHAR(20) CHARACTER SET latin1",
            "TINYINT",
            "FLOAT",
            "DATE",
            "ENUM('x','z')",
            "utf8mb4_general_ci",
        ),
        (1, "TEXT CHARACTER SET utf8mb4", "BIGINT", "DOUBLE", "DATETIME", "ENUM('y','z','x')", "utf8mb4_bin"),
    ] {
        pair.at(
            site,
            &format!(
                "CREATE TABLE t (id INT PRIMARY KEY, a {text}, b {int}, c {double}, d {time}, e {label}); \
                 INSERT INTO t VALUES {rows}; CREATE TABLE k (k VARCHAR(20) CHARACTER SET utf8mb4 COLLATE {collation} PRIMARY KEY); \
                 INSERT INTO k SELECT CONCAT(IF(seq % 2 = 0, 'a', 'B'), seq) FROM {}",
                numbers(2500)
            ),
        );
    }
    let answer = pair.check();
    assert_eq!((answer.code, found(&answer)), (0, BTreeSet::new()), "{}", answer.stderr);
    assert_eq!(answer.json()["compared"], 2502);
    pair.at(1, "DELETE FROM k WHERE k = 'a1000'; INSERT INTO k VALUES ('0'), ('zz')");
    let answer = pair.check();
    let all = [("shop.k", "a1000", "extra"), ("shop.k", "0", "missing"), ("shop.k", "zz", "missing")];
    assert_eq!(found(&answer), expected(&all));
}

/// JSON is the same in the order that MySQL gives its keys, and in the text that MariaDB keeps.
#[test]
fn json_is_the_same_at_mysql_and_mariadb() {
    let Some(pair) = Pair::start() else { return };
    if pair.servers[0].flavour() == pair.servers[1].flavour() {
        return;
    }
    pair.both("CREATE TABLE t (id INT PRIMARY KEY, v JSON); INSERT INTO t VALUES (1, '{\"bb\":1.50, \"a\": [true,null]}')");
    let answer = pair.check();
    assert_eq!((answer.code, found(&answer)), (0, BTreeSet::new()), "{}", answer.stderr);
    pair.at(1, "UPDATE t SET v = '{\"bb\":1.51, \"a\": [true,null]}'");
    assert_eq!(found(&pair.check()), expected(&[("shop.t", "1", "content")]));
}

/// Planted among many rows, some that are written all the time: each is found, and what rests and is equal is not.
#[test]
fn what_is_planted_is_found_while_rows_are_written() {
    let Some(pair) = Pair::start() else { return };
    let planted: Vec<u32> = (0..20).map(|n| 1 + n * 2503 % 50_000).collect();
    pair.both(&format!(
        "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(100), n INT); \
         INSERT INTO t SELECT seq, REPEAT(SHA2(seq, 256), 1), 0 FROM {}",
        numbers(50_000)
    ));
    for id in &planted {
        pair.at((id % 2) as usize, &format!("UPDATE t SET v = 'planted' WHERE id = {id}"));
    }
    let stop = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        for (site, server) in pair.servers.iter().enumerate() {
            let (stop, planted) = (&stop, &planted);
            scope.spawn(move || {
                for n in (0_u32..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    // A few rows, always the same, that no daemon brings over.
                    let id = 5 + n % 10;
                    let hot = planted.contains(&id);
                    assert!(!hot, "{id} is planted");
                    server.sql(&format!("UPDATE shop.t SET n = {n} + {site} WHERE id = {id}")).unwrap();
                }
            });
        }
        let answer = pair.check();
        stop.store(true, Ordering::Relaxed);
        answer
    });
    let ids: BTreeSet<u32> = found(&answer).into_iter().filter_map(|(_, key, _)| key.parse().ok()).collect();
    let missed: Vec<_> = planted.iter().filter(|id| !ids.contains(id)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    let false_ones: Vec<_> =
        ids.iter().filter(|id| !planted.contains(id) && !(5..15).contains(*id)).collect();
    assert!(false_ones.is_empty(), "{false_ones:?}");
    assert_eq!(answer.json()["compared"], 50_000);
}

#[test]
fn what_cannot_be_compared_is_told() {
    let Some(pair) = Pair::start() else { return };
    let path = pair.config("tables = [\"shop.*\"]");
    let run = |arguments: &[&str]| {
        let fixed = ["check", "--json", "--config", path.to_str().unwrap()];
        let answer = verifier(&[&fixed, arguments].concat());
        (answer.code, answer.stderr)
    };
    let (code, text) = run(&[]);
    assert!(code == 2 && text.contains("neither site has a table"), "{code} {text}");
    let (code, text) = run(&["--tenant", "a"]);
    assert!(code == 2 && text.contains("leave --tenant out"), "{code} {text}");
    // Somebody who may look at nothing.
    pair.both("CREATE TABLE t (id INT PRIMARY KEY); CREATE USER blind@'127.0.0.1' IDENTIFIED BY 'secret'; GRANT SELECT (id) ON shop.t TO blind@'127.0.0.1'; FLUSH PRIVILEGES");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("root@", "blind:secret@")).unwrap();
    let (code, text) = run(&[]);
    assert!(code == 0, "{code} {text}");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("blind:secret@", "blind:wrong@"))
        .unwrap();
    let (code, text) = run(&[]);
    assert!(code == 3 && text.contains("orders: ") && !text.contains("wrong@"), "{code} {text}");
    let same = std::fs::read_to_string(&path).unwrap().replace("blind:wrong@", "root@");
    let same = same.replace(&pair.servers[1].url(), &pair.servers[0].url());
    std::fs::write(&path, same).unwrap();
    let (code, text) = run(&[]);
    assert!(code == 2 && text.contains("are the same server"), "{code} {text}");
}

/// Where no log knows of a window, a column may: of tables of any kind of key, more rows than a page, whatever the zone.
#[test]
fn a_window_can_be_told_by_a_column_of_the_rows() {
    let Some(pair) = Pair::start() else { return };
    pair.both(
        "CREATE TABLE a (id INT PRIMARY KEY, v INT, Changed TIMESTAMP(3) NULL); \
         CREATE TABLE b (k VARCHAR(20), n INT, changed DATETIME, v INT, PRIMARY KEY (k, n)); \
         CREATE TABLE c (id INT PRIMARY KEY, v INT); CREATE TABLE d (changed DATETIME)",
    );
    let rows = numbers(5_000);
    pair.both(&format!(
        "INSERT INTO a SELECT seq, 1, '2026-03-01 02:00:00.000' + INTERVAL seq SECOND FROM {rows}; \
         INSERT INTO b SELECT CONCAT('k', seq % 7), seq, '2026-03-01 02:00:00' + INTERVAL seq SECOND, 1 FROM {rows}; \
         INSERT INTO c VALUES (1, 1); INSERT INTO a VALUES (9000, 1, NULL)"
    ));
    // Within the window, at its ends, outside, and where there is no such column.
    pair.at(
        1,
        "UPDATE a SET v = 2 WHERE id IN (99, 100, 2500, 3699, 3700, 9000); DELETE FROM a WHERE id IN (50, 1000); \
         UPDATE b SET v = 2 WHERE n IN (99, 100, 3000); UPDATE c SET v = 2; INSERT INTO d VALUES ('2026-03-01 02:10:00')",
    );
    pair.at(0, "DELETE FROM b WHERE n = 2000");
    let path = pair.config("tables = [\"shop.*\"]");
    let check = |column: &str| {
        let window =
            ["--from", "2026-03-01T02:01:40Z", "--to", "2026-03-01T03:01:40Z", "--time-column", column];
        verifier(&[&["check", "--json", "--config", path.to_str().unwrap()], &window[..]].concat())
    };
    let answer = check("changed");
    let all = expected(&[
        ("shop.a", "100", "content"),
        ("shop.a", "2500", "content"),
        ("shop.a", "3699", "content"),
        ("shop.a", "1000", "extra"),
        ("shop.b", "[\"k2\",100]", "content"),
        ("shop.b", "[\"k4\",3000]", "content"),
        ("shop.b", "[\"k5\",2000]", "missing"),
    ]);
    assert_eq!(found(&answer), all, "{} {}", answer.stdout, answer.stderr);
    assert_eq!((answer.code, &answer.json()["compared"]), (1, &7200.into()));
    let answer = check("v");
    assert!(answer.code == 2 && answer.stderr.contains("--time-column v: allowed is"), "{}", answer.stderr);
}
