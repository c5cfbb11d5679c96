//! `hawser service`: what this node would answer a connection with.

use anyhow::Result;
use hawser_api::local::{ListServicesRequest, Service, ServicePort};
use serde::Serialize;

use crate::args::{Format, Global};
use crate::connection::{agent, answer};
use crate::output::{Refused, json, line, table};

#[derive(Serialize)]
struct List {
    services: Vec<Service>,
}

async fn ask(global: &Global, service: &str) -> Result<Vec<Service>> {
    let request = ListServicesRequest { service: service.to_owned() };
    Ok(answer(agent(&global.socket).await?.list_services(request).await)?.services)
}

pub(crate) async fn list(global: &Global, format: Format) -> Result<()> {
    let services = ask(global, "").await?;
    if format == Format::Json {
        return json(&List { services });
    }
    if services.is_empty() {
        return line("no global service. hint: annotate a Service with hawser.io/global: \"true\"");
    }
    table(&["SERVICE", "CLUSTER-IP", "AFFINITY", "PORTS", "BACKENDS", "ELIGIBLE"], &rows(&services))
}

fn rows(services: &[Service]) -> Vec<Vec<String>> {
    let row = |service: &Service| {
        let count = |eligible: bool| {
            let backends = service.ports.iter().flat_map(|port| &port.backends);
            backends.filter(|backend| !eligible || backend.eligible).count().to_string()
        };
        vec![
            format!("{}/{}", service.namespace, service.name),
            or_dash(&service.cluster_ips.join(",")),
            service.affinity.clone(),
            or_dash(&service.ports.iter().map(port_text).collect::<Vec<_>>().join(",")),
            count(false),
            count(true),
        ]
    };
    services.iter().map(row).collect()
}

pub(crate) async fn get(global: &Global, name: &str, format: Format) -> Result<()> {
    if name.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return Err(Refused(format!("{name:?} is not namespace/name")).into());
    }
    let Some(service) = ask(global, name).await?.into_iter().next() else {
        let text =
            format!("{name} is no global service here. hint: `hawser service list` shows those that are");
        return Err(Refused(text).into());
    };
    if format == Format::Json {
        return json(&service);
    }
    line(&format!("{name}  affinity {}  shared {}", service.affinity, service.shared))?;
    for (name, value) in &service.wishes {
        line(&format!("{name} {value}"))?;
    }
    line(&format!("cluster IP {}", or_dash(&service.cluster_ips.join(", "))))?;
    for port in &service.ports {
        line("")?;
        line(&format!("port {}", port_text(port)))?;
        let row = |backend: &hawser_api::local::Backend| {
            vec![
                backend.cluster.clone(),
                or_dash(&backend.node),
                format!("{}:{}", backend.address, backend.port),
                backend.health.clone(),
                if backend.eligible { "yes" } else { "no" }.to_owned(),
            ]
        };
        let rows: Vec<_> = port.backends.iter().map(row).collect();
        table(&["CLUSTER", "NODE", "ADDRESS", "HEALTH", "ELIGIBLE"], &rows)?;
    }
    Ok(())
}

fn port_text(port: &ServicePort) -> String {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
    format!("{name}{}/{}", port.port, port.protocol)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}
