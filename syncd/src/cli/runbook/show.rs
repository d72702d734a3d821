//! A runbook's plan and its runs, for a person or a program.

use std::time::SystemTime;

use serde::Serialize;

use super::super::args::Common;
use super::super::table::{Align, Table, Tone, WIDTH, paint, wrap};
use super::super::{Failure, output};
use crate::config::format_duration;
use crate::runbook::{PlannedStep, RunState, Runbook, StepState, StepWord, Who};
use crate::status::parse_rfc3339;

pub(super) fn plan(book: &Runbook, steps: &[PlannedStep], colour: bool) -> String {
    let mut lines = vec![format!("runbook {}: {} steps", book.name, steps.len())];
    if let Some(about) = &book.about {
        lines.extend(wrap(about, WIDTH));
    }
    for param in &book.params {
        let given = match &param.default {
            Some(default) => format!("{default} unless --set {}=… says otherwise", param.name),
            None => format!("to be given by --set {}=…", param.name),
        };
        let about = param.about.as_ref().map(|about| format!(": {about}")).unwrap_or_default();
        lines.extend(wrap(&format!("${}{about}; {given}", param.name), WIDTH));
    }
    lines.push("A step that cannot be done at all stops the run; resume tries it again.".to_owned());
    for (number, step) in steps.iter().enumerate() {
        let kind = if step.kind == step.name { String::new() } else { format!(" ({})", step.kind) };
        lines.push(String::new());
        lines.push(paint(&format!("{}. {}{kind}", number + 1, step.name), Tone::Good, colour));
        let only = step.only.as_ref().map(|only| format!("{only}: ")).unwrap_or_default();
        let bounds = format!("bounds: {}", step.bounds);
        let failure = format!("if the answer is no: {}", step.on_failure);
        for (text, tone) in
            [(format!("{only}{}", step.does), Tone::Plain), (bounds, Tone::Faint), (failure, Tone::Faint)]
        {
            lines.extend(
                wrap(&text, WIDTH - 4).iter().map(|line| format!("    {}", paint(line, tone, colour))),
            );
        }
    }
    lines.join("\n")
}

/// As `--json` gives it.
#[derive(Serialize)]
struct Shown<'a> {
    runbook: &'a str,
    file: String,
    run: u64,
    state: &'static str,
    begun: Option<&'a str>,
    last: Option<&'a str>,
    who: Option<&'a Who>,
    digest: &'a str,
    changed: bool,
    params: &'a std::collections::BTreeMap<String, String>,
    steps: Vec<ShownStep<'a>>,
}

#[derive(Serialize)]
struct ShownStep<'a> {
    name: &'a str,
    kind: Option<&'static str>,
    state: StepWord,
    attempt: u32,
    started: Option<&'a str>,
    ended: Option<&'a str>,
    took_seconds: Option<f64>,
    outcome: Option<&'a str>,
    waits_for: Option<String>,
    by: Option<&'a Who>,
}

/// What a run has come to; `runs`: somebody is at it.
pub(super) fn run(common: &Common, book: &Runbook, state: &RunState, runs: bool) -> Result<(), Failure> {
    if !common.json {
        return output::line(&render(book, state, runs, SystemTime::now(), output::colour()));
    }
    let step = |step| ShownStep::of(step, book, runs);
    output::json(&Shown {
        runbook: &book.name,
        file: book.path.display().to_string(),
        run: state.run,
        state: word(state, runs),
        begun: state.begun.as_deref(),
        last: state.last.as_deref(),
        who: state.who.as_ref(),
        digest: &state.digest,
        changed: state.digest != book.digest,
        params: &state.params,
        steps: state.steps.iter().map(step).collect(),
    })
}

