//! Clusters behind NATs meet at gateways: everything arrives, nothing is in clear anywhere, a dead gateway's pairs move alone, and
//! nothing forged is carried.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Node, Store};
use hawser_e2e::net::forge::{self, Forged, Transport};
use hawser_e2e::net::frame::{Carried, parse};
use hawser_e2e::net::sniffer::{Observer, Sniffer};
use hawser_e2e::plan::{ClusterPlan, LabPlan, POD_PORT};
use hawser_e2e::pod::client::{self, Request, Running};
use hawser_e2e::pod::server::pattern;
use hawser_e2e::process::{run, run_with_input};
use hawser_e2e::{scenario, wait};

const MARKER: &str = "sealed-cargo-9c41";
const PATIENCE: Duration = Duration::from_secs(60);
const BYTES: usize = 8 << 20;
const NODES: &str = "/etc/hawser/manifests/nodes.yaml";
/// eu-west's gateways and where they are reached: another port, too.
const GATEWAYS: [(&str, &str); 2] = [("node-1", "203.0.113.1:51871"), ("node-2", "203.0.113.2:4500")];

/// The node behind them, and its pod.
const BEHIND: (&str, &str) = ("node-3", "cart-2");

/// By us-east's node, at which gateway it meets the one behind.
type Met = BTreeMap<String, String>;

/// Every node is behind the NAT of its region. Nothing gets in that was not asked for, but at the gateways' public endpoints. What
/// stays in its region passes no NAT: with br_netfilter these chains see that, too.
fn nats() -> Result<()> {
    let rules = "table ip behind {
        set region {
            type ipv4_addr . ipv4_addr
            flags interval
            elements = {
                172.16.1.0/24 . 172.16.1.0/24,
                172.16.2.0/24 . 172.16.2.0/24,
                172.16.3.0/24 . 172.16.3.0/24
            }
        }
        chain public {
            type nat hook prerouting priority dstnat;
            ip daddr 203.0.113.1 udp dport 51871 dnat to 172.16.2.11:51871
            ip daddr 203.0.113.2 udp dport 4500 dnat to 172.16.2.12:51871
        }
        chain out {
            type nat hook postrouting priority srcnat;
            ip saddr . ip daddr @region accept
            ip saddr 172.16.0.0/16 udp sport 51871 masquerade to :20000-30000 random
        }
        chain in {
            type filter hook forward priority filter;
            ip saddr . ip daddr @region accept
            ct status dnat accept
            udp dport 51871 ct state new drop
        }
    }\n";
    run_with_input(Command::new("nft").args(["-f", "-"]), rules).map(drop)
}

/// What all nodes send, as their switch sees it.
#[derive(Debug, Default)]
struct Wires {
    wireguard: u64,
    marked: u64,
    clear: Vec<String>,
}

impl Observer for Wires {
    fn see(&mut self, frame: &[u8]) {
        let marker = MARKER.as_bytes();
        self.marked += u64::from(frame.windows(marker.len()).any(|window| window == marker));
        let Carried::Ipv4(packet) = parse(frame) else { return };
        let ports = packet.udp().map(|udp| (udp.source, udp.destination));
        self.wireguard += u64::from(ports.is_some_and(|(from, to)| from == 51_871 || to == 51_871));
        let (from, to) = (packet.source.octets(), packet.destination.octets());
        // Inside of a cluster the CNI carries; a mesh address is never on a wire.
        let pods = (from[0] == 10 || to[0] == 10) && from[..2] != to[..2];
        if (pods || from[0] >= 240 || to[0] >= 240) && self.clear.len() < 10 {
            self.clear.push(format!("{} > {}", packet.source, packet.destination));
        }
    }
}

