"""What the store promises: whole artifacts or none, whoever writes, whatever dies, whatever rots."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from selu import processes
from selu import store as store_module
from selu.errors import ArtifactError, ConfigError, TerminalError
from selu.records import Condition, Episode, Frame, Question, Record, Setup, Task
from selu.store import ArtifactRef, OracleRef, Store, artifact_key, manifests, read_table, write_table

KEY = artifact_key("rollout", 1, {"seed": 0}, [])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, files: dict[str, bytes] | None = None, kind: str = "episodes", key: str = KEY) -> ArtifactRef:
    with store.create(kind, key, {"stage": "rollout"}) as draft:
        for name, content in (files or {"data.bin": b"12345678"}).items():
            path = draft.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return draft.ref


def fail(store: Store, error: BaseException) -> None:
    """A stage that writes something and then raises."""
    with store.create("episodes", KEY, {}) as draft:
        (draft.path / "a").write_bytes(b"1")
        raise error


def left_in(store: Store, folder: str) -> list[str]:
    path = store.root / folder
    return sorted(p.name for p in path.iterdir()) if path.exists() else []


# Keys and references


def test_key_depends_on_everything_that_shapes_the_result_and_on_nothing_else() -> None:
    key = artifact_key("judge", 1, {"a": 1, "b": [2.5, None]}, ["x", "y"], ["m"])
    assert key == artifact_key("judge", 1, {"b": [2.5, None], "a": 1}, ("x", "y"), ("m",))
    others = {
        artifact_key("rejudge", 1, {"a": 1, "b": [2.5, None]}, ["x", "y"], ["m"]),
        artifact_key("judge", 2, {"a": 1, "b": [2.5, None]}, ["x", "y"], ["m"]),
        artifact_key("judge", 1, {"a": 2, "b": [2.5, None]}, ["x", "y"], ["m"]),
        artifact_key("judge", 1, {"a": 1, "b": [2.5, None]}, ["y", "x"], ["m"]),
        artifact_key("judge", 1, {"a": 1, "b": [2.5, None]}, ["x"], ["y", "m"]),
    }
    assert len(others | {key}) == 6
    assert len(key) == 32


def test_key_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        artifact_key("judge", 1, {"a": float("nan")}, [])


def test_truth_and_data_do_not_pass_for_each_other(store: Store) -> None:
    data = put(store)
    with store.create_oracle("oracle", KEY, {"stage": "rollout"}) as draft:
        (draft.path / "truth").write_bytes(b"t")
    truth = draft.ref
    either: TypeAdapter[ArtifactRef | OracleRef] = TypeAdapter(ArtifactRef | OracleRef)
    for ref in (data, truth):
        assert either.validate_json(ref.model_dump_json()) == ref
    with pytest.raises(ValidationError):
        ArtifactRef.model_validate(truth.model_dump())
    with pytest.raises(ValidationError):
        OracleRef.model_validate(data.model_dump())
    with pytest.raises(ValidationError):
        store.find("oracle", KEY)
    assert store.find_oracle("oracle", KEY) == truth
    assert list(store.all()) == [data]
    assert (store.path(truth) / "truth").read_bytes() == b"t"


@pytest.mark.parametrize(("kind", "key"), [("../up", KEY), ("episodes", "../../up"), ("tmp", KEY), ("quarantine", KEY)])
def test_names_cannot_leave_their_folder(store: Store, kind: str, key: str) -> None:
    with pytest.raises(ValidationError):
        store.find(kind, key)


# Storing


def test_what_was_stored_is_found_by_any_process(store: Store) -> None:
    assert store.find("episodes", KEY) is None
    ref = put(store, {"a.bin": b"123", "data/b.bin": b"4567"})
    again = Store(store.root)
    assert again.find("episodes", KEY) == ref
    assert (again.path(ref) / "data" / "b.bin").read_bytes() == b"4567"
    manifest = again.manifest(ref)
    assert [(file.name, file.size) for file in manifest.files] == [("a.bin", 3), ("data/b.bin", 4)]
    assert manifest.size == 7
    assert manifest.provenance == {"stage": "rollout"}
    assert manifest.seconds >= 0
    again.verify(ref)
    assert left_in(store, "tmp") == []


def test_digest_is_of_names_and_bytes_only(store: Store) -> None:
    first = put(store, {"a": b"1", "b": b"2"})
    second = put(store, {"b": b"2", "a": b"1"}, kind="frames", key=artifact_key("frames", 1, {}, []))
    assert first.digest == second.digest
    assert put(store, {"a": b"2", "b": b"1"}, key=artifact_key("x", 1, {}, [])).digest != first.digest


def test_draft_has_no_reference_before_it_is_stored(store: Store) -> None:
    with store.create("episodes", KEY, {}) as draft:
        (draft.path / "a").write_bytes(b"1")
        with pytest.raises(RuntimeError, match="after its `with` block"):
            _ = draft.ref
        assert store.find("episodes", KEY) is None
    assert store.find("episodes", KEY) == draft.ref


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_a_stage_that_fails_leaves_nothing(store: Store, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail(store, error)
    assert store.find("episodes", KEY) is None
    assert left_in(store, "tmp") == []


def test_only_plain_files_are_stored(store: Store) -> None:
    with pytest.raises(ArtifactError, match="left nothing"), store.create("episodes", KEY, {}):
        pass
    with pytest.raises(ArtifactError, match="plain files only"), store.create("episodes", KEY, {}) as draft:
        (draft.path / "link").symlink_to("/etc")
    with pytest.raises(ArtifactError, match="own name"), store.create("episodes", KEY, {}) as draft:
        (draft.path / "manifest.json").write_text("{}")
    assert list(store.all()) == []


# Interruption

WRITER = """
    import os, sys, time
    from pathlib import Path
    from selu.store import Store
    with Store(Path(sys.argv[1])).create("episodes", sys.argv[2], {}) as draft:
        (draft.path / "data.bin").write_bytes(b"half of it")
        print("writing", flush=True)
        time.sleep(60)
