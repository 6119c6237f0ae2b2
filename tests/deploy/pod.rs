//! A pod as the kubelet makes it from a workload: its command line, its environment, its files. The real settings are
//! read in it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use serde_json::Value;
use tailring::app::settings::{
    ByteSize, RouterArgs, RouterConfig, SharedConfig, Surroundings, Volume, WorkerArgs,
    WorkerConfig,
};

use crate::manifests::{Manifests, list, name_of};

/// Of a container without a limit on CPU: a large node.
const NODE_CORES: u16 = 64;
/// Kubernetes' default, which the manifests assume.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The first pod of a Deployment or StatefulSet.
pub struct Pod<'a> {
    pub workload: &'a Value,
    pub spec: &'a Value,
    pub container: &'a Value,
    manifests: &'a Manifests,
}

/// What a binary made of its settings.
pub enum Settings {
    Router(Box<RouterConfig>),
    Worker(Box<WorkerConfig>),
}

impl Settings {
    pub fn shared(&self) -> &SharedConfig {
        match self {
            Self::Router(config) => &config.shared,
            Self::Worker(config) => &config.shared,
        }
    }
}

impl<'a> Pod<'a> {
    pub fn all(manifests: &'a Manifests) -> Vec<Self> {
        let workloads = ["Deployment", "StatefulSet"];
        let of = workloads.iter().flat_map(|kind| manifests.of_kind(kind));
        of.map(|workload| {
            let spec = &workload["spec"]["template"]["spec"];
            Self {
                workload,
                spec,
                container: &spec["containers"][0],
                manifests,
            }
        })
        .collect()
    }

    pub fn name(&self) -> String {
        format!("{}-0", name_of(self.workload))
    }

    pub fn namespace(&self) -> &'a str {
        self.workload["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
    }

    pub fn binary(&self) -> &'a str {
        self.container["command"][0].as_str().unwrap_or_default()
    }

    /// Number of the container's port with this name.
    pub fn port(&self, name: &str) -> Option<u64> {
        list(&self.container["ports"])
            .iter()
            .find(|port| port["name"] == name)?["containerPort"]
            .as_u64()
    }

    /// Settings as the binary reads them here, or everything that it would refuse to start with.
    pub fn settings(&self) -> Result<Settings, Vec<String>> {
        let mut wrong = Vec::new();
        let environment = self.environment(&mut wrong);
        let mut line = vec![self.binary().to_owned()];
        for arg in list(&self.container["args"]) {
            line.push(expand(
                arg.as_str().unwrap_or_default(),
                &environment,
                &mut wrong,
            ));
        }
        let kubelet = Kubelet::of(self);
        let settings = match self.binary() {
            "tailring-router" => with_twins::<RouterArgs>(line, &environment, &mut wrong)
                .and_then(|args| told(RouterConfig::of(&args, &kubelet), &mut wrong))
                .map(|config| Settings::Router(Box::new(config))),
            "tailring-worker" => with_twins::<WorkerArgs>(line, &environment, &mut wrong)
                .and_then(|args| told(WorkerConfig::of(&args, &kubelet), &mut wrong))
                .map(|config| Settings::Worker(Box::new(config))),
            other => {
                wrong.push(format!("no binary is called {other:?}"));
                None
            }
        };
        match settings {
            Some(settings) if wrong.is_empty() => Ok(settings),
            _ => Err(wrong),
        }
    }

    fn environment(&self, wrong: &mut Vec<String>) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for variable in list(&self.container["env"]) {
            let from = &variable["valueFrom"];
            let value = if let Some(value) = variable["value"].as_str() {
                Some(value)
            } else if from["fieldRef"]["fieldPath"] == "metadata.namespace" {
                Some(self.namespace())
            } else {
                let key = &from["configMapKeyRef"];
                let map = key["name"].as_str().unwrap_or_default();
                self.manifests
                    .named("ConfigMap", map)
                    .and_then(|map| map["data"][key["key"].as_str()?].as_str())
            };
            let name = variable["name"].as_str().unwrap_or_default();
            match value {
                Some(value) => drop(environment.insert(name.to_owned(), value.to_owned())),
                None => wrong.push(format!("{name} has no value: {variable}")),
            }
        }
        environment
    }
}

fn told<T, E: ToString>(result: Result<T, E>, wrong: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| wrong.push(error.to_string())).ok()
}

/// `$(NAME)` as the kubelet does it: what it does not know it leaves.
fn expand(arg: &str, environment: &BTreeMap<String, String>, wrong: &mut Vec<String>) -> String {
    let mut text = arg.to_owned();
    for (name, value) in environment {
        text = text.replace(&format!("$({name})"), value);
    }
    if text.contains("$(") {
        wrong.push(format!("{arg:?} names a variable that is not there"));
    }
    text
}

