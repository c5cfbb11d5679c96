//! The loader: differences, adoption, cgroups, refusal, removal.

use std::fs;
use std::path::Path;

use hawser_ebpf::{Attachments, Datapath, Hook, LoadConfig, retire, uninstall};
use hawser_ebpf_abi::{
    ABI_VERSION, BackendSpec, Config, DesiredDatapath, Endpoint, Exported, IP_REMOTE, IpEntry, Port,
    PrefixKey, Reason, ServiceKey, ServiceSpec, SliceSpec,
};
use hawser_model::Time;

use crate::device::Device;
use crate::world::{in_a_namespace, ip, root};

fn key(address: &str, port: u16) -> ServiceKey {
    ServiceKey::new(ip(address), Port::new(port), 6)
}

fn slice(backends: &[&str]) -> SliceSpec {
    let backend =
        |address: &&str| BackendSpec { addr: ip(address), port: Port::new(8080), node: 1, draining: false };
    SliceSpec {
        weight: u16::try_from(backends.len()).unwrap(),
        backends: backends.iter().map(backend).collect(),
        ..SliceSpec::default()
    }
}

fn desired() -> DesiredDatapath {
    let mut desired = DesiredDatapath { config: Config::new(1), ..DesiredDatapath::default() };
    let slices = [((1, 0), slice(&["10.1.0.1", "10.1.0.2"])), ((2, 0), slice(&["10.2.0.1"]))].into();
    desired.services.insert(key("172.20.0.1", 80), ServiceSpec { slices, ..ServiceSpec::default() });
    let remote = IpEntry { identity: 7, node: 1, cluster: 2, flags: IP_REMOTE };
    desired.ipcache.insert(PrefixKey::new("10.2.0.0".parse().unwrap(), 16).unwrap(), remote);
    desired.endpoints.insert(ip("10.1.0.1"), Endpoint { ifindex: 1, identity: 9, flags: 0 });
    desired.exported.insert(key("10.1.0.1", 8080), Exported { flags: 0 });
    desired
}

fn sync(datapath: &mut Datapath, desired: &DesiredDatapath) -> u64 {
    let report = datapath.maps.sync(desired, Time::ZERO);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    report.writes
}

