//! `tractctl models`, `status` and `update check`: what a daemon says of itself.

use anyhow::Context;
use serde_json::Value;
use tractd_wire::What;

use super::{Failure, connect};
use crate::args::Ask;
use crate::print::{bytes, micros, out, render, short_digest, table};
use crate::progress;

/// Lists the models a daemon serves.
pub(crate) fn models(ask: &Ask) -> Result<(), Failure> {
    let answer = query(ask, What::Models)?;
    Ok(out(&if ask.json { answer.to_string() } else { model_table(&answer) })?)
}

/// Shows a daemon's health, counters and latencies.
pub(crate) fn status(ask: &Ask) -> Result<(), Failure> {
    let answer = query(ask, What::Status)?;
    Ok(out(&if ask.json { answer.to_string() } else { status_report(&answer) })?)
}

/// Has the daemon ask its registry now.
pub(crate) fn check_updates(ask: &Ask) -> Result<(), Failure> {
    let spinner = progress::spinner("the daemon asks its registry");
    let answer = query(ask, What::CheckUpdates)?;
    spinner.finish_and_clear();
    if ask.json {
        out(&answer.to_string())?;
    } else if answer["ok"] == true {
        out(&check_report(&answer))?;
    } else {
        eprintln!("error: {}", answer["error"].as_str().unwrap_or("the check failed; see the daemon's log"));
    }
    let well =
        answer["ok"] == true && list(&answer["refused"]).is_empty() && list(&answer["failed"]).is_empty();
    if well { Ok(()) } else { Err(Failure::Refused) }
}

fn query(ask: &Ask, what: What) -> Result<Value, Failure> {
    let text = connect(ask.place.at.as_ref(), &ask.place.prefix)?.query(what)?;
    Ok(serde_json::from_str(&text).context("the daemon's answer is no JSON")?)
}

fn model_table(answer: &Value) -> String {
    let models = list(&answer["models"]);
    if models.is_empty() {
        return "no models; put one into the daemon's models folder, or publish one to its registry".into();
    }
    let mut rows = table(&["MODEL", "VERSION", "STATE", "TRUST", "DIGEST", "INPUT", "OUTPUT"]);
    for model in models {
        let version = model["version"].as_u64().map_or_else(|| "–".into(), |version| version.to_string());
        let trust = if model["signed"] == true { "signed" } else { "unsigned" };
        rows.add_row([
            text(model, "name"),
            &version,
            text(model, "state"),
            trust,
            short_digest(text(model, "digest")),
            &tensors(&model["inputs"]),
            &tensors(&model["outputs"]),
        ]);
    }
    let mut lines = vec![render(rows, &[1])];
    for model in models {
        if let Some(reason) = model["reason"].as_str() {
            lines.push(format!("{} is {}: {reason}", text(model, "name"), text(model, "state")));
        }
    }
    lines.join("\n")
}

/// `image f32[1,1,8,8]`, several with commas between.
fn tensors(value: &Value) -> String {
    let one = |tensor: &Value| {
        let dim = |dim: &Value| dim.as_str().map_or_else(|| dim.to_string(), str::to_owned);
        let shape: Vec<_> = list(&tensor["shape"]).iter().map(dim).collect();
        format!("{} {}[{}]", text(tensor, "name"), text(tensor, "dtype"), shape.join(","))
    };
    list(value).iter().map(one).collect::<Vec<_>>().join(", ")
}

fn status_report(status: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let memory = &status["memory"];
    let queue = &status["queue"];
    let mut facts = table(&[]);
    let mut fact = |name: &str, what: String| {
        facts.add_row([name.to_owned(), what]);
    };
    fact("node", format!("{} (tractd {})", text(status, "node"), text(status, "version")));
    let uptime = micros(number(&status["uptime_ms"]).saturating_mul(1000));
    fact("state", format!("{} for {uptime}, {} workers", text(status, "state"), status["workers"]));
    fact(
        "memory",
        format!(
            "{} resident; models {} of {}",
            bytes(number(&memory["rss_bytes"])),
            bytes(number(&memory["models_bytes"])),
            bytes(number(&memory["models_bytes_max"]))
        ),
    );
    fact(
        "queue",
        format!("{} of {} requests, {} running", queue["jobs"], queue["jobs_max"], queue["running"]),
    );
    fact("requests", format!("{} ({})", status["requests"], replies(&status["replies"])));
    fact("updates", updates(&status["update"]));
    let mut report = vec![render(facts, &[])];
    let certificates = list(&status["certificates"]).iter().map(|certificate| &certificate["warning"]);
    let warnings = list(&status["update"]["warnings"]).iter().chain(certificates);
    report.extend(warnings.filter_map(|warning| Some(format!("warning: {}", warning.as_str()?))));
    for (model, update) in status["update"]["models"].as_object().into_iter().flatten() {
        report.extend(model_update(model, update));
    }

    let models = list(&status["models"]);
    if !models.is_empty() {
        let headings =
            ["MODEL", "VERSION", "STATE", "ANSWERED", "QUEUE p50", "p99", "INFER p50", "p99", "QUEUED"];
        let mut rows = table(&headings);
        for model in models {
            let latency = &model["latency"];
            let time = |stage: &str, which: &str| micros(number(&latency[stage][which]));
            rows.add_row([
                text(model, "name").to_owned(),
                model["version"].to_string(),
                text(model, "state").to_owned(),
                latency["count"].to_string(),
                time("queue", "p50_us"),
                time("queue", "p99_us"),
                time("infer", "p50_us"),
                time("infer", "p99_us"),
                model["queued"].to_string(),
            ]);
        }
        report.push(String::new());
        report.push(render(rows, &[1, 3, 4, 5, 6, 7, 8]));
    }
    report.join("\n")
}

