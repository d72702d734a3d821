//! Stories of two MySQL or MariaDB servers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use causeway_stories::{DRAIN, Seat, log_in_kafka, seed, story_seconds};
use causeway_testkit::kafka::{KafkaServer, kafka_home};
use causeway_testkit::mysql::{
    Flavour, MysqlOptions, MysqlServer, mysql_server, numbers, other_mysql_server,
};
use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::{Phase, Status, rfc3339};

/// Two servers and a daemon for both, with one channel `orders` between them.
struct Pair {
    servers: [MysqlServer; 2],
    seat: Seat,
}

impl Pair {
    fn new(snapshot: &str, tables: &str) -> Result<Option<Pair>> {
        let dc = MysqlOptions { durable: true, server_id: Some(1), ..MysqlOptions::default() };
        let cloud = MysqlOptions { server_id: Some(2), program: other_mysql_server(), ..dc.clone() };
        let (Some(dc), Some(cloud)) = (mysql_server(&dc), mysql_server(&cloud)) else {
            return Ok(None);
        };
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n{tables}\n[[channel]]\nname = \"orders\"\n\
             store = \"mysql\"\ndirection = \"both\"\nsnapshot = \"{snapshot}\"\ntables = [\"shop.*\"]\n\
             dc = {{ url = \"{}\" }}\ncloud = {{ url = \"{}\" }}\n",
            dc.url(),
            cloud.url()
        );
        Ok(Some(Pair { seat: Seat::with(&text)?, servers: [dc, cloud] }))
    }

    fn sql_at_both(&self, sql: &str) -> Result<()> {
        self.servers.iter().try_for_each(|server| server.sql(sql).map(drop))
    }

    fn start(&mut self) -> Result<()> {
        self.seat.start(None)
    }

    /// Waits until each site has what the other wrote last, and nothing is under way. What a capture has not read yet, as
    /// while its brokers are away, counts as no lag.
    fn wait_until_settled(&self) -> Result<Status> {
        self.sql_at_both("CREATE TABLE IF NOT EXISTS shop.ends (site INT PRIMARY KEY, n BIGINT)")?;
        let n = std::time::UNIX_EPOCH.elapsed()?.as_micros();
        for (site, server) in self.servers.iter().enumerate() {
            server.sql(&format!("REPLACE INTO shop.ends VALUES ({site}, {n})"))?;
        }
        let ends = format!("SELECT COUNT(*) FROM shop.ends WHERE n = {n}");
        let has_both = |server: &MysqlServer| server.sql(&ends).is_ok_and(|count| count.trim() == "2");
        self.seat.wait_until("the last writes", DRAIN, |_| self.servers.iter().all(has_both))?;
        self.seat.wait_until_drained(DRAIN)
    }

    /// Fails unless both sites hold the same rows, by their text and by the verifier.
    fn equal(&self, tables: &[&str]) -> Result<()> {
        for table in tables {
            let sql = format!("SELECT * FROM {table} ORDER BY 1");
            let [first, second] = self.servers.each_ref().map(|server| server.sql(&sql));
            let (first, second) = (first?, second?);
            let differ: Vec<_> = first.lines().zip(second.lines()).filter(|(a, b)| a != b).take(5).collect();
            ensure!(
                first == second,
                "{table}: {} rows and {}, such as {differ:?}\n{}",
                first.lines().count(),
                second.lines().count(),
                self.seat.log_end()
            );
        }
        self.seat.verify()
    }
}

/// A new user's first minutes: what exists is copied, what follows is carried both ways, and all can be taken out again.
#[test]
fn what_exists_and_what_follows_arrive_at_the_other_site() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    let [dc, cloud] = &pair.servers;
    dc.sql(
        "CREATE DATABASE shop; CREATE TABLE shop.orders (id INT PRIMARY KEY, what VARCHAR(40), price DECIMAL(8,2)); \
         CREATE TABLE shop.lines (order_id INT, n SMALLINT, text TEXT, UNIQUE KEY (text(50)), PRIMARY KEY (order_id, n), \
         FOREIGN KEY (order_id) REFERENCES shop.orders (id))",
    )?;
    let rows = numbers(5_000);
    dc.sql(&format!(
        "USE shop; INSERT INTO shop.orders SELECT seq, CONCAT('thing ', seq), seq / 7 FROM {rows}; \
         INSERT INTO shop.lines SELECT seq, 1, CONCAT('line ', seq) FROM {rows}",
    ))?;
    let checked = pair.seat.syncd(&["check"])?;
    ensure!(checked.status.success(), "check: {}", String::from_utf8_lossy(&checked.stdout));
    pair.seat.start(None)?;
    pair.seat.wait_until_drained(DRAIN)?;
    pair.equal(&["shop.orders", "shop.lines"])?;
    dc.sql("UPDATE shop.orders SET price = price + 1 WHERE id % 10 = 0; DELETE FROM shop.lines WHERE order_id > 4900")?;
    cloud.sql(
        "INSERT INTO shop.orders VALUES (9001, 'of cloud', 1.5); UPDATE shop.lines SET n = 2 WHERE order_id = 7; \
         BEGIN; UPDATE shop.lines SET text = 'spare' WHERE order_id = 1; UPDATE shop.lines SET text = 'line 1' WHERE \
         order_id = 2; UPDATE shop.lines SET text = 'line 2' WHERE order_id = 1; COMMIT",
    )?;
    pair.seat.wait_until_drained(DRAIN)?;
    pair.equal(&["shop.orders", "shop.lines"])?;
    let held = dc.sql("SELECT what FROM shop.orders WHERE id = 9001")?;
    ensure!(held.trim() == "of cloud", "{held}");
    ensure!(pair.seat.terminate()? == Some(0), "{}", pair.seat.log_end());
    let cleaned = pair.seat.syncd(&["cleanup"])?;
    ensure!(cleaned.status.success(), "cleanup: {}", String::from_utf8_lossy(&cleaned.stderr));
    let ours = pair.servers[0].sql("SHOW DATABASES LIKE 'causeway'")?;
    ensure!(ours.trim().is_empty(), "{ours} is left");
    Ok(())
}

