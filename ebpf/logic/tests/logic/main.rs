//! The kernel programs' decisions, on the host.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod choice;
mod common;
mod enter;
mod gateway;
mod interleaving;
mod mss;
mod nat;
mod packets;
mod pins;
mod reflect;
mod refuse;
mod reset;
mod users;
mod verdicts;
