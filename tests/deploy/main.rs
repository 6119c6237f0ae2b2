//! `deploy/` against kubectl, Kubernetes' schemas and the real binaries.
//!
//! Tests that need kubectl, python3 and PyPI are ignored; `cargo test --test deploy -- --ignored` runs them, and CI
//! does. They fail where kubectl or python3 is missing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    unreachable_pub,
    reason = "helpers of tests fail the test, and say what takes long; they are public to their neighbours"
)]

mod agreement;
mod dockerfile;
mod manifests;
mod pod;
mod served;

use manifests::{Manifests, Schemas, root};
use pod::{Pod, Settings};
use served::Served;
use tailring::policy::Rules;

/// The example of README.md with `more` at its end, in a directory of its own with the policies that it names.
fn example_of_the_readme(more: &str) -> Manifests {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme
        .split_once("```yaml\n# kustomization.yaml\n")
        .unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    // kustomize takes no absolute paths.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path();
    let up = "../".repeat(dir.components().count() - 1);
    let here = format!("{up}{}", root().to_str().unwrap().trim_start_matches('/'));
    assert!(text.contains("tailring/deploy/kubernetes/base"), "{text}");
    let text = text.replace("tailring/deploy/", &format!("{here}/deploy/"));
    std::fs::write(dir.join("kustomization.yaml"), text + more).unwrap();
    let agents = root().join("deploy/policies/agents.yaml");
    std::fs::copy(agents, dir.join("policies.yaml")).unwrap();
    Manifests::render(dir)
}

fn kubernetes(dir: &str) -> Manifests {
    Manifests::render(&root().join("deploy/kubernetes").join(dir))
}

#[test]
#[ignore = "needs kubectl, python3 and PyPI"]
fn kubernetes_knows_every_field_and_everything_agrees() {
    let (schemas, served) = (Schemas::ready(), Served::start());
    for (name, manifests) in [
        ("base", kubernetes("base")),
        ("overlays/small", kubernetes("overlays/small")),
        ("README.md", example_of_the_readme("")),
        (
            "README.md in another namespace",
            example_of_the_readme("namespace: elsewhere\n"),
        ),
    ] {
        let found = [
            schemas.findings(&manifests),
            agreement::findings(&manifests, &served),
        ]
        .concat();
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
    }
}

#[test]
#[ignore = "needs kubectl"]
fn workers_run_the_policies_of_the_repository() {
    let base = kubernetes("base");
    let text = std::fs::read_to_string(root().join("deploy/policies/agents.yaml")).unwrap();
    let rules = tailring::policy::parse(&text).unwrap().rules;
    assert_ne!(rules, Rules::keep_everything());
    let pods = Pod::all(&base);
    let worker = pods.iter().find(|pod| pod.binary() == "tailring-worker");
    match worker.unwrap().settings().map_err(|wrong| wrong.join("\n")) {
        Ok(Settings::Worker(config)) => assert_eq!(config.rules, rules),
        Ok(Settings::Router(_)) => panic!("a worker is no router"),
        Err(wrong) => panic!("{wrong}"),
    }
}

#[test]
#[ignore = "needs kubectl"]
fn the_example_of_the_readme_changes_what_it_says() {
    let example = example_of_the_readme("namespace: elsewhere\n");
    let text = &example.text;
    assert!(example.named("Namespace", "elsewhere").is_some());
    assert!(
        text.contains("image: registry.example.com/tailring:"),
        "{text}"
    );
    for pod in Pod::all(&example) {
        match pod.settings().map_err(|wrong| wrong.join("\n")) {
            Ok(Settings::Router(_)) => {}
            Ok(Settings::Worker(config)) => {
                assert_eq!(config.export_headers.len(), 1, "the Secret is mounted");
                assert!(text.contains("url: grpcs://otlp.example.com:443"), "{text}");
            }
            Err(wrong) => panic!("{wrong}"),
        }
    }
}

