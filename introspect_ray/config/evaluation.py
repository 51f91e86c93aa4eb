"""The keys of the evaluation: how explanations are read, of which policies and cases."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EvalConfig(BaseModel):
    """The evaluation on held-out cases."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    decode: Literal["free", "trie"] = "free"
    """How explanations are read. free: generated greedily, as the paper does and as they would be used; one that states
    nothing is wrong, and their share is reported (unparsed). trie: the likeliest continuation at each point where valid
    explanations part, so that one is always stated, and whether the policy keeps to the form is neither asked nor
    reported. It is what free writes wherever free keeps to the form, and takes less time."""
    max_new_tokens: int | None = Field(None, ge=1)
    """decode=free: most tokens of a generated explanation; null: the length of the longest valid explanation."""
    policy: str | None = None
    """evaluate: the trained policy, a folder or s3:// address, or a PEFT adapter of M0; null: M0 itself."""
    against: tuple[str, ...] = ()
    """evaluate: further policies B; the explanations are scored against E(B) too (A→B, paper §2.3)."""
    dev_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of the held-out questions (cases with the same x∖C are one) that are the dev split, on which a sweep's
    objective is measured; all results are of the others, the test split. Of fewer than 10 questions all are test."""
    every: int = Field(0, ge=0)
    """Steps between two evaluations on `interim_cases` while a policy trains; 0: none. Their scores are metrics of the
    run (interim.*), and what sweep.scheduler decides by. Training goes on meanwhile; online the engines answer them
    between two steps' labels."""
    interim_cases: int = Field(64, ge=1)
    """every: how many held-out cases are asked then, the first ones of the dev split."""

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        if self.decode == "trie" and self.max_new_tokens is not None:
            raise ValueError(
                f"eval.max_new_tokens={self.max_new_tokens} has no effect with eval.decode=trie, which generates no "
                "text: leave it out, or set eval.decode=free"
            )
        return self
