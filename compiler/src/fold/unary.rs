//! Functions of one float, as ONNX Runtime's kernels compute them.

use crate::graph::Node;

/// Whether the operator computes each element from that element alone, shape and type kept.
pub(crate) fn is_unary(op: &str) -> bool {
    matches!(
        op,
        "Relu"
            | "Clip"
            | "LeakyRelu"
            | "Sigmoid"
            | "HardSigmoid"
            | "HardSwish"
            | "Tanh"
            | "Elu"
            | "Selu"
            | "Celu"
            | "Softplus"
            | "Softsign"
            | "ThresholdedRelu"
            | "Mish"
            | "Exp"
            | "Log"
            | "Sqrt"
            | "Abs"
            | "Neg"
            | "Reciprocal"
            | "Sin"
            | "Cos"
            | "Floor"
            | "Ceil"
            | "Round"
            | "Sign"
    )
}

/// The function of an operator of [`is_unary`], its attributes read. `Clip` is not here: its bounds are inputs.
///
/// Transcendental functions are computed in f64 and rounded: so libraries of different platforms agree.
pub(super) fn function(op: &str, node: &Node<'_>) -> Option<Box<dyn Fn(f32) -> f32>> {
    let wide = |of: fn(f64) -> f64| -> Box<dyn Fn(f32) -> f32> { Box::new(move |x| of(f64::from(x)) as f32) };
    let alpha = |default| node.float("alpha", default);
    Some(match op {
        "Relu" => Box::new(|x| x.max(0.0)),
        "LeakyRelu" => {
            let alpha = alpha(0.01);
            Box::new(move |x| if x >= 0.0 { x } else { alpha * x })
        }
        "HardSigmoid" => {
            let (alpha, beta) = (alpha(0.2), node.float("beta", 0.5));
            Box::new(move |x| (alpha * x + beta).clamp(0.0, 1.0))
        }
        "HardSwish" => Box::new(|x| x * (x * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0)),
        "Elu" => {
            let alpha = f64::from(alpha(1.0));
            Box::new(move |x| if x >= 0.0 { x } else { (alpha * f64::from(x).exp_m1()) as f32 })
        }
        "Celu" => {
            let alpha = f64::from(alpha(1.0));
            Box::new(move |x| if x >= 0.0 { x } else { (alpha * (f64::from(x) / alpha).exp_m1()) as f32 })
        }
        "Selu" => {
            let (alpha, gamma) = (f64::from(alpha(1.673_263_2)), f64::from(node.float("gamma", 1.050_701)));
            Box::new(move |x| {
                let x = f64::from(x);
                (gamma * if x > 0.0 { x } else { alpha * x.exp_m1() }) as f32
            })
        }
        "ThresholdedRelu" => {
            let alpha = alpha(1.0);
            Box::new(move |x| if x > alpha { x } else { 0.0 })
        }
        "Sigmoid" => wide(|x| 1.0 / (1.0 + (-x).exp())),
        "Tanh" => wide(f64::tanh),
        "Softplus" => wide(|x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        "Mish" => wide(|x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh()),
        "Exp" => wide(f64::exp),
        "Log" => wide(f64::ln),
        "Sin" => wide(f64::sin),
        "Cos" => wide(f64::cos),
        "Softsign" => Box::new(|x| x / (1.0 + x.abs())),
        "Sqrt" => Box::new(f32::sqrt),
        "Abs" => Box::new(f32::abs),
        "Neg" => Box::new(|x| -x),
        "Reciprocal" => Box::new(|x| 1.0 / x),
        "Floor" => Box::new(f32::floor),
        "Ceil" => Box::new(f32::ceil),
        "Round" => Box::new(f32::round_ties_even),
        "Sign" => Box::new(|x| if x == 0.0 { 0.0 } else { x.signum() }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

    use super::*;
    use crate::graph::Graph;

    fn check(op: &str, attributes: &[(&str, f32)], x: f32, expected: f32) {
        let attribute =
            |&(name, f): &(&str, f32)| AttributeProto { name: name.to_owned(), f, ..Default::default() };
        let attribute = attributes.iter().map(attribute).collect();
        let node = NodeProto { op_type: op.to_owned(), attribute, ..NodeProto::default() };
        let graph = GraphProto { node: vec![node], ..GraphProto::default() };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let graph = Graph::new(&model).unwrap();
        assert!(is_unary(op));
        assert_eq!(function(op, &graph.nodes[0]).unwrap()(x), expected, "{op}({x})");
    }

    #[test]
    fn functions_have_their_defaults_and_attributes() {
        check("LeakyRelu", &[], -2.0, -0.02);
        check("LeakyRelu", &[("alpha", 0.5)], -2.0, -1.0);
        check("HardSigmoid", &[], 1.0, 0.7);
        check("HardSigmoid", &[("alpha", 0.5), ("beta", 0.25)], 1.0, 0.75);
        check("HardSwish", &[], -3.0, 0.0);
        check("HardSwish", &[], 3.0, 3.0);
        check("HardSwish", &[], 1.5, 1.125);
        check("Sigmoid", &[], 0.0, 0.5);
        check("Elu", &[("alpha", 2.0)], -100.0, -2.0);
        check("Celu", &[("alpha", 2.0)], -100.0, -2.0);
        check("Selu", &[], -100.0, -1.758_099_3);
        check("ThresholdedRelu", &[], 1.0, 0.0);
        check("Softplus", &[], 0.0, std::f32::consts::LN_2);
        check("Softplus", &[], 200.0, 200.0);
        check("Mish", &[], 0.0, 0.0);
        check("Softsign", &[], -1.0, -0.5);
        check("Sign", &[], -0.0, 0.0);
        check("Round", &[], 2.5, 2.0);
    }
}
