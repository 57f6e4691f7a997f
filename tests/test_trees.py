"""Trees of runs over several problems: a node a problem, and in it a node a step where it was gone back to at several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probe import store
from probe.errors import RunError
from probe.trees import BEYOND, drawn, newick, tree


def made(folder: Path, name: str, problems: dict[int, list[Any]], *, parent: Any = None, extra: int = 0) -> store.Run:
    """A run that went back, in each problem, to these steps: 2 samples of both arms, and `extra` more of control."""
    writer = store.create(folder / name, command="rewind", arguments={"name": name})
    for prompt, steps in problems.items():
        rows: list[dict[str, Any]] = [
            {"branch": 0, "parent": -1, "arm": "original", "sample": -1, "step": None, "fork_pos": 0, "draw_pos": 5,
             "outcome": "4", "n_tokens": 20, "edit": ""}
        ]  # fmt: skip
        for step in steps:
            for arm, samples in (("control", range(2 + extra)), ("edited", range(2))):
                rows += [
                    {"branch": len(rows) + i, "parent": 0, "arm": arm, "sample": i, "step": step, "fork_pos": 6 + (step or 0),
                     "draw_pos": 7 + (step or 0), "outcome": "4" if i else str(prompt), "n_tokens": 3,
                     "edit": "delete" if arm == "edited" else ""}
                    for i in samples
                ]  # fmt: skip
        with writer.unit(f"prompt {prompt}"):
            writer.write("branches", {"prompt_id": prompt, "text": "", **{key: [row[key] for row in rows] for key in rows[0]}})
    places = [{"prompt_id": prompt, "step": step, "samples": 2} for prompt, steps in problems.items() for step in steps]
    return writer.finish(summary={"places": places}, parent=parent or {"run": "elsewhere", "branch": 0, "position": None})


def test_a_node_a_problem_and_a_node_a_step(tmp_path: Path) -> None:
    run = made(tmp_path, "went", {0: [1, 3], 7: [2]}, extra=1)
    found = tree(run)
    assert (found["name"], found["n"], found["outcomes"]) == ("went", 2, {"4": 2})
    first, second = found["children"]
    assert [(one["name"], one["prompt_id"], one["n"]) for one in (first, second)] == [("prompt 0", 0, 1), ("prompt 7", 7, 1)]
    assert [(one["name"], one["position"]) for one in first["children"]] == [("step 1", 7), ("step 3", 9)]
    for place in (*first["children"], second):  # of one step the arms hang at the problem
        assert [(arm["name"], arm["n"]) for arm in place["children"]] == [("control", 2), ("edited", 2), (BEYOND, 1)]
    assert second["children"][1]["outcomes"] == {"7": 1, "4": 1}
    lines = drawn(found)
    assert lines[0] == "went: 4 ×2" and len(lines) == 1 + 2 + 2 + 9
    assert newick(found).count("b") - newick(found).count("before") == len(run.branches) - 2


def test_arms_of_a_place_in_no_step_stand_beside_the_steps(tmp_path: Path) -> None:
    """As those of the boundaries of an importance run do that has arms of steps too."""
    found = tree(made(tmp_path, "went", {0: [1, 3, None]}))
    assert [(one["name"], len(one["children"])) for one in found["children"]] == [
        ("step 1", 2), ("step 3", 2), ("control", 0), ("edited", 0)
    ]  # fmt: skip
    assert newick(found).count("b") == 12


def test_one_problem_of_several(tmp_path: Path) -> None:
    run = made(tmp_path, "went", {0: [1, 3], 7: [2]})
    only = tree(run, prompt_id=7)
    assert (only["name"], only["prompt_id"], [arm["name"] for arm in only["children"]]) == ("went", 7, ["control", "edited"])
    with pytest.raises(RunError, match="nothing forks from prompt 3"):
        tree(run, prompt_id=3)


def test_runs_hang_under_the_problem_that_they_went_back_into(tmp_path: Path) -> None:
    """One over both problems, one into a branch of one of them."""
    run = made(tmp_path, "went", {0: [1], 7: [2]})
    over = made(
        tmp_path, "over", {0: [4], 7: [5]}, parent={"run": run.run_id, "branch": 0, "position": None, "prompt_id": None}
    )
    made(tmp_path, "into", {7: [5]}, parent={"run": run.run_id, "branch": 3, "position": 9, "prompt_id": 7})
    first, second = tree(run)["children"]
    assert [one["name"] for one in first["children"]] == ["control", "edited", "over"]
    assert [one["name"] for one in second["children"]] == ["control", "edited", "over"]
    assert first["children"][2]["prompt_id"] == 0 and first["children"][2]["position"] == 10
    assert (first["children"][2]["n"], first["children"][2]["outcomes"]) == (0, {})  # its original is this run's
    (inside,) = next(b for b in second["children"][1]["branches"] if b["branch"] == 3)["children"]
    assert (
        inside["name"] == "into"
        and inside["position"] == 9
        and not any(b["children"] for b in first["children"][1]["branches"])
    )
    assert over.run_id != run.run_id


def test_the_command_shows_one_problem(shell, tmp_path: Path) -> None:
    made(tmp_path, "went", {0: [1, 3], 7: [2]})
    whole = json.loads(shell("runs", "tree", "went", "--json").stdout)["summary"]
    assert [one["prompt_id"] for one in whole["children"]] == [0, 7]
    assert json.loads(shell("runs", "tree", "went", "--prompt", "7", "--json").stdout)["summary"]["prompt_id"] == 7
    assert shell("runs", "tree", "went").stdout.splitlines()[0] == "went: 4 ×2"
    missing = shell("runs", "tree", "went", "--prompt", "3")
    assert missing.returncode == 1 and "nothing forks from prompt 3" in missing.stderr


def test_answers_that_were_drawn_to_a_prompt(tmp_path: Path) -> None:
    """Nothing was generated for it before: there is no original to count."""
    writer = store.create(tmp_path / "drawn", command="sample", arguments={})
    with writer.unit("all"):
        writer.write("branches", {
            "prompt_id": [0, 0, 1], "branch": [1, 2, 1], "parent": -1, "arm": "sample", "sample": [0, 1, 0], "fork_pos": 4,
            "draw_pos": 4, "outcome": ["7", "8", "7"], "n_tokens": 3, "edit": "", "text": "",
        })  # fmt: skip
    run = writer.finish(summary={"samples": 2})
    found = tree(run)
    assert (found["n"], found["outcomes"]) == (0, {})
    first, second = found["children"]
    assert (first["position"], first["n"], first["children"][0]["outcomes"]) == (4, 0, {"7": 1, "8": 1})
    assert drawn(second) == ["prompt 1 at token 4", "└─ sample at token 4: 7 ×1"]
