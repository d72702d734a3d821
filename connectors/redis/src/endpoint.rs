//! Where a site's server is, and how to get in: addresses, TLS, user and password. Connects to nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use causeway_core::settings::Secret;
use causeway_core::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// One server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host name or address, and port.
    Tcp {
        /// As the URL gives it, an IPv6 address without its brackets.
        host: String,
        /// 6379 if the URL gives none.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

/// `host:port`, or the socket's path.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What TLS needs; the files are read at each connect, so that renewed certificates are taken up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that sign the server's; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A site's store: one server, or several of which the one that says it is master is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// At least one; with several the first that answers as master is taken, at each connect.
    pub addresses: Vec<Address>,
    /// With TLS or without.
    pub tls: Option<TlsFiles>,
    /// The ACL user; `None`: the default one.
    pub user: Option<String>,
    /// The password; `None`: no AUTH is sent.
    pub password: Option<Secret>,
    /// How long a connect, and the AUTH in it, may take.
    pub connect_timeout: Duration,
    /// How long an answer may take from its last byte, or a write while the server takes nothing.
    pub io_timeout: Duration,
}

impl Endpoint {
    /// A server without TLS, user or password, with timeouts of 5 s for a connect and 60 s for an answer.
    pub fn new(address: Address) -> Endpoint {
        Endpoint {
            addresses: vec![address],
            tls: None,
            user: None,
            password: None,
            connect_timeout: Duration::from_secs(5),
            io_timeout: Duration::from_secs(60),
        }
    }

    /// `host:port`, of several with commas between.
    pub fn label(&self) -> String {
        let labels: Vec<String> = self.addresses.iter().map(Address::to_string).collect();
        labels.join(",")
    }

    /// The same way in, to one of the addresses alone.
    pub fn only(&self, address: &Address) -> Endpoint {
        Endpoint { addresses: vec![address.clone()], ..self.clone() }
    }

    pub(crate) fn password_text(&self, label: &str) -> Result<Option<String>> {
        let Some(password) = &self.password else { return Ok(None) };
        let text = password.read().map_err(|e| {
            let reason = format!("password_file: {e}");
            setup(label, reason, "make it readable for syncd, with the password alone in it")
        })?;
        Ok(Some(text))
    }
}

fn setup(endpoint: &str, reason: String, advice: &str) -> Error {
    Error::Setup { action: "connect".into(), endpoint: endpoint.into(), reason, advice: advice.into() }
}

fn pem<T>(label: &str, key: &str, path: &Path, read: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| {
        setup(label, format!("{key} {}: {e}", path.display()), "name a PEM file that syncd may read")
    })?;
    read(&bytes).ok_or_else(|| {
        setup(label, format!("{key} {} holds none", path.display()), "name a PEM file with one")
    })
}

impl TlsFiles {
    /// Reads the files and makes a client of them.
    ///
    /// # Errors
    ///
    /// `Setup`: a file is missing or holds nothing of its kind; names it.
    pub(crate) fn client(&self, label: &str) -> Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = |bytes: &[u8]| {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
            all.ok().filter(|all| !all.is_empty())
        };
        match &self.ca {
            Some(path) => {
                for certificate in pem(label, "ca_file", path, certificates)? {
                    roots.add(certificate).map_err(|e| {
                        setup(label, format!("ca_file {}: {e}", path.display()), "name an X.509 certificate")
                    })?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    let reason = "the system has no certificate authorities".to_owned();
                    return Err(setup(label, reason, "install ca-certificates, or name a `ca_file`"));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| setup(label, e.to_string(), "this build of rustls lacks TLS 1.2 and 1.3"))?
            .with_root_certificates(roots);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = pem(label, "cert_file", cert, certificates)?;
                let private = pem(label, "key_file", key, |b| PrivateKeyDer::from_pem_slice(b).ok())?;
                builder.with_client_auth_cert(chain, private).map_err(|e| {
                    let reason = format!("cert_file {} with key_file {}: {e}", cert.display(), key.display());
                    setup(label, reason, "name a certificate and its own key")
                })?
            }
        };
        Ok(Arc::new(config))
    }
}
