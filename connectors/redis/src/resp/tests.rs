use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

fn encoded(args: &[&[u8]]) -> BytesMut {
    let mut out = BytesMut::new();
    encode(&mut out, args);
    out
}

fn args_of(command: &Command) -> Vec<Vec<u8>> {
    command.iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn a_command_reads_back_and_keeps_its_bytes() {
    let mut buf = encoded(&[b"SET", b"k", b"", b"a\r\nb"]);
    let raw = buf.clone();
    buf.extend_from_slice(b"*1\r\n");
    let command = parse_command(&mut buf).unwrap().unwrap();
    assert_eq!(command.raw, raw);
    assert_eq!(args_of(&command), [&b"SET"[..], b"k", b"", b"a\r\nb"]);
    assert_eq!(command.slice(3).unwrap(), &b"a\r\nb"[..]);
    assert_eq!((command.arg(4), command.slice(4)), (None, None));
    assert!(command.eq_ignore_case(0, b"set") && !command.eq_ignore_case(9, b"set"));
    assert_eq!(command.name_upper(&mut [0; 32]), b"SET");
    assert_eq!(&buf[..], b"*1\r\n");
    assert_eq!(Command::of(&[b"SET", b"k", b"", b"a\r\nb"]), command);
}

#[test]
fn a_name_that_is_too_long_is_none() {
    let name = [b'x'; 40];
    assert_eq!(Command::of(&[&name]).name_upper(&mut [0; 32]), b"");
}

#[test]
fn bare_newlines_before_a_command_are_skipped() {
    let mut buf = BytesMut::from(&b"\n\n*1\r\n$4\r\nPING\r\n\n"[..]);
    assert!(parse_command(&mut buf).unwrap().is_some());
    assert!(parse_command(&mut buf).unwrap().is_none());
    assert!(buf.is_empty());
}

#[test]
fn what_is_no_command_is_refused() {
    for bytes in [
        &b"PING\r\n"[..],
        b"*x\r\n",
        b"*\r\n",
        b"*-1\r\n",
        b"*1\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$1\r\nab\r\n",
        b"*2147483648\r\n",
        b"*1\r\n$536870913\r\n",
        b"*99999999999999999999\r\n",
    ] {
        assert!(parse_command(&mut BytesMut::from(bytes)).is_err(), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_command_is_read_once_however_it_is_cut() {
    let many: Vec<Vec<u8>> = (0..20).map(|i| vec![b'a'; i]).collect();
    let args: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let wire = encoded(&args);
    for cut in 1..wire.len() {
        let mut parser = CommandParser::default();
        let mut buf = BytesMut::new();
        let mut found = None;
        for piece in wire.chunks(cut) {
            assert!(found.is_none());
            buf.extend_from_slice(piece);
            found = parser.parse(&mut buf).unwrap();
        }
        assert_eq!(args_of(&found.unwrap()), many);
        assert!(parser.is_between() && buf.is_empty());
    }
}

#[test]
fn an_announced_array_takes_no_memory_before_it_comes() {
    let mut buf = BytesMut::from(&b"*16000000\r\n:1\r\n"[..]);
    let mut parser = ReplyParser::default();
    assert_eq!(parser.parse(&mut buf), Ok(None));
    assert!(parser.open[0].1.capacity() <= RESERVE_MAX);
}

#[test]
fn a_command_has_as_many_arguments_as_the_server_takes() {
    let args = vec![&b"x"[..]; 1_100_000];
    let mut wire = encoded(&args);
    let bytes = wire.len();
    let command = parse_command(&mut wire).unwrap().unwrap();
    assert_eq!((command.len(), command.raw.len()), (args.len(), bytes));
    // A count alone is waited on, and buys no memory.
    let mut wire = BytesMut::from(&b"*2147483647\r\n$1\r\nx\r\n"[..]);
    let mut parser = CommandParser::default();
    assert_eq!(parser.parse(&mut wire), Ok(None));
    assert!(matches!(&parser.open, Some((2_147_483_646, Args::Few(1, _)))));
}

#[test]
fn replies_of_every_kind_are_read() {
    let mut buf = BytesMut::from(
        &b"+OK\r\n-ERR no\r\n:-7\r\n$2\r\nhi\r\n$-1\r\n*-1\r\n*0\r\n*2\r\n*1\r\n:1\r\n$0\r\n\r\n"[..],
    );
    let mut all = Vec::new();
    while let Some(reply) = parse_reply(&mut buf).unwrap() {
        all.push(reply);
    }
    assert!(all[0].is_simple(b"OK"));
    assert_eq!(all[1].error(), Some("ERR no"));
    assert_eq!(all[2].int(), Some(-7));
    assert_eq!(all[3].bytes().unwrap(), "hi");
    assert!(all[4].is_nil() && all[5].is_nil());
    assert_eq!(all[6].items(), Some(&[][..]));
    let nested = all[7].items().unwrap();
    assert_eq!(nested[0].items().unwrap()[0].int(), Some(1));
    assert_eq!(nested[1].bytes().unwrap(), "");
    assert!(buf.is_empty());
}

#[test]
fn what_is_no_reply_is_refused() {
    let deep = b"*1\r\n".repeat(40);
    let long = [b"+".as_slice(), &[b'x'; 70_000]].concat();
    for bytes in
        [&b"?"[..], b"\r\n", b":x\r\n", b"$x\r\n", b"$-2\r\n", b"+a\rb\r\n", b"$1\r\nabc", &deep, &long]
    {
        assert!(parse_reply(&mut BytesMut::from(bytes)).is_err(), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn debug_output_shows_no_values() {
    let command = Command::of(&[b"SET", b"secret-key", b"secret-value"]);
    let reply = parse_reply(&mut BytesMut::from(&b"*2\r\n$6\r\nsecret\r\n+secret\r\n"[..])).unwrap();
    assert!(!format!("{command:?} {reply:?}").contains("secret"));
}

proptest! {
    #[test]
    fn any_commands_read_back_whatever_the_cuts(
        commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 1..15), 1..8),
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut wire = BytesMut::new();
        for command in &commands {
            let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            encode(&mut wire, &args);
        }
        let mut parser = CommandParser::default();
        let mut buf = BytesMut::new();
        let mut got = Vec::new();
        let mut bytes = 0;
        let mut cuts = cuts.iter().cycle();
        while !wire.is_empty() {
            let n = (*cuts.next().unwrap()).min(wire.len());
            buf.extend_from_slice(&wire.split_to(n));
            while let Some(command) = parser.parse(&mut buf).unwrap() {
                bytes += command.raw.len();
                got.push(args_of(&command));
            }
        }
        prop_assert_eq!(&got, &commands);
        prop_assert!(buf.is_empty() && bytes > 0);
    }

    #[test]
    fn damaged_bytes_end_in_an_error_or_in_waiting_never_in_a_panic(
        mut wire in prop::collection::vec(any::<u8>(), 0..200),
        damage in prop::collection::vec((0usize..200, any::<u8>()), 0..4),
        replies in any::<bool>(),
    ) {
        let mut whole = encoded(&[b"SET", b"key", b"value"]).to_vec();
        whole.append(&mut wire);
        for (at, byte) in damage {
            if let Some(b) = whole.get_mut(at) {
                *b = byte;
            }
        }
        let mut buf = BytesMut::from(&whole[..]);
        let (mut commands, mut answers) = (CommandParser::default(), ReplyParser::default());
        for _ in 0..300 {
            let more = match replies {
                true => matches!(answers.parse(&mut buf), Ok(Some(_))),
                false => matches!(commands.parse(&mut buf), Ok(Some(_))),
            };
            if !more {
                break;
            }
        }
    }
}
