//! Attaching where there is no tcx (kernels before 6.6): a clsact filter at a priority and handle of ours, which a
//! restart replaces in place.

use std::mem::ManuallyDrop;

use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};

/// Before the CNI's, which take what the kernel gives (49152 and down) or 1; two filters may share a priority.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority: "Hw".
const HANDLE: TcHandle = TcHandle::new(0, 0x4877);

pub(crate) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
) -> Result<(), ProgramError> {
    // It is there already, or another has made it: both are what we want.
    let _ = tc::qdisc_add_clsact(interface);
    let replaced = SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None)
        .map_err(|error| ProgramError::from(aya::programs::tc::TcError::IoError(error)))
        .and_then(|link| program.attach_to_link(link));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(interface, direction, TcAttachOptions::Netlink(options))?
        }
    };
    // Stop is not remove: the filter outlives this process, so its guard never runs.
    let _ = ManuallyDrop::new(program.take_link(id)?);
    Ok(())
}

pub(crate) fn detach(interface: &str, direction: TcAttachType) -> Result<(), ProgramError> {
    let link = SchedClassifierLink::attached(interface, direction, PRIORITY, HANDLE, None)
        .map_err(|error| ProgramError::from(aya::programs::tc::TcError::IoError(error)))?;
    aya::programs::links::Link::detach(link)
}
