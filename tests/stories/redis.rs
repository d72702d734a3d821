//! Two real Redis servers, writes on both sides, and what can die dying.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use causeway_stories::{DRAIN, Link, Setup, durable, program, seed, servers, story_seconds};
use causeway_testkit::data::{fill, load};
use causeway_testkit::resp::{Connection, Reply, cmd};
use causeway_testkit::servers::{Options, RedisServer, free_port};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use syncd::status::{Phase, Status, rfc3339};

/// As [`durable`], and packs its values in another way than a server with the usual limits.
fn durable_and_packed_otherwise() -> Options {
    let small = ["hash-max-listpack-entries", "zset-max-listpack-entries", "set-max-intset-entries"];
    let smaller = ["stream-node-max-entries", "list-max-listpack-size"];
    let args = small.iter().map(|name| (name, "3")).chain(smaller.iter().map(|name| (name, "2")));
    let args = args.flat_map(|(name, n)| [format!("--{name}"), n.to_owned()]).collect();
    Options { args, ..durable() }
}

/// FF24, FF44: whatever dies and whenever, no increment and no element is lost or there twice.
#[test]
fn every_write_arrives_once_while_everything_is_killed() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let lasts = story_seconds(60);
    let mut link = Link::new([durable(), durable_and_packed_otherwise()], &Setup::default())?;
    link.start()?;
    let writers = link.traffic(seed, 1_500);
    let end = Instant::now() + lasts;
    let mut deaths = [0; 3];
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.random_range(500..5_000)));
        let who = random.random_range(0..3_usize);
        deaths[who] += 1;
        let down = Duration::from_millis(random.random_range(0..1_500));
        if who == 2 {
            link.kill()?;
            std::thread::sleep(down);
            link.start()?;
        } else {
            link.stores[who].kill9();
            std::thread::sleep(down);
            link.stores[who].restart()?;
        }
    }
    println!("killed: dc {}, cloud {}, syncd {}", deaths[0], deaths[1], deaths[2]);
    link.prove(writers, DRAIN)
}

/// FF02, FF18: the copy of what exists, with writes on both sides and the daemon killed on the way.
#[test]
fn a_copy_under_writes_survives_a_kill() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link =
        Link::new([Options::default(), Options::default()], &Setup { snapshot: "dc", ..Setup::default() })?;
    fill(&link.urls()[0], seed, 100_000)?;
    link.start()?;
    // The snapshot names `dc` only: what `cloud` wrote before capture began there is not carried.
    link.wait_until("capture", DRAIN, |s| {
        s.channels[0].directions.iter().all(|d| d.phase != Phase::Starting)
    })?;
    let writers = link.traffic(seed, 1_000);
    link.wait_until("half of the snapshot", DRAIN, |status| {
        status.channels[0].directions[0].snapshot.done > 20_000
            || status.channels[0].directions[0].phase == Phase::Streaming
    })?;
    link.kill()?;
    link.start()?;
    link.wait_until("the snapshot", DRAIN, |s| s.channels[0].directions[0].phase == Phase::Streaming)?;
    std::thread::sleep(Duration::from_secs(2));
    link.prove(writers, DRAIN)
}

