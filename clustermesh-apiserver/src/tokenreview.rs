//! A node's agent in Kubernetes is known by its pod: the API server reviews the pod's service account token, and what it
//! says must name our service account and the node that the agent wants to be.

use std::fmt;
use std::time::Duration;

use hawser_model::NodeName;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

/// Whom a token must be for: one that was made for the Kubernetes API, or for anything else, is none of ours.
pub const AUDIENCE: &str = "hawser.io";
/// Kubernetes 1.30 and newer name the node of the pod that a token is bound to (KEP-4193).
const NODE: &str = "authentication.kubernetes.io/node-name";
/// A JWT of a service account is about 1.2 KiB.
const MAX_TOKEN: usize = 16 << 10;
/// Anybody may ask to join: no more than this of it reaches the Kubernetes API at once.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// The service account that agents run as: `agents` in cluster.yaml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAccount {
    namespace: String,
    service_account: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {text:?} is no Kubernetes name; fix: write it as `kubectl get serviceaccount -A` shows it")]
pub struct ParseAccountError {
    field: &'static str,
    text: String,
}

impl AgentAccount {
    pub fn new(namespace: &str, service_account: &str) -> Result<Self, ParseAccountError> {
        for (field, text) in [("namespace", namespace), ("serviceAccount", service_account)] {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
                return Err(ParseAccountError { field, text: text.chars().take(64).collect() });
            }
        }
        Ok(Self { namespace: namespace.into(), service_account: service_account.into() })
    }

    /// As Kubernetes names it among users.
    pub fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }
}

/// Why a token is no proof.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "Kubernetes does not know the token ({reason}); fix: project one for the audience {AUDIENCE} into the agent's pod"
    )]
    NotAuthenticated { reason: String },
    #[error(
        "the token is not for the audience {AUDIENCE} but for {audiences}; fix: set `audience: {AUDIENCE}` in the agent's projected volume"
    )]
    Audience { audiences: String },
    #[error(
        "the token is {user}'s, and agents of this cluster are {wanted}; fix: run the agent as that service account, or correct `agents` in cluster.yaml"
    )]
    Account { user: String, wanted: String },
    #[error(
        "the token is bound to no node; fix: project it into a pod (Kubernetes 1.30 or newer), or join with `hawser ca token`"
    )]
    NoNode,
    #[error(
        "the token is of a pod on node {bound}, and node {asked} was asked for; fix: set the agent's `node` from spec.nodeName"
    )]
    OtherNode { bound: String, asked: NodeName },
}

#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "the service account token is {len} bytes long or no token at all; fix: give the file of a projected volume"
    )]
    NoToken { len: usize },
    /// It costs nothing to ask again.
    #[error("Kubernetes cannot review the token now: {reason}")]
    Unavailable { reason: String },
    #[error("too many nodes are joining at once; ask again in a moment")]
    Busy,
    #[error(
        "Kubernetes does not let this API server review tokens: {reason}; fix: allow `create` on tokenreviews.authentication.k8s.io"
    )]
    NotAllowed { reason: String },
}

/// Asks Kubernetes whose a token is.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    agents: AgentAccount,
    places: Semaphore,
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer").field("agents", &self.agents).finish_non_exhaustive()
    }
}

impl Reviewer {
    pub fn new(client: Client, agents: AgentAccount) -> Self {
        Self { reviews: Api::all(client), agents, places: Semaphore::new(AT_ONCE) }
    }

