"""Labelling pairs by transformers' generate over labelling them by our vLLM engine, in seconds.

model.generate(max_new_tokens=1), on batches of prompts of similar length padded on the left, is compared with
VLLMEngine.label_pairs on real MMLU pairs with SmolLM2-135M, and on the organism; the engine also runs without prefix
sharing. The second baseline is the learner's own forward: Learner.label_pairs on packed trees, with common prefixes
once (`learner_over_vllm`; `rollout.engine=learner` labels so). Each side runs in a process of its own with the same
number of threads. Start-up is not counted, nor a first pass over cases of the same lengths with other tokens. On the
organism the fastest of five passes counts. All sides must give the same label logprobs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import Clock, child, compare_policies, make_cases, policy_folder, run_main
from introspect_ray.errors import UserError
from introspect_ray.records import TokenizedCase

NAME, GOAL = "rollouts", ">= 2"
TOLERANCE = 2e-3
SIDES = ("transformers", "learner", "vllm", "vllm_unshared")
BATCH = {"smollm2": 4, "organism": 64}  # the fastest for transformers, of 4, 8, 16 and 64, and of 32 to 256
COUNT = {"smollm2": 32, "organism": 512}
REPEATS = {"smollm2": 1, "organism": 5}


def generate_pairs(model: Any, batch: int, cases: Sequence[TokenizedCase]) -> list[list[float]]:
    """Label logprobs of x, then of x∖C, of each case, as one would write it with transformers."""
    import torch

    labels = [tuple(token for (token,) in case.label_tokens) for case in cases]
    prompts = [(side, ids) for case, ids in zip(cases, labels, strict=True) for side in (case.prompt, case.ablated)]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]))
    answers: dict[int, list[float]] = {}
    for start in range(0, len(prompts), batch):
        chosen = order[start : start + batch]
        part = [prompts[i] for i in chosen]
        width = max(len(prompt) for prompt, _ in part)
        tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt, _ in part])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in part])
        with torch.inference_mode():
            out = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logprobs = out.logits[0].float().log_softmax(-1)
        answers |= {i: row[list(prompts[i][1])].tolist() for i, row in zip(chosen, logprobs, strict=True)}
    return [answers[i] + answers[i + 1] for i in range(0, len(prompts), 2)]


def engine_pairs(engine: Any, cases: Sequence[TokenizedCase]) -> list[list[float]]:
    return [[*pair.cued_logprobs, *pair.ablated_logprobs] for pair in engine.label_pairs(cases)]


def learner_pairs(learner: Any, cases: Sequence[TokenizedCase]) -> list[list[float]]:
    return [[*pair.cued_logprobs, *pair.ablated_logprobs] for pair in learner.label_pairs(cases, 0)]


def other_tokens(case: TokenizedCase) -> TokenizedCase:
    """A case of the same lengths that shares no prefix with `case`; of another id, by which the learner keeps trees."""
    prompt, ablated = (tuple(max(token - 1, 0) for token in part) for part in (case.prompt, case.ablated))
    return replace(case, case_id=f"other {case.case_id}", prompt=prompt, ablated=ablated)


def measure(side: str, small: bool, threads: int) -> dict[str, Any]:
    """Seconds per pass over all cases, the label logprobs and, for vLLM, the share of prompt tokens from the cache."""
    policy = policy_folder(small)
    kind = "organism" if small else "smollm2"
    cases = make_cases(policy, small, COUNT[kind])
    engine = start_engine(policy, cases, threads, shared=side == "vllm") if side.startswith("vllm") else None
    if engine is not None:
        label = partial(engine_pairs, engine)
    elif side == "learner":
        label = partial(learner_pairs, start_learner(policy, cases, threads))
    else:
        label = partial(generate_pairs, start_model(policy, threads), BATCH[kind])
    label([other_tokens(case) for case in cases])
    before = engine.prompt_tokens if engine else None
    fastest = float("inf")
    for _ in range(REPEATS[kind]):
        clock = Clock()
        with clock:
            logprobs = label(cases)
        fastest = min(fastest, clock.wall)
    rate = (engine.prompt_tokens - before).hit_rate if engine else None
    return {"wall_s": fastest, "hit_rate": rate, "logprobs": logprobs}


def start_model(policy: str, threads: int) -> Any:
    import torch

    from introspect_ray.policy import load_model

    torch.set_num_threads(threads)
    return load_model(policy, torch.float32).eval()


def start_learner(policy: str, cases: Sequence[TokenizedCase], threads: int) -> Any:
    import torch

    from introspect_ray.config import RunConfig
    from introspect_ray.training.learner import Learner
    from introspect_ray.training.reference import build_reference

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference(policy, cases[:1], None, folder)  # a learner opens one; labelling reads none
        return Learner(RunConfig(), policy, reference, {case.case_id: case for case in cases})


def start_engine(policy: str, cases: Sequence[TokenizedCase], threads: int, shared: bool) -> Any:
    from introspect_ray.cases.tokenize import longest_sequence
    from introspect_ray.config import RolloutConfig
    from introspect_ray.engines.vllm_engine import VLLMEngine

    class Unshared(VLLMEngine):
        def _engine_args(self, *args: Any) -> dict[str, Any]:
            return super()._engine_args(*args) | {"enable_prefix_caching": False}

    rollout = RolloutConfig(threads=threads)
    return (VLLMEngine if shared else Unshared)(policy, rollout, longest_sequence(cases), "full", 32, 0)


def compare(small: bool, threads: int) -> dict[str, Any]:
    """All sides on one policy. Raises UserError where label logprobs differ by more than the tolerance."""
    flags = ["--threads", str(threads), *(["--small"] if small else [])]
    runs = {side: child(["-m", "benchmarks.rollouts", "--side", side, *flags]) for side in SIDES}
    seconds = {side: run["wall_s"] for side, run in runs.items()}
    for side in SIDES:
        print(f"{'organism' if small else 'SmolLM2'} {side:13} {seconds[side]:7.2f} s, hits {runs[side]['hit_rate']}")
        flat = [
            abs(a - b)
            for ours, theirs in zip(runs[side]["logprobs"], runs["transformers"]["logprobs"], strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ]
        if max(flat) > TOLERANCE:
            raise UserError(f"{side}: a label logprob differs from that of transformers by {max(flat):.1e}")
    return {
        "ratio": seconds["transformers"] / seconds["vllm"],
        "ratio_unshared": seconds["transformers"] / seconds["vllm_unshared"],
        "learner_over_vllm": seconds["learner"] / seconds["vllm"],
        "hit_rate": runs["vllm"]["hit_rate"],
        "seconds": seconds,
    }


if __name__ == "__main__":
    run_main(lambda: compare_policies(NAME, GOAL, __doc__, SIDES, measure, compare))
