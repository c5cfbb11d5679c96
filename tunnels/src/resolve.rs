//! Settles what contradicts itself in the desired state: between clusters what is there stays where it is, inside one
//! the first by name has it, and the loser is named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::PublicKey;
use ipnet::IpNet;

use crate::keys::keys;
use crate::owners::Owners;
use crate::{Desired, Family, Observed, Peer, PeerName};

/// The desired state without contradictions: one owner per prefix, one node per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Prefix and preferred source.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Holds every prefix of `routes`.
    pub guards: BTreeSet<IpNet>,
    pub problems: Vec<Problem>,
}

/// A claim that was not granted. The rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "{winner} and {loser} state the same public key {public_key:?}; {loser} gets no tunnel. fix: give {loser} a key of its own"
    )]
    SharedKey { public_key: PublicKey, winner: PeerName, loser: PeerName },
    #[error(
        "{one} and {other} of different clusters state the same public key {public_key:?}; neither gets a tunnel. fix: give both keys of their own, and disconnect the cluster that states what is not its own"
    )]
    ContestedKey { public_key: PublicKey, one: PeerName, other: PeerName },
    #[error(
        "{peer} states our own public key {public_key:?} and gets no tunnel. fix: give it a key of its own"
    )]
    OwnKey { public_key: PublicKey, peer: PeerName },
    #[error(
        "{prefix} is claimed by {winner} and by {loser}; {winner} keeps it. fix: withdraw it from one of them"
    )]
    SharedPrefix { prefix: IpNet, winner: PeerName, loser: PeerName },
    #[error(
        "{prefix} of {loser} overlaps {held} of {winner}; {winner} keeps it. fix: give the clusters separate prefixes"
    )]
    Overlap { prefix: IpNet, loser: PeerName, held: IpNet, winner: PeerName },
    #[error(
        "{prefix} of {peer} covers our own mesh address {address} and is not accepted. fix: correct what {peer} states"
    )]
    OwnAddress { prefix: IpNet, peer: PeerName, address: IpAddr },
    #[error(
        "{prefix} cannot be routed into the mesh: this node has no {family} mesh address. fix: enable {family} on it"
    )]
    NoSource { prefix: IpNet, family: Family },
    #[error("{prefix} is everything and is not routed into the mesh. fix: state narrower prefixes")]
    Everything { prefix: IpNet },
}

/// A function of what is desired and what is there. What one cluster holds no other takes by stating it; the rest goes by
/// the order of names. Two peers at one endpoint are no contradiction: WireGuard tells them apart by key.
pub fn resolve(desired: &Desired, observed: &Observed) -> Resolved {
    let mut problems = Vec::new();
    let peers = peers(desired, observed, &mut problems);
    let (routes, guards) = ways(desired, &mut problems);
    Resolved { peers, routes, guards, problems }
}

/// Routes with their sources, and guards, those behind the routes among them.
pub(crate) fn ways(
    desired: &Desired,
    problems: &mut Vec<Problem>,
) -> (BTreeMap<IpNet, IpAddr>, BTreeSet<IpNet>) {
    let mut routes = BTreeMap::new();
    let mut guards = BTreeSet::new();
    for prefix in desired.routes.iter().chain(&desired.guards).map(IpNet::trunc) {
        if prefix.prefix_len() == 0 {
            problems.push(Problem::Everything { prefix });
        } else {
            guards.insert(prefix);
        }
    }
    for prefix in desired.routes.iter().map(IpNet::trunc).filter(|prefix| guards.contains(prefix)) {
        let family = Family::of_net(&prefix);
        match desired.source(family) {
            Some(source) => drop(routes.insert(prefix, source)),
            None => problems.push(Problem::NoSource { prefix, family }),
        }
    }
    (routes, guards)
}

