"""What scripts/bench-engine does once everything is built: runs the engines in turn, and prints what came out as tables.

Each measurement is a fresh process on one core, engine after engine and round after round, so that a troubled machine
troubles all alike. Figures are medians over the rounds.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

MODELS = pathlib.Path("build/bench-models")
CACHE = MODELS / "cache"
NETWORKS = ["mlp", "autoencoder", "ds-cnn", "resnet8", "mobilenet-v3-small", "mobilenet-v2", "resnet18"]
NAMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT", "tractd": "tractd", "stock": "tract"}
PACKAGES = {"ort": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}
# Of the forms a peer reads, those it is at its best in: ONNX Runtime's u8 activations are 2 to 3 times as fast as its s8.
BEST_FORMS = {"ort": ["qdq-u8s8-pc", "qop-u8s8-pc"], "openvino": ["qdq-u8s8-pc"], "litert": ["tflite-s8-pc"]}
ALL_FORMS = ["qdq-u8s8-pc", "qdq-u8s8-pt", "qdq-s8s8-pc", "qop-u8s8-pc", "qop-u8s8-pt", "qop-s8s8-pc"]
# What holds OpenVINO to a tier of ours; the other peers cannot be held.
OPENVINO_TIERS = {"avx512-vnni": "AVX512_CORE_VNNI", "avx-vnni": "AVX2_VNNI", "avx2": "AVX2", "sse4.1": "SSE41"}
PEER_SECONDS, STOCK_RUNS = "0.4", "20"
# Loads in a round, by tractd and ONNX Runtime; and what is added to a form's name where nothing else was measured.
LOADS, LOAD = 5, " load"
# As in tractctl: a probe that took longer than the quickest by this factor had company on its core.
COMPANY = 1.1


def main():
    options = arguments()
    bench = Bench(options)
    for round_ in range(options.rounds):
        print(f"== round {round_ + 1} of {options.rounds}", file=sys.stderr, flush=True)
        bench.round()
    report = Report(bench)
    print(f"{processor()}; batch 1, one core, one thread, medians of {options.rounds} rounds; tractd's kernels {report.tier}.")
    for absent in bench.absent:
        print(f"Not in it: {absent}.")
    report.print(options)
    if options.json:
        pathlib.Path(options.json).write_text("".join(json.dumps(record) + "\n" for record in bench.records))


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench-engine", description="tractd's int8 path next to its peers.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} [default: all]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="[default: 5]")
    parser.add_argument("--kernels", metavar="TIER", help="force a tier; OpenVINO is held to it, who can't be is left out")
    parser.add_argument("--forms", action="store_true", help="every int8 form, not just each engine's best")
    parser.add_argument("--real", metavar="MODEL.onnx", help="a float model of images in 0..1 to quantise and measure too")
    parser.add_argument("--cache", action="store_true", help="also load from a cache of compiled programs")
    parser.add_argument("--json", metavar="FILE", help="write each measurement there, one JSON object per line")
    options = parser.parse_args()
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    if options.kernels and options.kernels not in OPENVINO_TIERS:
        parser.error(f"OpenVINO can't be held to {options.kernels}")
    options.networks = options.networks or NETWORKS
    return options


class Bench:
    def __init__(self, options):
        self.options, self.records, self.absent = options, [], []
        self.models = [*options.networks, *(["real"] if options.real else [])]
        self.python, self.tool, self.shapes = sys.executable, os.environ["TRACTCTL"], os.environ["SHAPES"]
        core = os.environ.get("CORE", str(max(os.sched_getaffinity(0))))
        priority = ["chrt", "--rr", "10"] if succeeds(["chrt", "--rr", "10", "true"]) else []
        self.pinned, self.free = [*priority, "taskset", "--cpu-list", core], priority
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.peers = self.present(["openvino"] if options.kernels else ["ort", "openvino", "litert"])
        if options.kernels:
            self.environment["ONEDNN_MAX_CPU_ISA"] = OPENVINO_TIERS[options.kernels]
        self.prepare()

    def present(self, peers):
        have = lambda peer: succeeds([self.python, "-c", f"import {PACKAGES[peer]}"])  # noqa: E731
        lacking = [peer for peer in peers if not have(peer)]
        self.absent += [f"{NAMES[peer]}, which has no package for this machine" for peer in lacking]
        return [peer for peer in peers if peer not in lacking]

    def prepare(self):
        """Models that are not there yet, inputs as tractctl reads them, and TFLite models."""
        import numpy as np

        missing = [model for model in self.options.networks if not (MODELS / f"{model}.qdq-u8s8-pc.onnx").exists()]
        if missing:
            subprocess.run(["scripts/make-bench-models", *missing], check=True, stdout=sys.stderr)
        if self.options.real:
            subprocess.run(["scripts/make-bench-models", "--real", self.options.real], check=True, stdout=sys.stderr)

        sys.path.insert(0, str(pathlib.Path(__file__).parent))
        for model in self.models:
            name, shape = input_of(MODELS / f"{model}.f32.onnx")
            raw = np.fromfile(MODELS / f"{model}.input", "<f4")
            np.savez(MODELS / f"{model}.npz", **{name: raw.reshape(shape)})
            if "litert" in self.peers:
                import tflite_model

                path = MODELS / f"{model}.tflite-s8-pc.tflite"
                path.write_bytes(tflite_model.convert(MODELS / f"{model}.qdq-s8s8-pc.onnx"))

    def round(self):
        self.record("peak", "shapes", "", [*self.pinned, self.shapes, "--peak", *self.tier("--tier")])
        for model in self.models:
            self.tractd(model, "qdq-u8s8-pc")
            for peer in self.peers:
                for form in BEST_FORMS[peer]:
                    self.peer(model, peer, form)
            for _ in range(LOADS - 1):
                self.load_again(model)
            if not self.options.kernels:
                self.tool_runs(model, "stock", "f32", ["--stock", "--runs", STOCK_RUNS])
                self.tool_runs(model, "stock", "qdq-u8s8-pc", ["--stock", "--runs", STOCK_RUNS])
            if self.options.forms:
                self.forms(model)
        if len(os.sched_getaffinity(0)) > 1:
            for net in ("resnet-8", "mobilenet-v2", "resnet-18"):
                self.record(net, "shapes", "scaling", [*self.free, self.shapes, "--scaling", net, *self.tier("--tier")])

    def tier(self, option):
        return [option, self.options.kernels] if self.options.kernels else []

    def forms(self, model):
        for form in ALL_FORMS:
            if form != "qdq-u8s8-pc":
                self.tractd(model, form)
            for peer in self.peers:
                reads = form.startswith("qdq") or peer == "ort"
                if reads and peer != "litert" and form not in BEST_FORMS[peer]:
                    self.peer(model, peer, form)

    def tractd(self, model, form):
        tier = self.tier("--kernels")
        self.tool_runs(model, "tractd", form, tier)
        if self.options.cache and form == "qdq-u8s8-pc":
            shutil.rmtree(CACHE, ignore_errors=True)
            for label in ("filling", "cached"):
                self.cached(model, label)

    def cached(self, model, label, what=""):
        self.tool_runs(model, "tractd", label, [*self.tier("--kernels"), "--cache", CACHE, "--runs", "1"], what)

    def load_again(self, model):
        """One load a round says little: a page that is not at hand takes as long as many that are."""
        self.tool_runs(model, "tractd", "qdq-u8s8-pc", [*self.tier("--kernels"), "--runs", "1"], LOAD)
        if self.options.cache:
            self.cached(model, "cached", LOAD)
        if "ort" in self.peers:
            for form in BEST_FORMS["ort"]:
                self.peer(model, "ort", form, LOAD)

    def tool_runs(self, model, engine, form, extra, what=""):
        file = f"{model}.{form if '-' in form or form == 'f32' else 'qdq-u8s8-pc'}.onnx"
        command = [self.tool, "bench", "engine", MODELS / file, "--input", MODELS / f"{model}.npz", "--json", *extra]
        self.record(model, engine, form + what, [*self.pinned, *command])

    def peer(self, model, peer, form, what=""):
        file = MODELS / f"{model}.{form}.{'tflite' if peer == 'litert' else 'onnx'}"
        script = pathlib.Path(__file__).with_name("engine_peers.py")
        command = [self.python, script, peer, file, MODELS / f"{model}.input", 0 if what == LOAD else PEER_SECONDS]
        self.record(model, peer, form + what, [*self.pinned, *command])

    def record(self, model, engine, form, command):
        done = subprocess.run(list(map(str, command)), env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{engine} on {model} {form}: {done.stderr.strip()[-2000:]}")
        for line in done.stdout.splitlines():
            self.records.append({"model": model, "engine": engine, "form": form, "figures": json.loads(line)})


def succeeds(command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def input_of(path):
    import onnx

    value = onnx.load(path).graph.input[0]
    return value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def processor():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(("model name", "Model\t"))]
    return named[0] if named else platform.machine()


class Report:
    """Medians of the records, as tables."""

    def __init__(self, bench):
        self.bench, self.models = bench, bench.models
        runs = collections.defaultdict(list)
        for record in bench.records:
            runs[record["model"], record["engine"], record["form"]].append(record["figures"])
        self.runs = runs
        self.tier = self.first(self.models[0], "tractd")["kernels"]

    def first(self, model, engine, form="qdq-u8s8-pc"):
        return self.runs[model, engine, form][0]

    def median(self, model, engine, form, key="median_us"):
        runs = self.runs.get((model, engine, form))
        if not runs:
            return None
        if key == "load_ms":
            runs = runs + self.runs.get((model, engine, form + LOAD), [])
        # What a call costs from Python is not the engine's.
        less = lambda run: run.get("call_us", 0) if key.endswith("_us") else 0  # noqa: E731
        return statistics.median(run[key] - less(run) for run in runs)

    def ours(self, model, key="median_us"):
        return self.median(model, "tractd", "qdq-u8s8-pc", key)

    def best(self, model, peer):
        """The best form's time and name."""
        return min((self.median(model, peer, form), form) for form in BEST_FORMS[peer])

    def print(self, options):
        self.speed()
        self.limits()
        if options.forms:
            self.forms()
        self.stock()
        self.loads()
        self.memory()
        self.scaling()

    def speed(self):
        peers, ratios, rows = self.bench.peers, [], []
        for model in self.models:
            best = {peer: self.best(model, peer) for peer in peers}
            ours, first = self.ours(model), self.first(model, "tractd")
            cells = [f"{us(time)} {form[:3]}" if peer == "ort" else us(time) for peer, (time, form) in best.items()]
            ratio = min((time for time, _ in best.values()), default=math.nan) / ours
            if model != "real":
                ratios.append(ratio)
            share = first["int8_macs"] / max(first["total_macs"], 1)
            rows.append([model, us(ours), *cells, f"{ratio:.2f}", f"{share:.1%}", first["outside"]])
        print("\nint8, µs; what a call costs from Python is subtracted from the peers\n")
        show([["model", "tractd", *map(NAMES.get, peers), "best peer ÷ tractd", "MACs in int8", "nodes outside"], *rows])
        if peers:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            print(f"\ngeometric mean {mean:.2f}, worst {min(ratios):.2f}")

    def limits(self):
        peaks = collections.defaultdict(list)
        for figures in self.runs["peak", "shapes", ""]:
            peaks[figures["tier"]].append(figures["gmacs"])
        if not peaks:
            print("\nNo loop measures the peak of this kind of machine yet.")
            return
        peaks = {tier: statistics.median(values) for tier, values in peaks.items()}
        print("\nMeasured peak of this core: " + ", ".join(f"{tier} {gmacs:.0f} GMAC/s" for tier, gmacs in peaks.items()))
        if self.tier not in peaks:
            return
        ours = [run for (_, engine, _), runs in self.runs.items() if engine == "tractd" for run in runs]
        # A whole round in company has nothing to tell it by but the others.
        quickest = min(run["probe_us"] for run in ours)
        rows = []
        for model in self.models:
            limit = self.first(model, "tractd")["total_macs"] / peaks[self.tier] / 1e3
            row = [model, us(limit), us(self.ours(model)), f"{self.ours(model) / limit:.2f}"]
            runs = self.runs[model, "tractd", "qdq-u8s8-pc"]
            alone = [run["undisturbed_us"] for run in runs if run["probe_us"] <= COMPANY * quickest]
            if alone:
                alone = statistics.median(alone)
                row += [us(alone), f"{alone / limit:.2f}"]
            rows.append(row + [""] * (6 - len(row)))
        columns = ["tractd, µs", "tractd ÷ limit", "undisturbed, µs", "undisturbed ÷ limit"]
        print()
        show([["model", f"limit of {self.tier}, µs", *columns], *rows])
        print("\nUndisturbed: the runs right before and after which nothing else was at work on the core, whose other hardware")
        print("thread slows networks more than the loop that the limit is from.")

    def forms(self):
        engines = ["tractd", *(peer for peer in self.bench.peers if peer != "litert")]
        rows = []
        for model in self.models:
            for form in ALL_FORMS:
                times = (self.median(model, engine, form) for engine in engines)
                rows.append([f"{model} {form}", *("" if time is None else us(time) for time in times)])
        print("\nEach int8 form, µs: QDQ or QOperator, activations and weights, per channel or per tensor\n")
        show([["model", *map(NAMES.get, engines)], *rows])

    def stock(self):
        if self.bench.options.kernels:
            return
        rows = []
        for model in self.models:
            float_, int8 = (self.median(model, "stock", form) for form in ("f32", "qdq-u8s8-pc"))
            rows.append([model, us(float_), us(int8), f"{int8 / self.ours(model):.0f}"])
        print("\ntract alone, µs\n")
        show([["model", "tract f32", "tract int8 (QDQ)", "tract int8 ÷ tractd"], *rows])

    def loads(self):
        peers, cached, rows = self.bench.peers, self.bench.options.cache, []
        for model in self.models:
            ours = [self.ours(model, "load_ms")]
            ours += [self.median(model, "tractd", "cached", "load_ms")] if cached else []
            theirs = [self.median(model, peer, self.best(model, peer)[1], "load_ms") for peer in peers]
            ratios = [f"{time / theirs[peers.index('ort')]:.2f}" for time in ours] if "ort" in peers else []
            rows.append([model, *(f"{time:.1f}" for time in ours + theirs), *ratios])
        names = ["tractd", *(["from the cache"] if cached else [])]
        ratios = [f"{name} ÷ ONNX Runtime" for name in names] if "ort" in peers else []
        print("\nFrom opening the file to the first answer, in a fresh process whose libraries are loaded, ms\n")
        show([["model", *names, *map(NAMES.get, peers), *ratios], *rows])

    def memory(self):
        peers, rows = self.bench.peers, []
        for model in self.models:
            theirs = (self.median(model, peer, self.best(model, peer)[1], "own_rss_kb") for peer in peers)
            rows.append([model, *(f"{kb / 1024:.0f}" for kb in (self.ours(model, "peak_rss_kb"), *theirs))])
        print("\nPeak memory, MiB: of tractctl's whole process, and of what loading and running added to the peers'\n")
        show([["model", "tractd", *map(NAMES.get, peers)], *rows])

    def scaling(self):
        rows = []
        for (model, engine, form), runs in self.runs.items():
            if form == "scaling":
                program, bare = (statistics.median(run[key] for run in runs) for key in ("program", "bare"))
                rows.append([model, f"{program:.2f}", f"{bare:.2f}", f"{program / bare:.2f}"])
        if rows:
            print("\nThroughput of two sessions on two cores, as a multiple of one\n")
            show([["network", "tractd", "a bare loop of the tier's instruction", "ratio"], *rows])


def us(time):
    return f"{time:.2f}" if time < 10 else f"{time:.1f}" if time < 100 else f"{time:,.0f}"


def show(rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for index, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("| " + " | ".join(cells) + " |")
        if index == 0:
            print("|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")


if __name__ == "__main__":
    main()
