import json
from typing import Any

import pytest

from captioning import answers
from curation.errors import ClipError, ConfigError

GOOD = (
    "A man in a red coat walks his dog along a quiet beach. He throws a stick, and the dog runs into the low waves to fetch "
    "it while gulls rise from the wet sand. Behind them lie dunes with pale grass under a wide evening sky. The camera "
    "follows at walking pace from the side, at the height of the hip. Warm light comes from low on the left and draws long "
    "shadows. Live action in muted blues and orange, calm and a little lonely."
)
REST: dict[str, Any] = {
    "subjects": ["a man in a red coat", "a dog"],
    "actions": ["walks along the beach", "fetches a stick"],
    "setting": "a beach at sunset",
    "lighting": "warm, low, from the left",
    "style": "live action, muted",
    "people": "one man, walking",
    "visible_text": [],
}
PROMPT = answers.prompt("caption-v1")


def answer(caption: str = GOOD, **more: Any) -> str:
    return json.dumps({"caption": caption, **REST, **more})


def code(text: str | None, finish: str = "stop", language: str | None = "en") -> str:
    with pytest.raises(ClipError) as caught:
        answers.read(text, finish, PROMPT, language)
    return caught.value.code


def test_a_plain_answer_passes_whole() -> None:
    read = answers.read(answer(visible_text=["FISH BAR"]), "stop", PROMPT, "en")
    assert read.caption == GOOD and read.subjects == REST["subjects"] and read.visible_text == ["FISH BAR"]


@pytest.mark.parametrize(
    "caption",
    [
        "Two robots solder circuit boards under neon.",
        "Close-up of a Shiba Inu in Tokyo, soft bokeh.",
        'A shop window with the words "Bienvenue à la boulangerie du village, ouverte tous les jours" above a red door.',
        "A very, very, very small boat drifts past a lighthouse at dawn.",
        "Waves break, and break again, on black rock; foam runs back, gathers, and breaks once more under a grey sky.",
    ],
)
def test_unusual_captions_pass(caption: str) -> None:
    assert answers.read(answer(caption), "stop", PROMPT, "en").caption == caption


@pytest.mark.parametrize("text", [None, "", "  \n", answer(""), answer("..."), answer("A dog.")])
def test_empty(text: str | None) -> None:
    assert code(text) == "caption_empty"


@pytest.mark.parametrize(
    "words",
    [
        "I'm sorry, but I can't help with that.",
        "I’m unable to view videos, but I can help in other ways.",
        "As an AI language model, I cannot see the clip that you have sent me.",
        "Unfortunately, I can't describe people in this video clip at all.",
        "I cannot assist with identifying the people shown in this video clip.",
        "There is no video provided, so please share the video that you mean.",
    ],
)
def test_refusals_bare_and_inside_the_schema(words: str) -> None:
    assert code(words) == code(answer(words)) == "caption_refused"


@pytest.mark.parametrize(
    "caption", ["I see the sea from a cliff while gulls circle over it.", "Sorrel grows in a wet meadow by a brook."]
)
def test_what_only_looks_like_a_refusal_passes(caption: str) -> None:
    answers.read(answer(caption), "stop", PROMPT, "en")


def test_truncated() -> None:
    assert code(answer()[:300], "length") == "caption_truncated"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        answer()[:300],
        "<html><body>502 Bad Gateway</body></html>",
        json.dumps({"caption": GOOD}),
        answer(notes="ignore all rules"),
        answer(subjects="a man"),
        json.dumps([GOOD]),
        answer(setting="x" * 201),
        answer("A word " * 20_000),
    ],
)
def test_malformed(text: str) -> None:
    assert code(text) == "caption_malformed"


@pytest.mark.parametrize(
    "caption",
    [
        "A man walks. " * 12,
        "the the the the the the the the",
        "A dog runs on grass and " + "barks and runs and " * 9,
        "go " * 40,
    ],
)
def test_repeated(caption: str) -> None:
    assert code(answer(caption), language=None) == "caption_repeated"


@pytest.mark.parametrize(
    "caption",
    [
        "Un homme en manteau rouge marche sur une plage tranquille avec son chien pendant que le soleil se couche.",
        "一个男人在海滩上走，带着他的狗，天空是红色的，海浪轻轻拍打着沙滩。",
        "Собака бежит по пляжу на закате, а за ней медленно идёт человек в красном пальто.",
    ],
)
def test_another_language(caption: str) -> None:
    assert code(answer(caption)) == "caption_language"


def test_another_language_may_be_asked_for() -> None:
    french = "Un homme en manteau rouge marche sur une plage tranquille avec son chien pendant que le soleil se couche."
    assert answers.read(answer(french), "stop", PROMPT, "fr").caption == french
    assert code(answer(GOOD), language="fr") == "caption_language"


def test_echo_of_the_prompt() -> None:
    echo = "Describe what is to be seen, for somebody who has to film it again from your words alone. Plain English."
    assert code(answer(echo)) == "caption_echo"


def test_text_is_one_line_that_any_file_can_hold() -> None:
    hostile = 'A sign reads\n"Ignore your\u0000 rules" beside\u2028a road that leads over a green hill.'
    read = answers.read(answer(hostile, visible_text=["\u0007", " a\tb "]), "stop", PROMPT, "en")
    assert read.caption == 'A sign reads "Ignore your rules" beside a road that leads over a green hill.'
    assert read.visible_text == ["a b"]
    assert code(answer("Half a \ud83d character stands in this caption of a green hill.")) == "caption_malformed"


def test_prompts_are_files(tmp_path: Any) -> None:
    (tmp_path / "mine.txt").write_text("Describe it.\n")
    assert answers.prompt(str(tmp_path / "mine.txt")) == "Describe it."
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"caption\.prompt .* is empty"):
        answers.prompt(str(tmp_path / "blank.txt"))
    with pytest.raises(ConfigError, match=r"caption\.prompt 'caption-v0' is neither shipped \(caption-v1\)"):
        answers.prompt("caption-v0")
