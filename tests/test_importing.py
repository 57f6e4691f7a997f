"""Hidden states of a server as a run: stand-ins are plain `model(ids, output_hidden_states=True)`, saved as vLLM saves them."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

import probe
from probe import store
from probe.errors import BadOption, BadPrompt, ProbeError
from probe.importing import files, recording
from probe.replaying import replay
from probe.requests import ImportStates
from probe.tiny import tiny
from tests.test_cli_trace import failed

TEXTS = ("The cat sat. It was there.", "Two and three make five.", "a b c d e f g")
NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}


@cache
def model(family: str = "llama") -> Any:
    return probe.load(f"tiny:{family}")


def streams(lm: Any, ids: list[int], norm: str) -> Tensor:
    """(pos, n_layers + 1, d_model): transformers' own, whose last has been through the final norm; so that is read before."""
    before: list[Tensor] = []
    hook = lm.model.get_submodule(norm).register_forward_pre_hook(lambda _, given: before.append(given[0]))
    with torch.no_grad():
        found = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([*(one[0] for one in found[:-1]), before[0][0]], dim=1)


def tensors(text: str, layers: list[int], dtype: torch.dtype = torch.float32, family: str = "llama") -> dict[str, Tensor]:
    lm = model(family)
    ids = list(lm.encode(text).ids)
    states = streams(lm, ids, NORMS[family])[:, layers].contiguous().to(dtype)
    return {"token_ids": torch.tensor(ids), "hidden_states": states}


def saved(path: Path, *given: Any, **more: Any) -> Path:
    save_file(tensors(*given, **more), path)
    return path


def rows(run: probe.Run, table: str) -> pd.DataFrame:
    return getattr(run, table).drop(columns="run_id")


@pytest.mark.parametrize("family", sorted(NORMS))
def test_layer_n_of_a_server_is_what_goes_into_layer_n(family: str, tmp_path: Path) -> None:
    lm = model(family)
    n = lm.anatomy.n_layers
    path = saved(tmp_path / "a.safetensors", TEXTS[0], list(range(n + 1)), family=family)
    run = probe.import_states(lm, path)
    own = streams(lm, list(lm.encode(TEXTS[0]).ids), NORMS[family]).numpy()
    for layer in range(n + 1):
        found = run.activation("resid_pre", layer) if layer < n else run.activation("resid_post", n - 1)
        assert np.array_equal(found, own[:, layer])
    assert run.imported["difference"].max() < 1e-5 and run.imported["other_difference"].min() > 0.05
    assert [one["id"] for one in run.summary["imported"]["layers"]] == list(range(n + 1))


def test_a_file_that_vllm_wrote(tmp_path: Path) -> None:
    """Real: see `tests/vllm/README.md`. In the order of the layers, not of the server's list; what it wrote is in it."""
    tiny_model, tokenizer = tiny("llama", head_dim=32)
    tiny_model.save_pretrained(tmp_path / "m"), tokenizer.save_pretrained(tmp_path / "m")
    lm, path = probe.load(str(tmp_path / "m")), Path(__file__).parent / "vllm" / "0-9606f878.safetensors"
    run = probe.import_states(lm, path, layers="1,3")
    prompt = list(lm.encode("The cat sat.").ids)
    ids = run.tokens["token_id"].tolist()
    assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 6 - 1
    own = streams(lm, ids, "model.norm")[:, [1, 3]].numpy()
    found = np.stack([run.activation("resid_pre", 1), run.activation("resid_post", 2)], axis=1)
    relative = np.linalg.norm(found - own, axis=-1) / np.linalg.norm(own, axis=-1)
    assert relative.max() < 0.03 and run.imported["other_difference"].min() > 0.5
    with pytest.raises(BadOption, match="is not resid_pre@1") as refused:
        probe.import_states(lm, path, layers="3,1")
    assert refused.value.hint == "these fit: --layers 1,3"


