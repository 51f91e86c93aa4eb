"""The records that travel between the parts: frozen, small, each with an example.

Nothing here computes. Terms are those of the paper (arXiv 2606.32038, table 1): a *case* is one
counterfactual input (x with a cue C, x without it, and the meta-question q), a *behaviour pair* is
what one policy version answers on both, and a *label* is the explanation built from such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True, slots=True)
class Case:
    """One counterfactual case as text.

    Example: Case("mmlu-17", ({"role": "user", "content": "2+2? (A) 3 (B) 4\\nHint: A"},),
    ({"role": "user", "content": "2+2? (A) 3 (B) 4"},), "If the hint were removed, ...?", ("A", "B")).
    """

    case_id: str
    messages: tuple[Message, ...]  # x, with the cue
    ablated_messages: tuple[Message, ...]  # x without the cue
    meta_question: str
    labels: tuple[str, ...]  # allowed behaviour labels, at least two


class Explanation(NamedTuple):
    """What an explanation says: (changed?, content). Content is y(x∖C). Example: (True, "B")."""

    changed: bool
    content: str


@dataclass(frozen=True, slots=True)
class TokenizedCase:
    """A case as token ids; `explanations` holds the target tokens (with end of turn) of all labels.

    Example: prompt (1, 7, 9), ablated (1, 7), question (1, 7, 9, 4), label_ids (10, 11),
    explanations {Explanation(False, "A"): (20, 10, 2), ...} with 2 * len(labels) entries.
    """

    case_id: str
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]  # one token id a label, same order as `labels`
    prompt: tuple[int, ...]  # x, up to and including the answer prefix
    ablated: tuple[int, ...]  # x∖C, likewise
    question: tuple[int, ...]  # q
    explanations: dict[Explanation, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class BehaviorPair:
    """y(x) and y(x∖C), sampled as one from one weight version (DESIGN: atomic counterfactual pairs).

    Logprobs are natural logs of the full-vocabulary softmax at the answer position, one a label.
    Example: BehaviorPair("mmlu-17", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, False, 3).
    """

    case_id: str
    cued: str
    ablated: str
    cued_logprobs: tuple[float, ...]
    ablated_logprobs: tuple[float, ...]
    cued_off_format: bool  # the full-vocabulary argmax is not an allowed label
    ablated_off_format: bool
    weight_version: int

    @property
    def explanation(self) -> Explanation:
        """The ground-truth explanation of this pair, E(M) (paper §2.1)."""
        return Explanation(self.cued != self.ablated, self.ablated)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a label comes from (SPEC §4). Both parents always carry the same weight version.

    `draw` is the uniform number in [0, 1) that decided (the ν draw, or the α mask); NaN for fixed.
    """

    rule: str  # "fixed" | "online" | "mixed"
    source_model: str  # the policy whose behaviour is the parent, e.g. "organism" or its second policy
    cued_version: int
    ablated_version: int
    seed: int
    step: int  # the training step that consumes it, under every rule; -1 for labels made outside training
    flipped: bool  # the ν draw replaced E(M_t) by a wrong label
    draw: float


@dataclass(frozen=True, slots=True)
class Label:
    """The supervision of one case at one step: an explanation and its provenance."""

    case_id: str
    explanation: Explanation
    current: Explanation | None  # E of the pair it was made from (the current policy's), if sampled
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Delivery:
    """An engine's receipt of one weight update: what it now serves.

    fingerprints: hex digest of the received tensors by group (engines/fingerprint.py). probe: label logprobs of
    the probe case on the weights now served, to be compared with the trainer's own forward. seconds: the engine's
    time by part: "load", "probe", "fingerprint".
    """

    version: int
    fingerprints: dict[str, str]
    probe: tuple[float, ...]
    seconds: dict[str, float]
    bytes: int


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one training step reports. Shares are fractions in 0..1 over the global batch.

    explanation_self and explanation_orig are of the explanation that is greedy among the valid ones (a walk over the
    label trie): what a policy would say unparseably does not count as wrong there. The evaluation generates freely.
    """

    step: int
    loss: float
    cross_entropy: float  # nats a target token
    kl: float  # nats a behaviour position, KL(M0 || M)
    grad_norm: float
    explanation_self: float  # share of cases whose valid explanation, token by token the likeliest, is E(M_t)
    explanation_orig: float  # the same against E(M0)
    behavior_em: float  # y(x) and y(x∖C) both as M0
    requested_agreement: float | None
    realised_at_labelling: float | None
    realised_at_consumption: float  # share of labels equal to E(M_t), read off the training forward
    engine_gap: float | None  # max |trainer - engine| label logprob, same case and version (lag 0)
    off_format: float | None  # share of the sampled answers (two a pair) whose likeliest token is no allowed label
    prefix_hit_rate: float | None  # share of the prompt tokens of the rollouts that came from vLLM's prefix cache
    lag: int  # step - weight version of the labels' parents; fixed and mixed: the step, their parents are of version 0
    trainer_idle_s: float
    rollout_idle_s: float
    relabeler_idle_s: float
    step_s: float


@dataclass(frozen=True)
class StepLabels:
    """One rank's labels of a step, with what the relabeler measured on the whole step.

    `pairs` are the behaviour pairs the labels were made from, of this rank's shard (empty if fixed).
    """

    labels: Sequence[Label]
    pairs: Sequence[BehaviorPair]
    realised_agreement: float | None  # share of the step's labels equal to E of their pair
    off_format: float | None  # share of the step's answers whose likeliest token is no allowed label
    prefix_hit_rate: float | None  # share of the prompt tokens that the engines had in their prefix cache
    rollout_s: float  # of the engines
    rollout_idle_s: float
    relabeler_idle_s: float
