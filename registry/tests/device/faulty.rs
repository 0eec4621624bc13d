//! A web server of a registry's folder that answers some files with an error, over TLS if it is given a certificate.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// It lives as long as the process of the test.
pub(crate) struct Faulty {
    pub(crate) url: String,
}

/// The status for a path, if it is to fail.
type Fault = dyn Fn(&str) -> Option<u16> + Send + Sync;

impl Faulty {
    pub(crate) fn start(dir: &Path, fault: impl Fn(&str) -> Option<u16> + Send + Sync + 'static) -> Self {
        Self::listen("http", dir, Box::new(fault), None)
    }

    pub(crate) fn tls(dir: &Path, config: ServerConfig) -> Self {
        Self::listen("https", dir, Box::new(|_| None), Some(Arc::new(config)))
    }

    fn listen(scheme: &str, dir: &Path, fault: Box<Fault>, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://localhost:{}/", listener.local_addr().unwrap().port());
        let dir = dir.to_path_buf();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away in the middle is often the point.
                drop(match &tls {
                    None => answer(&dir, &fault, stream.unwrap()),
                    Some(config) => {
                        let connection = ServerConnection::new(config.clone()).unwrap();
                        answer(&dir, &fault, StreamOwned::new(connection, stream.unwrap()))
                    }
                });
            }
        });
        Self { url }
    }
}

fn answer(dir: &Path, fault: &Fault, mut stream: impl Read + Write) -> std::io::Result<()> {
    let path = request(&mut stream)?;
    let file: PathBuf = dir.join(path.trim_start_matches('/'));
    let (status, body) = match (fault(&path), std::fs::read(file)) {
        (Some(code), _) => (code, Vec::new()),
        (None, Ok(body)) => (200, body),
        (None, Err(_)) => (404, Vec::new()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(&body)?;
    stream.flush()
}

fn request(stream: &mut impl Read) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    Ok(first.split(' ').nth(1).unwrap_or("/").to_owned())
}
