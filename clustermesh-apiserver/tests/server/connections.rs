//! Who stays connected, and how the server is reached from its own machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use crate::cluster::{Cluster, eventually};
use clustermesh_apiserver::places::raise_open_files;
use hawser_api::agent::JoinRequest;

/// Whether the other side has closed it.
fn closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn silent_clients_make_room_for_each_other_and_keep_nobody_out() {
    // Each takes a file here and one there.
    raise_open_files();
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, us.port));
    let silent: Vec<TcpStream> = (0..1_100).map(|_| TcpStream::connect(address).unwrap()).collect();
    eventually("the oldest is closed", async || match closed(&silent[0]) {
        true => Ok(()),
        false => Err("still open".into()),
    })
    .await;
    us.status().await;
    us.agent_identity("node-1").await;
}

#[tokio::test]
async fn a_client_without_a_certificate_does_not_stay() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let stranger = Cluster::new("ap-south", 3).admin_identity();
    // Both answer the server's keepalives for as long as they are held.
    let mut nobody = us.agent(None).await;
    let _refused = us.channel(Some(&stranger)).await.unwrap();
    let mut admin = us.admin().await;
    for caller in ["Anonymous", "Refused"] {
        eventually(&format!("{caller} is gone"), async || {
            let log = us.log();
            let gone =
                log.lines().any(|line| line.contains("a guest's time is over") && line.contains(caller));
            if gone { Ok(()) } else { Err("still here".into()) }
        })
        .await;
    }
    assert!(!us.log().lines().any(|line| line.contains("connection ended") && line.contains("Known")));
    admin.status(hawser_api::admin::StatusRequest {}).await.unwrap();
    // Whoever still has something to say comes again.
    eventually("a join is answered", async || {
        let request =
            JoinRequest { node: "node-1".into(), token: "x".into(), csr: Vec::new(), ..Default::default() };
        match nobody.join(request).await.unwrap_err() {
            status if status.code() == tonic::Code::InvalidArgument => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn etcdctl_works_over_loopback_whatever_is_advertised() {
    let mut us = Cluster::with_shop("us-east", 1);
    let config = us.config();
    let config = config.replace(&format!("https://127.0.0.1:{}", us.port), "https://api.example:2379");
    us.write_config(&config.replace("listen: 127.0.0.1:", "listen: \"[::]:").replacen(
        &format!("{}\n", us.port),
        &format!("{}\"\n", us.port),
        1,
    ));
    us.start(&[]).await;
    let user = hawser_pki::UserName::parse("bob").unwrap();
    let admin = us.ca.issue_admin(&user, crate::cluster::now()).unwrap();
    fs::write(us.path("admin.crt"), admin.cert.pem()).unwrap();
    fs::write(us.path("admin.key"), admin.key_pem).unwrap();
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("https://{host}:{}", us.port));
        command.arg("--cacert").arg(us.path("pki/ca.crt"));
        command.arg("--cert").arg(us.path("admin.crt")).arg("--key").arg(us.path("admin.key"));
        let output = command.args(["get", "cilium/cluster-config/us-east", "--keys-only"]).output();
        let output = output.expect("etcdctl is installed (Debian: etcd-client)");
        assert!(output.status.success(), "{host}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("cilium/cluster-config/us-east"),
            "{host}: {output:?}"
        );
    }
}