def test_it_is_the_run_that_trace_makes_with_the_servers_numbers_in_it(tmp_path: Path) -> None:
    lm = model()
    path = saved(tmp_path / "a.safetensors", TEXTS[0], [1, 3], torch.bfloat16)
    run = probe.import_states(lm, path, layers="1,3", out=tmp_path / "r")
    traced = probe.trace(lm, TEXTS[0], capture=["resid_pre@1", "resid_post@2"], attention="none", out=None)
    for table in ("tokens", "steps"):
        pd.testing.assert_frame_equal(rows(run, table), rows(traced, table))
    theirs, ours = rows(run, "activations"), rows(traced, "activations")
    keys = ["prompt_id", "branch", "site", "layer", "head", "pos"]
    pd.testing.assert_frame_equal(theirs[keys], ours[keys])
    server = tensors(TEXTS[0], [1, 3], torch.bfloat16)["hidden_states"].float()
    own = tensors(TEXTS[0], [1, 3])["hidden_states"]
    assert np.array_equal(run.activation("resid_pre", 1), server[:, 0].numpy())  # bf16, kept to the bit
    assert np.array_equal(traced.activation("resid_pre", 1), own[:, 0].numpy())
    relative = ((server - own).norm(dim=-1) / own.norm(dim=-1)).double()  # (pos, layer)
    found = run.imported.sort_values(["site", "layer"], ascending=[False, True])  # resid_pre, then resid_post
    assert np.allclose(found["difference"], relative.mean(0), rtol=1e-4)
    assert np.allclose(found["largest"], relative.max(0).values, rtol=1e-4)
    assert found["largest_pos"].tolist() == relative.argmax(0).tolist()
    assert run.summary["imported"]["dtypes"] == ["bfloat16"] and run.summary["imported"]["own_dtype"] == "float32"
    assert run.manifest["resolved"]["activations"] == "server" and "the server computed" in run.manifest["warnings"][0]
    assert store.check(tmp_path / "r") == []


def test_what_works_on_a_run_works_on_it(tmp_path: Path) -> None:
    lm = model()
    for i, text in enumerate(TEXTS):
        saved(tmp_path / f"{i}.safetensors", text, [1, 2], torch.float16)
    run = probe.import_states(lm, tmp_path, layers=(1, 2), out=tmp_path / "r")
    assert run.prompts["source"].tolist() == ["0.safetensors", "1.safetensors", "2.safetensors"]
    seen = probe.lens(lm, run, prompt_id=1, out=None)
    assert seen.tokens["token_id"].tolist() == list(lm.encode(TEXTS[1]).ids)
    put = probe.trace(lm, TEXTS[1], edit=f"resid_pre@1=mean:{tmp_path / 'r'}", capture=["resid_pre@1"], out=None)
    mean = np.concatenate([run.activation("resid_pre", 1, prompt_id=i) for i in range(3)]).mean(0)
    assert np.allclose(put.activation("resid_pre", 1), mean, atol=1e-5)
    again = replay(lm, run)
    for table in ("prompts", "tokens", "activations", "imported"):
        pd.testing.assert_frame_equal(rows(again, table), rows(run, table))


@pytest.mark.parametrize(("layers", "given", "found"), [([0, 1, 2], None, [0, 1, 2]), ([1, 2, 3], None, [1, 2, 3])])
def test_a_file_of_as_many_layers_as_the_model_has_says_by_its_numbers_which(
    layers: list[int], given: str | None, found: list[int], tmp_path: Path
) -> None:
    run = probe.import_states(model(), saved(tmp_path / "a.safetensors", TEXTS[0], layers, torch.bfloat16), layers=given)
    assert run.manifest["resolved"]["layers"] == found


