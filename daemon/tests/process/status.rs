//! The JSON of models and status is a contract: a field may be added, none may change or go.

use crate::harness::{Ask, Site};
use serde_json::{Value, json};
use tractd_wire::{DType, Status};

/// The same structure with the kinds of values in their place.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "text".into(),
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
    }
}

#[test]
fn the_structure_is_frozen() {
    let site = Site::new();
    site.add_example("digits", 1);
    site.add_model("broken", 1, b"broken");
    site.configure("[[gateway]]\npath = '/nonexistent/tty'");
    let daemon = site.start();
    let ask = Ask::tensor("digits", "image", DType::F32, &[1, 1, 8, 8], vec![0; 256]);
    assert_eq!(daemon.connect().ask(&ask).status, Status::Ok);

    let models = daemon.models();
    let by_name = |name: &str| {
        models["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone()
    };
    assert_eq!(
        shape(&by_name("digits")),
        json!({
            "name": "text", "version": "number", "digest": "text", "signed": "bool", "state": "text",
            "description": "text", "takes_media": "bool", "labels": ["text"],
            "inputs": [{ "name": "text", "dtype": "text", "shape": ["number"] }],
            "outputs": [{ "name": "text", "dtype": "text", "shape": ["number"] }],
            "peak_ram_bytes": "number", "weight_bytes": "number", "golden": "number",
        })
    );
    assert_eq!(
        shape(&by_name("broken")),
        json!({ "name": "text", "version": "number", "signed": "bool", "state": "text", "reason": "text" })
    );
    let digits = by_name("digits");
    assert_eq!(digits["inputs"], json!([{ "name": "image", "dtype": "f32", "shape": [1, 1, 8, 8] }]));
    assert_eq!((&digits["takes_media"], &digits["golden"]), (&true.into(), &10.into()));
    assert!(digits["digest"].as_str().unwrap().starts_with("sha256:"));

    let stage = json!({ "p50_us": "number", "p90_us": "number", "p99_us": "number", "max_us": "number" });
    let status = daemon.status();
    assert_eq!(
        shape(&status),
        json!({
            "version": "text", "node": "text", "state": "text", "pid": "number", "uptime_ms": "number",
            "workers": "number", "kernels": "text",
            "memory": { "rss_bytes": "number", "models_bytes": "number", "models_bytes_max": "number" },
            "queue": {
                "jobs": "number", "jobs_max": "number", "bytes": "number", "bytes_max": "number",
                "running": "number",
            },
            "connections": {
                "open": "number", "open_max": "number", "accepted": "number", "turned_away": "number",
            },
            "gateways": [{
                "path": "text", "open": "bool", "opened": "number", "sessions": "number", "requests": "number",
                "repeated": "number", "replies": "number", "damaged": "number",
            }],
            "requests": "number",
            "replies": { "ok": "number" },
            "update": { "provisioned": "bool", "enabled": "bool", "phase": "text", "warnings": [], "models": {} },
            "certificates": [],
            "models": [{
                "name": "text", "version": "number", "digest": "text", "signed": "bool", "state": "text",
                "queued": "number", "replies": { "ok": "number" }, "abandoned": "number",
                "latency": { "count": "number", "queue": stage, "pre": stage, "infer": stage, "post": stage },
            }],
        })
    );
    let kernels = tractd_engine::Tier::detect().name();
    assert_eq!((&status["kernels"], &status["pid"]), (&kernels.into(), &daemon.pid().into()));
    assert_eq!((&status["requests"], &status["models"][0]["latency"]["count"]), (&1.into(), &1.into()));
    assert!(status["memory"]["rss_bytes"].as_u64().unwrap() > 1_000_000);
}
