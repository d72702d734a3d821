use bytes::Bytes;
use causeway_core::Seq;

use super::*;

fn stream() -> Stream {
    filtered(Filter::default())
}

fn filtered(filter: Filter) -> Stream {
    let names = Names::new("l", "c");
    Stream::new("test:1", filter, names, History::single(Bytes::from_static(b"id")), 100, 0)
}

fn command(line: &str) -> Command {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    Command::of(&words)
}

/// What comes of `lines`, as `op db:key`.
fn feed(stream: &mut Stream, lines: &[&str]) -> Vec<String> {
    let mut events = Vec::new();
    for line in lines {
        stream.feed(&command(line), &mut events).unwrap();
    }
    shown(&events)
}

fn shown(events: &[Event]) -> Vec<String> {
    let show = |event: &Event| match event {
        Event::Change(c) => {
            let Space::Db(db) = c.key.space else { panic!() };
            let group =
                c.group.map_or(String::new(), |g| format!(" {}{}", g.n, if g.last { " last" } else { "" }));
            format!("{} {db}:{}{group}", c.op.as_str(), String::from_utf8_lossy(&c.key.name))
        }
        Event::Marker { marker, .. } => format!("marker {}", marker.applied),
        Event::MarkerLost { .. } => "marker lost".to_owned(),
        Event::Token(_) => "token".to_owned(),
        Event::LeftOut { key, reason, .. } => {
            format!("left out {}: {reason}", String::from_utf8_lossy(&key.name))
        }
        other => format!("{other:?}"),
    };
    events.iter().map(show).collect()
}

/// Closes the oldest token with every asked key absent.
fn close(stream: &mut Stream, sets: Vec<Set>) -> Vec<String> {
    let mut events = Vec::new();
    let found = sets.into_iter().map(|set| {
        let none = set.keys.iter().map(|_| Ok(Found::default())).collect();
        (set, none)
    });
    stream.close(found.collect(), false, &mut events);
    shown(&events)
}

fn token() -> String {
    format!("SET causeway:{{l.c}}:token {}", Token::unique().text())
}

fn set_marker(applied: u64) -> Command {
    let marker = Marker { applied: Seq(applied), ..Marker::default() };
    Command::of(&[b"SET", b"causeway:{l.c}:marker", marker.to_string().as_bytes()])
}

#[test]
fn what_the_server_deletes_within_a_transaction_of_ours_is_its_own_delete() {
    let mut s = stream();
    let set = set_marker(5);
    let mut events = Vec::new();
    let start = s.at();
    for command in [command("MULTI"), set, command("SELECT 3")] {
        s.feed(&command, &mut events).unwrap();
    }
    let lines = ["DEL k", "APPEND k x", "del l", "UNLINK m", "HDEL h f", "del n o", "EXEC"];
    for line in lines {
        s.feed(&command(line), &mut events).unwrap();
    }
    assert_eq!(shown(&events), ["delete 3:k 0", "delete 3:m 1 last", "marker 5"]);
    let Event::Change(deleted) = &events[0] else { panic!() };
    assert_eq!(deleted.pos, Position { history: "id".into(), at: start + 1, context: "0-1".into() });
}

#[test]
fn offsets_count_every_byte_and_positions_stand_behind_the_transaction() {
    let mut s = stream();
    let lines = ["PING", "SELECT 3", "MULTI", "INCR a", "INCR b", "EXEC", "INCR c"];
    let bytes: usize = lines.iter().map(|l| command(l).raw.len()).sum();
    let mut events = Vec::new();
    for line in lines {
        s.feed(&command(line), &mut events).unwrap();
    }
    assert_eq!(s.at(), 100 + bytes as u64);
    let Event::Change(a) = &events[0] else { panic!() };
    let Event::Change(c) = &events[2] else { panic!() };
    assert_eq!(c.pos, Position { history: "id".into(), at: s.at(), context: "3".into() });
    assert_eq!(a.pos.at, s.at() - command("INCR c").raw.len() as u64);
    assert_eq!(shown(&events), ["command 3:a 0", "command 3:b 1 last", "command 3:c"]);
}

