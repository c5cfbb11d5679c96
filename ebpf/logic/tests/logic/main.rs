//! The kernel programs' decisions, on the host.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod choice;
mod common;
mod interleaving;
mod mss;
mod packets;
mod pins;
mod reflect;
mod refuse;
mod reset;
mod verdicts;
