//! Judges a list of operations without knowing how it came about: by carrying it out on paper.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use hawser_model::{ClusterRef, PublicKey};
use ipnet::IpNet;

use crate::keys::keys;
use crate::owners::Owners;
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
/// `desired` says only which cluster a key belongs to and which addresses are our own. O(peers + prefixes + what the steps
/// name), times a logarithm.
pub fn check(ops: &[Op], observed: &Observed, desired: &Desired) -> Result<(), Violation> {
    whole(ops, observed, desired).map(drop)
}

/// As [`check`]; gives what is there afterwards, and whose the keys are.
pub(crate) fn whole(
    ops: &[Op],
    observed: &Observed,
    desired: &Desired,
) -> Result<(Paper, Clusters), Violation> {
    let mut paper = Paper::of(observed);
    // A key that is nobody's is not among them.
    let keys = keys(desired, observed, &mut Vec::new());
    let clusters = keys.into_iter().map(|peer| (peer.public_key, peer.name.cluster.clone())).collect();
    paper.carry_out_all(ops, &clusters)?;
    paper.judge(desired, &clusters)?;
    paper.given = BTreeMap::new();
    Ok((paper, clusters))
}

/// Which cluster a key belongs to.
pub(crate) type Clusters = HashMap<PublicKey, ClusterRef>;

fn whose(step: usize, op: &Op, clusters: &Clusters) -> Result<(), Violation> {
    match op {
        Op::AddPeer { peer, public_key, .. }
        | Op::SetEndpoint { peer, public_key, .. }
        | Op::SetKeepalive { peer, public_key, .. }
        | Op::SetPorts { peer, public_key, .. }
        | Op::Allow { peer, public_key, .. }
        | Op::Restrict { peer, public_key, .. }
            if clusters.get(public_key) != Some(&peer.cluster) =>
        {
            Err(Violation::ForeignKey { step, public_key: *public_key, peer: peer.clone() })
        }
        _ => Ok(()),
    }
}

/// What is there, as far as the rules speak of it.
pub(crate) struct Paper {
    owners: Owners<PublicKey>,
    /// The same the other way round; every peer, also one that owns nothing.
    owned: HashMap<PublicKey, BTreeSet<IpNet>>,
    /// By the list that is carried out.
    given: BTreeMap<IpNet, PublicKey>,
    routes: BTreeSet<IpNet>,
    guards: BTreeSet<IpNet>,
}

impl Paper {
    fn of(observed: &Observed) -> Self {
        let owned = observed.peers.iter();
        let owners = owned.clone().flat_map(|(key, peer)| peer.allowed.iter().map(|prefix| (*prefix, *key)));
        Self {
            owners: owners.collect(),
            owned: owned.map(|(key, peer)| (*key, peer.allowed.clone())).collect(),
            given: BTreeMap::new(),
            routes: observed.routes.keys().copied().collect(),
            guards: observed.guards.clone(),
        }
    }

    pub(crate) fn owners(&self) -> &Owners<PublicKey> {
        &self.owners
    }

    pub(crate) fn has_peer(&self, key: &PublicKey) -> bool {
        self.owned.contains_key(key)
    }

