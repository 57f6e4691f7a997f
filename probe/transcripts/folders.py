"""Our own runs, whole or as `runs export` writes them, and solution folders of thought-anchors (Bogdan et al. 2025).

Source of the latter (2506.19143): its generate_rollouts.py: `problem_N/` with problem.json (problem, gt_answer, level, type),
base_solution.json (prompt, solution, full_cot, answer, is_correct), chunks.json and chunk_I/solutions.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probe import tables
from probe.errors import BadPrompt
from probe.files import FileRow
from probe.store import Run, is_run, open_run

_TOKEN = {"prompt_id", "branch", "pos", "token_id", "segment"}
_PROMPT = {"prompt_id", "text", "rendered", "n_tokens", "completion"}
_RESULTS = {column.name for column in tables.TABLES["prompts"].columns} - {"expect", "choices"}


def is_token(row: Mapping[str, Any]) -> bool:
    """Whether it is a row of an exported table `tokens`."""
    return row.keys() >= _TOKEN


def of_tokens(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """A row for each prompt of an exported table `tokens`, of its ids; branches that were drawn later are left out."""
    ids: dict[int, list[tuple[int, int, str]]] = {}
    others: dict[int, set[int]] = {}
    for row in rows:
        if row.error or not isinstance(row.value, Mapping) or not is_token(row.value):
            raise BadPrompt(
                f"row {row.number} is no row of 'tokens': {row.error or 'columns are missing'}", hint="export it again"
            )
        prompt, branch, pos, token = (int(row.value[name]) for name in ("prompt_id", "branch", "pos", "token_id"))
        if branch:
            others.setdefault(prompt, set()).add(branch)
        else:
            ids.setdefault(prompt, []).append((pos, token, str(row.value["segment"])))
    for prompt in sorted(ids):
        left_out = [f"{len(others[prompt])} branches"] if prompt in others else []
        yield FileRow(prompt, {**_ids(sorted(ids[prompt])), "left_out": left_out})


def _ids(tokens: list[tuple[int, int, str]]) -> dict[str, list[int]]:
    begin = next((i for i, (_, _, segment) in enumerate(tokens) if segment == "completion"), len(tokens))
    found = [token for _, token, _ in tokens]
    return {"prompt_ids": found[:begin], "completion_ids": found[begin:]}


def is_prompt(row: Mapping[str, Any]) -> bool:
    """Whether it is a row of an exported table `prompts`."""
    return row.keys() >= _PROMPT


def of_prompts(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """A row for each prompt of an exported table `prompts`: its text or messages, and its completion as text."""
    for row in rows:
        if row.error or not isinstance(row.value, Mapping) or not is_prompt(row.value):
            yield row
            continue
        found = row.value
        own = {key: value for key, value in found.items() if key not in _RESULTS and key != "run_id"}
        chat = str(found["text"]).startswith("[") and found["rendered"] not in (None, "", found["text"])
        own |= {"messages" if chat else "prompt": found["text"], "stop_reason": found.get("stop_reason") or None}
        if found.get("completion") not in (None, ""):
            own["completion"] = found["completion"]
        yield FileRow(int(found["prompt_id"]), own, str(found.get("error") or ""))


def of_folder(path: Path) -> tuple[str, Iterator[FileRow]] | None:
    """Rows of a folder that is a run, or that holds solutions of thought-anchors; None for all else."""
    if is_run(path):
        return "a run", _of_run(open_run(path))
    found = [one for one in (path, *sorted(path.rglob("problem_*"))) if (one / "base_solution.json").is_file()]
    if not found:
        return None
    return "thought-anchors solutions", (_solution(number, one) for number, one in _numbered(found))


def _of_run(run: Run) -> Iterator[FileRow]:
    """The prompts of a run with their ids."""
    extra = run.extra("prompts")
    for row in run.scan("prompts").to_pylist():
        prompt = row["prompt_id"]
        own = {name: row[name] for name in (*extra, "expect", "choices") if row[name] is not None}
        chat = row["text"].startswith("[") and row["rendered"] not in (None, row["text"])
        own |= {"messages" if chat else "prompt": row["text"], "stop_reason": row["stop_reason"]}
        if row["error"]:
            yield FileRow(prompt, own, row["error"])
            continue
        tokens = run.scan("tokens", columns=["pos", "token_id", "segment"], prompt_id=prompt, branch=0).to_pylist()
        found = _ids(sorted((t["pos"], t["token_id"], t["segment"]) for t in tokens))
        yield FileRow(prompt, {**own, **(found if found["completion_ids"] else {"prompt_ids": found["prompt_ids"]})})


def _numbered(folders: list[Path]) -> list[tuple[int, Path]]:
    """The folders by the numbers of their problems; counted where these do not tell them apart."""
    numbers = [int(found[1]) if (found := re.fullmatch(r"problem_(\d+)", one.name)) else -1 for one in folders]
    if len(set(numbers)) < len(numbers) or -1 in numbers:
        numbers = list(range(len(folders)))
    return sorted(zip(numbers, folders, strict=True))


def _solution(number: int, folder: Path) -> FileRow:
    """One problem's base solution."""
    try:
        base, problem, chunks = (_json(folder / f"{name}.json") for name in ("base_solution", "problem", "chunks"))
    except (OSError, ValueError) as error:
        return FileRow(number, None, f"cannot read {folder.name}: {error}")
    rollouts = sum(1 for one in folder.glob("chunk_*") if (one / "solutions.json").is_file())
    row = {"problem": folder.name, **_of_solution(base, problem)}
    if chunks.get("chunks"):
        row["chunks"] = chunks["chunks"]
    if rollouts:
        row["left_out"] = [*row["left_out"], f"rollouts of {rollouts} chunks"]
    return FileRow(number, row, "" if row.get("completion") else "the folder has no base solution")


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; nothing where there is no file."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no object")
    return found


def is_solution(row: Mapping[str, Any]) -> bool:
    """Whether it is a base_solution.json alone."""
    return {"solution", "full_cot"} <= row.keys()


def of_solution(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """Base solutions without their folders."""
    for row in rows:
        yield row if row.error or not isinstance(row.value, Mapping) else row._replace(value=_of_solution(row.value, {}))


def _of_solution(base: Mapping[str, Any], problem: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the solution after it, and what is known of both."""
    solution, whole = str(base.get("solution") or ""), str(base.get("full_cot") or "")
    prompt = base.get("prompt")
    if prompt is None and solution and whole.endswith(solution):
        prompt = whole[: -len(solution)]
    about = {name: base.get(name) for name in ("answer", "is_correct")} | {
        name: problem.get(name) for name in ("level", "type", "subject") if name in problem
    }
    choices = {"choices": problem["choices"]} if problem.get("choices") else {}
    return {**about, **choices, "expect": problem.get("gt_answer"), "prompt": prompt, "completion": solution, "left_out": []}
