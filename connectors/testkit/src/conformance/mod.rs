//! What every connector promises, as a list of behaviours that drive nothing but the traits of the
//! contract. A connector runs it with [`run`] against real servers; a [`Capability`] decides what applies.

mod both;
mod drive;
mod source;
mod target;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use causeway_core::{Capability, Connector, Site};
use libtest_mimic::{Arguments, Failed, Trial};

/// What a test writes, as an application would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestWrite {
    /// The key holds this string.
    Set(String, String),
    /// Adds to a counter.
    Incr(String, i64),
    /// Appends to a list.
    Push(String, String),
    /// Sets a field of a hash.
    HSet(String, String, String),
    /// Adds to a field of a hash.
    HIncr(String, String, i64),
    /// Deletes a key.
    Del(String),
    /// The second key holds what the first one held, which is gone.
    Rename(String, String),
    /// The key expires at this time, milliseconds since 1970.
    ExpireAt(String, u64),
}

/// What a key holds, in a form that is the same for all connectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestValue {
    /// `string v`, `list a b` or `hash f v g w` with the fields in order.
    pub text: String,
    /// Milliseconds since 1970.
    pub expire_at: Option<u64>,
}

/// A connector under test with an empty pair of stores of its own, and the test's own way into both.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The connector; always the same one.
    fn connector(&self) -> Arc<dyn Connector>;

    /// Writes at `site`, all in one transaction if there are several.
    ///
    /// # Errors
    ///
    /// The store's.
    async fn write(&self, site: Site, writes: &[TestWrite]) -> Result<()>;

    /// What `key` holds at `site`.
    ///
    /// # Errors
    ///
    /// The store's.
    async fn read(&self, site: Site, key: &str) -> Result<Option<TestValue>>;

    /// Whether the store's stream tells of each write. Else it tells what a key holds whenever it looks, and of several
    /// writes in between only the last one's outcome.
    fn tells_every_write(&self) -> bool {
        true
    }

    /// Makes `site`'s store hold `list x` under `key`, and refuse a string there.
    ///
    /// # Errors
    ///
    /// The store's.
    async fn refuse_strings(&self, site: Site, key: &str) -> Result<()> {
        // What adds to a number is refused by a list.
        self.write(site, &[TestWrite::Push(key.to_owned(), "x".to_owned())]).await
    }

    /// Breaks every connection that the connector has to `site`'s store.
    ///
    /// # Errors
    ///
    /// The store's.
    async fn kill_link(&self, site: Site) -> Result<()>;
}

/// How long one behaviour may take.
const BEHAVIOUR_MAX: Duration = Duration::from_secs(120);

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A promise, and what shows that it is kept.
struct Behaviour {
    name: &'static str,
    applies: fn(Capability) -> bool,
    show: fn(&dyn Subject) -> Running<'_>,
}

macro_rules! behaviours {
    ($($module:ident::$name:ident $(if $needs:ident)?),* $(,)?) => {
        vec![$(Behaviour {
            name: stringify!($name),
            applies: |_capability| true $(&& _capability.$needs)?,
            show: |subject| Box::pin($module::$name(subject)),
        }),*]
    };
}

fn behaviours() -> Vec<Behaviour> {
    behaviours![
        source::a_snapshot_brings_everything_that_exists,
        source::a_stream_goes_on_after_its_snapshot_without_a_hole,
        source::a_stream_without_a_snapshot_brings_what_is_new,
        source::a_stream_resumes_with_exactly_what_was_missed if resumes,
        source::a_lost_position_is_told,
        source::a_transaction_comes_as_one_group if groups,
        source::an_idle_stream_moves_its_position,
        source::a_refreshed_state_stands_where_it_was_read,
        source::what_was_asked_for_is_told_from_what_was_written,
        source::what_the_log_tells_of_is_not_read_again if operations,
        source::an_expired_key_comes_as_a_delete if expiry,
        source::units_say_what_a_change_touches,
        target::a_marker_is_read_back_when_taken_over,
        target::our_own_transactions_pass_as_markers_and_are_not_captured,
        target::batches_take_effect_in_the_order_in_which_they_were_sent,
        target::a_batch_of_an_older_applier_has_no_effect,
        target::each_change_takes_effect_once_whatever_the_link_does,
        target::a_refused_change_names_its_index_and_the_rest_takes_effect,
        target::a_read_keeps_what_exists_if_it_is_told_to,
        target::a_watched_batch_takes_effect_only_if_nobody_touched_its_keys if watch,
        target::a_watch_s_token_passes_behind_all_earlier_writes if watch,
        target::every_key_is_listed_and_none_of_ours,
        target::cleanup_leaves_nothing_of_ours,
        both::the_state_of_an_absent_key_deletes_it,
        both::an_expiry_is_carried_as_absolute_time if expiry,
        both::a_link_cut_on_both_sides_loses_and_doubles_nothing if resumes,
    ]
}

/// Runs all behaviours, each on a fresh subject from `make`, and takes the command line of a test binary.
/// Where `make` gives `None` (no server there, see [`crate::servers`]) or a capability is missing, a
/// behaviour is listed as ignored.
pub fn run<M, F>(make: M) -> ExitCode
where
    M: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Option<Box<dyn Subject>>>,
{
    let arguments = Arguments::from_args();
    let make = Arc::new(make);
    let capability = runtime().block_on(async { Some(make().await?.connector().capability()) });
    let trials = behaviours()
        .into_iter()
        .map(|behaviour| {
            let ignored = !capability.is_some_and(behaviour.applies);
            let (make, show) = (Arc::clone(&make), behaviour.show);
            let trial = move || runtime().block_on(judge(&*make, show));
            Trial::test(behaviour.name, trial).with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

async fn judge<M, F>(make: &M, show: fn(&dyn Subject) -> Running<'_>) -> Result<(), Failed>
where
    M: Fn() -> F,
    F: Future<Output = Option<Box<dyn Subject>>>,
{
    let subject = make().await.ok_or("there is no server any more")?;
    match tokio::time::timeout(BEHAVIOUR_MAX, show(&*subject)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}").into()),
        Err(_) => Err(format!("took longer than {} s", BEHAVIOUR_MAX.as_secs()).into()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    }
}
