"""An int8 TFLite model of an ONNX one in QDQ form, for LiteRT: the same layers, ranges and weights, channels last.

Takes s8 activations and s8 weights per channel, which is what TFLite's int8 is, and the layers of bench_nets.py. Two things
are TensorFlow's way instead of ONNX's, at no difference in work: padding of strided layers (SAME), and the fixed ranges of
softmax and sigmoid. HardSigmoid is the sum, ReLU6 and product that Keras exports it as.
"""

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

INT8, INT32, FLOAT32 = schema.TensorType.INT8, schema.TensorType.INT32, schema.TensorType.FLOAT32
# Those of TFLite's quantisation specification: what the kernels of these operators write.
FIXED_RANGES = {"Softmax": (1 / 256, -128), "Sigmoid": (1 / 256, -128)}
# From which on an operator takes int8, where that is not 2.
VERSIONS = {
    schema.BuiltinOperator.CONV_2D: 3, schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3,
    schema.BuiltinOperator.FULLY_CONNECTED: 4, schema.BuiltinOperator.HARD_SWISH: 1,
    schema.BuiltinOperator.QUANTIZE: 1, schema.BuiltinOperator.RESHAPE: 1,
}  # fmt: skip


def convert(path):
    """The flatbuffer's bytes."""
    import flatbuffers

    graph = Converter(onnx.load(path).graph)
    graph.run()
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(graph.model().Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class Converter:
    def __init__(self, graph):
        self.graph = graph
        self.constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.tensors, self.operators = [], []
        self.buffers = [schema.BufferT()]
        self.codes = {}
        # TFLite tensors by the ONNX names that carry their values, and shapes by tensor.
        self.named = {}

    def run(self):
        (source,) = self.graph.input
        shape = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
        shape = [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape
        self.source = self.named[source.name] = self.tensor(source.name, FLOAT32, shape)
        for node in self.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                continue
            if node.op_type == "QuantizeLinear" and node.input[0] == source.name:
                quantised = self.tensor(node.output[0], INT8, shape, self.range_of(node))
                self.operator("QUANTIZE", [self.source], [quantised], schema.QuantizeOptionsT())
                self.named[node.output[0]] = quantised
            elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                # Nothing carries what is inside a hard-swish.
                if node.input[0] in self.named:
                    self.named[node.output[0]] = self.named[node.input[0]]
            elif not self.is_inner(node):
                getattr(self, node.op_type.lower())(node)
        (result,) = self.graph.output
        last = self.named[result.name]
        self.result = self.tensor(result.name, FLOAT32, self.tensors[last].shape)
        self.operator("DEQUANTIZE", [last], [self.result], schema.DequantizeOptionsT())

    def is_inner(self, node):
        """A HardSigmoid whose only use is to be multiplied with its own input, as a hard-swish."""
        if node.op_type != "HardSigmoid":
            return False
        reader = self.after_quantisation(node.output[0])
        is_product = reader is not None and reader.op_type == "Mul"
        return is_product and self.base(node.input[0]) in map(self.base, reader.input)

    def after_quantisation(self, name):
        """The node that reads a value, on the other side of QuantizeLinear and DequantizeLinear."""
        readers = self.readers.get(name, [])
        if len(readers) != 1:
            return None
        return self.after_quantisation(readers[0].output[0]) if readers[0].op_type.endswith("Linear") else readers[0]

    def base(self, name):
        """The value that quantisation was applied to."""
        node = self.producers.get(name)
        return self.base(node.input[0]) if node is not None and node.op_type.endswith("Linear") else name

    # Operators

    def conv(self, node):
        attributes = self.attributes(node)
        data, (weights, scales), bias = self.named[node.input[0]], self.weights(node.input[1]), node.input[2]
        channels = self.tensors[data].shape[3]
        depthwise = attributes.get("group", 1) == channels and channels > 1
        kernel = weights.transpose(1, 2, 3, 0) if depthwise else weights.transpose(0, 2, 3, 1)
        kernel = self.constant(node.input[1], kernel, (scales, 3 if depthwise else 0))
        inputs = [data, kernel, self.bias(bias, data, scales)]
        spatial, padding = self.window(self.tensors[data].shape, attributes)
        output = self.output(node, [1, *spatial, len(weights)])
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        if depthwise:
            options.depthMultiplier = 1
        options.padding = padding
        options.strideH, options.strideW = attributes["strides"]
        options.dilationHFactor = options.dilationWFactor = 1
        self.operator("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, [output], options)

    def gemm(self, node):
        data, (weights, scales) = self.named[node.input[0]], self.weights(node.input[1])
        inputs = [data, self.constant(node.input[1], weights, (scales, 0)), self.bias(node.input[2], data, scales)]
        output = self.output(node, [1, len(weights)])
        self.operator("FULLY_CONNECTED", inputs, [output], schema.FullyConnectedOptionsT())

    def add(self, node):
        a, b = (self.named[name] for name in node.input)
        self.operator("ADD", [a, b], [self.output(node, self.tensors[a].shape)], schema.AddOptionsT())

    def mul(self, node):
        gate = next((name for name in node.input if self.is_swish_gate(name)), None)
        if gate is not None:
            data = self.named[self.producers[self.base(gate)].input[0]]
            output = self.output(node, self.tensors[data].shape)
            self.operator("HARD_SWISH", [data], [output], schema.HardSwishOptionsT())
            return
        a, b = sorted((self.named[name] for name in node.input), key=lambda x: -np.prod(self.tensors[x].shape))
        self.operator("MUL", [a, b], [self.output(node, self.tensors[a].shape)], schema.MulOptionsT())

    def is_swish_gate(self, name):
        producer = self.producers.get(self.base(name))
        return producer is not None and producer.op_type == "HardSigmoid" and self.is_inner(producer)

    def hardsigmoid(self, node):
        data = self.named[node.input[0]]
        shape = self.tensors[data].shape
        three = self.scalar(node.name + "/three", 3.0)
        clipped = self.tensor(node.name + "/clipped", INT8, shape, (6 / 255, -128))
        options = schema.AddOptionsT()
        options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
        self.operator("ADD", [data, three], [clipped], options)
        sixth = self.scalar(node.name + "/sixth", 1 / 6)
        self.operator("MUL", [clipped, sixth], [self.output(node, shape)], schema.MulOptionsT())

    def sigmoid(self, node):
        data = self.named[node.input[0]]
        self.operator("LOGISTIC", [data], [self.output(node, self.tensors[data].shape)], None)

    def softmax(self, node):
        data = self.named[node.input[0]]
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        self.operator("SOFTMAX", [data], [self.output(node, self.tensors[data].shape)], options)

    def maxpool(self, node):
        self.pool(node, "MAX_POOL_2D")

    def averagepool(self, node):
        self.pool(node, "AVERAGE_POOL_2D")

    def pool(self, node, kind):
        attributes, data = self.attributes(node), self.named[node.input[0]]
        shape = self.tensors[data].shape
        spatial, padding = self.window(shape, attributes)
        options = schema.Pool2DOptionsT()
        options.padding = padding
        options.strideH, options.strideW = attributes.get("strides", [1, 1])
        options.filterHeight, options.filterWidth = attributes["kernel_shape"]
        self.operator(kind, [data], [self.output(node, [1, *spatial, shape[3]])], options)

    def globalaveragepool(self, node):
        data = self.named[node.input[0]]
        axes = self.constant(node.name + "/axes", np.array([1, 2], np.int32), None)
        options = schema.ReducerOptionsT()
        options.keepDims = True
        output = self.output(node, [1, 1, 1, self.tensors[data].shape[3]])
        self.operator("MEAN", [data, axes], [output], options)

    def flatten(self, node):
        data = self.named[node.input[0]]
        shape = [1, int(np.prod(self.tensors[data].shape))]
        wanted = self.constant(node.name + "/shape", np.array(shape, np.int32), None)
        options = schema.ReshapeOptionsT()
        options.newShape = shape
        self.operator("RESHAPE", [data, wanted], [self.output(node, shape)], options)

    # Tensors

    def window(self, shape, attributes):
        kernel, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
        pads = attributes.get("pads", [0] * 4)
        sizes = [(shape[1 + axis] + pads[axis] + pads[2 + axis] - kernel[axis]) // strides[axis] + 1 for axis in (0, 1)]
        if not any(pads):
            return sizes, schema.Padding.VALID
        same = [-(-shape[1 + axis] // strides[axis]) for axis in (0, 1)]
        assert sizes == same, f"neither VALID nor SAME: {attributes}"
        return sizes, schema.Padding.SAME

    def weights(self, name):
        node = self.producers[name]
        values, scales = self.constants[node.input[0]], self.constants[node.input[1]]
        return values, np.broadcast_to(scales.reshape(-1), len(values)).astype(np.float32)

    def bias(self, name, data, scales):
        values = self.constants[self.producers[name].input[0]]
        return self.constant(name, values.astype(np.int32), (scales * self.tensors[data].quantization.scale[0], 0))

    def scalar(self, name, value):
        scale = np.array([value / 127], np.float32)
        return self.constant(name, np.array([127], np.int8), (scale, 0))

    def range_of(self, quantise):
        return float(self.constants[quantise.input[1]]), int(self.constants[quantise.input[2]])

    def output(self, node, shape):
        """The tensor that a node writes, in the range that the graph quantises it to."""
        (reader,) = self.readers[node.output[0]]
        assert reader.op_type == "QuantizeLinear", f"{node.name} is not quantised"
        made = self.tensor(node.output[0], INT8, shape, FIXED_RANGES.get(node.op_type) or self.range_of(reader))
        self.named[node.output[0]] = made
        return made

    def constant(self, name, values, scales_and_axis):
        kinds = {"int8": INT8, "int32": INT32}
        index = self.tensor(name, kinds[values.dtype.name], values.shape)
        if scales_and_axis is not None:
            scales, axis = scales_and_axis
            quantisation = schema.QuantizationParametersT()
            quantisation.scale = [float(scale) for scale in scales]
            quantisation.zeroPoint = [0] * len(scales)
            quantisation.quantizedDimension = axis
            self.tensors[index].quantization = quantisation
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.tensors[index].buffer = len(self.buffers)
        self.buffers.append(buffer)
        return index

    def tensor(self, name, kind, shape, scale_and_zero=None):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, [int(size) for size in shape], 0
        if scale_and_zero is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale_and_zero[0]], [scale_and_zero[1]]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, kind, inputs, outputs, options):
        code = getattr(schema.BuiltinOperator, kind)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(operator)

    def attributes(self, node):
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def model(self):
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs, graph.name = [self.source], [self.result], "main"
        model = schema.ModelT()
        model.version, model.description = 3, "tractd"
        model.subgraphs, model.buffers, model.operatorCodes = [graph], self.buffers, []
        for code in self.codes:
            operator_code = schema.OperatorCodeT()
            operator_code.builtinCode, operator_code.deprecatedBuiltinCode = code, min(code, 127)
            operator_code.version = VERSIONS.get(code, 2)
            model.operatorCodes.append(operator_code)
        return model
