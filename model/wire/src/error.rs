//! Why a value was refused: the key, the field, the reason.

use std::fmt;

use hawser_model::{
    IdentityError, ParseClusterError, ParseLabelsError, ParseNodeError, ParseRoutingError,
    ParseServerUrlError, ParseServiceError, ParseSliceError, ParseTimestampError,
};

/// A malformed value, or one that speaks for something its key does not name. It is skipped, counted and shown; it never
/// blocks the rest of the keyspace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {fault}")]
pub struct DecodeError {
    pub key: String,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As written in the value, dots between parts; empty for the value as a whole.
    pub field: String,
    pub reason: Reason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "the value {}", self.reason),
            field => write!(f, "field {field}: {}", self.reason),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("is of a kind this codec does not read")]
    NoCodec,
    #[error("is not base64")]
    Base64,
    #[error("is {len} bytes long, more than {max}")]
    TooLarge { len: usize, max: usize },
    #[error("has {count} entries, more than {max}")]
    TooMany { count: usize, max: usize },
    #[error("is not UTF-8")]
    Utf8,
    #[error("is not the JSON it should be: {message}")]
    Json { message: String },
    #[error("is missing or empty")]
    Missing,
    #[error("says {found:?}, but {by} says {expected:?}")]
    Differs { found: String, expected: String, by: &'static str },
    #[error("appears twice: {text:?}")]
    Duplicate { text: String },
    #[error("{text:?} is not an IP address in its one spelling")]
    Address { text: String },
    #[error("{text:?} is not a CIDR of its family")]
    Cidr { text: String },
    #[error("is not 32 bytes in base64")]
    PublicKey,
    #[error("{number} is out of range {min}..={max}")]
    OutOfRange { number: u64, min: u64, max: u64 },
    #[error("identity {id} is not in the range of cluster {cluster}")]
    ForeignIdentity { id: u32, cluster: String },
    #[error("the cluster label says {found:?}, not {expected:?} with source k8s")]
    ForeignLabels { found: Option<String>, expected: String },
    #[error("export mode {text:?} is unknown; the cluster is newer than this one or broken")]
    ExportMode { text: String },
    #[error("address type {text:?} is neither IPv4 nor IPv6")]
    AddressType { text: String },
    #[error("{text:?} is none of {of}")]
    Word { text: String, of: &'static str },
    #[error("does not decompress: {message}")]
    Zstd { message: String },
    #[error("is not the protobuf it should be: {message}")]
    Protobuf { message: String },
    #[error(transparent)]
    Cluster(#[from] ParseClusterError),
    #[error(transparent)]
    Node(#[from] ParseNodeError),
    #[error(transparent)]
    Service(#[from] ParseServiceError),
    #[error(transparent)]
    Slice(#[from] ParseSliceError),
    #[error(transparent)]
    Labels(#[from] ParseLabelsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Routing(#[from] ParseRoutingError),
    #[error(transparent)]
    Server(#[from] ParseServerUrlError),
    #[error(transparent)]
    Time(#[from] ParseTimestampError),
}

impl Reason {
    /// Says where it happened.
    pub(crate) fn at(self, field: impl Into<String>) -> Fault {
        Fault { field: field.into(), reason: self }
    }
}

/// Hostile text is quoted, but not all of it.
pub(crate) fn short(text: &str) -> String {
    const KEEP: usize = 160;
    match text.char_indices().nth(KEEP) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// The nested field `outer.inner`, bounded.
pub(crate) fn within(outer: &str, inner: &str) -> String {
    format!("{outer}.{}", short(inner))
}
