//! What a run needs from outside, as it really is: the daemon's interface, programs, signals, a terminal.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::super::args::Common;
use super::super::client::Client;
use super::super::table::{Tone, paint};
use super::super::{Failure, output, programs};
use crate::config::Config;
use crate::runbook::{Exit, Program, Refusal, World};
use crate::status::Status;

/// How long a program may take to end when it is asked to.
const END_WAIT: Duration = Duration::from_secs(5);

/// Where stderr is no terminal, what is true just now is told this often.
const TOLD_EACH: Duration = Duration::from_secs(30);

pub(super) struct Outside {
    client: Client,
    verifier: Result<PathBuf, String>,
    syncd: Result<PathBuf, String>,
    /// What a `syncd` that is run as a step is told besides.
    told_on: Vec<String>,
    /// On a terminal.
    line: Option<ProgressBar>,
    told: Mutex<Option<Instant>>,
    colour: bool,
}

impl Outside {
    pub(super) fn new(
        common: &Common,
        config: &Config,
        given: Option<&Path>,
        needs_verifier: bool,
    ) -> Result<Outside, Failure> {
        let (syncd, verifier) = (programs::this(), programs::verifier(given));
        // Not only when the run comes to it, perhaps in the middle of the night.
        if let (true, Ok(path)) = (needs_verifier, &verifier)
            && !path.is_file()
        {
            let message = format!("there is no {}: say where it is with --verifier PATH", path.display());
            return Err(Failure::Usage(message));
        }
        let mut told_on = Vec::new();
        told_on.extend(common.listen.iter().flat_map(|at| ["--listen".to_owned(), at.to_string()]));
        told_on.extend(given.iter().flat_map(|path| ["--verifier".to_owned(), path.display().to_string()]));
        let line = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("    {wide_msg}");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Ok(Outside {
            client: Client::new(common.address(config))?,
            verifier,
            told_on,
            syncd,
            line,
            told: Mutex::new(None),
            colour: output::colour_stderr(),
        })
    }

    /// Takes the line away that stands for what is true just now.
    pub(super) fn quiet(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

fn text(failure: Failure) -> String {
    match failure {
        Failure::No(text) => text.unwrap_or_default(),
        Failure::Usage(text) | Failure::Failed(text) => text,
    }
}

#[async_trait]
impl World for Outside {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn status(&self) -> Result<Status, String> {
        self.client.get("/v1/status", &[]).await.map_err(text)
    }

    async fn snapshot(&self, channel: &str) -> Result<(), Refusal> {
        let asked = self.client.post::<Status>(&format!("/v1/channels/{channel}/snapshot"), &[]).await;
        match asked {
            Ok(_) => Ok(()),
            Err(failure @ Failure::Failed(_)) => Err(Refusal::Failed(text(failure))),
            Err(failure) => Err(Refusal::No(text(failure))),
        }
    }

    async fn program(
        &self,
        program: Program,
        args: &[String],
        answer: &Path,
        end: &CancellationToken,
    ) -> Result<Exit, String> {
        let path = match program {
            Program::Verifier => self.verifier.clone()?,
            Program::Syncd => self.syncd.clone()?,
        };
        let file = std::fs::File::create(answer)
            .map_err(|error| format!("cannot write {}: {error}", answer.display()))?;
        let mut command = tokio::process::Command::new(&path);
        command.args(args).stdin(Stdio::null()).stdout(file).stderr(Stdio::inherit());
        if program == Program::Syncd {
            command.args(&self.told_on);
        }
        // A group of its own: Ctrl-C reaches it by way of us, after we know of it.
        command.process_group(0).kill_on_drop(true);
        dies_with_us(&mut command);
        let mut child =
            command.spawn().map_err(|error| format!("cannot start {}: {error}", path.display()))?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let tell = |signal| group.is_some_and(|group| kill_process_group(group, signal).is_ok());
        let ended = tokio::select! {
            biased;
            ended = child.wait() => ended,
            () = end.cancelled() => {
                tell(Signal::TERM);
                match tokio::time::timeout(END_WAIT, child.wait()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        tell(Signal::KILL);
                        child.wait().await
                    }
                }
            }
        };
        let ended = ended.map_err(|error| format!("cannot wait for {}: {error}", path.display()))?;
        Ok(match (ended.code(), ended.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        })
    }

    async fn ask(&self, question: &str) -> Option<bool> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            eprint!("{} [yes/no] ", paint(question, Tone::Busy, self.colour));
            match lines.next_line().await {
                Ok(Some(line)) => match line.trim() {
                    "yes" => return Some(true),
                    "no" => return Some(false),
                    _ => {}
                },
                // Nobody is there any more.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    fn say(&self, line: &str) {
        let failed = line.contains(": failed, ");
        let tone = if failed { Tone::Bad } else { Tone::Plain };
        let line = paint(line, tone, self.colour);
        match &self.line {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
        if let Ok(mut told) = self.told.lock() {
            *told = Some(Instant::now());
        }
    }

    fn live(&self, text: &str) {
        if let Some(line) = &self.line {
            if text.is_empty() {
                line.finish_and_clear();
            } else {
                if line.is_finished() {
                    line.reset();
                }
                line.set_message(text.to_owned());
                line.tick();
            }
            return;
        }
        let Ok(mut told) = self.told.lock() else { return };
        if !text.is_empty() && told.is_none_or(|told| told.elapsed() >= TOLD_EACH) {
            eprintln!("    {text}");
            *told = Some(Instant::now());
        }
    }
}

/// Has the program killed when this process dies, however that comes: nothing goes on that no journal tells of.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no other way to say something between fork and exec")]
fn dies_with_us(command: &mut tokio::process::Command) {
    let parent = rustix::process::getpid();
    // SAFETY: two system calls, which take no lock and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before that.
            match rustix::process::getppid() == Some(parent) {
                true => Ok(()),
                false => Err(std::io::ErrorKind::Interrupted.into()),
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn dies_with_us(_command: &mut tokio::process::Command) {}
