"""The networks `bench engine` is measured on, with random weights: speed does not depend on them.

Weights are drawn layer by layer so that activations keep their size, and the classifiers' logits are calm: a softmax
that is flat or saturated would hide what a runtime computes.

Each is made at full size, or as a small one (`Size`) of the same structure: few channels and a small picture, with biases and
branches that weigh enough for any one constant to show in the answer.
"""

import dataclasses

import numpy as np

OPSET, IR_VERSION = 17, 8
# Of what a residual block adds, as in trained networks. With more, one result rounded the other way at the start moves
# everything at the end, and no two runtimes agree.
BRANCH_GAIN = 0.1


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of a network is made."""

    narrow: int = 1
    picture: int = 224
    repeats: int = 9
    classes: int = 1000
    bias: float = 0.1
    bias_mean: float = 0.0
    branch_gain: float = BRANCH_GAIN
    logit_gain: float = 2.0

    def channels(self, count):
        return count if self.narrow == 1 else max(4, count // self.narrow)


FULL = Size()


class Net:
    """A float ONNX graph under construction; `x` is always the name of the last tensor."""

    def __init__(self, name, shape, seed, size=FULL):
        self.name, self.shape, self.size = name, shape, size
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

    def bias(self, out):
        return self.random.normal(self.size.bias_mean, self.size.bias, out)

    def activation(self, x, kind):
        if kind == "relu6":
            return self.op("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])
        return self.op({"relu": "Relu", "hardswish": "HardSwish"}[kind], [x]) if kind else x

    def conv(self, x, into, out, kernel, stride=1, groups=1, pads=None, activation=None, gain=2.0):
        kernel = [kernel, kernel] if isinstance(kernel, int) else kernel
        fan_in = into // groups * kernel[0] * kernel[1]
        weight = self.random.normal(0, np.sqrt(gain / fan_in), (out, into // groups, *kernel))
        bias = self.bias(out)
        pads = pads or [kernel[0] // 2, kernel[1] // 2] * 2
        inputs = [x, self.constant(weight), self.constant(bias)]
        shape = {"kernel_shape": kernel, "strides": [stride, stride], "pads": pads, "group": groups}
        return self.activation(self.op("Conv", inputs, **shape), activation)

    def dense(self, x, into, out, activation=None, gain=2.0):
        weight = self.random.normal(0, np.sqrt(gain / into), (out, into))
        inputs = [x, self.constant(weight), self.constant(self.bias(out))]
        return self.activation(self.op("Gemm", inputs, transB=1), activation)

    def head(self, x, features, classes, softmax):
        x = self.op("Flatten", [self.op("GlobalAveragePool", [x])], axis=1)
        x = self.dense(x, features, classes, gain=self.size.logit_gain)
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


def mlp(size=FULL):
    net, c = Net("mlp", [1, 30], 1, size), size.channels
    x = net.dense("input", 30, c(64), "relu")
    x = net.dense(x, c(64), c(32), "relu")
    x = net.op("Sigmoid", [net.dense(x, c(32), 1)])
    return net.model(x, [1, 1])


def autoencoder(size=FULL):
    """MLPerf Tiny's anomaly detection."""
    sizes = [size.channels(width) for width in [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]]
    net, x = Net("autoencoder", [1, sizes[0]], 2, size), "input"
    for index, (into, out) in enumerate(zip(sizes, sizes[1:])):
        x = net.dense(x, into, out, "relu" if index < 9 else None)
    return net.model(x, [1, sizes[-1]])


def ds_cnn(size=FULL):
    """MLPerf Tiny's keyword spotting."""
    net, c = Net("ds-cnn", [1, 1, 49, 10], 3, size), size.channels(64)
    x = net.conv("input", 1, c, [10, 4], 2, pads=[4, 1, 5, 1], activation="relu")
    for _ in range(min(4, size.repeats)):
        x = net.conv(x, c, c, 3, groups=c, activation="relu")
        x = net.conv(x, c, c, 1, activation="relu")
    return net.model(net.head(x, c, 12, softmax=True), [1, 12])


def residual_block(net, x, into, out, stride):
    y = net.conv(x, into, out, 3, stride, activation="relu")
    y = net.conv(y, out, out, 3, gain=net.size.branch_gain)
    if stride != 1 or into != out:
        x = net.conv(x, into, out, 1, stride, gain=1.0)
    return net.activation(net.op("Add", [y, x]), "relu")


