//! Archives that mean harm, each refused by its own error, nothing left behind.

// Clippy lets unwrap through in #[test] functions only, not in what they call.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{self, Read, Write};

use proptest::prelude::*;
use tractd_bundle::*;

use common::{entries, files};

const BLOCK: usize = 512;

/// Unpacks `archive` and sees that a refusal leaves no trace.
fn refusal_within(archive: &[u8], limits: &Limits) -> UnpackError {
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(archive, &dir.path().join("out"), limits).expect_err("a hostile archive was unpacked");
    assert_eq!(entries(dir.path()), [""; 0].map(std::path::PathBuf::from), "left behind after: {error}");
    error
}

fn refusal(archive: &[u8]) -> UnpackError {
    refusal_within(archive, &Limits::default())
}

fn message(archive: &[u8]) -> String {
    refusal(archive).to_string()
}

/// A header as a careful attacker writes it: checksum and all.
fn header(path: &[u8], type_flag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..path.len()].copy_from_slice(path);
    for (at, text) in [(100, "0000644"), (108, "0000000"), (116, "0000000"), (136, "00000000000")] {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = type_flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..336].copy_from_slice(b"0000000");
    block[337..344].copy_from_slice(b"0000000");
    seal(block)
}

fn seal(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    let mut entry = header(path.as_bytes(), b'0', content.len() as u64);
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

/// The fixture, with `change` made to its list of files.
fn with(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut files = files();
    change(&mut files);
    let mut tar: Vec<u8> = files.iter().flat_map(|(path, content)| file(path, content)).collect();
    tar.extend_from_slice(&[0; 2 * BLOCK]);
    tar
}

fn packed(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

/// An archive of this entry alone.
fn alone(entry: &[u8]) -> Vec<u8> {
    packed(&[entry, &[0; 2 * BLOCK]].concat())
}

#[test]
fn the_fixture_itself_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    unpack(&*packed(&with(|_| ())), &dir.path().join("out"), &Limits::default()).unwrap();
}

#[test]
fn paths() {
    let check = |path: &[u8], expected: &str| {
        let text = message(&alone(&header(path, b'0', 0)));
        assert_eq!(text, format!("the archive has a file {expected}"));
    };
    check(b"../../etc/cron.d/x", "`../../etc/cron.d/x`, which leads upwards");
    check(b"golden/../../x", "`golden/../../x`, which leads upwards");
    check(b"/etc/passwd", "`/etc/passwd`, which is absolute");
    check(b"model.onnx\0.txt", "`model.onnx`, which has a NUL");
    check(b"./model.onnx", "`./model.onnx`, which is not in its shortest form");
    check(b"golden//x", "`golden//x`, which is not in its shortest form");
    check(b"golden/", "`golden/`, which is not in its shortest form");
    check(b"c:\\x", "`c:\\\\x`, which has a character other than A-Z, a-z, 0-9, `.`, `_`, `-`, `+`");
    check(b"\x1b[2J", "`\\u{1b}[2J`, which has a character other than A-Z, a-z, 0-9, `.`, `_`, `-`, `+`");
    check(
        b"\xff\xfe",
        "`\u{fffd}\u{fffd}`, which has a character other than A-Z, a-z, 0-9, `.`, `_`, `-`, `+`",
    );
    check(b"", "``, which is empty");
    let short = Limits { path_len: 8, ..Limits::default() };
    let error = refusal_within(&alone(&header(b"123456789", b'0', 0)), &short);
    assert!(matches!(error, UnpackError::Path { .. }), "{error}");
}

#[test]
fn entries_that_are_no_files() {
    for (type_flag, kind) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "device"),
        (b'4', "device"),
        (b'5', "folder"),
        (b'6', "FIFO"),
        (b'x', "tar extension"),
        (b'g', "tar extension"),
        (b'L', "tar extension"),
        (b'S', "tar extension"),
        (0, "tar extension"),
    ] {
        let text = message(&alone(&header(b"model.onnx", type_flag, 0)));
        assert_eq!(text, format!("the archive has `model.onnx`, which is a {kind}, not a plain file"));
    }
}

#[test]
fn names_that_meet() {
    let twice = with(|files| files.insert(5, files[4].clone()));
    assert_eq!(message(&packed(&twice)), "the archive has `manifest.toml` twice");
    let case = with(|files| files.insert(0, ("Model.onnx".to_owned(), vec![])));
    assert_eq!(message(&packed(&case)), "the archive has `model.onnx` twice, differing in case only");
    let folder = with(|files| files.insert(0, ("golden".to_owned(), vec![])));
    let text = "the archive has `golden/0.count.bin` both as a file and as a folder";
    assert_eq!(message(&packed(&folder)), text);
    let after = with(|files| files.insert(3, ("golden".to_owned(), vec![])));
    assert_eq!(message(&packed(&after)), "the archive has `golden` both as a file and as a folder");
}

