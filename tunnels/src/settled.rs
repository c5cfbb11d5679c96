//! What is known to be as it was planned, so that the next plan is made, and judged, by what changed alone.
//!
//! [`crate::plan()`] and [`crate::check()`] look at every prefix there is. That is right after a start, after an error, and
//! now and then in between, because others can change a kernel; for one pod among hundreds of thousands it is a waste.
//! What changed is decided here as the whole plan would decide it, and whatever it might have to weigh (a claim that
//! contradicts another, a key that changes hands, a gateway, another device) is left to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hawser_model::{ClusterRef, PublicKey};
use ipnet::IpNet;

use crate::check::{Clusters, Paper, Violation, whole};
use crate::owners::Owners;
use crate::plan::add;
use crate::resolve::ways;
use crate::{Desired, Observed, Op, Peer, PeerName, Plan};

/// Everything that was desired is there, and nothing else.
pub struct Settled {
    paper: Paper,
    clusters: Clusters,
    /// Given ahead of the plan that will ask for it.
    ahead: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    /// Nothing that was asked for was refused, and no gateway is on the way.
    granted: bool,
}

impl std::fmt::Debug for Settled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} peers, settled", self.clusters.len())
    }
}

/// Of one key: the peer before, and now.
type Change<'a> = (Option<&'a Peer>, Option<&'a Peer>);

impl Settled {
    /// What is there once a whole plan has been carried out, which is judged as [`crate::check()`] does.
    pub fn after(plan: &Plan, observed: &Observed, desired: &Desired) -> Result<Self, Violation> {
        let (paper, clusters) = whole(&plan.ops, observed, desired)?;
        // What a gateway carries for others is theirs in one place and its own in another.
        let direct = desired.peers.iter().all(|peer| peer.via.is_none());
        let granted = plan.problems.is_empty() && direct;
        Ok(Self { paper, clusters, ahead: BTreeMap::new(), granted })
    }

    /// The steps from `before`, which is what is settled, to `desired`, judged by the rules of [`crate::check()`], and what is
    /// settled once they have been carried out. None where that takes a whole plan.
    ///
    /// Comparing is O(peers + prefixes); everything else O(what changed, with all prefixes of a peer that changed), times a
    /// logarithm.
    pub fn follow(
        mut self,
        before: &Desired,
        desired: &Desired,
    ) -> Result<Option<(Vec<Op>, Self)>, Violation> {
        let Some(ops) = self.steps(before, desired) else { return Ok(None) };
        let named = ops.iter().filter_map(|op| match op {
            Op::AddPeer { peer, public_key, .. } => Some((*public_key, peer.cluster.clone())),
            _ => None,
        });
        self.clusters.extend(named);
        self.paper.carry_out_all(&ops, &self.clusters)?;
        self.paper.judge_given(desired, &self.clusters)?;
        for op in &ops {
            if let Op::RemovePeer { public_key } = op {
                self.clusters.remove(public_key);
            }
        }
        self.ahead.clear();
        Ok(Some((ops, self)))
    }

    /// One prefix more for a peer, before the plan that will ask for it is there. None where a whole plan has to decide, or
    /// the peer has it. O(log prefixes).
    pub fn ahead(
        &mut self,
        peer: &PeerName,
        public_key: PublicKey,
        prefix: IpNet,
        desired: &Desired,
    ) -> Option<Op> {
        let known = self.clusters.get(&public_key) == Some(&peer.cluster);
        let free = self.paper.owners().get(&prefix).is_none() && prefix == prefix.trunc();
        if !self.granted || !known || !free {
            return None;
        }
        let mut gained = Owners::default();
        self.admit(desired, &BTreeMap::new(), &mut gained, public_key, &peer.cluster, prefix)?;
        let prefixes = BTreeSet::from([prefix]);
        let op = Op::Allow { peer: peer.clone(), public_key, prefixes };
        let ops = std::slice::from_ref(&op);
        self.paper.carry_out_all(ops, &self.clusters).ok()?;
        self.paper.judge_given(desired, &self.clusters).ok()?;
        self.ahead.entry(public_key).or_default().insert(prefix);
        Some(op)
    }

