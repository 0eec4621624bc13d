//! Progress on long work, on a terminal only: a log or a pipe gets none of it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// A bar over a known number of bytes.
pub(crate) fn byte_bar(what: &str, total: u64) -> ProgressBar {
    let style = "{msg} {wide_bar} {bytes}/{total_bytes} {eta}";
    ProgressBar::new(total)
        .with_style(ProgressStyle::with_template(style).expect("the template is well-formed"))
        .with_message(what.to_owned())
}

/// A spinner for work of unknown length.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(TICK);
    spinner
}
