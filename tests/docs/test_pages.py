"""The reader of the pages: what it takes for a block, and for a command."""

from __future__ import annotations

from tests.docs.commands import commands_of
from tests.docs.pages import Block, Page, blocks_of, indented_lines, pages

PAGE = Page(
    "a.md",
    """Words.

<!-- unchecked: needs a cluster -->
```sh
kubectl get pods
```

- an item

  ~~~~ yaml
  a:
    - b
  ~~~
  ~~~~

```
left open""",
)


def test_blocks_are_found_with_place_language_and_reason() -> None:
    assert blocks_of(PAGE) == [
        Block("a.md", 4, "sh", "kubectl get pods", "needs a cluster"),
        Block("a.md", 10, "yaml", "a:\n  - b\n~~~"),
        Block("a.md", 16, "", "left open"),
    ]


def test_a_block_of_four_blanks_is_found_and_a_list_is_not() -> None:
    text = "Words:\n\n    cogvx demo\n\n- a\n\n    - b\n      more\n\n```sh\n\n    c\n```\n"

    assert indented_lines(Page("a.md", text)) == ["a.md:3"]


def test_the_pages_are_those_of_the_root_the_docs_the_chart_and_the_examples() -> None:
    names = {page.name for page in pages()}

    assert {
        *("README.md", "CONTRIBUTING.md", "docs/data.md", "docs/decisions/0001-own-checkpoints.md"),
        *("deploy/helm/README.md", "examples/still_images.py"),
    } <= names


def test_commands_are_told_apart_and_lose_what_the_shell_takes() -> None:
    text = (
        "# first\n"
        "make setup && source .venv/bin/activate   # then\n"
        "A=1 cogvx train --base a.yaml \\\n  'args.valid_data=[]' model.b=2\n"
        'echo "a # cat" | cogvx sample > out.txt\n'
    )

    assert list(commands_of(text)) == [
        ("make", "setup"),
        ("source", ".venv/bin/activate"),
        ("cogvx", "train", "--base", "a.yaml", "args.valid_data=[]", "model.b=2"),
        ("echo", "a # cat"),
        ("cogvx", "sample"),
    ]
