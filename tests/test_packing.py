"""What a page holds is the table: read back by a decoder written from the README's words, and by the page's own in node."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe.reporting.packing import EXACT, packed

ROOT = Path(__file__).parents[1]
WEB = ROOT / "probe" / "reporting" / "web"
RUDE = ["</script><script>alert(1)</script>", "\ud83d", "\udc00\ud800", "\x1b[31m", "\u202eabc", "é", "", " ", "\n", "\r", '"',
        "a,b", "NA", "\ufffd", "\x00", "<!--", "𝒳" * 3, "x" * 100_000]  # fmt: skip


class Stream:
    """Reads a packed frame as `web/README.md` describes it, item by item; shares no code with the packer."""

    def __init__(self, packed_frame: Any) -> None:
        self.bytes, self.at = zlib.decompress(packed_frame.stream), 0
        about = json.loads(json.dumps(packed_frame.description))
        columns, begun = about["columns"], []
        for one in columns:
            here, self.at = self.at, begun[one["as"]] if "as" in one else self.at
            begun.append(self.at)
            one["values"] = self.column(one, about["rows"])
            self.at = here if "as" in one else self.at
        self.frame = {column["name"]: column["values"] for column in columns}
        assert self.at == len(self.bytes)

    def array(self, of: str, n: int) -> list[Any]:
        size = int(of[1])
        block, self.at = self.bytes[self.at : self.at + n * size], self.at + n * size
        items = [bytes(block[k * n + i] for k in range(size)) for i in range(n)]
        return [np.frombuffer(item, f"<{of}")[0].item() for item in items]

    def column(self, about: dict[str, Any], n: int) -> list[Any]:
        match about["type"]:
            case "bool":
                return [[False, True, None][code] for code in self.array("u1", n)]
            case "text":
                codes = self.array(about["of"], n)
                words, self.at = (
                    json.loads(self.bytes[self.at : self.at + about["words"]].decode("ascii")),
                    self.at + about["words"],
                )
                return [None if code == 0 else words[code - 1] for code in codes]
            case "list":
                lengths = self.array("u4", n)
                items = iter(self.column(about["items"], sum(max(length - 1, 0) for length in lengths)))
                return [None if length == 0 else [next(items) for _ in range(length - 1)] for length in lengths]
        values = self.array(about["of"], n)
        values = [None if value == about.get("null") or value != value else value for value in values]
        if "step" in about:
            values = [None if value is None else about["base"] + about["step"] * value for value in values]
        return values


def plain(value: Any) -> Any:
    """What a value of a frame should read back as: NaN and the other nulls as None, whole numbers alike however they lay."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return value


def column_of(frame: pd.DataFrame, i: int) -> list[Any]:
    """A column with an integer beyond 2^53 is one of texts."""
    values = [plain(value) for value in frame.iloc[:, i].tolist()]
    if any(isinstance(value, int) and abs(value) > EXACT for value in values):
        return [None if value is None else str(value) for value in values]
    return values


texts = st.one_of(st.sampled_from(RUDE), st.text(alphabet=st.characters(exclude_categories=()), max_size=8))
floats = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e308, -1e-45]))
singles = st.one_of(st.floats(width=32), st.sampled_from([-0.0, 1.0]))
integers = st.one_of(st.integers(-200, 300), st.integers(-(2**31) - 2, 2**32 + 2), st.integers(-(2**63), 2**63 - 1))


def listed(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.lists(items, max_size=5))


@st.composite
def series(draw: st.DrawFn) -> pd.Series:
    def values(items: st.SearchStrategy[Any], nulls: bool = True) -> list[Any]:
        return draw(st.lists(st.one_of(st.none(), items) if nulls else items, min_size=7, max_size=7))

    match draw(st.integers(0, 12)):
        case 0:
            return pd.Series(values(integers, nulls=False), dtype="int64")
        case 1:
            return pd.Series(values(integers), dtype="Int64")
        case 2:
            return pd.Series(values(st.integers(-128, 127), nulls=False), dtype="int8")
        case 3:
            return pd.Series(values(floats, nulls=False), dtype="float64")
        case 4:
            return pd.Series(values(singles, nulls=False), dtype="float32")
        case 5:
            return pd.Series(values(st.booleans()), dtype="object")
        case 6:
            return pd.Series(values(st.booleans(), nulls=False), dtype="bool")
        case 7:
            return pd.Series(values(texts), dtype="object")
        case 8:
            return pd.Series(values(st.sampled_from(["a", "b", "<"])), dtype="category")
        case 9:
            return pd.Series(values(listed(texts)), dtype="object")
        case 10:
            return pd.Series(values(listed(st.one_of(st.none(), st.integers(-5, 70_000)))), dtype="object")
        case 11:
            arrays = [None if one is None else np.array(one, np.float32) for one in values(listed(singles))]
            return pd.Series(arrays, dtype="object")
        case _:
            return pd.Series(values(listed(listed(st.booleans()))), dtype="object")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(st.lists(series(), max_size=4))
