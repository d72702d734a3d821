use crate::error::Error;

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
