//! Values of every type come out of a snapshot, out of the binlog and out of a read by key in one form, and stand at the
//! target bit by bit as they stood at the source (FF09, FF11, FF17).

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod support;

use causeway_core::{Change, Event, Finding, Key, Op, Position, Site, Term, Token, Told};
use causeway_testkit::mysql::{Flavour, MysqlServer};
use support::{Pair, batch, committed, pair, send, until, up_to_now, values};

const TABLE: &str = "CREATE TABLE suite.types (
    id INT PRIMARY KEY,
    ti TINYINT, tu TINYINT UNSIGNED, si SMALLINT, su SMALLINT UNSIGNED, mi MEDIUMINT, mu MEDIUMINT UNSIGNED,
    i INT, iu INT UNSIGNED, bi BIGINT, bu BIGINT UNSIGNED, zf INT(8) UNSIGNED ZEROFILL,
    de DECIMAL(65,30), ds DECIMAL(5,0), f FLOAT, d DOUBLE, b1 BIT(1), b64 BIT(64),
    dt DATE, dtm DATETIME, dtm6 DATETIME(6), ts TIMESTAMP NULL, ts3 TIMESTAMP(3) NULL, t TIME, t6 TIME(6), y YEAR,
    c CHAR(10) CHARACTER SET utf8mb4, vc VARCHAR(300) CHARACTER SET utf8mb4, l1 VARCHAR(50) CHARACTER SET latin1,
    g TEXT CHARACTER SET gbk, u16 VARCHAR(20) CHARACTER SET utf16, u3 VARCHAR(20) CHARACTER SET utf8mb3,
    bin BINARY(8), vb VARBINARY(300), bl MEDIUMBLOB, tt TINYTEXT, lt LONGTEXT CHARACTER SET latin1,
    en ENUM('a','b''c','\u{e9}') CHARACTER SET utf8mb4, el ENUM('x','\u{e9}') CHARACTER SET latin1,
    st SET('x','y','z'), js JSON, ge GEOMETRY, pt POINT,
    gv BIGINT AS (id * 2) VIRTUAL, gs INT AS (id + 1) STORED, inv INT INVISIBLE DEFAULT 5,
    `odd name \"'` INT)";

