//! Attaching where there is no tcx (kernels before 6.6): a clsact filter at a priority and handle of ours, which a
//! restart replaces in place.

use std::mem::ManuallyDrop;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, tc};

use crate::attach::Hook;

/// Before the CNI's, which take what the kernel gives (49152 and down) or 1; two filters may share a priority.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority: "Hw", and "Hx" at an uplink, which may be of the underlay too, "Hy" at the edge, which
/// a device may leave for being a pod's. What one lets go on, the next one sees.
const fn handle(hook: Hook) -> TcHandle {
    match hook {
        Hook::UplinkIn | Hook::UplinkOut => TcHandle::new(0, 0x4878),
        Hook::GuardIn | Hook::GuardOut => TcHandle::new(0, 0x4879),
        _ => TcHandle::new(0, 0x4877),
    }
}

/// Where a filter stands; two hooks that a device never has at once share one.
pub(crate) fn place(hook: Hook) -> (bool, u32) {
    (matches!(hook.direction(), tc::TcAttachType::Ingress), handle(hook).into())
}

pub(crate) fn attach(program: &mut SchedClassifier, interface: &str, hook: Hook) -> Result<(), ProgramError> {
    let (direction, handle) = (hook.direction(), handle(hook));
    // It is there already, or another has made it: both are what we want.
    let _ = tc::qdisc_add_clsact(interface);
    let replaced = SchedClassifierLink::attached(interface, direction, PRIORITY, handle, None)
        .map_err(|error| ProgramError::from(aya::programs::tc::TcError::IoError(error)))
        .and_then(|link| program.attach_to_link(link));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle, classid: None };
            program.attach_with_options(interface, direction, TcAttachOptions::Netlink(options))?
        }
    };
    // Stop is not remove: the filter outlives this process, so its guard never runs.
    let _ = ManuallyDrop::new(program.take_link(id)?);
    Ok(())
}

pub(crate) fn detach(interface: &str, hook: Hook) -> Result<(), ProgramError> {
    let link = SchedClassifierLink::attached(interface, hook.direction(), PRIORITY, handle(hook), None)
        .map_err(|error| ProgramError::from(aya::programs::tc::TcError::IoError(error)))?;
    aya::programs::links::Link::detach(link)
}
