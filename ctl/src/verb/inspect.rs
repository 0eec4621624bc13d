//! `tractctl inspect`: what runs where in a model, and why.

use serde_json::json;
use tractd_bundle::{Bundle, Limits};
use tractd_engine::{NodeReport, Place, Plan, PlanOptions};

use super::Failure;
use crate::args::Inspect;
use crate::print::{out, render, table};

/// Loads the model as a daemon would and prints where each node went.
pub(crate) fn inspect(args: &Inspect) -> Result<(), Failure> {
    let tier = super::tier(args.kernels)?;
    let bundle = Bundle::open(&args.dir, &Limits::default())?;
    let plan = Plan::load(&bundle, &PlanOptions { tier, ..PlanOptions::default() })?;
    let report = plan.report();
    if args.json {
        let nodes: Vec<_> = report
            .nodes
            .iter()
            .map(|node| json!({ "name": node.name, "op": node.op, "runs": runs(node), "why": node.why }))
            .collect();
        let answer = json!({
            "model": bundle.name(), "version": bundle.version(), "digest": bundle.digest.to_string(),
            "kernels": tier.name(), "int8_macs": report.int8_macs, "total_macs": report.total_macs,
            "outside": report.outside().count(), "nodes": nodes,
        });
        return Ok(out(&answer.to_string())?);
    }
    let mut rows = table(&["NODE", "OPERATOR", "RUNS", "WHY"]);
    for node in &report.nodes {
        rows.add_row([node.name.as_str(), node.op.as_str(), &runs(node), node.why.as_str()]);
    }
    out(&render(rows, &[]))?;
    let share = 100.0 * report.int8_macs as f64 / (report.total_macs as f64).max(1.0);
    Ok(out(&format!(
        "\n{} {}: {} of {} multiply-accumulates in int8 ({share:.1} %), kernels {}, {} of {} nodes left to tract",
        bundle.name(),
        bundle.version(),
        report.int8_macs,
        report.total_macs,
        tier.name(),
        report.outside().count(),
        report.nodes.len(),
    ))?)
}

fn runs(node: &NodeReport) -> String {
    match node.place {
        Place::Int8 { region, step } => format!("int8 {region}.{step}"),
        Place::Folded => "folded".into(),
        Place::Tract => "tract".into(),
    }
}
