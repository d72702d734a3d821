use causeway_core::Pattern;

use super::connect::connect;
use super::read::EsReader;
use crate::config::Channel;
use crate::error::{Error, Result};
use crate::pace::Rates;

/// Which indices a channel carries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Indices {
    /// As the configuration has them.
    pub(crate) globs: Vec<String>,
    pub(crate) exclude: Vec<Pattern>,
}

impl Indices {
    /// What begins with a dot is never carried: ours does.
    pub(super) fn carries(&self, index: &str) -> bool {
        let included = self.globs.iter().any(|glob| Pattern::new(glob).matches(index.as_bytes()));
        let excluded = self.exclude.iter().any(|pattern| pattern.matches(index.as_bytes()));
        !index.starts_with('.') && included && !excluded
    }
}

/// Connects to both sites of `channel`.
///
/// # Errors
///
/// [`Error::Usage`] if both are the same cluster; [`Error::Store`] if one cannot be reached or read.
pub(crate) async fn open_pair(
    channel: &Channel,
    indices: &Indices,
    sites: &[String; 2],
    rates: Rates,
) -> Result<[EsReader; 2]> {
    let open = |n: usize| connect(&channel.name, &sites[n], &channel.endpoints[n], rates);
    let (first, second) = futures_util::try_join!(open(0), open(1))?;
    if !first.identity.is_empty() && first.identity == second.identity {
        return Err(Error::Usage(format!(
            "{}: {} ({}) and {} ({}) are the same cluster; there is nothing to compare",
            channel.name, sites[0], first.site.endpoint, sites[1], second.site.endpoint
        )));
    }
    Ok([first, second].map(|link| EsReader::new(link, indices.clone())))
}
