//! Whose a public key is: keys are public, so anybody can state anybody's.

use std::collections::BTreeMap;

use hawser_model::{ClusterRef, PublicKey};
use ipnet::IpNet;

use crate::{Desired, Observed, Peer, Problem};

/// One peer per key, in the order of names.
///
/// Of two nodes of one cluster that state one key the first has it: that is their cluster's affair. Of two clusters the
/// one that holds it in the kernel keeps it, and where none does neither gets it: a third cluster that states what it
/// read elsewhere takes nothing from its owner, and nothing is granted by a name.
///
/// O(peers + prefixes), times a logarithm.
pub(crate) fn keys<'a>(
    desired: &'a Desired,
    observed: &Observed,
    problems: &mut Vec<Problem>,
) -> Vec<&'a Peer> {
    let mut claims: Vec<&Peer> = desired.peers.iter().collect();
    claims.sort_by_key(|peer| (&peer.name, peer.public_key, peer.endpoint, &peer.allowed));
    let mut rivals = BTreeMap::<PublicKey, Vec<&Peer>>::new();
    for claim in &claims {
        let public_key = claim.public_key;
        if public_key == desired.device.public_key {
            problems.push(Problem::OwnKey { public_key, peer: claim.name.clone() });
            continue;
        }
        let rivals = rivals.entry(public_key).or_default();
        match rivals.iter().find(|first| first.name.cluster == claim.name.cluster) {
            Some(first) => problems.push(shared(first, claim)),
            None => rivals.push(claim),
        }
    }
    let contested = rivals.values().any(|rivals| rivals.len() > 1);
    let stated = if contested { Stated::by(&claims) } else { Stated::default() };
    let mut granted = Vec::new();
    for (public_key, rivals) in rivals {
        let holder = match rivals[..] {
            [only] => Some(only),
            _ => holder(desired, &stated, observed, &rivals),
        };
        granted.extend(holder);
        for (at, rival) in rivals.iter().enumerate() {
            match holder {
                Some(holder) if holder.name == rival.name => {}
                Some(holder) => problems.push(shared(holder, rival)),
                None if at == 0 => {}
                None => {
                    let (one, other) = (rivals[0].name.clone(), rival.name.clone());
                    problems.push(Problem::ContestedKey { public_key, one, other });
                }
            }
        }
    }
    granted.sort_by_key(|peer| (&peer.name, peer.public_key));
    granted
}

fn shared(winner: &Peer, loser: &Peer) -> Problem {
    let (public_key, winner, loser) = (loser.public_key, winner.name.clone(), loser.name.clone());
    Problem::SharedKey { public_key, winner, loser }
}

/// The one whose own address the key, or the gateway that carries it, has in the kernel.
///
/// Only single addresses count that nobody else states or covers. Each node has two, its mesh addresses, which are
/// computed from cluster and node; and such an address is granted again, so the answer stays what it is.
fn holder<'a>(
    desired: &Desired,
    stated: &Stated<'_>,
    observed: &Observed,
    rivals: &[&'a Peer],
) -> Option<&'a Peer> {
    let proves = |rival: &Peer, prefix: &IpNet| {
        let carrier = observed.peers.get(&rival.via.unwrap_or(rival.public_key));
        carrier.is_some_and(|carrier| carrier.allowed.contains(prefix))
            && !desired.addresses.contains(&prefix.addr())
            && stated.only_by(rival, *prefix)
    };
    let single = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
    let holds = |rival: &&&Peer| rival.allowed.iter().filter(single).any(|prefix| proves(rival, prefix));
    let mut holding = rivals.iter().filter(holds);
    let first = holding.next()?;
    holding.next().is_none().then_some(*first)
}

/// Who states a prefix: their cluster unless they are of several, and how many they are.
#[derive(Default)]
struct Stated<'a>(BTreeMap<IpNet, (Option<&'a ClusterRef>, usize)>);

impl<'a> Stated<'a> {
    fn by(claims: &[&'a Peer]) -> Self {
        let mut stated = BTreeMap::new();
        for claim in claims {
            let cluster = &claim.name.cluster;
            for prefix in claim.allowed.iter().map(IpNet::trunc) {
                let (of, times) = stated.entry(prefix).or_insert((Some(cluster), 0));
                *of = of.filter(|of| *of == cluster);
                *times += 1;
            }
        }
        Self(stated)
    }

    /// Whether nobody else states this single address, and no other cluster a prefix around it. O(prefix length).
    fn only_by(&self, peer: &Peer, address: IpNet) -> bool {
        let own = |of: &Option<&ClusterRef>| *of == Some(&peer.name.cluster);
        let mut around = std::iter::successors(address.supernet(), |net| net.supernet());
        self.0.get(&address).is_some_and(|(of, times)| own(of) && *times == 1)
            && around.all(|net| self.0.get(&net).is_none_or(|(of, _)| own(of)))
    }
}
