"""Reports and artifacts beside Prefect's UI: what is shown, and what is out of reach."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from selu.cli.pages import pages
from selu.store import ArtifactRef, OracleRef, Store
from selu.tasks.reporting import artifact_link, as_text, report_link

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, ArtifactRef, OracleRef]:
    """A data folder with a report, a dataset version, and ground truth of the same key."""
    data = tmp_path / "data"
    report = data / "reports" / "selu-thor-round-1" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("<title>report</title>")
    (data / "secret.txt").write_text("secret")
    store = Store(data / "store")
    with store.create("critic_dataset", "a" * 32, {"stage": "critic-dataset", "shard": HOSTILE}) as draft:
        (draft.path / "data").mkdir()
        (draft.path / "data" / "critic-train.parquet").write_bytes(b"PAR1")
        (draft.path / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n\n# Rows\n\n{HOSTILE}\n")
    with store.create_oracle("oracle", "a" * 32, {"stage": "rollout"}) as sealed:
        (sealed.path / "truth").write_bytes(b"truth")
    return data, draft.ref, sealed.ref


def _client(data: Path, password: str | None = None) -> TestClient:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return TestClient(Starlette(routes=[Mount("/selu", app=pages(data, password))]))


def test_what_the_ui_links_to_is_there(made: tuple[Path, ArtifactRef, OracleRef]) -> None:
    data, ref, _ = made
    client = _client(data)
    report = client.get(report_link(data / "reports" / "selu-thor-round-1" / "index.html"))
    assert (report.status_code, report.text) == (200, "<title>report</title>")
    shown = client.get(artifact_link(ref))
    assert shown.status_code == 200
    assert "# Rows" in shown.text
    assert "license: apache-2.0" not in shown.text
    file = client.get(f"{artifact_link(ref)}files/data/critic-train.parquet")
    assert file.content == b"PAR1"
    assert file.headers["content-disposition"].startswith("attachment")


def test_what_is_in_an_artifact_stays_text(made: tuple[Path, ArtifactRef, OracleRef]) -> None:
    data, ref, _ = made
    client = _client(data)
    for path in (artifact_link(ref), report_link(data / "reports" / "selu-thor-round-1" / "index.html")):
        answer = client.get(path)
        assert HOSTILE not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "sandbox" in answer.headers["content-security-policy"]
        assert "allow-scripts" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "reports/%2e%2e/", "reports/..%2f..%2fsecret.txt/", "reports/.hidden/", "reports/none/",
        "artifacts/oracle/{key}/", "artifacts/oracle/{key}/files/truth", "artifacts/tmp/{key}/",
        "artifacts/critic_dataset/..%2f..%2f..%2f/", "artifacts/critic_dataset/{key}/files/manifest.json",
        "artifacts/critic_dataset/{key}/files/../../../../../secret.txt",
        "artifacts/critic_dataset/{key}/files/%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "artifacts/critic_dataset/{key}/files//etc/passwd", "artifacts/critic_dataset/none/", "secret.txt",
    ],
)  # fmt: skip
def test_nothing_else_is(made: tuple[Path, ArtifactRef, OracleRef], path: str) -> None:
    data, ref, _ = made
    answer = _client(data).get(f"/selu/{path.format(key=ref.key)}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("secret.txt", "")


def test_the_servers_password_is_asked_for_here_too(made: tuple[Path, ArtifactRef, OracleRef]) -> None:
    data, ref, _ = made
    client = _client(data, "admin:right")
    for header in ({}, {"Authorization": "Basic nonsense"}, {"Authorization": f"Basic {_encoded('admin:wrong')}"}):
        refused = client.get(artifact_link(ref), headers=header)
        assert refused.status_code == 401
        assert "Basic" in refused.headers["www-authenticate"]
    assert client.get(artifact_link(ref), headers={"Authorization": f"Basic {_encoded('admin:right')}"}).is_success


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_text_in_markdown_is_on_one_line_and_marked_up_by_nobody() -> None:
    assert as_text("a\n# b\r\n- c") == "a # b - c"
    assert as_text("![x](http://evil) <b> `c` |") == r"\!\[x\](http://evil) \<b\> \`c\` \|"
    assert as_text("*a* _b_ a_b ~~c~~ \\ &lt;") == r"\*a\* \_b\_ a_b \~\~c\~\~ \\ \&lt;"
    assert as_text("Open(Fridge), 95 %") == "Open(Fridge), 95 %"


def test_the_reports_are_listed(made: tuple[Path, ArtifactRef, OracleRef]) -> None:
    answer = _client(made[0]).get("/selu/")
    names = [path.parent.name for path in (made[0] / "reports").glob("*/index.html")]
    assert names
    assert all(f'href="reports/{name}/"' in answer.text for name in names)