fn build() -> Result<Lab> {
    let clusters = [("us-east", 1, 2), ("eu-west", 2, 3), ("ap-south", 3, 1)];
    let clusters = clusters.map(|(name, id, nodes)| ClusterPlan::new(name, id, nodes)).into();
    let mut lab = Lab::build(LabPlan { clusters })?;
    nats()?;
    lab.start_product(Store::Embedded)?;
    for cluster in &mut lab.clusters {
        let mut config = cluster.config();
        if cluster.plan.name == "eu-west" {
            let nodes = format!("nodeCIDRs: [\"{}\"]", cluster.plan.region);
            ensure!(config.contains(&nodes), "{config}");
            let wide = format!("nodeCIDRs: [\"{}\", \"203.0.113.0/24\"]", cluster.plan.region);
            config = config.replace(&nodes, &wide);
        }
        cluster.write_config(&format!("{config}path: gateways\n"))?;
        cluster.api_server().kill()?;
        cluster.start_api_server()?;
    }
    let place = &lab.cluster("eu-west").node("node-1").place;
    let mut manifest = place.read(NODES)?;
    for (name, endpoint) in GATEWAYS {
        manifest = annotated(&manifest, name, endpoint)?;
    }
    place.write(NODES, &manifest)?;
    // us-east and ap-south are nothing to each other.
    for (one, other) in [("us-east", "eu-west"), ("ap-south", "eu-west")] {
        for (from, to) in [(one, other), (other, one)] {
            let bundle = format!("/etc/hawser/bundles/{from}.yaml");
            let (from, to) = (lab.cluster(from), lab.cluster(to));
            // `hawser status` answers while the API server is away.
            wait::until("both API servers answer again", PATIENCE, || {
                from.carry_bundle(to)?;
                to.hawser_ok(&["connect", &bundle])
            })?;
        }
    }
    Ok(lab)
}

/// `kubectl annotate node ...`
fn annotated(manifest: &str, node: &str, endpoint: &str) -> Result<String> {
    let (before, item) =
        manifest.split_once(&format!("kubernetes.io/hostname: {node}\n")).context("the node")?;
    let at = before.rfind("annotations:\n").context("its annotations")? + "annotations:\n".len();
    let gateway =
        format!("      hawser.io/gateway: \"true\"\n      hawser.io/public-endpoint: \"{endpoint}\"\n");
    Ok(format!("{}{gateway}{}kubernetes.io/hostname: {node}\n{item}", &before[..at], &before[at..]))
}

/// By the other cluster's node: by which gateway this one's packets go there.
fn ways(node: &Node, to: &str) -> Result<BTreeMap<String, String>> {
    let status = node.status()?;
    let mut ways = BTreeMap::new();
    for tunnel in status.tunnels.iter().filter(|tunnel| tunnel.cluster == to) {
        ensure!(tunnel.health == "up", "{}: {to}/{} is {}", node.name(), tunnel.node, tunnel.health);
        let proves = if tunnel.via.is_empty() { "node" } else { "cluster" };
        ensure!(tunnel.proves == proves, "{}: {to}/{} proves {:?}", node.name(), tunnel.node, tunnel.proves);
        ways.insert(tunnel.node.clone(), tunnel.via.clone());
    }
    Ok(ways)
}

/// Where the nodes of us-east meet the one behind eu-west's gateways; an error unless both ends say so.
fn pairs(lab: &Lab) -> Result<Met> {
    let mut met = Met::new();
    let back = ways(lab.cluster("eu-west").node(BEHIND.0), "us-east")?;
    for us in ["node-1", "node-2"] {
        let ways = ways(lab.cluster("us-east").node(us), "eu-west")?;
        ensure!(ways.len() == 3, "{us} knows {ways:?}");
        let (there, back) = (&ways[BEHIND.0], back.get(us));
        ensure!(!there.is_empty() && Some(there) == back, "{us} goes via {there:?}, and back via {back:?}");
        met.insert(us.to_owned(), there.clone());
    }
    Ok(met)
}

/// A new connection every 50 ms and one that is kept, from each of us-east's nodes to the one behind, and new ones back.
fn flows(lab: &Lab) -> Result<BTreeMap<String, [Running; 3]>> {
    let b = lab.cluster("eu-west").pod(BEHIND.1);
    let mut flows = BTreeMap::new();
    for (us, a) in [("node-1", "cart-0"), ("node-2", "cart-1")] {
        let a = lab.cluster("us-east").pod(a);
        let to = |address: Ipv4Addr| {
            let often = Request::to(&format!("{address}:{POD_PORT}")).marker(MARKER);
            often.every(Duration::from_millis(50)).timeout(Duration::from_secs(2))
        };
        let kept = to(b.plan.address).keep_alive().timeout(Duration::from_secs(30));
        let all = [
            client::start(&a.place, &to(b.plan.address))?,
            client::start(&b.place, &to(a.plan.address))?,
            client::start(&a.place, &kept)?,
        ];
        flows.insert(us.to_owned(), all);
    }
    Ok(flows)
}

