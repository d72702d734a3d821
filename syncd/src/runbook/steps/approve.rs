//! `approve`: a person says yes or no.

use super::Outcome;
use crate::runbook::run::Runner;

pub(super) async fn run(runner: &mut Runner<'_>, ask: &str) -> Outcome {
    if runner.take_approval() {
        return Outcome::Done("approved".to_owned(), Some(runner.who.clone()));
    }
    // What is approved should be seen beside the question.
    for step in runner.state().steps.iter().filter(|step| step.attempt > 0) {
        if let Some(outcome) = &step.outcome {
            runner.world.say(&format!("    {}: {}, {outcome}", step.name, step.word.as_str()));
        }
    }
    let stop = runner.stop.clone();
    let answer = tokio::select! {
        biased;
        () = stop.cancelled() => return Outcome::Stopped,
        answer = runner.world.ask(ask) => answer,
    };
    match answer {
        Some(true) => Outcome::Done("approved".to_owned(), Some(runner.who.clone())),
        Some(false) => Outcome::No("not approved".to_owned(), Some(runner.who.clone())),
        None => Outcome::Waits(format!(
            "for approval: {ask} Say `syncd runbook resume {} --approve`",
            runner.book.path.display()
        )),
    }
}
