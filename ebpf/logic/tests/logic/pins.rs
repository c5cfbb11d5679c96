//! Clients that keep their backend, against what may happen to it meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use crate::common::{DOWN, Maps, OWN, Part, backend_addr, config, draining, part};
use hawser_ebpf_abi::{
    Addr, Backend, IPPROTO_UDP, Pin, PinKey, Port, Reason, SERVICE_MAGLEV, Service, ServiceKey, Slice,
    UDP_IDLE_SECONDS,
};
use hawser_ebpf_logic::choice::{Choice, Tables};
use hawser_ebpf_logic::maglev::owner;
use hawser_ebpf_logic::pin::{Client, Clients, assign};
use proptest::prelude::*;

/// One socket that sends UDP, and the maps.
#[derive(Default)]
struct Socket {
    maps: Maps,
    now: Cell<u64>,
    pins: RefCell<BTreeMap<(Client, PinKey), Pin>>,
    notes: RefCell<Vec<Reason>>,
    seed: Cell<u64>,
    /// The namespace's: `first` and so many.
    cookie: Cell<u64>,
    first: Cell<u64>,
    /// The LRU map has forgotten everything before each use.
    forgetful: bool,
}

impl Tables for Socket {
    fn service(&self, _: &ServiceKey) -> Option<Service> {
        self.maps.services.values().next().copied()
    }

    fn slice(&self, at: u32) -> Option<Slice> {
        self.maps.slice(at)
    }

    fn backend(&self, at: u32) -> Option<Backend> {
        self.maps.backend(at)
    }

    fn cluster_word(&self, cluster: u16) -> u32 {
        self.maps.cluster_word(cluster)
    }

    fn node_word(&self, slot: u32) -> u32 {
        self.maps.node_word(slot)
    }
}

impl Clients for Socket {
    fn cookie(&self, client: Client) -> u64 {
        if client == Client::Socket { 7 } else { 8 + self.first.get() + self.cookie.get() }
    }

    fn seed(&self) -> u64 {
        self.seed.get()
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn pin(&self, client: Client, key: &PinKey) -> Option<Pin> {
        if self.forgetful {
            self.pins.borrow_mut().clear();
        }
        self.pins.borrow().get(&(client, *key)).copied()
    }

    fn write_pin(&self, client: Client, key: &PinKey, pin: &Pin) -> bool {
        self.pins.borrow_mut().insert((client, *key), *pin);
        true
    }

    fn note(&self, reason: Reason) {
        self.notes.borrow_mut().push(reason);
    }
}

impl Socket {
    fn new(parts: &[Part]) -> Self {
        let mut socket = Self { now: Cell::new(1_000_000_000), ..Self::default() };
        socket.serve(parts, 0, 0);
        socket
    }

    /// The agent writes the service anew, into slots from `at` on.
    fn serve(&mut self, parts: &[Part], at: u32, session_seconds: u32) {
        let service = self.maps.write(parts, at);
        let key = ServiceKey { proto: IPPROTO_UDP, ..crate::common::key() };
        self.maps.services.insert(key, Service { check: key.check(), session_seconds, ..service });
    }

    fn sends(&self) -> (Option<Addr>, Reason) {
        self.notes.borrow_mut().clear();
        self.seed.set(self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let key = ServiceKey { proto: IPPROTO_UDP, ..crate::common::key() };
        match assign(self, &key, &config(false)) {
            Choice::Backend { addr, reason, .. } => (Some(addr), reason),
            Choice::Untouched(reason) => (None, reason),
        }
    }

    fn pass(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * 1_000_000_000);
    }

    fn noted(&self, reason: Reason) -> bool {
        self.notes.borrow().contains(&reason)
    }
}

#[test]
fn a_socket_keeps_its_backend_as_long_as_it_goes_on_sending() {
    let socket = Socket::new(&[part(OWN, 1, &[1; 30]), part(2, 1, &[2; 30])]);
    let (first, reason) = socket.sends();
    assert_eq!(reason, Reason::ConnectChosen);
    assert!(socket.noted(Reason::PinMade));
    for _ in 0..10 {
        socket.pass(u64::from(UDP_IDLE_SECONDS) - 1);
        assert_eq!(socket.sends(), (first, Reason::PinKept));
    }
    socket.pass(u64::from(UDP_IDLE_SECONDS) + 1);
    assert_eq!(socket.sends().1, Reason::ConnectChosen);
    assert!(socket.noted(Reason::PinIdle) && socket.noted(Reason::PinMade));
}

#[test]
fn a_lost_pin_costs_a_new_choice_and_nothing_else() {
    let mut socket = Socket::new(&[part(OWN, 1, &[1; 3])]);
    socket.forgetful = true;
    let found: BTreeSet<_> = (0..60).map(|_| socket.sends()).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|(_, reason)| *reason == Reason::ConnectChosen));
}