@pytest.mark.parametrize(
    ("layers", "given", "message", "hint"),
    [
        ([1, 3], None, "has 2 layers and does not say which", "these fit: --layers 1,3"),
        ([1, 3], "1,2", r"layer 2 of the server is not resid_pre@2", "these fit: --layers 1,3"),
        ([0, 2], "1,3", r"is not resid_(pre@1|post@2)", "these fit: --layers 0,2"),
        ([1, 3], "3,1", "is not", "these fit: --layers 1,3"),  # vLLM has them in ascending order, however they were listed
        ([1, 3], "1,2,3", "the file has 2 layers, and 3 are named", "eagle_aux_hidden_state_layer_ids"),
        ([1, 3], "1,4", "has no layer 4", "or 3 for what leaves the last block"),
        ([1, 3], "1,1", "name one twice", ""),
        ([1, 3], "1;3", "cannot read the layers '1;3'", "write 1,5,9"),
        ([1, 3], "3..1", "cannot read the layers", "write 1,5,9"),
        ([1, 1], None, "does not say which", "as the server was told"),
    ],
)
def test_layers_are_refused_that_are_not_those_of_the_file(
    layers: list[int], given: str | None, message: str, hint: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.safetensors", TEXTS[0], layers, torch.bfloat16)
    with pytest.raises(BadOption, match=message) as refused:
        probe.import_states(model(), path, layers=given, out=tmp_path / "r")
    assert hint in refused.value.hint and not (tmp_path / "r").exists()


def test_the_tolerance_decides_and_another_model_has_no_layer_that_fits(tmp_path: Path) -> None:
    lm, given = model(), tensors(TEXTS[0], [1])
    noise = torch.randn(given["hidden_states"].shape, generator=torch.Generator().manual_seed(0))
    noise *= 0.1 * given["hidden_states"].norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    save_file({**given, "hidden_states": given["hidden_states"] + noise}, tmp_path / "a.safetensors")
    with pytest.raises(BadOption, match=r"differ by 0\.1 of its norm, where 0\.05") as refused:
        probe.import_states(lm, tmp_path / "a.safetensors", layers="1")
    assert "no other layer is nearer" in refused.value.hint
    run = probe.import_states(lm, tmp_path / "a.safetensors", layers="1", tolerance=0.11)
    assert run.imported["difference"].tolist() == pytest.approx([0.1], rel=1e-3)
    save_file({**given, "hidden_states": torch.randn_like(noise)}, tmp_path / "b.safetensors")
    with pytest.raises(BadOption, match="is not resid_pre@1") as refused:
        probe.import_states(lm, tmp_path / "b.safetensors", layers="1")
    assert "--layers" not in refused.value.hint
    for wrong in (0.0, float("nan"), -1.0):
        with pytest.raises(BadOption, match="tolerance"):
            ImportStates("a", tolerance=wrong)


def test_one_token_of_garbage_in_a_long_text_is_found(tmp_path: Path) -> None:
    """Its share of a mean over 300 tokens is too small to be seen there."""
    given = tensors("ab " * 100, [1])
    given["hidden_states"][200] = 0
    save_file(given, tmp_path / "a.safetensors")
    with pytest.raises(BadPrompt, match=r"token 200 of resid_pre@1 differs by 1, where 0\.5"):
        probe.import_states(model(), tmp_path / "a.safetensors", layers="1")


def altered(**other: Tensor) -> bytes:
    return save({name: one for name, one in {**tensors(TEXTS[0], [1]), **other}.items() if one is not None})


def _nan() -> Tensor:
    states = tensors(TEXTS[0], [1])["hidden_states"].bfloat16()
    states[3, 0, 5] = torch.nan
    return states


IDS = torch.tensor(list(range(4)))
BAD = {
    "garbage": (lambda: b"not a file", "cannot read"),
    "empty file": (lambda: b"", "cannot read"),
    "cut short": (lambda: altered()[:-100], "cannot read"),
    "no ids": (lambda: altered(token_ids=None), "has no token_ids"),
    "no states": (lambda: save({"token_ids": IDS}), "has no hidden_states"),
    "a model": (lambda: save({"lm_head.weight": torch.zeros(2, 2)}), "has no hidden_states|has no token_ids"),
    "ids of floats": (lambda: altered(token_ids=torch.zeros(4)), "not a list of ids"),
    "two axes": (lambda: altered(hidden_states=torch.zeros(4, 64)), r"\(4, 64\) float32, not \(token"),
    "integers": (lambda: altered(hidden_states=torch.zeros(4, 1, 64, dtype=torch.int64)), "int64, not"),
    "no tokens": (
        lambda: save({"token_ids": IDS[:0], "hidden_states": torch.zeros(0, 1, 64)}), "'a.safetensors' is empty",
    ),
    "no layers": (lambda: save({"token_ids": IDS, "hidden_states": torch.zeros(4, 0, 64)}), "'a.safetensors' is empty"),
    "other lengths": (lambda: altered(token_ids=IDS), "4 ids, and hidden states of"),
    "width": (lambda: save({"token_ids": IDS, "hidden_states": torch.zeros(4, 1, 63)}), "have 63 entries, and those of"),
    "an id beyond": (
        lambda: save({"token_ids": IDS + 10**6, "hidden_states": torch.zeros(4, 1, 64)}), "holds the id 1,000,000",
    ),
    "an id below": (lambda: save({"token_ids": IDS - 1, "hidden_states": torch.zeros(4, 1, 64)}), "holds the id -1"),
    "NaN": (lambda: altered(hidden_states=_nan()), "numbers that are none, the first at token 3 in layer 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_one_line_and_a_hint_and_of_several_a_row(what: str, tmp_path: Path) -> None:
    make, message = BAD[what]
    path = tmp_path / "some" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(make())
    with pytest.raises(BadPrompt, match=message) as refused:
        probe.import_states(model(), path, layers="1")
    assert refused.value.hint and "\n" not in refused.value.message
    saved(path.parent / "b.safetensors", TEXTS[0], [1])
    run = probe.import_states(model(), path.parent, layers="1")
    assert run.prompts["error"].tolist() == [refused.value.message, ""] and run.summary["errors"] == 1
    assert run.activations["prompt_id"].unique().tolist() == [1]


def test_a_later_file_of_other_layers_is_a_row_that_says_so(tmp_path: Path) -> None:
    for name, layers in (("a", [1]), ("b", [2]), ("c", [1, 2]), ("d", [1])):
        saved(tmp_path / f"{name}.safetensors", TEXTS[0], layers)
    run = probe.import_states(model(), tmp_path, layers="1")
    assert [bool(error) for error in run.prompts["error"]] == [False, True, True, False]
    assert "differs by" in run.prompts["error"][1] and "has 2 layers, and the first file 1" in run.prompts["error"][2]


def test_compressed_files_and_folders_without_any(tmp_path: Path) -> None:
    plain = tmp_path / "base" / "a.safetensors"
    plain.parent.mkdir()
    saved(plain, TEXTS[0], [1])
    run = probe.import_states(model(), plain, layers="1")
    packed = plain.with_suffix(".safetensors.zst")
    with pa.output_stream(str(packed), compression="zstd") as stream:
        stream.write(plain.read_bytes())
    pd.testing.assert_frame_equal(
        rows(probe.import_states(model(), packed, layers="1"), "activations"), rows(run, "activations")
    )
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(BadPrompt, match="cannot read"):
        probe.import_states(model(), packed, layers="1")
    with pytest.raises(BadOption, match="no files of hidden states") as refused:
        probe.import_states(model(), tmp_path, layers="1")
    assert str(tmp_path / "base") in refused.value.hint
    with pytest.raises(BadOption, match="there is no"):
        files.state_files(tmp_path / "nowhere")


def test_files_of_which_none_can_be_imported_and_a_name_that_is_no_text(shell: Any, tmp_path: Path) -> None:
    given, source = tensors("ab " * 100, [1]), tmp_path / "s"
    given["hidden_states"][200] = 0
    source.mkdir()
    for name in ("0", "1"):
        save_file(given, source / f"{name}.safetensors")
    done = shell("import", "s", "--layers", "1", "-m", "tiny:llama", "--out", "r")
    assert (done.returncode, done.stdout) == (1, "r\n") and "2 of 2 files could not be imported" in done.stderr
    with Path(os.fsdecode(bytes(source) + b"/\xff.safetensors")).open("wb") as file:
        file.write(b"x")
    saved(source / "2.safetensors", TEXTS[0], [1])
    run = probe.import_states(model(), source, layers="1", out=tmp_path / "q")
    assert run.prompts["source"].tolist()[-1] == "\\udcff.safetensors" and run.summary["errors"] == 3


def test_what_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, source = model(), tmp_path / "s"
    source.mkdir()
    for i, text in enumerate(TEXTS):
        saved(source / f"{i}.safetensors", text, [1], torch.bfloat16)
    whole = probe.import_states(lm, source, layers="1", out=tmp_path / "whole")
    real = recording._import

    def cut_short(run: Any, request: Any, i: int, *rest: Any, **more: Any) -> None:
        if i == 2:
            raise KeyboardInterrupt
        real(run, request, i, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recording, "_import", cut_short)
        probe.import_states(lm, source, layers="1", out=tmp_path / "r")
    with pytest.raises(ProbeError):  # asked for something else
        probe.import_states(lm, source, layers="1", tolerance=0.2, out=tmp_path / "r", resume=True)
    resumed = probe.import_states(lm, source, layers="1", out=tmp_path / "r", resume=True)
    for table in ("prompts", "tokens", "steps", "activations", "imported"):
        pd.testing.assert_frame_equal(rows(resumed, table), rows(whole, table))
    assert resumed.summary == whole.summary and store.check(tmp_path / "r") == []
    assert probe.import_states(lm, source, layers="1", out=tmp_path / "r", resume=True).run_id == resumed.run_id


def test_a_dry_run_reads_headers_and_writes_nothing(shell: Any, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for i, text in enumerate(TEXTS):
        saved(source / f"{i}.safetensors", text, [1, 3], torch.bfloat16)
    with pa.output_stream(str(source / "0.safetensors.zst"), compression="zstd") as stream:
        stream.write((source / "0.safetensors").read_bytes())
    (source / "broken.safetensors").write_bytes(b"x")
    words = ("import", "s", "--layers", "1,3", "-m", "tiny:llama")
    planned = json.loads(shell(*words, "--dry-run", "--json").stdout)
    assert (planned["files"], planned["unreadable"], planned["places"]) == (5, 1, "resid_pre@1, resid_post@2")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s"]
    shell(*words, "--out", "r")
    made = {name: len(pd.read_parquet(tmp_path / "r" / where)) for name, where in (
        ("prompts", "prompts.parquet"), ("tokens", "tokens.parquet"), ("activations", "activations"),
    )}  # fmt: skip
    assert {name: found["rows"] for name, found in planned["tables"].items()} == made
    failed(shell(*words[:2], "--layers", "1,2", "-m", "tiny:llama", "--dry-run"), 1, "these fit: --layers 1,3")


def test_the_command_line(shell: Any, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for i, text in enumerate(TEXTS[:2]):
        saved(source / f"{i}.safetensors", text, [1, 3], torch.bfloat16)
    done = shell("import", "s", "--layers", "1,3", "-m", "tiny:llama", "--out", "r")
    assert done.returncode == 0, done.stderr
    assert "the server's bfloat16 beside this model's float32" in done.stdout and "run: r" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "resid_post@2" in line and line.startswith("3")]
    assert float(line.split()[2]) < 0.01 and "resid_pre@2" in line
    assert "the server computed" in done.stderr
    assert shell("runs", "check", "r").returncode == 0
    assert shell("lens", "r", "--prompt", "1").returncode == 0
    failed(shell("import", "s", "--layers", "1,2", "-m", "tiny:llama"), 1, "is not resid_pre@2", "these fit: --layers 1,3")
    failed(shell("import", "nowhere", "-m", "tiny:llama"), 1, "there is no 'nowhere'", "name a .safetensors file")
    failed(shell("import", "-m", "tiny:llama"), 2)
    (source / "2.safetensors").write_bytes(b"x")
    done = shell("import", "s", "--layers", "1,3", "-m", "tiny:llama", "--json")
    said = "error: 1 of 3 files could not be imported; prompt 2: cannot read '2.safetensors': "
    assert done.returncode == 3 and said in done.stderr and "the others are in the run" in done.stderr
    said = json.loads(done.stdout)
    assert said["command"] == "import" and [one["id"] for one in said["summary"]["imported"]["layers"]] == [1, 3]
