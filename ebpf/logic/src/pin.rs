//! Clients that keep their backend: a UDP socket that sends without connecting, and a client with session affinity.
//!
//! A pin remembers an address, never a slot: at every use it is held against what the service has now, so it survives any
//! change of the other backends, and ends when the backend is withdrawn, unhealthy, or the client was idle for too long.
//! While nothing at all is healthy the client stays where it is. A backend that is about to end keeps its sockets; session
//! affinity is about new connections, which go elsewhere while there is anything else.
//!
//! Cost of a use: two hash look-ups, log2(clusters) + log2(backends of the cluster) array look-ups.

use hawser_ebpf_abi::{
    Addr, BACKEND_DRAINING, Config, HEALTH_FULL_WEIGHT, IPPROTO_UDP, MAX_GROUPS, Pin, PinKey, Port, Reason,
    SERVICE_MAGLEV, Service, ServiceKey, Slice, UDP_IDLE_SECONDS,
};

use crate::choice::{Choice, Tables, choose, stale_cluster};
use crate::maglev;
use crate::{forgotten, weight_of};

const NANOS: u64 = 1_000_000_000;
/// Halvings that find one of 512 slices.
const SLICE_HALVINGS: u32 = 10;
/// Halvings that find one of 2^18 backends.
const BACKEND_HALVINGS: u32 = 19;

/// By what a client is known, and so where its pins are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// One socket, by its cookie.
    Socket,
    /// Every socket of one network namespace, by its cookie.
    Namespace,
}

/// The maps, who is asking, and what time it is.
pub trait Clients: Tables {
    /// Random.
    fn seed(&self) -> u64;
    fn cookie(&self, client: Client) -> u64;
    /// Nanoseconds of CLOCK_MONOTONIC.
    fn now(&self) -> u64;
    fn pin(&self, client: Client, key: &PinKey) -> Option<Pin>;
    /// False when it could not be written.
    fn write_pin(&self, client: Client, key: &PinKey, pin: &Pin) -> bool;
    fn note(&self, reason: Reason);
}

/// Chooses a backend for a connection to `key`, or gives the one that the client keeps. A socket that is connected needs no pin:
/// its next messages go where it is connected to.
#[inline(always)]
pub fn connect<C: Clients + ?Sized>(clients: &C, key: &ServiceKey, config: &Config) -> Choice {
    assign_to(clients, key, config, 0)
}

/// Chooses a backend for a message to `key`, or gives the one that the client keeps.
#[inline(always)]
pub fn assign<C: Clients + ?Sized>(clients: &C, key: &ServiceKey, config: &Config) -> Choice {
    assign_to(clients, key, config, UDP_IDLE_SECONDS)
}

#[inline(always)]
fn assign_to<C: Clients + ?Sized>(clients: &C, key: &ServiceKey, config: &Config, udp_idle: u32) -> Choice {
    let Some(service) = clients.service(key) else { return Choice::Untouched(Reason::ConnectOther) };
    let client = if service.session_seconds != 0 { Client::Namespace } else { Client::Socket };
    let idle = match client {
        Client::Namespace => service.session_seconds,
        Client::Socket if key.proto == IPPROTO_UDP => udp_idle,
        Client::Socket => 0,
    };
    let maglev = service.flags & SERVICE_MAGLEV != 0;
    let seed = if maglev { maglev::seed(clients.cookie(Client::Namespace), key) } else { clients.seed() };
    if idle == 0 || maglev {
        return choose(clients, key, service, config, seed);
    }
    let now = clients.now();
    let pin_key = PinKey { client: clients.cookie(client), service: service.id, pad: 0 };
    // A pin of zeroes is none: no backend has port 0. (An Option would leave registers unset, which the verifier minds.)
    let pin = clients.pin(client, &pin_key).unwrap_or_default();
    // The outcome of a choice that is no better than what the client has.
    let mut no_better = Reason::ConnectOther as u32;
    if pin.port.wire() != 0 {
        if now.wrapping_sub(pin.seen) > idle as u64 * NANOS {
            clients.note(Reason::PinIdle);
        } else {
            match clients.held(Wanted::new(&service, &pin)) {
                held @ (Held::Healthy | Held::Draining) if keeps(client, held) => {
                    if pin.cluster == stale_cluster(config) {
                        return Choice::Untouched(Reason::ConnectOwnStale);
                    }
                    return stay(clients, client, &pin_key, pin, now, Reason::PinKept);
                }
                Held::Unhealthy => {
                    clients.note(Reason::PinUnhealthy);
                    no_better = Reason::ConnectPanic as u32;
                }
                Held::Draining | Held::Healthy => {
                    clients.note(Reason::PinDraining);
                    no_better = Reason::ConnectDraining as u32;
                }
                Held::Gone => clients.note(Reason::PinGone),
                // The choice finds out as well, and knows what to do.
                Held::Torn => {}
            }
        }
    }
    let choice = choose(clients, key, service, config, seed);
    let Choice::Backend { addr, port, cluster, reason } = choice else { return choice };
    if reason as u32 == no_better {
        return stay(clients, client, &pin_key, pin, now, reason);
    }
    let pin = Pin { seen: now, addr, port, cluster, pad: 0 };
    let written = clients.write_pin(client, &pin_key, &pin);
    clients.note(match (written, client) {
        (false, _) => Reason::PinForgotten,
        (true, Client::Socket) => Reason::PinMade,
        (true, Client::Namespace) => Reason::ClientPinMade,
    });
    choice
}

