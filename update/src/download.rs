//! One archive from a registry into the store: resumed where it stopped, never longer than signed, and whole only
//! once its hash is right.
//!
//! It is written in place, neither synced nor renamed: whatever lies there is hashed each time before it is used or
//! built on, so a name it gets only when it is whole would protect nothing, and neither would a sync.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::fs::{self, FileSystem, WriteFile};
use crate::source::{FetchError, Source, Stream, read_error};
use crate::store::{Store, StoreError, io_at};

/// Bytes moved at a time.
const CHUNK: usize = 64 << 10;
/// Bytes between two reports of progress.
const PROGRESS: u64 = 1 << 20;

/// An archive as signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Where its file lies below `targets/`.
    pub(crate) location: String,
    /// SHA-256, 64 hex digits.
    pub(crate) sha256: String,
    /// Its length.
    pub(crate) bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What one rollout may cost a device in fetching one archive. A registry that never delivers, or always the wrong
/// bytes, is left alone after it; a new rollout begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Tries that asked for the archive.
    pub(crate) tries: u32,
    /// Bytes of it that came, the useless ones too.
    pub(crate) bytes: u64,
}

/// More than two days of hourly checks on a bad line.
const TRIES_MAX: u32 = 64;
/// Archives' worth of bytes: a good line needs one, a poisoned part costs one more.
const ARCHIVES_MAX: u64 = 4;
/// Bytes nobody counts: of a small archive the tries are what is bounded.
const BYTES_FREE: u64 = 1 << 20;

impl Spent {
    /// Why no more is spent on an archive of `archive_bytes`.
    pub(crate) fn over(self, archive_bytes: u64) -> Option<String> {
        let Self { tries, bytes } = self;
        let bytes_max = archive_bytes.saturating_mul(ARCHIVES_MAX).max(BYTES_FREE);
        if tries >= TRIES_MAX {
            return Some(format!("its download was tried {tries} times; a new rollout begins anew"));
        }
        let over = bytes >= bytes_max;
        over.then(|| {
            format!("its download cost {bytes} bytes, {bytes_max} are allowed; a new rollout begins anew")
        })
    }
}

/// Brings `archive` into the store's blobs; `progress` hears bytes here of bytes in all. `received` grows by every
/// byte that came.
pub(crate) fn download(
    store: &Store,
    source: &Source,
    archive: &Archive,
    progress: &mut dyn FnMut(u64, u64),
    received: &mut u64,
) -> Result<PathBuf, DownloadError> {
    let take = |open: &dyn Fn(u64) -> Result<Stream, FetchError>| {
        match attempt(store, open, archive, progress, received) {
            // What an earlier try left may have been another file's bytes: once more, from nothing.
            Err((DownloadError::Fetch(FetchError::Hash(_)), true)) => {
                attempt(store, open, archive, progress, received).map_err(|(error, _)| error)
            }
            other => other.map_err(|(error, _)| error),
        }
    };
    let elsewhere = |error: &DownloadError| matches!(error, DownloadError::Fetch(_));
    source.target(&archive.location, archive.bytes, take, elsewhere)?;
    Ok(store.blob(&archive.sha256))
}

/// One pass; an error tells whether bytes of an earlier try were built on.
fn attempt(
    store: &Store,
    open: &dyn Fn(u64) -> Result<Stream, FetchError>,
    archive: &Archive,
    progress: &mut dyn FnMut(u64, u64),
    received: &mut u64,
) -> Result<(), (DownloadError, bool)> {
    let fs = &**store.fs();
    let blob = store.blob(&archive.sha256);
    let (hash, here) = resume(fs, &blob, archive.bytes).map_err(|e| (e, false))?;
    let mut resumed = here > 0;
    progress(here, archive.bytes);
    let hash = if here == archive.bytes {
        hash
    } else {
        let stream = open(here).map_err(|e| (e.into(), resumed))?;
        let (mut file, hash, here) = if stream.offset == here && here > 0 {
            (fs.append(&blob), hash, here)
        } else {
            resumed = false;
            (fs.create(&blob), Sha256::new(), 0)
        };
        let file = file.as_mut().map_err(|e| io::Error::new(e.kind(), e.to_string()));
        let file = file.map_err(|e| (io_at(&blob)(e).into(), resumed))?;
        let mut copy = Copy { archive, blob: &blob, hash, here, progress };
        let copied = copy.run(stream.bytes, &mut **file);
        *received += copy.here - here;
        let hash = copy.hash;
        if let Err(error) = copied {
            if !matches!(error, DownloadError::Fetch(ref e) if may_go_on(e)) {
                fs::remove(fs, &blob).map_err(|e| (io_at(&blob)(e).into(), resumed))?;
            }
            return Err((error, resumed));
        }
        hash
    };
    if hex(hash) != archive.sha256 {
        fs::remove(fs, &blob).map_err(|e| (io_at(&blob)(e).into(), resumed))?;
        return Err((FetchError::Hash(archive.location.clone()).into(), resumed));
    }
    Ok(())
}

