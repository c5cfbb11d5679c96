//! What `deploy/kustomize` renders is what Kubernetes takes, fits together, and is configuration that our binaries read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hawser_e2e::binaries;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

const OVERLAYS: [&str; 2] = ["overlays/etcd", "overlays/single"];
/// What is added when endpoints of other clusters are written back.
const WRITE_BACK: &str = "write-back";
/// And when ServiceExports are read.
const SERVICE_EXPORTS: &str = "service-exports";
const NAMESPACE: &str = "hawser-system";
/// Made by a person before the rest: deploy/README.md.
const BY_HAND: [(&str, &str); 4] = [
    ("Secret", "hawser-pki"),
    ("ConfigMap", "hawser-ca"),
    ("Secret", "hawser-etcd"),
    ("Secret", "hawser-etcd-client"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every object of an overlay, by kind and name.
struct Rendered(BTreeMap<(String, String), Value>);

fn render(overlay: &str) -> Result<Rendered> {
    let dir = root().join("deploy/kustomize").join(overlay);
    let output = Command::new("kubectl").arg("kustomize").arg(&dir).output();
    let output = output.context("kubectl cannot be run\nfix: run `make setup`")?;
    ensure!(output.status.success(), "{overlay}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut objects = BTreeMap::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
        let key = (str_at(&object, "/kind")?.to_owned(), str_at(&object, "/metadata/name")?.to_owned());
        ensure!(objects.insert(key.clone(), object).is_none(), "{overlay}: {key:?} is there twice");
    }
    Ok(Rendered(objects))
}

fn str_at<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {object}"))
}

impl Rendered {
    fn of<'a>(&'a self, kinds: &'a [&str]) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(|((kind, _), _)| kinds.contains(&kind.as_str())).map(|(_, object)| object)
    }

    fn get(&self, kind: &str, name: &str) -> Result<&Value> {
        let found = self.0.get(&(kind.to_owned(), name.to_owned()));
        found.with_context(|| format!("{kind} {name} is referred to, and is not there"))
    }

    fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.of(&["Deployment", "DaemonSet", "StatefulSet"])
    }

    /// Labels of every workload's pods.
    fn pods(&self) -> Vec<(&Map<String, Value>, &Value)> {
        self.workloads()
            .filter_map(|w| {
                Some((
                    w.pointer("/spec/template/metadata/labels")?.as_object()?,
                    w.pointer("/spec/template/spec")?,
                ))
            })
            .collect()
    }

    /// The pods that a selector's labels mean.
    fn selected(&self, labels: &Value) -> Vec<&Value> {
        let wanted = labels.as_object().cloned().unwrap_or_default();
        let pods = self.pods().into_iter();
        pods.filter(|(has, _)| wanted.iter().all(|(key, value)| has.get(key) == Some(value)))
            .map(|(_, pod)| pod)
            .collect()
    }
}

/// Decodes into Kubernetes' own type; what is lost on the way there is a field that Kubernetes does not know.
fn check_type<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(object.clone()).with_context(|| object.to_string())?;
    let back = serde_json::to_value(typed)?;
    let mut unknown = Vec::new();
    lost("", object, &back, &mut unknown);
    ensure!(
        unknown.is_empty(),
        "Kubernetes does not know {unknown:?} of {}",
        str_at(object, "/metadata/name")?
    );
    Ok(())
}

fn lost(path: &str, before: &Value, after: &Value, unknown: &mut Vec<String>) {
    match (before, after) {
        (Value::Null, _) => {}
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}/{key}");
                match after.get(key) {
                    Some(after) => lost(&path, value, after, unknown),
                    // Empty is the same as absent there.
                    None if value.as_object().is_some_and(Map::is_empty) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                lost(&format!("{path}/{index}"), before, after, unknown);
            }
        }
        (before, after) if before == after => {}
        (before, after) => unknown.push(format!("{path}: {before} became {after}")),
    }
}