#[test]
fn too_much() {
    let archive = packed(&with(|_| ()));
    let limits = Limits::default();
    let check = |limits: Limits, expected: &str| {
        assert_eq!(refusal_within(&archive, &limits).to_string(), expected);
    };
    check(Limits { files: 5, ..limits.clone() }, "the archive has more than 5 files");
    check(Limits { file_bytes: 20, ..limits.clone() }, "`golden/0.picture.bin` is larger than 20 bytes");
    check(Limits { manifest_bytes: 20, ..limits.clone() }, "`manifest.toml` is larger than 20 bytes");
    check(Limits { total_bytes: 60, ..limits.clone() }, "the files are larger than 60 bytes together");
    let short = archive.len() as u64 - 1;
    let text = format!("the archive is larger than {short} bytes");
    check(Limits { archive_bytes: short, ..limits.clone() }, &text);
    let dir = tempfile::tempdir().unwrap();
    let exact = Limits { archive_bytes: archive.len() as u64, ..limits };
    unpack(&*archive, &dir.path().join("out"), &exact).unwrap();
}

#[test]
fn sizes_that_lie() {
    // The header promises more than comes.
    let mut more = header(b"model.onnx", b'0', 4 * BLOCK as u64);
    more.extend_from_slice(&[7; BLOCK]);
    assert!(matches!(refusal(&packed(&more)), UnpackError::Truncated));
    // The header promises less: the rest of the content stands where a header should.
    let mut less = header(b"model.onnx", b'0', BLOCK as u64);
    less.extend_from_slice(&[7; 2 * BLOCK]);
    assert!(matches!(refusal(&alone(&less)), UnpackError::Header));
    // Not octal, and a size of 2^60 in GNU's binary form.
    let mut block = header(b"model.onnx", b'0', 0);
    block[124] = b'9';
    assert!(matches!(refusal(&alone(&seal(block))), UnpackError::Header));
    let mut block = header(b"model.onnx", b'0', 0);
    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(refusal(&alone(&seal(block))), UnpackError::Header));
    let text = "`model.onnx` is larger than 1073741824 bytes";
    assert_eq!(message(&alone(&header(b"model.onnx", b'0', (1 << 33) - 1))), text);
}

/// Zeros without end, at no cost.
fn bomb(head: &[u8]) -> impl Read {
    let mut encoder =
        zstd::stream::read::Encoder::new(io::Cursor::new(head.to_vec()).chain(io::repeat(0)), 1).unwrap();
    encoder.long_distance_matching(false).unwrap();
    encoder
}

#[test]
fn decompression_bombs() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { file_bytes: 1 << 20, total_bytes: 2 << 20, ..Limits::default() };
    let check = |head: &[u8], expected: &str| {
        let error = unpack(bomb(head), &dir.path().join("out"), &limits).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(&header(b"model.onnx", b'0', 1 << 32), "`model.onnx` is larger than 1048576 bytes");
    // The file ends, the zeros do not: they are the end mark, and then too many of them.
    check(&header(b"model.onnx", b'0', 1 << 20), "the archive has data after its end");
    // A window of 128 MiB is memory the archive would choose for us.
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&with(|_| ())).unwrap();
    let error = refusal(&wide.finish().unwrap());
    assert!(matches!(&error, UnpackError::Compression(text) if text.contains("too much memory")), "{error}");
}

#[test]
fn cut_off_or_too_long() {
    let tar = with(|_| ());
    let archive = packed(&tar);
    assert!(matches!(refusal(b""), UnpackError::Truncated));
    assert!(matches!(refusal(&archive[..archive.len() / 2]), UnpackError::Truncated));
    assert!(matches!(refusal(&packed(&tar[..tar.len() / 2])), UnpackError::Truncated));
    assert!(matches!(refusal(&packed(&tar[..tar.len() - BLOCK])), UnpackError::Truncated));
    let after_tar = packed(&[&tar[..], b"x"].concat());
    assert!(matches!(refusal(&after_tar), UnpackError::TrailingData));
    let after_frame = [&archive[..], b"x"].concat();
    assert!(matches!(refusal(&after_frame), UnpackError::TrailingData));
    let two_frames = [&archive[..], &archive[..]].concat();
    assert!(matches!(refusal(&two_frames), UnpackError::TrailingData));
    assert!(matches!(refusal(b"not an archive at all"), UnpackError::Compression(_)));
    // zstd's own checksum, which pack() writes.
    let dir = tempfile::tempdir().unwrap();
    let sound = dir.path().join("sound");
    pack(&common::fixture(), &sound, &Limits::default(), &mut |_, _| ()).unwrap();
    let mut flipped = fs::read(&sound).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(matches!(refusal(&flipped), UnpackError::Compression(_)));
}

