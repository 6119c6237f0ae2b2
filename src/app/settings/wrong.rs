//! The report of what is wrong with the settings.

use std::fmt;

/// One setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSetting {
    /// With its dashes: `--ring-seed-file`.
    pub flag: &'static str,
    /// As written; `None` when the default or the absence of a value is what is wrong. Free of
    /// secrets.
    pub value: Option<String>,
    /// Continues "flag = value": "is no …", "has the unit …". May have several lines.
    pub problem: String,
    /// What to write instead, a whole line; empty when `problem` says it.
    pub instead: String,
}

/// Everything that is wrong, in the order of the help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSettings(pub Vec<WrongSetting>);

/// Name of the environment variable that is a flag's twin.
pub(super) fn twin_of(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("TAILRING_{}", name.to_ascii_uppercase())
}

/// Hides the user name and password that a URL may carry: reports end in logs.
pub(super) fn without_credentials(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => value.to_owned(),
    }
}

impl std::error::Error for WrongSettings {}

impl fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.flag, twin_of(self.flag))?;
        let mut problem = self.problem.replace('\n', "\n    ");
        match self.value.as_deref() {
            None => {}
            Some("") => write!(f, " = (empty)")?,
            Some(value) => {
                let shown = without_credentials(value);
                // An error that quotes the whole value quotes what is in it.
                problem = problem.replace(value, &shown);
                write!(f, " = {shown}")?;
            }
        }
        write!(f, ": {problem}")?;
        if !self.instead.is_empty() {
            write!(f, "\n    {}", self.instead)?;
        }
        Ok(())
    }
}

impl fmt::Display for WrongSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "one setting is wrong; nothing was started")?,
            count => writeln!(f, "{count} settings are wrong; nothing was started")?,
        }
        for wrong in &self.0 {
            writeln!(f, "  {}", wrong.to_string().replace('\n', "\n  "))?;
        }
        write!(f, "--help explains every setting.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_never_shows_credentials() {
        for (value, shown) in [
            ("https://user:secret@host:4317/v1", "https://…@host:4317/v1"),
            ("https://a@b:c@host", "https://…@host"),
            ("https://host/path@2", "https://host/path@2"),
            ("static://a=b:1", "static://a=b:1"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(without_credentials(value), shown);
        }
    }

    #[test]
    fn flags_and_their_twins_have_one_name() {
        assert_eq!(twin_of("--ring-seed-file"), "TAILRING_RING_SEED_FILE");
    }
}
