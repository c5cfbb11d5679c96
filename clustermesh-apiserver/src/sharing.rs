//! What the nodes of the own cluster find for each other (`Agent.Share`): each one's newest word, and all of them together to
//! each.
//!
//! In memory, and of this process alone: of several replicas' agents those at the same one share. Nothing is lost with it; an
//! agent that hears nothing asks for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use hawser_api::agent::{NodesDown, ShareReply, ShareRequest};
use hawser_model::NodeName;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

/// More nodes divide nothing among them (`hawser_discovery::MOST_SHARERS`).
const MOST_MEMBERS: usize = 256;
/// Nodes in one word, and in all together.
const MOST_FOUND: usize = 8_192;
const MOST_TOLD: usize = 65_536;

/// How long what takes.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Who says nothing for so long is none of them any more.
    stale: Duration,
    /// A change is told after this long at the least, and everything after that long anyway.
    changed: Duration,
    anyway: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            stale: Duration::from_secs(15),
            changed: Duration::from_secs(1),
            anyway: Duration::from_secs(5),
        }
    }
}

/// Down, by cluster and index.
type Found = BTreeMap<u32, BTreeSet<u32>>;

#[derive(Debug)]
struct Word {
    /// Whose it is: a node that connects again has two for a moment, and the newer one counts.
    stream: u64,
    found: Found,
}

#[derive(Debug, Default)]
struct Words {
    streams: u64,
    by_node: BTreeMap<NodeName, Word>,
    /// Of what is there now, once somebody asked.
    reply: Option<Arc<ShareReply>>,
}

#[derive(Debug, Default)]
pub struct Sharing {
    pace: Pace,
    words: Mutex<Words>,
    changed: watch::Sender<()>,
}

/// What is said to one agent.
pub type Replies = BoxStream<'static, Result<ShareReply, Status>>;

impl Sharing {
    /// Until the agent says nothing more, or something that it may not.
    pub fn serve(
        self: Arc<Self>,
        node: NodeName,
        words: impl Stream<Item = Result<ShareRequest, Status>> + Send + Unpin + 'static,
    ) -> Replies {
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(async move {
            let part = Part::new(&self, node);
            if let Err(status) = part.converse(words, &tell).await {
                // Who listens no more needs no reason.
                let _ = tell.send(Err(status)).await;
            }
        });
        let next = |mut told: mpsc::Receiver<_>| async move { told.recv().await.map(|reply| (reply, told)) };
        stream::unfold(told, next).boxed()
    }

    /// Nodes that share here, and remote nodes that they find down: as each of them hears it. Cost: the words.
    pub fn counts(&self) -> (usize, usize) {
        let reply = self.reply();
        (reply.members.len(), reply.down.iter().map(|down| down.nodes.len()).sum())
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Made once per change. Cost: the words.
    fn reply(&self) -> Arc<ShareReply> {
        let mut words = self.words();
        let words = &mut *words;
        Arc::clone(words.reply.get_or_insert_with(|| {
            let members = words.by_node.keys().take(MOST_MEMBERS).map(ToString::to_string).collect();
            let mut all = Found::new();
            let found = words.by_node.values().flat_map(|word| &word.found);
            let pairs = found.flat_map(|(cluster, nodes)| nodes.iter().map(move |node| (*cluster, *node)));
            for (cluster, node) in pairs.take(MOST_TOLD) {
                all.entry(cluster).or_default().insert(node);
            }
            let down = |(cluster_id, nodes): (u32, BTreeSet<u32>)| NodesDown {
                cluster_id,
                nodes: nodes.into_iter().collect(),
            };
            Arc::new(ShareReply { members, down: all.into_iter().map(down).collect() })
        }))
    }
}

/// One agent's, for as long as its stream lives.
struct Part<'a> {
    sharing: &'a Sharing,
    node: NodeName,
    stream: u64,
}

impl<'a> Part<'a> {
    fn new(sharing: &'a Sharing, node: NodeName) -> Self {
        let mut words = sharing.words();
        words.streams += 1;
        let stream = words.streams;
        drop(words);
        Self { sharing, node, stream }
    }

    async fn converse(
        &self,
        mut words: impl Stream<Item = Result<ShareRequest, Status>> + Unpin,
        tell: &mpsc::Sender<Result<ShareReply, Status>>,
    ) -> Result<(), Status> {
        let mut changes = self.sharing.changed.subscribe();
        let (mut heard, mut told) = (Instant::now(), None::<Instant>);
        let Pace { stale, changed: soon, anyway } = self.sharing.pace;
        let mut news = false;
        loop {
            // It is a member from its first word on, and told nothing before.
            let next = told.map_or(heard + anyway, |told| told + if news { soon } else { anyway });
            tokio::select! {
                word = words.next() => match word {
                    None => return Ok(()),
                    Some(word) => {
                        self.note(read(word?)?)?;
                        heard = Instant::now();
                        // The first answer is not waited for.
                        told = told.or_else(|| heard.checked_sub(anyway));
                    }
                },
                () = tokio::time::sleep_until(heard + stale) => return Ok(()),
                changed = changes.changed(), if !news => news = changed.is_ok(),
                () = tokio::time::sleep_until(next), if told.is_some() => {
                    match tell.try_send(Ok(ShareReply::clone(&self.sharing.reply()))) {
                        // It has not read the last one: it gets the newest when it does.
                        Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                        Err(mpsc::error::TrySendError::Closed(_)) => return Ok(()),
                    }
                    (told, news) = (Some(Instant::now()), false);
                }
            }
        }
    }

    fn note(&self, found: Found) -> Result<(), Status> {
        let mut words = self.sharing.words();
        match words.by_node.get_mut(&self.node) {
            Some(known) if known.stream > self.stream => {
                return Err(Status::aborted(format!("node {} speaks on a newer stream", self.node)));
            }
            Some(known) => {
                known.stream = self.stream;
                if known.found == found {
                    return Ok(());
                }
                known.found = found;
            }
            None => drop(words.by_node.insert(self.node.clone(), Word { stream: self.stream, found })),
        }
        words.reply = None;
        drop(words);
        self.sharing.changed.send_replace(());
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        let mut words = self.sharing.words();
        if words.by_node.get(&self.node).is_some_and(|word| word.stream == self.stream) {
            words.by_node.remove(&self.node);
            words.reply = None;
            drop(words);
            self.sharing.changed.send_replace(());
        }
    }
}

fn read(word: ShareRequest) -> Result<Found, Status> {
    let (mut found, mut count) = (Found::new(), 0);
    for down in word.down {
        count += down.nodes.len();
        let known =
            (1..=511).contains(&down.cluster_id) && down.nodes.iter().all(|node| (1..=65_535).contains(node));
        if !known || count > MOST_FOUND {
            return Err(Status::invalid_argument(format!(
                "down: up to {MOST_FOUND} nodes with an index of 1..=65535, of clusters 1..=511"
            )));
        }
        if !down.nodes.is_empty() {
            found.entry(down.cluster_id).or_default().extend(down.nodes);
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "sharing_tests.rs"]
mod tests;
