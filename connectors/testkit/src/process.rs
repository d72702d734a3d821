//! What the kernel says of a process.

use anyhow::{Context, Result};

/// `/proc/PID/stat` counts in these; Linux shows 100 to every program, whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that process `pid` has used, those of its ended children (a server's fork) included.
///
/// # Errors
///
/// There is no such process, or no `/proc`.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in parentheses may hold anything; field 3 follows it. utime is field 14, cstime 17.
    let (_, rest) = text.rsplit_once(") ").with_context(|| format!("{path} has no name"))?;
    let ticks = rest.split(' ').skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}
