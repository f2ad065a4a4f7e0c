//! The server over TLS, with certificates of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kilotok_server::{ServerConfig, TlsFiles};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::server::{Server, Setup, head, until};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/tls").join(name)
}

fn with(certificate: PathBuf, key: PathBuf) -> Setup {
    let tls = Some(TlsFiles { certificate, key });
    // Checked as often as possible, so that no test waits for a change.
    let tls_look = Duration::ZERO;
    Setup { config: ServerConfig { tls, tls_look, ..Setup::default().config }, ..Setup::default() }
}

/// The answer to a client that trusts only this certificate.
fn health(server: &Server, known: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file(known)).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(server.address).unwrap());
    if let Err(error) = stream.write_all(&head("GET", "/health", &[], 0)) {
        return error.to_string();
    }
    let mut answer = String::new();
    // The other side may close the connection without a TLS close message.
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn is_well(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"status\":\"ok\"}")
}

#[test]
fn a_client_that_knows_the_certificate_gets_in() {
    let server = Server::start(with(file("certificate.pem"), file("key.pem")));
    let answer = health(&server, "certificate.pem");
    assert!(is_well(&answer), "{answer}");
    let stranger = health(&server, "renewed.pem");
    assert!(stranger.contains("invalid peer certificate"), "{stranger}");
}

#[test]
fn a_renewed_certificate_needs_no_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("a.pem"), folder.path().join("a.key"));
    let place = |from: &str, to: &Path| {
        // Replaced atomically, as programs that renew certificates do.
        let new = folder.path().join("new");
        std::fs::copy(file(from), &new).unwrap();
        std::fs::rename(new, to).unwrap();
    };
    place("certificate.pem", &certificate);
    place("key.pem", &key);
    let server = Server::start(with(certificate.clone(), key.clone()));
    assert!(is_well(&health(&server, "certificate.pem")));
    // Neither half of a pair nor an invalid file replaces the working certificate.
    place("README.md", &certificate);
    assert!(is_well(&health(&server, "certificate.pem")));
    place("renewed.pem", &certificate);
    assert!(is_well(&health(&server, "certificate.pem")));
    place("renewed_key.pem", &key);
    until("the new certificate", || is_well(&health(&server, "renewed.pem")));
    assert!(!is_well(&health(&server, "certificate.pem")));
}

#[test]
fn files_that_are_no_certificate_are_named() {
    for (certificate, key, named) in [
        ("certificate.pem", "README.md", "README.md: there is no private key"),
        ("nothing.pem", "key.pem", "nothing.pem"),
        ("README.md", "key.pem", "README.md: there is no certificate"),
        ("certificate.pem", "renewed_key.pem", "renewed_key.pem is not the key of"),
    ] {
        let error =
            Server::start(with(file(certificate), file(key))).wait().unwrap_err().to_string();
        assert!(error.contains("TLS") && error.contains(named), "{error}");
    }
}
