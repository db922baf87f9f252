"""What comes from elsewhere is data: it names no file, loads no code, and keys go where they are for and nowhere else."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from selu.config import ModelSettings, validate_settings
from selu.errors import ArtifactError, ConfigError
from selu.models import Prompt, VisionLanguageModel, load_model
from selu.recorded import list_recorded
from selu.store import ArtifactRef, ManifestFile, Store
from tests.local_server import Answering, serving

ROOT = Path(__file__).parents[2]
KEY = "sk-canary-3f1b9c"


# No code from data -----------------------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def _complaint(node: ast.AST) -> str | None:
    """What is wrong with a piece of our code."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        named = {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            # What torch raises when it refuses may be caught.
            named = set() if named == {"UnpicklingError"} else {node.module or ""}
        if PICKLES & {name.partition(".")[0] for name in named}:
            return "pickle runs what it reads"
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if name in ("eval", "exec", "os.system", "os.popen"):
        return "runs text"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True is pickle"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        return "allow_pickle"
    if given.get("trust_remote_code", "False") != "False":
        return "runs the code of a model's authors"
    if given.get("shell", "False") != "False":
        return "a shell reads names as commands"
    if name.startswith("yaml.") and name in ("yaml.unsafe_load", "yaml.full_load"):
        return "makes objects of any class"
    if name == "yaml.load" and given.get("Loader") not in ("_Loader", "yaml.SafeLoader"):
        return "makes objects of any class"
    if name.endswith((".extractall", ".unpack_archive")):
        return "an archive names where its files go"
    return None


def test_nothing_that_is_read_can_run_code() -> None:
    found = []
    files = [path for floor in ("selu", "flows", "tasks", "cli", "benchmarks") for path in (ROOT / floor).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            said = _complaint(node)
            if said is not None:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {said}")
    assert len(files) > 80
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "eval(x)",
        "np.load(p, allow_pickle=True)", "f(x, trust_remote_code=True)", "run(x, shell=True)", "yaml.load(t, Loader=L)",
        "tar.extractall(p)",
    ],
)  # fmt: skip
def test_the_search_would_find_it(code: str) -> None:
    assert any(_complaint(node) for node in ast.walk(ast.parse(code)))


def test_settings_are_plain_yaml(tmp_path: Path) -> None:
    from selu.config import load_settings

    file = tmp_path / "settings.yaml"
    file.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'touched'}]")
    with pytest.raises(ConfigError):
        load_settings(file, [])
    assert not (tmp_path / "touched").exists()


# No names out of a folder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", ".", "", "a//b", "./a", "a\\b", "a/.."])
def test_a_manifest_names_no_file_outside_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        ManifestFile(name=name, size=1, sha256="0" * 64)


def test_an_artifact_that_somebody_made_up_to_reach_out_counts_as_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.create("episodes", "a" * 32, {"stage": "test"}) as draft:
        (draft.path / "rows").write_bytes(b"rows")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    folder = store.path(draft.ref)
    manifest = json.loads((folder / "manifest.json").read_text())
    away = {"name": "../../../../secret", "size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    manifest["files"].append(away)
    named = [[file["name"], file["sha256"]] for file in manifest["files"]]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"digest": digest}))
    assert (folder / away["name"]).resolve() == secret
    with pytest.raises(ArtifactError, match="damaged"):
        store.path(ArtifactRef(kind="episodes", key="a" * 32, digest=""))
    assert store.find("episodes", "a" * 32) is None


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_artifact_with_a_link_is_not_whole(tmp_path: Path, what: str) -> None:
    store = Store(tmp_path / "store")
    with store.create("episodes", "a" * 32, {"stage": "test"}) as draft:
        (draft.path / "data").mkdir()
        (draft.path / "data" / "rows").write_bytes(b"rows")
    away = tmp_path / "away"
    away.mkdir()
    (away / "rows").write_bytes(b"rows")
    replaced = store.path(draft.ref) / ("data/rows" if what == "file" else "data")
    replaced.rename(tmp_path / "aside")
    replaced.symlink_to(away / "rows" if what == "file" else away)
    with pytest.raises(ArtifactError):
        store.verify(draft.ref)


def _record(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "episode.json").write_text(json.dumps({"instruction": "open the fridge", "actions": ["Done"]}))
    for index in range(2):
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")


@pytest.mark.parametrize("linked", ["episode", "episode/1.png", "episode/episode.json"])
def test_a_recording_does_not_name_files_of_this_machine(tmp_path: Path, linked: str) -> None:
    _record(tmp_path / "recordings" / "episode")
    path = tmp_path / "recordings" / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        list_recorded(tmp_path / "recordings")


# No key where it is not for ------------------------------------------------------------------------------------------


class _Echo(Answering):
    """A server that says everything that it was sent."""

    status = 400

    def do_POST(self) -> None:
        self.answer(self.status, f"no: {self.headers.get('authorization')}".encode())


@pytest.fixture
def echo() -> Iterator[str]:
    with serving(_Echo) as url:
        yield url


def _remote(address: str) -> VisionLanguageModel:
    return load_model(ModelSettings(engine="openai", path="some/model", base_url=address, retries=0))


def _said(model: VisionLanguageModel) -> str:
    """All that an error says, causes and all."""
    with pytest.raises(ConfigError) as caught:
        model.generate([Prompt((), "?")], max_new_tokens=1)
    error: BaseException | None = caught.value
    texts = []
    while error is not None:
        texts.append(repr(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


@pytest.mark.parametrize("status", [200, 400, 401, 404])
def test_a_server_that_repeats_the_key_is_not_repeated(echo: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(_Echo, "status", status)
    said = _said(_remote(echo))
    assert KEY not in said


@pytest.mark.parametrize("around", ["{}\n", " {}\r\n"])
def test_a_key_is_sent_without_the_line_break_of_its_file(
    echo: str, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    assert "Bearer [key]" in _said(_remote(echo)), "it arrived"


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_cannot_be_sent_is_refused_unsaid(echo: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment holds no NUL, so that one is put there by hand.
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds no key that can be sent") as caught:
        _remote(echo)
    assert KEY not in str(caught.value)


def test_settings_have_no_place_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    remote = {"engine": "openai", "path": "some/model", "base_url": "http://127.0.0.1:8000/v1"}
    alone = {"actor_finetuning": {"enabled": False}}
    settings = validate_settings({"actor": remote, **alone})
    model = load_model(settings.actor)
    assert KEY not in settings.model_dump_json() + repr(settings) + repr(model) + model.revision
    with pytest.raises(ConfigError):
        validate_settings({"actor": {**remote, "api_key": KEY}, **alone})
    with pytest.raises(ConfigError, match="base_url"):
        validate_settings({"actor": {**remote, "base_url": "http://me:password@127.0.0.1:8000/v1"}, **alone})


# What is declared ------------------------------------------------------------------------------------------------------


def test_compose_asks_for_a_password_and_listens_on_this_machine_alone() -> None:
    text = (ROOT / "deployments" / "container" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    server = services["server"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?"), "compose stops where it is not set"
    assert services["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert services["worker"]["environment"]["PREFECT_API_AUTH_STRING"] == "${PREFECT_AUTH}"
    for service in services.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    # What is told to a service is told by the environment of whoever starts it.
    secrets = ("PASSWORD", "AUTH", "KEY", "TOKEN")
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in secrets):
                assert value.startswith("${"), name
