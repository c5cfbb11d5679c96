//! Mesh traffic is in a tunnel or nowhere: nothing leaves in clear and nothing forged comes in, whatever becomes of the agent.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::net::forge::{self, Forged, Transport};
use hawser_e2e::net::frame::{Carried, Ipv4, parse};
use hawser_e2e::net::secrecy::Secrecy;
use hawser_e2e::net::sniffer::Sniffer;
use hawser_e2e::plan::{LabPlan, POD_PORT, PRIVATE_PORT};
use hawser_e2e::pod::client::{self, Request, Running};
use hawser_e2e::process::{output, run, said};
use hawser_e2e::{binaries, scenario, wait};

const MARKER: &str = "sealed-cargo-7f2e";
const PATIENCE: Duration = Duration::from_secs(30);
/// Senders go on for so long after each change.
const MEANWHILE: Duration = Duration::from_millis(700);
const WIREGUARD: u16 = 51_871;

/// What sends into the mesh all the time: a connection that is kept, and new ones from a pod and from the node itself, to a
/// service, to a pod of the other cluster and to a mesh address.
fn senders(lab: &Lab) -> Result<Vec<Running>> {
    let us = lab.cluster("us-east");
    let pod = lab.cluster("eu-west").pod("cart-0").plan.address;
    let mesh = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4;
    ensure!(!mesh.is_empty(), "eu-west/node-1 has no mesh address");
    let (client, host) = (&us.pod("client").place, &us.node("node-1").place);
    let often = |target: &str| {
        Request::to(target)
            .every(Duration::from_millis(20))
            .timeout(Duration::from_millis(400))
            .marker(MARKER)
    };
    let kept = often(&format!("{pod}:{POD_PORT}")).keep_alive().timeout(Duration::from_secs(60));
    let targets = [format!("{pod}:{POD_PORT}"), format!("{mesh}:{POD_PORT}"), us.service_address()];
    let mut all = vec![client::start(client, &kept)?];
    for target in &targets {
        all.push(client::start(client, &often(target))?);
        all.push(client::start(host, &often(target))?);
    }
    Ok(all)
}

fn meanwhile() {
    std::thread::sleep(MEANWHILE);
}

fn connected_again(lab: &mut Lab) -> Result<()> {
    lab.cluster("us-east").node("node-1").wait_for_agent()?;
    lab.wait_until_connected(PATIENCE)?;
    lab.wait_until_served()
}

/// What the tunnel leaves behind when its node is switched off.
fn forget_like_a_reboot(lab: &Lab) -> Result<()> {
    let script = "ip link del hawser0; ip route flush proto 72; ip -6 route flush proto 72; \
        rm -rf /sys/fs/bpf/hawser; ! ip route show proto 72 | grep .";
    run(lab.cluster("us-east").node("node-1").place.command("sh").args(["-c", script])).map(drop)
}

fn guards(lab: &Lab) -> Result<String> {
    let node = &lab.cluster("us-east").node("node-1").place;
    run(node.command("ip").args(["route", "show", "proto", "72"]))
}

