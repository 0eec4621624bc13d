"""Reads a registry with python-tuf: BASE_URL ROOT CLIENT_DIR TARGET... Prints each target and its length."""

import os
import sys

from tuf.ngclient import Updater

base, root, client, *targets = sys.argv[1:]
os.makedirs(f"{client}/metadata", exist_ok=True)
os.makedirs(f"{client}/targets", exist_ok=True)
updater = Updater(
    f"{client}/metadata",
    f"{base}/metadata/",
    f"{client}/targets",
    f"{base}/targets/",
    bootstrap=open(root, "rb").read(),
)
updater.refresh()
for target in targets:
    info = updater.get_targetinfo(target)
    if info is None:
        sys.exit(f"no role names {target}")
    print(target, os.path.getsize(updater.download_target(info)))