/// One row a line: its columns' values.
const ROWS: &[&str] = &[
    "id = 1",
    "id = -2147483648, ti = -128, tu = 0, si = -32768, su = 0, mi = -8388608, mu = 0, i = -2147483648, iu = 0, \
     bi = -9223372036854775808, bu = 0, zf = 7",
    "id = 2, ti = 127, tu = 255, si = 32767, su = 65535, mi = 8388607, mu = 16777215, i = 2147483647, iu = 4294967295, \
     bi = 9223372036854775807, bu = 18446744073709551615, zf = 99999999",
    "id = 3, de = 12345678901234567890123456789012345.123456789012345678901234567890, ds = -99999",
    "id = 4, de = -0.000000000000000000000000000001, ds = 0",
    "id = 5, f = 0.1, d = 0.1",
    "id = 6, f = 3.4028234e38, d = 1.7976931348623157e308",
    "id = 7, f = 1.17549435e-38, d = 2.2250738585072014e-308",
    "id = 8, f = -0e0, d = -0e0",
    "id = 9, f = 16777217, d = 9007199254740993",
    "id = 10, b1 = b'1', b64 = b'1000000000000000000000000000000000000000000000000000000000000001'",
    "id = 11, b1 = b'0', b64 = 0",
    "id = 12, dt = '1000-01-01', dtm = '1000-01-01 00:00:00', dtm6 = '9999-12-31 23:59:59.999999'",
    "id = 13, dt = '0000-00-00', dtm = '0000-00-00 00:00:00', ts = '0000-00-00 00:00:00', y = 0",
    "id = 14, dt = '2024-02-30', dtm = '2024-00-10 00:00:00'",
    "id = 15, ts = '1970-01-01 00:00:01', ts3 = '2038-01-19 03:14:07.999', y = 1901",
    "id = 16, ts = '2024-10-27 00:30:00', ts3 = '2024-10-27 01:30:00.5', y = 2155",
    "id = 17, t = '-838:59:59', t6 = '838:59:58.999999'",
    "id = 18, t = '00:00:00', t6 = '-00:00:00.000001'",
    "id = 19, c = '', vc = '', l1 = '', g = '', u16 = '', bin = '', vb = '', bl = '', tt = ''",
    "id = 20, c = 'trail  ', vc = 'trail  ', bin = x'0102', vb = x'010200', bl = x'00ff00'",
    "id = 21, c = '\u{1f600}', vc = 'it''s \\\\ \\0 \\n \" ` \u{1f600}', tt = 'x', u3 = '\u{20ac}'",
    "id = 22, l1 = 'caf\u{e9}', g = '\u{4f60}\u{597d}', u16 = 'a\u{1f600}', lt = '\u{fc}'",
    "id = 23, bin = x'ffffffffffffffff', vb = x'27275c00', bl = repeat(x'00', 70000)",
    "id = 24, en = 'a', st = 'x,z', el = '\u{e9}'",
    "id = 25, en = 'b''c', st = ''",
    "id = 26, en = '\u{e9}', st = 'x,y,z'",
    "id = 27, js = '{\"a\": [1, 2.50, \"x\", null, 18446744073709551615], \"b\": -0.0}'",
    "id = 28, ge = ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))', 4326), pt = ST_GeomFromText('POINT(1.5 -2)')",
    "id = 29, inv = 9, `odd name \"'` = 1",
    "id = 30, vc = repeat('\u{1f600}', 300), g = repeat('\u{4f60}', 500)",
];

fn same(one: &[Change], other: &[Change], what: &str) {
    let (one, other) = (values(one), values(other));
    assert_eq!(one.len(), other.len(), "{what}");
    for ((key, one), (_, other)) in one.iter().zip(&other) {
        assert_eq!(one, other, "{what}, row {key}");
    }
}