fn download(lab: &Lab, (from, pod): (&str, &str), to: (&str, &str)) -> Result<()> {
    let url = format!("http://{}:{POD_PORT}/bytes/{BYTES}", lab.cluster(from).pod(pod).plan.address);
    let mut curl = lab.cluster(to.0).pod(to.1).place.command("curl");
    let answer =
        curl.args(["--silent", "--show-error", "--max-time", "60", &url]).output().context("curl")?;
    ensure!(answer.status.success(), "curl: {}", String::from_utf8_lossy(&answer.stderr));
    ensure!(answer.stdout == pattern(BYTES), "what arrived is not what was sent");
    Ok(())
}

/// What a gateway's engine joins is cut again, and arrives as it was sent.
fn downloads(lab: &Lab, met: &Met) -> Result<()> {
    let (us, eu) = (("us-east", "cart-1"), ("eu-west", BEHIND.1));
    download(lab, us, eu)?;
    download(lab, eu, us)?;
    for gateway in met.values().filter_map(|via| via.strip_prefix("eu-west/")) {
        let carried = lab.cluster("eu-west").node(gateway).status()?.count("tunnel-in-carried");
        ensure!(carried > 0, "{gateway} carried nothing");
    }
    let table = lab.cluster("us-east").node("node-1").status_table()?;
    let row = table.lines().find(|row| row.starts_with("eu-west/node-3 ")).context("its row")?;
    ensure!(row.contains(&format!("  {}  cluster  up ", met["node-1"])), "{table}");
    Ok(())
}

/// Both pairs, as us-east has it.
fn at_the_other(lab: &Lab, gateway: &str) -> Result<()> {
    for us in ["node-1", "node-2"] {
        let status = lab.cluster("us-east").node(us).status()?;
        let tunnel = status.tunnels.iter().find(|t| t.cluster == "eu-west" && t.node == BEHIND.0);
        let tunnel = tunnel.context("its tunnel")?;
        ensure!(tunnel.health == "up" && tunnel.via == gateway, "{us}: {tunnel:?}");
    }
    Ok(())
}

/// The gateway of the first pair loses its network; nothing is in clear, before and after. Gives the one that is left.
fn a_gateway_dies(lab: &mut Lab, met: &Met) -> Result<&'static str> {
    let (port, left) =
        if met["node-1"] == "eu-west/node-1" { ("c2n11", "node-2") } else { ("c2n12", "node-1") };
    let other = format!("eu-west/{left}");
    let ports = ["c1n11", "c1n12", "c2n11", "c2n12", "c2n13"].map(str::to_owned);
    let wires = Sniffer::start(None, &ports, Wires::default())?;
    let flows = flows(lab)?;
    std::thread::sleep(Duration::from_secs(1));
    run(Command::new("ip").args(["link", "set", port, "nomaster"]))?;
    lab.wait("the dead gateway's pairs meet at the other one", PATIENCE, |lab| at_the_other(lab, &other))?;
    std::thread::sleep(Duration::from_secs(1));
    for (pair, flows) in flows {
        let [there, back, kept] = flows.map(Running::stop);
        let (there, back, kept) = (there?, back?, kept?);
        if met[&pair] == other {
            [&there, &back, &kept].into_iter().try_for_each(|report| {
                report.all_ok().with_context(|| format!("{pair:?}, whose gateway is well"))
            })?;
        }
        for report in [&there, &back] {
            let last = report.records.last().context("a request")?;
            ensure!(last.error.is_none(), "{pair:?} does not answer again: {last:?}");
        }
        let (failed, all) = (there.failed, there.total());
        println!("{pair:?}: {failed} of {all} new connections failed, kept {}/{}", kept.ok, kept.total());
    }
    let seen = wires.stop()?;
    ensure!(seen.clear.is_empty() && seen.marked == 0, "in clear: {:?}, {} marked", seen.clear, seen.marked);
    ensure!(seen.wireguard > 100, "{} WireGuard messages were seen", seen.wireguard);
    let log = lab.cluster("eu-west").pod(BEHIND.1).server_log()?;
    ensure!(log.contains(MARKER), "the marker never arrived, so its absence proves nothing");
    Ok(left)
}

