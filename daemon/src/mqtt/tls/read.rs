//! The files of TLS, read and checked.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use tractd_update::tls;

use super::Files;
use crate::certificates::Certificates;
use crate::mqtt::client::Loss;

/// Longest file of certificates or keys read, in bytes: a system's whole list of authorities has about 250 kB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// Our side of TLS with one broker.
pub(in crate::mqtt) struct Connector {
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl Connector {
    /// Shakes hands.
    ///
    /// # Errors
    /// The network's, or one of both sides does not trust the other.
    pub(in crate::mqtt) async fn connect(self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsConnector::from(self.config).connect(self.name, stream).await
    }
}

impl Files {
    /// Reads the files, for a broker at `host`. Its certificate is judged by the device's time, and remembered, in
    /// `certificates`.
    ///
    /// # Errors
    /// A file can't be read or holds nothing usable, or the key is not the certificate's.
    pub(in crate::mqtt) fn connector(
        &self,
        host: &str,
        certificates: &Certificates,
    ) -> Result<Connector, Loss> {
        // Brackets are how an address of IPv6 stands in a URL; no certificate has them.
        let name = host.trim_matches(['[', ']']).to_owned();
        let name = name.try_into().map_err(|error| Loss::Broken(format!("{host}: {error}")))?;
        Ok(Connector { name, config: self.read(certificates)? })
    }

    fn read(&self, certificates: &Certificates) -> Result<Arc<ClientConfig>, Loss> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = tls::verifier(self.roots()?, certificates.clock(), certificates.broker());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier.map_err(Loss::Broken)?);
        let Some((certificate, key)) = &self.client else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = chain_of(certificate)?;
        let pem = read(key)?;
        let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| broken(key, error))?;
        let config =
            builder.with_client_auth_cert(chain, secret).map_err(|error| broken(certificate, error))?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, Loss> {
        let mut roots = RootCertStore::empty();
        let Some(ca) = &self.ca else {
            let system = rustls_native_certs::load_native_certs();
            let (taken, _) = roots.add_parsable_certificates(system.certs);
            if taken == 0 {
                let why = "no authority found on this system; name one with mqtt.ca_file";
                return Err(Loss::Broken(why.to_owned()));
            }
            return Ok(roots);
        };
        for certificate in chain_of(ca)? {
            roots.add(certificate).map_err(|error| broken(ca, error))?;
        }
        Ok(roots)
    }
}

fn chain_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, Loss> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| broken(path, error))?;
    if certificates.is_empty() { Err(broken(path, "holds no certificate")) } else { Ok(certificates) }
}

fn read(path: &Path) -> Result<Vec<u8>, Loss> {
    let length = fs::metadata(path).map_err(|error| broken(path, error))?.len();
    if length > PEM_BYTES_MAX {
        return Err(broken(path, format!("{length} bytes are no certificate")));
    }
    fs::read(path).map_err(|error| broken(path, error))
}

fn broken(path: &Path, what: impl std::fmt::Display) -> Loss {
    Loss::Broken(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("empty.pem"), "nothing\n").unwrap();
        let certificates = Certificates::new(&crate::config::Config::default(), 0);
        let refused = |files: &Files| match files.read(&certificates) {
            Err(Loss::Broken(why)) => why.replace(&dir.path().display().to_string(), ""),
            other => panic!("{other:?}"),
        };
        let files = Files { ca: Some(path("absent.pem")), client: None };
        assert_eq!(refused(&files), "/absent.pem: No such file or directory (os error 2)");
        let files = Files { ca: Some(path("empty.pem")), client: None };
        assert_eq!(refused(&files), "/empty.pem: holds no certificate");
    }

    #[test]
    fn a_broker_is_named_by_name_or_address() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let authority = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        fs::write(&ca, authority.cert.pem()).unwrap();
        let files = Files { ca: Some(ca), client: None };
        let certificates = Certificates::new(&crate::config::Config::default(), 0);
        for (host, name) in [("broker.lan", "broker.lan"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
            assert_eq!(files.connector(host, &certificates).unwrap().name.to_str(), name);
        }
        assert!(files.connector("no name", &certificates).is_err());
    }
}
