"""The frozen T5 caption encoder. The only file that imports transformers.

Axes: B batch, n tokens, D width of the encoder.
Source: upstream's FrozenT5Embedder: captions are cut and padded to a fixed number of tokens, and
only their token ids reach the encoder. Padding is attended to like any other token, because the
released weights were trained that way: an attention mask would change every embedding.

Nothing is downloaded: every file comes from a local folder.
"""

from __future__ import annotations

import io
import json
import logging
import string
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from app.config.schema.encoders import T5Config
from app.errors import InputMissingError, WeightsError
from app.storage.safetensors_header import HEADER_LENGTH_BYTES, apparent_kind

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")  # one of them
WEIGHT_FILES = (  # one of them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SPECIAL_IDS = (0, 1, 2)  # padding, end of text, unknown, in every T5
SPARE_ROWS = 512  # T5 v1.1 has 32128 rows for 32100 tokens, 100 of which are sentinels
MAX_LISTED = 5  # keys that an error message lists


class T5TextEncoder:
    """Captions to (B, max_length, D). Frozen, in eval mode.

    `truncated` counts the captions seen so far that had more than max_length tokens.
    """

    def __init__(self, tokenizer: Any, model: torch.nn.Module, max_length: int) -> None:
        """Take a tokenizer and a T5 encoder of transformers; use `load` to read a folder."""
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.max_length = max_length
        self.truncated = 0

    @classmethod
    def load(
        cls,
        folder: Path,
        config: T5Config,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> T5TextEncoder:
        """Read tokenizer and encoder, straight into `dtype`.

        Args:
            folder: has tokenizer and encoder side by side, or in subfolders `tokenizer` and
                `text_encoder`, as a diffusers pipeline does.
            config: only `max_length` is used.
            dtype: of the weights in memory; no fp32 copy is made. With fp16 the second layers of
                the MLPs (`wo`) stay in fp32, whose range they need.
            device: where the encoder runs.

        Raises:
            InputMissingError: the folder or one of its files is not there.
            WeightsError: a file cannot be read, lacks a weight of the encoder, or is not T5's.
        """
        tokenizer_folder = _existing(folder / "tokenizer", folder)
        model_folder = _existing(folder / "text_encoder", folder)
        _check_files(tokenizer_folder, TOKENIZER_FILES, "the T5 tokenizer")
        _check_files(model_folder, ("config.json",), "the configuration of the T5 encoder")
        _check_files(model_folder, WEIGHT_FILES, "the weights of the T5 encoder")
        with _Quiet():
            tokenizer = _load_tokenizer(tokenizer_folder)
            model = _load_model(model_folder, dtype)
        check_vocabulary(
            tokenizer_folder, len(tokenizer), len(model.get_parameter("shared.weight"))
        )
        return cls(tokenizer, model.to(device), config.max_length)

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.d_model)  # type: ignore[union-attr, arg-type]

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, max_length) int64, cut and padded; cut captions are counted."""
        rows = self.tokenizer(list(captions), add_special_tokens=True, verbose=False)["input_ids"]
        self._count_truncated([len(row) for row in rows])
        padded = self.tokenizer(
            list(captions),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        ids: Tensor = padded["input_ids"]
        return ids

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Embed captions.

        Returns:
            (B, max_length, D) on the device and in the dtype of the weights, padding included.
        """
        device = next(self.model.parameters()).device
        ids = self.tokenize(captions).to(device)
        hidden: Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden

    def _count_truncated(self, lengths: Sequence[int]) -> None:
        too_long = sum(length > self.max_length for length in lengths)
        if too_long and not self.truncated:
            log.warning(
                "captions cut to max_length; further ones are counted, not logged",
                extra={
                    "captions": too_long,
                    "of": len(lengths),
                    "longest_tokens": max(lengths),
                    "max_length_tokens": self.max_length,
                },
            )
        self.truncated += too_long


class _Quiet:
    """Silence the library's progress bars and advice while it loads, then restore them."""

    def __enter__(self) -> None:
        self._verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self._verbosity)
        transformers.logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer alone, to count tokens, from a T5 folder or a diffusers pipeline.

    Raises:
        InputMissingError: the folder or the tokenizer's file is not there.
        WeightsError: the tokenizer cannot be read.
    """
    place = _existing(folder / "tokenizer", folder)
    _check_files(place, TOKENIZER_FILES, "the T5 tokenizer")
    with _Quiet():
        return _load_tokenizer(place)


def encoder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's tensors, from its config.json alone.

    Raises:
        InputMissingError: there is no such file.
        WeightsError: it cannot be read.
    """
    place = _existing(folder / "text_encoder", folder)
    _check_files(place, ("config.json",), "the T5 configuration")
    with _reading("the T5 configuration", place, "copy config.json again"):
        config = transformers.T5Config.from_pretrained(str(place), local_files_only=True)
        with torch.device("meta"):
            model = transformers.T5EncoderModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _existing(preferred: Path, fallback: Path) -> Path:
    return preferred if preferred.is_dir() else fallback


def _check_files(folder: Path, names: Sequence[str], what: str) -> None:
    """Raise InputMissingError unless `folder` holds at least one of `names`."""
    if not folder.is_dir():
        raise InputMissingError(
            "the T5 folder does not exist",
            where=str(folder),
            fix="set conditioner_config emb_models[0].params.model_dir to a folder with the T5 "
            "encoder and its tokenizer",
        )
    if not any((folder / name).is_file() for name in names):
        raise InputMissingError(
            f"there is no file for {what}: {' or '.join(names)}",
            where=str(folder),
            fix="copy the whole T5 folder of the released model (or its text_encoder and "
            "tokenizer folders) there",
        )


