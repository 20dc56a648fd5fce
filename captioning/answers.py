"""What a captioner must answer, and the ways in which an answer is none."""

import re
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import ClipError, ConfigError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

Phrase = Annotated[str, Field(max_length=200)]
Phrases = Annotated[list[Phrase], Field(max_length=12)]


class Answer(BaseModel):
    """A structured caption. Lengths are bounds, so that a model that does not stop is made to by the schema."""

    model_config = ConfigDict(extra="forbid")

    caption: Annotated[str, Field(max_length=2000)]
    subjects: Phrases
    actions: Phrases
    setting: Phrase
    lighting: Phrase
    style: Phrase
    people: Phrase
    visible_text: Phrases


FIELDS = tuple(name for name in Answer.model_fields if name != "caption")
MOST_CHARS = 32_000
"""A longer answer is no answer to this question: a caption has some 700."""
ENOUGH_CHARS = 300
"""So much of a text tells its language."""
LEAST_WORDS = 5
"""Fewer words are no description."""
SAME_WORDS = 4
"""So many equal words in a row are a model that is stuck."""
OWN_RUNS = 0.6
"""Least share of distinct runs of three words. Plain descriptions have more than nine in ten."""
ECHO_RUN = 8
"""A run of so many words of the prompt is taken from it, not from the clip ..."""
ECHO_FRAC = 0.25
"""... and an answer is an echo where this share of its runs is."""
FOREIGN = 0.002
"""Below this probability of the language asked for, a text is in another one. English full of foreign names has 0.01."""

REFUSAL = re.compile(
    r"^\W*(i(?:['’]?m| am) (?:sorry|unable|not able|afraid)|sorry\b|i apologi[sz]e|(?:as|being) an ai\b|unfortunately,? i\b|"
    r"i (?:can(?:no|['’])t|could(?: not|n['’]t)|do(?: not|n['’]t) have|won['’]t|must decline)\b|"
    r"(?:no|there is no) (?:video|image|clip|picture) (?:was|is|has been|provided|attached|available))",
    re.IGNORECASE,
)
"""How a refusal, or a model that was shown nothing, begins."""

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def schema() -> dict[str, Any]:
    """The JSON schema of an answer."""
    return Answer.model_json_schema()


@cache
def prompt(name: str, setting: str = "caption.prompt", room: str = "captioning") -> str:
    """The text of a prompt that a room ships, by name, or of a file. Raises ConfigError where there is none."""
    shipped = files(room) / "prompts"
    names = sorted(p.name.removesuffix(".txt") for p in shipped.iterdir())
    try:
        place = shipped / f"{name}.txt" if name in names else Path(name)
        text = place.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} {name!r} is neither shipped ({', '.join(names)}) nor a text file: {error}") from error
    if not text:
        raise ConfigError(f"{setting} {name!r} is empty")
    return text


def read(text: str | None, finish: str | None, asked: str, language: str | None) -> Answer:
    """The answer in a model's words. `finish` is why it stopped; `asked` is the prompt; `language` what it must speak.

    Raises ClipError with the code of what is wrong with it.
    """
    text = text or ""
    if not text.strip():
        raise ClipError("caption_empty", "no text")
    if len(text) > MOST_CHARS:
        raise ClipError("caption_malformed", f"{len(text)} characters")
    if finish == "length":
        raise ClipError("caption_truncated", f"cut off after {len(text)} characters")
    if REFUSAL.match(text):
        raise ClipError("caption_refused", _start(text))
    try:
        answer = Answer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ClipError("caption_malformed", f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}") from error
    answer = Answer(**{name: _plain(value) for name, value in answer})
    _check(answer.caption, asked, language)
    return answer


def _check(caption: str, asked: str, language: str | None) -> None:
    words = WORD.findall(caption.lower())
    if REFUSAL.match(caption):
        raise ClipError("caption_refused", _start(caption))
    if language is not None and _other_language(caption, language):
        raise ClipError("caption_language", f"not {language!r}: {_start(caption)}")
    if len(words) < LEAST_WORDS:
        raise ClipError("caption_empty", f"{len(words)} words: {_start(caption)}")
    stuck = any(len(set(run)) == 1 for run in _runs(words, SAME_WORDS))
    runs = _runs(words, 3)
    if stuck or len(set(runs)) < OWN_RUNS * len(runs):
        word, times = Counter(words).most_common(1)[0]
        raise ClipError("caption_repeated", f"{len(words)} words, {times} times {word!r}: {_start(caption)}")
    own = _runs(words, ECHO_RUN)
    if own and len(_prompt_runs(asked).intersection(own)) > ECHO_FRAC * len(own):
        raise ClipError("caption_echo", f"repeats the prompt: {_start(caption)}")


def _runs(words: list[str], length: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(length)), strict=False))


@cache
def _prompt_runs(asked: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_runs(WORD.findall(asked.lower()), ECHO_RUN))


def _other_language(text: str, language: str) -> bool:
    """True where the text is hardly in this language; what it quotes of the picture does not count."""
    own = re.sub(r"[\"“”«»„].*?[\"“”«»„]", " ", text)[:ENOUGH_CHARS]
    return any(float(likely) < FOREIGN for name, likely in _languages().rank(own) if name == language)


@cache
def _languages() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages() -> list[str]:
    """Codes that `caption.language` may have (ISO 639-1)."""
    return sorted(_languages().labels)


def _plain(value: Any) -> Any:
    """Text in one line, without control characters."""
    if isinstance(value, list):
        return [plain for item in value if (plain := _plain(item))]
    if not value.isprintable():
        value = "".join(c if c.isprintable() else " " for c in value)
    return " ".join(value.split())


def _start(text: str) -> str:
    return repr(text[:80])
