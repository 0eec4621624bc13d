//! Where a registry lies: static files over HTTP(S), or a folder such as a memory stick, and its mirrors.
//! Everything they give is untrusted; what this module owes the rest is an end: of bytes and of time.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _, TcpConnector};
use ureq::{Agent, Body};
use url::Url;

use crate::certificates::Validity;
use crate::clock::Clock;
use crate::fs::{Disk, FileSystem};
use crate::tls::{Roots, Seen, Tls};

/// Redirects followed. More is a loop.
const REDIRECTS_MAX: u32 = 3;
/// Mirrors asked. Each may cost its timeouts before the next one's turn.
const MIRRORS_MAX: usize = 8;

/// How a registry is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Patience.
    pub timing: Timing,
    /// Whose certificates count for `https`.
    pub roots: Roots,
    /// Other places with the same files, asked in this order while the registry itself does not answer. They need
    /// no trust: what is believed is signed. At most 8.
    pub mirrors: Vec<Url>,
    /// Nobody told this machine the time since it started: see [`Clock::new`].
    pub clock_unset: bool,
}

/// Patience with a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Until a connection stands, name and TLS included.
    pub connect: Duration,
    /// Until the next bytes arrive.
    pub idle: Duration,
    /// For one metadata file in all.
    pub metadata: Duration,
    /// A download's speed is judged over this long.
    pub window: Duration,
    /// Slowest download waited for, in bytes a second. One byte a second would otherwise hold an update forever.
    pub speed_min_bytes_s: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(30),
            metadata: Duration::from_secs(60),
            window: Duration::from_secs(20),
            speed_min_bytes_s: 1024,
        }
    }
}

/// Why bytes did not come. All of it may pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Only `https`, `http` and `file`.
    #[error("registry {0}: only https, http and file addresses work")]
    Scheme(Url),
    /// More mirrors than are asked.
    #[error("{0} mirrors, at most {MIRRORS_MAX} are asked")]
    Mirrors(usize),
    /// A name that cannot be a file of a registry.
    #[error("{0:?} is no name of a registry's file")]
    Name(String),
    /// It should be there and is not.
    #[error("{0} is not there")]
    Missing(String),
    /// The server refuses.
    #[error("{what}: the server answered {code}")]
    Status {
        /// The file.
        what: String,
        /// HTTP status.
        code: u16,
    },
    /// A web page where a registry's file should be.
    #[error("{0}: a web page came instead; is there a captive portal or login in between?")]
    WebPage(String),
    /// More than is allowed or signed.
    #[error("{what}: more than {limit_bytes} bytes")]
    TooLong {
        /// The file.
        what: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// Fewer than signed; the next try goes on from here.
    #[error("{what}: ended after {bytes} of {total} bytes")]
    TooShort {
        /// The file.
        what: String,
        /// Bytes here.
        bytes: u64,
        /// Bytes signed.
        total: u64,
    },
    /// The server announces another length than is signed.
    #[error("{what}: the server announces {announced} bytes where {expected} are signed")]
    Length {
        /// The file.
        what: String,
        /// By the server.
        announced: u64,
        /// By the team.
        expected: u64,
    },
    /// The bytes are not the signed ones. Nothing of them was kept.
    #[error("{0}: the bytes are not the signed ones")]
    Hash(String),
    /// No bytes for too long, or too few.
    #[error("{what}: too slow ({message})")]
    TooSlow {
        /// The file.
        what: String,
        /// Which patience ended.
        message: String,
    },
    /// Everything else between here and there.
    #[error("{what}: {message}")]
    Transport {
        /// The file.
        what: String,
        /// What was said.
        message: String,
    },
}

/// A registry to read from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The registry first, then its mirrors.
    places: Vec<Place>,
    /// The one that answered last: one that is away is not waited for at every file.
    at: Arc<AtomicUsize>,
    timing: Timing,
    seen: Arc<Seen>,
}

#[derive(Debug, Clone)]
struct Place {
    metadata: Folder,
    targets: Folder,
}

