//! Prefixes that were the mesh's until lately: what still speaks to them must not leave in clear.
//!
//! A connection into a cluster that was disconnected goes on sending; without a guard the CNI would masquerade it and send
//! its payload over the underlay. So a guard outlives its cluster by more than TCP's patience.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_ebpf_abi::{DesiredDatapath, IP_GUARDED, IpEntry, PrefixKey};
use hawser_model::Time;
use hawser_tunnels::Desired;
use ipnet::IpNet;

/// TCP gives a connection up after 924 s of silence at the least, by default (`tcp_retries2` = 15).
pub const GUARD_REST: Duration = Duration::from_secs(20 * 60);

#[derive(Clone, Debug, Default)]
pub(crate) struct Guards {
    wanted: BTreeSet<IpNet>,
    resting: BTreeMap<IpNet, Time>,
}

impl Guards {
    /// What an earlier run guarded: those that are not wanted now rest from the first plan on.
    pub(crate) fn remember(&mut self, earlier: &BTreeSet<IpNet>) {
        self.wanted.extend(earlier);
    }

    /// Adds what was guarded lately to what is wanted now. O(prefixes).
    pub(crate) fn settle(&mut self, mut tunnels: Desired, now: Time) -> Desired {
        let wanted: BTreeSet<_> = tunnels.guards.union(&tunnels.routes).copied().collect();
        let gone = self.wanted.difference(&wanted).map(|prefix| (*prefix, now + GUARD_REST));
        self.resting.extend(gone);
        self.resting.retain(|prefix, until| !wanted.contains(prefix) && *until > now);
        self.wanted = wanted;
        tunnels.guards.extend(self.resting.keys());
        tunnels
    }

    /// When the next one has rested long enough.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.resting.values().min().copied()
    }
}

/// What is guarded leaves by no other device either, whatever others' routes say. O(prefixes).
pub(crate) fn keep_inside(tunnels: &Desired, datapath: &mut DesiredDatapath) {
    let guarded = IpEntry { flags: IP_GUARDED, ..IpEntry::default() };
    // What is everything is refused by the tunnels' plan, too.
    let prefixes = tunnels.guards.union(&tunnels.routes).filter(|prefix| prefix.prefix_len() > 0);
    for key in prefixes.filter_map(|prefix| PrefixKey::new(prefix.addr(), prefix.prefix_len())) {
        datapath.ipcache.entry(key).or_insert(guarded);
    }
}
