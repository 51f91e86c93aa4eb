"""From the free responses of cases to their behaviour pairs: judging within a rollout actor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.cases.answers import Tokens
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.judges.agreement import JudgeReport, report
from introspect_ray.judges.cache import CachedJudge
from introspect_ray.judges.keyword import KeywordJudge
from introspect_ray.judges.make import make_judge, unjudged_label
from introspect_ray.judges.protocol import Complete, Judge, Reply
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.storage import open_store

Responses = tuple[Tokens, Tokens]  # to x and to x∖C


@dataclass(frozen=True)
class Judging:
    """Who judges the free text of a run, and what becomes of replies without a verdict.

    Picklable: it is made once, where the files of the config are, and goes to all rollout actors.
    """

    judge: Judge
    second: Judge | None
    unjudged: str  # the label of a reply without a verdict
    max_unjudged: float
    cache_uri: str

    @property
    def identity(self) -> str:
        """Of the judge that decides, for a label's provenance. Known before anything is judged."""
        return self.judge.identity

    @property
    def key(self) -> str:
        """Everything in here that decides pairs and reports, for the name of a label set."""
        return " ".join([self.identity, self.second.identity if self.second else "-", self.unjudged])


def make_judging(
    cfg: JudgeConfig, cache_uri: str, policies: Mapping[str, tuple[Complete, str]] | None = None
) -> Judging:
    """cfg's judge and its second one. Raises UserError as make_judge.

    policies: for each judge.policy what answers chats with it, and its content hash.
    """

    def made(judge: JudgeConfig) -> Judge:
        return make_judge(judge, *(policies or {}).get(judge.policy or "", (None, None)))

    second = made(cfg.second) if cfg.second else None
    return Judging(made(cfg), second, unjudged_label(cfg), cfg.max_unjudged, cache_uri)


class Panel:
    """Turns both responses of a case into its behaviour pair, by the judges of `judging`.

    Judges see text. The response is decoded without special tokens. The chat that it answers is known as tokens only:
    the prompt is decoded likewise and shown as one user message, in which the template's role names stand between the
    turns.
    """

    def __init__(self, judging: Judging, tokenizer: Any) -> None:
        """tokenizer: of the policy that responds. No model is asked twice: judging.cache_uri keeps its verdicts."""
        self._judge = _asked_once(judging.judge, judging.cache_uri)
        self._second = _asked_once(judging.second, judging.cache_uri) if judging.second else None
        self._unjudged, self._tokenizer = judging.unjudged, tokenizer

    def pairs(
        self, cases: Sequence[TokenizedCase], responses: Sequence[Responses], version: int
    ) -> tuple[list[BehaviorPair], JudgeReport]:
        """The pairs of free-text cases in order, and what the judges said on their replies, two per case.

        cases: of the judge's labels. A reply without a verdict has the label `unjudged` and counts as off format.
        """
        replies = [reply for case, both in zip(cases, responses, strict=True) for reply in self._replies(case, both)]
        verdicts = self._judge.verdicts(replies)
        second = self._second.verdicts(replies) if self._second else None
        sides = iter(verdicts)
        pairs = []
        for case, (cued_response, ablated_response) in zip(cases, responses, strict=True):
            cued, ablated = next(sides).label, next(sides).label
            pairs.append(
                BehaviorPair(
                    case_id=case.case_id,
                    cued=cued or self._unjudged,
                    ablated=ablated or self._unjudged,
                    cued_logprobs=(),
                    ablated_logprobs=(),
                    cued_off_format=cued is None,
                    ablated_off_format=ablated is None,
                    weight_version=version,
                    cued_response=cued_response,
                    ablated_response=ablated_response,
                )
            )
        return pairs, report(self._judge.identity, replies, verdicts, second)

    def _replies(self, case: TokenizedCase, both: Responses) -> Iterator[Reply]:
        for prompt, response in zip((case.prompt, case.ablated), both, strict=True):
            yield Reply(case.case_id, ({"role": "user", "content": self._text(prompt)},), self._text(response))

    def _text(self, tokens: Tokens) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def _asked_once(judge: Judge, cache_uri: str) -> Judge:
    """The judge with the cache. A rule has none: every group of a step would leave a file, which costs more than it."""
    return judge if isinstance(judge, KeywordJudge) else CachedJudge(judge, open_store(cache_uri))
