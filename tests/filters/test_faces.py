"""The face scorer, on faces that the tests draw and on SCRFD models whose outputs the tests planted."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from curation import rules, storage
from curation.errors import ConfigError
from curation.rules import SubsetConfig
from curation.stage import Source
from filters import faces
from filters.faces import COLUMNS, SHIPPED, Detector, Faces, FacesConfig, check, decode, load, score
from jobs import pipeline
from jobs.analyze import stages
from jobs.config import resolve
from jobs.pipeline import unconfigured
from tests.small_runs import SUBSET, settings

Picture = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 480, 270
GROUND = (120, 90, 60)
NOTHING = {"face_count_max": 0.0, "people_score": 0.0}


@pytest.fixture(scope="module")
def yunet() -> Detector:
    return load(FacesConfig())


def drawn(side: int) -> Picture:
    """A face of ellipses, softly lit, on `GROUND`: hair, brows, eyes, nose and mouth where people have them. BGR."""
    wide = 4 * side
    skin, hair = (150, 180, 225), (25, 35, 50)
    shadow = (112, 135, 168)
    picture = np.full((wide, wide, 3), GROUND, np.uint8)

    def ellipse(
        x: float, y: float, a: float, b: float, colour: Sequence[int], arc: tuple[int, int, int] = (0, 360, -1)
    ) -> None:
        middle, axes = (int(x * wide), int(y * wide)), (int(a * wide), int(b * wide))
        cv2.ellipse(picture, middle, axes, 0, arc[0], arc[1], colour, arc[2], cv2.LINE_AA)

    ellipse(0.5, 0.42, 0.33, 0.38, hair)
    ellipse(0.5, 0.95, 0.14, 0.25, shadow)
    ellipse(0.5, 0.52, 0.26, 0.36, skin)
    ellipse(0.5, 0.25, 0.25, 0.13, hair)
    for x in (0.4, 0.6):
        ellipse(x, 0.47, 0.065, 0.03, shadow)
        ellipse(x, 0.475, 0.05, 0.024, (240, 240, 240))
        ellipse(x, 0.475, 0.022, 0.022, (40, 50, 60))
        ellipse(x, 0.42, 0.07, 0.03, hair, (190, 350, max(1, wide // 60)))
    ellipse(0.5, 0.56, 0.035, 0.1, (138, 166, 207))
    ellipse(0.5, 0.63, 0.05, 0.022, shadow)
    ellipse(0.5, 0.735, 0.095, 0.035, (90, 90, 190))
    soft = cv2.GaussianBlur(picture, (0, 0), wide / 120)
    y, x = np.mgrid[:wide, :wide] / wide
    lit = soft * (1.1 - 2 * ((x - 0.45) ** 2 + (y - 0.5) ** 2))[..., None]
    return np.asarray(cv2.resize(np.clip(lit, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def frame(*places: tuple[int, int], side: int = 130) -> Picture:
    """A plain frame with faces whose upper left corners are at `places`."""
    picture = np.full((HEIGHT, WIDTH, 3), GROUND, np.uint8)
    for x, y in places:
        picture[y : y + side, x : x + side] = drawn(side)
    return picture


def texture(seed: int = 3) -> Picture:
    """Soft blobs with grain: nothing like a face."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(40, 180, (17, 30, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.integers(-12, 13, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8)


def jpeg(picture: Picture) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


ONE, TWO, NONE = jpeg(frame((60, 40))), jpeg(frame((40, 40), (280, 60))), jpeg(texture())


def test_most_faces_of_any_frame_count(yunet: Detector) -> None:
    found = score([ONE, TWO, NONE], yunet, FacesConfig())
    assert found["face_count_max"] == 2.0
    assert 0.8 < found["people_score"] <= 1.0


def test_one_image(yunet: Detector) -> None:
    assert score([ONE], yunet, FacesConfig())["face_count_max"] == 1.0


def test_no_face(yunet: Detector) -> None:
    assert score([NONE, jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8))], yunet, FacesConfig()) == NOTHING


def test_box_is_where_the_face_was_drawn(yunet: Detector) -> None:
    (box,) = yunet(frame((300, 100)))
    assert 300 < box[0] < box[2] < 430 and 100 < box[1] < box[3] < 230
    assert box[2] - box[0] > 40 and box[3] - box[1] > 50


@pytest.mark.parametrize("side", [90, 120, 200])
def test_faces_of_all_sizes(yunet: Detector, side: int) -> None:
    assert score([jpeg(frame((100, 50), side=side))], yunet, FacesConfig())["face_count_max"] == 1.0


def test_a_face_that_is_not_sure_enough_does_not_count_but_shows_in_the_score(yunet: Detector) -> None:
    sure = score([ONE], yunet, FacesConfig())["people_score"]
    found = score([ONE], yunet, FacesConfig(min_score=sure + 0.01))
    assert found == {"face_count_max": 0.0, "people_score": sure}


