"""Commands are taken from pages as a reader takes them, and each is run or has a reason."""

import pytest
from running import ROOT

from attribution.files import Refused
from lab import documents

PAGE = """
| Why? | `python analyze.py --query_text "a # b"` | and `python not_this.py` |

```
make demo        # a comment
python train.py \\
    --seed 1     # and another
pipeline.py      no command
```

```python
print("three")
```
"""


def test_commands_come_in_their_order_without_comments_and_layouts():
    assert documents.commands_of(PAGE) == [
        'python analyze.py --query_text "a # b"',
        "make demo",
        "python train.py --seed 1",
        "python - <<'END'\nprint(\"three\")\nEND",
    ]


def test_every_reason_not_to_run_a_command_fits_a_command_of_the_documents():
    pages = [(ROOT / page).read_text() for page in documents.DOCUMENTS]
    commands = [command for page in pages for command in documents.commands_of(page)]
    reasons = {documents.reason_not_to_run(command) for command in commands}
    assert reasons == {None, *documents.NOT_RUN.values()}


def test_a_command_that_fails_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    text = "```\npython -c 'print(1)'\npython -c 'raise SystemExit(3)'\npython -c 'print(2)'\n```\n"
    (tmp_path / "page.md").write_text(text)
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "DOCUMENTS", ("page.md",))
    with pytest.raises(Refused, match="1 commands failed"):
        documents.main(["--work_dir", str(tmp_path / "logs")])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.count("ran") == 2 and "status 3" in lines
    assert (tmp_path / "logs/page.md_02.log").read_text() == "2\n"