/// FF03: the binlog was purged while nobody ran. The gap closes under writes of both sites, and loses no row.
#[test]
fn a_gap_under_writes_closes_and_both_sites_end_equal() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.hot (id INT PRIMARY KEY, v VARCHAR(40), n BIGINT); \
         CREATE TABLE shop.k (a INT, v VARCHAR(40))",
    )?;
    let [dc, cloud] = &pair.servers;
    dc.sql(&format!("USE shop; INSERT INTO hot SELECT seq - 1, 'old', 0 FROM {}", numbers(40_001)))?;
    dc.sql(&format!("USE shop; INSERT INTO k SELECT seq DIV 3, 'old' FROM {}", numbers(3_000)))?;
    pair.seat.start(None)?;
    pair.seat.wait_until_drained(DRAIN)?;
    pair.seat.kill()?;
    dc.sql("UPDATE shop.hot SET v = 'in the gap' WHERE id % 100 = 1; DELETE FROM shop.hot WHERE id BETWEEN 30000 AND 30100")?;
    dc.sql("DELETE FROM shop.k WHERE a < 50; UPDATE shop.k SET v = 'in the gap' WHERE a < 100 LIMIT 70; INSERT INTO shop.k SELECT * FROM shop.k WHERE a > 900")?;
    // Not of rows that dc deletes just then: where a stream is lost, such a row may differ (docs/CONVERGENCE.md, section 5).
    cloud.sql("UPDATE shop.hot SET v = 'of cloud' WHERE id % 100 = 2 AND id NOT BETWEEN 30000 AND 30100")?;
    while dc.sql("SHOW BINARY LOGS")?.contains("binlog.000001") {
        dc.sql("FLUSH BINARY LOGS")?;
        dc.sql(&format!("PURGE BINARY LOGS TO '{}'", dc.binlog()?))?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let writers = Writers::start(&pair, seed(), 1)?;
    pair.seat.start(None)?;
    std::thread::sleep(story_seconds(5));
    let writes = writers.stop()?;
    pair.wait_until_settled()?;
    ensure!(pair.seat.log().contains("is purged"), "there was no gap\n{}", pair.seat.log());
    println!("{writes} writes");
    pair.equal(&["shop.hot"])?;
    let [dc, cloud] = &pair.servers;
    let counts = "SELECT a, v, COUNT(*) FROM shop.k GROUP BY a, v ORDER BY 1, 2";
    ensure!(dc.sql(counts)? == cloud.sql(counts)?, "rows without a key differ\n{}", pair.seat.log_end());
    let held = pair.servers[1].sql("SELECT COUNT(*) FROM shop.hot WHERE v = 'in the gap' AND id > 100")?;
    ensure!(held.trim() == "398", "{held} rows of the gap");
    let gone = pair.servers[1].sql("SELECT COUNT(*) FROM shop.hot WHERE id BETWEEN 30000 AND 30100")?;
    ensure!(gone.trim() == "0", "{gone} rows live again");
    Ok(())
}

/// FF02: a copy that is killed again and again goes on where it was, under writes at both sites.
#[test]
fn a_copy_under_writes_goes_on_whatever_is_killed() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.big (id INT PRIMARY KEY, v VARCHAR(200), n BIGINT NOT NULL DEFAULT 0); \
         CREATE TABLE shop.hot (id INT PRIMARY KEY, v VARCHAR(40), n BIGINT)",
    )?;
    pair.servers[0].sql(&format!(
        "USE shop; INSERT INTO big SELECT seq, REPEAT(SHA2(seq, 256), 3), 0 FROM {}; \
         INSERT INTO hot SELECT seq, 'old', 0 FROM {}",
        numbers(200_000),
        numbers(40)
    ))?;
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let writers = Writers::start(&pair, seed, 1)?;
    pair.start()?;
    let copied = |pair: &Pair| -> Result<u64> {
        Ok(pair.servers[1].sql("SELECT COUNT(*) FROM shop.big")?.trim().parse()?)
    };
    let mut kills = 0;
    while copied(&pair)? < 150_000 {
        // On a machine that is busy a start alone takes this long.
        std::thread::sleep(Duration::from_millis(random.random_range(600..1200) + 40 * kills));
        if kills % 3 == 2 {
            pair.servers[0].kill();
            pair.servers[0].restart()?;
        } else {
            pair.seat.kill()?;
            pair.start()?;
        }
        kills += 1;
        ensure!(kills < 60, "it does not come further\n{}", pair.seat.log_end());
        let row = random.random_range(1..200_000);
        pair.servers[0].sql(&format!(
            "UPDATE shop.big SET n = n + 1 WHERE id = {row}; DELETE FROM shop.big WHERE id = {row} + 1"
        ))?;
    }
    let writes = writers.stop()?;
    let status = pair.wait_until_settled()?;
    println!("{kills} kills, {writes} writes");
    ensure!(kills > 1, "it was not killed in the midst");
    pair.equal(&["shop.big", "shop.hot"])?;
    ensure!(status.channels[0].directions.iter().all(|direction| direction.gaps == 0), "{status:?}");
    let begun = pair.seat.log().lines().filter(|line| line.contains("Anew") && line.contains("dc")).count();
    ensure!(begun == 1, "the copy began {begun} times\n{}", pair.seat.log());
    Ok(())
}

/// FF52: what differs is found each time, and nothing else is called different, while both sites write as fast as they
/// can; and once they rest, nothing is undecided.
#[test]
fn the_verifier_finds_what_was_planted_and_nothing_else_under_traffic() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v VARCHAR(70), n BIGINT)",
    )?;
    pair.servers[0]
        .sql(&format!("INSERT INTO shop.t SELECT seq, SHA2(seq, 256), 0 FROM {}", numbers(20_000)))?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    // Nobody carries them: they stand in no binlog, and no writer touches every thousandth row.
    for (site, server) in pair.servers.iter().enumerate() {
        server.sql(&format!(
            "SET sql_log_bin = 0; UPDATE shop.t SET v = 'planted' WHERE id % 2000 = {}",
            site * 1000
        ))?;
    }
    let planted: Vec<u64> = (1..=20).map(|n| n * 1000).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..)
        .zip(pair.servers.each_ref().map(MysqlServer::url))
        .map(|(site, url)| runtime.spawn(update_anywhere(url, seed() + site, Arc::clone(&stop))))
        .collect();
    let end = Instant::now() + story_seconds(10);
    let (mut checks, mut undecided) = (0, 0);
    let checked = loop {
        match pair.seat.check() {
            Ok(report) if report.different == planted => {
                (checks, undecided) = (checks + 1, undecided + report.undecided)
            }
            Ok(report) => break Err(anyhow::anyhow!("{report:?}, and planted was {planted:?}")),
            Err(error) => break Err(error),
        }
        if Instant::now() > end {
            break Ok(());
        }
    };
    stop.store(true, Ordering::SeqCst);
    let mut writes = 0;
    for writer in writers {
        writes += runtime.block_on(writer)??;
    }
    checked.with_context(|| pair.seat.log_end())?;
    println!("{checks} checks, {writes} writes, {undecided} undecided");
    pair.seat.wait_until_drained(DRAIN)?;
    let report = pair.seat.check()?;
    ensure!(report.different == planted && report.undecided == 0, "{report:?}");
    Ok(())
}

/// FF56: a row that does not fit into the target's column is refused with its key, holds up no other, and comes once the
/// column is wide enough and the dead letter is acknowledged.
#[test]
fn a_row_that_does_not_fit_comes_back_once_it_does() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    for (server, length) in pair.servers.iter().zip([40, 10]) {
        server.sql(&format!(
            "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v VARCHAR({length}))"
        ))?;
    }
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    pair.servers[0].sql(
        "INSERT INTO shop.t VALUES (1, 'short'); INSERT INTO shop.t VALUES (2, 'much longer than that'); \
         INSERT INTO shop.t VALUES (3, 'short')",
    )?;
    pair.seat
        .wait_until("refused", DRAIN, |s| s.channels[0].directions.iter().any(|d| d.dead_letters > 0))?;
    pair.seat.wait_until_drained(DRAIN)?;
    ensure!(
        pair.servers[1].sql("SELECT GROUP_CONCAT(id ORDER BY id) FROM shop.t")?.trim() == "1,3",
        "others wait"
    );
    let listed = pair.seat.syncd(&["dead-letters"])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("shop.t: 2") && !listed.contains("much longer"), "{listed}");
    pair.servers[1].sql("SET sql_log_bin = 0; ALTER TABLE shop.t MODIFY v VARCHAR(40)")?;
    ensure!(pair.seat.syncd(&["dead-letters", "ack", "--all"])?.status.success(), "not acknowledged");
    let came = |_: &Status| pair.servers[1].sql("SELECT COUNT(*) FROM shop.t").is_ok_and(|n| n.trim() == "3");
    pair.seat.wait_until("the row", DRAIN, came)?;
    pair.equal(&["shop.t"])
}

