//! Keeps what is about to be overwritten.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use causeway_core::time::{now_ms, rfc3339};

use super::file::{Header, Record, UndoFile, exists};
use super::{Held, Keep, Undoable};
use crate::compare::{Difference, State};
use crate::config::Config;
use crate::error::Result;

/// Writes the undo file of one run. There is none before something is to be kept.
pub(crate) struct Keeper<'a> {
    arguments: &'a Keep,
    what: String,
    open: Option<(PathBuf, UndoFile)>,
}

impl<'a> Keeper<'a> {
    /// `what` overwrites the keys: `repair from dc`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`](crate::error::Error::Usage) if the file that was named exists.
    pub(crate) fn new(arguments: &'a Keep, what: String) -> Result<Keeper<'a>> {
        match &arguments.undo {
            Some(path) if path.symlink_metadata().is_ok() => Err(exists(path)),
            _ => Ok(Keeper { arguments, what, open: None }),
        }
    }

    /// The file, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.open.as_ref().map(|(path, _)| path.as_path())
    }

    /// Keeps what site `to` holds of `keys`, of which each is to be as the other site has it in [`Difference::sites`]. All of
    /// it is on disk afterwards. Indices of those of which nothing can be kept, ascending: they must not be overwritten.
    ///
    /// # Errors
    ///
    /// The site's and the file's: nothing of `keys` may be overwritten then.
    pub(crate) async fn keep<R: Undoable>(
        &mut self,
        config: &Config,
        channel: &str,
        (to, site): (usize, &R),
        keys: &[&Difference],
    ) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        if self.arguments.no_undo || keys.is_empty() {
            return Ok(left);
        }
        let value_max = self.arguments.undo_value_max;
        let file = self.file(config)?;
        let mut at = 0;
        for some in keys.chunk_by(|a, b| a.space == b.space) {
            let Some(Difference { space, .. }) = some.first() else { continue };
            let names: Vec<Bytes> = some.iter().map(|key| key.name.clone()).collect();
            let mut take = |n: usize, held: Held| {
                let Some(key) = some.get(n) else { return Ok(()) };
                let held = match held {
                    Held::TooLarge => {
                        left.push(at + n);
                        return Ok(());
                    }
                    Held::Absent => None,
                    // Its digest only tells later that it is there again.
                    Held::Value(value) => {
                        let known = key.sites.get(to).copied().flatten().map_or(0, |state| state.digest);
                        Some((State { what: "kept", digest: known, expire_at: value.expire_at }, value))
                    }
                };
                let put = key.sites.get(1 - to).copied().flatten();
                if put.is_none() && held.is_none() {
                    return Ok(());
                }
                let (channel, site) = (channel.to_owned(), config.sites.get(to).cloned().unwrap_or_default());
                file.add(&Record { channel, site, space: space.clone(), name: key.name.clone(), put, held })
            };
            site.keep(space, &names, value_max, &mut take).await?;
            at += some.len();
        }
        file.sync()?;
        left.sort_unstable();
        Ok(left)
    }

    fn file(&mut self, config: &Config) -> Result<&mut UndoFile> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let time = rfc3339(now_ms());
                let path = self
                    .arguments
                    .undo
                    .clone()
                    .unwrap_or_else(|| config.data.join(file_name(&config.link, &time)));
                let file = UndoFile::create(&path, &Header::new(&config.link, &self.what, time))?;
                // At once: it is needed most where this run breaks off.
                eprintln!("verifier: what is overwritten is kept in {}", path.display());
                (path, file)
            }
        };
        Ok(&mut self.open.insert(open).1)
    }
}

fn file_name(link: &str, time: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let link: String = link.chars().map(plain).collect();
    format!("causeway-undo-{link}-{}.jsonl", time.replace(':', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_link_and_time() {
        assert_eq!(
            file_name("dc/cloud", "2026-03-01T02:00:00.250Z"),
            "causeway-undo-dc_cloud-2026-03-01T02-00-00.250Z.jsonl"
        );
    }
}
