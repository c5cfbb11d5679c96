//! Stating this node to its API server, and learning its place in the mesh from the answer.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hawser_agent_core::AgentConfig;
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{ReportReply, ReportRequest, WireGuardEnd};
use hawser_model::{
    ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, MeshPlan, NodeIndex, PublicKey,
};
use hawser_pki::CaSet;
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;

use crate::api::{Dialer, explain};
use crate::causes::chain;
use crate::config::Config;
use crate::join::{CLUSTER, Member};
use crate::renewal::Trusts;
use crate::state::{ClusterFile, PlaceFile, StateDir};
use crate::tunnels::OwnEnd;

/// A node counts as live for 60 s after its last word (agent.proto).
const EVERY: Duration = Duration::from_secs(20);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(5);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What this node says of itself.
pub(crate) fn report_of(config: &Config, end: OwnEnd, more_ports: &[u16]) -> Result<ReportRequest> {
    let encryption = if end.esp.is_some() { Encryption::Ipsec } else { Encryption::Wireguard };
    Ok(ReportRequest {
        node: config.node.to_string(),
        boot_id: boot_id()?,
        wireguard: Some(WireGuardEnd {
            epoch: end.epoch.get(),
            public_key: end.public_key.as_bytes().to_vec(),
            port: config.port.into(),
            mtu: config.mtu_of(encryption).into(),
            esp: end.esp.as_ref().map(crate::secrets::stated),
            more_ports: more_ports.iter().copied().map(u32::from).collect(),
        }),
        trusted_cas: Vec::new(),
    })
}

pub(crate) fn boot_id() -> Result<String> {
    let text = std::fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    Ok(text.trim().to_owned())
}

/// This node's place: as the API server answers; as it answered last, if it is away; waiting, if it never did.
pub(crate) async fn learn(
    member: &mut Member,
    state: &StateDir,
    report: &ReportRequest,
) -> Result<PlaceFile> {
    let mut client = AgentClient::new(member.channel.clone());
    let (mut wait, mut told) = (RETRY_FIRST, None);
    loop {
        let reason = match send(&mut client, &member.dialer, report).await {
            Ok((place, _)) => {
                // Without it on disk this run has it all the same.
                if let Err(error) = remember(member, state, &place) {
                    tracing::warn!("a restart would not know this node's place: {}", chain(&error));
                }
                return Ok(place);
            }
            Err(reason) => reason,
        };
        if let Some(place) = &member.cluster.place {
            tracing::warn!(%reason, "the API server cannot be reached, going on with what it said last");
            return Ok(place.clone());
        }
        let reason = chain(&reason);
        if told.as_ref() != Some(&reason) {
            tracing::warn!(
                reason,
                "the API server cannot be reached to learn this node's place, trying again"
            );
            told = Some(reason);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MOST);
    }
}

fn remember(member: &mut Member, state: &StateDir, place: &PlaceFile) -> Result<()> {
    if member.cluster.place.as_ref() != Some(place) {
        member.cluster = ClusterFile { place: Some(place.clone()), ..member.cluster.clone() };
        state.write_json(CLUSTER, &member.cluster)?;
    }
    Ok(())
}

async fn send(
    client: &mut AgentClient<Channel>,
    dialer: &Dialer,
    report: &ReportRequest,
) -> Result<(PlaceFile, Option<Trusts>)> {
    let trusted_cas = dialer.trusted().fingerprints().into_iter().collect();
    let report = ReportRequest { trusted_cas, ..report.clone() };
    let answer = tokio::time::timeout(PATIENCE, client.report(report)).await;
    let answer = answer.map_err(|_| anyhow!("no answer in {} s", PATIENCE.as_secs()))?;
    let reply = answer.map_err(|status| anyhow!("{}", explain(&status)))?.into_inner();
    let trusts = trusts(&reply);
    let place = place(reply);
    // What is no place is a failure of this one answer, not this node's to keep or to move to.
    parse(&place)?;
    Ok((place, trusts))
}

/// None from a server that does not say, or says what is no CA: this node keeps those it has.
fn trusts(reply: &ReportReply) -> Option<Trusts> {
    let cas = CaSet::from_pem(&reply.ca).ok()?;
    Some(Trusts { cas, issuer: reply.issuer.clone() })
}

fn place(reply: ReportReply) -> PlaceFile {
    PlaceFile {
        index: reply.index,
        max_connected_clusters: reply.max_connected_clusters,
        mesh_ula: reply.mesh_ula,
        mesh_ipv4: reply.mesh_ipv4_range,
        encryption: reply.encryption,
    }
}