/// FF23: what empties one store does not empty the other before somebody says so.
#[test]
fn a_flush_is_held_until_an_operator_answers() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.stores[0].connect()?.must(&["SET", "kept", "1"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.stores[0].connect()?.must(&["FLUSHALL"])?;
    link.stores[0].connect()?.must(&["SET", "after", "1"])?;
    link.wait_until("held", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
    ensure!(link.stores[1].connect()?.must(&["GET", "kept"])?.text().as_deref() == Some("1"), "not held");
    // The other direction goes on, though its marker was flushed away.
    link.stores[1].connect()?.must(&["INCR", "other"])?;
    // Before the INCR is captured there is no lag, either.
    link.wait_until("the other way", DRAIN, |_| {
        let other = link.stores[0].connect().and_then(|mut store| store.must(&["GET", "other"]));
        other.is_ok_and(|other| other.text().as_deref() == Some("1"))
    })?;
    // A restart keeps on holding, and takes the missing marker for what it is. The answer to the INCR may not have been
    // read: then it is asked for again, and that crosses the flush.
    link.kill()?;
    link.start()?;
    link.wait_until("held again", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
    link.answer_held("apply")?;
    link.wait_until_drained(DRAIN)?;
    ensure!(link.stores[1].connect()?.must(&["GET", "kept"])?.text().is_none(), "not flushed");
    ensure!(link.stores[1].connect()?.must(&["GET", "after"])?.text().as_deref() == Some("1"), "order lost");
    // What the other site wrote while it was held came after the flush at its own. Where each site has a daemon, what one
    // asks the other for is no lag of either.
    link.wait_until("what was lost with the flush", DRAIN, |_| {
        link.stores.iter().all(|store| {
            let other = store.connect().and_then(|mut store| store.must(&["GET", "other"]));
            other.is_ok_and(|other| other.text().as_deref() == Some("1"))
        })
    })?;
    link.verify()
}

/// FF23: a flush that was dropped stays dropped when the target comes back empty and is filled from the log, and the
/// site that has all keys keeps them.
#[test]
fn a_dropped_flush_stays_dropped_when_the_target_comes_back_empty() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), Options::default()], &Setup { snapshot: "dc", ..Setup::default() })?;
    fill(&link.urls()[0], seed(), 3_000)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let keys = |link: &Link, site: usize| -> Result<i64> {
        Ok(link.stores[site].connect()?.must(&["DBSIZE"])?.int().unwrap_or_default())
    };
    let all = keys(&link, 1)?;
    link.stores[0].connect()?.must(&["FLUSHALL"])?;
    link.wait_until("held", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
    link.answer_held("drop")?;
    link.wait_until("the copy back", DRAIN, |_| keys(&link, 0).is_ok_and(|keys| keys >= all))?;
    link.wait_until_drained(DRAIN)?;
    link.stores[1].kill9();
    link.stores[1].restart()?;
    link.wait_until("filled again", DRAIN, |s| {
        let held = s.channels[0].directions.iter().any(|d| d.held.is_some());
        held || keys(&link, 1).is_ok_and(|keys| keys >= all)
    })?;
    link.wait_until_drained(DRAIN)?;
    for site in [0, 1] {
        // Some expire.
        ensure!(keys(&link, site)? > all * 9 / 10, "{} of {all} keys at site {site}", keys(&link, site)?);
    }
    link.verify()
}

