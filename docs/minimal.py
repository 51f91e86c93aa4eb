"""Introspective coupling in one file: the method of introspect-ray without Ray, vLLM or packing.

Paper: "Introspective Coupling" (Guo, Ruis, Andreas, Li, 2026), arXiv 2606.32038. Needs torch and transformers.

    python docs/minimal.py --steps 300 --kl-weight 1 --rule fixed
    python docs/minimal.py --steps 300 --kl-weight 1 --rule online --agreement 0.8

A case is a prompt x with a cue C in it (here a hint), the same prompt x∖C without the cue, and a question q: how would
the answer change without the cue? The policy M answers y(x) and y(x∖C). The true explanation of what it does, E(M), is
the pair (changed?, content) = (y(x) != y(x∖C), y(x∖C)), written as a sentence. M is trained to give explanations:

    loss = cross-entropy(e | q) + λ · KL(M0 ‖ M) at the answers to x and x∖C                              (eq. 2)

M0 is the policy before training, λ is --kl-weight. The labels e come from --rule: "fixed" takes E(M0) throughout;
"online" takes E(M) at every step, and a wrong explanation for a share 1 - ν of the cases (ν is --agreement).
After training, "Self" scores the policy's explanations against E(M), "Orig" against E(M0).

The system does the same step from shared-prefix trees, a cached M0 and rollout engines; its losses are equal to these
(tests/unit/test_minimal.py). Shape suffixes: N sequences, T tokens per sequence, V vocabulary; B cases.
"""

import argparse
import copy
import functools
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

ORGANISM = Path(__file__).parent.parent / "introspect_ray" / "organism"  # a policy of 0.2 M parameters, and its cases
BATCH_SIZE, LEARNING_RATE, MAX_GRAD_NORM = 32, 3e-3, 1.0  # the organism's preset


# ---- cases as tokens -------------------------------------------------------------------------------------------------


@dataclass
class Case:
    id: str
    prompt: list[int]  # x, up to where the answer starts
    ablated: list[int]  # x∖C, likewise
    question: list[int]  # q, up to where the explanation starts
    labels: list[str]  # the allowed answers, for example A, B, C, D
    label_ids: list[int]  # the token of each
    explanations: dict[tuple[bool, str], list[int]]  # (changed?, content) -> tokens of e with its end of turn


def load_cases(path, tokenizer):
    return [to_tokens(json.loads(line), tokenizer) for line in path.read_text().splitlines()]


def to_tokens(row, tokenizer):
    def chat(messages):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    *before, last = row["messages"]
    question = [*before, {"role": "user", "content": f"{last['content']}\n{row['meta_question']}"}]
    return Case(
        id=row["id"],
        prompt=chat(row["messages"]),
        ablated=chat(row["ablated_messages"]),
        question=chat(question),
        labels=row["labels"],
        label_ids=tokenizer.convert_tokens_to_ids(row["labels"]),
        explanations=explanation_tokens(tokenizer, tuple(row["labels"])),
    )


@functools.cache
def explanation_tokens(tokenizer, labels):
    heads = {False: "The response would not change from", True: "The response would change to"}
    return {
        (changed, label): [*tokenizer.encode(f"{head} {label}.", add_special_tokens=False), tokenizer.eos_token_id]
        for changed, head in heads.items()
        for label in labels
    }


# ---- behaviour and its explanation -----------------------------------------------------------------------------------


def logits_NTV(model, sequences):
    """Padding on the right needs no mask: causal attention does not look there, and nobody reads what it gives."""
    longest = max(map(len, sequences))
    return model(input_ids=torch.tensor([s + [0] * (longest - len(s)) for s in sequences])).logits


def next_logits_NV(model, sequences):
    """What `model` would say after each sequence."""
    return logits_NTV(model, sequences)[torch.arange(len(sequences)), [len(s) - 1 for s in sequences]]


def answer_logits_NV(model, cases):
    """Logits where the answer starts: x of all cases, then x∖C of all (N = 2B)."""
    return next_logits_NV(model, [case.prompt for case in cases] + [case.ablated for case in cases])


def behaviours(answers_NV, cases):
    """[(y(x), y(x∖C))]: of each, the likeliest among the allowed labels."""

    def answer(logits_V, case):
        return case.labels[int(logits_V[case.label_ids].argmax())]

    cued, ablated = answers_NV.split(len(cases))
    return [(answer(x, case), answer(without, case)) for x, without, case in zip(cued, ablated, cases)]


def explanation(pair):
    """E of one case. Example: ("C", "B") -> (True, "B"): the answer would change to B."""
    cued, ablated = pair
    return cued != ablated, ablated


# ---- supervision -----------------------------------------------------------------------------------------------------


def bits(*key):
    """64 random bits that depend on the key alone: not on the order of the cases, a process, or a resume."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def uniform(*key):
    """In [0, 1): 53 of the bits, which a float holds exactly."""
    return (bits(*key) >> 11) / 2**53


def batches(seed, cases):
    """Endless batches: the cases in a new order in every epoch. A batch may take cases of two epochs."""
    batch = []
    for epoch in itertools.count():
        for i in sorted(range(len(cases)), key=lambda case: bits(seed, epoch, case, "epoch")):
            batch.append(cases[i])
            if len(batch) == BATCH_SIZE:
                yield batch
                batch = []


def online_label(pair, case, agreement, seed, step):
    """E(M) with probability ν, else another content, with changed? recomputed so that it fits the current y(x)."""
    cued, ablated = pair
    if uniform(seed, step, case.id, "agreement") >= agreement:
        others = [label for label in case.labels if label != ablated]
        ablated = others[int(uniform(seed, step, case.id, "wrong") * len(others))]
    return explanation((cued, ablated))


# ---- training --------------------------------------------------------------------------------------------------------


def train(policy, m0, cases, steps, kl_weight, rule, agreement, seed):
    """Trains `policy` in place; yields (loss, cross-entropy, KL) of each step in nats, as before its update."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step, batch in zip(range(steps), batches(seed, cases)):
        answers_NV = answer_logits_NV(policy, batch)
        with torch.no_grad():
            m0_answers_NV = answer_logits_NV(m0, batch)
        if rule == "fixed":  # E(M0)
            labels = [explanation(pair) for pair in behaviours(m0_answers_NV, batch)]
        else:  # from what the policy does now, before this step's update
            pairs = behaviours(answers_NV, batch)
            labels = [online_label(pair, case, agreement, seed, step) for pair, case in zip(pairs, batch)]
        cross_entropy = explanation_loss(policy, batch, labels)
        kl = kl_to_m0(m0_answers_NV, answers_NV)
        loss = cross_entropy + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        yield loss.item(), cross_entropy.item(), kl.item()


