use causeway_core::Pattern;

use super::connect::connect;
use super::read::EsReader;
use crate::config::Channel;
use crate::error::Result;
use crate::pace::Rates;
use crate::site::must_differ;

/// Which indices a channel carries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Indices {
    /// As the configuration has them.
    pub(crate) globs: Vec<String>,
    /// The same, to be matched.
    pub(crate) include: Vec<Pattern>,
    pub(crate) exclude: Vec<Pattern>,
}

impl Indices {
    /// What begins with a dot is never carried: ours does.
    pub(super) fn carries(&self, index: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(index.as_bytes()));
        !index.starts_with('.') && any(&self.include) && !any(&self.exclude)
    }
}

/// Connects to both sites of `channel`.
///
/// # Errors
///
/// [`Usage`](crate::error::Error::Usage) if both are the same cluster; [`Store`](crate::error::Error::Store) if one cannot be reached or read.
pub(crate) async fn open_pair(
    channel: &Channel,
    indices: &Indices,
    sites: &[String; 2],
    rates: Rates,
) -> Result<[EsReader; 2]> {
    let open = |n: usize| connect(&channel.name, &sites[n], &channel.endpoints[n], rates);
    let (first, second) = futures_util::try_join!(open(0), open(1))?;
    must_differ((&first.site, &first.identity), (&second.site, &second.identity), "cluster")?;
    let read = |link| EsReader::new(link, indices.clone());
    let (first, second) = futures_util::try_join!(read(first), read(second))?;
    Ok([first, second])
}
