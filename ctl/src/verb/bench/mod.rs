//! `tractctl bench`: how fast, next to what it is compared with, in one run.
//!
//! What is compared is interleaved request by request, so that a noisy machine troubles both sides alike. Figures are
//! medians and 99th percentiles; the ratio or difference is what to quote.

mod engine;
mod mqtt;
mod serve;

use std::time::Duration;

use tractd_bundle::{Bundle, Limits};
use tractd_engine::{Input as EngineInput, Output, Plan, PlanOptions, Session, TensorView, Want};

use super::Failure;
use crate::args::{Bench, BenchSource};
use crate::exchange::{Input, Reply, Request};
use crate::tensor::Tensor;

/// Runs before the counted ones: caches, page tables and the processor's clock settle.
const WARM_UP_RUNS: usize = 20;

/// Runs the benchmark asked for.
pub(crate) fn bench(verb: &Bench) -> Result<(), Failure> {
    match verb {
        Bench::Engine(args) => engine::engine(args),
        Bench::Serve(args) => serve::serve(args),
        Bench::Mqtt(args) => mqtt::mqtt(args),
    }
}

/// The model's bundle and the input that every run sends.
struct Subject {
    bundle: Bundle,
    input: Input,
}

impl Subject {
    /// The picture named, else the bundle's first golden input, else seeded noise.
    fn of(source: &BenchSource) -> Result<Self, Failure> {
        let bundle = Bundle::open(&source.bundle, &Limits::default())?;
        let input = match &source.image {
            Some(path) => Input::Media(std::fs::read(path)?),
            None => Input::Tensors(match golden_input(&bundle)? {
                Some(tensors) => tensors,
                None => engine::noise(Plan::load(&bundle, &PlanOptions::default())?.inputs())?,
            }),
        };
        Ok(Self { bundle, input })
    }

    fn request(&self) -> Request {
        Request {
            model: format!("{}@{}", self.bundle.name(), self.bundle.version()),
            deadline_ms: 0,
            input: self.input.clone(),
            want: tractd_wire::Want::ALL,
        }
    }

    fn bytes(&self) -> usize {
        match &self.input {
            Input::Media(bytes) => bytes.len(),
            Input::Tensors(tensors) => tensors.iter().map(|tensor| tensor.data.len()).sum(),
        }
    }

    /// A figure for another model than the one in hand would be worth nothing.
    fn check(&self, reply: &Reply) -> Result<(), Failure> {
        if reply.status != tractd_wire::Status::Ok {
            let detail = &reply.detail;
            return Err(anyhow::anyhow!("the daemon refused: {detail} ({})", reply.status.name()).into());
        }
        if reply.digest != self.bundle.digest.0 {
            let (name, ours) = (self.bundle.name(), self.bundle.digest.short());
            return Err(anyhow::anyhow!("the daemon serves another {name} than the bundle's {ours}").into());
        }
        Ok(())
    }
}

fn golden_input(bundle: &Bundle) -> Result<Option<Vec<Tensor>>, Failure> {
    let golden = bundle.manifest.as_ref().and_then(|manifest| Some((manifest, manifest.golden.first()?)));
    let Some((manifest, golden)) = golden else { return Ok(None) };
    let mut tensors = Vec::new();
    for (spec, file) in manifest.inputs.iter().zip(&golden.inputs) {
        let spec = &spec.tensor;
        let shape = spec.resolved(&golden.shape).ok_or_else(|| anyhow::anyhow!("{file}: free dimensions"))?;
        let dtype = tractd_wire::DType::from_name(spec.dtype.name())
            .ok_or_else(|| anyhow::anyhow!("{file}: the wire has no {}", spec.dtype.name()))?;
        tensors.push(Tensor { name: spec.name.clone(), dtype, shape, data: bundle.golden(file)? });
    }
    Ok(Some(tensors))
}

/// A session on the bundle, in this process.
struct InProcess(Session);

impl InProcess {
    fn load(bundle: &Bundle) -> Result<Self, Failure> {
        let plan = Plan::load(bundle, &PlanOptions::default())?;
        Ok(Self(Session::new(std::sync::Arc::new(plan))?))
    }

    fn run(&mut self, input: &Input) -> Result<Output, Failure> {
        let output = match input {
            Input::Media(bytes) => self.0.run(EngineInput::Media(bytes), Want::ALL),
            Input::Tensors(tensors) => {
                let views: Vec<_> = tensors
                    .iter()
                    .map(|tensor| TensorView {
                        name: &tensor.name,
                        dtype: tensor.dtype.name().parse().expect("read off the bundle"),
                        shape: &tensor.shape,
                        data: &tensor.data,
                    })
                    .collect();
                self.0.run(EngineInput::Tensors(&views), Want::ALL)
            }
        };
        Ok(output?)
    }
}

/// Durations of one thing measured, in nanoseconds.
#[derive(Default)]
struct Samples(Vec<u64>);

impl Samples {
    fn push(&mut self, took: Duration) {
        self.0.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The value below which `share` of the samples lie, in microseconds.
    fn percentile_us(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).map_or(0.0, |ns| *ns as f64 / 1e3)
    }

    fn p50_us(&mut self) -> f64 {
        self.percentile_us(0.5)
    }

    fn p99_us(&mut self) -> f64 {
        self.percentile_us(0.99)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(all: I) -> Self {
        let mut samples = Self::default();
        all.into_iter().for_each(|took| samples.push(took));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        for us in (1..=101).rev() {
            samples.push(Duration::from_micros(us));
        }
        assert_eq!([samples.p50_us(), samples.p99_us(), samples.percentile_us(1.0)], [51.0, 100.0, 101.0]);
        assert_eq!(Samples::default().p50_us(), 0.0);
    }
}