#[test]
fn session_affinity_is_the_namespaces_and_has_its_own_time() {
    let mut socket = Socket::new(&[]);
    socket.serve(&[part(OWN, 1, &[1; 30])], 0, 600);
    let (first, _) = socket.sends();
    socket.pass(599);
    assert_eq!(socket.sends(), (first, Reason::PinKept));
    let keys: Vec<_> = socket.pins.borrow().keys().map(|(client, key)| (*client, key.client)).collect();
    assert_eq!(keys, [(Client::Namespace, 8)]);
}

#[test]
fn while_nothing_is_healthy_a_client_stays_where_it_is() {
    let mut socket = Socket::new(&[part(OWN, 1, &[1; 30]), part(2, 1, &[2; 30])]);
    let (first, _) = socket.sends();
    socket.maps.nodes.extend([(1, DOWN), (2, DOWN)]);
    for _ in 0..20 {
        assert_eq!(socket.sends(), (first, Reason::ConnectPanic));
        assert!(socket.noted(Reason::PinUnhealthy));
    }
}

#[test]
fn a_withdrawn_backend_is_let_go_though_its_freed_slot_still_names_it() {
    let mut socket = Socket::new(&[part(OWN, 1, &[1])]);
    assert_eq!(socket.sends().0, Some(backend_addr(OWN, 0)));
    socket.serve(&[part(2, 1, &[2])], 100, 0);
    assert!(socket.maps.backends.contains_key(&0), "the loader does not wipe what it frees");
    assert_eq!(socket.sends(), (Some(backend_addr(2, 0)), Reason::ConnectChosen));
    assert!(socket.noted(Reason::PinGone));
}

#[test]
fn a_backend_that_begins_to_drain_keeps_its_sockets_and_session_affinity_goes_elsewhere() {
    for session_seconds in [0, 600] {
        let mut socket = Socket::new(&[]);
        socket.serve(&[part(OWN, 1, &[1])], 0, session_seconds);
        let (first, _) = socket.sends();
        // Now its address is another one's too, in a slice of its own.
        let parts = |ready: &[u32]| [part(OWN, 1, ready), part(2, 1, &[2])];
        let drains = Part { draining: true, tier: 15, ..part(OWN, 1, &[1]) };
        let service = socket.maps.write(&[drains.clone(), parts(&[])[1].clone()], 100);
        let moved = drains.addr(0);
        let at = socket.maps.backends.values_mut().find(|backend| backend.addr == moved).unwrap();
        at.addr = first.unwrap();
        let key = ServiceKey { proto: IPPROTO_UDP, ..crate::common::key() };
        socket.maps.services.insert(key, Service { check: key.check(), session_seconds, ..service });
        let (now, reason) = socket.sends();
        if session_seconds == 0 {
            assert_eq!((now, reason), (first, Reason::PinKept));
            continue;
        }
        assert_eq!((now, reason), (Some(backend_addr(2, 0)), Reason::ConnectChosen));
        assert!(socket.noted(Reason::PinDraining));
        // Pinned there by now; with that gone as well, nothing but what drains is left.
        socket.maps.clusters.insert(2, DOWN);
        assert_eq!(socket.sends(), (first, Reason::ConnectDraining));
        assert!(socket.noted(Reason::PinUnhealthy));
        assert_eq!(socket.sends(), (first, Reason::ConnectDraining), "and there it stays");
    }
}

/// A service with tables for runs, one for each cluster, of the backends with these numbers.
fn with_tables(socket: &mut Socket, clusters: &BTreeMap<u16, BTreeSet<usize>>, at: u32) {
    const SLOTS: usize = 1_024;
    let parts: Vec<_> = clusters
        .iter()
        .map(|(cluster, backends)| Part { weight: backends.len() as u16, ..part(*cluster, 1, &[1; SLOTS]) })
        .collect();
    let service = socket.maps.write(&parts, at);
    for ((cluster, backends), run) in clusters.iter().zip(0..) {
        let addrs: Vec<_> = backends.iter().map(|backend| backend_addr(*cluster, *backend)).collect();
        for slot in 0..SLOTS as u32 {
            let owner = owner(slot, addrs.iter().map(|addr| (*addr, Port::new(8080))));
            socket.maps.backends.get_mut(&(at + run * SLOTS as u32 + slot)).unwrap().addr = addrs[owner];
        }
    }
    let key = ServiceKey { proto: IPPROTO_UDP, ..crate::common::key() };
    socket.maps.services.clear();
    let service = Service { check: key.check(), flags: SERVICE_MAGLEV, session_seconds: 600, ..service };
    socket.maps.services.insert(key, service);
}

/// Where each of so many clients goes.
fn homes(socket: &Socket, clients: u64) -> Vec<Addr> {
    let home = |client: u64| {
        socket.cookie.set(client);
        let (first, reason) = socket.sends();
        assert_eq!((socket.sends(), reason), ((first, reason), Reason::ConnectChosen), "always the same");
        first.unwrap()
    };
    (0..clients).map(home).collect()
}