/// FF57: a repair carries what one site holds, and never overwrites what the other one writes meanwhile.
#[test]
fn a_repair_from_a_named_site_leaves_newer_writes_alone() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v VARCHAR(70), n BIGINT)",
    )?;
    pair.servers[0].sql(&format!("INSERT INTO shop.t SELECT seq, 'right', 0 FROM {}", numbers(20_000)))?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    // In no binlog: other values, rows that are gone, rows that nobody else has.
    pair.servers[1].sql(&format!(
        "SET sql_log_bin = 0; UPDATE shop.t SET v = 'wrong' WHERE id % 50 = 1; DELETE FROM shop.t WHERE id % 500 = 2; \
         INSERT INTO shop.t SELECT seq + 30000, 'nobody''s', 0 FROM {}",
        numbers(40)
    ))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = runtime.spawn(count_up(pair.servers[1].url(), Arc::clone(&stop)));
    let mut said = Vec::new();
    for _ in 0..3 {
        said.push(pair.seat.repair(&["--from", "dc", "--yes"])?);
    }
    stop.store(true, Ordering::SeqCst);
    let counted = runtime.block_on(writer)??;
    pair.wait_until_settled()?;
    let (code, last) = pair.seat.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0, "{code} {last}\n{said:?}");
    pair.equal(&["shop.t"])?;
    let sums = pair.servers[0].sql(
        "SELECT COUNT(*), COALESCE(SUM(v = 'wrong' AND id > 1000), 0), COALESCE(SUM(n), 0) FROM shop.t",
    )?;
    ensure!(sums.trim() == format!("20000\t0\t{counted}"), "{sums}, and {counted} were counted\n{said:?}");
    println!("{counted} counted, {}", last.lines().next().unwrap_or_default());
    Ok(())
}

/// A window of rows: of keys of one column and of several, in another charset, without a key, and of a table that changes.
#[test]
fn a_window_of_rows_is_closed_by_what_the_log_names() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.one (id INT PRIMARY KEY, v VARCHAR(70)); \
         CREATE TABLE shop.two (a INT, b VARCHAR(20), v INT, PRIMARY KEY (a, b)); \
         CREATE TABLE shop.latin (k VARCHAR(20) CHARACTER SET latin1 PRIMARY KEY, v INT); \
         CREATE TABLE shop.bare (v INT); CREATE TABLE shop.still (id INT PRIMARY KEY, v INT)",
    )?;
    pair.servers[0]
        .sql("INSERT INTO shop.one VALUES (1, 'old'), (2, 'old'); INSERT INTO shop.still VALUES (1, 1)")?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    pair.wait_until_settled()?;
    // What made the tables is named within ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    let from = rfc3339(SystemTime::now());
    pair.servers[0].sql(
        "INSERT INTO shop.one SELECT seq + 10, 'dc' FROM (SELECT 1 seq UNION SELECT 2 UNION SELECT 3) t; \
         INSERT INTO shop.two VALUES (1, 'x', 1), (1, 'é', 2); INSERT INTO shop.latin VALUES ('é', 1), ('e!', 2); \
         INSERT INTO shop.bare VALUES (1), (1), (2); DELETE FROM shop.one WHERE id = 13",
    )?;
    pair.servers[1].sql("INSERT INTO shop.one VALUES (21, 'cloud')")?;
    pair.wait_until_settled()?;
    let to = rfc3339(SystemTime::now());
    let window = ["--from", from.as_str(), "--to", to.as_str()];
    let report = pair.seat.report(&window)?;
    ensure!(report["equal"] == true && report["window"]["known_until"].is_string(), "{report}");
    // In no binlog.
    pair.servers[1].sql(
        "SET sql_log_bin = 0; UPDATE shop.one SET v = 'x' WHERE id IN (2, 11); INSERT INTO shop.one VALUES (13, 'x'); \
         DELETE FROM shop.two WHERE b = 'é'; UPDATE shop.latin SET v = 9 WHERE k = 'é'; \
         DELETE FROM shop.bare WHERE v = 2; UPDATE shop.still SET v = 9",
    )?;
    pair.servers[0].sql("SET sql_log_bin = 0; UPDATE shop.one SET v = 'x' WHERE id = 21")?;
    let listed = |report: &serde_json::Value| -> Vec<String> {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let all = report["differences"].as_array().cloned().unwrap_or_default();
        all.iter().map(|one| format!("{} {}", text(&one["table"]), text(&one["key"]))).collect()
    };
    let report = pair.seat.report(&window)?;
    let mut found = listed(&report);
    found.sort_unstable();
    let expected =
        [" shop.bare", "shop.latin é", "shop.one 11", "shop.one 13", "shop.one 21", "shop.two [1,\"é\"]"];
    ensure!(found == expected, "{report}");
    let done = pair.seat.syncd(&[&["backfill", "--channel", "orders"], &window[..]].concat())?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(
        done.status.code() == Some(1)
            && said.contains("dc changed the table shop.bare as such")
            && said.contains("NOT EQUAL"),
        "{said}"
    );
    // Rows without a key are none that can be asked for; all else of the window was carried, from the site that wrote it.
    let report = pair.seat.report(&window)?;
    ensure!(listed(&report) == [" shop.bare"], "{report}");
    let at = |site: usize| pair.servers[site].sql("SELECT v FROM shop.one WHERE id = 21");
    ensure!(at(0)?.trim() == "cloud" && at(1)?.trim() == "cloud", "{} {}", at(0)?, at(1)?);
    pair.servers[1].sql("SET sql_log_bin = 0; INSERT INTO shop.bare VALUES (2)")?;
    let (code, said) = pair.seat.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0 && said.contains("2 keys repaired"), "{code} {said}");
    // A table that was changed in the window is compared as a whole.
    std::thread::sleep(Duration::from_secs(12));
    let from = rfc3339(SystemTime::now());
    pair.servers[0].sql("ALTER TABLE shop.still ADD COLUMN w INT")?;
    pair.wait_until_settled()?;
    pair.servers[1].sql("SET sql_log_bin = 0; UPDATE shop.still SET v = 7")?;
    let report = pair.seat.report(&["--from", &from])?;
    ensure!(listed(&report) == ["shop.still 1"], "{report}");
    let (code, said) = pair.seat.repair(&["--from", "newest", "--yes"])?;
    ensure!(code == 0 && said.contains("from dc shop.still 1"), "the repair before named it: {code} {said}");
    pair.equal(&["shop.one", "shop.two", "shop.latin", "shop.still"])
}

