"""The server on PostgreSQL, a real one, where this machine has it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dummy_world import small_settings
from tests.ui.served import Served, free_port, serving


def _programs() -> Path | None:
    """The folder of the newest PostgreSQL, as packages of Debian install it, or as it is on the path."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    for folder in [*reversed(packaged), *(Path(found).parent for found in [shutil.which("initdb")] if found)]:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "psql")):
            return folder
    return None


PROGRAMS = _programs()
pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="there is no PostgreSQL here: apt install postgresql")


class Database:
    """A PostgreSQL of its own in a folder, on a socket in that folder and a port of the loopback address."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAMS is not None
        self.programs, self.folder, self.port = PROGRAMS, folder, free_port()
        # It refuses to be run by root.
        self.owner = next((name for name in ("postgres", "nobody") if _is_known(name)), None) if _is_root() else None

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://prefect:secret-of-the-database@127.0.0.1:{self.port}/prefect"

    def call(self, program: str, *arguments: str) -> str:
        """Run one of its programs and return what that printed."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            user=self.owner,
            group=None if self.owner is None else pwd.getpwnam(self.owner).pw_gid,
            extra_groups=None if self.owner is None else [],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGPASSWORD": "secret-of-the-database"},
            stdin=subprocess.DEVNULL,
            # pg_ctl leaves its output open to the server that it starts.
            stdout=(self.folder / "output").open("w"),
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        text = (self.folder / "output").read_text()
        assert done.returncode == 0, text
        return text

    def ask(self, query: str) -> list[list[str]]:
        """Rows of a query."""
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "-d", "prefect"]
        text = self.call("psql", *where, "--no-align", "--tuples-only", "--field-separator", "\t", "-c", query)
        return [line.split("\t") for line in text.splitlines()]

    @contextlib.contextmanager
    def running(self) -> Iterator[Database]:
        password = self.folder / "password"
        password.write_text("secret-of-the-database")
        if self.owner is not None:
            for path in (self.folder, password):
                shutil.chown(path, self.owner)
        data = str(self.folder / "data")
        self.call("initdb", "-D", data, "-U", "prefect", "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync")
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder} -c fsync=off"
        )
        self.call("pg_ctl", "-D", data, "-o", options, "-l", str(self.folder / "log"), "-w", "-t", "90", "start")
        try:
            self.call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "prefect")
            yield self
        finally:
            self.call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _is_root() -> bool:
    return os.geteuid() == 0


def _is_known(name: str) -> bool:
    with contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        return True
    return False


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    # Pytest's own folders are closed to any other user, and PostgreSQL has to be one if we are root.
    with tempfile.TemporaryDirectory(prefix="selu-postgresql-") as folder, Database(Path(folder)).running() as up:
        yield up


@pytest.fixture(scope="module")
def served(database: Database, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`selu ui` on that database, and the same round twice."""
    folder = tmp_path_factory.mktemp("served")
    settings = small_settings(folder / "data", small_model, evaluation={"actor_episodes_b": 0, "critic_episodes_b": 0})
    with serving(folder, settings, "ui", PREFECT_API_DATABASE_CONNECTION_URL=database.url) as up:
        up.run_rounds(2)
        yield up


def test_runs_states_and_artifacts_are_in_the_database(database: Database, served: Served) -> None:
    runs = database.ask("SELECT name, state_type FROM flow_run ORDER BY start_time")
    names = ["selu thor seed 0, 1 rounds", "selu thor seed 0 round 1", "evaluation of selu thor seed 0 round 1"]
    assert runs == [[name, "COMPLETED"] for name in names * 2]
    keys = {key for (key,) in database.ask("SELECT DISTINCT key FROM artifact WHERE type <> 'progress'")}
    assert keys == {"summary", "metrics", "film-strips", "report", "dataset-version-critic", "dataset-version-actor"}
    (said,) = database.ask("SELECT count(*) FROM log WHERE name = 'selu.progress' AND message LIKE 'rollout:%'")
    assert said == ["2"]
    assert not list((served.settings.parent / "data" / "prefect").glob("*.db")), "nothing goes to SQLite beside it"


def test_a_second_run_finds_everything_made(database: Database, served: Served) -> None:
    rows = database.ask(
        "SELECT r.name, t.state_name, count(*) FROM task_run t JOIN flow_run r ON r.id = t.flow_run_id "
        "WHERE t.name LIKE 'rollout %' GROUP BY r.id, r.name, r.start_time, t.state_name ORDER BY r.start_time"
    )
    assert rows == [["selu thor seed 0 round 1", "Completed", "3"], ["selu thor seed 0 round 1", "Cached", "3"]]


def test_the_password_of_the_database_is_in_no_file_of_ours(served: Served) -> None:
    folder = served.settings.parent
    for path in [folder / "server.log", folder / "server.round", *(folder / "data").rglob("*")]:
        if path.is_file():
            assert b"secret-of-the-database" not in path.read_bytes(), path
