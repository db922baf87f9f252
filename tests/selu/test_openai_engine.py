"""The OpenAI-compatible engine against a real server on the loopback, behind which the embedded model answers."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image
from transformers import LogitsProcessorList

from selu.budget import counted
from selu.config import ModelSettings
from selu.errors import ConfigError, TransientError
from selu.finetuning import finetune
from selu.models import Prompt, TransformersModel, load_model, model_revision, openai_engine
from selu.models.first_token import first_token_scores
from selu.models.transformers_engine import _GumbelNoise
from tests.selu.test_finetuning import SETTINGS, rows
from tests.tiny_model import inputs_of

EMBEDDED = ModelSettings(threads=1)


@dataclass
class Server:
    """What a test may look at, and change, of the server."""

    address: str = ""
    trouble: list[str] = field(default_factory=list)
    """What goes wrong next: a status, "slow", "nonsense", "no choice" or "no log-probabilities"."""
    key: str | None = None
    requests: int = 0
    busy: int = 0
    most_busy: int = 0


def complete(model: TransformersModel, body: dict[str, Any]) -> dict[str, Any]:
    """One chat completion, as the protocol has it."""
    (message,) = body["messages"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    (text,) = [part["text"] for part in message["content"] if part["type"] == "text"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    weights = model._weights
    tokenizer = weights.processor.tokenizer
    noise = [_GumbelNoise(body["temperature"], [body["seed"]])] if body["temperature"] else []
    with weights.lock, torch.inference_mode():
        inputs = inputs_of(model, [Prompt(tuple(np.asarray(image) for image in images), text)])
        output = weights.model.generate(
            **inputs,
            max_new_tokens=body["max_tokens"],
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList(noise),
        )
    read = inputs["input_ids"].shape[1]
    written = output.sequences[0, read:].tolist()
    content = []
    for token, logits in zip(written, output.logits, strict=True):
        likely = logits[0].double().log_softmax(-1)
        best = likely.topk(body.get("top_logprobs", 0))
        alternatives = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        content.append(
            {
                "token": tokenizer.decode([token]),
                "logprob": float(likely[token]),
                "bytes": None,
                "top_logprobs": [
                    {"token": tokenizer.decode([other]), "logprob": value} for other, value in alternatives
                ],
            }
        )
    reply = {"role": "assistant", "content": tokenizer.decode(written, skip_special_tokens=True)}
    choice = {"index": 0, "message": reply, "logprobs": {"content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": read, "completion_tokens": len(written), "total_tokens": read + len(written)}
    return {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    model = load_model(EMBEDDED)
    assert isinstance(model, TransformersModel)
    state, lock, app = Server(), threading.Lock(), FastAPI()

    # A plain function: the server runs each request in a thread of its own, as they come.
    def answer(request: Request, body: dict[str, Any]) -> Response:
        with lock:
            state.requests += 1
            state.busy += 1
            state.most_busy = max(state.busy, state.most_busy)
            trouble = state.trouble.pop(0) if state.trouble else ""
        try:
            if state.key is not None and request.headers.get("authorization") != f"Bearer {state.key}":
                return JSONResponse({"error": {"message": "no such key"}}, 401)
            if trouble.isdigit():
                return JSONResponse({"error": {"message": f"trouble {trouble}"}}, int(trouble))
            if trouble == "slow":
                time.sleep(1.0)
            if trouble == "nonsense":
                return PlainTextResponse("<html>Welcome to the router</html>")
            if body["model"] != "household":
                return JSONResponse({"error": {"message": f"the model {body['model']} does not exist"}}, 404)
            completion = complete(model, body)
            if trouble == "no choice":
                completion["choices"] = []
            if trouble == "no log-probabilities":
                completion["choices"][0]["logprobs"] = None
            return JSONResponse(completion)
        finally:
            with lock:
                state.busy -= 1

    app.post("/v1/chat/completions")(answer)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    state.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield state
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(openai_engine, "_FIRST_PAUSE", 0.01)
    running.trouble, running.key, running.requests, running.most_busy = [], None, 0, 0
    return running


def settings(server: Server, **changes: Any) -> ModelSettings:
    return ModelSettings(
        **{"engine": "openai", "path": "household", "base_url": server.address, "prompts": "brief", **changes}
    )


def prompts(n: int = 6) -> list[Prompt]:
    rng = np.random.default_rng(0)
    names = ("mug", "fridge", "drawer", "apple")
    return [
        Prompt((rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),), f"Is the {names[i % 4]} in view?")
        for i in range(n)
    ]


def test_the_server_answers_as_the_model_does(server: Server) -> None:
    asked, here = prompts(), load_model(EMBEDDED)
    with counted() as tokens:
        there = load_model(settings(server)).generate(asked, max_new_tokens=6)
    expected = here.generate(asked, max_new_tokens=6)
    assert [reply.text for reply in there] == [reply.text for reply in expected]
    np.testing.assert_allclose(
        [reply.log_probability for reply in there], [reply.log_probability for reply in expected], atol=1e-3
    )
    assert tokens.read > 36 * len(asked) < tokens.written + 36 * len(asked), "a picture is 36 tokens"
    seeds = list(range(len(asked)))
    drawn = load_model(settings(server)).generate(asked, max_new_tokens=6, temperature=2.0, seeds=seeds)
    again = here.generate(asked, max_new_tokens=6, temperature=2.0, seeds=seeds)
    assert [reply.text for reply in drawn] == [reply.text for reply in again]
    with pytest.raises(ValueError, match="one seed a prompt"):
        load_model(settings(server)).generate(asked, max_new_tokens=6, temperature=1.0)


def test_choices_are_scored_by_the_servers_log_probabilities(server: Server) -> None:
    asked = prompts()
    scores = load_model(settings(server)).score(asked, ["yes", "no"])
    np.testing.assert_allclose(scores, load_model(EMBEDDED).score(asked, ["yes", "no"]), atol=0.02)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0)
    # Nothing that the model would ever say: no choice is likelier than another.
    np.testing.assert_allclose(np.exp(load_model(settings(server)).score(asked[:1], ["@@", "##"])), [[0.5, 0.5]])


def test_a_first_token_counts_whatever_its_case_and_space() -> None:
    likely = [("Yes", 0.3), (" yes", 0.2), ("No", 0.4), ("The", 0.1)]
    alternatives = [(token, float(np.log(share))) for token, share in likely]
    scores = first_token_scores(alternatives, ["yes", "no", "maybe"])
    np.testing.assert_allclose(np.exp(scores), [0.5, 0.4, 0.1])
    with pytest.raises(ConfigError, match="'No' begins 'no' and 'nothing'"):
        first_token_scores(alternatives, ["no", "nothing"])


def test_requests_go_side_by_side_within_bounds(server: Server) -> None:
    server.trouble = ["slow"] * 4
    load_model(settings(server, concurrency=2)).generate(prompts(5), max_new_tokens=1)
    assert server.most_busy == 2


@pytest.mark.parametrize("trouble", ["500", "503", "429"])
def test_a_server_that_fails_twice_then_works(server: Server, trouble: str) -> None:
    server.trouble = [trouble, trouble]
    replies = load_model(settings(server, retries=2)).generate(prompts(1), max_new_tokens=3)
    assert replies[0].text
    assert server.requests == 3


def test_a_server_that_never_works_is_given_up(server: Server) -> None:
    server.trouble = ["503"] * 9
    with pytest.raises(TransientError, match="answered with status 503, 3 times in a row"):
        load_model(settings(server, retries=2)).generate(prompts(1), max_new_tokens=3)
    assert server.requests == 3


def test_a_server_that_is_slow_is_asked_again(server: Server) -> None:
    asked = prompts(1)
    server.trouble = ["slow"]
    assert load_model(settings(server, timeout=0.5, retries=1)).generate(asked, max_new_tokens=1)
    server.trouble = ["slow", "slow"]
    with pytest.raises(TransientError, match=r"did not answer within 0\.5 s, 2 times in a row"):
        load_model(settings(server, timeout=0.5, retries=1)).generate(asked, max_new_tokens=1)


def test_a_server_that_is_not_there(server: Server) -> None:
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:9/v1 cannot be reached"):
        load_model(settings(server, base_url="http://127.0.0.1:9/v1", retries=1)).score(prompts(1), ["yes", "no"])


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("nonsense", "did not answer in the OpenAI protocol but with: .<html>Welcome"),
        ("no choice", "answered without a choice"),
        ("no log-probabilities", "gave no log-probabilities for household"),
        ("400", "refused the request with status 400: .*trouble 400"),
    ],
)
def test_nonsense_is_said_once_and_not_asked_again(server: Server, trouble: str, sentence: str) -> None:
    server.trouble = [trouble]
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_model(settings(server)).generate(prompts(1), max_new_tokens=3)
    assert server.requests == 1
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_one_clear_sentence(server: Server) -> None:
    with pytest.raises(ConfigError, match="the model other does not exist"):
        load_model(settings(server, path="other")).generate(prompts(1), max_new_tokens=3)


def test_the_key_comes_from_the_environment_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "only-here"
    with pytest.raises(ConfigError, match="environment variable OUR_KEY"):
        load_model(settings(server, api_key_variable="OUR_KEY")).generate(prompts(1), max_new_tokens=3)
    monkeypatch.setenv("OUR_KEY", "only-here")
    model = load_model(settings(server, api_key_variable="OUR_KEY"))
    assert model.generate(prompts(1), max_new_tokens=3)
    assert "only-here" not in repr(model) + model.revision + settings(server).model_dump_json()


def test_what_cannot_work_is_refused_before_anything_is_sent(server: Server, tmp_path: Path) -> None:
    for change, sentence in (
        ({"base_url": None}, "needs the address of the server"),
        ({"path": "embedded"}, "needs the server's name for the model"),
        ({"adapter": tmp_path}, "cannot bring the adapter"),
    ):
        for refused in (load_model, model_revision):
            with pytest.raises(ConfigError, match=sentence):
                refused(settings(server, **change))
    with pytest.raises(ConfigError, match="cannot bring the adapter"):
        load_model(settings(server)).with_adapter(tmp_path)
    with pytest.raises(ConfigError, match="engine=openai cannot be fine-tuned"):
        finetune(settings(server), rows(2), SETTINGS, seed=0, out=tmp_path)
    assert server.requests == 0


def test_the_revision_is_of_server_name_and_setting(server: Server) -> None:
    one = model_revision(settings(server))
    assert one == load_model(settings(server)).revision == load_model(settings(server)).with_adapter(None).revision
    assert len({one, *(model_revision(settings(server, **{key: "x"})) for key in ("path", "revision"))}) == 3
