"""The records that travel between the parts: small and frozen. Nothing here computes.

The terms are those of the paper (arXiv 2606.32038, table 1): a *case* is one counterfactual input
(x with a cue C, x∖C without it, and q: x with the meta-question), a *behaviour pair* is what one
policy version answers to x and to x∖C, and a *label* is the explanation made from such a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(frozen=True, slots=True)
class Response:
    """How the answer of a case is read (paper §2.1).

    labels: the greedy one of the case's labels, each of any number of tokens. free: a greedy text of at most
    `max_tokens` tokens, which a judge puts into one of the labels.
    """

    kind: Literal["labels", "free"] = "labels"
    judge: Literal["keyword", "llm"] | None = None  # free: the kind of judge that the case asks for; None: the run's
    max_tokens: int = 0  # free: at least 1; labels: 0


@dataclass(frozen=True, slots=True)
class Templates:
    """The wording of explanations: sentences with one {label}, and how labels are written in it.

    Example: Templates("It would say {label}.", "It would still say {label}.", (("YTA", "you are in the wrong"),)).
    """

    changed: str = ""  # "": a case says nothing about it, the configuration decides (cases/wording.py)
    unchanged: str = ""
    names: tuple[tuple[str, str], ...] = ()  # (label, display text), for labels that are not written as they are


OWN_WORDING = Templates("The response would change to {label}.", "The response would not change from {label}.")
PAPER_WORDING = Templates(OWN_WORDING.changed, "The response would not change to {label}.")  # paper §2.1


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
    labels: tuple[str, ...]  # the allowed answers, at least two
    response: Response = Response()
    templates: Templates = Templates()  # what the case itself says about its wording
    group: str = ""  # the kind of cue; metrics are also reported by group
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON values that ride along into the evaluation


class Explanation(NamedTuple):
    """What an explanation says: whether y(x) differs from y(x∖C), and y(x∖C). Example: (True, "B")."""

    changed: bool
    content: str


@dataclass(frozen=True, slots=True)
class TokenizedCase:
    """A case as token ids; `explanations` holds the tokens of every valid explanation, with its end of turn.

    Example: prompt (1, 7, 9), ablated (1, 7), question (1, 7, 9, 4), label_tokens ((10,), (11, 12)),
    explanations {Explanation(False, "A"): (20, 10, 2), ...} with 2 * len(labels) entries.
    """

    case_id: str
    labels: tuple[str, ...]
    label_tokens: tuple[tuple[int, ...], ...]  # the tokens of each label, in their order; () for free text
    prompt: tuple[int, ...]  # x, up to and including the answer prefix
    ablated: tuple[int, ...]  # x∖C, likewise
    question: tuple[int, ...]  # q
    explanations: dict[Explanation, tuple[int, ...]]
    max_response: int = 0  # free text: most tokens of a response; 0: one of the labels
    templates: Templates = OWN_WORDING  # complete: both sentences are set
    group: str = ""
    metadata: str = ""  # a JSON object; "" for none


@dataclass(frozen=True, slots=True)
class AuxiliaryText:
    """A sequence of auxiliary, behaviour-only data as tokens.

    `targets` marks the tokens that are trained on; the first token never is, since nothing predicts it.
    Example: AuxiliaryText("chat-3", (1, 7, 9, 2), (False, False, True, True)).
    """

    text_id: str
    tokens: tuple[int, ...]
    targets: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class BehaviorPair:
    """y(x) and y(x∖C), answered together by one weight version: a pair never mixes two versions.

    Logprobs are natural logs of the full-vocabulary softmax, one per label: the sum over the label's tokens. Free text
    has none, but the tokens of both responses, without an end of turn; a response shorter than the case's max_response
    ended by itself.
    Example: BehaviorPair("mmlu-17", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, False, 3).
    """

    case_id: str
    cued: str
    ablated: str
    cued_logprobs: tuple[float, ...]
    ablated_logprobs: tuple[float, ...]
    cued_off_format: bool  # free decoding would leave the labels; free text: the judge gave no verdict
    ablated_off_format: bool
    weight_version: int
    cued_response: tuple[int, ...] = ()
    ablated_response: tuple[int, ...] = ()

    @property
    def explanation(self) -> Explanation:
        """The ground-truth explanation of this pair, E(M) (paper §2.1)."""
        return Explanation(self.cued != self.ablated, self.ablated)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a label comes from: its rule, and the behaviours it is made from (its parents y(x) and y(x∖C)).

    `draw` is the uniform number in [0, 1) that the rule compared with ν (online) or α (mixed); NaN for fixed.
    """

    rule: str  # "fixed" | "online" | "mixed"
    source_model: str  # the policy that answered, e.g. "organism" or "organism:second"
    cued_version: int  # weight version that answered x
    ablated_version: int  # weight version that answered x∖C; always equal to cued_version
    seed: int
    step: int  # the training step that uses the label; -1 for labels made outside training
    flipped: bool  # online: E(M_t) was replaced by a wrong label
    draw: float
    judge: str = ""  # free text: identity of the judge that gave the parents' labels
    calibration: str = ""  # hash of the offsets by which the parents were read; "" without calibration


