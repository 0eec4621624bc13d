//! What the node says about its models: retained topics and their payloads.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use tractd_wire::Name;
use tractd_wire::topic::{Prefix, Topic};

pub(super) type Fields = serde_json::Map<String, Value>;
/// A topic and its payload.
type Statement = (String, Bytes);

/// Who speaks, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) node: Name<'a>,
    pub(super) prefix: Prefix<'a>,
}

impl About<'_> {
    /// What there is to ask, in full.
    pub(super) fn description(&self, models: &[Value], limits: &Value) -> Statement {
        let description = json!({
            "node": self.node.as_str(),
            "version": env!("CARGO_PKG_VERSION"),
            "proto": tractd_wire::VERSION,
            "formats": ["json", "postcard", "raw"],
            "limits": limits,
            "models": models,
        });
        let topic = Topic::Description { node: self.node };
        (topic.under(self.prefix).to_string(), description.to_string().into())
    }

    /// How one model is, since when.
    pub(super) fn model_state(&self, model: Name<'_>, state: &Fields, since_unix_ms: u64) -> Statement {
        let mut state = state.clone();
        state.insert("since".to_owned(), since_unix_ms.into());
        (self.state_topic(model), Value::Object(state).to_string().into())
    }

    /// How far the latest version of one model is.
    pub(super) fn update_state(&self, model: Name<'_>, update: &Value) -> Statement {
        let topic = Topic::UpdateState { node: self.node, model };
        (topic.under(self.prefix).to_string(), update.to_string().into())
    }

    /// Descriptions for Home Assistant: one device with what its status, metrics and models tell.
    /// <https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery>
    pub(super) fn discovery<'m>(
        &self,
        discovery_prefix: &str,
        models: impl Iterator<Item = Name<'m>>,
    ) -> Vec<Statement> {
        let status = Topic::Status { node: self.node }.under(self.prefix).to_string();
        let metrics = Topic::Metrics { node: self.node }.under(self.prefix).to_string();
        let mut entities = vec![
            (
                "binary_sensor",
                "connection".to_owned(),
                json!({
                    "name": "Connection",
                    "state_topic": status,
                    "value_template": "{{ 'ON' if value_json.state == 'ready' else 'OFF' }}",
                    "device_class": "connectivity",
                    "entity_category": "diagnostic",
                }),
            ),
            (
                "sensor",
                "requests".to_owned(),
                json!({
                    "name": "Requests",
                    "state_topic": metrics,
                    "value_template": "{{ value_json.requests }}",
                    "state_class": "total_increasing",
                }),
            ),
            (
                "sensor",
                "memory".to_owned(),
                json!({
                    "name": "Memory",
                    "state_topic": metrics,
                    "value_template": "{{ value_json.memory.rss_bytes }}",
                    "device_class": "data_size",
                    "unit_of_measurement": "B",
                    "entity_category": "diagnostic",
                }),
            ),
        ];
        entities.extend(models.map(|model| {
            let topic = self.state_topic(model);
            (
                "sensor",
                format!("model_{model}"),
                json!({
                    "name": format!("Model {model}"),
                    "state_topic": topic,
                    "value_template": "{{ value_json.version }}",
                    "json_attributes_topic": topic,
                    "availability": [{
                        "topic": topic,
                        "value_template": "{{ value_json.state }}",
                        "payload_available": "ready",
                    }],
                }),
            )
        }));
        let device = json!({
            "identifiers": [format!("tractd_{}", self.node)],
            "name": format!("tractd {}", self.node),
            "manufacturer": "tractd",
            "sw_version": env!("CARGO_PKG_VERSION"),
        });
        let described = entities.into_iter().map(|(component, object, mut entity)| {
            entity["unique_id"] = json!(format!("tractd_{}_{object}", self.node));
            entity["device"] = device.clone();
            let topic = format!("{discovery_prefix}/{component}/tractd_{}/{object}/config", self.node);
            (topic, entity.to_string().into())
        });
        described.collect()
    }

    fn state_topic(&self, model: Name<'_>) -> String {
        Topic::ModelState { node: self.node, model }.under(self.prefix).to_string()
    }
}

/// What `model/<m>/state` says of each name. Of several versions the one that answers speaks; another one's trouble
/// stands beside it as `last_error`.
pub(super) fn model_states(models: &[Value]) -> BTreeMap<String, Fields> {
    let mut states: BTreeMap<String, Fields> = BTreeMap::new();
    for model in models {
        let Some(name) = model["name"].as_str() else { continue };
        let known = states.entry(name.to_owned()).or_default();
        if known.get("state").is_none_or(|state| state != "ready") {
            for field in ["version", "digest", "signed", "state", "previous_version"] {
                known.remove(field);
                if let Some(value) = model.get(field) {
                    known.insert(field.to_owned(), value.clone());
                }
            }
        }
        if let Some(reason) = model.get("reason") {
            known.insert("last_error".to_owned(), reason.clone());
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_assistant_finds_a_device_with_its_models() {
        let node = Name::parse("press-3").unwrap();
        let about = About { node, prefix: Prefix::DEFAULT };
        let found: BTreeMap<String, Bytes> = about
            .discovery("homeassistant", [Name::parse("digits").unwrap()].into_iter())
            .into_iter()
            .collect();
        let topics: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            topics,
            [
                "homeassistant/binary_sensor/tractd_press-3/connection/config",
                "homeassistant/sensor/tractd_press-3/memory/config",
                "homeassistant/sensor/tractd_press-3/model_digits/config",
                "homeassistant/sensor/tractd_press-3/requests/config",
            ]
        );
        let model: Value = serde_json::from_slice(&found[topics[2]]).unwrap();
        assert_eq!(model["state_topic"], "tractd/v1/press-3/model/digits/state");
        assert_eq!(model["unique_id"], "tractd_press-3_model_digits");
        assert_eq!(model["device"]["identifiers"], json!(["tractd_press-3"]));
    }
}
