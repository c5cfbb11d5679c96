//! The history checker in short: rounds with the real processes and seeded faults, and the faulty disk itself.
//! `make soak` runs it long.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hawser_e2e::history::disk::FaultyDisk;
use hawser_e2e::history::{Round, Store, round};
use hawser_e2e::scenario;

#[test]
fn an_embedded_store_under_faults_loses_doubles_and_reorders_nothing() {
    scenario::run_with_product(|| {
        round(Round {
            number: 0,
            seed: 3,
            store: Store::Embedded,
            length: Duration::from_secs(7),
            sabotage: false,
        })
    });
}

#[test]
fn a_store_in_etcd_under_faults_loses_doubles_and_reorders_nothing() {
    scenario::run_with_product(|| {
        round(Round {
            number: 0,
            seed: 5,
            store: Store::Etcd,
            length: Duration::from_secs(7),
            sabotage: false,
        })
    });
}

#[test]
fn a_disk_that_lies_about_fsync_is_found_out_with_a_story_and_how_to_run_it_again() {
    scenario::run_with_product(|| {
        let sabotage = Round {
            number: 0,
            seed: 7,
            store: Store::Embedded,
            length: Duration::from_secs(4),
            sabotage: true,
        };
        let Err(found) = round(sabotage) else { bail!("acknowledged writes were lost, and nobody noticed") };
        let story = format!("{found:#}");
        ensure!(story.contains("violations in round 0"), "{story}");
        ensure!(story.contains("answered and not done"), "the story names the fault: {story}");
        ensure!(story.contains("again: target/debug/hawser-lab soak --seed 7"), "{story}");
        println!("{story}");
        Ok(())
    });
}

#[test]
fn an_etcd_that_calls_delivered_what_is_not_is_found_out_as_soon_as_somebody_believes_it() {
    scenario::run_with_product(|| {
        let sabotage = Round {
            number: 0,
            seed: 15220,
            store: Store::Etcd,
            length: Duration::from_secs(4),
            sabotage: true,
        };
        let Err(found) = round(sabotage) else {
            bail!("a progress answer of etcd 3.4.23 was never too early")
        };
        let story = format!("{found:#}");
        ensure!(story.contains("overtaken: believer of etcd's progress"), "{story}");
        let others = ["follower", "raw watcher", "moving"].map(|name| format!(": {name}"));
        ensure!(!others.iter().any(|name| story.contains(name)), "only who believes is wrong: {story}");
        Ok(())
    });
}

fn in_a_disk(body: impl FnOnce(&FaultyDisk, &Path) -> Result<()>) -> Result<()> {
    let backing = Path::new("/run/backing");
    let disk = FaultyDisk::mount(backing, Path::new("/run/disk"))?;
    body(&disk, backing)
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn the_faulty_disk_forgets_what_was_not_synced_when_its_power_is_cut() {
    scenario::run(|| {
        in_a_disk(|disk, backing| {
            let path = disk.path.join("log");
            let mut file = File::create(&path)?;
            file.write_all(b"synced")?;
            file.sync_data()?;
            file.write_at(b"SYN", 0)?;
            file.write_all(b" and not")?;
            ensure!(fs::read(&path)? == b"SYNced and not", "a reader sees everything");
            drop(file);
            let forgotten = disk.cut_power(backing)?;
            ensure!(fs::read(&path)? == b"synced", "what was synced is there and nothing else");
            ensure!(forgotten == 8, "{forgotten} bytes were forgotten");
            Ok(())
        })
    });
}

#[test]
fn the_faulty_disk_is_full_or_failing_on_command_and_works_again() {
    scenario::run(|| {
        in_a_disk(|disk, _| {
            let mut file = OpenOptions::new().create_new(true).write(true).open(disk.path.join("log"))?;
            disk.fail_writes(libc::ENOSPC);
            ensure!(errno(file.write_all(&[7; 100])) == Some(libc::ENOSPC), "the disk is full");
            ensure!(file.metadata()?.len() < 100, "and took what fitted");
            disk.works_again();
            file.set_len(0)?;
            file.write_all_at(&[7; 100], 0)?;
            disk.fail_syncs(libc::EIO);
            ensure!(errno(file.sync_data()) == Some(libc::EIO), "a sync fails");
            disk.works_again();
            file.sync_data()?;
            fs::rename(disk.path.join("log"), disk.path.join("other"))?;
            ensure!(fs::read(disk.path.join("other"))? == [7; 100], "nothing else is wrong with it");
            Ok(())
        })
    });
}
