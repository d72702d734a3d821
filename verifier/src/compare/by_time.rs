use bytes::Bytes;
use causeway_core::Space;

use super::{Name, Naming, Reader};
use crate::error::{Error, Result};
use crate::window::Window;

/// Names the keys that say themselves, in a column, that they were written in a window: at either site, or at one.
pub(crate) struct ByTime<'a, R> {
    sites: [&'a R; 2],
    column: &'a str,
    window: Window,
    /// What is left to look through; the last one is under way.
    left: Vec<(usize, Space)>,
    after: Option<Bytes>,
    has_column: bool,
}

impl<'a, R: Reader> ByTime<'a, R> {
    /// Reads nothing of the keys yet.
    ///
    /// # Errors
    ///
    /// Those of the readers.
    pub(crate) async fn new(
        sites: [&'a R; 2],
        (column, window): (&'a str, Window),
        at: Option<usize>,
    ) -> Result<Self> {
        let mut left = Vec::new();
        for (n, site) in sites.iter().enumerate().filter(|(n, _)| at.is_none_or(|at| at == *n)) {
            left.extend(site.spaces().await?.into_iter().map(|(space, _)| (n, space)));
        }
        Ok(ByTime { sites, column, window, left, after: None, has_column: false })
    }
}

impl<R: Reader> Naming for ByTime<'_, R> {
    async fn next(&mut self) -> Result<Option<Vec<Name>>> {
        while let Some((site, space)) = self.left.last() {
            let [first, second] = self.sites;
            let reader = if *site == 0 { first } else { second };
            let page = reader.page_by_time(space, (self.column, self.window), self.after.as_ref()).await?;
            self.has_column |= page.is_some();
            let page = page.unwrap_or_default();
            if !page.is_empty() {
                self.after = page.last().cloned();
                return Ok(Some(page.into_iter().map(|name| Name::Key(space.clone(), name)).collect()));
            }
            self.after = None;
            self.left.pop();
        }
        match self.has_column {
            true => Ok(None),
            false => Err(Error::Usage(format!(
                "--time-column {}: allowed is a column with dates or times of a table with a primary key, or a date field of \
                 Elasticsearch, and none has that name",
                self.column
            ))),
        }
    }
}
