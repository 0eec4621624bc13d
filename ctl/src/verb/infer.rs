//! `tractctl infer`.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde_json::Value;
use tractd_wire::topic::Format;
use tractd_wire::{DType, Selector, Want, What};

use super::Failure;
use crate::args::Infer;
use crate::at::{At, default_at};
use crate::exchange::{Input, Reply, Request};
use crate::mqtt::{self, Road};
use crate::print::{bar, micros, out, render, short_digest, table};
use crate::progress;
use crate::socket::Socket;
use crate::tensor::Tensor;

/// Values of an output tensor that are printed.
const VALUES_SHOWN: usize = 8;

/// What is sent: ready to go, or JSON numbers that still need the model's types.
enum Source {
    Ready(Input),
    Json(Value),
}

/// Sends one input to a model and prints the answer.
pub(crate) fn infer(args: Infer) -> Result<(), Failure> {
    Selector::parse(&args.model)
        .map_err(|error| Failure::Usage(format!("MODEL {:?}: {error}", args.model)))?;
    let (json_file, print_json) = split_json(&args.json)?;
    let source = read_source(&args, json_file)?;
    let at = args.place.at.clone().unwrap_or_else(default_at);
    let started = Instant::now();
    let answer = {
        let _spinner = std::io::stderr().is_terminal().then(|| progress::spinner("waiting for the answer"));
        match &at {
            At::Unix(path) => over_socket(path, &args, source)?,
            At::Mqtt { .. } => {
                let road = Road::of(&at, &args.place.prefix).expect("matched just now");
                over_mqtt(&road, &args, source)?
            }
        }
    };
    let took = started.elapsed();
    let status = answer["status"].as_u64().unwrap_or_default();
    if print_json {
        out(&answer.to_string())?;
    } else if status == 200 {
        out(&report(&answer, usize::from(args.top), took))?;
    } else {
        eprintln!("error: {}", refusal(&answer));
    }
    if status == 200 { Ok(()) } else { Err(Failure::Refused) }
}

/// `--json FILE` is an input, `--json` alone a wish for output.
fn split_json(given: &[String]) -> Result<(Option<&str>, bool), Failure> {
    let mut files = given.iter().filter(|file| !file.is_empty());
    let file = files.next().map(String::as_str);
    if files.next().is_some() {
        return Err(Failure::Usage("--json FILE can be given once".into()));
    }
    Ok((file, given.iter().any(String::is_empty)))
}

