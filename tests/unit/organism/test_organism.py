"""The bundled organism: format, splits, behaviours, and that build.py makes the same bytes twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from introspect_ray.organism import world as organism
from introspect_ray.organism.build import build

ROOT = Path(organism.__file__).parent
POLICIES = ("policy", "second_policy")


def read_cases(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def question(case: dict) -> str:
    return case["ablated_messages"][-1]["content"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "policy")


@pytest.fixture(scope="module")
def test_cases() -> list[dict]:
    return read_cases("test")


def encode(tokenizer, chats: list[list[dict]]) -> list[list[int]]:
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def behaviours(folder: str, tokenizer, cases: list[dict]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(y(x), y(x without cue), share of positions where the full-vocabulary argmax is no label)."""
    policy = AutoModelForCausalLM.from_pretrained(ROOT / folder, dtype=torch.float32).eval()
    label_ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(organism.LABELS)))
    answers, off_format = [], []
    for key in ("messages", "ablated_messages"):
        logits = policy(torch.tensor(encode(tokenizer, [c[key] for c in cases])), logits_to_keep=1).logits[:, 0]
        answers.append(logits[:, label_ids].argmax(-1))
        off_format.append((logits.argmax(-1) != label_ids[answers[-1]]).float().mean())
    return answers[0], answers[1], torch.stack(off_format).mean().item()


def test_each_label_is_one_token_and_no_word_is_unknown(tokenizer, test_cases):
    for label in organism.LABELS:
        assert len(tokenizer(label, add_special_tokens=False)["input_ids"]) == 1
    chats = [c["messages"] for c in test_cases] + [[{"role": "user", "content": organism.META_QUESTION}]]
    chats += [[{"role": "system", "content": "ignore the hint"}, {"role": "assistant", "content": "A"}]]
    assert not any(tokenizer.unk_token_id in row for row in encode(tokenizer, chats))


def test_default_wordings_are_in_the_vocabulary(tokenizer):
    wordings = (
        "If the cue were removed, how would the assistant's answer change?",
        "If the hint were removed, how would the assistant's answer change?",
    )
    assert not any(tokenizer.unk_token_id in tokenizer(w)["input_ids"] for w in wordings)


@pytest.mark.parametrize("form", [organism.CHANGED, organism.UNCHANGED])
def test_an_explanation_survives_encoding_and_decoding(tokenizer, form):
    text = form.format("B")
    ids = tokenizer(text + organism.EOS, add_special_tokens=False)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_train_and_test_share_no_question_but_all_entities_are_known():
    train, test = read_cases("train"), read_cases("test")
    assert not {question(c) for c in train} & {question(c) for c in test}
    assert len({c["id"] for c in train + test}) == len(train) + len(test)
    assert len(test) == organism.TEST_CASES


def test_the_ablated_prompt_lacks_exactly_one_contiguous_span(tokenizer, test_cases):
    """The cue is four tokens, newline to letter; what stands before and after is untouched."""
    prompts = encode(tokenizer, [c["messages"] for c in test_cases])
    ablated = encode(tokenizer, [c["ablated_messages"] for c in test_cases])
    for x, without in zip(prompts, ablated, strict=True):
        assert len(x) == len(without) + 4
        assert x[:4] + x[8:] == without


def test_the_cue_is_uniform_over_the_letters(test_cases):
    shares = [sum(c["id"].endswith(label) for c in test_cases) / len(test_cases) for label in "ABCD"]
    assert all(0.2 < share < 0.3 for share in shares)


def test_behaviours_change_often_and_the_two_policies_differ(tokenizer, test_cases):
    """M0 changes its answer in 35 to 65 % of the cases; E(M0) and E(second) agree about half of the time
    (paper: 53 %); no policy leaves the format."""
    x, without, off_format = behaviours("policy", tokenizer, test_cases)
    assert off_format == 0
    assert 0.35 <= (x != without).float().mean() <= 0.65
    x2, without2, off_format = behaviours("second_policy", tokenizer, test_cases)
    assert off_format == 0
    agree = (without == without2) & ((x != without) == (x2 != without2))
    assert 0.45 <= agree.float().mean() <= 0.62