def test_what_is_packed_reads_back_as_the_frame(columns: list[pd.Series]) -> None:
    frame = pd.DataFrame({f"c{i}": column for i, column in enumerate(columns)})
    found = Stream(packed(frame)).frame
    for i, name in enumerate(frame.columns):
        expected = column_of(frame, i)
        assert found[name] == expected
        assert [minus(value) for value in found[name]] == [minus(value) for value in expected]


def minus(value: Any) -> bool:
    return isinstance(value, float) and value == 0 and math.copysign(1, value) < 0


EVERY = pd.DataFrame({
    "pos": np.arange(6, dtype=np.int32),
    "small": np.array([0, 255, 7, 1, 2, 3], np.int64),
    "wide": np.array([2**31, -1, 0, 1, 2, 2**40], np.int64),
    "beyond": np.array([2**53 + 1, -(2**63), 0, 1, 2, 2**63 - 1], np.int64),
    "maybe": pd.array([None, 255, 1, -1, 2, 3], dtype="Int64"),
    "rank": np.array([np.nan, 3, 0, 1, 70_000, 9], np.float64),
    "single": np.array([0.1, np.nan, np.inf, -np.inf, -0.0, 1e-42], np.float32),
    "double": np.array([0.1, np.nan, np.inf, -np.inf, -0.0, 5e-324], np.float64),
    "whole": np.array([1, 2, 3, 4, 5, 6], np.float32),
    "nothing": pd.Series([None] * 6, dtype="object"),
    "gone": np.full(6, np.nan, np.float32),
    "flag": pd.Series([True, None, False, True, True, None], dtype="object"),
    "token": pd.Series([RUDE[0], None, "", "a,\"b\"\n", "\r", "\u202eé𝒳"], dtype="object"),
    "kind": pd.Series(["a", None, "b", "a", "a", "b"], dtype="category"),
    "ids": pd.Series([np.array([1, 2], np.int32), None, np.array([], np.int32), np.array([300], np.int32), None, None]),
    "weights": pd.Series([np.array([0.5, np.nan, 0.1], np.float32), None, np.array([], np.float32),
                          np.array([np.inf], np.float32), None, None]),
    "texts": pd.Series([["a", None], None, [], [None, None], [""], ["<"]]),
    "struct": pd.Series([{"a": 1.5}, None, {"a": None}, {"a": 2.0}, None, None]),
})  # fmt: skip


def test_every_type_in_node() -> None:
    found = in_node(EVERY)
    for i, name in enumerate(EVERY.columns):
        if name == "struct":
            assert found["values"][name] == ['{"a": 1.5}', None, '{"a": null}', '{"a": 2.0}', None, None]
        else:
            expected = column_of(EVERY, i)
            assert found["values"][name] == expected
            if name in {"single", "double"}:
                assert math.copysign(1, found["values"][name][4]) == -1
    assert found["rows"] == 6 and found["columns"] == list(EVERY.columns)
    assert found["distinct"]["rank"] == [0, 1, 3, 9, 70_000] and found["distinct"]["kind"] == ["a", "b"]
    assert found["indices"] == [0, 3, 4] and found["nulls"] == [1]
    assert found["typed"] == ["Uint8Array", "Float64Array", "Float32Array"]
    assert found["maybe"] == [None, 255, 1, -1, 2, 3]


