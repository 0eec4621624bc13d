//! `docs/asyncapi.yaml` beside the code: the same topics, codes, formats and fields.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tractd_wire::topic::{Format, Prefix, Topic};
use tractd_wire::{Priority, Status};

use crate::site::Site;
use crate::{REPLY, exchange, samples};

const FILE: &str = include_str!("../../../docs/asyncapi.yaml");

fn document() -> Value {
    let document: serde_norway::Value = serde_norway::from_str(FILE).expect("it is YAML");
    let mut document = document;
    document.apply_merge().expect("its merges are of maps");
    serde_json::to_value(document).unwrap()
}

/// What a reference within the document stands for.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("a place in this file");
            document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
        None => value,
    }
}

fn every_reference(document: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            resolve(document, value);
            fields.values().for_each(|field| every_reference(document, field));
        }
        Value::Array(items) => items.iter().for_each(|item| every_reference(document, item)),
        _ => {}
    }
}

#[test]
fn every_channel_is_a_topic_and_every_topic_a_channel() {
    let document = document();
    every_reference(&document, &document);
    let mut kinds = BTreeSet::new();
    for (name, channel) in document["channels"].as_object().unwrap() {
        let address = channel["address"].as_str().unwrap();
        let topic = address.replace("{format}", "raw").replace(['{', '}'], "");
        let kind = match Topic::parse(Prefix::DEFAULT, &topic).unwrap_or_else(|e| panic!("{name}: {e}")) {
            Topic::Announce => "announce",
            Topic::Status { .. } => "status",
            Topic::Description { .. } => "description",
            Topic::Metrics { .. } => "metrics",
            Topic::ModelState { .. } => "modelState",
            Topic::UpdateState { .. } => "updateState",
            Topic::Request(request) if request.id.is_some() => "requestWithId",
            Topic::Request(_) => "request",
            Topic::Reply { id: Some(_), .. } => "replyWithId",
            Topic::Reply { .. } => "reply",
        };
        assert_eq!(name, kind);
        let parameters: BTreeSet<&str> = channel["parameters"]
            .as_object()
            .into_iter()
            .flat_map(|named| named.keys().map(String::as_str))
            .collect();
        let named: BTreeSet<&str> =
            address.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        assert_eq!(parameters, named, "{name}");
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), 10, "a variant of Topic without a channel");
}

#[test]
fn codes_formats_and_priorities_are_the_wires() {
    let document = document();
    let codes: Vec<u64> = Status::ALL.iter().map(|status| status.code().into()).collect();
    assert_eq!(document["components"]["schemas"]["code"]["enum"], json!(codes));
    for status in Status::ALL {
        assert!(FILE.contains(&format!("- {} # {}\n", status.code(), status.name())), "{}", status.name());
    }
    let formats = [Format::Json, Format::Postcard, Format::Raw].map(Format::name);
    assert_eq!(document["components"]["parameters"]["format"]["enum"], json!(formats));
    let request = &document["components"]["messages"]["jsonRequest"]["payload"]["properties"];
    let priorities: Vec<&str> = Priority::ALL.iter().map(|priority| priority.name()).collect();
    assert_eq!(request["priority"]["enum"], json!(priorities));
}

#[test]
fn what_a_daemon_says_has_no_field_the_document_does_not_know() {
    let document = document();
    let known = |message: &str, said: &Value| {
        let properties =
            document["components"]["messages"][message]["payload"]["properties"].as_object().unwrap();
        for field in said.as_object().unwrap().keys() {
            assert!(properties.contains_key(field), "{message}.{field}");
        }
    };
    let (site, node) = Site::ready(5);
    let mut client = site.client("cam");
    client.subscribe("tractd/v1/_res/cam/#");
    known("jsonReply", &exchange(&mut client, &node, "raw", "1", &samples()[0].1).json());
    known("jsonReply", &exchange(&mut client, &node, "raw", "2", b"no picture").json());
    client.subscribe(&format!("tractd/v1/{node}/status"));
    known("status", &client.receive(REPLY).unwrap().json());
    client.subscribe(&format!("tractd/v1/{node}/model/digits/state"));
    known("modelState", &client.receive(REPLY).unwrap().json());
}
