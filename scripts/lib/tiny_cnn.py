"""A CNN small enough to train in plain numpy: layers on `[batch, height, width, channels]`, Adam, and the way to ONNX.

Enough for the digits and no more: stride 1, padding that keeps the size, pooling by two.
"""

import numpy as np

import model_tools as tools


class Layer:
    """A layer without weights; one with weights fills `weights` and, going backward, `gradients`."""

    def __init__(self):
        self.weights, self.gradients = [], []


class Conv(Layer):
    def __init__(self, random, channels, filters, size):
        super().__init__()
        scale = np.sqrt(2 / (channels * size * size))
        self.size = size
        self.weights = [normal(random, (size * size * channels, filters), scale), zeros(filters)]

    def forward(self, x):
        self.shape = x.shape
        self.patches = patches(x, self.size).reshape(*x.shape[:3], -1)
        return self.patches @ self.weights[0] + self.weights[1]

    def backward(self, gradient):
        flat = gradient.reshape(-1, gradient.shape[-1])
        self.gradients = [self.patches.reshape(len(flat), -1).T @ flat, flat.sum(0)]
        taps = (gradient @ self.weights[0].T).reshape(*self.shape[:3], self.size, self.size, self.shape[3])
        return gather(taps, self.size)

    def onnx(self, graph, x, name):
        w, b = self.weights
        return graph.conv(x, name, w.reshape(self.size, self.size, -1, w.shape[1]).transpose(3, 2, 0, 1), b)


class Depthwise(Layer):
    def __init__(self, random, channels, size):
        super().__init__()
        self.size = size
        self.weights = [normal(random, (size, size, channels), np.sqrt(2) / size), zeros(channels)]

    def forward(self, x):
        self.patches = patches(x, self.size)
        return np.einsum("nhwijc,ijc->nhwc", self.patches, self.weights[0]) + self.weights[1]

    def backward(self, gradient):
        self.gradients = [np.einsum("nhwijc,nhwc->ijc", self.patches, gradient), gradient.sum((0, 1, 2))]
        return gather(gradient[:, :, :, None, None, :] * self.weights[0], self.size)

    def onnx(self, graph, x, name):
        w, b = self.weights
        return graph.conv(x, name, w.transpose(2, 0, 1)[:, None], b, groups=w.shape[2])


class Relu(Layer):
    def forward(self, x):
        self.kept = x > 0
        return x * self.kept

    def backward(self, gradient):
        return gradient * self.kept

    def onnx(self, graph, x, name):
        return graph.op("Relu", [x], name)


class MaxPool(Layer):
    def forward(self, x):
        n, h, w, c = x.shape
        cells = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)
        self.winner = cells.argmax(-1)
        return cells.max(-1)

    def backward(self, gradient):
        n, h, w, c = gradient.shape
        cells = np.where(np.arange(4) == self.winner[..., None], gradient[..., None], np.float32(0))
        return cells.reshape(n, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(n, h * 2, w * 2, c)

    def onnx(self, graph, x, name):
        return graph.op("MaxPool", [x], name, kernel_shape=[2, 2], strides=[2, 2])


class Dense(Layer):
    def __init__(self, random, inputs, outputs):
        super().__init__()
        self.weights = [normal(random, (inputs, outputs), np.sqrt(2 / inputs)), zeros(outputs)]

    def forward(self, x):
        self.shape = x.shape
        # Channels first, because that is what Flatten sees in the ONNX graph.
        self.x = x.transpose(0, 3, 1, 2).reshape(len(x), -1) if x.ndim == 4 else x
        return self.x @ self.weights[0] + self.weights[1]

    def backward(self, gradient):
        self.gradients = [self.x.T @ gradient, gradient.sum(0)]
        back = gradient @ self.weights[0].T
        if len(self.shape) == 2:
            return back
        n, h, w, c = self.shape
        return back.reshape(n, c, h, w).transpose(0, 2, 3, 1)

    def onnx(self, graph, x, name):
        w, b = self.weights
        if len(self.shape) == 4:
            x = graph.op("Flatten", [x], name + ".flat", axis=1)
        return graph.gemm(x, name, w.T, b)


class Adam:
    def __init__(self, net):
        self.moments = [[(np.zeros_like(w), np.zeros_like(w)) for w in layer.weights] for layer in net]
        self.steps = 0

    def update(self, net, rate):
        self.steps += 1
        correction = np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for layer, moments in zip(net, self.moments):
            for weight, gradient, (mean, square) in zip(layer.weights, layer.gradients, moments):
                mean += np.float32(0.1) * (gradient - mean)
                square += np.float32(0.001) * (gradient * gradient - square)
                weight -= np.float32(rate * correction) * mean / (np.sqrt(square) + np.float32(1e-8))


def step(net, adam, images, classes, rate):
    """One step of training; returns the batch's mean cross-entropy before it."""
    x = images
    for layer in net:
        x = layer.forward(x)
    chance = np.exp(x - x.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    rows = np.arange(len(classes))
    loss = -np.log(chance[rows, classes] + 1e-12).mean()
    gradient = chance
    gradient[rows, classes] -= 1
    gradient /= len(classes)
    for layer in reversed(net):
        gradient = layer.backward(gradient)
    adam.update(net, rate)
    return float(loss)


def to_onnx(net, graph_name, input_name, input_shape, output_name):
    graph = tools.Graph(graph_name, input_name, input_shape)
    x = input_name
    for i, layer in enumerate(net):
        last = i == len(net) - 1
        x = layer.onnx(graph, x, output_name if last else f"{type(layer).__name__.lower()}{i}")
    return graph.model(output_name, [1, net[-1].weights[1].size])


def patches(x, size):
    """`[n, h, w, size, size, c]`: what each tap of a padded convolution sees."""
    n, h, w, _ = x.shape
    edge = size // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    taps = [[padded[:, i : i + h, j : j + w] for j in range(size)] for i in range(size)]
    return np.stack([np.stack(row, 3) for row in taps], 3)


def gather(taps, size):
    """The reverse of `patches`: adds every tap's gradient where it came from."""
    n, h, w, _, _, c = taps.shape
    edge = size // 2
    padded = np.zeros((n, h + 2 * edge, w + 2 * edge, c), dtype=taps.dtype)
    for i in range(size):
        for j in range(size):
            padded[:, i : i + h, j : j + w] += taps[:, :, :, i, j]
    return padded[:, edge : edge + h, edge : edge + w]


def normal(random, shape, scale):
    return (random.standard_normal(shape) * scale).astype(np.float32)


def zeros(count):
    return np.zeros(count, dtype=np.float32)
