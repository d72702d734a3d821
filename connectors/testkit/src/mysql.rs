//! Real MariaDB and MySQL servers for tests, on free loopback ports and in directories of their own. They end when they are
//! dropped, and when the test's process ends, however it does.
//!
//! A start takes an idle machine 0.2 s: it copies a data directory that the first one of all has made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::launched::{PID_FILE, watch};
use crate::servers::{free_port, in_path, servers_required};

/// How long a start may take: after a kill under load it has a log to read.
const START_MAX: Duration = Duration::from_secs(60);
/// How long an end in order may take.
const STOP_MAX: Duration = Duration::from_secs(30);
/// The redo log, of the template and of each server: one of another size would be made anew at the start.
const REDO_LOG: &str = "--innodb-log-file-size=32M";

/// The program of a server: the one that `CAUSEWAY_MYSQL_SERVER` names, which may be Oracle's MySQL, or `mariadbd` in
/// `PATH`, or in `/usr/sbin`, which only root's `PATH` has. Where there is none, says so and returns `None`: the test is
/// ignored.
///
/// # Panics
///
/// Where there is none and [`servers_required`]: a run of nothing must not look green.
pub fn mysql_program() -> Option<PathBuf> {
    let found = std::env::var_os("CAUSEWAY_MYSQL_SERVER")
        .map(PathBuf::from)
        .or_else(|| in_path("mariadbd"))
        .or_else(|| Some("/usr/sbin/mariadbd".into()).filter(|p: &PathBuf| p.is_file()));
    if found.is_none() {
        assert!(!servers_required(), "mariadbd is missing: scripts/setup mysql installs it");
        eprintln!("ignored: mariadbd is missing (scripts/setup mysql installs it)");
    }
    found
}

/// The program of the second of two servers, to try pairs: `CAUSEWAY_MYSQL_SERVER_OTHER`. `None` if it is not set: the
/// same as the first. For [`MysqlOptions::program`].
pub fn other_mysql_server() -> Option<PathBuf> {
    std::env::var_os("CAUSEWAY_MYSQL_SERVER_OTHER").map(PathBuf::from)
}

/// Starts a server for a test and waits until it answers. `None` where there is none: see [`mysql_program`].
///
/// # Panics
///
/// As [`mysql_program`] does, and if it didn't come up, with the end of its log.
pub fn mysql_server(options: &MysqlOptions) -> Option<MysqlServer> {
    mysql_program()?;
    Some(MysqlServer::start(options).unwrap_or_else(|error| panic!("{error:#}")))
}

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct MysqlOptions {
    /// The server's; `None` is [`mysql_program`].
    pub program: Option<PathBuf>,
    /// More options of the server, after ours, so that theirs win: `["--binlog-row-image=MINIMAL"]`.
    pub args: Vec<String>,
    /// Fsyncs each commit, in the tables and in the binlog. Without it the kernel has them: a killed server has
    /// all that it acknowledged, but not a machine that died.
    pub durable: bool,
    /// Its server id and its GTID domain; `None` is its port, which no other server of the machine has.
    pub server_id: Option<u32>,
}

/// A running server, child of this process. Its port and its directory stay the same over
/// [`restart`](MysqlServer::restart). Dropped, it is killed, and its directory removed; the same happens when this
/// process ends without dropping it.
#[derive(Debug)]
pub struct MysqlServer {
    flavour: Flavour,
    command: Vec<String>,
    child: Option<Child>,
    watcher: Child,
    port: u16,
    dir: TempDir,
}

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// MariaDB.
    MariaDb,
    /// Oracle's MySQL.
    MySql,
}

impl Flavour {
    /// What it is besides the options that both know.
    fn options(self, id: u32) -> Vec<String> {
        let own = match self {
            Flavour::MariaDb => format!(
                "--gtid-domain-id={id} --gtid-strict-mode=ON --binlog-format=ROW --aria-pagecache-buffer-size=8M \
                 --innodb-use-native-aio=OFF {REDO_LOG}"
            ),
            Flavour::MySql => {
                "--gtid-mode=ON --enforce-gtid-consistency=ON --mysqlx=OFF --secure-file-priv=NULL \
                               --innodb-redo-log-capacity=32M --innodb-doublewrite=OFF"
                    .to_owned()
            }
        };
        own.split_whitespace().map(str::to_owned).collect()
    }
}

