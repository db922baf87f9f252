"""The texts that models read: files under `prompts/`, filled strictly and versioned by content.

There are two sets. The embedded model was trained on exactly the *brief* one. A model from elsewhere reads the *full*
one (`*_full.txt`), which states the actions and the form of an answer. One changed character is another experiment:
:func:`prompts_digest` goes into the key of every stage that shows a prompt to a model.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from selu.errors import ConfigError
from selu.worlds.actions import SKILL_SETS

__all__ = [
    "Achievement",
    "Paraphrase",
    "PromptStyle",
    "Template",
    "achievements",
    "act_prompt",
    "ask_prompt",
    "is_yes_no",
    "load_prompt",
    "paraphrases",
    "prompts_digest",
    "question_prompt",
    "verdict_prompt",
    "without_full_stop",
]

PromptStyle = Literal["brief", "full"]
"""brief: as the embedded model was trained; full: with the actions and the form of an answer."""

_YES_NO_WORDS = frozenset({"Is", "Are", "Was", "Were", "Can", "Do", "Does", "Did", "Has", "Have"})


@dataclass(frozen=True)
class Template:
    """One prompt file; `{field}` marks what is filled in."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """sha256 of the text, hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that :meth:`format` wants."""
        return frozenset(field for _, field, _, _ in string.Formatter().parse(self.text) if field)

    def format(self, **fields: str) -> str:
        """The text with every field filled; ConfigError unless exactly its own fields are given."""
        if set(fields) != self.fields:
            raise ConfigError(f"prompt {self.name} wants the fields {sorted(self.fields)}, got {sorted(fields)}")
        return self.text.format(**fields)


@dataclass(frozen=True)
class Paraphrase:
    """Another way of asking: `question` is matched, `other` is asked too and must be answered as `relation` says."""

    question: str
    other: str
    relation: str

    def match(self, question: str) -> dict[str, str] | None:
        """The fields of `question` under this pattern, or None."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^?]+?)", re.escape(self.question))
        found = re.fullmatch(pattern, question)
        return None if found is None else found.groupdict()


@dataclass(frozen=True)
class Achievement:
    """What an interaction verb of the actor may have achieved, and the questions that tell."""

    verb: str
    instruction: str
    verification: str
    open: str
    expected: str


@cache
def _read(filename: str) -> str:
    path = files("selu") / "prompts" / filename
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except FileNotFoundError:
        known = sorted(entry.name for entry in (files("selu") / "prompts").iterdir() if entry.name.endswith(".txt"))
        raise ConfigError(f"there is no prompt {filename}; known ones are {', '.join(known)}") from None


def load_prompt(name: str) -> Template:
    """The prompt file `prompts/<name>.txt` without its final newline; ConfigError names the known ones."""
    return Template(name, _read(f"{name}.txt"))


@cache
def prompts_digest() -> str:
    """sha256 over names and contents of all prompt files, hexadecimal."""
    digest = hashlib.sha256()
    for entry in sorted((files("selu") / "prompts").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".txt"):
            content = entry.read_bytes()
            digest.update(f"{entry.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _lines(name: str) -> list[str]:
    return [line for line in _read(f"{name}.txt").splitlines() if line.strip() and not line.startswith("#")]


@cache
def paraphrases() -> tuple[Paraphrase, ...]:
    """`prompts/paraphrases.txt`, in its order; ConfigError on a line that is not `question => other : relation`."""
    found = []
    for line in _lines("paraphrases"):
        parts = re.fullmatch(r"(.+\?) => (.+\?) : (.+)", line)
        if parts is None:
            raise ConfigError(f"paraphrases.txt: a line must be `question => other question : relation`, got {line!r}")
        found.append(Paraphrase(*parts.groups()))
    return tuple(found)


@cache
def achievements() -> dict[str, Achievement]:
    """`prompts/achievements.txt` by verb; ConfigError on a line without its five columns."""
    found = {}
    for line in _lines("achievements"):
        columns = [column.strip() for column in line.split("|")]
        if len(columns) != 5:
            raise ConfigError(f"achievements.txt: a line must have 5 columns, got {len(columns)}: {line!r}")
        found[columns[0]] = Achievement(*columns)
    return found


def is_yes_no(question: str) -> bool:
    """Whether a question is answered by yes or no, judged by its first word."""
    return question.split(" ", 1)[0] in _YES_NO_WORDS


def _in_style(name: str, style: PromptStyle) -> Template:
    return load_prompt(name if style == "brief" else f"{name}_full")


def act_prompt(
    instruction: str, history: Sequence[str] = (), style: PromptStyle = "brief", skill_set: str = "household"
) -> str:
    """What the actor reads: the instruction and, if any are carried, its own last actions, oldest first."""
    before = load_prompt("history").text.format(actions=", ".join(history)) if history else ""
    fields = {"instruction": instruction, "history": before}
    if style == "full":
        grammar = SKILL_SETS[skill_set]
        fields["verbs_alone"] = ", ".join(grammar.verbs_alone)
        fields["verbs_with_object"] = ", ".join(f"{verb}(Type)" for verb in grammar.verbs_with_object)
    return _in_style("act", style).format(**fields)


def verdict_prompt(instruction: str, style: PromptStyle = "brief") -> str:
    """The direct question whether an instruction was done; answered `yes` or `no`."""
    return _in_style("verdict", style).format(instruction=instruction)


def ask_prompt(instruction: str, style: PromptStyle = "brief") -> str:
    """Asks for the questions that tell whether an instruction was done."""
    return _in_style("ask", style).format(instruction=instruction)


def question_prompt(question: str, style: PromptStyle = "brief") -> str:
    """A question about one frame."""
    if style == "brief":
        return load_prompt("question").format(question=question)
    return _in_style("question_closed" if is_yes_no(question) else "question_open", style).format(question=question)


def without_full_stop(answer: str, style: PromptStyle) -> str:
    """A reply as it is compared: without white space around it and, of `yes.` in full style, without the full stop."""
    plain = answer.strip()
    return plain[:-1] if style == "full" and plain in ("yes.", "no.") else plain