#[test]
fn nothing_leaves_in_clear_while_an_agent_starts_restarts_dies_gets_another_key_and_loses_its_peer() {
    scenario::run_with_product(|| {
        let plan = LabPlan::regions(&["us-east", "eu-west"], 1);
        let bridges: Vec<String> = plan.clusters.iter().map(|cluster| cluster.bridge()).collect();
        let mut lab = Lab::build(plan)?;
        let capture = Sniffer::start(None, &bridges, Secrecy::watching_for(MARKER))?;
        let clear = |during: &str| -> Result<()> {
            meanwhile();
            let seen = capture.look();
            ensure!(seen.violation_count == 0, "left in clear {during}: {:#?}", seen.violations);
            ensure!(seen.marker_seen == 0, "the marker left in clear {during}");
            Ok(())
        };
        lab.start_product(Store::Embedded)?;
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        let flows = senders(&lab)?;
        clear("in peace")?;

        let agent = |lab: &mut Lab, stop: fn(&mut hawser_e2e::process::Process) -> Result<()>| {
            stop(lab.cluster_mut("us-east").node_mut("node-1").agent())
        };
        for how in ["SIGTERM", "SIGKILL"] {
            match how {
                "SIGTERM" => agent(&mut lab, |agent| agent.terminate(PATIENCE).map(drop))?,
                _ => agent(&mut lab, |agent| agent.kill())?,
            }
            clear(&format!("without an agent, after {how}"))?;
            lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
            connected_again(&mut lab)?;
            clear(&format!("after a start that followed {how}"))?;
        }

        let key = |lab: &Lab| -> Result<String> {
            let status = lab.cluster("eu-west").node("node-1").status()?;
            Ok(status.tunnels.first().context("a tunnel to us-east")?.public_key.clone())
        };
        let before = key(&lab)?;
        agent(&mut lab, |agent| agent.terminate(PATIENCE).map(drop))?;
        let place = &lab.cluster("us-east").node("node-1").place;
        run(place.command("rm").arg("/var/lib/hawser/agent/wireguard.key"))?;
        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        lab.wait("eu-west has the new key", PATIENCE, |lab| {
            ensure!(key(lab)? != before, "it is the same key");
            Ok(())
        })?;
        connected_again(&mut lab)?;
        clear("while the node's key changed")?;
        lab.cluster("us-east").hawser_ok(&["ca", "rotate"])?;
        clear("while the cluster's CA was rotated")?;

        lab.cluster("us-east").hawser_ok(&["disconnect", "eu-west"])?;
        lab.wait("eu-west's tunnels are gone", PATIENCE, |lab| {
            let node = lab.cluster("us-east").node("node-1");
            ensure!(node.status()?.tunnels.is_empty(), "there are tunnels");
            node.settled()
        })?;
        clear("after the other cluster was disconnected")?;
        agent(&mut lab, |agent| agent.terminate(PATIENCE).map(drop))?;
        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        lab.cluster("us-east").node("node-1").wait_for_agent()?;
        clear("after a restart that followed")?;

        drop(flows);
        let seen = capture.stop()?;
        ensure!(seen.wireguard.contains_key("data"), "nothing was sent at all");
        Ok(())
    });
}

/// The route is more specific than the mesh's: it decides, and the edge keeps in what it would lead out.
#[test]
fn somebody_elses_route_leads_nothing_out_by_any_device_not_even_by_one_that_appears_later() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let (us, eu) = (lab.cluster("us-east"), lab.cluster("eu-west"));
        let node = us.node("node-1");
        let pod = eu.pod("cart-0").plan.address;
        let shell = |script: &str| run(node.place.command("sh").args(["-ec", script]));
        let dropped = || -> Result<u64> { Ok(node.status()?.count("guard-out-in-clear")) };
        let capture =
            Sniffer::start(None, &[us.plan.bridge(), eu.plan.bridge()], Secrecy::watching_for(MARKER))?;
        // As a CNI would that routes by the fabric: by the router.
        shell(&format!("ip route add {pod}/32 $(ip route show default | sed 's/default//')"))?;
        let flows = senders(&lab)?;
        wait::until("what the route leads out is dropped at the edge", PATIENCE, || {
            ensure!(dropped()? > 0, "nothing was");
            Ok(())
        })?;
        shell(&format!(
            "ip link add late0 arp off type veth peer name late1; \
             for end in late0 late1; do echo 1 > /proc/sys/net/ipv6/conf/$end/disable_ipv6; ip link set $end up; done; \
             ip route replace {pod}/32 dev late0"
        ))?;
        wait::until("the new device is guarded", PATIENCE, || {
            let pins =
                shell("find /sys/fs/bpf/hawser -name \"guard_out-$(cat /sys/class/net/late0/ifindex)\"")?;
            ensure!(!pins.trim().is_empty(), "it is not");
            Ok(())
        })?;
        let sent = || shell("cat /sys/class/net/late0/statistics/tx_packets");
        let (before, drops) = (sent()?, dropped()?);
        wait::until("what is led there is dropped", PATIENCE, || {
            ensure!(dropped()? > drops, "nothing was");
            Ok(())
        })?;
        ensure!(sent()? == before, "late0 carries mesh traffic: {before} packets, then {}", sent()?);
        // Pods go by no route.
        us.pod("client").ask(&Request::to(&format!("{pod}:{POD_PORT}")).requests(5))?.all_ok()?;
        drop(flows);
        let seen = capture.stop()?;
        ensure!(seen.violation_count == 0 && seen.marker_seen == 0, "left in clear: {:#?}", seen.violations);
        Ok(())
    });
}

