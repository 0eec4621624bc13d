//! What models, nodes and groups may be called, and how a request pins a model's version.

use core::fmt;

use crate::NAME_LEN_MAX;

/// A name of a model, node or group: `[a-z0-9][a-z0-9_-]{0,62}`, so that it is a topic level, a file name and a
/// metric label as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name<'a>(&'a str);

/// Why a text is no [`Name`] or [`Selector`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No character at all.
    #[error("a name is missing")]
    Empty,
    /// Longer than [`NAME_LEN_MAX`] bytes.
    #[error("a name has {0} bytes; at most {NAME_LEN_MAX} are allowed")]
    TooLong(usize),
    /// A character outside the alphabet.
    #[error("a name may hold a-z, 0-9, '_' and '-' only, and '_' and '-' not first")]
    Character,
    /// Digits after the `@` that are no version.
    #[error("a version is a number from 1 to 18446744073709551615 without leading zeros")]
    Version,
}

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] unless it matches `[a-z0-9][a-z0-9_-]{0,62}`.
    pub const fn parse(text: &'a str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong(bytes.len()));
        }
        let mut i = 0;
        while i < bytes.len() {
            match bytes[i] {
                b'a'..=b'z' | b'0'..=b'9' => {}
                b'_' | b'-' if i > 0 => {}
                _ => return Err(NameError::Character),
            }
            i += 1;
        }
        Ok(Self(text))
    }

    /// The name as text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// Which version of a model a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pin<'a> {
    /// Whichever the daemon routes to: `digits`.
    Any,
    /// One version: `digits@7`.
    Version(u64),
    /// One label: `digits@canary`. A pin of digits only is always a version.
    Label(Name<'a>),
}

/// A model and, if pinned, its version: `digits`, `digits@7`, `digits@canary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selector<'a> {
    /// The model's name.
    pub name: Name<'a>,
    /// Which of its versions.
    pub pin: Pin<'a>,
}

impl<'a> Selector<'a> {
    /// Reads `NAME`, `NAME@VERSION` or `NAME@LABEL`.
    ///
    /// # Errors
    /// [`NameError`] when the name or the pin is none.
    pub fn parse(text: &'a str) -> Result<Self, NameError> {
        let (name, pin) = match split(text, b'@') {
            (_, None) => (text, Pin::Any),
            (name, Some(pin)) => (name, Pin::parse(pin)?),
        };
        Ok(Self { name: Name::parse(name)?, pin })
    }
}

impl<'a> Pin<'a> {
    fn parse(text: &'a str) -> Result<Self, NameError> {
        let label = Name::parse(text)?;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Label(label));
        }
        match text.parse() {
            Ok(version) if !text.starts_with('0') => Ok(Self::Version(version)),
            _ => Err(NameError::Version),
        }
    }
}

/// The text before the first `separator`, and the text after it. Not `str::split_once`, whose searcher links a panic
/// that no input reaches but firmware pays for.
pub(crate) fn split(text: &str, separator: u8) -> (&str, Option<&str>) {
    let at = text.bytes().position(|byte| byte == separator).unwrap_or(text.len());
    (text.get(..at).unwrap_or_default(), text.get(at.saturating_add(1)..))
}

impl<'a> From<Name<'a>> for Selector<'a> {
    fn from(name: Name<'a>) -> Self {
        Self { name, pin: Pin::Any }
    }
}

impl AsRef<str> for Name<'_> {
    fn as_ref(&self) -> &str {
        self.0
    }
}

impl PartialEq<str> for Name<'_> {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Name<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Display for Selector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pin {
            Pin::Any => write!(f, "{}", self.name),
            Pin::Version(version) => write!(f, "{}@{version}", self.name),
            Pin::Label(label) => write!(f, "{}@{label}", self.name),
        }
    }
}
