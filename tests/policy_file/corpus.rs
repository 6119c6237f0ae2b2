//! Files that nobody would write: the fuzzer's corpus, and long ones of every shape that could nest
//! or repeat.

use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::claims::a_file_is_refused_with_places_or_means_something as claim;

/// What the fuzzer begins with, beside the files of the other tests.
const SEEDS: &[(&str, &str)] = &[
    (
        "aliases",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\npolicies: [*c, &p {name: p, type: always_sample}, *p]\n",
    ),
    (
        "merges",
        "base: &base {type: latency, latency: {threshold_ms: 1}}\ntail_sampling:\n  policies:\n    - {<<: *base, name: a}\n    - {<<: [*base, {x: 1}], name: b, type: trace_flags}\n",
    ),
    (
        "doubled",
        "policies: [{name: a, type: always_sample, name: b}]\npolicies: []\n? [k]\n: {1: 2, true: ~}\n",
    ),
    (
        "mistakes",
        "decision_wait: 10\nquiet_perod: 1s\nnum_traces: -1\ncompatibility: other\npolicies:\n  - name: a\n    type: numeric_attribute\n    numeric_attribute: {key: 5, min_value: 9, max_value: 1}\n  - {name: a, type: string_attribute, string_attribute: {key: k, values: ['a**', 1], enabled_regex_matching: yes}}\n  - {name: b, type: nothing}\n",
    ),
    (
        "conditions",
        "policies:\n  - name: pay\n    type: ottl_condition\n    ottl_condition:\n      error_mode: Propagate\n      span: 'IsMatch(name, \"^/pay\") and attributes[\"n\"] > 5'\n      spanevent: ['name == \"exception\"', \"name == 'x'\"]\n",
    ),
    (
        "nested",
        "compatibility: collector\npolicies:\n  - name: n\n    type: not\n    not: {not_sub_policy: {type: and, and: {and_sub_policy: [{type: not, not: {not_sub_policy: {type: trace_flags}}}]}}}\n  - name: c\n    type: composite\n    composite: {max_total_spans_per_second: 1e2, composite_sub_policy: [{name: x, type: probabilistic, probabilistic: {sampling_percentage: .5}}], policy_order: [x, y], rate_allocation: [{policy: x, percent: 200}]}\n",
    ),
    (
        "scalars",
        "policies:\n  - name: |\n      a\n      b\n    type: !!str always_sample\n  - name: >-\n      c\n    type: \"pro\\x62abilistic\"\n    probabilistic: {sampling_percentage: 0x10}\n  - {name: .nan, type: always_sample}\nnum_traces: 0o17\nnum_shards: .inf\n",
    ),
];

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/policy_file")
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let file = |path: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let files = [
        ("every-policy", "tests/policies/every-policy.yaml"),
        ("collector", "tests/policies/collector.yaml"),
        ("agents", "deploy/policies/agents.yaml"),
    ];
    let files = files.map(|(name, path)| (name.to_owned(), file(path).expect("a file of ours")));
    let texts = SEEDS
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    texts.chain(files).collect()
}

#[test]
fn the_fuzz_corpus_holds() {
    let mut files = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus") {
        let path = entry.expect("a file").path();
        claim(&std::fs::read(path).expect("its bytes"));
        files += 1;
    }
    assert!(files >= seeds().len(), "the corpus is gone");
}

#[test]
#[ignore = "writes the seeds of the fuzz corpus"]
fn write_seeds() {
    std::fs::create_dir_all(corpus()).expect("a folder");
    for (name, bytes) in seeds() {
        std::fs::write(corpus().join(name), bytes).expect("a file");
    }
}

/// What is put somewhere into a file: what YAML has a meaning for, and what a policy has.
const PIECES: &[&str] = &[
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "<<: ",
    "!!map ",
    "!!int ",
    "| ",
    "> ",
    "? ",
    "---\n",
    "...\n",
    "#",
    "'",
    "\"",
    "\\",
    "%",
    "@",
    "~",
    "null",
    "true",
    "-0",
    "1e400",
    ".nan",
    "0x",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "1s",
    "\u{feff}",
    "\u{85}",
    "\r",
    "\0",
    "name",
    "type",
    "policies",
    "tail_sampling/x: ",
    "processors: ",
    "composite",
    "and_sub_policy",
    "not_sub_policy: ",
    "percent: 200",
    "(?i)",
    "a**",
    "attributes[",
    "==",
];