/// A check that finds nothing wrong shows something only if it finds what is.
#[test]
#[ignore = "needs kubectl, python3 and PyPI"]
fn spoilt_manifests_are_found() {
    let (schemas, served) = (Schemas::ready(), Served::start());
    let base = kubernetes("base");
    let mut missed = Vec::new();
    for (right, wrong, what) in [
        // Fields.
        (
            "publishNotReadyAddresses:",
            "publishNotReadyAdresses:",
            "publishNotReadyAdresses",
        ),
        ("minReadySeconds: 35", "minReadySeconds: soon", "soon"),
        (
            "whenUnsatisfiable:",
            "whenUnsatisfied:",
            "'whenUnsatisfiable' is a required property",
        ),
        // Flags and variables.
        (
            "--policies=",
            "--polices=",
            "unexpected argument '--polices'",
        ),
        ("--listen-http=:4318", "--listen-http=4318", "has no host"),
        (
            "name: TAILRING_EXPORT",
            "name: TAILRING_EXPROT",
            "TAILRING_EXPROT is no setting",
        ),
        (
            "$(POD_NAMESPACE)",
            "$(NAMESPACE)",
            "names a variable that is not there",
        ),
        ("key: url", "key: uri", "TAILRING_EXPORT has no value"),
        (
            "- tailring-worker\n",
            "- tailring-wroker\n",
            "no binary is called",
        ),
        // Ports.
        ("name: otlp-grpc", "name: grpc", "and DNS has"),
        (
            "containerPort: 4318",
            "containerPort: 4319",
            "the port otlp-http",
        ),
        (
            "targetPort: otlp-http",
            "targetPort: http",
            "has no such port",
        ),
        (
            "--listen-admin=:9464",
            "--listen-admin=:9465",
            "admin listens on :9465",
        ),
        (
            "--listen-peers=:4319",
            "--listen-peers=:4320",
            "tailring-peer listens on :4320",
        ),
        (
            "name: tailring-peer\n    port",
            "name: peers\n    port",
            "no port for peers",
        ),
        (
            "--listen-grpc=:4317",
            "--listen-grpc=127.0.0.1:4317",
            "otlp-grpc listens on 127",
        ),
        // Names.
        (
            "_tcp.tailring-worker.",
            "_tcp.tailring-workers.",
            "and DNS has",
        ),
        (
            "serviceName: tailring-worker",
            "serviceName: workers",
            "no Service is called",
        ),
        ("clusterIP: None", "clusterIP: 10.0.0.1", "is not headless"),
        (
            "namespace: tailring\nspec:\n  clusterIP",
            "namespace: other\nspec:\n  clusterIP",
            "is not in tailring",
        ),
        (
            "  selector:\n    app.kubernetes.io/component: router",
            "  selector:\n    app.kubernetes.io/component: routers",
            "does not select",
        ),
        (
            "matchLabels:\n      app.kubernetes.io/component: worker\n      app.kubernetes.io/instance: tailring\n      app.kubernetes.io/name: tailring\n  unhealthy",
            "matchLabels:\n      app.kubernetes.io/component: router\n      app.kubernetes.io/instance: tailring\n      app.kubernetes.io/name: tailring\n  unhealthy",
            "the budget tailring-worker is not for its name",
        ),
        // Files and volumes.
        (
            "/policies/policies.yaml",
            "/policies/policy.yaml",
            "--policies (TAILRING_POLICIES)",
        ),
        (
            "mountPath: /var/lib/tailring",
            "mountPath: /data",
            "it is on no claimed volume",
        ),
        (
            "storage: 50Gi",
            "storage: 400Mi",
            "is too small: the log needs",
        ),
        ("cpu: \"2\"", "cpu: \"1000\"", "is too small: the log needs"),
        (
            "memory: 1Gi",
            "memory: 200Mi",
            "is too small for requests of 64MiB",
        ),
        (
            "name: policies\n          readOnly",
            "name: policy\n          readOnly",
            "has the volumes",
        ),
        // Probes and the end.
        ("path: /readyz", "path: /ready", "readinessProbe asks for"),
        ("port: admin", "port: otlp-http", "asks the port"),
        (
            "GracePeriodSeconds: 120",
            "GracePeriodSeconds: 30",
            "needs 33 s to stop",
        ),
        // Security.
        (
            "runAsNonRoot: true",
            "runAsNonRoot: false",
            "runAsNonRoot is false",
        ),
        (
            "drop:\n            - ALL",
            "drop:\n            - KILL",
            "capabilities is",
        ),
        (
            "enableServiceLinks: false",
            "enableServiceLinks: true",
            "enableServiceLinks is not off",
        ),
        ("image: tailring:", "image: tailring:v", "runs tailring:v"),
    ] {
        let spoilt = base.with(right, wrong);
        let mut found = agreement::findings(&spoilt, &served);
        // A process for each version: only where nobody else has found it.
        if !found.iter().any(|one| one.contains(what)) {
            found.extend(schemas.findings(&spoilt));
        }
        let found = found.join("\n");
        if !found.contains(what) {
            missed.push(format!("{wrong:?} gives not {what:?} but\n{found}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}
