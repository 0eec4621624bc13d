"""Any float net in any of ONNX Runtime's int8 forms."""

import os
import tempfile


def quantise(model, samples, form, types, per_channel, left_float=()):
    """`form` is "qdq" or "qop"; `types` those of activations and weights, as "u8s8"; `samples` set the ranges. Operators of
    the kinds in `left_float` are not quantised."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(samples)

        def get_next(self):
            sample = next(self.rest, None)
            return None if sample is None else {"input": sample}

    kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        kept = [node.name for node in onnx.load(paths[1]).graph.node if node.op_type in left_float]
        quantize_static(
            paths[1],
            paths[2],
            Reader(),
            quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
            per_channel=per_channel,
            activation_type=kinds[types[:2]],
            weight_type=kinds[types[2:]],
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=kept,
        )
        return onnx.load(paths[2])