#[test]
fn not_our_packing() {
    let unsorted = with(|files| files.swap(4, 5));
    let text = "the archive was not written by `tractctl pack`: its files are not sorted";
    assert_eq!(message(&packed(&unsorted)), text);
    let mut owned = header(b"model.onnx", b'0', 0);
    owned[108..115].copy_from_slice(b"0001750");
    let text =
        "the archive was not written by `tractctl pack`: a header has an owner, mode, time or extension";
    assert_eq!(message(&alone(&seal(owned))), text);
    let mut padded = file("model.onnx", b"x");
    *padded.last_mut().unwrap() = 1;
    let text = "the archive was not written by `tractctl pack`: the padding after a file is not zero";
    assert_eq!(message(&alone(&padded)), text);
    let mut block = header(b"model.onnx", b'0', 0);
    block[0] = b'n';
    assert!(matches!(refusal(&alone(&block)), UnpackError::Header));
}

#[test]
fn files_that_make_no_bundle() {
    let without = |at: usize| message(&packed(&with(|files| _ = files.remove(at))));
    assert_eq!(without(4), "the archive has no manifest.toml");
    assert_eq!(without(5), "the archive has no model.onnx");
    assert_eq!(without(3), "the archive lacks `labels.txt`, which its manifest names");
    assert_eq!(without(0), "the archive lacks `golden/0.count.bin`, which its manifest names");
    let more = with(|files| files.push(("zzz".to_owned(), vec![1])));
    assert_eq!(message(&packed(&more)), "the archive has `zzz`, which its manifest does not name");
    let broken = with(|files| files[4].1 = b"schema = 1\nname = 7".to_vec());
    assert!(message(&packed(&broken)).starts_with("manifest.toml: TOML parse error at line 2"));
    let future = with(|files| files[4].1 = b"schema = 2\nsomething = 'new'".to_vec());
    assert_eq!(message(&packed(&future)), "manifest.toml: schema 2 is not supported, only 1");
    let short = with(|files| _ = files[2].1.pop());
    let text = "golden/0.scores.bin: 7 bytes where the manifest's dtype and shape make 8";
    assert_eq!(message(&packed(&short)), text);
    let broken = with(|files| files[5].1 = b"not a model".to_vec());
    assert_eq!(message(&packed(&broken)), "model.onnx is not an ONNX file, or is cut off");
    // A graph with an initializer whose data is in ../../etc/shadow.
    let location = [&[0x6a, 20, 0x0a, 8][..], b"location", &[0x12, 8], b"../x/y/z"].concat();
    let tensor = [&[0x2a, location.len() as u8][..], &location].concat();
    let model = [&[0x3a, tensor.len() as u8][..], &tensor].concat();
    let external = with(|files| files[5].1 = model);
    let text = "model.onnx keeps tensor data in another file; save it again as one file (external data off)";
    assert_eq!(message(&packed(&external)), text);
}

#[test]
fn a_source_that_fails_leaves_nothing() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("the line is dead"))?;
            let archive = packed(&with(|_| ()));
            let half = buffer.len().min(archive.len() / 2);
            buffer[..half].copy_from_slice(&archive[..half]);
            Ok(half)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(Failing(1), &dir.path().join("out"), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("the line is dead"), "{error}");
    assert_eq!(entries(dir.path()).len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed in a sound archive, the result is a sound bundle or a clean refusal.
    #[test]
    fn any_damage(at in 0usize..7680, value: u8, cut in 0usize..7680) {
        let mut tar = with(|_| ());
        let at = at % tar.len();
        tar[at] = value;
        tar.truncate(tar.len() - cut % tar.len() / 8);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        match unpack(&*packed(&tar), &out, &Limits::default()) {
            Ok(bundle) => {
                prop_assert_eq!(Bundle::open(&out, &Limits::default()).unwrap().digest, bundle.digest);
                prop_assert_eq!(entries(dir.path()).iter().filter(|path| path.is_file()).count(), 6);
            }
            Err(_) => prop_assert_eq!(entries(dir.path()).len(), 0),
        }
    }

    /// Noise where an archive should be.
    #[test]
    fn any_noise(noise in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let dir = tempfile::tempdir().unwrap();
        for archive in [noise.clone(), packed(&noise)] {
            prop_assert!(unpack(&*archive, &dir.path().join("out"), &Limits::default()).is_err());
            prop_assert_eq!(entries(dir.path()).len(), 0);
        }
    }
}
