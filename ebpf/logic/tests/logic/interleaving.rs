//! A reader against a writer: at every look of the choice the agent may replace the service and reuse its slots.

use std::cell::{Cell, RefCell};

use crate::common::{Maps, Part, config, key, lookup, part};
use hawser_ebpf_abi::{Addr, Backend, Pin, PinKey, Reason, Service, ServiceKey, Slice};
use hawser_ebpf_logic::choice::{Choice, Tables, unset_is_up};
use hawser_ebpf_logic::pin::{Client, Clients, assign};

/// Two versions of one service; `run` is where a version's slots are.
struct Racing {
    maps: RefCell<Maps>,
    looks: Cell<u32>,
    /// Before which look the agent acts, each time reusing the slots of the version it replaces.
    strikes: Vec<u32>,
    version: Cell<u16>,
    pin: Cell<Option<Pin>>,
}

impl Racing {
    fn new(strikes: Vec<u32>) -> Self {
        let racing = Self {
            maps: RefCell::default(),
            looks: Cell::new(0),
            strikes,
            version: Cell::new(1),
            pin: Cell::new(None),
        };
        racing.replace();
        racing.looks.set(0);
        racing
    }

    fn parts(version: u16) -> Vec<Part> {
        (0..3).map(|n| part(version * 10 + n, 1, &[0; 3])).collect()
    }

    /// The worst case: the freed run is taken at once, without the rest that the loader gives it.
    fn replace(&self) {
        self.version.set(self.version.get() + 1);
        let mut maps = self.maps.borrow_mut();
        let service = maps.write(&Self::parts(self.version.get()), 0);
        // Read by clients that keep their backend alone.
        maps.publish(Service { session_seconds: 60, ..service });
    }

    fn look<T>(&self, read: impl FnOnce(&Maps) -> T) -> T {
        self.looks.set(self.looks.get() + 1);
        if self.strikes.contains(&self.looks.get()) {
            self.replace();
        }
        read(&self.maps.borrow())
    }
}

impl Tables for Racing {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.look(|maps| maps.services.get(key).copied())
    }

    fn slice(&self, at: u32) -> Option<Slice> {
        self.look(|maps| maps.slices.get(&at).copied())
    }

    fn backend(&self, at: u32) -> Option<Backend> {
        self.look(|maps| maps.backends.get(&at).copied())
    }

    fn cluster_word(&self, cluster: u16) -> u32 {
        self.look(|maps| unset_is_up(maps.clusters.get(&cluster).copied().unwrap_or(0)))
    }

    fn node_word(&self, slot: u32) -> u32 {
        self.look(|maps| unset_is_up(maps.nodes.get(&slot).copied().unwrap_or(0)))
    }
}

impl Clients for Racing {
    fn seed(&self) -> u64 {
        self.looks.get().into()
    }

    fn cookie(&self, _: Client) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        1
    }

    fn pin(&self, _: Client, _: &PinKey) -> Option<Pin> {
        self.pin.get()
    }

    fn write_pin(&self, _: Client, _: &PinKey, pin: &Pin) -> bool {
        self.pin.set(Some(*pin));
        true
    }

    fn note(&self, _: Reason) {}
}

fn cluster_of(addr: Addr) -> u16 {
    addr.octets()[13].into()
}

#[test]
fn a_reader_overtaken_once_starts_again_and_gets_a_backend_of_one_version() {
    for strike in 1..40 {
        let racing = Racing::new(vec![strike]);
        match lookup(&racing, &config(false), u64::from(strike)) {
            Choice::Backend { addr, reason, .. } => {
                assert_eq!(reason, Reason::ConnectChosen);
                assert!((20..33).contains(&cluster_of(addr)), "strike {strike}: {addr}");
            }
            Choice::Untouched(reason) => panic!("strike {strike}: {reason}"),
        }
    }
}

#[test]
fn a_reader_overtaken_at_every_look_gives_up_and_touches_nothing() {
    let racing = Racing::new((1..200).collect());
    assert_eq!(lookup(&racing, &config(false), 3), Choice::Untouched(Reason::ConnectTorn));
}

#[test]
fn two_overtakings_end_in_a_backend_or_in_giving_up_never_in_a_mixture() {
    for first in 1..30 {
        for second in first + 1..60 {
            let racing = Racing::new(vec![first, second]);
            let choice = lookup(&racing, &config(false), u64::from(first * 64 + second));
            match choice {
                Choice::Untouched(reason) => assert_eq!(reason, Reason::ConnectTorn),
                Choice::Backend { addr, .. } => {
                    let version = cluster_of(addr) / 10;
                    // The backend existed in the version that was current when it was read or just before.
                    assert!(version <= racing.version.get() && version >= 2, "{addr}");
                }
            }
        }
    }
}

#[test]
fn a_client_that_is_overtaken_while_its_pin_is_held_against_the_service_gets_a_backend_of_one_version() {
    let mut kept = 0;
    for strike in 1..60 {
        let mut racing = Racing::new(vec![]);
        let Choice::Backend { addr: pinned, .. } = assign(&racing, &key(), &config(false)) else { panic!() };
        let looked = racing.looks.get();
        racing.strikes = vec![looked + strike];
        match assign(&racing, &key(), &config(false)) {
            Choice::Untouched(reason) => assert_eq!(reason, Reason::ConnectTorn),
            Choice::Backend { addr, reason, .. } => {
                let version = cluster_of(addr) / 10;
                assert!((2..=racing.version.get()).contains(&version), "strike {strike}: {addr}");
                kept += u32::from(reason == Reason::PinKept);
                assert!(reason != Reason::PinKept || addr == pinned, "strike {strike}: {addr} for {pinned}");
            }
        }
    }
    assert!(kept > 0 && kept < 59, "struck before and after the pin was found: {kept}");
}

#[test]
fn an_element_recycled_for_another_key_is_noticed() {
    let mut maps = Maps::default();
    let service = maps.write(&Racing::parts(1), 0);
    maps.publish(Service { check: service.check ^ 1, ..service });
    assert_eq!(maps.choose(false, 1), Choice::Untouched(Reason::ConnectTorn));
}
