"""The engine's end of a weight update that does not pass through the process that asks for it (NCCL, CUDA IPC)."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from introspect_ray.engines import checks
from introspect_ray.engines.common import BaseEngine
from introspect_ray.records import Delivery, TokenizedCase

_UNDER_WAY = "it is in the middle of a weight update"


class DeviceUpdates(BaseEngine):
    """Adds to BaseEngine the calls of vLLM's weight-transfer API one by one, and the receipt at their end.

    From "start_weight_update" until `confirm` the weights are of no version, and nothing is answered.
    """

    _transfer_began = 0.0

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError naming the first name or shape in which a policy is not the one served here."""
        checks.check_shapes(shapes, self._expected, "weight transfer refused, nothing changed:")

    def transfer(self, call: str, kwargs: Mapping[str, Any]) -> None:
        """One call of vLLM's weight-transfer API on all workers; whatever it raises makes the engine unusable."""
        if self._unusable != _UNDER_WAY:
            self._require_usable()
        if call == "start_weight_update":
            self._transfer_began = time.perf_counter()
            self._unusable = _UNDER_WAY
        with self._unusable_on_error(f"{call} failed"):
            self._call_workers(call, dict(kwargs))

    def confirm(self, version: int, probe: TokenizedCase) -> Delivery:
        """Serve what was transferred as `version` from now on, with its receipt: fingerprints of the tensors as each
        worker's device received them, and the probe on what is served. Raises RuntimeError where workers disagree, or
        no update was under way."""
        if self._unusable != _UNDER_WAY:
            self._require_usable()
            raise RuntimeError(f"asked to confirm weight version {version}, but no update was sent")
        with self._unusable_on_error(f"weight update to version {version} failed"):
            receipts = self._call_workers("take_receipt", {})
            received, size = receipts[0]
            if any(other != receipts[0] for other in receipts):
                raise RuntimeError(f"the workers of one engine received different tensors for version {version}")
            self._unusable = None
            self._serve(version)
            loaded = time.perf_counter()
            answers = self._probe(probe)
        seconds = {"load": loaded - self._transfer_began, "probe": time.perf_counter() - loaded, "fingerprint": 0.0}
        return Delivery(version, received, answers, seconds, size)

    @abstractmethod
    def _call_workers(self, call: str, kwargs: dict[str, Any]) -> list[Any]:
        """The answers of all workers."""

    @abstractmethod
    def _serve(self, version: int) -> None:
        """Answers are of `version` from now on."""