/// Whether the bytes so far may be a beginning of the file.
fn may_go_on(error: &FetchError) -> bool {
    matches!(error, FetchError::TooShort { .. } | FetchError::TooSlow { .. } | FetchError::Transport { .. })
}

struct Copy<'a> {
    archive: &'a Archive,
    blob: &'a Path,
    hash: Sha256,
    here: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Copy<'_> {
    fn run(&mut self, mut stream: Box<dyn Read>, file: &mut dyn WriteFile) -> Result<(), DownloadError> {
        let total = self.archive.bytes;
        let what = &self.archive.location;
        let mut buffer = vec![0; CHUNK];
        let mut told = self.here;
        loop {
            let read = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(what, &e).into()),
            };
            self.here += read as u64;
            if self.here > total {
                return Err(FetchError::TooLong { what: what.clone(), limit_bytes: total }.into());
            }
            self.hash.update(&buffer[..read]);
            file.write_all(&buffer[..read]).map_err(io_at(self.blob))?;
            if self.here - told >= PROGRESS {
                told = self.here;
                (self.progress)(told, total);
            }
        }
        if self.here < total {
            return Err(FetchError::TooShort { what: what.clone(), bytes: self.here, total }.into());
        }
        if told < total {
            (self.progress)(total, total);
        }
        Ok(())
    }
}

/// The hash and length of what an earlier try left; nothing when it cannot be a beginning.
fn resume(fs: &dyn FileSystem, blob: &Path, total: u64) -> Result<(Sha256, u64), DownloadError> {
    if fs.meta(blob).map_err(io_at(blob))?.is_none() {
        return Ok((Sha256::new(), 0));
    }
    match hash_file(fs, blob, total)? {
        Some(found) => Ok(found),
        None => {
            fs::remove(fs, blob).map_err(io_at(blob))?;
            Ok((Sha256::new(), 0))
        }
    }
}