/// A flush that the target refuses is held again, with its reason, and can then be dropped.
#[test]
fn a_flush_that_the_target_refuses_is_held_with_the_reason() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let args = ["--rename-command", "FLUSHALL", ""].map(str::to_owned).to_vec();
    let stores = [durable(), Options { args, ..durable() }];
    let mut link = Link::new(stores, &Setup { snapshot: "dc", ..Setup::default() })?;
    link.stores[0].connect()?.must(&["SET", "kept", "1"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.stores[0].connect()?.must(&["FLUSHALL"])?;
    let held = |s: &Status| s.channels[0].directions[0].held.clone().unwrap_or_default();
    link.wait_until("held", DRAIN, |s| held(s).contains("FLUSHALL at seq"))?;
    link.answer_held("apply")?;
    link.wait_until("refused", DRAIN, |s| held(s).contains("; the target refused it: "))?;
    ensure!(link.stores[1].connect()?.must(&["GET", "kept"])?.text().as_deref() == Some("1"), "it is gone");
    // A restart tries once more, and asks again.
    link.kill()?;
    link.start()?;
    link.wait_until("refused again", DRAIN, |s| held(s).contains("; the target refused it: "))?;
    link.answer_held("drop")?;
    let is_back = |_: &Status| {
        let kept = link.stores[0].connect().and_then(|mut store| store.must(&["GET", "kept"]));
        kept.is_ok_and(|kept| kept.text().as_deref() == Some("1"))
    };
    link.wait_until("the copy back", DRAIN, is_back)?;
    link.wait_until_drained(DRAIN)?;
    link.verify()
}

/// A marker that SWAPDB brings back from another database is an old one: nothing is applied twice.
#[test]
fn a_marker_that_swapdb_brings_back_is_not_believed() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    link.stores[1].connect()?.must(&["SET", "before", "1"])?;
    link.wait_until_drained(DRAIN)?;
    let swap = |link: &mut Link, down: bool| -> Result<()> {
        if down {
            link.kill()?;
        }
        link.stores[0].connect()?.must(&["SWAPDB", "0", "3"])?;
        if down {
            link.start()?;
        }
        link.wait_until("held", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
        link.answer_held("apply")?;
        link.wait_until_drained(DRAIN)?;
        Ok(())
    };
    swap(&mut link, false)?;
    for _ in 0..5 {
        link.stores[1].connect()?.must(&["INCR", "n"])?;
        link.stores[1].connect()?.must(&["RPUSH", "l", "x"])?;
    }
    link.wait_until_drained(DRAIN)?;
    swap(&mut link, true)?;
    for store in &link.stores {
        let mut conn = store.connect()?;
        conn.must(&["SELECT", "3"])?;
        ensure!(conn.must(&["GET", "n"])?.text().as_deref() == Some("5"), "not five in database 3");
        ensure!(conn.must(&["LLEN", "l"])?.int() == Some(5), "not five elements in database 3");
        conn.must(&["SELECT", "0"])?;
        ensure!(conn.must(&["EXISTS", "n", "l"])?.int() == Some(0), "applied twice");
    }
    link.verify()
}

/// Runs `words` in database `db` of `store`.
fn in_db(store: &RedisServer, db: u32, words: &[&str]) -> Result<Reply> {
    let mut to = store.connect()?;
    to.must(&["SELECT", &db.to_string()])?;
    Ok(to.must(words)?)
}

/// FF21, FF23: SWAPDB at one site while the other writes to both databases, and then a transaction over all of them:
/// once it is let through, each write is in the database that it was meant for, at both sites.
#[test]
fn swapped_databases_are_swapped_at_both_sites() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    let [dc, cloud] = [0, 1];
    for db in [1, 2] {
        in_db(&link.stores[dc], db, &["SET", "name", &format!("was {db}")])?;
        in_db(&link.stores[cloud], db, &["RPUSH", "cloud's", &format!("was {db}")])?;
    }
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let mut to = link.stores[cloud].connect()?;
    to.must(&["SWAPDB", "1", "2"])?;
    link.wait_until("held", DRAIN, |s| s.channels[0].directions[cloud].held.is_some())?;
    // Behind it in the stream: a transaction over three databases.
    to.must(&["MULTI"])?;
    for db in ["1", "2", "3"] {
        to.must(&["SELECT", db])?;
        to.must(&["INCR", "counted"])?;
        to.must(&["RPUSH", "listed", db])?;
    }
    to.must(&["EXEC"])?;
    // And what the other site writes before the swap is let through: to database 1 as it is there, now 2.
    in_db(&link.stores[dc], 1, &["SET", "dc's", "was 1"])?;
    ensure!(in_db(&link.stores[dc], 1, &["GET", "name"])?.text().as_deref() == Some("was 1"), "not held");
    link.answer_held("apply")?;
    let through = |link: &Link| in_db(&link.stores[dc], 3, &["GET", "counted"]);
    link.wait_until("what was behind it", DRAIN, |_| through(&link).is_ok_and(|n| n.int() == Some(1)))?;
    link.wait_until_drained(DRAIN)?;
    for store in &link.stores {
        for (db, was) in [(1, "was 2"), (2, "was 1")] {
            let name = in_db(store, db, &["GET", "name"])?.text();
            ensure!(name.as_deref() == Some(was), "name in database {db} is {name:?}, not {was}");
            let list = in_db(store, db, &["LRANGE", "cloud's", "0", "-1"])?;
            ensure!(list.items().iter().filter_map(Reply::text).eq([was]), "database {db}: {list:?}");
        }
        for db in [1, 2, 3] {
            ensure!(in_db(store, db, &["GET", "counted"])?.int() == Some(1), "counted in database {db}");
            let list = in_db(store, db, &["LRANGE", "listed", "0", "-1"])?;
            ensure!(list.items().len() == 1, "listed in database {db}: {list:?}");
        }
    }
    link.verify()
}

