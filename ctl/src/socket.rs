//! The blocking client of the daemon's Unix socket. One connection, one thing at a time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tractd_wire as wire;

use crate::exchange::{FrameError, Reply, Request};

/// What a reply may take beyond the request's own deadline before the daemon counts as hung.
const GRACE: Duration = Duration::from_secs(10);
/// What a reply may take where the daemon's default deadline holds, and what a query may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest reply body taken: a reply is never larger than a request may be.
const BODY_LEN_MAX: u32 = wire::BODY_LEN_MAX;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    path: PathBuf,
    next_id: u64,
}

/// One frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The header.
    pub header: wire::Header,
    /// The encoded message.
    pub head: Vec<u8>,
    /// The raw bytes after it.
    pub body: Vec<u8>,
}

impl Received {
    /// The frame, for reading its message.
    pub fn frame(&self) -> wire::Frame<'_> {
        wire::Frame { header: self.header, head: &self.head, body: &self.body }
    }
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens.
    #[error("no daemon at {path}; start it with `tractd` or set TRACTD_SOCKET", path = path.display())]
    NoDaemon {
        /// The path tried.
        path: PathBuf,
    },
    /// The socket's permissions, or the daemon's allow-list.
    #[error("not allowed to use {path}; join the socket's group, or ask the operator for access", path = path.display())]
    Denied {
        /// The path tried.
        path: PathBuf,
    },
    /// Nothing came in time.
    #[error("the daemon at {path} did not answer within {} s; see its log", patience.as_secs(), path = path.display())]
    Silent {
        /// The path asked.
        path: PathBuf,
        /// How long it had.
        patience: Duration,
    },
    /// The daemon hung up.
    #[error("the daemon at {path} closed the connection before answering; see its log", path = path.display())]
    Closed {
        /// The path asked.
        path: PathBuf,
    },
    /// Anything else the system says.
    #[error("talking to {path}: {source}", path = path.display())]
    Io {
        /// The path asked.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The reply is no frame we know.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The daemon refused the query.
    #[error("the daemon refused: {} ({})", detail, status.name())]
    Refused {
        /// Its status.
        status: wire::Status,
        /// Its words.
        detail: String,
    },
}

impl Socket {
    /// Connects to the daemon at `path`.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                SocketError::NoDaemon { path: path.to_owned() }
            }
            io::ErrorKind::PermissionDenied => SocketError::Denied { path: path.to_owned() },
            _ => SocketError::Io { path: path.to_owned(), source },
        })?;
        Ok(Self { stream, path: path.to_owned(), next_id: 1 })
    }

    /// Sends one request and waits for its reply. A refusal is a reply too.
    pub fn infer(&mut self, request: &Request) -> Result<Reply, SocketError> {
        let id = self.next_id;
        self.next_id += 1;
        let patience = match request.deadline_ms {
            0 => PATIENCE,
            ms => Duration::from_millis(ms.into()) + GRACE,
        };
        let frame = request.frame(id)?;
        let sent = self.send(&frame, patience);
        // A daemon that refuses by the header alone (too large, say) replies and hangs up while we still write:
        // what it said is worth more than our broken pipe.
        let reply = self.receive(patience);
        let received = match (sent, reply) {
            (_, Ok(received)) => received,
            (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
        };
        let reply = Reply::from_parts(&received.frame())?;
        // 0 answers a frame whose id could not be read.
        if reply.id != id && reply.id != 0 {
            return Err(FrameError::Decode(format!("reply {} to request {id}", reply.id)).into());
        }
        Ok(reply)
    }

    /// Asks the daemon about itself; gives its JSON.
    pub fn query(&mut self, what: wire::What) -> Result<String, SocketError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut frame = [0; wire::HEADER_LEN + 64];
        let used = wire::encode_query(id, &wire::Query { what }, &mut frame)
            .map_err(|error| FrameError::Encode(error.to_string()))?;
        self.send(&frame[..used], PATIENCE)?;
        let received = self.receive(PATIENCE)?;
        let frame = received.frame();
        if frame.header.kind == wire::Kind::Reply {
            // A daemon that could not read the query answers with a reply.
            let reply = Reply::from_parts(&frame)?;
            return Err(SocketError::Refused { status: reply.status, detail: reply.detail });
        }
        let answer = frame.answer().map_err(|error| FrameError::Decode(error.to_string()))?;
        if answer.status != wire::Status::Ok {
            let detail = answer.detail.to_owned();
            return Err(SocketError::Refused { status: answer.status, detail });
        }
        String::from_utf8(received.body)
            .map_err(|_| FrameError::Decode("the answer is not UTF-8".into()).into())
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, frame: &[u8], patience: Duration) -> Result<(), SocketError> {
        self.stream
            .set_write_timeout(Some(patience))
            .and_then(|()| self.stream.write_all(frame))
            .map_err(|source| self.error(source, patience))
    }

    /// Reads one whole frame.
    pub fn receive(&mut self, patience: Duration) -> Result<Received, SocketError> {
        self.stream.set_read_timeout(Some(patience)).map_err(|source| self.error(source, patience))?;
        let mut header = [0; wire::HEADER_LEN];
        self.read_exact(&mut header, patience)?;
        let header = wire::Header::parse(&header)
            .and_then(|header| header.limit_body(BODY_LEN_MAX))
            .map_err(|error| FrameError::Decode(error.to_string()))?;
        let mut head = vec![0; usize::from(header.head_len)];
        self.read_exact(&mut head, patience)?;
        let mut body = vec![0; header.body_len as usize];
        self.read_exact(&mut body, patience)?;
        Ok(Received { header, head, body })
    }

    fn read_exact(&mut self, into: &mut [u8], patience: Duration) -> Result<(), SocketError> {
        self.stream.read_exact(into).map_err(|source| self.error(source, patience))
    }

    fn error(&self, source: io::Error, patience: Duration) -> SocketError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SocketError::Silent { path, patience },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                SocketError::Closed { path }
            }
            _ => SocketError::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn failing(answer: &'static [u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut query = [0; wire::HEADER_LEN];
            stream.read_exact(&mut query).unwrap();
            stream.write_all(answer).unwrap();
        });
        let error = Socket::connect(&path).unwrap().query(wire::What::Status).unwrap_err().to_string();
        server.join().unwrap();
        error.replace(&dir.path().display().to_string(), "DIR")
    }

    #[test]
    fn a_missing_daemon_is_said_with_what_to_do() {
        let error = Socket::connect(Path::new("/nonexistent/t.sock")).unwrap_err().to_string();
        assert_eq!(error, "no daemon at /nonexistent/t.sock; start it with `tractd` or set TRACTD_SOCKET");
    }

    #[test]
    fn a_daemon_that_hangs_up_or_babbles_is_told_apart() {
        assert_eq!(
            failing(b""),
            "the daemon at DIR/t.sock closed the connection before answering; see its log"
        );
        let babble = failing(b"HTTP/1.1 400 Bad Request");
        assert!(babble.starts_with("the reply is not understood"), "{babble}");
    }
}
