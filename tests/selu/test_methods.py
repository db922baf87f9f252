"""Methods are files, read strictly: a slip in one must not become another method without anybody noticing."""

from __future__ import annotations

from pathlib import Path

import pytest

from selu.config import Settings
from selu.errors import ConfigError
from selu.methods import load_method, load_methods, method_settings


def _changes(name: str) -> dict[str, object]:
    """Settings in which a method differs from everybody's."""
    (method,) = load_methods([name])
    before, after = (s.model_dump() for s in (Settings(), method_settings(Settings(), method)))

    def differing(old: dict[str, object], new: dict[str, object], prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in new.items():
            other = old[key]
            if isinstance(value, dict) and isinstance(other, dict):
                found |= differing(other, value, f"{prefix}{key}.")
            elif value != other:
                found[f"{prefix}{key}"] = value
        return found

    return differing(before, after)


def test_every_method_is_what_its_name_says() -> None:
    assert _changes("selu") == {}
    assert _changes("lmsi") == {
        "method": "lmsi",
        "self_asking.by": "voting",
        "self_asking.deeds": False,
        "hindsight.enabled": False,
        "dataset.corpus_pictures": 0,
        "guard.enabled": False,
    }
    untrained = {
        "self_asking.confidence": 0.0,
        "self_asking.deeds": False,
        "hindsight.enabled": False,
        "critic_finetuning.enabled": False,
        "guard.enabled": False,
    }
    for name, judge in (("self_consistency", "voting"), ("self_refine", "refinement")):
        assert _changes(name) == {"method": name, "self_asking.by": judge, **untrained}
    assert _changes("oracle_labels") == {
        "method": "oracle_labels",
        "self_asking.by": "oracle",
        "dataset.corpus_pictures": 0,
        "guard.enabled": False,
    }
    assert _changes("without_evidence") == {
        "method": "without_evidence",
        "self_asking.confidence": 0.0,
        "self_asking.paraphrases": False,
        "self_asking.deeds": False,
        "hindsight.confidence": 0.0,
        "hindsight.verify": False,
    }
    assert _changes("replay_only") == {"method": "replay_only", "dataset.replay": 1.0, "dataset.corpus_pictures": 0}
    assert _changes("deeds_alone") == {
        "method": "deeds_alone",
        "self_asking.by": "deeds",
        "hindsight.enabled": False,
        "critic_finetuning.enabled": False,
        "guard.enabled": False,
    }
    several = {
        "selu", "lmsi", "self_consistency", "self_refine", "oracle_labels", "without_evidence", "replay_only", "deeds_alone",
    }  # fmt: skip
    single = (
        ("without_self_asking", "self_asking.by", "direct"),
        ("without_hindsight", "hindsight.enabled", False),
        ("without_critic_finetuning", "critic_finetuning.enabled", False),
        ("without_replay", "dataset.replay", 0.0),
        ("without_guard", "guard.enabled", False),
        ("unsolvable", "tasks.unsolvable", 0.2),
        ("without_deeds", "self_asking.deeds", False),
        ("without_starts", "hindsight.partial", False),
        ("without_compositions", "dataset.compositions", 0),
        ("without_recoveries", "dataset.recoveries", False),
        ("without_corpus_pictures", "dataset.corpus_pictures", 0),
        ("without_parts", "rollout.by_parts", False),
        ("last_actions", "rollout.remember", "last"),
    )
    assert {method.name for method in load_methods()} == several | {name for name, _, _ in single}
    for name, key, value in single:
        assert _changes(name) == {"method": name, key: value}


def test_selu_comes_first_and_the_truth_last() -> None:
    methods = load_methods()
    assert (methods[0].name, methods[-1].name) == ("selu", "oracle_labels")
    roles = [method.role for method in methods]
    assert roles == sorted(roles, key=["method", "baseline", "ablation", "upper bound"].index)
    assert all(method.carried_over for method in methods if method.role in ("baseline", "upper bound"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("role: baseline\ndescription: d\nseting: {}\n", "unknown key 'seting'; did you mean settings?"),
        ("role: winner\ndescription: d\nsettings: {}\n", "role: "),
        ("role: baseline\ndescription: d\n", "settings: "),
        ("role: baseline\ndescription: d\nsettings: {hindsigth: {enabled: false}}\n", "did you mean hindsight?"),
        ("role: baseline\ndescription: d\nsettings: {dataset: {replay: 2}}\n", "dataset.replay: must be at most 1"),
        ("role: baseline\ndescription: d\nsettings: {seed: 7}\n", "settings.seed is not a method's to change"),
        ("role: baseline\ndescription: d\nsettings: {self_asking: {by: oracle}}\n", "neither"),
        ("- a\n", "must hold settings"),
    ],
)
def test_a_slip_in_a_method_is_said(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_method(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)


def test_adding_a_method_is_adding_a_file(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("role: ablation\ndescription: d\nsettings: {world: {max_steps: 5}}\n")
    (method,) = load_methods(folder=tmp_path)
    settings = method_settings(Settings(), method, seed=4)
    assert (settings.method, settings.seed, settings.world.max_steps) == ("short", 4, 5)
    with pytest.raises(ConfigError, match=r"no such method: 'shrot'; did you mean short\?"):
        load_methods(["shrot"], tmp_path)
