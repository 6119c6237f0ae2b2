//! Where members are looked up: `srv://`, `dns://`, `static://`.

/// A parsed `--workers` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {}

impl std::str::FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let _ = text;
        unimplemented!()
    }
}