#[test]
fn with_maglev_clients_are_spread_evenly_over_all_clusters() {
    let mut socket = Socket::new(&[]);
    with_tables(&mut socket, &BTreeMap::from([(1, (0..4).collect()), (2, (0..2).collect())]), 0);
    let mut shares = BTreeMap::<Addr, u32>::new();
    homes(&socket, 6_000).into_iter().for_each(|home| *shares.entry(home).or_default() += 1);
    assert_eq!(shares.len(), 6);
    // A slot's owner is drawn: with 256 slots expected, a sixth more or less is three standard deviations.
    assert!(shares.values().all(|share| (800..1_200).contains(share)), "{shares:?}");
    assert!(socket.pins.borrow().is_empty(), "and nothing is kept of them");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Within a cluster: exactly the clients of the backend that went. Of another cluster: what its weight gained or lost.
    #[test]
    fn with_maglev_a_change_of_one_backend_moves_its_share_of_clients(
        sizes in prop::collection::vec(2..12usize, 1..4),
        first in 0..1_000_000u64,
    ) {
        const CLIENTS: u64 = 1_500;
        let mut clusters: BTreeMap<u16, BTreeSet<usize>> =
            sizes.iter().zip(1..).map(|(size, cluster)| (cluster, (0..*size).collect())).collect();
        let backends: usize = sizes.iter().sum();
        let mut socket = Socket::new(&[]);
        socket.first.set(first << 20);
        with_tables(&mut socket, &clusters, 0);
        let before = homes(&socket, CLIENTS);
        let gone = backend_addr(1, 0);
        clusters.get_mut(&1).unwrap().remove(&0);
        with_tables(&mut socket, &clusters, 100_000);
        let after = homes(&socket, CLIENTS);
        let of_gone = before.iter().filter(|home| **home == gone).count();
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b && **a != gone).count();
        if clusters.len() == 1 {
            prop_assert_eq!(moved, 0, "who was elsewhere stays");
        }
        // A cluster's weight is one of many now: that alone moves up to a backend's share again.
        let share = CLIENTS as usize / backends;
        prop_assert!(of_gone + moved <= 3 * share + 60, "{of_gone} + {moved}, a share is {share}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// The naive model: the pinned backend is in the new set and healthy, or it is not.
    #[test]
    fn a_pin_survives_exactly_while_its_backend_is_there_and_healthy(
        before in prop::collection::btree_map(1..6u16, 1..40usize, 1..5),
        after in prop::collection::btree_map(1..6u16, 1..40usize, 1..5),
        drain in prop::collection::btree_map(1..6u16, 1..40usize, 0..4),
        down in prop::collection::btree_set(1..6u16, 0..4),
        seed: u64,
    ) {
        let parts = |of: &BTreeMap<u16, usize>| -> Vec<Part> {
            of.iter().map(|(cluster, len)| part(*cluster, 1, &vec![u32::from(*cluster); *len])).collect()
        };
        let mut socket = Socket::new(&parts(&before));
        socket.seed.set(seed);
        let (Some(pinned), _) = socket.sends() else { panic!("there are backends") };
        // Slices of what drains lie beside the others, of the same clusters and of ones that have nothing else.
        let mut all = parts(&after);
        all.extend(drain.iter().map(|(cluster, len)| draining(part(*cluster, 1, &vec![u32::from(*cluster); *len]))));
        all.sort_by_key(|part| (part.cluster, part.draining));
        socket.serve(&all, 1_000, 0);
        for cluster in &down {
            socket.maps.clusters.insert(*cluster, DOWN);
        }
        let (found, reason) = socket.sends();
        let cluster = u16::from(pinned.octets()[13]);
        let there = after.get(&cluster).is_some_and(|len| (0..*len).any(|at| backend_addr(cluster, at) == pinned));
        let healthy = !down.contains(&cluster);
        prop_assert_eq!(reason == Reason::PinKept, there && healthy);
        prop_assert_eq!(socket.noted(Reason::PinGone), !there);
        prop_assert_eq!(socket.noted(Reason::PinUnhealthy), there && !healthy);
        let others = || after.keys().chain(drain.keys());
        if there && (healthy || others().all(|cluster| down.contains(cluster))) {
            prop_assert_eq!(found, Some(pinned));
        } else {
            prop_assert_ne!(found, None);
        }
    }
}

#[test]
fn one_backend_is_found_among_thousands() {
    let mut socket = Socket::new(&[part(2, 1, &[0; 20_000]), part(3, 1, &[0; 5]), part(200, 1, &[0; 1])]);
    for at in [0, 1, 9_999, 19_998, 19_999] {
        let key = PinKey { client: 7, service: 7, pad: 0 };
        let pin = Pin {
            seen: socket.now.get(),
            addr: backend_addr(2, at),
            port: Port::new(8080),
            cluster: 2,
            pad: 0,
        };
        socket.write_pin(Client::Socket, &key, &pin);
        assert_eq!(socket.sends(), (Some(backend_addr(2, at)), Reason::PinKept));
        socket.write_pin(Client::Socket, &key, &Pin { port: Port::new(8081), ..pin });
        socket.sends();
        assert!(socket.noted(Reason::PinGone), "another port is another backend");
    }
    socket.maps.services.clear();
    assert_eq!(socket.sends(), (None, Reason::ConnectOther));
}
