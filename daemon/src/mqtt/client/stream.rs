//! The way to a broker: TCP, TLS or a Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Loss;
use crate::certificates::Certificates;
use crate::mqtt::config::Address;
use crate::mqtt::tls;

/// Longest password file read, in bytes: it holds one line.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// Bytes to and from a broker.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way that can be taken, its files read.
pub(super) enum Road {
    Tcp(String),
    #[cfg(feature = "tls")]
    Tls(String, tls::Connector),
    Unix(PathBuf),
}

impl Road {
    /// Reads what the way needs.
    ///
    /// # Errors
    /// A file of TLS can't be read or used.
    pub(super) fn to(address: &Address, certificates: &Certificates) -> Result<Road, Loss> {
        match address {
            Address::Tcp { host, port, tls: None } => Ok(Road::Tcp(format!("{host}:{port}"))),
            Address::Tcp { host, port, tls: Some(files) } => encrypted(host, *port, files, certificates),
            Address::Unix { path } => Ok(Road::Unix(path.into())),
        }
    }

    /// Takes it. How long that may take is for the caller to say.
    ///
    /// # Errors
    /// The operating system's, or those of TLS.
    pub(super) async fn open(self) -> io::Result<Box<dyn Stream>> {
        match self {
            Road::Tcp(address) => Ok(Box::new(tcp(address).await?)),
            #[cfg(feature = "tls")]
            Road::Tls(address, connector) => Ok(Box::new(connector.connect(tcp(address).await?).await?)),
            Road::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }
}

/// Without nodelay every QoS 1 exchange waits 40 ms for a delayed acknowledgement of TCP's.
async fn tcp(address: String) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(feature = "tls")]
fn encrypted(host: &str, port: u16, files: &tls::Files, certificates: &Certificates) -> Result<Road, Loss> {
    Ok(Road::Tls(format!("{host}:{port}"), files.connector(host, certificates)?))
}

#[cfg(not(feature = "tls"))]
fn encrypted(_: &str, _: u16, _: &tls::Files, _: &Certificates) -> Result<Road, Loss> {
    Err(Loss::Broken("this tractd was built without TLS".to_owned()))
}

/// Reads the file with the password, anew for every connection.
///
/// # Errors
/// It can't be read, or is no password.
pub(super) fn read_password(path: &Path) -> Result<String, Loss> {
    let broken = |what: String| Loss::Broken(format!("mqtt.password_file {}: {what}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| broken(error.to_string()))?.len();
    if length > PASSWORD_BYTES_MAX {
        return Err(broken(format!("{length} bytes are no password")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
