//! What breaks off in the middle goes on: a stream whose backlog was overrun, a copy, a channel that is paused, a
//! stop while a server does not answer.

use anyhow::{Result, ensure};
use causeway_stories::{DRAIN, Link, Setup, durable, seed, servers};
use causeway_testkit::data::{fill, key_at};
use causeway_testkit::resp::{Command, cmd};
use causeway_testkit::servers::{Options, RedisServer};
use syncd::status::{ChannelState, DirectionStatus, Phase, Status};

/// A copy that takes some seconds, so that something can be done in the middle of it.
fn slow(bytes_per_second: u32) -> String {
    format!("limits = {{ snapshot_bytes_per_second = {bytes_per_second} }}")
}

/// The direction that begins at `dc`.
fn from_dc(status: &Status) -> &DirectionStatus {
    &status.channels[0].directions[0]
}

fn get(server: &RedisServer, key: &str) -> Result<Option<String>> {
    Ok(server.connect()?.must(&["GET", key])?.text())
}

const COUNTERS: u32 = 90;

/// Makes `COUNTERS` strings, each with a counter and a list beside it.
fn before_the_gap() -> Vec<Command> {
    let each = |n| {
        let [text, counter, list] = ["text", "counter", "list"].map(|word| format!("{word}:{n}"));
        [cmd(&["SET", &text, "before"]), cmd(&["INCRBY", &counter, "5"]), cmd(&["RPUSH", &list, "a"])]
    };
    (0..COUNTERS).flat_map(each).collect()
}

/// Overwrites a third of the strings and deletes a third, counts and pushes on; and writes a megabyte beside them.
fn in_the_gap() -> Vec<Command> {
    let filler = "f".repeat(10_000);
    let each = |n: u32| {
        let text = format!("text:{n}");
        let text = match n % 3 {
            0 => cmd(&["SET", &text, "in the gap"]),
            1 => cmd(&["DEL", &text]),
            _ => cmd(&["SET", &format!("new:{n}"), "in the gap"]),
        };
        let [counter, list, big] = ["counter", "list", "big"].map(|word| format!("{word}:{n}"));
        [text, cmd(&["INCR", &counter]), cmd(&["RPUSH", &list, "b"]), cmd(&["SET", &big, &filler])]
    };
    (0..COUNTERS).flat_map(each).collect()
}

/// What `server` holds of all that.
fn after_the_gap(server: &RedisServer) -> Result<()> {
    let mut to = server.connect()?;
    for n in 0..COUNTERS {
        let text = to.must(&["GET", &format!("text:{n}")])?.text();
        let wanted = [Some("in the gap"), None, Some("before")][n as usize % 3];
        ensure!(text.as_deref() == wanted, "text:{n} is {text:?}, not {wanted:?}");
        let new = to.must(&["EXISTS", &format!("new:{n}")])?.int();
        ensure!(new == Some(i64::from(n % 3 == 2)), "new:{n}");
        let counter = to.must(&["GET", &format!("counter:{n}")])?.int();
        ensure!(counter == Some(6), "counter:{n} is {counter:?}");
        let list = to.must(&["LRANGE", &format!("list:{n}"), "0", "-1"])?;
        ensure!(list.items().len() == 2, "list:{n}: {list:?}");
    }
    Ok(())
}

