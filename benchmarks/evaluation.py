"""Held-out cases evaluated per second: our engine over vLLM's own offline `generate` on the same prompts.

To evaluate a case is to read the labels of x and of x∖C, and its explanation. The baseline is what one would write with
`vllm.LLM`: the logprobs of the labels after every x and x∖C, and a greedy explanation after every q, either in one call
per kind or with the three prompts of a case side by side in a single call; the faster of the two counts. It has vLLM's
own block size, scheduling and compiled kernels, the same threads in the same one process, and a KV cache of 1 GiB
against our 128 MiB. Ours are eval.decode=trie, whose x, x∖C and q share the cache and which decodes what decides alone
(the ratio), and eval.decode=free, the default (`ratio_free`). Each side runs in a process of its own. Start-up and
compilation are not counted, nor a first pass over cases of the same lengths with other tokens.

All sides must give the same label logprobs, free generation the same explanations, and the walk the same as free
generation wherever that keeps to the form (`in_form` of the cases).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from benchmarks.common import Clock, child, compare_policies, make_cases, policy_folder, run_main
from introspect_ray.cases.tokenize import longest_sequence, max_explanation_tokens
from introspect_ray.errors import UserError
from introspect_ray.records import TokenizedCase

NAME, GOAL = "evaluation", ">= 1.5"
SIDES = ("vllm", "free", "trie")
ORDERS = {"by_kind": False, "by_case": True}
TOLERANCE, ALIKE = 2e-3, 0.99  # nats of a label's logprob; share of equal explanations, as near-ties may turn
BASELINE_CACHE = 1 << 30
COUNT = {"smollm2": 32, "organism": 512}
REPEATS = {"smollm2": 2, "organism": 5}


class Found(NamedTuple):
    """Per case the label logprobs of x and of x∖C, and the tokens of the explanation."""

    logprobs: list[list[float]]
    said: list[list[int]]


Evaluate = Callable[[Sequence[TokenizedCase]], Found]


def other_tokens(case: TokenizedCase) -> TokenizedCase:
    """A case of the same lengths that shares no prefix with `case`."""
    prompt, ablated, question = (
        tuple(max(token - 1, 0) for token in part) for part in (case.prompt, case.ablated, case.question)
    )
    return replace(case, prompt=prompt, ablated=ablated, question=question)


def start_vllm(policy: str, cases: Sequence[TokenizedCase], threads: int) -> dict[str, Evaluate]:
    """vLLM's own LLM, which is given all prompts at once, in either order."""
    from introspect_ray.engines.checks import eos_token_ids
    from introspect_ray.engines.vllm_start import set_environment

    set_environment(threads)
    import torch

    torch.set_num_threads(threads)
    from vllm import LLM

    llm = LLM(
        policy,
        skip_tokenizer_init=True,
        generation_config="vllm",
        dtype="float32",
        max_model_len=longest_sequence(cases) + 1,
        kv_cache_memory_bytes=BASELINE_CACHE,
    )
    eos = list(eos_token_ids(policy))
    return {name: partial(evaluate_by_vllm, llm, eos, by_case) for name, by_case in ORDERS.items()}


def evaluate_by_vllm(llm: Any, eos: list[int], by_case: bool, cases: Sequence[TokenizedCase]) -> Found:
    from vllm import SamplingParams

    def generated(prompts: Sequence[tuple[Sequence[int], Any]]) -> list[Any]:
        inputs = [{"prompt_token_ids": list(prompt)} for prompt, _ in prompts]
        return [out.outputs[0] for out in llm.generate(inputs, [params for _, params in prompts], use_tqdm=False)]

    greedy = {"temperature": 0.0, "detokenize": False}
    ids = [[token for (token,) in case.label_tokens] for case in cases]
    label = [SamplingParams(max_tokens=1, logprob_token_ids=its, **greedy) for its in ids]
    lengths = map(max_explanation_tokens, cases)
    explain = [SamplingParams(max_tokens=length, stop_token_ids=eos, **greedy) for length in lengths]
    kinds = [
        list(zip([case.prompt for case in cases], label, strict=True)),
        list(zip([case.ablated for case in cases], label, strict=True)),
        list(zip([case.question for case in cases], explain, strict=True)),
    ]
    llm.reset_prefix_cache()
    if by_case:
        answers = generated(list(chain.from_iterable(zip(*kinds, strict=True))))
        cued, ablated, said = answers[0::3], answers[1::3], answers[2::3]
    else:
        cued, ablated, said = (generated(kind) for kind in kinds)
    read = [
        [side.logprobs[0][token].logprob for side in sides for token in its]
        for sides, its in zip(zip(cued, ablated, strict=True), ids, strict=True)
    ]
    return Found(read, [[token for token in one.token_ids if token not in eos] for one in said])