impl MysqlServer {
    /// Starts one and waits until it answers. Its user `root` needs no password; there is no other user.
    ///
    /// It writes a binlog of whole rows with all that is known of their columns, is strict about GTIDs, allows
    /// `LOAD DATA LOCAL`, resolves no host names, and stores text as `utf8mb4` where a table doesn't say.
    ///
    /// # Errors
    ///
    /// No server program, or it didn't come up; the end of its log is in the error.
    pub fn start(options: &MysqlOptions) -> Result<MysqlServer> {
        let program = options.program.clone().or_else(mysql_program).context("mariadbd is missing")?;
        let (flavour, version) = version(&program)?;
        let dir = tempfile::Builder::new().prefix("causeway-mysql-").tempdir()?;
        let data = dir.path().join("data");
        let mut copy = Command::new("cp");
        run(copy
            .args(["-a", "--reflink=auto"])
            .args([template(&program, flavour, &version)?, data.clone()]))?;
        let port = free_port()?;
        let id = options.server_id.unwrap_or(port.into());
        let mut command = vec![program.display().to_string()];
        let mut add = |words: &[&str]| command.extend(words.iter().map(|w| (*w).to_owned()));
        let path = |name: &str| dir.path().join(name).display().to_string();
        add(&["--no-defaults", &format!("--datadir={}", path("data")), &format!("--tmpdir={}", path(""))]);
        add(&[&format!("--port={port}"), "--bind-address=127.0.0.1", &format!("--socket={}", path("s"))]);
        add(&[&format!("--pid-file={}", path("mariadbd.pid")), "--skip-name-resolve", "--local-infile=ON"]);
        add(&[&format!("--server-id={id}"), "--log-bin=binlog"]);
        add(&["--binlog-row-image=FULL", "--binlog-row-metadata=FULL", "--character-set-server=utf8mb4"]);
        add(&["--performance-schema=OFF", "--key-buffer-size=8M"]);
        add(&["--innodb-buffer-pool-size=64M", "--innodb-buffer-pool-dump-at-shutdown=OFF"]);
        // The kernel has few places for many servers' native requests.
        add(&["--innodb-buffer-pool-load-at-startup=OFF"]);
        add(match options.durable {
            true => &["--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1"],
            // 0 instead of 2 would keep a second of commits in the process, for a kill to lose.
            false => {
                &["--innodb-flush-log-at-trx-commit=2", "--sync-binlog=0", "--innodb-flush-method=nosync"]
            }
        });
        add(root_option());
        command.extend(flavour.options(id));
        command.extend_from_slice(&options.args);
        // Before the server: there is no moment at which nobody would end it.
        let watcher = watch(dir.path())?;
        let mut server = MysqlServer { flavour, command, child: None, watcher, port, dir };
        server.restart()?;
        Ok(server)
    }

