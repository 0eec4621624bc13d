#!/bin/sh
# What scripts/test-deb does inside its container. Ends with the line "deb: all held".
set -eu
trap 'echo "FAILED"; systemctl status --no-pager --full tractd.service tractd.socket 2>&1 | tail -n 40; journalctl --no-pager -u tractd 2>&1 | tail -n 40' EXIT
say() { echo "deb: $*"; }

dpkg -i /test/tractd.deb >/dev/null
systemctl is-active --quiet tractd.socket
for _ in $(seq 100); do systemctl is-active --quiet tractd.service && break; sleep 0.1; done
systemctl is-active --quiet tractd.service
say "installed; the unit is active: $(systemctl show -p ActiveState --value tractd.service)"

useradd --system --groups tractd asker
useradd --system stranger
install -d -o tractd -g tractd /var/lib/tractd/models/digits
cp -r /test/digits/1 /var/lib/tractd/models/digits/1
chown -R tractd:tractd /var/lib/tractd/models
systemctl reload tractd.service
png=$(ls /test/digits/samples/*.png | head -n 1)
for _ in $(seq 100); do runuser -u asker -- tractctl infer digits --image "$png" >/dev/null 2>&1 && break; sleep 0.1; done
runuser -u asker -- tractctl infer digits --image "$png" --json >/tmp/answer
grep -q '"classes"' /tmp/answer
say "a member of the group is answered: $(head -c 160 /tmp/answer | tr -d '\n')"
if runuser -u stranger -- tractctl infer digits --image "$png" >/tmp/refused 2>&1; then
  say "a stranger was answered"
  exit 1
fi
say "a stranger is refused: $(head -n 1 /tmp/refused)"

cd /tmp
export TRACTD_KEY_PASSPHRASE='in the container only'
tractctl registry init /srv/registry --keys /srv/keys >/dev/null
tractctl pack /test/digits/2 -o /tmp/digits-2.tractd.tar.zst >/dev/null
tractctl registry add /tmp/digits-2.tractd.tar.zst --registry /srv/registry --keys /srv/keys >/dev/null
tractctl registry publish digits@2 --registry /srv/registry --keys /srv/keys >/dev/null
(umask 077; tractctl device provision --root /srv/registry/metadata/1.root.json --registry /srv/registry >/dev/null)
systemctl restart tractd.service
for _ in $(seq 100); do runuser -u asker -- tractctl infer digits --image "$png" --json 2>/dev/null | grep -q '"signed":true' && break; sleep 0.1; done
runuser -u asker -- tractctl infer digits --image "$png" --json >/tmp/answer
grep -q '"signed":true' /tmp/answer && grep -q '"version":2' /tmp/answer
say "provisioned: version 2, signed, pulled and proven under the unit's sandbox"

# A serial line, which the unit alone must not see, and with the drop-in does.
printf '[[gateway]]\npath = "/dev/ttyUSB0"\n' >/etc/tractd/tractd.toml
/test/serial-device /dev/ttyUSB0 digits "$png" >/tmp/line 2>&1 &
device=$!
for _ in $(seq 50); do [ -e /dev/ttyUSB0 ] && break; sleep 0.1; done
chgrp dialout "$(readlink /dev/ttyUSB0)"
chmod 660 "$(readlink /dev/ttyUSB0)"
systemctl restart tractd.service
sleep 2 # the line is tried every second
runuser -u asker -- tractctl status --json 2>/dev/null | grep -q '"open":false,"opened":0,'
install -D -m 644 /usr/share/doc/tractd/examples/serial-gateway.conf /etc/systemd/system/tractd.service.d/serial-gateway.conf
systemctl daemon-reload
systemctl restart tractd.service
wait "$device" || { cat /tmp/line; exit 1; }
digit=$(basename "$png" | cut -c 1)
[ "$(cat /tmp/line)" = "$digit" ]
say "a device on a serial line, with the drop-in and not without: it is a $(cat /tmp/line)"
rm -r /etc/systemd/system/tractd.service.d /etc/tractd/tractd.toml /dev/ttyUSB0
systemctl daemon-reload

systemctl restart tractd.service
systemctl is-active --quiet tractd.service
runuser -u asker -- tractctl infer digits --image "$png" >/dev/null
[ "$(systemctl show -p NRestarts --value tractd.service)" = 0 ]
systemctl stop tractd.service tractd.socket
[ "$(systemctl show -p Result --value tractd.service)" = success ]
say "stopped: $(systemctl show -p Result --value tractd.service), status $(systemctl show -p ExecMainStatus --value tractd.service)"
if journalctl --no-pager -u tractd -p warning | grep -v -e '-- No entries --' -e '^-- ' | grep -i -e seccomp -e 'not permitted'; then exit 1; fi

dpkg -r tractd >/dev/null
[ ! -e /usr/bin/tractd ] && [ ! -e /lib/systemd/system/tractd.service ] && [ -d /var/lib/tractd/models ]
say "removed; its state stays"
dpkg -P tractd >/dev/null 2>&1
[ ! -e /var/lib/tractd ] && [ ! -e /run/tractd ] && [ ! -e /etc/tractd ]
left=$(find / -xdev -name '*tractd*' -not -path '/proc/*' -not -path '/test*' -not -path '/srv/*' -not -path '/tmp/*' -not -path '/etc/systemd/system/tractd-test.service' -not -path '/var/lib/dpkg/*' -not -path '/sys/*' 2>/dev/null || true)
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
say "purged; nothing is left"
trap - EXIT
say "all held"