/// Hash and length of a file; `None` when it is longer than `limit` bytes.
fn hash_file(fs: &dyn FileSystem, path: &Path, limit: u64) -> Result<Option<(Sha256, u64)>, DownloadError> {
    let mut file = fs.open(path).map_err(io_at(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some((hash, bytes))),
            Ok(read) => {
                bytes += read as u64;
                if bytes > limit {
                    return Ok(None);
                }
                hash.update(&buffer[..read]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_at(path)(e).into()),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::clock::Clock;
    use crate::fs::{Disk, write_atomic};
    use crate::source::{Access, Timing};

    /// Answers each connection with the next of `answers` and closes it; keeps the requests. An answer is written
    /// in `piece` bytes every `pause`.
    struct Server {
        url: url::Url,
        source: Source,
        requests: Arc<Mutex<Vec<String>>>,
    }

    fn serve(answers: Vec<Vec<u8>>, piece: usize, pause: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).unwrap();
                seen.lock().unwrap().push(String::from_utf8_lossy(&buffer[..read]).to_lowercase());
                for piece in answer.chunks(piece) {
                    // The client may hang up first: that is often the point.
                    if stream.write_all(piece).and_then(|()| stream.flush()).is_err() {
                        break;
                    }
                    thread::sleep(pause);
                }
            }
        });
        Server { url: url.parse().unwrap(), source: source(&[&url]), requests }
    }

    /// A registry and its mirrors.
    fn source(urls: &[&str]) -> Source {
        let timing = Timing {
            connect: Duration::from_secs(5),
            idle: Duration::from_millis(400),
            metadata: Duration::from_secs(2),
            window: Duration::from_millis(300),
            speed_min_bytes_s: 1000,
        };
        let mirrors = urls[1..].iter().map(|url| url.parse().unwrap()).collect();
        let access = Access { timing, mirrors, ..Access::default() };
        let clock = Clock::new(SystemTime::now(), 0, false);
        Source::new(&urls[0].parse().unwrap(), &access, clock).unwrap()
    }

    fn at_once(answers: Vec<Vec<u8>>) -> Server {
        serve(answers, usize::MAX, Duration::ZERO)
    }

    fn answer(status: &str, fields: &[&str], body: &[u8]) -> Vec<u8> {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{fields}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        answer("200 OK", &[&format!("Content-Length: {}", body.len())], body)
    }

    fn content() -> Vec<u8> {
        (0..50_000u32).flat_map(u32::to_le_bytes).collect()
    }

    fn archive() -> Archive {
        let content = content();
        Archive {
            location: "models/a/m/x".into(),
            sha256: hex(Sha256::new().chain_update(&content)),
            bytes: content.len() as u64,
        }
    }

    /// The result, the bytes of the blob if it is whole, and its length if it is not.
    fn fetch(store: &Store, server: &Server) -> (Result<(), FetchError>, Option<Vec<u8>>, Option<u64>) {
        fetch_from(store, &server.source)
    }

    fn fetch_from(store: &Store, source: &Source) -> (Result<(), FetchError>, Option<Vec<u8>>, Option<u64>) {
        let archive = archive();
        let result = match download(store, source, &archive, &mut |_, _| {}, &mut 0) {
            Ok(_) => Ok(()),
            Err(DownloadError::Fetch(e)) => Err(e),
            Err(DownloadError::Store(e)) => panic!("{e}"),
        };
        let there = fs::read(&Disk, &store.blob(&archive.sha256), u64::MAX).unwrap();
        let is_whole = |bytes: &Vec<u8>| bytes.len() as u64 == archive.bytes;
        let part = there.as_ref().filter(|bytes| !is_whole(bytes)).map(|bytes| bytes.len() as u64);
        (result, there.filter(is_whole), part)
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn leave_part(store: &Store, bytes: &[u8]) {
        write_atomic(&Disk, &store.blob(&archive().sha256), bytes).unwrap();
    }

    #[test]
    fn a_cut_download_goes_on_where_it_stopped() {
        let (_dir, store) = store();
        let content = content();
        let length = format!("Content-Length: {}", content.len());
        let range = format!("Content-Range: bytes 120000-{}/{}", content.len() - 1, content.len());
        let server = at_once(vec![
            answer("200 OK", &[&length], &content[..120_000]),
            answer("206 Partial Content", &[&range, "Content-Length: 80000"], &content[120_000..]),
        ]);
        let (result, blob, part) = fetch(&store, &server);
        assert!(
            matches!(result, Err(FetchError::Transport { .. } | FetchError::TooShort { .. })),
            "{result:?}"
        );
        assert_eq!((blob, part), (None, Some(120_000)));

        let (result, blob, part) = fetch(&store, &server);
        result.unwrap();
        assert_eq!((blob, part), (Some(content), None));
        let requests = server.requests.lock().unwrap();
        assert!(!requests[0].contains("range:"), "{}", requests[0]);
        assert!(requests[1].contains("range: bytes=120000-\r\n"), "{}", requests[1]);
    }

    #[test]
    fn a_server_without_ranges_starts_over() {
        let (_dir, store) = store();
        leave_part(&store, &content()[..1000]);
        let (result, blob, _) = fetch(&store, &at_once(vec![ok(&content())]));
        result.unwrap();
        assert_eq!(blob, Some(content()));
    }

    #[test]
    fn a_poisoned_part_costs_one_more_download_and_nothing_else() {
        let (_dir, store) = store();
        leave_part(&store, &[0x66; 150_000]);
        let range = format!("Content-Range: bytes 150000-{}/{}", content().len() - 1, content().len());
        let server = at_once(vec![
            answer("206 Partial Content", &[&range, "Content-Length: 50000"], &content()[150_000..]),
            ok(&content()),
        ]);
        let (result, blob, _) = fetch(&store, &server);
        result.unwrap();
        assert_eq!(blob, Some(content()));
    }

    #[test]
    fn another_range_than_asked_is_not_believed() {
        for refusal in ["206 Partial Content", "416 Range Not Satisfiable"] {
            let (_dir, store) = store();
            leave_part(&store, &content()[..1000]);
            let range = format!("Content-Range: bytes 2000-{}/{}", content().len() - 1, content().len());
            let server = at_once(vec![answer(refusal, &[&range], &content()[2000..]), ok(&content())]);
            let (result, blob, _) = fetch(&store, &server);
            result.unwrap();
            assert_eq!(blob, Some(content()));
            assert!(!server.requests.lock().unwrap()[1].contains("range:"));
        }
    }

    #[test]
    fn a_complete_part_needs_no_request() {
        let (_dir, store) = store();
        leave_part(&store, &content());
        let (result, blob, _) = fetch(&store, &at_once(vec![]));
        result.unwrap();
        assert_eq!(blob, Some(content()));
    }

    #[test]
    fn other_bytes_are_not_kept() {
        let (_dir, store) = store();
        let mut other = content();
        other[77] ^= 1;
        let (result, blob, part) = fetch(&store, &at_once(vec![ok(&other)]));
        assert!(matches!(result, Err(FetchError::Hash(_))), "{result:?}");
        assert_eq!((blob, part), (None, None));
    }

    #[test]
    fn a_lying_content_length_is_refused() {
        for announced in [10, content().len() + 1, 1 << 40] {
            let (_dir, store) = store();
            let length = format!("Content-Length: {announced}");
            let (result, blob, part) =
                fetch(&store, &at_once(vec![answer("200 OK", &[&length], &content())]));
            assert!(matches!(result, Err(FetchError::Length { .. })), "{result:?}");
            assert_eq!((blob, part), (None, None));
        }
    }

    #[test]
    fn endless_data_ends_at_the_signed_length() {
        let (_dir, store) = store();
        let mut endless = content();
        endless.resize(4 << 20, 0);
        let (result, blob, part) = fetch(&store, &at_once(vec![answer("200 OK", &[], &endless)]));
        let limit = content().len() as u64;
        assert!(matches!(result, Err(FetchError::TooLong { limit_bytes, .. }) if limit_bytes == limit));
        assert_eq!((blob, part), (None, None));
    }

    #[test]
    fn a_server_of_a_byte_now_and_then_is_left() {
        let (_dir, store) = store();
        let server = serve(vec![ok(&content())], 64, Duration::from_millis(100));
        let started = Instant::now();
        let (result, blob, part) = fetch(&store, &server);
        assert!(matches!(result, Err(FetchError::TooSlow { .. })), "{result:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(blob, None);
        assert!(part.is_some());
    }

    #[test]
    fn a_server_that_stalls_before_the_last_byte_is_left() {
        let (_dir, store) = store();
        let mut answer = ok(&content());
        let cut = answer.len() - 1;
        answer.truncate(cut);
        let server = serve(vec![answer], cut, Duration::from_secs(3));
        let started = Instant::now();
        let (result, _, part) = fetch(&store, &server);
        assert!(matches!(result, Err(FetchError::TooSlow { .. })), "{result:?}");
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_eq!(part, Some(content().len() as u64 - 1));
    }

    #[test]
    fn what_is_not_there_and_what_is_a_login_page() {
        let (_dir, store) = store();
        let page = b"<html>please log in</html>";
        let html = answer("200 OK", &["Content-Type: text/html; charset=utf-8"], page);
        let server = at_once(vec![
            answer("404 Not Found", &[], b""),
            answer("500 Oops", &[], b""),
            html.clone(),
            html,
            ok(page),
            answer("404 Not Found", &[], b""),
            answer("503 Later", &[], b""),
        ]);
        assert!(matches!(fetch(&store, &server).0, Err(FetchError::Missing(_))));
        assert!(matches!(fetch(&store, &server).0, Err(FetchError::Status { code: 500, .. })));
        assert!(matches!(fetch(&store, &server).0, Err(FetchError::WebPage(_))));
        let metadata = |name: &str| server.source.metadata(name, 100);
        assert!(matches!(metadata("timestamp.json"), Err(FetchError::WebPage(_))));
        assert!(matches!(metadata("timestamp.json"), Err(FetchError::WebPage(_))));
        assert_eq!(metadata("2.root.json").unwrap(), None);
        assert!(matches!(metadata("timestamp.json"), Err(FetchError::Status { code: 503, .. })));
    }

    #[test]
    fn metadata_is_cut_at_its_limit() {
        let server = at_once(vec![ok(&[b' '; 101])]);
        let result = server.source.metadata("timestamp.json", 100);
        assert!(matches!(result, Err(FetchError::TooLong { limit_bytes: 100, .. })), "{result:?}");
    }

    #[test]
    fn redirects_do_not_go_round_forever() {
        let answers = vec![answer("302 Found", &["Location: /again", "Content-Length: 0"], b""); 8];
        let server = at_once(answers);
        assert!(matches!(server.source.metadata("timestamp.json", 100), Err(FetchError::Transport { .. })));
        assert!(server.requests.lock().unwrap().len() <= 5);
    }

    #[test]
    fn names_that_leave_the_registry_are_never_asked_for() {
        let server = at_once(vec![]);
        for name in ["..", "../x", "a/b", "", "a\0", "ü"] {
            assert!(matches!(server.source.metadata(name, 1), Err(FetchError::Name(_))), "{name:?}");
        }
        assert!(matches!(server.source.small("models/../x", 1), Err(FetchError::Name(_))));
        let outside = Archive { location: "models/../x".into(), ..archive() };
        let (_dir, store) = store();
        let refused = download(&store, &server.source, &outside, &mut |_, _| {}, &mut 0);
        assert!(matches!(refused, Err(DownloadError::Fetch(FetchError::Name(_)))), "{refused:?}");
        assert_eq!(server.requests.lock().unwrap().len(), 0);
    }

    #[test]
    fn a_mirror_goes_on_where_the_registry_stopped() {
        let (_dir, store) = store();
        let content = content();
        let length = format!("Content-Length: {}", content.len());
        let range = format!("Content-Range: bytes 120000-{}/{}", content.len() - 1, content.len());
        let registry = at_once(vec![answer("200 OK", &[&length], &content[..120_000])]);
        let part = answer("206 Partial Content", &[&range, "Content-Length: 80000"], &content[120_000..]);
        let mirror = at_once(vec![part, ok(b"{}")]);
        let both = source(&[registry.url.as_str(), mirror.url.as_str()]);
        let (result, blob, _) = fetch_from(&store, &both);
        result.unwrap();
        assert_eq!(blob, Some(content));
        // The one that answered last is asked first: the other may take its whole patience to be away again.
        assert_eq!(both.metadata("1.root.json", 10).unwrap().unwrap(), b"{}");
        assert_eq!(registry.requests.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_mirror_of_other_bytes_costs_its_bytes_and_nothing_else() {
        let (_dir, store) = store();
        let mut other = content();
        other[77] ^= 1;
        let (registry, mirror) = (at_once(vec![ok(&other)]), at_once(vec![ok(&content())]));
        let mut received = 0;
        let both = source(&[registry.url.as_str(), mirror.url.as_str()]);
        download(&store, &both, &archive(), &mut |_, _| {}, &mut received).unwrap();
        assert_eq!(received, 2 * content().len() as u64);
    }

    #[test]
    fn what_no_place_has_is_told_as_the_first_tells_it() {
        let (_dir, store) = store();
        let registry = at_once(vec![answer("500 Oops", &[], b"")]);
        let mirror = at_once(vec![answer("404 Not Found", &[], b"")]);
        let both = source(&[registry.url.as_str(), mirror.url.as_str()]);
        let (result, ..) = fetch_from(&store, &both);
        assert!(matches!(result, Err(FetchError::Status { code: 500, .. })), "{result:?}");
    }

    #[test]
    fn a_gzip_bomb_is_bytes_like_any_other() {
        // 40 kB that would become 40 MB, in the length that is signed: nothing unpacks it on the way.
        let (_dir, store) = store();
        let mut bomb = content();
        bomb[..4].copy_from_slice(&[0x1f, 0x8b, 8, 0]);
        let length = format!("Content-Length: {}", bomb.len());
        let server = at_once(vec![answer("200 OK", &[&length, "Content-Encoding: gzip"], &bomb)]);
        let (result, blob, part) = fetch(&store, &server);
        assert!(matches!(result, Err(FetchError::Hash(_))), "{result:?}");
        assert_eq!((blob, part), (None, None));
        assert!(server.requests.lock().unwrap()[0].contains("accept-encoding: identity\r\n"));
    }

    #[test]
    fn the_budget_ends_at_tries_or_at_bytes() {
        let over = |tries, mib: u64, archive_mib: u64| {
            Spent { tries, bytes: mib << 20 }.over(archive_mib << 20).is_some()
        };
        assert_eq!([over(63, 39, 10), over(64, 0, 10), over(0, 40, 10)], [false, true, true]);
        assert_eq!([over(0, 0, 0), over(0, 1, 0)], [false, true]);
    }
}
