//! Judges a list of operations without knowing how it came about: by carrying it out on paper.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{ClusterRef, PublicKey};
use ipnet::IpNet;

use crate::keys::keys;
use crate::{Desired, Observed, Op, PeerName};

/// Why a list of operations is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("step {step} leaves the route {prefix} without an unreachable route behind it")]
    Unguarded { step: usize, prefix: IpNet },
    #[error("step {step} gives {prefix} to {to:?}, but this plan has already given it to {owner:?}")]
    Contested { step: usize, prefix: IpNet, owner: PublicKey, to: PublicKey },
    #[error("step {step} speaks of a peer {public_key:?} that is not there")]
    UnknownPeer { step: usize, public_key: PublicKey },
    #[error("step {step} speaks of {peer} with the key {public_key:?}, which is not its cluster's")]
    ForeignKey { step: usize, public_key: PublicKey, peer: PeerName },
    #[error("{prefix} of peer {owner:?} covers our own address {address}")]
    OwnAddress { prefix: IpNet, owner: PublicKey, address: IpAddr },
    #[error("{inner} of {inner_owner:?} lies in {outer} of {outer_owner:?}, which is of another cluster")]
    Overlap { inner: IpNet, inner_owner: PublicKey, outer: IpNet, outer_owner: PublicKey },
    #[error("afterwards the route {prefix} has no unreachable route behind it")]
    LeftUnguarded { prefix: IpNet },
}

/// Whether carrying out `ops` on `observed` keeps these rules: at every step each route it touches has its guard, no
/// prefix is handed out twice, and no cluster gets a key that is another's or contested; in the end every route has its guard, no peer may speak with our own addresses, and no
/// cluster's prefix lies inside another's.
///
/// `desired` says only which cluster a key belongs to and which addresses are our own.
pub fn check(ops: &[Op], observed: &Observed, desired: &Desired) -> Result<(), Violation> {
    let mut paper = Paper::of(observed);
    // A key that is nobody's is not among them.
    let keys = keys(desired, observed, &mut Vec::new());
    let clusters = keys.into_iter().map(|peer| (peer.public_key, &peer.name.cluster)).collect();
    for (step, op) in ops.iter().enumerate() {
        whose(step + 1, op, &clusters)?;
        paper.carry_out(step + 1, op)?;
    }
    paper.judge(desired, &clusters)
}

type Clusters<'a> = BTreeMap<PublicKey, &'a ClusterRef>;

fn whose(step: usize, op: &Op, clusters: &Clusters<'_>) -> Result<(), Violation> {
    match op {
        Op::AddPeer { peer, public_key, .. }
        | Op::SetEndpoint { peer, public_key, .. }
        | Op::SetKeepalive { peer, public_key, .. }
        | Op::Allow { peer, public_key, .. }
        | Op::Restrict { peer, public_key, .. }
            if clusters.get(public_key) != Some(&&peer.cluster) =>
        {
            Err(Violation::ForeignKey { step, public_key: *public_key, peer: peer.clone() })
        }
        _ => Ok(()),
    }
}

struct Paper {
    peers: BTreeSet<PublicKey>,
    owners: BTreeMap<IpNet, PublicKey>,
    given: BTreeMap<IpNet, PublicKey>,
    routes: BTreeSet<IpNet>,
    guards: BTreeSet<IpNet>,
}

impl Paper {
    fn of(observed: &Observed) -> Self {
        let owned = |(key, peer): (&PublicKey, &crate::ObservedPeer)| {
            let key = *key;
            peer.allowed.iter().map(move |prefix| (*prefix, key)).collect::<Vec<_>>()
        };
        Self {
            peers: observed.peers.keys().copied().collect(),
            owners: observed.peers.iter().flat_map(owned).collect(),
            given: BTreeMap::new(),
            routes: observed.routes.keys().copied().collect(),
            guards: observed.guards.clone(),
        }
    }

    fn carry_out(&mut self, step: usize, op: &Op) -> Result<(), Violation> {
        match op {
            Op::AddGuard { prefix } => drop(self.guards.insert(*prefix)),
            Op::RemoveGuard { prefix } if self.routes.contains(prefix) => {
                return Err(Violation::Unguarded { step, prefix: *prefix });
            }
            Op::RemoveGuard { prefix } => drop(self.guards.remove(prefix)),
            Op::SetRoute { prefix, .. } if !self.guards.contains(prefix) => {
                return Err(Violation::Unguarded { step, prefix: *prefix });
            }
            Op::SetRoute { prefix, .. } => drop(self.routes.insert(*prefix)),
            Op::RemoveRoute { prefix } => drop(self.routes.remove(prefix)),
            Op::AddPeer { public_key, .. } => drop(self.peers.insert(*public_key)),
            Op::RemovePeer { public_key } => {
                self.peers.remove(public_key);
                self.owners.retain(|_, owner| owner != public_key);
            }
            Op::Allow { public_key, prefixes, .. } => self.give(step, *public_key, prefixes)?,
            Op::Restrict { public_key, keep, .. } => {
                self.owners.retain(|_, owner| owner != public_key);
                self.give(step, *public_key, keep)?;
            }
            Op::CreateDevice { .. }
            | Op::AddRule { .. }
            | Op::RemoveRule { .. }
            | Op::Configure { .. }
            | Op::SetLink { .. }
            | Op::AddAddress { .. }
            | Op::RemoveAddress { .. }
            | Op::SetEndpoint { .. }
            | Op::SetKeepalive { .. } => {}
        }
        Ok(())
    }

    fn give(&mut self, step: usize, to: PublicKey, prefixes: &BTreeSet<IpNet>) -> Result<(), Violation> {
        if !self.peers.contains(&to) {
            return Err(Violation::UnknownPeer { step, public_key: to });
        }
        for &prefix in prefixes {
            match self.given.insert(prefix, to) {
                Some(owner) if owner != to => {
                    return Err(Violation::Contested { step, prefix, owner, to });
                }
                _ => drop(self.owners.insert(prefix, to)),
            }
        }
        Ok(())
    }

    fn judge(&self, desired: &Desired, clusters: &Clusters<'_>) -> Result<(), Violation> {
        if let Some(&prefix) = self.routes.difference(&self.guards).next() {
            return Err(Violation::LeftUnguarded { prefix });
        }
        for (&prefix, &owner) in &self.owners {
            if let Some(&address) = desired.addresses.iter().find(|address| prefix.contains(*address)) {
                return Err(Violation::OwnAddress { prefix, owner, address });
            }
        }
        self.judge_overlaps(clusters)
    }

    /// Prefixes sort by address, then length, so what covers a prefix comes before it: one pass with a stack.
    fn judge_overlaps(&self, clusters: &Clusters<'_>) -> Result<(), Violation> {
        let mut above: Vec<(IpNet, PublicKey)> = Vec::new();
        for (&inner, &inner_owner) in &self.owners {
            while above.last().is_some_and(|(outer, _)| !outer.contains(&inner)) {
                above.pop();
            }
            if let Some(&(outer, outer_owner)) = above.last() {
                let (a, b) = (clusters.get(&inner_owner), clusters.get(&outer_owner));
                if inner_owner != outer_owner && (a.is_none() || a != b) {
                    return Err(Violation::Overlap { inner, inner_owner, outer, outer_owner });
                }
            }
            above.push((inner, inner_owner));
        }
        Ok(())
    }
}
