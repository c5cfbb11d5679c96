//! The lab's network is as hostile as it says, shown without the product.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::place::Place;
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{self, Request};
use hawser_e2e::process::{Process, run};
use hawser_e2e::{binaries, scenario};

/// An ordinary web server on a node's own network.
fn serve_on_node(lab: &Lab, place: &Place) -> Result<Process> {
    let mut command = place.command(binaries::find("hawser-lab")?);
    command.args([
        "pod-server",
        "--cluster",
        "underlay",
        "--node",
        "host",
        "--pod",
        "host",
        "--port",
        "8000",
    ]);
    Process::start("underlay-server", command, &lab.inside.dir)
}

#[test]
fn a_pod_reaches_its_own_cluster_and_no_remote_pod() {
    scenario::run(|| {
        let lab = Lab::build(LabPlan::standard())?;
        let client = lab.cluster("us-east").pod("client");
        for cluster in &lab.clusters {
            for (node, pod) in cluster.plan.pods().filter(|(_, pod)| pod.serves) {
                let target = format!("{}:{POD_PORT}", pod.address);
                let request = Request::to(&target).requests(2).timeout(Duration::from_secs(1));
                let report = client.ask(&request)?;
                let own = cluster.plan.name == "us-east";
                let who = format!("{}/{}/{}", cluster.plan.name, node.name, pod.name);
                ensure!(own == (report.ok == 2), "{who}: {} of 2 requests answered", report.ok);
                if own {
                    let seen = report.seen_as.keys().collect::<Vec<_>>();
                    ensure!(
                        seen == ["10.1.1.20"],
                        "{who} saw {seen:?}: within a cluster nothing is masqueraded"
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn what_leaves_the_cluster_is_masqueraded() {
    scenario::run(|| {
        let lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let remote = lab.cluster("eu-west").node("node-1");
        let _server = serve_on_node(&lab, &remote.place)?;
        let target = format!("{}:8000", remote.plan.address);
        let request = Request::to(&target).requests(1);
        let client = &lab.cluster("us-east").pod("client").place;
        let report = hawser_e2e::wait::until("a remote node answers a pod", Duration::from_secs(5), || {
            let report = client::run(client, &request)?;
            report.all_ok().map(|()| report)
        })?;
        let seen = report.seen_as.keys().collect::<Vec<_>>();
        ensure!(seen == ["172.16.1.11"], "the pod was seen as {seen:?}, and should be seen as its node");
        Ok(())
    });
}

#[test]
fn a_region_that_is_cut_off_reaches_itself_and_nobody_else() {
    scenario::run(|| {
        let lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 2))?;
        let eu = lab.cluster("eu-west");
        let (here, beside) = (&eu.node("node-1").place, eu.node("node-2").plan.address);
        let there = lab.cluster("us-east").node("node-1").plan.address;
        let reaches = |address: std::net::Ipv4Addr| {
            run(here.command("ping").args(["-c", "1", "-W", "1", &address.to_string()])).is_ok()
        };
        ensure!(reaches(beside) && reaches(there), "nobody is cut off yet");
        lab.cut("eu-west")?;
        ensure!(reaches(beside), "a node does not reach its neighbour");
        ensure!(!reaches(there), "a node reaches another region");
        lab.heal("eu-west")?;
        ensure!(reaches(there), "healed");
        Ok(())
    });
}

#[test]
fn nodes_drop_what_a_careful_admin_drops() {
    scenario::run(|| {
        let lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let node = &lab.cluster("us-east").node("node-1").place;
        let rules = run(node.command("iptables").args(["-w", "-S", "FORWARD"]))?;
        for rule in ["-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate INVALID -j DROP"] {
            ensure!(rules.contains(rule), "{rule} is missing in\n{rules}");
        }
        let nat = run(node.command("iptables").args(["-w", "-t", "nat", "-S", "POSTROUTING"]))?;
        ensure!(nat.contains("-s 10.1.0.0/16 ! -d 10.1.0.0/16 -j MASQUERADE"), "{nat}");
        let filter = run(node.command("sysctl").args(["-n", "net.ipv4.conf.all.rp_filter"]))?;
        ensure!(filter.trim() == "1", "rp_filter is {filter}");
        let route = run(node.command("ip").args(["route", "get", "10.2.1.10"]))?;
        ensure!(route.contains("via 172.16.1.1 dev eth0"), "a remote pod is nowhere but outside: {route}");
        let router = run(Command::new("ip").args(["route", "show", "table", "main"]))?;
        ensure!(!router.contains("10."), "the router knows pods:\n{router}");
        Ok(())
    });
}

#[test]
fn a_node_sees_its_own_directories_cgroups_and_bpffs_only() {
    scenario::run(|| {
        let lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let (here, there) = (lab.cluster("us-east").node("node-1"), lab.cluster("eu-west").node("node-1"));
        here.place.write("/etc/hawser/secret", "of us-east")?;
        ensure!(there.place.read("/etc/hawser/secret").is_err(), "eu-west reads files of us-east");
        run(here.place.command("mkdir").arg("/sys/fs/bpf/mine"))?;
        ensure!(run(there.place.command("ls").arg("/sys/fs/bpf/mine")).is_err(), "bpffs is shared");
        let children =
            run(here.place.command("find").args(["/sys/fs/cgroup", "-mindepth", "1", "-type", "d"]))?;
        let mut children: Vec<&str> = children.lines().collect();
        children.sort_unstable();
        let below = "/sys/fs/cgroup/kubepods";
        let pods = [format!("{below}/cart-0"), format!("{below}/client")];
        ensure!(children == [below, &pods[0], &pods[1], "/sys/fs/cgroup/system"], "{children:?}");
        let own = run(here.place.command("cat").arg("/proc/self/cgroup"))?;
        ensure!(own.lines().any(|line| line == "0::/system"), "{own}");
        let name = run(there.place.command("uname").arg("-n")).context("uname")?;
        ensure!(name.trim() == "node-1", "{name}");
        Ok(())
    });
}
