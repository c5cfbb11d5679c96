//! Sentences about the product, each in a lab of its own: one executable, as each would link the whole product anew.

mod agent_killed;
mod agent_restarted;
mod agent_stopped;
mod api_server_killed;
mod asymmetric;
mod bad_input;
mod beside_kube_proxy;
mod bulk;
mod certificates;
mod cut_off;
mod disconnect;
mod doors;
mod draining;
mod fail_closed;
mod half_dead;
mod history;
mod host_network;
mod instruments;
mod ipsec;
mod left_out;
mod own_stale;
mod paths;
mod replicas;
mod stuck_connections;
mod topology;
