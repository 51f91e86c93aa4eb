"""Share of labels that do not depend on how they were computed, in float32; flips are counted and located in bfloat16.

The same cases are labelled on the same weights (M0) by {1, 2, 4 engines} x group sizes x {vLLM, transformers, learner}.
Each engine is a process of its own that is given the groups which the rollout pool would deal to it; each "engine" of
the learner is the shard of one training worker. Group size "even" is the pool's own choice: a batch dealt evenly to the
engines, for the learner its whole shard. An answer is y(x) or y(x∖C) of a case. Each is compared with that of
transformers one case at a time, in the same type (`across`), and with that of the same kind of engine one case at a
time (`within`). A flip is located by its margin: how far the two likeliest labels are apart in float32, in nats.

In float32 there may be none. Otherwise the benchmark prints each flip and fails. Run as `python -m
benchmarks.label_flips [--small] [--kinds transformers,learner]`; the last line is a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.common import child, make_cases, parser, policy_folder, report, run_main
from introspect_ray.config import RunConfig, load_config
from introspect_ray.errors import UserError
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.schedule import deal, step_group

NAME, GOAL = "label_flips", ">= 1"
KINDS, DTYPES = ("transformers", "learner", "vllm"), ("float32", "bfloat16")
ENGINES, BATCH = (1, 2, 4), 8
SIZES = (1, 3, BATCH, 0)  # cases that are answered together; 0: "even"
COUNT = {"smollm2": 16, "organism": 256, "small": 32}
ALONE = "1 engine, groups of 1"  # what the others are compared with
Answers = dict[str, list[Any]]  # by "case side": the label, and the logprobs of all labels


class Way(NamedTuple):
    """A way to label the cases."""

    engines: int
    size: int

    def __str__(self) -> str:
        many = "" if self.engines == 1 else "s"
        return f"{self.engines} engine{many}, groups of {self.size or 'even size'}"


def ways(most: int) -> list[Way]:
    """All ways with at most so many engines."""
    return [Way(engines, size) for engines in ENGINES if engines <= most for size in SIZES]


def config(kind: str, dtype: str, engines: int = 1) -> RunConfig:
    flat = {"rollout.dtype": dtype, "train.dtype": dtype, "batch_size": BATCH, "rollout.num_actors": engines}
    flat |= {"rollout.group_size": None}  # the preset of the organism fixes it
    return load_config(None, flat | {"rollout.engine": "transformers" if kind == "learner" else kind})


def groups(cases: Sequence[TokenizedCase], way: Way, mine: int, kind: str) -> Iterator[Sequence[TokenizedCase]]:
    """What engine (training worker) `mine` computes together, in its order: of each batch the groups dealt to it."""
    for step, start in enumerate(range(0, len(cases), BATCH)):
        batch = cases[start : start + BATCH]
        if kind == "learner":
            shard = batch[mine :: way.engines]
            yield from (part for _, part in deal(shard, way.size or BATCH, 1, 0))
            continue
        size = way.size or step_group(config(kind, "float32", way.engines))
        first = step * -(-BATCH // size)
        yield from (part for engine, part in deal(batch, size, way.engines, first) if engine == mine)


def labeller(kind: str, dtype: str, small: bool, cases: Sequence[TokenizedCase]) -> Callable[[Any], list[BehaviorPair]]:
    from introspect_ray.cases.tokenize import longest_sequence
    from introspect_ray.engines import make_engine

    cfg, policy = config(kind, dtype), policy_folder(small)
    if kind != "learner":
        return make_engine(cfg.rollout, policy, max_model_len=longest_sequence(cases)).label_pairs
    import tempfile

    import torch

    from introspect_ray.training.learner import Learner
    from introspect_ray.training.reference import build_reference

    torch.set_num_threads(cfg.train.threads)
    with tempfile.TemporaryDirectory() as folder:  # a learner wants a reference; labelling does not read it
        reference = build_reference(policy, cases[:1], None, folder)
        learner = Learner(cfg, policy, reference, {case.case_id: case for case in cases})
        return lambda group: learner.label_pairs(group, 0)


def measure(kind: str, dtype: str, mine: int, engines: int, small: bool, count: int) -> dict[str, Answers]:
    """What engine `mine` answers, by the way it was asked, with at most so many engines."""
    cases = make_cases(policy_folder(small), small, count)
    label = labeller(kind, dtype, small, cases)
    found: dict[str, Answers] = {}
    for way in ways(engines):
        if mine < way.engines:
            pairs = [pair for group in groups(cases, way, mine, kind) for pair in label(group)]
            found[str(way)] = {f"{p.case_id} x": [p.cued, *p.cued_logprobs] for p in pairs}
            found[str(way)] |= {f"{p.case_id} x∖C": [p.ablated, *p.ablated_logprobs] for p in pairs}
    return found


def gather(kind: str, dtype: str, small: bool, count: int, engines: int) -> dict[str, Answers]:
    """The answers of all engines, by way."""
    flags = ["--side", kind, "--dtype", dtype, "--count", str(count), "--engines", str(engines)]
    flags += ["--small"] if small else []
    whole: dict[str, Answers] = {}
    for mine in range(engines):
        for way, answers in child(["-m", "benchmarks.label_flips", *flags, "--mine", str(mine)]).items():
            whole.setdefault(way, {}).update(answers)
    return whole


def margin(answer: Sequence[Any]) -> float:
    """Between the two likeliest labels, in nats."""
    first, second = sorted(answer[1:])[-2:][::-1]
    return first - second


class Flip(NamedTuple):
    kind: str
    way: str
    place: str  # case and side
    label: str
    instead_of: str
    margin: float


def flips(kind: str, made: dict[str, Answers], basis: Answers, exact: Answers) -> list[Flip]:
    """Where a label is not that of `basis`. exact: the float32 answers, which give the margins."""
    return [
        Flip(kind, way, place, answer[0], basis[place][0], margin(exact[place]))
        for way, answers in made.items()
        for place, answer in answers.items()
        if answer[0] != basis[place][0]
    ]


def summary(made: dict[str, dict[str, Answers]], exact: Answers) -> dict[str, Any]:
    """Counts over all ways of all kinds, in one type. made: answers by kind and way."""
    basis = made[KINDS[0]][ALONE]
    across = [flip for kind, answers in made.items() for flip in flips(kind, answers, basis, exact)]
    within = [flip for kind, answers in made.items() for flip in flips(kind, answers, answers[ALONE], exact)]
    gaps = [
        abs(a - b)
        for answers in made.values()
        for way in answers.values()
        for place, answer in way.items()
        for a, b in zip(answer[1:], basis[place][1:], strict=True)
    ]
    flipped = {flip.place for flip in across}
    return {
        "answers": sum(len(way) for answers in made.values() for way in answers.values()),
        "across": len(across),
        "within": len(within),
        "places": len(flipped),
        "cases": len({place.rsplit(" ", 1)[0] for place in flipped}),
        "of_places": len(basis),
        "widest_margin": max((flip.margin for flip in across), default=None),
        "nearer_than_it": sum(margin(exact[p]) <= max((f.margin for f in across), default=-1.0) for p in basis),
        "largest_gap": max(gaps),
        "by_kind": {kind: sum(flip.kind == kind for flip in across) for kind in made},
        "flips": across,
    }


def compare(small: bool, count: int, kinds: Sequence[str], engines: int) -> dict[str, Any]:
    """Both types on one policy, with at most so many engines. Raises UserError where float32 has flips."""
    found = {dtype: {kind: gather(kind, dtype, small, count, engines) for kind in kinds} for dtype in DTYPES}
    exact = found["float32"][KINDS[0]][ALONE]
    counts = {dtype: summary(made, exact) for dtype, made in found.items()}
    for dtype, one in counts.items():
        located = one.pop("flips")
        print(f"{'organism' if small else 'SmolLM2'} {dtype}: {one}")
        for place in sorted({flip.place for flip in located}):
            here = [flip for flip in located if flip.place == place]
            by_kind = {kind: sum(flip.kind == kind for flip in here) for kind in kinds}
            print(f"  {place}: {here[0].instead_of} -> {here[0].label}, margin {here[0].margin:.2g} nats, {by_kind}")
        if located and dtype == "float32":
            raise UserError(f"{len(located)} of {one['answers']} labels depend on how they were computed: see above")
    return counts


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kinds", default=",".join(KINDS), help="which engines; transformers must be among them")
    arguments.add_argument("--side", choices=KINDS, help="label in this process, and stop")
    arguments.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments.add_argument("--mine", type=int, default=0)
    arguments.add_argument("--count", type=int, default=0)
    arguments.add_argument("--engines", type=int, help="at most so many (default 4; --small: 2)")
    args = arguments.parse_args()
    if args.side:
        return print(json.dumps(measure(args.side, args.dtype, args.mine, args.engines, args.small, args.count)))
    kinds, engines = args.kinds.split(","), args.engines or ENGINES[1 if args.small else -1]
    organism = compare(True, COUNT["small" if args.small else "organism"], kinds, engines)
    real = None if args.small else compare(False, COUNT["smollm2"], kinds, engines)
    exact = [one["float32"] for one in (organism, real) if one]
    share = 1 - sum(one["across"] for one in exact) / sum(one["answers"] for one in exact)
    report(NAME, share, GOAL, organism=organism, smollm2=real)


if __name__ == "__main__":
    run_main(main)