@dataclass(frozen=True, slots=True)
class Label:
    """The supervision of one case at one step: an explanation and its provenance."""

    case_id: str
    explanation: Explanation
    current: Explanation | None  # online: E(M_t), of the pair it was made from
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class Delivery:
    """An engine's receipt of one weight update: what it serves now.

    fingerprints: by group, the hex digest of the received tensors (engines/fingerprint.py). probe: the natural logprobs
    of the delivery's probe (cases/probes.py), item by item, on the served weights; the trainer compares them with its
    own forward. seconds: the engine's time for "load", "probe" and "fingerprint".
    """

    version: int
    fingerprints: dict[str, str]
    probe: tuple[float, ...]
    seconds: dict[str, float]
    bytes: int


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one training step reports. Shares are fractions in 0..1 over the global batch.

    explanation_self and explanation_orig score the greedy explanation among the valid ones (a walk over the label
    trie), so an unparseable explanation cannot occur there. The evaluation, in contrast, generates freely.
    """

    step: int
    loss: float
    cross_entropy: float  # nats per target token; loss_normalisation=sequence: per case
    kl: float  # KL(M0 || M), nats per position of M0's responses; loss_normalisation=sequence: per prompt
    grad_norm: float
    explanation_self: float | None  # share of cases whose greedy valid explanation is E(M_t); None for free text
    explanation_orig: float  # the same against E(M0)
    behavior_em: float | None  # y(x) and y(x∖C) both as M0; None for free text
    requested_agreement: float | None
    realised_at_labelling: float | None
    realised_at_consumption: float | None  # share of labels equal to E(M_t), read off the training forward; as above
    engine_gap: float | None  # max |trainer - engine| label logprob, same case and version; lag > 0: on a sample
    off_format: float | None  # share of the answers, two per pair (see BehaviorPair.cued_off_format)
    prefix_hit_rate: float | None  # share of the rollouts' prompt tokens that came from vLLM's prefix cache
    lag: int | None  # online: step - weight version of the labels' parents
    trainer_idle_s: float
    rollout_idle_s: float
    relabeler_idle_s: float
    step_s: float
    auxiliary: float | None = None  # nats per target token of the auxiliary data; None without it
    behavior_cued: float | None = None  # y(x) as M0; None for free text
    behavior_ablated: float | None = None  # y(x∖C) as M0; None for free text


@dataclass(frozen=True)
class StepLabels:
    """One rank's labels of a step, and what the relabeler measured over the labels of all ranks.

    `pairs` are the behaviour pairs of this rank's labels (empty under the fixed rule).
    """

    labels: Sequence[Label]
    pairs: Sequence[BehaviorPair]
    realised_agreement: float | None  # share of the step's labels that equal E of their pair
    off_format: float | None  # as in StepMetrics
    prefix_hit_rate: float | None  # share of the prompt tokens that the engines had in their prefix cache
    rollout_s: float  # of the engines
    rollout_idle_s: float
    relabeler_idle_s: float
    halt: bool = False  # the job was asked to end: with a checkpoint after this step, the same on every rank


@dataclass(frozen=True)
class Answers:
    """What a policy answers while it trains, by the weights of a step: pairs of cases in their order, and the tokens
    of the explanations."""

    step: int
    pairs: Sequence[BehaviorPair]
    explanations: Sequence[tuple[int, ...]]


class Wait(NamedTuple):
    """Somebody waits for resources. Example: ("2 of 4 rollout actors", "1 CPU and 1 GPU each", 1764306000.0)."""

    who: str
    needs: str
    since: float  # seconds since the epoch
