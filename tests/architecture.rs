//! The rules of the layers as a test. Reads the sources; each finding says file, line and reason.
//!
//! Code under `#[cfg(test)]` is not looked at, and neither are comments and texts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A layer, what it may mention, and why not more.
struct Layer {
    name: &'static str,
    /// Knows neither runtime nor sockets, files, clocks or metrics.
    pure: bool,
    may_use: &'static [&'static str],
    reason: &'static str,
}

const LAYERS: &[Layer] = &[
    Layer {
        name: "model",
        pure: true,
        may_use: &[],
        reason: "model has the words that every layer shares, so it can lean on none of them",
    },
    Layer {
        name: "wire",
        pure: true,
        may_use: &["model"],
        reason: "wire reads bytes; what they are for is decided above it",
    },
    Layer {
        name: "ring",
        pure: true,
        may_use: &["wire", "model"],
        reason: "placement is a pure function of names and seed, or processes would disagree",
    },
    Layer {
        name: "policy",
        pure: true,
        may_use: &["wire", "model"],
        reason: "a policy folds spans into state and votes; it cannot know where traces are kept",
    },
    Layer {
        name: "trace",
        pure: true,
        may_use: &["policy", "ring", "wire", "model"],
        reason: "a trace's life is simulated without files, sockets or a runtime",
    },
    Layer {
        name: "log",
        pure: false,
        may_use: &["trace", "policy", "ring", "wire", "model"],
        reason: "the log stores what it is given; who is there and who asks is not its business",
    },
    Layer {
        name: "net",
        pure: false,
        may_use: &["trace", "policy", "ring", "wire", "model"],
        reason: "net speaks protocols for both tiers; it cannot know what they do with a message",
    },
    Layer {
        name: "cluster",
        pure: false,
        may_use: &["trace", "policy", "ring", "wire", "model"],
        reason: "cluster only says who is there; connections to them are made by net",
    },
    Layer {
        name: "router",
        pure: false,
        may_use: &[
            "cluster", "net", "log", "trace", "policy", "ring", "wire", "model",
        ],
        reason: "router and worker are two processes: what both need has its noun in a layer below",
    },
    Layer {
        name: "worker",
        pure: false,
        may_use: &[
            "cluster", "net", "log", "trace", "policy", "ring", "wire", "model",
        ],
        reason: "router and worker are two processes: what both need has its noun in a layer below",
    },
    Layer {
        name: "app",
        pure: false,
        may_use: &[
            "router", "worker", "cluster", "net", "log", "trace", "policy", "ring", "wire", "model",
        ],
        reason: "app puts the parts together",
    },
];

/// Words that the pure layers never say, and why.
const IMPURE: &[(&str, &str)] = &[
    (
        "tokio",
        "a pure layer runs in the simulator, without a runtime",
    ),
    (
        "std::fs",
        "files are the log's and the app's; a pure layer is given bytes",
    ),
    (
        "std::thread",
        "whoever owns a thread hands values in and takes effects out",
    ),
    (
        "std::env",
        "settings are read in app and passed down as values",
    ),
    (
        "std::net",
        "addresses and sockets are cluster's and net's; here members are names",
    ),
    (
        "SocketAddr",
        "addresses are cluster's; here members are names",
    ),
    (
        "Instant",
        "time is a Moment that the caller passes in, so that tests own it",
    ),
    (
        "SystemTime",
        "time is a Moment that the caller passes in, so that tests own it",
    ),
    (
        "SteadyClock",
        "time is a Moment that the caller passes in, so that tests own it",
    ),
    (
        "prometheus_client",
        "effects are returned and counted by the caller",
    ),
    ("tracing", "effects are returned and logged by the caller"),
];

/// Where a rule has its exception: (file, word).
const EXCEPTIONS: &[(&str, &str)] = &[
    // The one place that reads the clocks; everyone else is given a Moment.
    ("src/model/moment.rs", "Instant"),
    ("src/model/moment.rs", "SystemTime"),
    ("src/model/moment.rs", "SteadyClock"),
    // Passes the type on under its name.
    ("src/model/mod.rs", "SteadyClock"),
];

/// Generated protobuf code decodes 4 MiB of empty spans to 530 MiB; the data path reads bytes.
const GENERATED: &[&str] = &["opentelemetry_proto", "prost"];
const GENERATED_IN: &[&str] = &["net", "app"];

