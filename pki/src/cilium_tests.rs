//! Files as Cilium's Helm chart writes them, and what is wrong with others.

use hawser_model::Timestamp;

use super::*;
use crate::ca::Ca;

/// Helm's, of a cluster with `ips`.
const HELM: &str = "endpoints:
- https://c1.mesh.cilium.io:2379
trusted-ca-file: /var/lib/cilium/clustermesh/common-etcd-client-ca.crt
key-file: /var/lib/cilium/clustermesh/common-etcd-client.key
cert-file: /var/lib/cilium/clustermesh/common-etcd-client.crt
cilium-host-aliases:
- hostname: c1.mesh.cilium.io
  ips: [198.51.100.7, \"fd00::7\"]
";

fn url(text: &str) -> ServerUrl {
    ServerUrl::parse(text).unwrap()
}

fn name(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

#[test]
fn helms_file_is_read() {
    let config = CiliumConfig::read(HELM).unwrap();
    assert_eq!(config.endpoints, [url("https://c1.mesh.cilium.io:2379")]);
    assert_eq!(config.key_file.as_deref(), Some("/var/lib/cilium/clustermesh/common-etcd-client.key"));
    let ips = ["198.51.100.7", "fd00::7"].map(|ip| ip.parse().unwrap());
    assert_eq!(config.aliases, BTreeMap::from([("c1.mesh.cilium.io".into(), ips.into())]));
    assert_eq!(CiliumConfig::read(&config.to_yaml()), Ok(config), "what is written is what is read");
}

#[test]
fn what_etcds_client_knows_beside_is_read_over() {
    let text =
        "endpoints: ['https://10.0.0.1:2379/']\ndial-timeout: 5s\nauto-sync-interval: 0s\nca-file: /ca\n";
    let config = CiliumConfig::read(text).unwrap();
    assert_eq!(config.endpoints, [url("https://10.0.0.1:2379")]);
    assert_eq!((config.trusted_ca_file.as_deref(), config.cert_file), (Some("/ca"), None));
}

#[test]
fn a_server_that_nobody_proves_is_not_dialled() {
    for (text, why) in [
        ("endpoints: []", "0 entries"),
        ("dial-timeout: 5s", "endpoints"),
        ("endpoints: [http://10.0.0.1:2379]", "https://"),
        ("endpoints: [https://a:1]\ninsecure-transport: true", "insecure-transport is set"),
        ("endpoints: [https://a:1]\ninsecure-skip-tls-verify: true", "insecure-skip-tls-verify is set"),
        ("endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: '', ips: [10.0.0.1]}]", "no host name"),
        ("endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: a, ips: []}]", "no addresses"),
        ("endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: a, ips: [b]}]", "is no address"),
        (
            "endpoints: [https://a:1]\ncilium-host-aliases: [{hostname: a, ips: [10.0.0.1]}, {hostname: a, ips: [10.0.0.2]}]",
            "twice",
        ),
        ("just text", "no etcd client configuration"),
    ] {
        let error = CiliumConfig::read(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn ours_is_written_as_helm_writes_it() {
    let advertise =
        ["https://172.16.1.11:2379", "https://172.16.1.12:2379", "https://api.example:443"].map(url);
    let reach = CiliumConfig::of(&name("us-east"), &advertise);
    let ca = Ca::create(&name("us-east"), Timestamp::from_unix(1_795_211_095)).unwrap();
    let client = ca.issue_cilium_remote(&name("c1"), Timestamp::from_unix(1_795_211_095)).unwrap();
    let CiliumFiles(files) = CiliumFiles::remote(&name("us-east"), &reach, ca.cert().pem(), &client);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["us-east.etcd-client-ca.crt", "us-east.etcd-client.key", "us-east.etcd-client.crt", "us-east"]
    );
    assert_eq!((&files[0].1, &files[2].1), (&ca.cert().pem(), &client.cert.pem()));
    let config = &files[3].1;
    assert_eq!(
        config,
        r#"endpoints:
- https://us-east.mesh.cilium.io:2379
- https://api.example:443
trusted-ca-file: "/var/lib/cilium/clustermesh/us-east.etcd-client-ca.crt"
key-file: "/var/lib/cilium/clustermesh/us-east.etcd-client.key"
cert-file: "/var/lib/cilium/clustermesh/us-east.etcd-client.crt"
cilium-host-aliases:
- hostname: "us-east.mesh.cilium.io"
  ips: ["172.16.1.11", "172.16.1.12"]
"#
    );
    let read = CiliumConfig::read(config).unwrap();
    assert_eq!((&read.endpoints, &read.aliases), (&reach.endpoints, &reach.aliases));

    let both = [name("c1"), name("eu-west")];
    let CiliumFiles(local) = CiliumFiles::local(&reach, both.iter(), ca.cert().pem(), &client);
    let names: Vec<&str> = local.iter().map(|(name, _)| name.as_str()).collect();
    let local_names = ["local-etcd-client-ca.crt", "local-etcd-client.key", "local-etcd-client.crt"];
    assert_eq!(names, [&local_names[..], &["c1", "eu-west"]].concat());
    assert!(local[3].1.contains("cert-file: \"/var/lib/cilium/clustermesh/local-etcd-client.crt\""));
    assert!(!format!("{:?}", CiliumFiles(local)).contains("PRIVATE"));
}
