//! Sliding windows as ONNX writes them.

use tractd_kernels::Window;

use crate::graph::Node;

/// Largest extent, kernel, stride, dilation or pad looked at: products of two stay far from overflow.
const EXTENT_MAX: i64 = 1 << 20;

/// A window over one or two dimensions, and the sizes it gives. One dimension is a picture one pixel high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sliding {
    pub(crate) window: Window,
    /// Rows and columns of the result.
    pub(crate) output: [usize; 2],
    /// Whether the last windows may reach beyond the padding.
    pub(crate) ceil: bool,
}

impl Sliding {
    /// `spatial` is the input's size, `kernel` the weights' where there are any. `None` for what is malformed, negative,
    /// or has more than two dimensions.
    pub(crate) fn new(node: &Node<'_>, spatial: &[usize], kernel: Option<&[usize]>) -> Option<Sliding> {
        let rank = spatial.len();
        if !(1..=2).contains(&rank) {
            return None;
        }
        let kernel = match (kernel, sizes(node, "kernel_shape", rank, None)) {
            (Some(weights), Some(stated)) if weights != stated => return None,
            (Some(weights), _) => weights.to_vec(),
            (None, stated) => stated?,
        };
        let ones = vec![1; rank];
        let strides = sizes(node, "strides", rank, Some(&ones))?;
        let dilations = sizes(node, "dilations", rank, Some(&ones))?;
        let ceil = node.int("ceil_mode", 0) != 0;
        let fixed = match node.text("auto_pad") {
            b"" | b"NOTSET" => Some(pads(node, rank)?),
            b"VALID" => Some(vec![0; 2 * rank]),
            b"SAME_UPPER" | b"SAME_LOWER" => None,
            _ => return None,
        };
        let mut window = Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 2] };
        let mut output = [1; 2];
        for axis in 0..rank {
            let (extent, kernel, stride) = (spatial[axis], kernel[axis], strides[axis]);
            let reach = (kernel - 1).checked_mul(dilations[axis])? + 1;
            let (before, count) = match &fixed {
                Some(pads) => {
                    let (before, after) = (pads[axis], pads[axis + rank]);
                    let room = (extent + before + after).checked_sub(reach)?;
                    (before, count(room, stride, ceil, extent + before))
                }
                None => {
                    let count = extent.div_ceil(stride);
                    let pad = ((count - 1) * stride + reach).saturating_sub(extent);
                    (if node.text("auto_pad") == b"SAME_UPPER" { pad / 2 } else { pad.div_ceil(2) }, count)
                }
            };
            let to = axis + 2 - rank;
            window.kernel[to] = kernel;
            window.stride[to] = stride;
            window.dilation[to] = dilations[axis];
            window.pad[to] = before;
            output[to] = count;
        }
        Some(Sliding { window, output, ceil })
    }
}

fn count(room: usize, stride: usize, ceil: bool, before_and_extent: usize) -> usize {
    if !ceil {
        return room / stride + 1;
    }
    let count = room.div_ceil(stride) + 1;
    // A window that would start behind the input is none.
    if (count - 1) * stride >= before_and_extent { count - 1 } else { count }
}

fn sizes(node: &Node<'_>, name: &str, rank: usize, default: Option<&[usize]>) -> Option<Vec<usize>> {
    let Some(ints) = node.ints(name) else { return default.map(<[usize]>::to_vec) };
    let fits = ints.len() == rank && ints.iter().all(|size| (1..=EXTENT_MAX).contains(size));
    fits.then(|| ints.iter().map(|&size| size as usize).collect())
}

fn pads(node: &Node<'_>, rank: usize) -> Option<Vec<usize>> {
    let Some(ints) = node.ints("pads") else { return Some(vec![0; 2 * rank]) };
    let fits = ints.len() == 2 * rank && ints.iter().all(|pad| (0..=EXTENT_MAX).contains(pad));
    fits.then(|| ints.iter().map(|&pad| pad as usize).collect())
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

    use super::*;
    use crate::graph::Graph;

    fn check(
        spatial: &[usize],
        kernel: &[usize],
        attributes: &[(&str, &[i64])],
        auto_pad: &str,
    ) -> Option<Sliding> {
        let ints = |(name, ints): &(&str, &[i64])| AttributeProto {
            name: (*name).to_owned(),
            ints: ints.to_vec(),
            i: ints.first().copied().unwrap_or(0),
            ..AttributeProto::default()
        };
        let auto =
            AttributeProto { name: "auto_pad".into(), s: auto_pad.into(), ..AttributeProto::default() };
        let attribute = attributes.iter().map(ints).chain([auto]).collect();
        let node = NodeProto { op_type: "MaxPool".into(), attribute, ..NodeProto::default() };
        let graph = GraphProto { node: vec![node], ..GraphProto::default() };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        let graph = Graph::new(&model).unwrap();
        Sliding::new(&graph.nodes[0], spatial, Some(kernel))
    }

    #[test]
    fn sizes_follow_pads_strides_and_dilations() {
        let output = |sliding: Option<Sliding>| sliding.map(|s| (s.window.pad, s.output));
        assert_eq!(output(check(&[7, 9], &[3, 3], &[], "")), Some(([0, 0], [5, 7])));
        let strided: &[(&str, &[i64])] = &[("strides", &[2, 2]), ("pads", &[1, 0, 1, 2])];
        assert_eq!(output(check(&[7, 9], &[3, 3], strided, "NOTSET")), Some(([1, 0], [4, 5])));
        assert_eq!(output(check(&[7], &[3], &[("dilations", &[3])], "")), Some(([0, 0], [1, 1])));
        assert_eq!(
            output(check(&[5, 5], &[2, 2], &[("strides", &[2, 2])], "SAME_UPPER")),
            Some(([0, 0], [3, 3]))
        );
        assert_eq!(
            output(check(&[5, 5], &[2, 2], &[("strides", &[2, 2])], "SAME_LOWER")),
            Some(([1, 1], [3, 3]))
        );
        let ceil: &[(&str, &[i64])] = &[("strides", &[2, 2]), ("ceil_mode", &[1])];
        assert_eq!(output(check(&[6, 5], &[3, 3], ceil, "")), Some(([0, 0], [3, 2])));
    }

    #[test]
    fn what_makes_no_sense_gives_no_window() {
        assert_eq!(check(&[2, 2], &[3, 3], &[], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[("strides", &[0, 1])], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[("pads", &[-1, 0, 0, 0])], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[("pads", &[1, 1])], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[("kernel_shape", &[5, 5])], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[("dilations", &[i64::MAX, 1])], ""), None);
        assert_eq!(check(&[7, 7, 7], &[3, 3, 3], &[], ""), None);
        assert_eq!(check(&[7, 7], &[3, 3], &[], "SAME"), None);
    }
}