const DRAWERS: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "shared", "manager", "managers",
];

const BIN_LINES_MAX: usize = 79;

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.reason)
    }
}

#[test]
fn the_layers_hold() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let mut files = BTreeMap::new();
    read_sources(&root, &root.join("src"), &mut files);
    assert!(
        files.contains_key("src/lib.rs"),
        "looked in the wrong place"
    );
    let findings: Vec<String> = files
        .iter()
        .flat_map(|(file, source)| check(file, source))
        .map(|finding| finding.to_string())
        .collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

fn read_sources(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            files.insert(
                name.replace('\\', "/"),
                std::fs::read_to_string(&path).unwrap(),
            );
        }
    }
}

/// `file` is the path from the package's root, with `/`.
fn check(file: &str, source: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |line: usize, reason: String| {
        findings.push(Finding {
            file: file.to_owned(),
            line,
            reason,
        });
    };
    if !source.starts_with("//!") {
        report(
            1,
            "opens without //!: say what it is for and what it leaves to others".into(),
        );
    }
    let parts: Vec<&str> = file.split('/').collect();
    for part in &parts {
        let noun = part.strip_suffix(".rs").unwrap_or(part);
        if DRAWERS.contains(&noun) {
            report(
                1,
                format!("{noun} names a drawer: name the module by the noun it owns"),
            );
        }
    }
    if file.ends_with("/tests.rs") {
        // The body of a `#[cfg(test)] mod tests;` beside it.
        return findings;
    }
    let code = without_tests(&without_comments_and_texts(source));
    for (line, module) in inline_modules(&code) {
        if DRAWERS.contains(&module.as_str()) {
            report(
                line,
                format!("{module} names a drawer: name the module by the noun it owns"),
            );
        }
    }
    match parts[..] {
        ["src", "bin", ..] => {
            let lines = source.lines().count();
            if lines > BIN_LINES_MAX {
                report(
                    lines,
                    format!(
                        "{lines} lines: a main reads as a table of contents; the work is app's"
                    ),
                );
            }
            for (line, layer) in mentions(&code, "tailring", 0) {
                if layer != "app" {
                    report(
                        line,
                        format!("mentions {layer}: a bin starts app and nothing else"),
                    );
                }
            }
        }
        ["src", folder, ..] if folder != "lib.rs" => {
            let name = folder.strip_suffix(".rs").unwrap_or(folder);
            let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
                report(
                    1,
                    format!("{name} is no layer: give it a row in tests/architecture.rs"),
                );
                return findings;
            };
            check_layer(file, &code, layer, module_depth(&parts), &mut report);
        }
        _ => {}
    }
    findings
}

fn check_layer(
    file: &str,
    code: &str,
    layer: &Layer,
    depth: usize,
    report: &mut dyn FnMut(usize, String),
) {
    for (line, used) in mentions(code, "crate", depth) {
        let is_layer = LAYERS.iter().any(|layer| layer.name == used);
        if is_layer && used != layer.name && !layer.may_use.contains(&used.as_str()) {
            report(
                line,
                format!("{} mentions {used}: {}", layer.name, layer.reason),
            );
        }
    }
    if layer.pure {
        for (word, reason) in IMPURE {
            if EXCEPTIONS.contains(&(file, word)) {
                continue;
            }
            for line in lines_with(code, word) {
                report(
                    line,
                    format!("{} is pure and mentions {word}: {reason}", layer.name),
                );
            }
        }
    }
    if !GENERATED_IN.contains(&layer.name) {
        for word in GENERATED {
            for line in lines_with(code, word) {
                report(
                    line,
                    format!(
                        "{} mentions {word}: generated protobuf code stays in net, in app's tools and in tests, for it costs many times the bytes",
                        layer.name
                    ),
                );
            }
        }
    }
}

/// How many `super::` lead from a file's module to the crate.
fn module_depth(parts: &[&str]) -> usize {
    let folders = parts.len() - 2;
    folders + usize::from(parts.last() != Some(&"mod.rs"))
}

