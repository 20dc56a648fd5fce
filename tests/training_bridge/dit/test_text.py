"""Text: what each encoder sees, tokens without padding, and the empty caption in place of a dropped one."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from curation import open_clip_model
from training_bridge.dit import text
from training_bridge.dit.quotes import quoted
from training_bridge.dit.text import EncoderConfig, TextTokens, byte_ids, load, padded

BYTES = EncoderConfig(name="letters", kind="bytes", width=32, limit=24)
CAPTIONS = ["A dog runs.", "", 'A long walk past a sign that says "FRESH FISH" in red, and on.']


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """A torchvision of another torch is mended before transformers or open_clip import it."""
    if find_spec("open_clip") is not None:
        open_clip_model.import_package("text")


needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
needs_open_clip = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")


@pytest.mark.parametrize(
    ("caption", "seen"),
    [
        ('A sign reads "OPEN" and a second one "SHUT".', "OPEN\nSHUT"),
        ("Letters spell “Zoë’s café” over «sortie».", "Zoë’s café\nsortie"),
        ("The dogs' bowls say 'Rex' and it's late.", "Rex"),
        ("It's the dogs' day.", ""),
        ("Nothing is written.", ""),
    ],
)
def test_only_what_is_quoted_is_visual_text(caption: str, seen: str) -> None:
    assert quoted(caption) == seen


def tiny_t5(folder: Path, seed: int = 0) -> str:
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    model = T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    model.save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


@needs_transformers
def test_t5_gives_each_captions_own_tokens(tmp_path: Path) -> None:
    config = EncoderConfig(name="ul2", kind="t5", path=tiny_t5(tmp_path / "a"), width=32, limit=20, dtype="float32")
    encoder = load(config)
    together = encoder.encode_text(CAPTIONS)
    assert [len(array) for array in together] == [len(CAPTIONS[0]) + 1, 1, 20]
    for caption, array in zip(CAPTIONS, together, strict=True):
        np.testing.assert_allclose(encoder.encode_text([caption])[0], array, atol=2e-3)
    assert load(config).fingerprint == encoder.fingerprint
    other = EncoderConfig(name="ul2", kind="t5", path=tiny_t5(tmp_path / "b", seed=1), width=32, limit=20, dtype="float32")
    assert load(other).fingerprint != encoder.fingerprint


@needs_transformers
def test_byt5_sees_only_letters_to_be_drawn(tmp_path: Path) -> None:
    path = tiny_t5(tmp_path)
    encoder = load(EncoderConfig(name="byt5", kind="t5", path=path, width=32, limit=50, sees="quoted", dtype="float32"))
    plain, letters = encoder.encode_text(["A dog.", 'A dog beside a "CAT".'])
    np.testing.assert_array_equal(plain, encoder.encode_text([""])[0])
    assert len(letters) == len("CAT") + 1


@needs_transformers
def test_another_width_than_configured_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ul2' gives tokens 32 wide, its config says 4096"):
        load(EncoderConfig(name="ul2", kind="t5", path=tiny_t5(tmp_path), width=4096, limit=20))


def tiny_clip(folder: Path) -> str:
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    folder.mkdir()
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


@needs_open_clip
def test_clip_gives_tokens_up_to_the_end_of_the_text(tmp_path: Path) -> None:
    config = EncoderConfig(name="clip", kind="open_clip", path=tiny_clip(tmp_path / "c"), width=24, limit=48, dtype="float32")
    encoder = load(config)
    short, empty, long = encoder.encode_text(["a dog runs", "", "a dog " * 100])
    assert (len(short), len(empty), len(long)) == (5, 2, 48)  # with a start and an end
    np.testing.assert_allclose(short[:3], encoder.encode_text(["a dog sleeps"])[0][:3], atol=2e-3)  # causal
    with pytest.raises(ValueError, match="takes 48 tokens, its limit says 256"):
        load(EncoderConfig(name="clip", kind="open_clip", path=config.path, width=24, limit=256))


def test_a_dropped_text_is_the_empty_caption_of_every_encoder() -> None:
    torch.manual_seed(0)
    frozen = EncoderConfig(name="frozen", kind="t5", path="somewhere", width=8, limit=40)
    model = TextTokens([frozen, BYTES], 64)
    rows = {"frozen": [torch.randn(n, 8) for n in (3, 20, 9)], "letters": [byte_ids(c, 24) for c in CAPTIONS]}
    null = {"frozen": torch.randn(2, 8), "letters": byte_ids("", 24)}
    tokens, mask = model(*padded(rows, [False, False, True], null))
    assert tokens.shape == (3, 32 + 16, 64)
    assert mask.sum(1).tolist() == [3 + 12, 20 + 1, 2 + 1]
    alone, own = model(*padded({name: [row] for name, row in null.items()}, [False], null))
    torch.testing.assert_close(tokens[2][mask[2]], alone[0][own[0]])


def test_padding_does_not_reach_other_tokens() -> None:
    torch.manual_seed(0)
    model = TextTokens([BYTES], 64)
    null = {"letters": byte_ids("", 24)}
    tokens, mask = model(*padded({"letters": [byte_ids(c, 24) for c in CAPTIONS]}, [False] * 3, null))
    for i, caption in enumerate(CAPTIONS):
        alone, own = model(*padded({"letters": [byte_ids(caption, 24)]}, [False], null))
        torch.testing.assert_close(tokens[i][mask[i]], alone[0][own[0]])


def test_bad_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a path"):
        EncoderConfig(name="ul2", kind="t5", width=8, limit=8)
    with pytest.raises(ValueError, match="each its own"):
        TextTokens([BYTES, BYTES], 8)


def test_a_caption_has_one_end() -> None:
    assert byte_ids("é" * 30, 24).tolist()[-1] == text.END and len(byte_ids("é" * 30, 24)) == 24
    assert byte_ids("", 24).tolist() == [text.END]
