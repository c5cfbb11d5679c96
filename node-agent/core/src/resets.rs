//! Stuck connections: after what time which of them are ended, when none is, and when the silent ones are looked for.
//!
//! The word says *reset* and since when; the datapath knows the time that has to pass, and here is what it knows it from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_ebpf_abi::{
    CONFIG_CUT_OFF, DesiredDatapath, Port, RESET_NEVER, ResetWish, ServiceKey, size, ticks_of_millis,
};
use hawser_model::{ClusterHealth, ClusterRef, OnLoss, ResetAfter, Time};

use crate::services::MergedService;

/// Whoever speaks hears a reset at once; the sweep comes this much later, for the rest. The word is written meanwhile.
const SPEAK_FIRST: Duration = Duration::from_millis(100);
/// Sweeps that would be nearer than this are one.
const TOGETHER: Duration = Duration::from_millis(150);

/// How many ticks of the datapath's clock; the fixed number for never.
pub(crate) fn ticks(after: ResetAfter) -> u16 {
    match after {
        ResetAfter::Never => RESET_NEVER,
        ResetAfter::Millis(millis) => ticks_of_millis(millis),
    }
}

/// After having been cut off clusters come back one after the other. For so long those that are missing yet count as before.
const REJOIN: Duration = Duration::from_secs(5);

/// Whether it is usually we who are cut off: there are several other clusters, and all of them went down. A reset would then end
/// what would otherwise go on as soon as we are back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CutOff {
    is: bool,
    /// Some are back.
    ends: Option<Time>,
}

impl CutOff {
    pub(crate) fn is(self) -> bool {
        self.is
    }

    pub(crate) fn deadline(self) -> Option<Time> {
        self.ends
    }

    /// By the verdicts about all other clusters. True when it is otherwise than before. O(clusters).
    pub(crate) fn judge(&mut self, verdicts: &[ClusterHealth], now: Time) -> bool {
        let (before, down) = (self.is, ClusterHealth::Down);
        if verdicts.len() > 1 && verdicts.iter().all(|verdict| *verdict == down) {
            *self = Self { is: true, ends: None };
        } else if self.is {
            let ends = *self.ends.get_or_insert(now + REJOIN);
            if ends <= now || !verdicts.contains(&down) {
                *self = Self::default();
            }
        }
        self.is != before
    }
}

/// Of the backends that one service or another wishes something for, what counts: the longest of all their services' wishes.
/// O(backends).
fn wishes(
    own: &ClusterRef,
    services: &[MergedService],
    configured: ResetAfter,
) -> BTreeMap<ServiceKey, ResetAfter> {
    let wish = |service: &MergedService| match service.routing.on_data_plane_loss {
        OnLoss::Keep => Some(ResetAfter::Never),
        OnLoss::Drain => service.routing.reset_after,
    };
    let mut all = BTreeMap::new();
    for service in services {
        let Some(wish) = wish(service) else { continue };
        for key in remote_backends(own, service) {
            let longest = all.entry(key).or_insert(wish);
            *longest = wish.max(*longest);
        }
    }
    if !all.is_empty() {
        for service in services.iter().filter(|service| wish(service).is_none()) {
            for key in remote_backends(own, service) {
                all.entry(key).and_modify(|longest| *longest = configured.max(*longest));
            }
        }
    }
    all.retain(|_, wish| *wish != configured);
    all
}

fn remote_backends<'a>(
    own: &'a ClusterRef,
    service: &'a MergedService,
) -> impl Iterator<Item = ServiceKey> + 'a {
    let ports = service.ports.values().filter(|port| port.is_programmed());
    ports.flat_map(move |port| {
        let remote = port.slices.iter().filter(move |(cluster, _)| *cluster != own);
        remote.flat_map(|(_, backends)| backends).map(|backend| {
            ServiceKey::new(backend.ip.into(), Port::new(backend.port), port.port.protocol.number())
        })
    })
}

/// What the datapath has to know.
pub(crate) fn plan_resets(
    own: &ClusterRef,
    services: &[MergedService],
    configured: ResetAfter,
    cut_off: bool,
    desired: &mut DesiredDatapath,
    notes: &mut Vec<String>,
) {
    desired.config.reset_after = ticks(configured);
    if cut_off {
        desired.config.flags |= CONFIG_CUT_OFF;
    }
    let all = wishes(own, services, configured);
    let over = all.len().saturating_sub(size::RESET_WISHES as usize);
    if over > 0 {
        notes.push(format!(
            "reset-after is wished for {} backends, more than {}: for {over} of them health.resetAfter counts. fix: set health.resetAfter to what most services wish",
            all.len(), size::RESET_WISHES
        ));
    }
    let entries = all.into_iter().map(|(key, after)| (key, ResetWish { ticks: ticks(after).into() }));
    desired.reset_wishes = entries.take(size::RESET_WISHES as usize).collect();
}

/// When connections that say nothing are looked for, once after each verdict and each time that has to pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sweeps {
    due: BTreeSet<Time>,
}

impl Sweeps {
    /// Something went down at `now`, and this is what the datapath goes by.
    pub(crate) fn note_down(&mut self, desired: &DesiredDatapath, configured: ResetAfter, now: Time) {
        let wishes: BTreeSet<u32> = desired.reset_wishes.values().map(|wish| wish.ticks).collect();
        for after in wishes.into_iter().chain([ticks(configured).into()]) {
            if after != u32::from(RESET_NEVER) {
                // So many ticks later is so many ticks on, wherever within one the word was written.
                let ticks = Duration::from_nanos(u64::from(after) << hawser_ebpf_abi::TICK_SHIFT);
                let at = now + ticks + SPEAK_FIRST;
                if self.due.range(at..at + TOGETHER).next().is_none() {
                    self.due.insert(at + TOGETHER);
                }
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.due.first().copied()
    }

    /// Whether one is due; it counts as done.
    pub(crate) fn take_due(&mut self, now: Time) -> bool {
        let later = self.due.split_off(&(now + Duration::from_nanos(1)));
        !std::mem::replace(&mut self.due, later).is_empty()
    }
}
