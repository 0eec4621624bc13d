//! A compiled graph as bytes, for a cache: the description of its program, not the packed weights, so that nothing which
//! `Program::new` checks escapes it. Packing takes hardly longer than reading packed weights would.
//!
//! Only graphs that run without tract are stored: of the others, what takes long to load is tract's.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tract_onnx::pb::ModelProto;
use tractd_kernels::{External, Program, ProgramSpec, Tier};

use crate::compile::{Compiled, Form, Options, compile_with_specs};
use crate::lower::{Feed, Port};
use crate::{CompileError, Region, Report, Whole};

#[derive(Serialize)]
struct StoredRef<'a> {
    spec: &'a ProgramSpec<'a>,
    feeds: &'a [Feed],
    ports: &'a [Port],
    inputs: &'a [usize],
    outputs: &'a [usize],
    report: &'a Report,
}

/// As [`StoredRef`].
#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    spec: ProgramSpec<'a>,
    /// As the spec's inputs.
    feeds: Vec<Feed>,
    /// As the spec's outputs.
    ports: Vec<Port>,
    /// As [`Whole`]'s.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    report: Report,
}

/// As [`crate::compile`], and what [`restore`] makes the same of; `None` where tract is needed.
///
/// # Errors
/// As [`crate::compile`].
pub fn compile_and_store(
    model: &ModelProto,
    shapes: &[(&str, &[usize])],
    options: &Options,
) -> Result<(Compiled, Option<Vec<u8>>), CompileError> {
    let (compiled, specs) = compile_with_specs(model, shapes, options)?;
    let stored = match (&compiled.form, specs.as_slice()) {
        (Form::Whole(whole), [spec]) => {
            let stored = StoredRef {
                spec,
                feeds: &whole.region.feeds,
                ports: whole.region.outputs(),
                inputs: &whole.inputs,
                outputs: &whole.outputs,
                report: &compiled.report,
            };
            postcard::to_allocvec(&stored).ok()
        }
        _ => None,
    };
    Ok((compiled, stored))
}

/// What [`compile_and_store`] made, packed anew. The bytes are not trusted: `None` for any that describe no sound program
/// with fitting inputs and outputs. Whether they are of the wanted graph, the caller has to know.
pub fn restore(bytes: &[u8], tier: Tier) -> Option<Compiled> {
    let (stored, rest) = postcard::take_from_bytes::<Stored<'_>>(bytes).ok()?;
    let fit = rest.is_empty()
        && stored.feeds.len() == stored.spec.inputs.len()
        && stored.feeds.iter().zip(&stored.spec.inputs).all(|(feed, external)| feed_fits(feed, external))
        && stored.ports.len() == stored.spec.outputs.len()
        && stored.ports.iter().zip(&stored.spec.outputs).all(|(port, external)| port_fits(port, external));
    if !fit {
        return None;
    }
    let program = Program::new(&stored.spec, tier).ok()?;
    let region = Region::new(program, stored.feeds, stored.ports);
    let each_once = |order: &[usize], of: usize| {
        let mut seen = vec![false; order.len()];
        order.iter().for_each(|&at| seen.get_mut(at).into_iter().for_each(|seen| *seen = true));
        order.len() == of && seen.into_iter().all(|seen| seen)
    };
    // One tensor read in two layouts is one of the graph's inputs, twice.
    let inputs_fit = stored.inputs.len() == region.inputs().len();
    if !inputs_fit || !each_once(&stored.outputs, region.outputs().len()) {
        return None;
    }
    let whole = Whole { region: Arc::new(region), inputs: stored.inputs, outputs: stored.outputs };
    Some(Compiled { form: Form::Whole(whole), report: stored.report })
}

fn feed_fits(feed: &Feed, external: &External) -> bool {
    match feed {
        Feed::Port(port) => port_fits(port, external),
        Feed::Constant(bytes) => Some(bytes.len()) == external_bytes(external),
    }
}

fn port_fits(port: &Port, external: &External) -> bool {
    let bytes = port.shape.iter().try_fold(port.element.size(), |bytes, &dim| bytes.checked_mul(dim));
    port.element == external.element && bytes.is_some() && bytes == external_bytes(external)
}

/// Not [`External::bytes`]: nothing has checked the sizes yet.
fn external_bytes(external: &External) -> Option<usize> {
    let extents = [external.height, external.width, external.channels];
    extents.iter().try_fold(external.element.size(), |bytes, &extent| bytes.checked_mul(extent))
}