/// First names after `root::` (also in braces) and after as many `super::` as lead to the crate.
fn mentions(code: &str, root: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let supers = "super::".repeat(depth);
    let mut prefixes = vec![format!("{root}::")];
    prefixes.extend((depth > 0).then_some(supers));
    for prefix in prefixes {
        for (at, _) in code.match_indices(prefix.as_str()) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            for (offset, name) in first_names(&code[at + prefix.len()..]) {
                found.push((line_of(code, at + prefix.len() + offset), name));
            }
        }
    }
    found.sort();
    found
}

/// The name that a path begins with, or the names at the top of a `{...}`, with their offsets.
fn first_names(path: &str) -> Vec<(usize, String)> {
    let word_at = |from: usize| {
        let rest = &path[from..];
        let start = from + rest.len() - rest.trim_start().len();
        let word: String = path[start..].chars().take_while(|c| is_word(*c)).collect();
        (!word.is_empty()).then_some((start, word))
    };
    if !path.starts_with('{') {
        return word_at(0).into_iter().collect();
    }
    let mut names = Vec::new();
    let mut nesting = 0;
    for (at, c) in path.char_indices() {
        match c {
            '{' => nesting += 1,
            '}' => nesting -= 1,
            _ => {}
        }
        if nesting == 0 {
            break;
        }
        if nesting == 1 && (c == ',' || at == 0) {
            names.extend(word_at(at + 1));
        }
    }
    names
}

fn inline_modules(code: &str) -> Vec<(usize, String)> {
    let found = code.match_indices("mod ").filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|c| !is_word(c))
    });
    let names = found.flat_map(|(at, word)| {
        first_names(&code[at + word.len()..])
            .into_iter()
            .map(move |(_, name)| (line_of(code, at), name))
    });
    names.collect()
}

