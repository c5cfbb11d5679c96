//! Join tokens: `hwt1.<id>.<secret>`, one node, one use, a day. Stored as a hash, so a stolen store joins nobody.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_model::{NodeName, Timestamp};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const VERSION: &str = "hwt1";
const ID_BYTES: usize = 9;
const SECRET_BYTES: usize = 32;

/// What the agent holds. Shown once, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// 12 characters of base64url: the key that it is stored under.
    id: String,
    secret: [u8; SECRET_BYTES],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.…", self.id)
    }
}

impl Token {
    pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

    pub fn create(rng: &mut impl CryptoRng) -> Self {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rng.fill_bytes(&mut id);
        rng.fill_bytes(&mut secret);
        Self { id: URL_SAFE_NO_PAD.encode(id), secret }
    }

    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim_end().split('.');
        let (Some(VERSION), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let bytes = |text: &str, len: usize| {
            // Decoding is not reached by anything longer than what fits.
            let fits = text.len() == (len * 8).div_ceil(6);
            fits.then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten().ok_or(TokenError::Malformed)
        };
        bytes(id, ID_BYTES)?;
        let secret = bytes(secret, SECRET_BYTES)?;
        Ok(Self { id: id.to_owned(), secret: secret.try_into().map_err(|_| TokenError::Malformed)? })
    }

    /// The last part of its key under `hawser/private/`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token. For the join file, and nowhere else.
    pub fn reveal(&self) -> String {
        format!("{VERSION}.{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }

    /// What is stored for it.
    pub fn stored(&self, node: NodeName, now: Timestamp) -> StoredToken {
        StoredToken { node, hash: Sha256::digest(self.secret).into(), expires: now.plus(Self::LIFETIME) }
    }
}

/// What the API server keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredToken {
    pub node: NodeName,
    hash: [u8; 32],
    pub expires: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    node: String,
    hash: String,
    expires: String,
}

impl StoredToken {
    /// `{"node","hash","expires"}`
    pub fn to_json(&self) -> Vec<u8> {
        let stored = Stored {
            node: self.node.to_string(),
            hash: URL_SAFE_NO_PAD.encode(self.hash),
            expires: self.expires.to_string(),
        };
        serde_json::to_vec(&stored).expect("a struct of strings always prints")
    }

    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenError> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|_| TokenError::Stored)?;
        let hash = URL_SAFE_NO_PAD.decode(&stored.hash).map_err(|_| TokenError::Stored)?;
        Ok(Self {
            node: NodeName::parse(&stored.node).map_err(|_| TokenError::Stored)?,
            hash: hash.try_into().map_err(|_| TokenError::Stored)?,
            expires: Timestamp::parse(&stored.expires).map_err(|_| TokenError::Stored)?,
        })
    }

    /// Whether the presented token is this one, for this node, still. The secret is compared by hash and in constant
    /// time, and first: whoever does not hold it learns nothing else. Burning it is the caller's transaction.
    pub fn verify(&self, presented: &Token, node: &NodeName, now: Timestamp) -> Result<(), TokenError> {
        let hash = Sha256::digest(presented.secret);
        if verify_slices_are_equal(&hash, &self.hash).is_err() {
            return Err(TokenError::Unknown { id: presented.id.clone() });
        }
        if self.node != *node {
            return Err(TokenError::OtherNode { bound: self.node.clone(), node: node.clone() });
        }
        if now > self.expires {
            return Err(TokenError::Expired { node: node.clone(), expires: self.expires, now });
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is not hwt1.<id>.<secret>; fix: copy the whole join file again")]
    Malformed,
    #[error("what is stored for the join token is not readable")]
    Stored,
    #[error(
        "join token {id} is unknown here or was used already; fix: `hawser ca token --node <node>` at its cluster"
    )]
    Unknown { id: String },
    #[error(
        "the join token is bound to node {bound}, not to {node}; fix: `hawser ca token --node {node}`, or set `node: {bound}`"
    )]
    OtherNode { bound: NodeName, node: NodeName },
    #[error(
        "the join token of node {node} expired at {expires}, and it is {now}; fix: `hawser ca token --node {node}`"
    )]
    Expired { node: NodeName, expires: Timestamp, now: Timestamp },
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
