//! What the machine, or the control group, gives the daemon.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};

/// Part of the memory models may take when nothing says otherwise, in percent; the rest is for requests, the
/// trial of the next model, and everybody else.
const MODELS_MEMORY_PERCENT: u64 = 80;

/// Memory assumed when nothing tells, in bytes.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;

/// Processors this process may use; honours CPU quotas and affinity.
pub(crate) fn processors() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Memory models may take together.
pub(crate) fn models_memory_bytes() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total_bytes(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit_bytes(Path::new("/sys/fs/cgroup"), &group_path(&text)?));
    let memory = total.into_iter().chain(group).min().unwrap_or(MEMORY_UNKNOWN_BYTES);
    memory / 100 * MODELS_MEMORY_PERCENT
}

/// The kind of machine, as far as it says: a state folder that was moved to another kind is not what was measured.
pub(crate) fn board() -> String {
    let files = ["/proc/device-tree/model", "/sys/devices/virtual/dmi/id/product_name"];
    let name = files.iter().find_map(|file| fs::read_to_string(file).ok());
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, cpu)| cpu);
    let text = format!("{} {}", name.unwrap_or_default(), cpu.unwrap_or_default());
    text.split(|c: char| c.is_whitespace() || c == '\0')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether nobody told this machine the time since it started, as far as it says: no clock that runs without power set
/// it, and systemd-timesyncd, where there is one, has reached nobody. A time that came some other way is not seen;
/// all that hangs on this is whether a certificate may begin later than the clock says.
pub(crate) fn clock_is_unset() -> bool {
    is_unset(Path::new("/"))
}

fn is_unset(root: &Path) -> bool {
    let clocks = fs::read_dir(root.join("sys/class/rtc")).into_iter().flatten().flatten();
    let mut set_it = clocks.map(|clock| fs::read_to_string(clock.path().join("hctosys")).unwrap_or_default());
    !root.join("run/systemd/timesync/synchronized").exists() && !set_it.any(|set_it| set_it.trim() == "1")
}

/// Lets everything else on the machine go first: for threads that are in no hurry, and the children they start.
pub(crate) fn give_way() {
    // The kernel's nice value is a thread's own. 10 leaves about a tenth of a processor that one other thread keeps busy.
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        log::debug!("no lower priority: {error}");
    }
}

/// Where state is kept when nothing says otherwise.
pub(crate) fn default_state_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A service has the folder that its unit's StateDirectory= made.
    if let Some(dir) = set("STATE_DIRECTORY") {
        return dir;
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/tractd".into();
    }
    set("XDG_STATE_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/state")))
        .unwrap_or_else(|| format!("/tmp/tractd-{}", rustix::process::geteuid().as_raw()).into())
        .join("tractd")
}

/// Where compiled models are kept when nothing says otherwise.
pub(crate) fn default_cache_dir(state_dir: &Path) -> PathBuf {
    // A service has the folder that its unit's CacheDirectory= made.
    match std::env::var_os("CACHE_DIRECTORY").filter(|value| !value.is_empty()) {
        Some(dir) => dir.into(),
        None => state_dir.join("cache"),
    }
}

fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The unified hierarchy's line: `0::/path`.
fn group_path(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

/// The smallest `memory.max` from the group up to the root. Raspberry Pi kernels have none.
fn group_limit_bytes(root: &Path, group: &Path) -> Option<u64> {
    group
        .ancestors()
        .filter_map(|group| fs::read_to_string(root.join(group).join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_up_the_tree_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = group_path("1:cpu:/x\n0::/system.slice/tractd.service\n").unwrap();
        fs::create_dir_all(root.path().join(&group)).unwrap();
        assert_eq!(group_limit_bytes(root.path(), &group), None);
        fs::write(root.path().join(&group).join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit_bytes(root.path(), &group), None);
        fs::write(root.path().join("system.slice/memory.max"), "1000\n").unwrap();
        assert_eq!(group_limit_bytes(root.path(), &group), Some(1000));
    }

    #[test]
    fn a_clock_is_set_by_one_that_runs_without_power_or_by_the_network() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        assert!(is_unset(root.path()));
        put("sys/class/rtc/rtc0/hctosys", "0\n");
        assert!(is_unset(root.path()));
        put("sys/class/rtc/rtc1/hctosys", "1\n");
        assert!(!is_unset(root.path()));
        fs::remove_dir_all(root.path().join("sys")).unwrap();
        put("run/systemd/timesync/synchronized", "");
        assert!(!is_unset(root.path()));
    }

    #[test]
    fn total_memory_is_in_kibibytes() {
        assert_eq!(mem_total_bytes("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2048 * 1024));
        assert_eq!(mem_total_bytes("nonsense"), None);
    }
}