def test_the_csv_reads_as_pandas_own() -> None:
    flat = EVERY.drop(columns=["ids", "weights", "texts", "struct", "token"])
    read = {"dtype": {"single": np.float32}}
    ours, theirs = (pd.read_csv(io.StringIO(text), **read) for text in (in_node(flat)["csv"], flat.to_csv(index=False)))
    pd.testing.assert_frame_equal(ours, theirs)
    tokens = pd.read_csv(io.StringIO(in_node(EVERY[["pos", "token"]])["csv"], newline=""), keep_default_na=False)
    assert tokens["token"].tolist() == ["" if token is None else token for token in EVERY["token"]]
    lists = pd.read_csv(io.StringIO(in_node(EVERY[["ids", "weights", "texts"]])["csv"]))
    assert [None if text != text else json.loads(text) for text in lists["ids"]] == [[1, 2], None, [], [300], None, None]
    weights = [None if text != text else json.loads(text) for text in lists["weights"]]
    assert (
        np.array_equal(np.float32(weights[0][::2]), np.float32([0.5, 0.1])) and weights[0][1] is None and weights[3] == [None]
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(st.lists(series(), min_size=1, max_size=8))
def test_any_frame_in_node(columns: list[pd.Series]) -> None:
    frame = pd.DataFrame({f"c{i}": column for i, column in enumerate(columns)})
    found = in_node(frame)["values"]
    assert all(found[name] == column_of(frame, i) for i, name in enumerate(frame.columns))


@pytest.mark.parametrize("levels", [255, 4_095, 65_535])
def test_rounding_keeps_within_half_a_step(levels: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=2_000).astype(np.float32)
    values[::7] = np.nan
    one = packed(pd.DataFrame({"x": values, "n": np.arange(2_000)}), {"x": levels, "n": levels})
    found = Stream(one).frame
    back = np.array([np.nan if value is None else value for value in found["x"]])
    span = float(np.nanmax(values)) - float(np.nanmin(values))
    assert one.steps == {"x": pytest.approx(span / (levels - 1))}
    assert np.array_equal(np.isnan(back), np.isnan(values))
    assert np.nanmax(np.abs(back - values.astype(np.float64))) <= one.steps["x"] * 0.5001
    assert found["n"] == list(range(2_000))  # whole numbers stay what they are
    assert in_node(pd.DataFrame({"x": values}), {"x": levels})["values"]["x"] == found["x"]


def test_what_has_no_step_stays_exact() -> None:
    frame = pd.DataFrame({
        "same": np.full(3, 0.25, np.float32), "none": np.full(3, np.nan), "endless": [0.5, -np.inf, 1.5],
        "far": [1.7e308, -1.7e308, 0.5],
        "weights": [np.array([0.5, -np.inf], np.float32), None, None],
    })  # fmt: skip
    one = packed(frame, dict.fromkeys(frame.columns, 255))
    assert not one.steps
    assert Stream(one).frame == {name: column_of(frame, i) for i, name in enumerate(frame.columns)}


def test_equal_columns_lie_there_once() -> None:
    rng = np.random.default_rng(0)
    once = EVERY.sample(3_000, replace=True, random_state=0).assign(noise=rng.normal(size=3_000))
    ranks = once["pos"].astype(np.float64)  # the same whole numbers, as floats
    twice = once.assign(**{f"{name}2": once[name] for name in once.columns}, ranks=ranks)
    one, two = packed(once), packed(twice)
    assert len(two.stream) < 1.01 * len(one.stream)
    expected = {name: column_of(twice, i) for i, name in enumerate(twice.columns)}
    found = Stream(two).frame
    del found["struct"], found["struct2"], expected["struct"], expected["struct2"]
    assert found == expected
    found = in_node(twice.drop(columns=["struct", "struct2"]))
    assert found["values"] == expected
    lines = in_node(twice[["pos", "ranks"]])["csv"].splitlines()
    assert lines[1:] == [f"{pos},{pos}.0" for pos in twice["pos"]]


def test_a_frame_without_rows_or_columns() -> None:
    assert Stream(packed(pd.DataFrame())).frame == {}
    empty = EVERY.iloc[:0]
    assert Stream(packed(empty)).frame == {name: [] for name in EVERY.columns}
    assert in_node(empty)["csv"] == ",".join(EVERY.columns) + "\n"


SCRIPT = """
import { unpack } from "%s";
let text = ""; for await (const part of process.stdin) text += part;
const { description, stream } = JSON.parse(text);
const frame = await unpack(description, stream);
const told = (v) => v === null || Number.isNaN(v) ? null : typeof v === "number" ? (Object.is(v, -0) ? "n-0" : `n${v}`)
  : typeof v === "string" ? `t${v}` : typeof v === "boolean" ? v : Array.from(v, told);
const all = (name) => Array.from({ length: frame.rows }, (_, i) => told(frame.get(name, i)));
const every = frame.columns.includes("struct") && frame.rows > 0;
console.log(JSON.stringify({
  rows: frame.rows, columns: frame.columns, csv: frame.csv(null),
  values: Object.fromEntries(frame.columns.map((n) => [n, all(n)])),
  ...(every ? {
    distinct: { rank: frame.distinct("rank"), kind: frame.distinct("kind") }, indices: [...frame.indices({ kind: "a" })],
    nulls: [...frame.indices({ kind: null, flag: null })],
    typed: ["pos", "rank", "single"].map((n) => frame.values(n).constructor.name),
    maybe: Array.from(frame.values("maybe"), (v) => (Number.isNaN(v) ? null : v)),
  } : {}),
}));
"""


def in_node(frame: pd.DataFrame, rounding: Any = None) -> dict[str, Any]:
    """The frame as `data.js` reads it."""
    import base64

    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    one = packed(frame, rounding)
    given = json.dumps({"description": one.description, "stream": base64.b64encode(one.stream).decode()})
    script = SCRIPT % (WEB / "src" / "data.js").as_uri()
    done = subprocess.run([node, "--input-type=module", "-e", script], input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {**found, "values": {name: [heard(value) for value in values] for name, values in found["values"].items()}}


def heard(value: Any) -> Any:
    if isinstance(value, list):
        return [heard(item) for item in value]
    if not isinstance(value, str):
        return value
    return value[1:] if value[0] == "t" else float(value[1:].replace("Infinity", "inf"))