/// A folder of files, here or behind a web server.
#[derive(Debug, Clone)]
enum Folder {
    Dir(PathBuf),
    Http { base: String, agent: Agent },
}

/// Bytes of a target on their way.
pub(crate) struct Stream {
    /// Where in the file they begin: 0 when the server would not resume.
    pub(crate) offset: u64,
    pub(crate) bytes: Box<dyn Read>,
}

impl Source {
    /// A registry at `url`; nothing is asked yet. Certificates are judged by `clock`.
    ///
    /// # Errors
    /// [`FetchError::Scheme`], [`FetchError::Mirrors`].
    pub fn new(url: &Url, access: &Access, clock: Clock) -> Result<Self, FetchError> {
        if access.mirrors.len() > MIRRORS_MAX {
            return Err(FetchError::Mirrors(access.mirrors.len()));
        }
        let seen = Arc::<Seen>::default();
        let places = std::iter::once(url).chain(&access.mirrors).map(|url| {
            let folder = Folder::new(url, access, clock, &seen)?;
            Ok(Place { metadata: folder.below("metadata"), targets: folder.below("targets") })
        });
        let places = places.collect::<Result<_, FetchError>>()?;
        Ok(Self::of(places, access, seen))
    }

    /// A registry whose metadata and targets lie in two places of any names, without mirrors.
    ///
    /// # Errors
    /// [`FetchError::Scheme`].
    pub fn split(metadata: &Url, targets: &Url, access: &Access, clock: Clock) -> Result<Self, FetchError> {
        let seen = Arc::<Seen>::default();
        let metadata = Folder::new(metadata, access, clock, &seen)?;
        let targets = Folder::new(targets, access, clock, &seen)?;
        Ok(Self::of(vec![Place { metadata, targets }], access, seen))
    }

    fn of(places: Vec<Place>, access: &Access, seen: Arc<Seen>) -> Self {
        Self { places, at: Arc::default(), timing: access.timing.clone(), seen }
    }

    /// How long the certificate is good that a server showed last, and that was believed.
    pub(crate) fn certificate(&self) -> Option<Validity> {
        self.seen.last()
    }

