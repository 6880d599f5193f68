from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from app.data.bad_clip import BadClipError
from app.data.check.sample import CheckRules, MinimumClip, estimated_tokens
from app.data.check.scan import Census, ScanSettings, check_dataset
from app.data.shards.captions import TextRules
from app.data.shards.manifest import MANIFEST_NAME
from app.errors import ConfigError, InputMissingError
from tests.support.clip_files import encode, write_folder
from tests.support.planted_faults import planted_folder
from tests.support.shards import tar_bytes, write_shard

RULES = CheckRules()


def check(path: Path | str, rules: CheckRules = RULES, text: TextRules = TextRules()) -> Census:  # noqa: B008
    return check_dataset(str(path), rules, text, ScanSettings(workers=2))


def reasons(census: Census) -> list[tuple[str, str]]:
    return [(problem.key, problem.reason) for problem in census.problems]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("video") / "a.mp4").read_bytes()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Census, dict[str, str]]:
    root = tmp_path_factory.mktemp("planted") / "set"
    expected = planted_folder(root)
    return check(root), expected


def test_a_folder_shows_each_planted_fault_once_and_nothing_else(
    planted: tuple[Census, dict[str, str]],
) -> None:
    census, expected = planted

    found = {Path(key).stem: reason for key, reason in reasons(census)}

    assert found == expected
    assert len(census.problems) == len(expected)


def test_clips_are_described_as_they_are_shown(planted: tuple[Census, dict[str, str]]) -> None:
    sizes = {Path(clip.key).stem: clip.size for clip in planted[0].clips}

    assert (sizes["rotated"].rows, sizes["rotated"].columns) == (64, 48)
    assert sizes["plain"].frames == 20
    assert sizes["plain"].fps == pytest.approx(8)
    assert sizes["bomb"] is None
    assert planted[0].samples == 27


def test_captions_without_a_video_and_videos_of_other_kinds_are_faults(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "fine"})
    (tmp_path / "labels" / "lost.txt").write_text("no video")
    (tmp_path / "videos" / "b.FLV").write_bytes(b"x")
    (tmp_path / "labels" / "b.txt").write_text("its video is not read")
    (tmp_path / "README.txt").write_text("about")

    assert reasons(check(tmp_path)) == [
        ("labels/lost.txt", "no_video"),
        ("videos/b.FLV", "unsupported_suffix"),
    ]


def test_the_folder_of_the_videos_may_be_named_itself(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "fine", "b": None})

    assert reasons(check(tmp_path / "videos")) == [("videos/b.mp4", "no_caption")]


