//! The datapath in this machine's kernel, in namespaces of the tests' own. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod behind;
mod device;
mod economics;
mod edge;
mod gateway;
mod host;
mod loader;
mod nat;
mod node;
mod object;
mod packet;
mod reflect;
mod refuse;
mod reset;
mod sockets;
mod too_big;
mod udp;
mod uplink;
mod users;
mod wire;
mod world;