/// A repair from the wrong site is taken back: both sites hold then what the other one held before.
#[test]
fn a_repair_from_the_wrong_site_is_undone_at_both() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v VARCHAR(70), n DOUBLE, stamp TIMESTAMP(3) NULL)",
    )?;
    let fill = "INSERT INTO shop.t SELECT seq, 'first', seq / 7, FROM_UNIXTIME(1700000000 + seq) FROM";
    pair.servers[0].sql(&format!("{fill} {}", numbers(5_000)))?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    // In no binlog: what dc has is wrong, and what cloud has is right.
    pair.servers[0].sql(
        "SET sql_log_bin = 0; UPDATE shop.t SET v = 'wrong', n = n + 1 WHERE id % 50 = 1; DELETE FROM shop.t WHERE id % 500 = 2; \
         INSERT INTO shop.t VALUES (9001, 'nobody''s', 0, NULL)",
    )?;
    let sum = |site: usize| pair.servers[site].sql("CHECKSUM TABLE shop.t EXTENDED");
    let (wrong, right) = (sum(0)?, sum(1)?);
    let (code, said) = pair.seat.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0 && sum(1)? == wrong, "{code} {said}");
    let (code, undone) = pair.seat.undo(&said)?;
    ensure!(code == 0, "{code} {undone}");
    pair.seat.wait_until_drained(DRAIN)?;
    pair.equal(&["shop.t"])?;
    ensure!(sum(1)? == right, "another content after the undo: {undone}");
    println!("{}", undone.lines().next().unwrap_or_default());
    Ok(())
}

/// Counts up rows that are wrong and rows that are right, one by one; returns how often.
async fn count_up(url: String, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut conn = Conn::from_url(&url).await?;
    let mut counted = 0;
    while !stop.load(Ordering::SeqCst) {
        let id = 1 + counted * 50 % 1000 + counted % 2;
        match conn.query_drop(format!("UPDATE shop.t SET n = n + 1 WHERE id = {id}")).await {
            Ok(()) => counted += conn.affected_rows(),
            Err(mysql_async::Error::Server(error)) if matches!(error.code, 1205 | 1213) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(counted)
}

/// Rows here and there, in transactions of some; returns how many.
async fn update_anywhere(url: String, seed: u64, stop: Arc<AtomicBool>) -> Result<u64> {
    let (mut conn, mut random) = (Conn::from_url(&url).await?, SmallRng::seed_from_u64(seed));
    let mut writes = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut sql = "BEGIN".to_owned();
        for _ in 0..5 {
            let id = random.random_range(1..20_000_u32);
            if id % 1000 != 0 {
                sql += &format!("; UPDATE shop.t SET n = n + 1, v = '{id} {writes}' WHERE id = {id}");
                writes += 1;
            }
        }
        match conn.query_drop(sql + "; COMMIT").await {
            Ok(()) => {}
            Err(mysql_async::Error::Server(error)) if matches!(error.code, 1205 | 1213) => {
                conn.query_drop("ROLLBACK").await?;
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(writes)
}

/// FF05: tables change while both sites write and the daemon is killed. What only adds goes over by itself, all else waits
/// for an operator, and both sites end with the same tables and rows.
#[test]
fn tables_change_while_both_sites_write() -> Result<()> {
    let Some(mut pair) = Pair::new("dc", "")? else { return Ok(()) };
    pair.sql_at_both("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v INT, gone INT)")?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    let urls = pair.servers.each_ref().map(MysqlServer::url);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..).zip(urls).map(|(site, url)| runtime.spawn(insert(url, site, Arc::clone(&stop)))).collect();
    let changed = change_tables(&mut pair);
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        println!("{} rows", runtime.block_on(writer)??);
    }
    changed.with_context(|| pair.seat.log_end())?;
    pair.wait_until_settled()?;
    pair.equal(&["shop.t", "shop.more"])?;
    let columns = "SELECT table_name, column_name, data_type, ordinal_position FROM information_schema.columns WHERE \
                   table_schema = 'shop' ORDER BY 1, 4";
    let indexes = "SELECT table_name, index_name, column_name FROM information_schema.statistics WHERE table_schema = \
                   'shop' ORDER BY 1, 2, 3";
    for sql in [columns, indexes] {
        let [dc, cloud] = pair.servers.each_ref().map(|server| server.sql(sql));
        let (dc, cloud) = (dc?, cloud?);
        ensure!(dc == cloud && !dc.contains("gone"), "{dc}\n{cloud}");
    }

    // All rows of a table at once: dropped, and they come back.
    pair.servers[1].sql("TRUNCATE TABLE shop.more")?;
    pair.seat.wait_until("held", DRAIN, |s| held(s).is_some())?;
    ensure!(pair.servers[0].sql("SELECT COUNT(*) FROM shop.more")?.trim() == "3", "not held");
    ensure!(pair.seat.syncd(&["resume", "--held", "drop"])?.status.success(), "not answered");
    let rows =
        |_: &Status| pair.servers[1].sql("SELECT COUNT(*) FROM shop.more").is_ok_and(|n| n.trim() == "3");
    pair.seat.wait_until("the rows are back", DRAIN, rows)?;
    pair.wait_until_settled()?;
    pair.equal(&["shop.t", "shop.more"])
}

fn held(status: &Status) -> Option<String> {
    status.channels[0].directions.iter().find_map(|direction| direction.held.clone())
}

/// Adds rows of `site`'s own to a table whose columns change, and changes the one before; how many.
async fn insert(url: String, site: i32, stop: Arc<AtomicBool>) -> Result<i32> {
    let mut conn = Conn::from_url(&url).await?;
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        let (id, before) = (2 * (n + 1) + site, 2 * n + site);
        let sql = format!(
            "BEGIN; INSERT INTO shop.t (id, v) VALUES ({id}, 0); UPDATE shop.t SET v = v + 1 WHERE id = {before}; COMMIT"
        );
        match conn.query_drop(sql).await {
            Ok(()) => n += 1,
            // A deadlock: undone, and tried again.
            Err(mysql_async::Error::Server(error)) if error.code == 1213 => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(n)
}

fn change_tables(pair: &mut Pair) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed());
    for (site, sql) in [
        (0, "ALTER TABLE shop.t ADD COLUMN w VARCHAR(20) DEFAULT 'new' AFTER id"),
        (1, "CREATE TABLE shop.more (id INT PRIMARY KEY, v TEXT)"),
        (1, "ALTER TABLE shop.t ADD INDEX (v), ADD COLUMN x INT"),
    ] {
        pair.servers[site].sql(sql)?;
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
        pair.seat.kill()?;
        pair.seat.start(None)?;
    }
    let arrived = |_: &Status| pair.servers[0].sql("SELECT COUNT(*) FROM shop.more").is_ok();
    pair.seat.wait_until("the table", DRAIN, arrived)?;
    pair.servers[0].sql("INSERT INTO shop.more VALUES (1, 'of dc'), (2, 'of dc')")?;
    pair.servers[1].sql("INSERT INTO shop.more VALUES (3, 'of cloud')")?;
    std::thread::sleep(Duration::from_secs(12));
    pair.servers[0].sql("ALTER TABLE shop.t DROP COLUMN gone")?;
    let status = pair.seat.wait_until("held", DRAIN, |s| held(s).is_some())?;
    let shown = held(&status).unwrap_or_default();
    ensure!(shown.contains("ALTER TABLE shop.t DROP COLUMN gone"), "{shown}");
    pair.seat.kill()?;
    pair.seat.start(None)?;
    pair.seat.wait_until("held again", DRAIN, |s| held(s).is_some())?;
    ensure!(pair.seat.syncd(&["resume", "--held", "apply"])?.status.success(), "not answered");
    pair.seat.wait_until("goes on", DRAIN, |s| held(s).is_none())?;
    Ok(())
}

const TABLES: [&str; 4] = ["shop.accounts", "shop.savings", "shop.loans", "shop.journal"];
/// Of each site in each table.
const ROWS: u64 = 40;
const EACH: i64 = 1000;

/// Moves money between rows of three tables, all of `site`'s own, and writes each move down; until `stop`. A server that
/// is gone is waited for.
async fn move_money(url: String, site: u64, seed: u64, stop: Arc<AtomicBool>, moves: Arc<AtomicU64>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut conn: Option<Conn> = None;
    let mut n = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let Some(open) = &mut conn else {
            conn = Conn::from_url(&url).await.ok();
            if conn.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            continue;
        };
        n += 1;
        let mut row = || site * ROWS + random.random_range(0..ROWS);
        let (a, b, c) = (row(), row(), row());
        let (x, y) = (random.random_range(1..50), random.random_range(1..50));
        let undone = random.random_bool(0.1);
        let end = if undone { "ROLLBACK" } else { "COMMIT" };
        let sql = format!(
            "BEGIN; UPDATE shop.accounts SET balance = balance - {x} - {y} WHERE id = {a}; UPDATE shop.savings SET \
             balance = balance + {x} WHERE id = {b}; UPDATE shop.loans SET balance = balance + {y} WHERE id = {c}; \
             INSERT INTO shop.journal VALUES ({id}, 'from {a} to {b} and {c}'); {end}",
            id = (n * 2 + site) * 1000 + seed % 1000,
        );
        match open.query_drop(sql).await {
            Ok(()) => drop(moves.fetch_add(1, Ordering::SeqCst)),
            Err(_) => conn = None,
        }
    }
}

