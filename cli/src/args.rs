//! The command line: verbs, flags, and help with examples.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "hawser",
    version,
    about = "Moors Kubernetes clusters together",
    disable_help_subcommand = true,
    after_help = "\
Examples, on a node of us-east:
  hawser ca init --cluster us-east --id 1         the cluster's CA, once
  hawser ca token --node node-1 -o join.yaml      lets one node's agent in, once
  hawser ca bundle --for eu-west -o to-eu.yaml    what eu-west needs to know of us-east
  hawser connect from-eu.yaml                     admit eu-west by its bundle
  hawser status                                   clusters, nodes, tunnels, services
  hawser export list                              what each peer may read of this cluster
  hawser service get shop/cart                    who answers for a service, and who may be chosen now

Exit codes: 0 done, 1 failed, 64 bad arguments or refused before anything was changed."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Global {
    /// The cluster's API server; of several replicas, with commas between them, the first that is reached
    #[arg(
        long,
        global = true,
        env = "HAWSER_SERVER",
        default_value = "https://127.0.0.1:2379",
        value_name = "URL[,URL...]"
    )]
    pub(crate) server: String,
    /// Where ca.crt, admin.crt and admin.key are
    #[arg(long, global = true, env = "HAWSER_PKI", default_value = "/etc/hawser/pki", value_name = "DIR")]
    pub(crate) pki: PathBuf,
    /// The node agent's socket
    #[arg(
        long,
        global = true,
        env = "HAWSER_SOCKET",
        default_value = "/run/hawser/agent.sock",
        value_name = "PATH"
    )]
    pub(crate) socket: PathBuf,
}

