//! What 30,000 services cost, and what becomes of what does not fit.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use hawser_ebpf::{Datapath, LoadConfig, LruSizes};
use hawser_ebpf_abi::{
    BackendSpec, Config, DesiredDatapath, Endpoint, Port, ServiceKey, ServiceSpec, SliceSpec, map, size,
};
use hawser_model::Time;

use crate::world::{in_a_namespace, root};

fn backends(first: u32, count: u32) -> SliceSpec {
    let backend = |n: u32| BackendSpec {
        addr: Ipv4Addr::from(n).into(),
        port: Port::new(8080),
        node: 1,
        draining: false,
    };
    let backends = (first..first + count).map(|n| backend(0x0a00_0000 + n)).collect();
    SliceSpec { weight: 1, backends, ..SliceSpec::default() }
}

fn key(n: u32) -> ServiceKey {
    ServiceKey::new(Ipv4Addr::from(0xac10_0000 + n).into(), Port::new(80), 6)
}

/// Services with two endpoints here and two in another cluster.
fn desired(services: u32) -> DesiredDatapath {
    let service = |n: u32| {
        let slices = [((1, 0), backends(4 * n, 2)), ((2, 0), backends(4 * n + 2, 2))].into();
        (key(n), ServiceSpec { slices, ..ServiceSpec::default() })
    };
    DesiredDatapath {
        config: Config::new(1),
        services: (0..services).map(service).collect(),
        ..DesiredDatapath::default()
    }
}

/// What the kernel charges for all maps, in bytes.
fn memory(config: &LoadConfig) -> u64 {
    let of = |name: &&str| {
        let path = root(config).join("maps").join(name);
        let map = MapData::from_pin(path).unwrap();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    map::ALL.iter().map(of).sum()
}

#[test]
fn thirty_thousand_services_fit_in_60_mib_and_one_endpoint_is_a_handful_of_writes() {
    in_a_namespace(|config| {
        // As the agent has it where no traffic from outside is served.
        let lru = LruSizes { entered: LruSizes::LEAST, ..config.lru };
        let config = &LoadConfig { lru, ..config.clone() };
        let mut datapath = Datapath::load(config).unwrap();
        let empty = memory(config);
        let mut desired = desired(30_000);
        let report = datapath.maps.sync(&desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!(report.writes, 1 + 30_000 * (4 + 2 + 1), "backends, slices, the entry");
        let full = memory(config);
        eprintln!("maps: {} KiB empty, {} KiB with 30,000 services x 4 endpoints", empty >> 10, full >> 10);
        assert!(full > empty, "maps that grow with their content");
        assert!(full <= 60 << 20, "{full}");
        assert_eq!(datapath.maps.sync(&desired, Time::ZERO).writes, 0);
        let service = desired.services.get_mut(&key(17)).unwrap();
        service.slices.insert((2, 0), backends(4 * 17 + 2, 3));
        assert_eq!(datapath.maps.sync(&desired, Time::ZERO).writes, 3 + 2 + 1);
    });
}

#[test]
fn what_does_not_fit_is_refused_by_the_maps_name_and_nothing_is_lost() {
    in_a_namespace(|config| {
        let mut datapath = Datapath::load(config).unwrap();
        let mut desired = desired(2);
        let endpoint = |n: u32| (Ipv4Addr::from(n).into(), Endpoint { ifindex: 1, identity: 9, flags: 0 });
        desired.endpoints = (0..size::ENDPOINTS).map(endpoint).collect();
        assert!(datapath.maps.sync(&desired, Time::ZERO).problems.is_empty());

        let wanted = desired.clone();
        desired.endpoints.extend((size::ENDPOINTS..size::ENDPOINTS + 10).map(endpoint));
        desired.services.insert(
            key(1),
            ServiceSpec {
                slices: [((1, 0), backends(0, size::BACKENDS + 1))].into(),
                ..ServiceSpec::default()
            },
        );
        let report = datapath.maps.sync(&desired, Time::ZERO);
        let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2, "each map says so once: {problems:?}");
        for name in ["endpoints is full at 4096", "backends is full at 262144"] {
            assert!(
                problems.iter().any(|problem| problem.contains(name) && problem.contains("fix:")),
                "{problems:?}"
            );
        }
        assert_eq!(datapath.maps.sync(&wanted, Time::ZERO).writes, 0, "all that was in is in");
    });
}
