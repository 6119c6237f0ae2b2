//! TLS towards receivers: rustls with ring, the web's roots, and optionally a CA of one's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// TLS towards one receiver.
#[derive(Debug, Clone)]
pub struct Tls {
    pub config: Arc<ClientConfig>,
    /// The name that the receiver's certificate has to carry.
    pub server_name: ServerName<'static>,
}

/// The protocol offered by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    H2,
    Http1,
}

/// Why TLS towards a receiver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("CA file {path}: {error}")]
    CaFile {
        path: PathBuf,
        error: rustls::pki_types::pem::Error,
    },
    #[error("CA file {0} has no certificate; it needs at least one in PEM")]
    NoCertificate(PathBuf),
    #[error("CA file {path} has a certificate that cannot be trusted: {error}")]
    Certificate { path: PathBuf, error: rustls::Error },
    #[error("{0:?} is not a host name that a certificate can carry")]
    ServerName(String),
    #[error("TLS: {0}")]
    Provider(#[from] rustls::Error),
}

impl Tls {
    /// Trusts the web's roots, and the certificates in `ca_file` (PEM) as well. Reads the file.
    pub fn new(host: &str, alpn: Alpn, ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        if let Some(path) = ca_file {
            add_file(&mut roots, path)?;
        }
        // The provider is named, not installed: a library that installs another one changes nothing.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match alpn {
            Alpn::H2 => vec![b"h2".to_vec()],
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let server_name = ServerName::try_from(bare.to_owned())
            .map_err(|_| TlsError::ServerName(host.to_owned()))?;
        Ok(Self {
            config: Arc::new(config),
            server_name,
        })
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.server_name == other.server_name && Arc::ptr_eq(&self.config, &other.config)
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let unreadable = |error| TlsError::CaFile {
        path: path.to_owned(),
        error,
    };
    let mut any = false;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        roots
            .add(certificate)
            .map_err(|error| TlsError::Certificate {
                path: path.to_owned(),
                error,
            })?;
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err(TlsError::NoCertificate(path.to_owned()))
    }
}
