//! The socket load balancer: the destination is chosen once, at `connect()`, and costs nothing per packet. UDP that is sent
//! without connecting is looked up at every message; its choice is pinned to the socket.
//!
//! An AF_INET6 socket may connect or send to a v4-mapped address (Java, Go). Its `connect` and `getpeername` are the `6`
//! programs with an IPv4 destination inside; its UDP is sent through `sendmsg4` (the kernel hands it over before the `6`
//! hook) and received through `recvmsg6`. Addresses have one form here, so all programs share one reverse map.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use hawser_ebpf_abi::{
    Addr, Backend, CONFIG_LEFT_OUT, IPPROTO_TCP, IPPROTO_UDP, Pin, PinKey, Port, RESET_NEVER, Reason,
    Service, ServiceKey, Slice, SockPeer, SockRev, SockRevKey,
};
use hawser_ebpf_logic::choice::{self, Choice, Draw, Probe, Query, Tables, unset_is_up};
use hawser_ebpf_logic::pin::{self, Client, Clients, Held, Wanted};

use crate::{keep_alive, maps};

/// Let the system call go on.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&V4(ctx.sock_addr))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&V6(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&V4(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&V6(ctx.sock_addr))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_service(&V4(ctx.sock_addr), Reason::RecvRestored, Reason::RecvOther)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_service(&V6(ctx.sock_addr), Reason::RecvRestored, Reason::RecvOther)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_service(&V4(ctx.sock_addr), Reason::PeerRestored, Reason::PeerOther)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_service(&V6(ctx.sock_addr), Reason::PeerRestored, Reason::PeerOther)
}

#[inline(always)]
fn connect<C: SockAddr>(ctx: &C) -> i32 {
    let proto = ctx.protocol();
    let known = proto == u32::from(IPPROTO_TCP) || proto == u32::from(IPPROTO_UDP);
    let reason = if known { send_to_backend(ctx, proto as u8, true) } else { Reason::ConnectOther };
    maps::count(reason);
    PROCEED
}

#[inline(always)]
fn sendmsg<C: SockAddr>(ctx: &C) -> i32 {
    let reason = match send_to_backend(ctx, IPPROTO_UDP, false) {
        Reason::ConnectOther => Reason::SendOther,
        reason => reason,
    };
    maps::count(reason);
    PROCEED
}

#[inline(always)]
fn send_to_backend<C: SockAddr>(ctx: &C, proto: u8, connects: bool) -> Reason {
    let key = ServiceKey::new(ctx.addr(), ctx.port(), proto);
    let config = maps::config();
    if config.flags & CONFIG_LEFT_OUT != 0 && maps::is_left_out(ctx.netns_cookie()) {
        return Reason::SocketLeftOut;
    }
    let choice = match connects {
        true => pin::connect(&Maps(ctx), &key, &config),
        false => pin::assign(&Maps(ctx), &key, &config),
    };
    match choice {
        Choice::Untouched(reason) => reason,
        Choice::Backend { addr, port, cluster, reason } => {
            if !remember(ctx, &key, addr, port, connects, reason) {
                maps::count(Reason::ConnectForgotten);
            }
            ctx.set(addr, port);
            if proto == IPPROTO_TCP && cluster != config.own_cluster {
                let wish = maps::reset_wish(&ServiceKey::new(addr, port, proto));
                if wish.unwrap_or(u32::from(config.reset_after)) < u32::from(RESET_NEVER) {
                    keep_alive::set(ctx.raw());
                }
            }
            reason
        }
    }
}

