"""The files that a small Ceph cluster needs: one monitor, one store of objects in memory, one S3 gateway.

Pure text from addresses and keys. Everything named in them lies in the server's own folder.
"""

from __future__ import annotations

import base64
import os
import struct
import time
from pathlib import Path

MONITOR, OBJECTS, GATEWAY, ADMIN = "mon.a", "osd.0", "client.rgw", "client.admin"
_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    ADMIN: {"mon": "allow *", "osd": "allow *", "mds": "allow *", "mgr": "allow *"},
    OBJECTS: {"mon": "allow profile osd", "osd": "allow *"},
    GATEWAY: {"mon": "allow rw", "osd": "allow rwx"},
}


def configuration(folder: Path, *, cluster_id: str, monitor_address: str, gateway_port: int) -> str:
    """The text of ceph.conf for all daemons and tools. `monitor_address` is as Ceph writes it, `v2:127.0.0.1:1234`."""
    return f"""\
[global]
fsid = {cluster_id}
mon initial members = a
mon host = [{monitor_address}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/keyring
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
run dir = {folder}/run
pid file = {folder}/run/$name.pid
crash dir = {folder}/crash
# No way in but the ports on loopback; the path of a socket may also be longer than the kernel takes.
admin socket =
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
# One copy, in memory, on one host: nothing here outlives the server.
osd objectstore = memstore
memstore device bytes = 8589934592
osd crush chooseleaf type = 0
osd crush initial weight = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
# An answer in two packets would wait 40 ms for an acknowledgement.
rgw frontends = beast endpoint=127.0.0.1:{gateway_port} tcp_nodelay=1
rgw enable apis = s3
"""


def keyring() -> str:
    """The text of a keyring with a new key for each daemon and for the tools that set them up."""
    entities = []
    for name, capabilities in _CAPABILITIES.items():
        lines = [f"[{name}]", f"\tkey = {_new_key()}"]
        lines += [f'\tcaps {service} = "{allowed}"' for service, allowed in capabilities.items()]
        entities.append("\n".join(lines))
    return "\n".join(entities) + "\n"


def _new_key() -> str:
    # Ceph's CryptoKey: type 1 (AES), seconds and nanoseconds of its making, length, secret.
    secret = os.urandom(16)
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, len(secret)) + secret).decode()
