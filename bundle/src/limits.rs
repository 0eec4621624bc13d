/// What a bundle may cost before anybody trusts it. Each limit names the attack it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Packed bytes read. Stops an endless download from being decompressed.
    pub archive_bytes: u64,
    /// Bytes of one unpacked file. Stops a single file from filling the disk.
    pub file_bytes: u64,
    /// Bytes of all unpacked files together. Stops the decompression bomb.
    pub total_bytes: u64,
    /// Files in a bundle. Stops a bundle from using up inodes and the time of one fsync each.
    pub files: usize,
    /// Bytes of one path. 100 is what a plain tar header holds, so that no extension header is ever needed;
    /// more is therefore never accepted, whatever is written here.
    pub path_len: usize,
    /// Bytes of `manifest.toml`, which is parsed whole in memory.
    pub manifest_bytes: u64,
}

/// What the name field of a ustar header holds.
pub(crate) const TAR_NAME_LEN: usize = 100;
/// What the size field of a ustar header holds: eleven octal digits.
const TAR_FILE_BYTES: u64 = (1 << 33) - 1;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            archive_bytes: 1 << 30,
            // Protobuf itself ends at 2 GiB; a gateway's memory ends sooner.
            file_bytes: 1 << 30,
            total_bytes: (1 << 30) + (256 << 20),
            files: 256,
            path_len: TAR_NAME_LEN,
            manifest_bytes: 256 << 10,
        }
    }
}

impl Limits {
    pub(crate) fn path_len(&self) -> usize {
        self.path_len.min(TAR_NAME_LEN)
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes.min(TAR_FILE_BYTES)
    }
}