/// Of the verbs that answer with data; the verbs that write a file use `-o` for its name.
#[derive(Debug, ClapArgs)]
pub(crate) struct Shape {
    /// Tables for people, JSON for programs
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// The cluster's certificate authority: who is let in
    Ca {
        #[command(subcommand)]
        verb: CaVerb,
    },
    /// The secret of a mesh that encrypts with IPsec: made, and changed without a packet lost
    #[command(after_help = "\
The file is the one that agent.yaml names as ipsecSecret, the same on every node of every cluster. These verbs only write it;
bringing it to the nodes is yours, and agents follow it.

Examples:
  hawser ipsec secret -o ipsec.secret       the first secret, once
  hawser ipsec rotate ipsec.secret          the next one beside it; carry the file to every node
  hawser status                             on every node: `sends by epoch 2 alone`
  hawser ipsec retire ipsec.secret          the old one goes; carry the file to every node again")]
    Ipsec {
        #[command(subcommand)]
        verb: IpsecVerb,
    },
    /// Admit another cluster by its bundle; everything is checked before anything is changed
    #[command(after_help = "\
Both sides connect. On us-east:   hawser ca bundle --for eu-west -o us-east.yaml   (carry the file to eu-west)
On eu-west:                       hawser connect us-east.yaml
and the same the other way round. Compare the fingerprints by voice.

A cluster on Cilium gives no bundle. FILE is its client configuration (of its Secret cilium-clustermesh, or made by
`cilium clustermesh`), the files that it names lie beside it, and the rest is said:
  hawser connect --cilium ./c1 --id 7 --pod-cidr 10.7.0.0/16 --node-cidr 172.16.7.0/24 --out ./for-c1
--out writes what c1 mounts to read this cluster, as `hawser cilium config --for c1` does.")]
    Connect {
        /// The other cluster's bundle, made there with `hawser ca bundle --for <this cluster>`
        #[arg(required_unless_present = "cilium", conflicts_with = "cilium")]
        bundle: Option<PathBuf>,
        /// In place of a bundle: the client configuration of a cluster on Cilium
        #[arg(long, value_name = "FILE", requires_all = ["id", "pod_cidr", "node_cidr"])]
        cilium: Option<PathBuf>,
        #[command(flatten)]
        on_cilium: CiliumArgs,
        /// Check and say what would happen, change nothing
        #[arg(long)]
        dry_run: bool,
        /// Understood: mesh traffic does not pass the CNI's NetworkPolicy
        #[arg(long)]
        policy_bypass_accepted: bool,
    },
    /// Let a cluster go: services drain first, then tunnels and routes
    #[command(after_help = "Example:\n  hawser disconnect eu-west")]
    Disconnect {
        /// The cluster's name
        cluster: String,
    },
    /// Clusters, nodes, tunnels, services, and what is wrong
    #[command(after_help = "\
Asks the API server (--server, --pki) and this node's agent (--socket); a half that is not here is said in a line.

Examples:
  hawser status
  hawser status -o json | jq '.agent.tunnels[] | {node, lastHandshakeMsAgo, rttUs}'")]
    Status(Shape),
    /// Global services as this node sees them
    Service {
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// What each peer may read of this cluster, and what stays home
    Export {
        #[command(subcommand)]
        verb: ExportVerb,
    },
    /// The operations that this node's next reconcile would do; none when all is as it should be
    #[command(after_help = "Example:\n  hawser plan -o json | jq '.operations | length'")]
    Plan(Shape),
    /// Clusters on Cilium that read this one
    Cilium {
        #[command(subcommand)]
        verb: CiliumVerb,
    },
    /// This program's version
    Version,
}

/// Of a cluster on Cilium, what its client configuration does not say.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "With --cilium")]
pub(crate) struct CiliumArgs {
    /// Its cluster id
    #[arg(long, requires = "cilium")]
    pub(crate) id: Option<u32>,
    /// Its name; without it that of FILE, as Cilium has it
    #[arg(long, requires = "cilium")]
    pub(crate) name: Option<String>,
    /// What its pods may use; may be said several times
    #[arg(long, requires = "cilium", value_name = "CIDR")]
    pub(crate) pod_cidr: Vec<String>,
    /// What its nodes may use; may be said several times
    #[arg(long, requires = "cilium", value_name = "CIDR")]
    pub(crate) node_cidr: Vec<String>,
    /// Its CA, in place of the trusted-ca-file
    #[arg(long, requires = "cilium", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// The certificate to show it, in place of the cert-file; without either our own, `remote-<this cluster>`
    #[arg(long, requires = "key", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key, in place of the key-file
    #[arg(long, requires = "cert", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// What its server's certificate has to name, in place of the host that is dialled
    #[arg(long, requires = "cilium", value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// Write what it mounts to read this cluster
    #[arg(long, short, requires = "cilium", value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CiliumVerb {
    /// What Cilium mounts to read this cluster: client configuration, CA, certificate and key, named as Cilium's Helm chart does
    #[command(after_help = "\
Every time it is said a new certificate is made, good for a year. Cilium's agents take a changed Secret over by themselves.

Examples:
  hawser cilium config --for c1 --out ./for-c1   another cluster, connected with `hawser connect --cilium`
  hawser cilium config --local --out ./here      Cilium in this cluster, which reads all connected ones (cachedLayout: true)")]
    Config {
        /// The connected cluster on Cilium
        #[arg(
            long = "for",
            value_name = "CLUSTER",
            required_unless_present = "local",
            conflicts_with = "local"
        )]
        for_cluster: Option<String>,
        /// For Cilium's agents in this very cluster
        #[arg(long)]
        local: bool,
        /// The directory to write into
        #[arg(long, short, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Make the cluster's CA and the first admin certificate; never overwrites one
    #[command(after_help = "Example:\n  hawser ca init --cluster us-east --id 1")]
    Init {
        /// 1 to 32 lower-case letters, digits and '-'
        #[arg(long)]
        cluster: String,
        /// 1 to 511, unique in the mesh (255 unless the mesh is wide)
        #[arg(long)]
        id: u32,
        /// Whose admin certificate: CN `admin-USER`
        #[arg(long, default_value = "root")]
        user: String,
    },
    /// A join file for one node: a token that works once, for 24 hours
    #[command(
        after_help = "Example:\n  hawser ca token --node node-1 -o join.yaml   (carry it to /etc/hawser/join.yaml there)"
    )]
    Token {
        /// The Node object's name
        #[arg(long)]
        node: String,
        /// Write here, mode 0600, instead of to standard output
        #[arg(short, long = "out", value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Another CA in the place of this one, without a connection dropped
    #[command(after_help = "\
Goes through its phases by itself and waits in each until everybody has taken it: prepare (the new CA is trusted beside the
old one), issue (the new one signs, every certificate is made anew), retire (the old one is no longer trusted). Peers follow by
themselves. Killed or timed out, it goes on where it was when it is said again. Run it where the server's `pki` directory is.

For a CA key that somebody stole, do not rotate: make a new CA and connect the clusters anew.

Examples:
  hawser ca rotate
  hawser ca rotate --status -o json | jq '.members[] | select(.lacks != \"\")'
  hawser ca rotate --abandon agent/node-3 --abandon peer/eu-west
  hawser ca rotate --abort")]
    Rotate(RotateArgs),
    /// This admin's certificate anew, or a directory for another admin
    #[command(after_help = "\
Offline: needs ca.crt and ca.key in --pki. An admin's certificate is good for a year and is not renewed by itself.

Examples:
  hawser ca admin                            renews admin.crt for the key that is there
  hawser ca admin --user bob --out ./bob     ca.crt, admin.crt and admin.key for bob, who uses them with --pki")]
    Admin {
        /// Another admin: CN `admin-USER`
        #[arg(long, requires = "out")]
        user: Option<String>,
        /// The directory for it
        #[arg(long, requires = "user", value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// This cluster's public bundle for one other cluster, signed by the CA
    #[command(after_help = "Example:\n  hawser ca bundle --for eu-west -o us-east-for-eu-west.yaml")]
    Bundle {
        /// The cluster that will read it
        #[arg(long = "for", value_name = "CLUSTER")]
        for_cluster: String,
        /// Write here instead of to standard output
        #[arg(short, long = "out", value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IpsecVerb {
    /// A first secret
    #[command(after_help = "Example:\n  hawser ipsec secret -o ipsec.secret")]
    Secret {
        /// Write here, mode 0600, instead of to standard output
        #[arg(short, long = "out", value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Another secret beside the one that is there
    #[command(after_help = "Example:\n  hawser ipsec rotate ipsec.secret")]
    Rotate {
        /// The file that agent.yaml names as ipsecSecret
        file: PathBuf,
        #[command(flatten)]
        shape: Shape,
    },
    /// Lets the older of two secrets go
    #[command(after_help = "Example:\n  hawser ipsec retire ipsec.secret")]
    Retire {
        /// The file that agent.yaml names as ipsecSecret
        file: PathBuf,
        #[command(flatten)]
        shape: Shape,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RotateArgs {
    /// Say where it stands and whom it waits for, change nothing
    #[arg(long)]
    pub(crate) status: bool,
    /// Back to the old CA; possible until `retire`
    #[arg(long, conflicts_with = "status")]
    pub(crate) abort: bool,
    /// Do not wait for this one, which has to join or be connected anew: agent/NODE, peer/CLUSTER, replica/NAME
    #[arg(long, value_name = "KIND/NAME")]
    pub(crate) abandon: Vec<String>,
    /// When the wait is over, go on without those that are not there
    #[arg(long)]
    pub(crate) force: bool,
    /// How long to wait in each phase, seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    wait: u64,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

impl RotateArgs {
    pub(crate) fn timeout(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.wait)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportVerb {
    /// Every peer, its filter, and how much of what there is it sees
    #[command(after_help = "\
The filters are `exports:` in the API server's cluster.yaml; without it every peer reads the global services, the pods behind
them, their identities, and the nodes.

Examples:
  hawser export list
  hawser export list -o json | jq '.peers[] | {peer, view, hidden: .endpoints.hidden}'")]
    List(Shape),
    /// One peer: its filter in words, and each global service with whether it is exported
    #[command(after_help = "\
Examples:
  hawser export show eu-west
  hawser export show eu-west -o json | jq -r '.services[] | select(.visible | not) | .service'")]
    Show {
        /// The peer's name
        peer: String,
        #[command(flatten)]
        shape: Shape,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// All of them
    List(Shape),
    /// One, with every backend and whether a new connection may go there now
    #[command(after_help = "Example:\n  hawser service get shop/cart")]
    Get {
        /// namespace/name
        service: String,
        #[command(flatten)]
        shape: Shape,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
