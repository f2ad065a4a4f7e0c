//! The certificate and key of the server. The files are reloaded at run time: certificates are
//! renewed every few weeks, and restarting to load a model takes minutes.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::serve::ServeError;
use crate::service::TlsFiles;

/// See the file's head.
pub(crate) struct Tls {
    files: TlsFiles,
    /// The contents of the files when they were last read.
    tried: CertificateFiles,
    config: RustlsConfig,
}

/// The contents of both files.
#[derive(PartialEq, Eq)]
struct CertificateFiles {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    pub(crate) fn open(files: TlsFiles) -> Result<Self, ServeError> {
        let tried = read(&files)?;
        let config = RustlsConfig::from_config(server_config(&files, &tried)?);
        Ok(Self { files, tried, config })
    }

    pub(crate) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Reloads the files when they have changed. An unusable certificate is logged once, and new
    /// connections keep using the previous one.
    pub(crate) async fn follow(mut self, look: Duration) -> Infallible {
        loop {
            tokio::time::sleep(look).await;
            match self.renew() {
                Ok(false) => {}
                Ok(true) => tracing::info!("the TLS certificate was renewed"),
                Err(error) => tracing::warn!(%error, "the TLS certificate stays as it was"),
            }
        }
    }

    /// Reloads the files if they have changed; returns whether they have.
    fn renew(&mut self) -> Result<bool, ServeError> {
        // A file that is being replaced may be missing for a moment.
        let Ok(found) = read(&self.files) else { return Ok(false) };
        if found == self.tried {
            return Ok(false);
        }
        let config = server_config(&self.files, &found);
        self.tried = found;
        self.config.reload_from_config(config?);
        Ok(true)
    }
}

impl TlsFiles {
    /// Checks, before the server starts, that it can use the files.
    pub fn check(&self) -> Result<(), ServeError> {
        server_config(self, &read(self)?).map(drop)
    }
}

/// Reads both files; each has a few KiB.
fn read(files: &TlsFiles) -> Result<CertificateFiles, ServeError> {
    let read = |file: &Path| std::fs::read(file).map_err(|error| fault(file, &error));
    Ok(CertificateFiles { certificate: read(&files.certificate)?, key: read(&files.key)? })
}

fn server_config(
    files: &TlsFiles,
    pems: &CertificateFiles,
) -> Result<Arc<ServerConfig>, ServeError> {
    let chain = CertificateDer::pem_slice_iter(&pems.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fault(&files.certificate, &error))?;
    if chain.is_empty() {
        return Err(fault(&files.certificate, &"there is no certificate in PEM in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&pems.key).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            fault(&files.key, &"there is no private key in PEM in it that needs no password")
        }
        error => fault(&files.key, &error),
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let key = files.key.display();
            fault(&files.certificate, &format!("{key} is not the key of its first certificate"))
        }
        error => fault(&files.certificate, &error),
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn fault(file: &Path, reason: &impl ToString) -> ServeError {
    ServeError::Tls { file: file.display().to_string(), reason: reason.to_string() }
}
