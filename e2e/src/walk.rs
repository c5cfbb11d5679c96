//! `hawser-lab topology`: the bare lab, shown with plain tools.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::Lab;
use crate::plan::{LabPlan, POD_PORT};
use crate::pod::client::Request;

/// Builds the lab without the product and shows what can and cannot be reached in it.
pub fn topology(keep: bool) -> Result<u8> {
    let start = Instant::now();
    let lab = Lab::build(LabPlan::standard())?;
    println!("topology of {} up in {:.1} s", lab.inside.name, start.elapsed().as_secs_f32());
    let client = lab.clusters[0].pod("client");
    for cluster in &lab.clusters {
        for (node, pod) in cluster.plan.pods().filter(|(_, pod)| pod.serves) {
            let target = format!("{}:{POD_PORT}", pod.address);
            let request = Request::to(&target).requests(1).timeout(Duration::from_millis(500));
            let report = client.ask(&request)?;
            let seen = match report.all_ok() {
                Ok(()) => "reached".to_owned(),
                Err(error) => error.to_string(),
            };
            println!(
                "  {} -> {}/{}/{} {target}: {seen}",
                client.place.name(),
                cluster.plan.name,
                node.name,
                pod.name
            );
        }
    }
    if keep {
        stay(&lab);
    }
    Ok(0)
}

/// Prints how to get in, and leaves the lab up until the outer process is told to end.
pub fn stay(lab: &Lab) -> ! {
    let owner = owner(lab);
    // Another lab may be up too, or come up later.
    let enter = format!("target/debug/hawser-lab enter --lab {owner}");
    println!("\nThe lab is up. Ctrl-C here tears it down, and so does: kill {owner}");
    println!("  in a pod:    {enter} us-east/node-1/client");
    println!("  on a node:   {enter} us-east/node-1 hawser status");
    println!("  maps there:  {enter} us-east/node-1 bpftool map show");
    let client = lab.clusters[0].pod("client");
    println!(
        "  without it:  nsenter -t {} -a   (the cgroup's programs do not apply to that shell)",
        client.place.host_pid()
    );
    println!("  logs:        {}", lab.inside.dir.display());
    loop {
        nix::unistd::pause();
    }
}

fn owner(lab: &Lab) -> &str {
    lab.inside.name.rsplit('-').next().unwrap_or_default()
}