@contextmanager
def _reading(what: str, folder: Path, fix: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises whatever its parsers raise
        raise WeightsError(f"{what} cannot be read: {error}", where=str(folder), fix=fix) from error


def _load_tokenizer(folder: Path) -> Any:
    fix = "copy spiece.model again; compare its size with the source"
    pieces = folder / TOKENIZER_FILES[0]
    if pieces.is_file():
        _check_kind(pieces, fix)
    with _reading("the T5 tokenizer", folder, fix):
        tokenizer = transformers.T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    if found != SPECIAL_IDS:
        # The library fills gaps in silence: an empty file makes one id of every word.
        raise WeightsError(
            f"the tokenizer is not T5's: ids of padding, end and unknown are {found}, "
            f"not {SPECIAL_IDS}",
            where=str(folder),
            fix=fix,
        )
    return tokenizer


def _check_kind(pieces: Path, fix: str) -> None:
    """Raise WeightsError for what is no sentencepiece model at first sight."""
    with pieces.open("rb") as file:
        start = file.read(HEADER_LENGTH_BYTES)
    kind = apparent_kind(start)
    if kind is not None:
        raise WeightsError(kind.what, where=str(pieces), fix=kind.fix)
    if not start:
        raise WeightsError("the file is empty", where=str(pieces), fix=fix)


def check_vocabulary(folder: Path, tokens: int, rows: int) -> None:
    """Check that a tokenizer belongs to an encoder, by the number of its tokens.

    Args:
        folder: of the tokenizer, for the error.
        tokens: of the tokenizer, those for sentinels included.
        rows: of the encoder's embedding.

    Raises:
        WeightsError: there are ids without a row, or far too many rows without an id.
    """
    if not 0 <= rows - tokens <= SPARE_ROWS:
        raise WeightsError(
            f"the tokenizer has {tokens} tokens, the T5 encoder {rows}",
            where=str(folder),
            fix="use the tokenizer that was released with this encoder",
        )


def _load_model(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    fix = "copy config.json and the weight files again; compare their sizes with the source"
    with _reading("the T5 encoder", folder, fix):
        loaded: Any = transformers.T5EncoderModel.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
        )
    model, report = loaded
    # Decoder weights in the file are fine: it is a whole T5. A missing encoder weight would
    # silently be random.
    lost = sorted(report["missing_keys"])
    if lost:
        more = f" and {len(lost) - MAX_LISTED} more" if len(lost) > MAX_LISTED else ""
        raise WeightsError(
            f"the T5 weights lack {', '.join(lost[:MAX_LISTED])}{more}",
            where=str(folder),
            fix="give the folder of a T5 v1.1 encoder, or of a whole T5, as it was released",
        )
    bad = [name for name, values in model.named_parameters() if not values.isfinite().all()]
    if bad:
        raise WeightsError(
            f"{len(bad)} T5 tensors hold NaN or infinity; the first: {', '.join(bad[:MAX_LISTED])}",
            where=str(folder),
            fix=fix,
        )
    # With fp16 the library keeps `wo` in fp32; upstream casts it (upstream_differences.md, M34).
    loaded_model: torch.nn.Module = model
    return loaded_model


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyT5:
    """Sizes of a T5 for rehearsals and tests."""

    width: int  # D
    num_layers: int = 2
    num_heads: int = 2
    vocab_size: int = 256  # at most; a small corpus gives fewer sentencepiece tokens


def write_tiny_t5(folder: Path, sizes: TinyT5, captions: Sequence[str], seed: int) -> None:
    """Write a random T5 encoder with its own tokenizer, in the files of the released one.

    Args:
        folder: created if it is missing.
        sizes: of the encoder.
        captions: text that the tokenizer is trained on, a few dozen lines.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_train_tokenizer(captions, sizes.vocab_size))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **special}, indent=2))
    with _Quiet(), torch.random.fork_rng(devices=[]):
        vocabulary = len(_load_tokenizer(folder))
        torch.manual_seed(seed)
        config = transformers.T5Config(
            vocab_size=vocabulary,
            d_model=sizes.width,
            d_kv=sizes.width // sizes.num_heads,
            d_ff=2 * sizes.width,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            dropout_rate=0.0,
        )
        transformers.T5EncoderModel(config).save_pretrained(str(folder))


def _train_tokenizer(captions: Sequence[str], vocab_size: int) -> bytes:
    """A sentencepiece model with T5's ids for padding, end of text and unknown."""
    import sentencepiece  # here, since only the writer of tiny models needs it
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    words = Counter(word for caption in captions for word in caption.split())
    with tempfile.TemporaryDirectory() as scratch:
        # By default the trainer proposes only pieces that several words share, and would split
        # a corpus of few words into letters.
        seeds = Path(scratch) / "seeds.tsv"
        seeds.write_text("".join(f"▁{word}\t{100 * n}\n" for word, n in words.items()))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            seed_sentencepieces_file=str(seeds),
            required_chars=string.ascii_lowercase + string.digits + ".,-'",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    proto: Any = sentencepiece_model_pb2  # its classes are made at import
    written = proto.ModelProto.FromString(model.getvalue())
    written.trainer_spec.ClearField("seed_sentencepieces_file")  # a temporary path
    serialised: bytes = written.SerializeToString(deterministic=True)
    return serialised
