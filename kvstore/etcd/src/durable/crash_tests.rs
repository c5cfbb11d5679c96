//! The log on a disk that lies: no crash, no full disk and no failed sync loses what was acknowledged.

use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fault::{Fault, FaultDisk};
use super::frame::Tail;
use super::{AppendError, Disk, Log, OpenError, write_snapshot};

const LINEAGE: u64 = 0x5eed;

/// The state a test keeps: all records ever applied, as one list of numbers.
type State = Vec<u64>;

fn to_bytes(state: &[u64]) -> Bytes {
    state.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A record is its number, padded so that frames cross sectors.
fn record(n: u64) -> Bytes {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(8 + (n as usize * 37) % 700, 0xab);
    bytes.into()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn open(disk: &FaultDisk) -> Result<(Log, State), OpenError> {
    let (log, found) = Log::open(Arc::new(disk.clone()), || (LINEAGE, Bytes::new()))?;
    assert_eq!(found.lineage, LINEAGE);
    let mut state: State = found.snapshot.chunks(8).map(number).collect();
    state.extend(found.records.iter().map(|r| number(r)));
    Ok((log, state))
}

/// What the writers know.
#[derive(Clone, Debug, Default)]
struct Knowledge {
    acknowledged: State,
    /// A batch whose outcome nobody was told.
    unknown: State,
}

impl Knowledge {
    fn agrees_with(&self, found: &[u64]) -> bool {
        let Some(rest) = found.strip_prefix(self.acknowledged.as_slice()) else { return false };
        rest.is_empty() || rest == self.unknown
    }
}

/// Writes batches, now and then a snapshot, until done or the disk stops.
fn work(disk: &FaultDisk, log: &mut Log, known: &mut Knowledge, rng: &mut StdRng, batches: u32) {
    for _ in 0..batches {
        let first = known.acknowledged.len() as u64;
        let batch: State = (first..first + rng.random_range(1..4)).collect();
        let records: Vec<Bytes> = batch.iter().map(|n| record(*n)).collect();
        match log.append(&records) {
            Ok(_) => known.acknowledged.extend(batch),
            Err(AppendError::Write { .. }) if !disk.stopped() => {}
            Err(_) => {
                known.unknown = batch;
                return;
            }
        }
        if rng.random_bool(0.25)
            && let Ok(at) = log.rotate()
        {
            let _ = write_snapshot(disk, LINEAGE, at, &to_bytes(&known.acknowledged));
        }
    }
}

#[test]
fn a_crash_at_every_point_loses_no_acknowledged_write() {
    for seed in 0..60 {
        let operations = {
            let disk = FaultDisk::new(seed);
            let (mut log, _) = open(&disk).unwrap();
            work(&disk, &mut log, &mut Knowledge::default(), &mut StdRng::seed_from_u64(seed), 12);
            disk.operations()
        };
        for crash in 1..=operations {
            let mut disk = FaultDisk::new(seed);
            disk.fault(crash, Fault::Crash);
            let mut known = Knowledge::default();
            let mut rng = StdRng::seed_from_u64(seed);
            if let Ok((mut log, _)) = open(&disk) {
                work(&disk, &mut log, &mut known, &mut rng, 12);
            }
            // Three lives, each ending in a crash while it recovers or works.
            for life in 0..3 {
                disk = disk.after_crash(seed * 1000 + crash * 3 + life);
                let (mut log, found) =
                    open(&disk).unwrap_or_else(|e| panic!("seed {seed}, crash {crash}, life {life}: {e}"));
                assert!(
                    known.agrees_with(&found),
                    "seed {seed}, crash {crash}, life {life}: {known:?} {found:?}"
                );
                known = Knowledge { acknowledged: found, unknown: State::new() };
                disk.fault(disk.operations() + rng.random_range(1..20), Fault::Crash);
                work(&disk, &mut log, &mut known, &mut rng, 8);
            }
        }
    }
}

#[test]
fn a_crash_while_recovering_loses_nothing_either() {
    for seed in 0..100 {
        let disk = FaultDisk::new(seed);
        let mut known = Knowledge::default();
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut log, _) = open(&disk).unwrap();
        disk.fault(disk.operations() + rng.random_range(1..30), Fault::Crash);
        work(&disk, &mut log, &mut known, &mut rng, 30);
        for step in 1..8 {
            let again = disk.after_crash(seed);
            again.fault(step, Fault::Crash);
            let first = open(&again);
            let again = again.after_crash(seed + step);
            let (_, found) = open(&again).unwrap();
            assert!(known.agrees_with(&found), "seed {seed}, step {step}");
            if let Ok((_, first)) = first {
                assert_eq!(first, found, "a batch that was once recovered stays");
            }
        }
    }
}

#[test]
fn a_full_disk_fails_the_write_loudly_and_the_next_one_works() {
    for seed in 0..200 {
        let disk = FaultDisk::new(seed);
        let (mut log, _) = open(&disk).unwrap();
        let mut known = Knowledge::default();
        let mut rng = StdRng::seed_from_u64(seed);
        work(&disk, &mut log, &mut known, &mut rng, 3);
        disk.fault(disk.operations() + 1, Fault::NoSpace);
        let failed = log.append(&[record(999)]);
        assert!(matches!(failed, Err(AppendError::Write { .. })), "{failed:?}");
        work(&disk, &mut log, &mut known, &mut rng, 3);
        let (_, found) = open(&disk.after_crash(seed)).unwrap();
        assert_eq!(found, known.acknowledged, "seed {seed}: the failed write is not there, the others are");
    }
}

#[test]
fn full_disks_and_crashes_in_any_order_lose_no_acknowledged_write() {
    for seed in 0..3000 {
        let disk = FaultDisk::new(seed);
        let (mut log, _) = open(&disk).unwrap();
        let mut known = Knowledge::default();
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..6 {
            disk.fault(disk.operations() + rng.random_range(1..40), Fault::NoSpace);
        }
        disk.fault(disk.operations() + rng.random_range(20..60), Fault::Crash);
        work(&disk, &mut log, &mut known, &mut rng, 40);
        let (_, found) = open(&disk.after_crash(seed)).unwrap();
        assert!(known.agrees_with(&found), "seed {seed}: {known:?} {found:?}");
    }
}

#[test]
fn after_a_failed_sync_the_store_refuses_writes_until_restarted_and_then_has_all_it_acknowledged() {
    for seed in 0..200 {
        let disk = FaultDisk::new(seed);
        let (mut log, _) = open(&disk).unwrap();
        let mut known = Knowledge::default();
        let mut rng = StdRng::seed_from_u64(seed);
        work(&disk, &mut log, &mut known, &mut rng, 5);
        disk.fault(disk.operations() + 2, Fault::Io);
        known.unknown = vec![known.acknowledged.len() as u64];
        let failed = log.append(&[record(known.unknown[0])]);
        assert!(matches!(failed, Err(AppendError::Stopped { .. })), "{failed:?}");
        assert!(matches!(log.append(&[record(1)]), Err(AppendError::Stopped { .. })));
        assert!(log.rotate().is_err());
        drop(log);

        let disk = disk.after_restart();
        let (mut log, found) = open(&disk).unwrap();
        assert!(known.agrees_with(&found), "seed {seed}");
        let mut known = Knowledge { acknowledged: found, unknown: State::new() };
        work(&disk, &mut log, &mut known, &mut rng, 3);
        let (_, found) = open(&disk.after_crash(seed)).unwrap();
        assert_eq!(found, known.acknowledged, "seed {seed}: what the page cache pretended was written again");
    }
}

#[test]
fn damage_in_the_middle_is_refused_with_the_file_the_place_and_what_to_do() {
    let disk = FaultDisk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    for n in 0..5 {
        log.append(&[record(n)]).unwrap();
    }
    let name = "log-00000000000000000001";
    disk.flip(name, 60 * 8);
    let before = disk.read(name).unwrap();
    let said = open(&disk).unwrap_err().to_string();
    assert!(
        said.contains(name)
            && said.contains("from byte 60 on")
            && said.contains("clustermesh-apiserver repair"),
        "{said}"
    );
    assert_eq!(disk.read(name).unwrap(), before, "nothing was changed");
}

#[test]
fn a_missing_log_between_two_others_is_refused() {
    let disk = FaultDisk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    for n in 0..3 {
        log.append(&[record(n)]).unwrap();
        log.rotate().unwrap();
    }
    log.append(&[record(3)]).unwrap();
    disk.remove("log-00000000000000000002").unwrap();
    let said = open(&disk).unwrap_err().to_string();
    assert!(said.contains("frame 3 where 2 is due"), "{said}");
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let disk = FaultDisk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    log.append(&[record(0)]).unwrap();
    let at = log.rotate().unwrap();
    write_snapshot(&disk, LINEAGE, at, &to_bytes(&[0])).unwrap();
    disk.flip("snapshot-00000000000000000001", 40 * 8);
    let said = open(&disk).unwrap_err().to_string();
    assert!(said.contains("snapshot-00000000000000000001 fails its checksum"), "{said}");
}

#[test]
fn a_snapshot_lets_the_log_before_it_go() {
    let disk = FaultDisk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    for n in 0..10 {
        log.append(&[record(n)]).unwrap();
    }
    let at = log.rotate().unwrap();
    log.append(&[record(10)]).unwrap();
    write_snapshot(&disk, LINEAGE, at, &to_bytes(&(0..10).collect::<Vec<_>>())).unwrap();
    assert_eq!(disk.list().unwrap(), ["log-00000000000000000011", "snapshot-00000000000000000010"]);
    assert_eq!(open(&disk).unwrap().1, (0..11).collect::<Vec<_>>());
}

#[test]
fn a_torn_tail_is_cut_and_reported() {
    let disk = FaultDisk::new(1);
    let (mut log, _) = open(&disk).unwrap();
    log.append(&[record(0)]).unwrap();
    let name = "log-00000000000000000001";
    let len = disk.read(name).unwrap().len();
    disk.open(name).unwrap().write_at(len as u64, &[0x48; 77]).unwrap();
    let (_, found) = Log::open(Arc::new(disk.clone()), || (LINEAGE, Bytes::new())).unwrap();
    assert_eq!((found.cut, found.records.len()), (Some(77), 1));
    assert_eq!(disk.read(name).unwrap().len(), len);
    assert!(matches!(super::frame::scan(LINEAGE, &disk.read(name).unwrap().into(), 28).tail, Tail::Clean));
}
