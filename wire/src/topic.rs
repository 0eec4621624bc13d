//! The MQTT topic tree, parsed and built without a copy.
//!
//! ```text
//! PREFIX/NODE/status                             retained, with a will
//! PREFIX/NODE/description                        retained
//! PREFIX/NODE/metrics
//! PREFIX/NODE/model/MODEL/state                  retained
//! PREFIX/NODE/update/MODEL/state                 retained
//! PREFIX/NODE/req/SELECTOR/FORMAT/CLIENT[/ID]    requests; NODE is _any where a shared subscription picks one
//! PREFIX/_res/CLIENT[/ID]                        replies
//! PREFIX/_announce                               the registry has something new
//! ```
//!
//! The requester's client id stands in the request's topic, so that a broker's access list can hold it to its own,
//! and a reply goes to `_res/` of that client and nowhere else. With the default prefix a topic has at most seven
//! slashes, which is what AWS IoT Core allows. Words that start with an underscore are tractd's: no name can be one.
//!
//! ```
//! use tractd_wire::{Name, topic::{Filter, Prefix, TOPIC_LEN_MAX, Topic}};
//!
//! let prefix = Prefix::DEFAULT;
//! let Ok(Topic::Request(request)) = Topic::parse(prefix, "tractd/v1/cam-3/req/digits@7/raw/ESP32_0A/42") else {
//!     panic!("a request")
//! };
//! let mut buffer = [0; TOPIC_LEN_MAX];
//! assert_eq!(request.reply().build(prefix, &mut buffer), Ok("tractd/v1/_res/ESP32_0A/42"));
//!
//! let all = Filter::Requests { node: Name::parse("cam-3").unwrap() };
//! assert_eq!(all.build(prefix, &mut buffer), Ok("tractd/v1/cam-3/req/#"));
//! ```

use core::fmt;

use crate::{NAME_LEN_MAX, Name, NameError, Pin, SELECTOR_LEN_MAX, Selector, name::split};

/// Bytes of a prefix: room for a tenant, a site and a line.
pub const PREFIX_LEN_MAX: usize = 64;
/// Bytes of the longest topic or filter: a request with everything. AWS IoT Core allows 256, brokers at home 65,535.
pub const TOPIC_LEN_MAX: usize =
    PREFIX_LEN_MAX + 1 + NAME_LEN_MAX + 5 + SELECTOR_LEN_MAX + 1 + 8 + 2 * (1 + NAME_LEN_MAX);

/// Stands where a node does when any node of a group may answer.
const ANY: &str = "_any";
const RES: &str = "_res";
const ANNOUNCE: &str = "_announce";
/// Levels after the prefix: `NODE/req/SELECTOR/FORMAT/CLIENT/ID`.
const LEVELS_MAX: usize = 6;

/// Where the tree hangs: levels of a topic name, without wildcards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix<'a>(&'a str);

/// A client id or a request's id: `[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}`. Wider than a [`Name`], because client ids
/// come from elsewhere: from brokers (in upper case), from MAC addresses, from UUIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word<'a>(&'a str);

/// How a request's payload is encoded; its reply is encoded alike, JSON for `raw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A JSON object.
    Json,
    /// One frame, as on the socket: header, head and body.
    Postcard,
    /// The bytes of one JPEG or PNG and nothing else.
    Raw,
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node<'a> {
    /// This node.
    Named(Name<'a>),
    /// Any node of a group that shares the subscription.
    Any,
}

/// A topic of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic<'a> {
    /// Whether a node is there.
    Status {
        /// The node.
        node: Name<'a>,
    },
    /// What a node offers.
    Description {
        /// The node.
        node: Name<'a>,
    },
    /// A node's counters.
    Metrics {
        /// The node.
        node: Name<'a>,
    },
    /// Which version of a model a node runs.
    ModelState {
        /// The node.
        node: Name<'a>,
        /// The model.
        model: Name<'a>,
    },
    /// How far a model's update is on a node.
    UpdateState {
        /// The node.
        node: Name<'a>,
        /// The model.
        model: Name<'a>,
    },
    /// A request.
    Request(RequestTopic<'a>),
    /// The place of a client's replies.
    Reply {
        /// The requester.
        client: Word<'a>,
        /// The request's id, where it has one.
        id: Option<Word<'a>>,
    },
    /// A hint to every node that the registry has something new.
    Announce,
}

