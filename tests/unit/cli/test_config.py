"""cogvx config: exit codes, what is printed, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import main
from tests.support.configs import CONFIGS, ROOT, TINY, base, layer


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_check_of_a_complete_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", *TINY]) == 0

    assert capsys.readouterr().out == "ok: 1 warnings, run_id tiny\n"


def test_check_of_a_stock_file_warns_of_the_placeholder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "check", *base("cogvideox_2b", "sft")]) == 0

    told = capsys.readouterr().err
    assert "warning: a run would not start: '{your CogVideoX SAT folder}/transformer'" in told
    assert "args.load in" in told


def test_mistakes_leave_with_78_and_are_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["config", "check", *TINY, "data.target=os.system", "args.train_itres=3"])

    told = capsys.readouterr().err
    assert code == 78
    assert "unknown target 'os.system'" in told
    assert "did you mean 'train_iters'?" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ("args:\n\tlr: 1\n", 78, "a tab where YAML needs spaces"),
        ("args: {lr: '${model.nothing}'}\n", 78, "cannot be resolved"),
        ("model: {scale_factr: 1}\n", 78, "did you mean 'scale_factor'?"),
    ],
)
def test_mistakes_in_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, code: int, says: str
) -> None:
    assert main(["config", "check", *TINY, layer(tmp_path, content)]) == code

    assert says in capsys.readouterr().err


def test_wrong_flag_leaves_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", *TINY, "--train-itres", "3"]) == 2

    assert "did you mean '--train-iters'?" in capsys.readouterr().err


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--json", *base("cogvideox_2b", "sft")]) == 0
    valid = printed(capsys)
    assert main(["config", "check", *TINY, "data.params.fps=0", "--json"]) == 78
    wrong = printed(capsys)

    assert (valid["ok"], valid["runnable"], valid["run_id"]) == (True, False, "cogvideox-2b-full")
    assert valid["before_a_run"][0]["where"].startswith("args.load")
    assert len(valid["digest"]) == 64
    assert wrong["ok"] is False
    assert wrong["errors"][0]["what"] == "'fps' is 0"
    assert wrong["errors"][0]["fix"] == "give a number above 0"


def test_show_with_origins(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--lr", "3e-4", "args.seed=5"]

    assert main(["config", "show", "--origin", "--json", *words]) == 0

    rows = printed(capsys)
    assert rows["args.lr"] == {"value": 3e-4, "origin": "flag --lr"}
    assert rows["args.seed"] == {"value": 5, "origin": "override args.seed"}
    assert rows["args.save_args"] == {"value": False, "origin": "default"}
    assert rows["deepspeed.optimizer.params.lr"] == {"value": 3e-4, "origin": "flag --lr"}
    assert rows["model.scale_factor"]["origin"].endswith("tiny.yaml")
    embedder = "model.conditioner_config.params.emb_models.0.params.max_length"
    assert rows[embedder]["value"] == 16
    assert rows[embedder]["origin"].endswith("tiny.yaml")
    assert all(row["origin"] for row in rows.values())


def test_show_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", *TINY, "--save", "s3://me:swordfish@host/b"]) == 0

    told = capsys.readouterr().out
    assert "swordfish" not in told
    assert "s3://***@host/b" in told


def test_arguments_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "arguments", "--json"]) == 0

    names = {record["name"] for record in printed(capsys)}
    assert {"train_iters", "compat", "run_id"} <= names


def test_arguments_are_written_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "configuration.md").read_text().replace("`train_iters`", ""))

    assert main(["config", "arguments", "--write", str(page)]) == 0

    assert page.read_text() == (ROOT / "docs" / "configuration.md").read_text()


def test_check_needs_no_torch_and_little_time() -> None:
    code = (
        "import sys; from app.cli.main import main; "
        f"code = main(['config', 'check', *{base('cogvideox_5b_i2v_lora', 'sft')!r}]); "
        "loaded = {'torch', 'deepspeed', 'transformers'} & set(sys.modules); "
        "sys.exit(code or (3 if loaded else 0))"
    )
    started = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60, capture_output=True
    )

    assert done.returncode == 0
    assert time.monotonic() - started < 20  # about 0.4 s on an idle machine


def test_schema_of_the_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "schema", str(CONFIGS)]) == 0
    assert json.loads(capsys.readouterr().out)["properties"].keys() == {
        "args",
        "data",
        "deepspeed",
        "model",
    }
    assert main(["config", "schema", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err