/// A target that holds keys and no marker may hold anything: a snapshot says, the log is not applied again.
#[test]
fn a_marker_that_is_gone_from_a_full_target_is_a_gap() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &one_way)?;
    link.start()?;
    for _ in 0..5 {
        link.stores[0].connect()?.must(&["INCR", "n"])?;
        link.stores[0].connect()?.must(&["RPUSH", "l", "x"])?;
    }
    link.wait_until_drained(DRAIN)?;
    link.kill()?;
    let delete = "for _, key in ipairs(redis.call('KEYS', 'causeway:*')) do redis.call('DEL', key) end";
    link.stores[1].connect()?.must(&["EVAL", delete, "0"])?;
    link.stores[0].connect()?.must(&["INCR", "n"])?;
    link.start()?;
    let n = || -> Result<_> { Ok(link.stores[1].connect()?.must(&["GET", "n"])?.text()) };
    link.wait_until("the last increment", DRAIN, |_| n().is_ok_and(|n| n.as_deref() == Some("6")))?;
    link.wait_until_drained(DRAIN)?;
    ensure!(n()?.as_deref() == Some("6"), "applied twice");
    let mut conn = link.stores[1].connect()?;
    ensure!(conn.must(&["LLEN", "l"])?.int() == Some(5), "applied twice");
    link.verify()
}

/// FF23: a flush that was dropped is undone from the other site, and what was written since stands.
#[test]
fn a_flush_that_is_dropped_is_undone_from_the_other_site() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    fill(&link.urls()[0], seed(), 5_000)?;
    link.stores[0].connect()?.must(&["SET", "both", "old"])?;
    link.wait_until_drained(DRAIN)?;
    link.stores[0].connect()?.must(&["FLUSHALL"])?;
    link.stores[0].connect()?.must(&["SET", "both", "new"])?;
    link.wait_until("held", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
    link.answer_held("drop")?;
    link.wait_until("the copy back", DRAIN, |_| {
        let size = link.stores[0].connect().and_then(|mut c| Ok(c.must(&["DBSIZE"])?.int())).ok().flatten();
        size.is_some_and(|keys| keys > 3_000)
    })?;
    link.wait_until_drained(DRAIN)?;
    for store in &link.stores {
        ensure!(store.connect()?.must(&["GET", "both"])?.text().as_deref() == Some("new"), "the flush won");
    }
    link.verify()
}

/// FF23: where a channel carries only some keys, a flush cannot reach the others whatever is answered, and what
/// cannot be carried is counted.
#[test]
fn a_flush_never_reaches_what_the_channel_does_not_carry() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let setup = Setup { channel: "except = [\"own:*\"]".to_owned(), ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &setup)?;
    link.stores[0].connect()?.must(&["SET", "kept", "1"])?;
    link.stores[1].connect()?.must(&["SET", "own:1", "1"])?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    link.stores[0].connect()?.must(&["SET", "", "1"])?;
    link.wait_until("left out", DRAIN, |s| s.channels[0].directions[0].left_out == 1)?;
    link.stores[0].connect()?.must(&["FLUSHALL"])?;
    let held =
        |s: &Status| s.channels[0].directions[0].held.clone().is_some_and(|h| h.contains("only be dropped"));
    link.wait_until("held", DRAIN, held)?;
    for answer in ["apply", "drop"] {
        link.wait_until("held still", DRAIN, held)?;
        link.answer_held(answer)?;
    }
    link.wait_until("the copy back", DRAIN, |_| {
        let kept =
            link.stores[0].connect().and_then(|mut c| Ok(c.must(&["GET", "kept"])?.text())).ok().flatten();
        kept.is_some()
    })?;
    for key in ["kept", "own:1"] {
        ensure!(link.stores[1].connect()?.must(&["GET", key])?.text().is_some(), "{key} is gone");
    }
    Ok(())
}

/// SIGTERM drains and ends with 0 in time, and what comes back goes on where it stopped.
#[test]
fn a_stop_is_orderly_and_quick() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    let writers = link.traffic(seed, 1_000);
    link.wait_until_applied(500, DRAIN)?;
    link.stop_in_order()?;
    link.start()?;
    link.prove(writers, DRAIN)
}

