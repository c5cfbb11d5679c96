//! Bad input is refused before anything is changed, in a sentence that names both sides and the fix.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::plan::LabPlan;
use hawser_e2e::process::{output, run, said};
use hawser_e2e::{binaries, scenario, wait};

const CONFIG: &str = "/etc/hawser/cluster.yaml";

fn two() -> LabPlan {
    LabPlan::regions(&["us-east", "eu-west"], 1)
}

/// Refused: a non-zero exit, all of `words`, and what to do about it.
fn refused(case: &str, output: &Output, words: &[&str]) -> Result<()> {
    let text = said(output);
    ensure!(!output.status.success(), "{case}: accepted: {text}");
    ensure!(output.status.code().is_some(), "{case}: died: {}", output.status);
    ensure!(!text.contains("panicked"), "{case}: panicked: {text}");
    for word in words.iter().chain(&["fix:"]) {
        ensure!(text.contains(word), "{case}: {word:?} is not in: {text}");
    }
    Ok(())
}

fn api_server(lab: &Lab, cluster: &str) -> Result<Output> {
    let node = &lab.cluster(cluster).nodes[0];
    // A server that is not refused would run forever.
    let mut command = node.place.command("timeout");
    command.arg("5").arg(binaries::find("clustermesh-apiserver")?).args(["--config", CONFIG]);
    output(&mut command)
}

fn agent(lab: &Lab, cluster: &str, before: &[&str]) -> Result<Output> {
    let node = &lab.cluster(cluster).nodes[0];
    // An agent that is not refused would run forever.
    let mut command = node.place.command("timeout");
    command.arg("5").args(before).arg(binaries::find("hawser-node-agent")?);
    output(command.args(["--config", "/etc/hawser/agent.yaml"]))
}

#[test]
fn a_bad_configuration_is_refused_before_anything_is_made() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        lab.cluster_mut("us-east").prepare()?;
        let us = lab.cluster("us-east");
        let good = us.config();
        let cases: &[(&str, &str, &str, &[&str])] = &[
            ("an id out of range", "  id: 1\n", "  id: 256\n", &["256", "255"]),
            ("id zero", "  id: 1\n", "  id: 0\n", &["cluster.id", "255"]),
            ("a name that is none", "name: us-east", "name: US_East", &["US_East"]),
            ("an unknown key", "store: ", "stroe: ", &["stroe", CONFIG]),
            ("pods among the nodes", "10.1.0.0/16", "172.16.0.0/16", &["172.16.0.0/16", "172.16.1.0/24"]),
            ("an unknown store", "embedded:", "redis:", &["redis:", "etcd://"]),
            ("an address that is none", "0.0.0.0:2379", "everywhere", &["everywhere", "listen"]),
            ("the CA of another cluster", "name: us-east", "name: eu-west", &["us-east", "eu-west"]),
        ];
        for (case, from, to, words) in cases {
            us.write_config(&good.replace(from, to))?;
            let output = api_server(&lab, "us-east")?;
            refused(case, &output, words)?;
            ensure!(output.status.code() == Some(64), "{case}: {}", output.status);
            ensure!(!us.nodes[0].place.path("/var/lib/hawser/store").exists(), "{case}: a store was made");
        }
        Ok(())
    });
}

#[test]
fn a_port_that_is_taken_is_named() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        let us = lab.cluster_mut("us-east");
        us.found()?;
        let other = us.config().replace("/var/lib/hawser/store", "/var/lib/hawser/other");
        us.write_config(&other)?;
        refused("a second API server", &api_server(&lab, "us-east")?, &["2379"])?;
        let other = lab.cluster("us-east").nodes[0].place.path("/var/lib/hawser/other");
        ensure!(!other.exists(), "the second API server made a store");
        Ok(())
    });
}

#[test]
fn an_agent_says_what_its_node_lacks() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        lab.start_product(Store::Embedded)?;
        lab.cluster_mut("us-east").node_mut("node-1").agent().terminate(Duration::from_secs(10))?;
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        refused("no root", &agent(&lab, "us-east", &nobody)?, &["root"])?;
        let no_cgroup2 = ["unshare", "-m", "sh", "-c", "umount /sys/fs/cgroup && exec \"$@\"", "sh"];
        refused("no cgroup2", &agent(&lab, "us-east", &no_cgroup2)?, &["cgroup2"])?;
        let no_bpffs = ["unshare", "-m", "sh", "-c", "umount /sys/fs/bpf && exec \"$@\"", "sh"];
        refused("no bpffs", &agent(&lab, "us-east", &no_bpffs)?, &["bpf"])?;
        Ok(())
    });
}

#[test]
fn a_node_joins_with_its_own_token_once_and_only_its_own_cluster() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        for name in ["us-east", "eu-west"] {
            lab.cluster_mut(name).found()?;
        }
        let us = lab.cluster("us-east");
        let place = &us.nodes[0].place;
        let join = |node: &str| {
            us.hawser_ok(&["ca", "token", "--node", node, "-o", "/etc/hawser/join.yaml"])?;
            place.read("/etc/hawser/join.yaml")
        };
        let other = join("node-9")?;
        place.write("/etc/hawser/agent.yaml", "node: node-1\n")?;
        refused("a token for another node", &agent(&lab, "us-east", &[])?, &["node-1", "node-9"])?;

        let own = join("node-1")?;
        let ca = |text: &str| Ok::<_, anyhow::Error>(text.split_once("\nca:").context("a CA")?.1.to_owned());
        let foreign = lab.cluster("eu-west").hawser_ok(&["ca", "token", "--node", "node-1"])?;
        place.write("/etc/hawser/join.yaml", &own.replace(&ca(&own)?, &ca(&foreign)?))?;
        refused("a wrong CA", &agent(&lab, "us-east", &[])?, &["us-east"])?;
        ensure!(other != own, "two tokens are the same");
        Ok(())
    });
}