    /// Whose server it is.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `mysql://root@127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.port)
    }

    /// The path of its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Where its files are; its tables and binlogs are in `data`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs statements, `;` between them, as `root` with the command-line client. Returns their rows, a line each
    /// without column names: values are separated by tabs, NULL is `NULL`, and tabs and line feeds in a value are
    /// escaped.
    ///
    /// # Errors
    ///
    /// The client is missing, or a statement failed: those after it are not run.
    pub fn sql(&self, statements: &str) -> Result<String> {
        // A file, since both ends of a pipe could wait for each other.
        let mut input = tempfile::tempfile()?;
        input.write_all(statements.as_bytes())?;
        input.rewind()?;
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "--user=root", "--default-character-set=utf8mb4"]);
        client.args(["--batch", "--skip-column-names"]).arg("--socket").arg(self.socket());
        run(client.stdin(input))
    }

    /// The name of the binlog's file that it writes to.
    ///
    /// # Errors
    ///
    /// As [`sql`](MysqlServer::sql).
    pub fn binlog(&self) -> Result<String> {
        let status = self.sql(match self.flavour {
            Flavour::MariaDb => "SHOW MASTER STATUS",
            Flavour::MySql => "SHOW BINARY LOG STATUS",
        })?;
        Ok(status.split('\t').next().unwrap_or_default().to_owned())
    }

    /// Begins the binlog anew.
    ///
    /// # Errors
    ///
    /// As [`sql`](MysqlServer::sql).
    pub fn reset_binlog(&self) -> Result<()> {
        self.sql(match self.flavour {
            Flavour::MariaDb => "RESET MASTER",
            Flavour::MySql => "RESET BINARY LOGS AND GTIDS",
        })?;
        Ok(())
    }

    /// Makes it a replica of `primary`, by GTID and from its first transaction on, and read-only.
    ///
    /// # Errors
    ///
    /// As [`sql`](MysqlServer::sql).
    pub fn replicate(&self, primary: &MysqlServer) -> Result<()> {
        let port = primary.port();
        self.sql(&match self.flavour {
            Flavour::MariaDb => format!(
                "CHANGE MASTER TO master_host='127.0.0.1', master_port={port}, master_user='root', \
                 master_use_gtid=slave_pos, master_connect_retry=1; START SLAVE; SET GLOBAL read_only = ON"
            ),
            Flavour::MySql => format!(
                "CHANGE REPLICATION SOURCE TO source_host='127.0.0.1', source_port={port}, source_user='root', \
                 source_auto_position=1, source_connect_retry=1, get_source_public_key=1; START REPLICA; \
                 SET GLOBAL super_read_only = ON"
            ),
        })?;
        Ok(())
    }

    /// What it has got to, by GTIDs, for [`wait_for`](MysqlServer::wait_for).
    ///
    /// # Errors
    ///
    /// As [`sql`](MysqlServer::sql).
    pub fn gtids(&self) -> Result<String> {
        let gtids = self.sql(match self.flavour {
            Flavour::MariaDb => "SELECT @@gtid_current_pos",
            Flavour::MySql => "SELECT REPLACE(@@gtid_executed, '\n', '')",
        })?;
        Ok(gtids.trim().replace("\\n", ""))
    }

    /// Waits until a replica has all of `gtids`.
    ///
    /// # Errors
    ///
    /// It has not got them after half a minute, or as [`sql`](MysqlServer::sql).
    pub fn wait_for(&self, gtids: &str) -> Result<()> {
        let waited = self.sql(&match self.flavour {
            Flavour::MariaDb => format!("SELECT MASTER_GTID_WAIT('{gtids}', 30)"),
            Flavour::MySql => format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{gtids}', 30)"),
        })?;
        ensure!(waited.trim() == "0", "the replica does not come to {gtids}: {}", self.log_end());
        Ok(())
    }

    /// Makes a replica a primary: it replicates no more, and takes writes.
    ///
    /// # Errors
    ///
    /// As [`sql`](MysqlServer::sql).
    pub fn promote(&self) -> Result<()> {
        self.sql(match self.flavour {
            Flavour::MariaDb => "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = OFF",
            Flavour::MySql => {
                "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF"
            }
        })?;
        Ok(())
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Until it is waited for, its process id is nobody else's.
            self.forget_pid();
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it in order (SIGTERM): it comes back without having to recover. Killed if that takes over 30 s. Does
    /// nothing if it doesn't run.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let until = Instant::now() + STOP_MAX;
        while Instant::now() < until && matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None))) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Starts it again on the same port and the same files, and waits until it answers. Kills it first if it
    /// runs.
    ///
    /// # Errors
    ///
    /// It didn't come up; the end of its log is in the error.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let (program, args) = self.command.split_first().context("no server program")?;
        let log = File::options().append(true).create(true).open(self.log())?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Of its own, so that an interrupt of the test leaves the end to the watcher, which ends a group.
        let child = command.process_group(0).spawn().with_context(|| format!("start {program}"))?;
        let pid = child.id();
        self.child = Some(child);
        std::fs::write(self.dir.path().join(PID_FILE), pid.to_string())?;
        self.wait_until_it_answers()
    }

    /// Freezes it (SIGSTOP): its connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`pause`](MysqlServer::pause).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// The last lines of its log, without its notes.
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" [Note] ")).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
        }
    }

    /// The watcher must not end a process that has got the id since.
    fn forget_pid(&self) {
        let _ = std::fs::remove_file(self.dir.path().join(PID_FILE));
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.kill();
                bail!("the server on port {} ended with {status}: {}", self.port, self.log_end());
            }
            // No other process has the socket, and it is opened after the port.
            if greets(&self.socket()).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the server on port {} doesn't answer: {}", self.port, self.log_end())
    }
}

