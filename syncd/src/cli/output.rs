//! To stdout, for a person or a program.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Failure;

/// Whether stdout shows colours: a terminal, and the user did not say no (https://no-color.org).
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes `text` and a newline. A reader that went away (`| head`) ends the command quietly.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::No(None)),
        Err(error) => Err(Failure::Failed(format!("cannot write the result: {error}"))),
    }
}

/// Writes `value` as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::Failed(format!("cannot write the result: {error}")))?;
    line(&text)
}

/// As [`colour`], of stderr.
pub(super) fn colour_stderr() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
