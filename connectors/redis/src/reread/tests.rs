//! Against a server that answers what a test wants it to.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::endpoint::Address;
use crate::resp::CommandParser;

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const CUT: rdb::Options = rdb::Options { part_bytes: 256 << 10, whole_bytes_max: 512 << 10 };
const VERSION: u16 = 10;

/// What DUMP answers, by key.
type Dumps = fn(&[u8]) -> Vec<u8>;

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A string value's payload.
fn string(len: u32) -> Vec<u8> {
    rdb::seal(&[&[0, 0x80], &len.to_be_bytes()[..], &vec![b'x'; len as usize]].concat(), VERSION).to_vec()
}

async fn serve(mut socket: TcpStream, dumps: Dumps) -> Option<()> {
    let (mut buf, mut parser, mut queued) = (BytesMut::new(), CommandParser::default(), None::<Vec<Vec<u8>>>);
    loop {
        while let Some(command) = parser.parse(&mut buf).ok()? {
            let name = command.arg(0)?.to_ascii_uppercase();
            let answer = match &name[..] {
                b"MEMORY" => b":1000\r\n".to_vec(),
                b"PEXPIRETIME" => b":-1\r\n".to_vec(),
                b"INFO" => bulk(b""),
                b"COMMAND" => b"*1\r\n*6\r\n$1\r\nx\r\n:2\r\n*0\r\n:1\r\n:1\r\n:1\r\n".to_vec(),
                b"DUMP" if command.arg(1)?.starts_with(b"causeway:") => bulk(&string(3)),
                b"DUMP" => dumps(command.arg(1)?),
                _ => b"+OK\r\n".to_vec(),
            };
            let said = match (&name[..], &mut queued) {
                (b"MULTI", _) => {
                    queued = Some(Vec::new());
                    answer
                }
                (b"EXEC", _) => {
                    let answers = queued.take()?;
                    [format!("*{}\r\n", answers.len()).as_bytes(), &answers.concat()].concat()
                }
                (_, Some(queued)) => {
                    queued.push(answer);
                    b"+QUEUED\r\n".to_vec()
                }
                (_, None) => answer,
            };
            socket.write_all(&said).await.ok()?;
        }
        if socket.read_buf(&mut buf).await.ok()? == 0 {
            return None;
        }
    }
}

/// A reader of such a server, and how many connections were made to that.
async fn side(dumps: Dumps) -> (Side, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(socket, dumps));
        }
    });
    let endpoint = Endpoint::new(address);
    let conn = Conn::connect(&endpoint).await.unwrap();
    let side = Side::start(conn, &endpoint, &Names::new("l", "c"), true, Arc::default(), CUT);
    (side, connections)
}

