//! Where two places say the same thing: manifests among each other, and manifests and binaries. Each function answers
//! with what does not agree.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tailring::app::settings::ListenAddress;
use tailring::cluster::Source;
use tailring::net::server::{Protocol, ServerConfig};

use crate::manifests::{Manifests, list, name_of};
use crate::pod::{CLUSTER_DOMAIN, Pod, Settings};
use crate::served::Served;

/// Beside requests in flight: the router's linger of 3 s.
const ROUTER_STOP_SECONDS: u64 = 3;
/// Beside requests in flight: 10 s of export and the writing of what came of it.
const WORKER_STOP_SECONDS: u64 = 13;

/// Everything that does not agree; nothing when all is well.
pub fn findings(manifests: &Manifests, served: &Served) -> Vec<String> {
    let mut found = one_namespace(manifests);
    let pods = Pod::all(manifests);
    if !pods.iter().any(|pod| pod.binary() == "tailring-worker") {
        found.push("there is no worker".to_owned());
    }
    for pod in &pods {
        let of_pod = [
            volumes(pod),
            restricted(pod),
            image(pod),
            probes(pod, served),
            settings(pod, manifests),
        ];
        let name = pod.name();
        found.extend(
            of_pod
                .concat()
                .into_iter()
                .map(|what| format!("{name}: {what}")),
        );
    }
    found.extend(services(manifests, &pods));
    found.extend(budgets(manifests, &pods));
    found
}

fn one_namespace(manifests: &Manifests) -> Vec<String> {
    let namespaces: Vec<_> = manifests.of_kind("Namespace").map(name_of).collect();
    let [namespace] = namespaces[..] else {
        return vec![format!("not one namespace: {namespaces:?}")];
    };
    manifests
        .objects
        .iter()
        .filter(|o| o["kind"] != "Namespace" && o["metadata"]["namespace"] != namespace)
        .map(|o| format!("{} {} is not in {namespace}", o["kind"], name_of(o)))
        .collect()
}

/// What the binary reads, and that the rest of the manifests is about the same.
fn settings(pod: &Pod<'_>, manifests: &Manifests) -> Vec<String> {
    let settings = match pod.settings() {
        Ok(settings) => settings,
        Err(wrong) => return wrong,
    };
    let mut found = Vec::new();
    let shared = settings.shared();
    let ports = [
        ("otlp-grpc", 4317, shared.listen_grpc),
        ("otlp-http", 4318, shared.listen_http),
        ("admin", 9464, shared.listen_admin),
    ];
    let peers = match &settings {
        Settings::Router(_) => None,
        Settings::Worker(config) => Some(("tailring-peer", 4319, config.listen_peers)),
    };
    for (name, usual, listener) in ports.into_iter().chain(peers) {
        if listener != (ListenAddress::AllInterfaces { port: usual }) {
            found.push(format!("{name} listens on {listener}, not on :{usual}"));
        }
        if pod.port(name) != Some(u64::from(usual)) {
            found.push(format!(
                "the port {name} is {:?}, not {usual}",
                pod.port(name)
            ));
        }
    }
    found.extend(discovery(&shared.workers, pod.namespace(), manifests));
    let mut stop = ServerConfig::new(
        Protocol::Grpc,
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    )
    .drain_deadline
    .as_secs();
    match &settings {
        Settings::Router(_) => stop += ROUTER_STOP_SECONDS,
        Settings::Worker(config) => {
            stop += WORKER_STOP_SECONDS;
            let service = pod.workload["spec"]["serviceName"].as_str();
            let name = format!(
                "{}.{}.{}.svc.{CLUSTER_DOMAIN}",
                pod.name(),
                service.unwrap_or("(none)"),
                pod.namespace()
            );
            if config.name.as_str() != name {
                found.push(format!("is called {} and in DNS {name}", config.name));
            }
        }
    }
    let sleep = &pod.container["lifecycle"]["preStop"]["sleep"]["seconds"];
    stop += sleep.as_u64().unwrap_or(0);
    let grace = pod.spec["terminationGracePeriodSeconds"].as_u64();
    if grace.is_none_or(|grace| grace < stop) {
        found.push(format!("needs {stop} s to stop and gets {grace:?}"));
    }
    found
}

/// `--workers` is what DNS has for a StatefulSet, its governing Service and a port of that.
fn discovery(source: &Source, namespace: &str, manifests: &Manifests) -> Vec<String> {
    let mut known = Vec::new();
    for workers in manifests.of_kind("StatefulSet") {
        let service = workers["spec"]["serviceName"].as_str().unwrap_or_default();
        let Some(governing) = manifests.named("Service", service) else {
            return vec![format!("no Service is called {service:?}")];
        };
        let spec = &governing["spec"];
        if spec["clusterIP"] != "None" || spec["publishNotReadyAddresses"] != true {
            return vec![format!(
                "{service} is not headless with addresses that are not ready"
            )];
        }
        let labels = &workers["spec"]["template"]["metadata"]["labels"];
        if !selects(&spec["selector"], labels) {
            return vec![format!("{service} does not select the pods it governs")];
        }
        for port in list(&spec["ports"]) {
            let port = port["name"].as_str().unwrap_or_default();
            known.push(format!(
                "_{port}._tcp.{service}.{namespace}.svc.{CLUSTER_DOMAIN}."
            ));
        }
    }
    let peers = |service: &str| {
        let domain = service
            .split_once("._tcp.")
            .map_or("", |(_, domain)| domain);
        format!("_tailring-peer._tcp.{domain}")
    };
    match source {
        Source::Srv { service, .. } if known.contains(service) => {
            if known.contains(&peers(service)) {
                return Vec::new();
            }
            vec![format!("no port for peers: DNS has {known:?}")]
        }
        other => vec![format!("--workers is {other}, and DNS has {known:?}")],
    }
}

