//! `under-unit UNIT COMMAND [ARG…]`: runs COMMAND under the system-call filter of a systemd unit, without systemd.
//!
//! The end-to-end tests run the daemon through this, so that a call the unit forbids fails in a test and not on a
//! device. Groups such as `@system-service` are expanded by `systemd-analyze syscall-filter`. What the filter denies
//! gets EPERM, as `SystemCallErrorNumber=EPERM` says. The rest of the unit's sandbox is tried by `scripts/test-deb`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(unit), Some(command)) = (args.next(), args.next()) else {
        bail!("usage: under-unit UNIT COMMAND [ARG...]");
    };
    let unit = std::fs::read_to_string(&unit).with_context(|| format!("reading {}", unit.display()))?;
    let groups = Groups::of_this_systemd()?;
    let allowed = allowed_calls(&unit, &groups)?;
    install(&allowed)?;
    Err(Command::new(&command).args(args).exec()).with_context(|| format!("starting {}", command.display()))
}

/// The calls that the unit's `SystemCallFilter=` lines allow: the first line is an allow-list, a line that begins
/// with `~` takes away from it, and later plain lines add.
fn allowed_calls(unit: &str, groups: &Groups) -> Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    let mut lines = unit.lines().filter_map(|line| line.trim().strip_prefix("SystemCallFilter=")).peekable();
    match lines.peek() {
        None => bail!("the unit has no SystemCallFilter"),
        Some(first) if first.starts_with('~') => bail!("a filter that begins with ~ allows by default"),
        Some(_) => {}
    }
    groups.expand("@default", &mut |call| {
        allowed.insert(call.to_owned());
    })?; // systemd always adds it to an allow-list
    for line in lines {
        let (list, take_away) = line.strip_prefix('~').map_or((line, false), |rest| (rest, true));
        for word in list.split_whitespace() {
            groups.expand(word, &mut |call| {
                if take_away {
                    allowed.remove(call);
                } else {
                    allowed.insert(call.to_owned());
                }
            })?;
        }
    }
    Ok(allowed)
}

fn install(allowed: &BTreeSet<String>) -> Result<()> {
    // A name that this architecture does not have is none of its calls.
    let rules: BTreeMap<i64, Vec<_>> = allowed
        .iter()
        .filter_map(|name| syscalls::Sysno::from_str(name).ok())
        .map(|call| (i64::from(call.id()), Vec::new()))
        .collect();
    const EPERM: u32 = 1;
    let arch = std::env::consts::ARCH.try_into().context("no filter for this architecture")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Errno(EPERM), SeccompAction::Allow, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// systemd's named groups of system calls; a member may be a group.
struct Groups(BTreeMap<String, Vec<String>>);

impl Groups {
    fn of_this_systemd() -> Result<Self> {
        let output = Command::new("systemd-analyze")
            .args(["syscall-filter", "--no-pager"])
            .output()
            .context("systemd-analyze (Debian package systemd) tells what the groups hold")?;
        let mut groups = BTreeMap::new();
        let mut current: Option<&mut Vec<String>> = None;
        for line in String::from_utf8(output.stdout)?.lines() {
            let word = line.trim();
            if line.starts_with('@') {
                current = Some(groups.entry(word.to_owned()).or_default());
            } else if !word.is_empty()
                && !word.starts_with('#')
                && line.starts_with(' ')
                && let Some(group) = &mut current
            {
                group.push(word.to_owned());
            }
        }
        Ok(Self(groups))
    }

    fn expand(&self, word: &str, each: &mut dyn FnMut(&str)) -> Result<()> {
        if !word.starts_with('@') {
            each(word);
            return Ok(());
        }
        for member in self.0.get(word).with_context(|| format!("systemd-analyze knows no group {word}"))? {
            self.expand(member, each)?;
        }
        Ok(())
    }
}