/// What all rows hold together, at one moment.
async fn sum(conn: &mut Conn) -> Result<i64, mysql_async::Error> {
    conn.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
    let mut sum = 0;
    for table in &TABLES[..3] {
        let sql = format!("SELECT CAST(COALESCE(SUM(balance), 0) AS SIGNED) FROM {table}");
        sum += conn.query_first::<i64, _>(sql).await?.unwrap_or(0);
    }
    conn.query_drop("COMMIT").await?;
    Ok(sum)
}

/// Fails if a site ever shows a part of a transaction.
async fn watch_sum(url: String, stop: Arc<AtomicBool>, looks: Arc<AtomicU64>) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let Ok(mut conn) = Conn::from_url(&url).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            let Ok(found) = sum(&mut conn).await else { break };
            let expected = 3 * 2 * ROWS as i64 * EACH;
            ensure!(found == expected, "{url}: the sum is {found}, not {expected}");
            looks.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// FF01, FF12: transactions over three tables whose sum must stay, at both sites at once, while the daemon and both
/// servers are killed (and the brokers, where the log is in Kafka).
fn the_sum_stays(mut brokers: Vec<KafkaServer>, tables: &str) -> Result<()> {
    let Some(mut pair) = Pair::new("dc", tables)? else { return Ok(()) };
    let mut create =
        "CREATE DATABASE shop; CREATE TABLE shop.journal (id BIGINT PRIMARY KEY, text VARCHAR(80));"
            .to_owned();
    for table in &TABLES[..3] {
        create += &format!("CREATE TABLE {table} (id INT PRIMARY KEY, balance BIGINT NOT NULL);");
    }
    pair.sql_at_both(&create)?;
    for table in &TABLES[..3] {
        let rows = numbers(2 * ROWS as u32);
        pair.servers[0].sql(&format!("USE shop; INSERT INTO {table} SELECT seq - 1, {EACH} FROM {rows}"))?;
    }
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    let seed = seed();

    let mut random = SmallRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (stop, moves, looks) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    let mut watchers = Vec::new();
    for (site, server) in pair.servers.iter().enumerate() {
        for writer in 0..2 {
            let seed = seed.wrapping_mul(1000).wrapping_add(writer + 2 * site as u64);
            writers.push(runtime.spawn(move_money(
                server.url(),
                site as u64,
                seed,
                Arc::clone(&stop),
                Arc::clone(&moves),
            )));
        }
        watchers.push(runtime.spawn(watch_sum(server.url(), Arc::clone(&stop), Arc::clone(&looks))));
    }
    let end = Instant::now() + story_seconds(12);
    let mut killed = [0; 3];
    while Instant::now() < end && watchers.iter().all(|watcher| !watcher.is_finished()) {
        std::thread::sleep(Duration::from_millis(random.random_range(400..2000)));
        match random.random_range(0..4) {
            0 | 1 => {
                pair.seat.kill()?;
                killed[0] += 1;
                std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
                pair.start()?;
            }
            2 if !brokers.is_empty() => {
                let at = random.random_range(0..brokers.len());
                brokers[at].kill();
                killed[2] += 1;
                std::thread::sleep(Duration::from_millis(random.random_range(0..1000)));
                brokers[at].restart()?;
            }
            _ => {
                let at = random.random_range(0..2);
                pair.servers[at].kill();
                killed[1] += 1;
                std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
                pair.servers[at].restart()?;
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(async {
        for writer in writers {
            writer.await?;
        }
        anyhow::Ok(())
    })?;
    let ended = pair.wait_until_settled();
    for watcher in watchers {
        runtime.block_on(watcher)?.with_context(|| pair.seat.log_end())?;
    }
    let ended = ended?;
    let (moves, looks) = (moves.load(Ordering::SeqCst), looks.load(Ordering::SeqCst));
    println!("{moves} moves, {looks} looks, killed: {killed:?} (daemon, servers, brokers)");
    ensure!(moves > 100 && looks > 50, "{moves} moves, {looks} looks");
    pair.equal(&TABLES).with_context(|| format!("{ended:?}"))?;
    let status = pair.seat.status()?;
    for direction in &status.channels[0].directions {
        ensure!(direction.phase == Phase::Streaming && direction.dead_letters == 0, "{direction:?}");
    }
    Ok(())
}

/// Writes, changes and deletes any of a few rows, alone and in transactions of several, until `stop`.
async fn write_anything(url: String, site: usize, seed: u64, stop: Arc<AtomicBool>, writes: Arc<AtomicU64>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut conn: Option<Conn> = None;
    let mut n = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        let Some(open) = &mut conn else {
            conn = Conn::from_url(&url).await.ok();
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        n += 1;
        let mut one = || {
            let (id, other) = (random.random_range(0..60), random.random_range(0..60));
            let value = format!("{site}-{seed}-{n}");
            match random.random_range(0..10) {
                0 | 1 => format!("DELETE FROM shop.hot WHERE id = {id}"),
                2..=5 => format!("REPLACE INTO shop.hot VALUES ({id}, '{value}', {n})"),
                6..=8 => format!("UPDATE shop.hot SET v = '{value}', n = n + 1 WHERE id = {id}"),
                _ => format!("UPDATE IGNORE shop.hot SET id = {other} WHERE id = {id}"),
            }
        };
        let sql = match n % 3 {
            0 => format!("BEGIN; {}; {}; {}; COMMIT", one(), one(), one()),
            _ => one(),
        };
        match open.query_drop(sql).await {
            Ok(()) => drop(writes.fetch_add(1, Ordering::SeqCst)),
            Err(mysql_async::Error::Server(_)) => drop(open.query_drop("ROLLBACK").await),
            Err(_) => conn = None,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Tasks that [`write_anything`] at both sites.
struct Writers {
    runtime: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    /// So many at `each` site.
    fn start(pair: &Pair, seed: u64, each: u64) -> Result<Writers> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for (site, server) in pair.servers.iter().enumerate() {
            for writer in 0..each {
                let seed = seed.wrapping_mul(1000).wrapping_add(writer + each * site as u64);
                let (stop, writes) = (Arc::clone(&stop), Arc::clone(&writes));
                tasks.push(runtime.spawn(write_anything(server.url(), site, seed, stop, writes)));
            }
        }
        Ok(Writers { runtime, stop, writes, tasks })
    }

    /// Ends them; how many writes there were.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.tasks.into_iter().try_for_each(|task| self.runtime.block_on(task))?;
        Ok(self.writes.load(Ordering::SeqCst))
    }
}

/// Both sites write the same rows at once, and end equal.
#[test]
fn rows_that_both_sites_write_end_equal() -> Result<()> {
    let Some(mut pair) = Pair::new("both", "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.hot (id INT PRIMARY KEY, v VARCHAR(40), n BIGINT)",
    )?;
    pair.start()?;
    pair.seat.wait_until_drained(DRAIN)?;
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let writers = Writers::start(&pair, seed, 2)?;
    let end = Instant::now() + story_seconds(8);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(500..2500)));
        match random.random_range(0..3) {
            0 => {
                let at = random.random_range(0..2);
                pair.servers[at].kill();
                pair.servers[at].restart()?;
            }
            _ => {
                pair.seat.kill()?;
                std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
                pair.start()?;
            }
        }
    }
    let writes = writers.stop()?;
    let status = pair.wait_until_settled()?;
    let conflicts: u64 = status.channels[0].directions.iter().map(|direction| direction.conflicts).sum();
    println!("{writes} writes, {conflicts} conflicts since the last start");
    pair.equal(&["shop.hot"])
}

/// Rows of a content, of a table without a primary key: where `a` is below 10 those of the first site, below 20 of the second,
/// below 30 such as both only add, and from 40 on both do anything to them.
const CONTENTS: &str = "SELECT a, HEX(v), COUNT(*) FROM shop.k WHERE a < 40 GROUP BY a, HEX(v) ORDER BY 1, 2";
/// What the journal, written in the same transactions, says of them.
const TOLD: &str =
    "SELECT a, HEX(v), SUM(n) FROM shop.told GROUP BY a, HEX(v) HAVING SUM(n) <> 0 ORDER BY 1, 2";

/// Adds, changes and deletes rows that have no key, and writes down how many of each came and went; until `stop`.
async fn come_and_go(url: String, site: u64, seed: u64, stop: Arc<AtomicBool>, writes: Arc<AtomicU64>) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut conn: Option<Conn> = None;
    let mut id = 0;
    while !stop.load(Ordering::SeqCst) {
        let Some(open) = &mut conn else {
            conn = Conn::from_url(&url).await.ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut row = |from: u64, to: u64| {
            let v = ["'x'", "'X'", "'x '", "NULL"][random.random_range(0..4)];
            (random.random_range(from..to), v)
        };
        let ((a, v), (b, w)) = (row(site * 10, site * 10 + 3), row(site * 10, site * 10 + 3));
        let ((c, u), (d, x), (e, y)) = (row(20, 22), row(40, 43), row(40, 43));
        let is = |a: u64, v: &str| format!("a = {a} AND CAST(v AS BINARY) <=> CAST({v} AS BINARY)");
        let mut told = |a: u64, v: &str, n: &str| {
            id += 1;
            let id = (id * 2 + site) * 1000 + seed % 1000;
            format!("INSERT INTO shop.told VALUES ({id}, {a}, {v}, {n});")
        };
        let sql = match random.random_range(0..12) {
            0..=2 => format!("INSERT INTO shop.k VALUES ({a}, {v}); {}", told(a, v, "1")),
            3 => format!("INSERT INTO shop.k VALUES ({a}, {v}), ({a}, {v}); {}", told(a, v, "2")),
            4 | 5 => format!(
                "DELETE FROM shop.k WHERE {} LIMIT 1; SET @n = ROW_COUNT(); {}",
                is(a, v),
                told(a, v, "-@n")
            ),
            6 | 7 => format!(
                "UPDATE shop.k SET a = {b}, v = {w} WHERE {} LIMIT 2; SET @n = ROW_COUNT(); {} {}",
                is(a, v),
                told(a, v, "-@n"),
                told(b, w, "@n")
            ),
            8 | 9 => format!("INSERT INTO shop.k VALUES ({c}, {u}); {}", told(c, u, "1")),
            10 => format!("INSERT INTO shop.k VALUES ({d}, {x}), ({e}, {y});"),
            _ => format!("DELETE FROM shop.k WHERE {} LIMIT 1;", is(d, x)),
        };
        let end = if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" };
        match open.query_drop(format!("BEGIN; {sql} {end}")).await {
            Ok(()) => drop(writes.fetch_add(1, Ordering::SeqCst)),
            Err(mysql_async::Error::Server(_)) => drop(open.query_drop("ROLLBACK").await),
            Err(_) => conn = None,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Rows without a key, many of them equal, come and go at both sites while they are copied, and the daemon and the servers
/// are killed: both sites end with as many of each.
fn rows_come_and_go(snapshot: &str) -> Result<()> {
    let Some(mut pair) = Pair::new(snapshot, "")? else { return Ok(()) };
    pair.sql_at_both(
        "CREATE DATABASE shop; CREATE TABLE shop.k (a INT, v VARCHAR(100)); \
         CREATE TABLE shop.told (id BIGINT PRIMARY KEY, a INT, v VARCHAR(20), n INT); \
         CREATE TABLE shop.large (t DATETIME(3), what VARCHAR(200), d DOUBLE)",
    )?;
    pair.servers[0].sql(&format!(
        "USE shop; INSERT INTO k SELECT seq % 3, 'x' FROM {few}; INSERT INTO told SELECT -seq, seq % 3, 'x', 1 FROM {few}; \
         INSERT INTO k SELECT 40 + seq % 3, 'X' FROM {few}; \
         INSERT INTO large SELECT '2026-01-01 00:00:00.5', REPEAT(SHA2(seq DIV 3, 256), 3), seq DIV 3 FROM {many}; \
         ANALYZE TABLE large",
        few = numbers(40),
        many = numbers(40_000)
    ))?;
    if snapshot == "both" {
        pair.servers[1].sql(&format!(
            "USE shop; INSERT INTO k SELECT 10 + seq % 3, 'x' FROM {few}; \
             INSERT INTO told SELECT -1000 - seq, 10 + seq % 3, 'x', 1 FROM {few}",
            few = numbers(40)
        ))?;
    }
    let checked = pair.seat.syncd(&["check"])?;
    ensure!(checked.status.success(), "check: {}", String::from_utf8_lossy(&checked.stdout));
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    pair.start()?;
    // What exists at cloud is not copied.
    let begun = |_: &Status| pair.seat.log().contains("the binlog is read site=\"cloud\"");
    pair.seat.wait_until("cloud is read", DRAIN, begun)?;
    let writers: Vec<_> = (0..4_u64)
        .map(|n| {
            let (site, seed) = (n % 2, seed.wrapping_mul(1000).wrapping_add(n));
            let url = pair.servers[site as usize].url();
            runtime.spawn(come_and_go(url, site, seed, Arc::clone(&stop), Arc::clone(&writes)))
        })
        .collect();
    let end = Instant::now() + story_seconds(15);
    let mut killed = [0; 2];
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(600..2500)));
        if random.random_bool(0.3) {
            let at = random.random_range(0..2);
            pair.servers[at].kill();
            killed[1] += 1;
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            pair.servers[at].restart()?;
        } else {
            pair.seat.kill()?;
            killed[0] += 1;
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            pair.start()?;
        }
    }
    stop.store(true, Ordering::SeqCst);
    writers.into_iter().try_for_each(|writer| runtime.block_on(writer))?;
    let status = pair.wait_until_settled()?;
    println!("{} writes, killed: {killed:?} (daemon, servers)", writes.load(Ordering::SeqCst));
    let whole = "SELECT a, HEX(v), COUNT(*) FROM shop.k GROUP BY a, HEX(v) ORDER BY 1, 2";
    let large = "SELECT what, t, d, COUNT(*) FROM shop.large GROUP BY what, t, d ORDER BY 1";
    for sql in [CONTENTS, whole, large] {
        let [dc, cloud] = pair.servers.each_ref().map(|server| server.sql(sql));
        let (dc, cloud) = (dc?, cloud?);
        let differ: Vec<_> = dc.lines().zip(cloud.lines()).filter(|(a, b)| a != b).take(8).collect();
        ensure!(dc == cloud && !dc.is_empty(), "{sql}: {differ:?}\n{}", pair.seat.log_end());
    }
    for server in &pair.servers {
        let (held, told) = (server.sql(CONTENTS)?, server.sql(TOLD)?);
        let differ: Vec<_> = held.lines().zip(told.lines()).filter(|(a, b)| a != b).take(8).collect();
        ensure!(held == told, "what is there, and what came: {differ:?}\n{}", pair.seat.log_end());
    }
    for direction in &status.channels[0].directions {
        ensure!(direction.gaps == 0 && direction.dead_letters == 0, "{direction:?}");
    }
    Ok(())
}

#[test]
fn rows_without_a_key_are_as_many_at_both_sites_whatever_is_killed() -> Result<()> {
    rows_come_and_go("dc")
}

#[test]
fn rows_without_a_key_of_both_sites_are_copied_and_counted() -> Result<()> {
    rows_come_and_go("both")
}

#[test]
fn the_sum_of_three_tables_stays_whatever_is_killed() -> Result<()> {
    the_sum_stays(Vec::new(), "")
}

#[test]
fn the_sum_of_three_tables_stays_whatever_is_killed_with_the_log_in_kafka() -> Result<()> {
    if kafka_home().is_none() {
        return Ok(());
    }
    let [dc, cloud] = KafkaServer::start_both(Default::default())?;
    let tables = log_in_kafka(&dc, &cloud);
    the_sum_stays(vec![dc, cloud], &tables)
}

/// The daemon's account and the application's: as the README has it, and no more, so that `read_only` stops it.
const ACCOUNT: &str = "CREATE USER sync@'127.0.0.1'; GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, INDEX, \
                       LOCK TABLES, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO sync@'127.0.0.1';";

fn url_of(server: &MysqlServer) -> String {
    server.url().replace("root@", "sync@")
}

/// Two sites, of which the first has a replica of its server. What writes goes to where the primaries are.
struct Replicated {
    pair: Pair,
    spare: MysqlServer,
    primaries: Arc<Mutex<[String; 2]>>,
}

impl Replicated {
    fn new() -> Result<Option<Replicated>> {
        let args = ["--log-slave-updates=ON", "--loose-gtid-domain-id=1"].map(str::to_owned).to_vec();
        let dc = MysqlOptions { durable: true, server_id: Some(1), args, ..MysqlOptions::default() };
        let spare = MysqlOptions { server_id: Some(3), ..dc.clone() };
        let cloud = MysqlOptions {
            server_id: Some(2),
            program: other_mysql_server(),
            args: Vec::new(),
            ..dc.clone()
        };
        let (Some(dc), Some(cloud), Some(spare)) =
            (mysql_server(&dc), mysql_server(&cloud), mysql_server(&spare))
        else {
            return Ok(None);
        };
        spare.replicate(&dc)?;
        let text = format!(
            "[link]\nname = \"dc-cloud\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"orders\"\n\
             store = \"mysql\"\ndirection = \"both\"\nsnapshot = \"dc\"\ntables = [\"shop.*\"]\n\
             dc = {{ urls = [\"{}\", \"{}\"] }}\ncloud = {{ url = \"{}\" }}\n",
            url_of(&spare),
            url_of(&dc),
            url_of(&cloud)
        );
        let primaries = Arc::new(Mutex::new([url_of(&dc), url_of(&cloud)]));
        let pair = Pair { seat: Seat::with(&text)?, servers: [dc, cloud] };
        pair.sql_at_both(ACCOUNT)?;
        pair.sql_at_both(
            "CREATE DATABASE shop; CREATE TABLE shop.hot (id INT PRIMARY KEY, v VARCHAR(40), n BIGINT NOT NULL); \
             CREATE TABLE shop.k (a INT, v VARCHAR(40)); \
             CREATE TABLE shop.told (id INT PRIMARY KEY, n BIGINT NOT NULL, k BIGINT NOT NULL)",
        )?;
        pair.servers[0].sql(&format!("INSERT INTO shop.hot SELECT seq, 'old', 0 FROM {}", numbers(300)))?;
        Ok(Some(Replicated { pair, spare, primaries }))
    }

    fn start(&mut self) -> Result<()> {
        let checked = self.pair.seat.syncd(&["check"])?;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.success() && !said.contains("failover"), "check: {said}");
        self.pair.start()?;
        self.pair.seat.wait_until_drained(DRAIN)?;
        Ok(())
    }

    /// The primary takes no more writes, its replica gets all, the primary dies or stays, and the replica is promoted. Writers and
    /// the daemon are at work all the time, or the daemon is killed, too.
    fn fail_over(&mut self, dies: bool, and_the_daemon: Option<Duration>) -> Result<()> {
        let followed = self.followed();
        let old = &mut self.pair.servers[0];
        old.sql("SET GLOBAL read_only = ON")?;
        self.spare.wait_for(&old.gtids()?)?;
        if and_the_daemon.is_some() {
            self.pair.seat.kill()?;
        }
        if dies {
            old.kill();
        }
        self.promote()?;
        if let Some(wait) = and_the_daemon {
            std::thread::sleep(wait);
            self.pair.start()?;
        }
        self.pair.seat.wait_until("another server", DRAIN, |_| self.followed() > followed)?;
        Ok(())
    }

    /// How often capture went over to another server.
    fn followed(&self) -> usize {
        self.pair.seat.log().matches("another server took over").count()
    }

    fn promote(&mut self) -> Result<()> {
        self.spare.promote()?;
        std::mem::swap(&mut self.spare, &mut self.pair.servers[0]);
        let url = url_of(&self.pair.servers[0]);
        self.primaries.lock().unwrap_or_else(PoisonError::into_inner)[0] = url;
        Ok(())
    }

    /// The one that died comes back as a replica of the other.
    fn repair(&mut self) -> Result<()> {
        self.spare.restart()?;
        self.spare.replicate(&self.pair.servers[0])
    }

    /// Fails unless both sites hold the same, and as much as was acknowledged to the writers.
    fn prove(&self, counted: u64) -> Result<()> {
        self.pair.equal(&["shop.hot", "shop.told"])?;
        let contents = "SELECT a, v, COUNT(*) FROM shop.k GROUP BY a, v ORDER BY 1, 2";
        let sums = "SELECT (SELECT SUM(n) FROM shop.hot WHERE id <= 200), (SELECT SUM(n) FROM shop.told), \
                    (SELECT COUNT(*) FROM shop.k) - (SELECT SUM(k) FROM shop.told)";
        let [dc, cloud] = &self.pair.servers;
        ensure!(
            dc.sql(contents)? == cloud.sql(contents)?,
            "rows without a key\n{}",
            self.pair.seat.log_end()
        );
        for server in [dc, cloud] {
            let found = server.sql(sums)?;
            ensure!(
                found.trim() == format!("{counted}\t{counted}\t0"),
                "{found}, and {counted} were counted\n{}",
                self.pair.seat.log_end()
            );
        }
        Ok(())
    }
}

