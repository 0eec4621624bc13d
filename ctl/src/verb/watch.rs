//! `tractctl watch`: nodes and their models, from what they keep on the broker.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tractd_wire::topic::{Prefix, Topic};

use super::Failure;
use crate::args::Watch;
use crate::at::{ANY_NODE, At};
use crate::mqtt::{Heard, Line, Road};
use crate::print::{bytes, micros, out, render, short_digest, table};

/// How often the table is drawn anew.
const REDRAW: Duration = Duration::from_millis(500);
/// After this long without a message, what the broker keeps has all come.
const SETTLED: Duration = Duration::from_millis(500);
/// Nodes held at once, so that a broker with strange topics can't fill the memory.
const NODES_MAX: usize = 10_000;

/// Shows nodes until interrupted, or once.
pub(crate) fn watch(args: &Watch) -> Result<(), Failure> {
    let Some(road) = Road::of(&args.at, &args.prefix) else {
        return Err(Failure::Usage("--at mqtt://host[:port][/node]; a socket has tractctl status".into()));
    };
    let prefix = Prefix::parse(&args.prefix)?;
    let mut line = Line::open(&road)?;
    let node = if road.node == ANY_NODE { "+" } else { road.node };
    for kind in ["status", "model/+/state", "update/+/state", "metrics"] {
        line.subscribe(&format!("{prefix}/{node}/{kind}"))?;
    }
    let drawn = std::io::stdout().is_terminal() && !args.json && !args.once;
    let mut fleet = Fleet::default();
    let mut draw_at = Instant::now() + REDRAW;
    loop {
        let until = if args.once { Instant::now() + SETTLED } else { draw_at };
        let heard = line.heard(until)?;
        let news = heard.and_then(|heard| fleet.hear(prefix, &heard));
        match news {
            Some(news) if args.json => out(&news.to_json().to_string())?,
            Some(news) if !drawn && !args.once => out(&news.to_line())?,
            None if args.once && Instant::now() >= until => {
                return if args.json { Ok(()) } else { Ok(out(&fleet.table())?) };
            }
            _ => {}
        }
        if drawn && Instant::now() >= draw_at {
            // Home, the table, and whatever the last one had below it cleared.
            out(&format!("\x1b[H\x1b[2J{} on {}\n{}", fleet.summary(), describe(&args.at), fleet.table()))?;
            draw_at = Instant::now() + REDRAW;
        }
    }
}

fn describe(at: &At) -> String {
    at.to_string().trim_end_matches("/_any").to_owned()
}

/// Everything heard, the newest of each.
#[derive(Debug, Default)]
struct Fleet {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Default)]
struct Node {
    status: Value,
    models: BTreeMap<String, Value>,
    updates: BTreeMap<String, Value>,
    metrics: Value,
}

/// One message, understood.
#[derive(Debug, PartialEq)]
struct News {
    node: String,
    /// `status`, `model`, `update` or `metrics`.
    kind: &'static str,
    model: Option<String>,
    /// The broker kept it from before.
    kept: bool,
    /// Null where the topic was emptied.
    said: Value,
}

impl Fleet {
    /// Takes in a message; none when it is not of a node's.
    fn hear(&mut self, prefix: Prefix<'_>, heard: &Heard) -> Option<News> {
        let said = serde_json::from_slice(&heard.payload).unwrap_or_default();
        let (node, kind, model) = match Topic::parse(prefix, &heard.topic).ok()? {
            Topic::Status { node } => (node, "status", None),
            Topic::Metrics { node } => (node, "metrics", None),
            Topic::ModelState { node, model } => (node, "model", Some(model)),
            Topic::UpdateState { node, model } => (node, "update", Some(model)),
            _ => return None,
        };
        let (node, model) = (node.as_str().to_owned(), model.map(|model| model.as_str().to_owned()));
        let news = News { node, kind, model, kept: heard.retain, said };
        if self.nodes.len() < NODES_MAX || self.nodes.contains_key(&news.node) {
            self.nodes.entry(news.node.clone()).or_default().hear(&news);
        }
        Some(news)
    }

    fn summary(&self) -> String {
        let ready = self.nodes.values().filter(|node| node.status["state"] == "ready").count();
        format!("{ready} of {} nodes ready", self.nodes.len())
    }

    fn table(&self) -> String {
        if self.nodes.is_empty() {
            return "no node has said anything on this broker".to_owned();
        }
        let headings = [
            "NODE",
            "STATE",
            "TRACTD",
            "MODEL",
            "VERSION",
            "STATE",
            "DIGEST",
            "INFER p50",
            "QUEUED",
            "MEMORY",
        ];
        let mut rows = table(&headings);
        for (name, node) in &self.nodes {
            let head = [name.as_str(), text(&node.status, "state"), text(&node.status, "version")];
            let memory = node.metrics["memory"]["rss_bytes"].as_u64().map(bytes).unwrap_or_default();
            if node.models.is_empty() {
                rows.add_row([head[0], head[1], head[2], "–", "", "", "", "", "", &memory]);
            }
            for (number, (model, state)) in node.models.iter().enumerate() {
                let [name, node_state, version] = if number == 0 { head } else { [""; 3] };
                let (infer, queued) = node.figures(model);
                let memory = if number == 0 { memory.as_str() } else { "" };
                rows.add_row([
                    name,
                    node_state,
                    version,
                    model,
                    &state["version"].as_u64().map_or_else(|| "–".to_owned(), |version| version.to_string()),
                    &node.progress(model, state),
                    short_digest(text(state, "digest")),
                    &infer,
                    &queued,
                    memory,
                ]);
            }
        }
        render(rows, &[4, 7, 8, 9])
    }
}