def resnet8(size=FULL):
    """MLPerf Tiny's image classification."""
    picture = min(size.picture, 32)
    net, c = Net("resnet8", [1, 3, picture, picture], 4, size), size.channels
    x, channels = net.conv("input", 3, c(16), 3, activation="relu"), c(16)
    for out, stride in [(16, 1), (32, 2), (64, 2)]:
        x, channels = residual_block(net, x, channels, c(out), stride), c(out)
    x = net.op("AveragePool", [x], kernel_shape=[picture // 4] * 2, strides=[picture // 4] * 2)
    x = net.dense(net.op("Flatten", [x], axis=1), channels, 10, gain=size.logit_gain)
    return net.model(net.op("Softmax", [x], axis=1), [1, 10])


def resnet18(size=FULL):
    net, c = Net("resnet18", [1, 3, size.picture, size.picture], 5, size), size.channels
    x = net.conv("input", 3, c(64), 7, 2, activation="relu")
    x, channels = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), c(64)
    for stage, out in enumerate([64, 128, 256, 512]):
        for block in range(min(2, size.repeats)):
            stride = 2 if stage > 0 and block == 0 else 1
            x, channels = residual_block(net, x, channels, c(out), stride), c(out)
    return net.model(net.head(x, channels, size.classes, softmax=False), [1, size.classes])


def mobilenet_v2(size=FULL):
    """Table 2 of arXiv:1801.04381."""
    net, c = Net("mobilenet-v2", [1, 3, size.picture, size.picture], 6, size), size.channels
    x, channels = net.conv("input", 3, c(32), 3, 2, activation="relu6"), c(32)
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, repeats, first_stride in blocks:
        for index in range(min(repeats, size.repeats)):
            stride = first_stride if index == 0 else 1
            wide, y = channels * expansion, x
            if expansion != 1:
                y = net.conv(y, channels, wide, 1, activation="relu6")
            y = net.conv(y, wide, wide, 3, stride, groups=wide, activation="relu6")
            skips = stride == 1 and channels == c(out)
            y = net.conv(y, wide, c(out), 1, gain=size.branch_gain if skips else 1.0)
            x = net.op("Add", [x, y]) if skips else y
            channels = c(out)
    x = net.conv(x, channels, c(1280), 1, activation="relu6")
    return net.model(net.head(x, c(1280), size.classes, softmax=False), [1, size.classes])


def mobilenet_v3_small(size=FULL):
    """Table 2 of arXiv:1905.02244."""
    net, c = Net("mobilenet-v3-small", [1, 3, size.picture, size.picture], 7, size), size.channels
    x, channels = net.conv("input", 3, c(16), 3, 2, activation="hardswish"), c(16)
    blocks = [
        (3, 16, 16, True, "relu", 2), (3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1),
        (5, 96, 40, True, "hardswish", 2), (5, 240, 40, True, "hardswish", 1), (5, 240, 40, True, "hardswish", 1),
        (5, 120, 48, True, "hardswish", 1), (5, 144, 48, True, "hardswish", 1), (5, 288, 96, True, "hardswish", 2),
        (5, 576, 96, True, "hardswish", 1), (5, 576, 96, True, "hardswish", 1),
    ]
    for kernel, wide, out, squeeze, kind, stride in blocks[: len(blocks) if size.repeats > 1 else 5]:
        wide, out = c(wide), c(out)
        y = x if wide == channels else net.conv(x, channels, wide, 1, activation=kind)
        y = net.conv(y, wide, wide, kernel, stride, groups=wide, activation=kind)
        if squeeze:
            narrow = max(8 if size.narrow == 1 else 4, (wide // 4 + 4) // 8 * 8)
            gate = net.conv(net.op("GlobalAveragePool", [y]), wide, narrow, 1, activation="relu")
            gate = net.op("HardSigmoid", [net.conv(gate, narrow, wide, 1)], alpha=1 / 6, beta=0.5)
            y = net.op("Mul", [gate, y])
        y = net.conv(y, wide, out, 1)
        x = net.op("Add", [y, x]) if stride == 1 and channels == out else y
        channels = out
    x = net.conv(x, channels, c(576), 1, activation="hardswish")
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1)
    x = net.dense(net.dense(x, c(576), c(1024), "hardswish"), c(1024), size.classes)
    return net.model(x, [1, size.classes])


def small():
    """One of each kind, narrow and of a small picture. Biases keep most units of a ReLU alight, so that few values are clamped."""
    bias = {"bias": 0.3, "bias_mean": 1.0}
    picture = {"picture": 16, "repeats": 1, "classes": 8, "branch_gain": 1.0, **bias}
    yield mlp(Size(narrow=8, **bias))
    yield autoencoder(Size(narrow=16, **bias))
    yield ds_cnn(Size(narrow=16, repeats=2, logit_gain=0.5, **bias))
    yield resnet8(Size(narrow=8, logit_gain=0.02, **{**picture, "picture": 12}))
    yield mobilenet_v3_small(Size(narrow=16, **picture))
    yield mobilenet_v2(Size(narrow=16, **picture))
    yield resnet18(Size(narrow=32, **picture))


ALL = [mlp, autoencoder, ds_cnn, resnet8, mobilenet_v3_small, mobilenet_v2, resnet18]
