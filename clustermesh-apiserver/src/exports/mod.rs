//! What each peer is exported: a filter by namespace and label, and the view of the own keyspace that it makes.
//!
//! docs/src/reference/exports.md says what it means to operators.

mod membership;
mod pods;
mod reload;
mod report;
mod text;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use hawser_kvstore::view_id;
use hawser_model::ClusterName;
use hawser_sources::{Expression, Selector};

pub use membership::{Membership, encode_namespace};
pub use reload::follow_file;
pub use report::report;
pub use text::ExportsText;
pub use views::Views;

/// The filters, as `exports:` in cluster.yaml says them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Exports {
    default: Arc<ExportFilter>,
    peers: BTreeMap<ClusterName, Arc<ExportFilter>>,
}

impl Exports {
    pub fn of(&self, peer: &ClusterName) -> &Arc<ExportFilter> {
        self.peers.get(peer).unwrap_or(&self.default)
    }

    /// Where in cluster.yaml, below `exports`, the peer's filter is.
    pub fn place_of(&self, peer: &ClusterName) -> String {
        if self.peers.contains_key(peer) { format!("peers.{peer}") } else { "default".into() }
    }

    fn filters(&self) -> impl Iterator<Item = &Arc<ExportFilter>> {
        self.peers.values().chain([&self.default])
    }

    /// Whose filter is not the same there.
    fn changed(&self, other: &Self) -> Vec<String> {
        let named: BTreeSet<_> = self.named().chain(other.named()).collect();
        let peers = named.into_iter().filter(|peer| self.of(peer) != other.of(peer)).map(ToString::to_string);
        let default = (self.default != other.default).then(|| "default".to_owned());
        peers.chain(default).collect()
    }

    /// The peers with a filter of their own.
    pub fn named(&self) -> impl Iterator<Item = &ClusterName> {
        self.peers.keys()
    }
}

/// What of the cluster a reader is told, beside its nodes and what keeps the mesh together.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ExportFilter {
    pub namespaces: Namespaces,
    /// Of their global services.
    pub services: Selector,
    /// Pods told by address and identity though no exported service has them.
    pub pods: Option<Selector>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Namespaces {
    #[default]
    All,
    Named(BTreeSet<String>),
    Labelled(Selector),
}

impl ExportFilter {
    /// The same filter is the same view, at every replica and after every restart. Count the meaning up when it changes.
    pub fn view(&self) -> u64 {
        view_id(&format!("exports/1 {self}"))
    }
}

impl fmt::Display for ExportFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::All => f.write_str("namespaces: all")?,
            Namespaces::Named(names) if names.is_empty() => f.write_str("namespaces: none")?,
            Namespaces::Named(names) => {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                write!(f, "namespaces: in ({})", names.join(","))?;
            }
            Namespaces::Labelled(selector) => write!(f, "namespaces: with {}", Shown(selector))?,
        }
        write!(f, "; services: {}; pods: ", Shown(&self.services))?;
        match &self.pods {
            None => f.write_str("of exported services"),
            Some(selector) => write!(f, "{}", Shown(selector)),
        }
    }
}

/// As `kubectl -l` writes a selector.
struct Shown<'a>(&'a Selector);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.expressions.is_empty() {
            return f.write_str("all");
        }
        for (at, expression) in self.0.expressions.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match expression {
                Expression::In { key, values } if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Expression::In { key, values } => write!(f, "{key} in ({})", values.join(","))?,
                Expression::NotIn { key, values } => write!(f, "{key} notin ({})", values.join(","))?,
                Expression::Exists { key } => f.write_str(key)?,
                Expression::DoesNotExist { key } => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// Where the exporter tells every replica's views the labels of each namespace.
pub const NAMESPACES: &str = "hawser/private/namespaces/v1/";

pub fn namespace_key(namespace: &str) -> String {
    format!("{NAMESPACES}{namespace}")
}
