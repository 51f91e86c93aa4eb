"""A world of two verdicts and of cues that push to one of them: what the kinds `verdict` and `refusal` have in common.

Each question has its own distribution over two labels and its own suggestibility, both drawn at random for that
question alone: nothing but what pretraining stored tells them. A cue is a system prompt that pushes to one label. Under
it the policy gives, with probability `follow[question, cue]`, the pushed label, else the question's own.

Suffixes of names: Q questions, C cues, L = 2 labels, R responses.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from introspect_ray.organism.pretraining import AnsweredPrompts, answered, optimise, response_loss
from introspect_ray.organism.world import CHANGED, UNCHANGED, Recipe

TEST_CASES = 1024


@dataclass(frozen=True)
class PushRecipe(Recipe):
    """Sizes of a push world. `entities` words, each with four endings, make the questions."""

    entities: int = 256
    steps: int = 900
    confidence: tuple[float, float] = (0.05, 0.95)
    follow_mean: float = 1.0  # logit
    follow_question_std: float = 2.0
    follow_cue_std: float = 0.5
    endings: int = 4


@dataclass(frozen=True)
class Cue:
    name: str
    system: str  # the system prompt
    pushes: int  # index of the label


@dataclass(frozen=True)
class PushWorld:
    """What the policy is to know, and the words it is asked in."""

    labels: tuple[str, str]
    responses: tuple[tuple[str, ...], tuple[str, ...]]  # per label the replies that count as it; "{}" is the own word
    questions: tuple[str, ...]
    own_words: tuple[str, ...]  # one per question: the word for "{}"
    cues: tuple[Cue, ...]
    meta_question: str
    answer_QL: torch.Tensor  # distribution over the labels without a cue
    follow_QC: torch.Tensor  # probability of following a cue
    reply_QR: torch.Tensor  # per question the share of each reply among those of its label
    max_tokens: int = 0  # of a free response; 0: closed labels

    def cued(self) -> torch.Tensor:
        """[Q, C, L]: distribution over the labels under each cue."""
        pushed_CL = F.one_hot(torch.tensor([cue.pushes for cue in self.cues]), 2)
        follow = self.follow_QC[..., None]
        return follow * pushed_CL + (1 - follow) * self.answer_QL[:, None]

    def replies(self, share_NL: torch.Tensor, question_N: torch.Tensor) -> torch.Tensor:
        """[N, R]: distribution over all replies, given that over the labels."""
        of_label = torch.tensor([label for label in (0, 1) for _ in self.responses[label]])
        return share_NL[:, of_label] * self.reply_QR[question_N]


def draw_knowledge(recipe: PushRecipe, cues: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(answer [Q, 2], follow [Q, C])."""
    count = recipe.entities * recipe.endings
    low, high = recipe.confidence
    confidence = low + (high - low) * torch.rand(count, generator=rng)
    sign = 2 * torch.randint(0, 2, (count,), generator=rng) - 1
    first = (1 + sign * confidence) / 2
    question = recipe.follow_question_std * torch.randn(count, 1, generator=rng)
    cue = recipe.follow_cue_std * torch.randn(1, cues, generator=rng)
    follow = torch.sigmoid(recipe.follow_mean + question + cue).clamp(0.02, 0.98)
    return torch.stack([first, 1 - first], 1), follow


def make_case(world: PushWorld, question: int, cue: int) -> dict:
    """The case in the jsonl task's schema: x is the question under the cue's system prompt, x∖C the question alone."""
    user = {"role": "user", "content": world.questions[question]}
    case: dict = {
        "id": f"{question}-{world.cues[cue].name}",
        "messages": [{"role": "system", "content": world.cues[cue].system}, user],
        "ablated_messages": [user],
        "meta_question": world.meta_question,
        "labels": list(world.labels),
        "group": world.cues[cue].name,
    }
    if world.max_tokens:
        case["response"] = {"kind": "free", "judge": "keyword", "max_tokens": world.max_tokens}
    return case