#[inline(always)]
fn keeps(client: Client, held: Held) -> bool {
    held as u32 == Held::Healthy as u32 || client as u32 == Client::Socket as u32
}

/// Its use is written once a second at most: a pin's time is at least that much.
#[inline(always)]
fn stay<C: Clients + ?Sized>(
    clients: &C,
    client: Client,
    key: &PinKey,
    pin: Pin,
    now: u64,
    reason: Reason,
) -> Choice {
    if now.wrapping_sub(pin.seen) > NANOS / 2 {
        // A failure makes the pin end early.
        let _ = clients.write_pin(client, key, &Pin { seen: now, ..pin });
    }
    Choice::Backend { addr: pin.addr, port: pin.port, cluster: pin.cluster, reason }
}

/// A backend that a service may still have, and the slice of it that is looked at, small enough to travel as five integers (see [`Tables::held`]).
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    id: u32,
    generation: u32,
    slices_at: u32,
    slices_len: u16,
    cluster: u16,
    offset: u16,
    place: Place,
}

/// Address and port as numbers that are ordered as the runs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    high: u64,
    low: u64,
    port: u16,
}

impl Place {
    #[inline(always)]
    fn new(addr: Addr, port: Port) -> Self {
        let [a, b, c, d] = addr.words();
        let join = |high: u32, low: u32| (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64;
        Self { high: join(a, b), low: join(c, d), port: port.get() }
    }

    #[inline(always)]
    const fn is_before(&self, other: &Self) -> bool {
        if self.high != other.high {
            self.high < other.high
        } else if self.low != other.low {
            self.low < other.low
        } else {
            self.port < other.port
        }
    }
}

impl Wanted {
    #[inline(always)]
    fn new(service: &Service, pin: &Pin) -> Self {
        Self {
            id: service.id,
            generation: service.generation,
            slices_at: service.slices_at,
            slices_len: service.slices_len,
            cluster: pin.cluster,
            offset: 0,
            place: Place::new(pin.addr, pin.port),
        }
    }

    #[inline(always)]
    pub const fn pack(&self) -> [u64; 5] {
        [
            (self.id as u64) << 32 | self.generation as u64,
            (self.slices_at as u64) << 32 | (self.slices_len as u64) << 16 | self.cluster as u64,
            self.place.high,
            self.place.low,
            (self.offset as u64) << 16 | self.place.port as u64,
        ]
    }

    #[inline(always)]
    pub const fn unpack([id, run, high, low, port]: [u64; 5]) -> Self {
        Self {
            id: (id >> 32) as u32,
            generation: id as u32,
            slices_at: (run >> 32) as u32,
            slices_len: (run >> 16) as u16,
            cluster: run as u16,
            offset: (port >> 16) as u16,
            place: Place { high, low, port: port as u16 },
        }
    }
}

/// What became of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The service has it, and it takes what is new.
    Healthy,
    /// The service has it, and it is about to end.
    Draining,
    /// The service has it.
    Unhealthy,
    Gone,
    /// A slot belongs to somebody else by now.
    Torn,
}