fn check_schema(object: &Value) -> Result<()> {
    match (str_at(object, "/apiVersion")?, str_at(object, "/kind")?) {
        ("v1", "Namespace") => check_type::<Namespace>(object),
        ("v1", "ServiceAccount") => check_type::<ServiceAccount>(object),
        ("v1", "ConfigMap") => check_type::<ConfigMap>(object),
        ("v1", "Service") => check_type::<Service>(object),
        ("v1", "PersistentVolumeClaim") => check_type::<PersistentVolumeClaim>(object),
        ("apps/v1", "Deployment") => check_type::<Deployment>(object),
        ("apps/v1", "DaemonSet") => check_type::<DaemonSet>(object),
        ("apps/v1", "StatefulSet") => check_type::<StatefulSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check_type::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check_type::<ClusterRoleBinding>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => check_type::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => check_type::<PodDisruptionBudget>(object),
        (version, kind) => bail!("{version} {kind} is not checked; fix: add it to this test"),
    }
}

#[test]
fn every_object_is_one_that_kubernetes_knows_field_by_field() -> Result<()> {
    for overlay in OVERLAYS {
        for object in render(overlay)?.0.values() {
            check_schema(object).with_context(|| overlay.to_owned())?;
            let cluster_wide =
                ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&str_at(object, "/kind")?);
            let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
            ensure!(cluster_wide || namespace == Some(NAMESPACE), "{overlay}: {object} is in {namespace:?}");
        }
    }
    Ok(())
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let service = |spec: Value| {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec});
        check_schema(&object).map_err(|error| error.to_string())
    };
    assert_eq!(service(serde_json::json!({"ports": [{"port": 1, "targetPort": "etcd"}]})), Ok(()));
    let wrong = service(serde_json::json!({"ports": [{"port": 1, "tragetPort": "etcd"}]})).unwrap_err();
    assert!(wrong.contains("/spec/ports/0/tragetPort"), "{wrong}");
}

fn volumes_are_there(rendered: &Rendered, workload: &Value) -> Result<()> {
    let pod = workload.pointer("/spec/template/spec").context("no pod")?;
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut volumes = BTreeSet::new();
    for volume in list("/volumes") {
        volumes.insert(str_at(&volume, "/name")?.to_owned());
        for (kind, pointer) in [
            ("ConfigMap", "/configMap/name"),
            ("Secret", "/secret/secretName"),
            ("PersistentVolumeClaim", "/persistentVolumeClaim/claimName"),
        ] {
            let Some(name) = volume.pointer(pointer).and_then(Value::as_str) else { continue };
            if !BY_HAND.contains(&(kind, name)) {
                rendered.get(kind, name)?;
            }
        }
    }
    let claims =
        workload.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array).cloned().unwrap_or_default();
    for claim in &claims {
        volumes.insert(str_at(claim, "/metadata/name")?.to_owned());
    }
    for container in list("/containers") {
        for mount in container.pointer("/volumeMounts").and_then(Value::as_array).into_iter().flatten() {
            let name = str_at(mount, "/name")?;
            ensure!(volumes.contains(name), "volume {name} is mounted, and is not there");
        }
    }
    Ok(())
}

/// Names of the ports of a pod's containers.
fn ports(pod: &Value) -> BTreeSet<&str> {
    let containers = pod.pointer("/containers").and_then(Value::as_array).into_iter().flatten();
    let ports = containers.flat_map(|c| c.pointer("/ports").and_then(Value::as_array).into_iter().flatten());
    ports.filter_map(|port| port.pointer("/name")?.as_str()).collect()
}

/// On the node's own network a port that is named keeps a second pod from the node, and with it a successor.
fn probes_name_ports(pod: &Value) -> Result<()> {
    let has = ports(pod);
    let on_the_node = pod.pointer("/hostNetwork") == Some(&Value::Bool(true));
    ensure!(!on_the_node || has.is_empty(), "{has:?} would be ports of the node");
    for container in pod.pointer("/containers").and_then(Value::as_array).into_iter().flatten() {
        for probe in ["readinessProbe", "livenessProbe"].into_iter().filter(|_| !on_the_node) {
            let port = str_at(container, &format!("/{probe}/httpGet/port"))?;
            ensure!(has.contains(port), "{probe} asks at port {port}, and there is none of that name");
        }
    }
    Ok(())
}

