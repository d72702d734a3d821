//! A server that is started by a script of this project's, in a process group and a directory of its own.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::servers::servers_required;

/// The file in a server's directory that holds its process id: the scripts write it.
pub(crate) const PID_FILE: &str = "server.pid";

/// Where the project's scripts are.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts")
}

/// Whether Java is there.
pub(crate) fn java() -> Result<()> {
    let java = Command::new("java").arg("-version").output();
    ensure!(java.is_ok_and(|java| java.status.success()), "java is missing: scripts/setup kafka installs it");
    Ok(())
}

/// The folder in which `scripts/servers install` has a `kind` of server; it fetches it the first time.
pub(crate) fn installed(kind: &str) -> Result<PathBuf> {
    let mut install = Command::new(scripts().join("servers"));
    let done = install.args(["install", kind]).stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("run scripts/servers install {kind}"))?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(String::from_utf8(done.stdout)?.trim_end().into())
}

/// What `find` found, looked for once. Where it is not there, says so and returns `None`: the test is ignored.
///
/// # Panics
///
/// Where it is not there and [`servers_required`]: a run of nothing must not look green.
pub(crate) fn or_ignored(
    found: &OnceLock<Result<PathBuf, String>>,
    find: impl FnOnce() -> Result<PathBuf>,
) -> Option<PathBuf> {
    match found.get_or_init(|| find().map_err(|error| format!("{error:#}"))) {
        Ok(home) => Some(home.clone()),
        Err(error) => {
            assert!(!servers_required(), "{error}");
            eprintln!("ignored: {error}");
            None
        }
    }
}

/// A server, child of this process, and its directory, which stays over restarts. Dropped, it is killed, and its
/// directory removed; the same happens when this process ends without dropping it.
#[derive(Debug)]
pub(crate) struct Launched {
    child: Option<Child>,
    watcher: Child,
    dir: TempDir,
}

impl Launched {
    /// Makes the directory; nothing runs yet. `prefix`: of its name.
    pub(crate) fn new(prefix: &str) -> Result<Launched> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir()?;
        // Before the server: there is no moment at which nobody would end it.
        let watcher = watch(dir.path())?;
        Ok(Launched { child: None, watcher, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The server's process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it by `command`, and doesn't wait. Kills it first if it runs.
    pub(crate) fn start(&mut self, mut command: Command) -> Result<()> {
        self.kill();
        let log = File::options().append(true).create(true).open(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Of its own, so that its children are reached by a signal as well, and so that an interrupt of the test leaves
        // the end to the watcher.
        command.process_group(0);
        let started = command.spawn();
        self.child =
            Some(started.with_context(|| format!("start {}", command.get_program().to_string_lossy()))?);
        Ok(())
    }

    /// Waits until `answers`, at most so long. `what`: it, for messages.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        at_most: Duration,
        mut answers: impl FnMut() -> bool,
    ) -> Result<()> {
        let until = Instant::now() + at_most;
        while Instant::now() < until {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.kill();
                bail!("{what} ended with {status}: {}", self.log_end());
            }
            if answers() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("{what} doesn't answer: {}", self.log_end())
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Sends a signal to all of its process group.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.pid() {
            let mut kill = Command::new("kill");
            kill.args(["-s", name, "--", &format!("-{pid}")]).stderr(Stdio::null());
            let _ = kill.status();
        }
    }

    /// Ends it as a crash does (SIGKILL). Does nothing if it doesn't run.
    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        if let Some(mut child) = self.child.take() {
            // Until it is waited for, its process id is nobody else's; the watcher must not end who gets it then.
            let _ = std::fs::remove_file(self.dir().join(PID_FILE));
            // Both fail only if it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The last lines of its log, without stack traces.
    pub(crate) fn log_end(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let _ = file.read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("\tat ")).collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn log(&self) -> PathBuf {
        self.dir().join("server.log")
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.kill();
        // It sees the end of its input and ends.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// A process that kills the process group that [`PID_FILE`] in `dir` names and removes `dir` when its input ends:
/// that is when this process does, even killed. Statics are never dropped, and a killed test drops nothing.
pub(crate) fn watch(dir: &Path) -> Result<Child> {
    let script = format!(
        r#"read -r _
        [ ! -s "$0/{PID_FILE}" ] || kill -s KILL -- "-$(cat "$0/{PID_FILE}")"
        rm -rf "$0" || {{ sleep 1; rm -rf "$0"; }}"#
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // An interrupt goes to the test's process group, and must not end this one.
    command.process_group(0).spawn().context("start sh")
}
