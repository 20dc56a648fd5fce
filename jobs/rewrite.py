"""Prompts of people, rewritten as captions like those of training, by a language model behind an OpenAI-compatible server.

The paper's way (Movie Gen, section 3.4.1): what people write is short, captions are about 100 words in a fixed order, in plain
words, with little said of motion. The instructions are a versioned file, shipped or one's own.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from captioning import answers
from curation.errors import ConfigError
from training_bridge.dit.quotes import quoted

if TYPE_CHECKING:
    import openai


class RewriteConfig(BaseModel):
    """Who rewrites prompts, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """The server, as `http://host:port/v1`."""
    model: str
    """The name that the model is served under."""
    prompt: str = "rewrite-v1"
    """Shipped instructions by name, or a text file."""
    key_env: str = "REELSET_REWRITE_KEY"
    """Name of the environment variable that holds the server's API key. The key itself stands nowhere."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0: the same caption each time, as far as the server can."""
    second_temperature: float = Field(0.7, ge=0, le=2)
    """Of the second and last try, where an answer was no good."""
    max_tokens: PositiveInt = 400
    timeout_s: PositiveFloat = 120.0
    retries: int = Field(3, ge=0)
    """Of a request that the server did not answer."""
    at_once: PositiveInt = 16


@dataclass(frozen=True)
class Rewritten:
    """A prompt and the caption it became; or why there is none."""

    prompt: str
    caption: str | None
    fault: str | None = None


def rewrite(prompts: Sequence[str], config: RewriteConfig) -> list[Rewritten]:
    """The prompts' captions, in their order.

    A prompt whose two answers are no captions has none, and its fault is said. Raises ConfigError where the server does not
    answer, or does not know the model or the key.
    """
    try:
        import openai
    except ImportError as error:
        raise ConfigError("rewriting prompts needs the package openai: pip install 'reelset[caption]'") from error
    instructions = answers.prompt(config.prompt, "rewrite.prompt", "jobs")
    key = os.environ.get(config.key_env) or "none"
    try:
        with (
            openai.OpenAI(base_url=config.url, api_key=key, timeout=config.timeout_s, max_retries=config.retries) as api,
            ThreadPoolExecutor(config.at_once) as pool,
        ):
            return list(pool.map(lambda prompt: _one(api, instructions, prompt, config), prompts))
    except openai.APIStatusError as error:
        raise ConfigError(f"rewrite: {config.url} refuses model {config.model!r}: {error}") from error
    except openai.APIConnectionError as error:
        raise ConfigError(f"rewrite.url: no answer from {config.url}: {error}") from error


def _one(api: "openai.OpenAI", instructions: str, prompt: str, config: RewriteConfig) -> Rewritten:
    fault: str | None = None
    for temperature in (config.temperature, config.second_temperature):
        reply = api.chat.completions.create(
            model=config.model,
            messages=[{"role": "system", "content": instructions}, {"role": "user", "content": prompt}],
            temperature=temperature,
            max_tokens=config.max_tokens,
        )
        choice = reply.choices[0]
        caption = " ".join((choice.message.content or "").split()).removeprefix("Caption: ")
        fault = _fault(prompt, caption, choice.finish_reason)
        if fault is None:
            return Rewritten(prompt, caption)
    return Rewritten(prompt, None, fault)


def _fault(prompt: str, caption: str, finish: str) -> str | None:
    """What is wrong with a caption, if anything."""
    if finish == "length":
        return f"cut off after {len(caption)} characters"
    if answers.REFUSAL.match(caption):
        return f"a refusal: {caption[:80]}"
    if len(caption.split()) < answers.LEAST_WORDS:
        return f"hardly a word: {caption!r}"
    if lost := [words for words in quoted(prompt).splitlines() if words not in quoted(caption).splitlines()]:
        return f"the words {', '.join(map(repr, lost))} that shall be in the picture are lost"
    return None
