//! The join file reads as it was written, and says what is wrong with it.

use hawser_model::{ClusterId, ClusterName, Timestamp};

use super::*;
use crate::ca::Ca;

fn join() -> JoinFile {
    let name = ClusterName::parse("us-east").unwrap();
    let ca = Ca::create(&name, Timestamp::from_unix(1_795_211_095)).unwrap();
    JoinFile {
        cluster: ClusterRef { name, id: ClusterId::new(1, ClusterIdWidth::Bits8).unwrap() },
        node: NodeName::parse("node-1").unwrap(),
        servers: vec![ServerUrl::parse("https://172.16.1.11:2379").unwrap()],
        token: Token::create(&mut rand::rng()),
        ca: ca.cert().clone().into(),
    }
}

#[test]
fn a_join_file_reads_as_it_was_written() {
    let join = join();
    assert_eq!(JoinFile::from_yaml(&join.to_yaml()).unwrap(), join);
}

#[test]
fn malformed_join_files_are_refused_with_a_sentence() {
    let yaml = join().to_yaml();
    for (text, why) in [
        (String::new(), "not readable"),
        ("x".repeat(70_000), "more than 65536"),
        (format!("{yaml}extra: 1\n"), "unknown field"),
        (yaml.replace("id: 1", "id: 0"), "out of range"),
        (yaml.replace("\"node-1\"", "\"Node\""), "RFC 1123 subdomain"),
        (yaml.replace("[\"https://172.16.1.11:2379\"]", "[]"), "names 0 servers"),
        (yaml.replace("https", "http"), "https://"),
        (yaml.replace("hwt1.", "hwt9."), "hwt1.<id>.<secret>"),
        (yaml.replace("-----END", "-----ENDE"), "no PEM text"),
    ] {
        let error = JoinFile::from_yaml(&text).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}