/// FF03: far more than the source's backlog is written while the daemon is dead. The status says `gap`, it is
/// counted and closes by itself; what was overwritten, deleted and counted meanwhile is right at both sites, and so
/// is what the other site wrote.
#[test]
fn an_overrun_backlog_is_a_gap_that_closes_by_itself() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    // The least that a server takes.
    let args = ["--repl-backlog-size", "16kb"].map(str::to_owned).to_vec();
    let setup = Setup { channel: slow(250_000), ..Setup::default() };
    let mut link = Link::new([Options { args, ..durable() }, durable()], &setup)?;
    link.stores[0].connect()?.pipeline(&before_the_gap())?;
    link.start()?;
    link.wait_until_drained(DRAIN)?;
    let writers = link.traffic(seed, 500);
    link.wait_until_applied(300, DRAIN)?;
    link.kill()?;
    link.stores[0].connect()?.pipeline(&in_the_gap())?;
    link.stores[1].connect()?.must(&["SET", "at the other site", "in the gap"])?;
    link.start()?;
    let is_counted = || link.metric("causeway_gaps_total", "dc").is_ok_and(|counted| counted == 1.0);
    let in_gap = |s: &Status| from_dc(s).phase == Phase::Gap && from_dc(s).gaps == 1;
    // Whoever looks late finds it closed.
    link.wait_until("the gap", DRAIN, |s| in_gap(s) || is_counted())?;
    let closed = |s: &Status| from_dc(s).phase == Phase::Streaming && from_dc(s).gaps == 0;
    link.wait_until("the gap closed", DRAIN, closed)?;
    for (site, gaps) in [("dc", 1.0), ("cloud", 0.0)] {
        let counted = link.metric("causeway_gaps_total", site)?;
        ensure!(counted == gaps, "{counted} gaps are counted from {site}\n{}", link.log_end());
    }
    link.prove(writers, DRAIN)?;
    for store in &link.stores {
        after_the_gap(store)?;
        ensure!(get(store, "at the other site")?.is_some(), "lost in the other site's gap");
    }
    Ok(())
}

/// `who` is killed in the middle of the copy from `dc`, and started again.
fn killed_in_the_copy(who: usize, stores: [Options; 2]) -> Result<()> {
    const KEYS: u64 = 6_000;
    let seed = seed();
    let setup = Setup { snapshot: "dc", channel: slow(400_000), ..Setup::default() };
    let mut link = Link::new(stores, &setup)?;
    fill(&link.urls()[0], seed, KEYS)?;
    link.start()?;
    // Of two daemons one may not have heard of the other yet.
    let is_half = |s: &Status| from_dc(s).snapshot.done > KEYS / 6 && from_dc(s).phase != Phase::Starting;
    let status = link.wait_until("the middle of the copy", DRAIN, is_half)?;
    ensure!(from_dc(&status).phase == Phase::Snapshot, "the copy was too quick: {status:?}");
    link.stores[who].kill9();
    link.stores[who].restart()?;
    // What was copied already goes or changes, and so does what was not.
    let mut dc = link.stores[0].connect()?;
    let names = (0..KEYS / 2).step_by(5).map(|n| key_at(seed, KEYS, n).name);
    let change = |(n, name): (usize, String)| match n % 2 {
        0 => cmd(&["DEL", &name]),
        _ => cmd(&["SET", &name, "changed"]),
    };
    dc.pipeline(&names.enumerate().map(change).collect::<Vec<_>>())?;
    dc.must(&["SET", "last", "1"])?;
    link.wait_until("the last write", DRAIN, |_| get(&link.stores[1], "last").is_ok_and(|v| v.is_some()))?;
    let status = link.wait_until_drained(DRAIN)?;
    ensure!(from_dc(&status).dead_letters == 0, "{status:?}");
    let sizes =
        [0, 1].map(|site| link.stores[site].connect().and_then(|mut c| Ok(c.must(&["DBSIZE"])?.int())));
    println!("keys in database 0: {sizes:?}");
    link.verify()
}

/// FF02: the source dies in the middle of its RDB, which begins anew; what the first one brought and the second one
/// lacks goes.
#[test]
fn a_source_killed_in_its_rdb_is_copied_all_the_same() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    killed_in_the_copy(0, [durable(), durable()])
}

/// FF02, FF55: the target dies in the middle of the copy and keeps what it had.
#[test]
fn a_target_killed_in_the_copy_gets_the_rest() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    killed_in_the_copy(1, [durable(), durable()])
}

