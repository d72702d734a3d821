//! The change stream against a real server: what comes, in which form, and where it goes on after a break.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod source_support;

use causeway_core::{Error, ErrorKind, Event, Marker, Op, Opened, Position, Seq, Site, Source, Token, Told};
use causeway_redis::names::Names;
use causeway_redis::source::RedisSource;
use causeway_testkit::resp::{Connection, cmd};
use source_support::*;
use std::time::Duration;

fn run(connection: &mut Connection, lines: &[&str]) {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        connection.must(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

fn reads(events: &[Event]) -> Vec<String> {
    let mut all: Vec<String> = changes(events).iter().filter(|c| c.op == Op::Read).map(text).collect();
    all.sort();
    all
}

fn ended(event: &Event) -> bool {
    matches!(event, Event::SnapshotEnded { .. })
}

#[tokio::test]
async fn a_snapshot_brings_what_exists_and_the_stream_goes_on_behind_it() {
    for args in [&[][..], &["--repl-diskless-sync", "no"], &["--repl-diskless-sync-delay", "2"]] {
        let Some(server) = server(args) else { return };
        let mut c = server.connect().unwrap();
        run(
            &mut c,
            &["SET a 1", "PEXPIREAT a 9999999999999", "RPUSH l x y", "SELECT 3", "HSET h f v", "SELECT 0"],
        );
        run(&mut c, &["SET causeway:{dc-cloud.tags}:marker x"]);
        let mut source = source(&server, "");
        assert_eq!(open(&mut source, None, true).await, Opened::Anew { lost: None });
        run(&mut c, &["INCR a"]);
        let events = until(&mut source, ended).await;
        assert!(matches!(events[0], Event::SnapshotStarted { total: Some(4), .. }), "{args:?}");
        assert_eq!(reads(&events), ["read 0:a dump", "read 0:l dump", "read 3:h dump"]);
        let a = changes(&events).into_iter().find(|c| &c.key.name[..] == b"a").unwrap();
        assert_eq!(a.expire_at, Some(9_999_999_999_999));
        let Some(Event::SnapshotEnded { pos, left_out }) = events.iter().find(|e| ended(e)) else { panic!() };
        assert_eq!(left_out.0, 0);
        assert_eq!(*pos, a.pos);
        let mut after = texts(&events);
        after.retain(|t| !t.starts_with("read"));
        after.extend(texts(&settle(&mut source).await));
        assert_eq!(after, ["command 0:a INCR a"]);
    }
}

#[tokio::test]
async fn large_values_come_in_parts_and_are_the_same_at_the_other_end() {
    let (Some(server), Some(target)) = (server(&[]), server(&[])) else { return };
    let mut c = server.connect().unwrap();
    let long = "x".repeat(1000);
    let commands: Vec<_> = (0..3000)
        .flat_map(|i| {
            let n = i.to_string();
            [cmd(&["HSET", "big", &n, &long]), cmd(&["RPUSH", "list", &n]), cmd(&["ZADD", "z", &n, &n])]
        })
        .collect();
    c.pipeline(&commands).unwrap();
    run(&mut c, &["FUNCTION LOAD #!lua\u{20}name=x\nredis.register_function('f',function()\u{20}return\u{20}1\u{20}end)"]
        .map(|_| "PING"));
    c.must(&["FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"])
        .unwrap();
    let mut source = source(&server, "limits = { value_bytes_max = 65536 }");
    open(&mut source, None, true).await;
    let events = until(&mut source, ended).await;
    let parts = changes(&events).iter().filter(|c| c.part.is_some()).count();
    assert!(parts > 10, "{parts}");
    // The last one brings nothing, so that nothing of the value can be refused together with it.
    for change in changes(&events).iter().filter(|c| c.part.is_some()) {
        let is_end = change.part.is_some_and(|part| part.last);
        assert_eq!(is_end, change.value.as_ref().is_some_and(|value| value.is_empty()));
    }
    let mut model = Model::new(&target);
    model.take(events, &source);
    let mut t = target.connect().unwrap();
    assert_eq!(contents(&mut c), contents(&mut t));
    assert_eq!(t.must(&["FCALL", "f", "0"]).unwrap().int(), Some(1));
}

/// What the server takes, its stream has: of so many arguments, too.
#[tokio::test]
async fn a_command_of_over_a_million_arguments_comes_as_it_is() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    settle(&mut source).await;
    let mut words = vec!["RPUSH", "l"];
    words.resize(1_100_000, "x");
    c.must(&words).unwrap();
    let events = until(&mut source, |e| matches!(e, Event::Change(_))).await;
    let change = changes(&events).remove(0);
    let mut value = bytes::BytesMut::from(&change.value.unwrap()[..]);
    let command = causeway_redis::resp::parse_command(&mut value).unwrap().unwrap();
    assert_eq!(command.len(), words.len());
}

#[tokio::test]
async fn the_key_with_the_empty_name_is_left_out_by_name() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    c.must(&["SET", "", "v"]).unwrap();
    c.must(&["SET", "k", "v"]).unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, true).await;
    let events = until(&mut source, ended).await;
    assert_eq!(reads(&events), ["read 0:k dump"]);
    let Some(Event::SnapshotEnded { left_out, .. }) = events.iter().find(|e| ended(e)) else { panic!() };
    assert_eq!((left_out.0, &left_out.1[0].0), (1, &key(0, "")));
    assert!(left_out.1[0].1.contains("empty name"));
    c.must(&["APPEND", "", "v"]).unwrap();
    let events = settle(&mut source).await;
    assert!(events.iter().any(|e| matches!(e, Event::LeftOut { key: left, .. } if *left == key(0, ""))));
    assert_eq!(texts(&events), [""; 0]);
}