/// A target that comes back with an old file is rolled forward from the log.
#[test]
fn a_target_that_comes_back_empty_is_filled_again() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), Options::default()], &one_way)?;
    link.start()?;
    let seed = seed();
    fill(&link.urls()[0], seed, 5_000)?;
    link.wait_until_drained(DRAIN)?;
    link.stores[1].kill9();
    link.stores[1].restart()?;
    link.stores[0].connect()?.must(&["SET", "later", "1"])?;
    std::thread::sleep(Duration::from_secs(1));
    link.wait_until_drained(DRAIN)?;
    link.verify()
}

/// What somebody did to a target whose writes are not carried is undone by a repair: values of every type, keys that are
/// gone, and keys that should not be there.
#[test]
fn what_differs_is_repaired_from_a_named_site() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &one_way)?;
    link.start()?;
    fill(&link.urls()[0], seed(), 4_000)?;
    link.wait_until_drained(DRAIN)?;
    link.verify()?;
    let mut cloud = link.stores[1].connect()?;
    let keys = cloud.must(&["KEYS", "*"])?;
    let keys: Vec<String> = keys.items().iter().filter_map(Reply::text).collect();
    let data = keys.iter().filter(|key| !key.starts_with("causeway:"));
    for (n, key) in data.step_by(30).enumerate() {
        match n % 3 {
            0 => drop(cloud.must(&["SET", key, "somebody's"])?),
            1 => drop(cloud.must(&["DEL", key])?),
            _ => drop(cloud.must(&["SET", &format!("{key}:new"), "somebody's", "EX", "1000"])?),
        }
    }
    let (code, said) = link.repair(&["--from", "dc"])?;
    ensure!(code == 1 && said.contains("say --yes"), "{code} {said}");
    let (code, said) = link.repair(&["--from", "cloud", "--yes"])?;
    ensure!(code == 3 && said.contains("nothing is carried from `cloud`"), "{code} {said}");
    let (code, said) = link.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0 && said.contains("keys repaired, as they are at dc"), "{code} {said}");
    link.verify()
}

/// Keys of a report.
fn differing(report: &serde_json::Value) -> Vec<&str> {
    let listed = report["differences"].as_array().map_or(&[][..], Vec::as_slice);
    let mut keys: Vec<&str> = listed.iter().filter_map(|one| one["key"].as_str()).collect();
    keys.sort_unstable();
    keys
}

/// What `syncd backfill` with these words ends with and says, as JSON.
fn backfill(link: &Link, words: &[&str]) -> Result<(Option<i32>, serde_json::Value)> {
    let done = link.syncd(&[&["backfill", "--channel", "push", "--json"], words].concat())?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let json = serde_json::from_str(said.lines().next().unwrap_or_default());
    Ok((done.status.code(), json.with_context(|| said.clone())?))
}

