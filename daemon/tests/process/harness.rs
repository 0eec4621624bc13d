//! A real `tractd` on a folder of its own, and a client that speaks frames.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tractd_wire::{
    self as wire, Content, DType, FRAME_HEAD_MAX, HEADER_LEN, Header, Kind, Priority, Query, Request, Status,
    TensorDesc, Want, What,
};

/// Longest anything here may take; a test that hangs fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The repository's example models.
pub(crate) fn repository_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// A folder for one daemon: configuration, models, state, socket.
pub(crate) struct Site {
    pub dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Site {
        let site = Site { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(site.models()).unwrap();
        // The default would reach for a broker on this machine.
        site.configure("");
        site
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/tractd.sock")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("tractd.toml")
    }

    /// Writes the configuration, MQTT switched off.
    pub(crate) fn configure(&self, toml: &str) {
        fs::write(self.config(), format!("{toml}\n[mqtt]\nenabled = false\n")).unwrap();
    }

    /// Puts a bare model into the models folder.
    pub(crate) fn add_model(&self, name: &str, version: u64, onnx: &[u8]) {
        let dir = self.models().join(name).join(version.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("model.onnx"), onnx).unwrap();
    }

    /// Copies one of the repository's models.
    pub(crate) fn add_example(&self, name: &str, version: u64) {
        let from = repository_models().join(name).join(version.to_string());
        copy(&from, &self.models().join(name).join(version.to_string()));
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tractd"));
        command.arg("--config").arg(self.config()).arg("--state").arg(self.dir.path().join("state"));
        command.arg("--socket").arg(self.socket()).arg("--models").arg(self.models());
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    /// Starts the daemon and waits until the models found were tried.
    pub(crate) fn start(&self) -> Daemon {
        let daemon = self.spawn(self.command());
        daemon.wait_log("ready");
        daemon
    }

    pub(crate) fn spawn(&self, mut command: Command) -> Daemon {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Daemon { child, log, socket: self.socket() }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line of the log contains `text`.
    pub(crate) fn wait_log(&self, text: &str) {
        self.wait_log_times(text, 1);
    }

    pub(crate) fn wait_log_times(&self, text: &str, times: usize) {
        let found = || self.log().iter().filter(|line| line.contains(text)).count() >= times;
        wait_until(found, || format!("{text:?} in the log:\n{}", self.log().join("\n")));
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log().join("\n"));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// For daemons that have not logged that they are ready: the socket's file is there a moment before anybody listens.
    pub(crate) fn wait_listening(&self) {
        wait_until(|| UnixStream::connect(&self.socket).is_ok(), || self.log().join("\n"));
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, id: 0 }
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.connect().query(What::Status)
    }

    pub(crate) fn models(&self) -> serde_json::Value {
        self.connect().query(What::Models)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            eprintln!("--- log of tractd\n{}", self.log().join("\n"));
        }
    }
}

pub(crate) fn wait_until(done: impl Fn() -> bool, what: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "still waiting for {}", what());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A blocking client.
pub(crate) struct Client {
    pub stream: UnixStream,
    id: u64,
}

/// One reply, its parts owned.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub id: u64,
    pub status: Status,
    pub model: String,
    pub version: u64,
    pub digest: [u8; 32],
    pub signed: bool,
    pub retry_after_ms: u32,
    pub detail: String,
    pub labels: Vec<String>,
    pub body: Vec<u8>,
}

/// A request's parts.
pub(crate) struct Ask<'a> {
    pub model: &'a str,
    pub deadline_ms: u32,
    pub tensors: Vec<(&'a str, DType, Vec<u32>)>,
    pub body: Vec<u8>,
}

