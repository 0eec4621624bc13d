//! Any text as names and topics: what is taken is written as it stood.

use tractd_wire::{topic::*, *};

pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = Name::parse(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(word) = Word::parse(text) {
        assert_eq!(word.as_str(), text);
    }
    if let Ok(selector) = Selector::parse(text) {
        assert_eq!(selector.to_string(), text);
    }
    read(Prefix::DEFAULT, text);
    // The first line as a prefix, the rest under it.
    if let Some((prefix, topic)) = text.split_once('\n')
        && let Ok(prefix) = Prefix::parse(prefix)
    {
        read(prefix, topic);
    }
}

fn read(prefix: Prefix<'_>, text: &str) {
    let Ok(topic) = Topic::parse(prefix, text) else { return };
    let mut buffer = [0; TOPIC_LEN_MAX];
    assert_eq!(topic.build(prefix, &mut buffer), Ok(text));
    assert_eq!(topic.under(prefix).to_string(), text);
    if let Topic::Request(request) = topic {
        let reply = request.reply().under(prefix).to_string();
        assert_eq!(Topic::parse(prefix, &reply), Ok(request.reply()));
    }
}