fn insert(server: &MysqlServer) {
    let mut sql =
        "SET NAMES utf8mb4; SET time_zone = '+00:00'; SET sql_mode = 'ALLOW_INVALID_DATES';".to_owned();
    for row in ROWS {
        sql += &format!("INSERT INTO suite.types SET {row};\n");
    }
    server.sql(&sql).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_has_one_form_and_arrives_as_it_was() {
    let Some(Pair { servers, connector }) = pair(TABLE) else { return };
    // Times are stored in UTC, whatever the server's zone is (FF08).
    servers[0].sql("SET GLOBAL time_zone = '+05:30'").unwrap();
    servers[1].sql("SET GLOBAL time_zone = '-08:00'").unwrap();
    let mut stream = connector.source(Site::First);
    stream.open(None, false, Told::new()).await.unwrap();
    insert(&servers[0]);
    let last = |e: &Event| matches!(e, Event::Change(c) if c.key.name == "30");
    let streamed = until(stream.as_mut(), last).await;
    assert_eq!(streamed.len(), ROWS.len());
    assert!(streamed.iter().all(|change| change.op == Op::Put));

    let mut snapshot = connector.source(Site::First);
    snapshot.open(None, true, Told::new()).await.unwrap();
    let mut read = until(snapshot.as_mut(), |e| matches!(e, Event::SnapshotEnded { .. })).await;
    read.retain(|change| change.op == Op::Read);
    same(&read, &streamed, "a SELECT and the binlog");

    let keys = streamed.iter().map(|change| change.key.clone()).collect();
    let token: Token = stream.refresh(keys).await.unwrap();
    let states = until(stream.as_mut(), |e| *e == Event::Token(token)).await;
    same(&states, &streamed, "a read by key and the binlog");

    let with_json = servers[0].flavour() == servers[1].flavour();
    for (changes, term) in [(&streamed, 1), (&read, 2)] {
        servers[1].sql("DELETE FROM suite.types").unwrap();
        let mut target = connector.target(Site::Second);
        target.take_over(Term(term)).await.unwrap();
        let batch = batch(term, changes.len() as u64 * term, changes.clone());
        assert_eq!(send(target.as_mut(), batch).await.unwrap(), committed());
        let [first, second] = servers.each_ref().map(|server| everything(server, "types", with_json));
        for (first, second) in first.lines().zip(second.lines()) {
            assert_eq!(first, second);
        }
        assert_eq!(first.lines().count(), second.lines().count());
    }
}

/// The table as the server stores it: what is text or bytes in hexadecimal. JSON is text in MariaDB, and MySQL writes its
/// numbers and spaces in its own way: `with_json` only where both are one.
fn everything(server: &MysqlServer, table: &str, with_json: bool) -> String {
    let list = "SELECT GROUP_CONCAT(CASE WHEN data_type IN ('float', 'double') THEN CONCAT('`', column_name, '` + 0e0') \
                WHEN data_type REGEXP '^(.*int|decimal|date|.*time.*|year)$' AND data_type <> 'point' \
                THEN CONCAT('`', column_name, '`') ELSE CONCAT('HEX(`', column_name, '`)') END \
                ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name =";
    let without = if with_json { "" } else { " AND column_name <> 'js'" };
    let columns =
        server.sql(&format!("SET group_concat_max_len = 100000; {list} '{table}'{without}")).unwrap();
    let columns = columns.trim();
    server
        .sql(&format!(
            "SET NAMES utf8mb4; SET time_zone = '+00:00'; SELECT id, {columns} FROM suite.{table} ORDER BY id"
        ))
        .unwrap()
}

/// Rows that a server takes for equal, and that are not.
const ALIKE: &[&str] = &[
    "id = 40",
    "id = NULL",
    "id = 40, vc = ''",
    "id = 40, vc = 'a'",
    "id = 40, vc = 'A'",
    "id = 40, vc = 'a '",
    "id = 40, vc = '\u{e4}'",
    "id = 40, c = 'a'",
    "id = 40, l1 = 'e'",
    "id = 40, l1 = '\u{e9}'",
    "id = 40, u16 = 'e'",
    "id = 40, u16 = 'E'",
    "id = 40, tt = 'x'",
    "id = 40, tt = 'X'",
    "id = 40, vb = x'61'",
    "id = 40, vb = x'6100'",
    "id = 40, bl = ''",
    "id = 40, f = 0, d = 0",
    "id = 40, f = 16777216",
    "id = 40, d = 9007199254740992",
    "id = 40, d = 0.1",
    "id = 40, d = 0.10000000000000002",
    "id = 40, de = 0.000000000000000000000000000001",
    "id = 40, de = 0",
    "id = 40, bi = 9223372036854775806",
    "id = 40, bi = 9223372036854775807",
    "id = 40, bu = 18446744073709551614",
    "id = 40, bu = 18446744073709551615",
    "id = 40, b64 = 0",
    "id = 40, y = 0",
    "id = 40, y = 2000",
    "id = 40, t6 = '00:00:00'",
    "id = 40, t6 = '00:00:00.000001'",
    "id = 40, en = 'a'",
    "id = 40, st = ''",
    "id = 40, st = 'x'",
];

/// Rows of a table without a primary key are told apart byte by byte, whatever is in them: by the stream, a snapshot and a
/// read, and where they go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_told_apart_byte_by_byte() {
    let create = TABLE.replace("suite.types", "suite.keyless").replace("INT PRIMARY KEY", "INT");
    let Some(pair) = pair(&create.replace("js JSON, ", "")) else { return };
    let servers = &pair.servers;
    let mut rows: Vec<&str> = ROWS.iter().chain(ALIKE).copied().filter(|row| !row.contains("js =")).collect();
    if servers.iter().all(|server| server.flavour() == Flavour::MySql) {
        pair.sql_at_both("ALTER TABLE suite.keyless ADD COLUMN ve VECTOR(2)");
        rows.extend(["id = 40, f = -0e0", "id = 40, d = -0e0", "id = 40, ve = TO_VECTOR('[1,2]')"]);
    } else {
        // MariaDB has no such zero.
        rows.retain(|row| !row.contains("-0e0"));
    }
    let mut sql =
        "SET NAMES utf8mb4; SET time_zone = '+00:00'; SET sql_mode = 'ALLOW_INVALID_DATES';".to_owned();
    for row in &rows {
        sql += &format!("INSERT INTO suite.keyless SET {row}; INSERT INTO suite.keyless SET {row};\n");
    }
    let mut stream = pair.stream().await;
    servers[0].sql(&sql).unwrap();
    let (came, _) = up_to_now(stream.as_mut(), &servers[0]).await;
    assert_eq!(came.len(), 2 * rows.len());
    assert!(came.iter().all(|c| c.op == Op::Command && c.value.as_deref() == Some(b"+1")), "{came:?}");
    let mut keys: Vec<Key> = came.iter().map(|change| change.key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), rows.len());

    let mut snapshot = pair.connector.source(Site::First);
    snapshot.open(None, true, Told::new()).await.unwrap();
    let mut read = until(snapshot.as_mut(), |e| matches!(e, Event::SnapshotEnded { .. })).await;
    read.retain(|change| change.op == Op::Read && change.key.space == keys[0].space);
    let token: Token = stream.refresh(keys.clone()).await.unwrap();
    let states = until(stream.as_mut(), |e| *e == Event::Token(token)).await;
    for (found, what) in [(&read, "a SELECT"), (&states, "a read by key")] {
        let told = values(found);
        for key in &keys {
            let name = String::from_utf8(key.name.to_vec()).unwrap();
            assert_eq!(told.get(&name).map(String::as_str), Some("2"), "{what}: {name}");
        }
        assert_eq!(told.len(), keys.len(), "{what}");
    }

    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let mut seq = 0;
    let mut next = |changes: Vec<Change>| {
        seq += changes.len() as u64;
        batch(1, seq, changes)
    };
    let lines = |server: &MysqlServer| {
        let all = everything(server, "keyless", true);
        let mut lines: Vec<String> = all.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(send(target.as_mut(), next(came.clone())).await.unwrap(), committed());
    assert_eq!(lines(&servers[0]), lines(&servers[1]));
    assert!(target.holds(&read).await.unwrap().into_iter().all(|holds| holds));
    let (listed, more) = target.keys(0).await.unwrap();
    assert!(more.is_none());
    assert_eq!(listed.iter().filter(|key| keys.binary_search(key).is_ok()).count(), keys.len());
    // One by one, each takes away its own and no other one.
    let count = |rows: &'static str, key: &Key| {
        Change::captured(Op::Read, key.clone(), Some(rows.into()), Position::default(), 0)
    };
    for change in came.iter().step_by(2) {
        let gone = Change { value: Some("-1".into()), ..change.clone() };
        assert_eq!(send(target.as_mut(), next(vec![gone])).await.unwrap(), committed());
        assert_eq!(target.holds(&[count("1", &change.key)]).await.unwrap(), [true], "{:?}", change.key);
    }
    let ones: Vec<Change> = keys.iter().map(|key| count("1", key)).collect();
    assert!(target.holds(&ones).await.unwrap().into_iter().all(|holds| holds));
    // A state says how many there are, whatever there was: few of them, and many.
    let (few, many) = states.split_at(states.len() / 2);
    for states in few.chunks(3).chain([many]) {
        assert_eq!(send(target.as_mut(), next(states.to_vec())).await.unwrap(), committed());
    }
    assert_eq!(lines(&servers[0]), lines(&servers[1]));
    let none = states.iter().map(|state| Change { value: None, ..state.clone() }).collect();
    assert_eq!(send(target.as_mut(), next(none)).await.unwrap(), committed());
    assert_eq!(servers[1].sql("SELECT COUNT(*) FROM suite.keyless").unwrap().trim(), "0");
}

