use std::path::PathBuf;

use clap::Args;

/// What is kept of what is overwritten.
#[derive(Debug, Args)]
pub(crate) struct Keep {
    /// Keep what is overwritten in this file, for `verifier undo`; it must not exist yet. Left out: a file with the time in
    /// its name, beside the log's folder
    #[arg(long, value_name = "FILE", conflicts_with = "no_undo")]
    pub(crate) undo: Option<PathBuf>,
    /// Keep nothing of what is overwritten: there is no way back then
    #[arg(long)]
    pub(crate) no_undo: bool,
    /// A larger value is not kept, and so not overwritten: 64MiB, 1GiB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub(crate) undo_value_max: u64,
}

/// Exit code 0: all keys hold again what they held, at both sites; 1: some do not, or nothing was done yet.
#[derive(Debug, Args)]
#[command(
    after_help = "A key that somebody wrote since the repair stays as it is. What is put back is a write at that site \
like any other: it goes on to the other site, so that both end with the same.

Exit code 0: all keys hold again what they held, at both sites; 1: some do not, or nothing was done yet.

Examples:
  verifier undo --config syncd.toml data/causeway-undo-dc-cloud-….jsonl          what would be done
  verifier undo --config syncd.toml data/causeway-undo-dc-cloud-….jsonl --yes    do it"
)]
pub(crate) struct Undo {
    /// The daemon's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The undo file that the repair has named
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print the plan, and what became of it, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// At most this many keys a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys_per_second: Option<u32>,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

/// Reads `512MiB`, `1GiB`, `4096`.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "allowed is a number of bytes, or with its unit: 64MiB, 1GiB".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_carries_its_unit() {
        assert_eq!((size("512MiB"), size("7")), (Ok(512 << 20), Ok(7)));
        for wrong in ["", "MiB", "1MB", "-1", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
