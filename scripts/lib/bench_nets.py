"""The networks `bench engine` is measured on, with random weights: speed does not depend on them.

Weights are drawn layer by layer so that activations keep their size, and the classifiers' logits are calm: a softmax
that is flat or saturated would hide what a runtime computes.
"""

import numpy as np

OPSET, IR_VERSION = 17, 8
# Of what a residual block adds, as in trained networks. With more, one result rounded the other way at the start moves
# everything at the end, and no two runtimes agree.
BRANCH_GAIN = 0.1


class Net:
    """A float ONNX graph under construction; `x` is always the name of the last tensor."""

    def __init__(self, name, shape, seed):
        self.name, self.shape = name, shape
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def op(self, kind, inputs, **attributes):
        from onnx import helper

        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{len(self.nodes)}", **attributes))
        return output

    def constant(self, array):
        from onnx import numpy_helper

        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
        return name

    def activation(self, x, kind):
        if kind == "relu6":
            return self.op("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])
        return self.op({"relu": "Relu", "hardswish": "HardSwish"}[kind], [x]) if kind else x

    def conv(self, x, into, out, kernel, stride=1, groups=1, pads=None, activation=None, gain=2.0):
        kernel = [kernel, kernel] if isinstance(kernel, int) else kernel
        fan_in = into // groups * kernel[0] * kernel[1]
        weight = self.random.normal(0, np.sqrt(gain / fan_in), (out, into // groups, *kernel))
        bias = self.random.normal(0, 0.1, out)
        pads = pads or [kernel[0] // 2, kernel[1] // 2] * 2
        inputs = [x, self.constant(weight), self.constant(bias)]
        shape = {"kernel_shape": kernel, "strides": [stride, stride], "pads": pads, "group": groups}
        return self.activation(self.op("Conv", inputs, **shape), activation)

    def dense(self, x, into, out, activation=None, gain=2.0):
        weight = self.random.normal(0, np.sqrt(gain / into), (out, into))
        inputs = [x, self.constant(weight), self.constant(self.random.normal(0, 0.1, out))]
        return self.activation(self.op("Gemm", inputs, transB=1), activation)

    def head(self, x, features, classes, softmax):
        x = self.op("Flatten", [self.op("GlobalAveragePool", [x])], axis=1)
        x = self.dense(x, features, classes)
        return self.op("Softmax", [x], axis=1) if softmax else x

    def model(self, x, output_shape):
        import onnx
        from onnx import TensorProto, helper

        self.nodes[-1].output[0] = "output"
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)]
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape)]
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tractd")
        if output_shape is None:
            model = onnx.shape_inference.infer_shapes(model)
            del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
        return model


def mlp():
    net = Net("mlp", [1, 30], 1)
    x = net.dense("input", 30, 64, "relu")
    x = net.dense(x, 64, 32, "relu")
    x = net.op("Sigmoid", [net.dense(x, 32, 1)])
    return net.model(x, [1, 1])


