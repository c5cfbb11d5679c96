//! The own keyspace, whatever makes it durable: `embedded:DIR`, or `etcd://HOST:PORT[,HOST:PORT...]`, or `etcds://` the same.

mod convert;
mod etcd;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::durable::{Embedded, EmbeddedConfig, EmbeddedError};
use crate::server::{KeyspaceHandle, Writer};

pub use etcd::{
    BARRIER_KEY, EtcdStore, EtcdStoreError, EtcdWriter, LINEAGE_KEY, PREFIXES, StoreTls, StoreTlsError,
};

/// Where the own keyspace is kept, as `store:` and `--store` say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUri {
    Embedded(PathBuf),
    /// `host:port` of each member, reached in clear text (on loopback, or through a tunnel of its own).
    Etcd(Vec<String>),
    /// The same, over TLS.
    Etcds(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "store {uri:?} is not understood: {why}. fix: write embedded:DIR or etcd://HOST:PORT[,HOST:PORT...] or etcds:// the same"
)]
pub struct ParseStoreError {
    uri: String,
    why: &'static str,
}

impl FromStr for StoreUri {
    type Err = ParseStoreError;

    fn from_str(uri: &str) -> Result<Self, ParseStoreError> {
        let bad = |why| Err(ParseStoreError { uri: uri.chars().take(200).collect(), why });
        if let Some(dir) = uri.strip_prefix("embedded:") {
            return if dir.is_empty() {
                bad("it names no directory")
            } else {
                Ok(Self::Embedded(dir.into()))
            };
        }
        let (members, kind): (_, fn(Vec<String>) -> Self) =
            match (uri.strip_prefix("etcd://"), uri.strip_prefix("etcds://")) {
                (Some(members), _) => (members, Self::Etcd),
                (_, Some(members)) => (members, Self::Etcds),
                _ => return bad("it begins neither with embedded: nor with etcd:// or etcds://"),
            };
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        let is_member = |member: &String| {
            member
                .parse::<http::uri::Authority>()
                .is_ok_and(|a| a.port_u16().is_some() && !a.host().is_empty())
        };
        if !members.iter().all(is_member) {
            return bad("each member is HOST:PORT, with commas between them");
        }
        Ok(kind(members))
    }
}

/// Why the own keyspace cannot be opened. One sentence and a fix, for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    #[error(transparent)]
    Uri(#[from] ParseStoreError),
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    Etcd(#[from] EtcdStoreError),
    #[error("the store could not be read: its reader stopped")]
    Stopped,
    #[error(
        "store {uri:?} is reached over TLS, and storeTLS is missing. fix: write storeTLS: {{ca: PATH, cert: PATH, key: PATH}}"
    )]
    NoTls { uri: String },
}

/// The own keyspace, open.
#[derive(Debug)]
pub struct OwnStore {
    pub handle: KeyspaceHandle,
    pub lineage: u64,
    describe: String,
    /// Follows etcd for as long as the store lives.
    _etcd: Option<EtcdStore>,
}

impl OwnStore {
    pub fn writer(&self) -> &dyn Writer {
        self.handle.writer()
    }

    /// For status and logs.
    pub fn describe(&self) -> &str {
        &self.describe
    }
}

/// Opens the own keyspace of `cluster`: read whole, its writer running. With etcd, waits until it is reached, within limits.
pub async fn open_store(
    uri: &str,
    tls: Option<&StoreTls>,
    cluster: &str,
) -> Result<OwnStore, OpenStoreError> {
    match uri.parse()? {
        StoreUri::Embedded(dir) => {
            let (path, name) = (dir.clone(), cluster.to_owned());
            let runtime = tokio::runtime::Handle::current();
            let open = move || Embedded::open(&path, &name, EmbeddedConfig::default(), &runtime);
            let store = tokio::task::spawn_blocking(open).await.map_err(|_| OpenStoreError::Stopped)??;
            Ok(OwnStore {
                handle: KeyspaceHandle::new(cluster, store.keyspace, store.writer),
                lineage: store.lineage,
                describe: format!("embedded store in {}", dir.display()),
                _etcd: None,
            })
        }
        StoreUri::Etcd(members) => in_etcd(&members, None, cluster).await,
        StoreUri::Etcds(members) => match tls {
            Some(tls) => in_etcd(&members, Some(tls), cluster).await,
            None => Err(OpenStoreError::NoTls { uri: uri.to_owned() }),
        },
    }
}

async fn in_etcd(
    members: &[String],
    tls: Option<&StoreTls>,
    cluster: &str,
) -> Result<OwnStore, OpenStoreError> {
    let store = EtcdStore::open(members, tls, cluster).await?;
    let writer: Arc<dyn Writer> = store.writer();
    let over = if tls.is_some() { " over TLS" } else { "" };
    Ok(OwnStore {
        handle: KeyspaceHandle::new(cluster, store.keyspace().clone(), writer),
        lineage: store.lineage(),
        describe: format!("etcd at {}{over}", members.join(",")),
        _etcd: Some(store),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_as_in_the_configuration() {
        let parse = |uri: &str| uri.parse::<StoreUri>();
        assert_eq!(
            parse("embedded:/var/lib/hawser/store"),
            Ok(StoreUri::Embedded("/var/lib/hawser/store".into()))
        );
        let three = StoreUri::Etcd(vec!["a:2379".into(), "10.0.0.2:2379".into(), "[fd00::1]:2379".into()]);
        assert_eq!(parse("etcd://a:2379,10.0.0.2:2379,[fd00::1]:2379"), Ok(three));
        assert_eq!(parse("etcds://a:2379"), Ok(StoreUri::Etcds(vec!["a:2379".into()])));
        for bad in [
            "",
            "etcds://",
            "/var/lib",
            "embedded:",
            "etcd://",
            "etcd://a",
            "etcd://a:1,",
            "etcd://a:b",
            "http://a:1",
        ] {
            assert!(parse(bad).unwrap_err().to_string().contains("fix: write embedded:DIR"), "{bad}");
        }
    }
}
