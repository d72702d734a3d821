//! Checks while something is written.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Pair, run};

#[test]
fn without_a_daemon_what_rests_is_different_and_what_does_not_is_undecided() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("MSET a 1 b 2 hot 0");
    pair.both("RPUSH queue {0..100000}");
    run(&mut pair.sites[1], "SET planted 1");
    let stop = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        for server in &pair.servers {
            let mut site = server.connect();
            let stop = &stop;
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Values of every type come, go and turn into others under the reader.
                    let key = format!("churn:{}", n % 50);
                    run(&mut site, &format!("DEL {key}"));
                    run(
                        &mut site,
                        match n % 5 {
                            0 => format!("SET {key} {n}"),
                            1 => format!("HSET {key} {{0..200:v}}"),
                            2 => format!("SADD {key} {{0..200:v}}"),
                            3 => format!("ZADD {key} {{0..200:v}}"),
                            _ => format!("XADD {key} * f v"),
                        }
                        .as_str(),
                    );
                    run(&mut site, "INCR hot");
                    run(&mut site, "LPOP queue 3");
                }
            });
        }
        let answer = pair.check(&[]);
        stop.store(true, Ordering::Relaxed);
        answer
    });
    assert_eq!(answer.code, 1, "{}", answer.stderr);
    let different = answer.differences();
    assert!(different.contains(&("planted".to_owned(), "missing".to_owned())), "{different:?}");
    assert!(!different.iter().any(|(key, _)| key == "hot" || key == "a" || key == "queue"), "{different:?}");
    assert!(answer.json()["undecided"].as_u64().unwrap() >= 1);
    assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
}

/// FF52. A made-up daemon that says it has changes under way, and brings them over late.
#[test]
fn what_the_daemon_has_yet_to_apply_is_no_difference() {
    let Some(mut pair) = Pair::start() else { return };
    for n in 0..100 {
        run(&mut pair.sites[0], &format!("SET late:{n} v"));
    }
    run(&mut pair.sites[0], "SET never v");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = pair.config(&format!("[api]\nlisten = \"{}\"", listener.local_addr().unwrap()), "");
    let done = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        let mut site = pair.servers[1].connect();
        let done = &done;
        scope.spawn(move || {
            listener.set_nonblocking(true).unwrap();
            let mut asked: Option<Instant> = None;
            let mut lag = 100;
            while !done.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                if lag > 0 && asked.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(1500) {
                    for n in 0..100 {
                        run(&mut site, &format!("SET late:{n} v"));
                    }
                    lag = 0;
                }
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                }
                let body = format!(
                    "{{\"link\":\"dc-cloud\",\"sites\":[\"dc\",\"cloud\"],\"channels\":[{{\"name\":\"tags\",\
                     \"store\":\"redis\",\"state\":\"running\",\"directions\":[{{\"from\":\"dc\",\"to\":\"cloud\",\
                     \"phase\":\"streaming\",\"snapshot\":{{\"done\":1,\"total\":null}},\"lag\":{{\"changes\":{lag},\
                     \"seconds\":null}},\"applied\":{},\"conflicts\":0,\"dead_letters\":0,\"gaps\":0}}]}}]}}",
                    100 - lag
                );
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        let answer = pair.check_at(&path, &[]);
        done.store(true, Ordering::Relaxed);
        answer
    });
    assert_eq!(answer.differences(), [("never".to_owned(), "extra".to_owned())], "{}", answer.stderr);
    assert_eq!(answer.json()["compared"], 101);
}

#[test]
fn a_difference_is_told_down_to_the_elements() {
    let Some(mut pair) = Pair::start() else { return };
    pair.both("HSET h a 1 b 2 c 3");
    pair.both("SADD s a b c");
    pair.both("ZADD z 1 a 2 b 3 c");
    pair.both("SET t 1");
    pair.both("RPUSH l a b");
    for command in
        ["HSET h b x", "HDEL h c", "HSET h d 4", "SREM s b", "SADD s d", "ZADD z 9 b", "DEL t", "SADD t 1"]
    {
        run(&mut pair.sites[1], command);
    }
    run(&mut pair.sites[1], "LSET l 0 x");
    let report = pair.check(&[]).json();
    let parts = |key: &str| {
        let listed = report["differences"].as_array().unwrap();
        let one = listed.iter().find(|one| one["key"] == key).unwrap();
        one["parts"].as_array().cloned().unwrap_or_default()
    };
    for (key, expected) in
        [("h", &["b", "c", "d"][..]), ("s", &["b", "d"]), ("z", &["b"]), ("t", &["type"]), ("l", &[])]
    {
        assert_eq!(parts(key), expected, "{key}: {report}");
    }
    // Of many only the first are named.
    pair.both("DEL h");
    run(&mut pair.sites[0], "HSET h {0..150:1}");
    run(&mut pair.sites[1], "HSET h {0..150:2}");
    let report = pair.check(&[]).json();
    let listed = report["differences"].as_array().unwrap();
    let named = listed.iter().find(|one| one["key"] == "h").unwrap()["parts"].as_array().unwrap().clone();
    assert_eq!((named.len(), named.last().unwrap().as_str()), (101, Some("… and 50 more")));
}
