//! The kernel programs: entry points and helper calls around `hawser-ebpf-logic`, built by `hawser-ebpf`'s build script.
//!
//! | program | hook |
//! | --- | --- |
//! | `connect4`, `connect6`, `getpeername4`, `getpeername6` | cgroup socket addresses |
//! | `sendmsg4`, `sendmsg6`, `recvmsg4`, `recvmsg6` | cgroup socket addresses, UDP |
//! | `sock_ops` | cgroup TCP callbacks |
//! | `pod_from`, `pod_to` | ingress and egress of a pod's host-side interface |
//! | `tunnel_in`, `tunnel_out` | ingress and egress of the tunnel device |
//! | `underlay_in` | ingress of underlay devices |
//! | `guard_in`, `guard_out` | ingress and egress of devices that are neither the tunnel nor a pod's |
//! | `uplink_in`, `uplink_out` | ingress and egress of uplinks where traffic from outside is served |
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod enter;
#[cfg(target_arch = "bpf")]
mod keep_alive;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod nat;
#[cfg(target_arch = "bpf")]
mod sock_ops;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod tc;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: a panic that could be would end in a loop, and the verifier refuses the program.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
