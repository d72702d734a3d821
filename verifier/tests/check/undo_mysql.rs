//! `verifier undo` of rows, with two real MySQL or MariaDB servers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value as Json;

use crate::daemon::Daemon;
use crate::mysql::{Pair, WRONG, fill, plant};
use crate::support::{Answer, verifier};

/// A pair with a daemon that carries what the test says is to be carried: statements at `cloud`.
struct Repaired {
    pair: Pair,
    daemon: Daemon,
    carried: Arc<Mutex<String>>,
}

impl Repaired {
    fn start() -> Option<Repaired> {
        let pair = Pair::start()?;
        let carried = Arc::new(Mutex::new(String::new()));
        let (cloud, sql) = (Arc::clone(&pair.servers[1]), Arc::clone(&carried));
        let daemon = Daemon::start(move |_| {
            let head = "SET time_zone = '+00:00'; SET sql_mode = 'ALLOW_INVALID_DATES'; SET foreign_key_checks = 0; USE shop";
            cloud.sql(&format!("{head}; {}", sql.lock().unwrap())).unwrap();
        });
        Some(Repaired { pair, daemon, carried })
    }

    fn verifier(&self, command: &str, arguments: &[&str]) -> Answer {
        let path = self.pair.config_with(&self.daemon.config(), "tables = [\"shop.*\"]");
        verifier(&[&[command, "--config", path.to_str().unwrap()], arguments].concat())
    }

    /// Repairs from `dc`, which `sql` does at `cloud`; the undo file.
    fn repair(&self, sql: &str) -> PathBuf {
        *self.carried.lock().unwrap() = sql.to_owned();
        let answer = self.verifier("repair", &["--from", "dc", "--yes", "--json", "--share-max", "100"]);
        assert_eq!(answer.code, 0, "{} {}", answer.stdout, answer.stderr);
        answer.json()["undo"].as_str().unwrap().into()
    }

    fn undo(&self, file: &Path, arguments: &[&str]) -> Answer {
        self.verifier("undo", &[&[file.to_str().unwrap()], arguments].concat())
    }

    /// What became of the keys of the file, once it is put back.
    fn put_back(&self, file: &Path) -> (Json, Answer) {
        let answer = self.undo(file, &["--yes", "--json"]);
        (answer.json()["channels"][0].clone(), answer)
    }

    fn at_cloud(&self, sql: &str) -> String {
        self.pair.servers[1].sql(sql).unwrap().trim().to_owned()
    }
}

#[test]
fn a_row_that_a_repair_overwrote_is_put_back_bit_by_bit_of_any_type() {
    let Some(it) = Repaired::start() else { return };
    fill(&it.pair);
    plant(&it.pair);
    // The server's own sum of all that is stored.
    let sum = || it.at_cloud("CHECKSUM TABLE shop.t EXTENDED");
    let (sum_before, differed) = (sum(), it.pair.check().json()["differences"].clone());
    let right: Vec<String> = WRONG
        .iter()
        .enumerate()
        .map(|(n, (_, before, _))| format!("UPDATE t SET c{n} = {before} WHERE id = {n}"))
        .collect();
    let file = it.repair(&right.join("; "));
    assert_ne!(sum(), sum_before);
    let (told, answer) = it.put_back(&file);
    assert_eq!((&told["left"], &told["changed"]), (&0.into(), &0.into()), "{told} {}", answer.stderr);
    assert_eq!(told["back"], differed.as_array().unwrap().len());
    assert_eq!((sum(), it.pair.check().json()["differences"].clone()), (sum_before, differed));
}

