//! The Kubernetes source: a task for each kind, one queue of events.

use std::time::Instant;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ask::{self, End, Sink};
use super::follow::{Follow, Pace};
use super::resource::Resource;
use crate::SourceEvent;

/// Events in flight; the tasks wait when the consumer does.
const QUEUE: usize = 1024;

/// A running Kubernetes source. Dropping it ends its tasks.
#[derive(Debug)]
pub struct KubeSource {
    events: mpsc::Receiver<SourceEvent>,
    _tasks: JoinSet<()>,
}

impl KubeSource {
    /// Must be called within a runtime; with `service_exports` the MCS-API's are followed too. `Synced` comes after the first list of every kind.
    pub fn start(client: &Client, pace: Pace, service_exports: bool) -> Self {
        let resources = Resource::ALL.into_iter().chain(service_exports.then_some(Resource::SERVICE_EXPORTS));
        let kinds = resources.clone().count();
        let (to, events) = mpsc::channel(QUEUE);
        let (listed, lists) = mpsc::channel(kinds);
        let mut tasks = JoinSet::new();
        for resource in resources {
            let sink = Sink { events: to.clone(), listed: listed.clone() };
            tasks.spawn(follow(client.clone(), resource, pace, sink));
        }
        tasks.spawn(say_synced(kinds, lists, to));
        Self { events, _tasks: tasks }
    }

    /// None never comes while the source lives: its tasks outlive every failure of the API server.
    pub async fn next(&mut self) -> Option<SourceEvent> {
        self.events.recv().await
    }

    /// What is already there, without waiting.
    pub fn try_next(&mut self) -> Option<SourceEvent> {
        self.events.try_recv().ok()
    }
}

/// What each kind's first list held is in the queue by the time it is counted here.
async fn say_synced(kinds: usize, mut lists: mpsc::Receiver<()>, to: mpsc::Sender<SourceEvent>) {
    for _ in 0..kinds {
        if lists.recv().await.is_none() {
            return;
        }
    }
    // The consumer may be gone; then nobody waits for it either.
    let _ = to.send(SourceEvent::Synced).await;
    // Held, so that the kinds can say it again to nobody.
    while lists.recv().await.is_some() {}
}

async fn follow(client: Client, resource: Resource, pace: Pace, to: Sink) {
    let mut follow = Follow::new(resource.kind, resource.path, pace);
    loop {
        if let Some(deadline) = follow.poll_deadline() {
            tokio::time::sleep_until(deadline.into()).await;
        }
        let asked = ask::ask(&client, &resource, &mut follow, &to).await;
        if let Err(End::Failed(failure)) = &asked {
            follow.handle_failure(failure.clone(), Instant::now(), rand::random());
        }
        if matches!(asked, Err(End::Closed)) || to.drain(&mut follow).await.is_err() {
            return;
        }
    }
}