/// What only Oracle's MySQL has: compressed transactions, tagged GTIDs, vectors, and values within JSON that its text has no form for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_mysql_has_arrives_too() {
    let Some(pair) = pair("CREATE TABLE suite.t (id INT PRIMARY KEY, js JSON)") else { return };
    if pair.servers.iter().any(|server| server.flavour() != Flavour::MySql) {
        return;
    }
    pair.sql_at_both("ALTER TABLE suite.t ADD COLUMN ve VECTOR(3)");
    let mut source = pair.stream().await;
    let mut snapshot = pair.connector.source(Site::First);
    pair.servers[0]
        .sql(
            "SET binlog_transaction_compression = ON; SET gtid_next = 'AUTOMATIC:tag'; \
             INSERT INTO suite.t VALUES (1, '[1]', TO_VECTOR('[1,2.5,-3]')); \
             BEGIN; INSERT INTO suite.t VALUES (2, '  2', NULL), (3, JSON_QUOTE(REPEAT('x', 9000)), NULL); \
             UPDATE suite.t SET js = JSON_ARRAY(1e300, 0.1, 18446744073709551615, -5, TRUE) WHERE id = 1; COMMIT; \
             INSERT INTO suite.t VALUES (4, JSON_OBJECT('d', CAST('-12.340' AS DECIMAL(20,3)), 't', \
             CAST('2024-02-29 12:00:01.5' AS DATETIME(6)), 'b', _binary x'00ff', 'c', CAST('2024-02-29' AS DATE), \
             'z', CAST('-10:00:00' AS TIME), 'i', CAST('7' AS DECIMAL(9)), 'n', CAST('7.0' AS DECIMAL(9,1))), NULL);",
        )
        .unwrap();
    let (streamed, _) = up_to_now(source.as_mut(), &pair.servers[0]).await;
    assert!(streamed[1].pos.to_string().contains(":tag:"), "{}", streamed[1].pos);
    snapshot.open(None, true, Told::new()).await.unwrap();
    let mut read = until(snapshot.as_mut(), |e| matches!(e, Event::SnapshotEnded { .. })).await;
    read.retain(|change| change.op == Op::Read);
    same(&read, &streamed, "a SELECT and the binlog");
    servers_end_equal(&pair, streamed).await;
    // Which of its values are equal nobody tells.
    pair.sql_at_both("CREATE TABLE suite.keyless (a INT, js JSON)");
    let findings = pair.connector.check(&[Site::First, Site::Second]).await.unwrap();
    let refused =
        |f: &&Finding| f.what.contains("suite.keyless cannot be carried: it has no primary key, and");
    assert_eq!(findings.iter().filter(refused).count(), 2, "{findings:?}");
    pair.servers[0].sql("INSERT INTO suite.keyless VALUES (1, '[1]')").unwrap();
    let is_left_out =
        |e: &Event| matches!(e, Event::LeftOut { reason, .. } if reason.contains("js is of type JSON"));
    assert!(until(source.as_mut(), is_left_out).await.iter().all(|change| change.op == Op::Ddl));
}

async fn servers_end_equal(pair: &Pair, changes: Vec<Change>) {
    let mut target = pair.connector.target(Site::Second);
    target.take_over(Term(1)).await.unwrap();
    let count = changes.len() as u64;
    assert_eq!(send(target.as_mut(), batch(1, count, changes)).await.unwrap(), committed());
    let [first, second] = pair.servers.each_ref().map(|s| {
        s.sql("SELECT id, REPLACE(js, '12.340', '12.34'), HEX(ve) FROM suite.t ORDER BY id").unwrap()
    });
    assert_eq!(first, second);
}
