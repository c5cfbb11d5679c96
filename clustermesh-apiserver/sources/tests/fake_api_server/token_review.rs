//! TokenReview as a Kubernetes API server answers it, for tokens that the test made known.

use serde_json::{Value, json};

/// What a service account token says of its pod.
#[derive(Clone)]
pub struct FakeToken {
    pub username: String,
    pub audiences: Vec<String>,
    /// Kubernetes 1.30 and newer say it.
    pub node: Option<String>,
    pub expired: bool,
}

impl super::Inner {
    pub(super) fn review(&self, review: &Value) -> Value {
        let text = review["spec"]["token"].as_str().unwrap_or_default();
        let wanted: Vec<&str> =
            review["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let status = match self.tokens.get(text) {
            None => json!({ "user": {}, "error": "invalid bearer token" }),
            Some(token) if token.expired => {
                json!({ "user": {}, "error": "[invalid bearer token, service account token has expired]" })
            }
            Some(token) => {
                let audiences: Vec<&String> =
                    token.audiences.iter().filter(|audience| wanted.contains(&audience.as_str())).collect();
                if audiences.is_empty() {
                    let error = format!(
                        "[invalid bearer token, token audiences {:?} is invalid for the target audiences {wanted:?}]",
                        token.audiences
                    );
                    json!({ "user": {}, "error": error })
                } else {
                    let mut extra = json!({
                        "authentication.kubernetes.io/credential-id": ["JTI=7ee52be0-9045-4653-aa5e-0da57b8dccdc"],
                        "authentication.kubernetes.io/pod-name": ["hawser-node-agent-x7k2p"],
                        "authentication.kubernetes.io/pod-uid": ["3b9a3ad3-1d70-4b4e-a2f9-0d8ab6a4f7e1"],
                    });
                    if let Some(node) = &token.node {
                        extra["authentication.kubernetes.io/node-name"] = json!([node]);
                    }
                    json!({
                        "authenticated": true,
                        "audiences": audiences,
                        "user": {
                            "username": token.username,
                            "uid": "2b9a3ad3-1d70-4b4e-a2f9-0d8ab6a4f7e1",
                            "groups": ["system:serviceaccounts", "system:authenticated"],
                            "extra": extra,
                        },
                    })
                }
            }
        };
        json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": { "creationTimestamp": null }, "spec": review["spec"], "status": status,
        })
    }
}
