"""Free text judged by a local policy: two pools of real vLLM engines, the one asks the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.judges import LLMJudge, Reply
from introspect_ray.organism import FOLDER
from introspect_ray.policy import local_policy
from introspect_ray.records import Message

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LENGTH = 2
INSTRUCTION = "{prompt}\nHint: {response}\nA B C D"


def free_cases(path: Path, count: int) -> str:
    """The first training cases of the organism, answered in free text and judged."""
    rows = [json.loads(line) for line in (FOLDER / "train.jsonl").read_text().splitlines()[:count]]
    for row in rows:
        row["response"] = {"kind": "free", "judge": "llm", "max_tokens": LENGTH}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Transformers:
    """The organism by transformers' own generate, one prompt at a time."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = str(local_policy("organism"))
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()

    def greedy(self, prompt: Sequence[int], length: int) -> str:
        import torch

        with torch.no_grad():
            out = self.model.generate(torch.tensor([list(prompt)]), max_new_tokens=length, do_sample=False)
        return self.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)

    def complete(self, chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        ids = [
            self.tokenizer.apply_chat_template(list(c), add_generation_prompt=True, return_dict=False) for c in chats
        ]
        return [self.greedy(prompt, max_tokens) for prompt in ids]


def test_verdicts_of_a_local_policy_are_those_of_transformers(tmp_path: Path) -> None:
    import ray

    from introspect_ray.actors.rollout import Serving
    from introspect_ray.runs.cluster import connect
    from introspect_ray.runs.judging import judging_key, start_judging
    from introspect_ray.runs.preflight import prepare
    from introspect_ray.runs.setup import start_pool

    (tmp_path / "instruction.txt").write_text(INSTRUCTION)
    judge = {"kind": "llm", "policy": "organism", "instruction": str(tmp_path / "instruction.txt"), "max_unjudged": 1}
    judge["labels"] = ["A", "B", "C", "D"]
    task = {"name": "jsonl", "path": free_cases(tmp_path / "cases.jsonl", 64), "train_cases": 16, "test_cases": 4}
    flat = {f"judge.{key}": value for key, value in judge.items()} | {f"task.{key}": v for key, v in task.items()}
    cfg = load_config(None, {**flat, "output_dir": str(tmp_path / "run"), "tracking.backend": "none"})
    connect(cfg)
    try:
        prepared = prepare(cfg)
        tokens, judging = prepared.tokens_of(cfg.policy), start_judging(cfg, prepared)
        pool = start_pool(cfg, cfg.policy, tokens, 1, [ray.put(prepared.train)], judging)
        pairs = pool.label_now(prepared.train.case_ids, Serving())
        judged, identity = pool.take_judged(), judging.identity
        assert judging_key(cfg, prepared) == judging.key
        again = pool.label_now(prepared.train.case_ids, Serving())
    finally:
        ray.shutdown()
    assert again == pairs and len({pair.cued for pair in pairs}) > 1
    assert (judged.identity, judged.replies) == (identity, 2 * 16) and identity.startswith("llm:organism:")
    plain = Transformers()
    sides = [prompt for case in prepared.train for prompt in (case.prompt, case.ablated)]
    shown = [plain.tokenizer.decode(list(prompt), skip_special_tokens=True) for prompt in sides]
    replies = [
        Reply("c", ({"role": "user", "content": text},), plain.greedy(prompt, LENGTH))
        for text, prompt in zip(shown, sides, strict=True)
    ]
    verdicts = LLMJudge(plain.complete, tuple(judge["labels"]), INSTRUCTION).verdicts(replies)
    labels = [label for pair in pairs for label in (pair.cued, pair.ablated)]
    assert labels == [verdict.label or "D" for verdict in verdicts]
    assert judged.unjudged == sum(verdict.label is None for verdict in verdicts)
