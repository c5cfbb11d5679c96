//! WireGuard and IPsec in the kernel. Needs a kernel that has them, so `make test-vm` runs this in QEMU on Debian's; elsewhere it fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy.toml exempts only inside #[test]")]
#![expect(dead_code, reason = "the user-space engine's tests use the rest of these helpers")]

mod esp;
#[path = "../netns/flow.rs"]
mod flow;
mod in_udp;
mod ipsec;
mod kernel;
#[path = "../netns/node.rs"]
mod node;
#[path = "../netns/world.rs"]
mod world;