    /// Whether the token proves to be that node's agent. Cost: one request to Kubernetes.
    pub async fn review(&self, token: &str, node: &NodeName) -> Result<(), ReviewError> {
        let len = token.len();
        // Three parts of base64url: what is none is not worth a request.
        let jwt = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if len > MAX_TOKEN || !token.bytes().all(jwt) || token.split('.').count() != 3 {
            return Err(ReviewError::NoToken { len });
        }
        let _place = self.places.try_acquire().map_err(|_| ReviewError::Busy)?;
        let spec = TokenReviewSpec { token: token.into(), audiences: Some(vec![AUDIENCE.into()]) };
        let review = TokenReview { spec, ..Default::default() };
        let params = PostParams::default();
        let asked = tokio::time::timeout(PATIENCE, self.reviews.create(&params, &review)).await;
        let reviewed = match asked {
            Err(_) => {
                let reason = format!("no answer within {} s", PATIENCE.as_secs());
                return Err(ReviewError::Unavailable { reason });
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                return Err(ReviewError::NotAllowed { reason: bounded(&status.message) });
            }
            Ok(Err(error)) => return Err(ReviewError::Unavailable { reason: bounded(&error.to_string()) }),
            Ok(Ok(reviewed)) => reviewed,
        };
        Ok(judge(&reviewed.status.unwrap_or_default(), &self.agents, node)?)
    }
}

/// What the review says, held against what is asked for.
fn judge(status: &TokenReviewStatus, agents: &AgentAccount, node: &NodeName) -> Result<(), Refusal> {
    if status.authenticated != Some(true) {
        let reason = bounded(status.error.as_deref().unwrap_or("not authenticated"));
        return Err(Refusal::NotAuthenticated { reason });
    }
    // An authenticator that knows no audiences leaves them out; then the token is for the Kubernetes API itself.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        let audiences = if audiences.is_empty() { "the Kubernetes API".into() } else { audiences.join(", ") };
        return Err(Refusal::Audience { audiences: bounded(&audiences) });
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    let wanted = agents.username();
    if name != wanted {
        return Err(Refusal::Account { user: bounded(name), wanted });
    }
    let bound = user.and_then(|user| user.extra.as_ref()?.get(NODE));
    match bound.map(Vec::as_slice) {
        Some([bound]) if bound == node.as_str() => Ok(()),
        Some([bound]) => Err(Refusal::OtherNode { bound: bounded(bound), asked: node.clone() }),
        // None, or several, which nobody can be.
        _ => Err(Refusal::NoNode),
    }
}

fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn agents() -> AgentAccount {
        AgentAccount::new("hawser-system", "hawser-node-agent").unwrap()
    }

    fn good() -> TokenReviewStatus {
        TokenReviewStatus {
            audiences: Some(vec![AUDIENCE.into()]),
            authenticated: Some(true),
            error: None,
            user: Some(UserInfo {
                username: Some(agents().username()),
                extra: Some(BTreeMap::from([(NODE.to_owned(), vec!["node-1".to_owned()])])),
                ..Default::default()
            }),
        }
    }

    fn judged(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<(), String> {
        let mut status = good();
        change(&mut status);
        let node = NodeName::parse("node-1").unwrap();
        judge(&status, &agents(), &node).map_err(|refusal| refusal.to_string())
    }

    fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
        status.user.as_mut().unwrap()
    }

    #[test]
    fn only_our_agent_on_that_very_node_is_believed() {
        assert_eq!(judged(|_| {}), Ok(()));
        let node = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Some(BTreeMap::from([(NODE.to_owned(), names)]))
        };
        let refused = |change: fn(&mut TokenReviewStatus), says: &str| {
            let said = judged(change).unwrap_err();
            assert!(said.contains(says) && said.contains("fix: "), "{said}");
        };
        refused(|s| s.authenticated = None, "does not know the token");
        refused(
            |s| {
                s.authenticated = Some(false);
                s.error = Some("[invalid bearer token, service account token has expired]".into());
            },
            "service account token has expired",
        );
        refused(|s| s.audiences = None, "for the Kubernetes API");
        refused(|s| s.audiences = Some(vec!["vault".into()]), "but for vault");
        refused(|s| user(s).username = Some("system:serviceaccount:shop:default".into()), "shop:default's");
        refused(|s| s.user = None, "the token is 's");
        refused(|s| user(s).extra = None, "bound to no node");
        for (names, says) in
            [(&["node-2"][..], "on node node-2"), (&[], "no node"), (&["node-1", "node-2"], "no node")]
        {
            let said = judged(|s| user(s).extra = node(names)).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }
}
