"""The auxiliary data of a run, read, tokenized and checked before anything starts (paper eq. 5)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from introspect_ray.cases.auxiliary import NotRendered, check_template, tokenize_chat, tokenize_plain
from introspect_ray.cases.auxiliary_table import AuxiliaryTable
from introspect_ray.config.sections import AuxiliaryConfig
from introspect_ray.errors import UserError
from introspect_ray.records import AuxiliaryText
from introspect_ray.runs.policy_cases import context_length
from introspect_ray.tasks.auxiliary import auxiliary_files, auxiliary_rows

log = logging.getLogger(__name__)
NO_TARGET = "they hold no token to train on within auxiliary.max_tokens"


def read_auxiliary(config: AuxiliaryConfig, tokenizer: Any, policy_path: str) -> AuxiliaryTable | None:
    """The auxiliary texts as tokens; None if neither auxiliary.path nor auxiliary.hub_id is set.

    Texts without a token to train on, and chats that the policy's template does not render, are left out and counted in
    one warning per reason. Raises UserError if a row is wrong, no text is left, or auxiliary.max_tokens exceeds the
    policy's context.
    """
    files = auxiliary_files(config)
    if not files:
        return None
    context = context_length(policy_path)
    if context is not None and config.max_tokens > context:
        raise UserError(
            f"auxiliary.max_tokens={config.max_tokens}, but policy {policy_path!r} has a context of {context} tokens: "
            f"set auxiliary.max_tokens={context} or lower"
        )
    if config.tokens == "assistant":
        check_template(tokenizer, policy_path)
    left_out: Counter[str] = Counter()
    table = AuxiliaryTable.build(_texts(files, config, tokenizer, left_out))
    if not len(table):
        why = "; ".join(f"{count} texts: {reason}" for reason, count in left_out.items()) or "there are no rows"
        raise UserError(f"{files[0]}: no auxiliary text is left ({why}); check auxiliary.path and auxiliary.tokens")
    for reason, count in left_out.items():
        log.warning("left out %d auxiliary texts: %s", count, reason)
    return table


def _texts(
    files: list[Path], config: AuxiliaryConfig, tokenizer: Any, left_out: Counter[str]
) -> Iterator[AuxiliaryText]:
    """All texts that have a token to train on; the others are counted in `left_out` by reason."""
    for number, (_, content) in enumerate(auxiliary_rows(files), start=1):
        text_id = f"row-{number}"
        if isinstance(content, str):
            made = list(tokenize_plain(text_id, content, tokenizer, config.max_tokens))
        else:
            try:
                made = [tokenize_chat(text_id, content, tokenizer, config.tokens, config.max_tokens)]
            except NotRendered as error:
                left_out[str(error)] += 1
                continue
        kept = [text for text in made if any(text.targets)]
        if missing := max(len(made), 1) - len(kept):  # an empty text makes none
            left_out[NO_TARGET] += missing
        yield from kept
