//! What the tunnels are known to be: a reconcile carries out what changed, and looks at everything only now and then.
//!
//! Others can change a kernel, so a look that is old counts for nothing. How old is a matter of what it costs: a whole look and
//! plan takes at most a hundredth of the time. In a mesh of a few hundred nodes that is every reconcile; with 254,000
//! prefixes it is every minute or two, and after every error.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_agent_core::{Newcomer, Plan};
use hawser_tunnels::{Desired, Observed, Op, Settled};
use hawser_tunnels_linux::Driver;

use crate::tunnels::Tunnels;

/// From one whole look to the next: so many times what the last one took, and never longer than this.
const SHARE: u32 = 100;
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<Option<State>>);

/// Everything of `plan` is there.
#[derive(Debug)]
struct State {
    plan: Arc<Plan>,
    settled: Settled,
    looked: Look,
}

/// When everything was looked at, and for how long that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    at: Instant,
    counts_for: Duration,
}

impl Look {
    /// Of a whole look and plan that began then and has come to its end.
    pub(crate) fn since(began: Instant) -> Self {
        let at = Instant::now();
        Self { at, counts_for: (at.duration_since(began) * SHARE).min(LONGEST) }
    }
}

/// What is left to do, and what is known once it has been done.
#[derive(Debug)]
pub(crate) struct Steps {
    pub ops: Vec<Op>,
    pub settled: Settled,
    pub looked: Look,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        // A panic left nothing behind: what is known is taken out before it is used.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, plan: &Arc<Plan>, settled: Settled, looked: Look) {
        *self.lock() = Some(State { plan: plan.clone(), settled, looked });
    }

    /// What leads from what is known to `desired`. None where everything has to be looked at. Nothing is known afterwards,
    /// until it is noted anew.
    pub(crate) fn steps(&self, desired: &Desired, tunnels: &Tunnels) -> Option<Steps> {
        let State { plan, settled, looked } = self.lock().take()?;
        let before = plan.tunnels.as_ref()?;
        if looked.at.elapsed() >= looked.counts_for || has_drifted(before, &tunnels.glance().ok()??) {
            return None;
        }
        let (ops, settled) = settled.follow(before, desired).ok()??;
        Some(Steps { ops, settled, looked })
    }

    /// Tells the tunnels of a pod before the plan does. False where that is left to the plan.
    pub(crate) fn welcome(&self, ip: IpAddr, pod: &Newcomer, tunnels: &Tunnels) -> bool {
        let mut known = self.lock();
        let Some(State { plan, settled, .. }) = known.as_mut() else { return false };
        let Some(desired) = &plan.tunnels else { return false };
        let Some(op) = settled.ahead(&pod.node, pod.public_key, ip.into(), desired) else { return false };
        tracing::debug!(%op, "tunnels");
        let done = tunnels.apply(&op);
        if let Err(error) = &done {
            tracing::debug!(%op, %error, "the plan tries again");
            *known = None;
        }
        done.is_ok()
    }
}

/// Whether anything but the peers is not as it was left. O(routes).
fn has_drifted(before: &Desired, is: &Observed) -> bool {
    let Desired { device, addresses, peers: _, routes, guards } = before;
    let without = Desired {
        device: device.clone(),
        addresses: addresses.clone(),
        peers: Vec::new(),
        routes: routes.clone(),
        guards: guards.clone(),
    };
    !hawser_tunnels::plan(&without, is).ops.is_empty()
}
