"""Transfers by vLLM's own API, run by test_vllm_engine.py in a process of their own (see vllm_engine_checks.py)."""

from __future__ import annotations

import pytest
from engine_tiny import reference_logprobs, state
from vllm_engine_checks import CASES, ROLLOUT, Served, assert_delivery, assert_serves

from introspect_ray.cases.probes import case_item
from introspect_ray.engines import make_engine
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate


class Held:
    """What a sender asks of a learner: names and shapes, and the tensors one by one."""

    def __init__(self, tensors):
        self.tensors = tensors

    def described(self):
        return [(name, t.dtype, tuple(t.shape)) for name, t in self.tensors.items()]

    def stream(self):
        return iter(self.tensors.items())


class TestTransfer(Served):
    """The receipts of vLLM's own transports and the calls that a trainer drives them by, on tensors handed over in
    place of NCCL's: what comes out of the transport is loaded, digested and confirmed by the same code."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        from introspect_ray.engines import vllm_receiver

        class Transport(vllm_receiver.NCCLWeightTransferEngine):
            """vLLM's own, but that the tensors come with the call."""

            init_info_cls, update_info_cls = vllm_receiver.InitInfo, vllm_receiver.UpdateInfo

            def init_transfer_engine(self, init_info):
                pass

            def update_weights(self, update_info):
                self.receive_weights(self.parse_update_info(update_info))  # no accelerator to wait for

            def receive_weights(self, update_info):
                self.model.load_weights(list(update_info.weights.items()))

        class Handed(vllm_receiver._Receipts, Transport):
            """NCCLReceiver with that transport."""

        WeightTransferEngineFactory.register_engine("handed", Handed)
        vllm_receiver.DEVICE_BACKENDS["nccl"] = "handed"
        rollout = ROLLOUT.model_copy(update={"weight_transfer": "nccl"})
        engine = make_engine(rollout, policy, max_model_len=192, method="full", lora_rank=4, seed=0)
        yield engine
        engine.close()

    def test_a_transfer_serves_the_new_weights_and_says_so(self, engine, policy):
        engine.transfer("init_weight_transfer_engine", {"init_info": {}})
        for version in (1, 2):
            moved = state(policy, seed=version, scale=0.1)
            engine.check_shapes({name: tuple(t.shape) for name, t in moved.items()})
            engine.transfer("start_weight_update", {})
            with pytest.raises(RuntimeError, match="in the middle of a weight update"):
                engine.label_pairs(CASES)  # of no version
            for name in moved:
                engine.transfer("update_weights", {"update_info": {"weights": {name: moved[name]}}})
            engine.transfer("finish_weight_update", {})
            update = WeightUpdate(version, "full", moved, (case_item(CASES[0]),))
            delivery = engine.confirm(version, update.probe)
            assert_delivery(delivery, update, lambda prompts, moved=moved: reference_logprobs(policy, moved, prompts))
            assert_serves(engine, CASES, lambda prompts, moved=moved: reference_logprobs(policy, moved, prompts))

    def test_another_policy_is_refused_before_anything_changes(self, engine, policy):
        shapes = {name: tuple(t.shape) for name, t in state(policy).items()}
        with pytest.raises(ValueError, match=r"nothing changed: lm_head.weight \[64, 64\] is missing"):
            engine.check_shapes({name: shape for name, shape in shapes.items() if name != "lm_head.weight"})
        engine.label_pairs(CASES)

    def test_the_source_is_what_vllm_expects_and_has_the_same_fingerprints(self, policy):
        """vLLM's NCCL sender reads metadata() and iteration, and holds one against the other."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        from introspect_ray.engines.fingerprint import grouped
        from introspect_ray.engines.vllm_sender import LearnerSource

        tensors = state(policy)
        source = LearnerSource(Held(tensors), rank=0)
        sent = dict(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
        assert list(sent) == list(tensors) and grouped(source.digests) == fingerprints(tensors)
        other = LearnerSource(Held(tensors), rank=1)
        assert len(list(other)) == len(tensors) and other.digests == {}

    def test_a_failed_transfer_makes_the_engine_unusable(self, engine):
        """Last."""
        engine.transfer("start_weight_update", {})
        with pytest.raises(ValueError, match="Invalid update_info"):
            engine.transfer("update_weights", {"update_info": {"names": []}})
        with pytest.raises(RuntimeError, match=r"update_weights failed.*Replace the engine"):
            engine.label_pairs(CASES)
