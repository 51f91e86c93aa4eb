"""benchmarks.growth: whose memory is counted."""

import os
import subprocess
import sys

from benchmarks.growth import anonymous, grown

MIB = 1 << 20


def test_the_memory_of_a_process_and_of_those_below_it():
    program = f"x = bytearray({50 * MIB}); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        found = anonymous(os.getpid())
        assert [size > MIB for kind, size in found if kind == "driver"] == [True]
        assert any(50 * MIB < size < 80 * MIB for kind, size in found if kind == "other")
        assert [kind for kind, _ in anonymous(child.pid)] == ["driver"]
        child.communicate(b"\n")


def test_growth_is_that_of_our_own_processes():
    one = {"driver": 10.0, "RolloutWorker": 5.0, "other": 1.0, "Relabeler": 3.0}
    assert grown(one, {"driver": 11.0, "RolloutWorker": 5.0, "other": 9.0}) == {"driver": 1.1, "RolloutWorker": 1.0}