#[test]
fn a_node_that_was_switched_off_is_guarded_before_its_api_server_can_be_reached() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        lab.cluster_mut("us-east").node_mut("node-1").agent().kill()?;
        lab.cluster_mut("us-east").api_server().kill()?;
        forget_like_a_reboot(&lab)?;
        let started = Instant::now();
        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        wait::until("the mesh's prefixes are guarded", PATIENCE, || {
            let table = guards(&lab)?;
            ensure!(table.contains("unreachable 10.2.0.0/16"), "{table}");
            Ok(())
        })?;
        let eu = lab.cluster("eu-west").plan.bridge();
        let us = lab.cluster("us-east").plan.bridge();
        let capture = Sniffer::start(None, &[us, eu], Vec::new())?;
        let flows = senders(&lab)?;
        wait::until("the tunnels of the last run are back", PATIENCE, || {
            let status = lab.cluster("eu-west").node("node-1").status()?;
            let age = status.tunnels.first().map_or(-1, |tunnel| tunnel.last_handshake_ms_ago);
            let since = i64::try_from(started.elapsed().as_millis())?;
            ensure!((0..since).contains(&age), "the last handshake was {age} ms ago, the start {since}");
            Ok(())
        })?;
        meanwhile();
        drop(flows);
        let frames: Vec<Vec<u8>> = capture.stop()?;
        let leaked = frames.iter().filter_map(|frame| ipv4(frame)).find(is_inner);
        ensure!(leaked.is_none(), "left in clear: {leaked:?}");

        // And what comes in is judged from the first packet on.
        let device = run(lab.cluster("us-east").node("node-1").place.command("sh").args([
            "-c",
            "find /sys/fs/bpf/hawser -name \"tunnel_in-$(cat /sys/class/net/hawser0/ifindex)\"",
        ]))?;
        ensure!(!device.trim().is_empty(), "no program judges what comes out of hawser0");
        Ok(())
    });
}

fn ipv4(frame: &[u8]) -> Option<Ipv4<'_>> {
    match parse(frame) {
        Carried::Ipv4(packet) => Some(packet),
        _ => None,
    }
}

fn is_inner(packet: &Ipv4<'_>) -> bool {
    [packet.source, packet.destination].iter().any(|address| matches!(address.octets()[0], 10 | 240..=254))
}

fn forged(from: Ipv4Addr, to: Ipv4Addr, port: u16, mac: [u8; 6]) -> Forged {
    Forged {
        destination_mac: mac,
        source: from,
        destination: to,
        source_port: 40_404,
        port,
        transport: Transport::Udp,
        payload: MARKER.as_bytes().to_vec(),
    }
}

fn drops(lab: &Lab) -> Result<u64> {
    Ok(lab.cluster("us-east").node("node-1").status()?.drops().map(|reason| reason.packets).sum())
}

/// Frames with the marker, as a machine of `lab` sees them.
fn marked(frames: &[Vec<u8>]) -> usize {
    let marker = MARKER.as_bytes();
    frames.iter().filter(|frame| frame.windows(marker.len()).any(|window| window == marker)).count()
}