fn peers(desired: &Desired, observed: &Observed, problems: &mut Vec<Problem>) -> BTreeMap<PublicKey, Peer> {
    let mut claims = keys(desired, observed, problems);
    // Without its gateway a node is not reached at all, and takes nothing from others.
    let direct: BTreeSet<_> =
        claims.iter().filter(|peer| peer.via.is_none()).map(|peer| peer.public_key).collect();
    claims.retain(|claim| claim.via.is_none_or(|via| direct.contains(&via)));
    claims.sort_by_key(|claim| claim.via.is_some());
    let one_hand = one_hand(&claims);
    let held = held(desired, observed, &claims, &one_hand);
    let mut peers = BTreeMap::new();
    let mut owners = Owners::<&PeerName>::default();
    for claim in claims {
        let mut granted = Peer { allowed: BTreeSet::new(), ..claim.clone() };
        for prefix in claim.allowed.iter().map(IpNet::trunc) {
            match refusal(desired, &one_hand, &held, &owners, claim, prefix) {
                Some(problem) => problems.push(problem),
                None => {
                    owners.insert(prefix, &claim.name);
                    granted.allowed.insert(prefix);
                }
            }
        }
        peers.insert(claim.public_key, granted);
    }
    carry(&mut peers);
    peers
}

/// What a gateway carries is the gateway's to send and to be heard from; the node behind it is no peer itself.
fn carry(peers: &mut BTreeMap<PublicKey, Peer>) {
    let carried: Vec<_> = peers.extract_if(.., |_, peer| peer.via.is_some()).map(|(_, peer)| peer).collect();
    for peer in carried {
        if let Some(gateway) = peer.via.and_then(|via| peers.get_mut(&via)) {
            gateway.allowed.extend(peer.allowed);
        }
    }
}

/// What claimants hold in the kernel already, kept for their clusters. All of it is granted in the end, so that the next
/// plan finds the same.
fn held<'a>(
    desired: &Desired,
    observed: &Observed,
    claims: &[&'a Peer],
    one_hand: &OneHand<'_>,
) -> Owners<&'a PeerName> {
    let mut held = Owners::<&PeerName>::default();
    let nothing = Owners::default();
    for claim in claims {
        let Some(kernel) = observed.peers.get(&carrier(claim)) else { continue };
        for prefix in claim.allowed.iter().map(IpNet::trunc).filter(|prefix| kernel.allowed.contains(prefix))
        {
            if refusal(desired, one_hand, &held, &nothing, claim, prefix).is_none() {
                held.insert(prefix, &claim.name);
            }
        }
    }
    held
}

/// In whose tunnel it is sent and heard.
fn carrier(peer: &Peer) -> PublicKey {
    peer.via.unwrap_or(peer.public_key)
}

/// Whose a prefix is by what gateways are told: theirs, or the first one's that they carry.
type OneHand<'a> = BTreeMap<(PublicKey, IpNet), &'a PeerName>;

/// The kernel does not tell what a gateway has for itself from what it carries, nor for whom. So that the next plan finds the
/// same, clusters that state one prefix at one gateway do not take turns. O(prefixes), and nothing without gateways.
fn one_hand<'a>(claims: &[&'a Peer]) -> OneHand<'a> {
    let gateways: BTreeSet<_> = claims.iter().filter_map(|claim| claim.via).collect();
    let mut first = OneHand::new();
    for claim in claims.iter().filter(|claim| gateways.contains(&carrier(claim))) {
        for prefix in claim.allowed.iter().map(IpNet::trunc) {
            first.entry((carrier(claim), prefix)).or_insert(&claim.name);
        }
    }
    first
}

fn refusal(
    desired: &Desired,
    one_hand: &OneHand<'_>,
    held: &Owners<&PeerName>,
    owners: &Owners<&PeerName>,
    claim: &Peer,
    prefix: IpNet,
) -> Option<Problem> {
    if let Some(address) = desired.addresses.iter().copied().find(|address| prefix.contains(address)) {
        return Some(Problem::OwnAddress { prefix, peer: claim.name.clone(), address });
    }
    let foreign = |name: &PeerName| name.cluster != claim.name.cluster;
    let kept = held.get(&prefix).filter(|name| foreign(name));
    let kept = kept.or_else(|| one_hand.get(&(carrier(claim), prefix)).filter(|name| foreign(name)));
    if let Some(&winner) = kept.or_else(|| owners.get(&prefix)) {
        let (winner, loser) = (winner.clone(), claim.name.clone());
        return Some(Problem::SharedPrefix { prefix, winner, loser });
    }
    let mut nested = held.overlapping(prefix).chain(owners.overlapping(prefix));
    let (held, winner) = nested.find(|(_, name)| foreign(name))?;
    Some(Problem::Overlap { prefix, loser: claim.name.clone(), held: *held, winner: (*winner).clone() })
}
