//! `hawser-lab soak`: rounds of writers, watchers and faults from a seed, each judged by the checker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::check::check;
use super::faults::Fault;
use super::record::{Final, History, Watcher, Write};
use super::story;
use super::watchers::{self, Habits, Position};
use super::world::{ORIGIN, ORIGIN_ID, Store, World};
use super::writers::{self, Stage};
use crate::enclave::Inside;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Chooses writes, moves and faults; without it, one is drawn. What the machine interleaves is not in it.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Rounds are begun for so long.
    #[arg(long, default_value_t = 1.0, conflicts_with = "seconds")]
    pub minutes: f64,
    /// One round with faults for so long.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// The store; without it, rounds take turns.
    #[arg(long, value_enum)]
    pub store: Option<Store>,
}

/// Of a round without its length said.
const ROUND: Duration = Duration::from_secs(45);
const WRITERS: u64 = 4;
const PACE: Duration = Duration::from_millis(12);
/// From the end of all faults until every watcher has everything.
const CATCH_UP: Duration = Duration::from_secs(60);

/// One round.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub number: u32,
    pub seed: u64,
    pub store: Store,
    pub length: Duration,
    /// Instead of faults that a store survives, a disk that lies; with etcd, a watcher that believes what an etcd before
    /// 3.4.25 says of its progress (etcd#15220). The round must be found wanting.
    pub sabotage: bool,
}

/// Exit code 0 only when no round had a violation. Must run inside a lab, before any thread.
pub fn run(options: &Options) -> Result<u8> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(1..1_000_000));
    let until = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let length = options.seconds.map_or(ROUND, Duration::from_secs);
    for number in 0.. {
        let turn = if number % 2 == 0 { Store::Embedded } else { Store::Etcd };
        let store = options.store.unwrap_or(turn);
        round(Round { number, seed: seed + u64::from(number), store, length, sabotage: false })?;
        if options.seconds.is_some() || Instant::now() >= until {
            break;
        }
    }
    Ok(0)
}

/// Builds a world, hurts it, and judges what was recorded. An error tells the story.
pub fn round(round: Round) -> Result<()> {
    let Some(inside) = Inside::current() else { bail!("a soak runs inside `hawser-lab inside`") };
    super::cluster::raise_loopback()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let Round { number, seed, store, length, .. } = round;
    println!("round {number}: seed {seed}, {store:?} store, {} s of faults", length.as_secs());
    let history = runtime.block_on(play(round, &inside))?;
    let counts = history.counts();
    println!(
        "  {} writes acknowledged, {} unknown, {} refused; {} watchers, {} events, {} resumes, {} relists; {} faults",
        counts.acked,
        counts.unknown,
        counts.refused,
        history.watchers.len(),
        counts.events,
        counts.resumes,
        counts.lists,
        history.faults.len() / 2,
    );
    let violations = check(&history);
    if violations.is_empty() {
        println!("  every acknowledged write was seen exactly once and in order by every watcher");
        return Ok(());
    }
    let kept = inside.dir.join(format!("round-{number}-history.txt"));
    std::fs::write(&kept, format!("{history:#?}")).with_context(|| format!("writing {}", kept.display()))?;
    let name =
        clap::ValueEnum::to_possible_value(&store).map(|v| v.get_name().to_owned()).unwrap_or_default();
    bail!(
        "{} violations in round {number}\n{}\nagain: target/debug/hawser-lab soak --seed {seed} --store {name} --seconds {}\n\
         the whole history: {}",
        violations.len(),
        story::tell(&history, &violations),
        length.as_secs(),
        kept.display()
    )
}

/// Who watches, and how far each is.
struct Watching {
    tasks: Vec<JoinHandle<Result<Watcher>>>,
    positions: Vec<(String, Position)>,
    stop: CancellationToken,
}

async fn play(round: Round, inside: &Inside) -> Result<History> {
    let mut rng = StdRng::seed_from_u64(round.seed);
    let mut world = World::build(round.store, inside, round.number).await?;
    let stage = |stop: &CancellationToken, began| Stage {
        began,
        stop: stop.clone(),
        cluster: ORIGIN.to_owned(),
        id: ORIGIN_ID,
    };
    let began = Instant::now();
    let watching = watch(&world, round, |stop| stage(stop, began))?;
    let stop_writing = CancellationToken::new();
    let writers: Vec<JoinHandle<Result<Vec<Write>>>> = (0..WRITERS)
        .map(|n| {
            let doors = world.wired_doors()?;
            let task =
                writers::run(stage(&stop_writing, began), format!("w{n}"), doors, PACE, round.seed * 31 + n);
            Ok(tokio::spawn(task))
        })
        .collect::<Result<_>>()?;
    let faults = match round.sabotage {
        true => sabotage(&mut world, began, round.store).await,
        false => hurt(&mut world, &mut rng, began, round.length).await,
    };
    let healed = world.heal();
    // A little longer, so that what is healed is seen to work.
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop_writing.cancel();
    let mut writes = Vec::new();
    for writer in writers {
        writes.extend(writer.await??);
    }
    writes.sort_by_key(|write| write.began);
    let (faults, ()) = (faults?, healed?);
    world.check_alive()?;
    let acked = |write: &Write| match write.outcome {
        super::record::Outcome::Acked(revision) => Some(revision),
        _ => None,
    };
    let until =
        writes.iter().filter_map(acked).max().context("no write was acknowledged in the whole round")?;
    catch_up(&watching.positions, until).await;
    let finals = read_all(&world, &stage(&watching.stop, began), until).await?;
    watching.stop.cancel();
    let mut watchers = Vec::new();
    for task in watching.tasks {
        watchers.push(task.await??);
    }
    Ok(History { writes, watchers, finals, until, faults })
}

