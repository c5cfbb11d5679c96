//! `hawser connect --cilium` and `hawser cilium config`: a cluster on Cilium described, and the files it mounts to read this one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hawser_api::admin::{CiliumCluster, CiliumConfigRequest, ConnectRequest, HostAlias};
use hawser_pki::{CILIUM_FILE_MAX, CiliumConfig};

use crate::args::{CiliumArgs, Global};
use crate::connection::{admin, answer};
use crate::mesh::{connected, small};
use crate::output::{Refused, line, replace};

pub(crate) async fn connect(
    global: &Global,
    file: &Path,
    args: &CiliumArgs,
    dry_run: bool,
    bypass: bool,
) -> Result<()> {
    let cluster = describe(file, args)?;
    let name = cluster.name.clone();
    let request = ConnectRequest {
        bundle: String::new(),
        policy_bypass_accepted: bypass,
        dry_run,
        cilium: Some(cluster),
    };
    let reply = answer(admin(global).await?.connect(request).await)?;
    connected(dry_run, &reply)?;
    line(&format!("fingerprint {}", reply.ca_fingerprint))?;
    line(&format!("compare it with {name}'s: openssl x509 -noout -fingerprint -sha256 -in ca.crt"))?;
    match &args.out {
        Some(dir) if !dry_run => write(global, &name, dir).await,
        _ => line(&format!(
            "next: hawser cilium config --for {name} --out DIR   what {name} mounts to read this cluster"
        )),
    }
}

fn describe(path: &Path, args: &CiliumArgs) -> Result<CiliumCluster> {
    let fix = "name Cilium's client configuration of that cluster, a key of its Secret cilium-clustermesh";
    let config = CiliumConfig::read(&small(path, fix)?)
        .map_err(|error| Refused(format!("{}: {error}. fix: {fix}", path.display())))?;
    let name = match (&args.name, path.file_name()) {
        (Some(name), _) => name.clone(),
        // As Cilium names a cluster: by its file.
        (None, Some(name)) => name.to_string_lossy().into_owned(),
        (None, None) => {
            return Err(Refused(format!("{} names no cluster. fix: --name", path.display())).into());
        }
    };
    let ca = beside(path, args.ca.as_deref(), config.trusted_ca_file.as_deref(), "--ca")?;
    let ca = ca.ok_or_else(|| {
        Refused(format!(
            "{} names no trusted-ca-file. fix: --ca FILE, the other cluster's CA",
            path.display()
        ))
    })?;
    let certificate = beside(path, args.cert.as_deref(), config.cert_file.as_deref(), "--cert")?;
    let key = beside(path, args.key.as_deref(), config.key_file.as_deref(), "--key")?;
    let alias = |(hostname, ips): (String, Vec<std::net::IpAddr>)| HostAlias {
        hostname,
        ips: ips.iter().map(ToString::to_string).collect(),
    };
    Ok(CiliumCluster {
        name,
        id: args.id.unwrap_or_default(),
        endpoints: config.endpoints.iter().map(ToString::to_string).collect(),
        pod_cidrs: args.pod_cidr.clone(),
        node_cidrs: args.node_cidr.clone(),
        ca,
        certificate: certificate.unwrap_or_default(),
        key: key.unwrap_or_default(),
        server_name: args.server_name.clone().unwrap_or_default(),
        aliases: config.aliases.into_iter().map(alias).collect(),
    })
}

/// The file said, else the one that the config names, else the one of that name beside the config: its path is good in Cilium's
/// pods, and rarely here.
fn beside(config: &Path, said: Option<&Path>, named: Option<&str>, flag: &str) -> Result<Option<String>> {
    let fix = format!("copy it beside {}, or say {flag} FILE", config.display());
    let path = match (said, named) {
        (Some(said), _) => said.to_owned(),
        (None, None) => return Ok(None),
        (None, Some(named)) if Path::new(named).exists() => PathBuf::from(named),
        (None, Some(named)) => {
            let dir = config.parent().unwrap_or(Path::new("."));
            dir.join(Path::new(named).file_name().unwrap_or_default())
        }
    };
    let text = small(&path, &fix)?;
    if text.len() > CILIUM_FILE_MAX {
        return Err(Refused(format!(
            "{} is larger than {CILIUM_FILE_MAX} bytes. fix: {fix}",
            path.display()
        ))
        .into());
    }
    Ok(Some(text))
}

pub(crate) async fn config(global: &Global, reader: Option<&str>, dir: &Path) -> Result<()> {
    write(global, reader.unwrap_or_default(), dir).await
}

async fn write(global: &Global, reader: &str, dir: &Path) -> Result<()> {
    let request = CiliumConfigRequest { for_cluster: reader.to_owned() };
    let reply = answer(admin(global).await?.cilium_config(request).await)?;
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    for file in &reply.files {
        // The server is ours, and a name is still not a way out of the directory.
        let name = Path::new(&file.name).file_name().filter(|name| *name == file.name.as_str());
        let name = name.with_context(|| format!("the server names a file {:?}", file.name))?;
        replace(&dir.join(name), &file.text, file.secret)?;
        line(&format!("wrote {}", dir.join(name).display()))?;
    }
    line(&format!(
        "the certificate is good until {}; nothing renews it there: make it anew before",
        reply.not_after
    ))?;
    let whose = if reader.is_empty() { "here" } else { reader };
    line(&format!(
        "next, {whose}: kubectl -n kube-system create secret generic cilium-clustermesh --from-file={} --dry-run=client -o yaml | kubectl apply -f -",
        dir.display()
    ))?;
    line(
        "(it becomes the whole Secret: put the files of clusters that are mounted already into the directory, too)",
    )
}