/// `TAILRING_POLICY_FILES` says how many.
#[test]
fn mangled_files_hold() {
    let seeds = seeds();
    let files = std::env::var("TAILRING_POLICY_FILES");
    let files = files.ok().and_then(|it| it.parse().ok()).unwrap_or(3_000);
    for seed in 1..=files {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (_, bytes) = &seeds[rng.random_range(0..seeds.len())];
        let mut text: Vec<char> = String::from_utf8_lossy(bytes).chars().collect();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..=text.len());
            let end = (at + rng.random_range(0..40)).min(text.len());
            let piece: Vec<char> = match rng.random_range(0..4) {
                0 => Vec::new(),
                1 => text[at..end].repeat(2),
                _ => {
                    let piece = PIECES[rng.random_range(0..PIECES.len())];
                    text[at..end].iter().copied().chain(piece.chars()).collect()
                }
            };
            text.splice(at..end, piece);
        }
        let text: String = text.into_iter().collect();
        claim(text.as_bytes());
    }
}

/// Quadratic time would be minutes, and exponential time for ever.
#[test]
fn long_files_take_linear_time() {
    let many =
        |count: usize, item: &dyn Fn(usize) -> String| -> String { (0..count).map(item).collect() };
    let keep = "policies: [{name: a, type: always_sample}]\n";
    let of = |block: String| format!("policies: [{{name: a, {block}}}]");
    let blocks = many(20_000, &|n| format!("  tail_sampling/{n}: {{}}\n"));
    let used = many(20_000, &|n| format!("tail_sampling/x{n}, "));
    let laughs = many(40, &|n| {
        let before = n.saturating_sub(1);
        let inner = if n == 0 {
            "x".to_owned()
        } else {
            format!("*a{before}")
        };
        format!("a{n}: &a{n} [{}]\n", [inner.as_str(); 9].join(", "))
    });
    let files = [
        format!(
            "processors:\n{blocks}service: {{pipelines: {{traces: {{processors: [{used}]}}}}}}\n"
        ),
        keep.to_owned() + &many(50_000, &|n| format!("decision_wayt_{n}: 1s\n")),
        of(many(50_000, &|n| format!("probabilistik{n}: 1, "))),
        format!(
            "policies: [{}]",
            many(50_000, &|n| format!("{{name: p{n}, tipe: x}}, "))
        ),
        format!(
            "policies: [{}]",
            many(999, &|n| format!(
                "{{name: {}{n}, type: trace_flags}}, ",
                "n".repeat(1_000)
            ))
        ),
        of(format!(
            "type: and, and: {{and_sub_policy: [{}]}}",
            "{type: trace_flags},".repeat(20_000)
        )),
        of(format!(
            "type: string_attribute, string_attribute: {{key: k, values: [{}]}}",
            many(10_000, &|n| format!("v{n}, "))
        )),
        of(format!(
            "type: string_attribute, string_attribute: {{key: k, values: [{}]}}",
            "1, ".repeat(50_000)
        )),
        of(format!(
            "type: status_code, status_code: {{status_codes: [{}]}}",
            "ERROR, ".repeat(50_000)
        )),
        of(format!(
            "type: composite, composite: {{max_total_spans_per_second: 9, composite_sub_policy: [{}], policy_order: [{}], rate_allocation: [{}]}}",
            many(64, &|n| format!("{{name: s{n}, type: trace_flags}}, ")),
            many(20_000, &|n| format!("o{n}, ")),
            many(20_000, &|n| format!("{{policy: r{n}, percent: 1}}, ")),
        )),
        of(format!(
            "type: ottl_condition, ottl_condition: {{span: [{}]}}",
            "'name == ', ".repeat(1_000)
        )),
        // YAML's own.
        laughs + "policies: *a39\n",
        keep.to_owned() + &many(50_000, &|n| format!("k{n}: &k{n} v\n")),
        format!("a: &a {{x: 1}}\n{keep}b: [{}]\n", "*a, ".repeat(50_000)),
        format!(
            "a: &a {{{}}}\n{keep}b: {{<<: [{}]}}\n",
            many(2_000, &|n| format!("k{n}: 1, ")),
            "*a, ".repeat(2_000)
        ),
        keep.to_owned() + &"num_traces: 1\n".repeat(50_000),
        "[".repeat(200_000),
        "{a: ".repeat(200_000),
        "- ".repeat(200_000),
        "? ".repeat(200_000),
        many(1_500, &|n| format!("{}a:\n", " ".repeat(n))),
        format!("{keep}a: \"{}\"\n", "\\x41".repeat(200_000)),
        format!("{keep}a: \"{}", "x\n ".repeat(200_000)),
        format!("{keep}a: |\n{}", " x\n".repeat(200_000)),
        format!("{keep}{}", "---\n".repeat(200_000)),
        format!("{keep}{}", "# x\n".repeat(200_000)),
        format!("{keep}a: {}", "!t ".repeat(200_000)),
        format!("{}\n{keep}", "x".repeat(1 << 20)),
        "\t".repeat(1 << 20),
        "a: 1 ".repeat(200_000),
        "'".repeat(1 << 20),
        "%".repeat(1 << 20),
        "\r".repeat(1 << 20) + keep,
    ];
    for file in files {
        claim(file.as_bytes());
    }
}