impl Drop for MysqlServer {
    fn drop(&mut self) {
        self.kill();
        // It sees the end of its input and ends.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// A table of the numbers 1 to `count` in a column `seq`, to stand behind FROM in either server.
pub fn numbers(count: u32) -> String {
    let digits: Vec<String> = (0..10).map(|n| format!("SELECT {n} AS n")).collect();
    let digits = digits.join(" UNION ALL ");
    let places = (0..count.to_string().len()).map(|place| format!("({digits}) AS d{place}"));
    let tables = places.collect::<Vec<_>>().join(", ");
    let sum: Vec<String> = (0..count.to_string().len())
        .map(|place| format!("d{place}.n * {}", 10_u32.pow(place as u32)))
        .collect();
    format!(
        "(SELECT seq FROM (SELECT {} + 1 AS seq FROM {tables}) AS seqs WHERE seq <= {count}) AS seqs",
        sum.join(" + ")
    )
}

/// The server speaks first: a header of four bytes, then the version of the protocol.
fn greets(socket: &Path) -> Result<()> {
    let mut socket = UnixStream::connect(socket)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut greeting = [0; 5];
    socket.read_exact(&mut greeting)?;
    ensure!(greeting[4] == 10, "not MySQL's greeting: {greeting:?}");
    Ok(())
}

/// Whose server `program` is, and its version.
fn version(program: &Path) -> Result<(Flavour, String)> {
    let told = run(Command::new(program).args(["--no-defaults", "--version"]))?;
    let version = told.split_whitespace().skip_while(|word| *word != "Ver").nth(1);
    let version = version.with_context(|| format!("{} told no version", program.display()))?;
    let flavour = if told.contains("MariaDB") { Flavour::MariaDb } else { Flavour::MySql };
    Ok((flavour, version.to_owned()))
}

/// The data directory of which each server gets a copy. It is made where there is none yet for this version of
/// `program` and this user: in the folder of what cargo builds, for later runs as well.
fn template(program: &Path, flavour: Flavour, version: &str) -> Result<PathBuf> {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("mysql-{version}-{}", uid());
    if let Some(dir) = made.get(&name) {
        return Ok(dir.clone());
    }
    let dir = find_template(&name, program, flavour).context("no data directory for the server")?;
    made.insert(name, dir.clone());
    Ok(dir)
}

fn find_template(name: &str, program: &Path, flavour: Flavour) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    let place = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    std::fs::create_dir_all(&place)?;
    let (dir, part) = (place.join(name), place.join(format!("{name}.part")));
    let lock = File::create(place.join(format!("{name}.lock")))?;
    // Two at the same time: the second one waits and finds it.
    lock.lock()?;
    if !dir.is_dir() {
        if part.exists() {
            std::fs::remove_dir_all(&part)?;
        }
        let mut install = match flavour {
            Flavour::MariaDb => Command::new("mariadb-install-db"),
            Flavour::MySql => Command::new(program),
        };
        // MySQL's root is `localhost` alone, which no address is where no names are resolved.
        let init = place.join(format!("{name}.sql"));
        std::fs::write(
            &init,
            "CREATE USER root@'127.0.0.1'; GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n",
        )?;
        install.arg("--no-defaults").arg(format!("--datadir={}", part.display())).args(root_option());
        run(match flavour {
            Flavour::MariaDb => install
                .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
                .arg(REDO_LOG),
            Flavour::MySql => install
                .args(["--initialize-insecure", "--innodb-redo-log-capacity=32M"])
                .arg(format!("--init-file={}", init.display())),
        })?;
        // Each server makes a number of its own.
        if flavour == Flavour::MySql {
            std::fs::remove_file(part.join("auto.cnf"))?;
        }
        std::fs::rename(&part, &dir)?;
    }
    Ok(dir)
}

/// A server refuses to run as root if it isn't told to.
fn root_option() -> &'static [&'static str] {
    if uid() == 0 { &["--user=root"] } else { &[] }
}

fn uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(0, |process| process.uid())
}

/// What `command` prints.
fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().with_context(|| format!("run {program}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(done.status.success(), "{program}: {} {}", text(&done.stderr), text(&done.stdout));
    Ok(String::from_utf8(done.stdout)?)
}