"""


def test_killed_writer_is_never_read_as_whole_and_is_cleaned_up(store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(store.root), KEY], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        Store(store.root)
        assert len(left_in(store, "tmp")) == 1, "a living writer's draft was removed"
        writer.send_signal(signal.SIGKILL)
    assert store.find("episodes", KEY) is None
    assert list(store.all()) == []
    assert len(left_in(store, "tmp")) == 1
    Store(store.root)
    assert left_in(store, "tmp") == []
    store.verify(put(store))


def test_draft_of_another_machine_is_left_until_it_is_plainly_abandoned(store: Store) -> None:
    draft = store.root / "tmp" / f"episodes-{KEY}.0123456789ab.1.1.deadbeef"
    draft.mkdir(parents=True)
    (draft / "a").write_bytes(b"1")
    Store(store.root)
    assert draft.exists()
    long_ago = time.time() - 30 * 24 * 3600
    for path in (draft / "a", draft):
        os.utime(path, (long_ago, long_ago))
    Store(store.root)
    assert not draft.exists()


def test_reused_process_number_is_not_taken_for_the_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.create("episodes", KEY, {}) as draft:
        (draft.path / "a").write_bytes(b"1")
        monkeypatch.setattr(processes, "_start_time", lambda pid: "another")
        Store(store.root)
        assert not draft.path.exists()
        draft.path.mkdir()
        (draft.path / "a").write_bytes(b"1")


# Damage


def folder_of(store: Store, ref: ArtifactRef) -> Path:
    return store.root / ref.kind / ref.key[:2] / ref.key


def truncate(folder: Path) -> None:
    os.truncate(folder / "data.bin", 3)


def delete(folder: Path) -> None:
    (folder / "data.bin").unlink()


def unlist(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def halve_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 40)


def forge_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))


@pytest.mark.parametrize("damage", [truncate, delete, unlist, halve_manifest, forge_manifest])
def test_damaged_artifact_is_moved_aside_and_made_again(
    store: Store, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    ref = put(store)
    damage(folder_of(store, ref))
    with pytest.raises(ArtifactError, match="is damaged; run again"):
        store.path(ref)
    assert list(store.all()) == []
    assert store.find("episodes", KEY) is None
    assert len(left_in(store, "quarantine")) == 1
    assert "quarantine" in caplog.text
    assert put(store) == ref
    store.verify(ref)
    assert store.find("episodes", KEY) == ref


def test_storing_over_a_damaged_artifact_replaces_it(store: Store) -> None:
    ref = put(store)
    truncate(folder_of(store, ref))
    assert put(store) == ref
    store.verify(ref)


def test_flipped_bytes_are_found_by_verify(store: Store) -> None:
    ref = put(store, {"a.bin": b"1234", "b.bin": b"5678"})
    (folder_of(store, ref) / "b.bin").write_bytes(b"5679")
    assert store.find("episodes", KEY) == ref, "the cheap look compares sizes only"
    with pytest.raises(ArtifactError, match=r"b\.bin is altered; delete the folder and run again"):
        store.verify(ref)


def test_foreign_file_is_found_by_verify(store: Store) -> None:
    ref = put(store)
    (folder_of(store, ref) / "notes.txt").write_text("hello")
    with pytest.raises(ArtifactError, match=r"notes\.txt does not belong to it"):
        store.verify(ref)


def test_missing_artifact_and_other_bytes_under_a_key_are_told(store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not there; run again"):
        store.path(ArtifactRef(kind="episodes", key=KEY, digest="0"))
    ref = put(store)
    with pytest.raises(ArtifactError, match="made again with other bytes"):
        store.path(ref.model_copy(update={"digest": "0" * 64}))


def test_repaired_meanwhile_is_not_thrown_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = put(store)
    folder = folder_of(store, ref)
    truncate(folder)
    look = store_module._read_whole

    def look_slowly(path: Path) -> Any:
        seen = look(path)
        monkeypatch.setattr(store_module, "_read_whole", look)
        put(Store(store.root))
        return seen

    monkeypatch.setattr(store_module, "_read_whole", look_slowly)
    assert store.find("episodes", KEY) is None
    assert store.find("episodes", KEY) == ref


# Several writers


def test_of_two_writers_of_a_key_the_first_counts(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with store.create("episodes", KEY, {}) as slow:
        (slow.path / "data.bin").write_bytes(b"slow")
        quick = put(Store(store.root), {"data.bin": b"quick"})
    assert slow.ref == quick
    assert (store.path(quick) / "data.bin").read_bytes() == b"quick"
    assert "made twice with different bytes" in caplog.text
    assert left_in(store, "tmp") == []


def test_many_writers_of_a_key_agree(store: Store) -> None:
    start = threading.Barrier(8)
    refs: list[ArtifactRef] = []

    def write() -> None:
        start.wait()
        refs.append(put(Store(store.root), {f"{i}.bin": bytes([i]) * 100 for i in range(5)}))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 8
    assert len(set(refs)) == 1
    store.verify(refs[0])
    assert left_in(store, "tmp") == left_in(store, "quarantine") == []


# Disks


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_a_stage_writes_is_one_sentence(store: Store) -> None:
    with pytest.raises(TerminalError, match="is full; free some space or set data_dir to another disk") as caught:
        fail(store, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(store.root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(store, "tmp") == []


def test_full_disk_while_the_store_flushes_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(TerminalError, match="is full"):
        put(store)
    monkeypatch.undo()
    assert store.find("episodes", KEY) is None
    assert left_in(store, "tmp") == []


def test_full_disk_that_another_library_reports_in_its_own_words(store: Store) -> None:
    with pytest.raises(TerminalError, match="is full"):
        fail(store, RuntimeError("Error while serializing: IoError(No space left on device)"))


def test_other_errors_of_a_stage_stay_what_they_are(store: Store) -> None:
    with pytest.raises(PermissionError):
        fail(store, PermissionError(errno.EACCES, "Permission denied", "/somebody/elses/file"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_folder_that_may_not_be_written_is_one_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ref = put(store)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(TerminalError, match=r"no permission to use .* set data_dir to a folder that is") as caught:
        put(store, key=artifact_key("other", 1, {}, []))
    assert "\n" not in str(caught.value)
    with pytest.raises(TerminalError, match="no permission"):
        Store(store.root / "new")
    assert store.find("episodes", KEY) == ref, "reading goes on"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_real_read_only_folder(store: Store) -> None:
    ref = put(store)
    store.root.chmod(0o555)
    try:
        reader = Store(store.root)
        assert reader.find("episodes", KEY) == ref
        with pytest.raises(TerminalError, match="no permission"), reader.create("frames", KEY, {}):
            pass
    finally:
        store.root.chmod(0o755)


def test_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="must be a folder"):
            Store(root)


def test_hundreds_of_artifacts_are_listed_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    keys = [artifact_key("shard", 1, shard, []) for shard in range(300)]
    for key in keys:
        put(store, key=key)
    assert [ref.key for ref in store.all("episodes")] == sorted(keys)
    assert sum(manifest.size for manifest in manifests(store.root)) == 300 * 8
    assert list(store.all("frames")) == []


# Tables


def question(number: int, text: str = "Is the fridge open?") -> Question:
    return Question(
        question_id=f"q{number}",
        episode_id="e",
        frame_index=number,
        instruction="",
        kind="open",
        text=text,
        expected="yes",
    )


TASK = Task(
    task_id="t",
    scene="FloorPlan21",
    kind="put",
    instruction="put the mug on the table",
    goal=(Condition(predicate="inside", object_type="Mug", receptacle_type="DiningTable"),),
    setup=Setup(
        spawn_seed=3, states={"Mug|1|2|3": {"isDirty": True}}, held=None, position=(0.1, 0.9, -1.25), rotation=90.0
    ),
)


@pytest.mark.parametrize(
    "records",
    [
        [question(n, "Wo ist das Glas? \u2713") for n in range(3)],
        [TASK],
        [Frame(episode_id="e", frame_index=0, image=bytes(range(256)))],
        [],
    ],
)
def test_tables_give_back_what_was_written_in_the_same_bytes(tmp_path: Path, records: list[Record]) -> None:
    record_type: type[Record] = type(records[0]) if records else Episode
    for name in ("one.parquet", "two.parquet"):
        write_table(tmp_path / name, records, record_type)
    assert read_table(tmp_path / "one.parquet", record_type) == records
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_same_bytes_from_another_process(tmp_path: Path) -> None:
    write_table(tmp_path / "here.parquet", [TASK], Task)
    code = (
        "import sys; from pathlib import Path; from selu.records import Task; from selu.store import write_table; "
        "write_table(Path(sys.argv[1]), [Task.model_validate_json(sys.argv[2])], Task)"
    )
    there = tmp_path / "there.parquet"
    environment = {**os.environ, "PYTHONHASHSEED": "123", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(there), TASK.model_dump_json()], check=True, env=environment)
    assert there.read_bytes() == (tmp_path / "here.parquet").read_bytes()


def test_tables_of_many_rows_keep_their_order_and_stay_small(tmp_path: Path) -> None:
    write_table(tmp_path / "questions.parquet", [question(n) for n in range(20_000)], Question)
    assert [row.frame_index for row in read_table(tmp_path / "questions.parquet", Question)] == list(range(20_000))
    assert (tmp_path / "questions.parquet").stat().st_size < 400_000
    pictures = [Frame(episode_id="e", frame_index=n, image=os.urandom(500)) for n in range(3_000)]
    write_table(tmp_path / "frames.parquet", pictures, Frame)
    assert pq.ParquetFile(tmp_path / "frames.parquet").num_row_groups == 3
    assert (tmp_path / "frames.parquet").stat().st_size < 3_000 * 500 * 1.05


def test_table_that_is_damaged_or_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.parquet"
    with pytest.raises(ArtifactError, match="no such table"):
        read_table(path, Question)
    write_table(path, [question(1)], Question)
    with pytest.raises(ArtifactError, match="must hold the columns of Frame"):
        read_table(path, Frame)
    os.truncate(path, path.stat().st_size - 20)
    with pytest.raises(ArtifactError, match="no readable Parquet"):
        read_table(path, Question)


def test_value_beyond_its_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a Question does not fit the table q"):
        write_table(tmp_path / "q.parquet", [question(2**70)], Question)