fn pins(config: &LoadConfig, part: &str) -> Vec<String> {
    let path = root(config).join(part);
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The kernel walks a million and no more, and an older kernel's verifier walks more for the same program.
#[test]
fn the_verifier_has_much_room_left() {
    in_a_namespace(|config| {
        let mut datapath = Datapath::load(config).unwrap();
        for hook in Hook::ALL {
            let info = datapath.program(hook).unwrap().info().unwrap();
            // Kernel 5.16 began to say it.
            let verified = info.verified_instruction_count().unwrap_or_default();
            println!("{}: {verified} verified instructions", hook.program());
            assert!(verified < 400_000, "{}: {verified}", hook.program());
        }
    });
}

#[test]
fn only_differences_are_written() {
    in_a_namespace(|config| {
        let mut datapath = Datapath::load(config).unwrap();
        let mut desired = desired();
        // config, ipcache and its block, endpoint, exported; 3 backends, 2 slices, 1 service.
        assert_eq!(sync(&mut datapath, &desired), 5 + 6);
        assert_eq!(sync(&mut datapath, &desired), 0);
        // One endpoint more in eu-west: its 2 backends, 2 slices, 1 service.
        let service = desired.services.get_mut(&key("172.20.0.1", 80)).unwrap();
        service.slices.insert((2, 0), slice(&["10.2.0.1", "10.2.0.2"]));
        assert_eq!(sync(&mut datapath, &desired), 5);
        // Session affinity alone: no backend is written.
        desired.services.get_mut(&key("172.20.0.1", 80)).unwrap().session_seconds = 60;
        assert_eq!(sync(&mut datapath, &desired), 3);
        assert_eq!(sync(&mut datapath, &DesiredDatapath { config: desired.config, ..Default::default() }), 5);
    });
}

#[test]
fn a_restarted_agent_adopts_what_is_there() {
    in_a_namespace(|config| {
        let desired = desired();
        let mut first = Datapath::load(config).unwrap();
        sync(&mut first, &desired);
        first.maps.set_cluster_health(2, 1 << 30).unwrap();
        assert_eq!(first.attach(&Attachments { underlay: [1].into(), ..Default::default() }).len(), 0);
        let problems = first.attach_cgroups();
        assert!(problems.is_empty(), "{problems:?}");
        let links = pins(config, "links");
        assert_eq!(links.len(), 1 + 2 * 9, "{links:?}");
        drop(first);
        assert_eq!(pins(config, "links"), links, "stop is not remove");

        let mut second = Datapath::load(config).unwrap();
        assert_eq!(second.maps.cluster_health(2).unwrap(), 1 << 30, "verdicts hold across a restart");
        // The config is said again, and the service flips to runs of the new agent: 3 backends, 2 slices, 1 entry.
        assert_eq!(sync(&mut second, &desired), 1 + 6);
        assert_eq!(second.attach(&Attachments { underlay: [1].into(), ..Default::default() }).len(), 0);
        assert_eq!(second.attach_cgroups().len(), 0);
        assert_eq!(pins(config, "links"), links);
        assert_eq!(second.attach(&Attachments::default()).len(), 0);
        assert_eq!(pins(config, "links").len(), 18, "a device that is not ours any more is let go");
    });
}

#[test]
fn cgroups_come_and_go() {
    in_a_namespace(|config| {
        let mut datapath = Datapath::load(config).unwrap();
        let problems = datapath.attach_cgroups();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(pins(config, "links").len(), 18);
        fs::create_dir(config.cgroup2.join("late")).unwrap();
        fs::remove_dir(config.cgroup2.join("system")).unwrap();
        fs::remove_dir(config.cgroup2.join("kubepods")).unwrap();
        let problems = datapath.attach_cgroups();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(pins(config, "links").len(), 9);
    });
}

#[test]
fn a_device_that_went_away_while_no_agent_ran_loses_its_pin() {
    in_a_namespace(|config| {
        let device = Device::tap("eth0");
        let mut datapath = Datapath::load(config).unwrap();
        let wanted = Attachments { underlay: [device.ifindex].into(), ..Default::default() };
        assert_eq!(datapath.attach(&wanted).len(), 0);
        assert_eq!(pins(config, "links"), [format!("underlay_in-{}", device.ifindex)]);
        drop((datapath, device));
        drop(Datapath::load(config).unwrap());
        assert_eq!(pins(config, "links"), Vec::<String>::new());
    });
}

#[test]
fn health_words_are_one_write_each_and_counted() {
    in_a_namespace(|config| {
        let mut datapath = Datapath::load(config).unwrap();
        datapath.maps.set_node_health(3, 1 << 30).unwrap();
        datapath.maps.set_node_health(4, 1 << 30).unwrap();
        datapath.maps.set_cluster_health(2, 1 << 30).unwrap();
        assert_eq!(datapath.maps.word_writes(), (1, 2));
        assert_eq!(datapath.maps.node_health(4).unwrap(), 1 << 30);
        assert!(datapath.maps.counters().unwrap().iter().all(|(_, count)| *count == 0));
        assert_eq!(datapath.maps.counters().unwrap().len(), Reason::ALL.len());
    });
}

#[test]
fn what_an_agent_of_another_abi_left_goes_when_it_is_replaced_and_other_devices_stay() {
    in_a_namespace(|config| {
        let mut old = Datapath::load(config).unwrap();
        assert_eq!(old.attach_cgroups().len(), 0);
        let other = LoadConfig { device: "hawser1".into(), ..config.clone() };
        drop((old, Datapath::load(&other).unwrap()));
        let hawser = config.bpffs.join("hawser");
        fs::rename(hawser.join(format!("v{ABI_VERSION}")), hawser.join("v1")).unwrap();
        let mut new = Datapath::load(config).unwrap();
        sync(&mut new, &desired());
        assert_eq!(new.attach_cgroups().len(), 0);
        retire(config).unwrap();
        assert!(!hawser.join("v1/hawser0").exists() && hawser.join("v1/hawser1").exists());
        assert_eq!(pins(config, "links").len(), 18, "this one's are at work");
        uninstall(config).unwrap();
        uninstall(&other).unwrap();
        assert!(!hawser.exists());
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_and_uninstall_leaves_nothing() {
    in_a_namespace(|config| {
        drop(Datapath::load(config).unwrap());
        let maps = root(config).join("maps");
        fs::rename(maps.join("slices"), maps.join("aside")).unwrap();
        fs::hard_link(maps.join("backends"), maps.join("slices")).unwrap();
        let refused = Datapath::load(config).unwrap_err().to_string();
        assert!(refused.contains("slices") && refused.contains("--remove"), "{refused}");
        uninstall(config).unwrap();
        assert!(!Path::new(&config.bpffs).join("hawser").exists());
        uninstall(config).unwrap();
    });
}
