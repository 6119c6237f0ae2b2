//! What `--export` can say.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::uri::PathAndQuery;
use url::Url;

use crate::net::client::{Address, Compression};

/// Where kept traces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTarget {
    /// `grpc://host:4317`, `grpcs://host:443`: OTLP/gRPC.
    Grpc(Endpoint),
    /// `http://host:4318/v1/traces`, `https://...`: OTLP/HTTP with protobuf. An absent path means
    /// `/v1/traces`; any other is taken as it is.
    Http(Endpoint, PathAndQuery),
    /// `file:/path/traces.jsonl`: OTLP/JSON, a message a line, as the Collector's file exporter
    /// writes and its otlpjsonfile receiver reads.
    File(PathBuf),
    /// `stdout`: the same lines.
    Stdout,
}

/// A backend that is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Address,
    pub tls: bool,
    /// `?compression=none|gzip|zstd`. Without it `none` for `grpc://`, which is commonly next
    /// door, and gzip for all others: every OTLP receiver has to take gzip.
    pub compression: Compression,
    /// `?ca=FILE`: trusted beside the web's roots.
    pub ca_file: Option<PathBuf>,
}

/// Why a text is not an [`ExportTarget`], and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportTargetError {
    #[error(
        "{0:?} is no destination; write grpc://host:4317, grpcs://host:443, http://host:4318, https://host, file:/path/traces.jsonl or stdout"
    )]
    Unknown(String),
    #[error("destination: {0}; write for example grpc://collector.obs.svc:4317")]
    Url(url::ParseError),
    #[error("{0:?} has no host; write for example grpc://collector.obs.svc:4317")]
    Host(String),
    #[error("{0:?} has no port; gRPC has no usual one, so write for example {0}:4317")]
    Port(String),
    #[error(
        "the destination has a user or a password in it; write them as a header into --export-header-file"
    )]
    Credentials,
    #[error("{0:?} has a path; a gRPC destination has none, so write {1}")]
    GrpcPath(String, String),
    #[error("unknown parameter {0:?}; there are compression=none|gzip|zstd and ca=FILE")]
    Parameter(String),
    #[error("compression={0:?}; there are none, gzip and zstd")]
    Compression(String),
    #[error("ca is only for TLS; write grpcs:// or https://, or remove it")]
    CaWithoutTls,
    #[error("{0:?} names no file; write for example file:/var/lib/tailring/traces.jsonl")]
    File(String),
}

impl FromStr for ExportTarget {
    type Err = ExportTargetError;

    fn from_str(text: &str) -> Result<Self, ExportTargetError> {
        let text = text.trim();
        if text == "stdout" {
            return Ok(Self::Stdout);
        }
        if let Some(path) = text.strip_prefix("file:") {
            return file(text, path);
        }
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        let (grpc, tls) = match scheme {
            Some("grpc") => (true, false),
            Some("grpcs" | "https+grpc") => (true, true),
            Some("http") => (false, false),
            Some("https") => (false, true),
            // Whatever it is may have a password in it.
            _ if text.contains('@') => return Err(ExportTargetError::Credentials),
            _ => return Err(ExportTargetError::Unknown(text.to_owned())),
        };
        let url = Url::parse(text).map_err(ExportTargetError::Url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ExportTargetError::Credentials);
        }
        let endpoint = endpoint(text, &url, grpc, tls)?;
        let path = url.path().trim_end_matches('/');
        if !grpc {
            let path = if path.is_empty() {
                "/v1/traces"
            } else {
                url.path()
            };
            // The url crate has percent-encoded what cannot stand in a path.
            let path = PathAndQuery::try_from(path)
                .map_err(|_| ExportTargetError::Unknown(text.to_owned()))?;
            return Ok(Self::Http(endpoint, path));
        }
        let target = Self::Grpc(endpoint);
        if path.is_empty() {
            Ok(target)
        } else {
            Err(ExportTargetError::GrpcPath(
                text.to_owned(),
                target.to_string(),
            ))
        }
    }
}

fn file(text: &str, path: &str) -> Result<ExportTarget, ExportTargetError> {
    // file:///path is file:/path with an empty host; a host would be another machine's file.
    let path = match path.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(ExportTargetError::File(text.to_owned())),
        None => path,
    };
    if path.is_empty() || path.ends_with('/') {
        return Err(ExportTargetError::File(text.to_owned()));
    }
    if let Some((_, parameters)) = path.split_once('?') {
        return Err(ExportTargetError::Parameter(parameters.to_owned()));
    }
    Ok(ExportTarget::File(path.into()))
}