/// Counts up rows of its own, adds and takes rows without a key, and writes down how many, each in one transaction; and
/// writes rows that the other site writes as well. Goes on at the site's new primary. Returns how often it counted.
async fn count_anywhere(
    primaries: Arc<Mutex<[String; 2]>>,
    site: usize,
    writer: u64,
    seed: u64,
    stop: Arc<AtomicBool>,
) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed + writer);
    let mut conn: Option<Conn> = None;
    let mut counted = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let Some(open) = &mut conn else {
            let url = primaries.lock().unwrap_or_else(PoisonError::into_inner)[site].clone();
            conn = Conn::from_url(&url).await.ok();
            if let Some(open) = &mut conn {
                let row = format!("INSERT IGNORE INTO shop.told VALUES ({writer}, 0, 0)");
                if open.query_drop(row).await.is_err() {
                    conn = None;
                }
            }
            continue;
        };
        let own = site as u64 * 100 + random.random_range(1..=100);
        let (came, gone) = (random.random_range(0..20), random.random_range(0..20));
        let counts = random.random_bool(0.8);
        let sql = match counts {
            true => format!(
                "BEGIN; UPDATE shop.hot SET n = n + 1 WHERE id = {own}; INSERT INTO shop.k VALUES ({site}, 'x{came}'); \
                 DELETE FROM shop.k WHERE a = {site} AND v = 'x{gone}' LIMIT 1; \
                 UPDATE shop.told SET k = k + 1 - ROW_COUNT(), n = n + 1 WHERE id = {writer}; COMMIT"
            ),
            false => format!("REPLACE INTO shop.hot VALUES ({}, '{writer} {counted}', 0)", 201 + came),
        };
        match open.query_drop(sql).await {
            Ok(()) => counted += u64::from(counts),
            Err(mysql_async::Error::Server(error)) if matches!(error.code, 1205 | 1213) => {
                drop(open.query_drop("ROLLBACK").await);
            }
            Err(_) => conn = None,
        }
    }
    counted
}

