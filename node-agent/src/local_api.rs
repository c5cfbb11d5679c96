//! The local API: a unix socket, mode 0600, in front of the driver's questions.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hawser_api::local::local_server::{Local, LocalServer};
use hawser_api::local::{
    HandOverReply, HandOverRequest, ListServicesReply, ListServicesRequest, PlanReply, PlanRequest,
    StatusReply, StatusRequest,
};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::metrics::Observation;

/// What the driver is asked.
#[derive(Debug)]
pub(crate) enum Question {
    Status(oneshot::Sender<StatusReply>),
    /// One service, or all when empty.
    Services(String, oneshot::Sender<ListServicesReply>),
    Plan(oneshot::Sender<Result<PlanReply, Status>>),
    Observe(oneshot::Sender<Box<Observation>>),
    HandOver(Asked),
}

/// A successor asks for this node.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Of its tunnels.
    pub device: String,
    pub reply: oneshot::Sender<HandOverReply>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the local API's socket {}: {source}. fix: see that its directory can be written, or set another `socket`", path.display())]
pub(crate) struct SocketError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The socket, gone when this is dropped; that of a successor stays.
#[derive(Debug)]
pub(crate) struct LocalApi {
    path: PathBuf,
    inode: Option<u64>,
    task: JoinHandle<()>,
}

impl Drop for LocalApi {
    fn drop(&mut self) {
        self.task.abort();
        if inode(&self.path) == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Serves until dropped. A socket file that is there already was left by an agent that was killed: whoever holds the
/// state directory's lock may replace it.
pub(crate) fn serve(path: &Path, questions: mpsc::Sender<Question>) -> Result<LocalApi, SocketError> {
    let listener = listen(path).map_err(|source| SocketError { path: path.into(), source })?;
    let server = tonic::transport::Server::builder().add_service(LocalServer::new(Service { questions }));
    let task = tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming(UnixListenerStream::new(listener)).await {
            tracing::error!(%error, "the local API ended");
        }
    });
    Ok(LocalApi { path: path.into(), inode: inode(path), task })
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| file.ino())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under a name that nobody asks for, so that the socket is never open to more than its owner.
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

struct Service {
    questions: mpsc::Sender<Question>,
}

impl Service {
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| Status::unavailable("the agent is stopping");
        self.questions
            .send(question(reply))
            .await
            .map_err(|_| Status::unavailable("the agent is stopping"))?;
        answer.await.map_err(gone)
    }
}

#[tonic::async_trait]
impl Local for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.ask(Question::Status).await?))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesReply>, Status> {
        let only = request.into_inner().service;
        let reply = self.ask(|reply| Question::Services(only.clone(), reply)).await?;
        if !only.is_empty() && reply.services.is_empty() {
            return Err(Status::not_found(format!(
                "this cluster has no global service {only:?}. fix: name it as namespace/name, and annotate it hawser.io/global: \"true\""
            )));
        }
        Ok(Response::new(reply))
    }

    async fn plan(&self, _: Request<PlanRequest>) -> Result<Response<PlanReply>, Status> {
        Ok(Response::new(self.ask(Question::Plan).await??))
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Result<Response<HandOverReply>, Status> {
        let device = request.into_inner().device;
        Ok(Response::new(self.ask(|reply| Question::HandOver(Asked { device, reply })).await?))
    }
}
