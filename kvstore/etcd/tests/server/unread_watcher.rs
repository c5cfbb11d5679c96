//! One watcher is left unread while a million events pass. It costs a cursor; the others do not notice.

use crate::harness::{TestServer, memory};
use crate::watching::{Watching, from};
use hawser_etcd::server::AllowAll;
use hawser_kvstore::{Limits, Op, Put};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const READERS: usize = 3;
const HISTORY_BYTES: usize = 16 << 20;
const VALUE: usize = 256;
/// The writer never runs further ahead of the slowest reader, or it would be the history's bound that is measured.
const WINDOW: u64 = 4096;

/// Reads until `count` events came, every one in its order, and gives the delays from write to read in microseconds.
async fn read(mut watching: Watching, count: u64, seen: Arc<AtomicU64>, epoch: Instant) -> Vec<u32> {
    let mut delays = Vec::new();
    let mut expected = 0;
    while expected < count {
        let response = watching.next().await;
        assert!(!response.canceled, "a reader that reads is never canceled: {response:?}");
        let now = epoch.elapsed();
        for event in response.events {
            let value = event.kv.unwrap().value;
            let number = u64::from_be_bytes(value[..8].try_into().unwrap());
            let written = Duration::from_nanos(u64::from_be_bytes(value[8..16].try_into().unwrap()));
            assert_eq!(number, expected, "an event was lost, doubled or moved");
            expected += 1;
            delays.push(u32::try_from(now.saturating_sub(written).as_micros()).unwrap_or(u32::MAX));
        }
        seen.store(expected, Ordering::Release);
    }
    delays
}

/// Writes `count` events past `READERS` readers and gives their median and p99 delay.
async fn pass(server: &TestServer, count: u64) -> (u32, u32) {
    let epoch = Instant::now();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut watching = Watching::open(server).await;
        watching.create(from("event/", 0)).await;
        let seen = Arc::new(AtomicU64::new(0));
        readers.push((Arc::clone(&seen), tokio::spawn(read(watching, count, seen, epoch))));
    }
    for number in 0..count {
        while readers.iter().any(|(seen, _)| seen.load(Ordering::Acquire) + WINDOW < number) {
            assert!(!readers.iter().any(|(_, reader)| reader.is_finished()), "a reader ended early");
            tokio::task::yield_now().await;
        }
        let mut value = vec![0; VALUE];
        value[..8].copy_from_slice(&number.to_be_bytes());
        let nanos = u64::try_from(epoch.elapsed().as_nanos()).unwrap();
        value[8..16].copy_from_slice(&nanos.to_be_bytes());
        let key = format!("event/{}", number % 1000);
        server.own().writer().write(Op::Put(Put::new(key, value))).await.unwrap();
    }
    let mut delays = Vec::new();
    for (_, reader) in readers {
        delays.extend(reader.await.unwrap());
    }
    delays.sort_unstable();
    (delays[delays.len() / 2], delays[delays.len() / 100 * 99])
}

fn resident_mib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages / 256
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_events_pass_a_watcher_that_does_not_read() {
    let limits = Limits { history_bytes: HISTORY_BYTES, ..Limits::default() };
    let server = TestServer::serving(memory("us-east", limits), Arc::new(AllowAll)).await;
    let before = pass(&server, 100_000).await;

    let mut unread = Watching::open(&server).await;
    unread.create(from("event/", 0)).await;
    let (resident, ranges) = (resident_mib(), server.own().stats().ranges);
    let during = pass(&server, 1_000_000).await;

    let (events, bytes) = server.own().keyspace().read(|keyspace| keyspace.history_size());
    println!("others' delay without an unread watcher: median {} us, p99 {} us", before.0, before.1);
    println!("others' delay with one:                  median {} us, p99 {} us", during.0, during.1);
    println!("history: {events} events, {} KiB; resident {resident} -> {} MiB", bytes >> 10, resident_mib());
    assert!(bytes <= HISTORY_BYTES, "the history holds {bytes} bytes");
    assert_eq!(server.own().stats().ranges, ranges);

    // What was on its way is still delivered, in order; then it is told where it may start again.
    let mut next = 0;
    let ended = loop {
        let response = unread.next().await;
        if response.canceled {
            break response;
        }
        for event in response.events {
            let value = event.kv.unwrap().value;
            assert_eq!(u64::from_be_bytes(value[..8].try_into().unwrap()), next);
            next += 1;
        }
    };
    println!("the unread watcher had {next} events on their way");
    assert!(next < 200_000, "an unread watcher holds no queue, but {next} events came");
    assert!(ended.compact_revision > 0);
    assert_eq!(server.own().stats().fell_behind, 1);
    let again = unread.create(from("event/", ended.compact_revision)).await;
    assert!(again.created && !again.canceled);
}
