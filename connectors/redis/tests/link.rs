//! Getting in, and what a server may send that it should not: against real servers and fake ones.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod source_support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use causeway_core::{Error, ErrorKind, Event, Opened, Result, Site, Source, Told};
use causeway_redis::endpoint::{Address, Endpoint};
use causeway_redis::link::{Item, Link, LinkOptions, Opening, Start};
use causeway_redis::source::RedisSource;
use causeway_testkit::servers::{Options, RedisServer, Tls, redis_server};
use source_support::*;

fn options() -> LinkOptions {
    LinkOptions {
        from: None,
        empty_snapshot: false,
        bytes_per_second: None,
        silence_max: Duration::from_secs(5),
        name: "test".into(),
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(Address::Tcp { host: "127.0.0.1".into(), port })
}

async fn opened(endpoint: &Endpoint, options: &LinkOptions) -> (Link, Start) {
    match Link::open(endpoint, options).await.expect("a link") {
        Opening::Open(link, start) => (link, start),
        Opening::Refused(reason) => panic!("{reason}"),
    }
}

/// Takes what comes until the link ends: the snapshot, how many commands, and why it ended.
async fn all(link: &mut Link) -> (Vec<u8>, usize, Error) {
    let (mut rdb, mut commands) = (Vec::new(), 0);
    loop {
        match tokio::time::timeout(PATIENCE, link.next()).await.expect("in time") {
            Ok(Item::Rdb(bytes)) => rdb.extend_from_slice(&bytes),
            Ok(Item::RdbEnd) => {}
            Ok(Item::Commands(c)) => commands += c.len(),
            Err(error) => return (rdb, commands, error),
        }
    }
}

/// A server that answers a replica's handshake, and then sends `script`, and hangs up after `stay`.
fn fake(script: Vec<Vec<u8>>, stay: Duration) -> (u16, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        let mut buf = [0; 4096];
        let mut answered = 0;
        while !heard.windows(5).any(|w| w == b"PSYNC") {
            let n = socket.read(&mut buf).unwrap();
            heard.extend_from_slice(&buf[..n]);
            let commands = heard.split(|&b| b == b'*').count() - 1;
            while answered < commands && answered < 4 {
                socket.write_all(b"+OK\r\n").unwrap();
                answered += 1;
            }
        }
        for piece in script {
            // The other end may have had enough.
            if socket.write_all(&piece).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        socket.set_read_timeout(Some(stay.max(Duration::from_millis(1)))).unwrap();
        heard.clear();
        while let Ok(n) = socket.read(&mut buf) {
            if n == 0 {
                break;
            }
            heard.extend_from_slice(&buf[..n]);
        }
        heard
    });
    (port, thread)
}

fn pieces(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    parts.iter().map(|p| p.to_vec()).collect()
}

const ID: &str = "0123456789012345678901234567890123456789";

#[tokio::test]
async fn newlines_cut_marks_and_getack_are_understood() {
    let mark = "abcdefabcdefabcdefabcdefabcdefabcdefabcd";
    let full = format!("\n+FULLRESYNC {ID} 100\r\n");
    let framing = format!("\n\n$EOF:{mark}\r\nREDIS");
    let getack = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";
    let script = pieces(&[
        b"\n",
        full.as_bytes(),
        b"\n",
        framing.as_bytes(),
        &mark.as_bytes()[..17],
        &mark.as_bytes()[17..],
        b"*1\r\n$4\r\nPI",
        b"NG\r\n",
        getack,
    ]);
    let (port, thread) = fake(script, Duration::from_millis(300));
    let (mut link, start) = opened(&endpoint(port), &options()).await;
    assert_eq!(start, Start::Full { id: Bytes::from_static(ID.as_bytes()), at: 100 });
    link.acknowledge(114);
    let (rdb, commands, error) = all(&mut link).await;
    assert_eq!((rdb.as_slice(), commands), (&b"REDIS"[..], 2));
    assert_eq!(error.kind(), ErrorKind::Retry);
    let heard = thread.join().unwrap();
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.matches("ACK\r\n$3\r\n114\r\n").count() >= 2, "at once, and again when asked: {heard:?}");
}

