use causeway_core::{Key, Marker, Position, Space};

use super::*;
use crate::resp::parse_command;

fn change(op: Op, db: u32, name: &'static str, value: Option<&[u8]>) -> Change {
    let key = Key { space: Space::Db(db), name: name.into() };
    Change::captured(op, key, value.map(Bytes::copy_from_slice), Position::default(), 0)
}

fn words(words: &[&str]) -> BytesMut {
    let mut out = BytesMut::new();
    let args: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
    encode(&mut out, &args);
    out
}

/// A transaction, a command a line, and what was refused.
fn encoded(changes: Vec<Change>, keep_existing: bool) -> (Vec<String>, Vec<usize>) {
    let batch = Batch { marker: Marker::default(), changes, keep_existing, ..Batch::default() };
    let names = Names::new("l", "c");
    let mut out = BytesMut::new();
    let expected = Encoder {
        names: &names,
        filter: &Filter::default(),
        marker: b"M",
        databases: &[(0, true), (3, true), (9, false)],
        payloads: &[(10, true), (80, false)],
        broken: &[],
        incomplete: &[],
        now: 50,
    }
    .batch(&batch, &mut out);
    let mut lines = Vec::new();
    while let Some(command) = parse_command(&mut out).unwrap() {
        let words: Vec<_> = command.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        lines.push(words.join(" ").replace("causeway:{l.c}:", "~"));
    }
    assert_eq!(lines.len(), expected.replies.len() + 2, "one reply each, and those of MULTI and EXEC");
    (lines, expected.refused.iter().map(|r| r.index).collect())
}

#[test]
fn what_is_over_lives_on_until_its_origin_says_so() {
    let command = |text: &[&str]| change(Op::Command, 0, "k", Some(&words(text)));
    let state = |at| Change { expire_at: Some(at), ..change(Op::State, 0, "k", Some(b"v\x0a\x00cccccccc")) };
    assert_eq!(lasting(10, 60_010), 120_010);
    let changes = vec![
        command(&["PEXPIREAT", "k", "50"]),
        command(&["PEXPIREAT", "k", "51"]),
        command(&["SET", "k", "v", "PXAT", "7", "GET"]),
        state(49),
        state(51),
    ];
    let (lines, refused) = encoded(changes, false);
    let lines: Vec<_> = lines.iter().skip(2).map(|line| line.replace("v\n\0cccccccc", "payload")).collect();
    let expected = [
        "PEXPIREAT k 60050",
        "PEXPIREAT k 51",
        "SET k v PXAT 60007 GET",
        "RESTORE k 60049 payload ABSTTL REPLACE",
        "RESTORE k 51 payload ABSTTL REPLACE",
        "EXEC",
    ];
    assert_eq!((lines, refused), (expected.map(str::to_owned).to_vec(), vec![]));
}

#[test]
fn a_transaction_begins_with_the_marker_and_ends_in_database_0() {
    let set = |db| change(Op::Command, db, "k", Some(&words(&["SET", "k", "v"])));
    let (lines, refused) = encoded(vec![set(3), set(9), set(3), set(0), set(3)], false);
    let expected = [
        "MULTI",
        "SET ~marker M",
        "SELECT 3",
        "SET k v",
        "SET k v",
        "SELECT 0",
        "SET k v",
        "SELECT 3",
        "SET k v",
        "SELECT 0",
        "EXEC",
    ];
    assert_eq!(lines, expected);
    assert_eq!(refused, [1]);
    assert_eq!(encoded(vec![], false).0, ["MULTI", "SET ~marker M", "EXEC"]);
}

#[test]
fn what_is_no_command_is_not_sent() {
    let two = [words(&["GET", "k"]), words(&["GET", "k"])].concat();
    let half = &two[..two.len() - 3];
    for value in [Some(&b"+x\r\n"[..]), Some(b""), Some(&two), Some(half), Some(b"*0\r\n"), None] {
        let (lines, refused) = encoded(vec![change(Op::Command, 3, "k", value)], false);
        assert_eq!(lines, ["MULTI", "SET ~marker M", "EXEC"], "{value:?}");
        assert_eq!(refused, [0]);
    }
}