fn endpoint(text: &str, url: &Url, grpc: bool, tls: bool) -> Result<Endpoint, ExportTargetError> {
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(ExportTargetError::Host(text.to_owned()));
    }
    let port = if grpc {
        url.port()
    } else {
        url.port_or_known_default()
    };
    let port = port.ok_or_else(|| ExportTargetError::Port(format!("{}://{host}", url.scheme())))?;
    let mut endpoint = Endpoint {
        address: Address::from_str(&format!("{host}:{port}"))
            .map_err(|_| ExportTargetError::Host(text.to_owned()))?,
        tls,
        compression: if grpc && !tls {
            Compression::None
        } else {
            Compression::Gzip
        },
        ca_file: None,
    };
    for (name, value) in url.query_pairs() {
        match &*name {
            "compression" => {
                endpoint.compression = match &*value {
                    "none" => Compression::None,
                    "gzip" => Compression::Gzip,
                    "zstd" => Compression::Zstd,
                    _ => return Err(ExportTargetError::Compression(value.into_owned())),
                }
            }
            "ca" if !tls => return Err(ExportTargetError::CaWithoutTls),
            "ca" => endpoint.ca_file = Some(PathBuf::from(&*value)),
            _ => return Err(ExportTargetError::Parameter(name.into_owned())),
        }
    }
    Ok(endpoint)
}

impl fmt::Display for ExportTarget {
    /// For logs: as it may be written, without the parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = |name: &'static str, tls: &'static str, endpoint: &Endpoint| {
            if endpoint.tls { tls } else { name }
        };
        match self {
            Self::Grpc(to) => write!(f, "{}://{}", scheme("grpc", "grpcs", to), to.address),
            Self::Http(to, path) => {
                let scheme = scheme("http", "https", to);
                write!(f, "{scheme}://{}{path}", to.address)
            }
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Stdout => f.write_str("stdout"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ExportTarget {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn endpoint_of(text: &str) -> Endpoint {
        match parsed(text) {
            ExportTarget::Grpc(endpoint) | ExportTarget::Http(endpoint, _) => endpoint,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn all_forms_are_read_and_shown_again() {
        for (text, shown) in [
            ("grpc://collector:4317", "grpc://collector:4317"),
            (
                "grpcs://collector.example:443/",
                "grpcs://collector.example:443",
            ),
            ("https+grpc://collector:443", "grpcs://collector:443"),
            ("grpc://[::1]:4317", "grpc://[::1]:4317"),
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector", "http://collector:80/v1/traces"),
            ("https://collector/", "https://collector:443/v1/traces"),
            ("https://c:1/otlp/v1/traces", "https://c:1/otlp/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
            ("file:/data/a b.jsonl", "file:/data/a b.jsonl"),
            ("file:///data/a.jsonl", "file:/data/a.jsonl"),
            ("file:a.jsonl", "file:a.jsonl"),
            (" stdout\n", "stdout"),
        ] {
            assert_eq!(parsed(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn compression_has_a_default_for_each_scheme_and_can_be_chosen() {
        for (text, compression) in [
            ("grpc://c:1", Compression::None),
            ("grpcs://c:1", Compression::Gzip),
            ("http://c", Compression::Gzip),
            ("https://c", Compression::Gzip),
            ("grpc://c:1?compression=zstd", Compression::Zstd),
            ("https://c?compression=none", Compression::None),
        ] {
            assert_eq!(endpoint_of(text).compression, compression, "{text}");
        }
        let endpoint = endpoint_of("grpcs://c:1?ca=/etc/ca.pem&compression=none");
        assert_eq!(endpoint.ca_file, Some("/etc/ca.pem".into()));
        assert!(endpoint.tls);
    }

    #[test]
    fn a_wrong_one_says_what_to_write() {
        for (text, hint) in [
            ("", "write grpc://host:4317"),
            ("collector:4317", "write grpc://host:4317"),
            ("otlp://collector:4317", "write grpc://host:4317"),
            ("grpc://collector", "grpc://collector:4317"),
            ("grpc://:4317", "write for example grpc://"),
            ("grpc://c:99999", "write for example grpc://"),
            ("grpc://c:1/v1/traces", "so write grpc://c:1"),
            ("https://me:s3cret@c", "--export-header-file"),
            ("redis://me:s3cret@c", "--export-header-file"),
            ("grpc://c:1?compresion=gzip", "compression=none|gzip|zstd"),
            ("grpc://c:1?compression=lz4", "none, gzip and zstd"),
            ("http://c?ca=/etc/ca.pem", "https://"),
            ("file:", "file:/var/lib"),
            ("file:/data/", "file:/var/lib"),
            ("file://host/data/a", "file:/var/lib"),
            ("file:/data/a?compression=zstd", "unknown parameter"),
        ] {
            let error = text.parse::<ExportTarget>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(!error.contains("s3cret"), "{text}: {error}");
        }
    }
}
