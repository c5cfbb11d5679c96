//! The difference between what is and what should be, as steps in an order that never opens a gap.

use std::collections::{BTreeMap, BTreeSet};

use hawser_model::PublicKey;
use ipnet::IpNet;

use crate::{Desired, Observed, ObservedDevice, ObservedPeer, Op, Peer, Problem, Resolved, Rule, resolve};

/// What to do, and what was asked for but cannot be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub ops: Vec<Op>,
    pub problems: Vec<Problem>,
}

/// Make before break:
/// 1. guards and the rule that makes them count, so that nothing can leave in clear from here on;
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
    let rules = desired.rules();
    ops.extend(rules.difference(&observed.rules).map(|&rule| Op::AddRule { rule }));
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
    ops.extend(obsolete_rules(&rules, &observed.rules));
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
            Some(is) if is.slot.is_some_and(|slot| slot != peer.slot) => ops.push(add(peer)),
            Some(is) => {
                if is.configured.or(is.endpoint) != Some(peer.endpoint) {
                    ops.push(Op::SetEndpoint { peer: name(), public_key, endpoint: peer.endpoint });
                }
                if is.keepalive != peer.keepalive {
                    ops.push(Op::SetKeepalive { peer: name(), public_key, keepalive: peer.keepalive });
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

fn add(peer: &Peer) -> Op {
    Op::AddPeer {
        peer: peer.name.clone(),
        public_key: peer.public_key,
        endpoint: peer.endpoint,
        keepalive: peer.keepalive,
        boot_id: peer.boot_id.clone(),
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

fn obsolete_rules(want: &BTreeSet<Rule>, have: &BTreeSet<Rule>) -> Vec<Op> {
    have.difference(want).map(|&rule| Op::RemoveRule { rule }).collect()
}