fn read_source(args: &Infer, json_file: Option<&str>) -> Result<Source, Failure> {
    match (&args.image, &args.input, json_file) {
        (Some(path), None, None) => Ok(Source::Ready(Input::Media(read(path)?))),
        (None, Some(path), None) => {
            let tensor = Tensor::from_npy(&read(path)?).with_context(|| path.display().to_string())?;
            Ok(Source::Ready(Input::Tensors(vec![tensor])))
        }
        (None, None, Some(file)) => {
            let value = serde_json::from_slice(&read(Path::new(file))?)
                .with_context(|| format!("{file} is no JSON"))?;
            Ok(Source::Json(value))
        }
        (None, None, None) => {
            Err(Failure::Usage("an input is missing: --image FILE, --input FILE.npy or --json FILE".into()))
        }
        _ => Err(Failure::Usage("one input only: --image, --input or --json FILE".into())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    Ok(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
}

fn over_socket(path: &Path, args: &Infer, source: Source) -> Result<Value, Failure> {
    let mut socket = Socket::connect(path)?;
    let input = match source {
        Source::Ready(input) => input,
        Source::Json(value) => {
            let models = serde_json::from_str(&socket.query(What::Models)?)?;
            Input::Tensors(json_tensors(&value, &inputs_of(&models, &args.model)?)?)
        }
    };
    Ok(socket.infer(&request(args, input))?.to_json())
}

fn over_mqtt(road: &Road<'_>, args: &Infer, source: Source) -> Result<Value, Failure> {
    let deadline_ms = args.deadline_ms.unwrap_or_default();
    match source {
        Source::Ready(input) => {
            let frame = request(args, input).frame(1)?;
            let reply = mqtt::ask(road, &args.model, Format::Postcard, frame, deadline_ms)?;
            Ok(Reply::from_frame(&reply)?.to_json())
        }
        Source::Json(value) => {
            // The daemon knows the types; it reads the same object that we take.
            let mut body = match value {
                Value::Object(_) => value,
                bare => serde_json::json!({ "inputs": { "": bare } }),
            };
            if let Some(ms) = args.deadline_ms {
                body["deadline_ms"] = ms.into();
            }
            let reply =
                mqtt::ask(road, &args.model, Format::Json, body.to_string().into_bytes(), deadline_ms)?;
            Ok(serde_json::from_slice(&reply).context("the reply is no JSON")?)
        }
    }
}

fn request(args: &Infer, input: Input) -> Request {
    Request {
        model: args.model.clone(),
        deadline_ms: args.deadline_ms.unwrap_or_default(),
        input,
        want: Want::ALL,
    }
}

/// Names and types of a model's inputs, from the daemon's list.
fn inputs_of(models: &Value, selector: &str) -> Result<Vec<(String, DType)>, Failure> {
    let name = selector.split('@').next().unwrap_or(selector);
    let entries = models["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(model) = entries.iter().find(|entry| entry["name"] == name) else {
        let names: Vec<_> = entries.iter().filter_map(|entry| entry["name"].as_str()).collect();
        return Err(anyhow!("no model {name:?} here; there are: {}", names.join(", ")).into());
    };
    let inputs = model["inputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    inputs
        .iter()
        .map(|input| {
            let dtype = input["dtype"].as_str().and_then(DType::from_name);
            Ok((
                input["name"].as_str().unwrap_or_default().to_owned(),
                dtype.context("an input without a type")?,
            ))
        })
        .collect()
}

/// Tensors of a request object `{"inputs": {NAME: numbers}}`, or of the numbers alone for a model with one input.
fn json_tensors(value: &Value, inputs: &[(String, DType)]) -> Result<Vec<Tensor>, Failure> {
    let names = || inputs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let Value::Object(object) = value else {
        let [(name, dtype)] = inputs else {
            return Err(
                anyhow!("the model has several inputs; give {{\"inputs\": {{…}}}} with {}", names()).into()
            );
        };
        return Ok(vec![Tensor::from_json(name, value, *dtype)?]);
    };
    let given = object.get("inputs").and_then(Value::as_object).ok_or_else(|| {
        anyhow!("the request has no \"inputs\"; it must be {{\"inputs\": {{\"{}\": [numbers]}}}}", names())
    })?;
    given
        .iter()
        .map(|(name, numbers)| {
            let (_, dtype) = inputs
                .iter()
                .find(|(known, _)| known == name)
                .ok_or_else(|| anyhow!("the model has no input {name:?}; it has: {}", names()))?;
            Ok(Tensor::from_json(name, numbers, *dtype).with_context(|| format!("input {name:?}"))?)
        })
        .collect()
}

fn refusal(answer: &Value) -> String {
    let name = answer["name"].as_str().unwrap_or("refused");
    let detail = answer["detail"].as_str().unwrap_or_default();
    let again = match answer["retry_after_ms"].as_u64().unwrap_or_default() {
        0 => String::new(),
        ms => format!(" (try again in {ms} ms)"),
    };
    format!("{name}: {detail}{again}")
}

/// The answer for people.
fn report(answer: &Value, top: usize, took: Duration) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let us = |key: &str| answer[key].as_u64().unwrap_or_default();
    let trust = if answer["signed"] == true { "signed" } else { "unsigned" };
    let mut lines =
        vec![format!("{} {} ({}, {trust})", text("model"), answer["version"], short_digest(text("digest")))];
    let classes = answer["classes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if classes.is_empty() {
        lines.extend(outputs(answer));
    } else {
        lines.push(render(class_table(&classes[..classes.len().min(top)]), &[1]));
    }
    lines.push(format!(
        "queue {} · pre {} · infer {} · post {} · there and back {}",
        micros(us("queue_us")),
        micros(us("pre_us")),
        micros(us("infer_us")),
        micros(us("post_us")),
        micros(took.as_micros() as u64)
    ));
    lines.join("\n")
}

fn class_table(classes: &[Value]) -> comfy_table::Table {
    let score = |class: &Value| class["score"].as_f64().unwrap_or_default() as f32;
    // Scores between 0 and 1 are shares; logits are not, and get no bar.
    let shares = classes.iter().all(|class| (0.0..=1.0).contains(&score(class)));
    let mut rows = table(&[]);
    for class in classes {
        let label = match class["label"].as_str() {
            Some(label) if !label.is_empty() => label.to_owned(),
            _ => format!("class {}", class["index"]),
        };
        if shares {
            rows.add_row([label, format!("{:.1} %", score(class) * 100.0), bar(score(class))]);
        } else {
            rows.add_row([label, format!("{:.3}", score(class)), String::new()]);
        }
    }
    rows
}

fn outputs(answer: &Value) -> Vec<String> {
    let tensors = answer["outputs"].as_object();
    tensors
        .into_iter()
        .flatten()
        .map(|(name, tensor)| {
            let data = tensor["data"].as_array().map(Vec::as_slice).unwrap_or_default();
            let shown: Vec<_> = data.iter().take(VALUES_SHOWN).map(Value::to_string).collect();
            let more = if data.len() > VALUES_SHOWN { ", …" } else { "" };
            let dtype = tensor["dtype"].as_str().unwrap_or_default();
            format!("{name} {dtype}{} = [{}{more}]", tensor["shape"], shown.join(", "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_alone_and_json_with_a_file_are_told_apart() {
        let given = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(split_json(&given(&[])).unwrap(), (None, false));
        assert_eq!(split_json(&given(&[""])).unwrap(), (None, true));
        assert_eq!(split_json(&given(&["a.json", ""])).unwrap(), (Some("a.json"), true));
        assert!(matches!(split_json(&given(&["a", "b"])), Err(Failure::Usage(_))));
    }

    #[test]
    fn requests_take_their_types_from_the_model() {
        let inputs = [("image".to_owned(), DType::U8)];
        let tensors = json_tensors(&json!({ "inputs": { "image": [[1, 2]] } }), &inputs).unwrap();
        assert_eq!((tensors[0].dtype, &tensors[0].shape[..]), (DType::U8, &[1, 2][..]));
        assert_eq!(json_tensors(&json!([[1, 2]]), &inputs).unwrap(), tensors);
        let check = |value: Value, says: &str| {
            let Failure::Error(error) = json_tensors(&value, &inputs).unwrap_err() else { panic!("usage") };
            assert!(format!("{error:#}").contains(says), "{error:#} lacks {says}");
        };
        check(json!({ "image": [1] }), "it must be {\"inputs\": {\"image\": [numbers]}}");
        check(json!({ "inputs": { "img": [1] } }), "no input \"img\"; it has: image");
        check(json!({ "inputs": { "image": [300] } }), "input \"image\": 300 does not fit u8");
    }

    #[test]
    fn an_answer_reads_well() {
        let answer = json!({
            "status": 200, "model": "digits", "version": 2, "digest": format!("sha256:{}", "ab".repeat(32)),
            "signed": true, "queue_us": 3, "pre_us": 120, "infer_us": 1500, "post_us": 1, "outputs": {},
            "classes": [{ "index": 7, "label": "7", "score": 0.75 }, { "index": 1, "label": "1", "score": 0.05 }],
        });
        assert_eq!(
            report(&answer, 1, Duration::from_micros(2000)),
            "digits 2 (abababababab, signed)\n7  75.0 %  ███████████████\n\
             queue 3 µs · pre 120 µs · infer 1.5 ms · post 1 µs · there and back 2.0 ms"
        );
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let answer = json!({ "name": "busy", "detail": "the queue of digits is full", "retry_after_ms": 40 });
        assert_eq!(refusal(&answer), "busy: the queue of digits is full (try again in 40 ms)");
    }
}
