//! The Dockerfile, as far as it can be checked where nothing can be built: it says what is in the repository, in
//! Cargo.toml and in the manifests.

use std::path::Path;

use crate::manifests::root;

/// Instruction and what follows, continued lines joined, comments gone.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    joined
        .lines()
        .filter_map(|line| line.trim().split_once(char::is_whitespace))
        .map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
        .collect()
}

fn all<'a>(of: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    let these = of
        .iter()
        .filter(move |(instruction, _)| instruction == name);
    these.map(|(_, rest)| rest.as_str())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// What does not hold; `ignored` is the text of Dockerfile.dockerignore.
fn findings(dockerfile: &str, ignored: &str) -> Vec<String> {
    let all_of_it = instructions(dockerfile);
    let mut found = Vec::new();
    let known = [
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "EXPOSE",
        "ENTRYPOINT",
    ];
    for (name, _) in all_of_it
        .iter()
        .filter(|(name, _)| !known.contains(&&**name))
    {
        found.push(format!("{name} is no instruction that is used here"));
    }

    // Stages.
    let stages: Vec<_> = all(&all_of_it, "FROM").collect();
    let rust = concat!(
        "rust:",
        env!("CARGO_PKG_RUST_VERSION"),
        "-bookworm AS build"
    );
    if stages.first() != Some(&rust) {
        found.push(format!("builds with {stages:?}, not with {rust}"));
    }
    if stages.last() != Some(&"debian:bookworm-slim") {
        found.push(format!(
            "runs on {stages:?}, not on the Debian that it was built on"
        ));
    }

    // What goes in.
    let mut copied = Vec::new();
    for copy in all(&all_of_it, "COPY").filter(|copy| !copy.starts_with("--from=build ")) {
        let mut words: Vec<_> = copy.split_whitespace().collect();
        words.pop();
        copied.extend(words);
    }
    for source in &copied {
        if !root().join(source).exists() {
            found.push(format!("{source} is not in the repository"));
        }
        if !ignored.lines().any(|line| line == format!("!{source}")) {
            found.push(format!("{source} does not get to the builder"));
        }
    }
    if !ignored.lines().any(|line| line == "*") {
        found.push("everything gets to the builder".to_owned());
    }
    for needed in needed_files() {
        if !copied.iter().any(|source| needed.starts_with(source)) {
            found.push(format!("{} is needed and not copied", needed.display()));
        }
    }

    // What comes out.
    let manifest = read("Cargo.toml");
    let binaries = manifest
        .split("[[bin]]")
        .skip(1)
        .filter_map(|section| section.split('"').nth(1));
    let run = all(&all_of_it, "RUN").collect::<Vec<_>>().join("\n");
    let words: Vec<_> = run.split_whitespace().collect();
    for binary in binaries {
        if !words.contains(&format!("target/release/{binary}").as_str()) {
            found.push(format!("{binary} does not get into the image"));
        }
    }
    if !run.contains("cargo build --release --locked --bins") {
        found.push("is not built as it is locked".to_owned());
    }
    let out = "--from=build /out/bin/ /usr/local/bin/";
    if !all(&all_of_it, "COPY").any(|copy| copy == out) || !words.contains(&"/out/bin/") {
        found.push(format!("there is no COPY {out}"));
    }
    let last = |name| all(&all_of_it, name).last();
    if last("USER") != Some("65532:65532") {
        found.push("does not run as the user of the manifests".to_owned());
    }
    if last("EXPOSE") != Some("4317 4318 4319 9464") {
        found.push("exposes other ports than there are".to_owned());
    }
    if last("ENTRYPOINT") != Some(r#"["/usr/local/bin/tailring"]"#) {
        found.push("starts something else".to_owned());
    }
    found
}

/// Files that `cargo build` reads, from the root: what Cargo.toml names, its neighbours, and what sources include.
fn needed_files() -> Vec<std::path::PathBuf> {
    let mut needed: Vec<_> = [
        "Cargo.toml",
        "Cargo.lock",
        ".cargo/config.toml",
        "benches/wire.rs",
    ]
    .iter()
    .map(Into::into)
    .collect();
    assert!(
        !root().join("build.rs").exists(),
        "copy it, and say so here"
    );
    let mut dirs = vec![root().join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            needed.push(path.strip_prefix(root()).unwrap().to_owned());
            let text = std::fs::read_to_string(&path).unwrap();
            for part in text.split("include_").skip(1) {
                let is_macro = part.starts_with("str!(\"") || part.starts_with("bytes!(\"");
                let Some(file) = part.split('"').nth(1).filter(|_| is_macro) else {
                    assert!(
                        !part.starts_with("str!") && !part.starts_with("bytes!"),
                        "{path:?}"
                    );
                    continue;
                };
                let file = path.parent().unwrap().join(file).canonicalize().unwrap();
                let file = file.strip_prefix(root().canonicalize().unwrap()).unwrap();
                needed.push(file.to_owned());
            }
        }
    }
    assert!(needed.iter().any(|file| file == Path::new("src/lib.rs")));
    needed
}

const FILE: &str = "deploy/docker/Dockerfile";

#[test]
fn the_dockerfile_says_what_the_repository_has() {
    let found = findings(&read(FILE), &read("deploy/docker/Dockerfile.dockerignore"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_spoilt_dockerfile_is_found() {
    let (file, ignored) = (read(FILE), read("deploy/docker/Dockerfile.dockerignore"));
    for (right, wrong, what) in [
        ("rust:1.95", "rust:1.80", "builds with"),
        ("debian:bookworm-slim", "debian:trixie-slim", "runs on"),
        (
            "COPY src src",
            "COPY source src",
            "source is not in the repository",
        ),
        ("COPY benches benches\n", "", "benches/wire.rs is needed"),
        ("COPY .cargo .cargo\n", "", ".cargo/config.toml is needed"),
        (
            "target/release/tailring-worker ",
            "",
            "tailring-worker does not get",
        ),
        (" --locked", "", "is not built as it is locked"),
        ("USER 65532:65532", "USER root", "does not run as"),
        ("USER", "USR", "USR is no instruction"),
        ("bin/tailring\"]", "bin/tailrng\"]", "starts something else"),
    ] {
        assert!(file.contains(right), "{right}");
        let found = findings(&file.replacen(right, wrong, 1), &ignored);
        assert!(
            found.iter().any(|one| one.contains(what)),
            "{what}: {found:?}"
        );
    }
    let found = findings(&file, &ignored.replace("!src\n", ""));
    assert!(
        found.iter().any(|one| one.contains("src does not get")),
        "{found:?}"
    );
}