#[test]
fn a_stranger_on_the_underlay_gets_nothing_in_whether_an_agent_runs_or_not() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let stranger = lab.cluster("us-east").plan.stranger();
        let remote_pod = lab.cluster("eu-west").pod("cart-0").plan.address;
        let own_pod = lab.cluster("us-east").pod("cart-0").plan.address;
        let mesh = |lab: &Lab, name: &str| -> Result<Ipv4Addr> {
            Ok(lab.cluster(name).node("node-1").status()?.mesh_ipv4.parse()?)
        };
        let (own_mesh, remote_mesh) = (mesh(&lab, "us-east")?, mesh(&lab, "eu-west")?);
        let mac = lab.cluster("us-east").node("node-1").mac()?;
        let mut lies = Vec::new();
        for port in [POD_PORT, PRIVATE_PORT, 7784, 51_872] {
            lies.push(forged(remote_pod, own_pod, port, mac));
            lies.push(forged(remote_mesh, own_pod, port, mac));
            lies.push(forged(remote_pod, own_mesh, port, mac));
            lies.push(forged(remote_mesh, own_mesh, port, mac));
            lies.push(forged(stranger, own_mesh, port, mac));
        }
        let try_all = |lab: &Lab, when: &str| -> Result<()> {
            let pod = Sniffer::start(
                Some(&lab.cluster("us-east").pod("cart-0").place),
                &["eth0".into()],
                Vec::new(),
            )?;
            let wire = Sniffer::start(Some(&lab.stranger), &["eth0".into()], Vec::new())?;
            forge::send(&lab.stranger, &lies)?;
            meanwhile();
            let (arrived, answered) = (marked(&pod.stop()?), wire.stop()?);
            ensure!(arrived == 0, "{arrived} forged packets arrived at the pod {when}");
            let answers = answered.iter().filter_map(|frame: &Vec<u8>| ipv4(frame)).filter(is_inner).count();
            ensure!(answers == 0, "{answers} answers in clear {when}");
            Ok(())
        };
        let before = drops(&lab)?;
        try_all(&lab, "while the agent runs")?;
        lab.wait("all of them are counted", PATIENCE, |lab| {
            let grown = drops(lab)? - before;
            ensure!(grown >= lies.len() as u64, "{grown} of {}", lies.len());
            Ok(())
        })?;
        lab.cluster_mut("us-east").node_mut("node-1").agent().kill()?;
        try_all(&lab, "while no agent runs")?;
        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        try_all(&lab, "while the agent starts")?;
        connected_again(&mut lab)
    });
}

#[test]
fn recorded_packets_played_again_are_worth_nothing_and_move_no_endpoint() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let (us, eu) = (lab.cluster("us-east"), lab.cluster("eu-west"));
        let recorder = Sniffer::start(None, &[eu.plan.bridge()], Vec::<Vec<u8>>::new())?;
        let target = format!("{}:{POD_PORT}", us.pod("cart-0").plan.address);
        let asked = Request::to(&target).requests(20).marker(MARKER);
        eu.pod("client").ask(&asked)?.all_ok()?;
        let frames = recorder.stop()?;
        let (here, there) = (us.node("node-1").plan.address, eu.node("node-1").plan.address);
        let mac = us.node("node-1").mac()?;
        let stranger = us.plan.stranger();
        let recorded: Vec<Vec<u8>> = frames
            .iter()
            .filter_map(|frame| ipv4(frame).filter(|packet| packet.destination == here))
            .filter_map(|packet| packet.udp().map(|udp| udp.payload.to_vec()))
            .collect();
        ensure!(recorded.len() > 40, "{} messages were recorded", recorded.len());
        let again = |from: Ipv4Addr| {
            let one = move |payload: &Vec<u8>| Forged {
                source_port: WIREGUARD,
                payload: payload.clone(),
                ..forged(from, here, WIREGUARD, mac)
            };
            recorded.iter().map(one).collect::<Vec<_>>()
        };
        let requests = || -> Result<usize> { Ok(us.pod("cart-0").server_log()?.lines().count()) };
        let (served, before) = (requests()?, drops(&lab)?);
        for from in [there, stranger] {
            forge::send(&lab.stranger, &again(from))?;
        }
        let due = 2 * recorded.len() as u64;
        wait::until("every one of them is counted as dropped", PATIENCE, || {
            let grown = drops(&lab)? - before;
            ensure!(grown >= due, "{grown} of {due}");
            Ok(())
        })?;
        ensure!(requests()? == served, "a request was served that nobody made");
        let status = us.node("node-1").status()?;
        let endpoint = &status.tunnels.first().context("a tunnel")?.endpoint;
        ensure!(*endpoint == format!("{there}:{WIREGUARD}"), "the peer was moved to {endpoint}");
        eu.pod("client").ask(&asked)?.all_ok()?;
        lab.wait_until_connected(PATIENCE)
    });
}

