//! `tractctl doctor`: what commonly goes wrong on a device and its broker, and what to change about it.
//!
//! Each check is a function that gives [`Finding`]s. What it cannot find out it says so; nothing here changes anything,
//! apart from one retained message on a topic of its own, which it takes back.

mod broker;
mod machine;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tractd_wire::What;

use super::Failure;
use crate::args::Doctor;
use crate::at::{At, default_at, default_state_dir};
use crate::mqtt::Road;
use crate::print::out;
use crate::socket::Socket;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Well,
    /// It works, and could work better.
    Advice,
    /// It does not work, or soon won't.
    Wrong,
    /// It could not be found out.
    Unknown,
}

/// One thing looked at.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Part of the machine or the fleet.
    subject: &'static str,
    verdict: Verdict,
    /// What is the case, and where something should be changed, what.
    text: String,
}

impl Finding {
    fn well(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Well, text: text.into() }
    }

    fn advice(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Advice, text: text.into() }
    }

    fn wrong(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Wrong, text: text.into() }
    }

    fn unknown(subject: &'static str, text: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Unknown, text: text.into() }
    }
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Advice => "advice",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
        }
    }
}

/// Looks at everything and prints what it found; refused when something is wrong.
pub(crate) fn doctor(args: &Doctor) -> Result<(), Failure> {
    let Some(road) = Road::of(&args.broker, &args.prefix) else {
        return Err(Failure::Usage("--broker mqtt://host[:port]".into()));
    };
    let status = status(args.at.clone().unwrap_or_else(default_at));
    let state_dir = args.state.state.clone().unwrap_or_else(default_state_dir);
    let mut findings = vec![daemon(&status)];
    findings.extend(broker::look(&road));
    findings.extend(machine::certificates(road.tls));
    findings.extend(status.iter().flat_map(|status| certificates(status, SystemTime::now())));
    findings.push(machine::clock());
    findings.push(machine::disk(&state_dir));
    findings.push(machine::processor());
    findings.push(machine::heat());
    findings.push(machine::memory(status.as_ref().ok()));
    findings.push(registry(&status));
    findings.extend(status.iter().flat_map(warnings));
    if args.json {
        let entry =
            |f: &Finding| json!({ "subject": f.subject, "verdict": f.verdict.name(), "text": f.text });
        out(&Value::Array(findings.iter().map(entry).collect()).to_string())?;
    } else {
        for Finding { subject, verdict, text } in &findings {
            out(&format!("{:<8} {subject:<12} {text}", verdict.name()))?;
        }
    }
    let wrong = findings.iter().any(|finding| finding.verdict == Verdict::Wrong);
    if wrong { Err(Failure::Refused) } else { Ok(()) }
}

fn status(at: At) -> Result<Value, String> {
    let At::Unix(path) = at else { return Err("--at takes unix:PATH; the broker is --broker".to_owned()) };
    let mut socket = Socket::connect(&path).map_err(|error| format!("{error:#}"))?;
    let text = socket.query(What::Status).map_err(|error| format!("{error:#}"))?;
    serde_json::from_str(&text).map_err(|error| format!("the daemon's status is no JSON: {error}"))
}

fn daemon(status: &Result<Value, String>) -> Finding {
    const SUBJECT: &str = "daemon";
    let status = match status {
        Ok(status) => status,
        Err(error) => return Finding::wrong(SUBJECT, format!("{error}; is tractd running?")),
    };
    let quarantined: Vec<&str> = models(status)
        .filter(|model| model["state"] == "quarantined")
        .filter_map(|model| model["name"].as_str())
        .collect();
    if !quarantined.is_empty() {
        return Finding::wrong(
            SUBJECT,
            format!(
                "{} crashed and answers nobody; see the log, SIGHUP gives it another try",
                quarantined.join(", ")
            ),
        );
    }
    let (state, count) = (status["state"].as_str().unwrap_or("in an unknown state"), models(status).count());
    match count {
        0 => Finding::advice(
            SUBJECT,
            format!("{state}, but without a model: publish one or put one into its models folder"),
        ),
        count => Finding::well(SUBJECT, format!("{state}, {count} models")),
    }
}

