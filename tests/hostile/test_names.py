"""Names made to be taken for markup, SQL, options or commands to a terminal: they are text wherever they are shown."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from curation import storage
from jobs import cli
from tests.hostile.corpus import NAMES
from tests.hostile.test_hostile import SUBSET, reelset
from tests.media_samples import make_video, moving

pytestmark = pytest.mark.hostile

MARKUP = tuple(os.fsdecode(n) for n in NAMES if re.search(rb"[<>&'\"]", n))
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal: control characters, and those that turn the direction of writing."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Page(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run over films and broken files of all the names."""
    folder = tmp_path_factory.mktemp("names")
    film = make_video(folder / "a.mp4", moving(160, 96), 75, 15).read_bytes()
    for number, name in enumerate(NAMES):
        for kind, data in (("bad", b"no film "), ("good", film + b"\0\0\0\x0cfree")):
            place = folder / "in" / kind / os.fsdecode(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data + number.to_bytes(4, "big"))
    tree = {"text": {"enabled": False}, "subsets": [SUBSET], "encode": {"preset": "ultrafast"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    words = ("run", "--input", folder / "in", "--output", folder / "run", "--config", folder / "config.yaml")
    done = reelset(*words, "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert not COMMANDS.search((done.stdout + done.stderr).decode())
    yield folder / "run"


def test_names_come_back_from_the_tables_byte_by_byte(run: Path) -> None:
    rows = storage.read_table(str(run / "sources")).to_pylist()
    assert {r["path"]: r["error_code"] for r in rows} == {
        storage.escape(f"{kind}/{os.fsdecode(name)}"): code
        for name in NAMES
        for kind, code in (("bad", "not_media"), ("good", None))
    }
    assert all((run.parent / "in" / storage.unescape(r["path"])).exists() for r in rows)
    assert storage.read_table(str(run / "selection" / "all")).num_rows == len(NAMES)
    assert not [p for p in run.parent.iterdir() if p.name not in ("a.mp4", "in", "run", "config.yaml")]


def test_the_report_shows_names_as_text(run: Path, tmp_path: Path) -> None:
    """A page names but a few examples of each kind, so a run of its own for those that look like markup."""
    assert 4 <= len(MARKUP) <= 6
    (tmp_path / "in").mkdir()
    for number, name in enumerate(MARKUP):
        broken = (b"no film %d", b"\x1aE\xdf\xa3 %d")[number % 2] % number
        (tmp_path / "in" / f"bad {name}").write_bytes(broken)
        (tmp_path / "in" / f"good {name}").write_bytes((run.parent / "in" / "good" / name).read_bytes())
    done = reelset("run", "-i", tmp_path / "in", "-o", tmp_path / "run", "-c", run.parent / "config.yaml", "--engine", "inline")
    assert done.returncode == 0, done.stderr
    pages = [Page((place / "report" / "index.html").read_text()) for place in (run, tmp_path / "run")]
    shown = pages[1].text + "".join(value for _, value in pages[1].attributes)
    assert [name for name in MARKUP for kind in ("bad", "good") if f"{kind} {name}" not in shown] == []
    for page in pages:
        assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
        assert not [a for a in page.attributes if a[0].startswith("on") or a[1].lower().startswith("javascript:")]
        assert all(src.startswith("data:image/jpeg") for name, src in page.attributes if name == "src")


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The command line in this process: its exit code, and what it said without colours."""

    def asked(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reelset", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, COLOURS.sub("", said.out + said.err)

    return asked


@pytest.mark.parametrize("name", [f"{kind}/{os.fsdecode(n)}" for n in NAMES for kind in ("bad", "good")])
def test_no_name_commands_the_terminal_or_the_database(run: Path, ask: Ask, name: str) -> None:
    code, said = ask("inspect", run, "--", storage.escape(name))
    assert code == 0, said
    assert not COMMANDS.search(said)


def test_tables_of_names_do_not_command_the_terminal(run: Path, ask: Ask) -> None:
    for words in (("sql", run, "SELECT * FROM sources"), ("status", run), ("what-if", run, "--rules", "everyday")):
        code, said = ask(*words)
        assert code == 0, said
        assert not COMMANDS.search(said)


def test_a_question_with_a_name_in_it_is_one(run: Path, ask: Ask) -> None:
    assert ask("sql", run, "SELECT count(*) AS n FROM sources WHERE path LIKE '%DROP TABLE%'", "--csv") == (0, "n\n2\n")


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "' OR 1=1 --"),
        ("inspect", "'; DROP VIEW sources; --"),
        ("inspect", "x\x1b[2J\x07"),
        ("sql", "SELECT 1; SELECT 2"),
        ("sql", "SELECT * FROM '{outside}'"),
        ("sql", "SELECT * FROM read_text('{outside}')"),
        ("sql", "SELECT * FROM glob('/*')"),
        ("sql", "COPY sources TO '{outside}.csv'"),
        ("sql", "ATTACH '{outside}.db'"),
        ("sql", "INSTALL httpfs"),
        ("what-if", "--rules", "{rules}"),
    ],
)
def test_what_asks_for_more_than_the_run_is_refused(run: Path, ask: Ask, tmp_path: Path, words: tuple[str, ...]) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("a secret")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"clip_rules": ["duration_s > 0) OR (SELECT count(*) FROM sources) > 0"]}))
    verb, *rest = (w.format(outside=outside, rules=rules) for w in words)
    code, said = ask(verb, run, *rest)
    assert code == 2, said
    assert "a secret" not in said and not COMMANDS.search(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outside.txt", "rules.yaml"]