impl<'a> ShownStep<'a> {
    fn of(step: &'a StepState, book: &Runbook, runs: bool) -> ShownStep<'a> {
        let took = took(step, None);
        ShownStep {
            name: &step.name,
            kind: book.steps.iter().find(|known| known.name == step.name).map(|known| known.kind.as_str()),
            state: step.word,
            attempt: step.attempt,
            started: step.started.as_deref(),
            ended: step.ended.as_deref(),
            took_seconds: took.map(|took| took.as_secs_f64()),
            outcome: step.outcome.as_deref().filter(|_| step.word != StepWord::Waiting),
            waits_for: waits_for(step, book, runs),
            by: step.by.as_ref(),
        }
    }
}

fn took(step: &StepState, now: Option<SystemTime>) -> Option<std::time::Duration> {
    let end = step.ended.as_deref().map_or(now, parse_rfc3339)?;
    end.duration_since(parse_rfc3339(step.started.as_deref()?)?).ok()
}

/// Of the whole run.
fn word(state: &RunState, runs: bool) -> &'static str {
    let here = state.position.and_then(|position| state.steps.get(position)).map(|step| step.word);
    match (state.over, here) {
        (true, _) if state.position.is_none() => "done",
        (true, _) => "abandoned",
        _ if runs => "running",
        (_, Some(StepWord::Waiting)) => "waiting",
        (_, Some(StepWord::Failed)) => "failed",
        _ => "interrupted",
    }
}

/// What an open step waits for, or a person has to do about it.
fn waits_for(step: &StepState, book: &Runbook, runs: bool) -> Option<String> {
    let file = book.path.display();
    match step.word {
        StepWord::Waiting => step.outcome.clone(),
        StepWord::Started if runs => {
            let kind = &book.steps.iter().find(|known| known.name == step.name)?.kind;
            let planned = plan_of(book, &step.name);
            planned.map(|does| format!("under way: {does}")).or_else(|| Some(kind.as_str().to_owned()))
        }
        StepWord::Started | StepWord::Interrupted => {
            Some(format!("nobody is at it: `syncd runbook resume {file}`"))
        }
        _ => None,
    }
}

fn plan_of(book: &Runbook, name: &str) -> Option<String> {
    let steps = crate::runbook::plan(book, &std::collections::BTreeMap::new());
    steps.into_iter().find(|step| step.name == name).map(|step| step.does)
}