/// A window of time is compared, carried once more and repaired by what the log names, and by nothing else; also one in
/// which no daemon ran.
#[test]
fn a_window_is_closed_by_what_the_log_names() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &one_way)?;
    let mut dc = link.stores[0].connect()?;
    let mut cloud = link.stores[1].connect()?;
    for n in 0..300 {
        dc.must(&["SET", &format!("old:{n}"), "v"])?;
    }
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let from = rfc3339(SystemTime::now());
    for n in 0..200 {
        dc.must(&["HSET", &format!("new:{n}"), "f", "v"])?;
    }
    dc.must(&["MSET", "new:a", "1", "new:b", "2"])?;
    dc.must(&["DEL", "new:199"])?;
    link.wait_until_drained(DRAIN)?;
    let to = rfc3339(SystemTime::now());
    let window = ["--from", from.as_str(), "--to", to.as_str()];
    let report = link.report(&window)?;
    ensure!(report["equal"] == true && report["compared"] == 202, "{report}");
    // Somebody writes at the target: within the window's keys and beside them.
    cloud.must(&["DEL", "new:7"])?;
    cloud.must(&["SET", "new:b", "other"])?;
    cloud.must(&["HSET", "new:199", "f", "v"])?;
    cloud.must(&["SET", "old:5", "other"])?;
    let report = link.report(&window)?;
    ensure!(differing(&report) == ["new:199", "new:7", "new:b"], "{report}");
    let (code, done) = backfill(&link, &[&window[..], &["--dry-run"]].concat())?;
    ensure!(code == Some(0) && done["keys"]["dc"] == 202 && done["asked"] == 0, "{code:?} {done}");
    let (code, done) = backfill(&link, &window)?;
    ensure!(code == Some(0) && done["asked"] == 202 && done["equal"] == true, "{code:?} {done}");
    ensure!(differing(&link.report(&[])?) == ["old:5"], "only the window was carried");

    // A window in which nobody captured: what came is read from the backlog later.
    link.kill()?;
    let from = rfc3339(SystemTime::now());
    dc.must(&["SET", "unseen", "v"])?;
    std::thread::sleep(Duration::from_millis(1200));
    let to = rfc3339(SystemTime::now());
    std::thread::sleep(Duration::from_secs(2));
    link.start()?;
    link.wait_until("what was not seen", DRAIN, |_| {
        link.stores[1]
            .connect()
            .and_then(|mut cloud| cloud.must(&["GET", "unseen"]))
            .is_ok_and(|v| v.text().is_some())
    })?;
    cloud.must(&["DEL", "unseen"])?;
    let report = link.report(&["--from", &from, "--to", &to])?;
    ensure!(differing(&report).contains(&"unseen"), "{report}");

    // The log tells who wrote last; of what it never named it tells nothing.
    let (code, said) = link.repair(&["--from", "newest", "--yes"])?;
    ensure!(code == 1 && said.contains("left, no log names it: db0 old:5"), "{code} {said}");
    ensure!(differing(&link.report(&[])?) == ["old:5"], "{said}");
    let (code, said) = link.repair(&["--from", "owner"])?;
    ensure!(code == 3 && said.contains("conflict = \"owner\""), "{code} {said}");
    let (code, said) = link.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0, "{code} {said}");
    link.verify()?;

    // A command on the whole store names every key.
    let from = rfc3339(SystemTime::now());
    dc.must(&["FLUSHALL"])?;
    link.wait_until("held", DRAIN, |s| s.channels[0].directions[0].held.is_some())?;
    link.answer_held("apply")?;
    link.wait_until_drained(DRAIN)?;
    cloud.must(&["SET", "left", "over"])?;
    let report = link.report(&["--from", &from])?;
    ensure!(differing(&report) == ["left"], "{report}");
    let (code, done) = backfill(&link, &["--from", &from, "--no-verify"])?;
    ensure!(code == Some(1) && done["unnamed"][0][0] == "dc", "{code:?} {done}");
    let (code, said) = link.repair(&["--from", "dc", "--yes"])?;
    ensure!(code == 0, "{code} {said}");
    link.verify()
}

/// A repair from the wrong site is taken back: what the other one held before goes over to both, but for what somebody wrote
/// since; and that undo can be taken back as well.
#[test]
fn a_repair_from_the_wrong_site_is_undone_at_both() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    // What they hold before stays where it is, and differs.
    let mut link = Link::new([durable(), durable()], &Setup { snapshot: "none", ..Setup::default() })?;
    fill(&link.urls()[0], seed(), 3_000)?;
    fill(&link.urls()[1], seed() + 1, 3_000)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let mut sites = [link.stores[0].connect()?, link.stores[1].connect()?];
    let before = [contents(&mut sites[0])?, contents(&mut sites[1])?];
    ensure!(before[0] != before[1], "nothing differs");
    let (code, said) = link.repair(&["--from", "dc", "--share-max", "100", "--yes"])?;
    ensure!(code == 0, "{code} {said}");
    ensure!(contents(&mut sites[1])? == before[0], "not repaired: {said}");
    sites[1].must(&["SET", "since", "the repair"])?;
    let (code, undone) = link.undo(&said)?;
    ensure!(code == 0, "{code} {undone}");
    link.wait_until_drained(DRAIN)?;
    link.verify()?;
    let mut expected = before[1].clone();
    sites[0].must(&["DEL", "since"])?;
    link.wait_until_drained(DRAIN)?;
    for site in &mut sites {
        ensure!(contents(site)? == expected, "another content after the undo: {undone}");
    }
    let (code, again) = link.undo(&undone)?;
    ensure!(code == 0, "{code} {again}");
    link.wait_until_drained(DRAIN)?;
    link.verify()?;
    expected.clone_from(&before[0]);
    ensure!(contents(&mut sites[0])? == expected, "another content after the undo of the undo: {again}");
    println!("{}", undone.lines().next().unwrap_or_default());
    Ok(())
}