fn watch(world: &World, round: Round, stage: impl Fn(&CancellationToken) -> Stage) -> Result<Watching> {
    let stop = CancellationToken::new();
    let (mut tasks, mut positions) = (Vec::new(), Vec::new());
    let (doors, mirror) = (world.doors()?, world.mirror_door()?);
    let replicas = world.wired_doors()?;
    let everywhere: Vec<_> = world.peer_doors()?.into_iter().chain([mirror.clone()]).collect();
    let habits = |name: &str, doors: Vec<_>, nth: u64| Habits {
        name: name.to_owned(),
        doors,
        trust_progress: true,
        seed: round.seed * 131 + nth,
    };
    let mut followers = vec![
        habits("follower at server 0", vec![doors[0].clone()], 1),
        habits("follower at the mirror", vec![mirror.clone()], 2),
        habits("moving follower", everywhere.clone(), 3),
        habits("follower that moves between replicas", replicas.clone(), 9),
    ];
    for door in world.etcd_doors() {
        let name = format!("follower at {} itself", door.name);
        followers.push(Habits { trust_progress: false, ..habits(&name, vec![door], 4) });
    }
    let mut raw = vec![
        habits("raw watcher at server 0", vec![doors[0].clone()], 5),
        habits("raw watcher at the mirror", vec![mirror], 6),
        habits("moving raw watcher", everywhere, 7),
        habits("raw watcher that moves between replicas", replicas, 10),
    ];
    if round.sabotage && round.store == Store::Etcd {
        raw.push(habits("believer of etcd's progress", world.etcd_doors(), 8));
    }
    let mut start = |habits: Habits, is_raw: bool| {
        let position = Position::default();
        positions.push((habits.name.clone(), Arc::clone(&position)));
        let stage = stage(&stop);
        tasks.push(match is_raw {
            true => tokio::spawn(watchers::raw(stage, habits, position)),
            false => tokio::spawn(watchers::follow(stage, habits, position)),
        });
    };
    followers.into_iter().for_each(|habits| start(habits, false));
    raw.into_iter().for_each(|habits| start(habits, true));
    Ok(Watching { tasks, positions, stop })
}

/// Faults until the time is over, with what was done when.
async fn hurt(
    world: &mut World,
    rng: &mut StdRng,
    began: Instant,
    length: Duration,
) -> Result<Vec<(Duration, String)>> {
    let mut told = Vec::new();
    let mut tell = |what: String| {
        println!("  {:>8.3?} {what}", began.elapsed());
        told.push((began.elapsed(), what));
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    while began.elapsed() < length {
        let fault = Fault::choose(rng, world);
        let second =
            Some(Fault::choose(rng, world)).filter(|other| fault.goes_with(*other) && rng.random_ratio(1, 3));
        for fault in [Some(fault), second].into_iter().flatten() {
            tell(format!("{fault}"));
            fault.begin(world)?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..300))).await;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2200))).await;
        for fault in [Some(fault), second].into_iter().flatten() {
            fault.end(world)?;
            tell(format!("over: {fault}"));
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(300..1500))).await;
        world.check_alive()?;
    }
    Ok(told)
}

async fn sabotage(world: &mut World, began: Instant, store: Store) -> Result<Vec<(Duration, String)>> {
    if store == Store::Etcd {
        // Long enough to move a few times.
        tokio::time::sleep(Duration::from_secs(4)).await;
        return Ok(Vec::new());
    }
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let at = began.elapsed();
    Fault::LyingDisk.begin(world)?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    Fault::LyingDisk.end(world)?;
    // Until there are newer revisions than those that were lost.
    tokio::time::sleep(Duration::from_millis(3000)).await;
    Ok(vec![(at, Fault::LyingDisk.to_string()), (began.elapsed(), "over".to_owned())])
}

/// Waits until every watcher has everything; who does not get there has lost something, and the checker says what.
async fn catch_up(positions: &[(String, Position)], until: i64) {
    let patience = Instant::now() + CATCH_UP;
    let behind = |(_, position): &&(String, Position)| position.load(Ordering::Relaxed) < until;
    while positions.iter().any(|position| behind(&position)) && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, position) in positions.iter().filter(behind) {
        println!("  {name} is at {} and never came to {until}", position.load(Ordering::Relaxed));
    }
}

/// Of every server, once it has everything.
async fn read_all(world: &World, stage: &Stage, until: i64) -> Result<Vec<Final>> {
    let mut doors = world.doors()?;
    doors.push(world.mirror_door()?);
    doors.extend(world.etcd_doors());
    let mut finals = Vec::new();
    for door in doors {
        let patience = Instant::now() + CATCH_UP;
        loop {
            let read = watchers::last_read(stage, &door).await;
            match read {
                Ok(read) if read.revision >= until || Instant::now() > patience => {
                    finals.push(read);
                    break;
                }
                Err(error) if Instant::now() > patience => {
                    return Err(error.context(format!("the last read of {}", door.name)));
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(finals)
}
