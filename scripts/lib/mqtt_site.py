"""A broker, daemons and a folder for them; everything ends with the script."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DIGIT = REPOSITORY / "models/digits/samples/7-0017.png"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, seconds, ready):
    end = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.05)
    return found


class Site:
    """Runs from `with` to its end."""

    def __init__(self, binaries):
        self.binaries = Path(binaries).resolve()
        self.dir = Path(tempfile.mkdtemp(prefix="tractd-mqtt-"))
        self.port = free_port()
        self.broker = None
        self.daemons = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [*self.daemons.values(), self.broker]:
            if process and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.dir)

    def start_broker(self):
        config = self.dir / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 100000\n"
            f"max_connections -1\npersistence true\npersistence_location {self.dir}/\nautosave_interval 1\n"
        )
        if os.geteuid() == 0:
            config.write_text(config.read_text() + "user root\n")
        command = [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", config]
        with open(self.dir / "broker.log", "ab") as log:
            self.broker = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("the broker listens", 10, self._listens)

    def _listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop_broker(self):
        self.broker.terminate()
        self.broker.wait()

    def start_daemon(self, name="one", port=None, options=""):
        """Starts a daemon; its client id and node are derived from its name."""
        here = self.dir / name
        if not here.exists():
            shutil.copytree(REPOSITORY / "models/digits/1", here / "models/digits/1")
        (here / "tractd.toml").write_text(
            f'[mqtt]\nurl = "mqtt://127.0.0.1:{port or self.port}"\nclient_id = "daemon-{name}"\nkeep_alive_s = 5\n{options}\n'
        )
        command = [self.binaries / "tractd", "--config", here / "tractd.toml", "--state", here / "state"]
        command += ["--socket", here / "tractd.sock", "--models", here / "models"]
        with open(here / "log", "ab") as log:
            self.daemons[name] = subprocess.Popen(command, stderr=log)
        wait_for(f"daemon {name} answers", 60, lambda: self._digits_ready(name))

    def status(self, name="one"):
        at = f"unix:{self.dir / name / 'tractd.sock'}"
        run = subprocess.run(
            [self.binaries / "tractctl", "status", "--json", "--at", at], capture_output=True, check=False
        )
        return json.loads(run.stdout) if run.returncode == 0 else None

    def _digits_ready(self, name):
        status = self.status(name)
        return status and any(model["state"] == "ready" for model in status["models"])

    def kill_daemon(self, name="one", how=signal.SIGKILL):
        self.daemons[name].send_signal(how)
        self.daemons[name].wait()