fn render(book: &Runbook, state: &RunState, runs: bool, now: SystemTime, colour: bool) -> String {
    let mut table = Table::new(&[
        ("STEP", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("TRY", Align::Right),
        ("STARTED", Align::Left),
        ("TOOK", Align::Right),
    ]);
    for (index, step) in state.steps.iter().enumerate() {
        let tone = match step.word {
            StepWord::Done => Tone::Good,
            StepWord::Failed => Tone::Bad,
            StepWord::Pending | StepWord::Skipped => Tone::Faint,
            StepWord::Started | StepWord::Waiting | StepWord::Interrupted => Tone::Busy,
        };
        let kind = book.steps.iter().find(|known| known.name == step.name).map(|known| known.kind.as_str());
        let tries = if step.attempt > 0 { step.attempt.to_string() } else { String::new() };
        // One that died took who knows how long.
        let until = (runs && state.position == Some(index)).then_some(now);
        let started = step.started.as_deref().map(|time| short(time).to_owned());
        table.row(vec![
            (fitting(&step.name), Tone::Plain),
            (kind.unwrap_or("?").to_owned(), Tone::Plain),
            (step.word.as_str().to_owned(), tone),
            (tries, Tone::Plain),
            (started.unwrap_or_default(), Tone::Plain),
            (took(step, until).map(format_duration).unwrap_or_default(), Tone::Plain),
        ]);
        let tone = if step.word == StepWord::Failed { Tone::Bad } else { Tone::Faint };
        if let Some(waits) = waits_for(step, book, runs) {
            table.note(waits, Tone::Busy);
        } else if let Some(outcome) = &step.outcome {
            let by = step.by.as_ref().map(|who| format!(", by {who}")).unwrap_or_default();
            table.note(format!("{outcome}{by}"), tone);
        }
    }
    let who = state.who.as_ref().map(|who| format!(" by {who}")).unwrap_or_default();
    let begun = state.begun.as_deref().map(short).unwrap_or_default();
    let head = format!("runbook {}, run {}: {}, begun {begun}{who}", book.name, state.run, word(state, runs));
    let changed = if state.digest == book.digest { "" } else { "\nthe file has changed since the run began" };
    let failed = match state.failed() {
        failed if state.over && !failed.is_empty() => format!("\nfailed on the way: {}", failed.join(", ")),
        _ => String::new(),
    };
    let lines: Vec<String> = wrap(&head, WIDTH);
    format!("{}{changed}\n{}{failed}", lines.join("\n"), table.render(colour))
}

/// A name as the table has room for it.
fn fitting(name: &str) -> String {
    const MAX: usize = 36;
    match name.chars().count() > MAX {
        true => name.chars().take(MAX - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

/// Without the milliseconds, which nobody needs in a table.
fn short(time: &str) -> &str {
    time.get(..19).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runbook::{Event, Line};

    fn book(folder: &std::path::Path) -> Runbook {
        let text = "[link]\nname = \"l\"\nsites = [\"dc\", \"cloud\"]\n[[channel]]\nname = \"tags\"\nstore = \"redis\"\n\
                    direction = \"both\"\nsnapshot = \"dc\"\ndc = { url = \"redis://127.0.0.1:1\" }\n\
                    cloud = { url = \"redis://127.0.0.1:2\" }\n";
        std::fs::write(folder.join("syncd.toml"), text).unwrap();
        let config = crate::config::Config::load(folder.join("syncd.toml")).unwrap();
        let name = "a-name-that-is-as-long-as-names-of-steps-may-be-which-is-64-chars";
        let name = &name[..64];
        let yaml = format!(
            "runbook: b\nsteps:\n- verify: {{ name: {name}, on_failure: continue }}\n- approve: {{ ask: '{}' }}\n\
             - wait: {{ for: 1m }}",
            "May it? ".repeat(40)
        );
        Runbook::parse(std::path::Path::new("b.yaml"), &yaml, &config).unwrap()
    }

    fn state(book: &Runbook) -> RunState {
        let who = Who { user: "alice".into(), host: "h".repeat(60), pid: 1 };
        let steps: Vec<String> = book.steps.iter().map(|step| step.name.clone()).collect();
        let first = steps[0].clone();
        let started =
            |step: &str| Event::Started { step: step.into(), attempt: 1, resumed: false, window: None };
        let events = [
            Event::Begin {
                format: 1,
                who,
                version: "0".into(),
                runbook: "b".into(),
                file: "b.yaml".into(),
                digest: book.digest.clone(),
                link: "l".into(),
                params: Default::default(),
                steps,
            },
            started(&first),
            Event::Failed {
                step: first,
                outcome: "not equal, 7 different; ".repeat(9),
                code: 1,
                then: "continue".into(),
                by: None,
            },
            started("approve"),
            Event::Waiting { step: "approve".into(), what: "for approval: May it?".into() },
        ];
        let line = |(i, event)| Line { time: format!("2026-03-01T02:0{i}:00.000Z"), run: 3, event };
        RunState::of(&events.into_iter().enumerate().map(line).collect::<Vec<_>>())
    }

    #[test]
    fn the_table_says_everything_in_a_hundred_columns() {
        let folder = tempfile::tempdir().unwrap();
        let book = book(folder.path());
        let state = state(&book);
        for runs in [false, true] {
            let text = render(&book, &state, runs, SystemTime::now(), false);
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            let word = if runs { "running" } else { "waiting" };
            for expected in
                [word, "run 3", "failed", "not equal, 7", "May it?", "pending", "1 min 0 s", "alice at"]
            {
                assert!(text.contains(expected), "{expected} in\n{text}");
            }
        }
        let steps = crate::runbook::plan(&book, &Default::default());
        let text = plan(&book, &steps, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.contains("if the answer is no: the run goes on") && text.contains("bounds: exactly 1 min"),
            "{text}"
        );
    }
}
