//! What can go wrong in a call, sorted by what the caller does about it.

use tonic::{Code, Status};

/// Why a call gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    #[error("the server refused: {} ({:?}){}", .0.message(), .0.code(), causes(.0))]
    Status(Status),
    #[error("the reply has no header with a cluster id: this is not an etcd server")]
    NoHeader,
    #[error("the server closed the stream without an answer")]
    NoAnswer,
}

/// What is below a failed connection; its own message is "transport error" whatever failed.
fn causes(status: &Status) -> String {
    let mut causes = String::new();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !causes.ends_with(&text) && text != status.message() {
            causes.push_str(": ");
            causes.push_str(&text);
        }
        next = cause.source();
    }
    causes
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// What an error means for a reader that wants to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The revision is gone: list again.
    Compacted,
    /// The revision is not there yet: another replica answered, or an older state.
    Future,
    /// The reply was larger than we take: ask for less.
    TooLarge,
    /// Try again later; the text is for people.
    Other(String),
}

impl From<&CallError> for Trouble {
    /// etcd tells its out-of-range errors apart by text alone (`rpctypes/error.go`).
    fn from(error: &CallError) -> Self {
        if let CallError::Status(status) = error
            && status.code() == Code::OutOfRange
        {
            let text = status.message();
            if text.contains("compacted") {
                return Self::Compacted;
            }
            if text.contains("future revision") {
                return Self::Future;
            }
            if text.contains("length too large") {
                return Self::TooLarge;
            }
        }
        Self::Other(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_out_of_range_errors_are_told_apart_by_their_text() {
        let trouble = |text: &str| Trouble::from(&CallError::Status(Status::out_of_range(text)));
        assert_eq!(trouble("etcdserver: mvcc: required revision has been compacted"), Trouble::Compacted);
        assert_eq!(trouble("etcdserver: mvcc: required revision is a future revision"), Trouble::Future);
        let tonic = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert_eq!(trouble(tonic), Trouble::TooLarge);
        let denied = Trouble::from(&CallError::Status(Status::permission_denied("remote-x may not")));
        assert!(matches!(denied, Trouble::Other(text) if text.contains("remote-x may not")));
    }
}