fn updates(update: &Value) -> String {
    if let Some(error) = update["error"].as_str() {
        return error.to_owned();
    }
    if update["provisioned"] != true {
        return "not provisioned".into();
    }
    let last = &update["last"];
    let outcome = match (last["ok"].as_bool(), last["error"].as_str()) {
        (None, _) => "not asked yet".into(),
        (Some(true), _) => "last check went well".into(),
        (Some(false), error) => format!("last check failed: {}", error.unwrap_or("see the log")),
    };
    format!(
        "{} for group {}, {}; {outcome}",
        text(update, "registry"),
        text(update, "group"),
        text(update, "phase")
    )
}

/// What there is to say of a model's latest version; of one that is committed, nothing.
fn model_update(model: &str, update: &Value) -> Option<String> {
    let state = text(update, "state");
    if state == "committed" {
        return None;
    }
    let stage = update["stage"].as_str().filter(|_| state == "trial").map(|stage| format!(" ({stage})"));
    let reason = update["reason"].as_str().map(|reason| format!(": {reason}"));
    let (stage, reason) = (stage.unwrap_or_default(), reason.unwrap_or_default());
    Some(format!("{model} {}: {state}{stage}{reason}", update["version"]))
}

fn replies(counts: &Value) -> String {
    let counts = counts.as_object().into_iter().flatten().map(|(status, count)| format!("{status} {count}"));
    let text = counts.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none answered yet".into() } else { text }
}

fn check_report(report: &Value) -> String {
    let mut lines: Vec<String> = Vec::new();
    for name in list(&report["activated"]) {
        lines.push(format!("activated {}", name.as_str().unwrap_or_default()));
    }
    for (key, word) in
        [("refused", "refused"), ("failed", "failed, will be tried again"), ("waiting", "waiting")]
    {
        for trouble in list(&report[key]) {
            let (model, version) = (text(trouble, "model"), &trouble["version"]);
            lines.push(format!("{word}: {model} {version}: {}", text(trouble, "reason")));
        }
    }
    if report["no_rollout"] == true {
        lines.push("the registry has nothing for this device's group".into());
    }
    if report["clock_untrusted"] == true {
        lines.push("the clock is behind what is known; set it, or a stale registry goes unnoticed".into());
    }
    if lines.is_empty() {
        lines.push("nothing new".into());
    }
    lines.join("\n")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn models_are_a_table_with_reasons_below() {
        let answer = json!({ "models": [
            { "name": "digits", "version": 2, "state": "ready", "signed": true, "digest": "sha256:0123456789abcdef",
              "inputs": [{ "name": "image", "dtype": "f32", "shape": [1, 1, 8, "n"] }],
              "outputs": [{ "name": "logits", "dtype": "f32", "shape": [1, 10] }] },
            { "name": "broken", "state": "failed", "signed": false, "reason": "the graph has no input" },
        ] });
        assert_eq!(
            model_table(&answer),
            "MODEL   VERSION  STATE   TRUST     DIGEST        INPUT               OUTPUT\n\
             digits        2  ready   signed    0123456789ab  image f32[1,1,8,n]  logits f32[1,10]\n\
             broken        –  failed  unsigned\n\
             broken is failed: the graph has no input"
        );
        assert!(model_table(&json!({ "models": [] })).starts_with("no models; put one into"));
    }

    #[test]
    fn what_will_hurt_is_warned_of() {
        let status = json!({
            "update": { "warnings": ["the clock is behind"] },
            "certificates": [
                { "kind": "client", "at": "/c.pem", "ends_unix_s": 9, "warning": "our certificate ends" },
                { "kind": "broker", "at": "mqtts://b", "ends_unix_s": 99 },
            ],
        });
        let report = status_report(&status);
        let warned: Vec<&str> = report.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert_eq!(warned, ["warning: the clock is behind", "warning: our certificate ends"]);
    }

    #[test]
    fn a_version_on_its_way_is_told_with_its_stage_and_reason() {
        let told = |update| model_update("m", &update);
        assert_eq!(told(json!({ "version": 2, "state": "committed" })), None);
        let trial = json!({ "version": 2, "state": "trial", "stage": "canary" });
        assert_eq!(told(trial).unwrap(), "m 2: trial (canary)");
        let back =
            json!({ "version": 2, "state": "rolled-back", "stage": "all", "reason": "trial (all): x" });
        assert_eq!(told(back).unwrap(), "m 2: rolled-back: trial (all): x");
    }

    #[test]
    fn a_check_says_what_it_came_to() {
        let report = json!({
            "ok": true, "activated": ["digits@2"], "waiting": [],
            "refused": [{ "model": "x", "version": 1, "reason": "self-test failed" }],
        });
        assert_eq!(check_report(&report), "activated digits@2\nrefused: x 1: self-test failed");
        assert_eq!(check_report(&json!({ "ok": true })), "nothing new");
        let none = json!({ "ok": true, "no_rollout": true });
        assert_eq!(check_report(&none), "the registry has nothing for this device's group");
    }
}
