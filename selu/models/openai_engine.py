"""Models behind any server that speaks the OpenAI protocol (``/chat/completions``), asked in parallel.

The server must give log-probabilities: they are the confidence of an answer. Its weights are out of reach, so that such a
model can act and judge but is never fine-tuned. The protocol is that of https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from selu.budget import count_tokens
from selu.errors import ConfigError, TransientError
from selu.frames import encode_picture
from selu.models.base import Prompt, Reply
from selu.models.first_token import ALTERNATIVES, first_token_scores
from selu.prompting import PromptStyle

if TYPE_CHECKING:
    from selu.config import ModelSettings

__all__ = ["OpenAIModel", "load_model", "model_revision"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds; each pause is twice the one before."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses of a server that is busy, restarting or behind a proxy that lost it."""


# ---- the parts of an answer that are read


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _LogProbabilities(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _LogProbabilities | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


# ---- finding the model


def load_model(settings: ModelSettings, adapter: Path | None = None) -> OpenAIModel:
    """Return the model that `settings` name; nothing is sent yet.

    Raises:
        ConfigError: the settings name no server or no model, or an adapter, which a server loads by itself.
    """
    _check(settings)
    _refuse_adapter(adapter or settings.adapter)
    return OpenAIModel(settings)


def model_revision(settings: ModelSettings, adapter: Path | None = None) -> str:
    """Return ``load_model(settings, adapter).revision``: a hash of address, name and the setting ``revision``.

    A server tells no more of the weights behind a name: whoever changes them there changes that setting here.
    """
    _check(settings)
    _refuse_adapter(adapter or settings.adapter)
    told = [settings.base_url, settings.path, settings.revision]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _check(settings: ModelSettings) -> None:
    if settings.base_url is None:
        raise ConfigError(
            "engine=openai needs the address of the server; set base_url, for example to http://127.0.0.1:8000/v1."
        )
    if settings.path == "embedded":
        raise ConfigError("engine=openai needs the server's name for the model; set path to it.")


def _refuse_adapter(path: Path | None) -> None:
    if path is not None:
        raise ConfigError(
            f"engine=openai cannot bring the adapter {path} to the server; load it there (vLLM: --lora-modules) and give its "
            "name as path, or use engine=vllm or transformers."
        )


def _key(variable: str) -> str:
    """The key out of the environment, empty if there is none.

    Raises:
        ConfigError: it cannot be sent; libraries further down would say it in their own error.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The environment variable {variable} holds no key that can be sent; it must be one line of printable ASCII."
        )
    return key


class OpenAIModel:
    """A :class:`~selu.models.base.VisionLanguageModel` that asks a server. Thread-safe."""

    def __init__(self, settings: ModelSettings) -> None:
        self.prompt_style: PromptStyle = settings.prompt_style
        self._settings = settings
        self._url = str(settings.base_url).rstrip("/") + "/chat/completions"
        self._key = _key(settings.api_key_variable)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )

    def __repr__(self) -> str:
        return f"OpenAIModel({self._settings.path!r} at {self._settings.base_url!r})"

    @property
    def revision(self) -> str:
        """See :func:`model_revision`."""
        return model_revision(self._settings.model_copy(update={"adapter": None}))

    def with_adapter(self, path: Path | None) -> OpenAIModel:
        """Return this model, which is under whatever adapter the server has.

        Raises:
            ConfigError: `path` is an adapter.
        """
        _refuse_adapter(path)
        return self

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Answer each prompt; see :meth:`~selu.models.base.VisionLanguageModel.generate`.

        Whether equal seeds give equal replies is up to the server, and so is whether the end of the turn counts in a
        reply's probability.
        """
        if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
            raise ValueError(
                f"Sampling needs one seed a prompt, got {0 if seeds is None else len(seeds)} for {len(prompts)} prompts."
            )

        def answer(row: int) -> _Completion:
            wanted: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
            if seeds is not None and temperature > 0:
                wanted["seed"] = int(seeds[row]) % 2**63
            return self._ask(prompts[row], wanted)

        replies = []
        for completion in self._together(answer, len(prompts)):
            tokens = self._tokens(completion)
            total = sum(token.logprob for token in tokens)
            replies.append(Reply((completion.choices[0].message.content or "").strip(), round(total, 4)))
        return replies

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> NDArray[np.float64]:
        """Score each choice as a reply by its first token; see :meth:`~selu.models.base.VisionLanguageModel.score`.

        It is :func:`~selu.models.first_token.first_token_scores` of the 20 likeliest.

        Raises:
            ValueError: there is no choice, or two are the same.
            ConfigError: a first token begins two of the choices, so that it does not tell them apart.
        """
        if not choices or len(set(choices)) != len(choices):
            raise ValueError(f"Choices must be distinct and at least one, got {list(choices)!r}.")

        def answer(row: int) -> _Completion:
            wanted = {"max_tokens": 1, "temperature": 0.0, "top_logprobs": ALTERNATIVES}
            return self._ask(prompts[row], wanted)

        table = np.empty((len(prompts), len(choices)))
        for row, completion in enumerate(self._together(answer, len(prompts))):
            tokens = self._tokens(completion)
            alternatives = tokens[0].top_logprobs if tokens else []
            if not alternatives:
                raise self._no_log_probabilities("the likeliest tokens (top_logprobs)")
            likely = [(alternative.token, alternative.logprob) for alternative in alternatives]
            table[row] = first_token_scores(likely, choices)
        return table - np.logaddexp.reduce(table, axis=1, keepdims=True)

    # -- requests

    def _together(self, answer: Callable[[int], _Completion], n: int) -> list[_Completion]:
        """Answers to rows 0..n-1, some at a time; the first failure ends it."""
        with ThreadPoolExecutor(max_workers=self._settings.concurrency) as pool:
            tasks = [pool.submit(answer, row) for row in range(n)]
            try:
                answers = [task.result() for task in tasks]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        for completion in answers:
            if completion.usage is not None:
                count_tokens(read=completion.usage.prompt_tokens, written=completion.usage.completion_tokens)
        return answers

    def _ask(self, prompt: Prompt, wanted: dict[str, Any]) -> _Completion:
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(image)}"}}
            for image in prompt.images
        ]
        turn = {"role": "user", "content": [*pictures, {"type": "text", "text": prompt.text}]}
        body = {"model": self._settings.path, "messages": [turn], "logprobs": True, **wanted}
        for attempt in range(self._settings.retries + 1):
            try:
                response = self._client.post(self._url, json=body)
            except httpx.TimeoutException:
                failure, pause = f"did not answer within {self._settings.timeout:g} s", None
            except httpx.TransportError as error:
                failure, pause = f"cannot be reached ({error or type(error).__name__})", None
            else:
                if response.status_code not in _PASSING:
                    return self._read(response)
                failure, pause = f"answered with status {response.status_code}", response.headers.get("retry-after")
            if attempt < self._settings.retries:
                time.sleep(_pause(attempt, pause))
        raise TransientError(
            f"The server at {self._settings.base_url} {failure}, {self._settings.retries + 1} times in a row; look whether it "
            "runs, or raise timeout or retries."
        )

    def _read(self, response: httpx.Response) -> _Completion:
        address, status = self._settings.base_url, response.status_code
        if status in {401, 403}:
            raise ConfigError(
                f"The server at {address} refused the key (status {status}); put the right one into the environment variable "
                f"{self._settings.api_key_variable}, or name another with api_key_variable."
            )
        if status != httpx.codes.OK:
            raise ConfigError(
                f"The server at {address} refused the request with status {status}: {self._shortened(response.text)} Check "
                f"base_url and the model's name ({self._settings.path})."
            )
        try:
            completion = _Completion.model_validate_json(response.content)
        except ValidationError:
            # Its own error says what it was given, word for word.
            raise ConfigError(
                f"The server at {address} did not answer in the OpenAI protocol but with: {self._shortened(response.text)} Check "
                "base_url."
            ) from None
        if not completion.choices:
            raise ConfigError(
                f"The server at {address} answered without a choice; it does not speak the OpenAI protocol."
            )
        return completion

    def _tokens(self, completion: _Completion) -> list[_Token]:
        log_probabilities = completion.choices[0].logprobs
        if log_probabilities is None or log_probabilities.content is None:
            raise self._no_log_probabilities("log-probabilities")
        return log_probabilities.content

    def _shortened(self, text: str) -> str:
        """The beginning of what a server said, without the key should it have said that."""
        words = " ".join(text.replace(self._key, "[key]").split() if self._key else text.split())
        return f"{words[:200]!r}." if words else "nothing."

    def _no_log_probabilities(self, what: str) -> ConfigError:
        return ConfigError(
            f"The server at {self._settings.base_url} gave no {what} for {self._settings.path}, which the confidence of an "
            "answer is made of; use a server that does, such as vLLM."
        )


def _base64(image: NDArray[np.uint8]) -> str:
    return base64.b64encode(encode_picture(image)).decode()


def _pause(attempt: int, wanted: str | None) -> float:
    """Seconds before the next try; a server may ask for its own number of them."""
    own = float(wanted) if wanted is not None and wanted.isdigit() else 0.0
    return min(_LONGEST_PAUSE, max(own, _FIRST_PAUSE * 2.0**attempt))
