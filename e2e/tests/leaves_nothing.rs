//! However a lab ends, nothing of it is left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::PlaceEntry;
use hawser_e2e::process::run;
use hawser_e2e::{binaries, cgroup, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A lab started as a user would, and what it holds.
struct Up {
    outer: Child,
    pid_namespace: PathBuf,
    networks: Vec<PathBuf>,
    cgroup: PathBuf,
    /// Held open: the lab goes on printing.
    _output: BufReader<ChildStdout>,
}

fn start() -> Result<Up> {
    let mut command = Command::new(binaries::find("hawser-lab")?);
    let mut outer =
        command.args(["topology", "--keep"]).stdout(Stdio::piped()).spawn().context("starting a lab")?;
    let mut output = BufReader::new(outer.stdout.take().context("its output")?);
    let mut line = String::new();
    while !line.starts_with("The lab is up") {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "the lab did not come up: run as root");
    }
    let name = format!("hawser-lab-{}", outer.id());
    let places = fs::read_to_string(binaries::target_dir()?.join("lab").join(&name).join("places.json"))
        .context("places.json")?;
    let places: Vec<PlaceEntry> = serde_json::from_str(&places)?;
    ensure!(places.len() == 1 + 6 + 9, "{} places", places.len());
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let networks = places.iter().map(|place| namespace(place.host_pid, "net")).collect::<Result<_, _>>()?;
    Ok(Up {
        pid_namespace: namespace(places[0].host_pid, "pid")?,
        networks,
        cgroup: cgroup::mount_point()?.join(name),
        outer,
        _output: output,
    })
}

/// Processes that are in one of these namespaces.
fn inhabitants(kind: &str, namespaces: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let link = fs::read_link(entry.path().join("ns").join(kind));
        if link.is_ok_and(|link| namespaces.contains(&link)) {
            found.push(entry.file_name().display().to_string());
        }
    }
    Ok(found)
}

/// What a machine has that a lab could leave behind, but for processes and cgroups.
fn furniture() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let rules = run(Command::new("iptables-save").arg("-t").arg("filter"))?;
    let rules =
        rules.lines().filter(|line| line.starts_with("-A") || line.starts_with("-P")).collect::<String>();
    let links = run(Command::new("ip").args(["-o", "link"]))?;
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().count();
    let files = Path::new("/etc/hawser").exists() || Path::new("/var/lib/hawser").exists();
    Ok(vec![mounts, rules, links.lines().count().to_string(), named.to_string(), files.to_string()])
}

fn nothing_is_left(up: &Up, before: &[String]) -> Result<()> {
    wait::until("every process of the lab is gone", Duration::from_secs(10), || {
        let processes = inhabitants("pid", std::slice::from_ref(&up.pid_namespace))?;
        ensure!(processes.is_empty(), "alive: {processes:?}");
        let processes = inhabitants("net", &up.networks)?;
        ensure!(processes.is_empty(), "in its networks: {processes:?}");
        Ok(())
    })?;
    let after = furniture()?;
    ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
    Ok(())
}

#[test]
fn a_runner_that_is_killed_leaves_nothing_but_cgroups_and_the_next_removes_those() -> Result<()> {
    let before = furniture()?;
    let mut up = start()?;
    ensure!(!inhabitants("pid", std::slice::from_ref(&up.pid_namespace))?.is_empty(), "nobody is in the lab");
    up.outer.kill()?;
    up.outer.wait()?;
    nothing_is_left(&up, &before)?;
    let status = Command::new(binaries::find("hawser-lab")?).args(["inside", "--", "true"]).status()?;
    ensure!(status.success(), "the next lab: {status}");
    ensure!(!up.cgroup.exists(), "{} is still there", up.cgroup.display());
    Ok(())
}

#[test]
fn an_interrupted_runner_leaves_nothing_at_all() -> Result<()> {
    let before = furniture()?;
    let mut up = start()?;
    kill(Pid::from_raw(up.outer.id() as i32), Signal::SIGINT)?;
    let status = up.outer.wait()?;
    ensure!(status.code() == Some(130), "{status}");
    nothing_is_left(&up, &before)?;
    ensure!(!up.cgroup.exists(), "{} is still there", up.cgroup.display());
    Ok(())
}

#[test]
fn killing_pid_1_of_the_lab_ends_the_outer_process_too() -> Result<()> {
    let before = furniture()?;
    let mut up = start()?;
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", up.outer.id()))?;
    let first = children.split_whitespace().next().context("the runner")?.parse()?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    let status = up.outer.wait()?;
    ensure!(status.code() == Some(137), "{status}");
    nothing_is_left(&up, &before)?;
    ensure!(!up.cgroup.exists(), "{} is still there", up.cgroup.display());
    Ok(())
}
