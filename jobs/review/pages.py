"""What is looked at: the queue, a clip, the list, the concepts, the people, and the films and frames in them."""

from typing import Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from jobs.pictures import middle_jpegs
from jobs.review.desk import Asked, Who, Wished, asset, query
from jobs.review.guard import TOKEN, Guard, keep
from jobs.review.wishes import Wish

ROWS = 40
"""Candidates on a page of the list."""
SHOWN = 4
"""Pictures of a concept."""
router = APIRouter()


@router.get("/")
def start(request: Request, desk: Asked, who: Who) -> Response:
    """Where a reviewer comes in: with the token, then with a name, then to work."""
    guard: Guard = request.app.state.guard
    if guard.entering(request):
        response = RedirectResponse("/", 303)
        keep(response, TOKEN, request.query_params["token"])
        return response
    return RedirectResponse("/next", 303) if who else HTMLResponse(desk.page("who", "", Wish(), {}))


@router.get("/next")
def following(desk: Asked, who: Who, wish: Wished, after: str | None = None) -> Response:
    """To the next clip that this person shall judge."""
    if not who:
        return RedirectResponse("/", 303)
    found = desk.candidates.next_for(who, wish, after)
    if found is None:
        return HTMLResponse(desk.page("done", who, wish, {"tally": desk.candidates.tally(wish)}))
    return RedirectResponse(f"/clip/{quote(found['clip_id'])}?{query(wish)}", 303)


@router.get("/peek")
def peek(desk: Asked, who: Who, wish: Wished, after: str | None = None) -> dict[str, str | None]:
    """Which clip is likely to be the next: its film can be cut meanwhile."""
    found = desk.candidates.peek(who, wish, after)
    return {"clip_id": found["clip_id"] if found else None}


@router.get("/clip/{clip_id}")
def clip(desk: Asked, who: Who, wish: Wished, clip_id: str) -> Response:
    """One clip, kept for the person who opens it."""
    if not who:
        return RedirectResponse("/", 303)
    row = desk.candidates.one(clip_id)
    if row is None:
        return HTMLResponse(desk.page("message", who, wish, {"message": f"{clip_id} is no candidate"}), 404)
    return HTMLResponse(desk.page("clip", who, wish, desk.facts(row, who, wish, desk.candidates.keep(clip_id, who))))


@router.get("/list")
def listed(desk: Asked, who: Who, wish: Wished, after: str | None = None) -> HTMLResponse:
    """Candidates in a table, a page at a time."""
    rows = desk.candidates.page(wish, ROWS + 1, after)
    more = rows[ROWS - 1]["clip_id"] if len(rows) > ROWS else None
    return HTMLResponse(desk.page("list", who, wish, {"rows": rows[:ROWS], "more": more, "tally": desk.candidates.tally(wish)}))


@router.get("/concepts")
def concepts(desk: Asked, who: Who) -> HTMLResponse:
    """How full each target concept is."""
    rows = []
    for row in desk.candidates.concepts():
        taken = desk.candidates.taken(row["concept"], SHOWN)
        rows.append(row | {"taken": taken, "shown": taken or desk.candidates.nearest(row["concept"], SHOWN)})
    return HTMLResponse(desk.page("concepts", who, Wish(), {"rows": rows}))


@router.get("/people")
def people(desk: Asked, who: Who) -> HTMLResponse:
    """Who decided how much, and how far people agree."""
    return HTMLResponse(desk.page("people", who, Wish(), desk.candidates.people() | {"rule": desk.candidates.store.rule}))


@router.get("/film/{clip_id}.mp4")
def film(desk: Asked, clip_id: str) -> Response:
    """A clip's preview; browsers ask for the parts that they need."""
    row = desk.candidates.one(clip_id)
    if row is None or row["kind"] != "video":
        return Response(status_code=404)
    path = desk.previews.film(row, desk.times(row).tolist())
    return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/frame/{clip_id}.jpg")
def frame(desk: Asked, clip_id: str) -> Response:
    """A clip's middle kept frame."""
    row = desk.candidates.one(clip_id)
    found = middle_jpegs(desk.run, row["unit"], [clip_id]) if row is not None else {}
    if clip_id not in found:
        return Response(status_code=404)
    return Response(found[clip_id], media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/favicon.ico")
def icon() -> Response:
    """There is none."""
    return Response(status_code=204)


@router.get("/static/{name}")
def static(name: Literal["style.css", "review.css", "review.js"]) -> Response:
    """The style sheets and the script."""
    kind = "text/javascript" if name.endswith(".js") else "text/css"
    return Response(asset(name), media_type=kind, headers={"Cache-Control": "no-cache"})