struct Counters {
    runtime: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Counters {
    fn start(all: &Replicated, seed: u64, writers: std::ops::Range<u64>) -> Result<Counters> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = writers
            .map(|writer| {
                let (primaries, stop) = (Arc::clone(&all.primaries), Arc::clone(&stop));
                runtime.spawn(count_anywhere(primaries, writer as usize % 2, writer, seed, stop))
            })
            .collect();
        Ok(Counters { runtime, stop, tasks })
    }

    /// Ends them; how often they counted.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let mut counted = 0;
        for task in self.tasks {
            counted += self.runtime.block_on(task)?;
        }
        Ok(counted)
    }
}

/// A server dies and its replica takes over, there and back, under the writes of both sites, with the daemon killed at the
/// same moment or not: no gap, nothing lost, nothing twice.
#[test]
fn a_failover_to_a_replica_and_back_costs_nothing() -> Result<()> {
    let Some(mut all) = Replicated::new()? else { return Ok(()) };
    all.start()?;
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let counters = Counters::start(&all, seed, 0..4)?;
    let (mut failovers, end) = (0, Instant::now() + story_seconds(12));
    while failovers < 3 || Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(2500..4000)));
        let killed = failovers % 2 == 1;
        // What our applier ran at the old server stands in the new one's binlog, too.
        all.pair.servers[1].sql(&format!("CREATE TABLE shop.more{failovers} (id INT PRIMARY KEY)"))?;
        let made = |_: &Status| {
            all.pair.servers[0]
                .sql("SHOW TABLES FROM shop")
                .is_ok_and(|tables| tables.contains(&format!("more{failovers}")))
        };
        all.pair.seat.wait_until("the table", DRAIN, made)?;
        all.fail_over(
            failovers % 3 != 2,
            killed.then(|| Duration::from_millis(random.random_range(0..800))),
        )?;
        failovers += 1;
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        all.repair()?;
    }
    let counted = counters.stop()?;
    let status = all.pair.wait_until_settled()?;
    println!("{failovers} failovers, {counted} counted");
    let log = all.pair.seat.log();
    ensure!(!log.contains("gap: the stream was lost"), "a gap\n{log}");
    let came_back =
        log.lines().find(|line| line.contains("partition=orders.dc.0") && line.contains("shop.more"));
    ensure!(came_back.is_none(), "{came_back:?}");
    ensure!(counted > 100, "{counted} counted\n{}", all.pair.seat.log_end());
    all.prove(counted)?;
    for direction in &status.channels[0].directions {
        ensure!(direction.gaps == 0 && direction.dead_letters == 0, "{direction:?}");
    }
    Ok(())
}

