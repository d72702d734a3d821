//! Where the programs are that are run besides this one.

use std::path::{Path, PathBuf};

/// This program.
///
/// # Errors
///
/// The system does not say where it is.
pub(super) fn this() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot tell where this program is: {error}"))
}

/// The verifier that was named, or the one that lies beside this program.
///
/// # Errors
///
/// As [`this`], if none was named.
pub(super) fn verifier(named: Option<&Path>) -> Result<PathBuf, String> {
    named.map_or_else(|| Ok(this()?.with_file_name("verifier")), |path| Ok(path.to_owned()))
}
