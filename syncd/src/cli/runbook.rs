//! `syncd runbook`: checks, runs, resumes and shows runbooks ([`crate::runbook`]).

mod show;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::world::Outside;
use super::args::{Common, Programs, RunbookCheckArgs, RunbookCommand, RunbookFile, RunbookRunArgs};
use super::{Failure, output};
use crate::config::Config;
use crate::runbook::{
    Ended, Journal, JournalError, RunState, Runbook, Runner, StepWord, Who, folder, plan, read,
};

pub(super) async fn runbook(common: &Common, config: &Config, asked: &RunbookCommand) -> Result<(), Failure> {
    for (given, flag) in [(&common.channel, "--channel"), (&common.site, "--site")] {
        if given.is_some() {
            return Err(Failure::Usage(format!("{flag}: a runbook's steps name what they are about")));
        }
    }
    match asked {
        RunbookCommand::Check(check) => self::check(common, config, check),
        RunbookCommand::Run(run) if run.dry_run => self::check(common, config, &run.check),
        RunbookCommand::Run(run) => begin(common, config, run).await,
        RunbookCommand::Resume(resume) => {
            let book = Runbook::load(&resume.file.file, config)?;
            let journal = Journal::open(&folder(config), &book.name)?;
            resumable(&book, config, &RunState::of(journal.lines()), resume.approve)?;
            let outside = outside(common, config, &book, &resume.programs)?;
            go(common, config, &book, journal, &outside, Start::Resume { approve: resume.approve }).await
        }
        RunbookCommand::Status(RunbookFile { file }) => status(common, config, file),
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Failure::Failed(error.to_string())
    }
}

fn check(common: &Common, config: &Config, check: &RunbookCheckArgs) -> Result<(), Failure> {
    let book = Runbook::load(&check.file.file, config)?;
    // A parameter may be given later: so far it is only named.
    let given = |set: &[(String, String)]| match book.with(set) {
        Ok(values) => Ok(values),
        Err(_) if set.is_empty() => Ok(BTreeMap::new()),
        Err(wrong) => Err(Failure::Usage(wrong)),
    };
    let steps = plan(&book, &given(&check.set)?);
    if common.json {
        return output::json(&serde_json::json!({
            "runbook": book.name,
            "about": book.about,
            "file": book.path,
            "digest": book.digest,
            "params": book.params.iter().map(|param| &param.name).collect::<Vec<_>>(),
            "steps": steps,
        }));
    }
    output::line(&show::plan(&book, &steps, output::colour()))
}

async fn begin(common: &Common, config: &Config, run: &RunbookRunArgs) -> Result<(), Failure> {
    let book = Runbook::load(&run.check.file.file, config)?;
    let params = book.with(&run.check.set).map_err(Failure::Usage)?;
    let outside = outside(common, config, &book, &run.programs)?;
    let journal = Journal::open(&folder(config), &book.name)?;
    let state = RunState::of(journal.lines());
    if state.is_open() && !run.anew {
        let file = book.path.display();
        return Err(Failure::Usage(format!(
            "run {} of `{}` is not at its end, it stands at `{}`: go on with `syncd runbook resume {file}`, or give it up \
             with `syncd runbook run {file} --anew`",
            state.run,
            book.name,
            standing(&state)
        )));
    }
    go(common, config, &book, journal, &outside, Start::Begin { params }).await
}

fn standing(state: &RunState) -> &str {
    let step = state.position.and_then(|position| state.steps.get(position));
    step.map_or("its end", |step| step.name.as_str())
}

/// Refuses what cannot be gone on with.
fn resumable(book: &Runbook, config: &Config, state: &RunState, approve: bool) -> Result<(), Failure> {
    let (file, name) = (book.path.display(), &book.name);
    let usage = |message: String| Err(Failure::Usage(message));
    if state.run == 0 {
        return usage(format!("`{name}` was never run: begin with `syncd runbook run {file}`"));
    }
    if state.over {
        return usage(format!(
            "run {} of `{name}` is over: begin a new one with `syncd runbook run {file}`",
            state.run
        ));
    }
    if state.digest != book.digest {
        return usage(format!(
            "{file} has changed since run {} began, so it is not known what would be gone on with: put the text back as it \
             was, or begin anew with `syncd runbook run {file} --anew`",
            state.run
        ));
    }
    if state.link != config.link {
        return usage(format!(
            "run {} of `{name}` is of the link {}, the configuration of {}",
            state.run, state.link, config.link
        ));
    }
    let here =
        state.position.and_then(|position| Some((book.steps.get(position)?, state.steps.get(position)?)));
    let waits = here.is_some_and(|(step, state)| {
        let was_asked = matches!(state.word, StepWord::Waiting | StepWord::Started | StepWord::Interrupted);
        step.kind.as_str() == "approve" && was_asked
    });
    match approve && !waits {
        true => usage(format!("--approve: nothing waits for it, the run stands at `{}`", standing(state))),
        false => Ok(()),
    }
}

fn outside(
    common: &Common,
    config: &Config,
    book: &Runbook,
    programs: &Programs,
) -> Result<Outside, Failure> {
    let verifies =
        book.steps.iter().any(|step| matches!(step.kind.as_str(), "verify" | "repair" | "backfill"));
    Outside::new(common, config, programs.verifier.as_deref(), verifies)
}

enum Start {
    Begin { params: BTreeMap<String, String> },
    Resume { approve: bool },
}

async fn go(
    common: &Common,
    config: &Config,
    book: &Runbook,
    journal: Journal,
    outside: &Outside,
    start: Start,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stop = CancellationToken::new();
    let by = Mutex::new("SIGTERM");
    let name = || by.lock().map_or_else(|held| **held.get_ref(), |by| *by).to_owned();
    let mut runner = Runner::new(book, config, outside, journal, Who::is_here(), (stop.clone(), &name));
    match start {
        Start::Begin { params } => runner.begin(params)?,
        Start::Resume { approve } => runner.resume(approve)?,
    }
    let ended = {
        let going = runner.go();
        tokio::pin!(going);
        loop {
            let told = tokio::select! {
                ended = &mut going => break ended?,
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if let Ok(mut by) = by.lock() {
                *by = told;
            }
            stop.cancel();
        }
    };
    outside.quiet();
    let state = runner.state().clone();
    show::run(common, book, &state, false)?;
    let file = book.path.display();
    match ended {
        Ended::Done => Ok(()),
        Ended::Failed { step, code } => {
            let message =
                format!("`{step}` failed; once that is mended, go on with `syncd runbook resume {file}`");
            Err(if code == 1 { Failure::No(Some(message)) } else { Failure::Failed(message) })
        }
        Ended::Waits { step } => Err(Failure::No(Some(format!(
            "`{step}` waits for approval: go on with `syncd runbook resume {file} --approve`"
        )))),
        Ended::Stopped { step } => Err(Failure::Failed(format!(
            "stopped by {} at `{step}`; go on with `syncd runbook resume {file}`",
            name()
        ))),
    }
}

fn status(common: &Common, config: &Config, file: &std::path::Path) -> Result<(), Failure> {
    let book = Runbook::load(file, config)?;
    let (lines, runs) = read(&folder(config), &book.name)?.unwrap_or_default();
    let state = RunState::of(&lines);
    if state.run == 0 {
        let message =
            format!("`{}` was never run: begin with `syncd runbook run {}`", book.name, file.display());
        return Err(Failure::No(Some(message)));
    }
    show::run(common, &book, &state, runs)
}
