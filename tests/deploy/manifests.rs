//! Manifests as kubectl renders them, and Kubernetes' own schemas for them. What Tailring asks of them is not here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The oldest Kubernetes that the base is for, and the newest that has schemas.
pub const KUBERNETES: [&str; 2] = ["1.31", "1.37"];

const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// Rendered objects.
pub struct Manifests {
    pub text: String,
    pub objects: Vec<Value>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Standard output of a command that has to go well.
fn run(command: &mut Command, needed: &str) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start ({error}): {needed}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    out.into_owned()
}

impl Manifests {
    pub fn render(dir: &Path) -> Self {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("kustomize").arg(dir);
        Self::parse(run(&mut kubectl, "kubectl is needed to check deploy/"))
    }

    pub fn parse(text: String) -> Self {
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        assert!(!objects.is_empty());
        Self { text, objects }
    }

    /// The same with one text for another, as a mistake would have it.
    pub fn with(&self, right: &str, wrong: &str) -> Self {
        assert!(self.text.contains(right), "nothing to spoil: {right}");
        Self::parse(self.text.replace(right, wrong))
    }

    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |o| o["kind"] == kind)
    }

    pub fn named(&self, kind: &str, name: &str) -> Option<&Value> {
        self.objects
            .iter()
            .find(|o| o["kind"] == kind && name_of(o) == name)
    }
}

pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The elements of a list, none if it is absent.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The validator in a virtual environment of its own.
pub struct Schemas {
    binary: PathBuf,
}

impl Schemas {
    /// Sets it up once below target/; a second run finds it.
    pub fn ready() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _setting_up = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(VALIDATOR);
        // Written last: an installation that was broken off is done again.
        let done = dir.join("complete");
        if !done.exists() {
            println!("setting up {VALIDATOR} from PyPI in {}", dir.display());
            let needed = "python3 with venv is needed to check deploy/";
            let mut venv = Command::new("python3");
            run(venv.args(["-m", "venv", "--clear"]).arg(&dir), needed);
            let mut pip = Command::new(dir.join("bin/pip"));
            run(pip.args(["install", "--quiet", VALIDATOR]), needed);
            std::fs::write(&done, "").unwrap();
        }
        Self {
            binary: dir.join("bin/kubernetes-validate"),
        }
    }

    /// What the schemas of all [`KUBERNETES`] have against it.
    pub fn findings(&self, manifests: &Manifests) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &manifests.text).unwrap();
        let mut findings = Vec::new();
        for version in KUBERNETES {
            let mut command = Command::new(&self.binary);
            command.args(["--strict", "-k", version]).arg(file.path());
            let output = command.output().unwrap();
            let out = String::from_utf8_lossy(&output.stdout);
            let err = String::from_utf8_lossy(&output.stderr);
            let said = format!("{out}{err}");
            let passed = said.matches(" passed for resource ").count();
            if !output.status.success() {
                findings.push(format!("Kubernetes {version}: {said}"));
            } else if passed != manifests.objects.len() {
                findings.push(format!(
                    "Kubernetes {version}: {passed} of {} objects were looked at: {said}",
                    manifests.objects.len()
                ));
            }
        }
        findings
    }
}
