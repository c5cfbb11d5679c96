//! What kube-proxy would have in the kernel for the same services, in both of its modes, chain by chain.
//!
//! The service that is asked is in the middle of the list of others: kube-proxy writes them in no order.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::Range;

use super::{FRONT, PORT, SERVER_PORT, other};
use crate::bench::objects::{ENDPOINTS, cluster_ip};

const MASQUERADE: &str = "0x4000";
/// Of everything that nobody asks.
const OTHERS: &str = "OTHERS";

/// Hooks and the service that is asked, with its one endpoint.
pub(super) fn iptables(pods: &str, pod: Ipv4Addr) -> String {
    let mut out = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n",
    );
    let _ = write!(
        out,
        "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n"
    );
    let front = Service { name: "bench/front:http".into(), chain: "FRONT".into(), ip: FRONT, pods };
    front.chains(&mut out, &[(pod, SERVER_PORT)]);
    let _ = writeln!(out, "-A {}", front.portal());
    out.push_str("COMMIT\n");
    out
}

/// More services, after those that are there, and the one that is asked moved into the middle. Nobody asks the others, so that
/// they share one chain: what a connection pays for is the list, and the kernel checks every chain that there is for every
/// one that is added, so that 150,000 of them would take hours.
pub(super) fn iptables_more(pods: &str, others: Range<u32>) -> String {
    let mut out = String::from("*nat\n");
    let front = Service { name: "bench/front:http".into(), chain: "FRONT".into(), ip: FRONT, pods };
    if others.start == 0 {
        let endpoints: Vec<_> = (0..ENDPOINTS).map(|pod| (other(1, pod).ip, other(1, pod).port)).collect();
        Service { name: "team-0/service:http".into(), chain: OTHERS.into(), ip: cluster_ip(0), pods }
            .chains(&mut out, &endpoints);
    }
    let all = others.end;
    for n in others {
        let name = format!("team-{}/service-{n}:http", n % 20);
        let service = Service { name, chain: OTHERS.into(), ip: cluster_ip(n), pods };
        let _ = writeln!(out, "-A {}", service.portal());
    }
    let portal = front.portal();
    let rule = portal.strip_prefix("KUBE-SERVICES ").unwrap_or(&portal);
    let _ = writeln!(out, "-D {portal}\n-I KUBE-SERVICES {} {rule}\nCOMMIT", all / 2 + 1);
    out
}

struct Service<'a> {
    name: String,
    chain: String,
    ip: Ipv4Addr,
    pods: &'a str,
}

impl Service<'_> {
    fn comment(&self, more: &str) -> String {
        format!("-m comment --comment \"{}{more}\"", self.name)
    }

    /// The rule in the list that every new connection walks.
    fn portal(&self) -> String {
        format!(
            "KUBE-SERVICES -d {}/32 -p tcp {} -m tcp --dport {PORT} -j KUBE-SVC-{}",
            self.ip,
            self.comment(" cluster IP"),
            self.chain
        )
    }

    fn chains(&self, out: &mut String, endpoints: &[(Ipv4Addr, u16)]) {
        let Self { chain, ip, pods, .. } = self;
        let _ = writeln!(out, ":KUBE-SVC-{chain} - [0:0]");
        for at in 0..endpoints.len() {
            let _ = writeln!(out, ":KUBE-SEP-{chain}{at} - [0:0]");
        }
        let to = self.comment(" cluster IP");
        let _ = writeln!(
            out,
            "-A KUBE-SVC-{chain} ! -s {pods} -d {ip}/32 -p tcp {to} -m tcp --dport {PORT} -j KUBE-MARK-MASQ"
        );
        for (at, (pod, port)) in endpoints.iter().enumerate() {
            let comment = self.comment(&format!(" -> {pod}:{port}"));
            let chance = match endpoints.len() - at {
                1 => String::new(),
                left => format!(" -m statistic --mode random --probability {:.11}", 1.0 / left as f64),
            };
            let plain = self.comment("");
            let _ = write!(
                out,
                "-A KUBE-SVC-{chain} {comment}{chance} -j KUBE-SEP-{chain}{at}\n\
                 -A KUBE-SEP-{chain}{at} -s {pod}/32 {plain} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{chain}{at} -p tcp {plain} -m tcp -j DNAT --to-destination {pod}:{port}\n"
            );
        }
    }
}

/// The table, its hooks and maps, and the service that is asked (KEP-3866).
pub(super) fn nftables(pods: &str, pod: Ipv4Addr) -> String {
    format!(
        "table ip kube-proxy {{\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         set cluster-ips {{ type ipv4_addr; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark or {MASQUERADE}; }}\n\
         chain masquerading {{ meta mark and {MASQUERADE} == 0 return; meta mark set meta mark xor {MASQUERADE}; masquerade fully-random; }}\n\
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
         chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n\
         chain endpoint-others {{ drop; }}\n\
         chain endpoint-front {{ ip saddr {pod} jump mark-for-masquerade; meta l4proto tcp dnat to {pod}:{SERVER_PORT}; }}\n\
         chain service-front {{\n\
         ip daddr {FRONT} tcp dport {PORT} ip saddr != {pods} jump mark-for-masquerade\n\
         numgen random mod 1 vmap {{ 0 : goto endpoint-front }}\n\
         }}\n}}\n\
         add element ip kube-proxy service-ips {{ {FRONT} . tcp . {PORT} : goto service-front }}\n\
         add element ip kube-proxy cluster-ips {{ {FRONT} }}\n"
    )
}

/// More services. Nobody asks them, so that all their endpoints share one chain: the kernel checks every chain that there
/// is for every one that is added, and 120,000 of them would take minutes.
pub(super) fn nftables_more(pods: &str, others: Range<u32>) -> String {
    let mut out = String::from("table ip kube-proxy {\n");
    for n in others.clone() {
        let ip = cluster_ip(n);
        let targets: Vec<_> = (0..ENDPOINTS).map(|at| format!("{at} : goto endpoint-others")).collect();
        let _ = write!(
            out,
            "chain service-{n}-team-{}/service-{n}/tcp/http {{\n\
             ip daddr {ip} tcp dport {PORT} ip saddr != {pods} jump mark-for-masquerade\n\
             numgen random mod {ENDPOINTS} vmap {{ {} }}\n}}\n",
            n % 20,
            targets.join(", ")
        );
    }
    out.push_str("}\n");
    let verdicts = others.clone().map(|n| {
        format!("{} . tcp . {PORT} : goto service-{n}-team-{}/service-{n}/tcp/http", cluster_ip(n), n % 20)
    });
    let _ = writeln!(
        out,
        "add element ip kube-proxy service-ips {{ {} }}",
        verdicts.collect::<Vec<_>>().join(",\n")
    );
    let addresses: Vec<_> = others.map(|n| cluster_ip(n).to_string()).collect();
    let _ = writeln!(out, "add element ip kube-proxy cluster-ips {{ {} }}", addresses.join(", "));
    out
}
