//! TLS: certificates are judged by the device's time, not by the system's clock alone.
//!
//! Towards a registry the HTTP client's own connector has no place for that, so one of ours stands in its stead.
//! Towards a broker the daemon takes the same [`verifier`].

mod verifier;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

pub use self::verifier::{Seen, verifier};
use crate::certificates::Validity;
use crate::clock::Clock;

/// Whose certificates a registry may show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those of the authorities this system trusts.
    #[default]
    System,
    /// Those of these authorities only: certificates in PEM.
    Pem(Vec<u8>),
}

/// Wraps connections to `https` addresses.
#[derive(Debug)]
pub(crate) struct Tls {
    roots: Roots,
    clock: Clock,
    seen: Arc<Seen>,
    /// Made at the first connection: most registries of a device are asked over one agent, many never.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    pub(crate) fn new(roots: Roots, clock: Clock, seen: Arc<Seen>) -> Self {
        Self { roots, clock, seen, config: OnceLock::new() }
    }

    fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = verifier(self.roots.store()?, self.clock, self.seen.clone());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.map_err(io::Error::other)?)
            .with_no_client_auth();
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }
}

/// How long each certificate of a PEM file is good, in its order; what is no certificate is left out.
#[must_use]
pub fn validities(pem: &[u8]) -> Vec<Validity> {
    CertificateDer::pem_slice_iter(pem).filter_map(|der| Validity::of(&der.ok()?)).collect()
}

impl Roots {
    fn store(&self) -> io::Result<RootCertStore> {
        let certificates = match self {
            Self::System => rustls_native_certs::load_native_certs().certs,
            Self::Pem(pem) => {
                let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
                certificates.map_err(io::Error::other)?
            }
        };
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(io::Error::other("no certificate authority is known to check the server with"));
        }
        Ok(store)
    }
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Err(Error::ConnectionFailed) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(self.config()?, name).map_err(io::Error::other)?;
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

pub(crate) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.get_mut().set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