/// A replica that lacks the primary's last transactions takes over: the gap is told and closed, and what it lacks comes back
/// from the other site.
#[test]
fn a_failover_to_a_replica_that_is_behind_gets_back_what_it_lacks() -> Result<()> {
    let Some(mut all) = Replicated::new()? else { return Ok(()) };
    all.start()?;
    let seed = seed();
    let counters = Counters::start(&all, seed, 0..4)?;
    std::thread::sleep(Duration::from_secs(2));
    let flavour = all.spare.flavour();
    all.spare.sql(if flavour == Flavour::MariaDb { "STOP SLAVE" } else { "STOP REPLICA" })?;
    std::thread::sleep(Duration::from_secs(2));
    let mut counted = counters.stop()?;
    all.pair.wait_until_settled()?;
    all.pair.servers[0].kill();
    all.promote()?;
    let gone = |_: &Status| all.pair.seat.log().contains("it lacks");
    all.pair.seat.wait_until("a gap", DRAIN, gone)?;
    all.pair.seat.wait_until("closed", DRAIN, |s| s.channels[0].directions.iter().all(|d| d.gaps == 0))?;
    all.pair.wait_until_settled()?;
    all.prove(counted).context("what it lacked")?;
    counted += {
        let counters = Counters::start(&all, seed + 100, 10..14)?;
        std::thread::sleep(Duration::from_secs(2));
        counters.stop()?
    };
    all.pair.wait_until_settled()?;
    all.prove(counted)
}
