//! The two ways in: the API server over TLS with the admin certificate, the node agent over its unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hawser_api::admin::admin_client::AdminClient;
use hawser_api::local::local_client::LocalClient;
use hawser_model::ServerUrl;
use hawser_pki::CaSet;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::args::Global;
use crate::output::{Refused, chain};

const CONNECT: Duration = Duration::from_secs(10);
/// A process that is stopped, or stuck on its disk, takes the connection and never answers.
const ANSWER: Duration = Duration::from_secs(30);

pub(crate) async fn admin(global: &Global) -> Result<AdminClient<Channel>> {
    let servers = servers(&global.server)?;
    let (connector, name) = tls(&global.pki)?;
    let mut failed = Vec::new();
    for server in &servers {
        match reach(server, &connector, &name).await {
            Ok(channel) => return Ok(AdminClient::new(channel)),
            Err(error) => failed.push(error),
        }
    }
    match <[_; 1]>::try_from(failed) {
        Ok([error]) => Err(error),
        Err(failed) => {
            let failed: Vec<String> = failed.iter().map(chain).collect();
            Err(anyhow!("none of {} replicas is reached\n  {}", failed.len(), failed.join("\n  ")))
        }
    }
}

/// In the order in which they are tried.
fn servers(text: &str) -> Result<Vec<ServerUrl>> {
    let parse =
        |url| ServerUrl::parse(url).map_err(|error| Refused(format!("--server {url:?}: {error}")).into());
    text.split(',').map(parse).collect()
}

async fn reach(server: &ServerUrl, connector: &TlsConnector, name: &ServerName<'static>) -> Result<Channel> {
    let (connector, name) = (connector.clone(), name.clone());
    let address = (server.host().to_owned(), server.port());
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Endpoint::from(Uri::from_static("https://api-server"))
        .connect_timeout(CONNECT)
        .timeout(ANSWER)
        .connect_with_connector(dial)
        .await
        .with_context(|| {
            format!("no connection to the API server at {server}. fix: is clustermesh-apiserver running there? (--server)")
        })
}

/// The admin's certificate, and the name the server has to prove: that of the cluster whose CA lies there.
fn tls(pki: &Path) -> Result<(TlsConnector, ServerName<'static>)> {
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read_to_string(&path).map_err(|error| {
            Refused(format!(
                "{} cannot be read: {error}. fix: run this where `hawser ca init` was run, or name the directory with --pki",
                path.display()
            ))
        })
    };
    let cas = CaSet::from_pem(&read("ca.crt")?).context("ca.crt")?;
    let name = cas.newest().name();
    let cluster =
        name.strip_prefix("CN=ca-").ok_or_else(|| anyhow!("ca.crt is not a CA of hawser: {name}"))?;
    let name = ServerName::try_from(format!("{cluster}.mesh.hawser.io"))?;
    let mut roots = RootCertStore::empty();
    for ca in cas.iter() {
        roots.add(ca.der().clone())?;
    }
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(read("admin.crt")?.as_bytes())
            .collect::<Result<_, _>>()
            .context("admin.crt")?;
    let key = PrivateKeyDer::from_pem_slice(read("admin.key")?.as_bytes()).context("admin.key")?;
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .context("admin.crt and admin.key do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((TlsConnector::from(Arc::new(config)), name))
}

pub(crate) async fn agent(socket: &Path) -> Result<LocalClient<Channel>> {
    agent_within(socket, ANSWER).await
}

async fn agent_within(socket: &Path, patience: Duration) -> Result<LocalClient<Channel>> {
    let path = PathBuf::from(socket);
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from(Uri::from_static("http://agent"))
        .connect_timeout(CONNECT)
        .timeout(patience)
        .connect_with_connector(dial)
        .await
        .with_context(|| {
            format!(
                "no node agent at {}. fix: run this on a node whose hawser-node-agent runs (--socket)",
                socket.display()
            )
        })?;
    Ok(LocalClient::new(channel))
}

/// A refusal is the server's sentence, without gRPC's clothes around it.
pub(crate) fn answer<T>(reply: Result<tonic::Response<T>, tonic::Status>) -> Result<T> {
    use tonic::Code;
    match reply {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => {
            let sentence = status.message().to_owned();
            Err(match status.code() {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::NotFound
                | Code::PermissionDenied => Refused(sentence).into(),
                // What tonic says of its own deadline, and what a server says of one.
                Code::Cancelled | Code::DeadlineExceeded => {
                    anyhow!(
                        "it took the call and did not answer. fix: see in its log whether it is stopped or stuck: {sentence}"
                    )
                }
                code => anyhow!("{code:?}: {sentence}"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_api::local::StatusRequest;

    use super::*;

    #[test]
    fn several_replicas_are_named_with_commas_between_them() {
        assert_eq!(servers("https://a:1,https://b:2").unwrap().len(), 2);
        assert!(servers("https://a:1,").is_err());
        let wrong = servers("https://a:1,b").unwrap_err();
        assert!(wrong.to_string().contains("--server \"b\"") && wrong.is::<Refused>(), "{wrong}");
    }

    #[tokio::test]
    async fn an_agent_that_takes_the_call_and_never_answers_is_given_up() {
        let dir = std::env::temp_dir().join(format!("hawser-cli-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("agent.sock");
        let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut client = agent_within(&socket, Duration::from_millis(10)).await.unwrap();
        let reply = client.status(StatusRequest {}).await;
        std::fs::remove_dir_all(&dir).unwrap();
        let said = format!("{:#}", answer(reply).unwrap_err());
        assert!(said.contains("did not answer") && said.contains("fix:"), "{said}");
    }
}
