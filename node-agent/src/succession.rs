//! A planned restart: the agent that starts asks the one that runs to stop; tunnels then change hands with their sessions.
//!
//! ```text
//! successor                         predecessor
//! HandOver(device) ───────────────> ends its loop, its tasks, its lock and its ports; goes on to carry packets
//!        <──────────────── version
//! joins, starts its tunnels ──────> gives TUN, sockets and sessions over the UAPI socket; waits to be stopped
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::local::local_client::LocalClient;
use hawser_api::local::{HandOverReply, HandOverRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

use crate::local_api::Asked;
use crate::tunnels::Tunnels;

/// What is under way in the predecessor ends within this time; the largest reconcile takes seconds.
const ANSWER: Duration = Duration::from_secs(30);
/// From the answer until the tunnels are taken. Within what Kubernetes gives a pod to end (deploy/kustomize/base/agent.yaml).
const TAKE: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_millis(10);

/// Asks the agent that serves `socket` for this node. False when there is none: nobody to succeed is no failure.
pub(crate) async fn ask(socket: &Path, device: &str) -> Result<bool> {
    match UnixStream::connect(socket).await {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(false);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("asking after an agent at {}", socket.display()));
        }
    }
    let path = socket.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let asked = async {
        let channel = Endpoint::from(Uri::from_static("http://agent")).connect_with_connector(dial).await?;
        let request = HandOverRequest { device: device.to_owned() };
        anyhow::Ok(LocalClient::new(channel).hand_over(request).await?.into_inner())
    };
    let answer = tokio::time::timeout(ANSWER, asked).await.context("no answer in time").flatten();
    let reply: HandOverReply = answer.with_context(|| {
        format!(
            "the agent at {} does not hand this node over. fix: stop it, and start this one again",
            socket.display()
        )
    })?;
    tracing::info!(from = reply.version, "this node is handed over");
    Ok(true)
}

/// Answers the successor and carries packets until it has taken the tunnels. Everything else of this agent has ended.
pub(crate) async fn hand_over(asked: Asked, tunnels: Arc<Tunnels>, device: &str) -> Result<()> {
    let Asked { device: theirs, reply } = asked;
    tracing::info!(device, theirs, "a successor asks for this node");
    let tunnels = Some(tunnels).filter(|_| theirs == device);
    // A successor that has gone away in the meantime takes nothing.
    let _ = reply.send(HandOverReply { version: env!("CARGO_PKG_VERSION").to_owned() });
    let Some(tunnels) = tunnels else { return Ok(()) };
    let given = async {
        while !tunnels.is_given() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(TAKE, given).await.is_err() {
        bail!(
            "the agent that asked for this node has not taken {device} over in {} s. fix: see its log; a supervisor starts this one again",
            TAKE.as_secs()
        );
    }
    Ok(())
}
