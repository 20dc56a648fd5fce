"""The rooms know only what the plan allows, and the command line answers without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("curation", "filters", "captioning", "bucketing", "training_bridge", "jobs")
MAY_IMPORT = {
    "curation": set(),
    "filters": {"curation"},
    "captioning": {"curation"},
    "bucketing": {"curation"},
    "training_bridge": {"bucketing"},
    "jobs": set(ROOMS),
}
STANDS_ALONE = ("bucketing/shard_format.py", "bucketing/buckets.py")
TORCH_ONLY = (
    *("loop", "task", "plateau", "layout", "checkpoint", "ema", "initial", "metrics", "watch", "launch", "exchange"),
    *("tae/model", "tae/weights", "tae/losses", "tae/measures", "tae/tiling", "tae/normalisation", "tae/cosines"),
    *("dit/model", "dit/flow", "dit/sample", "dit/parallel"),
)
"""Files of `training_bridge` that run on a bare GPU machine, with the standard library and torch alone."""
HEAVY = ("torch", "ray", "vllm", "faiss", "cv2", "av", "onnxruntime", "pyspark", "rapidocr", "scenedetect")


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def imported_at_once(file: Path) -> set[str]:
    """The modules that are imported when a file is: not those inside functions, nor those for type checking."""
    plain = ast.Module([n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    names = {alias.name for n in plain.body if isinstance(n, ast.Import) for alias in n.names}
    return names | {n.module or "" for n in plain.body if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_models_and_loop_need_nothing_but_torch(name: str) -> None:
    allowed = {f"training_bridge.{other.replace('/', '.')}" for other in TORCH_ONLY} | {"torch"} | set(sys.stdlib_module_names)
    for module in imported_at_once(ROOT / "training_bridge" / f"{name}.py"):
        assert module in allowed or module.split(".")[0] in allowed - {"training_bridge"}, module


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        rooms = {name.split(".")[0] for name in imported(file)} & set(ROOMS)
        allowed = MAY_IMPORT[room] | {room}
        assert rooms <= allowed, f"{file.relative_to(ROOT)} imports {rooms - allowed}"


@pytest.mark.parametrize("file", STANDS_ALONE)
def test_the_shard_format_stands_alone(file: str) -> None:
    names = {name.split(".")[0] for name in imported(ROOT / file)}
    assert not names & set(ROOMS)


def test_the_bridge_reads_only_the_shard_format() -> None:
    for file in (ROOT / "training_bridge").rglob("*.py"):
        ours = {n for n in imported(file) if n.startswith("bucketing")}
        assert ours <= {"bucketing.shard_format", "bucketing.buckets"}


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = f"import sys, jobs.cli; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["jobs.config", "jobs.pipeline", "jobs.report", "jobs.inspect"])
def test_jobs_import_without_heavy_libraries(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
