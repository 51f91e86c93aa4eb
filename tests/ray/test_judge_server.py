"""ChatEndpoint and LLMJudge against vLLM's own OpenAI server, with the organism as the judging policy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from introspect_ray.config.judges import JudgeConfig
from introspect_ray.errors import UserError
from introspect_ray.judges import ChatEndpoint, LLMJudge, Reply, make_endpoint
from introspect_ray.policy import local_policy
from introspect_ray.records import Message

START_SECONDS = 280
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # vLLM's server starts in about a minute on two idle cores
# Questions of the organism's world, with a "hint" that is the response to be judged. It answers with a letter A to D.
INSTRUCTION = "{prompt}\nHint: {response}"
QUESTIONS = ("sofa color?", "gedu color?", "kape guild?", "bafe metal?", "fefi metal?", "kape color?")
REPLIES = [
    Reply(f"{question}-{letter}", ({"role": "user", "content": question},), letter)
    for question in QUESTIONS
    for letter in "ABCD"
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a vLLM server on loopback that serves the organism as "judge", ended by its pid."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(local_policy("organism"))]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--generation-config", "vllm", "--enforce-eager", "--max-model-len", "128", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "16"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "VLLM_CACHE_ROOT": str(folder / "vllm"), "VLLM_HOST_IP": "127.0.0.1"}
    env.pop("VLLM_CPU_KVCACHE_SPACE", None)
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        _wait(process, url, folder / "server.log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    """Until the server lists its models."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ChatEndpoint(url, "judge", key_env=None, patience=0).check()
            return
        except UserError:
            time.sleep(0.5)
    raise RuntimeError(f"the vLLM server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def transformers_greedy(chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
    """The same chats by transformers, one at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(local_policy("organism"))
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    texts = []
    for chat in chats:
        ids = tokenizer.apply_chat_template(
            list(chat), add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def test_verdicts_are_those_of_transformers(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    cfg = JudgeConfig(kind="llm", endpoint=server, model="judge", parallel=8)
    endpoint = make_endpoint(cfg)
    endpoint.check()
    with pytest.raises(UserError, match=r"no model 'other': set judge\.model to one of judge$"):
        make_endpoint(cfg.model_copy(update={"model": "other"})).check()
    judges = [
        LLMJudge(complete, labels=("A", "B"), instruction=INSTRUCTION)
        for complete in (endpoint.complete, transformers_greedy)
    ]
    served, local = (judge.verdicts(REPLIES) for judge in judges)
    # vLLM detokenizes piece by piece, which puts a space before the organism's words
    assert [(label, said.strip()) for label, said in served] == [(label, said.strip()) for label, said in local]
    assert {label for label, _ in served} == {"A", "B", None}  # C and D are no labels of this judge


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    chat = ({"role": "user", "content": "metal " * 200},)
    with pytest.raises(UserError, match=r"HTTP 400 .*128.*: check judge.model, judge.request and the length"):
        ChatEndpoint(server, "judge").complete([chat], 4)