def test_a_face_below_the_least_size_is_not_seen(yunet: Detector) -> None:
    small = [jpeg(frame((100, 50), side=90))]  # its box is a third of the drawing wide: an eighth of the height
    assert score(small, yunet, FacesConfig(min_size_frac=0.08))["face_count_max"] == 1.0
    assert score(small, yunet, FacesConfig(min_size_frac=0.2)) == NOTHING


def test_the_same_model_by_path_is_the_same(yunet: Detector, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(SHIPPED.read_bytes())
    config = FacesConfig(weights=tmp_path / "mine.onnx")
    assert score([ONE, TWO], load(config), config) == score([ONE, TWO], yunet, FacesConfig())


class TestStage:
    """What the stage writes into a source's clips."""

    def source(self, clips: dict[str, list[bytes]]) -> Source:
        fresh = {"status": "ok", "error_code": None, "error_message": None, **dict.fromkeys(COLUMNS)}
        rows = [{"clip_id": name, **fresh} for name in clips]
        frames = [{"clip_id": n, "frame": i, "jpeg": j} for n, given in clips.items() for i, j in enumerate(given)]
        return Source("unit", "url", {"status": "ok"}, clips=rows, frames=frames)

    def run(self, of: Source, detector: Detector, wanted: Any = None) -> list[dict[str, Any]]:
        stage = Faces(FacesConfig(), wanted)
        stage.detector = detector
        (done,) = stage.rows(iter([of]))
        assert done.row["status"] == "ok", done.row
        assert done.costs["faces"].wall_s > 0
        return done.clips

    def test_wanted_clips_are_scored_and_failures_noted(self, yunet: Detector) -> None:
        given = self.source({"a": [ONE, TWO], "b": [NONE], "c": [ONE], "d": [b"no picture", b""], "e": [], "f": [ONE]})
        given.clips[5] |= {"status": "error", "error_code": "frames_missing"}
        given.frames.reverse()
        clips = {c["clip_id"]: c for c in self.run(given, yunet, lambda source: set("abdef"))}
        assert {name: clip["face_count_max"] for name, clip in clips.items()} == {"a": 2.0, "b": 0.0, **dict.fromkeys("cdef")}
        assert all((clips[n]["people_score"] is None) == (clips[n]["face_count_max"] is None) for n in clips)
        assert {name: clip["error_code"] for name, clip in clips.items()} == {
            **dict.fromkeys("abc"),
            **dict.fromkeys("de", "scorer_failed"),
            "f": "frames_missing",
        }
        assert clips["d"]["error_message"] == "faces: no kept frame is a readable JPEG"
        assert clips["e"]["error_message"] == "faces: the clip has no kept frame"
        assert all(clips[name]["status"] == "ok" for name in "abcde")
        assert set(clips["a"]) == {"clip_id", "status", "error_code", "error_message", *COLUMNS}

    def test_damaged_frame_counts_for_nothing(self, yunet: Detector) -> None:
        clips = self.run(self.source({"a": [b"no picture", ONE, b""], "b": [ONE], "c": [ONE[:300], NONE]}), yunet)
        assert [clips[0][c] for c in COLUMNS] == [clips[1][c] for c in COLUMNS]
        assert (clips[2]["face_count_max"], clips[2]["error_code"]) == (0.0, None)

    def test_scores_do_not_depend_on_neighbours(self, yunet: Detector) -> None:
        portrait = jpeg(np.asarray(np.rot90(frame((60, 40))), np.uint8))
        forth = self.run(self.source({"a": [ONE], "b": [portrait], "c": [TWO]}), yunet)
        assert forth == self.run(self.source({"c": [TWO], "b": [portrait], "a": [ONE]}), yunet)[::-1]

    def test_failing_model_costs_its_clip_only(self, yunet: Detector) -> None:
        def broken(picture: Picture) -> faces.Boxes:
            if picture[:9, :, 0].std() < 1:  # only the clip on plain ground
                raise cv2.error("bad allocation")
            return yunet(picture)

        first, second = self.run(self.source({"a": [ONE], "b": [NONE]}), broken)
        assert [first[c] for c in COLUMNS] == [None, None]
        assert first["error_code"] == "scorer_failed" and "bad allocation" in first["error_message"]
        assert (second["face_count_max"], second["error_code"]) == (0.0, None)

    def test_is_picklable_before_open(self) -> None:
        stage = pickle.loads(pickle.dumps(Faces(FacesConfig())))
        assert (stage.name, stage.gpus, stage.detector) == ("faces", 0.0, None)
        stage.open()
        (done,) = stage.rows(iter([self.source({"a": [ONE]})]))
        assert done.clips[0]["face_count_max"] == 1.0
        stage.close()
        assert stage.detector is None


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes SCRFD models of 64 x 64 pixels, two anchors a place, that always give the planted faces.

    A face is (index of the stride, row, column, anchor, score, distances to the sides in strides).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def make(name: str, *found: tuple[int, int, int, int, float, tuple[float, ...]], landmarks: bool = True) -> Path:
        scores, boxes, points = [], [], []
        for index, places in enumerate((8, 4, 2)):
            score_N1, box_N4 = np.zeros((2 * places**2, 1), np.float32), np.zeros((2 * places**2, 4), np.float32)
            for at, row, column, anchor, sure, sides in found:
                if at == index:
                    score_N1[2 * (row * places + column) + anchor] = sure
                    box_N4[2 * (row * places + column) + anchor] = sides
            scores.append(score_N1)
            boxes.append(box_N4)
            points.append(np.zeros((2 * places**2, 10), np.float32))
        outputs = [*scores, *boxes, *(points if landmarks else [])]
        nodes = [helper.make_node("Constant", [], [f"o{i}"], value=numpy_helper.from_array(o)) for i, o in enumerate(outputs)]
        picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 64, 64])
        infos = [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, o.shape) for i, o in enumerate(outputs)]
        return saved(tmp_path_factory.mktemp("models") / f"{name}.onnx", nodes, picture, infos, [])

    def saved(path: Path, nodes: Any, picture: Any, infos: Any, weights: Any) -> Path:
        graph = helper.make_graph(nodes, "scrfd", [picture], infos, weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        return path

    return make


@pytest.fixture(scope="module")
def random_scrfd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of SCRFD's signature that takes any size: one random convolution for each output."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    nodes, weights, infos = [], [], []
    for kind, width in (("score", 1), ("box", 4)):
        for stride in (8, 16, 32):
            name = f"{kind}_{stride}"
            kernel = rng.normal(0, 0.5, (2 * width, 3, stride, stride)).astype(np.float32) / stride
            weights.append(numpy_helper.from_array(kernel, f"{name}_w"))
            weights.append(numpy_helper.from_array(np.array([-1, width], np.int64), f"{name}_s"))
            nodes += [
                helper.make_node("Conv", ["input", f"{name}_w"], [f"{name}_c"], strides=[stride, stride]),
                helper.make_node("Transpose", [f"{name}_c"], [f"{name}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_t", f"{name}_s"], [f"{name}_r"]),
                helper.make_node("Sigmoid" if kind == "score" else "Abs", [f"{name}_r"], [name]),
            ]
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]))
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [picture], infos, weights)
    path = tmp_path_factory.mktemp("models") / "random.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def scrfd(path: Path, **more: Any) -> FacesConfig:
    return FacesConfig(detector="scrfd", weights=path, **more)