#[tokio::test]
async fn without_a_snapshot_the_stream_begins_at_once() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    run(&mut c, &["SET a 1"]);
    let mut source = source(&server, "");
    assert_eq!(open(&mut source, None, false).await, Opened::Anew { lost: None });
    run(&mut c, &["SET b 2"]);
    let events = settle(&mut source).await;
    assert_eq!(texts(&events), ["command 0:b SET b 2"]);
}

/// FF20, FF21, FF23.
#[tokio::test]
async fn every_kind_of_write_has_its_form() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    run(&mut c, &["SADD s1 a b", "SADD s2 c", "SET gone 1", "RPUSH l 1 2 3"]);
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    for (lines, expected) in [
        (&["SET a 1"][..], &["command 0:a SET a 1"][..]),
        (&["SELECT 5", "SET a 1", "SELECT 0"], &["command 5:a SET a 1"]),
        (&["DEL a gone"], &["delete 0:a -", "delete 0:gone -"]),
        (&["MSET x 1 y 2"], &["command 0:x SET x 1", "command 0:y SET y 2"]),
        (&["SUNIONSTORE u s1 s2"], &["state 0:u dump"]),
        (&["RENAME x z"], &["delete 0:x -", "state 0:z dump"]),
        (&["MOVE z 2"], &["delete 0:z -", "state 2:z dump"]),
        (&["COPY y y2 DB 4"], &["state 4:y2 dump"]),
        (&["LMOVE l l2 LEFT RIGHT"], &["state 0:l dump", "state 0:l2 dump"]),
        (&["PUBLISH ch hello", "SPUBLISH ch hello"], &[]),
        (&["SET causeway:{other.one}:marker x"], &[]),
        (&["EVAL return\u{00a0}1 0"], &[]),
        (&["FLUSHDB"], &["ddl 0: FLUSHDB"]),
        (&["SWAPDB 1 2"], &["ddl 0: SWAPDB 1 2"]),
        (&["FLUSHALL"], &["ddl 0: FLUSHALL"]),
    ] {
        if lines[0].starts_with("EVAL") {
            c.must(&["EVAL", "redis.call('SET','e1','x'); redis.call('SADD','e2','m'); return 1", "0"])
                .unwrap();
            let events = settle(&mut source).await;
            assert_eq!(texts(&events), ["command 0:e1 SET e1 x", "command 0:e2 SADD e2 m"]);
            continue;
        }
        run(&mut c, lines);
        let events = settle(&mut source).await;
        assert_eq!(texts(&events), expected, "{lines:?}");
        let lost = events.iter().any(|e| matches!(e, Event::MarkerLost { .. }));
        assert_eq!(lost, lines[0].starts_with("FLUSH"), "{lines:?}");
        let all = changes(&events);
        for (i, change) in all.iter().enumerate() {
            let group = change.group.map(|g| (g.n as usize, g.last));
            assert_eq!(group, (all.len() > 1).then_some((i, i + 1 == all.len())));
            assert_eq!(change.pos, all[0].pos);
        }
    }
}

