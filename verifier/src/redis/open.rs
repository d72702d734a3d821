use redis::cmd;

use super::connect::connect;
use super::link::Link;
use super::read::RedisReader;
use crate::config::Channel;
use crate::error::Result;
use crate::filter::Scope;
use crate::pace::{Pace, Rates};
use crate::site::must_differ;

/// What a server can tell.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Features {
    /// PEXPIRETIME, from 7.0; before, TIME and PTTL.
    pub(super) expire_time: bool,
    /// A stream's entries-added and max-deleted-entry-id, at both sites: from 7.0.
    pub(super) stream_counters: bool,
    /// HPEXPIRETIME, from Redis 7.4 and Valkey 9.
    pub(super) field_expiry: bool,
    /// FUNCTION, from 7.0.
    pub(super) functions: bool,
}

/// Connects to both instances of `channel`.
///
/// # Errors
///
/// [`Usage`](crate::error::Error::Usage) if both are the same server, or one is a cluster; [`Store`](crate::error::Error::Store) if one cannot be
/// reached or read.
pub(crate) async fn open_pair(
    channel: &Channel,
    scope: &Scope,
    sites: &[String; 2],
    rates: Rates,
) -> Result<[RedisReader; 2]> {
    let (first, second) = futures_util::try_join!(
        connect(&channel.name, &sites[0], &channel.endpoints[0]),
        connect(&channel.name, &sites[1], &channel.endpoints[1]),
    )?;
    must_differ((&first.site, &first.run_id), (&second.site, &second.run_id), "server")?;
    let [first, second] = [first, second].map(|server| Link::new(server, Pace::new(rates)));
    let (mut a, mut b) = futures_util::try_join!(features(&first), features(&second))?;
    let both = a.expire_time && b.expire_time;
    (a.stream_counters, b.stream_counters) = (both, both);
    let reader = |link, features| RedisReader::new(link, features, scope.clone());
    Ok([reader(first, a), reader(second, b)])
}

async fn features(link: &Link) -> Result<Features> {
    // No application has a key of ours.
    const NO_KEY: &str = "causeway:{verifier}:none";
    let action = "find out what the server can tell";
    let field = cmd("HPEXPIRETIME").arg(NO_KEY).arg("FIELDS").arg(1).arg("f").take();
    Ok(Features {
        expire_time: link.knows(cmd("PEXPIRETIME").arg(NO_KEY).take(), action).await?,
        stream_counters: false,
        field_expiry: link.knows(field, action).await?,
        functions: link.knows(cmd("FUNCTION").arg("LIST").arg("LIBRARYNAME").arg("-").take(), action).await?,
    })
}