/// Lines that have `word` as a whole word.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let found = code.match_indices(word).filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    });
    let mut lines: Vec<usize> = found.map(|(at, _)| line_of(code, at)).collect();
    lines.dedup();
    lines
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Blanks comments and the content of string and character literals; lines stay where they are.
fn without_comments_and_texts(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = skipped(rest, out.chars().next_back());
        if length > 0 {
            out.extend(
                rest[..length]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            rest = &rest[length..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Bytes of the comment or literal that `rest` begins with; 0 when it begins with code.
fn skipped(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return literal(rest, '"');
    }
    if rest.starts_with('r') && !before.is_some_and(|c| is_word(c) && c != 'b') {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let content = 2 + hashes;
            let found = rest[content..].find(&end);
            return found.map_or(rest.len(), |at| content + at + end.len());
        }
    }
    if let Some(content) = rest.strip_prefix('\'') {
        let mut next = content.chars();
        let (first, second) = (next.next(), next.next());
        // Otherwise a lifetime.
        if first == Some('\\') || second == Some('\'') {
            return literal(rest, '\'');
        }
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let mut nesting = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            nesting += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            nesting -= 1;
            at += 2;
            if nesting == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn literal(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Blanks every item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let length = item_length(item);
        out.extend(item[..length].chars().filter(|c| *c == '\n'));
        rest = &item[length..];
    }
    out + rest
}

/// Up to the first `;`, or the end of the first `{...}`.
fn item_length(item: &str) -> usize {
    let mut nesting = 0;
    for (at, c) in item.char_indices() {
        match c {
            ';' if nesting == 0 => return at + 1,
            '{' => nesting += 1,
            '}' => {
                nesting -= 1;
                if nesting == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    item.len()
}

/// Whether `check` finds something in line 2 of a file whose reason contains `expected`.
#[track_caller]
fn assert_found(file: &str, line_two: &str, expected: &str) {
    let findings = check(file, &format!("//! For a test.\n{line_two}\n"));
    let found = findings
        .iter()
        .any(|f| f.line == 2 && f.reason.contains(expected));
    assert!(found, "{line_two}: {findings:?}");
}

#[track_caller]
fn assert_clean(file: &str, rest: &str) {
    assert_eq!(check(file, &format!("//! For a test.\n{rest}\n")), []);
}

#[test]
fn an_import_against_the_direction_is_found_in_every_spelling() {
    assert_found(
        "src/wire/scan.rs",
        "use crate::net::server::X;",
        "wire mentions net",
    );
    assert_found(
        "src/ring/mod.rs",
        "fn f() -> crate::cluster::View {}",
        "ring mentions cluster",
    );
    assert_found(
        "src/log/a.rs",
        "use crate::{model::X, net::{a, b}};",
        "log mentions net",
    );
    assert_found(
        "src/log/a.rs",
        "use super::super::net::X;",
        "log mentions net",
    );
    assert_found("src/log/mod.rs", "use super::net::X;", "log mentions net");
    assert_found(
        "src/router/lane.rs",
        "use crate::worker::X;",
        "router mentions worker",
    );
    assert_found(
        "src/worker/shard.rs",
        "use crate::router::X;",
        "worker mentions router",
    );
    assert_found(
        "src/net/server.rs",
        "use crate::app::X;",
        "net mentions app",
    );
    assert_found("src/bin/a.rs", "use tailring::net::X;", "a bin starts app");
    assert_found(
        "src/policy.rs",
        "use crate::trace::X;",
        "policy mentions trace",
    );
}

#[test]
fn what_is_allowed_is_not_found() {
    assert_clean(
        "src/net/server.rs",
        "use crate::{model::A, wire::{self, net}};",
    );
    assert_clean("src/log/a.rs", "use super::net::X; // a module of log");
    assert_clean(
        "src/app/mod.rs",
        "use crate::{router, worker}; use prost::Message;",
    );
    assert_clean("src/bin/a.rs", "fn main() { tailring::app::run() }");
    assert_clean(
        "src/wire/a.rs",
        "/// As [`crate::net`] wants it, /* tokio */ std::fs\nfn f() {}",
    );
    assert_clean(
        "src/wire/a.rs",
        "const A: &str = \"crate::net \\\" tokio\"; const B: char = '\"';",
    );
    assert_clean(
        "src/wire/a.rs",
        "const A: &str = r#\"tokio \" std::fs\"#; fn f<'a>(x: &'a u8) {}",
    );
    assert_clean(
        "src/wire/a.rs",
        "#[cfg(test)]\nmod tests {\n    use prost::Message; fn f() { { tokio } }\n}",
    );
    assert_clean(
        "src/wire/a.rs",
        "#[cfg(test)]\nuse prost::Message;\nfn f() {}",
    );
    assert_clean("src/wire/a.rs", "struct Instantly; fn my_tokio() {}");
}

#[test]
fn code_after_a_test_block_is_still_looked_at() {
    let source = "//! x\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nuse crate::net::X;\n";
    let lines: Vec<_> = check("src/wire/a.rs", source)
        .iter()
        .map(|f| f.line)
        .collect();
    assert_eq!(lines, [6]);
}

#[test]
fn impure_words_are_found_in_pure_layers_only() {
    for (word, _) in IMPURE {
        let line = format!("use {word}::X;");
        assert_found("src/trace/a.rs", &line, "trace is pure");
        assert_clean("src/worker/a.rs", &line);
    }
    assert_found(
        "src/model/id.rs",
        "use std::time::Instant;",
        "model is pure",
    );
    assert_clean(
        "src/model/moment.rs",
        "use std::time::{Instant, SystemTime};",
    );
    assert_found(
        "src/model/moment.rs",
        "use tokio::time::X;",
        "model is pure",
    );
}

#[test]
fn generated_code_outside_net_and_app_is_found() {
    assert_found(
        "src/worker/export.rs",
        "use opentelemetry_proto::X;",
        "generated",
    );
    assert_found("src/log/a.rs", "use prost::Message;", "generated");
    assert_clean("src/net/a.rs", "use prost::Message;");
}

#[test]
fn drawers_missing_headers_and_long_bins_are_found() {
    let reasons = |file: &str, source: &str| {
        let findings = check(file, source).into_iter();
        findings.map(|f| f.reason).collect::<Vec<_>>().join("; ")
    };
    assert!(reasons("src/net/utils.rs", "//! x").contains("utils names a drawer"));
    assert!(reasons("src/common/mod.rs", "//! x").contains("common names a drawer"));
    assert!(reasons("src/net/a.rs", "//! x\nmod helpers {}").contains("helpers names a drawer"));
    assert!(reasons("src/net/a.rs", "fn f() {}").contains("opens without //!"));
    assert!(reasons("src/shelf/a.rs", "//! x").contains("shelf is no layer"));
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(79));
    assert!(reasons("src/bin/a.rs", &long).contains("80 lines"));
    assert_eq!(reasons("src/bin/a.rs", &long[..long.len() - 10]), "");
}
