//! The client half against real servers: following, mirrors, and the own keyspace kept in a real etcd.

mod etcd_store;
mod following;
mod harness;
mod mirrors;
