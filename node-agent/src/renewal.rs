//! Membership kept up: the certificate is renewed in time, another CA believed when the cluster goes over to it, and neither
//! cuts a watch.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hawser_api::agent::RenewRequest;
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::session::PresentRequest;
use hawser_api::session::session_client::SessionClient;
use hawser_pki::{CaCert, CaSet, Leaf, retry_after, session};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{Notify, mpsc};

use crate::api::{Identity, explain};
use crate::causes::chain;
use crate::clock::wall;
use crate::join::{CA, CERTIFICATE, Member, csr};
use crate::place::Reporting;
use crate::state::StateDir;

const PATIENCE: Duration = Duration::from_secs(10);
/// Woken at least this often: a clock that was set is noticed.
const LOOK: Duration = Duration::from_secs(3_600);

/// What the API server says of the cluster's CAs, with every answer to a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trusts {
    /// Every CA to trust.
    pub cas: CaSet,
    /// Fingerprint of the one that signs.
    pub issuer: String,
}

#[derive(Debug)]
pub(crate) struct Renewal {
    pub member: Member,
    pub state: Arc<StateDir>,
    pub trusts: mpsc::Receiver<Trusts>,
    /// Has what this node trusts and shows stated at once.
    pub report_now: Arc<Notify>,
    pub told: mpsc::Sender<Reporting>,
}

impl Renewal {
    /// For as long as somebody reports.
    pub(crate) async fn run(mut self) {
        let mut due = self.member.leaf.renew_at(rand::random());
        let mut failing = false;
        loop {
            tokio::select! {
                trusts = self.trusts.recv() => {
                    let Some(trusts) = trusts else { return };
                    if self.heed(trusts) {
                        due = due.min(wall());
                    }
                }
                () = tokio::time::sleep(due.since(wall()).min(LOOK)) => {}
            }
            if wall() < due {
                continue;
            }
            due = match self.renew().await {
                Ok(()) => {
                    self.report_now.notify_one();
                    self.tell(&mut failing, None).await;
                    self.member.leaf.renew_at(rand::random())
                }
                Err(error) => {
                    let problem = self.problem(&error);
                    self.tell(&mut failing, Some(problem)).await;
                    wall().plus(retry_after(self.member.leaf.not_after, wall()))
                }
            };
        }
    }

    /// Whether this node's certificate is to be made anew: another CA signs.
    fn heed(&self, trusts: Trusts) -> bool {
        let dialer = &self.member.dialer;
        if dialer.trusted() != trusts.cas {
            let believed = (self.state.write(CA, trusts.cas.pem().as_bytes()).map_err(anyhow::Error::from))
                .and_then(|()| Ok(dialer.believe(trusts.cas.clone())?));
            match believed {
                Ok(()) => tracing::info!(cas = ?trusts.cas.fingerprints(), "the cluster's CAs changed"),
                // The next answer says it again.
                Err(error) => {
                    tracing::warn!("the cluster's CAs changed and cannot be kept: {}", chain(&error));
                    return false;
                }
            }
            self.report_now.notify_one();
        }
        let issuer = leaf_der(&self.member.identity).ok();
        let issuer = issuer.and_then(|der| trusts.cas.signer_of(&der).map(CaCert::fingerprint));
        issuer.as_ref() != Some(&trusts.issuer)
    }

    /// A new certificate for the same key: on disk, on the connection that there is, and on every next one.
    async fn renew(&mut self) -> Result<()> {
        let member = &mut self.member;
        let key = KeyPair::from_pem(&member.identity.key).context("reading this node's key")?;
        let request = RenewRequest { csr: csr(&key)? };
        let mut client = AgentClient::new(member.channel.clone());
        let reply = tokio::time::timeout(PATIENCE, client.renew(request)).await;
        let reply = reply.map_err(|_| anyhow!("no answer in {} s", PATIENCE.as_secs()))?;
        let certificate = reply.map_err(|status| anyhow!("{}", explain(&status)))?.into_inner().certificate;
        let leaf = Leaf::from_pem(&certificate).context("the certificate in the answer")?;
        self.state.write(CERTIFICATE, certificate.as_bytes())?;
        let identity = Identity { certificate, key: member.identity.key.clone() };
        member.dialer.use_identity(&identity)?;
        (member.identity, member.leaf) = (identity, leaf);
        tracing::info!(not_after = %member.leaf.not_after, "certificate renewed");
        if let Err(error) = present(member, &key).await {
            tracing::debug!("the new certificate waits for the next connection: {}", chain(&error));
        }
        Ok(())
    }

    fn problem(&self, error: &anyhow::Error) -> String {
        let Leaf { name, not_after, .. } = &self.member.leaf;
        let why = chain(error);
        if wall() < *not_after {
            return format!(
                "the certificate {name} could not be renewed and ends at {not_after}; it is tried again: {why}"
            );
        }
        let node = &self.member.cluster.node;
        format!(
            "the certificate {name} expired at {not_after}, and without one it cannot be renewed: {why}. \
             fix: `hawser ca token --node {node} -o join.yaml`, bring it here and start the agent again"
        )
    }

    /// Said once when it begins and once when it ends; in status meanwhile.
    async fn tell(&self, failing: &mut bool, problem: Option<String>) {
        match &problem {
            Some(problem) if !std::mem::replace(failing, true) => tracing::warn!("{problem}"),
            Some(problem) => tracing::debug!("{problem}"),
            None => *failing = false,
        }
        // The loop is gone only when the agent stops.
        let _ = self.told.send(Reporting::Renewal(problem)).await;
    }
}

fn leaf_der(identity: &Identity) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).context("reading this node's certificate")
}

/// Puts the certificate in the place of the one that the present connection was begun with.
async fn present(member: &Member, key: &KeyPair) -> Result<()> {
    let binding = member.dialer.binding().context("there is no connection")?;
    let leaf = leaf_der(&member.identity)?;
    let proof = session::prove(&key.serialize_der(), &leaf, &binding).context("the key does not sign")?;
    let request = PresentRequest { certificate: leaf.to_vec(), proof };
    let mut client = SessionClient::new(member.channel.clone());
    let presented = tokio::time::timeout(PATIENCE, client.present(request)).await.context("no answer")?;
    presented.map(drop).map_err(|status| anyhow!("{}", explain(&status)))
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
