//! What a manifest says, and what is said about a manifest that cannot be read.

use hawser_sources::{Kind, Object, parse};

const SHOP: &str = include_str!("../testdata/shop.yaml");

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: cart
  namespace: shop
spec:
  clusterIP: 10.96.10.1
  ports:
  - port: 80
";

#[test]
fn a_list_as_kubectl_prints_it_is_read() {
    let objects = parse(SHOP).unwrap();
    let refs: Vec<String> = objects.iter().map(|o| o.reference().to_string()).collect();
    assert_eq!(
        refs,
        [
            "Namespace shop",
            "Node node-1",
            "Pod shop/cart-5d9-abcde",
            "Service shop/cart",
            "EndpointSlice shop/cart-x7k2p",
            "NetworkPolicy shop/only-shop",
        ]
    );
    let Object::Node(node) = &objects[1] else { panic!("{:?}", objects[1]) };
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.addresses.len(), 1, "a host name is no address");
    assert!(node.boot_id.is_some());
    let Object::Pod(pod) = &objects[2] else { panic!("{:?}", objects[2]) };
    assert_eq!(pod.ips.len(), 2);
    assert_eq!(pod.service_account, "default");
    let Object::EndpointSlice(slice) = &objects[4] else { panic!("{:?}", objects[4]) };
    assert_eq!(slice.service().unwrap().to_string(), "shop/cart");
    assert!(slice.endpoints[0].is_backend());
    let Object::NetworkPolicy(policy) = &objects[5] else { panic!("{:?}", objects[5]) };
    assert!(policy.ingress && policy.pods.matches(&pod.labels));
}

#[test]
fn documents_are_separated_and_other_kinds_are_skipped_quietly() {
    let text = format!(
        "# nothing\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x}}\n--- # the one\n{SERVICE}---\n"
    );
    let objects = parse(&text).unwrap();
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0].reference().kind, Kind::Service);
    let knative = SERVICE.replace("apiVersion: v1", "apiVersion: serving.knative.dev/v1");
    assert!(parse(&knative).unwrap().is_empty());
}

#[test]
fn json_is_yaml_too() {
    let text = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"a":"b"}}}"#;
    assert_eq!(parse(text).unwrap().len(), 1);
}

#[test]
fn an_error_has_the_line_of_what_is_wrong() {
    let typo = SERVICE.replace("port: 80", "port: eighty");
    let error = parse(&format!("# first\n---\n{SERVICE}---\n{}", typo.replace("cart", "till"))).unwrap_err();
    assert_eq!(error.line, 21, "{error}");
    let syntax = SERVICE.replace("metadata:", "metadata: [");
    let error = parse(&syntax).unwrap_err();
    assert!((3..=5).contains(&error.line), "{error}");
    let in_list = SHOP.replace("  - port: 8080", "  - port: x").replace("port: 8080", "port: many");
    let line = in_list.lines().position(|l| l.contains("port: many")).unwrap() as u64 + 1;
    assert_eq!(parse(&in_list).unwrap_err().line, line);
}

#[test]
fn what_kubernetes_refuses_is_refused() {
    for (from, to, says) in [
        ("10.96.10.1", "10.96.10.300", "10.96.10.300"),
        ("port: 80", "port: 80000", "80000"),
        ("name: cart", "name: Cart_1", "Cart_1"),
        ("kind: Service\n", "", "kind is missing"),
    ] {
        let error = parse(&SERVICE.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
    // An annotation is text: kubectl refuses `true` without quotes, and so do we.
    let bare = SERVICE.replace("  namespace:", "  annotations:\n    hawser.io/global: true\n  namespace:");
    assert!(parse(&bare).is_err(), "{bare}");
    let quoted = bare.replace(": true", ": \"true\"");
    assert!(parse(&quoted).is_ok());
}

#[test]
fn a_file_states_an_object_once_and_says_something() {
    let error = parse(&format!("{SERVICE}---\n{SERVICE}")).unwrap_err();
    assert!(error.to_string().contains("Service shop/cart is in this file twice"), "{error}");
    assert!(parse("").unwrap_err().reason.contains("holds no object"));
    assert!(parse("# all gone\n").is_err());
}

#[test]
fn any_prefix_of_a_manifest_is_refused_or_read_and_never_panics() {
    for end in (0..SHOP.len()).step_by(7).filter(|end| SHOP.is_char_boundary(*end)) {
        let _ = parse(&SHOP[..end]);
    }
}
