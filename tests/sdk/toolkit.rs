//! The SDKs, installed below target/ in the versions that are pinned beside this file. What is done with them is not here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Python,
    Node,
}

fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(file)
}

/// A command that has to go well.
fn run(command: &mut Command, needed: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start ({error}): {needed}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}\n{out}{err}");
}

impl Language {
    /// As the SDK calls itself.
    pub fn sdk(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "nodejs",
        }
    }

    /// What is installed: the files that pin it.
    fn pins(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["requirements.txt"],
            Self::Node => &["package.json", "package-lock.json", ".npmrc"],
        }
    }

    /// Starts `service.py` or `service.js`; installs the SDK if it is not there in these versions.
    pub fn service(self) -> Command {
        let dir = self.installed();
        match self {
            Self::Python => {
                let mut command = Command::new(dir.join("bin/python"));
                command.arg(here("service.py"));
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.env("NODE_PATH", dir.join("node_modules"));
                command.arg(here("service.js"));
                command
            }
        }
    }

    fn installed(self) -> PathBuf {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sdk-{}", self.sdk()));
        std::fs::create_dir_all(&dir).unwrap();
        // Beside and not in it: the directory is cleared. Held against other tests and other processes.
        let lock = File::create(dir.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        let pins: Vec<String> = self
            .pins()
            .iter()
            .map(|file| std::fs::read_to_string(here(file)).unwrap())
            .collect();
        let pins = pins.join("\n");
        // Written last: an installation that was broken off is done again, and so is one of other versions.
        let done = dir.join("complete");
        if std::fs::read_to_string(&done).is_ok_and(|installed| installed == pins) {
            return dir;
        }
        // Not by println!, which libtest keeps to itself while the test runs.
        let mut stderr = std::io::stderr();
        writeln!(
            stderr,
            "installing the OpenTelemetry SDK for {} in {}, once; this needs the network",
            self.sdk(),
            dir.display()
        )
        .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        match self {
            Self::Python => {
                let mut venv = Command::new("python3");
                venv.args(["-m", "venv"]).arg(&dir);
                run(&mut venv, "python3 with venv is needed");
                let mut pip = Command::new(dir.join("bin/python"));
                pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"]);
                pip.args(["--disable-pip-version-check", "--requirement"]);
                pip.arg(here("requirements.txt"));
                run(&mut pip, "pip is part of the venv");
            }
            Self::Node => {
                for file in self.pins() {
                    std::fs::copy(here(file), dir.join(file)).unwrap();
                }
                let mut npm = Command::new("npm");
                // The SDKs need no scripts of packages to run.
                npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
                run(
                    npm.current_dir(&dir),
                    "node 18.19 or newer and npm are needed",
                );
            }
        }
        std::fs::write(&done, pins).unwrap();
        dir
    }
}
