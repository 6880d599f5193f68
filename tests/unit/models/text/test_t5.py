"""The T5 encoder: tokens, padding, dtype, what a broken folder says."""

from __future__ import annotations

import io
import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from app.config.schema.encoders import T5Config
from app.errors import InputMissingError, WeightsError
from app.models.text.t5 import (
    T5TextEncoder,
    TinyT5,
    check_vocabulary,
    load_tokenizer,
    write_tiny_t5,
)

CAPTIONS = [
    f"a {colour} {shape} moves {where} over a {ground} field"
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for where in ("left", "right")
    for ground in ("striped", "plain")
]
LONG = "a red circle " * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    write_tiny_t5(folder, TinyT5(width=16), CAPTIONS, seed=3)
    return folder


def load(folder: Path, max_length: int = 16, dtype: torch.dtype = torch.float32) -> T5TextEncoder:
    return T5TextEncoder.load(folder, T5Config(model_dir="t5", max_length=max_length), dtype)


def test_tokens_are_those_of_sentencepiece_with_end_and_padding(folder: Path) -> None:
    captions = [CAPTIONS[0], "", "A  blue\nsquare, 7 times!"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    tokens = load(folder, max_length=24).tokenize(captions)

    expected = [[*pieces.encode(caption), 1] for caption in captions]
    assert tokens.tolist() == [row + [0] * (24 - len(row)) for row in expected]


def test_long_captions_are_cut_and_keep_their_end_token(folder: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))

    tokens = load(folder, max_length=5).tokenize([LONG])

    assert tokens.tolist() == [[*pieces.encode(LONG)[:4], 1]]


def test_cut_captions_are_counted_and_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load(folder, max_length=12)

    with caplog.at_level(logging.WARNING, logger="app.models.text.t5"):
        encoder.encode([LONG, CAPTIONS[0]])
        encoder.encode([LONG, LONG])

    assert encoder.truncated == 3
    assert len(caplog.records) == 1
    assert (caplog.records[0].captions, caplog.records[0].of) == (1, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_embeddings_have_the_dtype_asked_for(folder: Path, dtype: torch.dtype) -> None:
    encoder = load(folder, dtype=dtype)

    embedding = encoder.encode(CAPTIONS[:2])

    dtypes = {name: parameter.dtype for name, parameter in encoder.model.named_parameters()}
    assert {kind for name, kind in dtypes.items() if not name.endswith(".wo.weight")} == {dtype}
    assert embedding.shape == (2, 16, encoder.width) == (2, 16, 16)
    assert embedding.dtype == dtype
    assert not embedding.requires_grad


def test_what_fp16_cannot_hold_stays_in_fp32(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5/model.safetensors"
    tensors = load_file(path)
    last = [name for name in tensors if name.endswith(".wo.weight")]
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if ".DenseReluDense." in name:  # sums beyond 65504, as those of the released encoder
            scale = 1000.0 if name in last else 10.0
            tensors[name] = scale * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path, metadata={"format": "pt"})
    expected = load(tmp_path / "t5").encode(CAPTIONS[:2])

    encoder = load(tmp_path / "t5", dtype=torch.float16)

    assert len(last) == 2
    assert all(encoder.model.get_parameter(name).dtype == torch.float32 for name in last)
    found = encoder.encode(CAPTIONS[:2])
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=0)
    encoder.model.half()
    overflown = encoder.encode(CAPTIONS[:2])
    assert not torch.allclose(overflown.float(), expected, atol=1.0, rtol=0)


def test_encoder_is_frozen_and_in_eval_mode(folder: Path) -> None:
    model = load(folder).model

    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_padding_is_attended(folder: Path) -> None:
    short, padded = (load(folder, max_length=n).encode(["a red circle"]) for n in (4, 16))

    # With an attention mask these would be equal: the same four tokens stand in front.
    assert (short - padded[:, :4]).abs().max() > 1e-3


def test_loading_opens_no_connection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    assert load(folder).encode(["a red circle"]).isfinite().all()


def test_folders_of_a_diffusers_pipeline_are_read_too(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer", "text_encoder"):
        shutil.copytree(folder, tmp_path / name)
    for path in (
        tmp_path / "text_encoder" / "spiece.model",
        tmp_path / "tokenizer" / "config.json",
    ):
        path.unlink()

    torch.testing.assert_close(load(tmp_path).encode(CAPTIONS), load(folder).encode(CAPTIONS))


def test_the_same_seed_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_tiny_t5(tmp_path, TinyT5(width=16), CAPTIONS, seed=3)

    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_writing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    write_tiny_t5(tmp_path, TinyT5(width=16), CAPTIONS, seed=3)

    torch.testing.assert_close(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("spiece.model", "no file for the T5 tokenizer: spiece.model or tokenizer.json"),
        ("config.json", "no file for the configuration of the T5 encoder: config.json"),
        ("model.safetensors", "no file for the weights of the T5 encoder: model.safetensors or"),
    ],
)
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, lost: str, message: str) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / lost).unlink()

    with pytest.raises(InputMissingError, match=message) as caught:
        load(tmp_path / "t5")

    assert caught.value.where == str(tmp_path / "t5")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="does not exist") as caught:
        load(tmp_path / "nowhere")

    assert caught.value.where == str(tmp_path / "nowhere")


def test_a_missing_weight_is_an_error_and_not_random(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(path)
    lost = "encoder.final_layer_norm.weight"
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(WeightsError, match=f"lack {lost}"):
        load(tmp_path / "t5")


def test_weights_that_are_not_finite_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(path)
    bad = "encoder.final_layer_norm.weight"
    tensors[bad][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(WeightsError, match=f"1 T5 tensors hold NaN or infinity; the first: {bad}"):
        load(tmp_path / "t5")


@pytest.mark.parametrize("name", ["spiece.model", "model.safetensors", "config.json"])
def test_a_damaged_file_is_an_error_with_its_folder(
    folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / name).write_bytes(b"not this")

    with pytest.raises(WeightsError, match="cannot be read") as caught:
        load(tmp_path / "t5")

    assert caught.value.where == str(tmp_path / "t5")


def foreign(vocab_size: int = 80, **ids: int) -> bytes:
    """A sentencepiece model of another kind of network."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 3),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "the file is empty"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (lambda: b"<!DOCTYPE html>", "a web page"),
        (foreign, "not T5's: ids of padding, end and unknown"),
        (
            lambda: foreign(900, model_type="bpe", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
            "tokens, the T5 encoder",
        ),
    ],
    ids=["empty", "lfs", "page", "other ids", "other vocabulary"],
)
def test_a_vocabulary_that_is_not_the_encoders_is_refused(
    folder: Path, tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5/spiece.model").write_bytes(content())

    with pytest.raises(WeightsError, match=message) as caught:
        load(tmp_path / "t5")

    assert str(tmp_path / "t5") in caught.value.where
    if "encoder" not in message:  # those that count tokens alone have no encoder to compare with
        with pytest.raises(WeightsError, match=message):
            load_tokenizer(tmp_path / "t5")


def test_a_vocabulary_far_smaller_than_the_encoders_is_refused(tmp_path: Path) -> None:
    check_vocabulary(tmp_path, 32100, 32128)  # T5 v1.1
    check_vocabulary(tmp_path, 32000, 32128)  # without the sentinels

    for tokens in (32129, 157, 250200):
        with pytest.raises(WeightsError, match=f"{tokens} tokens, the T5 encoder 32128"):
            check_vocabulary(tmp_path, tokens, 32128)
