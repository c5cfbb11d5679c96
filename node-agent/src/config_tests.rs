//! What `agent.yaml` may say, what it may not, and what the refusal names.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("agent.yaml"), "node-9")
}

#[test]
fn an_empty_file_is_the_contracts_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, parse("# nothing\n\n").unwrap());
    assert_eq!(config.node.as_str(), "node-9");
    assert_eq!(config.state, Path::new("/var/lib/hawser/agent"));
    assert_eq!((config.port, config.probe_port, config.table), (51_871, 51_872, 18_551));
    assert_eq!(config.mtu_of(Encryption::Wireguard), 1_420);
    assert_eq!(config.mtu_of(Encryption::Ipsec), 1_418);
    assert_eq!(parse("mtu: 1420").unwrap().mtu_of(Encryption::Ipsec), 1_420, "as it is said");
    assert_eq!(config.mark, Mark { value: 0x0048_0000, mask: 0x00ff_0000 });
    assert_eq!(config.liveness, LivenessConfig::default());
    assert_eq!(config.reset_after, ResetAfter::DEFAULT);
    let fast = parse("health: { detection: 250ms, resetAfter: never }").unwrap();
    assert_eq!(fast.liveness.interval.as_millis(), 83);
    assert_eq!(parse(&fast.to_string()).unwrap(), fast);
    assert_eq!(config.underlay, Underlay::Auto);
}

#[test]
fn the_file_of_the_contract_reads_and_what_is_printed_reads_the_same() {
    let text = "\
node: node-1
join: /etc/hawser/join.yaml               # written by `hawser ca token`
state: /var/lib/hawser/agent
socket: /run/hawser/agent.sock
device: hawser0
port: 51871
sessions: 8
sessionPort: 51880
mtu: 1420
mark: 0x00480000
markMask: 0x00ff0000
table: 18551
health: { port: 51872, detection: 1s, multiplier: 3, resetAfter: 2s }
underlay: auto
bpfDir: hawser
";
    let config = parse(text).unwrap();
    let node = NodeName::parse("node-1").unwrap();
    assert_eq!(config, Config { node, mtu: Some(1_420), ..parse("").unwrap() });
    assert_eq!(parse(&config.to_string()).unwrap(), config);
    let listed = parse("underlay: [eth0, bond0.7]").unwrap();
    assert_eq!(parse(&listed.to_string()).unwrap(), listed);
    assert_eq!((config.uplinks.len(), config.masquerade_mark), (0, 0x4000));
    let opted_in = parse("nodePort: { devices: [eth0], masqueradeMark: 0 }").unwrap();
    assert_eq!((opted_in.uplinks.len(), opted_in.masquerade_mark), (1, 0));
    assert_eq!(parse(&opted_in.to_string()).unwrap(), opted_in);
}

#[test]
fn a_pod_joins_with_its_own_token() {
    let text = "join: { serviceAccountToken: /var/run/secrets/hawser.io/token, servers: [\"https://a.example:2379\"], ca: /c }";
    let config = parse(text).unwrap();
    let Join::Pod(pod) = &config.join else { panic!("{:?}", config.join) };
    assert_eq!(
        (pod.servers[0].to_string(), pod.ca.as_path()),
        ("https://a.example:2379".into(), Path::new("/c"))
    );
    assert_eq!(parse(&config.to_string()).unwrap(), config);
    assert_eq!(parse("").unwrap().join, Join::File("/etc/hawser/join.yaml".into()));
}

#[test]
fn what_cannot_be_is_refused_with_the_key_and_the_fix() {
    for (text, said) in [
        ("nodes: a", "unknown field"),
        ("sessions: 9", "sessions"),
        ("sessionPort: 51870", "sessionPort"),
        ("sessionPort: 65535", "sessionPort"),
        ("node: A_b", "node \"A_b\""),
        ("join: { serviceAccountToken: /t, servers: [], ca: /c }", "join.servers"),
        ("join: { serviceAccountToken: /t, servers: [\"http://a:1\"], ca: /c }", "join.servers"),
        ("join: { serviceAccountToken: /t, ca: /c }", "line 1"),
        ("port: 0", "port \"0\""),
        ("port: 70000", "line 1"),
        ("mtu: 1000", "mtu \"1000\""),
        ("mark: 0", "mark \"0x0\""),
        ("mark: 0x01000000", "outside of markMask 0xff0000"),
        ("table: 254", "table \"254\""),
        ("device: a/b", "device \"a/b\""),
        ("device: averyverylongname", "device"),
        ("underlay: eth0", "neither auto nor a list"),
        ("health: { detection: 500 }", "health.detection \"500\""),
        ("health: { detection: 100ms }", "between 150ms (3 probes) and 180s"),
        ("health: { detection: 250ms, multiplier: 6 }", "between 300ms (6 probes) and 180s"),
        ("health: { multiplier: 2 }", "between 3 and 12"),
        ("health: { resetAfter: soon }", "health.resetAfter \"soon\""),
        ("health: { ports: 1 }", "unknown field"),
        ("nodePort: { devices: [a/b] }", "nodePort.devices"),
        ("nodePort: { device: eth0 }", "unknown field"),
        ("bpfDir: a/b", "bpfDir"),
        ("bpfDir: ../x", "bpfDir"),
        ("port: [", "line"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("fix: "), "{text}: {error}");
    }
}

#[test]
fn a_syntax_error_names_the_line() {
    let error = parse("node: a\nport: 1\nprot: 2\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { line: 3, .. }), "{error:?}");
}

#[test]
fn a_named_file_must_exist_and_the_default_one_need_not() {
    let missing = Path::new("/nonexistent/agent.yaml");
    assert!(Config::load(missing, false, "node-9").is_ok());
    assert!(matches!(Config::load(missing, true, "node-9"), Err(ConfigError::Read { .. })));
}