/// Reads a command line. Variables of the pod come in as the flags whose twins they are: this process's own
/// environment is another one.
fn with_twins<A: Parser + CommandFactory>(
    mut line: Vec<String>,
    environment: &BTreeMap<String, String>,
    wrong: &mut Vec<String>,
) -> Option<A> {
    let command = A::command();
    for (name, value) in environment {
        if !name.starts_with("TAILRING_") {
            continue;
        }
        let twin = command
            .get_arguments()
            .find(|arg| arg.get_env().is_some_and(|twin| twin == name.as_str()));
        match twin.and_then(clap::Arg::get_long) {
            Some(flag) => line.push(format!("--{flag}={value}")),
            None => wrong.push(format!("{name} is no setting of {}", line[0])),
        }
    }
    told(A::try_parse_from(line), wrong)
}

/// Files, volumes and limits of the container.
struct Kubelet {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// A Secret's keys are not in the manifests: any file there holds a header.
    secrets: Vec<PathBuf>,
    volumes: Vec<(PathBuf, ByteSize)>,
    cores: u16,
}

impl Kubelet {
    fn of(pod: &Pod<'_>) -> Self {
        let name = pod.name();
        let limits = &pod.container["resources"]["limits"];
        let memory: Option<ByteSize> = limits["memory"].as_str().and_then(|s| s.parse().ok());
        let hosts = match pod.workload["spec"]["serviceName"].as_str() {
            Some(service) => format!(
                "10.0.0.7\t{name}.{service}.{}.svc.{CLUSTER_DOMAIN}\t{name}\n",
                pod.namespace()
            ),
            None => format!("10.0.0.7\t{name}\n"),
        };
        let mut files = BTreeMap::from([
            (
                "/proc/sys/kernel/hostname".into(),
                format!("{name}\n").into(),
            ),
            ("/etc/hosts".into(), hosts.into()),
            ("/proc/meminfo".into(), b"MemTotal: 268435456 kB\n".to_vec()),
            ("/proc/self/cgroup".into(), b"0::/\n".to_vec()),
        ]);
        if let Some(memory) = memory {
            files.insert(
                "/sys/fs/cgroup/memory.max".into(),
                memory.0.to_string().into(),
            );
        }
        let (mut secrets, mut volumes) = (Vec::new(), Vec::new());
        for mount in list(&pod.container["volumeMounts"]) {
            let at = PathBuf::from(mount["mountPath"].as_str().unwrap_or_default());
            let is_it = |name: &Value| name == &mount["name"];
            let claims = list(&pod.workload["spec"]["volumeClaimTemplates"]);
            if let Some(claim) = claims.iter().find(|c| is_it(&c["metadata"]["name"])) {
                let size = claim["spec"]["resources"]["requests"]["storage"].as_str();
                if let Some(size) = size.and_then(|s| s.parse().ok()) {
                    volumes.push((at.clone(), size));
                }
            }
            for volume in list(&pod.spec["volumes"])
                .iter()
                .filter(|v| is_it(&v["name"]))
            {
                if volume["secret"].is_object() {
                    secrets.push(at.clone());
                }
                let map = volume["configMap"]["name"].as_str().unwrap_or_default();
                let map = pod.manifests.named("ConfigMap", map);
                let data = map.and_then(|map| map["data"].as_object());
                for (key, content) in data.into_iter().flatten() {
                    let content = content.as_str().unwrap_or_default();
                    files.insert(at.join(key), content.into());
                }
            }
        }
        Self {
            files,
            secrets,
            volumes,
            cores: limits["cpu"]
                .as_str()
                .and_then(|cores| cores.parse().ok())
                .unwrap_or(NODE_CORES),
        }
    }
}

impl Surroundings for Kubelet {
    fn read(&self, path: &Path, _bytes_max: u64) -> io::Result<Vec<u8>> {
        if let Some(content) = self.files.get(path) {
            return Ok(content.clone());
        }
        match path.parent() {
            Some(dir) if self.secrets.iter().any(|secret| secret == dir) => {
                Ok(b"authorization: Bearer x\n".to_vec())
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn volume(&self, path: &Path) -> io::Result<Volume> {
        self.volumes
            .iter()
            .find(|(at, _)| path.starts_with(at))
            .map(|(_, size)| Volume {
                size: *size,
                is_memory: false,
            })
            .ok_or_else(|| {
                io::Error::other("it is on no claimed volume, and the root is read-only")
            })
    }

    fn cores(&self) -> u16 {
        self.cores
    }
}
