//! Keys read and write as Cilium's and ours do.

use super::*;

fn name(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

#[test]
fn every_kind_of_key_prints_as_it_parsed() {
    for text in [
        "cilium/.heartbeat",
        "cilium/cluster-config/c1",
        "cilium/synced/c1/cilium/state/identities/v1",
        "cilium/synced/c1/hawser/state/nodes/v1",
        "cilium/state/nodes/v1/c1/ip-10-0-0-1.ec2.internal",
        "cilium/state/identities/v1/id/65793",
        "cilium/state/ip/v1/default/10.1.0.11",
        "cilium/state/ip/v1/default/fd00:10:1::b",
        "cilium/state/services/v1/c1/shop/web",
        "cilium/state/endpointslices/v1/c1/shop/web-x7f2p",
        "hawser/state/nodes/v1/c1/node-1",
        "hawser/state/trust/v1/c1",
        "hawser/state/trusted/v1/c1/eu-west",
        "hawser/local/services/v1/c1/shop/cart",
        "hawser/local/peers/v1/eu-west",
    ] {
        let key = Key::parse(text.as_bytes()).unwrap();
        assert!(!matches!(key, Key::Other(_) | Key::Private(_)), "{text}");
        assert_eq!(key.to_string(), text);
    }
}

#[test]
fn what_is_not_ours_to_read_is_other_and_what_is_secret_is_private() {
    for text in [
        "cilium/.initlock/4244eaab24571de3/390da1fae8661403",
        "cilium/state/identities/v1/value/k8s:app=x;/10.0.0.1",
        "cilium/synced/c1/cilium/state/something/v9",
        "",
        "foo",
    ] {
        assert_eq!(Key::parse(text.as_bytes()).unwrap(), Key::Other(text.into()), "{text}");
    }
    assert_eq!(Key::parse(b"hawser/private/tokens/v1/abc").unwrap(), Key::Private("tokens/v1/abc".into()));
}

#[test]
fn a_key_that_breaks_its_schema_is_refused_with_the_key_and_the_reason() {
    for (text, why) in [
        ("cilium/cluster-config/", "is empty"),
        ("cilium/cluster-config/C1", "may hold only lower-case"),
        ("cilium/synced/c1", "too few or too many parts"),
        ("cilium/state/nodes/v1/c1", "too few or too many parts"),
        ("cilium/state/nodes/v1/c1/a/b", "RFC 1123 subdomain"),
        ("cilium/state/identities/v1/id/065793", "is not how the same key is written"),
        ("cilium/state/identities/v1/id/+5", "is not how the same key is written"),
        ("cilium/state/identities/v1/id/x", "not a decimal identity"),
        ("cilium/state/identities/v1/id/16777216", "more than 24 bits"),
        ("cilium/state/ip/v1/default/10.1.0.0/24", "not an IP address"),
        ("cilium/state/ip/v1/default/010.1.0.1", "not an IP address"),
        ("cilium/state/ip/v1/default/FD00::1", "is not how the same key is written"),
        ("cilium/state/ip/v1/default/fd00:0:0::1", "is not how the same key is written"),
        ("cilium/state/ip/v1/default/::ffff:10.1.0.1", "is not how the same key is written"),
        ("cilium/state/ip/v1/default/fe80::1%eth0", "not an IP address"),
        ("cilium/state/services/v1/c1/shop", "too few or too many parts"),
        ("cilium/state/services/v1/c1/shop/web/x", "too few or too many parts"),
        ("cilium/state/services/v1/c1/shop/Web", "RFC 1123 label"),
        ("hawser/local/peers/v1/default", "is reserved"),
    ] {
        let error = Key::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.key, text);
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(Key::parse(&[b'a', 0xff]).unwrap_err().kind, KeyErrorKind::Utf8);
    let long = format!("cilium/cluster-config/{}", "a".repeat(5000));
    assert!(Key::parse(long.as_bytes()).unwrap_err().to_string().len() < 300);
}

#[test]
fn the_cache_layout_names_its_cluster_in_every_key() {
    for (cached, state) in [
        ("cilium/cache/identities/v1/c1/id/65793", "cilium/state/identities/v1/id/65793"),
        ("cilium/cache/ip/v1/c1/fd00:10:1::b", "cilium/state/ip/v1/default/fd00:10:1::b"),
        ("cilium/cache/nodes/v1/c1/node-a", "cilium/state/nodes/v1/c1/node-a"),
        ("cilium/cache/services/v1/c1/shop/web", "cilium/state/services/v1/c1/shop/web"),
        ("cilium/synced/c1/cilium/cache/ip/v1", "cilium/synced/c1/cilium/state/ip/v1"),
        ("cilium/cluster-config/c1", "cilium/cluster-config/c1"),
    ] {
        let (cluster, key) = Key::parse_cached(cached.as_bytes()).unwrap();
        assert_eq!(cluster, Some(name("c1")), "{cached}");
        assert_eq!(key, Key::parse(state.as_bytes()).unwrap());
    }
    for other in ["cilium/cache/something/v1/c1/shop/exported", "cilium/state/nodes/v1/c1/node-a", "x"] {
        assert_eq!(Key::parse_cached(other.as_bytes()).unwrap(), (None, Key::Other(other.into())));
    }
    assert!(Key::parse_cached(b"cilium/cache/ip/v1/c1/10.1.0.0/24").is_err());
}

#[test]
fn prefixes_end_in_a_slash_so_that_c1_is_not_c10() {
    for resource in Resource::ALL {
        assert!(resource.prefix(&name("c1")).ends_with('/'));
        assert!(resource.cached_prefix(&name("c1")).ends_with('/'));
        let canary = Key::synced(&name("c1"), resource).to_string();
        assert_eq!(Key::parse(canary.as_bytes()).unwrap(), Key::synced(&name("c1"), resource));
    }
    assert_eq!(Resource::Nodes.prefix(&name("c1")), "cilium/state/nodes/v1/c1/");
    assert_eq!(Resource::Nodes.cached_prefix(&name("c1")), "cilium/cache/nodes/v1/c1/");
}

#[test]
fn one_address_has_one_key() {
    let mapped: IpAddr = "::ffff:10.1.0.1".parse().unwrap();
    assert_eq!(Key::ip(mapped).to_string(), "cilium/state/ip/v1/default/10.1.0.1");
}
