"""A source behind a URL is the same source as its copy on this machine."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.remote import BLOCK_BYTES, remote_file
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.labelset import Segment
from softlabel.schemas.location import Url, located
from softlabel.schemas.params import InferParams, VerifyParams
from softlabel.stages import infer, verify
from softlabel.torch import DistillationDataset
from tests.integration.serving import memory, web
from tests.integration.source_kinds import as_image_folder, as_npy, as_parquet, as_tars
from tests.unit.encoded import same, whole

if TYPE_CHECKING:
    from tests.conftest import Command, Project

NETS = "softlabel.pipeline.small_models"
SMALL = ("--labels", "labels", "--loss", "kd", "--epochs", "1", "--logger", "none")
MODEL = ("--model", f"{NETS}:conv_net", "--model-args", '{"width": 4, "depth": 1}')


def as_it_is(source: Source, folder: Path) -> Path:
    for file in source.files:
        (folder / file.name).write_bytes((Path(str(source.path)) / file.name).read_bytes())
    return folder


@contextlib.contextmanager
def served(folder: Path, protocol: str) -> Iterator[str]:
    if protocol == "memory":
        with memory(folder) as url:
            yield url
    else:
        with web(folder) as (url, _):
            yield url


@pytest.mark.parametrize(
    ("write", "protocol", "pattern"),
    [
        (as_it_is, "memory", ""),
        (as_it_is, "http", "/part-{00000..00001}.parquet"),
        (as_parquet, "memory", "/part-*.parquet"),
        (as_parquet, "http", "/"),
        (as_tars, "memory", "/part-0000[01].tar"),
        (as_tars, "http", "/part-{00000,00001}.tar"),
        (as_npy, "memory", ""),
        (as_npy, "http", "/*.npy"),
        (as_image_folder, "memory", "/"),
    ],
)
def test_labels_and_pictures_are_those_of_the_copy_here(
    make_project: Callable[[], Project],
    write: Callable[[Source, Path], Path],
    protocol: str,
    pattern: str,
) -> None:
    project = make_project()
    canonical, teacher = project.source(shards=(40, 20)), project.teacher()
    folder = project.root / "other"
    folder.mkdir()
    write(open_source(canonical), folder)
    with served(folder, protocol) as url:
        remote = located(url + pattern)
        for source, name in ((folder, "here"), (remote, "there")):
            output = project.root / name
            infer.run(InferParams(teacher=teacher, source=source, output=output, batch_size=4))
        assert project.files("here") == project.files("there")
        # The labels of one, read with the pictures of the other.
        checked = verify.run(
            VerifyParams(labels=project.root / "here", source=remote, teacher=teacher)
        )
        assert checked.problems == ()
        assert "replay" in checked.checks
        epochs = [
            [
                (batch.keys.tolist(), batch.pixels.numpy().tobytes())
                for batch in DistillationDataset(source, project.root / name, batch_size=16)
            ]
            for source, name in ((str(remote), "here"), (folder, "there"))
        ]
        assert epochs[0] == epochs[1]
        assert len(epochs[0]) == 4


def test_every_verb_takes_an_address(project: Project, command: Command) -> None:
    with web(project.root / "data") as (host, _):
        url = f"{host}/train"
        for flags in (
            ("plan", "--source", url, "--rows", "64"),
            ("infer", "--source", url),
            (
                "train-student",
                "--source",
                url,
                "--validation",
                url,
                *SMALL,
                *MODEL,
                "--output",
                "student",
            ),
            ("evaluate", "--models", "student", "--source", url, "--labels", "labels"),
            ("report", "--source", url, "--models", "student", "--output", "report.html"),
        ):
            ended = command(*flags, "--json")
            assert ended.code == 0, ended.stderr
    assert json.loads(Path("reports/evaluate/evaluate.json").read_bytes())["source"] == url
    # As of a path outside the project, the page shows the name.
    assert "127.0.0.1" not in Path("report.html").read_text()


def test_a_row_costs_its_block_and_no_more(tmp_path: Path) -> None:
    pixels = np.zeros((60, 512, 512, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(60)
    np.save(tmp_path / "large.npy", pixels)
    with web(tmp_path) as (url, sent):
        source = open_source(located(f"{url}/large.npy"))
        # The fingerprint is of all bytes; what is read for it is held a few blocks at a time.
        assert sum(sent) >= pixels.nbytes and max(sent) <= BLOCK_BYTES
        sent.clear()
        block = source.read([Segment(source="large.npy", first=30, rows=2)])
        assert block.inputs[:, 0, 0, 0].tolist() == [30, 31]
        assert sum(sent) <= 3 * BLOCK_BYTES
        sent.clear()
        source.read([Segment(source="large.npy", first=31, rows=1)])
        assert sent == []


def test_another_reader_asks_for_nothing(tmp_path: Path, project: Project) -> None:
    """As every thread, and every step that fits a source to its taker, makes one."""
    source = open_source(project.root / "data/train")
    as_parquet(source, tmp_path)
    for folder in (tmp_path, project.root / "data/train"):
        with web(folder) as (url, sent):
            remote = open_source(located(f"{url}/part-{{00000..00001}}.parquet"))
            sent.clear()
            assert remote.reopen().files == remote.files
            assert sent == []


def test_a_name_is_the_file_s_and_no_address(tmp_path: Path, project: Project) -> None:
    (tmp_path / "a b").mkdir()
    path = tmp_path / "a b/part 1.parquet"
    path.write_bytes((project.root / "data/train/part-00000.parquet").read_bytes())
    with web(tmp_path) as (url, _):
        for address in (f"{url}/a%20b/part%201.parquet?token=x", f"{url}/a%20b"):
            source = open_source(located(address))
            assert [file.name for file in source.files] == ["part 1.parquet"]
            assert same(whole(source), whole(open_source(path)))
    assert located(f"file://{tmp_path}/a%20b/part%201.parquet") == path


def test_tars_of_one_name_are_told_apart_as_here(tmp_path: Path, project: Project) -> None:
    source = open_source(project.root / "data/train")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    as_tars(source, tmp_path / "one")
    (tmp_path / "one/part-00001.tar").rename(tmp_path / "two/part-00000.tar")
    with memory(tmp_path) as url:
        remote = open_source(located(f"{url}/{{one,two}}/part-00000.tar"))
    assert remote.files == open_source(tmp_path / "{one,two}/part-00000.tar").files


def test_readers_of_one_file_in_memory_are_apart(tmp_path: Path) -> None:
    (tmp_path / "letters").write_bytes(b"abcdef")
    with memory(tmp_path) as url:
        one, two = (remote_file(Url(f"{url}/letters")) for _ in range(2))
        assert (one.read(2), two.read(3), one.read()) == (b"ab", b"abc", b"cdef")


# fsspec's cache of blocks leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cache", ["filecache", "blockcache"])
def test_a_cache_on_disk_by_a_chain_of_addresses(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    held = tmp_path / "cache"
    monkeypatch.setitem(fsspec.config.conf, cache, {"cache_storage": str(held)})
    with web(project.root / "data/train") as (url, _):
        cached = open_source(located(f"{cache}::{url}/part-*.parquet"))
        assert same(whole(cached), whole(open_source(project.root / "data/train")))
    assert len(list(held.iterdir())) >= 2


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("{url}/none.parquet", 2, "none.parquet: no such source"),
        ("{url}/none-*.parquet", 2, "names no file .*none-.*; check the pattern"),
        ("{url}/none-{{0..1}}.tar", 2, "none-0.tar: no such source"),
        ("{url}/none", 2, "none: no such source"),
        ("memory://none/none.tar", 2, "none.tar: no such source"),
        ("http://127.0.0.1:9/x.parquet", 4, "x.parquet: cannot be read .*; check the address"),
        ("http://127.0.0.1:9/x-{{0..1}}.tar", 4, "x-0.tar: cannot be read .*; check the address"),
        ("nonsense://x/y.tar", 2, "fsspec knows no protocol 'nonsense'"),
        ("s3://x/y.tar", 4, r"a package that is missing \(.*s3fs.*pip install 'softlabel\[s3\]'"),
        (
            "{url}/bad.npz",
            2,
            "bad.npz: .npz files can be read on this machine only; copy the files here",
        ),
        ("{url}/bad-images-idx3-ubyte", 2, "IDX files can be read on this machine only"),
        ("{url}/saved", 2, "a saved dataset can be read on this machine only"),
        ("{url}/pictures", 4, "its server does not tell the sizes of files"),
        ("{url}/fortran.npy", 3, "its rows lie apart"),
        ("{url}/text.tar", 3, "text.tar: is no plain tar"),
        ("{url}/text.parquet", 3, "text.parquet: is no Parquet file"),
        ("file://elsewhere/x.tar", 2, "--source: a file:// URL names a file of this machine"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    project: Project,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    folder = project.root / "web"
    for name in ("saved/state.json", "pictures/ant/a.png", "bad.npz", "bad-images-idx3-ubyte"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("text.tar", "text.parquet"):
        (folder / name).write_text("no samples at all, " * 100)
    np.save(folder / "fortran.npy", np.zeros((9, 8, 8), np.uint8, order="F"))
    with web(folder) as (url, _):
        ended = command("infer", "--source", address.format(url=url))
    assert ended.code == code
    assert ended.stderr.startswith("softlabel: error: ")
    assert ended.stderr.count("\n") == 1
    assert re.search(words, ended.stderr), ended.stderr


@pytest.mark.parametrize("write", [as_it_is, as_parquet, as_tars, as_npy])
def test_a_server_that_breaks_off_is_told_of_and_the_run_goes_on_after(
    project: Project, command: Command, write: Callable[[Source, Path], Path]
) -> None:
    folder = project.root / "other"
    folder.mkdir()
    write(open_source(project.root / "data/train"), folder)
    with web(folder) as (url, _):
        assert command("infer", "--source", url).code == 0
        (folder / "broken").touch()
        ended = command("verify", "--source", url, "--teacher", "models/teacher.onnx")
        assert ended.code == 4
        assert re.fullmatch(
            r"softlabel: error: http://.*: cannot be read \(500.*\); check .*\n", ended.stderr
        )
        (folder / "broken").unlink()
        assert command("verify", "--source", url, "--teacher", "models/teacher.onnx").code == 0


def test_a_server_without_ranges(tmp_path: Path, project: Project) -> None:
    with web(project.root / "data/train", ranges=False) as (url, _):
        with pytest.raises(EnvironmentFault, match="gives whole files only"):
            open_source(located(f"{url}/part-00000.parquet"))


def test_a_file_that_changes_between(tmp_path: Path, project: Project) -> None:
    as_tars(open_source(project.root / "data/train"), tmp_path)
    with web(tmp_path) as (url, _):
        source = open_source(located(f"{url}/part-00000.tar"))
        with open(tmp_path / "part-00000.tar", "ab") as file:
            file.write(bytes(512))
        with pytest.raises(DataError, match="the file changed since it was opened"):
            whole(source)
