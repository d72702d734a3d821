//! Real brokers come up, come back and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use causeway_testkit::kafka::{KafkaServer, Options, kafka_home, shared};

/// Set in the process that [`nothing_is_left_of_brokers_whose_test_was_killed`] kills.
const VICTIM: &str = "CAUSEWAY_TEST_VICTIM";

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Whether a process does something yet: one that ended has no command line, even while it is still listed.
fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

fn controller_port(dir: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(dir.join("server.properties")).ok()?;
    let port = text.lines().find_map(|line| line.strip_prefix("controller.quorum.voters=1@127.0.0.1:"));
    port?.parse().ok()
}

#[test]
fn a_killed_broker_comes_back_on_its_ports_and_leaves_nothing_when_dropped() {
    if kafka_home().is_none() {
        return;
    }
    let properties = vec![("log.retention.ms".to_owned(), "60000".to_owned())];
    let mut server = KafkaServer::start(Options { properties, ..Options::default() }).unwrap();
    let (port, dir) = (server.port(), server.dir().to_owned());
    let controller = controller_port(&dir).unwrap();
    assert_eq!(server.brokers(), format!("127.0.0.1:{port}"));
    assert!(listens(port) && listens(controller));
    let formatted = std::fs::read(dir.join("data/meta.properties")).unwrap();

    server.kill();
    assert!(!listens(port) && !listens(controller));
    assert_eq!(server.pid(), None);
    server.restart().unwrap();
    assert!(listens(port) && listens(controller));
    assert_eq!((server.port(), controller_port(&dir)), (port, Some(controller)));
    assert_eq!(std::fs::read(dir.join("data/meta.properties")).unwrap(), formatted, "formatted anew");

    server.suspend();
    server.resume();
    server.stop_in_order();
    assert!(!listens(port) && !listens(controller));
    assert!(server.log_end().contains("Stopping"), "{}", server.log_end());
    server.restart().unwrap();
    drop(server);
    assert!(!listens(port) && !listens(controller) && !dir.exists());
}

#[test]
fn a_broker_that_cannot_start_says_why() {
    if kafka_home().is_none() {
        return;
    }
    let properties = vec![("node.id".to_owned(), "x".to_owned())];
    let error = KafkaServer::start(Options { properties, ..Options::default() }).unwrap_err();
    assert!(error.to_string().contains("Not a number"), "{error:#}");
}

/// Runs itself a second time, in a process that starts the shared brokers and never ends by itself.
#[test]
fn nothing_is_left_of_brokers_whose_test_was_killed() {
    if std::env::var_os(VICTIM).is_some() {
        let brokers = shared().unwrap();
        for server in [&brokers.dc, &brokers.cloud] {
            eprintln!("{VICTIM} {} {}", server.pid().unwrap(), server.dir().display());
        }
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    if kafka_home().is_none() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "nothing_is_left_of_brokers_whose_test_was_killed", "--nocapture"]);
    command.env(VICTIM, "1").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap()).lines().map(Result::unwrap);
    let place = |line: String| {
        let (pid, dir) = line.strip_prefix(VICTIM)?.trim().split_once(' ')?;
        Some((pid.parse().unwrap(), PathBuf::from(dir)))
    };
    let places: Vec<(u32, PathBuf)> = lines.filter_map(place).take(2).collect();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert_eq!(places.len(), 2, "the brokers didn't start");
    // A broker whose directory is gone ends by itself, but later than this.
    let until = Instant::now() + Duration::from_secs(10);
    while places.iter().any(|(pid, dir)| runs(*pid) || dir.exists()) {
        assert!(Instant::now() < until, "{places:?} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}
