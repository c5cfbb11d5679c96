//! What the loop answers to who asks at the local API: status, plan, services, metrics.

use hawser_api::local::{Operation, PlanReply, StatusReply};
use hawser_ebpf_abi::Reason;
use hawser_tunnels_linux::Driver as _;
use tonic::Status;

use super::{Driver, Now};
use crate::answers;
use crate::causes::chain;
use crate::local_api::Question;
use crate::metrics::Observation;
use crate::reconcile::{Step, preview};

impl Driver {
    fn problems(&self, now: &Now) -> Vec<String> {
        let missing = now.missing.iter().map(|pod| {
            format!("pod {pod} is stated to be on this node, but no route of this node leads to an interface of it")
        });
        let no_uplinks = now.no_uplinks.iter().map(|name| {
            format!("nodePort.devices names {name}, which is no Ethernet device of this node: traffic from outside is kube-proxy's there. fix: name the uplink")
        });
        let missing = missing.chain(no_uplinks);
        let unheard = now.unheard.iter().map(|(cluster, why)| format!("{cluster} cannot be followed: {why}"));
        let others = [
            &now.prober_problem,
            &now.look_problem,
            &now.memory_problem,
            &now.report_problem,
            &now.renewal_problem,
            &now.secrets_problem,
        ];
        missing.chain(unheard).chain(others.into_iter().flatten().cloned()).collect()
    }

    /// The status, with what the engine, the probing task and the kernel have to be asked for.
    fn measured(&self, now: &Now) -> impl Future<Output = StatusReply> + use<> {
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        let mut status = answers::status(&self.agent, self.clock, &self.problems(now));
        let mut stuck = answers::stuck(&self.agent, &now.swept, now.no_sweep.as_deref());
        let ids = answers::node_ids(&self.agent);
        let probes = now.prober.as_ref().map(|(probes, _)| probes.clone());
        let alone = self.sharing.problem();
        async move {
            let probes = match probes {
                Some(probes) => probes.snapshot().await.ok(),
                None => None,
            };
            let kernel =
                move || (tunnels.stats().ok(), datapath.counters().unwrap_or_default(), datapath.no_users());
            let (stats, counters, no_users) = tokio::task::spawn_blocking(kernel).await.unwrap_or_default();
            answers::measure(&mut status, &ids, stats.as_ref(), probes.as_ref());
            answers::lack(&mut status, no_users, alone);
            status.reasons = answers::reasons(&counters, stats.as_ref());
            let is_reset = |reason| matches!(reason, Reason::PodFromReset | Reason::TunnelOutReset);
            stuck.reset =
                counters.iter().filter(|(reason, _)| is_reset(*reason)).map(|(_, packets)| packets).sum();
            status.stuck_connections = Some(stuck);
            status
        }
    }

    /// Takes what it can say from here; what has to be asked elsewhere is asked on the way.
    pub(super) fn answer(&self, question: Question, now: &Now) {
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        match question {
            // Ends the loop, which takes it itself.
            Question::HandOver(_) => {}
            Question::Services(only, reply) => drop(reply.send(answers::services(&self.agent, &only))),
            Question::Status(reply) => {
                let status = self.measured(now);
                tokio::spawn(async move { drop(reply.send(status.await)) });
            }
            Question::Observe(reply) => {
                let (status, meters, reconciled) = (self.measured(now), now.meters.clone(), now.reconciled);
                tokio::spawn(async move {
                    let status = status.await;
                    let maps =
                        tokio::task::spawn_blocking(move || datapath.fills()).await.unwrap_or_default();
                    drop(reply.send(Box::new(Observation { status, meters, maps, reconciled })));
                });
            }
            Question::Plan(reply) if !self.agent.has_plan() => {
                let waits: Vec<_> = self
                    .agent
                    .clusters(self.clock.now())
                    .into_iter()
                    .filter(|cluster| !cluster.synced)
                    .map(|cluster| format!("{}: {}", cluster.cluster.name, cluster.reason))
                    .collect();
                let text = format!("there is no plan before everything is synced ({})", waits.join("; "));
                drop(reply.send(Err(Status::failed_precondition(text))));
            }
            Question::Plan(reply) => {
                let (plan, edge) = (self.agent.plan().clone(), now.edge.clone());
                tokio::task::spawn_blocking(move || {
                    let steps = preview(&plan, &edge, &tunnels, &datapath);
                    let operation = |step: Step| Operation { part: step.part.to_owned(), text: step.text };
                    let answer = steps
                        .map(|steps| PlanReply { operations: steps.into_iter().map(operation).collect() })
                        .map_err(|error| Status::internal(chain(&error)));
                    drop(reply.send(answer));
                });
            }
        }
    }
}
