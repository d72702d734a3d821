//! `verifier watch`: what was lately written is compared again and again, and everything at a rate in the background.

mod arguments;
mod courtesy;
mod serve;
mod state;

use std::sync::Arc;
use std::time::Duration;

use causeway_core::time::now_ms;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until};

use crate::compare::{Name, Naming, Outcome, Progress, Settings, Traffic, compare, compare_named};
use crate::config::{Channel, Config};
use crate::error::{Error, Result};
use crate::pair::{Session, Task};
use crate::report::ChannelReport;
use crate::results::Results;
use crate::undo::Undoable;
use crate::window::{Window, Written};

pub(crate) use arguments::Watch;
use state::State;

/// How long to wait after something failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs `verifier watch` until it is told to stop, or for as long as was asked for; whether nothing differs at the end.
///
/// # Errors
///
/// [`Error::Usage`] for a bad configuration, and [`Error::Local`] if the metrics cannot be served. What cannot be reached later
/// is told and tried again.
pub(crate) async fn run(arguments: &Watch) -> Result<bool> {
    let session = Session::begin(&arguments.common, arguments.list_max)?;
    arguments.result.as_deref().map(Results::create).transpose()?;
    let state = |channel: &Channel| Arc::new(State::new(&channel.name, &session.config.sites, arguments));
    let channels: Vec<Arc<State>> = session.config.channels.iter().map(state).collect();
    let serving = serve::serve(arguments.listen, channels.clone()).await?;
    let all = session.config.channels.iter().zip(&channels).map(async |(channel, state)| {
        tokio::join!(
            lately(&session, channel, state, arguments),
            wholly(&session, channel, state, arguments)
        );
    });
    let end = async {
        match arguments.for_time {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = join_all(all) => {}
        error = serving => return Err(error),
        () = stopped() => {}
        () = end => {}
    }
    channels.iter().for_each(|state| state.say_end());
    Ok(channels.iter().all(|state| state.is_equal()))
}

/// Returns when the process is told to stop.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// Compares what was written since the last time, and what differed then. Opens both sites each time: tables come and go.
async fn lately(session: &Session<'_>, channel: &Channel, state: &State, arguments: &Watch) {
    loop {
        let next = Instant::now() + arguments.every;
        let mut task = Lately { state, window: Window::new(Some(state.known()), None).ok().flatten() };
        match session.run(channel, &mut task).await {
            Ok(_) => {}
            Err(Error::Gone(reason)) => state.skip(&reason),
            Err(error) => {
                state.fail(&error);
                sleep(AGAIN).await;
            }
        }
        sleep_until(next).await;
    }
}

/// Compares everything, at the rate that was asked for, one time after the other.
async fn wholly(session: &Session<'_>, channel: &Channel, state: &State, arguments: &Watch) {
    loop {
        let next = Instant::now() + arguments.whole_every;
        let (start, begin) = (Instant::now(), now_ms());
        let compared = session.run(channel, &mut Wholly { state, begin }).await;
        let kept = compared.and_then(|outcome| match &arguments.result {
            Some(path) => {
                let channels = vec![ChannelReport { name: channel.name.clone(), outcome }];
                Results::create(path)?.add(&session.report(channels, start.elapsed()), begin).map(drop)
            }
            None => Ok(()),
        });
        if let Err(error) = kept {
            state.fail(&error);
            sleep(AGAIN).await;
            continue;
        }
        sleep_until(next).await;
    }
}

struct Lately<'a> {
    state: &'a State,
    /// What of time was not compared yet.
    window: Option<Window>,
}

impl Task for Lately<'_> {
    async fn run<R: Undoable>(
        &mut self,
        (config, channel): (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        let open = self.state.open();
        let written = match self.window {
            Some(window) => Some(Written::ask(config, &channel.name, window).await?),
            None => None,
        };
        let mut names = Names { open: open.clone(), written };
        let outcome = compare_named(sites, &mut names, traffic, progress, settings).await?;
        let until = names.written.as_ref().and_then(Written::until);
        self.state.compared_lately(&open, &outcome, self.window, until);
        Ok(outcome)
    }
}

/// What differed, and then what was written.
struct Names {
    open: Vec<Name>,
    written: Option<Written>,
}

impl Naming for Names {
    async fn next(&mut self) -> Result<Option<Vec<Name>>> {
        match (self.open.is_empty(), &mut self.written) {
            (false, _) => Ok(Some(std::mem::take(&mut self.open))),
            (true, Some(written)) => written.next().await,
            (true, None) => Ok(None),
        }
    }
}

struct Wholly<'a> {
    state: &'a State,
    begin: u64,
}

impl Task for Wholly<'_> {
    async fn run<R: Undoable>(
        &mut self,
        _: (&Config, &Channel),
        sites: [&R; 2],
        traffic: &impl Traffic,
        progress: &impl Progress,
        settings: Settings,
    ) -> Result<Outcome> {
        let courtesy = courtesy::of(sites, self.state);
        let outcome = tokio::select! {
            outcome = compare(sites, traffic, progress, settings) => outcome?,
            error = courtesy => return Err(error),
        };
        self.state.compared_wholly(&outcome, self.begin);
        Ok(outcome)
    }
}
