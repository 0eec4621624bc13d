//! Whether this link costs by the byte, as far as the system says.
//!
//! Linux itself has no word for it. NetworkManager has, and is asked through `busctl`, which every systemd brings: one
//! process per check, rather than a D-Bus library in the daemon.

use std::{ffi::OsStr, process::Command};

/// Longest NetworkManager is waited for, in seconds: it answers from memory.
const PATIENCE_S: u8 = 5;

/// What NetworkManager says, or guesses; `None` where there is none, or where it does not know.
pub(crate) fn ask() -> Option<bool> {
    ask_with("busctl".as_ref())
}

fn ask_with(busctl: &OsStr) -> Option<bool> {
    let mut command = Command::new(busctl);
    command.args(["--system", "--auto-start=no"]).arg(format!("--timeout={PATIENCE_S}"));
    command.args(["get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"]);
    command.args(["org.freedesktop.NetworkManager", "Metered"]);
    let answer = command.output().ok().filter(|answer| answer.status.success())?;
    // NMMetered: 1 yes, 2 no, 3 it looks like it, 4 it does not, 0 unknown.
    match answer.stdout.trim_ascii() {
        b"u 1" | b"u 3" => Some(true),
        b"u 2" | b"u 4" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn what_network_manager_says_or_guesses_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let said = |script: &str| {
            let busctl = dir.path().join("busctl");
            fs::write(&busctl, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&busctl, fs::Permissions::from_mode(0o700)).unwrap();
            ask_with(busctl.as_os_str())
        };
        let answers = ["1", "2", "3", "4", "0", "17"].map(|number| said(&format!("echo u {number}")));
        assert_eq!(answers, [Some(true), Some(false), Some(true), Some(false), None, None]);
        assert_eq!(said("echo 'Failed to get property' >&2; exit 1"), None);
        assert_eq!(said("echo u 1; exit 1"), None);
        assert_eq!(ask_with(dir.path().join("none").as_os_str()), None);
    }
}