/// Bundles that eu-west's place makes while it pretends to be something else.
fn foreign_bundle(lab: &mut Lab, config: &str, name: &str, id: &str, reader: &str) -> Result<String> {
    let eu = lab.cluster_mut("eu-west");
    run(eu.nodes[0].place.command("sh").args(["-c", "rm -rf /etc/hawser/* /var/lib/hawser/*"]))?;
    eu.write_config(config)?;
    eu.hawser_ok(&["ca", "init", "--cluster", name, "--id", id])?;
    run(eu.nodes[0].place.command("mkdir").args(["-p", "/etc/hawser/manifests"]))?;
    eu.start_api_server()?;
    eu.wait_for_api_server()?;
    eu.hawser_ok(&["ca", "bundle", "--for", reader, "-o", "/etc/hawser/bundle.yaml"])?;
    eu.api_server().kill()?;
    eu.nodes[0].place.read("/etc/hawser/bundle.yaml")
}

#[test]
fn a_bundle_that_does_not_fit_is_refused_and_admits_nobody() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        let us = lab.cluster_mut("us-east");
        us.found()?;
        let good = lab.cluster("eu-west").config();
        let mut make = |from: &str, to: &str, name: &str, id: &str, reader: &str| {
            foreign_bundle(&mut lab, &good.replace(from, to), name, id, reader)
        };
        let same_id = make("id: 2", "id: 1", "eu-west", "1", "us-east")?;
        let overlap = make("10.2.0.0/16", "10.1.128.0/17", "eu-west", "2", "us-east")?;
        let wide = make("store:", "mesh:\n  maxConnectedClusters: 511\nstore:", "eu-west", "2", "us-east")?;
        let for_others = make("", "", "eu-west", "2", "ap-south")?;
        let namesake = make("id: 2", "id: 3", "eu-west", "3", "us-east")?;
        let honest = make("", "", "eu-west", "2", "us-east")?;
        let tampered = honest.replace("10.2.0.0/16", "10.9.0.0/16");
        ensure!(tampered != honest, "the bundle names no pod CIDR: {honest}");
        let cases: &[(&str, &str, &[&str])] = &[
            ("a duplicate id", &same_id, &["eu-west", "us-east", "1"]),
            ("overlapping pod CIDRs", &overlap, &["10.1.0.0/16", "10.1.128.0/17"]),
            ("another mesh", &wide, &["511", "255"]),
            ("a bundle for another cluster", &for_others, &["ap-south", "us-east"]),
            ("a tampered bundle", &tampered, &["signature", "fingerprint"]),
            ("no bundle", "kind: Pod\n", &[]),
        ];
        let us = lab.cluster("us-east");
        for (case, bundle, words) in cases {
            us.nodes[0].place.write("/etc/hawser/bundle.yaml", bundle)?;
            refused(case, &us.hawser(&["connect", "/etc/hawser/bundle.yaml"])?, words)?;
            let status = us.hawser_ok(&["status", "-o", "json"])?;
            ensure!(!status.contains("eu-west"), "{case}: somebody was admitted: {status}");
        }
        us.nodes[0].place.write("/etc/hawser/bundle.yaml", &honest)?;
        us.hawser_ok(&["connect", "/etc/hawser/bundle.yaml"])?;
        us.nodes[0].place.write("/etc/hawser/bundle.yaml", &namesake)?;
        refused("a namesake", &us.hawser(&["connect", "/etc/hawser/bundle.yaml"])?, &["eu-west"])
    });
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: cart-from-checkout-only
  namespace: shop
spec:
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: checkout
  podSelector:
    matchLabels:
      app: cart
  policyTypes:
  - Ingress
";

#[test]
fn a_network_policy_that_the_mesh_would_bypass_stops_connect_unless_accepted() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        lab.start_product(Store::Embedded)?;
        let (us, eu) = (lab.cluster("us-east"), lab.cluster("eu-west"));
        us.nodes[0].place.write("/etc/hawser/manifests/policy.yaml", POLICY)?;
        eu.carry_bundle(us)?;
        let bundle = "/etc/hawser/bundles/eu-west.yaml";
        wait::until("connect is refused for the policy", Duration::from_secs(5), || {
            refused("a policy", &us.hawser(&["connect", bundle, "--dry-run"])?, &["cart-from-checkout-only"])
        })?;
        refused("a policy", &us.hawser(&["connect", bundle])?, &["shop/cart-from-checkout-only"])?;
        us.hawser_ok(&["connect", bundle, "--policy-bypass-accepted"])?;
        Ok(())
    });
}

#[test]
fn an_expired_certificate_is_named() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(two())?;
        let us = lab.cluster_mut("us-east");
        us.found()?;
        let place = &us.nodes[0].place;
        let ca_key = rcgen::KeyPair::from_pem(&place.read("/etc/hawser/pki/ca.key")?)?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(&place.read("/etc/hawser/pki/ca.crt")?, ca_key)?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin-yesterday");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
        let key = rcgen::KeyPair::generate()?;
        place.write("/etc/hawser/pki/admin.crt", &params.signed_by(&key, &issuer)?.pem())?;
        place.write("/etc/hawser/pki/admin.key", &key.serialize_pem())?;
        let output = us.hawser(&["ca", "bundle", "--for", "eu-west"])?;
        refused("an expired certificate", &output, &["expired"])
    });
}