def test_shards_show_each_planted_fault_once_and_nothing_else(tmp_path: Path, video: bytes) -> None:
    caption = b"words"
    whole = tar_bytes(
        [(f"{n}.{s}", d) for n in "abc" for s, d in (("mp4", video), ("txt", caption))]
    )
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "page.tar").write_bytes(b"<html>404</html>" * 99)
    write_shard(
        tmp_path / "mixed.tar",
        [
            ("good.mp4", video),
            ("good.txt", caption),
            ("twice.mp4", video),
            ("twice.txt", caption),
            ("twice.mp4", video),
            ("../up.mp4", video),
            ("../up.txt", caption),
            ("/abs.mp4", video),
            ("lonely.txt", caption),
            ("silent.mp4", video),
            ("cut.mp4", video[: len(video) // 2]),
            ("cut.txt", caption),
            ("json.mp4", video),
            ("json.json", b"{"),
        ],
    )

    census = check(tmp_path)

    assert reasons(census) == [
        ("cut.tar", "damaged_shard"),
        ("../up", "unsafe_name"),
        ("/abs", "unsafe_name"),
        ("cut", "truncated"),
        ("json", "bad_metadata"),
        ("lonely", "no_video"),
        ("silent", "no_caption"),
        ("twice", "duplicate_key"),
        ("page.tar", "damaged_shard"),
    ]
    assert {problem.source for problem in census.problems} == {
        f"{tmp_path}/{name}.tar" for name in ("cut", "mixed", "page")
    }


def test_captions_of_a_sidecar_are_found_by_the_id(tmp_path: Path, video: bytes) -> None:
    members = [(f"{n}.{s}", d) for n in "ab" for s, d in (("mp4", video), ("id", n.encode()))]
    write_shard(tmp_path / "x-0.tar", members)
    line = {"key": "a", "caption": "words", "duration": 2.5, "fps": 8}
    (tmp_path / "x-0.meta.jsonl").write_text(json.dumps(line) + "\n")

    assert reasons(check(tmp_path)) == [("b", "no_caption")]


def test_one_key_in_two_shards_is_a_fault_only_with_the_same_content(
    tmp_path: Path, video: bytes
) -> None:
    for shard, caption in (("x-0", b"one"), ("x-1", b"two"), ("x-2", b"one")):
        write_shard(tmp_path / f"{shard}.tar", [("0.mp4", video), ("0.txt", caption)])

    census = check(tmp_path / "x-{0..2}.tar")

    assert [(p.source, p.reason) for p in census.problems] == [
        (f"{tmp_path}/x-2.tar", "duplicate_key")
    ]


def test_a_cut_copy_of_a_good_shard_is_one_fault(tmp_path: Path, video: bytes) -> None:
    members = [(f"{n}.{s}", d) for n in "abcd" for s, d in (("mp4", video), ("txt", b"words"))]
    whole = tar_bytes(members)
    (tmp_path / "x-0.tar").write_bytes(whole)
    (tmp_path / "x-1.tar").write_bytes(whole[: whole.index(b"d.mp4") + 600])

    assert reasons(check(tmp_path)) == [("x-1.tar", "damaged_shard")]


def test_nothing_is_written_beside_the_data(tmp_path: Path, video: bytes) -> None:
    write_shard(tmp_path / "x.tar", [("0.mp4", video), ("0.txt", b"words")])

    check(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_clips_shorter_than_a_bucket_are_faults_only_where_a_size_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "20 frames", "b": "21 frames"})

    strict = CheckRules(minimum=MinimumClip(21, 8.0, 0))

    assert reasons(check(tmp_path)) == []
    assert reasons(check(tmp_path, strict)) == [("videos/a.mp4", "too_short")]


def test_missing_captions_may_be_allowed(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": None, "b": " "})

    assert reasons(check(tmp_path, CheckRules(may_lack_captions=True))) == []


def test_tokens_are_counted_by_a_tokenizer_where_there_is_one(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "three short words", "b": "word"})

    rules = CheckRules(most_tokens=3, count_tokens=lambda text: len(text.split()) + 1)

    assert reasons(check(tmp_path, rules)) == [("videos/a.mp4", "caption_too_long")]


def test_the_estimate_of_tokens_is_no_more_than_a_tokenizer_gives() -> None:
    # Words, marks and the end: no SentencePiece model joins any of them.
    assert estimated_tokens("a red ball, rolling.") == 4 + 2 + 1
    assert estimated_tokens("x" * 160) == pytest.approx(160 / 5.5 + 1, abs=1)
    assert estimated_tokens("") == 1


def test_an_empty_place_and_a_command_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="neither videos"):
        check(tmp_path)
    with pytest.raises(ConfigError, match="runs a command"):
        check("pipe:cat x.tar")


def test_a_painted_over_fault_is_no_fault_for_a_decoder_that_is_not_strict(
    planted: tuple[Census, dict[str, str]],
) -> None:
    from app.data.video.decoder import VideoDecoder

    garbled = next(clip for clip in planted[0].clips if clip.key == "videos/garbled.mp4")
    blob = Path(garbled.source, garbled.key).read_bytes()
    plain, strict = VideoDecoder(), VideoDecoder(strict=True)
    seen: list[str] = []
    try:
        plain.decode(
            blob, lambda facts: range(facts.frames), lambda _, frame: seen.append(digest(frame))
        )
        with pytest.raises(BadClipError, match="reports damage"):
            strict.decode(blob, lambda facts: range(facts.frames), lambda _, frame: None)
    finally:
        plain.close()
        strict.close()

    assert len(seen) == 20


def digest(frame: object) -> str:
    return hashlib.sha256(memoryview(frame).tobytes()).hexdigest()  # type: ignore[arg-type]
