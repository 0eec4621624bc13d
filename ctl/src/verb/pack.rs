//! `tractctl pack`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde_json::json;
use tractd_bundle::{Bundle, Limits, pack as pack_bundle};

use super::Failure;
use crate::args::Pack;
use crate::print::{bytes, out};
use crate::progress;

/// Packs a model folder into one bundle file.
pub(crate) fn pack(args: &Pack) -> Result<(), Failure> {
    if !args.dir.is_dir() {
        return Err(anyhow!("{} is no folder; give the one with manifest.toml", args.dir.display()).into());
    }
    let limits = Limits::default();
    let bundle = Bundle::open(&args.dir, &limits)?;
    let file = output(args.output.as_deref(), &bundle);
    let bar = progress::byte_bar(&format!("packing {}", bundle.name()), 0);
    let packed = pack_bundle(&args.dir, &file, &limits, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })
    .with_context(|| format!("packing {}", args.dir.display()))?;
    bar.finish_and_clear();
    let line = if args.json {
        json!({
            "file": file, "model": bundle.name(), "version": bundle.version(),
            "digest": packed.digest, "bytes": packed.bytes,
        })
        .to_string()
    } else {
        format!(
            "{} {} packed: {} ({}), digest {}",
            bundle.name(),
            bundle.version(),
            file.display(),
            bytes(packed.bytes),
            packed.digest
        )
    };
    Ok(out(&line)?)
}

/// Where to write: the file named, a file of the usual name in the folder named, or one here.
fn output(wanted: Option<&Path>, bundle: &Bundle) -> PathBuf {
    let usual = bundle.archive_name();
    match wanted {
        None => usual.into(),
        Some(dir) if dir.is_dir() => dir.join(usual),
        Some(file) => file.to_owned(),
    }
}
