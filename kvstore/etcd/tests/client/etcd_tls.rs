//! etcd over TLS: Debian's real etcd with --client-cert-auth, and the certificates that `deploy/` makes.

use std::path::{Path, PathBuf};
use std::process::Command;

use hawser_etcd::store::{OwnStore, StoreTls, open_store};
use hawser_kvstore::{Op, Put};
use tempfile::TempDir;

use crate::harness::{Copy, RealEtcd, TestServer, everything};

/// ca, server and client, as deploy/README.md has them made.
fn certificates() -> TempDir {
    let dir = TempDir::new().unwrap();
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kustomize/overlays/etcd/certificates.sh");
    let made = Command::new("sh").arg(script).arg(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}\nfix: apt-get install openssl");
    dir
}

fn store_tls(dir: &Path) -> StoreTls {
    StoreTls { ca: dir.join("ca.crt"), cert: dir.join("client.crt"), key: dir.join("client.key") }
}

/// Puts what is in `from` where `to` is, as a Secret changes.
fn replace(from: &Path, to: &Path) {
    for file in ["ca.crt", "server.crt", "server.key", "client.crt", "client.key"] {
        let new = to.join("new");
        std::fs::copy(from.join(file), &new).unwrap();
        std::fs::rename(new, to.join(file)).unwrap();
    }
}

async fn write(store: &OwnStore, key: &'static str) -> Result<(), String> {
    let put = Op::Put(Put::new(key, "v"));
    store.writer().write(put).await.map(drop).map_err(|error| error.to_string())
}

fn has(store: &OwnStore, key: &str) -> bool {
    everything(store.handle.keyspace()).iter().any(|kv| kv.key == key)
}

#[tokio::test]
async fn etcd_is_read_and_written_over_tls_and_new_certificates_are_used_without_a_restart() {
    let (good, wrong, at_etcd, ours) = (certificates(), certificates(), certificates(), certificates());
    replace(good.path(), at_etcd.path());
    replace(wrong.path(), ours.path());
    let mut etcd = RealEtcd::start_with_tls(at_etcd.path());
    let (uri, tls) = (etcd.uri(), store_tls(ours.path()));
    let opening = tokio::spawn(async move { open_store(&uri, Some(&tls), "us-east").await });
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(!opening.is_finished(), "another CA's certificate opened it, or it gave up at once");
    replace(good.path(), ours.path());
    let store = opening.await.unwrap().unwrap();
    assert!(store.describe().ends_with(" over TLS"), "{}", store.describe());
    write(&store, "cilium/state/a").await.unwrap();
    let server = TestServer::serving(store.handle.clone()).await;
    let mut reader = Copy::of(&server.client(), &["cilium/"]);
    reader.until_equal(store.handle.keyspace(), &["cilium/"]).await;

    // Another CA, at etcd first: until we have it too, reads go on from memory.
    replace(wrong.path(), at_etcd.path());
    etcd.kill();
    etcd.start_again().await;
    let refused = write(&store, "cilium/state/refused").await.unwrap_err();
    assert!(refused.contains("the store cannot write"), "{refused}");
    assert!(has(&store, "cilium/state/a"));
    replace(wrong.path(), ours.path());
    let mut last = String::new();
    for _ in 0..300 {
        match write(&store, "cilium/state/b").await {
            Ok(()) => break,
            Err(error) => last = error,
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(has(&store, "cilium/state/b"), "{last}");
    reader.until_equal(store.handle.keyspace(), &["cilium/"]).await;
    assert_eq!(reader.resets, ["Start"], "readers noticed nothing");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_once_with_a_fix() {
    let (one, other) = (certificates(), certificates());
    let refused = async |tls: StoreTls| {
        let error = open_store("etcds://127.0.0.1:1", Some(&tls), "us-east").await.unwrap_err().to_string();
        assert!(error.contains("fix: "), "{error}");
        error
    };
    let good = store_tls(one.path());
    let missing = refused(StoreTls { ca: PathBuf::from("/nowhere/ca.crt"), ..good.clone() }).await;
    assert!(missing.contains("/nowhere/ca.crt cannot be read"), "{missing}");
    let no_pem = refused(StoreTls { cert: PathBuf::from("/proc/version"), ..good.clone() }).await;
    assert!(no_pem.contains("/proc/version holds no certificate"), "{no_pem}");
    let pair = refused(StoreTls { key: other.path().join("client.key"), ..good }).await;
    assert!(pair.contains("cannot be used together"), "{pair}");
    let none = open_store("etcds://127.0.0.1:1", None, "us-east").await.unwrap_err().to_string();
    assert!(none.contains("storeTLS is missing. fix: "), "{none}");
}
