//! The difference between what is and what should be, as steps in an order that never opens a gap.

use std::collections::{BTreeMap, BTreeSet};

use hawser_model::PublicKey;
use ipnet::IpNet;

use crate::{Desired, Observed, ObservedDevice, ObservedPeer, Op, Peer, Problem, Resolved, resolve};

/// What to do, and what was asked for but cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub ops: Vec<Op>,
    pub problems: Vec<Problem>,
}

/// Make before break:
/// 1. guards, so that nothing can leave in clear from here on;
/// 2. the device and own addresses;
/// 3. peers and their prefixes: a prefix that changes hands moves in one step, because WireGuard gives it to the last one told;
/// 4. routes into the mesh, each behind its guard;
/// 5. removals, in the opposite order.
///
/// Nothing to do is an empty list. O(peers + prefixes), times a logarithm.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let Resolved { peers, routes, guards, problems } = resolve(desired, observed);
    let mut ops = Vec::new();

    if observed.device.is_none() {
        ops.push(Op::CreateDevice { name: desired.device.name.clone() });
    }
    ops.extend(guards.difference(&observed.guards).map(|&prefix| Op::AddGuard { prefix }));
    device(desired, observed.device.as_ref(), &mut ops);
    ops.extend(desired.addresses.difference(&observed.addresses).map(|&address| Op::AddAddress { address }));

    let moved = give(&peers, &observed.peers, &mut ops);

    for (&prefix, &source) in &routes {
        if observed.routes.get(&prefix) != Some(&Some(source)) {
            ops.push(Op::SetRoute { prefix, source });
        }
    }

    let stale = observed.routes.keys().filter(|prefix| !routes.contains_key(prefix));
    ops.extend(stale.map(|&prefix| Op::RemoveRoute { prefix }));
    take(&peers, &observed.peers, &moved, &mut ops);
    ops.extend(
        observed.addresses.difference(&desired.addresses).map(|&address| Op::RemoveAddress { address }),
    );
    ops.extend(observed.rules.iter().map(|&rule| Op::RemoveRule { rule }));
    ops.extend(observed.guards.difference(&guards).map(|&prefix| Op::RemoveGuard { prefix }));
    Plan { ops, problems }
}

fn device(desired: &Desired, observed: Option<&ObservedDevice>, ops: &mut Vec<Op>) {
    let want = &desired.device;
    let configured = observed.is_some_and(|is| {
        is.public_key == Some(want.public_key) && is.port == want.port && is.mark == want.mark.value
    });
    if !configured {
        let (name, mark) = (want.name.clone(), want.mark);
        ops.push(Op::Configure { name, public_key: want.public_key, port: want.port, mark });
    }
    if !observed.is_some_and(|is| is.up && is.mtu == u32::from(want.mtu)) {
        ops.push(Op::SetLink { name: want.name.clone(), mtu: want.mtu });
    }
}

/// Adds peers and prefixes; returns the prefixes that some peer gains, whoever held them before.
fn give(
    want: &BTreeMap<PublicKey, Peer>,
    have: &BTreeMap<PublicKey, ObservedPeer>,
    ops: &mut Vec<Op>,
) -> BTreeSet<IpNet> {
    let mut gained = BTreeSet::new();
    for (&public_key, peer) in want {
        let name = || peer.name.clone();
        let is = have.get(&public_key);
        match is {
            None => ops.push(add(peer)),
            Some(is) if is.slot.is_some_and(|slot| slot != peer.slot) || is.esp != peer.esp => {
                ops.push(add(peer));
            }
            Some(is) => {
                if is.configured.or(is.endpoint) != Some(peer.endpoint) {
                    ops.push(Op::SetEndpoint { peer: name(), public_key, endpoint: peer.endpoint });
                }
                if is.keepalive != peer.keepalive {
                    ops.push(Op::SetKeepalive { peer: name(), public_key, keepalive: peer.keepalive });
                }
                if is.more_ports.as_ref().is_some_and(|ports| *ports != peer.more_ports) {
                    ops.push(Op::SetPorts { peer: name(), public_key, ports: peer.more_ports.clone() });
                }
            }
        }
        let missing = |prefix: &&IpNet| !is.is_some_and(|is| is.allowed.contains(prefix));
        let prefixes: BTreeSet<IpNet> = peer.allowed.iter().filter(missing).copied().collect();
        if !prefixes.is_empty() {
            gained.extend(&prefixes);
            ops.push(Op::Allow { peer: name(), public_key, prefixes });
        }
    }
    gained
}

pub(crate) fn add(peer: &Peer) -> Op {
    Op::AddPeer {
        peer: peer.name.clone(),
        public_key: peer.public_key,
        endpoint: peer.endpoint,
        keepalive: peer.keepalive,
        more_ports: peer.more_ports.clone(),
        boot_id: peer.boot_id.clone(),
        esp: peer.esp,
        slot: peer.slot,
    }
}

/// Takes away what nobody was given: a prefix that moved is already gone from its former owner.
fn take(
    want: &BTreeMap<PublicKey, Peer>,
    have: &BTreeMap<PublicKey, ObservedPeer>,
    moved: &BTreeSet<IpNet>,
    ops: &mut Vec<Op>,
) {
    for (&public_key, is) in have {
        let Some(peer) = want.get(&public_key) else {
            ops.push(Op::RemovePeer { public_key });
            continue;
        };
        let left_over = |prefix: &&IpNet| !peer.allowed.contains(prefix) && !moved.contains(prefix);
        let drop: BTreeSet<IpNet> = is.allowed.iter().filter(left_over).copied().collect();
        if !drop.is_empty() {
            ops.push(Op::Restrict { peer: peer.name.clone(), public_key, keep: peer.allowed.clone(), drop });
        }
    }
}
