//! The passphrase of the signing keys: from a file, the environment, or a prompt. Never from an argument, which
//! every user of the machine could read in the process list.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// The variable looked at when no file is named.
const VARIABLE: &str = "TRACTD_KEY_PASSPHRASE";

/// Whether keys are being made (ask twice) or opened (ask once).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New keys: a typing error would lock them for good.
    Make,
    /// Keys that exist.
    Open,
}

/// Finds the passphrase.
pub(crate) fn passphrase(file: Option<&Path>, purpose: Purpose) -> Result<Zeroizing<String>> {
    if let Some(file) = file {
        let text = Zeroizing::new(
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the passphrase file {}", file.display()))?,
        );
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            bail!("the first line of {} is empty; it must be the passphrase", file.display());
        }
        return Ok(Zeroizing::new(line.to_owned()));
    }
    if let Ok(text) = std::env::var(VARIABLE)
        && !text.is_empty()
    {
        return Ok(Zeroizing::new(text));
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "the keys need a passphrase: give --passphrase-file FILE, set {VARIABLE}, or run in a terminal"
        );
    }
    let first = Zeroizing::new(rpassword::prompt_password("Passphrase of the signing keys: ")?);
    if first.is_empty() {
        bail!("an empty passphrase protects nothing");
    }
    if purpose == Purpose::Make {
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        if *first != *again {
            bail!("the two passphrases differ; nothing was made");
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pass");
        std::fs::write(&file, "correct horse\nsecond line\n").unwrap();
        assert_eq!(*passphrase(Some(&file), Purpose::Open).unwrap(), "correct horse");

        std::fs::write(&file, "\n").unwrap();
        let empty = passphrase(Some(&file), Purpose::Open).unwrap_err().to_string();
        assert!(empty.ends_with("is empty; it must be the passphrase"), "{empty}");

        let absent = passphrase(Some(&dir.path().join("none")), Purpose::Open).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read the passphrase file"), "{absent}");
    }
}