impl Held {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        match packed {
            0 => Self::Healthy,
            1 => Self::Draining,
            2 => Self::Unhealthy,
            3 => Self::Gone,
            _ => Self::Torn,
        }
    }
}

/// Looks for a backend: the first of its cluster's slices by halving, then in each of them.
#[inline(always)]
pub fn held<T: Tables + ?Sized>(tables: &T, wanted: Wanted) -> Held {
    let Some(first) = first_slice(tables, &wanted) else { return Held::Torn };
    for group in 0..MAX_GROUPS {
        let offset = first.wrapping_add(group) as u16;
        let held = tables.held_in_slice(Wanted { offset, ..wanted });
        if held as u32 != Held::Gone as u32 {
            return held;
        }
    }
    Held::Gone
}

/// Where the slices of the wanted cluster begin, or would; none when the run was reused.
#[inline(always)]
fn first_slice<T: Tables + ?Sized>(tables: &T, wanted: &Wanted) -> Option<u32> {
    let (mut low, mut high) = (0, wanted.slices_len as u32);
    for _ in 0..SLICE_HALVINGS {
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        let slice = slice_at(tables, wanted, middle)?;
        if slice.cluster < wanted.cluster {
            low = middle + 1;
        } else {
            high = middle;
        }
        low = forgotten(low, wanted.place.low);
        high = forgotten(high, wanted.place.low);
    }
    Some(low)
}

#[inline(always)]
fn slice_at<T: Tables + ?Sized>(tables: &T, wanted: &Wanted, offset: u32) -> Option<Slice> {
    tables
        .slice(wanted.slices_at.wrapping_add(offset))
        .filter(|slice| slice.service == wanted.id && slice.generation == wanted.generation)
}

/// Looks for a backend in one slice, by halving. Gone: it is not there, or the slice is another cluster's.
#[inline(always)]
pub fn held_in_slice<T: Tables + ?Sized>(tables: &T, wanted: Wanted) -> Held {
    if wanted.offset >= wanted.slices_len {
        return Held::Gone;
    }
    let Some(slice) = slice_at(tables, &wanted, wanted.offset as u32) else { return Held::Torn };
    if slice.cluster != wanted.cluster || slice.weight == 0 {
        return Held::Gone;
    }
    let (node, flags) = match backend_of(tables, &wanted, &slice) {
        Ok(found) => found,
        Err(held) => return held,
    };
    let takes = |word: u32| slice.floor as u32 == HEALTH_FULL_WEIGHT || weight_of(word) != 0;
    if !takes(tables.cluster_word(slice.cluster)) || !takes(tables.node_word(node)) {
        Held::Unhealthy
    } else if flags & BACKEND_DRAINING != 0 {
        Held::Draining
    } else {
        Held::Healthy
    }
}

/// Its node's slot, and its flags.
#[inline(always)]
fn backend_of<T: Tables + ?Sized>(tables: &T, wanted: &Wanted, slice: &Slice) -> Result<(u32, u8), Held> {
    let (mut low, mut high) = (0, slice.backends_len);
    for _ in 0..BACKEND_HALVINGS {
        if low >= high {
            break;
        }
        let middle = ((low as u64 + high as u64) >> 1) as u32;
        let backend = tables.backend(slice.backends_at.wrapping_add(middle)).ok_or(Held::Torn)?;
        if backend.service != wanted.id || backend.generation != slice.backends_generation {
            return Err(Held::Torn);
        }
        let place = Place::new(backend.addr, backend.port);
        if place == wanted.place {
            return Ok((backend.node, backend.flags));
        }
        if place.is_before(&wanted.place) {
            low = middle + 1;
        } else {
            high = middle;
        }
        low = forgotten(low, wanted.place.low);
        high = forgotten(high, wanted.place.low);
    }
    Err(Held::Gone)
}
