//! Keys of IPsec against values that another implementation (Python's `hmac` and `hashlib`) came to.

use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef, NodeName};

use super::*;

const OWN: (&str, u32, &str, &str, u8, [u8; 4]) =
    ("us-east", 1, "node-1", "6c1f0c1e-1111-4222-8333-444455556666", 1, [172, 16, 1, 11]);
const PEER: (&str, u32, &str, &str, u8, [u8; 4]) =
    ("eu-west", 2, "node-2", "7d2f0c1e-1111-4222-8333-444455557777", 2, [172, 16, 2, 12]);
const SHARED: [u8; 32] = [0xab; 32];
const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

struct Node {
    name: PeerName,
    public_key: PublicKey,
    boot_id: BootId,
    address: IpAddr,
}

impl Node {
    fn new((cluster, id, node, boot, key, address): (&str, u32, &str, &str, u8, [u8; 4])) -> Self {
        let id = ClusterId::new(id, ClusterIdWidth::Bits8).unwrap();
        let cluster = ClusterRef { name: ClusterName::parse(cluster).unwrap(), id };
        Self {
            name: PeerName { cluster, node: NodeName::parse(node).unwrap() },
            public_key: PublicKey::new([key; 32]).unwrap(),
            boot_id: BootId::parse(boot).unwrap(),
            address: address.into(),
        }
    }

