//! Real MariaDB servers come up, come back and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use causeway_testkit::mysql::{Flavour, MysqlOptions, MysqlServer, mysql_program, mysql_server};

/// Set in the process that [`nothing_is_left_of_a_server_whose_test_was_killed`] kills.
const VICTIM: &str = "CAUSEWAY_TEST_VICTIM";

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// What the client prints that is told nothing but the server's address.
fn client(server: &MysqlServer, statement: &str) -> String {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "-h", "127.0.0.1", "-u", "root", "-P", &server.port().to_string()]);
    let done =
        command.args(["--default-character-set=utf8mb4", "-BNe", statement]).output().expect("run mariadb");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text")
}

#[test]
fn a_killed_server_comes_back_with_what_it_acknowledged_and_leaves_nothing_when_dropped() {
    for durable in [false, true] {
        let options = MysqlOptions { server_id: Some(7), durable, ..Default::default() };
        let Some(mut server) = mysql_server(&options) else { return };
        let (port, dir) = (server.port(), server.dir().to_owned());
        assert_eq!(server.url(), format!("mysql://root@127.0.0.1:{port}"));
        let version = client(&server, "select version()");
        assert_eq!(version.contains("MariaDB"), server.flavour() == Flavour::MariaDb, "{version}");

        server.sql("create database d; create table d.t (k int primary key, v text)").unwrap();
        server.sql("insert into d.t values (1, 'é'), (2, NULL)").unwrap();
        server.kill();
        assert!(!listens(port));
        assert_eq!(server.pid(), None);
        server.restart().unwrap();
        assert_eq!(client(&server, "select v from d.t order by k"), "é\nNULL\n");
        if server.flavour() == Flavour::MariaDb {
            // Three transactions of its own domain: the binlog came back as well.
            assert_eq!(client(&server, "select @@gtid_binlog_pos"), "7-7-3\n");
        }

        server.stop();
        assert!(!listens(port));
        server.restart().unwrap();
        assert_eq!(server.sql("select count(*) from d.t").unwrap(), "2\n");
        drop(server);
        assert!(!listens(port) && !dir.exists());
    }
}

#[test]
fn a_server_that_cannot_start_and_a_statement_that_fails_say_why() {
    if mysql_program().is_none() {
        return;
    }
    let args = vec!["--no-such-option".to_owned()];
    let error = MysqlServer::start(&MysqlOptions { args, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("unknown option '--no-such-option'"), "{error:#}");
    let args = vec!["--binlog-row-image=MINIMAL".to_owned()];
    let server = MysqlServer::start(&MysqlOptions { args, ..Default::default() }).unwrap();
    assert_eq!(server.sql("select @@binlog_row_image").unwrap(), "MINIMAL\n");
    let error = server.sql("select 1; select * from mysql.no_such_table").unwrap_err();
    assert!(error.to_string().contains("ERROR 1146"), "{error:#}");
}

/// Runs itself a second time, in a process that starts a server and never ends by itself.
#[test]
fn nothing_is_left_of_a_server_whose_test_was_killed() {
    if mysql_program().is_none() {
        return;
    }
    if std::env::var_os(VICTIM).is_some() {
        let server = MysqlServer::start(&MysqlOptions::default()).unwrap();
        eprintln!("{VICTIM} {} {}", server.pid().unwrap(), server.dir().display());
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "nothing_is_left_of_a_server_whose_test_was_killed", "--nocapture"]);
    command.env(VICTIM, "1").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let mut lines = BufReader::new(victim.stderr.take().unwrap()).lines().map(Result::unwrap);
    let place = lines.find_map(|line| {
        let (pid, dir) = line.strip_prefix(VICTIM)?.trim().split_once(' ')?;
        Some((PathBuf::from("/proc").join(pid), PathBuf::from(dir)))
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    let (process, dir) = place.expect("the server didn't start");
    // One that ended has no command line, even while it is still listed.
    let runs = |process: &Path| std::fs::read(process.join("cmdline")).is_ok_and(|words| !words.is_empty());
    let until = Instant::now() + Duration::from_secs(10);
    while runs(&process) || dir.exists() {
        assert!(Instant::now() < until, "{} or {} is still there", process.display(), dir.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