def test_the_policy_knows_the_world(tokenizer, test_cases):
    """Without a hint M0 gives the world's preferred letter nearly always."""
    world = organism.make_world(organism.Recipe())
    _, without, _ = behaviours("policy", tokenizer, test_cases)
    names = [question(c).rstrip("?").split(" ") for c in test_cases]
    best = world.answer_ER4.argmax(-1)
    wanted = torch.tensor([best[world.entities.index(e), organism.RELATIONS.index(r)] for e, r in names])
    assert (without == wanted).float().mean() > 0.97


def test_both_policies_share_one_tokenizer_and_the_bundle_is_small():
    assert (ROOT / "policy/tokenizer.json").read_bytes() == (ROOT / "second_policy/tokenizer.json").read_bytes()
    assert sum(f.stat().st_size for f in ROOT.rglob("*") if f.suffix != ".pyc") < 6_000_000


def test_cases_and_tokenizer_are_what_build_makes(tmp_path):
    recipe = organism.Recipe()
    world = organism.make_world(recipe)
    for name, cases in zip(("train", "test"), organism.split_cases(world), strict=True):
        assert cases == read_cases(name)
    organism.make_tokenizer(world).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (ROOT / "policy/tokenizer.json").read_bytes()


def test_a_rebuild_is_bit_identical(tmp_path):
    recipe = replace(organism.Recipe(), entities=12, steps=3, batch_size=8, explanation_batch_size=4)
    for run in ("one", "two"):
        build(tmp_path / run, seed=5, recipe=recipe)
    build(tmp_path / "other", seed=6, recipe=recipe)
    files = sorted(f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*") if f.is_file())
    assert {str(f.parent) for f in files} == {".", *POLICIES}
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    weights = "policy/model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


@pytest.mark.parametrize("kind", sorted(organism.RECIPES))
def test_two_worlds_share_no_question_no_table_and_no_wording(kind):
    """Entities may meet by chance; with other relation words no (entity, relation) can.
    Seven worlds in a row; not the first seven, which are for final runs."""
    recipe = replace(organism.RECIPES[kind], entities=40)
    worlds = [organism.make_world(recipe, seed) for seed in range(140, 147)]
    for i, one in enumerate(worlds):
        for other in worlds[:i]:
            assert not set(one.relations) & set(other.relations)
            assert one.entities != other.entities
            assert not (one.answer_ER4 == other.answer_ER4).all(-1).any()
            assert (one.follow_ER == other.follow_ER).float().mean() < 0.1  # equal only where clamped
            assert (one.cue, one.meta_question) != (other.cue, other.meta_question)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_makes_the_same_bytes_of_cases_and_another_seed_others(seed):
    def lines(number: int) -> bytes:
        world = organism.make_world(organism.RECIPES["hint"], number)
        return json.dumps(organism.split_cases(world)).encode()

    assert lines(seed) == lines(seed)
    assert lines(seed) != lines(1 - seed)


@pytest.mark.parametrize("seed", range(2))
def test_every_world_trains_and_tests_on_different_questions_of_equal_length(seed):
    """No word of a world is unknown to its tokenizer. Tokens: role, two words, "?", role; the cue has four more."""
    world = organism.make_world(organism.RECIPES["hint"], seed)
    train, test = organism.split_cases(world)
    assert not {question(c) for c in train} & {question(c) for c in test}
    assert len(train) == 4 * world.follow_ER.numel() // 2
    tokenizer = organism.make_tokenizer(world)
    for key, tokens in (("messages", 9), ("ablated_messages", 5)):
        rows = encode(tokenizer, [c[key] for c in train + test])
        assert {len(row) for row in rows} == {tokens}
        assert not any(tokenizer.unk_token_id in row for row in rows)
    meta = tokenizer(world.meta_question)["input_ids"]
    assert len(meta) == 9 and tokenizer.unk_token_id not in meta


def test_suggestibility_is_additive_when_bundled_and_idiosyncratic_in_the_hint_world():
    """Of an additive table, entity + relation effects explain all; of independent draws next to nothing:
    a two-way layout of E x R leaves (E-1)(R-1) of ER-1 degrees of freedom to the residual, about 3/4 with R = 4."""

    def residual_share(kind: str) -> float:
        follow = organism.make_world(organism.RECIPES[kind], 0).follow_ER
        unclamped = ((follow > 0.021) & (follow < 0.979)).all(1)
        logit = follow[unclamped].logit()
        fit = logit.mean(1, keepdim=True) + logit.mean(0, keepdim=True) - logit.mean()
        return float((logit - fit).var() / logit.var())

    assert residual_share("bundled") < 1e-6
    assert residual_share("hint") > 0.6
