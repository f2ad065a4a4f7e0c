//! The server over TLS, with a certificate of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kilotok_server::{ServerConfig, TlsFiles};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::server::{Server, Setup, head};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/tls").join(name)
}

fn with(certificate: &str, key: &str) -> Setup {
    let tls = Some(TlsFiles { certificate: file(certificate), key: file(key) });
    Setup { config: ServerConfig { tls, ..Setup::default().config }, ..Setup::default() }
}

#[test]
fn a_client_that_knows_the_certificate_gets_in() {
    let server = Server::start(with("certificate.pem", "key.pem"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("certificate.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(server.address).unwrap());
    stream.write_all(&head("GET", "/health", &[], 0)).unwrap();
    let mut answer = String::new();
    // The other side may close without saying so.
    let _ = stream.read_to_string(&mut answer);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"status\":\"ok\"}"),
        "{answer}"
    );
}

#[test]
fn files_that_are_no_certificate_are_named() {
    for (certificate, key, named) in [
        ("certificate.pem", "README.md", "README.md"),
        ("nothing.pem", "key.pem", "nothing.pem"),
        ("README.md", "key.pem", "README.md"),
    ] {
        let error = Server::start(with(certificate, key)).wait().unwrap_err().to_string();
        assert!(error.contains("TLS") && error.contains(named), "{error}");
    }
}