    /// The places in the order they are to be asked now.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (at, all) = (self.at.load(Ordering::Relaxed), self.places.len());
        (0..all).map(move |n| (at + n) % all)
    }

    /// The first answer any place gives; when none does, what the first one asked had to say.
    fn first<T>(&self, ask: impl Fn(&Place) -> Result<T, FetchError>) -> Result<T, FetchError> {
        let mut first = None;
        for n in self.order() {
            match ask(&self.places[n]) {
                Ok(answer) => {
                    self.at.store(n, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.expect("there is one place at least"))
    }

    /// A metadata file of at most `limit_bytes`; `None` when the registry has none of that name.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn metadata(&self, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, FetchError> {
        check_name(name)?;
        self.first(|place| self.metadata_at(place, name, limit_bytes))
    }

    fn metadata_at(
        &self,
        place: &Place,
        name: &str,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let bytes = match &place.metadata {
            Folder::Dir(dir) => match open_file(&dir.join(name), 0)? {
                None => return Ok(None),
                Some(file) => read_limited(file, name, limit_bytes)?,
            },
            Folder::Http { base, agent } => {
                let total = Some(self.timing.metadata);
                let request = agent.get(format!("{base}/{name}")).config().timeout_global(total).build();
                let response = request.call().map_err(|e| transport(name, &e))?;
                match response.status().as_u16() {
                    200 => {}
                    // Object stores say 403 for what is not there.
                    403 | 404 => return Ok(None),
                    code => return Err(FetchError::Status { what: name.to_owned(), code }),
                }
                if is_html(response.headers()) {
                    return Err(FetchError::WebPage(name.to_owned()));
                }
                read_limited(body(response), name, limit_bytes)?
            }
        };
        match bytes.trim_ascii_start().first() {
            Some(b'<') => Err(FetchError::WebPage(name.to_owned())),
            _ => Ok(Some(bytes)),
        }
    }

    /// The whole of a target of at most `limit_bytes`.
    pub(crate) fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        path.split('/').try_for_each(check_name)?;
        self.first(|place| {
            let stream = self.target_at(place, path, 0, limit_bytes)?;
            read_limited(stream.bytes, path, limit_bytes)
        })
    }

    /// A target's bytes from `offset` on, of `total` signed ones, from each place in turn until `take` has them all.
    /// `path` is where the file lies, its hash in the name. More than asked for may come: `take` counts.
    pub(crate) fn target<E: From<FetchError>>(
        &self,
        path: &str,
        total: u64,
        mut take: impl FnMut(&dyn Fn(u64) -> Result<Stream, FetchError>) -> Result<(), E>,
        goes_on: impl Fn(&E) -> bool,
    ) -> Result<(), E> {
        path.split('/').try_for_each(check_name)?;
        let mut first = None;
        for n in self.order() {
            match take(&|offset| self.target_at(&self.places[n], path, offset, total)) {
                Ok(()) => {
                    self.at.store(n, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if !goes_on(&error) => return Err(error),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.expect("there is one place at least"))
    }

    fn target_at(&self, place: &Place, path: &str, offset: u64, total: u64) -> Result<Stream, FetchError> {
        match &place.targets {
            Folder::Dir(dir) => {
                let file = open_file(&dir.join(path), offset)?;
                Ok(Stream { offset, bytes: file.ok_or_else(|| FetchError::Missing(path.to_owned()))? })
            }
            Folder::Http { base, agent } => {
                let url = format!("{base}/{path}");
                if offset > 0 {
                    let range = format!("bytes={offset}-");
                    let response = agent.get(&url).header(header::RANGE, range).call();
                    let response = response.map_err(|e| transport(path, &e))?;
                    let status = response.status().as_u16();
                    let resumed = status == 206 && range_begins(response.headers(), offset, total);
                    if resumed || !matches!(status, 206 | 416) {
                        let begin = if resumed { offset } else { 0 };
                        return self.stream(path, response, begin, total);
                    }
                }
                let response = agent.get(&url).call().map_err(|e| transport(path, &e))?;
                self.stream(path, response, 0, total)
            }
        }
    }

    /// A response whose body begins at `offset`.
    fn stream(
        &self,
        path: &str,
        response: Response<Body>,
        offset: u64,
        total: u64,
    ) -> Result<Stream, FetchError> {
        let what = path.to_owned();
        match response.status().as_u16() {
            200 => {}
            206 if offset > 0 => {}
            403 | 404 => return Err(FetchError::Missing(what)),
            code => return Err(FetchError::Status { what, code }),
        }
        if is_html(response.headers()) {
            return Err(FetchError::WebPage(what));
        }
        let expected = total - offset;
        if let Some(announced) = response.body().content_length().filter(|length| *length != expected) {
            return Err(FetchError::Length { what, announced, expected });
        }
        Ok(Stream { offset, bytes: Box::new(Steady::new(body(response), &self.timing)) })
    }
}

impl Folder {
    fn new(url: &Url, access: &Access, clock: Clock, seen: &Arc<Seen>) -> Result<Self, FetchError> {
        match url.scheme() {
            "file" => url.to_file_path().map(Self::Dir).map_err(|()| FetchError::Scheme(url.clone())),
            "http" | "https" => {
                let base = url.as_str().trim_end_matches('/').to_owned();
                let tls = Tls::new(access.roots.clone(), clock, seen.clone());
                Ok(Self::Http { base, agent: agent(url.scheme() == "https", access, tls) })
            }
            _ => Err(FetchError::Scheme(url.clone())),
        }
    }

    fn below(&self, folder: &str) -> Self {
        match self {
            Self::Dir(dir) => Self::Dir(dir.join(folder)),
            Self::Http { base, agent } => {
                Self::Http { base: format!("{base}/{folder}"), agent: agent.clone() }
            }
        }
    }
}

/// A file from `offset` on; `None` when it is not there.
fn open_file(path: &Path, offset: u64) -> Result<Option<Box<dyn Read>>, FetchError> {
    let failed =
        |e: io::Error| FetchError::Transport { what: path.display().to_string(), message: e.to_string() };
    let mut file = match Disk.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    io::copy(&mut file.by_ref().take(offset), &mut io::sink()).map_err(failed)?;
    Ok(Some(file))
}

fn agent(https: bool, access: &Access, tls: Tls) -> Agent {
    let timing = &access.timing;
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(https)
        .max_redirects(REDIRECTS_MAX)
        .timeout_resolve(Some(timing.connect))
        .timeout_connect(Some(timing.connect))
        .timeout_recv_response(Some(timing.idle))
        .timeout_per_read(Some(timing.idle))
        .timeout_per_write(Some(timing.idle))
        .accept_encoding("identity")
        .user_agent(concat!("tractd/", env!("CARGO_PKG_VERSION")));
    let connector = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default());
    let connector = connector.chain(tls);
    Agent::with_parts(config.build(), connector, DefaultResolver::default())
}

/// The body; limits are kept by who reads it.
fn body(response: Response<Body>) -> impl Read + 'static {
    response.into_body().into_with_config().limit(u64::MAX).reader()
}

fn read_limited(bytes: impl Read, what: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
    let mut read = Vec::new();
    bytes.take(limit_bytes.saturating_add(1)).read_to_end(&mut read).map_err(|e| read_error(what, &e))?;
    if read.len() as u64 > limit_bytes {
        return Err(FetchError::TooLong { what: what.to_owned(), limit_bytes });
    }
    Ok(read)
}

/// One file name; of a path, one segment.
fn check_name(name: &str) -> Result<(), FetchError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~' | b'%');
    if !name.is_empty() && name != "." && name != ".." && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(FetchError::Name(name.to_owned()))
    }
}

