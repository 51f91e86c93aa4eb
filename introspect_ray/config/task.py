"""The configuration of a task: its cases, its split, and the wording of explanations."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TaskConfig(BaseModel):
    """Which cases are explained, and which of them are held out for the evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: str = "organism"
    """organism (bundled), hint_mmlu, aita, refusal, jsonl (your own cases), jabberwocky (generated), a public set
    (docs/tasks.md), or a task that an installed package registers."""
    path: str | None = None
    """Training cases, a local file (jsonl: cases; else rows of the set; of public sets a folder of such files too).
    null: the set is read from `hub_id`."""
    test_path: str | None = None
    """File of held-out cases; null: `test_fraction` of the cases in `path` is held out."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Share of the cases to hold out where there is no `test_path`."""
    train_cases: int | None = Field(None, ge=1)
    """Most training cases to keep, chosen by `seed`; null: all."""
    test_cases: int | None = Field(None, ge=1)
    """Most held-out cases to keep, chosen by `seed`; null: all."""
    max_tokens: int | None = Field(None, ge=1)
    """Leave out the cases whose question q (x and the meta-question, in `policy`'s chat template, without `shots`) has
    more tokens than this; null: none. It comes before the split and before `train_cases` and `test_cases` choose."""
    balance: str | None = None
    """Hold out as many cases of one value as of another; those too many, chosen by `seed`, are left out. The values are
    those of this key of the cases' metadata (aita: verdict), or M0's answers without the cue, in a Parquet file
    (evaluation/*.parquet, or a label set: case_id, ablated) or a folder of them; null: as they come."""
    hub_id: str | None = None
    """Data set on the Hugging Face Hub that is read where `path` is null ("owner/name:PATTERN" takes the files of that
    pattern alone); null: the task's own, where it has one."""
    wording: Literal["short", "sentence"] = "short"
    """hint_mmlu, jabberwocky: wording of the hint, `Hint: A` or the sentence "I think the answer is (A) but ..."."""
    cue: Literal["instruction", "person"] = "instruction"
    """aita: the system prompt that is the cue. instruction: "Read the following situation ..." (paper §B.4); person:
    one that says whether the user or somebody else wrote the post (§3.1)."""
    roles: str | None = None
    """refusal: a YAML file {refuse: [...], comply: [...]} of system prompts that give the user a role; null: the
    bundled ones."""
    response_tokens: int = Field(64, ge=1)
    """refusal: most tokens of a response, on which the judge decides."""
    seed: int = 0
    """Seed of the task: the hinted letter (hint_mmlu), the role (refusal), the questions (jabberwocky), the split, and
    the choice of `train_cases` and `test_cases`."""
    answer_prefix: str = ""
    """Text that starts the assistant's turn before the label, e.g. "(". It helps policies that answer off-format."""
    explanation: Literal["own", "paper"] = "own"
    """Wording of explanations. own: "The response would change to A." and "... would not change from A."; paper: "...
    would not change to A." (§2.1)."""
    changed: str | None = None
    """Sentence of an explanation where the answer changes, with one {label}, in any language; null: what the case file
    says, or by `explanation`."""
    unchanged: str | None = None
    """Likewise where it does not change."""
    meta_question: str | None = None
    """The question after a prompt that asks for the explanation; null: the task's own, or what the case file says."""
    label_names: dict[str, str] = {}
    """How labels are written in explanations, where not as they are: {YTA: "you are in the wrong"}."""
    calibration: Literal["none", "contextual"] = "none"
    """contextual: the answer is the argmax of a label's logprob minus M0's mean logprob of that label over the training
    cases, for x and x∖C apart. Small policies answer one letter nearly always without it. Of labels with several tokens
    it compares the whole logprobs; without it they are read token by token, greedily, which may differ."""
    shots: int = Field(0, ge=0)
    """evaluate: explained training cases before each meta-question, to prompt an untrained policy (paper fig. 11)."""
