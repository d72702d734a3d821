//! Opens both sites of each channel, whatever their store, for what is done with them.

use std::time::{Duration, Instant};

use crate::cli::Common;
use crate::compare::{Judge, Outcome, Progress, Settings, Traffic};
use crate::config::{self, Channel, Config, Store, Wanted};
use crate::daemon::{self, Daemons};
use crate::error::Result;
use crate::pace::Rates;
use crate::progress::Bar;
use crate::report::{ChannelReport, Report};
use crate::undo::Undoable;
use crate::{elasticsearch, mysql, redis};

/// How often a key that differs is read again before it is undecided.
const ROUNDS_MAX: usize = 6;

/// Something that is done with a channel.
pub(crate) trait Task {
    /// `sites` are both of them, the link's first one first.
    async fn run<R: Undoable>(
        &mut self,
        of: (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome>;
}

/// What all channels of one run have in common.
pub(crate) struct Session<'a> {
    common: &'a Common,
    pub(crate) config: Config,
    client: reqwest::Client,
    settings: Settings,
}

impl<'a> Session<'a> {
    /// Reads the configuration; opens nothing yet.
    ///
    /// # Errors
    ///
    /// The configuration's.
    pub(crate) fn begin(common: &'a Common, list_max: usize) -> Result<Session<'a>> {
        // There is one provider in this build; set, so that no other crate's default decides.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wanted = Wanted { channel: common.channel.clone(), tenant: common.tenant.clone() };
        let settings = Settings {
            judge: Judge { expiry_tolerance_ms: common.expiry_tolerance.as_millis() as u64 },
            list_max,
            rounds_max: ROUNDS_MAX,
            sample: None,
        };
        let config = config::load(&common.config, &wanted)?;
        Ok(Session { common, config, client: daemon::client(daemon::API_TIMEOUT)?, settings })
    }

    /// What came of `channels`.
    pub(crate) fn report(&self, channels: Vec<ChannelReport>, took: Duration) -> Report {
        Report {
            link: self.config.link.clone(),
            sites: self.config.sites.clone(),
            tenant: self.common.tenant.clone(),
            window: None,
            sample: None,
            took,
            list_max: self.settings.list_max,
            channels,
        }
    }

    /// Opens both sites of `channel`, and does `task` with them.
    ///
    /// # Errors
    ///
    /// The stores', and the task's.
    pub(crate) async fn run(&self, channel: &Channel, task: &mut impl Task) -> Result<Outcome> {
        let Session { common, config, client, settings } = self;
        let traffic = Daemons::new(client, config, channel, common.settle);
        let (bar, rates) =
            (Bar::new(&channel.name), Rates { ops: common.ops_per_second, bytes: common.bytes_per_second });
        let of = (config, channel);
        match &channel.store {
            Store::Redis(scope) => {
                let [first, second] = redis::open_pair(channel, scope, &config.sites, rates).await?;
                narrowed(task, of, [&first, &second], &traffic, &bar, *settings).await
            }
            Store::Mysql(tables) => {
                let [first, second] = mysql::open_pair(channel, tables, &config.sites, rates).await?;
                narrowed(task, of, [&first, &second], &traffic, &bar, *settings).await
            }
            Store::Elasticsearch(indices) => {
                let [first, second] =
                    elasticsearch::open_pair(channel, indices, &config.sites, rates).await?;
                narrowed(task, of, [&first, &second], &traffic, &bar, *settings).await
            }
        }
    }
}

/// Does `task` with each channel that is wanted, one after the other; what came of all of them.
///
/// # Errors
///
/// The configuration's, the stores', and the task's.
pub(crate) async fn each(common: &Common, list_max: usize, task: &mut impl Task) -> Result<Report> {
    let start = Instant::now();
    let session = Session::begin(common, list_max)?;
    let mut channels = Vec::new();
    for channel in &session.config.channels {
        let outcome = session.run(channel, task).await?;
        channels.push(ChannelReport { name: channel.name.clone(), outcome });
    }
    Ok(session.report(channels, start.elapsed()))
}

/// With the parts that differ of what differs at the end.
async fn narrowed<R: Undoable>(
    task: &mut impl Task,
    of: (&Config, &Channel),
    sites: [&R; 2],
    traffic: &impl Traffic,
    progress: &impl Progress,
    settings: Settings,
) -> Result<Outcome> {
    let mut outcome = task.run(of, sites, traffic, progress, settings).await?;
    outcome.narrow(sites).await?;
    Ok(outcome)
}