/// FF02, FF55: the same where it comes back empty.
#[test]
fn a_target_that_comes_back_empty_in_the_copy_gets_all_of_it() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    killed_in_the_copy(1, [durable(), Options::default()])
}

fn pause_or_resume(link: &Link, verb: &str) -> Result<()> {
    let done = link.syncd(&[verb, "--channel", "push"])?;
    ensure!(done.status.success(), "syncd {verb}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Writes a key at each site; each stays where it is, and the lag grows, while the channel is paused.
fn stays_paused(link: &Link, key: &str) -> Result<()> {
    let lag = |s: &Status| s.channels[0].directions.iter().filter_map(|d| d.lag.changes).collect::<Vec<_>>();
    let before = lag(&link.status()?);
    for (store, site) in link.stores.iter().zip(["dc", "cloud"]) {
        store.connect()?.must(&["SET", &format!("{key}:{site}"), "1"])?;
    }
    let status = link.wait_until("a lag that grows", DRAIN, |s| {
        let now = lag(s);
        now.len() == 2 && (0..2).all(|n| now[n] > before.get(n).copied().unwrap_or(0) + 500)
    })?;
    let channel = &status.channels[0];
    let paused = channel.state == ChannelState::Paused
        && channel.directions.iter().all(|d| d.phase == Phase::Paused && d.error.is_none());
    ensure!(paused, "not told: {status:?}");
    ensure!(channel.directions.iter().all(|d| d.lag.seconds != Some(0.0)), "no time of the lag: {status:?}");
    for (store, peer) in link.stores.iter().zip(["cloud", "dc"]) {
        ensure!(get(store, &format!("{key}:{peer}"))?.is_none(), "{key}:{peer} was applied");
    }
    Ok(())
}

/// `syncd pause` while both sites write: nothing more is applied, also over a kill -9 of the daemon, and all of it
/// after `syncd resume`.
#[test]
fn a_paused_channel_applies_nothing_until_it_is_resumed() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    let writers = link.traffic(seed, 1_000);
    link.wait_until_applied(300, DRAIN)?;
    pause_or_resume(&link, "pause")?;
    // What was under way by then goes its way.
    let applied = |s: &Status| s.channels[0].directions.iter().map(|d| d.applied).collect::<Vec<_>>();
    let last = std::cell::RefCell::new(Vec::new());
    link.wait_until("what was under way", DRAIN, |s| last.replace(applied(s)) == applied(s))?;
    stays_paused(&link, "paused")?;
    link.kill()?;
    link.start()?;
    link.wait_until("capture", DRAIN, |s| s.channels[0].directions.iter().all(|d| d.lag.changes.is_some()))?;
    stays_paused(&link, "paused-still")?;
    pause_or_resume(&link, "resume")?;
    let here = |key: &str, n: usize| get(&link.stores[n], key).is_ok_and(|value| value.is_some());
    link.wait_until("what was held up", DRAIN, |s| {
        s.channels[0].state == ChannelState::Running && here("paused:dc", 1) && here("paused-still:cloud", 0)
    })?;
    link.prove(writers, DRAIN)
}

/// SIGTERM while a server is frozen: the daemon ends with 0 in time all the same, and nothing is lost or there twice
/// when both are back.
#[test]
fn a_stop_with_a_frozen_server_is_orderly_and_in_time() -> Result<()> {
    if !servers() {
        return Ok(());
    }
    let seed = seed();
    let mut link = Link::new([durable(), durable()], &Setup::default())?;
    link.start()?;
    let writers = link.traffic(seed, 1_000);
    link.wait_until_applied(500, DRAIN)?;
    link.stores[1].pause();
    // Something is under way to it, and nobody answers.
    link.wait_until("a lag", DRAIN, |s| from_dc(s).lag.changes > Some(500))?;
    let stopped = link.stop_in_order();
    link.stores[1].resume();
    stopped?;
    link.start()?;
    link.wait_until_applied(500, DRAIN)?;
    link.prove(writers, DRAIN)
}
