//! `tractctl bench engine`: how fast a model runs in this process, and what it takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tempfile::TempDir;
use tractd_bundle::{Bundle, Dim, InputSpec, Limits, MODEL_FILE};
use tractd_engine::{Input, Output, Plan, PlanOptions, Session, TensorView, Want, contention_probe};
use tractd_wire::DType;

use super::{Samples, WARM_UP_RUNS, golden_input};
use crate::args::BenchEngine;
use crate::npz;
use crate::print::{out, render, table};
use crate::tensor::Tensor;
use crate::verb::Failure;

/// Shorter calls are timed several at once: reading the clock takes some 30 ns.
const SAMPLE_MIN: Duration = Duration::from_micros(20);

/// How long samples are taken where their number is not asked for.
const SAMPLING: Duration = Duration::from_secs(1);

/// However long they take.
const SAMPLES_MIN: usize = 20;

/// Warming up goes on for at least this long: the processor's clock follows the load.
const WARM_UP: Duration = Duration::from_millis(100);

/// A probe that took longer than the quickest by this factor had company on its core.
const COMPANY: f64 = 1.1;

/// Seed of the noise that stands in for an input.
const NOISE_SEED: u64 = 0x7472_6163_7464;

/// Loads the model, runs it many times and prints how long a run takes.
pub(super) fn engine(args: &BenchEngine) -> Result<(), Failure> {
    let tier = crate::verb::tier(args.kernels)?;
    let place = Placed::at(&args.model)?;
    let given = args.input.as_deref().map(read_input).transpose()?;

    let begin = Instant::now();
    let bundle = Bundle::open(&place.dir(&args.model), &Limits::default())?;
    let options =
        PlanOptions { tier, int8: !args.stock, cache: args.cache.clone(), ..PlanOptions::default() };
    let plan = Arc::new(Plan::load(&bundle, &options)?);
    let mut session = Session::new(plan.clone())?;
    let loaded = begin.elapsed();

    let tensors = match given {
        Some(tensors) => tensors,
        None => match golden_input(&bundle)? {
            Some(tensors) => tensors,
            None => noise(plan.inputs())?,
        },
    };
    let views: Vec<_> = tensors
        .iter()
        .map(|tensor| TensorView {
            name: &tensor.name,
            dtype: tensor.dtype.name().parse().expect("wire and bundle have the same types"),
            shape: &tensor.shape,
            data: &tensor.data,
        })
        .collect();
    let mut output = Output::default();
    let want = Want { tensors: true, classes: false };
    let mut run = || session.run_into(Input::Tensors(&views), want, &mut output);

    let begin = Instant::now();
    run()?;
    let load_ms = (loaded + begin.elapsed()).as_secs_f64() * 1e3;
    let taken = time(&mut run, args.runs)?;
    let mut samples: Samples = taken.iter().map(|taken| taken.took).collect();
    let mut undisturbed = undisturbed(&taken);
    if let Some(path) = &args.output {
        let archive = npz::write(&named(output)?)?;
        fs::write(path, archive).with_context(|| path.display().to_string())?;
    }

    let report = plan.report();
    let [p10_us, median_us, p90_us] = [0.1, 0.5, 0.9].map(|share| samples.percentile_us(share));
    let undisturbed_us = (!undisturbed.0.is_empty()).then(|| undisturbed.p50_us());
    let (peak_rss_kb, outside) = (peak_rss_kb()?, report.outside().count());
    let kernels = if args.stock { "none" } else { tier.name() };
    if args.json {
        let answer = json!({
            "model": args.model.display().to_string(), "digest": bundle.digest.to_string(),
            "median_us": median_us, "p10_us": p10_us, "p90_us": p90_us, "samples": samples.0.len(),
            "undisturbed_us": undisturbed_us, "undisturbed_samples": undisturbed.0.len(),
            "probe_us": quickest(&taken).as_secs_f64() * 1e6,
            "load_ms": load_ms, "peak_rss_kb": peak_rss_kb, "kernels": kernels,
            "int8_macs": report.int8_macs, "total_macs": report.total_macs, "outside": outside,
            "from_cache": plan.is_from_cache(),
        });
        return Ok(out(&answer.to_string())?);
    }
    let mut rows = table(&[]);
    rows.add_row(["a run, median", &format!("{median_us:.2} µs")]);
    rows.add_row(["10 % below", &format!("{p10_us:.2} µs")]);
    rows.add_row(["10 % above", &format!("{p90_us:.2} µs")]);
    if let Some(us) = undisturbed_us {
        let share = 100 * undisturbed.0.len() / samples.0.len().max(1);
        rows.add_row(["undisturbed, median", &format!("{us:.2} µs, of {share} % of the samples")]);
    }
    let cached = if plan.is_from_cache() { ", from the cache" } else { "" };
    rows.add_row(["load to first answer", &format!("{load_ms:.1} ms{cached}")]);
    rows.add_row(["peak memory of the process", &crate::print::bytes(peak_rss_kb * 1024)]);
    let share = 100.0 * report.int8_macs as f64 / (report.total_macs as f64).max(1.0);
    rows.add_row(["multiply-accumulates", &format!("{}, {share:.1} % in int8", report.total_macs)]);
    rows.add_row(["nodes left to tract", &format!("{outside} of {}", report.nodes.len())]);
    out(&format!("{}, kernels {kernels}, {} samples", args.model.display(), samples.0.len()))?;
    Ok(out(&render(rows, &[]))?)
}

/// Where a model to be loaded lies: as given, or as a copy in a folder such as a lone file needs.
struct Placed(Option<TempDir>);