    /// Each step O(the prefixes that it names, and those of a peer that goes), times a logarithm.
    pub(crate) fn carry_out_all(&mut self, ops: &[Op], clusters: &Clusters) -> Result<(), Violation> {
        self.given.clear();
        for (step, op) in ops.iter().enumerate() {
            whose(step + 1, op, clusters)?;
            self.carry_out(step + 1, op)?;
        }
        Ok(())
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
            Op::AddPeer { public_key, .. } => drop(self.owned.entry(*public_key).or_default()),
            Op::RemovePeer { public_key } => {
                self.strip(public_key);
                self.owned.remove(public_key);
            }
            Op::Allow { public_key, prefixes, .. } => self.give(step, *public_key, prefixes)?,
            Op::Restrict { public_key, keep, .. } => {
                self.strip(public_key);
                self.give(step, *public_key, keep)?;
            }
            Op::CreateDevice { .. }
            | Op::RemoveRule { .. }
            | Op::Configure { .. }
            | Op::SetLink { .. }
            | Op::AddAddress { .. }
            | Op::RemoveAddress { .. }
            | Op::SetEndpoint { .. }
            | Op::SetKeepalive { .. }
            | Op::SetPorts { .. } => {}
        }
        Ok(())
    }

    fn strip(&mut self, public_key: &PublicKey) {
        let owned = self.owned.get_mut(public_key).map(std::mem::take).unwrap_or_default();
        for prefix in
            owned.iter().filter(|prefix| self.owners.get(prefix) == Some(public_key)).collect::<Vec<_>>()
        {
            self.owners.remove(prefix);
        }
    }

    fn give(&mut self, step: usize, to: PublicKey, prefixes: &BTreeSet<IpNet>) -> Result<(), Violation> {
        if !self.has_peer(&to) {
            return Err(Violation::UnknownPeer { step, public_key: to });
        }
        for &prefix in prefixes {
            if let Some(owner) = self.given.insert(prefix, to).filter(|owner| *owner != to) {
                return Err(Violation::Contested { step, prefix, owner, to });
            }
            let before = self.owners.insert(prefix, to).filter(|owner| *owner != to);
            if let Some(lost) = before.and_then(|owner| self.owned.get_mut(&owner)) {
                lost.remove(&prefix);
            }
            self.owned.entry(to).or_default().insert(prefix);
        }
        Ok(())
    }

    /// Of what the list has given, where everything else was judged before. O(given), times a logarithm and what lies below.
    pub(crate) fn judge_given(&self, desired: &Desired, clusters: &Clusters) -> Result<(), Violation> {
        for (&prefix, &owner) in &self.given {
            own_address(desired, prefix, owner)?;
            for (&other, &of) in self.owners.overlapping(prefix) {
                // What is above has fewer bits.
                let [inner, outer] = match other.prefix_len() < prefix.prefix_len() {
                    true => [(prefix, owner), (other, of)],
                    false => [(other, of), (prefix, owner)],
                };
                apart(inner, outer, clusters, &Carried::new())?;
            }
        }
        Ok(())
    }

    fn judge(&self, desired: &Desired, clusters: &Clusters) -> Result<(), Violation> {
        if let Some(&prefix) = self.routes.difference(&self.guards).next() {
            return Err(Violation::LeftUnguarded { prefix });
        }
        self.owners.iter().try_for_each(|(prefix, owner)| own_address(desired, *prefix, *owner))?;
        self.judge_overlaps(clusters, &carried(desired))
    }

    /// Prefixes sort by address, then length, so what covers a prefix comes before it: one pass with a stack.
    fn judge_overlaps(&self, clusters: &Clusters, carried: &Carried<'_>) -> Result<(), Violation> {
        let mut above: Vec<(IpNet, PublicKey)> = Vec::new();
        for (&inner, &inner_owner) in self.owners.iter() {
            while above.last().is_some_and(|(outer, _)| !outer.contains(&inner)) {
                above.pop();
            }
            if let Some(outer) = above.last() {
                apart((inner, inner_owner), *outer, clusters, carried)?;
            }
            above.push((inner, inner_owner));
        }
        Ok(())
    }
}

fn own_address(desired: &Desired, prefix: IpNet, owner: PublicKey) -> Result<(), Violation> {
    match desired.addresses.iter().find(|address| prefix.contains(*address)) {
        Some(&address) => Err(Violation::OwnAddress { prefix, owner, address }),
        None => Ok(()),
    }
}

/// Who states what a gateway has, by its key and the prefix. Everything else is of its owner's cluster.
type Carried<'a> = BTreeMap<(PublicKey, IpNet), Vec<&'a ClusterRef>>;

fn carried(desired: &Desired) -> Carried<'_> {
    let gateways: BTreeSet<_> = desired.peers.iter().filter_map(|peer| peer.via).collect();
    let mut carried = Carried::new();
    for peer in &desired.peers {
        let owner = peer.via.unwrap_or(peer.public_key);
        for prefix in peer.allowed.iter().map(IpNet::trunc).filter(|_| gateways.contains(&owner)) {
            carried.entry((owner, prefix)).or_default().push(&peer.name.cluster);
        }
    }
    carried
}

/// Only inside of one cluster does a prefix lie in another.
fn apart(
    (inner, inner_owner): (IpNet, PublicKey),
    (outer, outer_owner): (IpNet, PublicKey),
    clusters: &Clusters,
    carried: &Carried<'_>,
) -> Result<(), Violation> {
    let of = |prefix, owner: PublicKey| carried.get(&(owner, prefix));
    let apart = match (of(inner, inner_owner), of(outer, outer_owner)) {
        (None, None) => {
            let (a, b) = (clusters.get(&inner_owner), clusters.get(&outer_owner));
            inner_owner == outer_owner || (a.is_some() && a == b)
        }
        (Some(a), Some(b)) => a.iter().any(|cluster| b.contains(cluster)),
        (Some(carried), None) => clusters.get(&outer_owner).is_some_and(|owner| carried.contains(&owner)),
        (None, Some(carried)) => clusters.get(&inner_owner).is_some_and(|owner| carried.contains(&owner)),
    };
    if apart { Ok(()) } else { Err(Violation::Overlap { inner, inner_owner, outer, outer_owner }) }
}
