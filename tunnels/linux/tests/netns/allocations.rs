//! Nothing is allocated for a packet: counted in a process by itself, this one again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::esp;
use crate::node::{connected, mesh_v4};
use crate::world::World;

const ALONE: &str = "HAWSER_TEST_COUNTS_ALLOCATIONS";

static COUNT: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Four times a second the timers list the peers, two in each engine; and the kernel's answers grow no buffer of ours.
const BESIDE: u64 = 2000;

#[test]
fn packets_are_carried_without_an_allocation() {
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--exact", "allocations::the_process_that_counts", "--nocapture"]).env(ALONE, "1");
    assert!(alone.status().unwrap().success());
}

/// The body of [`packets_are_carried_without_an_allocation`]. Beside other tests it has nothing to count.
#[test]
fn the_process_that_counts() {
    if std::env::var(ALONE).is_err() {
        return;
    }
    let world = World::new();
    let (one, two) = connected(&world.a, &world.b);
    carries_without_an_allocation(&world, || one.stats().peers[&two.driver.public_key()].tx_bytes);
    let world = World::new();
    let (one, two) = esp::connected(&world.a, &world.b);
    carries_without_an_allocation(&world, || one.stats().peers[&two.driver.public_key()].tx_bytes);
}

/// `sent` is what the engine says that it has sent.
fn carries_without_an_allocation(world: &World, sent: impl Fn() -> u64) {
    let listener = world.b.inside(|| TcpListener::bind(SocketAddr::new(mesh_v4(2), 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let mut stream = world.a.inside(|| TcpStream::connect(at).unwrap());
    let (mut there, _) = listener.accept().unwrap();
    let socket = world.b.inside(|| UdpSocket::bind(SocketAddr::new(mesh_v4(2), 0)).unwrap());
    let sender = world.a.inside(|| UdpSocket::bind(SocketAddr::new(mesh_v4(1), 0)).unwrap());
    sender.connect(socket.local_addr().unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    let mut buffer = vec![7; 1 << 16];
    let mut carry = |bytes: usize, datagrams: usize| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sink = vec![0; 1 << 16];
                let mut left = bytes;
                while left > 0 {
                    left -= there.read(&mut sink).unwrap();
                }
            });
            for _ in 0..bytes / buffer.len() {
                stream.write_all(&buffer).unwrap();
            }
        });
        for _ in 0..datagrams {
            sender.send(&[9; 100]).unwrap();
            socket.recv(&mut buffer[..]).expect("one by one, every datagram arrives");
        }
    };
    // What grows with the largest batch has grown.
    carry(16 << 20, 500);
    let (before, count) = (sent(), COUNT.load(Ordering::Relaxed));
    carry(64 << 20, 4000);
    let allocated = COUNT.load(Ordering::Relaxed) - count;
    assert!(sent() - before > 64 << 20);
    // 49,000 segments of TCP, their acknowledgements and 4,000 datagrams were sealed and opened meanwhile.
    assert!(allocated < BESIDE, "{allocated} allocations");
}