fn is_html(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"))
}

/// `Content-Range: bytes <asked>-<total - 1>/<total>`; anything else is another file or another range.
fn range_begins(headers: &HeaderMap, asked: u64, total: u64) -> bool {
    let expected = format!("bytes {asked}-{}/{total}", total.saturating_sub(1));
    headers.get(header::CONTENT_RANGE).is_some_and(|value| value.as_bytes() == expected.as_bytes())
}

fn transport(what: &str, error: &ureq::Error) -> FetchError {
    match error {
        ureq::Error::Timeout(_) => FetchError::TooSlow { what: what.to_owned(), message: error.to_string() },
        ureq::Error::Io(e) => read_error(what, e),
        _ => FetchError::Transport { what: what.to_owned(), message: error.to_string() },
    }
}

pub(crate) fn read_error(what: &str, error: &io::Error) -> FetchError {
    let timeout = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    let slow = matches!(timeout, Some(ureq::Error::Timeout(_)))
        || matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
    let (what, message) = (what.to_owned(), error.to_string());
    if slow { FetchError::TooSlow { what, message } } else { FetchError::Transport { what, message } }
}

/// Ends a stream that trickles: every window must bring its share.
struct Steady<R> {
    inner: R,
    window: Duration,
    bytes_min: u64,
    since: Instant,
    bytes: u64,
}

impl<R> Steady<R> {
    fn new(inner: R, timing: &Timing) -> Self {
        let bytes_min = timing.speed_min_bytes_s as f64 * timing.window.as_secs_f64();
        Self { inner, window: timing.window, bytes_min: bytes_min as u64, since: Instant::now(), bytes: 0 }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        if read > 0 && self.since.elapsed() >= self.window {
            if self.bytes < self.bytes_min {
                let message = format!("{} bytes in {:.1} s", self.bytes, self.since.elapsed().as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.since = Instant::now();
            self.bytes = 0;
        }
        Ok(read)
    }
}
