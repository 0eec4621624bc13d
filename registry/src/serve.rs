//! A static file server for trying things out: GET and HEAD, one byte range, ETag. Real registries lie behind a
//! real web server or object store.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tiny_http::{Header, Method, Request, Response, ResponseBox, StatusCode};

/// Requests answered at a time.
const THREADS: usize = 4;

/// A running server; dropping it stops it.
pub struct Server {
    http: Arc<tiny_http::Server>,
    threads: Vec<JoinHandle<()>>,
    addr: SocketAddr,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `metadata/` and `targets/` of `dir` at `addr`; `127.0.0.1:0` picks a free port of this machine.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(dir: &Path, addr: impl ToSocketAddrs) -> io::Result<Self> {
        let http = Arc::new(tiny_http::Server::http(addr).map_err(io::Error::other)?);
        let addr = http.server_addr().to_ip().ok_or_else(|| io::Error::other("no IP address"))?;
        let threads = (0..THREADS)
            .map(|n| {
                let (http, dir) = (http.clone(), dir.to_path_buf());
                thread::Builder::new().name(format!("registry-{n}")).spawn(move || answer(&http, &dir))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { http, threads, addr })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        for thread in self.threads.drain(..) {
            // A worker that panicked has been reported by then.
            drop(thread.join());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in &self.threads {
            self.http.unblock();
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn answer(http: &tiny_http::Server, dir: &Path) {
    while let Ok(request) = http.recv() {
        let (method, url) = (request.method().clone(), request.url().to_owned());
        let response = respond(dir, &request);
        let status = response.status_code().0;
        log::debug!(method:% = method, url, status; "registry file");
        if let Err(e) = request.respond(response) {
            log::debug!("a client went away: {e}");
        }
    }
}

fn respond(dir: &Path, request: &Request) -> ResponseBox {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return empty(405);
    }
    let Some(path) = path_of(dir, request.url()) else { return empty(404) };
    match file(&path, request) {
        Ok(response) => response,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => empty(404),
        Err(e) => {
            log::warn!("{}: {e}", path.display());
            empty(500)
        }
    }
}

fn file(path: &Path, request: &Request) -> io::Result<ResponseBox> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(empty(404));
    }
    let len = meta.len();
    let etag = format!("\"{:x}-{:x}-{:x}\"", meta.mtime(), meta.mtime_nsec(), len);
    if field(request, "If-None-Match") == Some(&etag) {
        return Ok(empty(304).with_header(header("ETag", &etag)));
    }
    let range =
        field(request, "Range").filter(|_| field(request, "If-Range").is_none_or(|known| known == etag));
    let headers = vec![
        header("Content-Type", content_type(path)),
        header("ETag", &etag),
        header("Accept-Ranges", "bytes"),
    ];
    let (status, from, to) = match range.and_then(|range| byte_range(range, len)) {
        None => (200, 0, len),
        Some(Some((from, to))) => (206, from, to),
        Some(None) => {
            return Ok(empty(416).with_header(header("Content-Range", &format!("bytes */{len}"))));
        }
    };
    file.seek(SeekFrom::Start(from))?;
    let length = usize::try_from(to - from).map_err(io::Error::other)?;
    let body = Box::new(file.take(to - from)) as Box<dyn Read + Send>;
    // A length known beforehand is announced, however large: clients check it against the signed one.
    let response = Response::new(StatusCode(status), headers, body, Some(length), None);
    let response = response.with_chunked_threshold(usize::MAX);
    Ok(if status == 206 {
        response.with_header(header("Content-Range", &format!("bytes {from}-{}/{len}", to - 1)))
    } else {
        response
    })
}

/// One range of bytes, end exclusive. Outer `None`: not a range we know, so the whole file. Inner `None`: outside.
fn byte_range(value: &str, len: u64) -> Option<Option<(u64, u64)>> {
    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => (from, to.saturating_add(1).min(len)),
        (Ok(from), Err(_)) if to.is_empty() => (from, len),
        (Err(_), Ok(last)) if from.is_empty() => (len.saturating_sub(last), len),
        _ => return None,
    };
    Some((range.0 < range.1).then_some(range))
}

/// The file a request names; nothing outside `metadata/` and `targets/`, nothing hidden.
fn path_of(dir: &Path, url: &str) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next()?.strip_prefix('/')?;
    let harmless = |s: &str| !s.is_empty() && !s.starts_with('.') && !s.contains(['%', '\\', '\0']);
    let known = path.starts_with("metadata/") || path.starts_with("targets/");
    (known && path.split('/').all(harmless)).then(|| dir.join(path))
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => "application/json",
        Some("zst") => "application/zstd",
        _ => "application/octet-stream",
    }
}

fn field<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("our header values are plain ASCII")
}

fn empty(status: u16) -> ResponseBox {
    Response::empty(status).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(byte_range("bytes=0-3", 10), Some(Some((0, 4))));
        assert_eq!(byte_range("bytes=4-", 10), Some(Some((4, 10))));
        assert_eq!(byte_range("bytes=-3", 10), Some(Some((7, 10))));
        assert_eq!(byte_range("bytes=5-99", 10), Some(Some((5, 10))));
        assert_eq!(byte_range("bytes=10-", 10), Some(None));
        assert_eq!(byte_range("bytes=3-1", 10), None);
        assert_eq!(byte_range("lines=1-2", 10), None);
    }

    #[test]
    fn only_the_registrys_files_are_served() {
        let dir = Path::new("/r");
        assert_eq!(path_of(dir, "/metadata/timestamp.json?x=1"), Some("/r/metadata/timestamp.json".into()));
        for url in [
            "/metadata/../keys/root-1.age",
            "/targets/%2e%2e/x",
            "//etc/passwd",
            "/etc/passwd",
            "/metadata",
            "/targets/.hidden",
            "metadata/x",
            "/targets//x",
        ] {
            assert_eq!(path_of(dir, url), None, "{url}");
        }
    }
}
