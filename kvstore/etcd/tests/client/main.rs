//! The client half against real servers: following, mirrors, and the own keyspace kept in a real etcd.
#![allow(
    clippy::unwrap_used,
    reason = "a test that unwraps reads better than one that explains why it may not"
)]

mod etcd_history;
mod etcd_store;
mod etcd_tls;
mod following;
mod foreign;
mod harness;
mod limits;
mod mirrors;
mod restarts;