#[test]
fn within_a_transaction_the_position_is_the_one_before_it() {
    let mut s = stream();
    feed(&mut s, &["INCR a"]);
    let before = s.position();
    feed(&mut s, &["MULTI", "SELECT 4", "INCR a"]);
    assert_eq!(s.position(), before);
    assert!(!s.is_quiet());
}

#[test]
fn changes_to_an_open_key_are_swallowed_until_its_token() {
    let mut s = stream();
    assert!(feed(&mut s, &["SUNIONSTORE u a b", "SADD u x", "SUNIONSTORE u a u"]).is_empty());
    let asked = s.take_asked();
    assert_eq!(asked.len(), 1, "an open key is asked for once");
    assert_eq!(
        feed(&mut s, &["SADD v x", "DEL u", "MULTI", "INCR n", "SREM u x", "EXEC"]),
        ["command 0:v", "command 0:n"]
    );
    assert!(feed(&mut s, &[&token()]).is_empty());
    assert!(s.token().is_some());
    assert_eq!(close(&mut s, asked), ["delete 0:u"]);
    assert_eq!(feed(&mut s, &["SADD u x"]), ["command 0:u"]);
    assert!(s.is_quiet());
}

#[test]
fn what_a_write_left_is_told_from_what_was_only_asked_for() {
    let mut s = stream();
    feed(&mut s, &["SUNIONSTORE u a", &token()]);
    let opened = s.take_asked().remove(0);
    let asked = Set { opened: false, ..opened.clone() };
    let found = |held| vec![Ok(Found { held, expire_at: None })];
    let whole = || found(Some(Held::Whole(Bytes::from_static(b"x"))));
    let (gone, asked_gone) = (opened.clone(), asked.clone());
    let mut events = Vec::new();
    let all = vec![(opened, whole()), (asked, whole()), (gone, found(None)), (asked_gone, found(None))];
    s.close(all, false, &mut events);
    let told =
        events.iter().filter_map(|e| if let Event::Change(c) = e { Some((c.op, c.uncertain)) } else { None });
    let expected = [(Op::State, false), (Op::State, true), (Op::Delete, false), (Op::State, true)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn a_command_on_an_open_and_another_key_reads_the_other_again() {
    let mut s = stream();
    feed(&mut s, &["SORT x STORE l"]);
    s.take_asked();
    assert!(feed(&mut s, &["LMOVE l m LEFT RIGHT"]).is_empty());
    let asked = s.take_asked();
    assert_eq!(asked[0].keys, [(0, Bytes::from_static(b"m"))]);
    assert!(feed(&mut s, &["LMOVE m l LEFT RIGHT"]).is_empty());
    assert!(!s.has_asked());
}

#[test]
fn what_the_log_tells_of_behind_a_write_is_not_asked_for() {
    let key = |name: &'static str| Key { space: Space::Db(0), name: name.into() };
    let behind = 100 + command("RENAME a b").raw.len() as u64;
    // `b` may hold what was written just there; `a` was told of later.
    let mut s = stream().told([(key("a"), behind + 50), (key("b"), behind)].into());
    feed(&mut s, &["RENAME a b"]);
    assert_eq!(s.take_asked()[0].keys, [(0, Bytes::from_static(b"b"))]);
    // What was unknown there is unknown in the other database, and nobody has told of that one.
    feed(&mut s, &["SWAPDB 0 1"]);
    let mut asked: Vec<_> = s.take_asked().into_iter().flat_map(|set| set.keys).collect();
    asked.sort();
    assert_eq!(asked, [(1, Bytes::from_static(b"a")), (1, Bytes::from_static(b"b"))]);
    feed(&mut s, &["SET something else", "RENAME x a"]);
    assert_eq!(s.take_asked()[0].keys.len(), 2, "that is behind what was told");
}

#[test]
fn keys_renamed_together_come_as_one_group() {
    let mut s = stream();
    feed(&mut s, &["RENAME a b", &token()]);
    let asked = s.take_asked();
    assert_eq!(close(&mut s, asked), ["delete 0:a 0", "delete 0:b 1 last"]);
}

/// What cannot be cut before each of its changes begins with those that an applier has to begin with.
#[test]
fn large_values_renamed_together_end_first_in_their_group_and_their_pieces_stand_before_it() {
    let mut s = stream();
    feed(&mut s, &["RENAME a b", "LMOVE c d LEFT LEFT", &token()]);
    let place = s.position();
    let mut events = Vec::new();
    let piece = |name, n| Piece {
        db: 0,
        name: Bytes::from_static(name),
        opened: true,
        n,
        commands: Bytes::from_static(b"x"),
        expire_at: Some(9),
    };
    for (name, n) in [(b"b", 0), (b"b", 1), (b"d", 0)] {
        s.piece(piece(name, n), &mut events);
    }
    assert_eq!(s.restart_point(&place).at, 100, "its key is open until all of it is there");
    let held = |held| Ok(Found { held, expire_at: Some(9) });
    let mut asked = s.take_asked().into_iter();
    let mut set = |found| (asked.next().unwrap(), found);
    let renamed = set(vec![Ok(Found::default()), held(Some(Held::Pieces(2)))]);
    let moved = set(vec![Err("because".to_owned()), held(Some(Held::Pieces(1)))]);
    s.close(vec![renamed, moved], false, &mut events);
    let states = ["state 0:b", "state 0:b", "state 0:d", "state 0:b 0", "delete 0:a 1 last"];
    assert_eq!(shown(&events), [&states[..], &["left out c: because", "state 0:d"]].concat());
    let part =
        |event: &Event| if let Event::Change(c) = event { c.part.map(|p| (p.n, p.last)) } else { None };
    let parts =
        [Some((0, false)), Some((1, false)), Some((0, false)), Some((2, true)), None, None, Some((1, true))];
    assert_eq!(events.iter().map(part).collect::<Vec<_>>(), parts);
    for change in events.iter().filter_map(|e| if let Event::Change(c) = e { Some(c) } else { None }) {
        assert_eq!((&change.pos, change.expire_at), (&place, change.part.and(Some(9))));
    }
    assert!(s.is_quiet());
}

#[test]
fn the_restart_point_never_passes_an_open_key() {
    let mut s = stream();
    feed(&mut s, &["SELECT 2", "INCR n"]);
    let before = s.position();
    feed(&mut s, &["SUNIONSTORE u a", "INCR n"]);
    let durable = s.position();
    assert_eq!(s.restart_point(&durable), before);
    assert_eq!(s.restart_point(&Position { at: 3, ..before.clone() }).at, 3);
    feed(&mut s, &["SELECT 0", &token()]);
    let asked = s.take_asked();
    close(&mut s, asked);
    assert_eq!(s.restart_point(&durable), durable);
}

#[test]
fn after_swapdb_a_key_is_unknown_on_both_sides() {
    let mut s = stream();
    feed(&mut s, &["SUNIONSTORE u a"]);
    s.take_asked();
    assert_eq!(feed(&mut s, &["SWAPDB 0 1"]), ["ddl 0:", "marker lost"]);
    assert_eq!(s.take_asked()[0].keys, [(1, Bytes::from_static(b"u"))]);
    assert_eq!(feed(&mut s, &["SWAPDB 3 4"]), ["ddl 0:"]);
    assert!(!s.has_asked());
}

#[test]
fn our_own_transaction_is_its_marker_whatever_it_holds() {
    let mut s = stream();
    let set = set_marker(9);
    let mut events = Vec::new();
    for c in [command("MULTI"), set.clone(), command("SELECT 2"), command("RENAME a b"), command("FLUSHALL")]
    {
        s.feed(&c, &mut events).unwrap();
    }
    s.feed(&command("EXEC"), &mut events).unwrap();
    assert_eq!(shown(&events), ["marker 9", "marker lost"]);
    assert!(!s.has_asked());
    events.clear();
    // The applier writes it again behind what takes it away.
    for c in [command("SELECT 0"), command("MULTI"), set.clone(), command("FLUSHALL"), set, command("EXEC")] {
        s.feed(&c, &mut events).unwrap();
    }
    assert_eq!(shown(&events), ["marker 9"]);
    assert_eq!(feed(&mut s, &["DEL causeway:{l.c}:marker"]), ["marker lost"]);
}

#[test]
fn a_marker_in_another_database_or_of_another_channel_is_nothing() {
    let mut s = stream();
    assert!(
        feed(&mut s, &["SELECT 1", "SET causeway:{l.c}:marker x", "SELECT 0", "SET causeway:{l.d}:marker x"])
            .is_empty()
    );
    let lines = ["MULTI", "SET causeway:{l.d}:marker x", "INCR a", "EXEC"];
    assert_eq!(feed(&mut s, &lines), ["command 0:a"], "the other channel's write is ours to carry");
}

#[test]
fn a_command_that_nobody_knows_is_asked_about_once() {
    let mut s = stream();
    let mut events = Vec::new();
    let set = command("JSON.SET doc $ 1");
    assert_eq!(s.feed(&set, &mut events).unwrap(), Step::Unknown(b"JSON.SET".to_vec()));
    s.learn(b"JSON.SET".to_vec(), Some((1, 1, 1)));
    assert_eq!(s.feed(&set, &mut events).unwrap(), Step::Done);
    assert_eq!(s.take_asked()[0].keys, [(0, Bytes::from_static(b"doc"))]);
    s.learn(b"FT.CREATE".to_vec(), None);
    assert_eq!(s.feed(&command("FT.CREATE i"), &mut events).unwrap(), Step::Done);
    let said =
        "left out : what FT.CREATE writes: a command that this version doesn't know, nor the server its keys";
    assert_eq!(shown(&std::mem::take(&mut events)), [said]);
    s.learn(b"M.SET".to_vec(), Some((1, -1, 2)));
    s.feed(&command("M.SET a 1 b 2"), &mut events).unwrap();
    let keys: Vec<_> = s.take_asked().into_iter().flat_map(|set| set.keys).map(|(_, k)| k).collect();
    assert_eq!(keys, ["a", "b"]);
    assert!(events.is_empty());
}

#[test]
fn what_a_server_never_sends_is_refused() {
    let mut events = Vec::new();
    for lines in [&["EXEC"][..], &["MULTI", "MULTI"], &["SELECT"], &["SELECT x"]] {
        let mut s = stream();
        let last = lines.iter().map(|l| s.feed(&command(l), &mut events)).last().unwrap();
        assert!(matches!(last, Err(StreamError::Garbled(_))), "{lines:?}");
    }
}

#[test]
fn a_failover_gives_the_old_id_to_what_both_numbered() {
    let history = History { old: "old".into(), until: 150, new: "new".into() };
    assert_eq!(&history.position(150, 0).history[..], b"old");
    assert_eq!(&history.position(151, 20).to_string(), "new@151/20");
    assert!(history.knows(&history.position(150, 0)) && history.knows(&history.position(151, 0)));
    assert!(!history.knows(&Position { history: "old".into(), at: 151, context: "0".into() }));
}

#[test]
fn a_refused_key_is_left_out_and_counted() {
    let mut s = stream();
    feed(&mut s, &["SUNIONSTORE u a", &token()]);
    let set = s.take_asked().remove(0);
    let mut events = Vec::new();
    s.close(vec![(set, vec![Err("too large".to_owned())])], false, &mut events);
    assert_eq!(shown(&events), ["left out u: too large"]);
    assert!(s.is_quiet());
}

#[test]
fn the_key_with_the_empty_name_is_left_out_and_told_of_once() {
    let mut s = stream();
    let set = |db: u32| {
        let select = Command::of(&[b"SELECT", db.to_string().as_bytes()]);
        [select, Command::of(&[b"SET", b"", b"1"]), Command::of(&[b"DEL", b"", b"a"])]
    };
    let mut events = Vec::new();
    for command in [set(0), set(0), set(3)].into_iter().flatten() {
        s.feed(&command, &mut events).unwrap();
    }
    s.feed(&Command::of(&[b"RENAME", b"x", b""]), &mut events).unwrap();
    let told = format!("left out : {EMPTY_NAME}");
    assert_eq!(shown(&events), [&told, "delete 0:a", "delete 0:a", &told, "delete 3:a"]);
    assert_eq!(s.take_asked()[0].keys, [(3, Bytes::from_static(b"x"))]);
}