    /// As the whole plan orders them.
    fn steps(&self, before: &Desired, desired: &Desired) -> Option<Vec<Op>> {
        let Desired { device, addresses, peers, routes: _, guards: _ } = desired;
        let same = *device == before.device && *addresses == before.addresses;
        if !same || !self.granted || peers.iter().any(|peer| peer.via.is_some()) {
            return None;
        }
        let mut changes = changes(&before.peers, peers)?;
        for key in self.ahead.keys().filter(|key| !changes.contains_key(key)).copied().collect::<Vec<_>>() {
            let peer = peers.iter().find(|peer| peer.public_key == key)?;
            changes.insert(key, (Some(peer), Some(peer)));
        }
        let lost = self.lost(&changes);
        let moved = self.gained(&changes, &lost, desired)?;

        let mut problems = Vec::new();
        let (had, has) = (ways(before, &mut problems), ways(desired, &mut problems));
        if !problems.is_empty() {
            return None;
        }
        let ((old_routes, old_guards), (routes, guards)) = (had, has);
        let mut ops: Vec<_> = guards.difference(&old_guards).map(|&prefix| Op::AddGuard { prefix }).collect();
        changes.iter().for_each(|(key, change)| self.give(*key, *change, &mut ops));
        let new = routes.iter().filter(|(prefix, source)| old_routes.get(prefix) != Some(source));
        ops.extend(new.map(|(&prefix, &source)| Op::SetRoute { prefix, source }));
        let stale = old_routes.keys().filter(|prefix| !routes.contains_key(prefix));
        ops.extend(stale.map(|&prefix| Op::RemoveRoute { prefix }));
        for (&public_key, change) in &changes {
            match change {
                (Some(_), None) => ops.push(Op::RemovePeer { public_key }),
                (Some(_), Some(peer)) => {
                    let had = self.had(public_key, change.0);
                    let left_over =
                        |prefix: &IpNet| !peer.allowed.contains(prefix) && moved.get(prefix).is_none();
                    let drop: BTreeSet<IpNet> = had.filter(left_over).collect();
                    if !drop.is_empty() {
                        let (peer, keep) = (peer.name.clone(), peer.allowed.clone());
                        ops.push(Op::Restrict { peer, public_key, keep, drop });
                    }
                }
                (None, _) => {}
            }
        }
        ops.extend(old_guards.difference(&guards).map(|&prefix| Op::RemoveGuard { prefix }));
        Some(ops)
    }

    /// What a peer owned, with what it was given ahead.
    fn had<'a>(&'a self, key: PublicKey, before: Option<&'a Peer>) -> impl Iterator<Item = IpNet> + 'a {
        let planned = before.into_iter().flat_map(|peer| peer.allowed.iter().copied());
        planned.chain(self.ahead.get(&key).into_iter().flatten().copied())
    }

    /// What peers do not want any more, and whose it is.
    fn lost(&self, changes: &BTreeMap<PublicKey, Change<'_>>) -> BTreeMap<IpNet, PublicKey> {
        let of = |(key, (before, after)): (&PublicKey, &Change<'_>)| {
            let (key, after) = (*key, *after);
            let lost = self.had(key, *before);
            lost.filter(move |prefix| !after.is_some_and(|peer| peer.allowed.contains(prefix)))
                .map(move |prefix| (prefix, key))
                .collect::<Vec<_>>()
        };
        changes.iter().flat_map(of).collect()
    }

