"""How a local Ray starts. What listens then, and what its death does, is seen in tests/ray and tests/chaos."""

from __future__ import annotations

import os

import pytest
from ray._private import ray_constants

from introspect_ray.errors import Outage
from introspect_ray.runs.local_ray import _patiently, loopback


def test_the_switch_to_loopback_is_taken_back(monkeypatch):
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    for before in (None, "1"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        with pytest.raises(RuntimeError, match="busy"), loopback():
            from ray._private.services import get_node_ip_address

            assert get_node_ip_address() == "127.0.0.1" and os.environ[name] == "0"
            raise RuntimeError("busy")
        assert ray_constants.ENABLE_RAY_CLUSTER and os.environ.get(name) == before


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_start_that_takes_too_long_is_tried_again(failures, capsys):
    tried: list[int] = []

    def init() -> None:
        tried.append(len(tried))
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.\nLook at the logs.")  # as Ray does

    if failures < 3:
        _patiently(init)
    else:
        with pytest.raises(
            Outage, match=r"^Ray did not start on this machine, 3 times in a row: The current node timed"
        ):
            _patiently(init)
    assert len(tried) == min(failures + 1, 3)
    assert capsys.readouterr().err.count("warning: Ray did not start (The current node timed out") == min(failures, 2)