/// The owner of us-east/node-1 gives a gateway what is for, and from, whom it does not carry for.
fn nothing_forged_is_carried(lab: &Lab, carrier: &str) -> Result<()> {
    let liar = lab.cluster("us-east").node("node-1");
    let pod = |cluster: &str, pod: &str| lab.cluster(cluster).pod(pod).plan.address;
    let (own, ap) = (pod("us-east", "client"), pod("ap-south", "cart-0"));
    let (eu, neighbour) = (pod("eu-west", BEHIND.1), pod("us-east", "cart-1"));
    let on_gateway = pod("eu-west", if carrier == "node-1" { "cart-0" } else { "cart-1" });
    let underlay = Ipv4Addr::new(172, 16, 2, 13);
    // What the liar's own side would not send there goes to the gateway.
    let status = liar.status()?;
    let gateway = status.tunnels.iter().find(|t| t.cluster == "eu-west" && t.node == carrier);
    let key = &gateway.context("a tunnel to the gateway")?.public_key;
    let owned = run(liar.place.command("wg").args(["show", "hawser0", "allowed-ips"]))?;
    let owned = owned.lines().find_map(|line| line.strip_prefix(key.as_str())).context("the gateway")?;
    let more = format!("{},{ap}/32,{eu}/32,{underlay}/32", owned.trim().replace(' ', ","));
    run(liar.place.command("wg").args(["set", "hawser0", "peer", key, "allowed-ips", &more]))?;

    let to = |source, destination| Forged {
        destination_mac: [0; 6],
        source,
        destination,
        source_port: 40_404,
        port: POD_PORT,
        transport: Transport::Tcp,
        payload: MARKER.as_bytes().to_vec(),
    };
    // For another cluster; in the name of another cluster, of another node, of the gateway's own; for the underlay.
    let lies = [to(own, ap), to(ap, eu), to(neighbour, eu), to(on_gateway, eu), to(own, underlay)];
    let victims = [("ap-south", "cart-0"), ("eu-west", BEHIND.1)];
    let watch = |(cluster, pod)| {
        Sniffer::start(Some(&lab.cluster(cluster).pod(pod).place), &["eth0".into()], Vec::new())
    };
    let pods = victims.map(watch);
    let gateway = lab.cluster("eu-west").node(carrier);
    let drops = || -> Result<u64> { Ok(gateway.status()?.drops().map(|reason| reason.packets).sum()) };
    let before = drops()?;
    for _ in 0..5 {
        forge::send_into(&liar.place, "hawser0", &lies)?;
    }
    wait::until("every lie is dropped at the gateway", PATIENCE, || {
        let grown = drops()? - before;
        ensure!(grown >= 5 * lies.len() as u64, "{grown} of {}", 5 * lies.len());
        Ok(())
    })?;
    for pod in pods {
        let frames: Vec<Vec<u8>> = pod?.stop()?;
        let forged = frames.iter().filter_map(|frame| match parse(frame) {
            Carried::Ipv4(packet) => packet.tcp().map(|tcp| tcp.source),
            _ => None,
        });
        ensure!(forged.filter(|port| *port == 40_404).count() == 0, "a forged packet arrived");
    }
    Ok(())
}

#[test]
fn clusters_behind_nats_meet_at_gateways_a_dead_gateways_pairs_move_alone_and_nothing_forged_is_carried() {
    scenario::run_with_product(|| {
        let mut lab = build()?;
        let met = lab.wait("every pair meets at a gateway", PATIENCE, pairs)?;
        lab.wait("ap-south meets eu-west", PATIENCE, |lab| {
            let ways = ways(lab.cluster("ap-south").node("node-1"), "eu-west")?;
            ensure!(ways.values().filter(|via| !via.is_empty()).count() == 1, "{ways:?}");
            Ok(())
        })?;
        downloads(&lab, &met)?;
        let left = a_gateway_dies(&mut lab, &met)?;
        nothing_forged_is_carried(&lab, left)
    });
}
