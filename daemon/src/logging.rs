//! Logging: to the terminal with times, to the journal with priorities and without.

use log::{Level, LevelFilter, kv};
use std::{fmt::Write as _, fs, io::Write as _, os::unix::fs::MetadataExt, panic};

/// Starts logging to standard error. `RUST_LOG` wins over `level`.
pub(crate) fn start(level: LevelFilter) {
    let journal = stderr_is_the_journal();
    let mut builder = env_logger::Builder::new();
    // The level is `log`'s own, so that it can change while running; RUST_LOG's rules are the logger's.
    builder.filter_level(if by_environment() { level } else { LevelFilter::Trace });
    builder.parse_default_env().format(move |out, record| {
        let line = format!("{}{}", record.args(), Fields::of(record));
        if journal {
            return writeln!(out, "<{}>{}", priority(record.level()), one_line(&line));
        }
        writeln!(out, "{} {:<5} {}", out.timestamp_millis(), record.level(), one_line(&line))
    });
    builder.init();
    set_level(level);
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        log::error!("{} panicked: {info}", thread.name().unwrap_or("a thread"));
    }));
}

/// Changes the level of a running daemon, unless `RUST_LOG` sets it.
pub(crate) fn set_level(level: LevelFilter) {
    if !by_environment() {
        log::set_max_level(level);
    }
}

fn by_environment() -> bool {
    std::env::var_os("RUST_LOG").is_some()
}

/// The number `sd-daemon(3)` has for a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A record is a line: whoever sends us a newline must not be able to write records of its own.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// ` key=value` for each of a record's fields.
struct Fields(String);

impl Fields {
    fn of(record: &log::Record<'_>) -> Fields {
        let mut fields = Fields(String::new());
        // Writing into a string cannot fail.
        drop(record.key_values().visit(&mut fields));
        fields
    }
}

impl<'kvs> kv::VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

impl std::fmt::Display for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether standard error leads to the journal itself: `JOURNAL_STREAM` is inherited by children whose own output
/// goes elsewhere, so its numbers are compared.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_message() {
        let record = log::Record::builder().key_values(&[("model", "digits"), ("version", "7")]).build();
        assert_eq!(Fields::of(&record).to_string(), " model=digits version=7");
    }

    #[test]
    fn a_record_stays_one_line() {
        assert_eq!(one_line("a\n<0>b\tc\u{1b}[31m"), "a <0>b c [31m");
    }
}
