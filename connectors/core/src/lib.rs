//! The contract between Causeway and the connector of a store.
//!
//! Arrows point inwards: `syncd` and `verifier` know this crate; a connector knows this crate and its
//! store's client library, and neither the change log nor another connector. What a store says it did
//! comes out of a [`Source`] as [`Event`]s, in the order of the store's own stream; what the other site
//! did goes into a [`Target`] as [`Batch`]es, each with the [`Marker`] that the store keeps together with
//! the data. [`Connector`] opens both, and answers what the rule for concurrent writes asks of a change
//! ([`Connector::units`]).

mod change;
mod connector;
pub mod document;
mod error;
mod hlc;
mod marker;
mod pattern;
mod position;
pub mod settings;
mod site;
mod source;
mod target;
pub mod time;
mod token;

pub use change::{Change, Group, Key, Op, Part, Space};
pub use connector::{
    Capability, ChannelSpec, Class, Connector, DdlPolicy, Finding, OnlyAt, Open, OpenError, Unit,
};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use hlc::{Hlc, HlcClock};
pub use marker::Marker;
pub use pattern::Pattern;
pub use position::{Position, Seq, Term, Token};
pub use site::Site;
pub use source::{Behind, Event, Opened, Rereads, Source, Told};
pub use target::{Batch, Keys, Outcome, Refused, Target};