/// Rows that were gone or should not have been there, keys of several columns and in another charset, columns that follow
/// from others, that do not show, and that nobody else has; values that have to be unique, and a parent and its child.
#[test]
fn rows_of_any_shape_are_put_back() {
    let Some(it) = Repaired::start() else { return };
    it.pair.both(
        "CREATE TABLE shapes (a INT, b VARCHAR(20) CHARACTER SET latin1, v INT, twice INT AS (v * 2) STORED, thrice INT AS (v * 3) VIRTUAL, \
           hidden INT INVISIBLE, stamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, PRIMARY KEY (b, a)); \
         INSERT INTO shapes (a, b, v, hidden, stamp) VALUES (1, 'caf\u{e9}', 1, 1, '2024-01-01'), (2, 'x', 2, 2, '2024-01-01'); \
         CREATE TABLE uniques (id INT PRIMARY KEY, u INT UNIQUE); INSERT INTO uniques VALUES (1, 10), (2, 20), (3, 30); \
         CREATE TABLE zparent (id INT PRIMARY KEY); CREATE TABLE child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES zparent (id)); \
         CREATE TABLE auto (id INT AUTO_INCREMENT PRIMARY KEY, v INT); \
         CREATE TABLE texts (k VARCHAR(20) PRIMARY KEY, v INT); INSERT INTO texts VALUES ('user7', 1); \
         CREATE TABLE `odd``name` (`a b` INT PRIMARY KEY, `c``d` TEXT)"
    );
    it.pair.at(
        1,
        "UPDATE shapes SET v = 7, hidden = 8, stamp = '2025-05-05' WHERE a = 1; DELETE FROM shapes WHERE a = 2; \
         INSERT INTO shapes (a, b, v, hidden, stamp) VALUES (3, 'new', 3, NULL, '2025-05-05'); \
         UPDATE uniques SET u = 40 WHERE id = 3; UPDATE uniques SET u = 30 WHERE id = 2; UPDATE uniques SET u = 20 WHERE id = 1; \
         INSERT INTO zparent VALUES (1); INSERT INTO child VALUES (1, 1); \
         SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'; INSERT INTO auto VALUES (0, 5); UPDATE texts SET k = 'USER7', v = 2; \
         INSERT INTO `odd``name` VALUES (1, 'it''s \\\\')",
    );
    let tables =
        "shop.shapes, shop.uniques, shop.zparent, shop.child, shop.auto, shop.texts, shop.`odd``name`";
    let sum = || it.at_cloud(&format!("CHECKSUM TABLE {tables} EXTENDED"));
    let before = sum();
    let file = it.repair(
        "UPDATE shapes SET v = 1, hidden = 1, stamp = '2024-01-01' WHERE a = 1; DELETE FROM shapes WHERE a = 3; \
         INSERT INTO shapes (a, b, v, hidden, stamp) VALUES (2, 'x', 2, 2, '2024-01-01'); \
         UPDATE uniques SET u = 10 WHERE id = 1; UPDATE uniques SET u = 20 WHERE id = 2; UPDATE uniques SET u = 30 WHERE id = 3; \
         DELETE FROM zparent; DELETE FROM child; DELETE FROM auto; UPDATE texts SET k = 'user7', v = 1; DELETE FROM `odd``name`",
    );
    assert_ne!(sum(), before);
    let (told, answer) = it.put_back(&file);
    assert_eq!((&told["left"], &told["changed"]), (&0.into(), &0.into()), "{told} {}", answer.stderr);
    assert_eq!((sum(), &told["deleted"]), (before, &1.into()), "{told}");
    // And the undo of the undo.
    let kept = answer.json()["undo"].as_str().unwrap().to_owned();
    let (told, answer) = it.put_back(Path::new(&kept));
    assert_eq!(
        (answer.code, &told["left"], &told["changed"]),
        (0, &0.into(), &0.into()),
        "{told} {}",
        answer.stderr
    );
    assert_eq!(it.pair.check().code, 0);
}