#[tokio::test]
async fn a_transaction_is_one_group_and_stands_behind_its_end() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    run(&mut c, &["MULTI", "SET a 1", "SELECT 2", "INCR n", "SUNIONSTORE u s1", "DEL a", "SELECT 0", "EXEC"]);
    run(&mut c, &["MULTI", "INCR single", "EXEC"]);
    let events = settle(&mut source).await;
    let all = changes(&events);
    // DEL a in database 2, where there is none, is no write; nor is a union of nothing.
    assert_eq!(texts(&events), ["command 0:a SET a 1", "command 2:n INCR n", "command 0:single INCR single"]);
    assert!(all[0].group.is_some_and(|g| g.n == 0 && !g.last));
    assert!(all[1].group.is_some_and(|g| g.n == 1 && g.last));
    assert_eq!(all[2].group, None);
    assert_eq!(all[0].pos, all[1].pos);
    // The database that the server has selected for us, not the client's.
    assert_eq!(&all[0].pos.context[..], b"2");
    assert!(all[2].pos.at > all[1].pos.at);
}

#[tokio::test]
async fn what_our_own_applier_wrote_comes_as_its_marker_alone() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    let names = Names::new("dc-cloud", "tags");
    let marker_key = String::from_utf8(names.marker.clone()).unwrap();
    let token_key = String::from_utf8(names.token).unwrap();
    let marker = Marker { applied: Seq(7), ..Marker::default() };
    let text = marker.to_string();
    let mut out = Vec::new();
    for words in [
        &["MULTI"][..],
        &["SET", &marker_key, &text],
        &["SELECT", "1"],
        &["INCR", "n"],
        &["RENAME", "n", "m"],
        &["FLUSHDB"],
        &["EXEC"],
        &["SELECT", "0"],
        &["SET", &marker_key, &text],
    ] {
        causeway_testkit::resp::encode(words, &mut out);
    }
    c.write(&out).unwrap();
    (0..9).for_each(|_| assert_eq!(c.read().unwrap().error(), None));
    // A token of ours, one of another process, and a user's transaction that happens to hold a key of ours.
    let token = Token::unique();
    c.must(&["SET", &token_key, &token.text()]).unwrap();
    c.must(&["SET", &token_key, "0123456789abcdef:1"]).unwrap();
    run(&mut c, &["MULTI", "SET mine 1", "SET causeway:{other.one}:token x", "EXEC"]);
    let mut events = until(&mut source, |e| matches!(e, Event::Token(_))).await;
    assert!(has_token(&events, token));
    events.extend(settle(&mut source).await);
    let markers: Vec<&Event> = events.iter().filter(|e| matches!(e, Event::Marker { .. })).collect();
    assert_eq!(markers.len(), 2);
    assert!(markers.iter().all(|e| matches!(e, Event::Marker { marker: m, .. } if *m == marker)));
    assert_eq!(texts(&events), ["command 0:mine SET mine 1"]);
    assert!(!events.iter().any(|e| matches!(e, Event::MarkerLost { .. })), "database 0 was not emptied");

    // What stands in its place and is none stops the stream, and says so.
    c.must(&["SET", &marker_key, "nonsense"]).unwrap();
    let mut events = Vec::new();
    let error = loop {
        if let Err(error) = source.next(&mut events, 1 << 20).await {
            break error;
        }
    };
    assert!(matches!(&error, Error::Garbled { reason, .. } if reason.contains("marker")), "{error}");
    assert!(!error.to_string().contains("nonsense"));
}