impl Placed {
    fn at(model: &Path) -> Result<Self, Failure> {
        if model.is_dir() {
            return Ok(Self(None));
        }
        let root = TempDir::new()?;
        let dir = root.path().join(COPY);
        fs::create_dir_all(&dir)?;
        fs::copy(model, dir.join(MODEL_FILE)).with_context(|| model.display().to_string())?;
        Ok(Self(Some(root)))
    }

    fn dir(&self, given: &Path) -> PathBuf {
        self.0.as_ref().map_or_else(|| given.to_owned(), |root| root.path().join(COPY))
    }
}

/// A bare model's name and version are its path's.
const COPY: &str = "model/1";

fn read_input(path: &Path) -> anyhow::Result<Vec<Tensor>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let tensors = if bytes.starts_with(b"\x93NUMPY") {
        Tensor::from_npy(&bytes).map(|tensor| vec![tensor]).map_err(Into::into)
    } else {
        npz::read(&bytes)
    };
    tensors.with_context(|| path.display().to_string())
}

/// Values that any model takes: floats between -1 and 1, bytes of all kinds, 0 or 1 where wider integers may be indices.
pub(super) fn noise(inputs: &[InputSpec]) -> Result<Vec<Tensor>, Failure> {
    let mut state = NOISE_SEED;
    let mut next = || {
        // Knuth's MMIX generator; its upper bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let tensor = |spec: &InputSpec| {
        let spec = &spec.tensor;
        let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { 1 };
        let shape: Vec<u32> = spec.shape.iter().map(size).collect();
        let name = spec.dtype.name();
        let dtype =
            DType::from_name(name).with_context(|| format!("{}: the wire has no {name}", spec.name))?;
        let elements = shape.iter().map(|&extent| u64::from(extent)).product();
        let mut data = Vec::new();
        for _ in 0..elements {
            let bits = next();
            let unit = f64::from(bits) / f64::from(1u32 << 23) - 1.0;
            let bit = (bits & 1) as u8;
            match dtype {
                DType::U8 | DType::I8 => data.push(bits as u8),
                // Sign and mantissa, between a half and one.
                DType::F16 => data.extend((0x3800 | (bits & 0x83ff) as u16).to_le_bytes()),
                DType::F32 => data.extend((unit as f32).to_le_bytes()),
                DType::F64 => data.extend(unit.to_le_bytes()),
                _ => {
                    data.push(bit);
                    data.extend(std::iter::repeat_n(0, dtype.size() - 1));
                }
            }
        }
        Ok(Tensor { name: spec.name.clone(), dtype, shape, data })
    };
    inputs.iter().map(tensor).collect()
}

fn named(output: Output) -> Result<Vec<Tensor>, Failure> {
    let tensor = |tensor: tractd_engine::Tensor| {
        let name = tensor.dtype.name();
        let dtype =
            DType::from_name(name).with_context(|| format!("{}: the wire has no {name}", tensor.name))?;
        Ok(Tensor { name: tensor.name.to_string(), dtype, shape: tensor.shape, data: tensor.data })
    };
    output.tensors.into_iter().map(tensor).collect()
}

/// How long a run took, and the longer of the probes of its core right before and right after.
struct Taken {
    took: Duration,
    probe: Duration,
}

/// One run each, or a group's mean where runs are too short to be timed one by one.
fn time<T, E>(run: &mut impl FnMut() -> Result<T, E>, count: Option<usize>) -> Result<Vec<Taken>, E> {
    let (begin, mut warm) = (Instant::now(), 0);
    while warm < WARM_UP_RUNS || begin.elapsed() < WARM_UP {
        run()?;
        warm += 1;
    }
    let each = begin.elapsed() / warm as u32;
    let group = SAMPLE_MIN.as_nanos().div_ceil(each.as_nanos().max(1)).max(1) as u32;
    let (begin, mut samples) = (Instant::now(), Vec::new());
    let mut before = contention_probe();
    loop {
        let taken = samples.len();
        let enough = match count {
            Some(count) => taken >= count,
            None => taken >= SAMPLES_MIN && begin.elapsed() >= SAMPLING,
        };
        if enough {
            return Ok(samples);
        }
        let started = Instant::now();
        for _ in 0..group {
            std::hint::black_box(run()?);
        }
        let took = started.elapsed() / group;
        let after = contention_probe();
        samples.push(Taken { took, probe: before.max(after) });
        before = after;
    }
}

/// Of the runs those that had their core to themselves, as far as the moments before and after can tell.
fn undisturbed(taken: &[Taken]) -> Samples {
    let most = quickest(taken).mul_f64(COMPANY);
    taken.iter().filter(|taken| taken.probe <= most).map(|taken| taken.took).collect()
}

fn quickest(taken: &[Taken]) -> Duration {
    taken.iter().map(|taken| taken.probe).min().unwrap_or_default()
}

fn peak_rss_kb() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kb.context("/proc/self/status has no VmHWM in kB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_between_two_quick_probes_are_the_undisturbed_ones() {
        let us = Duration::from_micros;
        let taken = [(10, 100), (11, 109), (20, 111), (12, 105), (90, 400)]
            .map(|(took, probe)| Taken { took: us(took), probe: us(probe) });
        assert_eq!(undisturbed(&taken).0, [10_000, 11_000, 12_000]);
        assert_eq!(taken.iter().map(|taken| taken.took).collect::<Samples>().0.len(), 5);
        assert!(undisturbed(&[]).0.is_empty());
    }
}
