//! The ways in: a join file with a one-time token, or the service account token of the agent's own pod.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use hawser_api::agent::JoinRequest;
use hawser_model::{ClusterName, ServerUrl};
use hawser_pki::{CaSet, JoinFile, Token};

use crate::config::{Config, Join, PodJoin};

/// What a projected token may be long; the API server takes no longer ones.
const MAX_TOKEN: u64 = 16 << 10;

/// Whom to ask, whom to believe, and what to show.
#[derive(Debug)]
pub(crate) struct Way {
    pub cluster: ClusterName,
    /// As far as it is known before somebody answers.
    pub cluster_id: Option<u32>,
    pub servers: Vec<ServerUrl>,
    pub ca: CaSet,
    proof: Proof,
    /// What a person does about a refusal.
    pub fix: String,
}

#[derive(Debug)]
enum Proof {
    Token(Token),
    /// Read anew for each asking: the kubelet replaces it long before it expires.
    Pod(PathBuf),
}

impl Way {
    pub(crate) fn of(config: &Config) -> Result<Self> {
        match &config.join {
            Join::File(path) => Self::of_file(config, path),
            Join::Pod(pod) => Self::of_pod(pod),
        }
    }

    fn of_file(config: &Config, path: &std::path::Path) -> Result<Self> {
        let (shown, node) = (path.display(), &config.node);
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "this node is no member yet and {shown} cannot be read. fix: `hawser ca token --node {node} -o join.yaml`, \
                 and bring it here"
            )
        })?;
        let file = JoinFile::from_yaml(&text).with_context(|| format!("reading {shown}"))?;
        if file.node != *node {
            bail!(
                "{shown} is for node {}, but this agent is node {node}. fix: bring the join file that was made for this node",
                file.node
            );
        }
        Ok(Self {
            cluster: file.cluster.name,
            cluster_id: Some(file.cluster.id.get().into()),
            servers: file.servers,
            ca: file.ca,
            proof: Proof::Token(file.token),
            fix: format!(
                "a token is for one node, one use and 24 hours; make a new one with `hawser ca token --node {node} -o {shown}`"
            ),
        })
    }

    fn of_pod(pod: &PodJoin) -> Result<Self> {
        let shown = pod.ca.display();
        let text = std::fs::read_to_string(&pod.ca).with_context(|| {
            format!("this node is no member yet and join.ca {shown} cannot be read. fix: mount the cluster's ca.crt there")
        })?;
        let ca = CaSet::from_pem(&text).with_context(|| format!("reading {shown}"))?;
        let name = ca.newest().name().to_owned();
        let cluster = name.strip_prefix("CN=ca-").and_then(|name| ClusterName::parse(name).ok());
        let cluster = cluster.ok_or_else(|| {
            anyhow!("{shown} is the CA {name:?}, not one of a cluster. fix: mount the ca.crt that `hawser ca init` wrote")
        })?;
        Ok(Self {
            cluster,
            cluster_id: None,
            servers: pod.servers.clone(),
            ca,
            proof: Proof::Pod(pod.token.clone()),
            fix: "see that the pod runs as the service account of `agents` in cluster.yaml, with its token projected for \
                  the audience hawser.io, and `node` set from spec.nodeName"
                .into(),
        })
    }

    /// With the proof alone.
    pub(crate) fn request(&self) -> Result<JoinRequest> {
        let path = match &self.proof {
            Proof::Token(token) => return Ok(JoinRequest { token: token.reveal(), ..Default::default() }),
            Proof::Pod(path) => path,
        };
        let fix = "fix: project a service account token for the audience hawser.io there";
        let read = || -> std::io::Result<String> {
            if path.metadata()?.len() > MAX_TOKEN {
                return Err(std::io::Error::other("it is too long for a token"));
            }
            std::fs::read_to_string(path)
        };
        let token = read().with_context(|| format!("reading {}. {fix}", path.display()))?;
        let service_account_token = token.trim().to_owned();
        if service_account_token.is_empty() {
            bail!("{} is empty. {fix}", path.display());
        }
        Ok(JoinRequest { service_account_token, ..Default::default() })
    }
}

#[cfg(test)]
mod tests {
    use hawser_pki::Ca;

    use super::*;
    use crate::clock;

    /// An agent's directory with a token and a CA, and its configuration.
    fn pod(token: &str, ca: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("token"), token).unwrap();
        std::fs::write(path("ca.crt"), ca).unwrap();
        let text = format!(
            "join: {{ serviceAccountToken: {}, servers: [\"https://127.0.0.1:1\"], ca: {} }}",
            path("token"),
            path("ca.crt")
        );
        let config = Config::parse(&text, &dir.path().join("agent.yaml"), "node-1").unwrap();
        (dir, config)
    }

    fn ca() -> String {
        let name = ClusterName::parse("us-east").unwrap();
        Ca::create(&name, clock::wall()).unwrap().cert().pem()
    }

    #[test]
    fn a_pods_way_knows_its_cluster_by_the_ca_and_shows_the_token_of_now() {
        let (dir, config) = pod("a.first.one\n", &ca());
        let way = Way::of(&config).unwrap();
        assert_eq!((way.cluster.as_str(), way.cluster_id), ("us-east", None));
        let request = way.request().unwrap();
        assert_eq!((request.service_account_token.as_str(), request.token.as_str()), ("a.first.one", ""));
        std::fs::write(dir.path().join("token"), "a.second.one").unwrap();
        assert_eq!(way.request().unwrap().service_account_token, "a.second.one", "the kubelet replaced it");
        for (token, says) in [(String::new(), "is empty"), ("x".repeat(20_000), "too long")] {
            std::fs::write(dir.path().join("token"), token).unwrap();
            let said = crate::causes::chain(&way.request().unwrap_err());
            assert!(said.contains(says) && said.contains("fix: "), "{said}");
        }
    }

    #[test]
    fn a_ca_that_is_no_clusters_is_refused() {
        let (_dir, config) = pod("a.b.c", "no PEM");
        assert!(Way::of(&config).is_err());
        let (dir, config) = pod("a.b.c", &ca());
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let said = crate::causes::chain(&Way::of(&config).unwrap_err());
        assert!(said.contains("join.ca") && said.contains("fix: mount"), "{said}");
    }
}