/// FF18, FF19, FF20: expiry and eviction are deletes; a TTL is absolute.
#[tokio::test]
async fn keys_that_expire_or_are_evicted_are_deleted_and_times_are_absolute() {
    let Some(server) = server(&["--maxmemory-policy", "allkeys-lru"]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    run(&mut c, &["SET a 1 PX 30", "SET b 1", "EXPIRE b 1000"]);
    let deleted = |e: &Event| matches!(e, Event::Change(c) if c.op == Op::Delete && &c.key.name[..] == b"a");
    let events = until(&mut source, deleted).await;
    let all = texts(&events);
    assert!(all[0].starts_with("command 0:a SET a 1 PXAT 1"), "{all:?}");
    assert!(all.iter().any(|t| t.starts_with("command 0:b PEXPIREAT b 1")), "{all:?}");
    let big = "x".repeat(10_000);
    let fill: Vec<_> = (0..300).map(|i| cmd(&["SET", &format!("big:{i}"), &big])).collect();
    c.pipeline(&fill).unwrap();
    run(&mut c, &["CONFIG SET maxmemory 3mb"]);
    let evicted =
        |e: &Event| matches!(e, Event::Change(c) if c.op == Op::Delete && c.key.name.starts_with(b"big:"));
    until(&mut source, evicted).await;
}

#[tokio::test]
async fn keys_outside_the_filter_never_come() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    run(&mut c, &["SET push:1 x", "SET push:tmp:1 x", "SET other 1", "SELECT 1", "SET push:1 x", "SELECT 0"]);
    run(&mut c, &["RPUSH push:l 1 2", "RPUSH other:l 1 2"]);
    let mut source = source(&server, "keys = [\"push:*\"]\nexcept = [\"push:tmp:*\"]\ndbs = [0]");
    open(&mut source, None, true).await;
    let events = until(&mut source, ended).await;
    assert!(matches!(events[0], Event::SnapshotStarted { total: None, .. }));
    assert_eq!(reads(&events), ["read 0:push:1 dump", "read 0:push:l dump"]);
    run(&mut c, &["SET other 2", "SET push:tmp:2 x", "SELECT 1", "SET push:1 y", "SELECT 0", "FLUSHDB"]);
    run(&mut c, &["MSET push:1 a other b", "RPUSH other:l 7", "LMOVE other:l push:l LEFT LEFT"]);
    run(&mut c, &["LMOVE other:l other:l LEFT LEFT"].map(|_| "PING"));
    let events = settle(&mut source).await;
    assert_eq!(texts(&events), ["ddl 0: FLUSHDB", "command 0:push:1 SET push:1 a", "state 0:push:l dump"]);
    run(&mut c, &["SELECT 1", "FLUSHDB", "SELECT 0"]);
    assert!(texts(&settle(&mut source).await).is_empty());
}

/// FF24, FF25: the stream goes on with exactly the bytes that were missed, and with the database selected.
#[tokio::test]
async fn a_broken_link_goes_on_where_it_was_with_its_database() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    run(&mut c, &["SELECT 7", "INCR n", "INCR n"]);
    let events = until(&mut source, |e| matches!(e, Event::Change(c) if &c.key.name[..] == b"n")).await;
    let mut from = changes(&events).last().unwrap().pos.clone();
    let mut count = changes(&events).len();
    assert_eq!(&from.context[..], b"7");
    for _ in 0..5 {
        let mut killer = server.connect().unwrap();
        killer.must(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        let mut rest = Vec::new();
        while source.next(&mut rest, 1 << 20).await.is_ok() {}
        run(&mut c, &["INCR n", "INCR n", "INCR n"]);
        assert_eq!(open(&mut source, Some(&from), true).await, Opened::Resumed);
        let mut events = Vec::new();
        while changes(&events).iter().filter(|c| &c.key.name[..] == b"n").count() < 3 {
            source.next(&mut events, 1 << 20).await.unwrap();
        }
        for change in changes(&events) {
            assert_eq!(text(&change), "command 7:n INCR n");
            assert!(change.pos.at > from.at);
            from = change.pos;
            count += 1;
        }
    }
    // The first round may have seen one of the two.
    assert!(count >= 16);
    assert_eq!(c.must(&["GET", "n"]).unwrap().int(), Some(17));
}

