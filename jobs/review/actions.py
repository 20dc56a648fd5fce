"""What is decided: accept, reject, skip and undo, who has a clip open, and how a concept's queue grows."""

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from captioning.answers import Phrase, Phrases
from captioning.camera import CLASSES
from curation.review import SHOTS, Row
from jobs.review.desk import NAME, Asked, Desk, Someone
from jobs.review.guard import WHO, keep
from jobs.review.store import KEPT_FOR_ONE, Decision, Refused

router = APIRouter()
Answer = dict[str, Any]


class Spoken(BaseModel):
    """What a page sends."""

    model_config = ConfigDict(extra="forbid")


class Person(Spoken):
    name: Annotated[str, Field(max_length=200)]


class Named(Spoken):
    """A decision's name, made by the page: sent twice, it is taken once."""

    judgement: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class Mended(Spoken):
    """Of a clip that is accepted: its best span, and what is told of it."""

    start_frame: Annotated[int, Field(ge=0)] | None = None
    end_frame: Annotated[int, Field(ge=0)] | None = None
    camera: Literal[CLASSES] | None = None  # type: ignore[valid-type]
    shots: Annotated[list[Literal[SHOTS]], Field(max_length=len(SHOTS))] = []  # type: ignore[valid-type]
    caption: Annotated[str, Field(max_length=2000)]
    subjects: Phrases = []
    actions: Phrases = []
    setting: Phrase = ""
    lighting: Phrase = ""
    style: Phrase = ""
    people: Phrase = ""
    visible_text: Phrases = []


class Judged(Named):
    clip_id: str
    action: Literal["accept", "reject", "skip"]
    reason: Annotated[str, Field(max_length=200)] = ""
    concept: Annotated[str, Field(max_length=200)] = ""
    mended: Mended | None = None


class Opened(Spoken):
    clip_id: str


class Grown(Spoken):
    concept: str


@router.post("/who")
def name(person: Person) -> Response:
    """Say who one is; a cookie remembers it."""
    given = " ".join(person.name.split())
    if not NAME.fullmatch(given):
        raise Refused("a name is up to 40 letters, digits, spaces and . ' @ - _")
    response = JSONResponse({"next": "/next"})
    keep(response, WHO, quote(given))
    return response


@router.post("/decide")
def decide(request: Request, desk: Asked, who: Someone, judged: Judged) -> Answer:
    """Take a decision."""
    row = desk.candidates.one(judged.clip_id)
    if row is None:
        raise Refused(f"{judged.clip_id} is no candidate any more")
    if judged.action == "reject" and not judged.reason.strip():
        raise Refused("a rejection has a reason")
    mended = _checked(desk, row, judged.mended) if judged.action == "accept" else {}
    reason = judged.reason.strip() if judged.action == "reject" else None
    concept = (judged.concept if desk.candidates.is_target(judged.concept) else row["concept"]) or None
    found = desk.candidates.decide(Decision(judged.judgement, row["clip_id"], who, judged.action, reason, concept, mended))
    request.app.state.decided()
    return {"verdict": found.reason.removeprefix("unselected:")}


def _checked(desk: Desk, clip: Row, mended: Mended | None) -> Row:
    """What an accepted clip has. Raises Refused where no sample can be made of it."""
    if mended is None or not mended.caption.strip():
        raise Refused("an accepted clip has a caption")
    told = mended.model_dump(exclude={"start_frame", "end_frame"}) | {"caption": " ".join(mended.caption.split())}
    if clip["kind"] == "image":
        return told
    if mended.start_frame is None or mended.end_frame is None:
        raise Refused("an accepted clip has a span")
    span = desk.span(clip, mended.start_frame, mended.end_frame)
    choice = desk.choice(clip, span)
    if choice.bucket is None:
        raise Refused(f"no sample can be made of this span: {choice.why}")
    return told | span


@router.post("/undo")
def undo(request: Request, desk: Asked, who: Someone, named: Named) -> Answer:
    """Take back one's last decision."""
    last = desk.candidates.undo(who, named.judgement)
    request.app.state.decided()
    return {"clip_id": last["clip_id"], "action": last["action"]}


@router.post("/keep")
def kept(desk: Asked, who: Someone, opened: Opened) -> Answer:
    """Keep a clip that is still open."""
    return {"held": desk.candidates.keep(opened.clip_id, who), "again_s": KEPT_FOR_ONE / 3}


@router.post("/leave")
def leave(desk: Asked, who: Someone, opened: Opened) -> Answer:
    """Give a clip free."""
    desk.candidates.store.release(opened.clip_id, who)
    return {}


@router.post("/grow")
def grow(desk: Asked, who: Someone, grown: Grown) -> Answer:
    """Add the nearest candidates to a concept's queue."""
    return {"added": desk.candidates.grow(grown.concept)}
