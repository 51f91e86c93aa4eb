"""The configuration of a judge: who puts free-form responses into labels."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_OF_KIND = {"keyword": ("words",), "llm": ("policy", "endpoint", "model", "instruction", "request")}


class JudgeConfig(BaseModel):
    """One judge, and perhaps a second one that it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    kind: Literal["keyword", "llm"] = "keyword"
    """keyword: the first words of a response decide. llm: a language model is asked."""
    labels: tuple[str, ...] | None = None
    """The verdicts to choose from; None: those of `words`, else refuse and comply."""
    words: str | None = None
    """keyword: a YAML file of {labels, prefixes, apologies, keywords, window}; None: the bundled ones on refusals."""
    policy: str | None = None
    """llm: the judging policy, a folder or a hub id. An engine of its own serves it, of the kind and size of a rollout
    actor's. Or give `endpoint`."""
    endpoint: str | None = None
    """llm: URL of an OpenAI-compatible server, up to the version: "http://localhost:8000/v1". Needs `model`."""
    model: str | None = None
    """llm, endpoint: the model's name there."""
    key_env: str | None = "OPENAI_API_KEY"
    """llm, endpoint: the environment variable that holds the key; where it is not set no key is sent. Rollout actors
    ask the judge, so it must be set on every node that they run on."""
    instruction: str | None = None
    """llm: a text file with {prompt} and {response}, which names all labels; None: the bundled one on refusals."""
    request: dict[str, Any] = {}
    """llm, endpoint: further fields of each request, such as {chat_template_kwargs: {enable_thinking: false}}; null
    drops a field."""
    parallel: int = Field(16, ge=1, le=1024)
    """llm, endpoint: requests at a time."""
    timeout_s: float = Field(60.0, gt=0)
    """llm, endpoint: seconds that one request may take."""
    patience_s: float = Field(300.0, ge=0)
    """llm, endpoint: seconds during which a request that failed (no connection, 429, 5xx) is tried again."""
    max_unjudged: float = Field(0.05, ge=0, le=1)
    """Largest share of replies without a verdict in a label set (M0's, the second policy's, an evaluation's); beyond it
    the run stops. It also stops if a share beyond it over the training steps so far is no chance (probability 1e-6)."""
    unjudged: str | None = None
    """The label of a reply without a verdict; None: the judge's last label."""
    second: JudgeConfig | None = None
    """A second judge of the same labels; how often the two disagree is reported, the first one's verdicts count."""

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        other = "llm" if self.kind == "keyword" else "keyword"
        foreign = next((key for key in _OF_KIND[other] if getattr(self, key)), None)
        if foreign:
            raise ValueError(
                f"judge.{foreign} is for judge.kind={other}, not {self.kind}: set the kind or leave it out"
            )
        if self.kind == "llm" and bool(self.policy) == bool(self.endpoint):
            which = "both" if self.policy else "neither"
            raise ValueError(f"judge.kind=llm needs judge.policy or judge.endpoint, {which} given: give one of them")
        if bool(self.endpoint) != bool(self.model):
            given, missing = ("endpoint", "model") if self.endpoint else ("model", "endpoint")
            raise ValueError(f"judge.{given} needs judge.{missing} as well: give both")
        of_endpoint = () if self.endpoint else ("request", "key_env", "parallel", "timeout_s", "patience_s")
        for key in of_endpoint:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"judge.{key} is for judge.endpoint, which is not given: leave it out")
        if self.second and self.second.second:
            raise ValueError("judge.second has a second judge of its own: two judges are compared, leave it out")
        for key in ("unjudged", "max_unjudged"):
            if self.second and getattr(self.second, key) != type(self).model_fields[key].default:
                raise ValueError(f"judge.second.{key} has no effect, the first judge's verdicts count: leave it out")
        if self.second and self.second == self.model_copy(update={"second": None, "unjudged": None}):
            raise ValueError("judge.second is the same judge as the first: change it or leave it out")
        return self
