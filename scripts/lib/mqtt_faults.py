"""Asks through faults and tallies what comes back. Run by scripts/test-mqtt-faults."""

import asyncio
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from mqtt_site import DIGIT, Site, free_port, wait_for
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

CLIENT = "faults"
# Requests unanswered at once.
WINDOW = 64
# Silence after which a request is sent again, and after which it is lost, in seconds.
AGAIN_S = 5
LOST_S = 120


@dataclass
class Tally:
    """What became of the requests of one fault."""

    # Unanswered requests: when they were asked first and last.
    open: dict = field(default_factory=dict)
    answered: int = 0
    refused: int = 0
    repeats: int = 0
    again: int = 0


class Client:
    """One client that keeps its session, and sends again what is not answered."""

    def __init__(self, site, node):
        self.prefix = f"tractd/v1/{node}/req/digits/raw/{CLIENT}"
        self.png = DIGIT.read_bytes()
        self.lock = threading.Lock()
        self.tally = Tally()
        self.next = 0
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=CLIENT, protocol=mqtt.MQTTv5)
        self.client.on_message = self._reply
        self.client.on_connect = self._connected
        self.client.reconnect_delay_set(0.2, 1)
        self.client.max_queued_messages_set(0)
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", site.port, keepalive=5, clean_start=False, properties=session)
        self.client.loop_start()
        wait_for("paho connects", 10, self.client.is_connected)

    def _connected(self, client, *_):
        client.subscribe(f"tractd/v1/_res/{CLIENT}/#", qos=1)

    def _reply(self, _client, _data, message):
        number = int.from_bytes(message.properties.CorrelationData, "big")
        status = dict(message.properties.UserProperty).get("status")
        with self.lock:
            tally = self.tally
            if tally.open.pop(number, None):
                tally.answered += status == "200"
                tally.refused += status != "200"
            else:
                tally.repeats += 1

    def _ask(self, number):
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = number.to_bytes(16, "big")
        self.client.publish(f"{self.prefix}/{number}", self.png, qos=1, properties=properties)

    def run(self, count, halfway):
        """Asks `count` requests and starts `halfway` in the middle; returns the tally and the lost ones."""
        with self.lock:
            self.tally = tally = Tally()
        sent = 0
        fault = threading.Thread(target=halfway)
        while True:
            now = time.monotonic()
            with self.lock:
                waiting = dict(tally.open)
            lost = [number for number, (first, _) in waiting.items() if now - first > LOST_S]
            if len(lost) == len(waiting) and sent == count:
                break
            for _ in range(min(WINDOW - len(waiting), count - sent)):
                with self.lock:
                    tally.open[self.next] = (now, now)
                self._ask(self.next)
                self.next += 1
                sent += 1
                if sent == count // 3:
                    fault.start()
            for number, (first, last) in waiting.items():
                if now - last > AGAIN_S and self.client.is_connected():
                    with self.lock:
                        if number in tally.open:
                            tally.open[number] = (first, now)
                            tally.again += 1
                    self._ask(number)
            time.sleep(0.001)
        fault.join()
        # What is said twice comes soon after.
        time.sleep(1)
        return tally, lost


class Wire:
    """The network between daemon and broker, which cuts connections."""

    def __init__(self, to):
        self.port, self.to, self.writers = free_port(), to, []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        self.loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", self.port))
        self.loop.run_forever()

    async def _carry(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        self.writers = [writer, far_writer]
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    def cut(self):
        for writer in self.writers:
            self.loop.call_soon_threadsafe(writer.transport.abort)


def faults(site, wire):
    def restart():
        site.stop_broker()
        time.sleep(1)
        site.start_broker()

    def freeze():
        site.broker.send_signal(signal.SIGSTOP)
        time.sleep(15)
        site.broker.send_signal(signal.SIGCONT)

    def lose_session():
        thief = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="daemon-one", protocol=mqtt.MQTTv5)
        thief.connect("127.0.0.1", site.port, clean_start=True)
        thief.loop_start()
        wait_for("the thief is in", 10, thief.is_connected)
        thief.disconnect()
        thief.loop_stop()

    def cut():
        for _ in range(5):
            wire.cut()
            time.sleep(1.5)

    def kill():
        site.kill_daemon()
        time.sleep(1)
        site.start_daemon(port=wire.port)

    def outage():
        site.stop_broker()
        time.sleep(30)
        site.start_broker()

    return {
        "no fault": lambda: None,
        "broker restarts": restart,
        "broker frozen for 15 s": freeze,
        "session lost": lose_session,
        "connection cut 5 times": cut,
        "daemon killed": kill,
        "no broker for 30 s": outage,
    }


def main(binaries, count):
    failed = False
    row = "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}{:>8}"
    print(row.format("", "requests", "answered", "refused", "repeats", "re-sent", "lost", "s"), flush=True)
    with Site(binaries) as site:
        site.start_broker()
        wire = Wire(site.port)
        site.start_daemon(port=wire.port)
        client = Client(site, site.status()["node"])
        for name, fault in faults(site, wire).items():
            started = time.monotonic()
            tally, lost = client.run(count, fault)
            took = f"{time.monotonic() - started:.1f}"
            numbers = [count, tally.answered, tally.refused, tally.repeats, tally.again, len(lost), took]
            print(row.format(name, *numbers), flush=True)
            failed |= bool(lost) or tally.answered + tally.refused != count
        if failed:
            print((site.dir / "one/log").read_text()[-4000:], file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
