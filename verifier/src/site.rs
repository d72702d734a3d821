use crate::error::{Error, Result};

/// Which instance a message is about.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// The channel's name.
    pub(crate) channel: String,
    /// The site's name.
    pub(crate) name: String,
    /// host:port or a socket's path, without credentials.
    pub(crate) endpoint: String,
}

/// Refuses to compare a store with itself. Each with what identifies it, empty where nothing does; `kind`: what it is.
///
/// # Errors
///
/// [`Error::Usage`] if both are the same.
pub(crate) fn must_differ(first: (&Site, &str), second: (&Site, &str), kind: &str) -> Result<()> {
    let ((a, identity), (b, other)) = (first, second);
    if identity.is_empty() || identity != other {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{}: {} ({}) and {} ({}) are the same {kind}; there is nothing to compare",
        a.channel, a.name, a.endpoint, b.name, b.endpoint
    )))
}

impl Site {
    /// What went wrong while doing `action`, a verb phrase.
    pub(crate) fn failed(&self, action: &str, reason: impl std::fmt::Display) -> Error {
        Error::Store {
            channel: self.channel.clone(),
            site: self.name.clone(),
            endpoint: self.endpoint.clone(),
            action: action.to_owned(),
            reason: reason.to_string(),
        }
    }
}
