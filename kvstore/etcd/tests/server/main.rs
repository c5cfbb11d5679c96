//! The server under its real clients: Debian's `etcdctl`, tonic clients, and bytes that mean nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test; clippy exempts only test functions, not their helpers"
)]

mod as_etcd;
mod bytes_that_mean_nothing;
mod choosing;
mod etcdctl;
mod harness;
mod unread_watcher;
mod views;
mod watching;
