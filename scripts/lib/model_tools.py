"""What the model scripts share: their venv, ONNX building, int8 quantisation, golden vectors, manifests.

Only `enter_venv` may run outside the venv, so everything that is not in the standard library is imported late.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = REPO / "build"
MODELS = REPO / "models"
REQUIREMENTS = REPO / "scripts" / "requirements-models.txt"

# tract is tested on opsets 9 to 18; per-channel QuantizeLinear needs 13.
OPSET = 17
IR_VERSION = 8


def enter_venv():
    """Restart this script inside `build/venv-models`, made from the pinned requirements when missing or stale."""
    if sys.version_info < (3, 11):
        sys.exit(f"error: the pinned packages need Python 3.11 or newer, this is {sys.version.split()[0]}")
    venv = BUILD / "venv-models"
    stamp = venv / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"making {venv.relative_to(REPO)} from {REQUIREMENTS.relative_to(REPO)} (about a minute, 400 MB)")
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
            pip = [venv / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--requirement", REQUIREMENTS], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"error: could not make the venv: {error}")
        stamp.write_text(wanted)
    if pathlib.Path(sys.prefix) == venv:
        return
    # One thread: a sum split over threads may round differently from run to run.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    python = str(venv / "bin/python")
    os.execve(python, [python, *sys.argv], {**os.environ, **single})


def say(text):
    print(text, flush=True)


class Graph:
    """An ONNX graph under construction, a node at a time."""

    def __init__(self, name, input_name, input_shape):
        from onnx import TensorProto, helper

        self.name = name
        self.nodes = []
        self.weights = []
        self.input = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, input_shape)

    def op(self, kind, inputs, output, **attributes):
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output + "_node", **attributes))
        return output

    def weight(self, name, array):
        import numpy as np
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=np.float32), name))
        return name

    def conv(self, x, name, weight, bias, stride=1, groups=1):
        """A padded convolution; `weight` is `[out, in / groups, k, k]`."""
        k = weight.shape[2]
        inputs = [x, self.weight(name + ".w", weight), self.weight(name + ".b", bias)]
        shape = {"kernel_shape": [k, k], "strides": [stride, stride], "pads": [k // 2] * 4, "group": groups}
        return self.op("Conv", inputs, name, **shape)

    def gemm(self, x, name, weight, bias):
        """A dense layer; `weight` is `[out, in]`."""
        inputs = [x, self.weight(name + ".w", weight), self.weight(name + ".b", bias)]
        return self.op("Gemm", inputs, name, transB=1)

    def model(self, output_name, output_shape):
        import onnx
        from onnx import TensorProto, helper

        output = helper.make_tensor_value_info(output_name, TensorProto.FLOAT, output_shape)
        graph = helper.make_graph(self.nodes, self.name, [self.input], [output], self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tractd")
        onnx.checker.check_model(model, full_check=True)
        return model


def quantise(model, samples):
    """The QDQ int8 form of a float model: u8 activations, s8 weights with a scale per output channel.

    `samples` are calibration inputs; they set each activation's range by its minimum and maximum.
    """
    import logging
    import tempfile

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    input_name = model.graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(samples)

        def get_next(self):
            sample = next(self.rest, None)
            return None if sample is None else {input_name: sample}

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("float.onnx", "prepared.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        quantize_static(
            paths[1],
            paths[2],
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantised = onnx.load(paths[2])
    # Only standard operators are used; the intermediate shapes can be inferred and are a third of a small file.
    assert all(node.domain == "" for node in quantised.graph.node)
    del quantised.opset_import[:]
    quantised.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    del quantised.graph.value_info[:]
    del quantised.metadata_props[:]
    quantised.producer_name = "tractd"
    quantised.producer_version = ""
    quantised.ir_version = IR_VERSION
    onnx.checker.check_model(quantised, full_check=True)
    softmax = [node.name for node in quantised.graph.node if node.op_type == "Softmax"]
    assert not softmax, f"a quantised Softmax got in: {softmax}"
    return quantised


def runtime(file, fused=True):
    """ONNX Runtime on one CPU thread, with a model; not `fused`, it runs node by node as ONNX says. It says what fails by
    exceptions alone."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(model, inputs, fused=True):
    """The model's output for each input, by ONNX Runtime; stacked on the first axis."""
    import numpy as np

    session = runtime(model.SerializeToString(), fused)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x})[0] for x in inputs])


def tolerance(model):
    """What another runtime may differ by: float rounding, and in an int8 model two steps of the output's scale."""
    from onnx import numpy_helper

    produced = {output: node for node in model.graph.node for output in node.output}
    last = produced[model.graph.output[0].name]
    if last.op_type != "DequantizeLinear":
        return {"abs": 1e-4, "rel": 1e-4}
    scale = next(w for w in model.graph.initializer if w.name == last.input[1])
    return {"abs": round(2.01 * float(numpy_helper.to_array(scale)), 4), "rel": 0.0}


def warn_without_vnni():
    """Without VNNI, ONNX Runtime's x86 int8 kernels saturate 16-bit sums, and golden vectors would record that."""
    try:
        cpu = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if "avx2" in cpu and "vnni" not in cpu:
        say("warning: this CPU has no VNNI; golden outputs of int8 models may differ from the committed ones")


def pixels_to_tensor(pixels, mean, std):
    """u8 `[height, width, channels]` to f32 `[1, channels, height, width]`, rounded as the daemon rounds."""
    import numpy as np

    scaled = pixels.astype(np.float32) * np.float32(1 / 255)
    normal = (scaled - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)


def write_bundle(folder, manifest, model, labels, golden):
    """Write a bundle folder. `golden` is a list of (name, input, output) of tensors as the model sees them."""
    import onnx
    import onnxruntime as ort

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "golden").mkdir(exist_ok=True)
    for old in (folder / "golden").iterdir():
        old.unlink()
    onnx.save(model, folder / "model.onnx")
    (folder / "labels.txt").write_text("".join(label + "\n" for label in labels))
    input_name, output_name = model.graph.input[0].name, model.graph.output[0].name
    entries = []
    for name, given, expected in golden:
        files = [f"golden/{name}.{input_name}.bin", f"golden/{name}.{output_name}.bin"]
        for file, array in zip(files, (given, expected)):
            (folder / file).write_bytes(array.astype("<f4").tobytes())
        entries.append({"inputs": files[:1], "outputs": files[1:], "from": f"onnxruntime {ort.__version__}"})
    (folder / "manifest.toml").write_text(to_toml({**manifest, "golden": entries}))
    shown = folder.relative_to(REPO) if folder.is_relative_to(REPO) else folder
    size = (folder / "model.onnx").stat().st_size
    say(f"wrote {shown}: model.onnx {size / 1000:.0f} kB, {len(golden)} golden vectors")


def to_toml(document):
    """TOML of a manifest: scalars and lists first, then tables, then arrays of tables."""
    scalars = {k: v for k, v in document.items() if not is_table(v) and not is_tables(v)}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in scalars.items()]
    for key, value in document.items():
        if is_table(value):
            lines += ["", f"[{key}]", *table_lines(value)]
        elif is_tables(value):
            for entry in value:
                lines += ["", f"[[{key}]]", *table_lines(entry)]
                for inner, table in entry.items():
                    if is_table(table):
                        lines += ["", f"[{key}.{inner}]", *table_lines(table)]
    return "\n".join(lines) + "\n"


def table_lines(table):
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items() if not is_table(value)]


def is_table(value):
    return isinstance(value, dict)


def is_tables(value):
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)
