//! `hawser ca`: makes a cluster's CA where there is none, and asks the API server for what only it may give out.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use hawser_api::admin::{BundleRequest, CreateJoinTokenRequest};
use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, Timestamp};
use hawser_pki::{Ca, UserName};

use crate::args::Global;
use crate::connection::{admin, answer};
use crate::output::{Refused, line, write};

/// Offline: the files are the whole effect.
pub(crate) fn init(pki: &Path, cluster: &str, id: u32, user: &str) -> Result<()> {
    let cluster = ClusterName::parse(cluster).map_err(|error| {
        Refused(format!("--cluster: {error}. fix: the name in cluster.yaml, such as us-east"))
    })?;
    ClusterId::new(id, ClusterIdWidth::Bits9).map_err(|error| {
        Refused(format!("--id: {error}. fix: the id in cluster.yaml, which no other cluster of the mesh has"))
    })?;
    let user = UserName::parse(user)
        .ok_or_else(|| Refused(format!("--user {user:?} is not 1 to 32 of a-z, 0-9, '.', '_', '-'")))?;
    for name in ["ca.crt", "ca.key", "admin.crt", "admin.key"] {
        let path = pki.join(name);
        if path.exists() {
            let text = format!(
                "{} exists and is not overwritten. fix: use what is there, or move it away if this cluster starts anew",
                path.display()
            );
            return Err(Refused(text).into());
        }
    }
    let now = Timestamp::from_system(SystemTime::now());
    let ca = Ca::create(&cluster, now)?;
    let admin = ca.issue_admin(&user, now)?;
    std::fs::create_dir_all(pki).with_context(|| format!("{} cannot be made", pki.display()))?;
    // The certificate that others look for is written last: what is there is whole.
    write(&pki.join("ca.key"), &ca.key_pem(), true)?;
    write(&pki.join("admin.key"), &admin.key_pem, true)?;
    write(&pki.join("admin.crt"), &admin.cert.pem(), false)?;
    write(&pki.join("ca.crt"), &ca.cert().pem(), false)?;
    line(&format!("CA of {cluster} (id {id}) in {}", pki.display()))?;
    line(&format!("fingerprint {}", ca.cert().fingerprint()))?;
    line("next: start clustermesh-apiserver, then `hawser ca token --node <name>` for each node")
}

pub(crate) async fn token(global: &Global, node: &str, out: Option<&Path>) -> Result<()> {
    let request = CreateJoinTokenRequest { node: node.to_owned() };
    let reply = answer(admin(global).await?.create_join_token(request).await)?;
    give(out, &reply.join, true)
}

pub(crate) async fn bundle(global: &Global, reader: &str, out: Option<&Path>) -> Result<()> {
    let request = BundleRequest { for_cluster: reader.to_owned() };
    let reply = answer(admin(global).await?.bundle(request).await)?;
    give(out, &reply.bundle, false)?;
    if out.is_some() {
        line(&format!("fingerprint {}", reply.ca_fingerprint))?;
        line(&format!("next: carry it to {reader} and run `hawser connect <file>` there"))?;
    }
    Ok(())
}

fn give(out: Option<&Path>, text: &str, secret: bool) -> Result<()> {
    match out {
        None => line(text.trim_end()),
        Some(path) => {
            write(path, text, secret)?;
            line(&format!("wrote {}", path.display()))
        }
    }
}
