//! The Unix socket: whose it is, who may come in, and how many at once.

use crate::{
    config,
    connection::{self, Desk, Terms},
    intake::{Outgoing, Reply},
};
use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net as blocking,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tractd_wire::{HEADER_LEN, Header, Kind, Status};

/// Clients turned away politely at once; beyond that they are only closed.
const TURNING_AWAY_MAX: usize = 32;

/// Patience with a client that is turned away.
const TURNING_AWAY: Duration = Duration::from_secs(1);

/// Pause after a failed accept: out of file descriptors, most likely, and asking again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client is told to wait when there are too many, in milliseconds.
const CONNECTIONS_RETRY_MS: u32 = 1_000;

/// A socket ready to be listened on.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: blocking::UnixListener,
    /// Path to remove at the end; none when systemd owns it.
    own: Option<PathBuf>,
}

/// Counters of the socket.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) open: AtomicUsize,
    pub(crate) accepted: AtomicU64,
    pub(crate) turned_away: AtomicU64,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: another daemon is listening there", .0.display())]
    InUse(PathBuf),
    #[error("{}: something that is no socket is in the way", .0.display())]
    InTheWay(PathBuf),
    #[error("{}: belongs to another user, or others may write there", .0.display())]
    UnsafeFolder(PathBuf),
}

/// Where the socket is when nothing says otherwise.
pub(crate) fn default_path() -> PathBuf {
    let uid = rustix::process::geteuid();
    match (std::env::var_os("TRACTD_SOCKET"), std::env::var_os("XDG_RUNTIME_DIR")) {
        (Some(path), _) if !path.is_empty() => path.into(),
        _ if uid.is_root() => "/run/tractd/tractd.sock".into(),
        (_, Some(dir)) if !dir.is_empty() => Path::new(&dir).join("tractd/tractd.sock"),
        _ => format!("/tmp/tractd-{}/tractd.sock", uid.as_raw()).into(),
    }
}

impl Bound {
    /// Takes the socket systemd passed, by the name `tractd.socket` or as the only one; none when it passed none.
    pub(crate) fn from_systemd() -> io::Result<Option<Bound>> {
        let named: Vec<String> = match sd_notify::listen_fds_with_names() {
            Ok(fds) => fds.map(|(_, name)| name).collect(),
            Err(_) => Vec::new(),
        };
        let mut passed = listenfd::ListenFd::from_env();
        let index = match named.iter().position(|name| name == "tractd.socket" || name == "tractd") {
            Some(index) => index,
            None if passed.len() == 1 => 0,
            None => return Ok(None),
        };
        let Some(listener) = passed.take_unix_listener(index)? else { return Ok(None) };
        // The child a model is tried in must not be able to answer in our place.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Some(Bound { listener, own: None }))
    }