/// Each key with its type, the server's own digest of its value, and its expire-at time.
fn contents(store: &mut Connection) -> Result<Vec<String>> {
    let keys = store.must(&["KEYS", "*"])?;
    let mut all = Vec::new();
    for key in keys.items().iter().filter_map(Reply::text).filter(|key| !key.starts_with("causeway:")) {
        let mut one = key.clone();
        for words in [&["TYPE"][..], &["DEBUG", "DIGEST-VALUE"], &["PEXPIRETIME"]] {
            let told = store.must(&[words, &[key.as_str()]].concat())?;
            one += &format!(" {told:?}");
        }
        all.push(one);
    }
    all.sort_unstable();
    Ok(all)
}

/// What both sites wrote is named by either daemon, and which of them wrote last.
#[test]
fn a_window_of_both_sites_is_told_by_either_daemon() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link = Link::new([durable(), durable()], &Setup { snapshot: "none", ..Setup::default() })?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let from = rfc3339(SystemTime::now());
    let mut sites = [link.stores[0].connect()?, link.stores[1].connect()?];
    for (site, store) in sites.iter_mut().enumerate() {
        for n in 0..100 {
            store.must(&["SET", &format!("{site}:{n}"), "v"])?;
        }
    }
    link.wait_until_drained(DRAIN)?;
    sites[1].must(&["SET", "0:7", "newer"])?;
    std::thread::sleep(Duration::from_millis(300));
    let report = link.report(&["--from", &from])?;
    ensure!(report["equal"] == true && report["compared"] == 200, "{report}");
    let (code, done) = backfill(&link, &["--from", &from, "--dry-run"])?;
    ensure!(code == Some(0) && done["keys"]["dc"] == 100 && done["keys"]["cloud"] == 101, "{code:?} {done}");
    let (code, done) = backfill(&link, &["--from", &from])?;
    ensure!(code == Some(0) && done["asked"] == 201, "{code:?} {done}");
    for store in &mut sites {
        ensure!(store.must(&["GET", "0:7"])?.text().as_deref() == Some("newer"), "an older write stands");
    }
    link.verify()
}

/// A key that is read again, as what COPY wrote, is under way from the command on: nobody may take it for lost meanwhile.
#[test]
fn what_is_read_again_counts_as_under_way() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let mut link =
        Link::new([Options::default(), Options::default()], &Setup { snapshot: "dc", ..Setup::default() })?;
    link.start()?;
    let mut dc = link.stores[0].connect()?;
    dc.must(&["SETRANGE", "large", "60000000", "x"])?;
    link.wait_until_drained(DRAIN)?;
    for n in 0..5 {
        let copy = format!("copy:{n}");
        dc.must(&["COPY", "large", &copy])?;
        link.wait_until_drained(DRAIN)?;
        let length = link.stores[1].connect()?.must(&["STRLEN", &copy])?;
        ensure!(
            length.int() == Some(60_000_001),
            "{copy} is not there, and nothing was said to be under way"
        );
    }
    Ok(())
}