    /// What peers gain, if nobody has anything against it.
    fn gained<'a>(
        &self,
        changes: &BTreeMap<PublicKey, Change<'a>>,
        lost: &BTreeMap<IpNet, PublicKey>,
        desired: &Desired,
    ) -> Option<Owners<&'a ClusterRef>> {
        let mut gained = Owners::default();
        for (key, (before, after)) in changes {
            let Some(peer) = after else { continue };
            let known = self.clusters.get(key);
            let fine = match before {
                Some(was) => rest(was) == rest(peer),
                None => known.is_none() && *key != desired.device.public_key,
            };
            if !fine || known.is_some_and(|cluster| *cluster != peer.name.cluster) {
                return None;
            }
            for &prefix in peer.allowed.iter().filter(|prefix| !self.owns(*key, prefix)) {
                self.admit(desired, lost, &mut gained, *key, &peer.name.cluster, prefix)?;
            }
        }
        Some(gained)
    }

    fn owns(&self, key: PublicKey, prefix: &IpNet) -> bool {
        self.paper.owners().get(prefix) == Some(&key)
    }

    /// None where it contradicts what is there or what others gain.
    fn admit<'a>(
        &self,
        desired: &Desired,
        lost: &BTreeMap<IpNet, PublicKey>,
        gained: &mut Owners<&'a ClusterRef>,
        key: PublicKey,
        cluster: &'a ClusterRef,
        prefix: IpNet,
    ) -> Option<()> {
        let own = desired.addresses.iter().any(|address| prefix.contains(address));
        let owner = self.paper.owners().get(&prefix);
        let taken = owner.is_some_and(|owner| *owner != key && lost.get(&prefix) != Some(owner));
        if own || taken || prefix != prefix.trunc() {
            return None;
        }
        let stays = |(other, owner): (&IpNet, &PublicKey)| lost.get(other) != Some(owner);
        let foreign = |owner: &PublicKey| self.clusters.get(owner) != Some(cluster);
        let mut around = self.paper.owners().overlapping(prefix);
        if around.any(|(other, owner)| stays((other, owner)) && foreign(owner)) {
            return None;
        }
        if gained.overlapping(prefix).any(|(_, of)| *of != cluster) {
            return None;
        }
        gained.insert(prefix, cluster).is_none().then_some(())
    }

    fn give(&self, public_key: PublicKey, (before, after): Change<'_>, ops: &mut Vec<Op>) {
        let Some(peer) = after else { return };
        let name = || peer.name.clone();
        match before {
            None => ops.push(add(peer)),
            Some(was) => {
                if was.endpoint != peer.endpoint {
                    ops.push(Op::SetEndpoint { peer: name(), public_key, endpoint: peer.endpoint });
                }
                if was.keepalive != peer.keepalive {
                    ops.push(Op::SetKeepalive { peer: name(), public_key, keepalive: peer.keepalive });
                }
                if was.more_ports != peer.more_ports {
                    ops.push(Op::SetPorts { peer: name(), public_key, ports: peer.more_ports.clone() });
                }
            }
        }
        let missing = |prefix: &&IpNet| !self.owns(public_key, prefix);
        let prefixes: BTreeSet<IpNet> = peer.allowed.iter().filter(missing).copied().collect();
        if !prefixes.is_empty() {
            ops.push(Op::Allow { peer: name(), public_key, prefixes });
        }
    }
}

/// What is not the same, by key; none when a key is stated twice. Comparing is O(peers + prefixes).
fn changes<'a>(before: &'a [Peer], after: &'a [Peer]) -> Option<BTreeMap<PublicKey, Change<'a>>> {
    let head = before.iter().zip(after).take_while(|(was, is)| was == is).count();
    let (before, after) = (&before[head..], &after[head..]);
    let tail = before.iter().rev().zip(after.iter().rev()).take_while(|(was, is)| was == is).count();
    let (before, after) = (&before[..before.len() - tail], &after[..after.len() - tail]);
    let mut changes = BTreeMap::<PublicKey, Change<'a>>::new();
    for peer in before {
        changes.entry(peer.public_key).or_default().0 = Some(peer);
    }
    for peer in after {
        if changes.entry(peer.public_key).or_default().1.replace(peer).is_some() {
            return None;
        }
    }
    changes.retain(|_, (was, is)| was != is);
    Some(changes)
}

/// What no step here changes of a peer that is there.
fn rest(peer: &Peer) -> Peer {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    Peer { endpoint: nowhere, keepalive: None, allowed: BTreeSet::new(), ..peer.clone() }
}