/// FF03's like: what can no longer be read is said, and a snapshot comes.
#[tokio::test]
async fn a_position_that_the_backlog_lost_is_said_and_begins_anew() {
    let Some(mut server) = server(&["--repl-backlog-size", "16kb"]) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    run(&mut c, &["SET a 1"]);
    let events = until(&mut source, |e| matches!(e, Event::Change(_))).await;
    let from = changes(&events)[0].pos.clone();
    drop(source);
    let fill: Vec<_> = (0..100).map(|i| cmd(&["SET", &format!("k{i}"), &"x".repeat(1000)])).collect();
    c.pipeline(&fill).unwrap();
    let mut source = source_support::source(&server, "");
    let Opened::Anew { lost: Some(reason) } = open(&mut source, Some(&from), true).await else { panic!() };
    assert!(reason.contains("backlog"), "{reason}");
    assert_eq!(reads(&until(&mut source, ended).await).len(), 101);
    drop(source);
    // Restarted without its data: another replication id.
    server.restart().unwrap();
    let mut source = source_support::source(&server, "");
    let Opened::Anew { lost: Some(reason) } = open(&mut source, Some(&from), true).await else { panic!() };
    assert!(reason.contains("replication id"), "{reason}");
    // Not a position of a stream at all.
    let odd: Position = "scan:1@5".parse().unwrap();
    assert!(matches!(open(&mut source, Some(&odd), true).await, Opened::Anew { lost: Some(_) }));
}

