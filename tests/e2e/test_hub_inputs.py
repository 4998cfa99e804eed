"""A job's code from a Git repository and its model from a hub, as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gits import Repository, git_web
from tests.hub import Repo, commit_id, hub_server, zipped
from tests.kit import Box


def test_code_model_and_data_come_from_three_hubs(tmp_path: Path) -> None:
    """They are there when the job runs, each says which state it is of, and a warm one is not asked for again."""
    files = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
    repository = Repository(tmp_path / "repository")
    commit = repository.commit(**{"train.py": "print('trained')"})
    with git_web(tmp_path / "served") as web, hub_server(tmp_path / "cdn") as hub, Box(tmp_path / "box") as box:
        hub.repos["models/team/model"] = Repo([files])
        hub.archives["competitions/titanic"] = [zipped({"a.csv": b"1"})]
        place = web.serve(repository, "team/repo.git")
        command = (
            "run", "--gpus", "0", "--input", f"code={place}@main",
            "--input", f"model=team/model,from=hf,endpoint={hub.url}",
            "--input", f"data=titanic,from=kaggle,type=competition,endpoint={hub.url}",
            "--", "sh", "-c", "python3 $STOKER_INPUT_code/train.py; cat $STOKER_INPUT_model/config.json",
        )  # fmt: skip
        done = box.cli(*command)
        assert (done.returncode, done.stdout) == (0, "trained\n{}"), done.stderr
        inputs = {each["name"]: each for each in json.loads(box.cli("show", "1", "--json").stdout)["inputs"]}
        assert inputs["code"]["pins"]["commit"] == commit
        assert inputs["model"]["pins"]["commit"] == commit_id(files)
        assert f"{place}@main at {commit[:12]}" in box.cli("show", "1").stdout
        web.asked.clear()
        hub.asked.clear()
        assert box.cli(*command).returncode == 0
        assert (web.asked, hub.asked) == ([], [])
        failed = box.cli("run", "--gpus", "0", "--input", f"code={place}@gone", "--", "true")
        assert "has no branch, tag or commit 'gone'" in failed.stderr