def start_ours(policy: str, cases: Sequence[TokenizedCase], threads: int, decode: str) -> tuple[Any, Evaluate]:
    """Our engine, which is asked group by group as a pool asks it."""
    from introspect_ray.config import RolloutConfig
    from introspect_ray.engines import make_engine

    rollout = RolloutConfig(threads=threads)
    engine = make_engine(rollout, policy, max_model_len=longest_sequence(cases) + 1)

    def group(cases: Sequence[TokenizedCase]) -> tuple[Sequence[Any], Sequence[Any]]:
        if decode == "trie":
            return engine.label_and_explain(cases)
        length = max(map(max_explanation_tokens, cases))
        return engine.label_pairs(cases), engine.generate([case.question for case in cases], length)

    def evaluate(cases: Sequence[TokenizedCase]) -> Found:
        size = rollout.bulk_group
        groups = [group(cases[start : start + size]) for start in range(0, len(cases), size)]
        pairs, said = ([one for part in parts for one in part] for parts in zip(*groups, strict=True))
        return Found([[*pair.cued_logprobs, *pair.ablated_logprobs] for pair in pairs], [list(ids) for ids in said])

    return engine, evaluate


def measure(side: str, small: bool, threads: int) -> dict[str, Any]:
    """Seconds of the fastest pass over all cases by order of the prompts, what was found, and for our engine the share
    of prompt tokens that its cache held."""
    policy, kind = policy_folder(small), "organism" if small else "smollm2"
    cases = make_cases(policy, small, COUNT[kind])
    engine = None
    if side == "vllm":
        ways = start_vllm(policy, cases, threads)
    else:
        engine, evaluate = start_ours(policy, cases, threads, side)
        ways = {"by_case": evaluate}
    for evaluate in ways.values():
        evaluate([other_tokens(case) for case in cases])
    before = engine.prompt_tokens if engine else None
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(REPEATS[kind]):
        for name, evaluate in ways.items():
            clock = Clock()
            with clock:
                found = evaluate(cases)
            seconds[name] = min(seconds[name], clock.wall)
    rate = (engine.prompt_tokens - before).hit_rate if engine else None
    return {"seconds": seconds, "hit_rate": rate, **found._asdict()}


def check(cases: Sequence[TokenizedCase], runs: dict[str, dict[str, Any]]) -> float:
    """The share of cases that the baseline explains in the form. Raises UserError where sides find different things."""
    base = runs["vllm"]
    valid = [{tuple(tokens[:-1]) for tokens in case.explanations.values()} for case in cases]
    form = [row for row, said in enumerate(base["said"]) if tuple(said) in valid[row]]
    for side, run in runs.items():
        pairs = zip(chain(*run["logprobs"]), chain(*base["logprobs"]), strict=True)
        if (apart := max(abs(a - b) for a, b in pairs)) > TOLERANCE:
            raise UserError(f"{side}: a label logprob differs from that of vLLM's own engine by {apart:.1e}")
        rows = form if side == "trie" else range(len(cases))
        alike = sum(run["said"][row] == base["said"][row] for row in rows)
        if alike < ALIKE * len(rows):
            raise UserError(f"{side}: {alike} of {len(rows)} explanations are those of vLLM's own engine")
    return len(form) / len(cases)


def compare(small: bool, threads: int) -> dict[str, Any]:
    """All sides on one policy."""
    flags = ["--threads", str(threads), *(["--small"] if small else [])]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    runs = {side: child(["-m", f"benchmarks.{NAME}", "--side", side, *flags], quiet) for side in SIDES}
    cases = make_cases(policy_folder(small), small, COUNT["organism" if small else "smollm2"])
    in_form = check(cases, runs)
    rates = {side: {name: len(cases) / s for name, s in run["seconds"].items()} for side, run in runs.items()}
    for side in SIDES:
        print(f"{'organism' if small else 'SmolLM2'} {side:5} cases/s: {rates[side]}", flush=True)
    best = {side: max(rates[side].values()) for side in SIDES}
    hits = {side: runs[side]["hit_rate"] for side in ("free", "trie")}
    ratios = {"ratio": best["trie"] / best["vllm"], "ratio_free": best["free"] / best["vllm"]}
    return {**ratios, "cases_s": rates, "hit_rate": hits, "in_form": in_form}


if __name__ == "__main__":
    run_main(lambda: compare_policies(NAME, GOAL, __doc__, SIDES, measure, compare))
