"""torch's rendezvous in the processes of a Ray of one machine. A process each: it is changed for the whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import free_ports

RENDEZVOUS = """
import os, psutil, sys
from introspect_ray.engines.loopback import ALONE, keep_local
from torch import distributed
os.environ[ALONE], os.environ["GLOO_SOCKET_IFNAME"] = sys.argv[1], "lo"
keep_local()
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:" + sys.argv[2], rank=0, world_size=1)
distributed.barrier()
print(*sorted({one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"}))
"""


@pytest.mark.parametrize(("alone", "listens"), [("1", {"127.0.0.1"}), ("0", {"127.0.0.1", "::"})])
def test_where_a_rendezvous_listens(alone, listens):
    command = [sys.executable, "-c", RENDEZVOUS, alone, str(free_ports(1)[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= listens and (alone == "1" or "::" in done.stdout)
