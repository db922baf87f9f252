"""What a user meets when they write settings: a file, overrides, and refusals that say the way out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from selu.config import Settings, load_settings, scenes_of_split, validate_settings
from selu.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(config, overrides)
    return str(caught.value)


def leaves(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


# Files that come with the project


def test_default_yaml_is_the_defaults_of_the_tree_and_names_every_setting() -> None:
    assert load_settings(CONFIGS / "default.yaml") == Settings() == load_settings()
    written = yaml.safe_load((CONFIGS / "default.yaml").read_text(encoding="utf-8"))
    assert list(leaves(written)) == list(leaves(Settings().model_dump()))


@pytest.mark.parametrize(("name", "episodes", "steps"), [("small", 200, 300), ("check", 150, 240)])
def test_the_default_recipe_at_another_size(name: str, episodes: int, steps: int) -> None:
    small, default = load_settings(CONFIGS / f"{name}.yaml").model_dump(), Settings().model_dump()
    assert {key for key in default if default[key] != small[key]} == {
        "name", "tasks", "dataset", "critic_finetuning", "actor_finetuning", "evaluation",
    }  # fmt: skip
    assert small["dataset"] == default["dataset"] | {"corpus_pictures": {"small": 1200, "check": 300}[name]}
    assert small["tasks"] == default["tasks"] | {"episodes": episodes}
    for who in ("critic_finetuning", "actor_finetuning"):
        assert small[who] == default[who] | {"max_steps": steps}
    assert {key for key in default["evaluation"] if default["evaluation"][key] != small["evaluation"][key]} <= {
        "actor_episodes_a", "critic_episodes_a", "actor_episodes_b", "critic_episodes_b", "three_step_episodes",
        "general_questions",
    }  # fmt: skip


def test_paper_yaml_is_the_published_setting() -> None:
    settings = load_settings(CONFIGS / "paper.yaml")
    assert settings.tasks.kinds == ("pick_up", "open", "break")
    assert (settings.frames.select, settings.world.max_steps, settings.rounds) == ("last", 10, 1)
    assert settings.tasks.episodes == 1000
    assert settings.actor == Settings().actor
    assert settings.dataset.corpus_pictures == 0


@pytest.mark.parametrize(
    ("given", "pictures"),
    [
        ({}, 2400),
        ({"tasks": {"episodes": 50}}, 300),
        ({"dataset": {"corpus_pictures": 0}}, 0),
        ({"dataset": {"corpus_pictures": 7}}, 7),
        # What a model of one's own was trained on nobody knows, unless its corpus is named.
        ({"critic": {"path": "my/model"}}, 0),
        ({"critic": {"path": "my/model"}, "dataset": {"corpus": "mine.parquet"}}, 2400),
        ({"actor": {"path": "my/model"}}, 2400),
        # The embedded one was trained in the embedded household alone.
        ({"world": {"name": "virtualhome", "skill_set": "virtualhome"}, "tasks": {"kinds": ["open"]}}, 0),
        ({"world": {"platform": "CloudRendering"}}, 0),
    ],
)
def test_the_critic_judges_pictures_of_its_own_corpus_alone(given: dict[str, Any], pictures: int) -> None:
    assert validate_settings(given).dataset.corpus_pictures == pictures


def test_pictures_of_a_corpus_that_is_not_the_critics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"of critic\.path=my/model no corpus is named; set dataset\.corpus, or"):
        validate_settings({"critic": {"path": "my/model"}, "dataset": {"corpus_pictures": 50}})


def test_every_setting_is_described_for_the_form() -> None:
    def undescribed(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{model.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undescribed(field.annotation)

    assert list(undescribed(Settings)) == []
    assert Settings.model_json_schema()["$defs"]["TaskSettings"]["properties"]["kinds"]["items"]["enum"][0] == "pick_up"


# Loading


def test_file_changes_only_what_it_names_and_overrides_win(tmp_path: Path) -> None:
    config = write(tmp_path, "seed: 3\nworld:\n  width: 128\n  height: 128\nrollout:\n")
    settings = load_settings(config, ["world.width=224", "world.width=256", "tasks.kinds=[open, close]"])
    assert (settings.seed, settings.world.width, settings.world.height) == (3, 256, 128)
    assert settings.tasks.kinds == ("open", "close")
    assert settings.rollout == Settings().rollout


def test_overrides_are_read_as_a_shell_user_means_them() -> None:
    settings = load_settings(
        None,
        [
            "actor_finetuning.learning_rate=2e-4",
            "tasks.scenes=FloorPlan21,FloorPlan421",
            "world.local_executable_path=python -m player --mode: fast",
            "world.x_display=:99",
            "actor.path=some/model",
            "actor.revision=1e5",
            "critic.adapter=",
            "report_to=[]",
            "frames={limit: 3}",
        ],
    )
    assert settings.actor_finetuning.learning_rate == pytest.approx(2e-4)
    assert settings.tasks.scenes == ("FloorPlan21", "FloorPlan421")
    assert settings.world.local_executable_path == "python -m player --mode: fast"
    assert settings.world.x_display == ":99"
    assert settings.actor.revision == "1e5"
    assert settings.critic.adapter is None
    assert settings.report_to == ()
    assert (settings.frames.limit, settings.frames.select) == (3, Settings().frames.select)


def test_numbers_in_a_file_are_numbers(tmp_path: Path) -> None:
    config = write(tmp_path, "seed: 7\ncritic_finetuning: {learning_rate: 5e-4, weight_decay: .1}\n")
    settings = load_settings(config)
    assert settings.critic_finetuning.learning_rate == pytest.approx(5e-4)
    assert settings.critic_finetuning.weight_decay == pytest.approx(0.1)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(None, ["data_dir=~/selu"]).data_dir == tmp_path / "selu"


def test_canonical_form_survives_json() -> None:
    settings = load_settings(None, ["tasks.kinds=open", "data_dir=here", "seed=9"])
    again = validate_settings(json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert again == settings


def test_settings_do_not_change_under_a_run() -> None:
    settings: Any = Settings()
    with pytest.raises(ValidationError):
        settings.seed = 1


# Refusals


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sede=1", "did you mean seed?"),
        ("world.widht=1", "did you mean world.width?"),
        ("wrold.width=1", "did you mean world.width?"),
        ("task.kinds=open", "did you mean tasks.kinds?"),
        ("learning_rate=1e-3", "did you mean critic_finetuning.learning_rate or actor_finetuning.learning_rate?"),
        ("world.width.x=1", "world.width is a single setting"),
        ("world.qqqq=1", "known here: world.commit_id"),
        ("world=3", "is a section"),
        ("seed", "written key=value"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    message = refusal(override)
    assert override.partition("=")[0] in message
    assert nearest in message
    assert "\n" not in message


def test_unknown_key_is_refused_wherever_settings_are_made(tmp_path: Path) -> None:
    assert "did you mean world.width?" in refusal(config=write(tmp_path, "world: {widht: 3}"))
    with pytest.raises(ConfigError, match=r"did you mean world\.width\?"):
        validate_settings({"world": {"widht": 3}})
    with pytest.raises(ValidationError):
        Settings.model_validate({"world": {"widht": 3}})


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        "sede: 1\nworld: {height: 1, rotate_degrees: 50}\ntasks: {kinds: [opne], episodes: many}\n"
        "rollout: {shard_size: 4}\nactor: {device: gpu}\n",
    )
    message = refusal("hindsight.confidence=1.5", config=config)
    for part in (
        f"{config}: 8 settings cannot work",
        "sede: unknown setting; did you mean seed?",
        "world.height: must be at least 32, got 1",
        "360 is not a multiple of it",
        "got 'opne'; did you mean open?",
        "tasks.episodes: must be a whole number, got 'many'",
        "rollout.players=8 is more than rollout.shard_size=4",
        "actor.device: must be cpu, cuda, cuda:1 or auto, got 'gpu'",
        "hindsight.confidence: must be at most 1",
    ):
        assert part in message
    assert message.count("\n") == 8


def test_a_conflict_with_a_value_that_is_wrong_anyway_is_not_told() -> None:
    message = refusal("rollout.players=-1", "rollout.shard_size=4")
    assert message == "rollout.players: must be at least 1, got -1"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tasks.scenes=FloorPlan31"], "no such scene: 'FloorPlan31'"),
        (["tasks.scenes=floor_plan21"], "did you mean FloorPlan21?"),
        (["tasks.scenes=FloorPlan26"], "belongs to the split transfer"),
        (["tasks.split=transfer"], "probe set B lies in these scenes"),
        (["tasks.scenes=FloorPlan21,FloorPlan21"], "named more than once"),
        (["tasks.kinds=dance"], "must be one of pick_up, open, close"),
        (["tasks.kinds=[]"], "must not be empty"),
        (["tasks.kinds=open,open"], "named more than once"),
        (["seed=-1"], "at least 0"),
        (["seed=1.5"], "whole number"),
        (["world.field_of_view=.nan"], "finite"),
        (["name=../up"], "letters, digits"),
        (["dataset.replay=1.1"], "at most 1"),
        (["actor_finetuning.dropout=1"], "less than 1"),
        (["actor_finetuning.learning_rate=0"], "more than 0"),
        (["actor_finetuning.max_steps=0"], "-1 (as epochs say) or at least 1"),
        (["actor_finetuning.batch_size=64", "dataset.max_rows=40"], "no batch could be filled"),
        (["world.local_executable_path=x", "world.commit_id=y"], "keep one"),
        (["world.platform=CloudRendering", "world.x_display=:0"], "uses no display"),
        (["world.quality=Ultra", "world.name=virtualhome", "world.skill_set=virtualhome"], "VirtualHome has its own"),
        (["actor.base_url=http://127.0.0.1:8000/v1"], "asks none"),
        (["critic_finetuning.patience=3"], "nothing tells when to stop"),
        (["actor_finetuning.rank=128", "actor.engine=vllm", "actor.path=org/name"], "up to rank 64"),
        (["critic_finetuning.target=all", "critic.engine=vllm", "critic.path=org/name"], "to the language model alone"),
        (
            [
                "critic.gpu_memory=0.6",
                "actor.engine=vllm",
                "actor.path=org/one",
                "critic.engine=vllm",
                "critic.path=org/other",
            ],
            "come to more than one GPU",
        ),
        (
            ["actor.quantization=4bit", "actor.engine=openai", "actor.path=name", "actor_finetuning.enabled=false"],
            "set it there",
        ),
        (["critic.revision=main"], "embedded model has no other revision"),
        (["critic.dtype=float16"], "use float32 or bfloat16"),
        (["actor.adapter=not/there"], "no such folder: not/there"),
        (["actor.path=./not/there"], "no such folder: ./not/there"),
        (["tasks.instructions=none.txt"], "no such file: none.txt"),
    ],
)
def test_what_cannot_work_is_one_sentence(overrides: list[str], says: str) -> None:
    message = refusal(*overrides)
    assert says in message
    assert overrides[0].partition("=")[0] in message
    assert "\n" not in message


def test_data_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in refusal(f"data_dir={tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: [1", "is not valid YAML (line 1)"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("- a\n- b\n", "must hold settings as `key: value` lines, got a list"),
        ("world: 3\n", "world: must be a section"),
        ("world.width: 3\n", "in a file write the section"),
        ("data_dir: 7\n", "data_dir: must be a path"),
        ("name: 7\n", "put it in quotes"),
        ("x: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_as_settings(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(config=write(tmp_path, text))


def test_missing_config_lists_the_ones_beside_it() -> None:
    assert "check.yaml, default.yaml, paper.yaml, small.yaml" in refusal(config=CONFIGS / "papre.yaml")


def test_binary_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refusal(config=tmp_path / "mine.yaml")


def test_a_file_that_is_fine_alone_is_not_blamed_for_an_override(tmp_path: Path) -> None:
    fine = write(tmp_path, "seed: 3\n")
    assert refusal("seed=-1", config=fine) == refusal("seed=-1")
    wrong = write(tmp_path, "seed: -3\n")
    assert refusal(config=wrong).startswith(f"{wrong}: ")
    assert refusal("rounds=0", config=wrong).startswith(f"{wrong}: ")


def test_splits_share_no_scene_and_cover_all() -> None:
    scenes = [scene for split in ("base", "development", "learning", "transfer") for scene in scenes_of_split(split)]
    assert len(scenes) == len(set(scenes)) == 120
    assert scenes_of_split("transfer")[-1] == "FloorPlan430"


def test_the_embedded_model_reads_the_prompts_it_was_trained_on_and_others_the_full_ones() -> None:
    settings = validate_settings({"critic": {"path": "owner/name"}})
    assert (settings.actor.prompt_style, settings.critic.prompt_style) == ("brief", "full")
    assert validate_settings({"actor": {"path": "./mine", "prompts": "brief"}}).actor.prompt_style == "brief"


@pytest.mark.parametrize("key", ["local_executable_path", "commit_id", "platform"])
def test_whatever_names_a_player_means_that_it_is_not_the_embedded_one(key: str) -> None:
    assert validate_settings({}).world.embedded
    assert not validate_settings({"world": {key: "CloudRendering"}}).world.embedded


def test_labels_by_the_truth_are_not_come_by_accidentally() -> None:
    assert "neither" in refusal("self_asking.by=oracle")
    assert "neither" in refusal("self_asking.by=oracle", "method=lmsi")
    assert "neither" in refusal("method=oracle_labels")
    assert load_settings(None, ["self_asking.by=oracle", "method=oracle_labels"]).self_asking.by == "oracle"


def test_what_asks_no_critic_cannot_train_one() -> None:
    assert "nothing to fine-tune it on" in refusal("self_asking.by=deeds")
    assert "nothing to fine-tune it on" in refusal("self_asking.by=deeds", "critic_finetuning.enabled=false")


def test_your_own_instructions_are_not_made_unsolvable(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("open the fridge")
    assert "taken as it is" in refusal(f"tasks.instructions={listed}", "tasks.unsolvable=0.2")
