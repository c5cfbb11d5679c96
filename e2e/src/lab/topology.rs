//! The network of the lab: a router, regions, and nodes as hostile to us as real ones.
//!
//! The runner's own network namespace is the router. Each region is a bridge in it; nodes hang on the bridge, pods on
//! their node by a veth with a host route and proxy ARP, as Calico does it. Nothing here knows Hawser.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::place::Place;
use crate::plan::{ClusterPlan, NodePlan, PodPlan};
use crate::process::run_with_input;

/// Calico's constant for the node's end of every pod's veth.
const POD_GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const POD_GATEWAY: &str = "169.254.1.1";

/// Runs `ip -batch` in a place, or in the router.
fn ip(place: Option<&Place>, batch: &str) -> Result<()> {
    let mut command = place.map_or_else(|| Command::new("ip"), |place| place.command("ip"));
    run_with_input(command.args(["-batch", "-"]), batch).map(drop)
}

fn sysctl(place: Option<&Place>, settings: &[(&str, &str)]) -> Result<()> {
    let write = || {
        for (key, value) in settings {
            fs::write(format!("/proc/sys/net/{key}"), value)
                .with_context(|| format!("sysctl {key}={value}"))?;
        }
        Ok(())
    };
    match place {
        Some(place) => place.in_network(write),
        None => write(),
    }
}

/// The router knows the regions and nothing else: no pod CIDR, no filter.
pub(crate) fn build_router(clusters: &[ClusterPlan]) -> Result<()> {
    sysctl(
        None,
        &[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv4/icmp_ratelimit", "0")],
    )?;
    let mut batch = String::from("link set lo up\n");
    for cluster in clusters {
        let bridge = cluster.bridge();
        writeln!(batch, "link add {bridge} type bridge stp_state 0 mcast_snooping 0")?;
        writeln!(batch, "addr add {}/{} dev {bridge}", cluster.gateway(), cluster.region.prefix_len())?;
        writeln!(batch, "link set {bridge} up")?;
    }
    ip(None, &batch).context("building the router")
}

/// Plugs a machine into its region.
fn plug(place: &Place, cluster: &ClusterPlan, port: &str, address: std::net::Ipv4Addr) -> Result<()> {
    ip(
        None,
        &format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master {} up\n",
            place.pid(),
            cluster.bridge()
        ),
    )
    .with_context(|| format!("plugging in {}", place.name()))?;
    ip(
        Some(place),
        &format!(
            "link set lo up\nlink set eth0 up\naddr add {address}/{} dev eth0\nroute add default via {}\n",
            cluster.region.prefix_len(),
            cluster.gateway()
        ),
    )
    .with_context(|| format!("the address of {}", place.name()))
}

/// A host in the region of `cluster` that belongs to nobody.
pub(crate) fn build_stranger(place: &Place, cluster: &ClusterPlan) -> Result<()> {
    plug(place, cluster, &format!("x{}", cluster.id), cluster.stranger())
}

pub(crate) fn build_node(place: &Place, cluster: &ClusterPlan, node: &NodePlan) -> Result<()> {
    sysctl(
        Some(place),
        &[
            ("ipv4/ip_forward", "1"),
            // Strict reverse path filtering, also for every device that comes later.
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
        ],
    )?;
    let number = node.address.octets()[3];
    plug(place, cluster, &format!("c{}n{number}", cluster.id), node.address)?;
    let mut routes = String::new();
    for other in cluster.nodes.iter().filter(|other| other.name != node.name) {
        writeln!(routes, "route add {} via {} dev eth0", other.pod_cidr, other.address)?;
    }
    ip(Some(place), &routes).context("routes to the other nodes' pods")?;
    run_with_input(place.command("iptables-restore").arg("-w"), &rules(cluster))
        .with_context(|| format!("netfilter rules of {}", place.name()))?;
    Ok(())
}

/// What kube-proxy and a masquerading CNI do to traffic that is not the cluster's own.
fn rules(cluster: &ClusterPlan) -> String {
    let pods = cluster.pods;
    format!(
        "*filter\n\
         :FORWARD DROP [0:0]\n\
         -A FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -s {pods} -d {pods} -j ACCEPT\n\
         -A FORWARD -i cali+ -s {pods} -o eth0 -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE\n\
         COMMIT\n"
    )
}

/// A pod: /32, a link-local gateway that its node answers ARP for, and a host route to it.
pub(crate) fn build_pod(node: &Place, place: &Place, pod: &PodPlan) -> Result<()> {
    let host = pod.host_interface();
    ip(
        Some(node),
        &format!(
            "link add {host} address {POD_GATEWAY_MAC} type veth peer name eth0 netns {}\n\
             link set {host} up\n\
             route add {}/32 dev {host} scope link\n",
            place.pid(),
            pod.address
        ),
    )
    .with_context(|| format!("the host's side of {}", place.name()))?;
    let proxy = [
        (format!("ipv4/conf/{host}/proxy_arp"), "1"),
        // A proxied answer is otherwise delayed by up to 0.8 s.
        (format!("ipv4/neigh/{host}/proxy_delay"), "0"),
    ];
    sysctl(Some(node), &proxy.each_ref().map(|(key, value)| (key.as_str(), *value)))?;
    ip(
        Some(place),
        &format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {}/32 dev eth0\n\
             route add {POD_GATEWAY} dev eth0 scope link\n\
             route add default via {POD_GATEWAY} dev eth0\n",
            pod.address
        ),
    )
    .with_context(|| format!("the pod's side of {}", place.name()))
}

/// Cuts a region off: the router drops everything that comes from it or goes there, and not what its bridge carries from one of its
/// nodes to another, which passes here as well where bridges call iptables.
pub(crate) fn cut(cluster: &ClusterPlan) -> Result<()> {
    filter("-I", cluster)
}

pub(crate) fn heal(cluster: &ClusterPlan) -> Result<()> {
    filter("-D", cluster)
}

fn filter(verb: &str, cluster: &ClusterPlan) -> Result<()> {
    let bridge = cluster.bridge();
    let rules = format!(
        "*filter\n{verb} FORWARD -i {bridge} ! -o {bridge} -j DROP\n{verb} FORWARD -o {bridge} ! -i {bridge} -j DROP\nCOMMIT\n"
    );
    run_with_input(Command::new("iptables-restore").args(["-w", "--noflush"]), &rules)
        .map(drop)
        .with_context(|| format!("cutting or healing {} at the router", cluster.name))
}
