"""What the pages and the decisions share: the candidates, who asks, which of them is wished for, and what is shown of one."""

import re
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import Annotated
from urllib.parse import unquote, urlencode

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import Depends, Request
from numpy.typing import NDArray

from bucketing import buckets
from captioning.answers import FIELDS
from captioning.camera import CLASSES
from curation import review, storage
from curation.errors import ConfigError
from curation.review import SHOTS, Row
from curation.tables import CLIP_SCORES
from jobs.report import render
from jobs.review.candidates import Candidates
from jobs.review.guard import WHO
from jobs.review.preview import Previews
from jobs.review.store import Refused
from jobs.review.wishes import SORTS, VERDICTS, Wish

REASONS = ("dull motion", "shaky", "cluttered", "light or colour", "text or overlay", "edit effect", "wrong concept", "other")
"""Why people reject, the keys 1 to 8: what Movie Gen's annotators look for."""
NAME = re.compile(r"\w[\w .'@-]{0,39}")


@dataclass(frozen=True)
class Desk:
    """All that a request needs. One stands in the application's state."""

    run: str
    candidates: Candidates
    previews: Previews
    bucket_class: int
    _times: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def times(self, clip: Row) -> NDArray[np.float64]:
        """The times of a clip's frames in its source."""
        if (times := self._times.get(clip["clip_id"])) is None:  # another thread may empty it meanwhile
            with storage.open_read(storage.join(self.run, "series", f"{clip['unit']}.parquet")) as file:
                wanted = pc.field("source_id") == clip["source_id"]
                whole = pq.read_table(file, columns=["time_s"], filters=wanted)["time_s"].to_pylist()[0]
            if len(self._times) > 256:
                self._times.clear()
            times = np.asarray(whole[clip["start_frame"] : clip["end_frame"]], np.float64)
            self._times[clip["clip_id"]] = times
        return times

    def span(self, clip: Row, start: int, end: int) -> Row:
        """A part of a clip by frames, with its times. Raises Refused outside the clip."""
        first, last = clip["start_frame"], clip["end_frame"]
        if not first <= start < end <= last:
            raise Refused(f"frames {start} to {end} are not within the clip's {first} to {last}")
        times = self.times(clip)
        end_s = clip["end_s"] if end == last else float(times[end - first])
        return {"start_frame": start, "end_frame": end, "start_s": float(times[start - first]), "end_s": end_s}

    def choice(self, clip: Row, span: Row) -> buckets.Choice:
        """The sample that a span of a clip makes."""
        return buckets.choose(review.mend(clip, span | {"judgement": ""}), self.bucket_class, fixed=True)

    def facts(self, clip: Row, who: str, wish: Wish, held: str | None) -> Row:
        """What the page of one clip shows."""
        standing = self.candidates.store.verdict(clip["clip_id"]).standing
        own = next((row for row in standing if row["who"] == who), None)
        open_to_see = own is not None or clip["verdict"] != "not_reviewed"  # before, each judges for themselves
        seen = standing if open_to_see else []
        last = own or next((row for row in reversed(seen) if row["action"] == "accept"), None)
        draft = {"caption": clip["caption"], "camera": clip["camera"], "shots": [], **clip["fields"]}
        if last is not None and last["action"] == "accept":
            draft = {name: last[name] for name in ("start_frame", "end_frame", "caption", "camera", "shots", *FIELDS)}
        targets = self.candidates.targets()
        likely = (last["concept"] if last is not None else None, wish.concept, clip["concept"])
        concept = next((name for name in likely if name in targets), None)
        offered = {name: full for name, full in sorted(targets.items()) if not full or name == concept}
        film = self._film(clip, draft) if clip["kind"] == "video" else None
        shown: Row = {"clip": clip, "held": held, "film": film, "draft": draft, "standing": seen}
        shown |= {"concept": concept, "concepts": offered}
        shown |= {"scores": {name: clip[name] for name in CLIP_SCORES if clip[name] is not None}, "fields": FIELDS}
        return shown | {"cameras": CLASSES, "shots": SHOTS, "reasons": REASONS, "mine": self.candidates.store.last(who)}

    def _film(self, clip: Row, draft: Row) -> Row:
        """What the timeline knows: the frames' times from the clip's start, the span, and what makes a sample."""
        times = self.times(clip)
        span = {"from": draft.get("start_frame", clip["start_frame"]), "until": draft.get("end_frame", clip["end_frame"])}
        length = {"times": [round(t, 4) for t in (times - times[0]).tolist()], "length": clip["end_s"] - float(times[0])}
        return span | length | {"start": clip["start_frame"], "frames": buckets.FIXED_FRAMES, "rates": list(buckets.FIXED_FPS)}

    def page(self, name: str, who: str, wish: Wish, facts: Row) -> str:
        """A page of ours."""
        common: Row = {"who": who, "subset": self.candidates.store.subset, "wish": wish, "query": query(wish), "page": name}
        offered: Row = {"sorts": SORTS, "verdicts": VERDICTS}
        return render(common | offered | facts, f"review/{name}.html.j2")


def desk(request: Request) -> Desk:
    """The application's desk."""
    found: Desk = request.app.state.desk
    return found


def who(request: Request) -> str:
    """The name of the person who asks; empty where they have not said it."""
    name = unquote(request.cookies.get(WHO, ""))
    return name if NAME.fullmatch(name) else ""


def someone(name: Annotated[str, Depends(who)]) -> str:
    """The name of the person who decides. Raises Refused without one."""
    if not name:
        raise Refused("say who you are first: reload the page")
    return name


def wish(
    desk: Annotated[Desk, Depends(desk)],
    verdict: str = "not_reviewed",
    words: str = "",
    rule: str = "",
    concept: str = "",
    sort: str = "",
    like: str = "",
    about: str = "",
) -> Wish:
    """What an address asks for. Raises ConfigError where it asks for what there is not."""
    if verdict not in (*VERDICTS, "all"):
        raise ConfigError(f"no verdict {verdict!r}; there are {', '.join(VERDICTS)} and all")
    if like.strip() or about.strip():
        concept, sort = desk.candidates.find(about.strip() or None, like.strip() or None), ""
    made = Wish(None if verdict == "all" else verdict, words, rule, concept, sort or ("-similarity" if concept else "draw"))
    return made if made.column else Wish()


def query(wish: Wish) -> str:
    """A wish as it stands in an address."""
    usual = asdict(replace(Wish(), sort="-similarity" if wish.concept else "draw"))
    given = {name: value for name, value in asdict(wish).items() if value != usual[name]}
    return urlencode(given | ({"verdict": "all"} if wish.verdict is None else {}))


@lru_cache
def asset(name: str) -> str:
    """A file that pages load. The style sheet is the reports' own."""
    if name == "style.css":
        return render({}, "style.html.j2").replace("<style>", "").replace("</style>", "")
    return (files("jobs") / "templates" / "review" / name).read_text(encoding="utf-8")


Asked = Annotated[Desk, Depends(desk)]
Who = Annotated[str, Depends(who)]
Someone = Annotated[str, Depends(someone)]
Wished = Annotated[Wish, Depends(wish)]