/// FF25: after a failover the new master's answer names a new id, and what both ids number is the same.
#[tokio::test]
async fn a_failover_is_followed_to_the_new_master() {
    let (Some(a), Some(b)) = (server(&[]), server(&[])) else { return };
    let mut ca = a.connect().unwrap();
    let mut cb = b.connect().unwrap();
    cb.must(&["REPLICAOF", "127.0.0.1", &a.port().to_string()]).unwrap();
    let urls = format!("urls = [\"{}\", \"{}\"]", b.url(), a.url());
    let mut source = RedisSource::new(config(&urls, ""), Site::First);
    wait_for(&mut cb, "master_link_status:up");
    open(&mut source, None, false).await;
    run(&mut ca, &["SELECT 3", "INCR n"]);
    let events = until(&mut source, |e| matches!(e, Event::Change(_))).await;
    let from = changes(&events)[0].pos.clone();
    ca.must(&["FAILOVER", "TO", "127.0.0.1", &b.port().to_string()]).unwrap();
    wait_for(&mut cb, "role:master");
    let mut rest = Vec::new();
    while source.next(&mut rest, 1 << 20).await.is_ok() {}
    run(&mut cb, &["SELECT 3", "INCR n"]);
    let opened = loop {
        match source.open(Some(&from), true, Told::new()).await {
            Ok(opened) => break opened,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Retry, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(opened, Opened::Resumed);
    let mut got = Vec::new();
    while !texts(&got).iter().any(|t| t == "command 3:n INCR n") {
        source.next(&mut got, 1 << 20).await.unwrap();
    }
    let to = changes(&got)[0].pos.clone();
    assert_ne!(to.history, from.history);
    assert!(to.at > from.at);
    // And on from the new id; REPLICAOF NO ONE on a server without replicas changes nothing here.
    run(&mut cb, &["INCR n"]);
    assert_eq!(open(&mut source, Some(&to), true).await, Opened::Resumed);
    let events = until(&mut source, |e| matches!(e, Event::Change(_))).await;
    assert_eq!(changes(&events)[0].pos.history, to.history);
}

fn wait_for(connection: &mut Connection, line: &str) {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let info = connection.must(&["INFO", "replication"]).unwrap().text().unwrap();
        if info.lines().any(|l| l == line) {
            return;
        }
        assert!(std::time::Instant::now() < until, "{line} does not come: {info}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[tokio::test]
async fn refreshed_keys_come_as_states_before_their_token() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    run(&mut c, &["SET a 1", "PEXPIREAT a 9999999999999", "SELECT 2", "SET b 1", "SELECT 0"]);
    let mut source = source(&server, "except = [\"secret:*\"]");
    open(&mut source, None, false).await;
    let keys =
        vec![key(0, "a"), key(2, "b"), key(0, "none"), key(0, "secret:1"), key(0, "causeway:{x.y}:marker")];
    let token = source.refresh(keys).await.unwrap();
    let events = until(&mut source, |e| *e == Event::Token(token)).await;
    let all = changes(&events);
    assert_eq!(texts(&events), ["state 0:a dump", "state 2:b dump", "state 0:none -"]);
    assert_eq!(all[0].expire_at, Some(9_999_999_999_999));
    assert!(all.iter().all(|c| c.group.is_none()));
    // Many, in several transactions of the server.
    let many: Vec<_> = (0..5000).map(|i| key(0, &format!("k{i}"))).collect();
    let token = source.refresh(many).await.unwrap();
    let events = until(&mut source, |e| *e == Event::Token(token)).await;
    assert_eq!(changes(&events).len(), 5000);
}

#[tokio::test]
async fn a_restart_never_skips_an_open_read() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    run(&mut c, &["SADD s a"]);
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    run(&mut c, &["SET before 1", "SUNIONSTORE u s"]);
    // Taken one event at a time, the re-read is open behind `before`.
    let mut events = Vec::new();
    while changes(&events).len() < 2 {
        source.next(&mut events, 1).await.unwrap();
        if changes(&events).len() == 1 && changes(&events)[0].op == Op::Command {
            let durable = changes(&events)[0].pos.clone();
            assert!(source.restart_point(&durable).at <= durable.at);
        }
    }
    let last = changes(&events)[1].clone();
    assert_eq!(text(&last), "state 0:u dump");
    assert_eq!(source.restart_point(&last.pos), last.pos);
}

/// Promise 8.
#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_source_is_behind_grows_while_nothing_is_read_and_falls_when_it_is() {
    let args = ["--repl-backlog-size", "16mb", "--client-output-buffer-limit", "replica 0 0 0"];
    let Some(server) = server(&args) else { return };
    let mut c = server.connect().unwrap();
    let mut source = source(&server, "");
    let behind = source.behind().unwrap();
    assert_eq!(behind(), None, "it is not open");
    open(&mut source, None, true).await;
    until(&mut source, ended).await;
    let reaches = async |what: &str, wanted: &dyn Fn(f64) -> bool| {
        let end = std::time::Instant::now() + PATIENCE;
        while !behind().is_some_and(wanted) {
            assert!(std::time::Instant::now() < end, "{what}: {:?}", behind());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    // The server is asked once a second.
    reaches("is told", &|behind| behind < 0.1).await;
    // More than the queue behind the link and the kernel's buffers take.
    let value = "x".repeat(1 << 20);
    for _ in 0..64 {
        c.must(&["SET", "k", &value]).unwrap();
    }
    reaches("grows", &|behind| behind > 0.5).await;
    println!("behind by {:?}", behind());
    assert_eq!(changes(&settle(&mut source).await).len(), 64);
    reaches("falls", &|behind| behind < 0.1).await;
    drop(source);
    assert_eq!(behind(), None, "it is gone");
}

/// A key whose time is over when a command of our applier comes to it: the server deletes it within our transaction.
#[tokio::test]
async fn what_ends_within_a_transaction_of_ours_is_the_sites_own_delete() {
    let Some(server) = server(&[]) else { return };
    let mut c = server.connect().unwrap();
    c.must(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).unwrap();
    c.must(&["SET", "over", "v", "PX", "20"]).unwrap();
    c.must(&["SET", "gone", "v"]).unwrap();
    let mut source = source(&server, "");
    open(&mut source, None, false).await;
    settle(&mut source).await;
    tokio::time::sleep(Duration::from_millis(40)).await;
    let names = Names::new("dc-cloud", "tags");
    let marker_key = String::from_utf8(names.marker).unwrap();
    let marker = Marker { applied: Seq(7), ..Marker::default() };
    let set = ["SET", marker_key.as_str(), &marker.to_string()].join("\u{0}");
    let mut out = Vec::new();
    for line in ["MULTI", &set, "APPEND\0over\0x", "del\0gone", "PERSIST\0over", "EXEC"] {
        let words: Vec<&str> = line.split('\0').collect();
        causeway_testkit::resp::encode(&words, &mut out);
    }
    c.write(&out).unwrap();
    (0..6).for_each(|_| assert_eq!(c.read().unwrap().error(), None));
    let events = until(&mut source, |e| matches!(e, Event::Marker { .. })).await;
    assert_eq!(texts(&events), ["delete 0:over -"]);

    // Read again from there, it comes again, as the place is within the transaction.
    let deleted = changes(&events).remove(0).pos;
    drop(source);
    let mut source = self::source(&server, "");
    assert_eq!(open(&mut source, Some(&deleted), false).await, Opened::Resumed);
    let events = until(&mut source, |e| matches!(e, Event::Marker { .. })).await;
    assert_eq!(changes(&events).remove(0).pos, deleted);
}
