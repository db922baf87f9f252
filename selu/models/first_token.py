"""Scoring choices where an engine tells only the likeliest first tokens of a reply."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selu.errors import ConfigError

__all__ = ["ALTERNATIVES", "first_token_scores"]

ALTERNATIVES = 20
"""How many first tokens to ask for: the most that the OpenAI protocol, and vLLM unless told otherwise, give."""


def first_token_scores(alternatives: Sequence[tuple[str, float]], choices: Sequence[str]) -> list[float]:
    """Return a log-probability for each choice, not normalised. `alternatives` are tokens and their log-probabilities.

    Each token counts for the choice that it begins, whatever its case and white space ("Yes", " yes"). A choice that none
    of them begins counts with the least likely of them, which it does not exceed.

    Raises:
        ConfigError: a token begins two of the choices, so that it does not tell them apart.
    """
    least = min(log_probability for _, log_probability in alternatives)
    scores: list[float | None] = [None] * len(choices)
    for token, log_probability in alternatives:
        begun = token.strip().casefold()
        fits = [place for place, choice in enumerate(choices) if begun and choice.casefold().startswith(begun)]
        if len(fits) > 1:
            raise ConfigError(
                f"This engine scores choices by their first token, and {token!r} begins "
                f"{' and '.join(repr(choices[place]) for place in fits)}; use engine=transformers for these."
            )
        for place in fits:
            before = scores[place]
            scores[place] = log_probability if before is None else float(np.logaddexp(before, log_probability))
    return [least if score is None else score for score in scores]
