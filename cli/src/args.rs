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
    /// The cluster's API server
    #[arg(long, global = true, env = "HAWSER_SERVER", default_value = "https://127.0.0.1:2379")]
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
    /// Admit another cluster by its bundle; everything is checked before anything is changed
    #[command(after_help = "\
Both sides connect. On us-east:   hawser ca bundle --for eu-west -o us-east.yaml   (carry the file to eu-west)
On eu-west:                       hawser connect us-east.yaml
and the same the other way round. Compare the fingerprints by voice.")]
    Connect {
        /// The other cluster's bundle, made there with `hawser ca bundle --for <this cluster>`
        bundle: PathBuf,
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
    /// The operations that this node's next reconcile would do; none when all is as it should be
    #[command(after_help = "Example:\n  hawser plan -o json | jq '.operations | length'")]
    Plan(Shape),
    /// This program's version
    Version,
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