#[tokio::test]
async fn garbage_is_named_with_its_place_and_never_read_as_data() {
    let full = format!("+FULLRESYNC {ID} 100\r\n");
    for (script, what, at) in [
        (pieces(&[full.as_bytes(), b"$3\r\nabc*1\r\n$4\r\nPING\r\n?garbage"]), "replication stream", 114),
        (pieces(&[full.as_bytes(), b"$0\r\n*1\r\n$x\r\n"]), "replication stream", 104),
        (pieces(&[full.as_bytes(), b"$0\r\n*9999999999\r\n"]), "replication stream", 104),
        (pieces(&[full.as_bytes(), b"what\r\n"]), "RDB", 0),
        (pieces(&[full.as_bytes(), &[b'x'; 200]]), "RDB", 0),
    ] {
        let (port, thread) = fake(script, Duration::from_millis(100));
        let (mut link, _) = opened(&endpoint(port), &options()).await;
        let (_, _, error) = all(&mut link).await;
        let Error::Garbled { what: w, at: a, .. } = &error else { panic!("{error}") };
        assert!(*w == what && (at..at + 8).contains(a), "{error}");
        assert_eq!(error.kind(), ErrorKind::Retry);
        drop(link);
        thread.join().unwrap();
    }
    for answer in ["+HELLO\r\n", ":1\r\n", "?\r\n", "+FULLRESYNC x\r\n"] {
        let (port, _thread) = fake(pieces(&[answer.as_bytes()]), Duration::from_millis(50));
        let error = Link::open(&endpoint(port), &options()).await.expect_err(answer);
        assert!(matches!(error, Error::Garbled { .. }), "{answer}: {error}");
    }
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_an_error() {
    let script = pieces(&[format!("+FULLRESYNC {ID} 1\r\n$100\r\nREDIS0010").as_bytes()]);
    let (port, _thread) = fake(script, Duration::from_millis(1));
    let (mut link, _) = opened(&endpoint(port), &options()).await;
    let (rdb, _, error) = all(&mut link).await;
    assert_eq!((rdb.as_slice(), error.kind()), (&b"REDIS0010"[..], ErrorKind::Retry));
}

/// FF17c's like: a line that is open and dead.
#[tokio::test]
async fn a_silent_server_is_given_up() {
    let script = pieces(&[format!("+FULLRESYNC {ID} 1\r\n$0\r\n").as_bytes()]);
    let (port, _thread) = fake(script, Duration::from_secs(3));
    let silence_max = Duration::from_millis(300);
    let (mut link, _) = opened(&endpoint(port), &LinkOptions { silence_max, ..options() }).await;
    let (_, _, error) = all(&mut link).await;
    assert!(error.kind() == ErrorKind::Retry && error.to_string().contains("nothing came"), "{error}");
}

#[tokio::test]
async fn a_slow_taker_stops_the_reading_and_is_still_acknowledged() {
    let Some(server) = server(&["--client-output-buffer-limit", "replica 0 0 0", "--rdbcompression", "no"])
    else {
        return;
    };
    let mut c = server.connect().unwrap();
    c.must(&["DEBUG", "POPULATE", "200000", "key", "300"]).unwrap();
    let (mut link, _) = opened(&endpoint(server.port()), &options()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Nothing was taken: the server has most of it still.
    let mut bytes = 0;
    while let Some(Item::Rdb(chunk)) = link.try_next().unwrap() {
        bytes += chunk.len();
        // The reader goes on as soon as there is room: what it holds now is what it held.
        if bytes >= 12 << 20 {
            break;
        }
    }
    let sent = c.must(&["INFO", "stats"]).unwrap().text().unwrap();
    let sent = sent.lines().find_map(|l| l.strip_prefix("total_net_repl_output_bytes:")).unwrap().to_owned();
    assert!(sent.parse::<u64>().unwrap() < 40 << 20, "{sent} of 60 MB");
    while !matches!(link.next().await.unwrap(), Item::RdbEnd) {}
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let info = c.must(&["INFO", "replication"]).unwrap().text().unwrap();
    assert!(info.contains("state=online") && info.contains("lag="), "{info}");
}

#[tokio::test]
async fn a_snapshot_keeps_to_its_rate() {
    let Some(server) = server(&[]) else { return };
    server.connect().unwrap().must(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    let slow = LinkOptions { bytes_per_second: Some(1 << 20), ..options() };
    let (mut link, _) = opened(&endpoint(server.port()), &slow).await;
    let began = std::time::Instant::now();
    let mut bytes = 0;
    while let Item::Rdb(chunk) = link.next().await.unwrap() {
        bytes += chunk.len();
    }
    let due = bytes as f64 / f64::from(1 << 20);
    assert!(bytes > 400_000 && began.elapsed().as_secs_f64() > due * 0.6, "{bytes} in {:?}", began.elapsed());
}

async fn try_site(site: &str) -> Result<Opened> {
    let mut source = RedisSource::new(config(site, ""), Site::First);
    let opened = source.open(None, true, Told::new()).await?;
    until(&mut source, |e| matches!(e, Event::SnapshotEnded { .. })).await;
    Ok(opened)
}

#[tokio::test]
async fn unix_sockets_and_users_get_in() {
    let Some(server) = server(&[]) else { return };
    try_site(&format!("url = \"unix://{}\"", server.socket().display())).await.unwrap();
    let mut c = server.connect().unwrap();
    let rights =
        "ACL SETUSER sync on >s3cret ~* &* +@all -@dangerous +psync +replconf +info +config|get +client";
    c.must(&rights.split(' ').collect::<Vec<_>>()).unwrap();
    try_site(&format!("url = \"redis://sync:s3cret@127.0.0.1:{}\"", server.port())).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let path = file.path().display();
    let by_file = format!("url = \"{}\"\nuser = \"sync\"\npassword_file = \"{path}\"", server.url());
    try_site(&by_file).await.unwrap();
    // A dead one first in the list is passed over.
    try_site(&format!("urls = [\"redis://127.0.0.1:1\", \"{}\"]", server.url())).await.unwrap();
}

#[tokio::test]
async fn tls_gets_in_with_the_right_authority_only() {
    if redis_server().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(tls) = Tls::generate(dir.path()).unwrap() else {
        eprintln!("ignored: openssl is missing");
        return;
    };
    let ca = tls.ca.display().to_string();
    let Ok(server) = RedisServer::start(Options { tls: Some(tls.clone()), ..Options::default() }) else {
        eprintln!("ignored: this redis-server has no TLS");
        return;
    };
    let url = server.tls_url().unwrap();
    try_site(&format!("url = \"{url}\"\nca_file = \"{ca}\"")).await.unwrap();
    let (cert, key) = (tls.cert.display(), tls.key.display());
    let own = format!("url = \"{url}\"\nca_file = \"{ca}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"");
    try_site(&own).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let stranger = Tls::generate(other.path()).unwrap().unwrap().ca;
    let error =
        try_site(&format!("url = \"{url}\"\nca_file = \"{}\"", stranger.display())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    // TLS to a port without it.
    let plain = server.url().replace("redis://", "rediss://");
    let error = try_site(&format!("url = \"{plain}\"\nca_file = \"{ca}\"")).await.unwrap_err();
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_the_way_in_is_said_without_secrets() {
    let Some(server) = server(&[]) else { return };
    server.connect().unwrap().must(&["CONFIG", "SET", "requirepass", "right"]).unwrap();
    let port = server.port();
    for (site, kind, says) in [
        (format!("url = \"redis://:wr0ng@127.0.0.1:{port}\""), ErrorKind::Setup, "WRONGPASS"),
        (format!("url = \"redis://nobody:wr0ng@127.0.0.1:{port}\""), ErrorKind::Setup, "WRONGPASS"),
        (format!("url = \"redis://127.0.0.1:{port}\""), ErrorKind::Setup, "NOAUTH"),
        ("url = \"redis://:wr0ng@127.0.0.1:1\"".to_owned(), ErrorKind::Retry, "127.0.0.1:1"),
        ("url = \"unix:///no/such/socket\"".to_owned(), ErrorKind::Retry, "/no/such/socket"),
    ] {
        let error = try_site(&site).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says) && !error.to_string().contains("wr0ng"), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_a_replica_and_a_missing_right_are_named() {
    let (Some(master), Some(replica)) = (server(&[]), server(&[])) else { return };
    let Some(cluster) = server(&["--cluster-enabled", "yes"]) else { return };
    let error = try_site(&format!("url = \"{}\"", cluster.url())).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("cluster"), "{error}");
    replica.connect().unwrap().must(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).unwrap();
    let error = try_site(&format!("url = \"{}\"", replica.url())).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("replica"), "{error}");
}