/// For whoever asks where the socket is connected to, or where an answer came from. False when it could not be kept.
#[inline(always)]
fn remember<C: SockAddr>(
    ctx: &C,
    service: &ServiceKey,
    backend: Addr,
    backend_port: Port,
    connects: bool,
    reason: Reason,
) -> bool {
    if connects {
        let (service, service_port) = (service.addr, service.port);
        return maps::remember_peer(
            ctx.raw(),
            &SockPeer { backend, service, backend_port, service_port, pad: 0 },
        );
    }
    let key = SockRevKey { socket: ctx.cookie(), backend, backend_port, pad0: 0, pad1: 0 };
    let rev = SockRev { service: service.addr, service_port: service.port, pad: 0 };
    // A pinned socket has said so before: a look is cheaper than a write, and keeps the entry from the LRU's end.
    let known = reason as u32 == Reason::PinKept as u32 && maps::sock_rev(&key) == Some(rev);
    known || maps::remember_socket(&key, &rev)
}

/// Shows the service's address in place of a backend that this socket was sent to.
#[inline(always)]
fn show_service<C: SockAddr>(ctx: &C, restored: Reason, other: Reason) -> i32 {
    let (addr, port) = (ctx.addr(), ctx.port());
    let reason = match service_of(ctx, addr, port) {
        Some((service, service_port)) => {
            ctx.set(service, service_port);
            restored
        }
        None => other,
    };
    maps::count(reason);
    PROCEED
}

/// What the socket asked for when it was sent to this backend. A socket that was accepted has nothing, which costs one look at it.
#[inline(always)]
fn service_of<C: SockAddr>(ctx: &C, backend: Addr, backend_port: Port) -> Option<(Addr, Port)> {
    if let Some(peer) = maps::sock_peer(ctx.raw())
        && peer.backend == backend
        && peer.backend_port == backend_port
    {
        return Some((peer.service, peer.service_port));
    }
    if ctx.protocol() == u32::from(IPPROTO_TCP) {
        return None;
    }
    let key = SockRevKey { socket: ctx.cookie(), backend, backend_port, pad0: 0, pad1: 0 };
    let rev = maps::sock_rev(&key)?;
    Some((rev.service, rev.service_port))
}

/// The maps as the logic sees them, and the socket that asks (or nobody).
pub(crate) struct Maps<C>(pub(crate) C);

impl<C: SockAddr> Clients for Maps<&C> {
    /// The socket's cookie is no secret and not random; it is only there so that fewer sockets share a seed.
    #[inline(always)]
    fn seed(&self) -> u64 {
        // SAFETY: the helper takes nothing and always succeeds.
        let random = unsafe { bpf_get_prandom_u32() };
        u64::from(random) << 32 | self.0.cookie()
    }