/// What the topic of a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestTopic<'a> {
    /// Who should answer.
    pub node: Node<'a>,
    /// Which model.
    pub model: Selector<'a>,
    /// How the payload is encoded.
    pub format: Format,
    /// Who asks.
    pub client: Word<'a>,
    /// The request's id, for MQTT 3.1.1, which has no correlation data.
    pub id: Option<Word<'a>>,
}

/// What to subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter<'a> {
    /// A node: the requests for it.
    Requests {
        /// The node.
        node: Name<'a>,
    },
    /// A node: its share of the requests for any node of a group.
    SharedRequests {
        /// The group.
        group: Name<'a>,
    },
    /// A client: its replies.
    Replies {
        /// The client.
        client: Word<'a>,
    },
}

/// A [`Topic`] or [`Filter`] with its prefix, to be displayed.
#[derive(Clone, Copy, Debug)]
pub struct Under<'a, T> {
    prefix: Prefix<'a>,
    path: T,
}

/// Why a topic is not of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It lies elsewhere.
    #[error("the topic does not lie under the prefix")]
    Foreign,
    /// It lies under the prefix, where nothing is.
    #[error("the tree has no such topic")]
    Unknown,
    /// A level that should be a name.
    #[error("{level}: {error}")]
    Name {
        /// Which one.
        level: &'static str,
        /// What is wrong with it.
        error: NameError,
    },
    /// A client's or request's id.
    #[error(transparent)]
    Word(#[from] WordError),
    /// A format that is none.
    #[error("the format is none of json, postcard and raw")]
    Format,
}

/// Why a text is no [`Word`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a client or request id has 1 to 63 of A-Z, a-z, 0-9, '_', '.', ':' and '-', and starts with a letter or digit"
)]
pub struct WordError;

/// Why a text is no [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a topic prefix has 1 to 64 bytes, no empty level, no '+', '#', control character or space, and no '$' first"
)]
pub struct PrefixError;

/// The caller's buffer is too small; [`TOPIC_LEN_MAX`] bytes always suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is too small for the topic")]
pub struct BufferError;

impl<'a> Topic<'a> {
    /// Reads a topic.
    ///
    /// # Errors
    /// [`TopicError`] when it is not of the tree under this prefix.
    pub fn parse(prefix: Prefix<'_>, topic: &'a str) -> Result<Self, TopicError> {
        let path = topic.strip_prefix(prefix.0).and_then(|rest| rest.strip_prefix('/'));
        let path = path.ok_or(TopicError::Foreign)?;
        let mut levels = [""; LEVELS_MAX];
        let mut count = 0;
        let mut rest = Some(path);
        while let Some(path) = rest {
            let space = levels.get_mut(count).ok_or(TopicError::Unknown)?;
            (*space, rest) = split(path, b'/');
            count += 1;
        }
        Ok(match *levels.get(..count).unwrap_or_default() {
            [ANNOUNCE] => Self::Announce,
            [RES, client] => Self::Reply { client: Word::parse(client)?, id: None },
            [RES, client, id] => Self::Reply { client: Word::parse(client)?, id: Some(Word::parse(id)?) },
            [node, "status"] => Self::Status { node: named("node", node)? },
            [node, "description"] => Self::Description { node: named("node", node)? },
            [node, "metrics"] => Self::Metrics { node: named("node", node)? },
            [node, "model", model, "state"] => {
                Self::ModelState { node: named("node", node)?, model: named("model", model)? }
            }
            [node, "update", model, "state"] => {
                Self::UpdateState { node: named("node", node)?, model: named("model", model)? }
            }
            [node, "req", model, format, client] => request(node, model, format, client, None)?,
            [node, "req", model, format, client, id] => request(node, model, format, client, Some(id))?,
            _ => return Err(TopicError::Unknown),
        })
    }

    /// Writes the topic into the caller's buffer.
    ///
    /// # Errors
    /// [`BufferError`] when the buffer is too small.
    pub fn build<'b>(&self, prefix: Prefix<'_>, out: &'b mut [u8]) -> Result<&'b str, BufferError> {
        join(&self.parts(prefix.0, &mut [0; DIGITS_MAX]), out)
    }

