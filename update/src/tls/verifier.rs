//! Judges the certificate a server shows by what the device knows of the time, and remembers how long it is good for.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::certificates::Validity;
use crate::clock::Clock;

/// How long the certificate is good that was shown last.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Option<Validity>>);

impl Seen {
    /// Of the last certificate that was believed.
    #[must_use]
    pub fn last(&self) -> Option<Validity> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, validity: Option<Validity>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = validity;
    }
}

/// A verifier for servers whose chain must lead to one of `roots`, at the time `clock` gives.
///
/// # Errors
/// There are no roots.
pub fn verifier(
    roots: RootCertStore,
    clock: Clock,
    seen: Arc<Seen>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let webpki = webpki.map_err(|error| error.to_string())?;
    Ok(Arc::new(Verifier { webpki, clock, seen }))
}

/// Everything is the library's; only the time it judges by is the device's.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    clock: Clock,
    seen: Arc<Seen>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let own = Validity::of(end_entity);
        let others = intermediates.iter().filter_map(|certificate| Validity::of(certificate));
        let latest_begin_s = own.into_iter().chain(others).map(|validity| validity.from_s).max();
        let now = UnixTime::since_unix_epoch(self.clock.judging(latest_begin_s.unwrap_or(0)));
        let verified =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.seen.put(own);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
