use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::connect::connect;
use super::read::MysqlReader;
use super::table::{Tables, common, find};
use crate::config::Channel;
use crate::error::{Error, Result};
use crate::pace::Rates;
use crate::site::must_differ;

/// Connects to both servers of `channel`, and looks at the tables of both.
///
/// # Errors
///
/// [`Error::Usage`] if both are the same server, or no table is carried; [`Error::Store`] if one cannot be reached or read.
pub(crate) async fn open_pair(
    channel: &Channel,
    tables: &Tables,
    sites: &[String; 2],
    rates: Rates,
) -> Result<[MysqlReader; 2]> {
    let open = |n: usize| connect(&channel.name, &sites[n], &channel.endpoints[n], rates);
    let (first, second) = futures_util::try_join!(open(0), open(1))?;
    must_differ((&first.site, &first.identity), (&second.site, &second.identity), "server")?;
    let (a, b) = futures_util::try_join!(find(&first, tables), find(&second, tables))?;
    let all: BTreeSet<String> = a.keys().chain(b.keys()).cloned().collect();
    if all.is_empty() {
        return Err(Error::Usage(format!(
            "{}: neither site has a table that `tables` takes and `exclude` leaves",
            channel.name
        )));
    }
    let both = a.iter().filter_map(|(name, table)| Some((name.clone(), common([table, b.get(name)?]))));
    let both: Arc<BTreeMap<_, _>> = Arc::new(both.collect());
    let all = Arc::new(all);
    let reader = |link, site, own| {
        MysqlReader::new(link, site, tables.clone(), Arc::clone(&both), Arc::clone(&all), own)
    };
    Ok([reader(first, 0, a), reader(second, 1, b)])
}