    /// The topic for `format!` and logs.
    pub const fn under(self, prefix: Prefix<'a>) -> Under<'a, Self> {
        Under { prefix, path: self }
    }

    /// The topic's pieces in their order, empty ones at the end.
    fn parts<'s>(&'s self, prefix: &'s str, digits: &'s mut [u8; DIGITS_MAX]) -> [&'s str; 13] {
        let mut parts = [""; 13];
        match self {
            Self::Announce => fill(&mut parts, [prefix, "/", ANNOUNCE]),
            Self::Status { node } => fill(&mut parts, [prefix, "/", node.as_str(), "/status"]),
            Self::Description { node } => fill(&mut parts, [prefix, "/", node.as_str(), "/description"]),
            Self::Metrics { node } => fill(&mut parts, [prefix, "/", node.as_str(), "/metrics"]),
            Self::ModelState { node, model } => {
                fill(&mut parts, [prefix, "/", node.as_str(), "/model/", model.as_str(), "/state"]);
            }
            Self::UpdateState { node, model } => {
                fill(&mut parts, [prefix, "/", node.as_str(), "/update/", model.as_str(), "/state"]);
            }
            Self::Reply { client, id } => {
                let [slash, id] = optional(id);
                fill(&mut parts, [prefix, "/_res/", client.0, slash, id]);
            }
            Self::Request(request) => {
                let (at, pin) = match request.model.pin {
                    Pin::Any => ("", ""),
                    Pin::Label(label) => ("@", label.as_str()),
                    Pin::Version(version) => ("@", decimal(version, digits)),
                };
                let node = match request.node {
                    Node::Named(node) => node.as_str(),
                    Node::Any => ANY,
                };
                let (model, format) = (request.model.name.as_str(), request.format.name());
                let [slash, id] = optional(&request.id);
                let client = request.client.0;
                parts = [prefix, "/", node, "/req/", model, at, pin, "/", format, "/", client, slash, id];
            }
        }
        parts
    }
}

impl<'a> RequestTopic<'a> {
    /// Where the reply goes.
    pub const fn reply(&self) -> Topic<'a> {
        Topic::Reply { client: self.client, id: self.id }
    }
}

impl<'a> Filter<'a> {
    /// Writes the filter into the caller's buffer.
    ///
    /// # Errors
    /// [`BufferError`] when the buffer is too small.
    pub fn build<'b>(&self, prefix: Prefix<'_>, out: &'b mut [u8]) -> Result<&'b str, BufferError> {
        join(&self.parts(prefix.0), out)
    }

    /// The filter for `format!` and logs.
    pub const fn under(self, prefix: Prefix<'a>) -> Under<'a, Self> {
        Under { prefix, path: self }
    }

    fn parts<'s>(&'s self, prefix: &'s str) -> [&'s str; 5] {
        match self {
            Self::Requests { node } => [prefix, "/", node.as_str(), "/req/#", ""],
            Self::SharedRequests { group } => ["$share/", group.as_str(), "/", prefix, "/_any/req/#"],
            Self::Replies { client } => [prefix, "/_res/", client.0, "/#", ""],
        }
    }
}

impl Format {
    /// The word in the topic.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Postcard => "postcard",
            Self::Raw => "raw",
        }
    }

    /// The format of a word that [`name`](Self::name) gave.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Json, Self::Postcard, Self::Raw].into_iter().find(|format| format.name() == name)
    }
}

impl<'a> Prefix<'a> {
    /// `tractd/v1`.
    pub const DEFAULT: Prefix<'static> = Prefix("tractd/v1");

    /// Checks a prefix.
    ///
    /// # Errors
    /// [`PrefixError`] when it is empty, too long, has an empty level or characters that mean something to MQTT.
    pub fn parse(text: &'a str) -> Result<Self, PrefixError> {
        let plain = text.chars().all(|c| !matches!(c, '+' | '#') && !c.is_control() && !c.is_whitespace());
        let levels = text.split('/').all(|level| !level.is_empty());
        if plain && levels && text.len() <= PREFIX_LEN_MAX && !text.starts_with('$') {
            Ok(Self(text))
        } else {
            Err(PrefixError)
        }
    }

