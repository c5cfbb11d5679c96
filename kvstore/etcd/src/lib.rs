//! The etcd v3 API over `hawser-kvstore`: a server of many keyspaces, a client, a durable log, mirrors.

pub mod client;
pub mod clock;
pub mod durable;
pub mod limits;
pub mod mirror;
pub mod pb;
pub mod server;
pub mod store;
