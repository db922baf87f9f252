"""Pretrains the embedded base model: a stock Idefics3 that learns to see and speak in the base scenes.

What makes it learn in an hour on a CPU: many question turns packed on one image (a block mask and reset positions make
each turn look as if it were alone), and an auxiliary dense loss that names what each patch shows, at the vision tower
and, through the word embeddings, at the connector.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from selu.base_model.corpus import TYPES, Demonstrations, FrameSet, Turn, language_turns, question_turns
from selu.base_model.processor import build_tokenizer, image_token_count
from selu.worlds.vocabulary import NAMES

__all__ = ["Pretrainer", "Recipe", "build_model", "household_tokenizer"]

STATE_BITS = 4


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of the pretraining."""

    width: int = 128
    vision_layers: int = 5
    text_layers: int = 3
    image_size: int = 96
    patch_size: int = 8
    scale_factor: int = 2
    batch_size: int = 32
    demonstration_batch_size: int = 48
    turns: int = 10
    language_share: float = 0.2
    """Share of the frames that also carry a language turn."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 150
    auxiliary_weight: float = 1.0
    state_weight: float = 2.0
    """Weight of questions about states, against 1 of the others."""
    seeing_share: float = 0.2
    """Share of the steps, at the start, in which only the dense loss is trained."""
    constant_share: float = 0.5
    """Share of the steps before the learning rate starts to fall."""
    steps: int = 8000
    seed: int = 0


def household_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded model: every word of the corpus is one token."""
    from selu.base_model.corpus import corpus_texts

    return build_tokenizer(corpus_texts(), [n for n in NAMES.values() if " " in n])


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """A randomly initialised Idefics3 of the recipe's size."""
    width, heads = recipe.width, recipe.width // 32
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": recipe.text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": recipe.vision_layers,
        "num_attention_heads": heads,
        "image_size": recipe.image_size,
        "patch_size": recipe.patch_size,
    }
    config = Idefics3Config(  # type: ignore[call-arg]
        vision_config=vision,
        text_config=text,
        image_token_id=token_id(tokenizer, "<image>"),
        scale_factor=recipe.scale_factor,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(recipe.seed)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


class _Encoder:
    """Texts to token ids, remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]


@dataclass
class _Batch:
    pixels: Tensor
    ids: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor
    mask: Tensor
    answers: list[list[tuple[str, int, list[int]]]]


STATE_KINDS = {"open", "on", "broken", "sliced", "what_open", "what_on", "what_broken", "inside", "support", "holding"}


class Pretrainer:
    """Trains and measures a model on frame sets, question turns and weak demonstrations."""

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, model: Idefics3ForConditionalGeneration
    ) -> None:
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        self.encode = _Encoder(tokenizer)
        self.image_tokens = image_token_count(recipe.image_size, recipe.patch_size, recipe.scale_factor)
        fake, image = token_id(tokenizer, "<fake_token_around_image>"), token_id(tokenizer, "<image>")
        before = [token_id(tokenizer, "<s>"), fake, token_id(tokenizer, "<global-img>")]
        self.prefix = [*before, *[image] * self.image_tokens, fake]
        self.assistant, self.end = token_id(tokenizer, "<|assistant|>"), token_id(tokenizer, "</s>")
        torch.manual_seed(recipe.seed + 1)
        self.patch_head = nn.Linear(recipe.width, len(TYPES) + 1 + STATE_BITS)
        # A type has two words: spoken (" fridge") and in an action ("Fridge"); a patch is pulled towards both.
        self.spoken = torch.tensor([self.encode(" nothing")[0]] + [self.encode(" " + NAMES[t])[0] for t in TYPES])
        self.written = torch.tensor([self.encode(" nothing")[0]] + [self.encode(f"Open({t})")[2] for t in TYPES])
        self.state_words = torch.tensor([self.encode(w)[0] for w in (" open", " on", " broken", " sliced")])

    # --- batches ---------------------------------------------------------------------------------------------

    def batch(self, rgb: NDArray[np.uint8], turns: Sequence[Sequence[Turn]]) -> _Batch:
        """Pack the turns of each frame behind its image; each turn sees the image and itself alone."""
        rows: list[tuple[list[int], list[int], list[float], list[int], list[int]]] = []
        answers: list[list[tuple[str, int, list[int]]]] = []
        start = len(self.prefix)
        for frame_turns in turns:
            ids, targets = list(self.prefix), [-100] * start
            weights, positions, segments = [0.0] * start, list(range(start)), [0] * start
            found = []
            for j, turn in enumerate(frame_turns, start=1):
                question = [*self.encode(turn.question), self.assistant]
                answer = [*self.encode(turn.answer), self.end]
                found.append((turn.kind, len(ids) + len(question), answer))
                weight = self.recipe.state_weight if turn.kind in STATE_KINDS else 1.0
                ids += question + answer
                targets += [-100] * len(question) + answer
                weights += [0.0] * len(question) + [weight] * (len(answer) - 1) + [0.3 * weight]
                positions += range(start, start + len(question) + len(answer))
                segments += [j] * (len(question) + len(answer))
            rows.append((ids, targets, weights, positions, segments))
            answers.append(found)
        length = max(len(r[0]) for r in rows)
        filled = np.zeros((5, len(rows), length))
        filled[1], filled[4] = -100, -1
        for b, row in enumerate(rows):
            for q in range(5):
                filled[q, b, : len(row[q])] = row[q]
        ids_, targets_, positions_, segments_ = (torch.from_numpy(filled[q]).long() for q in (0, 1, 3, 4))
        causal = torch.tril(torch.ones(length, length, dtype=torch.bool))
        same = segments_[:, :, None] == segments_[:, None, :]
        allowed = causal & (same | (segments_[:, None, :] == 0))
        mask = torch.zeros(len(rows), 1, length, length).masked_fill_(~allowed[:, None], -1e9)
        pixels = _to_pixels(rgb)
        return _Batch(pixels, ids_, targets_, torch.from_numpy(filled[2]).float(), positions_, mask, answers)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tower output ``(B, patches, width)`` and image tokens ``(B, image_tokens, width)``."""
        tower = self.model.model.vision_model(pixel_values=pixels).last_hidden_state
        return tower, self.model.model.connector(tower)

    def speak(self, batch: _Batch, image_tokens: Tensor) -> Tensor:
        """Hidden states ``(B, L, width)`` of the packed turns."""
        embedded = self.model.get_input_embeddings()(batch.ids)
        k = self.image_tokens
        embedded = torch.cat([embedded[:, :3], image_tokens.to(embedded.dtype), embedded[:, 3 + k :]], 1)
        output = self.model.model.text_model(
            inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    # --- losses ----------------------------------------------------------------------------------------------

    def _shares(self, types: NDArray[np.uint8], states: NDArray[np.uint8], cell: int) -> tuple[Tensor, Tensor]:
        """Share of each type ``(B, cells, T)`` and of each state ``(B, cells, 4)`` in square cells of pixels."""
        b, s = types.shape[:2]
        grid, n = s // cell, len(TYPES) + 1
        index = np.arange(b)[:, None, None] * grid * grid
        index = index + (np.arange(s) // cell)[None, :, None] * grid + (np.arange(s) // cell)[None, None, :]
        counts = np.bincount((index * n + types).ravel(), minlength=b * grid * grid * n)
        kinds = torch.from_numpy(counts.reshape(b, grid * grid, n).astype(np.float32) / cell**2)
        bits = [
            np.bincount(index[(states >> k) & 1 > 0], minlength=b * grid * grid).reshape(b, grid * grid)
            for k in range(STATE_BITS)
        ]
        return kinds, torch.from_numpy(np.stack(bits, -1).astype(np.float32) / cell**2)

    def dense_loss(self, tower: Tensor, tokens: Tensor, types: NDArray[np.uint8], states: NDArray[np.uint8]) -> Tensor:
        """Name what each patch shows (tower), and pull each image token towards the words of what it shows."""
        size = types.shape[1]
        kinds, bits = self._shares(types, states, size // round(tower.shape[1] ** 0.5))
        kinds[..., 0] *= 0.3
        kinds = kinds / kinds.sum(-1, keepdim=True)
        logits = self.patch_head(tower.float())
        n = len(TYPES) + 1
        loss = -(kinds * logits[..., :n].log_softmax(-1)).sum(-1).mean()
        loss = loss + 0.5 * STATE_BITS * functional.binary_cross_entropy_with_logits(
            logits[..., n:], (bits > 0.2).float()
        )
        kinds, bits = self._shares(types, states, size // round(tokens.shape[1] ** 0.5))
        kinds[..., 0] *= 0.3
        kinds = kinds / kinds.sum(-1, keepdim=True)
        words = self.model.get_input_embeddings().weight
        target = torch.zeros(*kinds.shape[:2], words.shape[0])
        target.index_add_(2, self.spoken, kinds * 0.5)
        target.index_add_(2, self.written, kinds * 0.5)
        target.index_add_(2, self.state_words, (bits > 0.1).float() * 0.4)
        target = target / target.sum(-1, keepdim=True)
        near = functional.layer_norm(tokens.float(), tokens.shape[-1:]) @ functional.normalize(words, dim=-1).T * 2
        pulled: Tensor = loss - (target * near.log_softmax(-1)).sum(-1).mean()
        return pulled

    def answer_loss(self, batch: _Batch, hidden: Tensor) -> Tensor:
        """Weighted cross-entropy of the answers' tokens."""
        chosen = batch.targets[:, 1:] != -100
        logits = self.model.lm_head(hidden[:, :-1][chosen]).float()
        losses = functional.cross_entropy(logits, batch.targets[:, 1:][chosen], reduction="none")
        weights = batch.weights[:, 1:][chosen]
        return (losses * weights).sum() / weights.sum()

    # --- training --------------------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the model and the patch head, which is thrown away afterwards."""
        return [*self.model.parameters(), *self.patch_head.parameters()]

    def train(
        self,
        frames: FrameSet,
        *,
        minutes: float | None = None,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
        report_every: int = 500,
        checkpoint: Path | None = None,
    ) -> None:
        """Train for the recipe's steps, or for ``minutes`` with the schedule stretched over them."""
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 1))
        optimizer = torch.optim.AdamW(
            self.parameters(), recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        absent = (frames.pixels >= 32).mean(0) + 0.002
        stateful = (frames.state_pixels.sum((1, 2)) > 0).astype(float)
        odds = 0.5 + stateful
        odds /= odds.sum()
        started, step, losses = time.monotonic(), 0, []
        self.model.train()
        while True:
            elapsed = time.monotonic() - started
            share = step / recipe.steps if minutes is None else elapsed / (60 * minutes)
            if share >= 1:
                break
            rate = 1.0 if share < recipe.constant_share else max(0.02, (1 - share) / (1 - recipe.constant_share))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate * min(1, (step + 1) / recipe.warmup_steps)
            # Sampling with the frame's odds, mirrored half of the time: left becomes right, nothing else changes.
            chosen = rng.choice(len(frames), recipe.batch_size, p=odds)
            loss, row = self._step(frames, chosen, bool(rng.random() < 0.5), rng, absent, share < recipe.seeing_share)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(row)
            step += 1
            if step % report_every == 0:
                mean = np.nanmean(np.array(losses[-report_every:]), 0)
                report(
                    {
                        "step": step,
                        "share": round(share, 4),
                        "seconds": round(time.monotonic() - started),
                        "frames_per_second": round(step * recipe.batch_size / (time.monotonic() - started), 1),
                        "answer_loss": round(float(mean[0]), 4),
                        "dense_loss": round(float(mean[1]), 4),
                    }
                )
                if checkpoint is not None:
                    self.save(checkpoint)
        self.model.eval()

    def _step(
        self,
        frames: FrameSet,
        chosen: NDArray[np.int64],
        mirrored: bool,
        rng: np.random.Generator,
        absent: NDArray[np.float64],
        seeing_only: bool,
    ) -> tuple[Tensor, tuple[float, float]]:
        rgb, types, states = frames.rgb[chosen], frames.types[chosen], frames.states[chosen]
        if mirrored:
            rgb, types, states = rgb[:, :, ::-1], types[:, :, ::-1], states[:, :, ::-1]
        batch_turns: list[list[Turn]] = [[]] * len(chosen)
        if not seeing_only:
            batch_turns = [
                [
                    *_mirror(question_turns(frames, int(i), rng, absent, self.recipe.turns), mirrored),
                    *language_turns(rng, int(rng.random() < self.recipe.language_share)),
                ]
                for i in chosen
            ]
        batch = self.batch(rgb, batch_turns)
        tower, tokens = self.see(batch.pixels)
        dense = self.dense_loss(tower, tokens, types, states)
        loss = self.recipe.auxiliary_weight * dense
        if seeing_only:
            return loss, (float("nan"), float(dense.detach()))
        answers = self.answer_loss(batch, self.speak(batch, tokens))
        return loss + answers, (float(answers.detach()), float(dense.detach()))

    def follow(
        self,
        frames: FrameSet,
        demonstrations: Demonstrations,
        *,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
        report_every: int = 100,
    ) -> None:
        """Learn to act from demonstrations, and go on answering questions, with eyes frozen: the language layers alone.

        What an image's tokens are is then fixed, so that each is computed once; a step costs a tenth.
        """
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, 2))
        absent = (frames.pixels >= 32).mean(0) + 0.002
        seen, shown = self.image_tokens_of(frames.rgb), self.image_tokens_of(demonstrations.rgb)
        trained = [*self.model.model.text_model.parameters()]
        optimizer = torch.optim.AdamW(
            trained, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        started, losses = time.monotonic(), []
        self.model.train()
        for step in range(recipe.steps):
            share = step / recipe.steps
            rate = 1.0 if share < recipe.constant_share else max(0.02, (1 - share) / (1 - recipe.constant_share))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate * min(1, (step + 1) / recipe.warmup_steps)
            acted = rng.choice(len(demonstrations), recipe.demonstration_batch_size)
            turns = [[Turn("act", str(demonstrations.prompts[i]), str(demonstrations.actions[i]))] for i in acted]
            batch = self.batch(demonstrations.rgb[:0], turns)
            acting = self.answer_loss(batch, self.speak(batch, shown[acted]))
            asked = rng.choice(len(frames), recipe.batch_size)
            batch = self.batch(
                frames.rgb[:0],
                [
                    [
                        *question_turns(frames, int(i), rng, absent, recipe.turns),
                        *language_turns(rng, int(rng.random() < recipe.language_share)),
                    ]
                    for i in asked
                ],
            )
            answering = self.answer_loss(batch, self.speak(batch, seen[asked]))
            (acting + answering).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append((float(acting.detach()), float(answering.detach())))
            if (step + 1) % report_every == 0:
                mean = np.mean(losses[-report_every:], 0)
                row = {"step": step + 1, "share": round(share, 4), "seconds": round(time.monotonic() - started)}
                report({**row, "action_loss": round(float(mean[0]), 4), "answer_loss": round(float(mean[1]), 4)})
        self.model.eval()

    @torch.no_grad()
    def image_tokens_of(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Image tokens ``(N, image_tokens, width)`` of frames ``(N, S, S, 3) uint8``."""
        made = [self.see(_to_pixels(rgb[k : k + 128]))[1] for k in range(0, len(rgb), 128)]
        return torch.cat(made)

    def save(self, path: Path) -> None:
        """Write model and patch head, for a later :meth:`load`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save({"model": self.model.state_dict(), "patch_head": self.patch_head.state_dict()}, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.patch_head.load_state_dict(state["patch_head"])

    # --- measuring -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, frames: FrameSet, count: int, seed: int = 5, blank: bool = False) -> dict[str, float]:
        """Accuracy by kind of question on the first ``count`` frames; balanced over answers where they are few.

        ``blank`` hides the pictures: what the questions alone give away.
        """
        rng = np.random.default_rng(seed)
        absent = (frames.pixels >= 32).mean(0) + 0.002
        found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        self.model.eval()
        for start in range(0, min(count, len(frames)), 50):
            chosen = range(start, min(start + 50, len(frames)))
            turns = [question_turns(frames, i, rng, absent, 16) for i in chosen]
            rgb = frames.rgb[start : start + len(turns)]
            batch = self.batch(np.full_like(rgb, 127) if blank else rgb, turns)
            logits = self.model.lm_head(self.speak(batch, self.see(batch.pixels)[1])).argmax(-1)
            for b, row in enumerate(batch.answers):
                for (kind, at, answer), turn in zip(row, turns[b], strict=True):
                    said = logits[b, at - 1 : at - 1 + len(answer)].tolist()
                    found[kind].append((turn.answer, said == answer))
        self.model.train()
        return {kind: round(_accuracy(kind, rows), 4) for kind, rows in sorted(found.items())}


def _to_pixels(rgb: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _mirror(turns: list[Turn], mirrored: bool) -> list[Turn]:
    if not mirrored:
        return turns
    other = {"left": "right", "right": "left"}
    return [t._replace(answer=other.get(t.answer, t.answer)) if t.kind == "where" else t for t in turns]


BALANCED = {"held", "view", "open", "on", "broken", "sliced", "holding", "inside", "where", "distance"}


def _accuracy(kind: str, rows: Sequence[tuple[str, bool]]) -> float:
    if kind not in BALANCED:
        return float(np.mean([ok for _, ok in rows]))
    by_answer: dict[str, list[bool]] = defaultdict(list)
    for answer, ok in rows:
        by_answer[answer].append(ok)
    return float(np.mean([np.mean(v) for v in by_answer.values()]))