fn set(names: &[&'static str]) -> Request {
    let keys = names.iter().map(|name| (0, Bytes::from_static(name.as_bytes()))).collect();
    Request::Sets(vec![Set { keys, opened: true }])
}

async fn answer(side: &mut Side) -> Answer {
    timeout(PATIENCE, side.answer()).await.expect("an answer comes")
}

/// How many pieces came, their commands, and what came after them.
async fn until_read(side: &mut Side) -> (u32, Vec<u8>, Answer) {
    let (mut count, mut commands) = (0, Vec::new());
    loop {
        match answer(side).await {
            Answer::Sent(_) => {}
            Answer::Piece(_, piece, _room) => {
                assert_eq!(piece.n, count);
                count += 1;
                commands.extend_from_slice(&piece.commands);
            }
            other => return (count, commands, other),
        }
    }
}

#[tokio::test]
async fn a_large_value_comes_in_pieces_and_small_ones_beside_it_whole() {
    let (mut side, _) = side(|key| match key {
        b"large" => bulk(&string(3 << 20)),
        b"small" => bulk(&string(100)),
        _ => b"$-1\r\n".to_vec(),
    })
    .await;
    for _ in 0..2 {
        side.ask(set(&["small", "large", "none", "large"])).unwrap();
        let mut pieces = Vec::new();
        let read = loop {
            match answer(&mut side).await {
                Answer::Piece(_, piece, _) => pieces.push(piece.n),
                Answer::Read(read) => break read,
                _ => {}
            }
        };
        assert_eq!(pieces, (0..12).chain(0..12).collect::<Vec<_>>());
        let held = read.found[0].1.iter().map(|found| found.clone().unwrap().held);
        let whole = Some(Held::Whole(string(100).into()));
        let cut = Some(Held::Pieces(12));
        assert_eq!(held.collect::<Vec<_>>(), [whole, cut.clone(), None, cut]);
    }
}

/// Promise 8, and what waits for an answer while nothing is taken.
#[tokio::test]
async fn what_nobody_takes_waits_at_the_server_and_questions_are_answered_meanwhile() {
    let (mut side, connections) = side(|_| bulk(&string(24 << 20))).await;
    side.ask(set(&["large"])).unwrap();
    let (mut kept, mut bytes) = (Vec::new(), 0);
    // What there is room for comes, and then nothing.
    let nearly = PIECES_BYTES - 2 * CUT.part_bytes as u64;
    while let Ok(answer) =
        timeout(if bytes < nearly { PATIENCE } else { Duration::from_secs(1) }, side.answer()).await
    {
        if let Answer::Piece(_, piece, room) = answer {
            bytes += piece.commands.len() as u64;
            kept.push((piece, room));
        }
    }
    assert!(bytes >= nearly && bytes <= PIECES_BYTES, "{bytes} bytes were read");
    side.ask(Request::Keys(b"X".to_vec())).unwrap();
    let Answer::Keys(name, keys) = answer(&mut side).await else { panic!("another answer") };
    assert_eq!((&name[..], keys), (&b"X"[..], Some((1, 1, 1))));
    assert_eq!(connections.load(Ordering::SeqCst), 2, "one for questions while the other one is in use");
    // Once it is taken, the rest comes.
    let first = kept.len() as u32;
    drop(kept);
    let mut count = first;
    loop {
        match answer(&mut side).await {
            Answer::Piece(_, piece, _) => {
                assert_eq!(piece.n, count);
                count += 1;
            }
            Answer::Read(read) => {
                assert_eq!(read.found[0].1[0].clone().unwrap().held, Some(Held::Pieces(count)));
                break;
            }
            _ => {}
        }
    }
    assert_eq!(count, 96);
}

/// A value that began never ends as one where the answer turns out to be wrong.
#[tokio::test]
async fn a_value_ends_only_if_all_of_the_answer_was_right() {
    let wrong: [(Dumps, &str); 4] = [
        (
            |_| {
                let mut payload = string(2 << 20);
                payload[1_000_000] ^= 1;
                bulk(&payload)
            },
            "checksum",
        ),
        (
            |_| {
                let mut answer = bulk(&string(2 << 20));
                answer.truncate(answer.len() - 2);
                [&answer[..], b"xx"].concat()
            },
            "was expected after a string",
        ),
        (
            |key| match key {
                b"large" => bulk(&string(2 << 20)),
                _ => b"-NOPERM no permissions\r\n".to_vec(),
            },
            "NOPERM",
        ),
        (
            |key| match key {
                b"large" => bulk(&string(2 << 20)),
                _ => b"?".to_vec(),
            },
            "reply",
        ),
    ];
    for (dumps, says) in wrong {
        let (mut side, _) = side(dumps).await;
        side.ask(set(&["large", "other"])).unwrap();
        let (pieces, _, Answer::Failed(error)) = until_read(&mut side).await else {
            panic!("{says}: it ended")
        };
        assert!(pieces >= 7, "{pieces}");
        assert!(format!("{error:?}").contains(says), "{error:?}");
    }
}

/// A value of a module has no commands: it is named, and what is read with it is not lost.
#[tokio::test]
async fn a_large_value_that_cannot_be_cut_is_left_with_its_reason() {
    let (mut side, _) = side(|key| match key {
        b"module" => bulk(&rdb::seal(&[&[7, 0x81][..], &[9; 8], &[0; 1 << 20]].concat(), VERSION)),
        _ => bulk(&string(5)),
    })
    .await;
    side.ask(set(&["module", "small"])).unwrap();
    let (0, _, Answer::Read(read)) = until_read(&mut side).await else { panic!("not read") };
    let [Err(reason), Ok(found)] = &read.found[0].1[..] else { panic!("{:?}", read.found) };
    assert!(reason.contains("too large") && reason.contains("module type"), "{reason}");
    assert_eq!(found.held, Some(Held::Whole(string(5).into())));
}