/// The owner of eu-west/node-1 sends what a member may not: with its keys, through its tunnel.
#[test]
fn a_member_that_lies_reaches_nothing_beyond_the_node_it_speaks_to() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let (us, liar) = (lab.cluster("us-east"), lab.cluster("eu-west").node("node-1"));
        let stranger = us.plan.stranger();
        let (own_pod, client) = (us.pod("cart-0").plan.address, us.pod("client").plan.address);
        let node = us.node("node-1").plan.address;
        // What the liar's own side would not let out is let out.
        let allowed = run(liar.place.command("wg").args(["show", "hawser0", "allowed-ips"]))?;
        let (key, owned) = allowed.trim().split_once('\t').context("a peer")?;
        let owned = format!("{},{stranger}/32,{node}/32", owned.replace(' ', ","));
        run(liar.place.command("wg").args(["set", "hawser0", "peer", key, "allowed-ips", &owned]))?;

        let his_pod = lab.cluster("eu-west").pod("cart-0").plan.address;
        let to = |from, to, port| forged(from, to, port, [0; 6]);
        let nobody = Ipv4Addr::new(10, 9, 9, 9);
        let lies = [
            to(his_pod, stranger, 9),
            to(his_pod, node, 2379),
            to(his_pod, own_pod, PRIVATE_PORT),
            to(client, own_pod, POD_PORT),
            to(stranger, own_pod, POD_PORT),
            to(nobody, own_pod, POD_PORT),
        ];
        let before = drops(&lab)?;
        let pod = Sniffer::start(Some(&us.pod("cart-0").place), &["eth0".into()], Vec::new())?;
        let wire = Sniffer::start(Some(&lab.stranger), &["eth0".into()], Vec::new())?;
        for _ in 0..5 {
            forge::send_into(&liar.place, "hawser0", &lies)?;
        }
        wait::until("every lie is counted as dropped", PATIENCE, || {
            let grown = drops(&lab)? - before;
            // A datagram to a closed port of a pod is refused, and its sender told.
            ensure!(grown >= 5 * (lies.len() as u64 - 1), "{grown} of {}", 5 * lies.len());
            Ok(())
        })?;
        let (arrived, forwarded) = (marked(&pod.stop()?), marked(&wire.stop()?));
        ensure!(arrived == 0, "{arrived} of them arrived at the pod");
        ensure!(forwarded == 0, "{forwarded} of them were forwarded to the underlay");
        Ok(())
    });
}

#[test]
fn a_node_whose_agent_was_removed_takes_nothing_from_the_mesh_any_more() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let target = format!("{}:{POD_PORT}", lab.cluster("us-east").pod("cart-0").plan.address);
        let often = Request::to(&target).every(Duration::from_millis(10)).timeout(Duration::from_millis(300));
        let flow = lab.cluster("eu-west").pod("client").keep_asking(&often)?;
        // A port that nobody exports, of the node's own network.
        let mesh = lab.cluster("us-east").node("node-1").status()?.mesh_ipv4;
        let knocks = Request::to(&format!("{mesh}:2379"))
            .every(Duration::from_millis(5))
            .timeout(Duration::from_millis(100));
        let knocks = client::start(&lab.cluster("eu-west").node("node-1").place, &knocks)?;
        meanwhile();
        lab.cluster_mut("us-east").node_mut("node-1").agent().terminate(PATIENCE)?;
        let place = &lab.cluster("us-east").node("node-1").place;
        let mut command = place.command(binaries::find("hawser-node-agent")?);
        let removed = output(command.args(["--config", "/etc/hawser/agent.yaml", "--remove"]))?;
        ensure!(removed.status.success(), "{}", said(&removed));
        meanwhile();
        ensure!(flow.stop()?.ok > 0, "nothing was ever asked");
        let knocks = knocks.stop()?;
        let opened = knocks.records.iter().filter(|record| {
            // A server of TLS hangs up on plain HTTP; whatever is not a timeout was a connection.
            record.error.as_deref().is_none_or(|error| !error.contains("timed out"))
        });
        let opened: Vec<_> = opened.take(3).collect();
        ensure!(opened.is_empty(), "a port of the node was reached through the mesh: {opened:?}");
        Ok(())
    });
}
