"""Files and overrides are merged left to right, and every key knows who set it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.layers import Merged, merge_layers
from app.config.problems import Problems


def merge(
    folder: Path, *files: str, overrides: tuple[str, ...] = (), deepspeed: str | None = None
) -> tuple[Merged, list[str]]:
    names = []
    for index, content in enumerate(files):
        path = folder / f"{index}.yaml"
        path.write_text(content)
        names.append(str(path))
    extra = None
    if deepspeed is not None:
        (folder / "ds.json").write_text(deepspeed)
        extra = str(folder / "ds.json")
    problems = Problems()
    merged = merge_layers(names, extra, overrides, problems)
    return merged, [str(error).replace(f"{folder}/", "") for error in problems.errors]


def test_later_files_win_and_lists_are_replaced(tmp_path: Path) -> None:
    first = "args: {lr: 1e-4, train_data: [a, b]}\nmodel: {x: {p: 1, q: 2}}\n"
    second = "args: {train_data: [c]}\nmodel: {x: {q: 3}}\n"

    merged, errors = merge(tmp_path, first, second)

    assert not errors
    assert merged.sections == {
        "args": {"lr": 1e-4, "train_data": ["c"]},
        "model": {"x": {"p": 1, "q": 3}},
    }
    origins = {key: Path(origin).name for key, origin in merged.origins.items()}
    assert origins == {
        "args.lr": "0.yaml",
        "args.train_data": "1.yaml",
        "model.x.p": "0.yaml",
        "model.x.q": "1.yaml",
    }


def test_interpolation_reaches_across_files(tmp_path: Path) -> None:
    merged, errors = merge(tmp_path, "args: {lr: '${model.rate}'}\n", "model: {rate: 2e-5}\n")

    assert not errors
    assert merged.sections["args"]["lr"] == 2e-5


def test_overrides_come_last_and_reach_into_lists(tmp_path: Path) -> None:
    content = "model: {parts: [{name: a}, {name: b}]}\nargs: {lr: 1}\n"

    merged, errors = merge(
        tmp_path,
        content,
        overrides=("model.parts.1.name=c", "args.train-data=[x,y]", "args.lr=1e-8"),
    )

    assert not errors
    assert merged.sections["model"]["parts"] == [{"name": "a"}, {"name": "c"}]
    assert merged.sections["args"] == {"lr": 1e-8, "train_data": ["x", "y"]}
    assert merged.set_by_override("args.lr")
    assert merged.origins["model.parts.1.name"] == "override model.parts.1.name"


def test_brackets_index_lists_too(tmp_path: Path) -> None:
    merged, _ = merge(tmp_path, "model: {parts: [{n: 1}]}", overrides=("model.parts[0].n=5",))

    assert merged.sections["model"]["parts"][0]["n"] == 5


def test_deepspeed_file_is_one_more_layer(tmp_path: Path) -> None:
    merged, errors = merge(
        tmp_path,
        "deepspeed: {gradient_clipping: 0.1, steps_per_print: 5}\n",
        deepspeed='{"gradient_clipping": 1.0}',
    )

    assert not errors
    assert merged.sections["deepspeed"] == {"gradient_clipping": 1.0, "steps_per_print": 5}
    assert merged.origins["deepspeed.gradient_clipping"].endswith("ds.json")


def test_dashes_in_yaml_args_are_underscores(tmp_path: Path) -> None:
    merged, _ = merge(tmp_path, "args: {train-iters: 5}\n")

    assert merged.sections["args"] == {"train_iters": 5}


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ("args:\n\tlr: 1\n", "a tab where YAML needs spaces", "0.yaml, line 2, column 1"),
        ("args:\n  lr: [1\nb: 2\n", "not valid YAML", "0.yaml, line 3"),
        ("args:\n  lr: [1\n", "not valid YAML", "0.yaml, line 2, column 7"),
        ("args: {lr: 1\n", "not valid YAML", "0.yaml, line 1, column 7"),
        ('args:\n  lr: "1', "not valid YAML", "0.yaml, line 2, column"),
        ("args: " + "{a: " * 1500 + "1" + "}" * 1500, "the file cannot be parsed", "0.yaml"),
        ("args: {lr: 1}\nargs: {lr: 2}\n", "duplicate key", "0.yaml, line 2"),
        ("hello\n", "holds no sections", "0.yaml"),
        ("modle: {a: 1}\n", "unknown section 'modle'", "did you mean 'model'?"),
        ("args: 5\n", "section 'args' is 5", "0.yaml"),
        ("args: {lr: '${model.rate}'}\n", "cannot be resolved", "args.lr in 0.yaml"),
        ("args: {lr: '${args.lr}'}\n", "cannot be resolved", "args.lr in 0.yaml"),
        ("args: {lr: '???'}\n", "the value is missing", "args.lr in 0.yaml"),
        ("args: {save: '${oc.env:HOME}'}\n", "reads the environment", "args.save in 0.yaml"),
    ],
)
def test_mistake_has_a_place_and_a_fix(tmp_path: Path, content: str, what: str, where: str) -> None:
    _, errors = merge(tmp_path, content)

    assert len(errors) == 1
    assert what in errors[0]
    assert where in errors[0]
    assert "fix:" in errors[0]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("modle.x=1", "is not an override"),
        ("model.a=[1", "cannot be applied"),
        ("model.parts.7.n=1", "cannot be applied"),
    ],
)
def test_wrong_override_is_named(tmp_path: Path, override: str, what: str) -> None:
    _, errors = merge(tmp_path, "model: {parts: [{n: 1}]}\n", overrides=(override,))

    assert len(errors) == 1
    assert override in errors[0]
    assert what in errors[0]


def test_missing_file_is_named_and_stops_the_rest() -> None:
    problems = Problems()

    merged = merge_layers(["nowhere/no.yaml"], None, [], problems)

    assert not merged.complete
    assert "No such file" in problems.errors[0].what
    assert problems.errors[0].where == "nowhere/no.yaml"


def test_key_without_section_after_base_is_explained() -> None:
    problems = Problems()

    merge_layers(["lr=3"], None, [], problems)

    assert "'lr=3' is neither a file nor an override" in problems.errors[0].what


def test_two_broken_values_are_both_reported(tmp_path: Path) -> None:
    _, errors = merge(tmp_path, "args: {lr: '${no.a}', save: '${no.b}'}\nextra: {x: 1}\n")

    assert len(errors) == 3
