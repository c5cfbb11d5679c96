//! The run of backends of a service that asks for `maglev`: a table with each backend in many slots.

use hawser_ebpf_abi::{BackendSpec, FewSet, maglev_slots};
use hawser_ebpf_logic::maglev::owner;

/// What is written in the slots of a run, in order. O(slots × backends) with `maglev`.
pub(crate) fn run_of(backends: &FewSet<BackendSpec>, maglev: bool) -> Vec<BackendSpec> {
    let all: Vec<_> = backends.iter().copied().collect();
    let slots = if maglev { maglev_slots(all.len()) } else { all.len() };
    if slots == all.len() {
        return all;
    }
    let slot = |slot| all[owner(slot, all.iter().map(|backend| (backend.addr, backend.port)))];
    (0..slots as u32).map(slot).collect()
}