    #[inline(always)]
    fn cookie(&self, client: Client) -> u64 {
        match client {
            Client::Socket => self.0.cookie(),
            Client::Namespace => self.0.netns_cookie(),
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes nothing and always succeeds.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn pin(&self, client: Client, key: &PinKey) -> Option<Pin> {
        maps::pin(client, key)
    }

    #[inline(always)]
    fn write_pin(&self, client: Client, key: &PinKey, pin: &Pin) -> bool {
        maps::write_pin(client, key, pin)
    }

    #[inline(always)]
    fn note(&self, reason: Reason) {
        maps::count(reason);
    }
}

impl<C> Tables for Maps<C> {
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
        let [id, run, tier, seed] = query.pack();
        Probe::unpack(pick_backend(id, run, tier, seed))
    }

    #[inline(always)]
    fn pick_in_tier(&self, query: Query) -> Probe {
        let [id, run, tier, seed] = query.pack();
        Probe::unpack(pick_in_tier(id, run, tier, seed))
    }

    #[inline(always)]
    fn draw(&self, query: Query, so_far: Draw) -> Option<Draw> {
        let [id, run, tier, seed] = query.pack();
        Draw::unpack(draw_slice(id, run, tier, seed, Draw::pack(Some(so_far))))
    }

    #[inline(always)]
    fn probe(&self, query: Query, drawn: Draw, turn: u16) -> Probe {
        let [id, run, tier, seed] = query.pack();
        Probe::unpack(probe_slice(id, run, tier, seed, drawn.place(turn)))
    }

    #[inline(always)]
    fn held(&self, wanted: Wanted) -> Held {
        let [id, run, high, low, port] = wanted.pack();
        Held::unpack(held_backend(id, run, high, low, port))
    }

    #[inline(always)]
    fn held_in_slice(&self, wanted: Wanted) -> Held {
        let [id, run, high, low, port] = wanted.pack();
        Held::unpack(held_in_slice(id, run, high, low, port))
    }
}

// Global functions (in the verifier's sense): checked once with unknown arguments, not at every call.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick_backend(id: u64, run: u64, tier: u64, seed: u64) -> u64 {
    choice::pick(&Maps(()), Query::unpack(id, run, tier, seed)).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick_in_tier(id: u64, run: u64, tier: u64, seed: u64) -> u64 {
    choice::pick_in_tier(&Maps(()), Query::unpack(id, run, tier, seed)).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn draw_slice(id: u64, run: u64, tier: u64, seed: u64, so_far: u64) -> u64 {
    let Some(so_far) = Draw::unpack(so_far) else { return Draw::pack(None) };
    Draw::pack(choice::draw(&Maps(()), Query::unpack(id, run, tier, seed), so_far))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe_slice(id: u64, run: u64, tier: u64, seed: u64, at: u64) -> u64 {
    let query = Query::unpack(id, run, tier, seed);
    choice::probe(&Maps(()), query, (at >> 16) as u16, (at >> 32) as u16, at as u16).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn held_backend(id: u64, run: u64, high: u64, low: u64, port: u64) -> u64 {
    pin::held(&Maps(()), Wanted::unpack([id, run, high, low, port])).pack()
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn held_in_slice(id: u64, run: u64, high: u64, low: u64, port: u64) -> u64 {
    pin::held_in_slice(&Maps(()), Wanted::unpack([id, run, high, low, port])).pack()
}

/// The part of `bpf_sock_addr` that a family uses. Fields are read and written one by one, as the verifier wants it.
trait SockAddr {
    fn raw(&self) -> *mut bpf_sock_addr;
    fn addr(&self) -> Addr;
    fn set_addr(&self, addr: Addr);

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
        self.set_addr(addr);
        // SAFETY: as above; the field is writable in these hooks.
        unsafe { (&raw mut (*self.raw()).user_port).write_volatile(u32::from(port.wire())) };
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of these hooks.
        unsafe { bpf_get_socket_cookie(self.raw().cast()) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of these hooks.
        unsafe { bpf_get_netns_cookie(self.raw().cast()) }
    }
}

struct V4(*mut bpf_sock_addr);

impl SockAddr for V4 {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: the context pointer is valid for the whole program; the field is readable in the `4` hooks.
        Addr::from_v4_word(unsafe { (&raw const (*self.0).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        // SAFETY: as above, and writable.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(addr.v4_word()) };
    }
}

/// An AF_INET6 socket address, of either family. A service and its backends are of one family, so a v4-mapped address stays
/// one, as the kernel demands.
struct V6(*mut bpf_sock_addr);

impl SockAddr for V6 {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: the context pointer is valid for the whole program; the field is readable in the `6` hooks.
        Addr::from_words(unsafe {
            [
                (&raw const (*self.0).user_ip6[0]).read_volatile(),
                (&raw const (*self.0).user_ip6[1]).read_volatile(),
                (&raw const (*self.0).user_ip6[2]).read_volatile(),
                (&raw const (*self.0).user_ip6[3]).read_volatile(),
            ]
        })
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        let [a, b, c, d] = addr.words();
        // SAFETY: as above, and writable.
        unsafe {
            (&raw mut (*self.0).user_ip6[0]).write_volatile(a);
            (&raw mut (*self.0).user_ip6[1]).write_volatile(b);
            (&raw mut (*self.0).user_ip6[2]).write_volatile(c);
            (&raw mut (*self.0).user_ip6[3]).write_volatile(d);
        }
    }
}