#[test]
fn pieces_go_to_a_hidden_key_whichever_argument_names_it() {
    let commands =
        [words(&["XADD", "k", "1-1", "f", "v"]), words(&["XGROUP", "CREATE", "k", "g", "0"])].concat();
    let piece = |n, last| {
        let mut piece = change(Op::Read, 0, "k", Some(&commands));
        piece.part = Some(Part { n, last });
        piece.expire_at = Some(99);
        piece
    };
    let hidden = String::from_utf8(hidden_key(&Names::new("l", "c"), 0, b"k")).unwrap();
    let hidden = &hidden.replace("causeway:{l.c}:", "~");
    let line = |text: &str| text.replace(" H", &format!(" {hidden}"));
    let (lines, _) = encoded(vec![piece(0, false)], false);
    let begun = ["del H H:progress", "RPUSH H:progress 0:@0:0"];
    assert_eq!(lines[2..4], begun.map(line));
    assert_eq!(lines[4..6], ["XADD H 1-1 f v", "XGROUP CREATE H g 0"].map(line));
    let (lines, _) = encoded(vec![piece(1, true)], false);
    let follows = ["LINSERT H:progress BEFORE 0:@0:0 0:@0:1", "LTRIM H:progress 0 0"];
    assert_eq!(lines[2..4], follows.map(line));
    assert_eq!(lines[6..8], ["del H:progress", "PEXPIREAT H 99"].map(line));
    assert_eq!(lines[8..11], [line("del k"), line("RENAME H k"), line("EXEC")]);
    let (lines, _) = encoded(vec![piece(1, true)], true);
    assert_eq!(lines[6..10], ["del H:progress", "PEXPIREAT H 99", "RENAMENX H k", "del H"].map(line));
}

#[test]
fn hidden_keys_of_two_keys_and_of_two_databases_differ() {
    let names = Names::new("l", "c");
    assert_ne!(hidden_key(&names, 0, b"k"), hidden_key(&names, 1, b"k"));
    assert_ne!(hidden_key(&names, 0, b"k"), hidden_key(&names, 0, b"l"));
}

#[test]
fn a_payload_is_restored_or_written_by_its_type() {
    let payload = |version| rdb::seal(b"\x00\x01x", version);
    let state = |version| change(Op::State, 0, "k", Some(&payload(version)));
    let (lines, _) = encoded(vec![state(10)], false);
    assert!(lines[2].starts_with("RESTORE k 0 ") && lines[2].ends_with(" ABSTTL REPLACE"));
    let (lines, _) = encoded(vec![change(Op::Read, 0, "k", Some(&payload(10)))], true);
    assert!(lines[2].ends_with(" ABSTTL"));
    let (lines, _) = encoded(vec![state(80)], false);
    assert_eq!(lines[2..4], ["del k", "SET k x"]);
    // Not tried: not believed.
    assert_eq!(encoded(vec![state(11)], false).0[2..4], ["del k", "SET k x"]);
    let damaged = change(Op::State, 0, "k", Some(&[payload(80).as_ref(), b"x"].concat()));
    let (lines, refused) = encoded(vec![damaged], false);
    assert_eq!((lines.len(), refused), (3, vec![0]));
}

#[test]
fn a_flush_is_followed_by_the_marker() {
    let (lines, _) = encoded(vec![change(Op::Ddl, 3, "", Some(&words(&["FLUSHDB"])))], false);
    assert_eq!(lines, ["MULTI", "SET ~marker M", "SELECT 3", "FLUSHDB", "SELECT 0", "SET ~marker M", "EXEC"]);
}

#[test]
fn what_is_the_log_s_own_is_not_sent() {
    let own = [Op::Refresh, Op::Position, Op::Fence].map(|op| change(op, 9, "k", None));
    assert_eq!(
        encoded(own.to_vec(), false),
        (vec!["MULTI".into(), "SET ~marker M".into(), "EXEC".into()], vec![])
    );
}