#[test]
fn what_is_referred_to_is_there() -> Result<()> {
    for overlay in OVERLAYS {
        let rendered = render(overlay)?;
        for workload in rendered.workloads() {
            let labels = workload.pointer("/spec/template/metadata/labels").context("no labels")?;
            let selector = workload
                .pointer("/spec/selector/matchLabels")
                .and_then(Value::as_object)
                .context("no selector")?;
            ensure!(
                selector.iter().all(|(key, value)| labels.get(key) == Some(value)),
                "{overlay}: {workload} does not select its pods"
            );
            if let Some(account) =
                workload.pointer("/spec/template/spec/serviceAccountName").and_then(Value::as_str)
            {
                rendered.get("ServiceAccount", account)?;
            }
            volumes_are_there(&rendered, workload).with_context(|| overlay.to_owned())?;
            probes_name_ports(workload.pointer("/spec/template/spec").context("no pod")?)?;
        }
        for set in rendered.of(&["StatefulSet"]) {
            rendered.get("Service", str_at(set, "/spec/serviceName")?)?;
        }
        for service in rendered.of(&["Service"]) {
            let pods = rendered.selected(service.pointer("/spec/selector").context("no selector")?);
            ensure!(pods.len() == 1, "{overlay}: {service} means {} workloads", pods.len());
            for port in service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
                ensure!(
                    ports(pods[0]).contains(str_at(port, "/targetPort")?),
                    "{overlay}: {service}: {port} leads nowhere"
                );
            }
        }
        for object in rendered.of(&["PodDisruptionBudget", "NetworkPolicy"]) {
            let selector = ["/spec/selector/matchLabels", "/spec/podSelector/matchLabels"];
            let labels =
                selector.iter().find_map(|pointer| object.pointer(pointer)).context("no selector")?;
            let pods = rendered.selected(labels);
            ensure!(pods.len() == 1, "{overlay}: {object} means {} workloads", pods.len());
            for rule in object.pointer("/spec/ingress").and_then(Value::as_array).into_iter().flatten() {
                for port in rule.pointer("/ports").and_then(Value::as_array).into_iter().flatten() {
                    ensure!(
                        ports(pods[0]).contains(str_at(port, "/port")?),
                        "{overlay}: {object}: no {port}"
                    );
                }
            }
        }
        for binding in rendered.of(&["ClusterRoleBinding"]) {
            rendered.get(str_at(binding, "/roleRef/kind")?, str_at(binding, "/roleRef/name")?)?;
            for subject in binding.pointer("/subjects").and_then(Value::as_array).into_iter().flatten() {
                rendered.get(str_at(subject, "/kind")?, str_at(subject, "/name")?)?;
                ensure!(str_at(subject, "/namespace")? == NAMESPACE, "{overlay}: {subject}");
            }
        }
    }
    Ok(())
}

/// `verb resource` of every rule of a role.
fn granted(rendered: &Rendered, role: &str) -> Result<BTreeSet<String>> {
    let mut granted = BTreeSet::new();
    for rule in rendered.get("ClusterRole", role)?["rules"].as_array().context("no rules")? {
        for resource in rule["resources"].as_array().into_iter().flatten() {
            for verb in rule["verbs"].as_array().into_iter().flatten() {
                granted.insert(format!(
                    "{} {}",
                    verb.as_str().unwrap_or("?"),
                    resource.as_str().unwrap_or("?")
                ));
            }
        }
    }
    Ok(granted)
}

/// Whom a binding means, all of them.
fn bound(rendered: &Rendered) -> Result<BTreeSet<&str>> {
    let bindings = rendered.of(&["ClusterRoleBinding"]);
    let subjects =
        bindings.flat_map(|b| b.pointer("/subjects").and_then(Value::as_array).into_iter().flatten());
    subjects.map(|subject| str_at(subject, "/name")).collect()
}

