//! Keep-alive for connections to other clusters, so that one that only waits speaks, and can be told that it is over.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_getsockopt, bpf_setsockopt};
use hawser_ebpf_abi::Reason;

use crate::maps;

const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const IPPROTO_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;

/// An idle connection asks this often.
const SECONDS: i32 = 10;
/// As many as there can be (MAX_TCP_KEEPCNT): asking must not end a connection that the verdict would leave alone.
const PROBES: i32 = 127;

/// Leaves a program's own choice alone. Before kernel 6.1 it cannot be asked for (include/net/sock.h, `sk_getsockopt`), and
/// nothing is set. Five calls, once per connection to another cluster.
#[inline(always)]
pub(crate) fn set(ctx: *mut bpf_sock_addr) {
    if get(ctx, SOL_SOCKET, SO_KEEPALIVE) != Some(0) {
        return;
    }
    let set = put(ctx, IPPROTO_TCP, TCP_KEEPIDLE, SECONDS)
        && put(ctx, IPPROTO_TCP, TCP_KEEPINTVL, SECONDS)
        && put(ctx, IPPROTO_TCP, TCP_KEEPCNT, PROBES)
        && put(ctx, SOL_SOCKET, SO_KEEPALIVE, 1);
    if set {
        maps::count(Reason::KeepAliveSet);
    }
}

#[inline(always)]
fn get(ctx: *mut bpf_sock_addr, level: i32, name: i32) -> Option<i32> {
    let mut value = 0_i32;
    // SAFETY: the helper takes the context of these hooks and writes at most the four octets it is told of.
    let result = unsafe { bpf_getsockopt(ctx.cast(), level, name, (&raw mut value).cast(), 4) };
    (result == 0).then_some(value)
}

#[inline(always)]
fn put(ctx: *mut bpf_sock_addr, level: i32, name: i32, value: i32) -> bool {
    // SAFETY: as above; the helper reads the four octets.
    unsafe { bpf_setsockopt(ctx.cast(), level, name, (&raw const value).cast_mut().cast(), 4) == 0 }
}