    /// Binds `path`, making its folder (0750 as root, else 0700) when there is none. The socket is 0660: who may
    /// connect is decided by the folder, the group, and the allow-list.
    pub(crate) fn bind(path: &Path) -> Result<Bound, BindError> {
        let io = |source| BindError::Io { path: path.to_path_buf(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let root = rustix::process::geteuid().is_root();
        if !folder.exists() {
            let mode = if root { 0o750 } else { 0o700 };
            DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(io)?;
        }
        check_folder(folder)?;
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(BindError::InTheWay(path.to_path_buf()));
            }
            Ok(_) if blocking::UnixStream::connect(path).is_ok() => {
                return Err(BindError::InUse(path.to_path_buf()));
            }
            // Nobody listens: left behind by a daemon that was killed.
            Ok(_) => fs::remove_file(path).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let listener = blocking::UnixListener::bind(path).map_err(io)?;
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(io)?;
        Ok(Bound { listener, own: Some(path.to_path_buf()) })
    }
}

/// In a folder like /tmp others could put their own socket in our place: a folder others may write to must at least
/// be sticky, and the one made for us under /tmp must be ours.
fn check_folder(folder: &Path) -> Result<(), BindError> {
    let there =
        fs::metadata(folder).map_err(|source| BindError::Io { path: folder.to_path_buf(), source })?;
    let (uid, mode) = (rustix::process::geteuid().as_raw(), there.mode());
    let trusted_owner = there.uid() == uid || there.uid() == 0;
    let others_write = mode & 0o002 != 0 && mode & 0o1000 == 0;
    if trusted_owner && !others_write { Ok(()) } else { Err(BindError::UnsafeFolder(folder.to_path_buf())) }
}

/// Accepts until `draining`, then waits for the connections; their requests must have been answered by the time
/// `closing` turns true.
pub(crate) async fn serve(
    bound: Bound,
    desk: Arc<Desk>,
    counters: Arc<Counters>,
    settings: watch::Receiver<Arc<config::Socket>>,
    mut draining: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
) -> io::Result<()> {
    bound.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(bound.listener)?;
    let mut connections = JoinSet::new();
    let turning_away = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = draining.wait_for(|draining| *draining) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let settings = settings.borrow().clone();
        match admit(&stream, &settings, &counters) {
            Ok(terms) => {
                let open = Open::new(&counters);
                let (desk, closing) = (desk.clone(), closing.clone());
                connections.spawn(async move {
                    connection::serve(stream, desk, terms, closing).await;
                    drop(open);
                });
            }
            Err(refusal) => {
                counters.turned_away.fetch_add(1, Relaxed);
                desk.intake.count_refusal(refusal.status);
                if turning_away.fetch_add(1, Relaxed) < TURNING_AWAY_MAX {
                    let turning_away = turning_away.clone();
                    connections.spawn(async move {
                        drop(timeout(TURNING_AWAY, turn_away(stream, refusal)).await);
                        turning_away.fetch_sub(1, Relaxed);
                    });
                } else {
                    turning_away.fetch_sub(1, Relaxed);
                }
            }
        }
    }
    drop(listener);
    if let Some(path) = bound.own {
        drop(fs::remove_file(path));
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Counts a connection while it lives.
struct Open(Arc<Counters>);

impl Open {
    fn new(counters: &Arc<Counters>) -> Open {
        counters.accepted.fetch_add(1, Relaxed);
        counters.open.fetch_add(1, Relaxed);
        Open(counters.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

fn admit(stream: &UnixStream, settings: &config::Socket, counters: &Counters) -> Result<Terms, Reply> {
    let forbidden = |detail| Reply::refusal(Status::Forbidden, "", detail);
    let peer =
        stream.peer_cred().map_err(|_| forbidden("who is asking could not be found out".to_owned()))?;
    let own = rustix::process::geteuid().as_raw();
    let privileged = peer.uid() == 0 || peer.uid() == own;
    let open_to_all = settings.allow_uids.is_empty() && settings.allow_gids.is_empty();
    let listed = settings.allow_uids.contains(&peer.uid()) || settings.allow_gids.contains(&peer.gid());
    if !(privileged || open_to_all || listed) {
        let detail = format!("user {} (group {}) is not on the socket's allow-list", peer.uid(), peer.gid());
        return Err(forbidden(detail));
    }
    if counters.open.load(Relaxed) >= settings.connections_max.get() {
        let detail = format!("{} connections are open already", settings.connections_max);
        return Err(Reply::refusal(Status::Busy, "", detail).retry_after(CONNECTIONS_RETRY_MS));
    }
    Ok(Terms {
        uid: peer.uid(),
        privileged,
        inflight_max: settings.inflight_max.get(),
        frame_timeout: Duration::from_millis(settings.frame_timeout_ms),
        idle_timeout: Duration::from_millis(settings.idle_timeout_ms),
    })
}

/// Answers a client's first frame with why it is turned away, then reads on until it leaves.
async fn turn_away(stream: UnixStream, refusal: Reply) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let mut header = [0; HEADER_LEN];
    read.read_exact(&mut header).await?;
    let header = Header::parse(&header).ok();
    let id = header.map_or(0, |header| header.id);
    let outgoing = if header.is_some_and(|header| header.kind == Kind::Query) {
        Outgoing::Answer { status: refusal.status, detail: refusal.detail, json: Vec::new() }
    } else {
        Outgoing::Reply(refusal)
    };
    connection::write_one(&mut write, id, &outgoing).await?;
    drop(write);
    let mut sink = [0; 4096];
    while read.read(&mut sink).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_and_a_stale_socket_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/tractd.sock");
        let bound = Bound::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let folder = fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777;
        assert_eq!(folder, if rustix::process::geteuid().is_root() { 0o750 } else { 0o700 });

        assert!(matches!(Bound::bind(&path), Err(BindError::InUse(_))));
        drop(bound);
        Bound::bind(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tractd.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Bound::bind(&path), Err(BindError::InTheWay(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_folder_anyone_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Bound::bind(&dir.path().join("s")), Err(BindError::UnsafeFolder(_))));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        Bound::bind(&dir.path().join("s")).unwrap();
    }
}
