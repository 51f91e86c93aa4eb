"""The engine's end of weight updates that go from GPU to GPU (NCCL, CUDA IPC), not through a Python call."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from introspect_ray.cases.probes import Probe
from introspect_ray.engines import checks
from introspect_ray.engines.versioned_engine import VersionedEngine
from introspect_ray.records import Delivery

_UNDER_WAY = "it is in the middle of a weight update"


class DeviceUpdates(VersionedEngine):
    """Adds to VersionedEngine the calls of vLLM's weight-transfer API, one by one, and the receipt at their end.

    From "start_weight_update" to `confirm` the weights belong to no version, and the engine answers nothing.
    """

    _transfer_began = 0.0

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError naming the first tensor whose name or shape is not that of the policy served here."""
        checks.check_shapes(shapes, self._expected, "weight transfer refused, nothing changed:")

    def transfer(self, call: str, kwargs: Mapping[str, Any]) -> None:
        """One call of vLLM's weight-transfer API on all workers. Any exception makes the engine unusable."""
        if self._unusable != _UNDER_WAY:
            self._require_usable()
        if call == "start_weight_update":
            self._transfer_began = time.perf_counter()
            self._unusable = _UNDER_WAY
        with self._unusable_on_error(f"{call} failed"):
            self._call_workers(call, dict(kwargs))

    def confirm(self, version: int, probe: Probe) -> Delivery:
        """Serve the transferred weights as `version` from now on; returns the receipt.

        Its fingerprints are of the tensors that arrived on the workers' devices; its probe is computed on the weights
        now served. Raises RuntimeError where the workers' receipts differ, or no update was under way.
        """
        if self._unusable != _UNDER_WAY:
            self._require_usable()
            raise RuntimeError(f"cannot confirm weight version {version}: no weight update was sent")
        with self._unusable_on_error(f"weight update to version {version} failed"):
            receipts = self._call_workers("take_receipt", {})
            received, size = receipts[0]
            if any(other != receipts[0] for other in receipts):
                raise RuntimeError(f"the workers of this engine received different tensors for version {version}")
            self._unusable = None
            self._serve(version)
            loaded = time.perf_counter()
            answers = self._probe(probe)
        seconds = {"load": loaded - self._transfer_began, "probe": time.perf_counter() - loaded, "fingerprint": 0.0}
        return Delivery(version, received, answers, seconds, size)

    @abstractmethod
    def _call_workers(self, call: str, kwargs: dict[str, Any]) -> list[Any]:
        """Call a method on all workers; returns what each of them returned."""

    @abstractmethod
    def _serve(self, version: int) -> None:
        """Take `version` as the version of all answers from now on."""