/// What the API server said, parsed at the border.
fn parse(place: &PlaceFile) -> Result<(ClusterIdWidth, MeshPlan, NodeIndex)> {
    let width = ClusterIdWidth::from_max_clusters(place.max_connected_clusters)?;
    let ula = place.mesh_ula.parse().with_context(|| format!("the mesh's ULA {:?}", place.mesh_ula))?;
    let ipv4 = place.mesh_ipv4.parse().with_context(|| format!("the mesh's IPv4 {:?}", place.mesh_ipv4))?;
    Encryption::parse(place.named())?;
    let index = NodeIndex::new(place.index).with_context(|| format!("{} is no node index", place.index))?;
    Ok((width, MeshPlan::new(ula, ipv4)?, index))
}

/// The core's configuration, once everything is known.
pub(crate) fn agent_config(
    config: &Config,
    cluster: &ClusterFile,
    place: &PlaceFile,
    public_key: PublicKey,
    kernel_ipsec: bool,
) -> Result<AgentConfig> {
    let (width, mesh, index) = parse(place)?;
    Ok(AgentConfig {
        cluster: ClusterRef {
            name: ClusterName::parse(&cluster.cluster)?,
            id: ClusterId::new(cluster.cluster_id, width)?,
        },
        node: config.node.clone(),
        index,
        width,
        mesh,
        device: config.device.clone(),
        public_key,
        encryption: place.encryption(),
        kernel_ipsec,
        masquerade_mark: config.masquerade_mark,
        port: config.port,
        mtu: config.mtu_of(place.encryption()),
        mark: config.mark,
        probe_port: config.probe_port,
        reset_after: config.reset_after,
    })
}

/// What reporting has to say to the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reporting {
    Well,
    /// A standing problem.
    Failing(String),
    /// The same of this node's certificate; none when it is renewed.
    Renewal(Option<String>),
    /// The same of the secrets of IPsec.
    Secrets(Option<String>),
    /// The agent ends: only a new start takes the new place. What is in the kernel stays, and is adopted by it.
    Moved(Moved),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the API server gives this node another place in the mesh: {to:?} instead of {from:?}. \
     fix: start the agent again (a supervisor does), it moves there; what is in the kernel stays until then"
)]
pub(crate) struct Moved {
    from: PlaceFile,
    to: PlaceFile,
}

/// Err when the answer is not the place this agent runs at.
fn unmoved(from: &PlaceFile, to: PlaceFile) -> Result<(), Moved> {
    if *from == to { Ok(()) } else { Err(Moved { from: from.clone(), to }) }
}

/// Whom reporting speaks to, and who waits for what it hears.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub channel: Channel,
    pub dialer: Dialer,
    pub report: watch::Receiver<ReportRequest>,
    pub place: PlaceFile,
    pub told: mpsc::Sender<Reporting>,
    pub trusts: mpsc::Sender<Trusts>,
    /// There is something new to say or to ask.
    pub now: Arc<Notify>,
}

impl Reporter {
    /// States this node every 20 s and when there is news, until it has been moved or the loop is gone.
    pub(crate) async fn run(self) {
        let mut client = AgentClient::new(self.channel.clone());
        let mut wait = EVERY;
        let mut well = true;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.now.notified() => {}
            }
            let report = self.report.borrow().clone();
            let sent = send(&mut client, &self.dialer, &report).await;
            let word = match sent {
                Ok((place, trusts)) => {
                    if let Some(trusts) = trusts {
                        // Renewal may be at work; what it does not hear now it hears with the next answer.
                        let _ = self.trusts.try_send(trusts);
                    }
                    unmoved(&self.place, place).err().map_or(Reporting::Well, Reporting::Moved)
                }
                Err(reason) => Reporting::Failing(format!(
                    "this node cannot be stated to its API server: {}",
                    chain(&reason)
                )),
            };
            let is_well = word == Reporting::Well;
            wait = if is_well { EVERY } else { RETRY_MOST };
            let news =
                matches!(word, Reporting::Moved(_)) || std::mem::replace(&mut well, is_well) != is_well;
            if news && self.told.send(word).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u32) -> PlaceFile {
        PlaceFile {
            index,
            max_connected_clusters: 255,
            mesh_ula: MeshPlan::default().ula().to_string(),
            mesh_ipv4: MeshPlan::default().ipv4().to_string(),
            encryption: String::new(),
        }
    }

    #[test]
    fn another_place_ends_the_agent_and_an_answer_that_is_no_place_does_not() {
        assert_eq!(unmoved(&at(1), at(1)), Ok(()));
        let moved = unmoved(&at(1), at(2)).unwrap_err();
        assert!(moved.to_string().contains("fix: start the agent again"), "{moved}");
        parse(&at(1)).unwrap();
        assert!(parse(&at(0)).is_err(), "an index that is none is no place to move to");
    }
}