class TestScrfd:
    """Outputs to boxes."""

    LARGE = (1, 1, 2, 1, 0.9, (1.0, 0.5, 1.5, 2.0))  # stride 16, anchor at (32, 16): 16, 8, 56, 48
    SMALL = (0, 6, 1, 0, 0.8, (0.5, 1.0, 0.5, 1.0))  # stride 8, anchor at (8, 48): 4, 40, 12, 56

    @pytest.mark.parametrize("landmarks", [True, False])
    def test_planted_boxes(self, planted: Make, landmarks: bool) -> None:
        detector = load(scrfd(planted("two", self.LARGE, self.SMALL, landmarks=landmarks)))
        found = detector(np.zeros((64, 64, 3), np.uint8))
        assert found == pytest.approx(np.array([[16, 8, 56, 48, 0.9], [4, 40, 12, 56, 0.8]]))

    def test_largest_stride(self, planted: Make) -> None:
        face = (2, 1, 1, 0, 0.7, (0.5, 0.5, 0.5, 0.25))  # stride 32, anchor at (32, 32)
        assert load(scrfd(planted("far", face)))(np.zeros((64, 64, 3), np.uint8)) == pytest.approx(
            np.array([[16, 16, 48, 40, 0.7]])
        )

    def test_boxes_are_those_of_the_picture_given(self, planted: Make) -> None:
        detector = load(scrfd(planted("scaled", self.LARGE)))
        assert detector(np.zeros((96, 128, 3), np.uint8)) == pytest.approx(np.array([[32, 16, 112, 96, 0.9]]))

    def test_of_overlapping_boxes_the_surer_stays_and_faint_ones_go(self, planted: Make) -> None:
        again = (1, 1, 2, 0, 0.6, (1.0, 0.5, 1.4, 2.0))
        faint = (0, 0, 7, 0, 0.29, (1.0, 1.0, 1.0, 1.0))
        found = load(scrfd(planted("overlap", self.LARGE, again, faint)))(np.zeros((64, 64, 3), np.uint8))
        assert found[:, 4] == pytest.approx([0.9])

    def test_clip_scores(self, planted: Make) -> None:
        config = scrfd(planted("scored", self.LARGE, self.SMALL, (2, 0, 1, 0, 0.5, (0.3, 0.2, 0.3, 0.3))), side_px=64)
        found = score([jpeg(np.zeros((64, 64, 3), np.uint8))] * 2, load(config), config)
        assert found == {"face_count_max": 2.0, "people_score": pytest.approx(0.9)}

    def test_nothing_found(self, planted: Make) -> None:
        config = scrfd(planted("empty"))
        assert score([NONE], load(config), config) == NOTHING

    def test_any_size_of_picture(self, random_scrfd: Path) -> None:
        config = scrfd(random_scrfd)
        detector = load(config)
        found = score([ONE, TWO, NONE], detector, config)
        assert found["face_count_max"] >= 0 and 0 <= found["people_score"] <= 1
        assert found == score([NONE, TWO, ONE], load(config), config)
        boxes = detector(texture())
        assert len(boxes) and np.isfinite(boxes).all() and (boxes[:, 4] >= faces.FAINT).all()

    def test_counts_that_do_not_fit(self) -> None:
        outputs = [np.zeros((2 * n, w), np.float32) for w in (1, 4) for n in (64, 16, 4)]
        assert decode(outputs, (64, 64)).shape == (0, 5)
        with pytest.raises(ValueError, match="128 scores and 128 boxes for 12 x 8 places"):
            decode(outputs, (96, 64))