#[test]
fn what_stands_in_the_way_of_a_row_is_told_and_the_row_left_alone() {
    let Some(it) = Repaired::start() else { return };
    let tables = ["changed", "deleted", "gone", "wider", "narrower", "trigger_", "taken", "fine"];
    for table in tables {
        it.pair.both(&format!("CREATE TABLE {table} (id INT PRIMARY KEY, v VARCHAR(20), u INT UNIQUE); INSERT INTO {table} VALUES (1, 'right', 1)"));
        it.pair.at(1, &format!("UPDATE {table} SET v = 'much older', u = 7"));
    }
    let right: Vec<String> =
        tables.iter().map(|table| format!("UPDATE {table} SET v = 'right', u = 1")).collect();
    let file = it.repair(&right.join("; "));
    it.pair.at(
        1,
        "UPDATE changed SET v = 'newer'; DELETE FROM deleted; DROP TABLE gone; ALTER TABLE wider ADD w INT; \
         ALTER TABLE narrower MODIFY v VARCHAR(8); INSERT INTO taken VALUES (2, 'secret', 7); \
         CREATE TRIGGER shout BEFORE UPDATE ON trigger_ FOR EACH ROW SET NEW.v = UPPER(NEW.v)",
    );
    let (told, answer) = it.put_back(&file);
    let listed = told["listed"].as_array().unwrap().iter();
    let mut all: Vec<(&str, &str, &str)> = listed
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap_or_default();
            (text("table"), text("what"), text("reason"))
        })
        .collect();
    all.sort_unstable();
    let does_not_take = "v does not take its old value: was it, or a trigger, changed?";
    assert_eq!(
        all,
        [
            ("shop.changed", "changed", ""),
            ("shop.deleted", "changed", ""),
            ("shop.fine", "put back", ""),
            ("shop.gone", "left", "its table is gone, or has no primary key that both sites share"),
            ("shop.narrower", "left", does_not_take),
            ("shop.taken", "left", "another row holds what has to be unique"),
            ("shop.trigger_", "left", does_not_take),
            ("shop.wider", "left", "its table has other columns now: w is new"),
        ],
        "{}",
        answer.stderr
    );
    assert_eq!(answer.code, 1);
    assert!(!answer.stdout.contains("secret") && !answer.stdout.contains("older"), "{}", answer.stdout);
    let rows = it.at_cloud("SELECT v, u FROM shop.changed UNION ALL SELECT v, u FROM shop.narrower UNION ALL SELECT v, u FROM shop.trigger_ UNION ALL SELECT v, u FROM shop.fine");
    assert_eq!(rows, "newer\t1\nright\t1\nright\t1\nmuch older\t7");
}

/// A column that only the overwritten site has: a repair leaves it as it is where the row is there, and so does an undo; with the
/// row it goes and comes back.
#[test]
fn a_column_that_only_one_site_has_keeps_what_was_written_since() {
    let Some(it) = Repaired::start() else { return };
    it.pair.both("CREATE TABLE t (id INT PRIMARY KEY, v INT); INSERT INTO t VALUES (1, 1)");
    it.pair.at(1, "ALTER TABLE t ADD W INT DEFAULT 5; UPDATE t SET v = 7; INSERT INTO t VALUES (2, 7, 8)");
    *it.carried.lock().unwrap() = "UPDATE t SET v = 1 WHERE id = 1; DELETE FROM t WHERE id = 2".to_owned();
    let answer = it.verifier("repair", &["--from", "dc", "--yes", "--json", "--share-max", "100"]);
    // The table itself differs still.
    assert_eq!((answer.code, &answer.json()["channels"][0]["repaired"]), (1, &2.into()), "{}", answer.stdout);
    it.pair.at(1, "UPDATE t SET w = 6");
    let (told, answer) = it.put_back(Path::new(answer.json()["undo"].as_str().unwrap()));
    assert_eq!(told["back"], 2, "{told} {}", answer.stderr);
    assert_eq!(it.at_cloud("SELECT id, v, w FROM shop.t ORDER BY id"), "1\t7\t6\n2\t7\t8");
}

/// A statement that puts it back would be longer than the server takes.
#[test]
fn a_row_that_could_not_be_put_back_is_not_overwritten() {
    let Some(it) = Repaired::start() else { return };
    it.pair.both(
        "CREATE TABLE t (id INT PRIMARY KEY, v LONGBLOB); INSERT INTO t VALUES (1, 'right'), (2, 'right')",
    );
    it.pair.at(1, "UPDATE t SET v = 'old' WHERE id = 1; UPDATE t SET v = REPEAT('x', 700000) WHERE id = 2; SET GLOBAL max_allowed_packet = 1048576");
    *it.carried.lock().unwrap() = "UPDATE t SET v = 'right' WHERE id = 1".to_owned();
    let answer = it.verifier("repair", &["--from", "dc", "--yes", "--share-max", "100"]);
    assert!(
        answer.code == 1 && answer.stdout.contains("1 of them too large to be kept"),
        "{} {}",
        answer.stdout,
        answer.stderr
    );
    assert_eq!(it.at_cloud("SELECT id, LENGTH(v) FROM shop.t"), "1\t5\n2\t700000");
}