    fn end(&self) -> End<'_> {
        let Self { name, public_key, boot_id, address } = self;
        End { name, public_key, boot_id: Some(boot_id), address: *address }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sa(secret: &MeshSecret, from: &Node, to: &Node) -> (String, u32) {
    sa_of_turn(1, secret, from, to)
}

fn sa_of_turn(turn: u32, secret: &MeshSecret, from: &Node, to: &Node) -> (String, u32) {
    let sa = secret.association(turn, &SHARED, from.end(), to.end());
    (hex(sa.key.material()), sa.spi)
}

#[test]
fn keys_are_what_another_implementation_derives() {
    let (own, peer) = (Node::new(OWN), Node::new(PEER));
    let first = MeshSecret::parse(&format!("1 {SECRET}\n")).unwrap();
    let second = MeshSecret::parse(&format!("# rotated\n2 {SECRET}")).unwrap();
    let known = [
        (
            &first,
            &own,
            &peer,
            "ee5b3da1a9b151042fbc5e0a14553aaa4e272e3cb86098a42aa0bc3486c4abdefc3d28c7",
            0x7941_6abb,
        ),
        (
            &first,
            &peer,
            &own,
            "50a151f343a6c900432e89b05ec6b104a3356f54c27305a079ce631f2bce28c6eceed11b",
            0xabff_c706,
        ),
        (
            &second,
            &own,
            &peer,
            "dd783b0c8128b16a5eeffc44eec97ff4932c545f714bd0665b20ce7a8d76cc8ad6c4294b",
            0x6894_2f70,
        ),
    ];
    for (secret, from, to, key, spi) in known {
        assert_eq!(sa(secret, from, to), (key.to_owned(), spi), "{secret:?}");
    }
    let next = "93569ba3c9c3eaccdb42d351f59c6125541d3f6150d559fb5830dc1c240e7068b5b9f20d";
    assert_eq!(sa_of_turn(2, &first, &own, &peer), (next.to_owned(), 0xac41_c8e6));
}

#[test]
fn a_secret_in_ciliums_form_gives_ciliums_keys() {
    let (own, peer) = (Node::new(OWN), Node::new(PEER));
    let bytes: Vec<u8> = (0..36).collect();
    let short = format!("3+ rfc4106(gcm(aes)) {} 128", hex(&bytes[..20]));
    let long = format!("3 rfc4106(gcm(aes)) 0x{} 128\n", hex(&bytes));
    let (short, long) = (MeshSecret::parse(&short).unwrap(), MeshSecret::parse(&long).unwrap());
    assert_eq!((short.derivation(), short.epoch().get()), (Derivation::Cilium, 3));
    assert_eq!(sa(&short, &own, &peer), ("6d9d4fa1d05a210065edf708b16a04f680edae73".to_owned(), 0xea98_8a6e));
    let key = "de86b2334de9dc5ae370e23244ca8d4828e5d7e0b20ea025a0461248b893315515e9ecb7";
    assert_eq!(sa(&long, &peer, &own), (key.to_owned(), 0x7bb6_0181));
}

#[test]
fn everything_that_goes_in_changes_what_comes_out() {
    let secret = MeshSecret::parse(&format!("1 {SECRET}")).unwrap();
    let other_secret = MeshSecret::parse(&format!("1 {}ff", &SECRET[2..])).unwrap();
    let (own, peer) = (Node::new(OWN), Node::new(PEER));
    let moved = |change: fn(&mut Node)| {
        let mut node = Node::new(PEER);
        change(&mut node);
        sa(&secret, &own, &node)
    };
    let all = [
        sa(&secret, &own, &peer),
        sa(&secret, &peer, &own),
        sa(&other_secret, &own, &peer),
        moved(|node| node.name = Node::new(OWN).name),
        moved(|node| node.name.node = NodeName::parse("node-3").unwrap()),
        moved(|node| node.boot_id = Node::new(OWN).boot_id),
        moved(|node| node.public_key = PublicKey::new([3; 32]).unwrap()),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(all.iter().skip(at + 1).all(|other| other.0 != one.0 && other.1 != one.1), "{at}");
    }
    let unshared = secret.association(1, &[0; 32], own.end(), peer.end());
    assert_ne!(hex(unshared.key.material()), all[0].0, "the secret alone does not give the keys");
}

#[test]
fn a_secret_that_is_none_is_refused_with_a_fix() {
    let long = "0".repeat(MAX_SECRET * 2 + 2);
    let key = "00".repeat(20);
    let cases = [
        (String::new(), ParseSecretError::Shape),
        (format!("1 {SECRET}\n2 {SECRET}"), ParseSecretError::Shape),
        (format!("0 {SECRET}"), ParseSecretError::Epoch { text: "0".into() }),
        ("1 zz".into(), ParseSecretError::Hex),
        ("1 abc".into(), ParseSecretError::Hex),
        ("1 äö".into(), ParseSecretError::Hex),
        ("1 00ff".into(), ParseSecretError::Length { octets: 2 }),
        (format!("1 {long}"), ParseSecretError::Length { octets: MAX_SECRET + 1 }),
        (format!("16 rfc4106(gcm(aes)) {key} 128"), ParseSecretError::CiliumKeyId { text: "16".into() }),
        ("3 rfc4106(gcm(aes)) 00 128".into(), ParseSecretError::CiliumLength { octets: 1 }),
        (
            format!("3 rfc4106(gcm(aes)) {key} 96"),
            ParseSecretError::CiliumAlgorithm { algorithm: "rfc4106(gcm(aes))".into(), bits: "96".into() },
        ),
    ];
    for (text, error) in cases {
        assert_eq!(MeshSecret::parse(&text), Err(error), "{text:.40}");
    }
}

#[test]
fn no_spi_is_a_reserved_one_and_no_key_is_printed() {
    assert_eq!((spi(&[0; 4]), spi(&[0, 0, 0, 255]), spi(&[0, 0, 1, 0])), (256, 511, 256));
    let secret = MeshSecret::parse(&format!("1 {SECRET}")).unwrap();
    let (own, peer) = (Node::new(OWN), Node::new(PEER));
    let sa = secret.association(1, &SHARED, own.end(), peer.end());
    assert_eq!(format!("{sa:?} {:?}", sa.key), "SPI 0x79416abb a key of 256 bits");
    assert_eq!(format!("{secret:?}"), "the mesh secret of epoch 1, Hawser's derivation");
    assert_eq!([sa.key.aes(), &sa.key.salt()].concat(), sa.key.material());
    assert!(EspKey::new(&[0; 32]).is_none(), "a key without its salt");
}

#[test]
fn a_node_holds_one_secret_or_two_and_says_what_is_wrong_with_more() {
    let of = |epoch: u32| format!("{epoch} {SECRET}\n");
    let both = Keyring::parse(&format!("# the next one\n{}\n{}", of(2), of(1))).unwrap();
    assert_eq!(both.iter().map(|secret| secret.epoch().get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(Keyring::parse(&of(1)).unwrap().iter().count(), 1);
    let epoch = Epoch::new(1).unwrap();
    assert_eq!(Keyring::parse(&format!("{}{}", of(1), of(1))), Err(ParseSecretError::Twice { epoch }));
    let three = format!("{}{}{}", of(1), of(2), of(3));
    assert_eq!(Keyring::parse(&three), Err(ParseSecretError::TooMany { count: 3 }));
    assert_eq!(Keyring::parse("# nothing"), Err(ParseSecretError::Shape));
}