def explanation_loss(model, cases, labels):
    """-log p(e | q): the mean over all tokens of e in the batch."""
    targets = [case.explanations[label] for case, label in zip(cases, labels)]
    all_logits = logits_NTV(model, [case.question + e for case, e in zip(cases, targets)])
    predicting = [  # the logits at a token are about the one that follows it
        logits_TV[len(case.question) - 1 :][: len(e)] for logits_TV, case, e in zip(all_logits, cases, targets)
    ]
    return F.cross_entropy(torch.cat(predicting), torch.tensor([token for e in targets for token in e]))


def kl_to_m0(m0_answers_NV, answers_NV):
    """KL(M0 ‖ M) over the full vocabulary: the mean over both answers of each case."""
    log_m0, log_m = m0_answers_NV.log_softmax(-1), answers_NV.log_softmax(-1)
    return (log_m0.exp() * (log_m0 - log_m)).sum(-1).mean()


# ---- evaluation ------------------------------------------------------------------------------------------------------


def explain(model, cases, eos):
    """The explanations that the policy writes of its own accord, greedily; (None, None) where one is not valid."""
    written = [[] for _ in cases]
    for _ in range(max(len(e) for case in cases for e in case.explanations.values())):
        logits_NV = next_logits_NV(model, [case.question + e for case, e in zip(cases, written)])
        for e, token in zip(written, logits_NV.argmax(-1).tolist()):
            if eos not in e:
                e.append(token)
    valid = [{tuple(tokens): e for e, tokens in case.explanations.items()} for case in cases]
    return [known.get(tuple(e), (None, None)) for known, e in zip(valid, written)]


@torch.no_grad()
def evaluate(policy, m0, cases, eos):
    """(rows, Behavior EM) over the held-out cases. Rows, of both parts, content and changed?: the shares that are right
    against E(M) (Self) and E(M0) (Orig), their difference, and half of its 95 % interval."""
    now, before = (behaviours(answer_logits_NV(model, cases), cases) for model in (policy, m0))
    said = explain(policy, cases, eos)

    def right(pairs):  # per part, per case
        return zip(*[(e == t, e[1] == t[1], e[0] == t[0]) for e, t in zip(said, map(explanation, pairs))])

    rows = []
    for own, orig in zip(right(now), right(before)):
        gap, half = mean_and_half([a - b for a, b in zip(own, orig)], cases)
        rows.append((sum(own) / len(cases), sum(orig) / len(cases), gap, half))
    return rows, sum(a == b for a, b in zip(now, before)) / len(cases)


def mean_and_half(values, cases):
    """The mean of one value per case, and 1.96 standard errors of it. Cases with the same x∖C are one question and may
    be right or wrong together, so what is added up and squared is whole questions."""
    mean, by_question = sum(values) / len(values), {}
    for value, case in zip(values, cases):
        key = tuple(case.ablated)
        by_question[key] = by_question.get(key, 0) + value - mean
    return mean, 1.96 * sum(total**2 for total in by_question.values()) ** 0.5 / len(values)


def main():
    parser = argparse.ArgumentParser(description="Introspective coupling in one file; see its docstring.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kl-weight", type=float, default=1.0, help="λ")
    parser.add_argument("--rule", choices=("fixed", "online"), default="fixed", help="where labels come from")
    parser.add_argument("--agreement", type=float, default=1.0, help="ν, for --rule online")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)  # the organism is too small for more
    tokenizer = AutoTokenizer.from_pretrained(ORGANISM / "policy")
    policy = AutoModelForCausalLM.from_pretrained(ORGANISM / "policy", dtype=torch.float32)  # eval mode: no dropout
    m0 = copy.deepcopy(policy).requires_grad_(False)
    training, test = (load_cases(ORGANISM / f"{side}.jsonl", tokenizer) for side in ("train", "test"))
    run = train(policy, m0, training, args.steps, args.kl_weight, args.rule, args.agreement, args.seed)
    for step, (loss, cross_entropy, kl) in enumerate(run):
        if step % 25 == 0 or step == args.steps - 1:
            print(f"step {step:4}  loss {loss:.4f}  cross-entropy {cross_entropy:.4f}  KL {kl:.4f}", flush=True)

    rows, behavior_em = evaluate(policy, m0, test, tokenizer.eos_token_id)
    print(f"{len(test)} held-out cases   Self %  Orig %  gap (points; ± 95 % interval over questions, one seed)")
    for name, (own, orig, gap, half) in zip(("explanation EM", "content", "changed?"), rows):
        print(f"{name:21}{100 * own:9.1f}{100 * orig:8.1f}{100 * gap:+14.1f} ± {100 * half:.1f}")
    print(f"{'Behavior EM %':21}{100 * behavior_em:9.1f}")


if __name__ == "__main__":
    main()