def autoencoder():
    """MLPerf Tiny's anomaly detection."""
    net = Net("autoencoder", [1, 640], 2)
    x, sizes = "input", [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    for index, (into, out) in enumerate(zip(sizes, sizes[1:])):
        x = net.dense(x, into, out, "relu" if index < 9 else None)
    return net.model(x, [1, 640])


def ds_cnn():
    """MLPerf Tiny's keyword spotting."""
    net = Net("ds-cnn", [1, 1, 49, 10], 3)
    x = net.conv("input", 1, 64, [10, 4], 2, pads=[4, 1, 5, 1], activation="relu")
    for _ in range(4):
        x = net.conv(x, 64, 64, 3, groups=64, activation="relu")
        x = net.conv(x, 64, 64, 1, activation="relu")
    return net.model(net.head(x, 64, 12, softmax=True), [1, 12])


def residual_block(net, x, into, out, stride):
    y = net.conv(x, into, out, 3, stride, activation="relu")
    y = net.conv(y, out, out, 3, gain=BRANCH_GAIN)
    if stride != 1 or into != out:
        x = net.conv(x, into, out, 1, stride, gain=1.0)
    return net.activation(net.op("Add", [y, x]), "relu")


def resnet8():
    """MLPerf Tiny's image classification."""
    net = Net("resnet8", [1, 3, 32, 32], 4)
    x, channels = net.conv("input", 3, 16, 3, activation="relu"), 16
    for out, stride in [(16, 1), (32, 2), (64, 2)]:
        x, channels = residual_block(net, x, channels, out, stride), out
    x = net.op("AveragePool", [x], kernel_shape=[8, 8], strides=[8, 8])
    x = net.dense(net.op("Flatten", [x], axis=1), 64, 10)
    return net.model(net.op("Softmax", [x], axis=1), [1, 10])


def resnet18():
    net = Net("resnet18", [1, 3, 224, 224], 5)
    x = net.conv("input", 3, 64, 7, 2, activation="relu")
    x, channels = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for stage, out in enumerate([64, 128, 256, 512]):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x, channels = residual_block(net, x, channels, out, stride), out
    return net.model(net.head(x, 512, 1000, softmax=False), [1, 1000])


def mobilenet_v2():
    """Table 2 of arXiv:1801.04381."""
    net = Net("mobilenet-v2", [1, 3, 224, 224], 6)
    x, channels = net.conv("input", 3, 32, 3, 2, activation="relu6"), 32
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, repeats, first_stride in blocks:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            wide, y = channels * expansion, x
            if expansion != 1:
                y = net.conv(y, channels, wide, 1, activation="relu6")
            y = net.conv(y, wide, wide, 3, stride, groups=wide, activation="relu6")
            skips = stride == 1 and channels == out
            y = net.conv(y, wide, out, 1, gain=BRANCH_GAIN if skips else 1.0)
            x = net.op("Add", [x, y]) if skips else y
            channels = out
    x = net.conv(x, 320, 1280, 1, activation="relu6")
    return net.model(net.head(x, 1280, 1000, softmax=False), [1, 1000])


def mobilenet_v3_small():
    """Table 2 of arXiv:1905.02244."""
    net = Net("mobilenet-v3-small", [1, 3, 224, 224], 7)
    x, channels = net.conv("input", 3, 16, 3, 2, activation="hardswish"), 16
    blocks = [
        (3, 16, 16, True, "relu", 2), (3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1),
        (5, 96, 40, True, "hardswish", 2), (5, 240, 40, True, "hardswish", 1), (5, 240, 40, True, "hardswish", 1),
        (5, 120, 48, True, "hardswish", 1), (5, 144, 48, True, "hardswish", 1), (5, 288, 96, True, "hardswish", 2),
        (5, 576, 96, True, "hardswish", 1), (5, 576, 96, True, "hardswish", 1),
    ]
    for kernel, wide, out, squeeze, kind, stride in blocks:
        y = x if wide == channels else net.conv(x, channels, wide, 1, activation=kind)
        y = net.conv(y, wide, wide, kernel, stride, groups=wide, activation=kind)
        if squeeze:
            narrow = max(8, (wide // 4 + 4) // 8 * 8)
            gate = net.conv(net.op("GlobalAveragePool", [y]), wide, narrow, 1, activation="relu")
            gate = net.op("HardSigmoid", [net.conv(gate, narrow, wide, 1)], alpha=1 / 6, beta=0.5)
            y = net.op("Mul", [gate, y])
        y = net.conv(y, wide, out, 1)
        x = net.op("Add", [y, x]) if stride == 1 and channels == out else y
        channels = out
    x = net.conv(x, 96, 576, 1, activation="hardswish")
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1)
    x = net.dense(net.dense(x, 576, 1024, "hardswish"), 1024, 1000)
    return net.model(x, [1, 1000])


ALL = [mlp, autoencoder, ds_cnn, resnet8, mobilenet_v3_small, mobilenet_v2, resnet18]