/// Under traffic a watch tells what differs, and nothing else, and when it is equal again; and whether everything was equal.
#[test]
fn a_watch_tells_what_differs_and_when_it_is_equal_again() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let one_way = Setup { direction: "dc->cloud", snapshot: "dc", ..Setup::default() };
    let mut link = Link::new([durable(), durable()], &one_way)?;
    fill(&link.urls()[0], seed(), 3_000)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let (mut dc, mut cloud) = (link.stores[0].connect()?, link.stores[1].connect()?);
    let port = free_port()?;
    let events = link.dir().join("events");
    let mut watch = std::process::Command::new(program("verifier")?)
        .args(["watch", "--json", "--every", "1s", "--whole-every", "4s"])
        .args(["--listen", &format!("127.0.0.1:{port}"), "--config"])
        .arg(link.config())
        .stdout(std::fs::File::create(&events)?)
        .spawn()?;
    let told = |event: &str, key: &str| -> Result<usize> {
        let text = std::fs::read_to_string(&events)?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines.filter(|line| line["event"] == event && (key.is_empty() || line["key"] == key)).count())
    };
    let wait = |event: &str, key: &str| -> Result<()> {
        let begin = Instant::now();
        while told(event, key)? == 0 {
            ensure!(begin.elapsed() < DRAIN, "{event} {key}: {}", std::fs::read_to_string(&events)?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    let open = |count: u32| -> Result<()> {
        let metrics = causeway_testkit::api::get(&format!("127.0.0.1:{port}"), "/metrics")?;
        ensure!(
            metrics.contains(&format!("causeway_verify_open{{channel=\"push\"}} {count}\n")),
            "{metrics}"
        );
        Ok(())
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<u32> {
            let (mut store, mut writes) = (link.stores[0].connect()?, 0);
            while !stop.load(Ordering::SeqCst) {
                store.must(&["INCR", &format!("count:{}", writes % 500)])?;
                store.must(&["HSET", &format!("hash:{}", writes % 7), &format!("f{}", writes % 90), "v"])?;
                writes += 1;
            }
            Ok(writes)
        });
        let watched = (|| {
            wait("proof", "")?;
            dc.must(&["SET", "watched", "v"])?;
            std::thread::sleep(Duration::from_secs(1));
            // No change of this site is carried: what differs stays so.
            cloud.must(&["SET", "watched", "w"])?;
            cloud.must(&["SET", "nobody's", "w"])?;
            wait("content", "watched")?;
            wait("missing", "nobody's")?;
            open(2)?;
            cloud.must(&["SET", "watched", "v"])?;
            cloud.must(&["DEL", "nobody's"])?;
            wait("equal again", "watched")?;
            wait("equal again", "nobody's")?;
            open(0)
        })();
        stop.store(true, Ordering::SeqCst);
        let writes = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        println!("{writes} writes under the watch");
        watched
    })?;
    let ended = std::process::Command::new("kill").arg(watch.id().to_string()).status()?;
    ensure!(ended.success() && watch.wait()?.code() == Some(0), "{}", std::fs::read_to_string(&events)?);
    // Nothing that the traffic wrote was ever taken for different.
    for kind in ["missing", "extra", "content", "expiry"] {
        let planted = told(kind, "watched")? + told(kind, "nobody's")?;
        ensure!(told(kind, "")? == planted, "{kind}: {}", std::fs::read_to_string(&events)?);
    }
    Ok(())
}

/// Promise 8: a copy and a line that stands still for some seconds, under the smallest `limits.memory`.
#[test]
fn memory_stays_within_what_is_promised() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    const LIMIT_MIB: u64 = 32;
    // docs/ARCHITECTURE.md, section 7: the program itself and what one channel of Redis may take besides.
    const BESIDES_MIB: u64 = 96;
    let seed = seed();
    let tables = format!("[limits]\nmemory = \"{LIMIT_MIB}MiB\"");
    let setup = Setup { snapshot: "dc", tables, ..Setup::default() };
    let mut link = Link::new([Options::default(), Options::default()], &setup)?;
    fill(&link.urls()[0], seed, 200_000)?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let copied = link.peak_memory()? >> 20;
    // Nothing gets through, and nothing is said to be broken: what is written meanwhile waits in the log.
    link.stores[1].pause();
    let value = "v".repeat(100);
    let sets = (0..60_000).map(|n| cmd(&["SET", &format!("cut:{n}"), &value]));
    load(&link.urls()[0], sets, |_| {})?;
    let waits = |status: &Status| {
        let lag = status.channels[0].directions[0].lag;
        lag.changes > Some(30_000) && lag.seconds > Some(1.0)
    };
    link.wait_until("something waits", DRAIN, waits)?;
    link.stores[1].resume();
    link.wait_until_drained(DRAIN)?;
    let peak = link.peak_memory()? >> 20;
    println!("peak memory: {copied} MiB for the copy, {peak} MiB in all");
    ensure!(peak <= LIMIT_MIB + BESIDES_MIB, "{peak} MiB");
    let held =
        |store: usize| -> Result<_> { Ok(link.stores[store].connect()?.must(&["GET", "cut:59999"])?.text()) };
    ensure!(held(0)? == Some(value.clone()) && held(1)? == Some(value), "what waited did not arrive");
    Ok(())
}
