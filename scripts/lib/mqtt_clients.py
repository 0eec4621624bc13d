"""Many clients on one selector. Run by scripts/test-mqtt-clients."""

import selectors
import statistics
import sys
import time
from pathlib import Path

import paho.mqtt.client as mqtt
from mqtt_site import DIGIT, Site
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

# Longest wait for the last replies, in seconds.
PATIENCE_S = 30


class Client:
    """One device: asks once a second and hears its replies."""

    def __init__(self, fleet, number):
        self.fleet, self.name = fleet, f"device-{number}"
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=self.name, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"tractd/v1/_res/{self.name}/#", qos=1)
        self.client.on_subscribe = self._ready
        self.client.on_message = self._reply
        # Spread over the second, as devices are.
        self.due = None
        self.open = {}
        self.client.connect("127.0.0.1", fleet.site.port, keepalive=60)
        fleet.selector.register(self.client.socket(), selectors.EVENT_READ, self)

    def _ready(self, *_):
        self.fleet.ready += 1

    def _reply(self, _client, _data, message):
        asked = self.open.pop(message.topic, None)
        if asked is None:
            self.fleet.repeats += 1
            return
        status = dict(message.properties.UserProperty).get("status")
        self.fleet.statuses[status] = self.fleet.statuses.get(status, 0) + 1
        self.fleet.took_ms.append((time.monotonic() - asked) * 1000)

    def ask(self, now):
        self.fleet.sent += 1
        answer = f"tractd/v1/_res/{self.name}/{self.fleet.sent}"
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = answer
        self.open[answer] = now
        topic = f"tractd/v1/{self.fleet.node}/req/digits/raw/{self.name}/{self.fleet.sent}"
        self.client.publish(topic, self.fleet.png, qos=1, properties=properties)


class Fleet:
    def __init__(self, site, count):
        self.site, self.png, self.node = site, DIGIT.read_bytes(), site.status()["node"]
        self.selector = selectors.DefaultSelector()
        self.ready = self.sent = self.repeats = 0
        self.statuses, self.took_ms = {}, []
        self.clients = [Client(self, number) for number in range(count)]

    def turn(self, seconds):
        for key, _ in self.selector.select(seconds):
            key.data.client.loop_read()
            while key.data.client.want_write():
                key.data.client.loop_write()

    def run(self, seconds):
        while self.ready < len(self.clients):
            self.turn(1)
        start = time.monotonic()
        for number, client in enumerate(self.clients):
            client.due = start + number / len(self.clients)
        end = start + seconds
        while time.monotonic() < end:
            now = time.monotonic()
            for client in self.clients:
                if client.due <= now:
                    client.due += 1
                    client.ask(now)
                    client.client.loop_write()
            self.turn(0.001)
        end = time.monotonic() + PATIENCE_S
        while any(client.open for client in self.clients) and time.monotonic() < end:
            self.turn(0.1)
        return sum(len(client.open) for client in self.clients)


def memory_mib(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0


def main(binaries, count, seconds):
    with Site(binaries) as site:
        site.start_broker()
        site.start_daemon()
        before = memory_mib(site.daemons["one"]), memory_mib(site.broker)
        fleet = Fleet(site, count)
        started = time.monotonic()
        lost = fleet.run(seconds)
        rate = fleet.sent / (time.monotonic() - started)
        after = memory_mib(site.daemons["one"]), memory_mib(site.broker)
    took = statistics.quantiles(fleet.took_ms, n=100)
    statuses = ", ".join(f"{status} {number}" for status, number in sorted(fleet.statuses.items()))
    print(f"{count} clients, {fleet.sent} requests, {rate:.0f}/s: {statuses}; repeats {fleet.repeats}, lost {lost}")
    print(f"time to the reply: p50 {took[49]:.1f} ms, p99 {took[98]:.1f} ms")
    print(f"resident memory, MiB: daemon {before[0]:.1f} before, {after[0]:.1f} after; broker {before[1]:.1f}, {after[1]:.1f}")
    return lost > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