impl<'a> Ask<'a> {
    /// One tensor.
    pub(crate) fn tensor(
        model: &'a str,
        name: &'a str,
        dtype: DType,
        shape: &[u32],
        body: Vec<u8>,
    ) -> Ask<'a> {
        Ask { model, deadline_ms: 0, tensors: vec![(name, dtype, shape.to_vec())], body }
    }

    /// One picture.
    pub(crate) fn media(model: &'a str, body: Vec<u8>) -> Ask<'a> {
        Ask { model, deadline_ms: 0, tensors: vec![], body }
    }

    pub(crate) fn within(self, deadline_ms: u32) -> Ask<'a> {
        Ask { deadline_ms, ..self }
    }

    /// The whole frame.
    pub(crate) fn frame(&self, id: u64) -> Vec<u8> {
        let content = if self.tensors.is_empty() { Content::Media } else { Content::Tensors };
        let tensors = self.tensors.iter().map(|(name, dtype, shape)| TensorDesc {
            name,
            dtype: *dtype,
            shape: wire::Shape::from_slice(shape).unwrap(),
        });
        let request = Request {
            model: self.model,
            deadline_ms: self.deadline_ms,
            priority: Priority::Normal,
            content,
            want: Want::ALL,
            stream: 0,
            sequence: 0,
            tensors: tensors.collect(),
        };
        let mut frame = vec![0; FRAME_HEAD_MAX];
        let length = wire::encode_request(id, &request, self.body.len() as u32, &mut frame).unwrap();
        frame.truncate(length);
        frame.extend_from_slice(&self.body);
        frame
    }
}

impl Client {
    /// Sends a request and returns its id.
    pub(crate) fn send(&mut self, ask: &Ask<'_>) -> u64 {
        self.id += 1;
        self.stream.write_all(&ask.frame(self.id)).unwrap();
        self.id
    }

    /// Sends a request and takes its reply.
    pub(crate) fn ask(&mut self, ask: &Ask<'_>) -> Reply {
        let id = self.send(ask);
        let reply = self.receive();
        assert_eq!(reply.id, id);
        reply
    }

    pub(crate) fn receive(&mut self) -> Reply {
        self.try_receive().unwrap()
    }

    pub(crate) fn try_receive(&mut self) -> io::Result<Reply> {
        let (header, head, body) = self.frame()?;
        assert_eq!(header.kind, Kind::Reply);
        let reply = wire::decode_reply(&head, header.body_len).unwrap();
        Ok(Reply {
            id: header.id,
            status: reply.status,
            model: reply.model.to_owned(),
            version: reply.version,
            digest: reply.digest,
            signed: reply.signed,
            retry_after_ms: reply.retry_after_ms,
            detail: reply.detail.to_owned(),
            labels: reply.classes.iter().map(|class| class.label.to_owned()).collect(),
            body,
        })
    }

    pub(crate) fn frame(&mut self) -> io::Result<(Header, Vec<u8>, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let header = Header::parse(&header).unwrap();
        let mut head = vec![0; header.head_len.into()];
        self.stream.read_exact(&mut head)?;
        let mut body = vec![0; header.body_len as usize];
        self.stream.read_exact(&mut body)?;
        Ok((header, head, body))
    }

    pub(crate) fn query(&mut self, what: What) -> serde_json::Value {
        let (status, detail, json) = self.try_query(what);
        assert_eq!(status, Status::Ok, "{detail}");
        json
    }

    pub(crate) fn try_query(&mut self, what: What) -> (Status, String, serde_json::Value) {
        let mut frame = vec![0; FRAME_HEAD_MAX];
        let length = wire::encode_query(77, &Query { what }, &mut frame).unwrap();
        self.stream.write_all(&frame[..length]).unwrap();
        let (header, head, body) = self.frame().unwrap();
        assert_eq!((header.kind, header.id), (Kind::Answer, 77));
        let answer = wire::decode_answer(&head).unwrap();
        let json =
            if body.is_empty() { serde_json::Value::Null } else { serde_json::from_slice(&body).unwrap() };
        (answer.status, answer.detail.to_owned(), json)
    }

    /// Whether the daemon has closed its side after what was read.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

/// Little-endian bytes of floats.
pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