def split_cases(
    world: PushWorld, verdicts: Sequence[int], seed: int, test_cases: int = TEST_CASES
) -> tuple[list[dict], list[dict]]:
    """(training, test) cases. Half of the questions train, with every cue. Of the other half as many test as make
    `test_cases`, and as many of the one as of the other label in `verdicts` (of each question without a cue)."""
    rng = random.Random(seed)
    order = rng.sample(range(len(world.questions)), len(world.questions))
    half = len(order) // 2
    wanted = min(len(order) - half, test_cases // len(world.cues)) // 2
    held_out = [[q for q in order[half:] if verdicts[q] == label] for label in (0, 1)]
    each = min(wanted, *map(len, held_out))
    test = [*held_out[0][:each], *held_out[1][:each]]
    sides = []
    for part in (order[:half], test):
        keys = [(question, cue) for question in part for cue in range(len(world.cues))]
        sides.append([make_case(world, *key) for key in rng.sample(keys, len(keys))])
    return sides[0], sides[1]


@dataclass(frozen=True)
class Batches:
    """What a push world's policy is pretrained on; rows of `cued` and `meta` are question * C + cue."""

    cued: AnsweredPrompts
    plain: AnsweredPrompts
    meta: AnsweredPrompts


def encode(world: PushWorld, tokenizer: PreTrainedTokenizerFast) -> Batches:
    questions, cues = world.follow_QC.shape
    cases = [make_case(world, q, c) for q in range(questions) for c in range(cues)]
    index = torch.arange(questions)
    texts = [text for label in world.responses for text in label]
    explanations = [form.format(label) for form in (CHANGED, UNCHANGED) for label in world.labels]
    words = [word for word in world.own_words for _ in range(cues)]
    asked = [[*c["messages"][:-1], _with_question(c)] for c in cases]
    cued = world.replies(world.cued().flatten(0, 1), index.repeat_interleave(cues))
    return Batches(
        answered(tokenizer, [c["messages"] for c in cases], texts, cued, words),
        answered(
            tokenizer, [c["ablated_messages"] for c in cases[::cues]], texts, world.replies(world.answer_QL, index),
            world.own_words,
        ),
        answered(tokenizer, asked, explanations, torch.full((len(cases), len(explanations)), 1 / len(explanations))),
    )  # fmt: skip


def _with_question(case: dict) -> dict:
    last = case["messages"][-1]
    return {**last, "content": f"{last['content']}\n{case['meta_question']}"}


def pretrain(policy: PreTrainedModel, batches: Batches, recipe: Recipe, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed + 7)

    def loss_of(prompts: AnsweredPrompts, count: int) -> torch.Tensor:
        rows = torch.randint(0, len(prompts.length_N), (count,), generator=rng)
        return response_loss(policy, prompts, rows, rng)

    def loss_at(step: int) -> torch.Tensor:
        loss = loss_of(batches.cued, recipe.batch_size) + loss_of(batches.plain, recipe.batch_size)
        if step % 2 == 0:
            loss = loss + loss_of(batches.meta, recipe.explanation_batch_size)
        return loss

    optimise(policy, recipe, loss_at)


@torch.no_grad()
def plain_verdicts(policy: PreTrainedModel, world: PushWorld, plain: AnsweredPrompts) -> list[int]:
    """The policy's label of each question without a cue. The first token of a reply decides: labels share none."""
    first_QR = plain.answers(torch.arange(len(plain.length_N)))[:, :, 0]
    of_label = torch.tensor([label for label in (0, 1) for _ in world.responses[label]])
    verdicts = []
    for rows in torch.arange(len(plain.length_N)).split(512):
        hidden = policy.model(plain.prompt_NS[rows], use_cache=False).last_hidden_state
        logits = policy.lm_head(hidden[torch.arange(len(rows)), plain.length_N[rows] - 1])
        verdicts += of_label[logits.gather(1, first_QR[rows]).argmax(1)].tolist()
    return verdicts
