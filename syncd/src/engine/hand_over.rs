//! The way in for applications: a request is read and checked here, and goes to the capture of its site (`intake.rs`).

use bytes::Bytes;
use causeway_core::{Change, Class, Connector, Site};
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use super::daemon::Daemon;
use super::intake::{By, Handed, NotTaken, Request, Taken};
use super::run::ChannelRun;
use super::shown;
use crate::config::Intake;
use crate::status::{ControlError, HandOver, HandedOver, LineError, NotHandedOver};

/// Errors of one answer.
const ERRORS_MAX: usize = 100;

impl Daemon {
    /// As [`Control::hand_over`](crate::status::Control::hand_over).
    pub(super) async fn take_handed(
        &self,
        run: &ChannelRun,
        request: HandOver,
    ) -> Result<HandedOver, NotHandedOver> {
        let Some(intake) = &run.config.intake else {
            return Err(refused(format!(
                "{}: its stores' streams tell what is written; for the intake say intake = {{ deliver = … }} there",
                run.name()
            )));
        };
        let handing = self.way_in(run, request.site.as_deref())?;
        let key = request.key.map(Bytes::from);
        if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > HandOver::KEY_MAX) {
            let max = HandOver::KEY_MAX;
            return Err(NotHandedOver::Wrong(format!("an idempotency key has 1 to {max} bytes")));
        }
        let mut changes = lines(run.connector().as_ref(), intake, &request.body)?;
        let accepted = changes.len() as u64;
        let request = Request { key, body: xxh3_64(&request.body) };
        for (line, change) in changes.iter_mut().enumerate() {
            change.intake = Some(request.name(line));
        }
        let (told, taken) = oneshot::channel();
        let by = By::Request(request);
        handing.try_send(Handed { by, changes, told }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                NotHandedOver::Full("many requests wait already".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => not_now("capture of this site has ended"),
        })?;
        let taken = taken.await.map_err(|_| not_now("capture of this site has ended"))?;
        let Taken { repeated, durable } = taken.map_err(|not| match not {
            NotTaken::Full(_) => NotHandedOver::Full(not.to_string()),
            NotTaken::NotYet => not_now(&not.to_string()),
            NotTaken::OtherBody => NotHandedOver::OtherBody(not.to_string()),
        })?;
        let unknown = "the log failed meanwhile, and may hold the changes or not";
        durable.await.map_err(|_| not_now(unknown))?;
        Ok(HandedOver { accepted, repeated: repeated as u64 })
    }

    /// To the capture of the site where the application is.
    fn way_in(&self, run: &ChannelRun, site: Option<&str>) -> Result<mpsc::Sender<Handed>, NotHandedOver> {
        let [first, second] = &self.sites;
        let wrong = |what| NotHandedOver::Wrong(format!("{what}: ?site={first} or ?site={second}"));
        let site = match site {
            Some(name) => Site::named(name, &self.sites).ok_or_else(|| wrong("no such site"))?,
            None => {
                let origins = run.directions.iter().map(|direction| direction.from);
                let mut served = origins.filter(|site| self.serves(*site));
                match (served.next(), served.next()) {
                    (Some(site), None) => site,
                    _ => return Err(wrong("both sites are served here, say at which one you are")),
                }
            }
        };
        let name = &self.sites[site.index()];
        let Some(direction) = run.directions.iter().find(|direction| direction.from == site) else {
            return Err(refused(format!("{}: nothing is carried from {name}", run.name())));
        };
        if !self.serves(site) {
            return Err(refused(format!("{name} is not served here: ask the daemon there")));
        }
        let handed = direction.live().and_then(|live| live.handed);
        handed.ok_or_else(|| not_now(&self.elsewhere(run).to_string()))
    }
}

fn refused(text: String) -> NotHandedOver {
    NotHandedOver::Control(ControlError::Refused(text))
}

fn not_now(text: &str) -> NotHandedOver {
    NotHandedOver::NotNow(format!("{text}: try again, with the same idempotency key"))
}

/// The changes of `body`, one a line.
pub(super) fn lines(
    connector: &dyn Connector,
    intake: &Intake,
    body: &Bytes,
) -> Result<Vec<Change>, NotHandedOver> {
    let (mut changes, mut errors) = (Vec::new(), Vec::new());
    for (n, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if changes.len() + errors.len() >= HandOver::LINES_MAX {
            let max = HandOver::LINES_MAX;
            return Err(NotHandedOver::Wrong(format!(
                "more than {max} lines: send some of them in another request"
            )));
        }
        match change(connector, intake, line) {
            Ok(change) => changes.push(change),
            Err(error) => errors.push(LineError { line: n as u64 + 1, error }),
        }
    }
    errors.truncate(ERRORS_MAX);
    match (errors.is_empty(), changes.is_empty()) {
        (false, _) => Err(NotHandedOver::Lines(errors)),
        (true, true) => Err(NotHandedOver::Wrong("no line: the body is a change a line, as JSON".to_owned())),
        (true, false) => Ok(changes),
    }
}

/// The change that `line` is, if it may be handed over.
fn change(connector: &dyn Connector, intake: &Intake, line: &[u8]) -> Result<Change, String> {
    let change = connector.intake(line)?;
    if change.key.name.is_empty() {
        return Err("it has no key".to_owned());
    }
    if !connector.carries(&change.key) {
        return Err(format!("{} is not carried by this channel", shown(&change.key)));
    }
    if !intake.takes(&change.key) {
        return Err(format!(
            "{}: the store's stream tells of it, not the intake: see intake.keys",
            shown(&change.key)
        ));
    }
    for (unit, class) in connector.units(&change) {
        if unit.key != change.key {
            return Err(format!("{} and {}: a line is of one key", shown(&change.key), shown(&unit.key)));
        }
        if !matches!(class, Class::Absolute | Class::Observed) {
            return Err(format!(
                "{}: what comes of it depends on what is there: hand over what it results in",
                shown(&change.key)
            ));
        }
    }
    Ok(change)
}
