//! Traffic of which every packet is counted, while keys change.

use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_tunnels::Keyring;

use crate::node::mesh_v4;
use crate::world::World;

/// Secrets of these epochs, each another one.
pub(crate) fn keyring(epochs: &[u8]) -> Keyring {
    let line = |epoch: &u8| format!("{epoch} {}\n", format!("{epoch:02x}").repeat(32));
    Keyring::parse(&epochs.iter().map(line).collect::<String>()).unwrap()
}

/// Numbered datagrams, from one node to the other and back, while `body` runs: none of them is missing.
pub(crate) fn nothing_is_lost_while(world: &World, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let there = world.b.inside(|| UdpSocket::bind((mesh_v4(2), 0)).unwrap());
    let here = world.a.inside(|| UdpSocket::bind((mesh_v4(1), 0)).unwrap());
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let (from, to) = (here.local_addr().unwrap(), there.local_addr().unwrap());
    let stopped = || stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut data = [0; 4];
            while there.recv(&mut data).is_ok() {
                there.send_to(&data, from).unwrap();
                if data == [0xff; 4] {
                    break;
                }
            }
        });
        let ask = scope.spawn(|| {
            let mut number = 0_u32;
            while !stopped() {
                number += 1;
                here.send_to(&number.to_be_bytes(), to).unwrap();
                let mut back = [0; 4];
                here.recv(&mut back).unwrap_or_else(|_| panic!("packet {number} is lost"));
                assert_eq!(u32::from_be_bytes(back), number);
            }
            here.send_to(&[0xff; 4], to).unwrap();
            number
        });
        let done = catch_unwind(AssertUnwindSafe(body));
        stop.store(true, Ordering::Relaxed);
        assert!(ask.join().unwrap() > 50, "there was traffic");
        echo.join().unwrap();
        done.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Between what one end states and when the other hears of it, traffic goes on.
pub(crate) fn a_while() {
    std::thread::sleep(Duration::from_millis(200));
}