fn registry(status: &Result<Value, String>) -> Finding {
    const SUBJECT: &str = "registry";
    let Ok(status) = status else { return Finding::unknown(SUBJECT, "only a running daemon tells") };
    let update = &status["update"];
    if let Some(error) = update["error"].as_str() {
        return Finding::wrong(SUBJECT, error);
    }
    if update["provisioned"] != true {
        return Finding::advice(
            SUBJECT,
            "none: models are not signed; tractctl device provision gives it one",
        );
    }
    let registry = update["registry"].as_str().unwrap_or_default();
    match (update["last"]["ok"].as_bool(), update["last"]["error"].as_str()) {
        (Some(true), _) => Finding::well(SUBJECT, format!("{registry}; the last check went well")),
        (Some(false), error) => Finding::wrong(
            SUBJECT,
            format!("{registry}: {}", error.unwrap_or("the last check failed; see the log")),
        ),
        (None, _) => Finding::unknown(SUBJECT, format!("{registry}, not asked yet: tractctl update check")),
    }
}

/// The daemon's certificates, and its servers' as it saw them last.
fn certificates(status: &Value, now: SystemTime) -> Vec<Finding> {
    const SUBJECT: &str = "certificate";
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let finding = |certificate: &Value| {
        let text = |key: &str| certificate[key].as_str();
        let (at, kind) = (text("at").unwrap_or_default(), text("kind").unwrap_or_default());
        let ends_s = certificate["ends_unix_s"].as_u64().unwrap_or_default();
        match text("warning") {
            Some(warning) if ends_s < now_s => Finding::wrong(SUBJECT, warning),
            Some(warning) => Finding::advice(SUBJECT, warning),
            None => {
                let days = ends_s.saturating_sub(now_s) / 86_400;
                Finding::well(SUBJECT, format!("{kind} ({at}) is good for {days} days more"))
            }
        }
    };
    status["certificates"].as_array().into_iter().flatten().map(finding).collect()
}

/// What the daemon says will hurt later.
fn warnings(status: &Value) -> Vec<Finding> {
    let warnings = status["update"]["warnings"].as_array().into_iter().flatten();
    warnings.filter_map(|warning| Some(Finding::advice("updates", warning.as_str()?))).collect()
}

fn models(status: &Value) -> impl Iterator<Item = &Value> {
    status["models"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_well_with_models_that_answer() {
        let check = |status: Value, verdict: Verdict, text: &str| {
            let found = daemon(&Ok(status));
            assert_eq!((found.verdict, found.text.as_str()), (verdict, text));
        };
        let models = json!([{ "name": "digits", "state": "ready" }]);
        check(json!({ "state": "ready", "models": models }), Verdict::Well, "ready, 1 models");
        let models = json!([{ "name": "digits", "state": "quarantined" }]);
        let text = "digits crashed and answers nobody; see the log, SIGHUP gives it another try";
        check(json!({ "state": "ready", "models": models }), Verdict::Wrong, text);
        let text = "ready, but without a model: publish one or put one into its models folder";
        check(json!({ "state": "ready", "models": [] }), Verdict::Advice, text);
        assert_eq!(daemon(&Err("gone".to_owned())), Finding::wrong("daemon", "gone; is tractd running?"));
    }

    #[test]
    fn what_the_daemon_warns_of_is_a_finding() {
        let status = json!({
            "update": { "warnings": ["the clock is behind"] },
            "certificates": [
                { "kind": "broker", "at": "mqtts://b", "ends_unix_s": 10 * 86_400 },
                { "kind": "client", "at": "/c.pem", "ends_unix_s": 3 * 86_400, "warning": "it ends" },
            ],
        });
        let on_day =
            |days: u64| certificates(&status, UNIX_EPOCH + std::time::Duration::from_secs(days * 86_400));
        let well = Finding::well("certificate", "broker (mqtts://b) is good for 8 days more");
        assert_eq!(on_day(2), [well, Finding::advice("certificate", "it ends")]);
        assert_eq!(on_day(4)[1], Finding::wrong("certificate", "it ends"));
        assert_eq!(warnings(&status), [Finding::advice("updates", "the clock is behind")]);
    }

    #[test]
    fn a_registry_is_well_when_the_last_check_was() {
        let verdict = |update: Value| registry(&Ok(json!({ "update": update }))).verdict;
        let with = |last: Value| json!({ "provisioned": true, "registry": "http://r", "last": last });
        assert_eq!(verdict(json!({ "provisioned": false })), Verdict::Advice);
        assert_eq!(verdict(with(json!({ "ok": true }))), Verdict::Well);
        assert_eq!(verdict(with(json!({ "ok": false, "error": "refused" }))), Verdict::Wrong);
        assert_eq!(verdict(with(Value::Null)), Verdict::Unknown);
    }
}
