//! kube-proxy has rules for the very ClusterIP, in either of its modes: whoever asks it is served by Hawser's choice all the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Node};
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request, run as ask};
use hawser_e2e::process::{run, run_with_input};
use hawser_e2e::scenario;

/// What kube-proxy takes for the local endpoint. Nobody is there: whoever is sent there by these rules fails.
const STALE: &str = "10.1.1.250:8080";

/// The chains of its iptables mode, for one service.
fn iptables(ip: &str) -> String {
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-CART - [0:0]\n:KUBE-SEP-CART - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         -I PREROUTING -j KUBE-SERVICES\n-I OUTPUT -j KUBE-SERVICES\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-CART\n\
         -A KUBE-SVC-CART ! -s 10.1.0.0/16 -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
         -A KUBE-SVC-CART -j KUBE-SEP-CART\n\
         -A KUBE-SEP-CART -p tcp -m tcp -j DNAT --to-destination {STALE}\nCOMMIT\n"
    )
}

/// The table of its nftables mode (KEP-3866), with a check that rejects what comes for a ClusterIP and was not translated.
fn nftables(ip: &str) -> String {
    format!(
        "table ip kube-proxy {{\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         set cluster-ips {{ type ipv4_addr; elements = {{ {ip} }}; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump cluster-ips-check; }}\n\
         chain service-cart {{\n\
         ip daddr {ip} tcp dport 80 ip saddr != 10.1.0.0/16 jump mark-for-masquerade\n\
         meta l4proto tcp dnat to {STALE}\n}}\n}}\n\
         add element ip kube-proxy service-ips {{ {ip} . tcp . 80 : goto service-cart }}\n"
    )
}

/// From a pod and from the node itself.
fn both_ask(lab: &Lab, node: &Node) -> Result<[Report; 2]> {
    let us = lab.cluster("us-east");
    let request =
        Request::to(&us.service_address()).requests(60).concurrency(4).timeout(Duration::from_secs(1));
    Ok([us.pod("client").ask(&request)?, ask(&node.place, &request)?])
}

#[test]
fn beside_kube_proxy_in_iptables_and_in_nftables_mode_a_global_service_is_served_by_all_clusters() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let us = lab.cluster("us-east");
        let (node, ip) = (us.node("node-1"), us.plan.service_ip().to_string());
        let check = |mode: &str| {
            for (report, who) in both_ask(&lab, node)?.iter().zip(["a pod", "the node"]) {
                report.all_ok().with_context(|| format!("{mode}, asked by {who}"))?;
                ensure!(report.by_cluster.len() == 2, "{mode}, asked by {who}: {}", report.shares());
            }
            Ok(())
        };
        run_with_input(node.place.command("iptables-restore").args(["-w", "--noflush"]), &iptables(&ip))?;
        check("iptables")?;
        // Without Hawser's choice, it is these rules that count: they are in force.
        let listed = run(node.place.command("iptables").args(["-w", "-t", "nat", "-vnL", "KUBE-SERVICES"]))?;
        ensure!(listed.contains("KUBE-SVC-CART"), "{listed}");
        run(node.place.command("iptables").args([
            "-w",
            "-t",
            "nat",
            "-D",
            "PREROUTING",
            "-j",
            "KUBE-SERVICES",
        ]))?;
        run(node.place.command("iptables").args(["-w", "-t", "nat", "-D", "OUTPUT", "-j", "KUBE-SERVICES"]))?;
        run_with_input(node.place.command("nft").args(["-f", "-"]), &nftables(&ip))?;
        check("nftables")
    });
}