impl Node {
    fn hear(&mut self, news: &News) {
        let states = match (news.kind, &news.model) {
            ("model", Some(model)) => (&mut self.models, model),
            ("update", Some(model)) => (&mut self.updates, model),
            ("status", _) => return self.status = news.said.clone(),
            _ => return self.metrics = news.said.clone(),
        };
        match states {
            (states, model) if news.said.is_null() => drop(states.remove(model)),
            (states, model) => drop(states.insert(model.clone(), news.said.clone())),
        }
    }

    /// The model's state, and its update's beside it while there is one.
    fn progress(&self, model: &str, state: &Value) -> String {
        match self.updates.get(model).and_then(|update| update["state"].as_str()) {
            Some(update) => format!("{} ({update})", text(state, "state")),
            None => text(state, "state").to_owned(),
        }
    }

    /// Median time in the model, and requests waiting, from the last metrics.
    fn figures(&self, model: &str) -> (String, String) {
        let metrics = self.metrics["models"].as_array().into_iter().flatten().find(|m| m["name"] == model);
        let Some(metrics) = metrics else { return Default::default() };
        let infer = metrics["latency"]["infer"]["p50_us"].as_u64().map(micros).unwrap_or_default();
        (infer, metrics["queued"].as_u64().map(|queued| queued.to_string()).unwrap_or_default())
    }
}

impl News {
    fn to_json(&self) -> Value {
        let Self { node, kind, model, kept, said } = self;
        json!({ "node": node, "kind": kind, "model": model, "kept": kept, "said": said })
    }

    fn to_line(&self) -> String {
        let subject = match &self.model {
            Some(model) => format!("{} {} {model}", self.node, self.kind),
            None => format!("{} {}", self.node, self.kind),
        };
        match self.kind {
            _ if self.said.is_null() => format!("{subject}: gone"),
            "metrics" => format!("{subject}: {} requests", self.said["requests"]),
            _ => {
                let version = match (self.kind, self.said["version"].as_u64()) {
                    ("status", _) | (_, None) => String::new(),
                    (_, Some(version)) => format!(" {version}"),
                };
                let trouble = self.said["last_error"].as_str().map(|e| format!(" ({e})")).unwrap_or_default();
                format!("{subject}:{version} {}{trouble}", text(&self.said, "state"))
            }
        }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(fleet: &mut Fleet, topic: &str, payload: &str) -> Option<String> {
        let topic = format!("tractd/v1/{topic}");
        let heard = Heard { topic, payload: payload.as_bytes().to_vec(), retain: true };
        fleet.hear(Prefix::DEFAULT, &heard).map(|news| news.to_line())
    }

    #[test]
    fn a_fleet_is_a_table_of_what_was_said_last() {
        let mut fleet = Fleet::default();
        let mut line = |topic: &str, payload: &str| hear(&mut fleet, topic, payload).unwrap_or_default();
        assert_eq!(line("k1/status", r#"{"state":"ready","version":"0.1.0"}"#), "k1 status: ready");
        let state = r#"{"state":"ready","version":2,"digest":"sha256:0123456789abcdef"}"#;
        assert_eq!(line("k1/model/digits/state", state), "k1 model digits: 2 ready");
        assert_eq!(
            line("k1/update/digits/state", r#"{"state":"downloading","version":3}"#),
            "k1 update digits: 3 downloading"
        );
        assert_eq!(line("k1/model/old/state", state), "k1 model old: 2 ready");
        assert_eq!(line("k1/model/old/state", ""), "k1 model old: gone");
        let metrics = r#"{"requests":7,"memory":{"rss_bytes":2048},
            "models":[{"name":"digits","queued":1,"latency":{"infer":{"p50_us":90}}}]}"#;
        assert_eq!(line("k1/metrics", metrics), "k1 metrics: 7 requests");
        assert_eq!(line("k2/status", r#"{"state":"lost","version":"0.1.0"}"#), "k2 status: lost");
        assert_eq!(line("k1/req/digits/raw/cam", "{}"), "");
        assert_eq!(fleet.summary(), "1 of 2 nodes ready");
        assert_eq!(
            fleet.table(),
            "NODE  STATE  TRACTD  MODEL   VERSION  STATE                DIGEST        INFER p50  QUEUED   MEMORY\n\
             k1    ready  0.1.0   digits        2  ready (downloading)  0123456789ab      90 µs       1  2.0 KiB\n\
             k2    lost   0.1.0   –"
        );
    }

    #[test]
    fn one_object_for_each_message() {
        let mut fleet = Fleet::default();
        let topic = "tractd/v1/k1/model/digits/state".to_owned();
        let heard = Heard { topic, payload: br#"{"state":"failed"}"#.to_vec(), retain: false };
        let news = fleet.hear(Prefix::DEFAULT, &heard).unwrap().to_json();
        let expected = json!({
            "node": "k1", "kind": "model", "model": "digits", "kept": false, "said": { "state": "failed" },
        });
        assert_eq!(news, expected);
    }
}
