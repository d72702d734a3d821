use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, TlsCertificates,
};

use crate::config::Endpoints;
use crate::error::{Error, Result};
use crate::site::Site;

/// How long a server may take to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one pipeline may take. A server that is busy with a slow command of somebody else answers
/// nothing meanwhile.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that answered.
pub(super) struct Server {
    pub(super) site: Site,
    client: Client,
    /// Told apart by it: the same server under two addresses has one.
    pub(super) run_id: String,
}

impl Server {
    /// Opens another connection, to database `db`.
    pub(super) async fn open(&self, db: u32) -> Result<MultiplexedConnection> {
        let info = self.client.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_db(i64::from(db));
        let action = format!("open database {db}");
        // What the certificates were read from stays with the address.
        let client =
            Client::open(info.set_redis_settings(settings)).map_err(|e| self.site.failed(&action, e))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(|e| self.site.failed(&action, e))
    }
}

/// Connects to the first of `endpoints` that answers as master; a single one may be a replica.
///
/// # Errors
///
/// [`Error::Usage`] for an address that is none and for a cluster; [`Error::Store`] otherwise.
pub(super) async fn connect(channel: &str, name: &str, endpoints: &Endpoints) -> Result<Server> {
    let mut last = None;
    for url in &endpoints.urls {
        match try_one(channel, name, url, endpoints).await {
            Ok((server, master)) if master || endpoints.urls.len() == 1 => return Ok(server),
            Ok((server, _)) => {
                last = Some(server.site.failed("connect", "it is a replica; name the master in `urls`, too"));
            }
            Err(error @ Error::Usage(_)) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::Usage(format!("{channel}: `{name}` has no address"))))
}

async fn try_one(channel: &str, name: &str, url: &str, endpoints: &Endpoints) -> Result<(Server, bool)> {
    let usage = |what: &str| Error::Usage(format!("{channel}: the address of `{name}` {what}"));
    // The client library's own text may hold the address, and so a password.
    let info = url.into_connection_info().map_err(|_| {
        usage("is none that Redis has; allowed is redis://host:port, rediss://host:port, unix:///path")
    })?;
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = &endpoints.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &endpoints.password {
        settings = settings.set_password(password);
    }
    let site = Site { channel: channel.into(), name: name.into(), endpoint: info.addr().to_string() };
    let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    let info = info.set_redis_settings(settings);
    let client = if tls {
        let identity = endpoints.identity.clone();
        let certificates = TlsCertificates {
            client_tls: identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: endpoints.ca.clone(),
        };
        Client::build_with_tls(info, certificates)
    } else {
        Client::open(info)
    };
    let client = client.map_err(|e| site.failed("set up the connection", e))?;
    let mut server = Server { site, client, run_id: String::new() };
    let mut connection = server.open(0).await?;
    let info: String = redis::cmd("INFO")
        .query_async(&mut connection)
        .await
        .map_err(|e| server.site.failed("ask INFO", format!("{e}; the user needs the right to INFO")))?;
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    };
    if field("cluster_enabled") == "1" {
        return Err(usage("leads to a Redis Cluster; this release does not compare clusters"));
    }
    server.run_id = field("run_id").to_owned();
    let master = field("role") != "slave";
    Ok((server, master))
}
