//! Refusals in etcd's own words: its clients compare these texts.

use super::authorize::Denied;
use super::writer::WriteError;
use hawser_kvstore::{OpError, RangeError};
use tonic::Status;

pub(crate) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

pub(crate) fn empty_key() -> Status {
    Status::invalid_argument("etcdserver: key is not provided")
}

pub(crate) fn key_not_found() -> Status {
    Status::invalid_argument("etcdserver: key not found")
}

pub(crate) fn invalid_sort() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

pub(crate) fn request_too_large() -> Status {
    Status::invalid_argument("etcdserver: request is too large")
}

pub(crate) fn denied(denied: Denied) -> Status {
    Status::permission_denied(denied.sentence)
}

pub(crate) fn range(error: RangeError) -> Status {
    match error {
        RangeError::Compacted { .. } => Status::out_of_range(COMPACTED),
        RangeError::FutureRevision { .. } => {
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
        }
    }
}

pub(crate) fn op(error: OpError) -> Status {
    match error {
        OpError::EmptyKey => empty_key(),
        OpError::ValueProvided => Status::invalid_argument("etcdserver: value is provided"),
        OpError::LeaseProvided => Status::invalid_argument("etcdserver: lease is provided"),
        OpError::KeyNotFound => key_not_found(),
        OpError::DuplicateKey => Status::invalid_argument("etcdserver: duplicate key given in txn request"),
        OpError::TooManyOps { .. } => {
            Status::invalid_argument("etcdserver: too many operations in txn request")
        }
        OpError::LeaseNotFound { .. } => Status::not_found("etcdserver: requested lease not found"),
        OpError::LeaseExists { .. } => Status::failed_precondition("etcdserver: lease already exists"),
        OpError::LeaseTtlTooLarge { .. } => Status::out_of_range("etcdserver: too large lease TTL"),
        OpError::NoSpace { .. } => Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
        OpError::TooManyLeases { .. } => Status::resource_exhausted(error.to_string()),
        OpError::Replica => Status::failed_precondition(error.to_string()),
        OpError::NotReadOnly => Status::internal(error.to_string()),
        OpError::Range(error) => range(error),
    }
}

pub(crate) fn write(error: WriteError) -> Status {
    match error {
        WriteError::Refused(error) => op(error),
        WriteError::Mirror { .. } => Status::failed_precondition(error.to_string()),
        WriteError::Elsewhere(_) => Status::invalid_argument(error.to_string()),
        WriteError::Unavailable(_) => Status::unavailable(error.to_string()),
    }
}