#[test]
fn the_api_server_may_read_what_its_source_reads_and_write_events_alone() -> Result<()> {
    let read = ["namespaces", "nodes", "pods", "services", "endpointslices", "networkpolicies"];
    let mut needed: BTreeSet<String> =
        read.iter().flat_map(|kind| ["list", "watch"].map(|verb| format!("{verb} {kind}"))).collect();
    needed.extend(["create tokenreviews".to_owned(), "create events".to_owned()]);
    for overlay in OVERLAYS {
        let rendered = render(overlay)?;
        assert_eq!(granted(&rendered, "hawser-apiserver")?, needed);
        assert_eq!(bound(&rendered)?, BTreeSet::from(["hawser-apiserver"]), "an agent may do nothing there");
    }
    Ok(())
}

#[test]
fn only_write_back_may_write_and_only_endpointslices() -> Result<()> {
    let rendered = render(WRITE_BACK)?;
    rendered.0.values().try_for_each(check_schema)?;
    let verbs = ["create", "delete", "update"].map(|verb| format!("{verb} endpointslices"));
    assert_eq!(granted(&rendered, "hawser-apiserver-write-back")?, BTreeSet::from(verbs));
    assert_eq!(bound(&rendered)?, BTreeSet::from(["hawser-apiserver"]));
    Ok(())
}

#[test]
fn service_exports_are_read_only_where_that_is_asked_for() -> Result<()> {
    let rendered = render(SERVICE_EXPORTS)?;
    rendered.0.values().try_for_each(check_schema)?;
    let verbs = ["list", "watch"].map(|verb| format!("{verb} serviceexports"));
    assert_eq!(granted(&rendered, "hawser-apiserver-service-exports")?, BTreeSet::from(verbs));
    assert_eq!(bound(&rendered)?, BTreeSet::from(["hawser-apiserver"]));
    Ok(())
}

/// Writes the configuration that is embedded in a ConfigMap where a binary can read it.
fn configuration(rendered: &Rendered, map: &str, file: &str, dir: &Path) -> Result<(PathBuf, String)> {
    let text = rendered.get("ConfigMap", map)?["data"][file].as_str().context("no such file")?.to_owned();
    let text = text.replace("/etc/hawser/pki", &dir.join("pki").display().to_string());
    let text = text.replace("/etc/hawser/etcd", &dir.join("etcd").display().to_string());
    let path = dir.join(file);
    std::fs::write(&path, &text)?;
    Ok((path, text))
}

fn check_config(binary: &str, path: &Path) -> Result<String> {
    let output =
        Command::new(binaries::find(binary)?).arg("--config").arg(path).arg("--check-config").output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{binary}: {said}");
    Ok(said)
}