    /// The prefix as text, without a slash at its end.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl<'a> Word<'a> {
    /// Checks a client id or a request's id.
    ///
    /// # Errors
    /// [`WordError`] unless it matches `[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}`.
    pub fn parse(text: &'a str) -> Result<Self, WordError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
        let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts && text.len() <= NAME_LEN_MAX && text.bytes().all(inner) {
            Ok(Self(text))
        } else {
            Err(WordError)
        }
    }

    /// The word as text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Under<'_, Topic<'_>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; DIGITS_MAX];
        self.path.parts(self.prefix.0, &mut digits).iter().try_for_each(|part| f.write_str(part))
    }
}

impl fmt::Display for Under<'_, Filter<'_>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.parts(self.prefix.0).iter().try_for_each(|part| f.write_str(part))
    }
}

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn request<'a>(
    node: &'a str,
    model: &'a str,
    format: &str,
    client: &'a str,
    id: Option<&'a str>,
) -> Result<Topic<'a>, TopicError> {
    Ok(Topic::Request(RequestTopic {
        node: if node == ANY { Node::Any } else { Node::Named(named("node", node)?) },
        model: Selector::parse(model).map_err(|error| TopicError::Name { level: "model", error })?,
        format: Format::from_name(format).ok_or(TopicError::Format)?,
        client: Word::parse(client)?,
        id: id.map(Word::parse).transpose()?,
    }))
}

fn named<'a>(level: &'static str, text: &'a str) -> Result<Name<'a>, TopicError> {
    Name::parse(text).map_err(|error| TopicError::Name { level, error })
}

fn optional<'a>(id: &Option<Word<'a>>) -> [&'a str; 2] {
    id.map_or(["", ""], |id| ["/", id.0])
}

fn fill<'s, const N: usize>(parts: &mut [&'s str], from: [&'s str; N]) {
    parts.iter_mut().zip(from).for_each(|(part, text)| *part = text);
}

/// Not by `core::fmt`, which is larger than all else a firmware needs of this crate.
fn join<'b>(parts: &[&str], out: &'b mut [u8]) -> Result<&'b str, BufferError> {
    let mut len = 0;
    for part in parts {
        let space = out.get_mut(len..len + part.len()).ok_or(BufferError)?;
        space.copy_from_slice(part.as_bytes());
        len += part.len();
    }
    out.get(..len).and_then(|bytes| core::str::from_utf8(bytes).ok()).ok_or(BufferError)
}

/// Digits of `u64::MAX`.
const DIGITS_MAX: usize = 20;

