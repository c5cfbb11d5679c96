//! The socket load balancer: the destination is chosen once, at `connect()`, and costs nothing per packet.
//!
//! TCP only for now; the maps carry the protocol. An AF_INET6 socket that connects to a v4-mapped address (Java, Go) runs
//! the `6` programs with an IPv4 destination inside, so those handle the mapped form and leave real IPv6 alone.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use hawser_ebpf_abi::{Addr, Backend, IPPROTO_TCP, Port, Reason, Service, ServiceKey, Slice, SockRev};
use hawser_ebpf_logic::choice::{self, Choice, Draw, Probe, Query, Tables, unset_is_up};

use crate::maps;

/// Let the system call go on.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&V4(ctx.sock_addr))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&Mapped(ctx.sock_addr))
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(&V4(ctx.sock_addr))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(&Mapped(ctx.sock_addr))
}

#[inline(always)]
fn connect<C: SockAddr>(ctx: &C) -> i32 {
    maps::count(choose(ctx));
    PROCEED
}

#[inline(always)]
fn choose<C: SockAddr>(ctx: &C) -> Reason {
    let Some(addr) = ctx.v4() else { return Reason::ConnectOther };
    let proto = ctx.protocol();
    if proto != u32::from(IPPROTO_TCP) {
        return Reason::ConnectOther;
    }
    let key = ServiceKey::new(addr, ctx.port(), IPPROTO_TCP);
    // SAFETY: the helper takes nothing and always succeeds.
    let seed = unsafe { u64::from(bpf_get_prandom_u32()) << 32 | u64::from(bpf_get_prandom_u32()) };
    match choice::choose(&Maps, &key, &maps::config(), seed) {
        Choice::Untouched(reason) => reason,
        Choice::Backend { addr, port, reason } => {
            let rev = SockRev {
                service: key.addr,
                backend: addr,
                service_port: key.port,
                backend_port: port,
                proto: IPPROTO_TCP,
                pad0: 0,
                pad1: 0,
            };
            if !maps::remember_socket(ctx.cookie(), &rev) {
                maps::count(Reason::ConnectForgotten);
            }
            ctx.set(addr, port);
            reason
        }
    }
}

/// Shows the service's address while the socket's peer is the backend that was chosen for it. A socket that connected
/// again elsewhere keeps a stale entry, which then names another backend and changes nothing.
#[inline(always)]
fn getpeername<C: SockAddr>(ctx: &C) -> i32 {
    let reason = match (ctx.v4(), maps::sock_rev(ctx.cookie())) {
        (Some(addr), Some(rev)) if rev.backend == addr && rev.backend_port == ctx.port() => {
            ctx.set(rev.service, rev.service_port);
            Reason::PeerRestored
        }
        _ => Reason::PeerOther,
    };
    maps::count(reason);
    PROCEED
}

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        maps::service(key)
    }

    #[inline(always)]
    fn slice(&self, at: u32) -> Option<Slice> {
        maps::slice(at)
    }

    #[inline(always)]
    fn backend(&self, at: u32) -> Option<Backend> {
        maps::backend(at)
    }

    #[inline(always)]
    fn cluster_word(&self, cluster: u16) -> u32 {
        unset_is_up(maps::cluster_word(cluster))
    }

    #[inline(always)]
    fn node_word(&self, slot: u32) -> u32 {
        unset_is_up(maps::node_word(slot))
    }

    #[inline(always)]
    fn pick(&self, query: Query) -> Probe {
        let [id, run, level, seed] = query.pack();
        Probe::unpack(pick_in_level(id, run, level, seed))
    }

    #[inline(always)]
    fn draw(&self, query: Query, so_far: Draw) -> Option<Draw> {
        let [id, run, level, seed] = query.pack();
        Draw::unpack(draw_slice(id, run, level, seed, Draw::pack(Some(so_far))))
    }

    #[inline(always)]
    fn probe(&self, query: Query, start: u16, turn: u16) -> Probe {
        let [id, run, level, seed] = query.pack();
        Probe::unpack(probe_slice(id, run, level, seed, u64::from(start) << 16 | u64::from(turn)))
    }
}

// Global functions (in the verifier's sense): checked once with unknown arguments, not at every call.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick_in_level(id: u64, run: u64, level: u64, seed: u64) -> u64 {
    choice::pick(&Maps, Query::unpack(id, run, level, seed)).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn draw_slice(id: u64, run: u64, level: u64, seed: u64, so_far: u64) -> u64 {
    let Some(so_far) = Draw::unpack(so_far) else { return Draw::pack(None) };
    Draw::pack(choice::draw(&Maps, Query::unpack(id, run, level, seed), so_far))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_slice(id: u64, run: u64, level: u64, seed: u64, at: u64) -> u64 {
    choice::probe(&Maps, Query::unpack(id, run, level, seed), (at >> 16) as u16, at as u16).pack()
}

/// The part of `bpf_sock_addr` that a family uses. Fields are read and written one by one, as the verifier wants it.
trait SockAddr {
    fn raw(&self) -> *mut bpf_sock_addr;
    /// The IPv4 address, if it is one.
    fn v4(&self) -> Option<Addr>;
    fn set_v4(&self, word: u32);

    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: the context pointer is valid for the whole program; the field is readable in these hooks.
        unsafe { (&raw const (*self.raw()).protocol).read_volatile() }
    }

    /// The kernel shows the port in network order in the low half.
    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: as above.
        Port::from_wire(unsafe { (&raw const (*self.raw()).user_port).read_volatile() } as u16)
    }

    #[inline(always)]
    fn set(&self, addr: Addr, port: Port) {
        self.set_v4(addr.v4_word());
        // SAFETY: as above; the field is writable in these hooks.
        unsafe { (&raw mut (*self.raw()).user_port).write_volatile(u32::from(port.wire())) };
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of these hooks.
        unsafe { bpf_get_socket_cookie(self.raw().cast()) }
    }
}

struct V4(*mut bpf_sock_addr);

impl SockAddr for V4 {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn v4(&self) -> Option<Addr> {
        // SAFETY: the context pointer is valid for the whole program; the field is readable in the `4` hooks.
        Some(Addr::from_v4_word(unsafe { (&raw const (*self.0).user_ip4).read_volatile() }))
    }

    #[inline(always)]
    fn set_v4(&self, word: u32) {
        // SAFETY: as above, and writable.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(word) };
    }
}

/// An AF_INET6 socket address of the form `::ffff:a.b.c.d`.
struct Mapped(*mut bpf_sock_addr);

impl SockAddr for Mapped {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn v4(&self) -> Option<Addr> {
        // SAFETY: the context pointer is valid for the whole program; the field is readable in the `6` hooks.
        let words = unsafe {
            [
                (&raw const (*self.0).user_ip6[0]).read_volatile(),
                (&raw const (*self.0).user_ip6[1]).read_volatile(),
                (&raw const (*self.0).user_ip6[2]).read_volatile(),
                (&raw const (*self.0).user_ip6[3]).read_volatile(),
            ]
        };
        Some(Addr::from_words(words)).filter(Addr::is_v4)
    }

    #[inline(always)]
    fn set_v4(&self, word: u32) {
        // SAFETY: as above, and writable.
        unsafe { (&raw mut (*self.0).user_ip6[3]).write_volatile(word) };
    }
}