#[test]
fn the_embedded_configuration_is_what_the_binaries_read() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("hawser-deploy-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let made = Command::new(binaries::find("hawser")?)
        .args(["ca", "init", "--cluster", "us-east", "--id", "1", "--pki"])
        .arg(dir.join("pki"))
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    make_etcd_certificates(&dir.join("etcd"))?;
    for overlay in OVERLAYS {
        let rendered = render(overlay)?;
        let (path, cluster) = configuration(&rendered, "hawser-apiserver", "cluster.yaml", &dir)?;
        let said = check_config("clustermesh-apiserver", &path).with_context(|| overlay.to_owned())?;
        ensure!(said.contains("good, for cluster us-east"), "{said}");
        let (path, agent) = configuration(&rendered, "hawser-node-agent", "agent.yaml", &dir)?;
        let said = check_config("hawser-node-agent", &path).with_context(|| overlay.to_owned())?;
        fits_together(&rendered, &cluster, &agent, &said).with_context(|| overlay.to_owned())?;
        let embedded = cluster.contains("store: embedded:/var/lib/hawser/");
        let replicas = rendered.get("Deployment", "hawser-apiserver")?["spec"]["replicas"].as_u64();
        ensure!(
            replicas == Some(if embedded { 1 } else { 3 }),
            "{overlay}: {replicas:?} replicas on {cluster}"
        );
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn make_etcd_certificates(dir: &Path) -> Result<()> {
    let script = root().join("deploy/kustomize/overlays/etcd/certificates.sh");
    let made = Command::new("sh").arg(script).arg(dir).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

fn args_of(workload: &Value) -> Result<Vec<&str>> {
    let args = workload.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array);
    Ok(args.context("no args")?.iter().filter_map(Value::as_str).collect())
}

/// The files that a workload mounts from a Secret, as paths.
fn mounted(workload: &Value, secret: &str) -> Result<String> {
    let pod = workload.pointer("/spec/template/spec").context("no pod")?;
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let volume = list("/volumes").into_iter().find(|volume| volume["secret"]["secretName"] == secret);
    let volume = volume.with_context(|| format!("{secret} is not mounted"))?;
    let mounts = list("/containers/0/volumeMounts").into_iter();
    let mount = mounts.into_iter().find(|mount| mount["name"] == volume["name"]);
    Ok(str_at(&mount.context("a volume that nobody mounts")?, "/mountPath")?.to_owned())
}

#[test]
fn etcd_asks_for_certificates_and_the_api_servers_have_them() -> Result<()> {
    let rendered = render("overlays/etcd")?;
    let etcd = rendered.get("StatefulSet", "hawser-etcd")?;
    let args = args_of(etcd)?;
    for flag in ["--client-cert-auth", "--peer-client-cert-auth"] {
        ensure!(args.contains(&flag), "etcd lets anybody in: no {flag}");
    }
    let pki = mounted(etcd, "hawser-etcd")?;
    for (flag, file) in [("trusted-ca", "ca.crt"), ("cert", "server.crt"), ("key", "server.key")] {
        for side in ["", "peer-"] {
            let due = format!("--{side}{flag}-file={pki}/{file}");
            ensure!(args.contains(&due.as_str()), "no {due} in {args:?}");
        }
    }
    let clear: Vec<_> = args.iter().filter(|arg| arg.contains("=http://")).collect();
    ensure!(clear.len() == 1 && clear[0].starts_with("--listen-metrics-urls="), "in clear text: {clear:?}");
    let config = rendered.get("ConfigMap", "hawser-apiserver")?["data"]["cluster.yaml"].as_str();
    let config = config.context("no cluster.yaml")?;
    let files = mounted(rendered.get("Deployment", "hawser-apiserver")?, "hawser-etcd-client")?;
    let due =
        format!("storeTLS: {{ ca: {files}/ca.crt, cert: {files}/client.crt, key: {files}/client.key }}");
    ensure!(config.contains("store: etcds://") && config.contains(&due), "no {due} in {config}");
    let single = render("overlays/single")?;
    ensure!(mounted(single.get("Deployment", "hawser-apiserver")?, "hawser-etcd-client").is_err());
    Ok(())
}

/// The agent asks where the API server is, with a token that it takes.
fn fits_together(rendered: &Rendered, cluster: &str, agent: &str, effective: &str) -> Result<()> {
    let server = format!("https://hawser-apiserver.{NAMESPACE}.svc:2379");
    ensure!(cluster.contains(&server) && agent.contains(&server), "{server} is not in both configurations");
    rendered.get("Service", "hawser-apiserver")?;
    let account = format!("agents: {{ namespace: {NAMESPACE}, serviceAccount: hawser-node-agent }}");
    ensure!(cluster.contains(&account), "{account} is not in {cluster}");
    let pod = &rendered.get("DaemonSet", "hawser-node-agent")?["spec"]["template"]["spec"];
    ensure!(pod["serviceAccountName"] == "hawser-node-agent", "{pod}");
    let projected =
        pod["volumes"].as_array().into_iter().flatten().find_map(|volume| volume.get("projected"));
    let token =
        projected.and_then(|volume| volume.pointer("/sources/0/serviceAccountToken")).context("no token")?;
    ensure!(token["audience"] == "hawser.io", "{token}");
    ensure!(effective.contains("metrics: 127.0.0.1:9881"), "probes ask there: {effective}");
    for map in ["hawser-apiserver", "hawser-node-agent"] {
        rendered.get("ConfigMap", map)?;
    }
    Ok(())
}