fn decimal(mut number: u64, digits: &mut [u8; DIGITS_MAX]) -> &str {
    let mut start = DIGITS_MAX;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        start -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits.get(start..).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    const P: Prefix<'static> = Prefix::DEFAULT;

    /// The topic reads as `expected` and is written back as it stood, in both ways.
    #[track_caller]
    fn check(text: &str, expected: Topic<'_>) {
        assert_eq!(Topic::parse(P, text), Ok(expected));
        assert_eq!(expected.build(P, &mut [0; TOPIC_LEN_MAX]), Ok(text));
        assert_eq!(expected.under(P).to_string(), text);
        assert_eq!(expected.build(P, &mut [0; TOPIC_LEN_MAX][..text.len() - 1]), Err(BufferError));
    }

    fn n(text: &str) -> Name<'_> {
        Name::parse(text).unwrap()
    }

    fn w(text: &str) -> Word<'_> {
        Word::parse(text).unwrap()
    }

    #[test]
    fn every_topic_of_the_tree_reads_and_writes() {
        let (node, model) = (n("cam-3"), n("digits"));
        check("tractd/v1/cam-3/status", Topic::Status { node });
        check("tractd/v1/cam-3/description", Topic::Description { node });
        check("tractd/v1/cam-3/metrics", Topic::Metrics { node });
        check("tractd/v1/cam-3/model/digits/state", Topic::ModelState { node, model });
        check("tractd/v1/cam-3/update/digits/state", Topic::UpdateState { node, model });
        check("tractd/v1/_announce", Topic::Announce);
        check("tractd/v1/_res/ESP32_0A", Topic::Reply { client: w("ESP32_0A"), id: None });
        check("tractd/v1/_res/a:b/1.2", Topic::Reply { client: w("a:b"), id: Some(w("1.2")) });
    }

    #[test]
    fn every_part_of_a_request_reads_and_writes() {
        let request = |node, model, format, client, id| {
            let model = Selector::parse(model).unwrap();
            Topic::Request(RequestTopic { node, model, format, client: w(client), id })
        };
        let cam = Node::Named(n("cam-3"));
        check("tractd/v1/cam-3/req/digits/json/c1", request(cam, "digits", Format::Json, "c1", None));
        check(
            "tractd/v1/_any/req/digits@18446744073709551615/postcard/c1/9",
            request(Node::Any, "digits@18446744073709551615", Format::Postcard, "c1", Some(w("9"))),
        );
        check(
            "tractd/v1/cam-3/req/digits@canary/raw/C/x",
            request(cam, "digits@canary", Format::Raw, "C", Some(w("x"))),
        );
    }

    #[test]
    fn what_is_not_of_the_tree_says_why() {
        use TopicError::*;
        let node = |error| Name { level: "node", error };
        let model = |error| Name { level: "model", error };
        for (text, expected) in [
            ("", Foreign),
            ("tractd/v1", Foreign),
            ("tractd/v10/cam/status", Foreign),
            ("other/cam/status", Foreign),
            ("tractd/v1/", Unknown),
            ("tractd/v1/cam", Unknown),
            ("tractd/v1/cam/nothing", Unknown),
            ("tractd/v1/_announce/cam", Unknown),
            ("tractd/v1/cam/status/", Unknown),
            ("tractd/v1/cam/req/digits/json/c/i/more", Unknown),
            ("tractd/v1//status", node(NameError::Empty)),
            ("tractd/v1/Cam/status", node(NameError::Character)),
            ("tractd/v1/_any/status", node(NameError::Character)),
            ("tractd/v1/+/status", node(NameError::Character)),
            ("tractd/v1/cam/model/_x/state", model(NameError::Character)),
            ("tractd/v1/cam/model/digits@7/state", model(NameError::Character)),
            ("tractd/v1/cam/req/digits@07/json/c", model(NameError::Version)),
            ("tractd/v1/cam/req/digits/xml/c", Format),
            ("tractd/v1/cam/req/digits/json/", Word(WordError)),
            ("tractd/v1/cam/req/digits/json/#", Word(WordError)),
            ("tractd/v1/cam/req/digits/json/c/_i", Word(WordError)),
            ("tractd/v1/_res/_x", Word(WordError)),
        ] {
            assert_eq!(Topic::parse(P, text), Err(expected), "{text}");
        }
    }

    #[test]
    fn filters_read_as_a_broker_wants_them() {
        let check = |filter: Filter<'_>, expected: &str| {
            assert_eq!(filter.build(P, &mut [0; TOPIC_LEN_MAX]), Ok(expected));
            assert_eq!(filter.under(P).to_string(), expected);
        };
        check(Filter::Requests { node: n("cam") }, "tractd/v1/cam/req/#");
        check(Filter::SharedRequests { group: n("line-1") }, "$share/line-1/tractd/v1/_any/req/#");
        check(Filter::Replies { client: w("C1") }, "tractd/v1/_res/C1/#");
    }

    #[test]
    fn prefixes_are_plain_levels() {
        for text in ["t", "tractd/v1", "site/Nord/é", &"p".repeat(64)] {
            assert_eq!(Prefix::parse(text).map(Prefix::as_str), Ok(text));
        }
        for text in ["", "/", "a/", "/a", "a//b", "a/+", "#", "$SYS/a", "a b", "a\0", &"p".repeat(65)] {
            assert_eq!(Prefix::parse(text), Err(PrefixError), "{text:?}");
        }
    }

    #[test]
    fn the_longest_topic_fits_the_limit_exactly() {
        let name = "n".repeat(NAME_LEN_MAX);
        let prefix = "p".repeat(PREFIX_LEN_MAX);
        let text = std::format!("{prefix}/{name}/req/{name}@{name}/postcard/{name}/{name}");
        let prefix = Prefix::parse(&prefix).unwrap();
        let topic = Topic::parse(prefix, &text).unwrap();
        assert_eq!(text.len(), TOPIC_LEN_MAX);
        assert_eq!(topic.build(prefix, &mut [0; TOPIC_LEN_MAX]), Ok(&*text));
    }
}
