"""Decisions: kept as they were made, one verdict from them, exported whole, and never lost or changed."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation import review
from curation.errors import ConfigError
from curation.review import CONFLICT, KEPT, NOT_REVIEWED, REJECTED, ReviewConfig, Row
from curation.tables import REVIEWS
from jobs.review.store import KEPT_FOR_ONE, Decision, Refused, Store, export, served_alone, summary

ONE, TWO = ReviewConfig(), ReviewConfig(judgements=2)
SPAN = {"start_frame": 10, "end_frame": 310, "start_s": 0.4, "end_s": 12.4, "caption": "A lamp."}


def row(seq: int, who: str, action: str, clip_id: str = "c", **more: Any) -> Row:
    blank = dict.fromkeys(REVIEWS.names) | {"seq": seq, "judgement": f"{seq:012x}", "clip_id": clip_id, "settles": False}
    return blank | {"who": who, "action": action} | (SPAN if action == "accept" else {}) | more


def decision(number: int, who: str, action: str, clip_id: str = "c", **more: Any) -> Decision:
    return Decision(f"{number:012x}", clip_id, who, action, mended=SPAN if action == "accept" else {}, **more)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = Store(str(tmp_path / "run/review/x.sqlite"), "x", TWO)
    yield opened
    opened.close()


def add(store: Store, *decisions: Decision) -> None:
    for each in decisions:
        with store.transaction():
            store.add(each)


@pytest.mark.parametrize(
    ("rule", "history", "reason"),
    [
        (ONE, [], NOT_REVIEWED),
        (ONE, [row(1, "a", "skip")], NOT_REVIEWED),
        (ONE, [row(1, "a", "accept")], KEPT),
        (ONE, [row(1, "a", "accept"), row(2, "a", "undo", undoes=f"{1:012x}")], NOT_REVIEWED),
        (ONE, [row(1, "a", "reject"), row(2, "a", "accept")], KEPT),
        (ONE, [row(1, "a", "reject"), row(2, "a", "accept"), row(3, "a", "undo", undoes=f"{2:012x}")], REJECTED),
        (ONE, [row(1, "a", "accept"), row(2, "b", "reject")], CONFLICT),
        (TWO, [row(1, "a", "accept")], NOT_REVIEWED),
        (TWO, [row(1, "a", "accept"), row(2, "a", "accept")], NOT_REVIEWED),
        (TWO, [row(1, "a", "accept"), row(2, "b", "accept")], KEPT),
        (TWO, [row(1, "a", "reject"), row(2, "b", "reject")], REJECTED),
        (TWO, [row(1, "a", "accept"), row(2, "b", "accept", start_frame=250, end_frame=510)], CONFLICT),
        (TWO, [row(1, "a", "accept"), row(2, "b", "reject"), row(3, "c", "accept", settles=True)], KEPT),
        (TWO, [row(1, "a", "accept"), row(2, "b", "reject"), row(3, "b", "accept")], KEPT),
    ],
)
def test_one_verdict_follows_from_a_history(rule: ReviewConfig, history: list[Row], reason: str) -> None:
    found = review.verdict(history, rule)
    assert found.reason == reason
    assert (found.judgement is not None) == (reason == KEPT)


def test_the_last_of_two_who_agree_gives_span_and_caption() -> None:
    history = [row(1, "a", "accept"), row(2, "b", "accept", start_frame=20, caption="A lamp swings.")]
    kept = review.verdict(history, TWO).judgement
    assert kept is not None and (kept["start_frame"], kept["caption"]) == (20, "A lamp swings.")
    assert review.overlap(*history) == pytest.approx(290 / 300)


def test_history_is_only_added_to(store: Store) -> None:
    add(store, decision(1, "a", "accept"), decision(2, "a", "reject", "d", reason="shaky"))
    with store.transaction():
        assert store.undo("a", "f" * 12)["clip_id"] == "d"
        assert store.undo("a", "f" * 12)["clip_id"] == "d", "asked again after a lost answer, it undoes no more"
    assert [(r["action"], r["undoes"]) for r in store.history()] == [("accept", None), ("reject", None), ("undo", f"{2:012x}")]
    for statement in ("UPDATE history SET who = 'x'", "DELETE FROM history"):
        with pytest.raises(sqlite3.IntegrityError, match="history is never changed"):
            store.db.execute(statement)
    with store.transaction():
        store.undo("a", "e" * 12)
    with pytest.raises(Refused, match="nothing of yours"), store.transaction():
        store.undo("a", "d" * 12)


def test_a_decision_sent_twice_is_taken_once(store: Store) -> None:
    add(store, decision(1, "a", "accept"), decision(1, "a", "accept"))
    assert len(store.history()) == 1
    with pytest.raises(Refused, match="decide again"):
        add(store, decision(1, "a", "reject"))


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.add(decision(1, "a", "accept"))
        raise RuntimeError
    assert store.history() == []


def test_who_decides_on_a_conflict_settles_it(store: Store) -> None:
    add(store, decision(1, "a", "accept"), decision(2, "b", "reject", reason="dull"))
    assert store.verdict("c").reason == CONFLICT
    add(store, decision(3, "c", "reject", reason="dull"))
    assert store.verdict("c").reason == REJECTED and [r["settles"] for r in store.history()] == [False, False, True]
    add(store, decision(4, "c", "accept"))
    assert store.verdict("c").reason == KEPT, "who settled it may mend that, and it stays settled"
    add(store, decision(5, "b", "reject", reason="dull"))
    assert store.verdict("c").reason == REJECTED, "so may another"


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "dull"},
        {"concept": "rain"},
        *({"mended": {**SPAN, **more}} for more in ({"end_frame": 300}, {"camera": "tilt_up"}, {"shots": ["aerial"]})),
        {"mended": {**SPAN, "caption": "Another caption."}},
    ],
)
def test_what_was_changed_after_a_lost_answer_is_not_taken_for_saved(store: Store, change: dict[str, Any]) -> None:
    first = replace(decision(1, "a", "accept"), mended={**SPAN, "shots": ["close_up"]})
    add(store, first, first)
    later = replace(first, **change)
    with pytest.raises(Refused, match="decide again"):
        add(store, later)
    add(store, replace(later, judgement=f"{2:012x}"))
    assert [row["seq"] for row in store.history()] == [1, 2]


def test_what_was_undone_meanwhile_is_not_taken_for_saved(store: Store) -> None:
    add(store, decision(1, "a", "accept"))
    with store.transaction():
        store.undo("a", "f" * 12)
    with pytest.raises(Refused, match="decide again"):
        add(store, decision(1, "a", "accept"))


def test_a_clip_is_one_persons_until_the_lease_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("jobs.review.store.time.time", lambda: now)
    with store.transaction():
        assert store.lease("c", "a") is None and store.lease("c", "b") == "a" and store.lease("c", "a") is None
    now += KEPT_FOR_ONE + 1
    with store.transaction():
        assert store.lease("c", "b") is None and store.lease("c", "a") == "b"
    store.release("c", "a")
    with store.transaction():
        assert store.lease("c", "a") == "b", "nobody gives away what another has"
    add(store, decision(1, "b", "skip"))
    with store.transaction():
        assert store.lease("c", "a") is None, "a decision gives the clip free"


def test_the_export_is_the_history_and_the_same_bytes_each_time(store: Store, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    add(store, decision(1, "Zoë", "accept"), decision(2, "b", "reject", "d", reason="shaky"))
    assert export(run, store) == 2
    first = Path(review.place(run, "x")).read_bytes()
    assert review.read(run, "x") == store.history()
    assert review.read(run, "x")[0]["at"].utcoffset() is not None and review.read(run, "nobody") == []
    export(run, store)
    assert Path(review.place(run, "x")).read_bytes() == first


def test_another_subsets_store_is_refused_and_so_is_a_second_server(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reviews of 'x', not of 'y'"):
        Store(store.place, "y", ONE)
    with served_alone(store.place), pytest.raises(ConfigError, match="served by another process"), served_alone(store.place):
        pass


def test_agreement_is_counted_on_clips_judged_twice() -> None:
    pairs = [("accept", "accept")] * 4 + [("reject", "reject")] * 4 + [("accept", "reject")] * 2
    histories = [[row(2 * n, "a", a, f"c{n}"), row(2 * n + 1, "b", b, f"c{n}")] for n, (a, b) in enumerate(pairs)]
    found = summary([*histories, [row(99, "a", "accept", "once")]], TWO)
    assert (found["twice"], found["agreed"], found["overlap"]) == (10, 0.8, 1.0)
    assert found["pi"] == pytest.approx(0.6), "accepts and rejects are even: chance is a half"
    uneven = [("accept", "accept")] * 4 + [("accept", "reject")] * 4 + [("reject", "reject")] * 2
    histories = [[row(2 * n, "a", a, f"c{n}"), row(2 * n + 1, "b", b, f"c{n}")] for n, (a, b) in enumerate(uneven)]
    assert summary(histories, TWO)["pi"] == pytest.approx((0.6 - 0.52) / 0.48), "12 of 20 accept"
    assert found["reasons"] == {KEPT: 4, REJECTED: 4, CONFLICT: 2, NOT_REVIEWED: 1, review.TOO_SHORT: 0}
    assert found["conflicts"] == ["c8", "c9"]
    assert summary([], ONE)["agreed"] is None
