//! The conversation with the own API server about which remote nodes are down: what this node finds, and what its colleagues
//! find. While there is none, the probing task asks for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{NodesDown, ShareReply, ShareRequest};
use hawser_discovery::{NodeId, Shared, Sharers};
use hawser_discovery_net::{Prober, ProberGone};
use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::api::explain;

/// A server hears at least so often from every node (agent.proto).
const EVERY: Duration = Duration::from_secs(5);
/// After a conversation that ended; and where the server does not know this one.
const AGAIN: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(60);
/// Nodes of one answer that are listened to.
const MOST_TOLD: usize = 65_536;

/// With whom, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    pub channel: Channel,
    pub node: NodeName,
    pub width: ClusterIdWidth,
    /// Why there is no conversation; none while there is.
    problem: Arc<Mutex<Option<String>>>,
}

/// Ends with this value: the probing task lives only as long as nobody speaks for it.
#[derive(Debug)]
pub(crate) struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum End {
    Prober,
    Server(Status),
}

impl From<ProberGone> for End {
    fn from(_: ProberGone) -> Self {
        Self::Prober
    }
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Server(status)
    }
}

impl Sharing {
    pub(crate) fn new(channel: Channel, node: NodeName, width: ClusterIdWidth) -> Self {
        Self { channel, node, width, problem: Arc::default() }
    }

    pub(crate) fn begin(&self, prober: Prober) -> Running {
        Running(tokio::spawn(self.clone().run(prober)).abort_handle())
    }

    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, problem: Option<String>) {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != problem {
            tracing::debug!(problem, "sharing probes");
            *known = problem;
        }
    }

    async fn run(self, prober: Prober) {
        loop {
            let wait = match self.converse(&prober).await {
                End::Prober => return,
                End::Server(status) => {
                    self.say(Some(explain(&status)));
                    if status.code() == Code::Unimplemented { LATER } else { AGAIN }
                }
            };
            // The nodes of a cluster do not come back to a server all at once.
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    async fn converse(&self, prober: &Prober) -> End {
        match self.talk(prober).await {
            Ok(()) => End::Server(Status::unavailable("the server ended the conversation")),
            Err(end) => end,
        }
    }

    async fn talk(&self, prober: &Prober) -> Result<(), End> {
        let mut found = prober.found();
        let (say, words) = mpsc::channel(2);
        let mut client = AgentClient::new(self.channel.clone());
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut replies = client.share(ReceiverStream::new(words)).await?.into_inner();
        loop {
            tokio::select! {
                reply = replies.message() => match reply? {
                    Some(reply) => {
                        prober.shared(self.shared(&reply)).await?;
                        self.say(None);
                    }
                    None => return Ok(()),
                },
                changed = found.changed() => {
                    changed.map_err(|_| End::Prober)?;
                    tell(&say, &mut found);
                }
                _ = tick.tick() => tell(&say, &mut found),
            }
        }
    }

    /// What is nobody's number is nobody.
    fn shared(&self, reply: &ShareReply) -> Shared {
        let members: Vec<_> = reply.members.iter().filter_map(|name| NodeName::parse(name).ok()).collect();
        let node = |(cluster, index): (u32, u32)| {
            let cluster = ClusterId::new(cluster, self.width).ok()?;
            Some(NodeId { cluster, index: NodeIndex::new(index)? })
        };
        let pairs = reply.down.iter().flat_map(|down| down.nodes.iter().map(|node| (down.cluster_id, *node)));
        Shared {
            sharers: Sharers::new(&self.node, &members),
            down: pairs.take(MOST_TOLD).filter_map(node).collect(),
        }
    }
}

/// A word that finds no room is one of the next: each is the whole of it.
fn tell(say: &mpsc::Sender<ShareRequest>, found: &mut watch::Receiver<BTreeSet<NodeId>>) {
    let word = word(&found.borrow_and_update());
    let _ = say.try_send(word);
}

fn word(found: &BTreeSet<NodeId>) -> ShareRequest {
    let mut clusters = BTreeMap::<u32, Vec<u32>>::new();
    for node in found {
        clusters.entry(node.cluster.get().into()).or_default().push(node.index.get().into());
    }
    let down = |(cluster_id, nodes)| NodesDown { cluster_id, nodes };
    ShareRequest { down: clusters.into_iter().map(down).collect() }
}
