//! Users' connections to other clusters, counted by the node that serves them.
//!
//! Cost: of a connection to anywhere else one look-up at its beginning; of one to another cluster a look-up and an atomic
//! addition at its beginning, its establishment, its end, each retransmission timeout, and once per round trip with data.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::bpf_sock_ops_cb_flags_set;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use hawser_ebpf_abi::{Addr, NodeTraffic};
use hawser_ebpf_logic::users::{self, EPOCH_SHIFT, Event};

use crate::maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The only return value without a meaning. The reply stays as it was: 0, the kernel's own choice, or another program's.
const GO_ON: u32 = 1;

/// One of the context's words. An instruction of its own, with the offset in it: the compiler would read either family's address
/// by one instruction and a computed pointer, which the verifier refuses.
macro_rules! word {
    ($ops:expr, $field:ident) => {
        word!($ops, $field, 0)
    };
    ($ops:expr, $field:ident, $index:literal) => {{
        let value: u64;
        // SAFETY: the context pointer is valid for the whole program, and the word is readable in every callback.
        unsafe {
            asm!(
                "{0} = *(u32 *)({1} + {2})",
                lateout(reg) value,
                in(reg) $ops,
                const offset_of!(bpf_sock_ops, $field) + 4 * $index,
                options(nostack, readonly, preserves_flags),
            )
        };
        value as u32
    }};
}

macro_rules! count {
    ($node:expr, $field:ident) => {{
        // SAFETY: the element outlives the program, its fields are aligned, and programs change counters in this way alone.
        // `core` has no atomic addition for this target.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut (*$node).$field, in(reg) 1_u64) };
    }};
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    let op = word!(ctx.ops, op);
    if users::is_ours(op) {
        note(ctx.ops, op);
    }
    GO_ON
}

#[inline(always)]
fn note(ops: *mut bpf_sock_ops, op: u32) {
    let Some(remote) = remote(ops) else { return };
    let Some(entry) = maps::ip_entry(&remote).filter(|entry| entry.is_remote() && entry.node != 0) else {
        return;
    };
    let state = word!(ops, state);
    let event = users::event(op, state, word!(ops, __bindgen_anon_1, 0), word!(ops, __bindgen_anon_1, 1));
    let (Some(event), Some(node)) = (event, maps::node_traffic(entry.node)) else { return };
    match event {
        Event::Begun => {
            let flags = word!(ops, bpf_sock_ops_cb_flags) | users::CALLBACKS;
            // SAFETY: the helper takes the context. One that fails leaves the connection uncounted.
            if unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) } == 0 {
                count!(node, begun);
            }
        }
        Event::Established => count!(node, established),
        Event::Spoke => count!(node, spoke),
        Event::Late => {
            count!(node, late);
            mark(ops, node);
        }
        Event::Stalled => {
            count!(node, stalled);
            count!(node, repeated);
        }
        Event::Repeated => count!(node, repeated),
        Event::Closed => count!(node, closed),
    }
}

/// Remembers the client for a while.
#[inline(always)]
fn mark(ops: *mut bpf_sock_ops, node: *mut NodeTraffic) {
    let Some(client) = local(ops) else { return };
    let epoch = maps::ticks() >> EPOCH_SHIFT;
    // SAFETY: the element outlives the program; three words that another CPU may write meanwhile, each of them whole.
    unsafe {
        let marked_at = (&raw const (*node).marked_at).read_volatile();
        let marks = (&raw const (*node).marks).read_volatile();
        let before = (&raw const (*node).marks_before).read_volatile();
        let (marks, before) = users::marked(marked_at, marks, before, epoch, users::mark(&client));
        (&raw mut (*node).marks_before).write_volatile(before);
        (&raw mut (*node).marks).write_volatile(marks);
        (&raw mut (*node).marked_at).write_volatile(epoch);
    }
}

#[inline(always)]
fn remote(ops: *mut bpf_sock_ops) -> Option<Addr> {
    match word!(ops, family) {
        AF_INET => Some(Addr::from_v4_word(word!(ops, remote_ip4))),
        AF_INET6 => Some(Addr::from_words([
            word!(ops, remote_ip6, 0),
            word!(ops, remote_ip6, 1),
            word!(ops, remote_ip6, 2),
            word!(ops, remote_ip6, 3),
        ])),
        _ => None,
    }
}

#[inline(always)]
fn local(ops: *mut bpf_sock_ops) -> Option<Addr> {
    match word!(ops, family) {
        AF_INET => Some(Addr::from_v4_word(word!(ops, local_ip4))),
        AF_INET6 => Some(Addr::from_words([
            word!(ops, local_ip6, 0),
            word!(ops, local_ip6, 1),
            word!(ops, local_ip6, 2),
            word!(ops, local_ip6, 3),
        ])),
        _ => None,
    }
}
