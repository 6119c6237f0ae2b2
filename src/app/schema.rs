//! `tailring schema`: the JSON Schema of policy files. What is in it is the policies' business.

use std::process::ExitCode;

use crate::policy::schema;

/// Prints a JSON Schema of policy files, for editors.
///
/// It is of the draft 2020-12, and fits a tail_sampling block alone and one inside a whole Collector
/// configuration. With it an editor completes names and shows what each setting is for; what it cannot
/// tell (OTTL conditions, regular expressions, doubled names) `tailring check` does.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_long_help = "\
Examples:
  tailring schema > tailring-policies.schema.json
  Then, for the YAML language server of VS Code, Neovim and others, the policy file begins with:
    # yaml-language-server: $schema=tailring-policies.schema.json")]
pub struct SchemaArgs {}

/// The subcommand.
#[allow(clippy::print_stdout, reason = "a tool for people answers on stdout")]
pub async fn run(SchemaArgs {}: SchemaArgs) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&schema())?);
    Ok(ExitCode::SUCCESS)
}