fn probes(pod: &Pod<'_>, served: &Served) -> Vec<String> {
    let mut found = Vec::new();
    for (probe, path) in [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ] {
        let get = &pod.container[probe]["httpGet"];
        let asked = get["path"].as_str().unwrap_or_default();
        if asked != path || !served.has(pod.binary(), asked) {
            found.push(format!(
                "{probe} asks for {asked:?}; {path} is what answers it"
            ));
        }
        if get["port"] != "admin" {
            found.push(format!("{probe} asks the port {}, not admin", get["port"]));
        }
    }
    found
}

/// Each mount has its volume and each volume its mount; ConfigMaps are there. Files in them are the settings' affair.
fn volumes(pod: &Pod<'_>) -> Vec<String> {
    let claims = list(&pod.workload["spec"]["volumeClaimTemplates"]);
    let declared = list(&pod.spec["volumes"]).iter().map(|v| &v["name"]);
    let mut declared: Vec<_> = declared
        .chain(claims.iter().map(|claim| &claim["metadata"]["name"]))
        .map(Value::to_string)
        .collect();
    let mounts = list(&pod.container["volumeMounts"]).iter();
    let mut mounted: Vec<_> = mounts.map(|mount| mount["name"].to_string()).collect();
    declared.sort();
    mounted.sort();
    if declared == mounted {
        return Vec::new();
    }
    vec![format!(
        "has the volumes {declared:?} and mounts {mounted:?}"
    )]
}

/// The "restricted" Pod Security Standard, which the namespace enforces, and what else keeps a pod to itself.
fn restricted(pod: &Pod<'_>) -> Vec<String> {
    let expected_of_pod = [
        ("runAsNonRoot", json!(true)),
        ("runAsUser", json!(65532)),
        ("seccompProfile", json!({"type": "RuntimeDefault"})),
    ];
    let expected_of_container = [
        ("allowPrivilegeEscalation", json!(false)),
        ("readOnlyRootFilesystem", json!(true)),
        ("capabilities", json!({"drop": ["ALL"]})),
    ];
    let mut found = Vec::new();
    let contexts = [
        (&pod.spec["securityContext"], &expected_of_pod),
        (&pod.container["securityContext"], &expected_of_container),
    ];
    for (context, expected) in contexts {
        for (field, value) in expected {
            if context[field] != *value {
                found.push(format!("{field} is {}, not {value}", context[field]));
            }
        }
    }
    for field in ["automountServiceAccountToken", "enableServiceLinks"] {
        if pod.spec[field] != false {
            found.push(format!("{field} is not off"));
        }
    }
    if list(&pod.spec["containers"]).len() != 1 || !pod.spec["initContainers"].is_null() {
        found.push("has containers that nobody looked at".to_owned());
    }
    found
}

/// The version of this package, wherever it comes from.
fn image(pod: &Pod<'_>) -> Vec<String> {
    let image = pod.container["image"].as_str().unwrap_or_default();
    let expected = concat!("tailring:", env!("CARGO_PKG_VERSION"));
    if image == expected || image.ends_with(&format!("/{expected}")) {
        return Vec::new();
    }
    vec![format!("runs {image}, not {expected}")]
}

fn services(manifests: &Manifests, pods: &[Pod<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for service in manifests.of_kind("Service") {
        let name = name_of(service);
        let Some(pod) = selected(&service["spec"]["selector"], pods) else {
            found.push(format!(
                "Service {name} does not select one workload's pods"
            ));
            continue;
        };
        for port in list(&service["spec"]["ports"]) {
            let target = port["targetPort"].as_str().unwrap_or_default();
            // A port of one name in both places has one number, too: clients are told the usual ones.
            if port["name"] != target || pod.port(target) != port["port"].as_u64() {
                found.push(format!(
                    "Service {name}: {} has no such port: {port}",
                    pod.name()
                ));
            }
        }
    }
    // Where README.md sends clients.
    let ports = manifests.named("Service", "tailring").map(|service| {
        let ports = list(&service["spec"]["ports"]).iter();
        ports.map(|port| port["name"].clone()).collect::<Value>()
    });
    if ports != Some(json!(["otlp-grpc", "otlp-http"])) {
        found.push(format!("the Service tailring has the ports {ports:?}"));
    }
    found
}

fn budgets(manifests: &Manifests, pods: &[Pod<'_>]) -> Vec<String> {
    let budgets: Vec<_> = manifests.of_kind("PodDisruptionBudget").collect();
    let of = |budget: &Value| {
        let selector = &budget["spec"]["selector"]["matchLabels"];
        selected(selector, pods).map(|pod| name_of(pod.workload))
    };
    let mut found = Vec::new();
    for budget in &budgets {
        if of(budget) != Some(name_of(budget)) {
            found.push(format!(
                "the budget {} is not for its name",
                name_of(budget)
            ));
        }
    }
    if budgets.len() != pods.len() {
        found.push(format!(
            "{} budgets for {} workloads",
            budgets.len(),
            pods.len()
        ));
    }
    found
}

/// The one workload whose pods a selector means.
fn selected<'p, 'a>(selector: &Value, pods: &'p [Pod<'a>]) -> Option<&'p Pod<'a>> {
    let labels = |pod: &Pod<'_>| pod.workload["spec"]["template"]["metadata"]["labels"].clone();
    let mut of = pods.iter().filter(|pod| selects(selector, &labels(pod)));
    of.next().filter(|_| of.next().is_none())
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object().filter(|labels| !labels.is_empty()) else {
        return false;
    };
    selector.iter().all(|(name, value)| &labels[name] == value)
}
