"""Seconds of a training step of the usual kind over those of ours, on the same 32 cases.

The usual kind: transformers, a padded batch of 8, a live copy of M0, and AdamW. x, x∖C and q + e each get their own
forward pass, with logits everywhere; the loss is the cross-entropy on the explanation and λ KL(M0 || M) where x and x∖C
are answered. Ours: Learner.step with the reference computed beforehand (its seconds are reported, and the ratio with
them). The cases come in the order of the step plan (seed 0), which decides how much padding the usual loop carries.
Both sides take four steps of eight cases in turn, after the step with the longest case, which is not counted. Both
objectives must agree to 1e-4 at every step. step_baselines.py has the loops that pad less, for six seeds.

Where the `bench` extra is installed, TRL's nearest trainer also trains on the tokens of the first steps (--trl-steps),
and is compared with ours on the same (ratio_trl: its seconds over ours), as is its SFTTrainer (ratio_trl_sft).
trl_trainer.py says what each of them leaves out or does in addition. Their objectives differ from ours, so only parts
are checked: SFT's cross-entropy on q + e against ours to 1e-3, and GKD's KL of M0 to itself against 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks import trl_trainer
from benchmarks.common import Clock, child, make_cases, make_labels, make_pairs, parser, policy_folder, report, run_main
from introspect_ray.config import RunConfig, override
from introspect_ray.policy import load_model
from introspect_ray.records import Label, TokenizedCase
from introspect_ray.schedule import step_plan
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

NAME, GOAL = "train_step", ">= 7"
BATCH, COUNT, SEED, KL_WEIGHT, RATE, TOLERANCE = 8, 32, 0, 1.0, 1e-5, 1e-4
IGNORED = -100
TRL = ("gkd", "sft")
TRL_TOLERANCE = 1e-3


class UsualLoop:
    """The training loop that one would write first."""

    def __init__(self, policy: str) -> None:
        self.model = load_model(policy, torch.float32)
        self.reference = load_model(policy, torch.float32).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0)

    def step(self, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> float:
        """Take one optimizer step and return the objective before it. Each forward is followed by its backward, so that
        one graph at a time is in memory."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for prompts in ([case.prompt for case in cases], [case.ablated for case in cases]):
            kl = KL_WEIGHT * self.kl(prompts) / (2 * len(cases))
            kl.backward()
            loss += kl.item()
        targets = [case.explanations[label.explanation] for case, label in zip(cases, labels, strict=True)]
        ce = self.cross_entropy([case.question for case in cases], targets)
        ce.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss + ce.item()

    def kl(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Sum over the prompts of KL(M0 || M) at their last tokens."""
        tokens, mask = padded(prompts)
        last = torch.arange(len(prompts)), mask.sum(-1) - 1
        with torch.no_grad():
            wanted = self.reference(input_ids=tokens, attention_mask=mask, use_cache=False).logits[last]
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[last]
        return F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)

    def cross_entropy(self, questions: Sequence[tuple[int, ...]], targets: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Mean over the target tokens of q + e."""
        tokens, mask = padded([q + e for q, e in zip(questions, targets, strict=True)])
        wanted = torch.full_like(tokens, IGNORED)
        for row, q, e in zip(wanted, questions, targets, strict=True):
            row[len(q) : len(q) + len(e)] = torch.tensor(e)
        return self.model(input_ids=tokens, attention_mask=mask, labels=wanted, use_cache=False).loss


def padded(sequences: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 tokens and mask [sequences, longest], padded on the right."""
    width = max(map(len, sequences))
    tokens = [list(s) + [0] * (width - len(s)) for s in sequences]
    mask = [[1] * len(s) + [0] * (width - len(s)) for s in sequences]
    return torch.tensor(tokens), torch.tensor(mask)


def longest_batch(cases: Sequence[TokenizedCase]) -> int:
    """Where the batch with the longest case starts."""
    return max(range(len(cases)), key=lambda i: len(cases[i].question)) // BATCH * BATCH


def config(token_budget: int | None) -> RunConfig:
    cfg = RunConfig(learning_rate=RATE, kl_weight=KL_WEIGHT, batch_size=BATCH)
    return override(cfg, {"train.token_budget": token_budget}) if token_budget else cfg


def profile(learner: Learner, labels: Sequence[Label], cases: Sequence[TokenizedCase]) -> None:
    """Where one of our steps spends its time, by operator."""
    pairs = make_pairs(cases)
    learner.step(labels[:BATCH], pairs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        learner.step(labels[:BATCH], pairs)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def measure_trl(
    kind: str, policy: str, cases: Sequence[TokenizedCase], labels: Sequence[Label], steps: int
) -> dict[str, float]:
    """Measure TRL's first `steps` steps, after one with the longest case."""
    start = longest_batch(cases)
    order = [*range(start, start + BATCH), *range(steps * BATCH)]
    explanations = [cases[i].explanations[labels[i].explanation] for i in order]
    return trl_trainer.measure(kind, policy, [cases[i] for i in order], explanations, RATE)


def run_trl(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure each trainer in its own process, so that its memory (full logits of two models) is free for ours."""
    if not args.trl_steps:
        return {}
    if not trl_trainer.available():
        print("TRL is not installed (pip install '.[bench]'): ratio_trl is null", flush=True)
        return {}
    small = ["--small"] if args.small else []
    command = ["-m", "benchmarks.train_step", *small]
    command += ["--threads", str(args.threads), "--trl-steps", str(args.trl_steps)]
    runs = {kind: child([*command, "--trl", kind]) for kind in TRL}
    for kind, run in runs.items():
        print(f"TRL {kind}: {run['wall_s']:.2f} s for {run['steps']} steps, first {run['first_loss']:.6f}", flush=True)
    return runs


def check_trl(runs: dict[str, dict[str, float]], cross_entropy: float) -> None:
    """Exits where a TRL trainer did not get the same tokens and weights. cross_entropy: ours at the first step."""
    for kind, expected in (("sft", cross_entropy), ("gkd", 0.0)):
        if kind in runs and not abs(runs[kind]["first_loss"] - expected) <= TRL_TOLERANCE:
            sys.exit(
                f"{NAME}: TRL's {kind} begins with {runs[kind]['first_loss']:.6f} on q + e, ours with {expected:.6f}"
            )


def flags() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="torch threads, the same for both (default 2)")
    arguments.add_argument("--token-budget", type=int, help="train.token_budget (default: the config's)")
    arguments.add_argument(
        "--profile", action="store_true", help="print where one of our steps spends its time, and stop"
    )
    arguments.add_argument(
        "--trl-steps", type=int, choices=range(COUNT // BATCH + 1), default=1, help="of TRL's trainers (default 1)"
    )
    arguments.add_argument("--trl", choices=TRL, help="measure this TRL trainer in this process, and stop")
    return arguments.parse_args()


def main() -> None:
    args = flags()
    torch.set_num_threads(args.threads)
    policy = policy_folder(args.small)
    cases = make_cases(policy, args.small, COUNT)
    cases = [cases[i] for i in step_plan(SEED, 0, len(cases), len(cases))]
    labels = make_labels(cases)
    if args.trl:
        return print(json.dumps(measure_trl(args.trl, policy, cases, labels, args.trl_steps)))
    with tempfile.TemporaryDirectory() as folder:
        with (reference := Clock()):
            path = build_reference(policy, cases, None, folder)
        learner = Learner(config(args.token_budget), policy, path, {case.case_id: case for case in cases})
        if args.profile:
            return profile(learner, labels, cases)
        trl = run_trl(args)
        usual, ours, first = in_turn(UsualLoop(policy), learner, cases, labels)
    check_trl(trl, first)
    ours_s, begun = wall(ours), wall(ours[: args.trl_steps])
    report(
        NAME,
        wall(usual) / ours_s,
        GOAL,
        usual_s=wall(usual),
        ours_s=ours_s,
        reference_s=reference.wall,
        ratio_with_reference=wall(usual) / (ours_s + reference.wall),
        ratio_cpu=sum(clock.cpu for clock in usual) / sum(clock.cpu for clock in ours),
        ratio_trl=trl["gkd"]["wall_s"] / begun if trl else None,
        ratio_trl_sft=trl["sft"]["wall_s"] / begun if trl else None,
        trl=trl or None,
        cases=len(cases),
        threads=args.threads,
        policy="organism" if args.small else "SmolLM2-135M",
    )


def wall(clocks: Sequence[Clock]) -> float:
    return sum(clock.wall for clock in clocks)


def in_turn(
    loop: UsualLoop, learner: Learner, cases: Sequence[TokenizedCase], labels: Sequence[Label]
) -> tuple[list[Clock], list[Clock], float]:
    """Clocks of the usual loop's steps and of ours, and our cross-entropy at the first step, which is not counted.

    Exits where the two objectives differ.
    """
    usual, ours, pairs = [], [], make_pairs(cases)
    start = longest_batch(cases)
    warm = slice(start, start + BATCH)  # so that no memory is touched for the first time in what is measured
    loop.step(cases[warm], labels[warm])
    first = learner.step(labels[warm], pairs)["cross_entropy"]
    for start in range(0, len(cases), BATCH):
        part = slice(start, start + BATCH)
        usual.append(Clock())
        with usual[-1]:
            expected = loop.step(cases[part], labels[part])
        ours.append(Clock())
        with ours[-1]:
            metrics = learner.step(labels[part], pairs)
        gap = abs(metrics["loss"] - expected)
        print(
            f"cases {start:2}-{start + BATCH - 1:2}: usual {usual[-1].wall:6.2f} s, ours {ours[-1].wall:5.2f} s; "
            f"objective {expected:.6f} and {metrics['loss']:.6f} (KL {metrics['kl']:.1e})",
            flush=True,
        )
        if not gap <= TOLERANCE:
            sys.exit(f"{NAME}: the objectives differ by {gap:.2e}, more than {TOLERANCE:g}: no ratio to report")
    return usual, ours, first


if __name__ == "__main__":
    run_main(main)
