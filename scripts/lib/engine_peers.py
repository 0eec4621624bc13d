"""Times one peer's engine on one model, in a process of its own: engine_peers.py PEER MODEL RAW SECONDS -> one JSON line.

PEER is ort, openvino or litert; RAW the input, little-endian f32 in ONNX's layout; 0 SECONDS only load. Each
engine is called as a C program would call it: one thread, input and output bound beforehand, nothing copied or looked up in
a call, by the native function itself. What such a call costs from Python is measured on a native function that does nothing
(call_us).
"""

import ctypes
import functools
import json
import math
import pathlib
import sys
import time

# As tractctl's: shorter calls are timed several at once, and warming up lasts a while.
SAMPLE_MIN_S, WARM_UP_S, WARM_UP_RUNS, SAMPLES_MIN = 20e-6, 0.1, 20, 20


def main():
    peer, model, raw, seconds = sys.argv[1:]
    values = pathlib.Path(raw).read_bytes()
    engine = {"ort": OnnxRuntime, "openvino": OpenVino, "litert": LiteRt}[peer]()
    rss_before_kb = peak_rss_kb()
    begin = time.perf_counter()
    run = engine.load(model, values)
    run()
    load_ms = (time.perf_counter() - begin) * 1e3
    if not float(seconds):
        print(json.dumps({"load_ms": load_ms}))
        return
    samples = sorted(time_calls(run, float(seconds)))
    call = sorted(time_calls(engine.nothing(), 0.05))
    peak = peak_rss_kb()
    at = lambda share: samples[round((len(samples) - 1) * share)]  # noqa: E731
    figures = {"median_us": at(0.5), "p10_us": at(0.1), "p90_us": at(0.9), "call_us": call[len(call) // 2]}
    print(json.dumps({**figures, "load_ms": load_ms, "peak_rss_kb": peak, "own_rss_kb": peak - rss_before_kb}))


def peak_rss_kb():
    # Not getrusage: its peak begins with that of the process which started this one.
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


class OnnxRuntime:
    def __init__(self):
        import numpy
        import onnxruntime

        self.numpy, self.ort = numpy, onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = self.options.inter_op_num_threads = 1
        self.options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.options.log_severity_level = 3

    def load(self, model, values):
        session = self.ort.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        (source,), (result,) = session.get_inputs(), session.get_outputs()
        array = self.numpy.frombuffer(values, "<f4").reshape(source.shape)
        binding = session.io_binding()
        bound = [
            self.ort.OrtValue.ortvalue_from_numpy(array),
            self.ort.OrtValue.ortvalue_from_numpy(self.numpy.empty(result.shape, "<f4")),
        ]
        binding.bind_ortvalue_input(source.name, bound[0])
        binding.bind_ortvalue_output(result.name, bound[1])
        once = self.ort.RunOptions()
        # There is nothing to wait for on a CPU; it takes half a microsecond.
        once.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.kept = session, binding, bound
        return functools.partial(session._sess.run_with_iobinding, binding._iobinding, once)

    def nothing(self):
        return functools.partial(getattr, self.options, "intra_op_num_threads")


class OpenVino:
    """By its C library, which comes with the package: the Python one makes a dictionary of each answer."""

    OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}

    def __init__(self):
        import openvino

        (path,) = (pathlib.Path(openvino.__file__).parent / "libs").glob("libopenvino_c.so*")
        self.library = ctypes.CDLL(str(path))

    def load(self, model, values):
        core, compiled, request, tensor, data = (ctypes.c_void_p() for _ in range(5))
        self.call("ov_core_create", ctypes.byref(core))
        options = [ctypes.c_char_p(word.encode()) for pair in self.OPTIONS.items() for word in pair]
        arguments = [core, model.encode(), b"CPU", ctypes.c_size_t(len(options)), ctypes.byref(compiled), *options]
        self.call("ov_core_compile_model_from_file", *arguments)
        self.call("ov_compiled_model_create_infer_request", compiled, ctypes.byref(request))
        self.call("ov_infer_request_get_input_tensor", request, ctypes.byref(tensor))
        self.call("ov_tensor_data", tensor, ctypes.byref(data))
        ctypes.memmove(data, values, len(values))
        return functools.partial(self.library.ov_infer_request_infer, request)

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {status}")

    def nothing(self):
        return functools.partial(ctypes.CDLL(None).ntohl, ctypes.c_void_p(0))


class LiteRt:
    """With the XNNPACK delegate, which it takes by itself."""

    def __init__(self):
        import ai_edge_litert.interpreter
        import numpy

        self.numpy, self.litert = numpy, ai_edge_litert.interpreter

    def load(self, model, values):
        self.interpreter = self.litert.Interpreter(model, num_threads=1)
        self.interpreter.allocate_tensors()
        (source,) = self.interpreter.get_input_details()
        shape = list(source["shape"])
        array = self.numpy.frombuffer(values, "<f4")
        if len(shape) == 4:
            array = array.reshape(shape[0], shape[3], *shape[1:3]).transpose(0, 2, 3, 1)
        self.interpreter.tensor(source["index"])()[:] = array.reshape(shape)
        return self.interpreter._interpreter.Invoke

    def nothing(self):
        return self.interpreter._interpreter.NumSubgraphs


def time_calls(run, seconds):
    """Times in µs, by the same rule as `tractctl bench engine`."""
    clock = time.perf_counter_ns
    begin, warm = clock(), 0
    while warm < WARM_UP_RUNS or clock() - begin < WARM_UP_S * 1e9:
        run()
        warm += 1
    group = max(1, math.ceil(SAMPLE_MIN_S * 1e9 * warm / (clock() - begin)))
    calls, samples, begin = range(group), [], clock()
    while len(samples) < SAMPLES_MIN or clock() - begin < seconds * 1e9:
        started = clock()
        for _ in calls:
            run()
        samples.append((clock() - started) / group / 1e3)
    return samples


if __name__ == "__main__":
    main()