def test_check_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(FacesConfig())
    check(FacesConfig(enabled=False, weights=tmp_path / "none.onnx"))
    with pytest.raises(ConfigError, match=r"faces\.weights: no file .*none\.onnx"):
        check(FacesConfig(weights=tmp_path / "none.onnx"))
    with pytest.raises(ConfigError, match=r"faces\.weights: faces\.detector scrfd needs"):
        check(FacesConfig(detector="scrfd"))
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"faces\.detector: .*pip install onnxruntime"):
        check(FacesConfig(detector="scrfd", weights=SHIPPED))


def test_file_that_is_no_such_model_is_refused(tmp_path: Path, random_scrfd: Path) -> None:
    (tmp_path / "text.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    for config in (FacesConfig(weights=tmp_path / "text.onnx"), scrfd(tmp_path / "text.onnx"), scrfd(SHIPPED)):
        with pytest.raises(ConfigError, match=rf"faces\.weights: .* is no {config.detector} model"):
            Faces(config).open()
    with pytest.raises(ConfigError, match=r"faces\.weights: .* is no yunet model"):
        Faces(FacesConfig(weights=random_scrfd)).open()


def test_rules_over_faces_need_the_stage() -> None:
    people = SubsetConfig(name="people", clip_rules=("face_count_max >= 1", "people_score > 0.8"))
    on, off = resolve({}), resolve({"faces": {"enabled": False}})
    rules.check(people, unconfigured(on))
    with pytest.raises(ConfigError, match=r"face_count_max >= 1.*faces\.enabled"):
        rules.check(people, unconfigured(off))
    assert [s.name for s in stages(on)] == ["probe", "measure", "camera", "faces", "text"]
    assert [s.name for s in stages(off)] == ["probe", "measure", "camera", "text"]


def test_a_run_measures_images_and_keeps_those_with_faces(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, picture in (("face", frame((60, 40))), ("none", texture())):
        cv2.imwrite(str(tmp_path / "in" / f"{name}.png"), picture)
    wants_faces = {**SUBSET, "image_rules": ["face_count_max >= 1"]}
    pipeline.run(str(tmp_path / "in"), str(tmp_path / "run"), settings(subsets=[wants_faces]), parts=("analyze", "select"))
    clips = {r["clip_id"]: r for r in storage.read_table(str(tmp_path / "run" / "clips")).to_pylist()}
    assert {r["path"]: r["face_count_max"] for r in clips.values()} == {"face.png": 1.0, "none.png": 0.0}
    chosen = storage.read_table(str(tmp_path / "run" / "selection" / "tiny")).to_pylist()
    assert {clips[r["clip_id"]]["path"]: r["reason"].split(":")[0] for r in chosen} == {
        "face.png": "unselected",  # 270 pixels are too few for the smallest bucket of that shape
        "none.png": "rule",
    }


def test_settings_that_decide() -> None:
    def decided(**more: Any) -> Any:
        return resolve({"faces": more}).decides()["analyze"]

    assert decided(threads=2) == decided()
    assert decided(min_score=0.6) != decided()
