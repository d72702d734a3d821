use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// The channels that an operator paused, in a file beside the log: they stay so over a restart.
#[derive(Debug)]
pub(crate) struct Pauses {
    path: PathBuf,
    paused: BTreeSet<String>,
}

impl Pauses {
    pub(crate) fn open(dir: &Path) -> io::Result<Pauses> {
        let path = dir.join("paused.json");
        let paused = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        Ok(Pauses { path, paused })
    }

    pub(crate) fn contains(&self, channel: &str) -> bool {
        self.paused.contains(channel)
    }

    /// Stored before it takes effect.
    pub(crate) fn set(&mut self, channel: &str, paused: bool) -> io::Result<()> {
        let mut next = self.paused.clone();
        if paused {
            next.insert(channel.to_owned())
        } else {
            next.remove(channel)
        };
        let partial = self.path.with_extension("json.new");
        let text = serde_json::to_vec(&next).map_err(io::Error::other)?;
        let mut file = std::fs::File::create(&partial)?;
        io::Write::write_all(&mut file, &text)?;
        file.sync_all()?;
        std::fs::rename(&partial, &self.path)?;
        self.paused = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_channel_stays_paused_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        Pauses::open(dir.path()).unwrap().set("tags", true).unwrap();
        let mut pauses = Pauses::open(dir.path()).unwrap();
        assert!(pauses.contains("tags") && !pauses.contains("orders"));
        pauses.set("tags", false).unwrap();
        assert!(!Pauses::open(dir.path()).unwrap().contains("tags"));
    }
}
