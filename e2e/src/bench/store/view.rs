//! A node agent's half that reads: every cluster followed over one connection, all of it in one `MeshView`.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use hawser_agent_core::MeshView;
use hawser_etcd::client::{Client, FollowConfig, FollowEvent};
use hawser_model::{ClusterName, MeshPlan, Time, Timestamp};
use hawser_wire::Entry;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::data::{self, Origins, WIDTH};
use super::delays::Delays;
use super::wire::{self, Pki};
use crate::bench::part;

/// As the agent's.
const QUEUE: usize = 4_096;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pub(super) pki: Pki,
    pub(super) server: SocketAddr,
    pub(super) clusters: u32,
    pub(super) remotes: Origins,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Up {
    pub(super) seconds: f64,
    pub(super) refused: u64,
    pub(super) entries: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Tell when this many timed changes have been seen.
    Watch { count: usize },
    /// Say how many bytes came from the API server.
    Received,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut told = part::told();
    let began = Instant::now();
    let mut view = MeshView::new(data::home()?, WIDTH, MeshPlan::default());
    // The authority names no cluster: the metadata chooses, as in the agent.
    let channel = wire::channel(args.server, "localhost", args.pki.client()?)?;
    let (sender, mut heard) = mpsc::channel::<(ClusterName, FollowEvent)>(QUEUE);
    for n in 1..=args.clusters {
        let name = data::cluster(n)?.name;
        let mut peer = data::peer(n, args.remotes)?;
        peer.admitted = Timestamp::from_system(SystemTime::now());
        let entry = Entry::LocalPeer(peer);
        view.upsert(&data::home()?.name, entry.key(&data::home()?).to_string().as_bytes(), &entry.encode());
        view.begin(&name);
        let ranges = data::ranges(&name);
        let config = FollowConfig { trust_progress: true, ..FollowConfig::new(ranges) };
        let mut follow = Client::for_cluster(channel.clone(), name.as_str())?.follow(config)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(event) = follow.next().await {
                if sender.send((name.clone(), event)).await.is_err() {
                    return;
                }
            }
        });
    }
    let ranges = data::ranges(&data::cluster(1)?.name).len();
    let (mut listed, mut up) = (0, false);
    let mut delays: Option<Delays> = None;
    loop {
        tokio::select! {
            Some(command) = told.recv() => {
                match serde_json::from_value(command)? {
                    Command::Received => part::say(&wire::received())?,
                    Command::Watch { count } => {
                        delays = Some(Delays::of(count));
                        part::say(&true)?;
                    }
                }
            }
            Some((cluster, event)) = heard.recv() => match event {
                FollowEvent::Put { kv, .. } => {
                    view.upsert(&cluster, &kv.key, &kv.value);
                    if let Some(seen) = &mut delays {
                        seen.see(&kv.value);
                    }
                }
                FollowEvent::Delete { key, .. } => drop(view.remove(&cluster, &key)),
                FollowEvent::Listed { range, .. } if range + 1 == ranges => {
                    view.listed(&cluster);
                    listed += 1;
                }
                FollowEvent::Progress { revision } => view.heard(&cluster, Some(revision), Time::ZERO),
                _ => {}
            },
            else => return Ok(()),
        }
        if !up && listed == args.clusters {
            up = true;
            told_up(&view, began)?;
        }
        if delays.as_ref().is_some_and(Delays::is_complete) {
            part::say(&delays.take().context("the delays")?.seen())?;
        }
    }
}

fn told_up(view: &MeshView, began: Instant) -> Result<()> {
    let remotes = || view.clusters().filter(|cluster| !view.is_own(&cluster.name));
    if let Some(cluster) = remotes().find(|cluster| !cluster.is_synced()) {
        bail!("{} is not complete: {}, {:?}", cluster.name, cluster.waits_for(), cluster.refused);
    }
    let entries =
        remotes().map(|c| c.nodes.len() + c.endpoints.len() + c.identities.len() + c.services.len()).sum();
    let refused = view.clusters().map(|cluster| cluster.refused.count).sum();
    part::say(&Up { seconds: began.elapsed().as_secs_f64(), refused, entries })
}
